"""Makes the conformance vectors.

    python -m refl.verification.vectors.make_vectors [FOLDER] [--rules]

Whole models are made by make_model_vectors.py. Here stand the rules: every case is a rule, numbers
to call it with, and the answer by the definitions (exact.py, by way of exact_answers.py), with its
condition. Cases are of two kinds: drawn ones, from a seed, ordinary numbers and awkward ones; and
those written by hand (handwritten.toml), each for a mistake that somebody made or could make. The
same seed gives the same bytes on every machine: numbers come from Python's own generator, answers
from 60-digit arithmetic. A drawn case in which rounding alone decides the answer is drawn again.

`published(rule)` gives a rule's cases as they are in the files, `drawn(rule, seed)` those of any
other seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from refl.io.files import atomic_write
from refl.verification.definitions.exact_answers import MASKS, answer, numbers
from refl.verification.definitions.running_error import RoundingDecides, TrackedNumber
from refl.verification.vectors import FORMAT, handwritten, make_model_vectors
from refl.verification.vectors.case import Case, held, signature
from refl.verification.vectors.catalogue import notes
from refl.verification.vectors.rule_vectors import rules
from refl.verification.vectors.targeted import Aim, Numbers, aims

FOLDER = Path(__file__).parent
UNITS = 8
"""What an implementation may be off by, in u times condition: it rounds in its own way, and once
more on the way out.
"""

Array: TypeAlias = Any
Drawn: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""Inputs and options."""

# -- answers ---------------------------------------------------------------------------------------


def answered(
    rule: str,
    dtype: str,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    flags: tuple[str, ...],
    note: str,
) -> Case:
    """The case with its answer. Raises RoundingDecides where rounding decides it."""
    found = answer(rule, _tracked(inputs, dtype) | _visible(rule, inputs, dtype), options, dtype)
    formulation = signature(rule).formulation
    absorbed = {name: np.array(a, dtype=object) for name, a in sorted(found.absorbed.items())}
    empty = Case("", rule, formulation, dtype, flags, note, inputs, options, {}, units=UNITS)
    named = dict(zip(empty.returns, found.outputs, strict=True))
    return replace(
        empty,
        expected={name: None if a is None else _values(a) for name, a in named.items()},
        condition={name: None if a is None else _conditions(a) for name, a in named.items()},
        absorbed={name: _values(a) for name, a in absorbed.items()},
        absorbed_condition={name: _conditions(a) for name, a in absorbed.items()},
    ).identified()


def _tracked(value: Any, dtype: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _tracked(each, dtype) for key, each in value.items()}
    if isinstance(value, list):
        return [_tracked(each, dtype) for each in value]
    return numbers(value, dtype) if isinstance(value, np.ndarray) else value


def _visible(rule: str, inputs: Mapping[str, Any], dtype: str) -> dict[str, Array]:
    return {"visible": inputs["x"] > MASKS[dtype]} if rule.startswith("softmax") else {}


def _values(a: Array) -> Array:
    return _each(a, lambda n: float(n.value))


def _conditions(a: Array) -> Array:
    """Rounded up to three digits, and never less than the number itself: the answer is rounded when
    it is written down.
    """
    return _each(a, lambda n: _rounded_up(n.error + abs(float(n.value))))


def _each(a: Array, f: Callable[[TrackedNumber], float]) -> Array:
    out = np.zeros(a.shape)
    for at in np.ndindex(a.shape):
        out[at] = f(a[at])
    return out


def _rounded_up(x: float) -> float:
    if x == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(x)) - 2)
    return float(f"{math.ceil(x / step) * step:.3g}")


# -- drawing ---------------------------------------------------------------------------------------


