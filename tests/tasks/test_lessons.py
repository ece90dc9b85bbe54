"""Fine-tuning multiplies, and comes by its logits, as training did, unless it is told otherwise."""

from typing import Any

import pytest
import torch

import pruning
from pruning.core.progress import silently
from pruning.models.base import Measurable
from pruning.training.recipes import Recipe
from tasks.common import lessons
from tasks.common.job import Job
from tasks.common.pipeline import EXPERIMENT, read_stage
from tasks.common.reading import read_yaml
from tasks.experiment.prune import treatment
from tasks.experiment.settings import checked as checked_experiment
from tasks.settings.parameters import checked
from tests.projects import ROOT
from tests.tiny import tiny

TRAINED = {"type": "bfloat16", "softmax": "sampled", "sampled": 300}
DEFAULT = {"type": "float32", "softmax": "full", "sampled": 8192}


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(lessons, "read_batches", lambda *_, **__: [])


def values(**sections: dict[str, object]) -> Any:
    read = read_yaml(ROOT / "params.yaml")
    for name, changes in sections.items():
        read[name] |= changes
    return read


def asked(dense: Measurable, **sections: dict[str, object]) -> lessons.Lessons:
    read = values(**sections)
    return lessons.read_lessons(Job(read_stage("finetune", "dense", read), checked(read), silently), dense)


def recipe(dense: Measurable, **sections: dict[str, object]) -> Recipe:
    return asked(dense, **sections).recipe


def how(recipe: Recipe) -> dict[str, object]:
    return {name: getattr(recipe, name) for name in lessons.AS_TRAINED}


def test_by_default_all_is_as_before() -> None:
    assert how(recipe(tiny())) == DEFAULT


def test_fine_tuning_follows_training_in_what_it_leaves_open() -> None:
    assert how(recipe(tiny(), train=TRAINED)) == TRAINED
    own = {"softmax": "chunked", "type": "float32"}
    assert how(recipe(tiny(), train=TRAINED, finetune=own)) == TRAINED | own


def test_a_model_of_the_users_own_has_all_its_outputs_at_once_whatever_training_would_do() -> None:
    own = pruning.adapt(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), torch.zeros(2, 3)
    )
    assert how(recipe(own, train=TRAINED)) == TRAINED | {"softmax": "full"}


def test_a_model_is_trained_with_the_dropout_that_fine_tuning_asks_for_and_else_with_its_own() -> None:
    model = tiny(dropout=0.4)
    assert asked(model).begun(model) is model
    other, inputs = asked(model, finetune={"dropout": 0.0}).begun(model), torch.ones(5, 2, dtype=torch.long)
    for _ in range(2):  # in training too, where the model itself draws each time
        torch.testing.assert_close(other.train()(inputs)[0], model.eval()(inputs)[0], rtol=0, atol=0)
    assert model.config.dropout == 0.4


def test_the_experiments_extra_training_follows_too() -> None:
    read, own = values(train=TRAINED), read_yaml(ROOT / EXPERIMENT / "params.yaml")
    stage = read_stage("prune", "0.75", own, EXPERIMENT)
    job = Job(stage, checked(read), silently, checked_experiment(own))
    assert how(treatment(job).recipe) == TRAINED
