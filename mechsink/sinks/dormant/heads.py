"""Active-dormant heads: those that rest on one kind of text and work on another.

A dormant head puts its attention on a sink and writes little. Which heads do so is
asked by contrast: their attention to the sink, text by text, on one domain against
another; and by cause: what the loss of each domain suffers without the head.

Source: Guo et al. 2024 (arXiv:2410.13835); the statistics are ours.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.progress import bar
from mechsink.provenance import provenance
from mechsink.run import Model
from mechsink.sinks.dormant.confirm import confirmation_tables, tested_heads
from mechsink.sinks.dormant.contrast import least_p_value
from mechsink.sinks.dormant.result import ActiveDormant
from mechsink.sinks.dormant.table import compared, with_losses
from mechsink.sinks.dormant.texts import Texts, batches, domain_tokens, notes_on_texts
from mechsink.sinks.measure import Watch, measure
from mechsink.sinks.scores import SinkScoreMeter

Head = tuple[int, int]  # layer, head
Confirm = Literal["flagged", "all", "none"] | Sequence[Head]


@dataclass(frozen=True)
class DormancyMeter(SinkScoreMeter):
    """Mean attention to a position from the queries after it, for `measure`.

    As `SinkScoreMeter`, without the position's own query, which has little choice.
    Gives the table itself: batch, position, layer, head, score, raw.
    """

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The rows as they are."""
        return tables["table"]

    def _mean(
        self, columns: Float[Tensor, "batch head query column"]
    ) -> Float[Tensor, "batch column head"]:
        means = [
            columns[:, :, position + 1 :, number].mean(dim=-1)
            for number, position in enumerate(self.positions)
        ]
        return torch.stack(means, dim=1)


