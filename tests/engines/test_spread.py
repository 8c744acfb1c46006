"""`spread` on this process: joins as one call would, keeps, resumes, refuses."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import mechsink as ms
from mechsink.engines.engine import as_engine
from mechsink.engines.identity import identity
from tests.engines.measures import fails_at, pairs, toy_model
from toy_tasks.storage import locked

PAIRED = {
    "patch_sweep": (ms.patch_sweep, {}),
    "heads": (ms.patch_sweep, {"site": "z", "direction": "noising"}),
    "path_sweep": (ms.path_sweep, {"receivers": None}),
    "ablate": (ms.ablate, {"sites": [ms.Site("z", 1)], "replacement": ms.zero()}),
    "eap": (ms.eap, {}),
    "eap_ig": (ms.eap_ig, {"seed": 3}),
    "exact_edges": (ms.exact_edges, {}),
    "attribution_patching": (ms.attribution_patching, {}),
    "atp_star": (ms.atp_star, {}),
    "node_effects": (ms.node_effects, {}),
}


def here(measure, *args, prompts=None, **options):
    chosen = pairs() if prompts is None else prompts
    return ms.spread(measure, toy_model(), chosen, *args, engine="here", **options)


@pytest.mark.first_case
@pytest.mark.parametrize("name", PAIRED)
def test_joined_is_what_one_call_gives(name):
    measure, options = PAIRED[name]
    options = {**options, "metric": ms.logit_diff}
    whole = measure(toy_model(), pairs(), **options)
    spread = here(measure, **options)
    assert type(spread) is type(whole)
    for field, value in vars(whole).items():
        got = getattr(spread, field)
        if isinstance(value, pd.DataFrame):
            by = [c for c in ("prompt",) if c in value]
            value = value.sort_values(by, kind="stable", ignore_index=True)
            # p-values step where a sum of signs ties by a rounding.
            pd.testing.assert_frame_equal(got, value, rtol=1e-4, atol=1e-6)
        elif field not in ("meta", "noise"):  # noise is measured, by other batches
            number = isinstance(value, list) and isinstance(value[0], float)
            assert got == (pytest.approx(value, rel=1e-4) if number else value), field
    assert sorted(row["ids"] for row in spread.meta["tokens"]) == sorted(
        row["ids"] for row in whole.meta["tokens"]
    )


def test_attribution_and_sinks_join_too():
    whole = ms.logit_attribution(toy_model(), pairs())
    spread = here(ms.logit_attribution)
    np.testing.assert_allclose(spread.table["value"], whole.table["value"], atol=1e-6)
    assert spread.whole == pytest.approx(whole.whole, rel=1e-5)
    tokens = torch.arange(12).reshape(2, 6)
    scores = here(ms.sink_scores, prompts=tokens)
    in_one = ms.sink_scores(toy_model(), tokens).table
    in_one = in_one.sort_values("batch", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(scores.table, in_one, atol=1e-6)


@pytest.mark.matrix
def test_a_result_of_all_prompts_together_is_refused():
    scores = ms.eap(toy_model(), pairs(), ms.logit_diff)
    circuit = ms.top_edges(scores, 5)

    def faithful(model, prompts):
        return ms.faithfulness(model, circuit, prompts, ms.logit_diff)

    with pytest.raises(ValueError, match="Faithfulness can't be put together"):
        here(faithful)


def test_it_goes_on_where_it_stopped(tmp_path):
    folder, counted = tmp_path / "work", tmp_path / "calls"
    counted.mkdir()
    options = {"counted": str(counted), "at": 2}
    with pytest.raises(RuntimeError, match=r"failed on 1 of 5 prompts[\s\S]*prompt 2"):
        here(fails_at, ms.logit_diff, folder=folder, **options)
    assert len(list(counted.iterdir())) == 5
    for path in counted.iterdir():
        path.unlink()
    left_out = here(fails_at, ms.logit_diff, folder=folder, skip_failed=True, **options)
    assert len(list(counted.iterdir())) == 1  # the one that failed, tried again
    assert left_out.meta["left_out"] == {"2": "no such pair"}
    kept = pairs()
    index = [0, 1, 3, 4]
    kept = ms.PromptPairs(
        [kept.clean[i] for i in index],
        [kept.corrupted[i] for i in index],
        kept.answers[index],
        kept.wrong[index],
    )
    fresh = here(fails_at, ms.logit_diff, prompts=kept, at=None)
    pd.testing.assert_frame_equal(left_out.table, fresh.table, check_exact=True)
    assert not (folder / "parts").exists()
    again = here(fails_at, ms.logit_diff, folder=folder, **options)  # from the folder
    pd.testing.assert_frame_equal(again.table, left_out.table, check_exact=True)
    assert again.clean == left_out.clean


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"site": "resid_post"}, "measure"),
        ({"memory": 1.0}, "memory"),
        ({"prompts": pairs(4)}, "prompts"),
    ],
)
@pytest.mark.matrix
def test_another_question_is_refused(tmp_path, change, named):
    here(ms.patch_sweep, ms.logit_diff, folder=tmp_path)
    with pytest.raises(ValueError, match=f"differs in {named}"):
        here(ms.patch_sweep, ms.logit_diff, folder=tmp_path, **change)


def test_other_weights_under_one_name_are_refused(tmp_path):
    def call(seed, **options):
        model = toy_model(seed)
        return ms.spread(
            fails_at, model, pairs(), ms.logit_diff, engine="here", **options
        )

    with pytest.raises(RuntimeError, match="failed on 1"):
        call(0, folder=tmp_path, at=4)
    with pytest.raises(ValueError, match="weights"):
        call(1, folder=tmp_path, at=4)


def test_a_folder_serves_one_process_at_a_time(tmp_path):
    with (
        locked(tmp_path, "other"),
        pytest.raises(RuntimeError, match="another process is at work"),
    ):
        here(ms.patch_sweep, ms.logit_diff, folder=tmp_path)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"something else \(thesis.tex\)"):
        here(ms.patch_sweep, ms.logit_diff, folder=tmp_path)


def test_a_result_file_never_names_foreign_code(tmp_path):
    here(ms.patch_sweep, ms.logit_diff, folder=tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "class": "os:system"}))
    with pytest.raises(ValueError, match="os:system"):
        here(ms.patch_sweep, ms.logit_diff, folder=tmp_path)


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("cloud", {}, "Allowed: 'here'"),
        ("pool", {"workers": 0}, "workers=0"),
        ("pool", {"address": "auto"}, "engine='ray'"),
        ("here", {"workers": 3}, "engine='pool'"),
    ],
)
def test_engines_by_name(engine, options, said):
    with pytest.raises(ValueError, match=said):
        as_engine(engine, **options)


@pytest.mark.parametrize("prompts", [[], "one text", torch.arange(4), 7])
def test_prompts_of_no_kind(prompts):
    with pytest.raises(Exception, match=r"Allowed: PromptPairs|prompts"):
        ms.spread(ms.sink_scores, toy_model(), prompts, engine="here")


def test_identity_sees_what_functions_close_over():
    reference = torch.arange(40.0).reshape(2, 20)

    def mean_of(tensor, scale=1):
        def replacement(x):
            return scale * tensor.mean()

        return replacement

    same = identity(mean_of(reference.clone()))
    assert identity(mean_of(reference)) == same
    assert identity(mean_of(reference + 1)) != same
    assert identity(mean_of(reference, 2)) != same
    assert identity(partial(mean_of, reference)) != identity(partial(mean_of))
    heads = [identity(ms.sink_attention(layer=0, head=h)) for h in (0, 1)]
    assert heads[0] != heads[1]
    assert json.loads(json.dumps(same)) == same
