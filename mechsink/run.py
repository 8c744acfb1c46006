"""What a measurement may ask of a model: `Model`, `Run`, `Metric`.

Plain protocols: a new model or metric needs no base class.
May import: sites.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.sites import AXES, Site

Edit = Callable[[Tensor], Tensor]
"""Takes a site's tensor, returns a new one of the same shape, not in place."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a transformer and which sites it has.

    `sites` are the names in `AXES` that this model can read: parallel blocks,
    for example, have no resid_mid. Those in `read_only` refuse edits.
    `rows_sum_to_1` is False where a learned sink logit takes part of each row, or
    where attention is no softmax.

    Attributes:
        n_layers: how many blocks it has.
        n_heads: query heads a layer.
        n_kv_heads: key-value heads a layer; n_heads without grouped-query attention.
        d_model: width of the residual stream.
        d_head: width of a head.
        d_mlp: neurons a layer.
        d_vocab: tokens.
        n_ctx: longest prompt, in tokens.

    Examples:
        >>> shape = ms.planted("induction").model.shape
        >>> shape.n_layers, shape.n_heads, shape.d_model
        (2, 3, 64)
        >>> shape.size(ms.Site("z", layer=1), batch=2, pos=5)
        (2, 5, 3, 16)
        >>> shape.check(ms.Site("z", layer=7))
        Traceback (most recent call last):
            ...
        ValueError: L7.z: layer=7, but this model has 2 layers. Allowed: 0 to 1.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    sites: frozenset[str] = frozenset(AXES)
    read_only: frozenset[str] = frozenset()
    rows_sum_to_1: bool = True

    def check(self, site: Site) -> None:
        """Raise ValueError if this model has no such site, saying what it has.

        Args:
            site: any.

        Raises:
            ValueError: this model has no such site.
        """
        if site.name not in self.sites:
            raise ValueError(
                f"{site}: this model has no {site.name}. It has: "
                f"{', '.join(name for name in AXES if name in self.sites)}."
            )
        for axis, n in (
            ("layer", self.n_layers),
            ("head", self.n_heads),
            ("kv_head", self.n_kv_heads),
        ):
            index = getattr(site, axis)
            if index is not None and index >= n:
                raise ValueError(
                    f"{site}: {axis}={index}, but this model has {n} "
                    f"{axis.replace('kv_head', 'key-value head')}s. "
                    f"Allowed: 0 to {n - 1}."
                )

    def size(self, site: Site, batch: int, pos: int) -> tuple[int, ...]:
        """Shape of a site's tensor for `batch` prompts of `pos` tokens."""
        sizes = {
            "batch": batch,
            "pos": pos,
            "query": pos,
            "key": pos,
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "d_model": self.d_model,
            "d_head": self.d_head,
            "d_mlp": self.d_mlp,
        }
        return tuple(sizes[axis] for axis in site.axes)

    def all_sites(self, name: str) -> list[Site]:
        """One whole site a layer.

        Args:
            name: such as "resid_pre".
        """
        return [Site(name, layer) for layer in range(self.n_layers)]


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: the tokens, the logits and what was read on the way.

    Attributes:
        tokens: what was run.
        logits: of the next token, after every position; a soft cap applied.
        cache: site to its tensor, in the order of `Site.axes`.

    Examples:
        >>> model = ms.planted("induction").model
        >>> site = ms.Site("pattern", layer=0)
        >>> run = model.run(model.to_tokens("A B C A"), read=[site])
        >>> model.to_strings(run.tokens[0])
        ['<s>', 'A', 'B', 'C', 'A']
        >>> tuple(run.logits.shape), tuple(run.cache[site].shape)
        ((1, 5, 12), (1, 3, 5, 5))
    """

    tokens: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos vocab"]
    cache: Mapping[Site, Tensor]


@runtime_checkable
class LayerAttention(Protocol):
    """What one layer's attention saw and did, without its whole pattern.

    Handed to the visitor of `Model.visit`, layer by layer; valid during the call.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> def show(layer):
        ...     to_first = layer.columns([0])[0, 0, :, 0]  # of head 0, by query
        ...     print(layer.layer, [round(a, 2) for a in to_first.tolist()])
        >>> model.visit(model.to_tokens("b c d e f"), attention=show)
        0 [1.0, 1.0, 0.99, 0.99, 0.01, 0.99]
    """

    @property
    def layer(self) -> int:
        """Which block."""
        ...

    @property
    def is_softmax(self) -> bool:
        """Whether weights are exponentials of scores over their sum.

        A learned sink logit in that sum counts as softmax too.
        """
        ...

    @property
    def v(self) -> Float[Tensor, "batch kv_head pos d_head"]:
        """Values, as the pattern weighs them."""
        ...

    def columns(self, keys: Sequence[int]) -> Float[Tensor, "batch head query column"]:
        """Attention that every query pays to a few keys; 0 where masked."""
        ...

    def excess_score(self, key: int) -> Float[Tensor, "batch head query"]:
        """Score of `key` minus the mean score of the query's other visible keys.

        Pre-softmax, in nats; NaN where the query sees no other key or not `key`.
        """
        ...


@runtime_checkable  # the shape checker needs isinstance
class Model(Protocol):
    """All that a measurement may ask of a model.

    Examples:
        >>> model = ms.planted("induction").model
        >>> isinstance(model, ms.Model)
        True
        >>> tokens = model.to_tokens("A B C A")
        >>> no_head = {ms.Site("z", layer=1, head=0): torch.zeros_like}
        >>> for edit in ({}, no_head):
        ...     logits = model.run(tokens, edit=edit).logits
        ...     print(model.to_strings(logits[0, -1:].argmax(-1)))
        ['B']
        ['A']
    """

    @property
    def name(self) -> str:
        """What it was loaded as."""
        ...

    @property
    def shape(self) -> ModelShape:
        """Sizes and available sites."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """Provenance for `meta.json`: backend, versions, weights, attention."""
        ...

    def to_tokens(self, texts: str | Sequence[str]) -> Int[Tensor, "batch pos"]:
        """Tokens by the tokenizer's own habit (nothing added to it).

        Args:
            texts: one or several, of one number of tokens.
        """
        ...

    def to_strings(self, tokens: Int[Tensor, " pos"]) -> list[str]:
        """One readable string a token.

        Args:
            tokens: of one prompt.
        """
        ...

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,  # for this call only
        grad: bool = False,
    ) -> Run:
        """One forward pass. `read` sees values after `edit`.

        Args:
            tokens: prompts of one length.
            read: sites to keep.
            edit: site to a function of its tensor, for this call only.
            grad: record gradients.
        """
        ...

    def visit(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention: Callable[[LayerAttention], None] | None = None,
        residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None]
        | None = None,
    ) -> None:
        """One forward pass in memory linear in length, handing out each layer.

        `residual(layer, resid_pre)` for every layer, then `residual(n_layers,
        resid_post)` of the last; `attention` once a layer. Nothing is kept.

        Args:
            tokens: prompts of one length.
            attention: called with each layer's attention.
            residual: called with a layer's number and its input.
        """
        ...

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A run to one number per prompt; `reads` are the sites it needs.

    Examples:
        A new metric is any object like this one:

        >>> class LargestLogit:
        ...     reads = frozenset()
        ...     def __call__(self, run, prompts):
        ...         return run.logits[:, -1].amax(-1)
        >>> isinstance(LargestLogit(), ms.Metric)
        True
        >>> case = ms.planted("induction")
        >>> found = ms.noise_floor(case.model, case.pairs, LargestLogit())
        >>> found.table.value.round(1).max().item()
        7.4
    """

    @property
    def reads(self) -> frozenset[Site]:
        """Sites that must be in the run's cache."""
        ...

    def __call__(self, run: Run, prompts: Any) -> Float[Tensor, " prompt"]:
        """The metric of each prompt, in the metric's unit."""
        ...
