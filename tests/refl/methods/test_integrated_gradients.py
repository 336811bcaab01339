"""Integrated gradients: closed forms on powers of a linear net, the quadrature entry, nodes where a
norm makes f jump, every architecture.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from tiny_nets import power

import refl
from refl.errors import ReflError
from refl.methods import METHODS, integrated_gradients
from refl.methods.integrated_gradients import IntegratedGradients, Path
from refl.verification.random_models import ARCHITECTURES, BERT, GPT2, LLAMA, T5, random_model

IDS = [3, 0, 5, 5, 1]
NAME = "integrated-gradients"
GAUSS = {"nodes": "gauss-legendre", "steps": 64}


def how(model: Any) -> dict[str, Any]:
    if model.task == "sequence-to-sequence":
        return {"decoder": [0, 4, 6]}
    return {"position": 2} if model.task == "masked-token" else {}


def item(model: Any) -> Any:
    if model.takes_images:
        return np.random.default_rng(0).standard_normal((3, 8, 12))
    return [3, 5, 7, 2, 9]


def quadrature(e: Any) -> float:
    return float(e.ledger.absorbed.get("quadrature", 0.0))


@pytest.mark.parametrize("nodes", ["adaptive", "gauss-legendre", "midpoint", "right-end", "log"])
def test_of_a_linear_net_it_is_weight_times_input(nodes: str) -> None:
    model, parts = power(1)
    e = model.explain(IDS, NAME, target=0, options={"nodes": nodes, "steps": 40})
    np.testing.assert_allclose(e.relevance, parts(IDS), rtol=1e-12)


@pytest.mark.parametrize(
    ("nodes", "integral"),  # of 3 t^2 by five nodes
    [
        ("gauss-legendre", Fraction(1)),
        ("adaptive", Fraction(1)),
        ("midpoint", sum(3 * Fraction(2 * k + 1, 10) ** 2 for k in range(5)) / 5),
        ("right-end", sum(3 * Fraction(k + 1, 5) ** 2 for k in range(5)) / 5),
    ],
)
def test_of_a_cube(nodes: str, integral: Fraction) -> None:
    """f = s^3: R_t = a_t s^2 times what the nodes make of the integral of 3 t^2."""
    model, parts = power(3)
    steps = 8 if nodes == "adaptive" else 5
    e = model.explain(IDS, NAME, target=0, options={"nodes": nodes, "steps": steps})
    a = parts(IDS)
    s = a.sum()
    np.testing.assert_allclose(e.relevance, a * s**2 * float(integral), rtol=1e-12)
    assert quadrature(e) == pytest.approx(s**3 * float(1 - integral), abs=1e-12)
    assert e.explained == pytest.approx(s**3, rel=1e-12)


def test_from_a_token() -> None:
    """f = s^3 from baseline b: the integral of 3 (b + t (s - b))^2 is s^2 + s b + b^2."""
    model, parts = power(3)
    e = model.explain(IDS, NAME, target=0, options={"baseline": 4} | GAUSS)
    a, b = parts(IDS), parts([4] * len(IDS))
    s, start = a.sum(), b.sum()
    expected = (a - b) * (s**2 + s * start + start**2)
    np.testing.assert_allclose(e.relevance, expected, rtol=1e-12)
    assert e.ledger.absorbed["baseline"] == pytest.approx(start**3, rel=1e-12)


@pytest.mark.parametrize("seed", ["logit", "log-probability", "probability", "contrast", "neuron"])
def test_complete_where_f_is_smooth(seed: str) -> None:
    """The sum of all tokens, held against two forward passes."""
    model, ids = random_model(GPT2, 1), [3, 5, 7, 2]
    asked: dict[str, Any] = {"target": 4, "seed": seed}
    if seed == "contrast":
        asked = {"contrast": (4, 6)}
    if seed == "neuron":
        asked = {"at": ("transformer.h.1.mlp", (2, 5))}
    e = model.explain(ids, NAME, options=GAUSS | {"steps": 200}, **asked)
    nothing = {"transformer.wte": refl.Edit(factor=0)}
    z, start = model.logits(ids)[-1], model.logits(ids, edits=nothing)[-1]
    if seed == "neuron":
        assert e.explained == pytest.approx(float(model.explain(ids, at=asked["at"]).logit))
    else:
        p, q = (np.exp(y - y.max()) / np.exp(y - y.max()).sum() for y in (z, start))
        ends = {
            "logit": (z[4], start[4]),
            "contrast": (z[4] - z[6], start[4] - start[6]),
            "probability": (p[4], q[4]),
            "log-probability": (np.log(p[4]), np.log(q[4])),
        }[seed]
        assert e.explained == pytest.approx(ends[0], rel=1e-12)
        assert e.ledger.absorbed["baseline"] == pytest.approx(ends[1], rel=1e-9)
        assert e.relevance.sum() == pytest.approx(ends[0] - ends[1], abs=1e-10)
    assert abs(quadrature(e)) < 1e-10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """The ledger closes, and one gradient at a time gives what a batch of them does."""
    model = random_model(ARCHITECTURES[name], 0)
    found = [
        model.explain(item(model), NAME, batch_tokens=n, options=GAUSS | {"steps": 6}, **how(model))
        for n in (1, 1024)
    ]
    for e in found:
        assert abs(e.ledger.conservation_error) <= 1e-12 * max(1, abs(e.explained))
        on_input = e.relevance.sum()
        if e.decoder_relevance is not None:
            on_input += e.decoder_relevance.sum()
        assert e.ledger.tokens == pytest.approx(on_input, rel=1e-9, abs=1e-12)
    size = np.abs(found[0].relevance).max()
    np.testing.assert_allclose(found[0].relevance, found[1].relevance, atol=1e-9 * size)


def test_both_sides_of_a_decoder() -> None:
    """One path over both: what is left is far below what either side gets."""
    model = random_model(T5 | {"feed_forward_proj": "gated-gelu"}, 0)
    e = model.explain([3, 5, 7], NAME, decoder=[0, 4], options={"tolerance": 1e-3})
    assert min(np.abs(e.relevance).sum(), np.abs(e.decoder_relevance).sum()) > 0.05
    assert abs(quadrature(e)) <= 1e-3 * abs(e.explained)


def test_adaptive_nodes_find_the_jump_that_even_ones_miss() -> None:
    """From zero embeddings, of a net with norms alone between them and the logits."""
    model = random_model(LLAMA, 0)
    f = model.explain(IDS, NAME, options=GAUSS).explained
    even = model.explain(IDS, NAME, options=GAUSS)
    found = model.explain(IDS, NAME)
    assert abs(quadrature(even)) > 0.1 * abs(f)
    assert abs(quadrature(found)) <= 1e-3 * abs(f)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes each sum over the path had."""
    found: list[int] = []
    plain = Path.integrals

    def counted(self: Path, nodes: Any, weights: Any, into: Any) -> Any:
        found.append(len(nodes))
        return plain(self, nodes, weights, into)

    monkeypatch.setattr(Path, "integrals", counted)
    return found


