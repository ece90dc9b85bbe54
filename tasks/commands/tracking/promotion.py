"""Which variant is promoted: the best of those within a tolerance of dense that cost little enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pruning.evaluation.comparison import PHASES, measure_of
from tasks.commands.tracking.state import State
from tasks.commands.tracking.store import PROJECT
from tasks.common.latency import BATCHES

JUDGED = "valid"
"""The split that is judged by; the test split tells what the judgement was worth."""
MODEL, ALIAS = PROJECT, "champion"
"""Where whoever uses models finds it: `models:/neuron-pruning@champion`."""


@dataclass(frozen=True)
class Candidate:
    """A variant beside the dense model with the same extra training.

    Attributes:
        variant: Its name.
        loss: Its perplexity on the validation split, or its loss where that has none.
        change: What that is above dense's, relative to it.
        cost: What it costs, as a share of what dense does.
        version: Of the registered model, where it is one already.
    """

    variant: str
    loss: float
    change: float
    cost: float
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a champion must fulfil: `promotion` of params.yaml.

    Attributes:
        tolerance: Largest change of perplexity from dense's.
        cost: What it is to cost little of: neurons, parameters, multiply_adds or latency.
        at_most: Largest share of dense's cost.
    """

    tolerance: float
    cost: str
    at_most: float

    def passed(self, candidate: Candidate) -> bool:
        """Return whether a candidate is good and cheap enough."""
        return candidate.change <= self.tolerance and candidate.cost <= self.at_most

    def verdict(self, candidate: Candidate) -> str:
        """Return in words whether a candidate passes."""
        fails = {"quality": candidate.change > self.tolerance, self.cost: candidate.cost > self.at_most}
        return (
            f"fails: {', '.join(name for name, failed in fails.items() if failed)}" if any(fails.values()) else "passes"
        )

    def best(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return the best that passes, the cheaper of equals; None if none does.

        >>> gate = Gate(tolerance=0.05, cost="parameters", at_most=0.8)
        >>> several = [Candidate("a", 104, 0.04, 0.5), Candidate("b", 102, 0.02, 0.7), Candidate("c", 101, 0.01, 0.9)]
        >>> gate.best(several).variant
        'b'
        """
        passing = [candidate for candidate in candidates if self.passed(candidate)]
        return min(passing, key=lambda candidate: (candidate.loss, candidate.cost), default=None)

    def nearest(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return the best of those that are cheap enough, or of all: what an unfulfilled gate is told with."""
        cheap = [candidate for candidate in candidates if candidate.cost <= self.at_most]
        return min(cheap or candidates, key=lambda candidate: candidate.loss)


def candidates_of(state: State, cost: str) -> list[Candidate]:
    """Return each variant but the dense one."""
    control = state.parameters.compare.control
    loss, costs = _losses(state), _costs(state, cost)
    dense = loss[control]
    measured = {name: (value - dense) / abs(dense) for name, value in loss.items()}
    return [Candidate(name, loss[name], measured[name], costs[name]) for name in loss if name != control]


def incumbent_of(state: State, cost: str, version: Any) -> Candidate | None:
    """Return the present champion as a candidate beside today's dense model; None if it was judged on other text.

    Args:
        state: Today's results.
        cost: What is counted.
        version: The registered model's version that bears the alias.
    """
    tags, control = version.tags, state.parameters.compare.control
    if tags.get("corpus") != corpus_of(state) or f"cost.{cost}" not in tags:
        return None
    loss, dense = float(tags["loss"]), _losses(state)[control]
    share = float(tags[f"cost.{cost}"]) / (1.0 if cost == "latency" else _sizes(state, cost)[control])
    return Candidate(tags["variant"], loss, (loss - dense) / abs(dense), share, str(version.version))


def tags_of(state: State, candidate: Candidate) -> dict[str, str]:
    """Return what a later promotion needs to know of a version."""
    costs = {cost: _sizes(state, cost)[candidate.variant] for cost in ("neurons", "parameters", "multiply_adds")}
    costs["latency"] = _costs(state, "latency")[candidate.variant]
    return {
        "variant": candidate.variant,
        "corpus": corpus_of(state),
        "loss": repr(candidate.loss),
        **{f"cost.{name}": repr(value) for name, value in costs.items()},
    }


def corpus_of(state: State) -> str:
    """Return what DVC knows the text by, or a user's own code, which has the data."""
    if state.parameters.model.source is None:
        return state.hashes[state.stage("prepare").outputs["corpus"]]
    return next(str(dep["md5"]) for dep in state.lock["train"]["deps"] if dep["path"] == "own")


def measure_by(state: State) -> str:
    """Return what candidates are judged by: `perplexity`, or `loss` where there is none."""
    return measure_of(state.table(state.stage("compare"), "comparison"), "finetuned_{}")


def _losses(state: State) -> dict[str, float]:
    """Return the perplexity of each variant after fine-tuning, or its loss, on the split that is judged by."""
    losses = {}
    for variant in state.parameters.variants:
        rows = state.table(state.stage("evaluate", variant), "evaluation")
        (row,) = rows[(rows["phase"] == PHASES[-1]) & (rows["split"] == JUDGED)].to_dict("records")
        losses[variant] = float(row[measure_by(state)])
    return losses


def _costs(state: State, cost: str) -> dict[str, float]:
    """Return what each variant costs as a share of dense's."""
    if cost == "latency":
        measured = state.table(state.stage("timing"), "latency")
        rows = measured[measured["batch"] == min(BATCHES)].set_index("model")
        return {str(name): 1 / float(speed_up) for name, speed_up in rows["speed_up"].items()}
    sizes = _sizes(state, cost)
    return {name: size / sizes[state.parameters.compare.control] for name, size in sizes.items()}


def _sizes(state: State, cost: str) -> dict[str, float]:
    compared = state.table(state.stage("compare"), "comparison").set_index("variant")
    return {str(name): float(size) for name, size in compared[cost].items()}
