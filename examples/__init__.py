"""Whole runs on something small; each module is a command, `python -m examples.<name>`."""

import os

# Threads that wait by spinning starve whatever else runs. Read when torch is first imported; it changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
