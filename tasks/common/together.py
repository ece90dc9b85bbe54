"""Training by `torchrun`: which of its processes this one is, where it computes, and what it leaves to the first.

`torchrun --nproc-per-node 2 -m tasks train`. Every process reads the same files and trains on its own columns; the
first one writes and speaks.
"""

import importlib
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from tasks.common.parameters import Unexpected

TOGETHER = ("train", "finetune")
"""Stages that processes run together."""


def size() -> int:
    """Return how many processes `torchrun` started for this; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def placed(compute: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `compute` as they are for this process: with GPUs, each has one of its own."""
    return {**compute, "device": f"cuda:{os.environ['LOCAL_RANK']}"} if _on_gpus(compute["device"]) else dict(compute)


def _on_gpus(device: str) -> bool:
    if size() == 1 or device not in ("auto", "cuda"):
        return False
    import torch

    return torch.cuda.is_available()


@contextmanager
def joined(stage: str, device: str) -> Iterator[Any]:
    """Yield the `pruning.training.together.Together` of `torchrun`'s processes, None for one; only the first is heard.

    Raises:
        Unexpected: If it is a stage that one process runs.
    """
    if size() == 1:
        yield None
        return
    if stage not in TOGETHER:
        raise Unexpected(
            f"Expected torchrun for one of {TOGETHER}, got {stage}; run it with --workers {size()} instead."
        )
    # By name, for stages that do not train do not depend on training.
    together, distributed = map(importlib.import_module, ("pruning.training.together", "torch.distributed"))
    signal.signal(signal.SIGTERM, _told_to_end)
    distributed.init_process_group("nccl" if _on_gpus(device) else "gloo", timeout=together.SILENT)
    with ExitStack() as quiet:
        if rank():
            quiet.enter_context(redirect_stdout(quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        yield together.Together(rank(), size())
    distributed.destroy_process_group()


def _told_to_end(*_: object) -> None:
    raise Unexpected(
        f"Expected {size()} processes until training ends, got told to end, as torchrun does once one of them has; the "
        "same command goes on after the last finished epoch."
    )


def said(sentence: str) -> str:
    """Return an error's sentence, and where there are several processes, whose it is."""
    return f"process {rank() + 1} of {size()}: {sentence}" if size() > 1 else sentence
