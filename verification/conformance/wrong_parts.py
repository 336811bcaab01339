"""The parts of the known mistakes that take more than a line: rules and pieces of rules as an
implementation that is wrong has them.

Most stand in for a function of ReferenceRules (planting.py, `planted`) and are called like it; the
others take a case and give the whole answer, or say with what the rule is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refl.arrays import Array
from refl.verification.conformance.planting import (
    Answering,
    NoDifference,
    called_with,
    changed,
    changed_answer,
    planted,
    reference_answer,
)
from refl.verification.conformance.reference_rules import (
    Answer,
    Layer,
    ReferenceRules,
    activation,
    centered,
    contributions,
    derivative,
    folded,
    minus_part,
    patches_of,
    plus_part,
    rounded,
    summed,
    summed_messages,
    wide,
)
from refl.verification.vectors.case import Case


def with_denominator(denominator: str) -> Callable[..., Answer]:
    return lambda self, a, v, r, **options: self.matmul_uniform(
        a, v, r, **{**options, "denominator": denominator}
    )


def sign_of_zero(self: ReferenceRules, z: Array, eps: float, kind: str) -> Array:
    return z + eps * np.sign(z) if kind == "sign" else ReferenceRules.stabilized(self, z, eps, kind)


def other_eps(eps: float) -> Answering:
    return planted(
        stabilized_ratio=lambda self, z, r, _, kind: ReferenceRules.stabilized_ratio(
            self, z, r, eps, kind
        )
    )


def eps_times(size: Callable[[Array], Any]) -> Answering:
    return planted(
        stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(
            self, z, eps * size(z), kind
        )
    )


def proportional(
    self: ReferenceRules, operands: Sequence[Array], fixed: Sequence[bool]
) -> list[Any]:
    total = summed([np.abs(a) for a, c in zip(operands, fixed, strict=True) if not c])
    return [np.abs(a) / total for a in operands]


def by_size(floor: float) -> Callable[..., Answer]:
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


def rescaled_over_batch(
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


def as_a_whole(change: Callable[[Answer, Array, int], Answer], axes: int) -> Answering:
    """What one seed gives changed as a whole: change(its arrays, what came in, axes). Sums are
    taken per example (axes from 1), or over the batch (from 0). An operand that the examples share
    has no sum for each of them.
    """

    def form(case: Case) -> Answer:
        reference = reference_answer(case)
        if axes and any(a is not None and len(a) != case.batch for a in reference):
            raise NoDifference("an operand is shared by the examples")
        if case.rule != "network":
            return change(reference, wide(case.inputs[case.seed]), axes)
        incoming = wide(case.inputs["seeds"])
        return reference[0], *(
            change((a,), r, axes)[0] for a, r in zip(reference[1:], incoming, strict=True)
        )

    return form


def rescaled(answer: Answer, r: Array, axes: int) -> Answer:
    """Every array scaled by one number so that the sum of all is what came in."""
    factor = np.asarray(_total(r, axes) / sum(_total(a, axes) for a in answer if a is not None))
    return tuple(None if a is None else a * _broadcast(factor, a) for a in answer)


def uniform_mean(answer: Answer, r: Array, axes: int) -> Answer:
    """The same to all."""
    count = sum(math.prod(a.shape[axes:]) for a in answer if a is not None)
    mean = np.asarray(_total(r, axes) / count)
    return tuple(None if a is None else np.zeros(a.shape) + _broadcast(mean, a) for a in answer)


def _total(a: Array, axes: int) -> Array:
    return a.sum(tuple(range(axes, a.ndim)))


def _broadcast(numbers: Array, a: Array) -> Array:
    """One number for all of a, or one for each of its examples, with a's axes."""
    return numbers.reshape(numbers.shape + (1,) * (a.ndim - numbers.ndim))


