"""OPT (Zhang et al. 2022, arXiv 2205.01068).

    h = embed_tokens[ids] + embed_positions[2 .. T+1]
    for each block:    h = h + self_attn(layer_norm(h)),    h = h + fc2(relu(fc1(layer_norm(h))))
    logits = lm_head(layer_norm(h))

    self_attn(x) = out_proj(softmax(q k^T / sqrt(d)) v),   q, k, v = q_proj(x), k_proj(x), v_proj(x)

The version of 350 million parameters (do_layer_norm_before false) has its norms behind both sums,
none at the end, and embeddings of another width than its blocks: project_in and project_out lead
from one to the other. Names are those of Hugging Face's OPTForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.config import LARGEST, activation_kind, divides
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "opt"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"

NORM_EPS = 1e-5
"""No option: torch's own."""
OFFSET = 2
"""The row of embed_positions at which positions begin."""


@dataclass(frozen=True)
class Config(heads.OfDecoder):
    """The options of config.json that this net reads."""

    vocab_size: int
    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048
    word_embed_proj_dim: int | None = None
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    layer_norm_elementwise_affine: bool = True
    enable_bias: bool = True
    tie_word_embeddings: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None
    pad_token_id: int | None = field(default=1, metadata={"least": -LARGEST})

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("OPT")
    HARMLESS: ClassVar[tuple[str, ...]] = ("activation_dropout", "dropout", "init_std", "layerdrop")

    def __post_init__(self) -> None:
        _ = self.task, self.act
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        if not self.layer_norm_elementwise_affine:
            raise ReflError(
                "config.json has layer_norm_elementwise_affine false: norms without weights are "
                "not implemented for this architecture"
            )

    @property
    def act(self) -> str:
        return activation_kind("activation_function", self.activation_function)

    @property
    def longest(self) -> int:
        return self.max_position_embeddings

    @property
    def width(self) -> int:
        """Features per head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedded(self) -> int:
        """Features of an embedding."""
        return self.word_embed_proj_dim or self.hidden_size

    @property
    def norm_at_end(self) -> bool:
        return self.do_layer_norm_before and not self._remove_final_layer_norm


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, e, why = c.hidden_size, c.embedded, "hidden_size and word_embed_proj_dim"
    yield "model.decoder.embed_tokens.weight", (c.vocab_size, e), "vocab_size and the same"
    rows = c.max_position_embeddings + OFFSET
    yield "model.decoder.embed_positions.weight", (rows, d), "max_position_embeddings and the same"
    if e != d:
        yield from tensors.linear("model.decoder.project_in", d, e, why)
        yield from tensors.linear("model.decoder.project_out", e, d, why)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.decoder.layers.{i}", c)
    if c.norm_at_end:
        yield from tensors.norm("model.decoder.final_layer_norm", d, bias=True)
    if c.task == heads.CLASS:
        yield from heads.score_shapes(c.labels, e, "word_embed_proj_dim")
    elif not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, e), "vocab_size and word_embed_proj_dim"


def _block_shapes(block: str, c: Config) -> Tensors:
    d, why = c.hidden_size, "hidden_size and num_attention_heads"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from tensors.linear(f"{block}.self_attn.{name}", d, d, why, bias=c.enable_bias)
    yield from tensors.norm(f"{block}.self_attn_layer_norm", d, bias=True)
    why = "hidden_size and ffn_dim"
    yield from tensors.linear(f"{block}.fc1", c.ffn_dim, d, why, bias=c.enable_bias)
    yield from tensors.linear(f"{block}.fc2", d, c.ffn_dim, why, bias=c.enable_bias)
    yield from tensors.norm(f"{block}.final_layer_norm", d, bias=True)


# -- forward ---------------------------------------------------------------------------------------


def task(c: Config) -> str:
    return c.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows; (B, 1, classes)
    with t.inside("model.decoder"):
        h = decoder(t, c, batch)
    if c.task == heads.CLASS:
        return heads.score(t, h, batch, c.pad_token_id)
    if batch.rows is not None:
        h = t.move("lm_head.row", "rows", h, index=batch.rows)
    tied = "model.decoder.embed_tokens.weight" if c.tie_word_embeddings else None
    return t.linear("lm_head", h, weight=tied, role="head")


def decoder(t: Trace, c: Config, batch: Batch) -> Value:  # ids (B, T) -> (B, T, E)
    words = t.embedding("embed_tokens", batch.ids)
    if c.embedded != c.hidden_size:
        words = t.linear("project_in", words, role="embedding.projection")
    at = positions(batch.ids, batch.past) + OFFSET
    places = t.embedding("embed_positions", at, role="position")
    h = t.add("embedded", words, places, role="embedding.sum")
    mask = masks.causal(batch.ids, batch.attention_mask, past=batch.past)
    for i in range(c.num_hidden_layers):
        h = t.block(f"layers.{i}", block, h, c, mask)
    if c.norm_at_end:
        h = t.layer_norm("final_layer_norm", h, NORM_EPS)
    if c.embedded != c.hidden_size:
        h = t.linear("project_out", h, role="head.transform")
    return h


def block(t: Trace, h: Value, c: Config, mask: Mask) -> Value:  # (B, T, D) -> (B, T, D)
    before = c.do_layer_norm_before
    n = t.layer_norm("self_attn_layer_norm", h, NORM_EPS) if before else h
    h = t.add("residual", h, t.module("self_attn", attention, n, c, mask), role="residual")
    if not before:
        h = t.layer_norm("self_attn_layer_norm", h, NORM_EPS)
    n = t.layer_norm("final_layer_norm", h, NORM_EPS) if before else h
    z = t.linear("fc1", n, bias=c.enable_bias, role="mlp.up")
    z = t.activation("activation_fn", z, c.act, role="mlp.activation")
    z = t.linear("fc2", z, bias=c.enable_bias, role="mlp.down")
    if before:
        return t.add("", h, z, role="residual")
    return t.layer_norm("final_layer_norm", t.add("sum", h, z, role="residual"), NORM_EPS)


def attention(t: Trace, x: Value, c: Config, mask: Mask) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = (projected(t, x, c, name) for name in ("query", "key", "value"))
    q = t.scale("query.scaled", q, c.width**-0.5)
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("out_proj", context, bias=c.enable_bias, role="attention.output")


def projected(t: Trace, x: Value, c: Config, name: str) -> Value:  # (B, T, D) -> (B, H, T, d)
    """Queries, keys or values of each head."""
    z = t.linear(f"{name[0]}_proj", x, bias=c.enable_bias, role=f"attention.{name}")
    return t.move(name, "split_heads", z, heads=c.num_attention_heads)
