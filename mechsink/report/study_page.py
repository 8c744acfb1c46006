"""The page of a study: its claims, each with what was measured, figures and tables.

May import: results, plotting, experiments.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from mechsink.experiments.study import Study
from mechsink.plotting import Figure
from mechsink.report.html import Headline, Page, Plot, Section, settings_rows
from mechsink.report.svg import inline_svg
from mechsink.report.tables import number, to_table

HEADLINES = 4
"""Claims whose numbers stand above the page; all stand in its first table."""

HEAVY = 600_000
"""Characters from which a figure goes into the page as a picture."""


def study_page(study: Study, command: str, figures: Mapping[str, Figure]) -> Page:
    """The whole page.

    Args:
        study: any experiment's result.
        command: what made it.
        figures: `study.figures()`, drawn once for page and files.
    """
    claims: Any = study.claims
    held = int(claims["holds"].astype(bool).sum())
    failed = claims.loc[~claims["holds"].astype(bool), "claim"]
    summary = [
        f"{held} of {len(claims)} claims hold; each stands below with its bound."
    ]
    if study.about():
        summary.insert(0, study.about())
    notes = [f"Does not hold: {sentence}." for sentence in failed]
    plots = tuple(
        Plot(
            _drawing(figure, name),
            name.replace("-", " ").capitalize(),
            "",
            wide=bool(figure.get_figwidth() > 5),
        )
        for name, figure in figures.items()
    )
    tables = tuple(to_table(table, head) for head, table in study.tables().items())
    return Page(
        title=study.title,
        summary=tuple(summary),
        headlines=tuple(_headlines(claims)),
        sections=(
            Section("Claims", tables=(_claims(claims),)),
            *([Section("Figures", figures=plots)] if plots else []),
            *([Section("Tables", tables=tables)] if tables else []),
        ),
        settings=(("made by", command), *settings_rows(study.meta)),
        notes=tuple(notes),
    )


def _drawing(figure: Figure, name: str) -> Markup:
    """The figure as lines and text, or as a picture where those would weigh much."""
    svg = inline_svg(figure, f"study-{name}")
    if len(svg) <= HEAVY:
        return svg
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white")
    data = base64.b64encode(png.getvalue()).decode()
    label = name.replace("-", " ")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(label, data)


def _headlines(claims: Any) -> list[Headline]:
    """The first claims' numbers, each with its interval and the bound."""
    found = []
    for row in claims.head(HEADLINES).to_dict("records"):
        between = (
            f"{number(row['low'])} to {number(row['high'])} (95 %); "
            if not pd.isna(row["low"])
            else ""
        )
        note = f"{between}wanted {row['wanted']}"
        found.append(Headline(number(row["measured"]), row["claim"], note))
    return found


def _claims(claims: pd.DataFrame) -> Any:
    names = {
        "claim": "claim",
        "measured": "measured",
        "low": "95 % from",
        "high": "95 % to",
        "wanted": "wanted",
        "holds": "holds",
    }
    shown = claims.assign(holds=["yes" if x else "no" for x in claims["holds"]])
    return to_table(
        shown,
        "What was claimed, and what was measured",
        names=names,
        caption="Means over seeds carry Student-t intervals; a claim holds if its "
        "whole interval lies on the wanted side.",
    )
