"""`python -m tasks export <variant>`: a variant's model as files for other programs, checked and measured."""

import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from pruning.data.corpus import UNKNOWN
from pruning.data.subwords import SUFFIX
from pruning.data.windows import Windows
from pruning.evaluation.latency import latencies
from pruning.evaluation.measures import loss_of, size_of
from pruning.export import initial_state, largest_difference, onnx_of, program_of
from pruning.export.targets import TARGETS
from pruning.models import describe
from pruning.models.base import LanguageModel, State
from tasks.commands.export_own import write_own
from tasks.commands.export_target import CONVERTER, TOKENS, write_target
from tasks.commands.folders import check_folder, replacing_folder
from tasks.commands.plain_text import REPORT, VOCABULARY, Reading, read_reading, vocabulary_lines
from tasks.commands.using import PHASES, check_words, model_of, own_model_of
from tasks.common.devices import compute_on
from tasks.common.job import Job
from tasks.common.latency import BATCHES
from tasks.common.models import CONFIG, WEIGHTS, read_language_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import DATA, PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.windows import read_windows
from tasks.settings.parameters import checked
from tasks.shown.asking import Answer, Words
from tasks.shown.console import track
from tasks.shown.tables import Row, shown_table

PROGRAM, GRAPH, QUANTISED = "model.pt2", "model.onnx", "model.int8.onnx"
CARD = "README.md"
FILES = {CONFIG, WEIGHTS, PROGRAM, GRAPH, QUANTISED, VOCABULARY, REPORT, CARD}
LOOP = """\
import json, re, numpy, onnxruntime
how, words = json.load(open("export.json"))["text"], open("vocabulary.txt", encoding="utf-8").read().split("\\n")
model, text = onnxruntime.InferenceSession("model.onnx"), "my fellow americans".lower()
state = {i.name: numpy.zeros([1 if n == "batch" else n for n in i.shape], "float32") for i in model.get_inputs()[1:]}
tokens = [how["first"], *(words.index(w) if w in words else how["unknown"] for w in re.findall(how["pattern"], text))]
for _ in range(20):
    logits, *after = model.run(None, {"tokens": numpy.array(tokens)[:, None], **state})
    logits[..., how["unknown"]] = -numpy.inf
    state, tokens = dict(zip(state, after)), [int(logits[-1, 0].argmax())]
    print(words[tokens[0]], end=" ")
"""
"""A program, to be run in the folder, that goes on from a text with `model.onnx`: by the likeliest word each time."""
SPELLED = (
    ("numpy, onnxruntime\n", "numpy, onnxruntime, tokenizers\n"),
    (
        "tokens = [",
        'types, merges = {w: n for n, w in enumerate(words)}, [tuple(pair.split(" ")) for pair in how["merges"]]\n'
        f'parts = tokenizers.models.BPE(types, merges, unk_token="{UNKNOWN}", end_of_word_suffix="{SUFFIX}")\n'
        'spelled = [[part.id for part in parts.tokenize(w)] for w in re.findall(how["pattern"], text)]\n'
        "tokens = [",
    ),
    (
        '*(words.index(w) if w in words else how["unknown"] for w in re.findall(how["pattern"], text))]',
        '*(t for w in spelled for t in ([how["unknown"]] if how["unknown"] in w else w))]',
    ),
)
"""What of the program is another where the tokens are sub-words: what stands there, and what does instead."""
SHAPES = ((1, 1), (7, 3), (35, 32), (100, 10))
"""Steps × columns of the windows that files are checked on, each followed by a second one."""
SPIKING = 0.8
"""Share of the sequences that must agree in a model with spiking neurons, where rounding may flip a spike; else all."""
TOLERANCE = 5e-5
"""Largest difference from the model, relative to its largest number. Single precision rounds at 6e-8, which a hundred
steps of two layers of 256 units were seen to make 4e-6; a wrong gate or a lost state makes 1e-1."""


