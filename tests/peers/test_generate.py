"""Greedy text against transformers' own `generate`, token for token."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import checkpoint

import refl
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

TOKENS = 60


def theirs(folder: Any, ids: list[int]) -> list[int]:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with wide():
        tokens = torch.tensor([ids])
        model = widened(loaded)
        model.generation_config = loaded.generation_config
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=TOKENS
        )
    return [int(i) for i in out[0]]


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
@pytest.mark.parametrize(
    "text", ["", "Once upon a time", "Lily and Ben went to the park. They saw a big"]
)
def test_greedy_text(name: str, text: str) -> None:
    """From the start token alone, and from two beginnings; both keep keys and values."""
    model = refl.load(checkpoint(name), dtype="float64")
    ids = model.encode(text) if text else [1]
    ours = model.generate(ids, TOKENS)
    assert len(ours) > len(ids)
    assert ours == theirs(checkpoint(name), ids)
