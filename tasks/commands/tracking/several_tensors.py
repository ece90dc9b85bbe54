"""How MLflow's server calls a program of several tensors, by their names: a copy stands beside each such model.

So it needs PyTorch and NumPy, and nothing of this project.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROGRAM, NAMES = "model.pt2", "inputs.json"


class Program:
    """What MLflow asks for predictions.

    Args:
        program: It takes the tensors one after the other and gives one.
        names: Of the tensors, in that order.
    """

    def __init__(self, program: Any, names: list[str]) -> None:
        self._program, self._names = program, names

    def predict(self, data: dict[str, np.ndarray], params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002
        """Return what the program gives for the arrays of these names."""
        with torch.no_grad():
            answer: torch.Tensor = self._program(*(torch.from_numpy(np.array(data[name])) for name in self._names))
        return answer.numpy()


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Program:  # noqa: ARG001 - as MLflow calls it
    """Return the program in a logged model's folder `data`."""
    names = json.loads(Path(path, NAMES).read_text(encoding="utf-8"))
    return Program(torch.export.load(Path(path, PROGRAM)).module(), names)
