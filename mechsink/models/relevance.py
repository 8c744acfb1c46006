"""Relevance rules: a model's backward pass made linear, its values left alone.

Source: Jafari et al. 2025 (arXiv:2508.21258); the rules are those of layer-wise
relevance propagation (Ali et al. 2022; Arras et al. 2019).
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechsink.models.selfcheck import probe_tokens
from mechsink.models.wiring import Norm
from mechsink.models.wiring_bridge import read_norm as read_bridge_norm
from mechsink.models.wiring_toy import toy_norm as read_toy_norm

_proved: "weakref.WeakSet[Any]" = weakref.WeakSet()


@contextlib.contextmanager
def relevance_rules(model: Any) -> Iterator[None]:
    """Within, gradients through the model follow RelP's rules; values stay the same.

    Norm: its scale is a constant. Attention: so is its pattern. Activation: f(z) is z
    times the constant f(z) / z (0 where z is 0). Gate f(g) u: as the activation for g,
    and each factor passes on half of its gradient, so that together they carry what
    the product does. A final soft cap keeps its own gradient.

    A metric of degree 1 in the logits thus equals sum(x * gradient at x) over any cut x
    through the model, where it has no biases (conservation).

    Raises:
        ValueError: a model that is neither a toy nor a bridged Hugging Face model, or
            one whose norms, patterns or MLPs can't be reached.
    """
    rules = _toy_rules(model) if hasattr(model, "toy") else _bridge_rules(model)
    handles: list[Any] = []
    fired: Counter[str] = Counter()
    must_prove = model not in _proved
    probe = probe_tokens(model.shape, model.device)
    plain = model.run(probe).logits if must_prove else None
    try:
        for rule in rules:
            handles.append(rule.install(fired))
        if plain is not None:
            _prove(model, [rule.name for rule in rules], fired, plain, probe)
            _proved.add(model)
        yield
    finally:
        for handle in handles:
            handle.remove()


def carrying(value: Tensor, path: Tensor) -> Tensor:
    """`value`, with the gradient of `path`."""
    return value.detach() + (path - path.detach()).to(value.dtype)


class NormRule:
    """Holds a norm's scale constant: `before` sees its input, `after` its output."""

    def __init__(self, norm: Norm, name: str) -> None:
        self._norm, self._name = norm, name
        self._x: list[Tensor] = []

    def before(self, x: Tensor) -> None:
        """Keep the input."""
        self._x.append(x)

    def after(self, y: Tensor) -> Tensor:
        """The output, linear in the input."""
        norm, x = self._norm, self._x.pop()
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        path = norm.centred(x) / norm.scale(x).detach() * norm.gain
        with torch.no_grad():
            own = path if norm.bias is None else path + norm.bias
            off = (own - y).abs().max() / y.abs().max().clamp(min=1e-30)
        if not off <= max(2000 * torch.finfo(torch.float32).eps, _eps(y)):
            raise ValueError(
                f"relevance_rules: {self._name} gives something other than a norm with "
                f"its weights would (off by {float(off):.1e}), so its scale can't be "
                "held constant. Take ms.attribution_patching, which needs no rules."
            )
        return carrying(y, path)


class ActivationRule:
    """Before and after a nonlinearity, gated or not."""

    def __init__(self, gated: bool) -> None:
        self._gated = gated
        self._pre: list[Tensor] = []

    def before(self, z: Tensor) -> Tensor:
        """Keeps z; the nonlinearity itself passes nothing back."""
        self._pre.append(z)
        return z.detach()

    def after(self, y: Tensor) -> Tensor:
        """f(z), or f(z) u, with the rules' gradient."""
        z = self._pre.pop()
        ratio = torch.where(z == 0, 0, y / torch.where(z == 0, 1, z)).detach()
        path = z * ratio
        # y itself is linear in u alone, since z was cut off.
        return carrying(y, 0.5 * path + 0.5 * y if self._gated else path)


