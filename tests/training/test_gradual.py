"""Gradual pruning against loops, closed forms and masks; it repeats, resumes and ends with the widths asked for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.core.modes import carried
from pruning.core.neurons import NeuronLayer, Slice, gather, mask, named_tensors
from pruning.data.windows import Windows
from pruning.evaluation.measures import next_token_loss
from pruning.training.gradual import (
    group_lasso,
    most_important,
    prune_gradually,
    pruned,
    renewed,
    shrink_groups,
    state_without,
    without,
)
from pruning.training.loop import optimizer_of, train
from pruning.training.thinning import Schedule, Thinning
from tests.tiny import DECODERS, Unrolled, bytes_of, loss_on, recipe, subsets, tensors_of, text, tiny

WINDOWS = Windows(text(500), first=0, batch=4, bptt=8)
VALID = Windows(text(120, seed=1), first=0, batch=4, bptt=8)
OTHER = Windows(text(120, seed=1, step=7), first=0, batch=4, bptt=8)
"""Text of another rule: the better the first is learnt, the worse this one is predicted."""
STEPS = len(WINDOWS)
HALF = Schedule(begin=0.1, end=0.6, every=3)


def model_of(decoder="untied", widths=(9, 6)):
    return tiny(decoder, widths, dtype=torch.float32, dropout=0.2, spread=0.1)


def run(*, model=None, valid=VALID, seed=1, resume=None, windows=WINDOWS, own=None, **changes):
    """Return where gradual pruning stood after each epoch."""
    settings = {"retain": 0.5, "floor": 2, "schedule": HALF, "momentum": 0.8, "penalty": 0.0, **(own or {})}
    how = {"recipe": recipe(**changes), "thinning": Thinning(**settings), "seed": seed, "resume": resume}
    return list(prune_gradually(model or model_of(), windows, valid, **how))


@pytest.fixture(scope="module")
def states():
    return run(own={"penalty": 0.1})


def same(one, other):
    return bytes_of(one.tensors) == bytes_of(other.tensors) and one.history.equals(other.history)


def kept_in(state):
    return {name.removeprefix("kept."): t.tolist() for name, t in state.tensors.items() if name.startswith("kept.")}


# The schedule


@pytest.mark.parametrize("retain", [0.35, 0.5, 1.0])
@pytest.mark.parametrize(("begin", "end", "every"), [(0, 1, 1), (0.1, 0.6, 7), (0.25, 0.25, 2), (0, 0, 1), (1, 1, 9)])
def test_the_schedule_is_the_cubic_of_zhu_and_gupta_at_its_steps_and_constant_between(retain, begin, end, every):
    schedule, steps, neurons = Schedule(begin=begin, end=end, every=every), 100, 512
    first, last = round(begin * steps), round(end * steps)
    expected, now = [], neurons
    for step in range(steps + 1):
        if step >= last:
            now = math.floor(retain * neurons + 0.5)
        elif step >= first and (step - first) % every == 0:
            initial, final = 0.0, 1 - retain
            sparsity = final + (initial - final) * (1 - (step - first) / (last - first)) ** 3
            now = math.floor((1 - sparsity) * neurons + 0.5)
        expected.append(now)
    assert [schedule.neurons_left(s, steps=steps, neurons=neurons, retain=retain) for s in range(steps + 1)] == expected


@pytest.mark.parametrize(("begin", "end", "every"), [(0.5, 0.4, 1), (-0.1, 0.5, 1), (0, 1.1, 1), (0, 1, 0)])
def test_a_schedule_out_of_order_is_refused(begin, end, every):
    with pytest.raises(ValueError, match="Expected 0 ≤ begin ≤ end ≤ 1 and every ≥ 1, got"):
        Schedule(begin=begin, end=end, every=every)


def test_the_history_says_how_many_neurons_the_schedule_left_after_each_step(states):
    expected = [HALF.neurons_left(step, steps=3 * STEPS, neurons=15, retain=0.5) for step in range(1, 3 * STEPS + 1)]
    assert states[-1].history["neurons"].tolist() == expected
    assert len(set(expected)) > 4


# The end


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("retain", [0.3, 0.5, 0.9, 1.0])
def test_the_share_of_neurons_asked_for_is_left_whatever_the_decoder(decoder, retain):
    model = model_of(decoder, (10, 6))
    state = run(model=model, epochs=1, own={"retain": retain})[-1]
    smaller = pruned(model, state)
    assert sum(smaller.widths()) == math.floor(retain * 16 + 0.5)
    assert bytes_of(tensors_of(smaller)) == bytes_of(state.best())
    assert [len(kept) for kept in kept_in(state).values()] == list(smaller.widths())


def test_no_layer_falls_below_its_floor():
    model = model_of()
    model.decoder.weight.data.zero_()  # at first no gradient reaches any neuron, so equals are kept in order
    widths = pruned(
        model, run(model=model, epochs=1, own={"retain": 0.34, "floor": 2}, learning_rate=1e-9)[-1]
    ).widths()
    assert sum(widths) == 5
    assert min(widths) == 2


def test_floors_that_leave_more_neurons_than_asked_for_prevail():
    state = run(epochs=1, own={"retain": 0.1, "floor": 4})[-1]
    assert [len(kept) for kept in kept_in(state).values()] == [4, 4]


def test_keeping_everything_is_plain_training():
    plain = list(train(model_of(), WINDOWS, VALID, recipe=recipe(), seed=1))[-1]
    gradual = run(own={"retain": 1.0, "penalty": 0.5})[-1]
    assert bytes_of(plain.tensors) == bytes_of({name: gradual.tensors[name] for name in plain.tensors})
    assert plain.history.equals(gradual.history.drop(columns="neurons"))


def test_the_dense_model_is_left_as_it_was():
    model = model_of().eval()
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    run(model=model, epochs=1, own={"penalty": 0.1})
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training


def test_kept_neurons_are_numbered_as_in_the_dense_model():
    model = model_of()
    state = run(model=model, epochs=1, learning_rate=1e-12, weight_decay=0.0)[-1]
    layer, kept = model.layers()[0], kept_in(state)["lstm.0"]
    smaller = pruned(model, state)
    own = [piece for piece in layer.owned if "bias" in piece.parameter]
    before, after = gather(own, named_tensors(model)), gather(own, named_tensors(smaller))
    torch.testing.assert_close(after, before[kept], rtol=0, atol=1e-8)


# Repeating and resuming


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(states):
    torch.manual_seed(4321)
    assert all(same(one, other) for one, other in zip(run(own={"penalty": 0.1}), states, strict=True))
    assert not same(run(own={"penalty": 0.1}, seed=2)[-1], states[-1])


@pytest.mark.parametrize("done", [1, 2])
def test_pruning_resumed_after_an_epoch_ends_with_the_bytes_of_uninterrupted_pruning(states, done):
    resumed = run(resume=states[done - 1], own={"penalty": 0.1})
    assert len(resumed) == 3 - done
    assert all(same(one, other) for one, other in zip(resumed, states[done:], strict=True))


def test_the_first_epoch_ends_between_two_removals(states):
    ends = states[-1].history["neurons"].iloc[[STEPS - 1, 2 * STEPS - 1]].tolist()
    assert 15 > ends[0] > ends[1] == 8


def test_finished_pruning_has_nothing_left_to_do(states):
    assert [state.finished for state in states] == [False, False, True]
    assert run(resume=states[-1], own={"penalty": 0.1}) == []


def test_only_epochs_that_end_with_the_final_widths_count_for_the_best_and_for_patience():
    states = run(valid=OTHER, epochs=9, learning_rate=0.05, patience=2, own={"schedule": HALF})
    losses = states[-1].history["valid_loss"].dropna().tolist()
    final = next(epoch for epoch, state in enumerate(states) if state.history["neurons"].iloc[-1] == 8)
    best = final + int(np.argmin(losses[final:]))
    assert final > 2
    assert min(losses) < losses[best]
    assert len(states) == best + 3
    assert bytes_of(states[-1].best()) == bytes_of(
        {name: states[best].tensors[f"model.{name}"] for name in states[-1].best()}
    )


# Importance


def test_online_importance_equals_gates_differentiated_by_autograd_in_the_unrolled_twin():
    model, windows = tiny(), Windows(text(96), first=0, batch=3, bptt=8)
    expected = [np.zeros(width) for width in model.widths()]
    gates = [torch.ones(width, dtype=torch.float64, requires_grad=True) for width in model.widths()]
    twin = Unrolled(tensors_of(model), gates)
    for window in windows:
        found = torch.autograd.grad(loss_on(twin, window), gates)
        expected = [0.7 * e + 0.3 * g.numpy() ** 2 for e, g in zip(expected, found, strict=True)]
        twin.detach()
    own = {"retain": 1.0, "momentum": 0.7}
    state = run(model=model, windows=windows, own=own, epochs=1, learning_rate=1e-300, weight_decay=0.0)[-1]
    for index, values in enumerate(expected):
        np.testing.assert_allclose(state.tensors[f"importance.lstm.{index}"].numpy(), values, rtol=1e-8)


def test_clipping_does_not_change_what_importance_sees():
    own = {"retain": 1.0, "momentum": 0.0}
    loose, tight = (run(own=own, epochs=1, portion=0.01, clip=clip)[-1] for clip in (9.0, 1e-6))
    for index in (0, 1):
        assert torch.equal(loose.tensors[f"importance.lstm.{index}"], tight.tensors[f"importance.lstm.{index}"])


def test_renewed_importance_is_a_moving_average_of_squares():
    found = renewed({"a": torch.tensor([4.0, 0.0]).double()}, {"a": torch.tensor([-2.0, 3.0])}, momentum=0.75)
    assert found["a"].tolist() == [4.0, 2.25]


def test_layers_are_ranked_together_relative_to_their_means():
    importance = {"near": torch.tensor([100.0, 400.0, 700.0]), "far": torch.tensor([0.1, 0.2, 0.6])}
    doubled = {name: values.double() for name, values in importance.items()}
    kept = most_important(doubled, neurons=3, floor=1)
    assert {name: neurons.tolist() for name, neurons in kept.items()} == {"near": [1, 2], "far": [2]}


# Removal


def stepped(model, windows=WINDOWS, steps=3):
    """Return the model's optimizer and state after a few steps of training."""
    optimizer, state = optimizer_of(model, recipe()), None
    for index in range(steps):
        loss, state = next_token_loss(model, *windows[index], carried(state))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer, carried(state)


