"""`all_for_one_report`: the search for an All-for-One subgraph, with a page.

May import: sites, run, results, plotting, slots, experiments.
"""

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from mechsink import plotting
from mechsink.experiments.all_for_one.search import AllForOneSearch, search_all_for_one
from mechsink.intervals import wilson
from mechsink.models.any_model import any_model
from mechsink.report.html import Headline, Page, Plot, Section, TokenText, settings_rows
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.svg import inline_svg
from mechsink.report.tables import to_table
from mechsink.run import Model
from mechsink.slots.prompts import SlotPrompts
from mechsink.slots.tokens import SlotTokens

SHARES = {
    "kept": "kept, unseen prompts",
    "low": "95 % from",
    "high": "95 % to",
    "train_kept": "kept where chosen",
}


@dataclass(frozen=True, eq=False)
class AllForOneReport(AllForOneSearch, PagedResult):
    """An `AllForOneSearch` that tells itself on a page.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "{F} {A} {G} {B} =",
        ...     {"F": "uvwx", "A": "01", "G": "uvwx", "B": "01"},
        ...     lambda F, A, G, B: " yes" if A + B == "11" else " no",
        ... )
        >>> report = ms.all_for_one_report(model, prompts, unseen="prompts")
        >>> isinstance(report, ms.AllForOneSearch), report.wait
        (True, 0)
    """

    def draw(self) -> Drawn:
        """The trade-off curve."""
        import matplotlib.pyplot as plt

        figure = plotting.figure_of(self.plot())
        plt.close(figure)
        plot = Plot(
            inline_svg(figure, "trade-off"),
            "How long the model can wait",
            "Share of the full model's right answers that are kept when every token's "
            "residual after so many layers is its mean given the token alone, and only "
            "the last token looks at others after that. Band: 95 % Wilson interval; "
            "dotted: the target.",
        )
        return {"trade-off": (figure, plot)}

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page: the answer, the curve, the sets tried, what the model needs.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        plot = (drawn or self.draw())["trade-off"][1]
        texts = list(enumerate(self.meta["tokens"]))
        return Page(
            title=f"All for one: {self.meta['model']}",
            summary=(
                self.message,
                "An All-for-One subgraph waits some layers in which tokens do not "
                "hear of each other, lets the last token look at the others in a few, "
                "and works at the last token alone from then on (arXiv:2509.09650).",
            ),
            headlines=(
                self._accuracy(),
                Headline(
                    "none" if self.wait is None else str(self.wait),
                    "layers waited",
                    f"keeping {self.target:.0%} of right answers where it was chosen",
                ),
                Headline(
                    "–"
                    if self.peek is None
                    else (", ".join(map(str, self.peek)) or "none"),
                    "peeking layers",
                    "where the last token looks at the others",
                ),
                *self._kept(),
            ),
            sections=(
                Section(
                    "Waiting",
                    figures=(plot,),
                    tables=(
                        to_table(
                            self.table,
                            "Every waiting depth",
                            names={"wait": "layers waited", **SHARES},
                            caption="Peeking in all later layers.",
                        ),
                    ),
                ),
                Section(
                    "Peeking",
                    tables=(
                        to_table(
                            _best(self.peeks),
                            "Sets of peeking layers",
                            names={
                                "wait": "layers waited",
                                "peek": "peeking in",
                                **SHARES,
                            },
                            caption="The best forty at the chosen waiting depth.",
                        ),
                    )
                    if len(self.peeks)
                    else (),
                    text=()
                    if len(self.peeks)
                    else ("No waiting depth reached the target; no set was tried.",),
                ),
                Section(
                    "What the full model needs",
                    text=(
                        "Nothing else is changed: in the named layers the last token "
                        "sees only itself and the first token.",
                    ),
                    tables=(
                        to_table(
                            self.necessity,
                            "Peeks undone",
                            names={
                                "undone": "layers",
                                **SHARES,
                                "logprob": "log-probability of the answer, nats",
                            },
                        ),
                    ),
                ),
            ),
            texts=tuple(
                TokenText.from_meta(f"Prompt {i}", entry) for i, entry in texts
            ),
            settings=settings_rows(self.meta),
        )

    def _accuracy(self) -> Headline:
        settings = self.meta["settings"]
        share, right = settings["full_accuracy"], settings["right"]
        low, high = wilson(right, round(right / share))  # some prompt was right
        note = f"{low:.3f} to {high:.3f} (95 %); these {right} prompts take part"
        return Headline(f"{share:.3f}", "full model right", note)

    def _kept(self) -> tuple[Headline, ...]:
        """What the subgraph keeps where it was not chosen; none if none was found."""
        if not self.found:
            return ()
        low, high = self.kept_interval
        note = f"{low:.3f} to {high:.3f} (95 %); 1 is all that the full model gets"
        return (Headline(f"{self.kept:.3f}", "right answers kept, unseen", note),)


@any_model
def all_for_one_report(
    model: Model, prompts: SlotPrompts | SlotTokens, **options: Any
) -> AllForOneReport:
    """`search_all_for_one` with a page.

    Args:
        model: a causal model whose attention can be edited.
        prompts: prompts with answers, as for `all_for_one`.
        options: of `search_all_for_one`.

    Returns:
        An `AllForOneReport`: `.save(folder)` writes tables, figures and report.html.

    Raises:
        ValueError: as `search_all_for_one`.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "{F} {A} {G} {B} =",
        ...     {"F": "uvwx", "A": "01", "G": "uvwx", "B": "01"},
        ...     lambda F, A, G, B: " yes" if A + B == "11" else " no",
        ... )
        >>> report = ms.all_for_one_report(model, prompts, unseen="prompts")
        >>> report.to_html("report.html").name
        'report.html'
    """
    search = search_all_for_one(model, prompts, **options)
    return AllForOneReport(**{f.name: getattr(search, f.name) for f in fields(search)})


def _best(peeks: pd.DataFrame) -> pd.DataFrame:
    return peeks.sort_values(["train_kept", "n_peek"], ascending=[False, True]).head(40)
