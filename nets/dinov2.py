"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), without and with register tokens (Darcet et al.
2023, arXiv 2309.16588).

    h = [class, patches] + positions,    registers put in behind the class token
    for each block:    h = h + lambda_1 * attention(norm(h)),    h = h + lambda_2 * mlp(norm(h))
    logits = classifier([norm(h)[0], mean over patches of norm(h)])

    mlp(x) = fc2(act(fc1(x)))    or, with use_swiglu_ffn,
             weights_out(silu(a) * b),    [a, b] = weights_in(x)

Pictures may be of another size than positions were learned for, and most are: positions are
weights, and `fitted` interpolates them once, as transformers does for every picture.

lambda is learned, one factor for each feature (Touvron et al. 2021, arXiv 2103.17239): a weight, so
that all relevance of the product goes to what it is multiplied with. Names are those of Hugging
Face's Dinov2ForImageClassification; the features of Dinov2Model are norm(h)[0].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from refl.arrays import Array, device_of, flags, namespace
from refl.errors import ReflError
from refl.nets import tensors, vision
from refl.nets.batch import Batch
from refl.nets.config import brief
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "dinov2"
PREFIX = ""
CHECKED = (
    "random configurations against transformers 4.52.4; relevance: torch's gradient of its frozen "
    "modules; no real checkpoint"
)

FAMILIES = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}


