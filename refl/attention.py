"""Attention in NumPy, a tile at a time: what the recorded operations compute, without ever holding
all scores.

    s = q k^T (+ bias, soft-capped),   p = exp(s - top) / total,   z = p v

A tile is some queries with some keys, of one head or of a few: few enough that its scores, and all
that is made of them, stay in a core's cache, and enough that a call of NumPy's takes longer than
one thread's handing Python's lock to another. Keys that no query of a tile sees are skipped. Heads
are spread over threads, and each is computed by one, so that sums form in the same order for any
number of threads.
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

import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refl import parallel
from refl.arrays import row_product, row_sum, swap
from refl.buffers import BUFFERS
from refl.mask import Mask
from refl.pieces import relevance_sum
from refl.rules import matmul, softmax
from refl.rules.composites import Chosen
from refl.rules.conservation import stabilized_ratio
from refl.rules.operations import OPERATIONS

Floats = NDArray[Any]

OPERANDS = ("q", "k", "v", "bias")

QUERIES, KEYS = 128, 1024
"""Rows and columns of a tile, at most: where rows are few, so are the keys that a tile has for some
of them and others do not see.
"""

At: TypeAlias = tuple[int, slice, slice]
"""An example, some of its heads, some of its queries."""


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
        each = _even(length, QUERIES)
        starts = (slice(n, min(n + each, length)) for n in range(0, length, each))
        return [(rows, list(self._tiles(rows))) for rows in starts]

    def heads(self) -> list[tuple[int, slice]]:
        """Examples with those of their heads that tiles hold together: a few where texts are short,
        and a quarter of them at most, for there may be many threads.
        """
        examples, heads, length, keys = *self.q.shape[:3], self.k.shape[2]
        pairs = min(length, QUERIES) * min(keys, KEYS)
        each = max(1, min(QUERIES * KEYS // (2 * pairs or 1), heads // 4))
        return [(b, slice(h, h + each)) for b in range(examples) for h in range(0, heads, each)]

    def _tiles(self, rows: slice) -> Iterator[Tile]:
        seen = slice(0, self.k.shape[2]) if self.mask is None else self.mask.visible(rows)
        for start in range(seen.start, seen.stop, KEYS):
            columns = slice(start, min(start + KEYS, seen.stop))
            part = None if self.mask is None else self.mask.part(rows, columns)
            if part is None or part.any():
                yield Tile(columns, None if part is None else _hidden(part, self.q.dtype))

    def scores(
        self, at: At, columns: slice, out: Floats
    ) -> list[tuple[Floats, ...]]:  # (heads, J, I) each
        """What the scores of a tile go through, nothing hidden: the product of q and k, then the
        operands of each step; those of softmax are the last.
        """
        q, k = self.q[at], self.k[*at[:2], columns]
        way: list[tuple[Floats, ...]] = [(np.matmul(q, swap(k), out=out),)]
        for step in self.on_scores:
            if step.operation == "add" and self.bias is not None:
                bias: Floats = self.bias[*at, columns]
                way[-1] = (*way[-1], bias)
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
        s[..., where] += added[example if len(added) > 1 else 0]


def _longest(x: Floats) -> float:
    """The length of the longest row; infinite, or no number, where its square is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.einsum("...i,...i->...", x, x).max(initial=0)))


# -- forward ---------------------------------------------------------------------------------------


def forward(a: Attention) -> tuple[Floats, Kept]:
    """z (B, H, J, d), and what is kept of the rows."""
    z = _beside(a.q, a.v.shape[-1])
    kept = Kept(*(np.empty(a.q.shape[:3], a.q.dtype) for _ in range(2)))
    plan, heads = a.plan(), a.heads()

    def some(number: int) -> None:
        for rows, tiles in plan:
            at = (*heads[number], rows)
            z[at], kept.top[at], kept.total[at] = _attended(a, at, tiles)

    parallel.each(some, len(heads))
    return z, kept


