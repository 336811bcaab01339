"""How far the engine's rules are from their exact definitions, in units of u times condition:

    python -m refl.verification.quality.engine_error [--cases N] [--json FILE] [--markdown FILE]
                                                     [--only OPERATION ...]

cases.py draws the cases, says what the definitions answer, and derives the bound. An error is
counted in units of

    u condition_i,     condition_i = sum_j |R_(i<-j)| (1 + kappa_j) + d_i

kappa_j is the condition of a denominator that the rule itself sums up, where its terms may cancel,
d_i what a difference costs that the rule forms inside a message. `share of bound` is the largest
part of its bound that an error reached: below 1 on every line, or this script exits with 1.

On whole numbers little rounds, which is why many medians are near 0; the worst is what counts. One
case is one call of a rule on a small array; several rules are tried on one draw. An entry whose
messages are so small that underflow may cost more than 1/16 of its unit is held to the bound, and
left out of median and worst.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import zlib
from array import array as Doubles
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import product
from typing import Any

import hypothesis
import mpmath
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import refl
from refl.io.files import atomic_write
from refl.rules.conservation import RuleOutput
from refl.rules.operations import FORMULATIONS, rules_in
from refl.verification.markdown import table
from refl.verification.quality.cases import CASES, DTYPES, Case, Draw, Judged, OutOfRange, Trial

LEAVES = ("embedding", "learned", "source")
"""Leaves, where a sweep ends: nothing is computed but a sum."""
OPERATIONS = {name: draw for name, draw in CASES.items() if name not in LEAVES}
"""What a case is drawn for -> how."""


def identifier(rule: Callable[..., RuleOutput]) -> str:
    """`linear_epsilon`: file and function."""
    return f"{rule.__module__.rpartition('.')[2]}_{rule.__name__}"


def rules() -> dict[str, str]:
    """Every rule that computes something -> the names composites call it by."""
    found: dict[str, dict[str, list[str]]] = {}
    for formulation in FORMULATIONS:
        for operation, known in rules_in(formulation).items():
            for called, rule in known.items():
                if operation not in LEAVES:
                    found.setdefault(identifier(rule), {}).setdefault(formulation, []).append(
                        called
                    )
    return {
        rule: "; ".join(f"{form}: {', '.join(c)}" for form, c in forms.items())
        for rule, forms in sorted(found.items())
    }


class Tally:
    """The errors of one rule in one dtype."""

    def __init__(self) -> None:
        self.cases = self.small = self.beyond = 0
        self.relevance, self.absorbed = Doubles("d"), Doubles("d")
        self.of_bound = 0.0

    def judge(self, trial: Trial) -> None:
        self.cases += 1
        for entry in trial.expected.judged(trial.run()):
            self.add(entry)

    def add(self, entry: Judged) -> None:
        if not entry.error <= entry.bound:
            self.beyond += 1
        if not entry.bound:
            return
        if 16 * entry.underflow > entry.unit:
            self.small += 1
            return
        self.of_bound = max(self.of_bound, float(entry.error / (entry.bound - entry.underflow)))
        errors = self.relevance if isinstance(entry.where[0], int) else self.absorbed
        errors.append(float(entry.error / entry.unit))

    def row(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "entries": len(self.relevance) + len(self.absorbed),
            "relevance": _middle_and_worst(self.relevance),
            "absorbed": _middle_and_worst(self.absorbed),
            "worst_of_bound": self.of_bound,
            "left_out_for_underflow": self.small,
            "beyond_the_bound": self.beyond,
        }


def _middle_and_worst(ratios: Doubles[float]) -> list[float] | None:
    return [statistics.median(ratios), max(ratios)] if ratios else None


# -- measuring -------------------------------------------------------------------------------------

ROUND = 500
"""Cases drawn by one run of Hypothesis, which starts each run with its simplest."""


def tallied(operation: str, dtype: str, cases: int) -> dict[str, Tally]:
    """Rule -> the errors of so many cases."""
    tallies: dict[str, Tally] = {}
    for number in range(20 + 20 * cases // ROUND):
        missing = cases - min((t.cases for t in tallies.values()), default=0)
        if missing <= 0:
            return tallies
        _round(
            OPERATIONS[operation],
            dtype,
            min(2 * missing, ROUND),
            zlib.crc32(f"{operation} {dtype} {number}".encode()),
            cases,
            tallies,
        )
    raise RuntimeError(f"{operation} in {dtype}: too few of the cases drawn are in range")


def _round(
    draw: Callable[[Draw, str], Case],
    dtype: str,
    count: int,
    start: int,
    cases: int,
    tallies: dict[str, Tally],
) -> None:
    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        with np.errstate(all="ignore"):
            for rule, make in draw(data.draw, dtype).rules.items():
                tally = tallies.setdefault(rule, Tally())
                if tally.cases < cases:
                    _try(make, tally)

    one()


def _try(make: Callable[[], Trial], tally: Tally) -> None:
    try:
        tally.judge(make())
    except OutOfRange:
        return


def run(
    cases: int,
    operations: Sequence[str] = tuple(OPERATIONS),
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Everything measured, as plain numbers:
    {"versions", "date", "cases", "rules": {rule: {dtype: row}}}.
    """
    rows: dict[str, dict[str, Any]] = {}
    for operation, dtype in product(operations, DTYPES):
        progress(f"{operation}, {dtype}")
        for rule, tally in tallied(operation, dtype, cases).items():
            rows.setdefault(rule, {})[dtype] = tally.row()
    versions = {
        "refl": refl.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "hypothesis": hypothesis.__version__,
        "mpmath": mpmath.__version__,
        "machine": platform.machine(),
    }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "cases": cases,
        "rules": dict(sorted(rows.items())),
    }


