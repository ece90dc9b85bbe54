"""What must hold of a drawn network: neurons are found, and removed as a twin has it that shares no code."""

import contextlib
import copy
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import pruning
from benchmarks.answers import apart, tensors_of
from benchmarks.networks import ANSWER, in_precision, reached
from benchmarks.random_networks import blanks
from benchmarks.random_networks.drafts import Spec, built, example, source_of
from pruning.core.neurons import NeuronLayer

AGREEMENT = {torch.float64: 1e-10, torch.float32: 2e-4}
SIGNALS = ("weights", "activations", "gradients", "cooperative", "surgeon")


@dataclass
class Finding:
    """What came of one network.

    Attributes:
        wrong: What does not hold: how it was asked → what was seen; empty if all does.
        refused: Why the network as a whole is refused; empty if it is not.
        layers: How many layers of neurons were found.
        exact: How many of them are.
        parameters: How many numbers its parameters hold.
        reach: The share of these that is within reach.
        reasons: Module → why it stays, but for those that give the answer.
    """

    wrong: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    layers: int = 0
    exact: int = 0
    parameters: int = 0
    reach: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)


def looked_into(spec: Spec, kind: torch.dtype = torch.float64, *, measured: bool = True) -> Finding:
    """Return what comes of the network of a spec."""
    finding = Finding()
    given = in_precision(built(spec, source_of(spec)), kind)
    inputs = in_precision(example(spec, spec.batch, 1), kind)
    finding.parameters = sum(parameter.numel() for parameter in given.parameters())
    before = {name: value.clone() for name, value in given.state_dict().items()}
    try:
        found = pruning.discover(given, inputs)
    except (TypeError, ValueError) as error:
        finding.refused = str(error)
        if not str(error).startswith("Expected"):
            finding.wrong["discover"] = said(error)
        return finding
    except Exception as error:  # whatever is raised is no refusal
        finding.wrong["discover"] = said(error)
        return finding
    if not torch.equal(inputs, in_precision(example(spec, spec.batch, 1), kind)):
        finding.wrong["inputs"] = "the example that was given is another one now"
    layers = found.layers()
    finding.layers, finding.exact = len(layers), sum(layer.exact for layer in layers)
    finding.reach = reached(found, layers) / max(finding.parameters, 1)
    finding.reasons = {name: why for name, why in found.unprunable.items() if why != ANSWER}
    checks: dict[str, Callable[[], str]] = {
        "left as it was": lambda: unlike(given, before),
        "avoided": lambda: avoiding(spec, found, kind),
        "rewritten": lambda: rewritten(spec, given, found, kind),
        "removed": lambda: removed(spec, given, found, kind),
        "kept": lambda: stored(spec, found, kind),
    }
    if measured and layers:
        checks["measured"] = lambda: measuring(spec, found, kind)
    for name, check in checks.items():
        try:
            why = check()
        except Exception as error:  # whatever is raised is wrong
            why = said(error)
        if why:
            finding.wrong[name] = why
    return finding


def unlike(given: nn.Module, before: Mapping[str, Tensor]) -> str:
    """Return which of a network's tensors changed."""
    changed = [name for name, value in given.state_dict().items() if not torch.equal(value, before[name])]
    return f"changed: {', '.join(changed)}" if changed else ""


def avoiding(spec: Spec, found: Any, kind: torch.dtype) -> str:
    """Return which widths layers are to step over though the network gives numbers with them, also for one example.

    No block writes code that compares them.
    """
    unheeding = copy.deepcopy(found)
    unheeding._layers = [replace(layer, avoided=()) for layer in found.layers()]
    wrong = []
    for layer in found.layers():
        for width in layer.avoided:
            smaller = pruning.select(unheeding, {layer.name: torch.arange(width)})
            with contextlib.suppress(Exception):  # where it stops it is rightly stepped over
                given = answers(smaller.network, in_precision(example(spec, 1, 4), kind))
                if all(bool(part.isfinite().all()) for part in given):
                    wrong.append(f"{layer.name} not with {width}")
    return ", ".join(wrong)


def rewritten(spec: Spec, given: nn.Module, found: Any, kind: torch.dtype) -> str:
    """Return how far the rewritten network is from the given one, on batches of other sizes."""
    for batch in {spec.batch, *others(spec)}:
        inputs = in_precision(example(spec, batch, 2), kind)
        if (far := apart(answers(found.network, inputs), answers(given, inputs))) > AGREEMENT[kind]:
            return f"{far:.0e} apart on a batch of {batch}"
    return ""


def others(spec: Spec) -> list[int]:
    """Return sizes of batches that the example's is not."""
    return [batch for batch in (1, 2, 3, 5) if batch != spec.batch][:2]


