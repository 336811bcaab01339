"""Vision transformers without another library: stored outputs, the frozen surrogate, the
conservation ledger, a net swept by hand, pictures, the views.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend
from checkpoints import checkpoint
from safetensors.numpy import load_file
from surrogate_truth import Truth

import refl
from refl import cli
from refl.cli.command import BAD_INPUT
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.io.images import Preparation, read_preparation
from refl.model import Model
from refl.rules.composites import Rule
from refl.rules.published import ATTNLRP_VIT, METHODS
from refl.show import heatmap, terminal
from refl.show.colors import DRAWING
from refl.show.notebook import fragment
from refl.show.page import html
from refl.show.text import cells
from refl.verification.random_models import DEIT, VIT, moved, random_model

REAL = ("vit_455_hf", "vit_mnist_012_hf")
RANDOM: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit, no bias on q, k, v, relu": VIT
    | {"qkv_bias": False, "hidden_act": "relu", "num_channels": 1},
    "vit, pixels left over": VIT
    | {"image_size": [9, 14], "num_hidden_layers": 1, "hidden_act": "gelu_new"},
    "vit, pooler": VIT | {"architectures": ["ViTModel"], "pooler_output_size": 6},
    "deit": VIT | {"model_type": "deit", "hidden_act": "quick_gelu"},
    "deit with teacher": DEIT,
}
NETS = (*REAL, *RANDOM)
BOX = {"low": -2.0, "high": 2.0}


@cache
def net(name: str, dtype: str = "float64") -> Model:
    if name in REAL:
        return refl.load(checkpoint(name), dtype=dtype)
    plain = Preparation(size=None, resample=2, crop=None, factor=1 / 255, mean=(0.5,), std=(0.25,))
    return replace(random_model(RANDOM[name], 8, dtype), preparation=plain)


def stored(name: str) -> dict[str, Any]:
    with np.load(checkpoint(name) / "golden.npz") as file:
        return dict(file)


def pictures(name: str, count: int = 3) -> list[Any]:
    """uint8 pictures the net takes: real ones where there are any."""
    if name in REAL:
        return list(stored(name)["images"][:count])
    c = net(name).config
    shape = (count, *c.image, c.num_channels)
    return list(np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8))


def near(ours: Any, expected: Any, bound: float) -> None:
    """Within `bound` of the largest expected number."""
    assert ours.shape == expected.shape
    deviation = float(np.abs(ours - expected).max() / (np.abs(expected).max() or 1.0))
    assert deviation <= bound, f"{deviation:.2e} of the largest"


# -- forward ---------------------------------------------------------------------------------------


FLOAT32_SOFTMAX = 2e-7
"""What the stored outputs are good to: transformers forms the softmax in float32 (measured 7.5e-8).
Against transformers with that lifted tests/peers/test_vision.py finds 1e-10."""


@pytest.mark.parametrize("name", REAL)
def test_stored_logits(name: str) -> None:
    golden, model = stored(name), net(name)
    near(
        np.stack([model.logits(image)[0] for image in golden["images"]]),
        golden["logits"],
        FLOAT32_SOFTMAX,
    )
    assert [int(model.logits(image)[0].argmax()) for image in golden["images"]] == golden[
        "labels"
    ].tolist()


@pytest.mark.parametrize("name", REAL)
def test_stored_hidden_states(name: str) -> None:
    """The embeddings, which no softmax has touched, to rounding; then what leaves each block, the
    last one normed.
    """
    golden, model = stored(name)["hidden"], net(name)
    for b, e in enumerate(model.explain(pictures(name, 4))):
        near(e.activation("vit.embeddings"), golden[0, b], 1e-13)
        for i in range(1, len(golden) - 1):
            near(e.activation(f"vit.encoder.layer.{i - 1}"), golden[i, b], FLOAT32_SOFTMAX)


def test_names_of_modules_are_sites() -> None:
    e = net("vit").explain(pictures("vit")[0])
    sites = set(e) | set(e.sites.aliases)
    for module in (
        "vit",
        "vit.embeddings",
        "vit.embeddings.patch_embeddings",
        "vit.embeddings.patch_embeddings.projection",
        "vit.embeddings.dropout",
        "vit.encoder",
        "vit.encoder.layer.0",
        "vit.encoder.layer.1.attention.attention.query",
        "vit.encoder.layer.1.attention.output.dense",
        "vit.encoder.layer.0.attention",
        "vit.encoder.layer.0.intermediate.intermediate_act_fn",
        "vit.encoder.layer.0.output",
        "vit.encoder.layer.1.layernorm_after",
        "vit.layernorm",
        "classifier",
    ):
        assert module in sites, module
        assert f"{module}.input" in sites or module.endswith("dropout"), module


# -- relevance -------------------------------------------------------------------------------------

SMALL = ("vit_455_hf", *RANDOM)


def is_stage(site: str) -> bool:
    """The pixels, the patches, their sum with the positions, and every block's output."""
    first = ("pixel_values", "embeddings.dropout", "projection", "joined")
    return site.endswith(first) or (site.endswith(".output") and site.count(".") == 4)


