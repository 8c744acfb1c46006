"""Steering: the size of what an MLP writes along the primary sink's direction.

Source: Secondary Attention Sinks (arXiv:2512.22213), steering of sink levels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.run import Edit
from mechsink.sinks.measure import at_least_float32
from mechsink.sites import Site


def steer_mlp(
    layer: int,
    size: int | float,
    *,
    direction: Float[Tensor, " d_model"] | None = None,
    primary: int = 0,
    first: int = 3,
    threshold: float = 0.98,
) -> dict[Site, Edit]:
    """Give MLP outputs that point along the primary's the norm `size`.

    At positions from `first` on, y with cos(y, y_primary) > threshold becomes
    y * size / ||y||; the others stay. Use it as `model.run(tokens, edit=...)`.

    Args:
        layer: block whose mlp_out is edited, such as a secondary's l_start.
        size: new norm, in units of the residual stream; 0 takes the write away.
        direction: y_primary; default: the output at position `primary` of the same
            run and layer.
        primary: position of the primary sink, where no direction is given.
        first: first position that may change; the paper's positions > 2.
        threshold: least cosine, exclusive, and not its size: opposite outputs stay.

    Returns:
        Site to edit.

    Raises:
        ValueError: a negative size or position, or a threshold outside 0 to 1. The
            edit itself: a prompt without the position `primary`.

    Source: Secondary Attention Sinks (arXiv:2512.22213).

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> site = ms.Site("mlp_out", 3)
        >>> edit = ms.steer_mlp(3, size=10.0)
        >>> model.run(case.tokens, read=[site], edit=edit).cache[site][0, :, 7].tolist()
        [40.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 10.0]
    """
    if size < 0 or first < 0 or primary < 0 or not 0 <= threshold < 1:
        raise ValueError(
            f"steer_mlp: size={size}, primary={primary}, first={first}, threshold="
            f"{threshold}. Allowed: zero or more, positions counted from the start; a "
            "threshold from 0 to below 1."
        )

    def edit(y: Float[Tensor, "batch pos d_model"]) -> Tensor:
        if direction is None and primary >= y.shape[1]:
            raise ValueError(
                f"steer_mlp: primary={primary} in a prompt of {y.shape[1]} tokens. "
                f"Allowed: 0 to {y.shape[1] - 1}; for runs that go on from a cache "
                "pass direction=, the primary's output."
            )
        wide = at_least_float32(y)
        towards = wide[:, primary] if direction is None else direction.to(wide)
        cosine = torch.cosine_similarity(wide, towards.unsqueeze(-2), dim=-1)
        is_steered = cosine > threshold
        is_steered[:, :first] = False
        norm = wide.norm(dim=-1, keepdim=True)
        steered = (wide * (size / norm)).to(y.dtype)
        return torch.where(is_steered[..., None], steered, y)

    return {Site("mlp_out", layer): edit}
