"""The models, all of random weights at a scale that keeps activations near 1, and the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

from refl.verification.quality.benchmark.spec import Item, Spec

# -- sizes -----------------------------------------------------------------------------------------


VIT = {"image": 224, "patch": 16, "hidden": 768, "layers": 12, "heads": 12, "intermediate": 3072}
T5 = {"hidden": 768, "layers": 12, "heads": 12, "intermediate": 2048, "vocabulary": 32128}


@dataclass(frozen=True)
class Sizes:
    """What is measured, unless the command line says otherwise."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 2048
    vocabulary: int = 32000
    tokens: tuple[int, ...] = (16, 64, 256, 1024, 2048, 4096, 8192)
    depths: tuple[int, ...] = (2, 6, 12, 24)
    depth_tokens: int = 256
    short_tokens: tuple[int, ...] = (16, 64)
    short_rounds: int = 21
    sentences: int = 500
    bounds: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Tokens of a batch of the peer: the best of these is taken."""
    vit: dict[str, int] = field(default_factory=lambda: dict(VIT))
    t5: dict[str, int] = field(default_factory=lambda: dict(T5))
    t5_tokens: int = 64
    t5_prefix: int = 16

    def changed(self, **options: Any) -> Sizes:
        """With those of the options that are sizes and are not None."""
        known = {f.name for f in fields(self)}
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
            if name in known and value is not None
        }
        return replace(self, **chosen)


QUICK = Sizes(
    hidden=32,
    layers=2,
    heads=4,
    intermediate=48,
    vocabulary=64,
    tokens=(8, 12),
    depths=(1, 2),
    depth_tokens=8,
    short_tokens=(8,),
    short_rounds=1,
    sentences=6,
    bounds=(64,),
    vit={"image": 32, "patch": 16, "hidden": 32, "layers": 1, "heads": 4, "intermediate": 48},
    t5={"hidden": 32, "layers": 1, "heads": 4, "intermediate": 48, "vocabulary": 64},
    t5_tokens=8,
    t5_prefix=3,
)
"""A smoke test."""

# -- checkpoints -----------------------------------------------------------------------------------


def write_llama(folder: Path, sizes: Sizes, layers: int, longest: int) -> int:
    """A Llama with a tied head; how many numbers it has."""
    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": longest,
    }
    return _write(folder, raw, lambda name, shape: shape[1] ** -0.5)


def write_vit(folder: Path, size: dict[str, int]) -> int:
    """A thousand classes, pixels from -1 to 1; how many numbers it has."""
    raw = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": size["image"],
        "patch_size": size["patch"],
        "hidden_size": size["hidden"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "intermediate_size": size["intermediate"],
        "id2label": {str(i): f"class {i}" for i in range(1000)},
    }
    preparation = json.dumps({"size": size["image"]})
    (folder / "preprocessor_config.json").write_text(preparation, encoding="utf-8")
    return _write(folder, raw, lambda name, shape: prod(shape[1:]) ** -0.5)


def write_t5(folder: Path, size: dict[str, int]) -> int:
    """A Flan-T5; how many numbers it has. Queries are small, as trained ones are, since nothing
    scales their products with keys.
    """
    width = size["hidden"] // size["heads"]
    raw = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "vocab_size": size["vocabulary"],
        "d_model": size["hidden"],
        "d_kv": width,
        "d_ff": size["intermediate"],
        "num_layers": size["layers"],
        "num_decoder_layers": size["layers"],
        "num_heads": size["heads"],
    }

    def scale(name: str, shape: tuple[int, ...]) -> float:
        return float((shape[-1] * (width if name.endswith(".q.weight") else 1)) ** -0.5)

    return _write(folder, raw, scale)


def _write(folder: Path, raw: dict[str, Any], scale: Callable[..., float]) -> int:
    """Random numbers, those of matrices times `scale(name, shape)`; how many there are."""
    import numpy as np

    from refl.io.safetensors import write_safetensors
    from refl.nets import NETS
    from refl.nets.config import parse

    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    draw, net = np.random.default_rng(0), NETS[raw["model_type"]]

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        noise = draw.standard_normal(shape, dtype=np.float32)
        return 1 + noise / 10 if len(shape) == 1 else noise * np.float32(scale(name, shape))

    shapes = net.shapes(parse(net.Config, raw))
    tensors = {name: tensor(name, shape) for name, shape, _ in shapes}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return int(sum(t.size for t in tensors.values()))


# -- inputs ----------------------------------------------------------------------------------------


def ids_of(tokens: int, vocabulary: int, start: int = 13) -> list[int]:
    return [(7919 * i + start) % vocabulary for i in range(tokens)]


def item_of(spec: Spec) -> Item:
    """The input that a side is to explain."""
    raw = _config(spec)
    if spec.kind == "vit":
        return Item(picture(raw["image_size"]))
    prefix = [0, *ids_of(spec.prefix - 1, raw["vocab_size"])] if spec.kind == "t5" else None
    return Item(ids_of(spec.tokens, raw["vocab_size"]), prefix)


def smallest(spec: Spec) -> Item:
    """The least there is to run: it maps every weight."""
    if spec.kind == "vit":
        return item_of(spec)
    return Item([1], [0] if spec.kind == "t5" else None)


def texts_of(spec: Spec) -> list[list[int]]:
    """A list of inputs as long as sentences are."""
    vocabulary = _config(spec)["vocab_size"]
    return [ids_of(n, vocabulary, 13 + b) for b, n in enumerate(sentence_lengths(spec.sentences))]


def _config(spec: Spec) -> dict[str, Any]:
    text = (Path(spec.folder) / "config.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def picture(size: int) -> Any:  # -> (3, size, size)
    import numpy as np

    return np.random.default_rng(1).uniform(-1, 1, (3, size, size)).astype(np.float32)


LENGTHS = (
    "6:3 7:1 8:2 9:2 10:6 11:4 12:14 13:7 14:16 15:16 16:22 17:17 18:20 19:24 20:22 21:28 22:21 "
    "23:20 24:19 25:22 26:21 27:16 28:18 29:12 30:21 31:15 32:16 33:9 34:10 35:10 36:7 37:2 38:5 "
    "39:6 40:1 41:7 42:4 43:3 44:1 45:1 46:2 47:3 49:1 50:2 51:2 53:2 56:2 57:1 59:2 60:3 64:1 "
    "65:1 69:1 75:1 80:1 95:1 99:2 129:1"
)
"""Tokens:sentences, of the first 500 sentences of more than two words in TinyStories' validation
texts, by the tokenizer of stories260K.
"""


def sentence_lengths(count: int) -> list[int]:
    """In a random order that is the same each time."""
    import numpy as np

    pairs = (pair.split(":") for pair in LENGTHS.split())
    lengths = [int(tokens) for tokens, times in pairs for _ in range(int(times))]
    order = np.random.default_rng(0).permutation(len(lengths))
    return [lengths[order[b % len(order)]] for b in range(count)]
