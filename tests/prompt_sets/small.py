"""Small tokenizers of three kinds, each around a tiny random model."""

import functools
import re
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from mechsink.models.bridge import BridgeModel
from tests.models.families import tiny

NAMES = ["Mary", "John", "Tom", "Kate", "Paul", "Anna", "Mark", "Susan"]
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "New Zealand": "Wellington",
    "South Korea": "Seoul",
    "Norway": "Berlin",  # Oslo is unknown
}
TEXT = (
    "Then, and went to the place. gave a to When got at decided give it After Friends "
    "found While were working handed store garden restaurant school hospital office "
    "house station park market ring book drink basketball computer necklace snack bone "
    "letter map The capital city of is Question: What is the ? Answer: lasted from "
    "year war siege campaign expedition journey project strike rebellion drought "
    "dispute reign construction conflict alliance tour study = + . A B C D E F G H "
    "Which option word river stone cloud tree"
)
NUMBERS = [str(n) for n in range(1000)] + [f"{n:02}" for n in range(100)]
DIGITS = {1: r"\d", 2: r"\d{1,2}", 3: r"\d{1,3}"}


class Quick(BridgeModel):
    """A bridge without its versions, which take 9 ms to read.

    The shape checker asks for `info` at each call that takes a `Model`.
    """

    @property
    def info(self) -> dict[str, Any]:
        """The backend alone."""
        return {"backend": "transformer_lens"}


def words(digits: int = 3, bos: bool = False) -> Quick:
    """A word-level tokenizer: known words only, numbers cut by `digits`.

    It drops all spaces and line breaks, and calls everything else [UNK].
    """
    pieces = re.findall(r"\w+|[^\w\s]+", TEXT)
    countries = " ".join([*CAPITALS, *CAPITALS.values()]).split()
    known = dict.fromkeys(
        ["[UNK]", "<s>", *pieces, *NAMES, *countries, *NUMBERS, *'"?"', '"?', "."]
    )
    tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(known)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DIGITS[digits]), "isolated"),
            pre_tokenizers.Whitespace(),
        ]
    )
    return _wrap(tokenizer, f"words-{digits}", bos, unk_token="[UNK]")


def byte_pairs(texts: Iterable[str], size: int = 700, bos: bool = False) -> Quick:
    """A byte-level BPE trained on a text; each digit is a token of its own.

    As in GPT-2, BOS is named as the unknown token too, though nothing is unknown.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, "byte pairs", bos, unk_token="<s>", pad_token="<pad>")


def spoken() -> list[str]:
    """A text for `byte_pairs` in which some of the needed words are frequent."""
    facts = [f"The capital of {c} is {t}." for c, t in CAPITALS.items() if t != "Rome"]
    people = [f"Then, {a} and {a} gave it to {a}" for a in NAMES]
    return [TEXT, *facts * 5, *people * 5]


@functools.cache
def model(name: str) -> Quick:
    """One of the three kinds, the same one within a test session."""
    return {
        "words": words,
        "bos": lambda: words(1, bos=True),
        "byte pairs": lambda: byte_pairs(spoken()),
    }[name]()


KINDS = ("words", "bos", "byte pairs")


def tokens(wrapped: BridgeModel, text: str) -> list[int]:
    """A text's tokens, asked of the tokenizer itself."""
    return wrapped.tokenizer(text)["input_ids"]


def spans(wrapped: BridgeModel, text: str) -> list[tuple[int, int]]:
    """Where in the text each token stands."""
    found = wrapped.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [(int(start), int(end)) for start, end in found]


def _wrap(tokenizer: Tokenizer, name: str, bos: bool, **special: Any) -> Quick:
    if bos:
        first = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[first]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", **special
    )
    network = tiny("llama")
    torch.manual_seed(0)
    network.resize_token_embeddings(len(fast), mean_resizing=False)
    with torch.no_grad():
        for table in (network.get_input_embeddings(), network.get_output_embeddings()):
            table.weight.normal_(0.0, 0.25)
    return Quick(network, fast, name=name, selfcheck=False)
