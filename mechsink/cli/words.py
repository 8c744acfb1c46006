"""What the words of the command line stand for: metrics, prompts, methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from mechsink.interventions.places import Direction
    from mechsink.prompt_sets import PromptSet
    from mechsink.prompts import PromptPairs
    from mechsink.report.circuits import Method
    from mechsink.run import Metric, Model


def by_metric(name: str, verb: str) -> "Metric":
    """A metric by name, or a head's sink attention by the head's: sink:3.2, L3H2."""
    import re

    from mechsink import metrics

    known = {"logit-diff": metrics.logit_diff, "answer-logprob": metrics.answer_logprob}
    if (plain := name.replace("_", "-")) in known:
        return known[plain]
    if head := re.fullmatch(r"L(\d+)H(\d+)|sink:(\d+)\.(\d+)", name):
        layer, number = (int(part) for part in head.groups() if part is not None)
        return metrics.sink_attention(layer=layer, head=number)
    raise ValueError(
        f"{verb}: --metric {name} is none. Allowed: {', '.join(known)}, or a head such "
        "as sink:3.2 (layer 3, head 2), whose attention to position 0 is then the "
        "metric."
    )


def by_pairs(
    path: Path | None, name: str | None, n: int, seed: int, skip_bad: bool
) -> "Callable[[Model], PromptPairs | PromptSet]":
    """Pairs of a file, read now, or those of a ready set, made for a model."""
    from mechsink.prompt_sets import ALL
    from mechsink.prompts import PromptPairs

    if path is not None and name is None:
        read = PromptPairs.from_jsonl(path, skip_bad=skip_bad)
        return lambda model: read
    if name is None or path is not None:
        raise ValueError(
            "circuit: give PAIRS.jsonl or --set, one of them. Ready sets: "
            f"{', '.join(ALL)}."
        )
    if name not in ALL:
        raise ValueError(f"circuit: --set {name}. Allowed: {', '.join(ALL)}.")
    return lambda model: ALL[name](model, n=n, seed=seed)


def by_method(name: str, steps: int | None) -> "Method":
    """What scores the edges, by name; `steps` only where it has some."""
    from functools import partial

    from mechsink.attribution import edges
    from mechsink.attribution.exact import exact_edges

    with_steps = {
        "eap-ig": edges.eap_ig,
        "eap-ig-activations": edges.eap_ig_activations,
    }
    known: dict[str, Any] = {
        "eap": edges.eap,
        **with_steps,
        "clean-corrupted": edges.eap_clean_corrupted,
        "exact": exact_edges,
    }
    if name not in known:
        raise ValueError(f"circuit: --method {name}. Allowed: {', '.join(known)}.")
    if steps is None:
        return known[name]
    if name not in with_steps:
        raise ValueError(
            f"circuit: --steps {steps} means nothing to --method {name}. Leave it "
            f"out, or take {' or '.join(with_steps)}."
        )
    return partial(with_steps[name], steps=steps)


def by_direction(name: str) -> "Direction":
    """Denoising or noising."""
    if name == "denoising" or name == "noising":
        return name
    raise ValueError(f"patch: --direction {name}. Allowed: denoising, noising.")