@cache
def truth(name: str) -> Truth:
    return Truth(net(name), pictures(name)[0])


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "cp-lrp", "input-x-gradient"])
@pytest.mark.parametrize("name", SMALL)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At the pixels, at the patches and behind every block."""
    how = {"eps": 1e-14} if method == "attnlrp" else {}
    assert len(truth(name).sites(is_stage)) == 4 + net(name).config.num_hidden_layers
    assert truth(name).deviation(method, is_stage, **how) <= 1e-9


def test_relevance_of_a_larger_net() -> None:
    """The real one of four blocks, at its pixels and behind the second and the last of them."""
    sites = ("pixel_values", "vit.encoder.layer.1.output", "vit.encoder.layer.3.output")
    t = truth("vit_mnist_012_hf")
    assert len(t.sites(sites.__contains__)) == len(sites)
    assert t.deviation("attnlrp-gradient", sites.__contains__) <= 1e-9


def configured() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = [
        (name, {}) for name in METHODS if name != "lxt-explicit"
    ]
    return found + [
        (name, {"eps": eps})
        for name in ("attnlrp", "attnlrp-vit", "cp-lrp-vit")
        for eps in (1e-9, 1e-2)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_the_ledger_closes(name: str, dtype: str) -> None:
    """At every operation within 8 u sum|terms|, and as a whole:
    explained = pixels + everything absorbed.
    """
    model = net(name, dtype)
    u = float(np.finfo(dtype).eps) / 2
    for method, how in configured():
        for keep in ("*", ()):
            e = model.explain(pictures(name)[0], method, keep=keep, audit=True, **how)
            for entry in e.ledger:
                assert entry.rounding_scale is not None
                assert abs(entry.conservation_error) <= 8 * u * entry.rounding_scale, (
                    f"{method} {how}: {entry.site} ({entry.operation})"
                )
            turnover = sum(
                abs(float(a)) for entry in e.ledger for a in entry.absorbed.values()
            ) + abs(e.explained)
            assert (
                abs(e.ledger.conservation_error)
                <= {"float32": 1e-5, "float64": 1e-12}[dtype] * turnover
            ), method
            if method != "gradient":
                pixels = float(e.relevance.astype(np.float64).sum())
                assert pixels == pytest.approx(
                    float(e.ledger.tokens), rel=1e-4, abs=1e-5 * turnover
                )


@pytest.mark.parametrize("name", ["vit", "deit with teacher"])
def test_account_names_what_absorbed(name: str) -> None:
    account = net(name).explain(pictures(name)[0]).ledger
    learned = {"class_token", "position"} | ({"distillation_token"} if "deit" in name else set())
    assert learned <= set(account.absorbed) and account.destination == "pixels"
    assert "pixels" not in account.absorbed


@pytest.mark.parametrize(
    "method", ["attnlrp", "attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit", "cp-lrp"]
)
@pytest.mark.parametrize("name", NETS)
def test_batch_invariance(name: str, method: str) -> None:
    """A picture's explanation does not depend on its neighbors;
    a list and one array of a batch are the same.
    """
    model, some = net(name), pictures(name)
    together = model.explain(some, method)
    for picture, e in zip(some, together, strict=True):
        alone = model.explain(picture, method)
        assert alone.target_id == e.target_id
        near(e.relevance, alone.relevance, 1e-12)
        near(e.patches, alone.patches, 1e-12)
        assert float(e.ledger.tokens) == pytest.approx(float(alone.ledger.tokens), rel=1e-11)
        assert e.ledger.absorbed.keys() == alone.ledger.absorbed.keys()


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize(
    "method", ["attnlrp", "attnlrp-gradient", "attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit"]
)
@pytest.mark.parametrize("name", ["vit", "vit, pixels left over", "deit with teacher"])
def test_every_backend(name: str, method: str, backend: Backend) -> None:
    """The array API standard and nothing beyond it; dtypes are kept."""
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-2)):
        home = net(name, dtype)
        away = moved(home, backend.place)
        for keep in ("*", ()):
            for here, there in zip(
                *(model.explain(pictures(name, 2), method, keep=keep) for model in (home, away)),
                strict=True,
            ):
                assert there.relevance.dtype == np.dtype(dtype) and list(here) == list(there)
                assert here.target_id == there.target_id
                near(there.relevance, here.relevance, bound)


def test_an_array_of_four_axes_is_a_batch() -> None:
    model, some = net("vit"), pictures("vit")
    x = np.stack([model.read(one).pixels for one in some])
    for one, other in zip(model.explain(x), model.explain(some), strict=True):
        assert np.array_equal(one.relevance, other.relevance)


@pytest.mark.parametrize("method", ["attnlrp-vit", "cp-lrp"])
def test_recomputed_blocks_give_the_same(method: str) -> None:
    model, picture = net("vit_mnist_012_hf"), pictures("vit_mnist_012_hf")[0]
    whole, again = (model.explain(picture, method, recompute=r, keep=()) for r in (False, True))
    assert np.array_equal(whole.relevance, again.relevance)


def test_targets_are_labels() -> None:
    model, picture = net("vit_mnist_012_hf"), pictures("vit_mnist_012_hf")[0]
    one, same = (
        model.explain(picture, target="1", keep=()),
        model.explain(picture, target=1, keep=()),
    )
    assert one.target_id == same.target_id == 1 and one.target == "1"
    against = model.explain(picture, contrast=("0", "2"), method="attnlrp-gradient", keep=())
    each = [
        model.explain(picture, target=t, method="attnlrp-gradient", keep=()).relevance
        for t in ("0", "2")
    ]
    near(against.relevance, each[0] - each[1], 1e-12)
    with pytest.raises(ReflError, match="unknown class 'dog'"):
        model.explain(picture, target="dog")


def test_relevance_is_the_sum_over_channels_and_patches_are_sums_of_pixels() -> None:
    e = net("vit").explain(pictures("vit")[0])
    assert (
        e.patches.shape == (2, 4)
        and e.relevance.shape == (8, 12)
        and e.tokens == []
        and e.input_ids == []
    )
    assert e.patches[1, 2] == pytest.approx(e.relevance[4:8, 6:9].sum(), rel=1e-12)
    assert e.relevance == pytest.approx(e["pixel_values"].sum(axis=0))


# -- the composites --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "inner"), [("vit", "vit"), ("deit with teacher", "deit")])
@pytest.mark.parametrize("method", ["attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit"])
def test_rules_where_the_paper_puts_them(name: str, inner: str, method: str) -> None:
    model = net(name)
    e = model.explain(pictures(name)[0], method)
    used = {entry.site: entry.rule for entry in e.ledger}
    block, table = f"{inner}.encoder.layer.1", METHODS[method]
    assert used[f"{inner}.embeddings.patch_embeddings.projection"] == (
        "z_box" if method.endswith("box") else "gamma"
    )
    for linear, role in (("intermediate.dense", "mlp.up"), ("output.dense", "mlp.down")):
        assert used[f"{block}.{linear}"] == "gamma"
        assert table.rule("linear", [f"{block}.{linear}"], role).options == {"gamma": 0.05}
    passing = ("value",) if method == "cp-lrp-vit" else ("query", "key", "value")
    assert (
        {used[f"{block}.attention.attention.{part}"] for part in passing}
        == {used[f"{block}.attention.output.dense"]}
        == {"epsilon"}
    )
    assert used.get(f"{block}.attention.attention.probabilities") == (
        None if method == "cp-lrp-vit" else "z_plus"
    )  # None: nothing comes
    patches = f"{inner}.embeddings.patch_embeddings.projection"
    gamma = METHODS["attnlrp-vit"].rule("linear", [patches], "patch_embedding")
    assert (gamma.name, gamma.options) == ("gamma", {"gamma": 0.25})


def test_z_box_has_the_pixels_bounds() -> None:
    model, picture = net("vit_mnist_012_hf"), pictures("vit_mnist_012_hf")[0]
    e = model.explain(picture, "attnlrp-vit-box")
    (line,) = (line for line in e.composite.as_dict()["rules"] if line["rule"] == "z_box")
    assert line["options"]["low"] == pytest.approx([-0.1307 / 0.3081]) and line["options"][
        "high"
    ] == pytest.approx([(1 - 0.1307) / 0.3081])
    mine = ATTNLRP_VIT.override(
        Rule(
            "linear",
            "z_box",
            "*projection",
            (("low", -0.1307 / 0.3081), ("high", (1 - 0.1307) / 0.3081)),
        )
    )
    near(e.relevance, model.explain(picture, mine).relevance, 1e-12)
    with pytest.raises(ReflError, match="needs the bounds of a pixel"):
        replace(model, preparation=None).explain(model.read(picture).pixels, "attnlrp-vit-box")


def test_z_box_stays_within_what_arrived() -> None:
    """No message has another sign than its relevance, so a patch's pixels hold no more, sign by
    sign, than its features got.
    """
    model, picture = net("vit_455_hf"), pictures("vit_455_hf")[0]
    e = model.explain(picture, "attnlrp-vit-box")
    arrived = np.abs(e["vit.embeddings.patch_embeddings.projection"]).sum(axis=-1).reshape(7, 7)
    within = np.abs(e.relevance).reshape(7, 4, 7, 4).sum(axis=(1, 3))
    assert np.all(within <= arrived * (1 + 1e-12))


# -- a net of 455 parameters, swept by hand --------------------------------------------------------


def test_vit_455_by_hand() -> None:
    """AttnLRP at eps -> 0 written out once more for this one net: a picture in, relevance of its
    pixels out, no line of the engine.
    """
    name = "vit_455_hf"
    w = {
        k: v.astype(np.float64)
        for k, v in load_file(checkpoint(name) / "model.safetensors").items()
    }
    picture = pictures(name)[0]
    layer = "vit.encoder.layer.0"
    x = (
        ((picture / 255 - 0.1307) / 0.3081)
        .reshape(7, 4, 7, 4)
        .transpose(0, 2, 1, 3)
        .reshape(49, 16)
    )

    def linear(h: Any, path: str) -> Any:
        return h @ w[f"{path}.weight"].reshape(len(w[f"{path}.weight"]), -1).T + w.get(
            f"{path}.bias", 0.0
        )

    def norm(h: Any, path: str) -> tuple[Any, Any]:
        std = np.sqrt(h.var(axis=-1, keepdims=True) + 1e-5)
        return (h - h.mean(axis=-1, keepdims=True)) / std * w[f"{path}.weight"] + w[
            f"{path}.bias"
        ], std

    projection = linear(x, "vit.embeddings.patch_embeddings.projection")
    joined = np.concatenate([w["vit.embeddings.cls_token"][0], projection])
    h0 = joined + w["vit.embeddings.position_embeddings"][0]
    n0, std0 = norm(h0, f"{layer}.layernorm_before")
    q, k, v = (
        linear(n0, f"{layer}.attention.attention.{part}").T for part in ("query", "key", "value")
    )  # four heads of one number
    scores = q[:, :, None] * k[:, None, :]
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    context = (p * v[:, None, :]).sum(axis=-1)
    h1 = linear(context.T, f"{layer}.attention.output.dense") + h0
    n1, std1 = norm(h1, f"{layer}.layernorm_after")
    up = linear(n1, f"{layer}.intermediate.dense")
    h2 = linear(np.maximum(up, 0), f"{layer}.output.dense") + h1
    n2, std2 = norm(h2, "vit.layernorm")
    z = linear(n2[0], "classifier")
    target = int(z.argmax())
    near(z, net(name).logits(picture)[0], 1e-13)

    def back(r: Any, h: Any, out: Any, path: str) -> Any:  # linear: x_i sum_j W_ji R_j / z_j
        return h * ((r / out) @ w[f"{path}.weight"].reshape(len(w[f"{path}.weight"]), -1))

    def unnorm(
        r: Any, h: Any, out: Any, std: Any, path: str
    ) -> Any:  # x times the transposed map at a frozen std
        s = r / out * w[f"{path}.weight"] / std
        return h * (s - s.mean(axis=-1, keepdims=True))

    r_n2 = np.zeros_like(n2)
    r_n2[0] = back(np.eye(3)[target] * z, n2[0], z, "classifier")
    r_h2 = np.zeros_like(h2)
    r_h2[0] = unnorm(r_n2[:1], h2[:1], n2[:1], std2[:1], "vit.layernorm")
    out = h2 - h1
    r_act = back(r_h2 * out / h2, np.maximum(up, 0), out, f"{layer}.output.dense")
    r_n1 = back(r_act, n1, np.where(up == 0, 1.0, up), f"{layer}.intermediate.dense")
    r_h1 = r_h2 * h1 / h2 + unnorm(r_n1, h1, n1, std1, f"{layer}.layernorm_after")
    out = h1 - h0
    r_context = back(r_h1 * out / h1, context.T, out, f"{layer}.attention.output.dense").T
    message = (
        p * v[:, None, :] * (r_context / (2 * context))[:, :, None]
    )  # to each probability, and as much to each value
    r_v, r_p = message.sum(axis=1), message
    r_s = scores * (r_p - p * r_p.sum(axis=-1, keepdims=True))
    r_q, r_k = r_s.sum(axis=-1) / 2, r_s.sum(axis=1) / 2
    parts = zip(("query", "key", "value"), (r_q, r_k, r_v), (q, k, v), strict=True)
    r_n0 = sum(
        back(r.T, n0, out.T, f"{layer}.attention.attention.{part}") for part, r, out in parts
    )
    r_h0 = r_h1 * h0 / h1 + unnorm(r_n0, h0, n0, std0, f"{layer}.layernorm_before")
    r_joined = r_h0 * joined / h0
    r_x = back(r_joined[1:], x, projection, "vit.embeddings.patch_embeddings.projection")
    by_hand = r_x.reshape(7, 7, 4, 4).transpose(0, 2, 1, 3).reshape(28, 28)

    e = net(name).explain(picture, "lrp-0", target=target)
    near(e["vit.encoder.layer.0"], r_h2, 1e-12)
    near(e["vit.encoder.layer.0.residual"], r_h1, 1e-11)
    near(e["vit.embeddings"], r_h0, 1e-11)
    near(e.relevance, by_hand, 1e-11)
    assert float(e.ledger.absorbed["class_token"]) == pytest.approx(r_joined[0].sum(), rel=1e-10)


# -- pictures --------------------------------------------------------------------------------------


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    image.fromarray(pictures("vit_mnist_012_hf")[0]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_a_file_and_its_array_are_the_same(digit: Path) -> None:
    model, array = net("vit_mnist_012_hf"), pictures("vit_mnist_012_hf")[0]
    for item in (digit, str(digit), array, array[..., None], model.read(array).pixels):
        assert np.array_equal(
            model.explain(item, keep=()).relevance, model.explain(array, keep=()).relevance
        )
    assert np.array_equal(model.explain(digit, keep=()).picture[..., 0], array)
    assert np.array_equal(model.read(model.read(array).pixels).picture[..., 0], array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_colors_of_a_file_become_the_models(tmp_path: Path, mode: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    image.fromarray(pictures("vit")[0]).convert(mode).save(tmp_path / "picture.png")
    assert net("vit").explain(tmp_path / "picture.png", keep=()).relevance.shape == (8, 12)


def test_gray_fills_every_channel() -> None:
    gray = pictures("vit")[0][..., 0]
    assert np.array_equal(
        net("vit").read(gray).pixels, net("vit").read(np.repeat(gray[..., None], 3, axis=-1)).pixels
    )


def spoiled(digit: Path, kind: str) -> Any:
    """A picture that is none, or not this model's."""
    x = net("vit_mnist_012_hf").read(digit).pixels
    if kind == "truncated":
        digit.write_bytes(digit.read_bytes()[:-40])
    if kind == "no picture":
        digit.write_text("cat")
    if kind == "empty":
        digit.write_bytes(b"")
    return {
        "missing": digit.parent / "none.png",
        "folder": digit.parent,
        "size": np.zeros((28, 27), dtype=np.uint8),
        "channels last": np.zeros((28, 28, 3), dtype=np.uint8),
        "channels first": np.zeros((3, 28, 28)),
        "nan": np.full_like(x, np.nan),
        "infinite": np.where(x == x.max(), np.inf, x),
        "whole numbers": np.zeros((1, 28, 28), dtype=np.int64),
        "complex": x.astype(complex),
        "flat": np.zeros(784),
        "no pixels": np.zeros((0, 0), dtype=np.uint8),
        "list": [],
        "text": "the keys to the cabinet",
    }.get(kind, digit)


