"""Models on their way to another process: what they are made of, and made again.

Bridges and traces hold hooks that can't travel. What they were made of can, and gives
the same bits.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from mechsink.models.bridge import BridgeModel
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.load import load_model
from mechsink.models.plain import PlainModel
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.run import Model
from toy_tasks.transformer import ToyTransformer


@dataclass(frozen=True)
class NamedModel:
    """A model by the name that every worker loads it by."""

    name: str
    options: Mapping[str, Any]

    def open(self) -> Model:
        """Load it."""
        return load_model(self.name, **self.options)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others, as far as names do."""
        return {
            "model": self.name,
            "load": {key: str(value) for key, value in sorted(self.options.items())},
        }


@dataclass(frozen=True)
class CarriedModel:
    """A model object, taken apart."""

    kind: type
    config: Any
    tensors: bytes  # parameters and buffers, safetensors
    device: str
    options: Mapping[str, Any]
    backend: type[HuggingFaceModel] | None = None  # None: a toy

    def open(self) -> Model:
        """The same model, put together again."""
        tensors = load(self.tensors)
        if self.backend is None:
            toy = ToyTransformer(self.config)
            _fill(toy, tensors)
            return ToyModel(toy.to(self.device).eval(), **self.options)
        model: Any = self.kind(self.config)
        _fill(model, tensors)
        model.tie_weights()
        return self.backend(model.to(self.device).eval(), **self.options)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells it from others: its weights."""
        digest = hashlib.sha256(self.tensors).hexdigest()[:16]
        return {"model": self.options["name"], "weights": digest}


Carried = NamedModel | CarriedModel


def carried(model: Model | str, options: Mapping[str, Any] | None = None) -> Carried:
    """A model in a form that can be sent to other processes.

    Args:
        model: what `load_model` takes by name, or a model that it returned.
        options: of `load_model`, for a name.

    Raises:
        ValueError: a model that can't be sent: of one's own class, bound to an image,
            or with weights that are no plain tensors (quantised, or spread over
            devices).
    """
    if isinstance(model, str):
        return NamedModel(model, dict(options or {}))
    if options:
        raise ValueError(
            f"load={dict(options)} applies to a model given by name, and this one is "
            "loaded already. Leave load= out."
        )
    if type(model) is ToyModel:
        inside: nn.Module = model.toy
        own = {"name": model.name, "task": model.task, "info": model._info}
        return CarriedModel(
            type(inside), model.toy.config, _tensors(inside), str(model.device), own
        )
    if type(model) in (BridgeModel, TraceModel):
        assert isinstance(model, HuggingFaceModel)
        inside = model.plain.model
        devices = {tensor.device for tensor in inside.parameters()}
        hooked = any(m._forward_pre_hooks or m._forward_hooks for m in inside.modules())
        whole = len(devices) == 1 and not hooked and not hasattr(inside, "hf_quantizer")
        if whole and not model.inputs:
            own = {"name": model.name, "tokenizer": model.tokenizer}
            own |= {"info": model._info, "selfcheck": False}  # it was proved here
            return CarriedModel(
                type(inside), _config(model.plain), _tensors(inside),
                str(model.device), own, type(model),
            )  # fmt: skip
    raise ValueError(
        f"{model.name} ({type(model).__name__}) can't be sent to other processes: it "
        "is of a class of its own, bound to an image, quantised or spread over "
        "devices. Give the name that load_model knows it by, which every worker then "
        "loads itself, or take engine='here'."
    )


def _config(plain: PlainModel) -> Any:
    """Its configuration, with the attention that it came with, not our own."""
    config = copy.deepcopy(plain.model.config)
    config._attn_implementation = plain.own_attention
    return config


def _tensors(model: nn.Module) -> bytes:
    """Parameters and buffers, each once; tied ones are tied again."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return save({n: t.detach().cpu().contiguous() for n, t in found.items()})


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in the place of those that the model was made with, type and all."""
    have = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        have[name].data = tensor
