"""The wiring of a Hugging Face model, read off its TransformerLens bridge."""

import dataclasses
import functools
from typing import Any, TypeVar

import torch
from torch import Tensor

from mechsink.models.wiring import Norm, Port, Read, Unembed, Write

PartT = TypeVar("PartT", Norm, Read, Write, Unembed)


class BridgeWiring:
    """Reads and writes of a `BridgeModel`."""

    has_attention = True
    has_mlp = True

    def __init__(self, model: Any) -> None:
        self._model, self._bridge = model, model.bridge
        self._is_parallel = "resid_mid" not in model.shape.sites

    def attention_read(self, layer: int, port: Port) -> Read:
        """How q, k or v come from resid_pre."""
        block = self._bridge.blocks[layer]
        weight = getattr(block.attn, f"W_{port.upper()}").detach()
        bias = getattr(block.attn, f"b_{port.upper()}")
        read = Read(_norm(block, "ln1"), weight, _detached(bias))
        return at(self._model.device, read)

    def mlp_read(self, layer: int) -> Read:
        """How mlp_normed comes from resid_mid (resid_pre in parallel blocks)."""
        block = self._bridge.blocks[layer]
        shares_norm = self._is_parallel and not hasattr(block, "ln2")
        read = Read(_norm(block, "ln1" if shares_norm else "ln2"))
        return at(self._model.device, read)

    def attention_write(self, layer: int) -> Write:
        """How attn_out comes from z."""
        block = self._bridge.blocks[layer]
        bias = _detached(block.attn.b_O)
        post = _norm(block, "ln1_post")
        write = Write(block.attn.W_O.detach(), bias, post, self._factor)
        return at(self._model.device, write)

    def mlp_write(self, layer: int) -> Write:
        """How mlp_out comes from mlp_post."""
        block = self._bridge.blocks[layer]
        try:
            weight = _detached(block.mlp.W_out)
            bias = _detached(block.mlp.b_out)
        except (AttributeError, TypeError, ValueError):  # experts have many
            weight = bias = None
        if weight is not None and weight.shape != (
            self._model.shape.d_mlp,
            self._model.shape.d_model,
        ):
            weight = None
        write = Write(weight, bias, _norm(block, "ln2_post"), self._factor)
        return at(self._model.device, write)

    @functools.cached_property
    def unembed(self) -> Unembed:
        """How logits come from the last resid_post."""
        bridge = self._bridge
        bias = _detached(bridge.b_U)
        if bias is not None and not bias.any():
            bias = None
        cap = getattr(self._config, "final_logit_softcapping", None)
        # logits_scaling divides (Granite), logit_scale multiplies (Cohere).
        scale = 1 / (getattr(self._config, "logits_scaling", None) or 1)
        scale *= getattr(self._config, "logit_scale", None) or 1
        weight = bridge.W_U.detach()
        found = Unembed(_final_norm(bridge), weight, bias, scale, cap)
        return at(self._model.device, found)

    @functools.cached_property
    def _factor(self) -> float:
        """What the family multiplies its outputs by (Granite's residual_multiplier)."""
        return float(getattr(self._config, "residual_multiplier", None) or 1)

    @property
    def _config(self) -> Any:
        return self._model.plain.model.config.get_text_config()


def at(device: torch.device, part: PartT) -> PartT:
    """The same weights on a device, where a model is spread over several."""
    moved = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device)
        elif isinstance(value, Norm):
            moved[field.name] = at(device, value)
    return dataclasses.replace(part, **moved)


def _norm(block: Any, name: str) -> Norm | None:
    return read_norm(getattr(block, name)) if hasattr(block, name) else None


def _final_norm(bridge: Any) -> Norm | None:
    return read_norm(bridge.ln_final) if hasattr(bridge, "ln_final") else None


def read_norm(component: Any) -> Norm:
    """Gain, bias and epsilon of a bridged norm; `prove` tells if they are right."""
    original = component.original_component
    if getattr(original, "weight", None) is None:  # OLMo's has no gain
        config = component.config
        gain = torch.ones(config.d_model, dtype=config.dtype, device=config.device)
        return Norm("layer", gain, None, float(config.eps))
    gain = _detached(component.weight)
    assert gain is not None
    if component.uses_weight_offset:  # Gemma stores the gain less one
        gain = gain + 1
    kind = "rms" if component.uses_rms_norm else "layer"
    bias = _detached(getattr(original, "bias", None))
    for name in ("eps", "variance_epsilon"):
        if hasattr(original, name):
            return Norm(kind, gain, bias, float(getattr(original, name)))
    return Norm(kind, gain, bias, float(component.config.eps))


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
