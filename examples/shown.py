"""What the examples share: their options, files of packages that need not be imported, and the table at the end."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import nn

Measure = Callable[[nn.Module], float]
"""A network → how good it is."""


def options(about: str | None, *, keep: float = 0.5) -> argparse.ArgumentParser:
    """Return the parser of what every example asks: how much to keep, and whether a look at it is enough."""
    run = f"python -m examples.{Path(sys.argv[0]).stem}"
    parser = argparse.ArgumentParser(prog=run, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", type=float, default=keep, help="share of each layer's neurons that stay (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: to see that it runs, not how well")
    return parser


def packaged(package: str, file: str) -> Path:
    """Return a file within an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"Expected the package {package}, got none; docs/results/examples.md says how to install it.")
    return Path(spec.submodule_search_locations[0]) / file


class Shown:
    """The table of an example, each line of it printed as soon as it is known.

    Attributes:
        rows: What was printed so far: name → measure → number, `parameters` and `seconds` among them.
    """

    def __init__(self, title: str, measures: Mapping[str, Measure]) -> None:
        self.measures, self.rows = measures, dict[str, dict[str, float]]()
        self.columns = {what: max(10, len(what) + 2) for what in measures}
        heads = "".join(f"{what:>{width}}" for what, width in self.columns.items())
        print(f"{title}\n{'':<34}{heads}{'parameters':>12}{'CPU s':>9}")
        self.since = time.process_time()

    def row(self, name: str, network: nn.Module) -> None:
        """Measure a network and print its line; its seconds are the processor's since the last measuring."""
        seconds = time.process_time() - self.since
        parameters = sum(parameter.numel() for parameter in network.parameters())
        measured = {what: measure(network) for what, measure in self.measures.items()}
        numbers = "".join(f"{measured[what]:{width}.3f}" for what, width in self.columns.items())
        print(f"{name:<34}{numbers}{parameters:12,}{seconds:9.1f}", flush=True)
        self.rows[name] = measured | {"parameters": parameters, "seconds": seconds}
        self.since = time.process_time()
