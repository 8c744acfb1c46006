"""What massive activations are for: overwrite them and look at loss and sinks.

Source: Sun et al. 2024 (arXiv:2402.17762), the intervention.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from mechsink.run import Edit, Model
from mechsink.sinks.massive.activations import MassiveActivations, massive_activations
from mechsink.sinks.massive.entries import (
    Entry,
    first_appearances,
    given_entries,
    means,
    overwriting,
    read_values,
    stream_site,
)
from mechsink.sinks.measure import as_batches, at_least_float32, check_positions
from mechsink.sinks.scores import sink_score
from mechsink.sites import Site

PATTERN_BYTES = 2**28  # whole patterns held at once


@dataclass(frozen=True, eq=False)
class MassiveEffect(Result):
    """Loss and sinks with and without massive activations, one row a prompt.

    `table`: batch (prompt), entries (overwritten), tokens (predicted), loss_before,
    loss_after, change (nats a token), perplexity_before, perplexity_after,
    rate_before, rate_after (share of heads whose sink score at `position` exceeds
    `eps`; NaN where no pattern can be read), peak_before, peak_after (largest |h|
    over all layers and positions, in units of the residual stream).
    `entries`: batch, layer, pos, dim, value (in the untouched run), new. Layer l <
    n_layers is the input of block l (the output of block l - 1).
    `means`: layer, dim, is_first, mean, spread, n: what the values of such entries
    are over the reference prompts; `spread` is their standard deviation.

    Attributes:
        replacement: "zero", "mean", or a number, as text.
        position: of the sink whose rate was counted.
        eps: sink score above which a head counted.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> model, tokens = case.model, case.pairs.clean[:1]
        >>> found = ms.massive_effect(model, tokens, entries=[(0, 0, 8)])
        >>> list(found.table)
        ['batch', 'entries', 'tokens', 'loss_before', 'loss_after', 'perplexity_before',
        'perplexity_after', 'rate_before', 'rate_after', 'peak_before', 'peak_after',
        'change']
    """

    entries: pd.DataFrame
    means: pd.DataFrame
    replacement: str
    position: int
    eps: float

    def perplexity(self) -> tuple[float, float]:
        """Over all prompts, before and after: exp(sum of losses / tokens)."""
        n = self.table["tokens"].to_numpy()
        before, after = (
            float(np.exp((self.table[name].to_numpy() * n).sum() / n.sum()))
            for name in ("loss_before", "loss_after")
        )
        return before, after

    def plot(self, ax: Axes | None = None) -> Axes:
        """Loss after against loss before, one dot a prompt.

        Args:
            ax: where to draw; default: a new figure.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes()
            before, after = self.table["loss_before"], self.table["loss_after"]
            ax.plot(before, after, ".", label=f"replaced by {self.replacement}")
            ends = [float(np.nanmin(before)), float(np.nanmax(before))]
            ax.plot(ends, ends, color="0.6", ls="--", label="no change")
            ax.set(xlabel="loss before (nats)", ylabel="loss after (nats)")
            ax.legend()
        return ax


@any_model
def massive_effect(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    entries: MassiveActivations | Sequence[Entry] | None = None,
    *,
    replacement: Literal["zero", "mean"] | int | float = "zero",
    every_layer: bool = False,
    reference: Tensor | Sequence[Tensor] | None = None,
    position: int = 0,
    eps: float = 0.3,
) -> MassiveEffect:
    """Overwrite massive activations where they first appear, and run on.

    Published: zeros ruin the model, the entries' own mean over prompts leaves it as
    it was, so that they act as fixed biases.

    Args:
        model: any model whose residual stream can be edited.
        tokens: Int[batch pos], or a list of such tensors; one row is one prompt.
        entries: which; default: `massive_activations(model, tokens)`. Of those, each
            (pos, dim) of a prompt is overwritten at the first layer that has it. Or
            (layer, pos, dim) for all prompts, layers counted as in that table.
        replacement: "zero"; "mean", over all such entries of the reference with the
            same layer and dimension, the first token's apart from others'; or one
            number, in units of the residual stream.
        every_layer: overwrite found entries in all layers where they are massive;
            what comes after the first layer may else grow them again.
        reference: prompts of the mean, with entries of their own as above; default:
            `tokens`. A mean over prompts that open with the same token is that
            token's own value, so that nothing changes: look at `means`' spread.
        position: of the sink whose rate is counted.
        eps: sink score above which a head counts.

    Returns:
        A `MassiveEffect`, one row a prompt.

    Raises:
        ValueError: no entries at all, entries that the model lacks, prompts of one
            token, an unknown replacement, or a mean without reference entries.

    Source: Sun et al. 2024 (arXiv:2402.17762), section on their role as biases.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> model, tokens = case.model, case.pairs.clean[:1]
        >>> found = ms.massive_effect(model, tokens, entries=[(0, 0, 8)])
        >>> found.table[["rate_before", "rate_after"]].round(2).values.tolist()
        [[0.33, 0.0]]
    """
    started = time.perf_counter()
    _check_replacement(replacement)
    prompts = _prompts(model, tokens, position)
    chosen = _chosen(model, prompts, entries, every_layer)
    chosen = chosen.assign(value=read_values(model, prompts, chosen))
    known = chosen
    if reference is not None:
        others = _prompts(model, reference, 0)
        given = None if isinstance(entries, MassiveActivations) else entries
        known = _chosen(model, others, given, every_layer)
        known = known.assign(value=read_values(model, others, known))
    mean = means(known)
    chosen = chosen.assign(new=_new(chosen, mean, replacement))
    found: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        here: Any = chosen[chosen["batch"] == number]
        edit = overwriting(here, model.shape.n_layers)
        before = _measured(model, prompt, {}, position, eps)
        after = _measured(model, prompt, edit, position, eps) if edit else before
        counts = {"entries": len(here), "tokens": prompt.shape[1] - 1}
        row: dict[str, Any] = {"batch": number, **counts}
        for name, value in before.items():
            row |= {f"{name}_before": value, f"{name}_after": after[name]}
        row["change"] = row["loss_after"] - row["loss_before"]
        found.append(row)
    meta = provenance(
        model,
        prompts,
        duration=time.perf_counter() - started,
        replacement=replacement,
        every_layer=every_layer,
        reference="tokens" if reference is None else "given",
        position=position,
        eps=eps,
    )
    table = pd.DataFrame(found)
    return MassiveEffect(table, meta, chosen, mean, str(replacement), position, eps)


