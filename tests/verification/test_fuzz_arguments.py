"""Odd values for every parameter of the public API end in an answer or in a sentence."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from refl.verification.quality import fuzz_arguments, fuzzing
from refl.verification.quality.fuzzing import FOUND


@pytest.mark.parametrize("kind", fuzz_arguments.KINDS)
@pytest.mark.parametrize(("start", "tries"), [(0, 120), (1000, 1200)])
def test_no_other_exception(start: int, tries: int, kind: str) -> None:
    chosen = {kind: fuzz_arguments.KINDS[kind]}
    result = fuzzing.run(chosen, tries, seed=7, start=start)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert min(result.counts.values()) > tries / 20  # both ends were met


def test_a_parameter_that_is_bent_is_found() -> None:
    def bent(item: Any, position: int = 0) -> Any:
        return item[position]

    ended = [
        fuzzing.ended_here(fuzz_arguments.call_of(Random(n), "bent", bent))[0] for n in range(50)
    ]
    assert FOUND in ended


def test_an_account_that_does_not_close_is_found() -> None:
    e = fuzz_arguments.explanations()["kept"]
    assert not fuzz_arguments.wrong(e) and not fuzz_arguments.wrong([e, 5])
    ledger, relevance = e.recorded, e.relevance
    assert ledger is not None
    try:
        ledger.explained += 0.1
        assert "an account off by 1.0e-01" in fuzz_arguments.wrong([5, e])
        ledger.explained -= 0.1
        e.relevance = relevance * np.nan
        assert "not finite" in fuzz_arguments.wrong(e)
    finally:
        e.relevance = relevance


def test_every_public_method_of_a_model_is_called() -> None:
    called = {fuzz_arguments.model_call(Random(n)).what.partition("(")[0] for n in range(600)}
    named = {name.partition(".")[2] for name in called}
    wanted = {"explain", "explain_each", "encode", "tokens", "output_id", "logits", "generate"}
    assert wanted | {"trace", "sites", "token_id", "output_names", "read"} <= named
