"""Sites: named places in a transformer, in the field's hook names.

A `Site` says where; backends translate it (mechsink/models), so that nothing
else in mechsink spells a backend's hook strings.
May import: nothing of mechsink.
"""

import difflib
import re
from dataclasses import dataclass
from numbers import Integral

AXES: dict[str, tuple[str, ...]] = {
    "resid_pre": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
    "attn_out": ("batch", "pos", "d_model"),
    "mlp_out": ("batch", "pos", "d_model"),
    "mlp_normed": ("batch", "pos", "d_model"),
    "mlp_post": ("batch", "pos", "d_mlp"),
    "q": ("batch", "pos", "head", "d_head"),
    "k": ("batch", "pos", "kv_head", "d_head"),
    "v": ("batch", "pos", "kv_head", "d_head"),
    "z": ("batch", "pos", "head", "d_head"),
    "attn_scores": ("batch", "head", "query", "key"),
    "pattern": ("batch", "head", "query", "key"),
}
"""Site name to the axes of its tensor, in order."""

_NUMBER = "[0-9]{1,4000}"  # no other digits; int() refuses more of them
_PRINTED = re.compile(rf"L({_NUMBER})(?:H({_NUMBER})|KV({_NUMBER}))?\.(\w+)")


@dataclass(frozen=True, order=True)
class Site:
    """One place in a transformer: a name, a layer and, where it has them, a head.

    `head` picks one query head of q, z, attn_scores or pattern; `kv_head` one
    key-value head of k or v (equal to heads without grouped-query attention).
    A site with a head is the slice without the head axis: `Site("z", 2, head=1)`,
    printed L2H1.z, has axes batch pos d_head.

    `resid_mid` is the residual stream itself, so an edit there reaches the MLP
    and the skip path. `k`, `v` and `q` are the projections before rotary
    positions; `attn_scores` come before softmax, scaled and masked.

    Args:
        name: one of `AXES`, such as "resid_pre" or "z".
        layer: block, from 0.
        head: one query head of q, z, attn_scores or pattern; default: all heads.
        kv_head: one key-value head of k or v; default: all of them.

    Raises:
        ValueError: unknown name (the nearest is suggested), negative layer or
            head, or a head of the kind that this name does not have.

    Examples:
        >>> site = ms.Site("z", layer=2, head=1)
        >>> str(site), site.axes, str(site.whole)
        ('L2H1.z', ('batch', 'pos', 'd_head'), 'L2.z')
        >>> ms.Site("mlp_in", layer=0)
        Traceback (most recent call last):
            ...
        ValueError: Site: no site is called 'mlp_in'. Did you mean ...
    """

    name: str
    layer: int
    head: int | None = None
    kv_head: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Site: the name is of type {type(self.name).__name__}. "
                f"Allowed: {', '.join(AXES)}."
            )
        if self.name not in AXES:
            near = difflib.get_close_matches(self.name, AXES, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"Site: no site is called {self.name[:60]!r}. {hint}"
                f"Allowed: {', '.join(AXES)}."
            )
        for axis in ("layer", "head", "kv_head"):
            index = getattr(self, axis)
            if index is None and axis != "layer":
                continue
            if not isinstance(index, Integral) or isinstance(index, bool):
                raise TypeError(
                    f"Site: {axis} is of type {type(index).__name__}. Allowed: a "
                    "whole number from 0."
                )
            object.__setattr__(self, axis, int(index))  # numpy's print otherwise
            if index < 0:
                raise ValueError(
                    f"Site: {axis}={index} is negative. Count from 0; the last of n "
                    f"is n - 1, with n from `model.shape`."
                )
        for axis, other in (("head", "kv_head"), ("kv_head", "head")):
            if getattr(self, axis) is not None and axis not in AXES[self.name]:
                has = other in AXES[self.name]
                fix = f"Name it by {other}=." if has else f"Leave {axis} out."
                raise ValueError(
                    f"Site: {self.name!r} has axes {' '.join(AXES[self.name])}, "
                    f"no {axis}. {fix}"
                )

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read a site as printed: "L5.resid_pre", "L2H1.z", "L2KV0.k".

        Args:
            text: a site as `str` prints it.

        Returns:
            The site: `Site.parse(str(site)) == site`.

        Raises:
            ValueError: the text has another form.
        """
        found = _PRINTED.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(
                f"Site.parse: {str(text)[:60]!r} is not a site. Write the layer, the "
                "head where there is one, and the name: 'L5.resid_pre', 'L2H1.z', "
                "'L2KV0.k'."
            )
        layer, head, kv_head, name = found.groups()
        return cls(
            name,
            int(layer),
            None if head is None else int(head),
            None if kv_head is None else int(kv_head),
        )

    def __str__(self) -> str:
        head = "" if self.head is None else f"H{self.head}"
        kv_head = "" if self.kv_head is None else f"KV{self.kv_head}"
        return f"L{self.layer}{head}{kv_head}.{self.name}"

    @property
    def whole(self) -> "Site":
        """The same site with all its heads."""
        return Site(self.name, self.layer)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of this site's tensor, the picked head's axis left out."""
        return tuple(axis for axis in AXES[self.name] if axis != self._picked[0])

    @property
    def index(self) -> tuple[slice | int, ...]:
        """Index that takes this site out of the tensor of `whole`."""
        axis, number = self._picked
        if axis is None:
            return (slice(None),)
        return (slice(None),) * AXES[self.name].index(axis) + (number,)

    @property
    def _picked(self) -> tuple[str | None, int]:
        if self.head is not None:
            return "head", self.head
        if self.kv_head is not None:
            return "kv_head", self.kv_head
        return None, 0
