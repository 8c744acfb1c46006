"""The rule of rooms: a module imports only from rooms to its left."""

import ast
from pathlib import Path

ROOMS = [
    "visible",
    "sites",
    "run",
    "files",
    "tensors",
    "plotting",
    "shown",
    "results",
    "provenance",
    "intervals",
    "progress",
    "prompt_lines",
    "prompts",
    "slots",
    "metrics",
    "models",
    "prompt_sets",
    "precision",
    "interventions",
    "attribution",
    "sinks",
    "circuits",
    "engines",
    "experiments",
    "report",
    "cli",
]
ROOT = Path(__file__).parent.parent


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, at the top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the import absolute"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_mechsink_imports_only_from_the_left() -> None:
    for path in (ROOT / "mechsink").rglob("*.py"):
        room = path.relative_to(ROOT / "mechsink").parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        assert room in ROOMS, f"{room} is no room of the design"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "mechsink" and len(parts) > 1 and parts[1] in ROOMS:
                left = ROOMS.index(parts[1]) <= ROOMS.index(room)
                assert left, f"{path.name} in {room} imports {name}, to its right"


def test_toy_tasks_imports_nothing_of_mechsink() -> None:
    for path in (ROOT / "toy_tasks").rglob("*.py"):
        for name in imports(path):
            assert not name.startswith(("mechsink", "transformer_lens")), path


def test_only_the_models_room_knows_a_backend() -> None:
    for path in (ROOT / "mechsink").rglob("*.py"):
        if "models" in path.parts:
            continue
        for name in imports(path):
            known = name.split(".")[0] in (
                "transformer_lens",
                "transformers",
                "nnsight",
            )
            assert not known, f"{path.name} imports {name}"
        assert "blocks." not in path.read_text(), f"{path.name} spells a hook"
