"""The main job from end to end on the device, and training that is interrupted and resumed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.device.report import Report, made, recipe, windows_of


def pipeline(report: Report) -> None:
    """Run the main job from end to end on the device, for a continuous and a mixed model, in float32."""
    from pruning.core.devices import twin_of
    from pruning.core.neurons import select
    from pruning.evaluation.latency import latencies
    from pruning.evaluation.measures import loss_of
    from pruning.experiment.measured import MEASURED
    from pruning.experiment.measuring import USUAL, calibrate
    from pruning.fusion.fused import fusion
    from pruning.fusion.fusing import Fusing
    from pruning.repair.imitation import Imitation, imitate
    from pruning.repair.reconstruction import reconstruct
    from pruning.selection.allocation import Allocation
    from pruning.selection.retention import keep_of, retention
    from pruning.training.distillation import Teacher
    from pruning.training.loop import train

    vocabulary, width, steps = (300, 16, 10) if report.quick else (2000, 128, 150)
    corpus, valid = windows_of(16 * 20 * steps, vocabulary), windows_of(4000, vocabulary, seed=2)
    rows = []
    effort = {**USUAL, "hessian": {"probes": 16, "stability": 0.9}} if report.quick else USUAL
    for family in ("lstm", "mixed"):
        model = made(family, vocabulary=vocabulary, width=width, decoder="tied" if family == "lstm" else "untied",
                     dropout=0.1).to(report.device)  # fmt: skip
        model.expect(corpus.targets)
        took, mark = {}, time.perf_counter()

        def lap(name: str, took: dict[str, float] = took) -> None:
            nonlocal mark
            report.wait()
            took[name], mark = time.perf_counter() - mark, time.perf_counter()

        for _ in train(model, corpus, valid, recipe=recipe(1, 1.0, 8e-3), seed=1):
            pass
        model.eval()
        lap("train")
        calibration = calibrate(model, corpus, MEASURED, effort=effort, seed=1)
        lap("signals")
        signals = tuple(name for name in MEASURED if name not in ("surgeon", "criteria"))
        fused = fusion(calibration.tables, Fusing(strategy="simple", seed=1, signals=signals)).importance
        keep = keep_of(retention(fused, Allocation(retain=0.5, floor=4, scope="global"), variant="fused", by="fused"))
        dense = model.decoupled()
        phases = {"dense": model, "pruned": select(dense, keep)}
        phases["ridge"] = reconstruct(dense, keep, calibration.covariances, repair="ridge")
        lap("cut, ridge")
        imitation = Imitation(tokens=16 * 20 * steps, learning_rate=4e-3, warmup=0.05, clip=1.0)
        phases["imitate"] = imitate(phases["ridge"], dense, corpus, imitation=imitation)
        lap("imitate")
        phases["finetuned"] = twin_of(phases["imitate"])
        teacher = Teacher.of(model, share=0.5)
        for _ in train(phases["finetuned"], corpus, valid, recipe=recipe(1, 0.2, 1e-3), seed=1, teacher=teacher):
            pass
        lap("finetune")
        perplexity = {name: loss_of(each, valid).perplexity for name, each in phases.items()}
        lap("evaluate")
        steps_a = latencies({"dense": model, "finetuned": phases["finetuned"]}, batch=1, repeats=20)
        lap("latency")
        cells = [f"{name} {value:.1f}" for name, value in perplexity.items()]
        spent = ", ".join(f"{name} {value:.1f}" for name, value in took.items())
        a_step = ", ".join(f"{name} {1e3 * latency.seconds:.2f}" for name, latency in steps_a.items())
        rows.append((family, ", ".join(cells), spent, a_step))
        if not all(map(np.isfinite, perplexity.values())):
            raise FloatingPointError(f"Expected finite perplexities of {family}, got {perplexity}.")
    report.table(("family", "perplexity", "seconds", "ms a step at batch 1"), rows)


def resumed(report: Report) -> None:
    """Train once without and once with an interruption, and compare the weights."""
    from pruning.training.loop import Trained, train

    rows, wrong = [], []
    corpus, valid = windows_of(16 * 20 * 8, 300), windows_of(1000, 300, seed=2)
    for family in ("lstm", "mixed"):

        def start(family: str = family) -> Any:
            return made(family, vocabulary=300, width=32, dropout=0.2).to(report.device)

        def whole(start: Callable[[], Any] = start) -> dict[str, Tensor]:
            model = start()
            for _ in train(model, corpus, valid, recipe=recipe(3, 1.0), seed=1):
                pass
            return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

        one, again = whole(), whole()
        before = next(iter(train(start(), corpus, valid, recipe=recipe(3, 1.0), seed=1)))
        stored = {name: tensor.cpu().clone() for name, tensor in before.tensors.items()}  # as a file holds it
        model = start()
        state = Trained(stored, before.history, before.finished)
        for _ in train(model, corpus, valid, recipe=recipe(3, 1.0), seed=1, resume=state):
            pass
        two = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        repeat, resume = (max(float((one[n] - other[n]).abs().max()) for n in one) for other in (again, two))
        rows.append((family, f"{repeat:.1e}", f"{resume:.1e}", "the same bytes" if resume == 0 else ""))
        if resume > max(10 * repeat, 1e-6 if repeat else 0):
            wrong.append(family)
    report.table(("family", "two runs apart", "uninterrupted and resumed apart", ""), rows)
    if wrong:
        raise AssertionError(f"resumed training of {wrong} ends elsewhere than uninterrupted training")
