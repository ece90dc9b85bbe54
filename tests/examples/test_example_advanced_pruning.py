"""The example of the older interface: each mode runs, from its old place too, and what it cannot use it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples import example_advanced_pruning
from tests.projects import ROOT
from tests.tasks.test_published import stacked
from tests.tiny import text

OLD_PLACE = ROOT / "pruning/compat"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published splits of 20 words."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, length in {"train": 3000, "valid": 800, "test": 300}.items():
        words = [f"w{token}" for token in text(length, seed=length).tolist()]
        lines = [" ".join(words[place : place + 9]) for place in range(0, length, 9)]
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


SMALL = [
    "--quick", "--hidden", "12", "--portion", "1", "--measured", "24", "--measured-tokens", "200", "--judged", "300",
    "--keep", "0.5", "--batch", "10", "--windows", "4",
]  # fmt: skip


def test_the_example_compares_every_choice_when_run_from_its_old_folder(corpus: Path) -> None:
    variants = ["--variants", "random", "traditional", "learned"]
    words = ["--mode", "compare", "--data", str(corpus), *SMALL, "--seeds", "1", *variants]
    done = subprocess.run(
        [sys.executable, "example_advanced_pruning.py", *words],
        cwd=OLD_PLACE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = ("Perplexity, pruned", "Perplexity, finetuned", "Precision", "traditional", "learned")
    assert all(word in done.stdout for word in told)
    assert "`traditional`" in done.stdout.rpartition("\n\n")[2]
    assert "prune and train, calibration 0: 3 in" in done.stderr


def test_whole_documents_of_a_folder_go_to_one_split_each(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"speech {number} .\n" * 3, encoding="utf-8")
    texts = example_advanced_pruning._texts(tmp_path)
    spoken = {split: {line[1] for line in lines} for split, lines in texts.items()}
    assert {split: len(numbers) for split, numbers in spoken.items()} == {"train": 16, "valid": 2, "test": 2}
    assert len(set.union(*spoken.values())) == 20


@pytest.mark.parametrize("mode", ["traditional", "enhanced", "ablation", "stability"])
def test_the_examples_other_modes_run(corpus: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    few = ["--variants", "random", "surgeon", "traditional"]
    example_advanced_pruning.main(["--mode", mode, "--data", str(corpus), *SMALL, *few])
    told = capsys.readouterr().out
    expected = {"traditional": "traditional", "enhanced": "adaptive", "ablation": "weights+activations"}
    assert f"\n{expected.get(mode, 'surgeon')}" in told
    assert ("\nStability\n" in told) == (mode == "stability")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "best"], r"Unknown mode 'best'; known: \['compare'"),
        (["--data", "nowhere"], "Expected a folder or a text file at --data, got 'nowhere', which does not exist"),
        (["--data", str(OLD_PLACE)], "Expected ptb.* or the like, or three .txt documents or more, in --data"),
        (["--keep", "1.5"], r"Expected shares in \(0, 1\) for --keep, got 1.5"),
        (["--epochs", "0"], "Expected at least 1 for --epochs, got 0"),
        (["--portion", "2"], r"Expected --portion in \(0, 1\], got 2"),
        (["--strategy", "best"], "Unknown variant 'best'; known"),
        (["--checkpoint", "nowhere"], "Expected a safetensors file at --checkpoint, got 'nowhere', which is none"),
        (["--colour", "blue"], "Unrecognized arguments: --colour blue; --help lists the options"),
    ],
)
def test_a_wrong_option_ends_the_example_with_one_sentence(corpus: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence) as ended:
        example_advanced_pruning.main(["--data", str(corpus), *words])
    assert ended.value.code not in (0, None)


def test_the_example_prunes_a_checkpoint_with_the_vocabulary_beside_it(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = stacked(tmp_path)
    words = ["<eos>", "<unk>", *(f"w{place}" for place in range(7))]
    (tmp_path / "a-vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    example_advanced_pruning.main(
        ["--mode", "traditional", "--data", str(corpus), "--checkpoint", str(path), *SMALL, "--keep", "0.99"]
    )
    assert "traditional" in capsys.readouterr().out
    path.write_bytes(b"no safetensors")
    with pytest.raises(SystemExit, match=r"Expected a checkpoint at .*, got something else"):
        example_advanced_pruning.main(["--data", str(corpus), "--checkpoint", str(path)])
