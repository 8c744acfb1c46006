"""What path patching found: changes of the metric by path, and their figures.

Source: path patching, Wang et al. 2022 (arXiv:2211.00593).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.interventions.places import Direction
from mechsink.plotting import Axes
from mechsink.precision import below
from mechsink.results import Result


@dataclass(frozen=True, eq=False)
class PathResult(Result):
    """What the paths from senders to receivers do, one row a prompt and path.

    `table`: prompt, path ("L0H1.z -> L2H0.q"), then
      value: the metric with the receivers changed by these paths, in its unit;
      effect: 0 the metric of the run being patched, 1 that of the other; values
        outside 0..1 are kept; NaN where the two agree;
      total: change of the metric, in its unit, when the sender is patched plainly;
      direct: change by the path to what the metric reads, everything between held;
      indirect: total - direct, so that the two add up;
      pure_indirect: change when every later component writes what it writes under
        the plain patch, and the sender itself stays as it was.
    `indirect` and `pure_indirect` are equal where what the metric reads is linear
    in the stream. A final norm is not: a change it divides by is shared between the
    two paths, and `indirect` has all that the direct path does not do alone.

    Attributes:
        direction: "denoising" or "noising": which run the other's values were put into.
        metric: as its repr says.
        corrupted: metric on the corrupted run, one a prompt, in its unit.
        clean: metric on the clean run, one a prompt, in its unit.
        noise: floor of each prompt's metric.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.path_patch(
        ...     case.model, case.pairs, ms.logit_diff,
        ...     sender=ms.Site("z", layer=0, head=0), receivers=[ms.Site("k", layer=1)],
        ... )
        >>> found.table[["total", "direct", "indirect"]].mean().round(1).to_dict()
        {'total': 4.8, 'direct': 0.0, 'indirect': 4.8}
    """

    receivers: list[str]
    direction: Direction
    metric: str
    clean: list[float]
    corrupted: list[float]
    noise: list[float] = field(default_factory=list)

    def below_noise(self, column: str = "value") -> pd.Series:
        """Rows where a change of the metric is no larger than rounding may make it.

        Args:
            column: value (its change by the path), total, direct, indirect or
                pure_indirect.

        Raises:
            ValueError: another column, or a result that was saved without a floor.
        """
        known = ("value", "total", "direct", "indirect", "pure_indirect")
        if column not in known:
            raise ValueError(
                f"below_noise: column={column!r}. Allowed: {', '.join(known)}."
            )
        prompts = self.table["prompt"].to_numpy()
        change = self.table[column].to_numpy()
        if column == "value":
            base = self.corrupted if self.direction == "denoising" else self.clean
            change = change - np.asarray(base)[prompts]
        found = below(change, self.noise, prompts, type(self).__name__)
        return pd.Series(found, index=self.table.index, name="below_noise")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Change of the metric by kind of effect; means, and every prompt faint.

        Args:
            ax: where to draw; a new figure by default.
        """
        kinds = ["total", "direct", "indirect", "pure_indirect"]
        paths = list(dict.fromkeys(self.table["path"]))
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 + 0.6 * len(paths))
            for offset, (kind, colour) in enumerate(
                zip(kinds, plotting.colours(len(kinds)), strict=True)
            ):
                for row, path in enumerate(paths):
                    values = self.table.loc[self.table["path"] == path, kind]
                    at = row + 0.2 * (offset - 1.5)
                    label = "" if row else kind.replace("_", " ")
                    ax.plot(
                        values, [at] * len(values), ".", ms=3, alpha=0.3, color=colour
                    )
                    ax.plot(values.mean(), at, "D", ms=4, color=colour, label=label)
            ax.axvline(0, color="0.6", lw=0.6)
            names = [plotting.literal(path, 24) for path in paths]
            ax.set_yticks(range(len(paths)), names, fontsize="x-small")
            ax.set(ylim=(len(paths) - 0.5, -0.5))
            ax.set(xlabel=f"change of {plotting.literal(self.metric)}")
            above: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
            ax.legend(**above, ncols=4, fontsize="x-small", handletextpad=0.2)
        return ax


@dataclass(frozen=True, eq=False)
class PathSweepResult(PathResult):
    """`PathResult` of every head and MLP as sender: also layer and component.

    `component` is h0, h1, ... or mlp (attn where a model's heads can't be told
    apart). A sender that reaches none of the receivers has no row; of several
    receivers, `path` names those that it reaches, and the others stay as they were.

    Examples:
        >>> case = ms.planted("induction")
        >>> swept = ms.path_sweep(case.model, case.pairs, ms.logit_diff, receivers=None)
        >>> means = swept.table.groupby(["layer", "component"]).effect.mean()
        >>> means[means > 0.5].round(2).to_dict()
        {(1, 'h0'): 1.0}
        >>> ax = swept.plot()
    """

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of the mean effect over prompts, layer by component.

        Args:
            ax: where to draw; default: a new figure.
        """
        grid = self.table.pivot_table(
            index="layer", columns="component", values="effect", sort=False
        )
        names = list(dict.fromkeys(self.table["component"]))
        grid = grid.reindex(index=sorted(grid.index), columns=names)
        label = f"{self.direction} effect of paths to {', '.join(self.receivers)}"
        with plotting.theme():
            ax = ax or plotting.new_axes()
            return plotting.heat_map(ax, grid, label, diverging=True)
