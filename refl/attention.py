"""Attention in NumPy, a tile at a time: what the recorded operations compute, without ever holding
all scores.

    s = q k^T (+ bias, soft-capped),   p = exp(s - top) / total,   z = p v

A tile is some queries of one head with some keys: few enough that its scores, and all that is made
of them, stay in a core's cache. Tiles that are hidden whole are skipped; heads are spread over
threads, and each is computed by one, so that sums form in the same order for any number of threads.
What is kept of the forward is top and total of each row: the sweep forms the scores again.

In gradient x input form, with g what comes in at z and h = g / total for a tile's rows,

    g_v = e^T h,  r = e * (h v^T) = p * g_p,  g_s = r - p sum_j r_j,  g_q = g_s k,  g_k = g_s^T q

with e = exp(s - top). The sums of rows are known before: sum_j p_j g_j = g . z. In relevance form
h = R / (2 z + eps s(z)) / total, and R_s = s * g_s of the same letters, which is divided by
2 s + eps s(s) in the place of the half that both operands get (AttnLRP eq. 15, prop. 3.1).

The ledger is that of the recorded operations: what each received, passed on and absorbed, from the
same closed forms. `handled` says for which rules this is written; any other composite is swept by
the operations themselves, run again some queries at a time (refl/trace.py).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refl import parallel
from refl.arrays import row_product, row_sum, total, total_product
from refl.buffers import BUFFERS
from refl.mask import Mask
from refl.rules import matmul, softmax
from refl.rules.composites import Chosen
from refl.rules.conservation import stabilized_ratio
from refl.rules.operations import OPERATIONS

Floats = NDArray[Any]

OPERANDS = ("q", "k", "v", "bias")

QUERIES, KEYS = 256, 256
"""Rows and columns of a tile: three of them nearly fit a second-level cache of 1 MiB, and matrix
products of this size are as fast as larger ones.
"""


class Tile(NamedTuple):
    """Some of the keys that some queries see, and where they do not."""

    columns: slice
    hidden: tuple[slice, Floats] | None
    """Columns within the tile, and for each example what is added to their scores, 0 or -inf:
    (1|B, J, I)."""


class Kept(NamedTuple):
    """Of each row of scores, (B, H, J): its largest, and the sum of exp(score - largest)."""

    top: Floats
    total: Floats


class Step(NamedTuple):
    """One of the operations that attention is made of, as Trace records it."""

    site: str
    """The end of its site."""
    operation: str
    role: str
    operands: tuple[str, ...]
    """The ends of their sites; q, k, v and bias for those of the whole."""
    attributes: Mapping[str, Any] = MappingProxyType({})


def on_scores(biased: bool, cap: float | None) -> list[Step]:
    """Those between the product of q and k, and softmax, as they run."""
    found = []
    if biased:
        found = [Step("scores.biased", "add", "attention.bias", ("scores", "bias"))]
    if cap is not None:
        divided, tanh, capped = (f"scores.{name}" for name in ("divided", "tanh", "capped"))
        before = found[-1].site if found else "scores"
        found += [
            Step(divided, "scale", "", (before,), {"factor": 1 / cap}),
            Step(tanh, "activation", "attention.cap", (divided,), {"kind": "tanh"}),
            Step(capped, "scale", "", (tanh,), {"factor": cap}),
        ]
    return found


def steps(biased: bool, cap: float | None) -> list[Step]:
    """All of them, from the last to the first."""
    between = on_scores(biased, cap)
    last = between[-1].site if between else "scores"
    return [
        Step("context", "matmul", "attention.context", ("probabilities", "v")),
        Step("probabilities", "softmax", "attention.probabilities", (last,)),
        *reversed(between),
        Step("scores", "matmul", "attention.scores", ("q", "key.transposed")),
        Step("key.transposed", "movement", "", ("k",)),
    ]


@dataclass(frozen=True)
class Attention:
    """The operands of one attention: q (B, H, J, d), scaled, k and v (B, H, I, d), what is added to
    the scores (B, H, J, I); what hides keys, and what scores are soft-capped at.
    """

    q: Floats
    k: Floats
    v: Floats
    bias: Floats | None = None
    mask: Mask | None = field(kw_only=True)
    cap: float | None = field(kw_only=True)

    @cached_property
    def on_scores(self) -> list[Step]:
        return on_scores(self.bias is not None, self.cap)

    def finite(self) -> bool:
        """Whether all scores are known to be finite, and none below half the least number there is,
        which the rules of softmax take for a mask: |q k| <= |q| |k|. And so the sums of values,
        which are not divided before all are added.
        """
        reach = _longest(self.q) * _longest(self.k)
        reach += 0.0 if self.bias is None else float(np.abs(self.bias).max(initial=0))
        sums = _longest(self.v) * self.v.shape[2]
        return all(x < np.finfo(self.q.dtype).max / 8 for x in (reach, sums))

    def plan(self) -> list[tuple[slice, list[Tile]]]:
        """For some queries after others the tiles in which they see anything."""
        length = self.q.shape[2]
        starts = (slice(n, min(n + QUERIES, length)) for n in range(0, length, QUERIES))
        return [(rows, list(self._tiles(rows))) for rows in starts]

    def _tiles(self, rows: slice) -> Iterator[Tile]:
        seen = slice(0, self.k.shape[2]) if self.mask is None else self.mask.visible(rows)
        for start in range(seen.start, seen.stop, KEYS):
            columns = slice(start, min(start + KEYS, seen.stop))
            part = None if self.mask is None else self.mask.part(rows, columns)
            if part is None or part.any():
                yield Tile(columns, None if part is None else _hidden(part, self.q.dtype))

    def scores(
        self, at: tuple[int, int], rows: slice, columns: slice, out: Floats
    ) -> list[tuple[Floats, ...]]:  # (J, I) each
        """What the scores of a tile go through, nothing hidden: the product of q and k, then the
        operands of each step; those of softmax are the last.
        """
        q, k = self.q[at][rows], self.k[at][columns]
        way: list[tuple[Floats, ...]] = [(np.matmul(q, k.T, out=_cut(out, len(q), len(k))),)]
        for step in self.on_scores:
            if step.operation == "add" and self.bias is not None:
                way[-1] = (*way[-1], _head_of(self.bias, at)[rows, columns])
            way.append((OPERATIONS[step.operation].forward(*way[-1], **step.attributes),))
        return way


def computable(
    q: Any, k: Any, v: Any, bias: Any = None, *, mask: Mask | None, cap: float | None
) -> Attention | None:
    """The operands, where this file can compute with them: NumPy's arrays of one real dtype, scores
    that are sure to be finite, a bias for each example.
    """
    arrays = [x for x in (q, k, v, bias) if x is not None]
    if not all(isinstance(x, np.ndarray) and x.dtype.char in "fd" for x in arrays):
        return None
    if len({x.dtype for x in arrays}) > 1 or (bias is not None and len(bias) != len(q)):
        return None
    found = Attention(q, k, v, bias, mask=mask, cap=cap)
    return found if found.finite() else None


def _hidden(part: NDArray[np.bool_], dtype: Any) -> tuple[slice, Floats] | None:
    """The columns of a tile in which anything is hidden, as Tile has them."""
    columns = np.flatnonzero(~part.all(axis=(0, 1, 2)))
    if not columns.size:
        return None
    where = slice(int(columns[0]), int(columns[-1]) + 1)
    added = np.zeros(part[:, 0, :, where].shape, dtype)
    added[~part[:, 0, :, where]] = -np.inf
    return where, added


def _hide(s: Floats, tile: Tile, example: int) -> None:
    if tile.hidden is not None:
        where, added = tile.hidden
        s[:, where] += added[example if len(added) > 1 else 0]


def _head_of(x: Floats, at: tuple[int, int]) -> Floats:
    found: Floats = x[at]
    return found


def _longest(x: Floats) -> float:
    """The length of the longest row; infinite, or no number, where its square is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.einsum("...i,...i->...", x, x).max(initial=0)))


