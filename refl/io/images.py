"""Images: from a file or an array to what a net reads, as preprocessor_config.json says.

    file or uint8 array -> resize -> crop -> * rescale_factor -> (x - mean) / std -> (C, H, W)

A float array is taken as prepared already. Pillow is imported here alone (`pillow`), and only where
a file, a resize or a drawing asks for it. Resizing is Pillow's, as in the image processors of
transformers that are not "fast" (those differ by a gray level or so).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refl.arguments import expected
from refl.arrays import asnumpy
from refl.errors import ReflError, shown
from refl.extras import install
from refl.io.config import read_json
from refl.io.files import identity, regular_size

PREPARATION = "preprocessor_config.json"

HALF = (0.5, 0.5, 0.5)
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
"""Pillow's resampling filters, by the numbers that preprocessor_config.json uses."""

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _COMMON | {"size": 224, "resample": BILINEAR, "image_mean": HALF, "image_std": HALF},
    "DeiT": _COMMON
    | {
        "size": 256,
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": HALF,
        "image_std": HALF,
    },
}
CLIPS = {
    "size": {"shortest_edge": 224},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""What CLIP's processor does, and BiT's, which DINOv2 has."""
DEFAULTS |= {family: _COMMON | CLIPS for family in ("CLIP", "Bit")}
"""Family of image processors -> what it does where the file is silent."""

FAMILIES = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
}
"""The family of a net whose file names none."""

PROCESSORS = {
    f"{family}{end}": family
    for family in DEFAULTS
    for end in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor")
}

_HARMLESS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "return_tensors",
    "default_to_square",
    "device",
    "_valid_processor_keys",
    "auto_map",
}
_KNOWN = {*_COMMON, *_HARMLESS, "size", "resample", "crop_size", "image_mean", "image_std"}


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before the net sees it; steps that are left out are None."""

    size: tuple[int, int] | int | None
    """(height, width), or the length of the shorter edge."""
    resample: int
    crop: tuple[int, int] | None
    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, pixels: Any, channels: int) -> tuple[Any, Any]:
        """uint8 (H, W, C) -> float64 (C, H, W) as the net reads it, and the picture that this is,
        uint8 (H, W, C).
        """
        picture = self._cropped(self._resized(pixels))
        x = np.moveaxis(picture, -1, 0).astype(np.float64)
        if self.factor is not None:
            x = x * self.factor
        if self.mean is not None and self.std is not None:
            x = (x - _column("image_mean", self.mean, channels)) / _column(
                "image_std", self.std, channels
            )
        return x, picture

    def final(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what becomes of a picture of this size. Raises ReflError for one that
        would be enlarged beyond bounds on the way.
        """
        target = self._target(size)
        _refuse_many_pixels(target, "once resized")
        return self.crop or target

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width) of what becomes of any picture; None where it depends on the picture's
        own.
        """
        return self.crop or (self.size if isinstance(self.size, tuple) else None)

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        if isinstance(self.size, int):  # the shorter edge; the other follows
            short = min(size)
            return int(self.size * size[0] / short), int(self.size * size[1] / short)
        return self.size or size

    def box(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest value that a pixel of each channel can have."""
        extremes = [np.zeros((1, 1, channels)), np.full((1, 1, channels), 255)]
        low, high = (
            replace(self, size=None, crop=None)(pixel, channels)[0].reshape(-1)
            for pixel in extremes
        )
        return tuple(map(float, low)), tuple(map(float, high))

    def undone(self, x: Any) -> Any:
        """(C, H, W) as the net reads it -> uint8 (H, W, C), as near as may be."""
        if self.mean is not None and self.std is not None:
            x = x * _column("image_std", self.std, len(x)) + _column(
                "image_mean", self.mean, len(x)
            )
        return _gray_levels(x if self.factor is None else x / self.factor)

    def _resized(self, pixels: Any) -> Any:
        target = self._target(pixels.shape[:2])
        if target == pixels.shape[:2]:
            return pixels
        image = pillow().fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        resized = np.asarray(image.resize((target[1], target[0]), resample=self.resample))
        return resized[..., None] if resized.ndim == 2 else resized

    def _cropped(self, pixels: Any) -> Any:
        """The middle; a picture that is smaller stands in the middle of zeros."""
        if self.crop is None:
            return pixels
        for axis, wanted in enumerate(self.crop):
            here = pixels.shape[axis]
            if here < wanted:
                before = -(-(wanted - here) // 2)
                pad = [(0, 0)] * pixels.ndim
                pad[axis] = (before, wanted - here - before)
                pixels = np.pad(pixels, pad)
            else:
                start = (here - wanted) // 2
                pixels = np.take(pixels, range(start, start + wanted), axis=axis)
        return pixels


def _column(name: str, values: tuple[float, ...], channels: int) -> Any:
    if len(values) not in (1, channels):
        raise ReflError(
            f"{PREPARATION} has {len(values)} numbers in {name}, the model takes "
            f"{channels} channels"
        )
    return np.asarray(values, dtype=np.float64).reshape(-1, 1, 1)


def read_preparation(folder: Path, model_type: str) -> Preparation | None:
    """What preprocessor_config.json asks for; None where there is none. Raises ReflError for what
    is not understood.
    """
    if not (folder / PREPARATION).exists():
        return None
    raw = read_json(folder / PREPARATION, 1 << 20)
    named = raw.get("image_processor_type", raw.get("feature_extractor_type"))
    if named is not None and (not isinstance(named, str) or named not in PROCESSORS):
        raise ReflError(
            f"{PREPARATION} asks for {str(named)[:60]!r}: refl prepares images as "
            f"{', '.join(PROCESSORS)} do"
        )
    family = PROCESSORS[named] if named is not None else FAMILIES[model_type]
    said = {key: value for key, value in raw.items() if value is not None}
    if family in ("CLIP", "Bit") and type(said.get("size")) is int:
        said["size"] = {"shortest_edge": said["size"]}
    return _preparation(DEFAULTS[family] | said)


def _preparation(c: dict[str, Any]) -> Preparation:
    for key, value in c.items():
        if key not in _KNOWN and value not in (None, False):
            raise ReflError(
                f"{PREPARATION} sets {key} = {str(value)[:60]!r}, which refl does not know"
            )
        if key.startswith("do_") and not isinstance(value, bool):
            raise ReflError(
                f"{PREPARATION} has {key} = {str(value)[:60]!r}: expected true or false"
            )
    if type(c["resample"]) is not int or c["resample"] not in range(6):
        raise ReflError(
            f"{PREPARATION} has resample = {str(c['resample'])[:60]!r}: expected 0 to 5, "
            "one of Pillow's filters"
        )
    crop = _size("crop_size", c.get("crop_size")) if c["do_center_crop"] else None
    if isinstance(crop, int):
        raise ReflError(
            f"{PREPARATION} has crop_size with a shortest_edge: expected height and width"
        )
    mean, std = (
        _numbers(key, c[key]) if c["do_normalize"] else None for key in ("image_mean", "image_std")
    )
    if std is not None and min(std) <= 0:
        raise ReflError(f"{PREPARATION} has {min(std):g} in image_std: expected numbers above 0")
    return Preparation(
        size=_size("size", c["size"]) if c["do_resize"] else None,
        resample=c["resample"],
        crop=crop,
        factor=_numbers("rescale_factor", c["rescale_factor"])[0] if c["do_rescale"] else None,
        mean=mean,
        std=std,
    )


def _size(name: str, value: Any) -> tuple[int, int] | int:
    """An edge, a pair, or an object: {height, width} or {shortest_edge}."""
    if isinstance(value, Mapping):
        if set(value) == {"shortest_edge"}:
            value, square = value["shortest_edge"], False
        else:
            value, square = [value.get("height"), value.get("width")], True
    else:
        square = True
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or not all(type(n) is int and 0 < n <= 1 << 16 for n in pair):
        raise ReflError(
            f"{PREPARATION} has a {name} that is no size: expected a whole number, "
            "[height, width], or an object with these"
        )
    return (pair[0], pair[1]) if square else pair[0]


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not numbers or not all(map(_is_finite_number, numbers)):
        raise ReflError(
            f"{PREPARATION} has {name} = {str(value)[:60]!r}: expected a number, or one "
            "for each channel"
        )
    return tuple(map(float, numbers))


def _is_finite_number(n: Any) -> bool:
    if not isinstance(n, (int, float)) or isinstance(n, bool):
        return False
    return bool(abs(n) <= _LARGEST)  # NaN is not, nor are whole numbers that no float holds


_LARGEST = 1e30
"""Of a mean, a deviation or a factor: float32 holds what comes of them."""


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """A picture ready for a net."""

    pixels: Any
    """(C, H, W) in the dtype of the computation."""
    picture: Any
    """uint8 (H, W, C): the same as an eye would see it."""


def prepared(
    item: Any, preparation: Preparation | None, channels: int, size: tuple[int, int], dtype: str
) -> Image:
    """A file's path or a picture of Pillow's, uint8 (H, W) or (H, W, C), or floats (C, H, W) that
    are normalized already -> what the net reads.

    Raises ReflError, in one sentence, for anything else and for a picture that does not fit the
    model; its size is looked at before its pixels.
    """
    if isinstance(item, Image):
        return item

    def refuse_misfit(found: tuple[int, int]) -> None:
        _refuse_many_pixels(found, "")
        _refuse_size(found if preparation is None else preparation.final(found), size)

    if isinstance(item, (str, Path)) or _is_pillows(item):
        levels = _decoded(item, channels, refuse_misfit)
    else:
        array = _array(item)
        if array.dtype != np.uint8:
            return _from_floats(_floats(array, channels), preparation, size, dtype)
        levels = _levels(array, channels)
        refuse_misfit(levels.shape[:2])
    pixels, picture = _from_levels(levels, preparation, channels)
    return Image(_cast(pixels, dtype), picture)


def _from_floats(
    pixels: Any, preparation: Preparation | None, size: tuple[int, int], dtype: str
) -> Image:
    _refuse_size(pixels.shape[1:], size)
    picture = _stretched(pixels) if preparation is None else preparation.undone(pixels)
    return Image(_cast(pixels, dtype), picture)


def _refuse_size(found: tuple[int, int], size: tuple[int, int]) -> None:
    if tuple(found) != tuple(size):
        raise ReflError(
            f"the image is {found[0]} x {found[1]} once prepared, the model takes {size[0]} x "
            f"{size[1]} (height x width): resize it; positions are not interpolated "
            "(interpolate_pos_encoding)"
        )


MOST_PIXELS = 1 << 26
"""Of a picture, before and after it is resized: more would take gigabytes."""


def _refuse_many_pixels(size: tuple[int, int], when: str) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise ReflError(
            f"the image is {size[0]} x {size[1]}{' ' * bool(when)}{when}, expected at most "
            f"{MOST_PIXELS} pixels: make it smaller first"
        )


def _array(item: Any) -> Any:
    """Anything an array can be made of. Raises ReflError for the rest."""
    try:
        return asnumpy(item) if hasattr(item, "__array_namespace__") else np.asarray(item)
    except Exception as reason:
        raise expected("the image", "a file, or an array of one picture", item) from reason


def _cast(pixels: Any, dtype: str) -> Any:
    with np.errstate(over="ignore"):
        cast = pixels.astype(dtype)
    if not np.all(np.isfinite(cast)):
        raise ReflError(
            f"the image holds numbers that are not finite in {dtype}: expected normalized pixels, "
            "a few units in size"
        )
    return cast


def is_one(item: Any) -> bool:
    """Whether it is one picture, not a list (or an array of four axes) of them."""
    if isinstance(item, (list, tuple)):
        if not item:
            raise ReflError("the input is empty: expected a picture")
        return False
    return bool(getattr(item, "ndim", 0) <= 3)


def _from_levels(levels: Any, preparation: Preparation | None, channels: int) -> tuple[Any, Any]:
    if preparation is None:
        raise ReflError(
            f"there is no {PREPARATION} beside the checkpoint to say how a picture is "
            "normalized: give floats (channels, height, width) that are normalized already"
        )
    return preparation(levels, channels)


def _levels(array: Any, channels: int) -> Any:  # (H, W) or (H, W, C) -> (H, W, C)
    if array.ndim == 2:
        array = np.repeat(array[..., None], channels, axis=-1)  # gray in every channel
    if array.ndim != 3 or array.size == 0:
        raise ReflError(
            f"the image has shape {array.shape}: expected (height, width) or (height, "
            "width, channels) of uint8"
        )
    if array.shape[-1] != channels:
        raise ReflError(
            f"the image has {array.shape[-1]} channels in its last axis, the model takes {channels}"
        )
    return array


def _floats(array: Any, channels: int) -> Any:  # (C, H, W)
    if array.ndim != 3 or array.size == 0 or array.dtype.kind != "f":
        raise ReflError(
            f"the image has shape {array.shape} and dtype {array.dtype}: expected uint8 "
            "(height, width) or (height, width, channels), or floats (channels, height, width) "
            "that are normalized already"
        )
    if array.shape[0] != channels:
        raise ReflError(
            f"the image has {array.shape[0]} channels in its first axis, the model takes {channels}"
        )
    if not np.all(np.isfinite(array)):
        raise ReflError("the image holds numbers that are not finite: expected none")
    return array


# -- files -----------------------------------------------------------------------------------------

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
"""Those that are decoded. Pillow knows others, one of which runs another program."""
_MOST_BYTES = 1 << 30


def _is_pillows(item: Any) -> bool:
    """Its array could be the numbers of a palette, so it is read as a file is."""
    return type(item).__module__.partition(".")[0] == "PIL" and hasattr(item, "convert")


def _decoded(item: Any, channels: int, refuse_misfit: Callable[[tuple[int, int]], None]) -> Any:
    """A file or a picture of Pillow's -> uint8 (H, W, C), upright, in the colors the model takes.

    The first picture of a photograph that holds several; CMYK becomes RGB by Pillow's formula.
    Refused: animations, more than eight bits for a color, and transparent pixels, unless the model
    takes transparency: what is behind them nobody says.
    """
    name = shown(item) if isinstance(item, (str, Path)) else "the picture"
    if isinstance(item, (str, Path)) and identity(item) is None:
        raise ReflError(f"there is no picture {str(item)[:200]!r}")
    library = pillow()
    if channels not in _MODES:
        raise ReflError(
            f"the model takes {channels} channels, which no picture file has: give an array"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(item, library) as image:
                _refuse_kind(image, name)
                _refuse_misfit_either_way(image.size, refuse_misfit)
                levels = np.asarray(_flat(image, name, channels).convert(_MODES[channels]))
                refuse_misfit(levels.shape[:2])
    except ReflError:
        raise
    except Exception as reason:  # every format raises its own kinds: OSError, struct.error, ...
        kinds = "the file is damaged, or is none of " + ", ".join(_FORMATS)
        raise ReflError(f"{name} cannot be read as a picture: {reason}: {kinds}") from reason
    return levels[..., None] if levels.ndim == 2 else levels


def _opened(item: Any, library: Any) -> Any:
    """The picture with its header read, and none of its pixels."""
    if _is_pillows(item):
        return item.copy()
    if regular_size(Path(item)) > _MOST_BYTES:
        raise ReflError(f"{shown(item)} has more than {_MOST_BYTES} bytes: expected a picture")
    library.init()
    return library.open(item, formats=[name for name in _FORMATS if name in library.OPEN])


def _refuse_kind(image: Any, name: str) -> None:
    deep = any(";16" in str(tile) or ";12" in str(tile) for tile in getattr(image, "tile", ()))
    if image.mode not in _EIGHT_BITS or deep:
        raise ReflError(
            f"{name} has {'deep ' * deep}pixels of mode {image.mode}: expected eight bits for "
            "each color"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ReflError(f"{name} holds several pictures: save the one that is meant by itself")


def _refuse_misfit_either_way(
    size: tuple[int, int], refuse_misfit: Callable[[tuple[int, int]], None]
) -> None:
    """Whether a picture is to be turned may stand behind its pixels."""
    width, height = size
    try:
        refuse_misfit((height, width))
    except ReflError as misfit:
        try:
            refuse_misfit((width, height))
        except ReflError:
            raise misfit from None


def _flat(image: Any, name: str, channels: int) -> Any:
    """The picture upright, and opaque where the model has no channel for transparency."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    has_alpha = upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info
    if has_alpha and channels != 4:
        upright = upright.convert("RGBA")
        if np.asarray(upright.getchannel("A")).min() < 255:
            raise ReflError(f"{name} has transparent pixels: lay it on a background first")
    return upright


def pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise ReflError(f"pictures need Pillow: {install('image')}") from None
    return PIL.Image


def _gray_levels(x: Any) -> Any:  # (C, H, W) -> uint8 (H, W, C)
    return np.moveaxis(np.clip(np.rint(x), 0, 255).astype(np.uint8), 0, -1)


def _stretched(x: Any) -> Any:
    """Nothing is known of the normalization: the darkest is black, the lightest white."""
    low, high = float(x.min()), float(x.max())
    return _gray_levels((x - low) * (255 / ((high - low) or 1.0)))