BAD = {
    "truncated": "cannot be read as a picture",
    "no picture": "cannot be read as a picture",
    "empty": "cannot be read as a picture",
    "missing": "there is no picture",
    "folder": "there is no picture",
    "size": "28 x 27 once prepared, the model takes 28 x 28",
    "channels last": "3 channels in its last axis, the model takes 1",
    "channels first": "3 channels in its first axis, the model takes 1",
    "nan": "not finite",
    "infinite": "not finite",
    "whole numbers": "dtype int64",
    "complex": "dtype complex128",
    "flat": r"shape \(784,\)",
    "no pixels": r"shape \(0, 0, 1\)",
    "list": "the input is empty",
    "text": "there is no picture 'the keys",
}


@pytest.mark.parametrize(("kind", "named"), BAD.items(), ids=BAD)
def test_bad_pictures(digit: Path, kind: str, named: str) -> None:
    with pytest.raises(ReflError, match=named) as refusal:
        net("vit_mnist_012_hf").explain(spoiled(digit, kind))
    assert "\n" not in str(refusal.value)


def test_deep_colors_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    image.fromarray(np.zeros((28, 28), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ReflError, match="eight bits"):
        net("vit_mnist_012_hf").explain(tmp_path / "deep.png")


def test_without_pillow(digit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ReflError, match=r"pictures need Pillow: pip install .*\[image\]"):
        net("vit_mnist_012_hf").explain(digit)
    net("vit_mnist_012_hf").explain(pictures("vit_mnist_012_hf")[0], keep=())


def test_without_a_preparation() -> None:
    model, picture = replace(net("vit_455_hf"), preparation=None), pictures("vit_455_hf")[0]
    with pytest.raises(ReflError, match=r"no preprocessor_config\.json"):
        model.explain(picture)
    e = model.explain(net("vit_455_hf").read(picture).pixels, keep=())
    assert e.picture.dtype == np.uint8 and e.picture.min() == 0 and e.picture.max() == 255


PREPARATIONS: list[tuple[dict[str, Any], str]] = [
    ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ({"do_pad": True}, "do_pad"),
    ({"do_resize": "yes"}, "do_resize"),
    ({"size": {"height": 3}}, "size"),
    ({"size": -1}, "size"),
    ({"size": [1, 2, 3]}, "size"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "shortest_edge"),
    ({"resample": 9}, "resample"),
    ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
    ({"image_std": [0.5, -1, 0.5]}, "image_std"),
    ({"image_mean": "gray"}, "image_mean"),
    ({"rescale_factor": None, "image_mean": []}, "image_mean"),
]


@pytest.mark.parametrize(
    ("changed", "named"), PREPARATIONS, ids=[f"{n}-{i}" for i, (_, n) in enumerate(PREPARATIONS)]
)
def test_strange_preparations_are_refused(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
    with pytest.raises(ReflError, match=named):
        read_preparation(tmp_path, "vit")


def test_mean_that_does_not_fit_the_channels() -> None:
    model = replace(net("vit"), preparation=Preparation(None, 2, None, 1.0, (0.1, 0.2), (0.5, 0.5)))
    with pytest.raises(ReflError, match="2 numbers in image_mean, the model takes 3 channels"):
        model.explain(pictures("vit")[0])


def test_shortest_edge(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 10}}))
    preparation = read_preparation(tmp_path, "vit")
    assert preparation is not None
    x, picture = preparation(np.zeros((20, 31, 3), dtype=np.uint8), 3)
    assert picture.shape == (10, 15, 3) and np.all(x == -1.0)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
    ({"hidden_act": "mish"}, "mish"),
    ({"pooler_act": "mish"}, "mish"),
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"patch_size": 40}, "patch_size"),
    ({"image_size": [8, 12, 1]}, "image_size"),
    ({"image_size": ["8", 12]}, "image_size"),
    ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
]


