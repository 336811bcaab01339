"""GPT-2 (Radford et al. 2019).

    h = wte[ids] + wpe[0..T-1]
    for each block:    h = h + attn(layer_norm(h)),    h = h + mlp(layer_norm(h))
    logits = lm_head(layer_norm(h))

    attn(x) = c_proj(softmax(q k^T / sqrt(d)) v),    q, k, v = c_attn(x)
    mlp(x)  = c_proj(gelu(c_fc(x)))

Names are those of Hugging Face's GPT2LMHeadModel; its Conv1D modules store their weights (I, O).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from refl.mask import Mask
from refl.nets import heads, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.config import LARGEST, activation_kind, divides
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "gpt2"
PREFIX = "transformer."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); real checkpoints: capp_gpt2, nano_sort_gpt2"
)


@dataclass(frozen=True)
class Config(heads.OfDecoder):
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
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None
    pad_token_id: int | None = field(default=None, metadata={"least": -LARGEST})

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder(
        "GPT2", heads.TOKENS, heads.SPANS, language="LMHeadModel"
    )
    SHOWN_BY: ClassVar[dict[str, str]] = heads.OfDecoder.SHOWN_BY | {
        heads.TOKEN_CLASS: "classifier."
    }
    OF_TOKENS: ClassVar[str] = "classifier"
    SPANS_IN: ClassVar[str] = "transformer"
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
        _ = self.task, self.act
        divides("n_head", self.n_head, "n_embd", self.n_embd)

    @property
    def act(self) -> str:
        return activation_kind("activation_function", self.activation_function)

    @property
    def longest(self) -> int:
        return self.n_positions


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, inner = c.n_embd, c.n_inner or 4 * c.n_embd
    yield "transformer.wte.weight", (c.vocab_size, d), "vocab_size and n_embd"
    yield "transformer.wpe.weight", (c.n_positions, d), "n_positions and n_embd"
    for i in range(c.n_layer):
        block = f"transformer.h.{i}"
        yield from tensors.norm(f"{block}.ln_1", d, "n_embd", bias=True)
        yield from conv1d_shapes(f"{block}.attn.c_attn", d, 3 * d)
        yield from conv1d_shapes(f"{block}.attn.c_proj", d, d)
        yield from tensors.norm(f"{block}.ln_2", d, "n_embd", bias=True)
        yield from conv1d_shapes(f"{block}.mlp.c_fc", d, inner)
        yield from conv1d_shapes(f"{block}.mlp.c_proj", inner, d)
    yield from tensors.norm("transformer.ln_f", d, "n_embd", bias=True)
    if c.task != heads.NEXT_TOKEN:
        yield from heads.decoder_shapes(c, d, "n_embd")
    elif not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, d), "vocab_size and n_embd"


def conv1d_shapes(name: str, into: int, out: int) -> Tensors:
    yield f"{name}.weight", (into, out), "n_embd and n_inner"
    yield f"{name}.bias", (out,), "n_embd and n_inner"


def task(c: Config) -> str:
    return c.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> (
    Value
):  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    ids = batch.ids
    words = t.embedding("transformer.wte", ids)
    places = t.embedding("transformer.wpe", positions(ids, batch.past), role="position")
    h = t.add("transformer.drop", words, places, role="embedding.sum")
    mask = masks.causal(ids, batch.attention_mask, past=batch.past)
    for i in range(c.n_layer):
        h = t.block(f"transformer.h.{i}", block, h, c, i, mask)
    h = t.layer_norm("transformer.ln_f", h, c.layer_norm_epsilon)
    if c.task != heads.NEXT_TOKEN:
        return heads.of_decoder_on(t, h, c, batch)
    h = heads.rows(t, "lm_head", h, batch)
    tied = "transformer.wte.weight" if c.tie_word_embeddings else None
    return t.linear("lm_head", h, weight=tied, role="head")


def block(t: Trace, h: Value, c: Config, index: int, mask: Mask) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("ln_1", h, c.layer_norm_epsilon)
    h = t.add("residual", h, t.module("attn", attention, n, c, index, mask), role="residual")
    n = t.layer_norm("ln_2", h, c.layer_norm_epsilon)
    return t.add("", h, t.module("mlp", mlp, n, c), role="residual")


def attention(
    t: Trace, x: Value, c: Config, index: int, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    qkv = t.linear("c_attn", x, bias=True, transposed=True, role="attention.query_key_value")
    q, k, v = (head_parts(t, qkv, c, i, name) for i, name in enumerate(("query", "key", "value")))
    q = t.scale("query.scaled", q, score_scale(c, index))
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("c_proj", context, bias=True, transposed=True, role="attention.output")


def head_parts(
    t: Trace, qkv: Value, c: Config, part: int, name: str
) -> Value:  # (B, T, 3 D) -> (B, H, T, d)
    """Queries, keys or values, by the number of the part."""
    start = part * c.n_embd
    flat = t.move(f"{name}.flat", "slice", qkv, start=start, stop=start + c.n_embd)
    return t.move(name, "split_heads", flat, heads=c.n_head)


def score_scale(c: Config, index: int) -> float:
    scale = (c.n_embd // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
    return scale / (index + 1) if c.scale_attn_by_inverse_layer_idx else scale


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    z = t.linear("c_fc", x, bias=True, transposed=True, role="mlp.up")
    z = t.activation("act", z, c.act, role="mlp.activation")
    return t.linear("c_proj", z, bias=True, transposed=True, role="mlp.down")
