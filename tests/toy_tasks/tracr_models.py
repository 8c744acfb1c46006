"""Two programs compiled by tracr, as toy transformers with known edges.

Compiled models have no norms, no biases but through a direction "one" that every token
writes, and heads and hidden layers already padded to common sizes: what tracr calls
causal is a `ToyTransformer` without norm. Needs the package tracr-pypi.

A program is read at its last token. True edges follow from the program: each step reads
what earlier steps wrote, and those that the corruption changes are listed.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toy_tasks import ToyConfig, ToyTransformer
from toy_tasks.planted import Planted

WORDS = ("a", "b", "c", "d")
N_POS = 6  # "<s>" and five words


@dataclass(frozen=True)
class Compiled:
    """A compiled program and its twin."""

    tracr: Any  # its .apply runs the compiled model
    toy: ToyTransformer  # in float64
    tokens: dict[Any, int]  # token of each word
    outputs: list[Any]  # value of each logit; logits beyond them are 0

    def encode(self, rows: list[list[str]]) -> Tensor:
        """Tokens of word lists, "<s>" put before."""
        bos = self.tokens["compiler_bos"]
        return torch.tensor([[bos, *(self.tokens[w] for w in row)] for row in rows])


def compiled(program: Any, words: tuple[str, ...] = WORDS) -> Compiled:
    """Compile with a causal mask and copy the weights."""
    compiling = importlib.import_module("tracr.compiler.compiling")
    made = compiling.compile_rasp_to_model(
        program,
        set(words),
        max_seq_len=N_POS - 1,
        causal=True,
        compiler_bos="compiler_bos",
    )
    config, params = made.model_config, made.params
    arrays = {
        f"{module}/{name}": torch.from_numpy(np.array(value, dtype=np.float64))
        for module, parts in params.items()
        for name, value in parts.items()
    }
    assert not config.layer_norm
    assert all(not x.any() for name, x in arrays.items() if name.endswith("/b"))
    embedding = arrays["token_embed/embeddings"]
    positions = arrays["pos_embed/embeddings"]
    outputs = list(made.output_encoder.encoding_map)
    n_words, d_model = embedding.shape
    toy = ToyTransformer(
        ToyConfig(
            d_vocab=max(n_words, len(outputs)),
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            d_model=d_model,
            d_head=config.key_size,
            d_mlp=config.mlp_hidden_size,
            n_ctx=len(positions),
            norm="none",
        )
    ).double()
    label = program.label
    toy.requires_grad_(False)
    for parameter in toy.parameters():
        parameter.zero_()
    toy.W_E[:n_words], toy.W_pos[:] = embedding, positions
    blocks: list[Any] = list(toy.blocks)
    for n, block in enumerate(blocks):
        attn, mlp = f"transformer/layer_{n}/attn", f"transformer/layer_{n}/mlp"
        heads = (config.num_heads, config.key_size)
        for name, weight in (("query", "W_Q"), ("key", "W_K"), ("value", "W_V")):
            matrix = arrays[f"{attn}/{name}/w"].unflatten(1, heads)
            getattr(block.attn, weight)[:] = matrix.transpose(0, 1)
        block.attn.W_O[:] = arrays[f"{attn}/linear/w"].unflatten(0, heads)
        block.mlp.W_in[:] = arrays[f"{mlp}/linear_1/w"]
        block.mlp.W_out[:] = arrays[f"{mlp}/linear_2/w"]
    for n, value in enumerate(outputs):
        toy.W_unembed[made.residual_labels.index(f"{label}:{value}"), n] = 1
    return Compiled(made, toy, dict(made.input_encoder.encoding_map), outputs)


def programs() -> dict[str, Any]:
    """The programs as tracr objects.

    "hist": how often the word has come so far. "next": what came after the earlier
    copy of the word. "reverse": with a causal mask, the first word.
    """
    lib = importlib.import_module("tracr.compiler.lib")
    rasp = importlib.import_module("tracr.rasp.rasp")
    before = rasp.Select(
        rasp.indices, rasp.indices, lambda key, query: key == query - 1
    )
    previous = rasp.Aggregate(before.named("before"), rasp.tokens).named("previous")
    match = rasp.Select(previous, rasp.tokens, rasp.Comparison.EQ).named("match")
    return {
        "hist": lib.make_hist(),
        "next": rasp.Aggregate(match, rasp.tokens).named("next"),
        "reverse": lib.make_reverse(rasp.tokens),
    }


def tracr_hist(n_prompts: int = 60, seed: int = 0) -> Planted:
    """Counting: the last word's copies are found by a0.h0 and counted by m0.

    Corrupted prompts are other draws with another count.
    """
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = [], []
    while len(clean) < n_prompts:
        draw = torch.randint(len(WORDS), (2, N_POS - 1), generator=generator)
        one, two = ([WORDS[i] for i in row] for row in draw.tolist())
        if one.count(one[-1]) != two.count(two[-1]):
            clean.append(one)
            corrupted.append(two)
    return _case(
        compiled(programs()["hist"]),
        "tracr-hist",
        (clean, corrupted),
        lambda row: row.count(row[-1]),
        edges={
            ("input", "a0.h0<q>"),
            ("input", "a0.h0<k>"),
            ("a0.h0", "m0"),
            ("m0", "logits"),
        },
        constant={("input", "a0.h0<v>"), ("input", "m0")},  # "<s>"; "one"
    )


def tracr_next(n_prompts: int = 60, seed: int = 0) -> Planted:
    """Induction: a0.h0 fetches the word before, a1.h0 matches and copies.

    Prompts A B C D A or C D A B A, corrupted as in `toy_tasks.planted.induction`.
    """
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = [], []
    for n in range(n_prompts):
        order = torch.randperm(len(WORDS), generator=generator).tolist()
        row = [WORDS[i] for i in order]
        at, other = (0, 2) if n % 2 else (2, 0)
        clean.append([*row, row[at]])
        if n % 3 == 0:
            corrupted.append([*row, row[other]])
        else:
            swap = n % 3 - 1  # 0: the two words asked for, 1: the two that follow
            new = list(row)
            new[swap], new[2 + swap] = row[2 + swap], row[swap]
            corrupted.append([*new, row[at]])
    return _case(
        compiled(programs()["next"]),
        "tracr-next",
        (clean, corrupted),
        lambda row: row[row.index(row[-1]) + 1],
        edges={
            ("input", "a0.h0<v>"),
            ("a0.h0", "a1.h0<k>"),
            ("input", "a1.h0<q>"),
            ("input", "a1.h0<v>"),
            ("a1.h0", "logits"),
        },
        constant={("input", "a0.h0<q>"), ("input", "a0.h0<k>")},  # positions
    )


def _case(
    made: Compiled,
    name: str,
    rows: tuple[list[list[str]], list[list[str]]],
    meaning: Callable[[list[str]], Any],
    *,
    edges: set[tuple[str, str]],
    constant: set[tuple[str, str]],
) -> Planted:
    answers, wrong = (
        torch.tensor([made.outputs.index(meaning(row)) for row in part])
        for part in rows
    )
    directions: dict[str, list[int]] = {}
    for place, label in enumerate(made.tracr.residual_labels):
        directions.setdefault(label.partition(":")[0], []).append(place)
    names = {token: word for word, token in made.tokens.items()}
    return Planted(
        name=name,
        model=made.toy,
        clean=made.encode(rows[0]),
        corrupted=made.encode(rows[1]),
        answers=answers,
        wrong=wrong,
        edges=frozenset(edges),
        all_edges=frozenset(edges | constant),
        vocab=tuple(names[token] for token in range(len(names))),
        directions={name: tuple(places) for name, places in directions.items()},
        distractor_heads=(),
        effect_floor=0.2,
        noise_bound=1e-9,
        notes="Compiled by tracr, saturated attention, no norm. Logits are output "
        "values, not vocabulary: see Compiled.outputs.",
    )
