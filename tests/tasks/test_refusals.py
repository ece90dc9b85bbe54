"""What is wrong is said before any work, in one true sentence, and nothing is changed: a table of wrong inputs."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic_core.core_schema import ErrorType

from pruning.data.corpus import SPLITS, Fractions
from tasks.__main__ import main
from tasks.commands.foreseen import check_memory, read_text
from tasks.common.interruption import INTERRUPTED
from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.own import adapted, read_own
from tasks.settings.parameters import Parameters, checked
from tasks.shown.wording import sentence
from tasks.stages.prepare import read_texts
from tests.projects import ENVIRONMENT, ROOT, TINY, copy, run, set_parameters, stage, tiny_project, write_text

Change = Callable[[Path], Any]
"""What is done to a project to make it wrong."""
JARGON = re.compile(r"Input should|String should|should have|pattern|constrained|literal_error|pydantic|Traceback|\n.")
"""Words of the checker's own, which tell a user nothing; and a second line."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    for name in ("dvc.yaml", "params.yaml", "learned", "own"):
        copy(ROOT / name, folder / name)
    write_text(folder / "text")
    set_parameters(folder, TINY, replace=("variants",))
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where commands run."""
    folder = tmp_path / "project"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        monkeypatch.delitem(sys.modules, name)
    for cached in (read_own, adapted):
        cached.cache_clear()
    return folder


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the sentence with which `check` refuses the project; it must be one, and nothing may change."""
    before, code = contents(folder), main(["check"])
    said = capsys.readouterr().err
    assert code == 1, "nothing was refused"
    assert re.fullmatch(r"(Expected|Unknown) .*[.?]\n", said), said
    assert not JARGON.search(said), said
    assert contents(folder) == before
    return said


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file, compiled Python left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_project_in_which_nothing_is_wrong_is_not_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(project)
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "params.yaml: fine\n"
    assert contents(project) == before


def edited(old: str, new: bytes) -> Change:
    """Return a change of the first place where params.yaml says something."""

    def change(folder: Path) -> None:
        path = folder / "params.yaml"
        content = path.read_bytes()
        assert old.encode() in content
        path.write_bytes(content.replace(old.encode(), new, 1))

    return change


def written(make: Callable[[bytes], bytes]) -> Change:
    """Return a change of the whole of params.yaml."""

    def change(folder: Path) -> None:
        path = folder / "params.yaml"
        path.write_bytes(make(path.read_bytes()))

    return change


