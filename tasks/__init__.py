"""Stages: each module binds one library function to the files and parameters that dvc.yaml gives it."""

from tasks.common.interruption import say_interruptions

say_interruptions()