def removed(spec: Spec, given: nn.Module, found: Any, kind: torch.dtype) -> str:
    """Return how a smaller network differs from the given one without the neurons that went."""
    rng, layers = random.Random(spec.seed), found.layers()
    rounds = [layers, layers, layers] + ([[layer] for layer in layers][:6] if len(layers) > 1 else [])
    for number, some in enumerate(rounds):
        keep = {layer.name: chosen(layer, rng, whole=layer not in some) for layer in layers}
        batch = rng.choice(others(spec))
        inputs = in_precision(example(spec, batch, 3 + number), kind)
        what = {layer.name: keep[layer.name].tolist() for layer in some}
        smaller = pruning.select(found, keep)
        for layer, now in zip(layers, smaller.layers(), strict=True):
            if now.width != len(keep[layer.name]):
                return f"{layer.name} has {now.width} neurons of {what}"
        try:
            given_answers = answers(smaller.network, inputs)
        except Exception as error:
            return f"cut to {what}, a batch of {batch}: {said(error)}"
        blank = [part.detach() for part in tensors_of(blanks.without(given, layers, keep, [inputs.clone()]))]
        if (far := apart(given_answers, blank)) > AGREEMENT[kind]:
            return f"{far:.0e} apart of what is left by {what}, a batch of {batch}"
        exact = {layer.name: keep[layer.name] for layer in layers if layer.exact}
        if exact:
            masked, cut = pruning.mask(found, exact), pruning.select(found, exact)
            if (far := apart(answers(cut.network, inputs), answers(masked.network, inputs))) > AGREEMENT[kind]:
                return f"{far:.0e} apart of what is masked by {what}, a batch of {batch}"
    return ""


def chosen(layer: NeuronLayer, rng: random.Random, *, whole: bool) -> Tensor:
    """Return neurons that stay, in order, as many as the layer may have."""
    counts = [count for count in range(1, layer.width + 1) if count not in layer.avoided]
    count = layer.width if whole else rng.choice(counts)
    return torch.tensor(sorted(rng.sample(range(layer.width), count)))


def stored(spec: Spec, found: Any, kind: torch.dtype) -> str:
    """Return what is wrong with a smaller network that was stored, or copied."""
    rng = random.Random(spec.seed + 1)
    keep = {layer.name: chosen(layer, rng, whole=False) for layer in found.layers()}
    smaller = pruning.select(found, keep)
    inputs = in_precision(example(spec, others(spec)[0], 9), kind)
    expected = answers(smaller.network, inputs)
    if apart(answers(copy.deepcopy(smaller).network, inputs), expected) > 0:
        return "a copy gives something else"
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(smaller, f"{folder}/smaller")
        restored = pruning.restore(in_precision(built(spec, source_of(spec)), kind), f"{folder}/smaller")
    deployed = answers(pruning.deployed(smaller), inputs)
    if apart(deployed, expected) > AGREEMENT[kind]:
        return "what is deployed gives something else"
    return "what is restored gives something else" if apart(answers(restored.eval(), inputs), deployed) > 0 else ""


def measuring(spec: Spec, found: Any, kind: torch.dtype) -> str:
    """Return what is wrong with the importance of its neurons by a signal and a loss that are drawn."""
    rng = random.Random(spec.seed + 2)
    data, loss = [], rng.choice([cross_entropy, squared, own])
    for number in range(2):
        inputs = in_precision(example(spec, 4, 20 + number), kind)
        first = answers(found.network, inputs)[0]
        targets = first.argmax(-1) if loss is cross_entropy else first.tanh()
        data.append((inputs, targets))
    signal = rng.choice(SIGNALS)
    importance = pruning.importance(found, data, loss, signals=[signal])
    wrong = []
    for name, rows in importance.table.groupby("layer")[importance.by]:
        values = torch.as_tensor(rows.to_numpy(dtype=float, copy=True))
        if not bool(values.isfinite().all()) and not (signal == "surgeon" and bool(values.isnan().all())):
            wrong.append(str(name))  # the surgeon says of which layer it saw no reader
    return f"{signal} of {', '.join(wrong)} is not finite" if wrong else ""


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the first tensor of an answer."""
    return nn.functional.cross_entropy(tensors_of(outputs)[0].flatten(0, -2), targets.flatten())


def squared(outputs: Any, targets: Tensor) -> Tensor:
    """Return the squared error of the first tensor of an answer."""
    return nn.functional.mse_loss(tensors_of(outputs)[0], targets)


def own(outputs: Any, targets: Tensor) -> Tensor:
    """Return a loss as a user writes one."""
    main, *others = tensors_of(outputs)
    error = (main - targets).abs()
    return (error + 0.1 * error**2).mean() + 0.01 * sum(other.square().mean() for other in others)


def answers(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return what a network gives."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tensors_of(network(inputs.clone()))  # some write into what they are given


def said(error: BaseException) -> str:
    """Return an error, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = (str(error).strip() or "-").splitlines()[0][:300]
    return f"{type(error).__name__}: {words} ({last.filename.rpartition('/')[2]}:{last.lineno})"
