"""From a workbench with weights to a `Planted`, with its bounds and notes."""

from collections.abc import Iterable

from jaxtyping import Int
from torch import Tensor

from toy_tasks.planted.case import Edge, Planted
from toy_tasks.planted.norm_bound import norm_change
from toy_tasks.planted.workbench import CONST_RMS, ROUNDING, Workbench


def finished(
    bench: Workbench,
    name: str,
    *,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "prompt pos"],
    answers: Int[Tensor, " prompt"],
    wrong: Int[Tensor, " prompt"],
    vocab: tuple[str, ...],
    edges: Iterable[Edge],
    constant: Iterable[Edge],
    kinds: int,
    least: float,
    gain: float,
    saturated: bool,
) -> Planted:
    """Put a case together.

    Args:
        edges: planted edges that carry what the corruption changes.
        constant: the other planted edges.
        kinds: how many kinds of corruption take turns among the prompts.
        least: what an edge does at least, in logits, to the prompts whose kind it is
            for; the floor of its mean is that times the rarest kind's share.
        gain: most that the metric can move, to first order, in logits for each unit
            of relative change in the scale of what one target reads.
    """
    bound = ROUNDING
    if bench.variant == "rms":
        const = bench.directions["const"][0]
        change = norm_change(bench.model, const, clean, corrupted)
        bound = gain * change
        exact = (
            f"RMSNorm with a constant of {CONST_RMS:g}: patching one edge moves a "
            f"divisor by at most {change:.2g} of itself, so a false edge moves the "
            f"metric by at most {gain:g} times that, {bound:.2g} logits."
        )
    else:
        exact = "No norm: false edges do exactly nothing, up to float rounding."
    if saturated:
        exact += (
            " Saturated: gradients vanish, so gradient methods are expected to rank "
            "its edges badly; patching is not affected."
        )
    parts = (name, *([bench.variant] * (bench.variant != "plain")))
    edges = frozenset(edges)
    return Planted(
        name="-".join((*parts, *["saturated"] * saturated)),
        model=bench.model,
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        wrong=wrong,
        edges=edges,
        all_edges=edges | frozenset(constant),
        vocab=vocab,
        directions=bench.directions,
        distractor_heads=bench.distractor_heads,
        effect_floor=least * (len(clean) // kinds) / len(clean),
        noise_bound=bound,
        notes=exact,
    )
