"""The layers of neurons of any PyTorch model: found by tracing it, proved by removing some.

How:

- The model runs on the example inputs, and beside every tensor run the numbers of the places in parameters that compute
  its elements (`running`, `tracing`, `values`, `propagation`, `positions`). PyTorch hands over each operation as it was
  called, so an LSTM is one whatever its length, and control flow, packed sequences, attributes and autocast are simply
  what happens.
- What an operation does with neurons is told by a rule (`operations`), or else by taking it apart, or
  else by a probe (`probing`): it runs again with some neurons changed.
- Only structure is taken from that. What is pruned and deployed is the user's own module, with its own code.

Recurrent layers and `nn.MultiheadAttention` cannot hold unequal widths and fewer heads; they are first replaced by
equivalents that can (`Recurrent`, `Attention`), and the model with these is compared with the given one. Parameters
that something computes are folded (`folding`). At last every layer is put to the proof on the example inputs
(`proving`): with random weights, a model without some of its neurons, the others in another order, must give what a
model gives in which nobody reads them. Where the user's own code counts on a width, numbers in its modules are tried
that may follow it (`numbers`); else the layer is named with the error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruning.core.arguments import given_as
from pruning.core.devices import drawing
from pruning.core.faults import said
from pruning.core.finite import not_finite
from pruning.core.hearing import front_door
from pruning.core.nested import tensors_in
from pruning.core.words import described
from pruning.discovery.across import crossing, joined
from pruning.discovery.attention import Attention
from pruning.discovery.beginning import DIFFERENTIATING
from pruning.discovery.computed import computed_in, plainly
from pruning.discovery.discovered import PREFIX, Discovered
from pruning.discovery.feeding import StateNames, feeding_of, settled
from pruning.discovery.findings import Propagation, Ways
from pruning.discovery.joining import linked
from pruning.discovery.learning import trained_too
from pruning.discovery.origins import Origin
from pruning.discovery.preparing import (
    bounded,
    expect_listed,
    expect_numbers,
    forgetful,
    narrow,
    persist,
    read_by,
    replaced,
    shapes_of,
    simplified,
)
from pruning.discovery.proof import proved
from pruning.discovery.reasons import reasons_of
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.running import Inputs, Seeing, canonical, close, copied, fresh, running, uncached
from pruning.discovery.starting import example_dim_of, first_state, takes_state
from pruning.discovery.states import Arguments, Feeding
from pruning.discovery.structure import Structure, structure_of
from pruning.discovery.summary import covered
from pruning.discovery.tracing import propagated
from pruning.discovery.values import GIVEN, Reading

__all__ = ["Attention", "Discovered", "Narrowed", "Recurrent", "StateNames", "discover"]


@front_door
def discover(
    model: nn.Module, example_inputs: Any, *, also: Sequence[Any] = (), carried: StateNames | None = None
) -> Discovered:
    """Return the model with its layers of neurons found, ready for every signal, choice and cut.

    Recurrent states keep the shape that they have in the model, whatever the widths become: see `Recurrent`, and
    `Boundary` for those that forward takes and gives back.

    >>> from pruning.core.neurons import select
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = discover(model, (torch.ones(1, 3),))
    >>> [(layer.name, layer.width) for layer in found.layers()], found.unprunable
    ([('0', 4)], {'2': 'the model returns it'})
    >>> select(found, {"0": torch.tensor([3, 1])}).network
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )

    Args:
        model: Any module; it is left as it was.
        example_inputs: What it is called with: a tensor, positional arguments in a tuple, arguments by name in a
            dictionary, or a structure that is one argument (a packed sequence, a named tuple, a list of bags). A few
            samples do; every part of the model that shall be pruned must take part in the answer. A state that forward
            takes after them and `init_hidden` makes may be left out.
        also: Further example inputs, each as the first: of a model whose calls take several paths (by task, language
            or length, or an early exit) one for each path. What any of them reads goes with the neurons. Blocks and
            experts are looked for with the first alone.
        carried: The names of arguments of forward that are a state, whose new value the model gives back, where that is
            not seen from what they are called and from what reads them; in a dictionary, each with where it is among
            the outputs. An empty list if none is. One tensor called `state` that is not given as zeros is taken for
            that of a world, unless the model has a method that makes the first one or a default of None for it.

    Raises:
        TypeError: If it is no module, or lists its parts in another way than PyTorch's modules, there is no tensor in
            the inputs, or `also` is no list of inputs.
        ValueError: If the model does not run on the inputs, or computes something else once its recurrent layers and
            attention are replaced; the sentence says why.
    """
    if not isinstance(model, nn.Module):
        advice = "; give its `.module()`" if isinstance(model, torch.export.ExportedProgram) else ""
        raise TypeError(f"Expected a network, an nn.Module, got {described(model)}{advice}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "Expected a network as Python runs it, got what TorchScript compiled, which takes no other weights; give "
            "the module that was compiled, and compile what comes of it."
        )
    expect_listed(model)
    if not isinstance(also, list | tuple) or hasattr(also, "_fields"):
        raise TypeError(f"Expected further example inputs in a list, also=[...], got {described(also)}.")
    inputs: Inputs = tuple(_call(model, each) for each in (example_inputs, *also))
    expect_numbers(model, inputs)
    network, folded = simplified(model)
    computed = computed_in(network, inputs)
    folded |= {f"{path}.weight": f"{type(network.get_submodule(path)).__name__}, in each call" for path in computed}
    network = plainly(network, computed)
    shapes, names = shapes_of(network), canonical(network)
    network = replaced(network)
    _compare(model, network, inputs, list(computed))
    modes = {name: module.training for name, module in network.named_modules()}
    with uncached(network) as cached, bounded(network):
        found = _likeliest(network.eval(), inputs)
        ways = found.ways
        feeding = feeding_of(network, inputs, found, [carried] if isinstance(carried, str) else carried)
        if feeding is not None:
            found = _followed(network, inputs, ways, feeding)
            settled(found, feeding, lambda other: _followed(network, inputs, ways, other))
        trained_too(network, inputs, PREFIX, found, feeding)
        read_by(network, [reading.axis[0] for reading in found.readings])
        structure = whole = _structured(network, inputs, found, feeding)
        for reading in found.readings:
            read = ((p.parameter, p.dim) for layer in structure.layers for p in layer.read)
            if reading.padded and reading.axis in read:
                narrow(network, reading.module.removeprefix(PREFIX))
        persist(network, structure.layers)
        model, structure, refuted = proved(
            Discovered(network, structure.layers, {}, folded=folded),
            structure,
            _beginning(inputs if feeding is None else feeding.alike(), found),
            found.states,
            cached,
            feeding,
            lambda joints: _structured(network, inputs, linked(found, whole, joints), feeding),
        )
    network = copied(network)  # what it shared with the user's model becomes its own
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
    if refuted and (broken := not_finite(network)):
        refuted = dict.fromkeys(refuted, f"{broken} are NaN or infinite, so that nothing tells what it computes")
    reasons = reasons_of(structure, refuted, model.layers(), Discovered(network, [], {}), PREFIX)
    plans = {path: one.plan() for path, one in computed.items()}
    layers, named = tuple(model.layers()), {name: names[name] for name in shapes}
    origin = Origin(shapes, named, layers, inputs, frozenset(found.states), plans, carried)
    ready = Discovered(network, model.layers(), reasons, model.numbers, model.folded, origin, model.remembered)
    ready.written = model.written
    return ready


def _call(model: nn.Module, example_inputs: Any) -> Arguments:
    """Return example inputs as what the model is called with."""
    if not isinstance(example_inputs, tuple | Mapping) and next(tensors_in(example_inputs), None) is None:
        advice = "an object that holds its tensors in another way is given in a tuple"
        numbers = all(isinstance(part, int | float) for part in pytree.tree_leaves(example_inputs))
        counted = hasattr(example_inputs, "__array__") or (isinstance(example_inputs, list) and numbers)
        advice = "give torch.as_tensor(…) of it" if counted else advice
        raise TypeError(f"Expected inputs with a tensor in them, got {described(example_inputs)}; {advice}.")
    arguments = given_as(model, example_inputs)
    if isinstance(arguments, dict):
        return (), arguments
    if takes_state(model, arguments):
        arguments = (*arguments, first_state(model, arguments, example_dim_of(model, arguments)))
    return arguments, {}


def _likeliest(network: nn.Module, inputs: Inputs) -> Propagation:
    """Return what a run tells that follows neurons in those ways by which more parameters are some neuron's."""
    found, known = _followed(network, inputs), Discovered(network, [], {})

    def alone(one: Propagation) -> Structure:
        return structure_of(one, known, PREFIX)

    def across(one: Propagation) -> Structure:
        return _structured(network, inputs, one, None)

    def more(one: Propagation, other: Propagation, told: Callable[[Propagation], Structure]) -> bool:
        layers = (told(each).layers for each in (one, other))
        reached = [covered(known, [piece for layer in own for piece in (*layer.owned, *layer.read)]) for own in layers]
        return reached[0] > reached[1]

    if found.crossed:
        other = _followed(network, inputs, Ways(matrices=False))
        neither = not alone(found).layers and not alone(other).layers  # the first way knows why
        found = found if neither or more(found, other, alone) else other
    if found.shared:
        other = _followed(network, inputs, replace(found.ways, heads=True))
        found = other if more(other, found, alone) else found
    if found.laid and all(layer.kind != "head" for layer in alone(found).layers):  # no rows of matrices are heads
        other = _followed(network, inputs, replace(found.ways, columns=True))
        found = other if more(other, found, alone) else found
    if found.parted and found.grouped:  # one reads the other, perhaps, and all channels go together
        other = _followed(network, inputs, replace(found.ways, groups=True))
        found = other if more(other, found, alone) else found
    if found.clashed:  # where the first way leaves what runs across them to a further run, both runs' layers count
        other = _followed(network, inputs, replace(found.ways, turned=True))
        found = other if more(other, found, alone) and more(other, found, across) else found
    return found


