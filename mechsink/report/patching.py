"""`patch_report`: several sweeps of the same pairs, with a page.

May import: sites, run, results, plotting, prompts, interventions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.interventions.patching import Direction, PatchingResult, patch_sweep
from mechsink.interventions.places import PART_COLUMN
from mechsink.models.any_model import any_model
from mechsink.prompts import PromptPairs
from mechsink.report.html import Headline, Page, Plot, Section, TokenText, settings_rows
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.patching_maps import TOKENS, pair_tokens, sweep_maps
from mechsink.report.sink_tables import ENOUGH, bootstrap
from mechsink.report.svg import inline_svg
from mechsink.report.tables import number, to_table
from mechsink.run import Metric, Model
from mechsink.sites import AXES

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
SHOWN = 40  # places in a table of the page; all stand in table.csv
WORDS = {
    "denoising": "a value of the clean run is put into the corrupted one: 0 leaves it "
    "as it was, 1 brings all of the clean run's metric back (is this place enough?)",
    "noising": "a value of the corrupted run is put into the clean one: 0 leaves it as "
    "it was, 1 takes it all the way to the corrupted run's (is this place needed?)",
}


@dataclass(frozen=True, eq=False)
class PatchReport(PagedResult):
    """Sweeps over several sites for the same pairs.

    `table`: site, prompt, layer, head, kv_head, pos, value, effect, as in
    `PatchingResult`, NaN where a site has no such axis. `runs`: prompt, clean and
    corrupted metric, and noise_SITE, the noise floor of each site's sweep. `tokens`:
    prompt, pos, clean, corrupted: what stands at each position.

    Attributes:
        direction: "denoising" or "noising": which run the other's values were put into.

    Examples:
        >>> case = ms.planted("induction")
        >>> report = ms.patch_report(case.model, case.pairs, ms.logit_diff)
        >>> report.sites, list(report.places("z"))
        (['resid_pre', 'attn_out', 'mlp_out', 'z'], ['layer', 'pos', 'head', 'effect'])
    """

    runs: pd.DataFrame
    direction: Direction
    metric: str
    tokens: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=[*TOKENS])
    )

    def sweep(self, site: str) -> PatchingResult:
        """One site's sweep.

        Args:
            site: one of `sites`.
        """
        table: Any = self.table[self.table["site"] == site].drop(columns="site")
        table = table.dropna(axis=1, how="all").reset_index(drop=True)
        for name in {"prompt", "layer", "pos", *PART_COLUMN.values()} & {*table}:
            table[name] = table[name].astype("int64")
        clean, corrupted = (self.runs[c].tolist() for c in ("clean", "corrupted"))
        name = f"noise_{site}"  # each site's values enter at another place
        noise = self.runs[name].tolist() if name in self.runs else []
        return PatchingResult(
            table, self.meta, site, self.direction, self.metric, clean, corrupted, noise
        )

    @property
    def sites(self) -> list[str]:
        """Swept sites, in order."""
        return list(self.table["site"].unique())

    def places(self, site: str) -> pd.DataFrame:
        """Mean effect at each place, largest first, with an interval over many pairs.

        layer, (head,) pos, effect, and low, high from 50 pairs on: the 95 %
        percentile bootstrap interval of the mean.

        Args:
            site: one of `sites`.
        """
        table = self.sweep(site).table
        keys = [c for c in table.columns if c not in ("prompt", "value", "effect")]
        wide = table.pivot_table(index="prompt", columns=keys, values="effect")
        found: Any = wide.mean().rename("effect").reset_index()
        if len(wide) >= ENOUGH:
            found["low"], found["high"] = bootstrap(wide.to_numpy())
        order = found["effect"].abs().sort_values(ascending=False).index
        return found.loc[order].reset_index(drop=True)

    def plot(
        self, ax: plotting.Axes | None = None, *, site: str | None = None
    ) -> plotting.Axes:
        """Heat map of one site's sweep, by default the first's.

        Args:
            ax: where to draw; a new figure by default.
        """
        return self.sweep(self.sites[0] if site is None else site).plot(ax)

    def draw(self) -> Drawn:
        """One heat map a site."""
        import matplotlib.pyplot as plt

        drawn = {}
        for site in self.sites:
            sweep = self.sweep(site)
            figure = plotting.figure_of(sweep.plot())
            plt.close(figure)
            by_head = "head" in sweep.table or "kv_head" in sweep.table
            what = "head" if by_head else "position"
            drawn[f"patch-{site}"] = (
                figure,
                Plot(
                    inline_svg(figure, f"patch-{site}"),
                    f"Patching {site}, layer by {what}",
                    f"Mean over pairs; {WORDS[self.direction]}.",
                    maps=sweep_maps(sweep, self.tokens),
                ),
            )
        return drawn

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page: what was asked, how each run answers, what each place does.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        plots = {name: plot for name, (_, plot) in (drawn or self.draw()).items()}
        clean, corrupted = (
            self.runs[column].to_numpy() for column in ("clean", "corrupted")
        )
        texts = enumerate(self.meta["tokens"])
        found = {site: self.places(site) for site in self.sites}
        return Page(
            title=f"Patching {self.meta['model']}",
            summary=(
                f"{len(self.runs)} pairs of prompts, metric {self.metric}. "
                f"{self.direction.capitalize()}: {WORDS[self.direction]}.",
                *self._found(found),
            ),
            headlines=(
                Headline(number(clean.mean()), "metric, clean", _spread(clean)),
                Headline(
                    number(corrupted.mean()), "metric, corrupted", _spread(corrupted)
                ),
                *[_strongest(site, places) for site, places in found.items()][:3],
            ),
            sections=tuple(
                Section(
                    site,
                    figures=(plots[f"patch-{site}"],),
                    tables=(
                        to_table(
                            found[site].head(SHOWN),
                            f"Places of the largest effect, {site}",
                            caption="Mean over pairs, largest first; pos −1 means all "
                            "positions together. Every pair stands in table.csv.",
                        ),
                    ),
                )
                for site in self.sites
            ),
            texts=tuple(
                TokenText.from_meta(f"Prompt {i}", entry) for i, entry in texts
            ),
            settings=settings_rows(self.meta),
            notes=self._notes(),
        )

    def _found(self, places: Mapping[str, Any]) -> tuple[str, ...]:
        """Where each site does most, in words."""
        parts = [
            f"{site} at {_place(best, best.index)} ({best['effect']:.2f})"
            for site, best in ((s, p.iloc[0]) for s, p in places.items() if len(p))
        ]
        if not parts:
            return ()
        return (f"The single places that do most: {'; '.join(parts)}.",)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        span = (self.runs["clean"] - self.runs["corrupted"]).abs()
        weak = int(np.sum(span.to_numpy() < 0.1 * np.median(span)))
        if weak:
            notes.append(
                f"{weak} of {len(span)} pairs move the metric by less than a tenth of "
                "the median pair: their effects are quotients of small numbers."
            )
        notes += self._below_noise()
        if len(self.runs) < ENOUGH:
            notes.append(
                f"Fewer than {ENOUGH} pairs: means carry no interval; look at "
                "every pair in table.csv."
            )
        if left_out := self.meta.get("left_out"):
            which, error = next(iter(left_out.items()))
            notes.append(
                f"{len(left_out)} pairs gave an error and were left out. The first, "
                f"pair {which} of the input: {error}"
            )
        if quantized := self.meta["model_info"].get("weights_note"):
            notes.append(f"Weights: {quantized}")
        return tuple(notes)

    def _below_noise(self) -> list[str]:
        """How many patches did nothing that rounding may not do."""
        sweeps = [self.sweep(site) for site in self.sites]
        if not all(sweep.noise for sweep in sweeps):
            return []
        small = np.concatenate([sweep.below_noise() for sweep in sweeps])
        floor = max(max(sweep.noise) for sweep in sweeps)
        return [
            f"{small.sum()} of {small.size} patches moved the metric by no more than "
            f"rounding in {self.meta['dtype']} may (the noise floor, here up to "
            f"{floor:.1g}); dots mark such places where the metric did move."
        ]


@any_model
def patch_report(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    sites: Sequence[str] = SITES,
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    sweep: Callable[..., PatchingResult] = patch_sweep,
) -> PatchReport:
    """Sweep several sites and put them on a page.

    Sites with heads are patched head by head over all positions together, others
    position by position.

    Args:
        model: any model.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt.
        sites: which, each with a sweep of its own.
        sweep: what sweeps, called as `patch_sweep` is; to use many processes or
            machines, a function that calls `ms.spread`.
        direction: "denoising" or "noising", as for `patch_sweep`.
        layers: which; default all.

    Returns:
        A `PatchReport`: `.save(folder)` writes tables, figures and report.html.

    Raises:
        ValueError: as `patch_sweep`, or no sites.

    Examples:
        >>> case = ms.planted("induction")
        >>> report = ms.patch_report(case.model, case.pairs, ms.logit_diff, sites=["z"])
        >>> best = report.places("z").iloc[0]
        >>> int(best.layer), int(best["head"])
        (1, 0)
    """
    if not sites:
        raise ValueError(
            f"patch_report: no sites. Name some, for example {', '.join(SITES)}."
        )
    tables, engines, noise, found = [], {}, {}, None
    for site in dict.fromkeys(sites):
        by_head = {"head", "kv_head"} & {*AXES.get(site, ())}
        where = "all" if by_head else None
        found = sweep(
            model, pairs, metric, site=site, direction=direction, layers=layers,
            positions=where,
        )  # fmt: skip
        tables.append(found.table.assign(site=site))
        engines[site] = found.meta["settings"]["engine"]
        noise[f"noise_{site}"] = found.noise
    assert found is not None
    table: Any = pd.concat(tables, ignore_index=True)
    table = table[["site", *(c for c in table.columns if c != "site")]]
    runs = pd.DataFrame({"clean": found.clean, "corrupted": found.corrupted, **noise})
    runs.insert(0, "prompt", np.arange(len(runs)))
    settings = {**found.meta["settings"], "site": list(engines), "engine": engines}
    meta = {**found.meta, "settings": settings}
    # of pairs that were left out no tokens are known
    known = {} if meta.get("left_out") else {"tokens": pair_tokens(model, pairs)}
    return PatchReport(table, meta, runs, direction, repr(metric), **known)


def _spread(values: np.ndarray) -> str:
    """The mean's interval over many pairs, else the ends of what single pairs gave."""
    if len(values) >= ENOUGH:
        low, high = (end[0] for end in bootstrap(values[:, None]))
        return f"{number(low)} to {number(high)} (95 %, bootstrap over pairs)"
    return f"{number(values.min())} to {number(values.max())} over pairs"


def _strongest(site: str, found: Any) -> Headline:
    if found.empty:
        return Headline("–", site, "clean and corrupted agree")
    top = found.iloc[0]
    where = [_place(top, found.columns)]
    if "low" in found:
        where.append(f"{top['low']:.2f} to {top['high']:.2f} (95 %)")
    return Headline(f"{top['effect']:.2f}", f"largest effect, {site}", ", ".join(where))


def _place(row: Any, names: Collection[str]) -> str:
    """Layer, head or position of one row of a table."""
    where = [f"layer {row['layer']:.0f}"]
    where += [
        f"{name.replace('_', ' ')} {row[name]:.0f}"
        for name in PART_COLUMN.values()
        if name in names
    ]
    if row["pos"] >= 0:
        where.append(f"position {row['pos']:.0f}")
    return ", ".join(where)
