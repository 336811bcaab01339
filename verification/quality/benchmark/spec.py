"""What one side is to run, in words that travel to another process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

PARTS = ("tokens", "depth", "short", "batch", "vision", "t5")
METHODS = ("attnlrp-gradient", "cp-lrp", "attnlrp", "input-x-gradient")
KINDS = ("llama", "vit", "t5")


class Item(NamedTuple):
    """One input: token ids or pixels (C, H, W); and what a decoder has before it."""

    input: Any
    prefix: list[int] | None = None


@dataclass(frozen=True)
class Spec:
    """A side and its work."""

    kind: str
    """One of KINDS."""
    folder: str
    side: str
    """"refl", "LXT" or "torch"."""
    method: str
    tokens: int = 0
    """Of a text, or read by an encoder."""
    prefix: int = 0
    """Tokens that a decoder has before it."""
    sentences: int = 0
    """A list of so many inputs in place of one; 0 for one."""
    bound: int = 0
    """Tokens of a batch of the peer, padding counted."""
    attention: str = ""
    """The form of attention that transformers is asked for; "" for its default."""
    recompute: bool = False
    threads: int = 1
    device: str = "cpu"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        return cls(**json.loads(text))
