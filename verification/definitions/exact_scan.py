"""State space models from their definitions, as `exact.py` does it for the other operations:
message by message.

A selective scan is a recurrence, and is computed as one here. Its messages are those of the sum
that the recurrence is short for, term by term:

    y_ti = sum over t' <= t and n of  C_tn exp(d_ti A_in) ... exp(d_(t'+1),i A_in) d_t'i B_t'n x_t'i

Texts are lists of rows, a matrix is a list of rows; examples of a batch are the caller's loop. This
file knows nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from refl.verification.definitions.exact import (
    Matrix,
    Messages,
    Number,
    Vector,
    function,
    no_messages,
    to_mpf,
)

# -- causal convolution, each channel by itself
# z_tc = sum_k w_ck x_(t-K+1+k),c + b_c


def _sources(t: int, w: Matrix) -> Iterator[tuple[int, int]]:
    """The places that place t reads, and by which weight."""
    last = len(w[0]) - 1
    return ((t - last + k, k) for k in range(last + 1) if t - last + k >= 0)


def causal_convolution(x: Matrix, w: Matrix, b: Vector | None) -> list[list[Number]]:
    return [
        [
            sum(w[c][k] * x[at][c] for at, k in _sources(t, w)) + (b[c] if b else 0)
            for c in range(len(w))
        ]
        for t in range(len(x))
    ]


def causal_convolution_epsilon(
    x: Matrix,
    w: Matrix,
    b: Vector | None,
    r: Matrix,
    eps: Number,
    kind: str,
    z: Matrix | None = None,
) -> Messages:
    """R_(at,c<-t,c) = w_ck x_at,c R_tc / (z_tc + eps s(z_tc)), the bias as linear's (A eq. 8)."""
    out = no_messages(1)
    for t, row in enumerate(z or causal_convolution(x, w, b)):
        for c, z_tc in enumerate(row):
            s = out.stabilized_ratio(z_tc, r[t][c], eps, kind)
            for at, k in _sources(t, w):
                out.send(0, (at, c), w[c][k] * x[at][c] * s)
            if b:
                out.absorb("bias", b[c] * s)
    return out


def causal_convolution_gradient(w: Matrix, b: Vector | None, g: Matrix) -> Messages:
    """g_(at,c<-t,c) = w_ck g_tc."""
    out = no_messages(1)
    for t, row in enumerate(g):
        for c, g_tc in enumerate(row):
            for at, k in _sources(t, w):
                out.send(0, (at, c), w[c][k] * g_tc)
            if b:
                out.absorb("bias", b[c] * g_tc)
    return out


# -- selective scan


class Text(NamedTuple):
    """The operands: of each place what is scanned, its step sizes, B and C; and A_log, (I, N)."""

    x: Matrix
    d: Matrix
    b: Matrix
    c: Matrix
    a_log: Matrix


def scan(text: Text) -> list[list[Number]]:
    """h_t = exp(d_t A) h_(t-1) + d_t B_t x_t,  y_t = C_t h_t, from h = 0 on."""
    channels, states = range(len(text.a_log)), range(len(text.a_log[0]))
    a, h, ys = _decay_rates(text), [[to_mpf(0) for _ in states] for _ in channels], []
    for x, d, b, c in zip(text.x, text.d, text.b, text.c, strict=True):
        for i in channels:
            for n in states:
                h[i][n] = function("exp", to_mpf(d[i]) * a[i][n]) * h[i][n] + to_mpf(d[i]) * to_mpf(
                    b[n]
                ) * to_mpf(x[i])
        ys.append([sum(to_mpf(c[n]) * h[i][n] for n in states) for i in channels])
    return ys


def _decay_rates(text: Text) -> list[list[Number]]:
    return [[-function("exp", to_mpf(each)) for each in row] for row in text.a_log]


class Term(NamedTuple):
    """C decay d B x, one term of y_ti: its factors, and A."""

    at: int
    """The place it comes from."""
    n: int
    c: Number
    decay: Number
    d: Number
    b: Number
    x: Number
    a: Number


def _summands(text: Text, rates: Matrix, t: int, i: int) -> Iterator[Term]:
    decays = [to_mpf(1) for _ in rates[i]]
    for at in range(t, -1, -1):
        for n, (decay, a) in enumerate(zip(decays, rates[i], strict=True)):
            numbers = (text.c[t][n], text.d[at][i], text.b[at][n], text.x[at][i])
            c, d, b, x = map(to_mpf, numbers)
            yield Term(at, n, c, decay, d, b, x, a)
            decays[n] = decay * function("exp", d * a)


def scan_epsilon(
    text: Text, r: Matrix, eps: Number, kind: str, z: Matrix | None = None
) -> Messages:
    """A, B, C and d are constants: each term of y is a term of a linear map of x, R_(t'i<-ti) =
    term R_ti / (y_ti + eps s(y_ti))  (MambaLRP, Rezaei Jafari et al. 2024; A eq. 8).
    """
    out, rates = no_messages(4), _decay_rates(text)
    for t, row in enumerate(z or scan(text)):
        for i, y in enumerate(row):
            s = out.stabilized_ratio(to_mpf(y), to_mpf(r[t][i]), to_mpf(eps), kind)
            for m in _summands(text, rates, t, i):
                out.send(0, (m.at, i), m.c * m.decay * m.d * m.b * m.x * s)
    return out


def scan_epsilon_gxi(text: Text, g: Matrix) -> Messages:
    out, rates = no_messages(4), _decay_rates(text)
    for t, row in enumerate(g):
        for i, g_ti in enumerate(row):
            for m in _summands(text, rates, t, i):
                out.send(0, (m.at, i), m.c * m.decay * m.d * m.b * to_mpf(g_ti))
    return out


def scan_gradient(text: Text, g: Matrix) -> Messages:
    """The derivative of each term by each of its factors, and by every step that its decay is made
    of. A term is worth itself four times, and once more for A d of each of these steps.
    """
    out, rates = no_messages(4), _decay_rates(text)
    for t, row in enumerate(g):
        for i, g_ti in enumerate(row):
            for m in _summands(text, rates, t, i):
                kept = m.decay * to_mpf(g_ti)
                term = m.c * m.d * m.b * m.x * kept
                out.send(0, (m.at, i), m.c * m.d * m.b * kept)
                out.send(1, (m.at, i), m.c * m.b * m.x * kept)
                out.send(2, (m.at, m.n), m.c * m.d * m.x * kept)
                out.send(3, (t, m.n), m.d * m.b * m.x * kept)
                out.absorb("product_offset", -3 * term)
                for u in range(m.at + 1, t + 1):
                    out.send(1, (u, i), m.a * term)
                    out.absorb("decay_offset", -to_mpf(text.d[u][i]) * m.a * term)
    return out
