"""Stages: each module binds one library function to the files and parameters that dvc.yaml gives it."""

from tasks.common.interruption import say_interruptions

say_interruptions()

VARIABLES = {
    # Threads that wait by spinning starve whatever else runs: two trainings side by side then crawl at a tenth of their
    # speed. Read when torch is first imported; it changes no result.
    "OMP_WAIT_POLICY": "PASSIVE",
    # With it cuBLAS gives the same bytes each time; read when CUDA is first used.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What a stage sees in its environment, where that says nothing else."""
