"""Voita et al. 2021 against its definition with 60 digits: every layer a function whose Jacobian is
a difference quotient, its relevance divided message by message and rescaled; and what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction as F
from itertools import product
from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

import refl
from refl.errors import ReflError
from refl.methods import chosen
from refl.methods.voita import Absorbed, _Layers, divided, kept_at_a_fan_out, rescaled
from refl.nets.masks import causal
from refl.trace import Trace
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
)

BIAS_FREE = ("llama", "mistral", "qwen3", "olmo2", "phi", "gemma2", "gemma3_text", "t5")
"""Those whose only leaves are tokens."""


def voita(**options: Any) -> Any:
    return chosen("voita-2021", options=options)


# -- one layer -------------------------------------------------------------------------------------


def test_messages_by_hand() -> None:
    """c = [[3/2, -3/2], [5/2, 1/2]]: each sign has half of R, by its own proportions; the second
    output has no negative one, and half of its relevance is lost.
    """
    c, r = np.array([[1.5, -1.5], [2.5, 0.5]]), np.array([1.0, 6.0])
    exact = [F(1, 2) + F(5, 6) * 3, F(1, 2) + F(1, 6) * 3]
    np.testing.assert_allclose(divided(c, r, Absorbed()), [float(x) for x in exact], rtol=1e-15)
    assert divided(c, r, Absorbed()).sum() == 4.0
    kept = rescaled([divided(c, r, Absorbed())], r, (-1,), Absorbed())[0]
    np.testing.assert_allclose(kept, [float(x * F(7, 4)) for x in exact], rtol=1e-15)


def test_what_cancels_at_a_fan_out_is_scaled_up() -> None:
    """3 - 1 and 2 have sum of |R| 6, and together 4."""
    met = kept_at_a_fan_out([np.array([[3.0, 0.0]]), np.array([[-1.0, 2.0]])], Absorbed())
    assert met.tolist() == [[3.0, 3.0]]


def test_nothing_passes_through_zero() -> None:
    assert divided(np.zeros((2, 3)), np.ones(2), Absorbed()).tolist() == [0.0, 0.0, 0.0]
    assert rescaled([np.zeros((1, 3))], np.ones((1, 3)), (-1,), Absorbed())[0].tolist() == [
        [0.0] * 3
    ]


# -- a whole model, from the definition ------------------------------------------------------------

Vector = list[Any]
Function = Callable[[Vector], Any]


NOISE = mpf(10) ** -30
"""What a difference quotient leaves where there is nothing."""


def derivative(f: Function, x: Vector, i: int) -> Any:
    h = mpf(10) ** -20
    up, down = ([v + s * h * (k == i) for k, v in enumerate(x)] for s in (1, -1))
    return (f(up) - f(down)) / (2 * h)


def layer(
    outputs: Sequence[tuple[Function, Sequence[int]]], x: Vector, r: Vector, offset: str
) -> Vector:
    """Each output with the inputs that it depends on; the sum of |R| is kept."""
    found = [mpf(0)] * len(x)
    for (f, reads), r_j in zip(outputs, r, strict=True):
        if not r_j:
            continue
        c = {i: derivative(f, x, i) * x[i] for i in reads}
        rest = f(x) - sum(c.values()) if offset == "taylor" else f([mpf(0)] * len(x))
        c = {i: v + rest / len(reads) for i, v in c.items()}
        c = {i: v for i, v in c.items() if abs(v) > NOISE}
        for sign in (1, -1):
            part = {i: v for i, v in c.items() if v * sign > 0}
            for i, v in part.items():
                found[i] += v / sum(part.values()) * r_j / 2
    return scaled(found, sum(map(abs, r)))


def scaled(r: Vector, size: Any) -> Vector:
    now = sum(map(abs, r))
    return [v * size / now if now else v for v in r]


def met(*parts: Sequence[Vector]) -> list[Vector]:
    """Rows of several readers, added; the sum of |R| of the whole is that of the parts."""
    size = sum(abs(v) for part in parts for row in part for v in row)
    whole = [[sum(vs) for vs in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    flat = scaled([v for row in whole for v in row], size)
    return [flat[i : i + len(whole[0])] for i in range(0, len(flat), len(whole[0]))]


class Gpt2:
    """One block of a GPT-2, its forward in functions of one row, and the way back."""

    def __init__(self, weights: Any, heads: int, offset: str) -> None:
        self.w = {
            name: [[mpf(float(v)) for v in row] for row in np.atleast_2d(np.asarray(array))]
            for name, array in weights.items()
        }
        self.heads, self.offset = heads, offset

    def linear(self, name: str, transposed: bool = True) -> list[Function]:
        """Functions of a row: transposed weights are (I, O)."""
        w = self.w[f"{name}.weight"]
        columns = list(zip(*w, strict=True)) if transposed else w
        biases = self.w.get(f"{name}.bias", [[mpf(0)] * len(columns)])[0]
        return [
            lambda x, c=c, b=b: sum(a * v for a, v in zip(c, x, strict=True)) + b
            for c, b in zip(columns, biases, strict=True)
        ]

    def norm(self, name: str) -> list[Function]:
        weights, biases = (self.w[f"{name}.{end}"][0] for end in ("weight", "bias"))

        def at(j: int) -> Function:
            def f(x: Vector) -> Any:
                mean = sum(x) / len(x)
                variance = sum((v - mean) ** 2 for v in x) / len(x)
                return weights[j] * (x[j] - mean) / mp.sqrt(variance + EPS) + biases[j]

            return f

        return [at(j) for j in range(len(weights))]

    def forward(self, functions: list[Function], rows: list[Vector]) -> list[Vector]:
        return [[f(row) for f in functions] for row in rows]

    def back(self, functions: list[Function], rows: Any, r: Any) -> list[Vector]:
        pairs = [(f, range(len(rows[0]))) for f in functions]
        return [layer(pairs, x, r_x, self.offset) for x, r_x in zip(rows, r, strict=True)]

    def back_through_sum(self, a: Any, b: Any, r: Any) -> tuple[list[Vector], list[Vector]]:
        n, parts = len(a[0]), []
        for x, y, r_x in zip(a, b, r, strict=True):
            pairs = [(lambda v, j=j: v[j] + v[n + j], (j, n + j)) for j in range(n)]
            parts.append(layer(pairs, [*x, *y], r_x, self.offset))
        return [p[:n] for p in parts], [p[n:] for p in parts]

    def head(self, h: int, tokens: int, width: int) -> list[tuple[Function, list[int]]]:
        """O_jp of a head of the concatenated q, k, v rows; q is not scaled before."""
        d = width // self.heads

        def at(part: int, t: int, f: int) -> int:
            return t * 3 * width + part * width + h * d + f

        def output(j: int, p: int) -> tuple[Function, list[int]]:
            def f(x: Vector) -> Any:
                scores = [
                    sum(x[at(0, j, e)] * x[at(1, i, e)] for e in range(d)) / mp.sqrt(d)
                    for i in range(j + 1)
                ]
                weights = [mp.exp(s) for s in scores]
                values = [x[at(2, i, p)] for i in range(j + 1)]
                return mp.fdot(weights, values) / sum(weights)

            reads = [at(0, j, e) for e in range(d)]
            for i in range(j + 1):
                reads += [at(1, i, e) for e in range(d)] + [at(2, i, p)]
            return f, reads

        return [output(j, p) for j, p in product(range(tokens), range(d))]

    def explained(self, ids: list[int], signs: dict[int, int]) -> tuple[list[Any], Any]:
        """Relevance of the tokens, and what is explained: a sum of logits with these signs."""
        block, t = "transformer.h.0", len(ids)
        words = [self.w["transformer.wte.weight"][i] for i in ids]
        places = self.w["transformer.wpe.weight"][:t]
        h = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(words, places, strict=True)]
        width, d = len(h[0]), len(h[0]) // self.heads
        norm, qkv = self.norm(f"{block}.ln_1"), self.linear(f"{block}.attn.c_attn")
        n = self.forward(norm, h)
        flat = [v for row in self.forward(qkv, n) for v in row]
        heads = [self.head(i, t, width) for i in range(self.heads)]
        context = [[heads[e // d][j * d + e % d][0](flat) for e in range(width)] for j in range(t)]
        out = self.linear(f"{block}.attn.c_proj")
        a = self.forward(out, context)
        middle = [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(h, a, strict=True)]
        norm_2, up = self.norm(f"{block}.ln_2"), self.linear(f"{block}.mlp.c_fc")
        down = self.linear(f"{block}.mlp.c_proj")
        n_2 = self.forward(norm_2, middle)
        wide = self.forward(up, n_2)
        active = [[v if v > 0 else mpf(0) for v in row] for row in wide]
        m = self.forward(down, active)
        end = [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(middle, m, strict=True)]
        norm_f, head = self.norm("transformer.ln_f"), self.linear("transformer.wte", False)
        last = self.forward(norm_f, end[-1:])
        logits = self.forward(head, last)[0]

        r: Any = [[signs.get(i, 0) * v for i, v in enumerate(logits)]]
        r = self.back(norm_f, end[-1:], self.back(head, last, r))
        r = [[mpf(0)] * width] * (t - 1) + r
        r, of_mlp = self.back_through_sum(middle, m, r)
        of_mlp = self.back(up, n_2, self.back(down, active, of_mlp))
        r = met(r, self.back(norm_2, middle, of_mlp))
        r, of_attention = self.back_through_sum(h, a, r)
        of_context = self.back(out, context, of_attention)
        of_qkv = [mpf(0)] * len(flat)
        for i, outputs in enumerate(heads):
            part = [row[e] for row in of_context for e in range(i * d, (i + 1) * d)]
            received = layer(outputs, flat, part, self.offset)
            of_qkv = [x + y for x, y in zip(of_qkv, received, strict=True)]
        rows = [of_qkv[3 * width * j : 3 * width * (j + 1)] for j in range(t)]
        r = met(r, self.back(norm, h, self.back(qkv, n, rows)))
        of_words, _ = self.back_through_sum(words, places, r)
        return [sum(row) for row in of_words], sum(sign * logits[i] for i, sign in signs.items())


EPS = mpf(2) ** -10


TARGETS: dict[str, tuple[dict[str, Any], dict[int, int]]] = {
    "target": ({"target": 1}, {1: 1}),
    "contrast": ({"contrast": (4, 1)}, {4: 1, 1: -1}),
}
"""A contrast starts with relevance of both signs."""


@pytest.mark.parametrize("which", TARGETS)
@pytest.mark.parametrize("offset", ["taylor", "zero"])
def test_a_model_is_its_definition(offset: str, which: str) -> None:
    """Biases, positions, two heads, a causal mask."""
    small = {"n_layer": 1, "n_head": 2, "n_embd": 4, "n_inner": 6, "vocab_size": 7}
    options = {"activation_function": "relu", "layer_norm_epsilon": 2.0**-10}
    model, (how, signs) = random_model(GPT2 | small | options, 3), TARGETS[which]
    with mp.workdps(60):
        exact, value = Gpt2(model.weights, 2, offset).explained([3, 5, 1], signs)
    e = model.explain([3, 5, 1], method=voita(offset=offset), **how)
    np.testing.assert_allclose(e.explained, float(value), rtol=1e-13)
    np.testing.assert_allclose(e.relevance, [float(v) for v in exact], rtol=1e-10)


@pytest.mark.parametrize("offset", ["taylor", "zero"])
def test_each_head_keeps_its_own_sum(offset: str) -> None:
    """Relevance of both signs cancels at queries and keys: in each head by another factor."""
    random = np.random.default_rng(5)
    flat, r = random.standard_normal((3, 12)), random.standard_normal((1, 2, 3, 2))
    q, k, v = (
        np.ascontiguousarray(flat[:, i : i + 4].reshape(3, 2, 2).swapaxes(0, 1)[None])
        for i in (0, 4, 8)
    )
    t = Trace({})
    sources = [t.source(n, a) for n, a in (("q", q / np.sqrt(2)), ("k", k), ("v", v))]
    t.attention(*sources, causal(np.zeros((1, 3), dtype=np.int64), None))
    step = _Layers({record.output: record for record in t.records}, offset == "taylor").step
    found = {value.site: np.asarray(x) for value, x in step(t.records[-1], r)}
    with mp.workdps(60):
        x = [mpf(float(value)) for value in flat.ravel()]
        for h in range(2):
            outputs = Gpt2({}, 2, offset).head(h, 3, 4)
            exact = layer(outputs, x, [mpf(float(v)) for v in r[0, h].ravel()], offset)
            rows = np.array([float(v) for v in exact]).reshape(3, 3, 2, 2)[:, :, h]
            same = [found["q"][0, h], found["key.transposed"][0, h].T, found["v"][0, h]]
            np.testing.assert_allclose(np.stack(same, axis=1), rows, rtol=1e-11, atol=1e-30)


# -- what it keeps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", ["taylor", "zero"])
@pytest.mark.parametrize("kind", BIAS_FREE)
def test_the_sum_of_absolute_relevance_is_kept(kind: str, offset: str) -> None:
    """From one logit all of it has one sign, so the sum of |R| is the sum of R: the logit, where
    tokens are the only leaves; rotary positions, windows, caps and gates on the way.
    """
    how = {"decoder": [0, 2, 3]} if kind == "t5" else {}
    e = random_model(ARCHITECTURES[kind], 0).explain(
        [3, 4, 5, 6], target=2, method=voita(offset=offset), **how
    )
    scores = np.concatenate([e.relevance, e.decoder_relevance if how else []])
    assert (scores * np.sign(e.logit) >= 0).all()
    np.testing.assert_allclose(scores.sum(), e.logit, rtol=1e-12)


def test_what_a_layer_absorbs_by_hand() -> None:
    """Of R = (1, 6), half of 6 has no negative contribution; what is left, 4, is scaled to 7. Where
    nothing contributes all of R ends. Two parts, (3, 0) + (-1, 2) = (2, 2), become (3, 3).
    """
    lost = Absorbed()
    c, r = np.array([[1.5, -1.5], [2.5, 0.5]]), np.array([1.0, 6.0])
    rescaled([divided(c, r, lost)], r, (-1,), lost)
    assert lost.sums == {"one_sign": 3.0, "rescaling": -3.0}
    nothing = Absorbed()
    divided(np.zeros((2, 3)), r, nothing)
    assert nothing.sums == {"one_sign": 7.0}
    met = Absorbed()
    kept_at_a_fan_out([np.array([[3.0, 0.0]]), np.array([[-1.0, 2.0]])], met)
    assert met.sums == {"rescaling": -2.0}


@pytest.mark.parametrize("how", [{}, {"contrast": (2, 9)}, {"seed": "log-probability"}])
@pytest.mark.parametrize("offset", ["taylor", "zero"])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "vit", "t5"])
def test_the_ledger_closes(kind: str, offset: str, how: dict[str, Any]) -> None:
    """At every layer, by closed forms, where relevance has both signs too."""
    model = random_model(ARCHITECTURES[kind], 0)
    x: Any = [3, 4, 5, 6]
    if kind == "vit":
        x = np.random.default_rng(0).standard_normal((3, 8, 12))
        how = {"contrast": (2, 4)} if "contrast" in how else how
    further: dict[str, Any] = {"decoder": [0, 2, 3]} if kind == "t5" else {}
    e = model.explain(x, method=voita(offset=offset), **how, **further)
    scale = max(abs(entry.received) for entry in e.ledger)
    assert all(abs(entry.conservation_error) < 1e-12 * scale for entry in e.ledger)
    scores = e.relevance.sum() + (e.decoder_relevance.sum() if further else 0.0)
    assert e.ledger.tokens == pytest.approx(scores, rel=1e-12, abs=1e-12 * scale)
    assert abs(e.ledger.conservation_error) < 1e-11 * scale and e.explained == e.ledger.explained
    assert {"one_sign", "rescaling"} <= set(e.ledger.absorbed)


def test_a_contrast_is_not_the_difference_of_two() -> None:
    model = random_model(LLAMA, 0)
    one, other = (model.explain([3, 4, 5], target=i, method=voita()).relevance for i in (2, 9))
    both = model.explain([3, 4, 5], contrast=(2, 9), method=voita()).relevance
    assert np.abs(both - (one - other)).max() > 1e-7 * np.abs(both).max()


def test_nothing_comes_from_behind_the_position() -> None:
    e = random_model(GPT2, 0).explain([3, 4, 5, 6], position=1, method=voita())
    assert not e.relevance[2:].any() and e.relevance[:2].all()


def test_one_token_and_a_picture() -> None:
    assert random_model(LLAMA, 0).explain([3], method=voita()).relevance.shape == (1,)
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    e = random_model(VIT, 0).explain(x, method=voita())
    assert e.relevance.shape == (8, 12) and 0 < e.relevance.sum() / e.logit < 1


def test_what_is_refused() -> None:
    refusals: list[tuple[Any, dict[str, Any], str]] = [
        (MIXTRAL, {}, "not defined for the operation top_k"),
        (GPT2, {"recompute": True}, "recompute out"),
        (
            GPT2,
            {"edits": {"transformer.h.0.attn.scores": refl.Edit(factor=2)}},
            "an edit inside attention",
        ),
        (T5, {"decoder": [0], "keep": "*"}, "has no sweep"),
    ]
    for config, how, sentence in refusals:
        with pytest.raises(ReflError, match=sentence):
            random_model(config, 0).explain([3, 4], method=voita(), **how)
    with pytest.raises(ReflError, match="offset is 'x': expected one of taylor, zero"):
        voita(offset="x")
