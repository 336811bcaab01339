"""ModernBERT (Warner et al. 2024, arXiv 2412.13663).

    h = norm(tok_embeddings[ids])
    for each block:    h = h + attn(norm(h)),    h = h + mlp(norm(h))    (block 0: h + attn(h))
    h = norm(h)
    masked token:      logits = decoder(norm(act(dense(h))))
    class:             logits = classifier(norm(act(dense(p)))),    p = h_0, or the mean of h
    token class, answer span: the same of every token (an answer's start and end are two classes)

    attn(x) = Wo(softmax(q k^T / sqrt(d)) v),    (q, k, v) = Wqkv(x)
    mlp(x)  = Wo(act(g) * u),    (g, u) = Wi(x)    (Shazeer 2020, arXiv 2002.05202)

q and k are rotated by their positions (nets/rope.py). One block in global_attn_every_n_layers, the
first among them, attends to all of the text; in the others a token sees local_attention // 2 tokens
to either side, with rotary positions of their own. Names are those of Hugging Face's
ModernBertForMaskedLM, ModernBertForSequenceClassification, ModernBertForTokenClassification,
ModernBertForQuestionAnswering and ModernBertModel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import encoder, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind, brief, divides
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "modernbert"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance torch's gradient of its modules "
    "with AttnLRP's factors detached; no real checkpoint"
)


@dataclass(frozen=True, kw_only=True)
class Config(encoder.OfEncoder):
    """The options of config.json that this net reads."""

    vocab_size: int
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    global_rope_theta: float = 160000.0
    local_rope_theta: float | None = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None

    FAMILIES: ClassVar[dict[str, str]] = {"modernbert": "ModernBert"}
    SHOWN_BY: ClassVar[dict[str, str]] = {"masked-token": "decoder.", "class": "classifier."}
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "deterministic_flash_attn",  # how the same numbers are computed
        "embedding_dropout",
        "initializer_cutoff_factor",
        "layer_norm_eps",  # published files have it beside norm_eps, which transformers reads
        "mlp_dropout",
        "position_embedding_type",  # the same: positions are rotary
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",  # which logits a training step computes
    )

    def __post_init__(self) -> None:
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        _ = self.task, self.act, self.head_act, self.rope, self.local_rope
        self.refuse_labels()
        if self.classifier_pooling not in ("cls", "mean"):
            raise ReflError(
                f"config.json has classifier_pooling = {brief(self.classifier_pooling)}: expected "
                "'cls' or 'mean'"
            )

    @property
    def act(self) -> str:
        return activation_kind("hidden_activation", self.hidden_activation)

    @property
    def head_act(self) -> str:
        return activation_kind("classifier_activation", self.classifier_activation)

    @property
    def longest(self) -> int:
        return self.max_position_embeddings

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each block the window of its attention, half to either side; None for all."""
        every, window = self.global_attn_every_n_layers, self.local_attention
        return tuple(window if i % every else None for i in range(self.num_hidden_layers))

    @property
    def rope(self) -> Rope:
        """Of the blocks that attend to all of the text."""
        return self._rope(self.global_rope_theta)

    @property
    def local_rope(self) -> Rope:
        return self._rope(self.local_rope_theta or self.global_rope_theta)

    def _rope(self, theta: float) -> Rope:
        width = self.hidden_size // self.num_attention_heads
        return rope.read(width, theta, self.max_position_embeddings, None, None)


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, words = c.hidden_size, "model.embeddings"
    yield f"{words}.tok_embeddings.weight", (c.vocab_size, d), "vocab_size and hidden_size"
    yield from tensors.norm(f"{words}.norm", d, bias=c.norm_bias)
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"model.layers.{i}", c, first=i == 0)
    yield from tensors.norm("model.final_norm", d, bias=c.norm_bias)
    if c.task == "features":
        return
    yield from tensors.linear("head.dense", d, d, "hidden_size", bias=c.classifier_bias)
    yield from tensors.norm("head.norm", d, bias=c.norm_bias)
    if c.task != "masked-token":
        yield from tensors.linear("classifier", c.labels, d, "id2label and hidden_size", bias=True)
        return
    if not c.tie_word_embeddings:
        yield "decoder.weight", (c.vocab_size, d), "vocab_size and hidden_size"
    if c.decoder_bias:
        yield "decoder.bias", (c.vocab_size,), "vocab_size"


