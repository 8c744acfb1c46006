"""A TransformerLens cache where a `Run` is asked for.

Sites are looked up in the cache when they are read; nothing is copied.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.bridge import HOOKS
from mechsink.run import Run
from mechsink.sites import Site

# Its value is the residual stream itself; that edits there miss the skip path is no
# matter to a reader.
_HOOKS = {**HOOKS, "resid_mid": "blocks.{}.hook_resid_mid"}


class _Sites(Mapping[Site, Tensor]):
    """An ActivationCache by `Site`, one head of a site included."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getitem__(self, site: Site) -> Tensor:
        name = _HOOKS[site.name].format(site.layer)
        if name not in self._cache.keys():  # noqa: SIM118 - `in` is not defined there
            raise KeyError(
                f"{site}: this cache has no {name}. Cache it: "
                "model.run_with_cache(tokens, names_filter=...) must let that name "
                "through, or leave names_filter out."
            )
        whole = self._cache[name]
        axis = site.axes
        index = site.index
        if len(index) > 1 and index[-1] >= whole.shape[len(index) - 1]:
            raise KeyError(
                f"{site}: {name} has {whole.shape[len(index) - 1]} heads, and axes "
                f"{' '.join(axis)} are left. Count heads from 0."
            )
        return whole[index]

    def __iter__(self) -> Iterator[Site]:
        names = set(self._cache.keys())
        layer = 0
        while any(name.startswith(f"blocks.{layer}.") for name in names):
            for site, hook in _HOOKS.items():
                if hook.format(layer) in names:
                    yield Site(site, layer)
            layer += 1

    def __len__(self) -> int:
        return sum(1 for _ in self)


def as_run(
    logits: Float[Tensor, "batch pos vocab"],
    cache: Any,
    tokens: Int[Tensor, "batch pos"],
) -> Run:
    """A TransformerLens run as a mechsink `Run`, which every metric takes.

    Args:
        logits: of every position, unnormalised, as `run_with_cache` gives them.
        cache: the `ActivationCache` of the same call, or any mapping from hook names
            to tensors. Read when a metric reads, not copied; it needs the sites that
            the metric names in `.reads`.
        tokens: the token ids that were run, a prefixed BOS included.

    Returns:
        A Run: `cache[ms.Site("pattern", 3, head=2)]` is that head's slice, in the
        shapes of `ms.Site`. A site that was not cached raises KeyError when read.

    Raises:
        TypeError: the arguments are in another order.
        ValueError: the cache has no batch axis, or logits and tokens differ in shape.

    Examples:
        >>> tokens = torch.tensor([[0, 1]])
        >>> cache = {"blocks.0.attn.hook_pattern": torch.eye(2)[None, None]}
        >>> run = ms.as_run(torch.zeros(1, 2, 5), cache, tokens)
        >>> ms.sink_attention(layer=0, head=0)(run, None)
        tensor([0.5000])
    """
    if not isinstance(logits, Tensor) or not hasattr(cache, "keys"):
        raise TypeError(
            f"as_run: got logits of type {type(logits).__name__} and a cache of type "
            f"{type(cache).__name__}. Pass them as TransformerLens returns them: "
            "ms.as_run(*model.run_with_cache(tokens), tokens)."
        )
    if not getattr(cache, "has_batch_dim", True):
        raise ValueError(
            "as_run: this cache had its batch axis taken away (remove_batch_dim). Pass "
            "it as run_with_cache returned it."
        )
    if logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"as_run: logits of shape {tuple(logits.shape)} for tokens of shape "
            f"{tuple(tokens.shape)}. Allowed: logits [batch pos vocab] of these very "
            "tokens, all positions; a prepended BOS counts as one."
        )
    return Run(tokens, logits, _Sites(cache))
