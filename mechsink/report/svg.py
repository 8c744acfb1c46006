"""A matplotlib figure as SVG that can live inside a page.

Inline, a figure takes the page's ink and paper, so it reads in dark and light;
its ids are made its own, because several figures share one document; its text
stays text, which can be selected and searched.
May import: results, plotting.
"""

import io
import re
import warnings
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mechsink.files import atomic_write
from mechsink.plotting import Figure
from mechsink.visible import visible

INKS = ("#262626", "#000000", "#333333", "#444444")
"""Colours of text and axes: they become the page's own ink."""

GRIDS = ("#cccccc", "#b0b0b0", "#e5e5e5", "#dddddd")
"""Colours of grids and faint lines: they become the page's faint line."""

WHITE = (1.0, 1.0, 1.0, 1.0)
"""Backgrounds of this colour let the page's paper show through."""

PIXELS = 1.8
"""CSS pixels a point at full width: the same for all, so that text is of one size."""

_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element for an HTML page.

    Args:
        figure: left as it came, but for its legend frames, which are removed.
        name: unique on the page; it prefixes every id. Letters, digits, hyphens.

    Returns:
        Markup without ids that clash, without styles that leak into the page
        and without any reference outside it.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(
            f"inline_svg: name={name!r} cannot start an id. Allowed: a letter, then "
            "letters, digits and hyphens, as in 'sink-scores'."
        )
    patches = [figure.patch, *(axes.patch for axes in figure.axes)]
    patches = [patch for patch in patches if patch.get_facecolor() == WHITE]
    before = [patch.get_alpha() for patch in patches]
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
    for patch in patches:
        patch.set_alpha(0.0)
    try:
        text = _svg(figure)
    finally:
        for patch, alpha in zip(patches, before, strict=True):
            patch.set_alpha(alpha)
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    width = float(re.search(r'<svg[^>]*? width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"',
        rf'\1 style="max-width: {PIXELS * width:.0f}px"',
        text,
        count=1,
    )
    # inside tags only: a token may read like an attribute
    text = re.sub(r"<[^>]+>", lambda tag: _restyled(tag[0], name), text)
    text = re.sub(r"\n\s*", "\n", text)
    return Markup(text.strip())  # matplotlib escapes the texts it draws


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.svg (text as text) and NAME.png (200 dots an inch).

    Raises:
        OSError: the folder cannot be written.
    """
    png = io.BytesIO()
    with warnings.catch_warnings():
        _quiet()
        figure.savefig(png, format="png", dpi=200, bbox_inches="tight")
    return [
        atomic_write(folder / f"{name}.svg", _svg(figure)),
        atomic_write(folder / f"{name}.png", png.getvalue()),
    ]


def _restyled(tag: str, name: str) -> str:
    """One tag with its id made the figure's own and its colours made the page's."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(\bhref="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    for ink in INKS:
        tag = tag.replace(f": {ink}", ": currentColor")
    for grid in GRIDS:
        tag = tag.replace(f": {grid}", ": var(--grid)")
    return tag


def _quiet() -> None:
    """No warning of a token that is emoji, or of a name that takes all the room."""
    warnings.filterwarnings("ignore", "Glyph .* missing")
    warnings.filterwarnings("ignore", "constrained_layout not applied")


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    # a salt fixes the ids, so that the same figure gives the same bytes
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "mechsink"}
    with mpl.rc_context(style), warnings.catch_warnings():
        _quiet()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata=_METADATA)
    return visible(out.getvalue())  # XML has no place for control characters
