"""Mean over positions, and multiplication by a constant:
outputs and rules against their definitions.
"""

from __future__ import annotations

from typing import Any

import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, magnitudes, rule_agrees

from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import ETA, Case, U, fits, pooling_case, scale_case, top


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
def test_pooling(backend: Backend, dtype: str, rule: str) -> None:
    """The rule sums Z itself, so its condition sum |x| / |Z + e| counts; a Z that is all rounding
    is thrown away.
    """
    rule_agrees(backend, dtype, f"pooling_{rule}", pooling_case)


@dtypes
def test_forward_of_pooling(backend: Backend, dtype: str) -> None:
    def bound(case: Case, call: Call, z: Any) -> Any:
        fits(dtype, 8 * top(case.operands[0]))
        return (call.x.shape[1] + 2) * (U[dtype] * magnitudes(case, call) + ETA[dtype])

    forward_agrees(backend, dtype, pooling_case, bound)


@dtypes
@pytest.mark.parametrize("rule", ["pass_through", "gradient"])
def test_scale(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"scale_{rule}", scale_case)


@dtypes
def test_forward_of_scale(backend: Backend, dtype: str) -> None:
    def bound(case: Case, call: Call, z: Any) -> Any:
        return U[dtype] * abs(z) + ETA[dtype]

    forward_agrees(backend, dtype, scale_case, bound)
