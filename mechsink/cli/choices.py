"""Words that options take, offered by shell completion.

Written out here, since a key press waits for no torch to be imported;
tests/cli/test_completion.py holds them to the library's own.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

MODELS = ("smollm2",)
PRESETS = ("bb-cpu", "bb3-cpu", "bb-sgd", "bb-relu", "bb-paper")
SETS = ("ioi", "capitals", "sums", "greater_than", "induction", "multiple_choice")
METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact")
METRICS = ("logit-diff", "answer-logprob", "sink:")
DIRECTIONS = ("denoising", "noising")
SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_normed",
    "mlp_post", "q", "k", "v", "z", "attn_scores", "pattern",
)  # fmt: skip
ENGINES = ("here", "pool", "ray")
OPERATORS = (
    "softmax", "sigmoid", "sigmoid-sum", "linear", "relu", "softmax1", "kv-bias",
    "gate", "affine", "flow",
)  # fmt: skip
REMEDIES = ("none", "gate", "softmax1", "key-bias", "ReLU", "SGD", "decorrelation")
KNOBS = (
    "learning rate", "steps", "data", "weight decay", "tokens", "prefix", "window",
    "positions", "biases", "operators",
)  # fmt: skip
BEDS = ("bigram", "text", "text-gpu")
SETTINGS = (
    "1 layer", "SGD", "ReLU", "2 layers", "3 layers", "3 layers, SGD",
    "3 layers, ReLU", "0 triggers", "1 trigger", "5 triggers", "10 triggers",
)  # fmt: skip


def offer(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    """The words that begin as what was typed, for `autocompletion=`."""

    def matching(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return matching


def model_names(incomplete: str) -> list[str]:
    """smollm2, and the toy runs and model folders under this folder."""
    found = [*MODELS, *_folders(Path())]
    return [name for name in found if name.startswith(incomplete)]


def _folders(root: Path) -> Iterator[str]:
    for path in sorted({*root.glob("*/config.json"), *root.glob("*/*/config.json")}):
        folder = path.parent
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and str(config.get("format", "")).startswith("toy"):
            yield f"toy:{folder}"
        elif any(folder.glob("*.safetensors")):
            yield f"./{folder}"
