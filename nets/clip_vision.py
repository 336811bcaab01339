"""CLIP's picture tower (Radford et al. 2021, arXiv 2103.00020): a ViT with a norm in front of its
blocks, too.

    h = pre_layrnorm([class_embedding, kernel * patch_1, ..., kernel * patch_N] + positions)
    for each block:    h = h + self_attn(layer_norm1(h)),    h = h + mlp(layer_norm2(h))
    features = visual_projection(post_layernorm(h[0]))

Blocks are those of the text tower (nets/clip_text.py); the convolution has no bias. Names are those
of Hugging Face's CLIPVisionModelWithProjection; CLIPVisionModel stops before the projection, and
CLIPForImageClassification classifies the mean of the blocks' output over patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array, device_of, namespace
from refl.nets import heads, tensors, vision
from refl.nets.batch import Batch
from refl.nets.batch import positions as counted
from refl.nets.clip_text import encoder, encoder_shapes, projection_shapes
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "clip_vision_model"
PREFIX = ""
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True, kw_only=True)
class Config(vision.PatchConfig):
    """The options of config.json that this net reads."""

    intermediate_size: int = 3072
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512

    HARMLESS: ClassVar[tuple[str, ...]] = ("dropout", "tie_word_embeddings")
    SHOWN_BY: ClassVar[dict[str, str]] = {"WithProjection": "visual_projection."}
    OTHERWISE: ClassVar[str] = ""

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return {f"CLIPVisionModel{end}": end for end in ("", "WithProjection")}

    @property
    def projected(self) -> bool:
        """Whether the projection is behind the tower."""
        return bool(heads.chosen(self.architectures, self.classes(self.model_type), ""))

    @property
    def head(self) -> str:
        """Its outputs are features, which have no names."""
        _ = self.projected
        return "Model"

    @property
    def features(self) -> int:
        return self.projection_dim if self.projected else self.hidden_size


def task(c: Config) -> str:
    return "image-class"


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from tower_shapes(c)
    if c.projected:
        yield from projection_shapes("visual_projection", c.projection_dim, c.hidden_size)


def tower_shapes(c: Config, pooled: bool = True) -> Tensors:
    """`pooled`: with the norm on what stands at the class token."""
    d, name = c.hidden_size, "vision_model.embeddings"
    yield f"{name}.class_embedding", (d,), "hidden_size"
    kernel, why = (d, c.num_channels, *c.patch), "hidden_size, num_channels and patch_size"
    yield f"{name}.patch_embedding.weight", kernel, why
    why = "image_size, patch_size and hidden_size"
    yield f"{name}.position_embedding.weight", (c.count + 1, d), why
    yield from tensors.norm("vision_model.pre_layrnorm", d, bias=True)
    yield from encoder_shapes("vision_model", c)
    if pooled:
        yield from tensors.norm("vision_model.post_layernorm", d, bias=True)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # pixels (B, C, H, W) -> features (B, 1, D)
    return features(t, c, batch) if c.projected else tower(t, c, batch)


def features(t: Trace, c: Config, batch: Batch) -> Value:  # (B, C, H, W) -> (B, 1, P)
    """Of the picture where it is compared with texts."""
    return t.linear("visual_projection", tower(t, c, batch), role="head.transform")


def tower(t: Trace, c: Config, batch: Batch) -> Value:  # (B, C, H, W) -> (B, 1, D)
    first = vision.token(t, "vision_model.pooler_output", body(t, c, batch), batch)
    return t.layer_norm("vision_model.post_layernorm", first, c.layer_norm_eps)


def body(t: Trace, c: Config, batch: Batch) -> Value:  # (B, C, H, W) -> (B, 1 + N, D)
    """Embeddings and blocks."""
    return t.module("vision_model", _body, t.source("pixel_values", batch.pixels), c)


def _body(t: Trace, x: Value, c: Config) -> Value:
    h = t.module("embeddings", _embeddings, x, c)
    return t.module("encoder", encoder, t.layer_norm("pre_layrnorm", h, c.layer_norm_eps), c, None)


def _embeddings(t: Trace, x: Value, c: Config) -> Value:
    patches = t.patches("patch_embedding", x, c.patch, bias=False)
    first = t.learned("class_embedding", patches, role="class_token")
    h = t.move("joined", "concat", first, patches, axis=1)
    places = t.embedding("position_embedding", _places(h.array), role="position")
    return t.add("", h, places, role="embedding.sum")


def _places(h: Array) -> Array:  # (B, T, D) -> int (B, T)
    """0, 1, ..., T - 1 in every row."""
    xp = namespace(h)
    return counted(xp.zeros(h.shape[:2], dtype=xp.int64, **device_of(h)))
