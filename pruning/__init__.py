"""Measure, choose and physically remove the neurons of sequence models.

The names below are the library's front door; each is imported when it is first asked for, so that a stage loads
(and DVC makes it depend on) only the modules that it uses.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "Slice": "pruning.core.neurons",
    "NeuronLayer": "pruning.core.neurons",
    "PrunableModule": "pruning.core.neurons",
    "gather": "pruning.core.neurons",
    "select": "pruning.core.neurons",
    "silence": "pruning.core.neurons",
    "record": "pruning.core.hooks",
    "build": "pruning.models",
    "adapt": "pruning.models.adapted",
    "discover": "pruning.discovery",
    "Windows": "pruning.data.windows",
    "Recipe": "pruning.training.loop",
    "train": "pruning.training.loop",
    "prune_gradually": "pruning.training.gradual",
    "Schedule": "pruning.training.gradual",
    "loss_of": "pruning.evaluation.measures",
    "size_of": "pruning.evaluation.measures",
    "energy_of": "pruning.evaluation.energy",
    "weights": "pruning.signals.weights",
    "hessian": "pruning.signals.hessian",
    "activations": "pruning.signals.activations",
    "gradients": "pruning.signals.gradients",
    "cooperative": "pruning.signals.cooperative",
    "criteria": "pruning.signals.criteria",
    "sensitivities": "pruning.signals.sensitivity",
    "surgeon": "pruning.signals.surgeon",
    "reconstruct": "pruning.repair.reconstruction",
    "Imitation": "pruning.repair.imitation",
    "imitate": "pruning.repair.imitation",
    "Teacher": "pruning.repair.imitation",
    "oracle": "pruning.ablation.oracle",
    "joint_removal": "pruning.ablation.oracle",
    "fuse": "pruning.fusion.fused",
    "retention": "pruning.selection.retention",
    "keep_of": "pruning.selection.retention",
    "adaptive_retention_rate": "pruning.selection.retention",
    "budget_of": "pruning.selection.budgets",
    "compare": "pruning.evaluation.comparison",
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
