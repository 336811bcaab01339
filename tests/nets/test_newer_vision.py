"""DINOv2 and CLIP: what is special in them. A similarity is explained on both sides, half to the
picture and half to the texts; several texts are classes of the picture; learned factors are
weights; the vision composites find their roles without a line for these nets.

(Forwards are held against transformers in tests/peers/test_newer_vision.py; what every newer net
has to show is in test_newer.py.)
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of
from surrogate_truth import close

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.model import Model
from refl.rules.composites import Rule
from refl.rules.published import METHODS
from refl.show.figure import compare
from refl.show.page import html
from refl.show.terminal import terminal
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import (
    CLIP,
    CLIP_TEXT,
    CLIP_VISION,
    DINOV2,
    REGISTERS,
    random_model,
)

U = 2.0**-53
EOS3: dict[str, Any] = CLIP | {"text_config": CLIP["text_config"] | {"eos_token_id": 3}}


@cache
def net(name: str) -> Model:
    configs = {
        "clip": CLIP,
        "clip, end 3": EOS3,
        "clip vision": CLIP_VISION,
        "clip classes": CLIP | {"architectures": ["CLIPForImageClassification"]},
        "dinov2": DINOV2,
        "dinov2 registers": DINOV2 | REGISTERS,
    }
    return random_model(configs[name], 5)


def picture(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((3, 8, 8))


TEXTS = [[5, 9, 16, 1], [16], [2, 3, 4, 16, 7, 7]]
"""The token of the largest id ends each: in the third, two stand behind it."""


# -- the similarity, by loops ----------------------------------------------------------------------


def unit(x: Any) -> list[float]:
    length = math.sqrt(sum(float(v) ** 2 for v in x))
    return [float(v) / length for v in x]


def test_the_similarity_and_its_halves_by_loops() -> None:
    """z_k = e^scale sum_p u_p v_kp; each side of the product gets half of every term, and hands it
    through its normalization as it is.
    """
    model = net("clip")
    e = model.explain((TEXTS, picture()), "attnlrp-gradient", target=2, keep="*")
    x, y = e.activation("visual_projection")[0], e.activation("text_projection")
    scale = math.exp(float(model.weights["logit_scale"]))
    u, v = unit(x), [unit(row) for row in y]
    terms = [[scale * a * b for a, b in zip(u, row, strict=True)] for row in v]
    expected = [math.fsum(row) for row in terms]
    assert np.abs(e.activation("logits_per_image")[0] - expected).max() < 64 * U
    half = np.array(terms[2]) / 2
    assert np.abs(e["image_embeds"][0] - half).max() < 64 * U
    assert np.abs(e["text_embeds"][2] - half).max() < 64 * U
    assert not e["text_embeds"][:2].any()
    for site, embeds in (("visual_projection", "image_embeds"), ("text_projection", "text_embeds")):
        assert np.abs(e[site] - e[embeds]).max() < 64 * U


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp", "attnlrp-vit", "cp-lrp-vit", "lrp-0"])
def test_each_side_of_the_ledger_closes_on_half(method: str) -> None:
    """What reaches the tokens, with all that the text tower absorbs, is half of the similarity, and
    so is what reaches the pixels with all that the picture tower absorbs; but for the stabilizer
    at the product.
    """
    e = net("clip").explain((TEXTS[0], picture()), method, audit=True)
    sides = {"text": 0.0, "picture": 0.0, "": 0.0}
    for entry in e.ledger:
        texts = entry.site.startswith("text")
        both = entry.site in ("cosine", "logits_per_image")
        side = "" if both else "text" if texts else "picture"
        sides[side] += sum(entry.absorbed.values())
    half, bound = (e.explained - sides[""]) / 2, rounding_bound(e)
    assert abs(sides["text"] - half) < bound and abs(sides["picture"] - half) < bound
    assert abs(sides[""]) < 1e-5 * abs(e.explained)
    assert set(e.ledger.reached) == {"tokens", "pixels"}
    assert abs(e.relevance.sum() - e.ledger.reached["tokens"]) < bound
    assert abs(e.pixels.sum() - e.ledger.reached["pixels"]) < bound


# -- several texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "clip, end 3"])
def test_several_texts_are_each_as_alone(name: str) -> None:
    """Texts that stand one behind the other do not touch each other, in either layout of ends."""
    model, x = net(name), picture()
    for k, text in enumerate(TEXTS):
        e = model.explain((TEXTS, x), target=k, audit=True)
        alone, bound = model.explain((text, x), audit=True), rounding_bound(e)
        own = e.of_texts[k]
        assert abs(e.logit - alone.logit) < 64 * U
        close(own.relevance, alone.relevance, bound)
        close(e.pixels, alone.pixels, bound)
        assert own.tokens == alone.tokens and own.input_ids == text
        assert np.count_nonzero(e.relevance) == np.count_nonzero(own.relevance)


def test_either_side_is_drawn_alone() -> None:
    e = net("clip").explain((TEXTS, picture()), target=1)
    for text in e.of_texts:
        assert text.what == e.what and text.pixels is None
        assert all(token in text.svg() for token in text.tokens)
    assert "<svg" in e.of_picture.svg()
    with pytest.raises(ReflError, match="one of e.of_texts"):
        e.svg()


def test_what_stands_behind_the_end_has_no_relevance() -> None:
    e = net("clip").explain((TEXTS[2], picture()), "attnlrp")
    assert e.relevance[:4].all() and not e.relevance[4:].any()


def test_contrasts_and_probabilities_of_texts() -> None:
    """A contrast is the difference of its texts; a log-probability is that of the softmax."""
    model, x = net("clip"), picture()
    a, b = (model.explain((TEXTS, x), "attnlrp-gradient", target=k) for k in (0, 1))
    less = model.explain((TEXTS, x), "attnlrp-gradient", contrast=(0, 1))
    assert np.abs(less.pixels - (a.pixels - b.pixels)).max() < 1e-14
    assert np.abs(less.relevance - (a.relevance - b.relevance)).max() < 1e-14
    z = [c.logit for c in sorted(a.candidates, key=lambda c: c.id)]
    p = np.exp(z) / np.exp(z).sum()
    assert a.probability == pytest.approx(p[0], rel=1e-14)
    likely = model.explain((TEXTS, x), "attnlrp-gradient", seed="log-probability", target=0)
    assert likely.explained == pytest.approx(z[0] - np.dot(p, z), rel=1e-13)
    assert "text" in likely.what or "5 9 16 1" in likely.what
    alone = model.explain((TEXTS[0], x))
    assert math.isnan(alone.probability) and alone.what.startswith("similarity of '5 9 16 1'")
    with pytest.raises(ReflError, match="has none"):
        model.explain((TEXTS[0], x), seed="probability")


def test_attention_in_parts_keeps_texts_apart() -> None:
    """More tokens than attention holds at once."""
    text = CLIP["text_config"] | {"max_position_embeddings": 40}
    model, random = random_model(CLIP | {"text_config": text}, 5), np.random.default_rng(3)
    texts = [random.integers(1, 17, 30).tolist() for _ in range(5)]
    plain = model.explain((texts, picture()), target=3, keep="*", audit=True)
    parts = model.explain((texts, picture()), target=3, keep=())
    close(parts.relevance, plain.relevance, rounding_bound(plain))
    alone = model.explain((texts[3], picture()))
    assert abs(parts.logit - plain.logit) < 64 * U and abs(parts.logit - alone.logit) < 64 * U
    close(parts.of_texts[3].relevance, alone.relevance, rounding_bound(plain))


def test_pairs_of_a_batch_and_one_text_for_all() -> None:
    model, pictures = net("clip"), [picture(n) for n in range(3)]
    pairs = list(zip(TEXTS, pictures, strict=True))
    for (text, x), e in zip(pairs, model.explain(pairs, audit=True), strict=True):
        alone = model.explain((text, x))
        close(e.relevance, alone.relevance, rounding_bound(e))
        close(e.pixels, alone.pixels, rounding_bound(e))
    for x, e in zip(pictures, model.explain(pictures, text=TEXTS, target=1), strict=True):
        one = model.explain(x, text=TEXTS, target=1)
        assert e.target == "16" and np.allclose(e.pixels, one.pixels, rtol=0, atol=1e-13)
    first, second = model.explain_each((TEXTS, pictures[0]), [2, 0])
    assert (first.target_id, second.target_id) == (2, 0)


# -- learned factors, registers, the mean over patches ---------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "cp-lrp", "input-x-gradient"])
def test_learned_factors_hand_everything_on(method: str) -> None:
    e = net("dinov2 registers").explain(picture(), method, keep="*")
    assert e.activation("dinov2_with_registers.encoder.layer.0.layer_scale1").any()
    for block in (0, 1):
        path = f"dinov2_with_registers.encoder.layer.{block}"
        for site, before in (("layer_scale1", "attention"), ("layer_scale2", "mlp")):
            after, r = e[f"{path}.{site}"], e[f"{path}.{before}"]
            assert np.abs(after - r).max() <= 8 * U * np.abs(r).max() and r.any()
            assert not e[f"{path}.{site}.lambda1"].any()


def test_registers_are_no_patches() -> None:
    """They stand between class token and patches, without positions, and out of the mean."""
    model = net("dinov2 registers")
    e = model.explain(picture(), "attnlrp-gradient", keep="*")
    base = "dinov2_with_registers.embeddings"
    registers = model.weights[f"{base}.register_tokens"][0]
    assert np.array_equal(e.activation(base)[1:4], registers)
    h = e.activation("dinov2_with_registers.layernorm")
    mean = e.activation("classifier.mean")[0]
    assert np.abs(mean - [math.fsum(h[4:, d]) / 4 for d in range(h.shape[1])]).max() < 8 * U
    assert set(e.ledger.absorbed) >= {"register_token", "class_token", "position"}
    assert [e.top("*.layer.0", over=t, by="block").rows[0].token for t in (0, 1, 4)] == [
        *("class token", "register 0", "patch 0, 0"),
    ]


def test_positions_fit_the_pictures_that_are_prepared(tmp_path: Path) -> None:
    """Positions of 4 x 4 patches, pictures of 8 x 8 pixels: those of 2 x 2, of which the first is
    the sum of the nearest sixteen (three of each side beyond the edge) by the weights of cubic
    convolution at a quarter and its neighbors. (torch's are compared in tests/peers.)
    """
    config = DINOV2 | {"image_size": 16, "patch_size": 4}
    folder = checkpoint_of(tmp_path / "dinov2", config)
    stored = refl.load(folder, dtype="float64")
    prepared = {"image_processor_type": "BitImageProcessor", "size": 8, "crop_size": 8}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    model = refl.load(folder, dtype="float64")
    assert (stored.config.image, model.config.image) == ((16, 16), (8, 8))
    name = "dinov2.embeddings.position_embeddings"
    p = stored.weights[name][0]
    # halfway between two points: (-3, 19, 19, -3) / 32; the one beyond the edge is the edge's own
    row = [16 / 32, 19 / 32, -3 / 32]
    first = sum(row[i] * row[j] * p[1 + 4 * i + j] for i in range(3) for j in range(3))
    fitted = model.weights[name][0]
    assert fitted.shape == (5, 16) and np.array_equal(fitted[0], p[0])
    assert np.abs(fitted[1] - first).max() < 16 * U
    e = model.explain(picture(), "attnlrp-vit", audit=True)
    assert abs(e.ledger.conservation_error) <= rounding_bound(e)


# -- the vision composites -------------------------------------------------------------------------

VISION = ("attnlrp-vit", "cp-lrp-vit", "attnlrp-vit-box")


@pytest.mark.parametrize("method", VISION)
@pytest.mark.parametrize("name", ["dinov2", "dinov2 registers", "clip", "clip classes"])
def test_every_line_of_the_vision_composites_is_met(name: str, method: str) -> None:
    """By the roles alone: no line names a net. The ledger closes on what is explained."""
    model, composite = net(name), METHODS[method]
    item = (TEXTS[0], picture()) if model.compares else picture()
    if method.endswith("box"):
        bounds = (("low", -4.0), ("high", 4.0))
        rules = [_bounded(line, bounds) for line in composite.rules]
        composite = type(composite)(composite.name, tuple(rules), source=composite.source)
    e = model.explain(item, composite, audit=True)
    rules = {(entry.operation, entry.rule) for entry in e.ledger}
    softmax = {"attnlrp-vit": "z_plus", "attnlrp-vit-box": "z_plus", "cp-lrp-vit": "constant"}
    assert ("linear", "gamma") in rules and ("linear", "epsilon") in rules
    assert (("linear", "z_box") in rules) == method.endswith("box")
    assert ("softmax", softmax[method]) in rules or method == "cp-lrp-vit"
    by_site = {entry.site: entry.rule for entry in e.ledger if entry.operation == "linear"}
    patches = [site for site in by_site if "patch_embedding" in site]
    inner = [site for site in by_site if site.endswith(("query", "q_proj", "out_proj", "value"))]
    assert [by_site[site] for site in patches] == ["z_box" if "box" in method else "gamma"]
    assert inner and {by_site[site] for site in inner} == {"epsilon"}
    assert abs(e.ledger.conservation_error) <= rounding_bound(e)


def _bounded(line: Rule, bounds: Any) -> Rule:
    return replace(line, options=bounds) if line.rule == "z_box" else line


# -- what it looks like, and its file --------------------------------------------------------------


def test_the_oracle_file_holds_both_sides(tmp_path: Path) -> None:
    e = net("clip").explain((TEXTS, picture()), contrast=(2, 0), keep="*")
    e.save(tmp_path / "e.safetensors")
    again = Explanation.load(tmp_path / "e.safetensors")
    assert again.as_dict() == e.as_dict() and again.texts == [4, 1, 6]
    assert np.array_equal(again.pixels, e.pixels) and np.array_equal(again.image, e.image)
    assert again.patches.shape == (2, 2) and again.of_picture.relevance is again.pixels


@pytest.mark.parametrize("change", [{"texts": [4, 1]}, {"texts": None}, {"texts": [11, 0]}])
def test_an_oracle_file_of_half_a_pair_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    e = net("clip").explain((TEXTS, picture()), keep=())
    replace(e, **change).save(tmp_path / "e.safetensors")
    with pytest.raises(ReflError, match="texts"):
        Explanation.load(tmp_path / "e.safetensors")


def test_pages_and_the_terminal_show_both_sides() -> None:
    e = net("clip").explain((TEXTS, picture()), contrast=(2, 0))
    page = html(e)
    assert page.count("data:image/png") == 1 and page.count("compared with the picture") == 4
    said = "\n".join("".join(text for text, _ in line) for line in terminal(e, 80))
    assert "what reached the tokens" in said and "what reached the pixels" in said
    assert "2 x 2 patches" in said and said.count("compared with the picture") == 2
    assert "2 3 4 16 7 7" in said and "→" not in said
    with pytest.raises(ReflError, match="of_picture"):
        compare([e])


WORDS = (*"? a cat dog the photo of red blue b c d f g h i".split(), "<e>")  # noqa: SIM905
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<e>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<e>": {"id": "<e>", "ids": [16], "tokens": ["<e>"]}},
    },
    "model": {
        "type": "WordLevel",
        "vocab": {word: n for n, word in enumerate(WORDS)},
        "unk_token": "?",
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = checkpoint_of(tmp_path / "clip", CLIP | {"architectures": ["CLIPModel"]})
    (found / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    prepared = {"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 8}
    (found / "preprocessor_config.json").write_text(json.dumps(prepared))
    return found


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    levels = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    path = str(tmp_path / "cat.png")
    image.fromarray(levels).save(path)
    of = ["--image", path, "--model", str(folder)]
    files = ["--png", str(tmp_path / "why.png"), "--html", str(tmp_path / "why.html")]
    assert main(["explain", "a cat", *of, *files, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    model = refl.load(folder)
    assert one["target"] == "a cat" and one["tokens"] == ["a", "cat", "<e>"]
    assert one["logit"] == model.explain(("a cat", path)).logit and one["texts"] == [3]
    assert np.shape(one["pixels"]) == (8, 8) and (tmp_path / "why.png").stat().st_size > 50
    among = ["--among", "a dog", "the red photo", "--target", "a dog"]
    assert main(["explain", "a cat", *of, *among, "--json"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert several["target"] == "a dog" and 0 < several["probability"] < 1
    assert several["texts"] == [3, 3, 4]
    assert main(["trace", "a cat", *of]) == 0
    assert "logits_per_image" in capsys.readouterr().out
    assert main(["explain", "a cat", "--model", str(folder)]) == 2
    assert "give --image FILE" in capsys.readouterr().err
    assert main(["explain", "the keys", "--image", path]) == 2
    assert "leave --image and --among out" in capsys.readouterr().err
    assert main(["walk", "a cat", *of, "--html", str(tmp_path / "w.html")]) == 2
    capsys.readouterr()


# -- what is refused -------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    (DINOV2 | {"image_size": [8, 12]}, "image_size = .* interpolated"),
    (DINOV2 | {"num_register_tokens": 2}, "num_register_tokens"),
    (DINOV2 | {"architectures": ["Dinov2Backbone"]}, "Dinov2Backbone"),
    (DINOV2 | {"hidden_act": "mish"}, "mish"),
    (DINOV2 | {"model_type": "siglip"}, "siglip"),
    (CLIP | {"text_config": CLIP["text_config"] | {"mystery": 1}}, r"text_config\.mystery"),
    (CLIP | {"vision_config": CLIP["vision_config"] | {"mystery": 1}}, r"vision_config\.mystery"),
    (CLIP | {"text_config": CLIP["text_config"] | {"is_decoder": True}}, r"text_config\.is_dec"),
    (CLIP | {"text_config": 5}, "text_config = 5"),
    (CLIP | {"architectures": ["CLIPSegModel"]}, "CLIPSegModel"),
    (CLIP_VISION | {"image_size": [8, 8]}, "image_size"),
    (CLIP_TEXT | {"num_attention_heads": 3}, "does not divide"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        random_model(config, 0)


def test_an_option_inside_can_be_ignored(tmp_path: Path) -> None:
    config = CLIP | {"architectures": ["CLIPModel"]}
    folder = checkpoint_of(tmp_path / "clip", config)
    strange = config | {"text_config": CLIP["text_config"] | {"mystery": 1}}
    (folder / "config.json").write_text(json.dumps(strange))
    with pytest.raises(ReflError, match=r"ignore=\['text_config\.mystery'\]"):
        refl.load(folder)
    model = refl.load(folder, ignore=["text_config.mystery"])
    assert model.ignored == {"ignored options": "text_config.mystery"}
    with pytest.raises(ReflError, match=r"text_config\.nothing"):
        refl.load(folder, ignore=["text_config.mystery", "text_config.nothing"])


def test_inputs_that_are_no_pairs() -> None:
    model, x = net("clip"), picture()
    for item, words in [
        (x, r"\(text, image\)"),
        (([5],), r"\(text, image\)"),
        ((TEXTS[0], x[:2]), "channels"),
        ((list(range(1, 17)) * 2, x), "positions for 24"),
        ([(TEXTS[0], x), (TEXTS[:2], x)], "1, 2 texts"),
    ]:
        with pytest.raises(ReflError, match=words):
            model.explain(item)
    for how, words in [
        ({"target": "nothing"}, "none of the 3 texts"),
        ({"target": 3}, "none of the 3 texts"),
        ({"contrast": (0, 0)}, "two different"),
        ({"method": "integrated-gradients"}, "table of rules"),
        ({"position": 1}, "position="),
    ]:
        with pytest.raises(ReflError, match=words):
            model.explain((TEXTS, x), **how)
    with pytest.raises(ReflError, match="compares no pictures"):
        net("dinov2").explain(x, text="a cat")
    twice = model.explain(([[5], [5]], x), target=1)
    assert twice.target == "5"
    with pytest.raises(ReflError, match="2 of the texts"):
        model.explain(([[5], [5]], x), target="5")
