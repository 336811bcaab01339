"""Operations a few rows at a time (refl/pieces.py): what one call for all rows gives, which is what
the rules themselves are tested for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from refl import pieces
from refl.rules import linear
from refl.rules.conservation import RuleOutput
from refl.rules.operations import FORMULATIONS, OPERATIONS

B, T, N, M = 2, 7, 6, 5
ROWS = 3
"""So many rows at most to a piece, which makes four: the last is smaller."""


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LARGE", 1)
    monkeypatch.setattr(pieces, "PIECE", ROWS * B * N)


class Case(NamedTuple):
    """Operands and attributes of an operation."""

    operation: str
    operands: tuple[Any, ...]
    attributes: dict[str, Any]

    def placed(self, dtype: str) -> Case:
        """In this dtype."""
        operands = (None if x is None else x.astype(dtype) for x in self.operands)
        attributes = {
            name: value.astype(dtype) if isinstance(value, np.ndarray) else value
            for name, value in self.attributes.items()
        }
        return Case(self.operation, tuple(operands), attributes)

    @property
    def forward(self) -> Any:
        return OPERATIONS[self.operation].forward(*self.operands, **self.attributes)


def array(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


X, Y, W, BIAS = array(B, T, N), array(B, T, N)[:, ::-1], array(N), array(N)[::-1]
HEADS, TURNED = array(B, 1, T, N), {"cos": np.cos(array(T, N)), "sin": np.sin(array(T, N))}
BY_EXAMPLE = {name: np.stack([a, 2 * a])[:, None] for name, a in TURNED.items()}
CASES = {
    **{
        f"activation, {kind}": Case("activation", (X,), {"kind": kind})
        for kind in ("relu", "silu", "gelu", "gelu_tanh", "tanh")
    },
    "add": Case("add", (X, Y), {}),
    "layer_norm": Case("layer_norm", (X, W, BIAS), {"norm_eps": 1e-5}),
    "layer_norm, no bias": Case("layer_norm", (X, W, None), {"norm_eps": 1e-5}),
    "multiply": Case("multiply", (X, Y), {"constant": (False, False)}),
    "multiply, one constant": Case("multiply", (X, Y), {"constant": (True, False)}),
    "multiply, three": Case("multiply", (X, Y, X[::-1]), {"constant": (False,) * 3}),
    "rms_norm": Case("rms_norm", (X, W), {"norm_eps": 1e-5, "offset": 1.0}),
    "rotary": Case("rotary", (HEADS,), TURNED),
    "rotary by example": Case("rotary", (HEADS,), BY_EXAMPLE),
    "scale": Case("scale", (X,), {"factor": 0.3}),
}


def calls() -> Iterator[Any]:
    """Every rule of every case, in both formulations."""
    for name, case in CASES.items():
        for formulation in FORMULATIONS:
            rules = OPERATIONS[case.operation].rules_in(formulation)
            for rule in sorted(rules):
                if rule in ("second", "flattened") and len(case.operands) > 2:
                    continue  # as their defaults are, they are for two
                for dtype in ("float64", "float32"):
                    yield pytest.param(
                        case.placed(dtype),
                        rules[rule],
                        formulation == "gradient_x_input",
                        id=f"{name}-{rule}-{formulation}-{dtype}",
                    )


def test_the_cases_are_all_operations() -> None:
    assert {case.operation for case in CASES.values()} == pieces.ROW_BY_ROW


class Calls:
    """An operation's function, and the rows of every call."""

    def __init__(self, function: Any) -> None:
        self.function, self.rows = function, list[int]()

    def __call__(self, *arrays: Any, **how: Any) -> Any:
        self.rows.append(arrays[0].shape[-2])
        return self.function(*arrays, **how)


def one_call(case: Case, rule: Any, z: Any, r: Any) -> RuleOutput:
    output: RuleOutput = rule(*case.operands, z, r, **case.attributes)
    return output


