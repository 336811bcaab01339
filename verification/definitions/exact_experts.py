"""Routing to experts from its definitions, as `exact.py` does it for the other operations: message
by message, in rational numbers.

Vectors are lists, a matrix is a list of rows; examples of a batch are the caller's loop. An index
is a list: which row goes to each place, None for a place left empty. This file knows nothing of the
engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from refl.verification.definitions.exact import Matrix, Messages, Number, Vector, no_messages

Index = Sequence[int | None]


# -- the k largest
# z_k = p_chosen[k]


def top_k(p: Vector, k: int) -> list[int]:
    """The largest, then the largest of the rest, and so on; of equal ones the first."""
    left = list(range(len(p)))
    return [left.pop(left.index(max(left, key=lambda e: (p[e], -e)))) for _ in range(k)]


def top_k_pass_through(chosen: Sequence[int], r: Vector) -> Messages:
    """R_(e<-k) = R_k for the e that was chosen k-th."""
    out = no_messages(1)
    for k, e in enumerate(chosen):
        out.send(0, e, r[k])
    return out


# -- gather
# z_n = x_index[n]


def gather(x: Matrix, index: Index) -> list[list[Number]]:
    return [[0 * v for v in x[0]] if m is None else list(x[m]) for m in index]


def gather_pass_through(index: Index, r: Matrix) -> Messages:
    """R_(m<-n) = R_n for the row m that went to place n. At an empty place nothing may arrive: no
    row could get it.
    """
    out = no_messages(1)
    for n, m in enumerate(index):
        for d, message in enumerate(r[n]):
            if m is not None:
                out.send(0, (m, d), message)
    return out


# -- sum over experts
# z_t = sum of y_e[n] with index_e[n] = t


def combine(ys: Sequence[Matrix], index: Sequence[Index], length: int) -> list[list[Number]]:
    return [
        [sum(ys[e][n][d] for e, n in _writers(index, t)) for d in range(len(ys[0][0]))]
        for t in range(length)
    ]


def combine_epsilon(
    ys: Sequence[Matrix],
    index: Sequence[Index],
    r: Matrix,
    eps: Number,
    kind: str,
    z: Matrix | None = None,
) -> Messages:
    """R_(e,n<-t) = y_e[n] R_t / (z_t + eps s(z_t)):
    all experts' terms are the terms of one sum (A eq. 8).
    """
    out = no_messages(len(ys))
    for t, row in enumerate(z or combine(ys, index, len(r))):
        for d, z_td in enumerate(row):
            s = out.stabilized_ratio(z_td, r[t][d], eps, kind)
            for e, n in _writers(index, t):
                out.send(e, (n, d), ys[e][n][d] * s)
    return out


def combine_gradient(count: int, index: Sequence[Index], g: Matrix) -> Messages:
    out = no_messages(count)
    for t, row in enumerate(g):
        for d, message in enumerate(row):
            for e, n in _writers(index, t):
                out.send(e, (n, d), message)
    return out


def _writers(index: Sequence[Index], t: int) -> list[tuple[int, int]]:
    return [
        (e, n) for e, places in enumerate(index) for n, place in enumerate(places) if place == t
    ]


# -- weights made to sum to one
# z_i = x_i / sum_k x_k
#
# The Jacobian is J_ji = delta_ij / S - x_j / S^2, and sum_i J_ji x_i = 0: the whole of z_j is the
# offset of its expansion at x.


def renormalize(x: Vector) -> list[Number]:
    return [each / sum(x) for each in x]


def renormalize_identity_gxi(x: Vector, g: Vector) -> Messages:
    """1/S is a constant: g_i = g_i / S; x g is then R."""
    out = no_messages(1)
    for i in range(len(x)):
        out.send(0, i, g[i] / sum(x))
    return out


def renormalize_epsilon(
    x: Vector, r: Vector, eps: Number, kind: str, z: Vector | None = None
) -> Messages:
    """R_(i<-j) = x_i J_ji R_j / (z_j + eps s(z_j))  (A eq. 8 on the Jacobian)."""
    out, total = no_messages(1), sum(x)
    for j, z_j in enumerate(z or renormalize(x)):
        s = out.stabilized_ratio(z_j, r[j], eps, kind)
        out.send(0, j, x[j] / total * s)
        for i in range(len(x)):
            out.send(0, i, -x[i] * x[j] / total**2 * s)
        out.absorb("renormalization_offset", x[j] / total * s)
    return out


def renormalize_gradient(x: Vector, g: Vector) -> Messages:
    """g_(i<-j) = J_ji g_j."""
    out, total = no_messages(1), sum(x)
    for j in range(len(x)):
        out.send(0, j, g[j] / total)
        for i in range(len(x)):
            out.send(0, i, -x[j] / total**2 * g[j])
        out.absorb("renormalization_offset", x[j] / total * g[j])
    return out
