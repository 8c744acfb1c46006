"""What can be loaded here, and how."""

import json
import os
from pathlib import Path
from typing import Any

from mechsink.models import pretrained
from toy_tasks.storage import FORMAT as TOY_RUN


def available_models(folder: str | Path = ".") -> list[dict[str, Any]]:
    """What can be loaded here, and how: name, what, how, ready.

    Args:
        folder: searched, two levels deep, for toy runs and Hugging Face folders.

    Returns:
        One dict a model: name (for `load_model`), what it is, how to get it, and
        whether it is ready.

    Examples:
        >>> [row["name"] for row in ms.available_models()][:1]
        ['smollm2']
    """
    has_package = pretrained.gguf_folder() is not None
    is_converted = (pretrained.cache_folder() / "manifest.json").is_file()
    state = "converted" if is_converted else "converted at first load, about 15 s"
    rows: list[dict[str, Any]] = [
        {
            "name": "smollm2",
            "what": "SmolLM2-135M-Instruct, embedded, 4-bit weights"
            + (f" ({state})" if has_package else " (package not installed)"),
            "how": 'load_model("smollm2")' if has_package else pretrained.INSTALL,
            "ready": has_package,
        }
    ]
    root = Path(folder)
    for path in sorted({*root.glob("*/config.json"), *root.glob("*/*/config.json")}):
        place = path.parent
        if is_toy_run(place):
            how = f'load_model("toy:{place}")'
            what = "toy transformer of toy_tasks.train"
        elif any(place.glob("*.safetensors")):
            how, what = f'load_model("{place}")', "local Hugging Face folder"
        else:
            continue
        rows.append({"name": str(place), "what": what, "how": how, "ready": True})
    online = os.environ.get("HF_HUB_OFFLINE", "0") not in ("1", "ON", "YES", "TRUE")
    rows.append(
        {
            "name": "ORG/NAME",
            "what": "any causal language model on the Hugging Face hub",
            "how": 'load_model("ORG/NAME")' if online else "unset HF_HUB_OFFLINE",
            "ready": online,
        }
    )
    return rows


def is_toy_run(folder: Path) -> bool:
    """Whether a folder was written by `toy_tasks.train`."""
    try:
        return json.loads((folder / "config.json").read_text())["format"] == TOY_RUN
    except (OSError, ValueError, KeyError, TypeError):
        return False
