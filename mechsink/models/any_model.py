"""Other people's model objects wherever a `mechsink.Model` is asked for.

A Hugging Face model, a TransformerBridge, an nnsight model or a ToyTransformer is
wrapped as `load_model` wraps it, once: the wrapper is kept for as long as the object
lives, and made anew when the object's weights, buffers, modules or hooks are not those
that it was made from. The object itself stays as it is.
"""

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

from torch import Tensor, nn

from mechsink.run import Model

P = ParamSpec("P")
R = TypeVar("R")

_METHODS = ("to_tokens", "to_strings", "run", "visit", "w_o")

_wrapped: "weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, Model]]]"
_wrapped = weakref.WeakKeyDictionary()


def as_model(given: Any) -> Model:
    """The model as a `mechsink.Model`: itself, or a wrapper that is made once.

    Args:
        given: a Model, or any model object that `load_model` takes. What is an option
            there (a tokenizer, a backend, a name) is so there alone.

    Raises:
        ValueError: nothing that can be wrapped, a name among them; or as `load_model`.
    """
    if _is_model(given):
        return given
    # Here: these rooms know every backend, and each of them knows this one.
    from mechsink.models.remote_load import is_nnsight

    if not (isinstance(given, nn.Module) or is_nnsight(given)):
        what = repr(given)[:60] if isinstance(given, str) else type(given).__name__
        raise ValueError(
            f"a model is asked for, and this is {what}. Allowed: what "
            "ms.load_model(...) gives, a Hugging Face model, a TransformerBridge, an "
            "nnsight model or a ToyTransformer. Load one by name first: "
            'ms.load_model("smollm2").'
        )
    from mechsink.models.load import load_model
    from toy_tasks.transformer import ToyTransformer

    inside = given._module if is_nnsight(given) else given
    if isinstance(inside, ToyTransformer) or not isinstance(inside, nn.Module):
        return load_model(given)  # a toy is wrapped as it is, in no time
    made = _wrapped.setdefault(inside, {})
    # An nnsight model is read by nnsight, the module inside by TransformerLens.
    kind, now = (type(given), id(getattr(given, "tokenizer", None))), _state(inside)
    if kind not in made or made[kind][0] != now:
        made[kind] = (now, load_model(given))
    return made[kind][1]


def any_model(function: Callable[P, R]) -> Callable[P, R]:
    """The function, taking for its `Model` arguments what `as_model` takes."""
    parameters = list(inspect.signature(function).parameters.values())
    kinds = {one.name: get_args(one.annotation) for one in parameters}
    places = {
        one.name: n
        for n, one in enumerate(parameters)
        if one.annotation in (Model, "Model") or Model in kinds[one.name]
    }
    assert places, f"{function.__qualname__} takes no Model"

    def opened(value: Any, kinds: tuple[Any, ...]) -> Any:
        if type(value) in kinds:  # a name or None, where one will do
            return value
        return as_model(value)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        given: list[Any] = list(args)
        held: dict[str, Any] = options
        for name, place in places.items():
            if name in held:
                held[name] = opened(held[name], kinds[name])
            elif place < len(given):
                given[place] = opened(given[place], kinds[name])
        return function(*given, **held)  # type: ignore[call-arg]

    return call


def _is_model(given: Any) -> bool:
    """Whether it has a Model's methods; `isinstance` would also compute its info."""
    kind = type(given)
    by_type = all(callable(getattr(kind, name, None)) for name in _METHODS)
    return by_type or isinstance(given, Model)


def _state(module: nn.Module) -> list[Any]:
    """What a wrapper was made from: changed when training, casts or hooks change it."""
    found: list[Any] = []
    for one in module.modules():
        found += (id(one), *one._forward_hooks, *one._forward_pre_hooks)
        for tensor in (*one._parameters.values(), *one._buffers.values()):
            if tensor is not None:
                found.append(_tensor_state(tensor))
    return found


def _tensor_state(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device
