"""Where a process computes, and how finely: what params.yaml asks for, said once, and what this machine has of it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.common.parameters import Unexpected

if TYPE_CHECKING:
    import torch

TRIM, LARGE = -1, -3
"""What glibc's `mallopt` calls how much free memory a process keeps, and what size is mapped by itself, in bytes."""
KEPT, MAPPED = 2**31 - 1, 2**25
"""The most that it takes."""

_asked, _precision = "auto", "highest"
_used = ""


def compute_on(device: str, *, float32: str) -> None:
    """Let this process compute on a device from now on; it is looked for when it is first used."""
    global _asked, _precision, _used
    _asked, _precision, _used = device, float32, ""


@dataclass(frozen=True)
class Computing:
    """What a process computes with, for another to compute the same bytes."""

    device: str
    float32: str
    threads: int
    flushing: bool

    def apply(self) -> None:
        """Let this process compute so; whether denormal numbers are flushed is the thread's that calls."""
        import torch

        compute_on(self.device, float32=self.float32)
        torch.set_num_threads(self.threads)
        if self.flushing:
            device()
        torch.set_flush_denormal(self.flushing)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Within the context PyTorch computes on one thread, for what is timed by steps of few sequences.

    Threads that a stage leaves idle sleep (`tasks.VARIABLES`), and to wake one took up to four times as long as such a
    step. Where a model is deployed they are awake, or there is one.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def computing() -> Computing:
    """Return what this process computes with."""
    import torch

    # Nothing but arithmetic tells whether denormal numbers are flushed: the smallest one is 0 then.
    flushing = not torch.tensor([1e-45]).mul(1.0).item()
    # What `auto` came to here, which elsewhere it may not come to.
    return Computing(str(device()) if _used else _asked, _precision, torch.get_num_threads(), flushing)


def device() -> "torch.device":
    """Return where to compute, with float32's precision, the CPU's flushing of denormal numbers and its memory set.

    A young LSTM is full of denormal numbers, on which a CPU computes several times slower. These are settings of the
    process, so they stand here, where every stage that computes passes by, and not in the library.

    Raises:
        Unexpected: If there is no such device.
    """
    global _used
    import torch  # a second, and not for stages that only look at tables

    there = devices_there()
    asked = there[-1] if _asked == "auto" else _asked
    wanted = f"{asked}:0" if asked == "cuda" else asked
    if wanted not in (*there, *(name.partition(":")[0] for name in there)):
        raise Unexpected(f"Expected compute.device auto or one of {there}, which are here, got {_asked!r}.")
    torch.set_flush_denormal(True)
    _keep_memory()
    torch.set_float32_matmul_precision(_precision)
    if torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        torch.backends.cudnn.allow_tf32 = _precision != "highest"
    chosen = torch.device(wanted)
    _used = f"{torch.cuda.get_device_name(chosen)} ({chosen})" if chosen.type == "cuda" else str(chosen)
    return chosen


def _keep_memory() -> None:
    """Let the process keep memory that it frees, for what it needs next; elsewhere than with glibc nothing changes.

    By default what a window's logits lay in goes back to the system, which fills the next window's with zeros, page by
    page: a quarter of the time of a training step.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(LARGE, MAPPED)
        library.mallopt(TRIM, KEPT)


def devices_there() -> list[str]:
    """Return the devices of this machine by name, the one that `auto` takes last."""
    import torch

    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    assert kind is not None  # noqa: S101 - for the type checker
    if kind.type == "mps":
        return ["cpu", "mps"]
    return ["cpu", *(f"{kind.type}:{index}" for index in reversed(range(torch.accelerator.device_count())))]


def device_used() -> str:
    """Return the name of the device that this process has computed on: `cpu` unless another was asked for and found."""
    return _used or "cpu"
