"""The library's front door: each public name beside its home, for people, type checkers and `__init__.py` alike."""

from .ablation.intervention import Intervention as Intervention
from .ablation.intervention import intervention as intervention
from .ablation.joint_removal import joint_removal as joint_removal
from .ablation.oracle import Ablation as Ablation
from .ablation.oracle import oracle as oracle
from .core.hooks import record as record
from .core.neurons import (
    NeuronLayer as NeuronLayer,
)
from .core.neurons import (
    PrunableModule as PrunableModule,
)
from .core.neurons import (
    Slice as Slice,
)
from .core.neurons import (
    gather as gather,
)
from .core.neurons import (
    mask as mask,
)
from .core.neurons import (
    select as select,
)
from .core.workers import Spread as Spread
from .data.windows import Windows as Windows
from .discovery import discover as discover
from .evaluation.comparison import compare as compare
from .evaluation.energy import energy_of as energy_of
from .evaluation.language import continuation as continuation
from .evaluation.language import surprisals as surprisals
from .evaluation.measures import loss_of as loss_of
from .evaluation.measures import size_of as size_of
from .evaluation.memory import memory_of as memory_of
from .experiment.judging import compare_pruning_results as compare_pruning_results
from .experiment.measuring import calibrate as calibrate
from .experiment.runs import (
    run_enhanced_pruning as run_enhanced_pruning,
)
from .experiment.runs import (
    run_traditional_pruning as run_traditional_pruning,
)
from .experiment.trials import Selection as Selection
from .experiment.trials import Texts as Texts
from .experiment.trials import Treatment as Treatment
from .experiment.trials import run_dense_control as run_dense_control
from .experiment.verdict import verdict as verdict
from .export import onnx_of as onnx_of
from .export import program_of as program_of
from .export.beside import side_by_side as side_by_side
from .export.targets import exported as exported
from .fusion.fused import fuse as fuse
from .fusion.fusing import Fusing as Fusing
from .models import build as build
from .models.adapting import adapt as adapt
from .models.metrics import Metric as Metric
from .models.objectives import Objective as Objective
from .repair.imitation import Imitation as Imitation
from .repair.imitation import imitate as imitate
from .repair.reconstruction import reconstruct as reconstruct
from .saving import deployed as deployed
from .saving import restore as restore
from .saving import save as save
from .selection.adaptive import adaptive_retention_rate as adaptive_retention_rate
from .selection.allocation import Allocation as Allocation
from .selection.budgets import budget_of as budget_of
from .selection.retention import (
    keep_of as keep_of,
)
from .selection.retention import (
    retention as retention,
)
from .signals.activations import activations as activations
from .signals.cooperative import cooperative as cooperative
from .signals.criteria import criteria as criteria
from .signals.gradients import gradients as gradients
from .signals.hessian import hessian as hessian
from .signals.sensitivity import sensitivities as sensitivities
from .signals.surgeon import surgeon as surgeon
from .signals.weights import weights as weights
from .steps.iterating import Round as Round
from .steps.iterating import Rounds as Rounds
from .steps.iterating import prune_iteratively as prune_iteratively
from .steps.measuring import Importance as Importance
from .steps.measuring import importance as importance
from .steps.removing import prune as prune
from .steps.shallow import Depth as Depth
from .steps.shallow import depth as depth
from .steps.shallow import shorten as shorten
from .steps.teaching import evaluate as evaluate
from .steps.teaching import finetune as finetune
from .training.distillation import Teacher as Teacher
from .training.gradual import prune_gradually as prune_gradually
from .training.loop import train as train
from .training.recipes import Recipe as Recipe
from .training.thinning import Schedule as Schedule
from .training.thinning import Thinning as Thinning
