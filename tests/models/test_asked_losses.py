"""Losses that look for their part in what a network gives, and networks' own losses, asked what they judge."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning
from pruning.models.classes import Classes
from pruning.models.examples import Examples, OwnExamples


class Named(dict):
    """As outputs of `transformers`: a dictionary whose parts are attributes, too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


@dataclass
class Outputs:
    logits: torch.Tensor
    hidden: torch.Tensor


FORMS = {"named": lambda **parts: Named(parts), "dataclass": Outputs, "object": SimpleNamespace, "dict": dict}


class Words(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.embed, self.body, self.last, self.form = nn.Embedding(6, 4), nn.Linear(4, 8), nn.Linear(8, 6), form

    def forward(self, tokens):
        hidden = self.body(self.embed(tokens)).relu()
        return self.form(logits=self.last(hidden), hidden=hidden)


def logits_in(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


def shifted(outputs, tokens):
    """Judge each place by the token of the next one, as language models do."""
    return F.cross_entropy(logits_in(outputs)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def aligned(outputs, tokens):
    return F.cross_entropy(logits_in(outputs).flatten(0, 1), tokens.flatten())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("loss", "kind"), [(shifted, Examples), (aligned, Classes)])
def test_a_loss_that_reads_a_part_of_the_outputs_is_asked_whose_row_a_number_is_of(form, loss, kind):
    torch.manual_seed(0)
    batches = [(tokens, tokens) for tokens in torch.randint(6, (3, 4, 5))]
    model = pruning.adapt(Words(FORMS[form]), batches[0][0], loss=loss)
    found = pruning.loss_of(model, batches)
    assert type(model.objective(batches[0][1])) is kind
    assert ("accuracy" in found.metrics) is (kind is Classes)
    with torch.no_grad():
        assert found.mean == pytest.approx(sum(loss(model(x), y).item() for x, y in batches) / 3, rel=1e-5)


def test_labels_that_are_fewer_than_logits_belong_to_whole_examples_of_a_networks_own_loss():
    class Speech(nn.Module):
        """As those of `transformers`: labels are padded by -100, and frames are more than labels."""

        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Conv1d(1, 8, 3), nn.Linear(8, 4)

        def forward(self, sound, labels=None):
            logits = self.last(self.body(sound[:, None]).relu().transpose(1, 2))
            if labels is None:
                return {"logits": logits}
            spoken, frames = labels >= 0, torch.full((len(sound),), logits.shape[1])
            steps = logits.log_softmax(-1).transpose(0, 1)
            return {"logits": logits, "loss": F.ctc_loss(steps, labels[spoken], frames, spoken.sum(1))}

    torch.manual_seed(0)
    batches = [{"sound": torch.randn(3, 12), "labels": torch.randint(1, 4, (3, 4))} for _ in range(3)]
    for batch in batches:
        batch["labels"][0, 2:] = -100
    found = pruning.discover(Speech(), {"sound": batches[0]["sound"]})
    importance = pruning.importance(found, batches, signals=["surgeon", "gradients"])
    assert type(importance.model.objective(batches[0]["labels"])) is OwnExamples
    smaller = pruning.prune(found, importance)
    with torch.no_grad():
        own = sum(smaller.module(**batch)["loss"].item() for batch in batches) / 3
    assert pruning.evaluate(smaller, batches).mean == pytest.approx(own, rel=1e-5)


def test_a_part_of_a_batch_that_may_be_its_targets_under_another_name_is_not_left_out_unsaid():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [{"pixels": torch.randn(5, 4), "digit": torch.randint(3, (5,))} for _ in range(3)]
    found = pruning.discover(network, batches[0]["pixels"])
    with pytest.raises(TypeError, match=r"let `split` say .* `lambda batch: \(…, batch\['digit'\]\)`"):
        pruning.importance(found, batches, nn.CrossEntropyLoss())
    assert pruning.importance(found, batches, signals=["weights"]).by == "fused"  # no loss is given

    def split(batch):
        return batch["pixels"], batch["digit"]

    importance = pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["weights"], split=split)
    assert pruning.evaluate(importance.model, batches).metrics["accuracy"] >= 0


def test_a_network_that_gives_its_loss_for_targets_alone_is_pruned_without_both():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.box = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, images, targets=None):
            boxes = self.box(self.body(images).relu())
            return {"boxes": boxes} if targets is None else {"loss": F.mse_loss(boxes, targets)}

    torch.manual_seed(0)
    batches = list(torch.randn(3, 5, 4))
    found = pruning.discover(Detector(), batches[0])
    importance = pruning.importance(found, batches)
    assert "gradients" in importance.left_out
    assert pruning.prune(found, importance, keep=0.5).widths() == (4,)


def test_accuracy_that_is_asked_for_by_its_name_is_that_of_the_targets_that_count():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(9, 4), torch.randint(3, (9,))) for _ in range(3)]
    model = pruning.adapt(network, batches[0][0], loss=nn.CrossEntropyLoss(ignore_index=0))
    right, counted = (
        sum(int((how(network(x).argmax(1), y)).sum()) for x, y in batches)
        for how in (lambda guess, y: (guess == y) & (y != 0), lambda guess, y: y != 0)  # noqa: ARG005 - of both alike
    )
    found = pruning.evaluate(model, batches, metrics=["accuracy"])
    assert found.metrics["accuracy"] == pytest.approx(right / counted)
    assert found.accuracy == pytest.approx(right / counted)
