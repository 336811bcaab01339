"""transformers' own forward pass in float64, which ours is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refl
from refl.verification.peers.lxt import wide, widened

BOUND = 1e-10
"""Of the largest logit. Both sides round in float64: what is measured stays below 1e-13."""

LENGTHS = (1, 2, 13)

ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear-old-name": {"type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-original": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "yarn-original-disagrees": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 8,
    },
    "yarn-attention-factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 3.0,
        "beta_slow": 0.5,
    },
    "yarn-mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.9, "mscale_all_dim": 0.4},
    "yarn-mscale-alone": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.9},
    "yarn-narrowing": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def reference(folder: Path, ids: Sequence[Sequence[int]], mask: Any = None) -> Any:
    """transformers' logits in float64, of the file as it reads it in its own dtype.

    A mask is always given: without one, transformers 4.52.4 makes a mask one key too long, and
    reorder_and_upcast_attn stumbles over it.
    """
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    tokens = torch.tensor(ids)
    mask = torch.ones_like(tokens) if mask is None else torch.tensor(mask)
    with wide(), torch.no_grad():
        return widened(loaded)(
            input_ids=tokens, attention_mask=mask, use_cache=False
        ).logits.numpy()


def draw(length: int, vocabulary: int = 29) -> list[int]:
    return np.random.default_rng(length).integers(0, vocabulary, length).tolist()


def agree(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    deviation = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert deviation < BOUND, f"{deviation:.2e} of the largest logit"


def same_forward(folder: Path, lengths: Sequence[int] = LENGTHS) -> None:
    model = refl.load(folder, dtype="float64")
    for length in lengths:
        agree(model.logits(draw(length)), reference(folder, [draw(length)])[0])
