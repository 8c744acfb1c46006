"""Whether the primary sink weakens where secondary sinks are made.

Layers are numbered as in `secondary.py`: the secondaries of layer c are made by
block c, after its attention, and block c + 1 is the first to read them.

Source: Secondary Attention Sinks (arXiv:2512.22213).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import LayerAttention, Model
from mechsink.sinks.measure import as_batches, at_least_float32
from mechsink.sinks.secondary.reading import score_columns, value_sizes
from mechsink.sinks.secondary.sinks import SecondarySinks, secondary_sinks
from mechsink.sites import Site

MEASURES = {
    "attention": "attention to the primary",
    "key_norm": "key norm of the primary / others",
    "value_norm": "value norm of the primary / others",
}
"""What is compared, with its axis label."""


@dataclass(frozen=True, eq=False)
class PrimaryWeakening(Result):
    """The primary sink by layer, one row a prompt and block.

    `table`: batch (prompt), layer (block whose attention it is), attention (share
    that strictly later queries pay to the primary, mean over queries and heads),
    key_norm, value_norm (||k|| before rotary positions and ||v||, mean over
    key-value heads) and key_others, value_others (the same, mean over the prompt's
    other tokens).
    `comparison`: batch, creation (a layer where secondaries are made), is_control
    (the prompt has no secondary at all), measure (one of attention, key_norm,
    value_norm; norms over the others'), before, after, difference. `before` is the
    mean over the blocks that read an active primary and come before `creation`,
    `after` over those from `creation` on. Only a fall beyond the controls' speaks
    for the secondaries.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> sinks = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> found = ms.primary_weakening(model, case.tokens, sinks)
        >>> list(found.comparison)
        ['batch', 'creation', 'is_control', 'measure', 'before', 'after', 'difference']
        >>> ax = found.plot(measure="attention")
    """

    comparison: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Mean before, after and difference by measure, creation and is_control."""
        table: Any = self.comparison
        means = table.groupby(["measure", "creation", "is_control"])
        return means.agg(
            before=("before", "mean"),
            after=("after", "mean"),
            difference=("difference", "mean"),
            prompts=("batch", "nunique"),
        ).reset_index()

    def plot(self, ax: Axes | None = None, *, measure: str = "attention") -> Axes:
        """One measure by layer, with and without secondaries, means over prompts.

        Args:
            ax: where to draw; default: a new figure.

        Raises:
            ValueError: another measure.
        """
        if measure not in MEASURES:
            raise ValueError(
                f"PrimaryWeakening.plot: measure={measure!r}. Allowed: "
                f"{', '.join(MEASURES)}."
            )
        shown: Any = _ratios(self.table)
        told: Any = self.comparison
        having = set(told[~told["is_control"]]["batch"])
        with plotting.theme():
            ax = ax or plotting.new_axes()
            groups = {"with secondaries": True, "without": False}
            for (label, want), shade in zip(
                groups.items(), plotting.colours(2), strict=True
            ):
                rows = shown[shown["batch"].isin(having) == want]
                if len(rows):
                    mean = rows.groupby("layer")[measure].mean()
                    ax.plot(mean.index, mean, color=shade, label=label)
            for layer in sorted(set(told["creation"])):
                ax.axvline(layer, color="0.6", ls=":", lw=0.8)
            ax.set(xlabel="layer", ylabel=MEASURES[measure])
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
        return ax


@any_model
def primary_weakening(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    sinks: SecondarySinks | None = None,
    *,
    window: int | None = None,
) -> PrimaryWeakening:
    """Attention, key norm and value norm of the primary around the creation layers.

    Args:
        model: any model; key norms are NaN where it has no site k.
        tokens: Int[batch pos], or a list of such tensors; one row is one prompt.
        sinks: what `secondary_sinks` found in the same tokens; default: asked for
            with its defaults.
        window: compare at most so many blocks on either side of a creation layer;
            default: all blocks that read an active primary.

    Returns:
        A `PrimaryWeakening`, one row a prompt and block.

    Raises:
        ValueError: no tokens, sinks of other tokens, or a window under 1.

    Source: Secondary Attention Sinks (arXiv:2512.22213); the comparison with prompts
    without secondaries is ours.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> sinks = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> found = ms.primary_weakening(model, case.tokens, sinks)
        >>> found.table.attention.round(2).tolist()  # even heads
        [0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    """
    started = time.perf_counter()
    if window is not None and window < 1:
        raise ValueError(
            f"primary_weakening: window={window}. Allowed: 1 block or more on either "
            "side, or None for all."
        )
    sinks = secondary_sinks(model, tokens) if sinks is None else sinks
    found: list[dict[str, Any]] = []
    for number, prompt in prompts_of(model, tokens, sinks):
        primary = int(sinks.primaries["pos"].iloc[number])
        found += _by_layer(model, prompt, number, primary)
    table = pd.DataFrame(found)
    meta = provenance(
        model,
        tokens,
        duration=time.perf_counter() - started,
        window=window,
        secondary_sinks=sinks.meta["settings"],
    )
    return PrimaryWeakening(table, meta, _comparison(table, sinks, window))


def prompts_of(
    model: Model, tokens: Tensor | Sequence[Tensor], sinks: SecondarySinks
) -> Iterator[tuple[int, Int[Tensor, "1 pos"]]]:
    """Number and tokens of each prompt, which must be those of `sinks`.

    Raises:
        ValueError: they are not.
    """
    batches = as_batches(model, tokens)
    prompts = [row for batch in batches for row in batch.tokens.split(1)]
    known = sinks.meta["tokens"]
    if [p[0].tolist() for p in prompts] != [prompt["ids"] for prompt in known]:
        raise ValueError(
            f"sinks: they were found in {len(known)} prompts that are not these "
            f"{len(prompts)}. Pass secondary_sinks(model, tokens) of the same tokens."
        )
    return enumerate(prompts)


def _by_layer(
    model: Model, prompt: Int[Tensor, "1 pos"], number: int, primary: int
) -> list[dict[str, Any]]:
    n_pos, n_layers = prompt.shape[1], model.shape.n_layers
    rows = [
        {"batch": number, "layer": layer, **dict.fromkeys(_COLUMNS, np.nan)}
        for layer in range(n_layers)
    ]

    def own_and_others(size: Tensor) -> tuple[float, float]:
        total, own = float(size.sum()), float(size[primary])
        return own, (total - own) / (n_pos - 1)

    def see(layer: LayerAttention) -> None:
        row = rows[layer.layer]
        ((_, scores),) = score_columns(layer, [primary], n_pos)
        row["attention"] = float(scores.mean())
        row["value_norm"], row["value_others"] = own_and_others(value_sizes(layer)[0])

    with torch.no_grad():
        model.visit(prompt, attention=see)
    if "k" in model.shape.sites:
        cache = model.run(prompt, read=model.shape.all_sites("k")).cache
        for layer, row in enumerate(rows):
            keys = at_least_float32(cache[Site("k", layer)][0])
            row["key_norm"], row["key_others"] = own_and_others(
                keys.norm(dim=-1).mean(dim=1)
            )
    return rows


_COLUMNS = ("attention", "key_norm", "value_norm", "key_others", "value_others")


def _ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The measures that are compared: norms over the others'."""
    return table.assign(
        key_norm=table["key_norm"] / table["key_others"],
        value_norm=table["value_norm"] / table["value_others"],
    )


def _comparison(
    table: pd.DataFrame, sinks: SecondarySinks, window: int | None
) -> pd.DataFrame:
    made: Any = sinks.labelled("secondary").groupby("batch")["l_start"]
    creations = {number: sorted(set(layers)) for number, layers in made}
    everywhere = sorted({layer for layers in creations.values() for layer in layers})
    far = sinks.n_layers if window is None else window
    found: list[tuple[Any, ...]] = []
    ratios: Any = _ratios(table)
    primaries: list[dict[Any, Any]] = sinks.primaries.to_dict("records")
    for primary in primaries:
        number = primary["batch"]
        layers = ratios[ratios["batch"] == number].set_index("layer")
        # Block l + 1 reads layer l; a block after the last does not exist.
        first, last = primary["start"] + 1, min(primary["end"], sinks.n_layers - 1)
        for creation in creations.get(number, everywhere):
            spans = (
                layers.loc[max(first, creation - far) : creation - 1],
                layers.loc[max(first, creation) : min(last, creation + far - 1)],
            )
            for measure in MEASURES:
                before, after = (float(span[measure].mean()) for span in spans)
                key = (number, creation, number not in creations, measure)
                found.append((*key, before, after, after - before))
    kinds = {
        "batch": int, "creation": int, "is_control": bool, "measure": str,
        "before": float, "after": float, "difference": float,
    }  # fmt: skip
    return pd.DataFrame(found, columns=list(kinds)).astype(kinds)