@pytest.mark.parametrize("decoder", DECODERS)
@given(data=st.data())
def test_removed_equals_masked_at_the_moment_of_a_removal_the_state_carried_over_it(decoder, data):
    model = tiny(decoder)
    optimizer, state = stepped(model)
    keep = data.draw(subsets(model))
    smaller, _, smaller_state = without(model, optimizer, state, keep, recipe())
    with torch.no_grad():
        expected, _ = mask(model, keep)(WINDOWS[3].tokens, state)
        found, _ = smaller(WINDOWS[3].tokens, smaller_state)
    assert (found - expected).abs().max() <= 1e-10


def test_the_cut_optimizer_remembers_of_each_weight_what_it_did_before():
    model = tiny()
    optimizer, state = stepped(model)
    keep = {"lstm.0": torch.tensor([1, 4, 6]), "lstm.1": torch.tensor([0, 5])}
    smaller, successor, _ = without(model, optimizer, state, keep, recipe())
    before = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        places = np.ix_(*places_of(name, before[name].shape, keep))
        assert torch.equal(parameter.detach(), before[name].detach()[places])
        for what in ("exp_avg", "exp_avg_sq"):
            expected = optimizer.state[before[name]][what][places]
            assert torch.equal(successor.state[parameter][what], expected)
            assert expected.any()
        assert successor.state[parameter]["step"] == 3
    decays = {group["weight_decay"]: len(group["params"]) for group in successor.param_groups}
    assert decays == {0.01: 6, 0.0: 5}


