"""Networks as files for other programs: programs of `torch.export` and graphs of ONNX, for any batch and steps.

Whoever exports wants a graph for any number of steps T and examples B that runs fast. Both exporters stumble over the
recurrence, so a copy of the network is captured whose recurrences are single operations; see `recurrences`.
"""

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pruning.core.faults import said
from pruning.core.modes import evaluating
from pruning.discovery.remembering import Remembering
from pruning.discovery.running import Seeing, close, copied, running, uncached
from pruning.discovery.states import Arguments
from pruning.export.calls import hand_on_parts, inputs_of, outputs_of, plain_of, single
from pruning.export.language_models import dimensions, initial_state, largest_difference
from pruning.export.packed import Padding
from pruning.export.recurrences import OPSET, check_known, fused, standing
from pruning.extras import needed
from pruning.models.base import LanguageModel

SPEAKING = ("onnx._internal.exporter._registration", "fx.experimental.symbolic_shapes")
"""What of PyTorch writes pages about its own insides while a network is followed."""

__all__ = ["OPSET", "initial_state", "largest_difference", "onnx_of", "program_of"]


def program_of(model: nn.Module, inputs: Any = None) -> ExportedProgram:
    """Return a network in evaluation mode as a program in single precision; `torch.export.save` writes it.

    `torch.export.load` needs nothing of this library. Every dimension of the inputs is free that the network leaves
    free: of examples, of steps also where a recurrent layer of PyTorch's reads them, which is one fused operation.
    Where its own code loops over steps, these are as many as in the example. Where PyTorch cannot leave free all that
    could be, an image's sides say, the examples are free alone. Packed sequences stay padded, as long as
    they came, zeros behind their lengths. A language model of a built-in family is a program
    `(tokens, state) → (logits, state)`, and both are free.

    >>> import io, pruning
    >>> class Tagger(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rnn, self.out = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 3)
    ...     def forward(self, inputs):
    ...         return self.out(self.rnn(inputs)[0])
    >>> found = pruning.discover(Tagger(), torch.ones(2, 4, 2))
    >>> file = io.BytesIO()
    >>> torch.export.save(program_of(pruning.select(found, {"rnn.0": torch.tensor([0, 5])})), file)
    >>> _ = file.seek(0)
    >>> torch.export.load(file).module()(torch.ones(7, 50, 2)).shape
    torch.Size([7, 50, 3])

    Args:
        model: A network, or what `discover`, `select`, `reconstruct` or `adapt` gave; it is left as it was.
        inputs: What it is called with: a tensor, positional arguments, or arguments by name. What `discover` was given
            by default, where it was.

    Raises:
        ValueError: If PyTorch cannot follow the network, it keeps a state from call to call, or it reads what an LSTM's
            cells remember after packed sequences, which no kernel tells.
    """
    return fused(_captured(model, inputs, onnx=False)[0])


def onnx_of(model: nn.Module, inputs: Any = None) -> Any:
    """Return a network in evaluation mode as an `onnx.ModelProto` in single precision.

    Its dimensions are free as those of `program_of`. Recurrent layers of PyTorch's are `LSTM`, `GRU` and `RNN`, one a
    layer. Of a language model of a built-in family the inputs are `tokens` and `state_<layer>_<number>`, the outputs
    `logits` and `next_state_<layer>_<number>`; a matrix that embedding and decoder share is stored once.

    >>> network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> [node.op_type for node in onnx_of(network, torch.ones(2, 2)).graph.node]
    ['Gemm', 'Tanh', 'Gemm']

    Args:
        model: As of `program_of`; likewise `inputs`.
        inputs: What it is called with.

    Raises:
        ValueError: If PyTorch cannot follow the network, or ONNX has no operation for a recurrence.
        ModuleNotFoundError: Without onnx and onnxscript, which the extra `export` brings.
    """
    for package in ("onnx", "onnxscript"):
        needed(package, "export")
    program, named = _captured(model, inputs, onnx=True)
    with _unheard():
        try:
            found = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,  # folding constants would store a shared matrix and its transpose
                opset_version=OPSET,
                **named,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"Expected a network whose operations ONNX has, got {said(error)}.") from error
    assert found is not None  # noqa: S101 - it is None for the older exporter only
    return found.model_proto


def _captured(model: nn.Module, inputs: Any, *, onnx: bool) -> tuple[ExportedProgram, dict[str, Any]]:
    """Return a copy of a network, its recurrences replaced, as a graph, and what its inputs and outputs are called."""
    if isinstance(model, LanguageModel) and inputs is None:
        return _language_model(model, onnx=onnx)
    plain = plain_of(model)
    word = next((part for name in plain.network.state_dict() for part in name.split(".") if iskeyword(part)), None)
    if word is not None:
        raise ValueError(
            f"Expected parameters with names that PyTorch can write into code, got {word!r}, a word of Python's own; "
            "give what is called so another name."
        )
    given = inputs_of(plain, inputs)
    if any(isinstance(part, PackedSequence) for part in pytree.tree_leaves(given, is_leaf=_is_packed)):
        raise ValueError(
            "Expected tensors to follow the network with, got a packed sequence, which a graph has no input for; let "
            "forward take padded sequences and their lengths, and pack them itself."
        )
    held = [*pytree.tree_leaves(given), *plain.network.state_dict().values()]
    if any(_is_sparse(part, onnx=onnx) for part in held):
        raise ValueError(
            "Expected dense tensors, got a sparse one, which a graph has no form for; let forward take the indices and "
            "the values, and add them up by `index_add`, or a dense matrix."
        )
    network = copied(plain.network)
    example = pytree.tree_map(single, given)
    network = network.cpu().float().eval().requires_grad_(False)
    example = _of_two(network, example)
    hand_on_parts(network, example)
    expected, remembers = outputs_of(network, example), _remembers(network, example)
    network = standing(network, onnx=onnx)
    asked = _Lengths()
    with asked:
        program = _exported(network, example, strict=False)
    if asked.number:  # which fixes what it tells, unless code is read instead of run
        program = _freest(program, network, example)
    if remembers and (onnx or not program.graph_signature.buffers_to_mutate):
        raise ValueError(
            "Expected a network that keeps nothing from call to call, got one that does; "
            "let it take its state as an input and return it."
        )
    if not onnx:
        check_known(program)
        if not all(map(close, outputs_of(program.module(), example), expected)):
            raise ValueError(
                "Expected a program that gives what its network does, got other numbers; export a part of it."
            )
    return program, {}


