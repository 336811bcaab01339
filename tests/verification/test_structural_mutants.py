"""Structural mistakes, written out by hand, and how the smallest adapter is judged with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refl.verification.conformance import runner
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.structural import (
    FACTOR,
    MIRRORED,
    Change,
    along,
    changes,
    cut,
    in_answer,
    in_input,
    transposed,
)
from refl.verification.quality import structural_mutants, wide_shapes
from refl.verification.quality.planted_structures import Mutant, mutants
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.vectors.rule_vectors import load

A = np.array([[1.0, 5.0, 3.0, 4.0], [2.0, 7.0, 6.0, 0.0]])

BY_HAND = {
    "averaged over axis 1": [[3.25] * 4, [3.75] * 4],
    "summed over axis 1": [[13.0] * 4, [15.0] * 4],
    "at its largest over axis 1": [[5.0] * 4, [7.0] * 4],
    "summed up along axis 1": [[1, 6, 9, 13], [2, 9, 15, 15]],
    "reversed along axis 1": [[4, 3, 5, 1], [0, 6, 7, 2]],
    "rolled along axis 1": [[4, 1, 5, 3], [0, 2, 7, 6]],
    "with the first two swapped along axis 1": [[5, 1, 3, 4], [7, 2, 6, 0]],
    "dealt out by twos along axis 1": [[1, 3, 5, 4], [2, 6, 7, 0]],
    "dealt out by threes along axis 1": [[1, 5, 3, 4], [2, 7, 6, 0]],
    "sorted along axis 1": [[1, 3, 4, 5], [0, 2, 6, 7]],
    "the first for all along axis 1": [[1.0] * 4, [2.0] * 4],
    "the last for all along axis 1": [[4.0] * 4, [0.0] * 4],
    "without the first along axis 1": [[0, 5, 3, 4], [0, 7, 6, 0]],
    "without the last along axis 1": [[1, 5, 3, 0], [2, 7, 6, 0]],
    "the first alone along axis 1": [[1, 0, 0, 0], [2, 0, 0, 0]],
    "the last alone along axis 1": [[0, 0, 0, 4], [0, 0, 0, 0]],
}


def test_every_change_along_an_axis_by_hand() -> None:
    assert {c.says: c.apply(A).tolist() for c in along(1)} == BY_HAND


def test_an_axis_that_is_not_there_or_has_one_entry_changes_nothing() -> None:
    for c in (*along(2), *along(-3), *transposed(0, 2), *transposed(-1, 1)):
        assert c.apply(A) is A
    assert all(c.apply(A[:1]) is not None and np.all(c.apply(A[:1]) == A[:1]) for c in along(0))


def test_two_axes_by_hand() -> None:
    square, again = (c.apply(A).tolist() for c in transposed(0, 1))
    assert square == A.tolist()
    assert again == [[1, 3, 2, 6], [5, 4, 7, 0]]
    assert next(transposed(0, 1)).apply(A[:, :2]).tolist() == [[1, 2], [5, 7]]
    assert MIRRORED.apply(A).tolist() == [[0, 6, 7, 2], [4, 3, 5, 1]]


def test_a_long_row_is_cut() -> None:
    ones = np.ones((2, 300))
    assert [int(c.apply(ones).sum()) for c in cut(-1)] == [32, 128, 256, 512, 600]


def linear_flat(**inputs: Any) -> Case:
    held = {name: None if a is None else np.array(a, dtype=float) for name, a in inputs.items()}
    return Case("", "linear_flat", "relevance", "float64", (), "", held, {}, {})


def test_a_change_of_the_answer_and_of_what_comes_in() -> None:
    """R_i = (sum of r) / 2: 3 in each of two places."""
    case = linear_flat(x=[[1, 2]], w=[[1, 1], [1, 1], [1, 1]], b=None, r=[[1, 2, 3]])
    double = FACTOR[0]
    assert in_answer([], double)(case)[0] == pytest.approx(np.full((1, 2), 6.0))
    first = Change("slice-dropped", "", lambda a: a * [1, 0, 0])
    assert in_input("r", first)(case)[0] == pytest.approx(np.full((1, 2), 0.5))


def test_the_smallest_adapter_takes_default_options_and_two_formats() -> None:
    for case in load("softmax_taylor"):
        if structural_mutants.smallest(case):
            assert case.dtype in ("float64", "float32") and case.options["axis"] == -1
            assert case.options["mask"] is None or np.all(case.options["mask"])


@pytest.mark.parametrize("rule", SIGNATURES)
def test_numbers_of_every_shape_have_an_answer(rule: str) -> None:
    """Shaped like the operand, in several ranks where the rule takes them, and never alike."""
    cases = wide_shapes.drawn(rule, 3)
    assert len(cases) > 10 and {case.note for case in cases} == set(wide_shapes.MANNERS)
    for case in cases:
        answer = structural_mutants.answered(Mutant("", "", in_answer([], FACTOR[0])), case)
        held = dict(zip(case.returns, answer, strict=True))
        for name, got in held.items():
            operand, _, k = name.partition(".")
            a = case.inputs[operand][int(k)] if k else case.inputs[operand]
            assert got is None or got.shape == a.shape


def test_a_survivor_is_seen_and_what_makes_no_difference_is_not_one() -> None:
    """linear_flat reads of x its shape alone: another x is no mistake, another r is."""
    probes = structural_mutants.probed(wide_shapes.drawn("linear_flat", 0), 0)
    reverse = next(c for c in changes([1]) if c.says == "reversed along axis 1")
    roll = Mutant("", "", in_input("x", reverse))
    assert not any(structural_mutants.differs(roll, p) for p in probes)
    slight = Mutant("", "", in_answer([], next(c for c in changes([]) if "1.001" in c.says)))
    assert all(structural_mutants.differs(slight, p) for p in probes if np.any(p.expected[0] != 0))


def test_mutants_of_a_rule_have_names_of_their_own() -> None:
    said = [m.says for m in mutants(wide_shapes.drawn("matmul_uniform", 0))]
    assert len(said) > 500
    assert len(said) == len(set(said))


def test_with_few_vectors_there_are_survivors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of linear_flat's cases the two smallest alone."""
    few = sorted(load("linear_flat"), key=lambda case: np.size(case.inputs["r"]))[:2]
    monkeypatch.setattr(structural_mutants, "load", lambda rule: tuple(few))
    t = structural_mutants.tally("linear_flat", every=5)
    assert t.survivors and t.planted == t.caught + t.equal + len(t.survivors)
    assert structural_mutants.main(["--rule", "linear_flat"]) == 1
    assert "survivors" in capsys.readouterr().out