@dataclass(frozen=True, eq=False)
class Rule:
    """One function at one module: on its output, or (`at_input`) watching its input."""

    name: str
    module: nn.Module
    function: Callable[[Tensor], Tensor | None]
    at_input: bool = False

    def install(self, fired: Counter[str]) -> Any:
        """Hook it in; `fired` counts its calls. The handle has `.remove()`."""

        def before(module: nn.Module, args: Any) -> None:
            fired[self.name] += 1
            self.function(args[0])

        def after(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            fired[self.name] += 1
            return self.function(out)

        if self.at_input:
            return self.module.register_forward_pre_hook(before)
        return self.module.register_forward_hook(after)


def _toy_rules(model: Any) -> list[Rule]:
    toy = model.toy
    norms: list[tuple[str, Any]] = [("ln_final", toy.ln_final)]
    rules: list[Rule] = []
    for layer, block in enumerate(toy.blocks):
        where = f"layer {layer}'s"
        norms += [(f"{where} {name}", getattr(block, name)) for name in ("ln1", "ln2")]
        if block.attn is not None:
            rules.append(Rule(f"{where} pattern", block.attn.hook_pattern, _constant))
        if block.mlp is not None:
            own = ActivationRule(gated=False)
            rules.append(Rule(f"{where} MLP before", block.mlp.hook_pre, own.before))
            rules.append(Rule(f"{where} MLP after", block.mlp.hook_post, own.after))
    for name, module in norms:
        if module is not None and (norm := read_toy_norm(module)) is not None:
            rules += _norm_rules(module, module.hook_normalized, norm, name)
    return rules


def _bridge_rules(model: Any) -> list[Rule]:
    if not hasattr(model, "bridge"):
        raise ValueError(
            f"relevance_rules: a {type(model).__name__} keeps its norms and MLPs to "
            "itself. Load the model with ms.load_model, by the backend "
            '"transformer_lens".'
        )
    from transformer_lens.model_bridge.generalized_components import (
        NormalizationBridge,
    )

    shape, bridge = model.shape, model.bridge
    if "pattern" not in shape.sites or "pattern" in shape.read_only:
        raise _refused(model, "its own attention code lets no pattern be held constant")
    if not hasattr(bridge, "ln_final"):
        raise _refused(model, "its final norm can't be found")
    rules: list[Rule] = []
    norms: list[tuple[str, Any]] = [("ln_final", bridge.ln_final)]
    for layer, block in enumerate(bridge.blocks):
        where = f"layer {layer}'s"
        mine = [
            (f"{where} {name}", module)
            for name, module in block.named_modules()
            if isinstance(module, NormalizationBridge)
            and not name.endswith(("q_norm", "k_norm"))  # the pattern is constant
        ]
        if not mine:
            raise _refused(model, f"{where} norms can't be found")
        norms += mine
        rules.append(Rule(f"{where} pattern", block.attn.hook_pattern, _constant))
        mlp = getattr(block, "mlp", None)
        enter, leave, gate = (
            getattr(mlp, name, None) for name in ("in", "out", "gate")
        )
        if enter is None or leave is None:
            raise _refused(
                model, f"{where} MLP, a {type(mlp).__name__}, is not one MLP"
            )
        own = ActivationRule(gated=gate is not None)
        before = (enter if gate is None else gate).hook_out
        rules.append(Rule(f"{where} MLP before", before, own.before))
        rules.append(Rule(f"{where} MLP after", leave.hook_in, own.after))
    for name, module in norms:
        rules += _norm_rules(module, module.hook_out, read_bridge_norm(module), name)
    return rules


def _norm_rules(module: nn.Module, out: nn.Module, norm: Norm, name: str) -> list[Rule]:
    """Rules of a norm; `out` is the last hook point inside it."""
    own = NormRule(norm, name)
    return [
        Rule(f"{name} before", module, own.before, at_input=True),
        Rule(f"{name} after", out, own.after),
    ]


def _constant(pattern: Tensor) -> Tensor:
    return pattern.detach()


def _prove(
    model: Any, names: list[str], fired: Counter[str], plain: Tensor, probe: Tensor
) -> None:
    """Raise ValueError unless each hook ran once and no logit moved."""
    ruled = model.run(probe).logits
    wrong = [name for name in names if fired[name] != 1]
    if wrong:
        raise _refused(model, f"{wrong[0]} ran {fired[wrong[0]]} times in a pass")
    off = float((ruled - plain).abs().max() / plain.abs().max().clamp(min=1e-30))
    if not off <= max(200 * torch.finfo(torch.float32).eps, _eps(plain)):
        raise _refused(model, f"its logits move by {off:.1e} under the rules")


def _eps(x: Tensor) -> float:
    """What rounding may do in a tensor's dtype."""
    return 20 * torch.finfo(x.dtype).eps


def _refused(model: Any, why: str) -> ValueError:
    return ValueError(
        f"relevance_rules: {model.name} ({model.info['architecture']}) can't be given "
        f"relevance rules: {why}. Take ms.attribution_patching, which works on every "
        "family."
    )
