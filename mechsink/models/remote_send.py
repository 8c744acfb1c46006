"""A traced run as bytes for a server that knows neither mechsink nor its type checks.

nnsight sends functions as source with the names that they use, their annotations
included: those name jaxtyping, which a server need not have. Here they are left out,
and so is whatever checker or other decorator was wrapped around a function.
"""

import ast
import inspect
import io
import textwrap
import types
from typing import Any

from nnsight.intervention import serialization
from nnsight.ndif import pull_env


def serialized(backend: Any, tracer: Any) -> bytes:
    """What `backend`, nnsight's RemoteBackend, sends of a captured trace."""
    pull_env()
    frame = tracer.info.frame
    block = serialization.reduce_block(
        tracer.node, frame.f_globals, dict(frame.f_locals)
    )
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=serialization.DEFAULT_PROTOCOL).dump((tracer, block))
    if not backend.compress:
        return buffer.getvalue()
    import zstandard

    return zstandard.ZstdCompressor(level=6).compress(buffer.getvalue())


class _Pickler(serialization.CustomCloudPickler):
    """nnsight's own, but for what surrounds a function's code."""

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple:
        bare: Any = inspect.unwrap(func)
        reduced = super()._dynamic_function_reduce(bare)
        make, state = reduced[0], reduced[1]
        if make is not serialization._load_function:  # it has no source
            return reduced
        plain = _plain(state[0])
        names = serialization._function_referenced_names(plain)
        used = {name: value for name, value in reduced[2].items() if name in names}
        args = (plain, *state[1:4], {}, *state[5:])
        return (make, args, used, *reduced[3:])


def _plain(source: str) -> str:
    """A function's source without annotations and decorators."""
    tree = ast.parse(textwrap.dedent(source))
    return ast.unparse(ast.fix_missing_locations(_Bare().visit(tree)))


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list, node.returns = [], None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return ast.Assign(targets=[node.target], value=self.visit(node.value))
