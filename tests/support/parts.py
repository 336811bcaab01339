"""Explanations of tiny random models of every architecture, for tests of their parts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from refl.explanation import Explanation
from refl.model import Model
from refl.verification.random_models import ARCHITECTURES, random_model

EPSILON = "attnlrp with eps 0.1"
"""A stabilizer that absorbs a lot."""


@cache
def model_of(name: str, seed: int = 0) -> Model:
    return random_model(ARCHITECTURES[name], seed)


def item_of(model: Model, length: int = 5) -> Any:
    random = np.random.default_rng(length)
    if model.takes_images:
        return random.standard_normal((3, *model.config.image))
    return [int(i) for i in random.integers(1, 17, length)]


def asked(model: Model, length: int = 5) -> dict[str, Any]:
    """Where the output is, and what a decoder has said."""
    decoder = [0, 3, 4] if model.task == "sequence-to-sequence" else None
    classifies = model.task in ("class", "image-class")
    middle = None if classifies or model.task == "sequence-to-sequence" else length // 2
    return {"decoder": decoder, "position": middle}


@cache
def explained(name: str, method: str = "attnlrp", length: int = 5, keep: Any = "*") -> Explanation:
    """One explanation, audited; shared between tests, so they change nothing of it."""
    model = model_of(name)
    table, eps = ("attnlrp", 0.1) if method == EPSILON else (method, None)
    how = asked(model, length)
    e: Explanation = model.explain(
        item_of(model, length), table, eps=eps, keep=keep, audit=True, **how
    )
    return e