class Draw:
    """Numbers of one format from a seed."""

    def __init__(self, seed: str, dtype: str) -> None:
        self.random = random.Random(seed)
        self.dtype = dtype
        self.awkward = self.random.random() < 0.5
        self.batch = self.random.randint(1, 2)

    def __call__(self, *shape: int) -> Array:
        flat = [
            self._awkward() if self.awkward else self.random.uniform(-2, 2)
            for _ in range(math.prod(shape))
        ]
        return held(np.array(flat).reshape(shape), self.dtype)

    def size(self, most: int = 4) -> int:
        return self.random.randint(1, most)

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def leading(self) -> tuple[int, ...]:
        return (self.batch, *self.one_of((), (2,)))

    def positive(self, *shape: int) -> Array:
        flat = [self.random.uniform(0.25, 2) for _ in range(math.prod(shape))]
        return held(np.array(flat).reshape(shape), self.dtype)

    def bias(self, n: int) -> Array | None:
        bias: Array | None = self.one_of(None, self(n))
        return bias

    def _awkward(self) -> float:
        """Ties and canceling sums, zeros of both signs, small and large."""
        kind = self.random.randrange(8)
        if kind < 4:
            return self.random.choice((0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 3.0))
        return self.random.uniform(-2, 2) * self.random.choice((1.0, 1.0, 1.0, 1e-3, 20.0))


def _eps(d: Draw, rule: str) -> dict[str, Any]:
    """eps and the form of the stabilizer, for a rule that takes them."""
    if "eps" not in signature(rule).options:
        return {}
    eps = d.one_of(1e-9, 1e-6, 1e-2) if d.dtype in ("float64", "float32") else d.one_of(1e-6, 1e-2)
    return {"eps": eps, "stabilizer": d.one_of("sign", "sign", "sign", "plain", "none")}


def _linear(d: Draw, rule: str) -> Drawn:
    i, o, lead = d.size(), d.size(), d.leading()
    extra = _eps(d, rule)
    if rule == "linear_gamma":
        extra = {"gamma": d.one_of(0.05, 0.25, 1.0, 100.0)}
    elif rule == "linear_alpha_beta":
        extra = d.one_of(
            {"alpha": 2.0, "beta": 1.0}, {"alpha": 1.0, "beta": 0.0}, {"alpha": 1.5, "beta": 0.5}
        )
    elif rule == "linear_z_box":
        extra = {"low": -20.0 if d.awkward else -2.0, "high": 64.0 if d.awkward else 2.0}
    return {
        "x": d(*lead, i),
        "w": d(o, i),
        "b": d.bias(o),
        _propagated(rule): d(*lead, o),
    }, extra


def _convolution(d: Draw, rule: str) -> Drawn:
    c, o, h, w = d.one_of(1, 2, 3), d.size(2), d.size(2), d.size(2)
    rows, columns = d.size(2), d.size(2)
    x = d(d.batch, c, rows * h, columns * w)
    r = d(d.batch, o, rows, columns)
    inputs = {"x": x, "w": d(o, c, h, w), "b": d.bias(o), _propagated(rule): r}
    return inputs, _eps(d, rule)


def _propagated(rule: str) -> str:
    return signature(rule).propagated


def _pair(d: Draw, rule: str) -> Drawn:
    shape = (*d.leading(), d.size())
    return {"a": d(*shape), "b": d(*shape), _propagated(rule): d(*shape)}, _eps(d, rule)


def _list(d: Draw, rule: str) -> Drawn:
    shape, n = (d.batch, d.size()), d.one_of(2, 3)
    options = (
        _eps(d, rule)
        if rule == "sum_epsilon"
        else {"constant": d.one_of([False] * n, [True] + [False] * (n - 1))}
    )
    if "factors" in signature(rule).options:
        options = {"factors": [d.one_of(1, 2, 3) for _ in range(n)]} | options
    return {"operands": [d(*shape) for _ in range(n)], _propagated(rule): d(*shape)}, options


def _matmul(d: Draw, rule: str) -> Drawn:
    lead, j, i, p = d.leading(), d.size(3), d.size(3), d.size(3)
    options = _eps(d, rule)
    if "factors" in signature(rule).options:
        options = {"factors": [d.one_of(1, 2, 3), d.one_of(1, 2, 3)]} | options
    if rule == "matmul_uniform":
        options |= {"denominator": d.one_of("2z+eps", "2z+eps", "2(z+eps)")}
    return {"a": d(*lead, j, i), "v": d(*lead, i, p), _propagated(rule): d(*lead, j, p)}, options


