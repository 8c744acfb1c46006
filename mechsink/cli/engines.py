"""Options that spread a verb's work over processes or machines."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mechsink.cli.choices import ENGINES, offer

EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Work pair by pair: here, in a pool of processes, or on ray. Parts are "
        "kept and the same command goes on where it stopped. Default: in batches, "
        "in this process.",
        autocompletion=offer(ENGINES),
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Of --engine. Default: one a core.", min=1)
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster, or auto. Default: Ray starts here."),
]


def spreading(
    engine: str | None, workers: int | None, address: str | None, skip_failed: bool
) -> Callable[[Callable[..., Any], Any, Path], Callable[..., Any]] | None:
    """Makes (measure, model to send, folder of parts) a measure that is spread.

    None where no engine was asked for.

    Raises:
        ValueError: no such engine, or options that mean nothing without one.
    """
    if engine is None:
        for name, given in (("--workers", workers), ("--address", address)):
            if given is not None:
                raise ValueError(
                    f"{name} {given} means nothing without --engine. Add --engine pool "
                    "or --engine ray, or leave it out."
                )
        return None
    from mechsink.engines.engine import as_engine
    from mechsink.engines.spread import spread

    where = as_engine(engine, workers, address)

    def over(measure: Callable[..., Any], model: Any, folder: Path) -> Any:
        def spread_measure(_: Any, pairs: Any, *args: Any, **options: Any) -> Any:
            return spread(
                measure,
                model,
                pairs,
                *args,
                engine=where,
                folder=folder,
                skip_failed=skip_failed,
                **options,
            )

        return spread_measure

    return over
