"""Sites: every valid one comes back from its name; all else is told in words."""

from hypothesis import strategies as st

from mechsink.sites import AXES, Site
from tests.hostile.cases import hostile
from tests.hostile.clear import is_clear, tried
from tests.hostile.texts import any_texts

numbers = st.one_of(st.integers(0, 200), st.integers(0, 10**30))


@st.composite
def sites(draw) -> Site:
    name = draw(st.sampled_from(list(AXES)))
    axis = next((axis for axis in AXES[name] if axis in ("head", "kv_head")), None)
    head = {axis: draw(st.none() | numbers)} if axis else {}
    return Site(name, draw(numbers), **head)


@hostile(30, 500, site=sites())
def test_a_site_is_read_as_it_was_printed(site):
    assert Site.parse(str(site)) == site
    assert len(site.axes) == len(AXES[site.name]) - (site != site.whole)


nearly = st.builds(
    "{}{}{}.{}".format,
    st.sampled_from(["L", "l", "", "L-", "L+", "L0", "L٣", "L ", "LL", "B"]),
    st.one_of(st.integers(-3, 99), st.sampled_from(["", "1_0", "²", "1" * 5000])),
    st.sampled_from(
        ["", "H1", "H", "KV0", "H1KV0", "H-1", "Q2", "H٢", "KV" + "9" * 99]
    ),
    st.one_of(st.sampled_from([*AXES, "Z", "resid", "hook_z", "z\n"]), any_texts),
)


@hostile(
    40,
    1200,
    [{"text": f"L{'1' * 5000}.z"}, {"text": "L٣.z"}, {"text": "L1.z\n"}],
    text=st.one_of(nearly, any_texts),
)
def test_any_text_is_a_site_or_one_clear_error(text):
    found = tried(Site.parse, text)
    if isinstance(found, Site):
        assert Site.parse(str(found)) == found
        return
    assert type(found) is ValueError
    assert (
        "Allowed: " in str(found)
        or "Write the layer" in str(found)
        or ("has axes" in str(found))
    )
    assert len(str(found)) < 700


@hostile(
    30,
    600,
    name=st.one_of(st.sampled_from(list(AXES)), any_texts),
    layer=st.integers(-3, 10**20),
    head=st.none() | st.integers(-2, 10**20),
    kv_head=st.none() | st.integers(-2, 10**20),
)
def test_any_parts_make_a_site_or_one_clear_error(name, layer, head, kv_head):
    found = tried(Site, name, layer, head, kv_head)
    if isinstance(found, Site):
        assert name in AXES and layer >= 0
        assert None in (head, kv_head)
    else:
        assert is_clear(found) and type(found) is ValueError
