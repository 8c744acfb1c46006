"""All for One: does a task survive when only the last token computes, and late?

Up to layer `wait` no token knows of another (context-aware means); in the layers of
`peek` the last token looks at all; from then on it is alone.

Source: Mamidanna et al. 2025 (arXiv:2509.09650).
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.intervals import wilson
from mechsink.interventions.context_mean import ContextMeans, context_means
from mechsink.interventions.peeking import (
    Waiting,
    no_attention,
    peek_edits,
    replaced_by,
    self_attention,
)
from mechsink.interventions.replacements import resample, zero
from mechsink.metrics import at_least_float32
from mechsink.models.any_model import any_model
from mechsink.models.memory import rows_that_fit
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Model
from mechsink.sites import Site
from mechsink.slots.prompts import SlotPrompts, as_slot_tokens
from mechsink.slots.tokens import SlotTokens

Edits = Callable[[Int[Tensor, "batch pos"]], Mapping[Site, Edit]]
"""The edits of one batch of prompts."""


@dataclass(frozen=True, eq=False)
class AllForOneResult(Result):
    """The full model and its All-for-One subgraph, one row a prompt.

    `table`: prompt, answer (token), full and af1 (the likeliest token of each),
    full_correct, af1_correct, full_logit, af1_logit (of the answer), full_logprob,
    af1_logprob (of the answer, nats).

    Attributes:
        wait: layer whose input was replaced.
        peek: layers in which the last token saw all.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "x {A} x {B} =",
        ...     {"A": "01", "B": "01"},
        ...     lambda A, B: " yes" if A + B == "11" else " no",
        ... )
        >>> alone = ms.all_for_one(model, prompts, wait=0, peek=[])
        >>> alone.full_accuracy, alone.accuracy, alone.kept
        (1.0, 0.75, 0.75)
    """

    wait: int
    peek: list[int]

    @property
    def full_accuracy(self) -> float:
        """Share of prompts that the full model gets right."""
        return float(self._correct("full").mean())

    @property
    def accuracy(self) -> float:
        """Share of prompts that the subgraph gets right."""
        return float(self._correct("af1").mean())

    @property
    def faithfulness(self) -> float:
        """Accuracy of the subgraph over that of the full model; NaN if that is 0."""
        full = self.full_accuracy
        return self.accuracy / full if full else float("nan")

    @property
    def kept(self) -> float:
        """Share of the full model's right answers that the subgraph gives too."""
        right = self._correct("full")
        return float(self._correct("af1")[right].mean()) if right.any() else np.nan

    @property
    def kept_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `kept`, prompts taken as independent draws."""
        right = self._correct("full")
        return wilson(int(self._correct("af1")[right].sum()), int(right.sum()))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Log-probability of the answer, subgraph against full model, by prompt.

        Args:
            ax: where to draw; a new figure by default.
        """
        right, kept = self._correct("full"), self._correct("af1")
        groups = {
            "right in both": right & kept,
            "lost": right & ~kept,
            "wrong in the full model": ~right,
        }
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 * plotting.WIDTH)
            for (name, chosen), colour in zip(
                groups.items(), [*plotting.colours(2), "0.6"], strict=True
            ):
                if chosen.any():
                    some = self.table.loc[chosen]
                    ax.plot(some["full_logprob"], some["af1_logprob"], "o", ms=3,
                            alpha=0.7, color=colour, label=name)  # fmt: skip
            plotting.equal_line(ax)
            ax.set(xlabel="full model, log-prob. of the answer (nats)")
            ax.set(ylabel="All-for-One subgraph (nats)")
            ax.legend()
        return ax

    def _correct(self, which: str) -> np.ndarray:
        return self.table[f"{which}_correct"].to_numpy(dtype=bool)


@any_model
def all_for_one(
    model: Model,
    slot_prompts: SlotPrompts | SlotTokens,
    *,
    wait: int,
    peek: Collection[int],
    means: ContextMeans | Waiting | None = None,
    batch_size: int | None = None,
) -> AllForOneResult:
    """Run the All-for-One subgraph and compare it with the full model.

    Args:
        model: a causal model whose attention can be edited.
        slot_prompts: prompts with answers, whose position 0 is no slot: every
            token sees it throughout.
        wait: resid_pre of this layer is replaced by its context-aware mean, so
            earlier layers tell nothing of other tokens.
        peek: layers, `wait` and later, in which the last token sees all others. In
            the rest, and for other tokens, a token sees itself and position 0.
        means: what is put in at layer `wait`; default: `context_means` there. Those
            of an earlier call save their computation; `waiting_baselines` gives
            the alternatives.
        batch_size: prompts a pass, no effect on the result; None: what fits.

    Returns:
        An `AllForOneResult`, one row a prompt.

    Raises:
        ValueError: layers that don't fit, prompts without answers or beginning with
            a slot, or a model whose attention can't be edited.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "x {A} x {B} =",
        ...     {"A": "01", "B": "01"},
        ...     lambda A, B: " yes" if A + B == "11" else " no",
        ... )
        >>> ms.all_for_one(model, prompts, wait=0, peek=[0]).faithfulness
        1.0
    """
    started = time.perf_counter()
    slots = task_tokens(model, slot_prompts)
    edits = af1_edits(model, slots, wait, peek, means)
    full = outcomes(model, slots, None, batch_size)
    table = compared(slots, full, outcomes(model, slots, edits, batch_size))
    meta = provenance(
        model,
        slots.tokens,
        duration=time.perf_counter() - started,
        wait=wait,
        peek=sorted(set(peek)),
        waiting="given" if means is not None else "context_means",
        slots=dict(zip(slots.names, slots.positions, strict=True)),
        values=[values.tolist() for values in slots.values],
    )
    return AllForOneResult(table, meta, wait, sorted(set(peek)))


