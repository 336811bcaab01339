"""BERT (Devlin et al. 2019, arXiv 1810.04805).

    h = norm(word[ids] + type[types] + position[0..T-1])
    for each block:    h = norm(h + attention(h)),    h = norm(h + output(act(intermediate(h))))
    masked token:      logits = decoder(norm(act(dense(h))))
    class:             logits = classifier(tanh(pooler(h_0)))
    token class:       logits = classifier(h),    answer span: (start, end) = qa_outputs(h)

Names are those of Hugging Face's BertForMaskedLM, BertForSequenceClassification,
BertForTokenClassification, BertForQuestionAnswering and BertModel. A checkpoint of the last has no
head: its output is h, and its pooler is run beside, where the file has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.nets import encoder, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "bert"
PREFIX = "bert."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); real checkpoints: all-MiniLM-L6-v2"
)


@dataclass(frozen=True, kw_only=True)
class Config(encoder.EncoderConfig):
    """The options of config.json that this net reads."""

    FAMILIES: ClassVar[dict[str, str]] = {"bert": "Bert"}
    SHOWN_BY: ClassVar[dict[str, str]] = {
        "masked-token": "cls.predictions.",
        "class": "classifier.",
        "answer-span": "qa_outputs.",
    }
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "directionality",  # these describe a pooler of the original code
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    )


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d = c.hidden_size
    yield from encoder.text_shapes(PREFIX, c)
    yield from encoder.of_tokens_shapes(c)
    if c.task == "class" or c.pooled:
        yield from tensors.linear("bert.pooler.dense", d, d, "hidden_size", bias=True)
    if c.task == "class":
        yield from tensors.linear("classifier", c.labels, d, "id2label and hidden_size", bias=True)
    if c.task == "masked-token":
        yield from tensors.linear("cls.predictions.transform.dense", d, d, "hidden_size", bias=True)
        yield from tensors.norm("cls.predictions.transform.LayerNorm", d, bias=True)
        yield "cls.predictions.bias", (c.vocab_size,), "vocab_size"
        if not c.tie_word_embeddings:
            yield "cls.predictions.decoder.weight", (c.vocab_size, d), "vocab_size and hidden_size"


def spare(c: Config) -> dict[str, str]:
    """Tensors that this head does without, and why."""
    pooler = {"bert.pooler.dense.*": "a head on every token does not read the pooler"}
    if c.task == "masked-token":
        return pooler | {"cls.seq_relationship.*": "the other head of pre-training"}
    return pooler if c.of_tokens else {}


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    h = encoder.embeddings(t, "bert.embeddings", c, batch, positions(batch.ids))
    mask = masks.keys(batch.attention_mask, batch.ids.shape[1])
    for i in range(c.num_hidden_layers):
        h = t.block(f"bert.encoder.layer.{i}", encoder.post_norm, h, c, mask)
    if c.task == "masked-token":
        return t.module("cls.predictions", predictions, encoder.rows(t, "cls", h, batch), c)
    if c.of_tokens:
        return encoder.of_tokens(t, h, c, batch)
    if c.task == "class" or c.pooled:
        pooled = t.module("bert.pooler", pooler, encoder.first_token(t, "bert.pooler", h, batch))
    if c.task == "class":
        return t.linear("classifier", pooled, bias=True, role="head")
    return encoder.rows(t, "bert", h, batch)


def pooler(t: Trace, x: Value) -> Value:  # (B, 1, D) -> (B, 1, D)
    x = t.linear("dense", x, bias=True, role="pooler")
    return t.activation("activation", x, "tanh", role="pooler.activation")


def predictions(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, V)
    h = t.module("transform", transform, h, c)
    table = "bert.embeddings.word_embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("decoder", h, weight=table, bias="cls.predictions.bias", role="head")


def transform(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.linear("dense", h, bias=True, role="head.transform")
    h = t.activation("transform_act_fn", h, c.act, role="head.activation")
    return t.layer_norm("LayerNorm", h, c.layer_norm_eps)
