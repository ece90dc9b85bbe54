"""What a model says of text, against one token at a time, and draws whose chances are known."""

import math
from collections import Counter

import pytest
import torch

from pruning.data.windows import Windows
from pruning.evaluation import language
from pruning.evaluation.language import continuation, surprisals
from pruning.evaluation.measures import loss_of
from tests.tiny import VOCABULARY, tiny

TOKENS = torch.arange(23) * 7 % VOCABULARY


@pytest.mark.parametrize(("decoder", "family"), [("untied", "lstm"), ("tied", "gru"), ("projected", "lstm + snn")])
def test_surprisals_are_those_of_one_token_after_the_other(
    monkeypatch: pytest.MonkeyPatch, decoder: str, family: str
) -> None:
    monkeypatch.setattr(language, "STEPS", 5)
    model = tiny(decoder, family=family).requires_grad_(False)
    state, read, expected, ranks = None, 3, [], []
    for token in TOKENS.tolist():
        logits, state = model(torch.tensor([[read]]), state)
        chances = logits[0, 0].softmax(dim=0)
        expected.append(-math.log(chances[token]))
        ranks.append(int((chances > chances[token]).sum()))
        read = token
    found, likelier = surprisals(model, TOKENS, first=3)
    assert found.tolist() == pytest.approx(expected)
    assert likelier.tolist() == ranks
    whole = loss_of(model, Windows(TOKENS, first=3, batch=1, bptt=5))
    assert found.mean().item() == pytest.approx(whole.mean)


def test_the_likeliest_token_is_taken_at_a_temperature_of_zero() -> None:
    model, text = tiny("untied"), TOKENS.tolist()
    drawn = continuation(model, TOKENS, first=3, length=6, temperature=0, seed=1)
    for token in drawn:
        logits, _ = model(torch.tensor([3, *text])[:, None])
        assert token == int(logits[-1, 0].argmax())
        text.append(token)


def test_draws_are_as_frequent_as_the_model_says_and_never_what_is_left_out() -> None:
    model = tiny("untied")
    logits, _ = model(torch.tensor([[3]]))
    for temperature in (0.5, 1.0):
        chances = (logits[0, 0] / temperature).softmax(dim=0)
        chances[[2, 5]] = 0
        chances /= chances.sum()
        drawn = Counter(
            continuation(model, TOKENS[:0], first=3, length=1, temperature=temperature, seed=seed, without=[2, 5])[0]
            for seed in range(600)
        )
        assert not drawn[2] + drawn[5]
        for token, chance in enumerate(chances.tolist()):
            assert drawn[token] / 600 == pytest.approx(chance, abs=4 * math.sqrt(chance / 600) + 1e-9)


def test_a_seed_decides_the_draw_and_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = tiny("untied").train()
    before = torch.random.get_rng_state()
    first, again, other = (
        continuation(model, TOKENS, first=3, length=9, temperature=1, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_drawn_or_read_gets_one_sentence() -> None:
    how = {"first": 3, "length": 1, "seed": 1}
    with pytest.raises(ValueError, match=r"Expected a temperature of at least 0, got -1\."):
        continuation(tiny("untied"), TOKENS, temperature=-1, **how)
    with pytest.raises(ValueError, match=rf"Expected a token to draw, got all {VOCABULARY} left out\."):
        continuation(tiny("untied"), TOKENS, temperature=1, without=range(VOCABULARY), **how)
    with pytest.raises(ValueError, match=r"Expected at least 1 tokens, one for each column of the batch, got 0\."):
        surprisals(tiny("untied"), TOKENS[:0], first=3)
