"""Tokenizers of the known kinds, trained on the spot, around tiny models."""

import functools

import transformers as hf
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from mechsink.models.bridge import BridgeModel
from mechsink.prompt_sets import choices, indirect_objects, later_years, world_capitals
from mechsink.prompt_sets.facts import FACTS
from mechsink.prompt_sets.words import CAPITALS, EVENTS, NAMES, OBJECTS, PLACES
from tests.models.families import SIZES

DIGITS = "0123456789"


def texts() -> list[str]:
    """Text in which every word of the prompt sets stands often."""
    words = [*NAMES, *PLACES, *OBJECTS, *EVENTS, *CAPITALS, *CAPITALS.values()]
    words += [word for topic in FACTS for word in (*topic.answers.values(),)]
    templates = " ".join(
        (
            *indirect_objects.TEMPLATES,
            *world_capitals.TEMPLATES,
            *(topic.question for topic in FACTS),
            "The lasted from the year to the year Question: Answer: Which option word",
            " ".join(choices.LETTERS),
        )
    )
    years = " ".join(
        f"{century}{year:02}"
        for century in later_years.CENTURIES
        for year in range(100)
    )
    return [templates, *(f"the {word} and {word} to" for word in words), years] * 3


def byte_level(cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """GPT-2's way: bytes, spaces belong to the word after them; `cut` comes first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


WORD = r" ?\p{L}+|%s| ?[^\s\p{L}\p{N}]+|\s"


def cut(numbers: str) -> pre_tokenizers.PreTokenizer:
    """Words and signs with their space, and numbers as a pattern says."""
    return pre_tokenizers.Split(Regex(WORD % numbers), "isolated")


def sentencepiece() -> Tokenizer:
    """Llama 2's way: a mark for spaces, also before the text; single digits; BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(Regex(r"[0-9]|\n|[=+.:?,\"]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        initial_alphabet=[*'▁\n=+.:?,"', *DIGITS],
        special_tokens=["<s>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def word_level() -> Tokenizer:
    """One token a word; a number is a word; half of the names are unknown."""
    known = [*NAMES[::2], *PLACES, *OBJECTS, *CAPITALS, *CAPITALS.values(), *texts()]
    splitter = pre_tokenizers.Whitespace()
    words = {
        word: None
        for text in known
        for word, _ in splitter.pre_tokenize_str(text)
        if word not in NAMES[1::2]
    }
    numbers = [str(number) for number in range(20)]
    every = dict.fromkeys(["<unk>", *words, *numbers, "=", "+", ".", ":", '"'])
    table = {word: i for i, word in enumerate(every)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return tokenizer


KINDS = {
    "two digits": lambda: byte_level(cut(r" ?\p{N}{1,2}")),  # as GPT-2 cuts years
    "one digit": lambda: byte_level(cut(r"\p{N}")),  # as SmolLM2
    "three digits": lambda: byte_level(cut(r"\p{N}{1,3}")),  # as Llama 3
    "sentencepiece": sentencepiece,
    "words": word_level,
}


@functools.cache
def model(kind: str) -> BridgeModel:
    """A tiny random Llama with a tokenizer of this kind."""
    import torch

    tokenizer = KINDS[kind]()
    special = {"bos_token": "<s>"} if kind != "words" else {}
    if kind in ("sentencepiece", "words"):
        special["unk_token"] = "<unk>"
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(fast), "max_position_embeddings": 256}
    return BridgeModel(
        hf.LlamaForCausalLM(hf.LlamaConfig(**sizes)).eval(), fast, name=kind
    )
