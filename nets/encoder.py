"""What the encoders share: attention that looks both ways, the feed-forward half-block, the
embeddings of a text, their options.

    embeddings     h = norm(word[ids] + type[types] + position[positions])
    attention      softmax(q k^T / sqrt(d)) v,  q, k, v = query(x), key(x), value(x)
    post-LN        h = norm(h + dense(attention(h))),    h = norm(h + dense(act(dense(h))))
                   (Vaswani et al. 2017; BERT)
    pre-LN         h = h + dense(attention(norm(h))),    h = h + dense(act(dense(norm(h))))  (ViT)

The half-blocks are apart, so that each net norms where its paper does. `self_attention` and
`intermediate` run inside the module that their caller opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.arrays import Array, namespace
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind, brief, divides
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The options of config.json that every text encoder reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    position_embedding_type: str = "absolute"
    tie_word_embeddings: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None
    add_pooling_layer: bool = True

    FAMILIES: ClassVar[dict[str, str]] = {}
    """model_type -> what the names of its classes begin with."""
    SHOWN_BY: ClassVar[dict[str, str]] = {}
    OTHERWISE: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        _ = self.task, self.act
        if self.position_embedding_type != "absolute":
            raise ReflError(
                "config.json has position_embedding_type "
                f"{brief(self.position_embedding_type)}: only 'absolute' is implemented"
            )
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        if self.task == heads.ANSWER_SPAN and self.labels != 2:
            raise ReflError(
                f"config.json counts {self.labels} labels: a head that finds answers has 2 "
                "outputs, start and end"
            )

    @property
    def task(self) -> str:
        """What the head is for, by the name of the class that wrote the checkpoint."""
        return heads.chosen(self.architectures, self.classes(self.model_type))

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        """Those of the model_type, where several share a net."""
        family = cls.FAMILIES.get(model_type or "", next(iter(cls.FAMILIES.values())))
        return {family + head: task for head, task in TASKS.items()}

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def of_tokens(self) -> bool:
        """Whether the head stands on every token, and is one layer."""
        return self.task in (heads.TOKEN_CLASS, heads.ANSWER_SPAN)

    @property
    def pooled(self) -> bool:
        """Whether features have a pooler beside them: the tensors of a file show it."""
        return self.task == heads.FEATURES and self.add_pooling_layer

    @property
    def longest(self) -> int:
        return self.max_position_embeddings

    @property
    def labels(self) -> int:
        """How many classes a classifier tells apart."""
        return heads.labels(self.id2label, self.num_labels)


TASKS = {
    "ForMaskedLM": "masked-token",
    "ForPreTraining": "masked-token",
    "ForSequenceClassification": "class",
    "ForTokenClassification": "token-class",
    "ForQuestionAnswering": "answer-span",
    "Model": "features",
}
"""End of a class name -> task. Of the two heads of pre-training, the one that guesses tokens."""


def text_shapes(prefix: str, c: EncoderConfig) -> Tensors:
    """The tensors of an encoder of `post_norm` blocks, from its embeddings to its last block."""
    yield from embedding_shapes(f"{prefix}embeddings", c, c.hidden_size, "hidden_size")
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"{prefix}encoder.layer.{i}", c)


def embedding_shapes(name: str, c: EncoderConfig, width: int, why: str) -> Tensors:
    for table, option in (
        ("word_embeddings", "vocab_size"),
        ("position_embeddings", "max_position_embeddings"),
        ("token_type_embeddings", "type_vocab_size"),
    ):
        yield f"{name}.{table}.weight", (getattr(c, option), width), f"{option} and {why}"
    yield from tensors.norm(f"{name}.LayerNorm", width, why, bias=True)


def _block_shapes(block: str, c: EncoderConfig) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        yield from tensors.linear(f"{block}.attention.{name}", d, d, "hidden_size", bias=True)
    yield from tensors.norm(f"{block}.attention.output.LayerNorm", d, bias=True)
    yield from tensors.linear(f"{block}.intermediate.dense", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.output.dense", d, inner, why, bias=True)
    yield from tensors.norm(f"{block}.output.LayerNorm", d, bias=True)


# -- embeddings ------------------------------------------------------------------------------------


def embeddings(
    t: Trace, name: str, c: EncoderConfig, batch: Batch, positions: Array
) -> Value:  # ids (B, T) -> (B, T, E)
    """norm(word + token type + position), as the module of this name."""
    types = namespace(batch.ids).zeros_like(batch.ids) if batch.types is None else batch.types
    with t.inside(name):
        h = t.embedding("word_embeddings", batch.ids)
        kinds = t.embedding("token_type_embeddings", types, role="token_type")
        h = t.add("typed", h, kinds, role="embedding.sum")
        places = t.embedding("position_embeddings", positions, role="position")
        h = t.add("placed", h, places, role="embedding.sum")
        h = t.layer_norm("LayerNorm", h, c.layer_norm_eps)
    return t.name(h, name)


# -- a block ---------------------------------------------------------------------------------------


def self_attention(
    t: Trace, x: Value, heads: int, mask: Mask | None, bias: bool = True
) -> Value:  # (B, T, D) -> (B, T, D)
    """softmax(q k^T / sqrt(d)) v of all heads, side by side; `query`, `key` and `value` are modules
    of the one that is open.
    """
    q, k, v = (
        t.move(
            f"{name}.heads",
            "split_heads",
            t.linear(name, x, bias=bias, role=f"attention.{name}"),
            heads=heads,
        )
        for name in ("query", "key", "value")
    )
    q = t.scale("query.scaled", q, q.array.shape[-1] ** -0.5)
    return t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))


def intermediate(t: Trace, x: Value, act: str) -> Value:  # (B, T, D) -> (B, T, I)
    x = t.linear("dense", x, bias=True, role="mlp.up")
    return t.activation("intermediate_act_fn", x, act, role="mlp.activation")


def post_norm(
    t: Trace, h: Value, c: EncoderConfig, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.module("attention", _attention, h, c, mask)
    m = t.module("intermediate", intermediate, h, c.act)
    return t.module("output", _output, m, h, c, "mlp.down")


def _attention(t: Trace, h: Value, c: EncoderConfig, mask: Mask | None) -> Value:
    context = t.module("self", self_attention, h, c.num_attention_heads, mask)
    return t.module("output", _output, context, h, c, "attention.output")


def _output(t: Trace, x: Value, h: Value, c: EncoderConfig, role: str) -> Value:
    """dense, residual, norm: how both half-blocks end; `role` is that of dense."""
    h = t.add("residual", t.linear("dense", x, bias=True, role=role), h, role="residual")
    return t.layer_norm("LayerNorm", h, c.layer_norm_eps)


# -- what a head reads -----------------------------------------------------------------------------


rows = heads.rows


def of_tokens_shapes(c: EncoderConfig) -> Tensors:
    """Of a head that stands on every token, if there is one."""
    if c.task == heads.TOKEN_CLASS:
        yield from heads.token_class_shapes("classifier", c.labels, c.hidden_size)
    if c.task == heads.ANSWER_SPAN:
        yield from heads.answer_span_shapes(c.hidden_size)


def of_tokens(
    t: Trace, h: Value, c: EncoderConfig, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, labels), or (B, 1, labels) at the wanted rows; (B, T, 2)
    if c.task == heads.TOKEN_CLASS:
        return heads.token_class(t, "classifier", h, batch)
    return heads.answer_span(t, h)


def first_token(t: Trace, head: str, h: Value, batch: Batch) -> Value:  # (B, T, D) -> (B, 1, D)
    """What stands at the first token, made to speak for the whole text."""
    return t.move(f"{head}.first", "rows", h, index=(0,) * int(batch.ids.shape[0]))
