"""ViT (Dosovitskiy et al. 2021): an image as a sequence of patches, behind a class token.

    h = [class, patches] + positions;  pre-LN blocks (nets/vision.py)
    logits = classifier(norm(h)[0])

Names are those of Hugging Face's ViTForImageClassification; ViTModel has its pooler in place of the
classifier, or nothing: then features are norm(h)[0]. A state dict of torchvision's vit_b_16 and its
sisters is read through `renamed`, beside a config.json like

    {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12,
     "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224,
     "patch_size": 16, "layer_norm_eps": 1e-6, "num_labels": 1000}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.nets import tensors, vision
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "vit"
PREFIX = "vit."
CHECKED = (
    "random configurations against transformers 4.52.4; real checkpoints: vit_mnist_012_hf, "
    "vit_455_hf"
)


@dataclass(frozen=True, kw_only=True)
class Config(vision.VisionConfig):
    """The options of config.json that this net reads."""

    FAMILY: ClassVar[str] = "ViT"


def task(c: Config) -> str:
    return "image-class"


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from vision.shapes(c, "vit", ("cls_token",))
    if c.head == "ForImageClassification":
        yield from tensors.linear(
            "classifier",
            c.labels,
            c.hidden_size,
            "id2label (or num_labels) and hidden_size",
            bias=True,
        )


def spare(c: Config) -> dict[str, str]:
    return vision.spare(c, "vit")


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # pixels (B, C, H, W) -> logits (B, 1, classes)
    h = vision.body(t, "vit", c, batch, {"cls_token": "class_token"})
    if c.head == "Model":
        return vision.features(t, "vit", h, c, batch)
    x = vision.token(t, "classifier", h, batch)
    return t.linear("classifier", x, bias=True, role="head")


# -- torchvision's names ---------------------------------------------------------------------------

_TORCHVISION = (
    (r"class_token", ("vit.embeddings.cls_token",)),
    (r"encoder\.pos_embedding", ("vit.embeddings.position_embeddings",)),
    (r"conv_proj\.(weight|bias)", (r"vit.embeddings.patch_embeddings.projection.\1",)),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.(weight|bias)",
        (r"vit.encoder.layer.\1.layernorm_before.\2",),
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)",
        tuple(
            rf"vit.encoder.layer.\1.attention.attention.{part}.\2"
            for part in ("query", "key", "value")
        ),
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(weight|bias)",
        (r"vit.encoder.layer.\1.attention.output.dense.\2",),
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.ln_2\.(weight|bias)",
        (r"vit.encoder.layer.\1.layernorm_after.\2",),
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(weight|bias)",
        (r"vit.encoder.layer.\1.intermediate.dense.\2",),
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(weight|bias)",
        (r"vit.encoder.layer.\1.output.dense.\2",),
    ),
    (r"encoder\.ln\.(weight|bias)", (r"vit.layernorm.\1",)),
    (r"heads\.head\.(weight|bias)", (r"classifier.\1",)),
)
"""torchvision's name -> ours; three where one tensor holds query,
key and value, one below the other.
"""


def renamed(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """A torchvision state dict under our names, nothing copied; any other as it is. A tensor
    that has no place keeps its name.
    """
    return _Renamed(weights) if "conv_proj.weight" in weights else weights


class _Renamed(Mapping[str, Array]):
    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.places = {
            new: (old, i, len(names))
            for old in weights
            for names in [_ours(old)]
            for i, new in enumerate(names)
        }

    def __getitem__(self, name: str) -> Array:
        old, part, parts = self.places[name]
        whole = self.weights[old]
        rows = whole.shape[0] // parts
        return whole[part * rows : (part + 1) * rows, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _ours(name: str) -> list[str]:
    for pattern, names in _TORCHVISION:
        if found := re.fullmatch(pattern, name):
            return [found.expand(new) for new in names]
    return [name]
