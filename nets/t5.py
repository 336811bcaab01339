"""T5 (Raffel et al. 2020, arXiv 1910.10683), T5 v1.1 and Flan-T5 (Chung et al. 2022, arXiv
2210.11416); mT5 (Xue et al. 2021, arXiv 2010.11934), which computes as T5 v1.1 does; umT5 (Chung et
al. 2023, arXiv 2304.09151), with a table of distances in every block.

    h = embed(ids)
    for each block of the encoder:    h = h + attention(norm(h)),    h = h + mlp(norm(h))
    g = embed(decoder ids)
    for each block of the decoder:    g = g + attention(norm(g)),
                                      g = g + attention(norm(g), to norm(h)),
                                      g = g + mlp(norm(g))
    logits = head(norm(g)),    the input of a tied head scaled by d_model^-1/2

The norm is RMSNorm; q k^T is not scaled, and in self-attention gets a bias per head and distance,
from one table in each stack, or in each of its blocks. Names are those of Hugging Face's
T5ForConditionalGeneration. T5EncoderModel is the encoder alone: its output is norm(h).
T5ForTokenClassification reads that, with a linear layer for the classes of every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import encoder, heads, masks, relative_bias, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind, brief
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "t5"
FAMILIES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
"""model_type -> what the names of its classes begin with."""
PREFIX = ""
CHECKED = (
    "random configurations against transformers 4.52.4; real checkpoints: chronos_dummy_t5 "
    "(untrained)"
)


TRANSLATES = "sequence-to-sequence"

_MULTILINGUAL: dict[str, Any] = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


@dataclass(frozen=True)
class Config:
    """The options of config.json that this net reads."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    scalable_attention: bool = False
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "n_positions",  # what it was trained on; distances have no end
        "chronos_config",  # how Chronos turns time series into tokens
    )
    DEFAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        "mt5": _MULTILINGUAL | {"tie_word_embeddings": False},
        "umt5": _MULTILINGUAL,
    }
    SHOWN_BY: ClassVar[dict[str, str]] = {
        TRANSLATES: "decoder.",
        heads.TOKEN_CLASS: "classifier.",
    }
    OTHERWISE: ClassVar[str] = heads.FEATURES

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        family = FAMILIES[model_type or MODEL_TYPE]
        found = {f"{family}ForConditionalGeneration": TRANSLATES}
        if family == "T5":
            found["T5WithLMHeadModel"] = TRANSLATES
        of_tokens = {family + heads.TOKENS: heads.TOKEN_CLASS}
        return found | {f"{family}EncoderModel": heads.FEATURES} | of_tokens

    def __post_init__(self) -> None:
        self._refuse_twice_read()
        if self.task == TRANSLATES and not self.is_encoder_decoder:
            raise ReflError(
                "config.json has is_encoder_decoder = false, so it is that of an encoder alone: "
                f"expected {next(iter(self.classes(self.model_type)))} to have a decoder"
            )
        if self.scalable_attention and not self.in_every_block:
            raise ReflError(
                "config.json has scalable_attention = true, which means a table of distances in "
                f"every block: expected it with model_type umt5, not {self.model_type}"
            )
        parts = self.feed_forward_proj.split("-")
        if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
            raise ReflError(
                f"config.json has feed_forward_proj = {brief(self.feed_forward_proj)}: expected "
                "an activation, or gated-<activation>"
            )
        _ = self.act
        if self.relative_attention_num_buckets < 4:
            raise ReflError(
                "config.json has relative_attention_num_buckets = "
                f"{self.relative_attention_num_buckets}: expected at least 4, "
                "one near and one far in either direction"
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ReflError(
                "config.json has relative_attention_max_distance = "
                f"{self.relative_attention_max_distance}: expected more than half of "
                f"relative_attention_num_buckets = {self.relative_attention_num_buckets}, "
                "where distances begin to share a bucket"
            )

    def _refuse_twice_read(self) -> None:
        for name in self.architectures or ():
            if name.endswith(("ForSequenceClassification", heads.SPANS)):
                raise ReflError(
                    f"config.json has architectures = {brief(self.architectures)}: of {name} the "
                    "decoder reads the input's own tokens once more, one place later, which is not "
                    f"implemented: expected one of {', '.join(self.classes(self.model_type))}"
                )

    @property
    def task(self) -> str:
        """What the head is for, by the class that wrote the checkpoint."""
        return heads.chosen(self.architectures, self.classes(self.model_type), TRANSLATES)

    @property
    def base(self) -> str:
        """Path of the bare model, with its dot."""
        return "transformer." if self.task == heads.TOKEN_CLASS else ""

    @property
    def labels(self) -> int:
        """How many classes a classifier tells apart."""
        return heads.labels(self.id2label, self.num_labels)

    @property
    def in_every_block(self) -> bool:
        """Whether each block has a table of distances of its own."""
        return self.model_type == "umt5"

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def act(self) -> str:
        if self.dense_act_fn:
            return activation_kind("dense_act_fn", self.dense_act_fn)
        if self.feed_forward_proj == "gated-gelu":
            return activation_kind("feed_forward_proj", "gelu_new")
        return activation_kind("feed_forward_proj", self.feed_forward_proj.rpartition("-")[2])

    @property
    def gated(self) -> bool:
        return (
            self.feed_forward_proj.startswith("gated")
            if self.is_gated_act is None
            else self.is_gated_act
        )

    @property
    def longest(self) -> int:
        """No table of positions runs out: distances have no end."""
        return 1 << 31


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield f"{c.base}shared.weight", (c.vocab_size, c.d_model), "vocab_size and d_model"
    yield from _stack_shapes(f"{c.base}encoder", c, c.num_layers, "SelfAttention")
    if c.task == heads.TOKEN_CLASS:
        yield from heads.token_class_shapes("classifier", c.labels, c.d_model, "d_model")
    if c.task != TRANSLATES:
        return
    yield from _stack_shapes("decoder", c, c.decoder_layers, "SelfAttention", "EncDecAttention")
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.d_model), "vocab_size and d_model"


def _stack_shapes(stack: str, c: Config, layers: int, *attentions: str) -> Tensors:
    for i in range(layers):
        layer = f"{stack}.block.{i}.layer"
        for j, name in enumerate(attentions):
            yield from _attention_shapes(f"{layer}.{j}.{name}", c)
            yield from tensors.norm(f"{layer}.{j}.layer_norm", c.d_model, "d_model")
        yield from _mlp_shapes(f"{layer}.{len(attentions)}.DenseReluDense", c)
        yield from tensors.norm(f"{layer}.{len(attentions)}.layer_norm", c.d_model, "d_model")
    for i in range(layers if c.in_every_block else 1):
        yield (
            f"{stack}.block.{i}.{TABLE}.relative_attention_bias.weight",
            (c.relative_attention_num_buckets, c.num_heads),
            "relative_attention_num_buckets and num_heads",
        )
    yield from tensors.norm(f"{stack}.final_layer_norm", c.d_model, "d_model")


def _attention_shapes(path: str, c: Config) -> Tensors:
    inner, why = c.num_heads * c.d_kv, "d_model, num_heads and d_kv"
    for name in ("q", "k", "v"):
        yield from tensors.linear(f"{path}.{name}", inner, c.d_model, why)
    yield from tensors.linear(f"{path}.o", c.d_model, inner, why)


def _mlp_shapes(path: str, c: Config) -> Tensors:
    for name in ("wi_0", "wi_1") if c.gated else ("wi",):
        yield from tensors.linear(f"{path}.{name}", c.d_ff, c.d_model, "d_ff and d_model")
    yield from tensors.linear(f"{path}.wo", c.d_model, c.d_ff, "d_ff and d_model")


TABLE = "layer.0.SelfAttention"
"""The module of a block that holds a table of biases."""

Bias = Value | Callable[[Trace], Value] | None
"""What is added to the scores: one for all blocks, what makes a block's own, or nothing."""


def task(c: Config) -> str:
    return c.task


def spare(c: Config) -> dict[str, str]:
    """Tensors that it does without, and why."""
    if c.task != TRANSLATES:
        return dict.fromkeys(("decoder.*", "lm_head.weight"), "the encoder is read alone")
    return {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "of the first "
        "published files; attention to the encoder has no distances, and transformers drops it"
    }


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T), (B, U) -> logits (B, U, V), or (B, 1, V) at the wanted rows
    unpadded = masks.keys(batch.attention_mask, batch.ids.shape[1])
    encoded = t.once(f"{c.base}encoder", stack, c, batch.ids, c.num_layers, unpadded)
    if c.task == heads.TOKEN_CLASS:
        return heads.token_class(t, "classifier", encoded, batch)
    if c.task == heads.FEATURES:
        return encoder.rows(t, "encoder", encoded, batch)
    h = encoder.rows(t, "lm_head", decoded(t, c, batch, encoded), batch)
    if c.tie_word_embeddings:
        h = t.scale("lm_head.scaled", h, c.d_model**-0.5)
    tied = "shared.weight" if c.tie_word_embeddings else None
    return t.linear("lm_head", h, weight=tied, role="head")


def decoded(
    t: Trace, c: Config, batch: Batch, encoded: Value
) -> Value:  # ids (B, U), encoded (B, T, D) -> (B, U, D)
    prefix = batch.decoder_ids
    unpadded = masks.keys(batch.attention_mask, prefix.shape[1])
    mask, past = masks.causal(prefix, batch.decoder_attention_mask, past=batch.past), batch.past
    return stack(t, "decoder", c, prefix, c.decoder_layers, mask, encoded, unpadded, past=past)


def stack(
    t: Trace,
    name: str,
    c: Config,
    ids: Array,
    layers: int,
    mask: Mask | None,
    *rest: Value | Mask | None,
    past: int = 0,
) -> Value:  # (B, T) -> (B, T, D)
    with t.inside(name):
        h = t.embedding("embed_tokens", ids, weight=f"{c.base}shared.weight")
        own = partial(relative_bias.bias, c=c, ids=ids, causal=bool(rest), past=past)
        bias: Bias = own
        if not c.in_every_block:
            with t.inside(f"block.0.{TABLE}"):
                bias = own(t)
        block = decoder_block if rest else encoder_block
        for i in range(layers):
            h = t.block(f"block.{i}", block, h, c, bias, mask, *rest)
        h = t.rms_norm("final_layer_norm", h, c.layer_norm_epsilon)
    return t.name(h, name)


def encoder_block(
    t: Trace, h: Value, c: Config, bias: Bias, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.module("layer.0", half_block, h, c, "SelfAttention", attention, c, mask, bias)
    return t.module("layer.1", half_block, h, c, "DenseReluDense", mlp, c)


def decoder_block(
    t: Trace, h: Value, c: Config, bias: Bias, mask: Mask, encoded: Value, unpadded: Mask | None
) -> Value:  # (B, U, D), encoded (B, T, D) -> (B, U, D)
    h = t.module("layer.0", half_block, h, c, "SelfAttention", attention, c, mask, bias)
    h = t.module(
        "layer.1", half_block, h, c, "EncDecAttention", attention, c, unpadded, None, encoded
    )
    return t.module("layer.2", half_block, h, c, "DenseReluDense", mlp, c)


def half_block(
    t: Trace, h: Value, c: Config, name: str, function: Callable[..., Value], *rest: object
) -> Value:
    """h + function(norm(h))"""
    n = t.rms_norm("layer_norm", h, c.layer_norm_epsilon)
    return t.add("", h, t.module(name, function, n, *rest), role="residual")


def attention(
    t: Trace,
    x: Value,
    c: Config,
    mask: Mask | None,
    bias: Bias,
    encoded: Value | None = None,
) -> Value:  # (B, J, D), to itself or to what was encoded (B, I, D) -> (B, J, D)
    y = x if encoded is None else encoded
    parts = (("query", "q", x), ("key", "k", y), ("value", "v", y))
    q, k, v = (
        t.move(
            name,
            "split_heads",
            t.linear(part, source, role=f"attention.{name}"),
            heads=c.num_heads,
        )
        for name, part, source in parts
    )
    context = t.attention(q, k, v, mask, bias=bias(t) if callable(bias) else bias)
    context = t.move("context.merged", "merge_heads", context)
    return t.linear("o", context, role="attention.output")


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    if c.gated:
        gate = t.linear("wi_0", x, role="mlp.gate")
        gate = t.activation("act", gate, c.act, role="mlp.activation")
        up = t.linear("wi_1", x, role="mlp.up")
        z = t.multiply("gated", gate, up, role="mlp.product")
    else:
        z = t.activation("act", t.linear("wi", x, role="mlp.up"), c.act, role="mlp.activation")
    return t.linear("wo", z, role="mlp.down")
