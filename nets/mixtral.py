"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in place of
every MLP.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window)
                       h = h + sum over the chosen experts of r_e expert_e(rms_norm(h))
    logits = lm_head(rms_norm(h))

    expert(n) = w2(silu(w1(n)) * w3(n)),    r: the largest of softmax(gate(n)), made to sum to one

self_attn is Llama's, without biases; the mixture is that of nets/moe.py. Names are those of Hugging
Face's MixtralForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, moe, tensors
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "mixtral"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.LlamaConfig):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float | None = 1e6
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Mixtral", heads.TOKENS, heads.SPANS)
    HARMLESS: ClassVar[tuple[str, ...]] = moe.HARMLESS

    def __post_init__(self) -> None:
        super().__post_init__()
        moe.check_expert_count(
            "num_local_experts", self.num_local_experts, self.num_experts_per_tok
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window,) * self.num_hidden_layers


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        yield from tensors.norm(f"model.layers.{i}.input_layernorm", c.hidden_size)
        yield from llama.attention_shapes(f"model.layers.{i}.self_attn", c)
        yield from tensors.norm(f"model.layers.{i}.post_attention_layernorm", c.hidden_size)
        yield from _mixture_shapes(f"model.layers.{i}.block_sparse_moe", c)


def _mixture_shapes(path: str, c: Config) -> Tensors:
    d, inner = c.hidden_size, c.intermediate_size
    why = "hidden_size and num_local_experts"
    yield from tensors.linear(f"{path}.gate", c.num_local_experts, d, why)
    why = "hidden_size and intermediate_size"
    for e in range(c.num_local_experts):
        for name, out, into in (("w1", inner, d), ("w2", d, inner), ("w3", inner, d)):
            yield from tensors.linear(f"{path}.experts.{e}.{name}", out, into, why)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return llama.decoder(t, c, batch, block, batch.attention_mask)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.rms_norm("input_layernorm", h, c.rms_norm_eps)
    a = t.module("self_attn", llama.attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    n = t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps)
    m = t.module("block_sparse_moe", mixture, n, c, attention_mask)
    return t.add("", h, m, role="residual")


def mixture(
    t: Trace, x: Value, c: Config, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    return moe.mixture(t, x, partial(expert, c=c), c.num_experts_per_tok, True, attention_mask)


def expert(t: Trace, x: Value, c: Config) -> Value:  # (B, N, D) -> (B, N, D)
    gate = t.activation("act_fn", t.linear("w1", x, role="mlp.gate"), c.act, role="mlp.activation")
    up = t.linear("w3", x, role="mlp.up")
    return t.linear("w2", t.multiply("gated", gate, up, role="mlp.product"), role="mlp.down")
