"""The flattened product: the order of multiplication changes nothing, in recorded operations swept
by a composite, and in the nets that `attnlrp-flattened` is for.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl.rules.composites import Composite, Rule
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT
from refl.sweep import Sweep
from refl.trace import Trace, Value
from refl.verification.random_models import BERT, LLAMA, MIXTRAL, QWEN3_MOE, T5, random_model

Tree = Any
"""A number of a factor, or two trees that are multiplied."""


def flattened(operation: str, site: str, *factors: int) -> Rule:
    return Rule(operation, "flattened", site, (("factors", factors),))


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [n for part in tree for n in leaves(part)]


def relevance(
    tree: Tree, factors: list[Any], rules: bool, gradient: bool, operation: str = "multiply"
) -> list[Any]:
    """What each factor of the product receives, multiplied in the order of the tree; `rules`: by
    counting factors, else by AttnLRP alone.
    """
    t, lines = Trace({}), list[Rule]()
    values = [
        t.source(f"x{n}", np.asarray(x, dtype=float), role="pixels") for n, x in enumerate(factors)
    ]

    def value(part: Tree, name: str) -> Value:
        if isinstance(part, int):
            return values[part]
        a, b = (value(each, f"{name}{side}") for each, side in zip(part, "lr", strict=True))
        lines.append(flattened(operation, name, *(len(leaves(each)) for each in part)))
        return t.multiply(name, a, b) if operation == "multiply" else t.matmul(name, a, b)

    z = value(tree, "z")
    table = ATTNLRP_GRADIENT if gradient else ATTNLRP.with_options(stabilizer="none")
    free = () if gradient else (("stabilizer", "none"),)
    if operation == "matmul":
        lines = [Rule(r.operation, r.rule, r.site, (*r.options, *free)) for r in lines]
    composite = Composite(
        "flat", (*(lines if rules else ()), *table.rules), formulation=table.formulation
    )
    seed = np.ones_like(z.array) if gradient else z.array
    swept = Sweep(composite, keep=lambda names: True).run(t, z, seed)
    return [swept.propagated[v.site] * (v.array if gradient else 1.0) for v in values]


def numbers(found: list[Any]) -> list[float]:
    return [float(x.reshape(())) for x in found]


@pytest.mark.parametrize("gradient", [False, True])
def test_three_factors(gradient: bool) -> None:
    """2, 3, 4 (You et al. 2025, figure 1): 6, 6, 12 or 12, 6, 6 by the uniform rule; 8 each."""
    x = [[[2]], [[3]], [[4]]]
    left, right = ((0, 1), 2), (0, (1, 2))
    assert numbers(relevance(left, x, False, gradient)) == [6, 6, 12]
    assert numbers(relevance(right, x, False, gradient)) == [12, 6, 6]
    for tree in (left, right):
        assert numbers(relevance(tree, x, True, gradient)) == pytest.approx([8, 8, 8], abs=1e-14)


@st.composite
def trees(draw: st.DrawFn, first: int = 0, count: int | None = None) -> Tree:
    count = draw(st.integers(2, 6)) if count is None else count
    if count == 1:
        return first
    cut = draw(st.integers(1, count - 1))
    return draw(trees(first, cut)), draw(trees(first + cut, count - cut))


@given(tree=trees(), draw=st.data(), gradient=st.booleans())
def test_any_brackets(tree: Tree, draw: st.DataObject, gradient: bool) -> None:
    """R / N to each of N factors; zeros and signs too. Every product keeps what it gets."""
    count = len(leaves(tree))
    whole = draw.draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count))
    z = math.prod(map(Fraction, whole))
    got = numbers(relevance(tree, [[[x]] for x in whole], True, gradient))
    assert max(abs(r - float(z / count)) for r in got) <= 1e-14 * max(1, abs(float(z)))


def test_three_matrices() -> None:
    """Linear attention: (Q K^T) V and Q (K^T V) give every entry the same, a third in sum."""
    random = np.random.default_rng(1)
    x = [random.normal(size=shape) for shape in ((1, 3, 2), (1, 2, 4), (1, 4, 2))]
    left, right = ((0, 1), 2), (0, (1, 2))
    for gradient in (False, True):
        a, b = (relevance(tree, x, True, gradient, "matmul") for tree in (left, right))
        whole = (x[0] @ x[1] @ x[2]).sum()
        for r, s in zip(a, b, strict=True):
            assert np.abs(r - s).max() <= 1e-12 * np.abs(r).sum()
            assert abs(r.sum() - whole / 3) <= 1e-12 * np.abs(r).sum()
    uniform = [relevance(tree, x, False, True, "matmul") for tree in (left, right)]
    assert abs(uniform[0][0].sum() - whole / 4) <= 1e-12
    assert abs(uniform[1][0].sum() - whole / 2) <= 1e-12


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, QWEN3_MOE, BERT, T5])
def test_in_nets(config: dict[str, Any]) -> None:
    """Two thirds to probabilities and a third to values; a third to an expert's weight."""
    asked: dict[str, Any] = {"position": 2} if config is BERT else {}
    asked |= {"decoder": [0, 1]} if config is T5 else {}
    e = random_model(config, seed=2).explain([3, 1, 4, 1, 5], "attnlrp-flattened", **asked)
    products = [entry for entry in e.ledger if entry.rule == "flattened"]
    assert len({entry.operation for entry in products}) == 1 + (config in (MIXTRAL, QWEN3_MOE))
    for entry in products:
        first, second = entry.passed.values()
        kept = entry.received - entry.absorbed.get("stabilizer", 0.0)
        part = 2 / 3 if entry.operation == "matmul" else 1 / 3
        assert abs(first - part * kept) <= 1e-13 * abs(kept) + 1e-15
        assert abs(second - (1 - part) * kept) <= 1e-13 * abs(kept) + 1e-15
    assert abs(e.ledger.conservation_error) <= 1e-12
