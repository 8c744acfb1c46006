"""A template's slots: their names and forms, and whether values fit into them."""

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 2**62
"""Combinations of values that can be numbered."""


def check_template(
    template: str, slots: Mapping[str, Sequence[Any]], n: int | None
) -> None:
    """Raise ValueError where slots, values or `n` do not fit the template."""
    fields = _fields(template)
    named = [name for name, _ in fields]
    if not named or sorted(named) != sorted(slots):
        raise ValueError(
            f"SlotPrompts: the template {template!r} has slots {named}, "
            f"slots= names {list(slots)}. Give values for each slot, write "
            "each once, as in '{A}+{B}=', and braces of the text as {{ and }}."
        )
    for name, values in slots.items():
        if len(values) < 2 or len({str(value) for value in values}) < len(values):
            raise ValueError(
                f"SlotPrompts: slot {name!r} has values {list(values)[:8]}. Give "
                "at least two, all different; write a fixed one into the template."
            )
    for name, written in fields:
        for value in slots[name]:
            _check_written(name, written, value)
    n_combinations = math.prod(len(values) for values in slots.values())
    if n_combinations > MOST:
        raise ValueError(
            f"SlotPrompts: the values have about 1e{math.log10(n_combinations):.0f} "
            f"combinations. Allowed: {MOST:.0e}. Give fewer slots or values."
        )
    if n is not None and not 1 <= n <= n_combinations:
        raise ValueError(
            f"SlotPrompts: n={n}, but the values have {n_combinations} "
            "combinations, each drawn at most once. Allowed: 1 to that, or None "
            "for all."
        )


def _fields(template: str) -> list[tuple[str, str]]:
    """Names of a template's slots, in order, and how each is written: "{A:>3}".

    Raises:
        ValueError: a brace alone, or a slot whose name is more than a name, such as
            {A.x}, which would look inside its value.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"SlotPrompts: the template {template!r} can't be read ({error}). Write a "
            "slot as {A}, and braces of the text as {{ and }}."
        ) from error
    fields = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or "{" in (form or ""):
            raise ValueError(
                f"SlotPrompts: the template {template!r} has a slot {name!r}. Give "
                "each a name of letters and digits, as in {A}, and write braces of the "
                "text as {{ and }}."
            )
        how = f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
        fields.append((name, f"{{{name}{how}}}"))
    return fields


def _check_written(name: str, written: str, value: Any) -> None:
    """Raise ValueError if a slot's value can't be written as the template says."""
    if written == f"{{{name}}}":
        return
    try:
        written.format(**{name: value})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"SlotPrompts: the template writes slot {name!r} as {written}, which "
            f"doesn't fit its value {value!r} ({error}). Write {{{name}}} alone."
        ) from error
