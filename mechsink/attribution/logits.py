"""`logit_attribution`: which component wrote how much of a logit, exactly.

Logits before a soft cap are a sum over what was written to the residual stream, once
the norms on the way are held at the scale that they had in this run.
Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.contributions import Parts, Wanted, contributions
from mechsink.models.any_model import any_model
from mechsink.models.memory import rows_that_fit
from mechsink.models.wiring import Wiring, wiring
from mechsink.plotting import Axes
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model

Per = Literal["difference", "answer"]


@dataclass(frozen=True, eq=False)
class LogitAttribution(Result):
    """What each component adds to a logit, or to a difference of logits.

    `table`: prompt, component, layer, head, (neuron, pos,) value. `value` is in
    logits, the model's logit scale applied; a prompt's values sum to its `whole`.
    Components: "input" (the residual before layer 0: token and position embedding),
    "head", "mlp" or "neuron", and what does not depend on the input: "attn_bias" and
    "mlp_bias" (of a layer's output and its post-norm), "norm_bias" (of the final
    norm), "unembed_bias". layer, head, neuron and pos are NaN where a component has
    none. `pos`: the position that a head reads.

    `whole`: the model's logit (difference) before a soft cap, `own` after it; the
    same where `factors["cap"]` is None. `error`: sum of the values less `whole`, over
    the sum of their sizes; rounding alone.

    Attributes:
        per: "difference" of answer and wrong, or the "answer" alone.
        position: where the logits are read; negative: from the end.
        factors: "scale" is in the values already; "cap".

    Examples:
        >>> case = ms.planted("induction")
        >>> parts = ms.logit_attribution(case.model, case.pairs)
        >>> parts.nodes.mean().round(1).nlargest(2).to_dict()
        {(1, 'h0'): 7.2, (0, 'h0'): 0.0}
        >>> sums = parts.table.groupby("prompt").value.sum()
        >>> bool((sums - parts.whole).abs().max() < 1e-4)
        True
    """

    per: Per
    position: int
    whole: list[float]
    own: list[float]
    error: list[float]
    factors: dict[str, float | None]

    @property
    def nodes(self) -> pd.DataFrame:
        """Values by prompt (rows) and node (columns: layer, component).

        Components are h0, h1, ... and mlp, neurons and positions summed.
        """
        return by_node(self.table)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of the mean over prompts: layer by head, MLPs in the last column.

        Args:
            ax: where to draw; default: a new figure.
        """
        mean = self.nodes.mean()
        names = list(dict.fromkeys(mean.index.get_level_values("component")))
        grid = mean.unstack("component").reindex(columns=names)
        grid.columns.name, grid.index.name = "component", "layer"
        what = "logit difference" if self.per == "difference" else "logit"
        with plotting.theme():
            ax = ax or plotting.new_axes()
            label = f"direct part of the {what}"
            return plotting.heat_map(ax, grid, label, diverging=True)


@any_model
def logit_attribution(
    model: Model,
    pairs: PromptPairs,
    *,
    per: Per | None = None,
    neurons: bool = False,
    by_position: bool = False,
    position: int = -1,
    progress: bool | None = None,
) -> LogitAttribution:
    """Take the answer's logit, less the wrong one's, apart into what wrote it.

    Direct effects alone: what a component adds to the logits itself, not what later
    components make of it. Exact for the run at hand: each norm divides by the scale it
    had there, so a part is (part - its mean, for LayerNorm) / scale * gain . (W_U of
    the answer - W_U of the wrong one). Post-norms likewise.

    Args:
        model: any model whose weights are at hand.
        pairs: whose clean prompts are run, with answers.
        per: "difference" of answer and wrong, or the "answer"'s logit alone; default
            the difference where `wrong` is given. A single logit has a part that all
            tokens share, which no probability depends on.
        neurons: MLPs neuron by neuron (of gated ones, after the gate).
        by_position: heads by the position that they read: attention times value.
        position: where the logits are read, the last token by default.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        A `LogitAttribution`, one row a prompt and component.

    Raises:
        ValueError: no answers; a position outside a prompt; weights that don't give
            the model's activations (`wiring`); a model whose neurons or patterns
            can't be had.

    Source: direct logit attribution, Elhage et al. 2021; Wang et al. 2022
    (arXiv:2211.00593), section 3.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> parts = ms.logit_attribution(case.model, case.pairs)
        >>> parts.table.groupby("component").value.mean().round(1).to_dict()
        {'head': 3.3, 'input': 0.0, 'mlp': 3.9}
    """
    started = time.perf_counter()
    per = ("answer" if pairs.wrong is None else "difference") if per is None else per
    if per not in ("difference", "answer"):
        raise ValueError(
            f'logit_attribution: per={per!r}. Allowed: "difference" (answer less '
            'wrong) or "answer" (its logit alone).'
        )
    known = checked(model, "logit_attribution", neurons, by_position)
    # The corrupted prompts play no part, so they need not match in length.
    groups = replace(pairs, corrupted=pairs.clean).tokens(model)
    tables: list[pd.DataFrame] = []
    numbers: dict[int, list[float]] = {}
    with bar("logit attribution", len(pairs), progress) as advance:
        for batch in batches(model, groups):
            tokens, weights = _asked(batch, per)
            at = place("logit_attribution", position, batch.n_pos)
            wanted = Wanted(tokens, weights, at, neurons, by_position)
            parts = contributions(model, known, batch.clean, wanted)
            tables.append(tidy(parts, batch.index))
            three = [parts.whole, parts.own, relative_error(parts)]
            for prompt, row in zip(batch.index, torch.stack(three, 1), strict=True):
                numbers[prompt] = row.tolist()
            advance(len(batch))
    table = pd.concat(tables, ignore_index=True)
    table = table.sort_values("prompt", kind="stable", ignore_index=True)
    unused = {"neuron": neurons, "pos": by_position}
    table = table.drop(columns=[name for name, used in unused.items() if not used])
    whole, own, error = (
        [numbers[prompt][k] for prompt in range(len(pairs))] for k in range(3)
    )
    meta = provenance(
        model,
        [group.clean for group in groups],
        duration=time.perf_counter() - started,
        per=per,
        position=position,
        neurons=neurons,
        by_position=by_position,
        answers=[int(t) for g in groups for t in _asked(g, per)[0][:, 0]],
    )
    factors = {"scale": known.unembed.scale, "cap": known.unembed.cap}
    return LogitAttribution(table, meta, per, position, whole, own, error, factors)


