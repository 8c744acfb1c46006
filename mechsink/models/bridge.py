"""Any Hugging Face causal language model, through TransformerLens's bridge."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.models.devices import fetched
from mechsink.models.hooks import SiteHooks, check_tokens
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.places import out_projection, weight_of
from mechsink.models.views import unbridged
from mechsink.run import Edit, ModelShape, Run
from mechsink.sites import Site

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_normed": "blocks.{}.mlp.hook_in",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "z": "blocks.{}.attn.hook_z",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "pattern": "blocks.{}.attn.hook_pattern",
}
"""Site name to TransformerLens's hook. resid_mid has none of its own: the
bridge's hook_resid_mid is the MLP norm's input only, so an edit there would miss
the skip path; `SiteHooks` goes through resid_pre and attn_out instead."""


class BridgeModel(HuggingFaceModel):
    """A Hugging Face causal language model whose sites TransformerLens reads."""

    backend = "transformer_lens"
    package = "transformer-lens"

    @classmethod
    def from_bridge(
        cls, bridge: Any, tokenizer: Any = None, **options: Any
    ) -> "BridgeModel":
        """Wrap a TransformerBridge's model, sharing its weights.

        Raises:
            ValueError: the bridge's weights were changed (folded, centred) or cannot
                be told apart; pass the Hugging Face model instead.
        """
        name = options.pop("name", None) or type(bridge.original_model).__name__
        return cls(unbridged(bridge), tokenizer, name=name, **options)

    def candidates(self) -> ModelShape:
        """Sizes by the bridge's configuration, sites by its hooks."""
        cfg = self.bridge.cfg
        names = {name for name in HOOKS if self._has_hook(name)}
        if "attn_out" in names and not self._is_parallel():
            names.add("resid_mid")
        return ModelShape(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_kv_heads=cfg.n_key_value_heads or cfg.n_heads,
            d_model=cfg.d_model,
            d_head=cfg.d_head,
            d_mlp=cfg.d_mlp or 0,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            sites=frozenset(names),
        )

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""
        with fetched(out_projection(self.plain.blocks[layer])) as is_away:
            if not is_away:
                return self.bridge.blocks[layer].attn.W_O.detach().to(self.device)
            weight = weight_of(out_projection(self.plain.blocks[layer]))
            n = self.shape.n_heads
            return weight.to(self.device, copy=True).unflatten(0, (n, -1))

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
        """One forward pass through the bridge."""
        check_tokens(tokens, shape.d_vocab, shape.n_ctx)
        tokens = tokens.to(self.device)
        hooks = SiteHooks(read, edit, grad, on_read, self.device)
        functions = [
            (HOOKS[site.name].format(site.layer), _as_hook(function))
            for site, function in hooks.points(resid_mid_is_hook=False).items()
        ]
        with torch.set_grad_enabled(grad):
            logits = self.bridge.run_with_hooks(
                tokens, fwd_hooks=functions, return_type="logits"
            )
        if must_fire:
            hooks.check_all_fired()
        return Run(tokens, logits.to(self.device), hooks.cache)

    def _has_hook(self, name: str) -> bool:
        hook = HOOKS[name].format(0)
        return hook in self.bridge.hook_dict

    def _is_parallel(self) -> bool:
        from transformer_lens.model_bridge.generalized_components import (
            ParallelBlockBridge,
        )

        parallel = getattr(self.bridge.cfg, "parallel_attn_mlp", False)
        return bool(parallel) or isinstance(self.bridge.blocks[0], ParallelBlockBridge)


def _as_hook(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    return lambda tensor, hook: function(tensor)
