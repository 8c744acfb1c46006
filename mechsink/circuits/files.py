"""Circuits in files: JSON (node-link) and GraphML, both read by other tools.

No pickle: a file holds names and numbers, and reading it builds nothing else.
May import: results.
"""

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from mechsink.files import atomic_write, plain, to_json

SCHEMA, VERSION = "mechsink.circuit", 1
NUMBERS = ("score", "low", "high", "p_value", "q_value")
"""What an edge may carry; NaN is left out of a file and read back as NaN."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file says: the fields of `Wires`, outputs, edges with numbers, meta."""

    wires: dict[str, Any]
    outputs: list[str]
    edges: dict[tuple[str, str], dict[str, float]]
    meta: dict[str, Any]


def write_json(graph: nx.DiGraph, meta: dict[str, Any], path: Path) -> Path:
    """Write node-link JSON, whole or not at all.

    Raises:
        OSError: the path cannot be written.
    """
    link = nx.node_link_data(_portable(graph), edges="edges")
    return atomic_write(
        path,
        to_json(
            {
                "schema": SCHEMA,
                "version": VERSION,
                "wires": graph.graph["wires"],
                "outputs": graph.graph["outputs"],
                **{key: link[key] for key in ("directed", "multigraph")},
                # Again: networkx gives it to whoever reads the file with it.
                "graph": {key: graph.graph[key] for key in ("wires", "outputs")},
                "nodes": link["nodes"],
                "edges": link["edges"],
                "meta": meta,
                "sha256": _digest(_said(graph, meta)),
            }
        ),
    )


def write_graphml(graph: nx.DiGraph, meta: dict[str, Any], path: Path) -> Path:
    """Write GraphML, whole or not at all; what GraphML has no type for as JSON text.

    Raises:
        OSError: the path cannot be written.
    """
    portable = _portable(graph)
    portable.graph.update(
        schema=SCHEMA,
        version=VERSION,
        wires=json.dumps(plain(graph.graph["wires"])),
        outputs=json.dumps(graph.graph["outputs"]),
        meta=json.dumps(plain(meta)),  # ASCII: XML has no place for control codes
        sha256=_digest(_said(graph, meta)),
    )
    out = io.BytesIO()
    nx.write_graphml_xml(portable, out)  # never lxml, so that bytes are the same
    return atomic_write(path, out.getvalue())


def read_json(path: Path) -> Stored:
    """What `write_json` wrote.

    Raises:
        ValueError: the file cannot be read, or holds no circuit.
    """
    try:
        found = json.loads(path.read_bytes())
        _check_schema(found)
        links = [link for link in found["edges"] if link["kind"] == "edge"]
        edges = {(link["source"], link["target"]): _numbers(link) for link in links}
        return _stored(
            found["wires"], found["outputs"], edges, found["meta"], found.get("sha256")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise no_circuit(path, error) from error


def read_graphml(path: Path) -> Stored:
    """What `write_graphml` wrote.

    Raises:
        ValueError: the file cannot be read, or holds no circuit.
    """
    try:
        with warnings.catch_warnings():  # of a damaged file; we look at it ourselves
            warnings.simplefilter("ignore")
            graph: Any = nx.read_graphml(io.BytesIO(path.read_bytes()))
        _check_schema(graph.graph)
        wires, outputs, meta = (
            json.loads(graph.graph[key]) for key in ("wires", "outputs", "meta")
        )
        edges = {
            (source, target): _numbers(link)
            for source, target, link in graph.edges(data=True)
            if link["kind"] == "edge"
        }
        return _stored(wires, outputs, edges, meta, graph.graph.get("sha256"))
    except (  # a SyntaxError is how the XML parser says that it is no XML
        OSError,
        ValueError,
        KeyError,
        TypeError,
        SyntaxError,
        AttributeError,
        RecursionError,
        nx.NetworkXException,
    ) as error:
        raise no_circuit(path, error) from error


def no_circuit(path: Path, error: BaseException) -> ValueError:
    """The one error for a file that is missing, damaged or somebody else's."""
    what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return ValueError(
        f"Circuit.load: {path} holds no circuit ({what or type(error).__name__}). Give "
        "a .json or .graphml file that `circuit.save(path)` wrote, unchanged."
    )


def _portable(graph: nx.DiGraph) -> nx.DiGraph:
    """The same nodes and edges; numbers of Python's own types, NaN left out."""
    out = nx.DiGraph()
    out.add_nodes_from((node, dict(data)) for node, data in graph.nodes(data=True))
    for source, target, data in graph.edges(data=True):
        kept = {
            key: value
            for key, value in data.items()
            if key not in NUMBERS or value == value
        }
        out.add_edge(source, target, **kept)
    return out


def _check_schema(found: Any) -> None:
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"it does not name the schema {SCHEMA!r}")
    if found.get("version") != VERSION:
        raise ValueError(
            f"it is of version {found.get('version')!r}; this mechsink reads version "
            f"{VERSION}"
        )


def _said(graph: nx.DiGraph, meta: dict[str, Any]) -> Stored:
    """What a file of this graph says."""
    edges = {
        (source, target): {k: float(data[k]) for k in NUMBERS if k in data}
        for source, target, data in _portable(graph).edges(data=True)
        if data["kind"] == "edge"
    }
    wires, outputs = plain(graph.graph["wires"]), list(graph.graph["outputs"])
    return Stored(wires, outputs, edges, plain(meta))


def _digest(said: Stored) -> str:
    """Checksum of all that a file says of a circuit, in whichever form."""
    edges = sorted([*edge, numbers] for edge, numbers in said.edges.items())
    parts = [said.wires, said.outputs, edges, said.meta]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stored(
    wires: Any,
    outputs: Any,
    edges: dict[tuple[str, str], dict[str, float]],
    meta: Any,
    digest: Any,
) -> Stored:
    wrong = {
        "wires": not isinstance(wires, dict),
        "outputs": not isinstance(outputs, list)
        or not all(isinstance(name, str) for name in outputs),
        "meta": not isinstance(meta, dict),
        "edges": not all(isinstance(name, str) for edge in edges for name in edge),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"its {name} are of another form")
    found = Stored(wires, outputs, edges, meta)
    if digest is not None and digest != _digest(found):  # older files have none
        raise ValueError("it is not as it was saved")
    return found


def _numbers(link: dict[str, Any]) -> dict[str, float]:
    """An edge's numbers; JSON's booleans and texts are none."""
    found = {}
    for key in NUMBERS:
        value = link.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} = {value!r} is no number")
        found[key] = float(value)
    return found
