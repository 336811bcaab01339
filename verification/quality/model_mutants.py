"""Does an adapter for whole models get away with a structural mistake in one of its rules?

    python -m refl.verification.quality.model_mutants [--architecture PATTERN] [--method PATTERN]
        [--markdown FILE]

An adapter has to hand over the relevance of the input and may keep every other site to itself. So
each structural mistake (conformance/structural.py) is planted in what one operation gives one of
its operands, within refl's own sweep of a whole model in float64, and the input's relevance alone
is held against the model vectors. A mutant is caught where any input of the architecture shows it,
and makes no difference where it moves none of them by more than NEAR of the largest number. Exit 1
where one survives. Counted beside: what is caught with all that an adapter in float32 may be off.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from refl.arrays import Array
from refl.errors import ReflError
from refl.io.files import atomic_write
from refl.model import Model, load
from refl.rules.composites import Composite
from refl.rules.conservation import RuleOutput
from refl.rules.published import METHODS
from refl.verification.compare.alternatives import Step, altered
from refl.verification.compare.forward import ExplainedOutput, RecordedForward
from refl.verification.conformance.structural import Change, changes
from refl.verification.markdown import command, table
from refl.verification.vectors import model_vectors
from refl.verification.vectors.model_vectors import ModelCase
from refl.version import __version__

MODULE = "refl.verification.quality.model_mutants"

AXES = (-1, -2, -3, -4)
NEAR = 1e-7

CHANGES = tuple(changes(AXES))

Relevance = dict[str, Array]
"""Site of the input -> its relevance."""


class Place(NamedTuple):
    """Where a mistake is planted: in what operations of a role give their k-th operand."""

    operation: str
    role: str
    k: int

    def composite(self, c: Composite, made: MadeChange) -> Composite:
        """The composite with the change made there."""

        def wrong(rule: Step, gxi: bool) -> Step:
            def answering(*arrays: Any, **options: Any) -> RuleOutput:
                out = rule(*arrays, **options)
                return out._replace(inputs=_with(out.inputs, self.k, made))

            return answering

        return altered(c, self.operation, self.role or "*", wrong)


@dataclass
class MadeChange:
    """A change, and whether it changed anything so far."""

    change: Change
    applies: bool = False

    def __call__(self, r: Array) -> Array:
        wrong = np.ascontiguousarray(self.change.apply(r))
        self.applies = self.applies or not np.array_equal(wrong, r)
        return wrong


def _with(inputs: Sequence[Array | None], k: int, made: MadeChange) -> tuple[Array | None, ...]:
    return tuple(made(r) if j == k and r is not None else r for j, r in enumerate(inputs))


@dataclass
class Tally:
    """What came of the mutants of one architecture under one method."""

    architecture: str
    method: str
    planted: int = 0
    caught: int = 0
    in_float32: int = 0
    """Of these, mutants that are off by more than an adapter in float32 may be."""
    equal: int = 0
    """Mutants that make no difference."""
    survivors: list[tuple[Place, Change]] = field(default_factory=list)
    seconds: float = 0.0


# -- one architecture under one method -------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One input of an architecture, its forward pass, and the right relevance of the input."""

    case: ModelCase
    forward: RecordedForward
    expected: Relevance

    @classmethod
    def of(cls, case: ModelCase, model: Model) -> Input:
        where = case.position
        output = ExplainedOutput(case.item, case.target, position=where, decoder=case.decoder_ids)
        forward = RecordedForward(model, output)
        return cls(case, forward, _of_input(case, forward, METHODS[case.method]))

    def moved(self, wrong: Relevance) -> bool:
        return any(
            bool(np.max(np.abs(wrong[site] - r)) > NEAR * np.max(np.abs(r)))
            for site, r in self.expected.items()
        )


def _of_input(case: ModelCase, forward: RecordedForward, c: Composite) -> Relevance:
    found = forward.relevance(c)
    return {site: found[site] for site in case.input_sites if site in found}


def places(inputs: Sequence[Input]) -> list[Place]:
    """Every operation of the net, by role, with each of its operands."""
    found = {
        Place(record.operation, record.role, k)
        for i in inputs
        for record in i.forward.trace.records
        for k in range(len(record.operands))
    }
    return sorted(found)