def _attended(
    a: Attention, at: At, tiles: Sequence[Tile]
) -> tuple[Floats, Floats, Floats]:  # -> z (heads, J, d), top and total (heads, J)
    """What was summed before is scaled by what the largest score has grown (Milakov and Gimelshein
    2018, arXiv 1805.02867).
    """
    v = a.v[at[:2]]
    shape = a.q[at].shape[:2]
    z, total = np.zeros((*shape, v.shape[-1]), v.dtype), np.zeros(shape, v.dtype)
    top = np.full(shape, np.finfo(v.dtype).min / 2, v.dtype)  # stays where all is hidden
    for tile in tiles:
        e = a.scores(at, tile.columns, _buffers(a, at, tile)[0])[-1][0]
        _hide(e, tile, at[0])
        before, top = top, np.maximum(top, e.max(axis=-1))
        e -= top[..., None]
        np.exp(e, out=e)
        shrunk = np.exp(before - top)
        total = total * shrunk + row_sum(e)[..., 0]
        z *= shrunk[..., None]
        z += e @ v[:, tile.columns]
    z /= (total + (total == 0))[..., None]
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
    """Amounts of relevance by the heads of tiles, each counted by one thread, and summed in the
    heads' order.
    """

    def __init__(self, a: Attention) -> None:
        self.examples = a.q.shape[0]
        self.heads = {
            (b, heads.start): defaultdict[tuple[str, str], float](float) for b, heads in a.heads()
        }

    def add(self, at: At, site: str, what: str, amount: float) -> None:
        self.heads[at[0], at[1].start][site, what] += amount

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
    plan, heads = a.plan(), a.heads()

    def some(number: int) -> None:
        b, several = heads[number]
        for rows, tiles in plan:
            alive = _alive(r[b, several], rows)
            if alive.stop > alive.start:
                work.tiles((b, several, alive), [_of_rows(tile, rows, alive) for tile in tiles])

    parallel.each(some, len(heads))
    if not work.counted():  # nothing comes, or all is hidden
        first = slice(0, 1)  # the ledger has its zeros all the same
        work.tiles((0, first, first), [_hiding_all(r.dtype)])
    return work.passed(), work.sums()


def _hiding_all(dtype: Any) -> Tile:
    first = slice(0, 1)
    return Tile(first, (first, np.full((1, 1, 1), -np.inf, dtype)))


def _alive(r: Floats, rows: slice) -> slice:  # (heads, J, d)
    """Those of the rows to which anything comes: behind the last block it is a single one."""
    r = r[:, rows]
    if r[:, 0].any() and r[:, -1].any():
        return rows
    found = np.flatnonzero(r.any(axis=(0, 2)))
    if not found.size:
        return slice(rows.start, rows.start)
    return slice(rows.start + int(found[0]), rows.start + int(found[-1]) + 1)


def _of_rows(tile: Tile, rows: slice, some: slice) -> Tile:
    """A tile of some of its rows."""
    if tile.hidden is None:
        return tile
    where, added = tile.hidden
    return Tile(tile.columns, (where, added[:, some.start - rows.start : some.stop - rows.start]))


class _Rows(NamedTuple):
    """What the tiles of some rows have in common: (heads, J, ...)."""

    at: At
    h: Floats
    """What the operands of the last product are multiplied by, over the row's total."""
    along: Floats
    """sum_j r_j over the row's total."""


