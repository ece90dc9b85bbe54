"""How much of the speed-up that multiply-adds promise a pruned model keeps, in PyTorch and in onnxruntime.

`python -m benchmarks.latency` times one step of a dense LSTM (2 × 256 units, 10,000 types, tied) and of models of half
as many neurons, in turns: their widths as the surgeon chose them on the Penn Treebank and rounded to multiples, the
decoder projected or untied. A step's time depends on sizes alone, so the weights are random.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from pruning.evaluation.latency import Latency, latencies
from pruning.export import onnx_of
from pruning.models import build
from pruning.models.base import LanguageModel
from tasks.commands.runtimes import load_onnx
from tasks.shown.console import track

DENSE = (256, 256)
CHOSEN = (104, 152)
"""Neurons that the surgeon keeps of each layer at 50%, rounded to eights: its own choice is 104 and 152."""
ROUNDED = {
    "as chosen, less one": (103, 151),
    "multiples of 8": (104, 152),
    "multiples of 16": (96, 160),
    "of 32": (128, 128),
}
BATCHES = (1, 32)


def lstm(widths: tuple[int, ...], decoder: str) -> LanguageModel:
    """Return a model of these widths for the Penn Treebank's vocabulary."""
    sizes = {"vocabulary": 10_000, "embedding": DENSE[-1], "dropout": 0.0}
    return build("lstm", widths=widths, decoder=decoder, **sizes).eval()


def candidates() -> dict[str, LanguageModel]:
    """Return the dense model first, then the pruned ones."""
    found = {"dense": lstm(DENSE, "tied")}
    for decoder in ("projected", "untied"):
        found |= {f"{name}, {decoder}": lstm(widths, decoder) for name, widths in ROUNDED.items()}
    return found


def in_onnxruntime(models: dict[str, LanguageModel]) -> dict[str, LanguageModel]:
    """Return the models as onnxruntime runs them."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for number, (name, model) in enumerate(models.items()):
            path = Path(folder, f"{number}.onnx")
            path.write_bytes(onnx_of(model).SerializeToString())
            found[name] = load_onnx(path, model)
    return found


def report(runtime: str, models: dict[str, LanguageModel], measured: dict[str, Latency], batch: int) -> None:
    """Print what each model costs, what it should gain, and how much of that it does gain."""
    dense = models["dense"].multiply_adds()
    for name, model in models.items():
        promise = dense / model.multiply_adds()
        gain = measured["dense"].seconds / measured[name].seconds
        time, spread = measured[name].seconds * 1e3, measured[name].spread * 1e3
        costs = f"{model.multiply_adds():,} | {time:.2f} ± {spread:.2f} | {promise:.2f}× | {gain:.2f}×"
        print(f"| {runtime} | {batch} | {name} | {costs} | {gain / promise:.0%} |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--repeats", type=int, default=300, help="steps that are timed of each model")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    models = candidates()
    print("| runs in | batch | model | multiply-adds | ms/step | promised | measured | share |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for runtime, ready in (("PyTorch", models), ("onnxruntime", in_onnxruntime(models))):
        for batch in BATCHES:
            report(runtime, models, latencies(ready, batch=batch, repeats=given.repeats, track=track), batch)


if __name__ == "__main__":
    main()
