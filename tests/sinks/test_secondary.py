"""Secondary sinks: planted residual streams, cosines and labels by hand."""

import math

import numpy as np
import pytest
import torch

from mechsink.models.load import load_model
from mechsink.sinks.secondary.primary import primary_weakening
from mechsink.sinks.secondary.rules import active_range, label_rule
from mechsink.sinks.secondary.sinks import SecondarySinks, secondary_sinks
from tests.sinks.canned import CannedModel

N_LAYERS, D_MODEL, N_POS = 36, 4, 12
START, END = 5, 33
LIVES = {  # position to the block outputs in which it resembles the primary
    2: list(range(10, 14)),  # 4 layers: noise
    3: list(range(10, 15)),  # 5: the least secondary
    5: [*range(12, 20), *range(22, 34)],  # 20 in all (33 is past the end): L - 16
    6: list(range(8, 29)),  # 21 = L - 15: as long as a BOS sink
    8: list(range(1, 12)),  # 7 of them in the active range
    11: list(range(20, 30)),  # the last token
}
PROMPT = torch.arange(N_POS)[None] + 97


def planted_stream(lives=LIVES, primary=0, n_layers=N_LAYERS, active=(START, END)):
    """Primary 1000 e0 while active, else e0; ordinary tokens e1; sinks 12 e0 + 5 e1."""
    stream = torch.zeros(n_layers + 1, N_POS, D_MODEL)
    stream[:, :, 1] = 1.0
    for layer in range(n_layers):
        out = stream[layer + 1]
        big = 1000.0 if active[0] <= layer < active[1] else 1.0
        out[primary] = torch.tensor([big, 0, 0, 0])
        for pos, layers in lives.items():
            if layer in layers:
                sign = -1 if pos == 3 else 1  # opposite states count too
                out[pos] = torch.tensor([12.0 * sign, 5, 0, 0])
    return stream


def planted_model(stream):
    """Uniform attention; values 5 (0.5 at position 3 from block 11 on)."""
    n_layers = len(stream) - 1
    values = torch.full((n_layers, 1, N_POS, 1), 5.0)
    values[11:, 0, 3] = 0.5
    return CannedModel(
        scores=lambda n: torch.zeros(n_layers, 1, n, n),
        values=lambda n: values[:, :, :n],
        stream=lambda n: stream[:, :n],
        w_out=torch.ones(n_layers, 1, 1, D_MODEL),
    )


@pytest.fixture(scope="module")
def found() -> SecondarySinks:
    return secondary_sinks(planted_model(planted_stream()), PROMPT)


def test_what_was_planted_is_found(found):
    table = found.table.set_index("pos")
    got = table[["label", "l_start", "lifetime", "is_contiguous"]]
    assert got.to_numpy().tolist() == [
        ["noise", 10, 4, True],
        ["secondary", 10, 5, True],
        ["secondary", 12, 19, False],
        ["bos_sink", 8, 21, True],
        ["secondary", 5, 7, True],
        ["secondary", 20, 10, True],
    ]
    assert table.index.tolist() == list(LIVES)
    assert table["string"].tolist() == list("cdfgil")
    assert table["token"].tolist() == [99, 100, 102, 103, 105, 108]
    primary = found.primaries.iloc[0]
    assert primary[["pos", "start", "end", "norm"]].tolist() == [0, START, END, 1000]
    assert primary[["more_than", "fewer_than", "rule"]].tolist() == [4, 21, "published"]
    lived = found.layers.groupby("pos")["layer"].apply(list).to_dict()
    assert lived == {p: [n for n in v if START <= n < END] for p, v in LIVES.items()}


def test_cosines_norms_and_values_by_hand(found):
    cosines = found.layers.set_index("pos")["cosine"]
    assert cosines.loc[5].to_numpy() == pytest.approx(12 / 13)  # 5-12-13
    assert cosines.loc[3].to_numpy() == pytest.approx(-12 / 13)
    table = found.table.set_index("pos")
    assert table["norm"].to_numpy() == pytest.approx(13.0)
    # created from ordinary tokens of norm 1, but for 8, alive before the range
    assert table["norm_jump"].tolist() == pytest.approx([12, 12, 12, 12, 0, 12])
    assert table.loc[3, ["value_before", "value_after"]].tolist() == [1.0, 0.1]
    assert table.loc[5, ["value_before", "value_after"]].tolist() == [1.0, 1.0]


