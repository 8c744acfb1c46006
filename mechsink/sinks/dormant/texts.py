"""Texts by domain, as tokens of one length: what `active_dormant` compares.

Lengths must be equal, since attention to one position falls with length: an even
head pays (H_T - 1) / (T - 1) to position 0 of T tokens, H harmonic.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.memory import rows_that_fit
from mechsink.run import Model

Texts = Tensor | Sequence[str] | Sequence[Tensor]
"""Strings; or tokens: Int[batch pos], Int[pos], or a list of such tensors."""
MANY = 50
"""Texts a domain from which the design asks no warning."""
CALL_TOKENS = 1024
"""Tokens that a CPU takes through a block at once (see interventions/wave.py)."""
TAKEN = ("layer", "head", "domain", "edit", "active", "difference", "low", "high",
         "q_value", "p_value", "effect_size", "is_confirmed", "others")  # fmt: skip
"""Names that a domain can't have: columns of the tables."""


def domain_tokens(
    model: Model, texts: Mapping[str, Texts], n_pos: int, position: int
) -> dict[str, Int[Tensor, "text pos"]]:
    """Each domain's texts as tokens, cut to the same number.

    Args:
        model: whose `to_tokens` turns strings into tokens.
        texts: domain name to its texts.
        n_pos: tokens kept of each text, from its start.
        position: the sink; at least one later query must be kept.

    Raises:
        ValueError: fewer than two domains, or than two texts in one; a name that is
            a column of the result; a text of fewer than `n_pos` tokens; no query
            after `position`.
    """
    if len(texts) < 2:
        raise ValueError(
            f"active_dormant: {len(texts)} domain(s) given. A head is dormant on one "
            'compared with another: give two or more, as in {"prose": [...], "code": '
            "[...]}."
        )
    bad = [name for name in texts if name in TAKEN or name.startswith("zeroed_")]
    if bad:
        raise ValueError(
            f"active_dormant: a domain is called {bad[0]!r}, as a column of the table "
            "is. Call it something else; these are taken: "
            f"{', '.join(TAKEN)}, and what starts with zeroed_."
        )
    if not 0 <= position <= n_pos - 2:
        raise ValueError(
            f"active_dormant: position={position} in texts cut to n_pos={n_pos} leaves "
            "no later query. Allowed: 0 to n_pos - 2."
        )
    rows = {name: list(_rows(model, name, given)) for name, given in texts.items()}
    for name, found in rows.items():
        if len(found) < 2:
            raise ValueError(
                f"active_dormant: domain {name!r} has {len(found)} text(s). Texts are "
                "what is resampled: give two or more a domain, fifty make a good "
                "number; cut one long text into pieces if there is no other."
            )
    short = [
        (name, number, len(row))
        for name, found in rows.items()
        for number, row in enumerate(found)
        if len(row) < n_pos
    ]
    if short:
        name, number, length = short[0]
        all_lengths = [len(row) for found in rows.values() for row in found]
        raise ValueError(
            f"active_dormant: text {number} of {name!r} has {length} tokens, n_pos="
            f"{n_pos} are compared ({len(short)} of {len(all_lengths)} texts are too "
            "short). Attention to one position falls with length, so lengths must be "
            f"equal: leave short texts out, or pass n_pos={min(all_lengths)}."
        )
    return {
        name: torch.stack([row[:n_pos] for row in found]).to(model.device)
        for name, found in rows.items()
    }


def batches(model: Model, tokens: Int[Tensor, "text pos"]) -> list[Tensor]:
    """Rows that fit into memory together with their logits and residuals."""
    shape, n_pos = model.shape, tokens.shape[1]
    kept = n_pos * (3 * shape.d_vocab + (shape.n_layers + 1) * shape.d_model)
    fit = rows_that_fit(
        shape, n_pos, dtype=model.dtype, device=model.device, n_logits=kept
    )
    if tokens.device.type == "cpu":
        fit = min(fit, max(1, CALL_TOKENS // n_pos))
    return list(tokens.split(fit))


def notes_on_texts(
    tokens: Mapping[str, Int[Tensor, "text pos"]], position: int
) -> list[str]:
    """What a reader must know about the texts, a sentence each."""
    notes = []
    few = {name: len(rows) for name, rows in tokens.items() if len(rows) < MANY}
    if few:
        counts = ", ".join(f"{name} {n}" for name, n in few.items())
        notes.append(
            f"Fewer than {MANY} texts a domain ({counts}): intervals are wide, and "
            "what is found holds for texts like these few."
        )
    at_sink = torch.cat([rows[:, position] for rows in tokens.values()]).unique()
    if len(at_sink) > 1:
        notes.append(
            f"Texts have {len(at_sink)} different tokens at position {position}: how "
            "well each serves as a sink is part of the difference. Begin all texts "
            "with one token to leave it out."
        )
    every = np.concatenate([rows.cpu().numpy() for rows in tokens.values()])
    repeats = len(every) - len(np.unique(every, axis=0))
    if repeats:
        notes.append(
            f"{repeats} of {len(every)} texts repeat another one token for token: they "
            "add no evidence, so intervals are too narrow and p-values too small."
        )
    return notes


def _rows(model: Model, name: str, given: Texts) -> Iterator[Int[Tensor, " pos"]]:
    """One tensor of tokens a text."""
    parts = [given] if isinstance(given, Tensor | str) else list(given)
    for number, part in enumerate(parts):
        if isinstance(part, str):
            if not part:
                raise ValueError(
                    f"active_dormant: text {number} of {name!r} is empty. Leave empty "
                    "texts out."
                )
            yield model.to_tokens(part)[0]
        elif isinstance(part, Tensor) and part.dim() in (1, 2) and _is_whole(part):
            yield from part if part.dim() == 2 else [part]
        else:
            shown = list(part.shape) if isinstance(part, Tensor) else repr(part)[:40]
            raise ValueError(
                f"active_dormant: text {number} of {name!r} is {shown}. Allowed: "
                "strings, or token numbers with axes pos or batch pos."
            )


def _is_whole(part: Tensor) -> bool:
    return part.dtype in (torch.int64, torch.int32)
