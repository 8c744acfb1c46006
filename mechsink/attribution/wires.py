"""The computational graph of a transformer: what can write to what, by name.

Sources write to the residual stream: "input", "a0.h1" (a head), "m3" (an MLP).
Targets read it: "a2.h1<q>", "a2.h1<k>", "a2.h1<v>", "m3", "logits". With grouped-query
attention keys and values belong to key-value heads: "a2.kv0<k>". Where a model's
heads can't be told apart after its post-norm, the source is the whole layer, "a2".
May import: rooms up to models.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from mechsink.run import ModelShape
from mechsink.sites import Site

INPUT, LOGITS = "input", "logits"
_NAME = re.compile(r"(?:a(\d+)(?:\.(h|kv)(\d+))?|m(\d+))(?:<([qkv])>)?")


@dataclass(frozen=True)
class Wires:
    """Every source, target and possible edge of a model.

    `is_parallel`: attention and MLP of a block read the same residual. `splits_heads`:
    each head is a source of its own.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_attention: bool = True
    has_mlp: bool = True
    is_parallel: bool = False
    splits_heads: bool = True

    @classmethod
    def of(cls, shape: ModelShape) -> "Wires":
        """The wires of a model of that shape.

        Raises:
            ValueError: attention or an MLP in some layers only.
        """
        # attn_out and mlp_out exist (as zeros) where a toy has no attention or MLP.
        return cls(
            shape.n_layers,
            shape.n_heads,
            shape.n_kv_heads,
            has_attention="z" in shape.sites,
            has_mlp="mlp_normed" in shape.sites,
            is_parallel="resid_mid" not in shape.sites,
        )

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of what writes, from the input on."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += self.attention_sources(layer)
            if self.has_mlp:
                names.append(f"m{layer}")
        return tuple(names)

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of what reads, up to the logits."""
        names: list[str] = []
        for layer in range(self.n_layers):
            names += self.attention_targets(layer)
            if self.has_mlp:
                names.append(f"m{layer}")
        return (*names, LOGITS)

    def attention_sources(self, layer: int) -> list[str]:
        """Heads of a layer as sources."""
        if not self.has_attention:
            return []
        if not self.splits_heads:
            return [f"a{layer}"]
        return [f"a{layer}.h{head}" for head in range(self.n_heads)]

    def attention_targets(self, layer: int) -> list[str]:
        """What a layer's heads read, queries first, then keys, then values."""
        if not self.has_attention:
            return []
        grouped = self.n_kv_heads != self.n_heads
        heads = [f"h{n}" for n in range(self.n_heads)]
        kv_heads = [f"{'kv' if grouped else 'h'}{n}" for n in range(self.n_kv_heads)]
        readers = [f"a{layer}.{h}<q>" for h in heads]
        return readers + [f"a{layer}.{h}<{x}>" for x in "kv" for h in kv_heads]

    @functools.cached_property
    def source_index(self) -> dict[str, int]:
        """Source name to its number."""
        return {name: n for n, name in enumerate(self.sources)}

    @functools.cached_property
    def target_index(self) -> dict[str, int]:
        """Target name to its number."""
        return {name: n for n, name in enumerate(self.targets)}

    @functools.cached_property
    def real(self) -> Bool[np.ndarray, "source target"]:
        """Whether an edge can be: its source writes before its target reads."""
        written = np.array([self._written(name) for name in self.sources])
        read = np.array([self._read(name) for name in self.targets])
        return written[:, None] <= read[None, :]

    @functools.cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """All edges, (source, target), target by target."""
        return tuple(
            (self.sources[s], self.targets[t])
            for t, s in zip(*np.nonzero(self.real.T), strict=True)
        )

    def inside(self, target: str) -> list[str]:
        """Sources that a target's reading goes into; none for the logits.

        A query belongs to its head, a key or value to every head of its group.
        """
        if target == LOGITS:
            return []
        layer, part, number, port = parsed(target)
        if port is None:
            return [target]
        if not self.splits_heads:
            return [f"a{layer}"]
        if part == "kv":
            group = self.n_heads // self.n_kv_heads
            heads = range(number * group, (number + 1) * group)
            return [f"a{layer}.h{head}" for head in heads]
        return [f"a{layer}.h{number}"]

    def ports(self, source: str) -> list[str]:
        """Targets whose reading goes into a source; none for the input."""
        return [target for target in self.targets if source in self.inside(target)]

    def site(self, name: str) -> Site | None:
        """Where a node is: z or mlp_out of a source, q, k, v or mlp_normed of a target.

        A name that is both ("m3") gives mlp_out. None for the input and the logits.
        """
        if name in (INPUT, LOGITS):
            return None
        layer, part, number, port = parsed(name)
        if part == "m":
            return Site("mlp_out", layer)
        if part == "a":
            return Site("attn_out", layer)
        if port is None:
            return Site("z", layer, head=number)
        if port == "q":
            return Site("q", layer, head=number)
        return Site(port, layer, kv_head=number)

    def layer(self, name: str) -> int:
        """Layer of a node: -1 for the input, n_layers for the logits."""
        if name == INPUT:
            return -1
        return self.n_layers if name == LOGITS else parsed(name)[0]

    def check(self, edges: Sequence[tuple[str, str]], caller: str) -> None:
        """Raise ValueError for an edge that this model does not have."""
        for source, target in edges:
            for name, names, what in (
                (source, self.source_index, "source"),
                (target, self.target_index, "target"),
            ):
                if name not in names:
                    raise ValueError(
                        f"{caller}: {name!r} is no {what} of this model. Its {what}s "
                        f"are named like {', '.join(list(names)[:6])}, ..., "
                        f"{list(names)[-1]}."
                    )
            if not self.real[self.source_index[source], self.target_index[target]]:
                raise ValueError(
                    f"{caller}: there is no edge {source} -> {target}: the target "
                    "reads the residual stream before the source writes to it."
                )

    def _written(self, source: str) -> int:
        """When it is on the stream; four moments a layer."""
        if source == INPUT:
            return 0
        layer, part, _, _ = parsed(source)
        return 4 * layer + (3 if part == "m" or self.is_parallel else 2)

    def _read(self, target: str) -> int:
        if target == LOGITS:
            return 4 * self.n_layers
        layer, part, _, _ = parsed(target)
        return 4 * layer + (2 if part == "m" and not self.is_parallel else 0)


def parsed(name: str) -> tuple[int, str, int, str | None]:
    """Layer, kind ("h", "kv", "a" or "m"), number and port of a node's name.

    Raises:
        ValueError: it is no such name.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no node. Nodes are named input, a0.h1, m3, logits, and where "
            "edges end a2.h1<q>, a2.h1<k>, a2.h1<v> (a2.kv0<k> with grouped keys)."
        )
    layer, kind, number, mlp, port = found.groups()
    if mlp is not None:
        return int(mlp), "m", 0, port
    return int(layer), kind or "a", int(number or 0), port
