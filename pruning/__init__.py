"""Measure, choose and physically remove the neurons of sequence models.

The names below are the library's front door; each is imported when it is first asked for, so that a stage loads
(and DVC makes it depend on) only the modules that it uses.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "Slice": "pruning.layers",
    "NeuronLayer": "pruning.layers",
    "PrunableModule": "pruning.layers",
    "gather": "pruning.layers",
    "select": "pruning.layers",
    "silence": "pruning.layers",
    "record": "pruning.record",
    "build": "pruning.models",
    "adapt": "pruning.adapting",
    "discover": "pruning.discovery",
    "Windows": "pruning.batching",
    "Recipe": "pruning.training",
    "train": "pruning.training",
    "prune_gradually": "pruning.gradual",
    "Schedule": "pruning.gradual",
    "loss_of": "pruning.evaluation",
    "size_of": "pruning.evaluation",
    "energy_of": "pruning.energy",
    "weights": "pruning.signals.weights",
    "hessian": "pruning.signals.hessian",
    "activations": "pruning.signals.activations",
    "gradients": "pruning.signals.gradients",
    "cooperative": "pruning.signals.cooperative",
    "criteria": "pruning.signals.criteria",
    "sensitivities": "pruning.sensitivity",
    "surgeon": "pruning.signals.surgeon",
    "reconstruct": "pruning.reconstruction",
    "Imitation": "pruning.distillation",
    "imitate": "pruning.distillation",
    "Teacher": "pruning.distillation",
    "oracle": "pruning.oracle",
    "joint_removal": "pruning.oracle",
    "fuse": "pruning.fusion",
    "retention": "pruning.retention",
    "keep_of": "pruning.retention",
    "adaptive_retention_rate": "pruning.retention",
    "budget_of": "pruning.budgets",
    "compare": "pruning.comparison",
    "run_traditional_pruning": "pruning.experiment.runs",
    "run_enhanced_pruning": "pruning.experiment.runs",
    "run_dense_control": "pruning.experiment.trials",
    "Texts": "pruning.experiment.trials",
    "Treatment": "pruning.experiment.trials",
    "calibrate": "pruning.experiment.measuring",
    "compare_pruning_results": "pruning.experiment.judging",
    "verdict": "pruning.experiment.verdict",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _FrontDoor(ModuleType):
    """The package, in which a submodule that bears a public name (`retention`, `record`) does not take its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor
