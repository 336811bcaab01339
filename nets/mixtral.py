"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in place of
every MLP.

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h)),    h = h + sum over the chosen experts of r_e
                                                          expert_e(rms_norm(h))
    expert(n) = w2(silu(w1(n)) * w3(n)),    r: the largest of softmax(gate(n)), made to sum to one
    logits = head(rms_norm(h))

Names are those of Hugging Face's MixtralForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from refl.arrays import Array
from refl.nets import attention, decoder, mistral, moe, tensors
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "mixtral"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(decoder.Kin):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float | None = 1e6
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    HARMLESS: ClassVar[tuple[str, ...]] = moe.HARMLESS

    def __post_init__(self) -> None:
        super().__post_init__()
        moe.enough("num_local_experts", self.num_local_experts, self.num_experts_per_tok)

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window,) * self.num_hidden_layers


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from decoder.ends(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield from tensors.norm(f"{at}.input_layernorm", c.hidden_size)
        yield from attention.tensors_of(f"{at}.self_attn", c)
        yield from tensors.norm(f"{at}.post_attention_layernorm", c.hidden_size)
        experts = f"{at}.block_sparse_moe"
        yield from tensors.linear(
            f"{experts}.gate",
            c.num_local_experts,
            c.hidden_size,
            "hidden_size and num_local_experts",
        )
        for e in range(c.num_local_experts):
            for name, out, into in (("w1", c.intermediate_size, c.hidden_size), ("w2", c.hidden_size, c.intermediate_size),
                                    ("w3", c.intermediate_size, c.hidden_size)):  # fmt: skip
                yield from tensors.linear(
                    f"{experts}.experts.{e}.{name}", out, into, "hidden_size and intermediate_size"
                )


def task(c: Config) -> str:
    return "next-token"


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return moe.forward(
        t, c, batch, mistral.attend, "block_sparse_moe", [feed] * c.num_hidden_layers
    )


def feed(
    t: Trace, x: Value, c: Config, attention_mask: Array | None
) -> Value:  # (B, T, D) -> (B, T, D)
    return moe.mixture(
        t, x, partial(expert, act=c.hidden_act), c.num_experts_per_tok, True, attention_mask
    )


def expert(t: Trace, x: Value, act: str) -> Value:  # (B, N, D) -> (B, N, D)
    return t.linear(
        "w2", t.multiply("gated", t.activation("act_fn", t.linear("w1", x), act), t.linear("w3", x))
    )
