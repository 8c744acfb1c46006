"""Does a sink grow as its reduced dynamics say? Theory beside training.

Three quantities against time (step size times steps): the sink's logit, the norm of
its value, the loss on ordinary queries. Four sources: the reduced model; the same with
contexts that the sink's value can cancel; a planted toy in which only the sink trains;
a toy trained whole, by SGD.
Source: after the theory of Guo et al. 2024 (arXiv:2410.13835).
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.experiments.dynamics.paths import (
    VOCAB,
    apart,
    of_flow,
    planted_path,
    reduced_path,
    same_writes,
    whole_path,
    whole_preset,
)
from mechsink.experiments.grids.seeds import cell
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.intervals import student_t
from mechsink.plotting import Axes, Figure
from mechsink.progress import bar
from mechsink.provenance import versions
from toy_tasks.dynamics.model import resting_alpha
from toy_tasks.dynamics.reduced import WEIGHT, Slopes, slopes

THEORY = Slopes(alpha=0.5, beta=-0.5, loss=-1.0)
SOURCES = {
    "reduced": "reduced model",
    "constant": "others write the same",
    "planted": "toy, only the sink trains",
    "whole": "toy, all trains",
}
PANELS = {
    "alpha": "sink logit (nats)",
    "beta": "norm of the sink's value",
    "loss": "excess loss (nats)",
}


@dataclass(frozen=True, eq=False)
class SinkDynamics(Study):
    """Sink logit, value norm and loss through time.

    `table`: source (of `SOURCES`), seed, time (step size times steps), alpha (mean
    sink logit of non-trigger queries, nats), beta (norm of `<s>`'s value: logits, for
    "whole" units of the residual stream), loss (excess on non-trigger queries, nats).

    Examples:
        A study of made-up numbers, to be read as a measured one is:

        >>> import pandas as pd
        >>> from mechsink.experiments.study import as_claims
        >>> times = [1.0, 10.0, 60.0, 80.0, 100.0]
        >>> rows = [("reduced", 0, t, 0.5 * t**0.1, t**-0.5, 1 / t) for t in times]
        >>> columns = ["source", "seed", "time", "alpha", "beta", "loss"]
        >>> table = pd.DataFrame(rows, columns=columns)
        >>> study = ms.SinkDynamics(table, {}, as_claims([]))
        >>> list(study.slopes())
        ['source', 'seed', 'until', 'alpha', 'beta', 'loss']
    """

    title: ClassVar[str] = "Does a sink grow as its reduced dynamics say?"

    def slopes(self) -> pd.DataFrame:
        """Last octave: source, seed, until (its end), slopes alpha, beta, loss."""
        rows = []
        for key, part in self.table.groupby(["source", "seed"], sort=False):
            source, seed = list(key)  # pyright: ignore[reportArgumentType]
            t, alpha, beta, loss = (
                np.asarray(part[name], dtype=float) for name in ("time", *PANELS)
            )
            end = float(t.max())
            found = slopes(t, alpha, beta, loss, end / 2, end)
            rows.append((source, seed, end, found.alpha, found.beta, found.loss))
        return pd.DataFrame(rows, columns=["source", "seed", "until", *PANELS])

    def plot(self, ax: Axes | None = None, *, column: str = "alpha") -> Axes:
        """A column against log time, a line a seed, theory's slope dashed.

        Raises:
            ValueError: no such column.

        Args:
            ax: where to draw; a new figure by default.
        """
        if column not in PANELS:
            raise ValueError(
                f"SinkDynamics.plot: column={column!r}. Allowed: {', '.join(PANELS)}."
            )
        with plotting.theme():
            ax = ax or plotting.new_axes()
            self._draw(ax, column)
            ax.set(title="", ylabel=PANELS[column])
            ax.legend(fontsize="x-small")
        return ax

    def figures(self) -> dict[str, Figure]:
        """Three panels against log time, a line a seed, theory's slope dashed."""
        with plotting.theme():
            panels = plotting.new_panels(len(PANELS), columns=3, height=2.2)
            for ax, name in zip(panels, PANELS, strict=True):
                self._draw(ax, name)
            figure = plotting.figure_of(panels[0])
            named = panels[0].get_legend_handles_labels()
            place = "outside lower center"  # inside it would hide lines
            figure.legend(*named, loc=place, ncols=5, fontsize="x-small")
            return {"dynamics": figure}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Slopes over the last octave: means with intervals, and every seed."""
        each = self.slopes()
        rows = [
            {"source": "theory"} | {n: f"{getattr(THEORY, n):g}" for n in PANELS},
        ]
        for source, part in each.groupby("source", sort=False):
            row = {"source": SOURCES[str(source)]}
            for name in PANELS:
                values = part[name].tolist()
                row[name] = cell(float(np.mean(values)), *student_t(values))
            rows.append(row | {"until": f"{part['until'].max():.3g}"})
        return {
            "Slopes over the last octave, 95 % Student-t intervals": pd.DataFrame(rows),
            "Every seed": each,
        }

    def _draw(self, ax: Axes, name: str) -> None:
        for source, colour in zip(SOURCES, plotting.colours(4), strict=True):
            part = self.table[self.table["source"] == source]
            label: str | None = SOURCES[source]
            for _, line in part.groupby("seed"):
                if name == "loss":  # at rest nothing but rounding is left
                    line = line[line["loss"] > 1e-12]
                ax.plot(line["time"], line[name], color=colour, lw=0.8, label=label)
                label = None
        theory = self.table[self.table["source"] == "reduced"]
        end = theory["time"].max()
        last = theory.loc[theory["time"] == end, name].mean()
        x = np.array([end / 1000, end])
        slope = getattr(THEORY, name)
        if name == "alpha":
            y = last + 1.0 + slope * np.log(x / end)  # beside the lines, not on them
        else:
            y = 2.0 * last * (x / end) ** slope
            ax.set_yscale("log")
        ax.plot(x, y, "--", color="0.3", lw=1, label="theory's slope")
        ax.set_xscale("log")
        ax.set(xlabel="time (step size x steps)", title=PANELS[name])


def sink_dynamics(
    folder: str | Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    progress: bool | None = None,
) -> SinkDynamics:
    """Local slopes of theory, of a planted toy and of a whole toy, over seeds.

    The reduced model runs on random tables of 10 tokens until time 1e6 as gradient
    flow, and once more as descent with half the stable step: both must agree. The
    planted toy (`toy_tasks.dynamics.toy`) trains on random Bigram-Backcopy tasks by
    full-batch descent. The whole toy is attention-only with layer norm and plain SGD
    on sampled tokens; no theory covers its path, so its slopes are shown, not claimed.

    Args:
        folder: for the whole toys' runs, resumed; None: a temporary one.
        seeds: of tables, tasks and weights; default 0 to 4.
        quick: shorter trainings, under a minute; wider bands for them.
        progress: show a bar with time left; None: on terminals, in notebooks.

    Returns:
        A `SinkDynamics`, one row a source, seed and time.

    Raises:
        ValueError: fewer than two seeds.

    Source: after the theory of Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> study = ms.sink_dynamics(seeds=[0, 1], quick=True, progress=False)
        >>> study.table.source.unique().tolist()
        ['reduced', 'constant', 'planted', 'whole']
    """
    seeds = list(range(5)) if seeds is None else list(seeds)
    if len(seeds) < 2:
        raise ValueError(
            f"sink_dynamics: seeds={seeds}. Intervals need at least two; pass more."
        )
    started = time.perf_counter()
    until = 1e6
    planted = {"steps": 600 if quick else 4000, "lr": 6.0}
    whole = whole_preset(quick)
    toys = seeds[:3] if quick else seeds
    tables: list[pd.DataFrame] = []
    gaps, limits, rises = [], [], 0
    with bar("sink dynamics", 2 * len(seeds) + 2 * len(toys), progress) as advance:
        for seed in seeds:
            flow = reduced_path(seed, until)
            step = flow.stability_limit / 2
            descent = reduced_path(seed, 3e4 if quick else until, step=step)
            gaps.append(apart(flow, descent))
            limits.append(flow.stability_limit)
            tables.append(of_flow("reduced", seed, flow))
            advance(1)
            tables.append(of_flow("constant", seed, reduced_path(seed, 1e5, True)))
            advance(1)
        for seed in toys:
            found, n_rises = planted_path(seed, **planted)
            tables.append(found)
            rises += n_rises
            advance(1)
        with _folder(folder) as place:
            for seed in toys:
                tables.append(whole_path(seed, whole, place / f"seed-{seed}"))
                advance(1)
    table = pd.concat(tables, ignore_index=True)
    meta = {
        "versions": versions(),
        "settings": {
            "seeds": seeds,
            "toy_seeds": toys,
            "quick": quick,
            "until": until,
            "planted": planted,
            "whole": whole.to_json(),
        },
        "flow_against_descent": gaps,  # largest difference of mean alpha, nats
        "stability_limits": limits,
        "planted_loss_rises": rises,  # updates after which the training loss was higher
        "duration_s": round(time.perf_counter() - started, 1),
    }
    study = SinkDynamics(table, meta, as_claims([]))
    return SinkDynamics(table, meta, as_claims(_claims(study, max(gaps), rises, quick)))


def _claims(
    study: SinkDynamics, gap: float, rises: int, quick: bool
) -> list[dict[str, Any]]:
    each = study.slopes()
    words = {
        "alpha": "slope of the sink logit by log time",
        "beta": "log-log slope of the value norm",
        "loss": "log-log slope of the loss",
    }
    # The quick toy stops at time 3,600, where corrections of several % remain.
    bands = {"reduced": 0.02, "planted": 0.15 if quick else 0.05}
    rows = []
    for source, band in bands.items():
        part = each[each["source"] == source]
        for name, sentence in words.items():
            at = getattr(THEORY, name)
            values = part[name].tolist()
            sentence = f"{SOURCES[source].capitalize()}: {sentence}"
            rows.append(claim(sentence, values, above=at - band, below=at + band))
    at_rest = each.loc[each["source"] == "constant", "alpha"].tolist()
    sentence = "Others write the same on every query: the sink logit stands still"
    rows.append(
        claim(f"{sentence} (worst slope)", float(np.abs(at_rest).max()), below=0.02)
    )
    constant = study.table[study.table["source"] == "constant"]
    ends = constant.groupby("seed")["alpha"].last()
    wanted = resting_alpha(VOCAB, WEIGHT, same_writes()[0])
    off = float(np.abs(ends.to_numpy() - wanted).max())
    sentence = f"It rests where the conservation law says, at {wanted:.3f} nats"
    rows.append(claim(f"{sentence} (worst distance)", off, below=0.01))
    rows.append(
        claim(
            "Flow and descent give the same mean logit (largest difference, nats)",
            gap,
            below=0.05,
        )
    )
    sentence = "The planted toy's loss never rises (updates after which it was higher)"
    rows.append(claim(sentence, float(rises), below=0.5))
    return rows


class _folder:
    """The given folder, or a temporary one for the block."""

    def __init__(self, folder: str | Path | None) -> None:
        self.kept = folder
        self.temporary = tempfile.TemporaryDirectory() if folder is None else None

    def __enter__(self) -> Path:
        return Path(self.temporary.name if self.temporary else self.kept or ".")

    def __exit__(self, *_: object) -> None:
        if self.temporary:
            self.temporary.cleanup()