def places_of(name, shape, keep):
    """Return which rows and columns of a parameter belong to kept neurons, from the names and shapes of an LSTM."""
    gates = {
        layer: [g * width + k for g in range(4) for k in kept.tolist()]
        for (layer, kept), width in zip(keep.items(), (7, 6), strict=True)
    }
    rows = next((gates[layer] for layer in keep if name.startswith(layer)), range(shape[0]))
    reads = {
        "lstm.0.weight_hh_l0": "lstm.0",
        "lstm.1.weight_ih_l0": "lstm.0",
        "lstm.1.weight_hh_l0": "lstm.1",
        "decoder.weight": "lstm.1",
    }
    columns = keep[reads[name]].tolist() if name in reads else range(shape[-1])
    return (rows, columns)[: len(shape)]


def test_removing_nobody_changes_no_later_step():
    one, other = tiny(), tiny()
    optimizer, state = stepped(one)
    everyone = {layer.name: torch.arange(layer.width) for layer in one.layers()}
    same_model, same_optimizer, same_state = without(one, optimizer, state, everyone, recipe())
    loss, _ = next_token_loss(same_model, *WINDOWS[3], same_state)
    loss.backward()
    same_optimizer.step()
    stepped(other, steps=4)
    assert bytes_of(tensors_of(same_model)) == bytes_of(tensors_of(other))


def test_a_state_that_does_not_hold_the_neurons_is_refused():
    model = tiny()
    keep = {layer.name: torch.tensor([0]) for layer in model.layers()}
    with pytest.raises(ValueError, match=r"Expected a state with neurons of layers of \[7, 6\] along its last dim"):
        state_without([(torch.zeros(1, 4, 7),)], model.layers(), keep)
    with pytest.raises(ValueError, match=r"got \[\[7\], \[7\]\]"):
        state_without([(torch.zeros(1, 4, 7),)] * 2, model.layers(), keep)


# The group lasso


