"""Does the conformance suite leave right implementations alone?

    python -m refl.verification.quality.false_alarms [--seeds N] [--rule PATTERN] [ADAPTER]

The published vectors are those of one seed, and a tolerance that happens to fit them proves little.
Here every rule's vectors are drawn anew for each of N seeds, in memory, and put to an adapter that
is right: the torch adapter, unless another is named. Every failure is a false alarm, the fault of
the adapter, of the expected answers or of the tolerance. The table says for each rule how many
cases were tried and how close the worst answer came to what is allowed; exit 1 where one went
beyond.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.results import INCOMPLETE, CaseResult
from refl.verification.conformance.runner import run_case
from refl.verification.vectors.make_vectors import drawn
from refl.verification.vectors.rule_vectors import rules

ADAPTER = Path(__file__).parents[1] / "conformance" / "adapters" / "torch_reference.py"


@dataclass
class Tally:
    """What came of a rule's cases."""

    rule: str
    cases: int = 0
    uncovered: int = 0
    worst: float = 0.0
    """Distance from what is expected, as a part of what is allowed."""
    alarms: tuple[str, ...] = ()


def tally(adapter: Adapter, rule: str, seeds: Iterable[int]) -> Tally:
    t = Tally(rule)
    for seed in seeds:
        for case in drawn(rule, seed):
            result = run_case(adapter, case)
            t.cases += 1
            t.uncovered += result.status in INCOMPLETE
            t.worst = max(t.worst, used(result))
            if result.failed:
                where = (
                    f"{result.deviations[0].name} by {result.deviations[0].excess:.3g}"
                    if result.deviations
                    else result.message
                )
                t.alarms += (f"seed {seed}, {case.id}, {case.dtype}: {where}",)
    return t


def used(result: CaseResult) -> float:
    """The largest part that any number of an answer takes of its tolerance."""
    case, worst = result.case, 0.0
    for name, got in result.got.items():
        if got is not None and case.expected[name] is not None:
            allowed = case.allowed(case.condition[name])
            worst = max(
                worst, float(np.max(np.abs(got - case.expected[name]) / allowed, initial=0))
            )
    return worst


def run_all(adapter: Adapter, seeds: int, pattern: str = "*") -> Iterator[Tally]:
    for rule in rules():
        if fnmatchcase(rule, pattern):
            yield tally(adapter, rule, range(seeds))


def line(t: Tally) -> str:
    uncovered = f", {t.uncovered} not covered" if t.uncovered else ""
    said = "".join(f"\n    {alarm}" for alarm in t.alarms)
    return (
        f"{t.rule:26} {t.cases:6} cases{uncovered}, worst at {t.worst:.3f} of what is allowed, "
        f"{len(t.alarms)} alarms{said}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Vectors of many seeds against a right adapter.")
    parser.add_argument("adapter", nargs="?", default=str(ADAPTER))
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--rule", default="*", metavar="PATTERN")
    given = parser.parse_args()
    tallies = []
    for t in run_all(Adapter(given.adapter), given.seeds, given.rule):
        tallies.append(t)
        print(line(t), flush=True)
    alarms = sum(len(t.alarms) for t in tallies)
    print(f"{sum(t.cases for t in tallies)} cases of {given.seeds} seeds: {alarms} false alarms")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
