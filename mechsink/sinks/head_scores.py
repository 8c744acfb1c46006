"""What a head looks for: the token before, earlier copies, what followed them, rest.

Source: previous-token and induction heads, Olsson et al. 2022 (arXiv:2209.11895);
duplicate-token heads, Wang et al. 2022 (arXiv:2211.00593). The scores follow them; the
reference and the rule that names a head are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompt_sets.repeats import induction
from mechsink.results import Result
from mechsink.run import LayerAttention, Model
from mechsink.sinks.measure import Batch, Meter, Rows, check_positions, measure, rows
from mechsink.sinks.shares import key_blocks

KINDS = ("previous", "duplicate", "induction", "current", "sink")
AT_TIMES = ("duplicate", "induction")
"""Kinds whose queries are only those with something to find."""


@dataclass(frozen=True, eq=False)
class HeadScores(Result):
    """How much each head attends to what each kind of head looks for.

    `table`: batch (prompt), layer, head, kind, score, reference, queries. `score` is
    the attention, 0 to 1, mean over the `queries` that had such a key; NaN where none
    had. `reference`: what a head that attends evenly to all earlier tokens and its
    own would score there (a layer with a window has fewer keys, and scores more).

    Examples:
        >>> model = ms.planted("induction").model
        >>> found = ms.head_scores(model, model.to_tokens("A B C D A B C D A"))
        >>> found.heads("previous"), found.heads("induction")
        ([(0, 0)], [(1, 0)])
        >>> ax = found.plot(kind="induction")
    """

    def means(self) -> pd.DataFrame:
        """One row a layer, head and kind: score, reference, excess, over prompts.

        `excess` = (score - reference) / (1 - reference): 0 like an even head, 1 all
        attention there. Prompts without such queries are left out.
        """
        known: Any = self.table[self.table["queries"] > 0]
        keys = ["layer", "head", "kind"]
        means = known.groupby(keys)[["score", "reference"]].mean().reset_index()
        over = means["score"] - means["reference"]
        return means.assign(excess=over / (1 - means["reference"]))

    def categories(self, least: float = 0.3, ahead: float = 1.5) -> pd.DataFrame:
        """Name every head: layer, head, category, and the excess of each kind.

        The rule is ours. A head is named after its largest excess, if that reaches
        `least`: "previous", "duplicate", "induction", "current" (its own token) or
        "sink" (dormant on this input). "mixed": a second kind reaches `least` too and
        the first is not `ahead` times as large. "none": no kind reaches it. Where
        duplicate or induction does, sink is left out, since resting there is how such
        heads wait. A head that looks back at rare tokens alone, such as triggers, is
        mostly at rest and named so: `query_attention` tells its queries apart.

        Args:
            least: least excess that names a head.
            ahead: how many times as large as the second kind the first must be.

        Raises:
            ValueError: `least` outside 0 to 1, or `ahead` below 1.
        """
        if not 0 < least <= 1 or ahead < 1:
            raise ValueError(
                f"HeadScores.categories: least={least}, ahead={ahead}. Allowed: least "
                "above 0, to 1; ahead 1 and more, where 1 calls no head mixed."
            )
        index = ["layer", "head"]
        wide = self.means().pivot(index=index, columns="kind", values="excess")
        wide = wide.reindex(columns=list(KINDS)).astype(float)
        names = [_category(row, least, ahead) for _, row in wide.iterrows()]
        wide.insert(0, "category", names)
        return wide.rename_axis(columns=None).reset_index()

    def heads(self, category: str, **rule: float) -> list[tuple[int, int]]:
        """(layer, head) of one category; `rule` as in `categories`.

        Args:
            category: one of those that `categories` gives.
            rule: options of `categories`.
        """
        found: Any = self.categories(**rule)
        found = found[found["category"] == category]
        return list(zip(found["layer"].tolist(), found["head"].tolist(), strict=True))

    def plot(self, ax: Axes | None = None, *, kind: str = "induction") -> Axes:
        """Heat map of a kind's excess, layer by head, on `ax` or a new figure.

        Raises:
            ValueError: an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(
                f"HeadScores.plot: kind={kind!r}. Allowed: {', '.join(KINDS)}."
            )
        means: Any = self.means()
        grid = means[means["kind"] == kind].pivot(
            index="head", columns="layer", values="excess"
        )
        label = f"attention, {kind}\n0: even head, 1: all of it"
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(
                ax, grid, label, limits=(-1.0, 1.0), diverging=True
            )


@dataclass(frozen=True)
class HeadScoreMeter(Meter):
    """Scores of every kind, for `measure`; `sink` is the sink's position."""

    sink: int = 0
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """Two tokens and the sink in every prompt."""
        check_positions(batches, [self.sink])
        for batch in batches:
            if batch.n_pos < 2:
                raise ValueError(
                    f"head_scores: prompt {batch.first} has one token, which can only "
                    "attend to itself. Allowed: two tokens and more."
                )

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt, head and kind."""
        masses: Tensor | None = None  # batch kind head query
        n_keys: Tensor | None = None  # batch kind query
        for keys, shares in key_blocks(layer, batch.n_pos):
            wanted = wanted_keys(batch.tokens.to(shares.device), keys, self.sink)
            mass = torch.einsum("bhqk,bcqk->bchq", shares, wanted.to(shares))
            count = wanted.sum(-1)
            masses = mass if masses is None else masses + mass
            n_keys = count if n_keys is None else n_keys + count
        assert masses is not None and n_keys is not None
        asked = n_keys > 0
        queries = asked.sum(-1)
        score = (masses * asked[:, :, None]).sum(-1) / queries[..., None]  # 0 / 0: NaN
        visible = torch.arange(1, batch.n_pos + 1, device=masses.device)
        reference = (n_keys / visible.to(masses)).sum(-1) / queries
        axes = {
            "batch": batch.prompts,
            "kind": list(KINDS),
            "layer": [layer.layer],
            "head": range(score.shape[2]),
        }
        same = {"reference": reference, "queries": queries}
        wide = {n: x[..., None].expand_as(score) for n, x in same.items()}
        return {"table": rows(axes, score=score, **wide)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The scores as a result."""
        order = ["batch", "layer", "head", "kind", "score", "reference", "queries"]
        table: Any = tables["table"][order]
        return HeadScores(table, meta)


