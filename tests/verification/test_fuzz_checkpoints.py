"""Some seconds of the fuzzers of checkpoint folders; that they see a folder taken for what it is
not.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from refl.verification.quality import fuzz_checkpoints, fuzzing


@pytest.mark.parametrize("kind", fuzz_checkpoints.KINDS)
def test_nothing_is_found(kind: str) -> None:
    result = fuzzing.run({kind: fuzz_checkpoints.KINDS[kind]}, 400, seed=1, seconds=1)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert result.tries


def test_an_option_that_changes_what_it_should_not_is_found() -> None:
    def change(random: Random, folder: Path) -> str:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
        return "rope_theta"

    one = fuzz_checkpoints.attempt("llama", change, Random(1), same=True)
    assert fuzzing.ended_here(one) == (
        fuzzing.FOUND, "other logits, by what is said to change nothing"
    )  # fmt: skip


def test_logits_that_are_not_finite_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(folder: Path) -> Any:
        return np.full((2, 3), np.inf)

    monkeypatch.setattr(fuzz_checkpoints, "run", infinite)
    one = fuzz_checkpoints.attempt("gpt2", lambda random, folder: "nothing", Random(1))
    assert fuzzing.ended_here(one) == (fuzzing.FOUND, "logits that are not finite")