@pytest.mark.parametrize(
    ("changed", "named"), CONFIGS, ids=[f"{n}-{i}" for i, (_, n) in enumerate(CONFIGS)]
)
def test_strange_configs_are_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ReflError, match=named):
        random_model(VIT | changed, 0)


# -- the views and the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def explained() -> Explanation:
    e: Explanation = net("vit_mnist_012_hf", "float32").explain(
        pictures("vit_mnist_012_hf")[0], "attnlrp-vit", keep=()
    )
    return e


def test_terminal_view(explained: Explanation) -> None:
    text = terminal.text(explained, 80)
    assert "+ red: for" in text and "- blue: against" in text
    rows = [
        line.split()
        for line in text.splitlines()
        if line.split() and set(line.split()) <= {".", *(f"{i:+d}" for i in range(-9, 10))}
    ]
    assert [len(row) for row in rows] == [4, 4, 4, 4]
    assert any(cell in ("+9", "-9") for row in rows for cell in row)
    assert (
        "4 x 4 patches" in text and "what reached the pixels" in text and "next token" not in text
    )


@pytest.mark.parametrize(("columns", "width"), [(20, 80), (30, 80), (70, 60), (200, 40)])
def test_terminal_view_of_fine_grids(explained: Explanation, columns: int, width: int) -> None:
    """Nothing runs over the edge; where patches are too many, squares of them stand for them, and
    the sum is kept.
    """
    r = np.random.default_rng(0).standard_normal((columns, columns))
    fine = replace(explained, relevance=r, patch=(1, 1))
    lines = terminal.text(fine, width).splitlines()
    assert all(cells(line) <= max(width, 80) for line in lines)
    assert sum(sum(row) for row in terminal.summed(r, 3)) == pytest.approx(r.sum())


