"""Granite 3 (Granite Team, IBM 2024): Llama with four scalars.

    h = embedding_multiplier embed_tokens[ids]
    for each block:    h = h + residual_multiplier self_attn(rms_norm(h))
                       h = h + residual_multiplier mlp(rms_norm(h))
    logits = lm_head(rms_norm(h)) / logits_scaling

    self_attn(x) = o_proj(softmax(attention_multiplier q k^T) v)

self_attn and mlp are Llama's otherwise. Names are those of Hugging Face's GraniteForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, masks, rope
from refl.nets.batch import Batch
from refl.trace import Trace, Value

MODEL_TYPE = "granite"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.Config):
    """The options of config.json that this net reads."""

    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    HEADS: ClassVar[dict[str, str]] = {"GraniteForCausalLM": heads.NEXT_TOKEN}
    HARMLESS: ClassVar[tuple[str, ...]] = ()

    @property
    def score_scale(self) -> float:
        return self.attention_multiplier


task, shapes = llama.task, llama.shapes


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    h = t.scale("model.embed_tokens.scaled", h, c.embedding_multiplier)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    logits = llama.lm_head(t, t.rms_norm("model.norm", h, c.rms_norm_eps), c, batch)
    return t.scale("lm_head.scaled", logits, 1 / c.logits_scaling)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.rms_norm("input_layernorm", h, c.rms_norm_eps)
    a = t.module("self_attn", llama.attention, n, c, cos, sin, mask)
    h = t.add("residual", h, t.scale("self_attn.scaled", a, c.residual_multiplier), role="residual")
    n = t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps)
    m = t.module("mlp", llama.mlp, n, c)
    return t.add("", h, t.scale("mlp.scaled", m, c.residual_multiplier), role="residual")
