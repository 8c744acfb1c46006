"""A study as a folder: README.md and report.html to read, tables, figures, meta.json.

May import: results, plotting, experiments.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechsink.experiments.grids.seeds import cell
from mechsink.experiments.study import Study
from mechsink.files import atomic_write
from mechsink.report.html import write_page
from mechsink.report.study_page import study_page
from mechsink.visible import visible


def write_study(study: Study, folder: Path | str, command: str) -> Path:
    """Write a study's folder: README.md, which a forge shows, and report.html.

    Args:
        study: any experiment's result.
        folder: new, or to be filled.
        command: what made it, printed on the page.

    Returns:
        README.md.

    Raises:
        OSError: the folder cannot be written.

    Examples:
        >>> import pandas as pd
        >>> from mechsink.experiments.study import as_claims, claim
        >>> claims = as_claims([claim("a sink forms", 0.8, above=0.3)])
        >>> study = ms.Study(pd.DataFrame({"score": [0.8]}), {"seed": 0}, claims)
        >>> ms.write_study(study, "study", "python my_study.py").name
        'README.md'
    """
    import matplotlib.pyplot as plt

    folder = study.save(folder)
    about = [study.about(), ""] if study.about() else []
    shown = visible(command).replace("\n", "\n    ")  # all of it in the code block
    lines = [f"# {_cell(study.title)}", "", *about, "Made by", "", f"    {shown}", ""]
    lines += [_settings(study.meta), "", "## Claims", "", markdown(_verdicts(study))]
    figures = study.figures()
    write_page(study_page(study, command, figures), folder / "report.html")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
        plt.close(figure)
        lines += ["", f"![{name.replace('-', ' ')}]({name}.png)"]
    for heading, table in study.tables().items():
        lines += ["", f"## {_cell(heading)}", "", markdown(table)]
    lines += ["", "All numbers are in table.csv; settings in meta.json."]
    return atomic_write(folder / "README.md", "\n".join(lines) + "\n")


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; numbers in three digits, a dash where none is."""
    rows = [[_cell(str(name)) for name in table.columns], ["-"] * len(table.columns)]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "**no**"
    if isinstance(value, float | np.floating):
        return "-" if np.isnan(value) else f"{value:.3g}"
    text = re.sub(r"\s*[\r\n]\s*", " ", visible(str(value)))
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
    text = text.replace("](", "]\\(")  # no link or picture from outside
    return text.replace("<", "&lt;")  # "<s>" would strike the rest through


def _verdicts(study: Study) -> pd.DataFrame:
    """Claims with measured and interval in one cell."""
    claims = study.claims
    measured = [
        cell(*row)
        for row in claims[["measured", "low", "high"]].itertuples(index=False)
    ]
    return pd.DataFrame(
        {
            "claim": claims["claim"],
            "measured [95 %]": measured,
            "wanted": claims["wanted"],
            "holds": claims["holds"].astype(bool),
        }
    )


def _settings(meta: Mapping[str, Any]) -> str:
    """Seeds, duration and versions, in one paragraph."""
    parts = []
    if "seeds" in meta:
        parts.append(f"seeds {', '.join(map(str, meta['seeds']))}")
    if "model" in meta:
        parts.append(f"model {_cell(meta['model'])}")
    if (meta.get("training_s") or 0) > 0:
        parts.append(f"{meta['training_s'] / 60:.0f} core-minutes of training")
    if "duration_s" in meta:
        parts.append(f"{meta['duration_s']:.0f} s from start to end")
        if meta.get("n_resumed"):
            parts[-1] += (
                f", {meta['n_resumed']} of {meta['n_runs']} runs being there already"
            )
    found = meta.get("versions", {})
    parts += [f"{name} {version}" for name, version in found.items() if version]
    return "; ".join(parts) + "."
