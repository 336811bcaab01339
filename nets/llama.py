"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783).

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h)),    h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    q, k, v = q_proj(x), k_proj(x), v_proj(x)
    mlp(x)       = down_proj(silu(gate_proj(x)) * up_proj(x))

q and k are rotated by their positions (nets/rope.py); each head of k and v, d features wide, serves
a group of query heads (Ainslie et al. 2023, arXiv 2305.13245). Names are those of Hugging Face's
LlamaForCausalLM. Its relatives import from here what they share with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, activation_kind, divides
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "llama"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (both forms); real "
    "checkpoints: stories260K, babyllama105, the shipped model"
)


# -- config.json -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderConfig(heads.OfDecoder):
    """The options that every decoder with rotary positions reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    original_max_position_embeddings: int | None = None
    """Of longrope; without effect on other rotary positions."""
    tie_word_embeddings: bool = False
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None
    pad_token_id: int | None = field(default=None, metadata={"least": -LARGEST})

    def __post_init__(self) -> None:
        if self.head_dim is None:
            divides(
                "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
            )
        divides(
            "num_key_value_heads", self.kv_heads, "num_attention_heads", self.num_attention_heads
        )
        _ = self.task, self.rope, self.windows, self.act

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width(self) -> int:
        """Features per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> Rope:
        return rope.read(
            self.width,
            self.rope_theta,
            self.max_position_embeddings,
            self.rope_scaling,
            self.rope_parameters,
            part=self.turned,
            original=self.original_max_position_embeddings,
        )

    @property
    def turned(self) -> float | None:
        """The part of each head's features that rotary positions turn; None where no option says
        so beside the rotary positions' own.
        """
        return None

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.width**-0.5)

    @property
    def act(self) -> str:
        """The kind of activation in the MLP; nets differ in the option that names it."""
        raise NotImplementedError

    @property
    def longest(self) -> int:
        return self.rope.longest

    def batch_dependent(self, length: int) -> bool:
        """Whether an example's logits depend on its batch mates where one has `length` tokens."""
        return self.rope.batch_dependent(length)

    def angles_change(self, before: int, length: int) -> bool:
        """Whether keys of a run of `before` tokens are other ones in a run of `length`."""
        return self.rope.change(before, length)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each block how many tokens back attention reaches; None for all."""
        return (None,) * self.num_hidden_layers

    @property
    def biased(self) -> tuple[str, ...]:
        """The linear layers that have a bias."""
        return ()


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """And those that Llama and its closest relatives read."""

    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Config(LlamaConfig):
    """The options of config.json that this net reads."""

    attention_bias: bool = False
    mlp_bias: bool = False

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Llama", heads.TOKENS, heads.SPANS)
    SPANS_IN: ClassVar[str] = "transformer"
    HARMLESS: ClassVar[tuple[str, ...]] = ("rope_interleaved",)

    @property
    def biased(self) -> tuple[str, ...]:
        return ATTENTION * self.attention_bias + MLP * self.mlp_bias


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: DecoderConfig) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from embedding_and_head_shapes(c)
    yield from tensors.norm(f"{c.base}.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        block = f"{c.base}.layers.{i}"
        yield from tensors.norm(f"{block}.input_layernorm", c.hidden_size)
        yield from attention_shapes(f"{block}.self_attn", c)
        yield from tensors.norm(f"{block}.post_attention_layernorm", c.hidden_size)
        yield from mlp_shapes(f"{block}.mlp", c)


def embedding_and_head_shapes(c: DecoderConfig) -> Tensors:
    why = "vocab_size and hidden_size"
    yield f"{c.base}.embed_tokens.weight", (c.vocab_size, c.hidden_size), why
    if c.task != heads.NEXT_TOKEN:
        yield from heads.decoder_shapes(c, c.hidden_size)
        return
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size), why
    if "lm_head" in c.biased:
        yield "lm_head.bias", (c.vocab_size,), "vocab_size"


def attention_shapes(path: str, c: DecoderConfig, out: str = "o_proj") -> Tensors:
    q, kv = c.num_attention_heads * c.width, c.kv_heads * c.width
    why = "hidden_size, num_attention_heads, num_key_value_heads and head_dim"
    for name, width in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        bias = name in c.biased
        yield from tensors.linear(f"{path}.{name}", width, c.hidden_size, why, bias=bias)
    yield from tensors.linear(f"{path}.{out}", c.hidden_size, q, why, bias=out in c.biased)


def mlp_shapes(path: str, c: DecoderConfig, option: str = "intermediate_size") -> Tensors:
    """`option` says how many features the MLP has between its layers."""
    d, inner, why = c.hidden_size, getattr(c, option), f"hidden_size and {option}"
    for name, out, into in zip(MLP, (inner, inner, d), (d, d, inner), strict=True):
        yield from tensors.linear(f"{path}.{name}", out, into, why, bias=name in c.biased)


# -- forward ---------------------------------------------------------------------------------------

Block = Callable[..., Value]
"""(t, h, c, cos, sin, mask, ...) -> a value of h's shape"""