def _is_sparse(part: Any, *, onnx: bool) -> bool:
    """Return whether this is a tensor that no graph holds; PyTorch's own graphs hold those compressed by rows."""
    return isinstance(part, Tensor) and (part.layout == torch.sparse_coo or (onnx and part.layout != torch.strided))


def _is_packed(part: Any) -> bool:
    return isinstance(part, PackedSequence)


def _remembers(network: nn.Module, example: Arguments) -> bool:
    """Return whether a network keeps something from call to call."""
    mode = Remembering()
    with running(network, (example,), mode) as (run, _):
        return bool(mode.places(run))


def _of_two(network: nn.Module, example: Arguments) -> Arguments:
    """Return the example with two of what there is one of, a constant to PyTorch, wherever the network runs so."""
    dims = max((leaf.ndim for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)), default=0)
    for chosen in (range(dims), *([dim] for dim in range(dims))):

        def doubled(value: Any, chosen: Iterable[int] = chosen) -> Any:
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                return value
            return value.repeat([2 if place in chosen and size == 1 else 1 for place, size in enumerate(value.shape)])

        more = pytree.tree_map(doubled, example)
        try:
            with running(network, (more,), Seeing()):
                example = more
        except Exception:  # noqa: S112 - whatever a user's code says of more than one
            continue
    return example


def _exported(network: nn.Module, example: Arguments, *, strict: bool) -> ExportedProgram:
    """Return a network as a graph, each dimension free that can be: any of them, or else the first alone."""
    failed: list[Exception] = []
    with _unheard():
        for free in (None, 0):
            try:
                return _with_free(network, example, free, strict=strict)
            except Exception as error:  # whatever PyTorch, or a user's code, says of numbers that are not known yet
                failed.append(error)
    raise ValueError(f"Expected a network that torch.export can follow, got {said(failed[0])}.") from failed[0]


def _with_free(network: nn.Module, example: Arguments, free: int | None, *, strict: bool) -> ExportedProgram:
    """Return a network as a graph, one dimension of each input free, or all of them."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in (leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)):
        shapes[tensor] = {
            dim: Dim.AUTO if free in (None, dim) and size > 1 else Dim.STATIC  # one alone is a constant to PyTorch
            for dim, size in enumerate(tensor.shape)
        }
    dynamic: Any = shapes
    with uncached(network), evaluating(network), torch.no_grad(), Padding():
        return torch.export.export(network, *example, dynamic_shapes=dynamic, strict=strict)


class _Lengths(TorchFunctionMode):
    """A mode that counts how often code asks for a tensor's length, which is a number of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called for."""
        self.number += function is Tensor.__len__
        return function(*args, **(kwargs or {}))


def _freest(program: ExportedProgram, network: nn.Module, example: Arguments) -> ExportedProgram:
    """Return the program that leaves more dimensions free: the given one, or one of the code as it is read."""
    try:
        other = _exported(network, example, strict=True)
    except ValueError:
        return program
    return other if _number_free(other) > _number_free(program) else program


def _number_free(program: ExportedProgram) -> int:
    """Return how many dimensions of its inputs a program leaves free."""
    given = set(program.graph_signature.user_inputs)
    shapes = (node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in given)
    return sum(bool(free_symbols(size)) for shape in shapes for size in shape)


def _language_model(model: LanguageModel, *, onnx: bool) -> tuple[ExportedProgram, dict[str, Any]]:
    """Return a built-in model as a graph with free T and B, and what its inputs and outputs are called."""
    twin = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    state = initial_state(twin, 3)  # the example's T and B: any but 0 and 1, which torch.export takes for constants
    example = (torch.zeros(2, 3, dtype=torch.long), state)
    shapes = dimensions(state, Dim("time"), Dim("batch"))
    program = torch.export.export(standing(twin, onnx=onnx), example, dynamic_shapes=shapes)
    names = [f"state_{layer}_{number}" for layer, tensors in enumerate(state) for number in range(len(tensors))]
    return program, {
        "input_names": ["tokens", *names],
        "output_names": ["logits", *(f"next_{name}" for name in names)],
        "dynamic_shapes": dimensions(state, "time", "batch"),
    }


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep to itself what PyTorch's exporter says of its own insides: torchvision is missing, its axes have names."""
    loggers = [logging.getLogger(f"torch.{name}") for name in SPEAKING]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
