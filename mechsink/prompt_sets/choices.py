"""Multiple choice: which of four labels stands before the right option?"""

import random
import string
from collections.abc import Iterator, Sequence
from typing import Literal

from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import Candidate, one_token
from mechsink.prompt_sets.facts import FACTS, WORDS, Topic
from mechsink.prompt_sets.sets import DRAWS, PromptSet, check_n, make, none_made
from mechsink.run import Model

SLOTS = range(4)
LETTERS = tuple(string.ascii_uppercase)
OPTIONS = "".join(f"\n{{label{i}}}. {{option{i}}}" for i in SLOTS)

Content = Literal["facts", "words"]
Corrupt = Literal["question", "order"]


@any_model
def multiple_choice(
    model: Model,
    n: int = 100,
    *,
    seed: int = 0,
    content: Content = "facts",
    labels: Sequence[str] | Literal["random"] = "ABCD",
    corrupt: Corrupt = "question",
    n_examples: int = 0,
) -> PromptSet:
    r"""Four labelled options: "Question: ...\nA. Rome\nB. Paris ...\nAnswer:" B.

    The answer is the right option's label, `wrong` the label that the corrupted
    prompt calls for. The right option's place is drawn at random.

    Args:
        model: whose tokenizer the prompts must fit.
        n: pairs to make.
        seed: of all draws; the same seed makes the same set everywhere. With the
            same seed and other labels the questions and options are drawn alike.
        content: "facts" (capitals, opposites, colours, young animals, languages) or
            "words", which asks for an option by name and needs no knowledge.
        labels: four different ones, in order of place; or "random": four letters
            drawn anew for each pair, to test whether a circuit found with A to D
            follows the place or the letter. A pair and its examples share labels.
        corrupt: "question" asks about another of the four options; "order" lets the
            right option and another change places.
        n_examples: solved questions before the one that is asked.

    Returns:
        Slots question, label0 to label3, option0 to option3; columns topic, and
        place (0 to 3) of the right option.

    Raises:
        ValueError: an unknown option, labels that are not four different ones, or
            not one pair can be made.

    Source: task of Lieberum et al. 2023 (arXiv:2307.09458); the questions are ours.

    Examples:
        >>> model = ms.load_model("smollm2")
        >>> found = ms.prompt_sets.multiple_choice(model, n=2, content="words")
        >>> print(found.table.clean[0])
        Question: Which option is the word "snack"?
        A. basketball
        B. garden
        C. park
        D. snack
        Answer:
    """
    check_n("multiple_choice", n)
    if content not in ("facts", "words") or corrupt not in ("question", "order"):
        raise ValueError(
            f"prompt_sets.multiple_choice: content={content!r}, corrupt={corrupt!r}. "
            "Allowed: content 'facts' or 'words'; corrupt 'question' or 'order'."
        )
    if n_examples < 0:
        raise ValueError(
            f"prompt_sets.multiple_choice: n_examples={n_examples}. Allowed: 0 or more."
        )
    pool, left = list(labels), []
    if labels == "random":
        pool, left = one_token(model, LETTERS, "Answer:")
    elif len(pool) != 4 or len(set(pool)) < 4:
        raise ValueError(
            f"prompt_sets.multiple_choice: labels={labels!r}. Allowed: four different "
            'ones, such as "ABCD" or ["W", "X", "Y", "Z"], or "random".'
        )
    if len(pool) < 4:
        raise none_made("multiple_choice", n, {}, left)
    topics = FACTS if content == "facts" else WORDS
    # Labels have draws of their own, so that they change nothing else.
    drawn = (random.Random(f"labels {seed}"), pool, labels == "random")
    candidates = _candidates(
        random.Random(seed), drawn, topics, corrupt, n_examples, n * DRAWS
    )
    settings = {
        "seed": seed,
        "content": content,
        "labels": "random" if labels == "random" else pool,
        "corrupt": corrupt,
        "n_examples": n_examples,
    }
    return make("multiple_choice", model, candidates, n, settings, left)


def _candidates(
    draw: random.Random,
    labels: tuple[random.Random, list[str], bool],
    topics: Sequence[Topic],
    corrupt: Corrupt,
    n_examples: int,
    n: int,
) -> Iterator[Candidate]:
    draw_labels, pool, redrawn = labels
    for _ in range(n):
        shown = draw_labels.sample(pool, 4) if redrawn else pool
        named = {f"label{i}": shown[i] for i in SLOTS}
        asked = _question(draw, topics)
        topic, subjects, place = asked
        before = ""
        for _ in range(n_examples):
            example = _question(draw, topics)
            while example[1][example[2]] in subjects:  # would tell the answer
                example = _question(draw, topics)
            filled = ("{question}" + OPTIONS).format(**named, **_filled(*example))
            before += f"Question: {filled}\nAnswer: {shown[example[2]]}\n\n"
        other = draw.choice([i for i in SLOTS if i != place])
        clean = {**named, **_filled(*asked)}
        changed = {"question": topic.question.format(subject=subjects[other])}
        if corrupt == "order":
            moved = {place: other, other: place}
            changed = {f"option{i}": clean[f"option{j}"] for i, j in moved.items()}
        yield Candidate(
            before.replace("{", "{{").replace("}", "}}")  # a label may be a brace
            + "Question: {question}"
            + OPTIONS
            + "\nAnswer:",
            clean,
            {**clean, **changed},
            f" {shown[place]}",
            f" {shown[other]}",
            info={"topic": topic.name, "place": place},
        )


def _question(
    draw: random.Random, topics: Sequence[Topic]
) -> tuple[Topic, list[str], int]:
    """A topic, the subjects whose answers are the options, and which is asked."""
    topic = draw.choice(topics)
    return topic, draw.sample(list(topic.answers), 4), draw.randrange(4)


def _filled(topic: Topic, subjects: Sequence[str], place: int) -> dict[str, str]:
    options = {f"option{i}": topic.answers[subjects[i]] for i in SLOTS}
    return {"question": topic.question.format(subject=subjects[place]), **options}