@any_model
def head_scores(
    model: Model, tokens: Tensor | Sequence[Tensor], *, sink: int = 0
) -> HeadScores:
    """Attention of every head to the token before, to copies, to what followed them.

    For query i, with tokens x, the keys of each kind are
      previous: i - 1;
      duplicate: j < i with x_j = x_i;
      induction: j < i with x_{j-1} = x_i, what came after an earlier copy;
      current: i itself;
      sink: the position `sink`, for later queries.
    The first query has no choice and is left out, so "sink" is a little below what
    `sink_scores` gives, which counts the sink's own query. A key may be of several
    kinds: in "a b a" the b is the token before the last a and what followed its copy.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`); texts with
            repeats, such as `repeated_tokens(model)`, show the most.
        sink: the sink's position, 0 for the first token.

    Returns:
        `HeadScores`, one row a prompt, layer, head and kind.

    Raises:
        ValueError: a prompt of one token, or without the sink's position.

    Source: Olsson et al. 2022 (arXiv:2209.11895), Wang et al. 2022
    (arXiv:2211.00593).

    Examples:
        >>> model = ms.planted("induction").model
        >>> found = ms.head_scores(model, model.to_tokens("A B C D A B C D A"))
        >>> means = found.means().set_index(["layer", "head", "kind"]).score
        >>> means[[(0, 0, "previous"), (1, 0, "induction")]].round(2).tolist()
        [0.92, 0.94]
    """
    return measure(model, tokens, [HeadScoreMeter(sink)])[0]


def wanted_keys(
    tokens: Int[Tensor, "batch pos"], keys: range, sink: int = 0
) -> Bool[Tensor, "batch kind query column"]:
    """For every kind in `KINDS`, which of some keys each query would look for."""
    key = torch.arange(keys.start, keys.stop, device=tokens.device)
    query = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
    before = tokens[:, (key - 1).clamp(min=0)]
    earlier = key < query
    kinds = {
        "previous": key == query - 1,
        "duplicate": earlier & (tokens[:, None, key] == tokens[:, :, None]),
        "induction": earlier & (key > 0) & (before[:, None] == tokens[:, :, None]),
        "current": (key == query) & (query > 0),
        "sink": (key == sink) & earlier,
    }
    shape = (len(tokens), tokens.shape[1], len(keys))
    return torch.stack([kinds[kind].expand(shape) for kind in KINDS], dim=1)


@any_model
def repeated_tokens(
    model: Model,
    n: int = 20,
    *,
    length: int = 32,
    seed: int = 0,
    vocabulary: Sequence[int] | None = None,
    first: Sequence[int] | None = None,
) -> Int[Tensor, "prompt pos"]:
    """Blocks of different random tokens, each said twice.

    Args:
        model: whose vocabulary is drawn from.
        n: prompts, all different; fewer where so few blocks exist.
        length: tokens of the block.
        seed: of the draws.
        vocabulary: tokens to draw from, as in `prompt_sets.induction`.
        first: tokens to put before each prompt, likewise.

    Returns:
        Tokens: what stands first, the block, the block again.

    Raises:
        ValueError: as `prompt_sets.induction`; or two blocks are longer than the
            model's context.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = ms.repeated_tokens(model, n=2, length=4)
        >>> tuple(tokens.shape), bool((tokens[:, 1:5] == tokens[:, 5:]).all())
        ((2, 9), True)
    """
    options = {"length": length, "repeated": 1, "vocabulary": vocabulary}
    made = induction(model, n, seed=seed, first=first, **options)
    start = len(made.settings["first"])
    if start + 2 * length > model.shape.n_ctx:
        raise ValueError(
            f"repeated_tokens: two blocks of length={length} after {start} tokens, but "
            f"{model.name} takes {model.shape.n_ctx} a prompt. Allowed: length 3 to "
            f"{(model.shape.n_ctx - start) // 2}."
        )
    clean: Any = made.pairs.clean  # tokens, not texts
    return torch.cat([clean[:, :-1], clean[:, start:-1]], dim=1)


def _category(excess: pd.Series, least: float, ahead: float) -> str:
    waits = (excess[list(AT_TIMES)] >= least).any()
    compared = excess.drop("sink") if waits else excess
    ranked = compared.dropna().sort_values(ascending=False, kind="stable")
    if not len(ranked) or ranked.iloc[0] < least:
        return "none"
    second = ranked.iloc[1] if len(ranked) > 1 else 0.0
    if second >= least and ranked.iloc[0] < ahead * second:
        return "mixed"
    return str(ranked.index[0])