class _Sweep:
    """What the tiles of one sweep have in common."""

    def __init__(self, a: Attention, kept: Kept, z: Floats, r: Floats, rules: Rules) -> None:
        self.a, self.kept, self.z, self.r, self.rules = a, kept, z, r, rules
        self.passed_by, self.absorbed_by = _Counted(a), _Counted(a)
        self.divides = rules["context"].function in _DIVIDING
        self.passes = "scores" in rules
        self.last = a.on_scores[-1].site if a.on_scores else "scores"
        self.v = _zeros_beside(a.v)
        self.q, self.k = (_zeros_beside(x) if self.passes else None for x in (a.q, a.k))
        self.bias = np.zeros_like(a.bias) if self.passes and a.bias is not None else None

    def counted(self) -> bool:
        """Whether the ledger has anything, if only zeros."""
        return any(any(amounts.heads.values()) for amounts in (self.passed_by, self.absorbed_by))

    def tiles(self, at: At, tiles: Sequence[Tile]) -> None:
        rows = self._rows(at)
        for tile in tiles:
            self._tile(rows, tile)

    def _rows(self, at: At) -> _Rows:
        to_p, to_v = _SHARES[self.rules["context"].function]  # to_p is to_v, or nothing
        z, total = self.z[at], self.kept.total[at]
        h = to_v * self._divided(at, to_p > 0)
        along = row_product(h, z)[..., 0]
        self._count_rows(at, _sum(along), to_p > 0)
        weight = 1 / (total + (total == 0))
        return _Rows(at, h * weight[..., None], along * weight)

    def _count_rows(self, at: At, amount: float, to_p: bool) -> None:
        if self.rules["context"].function is matmul.gradient:
            self.absorbed_by.add(at, "context", "product_offset", -amount)
        if to_p:
            self.passed_by.add(at, "context", "probabilities", amount)
            offset = "softmax_offset" if self.passes else "constant"
            self.absorbed_by.add(at, "probabilities", offset, amount)  # the 1 of every row, or all

    def _divided(self, at: At, twice: bool) -> Floats:
        """g, or in relevance form R / (2 z + eps s(z)); not twice z where the values get all."""
        z, r, rule = self.z[at], self.r[at], self.rules["context"]
        if not self.divides:
            return r
        eps = _eps(rule) if twice else rule.options.get("eps", 1e-6)
        stabilizer = rule.options.get("stabilizer", "sign")
        h, (absorbed,) = stabilized_ratio((1 + twice) * z[None], r[None], eps, stabilizer)
        self.absorbed_by.add(at, "context", "stabilizer", float(absorbed))
        return _first(h)

    def _tile(self, rows: _Rows, tile: Tile) -> None:
        a, at = self.a, rows.at
        keys = (*at[:2], tile.columns)
        first, second, third = _buffers(a, at, tile)
        way = a.scores(at, tile.columns, first)
        s = way[-1][0]
        e = np.subtract(s, self.kept.top[at][..., None], out=second)
        _hide(e, tile, at[0])
        np.exp(e, out=e)
        self.v[keys] += swap(e) @ rows.h
        if self.q is None or self.k is None:
            return
        r = np.matmul(rows.h, swap(a.v[keys]), out=third)
        self._through_softmax(rows, s, e, r)
        r = self._through_steps(at, tile.columns, way, r)
        to_each = self._to_product(at, way[0][0], e, r)
        self.q[at] += to_each * (r @ a.k[keys])
        self.k[keys] += to_each * (swap(r) @ a.q[at])

    def _through_softmax(self, rows: _Rows, s: Floats, e: Floats, r: Floats) -> None:
        """r: h v^T -> p g_p - p sum_j p_j g_j, in place; e is used up. In relevance form times s.

        The offset is sum_j r_j (1 - s_j + sum_i p_i s_i), of which the 1 is counted with the rows.
        """
        r *= e  # p g_p
        of_p = _sum(rows.along * row_product(e, s)[..., 0])
        offset = of_p - _sum(row_product(r, s))
        self.absorbed_by.add(rows.at, "probabilities", "softmax_offset", offset)
        e *= rows.along[..., None]
        r -= e
        self.passed_by.add(rows.at, "probabilities", self.last, _sum(row_product(r, s)))
        if self.divides:
            r *= s

    def _through_steps(
        self, at: At, columns: slice, way: Sequence[tuple[Floats, ...]], r: Floats
    ) -> Floats:
        """Back to the product of q and k, by the rules of bias and soft cap themselves."""
        for n, step in reversed(list(enumerate(self.a.on_scores))):
            operands, (z, *_) = [x[None] for x in way[n]], way[n + 1]
            rule = self.rules[step.site]
            found = rule.function(*operands, z[None], r[None], **step.attributes, **rule.options)
            for cause, amount in found.absorbed.items():
                self.absorbed_by.add(at, step.site, cause, float(amount[0]))
            received: list[Floats] = [x[0] for x in found.inputs if x is not None]
            for name, x, to_x in zip(step.operands, way[n], received, strict=True):
                self.passed_by.add(at, step.site, name, self._amount(x, to_x))
            r = received[0]
            if len(received) > 1 and self.bias is not None:
                self.bias[*at, columns] += received[1]
        return r

    def _amount(self, x: Floats, r: Floats) -> float:
        return _sum(r.sum(axis=-1) if self.divides else row_product(r, x))

    def _to_product(self, at: At, s: Floats, spare: Floats, r: Floats) -> float:
        """r -> what is to be multiplied by the operands of s = q k^T, in place, but for the share
        that each gets of it, which is handed back.
        """
        rule = self.rules["scores"]
        if self.divides:
            e = np.copysign(_eps(rule), s, out=spare)
            r /= 2 * s + e
            self.absorbed_by.add(at, "scores", "stabilizer", _sum(row_product(r, e)))
            return 1.0
        if rule.function is matmul.gradient:
            self.absorbed_by.add(at, "scores", "product_offset", -_sum(row_product(r, s)))
        return _SHARES[rule.function][0]

    def passed(self) -> Handed:
        """What was summed by the tiles: in relevance form times the operands."""
        for x, r in ((self.a.q, self.q), (self.a.k, self.k), (self.a.v, self.v)):
            if self.divides and r is not None:
                r *= x
        return Handed(self.q, self.k, self.v, self.bias)

    def sums(self) -> Sums:
        passed, absorbed = Sums({}, {})
        if self.passes and self.a.mask is not None:
            absorbed["probabilities", "mask"] = np.zeros(len(self.v))  # p is 0 there
        for key, x, r in (
            (("context", "v"), self.a.v, self.v),
            (("scores", "q"), self.a.q, self.q),
            (("scores", "key.transposed"), self.a.k, self.k),
        ):
            if r is not None:
                passed[key] = relevance_sum(_merged(x), _merged(r), not self.divides)
        if self.passes:
            passed["key.transposed", "k"] = passed["scores", "key.transposed"]
        self.passed_by.into(passed)
        self.absorbed_by.into(absorbed)
        return Sums(passed, absorbed)