# -- showing ---------------------------------------------------------------------------------------

COLUMNS = (
    "rule",
    "dtype",
    "entries",
    "relevance: median",
    "worst",
    "absorbed: median",
    "worst",
    "share of bound",
)


def cells(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for rule, dtype in product(result["rules"], DTYPES):
        row = result["rules"][rule][dtype]
        errors = [
            f"{v:.2f}"
            for each in (row["relevance"], row["absorbed"])
            for v in each or (math.nan, math.nan)
        ]
        yield (
            rule,
            dtype,
            f"{row['entries']}",
            *("" if e == "nan" else e for e in errors),
            f"{row['worst_of_bound']:.2f}",
        )


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{what} {v}" for what, v in result["versions"].items())
    rows = [row for by_dtype in result["rules"].values() for row in by_dtype.values()]
    small, beyond = (
        sum(row[key] for row in rows) for key in ("left_out_for_underflow", "beyond_the_bound")
    )
    head = (
        "# How far the engine is from the exact definitions\n\n"
        "Written by `python -m refl.verification.quality.engine_error --cases "
        f"{result['cases']} --markdown FILE` on {result['date']} "
        f"({versions}). {result['cases']} cases for each rule and dtype.\n\n"
        "Errors are in units of u times condition: the sum of |messages|, each times 1 + "
        "the condition of a denominator that the rule sums "
        "up itself. `entries` counts the single relevances and absorbed entries compared, "
        "`share of bound` is the most of its bound "
        f"that an error reached. Beyond the bound: {beyond}. Left out because underflow "
        f"would decide: {small}. "
        "`cases.py` has the cases and derives the bound; the last table says "
        "under which names composites call a rule.\n\n"
    )
    called = [row for row in rules().items() if row[0] in result["rules"]]
    return f"{head}{table(COLUMNS, cells(result))}\n\n{table(('rule', 'called'), called)}\n"


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"error / (u condition), {result['cases']} cases for each rule and dtype", box=None
    )
    for k, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if k < 2 else "right", no_wrap=k < 2)
    for row in cells(result):
        table.add_row(*row)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where an error is beyond the bound."""
    parser = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.engine_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases", type=int, default=200, help="cases for each rule and dtype (default: 200)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=OPERATIONS,
        default=list(OPERATIONS),
        help="these operations alone",
    )
    options = parser.parse_args(arguments)
    result = run(options.cases, options.only, lambda line: print(line, file=sys.stderr))
    show(result)
    if options.json:
        atomic_write(options.json, json.dumps(result, indent=1).encode())
    if options.markdown:
        atomic_write(options.markdown, markdown(result).encode())
    return (
        1
        if any(
            row["beyond_the_bound"] for rows in result["rules"].values() for row in rows.values()
        )
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