def task(c: DecoderConfig) -> str:
    return c.task


def forward(
    t: Trace, c: LlamaConfig, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder(t, c, batch, block)


def decoder(
    t: Trace, c: LlamaConfig, batch: Batch, block: Block, *rest: Any
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    """The way from ids to logits through blocks of any kind; `rest` is handed to each."""
    h = t.embedding(f"{c.base}.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        h = t.block(f"{c.base}.layers.{i}", block, h, c, cos, sin, mask, *rest)
    return lm_head(t, t.rms_norm(f"{c.base}.norm", h, c.rms_norm_eps), c, batch)


def block(
    t: Trace, h: Value, c: LlamaConfig, cos: Array | None, sin: Array | None, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.rms_norm("input_layernorm", h, c.rms_norm_eps)
    a = t.module("self_attn", attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    n = t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps)
    return t.add("", h, t.module("mlp", mlp, n, c), role="residual")


def attention(
    t: Trace, x: Value, c: DecoderConfig, cos: Array | None, sin: Array | None, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = project(t, x, c)
    q = t.scale("query.scaled", rotate(t, "query", q, cos, sin), c.score_scale)
    k = rotate(t, "key", k, cos, sin)
    context = attend(t, q, k, v, mask)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")


def rotate(
    t: Trace, name: str, x: Value, cos: Array | None, sin: Array | None
) -> Value:  # (B, H, T, d) -> (B, H, T, d)
    """Rotary positions on the first features of each head, as many as cos and sin have; the others
    stay as they are, and all where there are none.
    """
    if cos is None or sin is None:
        return x
    rotated, width = cos.shape[-1], x.array.shape[-1]
    if rotated == width:
        return t.rotary(f"{name}.rotated", x, cos, sin)
    first = t.move(f"{name}.first", "slice", x, start=0, stop=rotated)
    first = t.rotary(f"{name}.turned", first, cos, sin)
    rest = t.move(f"{name}.rest", "slice", x, start=rotated, stop=width)
    return t.move(f"{name}.rotated", "concat", first, rest, axis=-1)


class Headed(Protocol):
    """What `project` reads of a Config."""

    @property
    def num_attention_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def biased(self) -> tuple[str, ...]: ...


def project(
    t: Trace, x: Value, c: Headed
) -> tuple[Value, Value, Value]:  # (B, T, D) -> (B, H, T, d), (B, K, T, d) x 2
    """Queries, keys and values of each head."""
    q = t.linear("q_proj", x, bias="q_proj" in c.biased, role="attention.query")
    q = t.move("query", "split_heads", q, heads=c.num_attention_heads)
    k = t.linear("k_proj", x, bias="k_proj" in c.biased, role="attention.key")
    k = t.move("key", "split_heads", k, heads=c.kv_heads)
    v = t.linear("v_proj", x, bias="v_proj" in c.biased, role="attention.value")
    return q, k, t.move("value", "split_heads", v, heads=c.kv_heads)


def attend(
    t: Trace, q: Value, k: Value, v: Value, mask: Mask | None, cap: float | None = None
) -> Value:  # (B, H, T, d), (B, K, T, d) x 2 -> (B, T, H d)
    """softmax(q k^T) v of every head, q scaled already; `cap`: what scores are soft-capped at."""
    k, v = repeat_groups(t, q, k, v)
    return t.move("context.merged", "merge_heads", t.attention(q, k, v, mask, cap=cap))


def repeat_groups(
    t: Trace, q: Value, k: Value, v: Value
) -> tuple[Value, Value]:  # (B, K, T, d) x 2 -> (B, H, T, d) x 2
    """Each key and value head once for every query head of its group."""
    times = q.array.shape[1] // k.array.shape[1]
    if times == 1:
        return k, v
    k = t.move("key.repeated", "repeat_heads", k, times=times)
    return k, t.move("value.repeated", "repeat_heads", v, times=times)


def mlp(t: Trace, x: Value, c: DecoderConfig) -> Value:  # (B, T, D) -> (B, T, D)
    """Gated (Shazeer 2020, arXiv 2002.05202)."""
    gate = t.linear("gate_proj", x, bias="gate_proj" in c.biased, role="mlp.gate")
    gate = t.activation("act_fn", gate, c.act, role="mlp.activation")
    up = t.linear("up_proj", x, bias="up_proj" in c.biased, role="mlp.up")
    z = t.multiply("gated", gate, up, role="mlp.product")
    return t.linear("down_proj", z, bias="down_proj" in c.biased, role="mlp.down")


def lm_head(
    t: Trace, h: Value, c: DecoderConfig, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    if c.task != heads.NEXT_TOKEN:
        return heads.of_decoder_on(t, h, c, batch)
    h = heads.rows(t, "lm_head", h, batch)
    tied = "model.embed_tokens.weight" if c.tie_word_embeddings else None
    return t.linear("lm_head", h, bias="lm_head" in c.biased, weight=tied, role="head")
