"""A figure that a notebook shows without further words, and whose file is the same bytes each time."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pruning.core.options import expect_known
from pruning.pictures.style import style


class Picture(Figure):
    """A figure of matplotlib's that looks the same wherever it is drawn.

    >>> Picture(figsize=(2, 1)).image("svg").startswith(b"<?xml")
    True
    """

    def draw(self, renderer: Any) -> None:
        """Draw in the style that the figure was made in: some of it, as the size of ticks' labels, is read only now."""
        with style():
            super().draw(renderer)

    def image(self, kind: str = "png") -> bytes:
        """Return the picture as a file's content, the same bytes for the same picture.

        Args:
            kind: `png`, `svg` or another that matplotlib knows.

        Raises:
            ValueError: For an unknown one.
        """
        unstamped = {"png": {"Software": None}, "svg": {"Date": None}}
        expect_known("kind of picture", sorted(self.canvas.get_supported_filetypes()), kind)
        content, canvas = io.BytesIO(), self.canvas
        with style():
            if kind != "png":
                self.savefig(content, format=kind, metadata=unstamped.get(kind))
                return content.getvalue()
            try:  # which draws once, and places all before; `savefig` draws once more only to place all
                once: Any = FigureCanvasAgg(self)
                once.print_png(content, metadata=unstamped[kind])
            finally:
                self.set_canvas(canvas)
        return content.getvalue()

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        return self.image()
