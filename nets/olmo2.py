"""OLMo 2 (Team OLMo 2024, arXiv 2501.00656): Llama with its norms behind attention and MLP, and on
queries and keys.

    h = embed_tokens[ids]
    for each block:    h = h + rms_norm(self_attn(h)),    h = h + rms_norm(mlp(h))
    logits = lm_head(rms_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    v = v_proj(x),
                   q = rotary(rms_norm(q_proj(x))),       k = rotary(rms_norm(k_proj(x)))

The norms of q and k are over all heads together, before these are split. mlp is Llama's, without
biases. Names are those of Hugging Face's Olmo2ForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, tensors
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "olmo2"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.LlamaConfig):
    """The options of config.json that this net reads."""

    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    HEADS: ClassVar[dict[str, str]] = {"Olmo2ForCausalLM": heads.NEXT_TOKEN}

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION * self.attention_bias


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.layers.{i}", c)


def _block_shapes(block: str, c: Config) -> Tensors:
    yield from llama.attention_shapes(f"{block}.self_attn", c)
    for name, option, count in (
        ("q_norm", "num_attention_heads", c.num_attention_heads),
        ("k_norm", "num_key_value_heads", c.kv_heads),
    ):
        yield from tensors.norm(f"{block}.self_attn.{name}", count * c.width, option)
    yield from tensors.norm(f"{block}.post_attention_layernorm", c.hidden_size)
    yield from llama.mlp_shapes(f"{block}.mlp", c)
    yield from tensors.norm(f"{block}.post_feedforward_layernorm", c.hidden_size)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return llama.decoder(t, c, batch, block)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    a = t.module("self_attn", attention, h, c, cos, sin, mask)
    a = t.rms_norm("post_attention_layernorm", a, c.rms_norm_eps)
    h = t.add("residual", h, a, role="residual")
    m = t.module("mlp", llama.mlp, h, c)
    m = t.rms_norm("post_feedforward_layernorm", m, c.rms_norm_eps)
    return t.add("", h, m, role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = project(t, x, c)
    q = t.scale("query.scaled", t.rotary("query.rotated", q, cos, sin), c.width**-0.5)
    k = t.rotary("key.rotated", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")


def project(
    t: Trace, x: Value, c: Config
) -> tuple[Value, Value, Value]:  # (B, T, D) -> (B, H, T, d), (B, K, T, d) x 2
    """Queries, keys and values of each head; norms come before the split."""
    q = t.linear("q_proj", x, bias="q_proj" in c.biased, role="attention.query")
    q = t.rms_norm("q_norm", q, c.rms_norm_eps)
    q = t.move("query", "split_heads", q, heads=c.num_attention_heads)
    k = t.linear("k_proj", x, bias="k_proj" in c.biased, role="attention.key")
    k = t.rms_norm("k_norm", k, c.rms_norm_eps)
    k = t.move("key", "split_heads", k, heads=c.kv_heads)
    v = t.linear("v_proj", x, bias="v_proj" in c.biased, role="attention.value")
    return q, k, t.move("value", "split_heads", v, heads=c.kv_heads)
