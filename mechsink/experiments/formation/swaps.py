"""Attention of a trained toy swapped for another: what does the sink do there?

Source: the interventions of Guo et al. 2024 (arXiv:2410.13835) on the trained model;
"masked" is ours.
"""

from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechsink.models.any_model import any_model
from mechsink.run import Model
from mechsink.sites import Site
from toy_tasks import BigramBackcopy, evaluate

Pattern = Float[Tensor, "batch head query key"]
Swap = Callable[[Pattern, Bool[Tensor, "batch query"]], Pattern]


def _none(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    return pattern


def _zero_sink(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    later = pattern.clone()
    later[:, :, 1:, 0] = 0
    return later


def _masked(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    # As if <s> were hidden before the softmax; a row that was all <s> gets nothing.
    rest = _zero_sink(pattern, is_trigger)
    return rest / rest.sum(-1, keepdim=True).clamp(min=1e-12)


def _zero_head(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    return torch.zeros_like(pattern)


def _to_sink(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    moved = torch.zeros_like(pattern)
    moved[..., 0] = 1
    return moved


def _clean(pattern: Pattern, is_trigger: Bool[Tensor, "batch query"]) -> Pattern:
    previous = torch.ones(pattern.shape[-1] - 1).diag(-1).to(pattern)
    return torch.where(
        is_trigger[:, None, :, None], previous, _to_sink(pattern, is_trigger)
    )


SWAPS: dict[str, Swap] = {
    "none": _none,
    "zero sink": _zero_sink,
    "masked sink": _masked,
    "zero head": _zero_head,
    "all to sink": _to_sink,
    "clean": _clean,
}
"""Name to swap. zero sink: weight on `<s>` set to 0 for later queries; masked sink:
the rest renormalised; zero head: no attention; all to sink: every query looks at
`<s>`; clean: triggers look at the token before them, all others at `<s>`."""


@any_model
def swap_effects(
    model: Model,
    task: BigramBackcopy,
    tokens: Int[Tensor, "batch pos"],
    *,
    layer: int = 0,
) -> pd.DataFrame:
    """Excess risk on triggers and elsewhere with a layer's attention swapped.

    Args:
        model: a toy trained on the task; its prompts open with `<s>`.
        tokens: from `task.sample`; the last token is only predicted.
        layer: whose heads, all of them, are swapped.
        task: the toy's own.

    Returns:
        swap (of `SWAPS`), measure (as `toy_tasks.evaluate` names it), value in nats.

    Source: the interventions of Guo et al. 2024 (arXiv:2410.13835); "masked" is ours.

    Examples:
        >>> from toy_tasks.planted import backcopy_task
        >>> task = backcopy_task()
        >>> model = ms.planted("backcopy").model
        >>> found = ms.swap_effects(model, task, task.sample(8, 12, seed=0))
        >>> costs = found.pivot(index="swap", columns="measure", values="value")
        >>> costs.markov_excess.round(1).to_dict()
        {'all to sink': 0.0, 'clean': 0.0, 'masked sink': 3.1, 'none': 0.0, 'zero head':
        0.0, 'zero sink': 0.0}
    """
    rows = []
    tokens = tokens.to(model.device)
    for name, swap in SWAPS.items():
        risk = evaluate(_Swapped(model, task, swap, layer), task, tokens)
        rows += [
            {"swap": name, "measure": measure, "value": value}
            for measure, value in risk.items()
            if measure in ("trigger_excess", "markov_excess")
        ]
    return pd.DataFrame(rows)


class _Swapped(nn.Module):
    """A mechsink model with one layer's attention swapped, as `evaluate` calls one."""

    def __init__(
        self, model: Model, task: BigramBackcopy, swap: Swap, layer: int
    ) -> None:
        super().__init__()
        self.model, self.task, self.swap, self.layer = model, task, swap, layer

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        is_trigger = self.task.is_trigger(tokens)
        site = Site("pattern", self.layer)
        edit = {site: lambda pattern: self.swap(pattern, is_trigger)}
        return self.model.run(tokens, edit=edit).logits
