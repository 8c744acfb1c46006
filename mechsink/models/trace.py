"""Any Hugging Face causal language model, through nnsight's traces."""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.models.anatomy import (
    candidate_shape,
    codes_of,
    envoys_of,
    heads_of,
    module_places,
    pattern_places,
    text_config,
    with_pattern,
)
from mechsink.models.devices import fetched
from mechsink.models.hooks import HookFunction, SiteHooks, check_tokens
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.places import Part, Place, out_projection, weight_of
from mechsink.models.views import shared_view
from mechsink.run import Edit, ModelShape, Run
from mechsink.sites import Site


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
        return candidate_shape(self.plain, self._places, self._is_parallel)

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""
        out = out_projection(self.plain.blocks[layer])
        with fetched(out) as is_away:
            weight = weight_of(out).to(self.device, copy=is_away)
        heads = heads_of(text_config(self.plain.model))
        return weight.unflatten(0, (heads.n, heads.d))

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
        hooks = SiteHooks(read, edit, grad, on_read, self.device)
        points = hooks.points(resid_mid_is_hook=False)
        layers = sorted({site.layer for site in points})
        logits = self._trace(tokens, layers, points, self._places, grad)
        if must_fire:
            hooks.check_all_fired()
        return Run(tokens, logits.to(self.device), hooks.cache)

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
        return envoys_of(self.traced, self.plain)

    @functools.cached_property
    def _places(self) -> list[Place]:
        """Where every site lies, in the order of a block's run."""
        tokens = torch.arange(4, device=self.device)[None] % self.plain.d_vocab
        codes: list[str] = []
        inner: list[str] = []
        plain, traced, envoys = self.plain, self.traced, self._envoys
        with torch.no_grad(), traced.trace(tokens, use_cache=False):
            for envoy in envoys:
                codes[:], inner[:] = codes_of(envoy, plain.blocks[0])
        return with_pattern(module_places(plain), pattern_places(plain, codes, inner))

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
