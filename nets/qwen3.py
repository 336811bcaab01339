"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): Llama whose queries and keys are normed, head by
head, some blocks with a window.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window of the block)
                       h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    v = v_proj(x),
                   q = rotary(rms_norm(q_proj(x))),       k = rotary(rms_norm(k_proj(x)))

Names are those of Hugging Face's Qwen3ForCausalLM; which blocks have the window is as in Qwen 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, qwen2, tensors
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "qwen3"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)


@dataclass(frozen=True)
class Config(qwen2.Config):
    """The options of config.json that this net reads."""

    head_dim: int | None = 128
    attention_bias: bool = False

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Qwen3", heads.TOKENS, heads.SPANS)
    SPANS_IN: ClassVar[str] = "transformer"

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION * self.attention_bias


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.shapes(c)
    for i in range(c.num_hidden_layers):
        yield from head_norm_shapes(f"{c.base}.layers.{i}.self_attn", c)


def head_norm_shapes(path: str, c: llama.DecoderConfig) -> Tensors:
    for name in ("q_norm", "k_norm"):
        yield from tensors.norm(f"{path}.{name}", c.width, "head_dim")


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return llama.decoder(t, c, batch, block)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.rms_norm("input_layernorm", h, c.rms_norm_eps)
    a = t.module("self_attn", attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    n = t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps)
    return t.add("", h, t.module("mlp", llama.mlp, n, c), role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = llama.project(t, x, c)
    q, k = t.rms_norm("q_norm", q, c.rms_norm_eps), t.rms_norm("k_norm", k, c.rms_norm_eps)
    q = t.scale("query.scaled", t.rotary("query.rotated", q, cos, sin), c.width**-0.5)
    k = t.rotary("key.rotated", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")
