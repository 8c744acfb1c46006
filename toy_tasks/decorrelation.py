"""A loss that keeps later tokens' states apart from the first token's.

Source: after the decorrelation loss of AVSR sinks; the definition is ours.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def decorrelation_loss(
    states: Float[Tensor, "*batch pos d_model"], position: int = 0
) -> Float[Tensor, ""]:
    """Mean squared cosine between one position's state and all others'.

    Add it to the training loss, with a weight, for the states of a layer.

    Args:
        states: the residual stream at one layer.
        position: whose state the others are kept apart from; 0 for the first token.

    Returns:
        0 to 1, no unit: 0 where all are orthogonal to it, 1 where all are parallel or
        opposite; random states have 1 / d_model. A state of zeros counts as
        orthogonal and gets no gradient.

    Raises:
        ValueError: fewer than two positions, or `position` is not one of them.

    Source: after AVSR sinks (decorrelation loss); the definition is ours.
    """
    n_pos = states.shape[-2]
    if n_pos < 2 or not 0 <= position < n_pos:
        raise ValueError(
            f"decorrelation_loss: position={position} of {n_pos} positions. Give "
            "states of at least two positions, and one of 0 to their number less 1."
        )
    unit = F.normalize(states, dim=-1)
    others = torch.cat([unit[..., :position, :], unit[..., position + 1 :, :]], -2)
    cosine = (others * unit[..., position : position + 1, :]).sum(-1)
    return cosine.square().mean()
