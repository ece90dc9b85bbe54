"""Does a neuron's part in the tangent kernel tell what its removal costs? Beside the criteria, on a default run.

`python -m benchmarks.kernel --data FOLDER`, with the `data` of a finished default run. The empirical tangent kernel of
some outputs (Jacot, Gabriel & Hongler 2018) is K = J Jᵀ, J being the outputs' gradients by the parameters. Without a
neuron, the gradients by what computes or reads it are gone, those by all other parameters held: K' = K − J_j J_jᵀ. Its
importance is ‖K − K'‖_F / ‖K‖_F. The table is the Spearman correlation within layers with the measured removals of that
run, and its 95% interval over neurons.
"""

import argparse
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import asked
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.fusion.learned import bootstrapped, interval, within_layers
from pruning.models.base import LanguageModel
from pruning.signals.schemas import CRITERIA, SIGNALS
from tasks.common.models import read_model


def kernel_parts(model: LanguageModel, columns: Sequence[Tensor], drawn: Tensor) -> dict[str, Tensor]:
    """Return each neuron's ‖J_j J_jᵀ‖_F / ‖J Jᵀ‖_F, (width,) by layer.

    Args:
        model: It is left as it was.
        columns: Texts, (steps,) each; of each the last step's output counts, with no state before it.
        drawn: Which logit of that output it is, (texts,).
    """
    parameters, layers = dict(model.named_parameters()), model.layers()
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    with evaluating(model):
        for tokens, token in zip(columns, drawn.tolist(), strict=True):
            features, _ = model.features(tokens[:, None])
            output = model.decode(features[-1, 0])[token]
            gradients = torch.autograd.grad(output, list(parameters.values()), materialize_grads=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                rows[name].append(gradient.detach())
    whole = sum((stacked @ stacked.T for stacked in _flat(rows)), start=torch.zeros(len(columns), len(columns)))
    return {layer.name: _parts(layer, rows) / torch.linalg.matrix_norm(whole) for layer in layers}


def _flat(rows: Mapping[str, list[Tensor]]) -> list[Tensor]:
    return [torch.stack(gradients).flatten(1).double() for gradients in rows.values()]


def _parts(layer: NeuronLayer, rows: Mapping[str, list[Tensor]]) -> Tensor:
    """Return ‖J_j J_jᵀ‖_F of each neuron, a weight that it has to itself counted once as its own."""
    shapes = {name: own[0].shape for name, own in rows.items()}
    places = {name: torch.arange(shape.numel()).view(shape) for name, shape in shapes.items()}
    weights = []
    for pieces, others in ((layer.owned, ()), (layer.read, layer.owned)):
        for piece in pieces:
            mine = piece.split(places[piece.parameter]).flatten(1)
            counted = [
                own.split(places[own.parameter]).flatten(1) for own in others if own.parameter == piece.parameter
            ]
            known = [torch.isin(one, own[j]) for own in counted for j, one in enumerate(mine)]
            weights.append(
                (piece.parameter, mine, torch.stack(known) if known else torch.zeros_like(mine, dtype=torch.bool))
            )
    by_output = []
    for index in range(len(next(iter(rows.values())))):
        parts = [rows[name][index].flatten()[at].masked_fill(known, 0.0) for name, at, known in weights]
        by_output.append(torch.cat(parts, dim=1))
    jacobian = torch.stack(by_output, dim=1).double()  # (width, outputs, parameters)
    norms: Tensor = torch.linalg.matrix_norm(jacobian @ jacobian.mT)
    return norms


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=asked.results, default="data", help="of a finished default run")
    parser.add_argument("--outputs", type=asked.count, default=48, help="that the kernel is of")
    parser.add_argument("--seed", type=asked.index, default=1, help="of the words that are drawn")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    model = read_model(given.data / "train/model").cpu()
    assert isinstance(model, LanguageModel)
    words = pd.read_parquet(given.data / "prepare/vocabulary.parquet")
    rows = pd.read_parquet(given.data / "prepare/corpus.parquet")
    train = torch.tensor(rows.loc[rows["split"] == "train", "token"].to_numpy(), dtype=torch.long)
    first = int(words.loc[words["text"] == END_OF_LINE, "token"].iloc[0])
    window = Windows(train, first=first, batch=given.outputs, bptt=35)[0]
    with torch.no_grad():
        logits, _ = model(window.tokens)
    generator = torch.Generator().manual_seed(given.seed)
    drawn = torch.multinomial(logits[-1].softmax(-1), 1, generator=generator).flatten()
    parts = kernel_parts(model, list(window.tokens.T), drawn)
    oracle = pd.read_parquet(given.data / "oracle/oracle.parquet")
    importance = pd.read_parquet(given.data / "fuse/importance.parquet").set_index(["layer", "neuron"])
    places = list(zip(oracle["layer"], oracle["neuron"], strict=True))
    predicted = {"tangent kernel": np.array([parts[layer][neuron].item() for layer, neuron in places])}
    names = [name for name in (*SIGNALS, "surgeon", *CRITERIA) if name in importance]
    predicted |= {f"`{name}`": importance.loc[places, name].to_numpy() for name in names}
    layers, truth = oracle["layer"].to_numpy(dtype=str), oracle["loss_increase"].to_numpy()
    drawn_again = bootstrapped(layers, truth, predicted, seed=1)
    scores = {name: within_layers(layers, values, truth) for name, values in predicted.items()}
    print(f"{len(oracle)} measured neurons, {given.outputs} outputs\n\n| predictor | Spearman | 95% |\n|---|---:|---|")
    for name in sorted(scores, key=lambda each: -math.inf if math.isnan(scores[each]) else -scores[each]):
        low, high = interval(drawn_again[name])
        print(f"| {name} | {scores[name]:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