def test_scores_are_of_strictly_later_queries(found):
    table = found.table.set_index("pos")
    for pos in (2, 3, 8):  # uniform: query i pays 1 / (i + 1)
        want = np.mean([1 / (i + 1) for i in range(pos + 1, N_POS)])
        assert table.loc[pos, ["score_mean", "score_max"]].tolist() == pytest.approx(
            [want, want]
        )
    assert math.isnan(table.loc[11, "score_mean"])  # no later query


def test_scores_are_those_of_the_next_block():
    model = planted_model(planted_stream({5: list(range(12, 20))}))

    def scores(n):
        table = torch.full((N_LAYERS, 1, n, n), -200.0)
        table[..., 0] = 0.0  # elsewhere all attention is on key 0
        table[13, :, :, 5:6] = 200.0  # `shape` asks for one token
        return table

    found = secondary_sinks(CannedModel(**{**vars(model), "scores": scores}), PROMPT)
    assert found.layers["score_mean"].tolist() == pytest.approx([1.0] + [0.0] * 7)
    assert found.table["score_mean"].item() == pytest.approx(1 / 8)
    assert found.table["score_max"].item() == pytest.approx(1.0)


def test_no_block_reads_the_last_layer():
    model = planted_model(planted_stream({4: list(range(29, 36))}))
    found = secondary_sinks(model, PROMPT, active=(START, 36))
    scores = found.layers.set_index("layer")["score_mean"]
    assert scores.index.tolist() == list(range(29, 36))
    assert scores.isna().tolist() == [False] * 6 + [True]
    assert found.table["score_mean"].tolist() == pytest.approx([scores.loc[30]])


def test_label_edges():
    rule = label_rule(36, 5, 33)
    assert [rule.label(n) for n in (1, 4, 5, 20, 21, 28)] == [
        "noise", "noise", "secondary", "secondary", "bos_sink", "bos_sink",
    ]  # fmt: skip
    small = label_rule(12, 2, 12)  # 10 active layers: 10/7 < n < 6.5
    assert small.origin == "fraction (ours)"
    assert [small.label(n) for n in (1, 2, 6, 7)] == [
        "noise", "secondary", "secondary", "bos_sink",
    ]  # fmt: skip
    assert label_rule(24, 2, 20).fewer_than == 9
    given = label_rule(12, 2, 12, more_than=0)
    assert (given.more_than, given.fewer_than, given.origin) == (0, 6.5, "given")


def test_active_range_by_hand():
    # rises 1, 96, 1, -90, 0: start after the second, end after the fourth
    norms = torch.tensor([2.0, 3, 99, 100, 10, 10])
    assert active_range(norms) == (2, 4)
    # a fall before the rise does not count
    assert active_range(torch.tensor([50.0, 1, 99, 99, 80, 80])) == (2, 4)
    assert active_range(torch.tensor([1.0, 2, 99])) == (2, 3)  # nothing after
    assert active_range(torch.tensor([1.0, 50, 51, 53])) == (1, 2)  # never falls


def test_options_and_second_candidate():
    lives = {p: v for p, v in LIVES.items() if p > 1}
    model = planted_model(planted_stream(lives, primary=1))
    found = secondary_sinks(model, PROMPT)
    assert found.primaries["pos"].tolist() == [1]
    assert found.table["pos"].tolist() == list(lives)  # tokens before it are left out
    strict = secondary_sinks(model, PROMPT, cosine=0.93)  # 12/13 = .923
    assert strict.table.empty and strict.levels().empty
    wide = secondary_sinks(model, PROMPT, more_than=3, fewer_than=100)
    assert set(wide.table["label"]) == {"secondary"}
    early = secondary_sinks(model, PROMPT, active=(1, 5))
    assert early.table[["pos", "l_start", "lifetime"]].to_numpy().tolist() == [
        [8, 1, 4]
    ]


def test_rows_of_a_batch_are_prompts():
    model = planted_model(planted_stream())
    both = secondary_sinks(model, [PROMPT.repeat(2, 1), PROMPT[:, :7]])
    counts = both.table.groupby("batch").size().to_dict()
    assert counts == {0: 6, 1: 6, 2: 4}
    levels = both.levels().set_index(["l_start", "lifetime"])["count"]
    assert levels.to_dict() == {(5, 7): 2, (10, 5): 3, (12, 19): 3, (20, 10): 2}


