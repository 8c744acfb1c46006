"""How well a model does on prompts in pairs."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechsink import plotting
from mechsink.intervals import wilson
from mechsink.metrics import logit_diff
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model

_METRIC: Metric = logit_diff


@dataclass(frozen=True, eq=False)
class Accuracy(Result):
    """How often a model's answer is the right one, on the clean prompts.

    `table`: pair, clean, corrupted (logit of the answer minus logit of the wrong
    one after either prompt, nats), beats_wrong (clean > 0), likeliest (the clean
    prompt's most likely next token), is_top (it is the answer).

    `beats_wrong` and `top` are shares of pairs, 0 to 1: chance is 1/2 for the
    first, one over the vocabulary for the second; `low` and `high` are the 95 %
    Wilson interval of `beats_wrong`, `top_low` and `top_high` that of `top`, pairs
    taken as independent draws. `clean` and `corrupted` are mean differences.

    Attributes:
        n: pairs.

    Examples:
        >>> model = ms.planted("induction").model
        >>> found = ms.prompt_sets.induction(model, n=20, length=5, repeated=2)
        >>> measured = found.accuracy(model)
        >>> measured.beats_wrong, measured.top
        (1.0, 1.0)
    """

    n: int
    beats_wrong: float
    low: float
    high: float
    top: float
    top_low: float
    top_high: float
    clean: float
    corrupted: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """Logit difference after the corrupted prompt against the clean, a dot a pair.

        Right of the dotted line the answer beats the wrong one after the clean prompt;
        below the other it does not after the corrupted.

        Args:
            ax: where to draw; a new figure by default.
        """
        top = self.table["is_top"].to_numpy(dtype=bool)
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 * plotting.WIDTH)
            for chosen, name, colour in zip(
                (top, ~top),
                ("answer is likeliest", "another token is"),
                plotting.colours(2),
                strict=True,
            ):
                if chosen.any():
                    some = self.table.loc[chosen]
                    ax.plot(some["clean"], some["corrupted"], "o", ms=3, alpha=0.7,
                            color=colour, label=name)  # fmt: skip
            ax.axhline(0, color="0.6", lw=0.8, ls=":")
            ax.axvline(0, color="0.6", lw=0.8, ls=":")
            ax.set(xlabel="answer − wrong, clean (logits)")
            ax.set(ylabel="answer − wrong, corrupted (logits)")
            ax.legend()
        return ax


def accuracy(
    model: Model, pairs: PromptPairs, *, batch_size: int = 16, **settings: Any
) -> Accuracy:
    """Run clean and corrupted prompts, and compare the answers' logits.

    Args:
        model: any model whose tokens the pairs hold or can be turned into.
        pairs: prompts with answers and wrong answers.
        batch_size: prompts a forward pass.
        settings: what else to note of the prompts, for the result's `meta`.

    Raises:
        ValueError: pairs without answers, or that are not aligned (`PromptPairs`);
            batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(
            f"accuracy: batch_size={batch_size}. Allowed: 1 or more prompts a pass."
        )
    prompts: dict[int, Tensor] = {}
    rows: dict[int, tuple[float, float, int, bool]] = {}
    for group in pairs.tokens(model):
        prompts |= zip(group.index, group.clean.split(1), strict=True)
        for some in torch.arange(len(group)).split(batch_size):
            part = group.rows(some.to(group.clean.device))
            run = model.run(part.clean)
            clean, likeliest = _METRIC(run, part), run.logits[:, -1].argmax(-1)
            columns = (
                clean,
                _METRIC(model.run(part.corrupted), part),
                likeliest,
                likeliest == part.answers,
            )
            values = zip(*(column.tolist() for column in columns), strict=True)
            rows |= zip(part.index, values, strict=True)
    n = len(rows)
    clean, corrupted, likeliest, is_top = zip(*(rows[i] for i in range(n)), strict=True)
    beats = [difference > 0 for difference in clean]
    table = pd.DataFrame(
        {
            "pair": range(n),
            "clean": clean,
            "corrupted": corrupted,
            "beats_wrong": beats,
            "likeliest": likeliest,
            "is_top": is_top,
        }
    )
    meta = provenance(
        model, [prompts[i] for i in range(n)], batch_size=batch_size, **settings
    )
    return Accuracy(
        table,
        meta,
        n,
        sum(beats) / n,
        *wilson(sum(beats), n),
        sum(is_top) / n,
        *wilson(sum(is_top), n),
        sum(clean) / n,
        sum(corrupted) / n,
    )