@dataclass(frozen=True)
class MeasuredFile:
    """What one file is worth and what it costs.

    Attributes:
        file: Its name.
        runs_in: What ran it.
        bytes: Its size.
        difference: Largest difference of its logits and states from the model's, relative to the largest such number.
        perplexity: On the validation split, state carried.
        seconds: Batch → median latency of one step.
        spread: Batch → interquartile range of that latency.
    """

    file: str
    runs_in: str
    bytes: int
    difference: float
    perplexity: float
    seconds: dict[int, float]
    spread: dict[int, float]


def run(words: Sequence[str]) -> Answer:
    """Write the folder, whole or not at all, and return what its files are worth.

    Raises:
        Unexpected: With one sentence on an unknown variant or phase, missing results or packages, or a folder that
            holds something else.
        ValueError: If a file does not give the model's logits.
    """
    parser = Words("export")
    parser.add_argument("variant", nargs="?", help="a variant of params.yaml")
    parser.add_argument("--phase", default="finetuned", help=f"one of {', '.join(PHASES)}")
    parser.add_argument("--to", metavar="FOLDER", help=f"where to write; {DATA}/export/<variant>-<phase> by default")
    parser.add_argument("--target", choices=TARGETS, help="files of this target alone, beside the dense model's")
    parser.add_argument("--converter", type=Path, default=CONVERTER, help=f"of litert: its Python, {CONVERTER}")
    parser.add_argument("--tokens", type=int, metavar="N", help=f"of --target: judged on so many ({TOKENS:,})")
    given = parser.read(words)
    variant, phase, to, target = given.variant, given.phase, given.to, given.target
    if target is None and given.tokens is not None:
        raise Unexpected("Expected --target beside --tokens, got none; without it all of the validation split is read.")
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    compute_on(**parameters.compute.model_dump())
    check_words(variant, phase, list(parameters.variants))
    if target != "litert":  # whose converter, in an environment of its own, is asked for first
        _check_packages(target or "onnx")
    folder = Path(to).resolve() if to else DATA / "export" / "-".join([variant, phase, *([target] if target else [])])
    check_folder(folder, "export")
    job = Job(read_stage("evaluate", variant, values), parameters, track)
    if target is not None:
        tokens = TOKENS if given.tokens is None else given.tokens
        report, shown = write_target(folder, job, phase, target, converter=given.converter, tokens=tokens)
        return Answer({"folder": str(folder), **report}, shown)
    if parameters.model.source is not None:
        report, shown = write_own(folder, job, phase, own_model_of(job, phase).cpu())
        return Answer({"folder": str(folder), **report}, shown)
    report = _write(folder, job, phase)
    table = shown_table(f"{variant}, {phase}: the same model in each file", [_cells(row) for row in report["measured"]])
    return Answer({"folder": str(folder), **report}, [table, f"{folder}: {', '.join(sorted(FILES))}"])


def _check_packages(target: str) -> None:
    extra, needed = TARGETS[target].extra, TARGETS[target].packages
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        own = f"in an environment of your own with `pip install -c constraints.txt -e '.[{extra}]'`"
        raise Unexpected(
            f"Expected the packages {list(needed)} to export, got no {missing}; install them with "
            f"`make install EXTRA={extra}`, or {own}."
        )


