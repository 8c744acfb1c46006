"""Pieces of text: frequent words whole, others by their characters."""

import re
from collections import Counter
from collections.abc import Mapping

PIECE = re.compile(r" ?[A-Za-z]+|\n *|.", re.DOTALL)
"""A word with the space before it, a line break with the indent after it, or else
one character."""
CHARACTERS = ["\n", *map(chr, range(32, 127))]
UNKNOWN = "<?>"


def frequent_pieces(text: str, n: int) -> list[str]:
    """The `n` most frequent pieces of more than one character; ties by the alphabet."""
    counts = Counter(piece for piece in PIECE.findall(text) if len(piece) > 1)
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[:n]


def encode(text: str, ids: Mapping[str, int]) -> list[int]:
    """Token ids of a text; what is neither word nor character of `ids` is `<?>`."""
    unknown = ids[UNKNOWN]
    spelled: dict[str, list[int]] = {}
    out: list[int] = []
    for piece in PIECE.findall(text):
        if piece not in spelled:
            whole = ids.get(piece)
            parts = [whole] if whole is not None else []
            spelled[piece] = parts or [ids.get(c, unknown) for c in piece]
        out += spelled[piece]
    return out
