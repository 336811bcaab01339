"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783).

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h)),    h = h + down(silu(gate(n)) * up(n)),  n = rms_norm(h)
    logits = head(rms_norm(h))

Names are those of Hugging Face's LlamaForCausalLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.nets import masks, rope
from refl.nets.batch import Batch
from refl.nets.config import divides
from refl.rules.activation import NAMES
from refl.trace import Trace, Value

MODEL_TYPE = "llama"
PREFIX = "model."


@dataclass(frozen=True)
class Config:
    """The options of config.json that this net reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    HARMLESS: ClassVar[tuple[str, ...]] = ("rope_interleaved",)

    def __post_init__(self) -> None:
        if self.hidden_act not in NAMES:
            raise ReflError(f"config.json asks for hidden_act {self.hidden_act!r}, which is not implemented: there are {', '.join(NAMES)}")
        if self.head_dim is None:
            divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        divides("num_key_value_heads", self.kv_heads, "num_attention_heads", self.num_attention_heads)
        _ = self.rope

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width(self) -> int:
        """Features per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> rope.Rope:
        return rope.read(self.width, self.rope_theta, self.max_position_embeddings, self.rope_scaling, self.rope_parameters)

    @property
    def longest(self) -> int:
        return self.rope.longest


def shapes(c: Config) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Every tensor: name, shape, and the options that ask for it."""
    hidden, q, kv = c.hidden_size, c.num_attention_heads * c.width, c.kv_heads * c.width
    heads = "hidden_size, num_attention_heads, num_key_value_heads and head_dim"
    yield "model.embed_tokens.weight", (c.vocab_size, hidden), "vocab_size and hidden_size"
    for i in range(c.num_hidden_layers):
        block = f"model.layers.{i}"
        yield f"{block}.input_layernorm.weight", (hidden,), "hidden_size"
        for name, out, into in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            yield from _linear(f"{block}.self_attn.{name}_proj", out, into, c.attention_bias, heads)
        yield f"{block}.post_attention_layernorm.weight", (hidden,), "hidden_size"
        for name, out, into in (
            ("gate", c.intermediate_size, hidden),
            ("up", c.intermediate_size, hidden),
            ("down", hidden, c.intermediate_size),
        ):
            yield from _linear(f"{block}.mlp.{name}_proj", out, into, c.mlp_bias, "hidden_size and intermediate_size")
    yield "model.norm.weight", (hidden,), "hidden_size"
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, hidden), "vocab_size and hidden_size"


def _linear(name: str, out: int, into: int, bias: bool, why: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.weight", (out, into), why
    if bias:
        yield f"{name}.bias", (out,), why


def task(c: Config) -> str:
    return "next-token"


def forward(t: Trace, c: Config, batch: Batch) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    ids = batch.ids
    h = t.embedding("model.embed_tokens", ids)
    cos, sin = rope.tables(c.rope, ids.shape[-1], h.array)
    mask = masks.causal(ids, batch.real)
    for i in range(c.num_hidden_layers):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    h = t.rms_norm("model.norm", h, c.rms_norm_eps)
    if batch.rows is not None:
        h = t.move("lm_head.row", "rows", h, index=batch.rows)
    return t.linear("lm_head", h, weight="model.embed_tokens.weight" if c.tie_word_embeddings else None)


def block(t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Array) -> Value:  # (B, T, D) -> (B, T, D)
    a = t.module("self_attn", attention, t.rms_norm("input_layernorm", h, c.rms_norm_eps), c, cos, sin, mask)
    h = t.add("residual", h, a)
    m = t.module("mlp", gated_mlp, t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps), c.hidden_act, c.mlp_bias)
    return t.add("", h, m)


def attention(t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array) -> Value:  # (B, T, D) -> (B, T, D)
    q = t.move("query", "split_heads", t.linear("q_proj", x, bias=c.attention_bias), heads=c.num_attention_heads)
    k = t.move("key", "split_heads", t.linear("k_proj", x, bias=c.attention_bias), heads=c.kv_heads)
    v = t.move("value", "split_heads", t.linear("v_proj", x, bias=c.attention_bias), heads=c.kv_heads)
    q = t.scale("query.scaled", t.rotary("query.rotated", q, cos, sin), c.width**-0.5)
    k = t.rotary("key.rotated", k, cos, sin)
    times = c.num_attention_heads // c.kv_heads
    if times > 1:
        k = t.move("key.repeated", "repeat_heads", k, times=times)
        v = t.move("value.repeated", "repeat_heads", v, times=times)
    context = t.attention(q, k, v, mask, causal=True)
    return t.linear("o_proj", t.move("context.merged", "merge_heads", context), bias=c.attention_bias)


def gated_mlp(t: Trace, x: Value, act: str, bias: bool) -> Value:  # (B, T, D) -> (B, T, D)
    gate = t.activation("act_fn", t.linear("gate_proj", x, bias=bias), act)
    return t.linear("down_proj", t.multiply("gated", gate, t.linear("up_proj", x, bias=bias)), bias=bias)
