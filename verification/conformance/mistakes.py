"""Known mistakes, each as what an implementation that makes it would answer.

A mistake replaces one part of the rules as reference_rules.py has them, or calls a rule with
something other than what was asked, or changes the answer afterwards. So a wrong answer can be laid
beside the answers that the known mistakes give, and the one that reproduces it is named. `MISTAKES`
is the table; it stands at the end. What each is called, what it does and where it was met is in
the catalogue (vectors/mistakes.toml).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.conformance.reference_rules import (
    GREATEST,
    Answer,
    Layer,
    ReferenceRules,
    activation,
    centered,
    contributions,
    derivative,
    folded,
    identity_factor,
    minus_part,
    patches_of,
    plus_part,
    rounded,
    summed,
    summed_messages,
    wide,
)
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.vectors.catalogue import CATALOGUE, KnownMistake

Answering: TypeAlias = Callable[[Case], Answer]
"""What an implementation, right or wrong, answers to a case."""


class NoDifference(Exception):
    """The mistake makes no difference on this case, or is not defined there."""


# -- ways to be wrong ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake(KnownMistake):
    """A known mistake, with what shows it in a rule or a small network."""

    rules: tuple[str, ...]
    """Rules that can show it; `network` for small networks."""
    forms: tuple[Answering, ...]
    """What an implementation with this mistake answers, in each of the forms in which it is met;
    NoDifference where it is no different. None at all where only behavior shows it.
    """
    behavior: str
    """What shows it. For networks `again` (a second call differs), `targets` (several seeds),
    `forward` (z is changed); `narrowed` (right to the digits of float32) for all."""


@lru_cache(maxsize=512)
def reference_answer(case: Case) -> Answer:
    """One case is asked about under every mistake."""
    return ReferenceRules(case.dtype).answer(case)


def planted(**parts: Any) -> Answering:
    """The right rules with some of their functions replaced."""
    kind = type("Planted", (ReferenceRules,), parts)
    return lambda case: kind(case.dtype).answer(case)


def called_with(change: Callable[[Case], dict[str, Any]]) -> Answering:
    """The right rule, called with other operands or options than it was asked for."""
    return lambda case: ReferenceRules(case.dtype).answer(_changed(case, change(case)))


def changed_answer(change: Callable[[Case, Array, Array], Array | None]) -> Answering:
    """The right answer, each array changed: change(case, the operand it belongs to, the array)."""

    def form(case: Case) -> Answer:
        reference = reference_answer(case)
        return tuple(
            got if name == "z" or got is None else change(case, _operand(case, name), got)
            for name, got in zip(case.returns, reference, strict=True)
        )

    return form


def _changed(case: Case, new: dict[str, Any]) -> Case:
    inputs = {name: value for name, value in new.items() if name in case.inputs}
    known = {name: value for name, value in new.items() if name in case.signature.options}
    return replace(case, inputs={**case.inputs, **inputs}, options={**case.options, **known})


def _operand(case: Case, name: str) -> Array:
    name, _, member = name.partition(".")
    held = wide(case.inputs[name])
    return held[int(member)] if member and isinstance(held, list) else held


def _checked(form: Answering, rules: tuple[str, ...]) -> Answering:
    """Without the answers that do not differ, and with numbers beyond the case's format as
    infinities.
    """

    def wrong(case: Case) -> Answer:
        if case.rule not in rules:
            raise NoDifference(f"it is not a mistake of {case.rule}")
        reference = reference_answer(case)
        with np.errstate(all="ignore"):
            got = tuple(None if a is None else _overflowed(a, case.dtype) for a in form(case))
        if not any(
            _differs(case, *each) for each in zip(case.returns, reference, got, strict=True)
        ):
            raise NoDifference("it makes no difference here")
        return got

    return wrong


def _overflowed(a: Array, dtype: str) -> Array:
    return np.where(np.abs(a) > GREATEST[dtype], np.copysign(np.inf, a), a)


def _differs(case: Case, name: str, reference: Array | None, got: Array | None) -> bool:
    """By more than the case's tolerance where it has one, and than rounding in float64."""
    if reference is None or got is None:
        return bool(np.any(got if reference is None else reference)) and (reference is None) != (
            got is None
        )
    if reference.shape != got.shape:
        return True
    condition = case.condition.get(name)
    allowed = 1e-12 * np.abs(reference) + (
        0.0 if condition is None else case.units * case.u * condition
    )
    with np.errstate(all="ignore"):
        return not bool(
            np.all(
                (np.abs(got - reference) <= allowed)
                | (got == reference)
                | (np.isnan(got) & np.isnan(reference))
            )
        )


def matching(patterns: str) -> tuple[str, ...]:
    """The rules that match any of the patterns, in the order of SIGNATURES; `network` last."""
    return tuple(
        rule
        for rule in (*SIGNATURES, "network")
        if any(fnmatchcase(rule, each) for each in patterns.split())
    )


_RELEVANCE = " ".join(rule for rule, each in SIGNATURES.items() if each.formulation == "relevance")
_CONSERVING = (
    "multiply_uniform multiply_second rms_norm_identity layer_norm_identity "
    "activation_identity scale_pass_through repeat_heads_pass_through "
    "gather_pass_through top_k_pass_through renormalize_identity linear_flat "
    "linear_w_square linear_z_box"
)
"""Rules that absorb nothing, or only what has no receiver."""
_ABSORBING = " ".join(rule for rule in _RELEVANCE.split() if rule not in _CONSERVING.split())
_GRADIENT = " ".join(
    rule for rule, each in SIGNATURES.items() if each.formulation == "gradient_x_input"
)
_EPSILON = " ".join(rule for rule, each in SIGNATURES.items() if "eps" in each.options)
_SOFTMAX = "softmax_taylor softmax_spread softmax_z_plus softmax_identity softmax_gradient"
_ATTENTION = "attention_attnlrp attention_cp attention_attnlrp_gxi attention_cp_gxi"
_BY_EPSILON = f"{_EPSILON} network"


def mistake(id: str, rules: str, *forms: Answering, behavior: str = "") -> Mistake:
    """Of the catalogue, shown by the rules that match the patterns."""
    names = matching(rules)
    checked = tuple(_checked(form, names) for form in forms)
    return Mistake(**vars(CATALOGUE[id]), rules=names, forms=checked, behavior=behavior)


# -- the wrong parts that take more than a line ----------------------------------------------------


def _with_denominator(denominator: str) -> Callable[..., Answer]:
    return lambda self, a, v, r, **options: self.matmul_uniform(
        a, v, r, **{**options, "denominator": denominator}
    )


