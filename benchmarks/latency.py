"""How much of the speed-up that multiply-adds promise a pruned model keeps, in PyTorch and in onnxruntime.

`python -m benchmarks.latency` times one step of a dense LSTM (2 × 256 units, 10,000 types, tied) and of models of half
as many neurons, in turns: their widths as the surgeon chose them on the Penn Treebank and rounded to multiples, the
decoder projected or untied. A step's time depends on sizes alone, so the weights are random. Times are the processor's,
on one thread, so that whoever else uses the machine counts for little. In PyTorch all are `deployed` for steps.

A model of one unit and two types takes turns with them: its time is what a step costs whatever the sizes, of which no
multiply-add that is saved saves any; the last column is the share of the promise that is kept beyond it. With
`--kernel` the dense model also steps by PyTorch's kernel for sequences, as it did before single steps went by cells.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import asked
from pruning.evaluation.latency import Latency, latencies
from pruning.export import onnx_of
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.saving import deployed
from tasks.commands.runtimes import load_onnx
from tasks.shown.console import track

DENSE = (256, 256)
ROUNDED = {  # what the surgeon keeps of each layer at 50%
    "as chosen, less one": (103, 151),
    "multiples of 8": (104, 152),
    "multiples of 16": (96, 160),
    "of 32": (128, 128),
}
EMPTY = "of one unit"
KERNEL = "dense, by the kernel"
BATCHES = (1, 8, 32)


def lstm(widths: tuple[int, ...], decoder: str, vocabulary: int = 10_000, embedding: int = DENSE[-1]) -> LanguageModel:
    """Return a model of these widths, for the Penn Treebank's vocabulary by default."""
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "dropout": 0.0}
    return build("lstm", widths=widths, decoder=decoder, **sizes).eval()


def candidates() -> dict[str, LanguageModel]:
    """Return the dense model first, then the one of no size, then the pruned ones."""
    found = {"dense": lstm(DENSE, "tied"), EMPTY: lstm((1, 1), "tied", vocabulary=2, embedding=1)}
    found["dense, untied"] = lstm(DENSE, "untied")
    for decoder in ("projected", "untied"):
        found |= {f"{name}, {decoder}": lstm(widths, decoder) for name, widths in ROUNDED.items()}
    return found


def by_kernel(model: LanguageModel) -> LanguageModel:
    """Return the model, its layers watched by a hook that does nothing: then they run as PyTorch's own in any case."""
    for layer in model.get_submodule("lstm").children():
        layer.register_forward_hook(lambda *_: None)
    return model


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
    dense, fixed = models["dense"].multiply_adds(), measured[EMPTY].seconds
    for name, model in models.items():
        own, seconds = measured[name], measured["dense"].seconds
        line = f"| {runtime} | {batch} | {name} | {own.seconds * 1e3:.3f} ± {own.spread * 1e3:.3f} |"
        if name != EMPTY:
            promise, gain = dense / model.multiply_adds(), seconds / own.seconds
            beyond = (seconds - fixed) / (own.seconds - fixed)
            line += f" {promise:.2f}× | {gain:.2f}× | {gain / promise:.0%} | {beyond / promise:.0%} |"
        print(line, flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--repeats", type=asked.count, default=300, help="steps that are timed of each model")
    parser.add_argument("--kernel", action="store_true", help="PyTorch's kernel for sequences, too")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    models = candidates()
    deployed_models = {name: deployed(model, steps=True) for name, model in models.items()}
    ready = deployed_models | ({KERNEL: by_kernel(lstm(DENSE, "tied"))} if given.kernel else {})
    print("| runs in | batch | model | ms/step | promised | measured | share | beyond the fixed |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for runtime, all_ready in (("PyTorch", ready), ("onnxruntime", in_onnxruntime(models))):
        sizes = ready if runtime == "PyTorch" else models
        for batch in BATCHES:
            measured = latencies(all_ready, batch=batch, repeats=given.repeats, track=track, clock=time.process_time)
            report(runtime, sizes, measured, batch)


if __name__ == "__main__":
    main()
