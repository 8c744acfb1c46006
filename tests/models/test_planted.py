"""`ms.planted`: its edges by brute force, its words, its errors."""

import pytest

import mechsink as ms
from toy_tasks import PLANTED
from toy_tasks.planted.mlp_sinks import mlp_sinks


@pytest.mark.parametrize(
    "name",
    [n if n == "and" else pytest.param(n, marks=pytest.mark.matrix) for n in PLANTED],
)
def test_its_edges_are_those_that_patching_finds(name: str) -> None:
    case = ms.planted(name, seed=1)
    found = ms.exact_edges(case.model, case.pairs, ms.logit_diff).table
    score = found.set_index(["source", "target"])["score"].abs()
    others = score.drop(list(case.edges))
    assert score[list(case.edges)].min() > 10 * others.max() + 0.1


def test_it_reads_words_and_says_them() -> None:
    model = ms.planted("induction").model
    tokens = model.to_tokens("A B C A")
    assert model.to_strings(tokens[0]) == ["<s>", "A", "B", "C", "A"]
    texts = ms.PromptPairs(["A B C D A"], ["A D C B A"], ["B"], ["D"])
    (group,) = texts.tokens(model)
    assert (ms.logit_diff(model.run(group.clean), group) > 5).all()
    with pytest.raises(
        ValueError, match=r"no token is 'a'.*Allowed, apart by blanks: A"
    ):
        model.to_tokens("a b")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no model is called 'ioi'.*Allowed: induction"
    ):
        ms.planted("ioi")


def test_mlps_make_a_primary_sink_and_two_secondary_ones() -> None:
    case = mlp_sinks()
    norms = ms.residual_norms(ms.load_model(case.model), case.tokens).table
    grid = norms.pivot(index="layer", columns="pos", values="norm").round(0)
    assert grid[0].tolist() == [1, 1, 100, 100, 140, 140, 1]
    for pos in (3, 7):
        assert grid[pos].tolist() == [1, 1, 1, 1, 40, 40, 1]
    assert (grid.drop(columns=[0, 3, 7]) == 1).all(axis=None)