def by_node(table: pd.DataFrame) -> pd.DataFrame:
    """Values of a table by prompt and by head or MLP, (layer, component), summed."""
    component = table["component"].to_numpy(dtype=str)
    head = table["head"].to_numpy(dtype=float)
    is_head = component == "head"
    names = [
        f"h{n:.0f}" if here else "mlp" for n, here in zip(head, is_head, strict=True)
    ]
    rows = pd.DataFrame(
        {
            "prompt": table["prompt"].to_numpy(),
            "layer": table["layer"].to_numpy(dtype=float),
            "order": np.where(is_head, head, np.inf),  # MLPs after the heads
            "component": names,
            "value": table["value"].to_numpy(),
        }
    )[is_head | np.isin(component, ["mlp", "neuron"])]
    by = ["layer", "order", "component"]
    total = rows.astype({"layer": int}).pivot_table(
        index="prompt", columns=by, values="value", aggfunc="sum"
    )
    total.columns = total.columns.droplevel("order")
    return total


def checked(
    model: Model, caller: str, neurons: bool = False, by_position: bool = False
) -> Wiring:
    """A model's wiring, if it has what is asked for.

    Raises:
        ValueError: its neurons or patterns can't be had, or as `wiring`.
    """
    known = wiring(model)
    sites = model.shape.sites
    layers = range(model.shape.n_layers)
    if neurons and known.has_mlp:
        split = all(known.mlp_write(layer).weight is not None for layer in layers)
        if "mlp_post" not in sites or not split:
            raise ValueError(
                f"{caller}: neurons=True, but the MLPs of {model.name} are no single "
                "matrix of neurons (experts, or no mlp_post). Leave neurons= out: each "
                "MLP is then one part."
            )
    missing = [name for name in ("pattern", "v") if name not in sites]
    if by_position and known.has_attention and missing:
        raise ValueError(
            f"{caller}: by_position=True needs the sites pattern and v, and "
            f"{model.name} has no {' and no '.join(missing)}. Leave by_position= out."
        )
    return known


def place(caller: str, position: int, n_pos: int) -> int:
    """A position counted from 0.

    Raises:
        ValueError: it is outside the prompt.
    """
    if not -n_pos <= position < n_pos:
        raise ValueError(
            f"{caller}: position={position}, but a prompt has {n_pos} tokens. Allowed: "
            f"0 to {n_pos - 1}, or -{n_pos} to -1 from the end."
        )
    return position % n_pos


def batches(model: Model, groups: list[TokenPairs]) -> Iterator[TokenPairs]:
    """Prompts, as many at once as fit into memory."""
    for group in groups:
        n = rows_that_fit(
            model.shape,
            group.n_pos,
            dtype=model.dtype,
            device=model.device,
            n_logits=group.n_pos * model.shape.d_vocab,
        )
        for first in range(0, len(group), n):
            yield group.rows(slice(first, first + n))


def tidy(parts: Parts, index: list[int]) -> pd.DataFrame:
    """One row a prompt and part."""
    n, rows = len(index), len(parts.rows)
    table = pd.concat([parts.rows] * n, ignore_index=True)
    table.insert(0, "prompt", [prompt for prompt in index for _ in range(rows)])
    table["value"] = parts.values.flatten().numpy()
    return table


def relative_error(parts: Parts) -> Float[Tensor, " batch"]:
    """Sum of the parts less what they should sum to, over the sum of their sizes."""
    size = parts.values.abs().sum(-1).clamp(min=1e-300)
    return (parts.values.sum(-1) - parts.whole) / size


def _asked(
    batch: TokenPairs, per: Per
) -> tuple[Int[Tensor, "batch token"], Float[Tensor, "batch token"]]:
    """Tokens whose logits are taken apart, and their weights."""
    chosen = [("answers", batch.answers, 1.0)]
    if per == "difference":
        chosen.append(("wrong", batch.wrong, -1.0))
    found: list[Tensor] = []
    for name, tokens, _ in chosen:
        if tokens is None:
            raise ValueError(
                f"logit_attribution: the prompts have no {name}. Give them, as in "
                'PromptPairs(..., answers=[" Paris"], wrong=[" Rome"])'
                + ('; or take per="answer".' if name == "wrong" else ".")
            )
        found.append(tokens)
    weights = torch.tensor([w for _, _, w in chosen], device=found[0].device)
    return torch.stack(found, 1), weights.expand(len(batch), -1)
