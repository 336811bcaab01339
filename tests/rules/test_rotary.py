"""Rotary embeddings: z and every rule against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, rule_agrees

from refl.rules.composites import Rule
from refl.rules.published import method
from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import ETA, Case, U, rotary_case
from refl.verification.random_models import LLAMA, random_model


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "uniform", "uniform_gxi", "gradient"])
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


@pytest.mark.parametrize(
    ("name", "options"), [("lrp-0", (("stabilizer", "none"),)), ("attnlrp-gradient", ())]
)
def test_in_a_net_the_angles_keep_half(name: str, options: tuple[tuple[str, Any], ...]) -> None:
    """What arrives at a rotation goes on in equal parts to x and to the ledger's position."""
    composite = method(name).override(Rule("rotary", "uniform", options=options))
    e = random_model(LLAMA, seed=2).explain([3, 1, 4, 1, 5], composite)
    entries = [entry for entry in e.ledger if entry.operation == "rotary"]
    assert len(entries) == 2 * LLAMA["num_hidden_layers"]
    for entry in entries:
        (passed,), kept = entry.passed.values(), entry.absorbed["position"]
        assert abs(kept - entry.received / 2) <= 1e-14 < abs(kept)
        assert abs(passed - kept) <= 1e-14
    assert e.ledger.absorbed["position"] == sum(entry.absorbed["position"] for entry in entries)
