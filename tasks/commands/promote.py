"""`python -m tasks promote`: name the best variant that passes the gate `champion`, for whoever uses models."""

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from tasks.commands.track import send
from tasks.commands.tracking.promotion import (
    ALIAS,
    JUDGED,
    MODEL,
    Candidate,
    Gate,
    candidates_of,
    incumbent_of,
    measure_by,
    tags_of,
)
from tasks.commands.tracking.sending import DIGEST
from tasks.commands.tracking.state import State
from tasks.commands.tracking.store import opened, unreachable
from tasks.common.parameters import Unexpected
from tasks.settings.bounds import validated
from tasks.settings.sections import Promotion
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import shown_table


def run(words: Sequence[str]) -> Answer:
    """Register the best variant that passes the gate under the alias `champion`, and return how each was judged.

    Raises:
        Unexpected: If none passes, the results are not whole, or MLflow cannot be reached.
    """
    parser = Words("promote")
    parser.add_argument("--within", type=float, metavar="PERCENT", help="of dense's quality; else promotion.tolerance")
    parser.add_argument("--cost", help="neurons, parameters, multiply_adds or latency; else promotion.cost")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="of dense's cost; else promotion.at_most")
    given = parser.read(words)
    _check_percent(given)
    state = State()
    gate = _gate(state, given)
    candidates = candidates_of(state, gate.cost)
    send("python -m tasks promote", state)
    try:
        with opened() as (client, experiment):
            version = _champion(client)
            incumbent = version and incumbent_of(state, gate.cost, version)
            best = gate.best([*([incumbent] if incumbent else []), *candidates])
            number = best and (best.version or _promoted(client, experiment, state, best))
    except Unexpected:
        raise
    except Exception as error:  # whatever a server, a database or its driver raises
        raise Unexpected(f"{unreachable(error)} Nothing was promoted.") from error
    if best is None:
        raise Unexpected(_refusal(gate, gate.nearest(candidates), version))
    return _answer(state, gate, [*([incumbent] if incumbent else []), *candidates], best, str(number))


def _check_percent(given: argparse.Namespace) -> None:
    """Refuse what no share in the section `promotion` can be, in the words' own unit."""
    if given.within is not None and not 0 <= given.within <= 1000:
        raise Unexpected(f"Expected --within from 0 to 1,000 percent, got {given.within:g}.")
    if given.at_most is not None and not 0 < given.at_most <= 1000:
        raise Unexpected(f"Expected --at-most above 0 and at most 1,000 percent, got {given.at_most:g}.")


def _gate(state: State, given: argparse.Namespace) -> Gate:
    """Return the gate of params.yaml, with what the words say in its place."""
    section = state.parameters.promotion.model_dump()
    shares = {"tolerance": given.within, "at_most": given.at_most}
    section |= {name: share / 100 for name, share in shares.items() if share is not None}
    section |= {"cost": given.cost} if given.cost is not None else {}
    return Gate(**validated(Promotion, section, "the words after 'promote'").model_dump())


def _champion(client: Any) -> Any:
    """Return the version that bears the alias, None if there is none."""
    registered = client.search_registered_models(f"name = '{MODEL}'")
    number = registered[0].aliases.get(ALIAS) if registered else None
    return client.get_model_version(MODEL, number) if number else None


def _promoted(client: Any, experiment: str, state: State, best: Candidate) -> str:
    """Register a variant's logged model, unless it is, let it bear the alias, and return its version.

    Raises:
        Unexpected: If no model of it is logged.
    """
    import mlflow

    of_variant = f"tags.`{DIGEST}` = '{state.digest}' and tags.variant = '{best.variant}'"
    runs = client.search_runs([experiment], of_variant)
    models = [model.model_id for run in runs[:1] if run.outputs for model in run.outputs.model_outputs]
    if not models:
        why = runs[0].data.tags.get("no model", "the run has none") if runs else "the state is not logged"
        raise Unexpected(f"Expected a logged model of {best.variant} to promote, got none: {why}.")
    source = f"models:/{models[0]}"
    versions = client.search_model_versions(f"name = '{MODEL}'")
    known = [version.version for version in versions if version.model_id == models[0] or version.source == source]
    if not known:
        with redirect_stderr(io.StringIO()):  # which says that it made what is said here
            known = [mlflow.register_model(source, MODEL, tags=tags_of(state, best)).version]
    number = str(known[0])
    client.set_registered_model_alias(MODEL, ALIAS, number)
    return number


def _refusal(gate: Gate, nearest: Candidate, champion: Any) -> str:
    stays = f"; version {champion.version} stays {ALIAS}" if champion else ""
    return (
        f"Expected a variant within {gate.tolerance:.1%} of dense at no more than {gate.at_most:.0%} of its "
        f"{gate.cost}, got none{stays}. The nearest is {nearest.variant}: {nearest.change:+.1%} at {nearest.cost:.0%}."
    )


def _answer(state: State, gate: Gate, candidates: Sequence[Candidate], best: Candidate, number: str) -> Answer:
    measure = measure_by(state)
    rows = [
        {
            "variant": f"{candidate.variant}, version {candidate.version}" if candidate.version else candidate.variant,
            f"{measure},\n{JUDGED}": f"{candidate.loss:.1f}" if measure == "perplexity" else f"{candidate.loss:.4g}",
            "change from\ndense": f"{candidate.change:+.1%}",
            f"{gate.cost},\nof dense's": f"{candidate.cost:.0%}",
            "gate": ALIAS if candidate == best else gate.verdict(candidate),
        }
        for candidate in candidates
    ]
    title = f"Gate: within {gate.tolerance:.1%} of dense, at most {gate.at_most:.0%} of its {gate.cost}"
    values = {
        "gate": vars(gate),
        "model": MODEL,
        "version": number,
        "alias": ALIAS,
        "champion": vars(best),
        "candidates": [vars(candidate) for candidate in candidates],
    }
    stays = "is still" if best.version else "is now"
    return Answer(values, [shown_table(title, rows), f"{best.variant}, version {number} of {MODEL}, {stays} {ALIAS}"])
