"""Any Hugging Face causal language model, through nnsight's traces."""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsink.models.hooks import HookFunction, SiteHooks, check_tokens
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.places import (
    WHOLE,
    Heads,
    Part,
    Place,
    attention_of,
    down_projection,
    out_projection,
    places,
    weight_of,
)
from mechsink.models.views import shared_view
from mechsink.run import Edit, ModelShape, Run
from mechsink.sites import Site

CALLED = ("attention_interface_1", "self__attn_0")
"""Calls in an attention's code that compute the pattern; BLOOM's has none of them."""


class TraceModel(HuggingFaceModel):
    """A Hugging Face causal language model whose sites nnsight reads."""

    backend = "nnsight"
    package = "nnsight"

    @functools.cached_property
    def traced(self) -> Any:
        """nnsight's view of the model, eager, over weights of the user's."""
        from nnsight import NNsight

        return NNsight(shared_view(self.plain.model, eager=True))

    def candidates(self) -> ModelShape:
        """Sizes by the model's configuration; every site is tried."""
        config = self._config
        heads = self._heads
        down = down_projection(self._block)
        names = {name for place in self._places for name in place.parts}
        if not self._is_parallel:
            names.add("resid_mid")
        return ModelShape(
            n_layers=config.num_hidden_layers,
            n_heads=heads.n,
            n_kv_heads=heads.n_kv,
            d_model=config.hidden_size,
            d_head=heads.d,
            d_mlp=0 if down is None else weight_of(down).shape[0],
            d_vocab=self.plain.d_vocab,
            n_ctx=self.plain.n_ctx,
            sites=frozenset(names),
        )

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""
        weight = weight_of(out_projection(self.plain.blocks[layer]))
        return weight.unflatten(0, (self._heads.n, self._heads.d))

    def run_sites(
        self,
        shape: ModelShape,
        tokens: Tensor,
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
        on_read: Callable[[Site, Tensor], None] | None = None,
        must_fire: bool = True,
    ) -> Run:
        """One forward pass in a trace."""
        check_tokens(tokens, shape.d_vocab, shape.n_ctx)
        tokens = tokens.to(self.device)
        hooks = SiteHooks(read, edit, grad, on_read)
        points = hooks.points(resid_mid_is_hook=False)
        layers = sorted({site.layer for site in points})
        logits = self._trace(tokens, layers, points, self._places, grad)
        if must_fire:
            hooks.check_all_fired()
        return Run(tokens, logits, hooks.cache)

    def _trace(
        self,
        tokens: Tensor,
        layers: list[int],
        points: Mapping[Site, HookFunction],
        where: list[Place],
        grad: bool,
    ) -> Tensor:
        """Logits; at each place, what its sites' functions make of it goes back."""
        traced, blocks = self.traced, self._envoys
        logits: Any = None
        failed: list[Exception] = []
        try:
            # nnsight compiles the body of its `with`, which stands alone therefore.
            with torch.set_grad_enabled(grad):  # noqa: SIM117
                with traced.trace(tokens, use_cache=False):
                    for layer in layers:
                        visit = _Visit(blocks[layer], layer, points, tokens.shape)
                        for place in where:
                            visit.at(place, failed)
                    logits = traced.output.logits.save()
        except Exception:
            if failed:  # nnsight wraps what an edit raises
                raise failed[0] from None
            raise
        return logits

    @functools.cached_property
    def _envoys(self) -> Any:
        """nnsight's handles on the blocks."""
        blocks = self.plain.blocks
        paths = {id(module): name for name, module in self.plain.model.named_modules()}
        return functools.reduce(getattr, paths[id(blocks)].split("."), self.traced)

    @property
    def _config(self) -> Any:
        return self.plain.model.config.get_text_config()

    @property
    def _block(self) -> nn.Module:
        return self.plain.blocks[0]

    @functools.cached_property
    def _heads(self) -> Heads:
        config = self._config
        n = config.num_attention_heads
        d = getattr(config, "head_dim", None) or config.hidden_size // n
        n_kv = getattr(config, "num_key_value_heads", None)
        if getattr(config, "new_decoder_architecture", False):  # Falcon's names
            n_kv = config.num_kv_heads
        elif getattr(config, "multi_query", False):
            n_kv = 1
        return Heads(n, n_kv or n, d)

    @functools.cached_property
    def _places(self) -> list[Place]:
        factor = float(getattr(self._config, "residual_multiplier", None) or 1)
        found = places(self._block, self._heads, factor)
        at = next(i for i, place in enumerate(found) if "z" in place.parts)
        return found[:at] + self._pattern_places() + found[at:]

    def _pattern_places(self) -> list[Place]:
        """Scores and pattern, inside the code that computes them."""
        path, _ = attention_of(self._block)
        tokens = torch.arange(4, device=self.device)[None] % self.plain.d_vocab
        codes: list[str] = []
        inner: list[str] = []
        traced, envoys = self.traced, self._envoys
        with torch.no_grad(), traced.trace(tokens, use_cache=False):
            for block in envoys:  # each layer's code is opened before it first runs
                attention = functools.reduce(getattr, path, block)
                codes[:] = _operations(attention.source)
                called = next((name for name in CALLED if name in codes), None)
                if called is not None:
                    inside = getattr(attention.source, called).source
                    inner[:] = _operations(inside)
        called = next((name for name in CALLED if name in codes), None)
        path = (*path, "source", *((called, "source") if called else ()))
        names = inner if called else codes
        found = _softmax(names, second=bool(getattr(self._config, "alibi", False)))
        if found is None:
            return []
        scores, pattern = found
        if called and "torch_cat_0" in names[: names.index(scores)]:
            scores = "torch_cat_0"  # GPT-OSS puts a learned logit beside them
        return [
            Place((*path, scores), "input", {"attn_scores": WHOLE}),
            Place((*path, pattern), "output", {"pattern": WHOLE}),
        ]

    @functools.cached_property
    def _is_parallel(self) -> bool:
        """Whether the MLP reads the residual from before the attention: tried."""
        tokens = torch.arange(4, device=self.device)[None] % self.plain.d_vocab
        seen: list[Tensor] = []
        where = [p for p in self._places if p.parts.keys() & {"attn_out", "mlp_normed"}]
        for by in (0.0, 1.0):
            points: dict[Site, HookFunction] = {
                Site("attn_out", 0): lambda x, by=by: x + by * x.roll(1, dims=-1),
                Site("mlp_normed", 0): lambda x: seen.append(x.detach()),
            }
            self._trace(tokens, [0], points, where, grad=False)
        return len(seen) == 2 and torch.equal(*seen)


