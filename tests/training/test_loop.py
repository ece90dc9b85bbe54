"""Training repeats, resumes, keeps the best, stops and refuses what is not a number."""

import math

import numpy as np
import pytest
import torch

import pruning
from pruning.data.windows import Windows
from pruning.training.distillation import Teacher
from pruning.training.loop import Trained, train
from pruning.training.schedule import rate_at
from tests.tiny import bytes_of, recipe, tensors_of, text, tiny

WINDOWS = Windows(text(500), first=0, batch=4, bptt=8)
VALID = Windows(text(120, seed=1), first=0, batch=4, bptt=8)
OTHER = Windows(text(120, seed=1, step=7), first=0, batch=4, bptt=8)
"""Text of another rule: the better the first is learnt, the worse this one is predicted."""


def model_of():
    return tiny(dtype=torch.float32, dropout=0.2, spread=0.1)


def run(*, seed=1, valid=VALID, resume=None, model=None, windows=WINDOWS, teacher=None, **changes):
    """Return where training stood after each epoch."""
    how = {"recipe": recipe(**changes), "seed": seed, "resume": resume, "teacher": teacher}
    return list(train(model or model_of(), windows, valid, **how))


@pytest.fixture(scope="module")
def states():
    return run()


def same(one, other):
    return bytes_of(one.tensors) == bytes_of(other.tensors) and one.history.equals(other.history)


@pytest.mark.parametrize("done", [1, 2])
def test_training_resumed_after_an_epoch_ends_with_the_bytes_of_uninterrupted_training(states, done):
    model = tiny(dtype=torch.float32, dropout=0.2, seed=9)
    resumed = run(resume=states[done - 1], model=model)
    assert len(resumed) == 3 - done
    assert all(same(one, other) for one, other in zip(resumed, states[done:], strict=True))
    assert bytes_of(tensors_of(model)) == bytes_of(
        {name.removeprefix("model."): t for name, t in states[-1].tensors.items() if name.startswith("model.")}
    )


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_random_state(states):
    torch.manual_seed(1234)
    assert all(same(one, other) for one, other in zip(run(), states, strict=True))


def test_different_seeds_differ(states):
    assert not same(run(seed=2)[-1], states[-1])


