"""Phi-1 and Phi-1.5 (Gunasekar et al. 2023, arXiv 2306.11644; Li et al. 2023, arXiv 2309.05463):
attention and MLP side by side.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(n) + mlp(n),  n = layer_norm(h)
    logits = lm_head(layer_norm(h)),  with biases there and everywhere

    self_attn(x) = dense(softmax(q k^T / sqrt(d)) v),    mlp(x) = fc2(gelu(fc1(x)))

Positions rotate the first part of each head. Names are those of Hugging Face's PhiForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "phi"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.DecoderConfig):
    """The options of config.json that this net reads."""

    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = False

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Phi", heads.TOKENS)

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def turned(self) -> float:
        return self.partial_rotary_factor

    @property
    def biased(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj", "dense", "lm_head")


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.final_layernorm", c.hidden_size, bias=True)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.layers.{i}", c)


def _block_shapes(block: str, c: Config) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    yield from tensors.norm(f"{block}.input_layernorm", d, bias=True)
    yield from llama.attention_shapes(f"{block}.self_attn", c, out="dense")
    for name in ("q_layernorm", "k_layernorm") if c.qk_layernorm else ():
        yield from tensors.norm(
            f"{block}.self_attn.{name}",
            c.width,
            "hidden_size and num_attention_heads",
            bias=True,
        )
    yield from tensors.linear(f"{block}.mlp.fc1", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.mlp.fc2", d, inner, why, bias=True)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    mask = masks.causal(batch.ids, batch.attention_mask, past=batch.past)
    for i in range(c.num_hidden_layers):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    h = t.layer_norm("model.final_layernorm", h, c.layer_norm_eps)
    return llama.lm_head(t, h, c, batch)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.layer_norm_eps)
    a = t.module("self_attn", attention, n, c, cos, sin, mask)
    both = t.add("both", a, t.module("mlp", mlp, n, c), role="residual")
    return t.add("", both, h, role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = llama.project(t, x, c)
    if c.qk_layernorm:
        q = t.layer_norm("q_layernorm", q, c.layer_norm_eps)
        k = t.layer_norm("k_layernorm", k, c.layer_norm_eps)
    q = t.scale("query.scaled", llama.rotate(t, "query", q, cos, sin), c.width**-0.5)
    k = llama.rotate(t, "key", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("dense", context, bias=True, role="attention.output")


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    z = t.linear("fc1", x, bias=True, role="mlp.up")
    z = t.activation("activation_fn", z, c.act, role="mlp.activation")
    return t.linear("fc2", z, bias=True, role="mlp.down")
