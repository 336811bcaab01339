"""CLIP's text tower (Radford et al. 2021, arXiv 2103.00020): a small GPT-2 whose last token speaks
for the text.

    h = token_embedding[ids] + position_embedding[positions]
    for each block:    h = h + self_attn(layer_norm1(h)),    h = h + mlp(layer_norm2(h))
    features = text_projection(final_layer_norm(h)[end])

    self_attn(x) = out_proj(softmax(q k^T / sqrt(d)) v),    mlp(x) = fc2(act(fc1(x)))

A token sees what came before it. `end` is the first token that is eos_token_id; where config.json
has 2 there, as older files do, the token of the largest id; the first token where there is none.
Names are those of Hugging Face's CLIPTextModelWithProjection; CLIPTextModel stops before the
projection. Several texts stand one behind the other in one row of ids (Batch.texts), each with
positions of its own, and none sees another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Protocol

from refl.arrays import Array, asnumpy, device_of, namespace
from refl.mask import Mask
from refl.nets import heads, masks, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind, divides
from refl.nets.llama import attend
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "clip_text_model"
PREFIX = ""
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


# -- config.json -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of config.json that this net reads."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    eos_token_id: int = field(default=49407, metadata={"least": 0})
    model_type: str | None = None
    architectures: list[str] | None = None

    HARMLESS: ClassVar[tuple[str, ...]] = ("dropout", "tie_word_embeddings")
    SHOWN_BY: ClassVar[dict[str, str]] = {"WithProjection": "text_projection."}
    OTHERWISE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _ = self.projected, self.act
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return {f"CLIPTextModel{end}": end for end in ("", "WithProjection")}

    @property
    def projected(self) -> bool:
        """Whether the projection is behind the tower."""
        return bool(heads.chosen(self.architectures, self.classes(self.model_type), ""))

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def longest(self) -> int:
        return self.max_position_embeddings

    @property
    def head(self) -> str:
        """Its outputs are features, which have no names."""
        return "Model"

    @property
    def labels(self) -> int:
        return self.projection_dim if self.projected else self.hidden_size


def task(c: Config) -> str:
    return "class"


# -- a block, of either tower ----------------------------------------------------------------------


class TowerConfig(Protocol):
    """What a block asks of the options of its tower."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def act(self) -> str: ...


def encoder_shapes(path: str, c: TowerConfig) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    for i in range(c.num_hidden_layers):
        block = f"{path}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from tensors.linear(f"{block}.self_attn.{name}", d, d, "hidden_size", bias=True)
        yield from tensors.norm(f"{block}.layer_norm1", d, bias=True)
        yield from tensors.linear(f"{block}.mlp.fc1", inner, d, why, bias=True)
        yield from tensors.linear(f"{block}.mlp.fc2", d, inner, why, bias=True)
        yield from tensors.norm(f"{block}.layer_norm2", d, bias=True)


def encoder(
    t: Trace, h: Value, c: TowerConfig, mask: Mask | None
) -> Value:  # (B, T, D) -> (B, T, D)
    for i in range(c.num_hidden_layers):
        h = t.block(f"layers.{i}", _block, h, c, mask)
    return h


def _block(t: Trace, h: Value, c: TowerConfig, mask: Mask | None) -> Value:
    n = t.layer_norm("layer_norm1", h, c.layer_norm_eps)
    h = t.add("residual", h, t.module("self_attn", _attention, n, c, mask), role="residual")
    n = t.layer_norm("layer_norm2", h, c.layer_norm_eps)
    return t.add("", h, t.module("mlp", _mlp, n, c), role="residual")


def _attention(t: Trace, x: Value, c: TowerConfig, mask: Mask | None) -> Value:
    q, k, v = (
        t.move(
            name,
            "split_heads",
            t.linear(f"{name[0]}_proj", x, bias=True, role=f"attention.{name}"),
            heads=c.num_attention_heads,
        )
        for name in ("query", "key", "value")
    )
    q = t.scale("query.scaled", q, q.array.shape[-1] ** -0.5)
    return t.linear("out_proj", attend(t, q, k, v, mask), bias=True, role="attention.output")


