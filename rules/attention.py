"""Attention in blocks of queries          C = softmax(q k^T, mask) v

The fast form of three operations (scores, probabilities, context). Each block of queries runs the
same forwards and the same rules as the plain form, on the keys it can see; the T x T matrix is
never held, and in the sweep it is computed again. The plain form, three records, stays the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from refl.arrays import Array, namespace, swap
from refl.rules import softmax
from refl.rules.balance import RuleOutput

ROWS = 128
"""Queries per block: small enough that a block of every head stays in cache, large enough for
efficient matrix products.
"""

Rule = Callable[..., RuleOutput]
Measure = Callable[[Array, Array], Array]


class Account(NamedTuple):
    """The conservation ledger of one of the three operations, summed over the blocks: (B,) each."""

    passed: tuple[Array, ...]
    absorbed: dict[str, Array]
    rounding_scale: Array | None


def forward(
    q: Array, k: Array, v: Array, *, mask: Array | None, causal: bool
) -> Array:  # (B, H, T, d) x 3 -> (B, H, T, d)
    xp = namespace(q, k, v)
    blocks = [
        _probabilities(q, k, mask, rows, seen)[1] @ v[..., :seen, :]
        for rows, seen in _blocks(q, k, causal)
    ]
    return xp.concat(blocks, axis=-2)


def _blocks(q: Array, k: Array, causal: bool) -> Iterator[tuple[slice, int]]:
    """The rows of each block of queries, and how many keys it can see."""
    for start in range(0, q.shape[-2], ROWS):
        stop = min(start + ROWS, q.shape[-2])
        yield slice(start, stop), stop if causal else k.shape[-2]


def _probabilities(
    q: Array, k: Array, mask: Array | None, rows: slice, seen: int
) -> tuple[Array, Array]:
    scores = q[..., rows, :] @ swap(k[..., :seen, :])
    return scores, softmax.forward(scores, mask=None if mask is None else mask[..., rows, :seen])


def sweep(
    q: Array,
    k: Array,
    v: Array,
    z: Array,
    r: Array,
    *,
    mask: Array | None,
    causal: bool,
    rules: tuple[Rule, Rule, Rule],
    measure: Measure,
    size: Measure | None,
) -> tuple[tuple[Array | None, ...], dict[str, Account]]:
    """Relevance of q, k, v and the conservation ledger of `context`, `probabilities`, `scores`.

    rules      the rules of those three sites, their options bound
    measure    (activation, what is propagated) -> relevance per example, (B,)
    size       the same of absolute values, where the sums of |terms| are wanted
    """
    xp = namespace(q, k, v, r)
    on_context, on_softmax, on_scores = rules
    books: dict[str, Account] = {}
    r_q, r_k, r_v = [], xp.zeros_like(k), xp.zeros_like(v)
    for rows, seen in _blocks(q, k, causal):
        scores, p = _probabilities(q, k, mask, rows, seen)
        v_seen, k_seen = v[..., :seen, :], swap(k[..., :seen, :])
        passed = on_context(p, v_seen, z[..., rows, :], r[..., rows, :])
        _book(
            books, "context", measure, size, (z[..., rows, :], r[..., rows, :]), (p, v_seen), passed
        )
        r_v[..., :seen, :] += passed.inputs[1]
        r_p = passed.inputs[0]
        if r_p is None:
            continue
        hidden = None if mask is None else mask[..., rows, :seen]
        passed = on_softmax(scores, p, r_p, mask=hidden)
        _book(books, "probabilities", measure, size, (p, r_p), (scores,), passed)
        r_s = passed.inputs[0]
        if r_s is None:
            continue
        passed = on_scores(q[..., rows, :], k_seen, scores, r_s)
        _book(books, "scores", measure, size, (scores, r_s), (q[..., rows, :], k_seen), passed)
        r_q.append(passed.inputs[0])
        r_k[..., :seen, :] += swap(passed.inputs[1])
    reached = len(r_q) > 0
    return (xp.concat(r_q, axis=-2) if reached else None, r_k if reached else None, r_v), books


def _book(
    books: dict[str, Account], site: str, measure: Measure, size: Measure | None,
    arrived: tuple[Array, Array], operands: tuple[Array, ...], passed: RuleOutput,
) -> None:  # fmt: skip
    given = tuple(
        measure(a, p) for a, p in zip(operands, passed.inputs, strict=True) if p is not None
    )
    new = Account(
        given,
        passed.absorbed,
        None if size is None else rounding_scale(passed, lambda: size(*arrived)),
    )
    old = books.get(site)
    books[site] = new if old is None else _sum(old, new)


def rounding_scale(passed: RuleOutput, otherwise: Callable[[], Array]) -> Array:  # -> (B,)
    return passed.rounding_scale() if passed.rounding_scale else otherwise()


def _sum(a: Account, b: Account) -> Account:
    return Account(
        tuple(x + y for x, y in zip(a.passed, b.passed, strict=True)),
        {
            entry: _plus(a.absorbed.get(entry), b.absorbed.get(entry))
            for entry in a.absorbed | b.absorbed
        },
        None
        if a.rounding_scale is None or b.rounding_scale is None
        else a.rounding_scale + b.rounding_scale,
    )


def _plus(a: Array | None, b: Array | None) -> Array:
    return b if a is None else a if b is None else a + b
