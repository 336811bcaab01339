"""RoBERTa (Liu et al. 2019, arXiv 1907.11692), XLM-R and CamemBERT: BERT with other positions and
heads.

    h = norm(word[ids] + type[types] + position[p + 1, p + 2, ...])
    for each block:    h = norm(h + attention(h)),    h = norm(h + output(act(intermediate(h))))
    masked token:      logits = decoder(norm(gelu(dense(h))))
    class:             logits = out_proj(tanh(dense(h_0)))
    token class:       logits = classifier(h),    answer span: (start, end) = qa_outputs(h)

p is the id of the padding token, which has position p wherever it stands. Names are those of
Hugging Face's RobertaForMaskedLM, RobertaForSequenceClassification, RobertaForTokenClassification,
RobertaForQuestionAnswering and RobertaModel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from refl.arrays import Array, namespace
from refl.errors import ReflError
from refl.nets import encoder, masks, tensors
from refl.nets.batch import Batch
from refl.nets.bert import pooler
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "roberta"
PREFIX = "roberta."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True, kw_only=True)
class Config(encoder.EncoderConfig):
    """The options of config.json that this net reads."""

    pad_token_id: int = field(default=1, metadata={"least": 0})

    FAMILIES: ClassVar[dict[str, str]] = {
        "roberta": "Roberta",
        "xlm-roberta": "XLMRoberta",
        "camembert": "Camembert",
    }
    SHOWN_BY: ClassVar[dict[str, str]] = {
        "masked-token": "lm_head.",
        "class": "classifier.out_proj.",
        "token-class": "classifier.weight",
        "answer-span": "qa_outputs.",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad_token_id >= min(self.vocab_size, self.max_position_embeddings - 1):
            raise ReflError(
                f"config.json has pad_token_id = {self.pad_token_id}: expected a token, and a "
                f"position after it, below vocab_size = {self.vocab_size} and "
                f"max_position_embeddings = {self.max_position_embeddings}"
            )

    @property
    def longest(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d = c.hidden_size
    yield from encoder.text_shapes(PREFIX, c)
    yield from encoder.of_tokens_shapes(c)
    if c.pooled:
        yield from tensors.linear("roberta.pooler.dense", d, d, "hidden_size", bias=True)
    if c.task == "class":
        yield from tensors.linear("classifier.dense", d, d, "hidden_size", bias=True)
        yield from tensors.linear(
            "classifier.out_proj", c.labels, d, "id2label and hidden_size", bias=True
        )
    if c.task == "masked-token":
        yield from tensors.linear("lm_head.dense", d, d, "hidden_size", bias=True)
        yield from tensors.norm("lm_head.layer_norm", d, bias=True)
        yield "lm_head.bias", (c.vocab_size,), "vocab_size"
        if not c.tie_word_embeddings:
            yield "lm_head.decoder.weight", (c.vocab_size, d), "vocab_size and hidden_size"


def spare(c: Config) -> dict[str, str]:
    """Tensors that this head does without, and why."""
    if c.task == "features":
        return {}
    return {"roberta.pooler.dense.*": "no head reads the pooler"}


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    h = encoder.embeddings(
        t, "roberta.embeddings", c, batch, unpadded_positions(batch.ids, c.pad_token_id)
    )
    mask = masks.keys(batch.attention_mask, batch.ids.shape[1])
    for i in range(c.num_hidden_layers):
        h = t.block(f"roberta.encoder.layer.{i}", encoder.post_norm, h, c, mask)
    if c.task == "masked-token":
        return t.module("lm_head", lm_head, encoder.rows(t, "lm_head", h, batch), c)
    if c.task == "class":
        return t.module("classifier", classifier, encoder.first_token(t, "classifier", h, batch))
    if c.of_tokens:
        return encoder.of_tokens(t, h, c, batch)
    if c.pooled:
        t.module("roberta.pooler", pooler, encoder.first_token(t, "roberta.pooler", h, batch))
    return encoder.rows(t, "roberta", h, batch)


def unpadded_positions(
    ids: Array, pad: int
) -> Array:  # (B, T) -> int (B, T): those that are no padding are counted from pad + 1
    xp = namespace(ids)
    attention_mask = xp.astype(ids != pad, ids.dtype)
    return xp.cumulative_sum(attention_mask, axis=1) * attention_mask + pad


def lm_head(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, V)
    h = t.linear("dense", h, bias=True, role="head.transform")
    h = t.activation("gelu", h, "gelu", role="head.activation")
    h = t.layer_norm("layer_norm", h, c.layer_norm_eps)
    table = "roberta.embeddings.word_embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("decoder", h, weight=table, bias="lm_head.bias", role="head")


def classifier(t: Trace, x: Value) -> Value:  # (B, 1, D) -> (B, 1, classes)
    x = t.linear("dense", x, bias=True, role="head.transform")
    x = t.activation("tanh", x, "tanh", role="head.activation")
    return t.linear("out_proj", x, bias=True, role="head")