# -- forward ---------------------------------------------------------------------------------------


def forward(a: Attention) -> tuple[Floats, Kept]:
    """z (B, H, J, d), and what is kept of the rows."""
    z = _beside(a.q, a.v.shape[-1])
    kept = Kept(*(np.empty(a.q.shape[:3], a.q.dtype) for _ in range(2)))
    plan, heads = a.plan(), _heads(a)

    def head(number: int) -> None:
        at = heads[number]
        for rows, tiles in plan:
            z[at][rows], kept.top[at][rows], kept.total[at][rows] = _attended(a, at, rows, tiles)

    parallel.each(head, len(heads))
    return z, kept


def _attended(
    a: Attention, at: tuple[int, int], rows: slice, tiles: Sequence[Tile]
) -> tuple[Floats, Floats, Floats]:  # -> z (J, d), top (J,), total (J,)
    """The rows of one head: what was summed before is scaled by what the largest score has grown
    (Milakov and Gimelshein 2018, arXiv 1805.02867).
    """
    count, v = rows.stop - rows.start, a.v[at]
    z, total = np.zeros((count, v.shape[-1]), v.dtype), np.zeros(count, v.dtype)
    top = np.full(count, np.finfo(v.dtype).min / 2, v.dtype)  # stays where all is hidden
    for tile in tiles:
        e = a.scores(at, rows, tile.columns, _buffers(v.dtype, rows, tile.columns)[0])[-1][0]
        _hide(e, tile, at[0])
        before, top = top, np.maximum(top, e.max(axis=1))
        e -= top[:, None]
        np.exp(e, out=e)
        shrunk = np.exp(before - top)
        total = total * shrunk + row_sum(e)[:, 0]
        z *= shrunk[:, None]
        z += e @ v[tile.columns]
    z /= (total + (total == 0))[:, None]
    return z, top, total


