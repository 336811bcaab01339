"""Whisper: its forward by loops, what is read as log-mel features, both rows of its explanations
and how they are drawn and saved, continued texts, methods that are defined for it, refusals.

(Relevance against the surrogate, ledger, batches, backends: tests/nets/test_newer.py.)
"""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import product
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
from refl.methods import METHODS
from refl.model import Model
from refl.show import terminal
from refl.show.notebook import fragment
from refl.show.page import html
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import WHISPER, random_model

HEARD = [0, 5, 11]
DEFINED = {"integrated-gradients", "smoothgrad", "occlusion", "random"}
"""Methods that are no tables of rules, and are defined for log-mel features."""


@cache
def net(dtype: str = "float64") -> Model:
    return random_model(WHISPER, 3, dtype)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).standard_normal((5, 12))


# -- the forward -----------------------------------------------------------------------------------


def gelu(x: Any) -> Any:
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def plain_whisper(w: Any, c: dict[str, Any], x: Any, ids: list[int]) -> Any:  # -> (U, V)
    """The paper's model, by loops over frames, heads and queries."""

    def linear(name: str, x: Any) -> Any:
        bias = w.get(f"{name}.bias")
        return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(name: str, x: Any) -> Any:
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z * w[f"{name}.weight"] + w[f"{name}.bias"]

    def convolution(name: str, x: Any, stride: int) -> Any:  # (C, T) -> (O, T')
        kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        z = np.zeros((len(kernel), (x.shape[1] - 1) // stride + 1)) + bias[:, None]
        for n, k in product(range(z.shape[1]), range(3)):
            frame = stride * n + k - 1
            if 0 <= frame < x.shape[1]:
                z[:, n] += kernel[:, :, k] @ x[:, frame]
        return z

    def attend(name: str, x: Any, y: Any, heads: int, causal: bool) -> Any:
        q, k, v = (linear(f"{name}.{p}_proj", s) for p, s in (("q", x), ("k", y), ("v", y)))
        out, width = np.zeros_like(q), q.shape[1] // heads
        for h, j in product(range(heads), range(len(x))):
            of = slice(h * width, (h + 1) * width)
            s = np.array([q[j, of] @ k[i, of] / math.sqrt(width) for i in range(len(y))])
            e = np.exp(s - s.max())[: j + 1 if causal else None]
            out[j, of] = e @ v[: len(e), of] / e.sum()
        return linear(f"{name}.out_proj", out)

    def mlp(name: str, x: Any) -> Any:
        return linear(
            f"{name}.fc2", gelu(linear(f"{name}.fc1", norm(f"{name}.final_layer_norm", x)))
        )

    h = gelu(convolution("model.encoder.conv1", x, 1))
    h = gelu(convolution("model.encoder.conv2", h, 2)).T + w["model.encoder.embed_positions.weight"]
    for i in range(c["encoder_layers"]):
        b = f"model.encoder.layers.{i}"
        n = norm(f"{b}.self_attn_layer_norm", h)
        h = h + attend(f"{b}.self_attn", n, n, c["encoder_attention_heads"], False)
        h = h + mlp(b, h)
    encoded = norm("model.encoder.layer_norm", h)
    g = w["model.decoder.embed_tokens.weight"][ids]
    g = g + w["model.decoder.embed_positions.weight"][: len(ids)]
    for i in range(c["decoder_layers"]):
        b, heads = f"model.decoder.layers.{i}", c["decoder_attention_heads"]
        n = norm(f"{b}.self_attn_layer_norm", g)
        g = g + attend(f"{b}.self_attn", n, n, heads, True)
        n = norm(f"{b}.encoder_attn_layer_norm", g)
        g = g + attend(f"{b}.encoder_attn", n, encoded, heads, False)
        g = g + mlp(b, g)
    return norm("model.decoder.layer_norm", g) @ w["model.decoder.embed_tokens.weight"].T


def test_in_plain_numpy(x: Any) -> None:
    want = plain_whisper(dict(net().weights), WHISPER, x, HEARD)
    assert np.abs(net().logits(x, HEARD) - want).max() < 1e-12 * np.abs(want).max()


def test_a_text_is_continued_as_it_is_run_whole(x: Any) -> None:
    """From the cache: encoder, its keys and values, and the decoder's, are run once."""
    model = net()
    text = model.generate(x, 6)
    for n in range(1, 7):
        assert text[n] == model.logits(x, text[:n])[-1].argmax()
    assert model.generate(x, 3, decoder=text[:4]) == text
    assert len(model.generate(x, 100)) == 64  # no position is left
    for e, n in zip(model.explain_generated(x, 3), range(1, 4), strict=True):
        alone = model.explain(x, decoder=text[:n], target=text[n], audit=True)
        close(e.relevance, alone.relevance, rounding_bound(alone))
        close(e.decoder_relevance, alone.decoder_relevance, rounding_bound(alone))


# -- what is read ----------------------------------------------------------------------------------


def test_an_array_and_a_file(x: Any, tmp_path: Path) -> None:
    model, want = net(), net().explain(x, decoder=HEARD).relevance
    assert want.shape == (5, 12)
    np.save(tmp_path / "x.npy", x)
    for one in (tmp_path / "x.npy", str(tmp_path / "x.npy"), model.read(x), x.astype(np.float64)):
        assert np.array_equal(model.explain(one, decoder=HEARD).relevance, want)
    for several in ([x, x], np.stack([x, x]), (x, tmp_path / "x.npy")):
        for e in model.explain(several, decoder=[HEARD, HEARD]):
            assert np.allclose(e.relevance, want, rtol=0, atol=1e-13)


def test_refusals(x: Any, tmp_path: Path) -> None:
    model, broken = net(), np.where(np.arange(12) == 3, np.nan, x)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01\x00torn")
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    for wrong, named in (
        ("a text", r"no file \.npy"),
        (tmp_path / "sound.wav", "sound itself|no file"),
        (tmp_path / "none.npy", "does not exist"),
        (tmp_path / "objects.npy", r"cannot be read as \.npy"),
        (tmp_path / "torn.npy", r"cannot be read as \.npy"),
        (x[:4], r"\(4, 12\)"),
        (x[:, :-1], r"expected floats \(5, 12\)"),
        (x.astype(int), "int64"),
        ([], "the input is empty"),
        ([1, 2], "WhisperFeatureExtractor"),
        (None, "object"),
        (broken, "not finite"),
    ):
        with pytest.raises(ReflError, match=named):
            model.explain(wrong)
    with pytest.raises(ReflError, match="not finite in float32"):
        net("float32").explain(x * 1e60)
    with pytest.raises(ReflError, match="positions for 64"):
        model.explain(x, decoder=[0] * 65)
    with pytest.raises(ReflError, match="token types"):
        model.explain(x, types=[0])
    with pytest.raises(ReflError, match="outside the vocabulary"):
        model.explain(x, decoder=[17])
    with pytest.raises(ReflError, match="2 decoder texts for 1 inputs"):
        model.explain(x, decoder=[[0], [1]])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_or_refuses(name: str, x: Any) -> None:
    """In one sentence: tables of rules, and methods that ask for nothing but a net's input."""
    model = net()
    is_table = hasattr(METHODS[name], "composite") or name in refl_tables()
    if (is_table and name != "attnlrp-vit-box") or name in DEFINED:
        e = model.explain(x, name, decoder=HEARD)
        assert e.relevance.shape == (5, 12) and e.decoder_relevance.shape == (3,)
    else:
        with pytest.raises(ReflError, match=name.removesuffix("-box") + "|deleted"):
            model.explain(x, name, decoder=HEARD)


def refl_tables() -> set[str]:
    from refl.rules import published

    return set(published.METHODS)


def test_occlusion_by_a_loop(x: Any) -> None:
    """A patch is two frames of all bins: what is lost without it is spread over its numbers."""
    model = net()
    e = model.explain(x, "occlusion", decoder=HEARD, target=4)
    whole = model.logits(x, HEARD)[-1, 4]
    for n in range(6):
        without = x.copy()
        without[:, 2 * n : 2 * n + 2] = 0
        lost = whole - model.logits(without, HEARD)[-1, 4]
        assert np.allclose(e.relevance[:, 2 * n : 2 * n + 2], lost, rtol=1e-10, atol=1e-12)


def test_integrated_gradients_add_up(x: Any) -> None:
    e = net().explain(x, "integrated-gradients", decoder=HEARD, options={"steps": 8})
    assert abs(e.ledger.conservation_error) < 1e-12 * abs(e.explained)
    on_input = e.relevance.sum() + e.decoder_relevance.sum()
    assert e.ledger.tokens == pytest.approx(on_input, rel=1e-12)


@pytest.mark.parametrize("what", ["graph", "references", "judging", "patching", "answer"])
def test_what_is_not_there_says_so(what: str, x: Any, tmp_path: Path) -> None:
    from refl.evaluation.data import Item
    from refl.evaluation.patching import Pair
    from refl.evaluation.subject import Subject
    from refl.latent.graph import graph
    from refl.latent.references import references

    asked: dict[str, Any] = {
        "graph": lambda: graph(net(), x),
        "references": lambda: references(net(), tmp_path / "a.jsonl", tmp_path / "b"),
        "judging": lambda: Subject.read(net(), Item("one", x)),
        "patching": lambda: Pair.read(net(), x, x, 1, 2),
        "answer": lambda: net().explain_answer(x, [1, 2]),
    }
    with pytest.raises(ReflError, match="log-mel features"):
        asked[what]()


# -- what is answered ------------------------------------------------------------------------------


def test_both_rows_and_the_ledger(x: Any) -> None:
    e = net().explain(x, decoder=HEARD, audit=True)
    assert (e.tokens, e.input_ids, e.decoder_ids) == ([], [], HEARD)
    assert (e.decoder_tokens, e.position) == (["0", "5", "11"], 2)
    assert e.picture.shape == (5, 12, 1) and e.picture.dtype == np.uint8
    assert (e.picture.min(), e.picture.max()) == (0, 255)
    assert np.array_equal(e.picture[..., 0] == 255, x == x.max())
    assert np.allclose(e.patches[0], e.relevance.sum(axis=0).reshape(6, 2).sum(axis=1))
    found = e.ledger.reached
    assert list(found) == ["tokens", "pixels"]
    assert found["pixels"] == pytest.approx(e.relevance.sum(), rel=1e-12)
    assert found["tokens"] == pytest.approx(e.decoder_relevance.sum(), rel=1e-12)
    assert e.ledger.tokens == found["pixels"] + found["tokens"]
    assert "edge" not in e.ledger.absorbed  # zeros have no part in a sum
    assert np.array_equal(e["model.encoder.input_features"][0], e.relevance)


def test_what_the_edge_takes_is_recorded(x: Any) -> None:
    """By a rule that hands out to zeros too: the account is closed all the same."""
    from refl.rules.composites import Composite, Rule
    from refl.rules.published import METHODS as TABLES

    box = Rule(
        "linear", "z_box", role="patch_embedding", options=(("low", (-4.0,)), ("high", (4.0,)))
    )
    rules = (box, *TABLES["attnlrp"].rules)
    e = net().explain(x, Composite(name="boxed", rules=rules, source="", summary=""), decoder=HEARD)
    assert e.ledger.absorbed["edge"] != 0
    assert abs(e.ledger.conservation_error) < 1e-12 * abs(e.explained)


def test_saved_and_drawn(x: Any, tmp_path: Path) -> None:
    e = net().explain(x, decoder=HEARD)
    e.save(tmp_path / "e.safetensors")
    again = Explanation.load(tmp_path / "e.safetensors")
    assert np.array_equal(again.relevance, e.relevance) and again.patch == (5, 2)
    assert np.array_equal(again.decoder_relevance, e.decoder_relevance)
    assert again.as_dict() == e.as_dict()
    for one in (e, again):
        seen = terminal.text(one)
        assert "1 x 6 patches in ninths" in seen and "written by the decoder" in seen
        assert "what reached the pixels" in seen and "what reached the tokens" in seen
        for page in (str(html(one)), str(fragment(one))):
            assert "data:image/png" in page and "written by the decoder" in page
            assert "token 1, id 5" in page
    assert "written by the decoder, full at" in e.svg()


def test_neurons_are_of_patches_and_of_tokens(x: Any) -> None:
    e = net().explain(x, decoder=HEARD)
    found = {row.name.partition(".")[0]: row for row in e.top(k=68)}
    assert found["encoder"].token.startswith("patch 0, ")
    assert found["decoder"].token in ("0", "5", "11")


def test_on_the_command_line(x: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint_of(tmp_path / "whisper", WHISPER)
    np.save(tmp_path / "x.npy", x)
    asked = [str(tmp_path / "x.npy"), "--model", str(folder)]
    assert main(["explain", *asked, "--decoder-ids", "0", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    want = refl.load(folder).explain(x, decoder=[0, 5])
    assert said["target_id"] == want.target_id and said["decoder_ids"] == [0, 5]
    assert main(["generate", *asked, "--tokens", "2"]) == 0
    assert capsys.readouterr().out.split() == [*map(str, refl.load(folder).generate(x, 2))]
    assert main(["trace", *asked]) == 0
    assert "model.encoder.conv2.unfolded" in capsys.readouterr().out
    assert main(["graph", *asked]) == 2
    assert main(["explain", "sound.wav", "--model", str(folder)]) == 2
    assert "refl does not read" in capsys.readouterr().err
