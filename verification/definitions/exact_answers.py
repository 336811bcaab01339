"""What a rule must answer on whole arrays, and how far rounding can move it: the definitions of
exact.py, run on running numbers.

exact.py speaks of one row or one matrix. Here stand the loops over examples, heads and positions,
and the definitions that are made of several rules: convolution on patches, attention, a fan-out, a
small network. Arrays hold `Running` numbers, so every answer comes with its condition. Nothing of
the engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from refl.verification.definitions import exact, exact_experts, exact_vision
from refl.verification.definitions.exact import Split
from refl.verification.definitions.running_error import SIGNIFICANT, Running, given

Array: TypeAlias = Any
"""Of Running numbers."""
Answer: TypeAlias = tuple[Array | None, ...]

MASKS = {
    name: float(np.finfo("float32" if name == "bfloat16" else name).min) / 2 for name in SIGNIFICANT
}
"""A logit this low or lower can only come from a mask."""


@dataclass
class Call:
    """One call of a rule: its inputs as arrays of running numbers, its options, and the
    conservation ledger of what is absorbed.
    """

    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    dtype: str
    absorbed: dict[str, list[Running]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    def number(self, name: str) -> Running:
        return given(self.options[name], SIGNIFICANT[self.dtype])

    @property
    def eps(self) -> tuple[Running, str]:
        return self.number("eps"), self.options.get("stabilizer", "sign")

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return numbers(np.zeros(shape), self.dtype)

    def book(self, example: int, batch: int, split: Split) -> None:
        for cause, messages in split.absorbed.items():
            entry = self.absorbed.setdefault(cause, list(self.zeros((batch,))))
            entry[example] = sum(messages, start=entry[example])

    def rows(self, rule: Callable[..., Split], *arrays: Array) -> Array:
        """Row by row over the last axis of all arrays: what each row's first operand receives, in
        the shape of the first array.
        """
        return self.many(1, rule, *arrays)[0]

    def many(self, operands: int, rule: Callable[..., Split], *arrays: Array) -> list[Array]:
        out = [self.zeros(a.shape) for a in arrays[:operands]]
        for at in np.ndindex(arrays[0].shape[:-1]):
            split = rule(*(list(a[at]) for a in arrays))
            for k, each in enumerate(out):
                for i in range(each.shape[-1]):
                    each[(*at, i)] = each[(*at, i)] + split.received(k, i)
            self.book(at[0], arrays[0].shape[0], split)
        return out


def numbers(a: Any, dtype: str) -> Array:
    """An array of running numbers; what a mask left in it, -inf, becomes 0, since no rule looks at
    it.
    """
    held = np.asarray(a, dtype=np.float64)
    out = np.empty(held.shape, dtype=object)
    for at in np.ndindex(held.shape):
        out[at] = given(float(held[at]) if np.isfinite(held[at]) else 0.0, SIGNIFICANT[dtype])
    return out


# -- linear, convolution ---------------------------------------------------------------------------

NO_EPS = (Fraction(0), "none")


def _weights(c: Call) -> tuple[list[list[Running]], list[Running] | None]:
    w = c["w"].reshape(c["w"].shape[0], -1)
    return [list(row) for row in w], None if c["b"] is None else list(c["b"])


def _linear(
    rule: str, c: Mapping[str, Any], w: Any, b: Any, number: Callable[[str], Running]
) -> Callable[..., Split]:
    """(x, r) -> messages, for the linear rules by their names."""
    if rule == "epsilon":
        return lambda x, r: exact.linear_epsilon(
            x, w, b, r, number("eps"), c.get("stabilizer", "sign")
        )
    if rule == "gamma":
        return lambda x, r: exact.linear_gamma(x, w, b, r, number("gamma"), Fraction(0))
    if rule in ("z_plus", "alpha_beta"):
        alpha, beta = (number("alpha"), number("beta")) if rule == "alpha_beta" else (1, 0)
        return lambda x, r: exact.linear_alpha_beta(x, w, b, r, alpha, beta, Fraction(0))
    if rule == "z_box":
        return lambda x, r: exact_vision.linear_z_box(
            x, w, r, [number("low")] * len(x), [number("high")] * len(x)
        )
    plain = {"flat": exact.linear_flat, "w_square": exact.linear_w_square}
    return (
        (lambda x, r: plain[rule](x, w, r))
        if rule in plain
        else lambda x, g: exact.linear_gradient(x, w, b, g)
    )


def linear(rule: str) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        w, b = _weights(c)
        one = _linear(rule, c.options, w, b, c.number)
        return (_each_row(c, one, c["x"], c["g" if rule == "gradient" else "r"]),)

    return answer


def _each_row(c: Call, one: Callable[..., Split], x: Array, r: Array) -> Array:
    out = c.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        split = one(list(x[at]), list(r[at]))
        for i in range(x.shape[-1]):
            out[(*at, i)] = out[(*at, i)] + split.received(0, i)
        c.book(at[0], x.shape[0], split)
    return out


def convolution(rule: str) -> Callable[[Call], Answer]:
    """Every patch is a row of a linear layer: the pixels under the kernel, channel by channel."""

    def answer(c: Call) -> Answer:
        x, r = c["x"], c["g" if rule == "gradient" else "r"]
        h, w = c["w"].shape[2:]
        out = c.zeros(x.shape)
        one = _linear(rule, c.options, *_weights(c), c.number)
        for b, i, j in np.ndindex(x.shape[0], *r.shape[2:]):
            under = (b, slice(None), slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w))
            split = one(list(x[under].ravel()), list(r[b, :, i, j]))
            got = [0 * x[b, 0, 0, 0] + split.received(0, k) for k in range(x[under].size)]
            out[under] = np.array(got, dtype=object).reshape(x[under].shape)
            c.book(b, x.shape[0], split)
        return (out,)

    return answer


# -- sums and products -----------------------------------------------------------------------------


def add_epsilon(c: Call) -> Answer:
    return tuple(
        c.many(2, lambda a, b, r: exact.add_epsilon(a, b, r, *c.eps), c["a"], c["b"], c["r"])
    )


def sum_epsilon(c: Call) -> Answer:
    """Every operand writes to every place: the sum over experts of exact_experts, each with all
    rows.
    """
    operands = c["operands"]

    def one(*rows: Any) -> Split:
        *ys, r = rows
        index = [[0]] * len(ys)
        split = exact_experts.combine_epsilon([[y] for y in ys], index, [r], *c.eps)
        split.messages = [
            {d: each.get((0, d), []) for d in range(len(r))} for each in split.messages
        ]
        return split

    return tuple(c.many(len(operands), one, *operands, c["r"]))


def product(rule: Callable[..., Split], seed: str) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        operands = c["operands"]
        constant = c.options.get("constant") or [False] * len(operands)
        out = c.many(
            len(operands), lambda *rows: rule(rows[:-1], constant, rows[-1]), *operands, c[seed]
        )
        return tuple(None if fixed else each for each, fixed in zip(out, constant, strict=True))

    return answer


def second(rule: Callable[..., Split], seed: str) -> Callable[[Call], Answer]:
    return lambda c: (c.many(2, rule, c["a"], c["b"], c[seed])[1],)


# -- matrix products -------------------------------------------------------------------------------


def _matrices(
    c: Call, rule: Callable[..., Split], a: Array, v: Array, r: Array
) -> tuple[Array, Array]:
    r_a, r_v = c.zeros(a.shape), c.zeros(v.shape)
    for at in np.ndindex(a.shape[:-2]):
        split = rule(a[at].tolist(), v[at].tolist(), r[at].tolist())
        for out, k in ((r_a, 0), (r_v, 1)):
            for ij in np.ndindex(out.shape[-2:]):
                out[(*at, *ij)] = out[(*at, *ij)] + split.received(k, ij)
        c.book(at[0], a.shape[0], split)
    return r_a, r_v


def matmul(c: Call) -> Answer:
    return _matrices(c, _uniform(c), c["a"], c["v"], c["r"])


def _uniform(c: Call) -> Callable[..., Split]:
    return lambda a, v, r: exact.matmul_uniform(
        a, v, r, *c.eps, c.options.get("denominator", "2z+eps")
    )


def matmul_second(c: Call) -> Answer:
    return (
        _matrices(c, lambda a, v, r: exact.matmul_second(a, v, r, *c.eps), c["a"], c["v"], c["r"])[
            1
        ],
    )


def matmul_gradient(to_a: Any, to_v: Any) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        both = _matrices(
            c, lambda a, v, g: exact.matmul_gradient(a, v, g, to_a, to_v), c["a"], c["v"], c["g"]
        )
        return both if to_a else both[1:]

    return answer


# -- softmax ---------------------------------------------------------------------------------------


def probabilities(x: Sequence[Running], visible: Sequence[bool]) -> list[Running]:
    """Anyone shifts by the largest logit before exponentiating: that difference is rounded."""
    bits = x[0].bits
    seen = [each for each, v in zip(x, visible, strict=True) if v]
    if len(seen) == 1:
        return [given(1.0 if v else 0.0, bits) for v in visible]
    top = max(seen, key=float, default=given(0, bits))
    shifted = [
        Running(x_i.value - top.value, bits, x_i.error + abs(float(x_i)) + abs(float(top)))
        for x_i in x
    ]
    return [
        each if isinstance(each, Running) else given(each, bits)
        for each in exact.softmax(shifted, visible)
    ]


def softmax(rule: Callable[..., Split], seed: str) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        axis, given_mask = c.options.get("axis", -1), c.options.get("mask")
        x, r = (np.moveaxis(c[name], axis, -1) for name in ("x", seed))
        seen = c["seen"] if given_mask is None else c["seen"] & given_mask
        seen = np.moveaxis(seen, axis, -1)
        return (np.moveaxis(_softmax_rows(c, rule, x, r, seen), -1, axis),)

    return answer


def _softmax_rows(c: Call, rule: Callable[..., Split], x: Array, r: Array, seen: Array) -> Array:
    out = c.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        row, visible = list(x[at]), [bool(v) for v in seen[at]]
        split = rule(row, probabilities(row, visible), list(r[at]), visible)
        for i in range(x.shape[-1]):
            out[(*at, i)] = out[(*at, i)] + split.received(0, i)
        c.book(at[0], x.shape[0], split)
    return out


# -- norms, activations, rotary, pooling -----------------------------------------------------------


def identity(c: Call) -> Answer:
    return (c["r"],)


def norm(rule: str) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        w, e = list(c["w"]), c.number("norm_eps")
        b = None if c.inputs.get("b") is None else list(c["b"])
        rules: dict[str, Callable[..., Split]] = {
            "rms_norm_identity_gxi": lambda x, g: exact.rms_norm_identity_gxi(x, w, g, e),
            "rms_norm_gradient": lambda x, g: exact.rms_norm_gradient(x, w, g, e),
            "layer_norm_epsilon": lambda x, r: exact.layer_norm_epsilon(x, w, b, r, e, *c.eps),
            "layer_norm_epsilon_gxi": lambda x, g: exact.layer_norm_epsilon_gxi(x, w, b, g, e),
            "layer_norm_gradient": lambda x, g: exact.layer_norm_gradient(x, w, b, g, e),
        }
        return (_each_row(c, rules[rule], c["x"], c["r" if rule.endswith("epsilon") else "g"]),)

    return answer


def activation(rule: Callable[..., Split]) -> Callable[[Call], Answer]:
    """A gate is a number between 0 and 1, and computed as one (1 + erf, say): it may be off by u,
    whatever its size.
    """

    def answer(c: Call) -> Answer:
        out = _each_row(c, lambda x, g: rule(c.options["kind"], x, g), c["x"], c["g"])
        for at in np.ndindex(out.shape):
            out[at].error += 4 * abs(float(c["g"][at])) if c.options["kind"] != "relu" else 0.0
        return (out,)

    return answer


def rotary(c: Call) -> Answer:
    seed, one = ("r", _rotary_epsilon(c)) if "r" in c.inputs else ("g", exact.rotary_gradient)
    x = c["x"]
    cos, sin = (np.broadcast_to(c[name], x.shape) for name in ("cos", "sin"))
    return (c.rows(one, x, cos, sin, c[seed]),)


def _rotary_epsilon(c: Call) -> Callable[..., Split]:
    return lambda x, cos, sin, r: exact.rotary_epsilon(x, cos, sin, r, *c.eps)


def pooling(c: Call) -> Answer:
    x, seed = c["x"], c["r"] if "r" in c.inputs else c["g"]
    counted = c.options.get("counted")
    counted = numbers(np.ones((*x.shape[:2], 1)) if counted is None else counted, c.dtype)
    out = c.zeros(x.shape)
    for b, d in np.ndindex(x.shape[0], x.shape[2]):
        m = list(counted[b, :, 0])
        split = (
            exact.pooling_epsilon(list(x[b, :, d]), m, seed[b, 0, d], *c.eps)
            if "r" in c.inputs
            else exact.pooling_gradient(list(x[b, :, d]), m, seed[b, 0, d])
        )
        for t in range(x.shape[1]):
            out[b, t, d] = out[b, t, d] + split.received(0, t)
        c.book(b, x.shape[0], split)
    return (out,)


def scale_gradient(c: Call) -> Answer:
    return (c.rows(lambda x, g: exact.scale_gradient(x, c.number("factor"), g), c["x"], c["g"]),)


# -- movement --------------------------------------------------------------------------------------


def _followed(c: Call, x: Array, split: Split) -> Answer:
    out = c.zeros(x.shape)
    for at in np.ndindex(x.shape):
        out[at] = out[at] + split.received(0, at)
    return (out,)


def repeat_heads(c: Call) -> Answer:
    reads = exact.repeat_heads(c["x"].shape, c.options["times"])
    return _followed(
        c, c["x"], exact.pass_through(reads, {at: c["r"][at] for at in np.ndindex(c["r"].shape)})
    )


def gather(c: Call) -> Answer:
    out = [
        _followed(c, x, exact_experts.gather_pass_through(index, r.tolist()))[0]
        for x, index, r in zip(c["x"], c.options["index"], c["r"], strict=True)
    ]
    return (np.stack([np.asarray(each) for each in out]),)


def top_k(c: Call) -> Answer:
    def one(x: Any, r: Any) -> Split:
        return exact_experts.top_k_pass_through(exact_experts.top_k(x, len(r)), r)

    return (_each_row(c, one, c["x"], c["r"]),)


def renormalize(rule: str) -> Callable[[Call], Answer]:
    def answer(c: Call) -> Answer:
        rules: dict[str, Callable[..., Split]] = {
            "epsilon": lambda x, r: exact_experts.renormalize_epsilon(x, r, *c.eps),
            "identity_gxi": exact_experts.renormalize_identity_gxi,
            "gradient": exact_experts.renormalize_gradient,
        }
        return (_each_row(c, rules[rule], c["x"], c["r" if rule == "epsilon" else "g"]),)

    return answer


# -- several rules one after the other -------------------------------------------------------------


def fan_out(c: Call) -> Answer:
    w1, w2 = (c[name].tolist() for name in ("w1", "w2"))

    def one(x: Any, r: Any) -> Split:
        joined = exact.add_epsilon(exact.linear(x, w1, None), exact.linear(x, w2, None), r, *c.eps)
        sides = [[joined.received(k, j) for j in range(len(r))] for k in (0, 1)]
        whole = joined
        whole.messages = [{}]
        for w, side in zip((w1, w2), sides, strict=True):
            part = exact.linear_epsilon(x, w, None, side, *c.eps)
            for i in range(len(x)):
                whole.send(0, i, part.received(0, i))
            for cause, messages in part.absorbed.items():
                whole.absorbed[cause] = [*whole.absorbed[cause], *messages]
        return whole

    return (_each_row(c, one, c["x"], c["r"]),)


def _visible(c: Call, q: Array, k: Array) -> Array:  # -> bool (B, H, T, S)
    shape = (*q.shape[:3], k.shape[2])
    seen = (
        np.ones(shape, dtype=bool)
        if c.options.get("mask") is None
        else np.broadcast_to(c.options["mask"], shape).copy()
    )
    if c.options.get("causal"):
        seen &= np.tril(np.ones(shape[2:], dtype=bool))
    return seen


def attention(rule: str) -> Callable[[Call], Answer]:
    """softmax((scale q) k^T) v. rule: attnlrp, cp, attnlrp_gxi or cp_gxi."""

    def answer(c: Call) -> Answer:
        q, k, v, r = (c[name] for name in ("q", "k", "v", "r" if "r" in c.inputs else "g"))
        group, factor = q.shape[1] // k.shape[1], c.number("scale")
        scaled, keys, values = q * factor, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        turned, seen = np.swapaxes(keys, -1, -2), _visible(c, q, k)
        scores = scaled @ turned
        p = c.zeros(scores.shape)
        for at in np.ndindex(scores.shape[:3]):
            p[at] = probabilities(list(scores[at]), [bool(each) for each in seen[at]])
        on_context, on_scores, on_softmax, back = _attention_rules(c, rule, factor)
        r_p, r_v = _matrices(c, on_context, p, values, r)
        copies = (r_v.reshape(*v.shape[:2], group, *v.shape[2:])).sum(axis=2)
        if on_softmax is None:
            return None, None, copies
        r_scores = c.zeros(scores.shape)
        for at in np.ndindex(scores.shape[:3]):
            visible = [bool(each) for each in seen[at]]
            split = on_softmax(list(scores[at]), list(p[at]), list(r_p[at]), visible)
            for s in range(scores.shape[3]):
                r_scores[(*at, s)] = r_scores[(*at, s)] + split.received(0, s)
            c.book(at[0], q.shape[0], split)
        r_q, r_k = _matrices(c, on_scores, scaled, turned, r_scores)
        return (
            back(r_q),
            np.swapaxes(r_k, -1, -2).reshape(*k.shape[:2], group, *k.shape[2:]).sum(axis=2),
            copies,
        )

    return answer


def _attention_rules(
    c: Call, rule: str, factor: Running
) -> tuple[Any, Any, Any, Callable[[Array], Array]]:
    if rule == "attnlrp":
        return _uniform(c), _uniform(c), exact.softmax_taylor, lambda r: r
    if rule == "cp":
        return (lambda a, v, r: exact.matmul_second(a, v, r, *c.eps)), None, None, lambda r: r
    half = Fraction(1, 2)
    if rule == "attnlrp_gxi":
        both = partial(exact.matmul_gradient, to_a=half, to_v=half)
        return both, both, exact.softmax_gradient, lambda g: g * factor
    return partial(exact.matmul_gradient, to_a=0, to_v=1), None, None, lambda g: g


def network(c: Call) -> Answer:
    """z, and the relevance at x for each seed: layer by layer forward, rule by rule back."""
    xs = [c["x"]]
    for layer in c["layers"]:
        out = [_forward(layer, list(row)) for row in xs[-1]]
        xs.append(np.array(out, dtype=object))
    answers = []
    for seed in c["seeds"]:
        r = seed
        for layer, x in zip(reversed(c["layers"]), reversed(xs[:-1]), strict=True):
            if layer["operation"] == "linear":
                number = partial(_number, layer, SIGNIFICANT[c.dtype])
                b = None if layer["b"] is None else list(layer["b"])
                r = _each_row(
                    c, _linear(layer["rule"], layer, layer["w"].tolist(), b, number), x, r
                )
        answers.append(r)
    c.absorbed.clear()  # the sum over seeds means nothing
    return xs[-1], *answers


def _number(layer: Mapping[str, Any], bits: int, name: str) -> Running:
    return given(layer[name], bits)


def _forward(layer: Mapping[str, Any], x: list[Running]) -> list[Running]:
    if layer["operation"] == "linear":
        return exact.linear(
            x, layer["w"].tolist(), None if layer["b"] is None else list(layer["b"])
        )
    return [each * _gate(layer["kind"], each) for each in x]


def _gate(kind: str, x: Running) -> Running:
    """As in `activation`, it may be off by u whatever its size."""
    gate = exact.GATE[kind][0](x)
    return (
        Running(gate.value, x.bits, gate.error + 4.0)
        if isinstance(gate, Running)
        else given(gate, x.bits)
    )


# -- all of them -----------------------------------------------------------------------------------

_LINEAR = ("epsilon", "gamma", "z_plus", "alpha_beta", "flat", "w_square", "z_box", "gradient")
_NORMS = (
    "rms_norm_identity_gxi",
    "rms_norm_gradient",
    "layer_norm_epsilon",
    "layer_norm_epsilon_gxi",
    "layer_norm_gradient",
)
_HALF = Fraction(1, 2)

ANSWERS: dict[str, Callable[[Call], Answer]] = (
    {f"linear_{rule}": linear(rule) for rule in _LINEAR}
    | {f"convolution_{rule}": convolution(rule) for rule in ("epsilon", "z_plus", "gradient")}
    | {name: norm(name) for name in _NORMS}
    | {f"attention_{rule}": attention(rule) for rule in ("attnlrp", "cp", "attnlrp_gxi", "cp_gxi")}
    | {f"renormalize_{rule}": renormalize(rule) for rule in ("epsilon", "identity_gxi", "gradient")}
    | {
        f"softmax_{name}": softmax(getattr(exact, f"softmax_{name}"), "r")
        for name in ("taylor", "spread", "z_plus", "identity")
    }
    | {
        name: identity
        for name in (
            "rms_norm_identity",
            "layer_norm_identity",
            "activation_identity",
            "renormalize_identity",
            "scale_pass_through",
        )
    }
    | {
        "add_epsilon": add_epsilon,
        "add_gradient": lambda c: tuple(c.many(2, exact.add_gradient, c["a"], c["b"], c["g"])),
        "sum_epsilon": sum_epsilon,
        "multiply_uniform": product(exact.multiply_uniform, "r"),
        "multiply_uniform_gxi": product(exact.multiply_uniform_gxi, "g"),
        "multiply_gradient": product(exact.multiply_gradient, "g"),
        "multiply_second": second(exact.multiply_second, "r"),
        "multiply_second_gxi": second(exact.multiply_second_gxi, "g"),
        "matmul_uniform": matmul,
        "matmul_second": matmul_second,
        "matmul_uniform_gxi": matmul_gradient(_HALF, _HALF),
        "matmul_second_gxi": matmul_gradient(0, 1),
        "matmul_gradient": matmul_gradient(1, 1),
        "softmax_gradient": softmax(exact.softmax_gradient, "g"),
        "activation_identity_gxi": activation(exact.activation_identity_gxi),
        "activation_gradient": activation(exact.activation_gradient),
        "rotary_epsilon": rotary,
        "rotary_gradient": rotary,
        "pooling_epsilon": pooling,
        "pooling_gradient": pooling,
        "scale_gradient": scale_gradient,
        "repeat_heads_pass_through": repeat_heads,
        "gather_pass_through": gather,
        "top_k_pass_through": top_k,
        "fan_out_epsilon": fan_out,
        "network": network,
    }
)
