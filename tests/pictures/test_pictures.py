"""What the pictures show: the numbers of their bars, points, cells and lines, their words, and their bytes."""

import io
import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import spearmanr

from pruning.pictures.cooperation import cooperation, grouped, strongest
from pruning.pictures.correlations import MEASURED, correlations, rank_correlations
from pruning.pictures.costs import costs, tried
from pruning.pictures.curves import finetuning, training
from pruning.pictures.figure import Picture
from pruning.pictures.importance import importance_by_layer
from pruning.pictures.retention import error_by_share, removal, retention
from pruning.pictures.style import COLOURS, KEPT, REMOVED, WIDTH, style

SIGNALS = ("weights", "hessian", "activations")
PHASES = ("pruned", "reconstructed", "finetuned")


def importance(widths: dict[str, int]) -> pd.DataFrame:
    """Return an `importance` table of random numbers; the Hessian was not measured in the second layer."""
    random = np.random.default_rng(1)
    parts = []
    for place, (layer, width) in enumerate(widths.items()):
        values = {name: random.random(width) for name in SIGNALS}
        values["hessian"] = np.full(width, np.nan) if place == 1 else values["hessian"] * 1e-3
        shares = {f"{name}_share": np.full(width, 1 / 3) for name in SIGNALS}
        further = {"fused": random.random(width), "random": random.random(width), "surgeon": np.full(width, np.nan)}
        parts.append(pd.DataFrame({"layer": layer, "neuron": np.arange(width), **values, **shares, **further}))
    return pd.concat(parts, ignore_index=True)


TABLE = importance({"one": 40, "two": 12})
KEEP = {"one": torch.arange(0, 40, 2)}


def counted(axes, colour):
    """Return how many neurons the bars of a colour stand for."""
    return sum(bar.get_height() for bar in axes.patches if to_hex(bar.get_facecolor()) == colour.lower())


def test_importance_has_a_row_for_each_layer_and_a_column_for_each_measured_signal():
    picture = importance_by_layer(TABLE, KEEP)
    assert len(picture.axes) == 2 * 4
    assert [axes.get_title() for axes in picture.axes[:4]] == ["weights", "hessian", "activations", "fused"]
    assert [axes.get_ylabel().split("\n")[0] for axes in picture.axes[::4]] == ["one", "two"]
    assert "20 of 40 kept" in picture.axes[0].get_ylabel()


def test_importance_counts_every_neuron_once_as_kept_or_removed():
    picture = importance_by_layer(TABLE, KEEP)
    for axes in picture.axes[:4]:
        assert (counted(axes, KEPT), counted(axes, REMOVED)) == (20, 20)
    assert (counted(picture.axes[4], KEPT), counted(picture.axes[4], REMOVED)) == (12, 0)
    assert [text.get_text() for text in picture.axes[5].texts] == ["not measured"]
    plain = importance_by_layer(TABLE, columns=["fused"])
    assert [counted(axes, KEPT) for axes in plain.axes] == [40, 12]
    assert not plain.legends


def test_importance_far_apart_is_read_on_a_logarithmic_axis():
    table = TABLE.assign(weights=np.geomspace(1e-6, 1, len(TABLE)))
    picture = importance_by_layer(table, columns=["weights", "fused"])
    assert [axes.get_xscale() for axes in picture.axes[:2]] == ["log", "linear"]
    assert counted(picture.axes[0], KEPT) == 40


def test_layers_beyond_what_there_is_room_for_are_shown_when_they_are_named():
    many = importance({f"layer.{place}": 3 for place in range(15)})
    picture = importance_by_layer(many, columns=["fused"])
    assert len(picture.axes) == 12
    assert "(12 of 15 layers; name others with `layers`)" in picture.get_suptitle()
    named = importance_by_layer(many, columns=["fused"], layers=["layer.14"])
    assert named.axes[0].get_title().startswith("layer.14\n")
    with pytest.raises(ValueError, match=r"Unknown layer 'layer.15'; known: "):
        importance_by_layer(many, layers=["layer.15"])
    with pytest.raises(ValueError, match=r"Unknown importance 'size'; known: "):
        importance_by_layer(many, columns=["size"])


