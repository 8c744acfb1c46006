"""English prose that is on every machine: the documentation topics of CPython.

Its wording changes a little between Python versions; results list the exact tokens.
"""

import functools
import re


@functools.cache
def prose() -> tuple[str, ...]:
    """English sentences of CPython's documentation topics, in a fixed order.

    Paragraphs that are indented (code, grammar) or underlined are left out.
    """
    from pydoc_data.topics import topics

    paragraphs = (
        re.sub(r"\s+", " ", block).strip()
        for name in sorted(topics)
        for block in topics[name].split("\n\n")
        if block
        and not block[0].isspace()
        and not re.search(r"^[*=~-]{3,}", block, re.M)
    )
    text = " ".join(block for block in paragraphs if block.endswith((".", ":")))
    return tuple(re.split(r"(?<=[.:]) (?=[A-Z])", text))
