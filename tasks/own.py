"""A model of the user's: what the function at `model.source` returns, and how it is stored and made again."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from inspect import Parameter, signature, unwrap
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.core.neurons import frozen_as, named_tensors
from pruning.data.batches import Split
from pruning.data.windows import Batches
from pruning.models.adapted import Adapted
from pruning.models.adapting import adapt
from pruning.models.batches import first_inputs
from pruning.models.calling import Call
from pruning.models.objectives import Criterion, Objective
from pruning.models.use import Use
from tasks.common.blame import blaming
from tasks.common.parameters import Unexpected
from tasks.common.sources import file_of_source


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """What a user's function returns: a model, what it loses, and text or examples for it.

    Attributes:
        model: The model, its weights loaded; or a `PrunableModule` that says itself where its neurons are.
        train: Batches to measure and fine-tune on, a `DataLoader` for example, of any form that `pruning.adapt` takes;
            likewise below. The order of all but `train` must not change.
        valid: Batches that the best epoch is chosen by.
        test: Batches that results are reported on.
        calibration: Batches that neither training nor judging reads, for signals that look at labels; by default they
            read `train`.
        loss: (outputs, targets) → mean loss, such as `nn.CrossEntropyLoss()`; see `pruning.adapt`. None: the loss that
            the model gives itself.
        metrics: What is reported beside the loss; see `pruning.adapt`; likewise what follows.
        call: How the model is run.
        split: Batch → (inputs, targets).
        example_dim: The dimension of inputs that runs over the examples of a batch.
        stream: Whether each batch goes on where the one before it ended, though the model's own modules keep the state.
        criterion: The older name of `loss`.
    """

    model: nn.Module
    train: Batches
    valid: Batches
    test: Batches
    calibration: Batches | None = None
    loss: Criterion | Objective | None = None
    metrics: Any = None
    call: Call | None = None
    split: Split | None = None
    example_dim: int | None = None
    stream: bool = False
    criterion: Criterion | None = None

    @property
    def judge(self) -> Criterion | Objective | None:
        """The loss, by whichever name."""
        return self.criterion if self.loss is None else self.loss


@dataclass(frozen=True, kw_only=True)
class Sourced(Use):
    """How a user's model is used, and which function it came from.

    Attributes:
        source: `module:function`.
    """

    source: str


@cache
def read_own(source: str) -> UserModel:
    """Return what the function at `module:function` returns; it is called once in a process.

    Raises:
        Unexpected: If it is no function in `own/`, or returns anything else than a `UserModel`.
    """
    build = _function(source)
    _check_needs_nothing(build, source)
    with torch.random.fork_rng(devices=[]), blaming(f"a UserModel from {source}"):
        torch.manual_seed(0)  # what is made twice is made alike
        built = build()
    if not isinstance(built, UserModel):
        raise Unexpected(f"Expected a UserModel (tasks.own) from {source}, got {type(built).__name__}.")
    return built


def _check_needs_nothing(build: Callable[[], Any], source: str) -> None:
    """Refuse a function that cannot be called without arguments."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    known = signature(build).parameters.values()
    needed = [each.name for each in known if each.default is Parameter.empty and each.kind not in several]
    if needed:
        function: Any = unwrap(build)
        raise Unexpected(
            f"Expected a function that needs no argument at {source}, got one that needs {needed[0]!r} "
            f"({file_of_source(source, 'source')}, line {function.__code__.co_firstlineno}); give it a default."
        )


def _function(source: str) -> Callable[[], Any]:
    """Return the function at a source, which `file_of_source` has found fit to be imported."""
    try:
        path = file_of_source(source, "the model's source")
    except ValueError as error:
        raise Unexpected(f"{error}.") from None
    name, function = source.split(":")
    if _elsewhere(found := find_spec("own"), Path("own")):  # which imports nothing yet
        raise Unexpected(f"Expected Python to find own/ in the current folder, got {found and found.origin}.")
    with blaming(f"{path} to be imported"):
        module = importlib.import_module(name)
    if _elsewhere(module.__spec__, path):
        raise Unexpected(f"Expected {name} from {path}, got it from {module.__file__}.")
    build = getattr(module, function, None)
    if not callable(build):
        raise Unexpected(f"Expected a function at {source}, got {type(build).__name__}.")
    return cast(Callable[[], Any], build)


def _elsewhere(spec: ModuleSpec | None, path: Path) -> bool:
    """Return whether what Python would import stands anywhere else than at a file, or in a package's folder."""
    places = [Path(place) for place in spec.submodule_search_locations or []] if spec else []
    places += [Path(spec.origin)] if spec and spec.origin else []
    return path.resolve() not in {place.resolve() for place in places}


@cache
def adapted(source: str) -> Adapted:
    """Return the user's model as it is, as signals and stages take it; it is not to be changed."""
    user_model = read_own(source)
    with torch.random.fork_rng(devices=[]):
        how = {name: getattr(user_model, name) for name in ("metrics", "call", "split", "example_dim", "stream")}
        model = adapt(
            user_model.model,
            first_inputs(user_model.model, user_model.valid, user_model.split),
            loss=user_model.judge,
            **how,
        )
    known = {field.name: getattr(model.use, field.name) for field in fields(Use)}
    return Adapted(model.network, Sourced(source=source, **known))


def describe(model: Adapted) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the model as (configuration, tensors)."""
    widths = {layer.name: layer.width for layer in model.layers()}
    return {"source": getattr(model.use, "source", ""), "widths": widths}, _tensors(model.module)


def rebuild(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapted:
    """Return the model that `describe` took apart: the user's, with other widths and these weights.

    Raises:
        Unexpected: If the user's model has other layers or weights now.
    """
    dense = adapted(config["source"])
    names, widths = [layer.name for layer in dense.layers()], config.get("widths")
    if not isinstance(widths, dict) or not all(type(width) is int and width > 0 for width in widths.values()):
        raise Unexpected(f"Expected the widths of {config['source']} by layer, got {widths!r}; run `dvc repro`.")
    if names != list(widths):
        raise Unexpected(f"Expected the layers {list(widths)} from {config['source']}, got {names}; run `dvc repro`.")
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
        model = frozen_as(dense, dense.resized([widths[name] for name in names]))
    expected = {name: tensor.shape for name, tensor in _tensors(model.module).items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise Unexpected(f"Expected the weights of {config['source']}, got others; run `dvc repro`.")
    model.module.load_state_dict(dict(tensors), strict=False)  # a tensor that two names share is stored once
    return model


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's parameters and buffers by name, shared ones once."""
    saved = module.state_dict()
    return named_tensors(module) | {name: saved[name] for name, _ in module.named_buffers() if name in saved}
