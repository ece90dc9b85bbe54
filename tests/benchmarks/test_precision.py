"""The benchmark of precision on a tiny model: its pieces are kept, and its table says what predicts its own truth."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import dense_models, precision, precision_by_family, removals, stability, subjects
from benchmarks.removals import Subject, kept, measure, read
from tests.tiny import text, tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(removals, "TOKENS", 60)
    monkeypatch.setattr(removals, "PIECE", {"batch": 2, "bptt": 10})
    for module in (removals, stability):
        monkeypatch.setattr(module, "CALIBRATION", {"batch": 2, "bptt": 10})
    texts = {"train": text(200), "labelled": text(190, seed=1), "judged": text(250, seed=2)}
    made = Subject(tiny(), texts, first=0)
    measure(tmp_path, kept(tmp_path, "cpu", lambda: made), ["judged", "labelled", "train"])
    return tmp_path


def test_pieces_are_whole_and_are_not_measured_again(folder, capsys):
    names = sorted(path.stem for path in folder.glob("*.parquet"))
    assert names == [*(f"judged-{i}" for i in range(4)), *(f"labelled-{i}" for i in range(3)), "train-0", "train-1"]
    assert read(folder, "judged").tokens.tolist() == [60] * 4
    capsys.readouterr()
    again = kept(folder, "cpu", lambda: pytest.fail("the dense model is there"))
    measure(folder, again, ["judged", "labelled", "train"])
    assert capsys.readouterr().out == ""


def test_the_table_gives_every_predictor_and_the_truth_itself_would_reach_one(folder, monkeypatch):
    monkeypatch.setattr(precision, "MEASURED", (40,))
    truth = precision.Truth.of(folder)
    predicted = precision.predictions(folder, truth, kept(folder, "cpu", lambda: pytest.fail("kept")))
    rows = precision.rows_of(truth, predicted | {"truth": truth.increase}).set_index("predictor")
    assert rows.loc["truth", "spearman"] == pytest.approx(1)
    assert {"`intervention`, 40", "loss increase, all held-out tokens"} <= set(rows.index)
    assert (rows["low"] <= rows["spearman"]).all()
    lines = precision.report("tiny", truth, rows.reset_index())
    assert lines[0].startswith("tiny: 13 neurons, truth of 240 tokens, reliability lstm.0 ")
    assert len(lines) == 4 + len(rows)


def test_alternating_pieces_are_labelled_and_judged_in_turn(folder):
    truth, predicted = precision.alternating(folder)
    pieces = np.concatenate([read(folder, text).increase for text in ("labelled", "judged")])
    np.testing.assert_allclose(truth.increase, pieces[[1, 3, 5]].mean(0))
    np.testing.assert_allclose(predicted["loss increase, held-out pieces"], pieces[[0, 2, 4, 6]].mean(0))
    assert truth.tokens == 180
    assert [row[0] for row in stability.of_pieces(folder)] == [stability.TOKENS, 2 * stability.TOKENS]


def test_sets_are_as_alike_as_the_share_of_kept_neurons_that_they_share():
    keys = {"layer": ["a"] * 4 + ["b"] * 2, "neuron": [0, 1, 2, 3, 0, 1]}
    one = pd.DataFrame({**keys, "importance": [1.0, 2.0, 3.0, 4.0, 9.0, 8.0]})
    other = pd.DataFrame({**keys, "importance": [1.0, 3.0, 2.0, 4.0, 9.0, 8.0]})
    assert stability.alike(one, other, "layer") == pytest.approx(2 / 3)
    assert stability.alike(one, one, "global") == 1
    assert np.isinf(stability.needed(np.array([10, 100]), np.array([0.5, 0.9])))


def test_a_model_of_a_family_says_what_everything_predicts_of_its_neurons(tmp_path, monkeypatch):
    monkeypatch.setattr(removals, "TOKENS", 60)
    monkeypatch.setattr(removals, "PIECE", {"batch": 2, "bptt": 10})
    monkeypatch.setattr(removals, "CALIBRATION", {"batch": 2, "bptt": 10})
    for module in (precision, precision_by_family):
        monkeypatch.setattr(module, "MEASURED", (40,))
    texts = {"train": text(200), "labelled": text(190, seed=1), "judged": text(250, seed=2)}
    path = tmp_path / "texts" / "gru-12-1"
    subject = kept(path, "cpu", lambda: Subject(tiny(family="gru", widths=(12, 10)), texts, first=0))
    measure(path, subject, precision_by_family.only(subject))
    ours = precision.said(path, subject, 40)
    ((corpus, kind, family),) = precision_by_family.families(tmp_path, ["texts", "others"], [1, 2])
    assert (corpus, kind, len(family.cases)) == ("texts", "gru", 1)
    assert not [*precision_by_family.families(tmp_path, ["texts"], [1], ["snn"])]
    predicted = family.cases[0].predicted
    np.testing.assert_array_equal(predicted["intervention"], ours["importance"])
    assert {"hessian", "surgeon", "taylor_second", "taylor_second, held out", "learned"} <= {*predicted}
    assert (predicted["gate_fisher, held out"] != predicted["gate_fisher"]).any()


def case(seed):
    """Return a model of two layers; of the single criteria `near` predicts best with any labels, `far` not at all."""
    random = np.random.default_rng(seed)
    layers = np.array(["a"] * 30 + ["b"] * 20)
    increase, noise = random.random(50), random.random((4, 50))
    truth = precision.Truth(layers, increase + 0.1 * noise[0], increase + 0.1 * noise[1], increase, noise[0], 100)
    columns = {"near": increase + 0.3 * noise[2], "near, held out": increase + 0.2 * noise[2], "far": noise[3]}
    ours = {"divergence": increase, "curvature": noise[3], "intervention": increase, "learned": columns["near"]}
    ours |= {"intervention, whole": columns["near, held out"], "intervention, between": increase}
    return precision_by_family.Case(truth, pd.DataFrame({**columns, "far, held out": noise[3], **ours}))


def test_a_family_is_the_mean_of_its_seeds_and_its_best_criterion_read_labels_where_ours_did():
    family = precision_by_family.Family([case(1), case(2)])
    assert (best := family.best(held=True)) == "near, held out"
    assert family.best(held=False) == "near"
    assert family.mean("far") == pytest.approx(np.mean([each.ranked("far") for each in family.cases]))
    whole = 0.6 * family.mean("near", ["a"]) + 0.4 * family.mean("near", ["b"])
    assert family.mean("near") == pytest.approx(whole)
    assert family.over("intervention") == pytest.approx(1 / np.sqrt(family.reliability()))
    assert 0.9 < family.reliability(["b"]) < 1
    cells = precision_by_family.row(family)
    assert cells["`intervention`"] == "1.00 [1.00, 1.00]"
    assert cells["best criterion, the same labels"].endswith("`near`")
    assert cells["`intervention` less it"].startswith(f"+{1 - family.mean('near, held out'):.2f} [+")
    each = [1 / np.sqrt(one.reliability()) for one in family.cases]
    assert f"± {np.std(each, ddof=1):.2f}, {min(each):.2f} to {max(each):.2f} (" in cells["over √reliability"]
    assert cells["learned less `intervention`"].startswith(f"{family.mean('near') - 1:+.2f} [-")
    assert cells["learned less the best criterion"].startswith(f"{family.mean('near') - family.mean(best):+.2f} [-")
    assert cells["intervention, between"].endswith("; 1.00 [1.00, 1.00]")
    assert cells["intervention, between, less `intervention`"] == "+0.00 [+0.00, +0.00]"
    assert cells["intervention, whole, less the best criterion"] == "+0.00 [+0.00, +0.00]"
    del family.cases[1].predicted["intervention, whole"]  # an interrupted run
    assert "intervention, whole" not in precision_by_family.row(family)
    assert "±" not in precision_by_family.row(precision_by_family.Family([case(1)]))["over √reliability"]


def test_dealt_documents_are_trained_on_labelled_or_judged_and_labels_are_of_more_of_them(tmp_path, monkeypatch):
    for name, size in {"STRETCHES": 4, "TRAINED": 400, "LABELS": 160, "JUDGES": 120, "VOCABULARY": 99}.items():
        monkeypatch.setattr(dense_models, name, size)
    monkeypatch.setattr(dense_models, "trained", lambda *_: tiny())
    every = " ".join(f"word{document}" for document in range(24))  # training has to know all words
    for document in range(24):
        (tmp_path / f"{document}.txt").write_text(f"{every}\n" + f"word{document}\n" * 100)
    one, again, other = (subjects.small(f"gru-8-{seed}", tmp_path, dealt=True) for seed in (1, 1, 2))
    counts = {name: tokens.bincount() for name, tokens in one.texts.items()}
    documents = {name: {*(count > 9).nonzero().flatten().tolist()} - {one.first} for name, count in counts.items()}
    assert all(tokens.equal(again.texts[name]) for name, tokens in one.texts.items())
    assert not all(tokens.equal(other.texts[name]) for name, tokens in one.texts.items())
    assert {name: len(tokens) for name, tokens in one.texts.items()} == {
        "train": 400, "labelled": 160, "judged": 120, "whole": 160, "between": 160,
    }  # fmt: skip
    assert len(documents["whole"]) < len(documents["labelled"])
    read, labelled, judged = documents["train"] | documents["between"], documents["labelled"], documents["judged"]
    assert len(read | labelled | judged) == len(read) + len(labelled) + len(judged)


def test_labels_of_other_text_are_kept_beside_those_that_count(folder):
    subject = kept(folder, "cpu", lambda: pytest.fail("kept"))
    more = Subject(subject.model, {**subject.texts, "whole": text(120, seed=5)}, 0)
    ours, others = (precision.said(folder, more, 40, name) for name in ("labelled", "whole"))
    assert not np.allclose(ours["importance"], others["importance"])
    assert precision.said(folder, None, 40, "whole").equals(others)
    assert precision.said(folder, None, 40, "between") is None


def test_of_each_four_documents_two_are_trained_on_and_published_splits_cannot_be_dealt(tmp_path):
    for year in range(16):
        (tmp_path / f"{1800 + year}.txt").write_text(f"year {year}\n")
    dealt = {split: [int(line[1]) for line in lines] for split, lines in dense_models.dealt(tmp_path, 3).items()}
    for block in range(4):
        of = {split: sum(year // 4 == block for year in years) for split, years in dealt.items()}
        assert of == {"train": 2, "valid": 1, "test": 1}
    (tmp_path / "train.txt").write_text("a\n")
    for split in ("valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a\n")
    with pytest.raises(SystemExit, match="Expected a folder of documents to deal, got"):
        dense_models.dealt(tmp_path, 3)
