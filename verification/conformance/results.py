"""What came of a case, of a rule's cases, and of a whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refl.verification.conformance.answers import Array
from refl.verification.conformance.deviation import Deviation
from refl.verification.conformance.diagnosis import Diagnosis
from refl.verification.conformance.planting import Mistake
from refl.verification.vectors.case import Case
from refl.verification.vectors.model_vectors import SiteDeviation

PASSED, FAILED, CONVENTION, NOT_COVERED = "passed", "failed", "convention", "not covered"
PARTLY = "partly covered"
"""Nothing is wrong in what was answered, and something is missing that must be answered for a
pass."""
STATUSES = (PASSED, FAILED, CONVENTION, PARTLY, NOT_COVERED)
INCOMPLETE = (NOT_COVERED, PARTLY)
"""Of what is no failure, and no pass."""


@dataclass(frozen=True)
class CaseResult:
    """What came of a case."""

    case: Case
    status: str
    got: Mapping[str, Array | None] = field(default_factory=dict)
    absorbed: Mapping[str, Array] = field(default_factory=dict)
    deviations: tuple[Deviation, ...] = ()
    """The worst of each operand and entry that is wrong, worst first."""
    message: str = ""
    """What went wrong where it is not a number (an exception, a shape),
    or why the case is not covered.
    """
    behavior: str = ""
    """Of a network that does not answer the same again, or no second seed:
    what shows the mistake (planting.py).
    """
    diagnoses: tuple[Diagnosis, ...] = ()
    """Known mistakes, in the forms that give these same wrong numbers."""

    @property
    def failed(self) -> bool:
        return self.status in (FAILED, CONVENTION)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        return tuple(dict.fromkeys(m for m, _ in self.diagnoses))


@dataclass(frozen=True)
class RuleResult:
    """What came of a rule's cases."""

    rule: str
    cases: tuple[CaseResult, ...]
    mistakes: tuple[Mistake, ...] = ()
    """Known mistakes, those that explain the most failures first."""
    conventions: Mapping[str, str] = field(default_factory=dict)

    def count(self, *statuses: str) -> int:
        return sum(c.status in statuses for c in self.cases)

    @property
    def failing(self) -> int:
        return self.count(FAILED, CONVENTION)

    @property
    def tried(self) -> int:
        return len(self.cases) - self.count(NOT_COVERED)

    @property
    def missing(self) -> tuple[CaseResult, ...]:
        """Required cases that are not covered, or in part alone."""
        return tuple(c for c in self.cases if c.status in INCOMPLETE and c.case.required)

    @property
    def status(self) -> str:
        """A rule is passed only where all of its required cases are."""
        order = (FAILED, CONVENTION, PASSED, PARTLY)
        found = next((s for s in order if self.count(s)), NOT_COVERED)
        return PARTLY if found == PASSED and self.missing else found

    @property
    def coverage(self) -> str:
        """How many of its cases are right, wrong and not covered."""
        counts = (
            (self.failing, "wrong"),
            (self.count(PARTLY), "in part alone"),
            (self.count(NOT_COVERED), "not covered"),
        )
        said = "".join(f", {n} {what}" for n, what in counts if n)
        return f"{self.count(PASSED)} of {len(self.cases)} cases{said}"

    @property
    def partly(self) -> str:
        """What of its required cases is missing, and why; nothing where nothing is."""
        if not self.missing:
            return ""
        required = sum(c.case.required for c in self.cases)
        why = Counter(c.message for c in self.missing).most_common(1)[0][0]
        in_part = all(c.status == PARTLY for c in self.missing)
        extent = "covered in part alone" if in_part else "not covered"
        return f"{len(self.missing)} of {required} required cases {extent} ({why})"

    def fraction(self, mistake: Mistake) -> str:
        """How much of what is wrong a mistake explains."""
        return f"explains {self.explained[mistake.id]} of {self.failing} failing cases"

    @property
    def explained(self) -> Mapping[str, int]:
        """Id of a mistake -> how many of the failing cases it explains."""
        failed = [c for c in self.cases if c.failed]
        return {m.id: sum(m in c.mistakes for c in failed) for m in self.mistakes}

    @property
    def unexplained(self) -> tuple[CaseResult, ...]:
        """Failing cases that no known mistake explains, the smallest first."""
        return tuple(
            sorted(
                (c for c in self.cases if c.failed and not c.diagnoses), key=lambda c: size(c.case)
            )
        )

    @property
    def cause(self) -> Mistake | None:
        """The first mistake, where it explains at least half of the failing cases: one that
        explains fewer is part of what is wrong at most. A small error of any kind is within
        float32's precision here and there: that precision is the cause of nearly all, or of none.
        """
        first = self.mistakes[0] if self.mistakes else None
        least = 0.9 if first and first.id == "narrowed" else 0.5
        return first if first and self.explained[first.id] >= least * self.failing else None

    @property
    def smallest(self) -> CaseResult | None:
        """The failing case with the fewest numbers;
        one written for the mistake that is named comes before others.
        """
        failed = [
            c for c in self.cases if c.status == (FAILED if self.count(FAILED) else CONVENTION)
        ]
        best = self.mistakes[0] if self.mistakes else None

        def rank(c: CaseResult) -> tuple[bool, bool, bool, int]:
            written_for_it = best is not None and best.id in c.case.flags
            return best not in c.mistakes, not c.deviations, not written_for_it, size(c.case)

        return min(failed, key=rank, default=None)


def size(case: Case) -> int:
    """How many numbers a case is made of."""

    def count(value: Any) -> int:
        if isinstance(value, np.ndarray):
            return int(value.size)
        if isinstance(value, Mapping):
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list) else 0

    return count(dict(case.inputs))


@dataclass(frozen=True)
class ModelResult:
    """What came of one input of one model under one method."""

    name: str
    status: str
    compared: int = 0
    deviations: tuple[SiteDeviation, ...] = ()
    """In the order of the sweep: the first is where relevance parts first."""
    mistakes: tuple[str, ...] = ()
    """Ids of the known mistakes that give these numbers."""
    reasons: tuple[str, ...] = ()
    """The same, and options, in words."""
    said: str = ""
    """The message, where it is not made of the deviations."""
    rule: str = "model"

    @property
    def message(self) -> str:
        if self.said or not self.deviations:
            return self.said or (f"{self.compared} sites agree" if self.compared else "")
        others = len(self.deviations) - 1
        more = (
            f"; {others} more of {self.compared} sites part"
            if others
            else f"; no other of {self.compared} sites"
        )
        reasons = "".join(f"; looks like {reason}" for reason in self.reasons)
        return f"parts first at {self.deviations[0]}{more}{reasons}"