def near(found: Any, wanted: Any, weighed: Any) -> None:
    """To rounding."""
    assert np.shape(found) == np.shape(wanted)
    u = np.finfo(np.asarray(weighed).dtype).eps
    assert np.abs(found - wanted).max() <= 8 * N * u * np.abs(weighed).sum()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_forward(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, with pieces of two rows, two, two and one."""
    case = CASES[name].placed(dtype)
    z = case.forward
    found = pieces.forward(case.operation, case.operands, case.attributes)
    assert found.dtype == z.dtype and np.array_equal(found, z)
    counting = counted(case.operation, monkeypatch)
    pieces.forward(case.operation, case.operands, case.attributes)
    assert sorted(counting.rows) == [1, 2, 2, 2]


@pytest.mark.parametrize(("case", "rule", "as_gradient"), list(calls()))
def test_every_rule(case: Case, rule: Any, as_gradient: bool) -> None:
    """What operands receive to the last bit, what is absorbed and the sums to rounding."""
    z, counting = case.forward, Calls(rule)
    r = np.cos(3 * z)
    wanted = one_call(case, rule, z, r)
    found, sums = pieces.apply(
        case.operation, counting, case.operands, z, r, case.attributes, as_gradient
    )
    assert sorted(counting.rows) == [1, 2, 2, 2]
    for x, got, want, s in zip(case.operands, found.inputs, wanted.inputs, sums, strict=True):
        assert (got is None) == (want is None) == (s is None)
        if want is not None:
            assert got.dtype == want.dtype and np.array_equal(got, want)
            assert (got is r) == (want is r)
            relevance = x * want if as_gradient else want
            near(s, relevance.sum(axis=tuple(range(1, x.ndim))), relevance)
    assert found.absorbed.keys() == wanted.absorbed.keys()
    for cause, amount in wanted.absorbed.items():
        assert found.absorbed[cause].dtype == np.float64
        near(found.absorbed[cause], amount, weighed(case, z, r))


def weighed(case: Case, z: Any, r: Any) -> Any:
    """Of the size of what a rule may absorb: r, z r and parts of them."""
    return (
        (1 + np.abs(z))
        * np.abs(r)
        * (1 + sum(np.abs(x).max() for x in case.operands[1:] if x is not None))
    )


def test_what_is_handed_through_is_not_copied() -> None:
    add = CASES["add"]
    r = np.cos(X)
    output, _ = pieces.apply("add", OPERATIONS["add"].rules_in("gradient_x_input")["gradient"],
                             add.operands, add.forward, r, {}, True)  # fmt: skip
    assert output.inputs[0] is r and output.inputs[1] is r


def test_arrays_of_other_orders_stay_so() -> None:
    """Heads that lie side by side in memory do so behind a rotation."""
    heads = array(B, T, 3, N).transpose(0, 2, 1, 3)
    case = Case("rotary", (heads,), TURNED)
    z = pieces.forward(*case)
    assert np.array_equal(z, case.forward) and z.strides == heads.strides


# -- linear ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(biased: bool, dtype: str) -> None:
    x, w, b = (a.astype(dtype) for a in (X, array(M, N), array(M)))
    case = Case("linear", (x, w, b if biased else None), {})
    z = pieces.forward(*case)
    exact = np.einsum("btn,mn->btm", x, w, dtype=np.float64) + (b if biased else 0)
    assert z.dtype == dtype
    near(z, exact, np.abs(x).max() * np.abs(w))
    r = np.cos(z)
    wanted = linear.gradient(*case.operands, z, r)
    found, sums = pieces.apply("linear", linear.gradient, case.operands, z, r, {}, True)
    near(found.inputs[0], np.einsum("btm,mn->btn", r, w, dtype=np.float64), w)
    assert found.inputs[1:] == (None, None) and sums[1:] == [None, None]
    near(sums[0], (x * found.inputs[0]).sum(axis=(1, 2), dtype=np.float64), x)
    assert found.absorbed.keys() == wanted.absorbed.keys() == ({"bias"} if biased else set())
    for cause in wanted.absorbed:
        near(found.absorbed[cause], (r @ b).sum(axis=1, dtype=np.float64), r)


@pytest.mark.parametrize("rows", [1, pieces.FEW, pieces.FEW + 1])
@pytest.mark.parametrize("stored", ["as it is", "transposed"])
def test_rows_by_a_matrix(rows: int, stored: str) -> None:
    """Few by the matrix as it lies, wherever that is; the same with any number of threads."""
    x, w = np.sin(array(1, rows, 8)), np.cos(array(130, 8))
    w = w if stored == "as it is" else np.asfortranarray(w)
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads, user_api="blas"):
            found.append(pieces._product(x, w.T, w[:, 0]))
    near(found[0], np.einsum("btn,mn->btm", x, w) + w[:, 0], np.abs(w))
    assert all(np.array_equal(found[0], other) for other in found)


def test_linear_of_other_rules_is_one_call() -> None:
    case = Case("linear", (X, array(M, N), array(M)), {})
    z = case.forward
    for rule in OPERATIONS["linear"].rules_in("relevance").values():
        counting = Calls(rule)
        how = {"low": -3.0, "high": 3.0} if rule is linear.z_box else {}
        output, _ = pieces.apply("linear", counting, case.operands, z, z, how, False)
        assert counting.rows == [T]
        assert np.array_equal(output.inputs[0], rule(*case.operands, z, z, **how).inputs[0])


# -- what is one call ------------------------------------------------------------------------------

BROADCAST = {
    "a row for all": (X, array(1, 1, N)),
    "an example for all": (X, array(1, T, N)),
    "a number for each row": (X, array(B, T, 1)),
    "a vector": (X, array(N)),
    "two axes": (X[0], Y[0]),
    "float16": (X.astype("float16"), Y.astype("float16")),
}
NO_FLOATS = {
    "complex": (X + 1j, Y + 1j),
    "integers": ((10 * X).astype(int), (10 * Y).astype(int)),
}


def counted(operation: str, patch: pytest.MonkeyPatch) -> Calls:
    """The operation's forward, from now on."""
    counting = Calls(OPERATIONS[operation].forward)
    forward = {"forward": staticmethod(counting)}
    patch.setitem(OPERATIONS, operation, type("", (), forward))  # type: ignore[misc]
    return counting


@pytest.mark.parametrize("how", [*BROADCAST, *NO_FLOATS])
@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_forwards_of_one_call(operation: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are not by themselves, or not of numbers that nets run in."""
    attributes = {"constant": (False, False)} if operation == "multiply" else {}
    case = Case(operation, (BROADCAST | NO_FLOATS)[how], attributes)
    wanted, counting = case.forward, counted(operation, monkeypatch)
    assert np.array_equal(pieces.forward(*case), wanted)
    assert counting.rows == [T]


@pytest.mark.parametrize("how", BROADCAST)
@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_rules_of_one_call(operation: str, how: str) -> None:
    attributes = {"constant": (False, False)} if operation == "multiply" else {}
    case = Case(operation, BROADCAST[how], attributes)
    z = case.forward
    for formulation in FORMULATIONS:
        for rule in OPERATIONS[operation].rules_in(formulation).values():
            wanted, counting = one_call(case, rule, z, z), Calls(rule)
            found, _ = pieces.apply(operation, counting, case.operands, z, z, attributes, False)
            assert counting.rows == [T]
            for got, want in zip(found.inputs, wanted.inputs, strict=True):
                assert (got is None and want is None) or np.array_equal(got, want)


def test_small_arrays_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["add"]
    for large, count in ((X.size, 4), (X.size + 1, 1)):
        monkeypatch.setattr(pieces, "LARGE", large)
        rule = Calls(OPERATIONS["add"].rules_in("relevance")["epsilon"])
        pieces.apply("add", rule, case.operands, case.forward, X, {}, False)
        assert len(rule.rows) == count


# -- rows to which something comes -----------------------------------------------------------------


def alive_rows() -> list[tuple[list[int], slice | None]]:
    return [([], None), ([6], slice(6, 7)), ([0, 2], slice(0, 3)), ([0, 6], None), ([1, 4], None)]


@pytest.mark.parametrize(("rows", "wanted"), alive_rows())
def test_rows_to_which_something_comes(rows: list[int], wanted: slice | None) -> None:
    """In any example; where they are few."""
    r = np.zeros((B, T, N))
    for n, row in enumerate(rows):
        r[n % B, row, n] = -1.0
    assert pieces.alive(r) == wanted
    assert pieces.alive(r[0]) is None and pieces.alive(r[:, None]) is None


@pytest.mark.parametrize("rows", [slice(6, 7), slice(2, 5)])
@pytest.mark.parametrize(("case", "rule", "as_gradient"), list(calls()))
def test_every_rule_on_few_rows(case: Case, rule: Any, as_gradient: bool, rows: slice) -> None:
    if case.operation == "rotary":
        return  # has four axes
    z = case.forward
    r = np.zeros_like(z)
    r[:, rows] = np.cos(3 * z[:, rows])
    on_few_rows(case, rule, z, r, rows, as_gradient)


def on_few_rows(
    case: Case, rule: Any, z: Any, r: Any, rows: slice, as_gradient: bool, **how: Any
) -> None:
    wanted = rule(*case.operands, z, r, **case.attributes, **how)
    found, sums = pieces.apply(
        case.operation, rule, case.operands, z, r, case.attributes | how, as_gradient, rows
    )
    for x, got, want, s in zip(case.operands, found.inputs, wanted.inputs, sums, strict=True):
        assert (got is None) == (want is None) == (s is None)
        if want is not None:
            assert got.dtype == want.dtype
            near(got, want, np.abs(want) + np.abs(r).sum())
            relevance = x * want if as_gradient else want
            near(s, relevance.sum(axis=(1, 2)), np.abs(relevance).sum() + np.abs(r).sum())
    assert found.absorbed.keys() == wanted.absorbed.keys()
    for cause, amount in wanted.absorbed.items():
        near(found.absorbed[cause], amount, np.abs(r) * (1 + np.abs(z)) * 8)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_every_rule_of_linear_on_few_rows(formulation: str, biased: bool) -> None:
    case = Case("linear", (X, array(M, N), array(M) if biased else None), {})
    z, rows = case.forward, slice(4, 6)
    r = np.zeros_like(z)
    r[:, rows] = np.cos(z[:, rows])
    for rule in OPERATIONS["linear"].rules_in(formulation).values():
        how = {"low": -3.0, "high": 3.0} if rule is linear.z_box else {}
        on_few_rows(case, rule, z, r, rows, formulation == "gradient_x_input", **how)


# -- sums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_gradient", [True, False])
def test_sums(as_gradient: bool) -> None:
    """Per example, of all rows or of their products with a bias."""
    for x in (Y, BIAS):
        found = pieces.relevance_sum(x, X, as_gradient)
        exact = (X * x if as_gradient else X).sum(axis=(1, 2))
        assert found.dtype == np.float64
        near(found, exact, X)


def test_sums_do_not_depend_on_which_piece_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, of numbers whose order of adding shows."""
    x = np.exp(12 * array(B, 90, N))
    case, z = Case("add", (x, -x[::-1]), {}), x - x[::-1]
    rule = OPERATIONS["add"].rules_in("relevance")["epsilon"]
    found = []
    for order in (1, -1):
        monkeypatch.setattr(
            pieces.parallel, "each", lambda f, n, by=order: [f(i) for i in range(n)[::by]]
        )
        output, sums = pieces.apply("add", rule, case.operands, z, np.cos(x), {}, False)
        found.append([*sums, *output.absorbed.values(), pieces.relevance_sum(x, x, False)])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
