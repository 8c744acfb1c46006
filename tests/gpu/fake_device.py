"""A device that is not the CPU, on machines without one: it finds mixed devices.

A tensor on it is a label around a CPU tensor. Every operation computes on the CPU and
labels what it gives, but only if all its tensors wear the same label, as a GPU would
demand; so a mask made without device=, or numpy() on a result, fails here too. Several
indices ("fake:0", "fake:1") stand for several GPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "fake"
aten = torch.ops.aten
# What a GPU takes from the CPU too: copies, and positions to index with.
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
}


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met in one operation."""


class Labelled(Tensor):
    """A CPU tensor that says it is elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Labelled":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=False,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor, device: torch.device) -> None:
        pass

    def __repr__(self, **kwargs: Any) -> str:
        return f"Labelled({self.held!r}, {self.device})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ):
        return computed(func, args, kwargs or {})

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use "
            "Tensor.cpu() to copy the tensor to host memory first."
        )

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU, with the label of its tensors."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    labels = {x.device for x in tensors if isinstance(x, Labelled)}
    if func not in COPIES:
        _require_one(func, tensors, labels, args)
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if asked is not None and asked.type == NAME and asked.index is None:
        asked = torch.device(NAME, 0)
    generator = kwargs.get("generator")
    if generator is not None and asked is not None and asked.type == NAME:
        raise MixedDevicesError(
            f"{func}: Expected a {NAME!r} device type for generator but found 'cpu'"
        )
    here = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    if here.get("pin_memory"):
        here = {**here, "pin_memory": False}
    if func is aten._fused_sdp_choice.default:
        return 0  # plain operations: no kernel is made for this device
    bare_args, bare = tree_map_only(Labelled, lambda x: x.held, (args, here))
    out = func(*bare_args, **bare)
    if func in (aten.copy_.default, aten._copy_from.default):
        return args[0]
    if asked is not None:
        label = asked if asked.type == NAME else None
    else:
        label = next(iter(labels), None)
    if label is None:
        return out
    same = {id(x.held): x for x in flat if isinstance(x, Labelled)}
    return tree_map_only(
        Tensor, lambda x: same[id(x)] if id(x) in same else _label(x, label), out
    )


def _label(x: Tensor, device: torch.device) -> Tensor:
    return x if isinstance(x, Labelled) else Labelled(x, device)


def _require_one(func: Any, tensors: list, labels: set, args: Any) -> None:
    if func in INDEXING and labels and isinstance(args[0], Labelled):
        tensors = [x for x in tensors if x.dtype not in (torch.int64, torch.bool)]
    # A GPU takes single numbers from the CPU.
    plain = [x for x in tensors if not isinstance(x, Labelled) and x.ndim > 0]
    if len(labels) > 1 or (labels and plain):
        places = sorted({str(x.device) for x in tensors})
        raise MixedDevicesError(
            f"{func}: Expected all tensors to be on the same device, but found at "
            f"least two devices, {' and '.join(places)}!"
        )


class FakeDevice(TorchDispatchMode):
    """While it is on, tensors may be made on "fake"."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ):
        return computed(func, args, kwargs or {})


FROM_LISTS = (torch.tensor, torch.as_tensor, torch.asarray)


class FromLists(TorchFunctionMode):
    """torch.tensor([...], device="fake"): torch makes these past all other modes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in FROM_LISTS and device is not None:
            device = torch.device(device)
            if device.type == NAME:
                made = func(*args, **{**kwargs, "device": "cpu"})
                grad = made.requires_grad
                return made.detach().to(device).requires_grad_(grad)
        if func is Tensor.new_tensor and isinstance(args[0], Labelled):
            kwargs = {"dtype": args[0].dtype, **kwargs}
            return torch.tensor(args[1], **kwargs).to(args[0].device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        return func(*args, **kwargs)


def _index(index: Any) -> Any:
    """Lists of positions as tensors, which torch makes in a way of its own as well."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index) if isinstance(index, list | range) else index


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Within, torch.device("fake") exists and minds what it is mixed with."""
    _register()
    # Autograd has a thread for each device of a backend; ours can't say how many.
    alone = torch.autograd.set_multithreading_enabled(False)
    with alone, FromLists(), FakeDevice():
        yield torch.device(NAME, 0)


def _register() -> None:
    from torch.utils import backend_registration

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(
            NAME, backend_module=Module()
        )
