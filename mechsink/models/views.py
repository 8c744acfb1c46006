"""Other models over the same weights, so that the user's own stays as it was."""

import copy
from typing import Any

import torch
from torch import nn


def shared_view(hf_model: nn.Module, eager: bool = False) -> nn.Module:
    """A second model over the same weights, in eval mode, without gradients.

    Buffers and modules are copied, parameters share their storage: bridging or
    switching the view's attention leaves `hf_model` as it was.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for p in hf_model.parameters()
    }
    view = copy.deepcopy(hf_model, memo).eval()
    config: Any = view.config
    config.architectures = [type(view).__name__]
    if eager:
        config._attn_implementation = "eager"
    return view


def unbridged(bridge: Any) -> nn.Module:
    """The Hugging Face model inside a TransformerBridge, sharing its weights.

    A bridge rewrites its model in place; this builds the class anew and puts the
    same parameters back under their own names.

    Raises:
        ValueError: a weight cannot be found, or the logits differ.
    """
    inside = bridge.original_model
    weights = _own_names(bridge)
    model: Any = type(inside)(inside.config).eval()
    missing = [name for name, _ in model.named_parameters() if name not in weights]
    if not missing:
        for name, parameter in model.named_parameters():
            parameter.data = weights[name].detach()
        tokens = torch.arange(4, device=model.device)[None]
        with torch.no_grad():
            same = torch.allclose(
                model(tokens).logits, bridge(tokens), rtol=1e-3, atol=1e-3
            )
    if missing or not same:
        why = f"no weight {missing[0]}" if missing else "its logits differ"
        raise ValueError(
            f"load_model: the {type(inside).__name__} inside this TransformerBridge "
            f"cannot be taken out again ({why}): its weights were probably folded or "
            "centred. Pass the Hugging Face model itself; mechsink makes its own "
            "bridge and leaves your model unchanged."
        )
    return model


def _own_names(bridge: Any) -> dict[str, nn.Parameter]:
    blocks = bridge.adapter.component_mapping["blocks"]
    renamed: dict[str, str] = {}
    for part in blocks.submodules.values():
        for key, sub in getattr(part, "submodules", {}).items():
            if sub.name and part.name:
                renamed[f".{part.name}.{key}."] = f".{part.name}.{sub.name}."
    weights: dict[str, nn.Parameter] = {}
    for name, parameter in bridge.original_model.named_parameters(
        remove_duplicate=False
    ):
        name = name.replace("._original_component", "")
        weights[name] = parameter
        for old, new in renamed.items():
            if old in name:
                weights[name.replace(old, new)] = parameter
    return weights
