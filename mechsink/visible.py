"""Texts from outside, made fit to be shown: what can't be seen becomes an escape.

Control characters can move a terminal's cursor, marks of direction turn a line round,
and half a character has no UTF-8: all are shown as \\x1b, \\u202e, \\udc80.
May import: nothing of mechsink.
"""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e"
    "\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """The text with its hidden characters escaped; line breaks and tabs stay."""
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
