"""Results that have a page: saved with figures and one report.html."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mechsink.plotting import Figure
from mechsink.report.html import Page, Plot, write_page
from mechsink.report.svg import save_figure
from mechsink.results import Result

Drawn = Mapping[str, tuple[Figure, Plot]]
"""File name to a figure and what the page says of it."""


@dataclass(frozen=True, eq=False)
class PagedResult(Result):
    """A result that draws figures and tells itself on a page."""

    def draw(self) -> Drawn:
        """Every figure of the page."""
        raise NotImplementedError

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page, with figures drawn already or now."""
        raise NotImplementedError

    def save(self, folder: Path | str) -> Path:
        """Tables as CSV, meta.json, figures as SVG and PNG, and report.html.

        Raises:
            OSError: the folder cannot be written.
        """
        return self.save_drawn(folder, self.draw())

    def save_drawn(self, folder: Path | str, drawn: Drawn) -> Path:
        """`save` with figures that `draw` has made already."""
        folder = super().save(folder)
        for name, (figure, _) in drawn.items():
            save_figure(figure, folder / "figures", name)
        write_page(self.page(drawn), folder / "report.html")
        return folder

    def to_html(self, path: Path | str) -> Path:
        """Write the page alone: one file that opens anywhere.

        Raises:
            OSError: the path cannot be written.
        """
        return write_page(self.page(), path)