def test_html_view(explained: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an array it needs no Pillow."""
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    page = html(explained)
    assert (
        page.count("data:image/png;base64,") == 1
        and "img-src data:" in page
        and "<script" not in page
    )
    assert "The class" in page and "Every patch as a number" in page and "token ids" not in page
    assert "data:image/png;base64," in fragment(explained)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (64, 33, 3)])
def test_a_picture_is_written_as_png(shape: tuple[int, ...]) -> None:
    """As Pillow reads it, checksums and all."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with image.open(io.BytesIO(heatmap.encoded(pixels))) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(read), pixels)


def test_drawing(explained: Explanation) -> None:
    """Red for, blue against, gray where there is nothing,
    and the hottest pixels in the full color.
    """
    drawn = heatmap.drawn(explained.relevance, explained.picture).astype(int)
    times = drawn.shape[0] // 28
    assert drawn.shape == (28 * times, 28 * times, 3)
    small, r = drawn[::times, ::times], explained.relevance
    most = heatmap.strongest(r)
    hot, cold, still = r > 0.2 * most, r < -0.2 * most, np.abs(r) < 1e-4 * most
    assert np.all(small[hot][:, 0] > small[hot][:, 2]) and np.all(
        small[cold][:, 2] > small[cold][:, 0]
    )
    assert np.all(np.ptp(small[still], axis=-1) <= 1)
    assert tuple(small[np.unravel_index(r.argmax(), r.shape)]) == DRAWING[1]


@pytest.mark.parametrize(
    "relevance",
    [np.zeros((28, 28)), np.full((28, 28), np.nan), np.eye(28)],
    ids=["nothing", "nan", "line"],
)
def test_drawing_of_nothing(explained: Explanation, relevance: Any) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    assert heatmap.png(relevance, explained.picture).startswith(b"\x89PNG")


def run(*words: Any) -> int:
    return cli.main([str(word) for word in words])


def test_command_line(digit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = pytest.importorskip("PIL.Image"), digit.parent
    folder = checkpoint("vit_mnist_012_hf")
    words = ("explain", digit, "--model", folder, "--method", "attnlrp-vit", "--target", "0")
    assert (
        run(
            *words,
            "--png",
            out / "o.png",
            "--html",
            out / "o.html",
            "--save",
            out / "o.safetensors",
        )
        == 0
    )
    answer = capsys.readouterr().out
    assert "logit of '0'" in answer and "pixels" in answer and "o.png" in answer
    with image.open(out / "o.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) >= 500
    saved = load_file(out / "o.safetensors")
    assert saved["relevance"].shape == (28, 28) and saved["picture"].shape == (28, 28, 1)
    assert saved["relevance/pixel_values"].sum(axis=0) == pytest.approx(saved["relevance"])


def test_command_line_json_and_trace(digit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint("vit_455_hf")
    assert run("explain", digit, "--model", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        np.sum(told["relevance"]) == pytest.approx(told["ledger"]["tokens"], rel=1e-4)
        and told["tokens"] == []
    )
    assert run("trace", digit, "--model", folder) == 0
    assert "vit.embeddings.patch_embeddings.projection" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("explain",), ("card", "L1.N3", "--draws", "1", "--example")])
def test_a_class_is_said_by_its_label_or_its_number(
    command: tuple[str, ...], digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `refl explain` reads it: a label before a number."""
    whole, folder = checkpoint("vit_mnist_012_hf"), digit.parent / "named"
    folder.mkdir()
    for name in ("model.safetensors", "preprocessor_config.json"):
        copyfile(whole / name, folder / name)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "zero", "1": "one", "2": "0"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    how = (*command, digit, "--model", folder, "--json")
    for number, label in (("1", "one"), ("2", "0")):
        told = []
        for said in (number, label):
            assert run(*how, "--target", said) == 0
            told.append(capsys.readouterr().out)
        assert told[0] == told[1]
    assert run(*how, "--contrast", "1", "0") == 0
    out = capsys.readouterr().out
    assert "one" in out and out != told[0]


REFUSED: list[tuple[Sequence[str], str]] = [
    (("explain", "{digit}", "--model", "{folder}", "--png", "{out}/no/o.png"), "no folder"),
    (
        ("explain", "{digit}", "--model", "{folder}", "--png", "{out}/o", "--html", "{out}/o"),
        "both name",
    ),
    (("explain", "the keys", "--png", "{out}/o.png"), "reads text"),
    (("explain", "nowhere.png", "--model", "{folder}"), "no picture 'nowhere.png'"),
    (("explain", "{digit}", "--model", "{folder}", "--target", "dog"), "unknown class 'dog'"),
    (("explain", "{digit}", "--model", "{folder}", "--keep", "nothing"), "names no site"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_command_line_refusals(
    digit: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], named: str
) -> None:
    """One sentence on standard error, and the exit code of bad input."""
    places = {"digit": digit, "folder": checkpoint("vit_455_hf"), "out": digit.parent}
    assert run(*(word.format(**places) for word in words)) == BAD_INPUT
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
