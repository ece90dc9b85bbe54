"""In how many of the architectures that `transformers` and `timm` list neurons are found, tiny and drawn at random.

`python -m benchmarks.architectures transformers --to FILE` (or `timm`) builds every kind of the package's own list with
its sizes made small (`benchmarks.listed`) and looks at each as `benchmarks.networks` does, in a process of its own and
within a limit of CPU time. FILE gets one line of JSON for each; those that it has are not looked at again. What is
printed last is counted over FILE.
"""

import argparse
import json
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import asked
from benchmarks.catalogue import Network
from benchmarks.listed import NotBuilt, kinds
from benchmarks.networks import FORKS, look, said, warm

LIMIT = 60
"""Seconds of CPU time for one kind."""


def tell(name: str, network: Network, sender: Connection) -> None:
    """Send a kind's facts."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    try:
        sender.send(look(name, network))
    except NotBuilt as error:
        sender.send({"name": name, "unbuilt": str(error)})
    except Exception as error:  # whatever building it raises
        sender.send({"name": name, "unbuilt": said(error)})


def summed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many kinds were built, and in how many of them neurons were found, all, in part or none."""
    built = [facts for facts in rows if "unbuilt" not in facts]
    found = [facts for facts in built if facts.get("layers")]
    whole = sum(facts["reach"] >= 0.9 for facts in found)
    wrong = [f"{facts['name']} ({facts['proof']})" for facts in found if not facts["proof"].startswith("yes")]
    unheard = sum(facts["reach"] < 0.9 and facts["stays"] == "the example inputs do not reach it" for facts in found)
    nothing = [facts for facts in built if not facts.get("layers")]
    none = [f"{facts['name']} ({facts.get('failure') or facts['stays']})" for facts in nothing]
    return (
        f"Of {len(rows)} kinds {len(built)} were built; neurons are found in {len(found)}, in {whole} of them 90% of "
        f"the parameters or more are within reach, and in {unheard} the inputs do not reach most of the rest. "
        f"In none: {'; '.join(none) or 'none'}. Wrong: {'; '.join(wrong) or 'none'}."
    )


def main() -> None:
    """Look at the kinds that the file does not have, a line each, and say what it holds."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.architectures",
        description=__doc__.split("\n", maxsplit=1)[0],
    )
    parser.add_argument(
        "package", choices=("transformers", "timm"), help="the package whose list of networks is gone through"
    )
    parser.add_argument("--to", type=asked.file, required=True, help="the file of one line for each kind")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="look at these alone")
    given = parser.parse_args()
    if find_spec(given.package) is None:
        sys.stdout.write(f"skipped: {given.package} is not installed\n")
        return
    given.to.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.to.read_text().splitlines()] if given.to.exists() else []
    warm(given.package)
    for name, network in kinds(given.package).items():
        if name in {facts["name"] for facts in rows} or (given.only and name not in given.only):
            continue
        rows.append(separately(name, network))
        with given.to.open("a") as file:
            file.write(f"{json.dumps(rows[-1])}\n")
        seen = {key: value for key, value in rows[-1].items() if key not in ("name", "answering")}
        sys.stdout.write(f"{name}: {seen}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{summed(rows)}\n")


def separately(name: str, network: Network) -> dict[str, Any]:
    """Return a kind's facts from a process of its own, or that it ended before it told them."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=tell, args=(name, network, sender))
    process.start()
    sender.close()
    try:
        facts: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        facts = {"name": name, "failure": f"over {LIMIT} s of CPU time, or ended with {process.exitcode}"}
    process.kill()
    process.join()
    return facts


if __name__ == "__main__":
    main()
