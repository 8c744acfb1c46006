"""Models spread over devices by accelerate's hooks (transformers' device_map).

Hooks bring a module's inputs to where its weights are, and offloaded weights to where
it runs; a module's own weights may then lie nowhere ("meta").
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def is_placed(module: nn.Module) -> bool:
    """Whether accelerate moves this module's inputs or weights."""
    return "_hf_hook" in vars(module)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, be its weights there or fetched for each call."""
    weight = next(module.parameters())
    hook: Any = vars(module).get("_hf_hook")
    if weight.is_meta and hook is not None:
        for part in (hook, *getattr(hook, "hooks", ())):
            device = getattr(part, "execution_device", None)
            if device is not None:
                kind = "cuda" if isinstance(device, int) else None
                return torch.device(kind, device) if kind else torch.device(device)
    return weight.device


@contextlib.contextmanager
def fetched(module: nn.Module) -> Iterator[bool]:
    """Within, an offloaded module's weights are at hand; whether they were away."""
    is_away = any(p.is_meta for p in module.parameters())
    if not is_away:
        yield False
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield True


def offloaded(model: nn.Module) -> list[str]:
    """Names of weights that are not in memory: on disk, or on the CPU until used."""
    return [name for name, p in model.named_parameters() if p.is_meta]