def groups_by_hand(model):
    """Return, for each neuron of each layer, its weights as (parameter, row, column), those to itself twice."""
    tensors = tensors_of(model)
    return [
        [
            (piece.parameter, *place)
            for piece in (*layer.owned, *layer.read)
            if tensors[piece.parameter].ndim == 2
            for place in np.ndindex(*tensors[piece.parameter].shape)
            if place[piece.dim] % layer.width == neuron
        ]
        for layer in model.layers()
        for neuron in range(layer.width)
    ]


@pytest.mark.parametrize("decoder", ["untied", "tied, then projected"])
def test_the_group_lasso_equals_a_loop_over_neurons_and_weights(decoder):
    model = tiny(decoder, (3, 6))
    tensors = tensors_of(model)
    expected = sum(
        math.sqrt(sum(tensors[name][row, column].item() ** 2 for name, row, column in group))
        for group in groups_by_hand(model)
    )
    assert group_lasso(model.layers(), tensors).item() == pytest.approx(expected, rel=1e-12)


def shrunk_along_the_gradient(model, amount=1e-3):
    """Return the gradient of the group lasso by each parameter, once shrinking has moved the weights against it."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(
        group_lasso(model.layers(), parameters), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    before = tensors_of(model)
    shrink_groups(model.layers(), named_tensors(model), amount)
    for (name, now), gradient in zip(tensors_of(model).items(), found, strict=True):
        assert (now - (before[name] - amount * gradient)).abs().max() <= 1e-14
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("decoder", ["untied", "tied, then projected"])
def test_shrinking_moves_the_weights_against_the_gradient_that_autograd_gives_the_group_lasso(decoder):
    model = tiny(decoder)
    for name, gradient in shrunk_along_the_gradient(model).items():
        matrix = gradient.ndim > 1
        assert gradient.any() == ("lstm" in name or "projection" in name or name == "decoder.weight") & matrix


def test_shrinking_halves_that_share_readers_moves_the_columns_of_each_by_its_own_norms():
    shrunk_along_the_gradient(tiny(family="lstm + snn"))


def test_shrinking_groups_that_share_no_weight_is_the_block_soft_threshold():
    layer = NeuronLayer("l", "dense", 2, owned=(Slice("w", dim=0),), read=(Slice("v", dim=1),), output="l")
    tensors = {"w": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "v": torch.tensor([[4.0, 0.4]])}
    shrink_groups([layer], tensors, 1.0)
    torch.testing.assert_close(tensors["w"], torch.tensor([[3.0 * 4 / 5, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(tensors["v"], torch.tensor([[4.0 * 4 / 5, 0.0]]))


def test_a_group_at_zero_stays_there():
    model = tiny()
    for piece in (*model.layers()[1].owned, *model.layers()[1].read):
        named_tensors(model)[piece.parameter].zero_()
    shrink_groups(model.layers(), named_tensors(model), 0.1)
    assert all(tensor.isfinite().all() for tensor in tensors_of(model).values())
    assert not tensors_of(model)["decoder.weight"].any()


def test_the_penalty_shrinks_groups_as_long_as_neurons_are_to_leave():
    model, last = model_of(), Schedule(begin=1.0, end=1.0, every=1)
    free, bound = (run(model=model, epochs=1, own={"penalty": penalty, "schedule": last})[-1] for penalty in (0.0, 1.0))
    before, after = (group_lasso(pruned(model, s).layers(), s.best()).item() for s in (free, bound))
    assert after < 0.9 * before


def test_once_all_have_left_the_penalty_changes_nothing():
    own = {"schedule": Schedule(begin=0.0, end=0.2, every=2)}
    first = run(own=own)[0]
    free, bound = (run(resume=first, own={**own, "penalty": penalty}) for penalty in (0.0, 9.0))
    assert all(same(one, other) for one, other in zip(free, bound, strict=True))


# Refusals


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"retain": 0.0}, r"Expected retain in \(0, 1\], got 0.0."),
        ({"retain": 1.1}, r"Expected retain in \(0, 1\], got 1.1."),
        ({"floor": 0}, "Expected a floor of at least 1 neuron, got 0."),
        ({"momentum": 1.0}, r"Expected a momentum in \[0, 1\), got 1.0."),
        ({"penalty": -1.0}, "Expected a penalty of at least 0, got -1.0."),
    ],
)
def test_a_setting_outside_its_range_is_refused_before_any_step(own, message):
    with pytest.raises(ValueError, match=message):
        run(own=own)


def test_a_tied_model_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"call `decoupled\(\)` first"):
        run(model=model_of("tied", (7, 6)))


@pytest.mark.parametrize("retain", [0.5, 1.0])
def test_a_loss_or_gradient_that_is_not_a_number_is_an_error(retain):
    with pytest.raises(FloatingPointError, match=r"Expected .*finite .*; lower learning_rate or clip."):
        run(learning_rate=1e30, weight_decay=1e30, warmup=0.0, own={"retain": retain})
