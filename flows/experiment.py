"""`python -m flows.experiment`: the experiment, one stage after the other, since some of them measure time."""

import sys

from flows.pipeline import main

if __name__ == "__main__":
    sys.exit(main(["experiment/dvc.yaml", "--jobs", "1", *sys.argv[1:]], "flows.experiment"))