# -- the sweep -------------------------------------------------------------------------------------

Rules = Mapping[str, Chosen]
"""End of a site -> the rule that a composite has for it; those that are reached."""

_SHARES = {
    matmul.uniform: (1.0, 1.0),
    matmul.second: (0.0, 1.0),
    matmul.uniform_gxi: (0.5, 0.5),
    matmul.second_gxi: (0.0, 1.0),
    matmul.gradient: (1.0, 1.0),
}
"""Rule of a product -> how much of g each operand gets, or of h in relevance form."""

_DIVIDING = (matmul.uniform, matmul.second)
_PASSING = (softmax.gradient, softmax.taylor)
_CONSTANT = (softmax.constant, softmax.constant_gxi)


def passes_on(site: str, rule: Chosen) -> bool:
    """Whether anything comes to the operations before, by this rule at the site that ends so."""
    if site == "context":
        return rule.function not in _SHARES or _SHARES[rule.function][0] > 0
    return rule.function not in _CONSTANT


def handled(site: str, rule: Chosen) -> bool:
    """Whether the sweep is written for this rule at the site that ends so."""
    if site == "probabilities":
        return rule.function in (*_PASSING, *_CONSTANT)
    if site == "scores":  # at a stabilizer without a sign denominators may vanish
        signed = rule.options.get("stabilizer", "sign") == "sign"
        return rule.function in _SHARES and _SHARES[rule.function][0] > 0 and signed
    return site != "context" or rule.function in _SHARES


class Handed(NamedTuple):
    """What the operands receive, each in its shape; None for those that get nothing."""

    q: Floats | None
    k: Floats | None
    v: Floats
    bias: Floats | None


class Sums(NamedTuple):
    """What the ledger has of attention's own operations, (B,) float64 each."""

    passed: dict[tuple[str, str], Floats]
    """(end of a site, end of an operand's site) -> what was passed on to it."""
    absorbed: dict[tuple[str, str], Floats]
    """(end of a site, cause) -> what was absorbed."""


class _Counted:
    """Amounts of relevance by head, each counted by one thread, and summed in the heads' order."""

    def __init__(self, a: Attention) -> None:
        self.examples = a.q.shape[0]
        self.heads = {at: defaultdict[tuple[str, str], float](float) for at in _heads(a)}

    def add(self, at: tuple[int, int], site: str, what: str, amount: Any) -> None:
        self.heads[at][site, what] += float(amount)

    def into(self, whole: dict[tuple[str, str], Floats]) -> None:
        """Added to what is there."""
        for (b, _), amounts in self.heads.items():
            for key, amount in amounts.items():
                if key not in whole:
                    whole[key] = np.zeros(self.examples)
                whole[key][b] += amount


def sweep(a: Attention, kept: Kept, z: Floats, r: Floats, rules: Rules) -> tuple[Handed, Sums]:
    """What the operands receive of r (B, H, J, d), what is propagated to z, with the sums."""
    work = _Sweep(a, kept, z, r, rules)
    heads, plan = _heads(a), a.plan()

    def head(number: int) -> None:
        at = heads[number]
        for rows, tiles in plan:
            alive = _alive(r[at], rows)
            for tile in tiles if alive.stop > alive.start else ():
                work.tile(at, alive, _of_rows(tile, rows, alive))

    parallel.each(head, len(heads))
    if not any(work.passed_by.heads.values()):  # nothing comes, or all is hidden
        work.tile(
            (0, 0), slice(0, 1), _hiding_all(r.dtype)
        )  # the ledger has its zeros all the same
    return work.passed(), work.sums()


def _hiding_all(dtype: Any) -> Tile:
    first = slice(0, 1)
    return Tile(first, (first, np.full((1, 1, 1), -np.inf, dtype)))