def _structured(network: nn.Module, inputs: Inputs, found: Propagation, feeding: Feeding | None) -> Structure:
    """Return the layers that a run tells, and those that run across them, which a further run tells."""
    structure = structure_of(found, Discovered(network, [], {}), PREFIX)
    if others := crossing(structure):
        across = propagated(network, inputs, PREFIX, others, feeding=feeding, ways=found.ways)
        structure = joined(structure, structure_of(across, Discovered(network, [], {}), PREFIX), PREFIX)
    return structure


def _followed(
    network: nn.Module, inputs: Inputs, ways: Ways | None = None, feeding: Feeding | None = None
) -> Propagation:
    """Return what a run tells, its recurrent layers even where their states are read as wide as they are."""
    while True:
        found = propagated(network, inputs, PREFIX, feeding=feeding, ways=ways)
        wide = {name for reading in found.readings if not _can_narrow(network, reading) for name in reading.padded}
        even = [module for module in map(network.get_submodule, found.even | wide) if isinstance(module, Recurrent)]
        if all(module.even for module in even):
            return found
        for module in even:
            module.even = True


def _beginning(inputs: Inputs, found: Propagation) -> Inputs:
    """Return the inputs with zeros in those that are states: of others, the neurons' order would have to follow."""
    leaves, layout = pytree.tree_flatten(inputs)
    places = (place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    for number, place in enumerate(list(places)):
        if GIVEN - number in found.begun - found.used:
            leaves[place] = torch.zeros_like(leaves[place])
    return pytree.tree_unflatten(leaves, layout)  # type: ignore[no-any-return]


def _can_narrow(network: nn.Module, reading: Reading) -> bool:
    """Return whether a reader of a padded state can be told to read a part of it."""
    reader = network.get_submodule(f"{reading.module}.".removeprefix(PREFIX).rstrip("."))
    if isinstance(reader, nn.RNNBase):
        return "weight_hh" in reading.axis[0]
    in_turns = 2 * int((reading.seen.diff() != 1).sum()) >= len(reading.seen)  # `hidden.permute(1, 2, 0).flatten(1)`
    return type(reader) in (nn.Linear, Narrowed) and reading.axis[1] == 1 and not in_turns


def _compare(model: nn.Module, network: nn.Module, inputs: Inputs, computed: Sequence[str]) -> None:
    """Refuse a network that, only because of what stands in for some of its modules, gives something else."""
    given = forgetful(copied(model, sharing=True))
    try:
        expected = _outputs(given, inputs)
    except Exception as error:  # whatever a user's code raises
        if not _runs(copied(model).eval(), inputs):
            advice = _without_targets(inputs)
            raise ValueError(f"Expected a model that runs on the example inputs, got {said(error)}{advice}.") from error
        for one in (given, network):
            setattr(one, DIFFERENTIATING, True)
        expected = _outputs(given, inputs)
    names = [name or "it" for name, module in network.named_modules() if isinstance(module, (Recurrent, Attention))]
    if not names and not computed:
        return
    what = f"that replacing {', '.join(names)} by a module of the same class, but of widths of its own, changes nothing"
    if computed:
        what = f"that giving {', '.join(computed)} the weights that they compute in a call changes nothing"
    try:
        found = _outputs(network, inputs)
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"Expected {what}, got {said(error)}; ask nothing else of it than its class says.") from error
    if [part.shape for part in found] != [part.shape for part in expected]:
        raise ValueError(f"Expected {what}, got outputs of other shapes; ask for its class by `isinstance` alone.")
    if not all(map(close, found, expected)):
        apart = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True) if a.numel())
        raise ValueError(
            f"Expected {what}, got outputs that are {apart:.1e} apart; ask for its class by `isinstance` alone."
        )


def _without_targets(inputs: Inputs) -> str:
    """Return what to do where one argument is a tuple or list, as a batch is that still has its targets."""
    held = next((args[0] for args, _ in inputs if len(args) == 1 and type(args[0]) in (tuple, list)), None)
    return "" if held is None else f"; of {described(held)} give the inputs alone, without targets, if it is a batch"


def _outputs(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the tensors that a network gives."""
    with running(network, inputs, Seeing()) as (_, found):
        return [tensor.clone() for tensor in found]


def _runs(network: nn.Module, inputs: Inputs) -> bool:
    """Return whether a network runs on these inputs outside of inference mode."""
    inputs = fresh(inputs)
    try:
        for args, kwargs in inputs:
            with drawing(network):
                network(*args, **kwargs)
    except Exception:
        return False
    return True