def test_training_leaves_the_global_random_state_as_it_was():
    model, before = model_of(), torch.get_rng_state()
    run(model=model, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_yielded_is_not_changed_by_later_epochs():
    steps = train(model_of(), WINDOWS, VALID, recipe=recipe(), seed=1)
    first = next(steps)
    before = bytes_of(first.tensors)
    list(steps)
    assert bytes_of(first.tensors) == before


def test_finished_training_has_nothing_left_to_do(states):
    assert [state.finished for state in states] == [False, False, True]
    assert run(resume=states[-1]) == []


def test_the_best_epoch_is_kept():
    states = run(valid=OTHER, epochs=4, learning_rate=0.05)
    losses = states[-1].history["valid_loss"].dropna().tolist()
    best = losses.index(min(losses))
    assert best < 3
    expected = {name: states[best].tensors[f"model.{name}"] for name in states[-1].best()}
    assert bytes_of(states[-1].best()) == bytes_of(expected)
    assert bytes_of(states[-1].best()) != bytes_of(
        {name: states[-1].tensors[f"model.{name}"] for name in states[-1].best()}
    )


def test_the_best_epoch_is_still_known_after_resuming():
    whole = run(valid=OTHER, epochs=4, learning_rate=0.05)
    resumed = run(valid=OTHER, epochs=4, learning_rate=0.05, resume=whole[2], model=model_of())
    assert bytes_of(resumed[-1].best()) == bytes_of(whole[-1].best())


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_early_once_its_patience_is_spent(patience):
    states = run(valid=OTHER, epochs=9, learning_rate=0.05, patience=patience)
    losses = states[-1].history["valid_loss"].dropna().tolist()
    assert len(states) == losses.index(min(losses)) + 1 + patience < 9
    assert [state.finished for state in states] == [False] * (len(states) - 1) + [True]


@pytest.mark.parametrize("windows", [WINDOWS, Windows(text(30), first=0, batch=4, bptt=8)], ids=["many", "one"])
def test_a_loss_that_is_not_a_number_is_an_error_whether_training_or_validation_meets_it(windows):
    with pytest.raises(FloatingPointError, match=r"Expected a finite .* loss, got .*; lower learning_rate or clip."):
        run(learning_rate=1e30, weight_decay=1e30, warmup=0.0, windows=windows)


def test_the_training_loss_falls_on_learnable_text():
    model = tiny(dtype=torch.float32, spread=0.1)
    history = run(model=model, epochs=12, learning_rate=0.05)[-1].history
    assert history["train_loss"].iloc[:5].mean() > 2.9
    assert history["train_loss"].iloc[-5:].mean() < 2.0
    assert history["valid_loss"].dropna().iloc[-1] < 2.0


def test_the_history_has_one_row_a_step_and_a_validation_loss_at_ends_of_epochs(states):
    history = states[-1].history
    steps = len(WINDOWS)
    assert history["step"].tolist() == list(range(1, 3 * steps + 1))
    assert history.index[history["valid_loss"].notna()].tolist() == [steps - 1, 2 * steps - 1, 3 * steps - 1]
    assert history["tokens"].iloc[[steps - 1, -1]].tolist() == [500, 1500]
    assert history["tokens"].is_monotonic_increasing


def test_a_portion_of_the_windows_is_read_from_the_start():
    history = run(portion=0.25, epochs=2)[-1].history
    assert len(history) == 2 * round(0.25 * len(WINDOWS))
    assert history["tokens"].tolist() == [32 * step for step in range(1, len(history) + 1)]


def test_the_learning_rate_rises_to_its_height_and_ends_near_zero(states):
    rates = states[-1].history["learning_rate"].tolist()
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.02, rel=0.01)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.02 * 0.01


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_every_learning_rate_lies_between_zero_and_its_height(warmup, steps):
    chosen = recipe(warmup=warmup)
    assert all(0 < rate_at(chosen, step, steps) <= chosen.learning_rate for step in range(steps))
    if warmup < 1:
        assert rate_at(chosen, steps, steps) == pytest.approx(0, abs=1e-12)


def test_weight_decay_shrinks_matrices_and_leaves_biases_alone():
    model = model_of()
    model.decoder.bias.data.fill_(1.0)
    before = tensors_of(model)
    run(model=model, epochs=1, learning_rate=1e-6, weight_decay=1e4, warmup=0.0, portion=0.1)
    after = tensors_of(model)
    assert after["decoder.weight"].norm() < 0.995 * before["decoder.weight"].norm()
    torch.testing.assert_close(after["decoder.bias"], before["decoder.bias"], rtol=0, atol=1e-4)


def test_dropout_needs_training_mode_which_training_sets(states):
    assert same(run(model=model_of().eval())[-1], states[-1])
    assert same(run(model=model_of().train())[-1], states[-1])


@pytest.mark.parametrize(("clip", "least", "most"), [(1e-12, 0, 1e-4), (1e9, 0.01, 9)])
def test_clipping_bounds_the_gradient_that_moves_the_model(clip, least, most):
    model = model_of()
    before = tensors_of(model)
    run(model=model, epochs=1, clip=clip, weight_decay=0.0)
    moved = max((now - before[name]).abs().max().item() for name, now in tensors_of(model).items())
    assert least <= moved <= most


def test_training_state_names_model_best_and_optimizer(states):
    assert isinstance(states[-1], Trained)
    names = {name.split(".")[0] for name in states[-1].tensors}
    assert names == {"model", "best", "optimizer"}
    assert all(math.isfinite(tensor.double().sum()) for tensor in states[-1].tensors.values())


