"""Samplers: logits of the next token to a choice of it.

Plain callables, for `generate`.
May import: nothing of mechsink.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Sampler = Callable[[Tensor], Tensor]
"""Float[batch vocab] logits to Int[batch] tokens."""


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """The likeliest token; the first of equals.

    Args:
        logits: of the next token.

    Returns:
        Tokens.

    Examples:
        >>> ms.greedy(torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 0.0]])).tolist()
        [1, 0]
    """
    return logits.argmax(-1)


def temperature(value: float, seed: int = 0) -> Sampler:
    """Draw from softmax(logits / value), the same draws for the same seed.

    The generator is made here and moves on with every token: make a new sampler
    for every call of `generate` that should be reproducible. Draws are made on the
    CPU, so they do not depend on the device.

    Args:
        value: divides the logits: near 0 as `greedy`, 1 the model's own law.
        seed: of the draws.

    Returns:
        A sampler: Float[batch vocab] logits to Int[batch] tokens.

    Raises:
        ValueError: `value` is not above 0.

    Examples:
        >>> draw = ms.temperature(0.1, seed=0)
        >>> draw(torch.tensor([[0.0, 2.0, 1.0]])).tolist()
        [1]
    """
    if not value > 0:
        raise ValueError(
            f"temperature: {value} is not above 0. Use `greedy` for the limit at 0."
        )
    generator = torch.Generator().manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        probabilities = (logits.detach().cpu().float() / value).softmax(-1)
        chosen = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return chosen.to(logits.device)

    return sample
