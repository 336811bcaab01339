"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia (Biderman et al. 2023, arXiv
2304.01373): attention and MLP side by side, each behind a norm of its own.

    h = embed_in[ids]
    for each block:    h = h + attention(layer_norm(h)) + mlp(layer_norm(h))
    logits = embed_out(layer_norm(h))

    attention(x) = dense(softmax(q k^T / sqrt(d)) v),    [q, k, v] of each head = query_key_value(x)
    mlp(x)       = dense_4h_to_h(gelu(dense_h_to_4h(x)))

Positions rotate the first quarter of each head. Without use_parallel_residual attention and MLP
follow each other, as in GPT-2. Names are those of Hugging Face's GPTNeoXForCausalLM; its output of
query_key_value has the query, key and value of the first head, then those of the second: they are
cut apart head by head, at the sites `query`, `key` and `value`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, llama, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind, brief
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "gpt_neox"
PREFIX = "gpt_neox."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.DecoderConfig):
    """The options of config.json that this net reads."""

    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    rotary_pct: float = 0.25
    partial_rotary_factor: float | None = None
    """The same, as transformers writes it beside."""
    rotary_emb_base: float = 10000.0
    use_parallel_residual: bool = True
    attention_bias: bool = True

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("GPTNeoX")
    SHOWN_BY: ClassVar[dict[str, str]] = {heads.NEXT_TOKEN: "embed_out.", heads.CLASS: "score."}

    def __post_init__(self) -> None:
        super().__post_init__()
        for own, later in (
            ("rotary_pct", "partial_rotary_factor"),
            ("rotary_emb_base", "rope_theta"),
            ("num_attention_heads", "num_key_value_heads"),
        ):
            one, other = getattr(self, own), getattr(self, later)
            if other not in (None, one):
                raise ReflError(
                    f"config.json has {own} = {brief(one)} and {later} = {brief(other)}: expected "
                    "the same"
                )

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def rope(self) -> Rope:
        return rope.read(
            self.width,
            self.rotary_emb_base,
            self.max_position_embeddings,
            self.rope_scaling,
            self.rope_parameters,
            part=self.rotary_pct,
            original=self.original_max_position_embeddings,
        )


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield "gpt_neox.embed_in.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"gpt_neox.layers.{i}", c)
    yield from tensors.norm("gpt_neox.final_layer_norm", c.hidden_size, bias=True)
    if c.task == heads.CLASS:
        yield from heads.score_shapes(c.labels, c.hidden_size)
    elif not c.tie_word_embeddings:
        yield "embed_out.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"


def _block_shapes(block: str, c: Config) -> Tensors:
    d, q = c.hidden_size, c.num_attention_heads * c.width
    bias, why = c.attention_bias, "hidden_size and num_attention_heads"
    yield from tensors.norm(f"{block}.input_layernorm", d, bias=True)
    yield from tensors.linear(f"{block}.attention.query_key_value", 3 * q, d, why, bias=bias)
    yield from tensors.linear(f"{block}.attention.dense", d, q, why, bias=bias)
    yield from tensors.norm(f"{block}.post_attention_layernorm", d, bias=True)
    inner, why = c.intermediate_size, "hidden_size and intermediate_size"
    yield from tensors.linear(f"{block}.mlp.dense_h_to_4h", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.mlp.dense_4h_to_h", d, inner, why, bias=True)


# -- forward ---------------------------------------------------------------------------------------

task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows; (B, 1, classes)
    h = t.embedding("gpt_neox.embed_in", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    mask = masks.causal(batch.ids, batch.attention_mask, past=batch.past)
    for i in range(c.num_hidden_layers):
        h = t.block(f"gpt_neox.layers.{i}", block, h, c, cos, sin, mask)
    h = t.layer_norm("gpt_neox.final_layer_norm", h, c.layer_norm_eps)
    if c.task == heads.CLASS:
        return heads.score(t, h, batch, c.pad_token_id)
    if batch.rows is not None:
        h = t.move("embed_out.row", "rows", h, index=batch.rows)
    tied = "gpt_neox.embed_in.weight" if c.tie_word_embeddings else None
    return t.linear("embed_out", h, weight=tied, role="head")


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.layer_norm_eps)
    a = t.module("attention", attention, n, c, cos, sin, mask)
    if not c.use_parallel_residual:
        h = t.add("residual", h, a, role="residual")
    n = t.layer_norm("post_attention_layernorm", h, c.layer_norm_eps)
    m = t.module("mlp", mlp, n, c)
    if c.use_parallel_residual:
        m = t.add("both", a, m, role="residual")
    return t.add("", m, h, role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    qkv = t.linear("query_key_value", x, bias=c.attention_bias, role="attention.query_key_value")
    qkv = t.move("query_key_value.heads", "split_heads", qkv, heads=c.num_attention_heads)
    q, k, v = (
        t.move(name, "slice", qkv, start=i * c.width, stop=(i + 1) * c.width)
        for i, name in enumerate(("query", "key", "value"))
    )
    q = t.scale("query.scaled", llama.rotate(t, "query", q, cos, sin), c.score_scale)
    k = llama.rotate(t, "key", k, cos, sin)
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("dense", context, bias=c.attention_bias, role="attention.output")


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    z = t.linear("dense_h_to_4h", x, bias=True, role="mlp.up")
    z = t.activation("act", z, c.act, role="mlp.activation")
    return t.linear("dense_4h_to_h", z, bias=True, role="mlp.down")