def _alive(r: Floats, rows: slice) -> slice:
    """Those of the rows to which anything comes: behind the last block it is a single one."""
    found = np.flatnonzero(r[rows].any(axis=1))
    if not found.size:
        return slice(rows.start, rows.start)
    return slice(rows.start + int(found[0]), rows.start + int(found[-1]) + 1)


def _of_rows(tile: Tile, rows: slice, some: slice) -> Tile:
    """A tile of some of its rows."""
    if tile.hidden is None:
        return tile
    where, added = tile.hidden
    return Tile(tile.columns, (where, added[:, some.start - rows.start : some.stop - rows.start]))


class _Sweep:
    """What the tiles of one sweep have in common."""

    def __init__(self, a: Attention, kept: Kept, z: Floats, r: Floats, rules: Rules) -> None:
        self.a, self.kept, self.rules, self.sum = a, kept, rules, Sums({}, {})
        self.passed_by, self.absorbed_by = _Counted(a), _Counted(a)
        rule = rules["context"]
        self.divides = rule.function in _DIVIDING
        self.to_p, self.to_v = _SHARES[rule.function]
        self.h = self._divided(z, r, rule) if self.divides else r
        self.along = self.to_p * np.einsum("...i,...i->...", self.h, z)  # sum_j r_j of each row
        if rule.function is matmul.gradient:
            self.sum.absorbed["context", "product_offset"] = -total_product(z, r)
        self.passes = "scores" in rules
        self.last = a.on_scores[-1].site if a.on_scores else "scores"
        self.v = _zeros_beside(a.v)
        self.q, self.k = (_zeros_beside(x) if self.passes else None for x in (a.q, a.k))
        self.bias = np.zeros_like(a.bias) if self.passes and a.bias is not None else None

    def _divided(self, z: Floats, r: Floats, rule: Chosen) -> Floats:
        """R / (2 z + eps s(z)), or R / (z + eps s(z)) where all goes to the values."""
        twice, eps = (2, _eps(rule)) if self.to_p else (1, rule.options.get("eps", 1e-6))
        stabilizer = rule.options.get("stabilizer", "sign")
        h: Floats
        h, self.sum.absorbed["context", "stabilizer"] = stabilized_ratio(
            twice * z, r, eps, stabilizer
        )
        return h

    def tile(self, at: tuple[int, int], rows: slice, tile: Tile) -> None:
        a, columns = self.a, tile.columns
        first, second, third = _buffers(a.q.dtype, rows, columns)
        way = a.scores(at, rows, columns, first)
        s = way[-1][0]
        e = np.subtract(s, self.kept.top[at][rows][:, None], out=_cut(second, *s.shape))
        _hide(e, tile, at[0])
        np.exp(e, out=e)
        total = self.kept.total[at][rows]
        weight = 1 / (total + (total == 0))
        h = self.h[at][rows] * weight[:, None]
        self.v[at][columns] += e.T @ (self.to_v * h)
        if self.q is None or self.k is None:
            return
        r = np.matmul(self.to_p * h, a.v[at][columns].T, out=_cut(third, *s.shape))
        self._through_softmax(at, s, e, r, self.along[at][rows], weight)
        r = self._through_steps(at, rows, columns, way, r)
        self._to_product(at, way[0][0], e, r)
        self.q[at][rows] += r @ a.k[at][columns]
        self.k[at][columns] += r.T @ a.q[at][rows]

    def _through_softmax(
        self, at: tuple[int, int], s: Floats, e: Floats, r: Floats, along: Floats, weight: Floats
    ) -> None:
        """r: h v^T -> p g_p - p sum_j p_j g_j, in place; e is used up. In relevance form times s.

        The offset is sum_j r_j (1 - s_j + sum_i p_i s_i), of which the 1 is counted with the rows.
        """
        r *= e  # p g_p
        offset = along * weight @ row_product(e, s)[:, 0] - _sum(row_product(r, s))
        self.absorbed_by.add(at, "probabilities", "softmax_offset", offset)
        e *= (along * weight)[:, None]
        r -= e
        self.passed_by.add(at, "probabilities", self.last, _sum(row_product(r, s)))
        if self.divides:
            r *= s

    def _through_steps(
        self,
        at: tuple[int, int],
        rows: slice,
        columns: slice,
        way: Sequence[tuple[Floats, ...]],
        r: Floats,
    ) -> Floats:
        """Back to the product of q and k, by the rules of bias and soft cap themselves."""
        for n, step in reversed(list(enumerate(self.a.on_scores))):
            operands, (z, *_) = [x[None] for x in way[n]], way[n + 1]
            rule = self.rules[step.site]
            found = rule.function(*operands, z[None], r[None], **step.attributes, **rule.options)
            for cause, amount in found.absorbed.items():
                self.absorbed_by.add(at, step.site, cause, amount[0])
            received: list[Floats] = [x[0] for x in found.inputs if x is not None]
            for name, x, to_x in zip(step.operands, way[n], received, strict=True):
                self.passed_by.add(at, step.site, name, self._amount(x, to_x))
            r = received[0]
            if len(received) > 1 and self.bias is not None:
                _head_of(self.bias, at)[rows, columns] += received[1]
        return r

    def _amount(self, x: Floats, r: Floats) -> float:
        return float(_sum(r.sum(axis=-1) if self.divides else row_product(r, x)))

    def _to_product(self, at: tuple[int, int], s: Floats, spare: Floats, r: Floats) -> None:
        """r -> what is to be multiplied by the operands of s = q k^T, in place."""
        rule = self.rules["scores"]
        if self.divides:
            e = np.copysign(_eps(rule), s, out=spare)
            r /= 2 * s + e
            self.absorbed_by.add(at, "scores", "stabilizer", _sum(row_product(r, e)))
            return
        if rule.function is matmul.gradient:
            offset = -_sum(row_product(r, s))
            self.absorbed_by.add(at, "scores", "product_offset", offset)
            return
        r *= _SHARES[rule.function][0]

    def passed(self) -> Handed:
        """What was summed by the tiles: in relevance form times the operands."""
        for x, r in ((self.a.q, self.q), (self.a.k, self.k), (self.a.v, self.v)):
            if self.divides and r is not None:
                r *= x
        return Handed(self.q, self.k, self.v, self.bias)

    def sums(self) -> Sums:
        rows: Floats = self.along.sum(axis=(1, 2), dtype=np.float64)
        passed, absorbed = self.sum
        if self.to_p:
            passed["context", "probabilities"] = rows
            offset = "softmax_offset" if self.passes else "constant"
            absorbed["probabilities", offset] = rows.copy()  # the 1 of every row, or all of it
        if self.passes and self.a.mask is not None:
            absorbed["probabilities", "mask"] = np.zeros(len(rows))  # p is 0 there
        for key, x, r in (
            (("context", "v"), self.a.v, self.v),
            (("scores", "q"), self.a.q, self.q),
            (("scores", "key.transposed"), self.a.k, self.k),
        ):
            if r is not None:
                passed[key] = total(r) if self.divides else total_product(x, r)
        if self.passes:
            passed["key.transposed", "k"] = passed["scores", "key.transposed"]
        self.passed_by.into(passed)
        self.absorbed_by.into(absorbed)
        return self.sum


