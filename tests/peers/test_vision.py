"""ViT and DeiT against transformers in float64, every option of config.json; torchvision's names;
pictures prepared as by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from transformers_forward import agree
from transformers_models import VISION, random_vision

import refl
from refl.errors import ReflError
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")


VIT: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-qkv-bias": {"qkv_bias": False, "hidden_act": "relu"},
    "tall-image": {"image_size": [16, 8], "hidden_act": "gelu_new"},
    "wide-patches": {"image_size": [9, 20], "patch_size": [3, 5], "num_channels": 1},
    "pixels-left-over": {"image_size": [13, 11], "patch_size": [4, 3], "hidden_act": "quick_gelu"},
    "norm-eps": {"layer_norm_eps": 1e-2, "num_attention_heads": 1, "encoder_stride": 4},
    "one-patch": {"image_size": 4, "num_hidden_layers": 1, "num_channels": 4, "num_labels": 1},
    "two-labels": {"num_labels": 2, "hidden_act": "silu", "num_attention_heads": 24},
}


def theirs(loaded: Any, x: Any, output: str = "logits") -> Any:
    """transformers' answer in float64, its softmax included:
    eager attention forms it in float32.
    """
    with wide(), torch.no_grad():
        twin = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        twin.load_state_dict(loaded.state_dict())
        return twin.eval()(pixel_values=torch.tensor(x))[output].numpy()


def pictures(options: dict[str, Any], count: int = 3) -> Any:
    """(B, C, H, W), as if normalized."""
    c = VISION | options
    size = c["image_size"] if isinstance(c["image_size"], list) else [c["image_size"]] * 2
    return np.random.default_rng(1).standard_normal((count, c["num_channels"], *size))


def same_forward(folder: Path, loaded: Any, x: Any, output: str = "logits") -> None:
    loaded.save_pretrained(folder)
    expected = theirs(loaded, x, output)
    model = refl.load(folder, dtype="float64")
    assert model.task == "image-class"
    agree(np.stack([model.logits(one)[0] for one in x]), expected)
    _, logits = model.trace(list(x))
    agree(logits.array[:, 0], expected)


@pytest.mark.parametrize("options", VIT.values(), ids=VIT)
def test_vit_options(tmp_path: Path, options: dict[str, Any]) -> None:
    same_forward(
        tmp_path, random_vision("vit", "ForImageClassification", **options), pictures(options)
    )


@pytest.mark.parametrize(
    "options", [{}, {"pooler_output_size": 7, "pooler_act": "relu"}], ids=["plain", "narrow"]
)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_pooler_where_there_is_no_classifier(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    same_forward(
        tmp_path, random_vision(kind, "Model", **options), pictures(options), "pooler_output"
    )


@pytest.mark.parametrize("options", VIT.values(), ids=VIT)
@pytest.mark.parametrize("head", ["ForImageClassification", "ForImageClassificationWithTeacher"])
def test_deit_options(tmp_path: Path, head: str, options: dict[str, Any]) -> None:
    same_forward(tmp_path, random_vision("deit", head, **options), pictures(options))


@pytest.mark.parametrize("name", ["vit_455_hf", "vit_mnist_012_hf"])
def test_real_checkpoints(name: str) -> None:
    """The float64 outputs stored beside them were made with a softmax in float32; with that lifted
    nothing is left.
    """
    with np.load(checkpoint(name) / "golden.npz") as stored:
        images = stored["images"]
    model = refl.load(checkpoint(name), dtype="float64")
    x = np.stack([model.read(image).pixels for image in images])
    loaded = transformers.ViTForImageClassification.from_pretrained(checkpoint(name))
    agree(np.stack([model.logits(image)[0] for image in images]), theirs(loaded, x))


# -- torchvision's naming --------------------------------------------------------------------------


class Block(torch.nn.Module):
    """The structure of torchvision's EncoderBlock, and its names."""

    def __init__(self, width: int, heads: int, inner: int, old: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (
            torch.nn.LayerNorm(width, eps=1e-6),
            torch.nn.LayerNorm(width, eps=1e-6),
        )
        self.self_attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        first, second = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)
        steps = {"linear_1": first, "act": torch.nn.GELU(), "linear_2": second}
        if not old:
            steps = {
                "0": first,
                "1": torch.nn.GELU(),
                "2": torch.nn.Dropout(0.0),
                "3": second,
                "4": torch.nn.Dropout(0.0),
            }
        self.mlp = torch.nn.ModuleDict(steps)

    def forward(self, x: Any) -> Any:
        normed = self.ln_1(x)
        x = x + self.self_attention(normed, normed, normed, need_weights=False)[0]
        y = self.ln_2(x)
        for step in self.mlp.values():
            y = step(y)
        return x + y


