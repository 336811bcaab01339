"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219 and 2412.08905): Llama with one matrix for
queries, keys and values, and one for gate and up.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window),    h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    [q, k, v] = qkv_proj(x)
    mlp(x)       = down_proj(silu(g) * u),                [g, u] = gate_up_proj(x)

Positions rotate the first part of each head (all of it in Phi-3), with longrope in the versions for
long texts. Names are those of Hugging Face's Phi3ForCausalLM; what it cuts out of an output has the
sites `query.flat`, `gate`, ... here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "phi3"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.LlamaConfig):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 4096
    original_max_position_embeddings: int | None = 4096
    rms_norm_eps: float = 1e-5
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    use_sliding_window: bool = True
    pad_token_id: int | None = field(default=32000, metadata={"least": -LARGEST})

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Phi3")
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "full_attn_mod",  # of Phi-4-mini; Phi3ForCausalLM reads neither
        "interpolate_factor",
    )

    @property
    def rope(self) -> Rope:
        return rope.read(
            self.width,
            self.rope_theta,
            self.max_position_embeddings,
            _by_its_name(self.rope_scaling),
            _by_its_name(self.rope_parameters),
            part=self.partial_rotary_factor,
            original=self.original_max_position_embeddings,
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window if self.use_sliding_window else None,) * self.num_hidden_layers


def _by_its_name(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """The first files call longrope "su", or "yarn"."""
    if scaling is None or scaling.get("type") not in ("su", "yarn"):
        return scaling
    return scaling | {"type": "longrope"}


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.layers.{i}", c)


def _block_shapes(block: str, c: Config) -> Tensors:
    d, q, kv = c.hidden_size, c.num_attention_heads * c.width, c.kv_heads * c.width
    why = "hidden_size, num_attention_heads, num_key_value_heads and head_dim"
    yield from tensors.norm(f"{block}.input_layernorm", d)
    yield from tensors.linear(f"{block}.self_attn.qkv_proj", q + 2 * kv, d, why)
    yield from tensors.linear(f"{block}.self_attn.o_proj", d, q, why)
    yield from tensors.norm(f"{block}.post_attention_layernorm", d)
    inner, why = c.intermediate_size, "hidden_size and intermediate_size"
    yield from tensors.linear(f"{block}.mlp.gate_up_proj", 2 * inner, d, why)
    yield from tensors.linear(f"{block}.mlp.down_proj", d, inner, why)


# -- forward ---------------------------------------------------------------------------------------

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
    return t.add("", h, t.module("mlp", mlp, n, c), role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = project(t, x, c)
    q = t.scale("query.scaled", llama.rotate(t, "query", q, cos, sin), c.score_scale)
    k = llama.rotate(t, "key", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("o_proj", context, role="attention.output")


def project(
    t: Trace, x: Value, c: Config
) -> tuple[Value, Value, Value]:  # (B, T, D) -> (B, H, T, d), (B, K, T, d) x 2
    """Queries, keys and values of each head, one after the other in one output."""
    qkv = t.linear("qkv_proj", x, role="attention.query_key_value")
    made, start = [], 0
    counts = ("query", c.num_attention_heads), ("key", c.kv_heads), ("value", c.kv_heads)
    for name, count in counts:
        stop = start + count * c.width
        flat = t.move(f"{name}.flat", "slice", qkv, start=start, stop=stop)
        made.append(t.move(name, "split_heads", flat, heads=count))
        start = stop
    q, k, v = made
    return q, k, v


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    both, inner = t.linear("gate_up_proj", x, role="mlp.gate_up"), c.intermediate_size
    gate = t.move("gate", "slice", both, start=0, stop=inner)
    up = t.move("up", "slice", both, start=inner, stop=2 * inner)
    gate = t.activation("activation_fn", gate, c.act, role="mlp.activation")
    z = t.multiply("gated", gate, up, role="mlp.product")
    return t.linear("down_proj", z, role="mlp.down")
