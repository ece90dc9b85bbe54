"""What else was tried beside the repair of the pipeline, each with its figure: choices of neurons, refits, the decoder.

`python -m benchmarks.beyond --corpus FOLDER --checkpoint FILE`, read like `benchmarks.repair`, whose calibration and
measure it shares: perplexity on the validation split after a closed-form repair alone, for each share of neurons kept.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import asked
from benchmarks.repair import CALIBRATION, SENSITIVE, STATES, Bench, Calibrated, calibrated, chosen, opened
from pruning.core.hooks import record
from pruning.core.modes import carried, evaluating
from pruning.core.neurons import Keep, NeuronLayer, named_tensors, removed_neurons
from pruning.core.statistics import Covariance, merged
from pruning.data.windows import Window, Windows
from pruning.models.base import LanguageModel
from pruning.repair.reconstruction import reconstruct
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import removal_order, swapped
from tasks.shown.console import track

DAMPING = 1e-4
ROUNDS = 2
"""Refits on the pruned model's own states."""
RIDGE = 1e-4
STEPS = {0.75: (0.75,), 0.5: (0.75, 0.5), 0.35: (0.75, 0.5, 0.35)}
"""Share to keep → the shares on the way there, with all statistics renewed at each."""
RANKS = (64, 128, 192)


def kept_by(places: dict[str, Tensor], count: int) -> Keep:
    """Return the neurons that are left after the first `count` removals."""
    return {name: (own > count).nonzero().flatten() for name, own in places.items()}


def with_swaps(found: Calibrated, grams: dict[str, Tensor], kept: Keep) -> Keep:
    """Return the kept neurons after swaps within each layer."""
    better = {}
    for layer in found.model.layers():
        covariance, gone = merged(found.states[layer.name]).matrix, removed_neurons(layer, kept)
        removed = swapped(covariance, grams[layer.name], gone, damping=DAMPING)
        better[layer.name] = removed_neurons(layer, {layer.name: removed})  # what is not removed
    return better


def diagonal_grams(model: LanguageModel, windows: Windows, *, batches: int, seed: int) -> dict[str, Tensor]:
    """Return Wᵀ diag(E g²) W over each layer's readers: K-FAC's factor of the pre-activations, its diagonal alone.

    g is seen by running the LSTM step by step, a zero added to each pre-activation.
    """
    layers, tensors = model.layers(), named_tensors(model)
    squares: dict[str, Tensor] = {}
    generator, state, tokens = torch.Generator().manual_seed(seed), None, 0
    with evaluating(model):
        for index in range(batches):
            found, state = _preactivation_gradients(model, windows[index], state, generator)
            tokens += windows[index].tokens.numel()
            for name, gradient in found.items():
                squares[name] = squares.get(name, 0) + gradient.flatten(0, 1).double().square().sum(0)
    grams = {}
    for layer in layers:
        total = torch.zeros(layer.width, layer.width, dtype=torch.float64)
        for piece in layer.read:
            columns = piece.split(tensors[piece.parameter]).double().flatten(1)
            total += (columns * (squares[piece.parameter.rpartition(".")[0]] / tokens)) @ columns.T
        grams[layer.name] = total
    return grams


