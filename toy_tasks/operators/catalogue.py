"""The published operators, by name, each a composition of parts."""

from toy_tasks.operators.balanced import Sinkhorn, Unitary
from toy_tasks.operators.carriers import (
    Bidirectional,
    Halo,
    Shards,
    ShiftedGroups,
    Window,
)
from toy_tasks.operators.flow import Flow
from toy_tasks.operators.gates import Affine, SigmoidGate, ValueBias
from toy_tasks.operators.kernels import Exponential, Features, Pointwise, Static
from toy_tasks.operators.memory import KeyBias, Pooled, SinkToken
from toy_tasks.operators.normalisers import ClampedSum, SinkLogit, Unnormalised
from toy_tasks.operators.operator import Operator
from toy_tasks.operators.routed import FullOrSparse, HeavyHitters, Regions
from toy_tasks.operators.routed_heads import RoutedHeads

OPERATORS: dict[str, Operator] = {
    # Kernels and normalisers of Gu et al. (row 4) and Guo et al. (row 1).
    "softmax": Operator(),
    "sigmoid": Operator(kernel=Pointwise("sigmoid"), normaliser=Unnormalised()),
    "sigmoid-sum": Operator(kernel=Pointwise("sigmoid")),
    "elu": Operator(kernel=Pointwise("elu"), normaliser=Unnormalised()),
    "elu-sum": Operator(kernel=Pointwise("elu")),
    "elu-features": Operator(kernel=Features("elu"), normaliser=Unnormalised()),
    "elu-features-sum": Operator(kernel=Features("elu")),
    "linear": Operator(kernel=Pointwise("linear"), normaliser=Unnormalised()),
    "linear-clamped": Operator(kernel=Pointwise("linear"), normaliser=ClampedSum()),
    "mlp": Operator(kernel=Features("learned"), normaliser=Unnormalised()),
    "mlp-clamped": Operator(kernel=Features("learned"), normaliser=ClampedSum()),
    "relu": Operator(kernel=Pointwise("relu"), normaliser=Unnormalised(by_rank=True)),
    # Keys that are no tokens (rows 4, 7 and massive activations).
    "key-bias": Operator(memory=KeyBias(value=False)),
    "kv-bias": Operator(memory=KeyBias()),
    "v-bias": Operator(gate=ValueBias()),
    "sink-token": Operator(memory=SinkToken()),
    "softmax1": Operator(normaliser=SinkLogit(learned=False)),
    "sink-logit": Operator(normaliser=SinkLogit()),
    # Gates (rows 8, 9, 16, 17).
    "gate": Operator(gate=SigmoidGate()),
    "gate-head": Operator(gate=SigmoidGate(per="head")),
    "gate-v": Operator(gate=SigmoidGate("v")),
    "gate-k": Operator(gate=SigmoidGate("k")),
    "gate-q": Operator(gate=SigmoidGate("q")),
    "gate-out": Operator(gate=SigmoidGate("out")),
    "affine": Operator(gate=Affine()),
    "affine-scale": Operator(gate=Affine(shift=False)),
    "affine-shift": Operator(gate=Affine(scale=False)),
    "moh": Operator(gate=RoutedHeads(shared=1, top=1)),
    "moh-norm": Operator(gate=RoutedHeads(shared=1, top=1, router="norm")),
    "moh-sinkhorn": Operator(gate=RoutedHeads(shared=1, top=1, router="sinkhorn")),
    # One principle dropped (row 14).
    "uniform": Operator(kernel=Static("uniform")),
    "static": Operator(kernel=Static("learned")),
    "static-random": Operator(kernel=Static("random")),
    "position": Operator(kernel=Static("position")),
    # Balanced (rows 18, 19).
    "flow": Operator(kernel=Features("sigmoid"), normaliser=Flow()),
    "sinkhorn": Operator(normaliser=Sinkhorn()),
    "sinkhorn-masked": Operator(normaliser=Sinkhorn(form="masked")),
    "sinkhorn-targets": Operator(normaliser=Sinkhorn(n_it=21, form="targets")),
    "unitary-qr": Operator(normaliser=Unitary("qr")),
    "unitary-givens": Operator(normaliser=Unitary("givens")),
    # Sparse carriers and coarse memory (rows 7, 20 to 25).
    "window": Operator(carrier=Window(16)),
    "sink-window": Operator(carrier=Window(16, sinks=1)),
    "full-or-sparse": Operator(carrier=FullOrSparse(16, sinks=1)),
    "shifted-groups": Operator(carrier=ShiftedGroups()),
    "heavy-hitters": Operator(carrier=HeavyHitters()),
    "shards": Operator(carrier=Shards()),
    "halo": Operator(carrier=Halo()),
    "regions": Operator(carrier=Regions()),
    "foveal": Operator(
        memory=Pooled(8, window=16),
        carrier=Window(16),
        kernel=Exponential(query_token=True),
    ),
    # Not causal: for tasks that read the whole prompt.
    "bidirectional": Operator(carrier=Bidirectional()),
}
"""Operators by name; docs/operators.md says from where each is."""

MAIN = (
    "softmax",
    "sigmoid",
    "sigmoid-sum",
    "linear",
    "relu",
    "softmax1",
    "kv-bias",
    "gate",
    "affine",
    "flow",
)
"""The ten that the grid of `mechsink.experiments.operators` trains by default."""
