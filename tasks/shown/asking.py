"""What `python -m tasks` can be asked beside stages, how the words are read, and how an answer is given.

People get tables and sentences, with `--markdown` as a page shows them; with `--json` programs get one JSON document.
What is said meanwhile is then on stderr.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import RenderableType

from tasks.shown.console import log_to_console
from tasks.shown.tables import markdown, plain, print_all
from tasks.shown.wording import nearest

COMMANDS = {
    "check": "refuse bad parameters before any work, and mend what a kill left",
    "recommend": "the settings that are best for a budget of training, as was measured",
    "report": "the quality and the cost of each variant, and where to look further",
    "choose": "the fastest model that is good enough, or the best that is fast or small enough",
    "generate": "how a model goes on from a text",
    "score": "how likely a model takes each word of a text to be",
    "perplexity": "what a model makes of a text file of yours",
    "neuron": "all that is known of one neuron, in words or as a picture",
    "export": "a variant as files for other programs, checked and measured",
    "experiments": "what DVC's experiments changed, beside the quality that each variant reached",
    "front": "of all experiments, what nothing else beats in both quality and cost, and its picture",
    "track": "tell MLflow of the results, or of the experiment's",
    "promote": "the best variant that is good and cheap enough, as MLflow's champion",
}
"""Commands that are no stages, each a module of `tasks.commands`: they read results and change none."""
EXAMPLES = {
    "recommend": "--epochs 1 --keep 0.5",
    "choose": "--within 2",
    "generate": 'enhanced "my fellow americans"',
    "score": 'enhanced "my fellow americans"',
    "perplexity": "enhanced speech.txt",
    "neuron": "lstm.0 2 --picture card.png",
    "export": "enhanced --target onnx",
    "front": "--cost parameters",
    "track": "--failed",
    "promote": "--within 3 --cost latency --at-most 80",
}
"""Words after those commands that take some, as their help shows them."""
KINDS = ("png", "svg")
"""What a picture may be written as."""
NOT_READ = re.compile(r"argument (?P<option>\S+): invalid (?P<kind>int|float) value: (?P<value>.*)")
"""Argparse's words for what is no number."""
KIND_NAMES = {"int": "a whole number", "float": "a number"}
HELP, JSON, MARKDOWN = ("-h", "--help"), "--json", "--markdown"


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        values: For programs, as plain values with every digit.
        parts: For people, tables and sentences; a `Text` of Rich's is no sentence, and no line of it is folded.
        hints: What is of use in a terminal alone, such as commands to copy, below them.
    """

    values: Any
    parts: Sequence[RenderableType]
    hints: Sequence[str] = ()


class Words(argparse.ArgumentParser):
    """The words after a command; what is wrong with them is one sentence, as it is everywhere else."""

    def __init__(self, command: str, *, answers: bool = True) -> None:
        run = f"python -m tasks {command}"
        example = f"example: {run} {EXAMPLES[command]}" if command in EXAMPLES else None
        super().__init__(prog=run, description=f"{command.capitalize()}: {COMMANDS[command]}.", epilog=example)
        self._command = command
        if answers:
            how = self.add_mutually_exclusive_group()
            how.add_argument(JSON, action="store_true", help="print the answer as JSON")
            how.add_argument(MARKDOWN, action="store_true", help="print the answer as Markdown")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print, of a value as it is said everywhere else."""
        if wrong := NOT_READ.fullmatch(message):
            raise ValueError(f"Expected {KIND_NAMES[wrong['kind']]} for {wrong['option']}, got {wrong['value']}.")
        raise ValueError(f"{message[:1].upper()}{message[1:]}; `{self.prog} --help` says what there is.")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Return what the words say.

        Raises:
            ValueError: With one sentence, if they are not what the command takes.
        """
        given, more = self.parse_known_intermixed_args(words)
        if more:
            known = [option for action in self._actions for option in action.option_strings]
            hint = nearest(more[0], known)
            raise ValueError(f"Expected no more words after {self._command!r}, got {' '.join(more)!r}.{hint}")
        return given


def picture_kind(place: Path, option: str) -> str:
    """Return what a picture's file is to hold, png or svg, as its name says.

    Raises:
        ValueError: With one sentence, for another name.
    """
    kind = place.suffix.removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"Expected a file that ends in .png or .svg for {option}, got {str(place)!r}.")
    return kind


def answer(command: str, words: Sequence[str]) -> None:
    """Run a command and print what it found."""
    as_json, as_markdown = JSON in words, MARKDOWN in words
    with redirect_stdout(sys.stderr) if as_json or as_markdown else nullcontext():
        log_to_console()
        found: Answer | None = importlib.import_module(f"tasks.commands.{command}").run(words)
    if found is not None and as_json:
        sys.stdout.write(f"{json.dumps(plain(found.values), indent=2)}\n")
    elif found is not None and as_markdown:
        sys.stdout.write(f"{markdown(found.parts)}\n")
    elif found is not None:
        print_all(found.parts, found.hints)
