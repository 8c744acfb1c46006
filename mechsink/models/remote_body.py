"""What is shipped to the machine that serves a model: reads and edits, step by step.

nnsight sends functions as source, together with the names that they use. So nothing
here is a class, and nothing uses more than torch: the server knows no mechsink.
"""

from typing import Any

import torch


def visit(blocks: Any, step: Any, cache: Any, shape: Any) -> None:
    """Do at one place of one block what was asked for, and put back what changed.

    `step`: layer, path, side, and for each site there (get, put, actions).
    """
    layer, path, side, parts = step
    envoy = blocks[layer]
    for name in path:
        envoy = getattr(envoy, name)
    held = getattr(envoy, side)
    is_alone = isinstance(held, torch.Tensor)
    given = held if is_alone else held[0]
    is_flat = given.ndim == 2  # OPT's MLP sees all tokens of a batch in a row
    whole = before = given.unflatten(0, shape) if is_flat else given
    for get, put, actions in parts:
        value = get(whole)
        new = act(actions, value, cache)
        if new is not value:
            whole = put(whole, new)
    if whole is not before:
        new = whole.flatten(0, 1) if is_flat else whole
        setattr(envoy, side, new if is_alone else (new, *held[1:]))


def act(actions: Any, x: Any, cache: Any) -> Any:
    """Edits and reads of one site, in order; `cache` takes values by number."""
    for kind, key, index, function in actions:
        if kind == "read":
            cache[key] = x[index]
        elif kind == "edit":
            part = x[index]
            new = function(part)
            if not isinstance(new, torch.Tensor) or new.shape != part.shape:
                got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new)
                raise ValueError(
                    f"edit of {key}: returned {got}, but the site has the shape "
                    f"{tuple(part.shape)}. Return a new tensor of that shape."
                )
            new = new.to(x)  # values that came along lie on the CPU
            if new.shape == x.shape:
                x = new
            else:
                x = x.clone()
                x[index] = new
        elif kind == "keep":
            cache[key] = x  # the stream that attention adds to
        else:  # the residual after attention, by way of what attention writes
            stream = cache.pop(key) + x
            moved = act(function, stream, cache)
            if moved is not stream:
                x = x + (moved - stream)
    return x


def weight(blocks: Any, layer: int, path: Any) -> Any:
    """A module's matrix, as it is stored."""
    envoy = blocks[layer]
    for name in path:
        envoy = getattr(envoy, name)
    return envoy._module.weight.detach().cpu()
