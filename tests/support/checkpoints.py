"""The real checkpoints that may lie beside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
CHECKPOINTS = SHARED / "checkpoints"


def checkpoint(name: str) -> Path:
    """A real checkpoint beside the project, or a skip that says what is missing."""
    if not CHECKPOINTS.is_dir():
        pytest.skip("no checkpoints beside the project (../shared/checkpoints)")
    folder = CHECKPOINTS / name
    if not folder.is_dir():
        pytest.skip(f"the checkpoint {name} is not beside the project (../shared/checkpoints)")
    return folder