def _write(folder: Path, job: Job, phase: str) -> dict[str, Any]:
    model, reading = model_of(job, phase).cpu(), read_reading(job)
    with replacing_folder(folder, "export") as aside:
        write_model(aside, model)
        (aside / VOCABULARY).write_text(vocabulary_lines(reading.words), encoding="utf-8", newline="\n")
        readers = _write_formats(aside, model)
        measured = _measure(aside, job, model, readers, len(reading.words))
        report = _report(job, phase, model, reading, measured)
        (aside / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (aside / CARD).write_text(_card(report), encoding="utf-8")
    return report


def _write_formats(folder: Path, model: LanguageModel) -> dict[str, LanguageModel]:
    """Write the model in every other format and return what reads each file, by the file's name."""
    import onnx  # of an extra, and so not before `_check_packages` had its say

    from tasks.commands.runtimes import load_onnx, load_program, quantise

    torch.export.save(program_of(model), folder / PROGRAM)
    onnx.save(onnx_of(model), folder / GRAPH)
    quantise(folder / GRAPH, folder / QUANTISED)
    return {
        WEIGHTS: read_language_model(folder).cpu(),
        PROGRAM: load_program(folder / PROGRAM, model),
        GRAPH: load_onnx(folder / GRAPH, model),
        QUANTISED: load_onnx(folder / QUANTISED, model),
    }


def _measure(
    folder: Path, job: Job, model: LanguageModel, readers: Mapping[str, LanguageModel], types: int
) -> list[MeasuredFile]:
    """Return what each file is worth, having refused one that should give the model's logits and does not."""
    settings = job.settings("evaluate")
    repeats = job.parameters.timing.repeats
    windows = read_windows(job, "valid", **settings)
    differences = {
        file: largest_difference(model, reader, vocabulary=types, shapes=SHAPES, seed=1, share=_share(model))
        for file, reader in readers.items()
    }
    _check_equal({file: difference for file, difference in differences.items() if file != QUANTISED})
    found = {batch: latencies(readers, batch=batch, repeats=repeats, track=job.track) for batch in BATCHES}
    return [
        MeasuredFile(
            file=file,
            runs_in="onnxruntime" if file.endswith(".onnx") else "PyTorch",
            bytes=(folder / file).stat().st_size,
            difference=differences[file],
            perplexity=_perplexity(reader, windows, job, file),
            seconds={batch: found[batch][file].seconds for batch in BATCHES},
            spread={batch: found[batch][file].spread for batch in BATCHES},
        )
        for file, reader in readers.items()
    ]


def _share(model: LanguageModel) -> float:
    """Return the share of sequences that the files must give as the model does."""
    return SPIKING if any(layer.kind == "snn" for layer in model.decoupled().layers()) else 1.0


def _check_equal(differences: Mapping[str, float]) -> None:
    for file, difference in differences.items():
        if not difference <= TOLERANCE:  # so that a NaN is refused too
            raise ValueError(f"Expected {file} to give the model's logits within {TOLERANCE:g}, got {difference:.1e}.")


def _perplexity(reader: LanguageModel, windows: Windows, job: Job, file: str) -> float:
    return loss_of(reader, windows, track=job.track, what=f"{job.stage.variant}, {file}, valid").perplexity


def _report(
    job: Job, phase: str, model: LanguageModel, reading: Reading, measured: list[MeasuredFile]
) -> dict[str, Any]:
    """Return everything that is known of the export, as plain values."""
    return {
        "variant": job.stage.variant,
        "phase": phase,
        "model": {**describe(model)[0], "widths": model.widths(), **asdict(size_of(model))},
        "state": _shapes(initial_state(model, 1)),
        "text": {**reading.described(), "loop": _loop(reading).splitlines()},
        "check": {
            "shapes": SHAPES,
            "windows": 2,
            "tolerance": TOLERANCE,
            "share": _share(model),
            "unchecked": [QUANTISED],
        },
        "evaluation": job.settings("evaluate"),
        "measured": [asdict(row) for row in measured],
        "made_with": {
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", *TARGETS["onnx"].packages)},
        },
    }


def _loop(reading: Reading) -> str:
    loop = LOOP if reading.lowercase else LOOP.replace(".lower()", "")
    if reading.subwords is None:
        return loop
    for whole, spelled in SPELLED:
        loop = loop.replace(whole, spelled)
    return loop


def _shapes(state: State) -> list[list[list[int | str]]]:
    """Return the shape of each tensor of each layer's state, its columns free."""
    return [[[*tensor.shape[:-2], "batch", tensor.shape[-1]] for tensor in layer] for layer in state]


def _cells(row: Mapping[str, Any]) -> Row:
    """Return what one file is worth, as it is shown."""
    times = {batch: f"{row['seconds'][batch] * 1000:.2f} ± {row['spread'][batch] * 1000:.2f}" for batch in BATCHES}
    return {
        "file": row["file"],
        "MB": f"{row['bytes'] / 1e6:.2f}",
        "difference": f"{row['difference']:.0e}",
        "perplexity,\nvalid": f"{row['perplexity']:.2f}",
        **{f"ms/step,\nbatch {batch}": time for batch, time in times.items()},
    }


def _card(report: Mapping[str, Any]) -> str:
    """Return what the folder is, how each file is loaded, and what was checked, as Markdown."""
    model, made = report["model"], report["made_with"]
    cells = [_cells(row) for row in report["measured"]]
    heads = [head.replace("\n", " ") for head in cells[0]]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *(row.values() for row in cells)]
    return _CARD.format(
        variant=report["variant"],
        phase=report["phase"],
        family=model["family"],
        widths=", ".join(str(width) for width in model["widths"]),
        sizes=f"{model['neurons']:,} neurons, {model['parameters']:,} parameters, "
        f"{model['multiply_adds']:,} multiply-adds for one token",
        rule=fill(report["text"]["rule"], 120),
        text=", ".join(
            f"`{name}` {json.dumps(report['text'][name])}" for name in ("lowercase", "pattern", "first", "unknown")
        ),
        loop="\n".join(report["text"]["loop"]),
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
        shapes=", ".join(f"{time} × {batch}" for time, batch in SHAPES),
        tolerance=f"{TOLERANCE:g}",
        state="; ".join(
            " and ".join(f"({', '.join(map(str, sizes))})" for sizes in layer) for layer in report["state"]
        ),
        agreeing="every sequence" if report["check"]["share"] == 1 else _MOST,
        versions=", ".join(f"{name} {number}" for name, number in made.items() if name != "threads"),
        threads=made["threads"],
        evaluation=f"{report['evaluation']['batch']} columns in windows of {report['evaluation']['bptt']} steps",
    )


