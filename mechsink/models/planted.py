"""`planted`: a hand-built model whose circuit is known, ready to be measured.

Small enough for the documentation's examples, and true enough to see whether a method
finds what is there.
May import: rooms up to prompts, toy_tasks.
"""

from dataclasses import dataclass

from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Model
from toy_tasks.checks import checked
from toy_tasks.planted import PLANTED, Words


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A model, pairs of prompts for it, and the edges that carry what they change.

    Attributes:
        model: reads words: `model.to_tokens("A B C A")`; each prompt opens with `<s>`.
        pairs: clean and corrupted prompts, Int[prompt pos], with answers.
        edges: (source, target), named as in `EdgeScores`; all others carry nothing.

    Examples:
        >>> case = ms.planted("induction")
        >>> sorted(case.edges)[:2]
        [('a0.h0', 'a1.h0<k>'), ('a1.h0', 'logits')]
    """

    model: Model
    pairs: PromptPairs
    edges: frozenset[tuple[str, str]]


@checked
def planted(
    name: str = "induction", *, n_prompts: int = 12, seed: int = 0
) -> PlantedModel:
    """A hand-built model with prompts, whose circuit is known edge by edge.

    "induction": `<s> .. A B .. A` is answered by B, through a previous-token head and
    an induction head; "duplicate": the token that stands twice; "and", "or": bits
    through heads and an MLP; "backcopy": Bigram-Backcopy, with an attention sink;
    "letter": multiple choice. Each also as NAME-grouped (grouped-query attention) and
    NAME-rms (RMSNorm). `toy_tasks.planted` has their weights in words.

    Args:
        name: which.
        n_prompts: pairs of prompts; at least 3, one for each way to corrupt one.
        seed: of the prompts, and of heads and neurons that do not matter.

    Returns:
        Model, pairs and true edges.

    Raises:
        ValueError: an unknown name, or too few prompts.

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> ms.edge_auroc(scores, case.edges)
        1.0
        >>> tokens = case.model.to_tokens("A B C D A")
        >>> case.model.to_strings(ms.generate(case.model, tokens, 1).new[0])
        ['B']
    """
    if name not in PLANTED:
        raise ValueError(
            f"planted: no model is called {name!r}. Allowed: {', '.join(PLANTED)}."
        )
    case = PLANTED[name](n_prompts=n_prompts, seed=seed)
    pairs = PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
    words = Words(case.vocab)
    model = ToyModel(case.model.eval(), words, name=f"planted:{name}")
    return PlantedModel(model, pairs, case.edges)
