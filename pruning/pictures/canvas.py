"""What a picture is drawn on: sheets in the project's style, ticks, short names, and the layers that have room."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from pruning.core.options import expect_known
from pruning.pictures.style import COLOURS, MARKERS, SMALL, WIDTH, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

P = ParamSpec("P")


def drawn(make: "Callable[P, Picture]") -> "Callable[P, Picture]":
    """Let a function that draws do so in this style, whatever the program that calls it has set.

    Raises:
        ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
    """

    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> "Picture":
        with style():
            return make(*args, **kwargs)

    return styled


def sheet(height: float, width: float = WIDTH) -> "Picture":
    """Return an empty picture of so many inches, in which nothing overlaps."""
    from pruning.pictures.figure import Picture

    return Picture(figsize=(width, height), layout="constrained")


def one(
    title: str, horizontal: str, vertical: str, *, height: float = 4.6, width: float = 7.5
) -> "tuple[Picture, Axes]":
    """Return a picture with one pair of axes."""
    picture = sheet(height, width)
    axes = picture.subplots()
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    return picture, axes


def few(axes: "Axes", *, horizontal: int = 3, vertical: int = 3) -> None:
    """Let small axes have few ticks in small type, which do not run into each other."""
    from matplotlib.ticker import MaxNLocator

    for axis, count in ((axes.xaxis, horizontal), (axes.yaxis, vertical)):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(count, min_n_ticks=2, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=SMALL)


def short(name: str, letters: int) -> str:
    """Return a layer's name, or its end where it is long.

    >>> short("model.layers.12.mlp.up_proj", 12)
    '….mlp.up_proj'
    """
    return name if len(name) <= letters else f"…{name[-letters:]}"


def look(place: int) -> dict[str, Any]:
    """Return colour and marker of the so-manieth of several things, which no other of them shares."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def shown_layers(names: Sequence[str], wanted: Sequence[str] | None, most: int) -> tuple[list[str], str]:
    """Return the layers that a picture has room for, and what to say of the others.

    >>> shown_layers(["a", "b", "c"], None, 2)
    (['a', 'b'], ' (2 of 3 layers; name others with `layers`)')

    Args:
        names: All layers.
        wanted: Those that were asked for, all of which are shown; None: as many as there is room for.
        most: How many that is.

    Raises:
        ValueError: For an unknown layer.
    """
    if wanted is not None:
        expect_known("layer", names, *wanted)
        return list(wanted), ""
    if len(names) <= most:
        return list(names), ""
    return list(names[:most]), f" ({most} of {len(names)} layers; name others with `layers`)"
