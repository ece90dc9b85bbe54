"""A neuron's part in the tangent kernel against taking its gradients away, one output and one neuron at a time."""

import pytest
import torch

from benchmarks.kernel import kernel_parts
from tests.tiny import VOCABULARY, tiny


@pytest.mark.parametrize("family", ["lstm", "gru", "lstm + snn"])
def test_a_neurons_part_is_what_the_kernel_loses_without_its_weights(family):
    model = tiny(widths=(4, 5), family=family)
    columns = list(torch.randint(VOCABULARY, (5, 6), generator=torch.Generator().manual_seed(1)))
    drawn = torch.tensor([3, 0, 7, 3, 9])
    parts = kernel_parts(model, columns, drawn)
    rows = []
    for tokens, token in zip(columns, drawn.tolist(), strict=True):
        model.zero_grad()
        model(tokens[:, None])[0][-1, 0, token].backward()
        rows.append({name: p.grad.clone() for name, p in model.named_parameters()})

    def kernel(gradients):
        flat = torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in gradients])
        return flat @ flat.T

    whole = kernel(rows)
    for layer in model.layers():
        for neuron in range(layer.width):
            without = [{name: gradient.clone() for name, gradient in one.items()} for one in rows]
            for one in without:
                for piece in (*layer.owned, *layer.read):
                    pieces = piece.split(one[piece.parameter]).clone()
                    pieces[neuron] = 0
                    one[piece.parameter] = piece.join(pieces, one[piece.parameter])
            expected = torch.linalg.matrix_norm(whole - kernel(without)) / torch.linalg.matrix_norm(whole)
            assert parts[layer.name][neuron].item() == pytest.approx(expected.item(), rel=1e-9)