def _preactivation_gradients(
    model: LanguageModel, window: Window, state: list[tuple[Tensor, Tensor]] | None, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Return ∂L/∂(pre-activation) by module, (T, B, rows), and the state after the window."""
    hidden, added, after = model.encoder(window.tokens), {}, []
    for index, cell in enumerate(model.lstm):
        h, c = (hidden.new_zeros(hidden.shape[1], cell.hidden_size),) * 2 if state is None else state[index]
        zero = hidden.new_zeros(*hidden.shape[:2], 4 * cell.hidden_size, requires_grad=True)
        added[f"lstm.{index}"], outputs = zero, []
        for step, extra in zip(hidden, zero, strict=True):
            gates = nn.functional.linear(step, cell.weight_ih_l0, cell.bias_ih_l0) + extra
            gates = gates + nn.functional.linear(h, cell.weight_hh_l0, cell.bias_hh_l0)
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        hidden = torch.stack(outputs)
        after.append((h.detach(), c.detach()))
    projected = model.projection(hidden)
    added["projection"] = torch.zeros_like(projected, requires_grad=True)
    logits = model.decode(projected + added["projection"]).flatten(0, 1)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return dict(zip(added, torch.autograd.grad(loss, list(added.values())), strict=True)), after


def iterated(bench: Bench, seed: int, keep: float) -> LanguageModel:
    """Return the model pruned and refitted in steps, covariances and sensitivities measured anew before each."""
    model = bench.dense.decoupled()
    whole = sum(model.widths())
    windows = bench.windows("train", **CALIBRATION, seed=seed)
    for share in STEPS[keep]:
        states = activations(model, windows, activation_samples=STATES, bins=32, track=track)[1]
        grams = sensitivities(model, windows, batches=SENSITIVE, seed=seed, track=track)
        matrices = {n: (merged(states[n]).matrix, merged(grams[n]).second_moment) for n in states}
        places, _ = removal_order(matrices, damping=DAMPING)
        kept = kept_by(places, sum(model.widths()) - round(share * whole))
        model = reconstruct(model, kept, states, repair="ridge")
    return model


def sequential(found: Calibrated, kept: Keep) -> LanguageModel:
    """Return the repaired model, its readers refitted `ROUNDS` times on its own states instead of the dense model's.

    With dense states h and the pruned model's own k, every reader W becomes W B, B = C_hk (C_kk + λI)⁻¹, and its bias
    gains W (μ_h − B μ_k).
    """
    smaller = reconstruct(found.model, kept, found.states, repair="ridge")
    for _ in range(ROUNDS):
        both = _states_of_both(found, smaller)
        tensors = {name: tensor.double().clone() for name, tensor in named_tensors(smaller).items()}
        dense = {name: tensor.double() for name, tensor in named_tensors(found.model).items()}
        fits = {layer.name: _on_own_states(both[layer.name], layer.width) for layer in found.model.layers()}
        for own, layer in zip(smaller.layers(), found.model.layers(), strict=True):
            for piece, wide in zip(own.read, layer.read, strict=True):
                _replace(tensors, piece, _rows_kept(wide.split(dense[wide.parameter]), wide, kept), fits[layer.name])
        for own, layer in zip(smaller.layers(), found.model.layers(), strict=True):
            _biases(tensors, dense, own, layer, kept, fits)
        refitted = found.model.resized(smaller.widths())
        refitted.load_state_dict(tensors)
        smaller = refitted.eval()
    return smaller


def _states_of_both(found: Calibrated, smaller: LanguageModel) -> dict[str, Covariance]:
    """Return the covariance of each layer's dense outputs and the smaller model's, side by side."""
    both: dict[str, Covariance] = {}
    seen: dict[str, Tensor] = {}

    def keep_in_mind(name: str, batch: Tensor) -> None:
        seen[name] = batch

    def side_by_side(name: str, batch: Tensor) -> None:
        pair = torch.cat([seen[name], batch], dim=1)
        both.setdefault(name, Covariance.empty(pair.shape[1])).update(pair)

    states: list[object] = [None, None]
    with torch.no_grad(), evaluating(found.model), evaluating(smaller):
        for index in range(STATES):
            tokens = found.windows[index].tokens
            with record(found.model, found.model.layers(), keep_in_mind):
                states[0] = found.model.features(tokens, carried(states[0]))[1]
            with record(smaller, smaller.layers(), side_by_side):
                states[1] = smaller.features(tokens, carried(states[1]))[1]
    return both


def _on_own_states(state: Covariance, width: int) -> tuple[Tensor, Tensor]:
    """Return B (width, kept) and μ_h − B μ_k."""
    inner = state.matrix[width:, width:]
    damped = inner + RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
    slopes = torch.linalg.solve(damped, state.matrix[width:, :width]).T
    return slopes, state.mean[:width] - slopes @ state.mean[width:]


def _rows_kept(columns: Tensor, piece: object, kept: Keep) -> Tensor:
    """Return a dense reader's columns, (width, 1, rows), with the rows of removed neurons left out."""
    name = piece.parameter.rpartition(".")[0]
    if name not in kept:
        return columns
    rows = columns.view(len(columns), 4, -1, 1) if name.startswith("lstm") else columns
    return rows[:, :, kept[name]].reshape(len(columns), 1, -1)


def _replace(tensors: dict[str, Tensor], piece: object, columns: Tensor, fit: tuple[Tensor, Tensor]) -> None:
    """Put W B into a reader of the smaller model."""
    tensors[piece.parameter] = piece.join(torch.einsum("dk,dbn->kbn", fit[0], columns), tensors[piece.parameter])


def _biases(
    tensors: dict[str, Tensor],
    dense: dict[str, Tensor],
    own: NeuronLayer,
    layer: NeuronLayer,
    kept: Keep,
    fits: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Set each reader's bias to the dense one plus W (μ_h − B μ_k)."""
    for piece, wide in zip(own.read, layer.read, strict=True):
        name = wide.parameter.rpartition(".")[0]
        bias = dense[wide.bias]
        if name in kept:
            bias = bias.view(4, -1)[:, kept[name]].flatten()
        columns = _rows_kept(wide.split(dense[wide.parameter]), wide, kept)
        tensors[piece.bias] = bias + torch.einsum("d,dbn->n", fits[layer.name][1], columns)


def low_rank(model: LanguageModel, states: Covariance, rank: int) -> tuple[LanguageModel, int]:
    """Return a model whose decoder has this rank, and its multiply-adds: U (V × r) times (r × H).

    The best approximation of what the decoder gives on text, from the singular vectors of D C^½.
    """
    decoder = (model.decoder_weight @ model.projection.weight).double().detach()
    values, vectors = torch.linalg.eigh(states.second_moment)
    root = vectors * values.clamp(min=0).sqrt()
    _, _, right = torch.linalg.svd(root.T @ decoder.T @ decoder @ root)
    basis = root @ right[:rank].T
    back = torch.linalg.pinv(basis)
    shape = model.projection.weight.shape
    flat = (torch.linalg.pinv(model.decoder_weight.double()) @ decoder @ basis @ back).to(model.projection.weight)
    changed = model.resized(model.widths())
    changed.load_state_dict({**model.state_dict(), "projection.weight": flat.view(shape)})
    recurrent = model.multiply_adds() - model.decoder_weight.numel() - model.projection.weight.numel()
    return changed.eval(), recurrent + rank * (decoder.shape[0] + decoder.shape[1])


def _measure(bench: Bench, seed: int, keeps: list[float]) -> None:
    found = calibrated(bench, seed)
    moments = sensitivities(found.model, found.windows, batches=SENSITIVE, seed=seed, track=track)
    grams = {name: merged(groups).second_moment for name, groups in moments.items()}
    diagonal = diagonal_grams(found.model, found.windows, batches=SENSITIVE, seed=seed)
    places, _ = removal_order(
        {name: (merged(found.states[name]).matrix, diagonal[name]) for name in diagonal}, damping=DAMPING
    )
    for keep in keeps:
        greedy = chosen(found.importance, "surgeon", keep)
        removed = sum(map(len, grams.values())) - round(keep * sum(map(len, grams.values())))
        for name, choice in {
            "full K-FAC": greedy,
            "diagonal K-FAC": kept_by(places, removed),
            "with swaps": with_swaps(found, grams, greedy),
        }.items():
            _cell(
                bench, f"{keep}/{name}/{seed}", partial(reconstruct, found.model, choice, found.states, repair="ridge")
            )
        _cell(bench, f"{keep}/on its own states/{seed}", partial(sequential, found, greedy))
        _cell(bench, f"{keep}/in steps/{seed}", partial(iterated, bench, seed, keep))
        _measure_ranks(bench, found, greedy, keep, seed)


def _measure_ranks(bench: Bench, found: Calibrated, kept: Keep, keep: float, seed: int) -> None:
    smaller = reconstruct(found.model, kept, found.states, repair="ridge")
    states = activations(smaller, found.windows, activation_samples=STATES, bins=32, track=track)[1]
    last = merged(states[smaller.layers()[-1].name])
    for rank in RANKS:
        model, cost = low_rank(smaller, last, rank)
        _cell(bench, f"{keep}/decoder of rank {rank}/{seed}", lambda model=model: model, multiply_adds=cost)


def _cell(bench: Bench, name: str, model: Callable[[], LanguageModel], **also: float) -> None:
    bench.cell(name, lambda: {"perplexity": bench.perplexity(model()), **also})


def main() -> None:
    """Measure every cell that is missing; the cells are the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder of published splits")
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="a dense LSTM, its vocabulary beside it"
    )
    parser.add_argument(
        "--keep",
        type=asked.share,
        nargs="+",
        choices=list(STEPS),
        metavar="SHARE",
        default=list(STEPS),
        help=f"of the neurons that stay, each by its steps: {', '.join(map(str, STEPS))}",
    )
    parser.add_argument("--seeds", type=asked.count, default=1, help="seeds of calibration")
    parser.add_argument("--results", type=asked.file, default="beyond.jsonl", help="where cells are kept")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    bench = opened(given.corpus, given.checkpoint, given.results)
    for seed in range(given.seeds):
        _measure(bench, seed, given.keep)


if __name__ == "__main__":
    main()
