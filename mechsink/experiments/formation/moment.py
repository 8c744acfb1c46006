"""One moment of training: all measures of the formation timeline for one model.

Source: Guo et al. 2024 (arXiv:2410.13835), section 2; Gu et al. 2024
(arXiv:2410.10781) for the sink score and rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechsink.run import Model
from mechsink.sinks.logits import SinkLogitMeter
from mechsink.sinks.measure import as_batches, measure
from mechsink.sinks.queries import QueryAttentionMeter
from mechsink.sinks.residuals import ResidualNormMeter
from mechsink.sinks.scores import SinkScoreMeter
from mechsink.sinks.values import ValueNormMeter
from toy_tasks import BigramBackcopy, evaluate

MEASURES: dict[str, str] = {
    "bos_markov": "attention to <s>, non-trigger queries",
    "bos_trigger": "attention to <s>, trigger queries",
    "bos_markov_share": "share of <s>, non-trigger queries",
    "bos_trigger_share": "share of <s>, trigger queries",
    "row_sum_markov": "attention to tokens, non-trigger queries",
    "previous_trigger": "attention to previous, trigger queries",
    "sink_score": "sink score",
    "sink_rate": "sink rate",
    "sink_logit": "sink logit (nats)",
    "value_norm": "value norm of the sink",
    "value_norm_others": "value norm of the others",
    "value_ratio": "value norm / others",
    "resid_norm": "residual norm of the sink",
    "resid_norm_others": "residual norm of the others",
    "resid_ratio": "residual norm / others",
    "loss": "loss (nats)",
    "oracle_loss": "loss of the oracle (nats)",
    "excess": "excess risk (nats)",
    "trigger_loss": "expected loss on triggers (nats)",
    "trigger_excess": "excess risk on triggers (nats)",
    "markov_loss": "expected loss elsewhere (nats)",
    "markov_excess": "excess risk elsewhere (nats)",
}
"""Name in column `measure` to what it is, with its unit."""
SHARES = ("bos_markov_share", "bos_trigger_share", "row_sum_markov")
"""Measured on demand: of a softmax over tokens they say nothing new."""


@dataclass(frozen=True, eq=False)
class Texts:
    """What every checkpoint is measured on.

    `inputs` are run; with a task they are `tokens` without the last token of each
    prompt, which is only predicted.
    """

    tokens: Sequence[Int[Tensor, "_ _"]]
    task: BigramBackcopy | None = None
    position: int = 0
    eps: float = 0.3

    @property
    def inputs(self) -> list[Tensor]:
        """Tokens that go through the model."""
        if self.task is None:
            return list(self.tokens)
        return [part[:, :-1] for part in self.tokens]

    def groups(self) -> dict[str, list[Tensor]]:
        """Trigger and non-trigger queries, without the opening up to the sink."""
        if self.task is None:
            return {}
        trigger, other = [], []
        for part in self.inputs:
            later = torch.arange(part.shape[1], device=part.device) > self.position
            is_trigger = self.task.is_trigger(part)
            trigger.append(is_trigger & later)
            other.append(~is_trigger & later)
        return {"trigger": trigger, "markov": other}


def measure_moment(model: Model, texts: Texts, *, shares: bool = False) -> pd.DataFrame:
    """Table of layer, head, measure, value for one model; NaN where none.

    One forward pass for attention and residuals, one for the loss. Numbers are
    means over prompts or, by group, over queries. `shares`: those of `SHARES` too.

    Raises:
        ValueError: the model's vocabulary is not the task's.
    """
    at = (texts.position,)
    groups = texts.groups()
    if texts.task is not None and texts.task.d_vocab != model.shape.d_vocab:
        raise ValueError(
            f"formation: {model.name} predicts {model.shape.d_vocab} tokens, the task "
            f"has {texts.task.d_vocab}. Excess risk compares the two: pass a model "
            "trained on this task, or leave task= out."
        )
    queries = tuple(groups["markov"]) if groups else None
    meters = [
        SinkScoreMeter(at),
        ValueNormMeter(at),
        ResidualNormMeter(),
        SinkLogitMeter(at, queries),
        *([QueryAttentionMeter(groups, texts.position)] if groups else []),
    ]
    scores, values, residuals, logits, *attention = measure(
        model, texts.inputs, meters, meta={}
    )
    head = ["layer", "head"]
    parts = [
        _mean(scores.table, "score", head, "sink_score"),
        _one("sink_rate", scores.rate(texts.eps)),
        _weighted(logits.table, "logit", head, "sink_logit"),
        *_norms(values.table, head, "value"),
        *_norms(residuals.summary(texts.position), ["layer"], "resid"),
    ]
    for result in attention:
        triggers = result.table[result.table["group"] == "trigger"]
        others = result.table[result.table["group"] == "markov"]
        parts += [
            _weighted(others, "sink", head, "bos_markov"),
            _weighted(triggers, "sink", head, "bos_trigger"),
            _weighted(triggers, "previous", head, "previous_trigger"),
        ]
        if shares:
            parts += [
                _weighted(others, "share", head, "bos_markov_share"),
                _weighted(triggers, "share", head, "bos_trigger_share"),
                _weighted(others, "row_sum", head, "row_sum_markov"),
            ]
    parts += [_one(name, value) for name, value in losses(model, texts).items()]
    columns = ["layer", "head", "measure", "value"]
    table = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    return table.astype({"layer": float, "head": float, "value": float})


@torch.no_grad()
def losses(model: Model, texts: Texts) -> dict[str, float]:
    """Mean loss per predicted token, nats; with a task also excess risks.

    Empty if no prompt has a second token to predict.
    """
    parts = [batch.tokens for batch in as_batches(model, texts.tokens)]
    parts = [part for part in parts if part.shape[1] > 1]
    if texts.task is not None:
        found = [evaluate(_Logits(model), texts.task, part) for part in parts]
        weights = [part[:, 1:].numel() for part in parts]
        return {
            name: sum(w * f[name] for w, f in zip(weights, found, strict=True))
            / sum(weights)
            for name in (found[0] if found else {})
            if not name.startswith("first_")
        }
    total, n = 0.0, 0
    for row in (row[None] for part in parts for row in part):  # one [pos vocab] at once
        logits = model.run(row).logits[0, :-1].float()
        total += F.cross_entropy(logits, row[0, 1:], reduction="sum").item()
        n += row.shape[1] - 1
    return {"loss": total / n} if n else {}


class _Logits(nn.Module):
    """A mechsink model as `toy_tasks.evaluate` calls one."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        return self.model.run(tokens).logits


