"""`spread`: one measurement over many prompts, in processes or on many machines."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mechsink.engines.engine import Engine, Outcome, Work, as_engine
from mechsink.engines.identity import identity
from mechsink.engines.joining import joined
from mechsink.engines.store import Store
from mechsink.models.any_model import any_model
from mechsink.models.carried import Carried, carried
from mechsink.models.memory import planned_memory
from mechsink.progress import Advance, bar
from mechsink.prompts import PromptPairs
from mechsink.results import Result
from mechsink.run import Model

R = TypeVar("R", bound=Result)
Prompts = PromptPairs | Tensor | Sequence[str]


class PiecesFailed(RuntimeError):
    """Some prompts gave an error; what the others gave is kept in the folder."""


@any_model
def spread(
    measure: Callable[..., R],
    model: Model | str,
    prompts: Prompts,
    *args: Any,
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    folder: Path | str | None = None,
    skip_failed: bool = False,
    load: Mapping[str, Any] | None = None,
    memory: float = 4.0,
    progress: bool | None = None,
    **options: Any,
) -> R:
    """Measure prompt by prompt, wherever there is a worker, and join the results.

        ms.spread(ms.patch_sweep, "smollm2", pairs, ms.logit_diff, site="z")

    A piece of work is one prompt (pair) with one thread, in every engine: which one,
    how many workers, what was lost and resumed on the way changes no bit of the
    result, on the same kind of processor. Against one call over all prompts, which
    runs them in batches, it differs by rounding. Intervals and tests over prompts are
    made of all prompts together, as in one call.

    Args:
        measure: called as measure(model, prompt, *args, **options) for every prompt.
            To give it an option that has a name of this function's own, such as
            engine="cells", pass functools.partial(ms.patch_sweep, engine="cells").
        model: the name that `load_model` knows it by, which every worker loads; or a
            loaded model, or any model object, which is sent to them.
        prompts: `PromptPairs`, tokens Int[prompt pos], or texts.
        args: what else it is given by place: the metric.
        engine: "here" (this process), "pool" (processes of this machine), "ray", or an
            `Engine`.
        workers: how many; default: one a core.
        address: of a Ray cluster: "auto", or where its head is; default: Ray is
            started on this machine.
        folder: keeps each prompt's result as it comes, then the whole; called again on
            it, the same call goes on where it stopped. Held by one process at a time.
        skip_failed: leave out prompts that give an error; meta["left_out"] has them by
            number. Default: an error at the end, when all others are done.
        load: options of `load_model`, for a model given by name.
        memory: GiB that a worker plans its batches for, whatever is free. Part of what
            is asked: it decides the last bits.
        progress: show prompts done, rate and time left; default: on terminals and
            in notebooks.
        options: of `measure`.

    Returns:
        What `measure` returns, of all prompts.

    Raises:
        ValueError: a measurement whose results can't be joined; a model that can't be
            sent; a folder with other work.
        PiecesFailed: prompts that gave an error.
        RuntimeError: another process holds the folder; workers whose models differ.

    Examples:
        >>> case = ms.planted("and")
        >>> swept = ms.spread(
        ...     ms.patch_sweep, case.model, case.pairs, ms.logit_diff, engine="here"
        ... )
        >>> swept.table.prompt.nunique(), list(swept.table)
        (12, ['prompt', 'layer', 'pos', 'value', 'effect'])
    """
    started = time.perf_counter()
    pieces = _pieces(prompts)
    where = as_engine(engine, workers, address)
    source = _source(model, where, load)
    ask = _Ask(source, partial(measure, **options), args, int(memory * 2**30))
    held = (
        nullcontext()
        if folder is None
        else Store.held(folder, {**ask.identity, "prompts": identity(prompts)})
    )
    with held as store:
        if store is not None and (whole := store.whole()) is not None:
            return whole  # type: ignore[return-value]
        parts, failed = _measured(ask, pieces, where, store, progress)
        if failed and not (skip_failed and parts):
            raise _failure(measure, failed, len(pieces), folder)
        kept = [parts[number] for number in sorted(parts)]
        _require_one_model(kept)
        result = joined(kept)
        result.meta.update(
            engine=where.name,
            memory_gib=memory,
            left_out={str(number): str(failed[number]) for number in sorted(failed)},
            duration_s=round(time.perf_counter() - started, 3),
        )
        if store is not None:
            store.finish(result)
    return result  # type: ignore[return-value]


@dataclass(frozen=True)
class _Ask:
    """What every worker is sent."""

    source: Any  # opens the model
    measure: Callable[..., Result]
    args: tuple[Any, ...]
    memory: int

    @property
    def identity(self) -> dict[str, Any]:
        """What is asked of each prompt."""
        return {
            "measure": identity(self.measure),
            "arguments": identity(self.args),
            "memory": self.memory,
            **self.source.identity,
        }

    def open(self) -> tuple[Model, list[float]]:
        model = self.source.open()
        with planned_memory(self.memory):
            return model, _fingerprint(model)

    def do(
        self, opened: tuple[Model, list[float]], piece: Any, advance: Advance
    ) -> Result:
        model, fingerprint = opened
        with planned_memory(self.memory):
            prompts = piece.to(model.device) if isinstance(piece, Tensor) else piece
            result = self.measure(model, prompts, *self.args)
        if not isinstance(result, Result):
            raise ValueError(
                f"spread: the measurement gave a {type(result).__name__}, not one of "
                "mechsink's results. Call a function such as ms.patch_sweep."
            )
        result.meta["fingerprint"] = fingerprint
        return result


@dataclass(frozen=True)
class _Loaded:
    """A model that stays in this process."""

    model: Model

    def open(self) -> Model:
        return self.model

    @property
    def identity(self) -> dict[str, Any]:
        try:
            return carried(self.model).identity  # as if it were sent
        except ValueError:
            return {"model": self.model.name}  # its fingerprint is in every part


def _source(
    model: Model | str, engine: Engine, load: Mapping[str, Any] | None
) -> Carried | _Loaded:
    if engine.name == "here" and not isinstance(model, str) and not load:
        return _Loaded(model)
    return carried(model, load)


def _measured(
    ask: _Ask,
    pieces: Sequence[Any],
    engine: Engine,
    store: Store | None,
    progress: bool | None,
) -> tuple[dict[int, Result], dict[int, Any]]:
    """Results and errors by number of the prompt."""
    parts: dict[int, Result] = {}
    failed: dict[int, Any] = {}
    if store is not None:
        found = {number: store.part(number) for number in range(len(pieces))}
        parts = {n: part for n, part in found.items() if part is not None}
    waiting = [number for number in range(len(pieces)) if number not in parts]
    if not waiting:
        return parts, failed
    work = Work(ask.open, ask.do, short=True)
    with bar(_title(ask.measure), len(waiting), progress) as advance:
        todo = [pieces[number] for number in waiting]
        for place, outcome in engine.run(work, todo, lambda steps=1: None):
            _take(waiting[place], outcome, parts, failed, store)
            advance()
    return parts, failed


def _take(
    number: int,
    outcome: Outcome,
    parts: dict[int, Result],
    failed: dict[int, Any],
    store: Store | None,
) -> None:
    if not outcome.is_done:
        failed[number] = outcome.value
        return
    parts[number] = outcome.value
    if store is not None:
        store.keep(number, outcome.value)


def _pieces(prompts: Prompts) -> list[Any]:
    """One prompt (pair) each."""
    if isinstance(prompts, PromptPairs):
        return [_pair(prompts, i) for i in range(len(prompts))]
    if isinstance(prompts, Tensor) and prompts.ndim == 2 and len(prompts):
        return [prompts[i : i + 1].cpu() for i in range(len(prompts))]
    texts = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    if texts and len(prompts) and all(isinstance(text, str) for text in prompts):
        return [[text] for text in prompts]
    raise ValueError(
        f"spread: prompts are {_shown(prompts)}. Allowed: PromptPairs, tokens "
        "Int[prompt pos], or a list of texts; at least one."
    )


def _pair(pairs: PromptPairs, i: int) -> PromptPairs:
    def mine(rows: Any) -> Any:
        if rows is None or len(rows) == 1 < len(pairs):  # one answer for all
            return rows
        return rows[i : i + 1]

    return replace(
        pairs,
        clean=mine(pairs.clean),
        corrupted=mine(pairs.corrupted),
        answers=mine(pairs.answers),
        wrong=mine(pairs.wrong),
    )


def _shown(prompts: Any) -> str:
    if isinstance(prompts, Tensor):
        return f"a tensor of shape {tuple(prompts.shape)}"
    return f"a {type(prompts).__name__}"


def _title(measure: Callable[..., Any]) -> str:
    while isinstance(measure, partial):
        measure = measure.func
    return measure.__name__.replace("_", " ")


@torch.no_grad()
def _fingerprint(model: Model) -> list[float]:
    """Some logits: they tell other weights under the same name."""
    tokens = torch.arange(min(4, model.shape.d_vocab), device=model.device)[None]
    return model.run(tokens).logits[0, -1, :16].double().cpu().tolist()


def _require_one_model(parts: Sequence[Result]) -> None:
    """Raise RuntimeError if workers, or an earlier call, had other weights."""
    prints = torch.tensor([part.meta["fingerprint"] for part in parts])
    apart = (prints - prints[0]).abs().amax(1)
    close = 1e-3 * max(float(prints[0].abs().max()), 1e-30)
    other = (apart > close).nonzero().flatten().tolist()
    if other:
        raise RuntimeError(
            f"spread: {len(other)} of {len(parts)} prompts were run by a model with "
            f"other weights than the rest (the first: {other[0]}). The name stands for "
            "different models on different machines, or its files were changed since "
            "the folder was begun. Give a new folder, and one model everywhere."
        )


def _failure(
    measure: Callable[..., Any],
    failed: Mapping[int, BaseException],
    n: int,
    folder: Path | str | None,
) -> PiecesFailed:
    lines = [f"prompt {number}: {error}" for number, error in sorted(failed.items())]
    more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
    kept = (
        "skip_failed=True leaves them out"
        if folder is None
        else f"The others are kept in {folder}; mend these and call again, or leave "
        "them out with skip_failed=True"
    )
    error = PiecesFailed(
        f"spread: {_title(measure)} failed on {len(failed)} of {n} prompts. {kept}.\n  "
        + "\n  ".join(lines[:5])
        + more
    )
    error.__cause__ = next(iter(failed.values()))
    return error
