"""How tests hold the engine to the exact definitions: drawn cases (verification/quality/cases.py),
every entry within the bound that is derived there, in any array library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import Backend
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from refl.rules.conservation import RuleOutput
from refl.verification.definitions import lift
from refl.verification.definitions.exact import MP, Number, to_mpf
from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import Case, Draw, OutOfRange, Trial

dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])

Cases = Callable[[Draw, str], Case]


def on_examples(backend: Backend, judge: Callable[[st.DataObject], None]) -> None:
    """`judge` on many drawn examples; the strict backend is slow
    and checks the interface, so it gets fewer.
    """
    count = max(settings.default.max_examples * 3 // 10, 2)
    few = settings(
        max_examples=count if backend.name == "numpy" else max(count // 5, 2),
        suppress_health_check=list(HealthCheck),
    )
    few(given(st.data())(judge))()


def _drawn(draw_case: Cases, data: st.DataObject, dtype: str) -> Case:
    with np.errstate(all="ignore"):  # a forward that overflows is thrown away
        return draw_case(data.draw, dtype)


# -- a rule ----------------------------------------------------------------------------------------


def rule_agrees(backend: Backend, dtype: str, rule: str, draw_case: Cases) -> None:
    """The engine's rule gives, on every drawn case, what the definition of that name gives; and the
    definition loses nothing.
    """

    def judge(data: st.DataObject) -> None:
        case = _drawn(draw_case, data, dtype)
        if rule not in case.rules:  # one for two operands, on three
            reject()
        try:
            trial = case.rules[rule]()
        except OutOfRange:
            reject()
        output = trial.run(backend.place)
        _check_form(backend, trial, output)
        for entry in trial.expected.judged(output, backend.back):
            near(entry.got, entry.exact, entry.bound, entry.where)
        error, magnitude = trial.conservation_error()
        assert abs(error) <= (0 if _is_rational(error) else MP.mpf(10) ** -45 * (1 + magnitude))

    on_examples(backend, judge)


def _is_rational(n: Number) -> bool:
    return not isinstance(n, type(MP.mpf(0)))


def _check_form(backend: Backend, trial: Trial, output: RuleOutput) -> None:
    """Shapes and dtypes; None for parameters and for operands that a rule gives nothing."""
    operands = trial.case.operands
    assert len(output.inputs) == len(operands)
    silent = _silent(trial)
    for k, (operand, got) in enumerate(zip(operands, output.inputs, strict=True)):
        received = any(where[0] == k for where in trial.expected.entries)
        assert (got is None) if k in silent else (got is not None or not received)
        if got is not None:
            host = backend.back(got)
            assert host.shape == operand.shape and host.dtype == trial.case.dtype
    assert all(backend.back(a).dtype == np.float64 for a in output.absorbed.values())


def _silent(trial: Trial) -> range:
    if trial.case.name in ("linear", "rms_norm", "layer_norm"):
        return range(1, len(trial.case.operands))
    first = ("embedding", "multiply_second", "matmul_second", "softmax_constant")
    return range(1 if trial.rule.startswith(first) else 0)


# -- a forward -------------------------------------------------------------------------------------


def forward_agrees(
    backend: Backend,
    dtype: str,
    draw_case: Cases,
    bound: Callable[[Case, Call, Any], Any],
    exact_call: Callable[[Case], Call] = Case.call,
) -> None:
    """The engine's output is the exact one, within bound(case, exact call, exact output)."""

    def judge(data: st.DataObject) -> None:
        case = _drawn(draw_case, data, dtype)
        call = exact_call(case)
        wanted = lift.FORWARD[case.name](call)
        try:
            allowed = np.asarray(bound(case, call, wanted), dtype=object)
        except OutOfRange:
            reject()
        operands = (None if a is None else backend.place(a) for a in case.operands)
        attributes = case.placed_attributes(backend.place)
        got = backend.back(case.operation.forward(*operands, **attributes))
        assert got.shape == wanted.shape and got.dtype == dtype
        for at in np.ndindex(*got.shape):
            near(got[at], wanted[at], np.broadcast_to(allowed, got.shape)[at], at)

    on_examples(backend, judge)


def magnitudes(case: Case, call: Call) -> Any:
    """Sum of |terms| of every output: the forward of absolute values."""
    options = {k: abs(v) if _is_exact_array(v) else v for k, v in call.options.items()}
    operands = [None if o is None else abs(o) for o in call.operands]
    return lift.FORWARD[case.name](Call(operands, options=options))


def _is_exact_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


# -- comparing -------------------------------------------------------------------------------------


def near(got: Any, wanted: Number, bound: Number, where: Any = "") -> None:
    assert math.isfinite(got), f"{where}: {got}"
    error = abs(MP.mpf(float(got)) - to_mpf(wanted))
    assert error <= to_mpf(bound), (
        f"{where}: got {got!r}, exact {float(wanted)!r}, error {float(error):.3g}, "
        f"bound {float(bound):.3g}"
    )


def arrays_of(backend: Backend, *values: Any) -> list[Any]:
    floats = (np.asarray(v, dtype=getattr(v, "dtype", np.float64)) for v in values)
    return [backend.place(v) for v in floats]