# -- four that once passed -------------------------------------------------------------------------


def smallest_adapter(rule: str, function: Any) -> dict[str, Any]:
    """One function, default options alone, float64 and float32."""

    def minimal(*operands: Any, **options: Any) -> Any:
        defaults = {"eps": options.get("eps"), "stabilizer": "sign", "denominator": "2z+eps"}
        defaults |= {"axis": -1, "mask": None, "constant": None}
        if any(value is not defaults[n] and value != defaults[n] for n, value in options.items()):
            raise NotImplementedError("default options alone")
        floats = operands[0][0] if isinstance(operands[0], list) else operands[0]
        if floats.dtype not in (np.float64, np.float32):
            raise NotImplementedError("float64 and float32 alone")
        return function(*operands, **{n: options[n] for n in options if n == "eps"})

    return {rule: minimal}


def signed(z: Any, eps: float) -> Any:
    return z + np.where(z >= 0, eps, -eps)


def matmul_uniform(a: Any, v: Any, r: Any, eps: float) -> tuple[Any, Any]:
    """R_a = a (s v^T), R_v = v (a^T s), s = R / (2 O + eps s(O))."""
    a, v, r = (each.astype(np.float64) for each in (a, v, r))
    s = r / signed(2 * (a @ v), eps)
    return a * (s @ v.swapaxes(-1, -2)), v * (a.swapaxes(-1, -2) @ s)


def over_heads(mix: Any) -> Any:
    def wrong(a: Any, v: Any, r: Any, *, eps: float) -> Any:
        r_a, r_v = matmul_uniform(a, v, r, eps)
        return r_a, mix(r_v) if r_v.ndim == 4 else r_v

    return wrong