def _softmax(d: Draw, rule: str) -> Drawn:
    shape = (d.batch, d.size(3), d.size())
    mask = None
    if d.one_of(True, False):
        mask = np.array([d.random.random() < 0.7 for _ in range(math.prod(shape))]).reshape(shape)
    x = d(*shape)
    return {"x": np.clip(x, -30, 30), _propagated(rule): d(*shape)}, {
        "mask": mask,
        "axis": d.one_of(-1, -1, 1),
    }


def _norm(d: Draw, rule: str) -> Drawn:
    lead, n = d.leading(), d.one_of(2, 3, 4)
    inputs: dict[str, Any] = {"x": d(*lead, n), "w": d(n)}
    if rule.startswith("layer"):
        inputs["b"] = d.bias(n)
    options = {"norm_eps": d.one_of(1e-5, 1e-2)} | _eps(d, rule)
    return inputs | {_propagated(rule): d(*lead, n)}, options


def _activation(d: Draw, rule: str) -> Drawn:
    shape = (d.batch, d.size())
    kind = d.one_of("gelu", "gelu_tanh", "silu", "quick_gelu", "relu", "tanh")
    return {"x": np.clip(d(*shape), -4, 4), _propagated(rule): d(*shape)}, {"kind": kind}


def _rotary(d: Draw, rule: str) -> Drawn:
    t, width = d.size(3), d.one_of(2, 4)
    angles = np.array([[d.random.uniform(0, 6) for _ in range(width // 2)] * 2 for _ in range(t)])
    cos, sin = (
        held(np.array([[f(each) for each in row] for row in angles.tolist()]), d.dtype)
        for f in (math.cos, math.sin)
    )
    shape = (d.batch, d.size(2), t, width)
    inputs = {"x": d(*shape), "cos": cos, "sin": sin, _propagated(rule): d(*shape)}
    return inputs, _eps(d, rule)


def _pooling(d: Draw, rule: str) -> Drawn:
    b, t, width = d.batch, d.size(), d.size(3)
    counted = None
    if d.one_of(True, False):
        kept = [d.random.randint(1, t) for _ in range(b)]
        counted = held(
            np.array([[[1.0] if i < n else [0.0] for i in range(t)] for n in kept]), d.dtype
        )
    inputs = {"x": d(b, t, width), _propagated(rule): d(b, 1, width)}
    return inputs, {"counted": counted} | _eps(d, rule)


def _scale(d: Draw, rule: str) -> Drawn:
    shape = (d.batch, d.size())
    return {"x": d(*shape), _propagated(rule): d(*shape)}, {
        "factor": d.one_of(0.125, -3.0, 0.35355339059327373)
    }


def _repeat(d: Draw, rule: str) -> Drawn:
    b, k, n, t, width = d.batch, d.size(2), d.one_of(1, 2, 3), d.size(2), d.size(2)
    return {"x": d(b, k, t, width), "r": d(b, k * n, t, width)}, {"times": n}


def _gather(d: Draw, rule: str) -> Drawn:
    b, t, n, width = d.batch, d.size(), d.size(), d.size(2)
    return {"x": d(b, t, width), "r": d(b, n, width)}, {
        "index": [[d.random.randrange(t) for _ in range(n)] for _ in range(b)]
    }


def _top_k(d: Draw, rule: str) -> Drawn:
    b, t, e = d.batch, d.size(2), d.size()
    # no ties: which of two equals is chosen is nobody's mistake
    x = [[d.random.sample(range(1, 9), e) for _ in range(t)] for _ in range(b)]
    k = d.random.randint(1, e)
    return {"x": held(np.array(x) / 8, d.dtype), "r": d(b, t, k)}, {"k": k}


def _renormalize(d: Draw, rule: str) -> Drawn:
    shape = (d.batch, d.size())
    return {"x": d.positive(*shape), _propagated(rule): d(*shape)}, _eps(d, rule)


def _causal_convolution(d: Draw, rule: str) -> Drawn:
    b, t, c, k = d.batch, d.size(), d.size(3), d.size()
    inputs = {"x": d(b, t, c), "w": d(c, k), "b": d.bias(c), _propagated(rule): d(b, t, c)}
    return inputs, _eps(d, rule)


def _scan(d: Draw, rule: str) -> Drawn:
    """Steps above 0, and rates that keep something."""
    b, t, i, n = d.batch, d.size(), d.size(2), d.size(3)
    inputs = {"x": d(b, t, i), "d": d.positive(b, t, i), "b": d(b, t, n), "c": d(b, t, n)}
    inputs["a_log"] = held(d.positive(i, n) - 1.25, d.dtype)
    return inputs | {_propagated(rule): d(b, t, i)}, _eps(d, rule)


def _fan_out(d: Draw, rule: str) -> Drawn:
    i, o = d.size(3), d.size(3)
    return {"x": d(d.batch, i), "w1": d(o, i), "w2": d(o, i), "r": d(d.batch, o)}, _eps(d, rule)


def _attention(d: Draw, rule: str) -> Drawn:
    b, k, group, t, width = d.batch, d.one_of(1, 1, 2), d.one_of(1, 2), d.size(3), d.size(2)
    causal = d.one_of(True, False)
    mask = None
    if not causal and d.one_of(True, False):
        mask = np.array(
            [
                [[[d.random.random() < 0.7 or j == i for j in range(t)] for i in range(t)]]
                for _ in range(b)
            ]
        )
    inputs = {
        "q": d(b, k * group, t, width),
        "k": d(b, k, t, width),
        "v": d(b, k, t, width),
        _propagated(rule): d(b, k * group, t, width),
    }
    options = {"scale": width**-0.5, "causal": causal, "mask": mask} | _eps(d, rule)
    if rule == "attention_attnlrp":
        options |= {"denominator": d.one_of("2z+eps", "2z+eps", "2(z+eps)")}
    return inputs, options


def _network(d: Draw, rule: str) -> Drawn:
    sizes = [d.size(3) + 1 for _ in range(3)]
    kind = d.one_of("relu", "gelu", "silu")
    layers: list[dict[str, Any]] = []
    for before, after in pairwise(sizes):
        layers += [
            _layer(d, before, after),
            {"operation": "activation", "kind": kind, "rule": "identity"},
        ]
    layers.pop()
    return {
        "layers": layers,
        "x": d(d.batch, sizes[0]),
        "seeds": [d(d.batch, sizes[-1]) for _ in range(2)],
    }, {}


def _layer(d: Draw, before: int, after: int) -> dict[str, Any]:
    rule: dict[str, Any] = d.one_of(
        {"rule": "epsilon", "eps": 1e-6},
        {"rule": "gamma", "gamma": 0.25},
        {"rule": "z_plus"},
        {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
    )
    return {"operation": "linear", "w": d(after, before), "b": d.bias(after)} | rule


DRAWN: dict[str, Callable[[Draw, str], Drawn]] = {
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
    "network": _network,
}
"""Beginning of a rule's name (the longest counts) -> how its numbers are drawn."""

STREAMS = json.loads((FOLDER / "streams.json").read_text(encoding="utf-8"))
"""Rule -> the name its numbers are drawn under, where the rule was called otherwise in format 1:
the numbers stay the same.
"""

FORMATS = ("float64", "float64", "float32", "float16", "bfloat16")
TRIES = 200


def drawn(rule: str, seed: int) -> Iterator[Case]:
    """A rule's cases from a seed, in every format."""
    how = DRAWN[max((name for name in DRAWN if rule.startswith(name)), key=len)]
    for k, dtype in enumerate(FORMATS):
        yield _one(rule, how, f"{STREAMS.get(rule, rule)} {seed} {k}", dtype)


def _one(rule: str, how: Callable[[Draw, str], Drawn], seed: str, dtype: str) -> Case:
    for attempt in range(TRIES):
        d = Draw(f"{seed} {attempt}", dtype)
        inputs, options = how(d, rule)
        try:
            case = answered(
                rule,
                dtype,
                inputs,
                options,
                (),
                "drawn: awkward numbers" if d.awkward else "drawn: ordinary numbers",
            )
        except RoundingDecides:
            continue
        if _moderate(case):
            return case
    raise RuntimeError(
        f"{rule} in {dtype}: in each of {TRIES} draws rounding decides, or the answer is too large"
    )


def _moderate(case: Case) -> bool:
    """In half precision, an answer that the format holds,
    with room for the numbers on the way to it.
    """
    if case.dtype in ("float64", "float32"):
        return True
    return all(
        np.all(np.abs(a) < 1e4)
        for a in (*case.expected.values(), *case.condition.values())
        if a is not None
    )


# -- aiming ----------------------------------------------------------------------------------------


def targeted(rule: str, seed: int = 0) -> Iterator[Case]:
    """A rule's cases in every shape (targeted.py), with numbers from a seed."""
    for k, aim in enumerate(aims(rule)):
        for dtype in aim.dtypes:
            yield _targeted(rule, aim, dtype, f"{rule} {aim.key} {k} {dtype} {seed}")


def _targeted(rule: str, aim: Aim, dtype: str, seed: str) -> Case:
    for attempt in range(TRIES):
        inputs, options = aim.make(Numbers(f"{seed} {attempt}", dtype, aim.kind))
        try:
            return answered(rule, dtype, inputs, options, (), aim.note)
        except RoundingDecides:
            continue
    raise RuntimeError(f"{rule} in {dtype}, {aim.note}: in each of {TRIES} draws rounding decides")


KEPT = "the operands of an earlier case with other relevance: an answer that was kept"


def asked_again(rule: str, cases: Sequence[Case]) -> Case:
    """The first case that must be answered, with other relevance."""
    for case in cases:
        if case.required and case.dtype == "float64":
            name = signature(rule).propagated
            given = Numbers(f"{rule} again", case.dtype).r(*case.inputs[name].shape)
            inputs = {**case.inputs, name: given}
            try:
                return answered(rule, case.dtype, inputs, case.options, (), KEPT)
            except RoundingDecides:
                continue
    raise RuntimeError(f"{rule}: no case can be asked again")


# -- all of it -------------------------------------------------------------------------------------


SEEDS = range(3)


def published(rule: str) -> list[Case]:
    """The cases of a rule's file: those written by hand, drawn ones, then targeted ones."""
    first = small(rule)
    again = [asked_again(rule, first)] if rule != "network" else []  # it has several seeds
    return [*first, *targeted(rule), *again]


def small(rule: str) -> list[Case]:
    """Those written by hand, and drawn ones."""
    written = [
        answered(rule, case.dtype, case.inputs, case.options, case.flags, case.note)
        for case in handwritten.read(rule)
    ]
    return written + [case for seed in SEEDS for case in drawn(rule, seed)]


def page(rule: str, cases: list[Case]) -> str:
    """The file of a rule: a header, and a case on each line."""
    s = signature(rule)
    header = {
        "format": FORMAT,
        "rule": rule,
        "formulation": s.formulation,
        "equation": s.equation,
        "source": s.source,
        "operands": list(s.operands),
        "returns": list(s.returns),
        "options": dict(s.options),
        "required": list(s.required),
        "notes": notes(flag for case in cases for flag in case.flags),
        "count": len(cases),
    }
    head = json.dumps(header, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join(
        "  " + json.dumps(case.to_json(), ensure_ascii=False, allow_nan=False) for case in cases
    )
    return f'{head},\n "cases": [\n{lines}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the conformance vectors: every rule in seconds, then every architecture "
        "in two minutes."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--rules", action="store_true", help="leave the models as they are")
    args = parser.parse_args()
    (args.folder / "rules").mkdir(parents=True, exist_ok=True)
    for rule in rules():
        cases = published(rule)
        atomic_write(args.folder / "rules" / f"{rule}.json", page(rule, cases).encode())
        print(f"{rule}: {len(cases)} cases")
    for architecture in () if args.rules else make_model_vectors.CONFIGS:
        make_model_vectors.build(architecture, args.folder / "models" / architecture)
        print(f"models/{architecture}")


if __name__ == "__main__":
    main()
