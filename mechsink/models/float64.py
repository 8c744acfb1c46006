"""A model in float64 all the way through: is a surprising number a bug or rounding?

Casting the weights is not enough: norms, softmax and routers of most families pass
through float32 by their own code, in float64 models too, so that errors stay at 1e-7.
Within such a model's forward passes every cast to float32 is one to float64.
"""

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mechsink.models.any_model import any_model
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.toy import ToyModel
from mechsink.run import Model

NOTE = "float64 copy: casts to float32 within its code are casts to float64"


@any_model
def in_float64(model: Model) -> Model:
    """A copy of a model in float64 on the CPU, sharing nothing with it.

    The weights are those of `model`, as its type has rounded them, so a measurement
    on the copy differs from one on `model` by rounding in the computation alone: what
    differs by no more than the noise floor was rounding, what stays is real, and what
    differs by more is a bug. Eight bytes a weight; several times slower.

    Args:
        model: as `load_model` gives it: a wrapped Hugging Face model or a toy.

    Returns:
        A model of the same name, tokenizer and backend.

    Raises:
        ValueError: an object of another kind, whose weights are not at hand; a model
            spread over devices, or bound to an image.

    Examples:
        >>> case = ms.planted("induction")
        >>> exact = ms.in_float64(case.model)
        >>> exact.dtype, case.model.dtype
        (torch.float64, torch.float32)
    """
    if isinstance(model, ToyModel):
        toy = copy.deepcopy(model.toy).to("cpu", torch.float64)
        return ToyModel(
            _widened(toy),
            model.task,
            name=model.name,
            info={**model._info, "precision": NOTE},
        )
    if isinstance(model, HuggingFaceModel):
        _check(model)
        return type(model)(
            _copied(model),
            model.tokenizer,
            name=model.name,
            info={**model._info, "precision": NOTE},
            selfcheck=model._prove,
        )
    raise ValueError(
        f"in_float64: the weights of a {type(model).__name__} are not at hand. Load "
        "the model through ms.load_model; a model of your own you can cast yourself."
    )


def working_dtype(model: Model) -> torch.dtype:
    """The least exact type that a model's forward pass goes through.

    A float64 Hugging Face model passes through float32, but for one of `in_float64`.
    """
    inside = getattr(getattr(model, "plain", None), "model", None)
    if inside is None or getattr(inside, "is_float64_inside", False):
        return model.dtype
    return min((model.dtype, torch.float32), key=lambda t: torch.finfo(t).bits)


def _check(model: HuggingFaceModel) -> None:
    if model.inputs:
        raise ValueError(
            f"in_float64: {model.name} looks at an image. Copy the model it was bound "
            "from, and bind the copy: ms.in_float64(model).with_inputs(tokens, "
            "pixel_values=image.double())."
        )
    if getattr(model.plain.model, "hf_device_map", None):
        raise ValueError(
            f"in_float64: {model.name} is spread over devices. Load it whole on the "
            'CPU first: ms.load_model(..., device="cpu").'
        )


def _copied(model: HuggingFaceModel) -> Any:
    inside: Any = copy.deepcopy(model.plain.model)
    # The view may run our attention function by now: the copy begins as it was.
    inside.config._attn_implementation = model.plain.own_attention
    inside = inside.to("cpu", torch.float64)
    if hasattr(inside, "set_experts_implementation"):
        inside.set_experts_implementation("eager")  # grouped kernels have no float64
    _widened(inside.get_decoder())
    for block in model.plain.__class__(inside).blocks:
        _widened(block)  # replayed by themselves
    return _widened(inside)


class _Float64Inside(TorchFunctionMode):
    """Within, a call of torch that names float32 gets float64; of this thread alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = {key: _wide(value) for key, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **wide)


def _wide(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _widened(module: Any) -> Any:
    """The module, its forward pass in float64; copies of it keep that."""
    module.__class__ = _widened_class(type(module))
    return module


@functools.cache
def _widened_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the same name: families are known by the names of their classes."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Float64Inside():
            return kind.forward(self, *args, **kwargs)

    own = {
        "forward": forward,
        "is_float64_inside": True,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), own)
