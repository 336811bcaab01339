"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118).

    h = sqrt(hidden_size) embed(ids)
    for each block:    h = h + norm(attention(norm(h))),  h = h + norm(down(gelu(gate(n)) * up(n))),
                       n = norm(h)
    logits = cap tanh(head(norm(h)) / cap)

Every second block, from the first, attends within a window; attention's scores are capped like the
logits. Names are those of Hugging Face's Gemma2ForCausalLM, which rounds sqrt(hidden_size) to its
dtype; here it is that of the computation.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array
from refl.nets import attention, decoder, gemma, rope
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "gemma2"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"

task = decoder.next_token


@dataclass(frozen=True)
class Config(gemma.Options):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 8192
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0

    @property
    def windows(self) -> tuple[int | None, ...]:
        return decoder.windows(
            self.layer_types,
            [i % 2 == 0 for i in range(self.num_hidden_layers)],
            self.sliding_window,
        )


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    return gemma.tensors_of(c)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.scale(
        "model.embed_tokens.scaled",
        t.embedding("model.embed_tokens", batch.ids),
        c.hidden_size**0.5,
    )
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array)
    for i, mask in enumerate(decoder.seen(c, batch)):
        h = t.block(f"model.layers.{i}", gemma.block, h, c, attend, cos, sin, mask)
    return gemma.head(t, h, c, batch)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=c.attention_bias)
    q, k = attention.turn(t, q, k, cos, sin, c.query_pre_attn_scalar**-0.5)
    return t.linear(
        "o_proj",
        attention.attend(t, q, k, v, mask, c.attn_logit_softcapping),
        bias=c.attention_bias,
    )
