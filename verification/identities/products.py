"""Identities 5 and 10: how a product is split. The uniform rule gives the Shapley value, which is
also the integral of the gradient along the path from 0; of three matrices the order of the products
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import factorial, prod
from typing import Any

import numpy as np

from refl.io.precision import unit_roundoff
from refl.rules.composites import Chosen
from refl.rules.conservation import RuleOutput
from refl.rules.operations import OPERATIONS
from refl.rules.published import LRP_0
from refl.trace import Record, Trace, Value
from refl.verification.identities.conditioning import (
    FACTOR,
    ledger_rounding,
    rule_rounding,
)
from refl.verification.identities.graph import host_arrays
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.rows import Row, WorstDeviation
from refl.verification.identities.small_traces import input_value, sweep_from

# -- 5 ---------------------------------------------------------------------------------------------


def products(m: ModelUnderTest) -> Iterator[Row]:
    """The model's own products, on the operands of this run."""
    worst, records = WorstDeviation(), [*m.graph.of("multiply", "matmul")]
    for r in records:
        rule = LRP_0.rule(r.operation, r.output.names)
        (_matrix_product if r.operation == "matmul" else _product)(rule, r, worst)
    identity, means = (
        "uniform rule = Shapley = integrated gradients",
        "a product is split without favor: each operand gets what is fair",
    )
    if not records:
        yield Row(5, identity, means, reason="the net multiplies no two activations")
        return
    matrices = sum(r.operation == "matmul" for r in records)
    found = (
        f"{matrices} matrix products and {len(records) - matrices} products by element of the model"
    )
    yield worst.row(5, identity, means, found)


def _product(rule: Chosen, r: Record, worst: WorstDeviation) -> None:
    product(rule, host_arrays(r), worst, r.output.site, r.attributes["constant"])


def _matrix_product(rule: Chosen, r: Record, worst: WorstDeviation) -> None:
    a, v = host_arrays(r)
    matrix_product(rule, a, v, np.asarray(r.output.array), worst, r.output.site)


def product(
    rule: Chosen,
    operands: Sequence[Any],
    worst: WorstDeviation,
    where: str = "",
    constant: tuple[bool, ...] = (),
) -> None:
    """For f = c a_1 ... a_N: the Shapley value with baseline 0, by all coalitions, and the integral
    from 0 to 1 of a_k df/da_k(t a) dt.
    """
    constant = constant or (False,) * len(operands)
    players = [k for k, fixed in enumerate(constant) if not fixed]
    z = OPERATIONS["multiply"].forward(*operands, constant=constant)
    c = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype)
    output = rule.function(*operands, z, z * c, constant=constant, **rule.options)
    path = integral_of_power(len(players) - 1) * z * c

    def f(present: tuple[int, ...]) -> Any:
        absent = {k for i, k in enumerate(players) if i not in present}
        return c * prod(0 * a if k in absent else a for k, a in enumerate(operands))

    for i, k in enumerate(players):
        a, got = operands[k], relevance_of(output, k, operands[k])
        fair = _summed_to(shapley(f, i, len(players)), a.shape)
        bound = _rounding_of_product(z * c, a)
        worst.compare(got, fair, bound, f"{where} (Shapley)")
        worst.compare(got, _summed_to(path, a.shape), bound, f"{where} (integrated gradients)")


