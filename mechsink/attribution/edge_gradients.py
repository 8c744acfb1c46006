"""Edge scores from gradients, without a buffer of all edges' inputs.

An edge's score is the source's change times the gradient at what the target reads.
A head reads q = norm(x) W_Q[h], so with g the gradient at q, x the residual, s the
norm's scale and x' = centred(x) / s, the gradient at its own copy of x is

    (W g - x' (x' . W g) / d_model) / s,        W = centred(gain * W_Q[h]),

and x' . W g is known already: it is q without its biases, times g. So the first term
is linear in g / s and is averaged over integration points before it meets W; the second
is a number a head times x'. No split forward pass, no expanded keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.short_runs import metric_of
from mechsink.attribution.wires import LOGITS, Wires
from mechsink.models.wiring import PORTS, Norm, Read, Wiring
from mechsink.prompts import TokenPairs
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site


@dataclass(eq=False)
class Reader:
    """One site that targets read, and what of its gradients is kept.

    `n_sources`: how many sources write before it. `g` is the mean of gradient over
    scale; `along` has, for each point, x' and the weight of its second term.
    """

    site: Site
    read: Read
    targets: list[str]
    n_sources: int
    g: Tensor | None = None
    along: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, x: Tensor, value: Tensor, grad: Tensor, weight: float) -> None:
        """Gradients of one point; all [batch pos ...]."""
        norm = self.read.norm
        dtype = torch.promote_types(grad.dtype, torch.float32)
        x, value, grad = x.to(dtype), value.to(dtype), grad.to(dtype)
        if self.read.weight is None:
            value, grad = value[:, :, None], grad[:, :, None]
        if norm is None:
            self._accumulate(grad * weight)
            return
        scale = norm.scale(x)
        grad = grad * (weight / scale)[..., None]
        self._accumulate(grad)
        linear = value if (bias := self._bias(norm)) is None else value - bias
        x_normed = norm.centred(x) / scale
        dot = (linear * grad).sum(-1) / x.shape[-1]
        self.along.append((x_normed, dot))

    def _accumulate(self, grad: Tensor) -> None:
        self.g = grad if self.g is None else self.g + grad

    def _bias(self, norm: Norm) -> Tensor | None:
        """The part of the site that does not depend on the residual."""
        weight = self.read.weight
        if weight is None:
            return norm.bias
        bias = self.read.bias
        if norm.bias is None:
            return bias
        return torch.einsum("d,hde->he", norm.bias, weight) + (
            0 if bias is None else bias
        )

    def gradient(self) -> Float[Tensor, "batch target pos d_model"]:
        """Mean gradient at each target's own copy of the residual."""
        assert self.g is not None
        weight, norm = self.read.weight, self.read.norm
        if weight is None:
            out = self.g if norm is None else self.g * norm.gain
        else:
            if norm is not None:
                weight = norm.gain[:, None] * weight
            out = torch.einsum("bphe,hde->bhpd", self.g, weight.to(self.g.dtype))
        if weight is None:
            out = out.transpose(1, 2)
        if norm is None:
            return out
        out = norm.centred(out)
        for x_normed, dot in self.along:
            out.addcmul_(x_normed[:, None], dot.transpose(1, 2)[..., None], value=-1)
        return out


@dataclass(frozen=True, eq=False)
class Point:
    """Where a gradient is taken: the clean run with some sites set.

    `put`: whole site to its value, one row a prompt; gradients pass through it as if
    it were what was computed there.
    """

    put: dict[Site, Tensor]
    weight: float


def readers(wires: Wires, wiring: Wiring) -> list[Reader]:
    """Every site that edges end at, from the first layer to the logits."""
    found: list[Reader] = []

    def add(site: Site, read: Read, targets: list[str]) -> None:
        before = wires.real[:, wires.target_index[targets[0]]]
        n = int(before.sum())
        assert before[:n].all()  # sources are in the order of writing
        found.append(Reader(site, read, targets, n))

    for layer in range(wires.n_layers):
        names = wires.attention_targets(layer)
        for port in PORTS if names else ():
            mine = [name for name in names if name.endswith(f"<{port}>")]
            add(Site(port, layer), wiring.attention_read(layer, port), mine)
        if wires.has_mlp:
            add(Site("mlp_normed", layer), wiring.mlp_read(layer), [f"m{layer}"])
    add(Site("resid_post", wires.n_layers - 1), Read(None), [LOGITS])
    return found


