"""Reads and edits of a run as a plain list of steps, which can be sent elsewhere.

The same order and the same rules as `hooks.SiteHooks`, in tuples and functions alone:
what `remote_body.visit` does, one block and one place after the other.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from mechsink.models.places import Place
from mechsink.run import Edit
from mechsink.sites import Site

Action = tuple[str, Any, Any, Any]  # kind, key, index, function


class Steps:
    """`steps` for `remote_body.visit`; `found` gives back what they read, by site.

    Args:
        places: of a block's sites, in the order of its run.
        read: sites to read, after the edits.
        edit: site to edit.
    """

    def __init__(
        self,
        places: Sequence[Place],
        read: Collection[Site],
        edit: Mapping[Site, Edit],
    ) -> None:
        self._numbers = {site: n for n, site in enumerate(dict.fromkeys(read))}
        self._edit = edit
        self._order: list[int] = []
        layers = sorted({site.layer for site in (*read, *edit)})
        self.steps: list[tuple[Any, ...]] = []
        for layer in layers:
            for place in places:
                parts = [
                    (part.get, part.put, actions)
                    for name, part in place.parts.items()
                    if (actions := self._actions(Site(name, layer)))
                ]
                if parts:
                    self.steps.append((layer, place.path, place.side, parts))

    def found(self, cache: Mapping[int, Tensor]) -> dict[Site, Tensor]:
        """Site to value, in the order of the run."""
        sites = {n: site for site, n in self._numbers.items()}
        return {sites[n]: cache[n].detach() for n in self._order}

    def _actions(self, whole: Site) -> list[Action]:
        actions = self._own(whole)
        mid = Site("resid_mid", whole.layer)
        if whole.name in ("resid_pre", "attn_out"):
            inner = self._own(mid) if whole.name == "attn_out" else []
            is_asked = any(s.whole == mid for s in (*self._numbers, *self._edit))
            if whole.name == "resid_pre" and is_asked:
                actions.append(("keep", -1 - whole.layer, None, None))
            elif inner:
                actions.append(("mid", -1 - whole.layer, None, inner))
        return actions

    def _own(self, whole: Site) -> list[Action]:
        edits: list[Action] = [
            ("edit", str(site), site.index, function)
            for site, function in self._edit.items()
            if site.whole == whole
        ]
        reads: list[Action] = []
        for site, number in self._numbers.items():
            if site.whole == whole:
                reads.append(("read", number, site.index, None))
                self._order.append(number)
        return edits + reads
