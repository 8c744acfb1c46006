"""Draws that the planted prompts share."""

import torch
from jaxtyping import Int
from torch import Tensor


def check_counts(where: str, n_prompts: int, least: int) -> None:
    """Raise ValueError for too few prompts to show every edge.

    Raises:
        ValueError: `n_prompts` is under `least`.
    """
    if n_prompts < least:
        raise ValueError(
            f"{where}: n_prompts={n_prompts}. Allowed: {least} and more, one for each "
            "kind of corruption; 100 make a good default."
        )


def distinct(
    rows: int, n: int, among: int, generator: torch.Generator
) -> Int[Tensor, "row n"]:
    """In each row n different numbers below `among`, in random order."""
    return torch.rand(rows, among, generator=generator).argsort(1)[:, :n]


def swapped(
    tokens: Int[Tensor, "prompt pos"],
    first: Int[Tensor, " prompt"],
    second: Int[Tensor, " prompt"],
    where: Tensor,
) -> Int[Tensor, "prompt pos"]:
    """A copy in which, in the rows `where`, two positions have changed places."""
    out = tokens.clone()
    rows = torch.arange(len(tokens))[where]
    a, b = first[where], second[where]
    out[rows, a], out[rows, b] = tokens[rows, b], tokens[rows, a]
    return out