def _sign_of_zero(self: ReferenceRules, z: Array, eps: float, kind: str) -> Array:
    return z + eps * np.sign(z) if kind == "sign" else ReferenceRules.stabilized(self, z, eps, kind)


def _other_eps(eps: float) -> Answering:
    return planted(
        stabilized_ratio=lambda self, z, r, _, kind: ReferenceRules.stabilized_ratio(
            self, z, r, eps, kind
        )
    )


def _eps_times(size: Callable[[Array], Any]) -> Answering:
    return planted(
        stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(
            self, z, eps * size(z), kind
        )
    )


def _proportional(
    self: ReferenceRules, operands: Sequence[Array], fixed: Sequence[bool]
) -> list[Any]:
    total = summed([np.abs(a) for a, c in zip(operands, fixed, strict=True) if not c])
    return [np.abs(a) / total for a in operands]


def _by_size(floor: float) -> Callable[..., Answer]:
    """|a| / (sum of |a| + floor eps); 0 where all are 0."""

    def sum_epsilon(
        self: ReferenceRules,
        operands: Sequence[Array],
        r: Array,
        *,
        eps: float,
        stabilizer: str = "sign",
    ) -> Answer:
        s = self.divided(r, summed([np.abs(a) for a in operands]) + floor * eps)
        return tuple(folded(np.abs(a) * s, a) for a in operands)

    return sum_epsilon