def test_bad_input_and_its_advice():
    model = planted_model(planted_stream())
    with pytest.raises(ValueError, match="position=2 is outside prompt 0"):
        secondary_sinks(model, PROMPT[:, :2])
    secondary_sinks(model, PROMPT[:, :3])
    with pytest.raises(ValueError, match="has 1 layer"):
        secondary_sinks(CannedModel(), PROMPT)
    with pytest.raises(ValueError, match=r"active=\(5, 37\).*end <= 36"):
        secondary_sinks(model, PROMPT, active=(5, 37))
    broken = planted_stream()
    broken[3, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        secondary_sinks(planted_model(broken), PROMPT)


def test_saves_loads_and_plots(found, tmp_path):
    back = SecondarySinks.load(found.save(tmp_path / "sinks"))
    assert back.table.equals(found.table) and back.primaries.equals(found.primaries)
    assert found.plot().get_xlabel() == "layer of creation"
    assert found.plot(label="other").get_ylabel() == "lifetime (layers)"


def test_a_primary_that_weakens():
    """Two heads: all on key 0 before block 12, half of it from there on."""
    n_layers = 36
    stream = planted_stream({5: list(range(12, 20))})

    def scores(n):
        table = torch.full((n_layers, 2, n, n), -200.0)
        table[..., 0] = 0.0
        table[12:, 1] = 0.0  # the second head turns uniform
        return table

    values = torch.full((n_layers, 1, N_POS, 1), 5.0)
    values[:, :, 0] = 1.0
    values[12:, :, 0] = 2.0
    model = CannedModel(
        scores=scores,
        values=lambda n: values[:, :, :n],
        stream=lambda n: stream[:, :n],
        w_out=torch.ones(n_layers, 2, 1, D_MODEL),
    )
    model = KeyModel(**vars(model))
    sinks = secondary_sinks(model, PROMPT)
    assert sinks.table["l_start"].tolist() == [12]
    weak = primary_weakening(model, PROMPT, sinks)
    told = weak.comparison.set_index("measure")
    uniform = np.mean([1 / (i + 1) for i in range(1, N_POS)])
    assert told.loc["attention", "before"] == pytest.approx(1.0)
    assert told.loc["attention", "after"] == pytest.approx((1 + uniform) / 2)
    assert told.loc["value_norm", ["before", "after"]].tolist() == pytest.approx(
        [0.2, 0.4]
    )
    # keys: layer + 1 at the primary, 2 elsewhere; blocks 6..11 and 12..33
    want = [np.mean(range(7, 13)) / 2, np.mean(range(13, 35)) / 2]
    assert told.loc["key_norm", ["before", "after"]].tolist() == pytest.approx(want)
    assert not told["is_control"].any() and set(told["creation"]) == {12}
    near = primary_weakening(model, PROMPT, sinks, window=1).comparison
    key = near.set_index("measure").loc["key_norm"]
    assert key[["before", "after", "difference"]].tolist() == [6.0, 6.5, 0.5]
    assert weak.plot().get_xlabel() == "layer"
    with pytest.raises(ValueError, match="prompts that are not these"):
        primary_weakening(model, PROMPT + 1, sinks)


class KeyModel(CannedModel):
    """Keys of norm layer + 1 at position 0 and 2 elsewhere."""

    def run(self, tokens, *, read=(), edit=None, grad=False):
        run = super().run(tokens)
        for site in read:
            keys = torch.full((len(tokens), tokens.shape[1], 1, 1), 2.0)
            keys[:, 0] = site.layer + 1
            run.cache[site] = keys
        return run


def test_prompts_without_secondaries_are_controls():
    model = planted_model(planted_stream({9: list(range(12, 20))}))
    short = PROMPT[:, :8]  # ends before the secondary
    found = primary_weakening(KeyModel(**vars(model)), [PROMPT, short]).comparison
    assert found.groupby("batch")["is_control"].first().tolist() == [False, True]
    assert set(found["creation"]) == {12}


@pytest.mark.pretrained
def test_smollm2_has_early_secondaries_and_none_while_the_primary_peaks():
    """Ordinary tokens grow into sinks in layers 2 to 8, and lose their values there."""
    import pydoc_data.topics as prose

    model = load_model("smollm2")
    texts = [prose.topics[name] for name in ("assignment", "comparisons")]
    tokens = torch.cat([model.to_tokens(text)[:, :256] for text in texts])
    whole = secondary_sinks(model, tokens)
    assert (
        whole.primaries[["pos", "start", "end"]].to_numpy().tolist()
        == [[0, 11, 28]] * 2
    )
    assert (whole.primaries["norm"] > 15_000).all()
    assert whole.labelled().empty
    early = secondary_sinks(model, tokens, active=(1, 11)).labelled()
    assert len(early) >= 2
    assert early["l_start"].mode().tolist() == [2]
    assert (early["value_after"] < 0.3).all() and (early["value_before"] > 0.4).all()
    assert early["norm_jump"].corr(early["score_mean"], method="spearman") > 0.7
