"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): Llama whose attention reaches back over a
window.

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h), window),  h = h + down(silu(gate(n)) * up(n)),
                       n = rms_norm(h)
    logits = head(rms_norm(h))

Names are those of Hugging Face's MistralForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array
from refl.nets import attention, decoder, mlp
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "mistral"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"

task = decoder.next_token


@dataclass(frozen=True)
class Config(decoder.Kin):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096
    use_sliding_window: bool = True

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window if self.use_sliding_window else None,) * self.num_hidden_layers


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    return decoder.tensors_of(c)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder.forward(t, c, batch, attend, feed)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c)
    q, k = attention.turn(t, q, k, cos, sin, c.width**-0.5)
    return t.linear("o_proj", attention.attend(t, q, k, v, mask))


def feed(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    return mlp.gated(t, x, c.hidden_act)