def test_no_more_gradients_than_steps(spent: list[int]) -> None:
    random_model(LLAMA, 0).explain(IDS, NAME, options={"steps": 100, "tolerance": 1e-9})
    assert 60 < sum(spent) <= 100


def test_no_more_than_it_takes(spent: list[int]) -> None:
    """Of a power below 16 the first eight nodes have it all, from whatever baseline."""
    options = {"baseline": 4, "tolerance": 1e-9}
    power(9)[0].explain(IDS, NAME, target=0, options=options)
    assert sum(spent) == 8


def test_with_edits_it_is_complete_for_the_edited_net() -> None:
    model, ids = random_model(BERT, 0), [3, 5, 7]
    edits = {"bert.encoder.layer.0.output": refl.Edit(factor=0.5, amount=0.1)}
    e = model.explain(ids, NAME, position=1, target=4, edits=edits, options=GAUSS | {"steps": 200})
    assert e.explained == pytest.approx(model.logits(ids, edits=edits)[1][4], rel=1e-12)
    assert abs(quadrature(e)) < 1e-9 and len(e.ledger.absorbed) == 2


@pytest.mark.parametrize("fill", ["zero", "mean", 0.3])
def test_pictures(fill: Any) -> None:
    model = random_model(ARCHITECTURES["vit"], 0)
    x = item(model)
    e = model.explain(x, NAME, target=1, options=GAUSS | {"baseline": fill, "steps": 100})
    value = {"zero": np.zeros((3, 1, 1)), "mean": x.mean(axis=(1, 2), keepdims=True)}
    start = np.broadcast_to(value.get(fill, np.full((3, 1, 1), 0.3)), x.shape)
    there = model.explain(np.ascontiguousarray(start), target=1, keep=()).logit
    assert e.ledger.absorbed["baseline"] == pytest.approx(there, rel=1e-12)
    assert e.relevance.shape == (8, 12) and e.ledger.destination == "pixels"
    assert abs(quadrature(e)) < 1e-8


@pytest.mark.parametrize(("folder", "most"), [("stories260K", 1e-3), (None, 1e-3)])
def test_trained_models_are_explained_to_a_thousandth(folder: str | None, most: float) -> None:
    model = refl.load(None if folder is None else checkpoint(folder), dtype="float32")
    e = model.explain("the dog" if folder else "the keys to the cabinet", NAME)
    assert abs(quadrature(e)) <= most * abs(e.explained)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 4}, "at least 8"),
        ({"nodes": "trapezoid"}, "midpoint"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"nodes": "midpoint", "tolerance": 0.1}, "leave it out"),
        ({"baseline": 99}, "outside the vocabulary"),
        ({"baseline": "mask"}, "no mask token"),
        ({"baseline": 0.5}, "baseline is 0.5"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        random_model(GPT2, 0).explain(IDS, NAME, options=options)


def test_the_notes_of_the_account() -> None:
    e = refl.load().explain("the keys to the cabinet", NAME, options={"baseline": "unk"} | GAUSS)
    shown = " ".join(str(e).split())
    assert "the output of the baseline, which no token is responsible for" in shown
    assert "what the sum over nodes misses of the integral along the path" in shown
    method = METHODS[NAME]
    assert isinstance(method, IntegratedGradients)
    assert replace(method, steps=9).facts().options["steps"] == 9
    assert set(integrated_gradients.NODES) == {"gauss-legendre", "midpoint", "right-end", "log"}
