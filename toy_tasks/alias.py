"""Walker's alias method: one integer draw picks from any row of a table.

A row of V probabilities becomes K >= V cells of equal width, each shared by at
most two outcomes, so that a draw costs two look-ups whatever V is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt32

_WORD = 32  # bits of one draw: the top ones pick the cell, the rest the outcome


@dataclass(frozen=True, eq=False)
class AliasTable:
    """Rows of probabilities, prepared for drawing.

    `limit` and `other` hold rows x K cells, flattened; K = 2**bits. Cell c of a
    row gives outcome c while the low bits of the draw are under `limit`, else
    `other`. Probabilities are met to 2**-32.

    Source: Walker 1977, Vose 1991.
    """

    limit: UInt32[np.ndarray, " cell"]
    other: Int[np.ndarray, " cell"]
    bits: int

    @classmethod
    def from_rows(cls, rows: Float[np.ndarray, "row vocab"]) -> "AliasTable":
        """Prepare rows that each sum to 1."""
        n_rows, n_vocab = rows.shape
        bits = max(1, (n_vocab - 1).bit_length())
        n_cells = 2**bits
        limit = np.zeros((n_rows, n_cells))
        other = np.zeros((n_rows, n_cells), dtype=np.intp)
        for row in range(n_rows):
            mass = np.zeros(n_cells)
            mass[:n_vocab] = rows[row] * n_cells
            limit[row], other[row] = _vose(mass.tolist())
        top = 2 ** (_WORD - bits)
        # A full cell's limit would be `top`: it stays full because its other
        # outcome is itself.
        whole = np.round(limit * top).clip(0, top - 1).astype(np.uint32)
        return cls(whole.ravel(), other.ravel(), bits)

    def split(
        self, draws: UInt32[np.ndarray, "..."]
    ) -> tuple[Int[np.ndarray, "..."], UInt32[np.ndarray, "..."]]:
        """Uniform 32-bit integers as (cell in a row, low bits)."""
        low_bits = _WORD - self.bits
        cell = (draws >> np.uint32(low_bits)).astype(np.intp)
        return cell, draws & np.uint32(2**low_bits - 1)


def _vose(mass: list[float]) -> tuple[list[float], list[int]]:
    """Cells of one row whose masses have mean 1: share kept, and who has the rest."""
    kept, other = [1.0] * len(mass), list(range(len(mass)))
    small = [i for i, m in enumerate(mass) if m < 1]
    large = [i for i, m in enumerate(mass) if m >= 1]
    rich = large[-1] if large else 0
    while small and large:
        poor, rich = small.pop(), large[-1]
        kept[poor], other[poor] = mass[poor], rich
        mass[rich] -= 1 - mass[poor]
        if mass[rich] < 1:
            small.append(large.pop())
    for left in small:  # rounding only: either 1 in truth, or 0 and never drawn
        if mass[left] < 0.5:
            kept[left], other[left] = 0.0, rich
    return kept, other