def _eps(rule: Chosen) -> float:
    """Of the uniform rule, beside 2 z."""
    eps = float(rule.options.get("eps", 1e-6))
    return eps if rule.options.get("denominator", "2z+eps") == "2z+eps" else 2 * eps


# -- arrays ----------------------------------------------------------------------------------------

_LOCAL = threading.local()


def _buffers(dtype: Any, rows: slice, columns: slice) -> list[Floats]:
    """Three for a tile, of each thread its own."""
    held: dict[Any, list[Floats]] = _LOCAL.__dict__.setdefault("buffers", {})
    size = (rows.stop - rows.start) * (columns.stop - columns.start)
    if dtype not in held or held[dtype][0].size < size:
        held[dtype] = [np.empty(max(size, QUERIES * KEYS), dtype) for _ in range(3)]
    return held[dtype]


def _cut(buffer: Floats, rows: int, columns: int) -> Floats:
    return buffer[: rows * columns].reshape(rows, columns)


def _sum(rows: Floats) -> float:
    return float(rows.sum(dtype=np.float64))


def _heads(a: Attention) -> list[tuple[int, int]]:
    return [(b, h) for b in range(a.q.shape[0]) for h in range(a.q.shape[1])]


def _beside(x: Floats, width: int) -> Floats:  # (B, H, T, d) -> empty (B, H, T, width)
    """With heads side by side in memory, as `merge_heads` puts them: it is a view then."""
    b, h, t, _ = x.shape
    return BUFFERS.empty((b, t, h, width), x.dtype).transpose(0, 2, 1, 3)


def _zeros_beside(x: Floats) -> Floats:
    z = _beside(x, x.shape[-1])
    z[...] = 0
    return z