@any_model
def active_dormant(
    model: Model,
    texts: Mapping[str, Texts],
    *,
    position: int = 0,
    n_pos: int = 128,
    q: float = 0.05,
    confirm: Confirm = "flagged",
    n_confirm: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> ActiveDormant:
    """Heads that are dormant on one domain of texts and active on another.

    A head's dormancy on a text is the mean of its attention to `position` over all
    later queries. Domains are compared text by text: the text is what is resampled,
    so give separate documents, not pieces of one, and fifty or more a domain. The
    q-values say how many of the flagged heads to expect false; whether a difference
    matters is what the loss says: with the head zeroed (and with its attention moved
    to the sink), a head is confirmed if the domain in which it is active loses more
    than the other.

    Confirmation uses the same texts. Where texts that a head rests on also lose less
    without it, within a domain, a falsely flagged head is confirmed more often than
    its own test says: confirm a finding that matters on other texts, with
    confirm=[(layer, head), ...].

    Args:
        model: any model.
        texts: domain name to its texts: strings, or tokens Int[batch pos], Int[pos] or
            a list of such. With more than two domains each is compared with the mean
            of the others' means, all together corrected.
        position: the sink, 0 for the first token.
        n_pos: tokens of each text that are used; shorter texts are refused, since
            dormancy falls with length.
        q: heads with a q-value under it count as flagged for `confirm`.
        confirm: which heads to edit: "flagged", "all", "none" or a list of (layer,
            head). Two passes over the texts a head, at most.
        n_confirm: of the flagged heads, at most so many, by |difference|.
        seed: of the permutations.
        progress: show bars; default on a terminal only.

    Returns:
        One row a head (see `ActiveDormant`). Intervals are Welch's, p-values from
        permuting texts (see contrast.py for why). Attention that is no
        softmax counts as shares of its row, as in `sink_scores`.

    Raises:
        ValueError: fewer than two domains or than two texts in one, a text that is
            too short, a domain named like a column, heads that the model lacks.

    Source: after Guo et al. 2024 (arXiv:2410.13835), who zero heads and move their
    attention to `<s>`; the contrast over texts and its tests are ours.

    Examples:
        >>> from toy_tasks.planted.dormant import dormant_head
        >>> case = dormant_head()
        >>> texts = {name: case.sample(name, 40, seed=1) for name in ("rest", "work")}
        >>> model = ms.load_model(case.model)
        >>> found = ms.active_dormant(model, texts, n_pos=16)
        >>> found.heads(), found.confirmed()
        ([(0, 2)], [(0, 2)])
    """
    started = time.perf_counter()
    tokens = domain_tokens(model, texts, n_pos, position)
    _check(model, confirm, q)
    domains = list(tokens)
    together = torch.cat(list(tokens.values()))
    of_text = np.repeat(np.arange(len(domains)), [len(t) for t in tokens.values()])
    keys, dormancy = _dormancy(model, together, position, progress)
    table = compared(dormancy, of_text, domains, keys, seed=seed)
    chosen = tested_heads(table, keys, confirm, q, n_confirm)
    confirmation, losses, path = confirmation_tables(
        model,
        together,
        of_text,
        domains,
        table,
        chosen,
        position,
        q=q,
        seed=seed,
        progress=progress,
    )
    table = with_losses(table, confirmation, domains)
    number = np.concatenate([np.arange(len(t)) for t in tokens.values()])
    meta = provenance(
        model,
        together,
        duration=time.perf_counter() - started,
        position=position,
        n_pos=n_pos,
        n_texts={name: len(rows) for name, rows in tokens.items()},
        q=q,
        confirm=confirm if isinstance(confirm, str) else [list(h) for h in confirm],
        n_confirm=n_confirm,
        n_tested=len(chosen),
        losses=path,
        seed=seed,
    )
    n = np.array([len(rows) for rows in tokens.values()])
    meta["notes"] = [
        *notes_on_texts(tokens, position),
        *_notes(table, n, chosen, confirm, q),
    ]
    long = {
        "domain": np.array(domains)[of_text].repeat(len(keys)),
        "text": number.repeat(len(keys)),
        "layer": np.tile([layer for layer, _ in keys], len(number)),
        "head": np.tile([head for _, head in keys], len(number)),
        "dormancy": dormancy.ravel(),
    }
    return ActiveDormant(
        table, meta, confirmation, pd.DataFrame(long), losses, domains, position
    )


def _dormancy(
    model: Model,
    tokens: Int[Tensor, "text pos"],
    position: int,
    progress: bool | None = None,
) -> tuple[list[Head], Float[np.ndarray, "text head"]]:
    meter = DormancyMeter((position,))
    given = batches(model, tokens)
    with bar("dormancy", len(given) * model.shape.n_layers, progress) as advance:
        found = measure(model, given, [meter, Watch(advance)], meta={})[0]
    wide = found.pivot(index="batch", columns=["layer", "head"], values="score")
    wide = wide.sort_index(axis=0).sort_index(axis=1)
    if not np.isfinite(wide.to_numpy()).all():
        raise ValueError(
            "active_dormant: some attention is NaN or infinite. The model's weights or "
            "activations hold NaN, or overflow in this dtype: check "
            "ms.selfcheck(model), or load it with dtype=torch.float32."
        )
    return [(int(layer), int(head)) for layer, head in wide.columns], wide.to_numpy()


def _check(model: Model, confirm: Confirm, q: float) -> None:
    if not 0 < q < 1:
        raise ValueError(
            f"active_dormant: q={q}. Allowed: above 0, below 1, the share of false "
            "heads among the flagged that you accept; 0.05 is usual."
        )
    shape = model.shape
    if isinstance(confirm, str):
        if confirm not in ("flagged", "all", "none"):
            raise ValueError(
                f"active_dormant: confirm={confirm!r}. Allowed: 'flagged', 'all', "
                "'none' or a list of (layer, head)."
            )
        return
    bad = [
        (layer, head)
        for layer, head in confirm
        if not (0 <= layer < shape.n_layers and 0 <= head < shape.n_heads)
    ]
    if bad:
        raise ValueError(
            f"active_dormant: confirm= names {bad[0]}, but this model has "
            f"{shape.n_layers} layers of {shape.n_heads} heads, counted from 0. Give "
            "(layer, head) pairs within."
        )


def _notes(
    table: pd.DataFrame,
    n: Int[np.ndarray, " domain"],
    chosen: Sequence[Head],
    confirm: Confirm,
    q: float,
) -> list[str]:
    notes = []
    least = least_p_value(n, len(table))
    together = int(np.ceil(least * len(table) / q))
    if together > 1:
        notes.append(
            f"With so few texts no p-value can be under {least:.2g}: a head is flagged "
            f"only where at least {together} are. Give more texts."
        )
    flagged: Any = table[table["q_value"] < q]
    flagged = flagged[["layer", "head"]].drop_duplicates()
    if isinstance(confirm, str) and confirm == "flagged" and len(flagged) > len(chosen):
        notes.append(
            f"Of {len(flagged)} flagged heads the {len(chosen)} with the largest "
            "difference were tested by zeroing; n_confirm= sets how many."
        )
    return notes
