"""What training and run folders ask of a task."""

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.arithmetic import Sums
from toy_tasks.bigram_backcopy import BigramBackcopy
from toy_tasks.text.source_text import SourceText


@runtime_checkable  # the shape checker needs isinstance
class Task(Protocol):
    """A task to train on; a new one needs no base class, but a line in `TASKS`.

    Examples:
        >>> from toy_tasks import Sums, Task
        >>> isinstance(Sums(), Task)
        True
    """

    @property
    def vocab(self) -> list[str]:
        """Token strings, by id."""
        ...

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        ...

    @property
    def bos(self) -> int:
        """Token id of `<s>`, which opens prompts."""
        ...

    @property
    def n_targets(self) -> int | None:
        """How many last tokens of a sequence are learnt; None: all but the first."""
        ...

    def sequences(
        self,
        batch: int,
        n_pos: int,
        seed: int | tuple[int, ...],
        device: str | torch.device = "cpu",
    ) -> Int[Tensor, "batch length"]:
        """Training sequences for a model with `n_pos` positions.

        At most n_pos inputs and one token more, which is only predicted; the same
        seed gives the same tokens on every machine.

        Args:
            batch: sequences.
            n_pos: positions of the model.
            seed: of the draw.
            device: where the tokens go.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the `<s>` that opens a prompt.

        Args:
            text: any that the task can read.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values, with the task's name under "task"."""
        ...


TaskT = TypeVar("TaskT", bound=Task)

TASKS = {"bigram_backcopy": BigramBackcopy, "sums": Sums, "source_text": SourceText}


def task_from_json(data: dict[str, Any]) -> Task:
    """Rebuild the task that a `to_json` wrote.

    Raises:
        ValueError: no such task, or data that lack a part.
    """
    name = data.get("task")
    if name not in TASKS:
        raise ValueError(
            f"load_run: the task is {name!r}. Allowed: {', '.join(map(repr, TASKS))}. "
            "It was written by another program or version."
        )
    return TASKS[name].from_json(data)
