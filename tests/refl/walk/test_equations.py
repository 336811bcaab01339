"""The equations that a walk typesets: one for every operation and every rule that its methods use,
made of equations.toml as it stands.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from refl.methods import chosen
from refl.rules.operations import OPERATIONS
from refl.verification.quality import equations
from refl.verification.random_models import ARCHITECTURES, random_model
from refl.walk import METHODS, walk

ASKED: dict[str, dict[str, Any]] = {
    name: {"position": 2} for name in ("bert", "roberta", "albert")
} | {"t5": {"decoder": [0, 2]}}


ELEMENTS = {
    *("math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "mfrac", "munder", "mover", "mstyle"),
    *("msub", "msup", "msubsup", "mtable", "mtr", "mtd"),
}


def made() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(equations.MADE.read_text(encoding="utf-8"))
    return found


@pytest.mark.needs("latex2mathml")
def test_the_file_is_made_of_its_source() -> None:
    assert equations.MADE.read_text(encoding="utf-8") == equations.text()


def test_source_and_file_have_the_same_equations() -> None:
    assert {k: v["says"] for k, v in made().items()} == {
        k: v["says"] for k, v in equations.source().items()
    }


@pytest.mark.parametrize("key", made())
def test_it_is_mathml_and_a_sentence(key: str) -> None:
    """Nothing of LaTeX is left in it, and nothing but presentation is in it."""
    said = made()[key]
    root = ElementTree.fromstring(said["mathml"])
    names = {one.tag.rpartition("}")[2] for one in root.iter()}
    assert names <= ELEMENTS
    assert "\\" not in "".join(root.itertext())
    allowed = {
        "display",
        "stretchy",
        "width",
        "fence",
        "form",
        "accent",
        "mathvariant",
        "columnalign",
    }
    assert {name for one in root.iter() for name in one.attrib} <= allowed | {"displaystyle"}
    assert said["says"].endswith(".") and len(said["says"]) < 100


REFUSED = {"causal_convolution", "scan"}
"""Operations that a walk has no equation of: it refuses nets that have them."""


def in_tables() -> set[str]:
    """operation.function of all that the methods' tables choose, for any role that they name."""
    operations = OPERATIONS.keys() - REFUSED
    found = {f"{name}.forward" for name in operations}
    for table in (chosen(method).facts() for method in METHODS):
        roles = {line.role for line in table.rules}
        rules = [(name, table.rule(name, ["site"], role)) for name in operations for role in roles]
        found |= {f"{name}.{rule.function.__name__}" for name, rule in rules}
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_rule_that_a_walk_meets_has_one(architecture: str) -> None:
    item: Any = [3, 1, 4, 1, 5]
    if architecture in ("vit", "deit"):
        item = np.random.default_rng(0).standard_normal((3, 8, 12))
    model = random_model(ARCHITECTURES[architecture], 3)
    told = walk(model, item, **ASKED.get(architecture, {}))
    assert set(told.data["equations"]) <= made().keys()


def test_every_rule_of_the_tables_has_one() -> None:
    """Those too that no net of today meets; and no equation is of anything else."""
    assert made().keys() == in_tables()
