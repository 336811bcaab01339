"""The measurement of the engine's error: it names every rule, keeps to the bound it derives, and
sees a rule that is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refl.rules import linear, pooling, softmax
from refl.rules.conservation import RuleOutput
from refl.rules.operations import rules_in
from refl.verification.definitions.exact import no_messages
from refl.verification.definitions.lift import Piece
from refl.verification.quality import engine_error
from refl.verification.quality.cases import DTYPES, Expected
from refl.verification.quality.engine_error import Tally, identifier, rules, run, tallied

TABLE = Path(engine_error.__file__).with_suffix(".md")


def test_a_short_run_names_every_rule_and_keeps_to_the_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(cases=12)
    known = {
        identifier(rule)
        for table in (rules_in("relevance"), rules_in("gradient_x_input"))
        for operation, called in table.items()
        for rule in called.values()
        if operation not in ("embedding", "learned", "source")
    }
    assert set(result["rules"]) == set(rules()) == known
    for rule, rows in result["rules"].items():
        assert set(rows) == set(DTYPES), rule
        for row in rows.values():
            assert row["cases"] == 12 and row["entries"] > 0 and row["beyond_the_bound"] == 0
            assert row["worst_of_bound"] < 1, rule
    engine_error.show(result)
    shown, page = capsys.readouterr().out, engine_error.markdown(result)
    for rule in known:
        assert rule in shown
        assert all(f"| {rule} | {dtype} |" in page for dtype in DTYPES)


def test_the_table_beside_it_names_every_rule() -> None:
    """The committed one was made by a long run, and no error in it is beyond its bound."""
    text = TABLE.read_text(encoding="utf-8")
    cases = re.search(r"(\d+) cases for each rule and dtype", text)
    assert cases and int(cases[1]) >= 1000 and "Beyond the bound: 0." in text
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in text.splitlines()
        if "| float" in line
    ]
    assert {(line[0], line[1]) for line in lines} == {
        (rule, dtype) for rule in rules() for dtype in DTYPES
    }
    assert all(float(line[-1]) < 1 for line in lines)


# -- the unit --------------------------------------------------------------------------------------


def judged(got: float, messages: list[float], kappa: float = 0.0) -> Tally:
    sent, tally, expected = no_messages(1), Tally(), Expected("float64", summands=0)
    for m in messages:
        sent.send(0, 0, Fraction(m))
    expected.add([Piece((0,), sent, lambda k, i: (0, i))], lambda at: Fraction(kappa))
    for entry in expected.judged(RuleOutput((np.asarray([[got]]),), {})):
        tally.add(entry)
    return tally


def test_an_error_is_counted_in_units_of_u_times_condition() -> None:
    """3 - 1 = 2 has the condition 4: eight spacings of doubles above 2 (2^-51 each, 4 u) are 8
    units; a denominator of condition 3 makes them 2. Of the bound, k = 8 + 2 messages, that is
    0.8."""
    off = 2.0 + 8 * 2.0**-51
    assert judged(2.0, [3.0, -1.0]).relevance.tolist() == [0.0]
    assert judged(off, [3.0, -1.0]).relevance.tolist() == [8.0]
    assert judged(off, [3.0, -1.0]).of_bound == pytest.approx(0.8)
    assert judged(off, [3.0, -1.0], kappa=3.0).relevance.tolist() == [2.0]
    assert (
        judged(off, [3.0, -1.0]).beyond == 0
        and judged(2.0 + 11 * 2.0**-51, [3.0, -1.0]).beyond == 1
    )


def test_what_has_no_condition_must_be_zero() -> None:
    assert judged(0.0, []).beyond == 0 and judged(5e-324, []).beyond == 1
    assert judged(0.0, [0.0, 0.0]).beyond == 0 and judged(float("nan"), [1.0]).beyond == 1


def test_an_entry_that_underflow_decides_is_left_out_of_the_table() -> None:
    tally = judged(2.0**-1060, [2.0**-1060])
    assert (tally.small, len(tally.relevance), tally.beyond) == (1, 0, 0)
    assert judged(2.0**-900, [2.0**-1060]).beyond == 1, "and held to the bound all the same"


# -- rules that are wrong --------------------------------------------------------------------------

Change = Callable[[RuleOutput], RuleOutput]


def _more_bias(p: RuleOutput) -> RuleOutput:
    return p._replace(
        absorbed={
            cause: amount * (1 + 2.0**-45) if cause == "bias" else amount
            for cause, amount in p.absorbed.items()
        }
    )


def _no_offset(p: RuleOutput) -> RuleOutput:
    return p._replace(
        absorbed={
            cause: amount for cause, amount in p.absorbed.items() if cause != "softmax_offset"
        }
    )


def _nudged(p: RuleOutput) -> RuleOutput:
    return p._replace(inputs=tuple(None if r is None else r * (1 + 2.0**-45) for r in p.inputs))


def _ghost(p: RuleOutput) -> RuleOutput:
    return p._replace(absorbed=p.absorbed | {"bias": np.ones_like(p.absorbed["stabilizer"])})


FAULTS: list[tuple[str, Any, str, Change]] = [
    ("linear", linear, "epsilon", _more_bias),
    ("linear", linear, "gamma", _nudged),
    ("softmax", softmax, "taylor", _no_offset),
    ("pooling", pooling, "epsilon", _nudged),
    ("pooling", pooling, "epsilon", _ghost),
]


@pytest.mark.parametrize(("operation", "module", "rule", "change"), FAULTS)
def test_a_wrong_rule_is_beyond_the_bound(
    operation: str, module: Any, rule: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(module, rule)

    @wraps(right)
    def wrong(*arrays: Any, **options: Any) -> RuleOutput:
        return change(right(*arrays, **options))

    monkeypatch.setattr(module, rule, wrong)
    tallies = tallied(operation, "float64", 20)
    assert tallies[identifier(right)].beyond > 0
    assert all(tally.beyond == 0 for other, tally in tallies.items() if other != identifier(right))


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "e.json"), "--markdown", str(tmp_path / "e.md")]
    assert engine_error.main(["--cases", "5", "--only", "scale", "top_k", *files]) == 0
    assert "scale_gradient" in capsys.readouterr().out
    result = json.loads((tmp_path / "e.json").read_text())
    assert (
        set(result["rules"]) == {"scale_pass_through", "scale_gradient", "top_k_pass_through"}
        and result["cases"] == 5
    )
    assert set(result["versions"]) >= {"refl", "numpy", "python"}
    assert "| scale_gradient | float32 |" in (tmp_path / "e.md").read_text()
    monkeypatch.setattr(engine_error.Tally, "add", lambda self, entry: setattr(self, "beyond", 1))
    assert engine_error.main(["--cases", "2", "--only", "scale"]) == 1