@any_model
def waiting_baselines(
    model: Model, slot_prompts: SlotPrompts | SlotTokens, *, wait: int, seed: int = 0
) -> dict[str, ContextMeans | Waiting]:
    """Context-aware means and what they are compared with, for `means=`.

    "zero", "mean" (over everything, the token itself redrawn), "resample" (another
    combination's residual), "no attention" and "self attention" (below `wait`).

    Args:
        model: a causal model whose attention can be edited.
        slot_prompts: prompts as for `all_for_one`.
        wait: the layer that waiting goes up to.
        seed: of what is drawn for "resample".

    Returns:
        Name to what `all_for_one` takes as `means`; the first is "context mean".

    Source: the baselines of Mamidanna et al. 2025 (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts("x {A} x {B} =", {"A": "01", "B": "01"})
        >>> list(ms.waiting_baselines(model, prompts, wait=0))
        ['context mean', 'mean', 'resample', 'zero', 'no attention', 'self attention']
    """
    slots = as_slot_tokens(model, slot_prompts)
    means = context_means(model, slots, wait, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    picks = [torch.randint(len(v), (1024,), generator=draw) for v in slots.values]
    other = slots.redrawn(torch.stack(picks, 1))
    return {
        "context mean": means,
        "mean": replaced_by(
            lambda model, sites, tokens: {_only(sites): means.template}
        ),
        "resample": replaced_by(resample(other, seed=seed)),
        "zero": replaced_by(zero()),
        "no attention": no_attention(),
        "self attention": self_attention(),
    }


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a run says after each prompt."""

    likeliest: Int[Tensor, " prompt"]
    correct: Bool[Tensor, " prompt"]
    logit: Float[Tensor, " prompt"]
    logprob: Float[Tensor, " prompt"]


def outcomes(
    model: Model, slots: SlotTokens, edits: Edits | None, batch_size: int | None = None
) -> Outcomes:
    """Next-token outcomes of a run, edited batch by batch."""
    assert slots.answers is not None
    step = batch_size or rows_that_fit(
        model.shape,
        slots.n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=2 * slots.n_pos * model.shape.d_vocab,
    )
    likeliest, logit, logprob = [], [], []
    for start in range(0, len(slots), step):
        some = slots.rows(slice(start, start + step))
        edit = None if edits is None else edits(some.tokens)
        last = at_least_float32(model.run(some.tokens, edit=edit).logits[:, -1])
        assert some.answers is not None
        own = some.answers[:, None]
        likeliest.append(last.argmax(-1))
        logit.append(last.gather(1, own)[:, 0])
        logprob.append(last.log_softmax(-1).gather(1, own)[:, 0])
    best = torch.cat(likeliest)
    return Outcomes(best, best == slots.answers, torch.cat(logit), torch.cat(logprob))


def af1_edits(
    model: Model,
    slots: SlotTokens,
    wait: int,
    peek: Collection[int],
    means: ContextMeans | Waiting | None = None,
) -> Edits:
    """The subgraph as edits: waiting up to `wait`, then peeking, then alone."""
    peeking = peek_edits(model, slots.n_pos, wait=wait, peek=peek)
    if means is None:
        means = context_means(model, slots, wait)
    site = Site("resid_pre", wait)
    if isinstance(means, ContextMeans):
        held = means
        if held.site != site:
            raise ValueError(
                f"all_for_one: means= are those of {held.site}, but wait={wait} "
                f"replaces {site}. Pass context_means(model, prompts, layer={wait})."
            )
        return lambda tokens: {**peeking, site: _becomes(held.at(tokens))}
    waiting = means
    return lambda tokens: {**waiting(model, wait, tokens), **peeking}


def task_tokens(model: Model, slot_prompts: SlotPrompts | SlotTokens) -> SlotTokens:
    """Prompts as tokens, refused where All for One makes no sense of them."""
    slots = as_slot_tokens(model, slot_prompts)
    if slots.answers is None:
        raise ValueError(
            "all_for_one: these prompts have no answers, so nothing can be right. Pass "
            "answer= to SlotPrompts, or answers= to SlotPrompts.from_tokens."
        )
    if 0 in slots.positions:
        raise ValueError(
            f"all_for_one: slot {slots.names[0]!r} stands at position 0, which every "
            "token goes on seeing (as a sink), so its value would leak into all "
            "layers. Begin the template with something fixed: a BOS token, a line "
            "break, an example."
        )
    return slots


def compared(slots: SlotTokens, full: Outcomes, af1: Outcomes) -> pd.DataFrame:
    """One row a prompt, as `AllForOneResult.table`."""
    assert slots.answers is not None
    columns: dict[str, Any] = {"prompt": slots.index, "answer": slots.answers.tolist()}
    for what in ("likeliest", "correct", "logit", "logprob"):
        for name, of in (("full", full), ("af1", af1)):
            column = name if what == "likeliest" else f"{name}_{what}"
            columns[column] = getattr(of, what).tolist()
    return pd.DataFrame(columns)


def _becomes(new: Tensor) -> Edit:
    return lambda x: new.to(x)


def _only(sites: Collection[Site]) -> Site:
    (site,) = sites
    return site
