"""From sites to hook functions: reading and editing, for every backend alike.

A backend names its hook points; `SiteHooks` says what runs at each. Checks
that hold everywhere live here: an edit keeps the shape, every hook fires.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from mechsink.run import Edit
from mechsink.sites import Site

HookFunction = Callable[[Tensor], Tensor | None]


class SiteHooks:
    """Reads and edits of one forward pass, as one function per hook point.

    Args:
        read: sites whose values, after the edits, go to `cache`.
        edit: site to a function from its tensor to a new one.
        grad: keep what is read on the autograd graph.
        on_read: called instead of filling `cache`, for passes that must not
            hold more than a layer.
        home: where what is read goes, and where edits find their tensors, however a
            model is spread over devices; default: wherever they are.
    """

    def __init__(
        self,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
        on_read: Callable[[Site, Tensor], None] | None = None,
        home: torch.device | None = None,
    ) -> None:
        self._home = home
        self.cache: dict[Site, Tensor] = {}
        edits = dict(edit or {})
        self._edits: dict[Site, list[tuple[Site, Edit]]] = defaultdict(list)
        for site, function in edits.items():
            self._edits[site.whole].append((site, function))
        self._reads: dict[Site, list[Site]] = defaultdict(list)
        for site in dict.fromkeys(read):
            self._reads[site.whole].append(site)
        self._grad = grad
        self._keep = on_read or self.cache.__setitem__
        self._pending = {*read, *edits}

    def points(self, resid_mid_is_hook: bool) -> dict[Site, HookFunction]:
        """Whole site to the function that runs there.

        Where a backend has no hook on the residual stream between attention and
        MLP, `resid_mid` is read and edited through resid_pre and attn_out.
        """
        wholes = [*self._reads, *(s for s in self._edits if s not in self._reads)]
        points: dict[Site, HookFunction] = {
            whole: lambda x, whole=whole: self._at(whole, x)
            for whole in wholes
            if resid_mid_is_hook or whole.name != "resid_mid"
        }
        if not resid_mid_is_hook:
            for whole in wholes:
                if whole.name == "resid_mid":
                    points |= self._mid_points(whole)
        return points

    def check_all_fired(self) -> None:
        """Raise if a site was asked for and its hook never ran."""
        if self._pending:
            names = ", ".join(map(str, sorted(self._pending)))
            raise RuntimeError(
                f"run: the hooks of {names} never fired, so nothing was read or "
                "edited there. This model does not pass through them in this mode; "
                "leave them out, and please report the model family."
            )

    def _at(self, whole: Site, x: Tensor) -> Tensor | None:
        new = self._edited(whole, x)
        for site in self._reads.get(whole, ()):
            self._pending.discard(site)
            value = self._to_home(new[site.index])
            self._keep(site, value if self._grad else value.detach())
        # A hook that returns its tensor puts what it saw on the autograd graph.
        return new if self._grad or new is not x else None

    def _edited(self, whole: Site, x: Tensor) -> Tensor:
        for site, edit in self._edits.get(whole, ()):
            self._pending.discard(site)
            new = edited(site, edit, self._to_home(x[site.index])).to(x)
            if site == whole:
                x = new
            else:
                x = x.clone()
                x[site.index] = new
        return x

    def _to_home(self, x: Tensor) -> Tensor:
        return x if self._home is None else x.to(self._home)

    def _mid_points(self, mid: Site) -> dict[Site, HookFunction]:
        before, wrote = Site("resid_pre", mid.layer), Site("attn_out", mid.layer)
        resid_pre: list[Tensor] = []

        def at_resid_pre(x: Tensor) -> Tensor | None:
            new = self._at(before, x)
            resid_pre.append(x if new is None else new)
            return new

        def at_attn_out(x: Tensor) -> Tensor | None:
            new = self._at(wrote, x)
            out = x if new is None else new
            # A block's input may still lie where the layer before ran.
            stream = resid_pre.pop().to(out.device) + out
            moved = self._at(mid, stream)
            # Adding the difference keeps an identity edit exact to the last bit.
            return new if moved is None else out + (moved - stream)

        return {before: at_resid_pre, wrote: at_attn_out}


def edited(site: Site, edit: Edit, part: Tensor) -> Tensor:
    """What an edit makes of its site's tensor, of the same shape.

    Raises:
        ValueError: it returned something else.
    """
    new = edit(part)
    if not isinstance(new, Tensor) or new.shape != part.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new)
        raise ValueError(
            f"edit of {site}: returned {got}, but the site has axes "
            f"{' '.join(site.axes)} = {tuple(part.shape)}. Return a new "
            "tensor of that shape."
        )
    return new


def check_tokens(tokens: Tensor, d_vocab: int, n_ctx: int) -> None:
    """Raise ValueError for tokens that a model cannot take."""
    if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"run: tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}. "
            "Give integers of shape batch pos, as model.to_tokens returns them; "
            "for one prompt add an axis: tokens[None]."
        )
    if tokens.numel() == 0:
        raise ValueError(
            "run: the prompt is empty (no tokens). Give at least one token a prompt."
        )
    if tokens.shape[1] > n_ctx:
        raise ValueError(
            f"run: the prompt has {tokens.shape[1]} tokens, but this model was made "
            f"for at most {n_ctx}. Cut it, for example tokens[:, :{n_ctx}]."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= d_vocab:
        raise ValueError(
            f"run: token {low if low < 0 else high} is outside this model's "
            f"vocabulary. Allowed: 0 to {d_vocab - 1}; make tokens with this model's "
            "own model.to_tokens."
        )
