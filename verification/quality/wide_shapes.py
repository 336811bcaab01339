"""Numbers for a rule in every shape that it takes: ranks 1 to 4, square and not, one and many, long
rows, operands that are broadcast; ordinary numbers, large ones, zeros of both signs, relevance of
very different sizes.

They have nothing to do with the conformance vectors, which are held against them
(structural_mutants.py): what a mistake changes here, a vector has to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from refl.verification.vectors.case import Case, signature

Array: TypeAlias = Any
Inputs: TypeAlias = dict[str, Any]
Drawn: TypeAlias = tuple[Inputs, dict[str, Any]]

MANNERS = ("ordinary", "ordinary", "positive", "large", "spread", "zeros")
"""How numbers are drawn, in turn."""

LEADS: tuple[tuple[int, ...], ...] = ((1,), (3,), (2, 3), (1, 1), (2, 3, 4), (3, 2, 2))
LONG, TOKENS, QUADRATIC = 599, 70, 131
"""Entries of a long row, of one that is not summed over, and of one that costs its square."""


@dataclass
class Numbers:
    """From a seed, in one manner."""

    rng: np.random.Generator
    manner: str
    most: float = 100.0
    """How large, where they are large."""

    def __call__(self, *shape: int) -> Array:
        x = self.rng.uniform(-2, 2, shape)
        if self.manner == "positive":
            return np.abs(x) + 0.1
        if self.manner == "large":
            return x * self.most / 2
        if self.manner == "zeros":
            kept = self.rng.random(shape)
            return np.where(kept < 0.2, 0.0, np.where(kept < 0.3, -0.0, x))
        return x

    def relevance(self, *shape: int) -> Array:
        r = self.rng.uniform(-2, 2, shape)
        if self.manner == "spread":
            r = r * 10.0 ** self.rng.integers(-22, 1, shape)
        return r

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]


Draw: TypeAlias = Callable[[Numbers, str], Iterator[Drawn]]


def _linear(n: Numbers, rule: str) -> Iterator[Drawn]:
    sizes = ((3, 2), (4, 4), (2, 5), (1, 3), (3, 1), (6, 6))
    each: list[tuple[tuple[int, ...], tuple[int, int]]] = [
        (lead, size) for k, lead in enumerate(LEADS) for size in (sizes[k], sizes[k - 2])
    ]
    for lead, (i, o) in [*each, ((2,), (LONG, 3)), ((2, 2), (3, 299)), ((1, TOKENS), (2, 3))]:
        x, w = n(*lead, i), n(o, i)
        b = n.one_of(None, n(o))
        yield {"x": x, "w": w, "b": b, seed(rule): n.relevance(*lead, o)}, _parameters(n, rule)


def _parameters(n: Numbers, rule: str) -> dict[str, Any]:
    if rule == "linear_gamma":
        return {"gamma": n.one_of(0.05, 0.25, 1.0)}
    if rule == "linear_alpha_beta":
        alpha = n.one_of(2.0, 1.0, 1.5)
        return {"alpha": alpha, "beta": alpha - 1}
    far = n.one_of(0.0, 50.0)
    return {"low": -200.0 - 2 * far, "high": 200.0 + far} if rule == "linear_z_box" else {}


def _convolution(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, c, o, h, w, rows, columns, left in (
        (1, 1, 1, 2, 2, 1, 2, 0),
        (2, 3, 2, 2, 3, 3, 2, 0),
        (3, 2, 3, 1, 2, 2, 4, 0),
        (2, 2, 2, 2, 2, 2, 2, 0),
        (1, 3, 4, 3, 2, 2, 3, 1),
        (2, 1, 3, 2, 2, 3, 3, 1),
        (2, 2, 2, 3, 3, 2, 2, 2),
        (3, 3, 3, 3, 3, 3, 3, 0),
    ):
        x = n(b, c, rows * h + min(left, h - 1), columns * w + min(left, w - 1))
        inputs = {"x": x, "w": n(o, c, h, w), "b": n.one_of(None, n(o))}
        yield inputs | {seed(rule): n.relevance(b, o, rows, columns)}, {}


SHAPES: tuple[tuple[int, ...], ...] = (
    (3,),
    (1, 1),
    (2, 3),
    (4, 4),
    (3, 2, 4),
    (2, 2, 2),
    (1, 3, 3),
    (2, 3, 2, 4),
    (3, 3, 3, 3),
    (2, LONG),
)

BROADCAST: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((2, 3), (3,)),
    ((2, 3), (1, 3)),
    ((2, 1), (2, 3)),
    ((4, 3, 3), (3, 3)),
    ((2, 3, 4), (1, 1, 4)),
    ((2, 1, 4), (2, 3, 4)),
    ((2, 3, 1), (1, 1, 4)),
    ((2, 3, 2, 4), (2, 1, 1, 4)),
    ((3, 1, 2), (3, 4, 1)),
)


def _rows(skipped: int, long: int) -> list[tuple[int, ...]]:
    """For rules whose answers are sums over pairs of entries."""
    return [*SHAPES[skipped:-1], (2, long)]


def _is_quadratic(rule: str) -> bool:
    return "identity" not in rule or rule == "renormalize_identity_gxi"


def _shapes(broadcast: bool) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    yield from ((shape, shape) for shape in SHAPES)
    if broadcast:
        for first, second in BROADCAST:
            yield first, second
            yield second, first


def _pair(n: Numbers, rule: str) -> Iterator[Drawn]:
    for first, second in _shapes(True):
        out = np.broadcast_shapes(first, second)
        yield {"a": n(*first), "b": n(*second), seed(rule): n.relevance(*out)}, {}


def _list(n: Numbers, rule: str) -> Iterator[Drawn]:
    for k, (first, second) in enumerate(_shapes(rule != "sum_epsilon")):
        out = np.broadcast_shapes(first, second)
        shapes = [first, second, out, second][: 2 + k % 3]
        inputs = {"operands": [n(*s) for s in shapes], seed(rule): n.relevance(*out)}
        yield inputs, _factors(n, rule, len(shapes))


def _factors(n: Numbers, rule: str, count: int) -> dict[str, Any]:
    if "factors" not in signature(rule).options:
        return {}
    return {"factors": [n.one_of(1, 2, 3) for _ in range(count)]}


def _matmul(n: Numbers, rule: str) -> Iterator[Drawn]:
    sizes = ((2, 3, 4), (3, 3, 3), (1, 2, 2), (4, 1, 3), (3, 4, 1), (2, 2, 2))
    for k, lead in enumerate(LEADS):
        for j, i, p in (sizes[k], sizes[k - 2]):
            yield (
                {"a": n(*lead, j, i), "v": n(*lead, i, p), seed(rule): n.relevance(*lead, j, p)},
                _factors(n, rule, 2),
            )
    for j, i, p in ((2, LONG, 2), (149, 2, 2), (2, 2, TOKENS)):
        inputs = {"a": n(2, j, i), "v": n(2, i, p), seed(rule): n.relevance(2, j, p)}
        yield inputs, _factors(n, rule, 2)


def _softmax(n: Numbers, rule: str) -> Iterator[Drawn]:
    n.most = 1600.0
    for shape in _rows(1, 19 if rule == "softmax_spread" else QUADRATIC):
        x = n(*shape)
        if n.manner == "zeros":
            x[..., 0] = np.where(n.rng.random(x.shape[:-1]) < 0.5, -np.inf, x[..., 0])
        yield {"x": x, seed(rule): n.relevance(*x.shape)}, {}


def _norm(n: Numbers, rule: str) -> Iterator[Drawn]:
    long = QUADRATIC if _is_quadratic(rule) else LONG
    for shape in _rows(2, long):
        far = 1e4 * (n.manner == "large")
        inputs: Inputs = {"x": n(*shape) + far, "w": n(shape[-1])}
        if rule.startswith("layer"):
            inputs["b"] = n.one_of(None, n(shape[-1]))
        yield inputs | {seed(rule): n.relevance(*shape)}, {"norm_eps": n.one_of(1e-5, 1e-2)}


def _activation(n: Numbers, rule: str) -> Iterator[Drawn]:
    kinds = ("gelu", "gelu_tanh", "silu", "quick_gelu", "relu", "tanh")
    n.most = 60.0
    for k, shape in enumerate(_rows(1, 199)):
        yield {"x": n(*shape), seed(rule): n.relevance(*shape)}, {"kind": kinds[k % 6]}
    for kind in kinds:
        yield {"x": n(2, 5), seed(rule): n.relevance(2, 5)}, {"kind": kind}


def _rotary(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, h, t, d in (
        (1, 1, 1, 2),
        (2, 3, 4, 2),
        (3, 2, 2, 4),
        (1, 4, 3, 6),
        (2, 2, 4, 4),
        (4, 4, 4, 4),
        (1, 1, TOKENS, 2),
        (1, 2, 2, TOKENS),
    ):
        angle = np.tile(n.rng.uniform(0, 6, (t, d // 2)), 2)
        inputs = {"x": n(b, h, t, d), "cos": np.cos(angle), "sin": np.sin(angle)}
        yield inputs | {seed(rule): n.relevance(b, h, t, d)}, {}


def _pooling(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, t, d in (
        (1, 1, 1),
        (2, 3, 4),
        (3, 3, 3),
        (1, 5, 2),
        (4, 2, 3),
        (2, 299, 2),
        (2, 2, 80),
    ):
        yield {"x": n(b, t, d), seed(rule): n.relevance(b, 1, d)}, {}


def _scale(n: Numbers, rule: str) -> Iterator[Drawn]:
    for shape in SHAPES:
        inputs = {"x": n(*shape), seed(rule): n.relevance(*shape)}
        yield inputs, {"factor": n.one_of(0.125, -3.0, 0.35)}


def _repeat(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, k, times, t, d in (
        (1, 1, 1, 1, 1),
        (2, 3, 2, 4, 2),
        (1, 2, 3, 2, 2),
        (3, 2, 4, 3, 3),
        (2, 2, 2, 2, 2),
        (3, 3, 3, 3, 3),
        (2, 4, 1, 3, 2),
        (1, 2, 2, TOKENS, 1),
    ):
        yield {"x": n(b, k, t, d), "r": n.relevance(b, k * times, t, d)}, {"times": times}


def _gather(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, t, m, d in (
        (1, 1, 1, 1),
        (2, 4, 3, 2),
        (3, 3, 3, 3),
        (2, 2, 5, 4),
        (1, 6, 2, 3),
        (2, 8, TOKENS, 2),
    ):
        index = [[int(i) for i in n.rng.integers(0, t, m)] for _ in range(b)]
        yield {"x": n(b, t, d), "r": n.relevance(b, m, d)}, {"index": index}


def _top_k(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, t, e, k in (
        (1, 1, 1, 1),
        (2, 3, 4, 2),
        (3, 2, 5, 3),
        (3, 3, 3, 3),
        (1, 4, 6, 1),
        (2, 2, 8, 5),
        (1, 2, 80, 70),
    ):
        x = np.stack([n.rng.permutation(e) for _ in range(b * t)]).reshape(b, t, e) / 4.0 - 1
        yield {"x": x, "r": n.relevance(b, t, k)}, {"k": k}


def _renormalize(n: Numbers, rule: str) -> Iterator[Drawn]:
    for shape in _rows(1, QUADRATIC if _is_quadratic(rule) else LONG):
        x = n.rng.uniform(0.2, 2, shape)
        yield {"x": x, seed(rule): n.relevance(*shape)}, {}


def _causal_convolution(n: Numbers, rule: str) -> Iterator[Drawn]:
    for b, t, c, k in (
        (1, 1, 1, 1),
        (2, 3, 4, 2),
        (3, 3, 3, 3),
        (2, 2, 3, 5),
        (3, 4, 2, 1),
        (4, 4, 4, 4),
        (1, 6, 6, 6),
        (2, 5, 1, 3),
        (1, TOKENS, 2, 4),
        (1, 2, 129, 2),
    ):
        inputs = {"x": n(b, t, c), "w": n(c, k), "b": n.one_of(None, n(c))}
        yield inputs | {seed(rule): n.relevance(b, t, c)}, {}


def _scan(n: Numbers, rule: str) -> Iterator[Drawn]:
    n.most = 40.0
    for b, t, i, k in (
        (1, 1, 1, 1),
        (2, 3, 4, 2),
        (3, 3, 3, 3),
        (2, 2, 3, 5),
        (3, 4, 2, 1),
        (4, 4, 4, 4),
        (2, 6, 1, 2),
        (1, 6, 6, 6),
        (1, 40, 2, 1),
        (1, 2, 65, 2),
        (2, 2, 1, 65),
    ):
        inputs = {"x": n(b, t, i), "d": n.rng.uniform(0.1, 1.5, (b, t, i))}
        inputs |= {"b": n(b, t, k), "c": n(b, t, k), "a_log": n.rng.uniform(-2, 0.5, (i, k))}
        yield inputs | {seed(rule): n.relevance(b, t, i)}, {}


def _fan_out(n: Numbers, rule: str) -> Iterator[Drawn]:
    for lead, i, o in (
        ((1,), 1, 1),
        ((3,), 3, 2),
        ((2, 3), 2, 4),
        ((2,), 3, 3),
        ((2, 2, 3), 4, 4),
        ((2,), 499, 2),
    ):
        inputs = {"x": n(*lead, i), "w1": n(o, i), "w2": n(o, i), "r": n.relevance(*lead, o)}
        yield inputs, {}


def _attention(n: Numbers, rule: str) -> Iterator[Drawn]:
    n.most = 4.0
    for b, k, group, t, s, d, e in (
        (1, 1, 1, 1, 1, 1, 1),
        (2, 1, 1, 3, 3, 2, 2),
        (2, 3, 1, 4, 4, 2, 2),
        (3, 2, 2, 2, 2, 3, 3),
        (1, 2, 3, 3, 3, 4, 4),
        (2, 2, 2, 2, 2, 2, 2),
        (3, 3, 1, 3, 3, 3, 3),
        (2, 1, 4, 2, 5, 3, 3),
        (1, 1, 2, TOKENS, 3, 2, 2),
        (1, 1, 1, 2, 129, 2, 2),
    ):
        inputs = {"q": n(b, k * group, t, d), "k": n(b, k, s, d), "v": n(b, k, s, e)}
        yield (
            inputs | {seed(rule): n.relevance(b, k * group, t, e)},
            {"scale": n.one_of(d**-0.5, 0.7)},
        )


def seed(rule: str) -> str:
    return signature(rule).propagated


DRAWN: dict[str, Draw] = {
    "linear": _linear,
    "convolution": _convolution,
    "add": _pair,
    "sum": _list,
    "multiply": _list,
    "multiply_second": _pair,
    "matmul": _matmul,
    "softmax": _softmax,
    "rms_norm": _norm,
    "layer_norm": _norm,
    "activation": _activation,
    "rotary": _rotary,
    "pooling": _pooling,
    "scale": _scale,
    "repeat_heads": _repeat,
    "gather": _gather,
    "top_k": _top_k,
    "renormalize": _renormalize,
    "causal_convolution": _causal_convolution,
    "scan": _scan,
    "fan_out": _fan_out,
    "attention": _attention,
}
"""Beginning of a rule's name (the longest counts) -> how its numbers are drawn."""


