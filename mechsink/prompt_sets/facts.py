"""Facts for multiple choice: what is asked of a subject, and the right answer.

Within a topic no two subjects share an answer, so the options that are taken from
other subjects are wrong.
"""

from dataclasses import dataclass

from mechsink.prompt_sets.words import CAPITALS, OBJECTS, PLACES


@dataclass(frozen=True)
class Topic:
    """Questions of one kind: `question` with {subject}, and subject to answer."""

    name: str
    question: str
    answers: dict[str, str]


FACTS = (
    Topic("capitals", "What is the capital of {subject}?", CAPITALS),
    Topic(
        "opposites",
        'What is the opposite of "{subject}"?',
        {
            "hot": "cold",
            "big": "small",
            "fast": "slow",
            "up": "down",
            "left": "right",
            "old": "young",
            "rich": "poor",
            "hard": "soft",
            "light": "dark",
            "full": "empty",
            "open": "closed",
            "early": "late",
            "strong": "weak",
            "wet": "dry",
            "high": "low",
            "happy": "sad",
            "true": "false",
            "first": "last",
            "long": "short",
            "love": "hate",
        },
    ),
    Topic(
        "colours",
        "What is the colour of {subject}?",
        {
            "grass": "green",
            "snow": "white",
            "coal": "black",
            "blood": "red",
            "chocolate": "brown",
            "a ripe lemon": "yellow",
            "the clear sky at noon": "blue",
            "an elephant": "grey",
            "a ripe pumpkin": "orange",
            "a flamingo": "pink",
        },
    ),
    Topic(
        "young animals",
        "What is a young {subject} called?",
        {
            "dog": "puppy",
            "cat": "kitten",
            "cow": "calf",
            "horse": "foal",
            "sheep": "lamb",
            "pig": "piglet",
            "bear": "cub",
            "frog": "tadpole",
            "duck": "duckling",
            "goose": "gosling",
            "deer": "fawn",
            "swan": "cygnet",
        },
    ),
    Topic(
        "languages",
        "What is the main language of {subject}?",
        {
            "France": "French",
            "Germany": "German",
            "Italy": "Italian",
            "Spain": "Spanish",
            "Portugal": "Portuguese",
            "Greece": "Greek",
            "Turkey": "Turkish",
            "Russia": "Russian",
            "Poland": "Polish",
            "Sweden": "Swedish",
            "Norway": "Norwegian",
            "Denmark": "Danish",
            "Finland": "Finnish",
            "Hungary": "Hungarian",
            "Romania": "Romanian",
            "Bulgaria": "Bulgarian",
            "Japan": "Japanese",
            "China": "Chinese",
            "Thailand": "Thai",
            "Vietnam": "Vietnamese",
        },
    ),
)

WORDS = (
    Topic(
        "words",
        'Which option is the word "{subject}"?',
        {word: word for word in (*PLACES, *OBJECTS, "river", "stone", "cloud", "tree")},
    ),
)
