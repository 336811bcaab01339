"""Every structural mutant of a rule.

What structural.py can do to an array is done to each operand, to what comes in, to each answer and
to what each part of the rule gives; and some of it under a condition alone (at rank 3, with three
heads, where x > 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias
from unittest import mock

import numpy as np

from refl.arrays import Array
from refl.verification.conformance import reference_rules
from refl.verification.conformance.planting import Answering, changed, planted, reference_answer
from refl.verification.conformance.reference_rules import Answer, ReferenceRules
from refl.verification.conformance.structural import (
    CLIPPED,
    COPIES,
    EXPONENTIALS,
    FACTOR,
    MIXED_ANSWERS,
    SMALL,
    Change,
    along,
    answers_mixed,
    applied,
    changes,
    cut,
    gate_overflows,
    in_answer,
    in_input,
    list_reversed,
    operands_swapped,
    there,
    transposed,
)
from refl.verification.vectors.case import Case


@dataclass(frozen=True)
class Mutant:
    """A rule with a structural mistake."""

    id: str
    """Of the mistake in the catalogue; empty where it is none of them."""
    says: str
    form: Answering


# -- parts of rules --------------------------------------------------------------------------------


def in_part(name: str, member: int, change: Change) -> Answering:
    """Of what a method of ReferenceRules gives, or a function beside it."""

    def wrong(part: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands, **options: within(part(*operands, **options), member, change)

    return replaced_part(name, wrong)


def replaced_part(
    name: str, wrong: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Answering:
    """A part made wrong: wrong(the right one)."""
    if hasattr(ReferenceRules, name):
        return planted(**{name: wrong(getattr(ReferenceRules, name))})

    def form(case: Case) -> Answer:
        part = getattr(reference_rules, name)
        with mock.patch.object(reference_rules, name, wrong(part)):
            return ReferenceRules(case.dtype).answer(case)

    return form


def within(value: Any, member: int, change: Change) -> Any:
    if isinstance(value, (tuple, list)):
        kept = [applied(change, a) if k == member else a for k, a in enumerate(value)]
        return type(value)(kept)
    return applied(change, value)


FUNCTIONS = (
    "centered",
    "_mean_square",
    "summed",
    "contributions",
    "summed_messages",
    "patches_of",
    "_image",
    "plus_part",
    "minus_part",
    "_others",
    "_sigmoid",
    "_bell",
    "activation",
    "identity_factor",
    "derivative",
)
"""The pieces of reference_rules.py that are no methods."""

Ranks: TypeAlias = Mapping[tuple[str, int], set[int]]
"""(part, member of what it gives) -> the ranks in which that is met."""


def parts(cases: Sequence[Case]) -> Ranks:
    """The parts that a rule is made of, seen by running it."""
    seen: dict[tuple[str, int], set[int]] = {}
    rule = cases[0].rule

    def watched(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def listening(*operands: Any, **options: Any) -> Any:
            found = part(*operands, **options)
            for k, a in enumerate(found if isinstance(found, (tuple, list)) else [found]):
                if isinstance(a, np.ndarray) and a.ndim:
                    seen.setdefault((name, k), set()).add(a.ndim)
            return found

        return listening

    names = [
        n for n in vars(ReferenceRules) if not n.startswith("__") and n not in ("answer", rule)
    ]
    methods = {n: watched(n, getattr(ReferenceRules, n)) for n in names}
    functions = {n: watched(n, getattr(reference_rules, n)) for n in FUNCTIONS}
    with mock.patch.dict(vars(reference_rules), functions):
        for case in cases:
            planted(**methods)(case)
    return seen


def conjugated(name: str, i: int, j: int) -> Answering:
    """A part that works along another axis than it should."""

    def wrong(part: Callable[..., Any]) -> Callable[..., Any]:
        def along_another(*operands: Any, **options: Any) -> Any:
            swapped = [_swapped(a, i, j) for a in operands]
            return _swapped(part(*swapped, **options), i, j)

        return along_another

    return replaced_part(name, wrong)


def _swapped(a: Any, i: int, j: int) -> Any:
    usable = isinstance(a, np.ndarray) and there(a, i, j)
    return a.swapaxes(i, j) if usable else a


ALONG_AN_AXIS = ("centered", "_mean_square", "variance", "std", "total", "rotated")


def with_axis(name: str, axis: Any) -> Answering:
    """A sum or a softmax over another axis than was asked for (None: over everything)."""

    def wrong(part: Callable[..., Any]) -> Callable[..., Any]:
        def over_another(self: Any, a: Array, asked: int) -> Array:
            usable = axis is None or -a.ndim <= axis < a.ndim
            return np.asarray(part(self, a, axis if usable else asked))

        return over_another

    return replaced_part(name, wrong)


def _averaged(self: Any, r: Array, axis: int) -> Array:
    return r.mean(axis, keepdims=True)


def _difference_of_squares(self: ReferenceRules, x: Array) -> Array:
    """The mean of x^2 less the square of the mean, in the format of the case."""
    x = x.astype(self.dtype)
    return np.asarray((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2, dtype=float)


CANCELING: dict[str, tuple[str, str, Answering]] = {
    "the variance as a difference of squares": (
        "variance",
        "",
        planted(variance=_difference_of_squares),
    ),
}
"""What cancels: right to a few digits, or to none. The slope of tanh as 1 - tanh^2, that of a gate
as p (1 - p), gelu's gate as (1 + erf) / 2 and 1 - p in a softmax cancel as well, but are within
what the condition of their definition allows.
"""


WRITTEN: dict[str, tuple[str, str, Answering]] = {
    "the sum averaged": ("sum_along", "axis-mixed", planted(sum_along=_averaged)),
    "a gate of exp(x) / (1 + exp(x))": ("_sigmoid", "exp-overflow", gate_overflows),
    **{
        said: ("probabilities", "exp-overflow", planted(probabilities=part))
        for said, part in EXPONENTIALS.items()
    },
    **{said: ("folded", "not-summed-back", planted(folded=part)) for said, part in COPIES.items()},
}
"""Name -> the part that it needs, mistake, form."""


# -- conditions ------------------------------------------------------------------------------------

Condition: TypeAlias = Callable[[Case], bool]


def operands(case: Case) -> list[Array]:
    """Its arrays, those in lists one by one, what comes in last."""
    found: list[Array] = []
    for a in case.arguments:
        found += [a] if isinstance(a, np.ndarray) else a if isinstance(a, list) else []
    return [a for a in found if isinstance(a, np.ndarray)]


def size_of(operand: int, axis: int, at_least: int) -> Condition:
    def met(case: Case) -> bool:
        held = operands(case)
        a: Array = held[operand] if operand < len(held) else np.zeros(())
        return bool(-a.ndim <= axis < a.ndim and a.shape[axis] >= at_least)

    return met


def shape_conditions(cases: Sequence[Case]) -> Iterator[tuple[str, Condition]]:
    """Ranks, lengths of axes, what is square and what is not."""
    for rank in sorted({operands(case)[0].ndim for case in cases}):
        yield (
            f"at rank {rank}",
            lambda case, rank=rank: operands(case)[0].ndim == rank,  # type: ignore[misc]
        )
    yield "with more than one example", lambda case: len(operands(case)[0]) > 1
    yield "with three examples or more", lambda case: len(operands(case)[0]) > 2
    yield "with one example", lambda case: len(operands(case)[0]) == 1
    for k in range(max(len(operands(case)) for case in cases)):
        for axis in (-1, -2, -3):
            for at_least in (2, 3, 4, 5):
                yield (
                    f"with {at_least} or more along axis {axis} of operand {k}",
                    size_of(k, axis, at_least),
                )
            yield (
                f"with one along axis {axis} of operand {k}",
                lambda case, k=k, axis=axis: (  # type: ignore[misc]
                    size_of(k, axis, 1)(case) and not size_of(k, axis, 2)(case)
                ),
            )
        yield f"where operand {k} is square", _square(k, True)
        yield f"where operand {k} is not square", _square(k, False)
    yield "where operands are broadcast", lambda case: len({a.shape for a in operands(case)}) > 1
    yield "where a list has three or more", lambda case: _count(case) > 2
    yield "where a list has two", lambda case: _count(case) == 2
    yield "without a bias", lambda case: "b" in case.inputs and case.inputs["b"] is None
    yield "with a bias", lambda case: case.inputs.get("b") is not None
    for times in (1, 2, 3):
        yield f"with {times} query heads to a key head", _group(times)


def _square(k: int, wanted: bool) -> Condition:
    def met(case: Case) -> bool:
        held = operands(case)
        a: Array = held[k] if k < len(held) else np.zeros(())
        lengths = a.shape[-2:]
        return bool(a.ndim > 1 and lengths[-1] > 1 and (len(set(lengths)) == 1) == wanted)

    return met


def _count(case: Case) -> int:
    held = case.inputs.get("operands")
    return len(held) if isinstance(held, list) else 0


def _group(times: int) -> Condition:
    """Of attention, and of the copies of heads."""

    def met(case: Case) -> bool:
        if "times" in case.options:
            return bool(case.options["times"] == times)
        q, k = (case.inputs.get(name) for name in ("q", "k"))
        return q is not None and k is not None and bool(q.shape[1] == times * k.shape[1])

    return met


VALUES: Mapping[str, Callable[[Array], Array]] = {
    "where x > 4": lambda x: x > 4,
    "where x < -4": lambda x: x < -4,
    "where x > 9": lambda x: x > 9,
    "where x < -9": lambda x: x < -9,
    "where x > 20": lambda x: x > 20,
    "where x < -20": lambda x: x < -20,
    "where x < 0": lambda x: x < 0,
    "where x > 0": lambda x: x > 0,
}


def value_conditions() -> Iterator[tuple[str, Condition]]:
    """Of the first operand, and of what comes in."""
    for name, holds in VALUES.items():
        yield (
            name.replace("x", "an x"),
            lambda case, holds=holds: any(  # type: ignore[misc]
                bool(np.any(holds(a))) for a in operands(case)[:-1]
            ),
        )
    yield "where R < 0", lambda case: any(bool(np.any(a < 0)) for a in operands(case)[-1:])
    yield (
        "where two entries of x are equal",
        lambda case: len(np.unique(operands(case)[0])) < operands(case)[0].size,
    )


def under(condition: Condition, form: Answering) -> Answering:
    """Wrong where the condition is met, and right elsewhere."""
    return lambda case: form(case) if condition(case) else reference_answer(case)


# -- every mutant of a rule ------------------------------------------------------------------------


def mutants(cases: Sequence[Case]) -> Iterator[Mutant]:
    """Of a rule, seen by cases of it in which every rank occurs."""
    yield from _of_answers(cases)
    yield from _of_inputs(cases)
    yield from _of_parts(cases)
    yield from _of_options(cases)
    yield from _swapped_arrays(cases)
    yield from _under_conditions(cases)


def axes(ranks: set[int]) -> list[int]:
    """Of arrays of these ranks: from the front where there is one rank; else from both ends."""
    if len(ranks) == 1:
        return list(range(max(ranks)))
    return [*range(min(max(ranks), 3)), *range(-1, -min(max(ranks), 3) - 1, -1)]


def _of_answers(cases: Sequence[Case]) -> Iterator[Mutant]:
    ranks: dict[str, set[int]] = {}
    for case in cases:
        for name, a in zip(case.returns, reference_answer(case), strict=True):
            if a is not None:
                ranks.setdefault(name, set()).add(a.ndim)
    for name, held in ranks.items():
        yield from (
            Mutant(c.id, f"R of {name} {c.says}", in_answer([name], c))
            for c in (*changes(axes(held)), *SMALL, *cut(-1), *cut(-2))
        )


def _of_inputs(cases: Sequence[Case]) -> Iterator[Mutant]:
    ranks: dict[str, set[int]] = {}
    for case in cases:
        for name, held in case.inputs.items():
            members = enumerate(held) if isinstance(held, list) else [("", held)]
            for k, a in members:
                if isinstance(a, np.ndarray) and a.ndim:
                    ranks.setdefault(f"{name}.{k}".rstrip("."), set()).add(a.ndim)
    for name, found in ranks.items():
        if is_read(name, cases):
            clipped = CLIPPED if name not in PARAMETERS else ()
            for c in (*changes(axes(found)), *clipped, *SMALL, *cut(-1), *cut(-2)):
                yield Mutant(c.id, f"{name} {c.says}", in_input(name, c))


PARAMETERS = ("w", "b", "w1", "w2", "cos", "sin")


def is_read(name: str, cases: Sequence[Case]) -> bool:
    """Whether any answer is another where other numbers stand in an operand."""
    other = Change("", "", lambda a: np.where(np.isfinite(a), 1.5 * a + 0.25, 0.5))
    with np.errstate(all="ignore"):
        return any(_differ(in_input(name, other)(case), reference_answer(case)) for case in cases)


def _differ(first: Answer, second: Answer) -> bool:
    return any(
        a is not None and b is not None and not np.array_equal(a, b, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _of_parts(cases: Sequence[Case]) -> Iterator[Mutant]:
    found = parts(cases)
    for (name, k), ranks in found.items():
        said = f"{name}()" if (name, 1) not in found else f"{name}()[{k}]"
        for c in (*changes(axes(ranks)), *cut(-1), *cut(-2)):
            yield Mutant(c.id, f"{said} {c.says}", in_part(name, k, c))
    names = {name for name, _ in found}
    for name in names & set(ALONG_AN_AXIS):
        for i, j in ((-1, -2), (-1, -3), (-1, 0), (-1, 1)):
            yield Mutant("axis-mixed", f"{name} along {j} in place of {i}", conjugated(name, i, j))
    for name in names & {"sum_along", "probabilities"}:
        for axis in (0, 1, -2, -3, *((None,) if name == "sum_along" else ())):
            said = "everything" if axis is None else f"axis {axis}"
            yield Mutant("axis-mixed", f"{name} over {said}", with_axis(name, axis))
    for said, (part, id, form) in (WRITTEN | CANCELING).items():
        if part in names:
            yield Mutant(id, said, form)


def _of_options(cases: Sequence[Case]) -> Iterator[Mutant]:
    """An option that every call must say, not read: always at one of its values, or at twice."""
    for name in cases[0].signature.required:
        values = list(dict.fromkeys(case.options[name] for case in cases if _plain(case, name)))
        for value in values if name not in ("times", "k") else ():
            yield Mutant("", f"{name} always {value}", with_option(name, partial(_always, value)))
        if values and not isinstance(values[0], str):
            twice = with_option(name, lambda asked: 2 * asked)
            yield Mutant("", f"{name} twice what is asked", twice)


def mutants_of_options(cases: Sequence[Case]) -> Iterator[Mutant]:
    """Of options that need not be said: not read, read for one example, head or row alone, turned
    around.
    """
    for name in dict.fromkeys(n for case in cases for n in _said(case)):
        default = cases[0].signature.options[name]
        yield Mutant("", f"{name} not read", with_option(name, partial(_always, default)))
        values = list(dict.fromkeys(case.options[name] for case in cases if _plain(case, name)))
        for value in values:
            yield Mutant("", f"{name} always {value}", with_option(name, partial(_always, value)))
        held = [np.asarray(c.options[name]) for c in cases if not _plain(c, name)]
        ranks = {a.ndim for a in held if a.ndim}
        for c in _of_array_options(ranks) if ranks else ():
            if c.rearranges or held[-1].dtype.kind == "f":
                yield Mutant(c.id, f"{name} {c.says}", with_option(name, partial(_rearranged, c)))


def _of_array_options(ranks: set[int]) -> Iterator[Change]:
    for axis in axes(ranks):
        yield from (c for c in along(axis) if not c.says.startswith("dealt"))
    yield from (*transposed(-1, -2), *OF_MASKS)


def _said(case: Case) -> list[str]:
    options = case.signature.options
    return [n for n in case.options if not case.at_default(n) and n in options]


def _rearranged(change: Change, asked: Any) -> Any:
    if asked is None:
        return None
    new = applied(change, np.asarray(asked))
    return new if isinstance(asked, np.ndarray) else new.tolist()


def _any_along(axis: int) -> Callable[[Array], Array]:
    def apply(a: Array) -> Array:
        there = -a.ndim <= axis < a.ndim
        return np.broadcast_to(a.any(axis, keepdims=True), a.shape).copy() if there else a

    return apply


def _all_along(axis: int) -> Callable[[Array], Array]:
    def apply(a: Array) -> Array:
        there = -a.ndim <= axis < a.ndim
        return np.broadcast_to(a.all(axis, keepdims=True), a.shape).copy() if there else a

    return apply


OF_MASKS = (
    *(Change("", f"true where any is along {k}", _any_along(k), True) for k in range(4)),
    *(Change("", f"true where all are along {k}", _all_along(k), True) for k in range(4)),
    Change("", "inverted", lambda a: ~a if a.dtype == bool else 1 - a, True),
)
"""What only truth values suffer."""


def _always(value: Any, asked: Any) -> Any:
    return value


def _plain(case: Case, name: str) -> bool:
    return isinstance(case.options.get(name), (int, float, str))


def with_option(name: str, change: Callable[[Any], Any]) -> Answering:
    def form(case: Case) -> Answer:
        if name not in case.options:
            return reference_answer(case)
        return ReferenceRules(case.dtype).answer(changed(case, {name: change(case.options[name])}))

    return form


def _swapped_arrays(cases: Sequence[Case]) -> Iterator[Mutant]:
    """Operands, or answers, in each other's place; one right and the other not."""
    names = list(dict.fromkeys(n for case in cases for n in case.signature.operands))
    for first, second in combinations([*names, cases[0].seed], 2):
        said = f"{first} and {second} swapped"
        yield Mutant("operands-swapped", said, operands_swapped(first, second))
    if max(len(case.returns) for case in cases) > 1:
        for said, id, mix in MIXED_ANSWERS:
            yield Mutant(id, said, answers_mixed(mix))
    if "operands" in names:
        yield Mutant("operands-swapped", "operands the other way around", list_reversed)


def _under_conditions(cases: Sequence[Case]) -> Iterator[Mutant]:
    double = in_answer([], FACTOR[0])
    for said, condition in (*shape_conditions(cases), *value_conditions()):
        if any(condition(case) for case in cases) and not all(condition(case) for case in cases):
            yield Mutant("constant-factor", f"R times 2 {said}", under(condition, double))
