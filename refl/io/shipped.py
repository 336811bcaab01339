"""The small model that comes with refl: where it is, what it knows, what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from refl.io.weights import Weights

SHIPPED = Path(__file__).parents[1] / "shipped"

ABILITIES = (
    "A word-level model of a small English whose right explanations are known. It makes verbs "
    "agree with their subject across distracting nouns, and answers who has what among several "
    "people and things."
)
TRAINING = (
    "It was trained from scratch for refl, on sentences of its own grammar and nothing else "
    "(refl/shipped/CARD.md says how). A word that is not in its vocabulary is <unk> to it, and "
    "other sentences get nonsense."
)
EXAMPLES = ["the keys to the cabinet", "mary has the ball . john has the cup . who has the ball ?"]


def words() -> list[str]:
    """Its vocabulary without the special tokens, in alphabetical order."""
    said = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in said["added_tokens"]}
    return sorted(set(said["model"]["vocab"]) - special)


def fingerprint() -> str:
    """Of its files, as an explanation has it."""
    return Weights(SHIPPED, dtype="float32", place=lambda array: array).fingerprint()
