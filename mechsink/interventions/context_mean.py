"""Context-aware means: what a token's activation is, whatever the others are.

The mean at position t is over redraws of all slots but the one at t. In a causal
model only slots before t matter: these alone are enumerated or sampled, and one mean
per distinct (position, token) serves all prompts. Prompts are run whole: a prompt cut
short is another prompt to some models (a toy that peeks at its end, scaled RoPE).

Source: context-aware mean ablation (CAMA) of "All for One" (arXiv:2509.09650).
"""

import contextlib
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.context_sums import EXACT, ContextSums, stretches
from mechsink.interventions.replacements import Replacement
from mechsink.models.any_model import any_model
from mechsink.models.memory import rows_that_fit
from mechsink.run import Model
from mechsink.sites import Site
from mechsink.slots.prompts import SlotPrompts, as_slot_tokens
from mechsink.slots.tokens import SlotTokens


@dataclass(frozen=True, eq=False)
class ContextMeans:
    """Means of one site, given the token at hand; compact, one row a distinct token.

    Args:
        site: which.
        slots: the prompts that were asked about, and how their slots are drawn.
        template: means at each position over everything (the last token included).
        by_value: for each slot, means given each of its values.
        template_error: standard errors of `template`, a root mean square over the
            site's dimensions, in its unit; 0 where every context was run.
        by_value_error: the same of `by_value`.
        n_contexts: contexts averaged at each position: for a slot, per value.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts("x {A} x {B} =", {"A": "01", "B": "01"})
        >>> means = ms.context_means(model, prompts, layer=0)
        >>> means.n_contexts, means.standard_error
        ([1, 1, 1, 2, 2, 4], None)
    """

    site: Site
    slots: SlotTokens
    template: Float[Tensor, "pos ..."]
    by_value: tuple[Float[Tensor, "_ ..."], ...]
    template_error: Float[Tensor, " pos"]
    by_value_error: tuple[Float[Tensor, " _"], ...]
    n_contexts: list[int]

    @functools.cached_property
    def values(self) -> Float[Tensor, "prompt pos ..."]:
        """The mean of every prompt at every position."""
        return self.at(self.slots.tokens)

    @property
    def standard_error(self) -> Float[Tensor, "prompt pos"] | None:
        """Of `values`, root mean square over dimensions; None if all are exact."""
        errors = (self.template_error, *self.by_value_error)
        if not any(bool(error.any()) for error in errors):
            return None
        return self._gather(self.slots.tokens, self.template_error, self.by_value_error)

    def at(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos ..."]:
        """Means for any prompts of this template.

        Args:
            tokens: prompts.

        Returns:
            The mean at each position, given its token.

        Raises:
            ValueError: prompts of another template, or with unknown values.
        """
        return self._gather(tokens, self.template, self.by_value)

    def _gather(
        self, tokens: Tensor, template: Tensor, by_value: Sequence[Tensor]
    ) -> Tensor:
        picks = self.slots.picks(tokens)
        found = template.expand(len(tokens), *template.shape).clone()
        for slot, position in enumerate(self.slots.positions):
            found[:, position] = by_value[slot][picks[:, slot]]
        return found


@any_model
def context_means(
    model: Model,
    slot_prompts: SlotPrompts | SlotTokens,
    layer: int,
    *,
    site: str = "resid_pre",
    n_samples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    exact_up_to: int = EXACT,
) -> ContextMeans:
    """Mean of a site given the token at hand, the other slots redrawn.

    Args:
        model: any causal model.
        slot_prompts: the prompts, and the values that slots are redrawn from.
        layer: which layer's.
        site: any site with a pos axis.
        n_samples: contexts drawn, with replacement, for each value of a slot;
            None: `SAMPLES` where more than `exact_up_to` combinations matter,
            else all of them. What can be enumerated with no more runs, is.
        seed: of these draws.
        batch_size: contexts a pass, no effect on the means; None: what fits.
        exact_up_to: combinations up to which all are run.

    Returns:
        Means whose `.values` are Float[prompt pos d_model]. A template token's
        are over all redraws. With samples its standard error is an upper bound:
        every value is drawn equally often, which only narrows it.

    Raises:
        ValueError: no such layer or site, or prompts that are refused.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650), CAMA.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts("x {A} x {B} =", {"A": "01", "B": "01"})
        >>> means = ms.context_means(model, prompts, layer=0)
        >>> tuple(means.values.shape)
        (4, 6, 64)
    """
    where = Site(site, layer)
    means = means_at(
        model,
        slot_prompts,
        [where],
        n_samples=n_samples,
        seed=seed,
        batch_size=batch_size,
        exact_up_to=exact_up_to,
    )
    return means[where]


def means_at(
    model: Model,
    slot_prompts: SlotPrompts | SlotTokens,
    sites: Collection[Site],
    *,
    n_samples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    exact_up_to: int = EXACT,
) -> dict[Site, ContextMeans]:
    """`context_means` of several sites from the same passes."""
    for where in sites:
        model.shape.check(where)
        if "pos" not in where.axes:
            raise ValueError(
                f"context_means: {where} has axes {' '.join(where.axes)}, and a mean "
                "given a token needs one value a position. Use resid_pre, z, attn_out "
                "or another site with axis pos."
            )
    if n_samples is not None and n_samples < 2:
        raise ValueError(
            f"context_means: n_samples={n_samples}. A standard error needs at least 2."
        )
    slots = as_slot_tokens(model, slot_prompts)
    sums: dict[Site, list[ContextSums]] = {where: [] for where in sites}
    for picks, is_exact, start, end in stretches(slots, n_samples, seed, exact_up_to):
        step = batch_size or _batch(model, slots.n_pos, len(sites))
        n_values = len(slots.values[picks.shape[1] - 1]) if picks.shape[1] else 0
        for where in sites:
            sums[where].append(ContextSums(start, end, n_values, is_exact))
        for some in picks.split(step):
            held = some[:, -1] if n_values else None
            for where, x in _read(model, slots.redrawn(some), sites):
                sums[where][-1].add(x[:, start:end], held)
    return {where: _joined(where, slots, sums[where], model.dtype) for where in sites}


def context_mean(
    slot_prompts: SlotPrompts | SlotTokens,
    *,
    n_samples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    exact_up_to: int = EXACT,
) -> Replacement:
    """A site's mean given the token at each position, the other slots redrawn.

    For `ablate`, on prompts of this template: it removes what a token has learnt
    of the others and keeps what it is.

    Args:
        slot_prompts: the prompts, and the values that slots are redrawn from.
        n_samples: as in `context_means`.
        seed: as in `context_means`.
        batch_size: as in `context_means`.
        exact_up_to: as in `context_means`.

    Returns:
        A replacement for `ablate`.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650), CAMA.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts("x {A} x {B} =", {"A": "01", "B": "01"})
        >>> tokens = prompts.tokens(model).tokens
        >>> heads = [ms.Site("z", layer=0)]
        >>> metric = ms.sink_attention(layer=0, head=0)
        >>> done = ms.ablate(model, tokens, heads, ms.context_mean(prompts), metric)
        >>> done.table.change.tolist()  # z comes after attention
        [0.0, 0.0, 0.0, 0.0]
    """

    def values(
        model: Model, sites: Collection[Site], tokens: Tensor
    ) -> Mapping[Site, Tensor]:
        means = means_at(
            model,
            slot_prompts,
            sites,
            n_samples=n_samples,
            seed=seed,
            batch_size=batch_size,
            exact_up_to=exact_up_to,
        )
        return {where: mean.at(tokens) for where, mean in means.items()}

    values.seed = seed  # type: ignore[attr-defined]  # results store it
    return values


class _Enough(Exception):
    """Raised out of a pass that has shown all that was asked."""


def _read(
    model: Model, tokens: Tensor, sites: Collection[Site]
) -> Iterable[tuple[Site, Tensor]]:
    """The sites' values; for residuals, no more of the model is run than needed."""
    if any(where.name != "resid_pre" for where in sites):
        return model.run(tokens, read=sites).cache.items()
    found: dict[Site, Tensor] = {}

    def residual(layer: int, x: Tensor) -> None:
        if Site("resid_pre", layer) in sites:
            found[Site("resid_pre", layer)] = x
        if len(found) == len(set(sites)):
            raise _Enough  # neither later layers nor the unembedding need run

    with contextlib.suppress(_Enough):
        model.visit(tokens, residual=residual)
    return found.items()


def _joined(
    where: Site, slots: SlotTokens, sums: Sequence[ContextSums], dtype: torch.dtype
) -> ContextMeans:
    """The stretches side by side."""
    template, errors, by_value, value_errors, n_contexts = [], [], [], [], []
    for part in sums:
        mean, error, mean_by_value, error_by_value = part.means()
        template.append(mean)
        errors.append(error)
        n = [part.n_contexts] * (part.end - part.start)
        if part.n_values:
            by_value.append(mean_by_value.to(dtype))
            value_errors.append(error_by_value.to(dtype))
            n[0] //= part.n_values
        n_contexts += n
    return ContextMeans(
        where,
        slots,
        torch.cat(template).to(dtype),
        tuple(by_value),
        torch.cat(errors).to(dtype),
        tuple(value_errors),
        n_contexts,
    )


def _batch(model: Model, n_pos: int, n_sites: int) -> int:
    shape = model.shape
    n_numbers = n_pos * (shape.d_vocab + n_sites * shape.d_model)
    return rows_that_fit(
        shape, n_pos, dtype=model.dtype, device=model.device, n_logits=n_numbers
    )
