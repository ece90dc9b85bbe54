"""Loss against a twin that feeds one token at a time, sizes, and latency that takes turns."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.data.windows import Windows
from pruning.evaluation import latency
from pruning.evaluation.latency import compared_latencies, latencies
from pruning.evaluation.measures import Loss, loss_of
from tests.tiny import DECODERS, VOCABULARY, text, tiny

MODELS = {decoder: tiny(decoder) for decoder in (*DECODERS, "tied")}


def loss_by_hand(model, tokens, batch):
    """Return the summed loss of each column read on its own, one token at a time."""
    steps, total = math.ceil(len(tokens) / batch), 0.0
    with torch.no_grad():
        for start in range(0, len(tokens), steps):
            state = None
            for place in range(start, min(start + steps, len(tokens))):
                read = 0 if place == 0 else int(tokens[place - 1])
                logits, state = model(torch.tensor([[read]]), state)
                total -= logits[0, 0].log_softmax(0)[tokens[place]].item()
    return total


@pytest.mark.parametrize("decoder", MODELS)
@given(length=st.integers(7, 40), batch=st.integers(1, 7), bptt=st.integers(1, 9))
def test_the_loss_equals_feeding_one_token_at_a_time(decoder, length, batch, bptt):
    tokens = text(length)
    loss = loss_of(MODELS[decoder], Windows(tokens, first=0, batch=batch, bptt=bptt))
    assert loss.tokens == length
    assert loss.total == pytest.approx(loss_by_hand(MODELS[decoder], tokens, batch), rel=1e-12)
    assert loss.mean == loss.total / length


def test_the_perplexity_of_a_uniform_model_is_the_vocabulary_size(windows):
    model = tiny()
    for parameter in model.parameters():
        parameter.data.zero_()
    assert loss_of(model, windows).perplexity == pytest.approx(VOCABULARY, rel=1e-12)


def test_the_loss_is_free_of_dropout_and_leaves_the_mode_as_it_was(windows):
    model = tiny(dropout=0.5)
    expected = loss_of(model, windows)
    assert loss_of(model.train(), windows) == expected
    assert model.training


def test_a_hopeless_loss_still_has_a_perplexity():
    assert math.isfinite(Loss(total=1e6, tokens=1).perplexity)


def test_latencies_are_positive_and_models_take_turns_of_runs_of_steps():
    steps, models = [], {"small": tiny(widths=(5,)), "large": tiny()}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda _m, inputs, name=name: steps.append((name, inputs[0].shape)))
    found = latencies(models, batch=3, repeats=20)
    turns = steps[:: latency.RUN]
    assert steps == [turn for turn in turns for _ in range(latency.RUN)], "a model takes all steps of its turn at once"
    assert [sorted(turns[start : start + 2]) for start in range(0, 44, 2)] == [
        [("large", (1, 3)), ("small", (1, 3))]
    ] * 22
    assert len({name for name, _ in turns[::2]}) == 2, "one model always came first"
    for taken in found.values():
        assert taken.seconds > 0
        assert taken.spread >= 0
        assert taken.repeats == 20


def test_a_speed_up_is_the_ratio_of_last_steps_and_its_error_how_much_blocks_differ(monkeypatch):
    seconds = {"dense": iter([1.0, 2.0, 4.0, 3.0, 6.0, 12.0]), "small": iter([1.0, 1.0, 1.0, 1.0, 2.0, 3.0])}

    def timed(model, batch, state, clock):
        """Return 100 s for all but the last steps of turns and for the turn that each block warms up by."""
        assert (batch, clock) == (2, time.perf_counter)
        steps = 0 if state is None else state
        last = steps >= latency.RUN and steps % latency.RUN == latency.RUN - 1
        return (next(seconds[model.name]) if last else 100.0), steps + 1

    monkeypatch.setattr(latency, "BLOCKS", 2)
    monkeypatch.setattr(latency, "_timed_step", timed)
    models = {name: tiny() for name in seconds}
    for name, model in models.items():
        model.name = name
    found = compared_latencies(models, to="dense", batch=2, repeats=6)
    small = found["small"]  # ratios 1, 2, 4 | 3, 3, 4
    assert (small.speed_up, small.error) == pytest.approx((2.5, 0.5))
    assert (small.seconds, small.repeats) == (1.0, 6)
    assert (found["dense"].speed_up, found["dense"].error) == (1.0, 0.0)


def test_one_block_tells_no_error():
    assert math.isnan(compared_latencies({"a": tiny()}, to="a", batch=1, repeats=1)["a"].error)


def test_measuring_latency_leaves_modes_as_they_were():
    models = {"one": tiny().train(), "two": tiny().eval()}
    latencies(models, batch=1, repeats=3)
    assert [model.training for model in models.values()] == [True, False]
