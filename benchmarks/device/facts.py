"""What computes here, by name."""

import contextlib
import platform
from pathlib import Path

import torch

from benchmarks.device.report import Report


def facts(report: Report) -> None:
    """Show what computes here."""
    device, rows = report.device, [("device", str(report.device))]
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        rows += [("name", found.name), ("memory", f"{found.total_memory / 2**30:.0f} GiB")]
        rows += [("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
    rows += [("PyTorch, Python", f"{torch.__version__}, {platform.python_version()}")]
    rows += [("CPU", f"{cpu_name()}, {torch.get_num_threads()} threads")]
    rows += [("float32 products", f"{torch.get_float32_matmul_precision()}, cuDNN's as PyTorch's defaults say")]
    report.table(("", "what"), rows)


def cpu_name() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
