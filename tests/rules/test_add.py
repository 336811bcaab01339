"""Sums of two: z and both rules against their definitions,
operands that are broadcast among them.
"""

from __future__ import annotations

import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, rule_agrees

from refl.verification.quality.cases import U, add_case


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"add_{rule}", add_case)


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """One addition, rounded once."""
    forward_agrees(backend, dtype, add_case, lambda case, call, z: U[dtype] * abs(z))
