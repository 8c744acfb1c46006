"""Attention rhythm of a text: preplan tokens and anchors, by local and global heads.

Source: "Preplan-and-Anchor" (arXiv:2510.13554): WAAD over locally focused heads, FAI
over globally focused ones. Horizons, peaks and what is done about the sink are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.measure import measure
from mechsink.sinks.rhythm.coupling import RhythmCoupling, coupling_test
from mechsink.sinks.rhythm.meters import Heads, HeadSpanMeter, RhythmMeter
from mechsink.sinks.rhythm.series import Peaks, top_share, waad_peaks

By = Literal["span", "span_rest"]


@dataclass(frozen=True, eq=False)
class AttentionRhythm(Result):
    """WAAD and FAI of every token, and the heads that they are means over.

    `table`: batch (prompt), pos, waad (tokens, 0 to `window`), fai, fai_plain (shares
    of attention; NaN where no later token is far enough), preplan, anchor. `heads`:
    layer, head, span (mean distance looked back, tokens; an even head has (T - 1) / 4),
    span_rest (the same without the sink's attention), sink (attention to it), group
    ("local", "global" or ""), means over prompts. The sink has its FAI in the table
    but is never an anchor.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c a d e f g h a b c")
        >>> found = ms.attention_rhythm(model, tokens, window=3, low=1, high=None)
        >>> found.heads.group.value_counts().to_dict()
        {'global': 1, '': 1, 'local': 1}
        >>> found.series("waad").shape
        torch.Size([12])
    """

    heads: pd.DataFrame
    window: int
    sink: int

    def series(self, column: str, prompt: int = 0) -> Float[Tensor, " pos"]:
        """One prompt's waad, fai or fai_plain, in the order of its tokens.

        Args:
            column: "waad", "fai" or "fai_plain".
            prompt: which.

        Raises:
            ValueError: another column, or no such prompt.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        if here.empty or column not in ("waad", "fai", "fai_plain"):
            raise ValueError(
                f"AttentionRhythm: column={column!r}, prompt={prompt}. Allowed: waad, "
                f"fai, fai_plain; prompts 0 to {self.table['batch'].max()}."
            )
        return torch.tensor(here.sort_values("pos")[column].to_numpy())

    def coupling(self, within: int = 3, seed: int = 0) -> RhythmCoupling:
        """Whether anchors follow preplan tokens; see `coupling_test`.

        Positions before `window`, where WAAD can't reach its full range, and those
        without FAI are left out.

        Args:
            within: tokens after a preplan token in which an anchor counts.
            seed: of random shifts.

        Raises:
            ValueError: prompts too short for that.
        """
        known: Any = self.table[self.table["fai"].notna()]
        known = known[known["pos"] >= max(self.window, self.sink + 1)]
        parts = [part for _, part in known.groupby("batch")]
        n = len(set(self.table["batch"].tolist()))
        if len(parts) < n:
            raise ValueError(
                f"AttentionRhythm.coupling: {len(parts)} of {n} prompts have "
                f"tokens from {self.window} on that have an FAI. Leave short prompts "
                "out, or measure with a smaller window= and low=."
            )
        series = [
            [torch.tensor(part[name].to_numpy(dtype=bool)) for part in parts]
            for name in ("preplan", "anchor")
        ]
        return coupling_test(*series, within=within, seed=seed, meta=self.meta)

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """WAAD and FAI of a prompt along its tokens, on `ax` or a new figure."""
        here: Any = self.table[self.table["batch"] == prompt]
        with plotting.theme():
            ax = ax or plotting.new_axes(width=2 * plotting.WIDTH, height=2.2)
            other = ax.twinx()
            other.spines["right"].set_visible(True)
            shown = here[here["pos"] != self.sink]
            for axis, name, mark, colour in (
                (ax, "waad", "preplan", "C0"),
                (other, "fai", "anchor", "C1"),
            ):
                axis.plot(shown["pos"], shown[name], color=colour, label=name.upper())
                at = shown[shown[mark]]
                label = f"{mark} token"
                axis.plot(at["pos"], at[name], "o", ms=3, color=colour, label=label)
            ax.set_xlabel("position")
            ax.set_ylabel(f"WAAD, tokens (at most {self.window})")
            other.set_ylabel("FAI, share of attention")
            lines = [*ax.get_lines(), *other.get_lines()]
            ax.legend(handles=lines, loc="upper right", ncols=2)
            return ax


@any_model
def attention_rhythm(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    window: int = 10,
    low: int = 10,
    high: int | None = 50,
    share: float = 0.3,
    split_by: By = "span",
    sink: int = 0,
    peaks: Peaks = "maximum",
    top: float = 0.2,
) -> AttentionRhythm:
    """WAAD and FAI of a text, over locally and globally focused heads.

    Two passes through the model: one to rank the heads of all layers by how far they
    look back, one for the series. One layer at a time, in memory linear in length.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        window: largest distance that counts in WAAD, tokens.
        low: nearest query that counts in FAI, tokens after the key.
        high: furthest query that counts; None: to the end.
        share: of all heads, the lowest by span are local, the highest global.
        split_by: "span", as in the paper, where a head that rests on the sink looks far
            back; "span_rest" leaves the sink's attention out.
        sink: position that is never an anchor.
        peaks: which tokens are preplan: "maximum" or "jump" of WAAD.
        top: anchors are the `top` share by FAI; for "jump", preplan tokens likewise.

    Returns:
        `AttentionRhythm`, one row a prompt and token.

    Raises:
        ValueError: settings out of range, too few heads to split, or the sink outside
            a prompt.

    Source: "Preplan-and-Anchor" (arXiv:2510.13554).

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c a d e f g h a b c")
        >>> found = ms.attention_rhythm(model, tokens, window=3, low=1, high=None)
        >>> list(found.table)
        ['batch', 'pos', 'waad', 'fai', 'fai_plain', 'preplan', 'anchor']
    """
    if split_by not in ("span", "span_rest") or peaks not in ("maximum", "jump"):
        raise ValueError(
            f"attention_rhythm: split_by={split_by!r}, peaks={peaks!r}. Allowed: "
            "split_by 'span' or 'span_rest', peaks 'maximum' or 'jump'."
        )
    spans = measure(model, tokens, [HeadSpanMeter(sink)])[0]
    heads, local, far = _split(spans.table, share, split_by)
    meter = RhythmMeter(local, far, window, low, high)
    found = measure(model, tokens, [meter])[0]
    parts = []
    for _, part in found.table.groupby("batch"):
        back, ahead = (torch.tensor(part[n].to_numpy()) for n in ("waad", "fai"))
        ahead[sink] = torch.nan
        preplan, anchor = waad_peaks(back, peaks, top), top_share(ahead, top)
        parts.append(part.assign(preplan=preplan.numpy(), anchor=anchor.numpy()))
    settings = {
        **found.meta["settings"],
        "share": share,
        "split_by": split_by,
        "sink": sink,
        "peaks": peaks,
        "top": top,
    }
    meta = {**found.meta, "settings": settings}
    table = pd.concat(parts, ignore_index=True)
    return AttentionRhythm(table, meta, heads, window, sink)


def credit_weights(
    rhythm: AttentionRhythm,
    gain: float = 0.5,
    *,
    on: Literal["preplan", "anchor", "both"] = "both",
    top: float = 0.2,
    prompt: int = 0,
    first: int = 0,
) -> Float[Tensor, " pos"]:
    """Factors for the advantage of each token: 1 + gain where the rhythm stands out.

    Preplan tokens here are the `top` share by rise of WAAD, anchors that by FAI.

    Args:
        rhythm: of the text with its answer.
        gain: 0 changes nothing.
        on: which tokens are credited; "both" credits each once.
        top: share of tokens; 0.2 to 0.4 in the paper.
        prompt: which text.
        first: first token of the answer; earlier ones are not ranked and keep 1.

    Returns:
        1 or 1 + gain, one a token.

    Raises:
        ValueError: an unknown `on`, a share or prompt out of range.

    Source: "Preplan-and-Anchor" (arXiv:2510.13554), rewards at preplan and anchor
    tokens; the formula is ours, after the paper.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c a d e f g h a b c")
        >>> rhythm = ms.attention_rhythm(model, tokens, window=3, low=1, high=None)
        >>> ms.credit_weights(rhythm, gain=0.5, on="anchor", first=2)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.5000, 1.0000, 1.0000, 1.0000, 1.5000,
                1.0000, 1.0000, 1.0000])
    """
    if on not in ("preplan", "anchor", "both"):
        raise ValueError(
            f"credit_weights: on={on!r}. Allowed: 'preplan', 'anchor' or 'both'."
        )
    back, ahead = rhythm.series("waad", prompt), rhythm.series("fai", prompt)
    rise = torch.full_like(back, torch.nan)
    rise[1:] = back.diff()
    ahead[rhythm.sink] = torch.nan
    rise[:first] = ahead[:first] = torch.nan
    chosen = torch.zeros(len(back), dtype=torch.bool)
    if on != "anchor":
        chosen |= top_share(rise, top) & (rise > 0)
    if on != "preplan":
        chosen |= top_share(ahead, top)
    return torch.where(chosen, 1.0 + gain, 1.0)


def _split(
    table: pd.DataFrame, share: float, by: By
) -> tuple[pd.DataFrame, Heads, Heads]:
    """The heads with their groups; the local and the global ones."""
    ranked: Any = table.dropna(subset=[by]).sort_values(by, kind="stable")
    n = max(1, round(share * len(ranked)))
    if not 0 < share <= 0.5 or len(ranked) < 2 or 2 * n > len(ranked):
        raise ValueError(
            f"attention_rhythm: share={share} of {len(ranked)} heads. Allowed: above 0 "
            "to 0.5, and at least two heads, so that local and global ones differ."
        )
    group = pd.Series("", index=table.index)
    group[ranked.index[:n]], group[ranked.index[-n:]] = "local", "global"
    heads = table.assign(group=group)
    local, far = (
        tuple(zip(part["layer"].tolist(), part["head"].tolist(), strict=True))
        for part in (heads[group == "local"], heads[group == "global"])
    )
    return heads, local, far
