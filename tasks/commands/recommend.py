"""`python -m tasks recommend`: the settings that were measured to be best for a budget of training."""

import math
from collections.abc import Sequence
from functools import reduce

from rich.console import RenderableType

from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml
from tasks.settings.parameters import Parameters, checked
from tasks.settings.recipes import SETTLED, VARIANT, recipe_for, recommended
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import shown_table


def run(words: Sequence[str]) -> Answer:
    """Return what to set, beside what params.yaml has now, and the command that tries it.

    Raises:
        Unexpected: With one sentence, for a budget that there is not, or if params.yaml is wrong.
    """
    parser = Words("recommend")
    parser.add_argument("--keep", type=float, help="share of the neurons that stay (prune.retain, unless it is given)")
    parser.add_argument(
        "--epochs", type=float, default=1.0, help="passes over the training text that there is time for"
    )
    given = parser.read(words)
    parameters = checked(read_yaml(PARAMETERS))
    keep = parameters.prune.retain if given.keep is None else given.keep
    trained = _trained(parameters)
    settings = recommended(keep, given.epochs, trained)
    if parameters.model.source:
        settings["finetune.dropout"] = None  # which its code says
    now = {name: reduce(getattr, name.split("."), parameters) for name in settings}
    changes = {name: value for name, value in settings.items() if value != now[name]}
    rows = [
        {"setting": name, "now": _written(now[name]), "recommended": _written(value)}
        for name, value in settings.items()
    ]
    title = f"To keep {keep:.0%} of the neurons,\nwith {_times(given.epochs, 'epoch')} of training"
    said = _said(parameters, given.epochs, trained)
    command = " ".join(["dvc exp run", *(f"-S {name}={_written(value)}" for name, value in changes.items())])
    hint = f"try it: {command}" if changes else f"{PARAMETERS} has them all"
    values = {"variant": VARIANT, "settings": settings, "changes": changes}
    return Answer(values, [shown_table(title, rows), *said], [hint])


def _written(value: object) -> str:
    """Return a value as params.yaml has it."""
    return "null" if value is None else f"{value}"


def _trained(parameters: Parameters) -> float:
    """Return the passes that the dense model learns from; one of the user's own is taken as trained to the end."""
    return math.inf if parameters.model.source else parameters.train.epochs * parameters.train.portion


def _said(parameters: Parameters, epochs: float, trained: float) -> list[RenderableType]:
    """Return which variant to look at, and what the recipe rests on."""
    recipe, passes = recipe_for(epochs, trained), "" if parameters.model.source else f" ({_times(trained, 'pass')})"
    which = f"{'trained to the end' if trained >= SETTLED else 'trained briefly'}{passes}"
    said = [f"the variant to take is `{VARIANT}`; for a dense model {which}, see {recipe.page}"]
    if parameters.model.source:
        said.append("what was measured was fine-tuned without dropout; what yours has is in its code")
    if VARIANT not in parameters.variants:
        said.append(f"{PARAMETERS} has no such variant; add `{VARIANT}: {{by: surgeon, scope: absolute}}`")
    return [*said]


def _times(number: float, word: str) -> str:
    """Return a number of epochs or passes in words."""
    return f"{number:g} {word}" if number == 1 else f"{number:g} {word}{'es' if word.endswith('s') else 's'}"
