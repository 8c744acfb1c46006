"""Saliency while generating: where it drops, and what each candidate rests on.

Source: LVLMs-Saliency, "Hallucination Begins Where Saliency Drops"; the alarm's rule
and the keys that count are ours, after the paper's description.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.interventions.saliency_edits import CandidateSaliency
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.spans.saliency import rows_of


@dataclass(frozen=True, eq=False)
class SaliencyAlarm(Result):
    """Saliency of what was generated, token by token, and where it drops.

    `table`: batch (prompt), pos (of the new token), token, saliency (nats, mean over
    the keys asked for), baseline (mean of up to `window` earlier ones), ratio
    (saliency / baseline), alarm (ratio below `below`). NaN, and no alarm, where there
    are no such keys, or nothing earlier, or only zeros, to compare with.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A B C D")
        >>> found = ms.saliency_alarm(model, tokens, n_prompt=6, window=2)
        >>> list(found.table)
        ['batch', 'pos', 'token', 'saliency', 'baseline', 'ratio', 'alarm']
        >>> ax = found.plot()
    """

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """Saliency and its baseline along the new tokens; alarms are marked.

        Args:
            ax: where to draw; default: a new figure.
            prompt: which.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        with plotting.theme():
            ax = ax or plotting.new_axes()
            ax.plot(here["pos"], here["saliency"], color="C0", label="saliency")
            ax.plot(here["pos"], here["baseline"], color="0.6", label="tokens before")
            at = here[here["alarm"]]
            ax.plot(at["pos"], at["saliency"], "o", ms=4, color="C3", label="alarm")
            ax.set_xlabel("position of the new token")
            ax.set_ylabel("attention x gradient, nats")
            ax.legend()
            return ax


@any_model
def saliency_alarm(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    n_prompt: int,
    *,
    span: Span | None = None,
    window: int = 8,
    below: float = 0.5,
    layers: Collection[int] | None = None,
) -> SaliencyAlarm:
    """Drop of saliency over generated tokens, one pass forward and back for each.

    Args:
        model: any model whose patterns can be edited.
        tokens: prompts with what was generated after them, `Generation.tokens`.
        n_prompt: length of the prompts, `Generation.n_prompt`.
        span: keys whose saliency counts, in the prompt; default: the last `window`
            tokens of the answer so far, the one that predicts included, on which a
            coherent next token rests.
        window: tokens of the answer that count as recent, and that are compared with.
        below: share of the recent tokens' saliency under which to raise the alarm.
        layers: default: all.

    Returns:
        A `SaliencyAlarm`, one row a prompt and new token.

    Raises:
        ValueError: no generated tokens, a span outside the prompt, `window` under 1 or
            `below` not above 0.

    Source: LVLMs-Saliency.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A B C D")
        >>> found = ms.saliency_alarm(model, tokens, n_prompt=6, window=2)
        >>> found.table[["pos", "alarm"]].values.tolist()
        [[6, False], [7, False], [8, False]]
    """
    n_pos = tokens.shape[1]
    wrong = span is not None and not all(0 <= key < n_prompt for key in span)
    if not 1 <= n_prompt < n_pos or wrong or window < 1 or not below > 0:
        shown = None if span is None else list(span)
        raise ValueError(
            f"saliency_alarm: n_prompt={n_prompt} of {n_pos} tokens, span={shown}, "
            f"window={window}, below={below}. Allowed: n_prompt 1 to {n_pos - 1}, a "
            "span inside the prompt, window 1 and more, below above 0."
        )
    series = []
    for pos in range(n_prompt, n_pos):
        keys = _keys(span, n_prompt, pos, window)
        if keys:
            series.append(
                _mean(model, tokens[:, :pos], tokens[:, pos], keys, layers).cpu()
            )
        else:
            series.append(torch.full((len(tokens),), torch.nan))
    parts = []
    for prompt, line in enumerate(torch.stack(series, 1).double().numpy()):
        baseline = [_recent(line[max(0, i - window) : i]) for i in range(len(line))]
        usual = np.where(np.array(baseline) > 0, baseline, np.nan)
        ratio = line / usual
        parts.append(
            pd.DataFrame(
                {
                    "batch": prompt,
                    "pos": range(n_prompt, n_pos),
                    "token": tokens[prompt, n_prompt:].tolist(),
                    "saliency": line,
                    "baseline": baseline,
                    "ratio": ratio,
                    "alarm": ratio < below,  # NaN: never
                }
            )
        )
    settings = {"n_prompt": n_prompt, "span": span, "window": window, "below": below}
    meta = provenance(model, tokens, layers=layers, **settings)
    return SaliencyAlarm(pd.concat(parts, ignore_index=True), meta)


@any_model
def candidate_saliency(
    model: Model,
    *,
    n_prompt: int | None = None,
    span: Span | None = None,
    window: int = 8,
    layers: Collection[int] | None = None,
) -> CandidateSaliency:
    """How much each candidate for the next token rests on certain keys.

    Args:
        model: any model whose patterns can be edited; it is asked without edits.
        n_prompt: length of the prompts, where the keys are the last `window` tokens
            of the answer so far.
        span: or keys in the prompt.
        window: tokens of the answer that count as recent.
        layers: default: all.

    Returns:
        A function of texts, Int[batch pos], and candidates, Int[batch candidate], to
        Float[batch candidate]: nats; NaN before the answer's first token. One pass
        forward and back a candidate. It is what `saliency_generate` asks for.

    Raises:
        ValueError: neither or both of n_prompt and span.

    Source: LVLMs-Saliency; the keys that count are ours.

    Examples:
        >>> model = ms.planted("induction").model
        >>> saliency = ms.candidate_saliency(model, span=range(1, 5))
        >>> tokens = model.to_tokens("A B C D A")
        >>> found = saliency(tokens, torch.tensor([[1, 2]]))  # B, C
        >>> bool(found[0, 0] < found[0, 1])
        True
    """
    if (n_prompt is None) == (span is None):
        raise ValueError(
            f"candidate_saliency: n_prompt={n_prompt}, span={span}. Allowed: one of "
            "them: n_prompt for recent tokens of the answer, span for the prompt's."
        )
    return partial(_of_candidates, model, n_prompt or 0, span, window, layers)


def _of_candidates(
    model: Model,
    n_prompt: int,
    span: Sequence[int] | None,
    window: int,
    layers: Collection[int] | None,
    tokens: Int[Tensor, "batch pos"],
    candidates: Int[Tensor, "batch candidate"],
) -> Float[Tensor, "batch candidate"]:
    keys = _keys(span, n_prompt, tokens.shape[1], window)
    if not keys:
        return torch.full(candidates.shape, torch.nan)
    found = [_mean(model, tokens, column, keys, layers) for column in candidates.T]
    return torch.stack(found, dim=1)


def _keys(span: Span | None, n_prompt: int, pos: int, window: int) -> list[int]:
    if span is not None:
        return list(span)
    return list(range(max(n_prompt, pos - window), pos))


def _mean(
    model: Model,
    tokens: Tensor,
    targets: Tensor,
    keys: Sequence[int],
    layers: Collection[int] | None,
) -> Float[Tensor, " batch"]:
    """Saliency of some keys for these targets, mean over keys and layers."""
    table = rows_of(model, tokens, targets, None, None, layers)
    here: Any = table[table["pos"].isin(list(keys))]
    means = here.groupby("batch")["last"].mean().sort_index()
    return torch.tensor(means.to_numpy())


def _recent(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
