"""Relevance patching: attribution patching with relevance-style gradients.

Source: Jafari et al. 2025 (arXiv:2508.21258).
"""

import functools
from collections.abc import Sequence

from mechsink.attribution.attribution_patching import by_gradient
from mechsink.attribution.node_places import Positions
from mechsink.attribution.node_scores import Direction, NodeScores
from mechsink.models.any_model import any_model
from mechsink.models.relevance import relevance_rules
from mechsink.prompts import PromptPairs
from mechsink.run import Metric, Model

SEVERED = ("q", "k", "attn_scores")
"""Sites that act through the attention pattern alone, which passes nothing back."""


@any_model
def relp(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    site: str = "mlp_out",
    *,
    direction: Direction = "noising",
    layers: Sequence[int] | None = None,
    positions: Positions = None,
    neurons: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> NodeScores:
    """Score every place of a site by relevance propagated back instead of a gradient.

    score = (clean - corrupted value) . coefficient, summed over the node's entries;
    > 0: corrupting the place lowers the metric. Coefficients are the gradient of a
    model that has been made linear around its run (`relevance_rules`): norm scales and
    attention patterns are constants, an activation f(z) is z times the constant
    f(z) / z, and of a gate's product each factor passes on half.

    Args:
        model: a toy, or a Hugging Face model with readable norms and MLPs.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; a metric of attention patterns, which
            are constants here, has no coefficients.
        site: name of a site; not q, k or attn_scores, which act through patterns.
        direction: "noising" takes the coefficients at the clean run (as the paper
            does), "denoising" at the corrupted run.
        layers: which; default all.
        positions: which, each a node; default all; "all" makes them one node.
        neurons: for site "mlp_post": which, each a node; default their sum.
        seed: of the intervals and tests of `nodes`.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        `NodeScores`; `table` has `estimate` beside `score`.

    Raises:
        ValueError: as `attribution_patching`; a site or a metric that acts through
            patterns alone; a model family that these rules can't serve.

    Source: Jafari et al. 2025 (arXiv:2508.21258), table 1: LN-rule, AH-rule,
    identity-rule and half-rule.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.relp(case.model, case.pairs, ms.logit_diff, site="z")
        >>> scores.nodes.nlargest(2, "score")["head"].tolist()
        [0, 1]
    """
    if site in SEVERED:
        raise ValueError(
            f'relp: site="{site}" acts through attention patterns alone, and its rules '
            "hold patterns constant, so every score would be 0. Take v, z or pattern, "
            "or ms.atp_star for queries and keys."
        )
    watched = sorted(s for s in metric.reads if s.name in ("pattern", "attn_scores"))
    if watched:
        raise ValueError(
            f"relp: the metric {metric!r} reads {watched[0]}, but its rules hold "
            "attention patterns constant. Take ms.attribution_patching or ms.atp_star "
            "for this metric."
        )
    return by_gradient(
        "relp", model, pairs, metric, site, direction, 0, layers, positions, neurons,
        seed, progress, functools.partial(relevance_rules, model),
    )  # fmt: skip
