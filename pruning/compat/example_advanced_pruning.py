"""Where the example was before: run from this folder, it is `examples/example_advanced_pruning.py`, options and all."""

import runpy
import sys

if __name__ == "__main__":
    sys.path[0] += "/../.."  # in place of this folder, whose names are not to be found
    runpy.run_module("examples.example_advanced_pruning", run_name="__main__", alter_sys=True)