def _eps(rule: Chosen) -> float:
    """Of the uniform rule, beside 2 z."""
    eps = float(rule.options.get("eps", 1e-6))
    return eps if rule.options.get("denominator", "2z+eps") == "2z+eps" else 2 * eps


# -- arrays ----------------------------------------------------------------------------------------

_LOCAL = threading.local()


def _buffers(a: Attention, at: At, tile: Tile) -> list[Floats]:
    """Three for a tile, of each thread its own."""
    held: dict[Any, list[Floats]] = _LOCAL.__dict__.setdefault("buffers", {})
    dtype, shape = a.q.dtype, (*a.q[at].shape[:2], tile.columns.stop - tile.columns.start)
    size = math.prod(shape)
    if dtype not in held or held[dtype][0].size < size:
        held[dtype] = [np.empty(max(size, QUERIES * KEYS), dtype) for _ in range(3)]
    return [buffer[:size].reshape(shape) for buffer in held[dtype]]


def _sum(rows: Floats) -> float:
    return float(rows.sum(dtype=np.float64))


def _even(length: int, most: int) -> int:
    """The length of as few parts as there may be, all of about one length."""
    return -(-length // -(-length // most)) if length else 1


def _first(x: Floats) -> Floats:
    found: Floats = x[0]
    return found


def _beside(x: Floats, width: int) -> Floats:  # (B, H, T, d) -> empty (B, H, T, width)
    """With heads side by side in memory, as `merge_heads` puts them: it is a view then."""
    b, h, t, _ = x.shape
    return BUFFERS.empty((b, t, h, width), x.dtype).transpose(0, 2, 1, 3)


def _merged(x: Floats) -> Floats:  # (B, H, T, d) -> (B, T, H d)
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)


def _zeros_beside(x: Floats) -> Floats:
    z = _beside(x, x.shape[-1])
    z[...] = 0
    return z
