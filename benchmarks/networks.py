"""Whether neurons are found, and rightly removed, in networks that others published on PyPI, beside Torch-Pruning.

`python -m benchmarks.networks --to FILE` looks into each network of the catalogue (`benchmarks.catalogue`,
`specialised`, `sequential`, `structured`) in a process of its own, within a limit, and writes one row for each;
`--only NAME …` looks at some of them. Those whose package is not installed are passed over, with the reason. Its table
stands in docs/results/networks.md.

The proof is not the library's own: the weights are moved off their special values (zero biases, unit gains), and then

- half of the neurons of every exact layer, drawn at random, are removed and masked, which must agree;
- all layers' neurons are put into another order, which must change nothing, the inexact layers among them;
- half of every layer are removed, and the answer must be finite and as large as before;

in float64 wherever the network runs in it.
"""

import argparse
import importlib
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import asked
from benchmarks.answers import apart, tensors_of
from benchmarks.catalogue import TIMM, TORCHVISION, TRANSFORMERS, Inputs, Network, of
from benchmarks.rival import torch_pruned
from benchmarks.sequential import SEQUENTIAL
from benchmarks.specialised import SPECIALISED
from benchmarks.structured import STRUCTURED
from benchmarks.tabled import LIMIT, PEER_LIMIT, page, row, summed
from pruning.core.neurons import Keep, NeuronLayer, Slice, mask, select
from pruning.discovery import discover
from pruning.discovery.discovered import Discovered
from pruning.discovery.running import copied

NETWORKS: dict[str, Network] = {**TORCHVISION, **TIMM, **TRANSFORMERS, **SPECIALISED, **SEQUENTIAL, **STRUCTURED}
PATIENCE = 900
"""Seconds on the clock after which a process is ended."""
AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far apart answers may be, of the largest number in them."""
SEED = 0
FORKS = multiprocessing.get_context("fork")


def look(name: str, network: Network) -> dict[str, Any]:
    """Return what is found in a network and whether it is right, as facts of a row."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    given, inputs = network.make()
    given = given.eval()
    move(given)
    facts: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in given.parameters())}
    begin = time.process_time()
    try:
        found = discover(given, inputs)
    except Exception as error:  # whatever a network's code raises
        return facts | {"failure": said(error), "seconds": time.process_time() - begin}
    facts["seconds"] = time.process_time() - begin
    layers = found.layers()
    facts |= {
        "layers": len(layers),
        "exact": sum(layer.exact for layer in layers),
        "repairable": sum(map(repairable, layers)),
        "reach": reached(found, layers) / max(facts["parameters"], 1),
        "stays": stays(found),
        "answering": answering(given, found),
    }
    try:
        facts["proof"] = proof(given, found, inputs)
    except Exception as error:  # whatever a network's code raises at other widths
        facts["proof"] = f"no: {said(error)}"
    return facts


def rival(network: Network, roots: Sequence[str]) -> dict[str, str]:
    """Return what Torch-Pruning does with a network."""
    torch.manual_seed(SEED)
    given, inputs = network.make()
    move(given.eval())
    with limited(PEER_LIMIT):
        return {"rival": torch_pruned(given, inputs, roots, lambda model: tensors_of(run(model, inputs)))}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise within the context once it has taken so many seconds of CPU time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def move(network: nn.Module) -> None:
    """Move parameters and statistics off the special values that they begin with, which could hide a mistake."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and (parameter.ndim < 2 or float(parameter.std()) < 1e-4):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator).to(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(torch.exp(0.1 * torch.randn(buffer.shape, generator=generator)).to(buffer))


def proof(given: nn.Module, found: Discovered, inputs: Inputs) -> str:
    """Return `yes` and in which precision, or `no` and why."""
    kind = torch.float64
    try:
        finer = [in_precision(value, kind) for value in (given, found, inputs)]
        with Coarsest() as coarsest:
            dense = tensors_of(run(finer[0], finer[2]))
        given, found, inputs, kind = *finer, coarsest.kind
    except Exception:  # code that names float32
        kind = torch.float32
        given, found, inputs = (in_precision(value, kind) for value in (given, found, inputs))
        dense = tensors_of(run(given, inputs))
    if found.folded and kind == torch.float64:  # folded weights were rounded as coarsely as the network was given
        found = discover(given, inputs)
    found.eval()
    generator, layers = torch.Generator().manual_seed(SEED), found.layers()
    orders = {layer.name: torch.randperm(layer.width, generator=generator) for layer in layers}
    half = {layer.name: orders[layer.name][: max(1, layer.width // 2)] for layer in layers}
    exact = {layer.name: half[layer.name] for layer in layers if layer.exact}

    def answer(keep: Keep, cut: Any = select) -> list[Tensor]:
        return tensors_of(run(cut(found, keep), inputs))

    if (far := apart(tensors_of(run(found, inputs)), dense)) > AGREEMENT[kind]:
        return f"no: rewritten, the network's answer is {far:.0e} apart"
    masked = answer(exact, mask)
    if (far := apart(answer(exact), masked)) > AGREEMENT[kind]:
        return f"no: {far:.0e} apart"
    if (far := apart(answer(orders), dense)) > AGREEMENT[kind]:
        return f"no: in another order {far:.0e} apart"
    smaller = answer(half)
    if [part.shape for part in smaller] != [part.shape for part in dense]:
        return "no: half of it gives other shapes"
    if not all(bool(part.isfinite().all()) for part in smaller):
        return "no: half of it gives numbers that are not finite"
    moved = not exact or apart(masked, dense) > AGREEMENT[kind]
    return f"yes{'' if kind == torch.float64 else ', in float32'}{'' if moved else ', but masking changes nothing'}"


class Coarsest(TorchDispatchMode):
    """A mode that notices where code turns numbers of double precision into single."""

    kind = torch.float64

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and look at what it gives."""
        given = operation(*args, **(kwargs or {}))
        read = any(isinstance(part, Tensor) and part.dtype == torch.float64 for part in pytree.tree_leaves(args))
        if read and any(isinstance(part, Tensor) and part.dtype == torch.float32 for part in pytree.tree_leaves(given)):
            self.kind = torch.float32
        return given


