"""How components read the residual stream and write to it, in weights.

Reading is a norm and a matrix; writing is a matrix, at times with a norm after it.
That is all that attribution to edges and to logits needs to know of a family, and
each model proves it on a probe before it is believed.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.metrics import at_least_float32
from mechsink.models.devices import offloaded
from mechsink.models.selfcheck import probe_tokens, unchecked_run
from mechsink.run import ModelShape, Run
from mechsink.sites import Site

Port = Literal["q", "k", "v"]
PORTS: tuple[Port, ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm or RMSNorm over d_model: centred(x) / scale(x) * gain + bias."""

    kind: Literal["layer", "rms"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The normed vectors, in the shape of `x`."""
        y = self.centred(x) / self.scale(x) * self.gain
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def centred(self, x: Tensor) -> Tensor:
        """`x` less its mean, for LayerNorm; half precision as float32 from here on."""
        x = at_least_float32(x)
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Tensor) -> Float[Tensor, "*batch 1"]:
        """What `x` is divided by."""
        return (self.centred(x).square().mean(-1, keepdim=True) + self.eps).sqrt()


@dataclass(frozen=True, eq=False)
class Read:
    """A site computed from the residual: norm(x) @ weight + bias, by head.

    `weight` is None where the normed residual itself is the site (`mlp_normed`).
    """

    norm: Norm | None
    weight: Float[Tensor, "head d_model d_head"] | None = None
    bias: Float[Tensor, "head d_head"] | None = None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Tensor:
        """The whole site: [*batch head d_head], or [*batch d_model]."""
        x = x if self.norm is None else self.norm(x)
        if self.weight is None:
            return x
        n_heads, _, d_head = self.weight.shape
        weight = self.weight.transpose(0, 1).flatten(1).to(x.dtype)
        y = (x @ weight).unflatten(-1, (n_heads, d_head))
        return y if self.bias is None else y + self.bias

    def head(
        self, n: int, x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_head"]:
        """One head of the site."""
        assert self.weight is not None
        x = x if self.norm is None else self.norm(x)
        y = x @ self.weight[n].to(x.dtype)
        return y if self.bias is None else y + self.bias[n]


@dataclass(frozen=True, eq=False)
class Write:
    """What goes to the residual: factor * post(parts @ weight + bias).

    For heads the parts are z, [batch pos head d_head]; for an MLP its neurons after
    the nonlinearity, and `weight` is [neuron d_model]. `weight` is None where an
    MLP has no such matrix (experts), and only its output is known.
    """

    weight: Tensor | None
    bias: Float[Tensor, " d_model"] | None = None
    post: Norm | None = None
    factor: float = 1.0

    def __call__(self, parts: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The whole output."""
        assert self.weight is not None
        total = parts.flatten(parts.ndim - self.weight.ndim + 1) @ self.weight.flatten(
            0, -2
        )
        total = total if self.bias is None else total + self.bias
        total = total if self.post is None else self.post(total)
        return total * self.factor

    def parts(
        self, z: Float[Tensor, "batch pos head d_head"], out: Tensor | None = None
    ) -> Float[Tensor, "batch pos head d_model"]:
        """What each head writes, biases left out.

        After a post-norm a head has its share of the output at the scale of `z`'s
        own run, frozen: shares and bias sum to the output.
        """
        assert self.weight is not None
        # Half precision as float32: heads' shares are to be summed.
        z = at_least_float32(z)
        share = torch.einsum("bphd,hdm->bphm", z, self.weight.to(z.dtype))
        if self.post is not None:
            whole = share.sum(2) if self.bias is None else share.sum(2) + self.bias
            share = self.post.centred(share) / self.post.scale(whole)[:, :, None]
            share = share * self.post.gain
        return share * self.factor if self.factor != 1 else share

    def frozen_bias(
        self, z: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What belongs to no head: the output less `parts`."""
        return self(z) - self.parts(z).sum(2)


@dataclass(frozen=True, eq=False)
class Unembed:
    """Logits: cap * tanh(scale * (norm(resid) @ weight + bias) / cap).

    `cap` None: no cap. `scale` multiplies (logit scale of some families).
    """

    norm: Norm | None
    weight: Float[Tensor, "d_model vocab"]
    bias: Float[Tensor, " vocab"] | None
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Tensor:
        """The model's logits."""
        return self.of(resid)

    def of(
        self,
        resid: Float[Tensor, "*batch d_model"],
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Tensor:
        """Logits of some tokens, in the order given; None for all."""
        x = resid if self.norm is None else self.norm(resid)
        chosen = slice(None) if vocabulary is None else vocabulary
        y = x @ self.weight[:, chosen].to(x.dtype)
        y = y if self.bias is None else y + self.bias[chosen]
        return self.capped(y * self.scale if self.scale != 1 else y)

    def capped(self, logits: Tensor) -> Tensor:
        """Soft cap, where there is one."""
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


@runtime_checkable  # the shape checker needs isinstance
class Wiring(Protocol):
    """A model's reads and writes, layer by layer; tensors are views of its weights."""

    @property
    def has_attention(self) -> bool:
        """Whether its layers have heads."""
        ...

    @property
    def has_mlp(self) -> bool:
        """Whether its layers have MLPs."""
        ...

    def attention_read(self, layer: int, port: Port) -> Read:
        """How q, k or v come from resid_pre."""
        ...

    def mlp_read(self, layer: int) -> Read:
        """How mlp_normed comes from resid_mid (resid_pre in parallel blocks)."""
        ...

    def attention_write(self, layer: int) -> Write:
        """How attn_out comes from z."""
        ...

    def mlp_write(self, layer: int) -> Write:
        """How mlp_out comes from mlp_post."""
        ...

    @property
    def unembed(self) -> Unembed:
        """How logits come from the last resid_post."""
        ...


_known: "weakref.WeakKeyDictionary[Any, Wiring]" = weakref.WeakKeyDictionary()


def wiring(model: Any) -> Wiring:
    """A model's wiring, proved on a probe the first time it is asked for.

    Raises:
        ValueError: the model's queries, outputs or logits are not what these weights
            give; the message says which and by how much.
    """
    if model not in _known:
        with torch.no_grad():
            _known[model] = _proved(model)
    return _known[model]


def _proved(model: Any) -> Wiring:
    away = offloaded(model.plain.model) if hasattr(model, "plain") else []
    if away:
        raise ValueError(
            f"wiring: {len(away)} weights of {model.name} are offloaded ({away[0]}, "
            "...), and attribution to edges and logits reads them all. Load the model "
            "with a device_map of devices alone, or use node methods "
            "(ms.attribution_patching, ms.patch_sweep), which read none."
        )
    if hasattr(model, "toy"):
        from mechsink.models.wiring_toy import ToyWiring

        found: Wiring = ToyWiring(model.toy)
    elif hasattr(model, "bridge"):
        from mechsink.models.wiring_bridge import BridgeWiring

        found = BridgeWiring(model)  # type: ignore[assignment]  # cached_property
    elif hasattr(model, "refusal"):
        raise ValueError(
            model.refusal(
                "wiring", "ms.patch_sweep, ms.ablate and ms.sink_scores work there."
            )
        )
    else:
        raise ValueError(
            f"wiring: the weights of a {type(model).__name__} are not at hand. "
            "Load the model through ms.load_model."
        )
    _check_sites(found, model.shape, model.name)
    prove(found, model.shape, unchecked_run(model), model.name, model.device)
    return found


def _check_sites(wiring: Wiring, shape: ModelShape, name: str) -> None:
    """Raise ValueError if a read of the wiring has no site to be seen and edited at."""
    needed = {"resid_pre", "resid_post", "attn_out", "mlp_out"}
    needed |= {"q", "k", "v", "z"} if wiring.has_attention else set()
    needed |= {"mlp_normed"} if wiring.has_mlp else set()
    missing = sorted(needed - shape.sites)
    if missing:
        raise ValueError(
            f"wiring: {name} has no {', '.join(missing)} that can be read and edited, "
            "so edges and logits can't be attributed; leaving these components out "
            "would give wrong numbers. Node methods (ms.attribution_patching, "
            "ms.patch_sweep) work on the sites that it has."
        )


def prove(
    wiring: Wiring,
    shape: ModelShape,
    run: Callable[..., Run],
    name: str,
    device: torch.device,
) -> None:
    """Raise ValueError unless weights and norms give the sites of a probe run."""
    names = {"resid_pre", "resid_mid", "attn_out", "z", "q", "k", "v", "mlp_normed",
             "mlp_post", "mlp_out", "resid_post"} & shape.sites  # fmt: skip
    sites = [site for name in names for site in shape.all_sites(name)]
    seen = run(probe_tokens(shape, device), read=sites)
    cache = seen.cache
    eps = max(torch.finfo(t).eps for t in (seen.logits.dtype, torch.float32))
    allowed = min(2000 * eps, 0.05)

    def require(what: str, got: Tensor, want: Tensor) -> None:
        off = float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
        if not off <= allowed:
            raise ValueError(
                f"wiring: in {name}, {what} is not what its weights give (off by "
                f"{off:.1e} of the largest entry, allowed {allowed:.0e}), so edges and "
                "logits can't be attributed. This family computes it in a way of its "
                "own; node methods (ms.attribution_patching, ms.patch_sweep) need "
                "no weights and still work."
            )

    for layer in range(shape.n_layers):
        at = {n: cache[Site(n, layer)] for n in names}
        pre = at["resid_pre"]
        if wiring.has_attention:
            for port in PORTS:
                got = wiring.attention_read(layer, port)(pre)
                require(f"{port} of layer {layer}", got, at[port])
            write = wiring.attention_write(layer)
            require(f"attn_out of layer {layer}", write(at["z"]), at["attn_out"])
        if wiring.has_mlp:
            got = wiring.mlp_read(layer)(at.get("resid_mid", pre))
            require(f"mlp_normed of layer {layer}", got, at["mlp_normed"])
            write = wiring.mlp_write(layer)
            if write.weight is not None and "mlp_post" in at:
                got = write(at["mlp_post"])
                require(f"mlp_out of layer {layer}", got, at["mlp_out"])
    last = cache[Site("resid_post", shape.n_layers - 1)]
    require("the logits", wiring.unembed(last), seen.logits)