class VisionTransformer(torch.nn.Module):
    """The structure of torchvision's VisionTransformer, and its names."""

    def __init__(
        self,
        image: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        inner: int,
        classes: int,
        old: bool,
    ) -> None:
        super().__init__()
        self.conv_proj = torch.nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.class_token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = torch.nn.Module()
        self.encoder.pos_embedding = torch.nn.Parameter(
            torch.zeros(1, (image // patch) ** 2 + 1, width)
        )
        self.encoder.layers = torch.nn.ModuleDict(
            {f"encoder_layer_{i}": Block(width, heads, inner, old) for i in range(depth)}
        )
        self.encoder.ln = torch.nn.LayerNorm(width, eps=1e-6)
        self.heads = torch.nn.ModuleDict({"head": torch.nn.Linear(width, classes)})

    def forward(self, x: Any) -> Any:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
            + self.encoder.pos_embedding
        )
        for block in self.encoder.layers.values():
            x = block(x)
        return self.heads["head"](self.encoder.ln(x)[:, 0])


@pytest.fixture
def torchvision(tmp_path: Path) -> tuple[Path, Any]:
    return _torchvision(tmp_path, old=False)


def _torchvision(folder: Path, old: bool) -> tuple[Path, Any]:
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(3)
    model = VisionTransformer(12, 4, 24, 2, 4, 40, 5, old)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=draw))
    save_file(model.state_dict(), folder / "model.safetensors")
    options = VISION | {"model_type": "vit", "num_hidden_layers": 2, "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(options))
    return folder, model.eval().double()


@pytest.mark.parametrize("old", [False, True], ids=["mlp.0", "mlp.linear_1"])
def test_torchvision_names(tmp_path: Path, old: bool) -> None:
    (folder, reference), x = _torchvision(tmp_path, old), pictures({})
    with torch.no_grad():
        agree(
            np.stack([refl.load(folder, dtype="float64").logits(one)[0] for one in x]),
            reference(torch.tensor(x)).numpy(),
        )


def test_torchvision_sites_fit_the_composites(torchvision: tuple[Path, Any]) -> None:
    e = refl.load(torchvision[0], dtype="float64").explain(pictures({})[0], "attnlrp-vit")
    rules = {entry.site: entry.rule for entry in e.ledger if entry.operation == "linear"}
    assert rules["vit.embeddings.patch_embeddings.projection"] == rules["classifier"] == "gamma"
    assert {
        rules[f"vit.encoder.layer.1.attention.attention.{part}"]
        for part in ("query", "key", "value")
    } == {"epsilon"}
    assert rules["vit.encoder.layer.1.attention.output.dense"] == "epsilon"


def test_torchvision_tensor_without_a_place(torchvision: tuple[Path, Any]) -> None:
    from safetensors.torch import load_file, save_file

    folder = torchvision[0]
    save_file(
        load_file(folder / "model.safetensors") | {"heads.pre_logits.weight": torch.zeros(24, 24)},
        folder / "model.safetensors",
    )
    with pytest.raises(ReflError, match=r"heads\.pre_logits\.weight"):
        refl.load(folder)


# -- preparation -----------------------------------------------------------------------------------

PREPARATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {"size": {"height": 12, "width": 12}}),
    "vit-old-size": (
        "ViT",
        {"size": 12, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]},
    ),
    "vit-not-square": ("ViT", {"size": {"height": 12, "width": 20}, "resample": 1}),
    "vit-no-rescale": ("ViT", {"size": [12, 12], "do_rescale": False, "resample": 0}),
    "vit-no-normalize": (
        "ViT",
        {"size": 12, "do_normalize": False, "rescale_factor": 0.01, "resample": 4},
    ),
    "deit": ("DeiT", {"size": 16, "crop_size": 12}),
    "deit-odd-crop": (
        "DeiT",
        {"size": {"height": 17, "width": 22}, "crop_size": {"height": 12, "width": 13}},
    ),
    "deit-crop-larger": ("DeiT", {"size": 9, "crop_size": 12}),
    "deit-no-crop": ("DeiT", {"size": 12, "do_center_crop": False}),
}


@pytest.mark.parametrize(("family", "options"), PREPARATIONS.values(), ids=PREPARATIONS)
@pytest.mark.parametrize("left_out", [False, True], ids=["saved", "sparse"])
@pytest.mark.parametrize(
    "shape", [(31, 24), (12, 12), (8, 40)], ids=lambda s: "x".join(map(str, s))
)
def test_preparation(
    tmp_path: Path, family: str, options: dict[str, Any], shape: tuple[int, int], left_out: bool
) -> None:
    """transformers computes in float32: that is the bound."""
    from refl.io.images import read_preparation

    pytest.importorskip("PIL", reason="Pillow is not installed (the extra 'image')")
    processor = getattr(transformers, f"{family}ImageProcessor")(**options)
    processor.save_pretrained(tmp_path)
    if left_out:  # what the file is silent about has the processor's own default
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": f"{family}ImageProcessor"} | options)
        )
    array = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = processor(array, return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ][0]
    preparation = read_preparation(tmp_path, family.lower())
    assert preparation is not None
    ours, picture = preparation(array, 3)
    assert ours.shape == wanted.shape and picture.shape == (*ours.shape[1:], 3)
    assert np.abs(ours - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max())
