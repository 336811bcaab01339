"""GPT-2 (Radford et al. 2019).

    h = token[ids] + position[0..T-1]
    for each block:    h = h + attention(layer_norm(h)),    h = h + proj(gelu(fc(layer_norm(h))))
    logits = head(layer_norm(h))

Names are those of Hugging Face's GPT2LMHeadModel; its Conv1D modules store their weights (I, O).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array, namespace
from refl.errors import ReflError
from refl.nets import masks
from refl.nets.batch import Batch
from refl.nets.config import divides
from refl.rules.activation import NAMES
from refl.trace import Trace, Value

MODEL_TYPE = "gpt2"
PREFIX = "transformer."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); real checkpoints: capp_gpt2, nano_sort_gpt2"
)


@dataclass(frozen=True)
class Config:
    """The options of config.json that this net reads."""

    vocab_size: int
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "n_ctx",
        "is_decoder",
        "reorder_and_upcast_attn",  # the same mathematics in another order
        "summary_activation",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    )

    def __post_init__(self) -> None:
        if self.activation_function not in NAMES:
            raise ReflError(
                f"config.json asks for activation_function {self.activation_function!r}, "
                "which is not implemented: "
                f"there are {', '.join(NAMES)}"
            )
        divides("n_head", self.n_head, "n_embd", self.n_embd)

    @property
    def longest(self) -> int:
        return self.n_positions


def shapes(c: Config) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Every tensor: name, shape, and the options that ask for it."""
    d, inner = c.n_embd, c.n_inner or 4 * c.n_embd
    yield "transformer.wte.weight", (c.vocab_size, d), "vocab_size and n_embd"
    yield "transformer.wpe.weight", (c.n_positions, d), "n_positions and n_embd"
    for i in range(c.n_layer):
        block = f"transformer.h.{i}"
        yield from _norm(f"{block}.ln_1", d)
        yield from _conv(f"{block}.attn.c_attn", d, 3 * d)
        yield from _conv(f"{block}.attn.c_proj", d, d)
        yield from _norm(f"{block}.ln_2", d)
        yield from _conv(f"{block}.mlp.c_fc", d, inner)
        yield from _conv(f"{block}.mlp.c_proj", inner, d)
    yield from _norm("transformer.ln_f", d)
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, d), "vocab_size and n_embd"


def _norm(name: str, d: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.weight", (d,), "n_embd"
    yield f"{name}.bias", (d,), "n_embd"


def _conv(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.weight", (into, out), "n_embd and n_inner"
    yield f"{name}.bias", (out,), "n_embd and n_inner"


def task(c: Config) -> str:
    return "next-token"


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    ids = batch.ids
    h = t.add(
        "transformer.drop",
        t.embedding("transformer.wte", ids),
        t.embedding("transformer.wpe", positions(ids), role="position"),
    )
    mask = masks.causal(ids, batch.attention_mask)
    for i in range(c.n_layer):
        h = t.block(f"transformer.h.{i}", block, h, c, i, mask)
    h = t.layer_norm("transformer.ln_f", h, c.layer_norm_epsilon)
    if batch.rows is not None:
        h = t.move("lm_head.row", "rows", h, index=batch.rows)
    return t.linear(
        "lm_head", h, weight="transformer.wte.weight" if c.tie_word_embeddings else None
    )


def positions(ids: Array) -> Array:  # (B, T) -> int (B, T): 0, 1, ..., T - 1 in every row
    xp = namespace(ids)
    return xp.cumulative_sum(xp.ones_like(ids), axis=1) - 1


def block(
    t: Trace, h: Value, c: Config, index: int, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.add(
        "residual",
        h,
        t.module("attn", attention, t.layer_norm("ln_1", h, c.layer_norm_epsilon), c, index, mask),
    )
    return t.add(
        "",
        h,
        t.module("mlp", mlp, t.layer_norm("ln_2", h, c.layer_norm_epsilon), c.activation_function),
    )


def attention(
    t: Trace, x: Value, c: Config, index: int, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    qkv, d = t.linear("c_attn", x, bias=True, transposed=True), c.n_embd
    q, k, v = (
        t.move(
            name,
            "split_heads",
            t.move(f"{name}.flat", "slice", qkv, start=i * d, stop=(i + 1) * d),
            heads=c.n_head,
        )
        for i, name in enumerate(("query", "key", "value"))
    )
    context = t.attention(t.scale("query.scaled", q, _scale(c, index)), k, v, mask, causal=True)
    return t.linear(
        "c_proj", t.move("context.merged", "merge_heads", context), bias=True, transposed=True
    )


def _scale(c: Config, index: int) -> float:
    scale = (c.n_embd // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
    return scale / (index + 1) if c.scale_attn_by_inverse_layer_idx else scale


def mlp(t: Trace, x: Value, act: str) -> Value:  # (B, T, D) -> (B, T, D)
    return t.linear(
        "c_proj",
        t.activation("act", t.linear("c_fc", x, bias=True, transposed=True), act),
        bias=True,
        transposed=True,
    )
