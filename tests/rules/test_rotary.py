"""Rotary embeddings: z and both rules against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, rule_agrees

from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import ETA, Case, U, rotary_case


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"rotary_{rule}", rotary_case)


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """Two products and their sum."""

    def bound(case: Case, call: Call, z: Any) -> Any:
        half = z.shape[-1] // 2
        turned = np.roll(call.x, half, axis=-1)  # with two halves, either way round
        terms = abs(call.x * call.options["cos"]) + abs(turned * call.options["sin"])
        return 3 * (U[dtype] * terms + ETA[dtype])

    forward_agrees(backend, dtype, rotary_case, bound)
