"""Checkpoint folders with random weights, to be altered."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from refl.verification.random_models import random_model


@cache
def arrays_of(config: str) -> dict[str, Any]:
    weights = random_model(json.loads(config), 3, "float32").weights
    return {name: np.asarray(w) for name, w in weights.items()}


def checkpoint_of(folder: Path, config: dict[str, Any], **more: Any) -> Path:
    """A checkpoint with random weights; `more` are tensors besides, or None to leave one out."""
    folder.mkdir(exist_ok=True)
    arrays = {
        name: w for name, w in (arrays_of(json.dumps(config)) | more).items() if w is not None
    }
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
