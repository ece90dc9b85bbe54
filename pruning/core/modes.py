"""How a model is run while it is measured: its modes, frozen parameters and random states, and the state it carries."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pruning.core.devices import seeded, states_of, without_cudnn
from pruning.core.holding import holdings_of
from pruning.core.neurons import real_pairs
from pruning.core.recomputing import calling_once

_ONCE = (
    "derivative",
    "double backward",
    "differentiate twice",
    "not implemented",
    "not require grad",
    "inplace operation",
)
"""What PyTorch says of a function that it can differentiate once alone, for want of code or of what it wrote over."""
ONCE = "PyTorch cannot differentiate the network and its loss twice"
"""Why there are no second derivatives then."""
_WHOLE = WeakSet[nn.Module]()
"""The models whose second derivatives are known to have all parts."""
NOT_FINITE = "its second derivatives are not finite, as those of a distance that is 0 are not"
"""Why those that there are tell nothing."""


def once_alone(error: Exception) -> bool:
    """Return whether second derivatives stopped with this error for want of code that takes them."""
    return any(part in str(error) for part in _ONCE)


def carried(state: Any) -> Any:
    """Return the state cut off from the graph that computed it: back-propagation is truncated there.

    Raises:
        TypeError: If the state is not made of tensors, numbers, tuples, lists and dictionaries.
    """
    if state is None or isinstance(state, bool | int | float | str):
        return state
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, list | tuple):
        return type(state)(carried(part) for part in state)
    if isinstance(state, dict):
        return {name: carried(part) for name, part in state.items()}
    raise TypeError(
        f"Expected a state of tensors or numbers in tuples, lists or dictionaries, got {type(state).__name__}."
    )


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Within the context, let derivatives by frozen parameters be asked for too; then they are frozen again.

    What is frozen does not learn, but a neuron is as important as it is whether its weights learn or not. A single
    number is no neuron's, and PyTorch takes it for a Python one (`full_like(x, rest)`) while it is frozen alone.
    """
    frozen = [p for p in model.parameters() if p.is_floating_point() and p.ndim and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def operations_behind(tensors: Iterable[Tensor]) -> set[str]:
    """Return the names of the nodes that autograd would pass the gradients of tensors back through."""
    nodes, seen = [tensor.grad_fn for tensor in tensors], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def expect_twice(model: nn.Module, gradients: Iterable[Tensor]) -> None:
    """Refuse gradients that a `once_differentiable` function took part in: PyTorch would leave out what it computes.

    Args:
        model: It is asked about once, which takes as long as a step of training.
        gradients: By its parameters, with their graph.

    Raises:
        RuntimeError: As PyTorch does where such a function is differentiated twice for all to see.
    """
    if model in _WHOLE:
        return
    if any(name.endswith("autograd::Error") for name in operations_behind(gradients)):
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
    _WHOLE.add(model)


def derivatives(
    of: Tensor | Sequence[Tensor],
    by: Iterable[Tensor],
    *,
    along: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """Return the derivative by each tensor, zeros where nothing depends on it: code need not use all that it has.

    Of complex numbers it is the derivative by both their parts: see `real_pairs`.

    Args:
        of: One number, or several tensors with the vectors `along` that their derivatives are multiplied by.
        by: Tensors that derivatives are taken by.
        along: One for each tensor of `of`.
        create_graph: Whether the derivatives will be differentiated, too.
        retain_graph: Whether others will be asked for.
    """
    several, tensors = [of] if isinstance(of, Tensor) else list(of), list(by)
    vectors = [None] * len(several) if along is None else list(along)
    alone = isinstance(of, Tensor)  # a loss that depends on nothing is an error, which PyTorch says
    pairs = [(one, vector) for one, vector in zip(several, vectors, strict=True) if alone or one.requires_grad]
    if not pairs or not tensors:
        return tuple(torch.zeros_like(real_pairs(tensor)) for tensor in tensors)
    slopes = torch.autograd.grad(
        [one for one, _ in pairs],
        tensors,
        grad_outputs=[vector for _, vector in pairs],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return tuple(map(real_pairs, slopes))


@contextmanager
def reassigned(model: nn.Module) -> Iterator[None]:
    """Within the context code may give parameters other tensors, `p.data = …`; they then have those that they had.

    So does an encoder that follows another one by momentum in each call. Where it is known that code writes into
    parameters (`p.data.mul_(…)`, see `Beginning.written`), these then hold what they held, too.
    """
    held = [(parameter, parameter.data) for parameter in model.parameters()]
    known = [(module, vars(module).get("written", ())) for module in model.modules() if hasattr(module, "remembered")]
    written = [(each := module.get_parameter(name), each.detach().clone()) for module, own in known for name in own]
    try:
        yield
    finally:
        for parameter, own in held:
            if parameter.data_ptr() != own.data_ptr():
                parameter.data = own
        for parameter, values in written:
            parameter.data.copy_(values)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within the context what is drawn follows one seed; random states and buffers are then as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with seeded(model, 0):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


class evaluating:  # noqa: N801 - a context manager reads as a verb
    """Switch a model to evaluation, and each of its modules back to the mode, and the parameters, that it had.

    The global random states are left as they were, too, the CPU's and those of the devices that the model lives on: a
    `DataLoader` draws from them whenever it is read, and so does a module that draws in evaluation mode. So is what the
    loss keeps that judges the model (see `pruning.core.holding`): each that is measured is judged by the same one.
    Checkpointed code runs once (see `calling_once`), for hooks that measure are gone when the backward pass would run
    it again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modes = model, {module: module.training for module in model.modules()}

    def __enter__(self) -> None:
        self.random, self.loss = states_of(self.model), holdings_of(self.model)
        self.held = reassigned(self.model)
        self.held.__enter__()
        calling_once.__enter__()
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        calling_once.__exit__()
        self.random.restore()
        self.loss.restore()
        self.held.__exit__(None, None, None)
        for module, mode in self.modes.items():
            module.training = mode


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Within the context, the model is in evaluation mode and can be differentiated once, on any device.

    cuDNN differentiates recurrent layers in training mode only. One that drops nothing computes the same in either
    mode, so those on CUDA are switched to it; where one does drop something, cuDNN is left out.
    """
    with evaluating(model), ExitStack() as kernels:
        recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        fused = [module for module in recurrent if any(parameter.is_cuda for parameter in module.parameters())]
        if any(module.dropout for module in fused):
            kernels.enter_context(without_cudnn())
        else:
            for module in fused:
                module.training = True
        yield