def _block_shapes(block: str, c: Config, first: bool) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    if not first:
        yield from tensors.norm(f"{block}.attn_norm", d, bias=c.norm_bias)
    yield from tensors.linear(f"{block}.attn.Wqkv", 3 * d, d, "hidden_size", bias=c.attention_bias)
    yield from tensors.linear(f"{block}.attn.Wo", d, d, "hidden_size", bias=c.attention_bias)
    yield from tensors.norm(f"{block}.mlp_norm", d, bias=c.norm_bias)
    yield from tensors.linear(f"{block}.mlp.Wi", 2 * inner, d, why, bias=c.mlp_bias)
    yield from tensors.linear(f"{block}.mlp.Wo", d, inner, why, bias=c.mlp_bias)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    h = t.embedding("model.embeddings.tok_embeddings", batch.ids)
    h = t.name(norm(t, "model.embeddings.norm", h, c), "model.embeddings")
    length = batch.ids.shape[1]
    everywhere, nearby = (rope.tables(r, length, h.array) for r in (c.rope, c.local_rope))
    for i, window in enumerate(c.windows):
        mask = masks.around(batch, window)
        cos, sin = everywhere if window is None else nearby
        h = t.block(f"model.layers.{i}", block, h, c, i == 0, cos, sin, mask)
    h = norm(t, "model.final_norm", h, c)
    if c.task == "features":
        return encoder.rows(t, "model", h, batch)
    h = t.module("head", head, read(t, h, c, batch), c)
    if c.task != "masked-token":
        return t.linear("classifier", h, bias=True, role="head")
    table = "model.embeddings.tok_embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("decoder", h, weight=table, bias=c.decoder_bias, role="head")


def read(
    t: Trace, h: Value, c: Config, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, D), or (B, 1, D)
    """What the head is put on."""
    if c.task != "class":
        return encoder.rows(t, "head", h, batch)
    pool = encoder.mean if c.classifier_pooling == "mean" else encoder.first_token
    return pool(t, "head", h, batch)


def block(
    t: Trace, h: Value, c: Config, first: bool, cos: Array, sin: Array, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    n = h if first else norm(t, "attn_norm", h, c)
    a = t.module("attn", attention, n, c, cos, sin, mask)
    h = t.add("residual", h, a, role="residual")
    return t.add("", h, t.module("mlp", mlp, norm(t, "mlp_norm", h, c), c), role="residual")


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    qkv = t.linear("Wqkv", x, bias=c.attention_bias, role="attention.query_key_value")
    q, k, v = (
        t.move(name, "split_heads", part(t, f"{name}.flat", qkv, n, 3), heads=c.num_attention_heads)
        for n, name in enumerate(("query", "key", "value"))
    )
    q = t.rotary("query.rotated", q, cos, sin)
    q = t.scale("query.scaled", q, q.array.shape[-1] ** -0.5)
    k = t.rotary("key.rotated", k, cos, sin)
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("Wo", context, bias=c.attention_bias, role="attention.output")


def mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    both = t.linear("Wi", x, bias=c.mlp_bias, role="mlp.gate_up")
    gate = t.activation("act", part(t, "gate", both, 0, 2), c.act, role="mlp.activation")
    z = t.multiply("gated", gate, part(t, "up", both, 1, 2), role="mlp.product")
    return t.linear("Wo", z, bias=c.mlp_bias, role="mlp.down")


def part(t: Trace, name: str, x: Value, number: int, of: int) -> Value:  # (..., n D) -> (..., D)
    """One of several equal parts, side by side."""
    width = x.array.shape[-1] // of
    return t.move(name, "slice", x, start=number * width, stop=(number + 1) * width)


def norm(t: Trace, name: str, x: Value, c: Config) -> Value:
    return t.layer_norm(name, x, c.norm_eps, bias=c.norm_bias)


def head(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.linear("dense", h, bias=c.classifier_bias, role="head.transform")
    h = t.activation("act", h, c.head_act, role="head.activation")
    return t.layer_norm("norm", h, c.norm_eps, bias=c.norm_bias)
