"""ALBERT (Lan et al. 2020, arXiv 1909.11942): BERT with narrow embeddings, and layers that share
their weights.

    h = mapping(norm(word[ids] + type[types] + position[0..T-1]))
    for each layer i, for each inner layer of group i G // L:
                       h = norm(h + attention(h)),    h = norm(h + ffn_output(act(ffn(h))))
    masked token:      logits = decoder(norm(act(dense(h))))
    class:             logits = classifier(tanh(pooler(h_0)))
    token class:       logits = classifier(h),    answer span: (start, end) = qa_outputs(h)

There are L layers and G groups. Names are those of Hugging Face's AlbertForMaskedLM,
AlbertForSequenceClassification, AlbertForTokenClassification, AlbertForQuestionAnswering and
AlbertModel. A group is run by several layers, so its sites are
named by the layer: weights `albert.encoder.albert_layer_groups.0.albert_layers.0.ffn` make the
sites `albert.encoder.layer.3.albert_layers.0.ffn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.mask import Mask
from refl.nets import encoder, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "albert"
PREFIX = "albert."
CHECKED = "random configurations against transformers 4.52.4; real checkpoints: rxnmapper_albert"


@dataclass(frozen=True, kw_only=True)
class Config(encoder.EncoderConfig):
    """The options of config.json that this net reads."""

    embedding_size: int = 128
    hidden_act: str = "gelu_new"
    num_hidden_groups: int = 1
    inner_group_num: int = 1

    FAMILIES: ClassVar[dict[str, str]] = {"albert": "Albert"}
    SHOWN_BY: ClassVar[dict[str, str]] = {
        "masked-token": "predictions.",
        "class": "classifier.",
        "answer-span": "qa_outputs.",
    }
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "down_scale_factor",
        "gap_size",
        "net_structure_type",
        "num_memory_blocks",
    )

    def group(self, index: int) -> int:
        """The group that the layer of this index runs; layers need not divide evenly, and then
        rounding decides as in the original.
        """
        return int(index / (self.num_hidden_layers / self.num_hidden_groups))


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, e = c.hidden_size, c.embedding_size
    yield from encoder.embedding_shapes("albert.embeddings", c, e, "embedding_size")
    yield from tensors.linear(
        "albert.encoder.embedding_hidden_mapping_in",
        d,
        e,
        "hidden_size and embedding_size",
        bias=True,
    )
    for group in range(c.num_hidden_groups):
        for j in range(c.inner_group_num):
            yield from _inner_shapes(f"{stored(group)}.albert_layers.{j}", c)
    yield from encoder.of_tokens_shapes(c)
    if c.task == "class" or c.pooled:
        yield from tensors.linear("albert.pooler", d, d, "hidden_size", bias=True)
    if c.task == "class":
        yield from tensors.linear("classifier", c.labels, d, "id2label and hidden_size", bias=True)
    if c.task == "masked-token":
        yield from tensors.linear(
            "predictions.dense", e, d, "hidden_size and embedding_size", bias=True
        )
        yield from tensors.norm("predictions.LayerNorm", e, "embedding_size", bias=True)
        yield "predictions.bias", (c.vocab_size,), "vocab_size"
        if not c.tie_word_embeddings:
            yield "predictions.decoder.weight", (c.vocab_size, e), "vocab_size and embedding_size"


def _inner_shapes(layer: str, c: Config) -> Tensors:
    d, wide = c.hidden_size, c.intermediate_size
    for name in ("query", "key", "value", "dense"):
        yield from tensors.linear(f"{layer}.attention.{name}", d, d, "hidden_size", bias=True)
    yield from tensors.norm(f"{layer}.attention.LayerNorm", d, bias=True)
    yield from tensors.linear(
        f"{layer}.ffn", wide, d, "hidden_size and intermediate_size", bias=True
    )
    yield from tensors.linear(
        f"{layer}.ffn_output", d, wide, "hidden_size and intermediate_size", bias=True
    )
    yield from tensors.norm(f"{layer}.full_layer_layer_norm", d, bias=True)


def spare(c: Config) -> dict[str, str]:
    """Tensors that this head does without, and why."""
    pooler = {"albert.pooler.*": "a head on every token does not read the pooler"}
    if c.task == "masked-token":
        return pooler | {"sop_classifier.classifier.*": "the other head of pre-training"}
    return pooler if c.of_tokens else {}


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    h = encoder.embeddings(t, "albert.embeddings", c, batch, positions(batch.ids))
    h = t.linear(
        "albert.encoder.embedding_hidden_mapping_in", h, bias=True, role="embedding.projection"
    )
    mask = masks.keys(batch.attention_mask, batch.ids.shape[1])
    for i in range(c.num_hidden_layers):
        h = t.block(f"albert.encoder.layer.{i}", layer, h, c, c.group(i), mask)
    if c.task == "masked-token":
        return t.module("predictions", predictions, encoder.rows(t, "predictions", h, batch), c)
    if c.of_tokens:
        return encoder.of_tokens(t, h, c, batch)
    if c.task == "class" or c.pooled:
        pooled = pooler(t, encoder.first_token(t, "albert.pooler", h, batch))
    if c.task == "class":
        return t.linear("classifier", pooled, bias=True, role="head")
    return encoder.rows(t, "albert", h, batch)


def pooler(t: Trace, x: Value) -> Value:  # (B, 1, D) -> (B, 1, D)
    x = t.linear("albert.pooler", x, bias=True, role="pooler")
    return t.activation("albert.pooler_activation", x, "tanh", role="pooler.activation")


def stored(group: int) -> str:
    return f"albert.encoder.albert_layer_groups.{group}"


def layer(
    t: Trace, h: Value, c: Config, group: int, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    with t.sharing(stored(group)):
        for j in range(c.inner_group_num):
            h = t.module(f"albert_layers.{j}", inner, h, c, mask)
    return h


def inner(t: Trace, h: Value, c: Config, mask: Mask | None) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.module("attention", attention, h, c, mask)
    m = t.linear("ffn", h, bias=True, role="mlp.up")
    m = t.activation("activation", m, c.act, role="mlp.activation")
    m = t.linear("ffn_output", m, bias=True, role="mlp.down")
    h = t.add("residual", m, h, role="residual")
    return t.layer_norm("full_layer_layer_norm", h, c.layer_norm_eps)


def attention(t: Trace, h: Value, c: Config, mask: Mask | None) -> Value:  # (B, T, D) -> (B, T, D)
    context = encoder.self_attention(t, h, c.num_attention_heads, mask)
    a = t.linear("dense", context, bias=True, role="attention.output")
    h = t.add("residual", h, a, role="residual")
    return t.layer_norm("LayerNorm", h, c.layer_norm_eps)


def predictions(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, V)
    h = t.linear("dense", h, bias=True, role="head.transform")
    h = t.activation("activation", h, c.act, role="head.activation")
    h = t.layer_norm("LayerNorm", h, c.layer_norm_eps)
    table = "albert.embeddings.word_embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("decoder", h, weight=table, bias="predictions.bias", role="head")
