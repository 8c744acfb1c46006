"""Sites: printed as papers write them, refused with advice."""

import pytest

from mechsink.run import ModelShape
from mechsink.sites import AXES, Site

SHAPE = ModelShape(4, 6, 2, 48, 8, 192, 100, 32, sites=frozenset(AXES) - {"resid_mid"})


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site("resid_pre", 5), "L5.resid_pre"),
        (Site("z", layer=2, head=1), "L2H1.z"),
        (Site("k", layer=2, kv_head=0), "L2KV0.k"),
        (Site("pattern", 10, head=11), "L10H11.pattern"),
    ],
)
def test_print_and_parse(site: Site, text: str) -> None:
    assert str(site) == text
    assert Site.parse(text) == site
    assert site.whole.head is None and site.whole.layer == site.layer


def test_shapes_by_hand() -> None:
    assert SHAPE.size(Site("z", 0), 3, 7) == (3, 7, 6, 8)
    assert SHAPE.size(Site("z", 0, head=5), 3, 7) == (3, 7, 8)
    assert SHAPE.size(Site("k", 0), 3, 7) == (3, 7, 2, 8)
    assert SHAPE.size(Site("pattern", 0, head=0), 3, 7) == (3, 7, 7)
    assert SHAPE.size(Site("mlp_post", 0), 3, 7) == (3, 7, 192)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Site("resid_prr", 0), "Did you mean 'resid_pre'"),
        (lambda: Site("z", -1), "Count from 0"),
        (lambda: Site("k", 0, head=1), "Name it by kv_head="),
        (lambda: Site("resid_pre", 0, head=1), "Leave head out"),
        (lambda: Site.parse("blocks.0.attn.hook_z"), "'L2H1.z'"),
        (lambda: SHAPE.check(Site("z", 4)), "has 4 layers. Allowed: 0 to 3"),
        (lambda: SHAPE.check(Site("z", 0, head=6)), "has 6 heads"),
        (lambda: SHAPE.check(Site("k", 0, kv_head=2)), "has 2 key-value heads"),
        (lambda: SHAPE.check(Site("resid_mid", 0)), "has no resid_mid"),
    ],
)
def test_bad_sites_are_refused_with_advice(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
