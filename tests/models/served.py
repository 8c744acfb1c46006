"""A stand-in for the server of remote models, in this process and without network.

What nnsight would send is serialised, taken apart where neither mechsink nor the tests
can be imported, run on a second model with weights, and what was saved goes back as
bytes: only the sockets are missing.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

HIDDEN = ("mechsink", "toy_tasks", "tests", "jaxtyping", "beartype", "pandas")


class Server:
    """Holds the weights; `requests` are the sizes of what it was sent, in bytes."""

    def __init__(self, folder: str, tokenizer: Any) -> None:
        from nnsight import TransformersModel

        self.model = TransformersModel(
            folder, task="text-generation", tokenizer=tokenizer, dispatch=True
        )
        self.requests: list[int] = []

    def answer(self, request: Any, blob: bytes) -> bytes:
        """Run what came; the saved values as bytes."""
        from nnsight.schema.request import RequestModel
        from nnsight.tracing.backend import Backend
        from nnsight.tracing.tracer import dec, inc

        self.requests.append(len(blob))
        self.model._remoteable_set_env(request.env)
        with nothing_of_ours():
            objects = self.model._remoteable_persistent_objects()
            tracer = RequestModel.deserialize(blob, objects, request.compress)
            tracer.backend = Backend()
            inc()
            try:
                tracer.execute(tracer.info.code)
                saved = dict(tracer.info.frame.f_locals)
            finally:
                dec()
        names = [name for name in ("cache", "logits", "found") if name in saved]
        out = io.BytesIO()
        torch.save({name: saved[name] for name in names}, out)
        return out.getvalue()


@contextlib.contextmanager
def nothing_of_ours() -> Iterator[None]:
    """Within, what is only on this machine can't be imported."""
    gone = {n: sys.modules.pop(n) for n in [*sys.modules] if n.split(".")[0] in HIDDEN}
    finders, sys.meta_path[:] = [*sys.meta_path], [_Refusing(), *sys.meta_path]
    try:
        yield
    finally:
        sys.meta_path[:] = finders
        sys.modules.update(gone)


class _Refusing:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} on the server")


def serve(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnsight's own remote backend talk to `server` instead of a socket."""
    from nnsight import CONFIG
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.modeling import huggingface

    def request(self: Any, request: Any, tracer: Any) -> Any:
        compressed = server.answer(request, self._serialize(tracer))
        self.compress = False
        return self.finalize(compressed)

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    name = server.model.repo_id
    monkeypatch.setitem(huggingface._ID_CACHE, name, name)
