"""Who imports whom, read from the sources: lines per folder, arrows between rooms, circles, and
arrows that point up.

    python -m refl.verification.quality.import_graph

Every import counts, wherever it stands: inside a function, and for type checking alone. A room is a
folder of the package; each module on top of the package (`refl.trace`, `refl.sweep`) is a room by
itself. `LAYERS` says which rooms stand on which: an arrow has to point to a layer below. Exit
status 1 where one does not, or where modules or rooms import each other in a circle.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
if not (PROJECT / "tests").is_dir():  # reached through the link refl/verification
    PROJECT = PROJECT.parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "extras", "patches", "rows", "version"),
    ("arguments", "arrays", "batching", "buffers", "parallel"),
    ("conditions", "edits", "mask", "rules"),
    ("attention_mask", "pieces"),
    ("attention",),
    ("components", "device", "io", "ledger", "seeds", "trace"),
    ("kept", "targets"),
    ("paths", "ranking"),
    ("cache", "compared", "explanation", "intervention", "nets", "sweep"),
    ("answer_matrix",),
    ("network", "show"),
    ("anatomy", "question"),
    ("answer",),
    ("explainer",),
    ("methods",),
    ("model",),
    (
        "refl",
        "verification",
        "verification.array_changes",
        "verification.definitions",
        "verification.markdown",
        "verification.random_models",
    ),
    ("evaluation", "verification.identities", "verification.vectors"),
    ("latent", "lessons", "walk", "verification.compare"),
    ("verification.conformance",),
    ("verification.peers",),
    ("cli",),
    ("__main__", "verification.quality", "verification.training"),
)
"""Rooms from the bottom up. The room `refl` is the package's own face, refl/__init__.py."""

Graph = Mapping[str, set[str]]
"""Name -> the names it imports."""


# -- reading ---------------------------------------------------------------------------------------


def modules(project: Path) -> dict[str, Path]:
    """Every module of the package by its full name; links are not followed."""
    found = {}
    for folder, package in (
        ("refl", "refl"),
        ("rules", "refl.rules"),
        ("nets", "refl.nets"),
        ("verification", "refl.verification"),
    ):
        for path in sorted((project / folder).rglob("*.py")):
            inside = path.relative_to(project / folder).with_suffix("").parts
            found[".".join((package, *inside)).removesuffix(".__init__")] = path
    return found


def imported(source: str, known: Iterable[str] = ()) -> set[str]:
    """Modules that a source imports anywhere in it. `from a import b` is a.b where that is known as
    a module, else a.
    """
    known, found = set(known), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("a relative import: imports are written in full")
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known
            if inside - known:
                found.add(str(node.module))
    return found


def module_graph(project: Path) -> dict[str, set[str]]:
    """What each module of the package imports of the package."""
    paths = modules(project)
    return {
        name: (imported(path.read_text(encoding="utf-8"), paths) & paths.keys()) - {name}
        for name, path in paths.items()
    }


# -- rooms -----------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """refl.rules.linear -> rules, refl.verification.vectors.case -> verification.vectors,
    refl.trace -> trace, refl itself and the face of verification -> themselves.
    """
    parts = module.split(".")[1:]
    depth = 2 if parts[:1] == ["verification"] else 1
    return ".".join(parts[:depth]) or "refl"


def room_graph(graph: Graph) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, targets in graph.items():
        rooms[room_of(module)] |= {room_of(target) for target in targets}
    return {room: targets - {room} for room, targets in rooms.items()}


def layer_of(room: str) -> int:
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise ValueError(f"the room {room} stands in no layer: name it in LAYERS of {__name__}")


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Imports between modules of different rooms that do not point to a layer below."""
    return sorted(
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if room_of(module) != room_of(target)
        and layer_of(room_of(target)) >= layer_of(room_of(module))
    )


def circles(graph: Graph) -> list[list[str]]:
    """Sets of two and more that reach each other (strongly connected), by reachability."""
    reach = {name: _reachable(graph, name) for name in graph}
    together = {
        frozenset({name, *(other for other in reach[name] if name in reach.get(other, ()))})
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(circle) for circle in together)


def _reachable(graph: Graph, start: str) -> set[str]:
    reached: set[str] = set()
    front = set(graph.get(start, ()))
    while front:
        reached |= front
        front = {t for name in front for t in graph.get(name, ())} - reached
    return reached


def lines(project: Path) -> dict[str, tuple[int, int]]:
    """Folder -> files and lines of Python in it, folders of tests included."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    paths = [*modules(project).values(), *sorted((project / "tests").rglob("*.py"))]
    for path in paths:
        folder = "/".join(path.relative_to(project).parts[:-1][:2]) + "/"
        files, count = found[folder]
        found[folder] = files + 1, count + len(path.read_text(encoding="utf-8").splitlines())
    return dict(found)


# -- printing --------------------------------------------------------------------------------------


def main() -> int:
    graph = module_graph(PROJECT)
    rooms = room_graph(graph)
    _print_lines(lines(PROJECT))
    print("\nArrows between rooms, from the bottom up")
    for number, layer in enumerate(LAYERS):
        for room in (room for room in layer if room in rooms):
            print(f"{number:3d}  {room} -> {', '.join(sorted(rooms[room])) or 'nothing'}")
    found = {
        "Circles of modules": [" <-> ".join(circle) for circle in circles(graph)],
        "Circles of rooms": [" <-> ".join(circle) for circle in circles(rooms)],
        "Arrows that point up": [" -> ".join(arrow) for arrow in upward(graph)],
    }
    for title, entries in found.items():
        print(f"\n{title}: {len(entries) or 'none'}")
        for entry in entries:
            print(f"  {entry}")
    return int(any(found.values()))


def _print_lines(found: Mapping[str, tuple[int, int]]) -> None:
    print("Lines of Python per folder")
    totals: dict[str, int] = defaultdict(int)
    for folder, (files, count) in sorted(found.items()):
        print(f"  {folder:42s} {files:3d} files {count:6d} lines")
        totals[folder.partition("/")[0]] += count
    engine = sum(totals[part] for part in ("refl", "rules", "nets"))
    print(f"  refl, rules and nets {engine}, verification {totals['verification']}, ", end="")
    print(f"tests {totals['tests']}")


if __name__ == "__main__":
    sys.exit(main())