def in_precision(value: Any, kind: torch.dtype) -> Any:
    """Return a module, or inputs, whose floating-point numbers are of a type."""
    if isinstance(value, nn.Module):  # `to` alone would take the imaginary parts away
        return copied(value)._apply(
            lambda part: part.to(
                kind.to_complex() if part.is_complex() else kind if part.is_floating_point() else part.dtype
            )
        )
    return pytree.tree_map(
        lambda part: part.to(kind) if isinstance(part, Tensor) and part.is_floating_point() else part, value
    )


def run(network: nn.Module, inputs: Inputs) -> Any:
    """Return what a network gives, the same random numbers drawn each time; it remembers nothing of it."""
    network = copied(network).eval()
    torch.manual_seed(SEED)
    with torch.no_grad():
        return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


def repairable(layer: NeuronLayer) -> bool:
    """Return whether some reader of the layer can be refitted: one whose parameter computes no neurons of it."""
    return len(layer.tied) < len(layer.read)


def reached(found: Discovered, layers: Sequence[NeuronLayer]) -> int:
    """Return how many parameters are a neuron's, each counted once."""
    parameters = dict(found.named_parameters())
    touched: dict[str, Tensor] = {}
    for layer in layers:
        for piece in (*layer.owned, *layer.read):
            if piece.parameter in parameters:
                shape = parameters[piece.parameter].shape
                _touch(touched.setdefault(piece.parameter, torch.zeros(shape, dtype=torch.bool)), piece)
    return sum(int(places.sum()) for places in touched.values())


def _touch(places: Tensor, piece: Slice) -> None:
    length = places.shape[piece.dim] - piece.start if piece.length is None else piece.length
    places.narrow(piece.dim, piece.start, length).fill_(True)


def stays(found: Discovered) -> str:
    """Return the reason that holds most parameters back, beside being the answer."""
    sizes: dict[str, int] = {}
    for module, reason in found.unprunable.items():
        if reason != ANSWER:
            try:
                own = sum(p.numel() for p in found.network.get_submodule(module).parameters(recurse=False))
            except AttributeError:
                own = 1
            sizes[reason] = sizes.get(reason, 0) + own
    return max(sizes, key=sizes.__getitem__) if sizes else ANSWER


ANSWER = "the model returns it"


def answering(given: nn.Module, found: Discovered) -> list[str]:
    """Return the modules of a network that give its answer."""
    names = {name for name, _ in given.named_modules()}
    return [module for module, reason in found.unprunable.items() if reason == ANSWER and module in names]


def said(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:300]}"


def separately(name: str, network: Network) -> dict[str, Any]:
    """Return a network's facts from a process of its own, or why there are none."""
    for package in (network.package, *network.needs):
        try:
            version(package)
        except PackageNotFoundError:
            return {"name": name, "package": network.package, "skipped": f"{package} is not installed"}
    warm(network.package)
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=tell, args=(name, network, sender))
    process.start()
    sender.close()
    facts: dict[str, Any] = {"name": name, "package": network.package}
    end, ended = time.monotonic() + PATIENCE, f"over {PATIENCE} s"
    try:
        while receiver.poll(max(end - time.monotonic(), 0)):
            facts |= receiver.recv()
    except EOFError:
        process.join()
        ended = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    if "parameters" not in facts:
        facts.setdefault("failure", ended)
    facts.setdefault("rival", ended)
    return facts


def warm(package: str) -> None:
    """Import a package here, so that each of its networks' processes, a copy of this one, need not."""
    torch.set_num_threads(1)
    with suppress(ImportError):
        importlib.import_module("torch_pruning")
    with suppress(Exception):  # the network's own process says what is wrong
        of(f"{IMPORTED.get(package, package.replace('-', '_'))}:__name__")


IMPORTED = {"python-doctr": "doctr.models", "torchvision": "torchvision.models", "timm": "timm.models"}


def main() -> None:
    """Look into the networks, print each row as it comes, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", type=asked.file, help="the page that is written")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NETWORKS, help="look at these alone")
    given = parser.parse_args()
    rows = []
    for name in given.only or NETWORKS:
        rows.append(separately(name, NETWORKS[name]))
        sys.stdout.write(f"{row(rows[-1])}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{summed(rows)}\n")
    if given.to:
        given.to.parent.mkdir(parents=True, exist_ok=True)
        given.to.write_text(page(rows), encoding="utf-8")


def tell(name: str, network: Network, sender: Connection) -> None:
    """Send a network's facts, as far as they are known when the process is ended."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (2 * LIMIT, 2 * LIMIT))
    try:
        facts = look(name, network)
    except Exception as error:  # whatever building it raises
        sender.send({"failure": said(error), "rival": ""})
        return
    sender.send(facts)
    sender.send(rival(network, facts.get("answering", ())))


if __name__ == "__main__":
    main()
