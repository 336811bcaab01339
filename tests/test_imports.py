"""Imports, read from the source: the parts lean on each other in one direction only, and users need
nothing that only tests need.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.abc import InspectLoader
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import pytest
from checkpoints import ROOT

from refl.verification.quality import import_graph

PATHS = import_graph.modules(ROOT)
GRAPH = import_graph.module_graph(ROOT)

NEEDED = {"numpy", "safetensors", "threadpoolctl", "tokenizers", "rich"}
"""What `pip install` brings."""
WHEN_ASKED_FOR = {"cupy", "PIL"}
"""Imported where a device or a picture is asked for: the extras `cuda12`, `cuda13`, `image`."""


def everything_imported(module: str) -> set[str]:
    return import_graph.imported(PATHS[module].read_text(encoding="utf-8"), PATHS)


def libraries(module: str) -> set[str]:
    """What it imports that is neither refl nor Python's own."""
    return {m.partition(".")[0] for m in everything_imported(module)} - {
        "refl",
        *sys.stdlib_module_names,
    }


def modules_of(*rooms: str) -> list[str]:
    return [module for module in PATHS if import_graph.room_of(module) in rooms]


def engine() -> list[str]:
    return [module for module in PATHS if not module.startswith("refl.verification.")]


# -- arrows ----------------------------------------------------------------------------------------


def test_every_room_has_its_layer() -> None:
    rooms = {import_graph.room_of(module) for module in PATHS}
    named = [room for layer in import_graph.LAYERS for room in layer]
    assert sorted(named) == sorted(rooms)


def test_imports_point_down() -> None:
    upward = import_graph.upward(GRAPH)
    assert not upward, "\n".join(f"{module} imports {target}" for module, target in upward)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not import_graph.circles(GRAPH)
    assert not import_graph.circles(import_graph.room_graph(GRAPH))


def test_a_circle_and_an_upward_arrow_are_seen() -> None:
    graph = {
        "refl.arrays": {"refl.model"},
        "refl.model": {"refl.sweep"},
        "refl.sweep": {"refl.arrays", "refl.errors"},
        "refl.errors": set(),
    }
    assert import_graph.circles(graph) == [["refl.arrays", "refl.model", "refl.sweep"]]
    assert import_graph.upward(graph) == [("refl.arrays", "refl.model")]


def test_lazy_imports_and_those_for_type_checking_count() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from refl.model import Model\n"
        "def f():\n    from refl.rules import linear, RULES\n"
    )
    known = {"refl.model", "refl.rules", "refl.rules.linear"}
    assert import_graph.imported(source, known) == {"typing", *known}
    with pytest.raises(ValueError, match="relative"):
        import_graph.imported("from . import linear")


# -- rules and nets --------------------------------------------------------------------------------


@pytest.mark.parametrize("module", modules_of("nets"))
def test_nets_know_the_trace_alone(module: str) -> None:
    """Beside the trace's interface: arrays, masks, errors and each other."""
    others = {m for m in GRAPH[module] if not m.startswith("refl.nets")}
    assert others <= {"refl.trace", "refl.arrays", "refl.mask", "refl.errors"}


@pytest.mark.parametrize("module", modules_of("rules"))
def test_rules_know_arrays_and_each_other(module: str) -> None:
    others = {m for m in GRAPH[module] if not m.startswith("refl.rules")}
    allowed = {"refl.arrays"}
    if module in ("refl.rules.composites", "refl.rules.published"):
        allowed |= {"refl.errors"}
    assert others <= allowed


@pytest.mark.parametrize("module", modules_of("rules", "nets"))
def test_rules_and_nets_name_no_array_library(module: str) -> None:
    """The namespace is the arrays' own: with NumPy by name a line would
    work on the host and fail on a device.
    """
    assert not libraries(module)
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not names & {"np", "numpy", "cp", "cupy"}


# -- what there has to be --------------------------------------------------------------------------


@pytest.mark.parametrize("module", engine())
def test_the_engine_needs_no_other_framework(module: str) -> None:
    assert libraries(module) <= NEEDED | WHEN_ASKED_FOR


def test_what_users_run_needs_no_extra() -> None:
    """The command line and all that it imports, directly or not; but for `refl dump-torch`, which
    is there for torch.
    """
    graph = {
        module: {t for t in targets if not t.startswith("refl.verification.peers")}
        for module, targets in GRAPH.items()
    }
    reached = set(modules_of("cli"))
    while further := {t for module in reached for t in graph[module]} - reached:
        reached |= further
    wanting = {module: libraries(module) - NEEDED - WHEN_ASKED_FOR for module in reached}
    assert not {module: extra for module, extra in wanting.items() if extra}
    assert {"refl.verification.conformance.runner", "refl.verification.identities.report"} < reached


# -- definitions -----------------------------------------------------------------------------------

READS_RECORDS = {
    "refl.verification.definitions.exact_sweep": {"refl.trace"},
    "refl.verification.definitions.surrogate": {
        "refl.arrays",
        "refl.model",
        "refl.rules.operations",
        "refl.trace",
    },
}
"""The sweep in 60 digits takes the graph from the engine, as data: its rules and its walk are its
own. The surrogate differentiates the engine's forward, and has no rule at all.
"""


@pytest.mark.parametrize("module", modules_of("verification.definitions"))
def test_definitions_import_nothing_of_the_engine(module: str) -> None:
    others = {m for m in GRAPH[module] if not m.startswith("refl.verification.definitions")}
    assert others <= READS_RECORDS.get(module, set())


# -- folders beside the package --------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["rules", "nets"])
def test_a_folder_is_no_package_of_its_own(folder: str) -> None:
    spec = find_spec(f"refl.{folder}")
    assert spec is not None and isinstance(spec.loader, InspectLoader)
    code = spec.loader.get_code(spec.name)
    assert code is not None
    FunctionType(code, {"__name__": spec.name})()
    sentence = (
        f"this folder is the package {spec.name}; install the project (pip install -e .) and "
        "import that name"
    )
    with pytest.raises(ImportError, match=re.escape(sentence)):
        FunctionType(code, {"__name__": folder})()


def test_a_checkout_without_links_is_the_whole_package(tmp_path: Path) -> None:
    """Where git makes no symbolic links, it writes files of their names."""
    for folder in ("refl", "rules", "nets"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns(
                "__pycache__", "shipped", "rules", "nets", "verification"
            ),
        )
    for link in ("rules", "nets", "verification"):
        (tmp_path / "refl" / link).write_text(f"../{link}")
    shown = subprocess.run(
        [sys.executable, "-c", "import refl.nets.llama as n, refl.rules as r; print(n.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()) == tmp_path.resolve() / "nets" / "llama.py"
