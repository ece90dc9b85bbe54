"""The benchmark of whole lists of architectures: how kinds are made small, and what is counted of them."""

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import architectures
from benchmarks.architectures import separately, summed
from benchmarks.catalogue import Network
from benchmarks.listed import NotBuilt, kinds, shrink


class Settings(SimpleNamespace):
    """A configuration as `transformers` has them."""

    def to_dict(self):
        return vars(self)


def test_sizes_are_made_small_also_those_of_configurations_inside_and_one_layer_of_each_kind_stays():
    layers = ["full", "full", "sliding", "full"]
    inner = Settings(hidden_size=768, depths=[3, 3, 9])
    given = Settings(vocab_size=50_000, pad_token_id=None, n_inner=None, layer_types=layers, text_config=inner)
    assert vars(shrink(given)) == {
        "vocab_size": 64,
        "pad_token_id": 0,
        "n_inner": None,
        "layer_types": ["full", "sliding"],
        "text_config": Settings(hidden_size=32, depths=[1, 1, 1]),
    }


def test_a_kind_that_cannot_be_built_is_told_apart_from_one_of_which_nothing_is_found():
    def broken():
        raise NotBuilt("none of the inputs fits")

    rows = [separately("broken", Network("torch", broken))]
    assert rows == [{"name": "broken", "unbuilt": "none of the inputs fits"}]
    rows.append(separately("single", Network("torch", lambda: (nn.Linear(3, 2), (torch.randn(4, 3),)))))
    two = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    rows.append(separately("two", Network("torch", lambda: (two, (torch.randn(4, 3),)))))
    assert summed(rows).startswith(
        "Of 3 kinds 2 were built; neurons are found in 1, in 1 of them 90% of the parameters or more are within reach"
    )
    assert "In none: single (the model returns it). Wrong: none." in summed(rows)
    wrong = rows[-1] | {"name": "wrong", "proof": "no: 2e-01 apart"}
    assert summed([*rows, wrong]).endswith("Wrong: wrong (no: 2e-01 apart).")


def test_kinds_that_the_file_has_are_not_looked_at_again(monkeypatch, tmp_path, capsys):
    lines = tmp_path / "kinds.jsonl"
    lines.write_text(json.dumps({"name": "known", "unbuilt": "none of the inputs fits"}) + "\n")
    two = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    made = {name: Network("torch", lambda: (two, (torch.randn(4, 3),))) for name in ("known", "new", "other")}
    monkeypatch.setattr(architectures, "kinds", lambda _: made)
    monkeypatch.setattr(architectures, "warm", lambda _: None)
    monkeypatch.setattr(architectures, "find_spec", lambda _: True)
    monkeypatch.setattr(sys, "argv", ["", "timm", "--to", str(lines), "--only", "known", "new"])
    architectures.main()
    assert [json.loads(line)["name"] for line in lines.read_text().splitlines()] == ["known", "new"]
    assert "Of 2 kinds 1 were built" in capsys.readouterr().out


def test_a_package_that_is_not_installed_is_skipped_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(architectures, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["", "timm", "--to", str(tmp_path / "kinds.jsonl")])
    architectures.main()
    assert capsys.readouterr().out == "skipped: timm is not installed\n"


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_kind_of_transformers_is_built_small_with_inputs_that_it_runs_with():
    network, inputs = kinds("transformers")["llama"].make()
    assert sum(parameter.numel() for parameter in network.parameters()) < 20_000
    assert network(**inputs).logits.shape == (2, 7, 64)
