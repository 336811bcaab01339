"""Known mistakes, each as what an implementation that makes it would answer.

A mistake replaces one part of the rules as right.py has them, or calls a rule with something other
than what was asked, or spoils the answer afterwards. So a wrong answer can be laid beside the
answers that the known mistakes give, and the one that reproduces it is named. `MISTAKES` is the
table; it stands at the end.

Where a mistake makes no difference beyond rounding, or is not defined, asking for its answer raises
`Inapplicable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.conformance.reference_rules import (
    GREATEST,
    Answer,
    Layer,
    Right,
    activation,
    centered,
    contributions,
    folded,
    handed_on,
    minus_part,
    patches_of,
    plus_part,
    ratio,
    rounded,
    slope,
    summed,
    wide,
)

Way: TypeAlias = Callable[[Case], Answer]


class Inapplicable(Exception):
    """The mistake makes no difference on this case, or is not defined there."""


# -- ways to be wrong ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    id: str
    where: str
    """Libraries in which it was found, or "common mistake"."""
    says: str
    """What goes wrong, and its effect."""
    rules: tuple[str, ...]
    """Rules that can show it; `network` for small networks."""
    kind: Literal["fault", "convention"]
    wrong: Way | None
    """What an implementation with this mistake answers; Inapplicable where it is no different.
    None: only behavior shows it.
    """
    also: tuple[Way, ...] = ()
    """Other forms in which the same mistake is met."""
    behavior: str = ""
    """What shows it. For networks `again` (a second call differs), `targets` (several seeds),
    `forward` (z is changed); `narrowed` (right to the digits of float32) for all."""

    @property
    def ways(self) -> tuple[Way, ...]:
        return ((self.wrong,) if self.wrong else ()) + self.also


@lru_cache(maxsize=512)
def right_answer(case: Case) -> Answer:
    """One case is asked about under every mistake."""
    return Right(case.dtype).answer(case)


def planted(**parts: Any) -> Way:
    """The right rules with some of their functions replaced."""
    kind = type("Planted", (Right,), parts)
    return lambda case: kind(case.dtype).answer(case)


def called(change: Callable[[Case], dict[str, Any]]) -> Way:
    """The right rule, called with other operands or options than it was asked for."""
    return lambda case: Right(case.dtype).answer(_changed(case, change(case)))


def spoiled(change: Callable[[Case, Array, Array], Array | None]) -> Way:
    """The right answer, each array changed: change(case, the operand it belongs to, the array)."""

    def way(case: Case) -> Answer:
        right = right_answer(case)
        return tuple(
            got if name == "z" or got is None else change(case, _operand(case, name), got)
            for name, got in zip(case.returns, right, strict=True)
        )

    return way


def _changed(case: Case, new: dict[str, Any]) -> Case:
    inputs = {name: value for name, value in new.items() if name in case.inputs}
    known = {name: value for name, value in new.items() if name in case.signature.options}
    return replace(case, inputs={**case.inputs, **inputs}, options={**case.options, **known})


def _operand(case: Case, name: str) -> Array:
    name, _, member = name.partition(".")
    held = wide(case.inputs[name])
    return held[int(member)] if member and isinstance(held, list) else held


def _propagated(case: Case, name: str) -> Array:
    """The relevance that arrived: of the seed, where a network answers several."""
    _, _, member = name.partition(".")
    held = wide(case.inputs[case.seed])
    return held[int(member)] if case.rule == "network" else held


def _checked(way: Way, rules: tuple[str, ...]) -> Way:
    """Without the answers that do not differ, and with numbers beyond the case's format as
    infinities.
    """

    def wrong(case: Case) -> Answer:
        if case.rule not in rules:
            raise Inapplicable(f"it is not a mistake of {case.rule}")
        right = right_answer(case)
        with np.errstate(all="ignore"):
            got = tuple(None if a is None else _overflowed(a, case.dtype) for a in way(case))
        if not any(_differs(case, *each) for each in zip(case.returns, right, got, strict=True)):
            raise Inapplicable("it makes no difference here")
        return got

    return wrong


def _overflowed(a: Array, dtype: str) -> Array:
    return np.where(np.abs(a) > GREATEST[dtype], np.copysign(np.inf, a), a)


def _differs(case: Case, name: str, right: Array | None, got: Array | None) -> bool:
    """By more than the case's tolerance where it has one, and than rounding in float64."""
    if right is None or got is None:
        return bool(np.any(got if right is None else right)) and (right is None) != (got is None)
    if right.shape != got.shape:
        return True
    condition = case.condition.get(name)
    allowed = 1e-12 * np.abs(right) + (
        0.0 if condition is None else case.units * case.u * condition
    )
    with np.errstate(all="ignore"):
        return not bool(
            np.all(
                (np.abs(got - right) <= allowed)
                | (got == right)
                | (np.isnan(got) & np.isnan(right))
            )
        )


def named(patterns: str) -> tuple[str, ...]:
    """The rules that match any of the patterns, in the order of SIGNATURES; `network` last."""
    return tuple(
        rule
        for rule in (*SIGNATURES, "network")
        if any(fnmatchcase(rule, each) for each in patterns.split())
    )


_RELEVANCE = " ".join(rule for rule, each in SIGNATURES.items() if each.formulation == "relevance")
_KEEPING = (
    "multiply_uniform multiply_second rms_norm_identity layer_norm_identity "
    "activation_identity scale_pass_through repeat_heads_pass_through "
    "gather_pass_through top_k_pass_through renormalize_identity linear_flat "
    "linear_w_square linear_z_box"
)
"""Rules that absorb nothing, or only what has no receiver."""
_ABSORBING = " ".join(rule for rule in _RELEVANCE.split() if rule not in _KEEPING.split())
_GRADIENT = " ".join(
    rule for rule, each in SIGNATURES.items() if each.formulation == "gradient_x_input"
)
_EPSILON = " ".join(rule for rule, each in SIGNATURES.items() if "eps" in each.options)
_SOFTMAX = "softmax_taylor softmax_spread softmax_z_plus softmax_identity softmax_gradient"
_ATTENTION = "attention_attnlrp attention_cp attention_attnlrp_gxi attention_cp_gxi"
_BY_EPSILON = f"{_EPSILON} network"


def fault(id: str, where: str, rules: str, says: str, *ways: Way, behavior: str = "") -> Mistake:
    return _mistake("fault", id, where, rules, says, ways, behavior)


def convention(id: str, where: str, rules: str, says: str, *ways: Way) -> Mistake:
    """A choice that some make on purpose: wrong only where the case asks for another."""
    return _mistake("convention", id, where, rules, says, ways, "")


def _mistake(
    kind: Literal["fault", "convention"],
    id: str,
    where: str,
    rules: str,
    says: str,
    ways: tuple[Way, ...],
    behavior: str,
) -> Mistake:
    names = named(rules)
    checked = tuple(_checked(way, names) for way in ways)
    return Mistake(
        id, where, says, names, kind, checked[0] if checked else None, checked[1:], behavior
    )


# -- the wrong parts that take more than a line ----------------------------------------------------


def _with_denominator(denominator: str) -> Callable[..., Answer]:
    return lambda self, a, v, r, **options: self.matmul_uniform(
        a, v, r, **{**options, "denominator": denominator}
    )


def _sign_of_zero(self: Right, z: Array, eps: float, kind: str) -> Array:
    return z + eps * np.sign(z) if kind == "sign" else Right.stabilized(self, z, eps, kind)


def _other_eps(eps: float) -> Way:
    return planted(share=lambda self, z, r, _, kind: Right.share(self, z, r, eps, kind))


def _proportional(self: Right, operands: Sequence[Array], fixed: Sequence[bool]) -> list[Any]:
    total = summed([np.abs(a) for a, c in zip(operands, fixed, strict=True) if not c])
    return [np.abs(a) / total for a in operands]


