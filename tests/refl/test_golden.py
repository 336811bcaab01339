"""The forward pass against outputs stored beside real checkpoints: logits, hidden states, attention
weights, and, for one model, every intermediate of a block as its author published it.

No library is needed: the numbers come from transformers in float64, from an independent float64
forward, and from minGPT.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint

import refl
from refl.explanation import Explanation
from refl.model import Model

BOUND = 1e-10
"""float64 against float64, of the largest logit."""

FLOAT32_ISLANDS = 4e-6
"""What the Llamas' stored hidden states and attention weights are good to: transformers forms
RMSNorm, softmax and RoPE in float32.
"""

SINGLE = 4e-6
"""What minGPT's partials are good to: they were computed in float32 (the folder's PROVENANCE.md
measured 1.9e-6 on the logits).
"""

NAMES = ("stories260K", "babyllama105", "capp_gpt2", "nano_sort_gpt2")
BOUNDS = {"llama": FLOAT32_ISLANDS, "gpt2": BOUND}
EMBEDDED = {"llama": "model.embed_tokens", "gpt2": "transformer.drop"}
BLOCK = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}
ATTENTION = {"llama": "self_attn", "gpt2": "attn"}
NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f"}


def golden(name: str, file: str = "golden.npz") -> dict[str, Any]:
    with np.load(checkpoint(name) / file) as stored:
        return dict(stored)


def model_of(name: str) -> Model:
    return refl.load(checkpoint(name), dtype="float64")


def close(ours: Any, expected: Any, bound: float) -> None:
    """Within `bound` of the largest expected number."""
    assert ours.shape == expected.shape
    deviation = np.abs(ours - expected).max() / np.abs(expected).max()
    assert deviation < bound, f"{deviation:.2e} of the largest"


@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str) -> None:
    stored = golden(name)
    close(
        model_of(name).logits(stored["input_ids"][0]),
        stored.get("logits_fp64", stored["logits"])[0],
        BOUND,
    )


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states(name: str) -> None:
    """hidden[0] is what enters the first block, hidden[i] what leaves block i - 1;
    the last one is normed.
    """
    stored, (e, kind) = golden(name), explained(name)
    hidden = stored["hidden"][:, 0]
    close(e.activation(EMBEDDED[kind]), hidden[0], BOUNDS[kind])
    for i in range(1, len(hidden) - 1):
        close(e.activation(BLOCK[kind].format(i - 1)), hidden[i], BOUNDS[kind])
    close(e.activation(NORM[kind]), hidden[-1], BOUNDS[kind])


@pytest.mark.parametrize("name", NAMES)
def test_attention_weights(name: str) -> None:
    stored, (e, kind) = golden(name), explained(name)
    for i, weights in enumerate(stored["attn"][:, 0]):
        close(
            e.activation(f"{BLOCK[kind].format(i)}.{ATTENTION[kind]}.probabilities"),
            weights,
            BOUNDS[kind],
        )


def explained(name: str) -> tuple[Explanation, str]:
    model = model_of(name)
    return model.explain(golden(name)["input_ids"][0], keep="*"), model.net.MODEL_TYPE


# -- every intermediate of minGPT's first block ----------------------------------------------------

PARTIALS = {
    "tok_emb": "transformer.wte",
    "x": "transformer.drop",
    "ln1": "transformer.h.0.ln_1",
    "qkv": "transformer.h.0.attn.c_attn",
    "q": "transformer.h.0.attn.query",
    "k": "transformer.h.0.attn.key",
    "v": "transformer.h.0.attn.value",
    "att": "transformer.h.0.attn.scores",
    "attSm": "transformer.h.0.attn.probabilities",
    "y": "transformer.h.0.attn.context.merged",
    "yProj": "transformer.h.0.attn.c_proj",
    "attnResid": "transformer.h.0.residual",
    "ln2": "transformer.h.0.ln_2",
    "fc": "transformer.h.0.mlp.c_fc",
    "gelu": "transformer.h.0.mlp.act",
    "mlp": "transformer.h.0.mlp.c_proj",
    "mlpResid": "transformer.h.0",
    "block0": "transformer.h.0",
    "block1": "transformer.h.1",
    "block2": "transformer.h.2",
    "ln_f": "transformer.ln_f",
}
"""minGPT's name -> ours."""


def test_partials_are_all_looked_at() -> None:
    stored = golden("nano_sort_gpt2", "reference_partials.npz")
    assert set(stored) == set(PARTIALS) | {"idx", "pos_emb", "lm_head", "probs"}


@pytest.mark.parametrize("partial", PARTIALS)
def test_partials(partial: str) -> None:
    """Scores are compared where a query may look; minGPT's hidden ones are minus infinity."""
    stored = golden("nano_sort_gpt2", "reference_partials.npz")
    model = model_of("nano_sort_gpt2")
    expected = stored[partial]
    seen = np.isfinite(expected)
    for example, ids in enumerate(stored["idx"].astype(int)):
        ours = model.explain(ids, keep=PARTIALS[partial]).activation(PARTIALS[partial])
        here = seen[example]
        close(np.where(here, ours, 0), np.where(here, expected[example], 0), SINGLE)


def test_partial_positions() -> None:
    stored = golden("nano_sort_gpt2", "reference_partials.npz")
    ours = (
        model_of("nano_sort_gpt2")
        .explain(stored["idx"][0].astype(int), keep="transformer.wpe")
        .activation("transformer.wpe")
    )
    close(ours, stored["pos_emb"][0], SINGLE)


def test_partial_logits_and_probabilities() -> None:
    stored = golden("nano_sort_gpt2", "reference_partials.npz")
    model = model_of("nano_sort_gpt2")
    for example, ids in enumerate(stored["idx"].astype(int)):
        logits = model.logits(ids)
        close(logits, stored["lm_head"][example], SINGLE)
        e = np.exp(logits - logits.max(axis=-1, keepdims=True))
        close(e / e.sum(axis=-1, keepdims=True), stored["probs"][example], SINGLE)


def test_nano_sort_sorts() -> None:
    """Every one of the 3^6 inputs, as its author claims:
    the greedy continuation is the input in order.
    """
    model = model_of("nano_sort_gpt2")
    everything = [list(letters) for letters in product(range(3), repeat=6)]
    texts = [list(letters) for letters in everything]
    for _ in range(6):
        _, logits = model.trace(texts, record=False, plain=False)
        texts = [
            text + [int(best)]
            for text, best in zip(texts, logits.array[:, 0].argmax(axis=-1), strict=True)
        ]
    assert [text[6:] for text in texts] == [sorted(letters) for letters in everything]
