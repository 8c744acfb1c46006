"""ACDC's loop over edges, with several trials in a batch.

Decisions depend on those before, so the next few are guessed: if all of these edges
are cut (or all restored), what does each trial give? One batch answers, and decisions
count up to the first that was guessed wrong. The circuit is that of the plain loop.
May import: rooms up to attribution.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool

from mechsink.attribution.wires import Wires
from mechsink.circuits.evaluation import CircuitRuns
from mechsink.circuits.graph import Edge
from mechsink.circuits.pruning import feeds_of
from mechsink.progress import Advance

Objective = Literal["kl", "metric"]
Order = Literal["reverse", "normal"]
AT_ONCE = 64
"""Most trials in a batch: more are seldom guessed right."""


@dataclass(eq=False)
class Search:
    """One pass over all edges; `trials` counts runs of all prompts."""

    runs: CircuitRuns
    objective: Objective
    full: float  # mean metric of the full model
    tau: float
    order: Order
    scores: dict[Edge, float] = field(default_factory=dict)
    measured: int = 0
    trials: int = 0
    cuts: float = 0.9  # share of late decisions that cut, recent ones weighing most

    def run(self, keep: Bool[np.ndarray, "s t"], advance: Advance) -> np.ndarray:
        """What is kept of `keep`."""
        wires = self.runs.ask.wires
        todo = _sequence(wires, keep, self.order)
        mean = float(self.runs.values(keep[None]).mean())
        at = 0
        while True:
            guess = self.cuts >= 0.5
            plan, rest = self._plan(todo, at, keep, guess)
            if not plan:
                advance(len(todo) - at)
                return rest
            means = self.runs.values(np.stack([mask for _, mask in plan])).mean(1)
            self.trials += len(plan)
            for (place, mask), value in zip(plan, means, strict=True):
                self.measured += 1
                value = float(value)
                cut = self._harm(value) - self._harm(mean) < self.tau
                self.cuts = 0.8 * self.cuts + 0.2 * cut
                keep = mask
                if cut:
                    mean = value
                else:
                    keep[todo[place]] = True
                    self.scores[self._name(todo[place])] = self._score(value, mean)
                advance(place + 1 - at)
                at = place + 1
                if cut != guess:
                    break  # what follows was tried in another state than this

    def _plan(
        self, todo: list[tuple[int, int]], at: int, keep: np.ndarray, guess: bool
    ) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """Next edges to measure, each with what is kept when it is cut.

        Also what is kept after them all, if every guess is right.
        """
        likely = self.cuts if guess else 1 - self.cuts
        # Half the run of right guesses to be expected: few trials are then in vain.
        size = max(1, int(0.5 / (1 - likely + 0.5 / AT_ONCE)))
        size = min(size, self.runs.at_once)
        feeds = feeds_of(self.runs.ask.wires)
        outputs = {self.runs.ask.wires.target_index[t] for t in self.runs.ask.outputs}
        state = keep.copy()
        plan: list[tuple[int, np.ndarray]] = []
        for place in range(at, len(todo)):
            if len(plan) == size:
                break
            edge = todo[place]
            target = edge[1]
            state[edge] = False
            # All edges of what the target feeds have been decided by now.
            if target in outputs or state[feeds[:, target]].any():
                plan.append((place, state.copy()))
                state[edge] = not guess
        return plan, state

    def _harm(self, mean: float) -> float:
        return mean if self.objective == "kl" else abs(self.full - mean)

    def _score(self, new: float, old: float) -> float:
        return new - old if self.objective == "kl" else old - new

    def _name(self, edge: tuple[int, int]) -> Edge:
        wires = self.runs.ask.wires
        return wires.sources[edge[0]], wires.targets[edge[1]]


def _sequence(
    wires: Wires, keep: Bool[np.ndarray, "s t"], order: Order
) -> list[tuple[int, int]]:
    """Edges in the order of trial: targets from the last one back."""
    step = -1 if order == "reverse" else 1
    return [
        (int(source), target)
        for target in reversed(range(len(wires.targets)))
        for source in np.flatnonzero(keep[:, target])[::step]
    ]
