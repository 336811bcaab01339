"""StarCoder 2 (Lozhkov et al. 2024, arXiv 2402.19173): Llama with layer norms, biases and an MLP
without a gate.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(layer_norm(h), window),    h = h + mlp(layer_norm(h))
    logits = lm_head(layer_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    mlp(x) = c_proj(gelu(c_fc(x)))

Names are those of Hugging Face's Starcoder2ForCausalLM.
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

MODEL_TYPE = "starcoder2"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.DecoderConfig):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 4096
    hidden_act: str = "gelu_pytorch_tanh"
    norm_epsilon: float = 1e-5
    sliding_window: int | None = None
    use_sliding_window: bool = True
    use_bias: bool = True
    tie_word_embeddings: bool = True

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Starcoder2")
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "embedding_dropout",
        "residual_dropout",
        "mlp_type",  # of the published file; the class reads neither
        "norm_type",
    )

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION * self.use_bias

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window if self.use_sliding_window else None,) * self.num_hidden_layers


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size, bias=True)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.layers.{i}", c)


def _block_shapes(block: str, c: Config) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    yield from tensors.norm(f"{block}.input_layernorm", d, bias=True)
    yield from llama.attention_shapes(f"{block}.self_attn", c)
    yield from tensors.norm(f"{block}.post_attention_layernorm", d, bias=True)
    yield from tensors.linear(f"{block}.mlp.c_fc", inner, d, why, bias=c.use_bias)
    yield from tensors.linear(f"{block}.mlp.c_proj", d, inner, why, bias=c.use_bias)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    return llama.lm_head(t, t.layer_norm("model.norm", h, c.norm_epsilon), c, batch)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.norm_epsilon)
    a = t.module("self_attn", llama.attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    n = t.layer_norm("post_attention_layernorm", h, c.norm_epsilon)
    return t.add("", h, t.module("mlp", mlp, n, c), role="residual")


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    z = t.linear("c_fc", x, bias=c.use_bias, role="mlp.up")
    z = t.activation("act", z, c.act, role="mlp.activation")
    return t.linear("c_proj", z, bias=c.use_bias, role="mlp.down")
