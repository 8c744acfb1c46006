"""`visit` through hooks: whole patterns, but never more than one layer's at a time.

For models whose attention can't be replaced: toys, and families with attention
code of their own.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechsink.models.attention import PatternAttention
from mechsink.run import LayerAttention
from mechsink.sites import Site


def visit_patterns(
    run: Callable[..., Any],
    tokens: Tensor,
    n_layers: int,
    attention_layers: Sequence[int],
    names: Collection[str],
    attention: Callable[[LayerAttention], None] | None,
    residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None] | None,
    softmax_layers: Collection[int] | None = None,
) -> None:
    """Run once and hand out each layer's attention and residual.

    Args:
        run: the backend's run with `on_read=`.
        tokens: Int[batch pos].
        n_layers: number of blocks.
        attention_layers: those whose attention is handed out.
        names: which of v, attn_scores and pattern the model has.
        attention, residual: the visitors of `Model.visit`.
        softmax_layers: those whose patterns are softmaxes; None for all.
    """
    held: dict[str, Tensor] = {}

    def on_read(site: Site, value: Tensor) -> None:
        if site.name == "resid_pre":
            assert residual is not None
            residual(site.layer, value)
        elif site.name == "resid_post":
            assert residual is not None
            residual(n_layers, value)
        else:
            held[site.name] = value
        if site.name == "pattern":  # the last of the three in a forward pass
            assert attention is not None
            attention(
                PatternAttention(
                    site.layer,
                    v=held.pop("v").transpose(1, 2),
                    pattern=held.pop("pattern"),
                    scores=held.pop("attn_scores", None),
                    is_softmax=softmax_layers is None or site.layer in softmax_layers,
                )
            )

    read = []
    if residual is not None:
        read += [Site("resid_pre", layer) for layer in range(n_layers)]
        read += [Site("resid_post", n_layers - 1)]
    if attention is not None:
        wanted = [n for n in ("v", "attn_scores", "pattern") if n in names]
        read += [Site(name, layer) for name in wanted for layer in attention_layers]
    run(tokens, read=read, on_read=on_read)
