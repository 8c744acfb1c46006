"""Two edits of generation by saliency: candidates rejected, recent outputs reinforced.

Saliency itself is measured in mechsink/sinks (`candidate_saliency`); here it is a
function that the caller hands in.

Source: LVLMs-Saliency, "Hallucination Begins Where Saliency Drops"; formulas ours,
after the paper's description.
May import: run, results, plotting, models, the algebra.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import query_positions, scale
from mechsink.models.any_model import any_model
from mechsink.models.generation import Edits, generate
from mechsink.models.sampling import Sampler, greedy
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Model

CandidateSaliency = Callable[[Tensor, Tensor], Tensor]
"""Int[batch pos] texts, Int[batch candidate] to Float[batch candidate]."""


@dataclass(frozen=True, eq=False)
class SaliencyGeneration(Result):
    """Prompts with what was generated, and what was turned down on the way.

    `table`: batch (prompt), pos, token, rank (0: likeliest), saliency, threshold (NaN:
    nothing to compare with, or no saliency), rejected (candidates turned down),
    forced (all were, and the most salient one was taken).

    Attributes:
        ids: prompts and answers as token ids, a list a prompt.
        n_prompt: length of the prompts.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A")
        >>> saliency = ms.candidate_saliency(model, n_prompt=6)
        >>> made = ms.saliency_generate(model, tokens, 2, saliency)
        >>> made.table[["pos", "rank", "rejected", "forced"]].to_dict("list")
        {'pos': [6, 7], 'rank': [0, 0], 'rejected': [0, 0], 'forced': [False, False]}
    """

    ids: list[list[int]]
    n_prompt: int

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Prompts and answers, as `Generation.tokens`."""
        return torch.tensor(self.ids)

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """Saliency of the tokens taken, beside the threshold, along the answer.

        Args:
            ax: where to draw; default: a new figure.
            prompt: which.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        with plotting.theme():
            ax = ax or plotting.new_axes()
            ax.plot(here["pos"], here["saliency"], "o-", ms=3, label="token taken")
            ax.plot(here["pos"], here["threshold"], color="0.6", label="threshold")
            ax.set_xlabel("position of the new token")
            ax.set_ylabel("saliency, nats")
            ax.legend()
            return ax


def reinforce_recent(
    n_prompt: int, window: int = 8, gain: float = 1.5, decay: float = 1.0
) -> Edit:
    """Attention to the answer's most recent tokens, strengthened.

    For query i the keys i - window to i - 1, of those that lie in the answer, are
    multiplied by 1 + (gain - 1) * decay^(i - 1 - key); rows then sum as before. Row
    sums: kept. gain=1 is a no-op, and so is a query within the prompt or the answer's
    first token.

    Args:
        n_prompt: length of the prompt; the answer begins there.
        window: how far back tokens are recent.
        gain: factor of the token just before.
        decay: how that extra fades with each token further back; 1: not at all.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Raises:
        ValueError: settings out of range.

    Source: LVLMs-Saliency, reinforcement of local coherence.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.reinforce_recent(n_prompt=2, window=1, gain=3.0)(even)[0, 0, -1]
        tensor([0.1667, 0.1667, 0.5000, 0.1667])
    """
    if n_prompt < 0 or window < 1 or not gain >= 0 or not 0 < decay <= 1:
        raise ValueError(
            f"reinforce_recent: n_prompt={n_prompt}, window={window}, gain={gain}, "
            f"decay={decay}. Allowed: n_prompt 0 and more, window 1 and more, gain 0 "
            "and more (1 is a no-op), decay above 0, to 1."
        )

    def edit(pattern: Tensor) -> Tensor:
        query = query_positions(pattern)[:, None]
        key = torch.arange(pattern.shape[-1], device=pattern.device)
        back = query - key
        recent = (back >= 1) & (back <= window) & (key >= n_prompt)
        extra = (gain - 1) * decay ** (back - 1).clamp(min=0).to(pattern)
        return scale(pattern, recent, 1 + extra)

    return edit


@any_model
def saliency_generate(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    n_new: int,
    saliency: CandidateSaliency,
    *,
    n_candidates: int = 5,
    alpha: float = 0.6,
    window: int = 8,
    sampler: Sampler = greedy,
    edit: Edits | None = None,
) -> SaliencyGeneration:
    """Generate, turning down candidates whose saliency drops.

    At every step the likeliest `n_candidates` are asked for their saliency; those
    below `alpha` times the mean saliency of the last `window` tokens taken are turned
    down, and `sampler` chooses among the others. If none is left, the most salient
    one is taken. Where nothing is known (the first token, NaN), nothing is turned down.

    Args:
        model: any model.
        tokens: prompts of one length.
        n_new: tokens to add to each.
        saliency: such as `candidate_saliency(model, n_prompt=tokens.shape[1])`.
        n_candidates: how many are considered.
        alpha: 0 turns nothing down, so that only `n_candidates` bounds the sampler.
        window: tokens of the answer that set the threshold.
        sampler: as in `generate`; sees -inf for all but the candidates left.
        edit: as in `generate`, such as at_layers(reinforce_recent(n_prompt), layers).
            The saliency is that of the model as `saliency` asks it.

    Returns:
        A `SaliencyGeneration`; `.tokens` are prompts and answers, Int[batch pos].

    Raises:
        ValueError: settings out of range, or as `generate`.

    Source: LVLMs-Saliency, saliency-guided rejection sampling.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A")
        >>> saliency = ms.candidate_saliency(model, n_prompt=6)
        >>> made = ms.saliency_generate(model, tokens, 2, saliency)
        >>> model.to_strings(made.tokens[0, 6:])
        ['B', 'C']
    """
    if not 1 <= n_candidates <= model.shape.d_vocab or not alpha >= 0 or window < 1:
        raise ValueError(
            f"saliency_generate: n_candidates={n_candidates}, alpha={alpha}, window="
            f"{window}. Allowed: 1 to {model.shape.d_vocab} candidates, alpha 0 and "
            "more, window 1 and more."
        )
    texts = [tokens.to(model.device)]
    taken: list[Tensor] = []
    log: list[dict[str, Any]] = []

    def choose(logits: Tensor) -> Tensor:
        candidates = logits.topk(n_candidates, dim=-1).indices
        found = saliency(torch.cat(texts, 1), candidates).to(logits.device).double()
        recent = (
            torch.stack(taken[-window:]) if taken else found.new_full((1, 1), torch.nan)
        )
        threshold = alpha * recent.nanmean(0).expand(len(found))  # all NaN: NaN
        low = found < threshold[:, None]
        forced = low.all(1)
        best = torch.where(found.isnan(), -torch.inf, found).argmax(1)
        low[forced, best[forced]] = False
        kept = torch.full_like(logits, -torch.inf)
        kept.scatter_(1, candidates, logits.gather(1, candidates))
        kept.scatter_(
            1, candidates, kept.gather(1, candidates).masked_fill(low, -torch.inf)
        )
        chosen = sampler(kept)
        rank = (candidates == chosen[:, None]).int().argmax(1)
        taken.append(found.gather(1, rank[:, None])[:, 0])
        texts.append(chosen[:, None].to(texts[0]))
        for row in range(len(found)):
            log.append(
                {
                    "batch": row,
                    "pos": tokens.shape[1] + len(taken) - 1,
                    "token": int(chosen[row]),
                    "rank": int(rank[row]),
                    "saliency": float(taken[-1][row]),
                    "threshold": float(threshold[row]),
                    "rejected": int(low[row].sum()),
                    "forced": bool(forced[row]),
                }
            )
        return chosen

    made = generate(model, tokens, n_new, edit=edit, sampler=choose)
    table = pd.DataFrame(log).sort_values(["batch", "pos"], ignore_index=True)
    meta = provenance(
        model,
        tokens,
        n_new=n_new,
        n_candidates=n_candidates,
        alpha=alpha,
        window=window,
        edit=[str(site) for site in edit or {}],
        path=made.path,
    )
    return SaliencyGeneration(table, meta, made.tokens.tolist(), tokens.shape[1])