@dataclass(frozen=True, eq=False)
class _Visit:
    """One block within a trace, and what is to run at its places."""

    block: Any
    layer: int
    points: Mapping[Site, HookFunction]
    shape: torch.Size  # of the tokens

    def at(self, place: Place, failed: list[Exception]) -> None:
        """Hand a place's sites to their functions, put back what they change."""
        sites = [Site(name, self.layer) for name in place.parts]
        if not any(site in self.points for site in sites):
            return
        envoy = functools.reduce(getattr, place.path, self.block)
        held = getattr(envoy, place.side)
        is_alone = isinstance(held, Tensor)
        given = held if is_alone else held[0]
        is_flat = given.ndim == 2  # OPT's MLP sees all tokens of a batch in a row
        whole = before = given.unflatten(0, self.shape) if is_flat else given
        for site in sites:
            if site in self.points:
                whole = self._after(site, place.parts[site.name], whole, failed)
        if whole is not before:
            new = whole.flatten(0, 1) if is_flat else whole
            setattr(envoy, place.side, new if is_alone else (new, *held[1:]))

    def _after(
        self, site: Site, part: Part, whole: Tensor, failed: list[Exception]
    ) -> Tensor:
        try:
            new = self.points[site](part.get(whole))
        except Exception as error:
            failed.append(error)
            raise
        return whole if new is None else part.put(whole, new)


def _softmax(names: list[str], second: bool) -> tuple[str, str] | None:
    """The call that normalises scores, and the one that gives the pattern.

    The pattern is what dropout leaves, where there is dropout. Falcon's code has a
    branch without ALiBi and then one with it: `second`.
    """
    at = [i for i, name in enumerate(names) if "softmax" in name]
    if not at:
        return None
    which = 1 if second and len(at) > 1 else 0
    end = at[which + 1] if which + 1 < len(at) else len(names)
    branch = names[at[which] : end]
    return branch[0], next((name for name in branch if "dropout" in name), branch[0])


def _operations(source: Any) -> list[str]:
    """Names of the calls in a module's code, in order, as nnsight numbers them."""
    lines = str(source).splitlines()
    return [line.split("->")[0].strip() for line in lines if "->" in line]
