"""`path_patch`: what travels from a sender to its receivers and nowhere else.

Source: path patching, Wang et al. 2022 (arXiv:2211.00593).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.path_passes import Group, Question, metrics_of_paths
from mechsink.interventions.places import Direction
from mechsink.interventions.routes import (
    check_apart,
    check_reached,
    check_sites,
    reached,
)
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.precision import below, floors
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model, ModelShape
from mechsink.sites import Site


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


@any_model
def path_patch(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    sender: Site | Sequence[Site],
    receivers: Sequence[Site] | None,
    direction: Direction = "denoising",
    positions: Sequence[int] | None = None,
) -> PathResult:
    """Patch the sender, but let only the receivers see it.

    The sender's value of the other run enters the run being patched; every later
    attn_out and mlp_out is held there, so the change travels along the residual
    stream alone. What the receivers compute from it is put into the run being
    patched, and the rest is computed: the metric of that is `value`. Paths from
    sender to receiver through other components, receivers among them, play no part.

    Args:
        model: any model with attn_out and mlp_out.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        sender: a site, or several that are set together: a head's z, q, k or v, an
            attn_out, mlp_out or residual, or any other that can be set.
        receivers: q, k, v or z of heads; mlp_out or attn_out, recomputed from the
            changed residual; a residual; None for what the metric itself reads,
            the logits: then value is the direct effect.
        direction: "denoising" puts clean values into the corrupted run, "noising"
            corrupted ones into the clean run.
        positions: where the sender is set (queries, for a pattern); default
            everywhere.

    Returns:
        A `PathResult`, one row a prompt.

    Raises:
        ValueError: bad pairs, positions or direction; a site that this model has
            not or whose edits it discards; a receiver that is not downstream; a run
            whose metric is NaN or infinite.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 3.1.

    Examples:
        The previous-token head acts through the induction head's keys alone:

        >>> case = ms.planted("induction")
        >>> sender = ms.Site("z", layer=0, head=0)
        >>> for receiver in (ms.Site("q", 1, head=0), ms.Site("k", 1, kv_head=0)):
        ...     found = ms.path_patch(case.model, case.pairs, ms.logit_diff,
        ...                           sender=sender, receivers=[receiver])
        ...     print(receiver, round(found.table.effect.mean(), 2))
        L1H0.q 0.0
        L1KV0.k 0.33
    """
    group = (sender,) if isinstance(sender, Site) else tuple(dict.fromkeys(sender))
    check_sites(model.shape, "path_patch", group, receivers)
    check_apart(model.shape, "path_patch", group, receivers or ())
    check_reached(model.shape, "path_patch", group, receivers or ())
    fields = _measured(
        "path_patch", model, pairs, metric, [(group, {})], receivers, direction,
        positions,
    )  # fmt: skip
    return PathResult(**fields)


@any_model
def path_sweep(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    receivers: Sequence[Site] | None,
    direction: Direction = "denoising",
    positions: Sequence[int] | None = None,
) -> PathSweepResult:
    """`path_patch` from every head's z and every mlp_out, each in turn.

    Many senders share a pass.

    Args:
        model: any model with attn_out and mlp_out.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        receivers: as in `path_patch`; None for the logits: direct effects.
        direction: "denoising" puts clean values into the corrupted run, "noising"
            corrupted ones into the clean run.
        positions: where senders are set; default everywhere.

    Returns:
        A `PathSweepResult`, one row a prompt and sender.

    Raises:
        ValueError: as `path_patch`.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 3.1.

    Examples:
        >>> case = ms.planted("induction")
        >>> keys = [ms.Site("k", layer=1, kv_head=0)]
        >>> swept = ms.path_sweep(case.model, case.pairs, ms.logit_diff, receivers=keys)
        >>> means = swept.table.groupby(["layer", "component"]).effect.mean()
        >>> means[means > 0.1].round(2).to_dict()
        {(0, 'h0'): 0.33}
    """
    shape = model.shape
    senders = [
        ((sender,), {"layer": layer, "component": name})
        for layer in range(shape.n_layers)
        for name, sender in _components(shape, layer)
    ]
    everything = [sender for (sender,), _ in senders]
    check_sites(shape, "path_sweep", everything, receivers)
    check_reached(shape, "path_sweep", everything, receivers or ())
    if receivers is not None:
        senders = [each for each in senders if reached(shape, each[0], receivers)]
    fields = _measured(
        "path_sweep", model, pairs, metric, senders, receivers, direction, positions
    )
    return PathSweepResult(**fields)


def _components(shape: ModelShape, layer: int) -> list[tuple[str, Site]]:
    heads = [(f"h{n}", Site("z", layer, head=n)) for n in range(shape.n_heads)]
    attention = heads if "z" in shape.sites else [("attn", Site("attn_out", layer))]
    return [*attention, ("mlp", Site("mlp_out", layer))]


def _measured(
    caller: str,
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    groups: Sequence[tuple[Group, dict[str, Any]]],  # and what their rows say besides
    receivers: Sequence[Site] | None,
    direction: Direction,
    positions: Sequence[int] | None,
) -> dict[str, Any]:
    """The fields of a result."""
    started = time.perf_counter()
    if direction not in ("denoising", "noising"):
        raise ValueError(
            f'{caller}: direction={direction!r}. Allowed: "denoising" (clean values '
            'into the corrupted run) or "noising" (the reverse).'
        )
    batches = pairs.tokens(model)
    for batch in batches:
        _check_positions(caller, positions, batch.n_pos)
    what_is_read = "metric" if metric.reads else "logits"
    ask = Question(
        metric,
        None if receivers is None else tuple(dict.fromkeys(receivers)),
        direction,
        None if positions is None else torch.tensor(positions, device=model.device),
    )
    ends: dict[str, dict[int, float]] = {"clean": {}, "corrupted": {}}
    rows: list[dict[str, Any]] = []
    for batch in batches:
        for name, tokens in (("clean", batch.clean), ("corrupted", batch.corrupted)):
            values = metric(model.run(tokens, read=metric.reads), batch)
            _require_numbers(caller, name, values, batch)
            ends[name] |= dict(zip(batch.index, values.tolist(), strict=True))
        found = metrics_of_paths(model, batch, [group for group, _ in groups], ask)
        for (group, more), by_prompt in zip(groups, found.tolist(), strict=True):
            downstream = reached(model.shape, group, ask.receivers or ())
            to = ", ".join(map(str, downstream)) or what_is_read
            path = f"{' + '.join(map(str, group))} -> {to}"
            for prompt, metrics in zip(batch.index, by_prompt, strict=True):
                clean, corrupted = ends["clean"][prompt], ends["corrupted"][prompt]
                start, end = (
                    (corrupted, clean)
                    if direction == "denoising"
                    else (clean, corrupted)
                )
                row = {"prompt": prompt, **more, "path": path}
                rows.append(row | _columns(metrics, start, end))
    names = [str(receiver) for receiver in ask.receivers or (what_is_read,)]
    meta = provenance(
        model,
        [tokens for batch in batches for tokens in (batch.clean, batch.corrupted)],
        duration=time.perf_counter() - started,
        senders=[str(sender) for group, _ in groups for sender in group],
        receivers=names,
        direction=direction,
        metric=repr(metric),
        positions=positions,
        pairs=len(pairs),
    )
    table = pd.DataFrame(rows).sort_values("prompt", kind="stable", ignore_index=True)
    clean, corrupted = ([ends[k][i] for i in range(len(pairs))] for k in ends)
    return {
        "table": table,
        "meta": meta,
        "receivers": names,
        "direction": direction,
        "metric": repr(metric),
        "clean": clean,
        "corrupted": corrupted,
        "noise": floors(model, batches, metric, corrupted=direction == "denoising"),
    }


def _columns(metrics: Sequence[float], start: float, end: float) -> dict[str, float]:
    total, direct, pure = (value - start for value in metrics[1:])
    change = metrics[0] - start
    return {
        "value": metrics[0],
        "effect": change / (end - start) if end != start else float("nan"),
        "total": total,
        "direct": direct,
        "indirect": total - direct,
        "pure_indirect": pure,
    }


def _check_positions(caller: str, positions: Sequence[int] | None, n_pos: int) -> None:
    if positions is None:
        return
    if not positions or any(not 0 <= pos < n_pos for pos in positions):
        raise ValueError(
            f"{caller}: positions={list(positions)}, but a prompt has {n_pos} tokens. "
            f"Allowed: some of 0 to {n_pos - 1}, or None to set the sender everywhere."
        )


def _require_numbers(caller: str, name: str, values: Tensor, batch: TokenPairs) -> None:
    """Raise ValueError if a run that all else is compared with gave no number."""
    finite = values.isfinite().tolist()
    bad = [i for i, ok in zip(batch.index, finite, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"{caller}: the metric of the {name} run is NaN or infinite for pairs "
            f"{bad[:8]}. The model's weights or activations hold NaN, or overflow in "
            "this dtype: check ms.selfcheck(model), or load it with "
            "dtype=torch.float32."
        )
