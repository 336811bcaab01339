"""DeiT (Touvron et al. 2021): a ViT with a second learned token, which learns from a teacher.

    h = [class, distillation, patches] + positions;  pre-LN blocks (nets/vision.py)
    logits = classifier(norm(h)[0]),  or with a teacher
             (cls_classifier(norm(h)[0]) + distillation_classifier(norm(h)[1])) / 2

Names are those of Hugging Face's DeiTForImageClassification and
DeiTForImageClassificationWithTeacher; DeiTModel has its pooler in place of the classifier,
or nothing: then features are norm(h)[0].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.nets import tensors, vision
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "deit"
PREFIX = "deit."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"

CLASSIFIERS = {
    "ForImageClassification": ("classifier",),
    "ForImageClassificationWithTeacher": ("cls_classifier", "distillation_classifier"),
    "Model": (),
}
"""Head -> its linear layers, each reading the learned token of its number."""


@dataclass(frozen=True, kw_only=True)
class Config(vision.VisionConfig):
    """The options of config.json that this net reads."""

    FAMILY: ClassVar[str] = "DeiT"
    HEADS: ClassVar[tuple[str, ...]] = tuple(CLASSIFIERS)
    SHOWN_BY: ClassVar[dict[str, str]] = {
        "ForImageClassification": "classifier.",
        "ForImageClassificationWithTeacher": "cls_classifier.",
    }


def task(c: Config) -> str:
    return "image-class"


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from vision.shapes(c, "deit", ("cls_token", "distillation_token"))
    for name in CLASSIFIERS[c.head]:
        yield from tensors.linear(
            name, c.labels, c.hidden_size, "id2label (or num_labels) and hidden_size", bias=True
        )


def spare(c: Config) -> dict[str, str]:
    return vision.spare(c, "deit")


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # pixels (B, C, H, W) -> logits (B, 1, classes)
    h = vision.body(
        t,
        "deit",
        c,
        batch,
        {"cls_token": "class_token", "distillation_token": "distillation_token"},
    )
    if c.head == "Model":
        return vision.features(t, "deit", h, c, batch)
    logits = [
        t.linear(name, vision.token(t, name, h, batch, i), bias=True, role="head")
        for i, name in enumerate(CLASSIFIERS[c.head])
    ]
    if len(logits) == 1:
        return logits[0]
    return t.scale("logits", t.add("logits.sum", *logits, role="head.sum"), 0.5)
