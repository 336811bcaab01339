"""What the vision transformers share: patches and learned tokens as a sequence, pre-LN blocks on
it, their options.

    h = [tokens, kernel * patch_1 + b, ..., kernel * patch_N + b] + positions
    for each block:    h = h + attention(norm(h)),    h = h + dense(act(dense(norm(h))))
    logits = head(norm(h)[first])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.errors import ReflError
from refl.nets import heads, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, activation_kind, brief, divides
from refl.nets.encoder import intermediate, self_attention
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The options of config.json that every vision transformer reads."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None
    add_pooling_layer: bool = True

    FAMILY: ClassVar[str] = ""
    """What the names of its classes begin with."""
    HEADS: ClassVar[tuple[str, ...]] = ("ForImageClassification", "Model")
    SHOWN_BY: ClassVar[dict[str, str]] = {"ForImageClassification": "classifier."}
    OTHERWISE: ClassVar[str] = "Model"
    HARMLESS: ClassVar[tuple[str, ...]] = ("encoder_stride",)  # of a decoder for masked images

    def __post_init__(self) -> None:
        _ = self.head, self.act, self.pooler_activation
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        if any(p > i for p, i in zip(self.patch, self.image, strict=True)):
            raise ReflError(
                f"config.json has patch_size = {self.patch_size}, larger than image_size = "
                f"{self.image_size}"
            )

    @property
    def head(self) -> str:
        """The end of the name of the class that wrote the checkpoint: what it is for."""
        return heads.chosen(self.architectures, self.classes(self.model_type), self.HEADS[0])

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return {cls.FAMILY + head: head for head in cls.HEADS}

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def pooler_activation(self) -> str:
        return activation_kind("pooler_act", self.pooler_act)

    @property
    def pooled(self) -> bool:
        """Whether features are those of a pooler: the tensors of a file show it."""
        return self.head == "Model" and self.add_pooling_layer

    @property
    def image(self) -> tuple[int, int]:
        """Height and width."""
        return _height_and_width("image_size", self.image_size)

    @property
    def patch(self) -> tuple[int, int]:
        return _height_and_width("patch_size", self.patch_size)

    @property
    def labels(self) -> int:
        """How many outputs there are."""
        if self.pooled:
            return self.pooler_output_size or self.hidden_size
        if self.head == "Model":
            return self.hidden_size
        return heads.labels(self.id2label, self.num_labels)


def _height_and_width(option: str, value: int | list[int]) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    if len(pair) != 2 or not all(type(n) is int and 0 < n <= LARGEST for n in pair):
        raise ReflError(
            f"config.json has {option} = {brief(value)}: expected a whole number above 0, or two "
            "(height, width)"
        )
    return pair[0], pair[1]


def shapes(c: VisionConfig, name: str, tokens: tuple[str, ...]) -> Tensors:
    """Every tensor up to the head."""
    d, (height, width) = c.hidden_size, c.patch
    for token in tokens:
        yield f"{name}.embeddings.{token}", (1, 1, d), "hidden_size"
    count = (c.image[0] // height) * (c.image[1] // width) + len(tokens)
    why = "image_size, patch_size and hidden_size"
    yield f"{name}.embeddings.position_embeddings", (1, count, d), why
    kernel, why = (d, c.num_channels, height, width), "hidden_size, num_channels and patch_size"
    yield f"{name}.embeddings.patch_embeddings.projection.weight", kernel, why
    yield f"{name}.embeddings.patch_embeddings.projection.bias", (d,), "hidden_size"
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"{name}.encoder.layer.{i}", c)
    yield from tensors.norm(f"{name}.layernorm", d, bias=True)
    if c.pooled:
        why = "pooler_output_size and hidden_size"
        yield from tensors.linear(f"{name}.pooler.dense", c.labels, d, why, bias=True)


def _block_shapes(block: str, c: VisionConfig) -> Tensors:
    d, inner, why = c.hidden_size, c.intermediate_size, "hidden_size and intermediate_size"
    yield from tensors.norm(f"{block}.layernorm_before", d, bias=True)
    for part in ("query", "key", "value"):
        yield from tensors.linear(
            f"{block}.attention.attention.{part}", d, d, "hidden_size and qkv_bias", bias=c.qkv_bias
        )
    yield from tensors.linear(f"{block}.attention.output.dense", d, d, "hidden_size", bias=True)
    yield from tensors.norm(f"{block}.layernorm_after", d, bias=True)
    yield from tensors.linear(f"{block}.intermediate.dense", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.output.dense", d, inner, why, bias=True)


def spare(c: VisionConfig, name: str) -> dict[str, str]:
    """Tensors that a head does without, and why."""
    found = {f"{name}.embeddings.mask_token": "stands for hidden patches, in pre-training"}
    if c.head != "Model":
        found[f"{name}.pooler.dense.*"] = "no classifier reads the pooler"
    return found


def body(
    t: Trace, name: str, c: VisionConfig, batch: Batch, tokens: dict[str, str]
) -> Value:  # pixels (B, C, H, W) -> (B, T, D)
    """Everything up to the head. `tokens`: the learned tokens in front of the patches, each with
    the name its relevance is recorded under.
    """
    return t.module(name, _body, t.source("pixel_values", batch.pixels), c, tokens)


def _body(t: Trace, x: Value, c: VisionConfig, tokens: dict[str, str]) -> Value:
    h = t.module("embeddings", _embeddings, x, c, tokens)
    return t.layer_norm("layernorm", t.module("encoder", _encoder, h, c), c.layer_norm_eps)


def _embeddings(t: Trace, x: Value, c: VisionConfig, tokens: dict[str, str]) -> Value:
    patches = t.module("patch_embeddings", _patches, x, c.patch)
    learned = [t.learned(name, patches, role=role) for name, role in tokens.items()]
    h = t.move("joined", "concat", *learned, patches, axis=1)
    places = t.learned("position_embeddings", patches, role="position")
    return t.add("dropout", h, places, role="embedding.sum")


def _patches(t: Trace, x: Value, size: tuple[int, int]) -> Value:  # (B, C, H, W) -> (B, N, D)
    return t.patches("projection", x, size)


def _encoder(t: Trace, h: Value, c: VisionConfig) -> Value:
    for i in range(c.num_hidden_layers):
        h = t.block(f"layer.{i}", _block, h, c)
    return h


def _block(t: Trace, h: Value, c: VisionConfig) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("layernorm_before", h, c.layer_norm_eps)
    h = t.add("residual", t.module("attention", _attention, n, c), h, role="residual")
    n = t.layer_norm("layernorm_after", h, c.layer_norm_eps)
    m = t.module("intermediate", intermediate, n, c.act)
    return t.module("output", _output, m, h)


def _attention(t: Trace, x: Value, c: VisionConfig) -> Value:
    context = t.module("attention", self_attention, x, c.num_attention_heads, None, c.qkv_bias)
    return t.module("output", _dense, context, "attention.output")


def _dense(t: Trace, x: Value, role: str) -> Value:
    return t.linear("dense", x, bias=True, role=role)


def _output(t: Trace, x: Value, h: Value) -> Value:
    return t.add("", _dense(t, x, "mlp.down"), h, role="residual")


# -- what a head reads -----------------------------------------------------------------------------


def token(
    t: Trace, head: str, h: Value, batch: Batch, number: int = 0
) -> Value:  # (B, T, D) -> (B, 1, D)
    """What stands at one of the learned tokens, made to speak for the whole picture."""
    return t.move(f"{head}.row", "rows", h, index=(number,) * int(batch.pixels.shape[0]))


def features(
    t: Trace, name: str, h: Value, c: VisionConfig, batch: Batch
) -> Value:  # (B, T, D) -> (B, 1, P), or (B, 1, D)
    """Of the class token: those of the pooler, or of the last layer where there is none."""
    if not c.pooled:
        return token(t, name, h, batch)
    x = token(t, f"{name}.pooler", h, batch)
    x = t.linear(f"{name}.pooler.dense", x, bias=True, role="pooler")
    return t.activation(
        f"{name}.pooler.activation", x, c.pooler_activation, role="pooler.activation"
    )
