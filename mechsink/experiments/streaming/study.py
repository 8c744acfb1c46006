"""What streaming showed: losses by position, perplexities, costs, claims.

Source: Xiao et al. 2023 (arXiv:2309.17453), perplexity of dense attention, a window,
sinks and a window, and a window read anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.experiments.study import Study, claim
from mechsink.intervals import student_t
from mechsink.plotting import Axes, Figure

WINDOW, SINKS = "window", "sinks + window"
DENSE, ANEW = "dense", "window read anew"
N_BLOCKS = 20
"""Stretches of text that intervals are made of: losses of neighbours go together."""


@dataclass(frozen=True, eq=False)
class Streaming(Study):
    """A long text under several cache policies.

    `table`: policy, pos (of the predicted token), nll (nats); dense ends at the model's
    own context, the window read anew has every few tokens. `costs`: pass ("stream",
    all policies in one batch, or "dense"), start, tokens, seconds, cpu_seconds (this
    process, all threads), rss_mb, slots, cache_mb (largest of the batch; 2**20 bytes).

    Examples:
        >>> import transformers as hf
        >>> config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
        ...                         num_hidden_layers=2, num_attention_heads=2)
        >>> model = ms.load_model(hf.LlamaForCausalLM(config).eval())
        >>> tokens = (torch.arange(60) ** 2 % 50)[None]
        >>> study = ms.streaming(
        ...     model, tokens, n_tokens=60, cache=6, sinks=2, recompute_every=2
        ... )
        >>> list(study.perplexity())
        ['policy', 'whole text', 'beside dense', 'beside window read anew']
    """

    costs: pd.DataFrame

    title: ClassVar[str] = "Streaming with attention sinks"

    @property
    def _last(self) -> int:
        last: Any = self.table["pos"].max()
        return int(last)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Perplexities, and what the text cost as it went on."""
        return {
            "Perplexity": self.perplexity(),
            "Log-loss along the text (nats)": self.along(),
            "Cost along the text": self.cost_along(),
        }

    def perplexity(self) -> pd.DataFrame:
        """exp(mean nll) by policy, over tokens that the columns' policies share.

        Columns: policy; whole text; beside dense (tokens within the model's context);
        beside the window read anew. NaN where a policy has not all of these tokens.
        """
        grid = _grid(self.table)
        rows = {
            "whole text": grid.index,
            "beside dense": grid[DENSE].dropna().index,
            f"beside {ANEW}": grid[ANEW].dropna().index,
        }
        columns = {
            # skipna=False: of a part of the tokens there is no such number.
            name: np.exp(grid.loc[index].mean(skipna=False)) if len(index) else np.nan
            for name, index in rows.items()
        }
        return pd.DataFrame(columns, index=grid.columns).reset_index()

    def along(self, every: int = 1000) -> pd.DataFrame:
        """Mean log-loss of each thousand tokens, one column a policy.

        The window read anew has other tokens than the rest, so that its own mean says
        little: its column is that of sinks + window plus the mean difference of the
        two on the tokens that they share.

        Args:
            every: tokens a stretch.
        """
        grid = _grid(self.table)
        difference = grid[ANEW] - grid[SINKS]
        starts = pd.Series((grid.index - 1) // every * every, grid.index)
        means = grid.groupby(starts).mean()
        means[ANEW] = means[SINKS] + difference.groupby(starts).mean()
        return means.rename_axis("from token").reset_index()

    def cost_along(self, every: int = 1000) -> pd.DataFrame:
        """Tokens a second and memory of each thousand tokens.

        Args:
            every: tokens a stretch.
        """
        costs = self.costs.assign(block=self.costs["start"] // every * every)
        sums = costs.groupby(["pass", "block"], sort=False).agg(
            tokens=("tokens", "sum"),
            seconds=("seconds", "sum"),
            cpu_seconds=("cpu_seconds", "sum"),
            rss_mb=("rss_mb", "last"),
            slots=("slots", "last"),
            cache_mb=("cache_mb", "last"),
        )
        sums["tokens a second"] = sums["tokens"] / sums["seconds"]
        sums["CPU ms a token"] = 1000 * sums["cpu_seconds"] / sums["tokens"]
        return sums.drop(columns=["seconds", "cpu_seconds"]).reset_index()

    def figures(self) -> dict[str, Figure]:
        """Perplexity, time and memory by position."""
        with plotting.theme():
            ax = self.plot()
            panels = plotting.new_panels(2)
            self._draw_costs(panels)
        return {
            "streaming-perplexity": plotting.figure_of(ax),
            "streaming-costs": plotting.figure_of(panels[0]),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Perplexity of stretches of text by position, log scale, a line a policy.

        The window read anew is drawn as `along` estimates it.

        Args:
            ax: where to draw; default: a new figure.
        """
        every = -(-self._last // N_BLOCKS)
        shown = self.along(every).set_index("from token")
        numbers = (self.table["pos"] - 1) // every * every
        n: Any = self.table.groupby([numbers, "policy"]).size().unstack()[shown.columns]
        # The rest of a stretch, where dense ends, is no match for the others.
        shown = shown.where(n > 0.5 * n.max())
        with plotting.theme():
            ax = ax or plotting.new_axes(width=1.3 * plotting.WIDTH)
            names = list(shown.columns)
            for name, colour in zip(names, plotting.colours(len(names)), strict=True):
                middle = shown.index + every / 2
                ax.plot(middle, np.exp(shown[name]), color=colour, label=name)
            full = self.meta["settings"]["cache"] + 1
            ax.axvline(full, color="0.6", lw=0.8, ls=":", zorder=0, label="cache full")
            ax.set_yscale("log")
            plotting.plain_log(ax.yaxis)
            ax.set(xlabel="position in the text (tokens)", xlim=(0, None))
            ax.set_ylabel(f"perplexity of {every:,} tokens")
            ax.legend(fontsize="x-small", ncols=2)
        return ax

    def _draw_costs(self, panels: list[Axes]) -> None:
        time, memory = panels
        along = self.cost_along(-(-self._last // N_BLOCKS))
        n_policies = len(self.meta["settings"]["policies"])
        labels = {"stream": f"{n_policies} streaming policies", "dense": "dense"}
        groups = list(along.groupby("pass", sort=False))
        for (name, part), colour in zip(
            groups, plotting.colours(len(groups)), strict=True
        ):
            time.plot(part["block"], part["CPU ms a token"], color=colour)
            memory.plot(
                part["block"], part["cache_mb"], color=colour, label=labels[str(name)]
            )
        time.set(ylabel="CPU time a token (ms)", ylim=(0, None))
        memory.set(ylabel="largest cache (MB)", ylim=(0, None))
        for ax in panels:
            ax.set_xlabel("position in the text (tokens)")
        memory.legend()


def claims(
    table: pd.DataFrame, costs: pd.DataFrame, cache: int, long: bool
) -> list[dict[str, Any]]:
    """What streaming is to show; the rows of `Study.claims`.

    Losses are compared on the same tokens, after the cache had to drop some; intervals
    are Student-t over `N_BLOCKS` stretches of them. `long` texts are judged on drift,
    time and memory as well.
    """
    grid = _grid(table)
    dropped = grid[grid.index > cache + 1]
    found = [
        _ratio(
            "perplexity of the window alone, over that of sinks + window",
            dropped[WINDOW] - dropped[SINKS],
            above=1.5,
        ),
        _ratio(
            "perplexity of sinks + window, over that of a window of the same size read "
            "anew",
            dropped[SINKS] - dropped[ANEW],
            below=1.2 if long else 1.5,  # a short text has few windows to read
        ),
        claim(
            "most slots in any streaming cache, over its size",
            _stream(costs)["slots"].max() / cache,
            below=1.001,
        ),
    ]
    if long:
        found += [_drift(dropped[SINKS] - dropped[ANEW]), *_flat(costs, cache)]
    return found


def _ratio(sentence: str, difference: Any, **bound: float) -> dict[str, Any]:
    """Perplexity ratio from paired log-losses, with an interval over stretches."""
    values = difference.dropna().to_numpy()
    parts = [part.mean() for part in np.array_split(values, N_BLOCKS)]
    low, high = student_t(parts)
    ends = float(np.exp(low)), float(np.exp(high))
    return claim(sentence, float(np.exp(np.mean(parts))), interval=ends, **bound)


def _drift(difference: Any) -> dict[str, Any]:
    """Rise of a loss difference over the text, by a line through its stretches.

    The text's own ups and downs are in both losses and cancel.
    """
    from scipy.stats import linregress, t  # here: slow to import

    series = difference.dropna()
    parts = np.array_split(np.arange(len(series)), N_BLOCKS)
    x = [float(series.index[part].to_numpy().mean()) for part in parts]
    y = [float(series.iloc[part].mean()) for part in parts]
    line: Any = linregress(x, y)
    length = float(series.index[-1] - series.index[0])
    rise = line.slope * length
    reach = t.ppf(0.975, N_BLOCKS - 2) * line.stderr * length
    return claim(
        "rise over the whole text of the loss of sinks + window, less that of the "
        "window read anew on the same tokens (nats)",
        rise,
        below=0.15,
        interval=(rise - reach, rise + reach),
    )


def _flat(costs: pd.DataFrame, cache: int) -> list[dict[str, Any]]:
    stream = _stream(costs)
    full = stream[stream["start"] >= cache]
    per_token = full["cpu_seconds"] / full["tokens"]
    quarter = max(1, len(full) // 4)
    first, last = per_token.iloc[:quarter].median(), per_token.iloc[-quarter:].median()
    growth = full["rss_mb"].iloc[-1] - full["rss_mb"].iloc[quarter]
    return [
        claim(
            "CPU time a token in the last quarter of the text, over that in the first",
            float(last / first),
            below=1.5,
        ),
        claim(
            "growth of the process over the last three quarters of the text (MB)",
            float(growth),
            below=100.0,
        ),
    ]


def _stream(costs: pd.DataFrame) -> Any:
    return costs[costs["pass"] == "stream"]


def _grid(table: pd.DataFrame) -> Any:
    """nll by position, one column a policy in the order of the table."""
    order = list(dict.fromkeys(table["policy"]))
    return table.pivot(index="pos", columns="policy", values="nll")[order]


def losses_table(losses: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """The table from positions and losses of each policy."""
    parts = [
        pd.DataFrame({"policy": name, "pos": np.asarray(pos), "nll": np.asarray(nll)})
        for name, (pos, nll) in losses.items()
    ]
    return pd.concat(parts, ignore_index=True).astype({"pos": int, "nll": float})