def _by_size(floor: float) -> Callable[..., Answer]:
    """|a| / (sum of |a| + floor eps); 0 where all are 0."""

    def sum_epsilon(
        self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Answer:
        s = self.divided(r, summed([np.abs(a) for a in operands]) + floor * eps)
        return tuple(folded(np.abs(a) * s, a) for a in operands)

    return sum_epsilon


def _rescaled_over_batch(
    self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """Each branch scaled to its part |sum a| / sum of |sum a| of all the relevance there is, sums
    over the whole batch.
    """
    shares = Right.sum_epsilon(self, operands, r, eps=eps, stabilizer=stabilizer)
    sums: list[Any] = [a.sum() for a in shares if a is not None]
    total = sum(np.abs(each) for each in sums)
    return tuple(
        np.sign(each) * a * (r.sum() / total)
        for a, each in zip(shares, sums, strict=True)
        if a is not None
    )


def _rescaled(axes: int) -> Way:
    """Every array scaled by one number so that the sum of all is what arrived: per example (axes
    from 1), or over the batch (from 0).
    """

    def way(case: Case) -> Answer:
        right = right_answer(case)
        if case.rule == "network":
            arrived = wide(case.inputs["seeds"])
            return right[0], *(
                _scaled((a,), r, axes)[0]
                for a, r in zip(right[1:], arrived, strict=True)
                if a is not None
            )
        return _scaled(right, wide(case.inputs[case.seed]), axes)

    return way


def _scaled(answer: Answer, r: Array, axes: int) -> Answer:
    sums = sum(_total(a, axes) for a in answer if a is not None)
    factor = np.asarray(_total(r, axes) / sums)
    return tuple(
        None if a is None else a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim))
        for a in answer
    )


def _total(a: Array, axes: int) -> Array:
    return a.sum(tuple(range(axes, a.ndim)))


def _uniform_mean(axes: int) -> Way:
    def way(case: Case) -> Answer:
        right = right_answer(case)
        if case.rule == "network":
            return right[0], *(
                _mean_of((a,), r, axes)[0]
                for a, r in zip(right[1:], wide(case.inputs["seeds"]), strict=True)
            )
        return _mean_of(right, wide(case.inputs[case.seed]), axes)

    return way


def _mean_of(answer: Answer, r: Array, axes: int) -> Answer:
    count = sum(math.prod(a.shape[axes:]) for a in answer if a is not None)
    mean = np.asarray(_total(r, axes) / count)
    return tuple(
        None
        if a is None
        else np.zeros(a.shape) + mean.reshape(mean.shape + (1,) * (a.ndim - mean.ndim))
        for a in answer
    )


def _half_precision(eps: float | None) -> Way:
    """z, z + eps and R / (z + eps) each rounded to the 16-bit format, and eps itself; nothing
    guards 0 / 0.
    """

    def share(self: Right, z: Array, r: Array, asked: float, kind: str) -> Array:
        d = self.stabilized(
            rounded(z, self.dtype),
            float(rounded(np.asarray(asked if eps is None else eps), self.dtype)),
            kind,
        )
        return rounded(r / rounded(d, self.dtype), self.dtype)

    return _in_half(planted(share=share))


def _in_half(way: Way) -> Way:
    def wrong(case: Case) -> Answer:
        if case.dtype not in ("float16", "bfloat16"):
            raise Inapplicable("it is a mistake of the 16-bit formats")
        return way(case)

    return wrong


def _clamped_divide(fixed: float | None) -> Way:
    """r / (max(z, c) + min(z, c)), which is z + c whatever the sign of z, and c where that is zero;
    0 where z is.
    """

    def share(self: Right, z: Array, r: Array, eps: float, kind: str) -> Array:
        c = fixed or eps
        d = np.maximum(z, c) + np.minimum(z, c)
        return r / np.where(d == 0, c, d) * (z != 0)

    return planted(
        share=share, divided=lambda self, r, d: share(self, d, r, fixed or 1e-9, "plain")
    )


def _weights_amplified(case: Case) -> Answer:
    """The forward itself runs with w + gamma w^+, and the sweep with it."""
    if case.rule != "network":
        raise Inapplicable("it shows in a network's forward")
    layers = [_amplified(layer) for layer in wide(case.inputs["layers"])]
    return Right(case.dtype).answer(replace(case, inputs={**case.inputs, "layers": layers}))


def _amplified(layer: Layer) -> Layer:
    if layer.get("rule") != "gamma":
        return layer
    return {
        "operation": "linear",
        "w": layer["w"] + layer["gamma"] * plus_part(layer["w"]),
        "b": layer["b"],
        "rule": "epsilon",
        "eps": 1e-9,
    }


def _default_rules(case: Case) -> dict[str, Any]:
    default = {"rule": "epsilon", "eps": 1e-9}
    linear = [layer["operation"] == "linear" for layer in case.inputs["layers"]]
    bare = [
        {key: layer[key] for key in ("operation", "w", "b", "kind") if key in layer}
        for layer in case.inputs["layers"]
    ]
    return {
        "layers": [
            layer | default if each else layer for layer, each in zip(bare, linear, strict=True)
        ]
    }


def _input_times_gradient(case: Case) -> Answer:
    """Seeded with R / z, as a gradient is."""
    way = planted(
        undone=lambda self, layer, x, g: (
            g * slope(x, layer["kind"])
            if layer["operation"] == "activation"
            else self.linear_gradient(x, layer["w"], layer["b"], g)
        ),
        swept=lambda self, layers, xs, r: (
            xs[0] * Right.swept(self, layers, xs, self.divided(r, xs[-1]))
        ),
    )
    return way(case)


def _outputs(case: Case) -> Array:
    """What the operation of a gradient-carrying rule computes."""
    *operands, _ = wide(case.arguments)
    options, right = wide(dict(case.options)), Right(case.dtype)
    forward: dict[str, Callable[[], Array]] = {
        "linear": lambda: right.linear_sum(*operands),
        "convolution": lambda: _convolved(*operands),
        "add": lambda: summed(operands),
        "multiply": lambda: math.prod(operands[0] if isinstance(operands[0], list) else operands),
        "matmul": lambda: operands[0] @ operands[1],
        "softmax": lambda: right.probabilities(
            right.filled(operands[0], options.get("mask")), options.get("axis", -1)
        ),
        "rms": lambda: (
            operands[0]
            * right.rms_norm_identity_gxi(operands[0], operands[1], np.ones(1), **options)
        ),
        "layer": lambda: _normed(right, *operands, **options),
        "activation": lambda: activation(operands[0], options["kind"]),
        "rotary": lambda: operands[0] * operands[1] + right.turned(operands[0], -1) * operands[2],
        "pooling": lambda: (
            operands[0] * right.pooling_gradient(operands[0], np.ones(1), **options)
        ).sum(-2, keepdims=True),
        "scale": lambda: operands[0] * options["factor"],
        "renormalize": lambda: operands[0] / operands[0].sum(-1, keepdims=True),
        "attention": lambda: _context(right, *operands, **options),
    }
    return forward[case.rule.partition("_")[0]]()


def _convolved(x: Array, w: Array, b: Array | None) -> Array:
    z = Right().linear_sum(patches_of(x, w.shape[2:]), w.reshape(len(w), -1), b)
    return z.swapaxes(1, 2).reshape(
        len(x), len(w), x.shape[2] // w.shape[2], x.shape[3] // w.shape[3]
    )


def _normed(right: Right, x: Array, w: Array, b: Array | None, *, norm_eps: float) -> Array:
    z = centered(x) / right.std(x, norm_eps) * w
    return z if b is None else z + b


def _context(
    right: Right,
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool = False,
    mask: Array | None = None,
) -> Array:
    _, _, values, _, _, p = right.attended(q, k, v, scale, causal, mask)
    return p @ values


def _seeded_with_outputs(case: Case) -> dict[str, Any]:
    if case.rule == "network":
        z = Right().answer(case)[0]
        return {"seeds": [r * z for r in wide(case.inputs["seeds"])]}
    return {"g": wide(case.inputs["g"]) * _outputs(case)}


def _without_input(case: Case, x: Array, got: Array) -> Array:
    if np.any(x == 0):
        raise Inapplicable("an input is zero: what it was multiplied with cannot be told")
    return got / x


