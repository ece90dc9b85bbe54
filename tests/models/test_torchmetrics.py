"""Metrics of the package torchmetrics, where it is installed, beside the library's own and those that need nothing."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    """The package, which may be missing, or be unable to load what it stands on."""
    try:
        return importlib.import_module("torchmetrics")
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"torchmetrics does not load: {error}")


def network(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))


INPUTS = [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
CLASSES = [torch.arange(8) * (seed + 2) % 3 for seed in range(3)]


def judged(net: nn.Module, data: list[tuple[Tensor, Tensor]], loss: Any, metrics: Any) -> Any:
    return pruning.loss_of(pruning.adapt(net, data[0][0], loss=loss, metrics=metrics), data)


@pytest.mark.parametrize("together", [False, True], ids=["a list", "a collection"])
def test_accuracy_and_recall_of_classes(torchmetrics: Any, together: bool) -> None:
    each = [getattr(torchmetrics, name)(task="multiclass", num_classes=3) for name in ("Accuracy", "Recall")]
    metrics = torchmetrics.MetricCollection(each) if together else each
    found = judged(network(3), list(zip(INPUTS, CLASSES, strict=True)), nn.CrossEntropyLoss(), metrics)
    assert found.metrics["MulticlassAccuracy"] == pytest.approx(found.metrics["accuracy"])
    assert found.better == {"accuracy": "higher", "MulticlassAccuracy": "higher", "MulticlassRecall": "higher"}


def test_errors_of_numbers_also_where_targets_lack_a_dimension_of_one(torchmetrics: Any) -> None:
    metrics = [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError(), torchmetrics.R2Score()]
    data = [(inputs, inputs.sum(1)) for inputs in INPUTS]
    found = judged(network(1), data, nn.MSELoss(), metrics)
    assert found.metrics["MeanSquaredError"] == pytest.approx(found.metrics["mean_squared_error"], rel=1e-5)
    assert found.metrics["MeanAbsoluteError"] == pytest.approx(found.metrics["mean_absolute_error"], rel=1e-5)
    assert (found.better["MeanSquaredError"], found.better["R2Score"]) == ("lower", "higher")


@pytest.mark.usefixtures("torchmetrics")
def test_the_perplexity_of_tokens_some_of_which_do_not_count() -> None:
    perplexity = importlib.import_module("torchmetrics.text").Perplexity(ignore_index=-100)
    torch.manual_seed(0)
    tokens = [torch.randint(0, 9, (4, 7)) for _ in range(3)]
    data = [(text, torch.where(text > 6, -100, (text + 1) % 7)) for text in tokens]
    net = nn.Sequential(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, 9))
    found = judged(net, data, nn.CrossEntropyLoss(), [perplexity])
    assert found.metrics["Perplexity"] == pytest.approx(found.perplexity, rel=1e-5)
    assert found.better["Perplexity"] == "lower"


class Kept:
    """What a metric of the package is to the library: updated, computed, reset, its state on a device."""

    higher_is_better = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        assert outputs.device == targets.device == self.device
        self.shapes.append((outputs.shape, targets.shape))

    def compute(self) -> Tensor:
        return torch.tensor(float(len(self.shapes)))

    def reset(self) -> None:
        self.shapes = []


class Several:
    """A collection of them, which is no mapping."""

    def __init__(self, **each: Any) -> None:
        self.each = each

    def items(self) -> Any:
        return self.each.items()


def test_metrics_of_a_collection_have_its_names_and_targets_come_in_the_outputs_shape() -> None:
    kept = Kept()
    data = [(inputs, inputs.sum(1)) for inputs in INPUTS]
    found = judged(network(1), data, nn.MSELoss(), Several(one=kept))
    assert (found.metrics["one"], found.better["one"]) == (3.0, "lower")
    assert kept.shapes == [(torch.Size([8, 1]), torch.Size([8, 1]))] * 3


def test_a_metric_that_does_not_say_which_numbers_are_better_is_refused_by_its_class() -> None:
    kept = Kept()
    kept.higher_is_better = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Expected which numbers of the metric 'Kept' are better, got Kept alone"):
        judged(network(1), [(INPUTS[0], INPUTS[0].sum(1))], nn.MSELoss(), [kept])
