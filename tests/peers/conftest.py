"""What the peers' tests share: torch on one thread,
and random checkpoints written by transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers_models import Make, random_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no quarrel over cores."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("llama", hidden_size=16, ...) -> a checkpoint folder with random weights, every norm
    weight and bias included.
    """

    def made(kind: str, save: dict[str, Any] | None = None, **options: Any) -> Path:
        random_model(kind, **options).save_pretrained(tmp_path, **(save or {}))
        return tmp_path

    return made
