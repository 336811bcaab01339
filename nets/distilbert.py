"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types and without a pooler.

    h = norm(word[ids] + position[0..T-1])
    for each block:    h = norm(h + attention(h)),    h = norm(h + lin2(act(lin1(h))))
    masked token:      logits = vocab_projector(norm(act(vocab_transform(h))))
    class:             logits = classifier(relu(pre_classifier(h_0)))
    token class:       logits = classifier(h),    answer span: (start, end) = qa_outputs(h)

Names are those of Hugging Face's DistilBertForMaskedLM, DistilBertForSequenceClassification,
DistilBertForTokenClassification, DistilBertForQuestionAnswering and DistilBertModel, whose output
is h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.mask import Mask
from refl.nets import encoder, heads, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.config import activation_kind, divides
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "distilbert"
PREFIX = "distilbert."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance torch's gradient of its modules "
    "with AttnLRP's factors detached; no real checkpoint"
)

EPS = 1e-12
"""Of every layer norm: no option says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Config(encoder.OfEncoder):
    """The options of config.json that this net reads."""

    vocab_size: int
    dim: int = 768
    hidden_dim: int = 3072
    n_layers: int = 6
    n_heads: int = 12
    activation: str = "gelu"
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None

    FAMILIES: ClassVar[dict[str, str]] = {"distilbert": "DistilBert"}
    SHOWN_BY: ClassVar[dict[str, str]] = {
        "masked-token": "vocab_transform.",
        "class": "pre_classifier.",
        "answer-span": "qa_outputs.",
    }
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "dropout",
        "qa_dropout",
        "seq_classif_dropout",
        "sinusoidal_pos_embds",  # what the table of positions was filled with before training
        "tie_weights_",  # in published files; transformers reads tie_word_embeddings
    )

    def __post_init__(self) -> None:
        _ = self.task, self.act
        self.refuse_labels()
        divides("n_heads", self.n_heads, "dim", self.dim)

    @property
    def act(self) -> str:
        return activation_kind("activation", self.activation)

    @property
    def longest(self) -> int:
        return self.max_position_embeddings


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, words = c.dim, "distilbert.embeddings"
    yield f"{words}.word_embeddings.weight", (c.vocab_size, d), "vocab_size and dim"
    yield (
        f"{words}.position_embeddings.weight",
        (c.max_position_embeddings, d),
        "max_position_embeddings and dim",
    )
    yield from tensors.norm(f"{words}.LayerNorm", d, "dim", bias=True)
    for i in range(c.n_layers):
        yield from _block_shapes(f"distilbert.transformer.layer.{i}", c)
    if c.task == "class":
        yield from tensors.linear("pre_classifier", d, d, "dim", bias=True)
        yield from tensors.linear("classifier", c.labels, d, "id2label and dim", bias=True)
    if c.task == "token-class":
        yield from heads.token_class_shapes("classifier", c.labels, d, "dim")
    if c.task == "answer-span":
        yield from heads.answer_span_shapes(d, "dim")
    if c.task == "masked-token":
        yield from tensors.linear("vocab_transform", d, d, "dim", bias=True)
        yield from tensors.norm("vocab_layer_norm", d, "dim", bias=True)
        yield "vocab_projector.bias", (c.vocab_size,), "vocab_size"
        if not c.tie_word_embeddings:
            yield "vocab_projector.weight", (c.vocab_size, d), "vocab_size and dim"


def _block_shapes(block: str, c: Config) -> Tensors:
    d, inner, why = c.dim, c.hidden_dim, "dim and hidden_dim"
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        yield from tensors.linear(f"{block}.attention.{name}", d, d, "dim", bias=True)
    yield from tensors.norm(f"{block}.sa_layer_norm", d, "dim", bias=True)
    yield from tensors.linear(f"{block}.ffn.lin1", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.ffn.lin2", d, inner, why, bias=True)
    yield from tensors.norm(f"{block}.output_layer_norm", d, "dim", bias=True)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    h = embeddings(t, batch)
    mask = masks.keys(batch.attention_mask, batch.ids.shape[1])
    for i in range(c.n_layers):
        h = t.block(f"distilbert.transformer.layer.{i}", block, h, c, mask)
    if c.task == "masked-token":
        return predictions(t, encoder.rows(t, "vocab_transform", h, batch), c)
    if c.task == "class":
        return classifier(t, encoder.first_token(t, "pre_classifier", h, batch))
    if c.of_tokens:
        return encoder.of_tokens(t, h, c, batch)
    return encoder.rows(t, "distilbert", h, batch)


def embeddings(t: Trace, batch: Batch) -> Value:  # ids (B, T) -> (B, T, D)
    with t.inside("distilbert.embeddings"):
        words = t.embedding("word_embeddings", batch.ids)
        places = t.embedding("position_embeddings", positions(batch.ids), role="position")
        h = t.add("placed", words, places, role="embedding.sum")
        h = t.layer_norm("LayerNorm", h, EPS)
    return t.name(h, "distilbert.embeddings")


def block(t: Trace, h: Value, c: Config, mask: Mask | None) -> Value:  # (B, T, D) -> (B, T, D)
    a = t.module("attention", attention, h, c, mask)
    h = t.layer_norm("sa_layer_norm", t.add("residual", a, h, role="residual"), EPS)
    m = t.module("ffn", ffn, h, c)
    return t.layer_norm("output_layer_norm", t.add("ffn_residual", m, h, role="residual"), EPS)


def attention(t: Trace, x: Value, c: Config, mask: Mask | None) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = (
        t.move(
            name,
            "split_heads",
            t.linear(layer, x, bias=True, role=f"attention.{name}"),
            heads=c.n_heads,
        )
        for name, layer in (("query", "q_lin"), ("key", "k_lin"), ("value", "v_lin"))
    )
    q = t.scale("query.scaled", q, q.array.shape[-1] ** -0.5)
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("out_lin", context, bias=True, role="attention.output")


def ffn(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    x = t.linear("lin1", x, bias=True, role="mlp.up")
    x = t.activation("activation", x, c.act, role="mlp.activation")
    return t.linear("lin2", x, bias=True, role="mlp.down")


def predictions(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, V)
    h = t.linear("vocab_transform", h, bias=True, role="head.transform")
    h = t.activation("activation", h, c.act, role="head.activation")
    h = t.layer_norm("vocab_layer_norm", h, EPS)
    table = "distilbert.embeddings.word_embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("vocab_projector", h, weight=table, bias=True, role="head")


def classifier(t: Trace, x: Value) -> Value:  # (B, 1, D) -> (B, 1, classes)
    x = t.linear("pre_classifier", x, bias=True, role="head.transform")
    x = t.activation("pre_classifier.relu", x, "relu", role="head.activation")
    return t.linear("classifier", x, bias=True, role="head")
