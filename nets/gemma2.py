"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118).

    h = sqrt(hidden_size) embed_tokens[ids]
    for each block:    h = h + norm(self_attn(norm(h))),    h = h + norm(mlp(norm(h)))
    logits = cap(lm_head(norm(h)))

    self_attn(x) = o_proj(softmax(cap(q k^T / sqrt(query_pre_attn_scalar))) v)
    cap(x) = c tanh(x / c),  with a c for scores and another for logits

Every second block, from the first, attends within a window; block, norm, mlp and head are those of
nets/gemma.py. Names are those of Hugging Face's Gemma2ForCausalLM, which rounds sqrt(hidden_size)
to its dtype; here it is that of the computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import gemma, heads, llama, masks, rope
from refl.nets.batch import Batch
from refl.trace import Trace, Value

MODEL_TYPE = "gemma2"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(gemma.GemmaConfig):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 8192
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Gemma2", heads.TOKENS)

    @property
    def windows(self) -> tuple[int | None, ...]:
        sliding = [i % 2 == 0 for i in range(self.num_hidden_layers)]
        return self.windows_by(sliding)


task, shapes = llama.task, gemma.shapes


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    h = t.scale("model.embed_tokens.scaled", h, c.hidden_size**0.5)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        h = t.block(f"model.layers.{i}", gemma.block, h, c, attention, cos, sin, mask)
    return gemma.lm_head(t, h, c, batch)


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = llama.project(t, x, c)
    scale = c.query_pre_attn_scalar**-0.5
    q = t.scale("query.scaled", t.rotary("query.rotated", q, cos, sin), scale)
    k = t.rotary("key.rotated", k, cos, sin)
    context = llama.attend(t, q, k, v, mask, c.attn_logit_softcapping)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")
