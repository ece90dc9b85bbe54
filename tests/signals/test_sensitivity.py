"""Sensitivities against derivatives of the unrolled twin, and against pre-activation gradients times weights."""

import pytest
import torch

from pruning.core.statistics import merged
from pruning.data.windows import Windows
from pruning.signals.sensitivity import sensitivities
from tests.tiny import DECODERS, Unrolled, bytes_of, tensors_of, text, tiny

WINDOWS = Windows(text(130), first=0, batch=4, bptt=6)
WHOLE = Windows(text(96), first=0, batch=4, bptt=6)
"""Windows without padding."""


def labels_of(monkeypatch, wanted):
    """Let the model's labels be these, one window after the other, instead of sampled ones."""
    remaining = iter(wanted)
    monkeypatch.setattr("pruning.models.classes.sampled_labels", lambda *_: next(remaining).flatten())


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "tied"])
def test_sensitivities_are_derivatives_by_what_every_reader_reads(monkeypatch, decoder):
    model = tiny(decoder)
    wanted = [window.targets for window in WHOLE]
    labels_of(monkeypatch, wanted)
    found = sensitivities(model, WHOLE, batches=3, seed=0)
    twin, expected = Unrolled(tensors_of(model)), {layer.name: [] for layer in model.layers()}
    for window, labels in list(zip(WHOLE, wanted, strict=True))[:3]:
        steps = len(window.tokens)
        twin.detach()
        twin.hidden = [outputs[-1:] for outputs in twin.hidden]
        done = len(twin.hidden[0])
        twin.offsets = [
            torch.zeros(done + steps, 4, layer.width, dtype=torch.float64, requires_grad=True)
            for layer in model.layers()
        ]
        shares = twin(window.tokens).log_softmax(-1)
        loss = -shares.gather(2, labels[:, :, None]).sum()
        for layer, gradient in zip(model.layers(), torch.autograd.grad(loss, twin.offsets), strict=True):
            expected[layer.name].append(gradient[done:].flatten(0, 1))
    for name, parts in expected.items():
        gamma = torch.cat(parts)
        state = merged(found[name])
        assert state.count == len(gamma)
        assert torch.allclose(state.second_moment, gamma.T @ gamma / len(gamma), rtol=1e-9, atol=1e-15)


def test_the_gram_matrix_of_a_layer_read_by_the_decoder_alone_is_its_fisher_metric():
    """γ of the last output of a window reaches the loss through the decoder only: E γγᵀ = Dᵀ (diag p − p pᵀ) D."""
    model = tiny("untied", widths=(5,))
    windows = Windows(text(4 * 4000), first=0, batch=4000, bptt=1)
    found = merged(sensitivities(model, windows, batches=4, seed=3)["lstm.0"]).second_moment
    decoder, expected, state = model.decoder.weight.detach(), 0, None
    with torch.no_grad():
        for window in windows:
            features, state = model.features(window.tokens, state)
            p = model.decode(features).flatten(0, 1).softmax(-1)
            mean = p @ decoder
            expected = expected + (torch.einsum("nv,va,vb->ab", p, decoder, decoder) - mean.T @ mean) / len(p) / 4
    assert torch.allclose(found, expected, rtol=0.1, atol=0.05 * float(expected.diagonal().max()))


def test_two_halves_of_the_text_merged_are_the_whole():
    groups = sensitivities(tiny(), WINDOWS, batches=6, seed=1)["lstm.0"]
    assert len(groups) == 6
    assert merged(groups).count == sum(group.count for group in groups)


def test_padding_counts_nowhere():
    model = tiny(widths=(4,))
    padded = Windows(text(9), first=0, batch=4, bptt=3)
    one = merged(sensitivities(model, padded, batches=1, seed=0)["lstm.0"])
    assert int((padded[0].targets < 0).sum()) == 3
    last_column = padded[0].targets[:, 3]
    assert (last_column < 0).all()
    assert torch.linalg.matrix_rank(one.second_moment) > 0
    assert one.count == 9


def test_the_same_seed_gives_the_same_bytes_and_nothing_is_left_behind():
    model = tiny()
    before, state = bytes_of(tensors_of(model)), torch.get_rng_state()
    one, same, other = (
        merged(sensitivities(model, WINDOWS, batches=4, seed=seed)["lstm.1"]).products for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
