"""Imports, read from the source: the parts lean on each other in one direction only, and users need
nothing that only tests need.
"""

from __future__ import annotations

import ast
import re
from importlib.abc import InspectLoader
from pathlib import Path
from types import FunctionType

import pytest
from checkpoints import ROOT

from refl import rules

LAYERS = (
    {"refl.errors", "refl.arrays", "refl.io", "refl.io.format_1", "refl.version"},
    {"refl.device", "refl.io.files"},
    {"refl.io.config"},
    {"refl.io.safetensors", "refl.io.oracle"},
    {
        "refl.rules",
        "refl.rules.*",
        "refl.ledger",
        "refl.seeds",
        "refl.io.weights",
        "refl.io.text",
        "refl.io.images",
    },
    {"refl.rules.composites", "refl.trace"},
    {"refl.nets", "refl.nets.*", "refl.sweep", "refl.explanation"},
    {"refl.network"},
    {"refl.show", "refl.show.*"},
    {"refl.explainer"},
    {"refl.model"},
)
"""From the bottom up. A module imports from its own layer or from below; what stands in none is
above all of them (the command line).
"""
OTHERS = {
    "torch",
    "transformers",
    "lxt",
    "zennit",
    "captum",
    "mpmath",
    "tabulate",
    "array_api_strict",
}


def module_of(path: Path) -> str:
    folder = path.parent.name
    name = path.stem if folder == "refl" else f"{folder}.{path.stem}"
    return f"refl.{name}".removesuffix(".__init__")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, `from refl.rules import add` as refl.rules.add;
    not those for type checking alone.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in (n for n in ast.walk(tree) if id(n) not in hidden):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path.name} has a relative import: imports are written in full"
            )
            found |= {
                f"{node.module}.{alias.name}" if is_package(node.module) else str(node.module)
                for alias in node.names
            }
    return found


def is_package(module: str | None) -> bool:
    return module in ("refl", "refl.rules", "refl.nets", "refl.verification")


def layer(module: str) -> int:
    for number, members in reversed(
        list(enumerate(LAYERS))
    ):  # refl.rules.composites before refl.rules.*
        if module in members or f"{module.rpartition('.')[0]}.*" in members:
            return number
    return len(LAYERS)


@pytest.mark.parametrize("path", sources("refl", "rules", "nets"), ids=module_of)
def test_imports_point_down(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "refl":
        return  # the face; it imports when it is first used
    module, targets = (
        module_of(path),
        {m for m in imported(path) if m.startswith("refl.") and "__version__" not in m},
    )
    upward = {m for m in targets if layer(m) > layer(module)}
    assert not upward, f"{module} imports {sorted(upward)}, which stand above it"


@pytest.mark.parametrize("path", sources("nets"), ids=module_of)
def test_nets_know_the_trace_alone(path: Path) -> None:
    """Beside the trace's interface: arrays, errors, each other, and the names of activations."""
    allowed = {"refl.trace", "refl.arrays", "refl.errors", "refl.rules.activation"}
    assert {
        m for m in imported(path) if m.startswith("refl.") and not m.startswith("refl.nets")
    } <= allowed
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and n.module == "refl.rules.activation"
        for a in n.names
    }
    assert names <= {"NAMES"}


@pytest.mark.parametrize("path", sources("rules"), ids=module_of)
def test_rules_know_arrays_and_each_other(path: Path) -> None:
    allowed = {"refl.arrays"} | ({"refl.errors"} if path.name == "composites.py" else set())
    assert {
        m for m in imported(path) if m.startswith("refl.") and not m.startswith("refl.rules")
    } <= allowed


@pytest.mark.parametrize("path", sources("rules", "nets"), ids=module_of)
def test_rules_and_nets_name_no_array_library(path: Path) -> None:
    """The namespace is the arrays' own: with NumPy by name a line would work on the host and fail
    on a device.
    """
    assert not {m.partition(".")[0] for m in imported(path)} & {"numpy", "cupy"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & {
        "np",
        "numpy",
        "cp",
        "cupy",
    }


@pytest.mark.parametrize("path", sources("refl", "rules", "nets"), ids=module_of)
def test_the_engine_needs_no_other_framework(path: Path) -> None:
    assert not {m.partition(".")[0] for m in imported(path)} & OTHERS


DEFINITIONS = (
    "exact",
    "exact_vision",
    "exact_experts",
    "running",
    "exact_answers",
    "by_hand_decoder",
    "by_hand_encoder",
)
COMMANDS = (
    "case",
    "mistakes",
    "conformance",
    "conformance_models",
    "model_vectors",
    "report",
    "compare",
    "compare_page",
    "suspects",
    "identities",
)
"""What users run: it may need no more than refl itself does."""


@pytest.mark.parametrize("name", DEFINITIONS)
def test_exact_definitions_import_nothing_of_the_engine(name: str) -> None:
    allowed = {f"refl.verification.{other}" for other in DEFINITIONS}
    found = {m for m in imported(ROOT / "verification" / f"{name}.py") if m.startswith("refl")}
    assert not {m for m in found if not any(m == a or m.startswith(f"{a}.") for a in allowed)}


def test_the_exact_sweep_takes_the_graph_from_the_engine_and_nothing_else() -> None:
    """Records, parameters and values are read as data: its rules and its walk are its own."""
    found = {
        m
        for m in imported(ROOT / "verification" / "exact_sweep.py")
        if m.startswith("refl.") and not m.startswith("refl.verification")
    }
    assert found <= {"refl.trace"}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_users_run_needs_no_extra(name: str) -> None:
    top = {m.partition(".")[0] for m in imported(ROOT / "verification" / f"{name}.py")}
    assert not top & (OTHERS | {"hypothesis", "jsonschema", "captum", "matplotlib", "pytest"})


def test_the_folder_of_rules_is_no_package_of_its_own() -> None:
    spec = rules.__spec__
    assert spec is not None and isinstance(spec.loader, InspectLoader)
    code = spec.loader.get_code(spec.name)
    assert code is not None
    FunctionType(code, {"__name__": "refl.rules"})()
    sentence = (
        "this folder is the package refl.rules; install the project (pip install -e .) and "
        "import that name"
    )
    with pytest.raises(ImportError, match=re.escape(sentence)):
        FunctionType(code, {"__name__": "rules"})()