def test_every_epoch_drops_other_activations():
    history = run(epochs=2, learning_rate=1e-30, weight_decay=0.0)[-1].history
    first, second = history["train_loss"].iloc[: len(WINDOWS)], history["train_loss"].iloc[len(WINDOWS) :]
    assert (first.to_numpy() != second.to_numpy()).all()


def test_training_in_chunks_of_rows_is_training_but_for_rounding(states):
    chunked = run(softmax="chunked")
    for one, other in zip(chunked, states, strict=True):
        np.testing.assert_allclose(one.history["train_loss"], other.history["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(one.history["valid_loss"], other.history["valid_loss"], rtol=1e-4)


@pytest.mark.parametrize("way", [{"softmax": "chunked"}, {"softmax": "sampled", "sampled": 20}, {"type": "bfloat16"}])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_beside_a_teacher_training_by_any_softmax_and_type_is_training_but_for_rounding(way, temperature):
    teacher = Teacher(model=tiny(seed=5, dtype=torch.float32), share=0.5, temperature=temperature)
    one, other = (
        run(model=tiny(dtype=torch.float32, spread=0.1), epochs=1, teacher=teacher, **how)[-1].history
        for how in ({}, way)
    )
    rounding = 5e-4 if "type" in way else 1e-5  # of products alone: the loss is none of bfloat16's, of 2 digits
    np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=rounding)
    np.testing.assert_allclose(one["valid_loss"], other["valid_loss"], rtol=rounding)
    assert not one["train_loss"].equals(other["train_loss"])


@pytest.mark.parametrize("family", ["lstm", "gru", "relu", "snn", "lstm + snn"])
@pytest.mark.parametrize("softmax", ["full", "chunked", "sampled"])
def test_products_of_bfloat16_leave_weights_in_float32_and_learn_about_the_same(family, softmax):
    if softmax != "full" and family not in ("lstm", "snn"):
        return
    models = [tiny(dtype=torch.float32, spread=0.1, family=family) for _ in range(2)]
    one, other = (
        run(model=model, epochs=1, softmax=softmax, sampled=20, type=kind)[-1].history
        for model, kind in zip(models, ("float32", "bfloat16"), strict=True)
    )
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
    assert one["train_loss"].iloc[0] == pytest.approx(other["train_loss"].iloc[0], rel=0.02)
    assert one["valid_loss"].iloc[-1] == pytest.approx(other["valid_loss"].iloc[-1], rel=0.03)
    assert not one["train_loss"].equals(other["train_loss"])


def test_training_over_a_sample_of_the_types_learns_and_repeats():
    one, other = (run(model=model_of(), softmax="sampled", sampled=16) for _ in range(2))
    assert all(same(*pair) for pair in zip(one, other, strict=True))
    losses = one[-1].history["valid_loss"].dropna().tolist()
    assert losses[-1] < losses[0] < math.log(20)


def test_what_training_cannot_do_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"Unknown softmax 'sample' to train by; known: \['full', 'chunked', "):
        recipe(softmax="sample")
    with pytest.raises(ValueError, match=r"Unknown type 'float16' to train by; known: \['float32', 'bfloat16'\]"):
        recipe(type="float16")
    with pytest.raises(ValueError, match=r"Expected at least 1 type for `sampled`, got 0\."):
        recipe(sampled=0)
    layers = torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    network = pruning.adapt(torch.nn.Sequential(*layers), torch.zeros(2, 3), loss=torch.nn.CrossEntropyLoss())
    batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"Expected a language model of the library to train by a chunked softm"):
        list(train(network, batches, batches, recipe=recipe(softmax="chunked"), seed=1))
    teacher = Teacher.of(network, share=0.5, temperature=1.0)
    with pytest.raises(ValueError, match=r"Expected a language model of the library as teacher by a sampled softmax, "):
        list(train(model_of(), WINDOWS, VALID, recipe=recipe(softmax="sampled"), seed=1, teacher=teacher))
