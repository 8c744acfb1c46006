"""The formation timeline on a toy run and on a Hugging Face model's checkpoints."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.experiments.formation.checkpoints import (
    Checkpoint,
    as_checkpoints,
    checkpoints_of,
)
from mechsink.experiments.formation.moment import MEASURES, SHARES
from mechsink.experiments.formation.recorder import FormationRecorder, formation
from mechsink.experiments.formation.timeline import Formation
from toy_tasks import (
    PRESETS,
    BigramBackcopy,
    ToyConfig,
    ToyTransformer,
    evaluate,
    train,
)

SMALL = ToyConfig(n_layers=2, n_heads=2, d_model=32, d_head=16, d_mlp=64, n_ctx=24)


def preset(**options):
    given = {"model": SMALL, "steps": 30, "batch": 32, "checkpoints": (0, 3, 30)}
    return replace(PRESETS["bb-cpu"], name="test", **{**given, **options})


@pytest.fixture(scope="module")
def task():
    return BigramBackcopy.from_text(max_chars=20, min_count=1)


@pytest.fixture(scope="module")
def tokens(task):
    return task.sample(16, 25, 7)


@pytest.fixture(scope="module")
def trained(task, tokens, tmp_path_factory):
    """A run, and what a recorder saw of it while it trained."""
    recorder = FormationRecorder(tokens, task=task)
    folder = tmp_path_factory.mktemp("toy") / "run"
    run = train(task, preset(), folder, callbacks=[recorder], progress=False)
    return run, recorder.result()


@pytest.fixture(scope="module")
def timeline(trained, tokens):
    return formation(trained[0].folder, tokens)


def value(timeline, measure, step, layer=None, head=None):
    rows = timeline.table.query("measure == @measure and step == @step")
    for axis, wanted in (("layer", layer), ("head", head)):
        rows = rows[rows[axis].isna()] if wanted is None else rows[rows[axis] == wanted]
    assert len(rows) == 1
    return rows["value"].item()


@pytest.mark.matrix
def test_every_measure_at_every_checkpoint(timeline):
    assert timeline.steps == [0, 3, 30]
    assert set(timeline.measures) == set(MEASURES) - set(SHARES)
    count = timeline.table.groupby(["measure", "step"]).size().unstack()
    assert (count.loc["bos_markov"] == 4).all()  # 2 layers, 2 heads
    assert (count.loc["resid_ratio"] == 3).all()  # 2 inputs, 1 output
    assert (count.loc["loss"] == 1).all()
    assert timeline.table["value"].notna().all()


def test_it_equals_whole_tensors_read_off_the_toy(trained, timeline, task, tokens):
    run, _ = trained
    inputs = tokens[:, :-1]
    trigger = task.is_trigger(inputs)
    later = torch.arange(24) > 0
    markov, trigger = ~trigger & later, trigger & later
    toy, seen = run.model(30), {}
    for layer in (0, 1):
        for name in ("attn.hook_pattern", "attn.hook_attn_scores", "attn.hook_v"):
            hook = toy.get_submodule(f"blocks.{layer}.{name}")
            hook.register_forward_hook(
                lambda m, a, out, key=(layer, name): seen.update({key: out})
            )
    toy.blocks[0].hook_resid_pre.register_forward_hook(
        lambda m, a, out: seen.update(resid=out)
    )
    with torch.no_grad():
        toy(inputs)
    for layer in (0, 1):
        for head in (0, 1):
            pattern = seen[layer, "attn.hook_pattern"][:, head]
            previous = torch.nn.functional.pad(pattern.diagonal(-1, 1, 2), (1, 0))
            scores = seen[layer, "attn.hook_attn_scores"][:, head]
            n_others = torch.arange(24).clamp(min=1)
            others = torch.where(torch.ones(24, 24).tril() > 0, scores, 0)[..., 1:]
            excess = scores[..., 0] - others.sum(-1) / n_others
            w_o = toy.get_submodule(f"blocks.{layer}.attn").W_O[head].detach()
            norm = (seen[layer, "attn.hook_v"][:, :, head] @ w_o).norm(dim=-1)
            want = {
                "bos_markov": pattern[..., 0][markov].mean(),
                "bos_trigger": pattern[..., 0][trigger].mean(),
                "previous_trigger": previous[trigger].mean(),
                "sink_score": pattern[..., 0].mean(),
                "sink_logit": excess[markov].mean(),
                "value_norm": norm[:, 0].mean(),
                "value_ratio": norm[:, 0].mean() / norm[:, 1:].mean(),
            }
            for measure, expected in want.items():
                got = value(timeline, measure, 30, layer, head)
                assert got == pytest.approx(expected.item(), rel=1e-4, abs=1e-5), (
                    measure
                )
    resid = seen["resid"].norm(dim=-1)
    ratio = resid[:, 0].mean() / resid[:, 1:].mean()
    assert value(timeline, "resid_ratio", 30, 0) == pytest.approx(
        ratio.item(), rel=1e-5
    )
    risk = evaluate(run.model(30), task, tokens)
    for measure in ("loss", "oracle_loss", "trigger_excess", "markov_excess"):
        assert value(timeline, measure, 30) == pytest.approx(risk[measure], rel=1e-5)


def test_training_shows(timeline):
    for measure in ("loss", "markov_excess"):
        path = [value(timeline, measure, step) for step in timeline.steps]
        assert path[0] > path[1] > path[2]
    assert timeline.final("loss")["value"].item() == value(timeline, "loss", 30)


def test_a_recorder_sees_the_same_while_training(trained, timeline):
    pd.testing.assert_frame_equal(trained[1].table, timeline.table, rtol=1e-5)
    assert trained[1].meta["settings"]["steps"] == [0, 3, 30]
    with pytest.raises(ValueError, match="no step was measured yet"):
        FormationRecorder(torch.zeros(1, 2, dtype=torch.int64)).result()


@pytest.mark.matrix
def test_own_prompts_are_drawn_to_the_toys_context(trained, capsys):
    drawn = formation(trained[0], n_prompts=2, progress=True)
    assert "measuring" in capsys.readouterr().err
    assert formation(trained[0], n_prompts=2).meta["tokens"] == drawn.meta["tokens"]
    assert capsys.readouterr().err == ""  # no terminal, no bar
    assert [len(row["ids"]) for row in drawn.meta["tokens"]] == [25, 25]
    assert drawn.meta["tokens"][0]["strings"][0] == "<s>"


@pytest.mark.matrix
def test_relu_attention_has_no_sink_logit(task, tokens):
    relu = replace(SMALL, attention="relu", d_vocab=task.d_vocab)
    found = formation({0: ToyTransformer(relu, seed=0)}, tokens, task=task)
    rows = found.table[found.table["measure"] == "sink_logit"]
    assert len(rows) == 4 and rows["value"].isna().all()
    titles = [ax.get_title(loc="left") for ax in found.panels().axes]
    assert MEASURES["sink_logit"] not in titles
    assert MEASURES["value_ratio"] in titles


@pytest.fixture(scope="module")
def hugging_face(task, tmp_path_factory):
    """Folders of a tiny Llama trained on the spot, by step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=task.d_vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=task.bos,
        eos_token_id=task.bos,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    root, folders = tmp_path_factory.mktemp("hf"), {}
    for step in range(41):
        if step in (0, 10, 40):
            folders[step] = root / f"step-{step}"
            model.save_pretrained(folders[step])
        batch = task.sample(32, 25, (5, step))
        logits = model(batch[:, :-1]).logits.flatten(0, 1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten()).backward()
        optimizer.step()
    return folders


