"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): Llama whose queries and keys are normed, head by
head, some blocks with a window.

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h), window of the block),
                       h = h + down(silu(gate(n)) * up(n)),
                       n = rms_norm(h)
    logits = head(rms_norm(h))

Names are those of Hugging Face's Qwen3ForCausalLM; which blocks have the window is as in Qwen 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array
from refl.nets import attention, decoder, mlp, qwen2
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "qwen3"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)

task = decoder.next_token


@dataclass(frozen=True)
class Config(qwen2.Config):
    """The options of config.json that this net reads."""

    head_dim: int | None = 128
    attention_bias: bool = False


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from decoder.tensors_of(c, bias=c.attention_bias, out_bias=c.attention_bias)
    yield from decoder.head_norms(c)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder.forward(t, c, batch, attend, feed)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=c.attention_bias)
    q, k = t.rms_norm("q_norm", q, c.rms_norm_eps), t.rms_norm("k_norm", k, c.rms_norm_eps)
    q, k = attention.turn(t, q, k, cos, sin, c.width**-0.5)
    return t.linear("o_proj", attention.attend(t, q, k, v, mask), bias=c.attention_bias)


def feed(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    return mlp.gated(t, x, c.hidden_act)
