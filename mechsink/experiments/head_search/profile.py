"""The effect of an edit on a metric, one head at a time.

The same profile serves ZeroTuning's head classes, ACT's calibration heads
(head_search.py) and HeadHunter's ranking, supervised (a metric with answers) or by
entropy.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.metrics import Answers, at_least_float32
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Metric, Model, Run
from mechsink.sites import Site

Goal = Literal["higher", "lower"]
Head = tuple[int, int]  # layer, head
MANY = 50
"""Prompts from which intervals are bootstrapped; below, Student's t."""


@dataclass(frozen=True)
class NextTokenEntropy:
    """Entropy of the next token at the last position, nats; needs no answers.

    Args:
        reads: sites that the metric needs: none.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.next_token_entropy(case.model.run(case.pairs.clean))
        >>> bool((found < 1.0).all())
        True
    """

    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        """One entropy a prompt."""
        logprobs = at_least_float32(run.logits[:, -1]).log_softmax(-1)
        return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)


@dataclass(frozen=True)
class AnswerIsRight:
    """1 where the answer's logit exceeds the wrong one's, else 0: accuracy.

    Args:
        reads: sites that the metric needs: none.

    Examples:
        >>> case = ms.planted("induction")
        >>> (group,) = case.pairs.tokens(case.model)
        >>> ms.answer_is_right(case.model.run(group.clean), group).mean()
        tensor(1.)
    """

    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __call__(self, run: Run, prompts: Answers) -> Float[Tensor, " prompt"]:
        """One 0 or 1 a prompt."""
        last = run.logits[:, -1]
        right, wrong = (
            last.gather(-1, tokens.to(last.device)[:, None])[:, 0]
            for tokens in (prompts.answers, prompts.wrong)
        )
        return (right > wrong).to(last.dtype)


next_token_entropy = NextTokenEntropy()
answer_is_right = AnswerIsRight()


@dataclass(frozen=True, eq=False)
class HeadProfile(Result):
    """Effect of one edit on a metric, one head at a time.

    `table`: layer, head, effect, low, high. `effect` is the mean over prompts of
    the metric with that head edited minus without, in the metric's unit; low and
    high are its 95 % interval over prompts (bootstrap from 50 prompts on, below
    Student's t, NaN for a single one). `prompts`: prompt, layer, head, full,
    edited, effect. Intervals are of each head alone: the best of many is flattered,
    so confirm a choice on other prompts.

    Attributes:
        goal: "higher" or "lower": which metric is better.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.profile_heads(
        ...     case.model, case.pairs, ms.zero_head(), ms.logit_diff
        ... )
        >>> found.ranking()[-2:], list(found.table)  # the worst to lose
        ([(0, 0), (1, 0)], ['layer', 'head', 'effect', 'low', 'high'])
        >>> ax = found.plot()
    """

    prompts: pd.DataFrame
    metric: str
    goal: Goal

    def ranking(self) -> list[Head]:
        """Heads by effect, the most helpful first; `goal` says which way helps."""
        up = self.goal == "lower"
        order = self.table.sort_values("effect", ascending=up, kind="stable")
        return heads_of(order)

    def helpful(self, *, sure: bool = False) -> list[Head]:
        """Heads whose edit helps; with `sure`, by their whole interval.

        Args:
            sure: only those whose whole interval helps.
        """
        lower = self.goal == "lower"
        column = self.table[("high" if lower else "low") if sure else "effect"]
        return heads_of(self.table[column < 0 if lower else column > 0])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map, layer by head, on `ax` or a new figure."""
        grid = self.table.pivot(index="head", columns="layer", values="effect")
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            label = f"effect on {self.metric}"
            return plotting.heat_map(ax, grid, label, diverging=True)


@any_model
def profile_heads(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    edit: Edit,
    metric: Metric,
    *,
    heads: Iterable[Head] | None = None,
    goal: Goal = "higher",
) -> HeadProfile:
    """Edit one head's pattern at a time and measure.

    Args:
        model: any model whose patterns can be edited.
        prompts: pairs, whose clean prompts are run, or tokens.
        edit: of one head's pattern [batch query key], such as zero_tuning(2.0),
            act_calibration(), soft_pag(0.5).
        metric: such as `logit_diff` (supervised) or `next_token_entropy`.
        heads: (layer, head) to try; default all.
        goal: whether a higher or a lower metric is better.

    Returns:
        A `HeadProfile`, one row a head.

    Raises:
        ValueError: no heads, or heads that the model lacks.

    Source: ZeroTuning (arXiv:2505.11739), ACT (ICML 2024), HeadHunter: the searches
    of each are this one with its edit.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.profile_heads(
        ...     case.model, case.pairs, ms.zero_head(), ms.logit_diff
        ... )
        >>> found.table.nsmallest(1, "effect")[["layer", "head", "effect"]].round(1)
           layer  head  effect
        0      0     0    -7.2
    """
    started = time.perf_counter()
    shape = model.shape
    every = [(n, h) for n in range(shape.n_layers) for h in range(shape.n_heads)]
    tried = every if heads is None else list(heads)
    if not tried:
        raise ValueError("profile_heads: no heads given. Name some, or leave out.")
    for layer, head in tried:
        shape.check(Site("pattern", layer, head=head))
    groups = as_groups(model, prompts)
    parts = []
    for group in groups:
        full = metric(model.run(group.clean, read=metric.reads), group)
        for layer, head in tried:
            site = Site("pattern", layer, head=head)
            run = model.run(group.clean, read=metric.reads, edit={site: edit})
            columns = {"full": full, "edited": metric(run, group)}
            found = {n: x.double().cpu().numpy() for n, x in columns.items()}
            part = {"prompt": group.index, "layer": layer, "head": head, **found}
            parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    table["effect"] = table["edited"] - table["full"]
    meta = provenance(
        model,
        [group.clean for group in groups],
        duration=time.perf_counter() - started,
        metric=repr(metric),
        goal=goal,
    )
    return HeadProfile(_summary(table), meta, table, repr(metric), goal)


def _summary(prompts: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of each head's effect, in the order given."""
    found = []
    for (layer, head), part in prompts.groupby(["layer", "head"], sort=False):  # type: ignore[misc]
        effect = part["effect"].to_numpy()
        low, high = _interval(effect)
        found.append((layer, head, effect.mean(), low, high))
    columns = ["layer", "head", "effect", "low", "high"]
    return pd.DataFrame(found, columns=columns)


def _interval(values: np.ndarray) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    if n >= MANY:
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 2000)
        low, high = np.quantile(counts @ values / n, [0.025, 0.975])
        return float(low), float(high)
    from scipy.stats import t  # here: loading it takes longer than a tiny search

    half = float(t.ppf(0.975, n - 1)) * values.std(ddof=1) / n**0.5
    return float(values.mean() - half), float(values.mean() + half)


def as_groups(model: Model, prompts: PromptPairs | Tensor) -> list[TokenPairs]:
    """Clean prompts by length; tokens stand for themselves."""
    if isinstance(prompts, PromptPairs):
        # The corrupted prompts play no part, so they need not match in length.
        return replace(prompts, corrupted=prompts.clean).tokens(model)
    return PromptPairs(prompts, prompts).tokens(model)


def heads_of(table: Any) -> list[Head]:
    """A table's columns layer and head, as pairs."""
    pairs = zip(table["layer"], table["head"], strict=True)
    return [(int(layer), int(head)) for layer, head in pairs]
