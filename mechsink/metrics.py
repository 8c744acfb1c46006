"""Metrics: a run to one number per prompt, in a stated unit.

A metric names the sites it reads, so that the same patching and attribution
answers "what knows the answer?" and "what makes this sink?". It may promise more,
for speed: `logits_read` ("none", or "last" for the last position's alone; "all" is
assumed) and `vocabulary(prompts)` (of those tokens alone).
May import: sites, run.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.run import Run
from mechsink.sites import Site
from toy_tasks.checks import checked


@runtime_checkable
class Answers(Protocol):
    """Prompts with a right and a wrong next token, one each a prompt."""

    answers: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]


@dataclass(frozen=True, repr=False)
class LogitDiff:
    """Logit of the answer minus logit of the wrong answer, at the last position.

    In nats: a difference of log-probabilities, since both share a normaliser.

    Args:
        reads: sites that the metric needs: none.

    Examples:
        >>> case = ms.planted("induction")
        >>> (group,) = case.pairs.tokens(case.model)
        >>> ms.logit_diff(case.model.run(group.clean), group)[:2].round(decimals=2)
        tensor([7.3500, 7.2600])
    """

    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "logit_diff"

    def vocabulary(self, prompts: Answers) -> Int[Tensor, " token"]:
        """The tokens whose logits are read.

        Args:
            prompts: with answers and wrong answers.

        Raises:
            ValueError: they have none.
        """
        return torch.cat(
            [_given(self, prompts, "answers"), _given(self, prompts, "wrong")]
        )

    def __call__(self, run: Run, prompts: Answers) -> Float[Tensor, " prompt"]:
        """One difference a prompt."""
        last = at_least_float32(run.logits[:, -1])
        answers, wrong = (_given(self, prompts, n) for n in ("answers", "wrong"))
        return _at(last, answers) - _at(last, wrong)


@dataclass(frozen=True, repr=False)
class AnswerLogprob:
    """Log-probability of the answer at the last position, nats.

    Args:
        reads: sites that the metric needs: none.

    Examples:
        >>> case = ms.planted("induction")
        >>> (group,) = case.pairs.tokens(case.model)
        >>> ms.answer_logprob(case.model.run(group.clean), group)[:2].round(decimals=3)
        tensor([-0.0070, -0.0080])
    """

    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "answer_logprob"

    def __call__(self, run: Run, prompts: Answers) -> Float[Tensor, " prompt"]:
        """One log-probability a prompt."""
        answers = _given(self, prompts, "answers")
        last = at_least_float32(run.logits[:, -1])
        return _at(last.log_softmax(-1), answers)


@dataclass(frozen=True, repr=False)
class SinkAttention:
    """A head's attention to one position, averaged over later queries, 0 to 1.

    Source: importance score of Gu et al. 2024 (arXiv:2410.10781).
    """

    layer: int
    head: int
    position: int = 0
    logits_read = "none"

    def __post_init__(self) -> None:
        if self.position < 0:
            raise ValueError(
                f"sink_attention: position={self.position} is negative. Count from 0, "
                "the first token."
            )
        _ = self.reads  # a layer and head that can be

    def __repr__(self) -> str:
        where = f"layer={self.layer}, head={self.head}, position={self.position}"
        return f"sink_attention({where})"

    @property
    def reads(self) -> frozenset[Site]:
        """The head's pattern."""
        return frozenset({Site("pattern", self.layer, head=self.head)})

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        """One score a prompt."""
        (site,) = self.reads
        n_pos = run.cache[site].shape[-1]
        if self.position >= n_pos:
            raise ValueError(
                f"{self!r}: a prompt has {n_pos} tokens. Allowed: position 0 to "
                f"{n_pos - 1}."
            )
        later = run.cache[site][:, self.position :, self.position]
        return at_least_float32(later).mean(-1)


logit_diff = LogitDiff()
answer_logprob = AnswerLogprob()


@checked
def sink_attention(*, layer: int, head: int, position: int = 0) -> SinkAttention:
    """The metric "how much of a sink is this position for this head?".

    Args:
        layer: block of the head.
        head: query head.
        position: candidate sink, 0 for the first token.

    Returns:
        A metric, 0 to 1, no unit: attention to `position` averaged over the queries
        from there on. A uniform causal head scores H(T)/T at position 0 (H harmonic, T
        tokens). It needs no answers.

    Raises:
        ValueError: a negative layer, head or position; when it is called, a prompt
            without that position.

    Source: importance score of Gu et al. 2024 (arXiv:2410.10781).

    Examples:
        >>> case = ms.planted("backcopy")
        >>> metric = ms.sink_attention(layer=0, head=0)
        >>> run = case.model.run(case.pairs.clean, read=metric.reads)
        >>> metric(run, case.pairs)[:3].round(decimals=2)
        tensor([0.7500, 0.6700, 0.9100])
    """
    return SinkAttention(layer, head, position)


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, but half precision as float32, where sums and differences keep more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _given(metric: object, prompts: Any, name: str) -> Tensor:
    tokens = getattr(prompts, name, None)
    if tokens is None:
        raise ValueError(
            f"{metric!r}: the prompts have no {name}. Give them, as in "
            'PromptPairs(..., answers=[" Paris"], wrong=[" Rome"]), or take a metric '
            "that needs none, such as sink_attention(layer=, head=)."
        )
    return tokens


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens.to(values.device)[:, None])[:, 0]
