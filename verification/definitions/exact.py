"""The rules once more, from their definitions: every message R_(i<-j), one by one, in exact
arithmetic.

A rule is a way to cut the relevance R_j of every output j into messages, one to each receiver:

    R_i = sum_j R_(i<-j),     R_j = sum_i R_(i<-j) + what of R_j is absorbed

Here the messages are written down one at a time, over plain lists, in rational numbers
(`fractions.Fraction`) where the rule is rational and with 60 digits (`mpmath`) where roots and
exponentials come in. Nothing is fast and nothing rounds, so the conservation error is exactly zero.
Vectors are lists, a matrix is a list of rows; a batch, heads or positions are lift.py's loops.

`z` is the output a rule divides by. Left out, it is the exact forward. A caller that compares with
floating point passes the rounded z it used there, so that both sides divide by the same number.

Sources: A = AttnLRP (Achtibat et al. 2024, arXiv 2402.05602), B = Bach et al. 2015, M = Montavon et
al. 2017, V = Voita et al. 2021, C = Ali et al. 2022. This file knows nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import mpmath

MP: Any = mpmath.mp.clone()
MP.dps = 60

Number = Any
"""A Fraction, an mpf of 60 digits, or a number that keeps count of rounding beside its 60 digits
(`running_error.TrackedNumber`).
"""
Vector = Sequence[Number]
Matrix = Sequence[Sequence[Number]]
Index = tuple[int, ...]


@dataclass
class Messages:
    """What a rule made of the relevance: messages to each operand's entries,
    and messages that were absorbed.
    """

    inputs: list[dict[Hashable, list[Number]]]
    """For each operand: entry -> the messages it got."""
    absorbed: dict[str, list[Number]] = field(default_factory=dict)
    """Cause -> the messages that ended there."""
    ratios: list[Number] = field(default_factory=list)
    """Every s = R / denominator that was formed on the way."""

    def send(self, operand: int, entry: Hashable, message: Number) -> None:
        self.inputs[operand].setdefault(entry, []).append(message)

    def absorb(self, cause: str, message: Number) -> None:
        self.absorbed.setdefault(cause, []).append(message)

    def stabilized_ratio(
        self, z: Number, r: Number, eps: Number, kind: str, factor: int = 1
    ) -> Number:
        """s = R / (factor (z + e)); the stabilizer absorbs factor e s. A denominator of zero passes
        nothing on: it absorbs R.
        """
        e = stabilizer(z, eps, kind)
        s = 0 * r if z + e == 0 else r / (factor * (z + e))
        self.absorb("stabilizer", r if z + e == 0 else factor * e * s)
        self.ratios.append(s)
        return s

    def received(self, operand: int, entry: Hashable) -> Number:
        """R_i = sum_j R_(i<-j)."""
        return sum(self.inputs[operand].get(entry, []))

    def conservation_error(self, relevance: Iterable[Number], *operands: Any) -> Number:
        """sum R - sum of messages - absorbed: 0. With `operands` (entry -> value each) messages are
        gradients g, worth x g.
        """
        worth: Number = sum(m for a in self.absorbed.values() for m in a)
        for k, messages in enumerate(self.inputs):
            for entry, each in messages.items():
                weight = operands[k][entry] if operands else 1
                worth = worth + weight * sum(each)
        return sum(relevance) - worth


def no_messages(operands: int) -> Messages:
    return Messages([{} for _ in range(operands)])


# -- the division that the rules of the epsilon family share ---------------------------------------


def stabilizer(z: Number, eps: Number, kind: str) -> Number:
    """What is added to z. `sign`: eps s(z), s(0) = +1 (A eq. 5). `plain`: eps. `none`: nothing."""
    if kind == "none":
        return 0 * z
    return -eps if kind == "sign" and z < 0 else eps


def function(name: str, x: Number) -> Number:
    """exp, sqrt, erfc, tanh, cosh or log1p; a number of another kind than mpf brings its own."""
    return x.function(name) if hasattr(x, "function") else getattr(MP, name)(x)


def positive(c: Number) -> Number:
    return c if c > 0 else 0 * c


def negative(c: Number) -> Number:
    return c if c < 0 else 0 * c


# -- linear
# z_j = sum_i W_ji x_i + b_j


def linear(x: Vector, w: Matrix, b: Vector | None) -> list[Number]:
    return [sum(w[j][i] * x[i] for i in range(len(x))) + (b[j] if b else 0) for j in range(len(w))]


def linear_epsilon(
    x: Vector,
    w: Matrix,
    b: Vector | None,
    r: Vector,
    eps: Number,
    kind: str,
    z: Vector | None = None,
) -> Messages:
    """R_(i<-j) = W_ji x_i R_j / (z_j + eps s(z_j));
    the bias gets b_j, the stabilizer eps s(z_j) (A eq. 8).
    """
    out = no_messages(1)
    for j, z_j in enumerate(z or linear(x, w, b)):
        s = out.stabilized_ratio(z_j, r[j], eps, kind)
        for i in range(len(x)):
            out.send(0, i, w[j][i] * x[i] * s)
        if b:
            out.absorb("bias", b[j] * s)
    return out


def linear_gamma(
    x: Vector,
    w: Matrix,
    b: Vector | None,
    r: Vector,
    gamma: Number,
    eps: Number,
    z: Vector | None = None,
) -> Messages:
    """R_(i<-j) = (c_ij + g c_ij^+) R_j / sum of the same where z_j > 0, with ^- elsewhere; the bias
    like any other (A eq. 24).
    """
    out = no_messages(1)
    for j, z_j in enumerate(z or linear(x, w, b)):
        part = positive if z_j > 0 else negative
        c = [w[j][i] * x[i] for i in range(len(x))]
        bias = [b[j]] if b else []
        d = z_j + gamma * sum(part(each) for each in c + bias)
        s = out.stabilized_ratio(d, r[j], eps, "sign" if eps else "none")
        for i in range(len(x)):
            out.send(0, i, (c[i] + gamma * part(c[i])) * s)
        if b:
            out.absorb("bias", (b[j] + gamma * part(b[j])) * s)
    return out


def linear_alpha_beta(
    x: Vector, w: Matrix, b: Vector | None, r: Vector, alpha: Number, beta: Number, eps: Number
) -> Messages:
    """R_(i<-j) = (alpha c_ij^+ / sum c^+  -  beta c_ij^- / sum c^-) R_j  (B eq. 60);
    alpha 1, beta 0 is z+ (A eq. 25).

    A sum that is empty has no receiver for its part, alpha R_j or -beta R_j: that part is absorbed.
    """
    out = no_messages(1)
    for j in range(len(w)):
        c = [w[j][i] * x[i] for i in range(len(x))]
        bias = [b[j]] if b else []
        for part, amount in ((positive, alpha * r[j]), (negative, -beta * r[j])):
            s = out.stabilized_ratio(
                sum(part(each) for each in c + bias), amount, eps, "sign" if eps else "none"
            )
            for i in range(len(x)):
                out.send(0, i, part(c[i]) * s)
            if b:
                out.absorb("bias", part(b[j]) * s)
    return out


def linear_flat(x: Vector, w: Matrix, r: Vector) -> Messages:
    """R_(i<-j) = R_j / I  (Lapuschkin et al. 2019)."""
    out = no_messages(1)
    for j in range(len(w)):
        for i in range(len(x)):
            out.send(0, i, r[j] / len(x))
    return out


def linear_w_square(x: Vector, w: Matrix, r: Vector) -> Messages:
    """R_(i<-j) = W_ji^2 R_j / sum_i W_ji^2  (M eq. 11); a row of zeros has no receiver."""
    out = no_messages(1)
    for j in range(len(w)):
        s = out.stabilized_ratio(
            sum(w[j][i] ** 2 for i in range(len(x))), r[j], Fraction(0), "none"
        )
        for i in range(len(x)):
            out.send(0, i, w[j][i] ** 2 * s)
    return out


def linear_gradient(x: Vector, w: Matrix, b: Vector | None, g: Vector) -> Messages:
    """g_(i<-j) = W_ji g_j; the bias keeps b_j g_j."""
    out = no_messages(1)
    for j in range(len(w)):
        for i in range(len(x)):
            out.send(0, i, w[j][i] * g[j])
        if b:
            out.absorb("bias", b[j] * g[j])
    return out


# -- add
# z = a + b


def add_epsilon(
    a: Vector, b: Vector, r: Vector, eps: Number, kind: str, z: Vector | None = None
) -> Messages:
    """R_a = a R / (z + eps s(z)), R_b alike  (A eq. 8 on a sum)."""
    out = no_messages(2)
    for k, z_k in enumerate(z or [a_k + b_k for a_k, b_k in zip(a, b, strict=True)]):
        s = out.stabilized_ratio(z_k, r[k], eps, kind)
        out.send(0, k, a[k] * s)
        out.send(1, k, b[k] * s)
    return out


def add_gradient(a: Vector, b: Vector, g: Vector) -> Messages:
    out = no_messages(2)
    for k in range(len(a)):
        out.send(0, k, g[k])
        out.send(1, k, g[k])
    return out


# -- product of N operands
# z = a_1 a_2 ... a_N


def multiply_uniform(operands: Sequence[Vector], constant: Sequence[bool], r: Vector) -> Messages:
    """R/n to each of the n operands that are not constant  (A prop. 3.2)."""
    out, n = no_messages(len(operands)), list(constant).count(False)
    for k in range(len(r)):
        for m in range(len(operands)):
            if not constant[m]:
                out.send(m, k, r[k] / n)
    return out


def multiply_flattened(
    operands: Sequence[Vector], constant: Sequence[bool], r: Vector, factors: Sequence[int]
) -> Messages:
    """Operand m stands for n_m factors of one product, each of which gets R over their number."""
    out, n = no_messages(len(operands)), _factors(factors, constant)
    for k in range(len(r)):
        for m in range(len(operands)):
            for _ in range(0 if constant[m] else factors[m]):
                out.send(m, k, r[k] / n)
    return out


def multiply_flattened_gxi(
    operands: Sequence[Vector], constant: Sequence[bool], g: Vector, factors: Sequence[int]
) -> Messages:
    """The same over operand m: the product of the others times g n_m / n."""
    out, n = no_messages(len(operands)), _factors(factors, constant)
    for k in range(len(g)):
        for m in range(len(operands)):
            if not constant[m]:
                others = prod(a[k] for i, a in enumerate(operands) if i != m)
                out.send(m, k, others * g[k] * factors[m] / n)
    return out


def _factors(factors: Sequence[int], constant: Sequence[bool]) -> int:
    return sum(count for count, fixed in zip(factors, constant, strict=True) if not fixed)


def multiply_second(a: Vector, b: Vector, r: Vector) -> Messages:
    """All to the second: the first is a gate, taken as constant  (C)."""
    out = no_messages(2)
    for k in range(len(r)):
        out.send(1, k, r[k])
    return out


def multiply_uniform_gxi(
    operands: Sequence[Vector], constant: Sequence[bool], g: Vector
) -> Messages:
    """g_m = g/n times the product of the others: x g is then R/n."""
    out, n = no_messages(len(operands)), list(constant).count(False)
    for k in range(len(g)):
        for m in range(len(operands)):
            if not constant[m]:
                out.send(m, k, prod(a[k] for i, a in enumerate(operands) if i != m) * g[k] / n)
    return out


def multiply_second_gxi(a: Vector, b: Vector, g: Vector) -> Messages:
    out = no_messages(2)
    for k in range(len(g)):
        out.send(1, k, a[k] * g[k])
    return out


def multiply_gradient(operands: Sequence[Vector], constant: Sequence[bool], g: Vector) -> Messages:
    """The true derivative hands z g to every operand, n - 1 times too much:
    product_offset = -(n - 1) z g.
    """
    out, n = no_messages(len(operands)), list(constant).count(False)
    for k in range(len(g)):
        for m in range(len(operands)):
            if not constant[m]:
                out.send(m, k, prod(a[k] for i, a in enumerate(operands) if i != m) * g[k])
        out.absorb("product_offset", -(n - 1) * prod(a[k] for a in operands) * g[k])
    return out


# -- matrix product of two activations
# O_jp = sum_i A_ji V_ip


def matmul(a: Matrix, v: Matrix) -> list[list[Number]]:
    return [
        [sum(a[j][i] * v[i][p] for i in range(len(v))) for p in range(len(v[0]))]
        for j in range(len(a))
    ]


def _outputs(a: Matrix, v: Matrix, z: Matrix | None) -> Iterator[tuple[int, int, Number]]:
    o = z or matmul(a, v)
    return ((j, p, o[j][p]) for j, p in product(range(len(a)), range(len(v[0]))))


def matmul_uniform(
    a: Matrix,
    v: Matrix,
    r: Matrix,
    eps: Number,
    kind: str,
    denominator: str = "2z+eps",
    z: Matrix | None = None,
) -> Messages:
    """R_(A_ji<-jp) = R_(V_ip<-jp) = A_ji V_ip R_jp / (2 O_jp + eps s)
    (A prop. 3.3, eq. 15); or over 2 (O_jp + eps s).
    """
    out = no_messages(2)
    for j, p, o in _outputs(a, v, z):
        s = (
            out.stabilized_ratio(2 * o, r[j][p], eps, kind)
            if denominator == "2z+eps"
            else out.stabilized_ratio(o, r[j][p], eps, kind, factor=2)
        )
        for i in range(len(v)):
            out.send(0, (j, i), a[j][i] * v[i][p] * s)
            out.send(1, (i, p), a[j][i] * v[i][p] * s)
    return out


def matmul_flattened(
    a: Matrix,
    v: Matrix,
    r: Matrix,
    factors: Sequence[int],
    eps: Number,
    kind: str,
    z: Matrix | None = None,
) -> Messages:
    """A_ji and V_ip stand for n_a and n_v factors of one product: each of these factors gets
    A_ji V_ip R_jp / (n O_jp + eps s), n = n_a + n_v (A prop. 3.3 with n in the place of 2).
    """
    out, (n_a, n_v) = no_messages(2), factors
    for j, p, o in _outputs(a, v, z):
        s = out.stabilized_ratio((n_a + n_v) * o, r[j][p], eps, kind)
        for i in range(len(v)):
            out.send(0, (j, i), n_a * a[j][i] * v[i][p] * s)
            out.send(1, (i, p), n_v * a[j][i] * v[i][p] * s)
    return out


def matmul_second(
    a: Matrix, v: Matrix, r: Matrix, eps: Number, kind: str, z: Matrix | None = None
) -> Messages:
    """A is taken as constant, so V gets all:
    R_(V_ip<-jp) = A_ji V_ip R_jp / (O_jp + eps s) (C).
    """
    out = no_messages(2)
    for j, p, o in _outputs(a, v, z):
        s = out.stabilized_ratio(o, r[j][p], eps, kind)
        for i in range(len(v)):
            out.send(1, (i, p), a[j][i] * v[i][p] * s)
    return out


def matmul_gradient(a: Matrix, v: Matrix, g: Matrix, to_a: Number, to_v: Number) -> Messages:
    """g_(A_ji<-jp) = to_a V_ip g_jp, g_(V_ip<-jp) = to_v A_ji g_jp. What is handed on beyond O g:
    product_offset.

    1/2, 1/2 is the uniform rule; 0, 1 takes A as constant; 1, 1 is the true derivative.
    """
    out = no_messages(2)
    for j, p in product(range(len(a)), range(len(v[0]))):
        for i in range(len(v)):
            if to_a:
                out.send(0, (j, i), to_a * v[i][p] * g[j][p])
            out.send(1, (i, p), to_v * a[j][i] * g[j][p])
            if to_a + to_v != 1:
                out.absorb("product_offset", -(to_a + to_v - 1) * a[j][i] * v[i][p] * g[j][p])
    return out


# -- softmax of one row
# p_i = exp(x_i) / sum_k exp(x_k)
#
# `visible` says which entries are not masked; the rest passes nothing on. p is given: every rule
# below is rational in x and p.


def softmax(x: Vector, visible: Sequence[bool]) -> list[Number]:
    """60 digits; masked entries 0, also where the whole row is masked."""
    e = [function("exp", to_mpf(x[i])) if visible[i] else MP.mpf(0) for i in range(len(x))]
    return [each / sum(e) if any(visible) else MP.mpf(0) for each in e]


def _expansion(
    x: Vector, p: Vector, visible: Sequence[bool]
) -> Iterator[tuple[int, list[tuple[int, Number]], list[Number]]]:
    """The Taylor expansion at x of each visible p_j, divided by p_j, term by term: j, its inputs'
    terms (i, x_i J_ji / p_j), its offset's.

    p_j = sum_i J_ji x_i + offset_j with J_ji = p_j (delta_ij - p_i), so offset_j = p_j (1 - x_j +
    sum_i p_i x_i); the common factor p_j cancels (A prop. 3.1). The two parts of delta_ij - p_i are
    separate terms: their difference may be small.
    """
    seen = [i for i in range(len(x)) if visible[i]]
    for j in seen:
        yield (
            j,
            [(j, x[j])] + [(i, -x[i] * p[i]) for i in seen],
            [Fraction(1), -x[j]] + [p[i] * x[i] for i in seen],
        )


def _masked(out: Messages, r: Vector, visible: Sequence[bool]) -> Messages:
    for j in range(len(r)):
        if not visible[j]:
            out.absorb("mask", r[j])
    return out


def softmax_taylor(x: Vector, p: Vector, r: Vector, visible: Sequence[bool]) -> Messages:
    """R_(i<-j) = x_i (delta_ij - p_i) R_j, summed x_i (R_i - p_i sum_j R_j); softmax_offset R_j (1
    - x_j + sum_i p_i x_i).
    """
    out = no_messages(1)
    for j, pieces, offset in _expansion(x, p, visible):
        for i, c in pieces:
            out.send(0, i, c * r[j])
        for c in offset:
            out.absorb("softmax_offset", c * r[j])
    return _masked(out, r, visible)


def softmax_spread(x: Vector, p: Vector, r: Vector, visible: Sequence[bool]) -> Messages:
    """The same, with offset_j handed on in equal parts to the visible entries  (V)."""
    out, n = no_messages(1), sum(visible)
    for j, pieces, offset in _expansion(x, p, visible):
        for i, c in pieces:
            out.send(0, i, c * r[j])
        for i, c in product(range(len(x)), offset):
            if visible[i]:
                out.send(0, i, c * r[j] / n)
    return _masked(out, r, visible)


def softmax_z_plus(x: Vector, p: Vector, r: Vector, visible: Sequence[bool]) -> Messages:
    """R_(i<-j) = c_ij^+ R_j / sum_k c_kj^+, c_ij = x_i (delta_ij - p_i) the terms of the expansion
    (A eq. 25 on prop. 3.1).
    """
    out, seen = no_messages(1), [i for i in range(len(x)) if visible[i]]
    for j in seen:
        c = {i: x[i] * ((1 if i == j else 0) - p[i]) for i in seen}
        s = out.stabilized_ratio(
            sum(positive(each) for each in c.values()), r[j], Fraction(0), "none"
        )
        for i in seen:
            out.send(0, i, positive(c[i]) * s)
    return _masked(out, r, visible)


def softmax_identity(x: Vector, p: Vector, r: Vector, visible: Sequence[bool]) -> Messages:
    out = no_messages(1)
    for j in range(len(r)):
        if visible[j]:
            out.send(0, j, r[j])
    return _masked(out, r, visible)


def softmax_constant(x: Vector, p: Vector, r: Vector, visible: Sequence[bool]) -> Messages:
    out = no_messages(1)
    for j in range(len(r)):
        out.absorb("constant", r[j])
    return out


def softmax_gradient(x: Vector, p: Vector, g: Vector, visible: Sequence[bool]) -> Messages:
    """g_(i<-j) = p_j (delta_ij - p_i) g_j: the true Jacobian is the rule; R_j = p_j g_j."""
    out = no_messages(1)
    for j, _, offset in _expansion(x, p, visible):
        out.send(0, j, p[j] * g[j])
        for i in range(len(x)):
            if visible[i]:
                out.send(0, i, -p[j] * p[i] * g[j])
        for c in offset:
            out.absorb("softmax_offset", c * p[j] * g[j])
    return _masked(out, [p_j * g_j for p_j, g_j in zip(p, g, strict=True)], visible)


# -- norms of one row
# z = w x / rms,  rms^2 = mean(x^2) + e;  z = w (x - mean) / std + b


def to_mpf(x: Number) -> Number:
    """A Fraction as an mpf."""
    if hasattr(x, "function"):
        return x
    return MP.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else MP.mpf(x)


def to_mpfs(x: Iterable[Number]) -> list[Number]:
    return [to_mpf(each) for each in x]


def rms(x: Vector, norm_eps: Number) -> Number:
    return function("sqrt", sum(each * each for each in to_mpfs(x)) / len(x) + to_mpf(norm_eps))


def rms_norm(x: Vector, w: Vector, norm_eps: Number) -> list[Number]:
    return [to_mpf(w[i]) * to_mpf(x[i]) / rms(x, norm_eps) for i in range(len(x))]


def identity(r: Vector) -> Messages:
    """R_x = R  (A prop. 3.4 for norms, eq. 9 for activations)."""
    out = no_messages(1)
    for k in range(len(r)):
        out.send(0, k, r[k])
    return out


def rms_norm_identity_gxi(x: Vector, w: Vector, g: Vector, norm_eps: Number) -> Messages:
    """The scale 1/rms held fixed: g_i = w_i g_i / rms, so that x g = z g."""
    out, scale = no_messages(1), rms(x, norm_eps)
    for i in range(len(x)):
        out.send(0, i, to_mpf(w[i]) * to_mpf(g[i]) / scale)
    return out


def rms_norm_gradient(x: Vector, w: Vector, g: Vector, norm_eps: Number) -> Messages:
    """g_(i<-j) = w_j g_j (delta_ij / rms - x_i x_j / (N rms^3));
    norm_offset: z_j g_j mean(x^2) / rms^2.
    """
    out, scale, n = no_messages(1), rms(x, norm_eps), len(x)
    x, w, g = to_mpfs(x), to_mpfs(w), to_mpfs(g)
    mean_square = sum(each * each for each in x) / n
    for j in range(n):
        for i in range(n):
            if i == j:
                out.send(0, i, w[j] * g[j] / scale)
            out.send(0, i, -w[j] * g[j] * x[i] * x[j] / (n * scale**3))
        out.absorb("norm_offset", w[j] * x[j] / scale * g[j] * mean_square / scale**2)
    return out


def centered(x: Vector, norm_eps: Number) -> tuple[list[Number], Number, Number]:
    """x - mean(x), the (biased) variance, and std = sqrt(variance + norm_eps)."""
    x = to_mpfs(x)
    mean = sum(x) / len(x)
    c = [each - mean for each in x]
    variance = sum(each * each for each in c) / len(x)
    return c, variance, function("sqrt", variance + to_mpf(norm_eps))


def layer_norm(x: Vector, w: Vector, b: Vector | None, norm_eps: Number) -> list[Number]:
    c, _, std = centered(x, norm_eps)
    return [to_mpf(w[i]) * c[i] / std + (to_mpf(b[i]) if b else 0) for i in range(len(x))]


def layer_norm_epsilon(
    x: Vector,
    w: Vector,
    b: Vector | None,
    r: Vector,
    norm_eps: Number,
    eps: Number,
    kind: str,
    z: Vector | None = None,
) -> Messages:
    """With std held fixed z_j = sum_i w_j (delta_ij - 1/N) x_i / std + b_j is linear: the epsilon
    rule on it (A sect. 3.3.3).
    """
    out, n = no_messages(1), len(x)
    _, _, std = centered(x, norm_eps)
    for j, z_j in enumerate(to_mpfs(z) if z else layer_norm(x, w, b, norm_eps)):
        s = out.stabilized_ratio(z_j, to_mpf(r[j]), to_mpf(eps), kind)
        for i in range(n):
            if i == j:
                out.send(0, i, to_mpf(x[i]) * to_mpf(w[j]) * s / std)
            out.send(0, i, -to_mpf(x[i]) * to_mpf(w[j]) * s / (n * std))
        if b:
            out.absorb("norm_bias", to_mpf(b[j]) * s)
    return out


def layer_norm_epsilon_gxi(
    x: Vector, w: Vector, b: Vector | None, g: Vector, norm_eps: Number
) -> Messages:
    """g_(i<-j) = w_j (delta_ij - 1/N) g_j / std."""
    out, n = no_messages(1), len(x)
    _, _, std = centered(x, norm_eps)
    for j in range(n):
        for i in range(n):
            if i == j:
                out.send(0, i, to_mpf(w[j]) * to_mpf(g[j]) / std)
            out.send(0, i, -to_mpf(w[j]) * to_mpf(g[j]) / (n * std))
        if b:
            out.absorb("norm_bias", to_mpf(b[j]) * to_mpf(g[j]))
    return out


def layer_norm_gradient(
    x: Vector, w: Vector, b: Vector | None, g: Vector, norm_eps: Number
) -> Messages:
    """The messages of layer_norm_epsilon_gxi less w_j g_j c_i c_j / (N std^3), c = x - mean;
    norm_offset: w_j g_j c_j / std times var / std^2.
    """
    out, n = layer_norm_epsilon_gxi(x, w, b, g, norm_eps), len(x)
    c, variance, std = centered(x, norm_eps)
    for j in range(n):
        for i in range(n):
            out.send(0, i, -to_mpf(w[j]) * to_mpf(g[j]) * c[i] * c[j] / (n * std**3))
        out.absorb("norm_offset", to_mpf(w[j]) * to_mpf(g[j]) * c[j] / std * variance / std**2)
    return out


# -- activations
# z = f(x)


def _phi(x: Number) -> Number:
    return function("erfc", -x / MP.sqrt(2)) / 2


def _density(x: Number) -> Number:
    return function("exp", -x * x / 2) / MP.sqrt(2 * MP.pi)


def _sigmoid(x: Number) -> Number:
    """Far below 0 in the form whose exponential stays within a float's range: rounding is counted
    in floats.
    """
    if x < -600:
        e = function("exp", x)
        return e / (1 + e)
    return 1 / (1 + function("exp", -x))


def _inner(x: Number) -> Number:
    """2 u, u = sqrt(2/pi) (x + 0.044715 x^3): 0.5 (1 + tanh u) = sigmoid(2 u)."""
    return 2 * MP.sqrt(2 / MP.pi) * (x + MP.mpf("0.044715") * x**3)


def _step(x: Number) -> Number:
    return MP.mpf(1) if x > 0 else MP.mpf(0)


def _slope_of_sigmoid(x: Number) -> Number:
    return _sigmoid(x) * _sigmoid(-x)


FAST = MP.mpf("0.7978845608")
"""What gelu_fast has for sqrt(2 / pi)."""

GATE: dict[str, tuple[Callable[[Number], Number], Callable[[Number], Number]]] = {
    "gelu": (_phi, _density),
    "gelu_tanh": (
        lambda x: _sigmoid(_inner(x)),
        lambda x: (
            _slope_of_sigmoid(_inner(x))
            * 2
            * MP.sqrt(2 / MP.pi)
            * (1 + 3 * MP.mpf("0.044715") * x**2)
        ),
    ),
    "gelu_fast": (
        lambda x: _sigmoid(2 * FAST * (x + MP.mpf("0.044715") * x**3)),
        lambda x: (
            _slope_of_sigmoid(2 * FAST * (x + MP.mpf("0.044715") * x**3))
            * 2
            * FAST
            * (1 + 3 * MP.mpf("0.044715") * x**2)
        ),
    ),
    "silu": (_sigmoid, _slope_of_sigmoid),
    "quick_gelu": (
        lambda x: _sigmoid(MP.mpf("1.702") * x),
        lambda x: MP.mpf("1.702") * _slope_of_sigmoid(MP.mpf("1.702") * x),
    ),
    "relu": (_step, lambda x: MP.mpf(0)),
    "relu2": (lambda x: x * _step(x), _step),
}
"""All but tanh and softplus are x times a gate: kind -> the gate and its derivative
(relu's: 0, also at 0, by convention).
"""


def activation(kind: str, x: Number) -> Number:
    x = to_mpf(x)
    if kind == "softplus":
        return function("log1p", function("exp", x))
    return function("tanh", x) if kind == "tanh" else x * GATE[kind][0](x)


def slope(kind: str, x: Number) -> Number:
    """f'(x)."""
    x = to_mpf(x)
    if kind == "tanh":
        return 1 / function("cosh", x) ** 2
    if kind == "softplus":
        return _sigmoid(x)
    gate, derivative = GATE[kind]
    return gate(x) + x * derivative(x)


def activation_identity_gxi(kind: str, x: Vector, g: Vector, z: Vector | None = None) -> Messages:
    """The identity rule as a factor: g f(x)/x, at 0 its limit f'(0). softplus has none: g f(0) is
    absorbed.
    """
    out = no_messages(1)
    for k in range(len(x)):
        f = to_mpf(z[k]) if z else activation(kind, x[k])
        if kind == "softplus" and x[k] == 0:
            out.absorb("activation_offset", to_mpf(g[k]) * f)
            continue
        out.send(0, k, to_mpf(g[k]) * (slope(kind, Fraction(0)) if x[k] == 0 else f / to_mpf(x[k])))
    return out


def activation_gradient(kind: str, x: Vector, g: Vector) -> Messages:
    """g f'(x); activation_offset: g (f(x) - x f'(x)), as two messages because they cancel."""
    out = no_messages(1)
    for k in range(len(x)):
        out.send(0, k, to_mpf(g[k]) * slope(kind, x[k]))
        out.absorb("activation_offset", to_mpf(g[k]) * activation(kind, x[k]))
        out.absorb("activation_offset", -to_mpf(g[k]) * to_mpf(x[k]) * slope(kind, x[k]))
    return out


# -- rotary embedding, scale, pooling, embedding ---------------------------------------------------


def rotation(cos: Vector, sin: Vector) -> list[list[Number]]:
    """The matrix M of z = M x: z_j = x_j cos_j - x_(j+h) sin_j in the first half, x_j cos_j +
    x_(j-h) sin_j in the second.
    """
    n, half = len(cos), len(cos) // 2
    m = [[0 * cos[0] for _ in range(n)] for _ in range(n)]
    for j in range(n):
        m[j][j] = cos[j]
        if j < half:
            m[j][j + half] = -sin[j]
        else:
            m[j][j - half] = sin[j]
    return m


def rotary_epsilon(
    x: Vector, cos: Vector, sin: Vector, r: Vector, eps: Number, kind: str, z: Vector | None = None
) -> Messages:
    """A linear map without a bias: R_(i<-j) = M_ji x_i R_j / (z_j + eps s)."""
    return linear_epsilon(x, rotation(cos, sin), None, r, eps, kind, z)


def rotary_uniform(
    x: Vector, cos: Vector, sin: Vector, r: Vector, eps: Number, kind: str, z: Vector | None = None
) -> Messages:
    """z_j is a sum of two products, x_j cos_j and one of x_j's partner with sin_j. Each product
    gets its part of R_j by the epsilon rule and hands half to x, half to the angle (prop. 3.2).
    """
    m, out = rotation(cos, sin), no_messages(1)
    for j in range(len(x)):
        terms = {i: m[j][i] * x[i] for i in (j, (j + len(x) // 2) % len(x))}
        s = out.stabilized_ratio(z[j] if z else sum(terms.values()), r[j], eps, kind)
        for i, term in terms.items():
            out.send(0, i, term * s / 2)
            out.absorb("position", term * s / 2)
    return out


def rotary_uniform_gxi(x: Vector, cos: Vector, sin: Vector, g: Vector) -> Messages:
    """g_(i<-j) = M_ji g_j / 2, and as much at the angle: M_ji x_i g_j / 2."""
    m, out = rotation(cos, sin), no_messages(1)
    for j in range(len(x)):
        for i in (j, (j + len(x) // 2) % len(x)):
            out.send(0, i, m[j][i] * g[j] / 2)
            out.absorb("position", m[j][i] * x[i] * g[j] / 2)
    return out


def rotary_gradient(x: Vector, cos: Vector, sin: Vector, g: Vector) -> Messages:
    return linear_gradient(x, rotation(cos, sin), None, g)


def pooling_epsilon(
    x: Vector, counted: Vector, r: Number, eps: Number, kind: str, total: Number | None = None
) -> Messages:
    """One feature over the positions t: R_t = m_t x_t R / (Z + eps s(Z)),
    Z = sum_t m_t x_t (`total`).
    """
    out = no_messages(1)
    z = sum(m * x_t for m, x_t in zip(counted, x, strict=True)) if total is None else total
    s = out.stabilized_ratio(z, r, eps, kind)
    for t in range(len(x)):
        out.send(0, t, counted[t] * x[t] * s)
    return out


def pooling_gradient(x: Vector, counted: Vector, g: Number) -> Messages:
    out = no_messages(1)
    for t in range(len(x)):
        out.send(0, t, counted[t] * g / sum(counted))
    return out


def scale_gradient(x: Vector, factor: Number, g: Vector) -> Messages:
    out = no_messages(1)
    for k in range(len(x)):
        out.send(0, k, factor * g[k])
    return out


def embedding_leaf(r: Vector, role: str) -> Messages:
    """Here the way ends: all of R is recorded under the role of the table."""
    out = no_messages(1)
    for each in r:
        out.absorb(role, each)
    return out


# -- movement
# z_k = x_[index(k)]
#
# Each kind as the table index: entry of z -> (operand, entry of it) that stands there.

Origins = dict[Index, tuple[int, Index]]


def pass_through(origins: Origins, r: dict[Index, Number], operands: int = 1) -> Messages:
    """R_i = sum of R_k over the copies k of i."""
    out = no_messages(operands)
    for k, (operand, i) in origins.items():
        out.send(operand, i, r[k])
    return out


def entries(*shape: int) -> Iterator[Index]:
    return product(*(range(n) for n in shape))


def split_heads(shape: Index, heads: int) -> Origins:
    """z[b, h, t, d] = x[b, t, h D + d]."""
    width = shape[2] // heads
    return {
        (b, h, t, d): (0, (b, t, h * width + d))
        for b, h, t, d in entries(shape[0], heads, shape[1], width)
    }


def merge_heads(shape: Index) -> Origins:
    """z[b, t, h D + d] = x[b, h, t, d]."""
    return {(b, t, h * shape[3] + d): (0, (b, h, t, d)) for b, h, t, d in entries(*shape)}


def repeat_heads(shape: Index, times: int) -> Origins:
    """z[b, k n + c] = x[b, k] for the copies c = 0 .. n - 1: a group's queries are neighbors."""
    return {
        (b, k * times + c, t, d): (0, (b, k, t, d))
        for b, k, t, d in entries(*shape)
        for c in range(times)
    }


def transpose(shape: Index) -> Origins:
    """z[..., n, m] = x[..., m, n]."""
    return {(*i[:-2], i[-1], i[-2]): (0, i) for i in entries(*shape)}


def slice_(shape: Index, start: int, stop: int) -> Origins:
    """z[..., i] = x[..., start + i]."""
    return {(*i[:-1], i[-1] - start): (0, i) for i in entries(*shape) if start <= i[-1] < stop}


def concat(shapes: Sequence[Index], axis: int) -> Origins:
    """Operands one after the other along an axis counted from the end (-1 is the last)."""
    origins: Origins = {}
    before = 0
    for operand, shape in enumerate(shapes):
        at = len(shape) + axis
        for i in entries(*shape):
            origins[(*i[:at], i[at] + before, *i[at + 1 :])] = (operand, i)
        before += shape[at]
    return origins


def rows(shape: Index, index: Sequence[int | Sequence[int]]) -> Origins:
    """z[b, k] = x[b, index_b,k]; a number stands for one row of an example."""
    each = [[t] if isinstance(t, int) else t for t in index]
    of_rows = entries(shape[0], len(each[0]), shape[2])
    return {(b, k, d): (0, (b, each[b][k], d)) for b, k, d in of_rows}


def reshape(shape: Index, new: Index) -> Origins:
    """Both in the order of reading, the last axis fastest."""
    return {k: (0, i) for k, i in zip(entries(*new), entries(*shape), strict=True)}


# -- Shapley values
# (Shapley 1953)


def shapley(value: Callable[[frozenset[int]], Number], players: int) -> list[Number]:
    """The mean, over all orders in which players may come, of what each adds when it comes."""
    totals = [Fraction(0)] * players
    orders = list(_orders(tuple(range(players))))
    for order in orders:
        for k, player in enumerate(order):
            totals[player] += value(frozenset(order[: k + 1])) - value(frozenset(order[:k]))
    return [each / len(orders) for each in totals]


def _orders(players: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if not players:
        yield ()
    for first in players:
        yield from ((first, *rest) for rest in _orders(tuple(p for p in players if p != first)))