def test_correlations_are_spearmans_within_layers_and_stand_in_their_cells():
    removals = TABLE.iloc[::2][["layer", "neuron"]].assign(loss_increase=TABLE["fused"].iloc[::2] ** 3)
    found = rank_correlations(TABLE, removals)
    one, two = (TABLE[TABLE["layer"] == name] for name in ("one", "two"))
    by_hand = [spearmanr(rows["weights"], rows["fused"]).statistic for rows in (one, two)]
    assert found.loc["weights", "fused"] == pytest.approx(np.average(by_hand, weights=[40, 12]))
    assert found.loc["hessian", "weights"] == pytest.approx(spearmanr(one["hessian"], one["weights"]).statistic)
    assert found.loc["fused", MEASURED] == pytest.approx(1)
    axes, *_ = correlations(TABLE, removals).axes
    words = {tuple(map(round, text.get_position())): text.get_text() for text in axes.texts}
    assert len(words) == 5 * 4 / 2
    columns = list(found.columns)
    assert words[columns.index("weights"), columns.index("fused")] == f"{found.loc['weights', 'fused']:.2f}"


def test_a_signal_that_says_the_same_of_all_neurons_correlates_with_none():
    found = rank_correlations(TABLE.assign(weights=1.0), columns=["weights", "fused"])
    assert np.isnan(found.loc["weights", "fused"])
    axes, *_ = correlations(TABLE.assign(weights=1.0), columns=["weights", "fused"]).axes
    assert [text.get_text() for text in axes.texts] == ["–"]


def blocks(width: int) -> torch.Tensor:
    """Return edges of two groups whose neurons take turns."""
    groups = torch.arange(width) % 2
    edges = 0.1 + 0.8 * (groups[:, None] == groups[None, :]).double()
    return edges * (1 - torch.eye(width))


def test_the_graph_of_cooperation_counts_whole_neurons():
    matrix = cooperation({"one": torch.rand(20, 20)}).axes[0]
    assert {float(tick).is_integer() for tick in (*matrix.get_xticks(), *matrix.get_yticks())} == {True}


def test_the_graph_of_cooperation_shows_groups_as_squares_and_their_strongest_edges_as_lines():
    weights = blocks(20)
    order = grouped(weights.numpy())
    assert len(set((order % 2)[:10].tolist())) == 1
    picture = cooperation({"one": weights}, {"one": torch.arange(10)})
    matrix, circle = picture.axes[:2]
    np.testing.assert_array_equal(matrix.images[0].get_array(), weights.numpy()[np.ix_(order, order)])
    lines = [line for line in circle.lines if len(line.get_xdata()) == 2]
    assert len(lines) == 60
    colours = [to_hex(line.get_color()) for line in circle.lines if line.get_marker() == "o"]
    assert (colours.count(KEPT.lower()), colours.count(REMOVED.lower())) == (10, 10)
    assert {text.get_text() for text in circle.texts} == {str(neuron) for neuron in range(20)}


def test_a_wide_layer_is_shown_as_means_and_a_handful_of_its_neurons():
    random = torch.rand(1500, 1500, generator=torch.Generator().manual_seed(1))
    weights = ((random + random.T) / 2) * (1 - torch.eye(1500))
    matrix, circle = cooperation({"one": weights}).axes[:2]
    assert matrix.images[0].get_array().shape == (375, 375)
    assert matrix.images[0].get_array().mean() == pytest.approx(float(weights.mean()), abs=1e-3)
    assert len(circle.texts) <= 28
    edges = strongest(weights.numpy())
    assert edges[0][2] == pytest.approx(float(weights.max()))


def test_neurons_that_do_not_work_together_have_no_lines():
    _, circle = cooperation({"one": torch.zeros(4, 4)}).axes[:2]
    assert not circle.lines
    assert circle.get_title() == "no two neurons work together"
    cooperation({"one": torch.zeros(1, 1)}).image()