def drawn(rule: str, number: int) -> list[Case]:
    """Cases of a rule in all its shapes, without an answer; another `number`, other numbers. Every
    shape is drawn in two manners.
    """
    how = DRAWN[max((name for name in DRAWN if rule.startswith(name)), key=len)]
    found = []
    for k, manner in enumerate(MANNERS):
        for j, (inputs, options) in enumerate(how(_numbers(rule, number, k, manner), rule)):
            if (j + k) % 3 == 0:
                found.append(_case(rule, manner, inputs, options | _eps(rule, j)))
    return found


def drawn_with_options(rule: str, number: int) -> list[Case]:
    """The same with options that need not be said; none where a rule has no such option."""
    rng = np.random.default_rng([number, 99, *rule.encode()])
    found = []
    for case in drawn(rule, number):
        options = _optional(case, rng)
        if options and max(_sizes(case)) < 200:
            found.append(replace(case, options={**case.options, **options}))
    return found


def _sizes(case: Case) -> Iterator[int]:
    for held in case.inputs.values():
        yield from (np.size(a) for a in (held if isinstance(held, list) else [held]))


def _optional(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    """One option at a time."""
    names = [n for n in case.signature.options if n not in case.signature.required]
    if not names:
        return {}
    name = names[int(rng.integers(len(names)))]
    value = OPTIONAL[name](case, rng)
    return {} if value is None else {name: value}


def _mask(case: Case, rng: np.random.Generator) -> Array:
    """Of softmax like its logits; of attention for all heads, for one, and for all examples."""
    if "q" not in case.inputs:
        return rng.random(case.inputs["x"].shape) < 0.6
    (b, h, t, _), s = case.inputs["q"].shape, case.inputs["k"].shape[2]
    shape = ((b, h, t, s), (b, 1, t, s), (b, 1, 1, s), (1, 1, t, s))[int(rng.integers(4))]
    return rng.random(shape) < 0.6


def _counted(case: Case, rng: np.random.Generator) -> Array:
    b, t, _ = case.inputs["x"].shape
    counted = (rng.random((b, t, 1)) < 0.6).astype(float)
    counted[:, 0] = 1.0
    return counted


def _constant(case: Case, rng: np.random.Generator) -> list[bool]:
    count = len(case.inputs["operands"])
    chosen = [bool(c) for c in rng.random(count) < 0.5]
    return chosen if not all(chosen) else [True] * (count - 1) + [False]


OPTIONAL: dict[str, Callable[[Case, np.random.Generator], Any]] = {
    "mask": _mask,
    "counted": _counted,
    "constant": _constant,
    "axis": lambda case, rng: (
        int(rng.integers(1, case.inputs["x"].ndim)) if case.inputs["x"].ndim > 1 else None
    ),
    "causal": lambda case, rng: True,
    "stabilizer": lambda case, rng: ("plain", "none")[int(rng.integers(2))],
    "denominator": lambda case, rng: "2(z+eps)",
}


def _numbers(rule: str, number: int, k: int, manner: str) -> Numbers:
    return Numbers(np.random.default_rng([number, k, *rule.encode()]), manner)


def _eps(rule: str, k: int) -> dict[str, Any]:
    return {"eps": (1e-6, 1e-9, 1e-2)[k % 3]} if "eps" in signature(rule).options else {}


def _case(rule: str, manner: str, inputs: Inputs, options: dict[str, Any]) -> Case:
    full = {**signature(rule).options, **options}
    return Case("", rule, signature(rule).formulation, "float64", (), manner, inputs, full, {})
