"""The demo: a real model's sinks, and how the same things form in a toy, on one page.

May import: sites, run, results, plotting, models, sinks, experiments, toy_tasks.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mechsink.files import atomic_write, to_json
from mechsink.models.load import load_model
from mechsink.progress import waiting
from mechsink.report import formation_page, sink_page, sink_words
from mechsink.report.formation import FormationReport, formation_report
from mechsink.report.html import Headline, Page, Section, settings_rows, write_page
from mechsink.report.sinks import SinkReport, sink_report
from toy_tasks import PRESETS, BigramBackcopy, train

TOYS = {"bb-cpu": 1500, "bb3-cpu": 1500}
"""Toys of the demo and their training steps."""

N_TEXTS = 50  # as many as a bootstrap interval asks for


def write_demo(
    stage: Path, *, model: str, toys: Path, seed: int = 0, steps: int | None = None
) -> Page:
    """Measure, train, and write everything into `stage`; return the page.

    Args:
        stage: folder to write into.
        model: the real model, as for `load_model`.
        toys: folder for the training runs, which are resumed there.
        seed: of the toys.
        steps: training steps of each toy, instead of `TOYS`.

    Raises:
        ValueError, OSError: the model cannot be loaded, or a run not resumed.
    """
    started = time.perf_counter()
    with waiting(f"1/4 loading {model}"):
        loaded = load_model(model)
    real = sink_report(loaded, n_texts=N_TEXTS, eps=0.3)
    task, formed = BigramBackcopy.from_text(None), []
    for name, n_steps in TOYS.items():
        n_steps = steps or n_steps
        recipe = replace(PRESETS[name], steps=n_steps)
        run = train(task, recipe, toys / f"{name}-seed{seed}-{n_steps}steps", seed)
        formed.append(formation_report(run))
    return write_story(stage, real, formed, time.perf_counter() - started)


def write_story(
    stage: Path, real: SinkReport, formed: Sequence[FormationReport], duration: float
) -> Page:
    """Tables, figures and the page of both halves."""
    drawn = sink_page.figures(real)
    real.save_drawn(stage / "model", drawn)
    chapters = [
        Section(
            f"A real model: {real.meta['model']}",
            sink_words.summary(real),
            headlines=sink_words.headlines(real),
            chapter=True,
        ),
        *sink_page.sections(real, drawn),
    ]
    for report in formed:
        part = formation_page.figures(report)
        report.save_drawn(stage / f"formation-{_name(report)}", part)
        chapters += [
            Section(
                _title(report),
                formation_page.summary(report),
                headlines=formation_page.headlines(report),
                chapter=True,
            ),
            *formation_page.sections(report, part),
        ]
    parts = {real.meta["model"]: real.meta, **{_name(r): r.meta for r in formed}}
    meta = {
        "result": "demo",
        "duration_s": round(duration, 1),
        "versions": real.meta["versions"],
        "parts": {
            name: {k: v for k, v in meta.items() if k not in ("tokens", "versions")}
            for name, meta in parts.items()
        },
    }
    page = Page(
        title="Attention sinks: in a real model, and as they form in a toy",
        summary=_story(real, formed),
        headlines=(
            *_of(real.meta["model"], sink_words.headlines(real), 0, 2, 3),
            *_of("toy, one layer", formation_page.headlines(formed[0]), 0),
            *_of("toy, three layers", formation_page.headlines(formed[-1]), 3),
        ),
        sections=tuple(chapters),
        texts=sink_page.texts(real),
        settings=_settings(meta),
        notes=(*sink_words.notes(real), *formation_page.notes(formed[0])),
    )
    atomic_write(stage / "meta.json", to_json(meta))
    write_page(page, stage / "report.html")
    return page


def _story(real: SinkReport, formed: Sequence[FormationReport]) -> tuple[str, ...]:
    names = ", then ".join(
        f"{_n_layers(report)} layer{'s' if _n_layers(report) > 1 else ''}"
        for report in formed
    )
    return (
        "An attention sink is a position that heads look at whatever stands there. Two "
        "more things are looked for at the same place: values far shorter than the "
        "other tokens' (value drains) and a residual stream far longer than theirs "
        "(residual peaks).",
        f"This page first measures all three in {real.meta['model']}. Then it follows "
        f"small transformers ({names}), trained on your machine for this page, on a "
        "task made so that a head has work on a few tokens and none on the rest, and "
        "shows at which training step each of the three appears, or does not.",
    )


def _of(what: str, items: Sequence[Headline], *places: int) -> list[Headline]:
    """Some of a part's headlines, saying whose they are."""
    return [replace(items[i], label=f"{what}: {items[i].label}") for i in places]


def _title(report: FormationReport) -> str:
    n = _n_layers(report)
    layers = "one layer" if n == 1 else f"{n} layers"
    return f"How it forms: a toy of {layers} ({_name(report)})"


def _name(report: FormationReport) -> str:
    return report.meta["training"]["preset"]["name"]


def _n_layers(report: FormationReport) -> int:
    return report.meta["training"]["model"]["n_layers"]


def _settings(meta: dict) -> tuple[tuple[str, str], ...]:
    rows = settings_rows({k: v for k, v in meta.items() if k != "parts"})
    for name, part in meta["parts"].items():
        rows += tuple((f"{name}: {key}", value) for key, value in settings_rows(part))
    return rows