def comparison(**values: float) -> pd.DataFrame:
    rows = []
    for place, variant in enumerate(("dense", "random", "enhanced")):
        perplexities = {f"{phase}_perplexity": 100.0 + 40 * place - 10 * i for i, phase in enumerate(PHASES)}
        losses = {f"{phase}_loss": 4.0 + place for phase in PHASES}
        costs_of = {"latency": 1.0, "latency_error": 0.1, "parameters": 1e6, "multiply_adds": 9e5}
        share = 1.0 if variant == "dense" else 0.5
        rows.append({"variant": variant, "retention": share, **perplexities, **losses, **costs_of, **values})
    return pd.DataFrame(rows)


PATH = pd.DataFrame(
    {
        "retain": [0.3, 1.0], "test_perplexity": [150.0, 100.0], "test_loss": [5.0, 4.6], "latency": [0.5, 1.0],
        "latency_error": [0.01, 0.01], "parameters": [5e5, 1e6], "multiply_adds": [3e5, 9e5],
    }
)  # fmt: skip


def test_error_by_retention_has_the_path_and_a_point_for_each_phase_of_each_variant():
    picture = retention(comparison(), PATH)
    for axes, phases in zip(picture.axes, (3, 2), strict=True):
        path, *lines = axes.lines
        assert path.get_ydata().tolist() == [150.0, 100.0]
        points = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines
                  if len(line.get_xdata()) == 1]  # fmt: skip
        assert len(points) == len(set(points)) == 3 * phases
        assert axes.get_yscale() == "log"
    said = [text.get_text() for text in picture.legends[0].get_texts()]
    assert "enhanced: 160.0 at 50%" in said
    assert set(PHASES) <= set(said)


def test_a_loss_that_has_no_perplexity_is_read_on_a_linear_axis():
    table = comparison(**{f"{phase}_perplexity": np.nan for phase in PHASES})
    picture = retention(table)
    assert picture.axes[0].get_ylabel() == "test loss"
    assert picture.axes[0].get_yscale() == "linear"
    assert costs(PATH.assign(test_perplexity=np.nan), table).axes[0].get_ylabel() == "test loss"


def test_measured_removal_has_a_point_with_its_error_for_each_neuron():
    removals = TABLE[TABLE["layer"] == "one"].iloc[:9][["layer", "neuron"]]
    removals = removals.assign(loss_increase=np.arange(9.0), standard_error=0.5)
    (axes,) = removal(TABLE, removals, KEEP).axes
    kept, removed = (container.lines[0] for container in axes.containers)
    assert kept.get_ydata().tolist() == [0, 2, 4, 6, 8]
    assert removed.get_ydata().tolist() == [1, 3, 5, 7]
    assert kept.get_xdata().tolist() == TABLE["fused"].iloc[[0, 2, 4, 6, 8]].tolist()
    assert axes.get_title() == "one: 9 measured"
    assert "nat/token" in axes.get_ylabel()


def test_costs_draw_the_path_the_variants_and_the_front():
    picture = costs(PATH, comparison(), ["The machine was busy."])
    assert [axes.get_xlabel() for axes in picture.axes] == [
        "ms a step, batch 1", "parameters", "multiply-adds a token",
    ]  # fmt: skip
    assert "The machine was busy." in picture.get_suptitle()
    assert {container.get_label() for container in picture.axes[1].containers} >= {"dense", "random", "enhanced"}


def test_what_was_tried_has_a_point_each_and_the_fronts_points_their_numbers():
    points = pd.DataFrame(
        {
            "variant": ["surgeon", "random", "surgeon"], "cost": [2e5, 3e5, 9e5], "quality": [150.0, 170.0, 120.0],
            "on_front": [True, False, True], "said": ["30% by surgeon", "50% at random", "nothing removed"],
        }
    )  # fmt: skip
    picture = tried(points, cost="multiply-adds a token", measure="perplexity")
    (axes,) = picture.axes
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", "", None) and len(line.get_xdata())]
    assert sorted(value for line in drawn for value in line.get_ydata()) == [120.0, 150.0, 170.0]
    said = [text.get_text() for text in picture.legends[0].get_texts()]
    assert said == ["front", "surgeon", "random", "1: 30% by surgeon", "2: nothing removed"]
    picture.image()


