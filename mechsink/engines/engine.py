"""`Engine`: somewhere to do many pieces of work, none of which needs another.

Every engine does a piece with one thread, so that all give the same bits (on the same
kind of processor). A piece that is lost with its worker is done again by another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from mechsink.progress import Advance

TRIES = 3
"""How often a piece is begun before its workers' deaths are put down to it."""


@dataclass(frozen=True)
class Work:
    """What workers do: `open()` once in each, then `do(opened, item, advance)`.

    `short`: an item takes milliseconds, so that a worker is given more before it is
    done with one. Of long items none should wait behind another.
    """

    open: Callable[[], Any]
    do: Callable[[Any, Any, Advance], Any]
    short: bool = False


class WorkerLost(RuntimeError):
    """A piece of work was given up: its workers died, `TRIES` of them."""


@dataclass(frozen=True)
class Outcome:
    """What became of one item: a value, or the error that it ended with."""

    kind: Literal["done", "failed", "not opened"]
    value: Any

    @property
    def is_done(self) -> bool:
        """Whether `value` is what the work returned."""
        return self.kind == "done"


@runtime_checkable
class Engine(Protocol):
    """Does work on items, in an order of its own."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def run(
        self, work: Work, items: Sequence[Any], advance: Advance
    ) -> Iterator[tuple[int, Outcome]]:
        """Number and outcome of each item, as they are finished.

        `advance` is called with what the work advanced by. Leaving the iterator ends
        the workers.

        Raises:
            Exception: whatever `work.open` raised; then there are no workers.
        """
        ...


EngineName = Literal["here", "pool", "ray"]


def as_engine(
    engine: Engine | str, workers: int | None = None, address: str | None = None
) -> Engine:
    """An engine by its name.

    Args:
        engine: "here" (this process), "pool" (processes of this machine), "ray" (a
            Ray cluster, or Ray on this machine), or an engine, returned as it is.
        workers: how many of them; default: one a core, of the whole cluster for Ray.
        address: of a running Ray cluster, "auto" for the one this machine is in;
            default: Ray is started here.

    Raises:
        ValueError: no such engine, or options that it does not have.
        ImportError: Ray is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine not in ("here", "pool", "ray"):
        raise ValueError(
            f"engine={engine!r} is none. Allowed: 'here' (this process), 'pool' "
            "(processes of this machine) or 'ray'."
        )
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}. Allowed: 1 and more, or leave it out.")
    if address is not None and engine != "ray":
        raise ValueError(
            f"address={address!r} means nothing to the engine {engine!r}. Leave it "
            "out, or take engine='ray'."
        )
    if engine == "ray":
        from mechsink.engines.on_ray import RayCluster, ray_itself

        ray_itself()  # before a model is loaded for it
        return RayCluster(address, workers)
    from mechsink.engines.local import Here, Pool

    if engine == "pool":
        return Pool(workers)
    if workers not in (None, 1):
        raise ValueError(
            f"workers={workers} means nothing to the engine 'here', which works in "
            "this process. Take engine='pool'."
        )
    return Here()