def multiply_reversed_above_rank_2(operands: Any, r: Any) -> Any:
    share = [folded(r.astype(np.float64) / len(operands), a.shape) for a in operands]
    return [x[:, ::-1] if r.ndim > 2 and x.ndim > 2 else x for x in share]


def softmax_sums_over_heads(x: Any, r: Any) -> Any:
    """R_i = x_i (R_i - p_i sum_j R_j), the sums averaged over heads."""
    x, r = x.astype(np.float64), r.astype(np.float64)
    hidden = np.isneginf(x) | (x <= np.finfo(np.float32).min / 2)
    top = np.max(np.where(hidden, -np.inf, x), -1, keepdims=True)
    e = np.where(hidden, 0.0, np.exp(np.where(hidden, 0.0, x - np.where(np.isfinite(top), top, 0))))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1.0, total)
    r = np.where(hidden, 0.0, r)
    sums = r.sum(-1, keepdims=True)
    sums = sums.mean(1, keepdims=True) if x.ndim == 4 else sums
    return np.where(hidden, 0.0, x) * (r - p * sums)


def add_without_summing_back(take: Any) -> Any:
    def wrong(a: Any, b: Any, r: Any, *, eps: float) -> Any:
        a, b, r = (each.astype(np.float64) for each in (a, b, r))
        s = r / signed(a + b, eps)
        return [kept(each * s, each.shape, take) for each in (a, b)]

    return wrong


def kept(r: Any, shape: tuple[int, ...], take: Any) -> Any:
    lead = tuple(range(r.ndim - len(shape)))
    r = take(r, lead) if lead else r
    axes = tuple(i for i, n in enumerate(shape) if n < r.shape[i])
    return np.reshape(take(r, axes), shape) if axes else r


def folded(r: Any, shape: tuple[int, ...]) -> Any:
    return kept(r, shape, lambda a, axes: a.sum(axes))


def first(r: Any, axes: tuple[int, ...]) -> Any:
    return r[tuple(0 if i in axes else slice(None) for i in range(r.ndim))]


WRONG: dict[str, tuple[str, Any]] = {
    "summed over heads": (
        "matmul_uniform",
        over_heads(lambda x: np.broadcast_to(x.sum(1, keepdims=True), x.shape)),
    ),
    "rolled over heads": ("matmul_uniform", over_heads(lambda x: np.roll(x, 1, axis=1))),
    "reversed above rank 2": ("multiply_uniform", multiply_reversed_above_rank_2),
    "sums averaged over heads": ("softmax_taylor", softmax_sums_over_heads),
    "the first copy alone": ("add_epsilon", add_without_summing_back(first)),
    "the mean of the copies": (
        "add_epsilon",
        add_without_summing_back(lambda r, axes: r.mean(axes)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_that_once_passed_in_the_smallest_adapter(name: str) -> None:
    """By a required case, in the runner itself."""
    rule, wrong = WRONG[name]
    adapter = Adapter(smallest_adapter(rule, wrong))
    assert any(runner.run_case(adapter, case).failed for case in load(rule) if case.required)


RIGHT: dict[str, Any] = {
    "matmul_uniform": over_heads(lambda x: x),
    "multiply_uniform": lambda operands, r: [
        folded(r.astype(np.float64) / len(operands), a.shape) for a in operands
    ],
    "add_epsilon": add_without_summing_back(lambda r, axes: r.sum(axes)),
}


@pytest.mark.parametrize("rule", RIGHT)
def test_the_same_without_the_mistake_fails_nowhere(rule: str) -> None:
    adapter = Adapter(smallest_adapter(rule, RIGHT[rule]))
    results = [runner.run_case(adapter, case) for case in load(rule)]
    assert not any(result.failed for result in results)
    assert any(result.status == "passed" and result.case.required for result in results)


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SIGNATURES)
def test_no_mutant_survives(rule: str) -> None:
    """Every tenth; .ci/run tries all of them."""
    t = structural_mutants.tally(rule, every=10)
    assert [mutant.says for mutant, _ in t.survivors] == []
    assert t.caught
