"""Headline numbers of each verb's result, for --json: plain values with intervals.

An estimate is {"value", "low", "high"}, its 95 % interval null where none was made.
May import: all rooms.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechsink.experiments.study import Study
    from mechsink.report.all_for_one import AllForOneReport
    from mechsink.report.edge_result import EdgeReport
    from mechsink.report.formation import FormationReport
    from mechsink.report.heads import HeadsReport
    from mechsink.report.html import Page
    from mechsink.report.patching import PatchReport
    from mechsink.report.sinks import SinkReport

Numbers = Mapping[str, Any]


def estimate(value: Any, low: Any = None, high: Any = None) -> dict[str, Any]:
    """A value and the ends of its interval."""
    return {"value": value, "low": low, "high": high}


def of_sinks(report: "SinkReport") -> Numbers:
    """Sink rate, the strongest head, value drain, residual peak, massive ones."""
    table: Any = report.table
    best, residual = table.loc[table["score"].idxmax()], report.residual
    peak: Any = residual.loc[residual["ratio"].idxmax()]
    return {
        "sink_rate": estimate(report.rate, *(report.rate_interval or (None, None))),
        "highest_sink_score": {
            "layer": int(best["layer"]),
            "head": int(best["head"]),
            **estimate(best["score"], best.get("low"), best.get("high")),
        },
        "median_value_norm_ratio": table["ratio"].median(),
        "largest_residual_norm_ratio": {
            "layer": int(peak["layer"]),
            "value": peak["ratio"],
        },
        "massive_activations": report.massive.groupby(["pos", "dim"]).ngroups,
    }


def of_heads(report: "HeadsReport") -> Numbers:
    """Mean dormancy by domain, and how many heads differ and are confirmed."""
    table: Any = report.table
    return {
        "mean_dormancy": {name: table[name].mean() for name in report.domains},
        "heads": len(table[["layer", "head"]].drop_duplicates()),
        "heads_that_differ": len(report.heads()),
        "heads_confirmed": len(report.confirmed()),
        "most_different": [list(head) for head in report.heads()[:5]],
    }


def of_formation(report: "FormationReport") -> Numbers:
    """What the toy ends with, in the layer whose heads look most at the sink."""
    layer = report.sink_layer
    measures = {
        "attention_to_sink": "bos_markov" if report.has_task else "sink_score",
        "attention_to_previous_on_triggers": "previous_trigger",
        "value_norm_ratio": "value_ratio",
    }
    table: Any = report.table
    ratios: Any = report.final[report.final["measure"] == "resid_ratio"]["value"]
    return {
        "layer": layer,
        "steps": int(table["step"].max()),
        **{name: report.value(measure, layer) for name, measure in measures.items()},
        "largest_residual_norm_ratio": ratios.max(),
        "excess_risk_nats": report.value("markov_excess"),
    }


def of_patching(report: "PatchReport") -> Numbers:
    """Metric of both runs, and the strongest place of each site."""
    strongest: dict[str, Any] = {}
    for site in report.sites:
        place = dict(report.places(site).iloc[0])
        value = estimate(
            place.pop("effect"), place.pop("low", None), place.pop("high", None)
        )
        strongest[site] = {**{key: int(n) for key, n in place.items()}, **value}
    return {
        "pairs": len(report.runs),
        "metric_clean": report.runs["clean"].mean(),
        "metric_corrupted": report.runs["corrupted"].mean(),
        "strongest": strongest,
    }


def of_circuit(report: "EdgeReport") -> Numbers:
    """Edges, faithfulness, CPR and CMD, accuracy of the clean prompts."""
    chosen: Any = report.table["in_circuit"]
    return {
        "edges": int(chosen.sum()),
        "edges_of_model": len(report.table),
        "faithfulness": estimate(*report.faithfulness),
        "cpr": estimate(*report.cpr),
        "cmd": estimate(*report.cmd),
        "accuracy": estimate(*report.accuracy),
    }


def of_all_for_one(report: "AllForOneReport") -> Numbers:
    """How long the model can wait, where it peeks, and what that keeps."""
    return {
        "found": report.found,
        "wait": report.wait,
        "peek": report.peek,
        "kept": estimate(report.kept, *report.kept_interval),
        "full_accuracy": report.meta["settings"]["full_accuracy"],
    }


def of_study(study: "Study") -> Numbers:
    """Every claim with what was measured."""
    holds: Any = study.claims["holds"]
    return {
        "claims": study.claims.to_dict("records"),
        "claims_that_hold": int(holds.sum()),
    }


def of_page(page: "Page") -> Numbers:
    """The numbers at the page's top, as it words them."""
    return {line.label: line.value for line in page.headlines}
