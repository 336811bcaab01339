"""Qwen 3 with a mixture of experts (Qwen team 2025, arXiv 2505.09388).

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h)),    h = h + sum over the chosen experts of r_e
                                                          expert_e(rms_norm(h))
    expert(n) = down(silu(gate(n)) * up(n)),    r: the largest of softmax(gate(n)), made to sum to
                                                one where norm_topk_prob says so
    logits = head(rms_norm(h))

Queries and keys pass an rms_norm per head before they are rotated. Blocks in mlp_only_layers, and
those whose number, counted from 1, decoder_sparse_step does not divide, have one gated MLP in place
of the experts. Which blocks have a window is as in Qwen 2. Names are those of Hugging Face's
Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from refl.arrays import Array
from refl.nets import attention, decoder, mlp, moe, qwen3, tensors
from refl.nets.batch import Batch
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

    HARMLESS: ClassVar[tuple[str, ...]] = moe.HARMLESS

    def __post_init__(self) -> None:
        super().__post_init__()
        moe.enough("num_experts", self.num_experts, self.num_experts_per_tok)

    def sparse(self, i: int) -> bool:
        """Whether block i has experts."""
        return i not in (self.mlp_only_layers or []) and (i + 1) % self.decoder_sparse_step == 0


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from decoder.ends(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield from tensors.norm(f"{at}.input_layernorm", c.hidden_size)
        yield from attention.tensors_of(
            f"{at}.self_attn", c, bias=c.attention_bias, out_bias=c.attention_bias
        )
        yield from tensors.norm(f"{at}.self_attn.q_norm", c.width, "head_dim")
        yield from tensors.norm(f"{at}.self_attn.k_norm", c.width, "head_dim")
        yield from tensors.norm(f"{at}.post_attention_layernorm", c.hidden_size)
        if not c.sparse(i):
            yield from mlp.gated_tensors(f"{at}.mlp", c.hidden_size, c.intermediate_size)
            continue
        yield from tensors.linear(
            f"{at}.mlp.gate", c.num_experts, c.hidden_size, "hidden_size and num_experts"
        )
        for e in range(c.num_experts):
            yield from mlp.gated_tensors(
                f"{at}.mlp.experts.{e}", c.hidden_size, c.moe_intermediate_size
            )


def task(c: Config) -> str:
    return "next-token"


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    feeds = [experts if c.sparse(i) else dense for i in range(c.num_hidden_layers)]
    return moe.forward(t, c, batch, qwen3.attend, "mlp", feeds)


def experts(
    t: Trace, x: Value, c: Config, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    return moe.mixture(
        t,
        x,
        partial(mlp.gated, act=c.hidden_act),
        c.num_experts_per_tok,
        c.norm_topk_prob,
        attention_mask,
    )


def dense(
    t: Trace, x: Value, c: Config, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    return mlp.gated(t, x, c.hidden_act)
