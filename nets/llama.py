"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783).

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h)),    h = h + down(silu(gate(n)) * up(n)),
                       n = rms_norm(h)
    logits = head(rms_norm(h))

Names are those of Hugging Face's LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.nets import attention, decoder, mlp
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "llama"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (both forms); real "
    "checkpoints: stories260K, babyllama105, the shipped model"
)

task = decoder.next_token


@dataclass(frozen=True)
class Config(decoder.Kin):
    """The options of config.json that this net reads."""

    attention_bias: bool = False
    mlp_bias: bool = False

    HARMLESS: ClassVar[tuple[str, ...]] = ("rope_interleaved",)


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    return decoder.tensors_of(
        c, bias=c.attention_bias, out_bias=c.attention_bias, mlp_bias=c.mlp_bias
    )


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder.forward(t, c, batch, attend, feed)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=c.attention_bias)
    q, k = attention.turn(t, q, k, cos, sin, c.width**-0.5)
    return t.linear("o_proj", attention.attend(t, q, k, v, mask), bias=c.attention_bias)


def feed(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    return mlp.gated(t, x, c.hidden_act, c.mlp_bias)
