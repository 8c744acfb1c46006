"""Every public measurement, small, on tokens as users make them: on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mechsink as ms
from mechsink.run import Model

SPAN = (2, 3, 4)
HEAD = ms.Site("z", 1, head=1)


def draw(n: int, n_pos: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 75, (n, n_pos), generator=generator)


TOKENS = draw(2)
PAIRS = ms.PromptPairs(
    TOKENS, draw(2, seed=1), answers=torch.tensor([5, 6]), wrong=torch.tensor([9, 8])
)
ONE = ms.PromptPairs(
    TOKENS[:1], TOKENS[1:], answers=torch.tensor([5]), wrong=torch.tensor([9])
)
ROWS = draw(1).repeat(4, 1)
ROWS[:, [2, 5]] = torch.tensor([[5, 8], [5, 9], [6, 8], [6, 9]])
SLOTS = ms.SlotPrompts.from_tokens(ROWS, [2, 5], answers=torch.tensor([3, 4, 5, 6]))
LD = ms.logit_diff
Measurement = Callable[[Model], Any]

RUNS: dict[str, Measurement] = {
    "selfcheck": lambda m: ms.selfcheck(m),
    "gradients": lambda m: ms.gradients(
        m, TOKENS, ms.sink_attention(layer=2, head=1), [HEAD]
    ),
    "resume": lambda m: ms.base_run(m, TOKENS),
    "generate": lambda m: ms.generate(
        m, TOKENS, 3, edit={ms.Site("pattern", 1): ms.hide_span(SPAN)}
    ),
    "generate sampled": lambda m: ms.generate(
        m, TOKENS, 3, sampler=ms.temperature(1.0, 0)
    ),
    "noise floor": lambda m: ms.noise_floor(m, PAIRS, LD),
    "reposition": lambda m: ms.reposition(m, TOKENS, [0, 1, 2, 3, 4, 7, 8, 9, 10]),
    "losses of a stream": lambda m: list(
        ms.stream_losses(
            m, draw(1, 30)[0], [ms.SinkWindow(2, 6), ms.HeavyHitters(4, 4)]
        )
    ),
    "losses of windows": lambda m: list(ms.window_losses(m, draw(1, 30)[0], [20], 8)),
    "damro": lambda m: ms.damro_generate(m, TOKENS, 2, SPAN, [2]),
    "saliency generation": lambda m: ms.saliency_generate(
        m, TOKENS, 2, ms.candidate_saliency(m, span=SPAN), n_candidates=2
    ),
    "subspaces": lambda m: ms.subspaces(m, TOKENS, [HEAD]),
    "edit: steered": lambda m: m.run(TOKENS, edit=ms.steer_mlp(1, 2.0)),
    "edit: moved": lambda m: m.run(TOKENS, edit={HEAD: torch.ones_like}),
}
"""Called for what they do, whatever they return."""

SWEEPS: dict[str, Measurement] = {
    f"{engine} {site}": lambda m, site=site, engine=engine: ms.patch_sweep(
        m, PAIRS, LD, site=site, engine=engine, progress=False
    )
    for engine in ("auto", "cells")
    for site in ("resid_pre", "resid_mid", "z", "pattern", "k", "mlp_out", "attn_out")
}
SWEEPS |= {
    "sink metric": lambda m: ms.patch_sweep(
        m, PAIRS, ms.sink_attention(layer=2, head=1), site="resid_pre", progress=False
    ),
    "neurons": lambda m: ms.patch_sweep(
        m, PAIRS, LD, site="mlp_post", neurons=[0, 3], progress=False
    ),
    "kl": lambda m: ms.patch_sweep(
        m, PAIRS, ms.answer_logprob, layers=[1], positions="all", progress=False
    ),
    "path": lambda m: ms.path_patch(
        m,
        PAIRS,
        LD,
        sender=ms.Site("z", 0, head=1),
        receivers=[ms.Site("q", 2, head=0)],
    ),
    "path to logits": lambda m: ms.path_sweep(m, ONE, LD, receivers=None),
    "ablate zero": lambda m: ms.ablate(m, PAIRS, [HEAD], ms.zero(), LD),
    "ablate mean": lambda m: ms.ablate(m, PAIRS, [HEAD], ms.mean(draw(4, seed=3)), LD),
    "ablate resample": lambda m: ms.ablate(
        m, PAIRS, [HEAD], ms.resample(draw(4, seed=3)), LD
    ),
    "ablate context": lambda m: ms.ablate(
        m,
        ROWS,
        [ms.Site("resid_pre", 1)],
        ms.context_mean(SLOTS),
        ms.next_token_entropy,
    ),
    "all for one": lambda m: ms.all_for_one(m, SLOTS, wait=1, peek=[1, 2]),
    "wait by no attention": lambda m: ms.all_for_one(
        m, SLOTS, wait=1, peek=[2], means=ms.no_attention()
    ),
    "wait by self attention": lambda m: ms.all_for_one(
        m, SLOTS, wait=1, peek=[2], means=ms.self_attention()
    ),
}

ATTRIBUTION: dict[str, Measurement] = {
    "logits": lambda m: ms.logit_attribution(m, PAIRS),
    "lens": lambda m: ms.logit_lens(m, PAIRS, positions=(-1, 2)),
    "attribution patching": lambda m: ms.attribution_patching(
        m, PAIRS, LD, progress=False
    ),
    "atp star": lambda m: ms.atp_star(m, ONE, LD, progress=False),
    "eap": lambda m: ms.eap(m, PAIRS, LD),
    "eap clean corrupted": lambda m: ms.eap_clean_corrupted(m, PAIRS, LD),
    "eap ig": lambda m: ms.eap_ig(m, PAIRS, LD, steps=2),
    "eap ig activations": lambda m: ms.eap_ig_activations(m, ONE, LD, steps=2),
    "exact edges": lambda m: ms.exact_edges(m, ONE, LD, progress=False),
    "relp": lambda m: ms.relp(m, ONE, LD, progress=False),
    "node effects": lambda m: ms.node_effects(m, ONE),
    "low rank": lambda m: ms.low_rank(m, PAIRS, [ms.Site("resid_post", 1)], 1),
}

CIRCUITS: dict[str, Measurement] = {
    "curve": lambda m: ms.faithfulness_curve(
        m, ms.eap(m, PAIRS, LD), PAIRS, LD, fractions=(0.1, 1.0), resamples=40
    ),
    "faithfulness": lambda m: ms.faithfulness(
        m, ms.top_edges(ms.eap(m, PAIRS, LD), 9), PAIRS, LD, resamples=40
    ),
    "acdc": lambda m: ms.acdc(m, ONE, LD, tau=0.5, progress=False),
    "sink circuit": lambda m: ms.sink_circuit(m, draw(3, 12), heads=[(1, 1)], steps=2),
}

SINKS: dict[str, Measurement] = {
    "sink scores": lambda m: ms.sink_scores(m, TOKENS),
    "report": lambda m: ms.sink_report(m, TOKENS),
    "head scores": lambda m: ms.head_scores(m, TOKENS),
    "sink logits": lambda m: ms.sink_logits(m, TOKENS, [0, 2]),
    "residual norms": lambda m: ms.residual_norms(m, TOKENS),
    "value norms": lambda m: ms.value_norms(m, TOKENS),
    "massive": lambda m: ms.massive_activations(m, TOKENS, threshold=1.0, times=2.0),
    "massive effect": lambda m: ms.massive_effect(m, TOKENS, [(1, 0, 3)]),
    "first token": lambda m: ms.first_token_cosine(m, TOKENS),
    "query attention": lambda m: ms.query_attention(
        m, TOKENS, {"even": TOKENS % 2 == 0}
    ),
    "active dormant": lambda m: ms.active_dormant(
        m, {"a": draw(3, 9, 4), "b": draw(3, 9, 5)}, n_pos=9, confirm=[(1, 0)]
    ),
    "secondary": lambda m: ms.secondary_sinks(m, TOKENS),
    "mlp creation": lambda m: ms.mlp_creation(
        m,
        TOKENS,
        ms.secondary_sinks(m, TOKENS, active=(1, 2), cosine=0.0, more_than=0.0),
        labels=("bos_sink",),
        n_components=2,
    ),
    "primary weakening": lambda m: ms.primary_weakening(m, TOKENS),
    "profile": lambda m: ms.profile_heads(m, PAIRS, ms.zero_tuning(1.5), LD),
    "act": lambda m: ms.act_search(m, PAIRS, LD),
    "rhythm": lambda m: ms.attention_rhythm(m, draw(2, 30), low=2, high=12),
}

SPANS: dict[str, Measurement] = {
    "attention": lambda m: ms.span_attention(m, TOKENS, SPAN, sinks=(2,)),
    "sinks": lambda m: ms.span_sinks(m, TOKENS, SPAN, [0, 5], tau=0.5),
    "tokens": lambda m: ms.span_tokens(m, TOKENS, SPAN),
    "divergence": lambda m: ms.head_divergence(m, TOKENS, SPAN),
    "saliency": lambda m: ms.attention_saliency(m, TOKENS, layers=[1]),
    "alarm": lambda m: ms.saliency_alarm(m, TOKENS, 6, span=SPAN),
    "contrast": lambda m: ms.span_contrast(m, TOKENS, TOKENS[:, :-1], SPAN),
    "debiasing": lambda m: ms.debias_positions(m, TOKENS, SPAN),
}


EDITED: dict[str, Measurement] = {
    name: lambda m, edit=edit: m.run(TOKENS, edit={ms.Site("pattern", 1): edit})
    for name, edit in {
        "hide": ms.hide_span(SPAN),
        "var": ms.var_redistribution(SPAN, (0, 2), rho=1.0, least=0.0),
        "gift": ms.gift_amplify(SPAN, torch.tensor([0.1, 0.5, 0.2]), (6, 7)),
        "emphasise": ms.emphasise((2, 4), 1.5, torch.tensor([0.1, 0.2, 0.3, 0.4])),
        "redirect": ms.redirect_to_fillers((6, 7), (0,)),
        "ref am": ms.ref_am((6, 7), (0,)),
        "zero tuning": ms.zero_tuning(1.5),
        "act": ms.act_calibration(0.4, 0.1),
        "isolated": ms.isolate([0, 0, 0, 1, 1, 1, 2, 2, 2]),
    }.items()
}

MEASUREMENTS: dict[str, Measurement] = {
    f"{group}: {name}": one
    for group, ones in {
        "sweeps": SWEEPS,
        "attribution": ATTRIBUTION,
        "circuits": CIRCUITS,
        "sinks": SINKS,
        "spans": SPANS,
    }.items()
    for name, one in ones.items()
}
"""Those that give a result with a table."""