YAML: dict[str, tuple[Change, str]] = {
    "a bracket that does not close": (
        edited("  removed: [", b"  removed: [["),
        "did not find expected ',' or ']') in line ",
    ),
    "a quote that does not close": (edited("family: lstm", b"family: 'lstm"), "Expected YAML in params.yaml, got "),
    "a tab": (edited("  vocabulary", b"\tvocabulary"), "got a tab where spaces belong in line "),
    "a colon that is missing": (edited("seed: 1", b"seed 1"), "could not find expected ':'"),
    "a line too far in": (edited("  seed: 1", b"   seed: 1"), "Expected YAML in params.yaml, got a fault"),
    "a name twice": (edited("  seed: 1", b"  seed: 1\n  seed: 2"), "got 'seed' a second time in line "),
    "a section twice": (written(lambda text: text + b"\ncorpus: {}\n"), "got 'corpus' a second time in line "),
    "a list at the top": (
        written(lambda _: b"- corpus\n- train\n"),
        "Expected sections with names in params.yaml, got",
    ),
    "a word at the top": (written(lambda _: b"corpus\n"), "got the single value 'corpus'."),
    "an empty file": (written(lambda _: b""), "Expected sections with names in params.yaml, got an empty file."),
    "only comments": (written(lambda _: b"# later\n"), "got an empty file."),
    "a tag": (edited("seed: 1", b"seed: !int 1"), "got the tag '!int', which stands for no plain value, in line "),
    "a tag of Python's": (edited("seed: 1", b"seed: !!python/object/apply:os.getcwd []"), "got the tag '"),
    "a number that is none": (edited("seed: 1", b"seed: !!int one"), "got a value that is not what it looks like"),
    "a date that is none": (edited("seed: 1", b"seed: 2026-13-01"), "got a value that is not what it looks like"),
    "a second document": (written(lambda text: text + b"---\nseed: 1\n"), "got a second document in line "),
    "NUL": (edited("seed: 1", b"seed: \x001"), "got the character U+0000 in line "),
    "an alias without anchor": (edited("seed: 1", b"seed: *same"), "got the alias '*same' without its anchor in line "),
    "a value within itself": (
        edited("nonlinearity: tanh", b"nonlinearity: &own [*own]"),
        "Expected train.nonlinearity in",
    ),
    "conflict markers": (
        written(lambda text: text + b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n"),
        "Expected params.yaml after a merge that is done, got a conflict marker in line ",
    ),
    "Latin-1": (edited("family: lstm", b"family: l\xe4stm"), "Expected UTF-8 text in params.yaml, got byte 0xe4 at "),
    "UTF-16": (written(lambda text: text.decode().encode("utf-16")), "Expected UTF-8 text in params.yaml, got byte "),
    "a byte order mark": (
        written(lambda text: b"\xef\xbb\xbf" + text),
        "Expected text alone in params.yaml, got",
    ),
    "no file": (
        lambda folder: (folder / "params.yaml").unlink(),
        "Expected params.yaml in the current folder, got",
    ),
    "no dvc.yaml": (lambda folder: (folder / "dvc.yaml").unlink(), "Expected dvc.yaml in the current folder, got"),
    "a conflict in dvc.yaml": (
        lambda folder: (folder / "dvc.yaml").write_text("<<<<<<< HEAD\n"),
        "Expected dvc.yaml after a merge that is done, got a conflict marker in line 1",
    ),
}


@pytest.mark.parametrize("name", YAML)
def test_a_file_that_is_no_yaml_is_refused_with_its_name_and_line(
    project: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, expected = YAML[name]
    change(project)
    assert expected in refusal(project, capsys)


LATENCY = {"kind": "latency", "value": 0.1}
VALUES: list[tuple[str, Any, str]] = [
    ("train.seed", 2**70, "Expected train.seed in params.yaml to be a whole number from 0 to 2147483647, got 11805916"),
    ("finetune.seed", -1, "Expected finetune.seed in params.yaml to be a whole number from 0 to 2147483647, got -1."),
    ("oracle.seed", 10**200, "got a number of too many digits."),
    ("hessian.seed", True, "to be a whole number from 0 to 2147483647, got true."),
    ("train.clip", math.inf, "Expected train.clip in params.yaml to be a number from 1e-06 to 1000000000, got .inf."),
    ("finetune.temperature", math.nan, "Expected finetune.temperature in params.yaml to be a number from 0.01 to 1000"),
    (
        "surgeon.damping",
        -math.inf,
        "Expected surgeon.damping in params.yaml to be a number from 1e-12 to 1000, got -.",
    ),
    ("criteria.ridge", math.inf, "Expected criteria.ridge in params.yaml to be a number from 1e-12 to 1000, got .inf."),
    ("train.weight_decay", math.inf, "Expected train.weight_decay in params.yaml to be a number from 0 to 100, got .i"),
    ("train.learning_rate", 1e9, "Expected train.learning_rate in params.yaml to be a number from 1e-08 to 1, got 100"),
    ("reconstruct.learning_rate", 1e-300, "to be a number from 1e-08 to 1, got 1e-300."),
    ("train.dropout", 1.0, "Expected train.dropout in params.yaml to be a number of at least 0 and below 1, got 1.0."),
    ("train.widths", [], "to be a list of one or more entries, each a whole number from 1 to 2147483647, got []."),
    ("train.widths", [10, "8"], "Expected train.widths.1 in params.yaml to be a whole number from 1 to 2147483647"),
    ("train.epochs", 1.5, "Expected train.epochs in params.yaml to be a whole number from 1 to 2147483647, got 1.5."),
    ("train.family", "LSTN", "to be one of 'lstm', 'gru', 'rnn', 'snn', 'mixed', got 'LSTN'. Did you mean 'lstm'?"),
    ("train.widhts", [8], "Unknown parameter 'train.widhts' in params.yaml; known here: ['batch', "),
    ("corpus.lowercase", "yes", "Expected corpus.lowercase in params.yaml to be true or false, got 'yes'."),
    ("corpus.source", "te\0xt", "Expected corpus.source in params.yaml to be a path to a folder or a text file, got"),
    ("corpus.source", None, "to be a path to a folder or a text file, got null."),
    ("corpus", [], "Expected corpus in params.yaml to be a section with ['source', 'tokens', 'vocabulary', "),
    ("fuse.signals", ["weights", "weights"], "Expected each value of fuse.signals once, got 'weights' twice"),
    ("fuse.signals", [], "Expected fuse.signals in params.yaml to be a list of one or more entries, each one of 'weig"),
    ("fuse.signals", ["wieghts"], "got 'wieghts'. Did you mean 'weights'?"),
    ("fuse.signals", ["weights", "wanda"], "Expected fuse.strategy: learned for 'wanda' among fuse.signals, got 'sim"),
    ("fuse", {"strategy": "adaptive", "signals": ["weights", "kfac_obs"]}, "'taylor_second', 'intervention'] alone"),
    ("fuse", {"strategy": "learned", "signals": ["wanda"]}, "Expected one or more of ['weights', 'hessian', 'activat"),
    ("fuse.removed", [0.5, 0.2], "Expected the shares of fuse.removed in rising order, got [0.5, 0.2]"),
    ("fuse.weights", "weights.json", "to be a file of saved weights, written learned/name.json, or null, got 'weigh"),
    ("path.retain", [0.5, 0.5], "Expected each value of path.retain, to six digits and beside 1, once, got '0.5' tw"),
    ("path.retain", [0.99999999], "once, got '1' twice"),
    ("oracle.joint", [0.5, 0.5], "Expected each value of oracle.joint once, got 0.5 twice"),
    ("oracle.words", "al", "to be a whole number from 2 to 2147483647, or 'all', got 'al'. Did you mean 'all'?"),
    ("prune.floor", "8", "Expected prune.floor in params.yaml to be a whole number from 1 to 2147483647, or a mapping"),
    ("prune.floor", {"lstm.0": 0}, "Expected prune.floor.lstm.0 in params.yaml to be a whole number from 1 to 214748"),
    ("prune.ceiling", {1: 8}, "Expected each name in prune.ceiling in params.yaml to be text, got 1."),
    ("prune.budget", LATENCY, "Expected batch, repeats and points for a budget of latency, got no batch"),
    ("prune.quota", {"rnn": 0.5, "ann": 0.5}, "Expected each name in prune.quota in params.yaml to be one of 'rnn', '"),
    ("variants", {}, "Expected variants in params.yaml to be a mapping from one or more names to values that"),
    ("variants.Best", {"by": "fused"}, "Expected each name in variants in params.yaml to be lower-case letters, dig"),
    ("variants.best", None, "Expected variants.best in params.yaml to be a section with ['by', "),
    ("variants.best", {"by": "hesian"}, "got 'hesian'. Did you mean 'hessian'?"),
    ("variants.best", {"by": "fused", "retain": 2.0}, "Expected variants.best.retain in params.yaml to be a number a"),
    ("variants.best", {"by": "fused", "flor": 2}, "Unknown parameter 'variants.best.flor' in params.yaml"),
    ("compare.control", "dens", "Expected compare.control to be one of ['dense', 'enhanced'], got 'dens'. Did you me"),
    ("model.source", "os:system", "Expected own.<module>:<function> at model.source, a function in the folder own/"),
    ("model.source", 5, "to be a function of yours in own/, written own.module:function, or null, got 5."),
    ("model.source", "own.tiny:build", "Expected a module in the folder own/ at model.source, got 'own.tiny'"),
]


def put(folder: Path, place: str, value: Any) -> None:
    """Write a value of params.yaml, or several of a section."""
    section, _, field = place.partition(".")
    if field:
        set_parameters(folder, {section: {field: value}})
    else:
        set_parameters(folder, {section: value}, replace=() if value and isinstance(value, dict) else (section,))


@pytest.mark.parametrize(("place", "value", "expected"), VALUES)
def test_a_value_that_cannot_be_is_refused_with_what_can(
    project: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any, expected: str
) -> None:
    put(project, place, value)
    assert expected in refusal(project, capsys)


@pytest.mark.parametrize("kind", get_args(ErrorType))
@pytest.mark.parametrize("place", [("train", "clip"), ("prune", "floor"), ("train", "widths", 0), ("variants",), ()])
def test_every_kind_of_mistake_that_the_checker_knows_has_a_sentence(kind: str, place: tuple[Any, ...]) -> None:
    values = read_yaml(ROOT / "params.yaml")
    error = {"type": kind, "loc": place or ("corpus",), "msg": "Input should be pattern", "input": 1}
    error["ctx"] = {"error": ValueError("Expected this, got that")}
    said = sentence([error], values, Parameters.model_json_schema())
    assert re.fullmatch(r"(Expected|Unknown) .*[.?]", said)
    assert not JARGON.search(said)


def texts(**files: bytes | None) -> Change:
    """Return a change that puts these files, `name` standing for `name.txt`, in place of the corpus; None: a folder."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "text")
        (folder / "text").mkdir()
        for name, content in files.items():
            path = folder / "text" / f"{name}.txt"
            path.mkdir() if content is None else path.write_bytes(content)

    return change


def source(path: str, make: Change = Path.exists) -> Change:
    """Return a change of corpus.source, after making what is there."""

    def change(folder: Path) -> None:
        make(folder)
        put(folder, "corpus.source", path)

    return change


def values(**sections: dict[str, Any]) -> Change:
    """Return a change of values of several sections."""
    return lambda folder: set_parameters(folder, sections)


def linked(folder: Path) -> None:
    (folder / "text/more.txt").symlink_to("nowhere")


LINE = b"one two three four five six seven eight\n"
CORPORA: dict[str, tuple[Change, str]] = {
    "no source": (source("nowhere"), "got 'nowhere', which does not exist; name one, as"),
    "a link to nothing": (
        source("book.txt", lambda folder: (folder / "book.txt").symlink_to("nowhere")),
        "got 'book.txt', which is a link to nothing; name one, as seen from the repository's root.\n",
    ),
    "a pipe": (
        source("pipe", lambda folder: os.mkfifo(folder / "pipe")),
        "got 'pipe', which is no file but a pipe or a device; name one, as seen from the repository's root.\n",
    ),
    "a device": (source("/dev/null"), "got '/dev/null', which is no file but a pipe or a device; name one, as"),
    "an empty folder": (texts(), "got text with none of them."),
    "a split too few": (texts(train=LINE, valid=LINE), "without ['test']"),
    "a folder named as a split": (texts(train=LINE, valid=LINE, test=None), "without ['test']"),
    "a folder named as a document": (texts(a=LINE, b=LINE, c=LINE, d=None), "text/d.txt, in corpus.source, got one th"),
    "two documents": (
        texts(a=LINE, b=LINE),
        "Expected at least 3 documents, got 2 (text, corpus.source in params.yaml)",
    ),
    "an empty split": (
        texts(train=LINE * 99, valid=b"", test=LINE),
        "Expected text in the valid split of text, got none; give more of it, in more lines.",
    ),
    "one line": (source("a.txt", lambda folder: (folder / "a.txt").write_bytes(LINE)), "in the valid split of a.txt"),
    "no line": (
        source("a.txt", lambda folder: (folder / "a.txt").write_bytes(b"\n \n")),
        "in the train split of a.t",
    ),
    "Latin-1 in a split": (
        texts(train=LINE * 99, valid=LINE * 9 + b"caf\xe9\n", test=LINE),
        "Expected UTF-8 text in text/valid.txt, got byte 0xe9 at 363; save it as UTF-8.",
    ),
    "Latin-1 in a document": (
        texts(a=LINE, b=LINE, c=b"caf\xe9"),
        "Expected UTF-8 text in text/c.txt, got byte 0xe9 at 3",
    ),
    "Latin-1 in a book": (
        source("a.txt", lambda folder: (folder / "a.txt").write_bytes(LINE * 999 + b"\xff")),
        "Expected UTF-8 text in a.txt, got byte 0xff at 39960",
    ),
    "UTF-16": (
        texts(a="a b".encode("utf-16"), b=LINE, c=LINE),
        "Expected UTF-8 text in text/a.txt, got byte 0xff at 0",
    ),
    "UTF-16 without a mark": (
        texts(a="a b".encode("utf-16-le"), b=LINE, c=LINE),
        "Expected UTF-8 text in text/a.txt, got byte 0x00 at 1; save it as UTF-8.",
    ),
    "a byte order mark": (
        texts(train=b"\xef\xbb\xbf" + LINE, valid=LINE, test=LINE),
        "Expected text alone in text/train.txt, got a byte order mark before it; save it as UTF-8 without one.",
    ),
    "what a stage writes": (
        source("data/train/model"),
        "Expected a corpus.source apart from what the pipeline writes, got 'data/train/model', but stage train writes",
    ),
    "all around the pipeline": (source("."), "Expected a corpus.source apart from what the pipeline writes, got '.'"),
    "columns for more training text than there is": (
        values(train={"batch": 100_000}),
        "Expected at least 100,000 tokens in the train split of text for each column of train.batch, got 2,700; g",
    ),
    "columns for more validation text": (values(finetune={"batch": 400}), "tokens in the valid split of text for each"),
    "columns for more test text": (
        lambda folder: (values(evaluate={"batch": 10})(folder), (folder / "text/test.txt").write_text("a b\n")),
        "Expected at least 10 tokens in the test split of text for each column of evaluate.batch, got 3; give more",
    ),
    "windows for more text to calibrate on": (
        values(calibration={"bptt": 800}, oracle={"tokens": 4000, "most": 4000}),
        "Expected at least 3,201 tokens in the train split of text for two windows of 4 × 800 (calibration) to measure",
    ),
    "windows for more text to remove on": (
        values(calibration={"bptt": 50}, oracle={"tokens": 1000, "most": 2000}),
        "Expected at least 401 tokens in the valid split of text for 3 windows of 4 × 50 (calibration) to measure rem",
    ),
    "fewer tokens than a window": (
        values(oracle={"tokens": 32}),
        "Expected oracle.tokens above calibration.batch × calibration.bptt (32), for two windows to measure on, got 32",
    ),
    "the default corpus before it is written": (
        lambda folder: (values(evaluate={"batch": 10**6})(folder), put(folder, "corpus.source", "data/sotu/speeches")),
        "Expected at least 1,000,000 tokens in the valid split of data/sotu/speeches for each column of evaluate.batch",
    ),
    "a link to nothing among documents": (
        lambda folder: (texts(a=LINE, b=LINE, c=LINE)(folder), linked(folder)),
        "Expected a text file at text/more.txt, in corpus.source, got one that is a link to nothing.",
    ),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_text_that_a_stage_would_refuse_is_refused_before(
    project: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, expected = CORPORA[name]
    change(project)
    assert expected in refusal(project, capsys)


@pytest.mark.parametrize("form", ["splits", "documents", "book"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_tokens_that_are_foreseen_are_those_that_the_corpus_gets(project: Path, form: str, lowercase: bool) -> None:
    body = "It's late, she said.\r\n\r\n \u2028It\x0cİs LATE.\n" * 9
    if form == "splits":
        texts(train=body.encode(), valid=b"a b\n", test=b"c\n\nd")(project)
    elif form == "documents":
        texts(**{f"d{number}": (body[number:] + "end").encode() for number in range(9)})(project)
    else:
        shutil.rmtree(project / "text")
        (project / "text").write_bytes(body.encode())
    put(project, "corpus", {"lowercase": lowercase, "valid": 0.2, "test": 0.3})
    corpus = checked(read_yaml(Path("params.yaml"))).corpus
    lines = read_texts(Path("text"), lowercase, Fractions(corpus.valid, corpus.test), corpus.seed)
    found = read_text(corpus, [])
    for split in SPLITS:
        assert found.tokens(split, 10**9) == sum(len(words) + 1 for words in lines[split])


def saved(content: Any) -> Change:
    """Return a change that puts weights into `learned/` and asks for them."""

    def change(folder: Path) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "learned/kept.json").write_text(text, encoding="utf-8")
        put(folder, "fuse.weights", "learned/kept.json")

    return change


def kept(**shares: Any) -> dict[str, Any]:
    return {"strategy": "learned", "transform": "rank", "shares": {"all": shares}}


def variant(**settings: Any) -> Change:
    """Return a change that adds a variant."""
    return lambda folder: put(folder, "variants", {"own": {"by": "fused", **settings}})


MIXED = {"family": "mixed", "widths": [10, 2], "snn_widths": [6, 6]}
LAYERS: dict[str, tuple[Change, str]] = {
    "weights that are not there": (
        values(fuse={"weights": "learned/kept.json"}),
        "Expected saved weights at fuse.weights, got no file learned/kept.json.",
    ),
    "weights under another name": (
        lambda folder: (saved(kept(weights=1.0))(folder), put(folder, "fuse.weights", "learned/kpet.json")),
        "got no file learned/kpet.json. Did you mean 'learned/kept.json'?",
    ),
    "weights that are no JSON": (saved("["), "learned/kept.json"),
    "weights that are a list": (saved([1, 2]), "Expected saved weights in learned/kept.json, got [1, 2]."),
    "weights that are others": (saved({"shares": {}}), "got others: ['shares'] (in learned/kept.json)."),
    "weights of layers that are no mapping": (saved(kept() | {"shares": {"all": 1}}), "Expected saved weights in lear"),
    "weights that are text": (saved(kept(weights="all")), "Expected saved weights in learned/kept.json, got {'strateg"),
    "weights of an unknown signal": (
        saved(kept(hesian=1.0)),
        "Unknown signal 'hesian' in the saved weights; known: ['weights', 'hessian', ",
    ),
    "weights that do not sum to 1": (saved(kept(weights=0.5)), "not negative and sum to 1, got {'weights': 0.5} (in l"),
    "weights of none of the signals": (
        lambda folder: (saved(kept(weights=1.0))(folder), put(folder, "fuse.signals", ["hessian"])),
        "Expected saved weights of one of ['hessian'] for 'all', got {'weights': 1.0} (in learned/kept.json).",
    ),
    "folds for which too few neurons are measured": (
        values(fuse={"strategy": "learned"}),
        "Expected at least 10 measured neurons in lstm.0 for fuse.folds 5, got 3 of its 10; raise oracle.neurons or lo",
    ),
    "folds for which the layer is too narrow": (
        values(fuse={"strategy": "learned"}, oracle={"neurons": "all"}),
        "Expected at least 10 measured neurons in lstm.1 for fuse.folds 5, got 8 of its 8; lower fuse.folds in params.",
    ),
    "a floor of an unknown layer": (
        values(prune={"floor": {"lstm.0": 2, "lstm.2": 2}}),
        "Unknown layer 'lstm.2' of a floor; known: ['lstm.0', 'lstm.1'] (variants.dense in params.yaml).",
    ),
    "a floor of an unknown layer that only the path reads": (
        lambda folder: (
            put(folder, "prune", {"floor": {"gru.0": 2}}),
            put(folder, "variants", {name: {"by": "fused", "floor": 2} for name in ("dense", "enhanced")}),
        ),
        "Unknown layer 'gru.0' of a floor; known: ['lstm.0', 'lstm.1'] (prune in params.yaml).",
    ),
    "a variant's ceiling of an unknown layer": (
        variant(ceiling={"lstm.5": 4}),
        "Unknown layer 'lstm.5' of a ceiling; known: ['lstm.0', 'lstm.1'] (variants.own in params.yaml).",
    ),
    "a ceiling below the floor": (
        variant(floor=6, ceiling=4),
        "Expected a width between a floor of 6 and a ceiling of 4 that is a multiple of 1, got none for lstm.0 of 10 n",
    ),
    "a ceiling below the multiple": (
        variant(multiple=8, ceiling={"lstm.1": 7}),
        "Expected a width between a floor of 2 and a ceiling of 7 that is a multiple of 8, got none for lstm.1 of 8 ne",
    ),
    "a budget of neurons that no widths meet": (
        variant(budget={"kind": "neurons", "value": 3.0}),
        "Expected a budget of at least 4 neurons, what the narrowest widths cost (lstm.0 2, lstm.1 2; the widest cost",
    ),
    "a budget of parameters that no widths meet": (
        values(prune={"budget": {"kind": "parameters", "value": 100.0}}),
        "parameters, what the narrowest widths cost (lstm.0 2, lstm.1 2; the widest cost ",
    ),
    "a budget of multiply-adds that no widths meet": (
        variant(budget={"kind": "multiply_adds", "value": 1.0}),
        "Expected a budget of at least ",
    ),
    "a budget of memory that no widths meet": (
        variant(budget={"kind": "memory", "value": "1KiB", "target": "int8"}),
        " bytes of memory, what the narrowest widths cost (lstm.0 2, lstm.1 2; the widest cost ",
    ),
    "a budget of firing rates where nothing spikes": (
        variant(budget={"kind": "energy", "value": 1e6, "windows": 2}),
        "Expected layers of spiking neurons for a budget of energy, got layers of the kinds",
    ),
    "a quota that a kind cannot fill": (
        lambda folder: (
            values(train=MIXED)(folder),
            variant(quota={"rnn": 0.05, "snn": 0.95}, retain=0.9)(folder),
        ),
        "Expected a quota that 12 snn neurons can fill, got 0.95 of 22 in all (variants.own in params.yaml).",
    ),
    "more counts than memory": (
        values(criteria={"bins": 65536, "classes": 65536}),
        "Expected criteria.bins × criteria.classes whose counts ",
    ),
    "more weights than memory": (
        values(train={"widths": [10**6, 8], "decoder": "untied", "embedding": 10**6}),
        "Expected train.embedding and train.widths that ",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_files_and_layers_cannot_give_is_refused_before(
    project: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, expected = LAYERS[name]
    change(project)
    assert expected in refusal(project, capsys)


@pytest.mark.usefixtures("project")
def test_windows_whose_logits_memory_cannot_hold_are_refused() -> None:
    parameters = checked(read_yaml(Path("params.yaml")))
    text = read_text(parameters.corpus, [])
    check_memory(parameters, text, 4 * 10 * 100 * 52)
    with pytest.raises(
        Unexpected, match=r"Expected evaluate.batch × evaluate.bptt whose logits .* got 10 × 100, which"
    ):
        check_memory(parameters, text, 4 * 360 * 52 - 1)


@pytest.mark.usefixtures("project")
def test_the_vocabulary_that_budgets_are_foreseen_by_is_that_of_the_corpus() -> None:
    text = read_text(checked(read_yaml(Path("params.yaml"))).corpus, [])
    assert text.types(10**6) == 52
    assert text.types(20) == 20


MODEL = """
import sys

import torch
from torch import nn

from tasks.own import UserModel

random = torch.Generator().manual_seed(1)


def examples(batches=3, classes=3, kind=torch.float32):
    made = (torch.randn(8, 5, generator=random, dtype=kind) for _ in range(batches))
    return [(inputs, torch.randint(classes, (8,), generator=random)) for inputs in made]


def network():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def user_model(**changes):
    parts = {"model": network(), "criterion": nn.CrossEntropyLoss(), "train": examples(), "valid": examples()}
    return UserModel(**{**parts, "test": examples(), **changes})


"""


def own(body: str, head: str = MODEL) -> Change:
    """Return a change that makes a module of the user's the source of the model: the usual parts, then this."""

    def change(folder: Path) -> None:
        (folder / "own/mine.py").write_text(f"{head}{textwrap.dedent(body)}", encoding="utf-8")
        set_parameters(folder, {"model": {"source": "own.mine:build"}, "reconstruct": {"repair": "ridge"}})

    return change


def returns(changes: str, before: str = "pass") -> Change:
    """Return a change to a model of which some part is other than it should be."""
    return own(f"def build():\n    {before}\n    return user_model({changes})\n")


TWICE = """
    def twice(network, inputs, _):
        with torch._C.DisableTorchFunction():
            return network(inputs) + network(-inputs), None
    def build(): return user_model(call=twice)
"""
TORCH = version("torch")
LAST = len(MODEL.splitlines()) + 2
"""The line of the first statement in `build`."""
OWN_MODELS: dict[str, tuple[Change, str]] = {
    "a syntax error": (own("def build(:\n"), f"Expected Python in own/mine.py, got a syntax error in line {LAST - 1}"),
    "another function": (own("def biuld(): ...\n"), "got 'build'. Did you mean 'biuld'?"),
    "an error": (
        own("def build():\n    return 1 / 0\n"),
        "Expected a UserModel from own.mine:build, got ZeroDivisionError: division by zero (own/mine.py, line",
    ),
    "an argument": (
        own("def build(width):\n    return width\n"),
        "Expected a function that needs no argument at own.mine:build, got one that needs 'width' (own/mine.p",
    ),
    "sys.exit": (own("def build():\n    sys.exit(3)\n"), f"got a call of sys.exit(3) (own/mine.py, line {LAST})."),
    "sys.exit on import": (
        own("sys.exit()\ndef build(): ...\n"),
        "Expected own/mine.py to be imported, got a call of sys.exit(None) (own/mine.py, line ",
    ),
    "a package that is not there": (
        own("import tourch\ndef build(): ...\n"),
        f"got ModuleNotFoundError: No module named 'tourch' (own/mine.py, line {LAST - 1}); install the package that",
    ),
    "a package that is built for another PyTorch": (
        own("raise RuntimeError('operator torchvision::nms does not exist')\ndef build(): ...\n"),
        f"does not exist (own/mine.py, line {LAST - 1}); its torchvision is built for another PyTorch than {TORCH}, so",
    ),
    "a library that does not fit": (
        own("raise OSError('/x/libtorchaudio.so: undefined symbol: _ZN3c1')\ndef build(): ...\n"),
        f"its torchaudio is built for another PyTorch than {TORCH}, so install both from one index.",
    ),
    "a file that is not there": (
        own("def build():\n    return torch.load('weights.pt')\n"),
        f"(own/mine.py, line {LAST}); put a file at weights.pt, or correct its name.",
    ),
    "a part too few": (
        own("def build():\n    return UserModel(model=network())\n"),
        "Expected a UserModel from own.mine:build, got TypeError: UserModel.__init__() missing 3 required keyword-only",
    ),
    "something else": (
        own("def build():\n    return network()\n"),
        "Expected a UserModel (tasks.own) from own.mine:buil",
    ),
    "nothing": (own("def build(): ...\n"), "Expected a UserModel (tasks.own) from own.mine:build, got NoneType."),
    "a class as the model": (
        returns("model=nn.Linear"),
        "Expected an nn.Module as `model` from own.mine:build, got type.",
    ),
    "text as the criterion": (
        returns("criterion='mean'"),
        "Expected a function as `loss` from own.mine:build, got st",
    ),
    "a criterion that sums": (
        returns("criterion=nn.CrossEntropyLoss(reduction='sum')"),
        "Expected a criterion with reduction 'mean', got 'sum'; make it with that (own.mine:build).",
    ),
    "no batches": (returns("train=[]"), "Expected at least 2 batches in `train` from own.mine:build, got 0."),
    "one batch": (returns("valid=examples(1)"), "Expected at least 2 batches in `valid` from own.mine:build, got 1."),
    "no test batch": (returns("test=[]"), "Expected at least one batch in `test` from own.mine:build, got 0."),
    "a generator": (
        returns("train=iter(examples())"),
        "Expected batches with a length as `train` from own.mine:build, ",
    ),
    "inputs alone": (
        returns("test=[inputs for inputs, _ in examples()]"),
        "Expected inputs and targets in batch 0 of test (own.mine:build), got a tensor (8, 5) of float32.",
    ),
    "a loader that fails": (
        own("""
            class Loader:
                def __len__(self): return 3
                def __iter__(self): raise OSError("the disk is gone")
            def build(): return user_model(valid=Loader())
        """),
        "Expected batches of (inputs, targets) in `valid` from own.mine:build, got OSError: the disk is gone",
    ),
    "a class too many": (
        returns("train=examples(classes=30)"),
        "Expected class numbers from 0 to 2 in batch 0 of train (own.mine:build), one for each of the 3 logits, got ",
    ),
    "a class too many in a later batch": (
        returns("valid=[*examples(2), *examples(9, classes=30)]"),
        "Expected class numbers from 0 to 2 in batch 2 of valid (own.mine:build), one for each of the 3 logits, got ",
    ),
    "negative classes": (
        returns("test=[(inputs, targets - 5) for inputs, targets in examples()]"),
        "Expected class numbers from 0 to 2 in batch 0 of test (own.mine:build), one for each of the 3 logits, got -",
    ),
    "no loss by any name": (
        returns("criterion=None"),
        "Expected a function as `loss` from own.mine:build, got none; name one, such as nn.MSELoss().",
    ),
    "a loss of numbers with targets of another shape": (
        returns(
            "criterion=nn.MSELoss(), "
            "**{split: [(i, i[:, :2]) for i, _ in examples()] for split in ('train', 'valid', 'test')}"
        ),
        "Expected targets of the outputs' shape (8, 3), got (8, 2); give one number for each output (own.mine:build).",
    ),
    "targets that are no numbers of classes": (
        returns("train=[(inputs, targets.float()) for inputs, targets in examples()]"),
        "Expected class numbers, or shares of all classes, as targets, got torch.float32 of shape (8,); use `targ",
    ),
    "targets that are all ignored": (
        returns("test=[(inputs, targets * 0 - 100) for inputs, targets in examples()]"),
        "Expected a target that counts in batch 0 of test (own.mine:build), got 8 that are ignored.",
    ),
    "NaN inputs": (
        returns("valid=[*examples(), *[(inputs * torch.nan, targets) for inputs, targets in examples()]]"),
        "Expected finite numbers in batch 3 of valid (own.mine:build), got nan (40 of 40).",
    ),
    "NaN weights": (
        returns("model=made", "made = network(); nn.init.constant_(made[2].weight[0], torch.inf)"),
        "Expected finite weights in '2.weight' from own.mine:build, got inf (6 of 18).",
    ),
    "inputs of another type than the weights": (
        returns("train=examples(kind=torch.float64)"),
        "; the inputs are torch.float64 and the weights torch.float32, so convert one of them.",
    ),
    "validation inputs of another type than the weights": (
        returns("model=network().double(), train=examples(kind=torch.float64)"),
        "; the inputs are torch.float32 and the weights torch.float64, so convert one of them.",
    ),
    "a forward that fails": (
        own("""
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = network()
                def forward(self, inputs):
                    return self.inner(inputs[:, :4])
            def build(): return user_model(model=Net())
        """),
        "Expected the model of own.mine:build to run on the first batch of valid, got RuntimeError: mat1 and",
    ),
    "logits that are not finite": (
        own("""
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = network()
                def forward(self, inputs):
                    return self.inner(inputs) / 0
            def build(): return user_model(model=Net())
        """),
        "Expected finite logits from own.mine:build on the first batch of train, got ",
    ),
    "nothing that can be pruned": (
        returns("model=nn.Linear(5, 3)"),
        "Expected a model with a layer that can be pruned, got none",
    ),
    "no loss": (
        returns("criterion=lambda logits, targets: None"),
        "Expected a criterion that gives one number as a tensor, got nothing (own.mine:build).",
    ),
    "one logit for all": (
        returns("model=nn.Sequential(network(), nn.Flatten(0))"),
        "Expected logits (…, classes) from th",
    ),
    "batches that hold all that is measured": (
        lambda folder: (returns("")(folder), put(folder, "oracle", {"tokens": 8, "most": 8})),
        "Expected oracle.tokens above the 8 targets in the first batch of valid (own.mine:build), got 8; raise it, or",
    ),
    "a choice by what a layer has no numbers of": (
        lambda folder: (own(TWICE)(folder), put(folder, "variants", {"own": {"by": "surgeon"}})),
        "Expected a finite importance for every neuron, got others for layer '0' in 'surgeon'; choose by one of ['wei",
    ),
    "criteria that a layer has no numbers of": (
        lambda folder: (
            own(TWICE)(folder),
            put(folder, "fuse", {"strategy": "learned", "folds": 2, "signals": ["weights", "wanda"]}),
            put(folder, "oracle", {"neurons": "all"}),
        ),
        "got 'wanda', which has no numbers of layer 0, because no operation that is known was seen to read it (p",
    ),
    "bounds of a layer that it does not have": (
        lambda folder: (returns("")(folder), put(folder, "prune", {"floor": {"lstm.0": 2}})),
        "Unknown layer 'lstm.0' of a floor; known: ['0'] (variants.dense in params.yaml).",
    ),
}


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_model_of_ones_own_that_a_stage_would_fail_on_is_refused_before(
    project: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, expected = OWN_MODELS[name]
    change(project)
    assert expected in refusal(project, capsys)


def test_a_choice_by_what_a_layer_has_no_numbers_of_passes_where_another_column_is_named(project: Path) -> None:
    own(TWICE)(project)
    put(project, "variants", {"own": {"by": "surgeon", "otherwise": "fused"}})
    assert main(["check"]) == 0


def test_a_model_of_ones_own_in_which_nothing_is_wrong_is_left_as_it_was(project: Path) -> None:
    returns("")(project)
    random = torch.get_rng_state()
    assert main(["check"]) == 0
    assert torch.equal(torch.get_rng_state(), random)
    made = read_own("own.mine:build").model
    assert all(parameter.grad is None for parameter in made.parameters())


@pytest.mark.parametrize(("command", "imported"), [("tasks", "pandas"), ("flows.pipeline", "prefect")])
def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path: Path, command: str, imported: str) -> None:
    (tmp_path / f"{imported}.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", command, "check"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr.decode() == f"{INTERRUPTED}\n"


def test_a_fault_of_a_model_of_ones_own_that_only_a_stage_meets_is_one_sentence_too(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own("""
        class Last(list):
            def __iter__(self):
                yield from self[:-1]
                raise RuntimeError("the last batch is broken")
        def build(): return user_model(valid=Last(examples(99)))
    """)(project)
    assert main(["check"]) == 0
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"Expected stage train to run with the model of own.mine:build, got RuntimeError: the last batch is broken "
        r"\(own/mine.py, line \d+\).\n",
        said,
    )


def test_the_first_stage_that_dvc_starts_refuses_what_a_later_one_would(tmp_path: Path) -> None:
    folder = tiny_project(tmp_path / "project", finetune={"batch": 100_000})
    before = contents(folder / "text")
    said = run(["dvc", "repro"], folder, fails=True)
    assert (
        "Expected at least 100,000 tokens in the train split of text for each column of finetune.batch" in said.stderr
    )
    assert "Traceback" not in said.stderr
    assert not list((folder / "data").rglob("*.parquet"))
    set_parameters(folder, {"finetune": {"batch": 4}})
    run(["dvc", "repro", "--single-item", "sotu"], folder)
    remembered = (folder / ".dvc/tmp/checked").read_text()
    run(["dvc", "repro", "--single-item", "prepare"], folder)
    assert (folder / ".dvc/tmp/checked").read_text() == remembered
    assert contents(folder / "text") == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (YAML["NUL"], "Expected YAML in params.yaml, got the character U+0000"),
        (OWN_MODELS["sys.exit"], "got a call of sys.exit(3)"),
        (CORPORA["a pipe"], "which is no file but a pipe or a device; name one, as"),
    ],
)
def test_the_command_itself_says_so_in_one_line(project: Path, change: tuple[Change, str], expected: str) -> None:
    change[0](project)
    before = contents(project)
    done = stage(project, "check", fails=True)
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(project) == before
