"""How every picture looks: colours that everybody can tell apart, type that can be read at a page's width."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pruning.extras import needed

WIDTH = 10.0
"""Of a picture in inches: 800 pixels at 80 dots an inch, which a page has room for."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7F7F7F", "#882255", "#117733")
"""Okabe and Ito's colours, and three more: whoever sees no red or no green tells them apart."""
KEPT, REMOVED, INK, FAINT = COLOURS[0], "#F5C26B", "#222222", "#999999"
"""Kept neurons are dark, removed ones light, so that print without colours tells them apart too."""
SIGNED = "RdBu_r"
"""From −1, blue, by way of white to 1, red."""
MARKERS = "osD^vP*X<>"
SMALL = 9
"""The smallest type, in points."""
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "svg.hashsalt": "fixed",
}


@contextmanager
def style() -> Iterator[None]:
    """Within the context, matplotlib draws in this style alone.

    Raises:
        ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
    """
    mpl = needed("matplotlib", "plots")
    from cycler import cycler  # which comes with it

    with mpl.rc_context():
        mpl.rcdefaults()
        ours: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
        mpl.rcParams.update(ours)
        yield