def half_precision(eps: float | None) -> Answering:
    """z, z + eps and R / (z + eps) each rounded to the 16-bit format,
    and eps itself; nothing guards 0 / 0.
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

    return in_half(planted(stabilized_ratio=stabilized_ratio))


def in_half(form: Answering) -> Answering:
    def wrong(case: Case) -> Answer:
        if case.dtype not in ("float16", "bfloat16"):
            raise NoDifference("it is a mistake of the 16-bit formats")
        return form(case)

    return wrong


def clamped_divide(fixed: float | None) -> Answering:
    """r / (max(z, c) + min(z, c)), which is z + c whatever the sign of z,
    and c where that is zero; 0 where z is.
    """

    def stabilized_ratio(self: ReferenceRules, z: Array, r: Array, eps: float, kind: str) -> Array:
        c = fixed or eps
        d = np.maximum(z, c) + np.minimum(z, c)
        return r / np.where(d == 0, c, d) * (z != 0)

    return planted(
        stabilized_ratio=stabilized_ratio,
        divided=lambda self, r, d: stabilized_ratio(self, d, r, fixed or 1e-9, "plain"),
    )


def weights_amplified(case: Case) -> Answer:
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


def default_rules(case: Case) -> dict[str, Any]:
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


def input_times_gradient(case: Case) -> Answer:
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
        "layer": lambda: reference.layer_norm(*operands, **options),
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
        "causal": lambda: reference.causally_convolved(*operands),
        "scan": lambda: reference.scanned(*operands),
    }
    return forward[case.rule.partition("_")[0]]()


def _convolved(x: Array, w: Array, b: Array | None) -> Array:
    z = ReferenceRules().linear_sum(patches_of(x, w.shape[2:]), w.reshape(len(w), -1), b)
    return z.swapaxes(1, 2).reshape(
        len(x), len(w), x.shape[2] // w.shape[2], x.shape[3] // w.shape[3]
    )


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


def seeded_with_outputs(case: Case) -> dict[str, Any]:
    if case.rule == "network":
        z = ReferenceRules().answer(case)[0]
        return {"seeds": [r * z for r in wide(case.inputs["seeds"])]}
    return {"g": wide(case.inputs["g"]) * _outputs(case)}


def without_input(case: Case, x: Array, got: Array) -> Array:
    if np.any(x == 0):
        raise NoDifference("an input is zero: what it was multiplied with is unknown")
    return got / x


def chained(
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


def interleaved(self: ReferenceRules, x: Array, sign: int) -> Array:
    """Neighbors as pairs: [-x1, x0, -x3, x2, ...] for sign -1."""
    z = np.empty_like(x)
    z[..., ::2], z[..., 1::2] = sign * x[..., 1::2], -sign * x[..., ::2]
    return z


def angles_of_pairs(case: Case) -> dict[str, Any]:
    """cos and sin laid out for neighboring pairs."""
    half = case.inputs["cos"].shape[-1] // 2
    return {name: np.repeat(case.inputs[name][..., :half], 2, axis=-1) for name in ("cos", "sin")}


def bias_spread(
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


def all_spread(
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


def naive_probabilities(self: ReferenceRules, filled: Array, axis: int) -> Array:
    e = np.exp(filled - filled.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def absolute_gradient(a: Array, b: Array, g: Array) -> Answer:
    """(a + b) g split by |a| and |b|, each part over its operand: the sign of a, not a, decides."""
    each = (a + b) * g / (np.abs(a) + np.abs(b))
    return folded(np.sign(a) * each, a), folded(np.sign(b) * each, b)


def multiplied(factor: float, rule: Callable[..., Answer]) -> Callable[..., Answer]:
    return lambda *arguments, **options: tuple(
        None if each is None else factor * each for each in rule(*arguments, **options)
    )


def halved(rule: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arguments, **options: rule(*arguments, **options) / 2


def lower_triangle(rule: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arguments, **options: np.tril(rule(*arguments, **options))


def relu_at_zero(rule: Callable[..., Array], at: float) -> Callable[..., Array]:
    return lambda self, x, g, *, kind: np.where(
        (x == 0) & (kind == "relu"), at * g, rule(self, x, g, kind=kind)
    )


def from_copies(take: Callable[[Array], Array]) -> Callable[..., Array]:
    """take: (B, K, times, T, d) -> (B, K, T, d)"""
    return lambda self, x, r, *, times: take(r.reshape(r.shape[0], -1, times, *r.shape[2:]))


def wrong_groups(self: ReferenceRules, x: Array, r: Array, *, times: int) -> Array:
    return r.reshape(r.shape[0], times, -1, *r.shape[2:]).sum(1)


def tiled(self: ReferenceRules, x: Array, times: int) -> Array:
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
        z = self.layer_norm(x, w, b, norm_eps=norm_eps)
        s = self.stabilized_ratio(z, r, eps, stabilizer)
        return relevance(self, x, w, b, s, norm_eps)

    return rule


full_jacobian = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: x * self.layer_norm_gradient(x, w, b, s, norm_eps=norm_eps)
)
centered_times = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: centered(x) * w * s / self.std(x, norm_eps)
)
beta_kept = _on_norm_ratio(
    lambda self, x, w, b, s, norm_eps: (
        x * self.layer_norm_epsilon_gxi(x, w, b, s, norm_eps=norm_eps)
        + (0.0 if b is None else b * s)
    )
)


def gamma_unbalanced(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    """Amplified contributions over a sum that is not amplified."""
    z = self.linear_sum(x, w, b)
    c = contributions(x, w)
    return summed_messages(c + gamma * self.amplified(c, z[..., None], x, w), self.divided(r, z))


def biased_box(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float
) -> Array:
    c = plus_part(w) * (x - low)[..., None, :] + minus_part(w) * (x - high)[..., None, :]
    return summed_messages(c, self.divided(r, c.sum(-1) + (0.0 if b is None else b)))


def averaged(self: ReferenceRules, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
    counts = ReferenceRules.gather_pass_through(self, x, np.ones_like(r), index=index)
    return ReferenceRules.gather_pass_through(self, x, r, index=index) / np.maximum(counts, 1)


def values_alone(case: Case) -> Answer:
    """Nothing to queries and keys, and still only half to the values."""
    return None, None, reference_answer(case)[2]


def unbiased_scale_alone(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float
) -> Array:
    """The other scale in a derivative that takes it for the right one."""
    n, c = x.shape[-1], centered(x)
    std = self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    h = c / std
    return (centered(w * g) - h * (w * g * h).mean(-1, keepdims=True)) / std


def root_of_square(self: ReferenceRules, square: Array, norm_eps: float) -> Array:
    return np.sqrt(square**2 + norm_eps)


def sign_up(z: Array, eps: float) -> Array:
    return np.where(z >= 0, eps, -eps)


def bridged(case: Case) -> Answer:
    """R / z goes in, is multiplied by z, and what the rule makes of it is divided by x + 1e-10 s(x)
    and multiplied by x again.
    """
    if case.formulation == "gradient_x_input":
        raise NoDifference("it is a bridge for rules in relevance form")
    relevance = wide(case.inputs["r"])
    if case.rule.startswith(("linear", "convolution")):
        relevance = relevance * (_outputs(case) != 0)
    small = 0.0 if case.dtype == "float16" else 1e-10
    form = changed_answer(lambda case, x, got: got / (x + sign_up(x, small)) * x)
    return form(changed(case, {"r": relevance}))


def stabilized_by(eps: float, **parts: Any) -> Answering:
    """A stabilizer in a rule that has none."""
    return planted(divided=lambda self, r, d: r / (d + sign_up(d, eps)), **parts)


def multiplied_in_place(kind: str) -> Answering:
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


def signed_weights(self: ReferenceRules, x: Array, w: Array) -> tuple[Array, Array]:
    return contributions(x, plus_part(w)), contributions(x, minus_part(w))


def spread_offset(
    self: ReferenceRules, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
) -> Array:
    return ReferenceRules(self.dtype).softmax_spread(x, r, mask=mask, axis=axis)


class MaskedAfter(ReferenceRules):
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


def transposed(case: Case) -> dict[str, Any]:
    new = {name: case.inputs[name].T for name in ("w", "w1", "w2") if name in case.inputs}
    if any(w.shape != case.inputs[name].shape for name, w in new.items()):
        raise NoDifference("the weight is not square")
    return new


def gamma_weights(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    w = w + gamma * plus_part(w)
    return self.divided(r, self.linear_sum(x, w, b)) @ w * x


def gamma_weights_and_bias(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return gamma_weights(
        self, x, w, None if b is None else b + gamma * plus_part(b), r, gamma=gamma
    )


def with_factors(change: Callable[[float, float], tuple[float, float]]) -> Answering:
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


def gamma_not_at_zero(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    return ReferenceRules.linear_gamma(
        self, x, w, b, r * (self.linear_sum(x, w, b) != 0), gamma=gamma
    )


def constants_among_three(
    self: ReferenceRules, operands: Sequence[Array], fixed: Sequence[bool]
) -> list[Any]:
    """A product of two has a function of its own, which is right."""
    return (
        [1 / len(operands)] * len(operands)
        if len(operands) > 2
        else ReferenceRules.fractions(self, operands, fixed)
    )


def doubled_matmul(self: ReferenceRules, a: Array, v: Array, r: Array, **options: Any) -> Answer:
    """R / (O + eps) to each."""
    return multiplied(2, ReferenceRules.matmul_uniform)(
        self, a, v, r, **{**options, "denominator": "2(z+eps)"}
    )


def by_mean(
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


def as_epsilon(eps: float) -> Callable[..., Array]:
    return lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(
        x, w, b, r, norm_eps=norm_eps, eps=eps
    )


def counted_but_not_in_number(
    self: ReferenceRules, x: Array, g: Array, *, counted: Array | None = None
) -> Array:
    return ReferenceRules.pooling_gradient(self, x, g) * (1.0 if counted is None else counted)


def bias_squared(self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array) -> Array:
    return self.divided(r, (w * w).sum(-1) + (0.0 if b is None else b * b)) @ (w * w)


def root_mean_square(z: Array, axes: int) -> Array:
    return np.sqrt((z * z).mean(tuple(range(axes, z.ndim)), keepdims=True))


def kind_for(asked: str, used: str) -> Answering:
    return called_with(lambda case: {"kind": used} if case.options["kind"] == asked else {})


# -- by size, not by sign; a derivative for relevance (autoLRP, tdhook) --------


def share_by_size(a: Array, b: Array, eps: float) -> Array:
    """|a| / (|a| + |b|)"""
    return np.abs(a) / (np.abs(a) + np.abs(b) + eps)


def bias_by_size(floor: float) -> Answering:
    """The bias keeps |b| / (|W x| + |b|); the rule gets the rest, as if there were no bias."""

    def form(case: Case) -> Answer:
        if case.inputs["b"] is None:
            raise NoDifference("there is no bias")
        x, w, b, r = (np.asarray(case.inputs[name], float) for name in ("x", "w", "b", "r"))
        z = x @ w.T if w.ndim == 2 else _convolved(x, w, None)
        b = b if w.ndim == 2 else b[:, None, None]
        left = r * share_by_size(z, b, case.options.get("eps", floor))
        return planted(linear_gamma=gamma_off_zero)(changed(case, {"b": None, "r": left}))

    return form


def gamma_off_zero(
    self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float
) -> Array:
    """Each branch asks for a sign, and z = 0 has none."""
    kept = np.where(self.linear_sum(x, w, b) == 0, 0.0, r)
    return ReferenceRules.linear_gamma(self, x, w, b, kept, gamma=gamma)


def mean_by_size(
    self: ReferenceRules,
    x: Array,
    r: Array,
    *,
    eps: float,
    counted: Array | None = None,
    stabilizer: str = "sign",
) -> Array:
    size = np.abs(x) if counted is None else np.abs(x) * counted
    return size / (size.sum(1, keepdims=True) + eps) * r


def layer_norm_by_size(
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
    """beta by size, x against its mean by size, the mean's part over x by size."""
    mean = x.mean(-1, keepdims=True)
    if b is not None:
        r = r * share_by_size(self.layer_norm(x, w, None, norm_eps=norm_eps), b, eps)
    of_mean = (r * share_by_size(mean, x, eps)).sum(-1, keepdims=True)
    spread = np.abs(x) / (np.abs(x).sum(-1, keepdims=True) + eps)
    return r * share_by_size(x, mean, eps) + spread * of_mean


def derivative_of_layer_norm(
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
    return self.layer_norm_epsilon_gxi(x, w, b, r, norm_eps=norm_eps)


IN_FLOAT32: dict[str, Any] = {
    "stabilized": lambda self, z, eps, kind: ReferenceRules.stabilized(
        self, z, float(np.float32(eps)), kind
    )
}


def last_of_equals(self: ReferenceRules, x: Array, k: int) -> Array:
    return x.shape[-1] - 1 - ReferenceRules.chosen(self, x[..., ::-1], k)
