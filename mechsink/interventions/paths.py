"""`path_patch`: what travels from a sender to its receivers and nowhere else.

Source: path patching, Wang et al. 2022 (arXiv:2211.00593).
"""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechsink.interventions.path_passes import Group, Question, metrics_of_paths
from mechsink.interventions.path_results import PathResult, PathSweepResult
from mechsink.interventions.places import Direction
from mechsink.interventions.routes import (
    check_apart,
    check_reached,
    check_sites,
    reached,
)
from mechsink.models.any_model import any_model
from mechsink.precision import floors
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.run import Metric, Model, ModelShape
from mechsink.sites import Site


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