def _mean(
    table: pd.DataFrame, column: str, by: list[str], measure: str
) -> pd.DataFrame:
    """Mean over prompts, one row for each value of `by`."""
    means = table.groupby(by, as_index=False).agg(value=(column, "mean"))
    return means.assign(measure=measure)


def _weighted(
    table: pd.DataFrame, column: str, by: list[str], measure: str
) -> pd.DataFrame:
    """Mean over queries, from the means and numbers of queries of each prompt."""
    sums = table.assign(total=table[column] * table["queries"])
    means = sums.groupby(by).agg(total=("total", "sum"), n=("queries", "sum"))
    means = means.reset_index()  # next: 0 / 0 is NaN, no such query
    return means.assign(value=means["total"] / means["n"], measure=measure)


def _norms(table: pd.DataFrame, by: list[str], name: str) -> list[pd.DataFrame]:
    """Mean norm, mean of the others, and the one over the other."""
    norm = _mean(table, "norm", by, f"{name}_norm")
    others = _mean(table, "others", by, f"{name}_norm_others")
    ratio = norm["value"] / others["value"]
    return [norm, others, norm.assign(value=ratio, measure=f"{name}_ratio")]


def _one(name: str, value: float) -> pd.DataFrame:
    """One row of no layer and no head."""
    return pd.DataFrame({"measure": [name], "value": [value]})