@pytest.mark.matrix
def test_a_hugging_face_model_with_the_task(hugging_face, task, tokens):
    assert all((f / "model.safetensors").exists() for f in hugging_face.values())
    found = formation(hugging_face, tokens, task=task)
    assert found.steps == [0, 10, 40]
    assert set(found.measures) == set(MEASURES) - set(SHARES)
    assert found.final("bos_markov").shape == (8, 3)  # 2 layers, 4 heads
    risk = [value(found, "markov_excess", step) for step in found.steps]
    assert risk[0] > risk[1] > risk[2] > 0
    loss = [value(found, "loss", step) for step in found.steps]
    floor = [value(found, "oracle_loss", step) for step in found.steps]
    assert floor[0] == floor[2] < loss[2] < loss[0]


@pytest.mark.matrix
def test_a_hugging_face_model_on_plain_tokens(hugging_face, tokens):
    prompts = [tokens[:3], tokens[3:4, :9]]
    found = formation({40: hugging_face[40], 0: hugging_face[0]}, prompts)
    assert found.steps == [0, 40]
    assert {"sink_score", "sink_logit", "loss", "sink_rate"} <= set(found.measures)
    assert not {"bos_markov", "markov_excess"} & set(found.measures)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hugging_face[40])
    losses = []
    with torch.no_grad():
        for row in [*prompts[0], *prompts[1]]:
            log = model(row[None]).logits[0, :-1].log_softmax(-1)
            losses.append(-log.gather(1, row[1:, None])[:, 0])
    want = torch.cat(losses).mean().item()
    assert value(found, "loss", 40) == pytest.approx(want, rel=1e-5)


def test_it_saves_loads_and_plots(timeline, tmp_path):
    back = Formation.load(timeline.save(tmp_path / "form"))
    pd.testing.assert_frame_equal(back.table, timeline.table)
    assert back.meta == timeline.meta
    figure = timeline.panels()
    assert len(figure.axes) == 8
    assert figure.axes[0].get_xscale() == "symlog"
    line = timeline.plot_measure("loss").lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 3, 30])
    with pytest.raises(ValueError, match="'los' was not measured"):
        timeline.plot_measure("los")


def test_hub_revisions_become_checkpoints():
    history = checkpoints_of("org/name", {0: "step0", 512: "step512"}, device="cpu")
    assert history[512] == Checkpoint(
        "org/name", {"device": "cpu", "revision": "step512"}
    )
    assert as_checkpoints(history) == (history, None)
    with pytest.raises(ValueError, match="no revisions given"):
        checkpoints_of("org/name", {})


def test_bad_input_gives_one_clear_error(task, tokens, tmp_path):
    toy = ToyTransformer(replace(SMALL, d_vocab=7), seed=0)
    with pytest.raises(ValueError, match="an empty mapping given"):
        formation({}, tokens)
    with pytest.raises(ValueError, match=r"steps \[-1\] given"):
        formation({-1: toy}, tokens)
    with pytest.raises(ValueError, match="tokens=None, and these checkpoints"):
        formation({0: toy})
    with pytest.raises(ValueError, match="predicts 7 tokens, the task has"):
        formation({0: toy}, tokens % 7, task=task)
    with pytest.raises(FileNotFoundError, match="no run"):
        formation(tmp_path / "nothing")
