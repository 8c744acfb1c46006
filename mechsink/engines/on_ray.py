"""`RayCluster`: workers on many machines.

Machines may come and go: work that is lost with one is done on another.
Needs the extra `ray` here and mechsink, in the same version, everywhere.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mechsink.engines.engine import TRIES, Outcome, Work, WorkerLost
from mechsink.engines.worker import Worker, transportable
from mechsink.progress import Advance

GROUP = 8
"""Short items sent together, at most."""
ASK = 0.5
"""Seconds between two looks at what is done."""


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster.

    Args:
        address: of a running cluster, "auto" for the one that this machine is in;
            None: Ray is started here, and stopped at the end, unless it runs already.
        workers: how many; default: one for every core of the cluster, or with `gpus`
            as many as there are GPUs for.
        gpus: GPUs that each worker has to itself; may be a part of one.
        name: for `meta`.

    Examples:
        >>> engine = ms.RayCluster(address="auto", workers=4)
        >>> engine.name  # then: ms.spread(..., engine=engine)
        'ray'
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0
    name: str = "ray"

    def run(
        self, work: Work, items: Sequence[Any], advance: Advance
    ) -> Iterator[tuple[int, Outcome]]:
        """See `Engine.run`.

        Args:
            work: what workers do; `open` once, then `do` for each item.
            items: one piece of work each.
            advance: told how many steps are done.
        """
        ray = ray_itself()
        with self._connected(ray):
            n = min(self._n_workers(ray), len(items))
            actor = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(_Actor)
            sent = ray.put(work)
            waiting = deque(_groups(len(items), n, work.short))
            tries = dict.fromkeys(range(len(items)), 0)
            doing: dict[Any, tuple[list[int], Any]] = {}  # promise: items, its worker
            workers: list[Any] = []

            def give(worker: Any) -> None:
                group = waiting.popleft()
                doing[worker.do.remote([items[i] for i in group])] = group, worker

            try:
                for _ in range(n):
                    workers.append(actor.remote(sent))
                for worker in workers * (2 if work.short else 1):
                    if waiting:
                        give(worker)
                while doing:
                    ready, _ = ray.wait(list(doing), timeout=ASK)
                    for promise in ready:
                        group, worker = doing.pop(promise)
                        try:
                            outcomes, steps = ray.get(promise)
                        except ray.exceptions.RayActorError as error:
                            is_new = worker in workers  # or known to be gone
                            if is_new:
                                workers.remove(worker)
                                workers.append(actor.remote(sent))
                            worker = workers[-1]
                            # One by one from now on: it shows which item it was.
                            if is_new and len(group) == 1:
                                tries[group[0]] += 1
                                if tries[group[0]] == TRIES:
                                    yield group.pop(), Outcome("failed", _lost(error))
                            waiting.extend([i] for i in group)
                        else:
                            advance(steps)
                            for number, outcome in zip(group, outcomes, strict=True):
                                if outcome.kind == "not opened":
                                    raise outcome.value
                                yield number, outcome
                        if waiting:
                            give(worker)
            finally:
                for worker in workers:
                    ray.kill(worker)

    def _n_workers(self, ray: Any) -> int:
        has = ray.cluster_resources()
        fit = int(has.get("CPU", 1))
        if self.gpus:
            fit = min(fit, int(has.get("GPU", 0) / self.gpus))
        if fit < 1:
            raise ValueError(
                f"RayCluster: each worker wants a core and {self.gpus} GPUs; the "
                f"cluster has {has.get('CPU', 0):.0f} cores, {has.get('GPU', 0):.0f} "
                "GPUs. Ask for less, or add a machine with one."
            )
        return min(self.workers or fit, fit)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:  # one of our own: it reports to nobody
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            quiet |= {"include_dashboard": False, "num_cpus": self.workers}
        try:
            ray.init(address=self.address or "local", **quiet)
        except ConnectionError as error:
            raise ConnectionError(
                f"RayCluster: no cluster answers at address={self.address!r} "
                f"({str(error).splitlines()[0]}). Start one with `ray start --head` "
                "and name its address, or leave address out to use this machine."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


class _Actor:
    """A worker in a process of Ray."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)
        self._worker = Worker(work)

    def do(self, items: Sequence[Any]) -> tuple[list[Outcome], int]:
        """The outcomes, and what they advanced by."""
        done = 0

        def advance(steps: int = 1) -> None:
            nonlocal done
            done += steps

        outcomes = [transportable(self._worker.do(item, advance)) for item in items]
        return outcomes, done


def _groups(n_items: int, n_workers: int, short: bool) -> list[list[int]]:
    """What goes to a worker at a time: a message of Ray's costs milliseconds too."""
    size = max(1, min(GROUP, n_items // (8 * n_workers))) if short else 1
    numbers = list(range(n_items))
    return [numbers[i : i + size] for i in range(0, n_items, size)]


def ray_itself() -> Any:
    """The library, which is an extra.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ImportError(
            'engine="ray" needs Ray: pip install "mechsink[ray]". Without it, '
            'engine="pool" uses the processes of this machine.'
        ) from error
    return ray


def _lost(error: Exception) -> WorkerLost:
    return WorkerLost(
        f"{TRIES} workers died at this piece of work, the last with: "
        f"{str(error).splitlines()[0]} Give each more memory by asking for fewer "
        "workers, or try the piece alone with engine='here'."
    )
