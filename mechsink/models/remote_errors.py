"""What can go wrong between here and a server, said in words."""

import contextlib
import importlib
from collections.abc import Iterator

KEY = (
    "Get a key at https://login.ndif.us, then run `nnsight login` (it is stored), or "
    "set the environment variable NDIF_API_KEY."
)
STATUS = '`python -c "import nnsight; print(nnsight.status())"`'


@contextlib.contextmanager
def said_clearly(name: str, remote: bool | str) -> Iterator[None]:
    """One clear error for what can go wrong between here and there."""
    from nnsight.intervention.backends.remote import RemoteError

    network = _network_errors()
    where = address(remote)
    try:
        yield
    except RemoteError as error:
        text = " ".join(str(error).split())
        if "Failed to send request" in text and "key" in text.lower():
            raise PermissionError(
                f"{where} refused the API key: {text} {KEY}"
            ) from error
        raise RuntimeError(
            f"{name}: {where} could not run this: {text[-600:]} Which models it "
            f"serves: {STATUS}."
        ) from error
    except network as error:
        raise ConnectionError(
            f"{name}: {where} can't be reached ({_first_line(error)}). Check the "
            f"network, and the server with {STATUS}. With no network, load the weights "
            "here: ms.load_model without remote=."
        ) from error


def require_key(remote: bool | str) -> None:
    """Raise ValueError if NDIF is asked for and no API key is set."""
    from nnsight import CONFIG

    if remote is True and not CONFIG.API.APIKEY:
        raise ValueError(
            f"load_model: remote=True sends runs to {CONFIG.API.HOST}, which wants an "
            f"API key, and none is set. {KEY}"
        )


def address(remote: bool | str) -> str:
    """The server's."""
    from nnsight import CONFIG

    return CONFIG.API.HOST if remote is True else str(remote)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise that nnsight and the hub's client speak through.

    The hub's is httpx or its successor, by its version.
    """
    import websocket

    found: list[type[Exception]] = [OSError, websocket.WebSocketException]
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