# -- config.json -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(vision.PatchConfig):
    """The options of config.json that this net reads."""

    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    patch_size: int | list[int] = 14
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_register_tokens: int | None = None

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "layerscale_value",  # what lambda was before training
        "drop_path_rate",  # of training
        "use_mask_token",  # stands for hidden patches, in pre-training
        *("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"),
        *("apply_layernorm", "reshape_hidden_states"),  # of a backbone, which is refused
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image[0] != self.image[1]:
            raise ReflError(
                f"config.json has image_size = {brief(self.image_size)}: positions are those of a "
                "square, and for an image that is none they are interpolated, which is not "
                "implemented"
            )
        if self.num_register_tokens is not None and not self.with_registers:
            raise ReflError("config.json has num_register_tokens, and model_type dinov2 has none")

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        family = FAMILIES.get(model_type or "", FAMILIES[MODEL_TYPE])
        return {family + head: head for head in cls.HEADS}

    @property
    def with_registers(self) -> bool:
        return self.model_type == "dinov2_with_registers"

    @property
    def registers(self) -> int:
        if not self.with_registers:
            return 0
        return 4 if self.num_register_tokens is None else self.num_register_tokens

    @property
    def inner(self) -> int:
        """Features between the layers of the MLP."""
        wide = int(self.hidden_size * self.mlp_ratio)
        return (int(wide * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else wide

    @property
    def base(self) -> str:
        """The module of everything but the classifier; a file of the bare model has it at the
        root.
        """
        return "" if self.head == "Model" else self.model_type or MODEL_TYPE


def task(c: Config) -> str:
    return "image-class"


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d, dot = c.hidden_size, f"{c.base}." if c.base else ""
    yield from vision.embedding_shapes(f"{dot}embeddings", c, ("cls_token",))
    if c.registers:
        why = "num_register_tokens and hidden_size"
        yield f"{dot}embeddings.register_tokens", (1, c.registers, d), why
    for i in range(c.num_hidden_layers):
        yield from _block_shapes(f"{dot}encoder.layer.{i}", c)
    yield from tensors.norm(f"{dot}layernorm", d, bias=True)
    if c.head != "Model":
        why = "id2label (or num_labels) and hidden_size"
        yield from tensors.linear("classifier", c.labels, 2 * d, why, bias=True)


def _block_shapes(block: str, c: Config) -> Tensors:
    d, why = c.hidden_size, "hidden_size, mlp_ratio and use_swiglu_ffn"
    first, last = ("weights_in", "weights_out") if c.use_swiglu_ffn else ("fc1", "fc2")
    wide = 2 * c.inner if c.use_swiglu_ffn else c.inner
    yield from tensors.norm(f"{block}.norm1", d, bias=True)
    yield from vision.attention_shapes(block, d, c.qkv_bias)
    yield f"{block}.layer_scale1.lambda1", (d,), "hidden_size"
    yield from tensors.norm(f"{block}.norm2", d, bias=True)
    yield from tensors.linear(f"{block}.mlp.{first}", wide, d, why, bias=True)
    yield from tensors.linear(f"{block}.mlp.{last}", d, c.inner, why, bias=True)
    yield f"{block}.layer_scale2.lambda1", (d,), "hidden_size"


def spare(c: Config) -> dict[str, str]:
    """Tensors that it does without, and why."""
    return {"*embeddings.mask_token": "stands for hidden patches, in pre-training"}


# -- forward ---------------------------------------------------------------------------------------


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # pixels (B, C, H, W) -> logits (B, 1, classes)
    x = t.source("pixel_values", batch.pixels)
    h = t.module(c.base, body, x, c) if c.base else body(t, x, c)
    first = vision.token(t, "classifier" if c.base else "pooler_output", h, batch)
    if c.head == "Model":
        return first
    mean = t.mean("classifier.mean", h, patches_of(h.array, 1 + c.registers), role="head.mean")
    both = t.move("classifier.joined", "concat", first, mean, axis=2)
    return t.linear("classifier", both, bias=True, role="head")


def body(t: Trace, x: Value, c: Config) -> Value:  # (B, C, H, W) -> (B, T, D)
    h = t.module("embeddings", _embeddings, x, c)
    return vision.encoded(t, h, c, _block)


def _embeddings(t: Trace, x: Value, c: Config) -> Value:
    h = vision.embeddings(t, x, c, {"cls_token": "class_token"})
    if not c.registers:
        return h
    registers = t.learned("register_tokens", h, role="register_token")
    count, length, _ = h.array.shape
    first = t.gather("class_token.placed", h, ((0,),) * count)
    rest = t.gather("patches.placed", h, (tuple(range(1, length)),) * count)
    return t.move("", "concat", first, registers, rest, axis=1)


def _block(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("norm1", h, c.layer_norm_eps)
    a = t.module("attention", vision.attention, n, c.num_attention_heads, c.qkv_bias)
    h = t.add("residual", t.module("layer_scale1", _scaled, a), h, role="residual")
    n = t.layer_norm("norm2", h, c.layer_norm_eps)
    m = t.module("layer_scale2", _scaled, t.module("mlp", _mlp, n, c))
    return t.add("", m, h, role="residual")


def _scaled(t: Trace, x: Value) -> Value:  # (B, T, D) -> (B, T, D)
    factors = t.learned("lambda1", x, role="layer_scale", constant=True)
    return t.multiply("", factors, x, role="layer_scale")


def _mlp(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    if not c.use_swiglu_ffn:
        x = t.activation(
            "activation", t.linear("fc1", x, bias=True, role="mlp.up"), c.act, role="mlp.activation"
        )
        return t.linear("fc2", x, bias=True, role="mlp.down")
    both, n = t.linear("weights_in", x, bias=True, role="mlp.gate_up"), c.inner
    gate = t.move("x1", "slice", both, start=0, stop=n)
    gate = t.activation("x1.activated", gate, "silu", role="mlp.activation")
    up = t.move("x2", "slice", both, start=n, stop=2 * n)
    z = t.multiply("hidden", gate, up, role="mlp.product")
    return t.linear("weights_out", z, bias=True, role="mlp.down")


# -- positions for pictures of another size --------------------------------------------------------


def fitted(
    c: Config, weights: Mapping[str, Array], image: tuple[int, int]
) -> tuple[Config, Mapping[str, Array]]:
    """The same net for square pictures of this size: its positions are interpolated, where there
    are not as many patches on a side as they were learned for. As it is for any other.
    """
    side, (height, width) = image[0], c.patch
    if image[0] != image[1] or height != width or height > side or c.image == image:
        return c, weights
    smaller = replace(c, image_size=side)
    if smaller.count == c.count:
        return smaller, weights
    name = f"{c.base}.embeddings.position_embeddings".lstrip(".")
    way = (antialiased if c.with_registers else bicubic)(c.image[0] // height, side // height)
    return smaller, Interpolated(weights, name, way)


@dataclass(frozen=True, eq=False)
class Interpolated(Mapping[str, Array]):
    """Weights with the positions of n x n patches made into those of m x m, by a matrix (m, n)."""

    weights: Mapping[str, Array]
    name: str
    way: list[list[float]]

    def __getitem__(self, name: str) -> Array:
        array = self.weights[name]
        return interpolated(array, self.way) if name == self.name else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.weights


def interpolated(
    p: Array, way: list[list[float]]
) -> Array:  # (1, 1 + n n, D), (m, n) -> (1, 1 + m m, D)
    """A P A^T for each feature; the class token's position stays."""
    xp, m, n = namespace(p), len(way), len(way[0])
    a = xp.asarray(way, dtype=p.dtype, **device_of(p))
    rows = xp.reshape(a @ xp.reshape(p[0, 1:, :], (n, -1)), (m, n, -1))
    grid = xp.reshape(a @ rows, (1, m * m, -1))
    return xp.concat([p[:, :1, :], grid], axis=1)


def bicubic(n: int, m: int) -> list[list[float]]:  # (m, n)
    """From n points to m in the same stretch, by cubic convolution over the nearest four (Keys
    1981, a = -0.75), those at the edge standing for what is beyond. torch's interpolate with
    align_corners=False.
    """
    found = []
    for i in range(m):
        at = (i + 0.5) * n / m - 0.5
        first, row = math.floor(at), [0.0] * n
        for k in range(first - 1, first + 3):
            row[min(max(k, 0), n - 1)] += _cubic(abs(at - k))
        found.append(row)
    return found


def antialiased(n: int, m: int) -> list[list[float]]:  # (m, n)
    """The same with a = -0.5 and, to fewer points, over as many more as there are, so that none is
    passed over; those beyond the edge are left out and the others sum to 1. torch's with
    antialias=True, which nets with register tokens have.
    """
    wide, found = max(n / m, 1.0), []
    for i in range(m):
        center, reach = (i + 0.5) * n / m, 2 * wide
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), n)
        row = [0.0] * n
        for k in range(first, last):
            row[k] = _cubic(abs(k + 0.5 - center) / wide, -0.5)
        total = math.fsum(row)
        found.append([w / total for w in row])
    return found


def _cubic(d: float, a: float = -0.75) -> float:
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return a * (((d - 5) * d + 8) * d - 4) if d < 2 else 0.0


# -- which rows are patches ------------------------------------------------------------------------


def patches_of(h: Array, before: int) -> Array:  # (B, T, D) -> (B, T, 1)
    """1 at patches, 0 at the `before` learned tokens in front of them."""
    xp = namespace(h)
    one = flags(xp.arange(h.shape[1], **device_of(h)) >= before, h)
    return xp.broadcast_to(one[None, :, None], (*h.shape[:2], 1))
