"""A logged model is one for whoever has MLflow and PyTorch alone: it loads, for any text, and answers over HTTP."""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pruning
from tasks.commands.tracking import models
from tasks.commands.tracking.models import log_model
from tasks.commands.tracking.records import Exported
from tasks.commands.tracking.store import opened
from tasks.common.models import read_model, write_model
from tests.projects import ENVIRONMENT
from tests.results import QUIET
from tests.tiny import VOCABULARY, tiny

pytestmark = QUIET
TEXT = "\n".join(["<eos>", "<unk>", *(f"w{number}" for number in range(2, VOCABULARY))])
TOKENS = torch.arange(35).reshape(7, 5) % VOCABULARY


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model of each family in MLflow, and `runs.json`, which says in which run."""
    folder = tmp_path_factory.mktemp("served")
    found: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with opened() as (client, experiment):
            for family in ("lstm", "gru", "lstm + snn"):
                write_model(folder / family, tiny(family=family, dtype=torch.float32))
                run = client.create_run(experiment, run_name=family)
                exported = Exported(folder / family, "hash", TEXT, {"lowercase": True})
                assert log_model(client, run, "small", exported) == ""
                found[family] = run.info.run_id
    (folder / "runs.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return dict(json.loads((project / "runs.json").read_text()))


@pytest.mark.parametrize("family", ["lstm", "gru", "lstm + snn"])
def test_a_logged_model_loads_and_gives_the_models_logits_of_any_number_of_steps_and_columns(
    here: dict[str, str], family: str
) -> None:
    import mlflow

    loaded = mlflow.pytorch.load_model(f"runs:/{here[family]}/small")
    model: Any = read_model(family)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), model(TOKENS)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded(TOKENS[:1, :1]), model(TOKENS[:1, :1])[0], rtol=1e-4, atol=1e-5)


def test_a_logged_model_says_what_it_takes_and_gives_and_how_text_becomes_tokens(here: dict[str, str]) -> None:
    import mlflow

    about = mlflow.models.get_model_info(f"runs:/{here['lstm']}/small")
    (takes,), (gives,) = about.signature.inputs.inputs, about.signature.outputs.inputs
    assert (takes.type, takes.shape) == (np.dtype("int64"), (-1, -1))
    assert (gives.type, gives.shape) == (np.dtype("float32"), (-1, -1, VOCABULARY))
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{here['lstm']}/small"))
    assert (folder / "extra_files/vocabulary.txt").read_text() == TEXT
    assert json.loads((folder / "extra_files/export.json").read_text()) == {"text": {"lowercase": True}}
    assert np.asarray(json.loads((folder / "serving_input_example.json").read_text())["inputs"]).ndim == 2
    assert not any("pruning" in line for line in (folder / "requirements.txt").read_text().splitlines())


class Joined(nn.Module):
    """Weighs numbers, and adds what their kinds are worth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kinds, self.second = nn.Linear(4, 6), nn.Embedding(3, 6), nn.Linear(6, 2)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(numbers).relu() + self.kinds(kinds))
        return out


def test_a_logged_model_of_several_inputs_is_served_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.pyfunc.scoring_server import invocations

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.manual_seed(0)
    named = {"numbers": torch.randn(5, 4), "kinds": torch.tensor([0, 2, 1, 1, 0])}
    own = pruning.adapt(Joined(), tuple(named.values()), loss=nn.MSELoss())
    monkeypatch.setattr(models, "read_model", lambda _: own)
    with opened() as (client, experiment):
        run = client.create_run(experiment)
        assert log_model(client, run, "own", Exported(tmp_path, "hash", "", {})) == ""
    source = f"runs:/{run.info.run_id}/own"
    asked = {name: tensor[:3] for name, tensor in named.items()}
    with torch.no_grad():
        expected = own.module(**asked)
    takes = mlflow.models.get_model_info(source).signature.inputs
    assert takes.input_names() == ["numbers", "kinds"]
    assert [(spec.type, len(spec.shape)) for spec in takes.inputs] == [(np.float32, 2), (np.int64, 1)]
    request = json.dumps({"inputs": {name: tensor.tolist() for name, tensor in asked.items()}})
    answer = invocations(request, "application/json", mlflow.pyfunc.load_model(source), takes)  # what a server does
    np.testing.assert_allclose(json.loads(answer.response)["predictions"], expected, rtol=1e-5)
    torch.testing.assert_close(mlflow.pytorch.load_model(source)(*asked.values()), expected, check_device=False)


def test_a_logged_model_answers_requests_on_a_server(here: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = f"runs:/{here['lstm']}/small"
    command = ["mlflow", "models", "serve", "-m", source, "--env-manager", "local", "--port", str(port)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "DO_NOT_TRACK": "true"}
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        answer = _asked(f"http://127.0.0.1:{port}", {"inputs": TOKENS.tolist()}, 240)
    finally:
        server.terminate()
        server.wait(30)
    model: Any = read_model("lstm")
    with torch.no_grad():
        np.testing.assert_allclose(answer["predictions"], model(TOKENS)[0].numpy(), rtol=1e-4, atol=1e-5)


def _asked(address: str, request: dict[str, Any], patience: float) -> Any:
    """Return the answer to a request, as soon as the server gives one."""
    deadline = time.monotonic() + patience
    while True:
        try:
            answer = httpx.post(f"{address}/invocations", json=request, timeout=60)
            return answer.raise_for_status().json()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
