"""Whole runs on something small; each module is a command, `python -m examples.<name>`."""
