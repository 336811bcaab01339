"""What a rule must answer on whole arrays, and how far rounding can move it: the definitions of
lift.py, run on numbers that track their rounding, so every answer comes with its condition.

    answer(rule, inputs, options, dtype)    inputs by their names in the conformance vectors

What is made of several rules stands here too: attention, a fan-out, a small network. Nothing of
the engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refl.verification.definitions import exact, lift
from refl.verification.definitions.exact import Messages
from refl.verification.definitions.lift import ArrayMessages, Call, collected
from refl.verification.definitions.running_error import SIGNIFICANT, TrackedNumber, tracked

Array: TypeAlias = Any
"""Of TrackedNumbers."""
Amounts: TypeAlias = dict[str, list[TrackedNumber]]
"""Cause -> what was absorbed of each example."""

MASKS = {
    name: float(np.finfo("float32" if name == "bfloat16" else name).min) / 2 for name in SIGNIFICANT
}
"""A logit this low or lower can only come from a mask."""


@dataclass
class Answer:
    """What each operand receives (None for one that is constant), and what is absorbed."""

    outputs: tuple[Array, ...]
    absorbed: Amounts


def numbers(a: Any, dtype: str) -> Array:
    """An array of tracked numbers; what a mask left in it, -inf,
    becomes 0, since no rule looks at it.
    """
    bits = SIGNIFICANT[dtype]
    return lift.lifted(a, lambda v: tracked(v if np.isfinite(v) else 0.0, bits))


@dataclass
class Named:
    """A case's inputs as arrays of tracked numbers, and its options."""

    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    dtype: str

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    @property
    def propagated(self) -> Array:
        return self.inputs["r" if "r" in self.inputs else "g"]

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return numbers(np.zeros(shape), self.dtype)

    @property
    def zero(self) -> TrackedNumber:
        return tracked(0, SIGNIFICANT[self.dtype])

    def tracked_options(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        bits = SIGNIFICANT[self.dtype]
        return {
            name: tracked(value, bits) if name in NUMBERS else value
            for name, value in (self.options if options is None else options).items()
        }


NUMBERS = ("eps", "gamma", "alpha", "beta", "low", "high", "norm_eps", "factor", "scale")
"""Options that are numbers, which a format may have to round."""


# -- one rule --------------------------------------------------------------------------------------

OPERANDS = {
    "linear": ("x", "w", "b"),
    "convolution": ("x", "w", "b"),
    "causal_convolution": ("x", "w", "b"),
    "scan": ("x", "d", "b", "c", "a_log"),
    "add": ("a", "b"),
    "multiply_second": ("a", "b"),
    "matmul": ("a", "v"),
    "rms_norm": ("x", "w"),
    "layer_norm": ("x", "w", "b"),
}
"""Beginning of a rule's name -> its operands;
elsewhere they are `x` alone, or the list `operands`.
"""
SECOND = ("multiply_second", "multiply_second_gxi", "matmul_second", "matmul_second_gxi")
"""Rules that give the first operand nothing."""


def _operands(rule: str, c: Named) -> list[Array]:
    known = next((names for start, names in OPERANDS.items() if rule.startswith(start)), ("x",))
    if "operands" in c.inputs:
        return list(c["operands"])
    return [c.inputs.get(name) for name in known]


def _receivers(rule: str, count: int) -> range:
    """Which operands are answered for: activations, not parameters."""
    if rule.startswith(("linear", "convolution", "rms_norm", "layer_norm", "causal", "scan_eps")):
        return range(1)
    if rule == "scan_gradient":
        return range(4)
    return range(1, 2) if rule in SECOND else range(count)


def one_rule(rule: str, c: Named) -> Answer:
    """The definition of that name, lifted."""
    operands = _operands(rule, c)
    options = c.tracked_options() | {k: c[k] for k in ("cos", "sin") if k in c.inputs}
    call = Call(operands, c.propagated, options=options)
    found = collected(lift.RULES[rule](call), len(operands))
    constant = list(c.options.get("constant") or [False] * len(operands))
    outputs = (
        None if constant[k] else found.received(k, operands[k].shape, c.zero)
        for k in _receivers(rule, len(operands))
    )
    return Answer(tuple(outputs), _amounts(found, c))


def _amounts(found: ArrayMessages, c: Named) -> Amounts:
    return found.amounts(len(c.propagated), c.zero)


# -- rules that need something worked out first ----------------------------------------------------


def probabilities(x: Sequence[TrackedNumber], visible: Sequence[bool]) -> list[TrackedNumber]:
    """Anyone shifts by the largest logit before exponentiating: that difference is rounded."""
    bits = x[0].bits
    seen = [each for each, v in zip(x, visible, strict=True) if v]
    if len(seen) == 1:
        return [tracked(1.0 if v else 0.0, bits) for v in visible]
    top = max(seen, key=float, default=tracked(0, bits))
    shifted = [
        TrackedNumber(x_i.value - top.value, bits, x_i.error + abs(float(x_i)) + abs(float(top)))
        for x_i in x
    ]
    return [
        each if isinstance(each, TrackedNumber) else tracked(each, bits)
        for each in exact.softmax(shifted, visible)
    ]


def _probabilities(x: Array, visible: Array) -> Array:
    rows = (probabilities(list(x[at]), visible[at].tolist()) for at in np.ndindex(*x.shape[:-1]))
    return lift.array(x.shape, (p for row in rows for p in row))


def softmax(rule: str, c: Named) -> Answer:
    axis, mask = c.options.get("axis", -1), c.options.get("mask")
    visible = c["visible"] if mask is None else c["visible"] & mask
    x, r, visible = (np.moveaxis(each, axis, -1) for each in (c["x"], c.propagated, visible))
    call = Call([x], r, _probabilities(x, visible), {"mask": visible})
    found = collected(lift.RULES[rule](call), 1)
    received = np.moveaxis(found.received(0, x.shape, c.zero), -1, axis)
    return Answer((received,), _amounts(found, c))


def activation(rule: str, c: Named) -> Answer:
    """A gate is a number between 0 and 1, and computed as one (1 + erf, say): it may be off by u,
    whatever its size.
    """
    found = one_rule(rule, c)
    if c.options["kind"] != "relu" and not rule.endswith("identity"):
        for got, g in zip(np.ravel(found.outputs[0]), c["g"].flat, strict=True):
            got.error += 4 * abs(float(g))
    return found


def pooling(rule: str, c: Named) -> Answer:
    counted = c.options.get("counted")
    counted = numbers(np.ones((*c["x"].shape[:2], 1)) if counted is None else counted, c.dtype)
    return one_rule(rule, Named(c.inputs, {**c.options, "counted": counted}, c.dtype))


def repeat_heads(rule: str, c: Named) -> Answer:
    options = {"kind": "repeat_heads", "times": c.options["times"]}
    return one_rule("movement_pass_through", Named(c.inputs, options, c.dtype))


# -- several rules one after the other -------------------------------------------------------------


def fan_out(rule: str, c: Named) -> Answer:
    """w1 x + w2 x, of one x."""
    w1, w2 = (c[name].tolist() for name in ("w1", "w2"))
    stabilized = Call([], options=c.tracked_options()).stabilized

    def backward(call: Call, at: Any, x: Any, z: Any, r: Any) -> Messages:
        one, other = (exact.linear(x, w, None) for w in (w1, w2))
        joined = exact.add_epsilon(one, other, r, **stabilized)
        sides = [[joined.received(k, j) for j in range(len(r))] for k in (0, 1)]
        joined.inputs = [{}]
        for w, side in zip((w1, w2), sides, strict=True):
            part = exact.linear_epsilon(x, w, None, side, **stabilized)
            for i in range(len(x)):
                joined.send(0, i, part.received(0, i))
            for cause, messages in part.absorbed.items():
                joined.absorbed[cause] = [*joined.absorbed[cause], *messages]
        return joined

    found = collected(lift.by_rows(backward)(Call([c["x"]], c["r"])), 1)
    return Answer((found.received(0, c["x"].shape, c.zero),), _amounts(found, c))


def _visible(c: Named, q: Array, k: Array) -> Array:  # -> bool (B, H, T, S)
    shape, mask = (*q.shape[:3], k.shape[2]), c.options.get("mask")
    visible = np.broadcast_to(True if mask is None else mask, shape).copy()
    if c.options.get("causal"):
        visible &= np.tril(np.ones(shape[2:], dtype=bool))
    return visible


ATTENTION = {
    "attention_attnlrp": ("matmul_uniform", "softmax_taylor"),
    "attention_attnlrp_gxi": ("matmul_uniform_gxi", "softmax_gradient"),
    "attention_cp": ("matmul_second", None),
    "attention_cp_gxi": ("matmul_second_gxi", None),
}
"""The rule of both products, and of the softmax between them; None: it is constant."""


def attention(rule: str, c: Named) -> Answer:
    """softmax((scale q) k^T) v, keys and values repeated for the queries of their group."""
    (product, between), q, k, v = ATTENTION[rule], c["q"], c["k"], c["v"]
    group, options = q.shape[1] // k.shape[1], c.tracked_options()
    scaled, visible = q * options["scale"], _visible(c, q, k)
    keys, values = (np.repeat(each, group, axis=1) for each in (k, v))
    turned, absorbed = np.swapaxes(keys, -1, -2), ArrayMessages([])
    scores = scaled @ turned
    p = _probabilities(scores, visible)

    def back(rule: str, operands: list[Array], r: Array, z: Array = None, **more: Any) -> Any:
        found = collected(lift.RULES[rule](Call(operands, r, z, options | more)), len(operands))
        for key, messages in found.absorbed.items():
            absorbed.absorbed.setdefault(key, []).extend(messages)
        return [found.received(n, o.shape, c.zero) for n, o in enumerate(operands)]

    def summed(r: Array, shape: tuple[int, ...]) -> Array:
        return r.reshape(*shape[:2], group, *shape[2:]).sum(axis=2)

    r_p, r_v = back(product, [p, values], c.propagated)
    if between is None:
        return Answer((None, None, summed(r_v, v.shape)), _amounts(absorbed, c))
    (r_scores,) = back(between, [scores], r_p, p, mask=visible)
    r_q, r_k = back(product, [scaled, turned], r_scores)
    if rule.endswith("gxi"):
        r_q = r_q * options["scale"]
    r_k = summed(np.swapaxes(r_k, -1, -2), k.shape)
    return Answer((r_q, r_k, summed(r_v, v.shape)), _amounts(absorbed, c))


def network(rule: str, c: Named) -> Answer:
    """z, and the relevance at x for each seed: layer by layer forward, rule by rule back."""
    xs = [c["x"]]
    for layer in c["layers"]:
        xs.append(np.array([_forward(layer, list(row)) for row in xs[-1]], dtype=object))
    answers = []
    for r in c["seeds"]:
        for layer, x in zip(reversed(c["layers"]), reversed(xs[:-1]), strict=True):
            if layer["operation"] == "linear":
                call = Call([x, layer["w"], layer["b"]], r, options=c.tracked_options(layer))
                found = collected(lift.RULES[f"linear_{layer['rule']}"](call), 3)
                r = found.received(0, x.shape, c.zero)
        answers.append(r)
    return Answer((xs[-1], *answers), {})  # a sum of what is absorbed, over seeds, means nothing


def _forward(layer: Mapping[str, Any], x: list[TrackedNumber]) -> list[TrackedNumber]:
    if layer["operation"] == "linear":
        bias = None if layer["b"] is None else list(layer["b"])
        return exact.linear(x, layer["w"].tolist(), bias)
    return [each * _gate(layer["kind"], each) for each in x]


def _gate(kind: str, x: TrackedNumber) -> TrackedNumber:
    """As in `activation`, it may be off by u whatever its size."""
    gate = exact.GATE[kind][0](x)
    if isinstance(gate, TrackedNumber):
        return TrackedNumber(gate.value, x.bits, gate.error + 4.0)
    return tracked(gate, x.bits)


# -- all of them -----------------------------------------------------------------------------------

SPECIAL: dict[str, Callable[[str, Named], Answer]] = {
    "softmax": softmax,
    "activation": activation,
    "pooling": pooling,
    "repeat_heads": repeat_heads,
    "fan_out": fan_out,
    "attention": attention,
    "network": network,
}
"""Beginning of a rule's name -> what answers, where the lifted rule alone does not."""


def answer(rule: str, inputs: Mapping[str, Any], options: Mapping[str, Any], dtype: str) -> Answer:
    """Raises RoundingDecides where rounding decides the answer."""
    found = next((each for start, each in SPECIAL.items() if rule.startswith(start)), one_rule)
    return found(rule, Named(inputs, options, dtype))