def _rounding_of_product(r: Any, operand: Any) -> float:
    """As many terms are summed as the operand was repeated."""
    terms = max(1, r.size // operand.size)
    return float(FACTOR * unit_roundoff(r) * np.abs(r).max() * terms)


def relevance_of(output: RuleOutput, k: int, operand: Any) -> Any:
    """What operand number k received: zeros where a rule gives it nothing."""
    r = output.inputs[k]
    return np.zeros_like(operand) if r is None else r


def matrix_product(
    rule: Chosen, a: Any, v: Any, z: Any, worst: WorstDeviation, where: str = ""
) -> None:
    """f = sum c_jp A_ji V_ip:  the players are A and V or, along the path, every entry of them:

    R(A_ji) = A_ji integral of sum_p c_jp t V_ip dt
    """
    c = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype) * (z != 0)
    output = rule.function(a, v, z, z * c, **rule.options)
    bound, path = rule_rounding("matmul", rule, (a, v), z, z * c), integral_of_power(1)
    r_a, r_v = relevance_of(output, 0, a), relevance_of(output, 1, v)
    gradients = f"{where} (integrated gradients)"
    worst.compare(r_a, path * a * (c @ v.swapaxes(-1, -2)), bound, gradients)
    worst.compare(r_v, path * v * (a.swapaxes(-1, -2) @ c), bound, gradients)

    def f(present: tuple[int, ...]) -> Any:
        z = (a if 0 in present else 0 * a) @ (v if 1 in present else 0 * v)
        return (c * z).sum(axis=(-1, -2))

    for i, r in enumerate((r_a, r_v)):
        worst.compare(r.sum(axis=(-1, -2)), shapley(f, i, 2), bound, f"{where} (Shapley)")


def shapley(f: Callable[[tuple[int, ...]], Any], i: int, n: int) -> Any:
    """The mean of what i adds to a coalition, over all orders in which n players can come together:
    the sum over all coalitions.
    """
    others = [j for j in range(n) if j != i]
    return sum(
        factorial(k) * factorial(n - k - 1) / factorial(n) * (f((*some, i)) - f(some))
        for k in range(n)
        for some in combinations(others, k)
    )


def integral_of_power(n: int) -> float:
    """Of t^n from 0 to 1, at points and weights that integrate polynomials up to degree 15 exactly
    (Gauss and Legendre).
    """
    t, w = np.polynomial.legendre.leggauss(8)
    return float(sum(q * p**n for p, q in zip((t + 1) / 2, w / 2, strict=True)))


def _summed_to(r: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the axes along which an operand of this shape was repeated."""
    axes = tuple(i for i, (n, m) in enumerate(zip(r.shape, shape, strict=True)) if m < n)
    return r.sum(axis=axes, keepdims=True) if axes else r


# -- 10 --------------------------------------------------------------------------------------------


PARTS = {"(Q K^T) V": (0.25, 0.25, 0.5), "Q (K^T V)": (0.5, 0.25, 0.25)}
"""Order -> the parts of the relevance that go to Q, K and V."""


def triple_products(m: ModelUnderTest) -> Iterator[Row]:
    """The model's own queries, keys and values, multiplied without the softmax."""
    attentions = [*m.graph.attentions()]
    for order, parts in PARTS.items():
        worst = WorstDeviation()
        for a in attentions:
            (q, k), v = host_arrays(a.scores), host_arrays(a.context)[1]
            triple_product(q, k, v, order, worst, a.context.output.site)
        yield worst.row(
            10,
            f"{order} is split {' : '.join(f'{x:g}' for x in parts)}",
            "what each gets depends on the order of the products, as published",
            f"q, k and v of {len(attentions)} attentions",
            nothing="" if attentions else "the net has no attention",
        )


def triple_product(
    q: Any, kt: Any, v: Any, order: str, worst: WorstDeviation, where: str = ""
) -> None:
    """Sums of R over Q, K and V, each over the sum of all, for R = |O|: no cancellation."""
    t = Trace({})
    q, k, v = (input_value(t, name, x) for name, x in (("q", q), ("k", kt), ("v", v)))
    z = _multiplied(t, order, q, k, v)
    total = float(np.abs(z.array).sum())
    run = sweep_from(t, z, np.abs(z.array))
    sums = np.asarray([float(run.propagated[name].sum()) / total for name in "qkv"])
    worst.compare(sums, np.asarray(PARTS[order]), ledger_rounding(run.ledger) / total, where)


def _multiplied(t: Trace, order: str, q: Value, k: Value, v: Value) -> Value:
    if order == "(Q K^T) V":
        return t.matmul("o", t.matmul("qk", q, k), v)
    return t.matmul("o", q, t.matmul("kv", k, v))
