"""Which sites can reach which along the residual stream: the routes of path patching.

A component reads the stream at one point and writes to it at a later one; a path
runs from where its sender writes to where its receiver reads.
"""

from collections.abc import Sequence

from mechsink.run import ModelShape
from mechsink.sites import Site

ATTENTION = ("q", "k", "v", "attn_scores", "pattern", "z", "attn_out")
MLP = ("mlp_normed", "mlp_post", "mlp_out")
STAGE = {"q": 0, "k": 0, "v": 0, "attn_scores": 1, "pattern": 2, "z": 3, "attn_out": 4,
         "mlp_normed": 0, "mlp_post": 1, "mlp_out": 2}  # fmt: skip
"""What comes before what inside one component."""


def reaches(shape: ModelShape, sender: Site, receiver: Site) -> bool:
    """Whether the residual stream leads from one site to the other."""
    is_later = _writes_at(shape, sender) <= _reads_at(shape, receiver)
    return sender != receiver and is_later


def writes(site: Site) -> Site | None:
    """The output, attn_out or mlp_out, that a site is part of; None for the stream."""
    if site.name in ATTENTION:
        return Site("attn_out", site.layer)
    return Site("mlp_out", site.layer) if site.name in MLP else None


def reached(
    shape: ModelShape, senders: Sequence[Site], receivers: Sequence[Site]
) -> list[Site]:
    """The receivers that lie downstream of any of the senders."""
    return [r for r in receivers if any(reaches(shape, s, r) for s in senders)]


def check_sites(
    shape: ModelShape,
    caller: str,
    senders: Sequence[Site],
    receivers: Sequence[Site] | None,
) -> None:
    """Raise ValueError for sites that are not there or can't be set."""
    for what, sites in (("sender", senders), ("receivers", receivers)):
        if sites is not None and not sites:
            raise ValueError(
                f"{caller}: no {what} given. Name at least one, such as "
                "Site('z', 0, head=1)"
                + ("." if what == "sender" else ", or None for the logits.")
            )
        for site in sites or ():
            check_settable(shape, caller, site)


def check_apart(
    shape: ModelShape, caller: str, senders: Sequence[Site], receivers: Sequence[Site]
) -> None:
    """Raise ValueError for a sender with no path, or one inside a receiver's block."""
    for sender in senders:
        for receiver in receivers:
            if _feeds(shape, sender, receiver):
                raise ValueError(
                    f"{caller}: receiver {receiver} is sender {sender}, or is computed "
                    "from it inside one block; a path runs along the residual stream. "
                    "Leave one of the two out, or ask for them in two calls."
                )
        if receivers and not reached(shape, [sender], receivers):
            raise _no_path(shape, caller, sender, receivers[0])


def check_reached(
    shape: ModelShape, caller: str, senders: Sequence[Site], receivers: Sequence[Site]
) -> None:
    """Raise ValueError for a receiver that no sender reaches."""
    found = reached(shape, senders, receivers)
    for receiver in receivers:
        if receiver not in found:
            raise _no_path(shape, caller, senders[0], receiver)


def check_settable(shape: ModelShape, caller: str, site: Site) -> None:
    """Raise ValueError if a site, or what holding needs, can't be set here."""
    shape.check(site)
    if site.name in shape.read_only:
        raise ValueError(
            f"{caller}: this model's own attention code discards edits of {site.name}. "
            "Name z or attn_out instead."
        )
    missing = [name for name in ("attn_out", "mlp_out") if name not in shape.sites]
    if missing:
        raise ValueError(
            f"{caller}: everything but the stream is held at attn_out and mlp_out, and "
            f"this model has no {' and no '.join(missing)}. Use patch_sweep, which "
            "needs only the site itself."
        )


def _reads_at(shape: ModelShape, site: Site) -> int:
    """Where on the stream it reads; four points a layer, resid_pre l is 4 l."""
    if site.name in ("resid_mid", "resid_post"):
        return _writes_at(shape, site)
    mlp_after_attention = site.name in MLP and not _is_parallel(shape)
    return 4 * site.layer + (1 if mlp_after_attention else 0)


def _writes_at(shape: ModelShape, site: Site) -> int:
    if site.name == "resid_pre":
        return 4 * site.layer
    early = site.name == "resid_mid" or (
        site.name in ATTENTION and not _is_parallel(shape)
    )
    return 4 * site.layer + (1 if early else 3)


def _is_parallel(shape: ModelShape) -> bool:
    return "resid_mid" not in shape.sites


def _feeds(shape: ModelShape, sender: Site, receiver: Site) -> bool:
    """Whether setting the sender changes the receiver inside their own component."""
    if sender.whole == receiver.whole:
        return bool(_heads(shape, sender) & _heads(shape, receiver))
    component = writes(sender)
    return (
        component is not None
        and component == writes(receiver)
        and STAGE[sender.name] < STAGE[receiver.name]
        and bool(_heads(shape, sender) & _heads(shape, receiver))
    )


def _heads(shape: ModelShape, site: Site) -> set[int]:
    """Query heads that a site concerns; {0} stands for all of a site without heads."""
    n, group = shape.n_heads, shape.n_heads // shape.n_kv_heads
    if site.head is not None:
        return {site.head}
    if site.kv_head is not None:
        return set(range(site.kv_head * group, (site.kv_head + 1) * group))
    return set(range(n))


def _no_path(
    shape: ModelShape, caller: str, sender: Site, receiver: Site
) -> ValueError:
    why = "It reads the residual stream before that sender writes to it."
    if reaches(shape, receiver, sender):
        why += f" The path runs the other way: sender={receiver}, receiver={sender}."
    elif writes(receiver) is not None and sender.layer == receiver.layer:
        why += " The two work side by side, on the same residual."
    first = sender.layer + (0 if sender.name == "resid_pre" else 1)
    below = f"sites from layer {first} on" if first < shape.n_layers else "none inside"
    return ValueError(
        f"{caller}: receiver {receiver} is not downstream of sender {sender}. {why} "
        f"Downstream of {sender} are {below}, and receivers=None, the logits."
    )
