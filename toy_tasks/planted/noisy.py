"""A gate whose faithfulness is known exactly, on prompts that differ from each other.

`<s> x y z =`, each letter a level 0 to 3. Three heads of layer 0 look at one place
each, from the last token, and add the levels up ("sum"); the MLP takes off a threshold
and cuts at zero ("gate"). In a clean prompt each level is 1, 2 or 3, in a corrupted one
0 or 1, independently: 27 * 8 = 216 pairs, all equally likely. A circuit of some arms
gets clean levels through them and corrupted ones through the others; expectations are
sums over the 216 pairs, in arithmetic that does not use the model.

Directions: "level" (0 to 3), "pos" one-hot position, "sum", "gate".
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from toy_tasks.planted.case import Edge, Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.workbench import Workbench

VOCAB = ("0", "1", "2", "3", "=", "yes", "no", "<s>")
CLEAN, CORRUPTED = (1, 2, 3), (0, 1)
EQUALS, YES, NO, BOS = 4, 5, 6, 7
N_ARMS, N_POS = 3, 5
SCORE, THRESHOLD = 4.0, 2.0


@dataclass(frozen=True, eq=False)
class NoisyGate:
    """A planted model, its whole population of prompts, and one circuit's truth.

    `faithfulness` = (circuit - ablated) / (full - ablated), each the expectation of
    the metric, logit["yes"] - logit["no"], over the population: circuit with the
    corrupted value on every edge outside it, ablated with it on all edges.
    """

    population: Planted  # all pairs, each once
    circuit: frozenset[Edge]
    full: float  # logits, as are the next two
    ablated: float
    of_circuit: float

    @property
    def faithfulness(self) -> float:
        """Ratio of expectations: 1 for a circuit as good as the model."""
        return (self.of_circuit - self.ablated) / (self.full - self.ablated)

    def sample(self, n_prompts: int, seed: int) -> Planted:
        """Independent pairs from the population, with replacement.

        Raises:
            ValueError: `n_prompts` under 1.
        """
        if n_prompts < 1:
            raise ValueError(
                f"NoisyGate.sample: n_prompts={n_prompts}. It must be at least 1; "
                "intervals want 100."
            )
        generator = torch.Generator().manual_seed(seed)
        whole = self.population
        rows = torch.randint(len(whole.clean), (n_prompts,), generator=generator)
        return replace(
            whole,
            clean=whole.clean[rows],
            corrupted=whole.corrupted[rows],
            answers=whole.answers[rows],
            wrong=whole.wrong[rows],
        )


def noisy_gate(
    *, arms: tuple[int, ...] = (0, 1), distractors: bool = True, seed: int = 0
) -> NoisyGate:
    """Three arms into one threshold; the circuit keeps `arms` of them.

    The circuit holds the planted edges of its arms, changing or not. All answers are
    "yes", all wrong tokens "no": the metric is the gate's value, -1/2 to about 6.

    Raises:
        ValueError: arms that there are not, or one twice.
    """
    if len(set(arms)) != len(arms) or not set(arms) <= set(range(N_ARMS)):
        raise ValueError(
            f"noisy_gate: arms={arms}. Allowed: different ones of 0, 1, 2; () keeps "
            "none and has faithfulness 0."
        )
    bench = Workbench(
        "noisy_gate",
        {"level": 1, "pos": N_POS, "sum": 1, "gate": 1},
        d_vocab=len(VOCAB),
        n_ctx=N_POS,
        d_head=16,
        n_heads=N_ARMS,
        n_neurons=1,
        distractors=distractors,
        seed=seed,
    )
    one, positions = torch.ones(1, 1), torch.eye(N_POS)
    level = torch.zeros(1, len(VOCAB))
    level[0, :4] = torch.arange(4)
    bench.embed({"level": level}, {"pos": positions})
    for arm in range(N_ARMS):
        look = torch.zeros(N_POS, N_POS)
        look[-1, 1 + arm] = SCORE
        bench.head(
            0,
            arm,
            q={"pos": look},
            k={"pos": positions},
            v={"level": one},
            o={"sum": one},
        )
    bench.neurons(0, {"sum": one, "const": -THRESHOLD * one}, {"gate": one})
    says = torch.zeros(2, 1, len(VOCAB))
    says[0, 0, YES] = 1
    says[1, 0, NO] = 0.5
    bench.unembed({"gate": says[0], "const": says[1]})

    pairs = torch.tensor(
        [
            (*x, *y)
            for x in itertools.product(CLEAN, repeat=N_ARMS)
            for y in itertools.product(CORRUPTED, repeat=N_ARMS)
        ]
    )
    clean, corrupted = pairs[:, :N_ARMS], pairs[:, N_ARMS:]
    routes = {
        arm: {("input", bench.v(0, arm)), (f"a0.h{arm}", "m0")} for arm in range(N_ARMS)
    }
    constant = {
        arm: {("input", bench.q(0, arm)), ("input", bench.k(0, arm))}
        for arm in range(N_ARMS)
    }
    end, still = ("m0", "logits"), {("input", "m0"), ("input", "logits")}
    n = len(pairs)
    population = finished(
        bench,
        "noisy-gate",
        clean=_prompt(clean),
        corrupted=_prompt(corrupted),
        answers=torch.full((n,), YES),
        wrong=torch.full((n,), NO),
        vocab=VOCAB,
        edges=set().union(*routes.values()) | {end},
        constant=set().union(*constant.values()) | still,
        kinds=1,
        least=0.5,
        gain=0.0,
        saturated=False,
    )
    kept = [routes[arm] | constant[arm] for arm in arms]
    return NoisyGate(
        population=population,
        circuit=frozenset(still.union({end}, *kept)),
        full=_expected(clean, corrupted, range(N_ARMS)),
        ablated=_expected(clean, corrupted, ()),
        of_circuit=_expected(clean, corrupted, arms),
    )


def _prompt(levels: Int[Tensor, "pair arm"]) -> Int[Tensor, "pair pos"]:
    tokens = torch.full((len(levels), N_POS), BOS)
    tokens[:, 1:-1], tokens[:, -1] = levels, EQUALS
    return tokens


def _expected(
    clean: Int[Tensor, "pair arm"],
    corrupted: Int[Tensor, "pair arm"],
    arms: tuple[int, ...] | range,
) -> float:
    """Mean metric when the heads of `arms` see clean levels, the others corrupted.

    A head gives its own place e^score / (e^score + 4) of its attention, each of the
    other four 1 / (e^score + 4).
    """
    own = math.exp(SCORE)
    total: Float64[Tensor, " pair"] = torch.zeros(len(clean), dtype=torch.float64)
    for arm in range(N_ARMS):
        levels = (clean if arm in arms else corrupted).double()
        total += ((own - 1) * levels[:, arm] + levels.sum(1)) / (own + N_POS - 1)
    return ((total - THRESHOLD).relu() - 0.5).mean().item()
