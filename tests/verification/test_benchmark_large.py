"""The benchmark of checkpoints larger than memory, on one that is small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refl.verification.quality import benchmark_large

SIZES = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 128, "vocabulary": 100, "tokens": 5}
SMALL = [text for name, size in SIZES.items() for text in (f"--{name}", str(size))]


@pytest.mark.parametrize("stored", ["BF16", "F16"])
def test_a_small_checkpoint_is_written_and_explained(
    stored: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "found.json"
    asked = ["--folder", str(tmp_path), "--stored", stored, "--recompute", "yes"]
    assert benchmark_large.main([*asked, *SMALL, "--json", str(out)]) == 0
    (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert (run["tokens"], run["recompute"]) == (5, True)
    found, *_ = run["explanations"]
    assert found.keys() >= set(benchmark_large.COLUMNS)
    assert found["wall"] > 0 and found["RssAnon"] > 0
    assert "5 tokens, recompute, weights read ahead" in capsys.readouterr().out
