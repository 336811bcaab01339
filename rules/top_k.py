"""The chosen entries of a row          z_tk = p_t,chosen[t][k]
(the k largest: a router's choice of experts)

    pass_through    R_p[t, e] = R[t, k] for chosen[t][k] = e, zero for what was not chosen; the same
                    for gradients

Absorbs nothing. Which entries are chosen is a fact of the record: nothing flows through the choice,
only through what was chosen.
"""

from __future__ import annotations

from typing import TypeAlias

from refl.arrays import Array, asnumpy, namespace
from refl.rules import gather
from refl.rules.conservation import Forms, RuleOutput

Choice: TypeAlias = tuple[tuple[tuple[int, ...], ...], ...]
"""[example][row][k]: the numbers of the chosen entries, the largest first."""


def choose(p: Array, k: int) -> Choice:  # (B, T, E) -> B times T times k
    """The k largest of each row; of equal ones the first.
    On the host: what follows is decided by it.
    """
    best = (-asnumpy(p)).argsort(axis=-1, kind="stable")[..., :k]
    return tuple(tuple(tuple(row) for row in example) for example in best.tolist())


def forward(p: Array, *, chosen: Choice) -> Array:  # (B, T, E) -> (B, T, k)
    column = gather.rows(_column(p), _index(chosen, p.shape[-1]))
    return _shaped(column, p.shape[1], len(chosen[0][0]))


def pass_through(
    p: Array, z: Array, r: Array, *, chosen: Choice
) -> RuleOutput:  # r: (B, T, k) -> (B, T, E)
    _, length, width = p.shape
    column = gather.back(_column(r), _index(chosen, width), length * width)
    return RuleOutput((_shaped(column, length, width),), {})


def _index(chosen: Choice, width: int) -> gather.Index:
    return tuple(
        tuple(t * width + e for t, row in enumerate(example) for e in row) for example in chosen
    )


def _column(x: Array) -> Array:  # (B, T, N) -> (B, T N, 1)
    return namespace(x).reshape(x, (x.shape[0], x.shape[1] * x.shape[2], 1))


def _shaped(x: Array, length: int, width: int) -> Array:  # (B, T N, 1) -> (B, T, N)
    return namespace(x).reshape(x, (x.shape[0], length, width))


RULES = {"pass_through": Forms(pass_through, pass_through)}