def tally(architecture: str, method: str, every: int = 1) -> Tally:
    """Plants all of them, or every so many. Raises ReflError where refl's own relevance is not the
    expected one: nothing would be said of mistakes.
    """
    start, t = time.monotonic(), Tally(architecture, method)
    cases = model_vectors.load(architecture, [method])
    model = load(cases[0].folder, dtype="float64")
    inputs = [Input.of(case, model) for case in cases]
    if any(model_vectors.check(i.case, i.expected) for i in inputs):
        raise ReflError(f"without a mistake {architecture} under {method} is not as expected")
    planted = [(place, change) for place in places(inputs) for change in CHANGES]
    for place, change in planted[::every]:
        _plant(t, inputs, place, change)
    t.seconds = time.monotonic() - start
    return t


@np.errstate(all="ignore")
def _plant(t: Tally, inputs: Sequence[Input], place: Place, change: Change) -> None:
    made = MadeChange(change)
    composite = place.composite(METHODS[t.method], made)
    wrong = [(i, _of_input(i.case, i.forward, composite)) for i in inputs]
    seen, seen_in_float32 = (
        any(model_vectors.check(i.case, r, dtype) for i, r in wrong)
        for dtype in ("float64", "float32")
    )
    moved = any(i.moved(r) for i, r in wrong)
    t.planted += made.applies
    t.caught += seen
    t.in_float32 += seen_in_float32
    t.equal += made.applies and not (seen or moved)
    if moved and not seen:
        t.survivors.append((place, change))


def tallies(architecture: str, method: str) -> Iterator[Tally]:
    """Of the architectures and methods that two patterns name."""
    for name in model_vectors.architectures():
        if fnmatchcase(name, architecture):
            for held in dict.fromkeys(case.method for case in model_vectors.load(name)):
                if fnmatchcase(held, method):
                    yield tally(name, held)


# -- what is printed -------------------------------------------------------------------------------

COLUMNS = ("model", "method", "planted", "caught", "in float32", "no difference", "survivors")


def cells(t: Tally) -> tuple[str, ...]:
    numbers = (t.planted, t.caught, t.in_float32, t.equal, len(t.survivors))
    return (t.architecture, t.method, *map(str, numbers))


def line(t: Tally) -> str:
    return (
        f"{t.architecture:12} {t.method:17} {t.planted:5} planted {t.caught:5} caught "
        f"({t.in_float32} in float32) {t.equal:4} no difference {len(t.survivors):3} survivors  "
        f"{t.seconds:.0f} s"
    )


def markdown(found: Sequence[Tally], made_by: str) -> str:
    planted, caught, in_float32, equal, survivors = (
        sum(map(int, column)) for column in list(zip(*map(cells, found), strict=True))[2:]
    )
    head = (
        "# Structural mistakes in whole models\n\n"
        f"Written by `{made_by}` on {date.today().isoformat()} (refl {__version__}, numpy "
        f"{np.__version__}).\n\n"
        "Each is planted in one operation's rule, and only the relevance of the input is held "
        "against the model vectors, in float64.\n\n"
        f"{planted} mutants: {caught} caught ({in_float32} of them with all that an adapter in "
        f"float32 may be off), {equal} that make no difference, {survivors} survivors.\n\n"
    )
    return head + table(COLUMNS, map(cells, found)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where a mutant survives."""
    parser = argparse.ArgumentParser(description="Structural mistakes in whole models.")
    parser.add_argument("--architecture", default="*", metavar="PATTERN")
    parser.add_argument("--method", default="*", metavar="PATTERN")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    options = parser.parse_args(arguments)
    found = []
    for t in tallies(options.architecture, options.method):
        found.append(t)
        print(line(t), flush=True)
        for place, change in t.survivors:
            print(f"    {change.says}: what {place.operation} ({place.role}) gives {place.k}")
    if not found:
        parser.error("there are no vectors of that model under that method")
    if options.markdown:
        made_by = command(MODULE, arguments, options.markdown)
        atomic_write(options.markdown, markdown(found, made_by).encode())
    return 1 if any(t.survivors for t in found) else 0


if __name__ == "__main__":
    sys.exit(main())