def _chained(
    self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """((a + b) + c) + ..., each sum with a stabilizer of its own."""
    given: list[Array] = []
    for k in range(len(operands) - 1, 0, -1):
        r, last = Right.sum_epsilon(
            self, [summed(operands[:k]), operands[k]], r, eps=eps, stabilizer=stabilizer
        )
        given.insert(0, last)
    return (r, *given)


def _interleaved(self: Right, x: Array, sign: int) -> Array:
    """Neighbors as pairs: [-x1, x0, -x3, x2, ...] for sign -1."""
    z = np.empty_like(x)
    z[..., ::2], z[..., 1::2] = sign * x[..., 1::2], -sign * x[..., ::2]
    return z


def _angles_of_pairs(case: Case) -> dict[str, Any]:
    """cos and sin laid out for neighboring pairs."""
    half = case.inputs["cos"].shape[-1] // 2
    return {name: np.repeat(case.inputs[name][..., :half], 2, axis=-1) for name in ("cos", "sin")}


def _full_jacobian(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, **options: Any
) -> Array:
    return x * self.layer_norm_gradient(
        x, w, b, _norm_share(self, x, w, b, r, norm_eps, **options), norm_eps=norm_eps
    )


def _bias_spread(
    self: Right,
    x: Array,
    w: Array,
    b: Array | None,
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    relevance = Right.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    s = self.share(self.linear_sum(x, w, b), r, eps, stabilizer)
    return relevance if b is None else relevance + (s @ b)[..., None] / x.shape[-1]


def _all_spread(
    self: Right,
    x: Array,
    w: Array,
    b: Array | None,
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    """Bias and stabilizer both."""
    relevance = Right.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    return relevance + (r.sum(-1, keepdims=True) - relevance.sum(-1, keepdims=True)) / x.shape[-1]


def _naive_probabilities(self: Right, filled: Array, axis: int) -> Array:
    e = np.exp(filled - filled.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _absolute_gradient(a: Array, b: Array, g: Array) -> Answer:
    """(a + b) g split by |a| and |b|, each part over its operand: the sign of a, not a, decides."""
    each = (a + b) * g / (np.abs(a) + np.abs(b))
    return folded(np.sign(a) * each, a), folded(np.sign(b) * each, b)


def _times(factor: float, rule: Callable[..., Answer]) -> Callable[..., Answer]:
    return lambda *arguments, **options: tuple(
        None if each is None else factor * each for each in rule(*arguments, **options)
    )


def _halved(rule: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arguments, **options: rule(*arguments, **options) / 2


def _relu_at_zero(rule: Callable[..., Array], at: float) -> Callable[..., Array]:
    return lambda self, x, g, *, kind: np.where(
        (x == 0) & (kind == "relu"), at * g, rule(self, x, g, kind=kind)
    )


def _copies(r: Array, times: int) -> Array:  # (B, K times, T, d) -> (B, K, times, T, d)
    return r.reshape(r.shape[0], -1, times, *r.shape[2:])


def _norm_share(
    self: Right,
    x: Array,
    w: Array,
    b: Array | None,
    r: Array,
    norm_eps: float,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    return self.share(_normed(self, x, w, b, norm_eps=norm_eps), r, eps, stabilizer)


def _centered_times(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, **options: Any
) -> Array:
    return (
        centered(x) * w * _norm_share(self, x, w, b, r, norm_eps, **options) / self.std(x, norm_eps)
    )


def _beta_kept(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, **options: Any
) -> Array:
    relevance = Right.layer_norm_epsilon(self, x, w, b, r, norm_eps=norm_eps, **options)
    return (
        relevance
        if b is None
        else relevance + b * _norm_share(self, x, w, b, r, norm_eps, **options)
    )


def _gamma_unbalanced(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    """Amplified contributions over a sum that is not amplified."""
    z = self.linear_sum(x, w, b)
    c = contributions(x, w)
    return handed_on(c + gamma * self.amplified(c, z[..., None], x, w), self.divided(r, z))


def _biased_box(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float
) -> Array:
    c = plus_part(w) * (x - low)[..., None, :] + minus_part(w) * (x - high)[..., None, :]
    return handed_on(c, self.divided(r, c.sum(-1) + (0.0 if b is None else b)))


def _averaged(self: Right, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
    counts = Right.gather_pass_through(self, x, np.ones_like(r), index=index)
    return Right.gather_pass_through(self, x, r, index=index) / np.maximum(counts, 1)


def _values_alone(case: Case) -> Answer:
    """Nothing to queries and keys, and still only half to the values."""
    return None, None, right_answer(case)[2]


def _unbiased_scale_alone(
    self: Right, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float
) -> Array:
    """The other scale in a derivative that takes it for the right one."""
    n, c = x.shape[-1], centered(x)
    h = c / self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    std = self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    return (centered(w * g) - h * (w * g * h).mean(-1, keepdims=True)) / std


def _root_of_square(self: Right, square: Array, norm_eps: float) -> Array:
    return np.sqrt(square**2 + norm_eps)


def _sign_up(z: Array, eps: float) -> Array:
    return np.where(z >= 0, eps, -eps)


def _bridged(case: Case) -> Answer:
    """R / z goes in, is multiplied by z, and what the rule makes of it is divided by x + 1e-10 s(x)
    and multiplied by x again.
    """
    if case.formulation == "gradient_x_input":
        raise Inapplicable("it is a bridge for rules that carry relevance")
    relevance = wide(case.inputs["r"])
    if case.rule.startswith(("linear", "convolution")):
        relevance = relevance * (_outputs(case) != 0)
    small = 0.0 if case.dtype == "float16" else 1e-10
    way = spoiled(lambda case, x, got: got / (x + _sign_up(x, small)) * x)
    return way(_changed(case, {"r": relevance}))


def _stabilized_by(eps: float, **parts: Any) -> Way:
    """A stabilizer in a rule that has none."""
    return planted(divided=lambda self, r, d: r / (d + _sign_up(d, eps)), **parts)


def _multiplied_in_place(kind: str) -> Way:
    """One gradient for all operands, and each multiplies it by itself in turn."""

    def sum_epsilon(
        self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Answer:
        product = self.share(summed(operands), r, eps, kind or stabilizer) * math.prod(operands)
        return tuple(folded(product, a) for a in operands)

    return planted(sum_epsilon=sum_epsilon)


def _signed_weights(self: Right, x: Array, w: Array) -> tuple[Array, Array]:
    return contributions(x, plus_part(w)), contributions(x, minus_part(w))


def _spread_offset(
    self: Right, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
) -> Array:
    return Right(self.dtype).softmax_spread(x, r, mask=mask, axis=axis)


class _MaskedAfter(Right):
    """The mask strikes out probabilities that hidden entries have had a part in."""

    def filled(self, x: Array, mask: Array | None) -> Array:
        self.hidden = np.isneginf(Right.filled(self, x, mask))
        return x

    def seen(self, filled: Array) -> Array:
        return ~self.hidden

    def logits(self, filled: Array, axis: int) -> Array:
        return np.where(self.hidden, 0.0, filled)

    def probabilities(self, filled: Array, axis: int) -> Array:
        return np.where(self.hidden, 0.0, Right.probabilities(self, filled, axis))


def _transposed(case: Case) -> dict[str, Any]:
    new = {name: case.inputs[name].T for name in ("w", "w1", "w2") if name in case.inputs}
    if any(w.shape != case.inputs[name].shape for name, w in new.items()):
        raise Inapplicable("the weight is not square")
    return new


def _gamma_weights(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    w = w + gamma * plus_part(w)
    return self.divided(r, self.linear_sum(x, w, b)) @ w * x


def _gamma_weights_and_bias(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return _gamma_weights(
        self, x, w, None if b is None else b + gamma * plus_part(b), r, gamma=gamma
    )


def _with_factors(change: Callable[[float, float], tuple[float, float]]) -> Way:
    def linear_alpha_beta(
        self: Right, x: Array, w: Array, b: Array | None, r: Array, *, alpha: float, beta: float
    ) -> Array:
        alpha, beta = change(alpha, beta)
        return Right.linear_alpha_beta(self, x, w, b, r, alpha=alpha, beta=beta)

    return planted(linear_alpha_beta=linear_alpha_beta)


def _gamma_not_at_zero(
    self: Right, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return Right.linear_gamma(self, x, w, b, r * (self.linear_sum(x, w, b) != 0), gamma=gamma)


def _constants_among_three(
    self: Right, operands: Sequence[Array], fixed: Sequence[bool]
) -> list[Any]:
    """A product of two has a function of its own, which is right."""
    return (
        [1 / len(operands)] * len(operands)
        if len(operands) > 2
        else Right.parts(self, operands, fixed)
    )


def _doubled_matmul(self: Right, a: Array, v: Array, r: Array, **options: Any) -> Answer:
    """R / (O + eps) to each."""
    return _times(2, Right.matmul_uniform)(self, a, v, r, **{**options, "denominator": "2(z+eps)"})


def _by_mean(
    self: Right,
    x: Array,
    r: Array,
    *,
    counted: Array | None = None,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    count = x.shape[-2] if counted is None else counted.sum(-2, keepdims=True)
    return Right.pooling_epsilon(
        self, x, r, counted=counted, stabilizer=stabilizer, eps=eps * count
    )


def _as_epsilon(eps: float) -> Callable[..., Array]:
    return lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(
        x, w, b, r, norm_eps=norm_eps, eps=eps
    )


def _counted_but_not_in_number(
    self: Right, x: Array, g: Array, *, counted: Array | None = None
) -> Array:
    return Right.pooling_gradient(self, x, g) * (1.0 if counted is None else counted)


def _bias_squared(self: Right, x: Array, w: Array, b: Array | None, r: Array) -> Array:
    return self.divided(r, (w * w).sum(-1) + (0.0 if b is None else b * b)) @ (w * w)


def _root_mean_square(z: Array, axes: int) -> Array:
    return np.sqrt((z * z).mean(tuple(range(axes, z.ndim)), keepdims=True))


def _kind_for(asked: str, used: str) -> Way:
    return called(lambda case: {"kind": used} if case.options["kind"] == asked else {})


COMMON = "common mistake"

# -- the table: faults found in libraries, then slips that are easily made, then choices -----------

MISTAKES: tuple[Mistake, ...] = (
    fault(
        "eps-unsigned",
        "LXT relevance form, PE-AWARE-LRP",
        _BY_EPSILON,
        "eps is added without the sign of z, so a small negative z is driven through zero "
        "and its relevance explodes or changes sign.",
        planted(
            stabilized=lambda self, z, eps, kind: Right.stabilized(
                self, z, eps, "none" if kind == "none" else "plain"
            )
        ),
        planted(stabilized=lambda self, z, eps, kind: z + eps),
    ),
    fault(
        "eps-zero-sign",
        "several",
        _BY_EPSILON,
        "sign(0) is taken as 0, so an output that is exactly zero divides by zero, or its "
        "relevance is lost.",
        planted(stabilized=_sign_of_zero, divided=lambda self, r, d: r / d),
        planted(stabilized=_sign_of_zero),
        planted(
            stabilized=lambda self, z, eps, kind: z + eps * np.sign(z),
            divided=lambda self, r, d: r / d,
        ),
    ),
    fault(
        "eps-two-forms",
        "LXT",
        "matmul_uniform attention_attnlrp",
        "One matrix product divides by 2 (O + eps) and another by 2 O + eps, so eps counts "
        "once in one place and twice in the other.",
        called(lambda case: {"denominator": "2(z+eps)"}),
        called(lambda case: {"denominator": "2z+eps"}),
        *(
            planted(
                context_product=_with_denominator(context),
                score_product=_with_denominator(scores),
                **parts,
            )
            for context, scores in (("2(z+eps)", "2z+eps"), ("2z+eps", "2(z+eps)"))
            for parts in ({}, {"stabilized": lambda self, z, eps, kind: z + eps})
        ),
    ),
    fault(
        "softmax-dim",
        "LXT",
        "softmax_taylor softmax_spread softmax_gradient",
        "A softmax over another axis still sums relevance over the last one, so rows that "
        "have nothing to do with each other mix.",
        planted(along=lambda self, r, axis: r.sum(-1, keepdims=True)),
    ),
    fault(
        "softmax-shifted",
        COMMON,
        "softmax_taylor softmax_spread softmax_z_plus attention_attnlrp",
        "The logits are used with their maximum subtracted, so relevance is shared by the "
        "distance to the largest logit, which gets none.",
        planted(
            logits=lambda self, filled, axis: np.where(
                np.isneginf(filled), 0.0, filled - filled.max(axis, keepdims=True)
            )
        ),
    ),
    fault(
        "mask-finfo",
        "LXT",
        f"{_SOFTMAX} {_ATTENTION}",
        "Only -inf counts as masked: where a mask wrote the lowest finite number, the "
        "least relevance is multiplied by it, and a row that "
        "is masked whole gives huge numbers or NaN.",
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, self.lowest),
            probabilities=_naive_probabilities,
        ),
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, -np.inf),
            probabilities=_naive_probabilities,
        ),
    ),
    fault(
        "tril-always",
        "dynamicLRP",
        f"{_SOFTMAX} {_ATTENTION}",
        "The causal cut is applied to bidirectional attention too, so what later tokens "
        "contribute is lost.",
        planted(visible=lambda self, scores, causal, mask: Right.visible(self, scores, True, mask)),
        planted(
            softmax_taylor=lambda self, x, r, **o: np.tril(Right.softmax_taylor(self, x, r, **o)),
            softmax_spread=lambda self, x, r, **o: np.tril(Right.softmax_spread(self, x, r, **o)),
            softmax_z_plus=lambda self, x, r, **o: np.tril(Right.softmax_z_plus(self, x, r, **o)),
            softmax_identity=lambda self, x, r, **o: np.tril(
                Right.softmax_identity(self, x, r, **o)
            ),
            softmax_gradient=lambda self, x, g, **o: np.tril(
                Right.softmax_gradient(self, x, g, **o)
            ),
        ),
        planted(
            softmax_taylor=lambda self, x, r, **o: Right.softmax_taylor(self, x, np.tril(r), **o)
        ),
    ),
    fault(
        "cp-half",
        "dynamicLRP, LXT GPT-2 relevance form",
        "matmul_second matmul_second_gxi multiply_second multiply_second_gxi attention_cp "
        "attention_cp_gxi",
        "The values get half of the relevance although the other operand is constant and "
        "gets nothing: half is lost in every layer.",
        spoiled(lambda case, x, got: got / 2),
        planted(matmul_second=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o)[1]),
    ),
    fault(
        "halved-linear",
        "dynamicLRP",
        "linear_* convolution_* fan_out_epsilon network",
        "Every linear layer passes on half of its relevance, as if the weights were an "
        "operand that takes the other half.",
        planted(
            **{
                rule: _halved(getattr(Right, rule))
                for rule in SIGNATURES
                if rule.startswith("linear_") and rule != "linear_z_plus"
            }
        ),
    ),
    fault(
        "moe-degree-0",
        "LXT Mixtral, Qwen3-MoE",
        "renormalize_identity renormalize_identity_gxi",
        "The division of top-k weights by their sum gets the epsilon rule, which passes on "
        "nothing in sum, for a common factor cancels.",
        planted(
            renormalize_identity=lambda self, x, r: self.renormalize_epsilon(
                x, r, eps=0.0, stabilizer="none"
            ),
            renormalize_identity_gxi=Right.renormalize_gradient,
        ),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-6)),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-8)),
    ),
    fault(
        "identity-in-wrong-form",
        "autoLRP",
        "activation_identity activation_identity_gxi rms_norm_identity "
        "rms_norm_identity_gxi layer_norm_identity renormalize_identity "
        "renormalize_identity_gxi scale_pass_through scale_gradient network "
        "attention_attnlrp attention_attnlrp_gxi",
        "The identity rule has the factor f(x)/x where gradients are propagated, none "
        "where relevance is; each stands in the other's place.",
        planted(
            activation_identity=lambda self, x, r, *, kind: r * ratio(x, kind),
            activation_identity_gxi=lambda self, x, g, *, kind: g,
            rms_norm_identity=Right.rms_norm_identity_gxi,
            rms_norm_identity_gxi=lambda self, x, w, g, *, norm_eps: g,
            layer_norm_identity=Right.layer_norm_epsilon_gxi,
            renormalize_identity=Right.renormalize_identity_gxi,
            renormalize_identity_gxi=lambda self, x, g: g,
            scale_pass_through=Right.scale_gradient,
            scale_gradient=lambda self, x, g, *, factor: g,
        ),
        planted(activation_identity=lambda self, x, r, *, kind: r * (activation(x, kind) / x)),
    ),
    fault(
        "product-proportional",
        "autoLRP",
        "multiply_uniform multiply_uniform_gxi",
        "A product's relevance is split by the size of its operands, not evenly: the "
        "larger one gets more though both are needed alike.",
        planted(parts=_proportional),
    ),
    fault(
        "residual-absolute",
        "autoLRP, dynamicLRP",
        "add_epsilon sum_epsilon add_gradient fan_out_epsilon",
        "A sum's relevance is split by |a|/(|a| + |b|), so a term that works against the "
        "others is credited like one that works with them.",
        planted(
            sum_epsilon=_by_size(0.0),
            add_gradient=lambda self, a, b, g: _absolute_gradient(a, b, g),
        ),
        planted(sum_epsilon=_by_size(1.0)),
    ),
    fault(
        "constant-eats-share",
        "LXT",
        "multiply_uniform multiply_uniform_gxi",
        "Constant operands are counted among those that share, so the part they would get is lost.",
        planted(parts=lambda self, operands, fixed: [1 / len(operands)] * len(operands)),
        planted(parts=_constants_among_three),
        called(lambda case: {"constant": None}),
    ),
    fault(
        "relu-identity-lost",
        "captum",
        "activation_identity network",
        "The identity rule after a ReLU returns nothing, so no relevance reaches any layer below.",
        planted(activation_identity=lambda self, x, r, *, kind: 0 * r if kind == "relu" else r),
    ),
    fault(
        "rule-forgotten",
        "captum",
        "network",
        "The rules set by the user are deleted after the first call: the second answers "
        "with default rules, or with input times gradient.",
        called(_default_rules),
        _input_times_gradient,
        behavior="again",
    ),
    fault(
        "conv-doubled",
        "Chefer",
        "convolution_*",
        "The convolution returns its relevance twice over, unless the image has three channels.",
        spoiled(lambda case, x, got: got if x.shape[1] == 3 else 2 * got),
        spoiled(lambda case, x, got: 2 * got),
    ),
    fault(
        "safe-divide",
        "Chefer",
        f"{_BY_EPSILON} linear_z_plus linear_alpha_beta linear_gamma convolution_z_plus",
        "The guard of the division is max(z, eps) + min(z, eps), which adds eps without a "
        "sign and drops the relevance of a zero: "
        "1/b times b is 0.67, 2 or -1 near eps.",
        _clamped_divide(1e-9),
        _clamped_divide(None),
    ),
    fault(
        "batch-coupled",
        "Chefer",
        f"{_ABSORBING} network",
        "Relevance is rescaled by sums over the whole batch, so an example's explanation "
        "depends on its neighbors.",
        planted(sum_epsilon=_rescaled_over_batch),
        _rescaled(0),
    ),
    fault(
        "bn-variance",
        "Chefer, iNNvestigate (batch norm)",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        "The scale of the normalization is sqrt(variance^2 + eps) in place of "
        "sqrt(variance + eps).",
        planted(
            root=_root_of_square,
            root_slope=lambda self, square, norm_eps: (
                square / _root_of_square(self, square, norm_eps)
            ),
        ),
        planted(root=_root_of_square),
    ),
    fault(
        "alpha-beta-bias",
        "iNNvestigate",
        "linear_alpha_beta linear_z_plus convolution_z_plus",
        "The whole bias enters the denominators of both signs, so a bias of the other sign "
        "takes part where it has no share.",
        planted(signed_bias=lambda self, b, sign: b),
    ),
    fault(
        "alpha-index",
        "iNNvestigate",
        "linear_alpha_beta",
        "One of the two factors is never used: the other stands in its place, or 1, so the "
        "parts do not sum to the relevance.",
        _with_factors(lambda alpha, beta: (1.0, beta)),
        _with_factors(lambda alpha, beta: (alpha, alpha)),
        _with_factors(lambda alpha, beta: (beta, beta)),
        _with_factors(lambda alpha, beta: (alpha, 1.0)),
    ),
    fault(
        "gamma-forward",
        "Ali",
        "network",
        "gamma > 0 changes the weights of the forward itself, so it is another network's "
        "output that is explained.",
        _weights_amplified,
        behavior="forward",
    ),
    fault(
        "ln-unbiased",
        "Ali, pnpxai",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        "LayerNorm's variance is divided by N - 1, so the scale differs from the network's own.",
        planted(degrees=lambda self, x: x.shape[-1] - 1),
        planted(layer_norm_gradient=_unbiased_scale_alone),
    ),
    fault(
        "gamma-at-zero",
        "zennit",
        "linear_gamma",
        "The relevance of an output that is exactly zero is dropped, though contributions "
        "of both signs stand below it.",
        planted(linear_gamma=_gamma_not_at_zero),
    ),
    fault(
        "zero-input",
        "LXT/zennit bridge",
        f"{_RELEVANCE} activation_identity_gxi",
        "Relevance is propagated as x times a quotient, so what lands on an input that is "
        "exactly zero is lost.",
        spoiled(lambda case, x, got: np.where(x == 0, 0.0, got)),
        spoiled(lambda case, x, got: np.where(x == 0, np.nan, got)),
        _bridged,
    ),
    fault(
        "leaf-twice",
        "dynamicLRP",
        "fan_out_epsilon gather_pass_through",
        "Relevance that reaches one input by two ways is not summed: the last to arrive "
        "overwrites the others.",
        planted(
            met=lambda self, first, second: second,
            arrived=lambda self, relevance, row, r: relevance.__setitem__(row, r),
        ),
        planted(met=lambda self, first, second: first),
        planted(
            arrived=lambda self, relevance, row, r: relevance.__setitem__(
                row, np.where(relevance[row] == 0, r, relevance[row])
            )
        ),
    ),
    fault(
        "logit-squared",
        "LXT documentation",
        f"{_GRADIENT} network",
        "The gradient x input form is seeded with the logit in place of 1, so the "
        "relevance sums to the logit squared.",
        called(_seeded_with_outputs),
    ),
    fault(
        "vacuous-check",
        "LXT",
        f"{_RELEVANCE} network",
        "With the conservation check on, every answer is replaced by the mean of what "
        "arrived, so the check passes whatever the rule does.",
        _uniform_mean(0),
        _uniform_mean(1),
    ),
    fault(
        "fp16-nan",
        "LXT, zennit",
        f"{_EPSILON} linear_alpha_beta",
        "eps underflows in float16, and outputs that cancel divide by it in bfloat16: NaN "
        "at zero, or relevance that leaps.",
        _half_precision(None),
        _half_precision(1e-8),
        _in_half(
            planted(
                divided=lambda self, r, d: rounded(
                    r / rounded(d + _sign_up(d, 6e-8), self.dtype), self.dtype
                )
            )
        ),
    ),
    fault(
        "one-target",
        "LXT",
        "network",
        "A second target cannot be explained from the same forward: the call raises.",
        behavior="targets",
    ),
    fault(
        "gqa-repeat",
        COMMON,
        "repeat_heads_pass_through attention_attnlrp attention_cp attention_attnlrp_gxi "
        "attention_cp_gxi",
        "Repeated key and value heads are summed over the wrong groups, or not summed back at all.",
        planted(
            repeat_heads_pass_through=lambda self, x, r, *, times: r.reshape(
                r.shape[0], times, -1, *r.shape[2:]
            ).sum(1)
        ),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times)[:, :, 0]),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times)[:, :, -1]),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times).mean(2)),
        planted(
            repeated=lambda self, x, times: np.tile(x, (1, times, 1, 1)),
            repeat_heads_pass_through=lambda self, x, r, *, times: r.reshape(
                r.shape[0], times, -1, *r.shape[2:]
            ).sum(1),
        ),
        planted(repeated=lambda self, x, times: np.tile(x, (1, times, 1, 1))),
    ),
    fault(
        "rope-interleave",
        COMMON,
        "rotary_epsilon rotary_gradient",
        "Neighbors are rotated as pairs where the halves of a head belong together: "
        "nothing crashes, and every number is another.",
        planted(turned=_interleaved),
        lambda case: planted(turned=_interleaved)(_changed(case, _angles_of_pairs(case))),
    ),
    fault(
        "shared-gradient",
        "LXT relevance form",
        "sum_epsilon add_epsilon",
        "A sum's operands share one gradient, and each multiplies it by itself in place: "
        "every operand gets the product of all.",
        _multiplied_in_place(""),
        _multiplied_in_place("plain"),
    ),
    # what is easily got wrong
    fault(
        "weight-transposed",
        COMMON,
        "linear_epsilon linear_g* linear_z* linear_a* linear_w* fan_out_epsilon",
        "A square weight is read as inputs by outputs, as GPT-2's checkpoints store it, "
        "where outputs come first.",
        called(_transposed),
    ),
    fault(
        "narrowed",
        "LXT gradient x input form (RMSNorm)",
        "*",
        "float64 is computed in float32 somewhere on the way: right to seven digits, wrong "
        "where terms cancel.",
        behavior="narrowed",
    ),
    fault(
        "bias-ignored",
        COMMON,
        "linear_epsilon linear_gamma linear_z_plus linear_alpha_beta convolution_epsilon "
        "convolution_z_plus layer_norm_epsilon network",
        "The bias is left out of the denominator, so its share is handed to the inputs.",
        planted(
            linear_sum=lambda self, x, w, b: x @ w.T,
            amplified_bias=lambda self, b, z: 0 * b,
            signed_bias=lambda self, b, sign: 0 * b,
            linear_gamma=lambda self, x, w, b, r, **o: Right.linear_gamma(self, x, w, None, r, **o),
            layer_norm_epsilon=lambda self, x, w, b, r, **o: Right.layer_norm_epsilon(
                self, x, w, None, r, **o
            ),
        ),
    ),
    fault(
        "eps-doubled",
        COMMON,
        _BY_EPSILON,
        "eps is added twice, to z and once more in the division.",
        planted(stabilized=lambda self, z, eps, kind: Right.stabilized(self, z, 2 * eps, kind)),
    ),
    fault(
        "abs-stabilizer",
        COMMON,
        _BY_EPSILON,
        "The denominator is |z| + eps, so the relevance of every negative output changes sign.",
        planted(stabilized=lambda self, z, eps, kind: z if kind == "none" else np.abs(z) + eps),
        planted(stabilized=lambda self, z, eps, kind: np.abs(z) + eps),
    ),
    fault(
        "stabilizer-ignored",
        COMMON,
        _EPSILON,
        "The form of the stabilizer that was asked for is ignored: eps always takes the sign of z.",
        planted(stabilized=lambda self, z, eps, kind: Right.stabilized(self, z, eps, "sign")),
    ),
    fault(
        "other-eps",
        COMMON,
        _BY_EPSILON,
        "Another eps than the one asked for is used, one written into the code or none.",
        *(
            _other_eps(eps)
            for eps in (
                0.0,
                1e-12,
                1e-10,
                1e-9,
                1e-8,
                1e-7,
                1e-6,
                1e-5,
                1e-4,
                1e-3,
                1e-2,
                1e-1,
                0.25,
            )
        ),
    ),
    fault(
        "gradient-for-relevance",
        COMMON,
        "*_epsilon matmul_uniform matmul_second softmax_taylor",
        "The quotient that reaches the input is returned without being multiplied by the input.",
        spoiled(_without_input),
    ),
    fault(
        "relevance-for-gradient",
        COMMON,
        _GRADIENT,
        "The gradient is returned multiplied by the input, so whoever multiplies again has "
        "the input squared.",
        spoiled(lambda case, x, got: x * got),
    ),
    fault(
        "forced-conservation",
        COMMON,
        f"{_ABSORBING} network",
        "The answer is rescaled to the sum that arrived, which hides what bias, stabilizer "
        "and offsets absorb.",
        _rescaled(1),
    ),
    fault(
        "relevance-clamped",
        COMMON,
        f"{_RELEVANCE} network",
        "Negative relevance is set to zero, or made positive.",
        spoiled(lambda case, x, got: np.maximum(got, 0.0)),
        spoiled(lambda case, x, got: np.abs(got)),
    ),
    fault(
        "softmax-no-offset",
        COMMON,
        "softmax_taylor softmax_gradient attention_attnlrp attention_attnlrp_gxi",
        "The term p times the sum is not subtracted, so every logit is credited as if the "
        "others were constant.",
        planted(along=lambda self, r, axis: 0 * r),
    ),
    fault(
        "axis-ignored",
        COMMON,
        "softmax_taylor softmax_spread softmax_z_plus softmax_gradient",
        "The softmax is taken over the last axis whichever was asked for.",
        called(lambda case: {"axis": -1}),
    ),
    fault(
        "mask-ignored",
        COMMON,
        f"{_SOFTMAX} {_ATTENTION}",
        "The mask is not applied, so hidden positions take part.",
        called(lambda case: {"mask": None}),
    ),
    fault(
        "mask-inverted",
        COMMON,
        f"{_SOFTMAX} {_ATTENTION}",
        "The mask is read as True for hidden where it means visible.",
        called(
            lambda case: {} if case.options.get("mask") is None else {"mask": ~case.options["mask"]}
        ),
    ),
    fault(
        "mask-after",
        COMMON,
        f"softmax_taylor softmax_spread softmax_gradient {_ATTENTION}",
        "The mask strikes out probabilities after the softmax, so what is left of a row "
        "does not sum to 1.",
        lambda case: _MaskedAfter(case.dtype).answer(case),
    ),
    fault(
        "mask-counted",
        COMMON,
        "softmax_taylor softmax_spread softmax_z_plus softmax_identity",
        "Relevance that stood at masked entries is not taken out: it enters the row's sum, "
        "or stays where nothing can have come from.",
        planted(seen=lambda self, filled: np.ones_like(filled)),
    ),
    fault(
        "causal-ignored",
        COMMON,
        _ATTENTION,
        "The causal cut is not applied, so later tokens get relevance.",
        called(lambda case: {"causal": False}),
    ),
    fault(
        "scale-once",
        COMMON,
        _ATTENTION,
        "The scaling of the scores by 1/sqrt(d) is missing, or applied twice.",
        called(lambda case: {"scale": 1.0}),
        called(lambda case: {"scale": case.options["scale"] ** 2}),
    ),
    fault(
        "product-doubled",
        COMMON,
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi",
        "Each operand of a product gets all of the relevance instead of its part, so "
        "relevance is created.",
        planted(
            parts=lambda self, operands, fixed: [1.0] * len(operands),
            matmul_uniform=_times(2, Right.matmul_uniform),
            matmul_uniform_gxi=Right.matmul_gradient,
        ),
        planted(matmul_uniform=_doubled_matmul),
    ),
    fault(
        "product-quartered",
        COMMON,
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi",
        "A product's share is halved twice, so relevance is lost.",
        planted(
            parts=lambda self, operands, fixed: [
                part / 2 for part in Right.parts(self, operands, fixed)
            ],
            matmul_uniform=_times(0.5, Right.matmul_uniform),
            matmul_uniform_gxi=_times(0.5, Right.matmul_uniform_gxi),
        ),
    ),
    fault(
        "gate-swapped",
        COMMON,
        "multiply_second multiply_second_gxi",
        "The gate is taken for the value: the second operand, which should get all, gets "
        "nothing, or the gradient of the first.",
        spoiled(lambda case, x, got: 0 * got),
        planted(multiply_second_gxi=lambda self, a, b, g: folded(b * g, b)),
    ),
    fault(
        "cp-leaks",
        COMMON,
        "attention_cp attention_cp_gxi",
        "The probabilities are not held constant, so queries and keys get relevance that "
        "belongs to the values.",
        planted(attention_cp=Right.attention_attnlrp, attention_cp_gxi=Right.attention_attnlrp_gxi),
    ),
    fault(
        "probabilities-constant",
        COMMON,
        "attention_attnlrp attention_attnlrp_gxi",
        "The probabilities are taken as constant, so queries and keys get nothing.",
        planted(
            attention_attnlrp=lambda self, q, k, v, r, *, denominator="2z+eps", **o: (
                self.attention_cp(q, k, v, r, **o)
            ),
            attention_attnlrp_gxi=Right.attention_cp_gxi,
        ),
        _values_alone,
    ),
    fault(
        "mean-not-centered",
        COMMON,
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        "The mean's own dependence on x is left out on the way back: what comes down is "
        "not centered.",
        planted(pulled_through_mean=lambda self, c: c),
    ),
    fault(
        "ln-centered-input",
        COMMON,
        "layer_norm_epsilon",
        "x - mean stands in place of x in the numerator, and the way back through the mean "
        "is left out.",
        planted(layer_norm_epsilon=_centered_times),
    ),
    fault(
        "ln-beta-in-numerator",
        COMMON,
        "layer_norm_epsilon",
        "The bias of the norm stands in the numerator, so the share it should absorb is "
        "handed to the input.",
        planted(layer_norm_epsilon=_beta_kept),
    ),
    fault(
        "norm-eps-missing",
        COMMON,
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        "The norm's own eps is left out of the root, or added outside it.",
        called(lambda case: {"norm_eps": 0.0}),
        planted(
            root=lambda self, square, norm_eps: np.sqrt(square) + norm_eps,
            root_slope=lambda self, square, norm_eps: 0.5 / np.sqrt(square),
        ),
    ),
    fault(
        "norm-jacobian",
        COMMON,
        "rms_norm_identity rms_norm_identity_gxi layer_norm_epsilon layer_norm_identity "
        "layer_norm_epsilon_gxi",
        "The norm's full Jacobian stands in place of the one with a constant scale: almost "
        "no relevance passes.",
        planted(
            rms_norm_identity=lambda self, x, w, r, *, norm_eps: (
                x
                * self.rms_norm_gradient(
                    x,
                    w,
                    self.divided(
                        r, x * self.rms_norm_identity_gxi(x, w, np.ones(1), norm_eps=norm_eps)
                    ),
                    norm_eps=norm_eps,
                )
            ),
            rms_norm_identity_gxi=Right.rms_norm_gradient,
            layer_norm_epsilon=_full_jacobian,
            layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: _full_jacobian(
                self, x, w, b, r, norm_eps=norm_eps, eps=0.0, stabilizer="none"
            ),
            layer_norm_epsilon_gxi=Right.layer_norm_gradient,
        ),
    ),
    fault(
        "norm-frozen",
        COMMON,
        "rms_norm_gradient layer_norm_gradient",
        "The norm's scale is held constant where the true derivative is asked for.",
        planted(
            rms_norm_gradient=Right.rms_norm_identity_gxi,
            layer_norm_gradient=Right.layer_norm_epsilon_gxi,
        ),
    ),
    fault(
        "norm-weight-ignored",
        COMMON,
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        "The norm's weight is left out.",
        called(lambda case: {"w": np.ones_like(case.inputs["w"])}),
    ),
    fault(
        "norm-weight-offset",
        COMMON,
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        "The norm's weight has 1 added to it, as Gemma's checkpoints want it and others do not.",
        called(lambda case: {"w": case.inputs["w"] + case.inputs["w"].dtype.type(1)}),
    ),
    fault(
        "gelu-other",
        COMMON,
        "activation_identity_gxi activation_gradient",
        "Another form of the activation is used than the network has, such as the tanh "
        "approximation of GELU for the exact one.",
        *(
            _kind_for(*pair)
            for pair in (
                ("gelu", "gelu_tanh"),
                ("gelu_tanh", "gelu"),
                ("gelu", "quick_gelu"),
                ("quick_gelu", "gelu"),
                ("silu", "quick_gelu"),
                ("quick_gelu", "silu"),
                ("silu", "gelu"),
                ("gelu", "silu"),
                ("gelu", "relu"),
                ("gelu_tanh", "silu"),
            )
        ),
    ),
    fault(
        "slope-for-ratio",
        COMMON,
        "activation_identity_gxi",
        "The derivative f'(x) stands in place of the ratio f(x)/x, as plain autograd gives it.",
        planted(activation_identity_gxi=Right.activation_gradient),
    ),
    fault(
        "ratio-for-slope",
        COMMON,
        "activation_gradient",
        "The ratio f(x)/x stands in place of the derivative.",
        planted(activation_gradient=Right.activation_identity_gxi),
    ),
    fault(
        "ratio-eps",
        "LXT",
        "activation_identity_gxi",
        "An eps is added to x in f(x)/x without its sign: 0 at x = 0, where the limit is "
        "f'(0), and a pole at x = -eps.",
        *(
            planted(
                activation_identity_gxi=lambda self, x, g, *, kind, eps=eps: (
                    g * (activation(x, kind) / (x + eps))
                )
            )
            for eps in (1e-10, 1e-9, 1e-8, 1e-6, 0.0)
        ),
    ),
    fault(
        "rotary-transposed",
        COMMON,
        "rotary_epsilon rotary_gradient",
        "The rotation is applied on the way back as on the way forward, not transposed.",
        planted(rotary_gradient=lambda self, x, cos, sin, g: g * cos + self.turned(g, -1) * sin),
    ),
    fault(
        "rotary-skipped",
        COMMON,
        "rotary_epsilon rotary_gradient",
        "The rotation is passed as if it did nothing, though relevance must follow the "
        "turned coordinates.",
        planted(
            rotary_epsilon=lambda self, x, cos, sin, r, **o: r,
            rotary_gradient=lambda self, x, cos, sin, g: g,
        ),
    ),
    fault(
        "counted-ignored",
        COMMON,
        "pooling_epsilon pooling_gradient",
        "The mean is taken over padding as well.",
        called(lambda case: {"counted": None}),
        planted(pooling_gradient=_counted_but_not_in_number),
    ),
    fault(
        "pooling-sum",
        COMMON,
        "pooling_gradient",
        "The mean's division by the number of positions is left out.",
        planted(
            pooling_gradient=lambda self, x, g, *, counted=None: (
                (np.ones_like(x) if counted is None else counted) * g
            )
        ),
    ),
    fault(
        "pooling-uniform",
        COMMON,
        "pooling_epsilon",
        "Every position gets the same share, whatever it contributed.",
        planted(
            pooling_epsilon=lambda self, x, r, *, counted=None, **o: Right.pooling_gradient(
                self, x, r, counted=counted
            )
        ),
    ),
    fault(
        "gamma-one-branch",
        COMMON,
        "linear_gamma network",
        "The positive contributions are amplified below negative outputs too.",
        planted(
            amplified=lambda self, c, z, x, w: plus_part(c),
            amplified_bias=lambda self, b, z: plus_part(b),
        ),
    ),
    fault(
        "gamma-bias",
        COMMON,
        "linear_gamma network",
        "The bias is not amplified with the contributions of its sign.",
        planted(amplified_bias=lambda self, b, z: 0 * b * z),
    ),
    fault(
        "gamma-dropped",
        COMMON,
        "linear_gamma network",
        "Only what gamma amplifies enters one of the two, numerator or denominator, so "
        "relevance does not balance.",
        planted(
            linear_gamma=lambda self, x, w, b, r, *, gamma: Right.linear_gamma(
                self, x, w, b, r, gamma=0.0
            )
        ),
        planted(linear_gamma=_gamma_unbalanced),
    ),
    fault(
        "plus-half",
        COMMON,
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        "Only positive inputs with positive weights count as positive contributions; "
        "negative inputs with negative weights are forgotten.",
        planted(
            signed=lambda self, x, w: (
                contributions(plus_part(x), plus_part(w)),
                contributions(plus_part(x), minus_part(w)),
            )
        ),
    ),
    fault(
        "plus-weights",
        "captum",
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        "Weights are cut by sign instead of contributions, so a negative input turns "
        "positive weights into negative shares.",
        planted(signed=_signed_weights),
        planted(signed=_signed_weights, signed_bias=lambda self, b, sign: b),
        _stabilized_by(1e-9, signed=_signed_weights, signed_bias=lambda self, b, sign: b),
    ),
    fault(
        "alpha-beta-sign",
        COMMON,
        "linear_alpha_beta network",
        "The negative part is added instead of subtracted, so relevance is multiplied by "
        "alpha + beta.",
        _with_factors(lambda alpha, beta: (alpha, -beta)),
    ),
    fault(
        "flat-weighted",
        COMMON,
        "linear_flat",
        "The flat rule shares by the inputs, or counts the bias as one of them.",
        planted(
            linear_flat=lambda self, x, w, b, r: (
                Right.linear_flat(self, x, w, b, r) * x.shape[-1] / (x.shape[-1] + 1)
            )
        ),
        planted(
            linear_flat=lambda self, x, w, b, r: (
                x / x.sum(-1, keepdims=True) * r.sum(-1, keepdims=True)
            )
        ),
    ),
    fault(
        "w-square-not-squared",
        COMMON,
        "linear_w_square",
        "Weights enter by their absolute value, not by their square.",
        planted(
            linear_w_square=lambda self, x, w, b, r: self.divided(r, np.abs(w).sum(-1)) @ np.abs(w)
        ),
        planted(linear_w_square=lambda self, x, w, b, r: self.divided(r, w.sum(-1)) @ w),
    ),
    fault(
        "z-box-bounds",
        COMMON,
        "linear_z_box",
        "The bounds are exchanged, or 0 and 1 are used whatever was asked for.",
        called(lambda case: {"low": case.options["high"], "high": case.options["low"]}),
        called(lambda case: {"low": 0.0, "high": 1.0}),
    ),
    fault(
        "z-box-bias",
        COMMON,
        "linear_z_box",
        "The bias takes a share, though nothing of it is left after the bounds are subtracted.",
        planted(linear_z_box=_biased_box),
    ),
    fault(
        "kernel-flipped",
        COMMON,
        "convolution_*",
        "The kernel is turned around, as in mathematics' convolution; networks correlate.",
        called(lambda case: {"w": case.inputs["w"][..., ::-1, ::-1]}),
    ),
    fault(
        "index-shared",
        COMMON,
        "gather_pass_through",
        "The first example's row numbers are used for every example.",
        called(lambda case: {"index": [case.options["index"][0]] * len(case.options["index"])}),
    ),
    fault(
        "top-k-order",
        COMMON,
        "top_k_pass_through",
        "Relevance is put at the wrong entries: in ascending order of size, in the order "
        "they stand in, or simply at the first k.",
        planted(chosen=lambda self, x, k: Right.chosen(self, x, k)[..., ::-1]),
        planted(chosen=lambda self, x, k: np.sort(Right.chosen(self, x, k), axis=-1)),
        planted(chosen=lambda self, x, k: np.broadcast_to(np.arange(k), (*x.shape[:-1], k))),
    ),
    fault(
        "fan-in-mean",
        COMMON,
        "fan_out_epsilon gather_pass_through",
        "What meets at an input is averaged instead of summed.",
        planted(
            met=lambda self, first, second: (first + second) / 2, gather_pass_through=_averaged
        ),
    ),
    # choices that are made on purpose
    convention(
        "bias-redistributed",
        "some toolboxes",
        "linear_epsilon convolution_epsilon network",
        "The share of the bias is handed to the inputs in equal parts, so that relevance "
        "is conserved.",
        planted(linear_epsilon=_bias_spread),
        planted(linear_epsilon=_all_spread),
    ),
    convention(
        "bias-counted",
        "zennit",
        "linear_w_square",
        "The bias counts as one more input: its square enters the sum and takes a share.",
        planted(linear_w_square=_bias_squared),
    ),
    convention(
        "stabilizer-added",
        "zennit, captum, iNNvestigate",
        "linear_gamma linear_z_plus linear_alpha_beta linear_w_square linear_z_box "
        "convolution_z_plus",
        "A small number is added to denominators of rules that are defined without one.",
        *(_stabilized_by(eps) for eps in (1e-12, 1e-9, 1e-8, 1e-7, 1e-6)),
    ),
    convention(
        "eps-clamped",
        "zennit (clip)",
        _BY_EPSILON,
        "The denominator is kept at least eps away from zero instead of being moved by eps.",
        planted(
            stabilized=lambda self, z, eps, kind: (
                z if kind == "none" else np.where(np.abs(z) < eps, _sign_up(z, eps), z)
            )
        ),
    ),
    convention(
        "softmax-other-rule",
        "Ding et al. 2017, Voita et al. 2021, Chefer et al. 2021",
        "softmax_taylor softmax_spread softmax_identity attention_attnlrp",
        "The softmax is passed by another of its rules: by identity, or with the offset "
        "spread over the entries.",
        planted(
            softmax_taylor=Right.softmax_identity,
            softmax_spread=Right.softmax_identity,
            softmax_identity=Right.softmax_taylor,
        ),
        planted(softmax_taylor=_spread_offset),
        planted(softmax_spread=Right.softmax_taylor),
        planted(softmax_taylor=Right.softmax_z_plus),
    ),
    convention(
        "eps-relative",
        "zennit (norm_scale), Montavon et al. 2019",
        _BY_EPSILON,
        "eps is taken relative to the size of z, so that it does the same at every scale.",
        planted(
            stabilized=lambda self, z, eps, kind: Right.stabilized(
                self, z, eps * _root_mean_square(z, 0), kind
            )
        ),
        planted(
            stabilized=lambda self, z, eps, kind: Right.stabilized(
                self, z, eps * _root_mean_square(z, 1), kind
            )
        ),
        planted(
            stabilized=lambda self, z, eps, kind: Right.stabilized(
                self, z, eps * _root_mean_square(z, z.ndim - 1), kind
            )
        ),
        planted(
            stabilized=lambda self, z, eps, kind: Right.stabilized(
                self, z, eps * np.abs(z).max(), kind
            )
        ),
    ),
    convention(
        "layer-norm-reading",
        "both readings of the paper",
        "layer_norm_epsilon layer_norm_identity",
        "The layer is read the other way: as one normalization that passes all of R, or as "
        "centring with a constant scale.",
        planted(layer_norm_epsilon=lambda self, x, w, b, r, *, norm_eps, **o: r),
        *(planted(layer_norm_identity=_as_epsilon(eps)) for eps in (1e-6, 1e-9, 1e-12)),
    ),
    convention(
        "renormalize-identity",
        "AttnLRP prop. 3.4",
        "renormalize_epsilon renormalize_gradient",
        "The sum that the weights are divided by is taken as constant, so all of R passes.",
        planted(
            renormalize_epsilon=lambda self, x, r, **o: r,
            renormalize_gradient=Right.renormalize_identity_gxi,
        ),
    ),
    convention(
        "gamma-weights",
        "captum, Montavon et al. 2019",
        "linear_gamma network",
        "Positive weights are amplified instead of positive contributions: the same only "
        "where no input is negative.",
        planted(linear_gamma=_gamma_weights),
        planted(linear_gamma=_gamma_weights_and_bias),
        _stabilized_by(1e-9, linear_gamma=_gamma_weights),
    ),
    convention(
        "pooling-mean-eps",
        "some toolboxes",
        "pooling_epsilon",
        "eps is added to the mean instead of the sum, so it counts as many times as there "
        "are positions.",
        planted(pooling_epsilon=_by_mean),
    ),
    convention(
        "sum-chained",
        "some toolboxes",
        "sum_epsilon",
        "A sum of several is taken as a chain of sums of two, each with a stabilizer of its own.",
        planted(sum_epsilon=_chained),
    ),
    convention(
        "fan-out-fused",
        "some toolboxes",
        "fan_out_epsilon",
        "Two linear layers that read the same input are taken as one with their weights "
        "added: one stabilizer instead of two.",
        planted(
            fan_out_epsilon=lambda self, x, w1, w2, r, **o: self.linear_epsilon(
                x, w1 + w2, None, r, **o
            )
        ),
    ),
    convention(
        "causal-last",
        "PyTorch",
        _ATTENTION,
        "With fewer queries than keys the last query sees the last key, where the case "
        "lets query t see the keys up to t.",
        planted(
            visible=lambda self, scores, causal, mask: (
                Right.visible(self, scores, False, mask)
                & np.tril(
                    np.ones(scores.shape[-2:], dtype=bool),
                    scores.shape[-1] - scores.shape[-2] if causal else scores.shape[-1],
                )
            )
        ),
    ),
    convention(
        "relu-at-zero",
        "some frameworks",
        "activation_identity_gxi activation_gradient",
        "ReLU's derivative at 0 is taken as 1 or 1/2 instead of 0.",
        *(
            planted(
                **{
                    rule: _relu_at_zero(getattr(Right, rule), at)
                    for rule in ("activation_identity_gxi", "activation_gradient")
                }
            )
            for at in (1.0, 0.5)
        ),
    ),
)

NOT_SHOWN: dict[str, str] = {}
"""Faults found in libraries that nothing here can show, with the reason. There is none: the slip of
batch norm shows in the other norms, and what only behavior shows (one-target) is told by calling a
network again, with more seeds."""
