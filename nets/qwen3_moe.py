"""Qwen 3 with a mixture of experts (Qwen team 2025, arXiv 2505.09388).

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window of the block)
                       h = h + sum over the chosen experts of r_e expert_e(rms_norm(h))
    logits = lm_head(rms_norm(h))

    expert(n) = down_proj(silu(gate_proj(n)) * up_proj(n))
    r: the largest of softmax(gate(n)), made to sum to one where norm_topk_prob says so

self_attn is that of Qwen 3, windows are as in Qwen 2, the mixture is that of nets/moe.py. Blocks in
mlp_only_layers, and those whose number, counted from 1, decoder_sparse_step does not divide, have
one MLP like an expert in place of the mixture. Names are those of Hugging Face's
Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, llama, masks, moe, qwen3, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import brief
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "qwen3_moe"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1's operations; no "
    "real checkpoint"
)


@dataclass(frozen=True)
class Config(qwen3.Config):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Qwen3Moe", heads.TOKENS, heads.SPANS)
    SPANS_IN: ClassVar[str] = "transformer"
    HARMLESS: ClassVar[tuple[str, ...]] = moe.HARMLESS

    def __post_init__(self) -> None:
        super().__post_init__()
        moe.check_expert_count("num_experts", self.num_experts, self.num_experts_per_tok)
        for i in self.mlp_only_layers or ():
            if not 0 <= i < self.num_hidden_layers:
                raise ReflError(
                    f"config.json has {brief(i)} among mlp_only_layers: expected numbers of "
                    f"blocks, 0 to {self.num_hidden_layers - 1}"
                )

    def sparse(self, i: int) -> bool:
        """Whether block i has experts."""
        return i not in (self.mlp_only_layers or []) and (i + 1) % self.decoder_sparse_step == 0


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm(f"{c.base}.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        block = f"{c.base}.layers.{i}"
        yield from tensors.norm(f"{block}.input_layernorm", c.hidden_size)
        yield from llama.attention_shapes(f"{block}.self_attn", c)
        yield from qwen3.head_norm_shapes(f"{block}.self_attn", c)
        yield from tensors.norm(f"{block}.post_attention_layernorm", c.hidden_size)
        if c.sparse(i):
            yield from _mixture_shapes(f"{block}.mlp", c)
        else:
            yield from llama.mlp_shapes(f"{block}.mlp", c)


def _mixture_shapes(path: str, c: Config) -> Tensors:
    why = "hidden_size and num_experts"
    yield from tensors.linear(f"{path}.gate", c.num_experts, c.hidden_size, why)
    for e in range(c.num_experts):
        yield from llama.mlp_shapes(f"{path}.experts.{e}", c, "moe_intermediate_size")


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding(f"{c.base}.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        rest = (mixture, batch.attention_mask) if c.sparse(i) else (llama.mlp,)
        h = t.block(f"{c.base}.layers.{i}", block, h, c, cos, sin, mask, *rest)
    return llama.lm_head(t, t.rms_norm(f"{c.base}.norm", h, c.rms_norm_eps), c, batch)


def block(
    t: Trace,
    h: Value,
    c: Config,
    cos: Array,
    sin: Array,
    mask: Mask,
    mlp: Callable[..., Value],
    *rest: Array | None,
) -> Value:  # (B, T, D) -> (B, T, D)
    """`mlp`: the mixture, which takes the attention mask too, or Llama's MLP."""
    n = t.rms_norm("input_layernorm", h, c.rms_norm_eps)
    a = t.module("self_attn", qwen3.attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    n = t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps)
    return t.add("", h, t.module("mlp", mlp, n, c, *rest), role="residual")


def mixture(
    t: Trace, x: Value, c: Config, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    expert = partial(llama.mlp, c=c)
    return moe.mixture(t, x, expert, c.num_experts_per_tok, c.norm_topk_prob, attention_mask)