def _rescaled_over_batch(
    self: ReferenceRules,
    operands: Sequence[Array],
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Answer:
    """Each branch scaled to its part |sum a| / sum of |sum a| of all the relevance there is, sums
    over the whole batch.
    """
    parts = ReferenceRules.sum_epsilon(self, operands, r, eps=eps, stabilizer=stabilizer)
    sums: list[Any] = [a.sum() for a in parts if a is not None]
    total = sum(np.abs(each) for each in sums)
    return tuple(
        np.sign(each) * a * (r.sum() / total)
        for a, each in zip(parts, sums, strict=True)
        if a is not None
    )


def _as_a_whole(change: Callable[[Answer, Array, int], Answer], axes: int) -> Answering:
    """What one seed gives changed as a whole: change(its arrays, what came in, axes). Sums are
    taken per example (axes from 1), or over the batch (from 0).
    """

    def form(case: Case) -> Answer:
        reference = reference_answer(case)
        if case.rule != "network":
            return change(reference, wide(case.inputs[case.seed]), axes)
        incoming = wide(case.inputs["seeds"])
        return reference[0], *(
            change((a,), r, axes)[0] for a, r in zip(reference[1:], incoming, strict=True)
        )

    return form


def _rescaled(answer: Answer, r: Array, axes: int) -> Answer:
    """Every array scaled by one number so that the sum of all is what came in."""
    factor = np.asarray(_total(r, axes) / sum(_total(a, axes) for a in answer if a is not None))
    return tuple(None if a is None else a * _broadcast(factor, a) for a in answer)


def _uniform_mean(answer: Answer, r: Array, axes: int) -> Answer:
    """The same to all."""
    count = sum(math.prod(a.shape[axes:]) for a in answer if a is not None)
    mean = np.asarray(_total(r, axes) / count)
    return tuple(None if a is None else np.zeros(a.shape) + _broadcast(mean, a) for a in answer)


def _total(a: Array, axes: int) -> Array:
    return a.sum(tuple(range(axes, a.ndim)))


def _broadcast(numbers: Array, a: Array) -> Array:
    """One number for all of a, or one for each of its examples, with a's axes."""
    return numbers.reshape(numbers.shape + (1,) * (a.ndim - numbers.ndim))


def _half_precision(eps: float | None) -> Answering:
    """z, z + eps and R / (z + eps) each rounded to the 16-bit format, and eps itself; nothing
    guards 0 / 0.
    """

    def stabilized_ratio(
        self: ReferenceRules, z: Array, r: Array, asked: float, kind: str
    ) -> Array:
        d = self.stabilized(
            rounded(z, self.dtype),
            float(rounded(np.asarray(asked if eps is None else eps), self.dtype)),
            kind,
        )
        return rounded(r / rounded(d, self.dtype), self.dtype)

    return _in_half(planted(stabilized_ratio=stabilized_ratio))


def _in_half(form: Answering) -> Answering:
    def wrong(case: Case) -> Answer:
        if case.dtype not in ("float16", "bfloat16"):
            raise NoDifference("it is a mistake of the 16-bit formats")
        return form(case)

    return wrong


def _clamped_divide(fixed: float | None) -> Answering:
    """r / (max(z, c) + min(z, c)), which is z + c whatever the sign of z, and c where that is zero;
    0 where z is.
    """

    def stabilized_ratio(self: ReferenceRules, z: Array, r: Array, eps: float, kind: str) -> Array:
        c = fixed or eps
        d = np.maximum(z, c) + np.minimum(z, c)
        return r / np.where(d == 0, c, d) * (z != 0)

    return planted(
        stabilized_ratio=stabilized_ratio,
        divided=lambda self, r, d: stabilized_ratio(self, d, r, fixed or 1e-9, "plain"),
    )


def _weights_amplified(case: Case) -> Answer:
    """The forward itself runs with w + gamma w^+, and the sweep with it."""
    if case.rule != "network":
        raise NoDifference("it shows in a network's forward")
    layers = [_amplified(layer) for layer in wide(case.inputs["layers"])]
    return ReferenceRules(case.dtype).answer(
        replace(case, inputs={**case.inputs, "layers": layers})
    )


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
    form = planted(
        layer_backward=lambda self, layer, x, g: (
            g * derivative(x, layer["kind"])
            if layer["operation"] == "activation"
            else self.linear_gradient(x, layer["w"], layer["b"], g)
        ),
        backward=lambda self, layers, xs, r: (
            xs[0] * ReferenceRules.backward(self, layers, xs, self.divided(r, xs[-1]))
        ),
    )
    return form(case)


def _outputs(case: Case) -> Array:
    """What the operation of a rule in gradient x input form computes."""
    *operands, _ = wide(case.arguments)
    options, reference = wide(dict(case.options)), ReferenceRules(case.dtype)
    forward: dict[str, Callable[[], Array]] = {
        "linear": lambda: reference.linear_sum(*operands),
        "convolution": lambda: _convolved(*operands),
        "add": lambda: summed(operands),
        "multiply": lambda: math.prod(operands[0] if isinstance(operands[0], list) else operands),
        "matmul": lambda: operands[0] @ operands[1],
        "softmax": lambda: reference.probabilities(
            reference.filled(operands[0], options.get("mask")), options.get("axis", -1)
        ),
        "rms": lambda: (
            operands[0]
            * reference.rms_norm_identity_gxi(operands[0], operands[1], np.ones(1), **options)
        ),
        "layer": lambda: _normed(reference, *operands, **options),
        "activation": lambda: activation(operands[0], options["kind"]),
        "rotary": lambda: (
            operands[0] * operands[1] + reference.rotated(operands[0], -1) * operands[2]
        ),
        "pooling": lambda: (
            operands[0] * reference.pooling_gradient(operands[0], np.ones(1), **options)
        ).sum(-2, keepdims=True),
        "scale": lambda: operands[0] * options["factor"],
        "renormalize": lambda: operands[0] / operands[0].sum(-1, keepdims=True),
        "attention": lambda: _context(reference, *operands, **options),
    }
    return forward[case.rule.partition("_")[0]]()


def _convolved(x: Array, w: Array, b: Array | None) -> Array:
    z = ReferenceRules().linear_sum(patches_of(x, w.shape[2:]), w.reshape(len(w), -1), b)
    return z.swapaxes(1, 2).reshape(
        len(x), len(w), x.shape[2] // w.shape[2], x.shape[3] // w.shape[3]
    )


def _normed(
    reference: ReferenceRules, x: Array, w: Array, b: Array | None, *, norm_eps: float
) -> Array:
    z = centered(x) / reference.std(x, norm_eps) * w
    return z if b is None else z + b


def _context(
    reference: ReferenceRules,
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool = False,
    mask: Array | None = None,
) -> Array:
    _, _, values, _, _, p = reference.attended(q, k, v, scale, causal, mask)
    return p @ values


def _seeded_with_outputs(case: Case) -> dict[str, Any]:
    if case.rule == "network":
        z = ReferenceRules().answer(case)[0]
        return {"seeds": [r * z for r in wide(case.inputs["seeds"])]}
    return {"g": wide(case.inputs["g"]) * _outputs(case)}


def _without_input(case: Case, x: Array, got: Array) -> Array:
    if np.any(x == 0):
        raise NoDifference("an input is zero: what it was multiplied with is unknown")
    return got / x


def _chained(
    self: ReferenceRules,
    operands: Sequence[Array],
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Answer:
    """((a + b) + c) + ..., each sum with a stabilizer of its own."""
    given: list[Array] = []
    for k in range(len(operands) - 1, 0, -1):
        r, last = ReferenceRules.sum_epsilon(
            self, [summed(operands[:k]), operands[k]], r, eps=eps, stabilizer=stabilizer
        )
        given.insert(0, last)
    return (r, *given)


def _interleaved(self: ReferenceRules, x: Array, sign: int) -> Array:
    """Neighbors as pairs: [-x1, x0, -x3, x2, ...] for sign -1."""
    z = np.empty_like(x)
    z[..., ::2], z[..., 1::2] = sign * x[..., 1::2], -sign * x[..., ::2]
    return z


def _angles_of_pairs(case: Case) -> dict[str, Any]:
    """cos and sin laid out for neighboring pairs."""
    half = case.inputs["cos"].shape[-1] // 2
    return {name: np.repeat(case.inputs[name][..., :half], 2, axis=-1) for name in ("cos", "sin")}


def _bias_spread(
    self: ReferenceRules,
    x: Array,
    w: Array,
    b: Array | None,
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    relevance = ReferenceRules.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    s = self.stabilized_ratio(self.linear_sum(x, w, b), r, eps, stabilizer)
    return relevance if b is None else relevance + (s @ b)[..., None] / x.shape[-1]


def _all_spread(
    self: ReferenceRules,
    x: Array,
    w: Array,
    b: Array | None,
    r: Array,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    """Bias and stabilizer both."""
    relevance = ReferenceRules.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    return relevance + (r.sum(-1, keepdims=True) - relevance.sum(-1, keepdims=True)) / x.shape[-1]


def _naive_probabilities(self: ReferenceRules, filled: Array, axis: int) -> Array:
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


def _lower_triangle(rule: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arguments, **options: np.tril(rule(*arguments, **options))


def _relu_at_zero(rule: Callable[..., Array], at: float) -> Callable[..., Array]:
    return lambda self, x, g, *, kind: np.where(
        (x == 0) & (kind == "relu"), at * g, rule(self, x, g, kind=kind)
    )


def _copies(r: Array, times: int) -> Array:  # (B, K times, T, d) -> (B, K, times, T, d)
    return r.reshape(r.shape[0], -1, times, *r.shape[2:])


def _wrong_groups(self: ReferenceRules, x: Array, r: Array, *, times: int) -> Array:
    return r.reshape(r.shape[0], times, -1, *r.shape[2:]).sum(1)


def _tiled(self: ReferenceRules, x: Array, times: int) -> Array:
    """1, 2, 1, 2 in place of 1, 1, 2, 2."""
    return np.tile(x, (1, times, 1, 1))


def _on_norm_ratio(relevance: Callable[..., Array]) -> Callable[..., Array]:
    """A rule of LayerNorm: relevance(self, x, w, b, s, norm_eps) of s = R / (z + eps)."""

    def rule(
        self: ReferenceRules,
        x: Array,
        w: Array,
        b: Array | None,
        r: Array,
        *,
        norm_eps: float,
        eps: float,
        stabilizer: str = "sign",
    ) -> Array:
        z = _normed(self, x, w, b, norm_eps=norm_eps)
        s = self.stabilized_ratio(z, r, eps, stabilizer)
        return relevance(self, x, w, b, s, norm_eps)

    return rule


_full_jacobian = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: x * self.layer_norm_gradient(x, w, b, s, norm_eps=norm_eps)
)
_centered_times = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: centered(x) * w * s / self.std(x, norm_eps)
)
_beta_kept = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: (
        x * self.layer_norm_epsilon_gxi(x, w, b, s, norm_eps=norm_eps)
        + (0.0 if b is None else b * s)
    )
)


def _gamma_unbalanced(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    """Amplified contributions over a sum that is not amplified."""
    z = self.linear_sum(x, w, b)
    c = contributions(x, w)
    return summed_messages(c + gamma * self.amplified(c, z[..., None], x, w), self.divided(r, z))


def _biased_box(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float
) -> Array:
    c = plus_part(w) * (x - low)[..., None, :] + minus_part(w) * (x - high)[..., None, :]
    return summed_messages(c, self.divided(r, c.sum(-1) + (0.0 if b is None else b)))


def _averaged(self: ReferenceRules, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
    counts = ReferenceRules.gather_pass_through(self, x, np.ones_like(r), index=index)
    return ReferenceRules.gather_pass_through(self, x, r, index=index) / np.maximum(counts, 1)


def _values_alone(case: Case) -> Answer:
    """Nothing to queries and keys, and still only half to the values."""
    return None, None, reference_answer(case)[2]


def _unbiased_scale_alone(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float
) -> Array:
    """The other scale in a derivative that takes it for the right one."""
    n, c = x.shape[-1], centered(x)
    std = self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    h = c / std
    return (centered(w * g) - h * (w * g * h).mean(-1, keepdims=True)) / std


def _root_of_square(self: ReferenceRules, square: Array, norm_eps: float) -> Array:
    return np.sqrt(square**2 + norm_eps)


def _sign_up(z: Array, eps: float) -> Array:
    return np.where(z >= 0, eps, -eps)


def _bridged(case: Case) -> Answer:
    """R / z goes in, is multiplied by z, and what the rule makes of it is divided by x + 1e-10 s(x)
    and multiplied by x again.
    """
    if case.formulation == "gradient_x_input":
        raise NoDifference("it is a bridge for rules in relevance form")
    relevance = wide(case.inputs["r"])
    if case.rule.startswith(("linear", "convolution")):
        relevance = relevance * (_outputs(case) != 0)
    small = 0.0 if case.dtype == "float16" else 1e-10
    form = changed_answer(lambda case, x, got: got / (x + _sign_up(x, small)) * x)
    return form(_changed(case, {"r": relevance}))


def _stabilized_by(eps: float, **parts: Any) -> Answering:
    """A stabilizer in a rule that has none."""
    return planted(divided=lambda self, r, d: r / (d + _sign_up(d, eps)), **parts)


def _multiplied_in_place(kind: str) -> Answering:
    """One gradient for all operands, and each multiplies it by itself in turn."""

    def sum_epsilon(
        self: ReferenceRules,
        operands: Sequence[Array],
        r: Array,
        *,
        eps: float,
        stabilizer: str = "sign",
    ) -> Answer:
        product = self.stabilized_ratio(summed(operands), r, eps, kind or stabilizer) * math.prod(
            operands
        )
        return tuple(folded(product, a) for a in operands)

    return planted(sum_epsilon=sum_epsilon)


def _signed_weights(self: ReferenceRules, x: Array, w: Array) -> tuple[Array, Array]:
    return contributions(x, plus_part(w)), contributions(x, minus_part(w))


def _spread_offset(
    self: ReferenceRules, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
) -> Array:
    return ReferenceRules(self.dtype).softmax_spread(x, r, mask=mask, axis=axis)


class _MaskedAfter(ReferenceRules):
    """The mask strikes out probabilities that hidden entries have had a part in."""

    def filled(self, x: Array, mask: Array | None) -> Array:
        self.hidden = np.isneginf(ReferenceRules.filled(self, x, mask))
        return x

    def unmasked(self, filled: Array) -> Array:
        return ~self.hidden

    def logits(self, filled: Array, axis: int) -> Array:
        return np.where(self.hidden, 0.0, filled)

    def probabilities(self, filled: Array, axis: int) -> Array:
        return np.where(self.hidden, 0.0, ReferenceRules.probabilities(self, filled, axis))


def _transposed(case: Case) -> dict[str, Any]:
    new = {name: case.inputs[name].T for name in ("w", "w1", "w2") if name in case.inputs}
    if any(w.shape != case.inputs[name].shape for name, w in new.items()):
        raise NoDifference("the weight is not square")
    return new


def _gamma_weights(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    w = w + gamma * plus_part(w)
    return self.divided(r, self.linear_sum(x, w, b)) @ w * x


def _gamma_weights_and_bias(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return _gamma_weights(
        self, x, w, None if b is None else b + gamma * plus_part(b), r, gamma=gamma
    )


def _with_factors(change: Callable[[float, float], tuple[float, float]]) -> Answering:
    def linear_alpha_beta(
        self: ReferenceRules,
        x: Array,
        w: Array,
        b: Array | None,
        r: Array,
        *,
        alpha: float,
        beta: float,
    ) -> Array:
        alpha, beta = change(alpha, beta)
        return ReferenceRules.linear_alpha_beta(self, x, w, b, r, alpha=alpha, beta=beta)

    return planted(linear_alpha_beta=linear_alpha_beta)


def _gamma_not_at_zero(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return ReferenceRules.linear_gamma(
        self, x, w, b, r * (self.linear_sum(x, w, b) != 0), gamma=gamma
    )


def _constants_among_three(
    self: ReferenceRules, operands: Sequence[Array], fixed: Sequence[bool]
) -> list[Any]:
    """A product of two has a function of its own, which is right."""
    return (
        [1 / len(operands)] * len(operands)
        if len(operands) > 2
        else ReferenceRules.fractions(self, operands, fixed)
    )


def _doubled_matmul(self: ReferenceRules, a: Array, v: Array, r: Array, **options: Any) -> Answer:
    """R / (O + eps) to each."""
    return _times(2, ReferenceRules.matmul_uniform)(
        self, a, v, r, **{**options, "denominator": "2(z+eps)"}
    )


def _by_mean(
    self: ReferenceRules,
    x: Array,
    r: Array,
    *,
    counted: Array | None = None,
    eps: float,
    stabilizer: str = "sign",
) -> Array:
    count = x.shape[-2] if counted is None else counted.sum(-2, keepdims=True)
    return ReferenceRules.pooling_epsilon(
        self, x, r, counted=counted, stabilizer=stabilizer, eps=eps * count
    )


def _as_epsilon(eps: float) -> Callable[..., Array]:
    return lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(
        x, w, b, r, norm_eps=norm_eps, eps=eps
    )


def _counted_but_not_in_number(
    self: ReferenceRules, x: Array, g: Array, *, counted: Array | None = None
) -> Array:
    return ReferenceRules.pooling_gradient(self, x, g) * (1.0 if counted is None else counted)


def _bias_squared(self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array) -> Array:
    return self.divided(r, (w * w).sum(-1) + (0.0 if b is None else b * b)) @ (w * w)


def _root_mean_square(z: Array, axes: int) -> Array:
    return np.sqrt((z * z).mean(tuple(range(axes, z.ndim)), keepdims=True))


def _kind_for(asked: str, used: str) -> Answering:
    return called_with(lambda case: {"kind": used} if case.options["kind"] == asked else {})


# -- the table: faults found in libraries, then slips that are easily made, then choices -----------

MISTAKES: tuple[Mistake, ...] = (
    mistake(
        "eps-unsigned",
        _BY_EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(
                self, z, eps, "none" if kind == "none" else "plain"
            )
        ),
        planted(stabilized=lambda self, z, eps, kind: z + eps),
    ),
    mistake(
        "eps-zero-sign",
        _BY_EPSILON,
        planted(stabilized=_sign_of_zero, divided=lambda self, r, d: r / d),
        planted(stabilized=_sign_of_zero),
        planted(
            stabilized=lambda self, z, eps, kind: z + eps * np.sign(z),
            divided=lambda self, r, d: r / d,
        ),
    ),
    mistake(
        "eps-two-forms",
        "matmul_uniform attention_attnlrp",
        called_with(lambda case: {"denominator": "2(z+eps)"}),
        called_with(lambda case: {"denominator": "2z+eps"}),
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
    mistake(
        "softmax-dim",
        "softmax_taylor softmax_spread softmax_gradient",
        planted(sum_along=lambda self, r, axis: r.sum(-1, keepdims=True)),
    ),
    mistake(
        "softmax-shifted",
        "softmax_taylor softmax_spread softmax_z_plus attention_attnlrp",
        planted(
            logits=lambda self, filled, axis: np.where(
                np.isneginf(filled), 0.0, filled - filled.max(axis, keepdims=True)
            )
        ),
    ),
    mistake(
        "mask-finfo",
        f"{_SOFTMAX} {_ATTENTION}",
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, self.lowest),
            probabilities=_naive_probabilities,
        ),
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, -np.inf),
            probabilities=_naive_probabilities,
        ),
    ),
    mistake(
        "tril-always",
        f"{_SOFTMAX} {_ATTENTION}",
        planted(
            visible=lambda self, scores, causal, mask: ReferenceRules.visible(
                self, scores, True, mask
            )
        ),
        planted(
            **{rule: _lower_triangle(getattr(ReferenceRules, rule)) for rule in _SOFTMAX.split()}
        ),
        planted(
            softmax_taylor=lambda self, x, r, **o: ReferenceRules.softmax_taylor(
                self, x, np.tril(r), **o
            )
        ),
    ),
    mistake(
        "cp-half",
        "matmul_second matmul_second_gxi multiply_second multiply_second_gxi attention_cp "
        "attention_cp_gxi",
        changed_answer(lambda case, x, got: got / 2),
        planted(matmul_second=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o)[1]),
    ),
    mistake(
        "halved-linear",
        "linear_* convolution_* fan_out_epsilon network",
        planted(
            **{
                rule: _halved(getattr(ReferenceRules, rule))
                for rule in SIGNATURES
                if rule.startswith("linear_") and rule != "linear_z_plus"
            }
        ),
    ),
    mistake(
        "moe-degree-0",
        "renormalize_identity renormalize_identity_gxi",
        planted(
            renormalize_identity=lambda self, x, r: self.renormalize_epsilon(
                x, r, eps=0.0, stabilizer="none"
            ),
            renormalize_identity_gxi=ReferenceRules.renormalize_gradient,
        ),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-6)),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-8)),
    ),
    mistake(
        "identity-in-wrong-form",
        "activation_identity activation_identity_gxi rms_norm_identity "
        "rms_norm_identity_gxi layer_norm_identity renormalize_identity "
        "renormalize_identity_gxi scale_pass_through scale_gradient network "
        "attention_attnlrp attention_attnlrp_gxi",
        planted(
            activation_identity=lambda self, x, r, *, kind: r * identity_factor(x, kind),
            activation_identity_gxi=lambda self, x, g, *, kind: g,
            rms_norm_identity=ReferenceRules.rms_norm_identity_gxi,
            rms_norm_identity_gxi=lambda self, x, w, g, *, norm_eps: g,
            layer_norm_identity=ReferenceRules.layer_norm_epsilon_gxi,
            renormalize_identity=ReferenceRules.renormalize_identity_gxi,
            renormalize_identity_gxi=lambda self, x, g: g,
            scale_pass_through=ReferenceRules.scale_gradient,
            scale_gradient=lambda self, x, g, *, factor: g,
        ),
        planted(activation_identity=lambda self, x, r, *, kind: r * (activation(x, kind) / x)),
    ),
    mistake(
        "product-proportional",
        "multiply_uniform multiply_uniform_gxi",
        planted(fractions=_proportional),
    ),
    mistake(
        "residual-absolute",
        "add_epsilon sum_epsilon add_gradient fan_out_epsilon",
        planted(
            sum_epsilon=_by_size(0.0),
            add_gradient=lambda self, a, b, g: _absolute_gradient(a, b, g),
        ),
        planted(sum_epsilon=_by_size(1.0)),
    ),
    mistake(
        "constant-eats-share",
        "multiply_uniform multiply_uniform_gxi",
        planted(fractions=lambda self, operands, fixed: [1 / len(operands)] * len(operands)),
        planted(fractions=_constants_among_three),
        called_with(lambda case: {"constant": None}),
    ),
    mistake(
        "relu-identity-lost",
        "activation_identity network",
        planted(activation_identity=lambda self, x, r, *, kind: 0 * r if kind == "relu" else r),
    ),
    mistake(
        "rule-forgotten",
        "network",
        called_with(_default_rules),
        _input_times_gradient,
        behavior="again",
    ),
    mistake(
        "conv-doubled",
        "convolution_*",
        changed_answer(lambda case, x, got: got if x.shape[1] == 3 else 2 * got),
        changed_answer(lambda case, x, got: 2 * got),
    ),
    mistake(
        "safe-divide",
        f"{_BY_EPSILON} linear_z_plus linear_alpha_beta linear_gamma convolution_z_plus",
        _clamped_divide(1e-9),
        _clamped_divide(None),
    ),
    mistake(
        "batch-coupled",
        f"{_ABSORBING} network",
        planted(sum_epsilon=_rescaled_over_batch),
        _as_a_whole(_rescaled, 0),
    ),
    mistake(
        "bn-variance",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        planted(
            root=_root_of_square,
            root_derivative=lambda self, square, norm_eps: (
                square / _root_of_square(self, square, norm_eps)
            ),
        ),
        planted(root=_root_of_square),
    ),
    mistake(
        "alpha-beta-bias",
        "linear_alpha_beta linear_z_plus convolution_z_plus",
        planted(signed_bias=lambda self, b, sign: b),
    ),
    mistake(
        "alpha-index",
        "linear_alpha_beta",
        _with_factors(lambda alpha, beta: (1.0, beta)),
        _with_factors(lambda alpha, beta: (alpha, alpha)),
        _with_factors(lambda alpha, beta: (beta, beta)),
        _with_factors(lambda alpha, beta: (alpha, 1.0)),
    ),
    mistake(
        "gamma-forward",
        "network",
        _weights_amplified,
        behavior="forward",
    ),
    mistake(
        "ln-unbiased",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        planted(variance_divisor=lambda self, x: x.shape[-1] - 1),
        planted(layer_norm_gradient=_unbiased_scale_alone),
    ),
    mistake(
        "gamma-at-zero",
        "linear_gamma",
        planted(linear_gamma=_gamma_not_at_zero),
    ),
    mistake(
        "zero-input",
        f"{_RELEVANCE} activation_identity_gxi",
        changed_answer(lambda case, x, got: np.where(x == 0, 0.0, got)),
        changed_answer(lambda case, x, got: np.where(x == 0, np.nan, got)),
        _bridged,
    ),
    mistake(
        "leaf-twice",
        "fan_out_epsilon gather_pass_through",
        planted(
            accumulated=lambda self, first, second: second,
            accumulate=lambda self, relevance, row, r: relevance.__setitem__(row, r),
        ),
        planted(accumulated=lambda self, first, second: first),
        planted(
            accumulate=lambda self, relevance, row, r: relevance.__setitem__(
                row, np.where(relevance[row] == 0, r, relevance[row])
            )
        ),
    ),
    mistake(
        "logit-squared",
        f"{_GRADIENT} network",
        called_with(_seeded_with_outputs),
    ),
    mistake(
        "vacuous-check",
        f"{_RELEVANCE} network",
        _as_a_whole(_uniform_mean, 0),
        _as_a_whole(_uniform_mean, 1),
    ),
    mistake(
        "fp16-nan",
        f"{_EPSILON} linear_alpha_beta",
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
    mistake(
        "one-target",
        "network",
        behavior="targets",
    ),
    mistake(
        "gqa-repeat",
        "repeat_heads_pass_through attention_attnlrp attention_cp attention_attnlrp_gxi "
        "attention_cp_gxi",
        planted(repeat_heads_pass_through=_wrong_groups),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times)[:, :, 0]),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times)[:, :, -1]),
        planted(repeat_heads_pass_through=lambda self, x, r, *, times: _copies(r, times).mean(2)),
        planted(repeated=_tiled, repeat_heads_pass_through=_wrong_groups),
        planted(repeated=_tiled),
    ),
    mistake(
        "rope-interleave",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(rotated=_interleaved),
        lambda case: planted(rotated=_interleaved)(_changed(case, _angles_of_pairs(case))),
    ),
    mistake(
        "shared-gradient",
        "sum_epsilon add_epsilon",
        _multiplied_in_place(""),
        _multiplied_in_place("plain"),
    ),
    # what is easily got wrong
    mistake(
        "weight-transposed",
        "linear_epsilon linear_g* linear_z* linear_a* linear_w* fan_out_epsilon",
        called_with(_transposed),
    ),
    mistake(
        "narrowed",
        "*",
        behavior="narrowed",
    ),
    mistake(
        "bias-ignored",
        "linear_epsilon linear_gamma linear_z_plus linear_alpha_beta convolution_epsilon "
        "convolution_z_plus layer_norm_epsilon network",
        planted(
            linear_sum=lambda self, x, w, b: x @ w.T,
            amplified_bias=lambda self, b, z: 0 * b,
            signed_bias=lambda self, b, sign: 0 * b,
            linear_gamma=lambda self, x, w, b, r, **o: ReferenceRules.linear_gamma(
                self, x, w, None, r, **o
            ),
            layer_norm_epsilon=lambda self, x, w, b, r, **o: ReferenceRules.layer_norm_epsilon(
                self, x, w, None, r, **o
            ),
        ),
    ),
    mistake(
        "eps-doubled",
        _BY_EPSILON,
        _eps_times(lambda z: 2),
    ),
    mistake(
        "abs-stabilizer",
        _BY_EPSILON,
        planted(stabilized=lambda self, z, eps, kind: z if kind == "none" else np.abs(z) + eps),
        planted(stabilized=lambda self, z, eps, kind: np.abs(z) + eps),
    ),
    mistake(
        "stabilizer-ignored",
        _EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(self, z, eps, "sign")
        ),
    ),
    mistake(
        "other-eps",
        _BY_EPSILON,
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
    mistake(
        "gradient-for-relevance",
        "*_epsilon matmul_uniform matmul_second softmax_taylor",
        changed_answer(_without_input),
    ),
    mistake(
        "relevance-for-gradient",
        _GRADIENT,
        changed_answer(lambda case, x, got: x * got),
    ),
    mistake(
        "forced-conservation",
        f"{_ABSORBING} network",
        _as_a_whole(_rescaled, 1),
    ),
    mistake(
        "relevance-clamped",
        f"{_RELEVANCE} network",
        changed_answer(lambda case, x, got: np.maximum(got, 0.0)),
        changed_answer(lambda case, x, got: np.abs(got)),
    ),
    mistake(
        "softmax-no-offset",
        "softmax_taylor softmax_gradient attention_attnlrp attention_attnlrp_gxi",
        planted(sum_along=lambda self, r, axis: 0 * r),
    ),
    mistake(
        "axis-ignored",
        "softmax_taylor softmax_spread softmax_z_plus softmax_gradient",
        called_with(lambda case: {"axis": -1}),
    ),
    mistake(
        "mask-ignored",
        f"{_SOFTMAX} {_ATTENTION}",
        called_with(lambda case: {"mask": None}),
    ),
    mistake(
        "mask-inverted",
        f"{_SOFTMAX} {_ATTENTION}",
        called_with(
            lambda case: {} if case.options.get("mask") is None else {"mask": ~case.options["mask"]}
        ),
    ),
    mistake(
        "mask-after",
        f"softmax_taylor softmax_spread softmax_gradient {_ATTENTION}",
        lambda case: _MaskedAfter(case.dtype).answer(case),
    ),
    mistake(
        "mask-counted",
        "softmax_taylor softmax_spread softmax_z_plus softmax_identity",
        planted(unmasked=lambda self, filled: np.ones_like(filled)),
    ),
    mistake(
        "causal-ignored",
        _ATTENTION,
        called_with(lambda case: {"causal": False}),
    ),
    mistake(
        "scale-once",
        _ATTENTION,
        called_with(lambda case: {"scale": 1.0}),
        called_with(lambda case: {"scale": case.options["scale"] ** 2}),
    ),
    mistake(
        "product-doubled",
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi rotary_uniform rotary_uniform_gxi",
        planted(
            fractions=lambda self, operands, fixed: [1.0] * len(operands),
            matmul_uniform=_times(2, ReferenceRules.matmul_uniform),
            matmul_uniform_gxi=ReferenceRules.matmul_gradient,
            rotary_uniform_gxi=ReferenceRules.rotary_gradient,
        ),
        planted(matmul_uniform=_doubled_matmul),
    ),
    mistake(
        "product-quartered",
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi rotary_uniform rotary_uniform_gxi",
        planted(
            fractions=lambda self, operands, fixed: [
                part / 2 for part in ReferenceRules.fractions(self, operands, fixed)
            ],
            matmul_uniform=_times(0.5, ReferenceRules.matmul_uniform),
            matmul_uniform_gxi=_times(0.5, ReferenceRules.matmul_uniform_gxi),
            rotary_uniform_gxi=_halved(ReferenceRules.rotary_uniform_gxi),
        ),
    ),
    mistake(
        "gate-swapped",
        "multiply_second multiply_second_gxi",
        changed_answer(lambda case, x, got: 0 * got),
        planted(multiply_second_gxi=lambda self, a, b, g: folded(b * g, b)),
    ),
    mistake(
        "cp-leaks",
        "attention_cp attention_cp_gxi",
        planted(
            attention_cp=ReferenceRules.attention_attnlrp,
            attention_cp_gxi=ReferenceRules.attention_attnlrp_gxi,
        ),
    ),
    mistake(
        "probabilities-constant",
        "attention_attnlrp attention_attnlrp_gxi",
        planted(
            attention_attnlrp=lambda self, q, k, v, r, *, denominator="2z+eps", **o: (
                self.attention_cp(q, k, v, r, **o)
            ),
            attention_attnlrp_gxi=ReferenceRules.attention_cp_gxi,
        ),
        _values_alone,
    ),
    mistake(
        "mean-not-centered",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        planted(pulled_through_mean=lambda self, c: c),
    ),
    mistake(
        "ln-centered-input",
        "layer_norm_epsilon",
        planted(layer_norm_epsilon=_centered_times),
    ),
    mistake(
        "ln-beta-in-numerator",
        "layer_norm_epsilon",
        planted(layer_norm_epsilon=_beta_kept),
    ),
    mistake(
        "norm-eps-missing",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"norm_eps": 0.0}),
        planted(
            root=lambda self, square, norm_eps: np.sqrt(square) + norm_eps,
            root_derivative=lambda self, square, norm_eps: 0.5 / np.sqrt(square),
        ),
    ),
    mistake(
        "norm-jacobian",
        "rms_norm_identity rms_norm_identity_gxi layer_norm_epsilon layer_norm_identity "
        "layer_norm_epsilon_gxi",
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
            rms_norm_identity_gxi=ReferenceRules.rms_norm_gradient,
            layer_norm_epsilon=_full_jacobian,
            layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: _full_jacobian(
                self, x, w, b, r, norm_eps=norm_eps, eps=0.0, stabilizer="none"
            ),
            layer_norm_epsilon_gxi=ReferenceRules.layer_norm_gradient,
        ),
    ),
    mistake(
        "norm-frozen",
        "rms_norm_gradient layer_norm_gradient",
        planted(
            rms_norm_gradient=ReferenceRules.rms_norm_identity_gxi,
            layer_norm_gradient=ReferenceRules.layer_norm_epsilon_gxi,
        ),
    ),
    mistake(
        "norm-weight-ignored",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"w": np.ones_like(case.inputs["w"])}),
    ),
    mistake(
        "norm-weight-offset",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"w": case.inputs["w"] + case.inputs["w"].dtype.type(1)}),
    ),
    mistake(
        "gelu-other",
        "activation_identity_gxi activation_gradient",
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
    mistake(
        "slope-for-ratio",
        "activation_identity_gxi",
        planted(activation_identity_gxi=ReferenceRules.activation_gradient),
    ),
    mistake(
        "ratio-for-slope",
        "activation_gradient",
        planted(activation_gradient=ReferenceRules.activation_identity_gxi),
    ),
    mistake(
        "ratio-eps",
        "activation_identity_gxi",
        *(
            planted(
                activation_identity_gxi=lambda self, x, g, *, kind, eps=eps: (
                    g * (activation(x, kind) / (x + eps))
                )
            )
            for eps in (1e-10, 1e-9, 1e-8, 1e-6, 0.0)
        ),
    ),
    mistake(
        "rotary-transposed",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(rotary_gradient=lambda self, x, cos, sin, g: g * cos + self.rotated(g, -1) * sin),
    ),
    mistake(
        "rotary-skipped",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(
            rotary_epsilon=lambda self, x, cos, sin, r, **o: r,
            rotary_uniform=lambda self, x, cos, sin, r, **o: r / 2,
            rotary_gradient=lambda self, x, cos, sin, g: g,
        ),
    ),
    mistake(
        "counted-ignored",
        "pooling_epsilon pooling_gradient",
        called_with(lambda case: {"counted": None}),
        planted(pooling_gradient=_counted_but_not_in_number),
    ),
    mistake(
        "pooling-sum",
        "pooling_gradient",
        planted(
            pooling_gradient=lambda self, x, g, *, counted=None: (
                (np.ones_like(x) if counted is None else counted) * g
            )
        ),
    ),
    mistake(
        "pooling-uniform",
        "pooling_epsilon",
        planted(
            pooling_epsilon=lambda self, x, r, *, counted=None, **o: (
                ReferenceRules.pooling_gradient(self, x, r, counted=counted)
            )
        ),
    ),
    mistake(
        "gamma-one-branch",
        "linear_gamma network",
        planted(
            amplified=lambda self, c, z, x, w: plus_part(c),
            amplified_bias=lambda self, b, z: plus_part(b),
        ),
    ),
    mistake(
        "gamma-bias",
        "linear_gamma network",
        planted(amplified_bias=lambda self, b, z: 0 * b * z),
    ),
    mistake(
        "gamma-dropped",
        "linear_gamma network",
        planted(
            linear_gamma=lambda self, x, w, b, r, *, gamma: ReferenceRules.linear_gamma(
                self, x, w, b, r, gamma=0.0
            )
        ),
        planted(linear_gamma=_gamma_unbalanced),
    ),
    mistake(
        "plus-half",
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        planted(
            signed=lambda self, x, w: (
                contributions(plus_part(x), plus_part(w)),
                contributions(plus_part(x), minus_part(w)),
            )
        ),
    ),
    mistake(
        "plus-weights",
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        planted(signed=_signed_weights),
        planted(signed=_signed_weights, signed_bias=lambda self, b, sign: b),
        _stabilized_by(1e-9, signed=_signed_weights, signed_bias=lambda self, b, sign: b),
    ),
    mistake(
        "alpha-beta-sign",
        "linear_alpha_beta network",
        _with_factors(lambda alpha, beta: (alpha, -beta)),
    ),
    mistake(
        "flat-weighted",
        "linear_flat",
        planted(
            linear_flat=lambda self, x, w, b, r: (
                ReferenceRules.linear_flat(self, x, w, b, r) * x.shape[-1] / (x.shape[-1] + 1)
            )
        ),
        planted(
            linear_flat=lambda self, x, w, b, r: (
                x / x.sum(-1, keepdims=True) * r.sum(-1, keepdims=True)
            )
        ),
    ),
    mistake(
        "w-square-not-squared",
        "linear_w_square",
        planted(
            linear_w_square=lambda self, x, w, b, r: self.divided(r, np.abs(w).sum(-1)) @ np.abs(w)
        ),
        planted(linear_w_square=lambda self, x, w, b, r: self.divided(r, w.sum(-1)) @ w),
    ),
    mistake(
        "z-box-bounds",
        "linear_z_box",
        called_with(lambda case: {"low": case.options["high"], "high": case.options["low"]}),
        called_with(lambda case: {"low": 0.0, "high": 1.0}),
    ),
    mistake(
        "z-box-bias",
        "linear_z_box",
        planted(linear_z_box=_biased_box),
    ),
    mistake(
        "kernel-flipped",
        "convolution_*",
        called_with(lambda case: {"w": case.inputs["w"][..., ::-1, ::-1]}),
    ),
    mistake(
        "index-shared",
        "gather_pass_through",
        called_with(
            lambda case: {"index": [case.options["index"][0]] * len(case.options["index"])}
        ),
    ),
    mistake(
        "top-k-order",
        "top_k_pass_through",
        planted(chosen=lambda self, x, k: ReferenceRules.chosen(self, x, k)[..., ::-1]),
        planted(chosen=lambda self, x, k: np.sort(ReferenceRules.chosen(self, x, k), axis=-1)),
        planted(chosen=lambda self, x, k: np.broadcast_to(np.arange(k), (*x.shape[:-1], k))),
    ),
    mistake(
        "fan-in-mean",
        "fan_out_epsilon gather_pass_through",
        planted(
            accumulated=lambda self, first, second: (first + second) / 2,
            gather_pass_through=_averaged,
        ),
    ),
    # choices that are made on purpose
    mistake(
        "bias-redistributed",
        "linear_epsilon convolution_epsilon network",
        planted(linear_epsilon=_bias_spread),
        planted(linear_epsilon=_all_spread),
    ),
    mistake(
        "bias-counted",
        "linear_w_square",
        planted(linear_w_square=_bias_squared),
    ),
    mistake(
        "stabilizer-added",
        "linear_gamma linear_z_plus linear_alpha_beta linear_w_square linear_z_box "
        "convolution_z_plus",
        *(_stabilized_by(eps) for eps in (1e-12, 1e-9, 1e-8, 1e-7, 1e-6)),
    ),
    mistake(
        "eps-clamped",
        _BY_EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: (
                z if kind == "none" else np.where(np.abs(z) < eps, _sign_up(z, eps), z)
            )
        ),
    ),
    mistake(
        "softmax-other-rule",
        "softmax_taylor softmax_spread softmax_identity attention_attnlrp",
        planted(
            softmax_taylor=ReferenceRules.softmax_identity,
            softmax_spread=ReferenceRules.softmax_identity,
            softmax_identity=ReferenceRules.softmax_taylor,
        ),
        planted(softmax_taylor=_spread_offset),
        planted(softmax_spread=ReferenceRules.softmax_taylor),
        planted(softmax_taylor=ReferenceRules.softmax_z_plus),
    ),
    mistake(
        "eps-relative",
        _BY_EPSILON,
        _eps_times(lambda z: _root_mean_square(z, 0)),
        _eps_times(lambda z: _root_mean_square(z, 1)),
        _eps_times(lambda z: _root_mean_square(z, z.ndim - 1)),
        _eps_times(lambda z: np.abs(z).max()),
    ),
    mistake(
        "layer-norm-reading",
        "layer_norm_epsilon layer_norm_identity",
        planted(layer_norm_epsilon=lambda self, x, w, b, r, *, norm_eps, **o: r),
        *(planted(layer_norm_identity=_as_epsilon(eps)) for eps in (1e-6, 1e-9, 1e-12)),
    ),
    mistake(
        "renormalize-identity",
        "renormalize_epsilon renormalize_gradient",
        planted(
            renormalize_epsilon=lambda self, x, r, **o: r,
            renormalize_gradient=ReferenceRules.renormalize_identity_gxi,
        ),
    ),
    mistake(
        "gamma-weights",
        "linear_gamma network",
        planted(linear_gamma=_gamma_weights),
        planted(linear_gamma=_gamma_weights_and_bias),
        _stabilized_by(1e-9, linear_gamma=_gamma_weights),
    ),
    mistake(
        "pooling-mean-eps",
        "pooling_epsilon",
        planted(pooling_epsilon=_by_mean),
    ),
    mistake(
        "sum-chained",
        "sum_epsilon",
        planted(sum_epsilon=_chained),
    ),
    mistake(
        "fan-out-fused",
        "fan_out_epsilon",
        planted(
            fan_out_epsilon=lambda self, x, w1, w2, r, **o: self.linear_epsilon(
                x, w1 + w2, None, r, **o
            )
        ),
    ),
    mistake(
        "causal-last",
        _ATTENTION,
        planted(
            visible=lambda self, scores, causal, mask: (
                ReferenceRules.visible(self, scores, False, mask)
                & np.tril(
                    np.ones(scores.shape[-2:], dtype=bool),
                    scores.shape[-1] - scores.shape[-2] if causal else scores.shape[-1],
                )
            )
        ),
    ),
    mistake(
        "relu-at-zero",
        "activation_identity_gxi activation_gradient",
        *(
            planted(
                **{
                    rule: _relu_at_zero(getattr(ReferenceRules, rule), at)
                    for rule in ("activation_identity_gxi", "activation_gradient")
                }
            )
            for at in (1.0, 0.5)
        ),
    ),
)

NOT_SHOWN: dict[str, str] = {}
"""Faults found in libraries that nothing here can show, with the reason. There is none: the slip of
batch norm shows in the other norms, and what only behavior shows (one-target) shows when calling a
network again, with more seeds."""