def collect(
    model: Model,
    wires: Wires,
    wiring: Wiring,
    found: Sequence[Reader],
    pairs: TokenPairs,
    metric: Metric,
    points: Sequence[Point],
) -> bool:
    """Add the gradients of some points, all in one pass, to the readers.

    Returns:
        Whether the metric depends on anything at all.
    """
    n, n_points = len(pairs), len(points)
    seen: dict[Site, Tensor] = {}
    rows = torch.arange(n, device=pairs.clean.device).repeat(n_points)
    streams = {Site("resid_pre", layer) for layer in range(wires.n_layers)}
    streams |= {Site("attn_out", layer) for layer in range(wires.n_layers)}
    sites = {*streams, *(reader.site for reader in found)}
    sites |= {site for point in points for site in point.put}
    start = Site("resid_pre", 0)

    def at(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            if any(site in point.put for point in points):
                parts = x.detach().split(n)
                value = torch.cat(
                    [
                        point.put.get(site, part)
                        for point, part in zip(points, parts, strict=True)
                    ]
                )
                # x - x is 0: the value exactly, and the gradient of x.
                x = value.to(x.dtype) + (x - x.detach())
            if site == start and not x.requires_grad:
                x = x.detach().requires_grad_()
            seen[site] = x.detach() if site in streams and site != start else x
            return x

        return edit

    tokens = pairs.clean.repeat(n_points, 1)
    edits = {site: at(site) for site in sites}
    values, _ = metric_of(
        model, wiring, tokens, pairs.rows(rows), metric, edit=edits, grad=True
    )
    total = values.sum()  # prompts do not mix
    if not total.requires_grad:
        return False
    # A pass that was left early has not met the readers above.
    met = [reader for reader in found if reader.site in seen]
    wanted = [seen[reader.site] for reader in met]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    with torch.no_grad():
        for reader, value, grad in zip(met, wanted, grads, strict=True):
            grad = torch.zeros_like(value) if grad is None else grad
            x = _read_from(reader.site, seen, wires)
            for k, point in enumerate(points):
                mine = slice(k * n, (k + 1) * n)
                reader.add(x[mine], value[mine].detach(), grad[mine], point.weight)
    return any(grad is not None for grad in grads)


def _read_from(site: Site, seen: dict[Site, Tensor], wires: Wires) -> Tensor:
    """The residual that a reader's norm saw."""
    before = seen[Site("resid_pre", site.layer)].detach()
    if site.name == "mlp_normed" and not wires.is_parallel:
        return before + seen[Site("attn_out", site.layer)]
    return before


@torch.no_grad()
def score(
    wires: Wires,
    found: Sequence[Reader],
    change: Float[Tensor, "batch source pos d_model"],
) -> Float[Tensor, "batch source target"]:
    """Change of every source times gradient at every target, summed over positions."""
    batch, n_sources = change.shape[:2]
    out = change.new_zeros(batch, n_sources, len(wires.targets))
    flat = change.flatten(2)
    for some in _neighbours([reader for reader in found if reader.g is not None]):
        first = wires.target_index[some[0].targets[0]]
        gradients = torch.cat([r.gradient().to(change.dtype) for r in some], dim=1)
        n = max(reader.n_sources for reader in some)
        columns = slice(first, first + gradients.shape[1])
        out[:, :n, columns] = flat[:, :n] @ gradients.flatten(2).transpose(1, 2)
    return out * torch.as_tensor(wires.real, device=out.device)


def _neighbours(found: Sequence[Reader], targets: int = 64) -> Iterator[list[Reader]]:
    """Readers in groups of so many targets: sources are then read from memory less."""
    group: list[Reader] = []
    for reader in found:
        group.append(reader)
        if sum(len(each.targets) for each in group) >= targets:
            yield group
            group = []
    if group:
        yield group
