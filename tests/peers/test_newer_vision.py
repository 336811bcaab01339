"""DINOv2 and CLIP against transformers in float64, every option of config.json; CLIP's relevance
against torch's gradient of the frozen towers; pictures prepared as by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree
from transformers_models import random_clip, random_dinov2

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")


def widened(loaded: Any) -> Any:
    """Its float64 twin; to be called inside `wide`."""
    how = {"torch_dtype": torch.float64, "attn_implementation": "eager"}
    for name in loaded.config.sub_configs:  # CLIP's towers have an attention of their own
        getattr(loaded.config, name)._attn_implementation = "eager"
    twin = type(loaded)._from_config(loaded.config, **how)
    twin.load_state_dict(loaded.state_dict())
    return twin.eval()


def theirs(loaded: Any, output: str, **inputs: Any) -> Any:
    with wide(), torch.no_grad():
        return widened(loaded)(**inputs)[output].numpy()


def pictures(loaded: Any, count: int = 3) -> Any:
    """(B, C, H, W), as if normalized."""
    c = getattr(loaded.config, "vision_config", loaded.config)
    size = c.image_size if isinstance(c.image_size, (list, tuple)) else [c.image_size] * 2
    return np.random.default_rng(1).standard_normal((count, c.num_channels, *size))


def same_pictures(folder: Path, loaded: Any, output: str = "logits") -> None:
    loaded.save_pretrained(folder)
    x = pictures(loaded)
    expected = theirs(loaded, output, pixel_values=torch.tensor(x))
    model = refl.load(folder, dtype="float64")
    assert model.task == "image-class"
    agree(np.stack([model.logits(one)[0] for one in x]), expected)
    agree(model.trace(list(x))[1].array[:, 0], expected)


# -- DINOv2 ----------------------------------------------------------------------------------------

DINOV2: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"use_swiglu_ffn": True},
    "gated-narrow": {"use_swiglu_ffn": True, "mlp_ratio": 1.5, "qkv_bias": False},
    "no-qkv-bias": {"qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 2},
    "wide-patches": {"patch_size": [3, 5], "image_size": 15, "num_channels": 1},
    "pixels-left-over": {"image_size": [13, 13], "hidden_act": "gelu_new", "mlp_ratio": 2.7},
    "norm-eps": {"layer_norm_eps": 1e-2, "num_attention_heads": 1, "layerscale_value": 0.1},
    "one-patch": {"image_size": 4, "num_hidden_layers": 1, "num_channels": 4, "num_labels": 1},
    "no-mask-token": {"use_mask_token": False, "hidden_act": "silu", "drop_path_rate": 0.2},
}


@pytest.mark.parametrize("options", DINOV2.values(), ids=DINOV2)
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_options(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    if kind == "Dinov2WithRegisters":
        options = {name: v for name, v in options.items() if name != "use_mask_token"}
    same_pictures(tmp_path, random_dinov2(kind, "ForImageClassification", **options))


@pytest.mark.parametrize("options", [{}, {"use_swiglu_ffn": True, "num_register_tokens": 1}])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_features(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    if kind == "Dinov2":
        options = {name: v for name, v in options.items() if name != "num_register_tokens"}
    same_pictures(tmp_path, random_dinov2(kind, "Model", **options), "pooler_output")


# -- CLIP ------------------------------------------------------------------------------------------

CLIP: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "end-2": ({"eos_token_id": 2}, {}, {}),
    "end-0": ({"eos_token_id": 0}, {"hidden_act": "gelu"}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new"}, {"projection_dim": 3}),
    "one-head": ({"num_attention_heads": 1}, {"num_attention_heads": 24}, {}),
    "norm-eps": ({"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-3}, {}),
    "left-over": ({"num_hidden_layers": 1}, {"image_size": 13, "num_channels": 1}, {}),
    "one-patch": ({"hidden_act": "relu"}, {"image_size": 4, "patch_size": 4}, {}),
}
"""Options of the text tower, of the picture tower, of both."""

clip_options = pytest.mark.parametrize("options", CLIP.values(), ids=CLIP)

TEXTS = ([5, 3, 28, 7], [28], [4, 28], [9, 2, 2, 11, 28, 6, 3], [1, 2, 3])
"""Of lengths 4, 1, 2 and 7, with something behind the end; and one without an end."""


def padded(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    longest = max(map(len, texts))
    ids = [[*t, *[1] * (longest - len(t))] for t in texts]
    mask = [[1] * len(t) + [0] * (longest - len(t)) for t in texts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@clip_options
def test_clip_options(tmp_path: Path, options: Any) -> None:
    """Several texts as one batch of transformers and as one input of ours, and each by itself."""
    loaded = random_clip("CLIPModel", *options)
    loaded.save_pretrained(tmp_path)
    x = pictures(loaded)
    how = {"pixel_values": torch.tensor(x)} | padded(TEXTS)
    expected = theirs(loaded, "logits_per_image", **how)
    model = refl.load(tmp_path, dtype="float64")
    assert model.task == "similarity"
    texts = [list(t) for t in TEXTS]
    agree(np.stack([model.logits((texts, one))[0] for one in x]), expected)
    agree(model.trace([(texts, one) for one in x])[1].array[:, 0], expected)
    each = [[model.logits((t, one))[0, 0] for t in texts] for one in x]
    agree(np.array(each), expected)
    pairs = list(zip(texts, [x[0], x[1], x[2], x[0], x[1]], strict=True))
    together = model.trace(pairs)[1].array[:, 0, 0]  # texts of several lengths, padded
    agree(together, expected[[0, 1, 2, 0, 1], range(5)])


@pytest.mark.parametrize("end", ["", "WithProjection"])
@clip_options
def test_clip_text_towers(tmp_path: Path, options: Any, end: str) -> None:
    loaded = random_clip(f"CLIPTextModel{end}", *options)
    loaded.save_pretrained(tmp_path)
    output = "text_embeds" if end else "pooler_output"
    expected = theirs(loaded, output, **padded(TEXTS))
    model = refl.load(tmp_path, dtype="float64")
    assert model.task == "class"
    agree(np.stack([model.logits(list(t))[0] for t in TEXTS]), expected)
    agree(model.trace([list(t) for t in TEXTS])[1].array[:, 0], expected)


@pytest.mark.parametrize("end", ["", "WithProjection"])
@clip_options
def test_clip_picture_towers(tmp_path: Path, options: Any, end: str) -> None:
    output = "image_embeds" if end else "pooler_output"
    same_pictures(tmp_path, random_clip(f"CLIPVisionModel{end}", *options), output)


@clip_options
def test_clip_classifier(tmp_path: Path, options: Any) -> None:
    same_pictures(tmp_path, random_clip("CLIPForImageClassification", *options))


def test_older_names_of_the_towers_options(tmp_path: Path) -> None:
    """text_config_dict and vision_config_dict win, with their own defaults: 49407 ends a text."""
    loaded = random_clip("CLIPModel", {"eos_token_id": 2}, {}, {})
    loaded.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    few = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    few += ("num_attention_heads", "max_position_embeddings", "image_size", "patch_size")
    for tower in ("text", "vision"):
        old = raw[f"{tower}_config"]
        raw[f"{tower}_config_dict"] = {name: old[name] for name in few if name in old}
        raw[f"{tower}_config"] |= {"hidden_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    again = transformers.CLIPModel.from_pretrained(tmp_path)
    both = again.config
    assert both.text_config.eos_token_id == 49407
    both.torch_dtype = both.text_config.torch_dtype = both.vision_config.torch_dtype = None
    x = pictures(again, 1)
    how = {"pixel_values": torch.tensor(x)} | padded(TEXTS)
    expected = theirs(again, "logits_per_image", **how)
    model = refl.load(tmp_path, dtype="float64")
    agree(model.logits(([list(t) for t in TEXTS], x[0])), expected)


# -- relevance: torch's gradient of the frozen modules ---------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own modules as the function whose gradient AttnLRP is at eps -> 0: norms with
    their scale, activations with f(x)/x held, products as the mean of one factor live at a time.
    """
    from transformers.activations import QuickGELUActivation
    from transformers.models.clip import modeling_clip

    functional, matmul = torch.nn.functional, torch.matmul
    gelu, norm = functional.gelu, modeling_clip._get_vector_norm

    def halves(a: Any, b: Any) -> Any:
        return (matmul(a, b.detach()) + matmul(a.detach(), b)) / 2

    def layer_norm(x: Any, shape: Any, w: Any, b: Any, eps: float) -> Any:
        std = (x.var(-1, keepdim=True, correction=0) + eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / std * w + b

    def quick_gelu(self: Any, x: Any) -> Any:
        return x * torch.sigmoid(1.702 * x).detach()

    monkeypatch.setattr(torch, "matmul", halves)
    monkeypatch.setattr(functional, "layer_norm", layer_norm)
    monkeypatch.setattr(functional, "gelu", lambda x, **_: x * (gelu(x) / x).detach())
    monkeypatch.setattr(QuickGELUActivation, "forward", quick_gelu)
    monkeypatch.setattr(modeling_clip, "_get_vector_norm", lambda x: norm(x).detach())


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("options", [CLIP["plain"], CLIP["end-2"], CLIP["one-head"]])
def test_clips_relevance_on_both_sides(tmp_path: Path, options: Any) -> None:
    """Of three texts the second, and the first less the third; on pixels and on tokens."""
    loaded = random_clip("CLIPModel", *options)
    loaded.save_pretrained(tmp_path)
    texts, x = [list(t) for t in TEXTS[:4:2] + TEXTS[4:]], pictures(loaded, 1)
    model = refl.load(tmp_path, dtype="float64")
    embedded: list[Any] = []

    def leaf(module: Any, args: Any, out: Any) -> Any:
        embedded.append(out.detach().requires_grad_())
        return embedded[-1]

    with wide():
        twin = widened(loaded)
        twin.text_model.embeddings.token_embedding.register_forward_hook(leaf)
        pixels = torch.tensor(x, requires_grad=True)
        z = twin(pixel_values=pixels, **padded(texts)).logits_per_image[0]
    for how, explained in (({"target": 1}, z[1]), ({"contrast": (0, 2)}, z[0] - z[2])):
        g_x, g_h = torch.autograd.grad(explained, (pixels, embedded[0]), retain_graph=True)
        e = model.explain((texts, x[0]), "attnlrp-gradient", **how)
        agree(e.pixels, (pixels * g_x).sum(1)[0].detach().numpy())
        found = (embedded[0] * g_h).sum(-1).detach().numpy()
        for text, row in zip(e.of_texts, found, strict=True):
            length = len(text.tokens)
            assert np.abs(text.relevance - row[:length]).max() < 1e-12 * np.abs(found).max()
            assert np.abs(row[length:]).max(initial=0.0) == 0


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2s_relevance(tmp_path: Path, kind: str) -> None:
    loaded = random_dinov2(kind, "ForImageClassification", layerscale_value=0.5)
    loaded.save_pretrained(tmp_path)
    x = pictures(loaded, 1)
    with wide():
        pixels = torch.tensor(x, requires_grad=True)
        z = widened(loaded)(pixel_values=pixels).logits[0]
    (g,) = torch.autograd.grad(z[3], pixels)
    e = refl.load(tmp_path, dtype="float64").explain(x[0], "attnlrp-gradient", target=3)
    agree(e.relevance, (pixels * g).sum(1)[0].detach().numpy())


# -- preparation -----------------------------------------------------------------------------------

PREPARATIONS: dict[str, dict[str, Any]] = {
    "silent": {"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 12}},
    "old-sizes": {"size": 16, "crop_size": 12},
    "bilinear": {"size": 13, "crop_size": 12, "resample": 2, "image_std": [0.2, 0.3, 0.25]},
    "crop-larger": {"size": 9, "crop_size": {"height": 12, "width": 11}},
    "both-edges": {"size": {"height": 14, "width": 17}, "crop_size": 12},
    "no-crop": {"size": {"height": 12, "width": 12}, "do_center_crop": False},
    "no-resize": {"do_resize": False, "crop_size": 12, "rescale_factor": 0.01},
}


@pytest.mark.parametrize("options", PREPARATIONS.values(), ids=PREPARATIONS)
@pytest.mark.parametrize("family", ["CLIP", "Bit"])
@pytest.mark.parametrize("shape", [(31, 24), (13, 47), (12, 12)])
@pytest.mark.parametrize("left_out", [False, True], ids=["saved", "sparse"])
def test_preparation(
    tmp_path: Path, family: str, options: dict[str, Any], shape: tuple[int, int], left_out: bool
) -> None:
    """transformers computes in float32: that is the bound."""
    from refl.io.images import read_preparation

    pytest.importorskip("PIL", reason="Pillow is not installed (the extra 'image')")
    processor = getattr(transformers, f"{family}ImageProcessor")(**options)
    processor.save_pretrained(tmp_path)
    if left_out:
        said = {"image_processor_type": f"{family}ImageProcessor"} | options
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    array = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    how = {"return_tensors": "np", "input_data_format": "channels_last"}
    wanted = processor(array, **how)["pixel_values"][0]
    preparation = read_preparation(tmp_path, {"CLIP": "clip", "Bit": "dinov2"}[family])
    assert preparation is not None
    ours, picture = preparation(array, 3)
    assert ours.shape == wanted.shape and picture.shape == (*ours.shape[1:], 3)
    assert np.abs(ours - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max())


# -- positions for pictures of another size --------------------------------------------------------


@pytest.mark.parametrize("side", [4, 8, 11, 14, 20, 33])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_positions_are_interpolated(tmp_path: Path, kind: str, side: int) -> None:
    """preprocessor_config.json says which size: of 1, 2, 2, 3, 5 and 8 patches a side for 3. In
    float32, too, where transformers interpolates for a float64 model.
    """
    loaded = random_dinov2(kind, "ForImageClassification")
    loaded.save_pretrained(tmp_path)
    transformers.BitImageProcessor(size=side, crop_size=side).save_pretrained(tmp_path)
    x = np.random.default_rng(1).standard_normal((2, 3, side, side))
    expected = theirs(loaded, "logits", pixel_values=torch.tensor(x))
    model = refl.load(tmp_path, dtype="float64")
    assert model.config.image == (side, side)
    agree(np.stack([model.logits(one)[0] for one in x]), expected)
    with torch.no_grad():
        narrow = loaded(pixel_values=torch.tensor(x).float()).logits.numpy()
    ours = refl.load(tmp_path).logits(x[0].astype(np.float32))[0]
    assert np.abs(ours - narrow[0]).max() < 1e-5 * np.abs(narrow).max()


@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_is_torchs(antialias: bool) -> None:
    from refl.nets.dinov2 import antialiased, bicubic, interpolated

    for n, m in ((37, 16), (3, 7), (1, 4), (16, 37), (5, 5)):
        p = np.random.default_rng(n).standard_normal((1, 1 + n * n, 6))
        grid = torch.tensor(p[:, 1:]).reshape(1, n, n, 6).permute(0, 3, 1, 2)
        how: dict[str, Any] = {"mode": "bicubic", "antialias": antialias}
        wanted = torch.nn.functional.interpolate(grid, size=(m, m), **how)
        wanted = wanted.permute(0, 2, 3, 1).reshape(1, m * m, 6).numpy()
        found = interpolated(p, (antialiased if antialias else bicubic)(n, m))
        assert np.array_equal(found[:, :1], p[:, :1])
        assert np.abs(found[:, 1:] - wanted).max() < 64 * 2.0**-53 * np.abs(p).max()
