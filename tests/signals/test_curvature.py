"""Curvature against an independent library, curvlinops: the Hessian's traces and its product with the gradient."""

import pytest
import torch
from torch import nn

from pruning.core.neurons import gather
from pruning.data.windows import Windows
from pruning.signals.curvature import owned_parameters
from pruning.signals.evidence import gather_evidence, partition
from pruning.signals.hessian import hessian
from tests.tiny import text, tiny

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # curvlinops' own
WINDOWS = Windows(text(12), first=0, batch=3, bptt=4)


class Flat(nn.Module):
    """The model with its logits as rows, as a classifier is written."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0].flatten(0, 1)


@pytest.fixture(scope="module")
def model():
    return tiny(widths=(4, 3))


@pytest.fixture(scope="module")
def matrix(model):
    """The Hessian of the window's mean loss by the neurons' own weights, and the parameters that it runs over."""
    return matrix_of(model, curvlinops.HessianLinearOperator)


def matrix_of(model, kind):
    owned = owned_parameters(model, model.layers())
    data = [(WINDOWS[0].tokens, WINDOWS[0].targets.flatten())]
    operator = kind(
        Flat(model),
        nn.CrossEntropyLoss(),
        list(owned.values()),
        data,
        check_deterministic=False,
        num_data=len(data[0][1]),
        batch_size_fn=lambda tokens: tokens.numel(),
    )
    return operator @ torch.eye(operator.shape[1], dtype=torch.float64), owned


def split(flat, owned):
    """Return a vector over all own weights as tensors of their shapes, by name."""
    pieces = flat.split([parameter.numel() for parameter in owned.values()])
    return {name: piece.view(p.shape) for (name, p), piece in zip(owned.items(), pieces, strict=True)}


def traces_of(model, matrix):
    curvature, owned = matrix
    diagonal = split(curvature.diagonal(), owned)
    return torch.cat([gather(layer.owned, diagonal).sum(1) for layer in model.layers()])


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("exact", "HessianLinearOperator"),
        ("differences", "HessianLinearOperator"),
        ("gauss_newton", "GGNLinearOperator"),
    ],
)
def test_traces_agree_with_the_diagonal_of_the_whole_matrix(model, method, kind):
    expected = traces_of(model, matrix_of(model, getattr(curvlinops, kind)))
    table = hessian(model, WINDOWS, probes=400, stability=2, seed=1, method=method)
    errors = (torch.tensor(table["trace"].to_numpy()) - expected) / torch.tensor(
        table["trace_standard_error"].to_numpy()
    )
    assert errors.abs().max() < 4
    assert torch.corrcoef(torch.stack([torch.tensor(table["trace"].to_numpy()), expected]))[0, 1] > 0.95


def test_the_product_of_hessian_and_gradient_agrees_with_the_whole_hessian(model, matrix):
    curvature, owned = matrix
    loss = nn.functional.cross_entropy(Flat(model)(WINDOWS[0].tokens), WINDOWS[0].targets.flatten())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(owned.values()))])
    weights = torch.cat([parameter.detach().flatten() for parameter in owned.values()])
    products = split(weights * (curvature @ gradient), owned)
    parts = partition(model, WINDOWS[0], bins=4, classes=3)
    found, _ = gather_evidence(
        model, model.layers(), WINDOWS[0], None, partition=parts, generator=torch.Generator().manual_seed(1)
    )
    for layer in model.layers():
        expected = gather(layer.owned, products).sum(1)
        torch.testing.assert_close(found[layer.name].totals["grasp"] / 12, expected, rtol=1e-8, atol=1e-12)
