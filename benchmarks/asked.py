"""What the options of benchmarks may be: each is refused in one sentence, before any work, if it is not.

Each function is a `type` of argparse's, which says `argument --seeds: Expected …`.
"""

import math
from argparse import ArgumentTypeError
from pathlib import Path

import torch

from pruning.data.corpus import published_names


def count(word: str) -> int:
    """Return a whole number from 1 on, of something that is done or made."""
    return _whole(word, 1)


def index(word: str) -> int:
    """Return a whole number from 0 on: a seed, or how many of what may be left out."""
    return _whole(word, 0)


def amount(word: str) -> float:
    """Return a number from 0 on."""
    number = _number(word)
    if not number >= 0:
        raise ArgumentTypeError(f"Expected a number from 0, got {word}.")
    return number


def share(word: str) -> float:
    """Return a share of something of which not nothing is left, in (0, 1]."""
    number = _number(word)
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"Expected a share in (0, 1], got {word}.")
    return number


def part(word: str) -> float:
    """Return a part of something that is not all of it, in [0, 1)."""
    number = _number(word)
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"Expected a part in [0, 1), got {word}.")
    return number


def size(word: str) -> tuple[int, int]:
    """Return the units of a layer and the columns of a text, UNITSxCOLUMNS."""
    units, times, columns = word.partition("x")
    if not times:
        raise ArgumentTypeError(f"Expected UNITSxCOLUMNS, as 1024x64, got {word}.")
    return count(units), count(columns)


def splits(word: str) -> Path:
    """Return a folder that holds published splits of a text."""
    folder = there(word)
    if not folder.is_dir() or not published_names(path.name for path in folder.iterdir()):
        raise ArgumentTypeError(f"Expected published train, valid and test files in {folder}, got none.")
    return folder


def checkpoint(word: str) -> Path:
    """Return a file of a dense model that has its vocabulary beside it."""
    path = there(word)
    if not path.is_file():
        raise ArgumentTypeError(f"Expected the file of a dense model, got the folder {path}.")
    if len(list(path.parent.glob("*vocabulary*.txt"))) != 1:
        raise ArgumentTypeError(f"Expected one *vocabulary*.txt beside {path}, got another number of them.")
    return path


def there(word: str) -> Path:
    """Return a file or folder that is there."""
    path = Path(word)
    if not path.exists():
        raise ArgumentTypeError(f"Expected a file or folder at {path}, got none.")
    return path


def results(word: str) -> Path:
    """Return a folder of results of the pipeline, which `make run` leaves in `data`."""
    path = Path(word)
    if not path.is_dir():
        raise ArgumentTypeError(f"Expected a folder of results, got {'a file' if path.exists() else 'none'} at {path}.")
    return path


def file(word: str) -> Path:
    """Return a file that can be written; its folder may be missing."""
    path = Path(word)
    if path.is_dir():
        raise ArgumentTypeError(f"Expected a file that can be written, got the folder {path}.")
    folder(str(path.parent))
    return path


def folder(word: str) -> Path:
    """Return a folder that is there or can be made."""
    path = Path(word)
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ArgumentTypeError(f"Expected a folder at {path} or none yet, got the file {nearest}.")
    return path


def device(word: str) -> str:
    """Return a device of PyTorch's that this machine has."""
    known = ["cpu"]
    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator()).partition(":")[0]
        known += [kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]
    if word not in known:
        raise ArgumentTypeError(f"Expected one of the devices {known}, which are here, got {word!r}.")
    return word


def _whole(word: str, least: int) -> int:
    try:
        number = int(word)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"Expected a whole number from {least}, got {word!r}.")
    return number


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ArgumentTypeError(f"Expected a number, got {word!r}.")
    return number