def _mlp(t: Trace, x: Value, c: TowerConfig) -> Value:
    x = t.linear("fc1", x, bias=True, role="mlp.up")
    x = t.activation("activation_fn", x, c.act, role="mlp.activation")
    return t.linear("fc2", x, bias=True, role="mlp.down")


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from tower_shapes(c)
    if c.projected:
        yield from projection_shapes("text_projection", c.projection_dim, c.hidden_size)


def tower_shapes(c: Config) -> Tensors:
    d, name = c.hidden_size, "text_model.embeddings"
    yield f"{name}.token_embedding.weight", (c.vocab_size, d), "vocab_size and hidden_size"
    why = "max_position_embeddings and hidden_size"
    yield f"{name}.position_embedding.weight", (c.max_position_embeddings, d), why
    yield from encoder_shapes("text_model", c)
    yield from tensors.norm("text_model.final_layer_norm", d, bias=True)


def projection_shapes(name: str, out: int, into: int) -> Tensors:
    yield from tensors.linear(name, out, into, "projection_dim and hidden_size")


# -- forward ---------------------------------------------------------------------------------------


def forward(t: Trace, c: Config, batch: Batch) -> Value:  # ids (B, T) -> features (B, 1, D)
    return features(t, c, batch) if c.projected else tower(t, c, batch)


def features(t: Trace, c: Config, batch: Batch) -> Value:  # ids (B, T) -> (B, K, P)
    """Of each text where it is compared with pictures."""
    return t.linear("text_projection", tower(t, c, batch), role="head.transform")


def tower(t: Trace, c: Config, batch: Batch) -> Value:  # ids (B, T) -> (B, K, D)
    """A row for each of the K texts."""
    with t.inside("text_model"):
        h = _embeddings(t, batch)
        mask = masks.causal(batch.ids, batch.attention_mask, segments=segments(batch))
        h = t.module("encoder", encoder, h, c, mask)
        h = t.layer_norm("final_layer_norm", h, c.layer_norm_eps)
        return t.gather("pooler_output", h, end_rows(batch, c.eos_token_id))


def _embeddings(t: Trace, batch: Batch) -> Value:  # (B, T) -> (B, T, D)
    with t.inside("embeddings"):
        h = t.embedding("token_embedding", batch.ids)
        places = t.embedding("position_embedding", positions(batch), role="position")
        return t.add("", h, places, role="embedding.sum")


# -- texts one behind the other --------------------------------------------------------------------


def lengths(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """For each example how long each of its texts is, with what may not be looked at."""
    if batch.texts is not None:
        return batch.texts
    if batch.unpadded is None:
        return ((int(batch.ids.shape[1]),),) * int(batch.ids.shape[0])
    return tuple((sum(row),) for row in asnumpy(batch.unpadded).tolist())


def segments(batch: Batch) -> Array | None:  # -> int (B, T)
    """Which text a token is in; None where no example has several. Padding is in none."""
    every = lengths(batch)
    if all(len(row) == 1 for row in every):
        return None
    return _numbers(
        batch, [[n for n, many in enumerate(row) for _ in range(many)] for row in every]
    )


def positions(batch: Batch) -> Array:  # -> int (B, T)
    """Counted in each text by itself."""
    return _numbers(batch, [[i for many in row for i in range(many)] for row in lengths(batch)])


def _numbers(batch: Batch, rows: list[list[int]]) -> Array:  # -> int (B, T), 0 for padding
    xp, width = namespace(batch.ids), int(batch.ids.shape[1])
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return xp.asarray(padded, dtype=xp.int64, **device_of(batch.ids))


def end_rows(batch: Batch, eos: int) -> tuple[tuple[int, ...], ...]:
    """For each example the row of each text's end."""
    rows = asnumpy(batch.ids).tolist()
    return tuple(
        tuple(start + _end(ids[start : start + length], eos) for start, length in _texts(row))
        for ids, row in zip(rows, lengths(batch), strict=True)
    )


def _texts(row: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Start and length of each."""
    yield from zip(accumulate((0, *row[:-1])), row, strict=True)


def _end(ids: list[int], eos: int) -> int:
    wanted = max(ids) if eos == 2 else eos
    return ids.index(wanted) if wanted in ids else 0
