"""Wrong rules as people write them, each a few lines of NumPy: none of them passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refl.verification.conformance import report, results, runner
from refl.verification.vectors import rule_vectors
from refl.verification.vectors.case import Case

Array = Any


def quotient(z: Array, r: Array, eps: float) -> Array:
    d = z + np.where(z >= 0, eps, -eps)
    return np.where(d == 0, 0.0, r / np.where(d == 0, 1.0, d))


def summed(operands: list[Array], r: Array, *, eps: float) -> tuple[Array, ...]:
    s = quotient(sum(operands[1:], operands[0]), r, eps)
    return tuple(a * s for a in operands)


def summed_once(operands: list[Array], r: Array, *, eps: float) -> tuple[Array, ...]:
    """An operand that is there twice gets its part in the first place alone."""
    got = summed(operands, r, eps=eps)
    again = [any(np.array_equal(a, b) for b in operands[:k]) for k, a in enumerate(operands)]
    return tuple(
        0 * g if k > 1 and twice else g for k, (g, twice) in enumerate(zip(got, again, strict=True))
    )


def clipped_sum(operands: list[Array], r: Array, *, eps: float) -> tuple[Array, ...]:
    return tuple(np.clip(a, -1e5, 1e5) for a in summed(operands, r, eps=eps))


def box(x: Array, w: Array, b: Array, r: Array, *, low: float, high: float) -> Array:
    c = np.maximum(w, 0) * (x - low)[..., None, :] + np.minimum(w, 0) * (x - high)[..., None, :]
    d = c.sum(-1)
    s = np.where(d == 0, 0.0, r / np.where(d == 0, 1.0, d))
    return (c * s[..., None]).sum(-2)


def box_of_what_is_inside(
    x: Array, w: Array, b: Array, r: Array, *, low: float, high: float
) -> Array:
    return box(np.clip(x, low, high), w, b, r, low=low, high=high)


def norm(x: Array, w: Array, b: Array, r: Array, norm_eps: float, eps: float, var: Array) -> Array:
    std = np.sqrt(var + norm_eps)
    z = w * (x - x.mean(-1, keepdims=True)) / std + (0 if b is None else b)
    c = w * quotient(z, r, eps) / std
    return x * (c - c.mean(-1, keepdims=True))


def layer_norm(x: Array, w: Array, b: Array, r: Array, *, norm_eps: float, eps: float) -> Array:
    return norm(x, w, b, r, norm_eps, eps, x.var(-1, keepdims=True))


def layer_norm_of_squares(
    x: Array, w: Array, b: Array, r: Array, *, norm_eps: float, eps: float
) -> Array:
    var = (x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
    return norm(x, w, b, r, norm_eps, eps, var)


RULES: dict[str, tuple[Callable[..., Any], tuple[Callable[..., Any], ...]]] = {
    "sum_epsilon": (summed, (summed_once, clipped_sum)),
    "linear_z_box": (box, (box_of_what_is_inside,)),
    "layer_norm_epsilon": (layer_norm, (layer_norm_of_squares,)),
}
"""The right function, and wrong ones. None of them takes half precision."""


def found(rule: str, function: Callable[..., Any]) -> results.RuleResult:
    """Of the cases in float64 and float32."""

    def in_full(case: Case) -> results.CaseResult:
        full = case.dtype in ("float64", "float32")
        return runner.run_case(runner.Adapter({rule: function} if full else {}), case)

    return runner.rule_result(rule, [in_full(case) for case in rule_vectors.load(rule)], {})


@pytest.mark.parametrize("rule", RULES)
def test_wrong_functions_fail_and_the_right_one_passes(rule: str) -> None:
    right, wrong = RULES[rule]
    with np.errstate(all="ignore"):
        assert found(rule, right).status == results.PASSED
        for function in wrong:
            assert found(rule, function).status == results.FAILED, function.__name__


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_large_relevance_stands_in_required_cases(rule: str) -> None:
    """So clipped relevance shows, in either format."""
    formats = set()
    for case in rule_vectors.load(rule):
        largest = max(np.abs(a).max(initial=0.0) for a in case.expected.values() if a is not None)
        formats |= {case.dtype} if case.required and largest > 1e5 else set()
    assert formats >= {"float64", "float32"}


@pytest.mark.parametrize("rule", [rule for rule in rule_vectors.rules() if rule != "network"])
def test_some_operands_come_twice_with_other_relevance(rule: str) -> None:
    """So an answer that is kept for its operands, or for their shape, shows."""
    *cases, last = [case for case in rule_vectors.load(rule) if case.required]
    first = next(case for case in cases if same_operands(case, last))
    assert not np.array_equal(first.arguments[-1], last.arguments[-1])


def same_operands(a: Case, b: Case) -> bool:
    def alike(x: Any, y: Any) -> bool:
        if isinstance(x, list) and isinstance(y, list):
            return len(x) == len(y) and all(map(alike, x, y))
        return (x is None) == (y is None) and np.array_equal(x, y)

    return a.dtype == b.dtype and all(map(alike, a.arguments[:-1], b.arguments[:-1]))


def mean_over_outputs(x: Array, w: Array, b: Array, g: Array) -> Array:
    return g @ w / len(w)


def factors_exchanged(
    x: Array, w: Array, b: Array, r: Array, *, alpha: float, beta: float
) -> Array:
    c, bias = x[..., None, :] * w, 0 * w[:, 0] if b is None else b
    parts = (
        (beta, np.maximum(c, 0), np.maximum(bias, 0)),
        (-alpha, np.minimum(c, 0), np.minimum(bias, 0)),
    )
    return sum((m * quotient(m.sum(-1) + n, f * r, 0.0)[..., None]).sum(-2) for f, m, n in parts)


def halves(operands: list[Array], r: Array, *, eps: float) -> tuple[Array, ...]:
    return tuple(r / len(operands) for _ in operands)


def where_active(x: Array, r: Array, *, kind: str) -> Array:
    return np.where(x > 0, r, 0.0) if kind == "relu" else r


def eps_above(x: Array, w: Array, b: Array, r: Array, *, eps: float) -> Array:
    """eps is added to the relevance: 1e-6 of it, which is about what float32 loses."""
    return x * (quotient(x @ w.T + (0 if b is None else b), r + eps, 0.0) @ w)


NAMED: dict[str, tuple[Callable[..., Any], str | None]] = {
    "linear_gradient": (mean_over_outputs, "constant-factor"),
    "linear_alpha_beta": (factors_exchanged, "alpha-index"),
    "sum_epsilon": (halves, "residual-halves"),
    "activation_identity": (where_active, "relu-identity-lost"),
    "linear_epsilon": (eps_above, None),
}
"""What is named as the cause, if anything is."""


@pytest.mark.parametrize("rule", NAMED)
def test_the_cause_is_named_or_nothing_is(rule: str) -> None:
    function, name = NAMED[rule]
    with np.errstate(all="ignore"):
        result = found(rule, function)
    assert (result.cause.id if result.cause else None) == name
    assert report.looks_like(result).startswith("looks like" if name else "in part like")
