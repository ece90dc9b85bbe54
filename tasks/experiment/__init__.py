"""The experiment's files: options, inputs, cells that are computed once, costs, the report, and what MLflow is told."""

import os

# Threads that wait by spinning starve whatever else runs; read when torch is first imported, it changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