_MOST = f"the {SPIKING:.0%} of sequences that differ least, for rounding may flip a spike and so change what follows"
_CARD = """# Language model `{variant}`, {phase}

Family {family}, widths {widths}: {sizes}.
It reads token numbers (time, batch), 64-bit, and gives the logits of each next token (time, batch, vocabulary) and a
state to carry on from, 32-bit. Line n of `vocabulary.txt`, from 0, is token n; a line break in a token stands there as
`\\n`, and none stands behind the last line.

| files | load in one line |
|---|---|
| `config.json`, `model.safetensors` | `from tasks.common.models import read_model; model = read_model("folder")` |
| `model.pt2` | `import torch; model = torch.export.load("folder/model.pt2").module()` |
| `model.onnx`, `model.int8.onnx` | `import onnxruntime; model = onnxruntime.InferenceSession("folder/model.onnx")` |

`model(tokens, state)` gives `(logits, state)`. The state is a list with a tuple of tensors for each layer, zeros at
first, shaped {state}. The first form also starts from `None`. ONNX: inputs `tokens`,
`state_<layer>_<number>`; outputs `logits`, `next_state_<layer>_<number>`. Time and batch are free in every form. The
first form needs the package that wrote this; the others need PyTorch or onnxruntime alone.

## From text to tokens

{rule}
Here they are {text}.
`export.json` has all this as `text`, and the following program, which goes on from a text:

```python
{loop}
```

In a checkout of the project, `python -m tasks generate folder "my fellow americans"` does the same, `score` and
`perplexity` say what the model makes of a text.

## Checked and measured

{table}

- Difference: of logits and states from the model, relative to the largest of them, over two windows of random tokens
  with the state carried from one to the other; time × batch: {shapes}; of {agreeing}.
  Above {tolerance} nothing is written; only int8 may differ by more.
- Perplexity: the validation split, {evaluation}, state carried.
- Latency: one step, median ± interquartile range, all files in turns; threads: {threads}.
- int8: dynamic quantisation of embedding, LSTMs, projection, decoder and what spiking layers read from below; other
  recurrences stay in floats. A matrix that embedding and decoder share is stored once in the other files and twice in
  this one, each time with scales of its own.

Made with {versions}.
"""