def _prompts(
    model: Model, tokens: Tensor | Sequence[Tensor], position: int
) -> list[Int[Tensor, "1 pos"]]:
    batches = as_batches(model, tokens)
    check_positions(batches, [position, 1])  # a next token to predict
    return [row for batch in batches for row in batch.tokens.split(1)]


def _chosen(
    model: Model,
    prompts: list[Tensor],
    entries: MassiveActivations | Sequence[Entry] | None,
    every_layer: bool,
) -> pd.DataFrame:
    if entries is not None and not isinstance(entries, MassiveActivations):
        chosen = given_entries(model, prompts, entries)
    else:
        found = massive_activations(model, prompts) if entries is None else entries
        chosen = first_appearances(found, every_layer)
    if chosen.empty:
        raise ValueError(
            "massive_effect: there is no massive entry in these prompts, so nothing "
            "to overwrite. Pass entries=massive_activations(..., threshold=, times=) "
            "with lower thresholds, or (layer, pos, dim) of your own."
        )
    last = max(chosen["batch"].tolist())
    if last >= len(prompts):
        raise ValueError(
            f"massive_effect: the entries are of {last + 1} or more prompts, the "
            f"tokens of {len(prompts)}. Pass massive_activations(model, tokens) of "
            "the same tokens."
        )
    return chosen


def _check_replacement(replacement: Any) -> None:
    if replacement not in ("zero", "mean") and not isinstance(replacement, float | int):
        raise ValueError(
            f"massive_effect: replacement={replacement!r}. Allowed: 'zero', 'mean', or "
            "a number."
        )


def _new(chosen: pd.DataFrame, mean: pd.DataFrame, replacement: Any) -> Any:
    if replacement == "zero":
        return 0.0
    if replacement != "mean":
        return float(replacement)
    keyed = chosen.assign(is_first=chosen["pos"] == 0)
    new: Any = keyed.merge(mean, on=["layer", "dim", "is_first"], how="left")["mean"]
    if new.isna().any():
        lost: Any = chosen[new.isna().to_numpy()].iloc[0]
        raise ValueError(
            f"massive_effect: the reference prompts have no massive entry at layer "
            f"{lost['layer']:.0f}, dim {lost['dim']:.0f} to take a mean of. Give more "
            "reference prompts, or entries= that they have."
        )
    return new.to_numpy()


def _measured(
    model: Model,
    prompt: Int[Tensor, "1 pos"],
    edit: Mapping[Site, Edit],
    position: int,
    eps: float,
) -> dict[str, float]:
    """Loss, perplexity, sink rate and peak of one prompt's run."""
    n_layers = model.shape.n_layers
    streams = [stream_site(layer, n_layers) for layer in range(n_layers + 1)]
    run = model.run(prompt, read=streams, edit=edit)
    log = at_least_float32(run.logits[:, :-1]).log_softmax(-1)
    loss = -log.gather(2, prompt[:, 1:, None].to(log.device)).mean()
    peak = max(float(run.cache[site].abs().max()) for site in streams)
    return {
        "loss": float(loss),
        "perplexity": float(loss.double().exp()),
        "rate": _rate(model, prompt, edit, position, eps),
        "peak": peak,
    }


def _rate(
    model: Model,
    prompt: Int[Tensor, "1 pos"],
    edit: Mapping[Site, Edit],
    position: int,
    eps: float,
) -> float:
    """Share of heads above `eps`, a few layers' patterns at a time."""
    if "pattern" not in model.shape.sites:
        return np.nan
    sites = model.shape.all_sites("pattern")
    size = model.shape.n_heads * prompt.shape[1] ** 2 * model.dtype.itemsize
    step = max(1, PATTERN_BYTES // size)
    is_sink: list[Tensor] = []
    for first in range(0, len(sites), step):
        part = sites[first : first + step]
        cache = model.run(prompt, read=part, edit=edit).cache
        is_sink += [
            sink_score(at_least_float32(cache[s]), position) > eps for s in part
        ]
    return float(torch.stack(is_sink).double().mean())
