"""CLIP (Radford et al. 2021, arXiv 2103.00020): how well texts go with a picture.

    u = x / |x|,    x = visual_projection of the picture      (nets/clip_vision.py)
    v = y / |y|,    y = text_projection of each text          (nets/clip_text.py)
    logits_per_image = exp(logit_scale) u v^T

A normalization x / |x| is RMSNorm with a weight of 1/sqrt(P), P the features, and no stabilizer:
its rules are those of RMSNorm. u v^T is a product of two activations as q k^T is: under AttnLRP's
uniform rule half of a similarity goes to the picture and half to the text, so what reaches the
tokens and what reaches the pixels, each with what its tower absorbs, are halves of one number.

Names are those of Hugging Face's CLIPModel; CLIPForImageClassification has a classifier on the mean
over patches and no text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from refl.arrays import asnumpy
from refl.nets import clip_text, clip_vision, heads, tensors
from refl.nets.batch import Batch
from refl.nets.dinov2 import patches_of
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "clip"
PREFIX = ""
CHECKED = (
    "random configurations against transformers 4.52.4; relevance: torch's gradient of its frozen "
    "modules; no real checkpoint"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of config.json that this net reads. text_config_dict and vision_config_dict are
    older names, which win where they stand.
    """

    text_config: clip_text.Config | None = None
    vision_config: clip_vision.Config | None = None
    text_config_dict: clip_text.Config | None = None
    vision_config_dict: clip_vision.Config | None = None
    projection_dim: int = 512
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "logit_scale_init_value",  # what logit_scale was before training
        "tie_word_embeddings",
    )
    SHOWN_BY: ClassVar[dict[str, str]] = {"image-class": "classifier."}
    OTHERWISE: ClassVar[str] = "similarity"

    def __post_init__(self) -> None:
        _ = self.task

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return {"CLIPModel": "similarity", "CLIPForImageClassification": "image-class"}

    @property
    def task(self) -> str:
        classes = self.classes(self.model_type)
        return heads.chosen(self.architectures, classes, self.OTHERWISE)

    @property
    def text(self) -> clip_text.Config:
        return self.text_config_dict or self.text_config or clip_text.Config()

    @property
    def vision(self) -> clip_vision.Config:
        return self.vision_config_dict or self.vision_config or clip_vision.Config()

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def longest(self) -> int:
        return self.text.longest

    @property
    def num_channels(self) -> int:
        return self.vision.num_channels

    @property
    def image(self) -> tuple[int, int]:
        return self.vision.image

    @property
    def patch(self) -> tuple[int, int]:
        return self.vision.patch

    @property
    def labels(self) -> int:
        return heads.labels(self.id2label, self.num_labels)


def task(c: Config) -> str:
    return c.task


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from clip_vision.tower_shapes(c.vision, pooled=c.task == "similarity")
    if c.task == "image-class":
        width, why = c.vision.hidden_size, "id2label (or num_labels) and hidden_size"
        yield from tensors.linear("classifier", c.labels, width, why, bias=True)
        return
    yield from clip_text.tower_shapes(c.text)
    for name, tower in (("visual", c.vision), ("text", c.text)):
        width = tower.hidden_size
        yield from clip_text.projection_shapes(f"{name}_projection", c.projection_dim, width)
    yield "logit_scale", (), "architectures"


def spare(c: Config) -> dict[str, str]:
    """Tensors that it does without, and why."""
    if c.task == "similarity":
        return {}
    return {"vision_model.post_layernorm.*": "the classifier reads what comes before it"}


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # pixels (B, C, H, W), ids (B, T) -> logits (B, 1, K), one for each text
    if c.task == "image-class":
        return _classified(t, c.vision, batch)
    y = _unit(t, "text_embeds", clip_text.features(t, c.text, batch))
    x = _unit(t, "image_embeds", clip_vision.features(t, c.vision, batch))
    y = t.move("text_embeds.transposed", "transpose", y)
    cosine = t.matmul("cosine", x, y, role="head.similarity")
    return t.scale("logits_per_image", cosine, math.exp(float(asnumpy(t.weights["logit_scale"]))))


def _unit(t: Trace, name: str, x: Value) -> Value:  # (B, K, P) -> (B, K, P)
    """x / |x|"""
    return t.rms_norm(name, x, 0.0, weight=x.array.shape[-1] ** -0.5)


def _classified(t: Trace, c: clip_vision.Config, batch: Batch) -> Value:  # -> (B, 1, classes)
    h = clip_vision.body(t, c, batch)
    mean = t.mean("classifier.mean", h, patches_of(h.array, 1), role="head.mean")
    return t.linear("classifier", mean, bias=True, role="head")