def test_errors_by_share_are_drawn_with_their_errors():
    errors = pd.DataFrame({"phase": ["removed"] * 2, "retain": [1.0, 0.5], "error": [0, 1.0], "standard_error": 0.1})
    (axes,) = error_by_share(errors, "nat").axes
    assert axes.containers[0].lines[0].get_ydata().tolist() == [1.0, 0.0]
    assert axes.get_ylabel() == "nat"


def test_curves_of_training_hold_every_variant():
    history = pd.DataFrame({"tokens": [10, 20], "train_loss": [5.0, 4.0], "valid_loss": [np.nan, 4.5]})
    (axes,) = training(history).axes
    assert axes.lines[1].get_ydata().tolist() == [4.5]
    both = pd.concat([history.assign(variant=name) for name in ("two", "one")])
    lines = finetuning(both).axes[0].lines
    assert [(line.get_label(), line.get_color()) for line in lines] == [("one", COLOURS[0]), ("two", COLOURS[1])]


def test_a_picture_is_the_same_bytes_each_time_and_whatever_the_program_has_set():
    first = importance_by_layer(TABLE, KEEP).image()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "xtick.labelsize": 30}):
        assert importance_by_layer(TABLE, KEEP).image() == first
    for kind in ("png", "svg"):
        assert correlations(TABLE).image(kind) == correlations(TABLE).image(kind)
    assert correlations(TABLE)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Unknown kind of picture 'wav'; known: "):
        correlations(TABLE).image("wav")


@pytest.mark.parametrize(
    "picture",
    [
        lambda: importance_by_layer(importance({f"model.layers.{n}.mlp.up_proj": 9 for n in range(3)}), {}),
        lambda: correlations(TABLE),
        lambda: cooperation({"one": blocks(9)}),
        lambda: retention(comparison(), PATH),
        lambda: costs(PATH, comparison()),
    ],
)
def test_no_words_of_a_picture_run_into_each_other_or_out_of_it(picture):
    """The constrained layout keeps axes apart; here are their words, at the width of a page."""
    figure = picture()
    assert figure.get_figwidth() <= WIDTH
    figure.image()
    bounds = figure.bbox.padded(1)
    words = [axes.title for axes in figure.axes] + [axes.xaxis.label for axes in figure.axes]
    words += [axes.yaxis.label for axes in figure.axes]
    boxes = [text.get_window_extent() for text in words if text.get_text() and text.get_visible()]
    for box in boxes:
        assert bounds.x0 <= box.x0 <= box.x1 <= bounds.x1, box
    for place, one in enumerate(boxes):
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for other in boxes[place + 1 :])
    for axes in figure.axes:
        labels = [text for text in axes.get_xticklabels() if text.get_text() and text.get_visible()]
        extents = [text.get_window_extent().padded(-0.5) for text in labels if not text.get_rotation()]
        shown = [box for box in extents if axes.bbox.x0 - 30 <= box.x0 <= axes.bbox.x1]
        assert not any(one.overlaps(other) for one, other in pairwise(shown))


def test_kept_and_removed_differ_without_colours_and_no_colour_stands_twice():
    def brightness(colour: str) -> float:
        red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert brightness(REMOVED) - brightness(KEPT) > 0.35
    assert len(set(COLOURS)) == len(COLOURS)


def test_without_matplotlib_the_library_works_and_a_picture_says_what_to_install():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import pandas as pd, pruning, pruning.steps.measuring\n"
        "from pruning.pictures.correlations import correlations\n"
        "table = pd.DataFrame({'layer': 'a', 'neuron': range(4), 'fused': range(4)})\n"
        "try:\n    correlations(table)\nexcept ImportError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "Expected the package matplotlib, got none; pip install 'neuron-pruning[plots]'.\n"


def test_a_picture_is_drawn_once_and_is_the_file_that_matplotlib_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, drawn, content = correlations(TABLE), [], io.BytesIO()
    with style():
        saved.savefig(content, format="png", metadata={"Software": None})
    draw = Picture.draw
    monkeypatch.setattr(Picture, "draw", lambda *words: (drawn.append(1), draw(*words)))
    picture = correlations(TABLE)
    canvas = picture.canvas
    assert picture.image() == content.getvalue()
    assert len(drawn) == 1
    assert picture.canvas is canvas
