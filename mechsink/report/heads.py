"""`heads_report`: which heads rest on one kind of text and work on another, as a page.

May import: run, sinks, results, plotting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.report.html import Headline, Page, Plot, Section, TokenText, settings_rows
from mechsink.report.maps import Choice, Maps, fits
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.svg import inline_svg
from mechsink.report.tables import to_table
from mechsink.run import Model
from mechsink.sinks.dormant.heads import active_dormant
from mechsink.sinks.dormant.result import ActiveDormant
from mechsink.sinks.dormant.texts import Texts

SHOWN = 40  # heads in a table of the page; all stand in table.csv


@dataclass(frozen=True, eq=False)
class HeadsReport(PagedResult, ActiveDormant):
    """`ActiveDormant` with a page.

    Examples:
        >>> from toy_tasks.planted.dormant import dormant_head
        >>> case = dormant_head()
        >>> texts = {name: case.sample(name, 20, seed=1) for name in ("rest", "work")}
        >>> report = ms.heads_report(ms.load_model(case.model), texts, n_pos=16)
        >>> isinstance(report, ms.ActiveDormant), report.heads()
        (True, [(0, 2)])
    """

    def draw(self) -> Drawn:
        """Every head a dot, one domain against the other; and every head by place."""
        import matplotlib.pyplot as plt

        figure = plotting.figure_of(self.plot())
        plt.close(figure)
        other = self.domains[1] if len(self.domains) == 2 else "the others' mean"
        plot = Plot(
            inline_svg(figure, "heads"),
            f"Attention to position {self.position}: {self.domains[0]} against {other}",
            "A dot a head; on the diagonal it is the same in both. The cross is a head "
            "that attends evenly to all it sees. Coloured: differs at q < .05; filled: "
            "zeroing it costs more where it is active.",
        )
        return {"heads": (figure, plot), "heads-by-layer": self._by_layer()}

    def _by_layer(self) -> tuple[plotting.Figure, Plot]:
        """The contrast of each head where it stands in the model."""
        import matplotlib.pyplot as plt

        first = self.domains[0]
        grid = self.rows_of(first).pivot(
            index="head", columns="layer", values="difference"
        )
        other = self.domains[1] if len(self.domains) == 2 else "others"
        with plotting.theme():
            ax = plotting.new_axes(height=0.62 * plotting.WIDTH)
            label = plotting.literal(f"{first} minus {other}", 30)
            plotting.heat_map(ax, grid, label, diverging=True)
        figure = plotting.figure_of(ax)
        plt.close(figure)
        return figure, Plot(
            inline_svg(figure, "heads-by-layer"),
            "Every head in its place",
            f"Attention to position {self.position}, {first} minus {other}: above 0 "
            "the head rests there. Choose a domain to see its own dormancy.",
            maps=contrast_maps(self),
        )

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page: how many heads differ, which, and what they are worth.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        plots = [plot for _, plot in (drawn or self.draw()).values()]
        n_heads = len(self.table[["layer", "head"]].drop_duplicates())
        flagged, confirmed = self.heads(), self.confirmed()
        texts: Any = self.meta["settings"]["n_texts"]
        counts = ", ".join(f"{n} of {name}" for name, n in texts.items())
        table: Any = self.table
        order = np.argsort(table["q_value"].to_numpy(), kind="stable")
        means = table[self.domains].mean()
        return Page(
            title=f"Active and dormant heads of {self.meta['model']}",
            summary=(
                f"Texts: {counts}; {self.meta['settings']['n_pos']} tokens of each. "
                f"Dormancy is a head's mean attention to position {self.position}.",
                f"{len(flagged)} of {n_heads} heads differ between domains at q < .05 "
                f"(expected false among them: 5 %); {len(confirmed)} of those tested "
                "cost the domain in which they are active more when zeroed.",
            ),
            headlines=(
                *(
                    Headline(f"{means[name]:.3f}", f"mean dormancy, {name}", "0 to 1")
                    for name in self.domains
                ),
                Headline(str(len(flagged)), "heads differ", f"of {n_heads}, q < .05"),
                Headline(str(len(confirmed)), "confirmed", "by zeroing"),
            ),
            sections=(
                Section(
                    "Heads",
                    figures=tuple(plots),
                    tables=(
                        to_table(
                            table.iloc[order].head(SHOWN),
                            "Heads by q-value",
                            caption="low, high: 95 % interval over texts; zeroed_NAME: "
                            "added loss of that domain without the head, nats a token. "
                            "All heads stand in table.csv.",
                        ),
                        to_table(
                            self.confirmation,
                            "Edited heads",
                            caption="difference: added loss where the head is active "
                            "minus where it is dormant, nats a token.",
                        ),
                    ),
                ),
            ),
            texts=tuple(
                TokenText.from_meta(f"Text {i}", entry)
                for i, entry in enumerate(self.meta["tokens"])
            ),
            settings=settings_rows(self.meta),
            notes=tuple(self.meta["notes"]),
        )


def contrast_maps(report: ActiveDormant) -> Maps | None:
    """Each domain's contrast, then each domain's dormancy, by layer and head."""
    grids, names = [], []
    contrasts = report.domains if len(report.domains) > 2 else report.domains[:1]
    for name in contrasts:
        grids.append(_grid(report.rows_of(name), "difference"))
        other = "the others" if len(report.domains) > 2 else report.domains[1]
        names.append(f"{name} minus {other}")
    heads: Any = report.table.drop_duplicates(["layer", "head"])
    for name in report.domains:
        grids.append(_grid(heads, name))
        names.append(name)
    rows, columns = grids[0].index, grids[0].columns
    if not fits(len(grids), len(rows), len(columns)):
        return None
    values = np.stack([grid.to_numpy(float) for grid in grids])
    reach = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return Maps(
        values,
        rows=tuple(map(str, rows)),
        columns=tuple(map(str, columns)),
        names=("head", "layer", "attention"),
        limits=(-reach, reach),
        choices=(Choice("Show", tuple(names)),),
        diverging=True,
    )


def _grid(table: Any, value: str) -> Any:
    return table.pivot(index="head", columns="layer", values=value)


@any_model
def heads_report(
    model: Model,
    texts: Mapping[str, Texts],
    *,
    notes: list[str] | None = None,
    **options: Any,
) -> HeadsReport:
    """`active_dormant` with a page; options are its own.

    Args:
        model: any model.
        texts: domain name to its texts.
        notes: what a reader should know about the texts, beside what is found out.
        options: as for `active_dormant`.

    Returns:
        A `HeadsReport`: `.save(folder)` writes tables, figures and report.html.

    Raises:
        ValueError: as `active_dormant`.

    Source: after Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from toy_tasks.planted.dormant import dormant_head
        >>> case = dormant_head()
        >>> texts = {name: case.sample(name, 20, seed=1) for name in ("rest", "work")}
        >>> report = ms.heads_report(ms.load_model(case.model), texts, n_pos=16)
        >>> report.to_html("heads.html").name
        'heads.html'
    """
    found = active_dormant(model, texts, **options)
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    report = HeadsReport(**values)
    meta = {**found.meta, "notes": [*(notes or []), *found.meta["notes"]]}
    return replace(report, meta=meta)
