"""Structural mistakes: an axis averaged, heads or examples mixed, a transpose that shows only where
nothing is square, a factor, a sign, operands swapped, a part of the relevance dropped.

Each is a change of one array on its way through a rule that is right: of an operand, of the
relevance that comes in, of an answer, or of what a part of the rule (reference_rules.py) gives. So
the same changes can be made to every rule. quality/structural_mutants.py plants all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.array_changes import (
    AlongAxis,
    first_for_all,
    last_for_all,
    over,
    picked,
    summed_up,
    without_first,
    without_last,
    zeroed,
)
from refl.verification.conformance.planting import (
    Answering,
    changed,
    planted,
    reference_answer,
)
from refl.verification.conformance.reference_rules import GREATEST, Answer, ReferenceRules, wide
from refl.verification.vectors.case import Case

ChangeOfArray: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True)
class Change:
    """One way in which an array can go wrong.
    An array to which it does not apply (it lacks the axis) stays as it is.
    """

    id: str
    """Of the mistake in the catalogue."""
    says: str
    apply: ChangeOfArray
    rearranges: bool = False
    """No number is computed: it can be done to truth values, too."""
    axes: tuple[int, ...] = ()
    """Along which it is done; none for a change of the whole."""

    def on(self, ndim: int) -> tuple[str, tuple[int, ...]] | None:
        """The same for changes that are one on arrays of this rank, where axis -1 is one of those
        counted from the front; None where it does not apply.
        """
        if not all(-ndim <= axis < ndim for axis in self.axes):
            return None
        kind = self.says.rstrip("-0123456789 and") if self.axes else self.says
        return kind, tuple(sorted(axis % ndim for axis in self.axes))


# -- changes along one axis ------------------------------------------------------------------------


def _dealt(groups: int) -> Callable[[int], Any]:
    """1 2 1 2 in place of 1 1 2 2."""
    return lambda n: np.arange(n).reshape(groups, -1).T.ravel() if n % groups == 0 else np.arange(n)


ALONG: Mapping[str, tuple[str, AlongAxis, bool]] = {
    "averaged over": ("axis-mixed", over(np.mean), False),
    "summed over": ("axis-mixed", over(np.sum), False),
    "at its largest over": ("axis-mixed", over(np.max), False),
    "summed up along": ("axis-mixed", summed_up, False),
    "reversed along": ("axis-permuted", picked(lambda n: range(n)[::-1]), True),
    "rolled along": ("axis-permuted", picked(lambda n: np.roll(range(n), 1)), True),
    "with the first two swapped along": (
        "axis-permuted",
        picked(lambda n: [1, 0, *range(2, n)]),
        True,
    ),
    "dealt out by twos along": ("axis-permuted", picked(_dealt(2)), True),
    "dealt out by threes along": ("axis-permuted", picked(_dealt(3)), True),
    "sorted along": ("axis-permuted", lambda a, axis: np.sort(a, axis), False),
    "the first for all along": ("one-slice-for-all", first_for_all, True),
    "the last for all along": ("one-slice-for-all", last_for_all, True),
    "without the first along": ("slice-dropped", without_first, False),
    "without the last along": ("slice-dropped", without_last, False),
    "the first alone along": ("slice-dropped", zeroed(lambda n: range(1, n)), False),
    "the last alone along": ("slice-dropped", zeroed(lambda n: range(n - 1)), False),
}
"""What is done along an axis -> mistake, how, and whether it only rearranges."""

LONG = (16, 64, 128, 256, 512)
"""A row may be worked through in chunks of these."""


def along(axis: int) -> Iterator[Change]:
    """Everything that is done along an axis of more than one entry."""
    for name, (id, change, rearranges) in ALONG.items():
        apply = _where_it_is(axis, change)
        yield Change(id, f"{name} axis {axis}", apply, rearranges, (axis,))


def cut(axis: int) -> Iterator[Change]:
    """Nothing beyond a chunk."""
    for most in LONG:
        said = f"cut off after {most} along axis {axis}"
        apply = _where_it_is(axis, zeroed(partial(_beyond, most)))
        yield Change("long-rows-cut", said, apply, False, (axis,))


def _beyond(most: int, length: int) -> range:
    return range(most, length)


def _where_it_is(axis: int, change: AlongAxis) -> ChangeOfArray:
    def apply(a: Array) -> Array:
        there = -a.ndim <= axis < a.ndim and a.shape[axis] > 1
        return change(a, axis) if there else a

    return apply


# -- changes of two axes, and of the whole ---------------------------------------------------------


def transposed(i: int, j: int) -> Iterator[Change]:
    """Two axes exchanged, where they are of one length and where they are not."""

    def square(a: Array) -> Array:
        return a.swapaxes(i, j) if there(a, i, j) and a.shape[i] == a.shape[j] else a

    def laid_out_again(a: Array) -> Array:
        """Read as if its axes stood the other way around."""
        return a.reshape(a.swapaxes(i, j).shape).swapaxes(i, j) if there(a, i, j) else a

    said = f"where square transposed in {i} and {j}"
    yield Change("axes-transposed", said, square, True, (i, j))
    said = f"reshaped over {i} and {j}"
    yield Change("axes-transposed", said, laid_out_again, True, (i, j))


def there(a: Array, *axes: int) -> bool:
    return all(-a.ndim <= axis < a.ndim for axis in axes) and len({x % a.ndim for x in axes}) > 1


def _scaled(factor: float) -> ChangeOfArray:
    return lambda a: factor * a


def _without_small(least: Callable[[Array], Any]) -> ChangeOfArray:
    return lambda a: np.where(np.abs(a) < least(a), 0.0, a)


FACTORS = (2.0, 0.5, 4.0, 0.25, 3.0, 1 / 3, 1.5, 2 / 3)

FACTOR = tuple(Change("constant-factor", f"times {c:.4g}", _scaled(c)) for c in FACTORS)
SLIGHT = Change("constant-factor", "times 1.001", _scaled(1.001))
SIGN = Change("sign-flipped", "with the other sign", _scaled(-1.0))
NOTHING = Change("nothing-passed", "as zero", _scaled(0.0))
CLAMPED = (
    Change("relevance-clamped", "without what is negative", lambda a: np.maximum(a, 0.0)),
    Change("relevance-clamped", "in absolute value", np.abs),
)
SMALL = (
    Change("small-dropped", "without what is below 1e-10", _without_small(lambda a: 1e-10)),
    Change(
        "small-dropped",
        "without what is below 1e-6 of the largest",
        _without_small(lambda a: 1e-6 * np.max(np.abs(a), initial=0.0)),
    ),
)
CLIPPED = tuple(
    Change("values-clipped", f"clipped at {most:g}", partial(np.clip, a_min=-most, a_max=most))
    for most in (4.0, 10.0, 30.0, 88.0)
)
MIRRORED = Change(
    "axis-permuted", "read backward as a whole", lambda a: a.ravel()[::-1].reshape(a.shape), True
)
COLUMNS_FIRST = Change(
    "axes-transposed",
    "read columns first",
    lambda a: a.ravel(order="F").reshape(a.shape),
    True,
)


def changes(axes: Sequence[int]) -> Iterator[Change]:
    """All of them, for an array that has these axes."""
    for axis in axes:
        yield from along(axis)
    for i, j in combinations(axes, 2):
        yield from transposed(i, j)
    yield from (*FACTOR[:2], SLIGHT, SIGN, NOTHING, *CLAMPED, MIRRORED, COLUMNS_FIRST)


# -- where a change is made ------------------------------------------------------------------------


def applied(change: Change, a: Any) -> Any:
    """To an array of numbers, and to one of truth values where nothing is computed."""
    usable = isinstance(a, np.ndarray) and a.ndim > 0
    return change.apply(a) if usable and (a.dtype.kind == "f" or change.rearranges) else a


def in_answer(names: Sequence[str], change: Change) -> Answering:
    """Of the answers that are named (members of a list as name.0); of all where none is."""

    def form(case: Case) -> Answer:
        return tuple(
            applied(change, got) if not names or name in names else got
            for name, got in zip(case.returns, reference_answer(case), strict=True)
        )

    return form


def in_input(name: str, change: Change) -> Answering:
    """Of an operand, or of what comes in; `name.k` for a member of a list."""
    name, _, member = name.partition(".")

    def form(case: Case) -> Answer:
        held = wide(case.inputs.get(name))
        if isinstance(held, list):
            new: Any = [
                applied(change, a) if member in ("", str(k)) else a for k, a in enumerate(held)
            ]
        else:
            new = applied(change, held)
        if new is held:
            return reference_answer(case)
        return ReferenceRules(case.dtype).answer(changed(case, {name: new}))

    return form


# -- operands and answers in each other's place ----------------------------------------------------


def operands_swapped(first: str, second: str) -> Answering:
    """Where they have one shape."""

    def form(case: Case) -> Answer:
        a, b = case.inputs.get(first), case.inputs.get(second)
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape != b.shape:
            return reference_answer(case)
        return ReferenceRules(case.dtype).answer(changed(case, {first: b, second: a}))

    return form


def list_reversed(case: Case) -> Answer:
    """The operands of a list the other way around, where they have one shape."""
    held = case.inputs.get("operands", [])
    if len({a.shape for a in held}) != 1:
        return reference_answer(case)
    return ReferenceRules(case.dtype).answer(changed(case, {"operands": held[::-1]}))


def answers_mixed(mix: Callable[[list[Array]], list[Array]]) -> Answering:
    """Of those answers that have one shape."""

    def form(case: Case) -> Answer:
        right = reference_answer(case)
        given = [a for a in right if a is not None]
        if len({a.shape for a in given}) > 1 or len(given) < 2:
            return right
        left = iter(mix(given))
        return tuple(None if a is None else next(left) for a in right)

    return form


def _mean_for_all(answers: list[Array]) -> list[Array]:
    return [np.asarray(sum(answers) / len(answers))] * len(answers)


MIXED_ANSWERS: tuple[tuple[str, str, Callable[[list[Array]], list[Array]]], ...] = (
    ("answers the other way around", "operands-swapped", lambda held: held[::-1]),
    ("answers rolled", "operands-swapped", lambda held: [*held[1:], held[0]]),
    ("the first answer for all", "one-operand-right", lambda held: [held[0]] * len(held)),
    ("the last answer for all", "one-operand-right", lambda held: [held[-1]] * len(held)),
    ("the mean of the answers for all", "one-operand-right", _mean_for_all),
)


# -- a broadcast operand, and exponentials ---------------------------------------------------------


def _copies(take: Callable[[Array, tuple[int, ...]], Array]) -> Callable[..., Array]:
    """In place of the sum over the copies of a broadcast operand."""

    def folded(self: ReferenceRules, r: Array, like: Array) -> Array:
        lead = tuple(range(r.ndim - like.ndim))
        r = take(r, lead) if lead else r
        axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and r.shape[i] != 1)
        return (take(r, axes) if axes else r).reshape(like.shape)

    return folded


def _copy(place: int) -> Callable[[Array, tuple[int, ...]], Array]:
    return lambda r, axes: r[tuple(place if i in axes else slice(None) for i in range(r.ndim))]


COPIES: Mapping[str, Callable[..., Array]] = {
    "the first copy of a broadcast operand": _copies(_copy(0)),
    "the last copy of a broadcast operand": _copies(_copy(-1)),
    "the mean over the copies of a broadcast operand": _copies(lambda r, axes: r.mean(axes)),
}


def _shifted_by(top: Callable[[Array], Array | float]) -> Callable[..., Array]:
    """A softmax whose exponents are logits less `top`, in the format of the case."""

    def probabilities(self: ReferenceRules, filled: Array, axis: int) -> Array:
        e = np.exp((filled - top(filled)).astype(self.dtype))
        total = e.sum(axis, keepdims=True)
        return np.asarray(e / np.where(total == 0, 1.0, total), dtype=np.float64)

    return probabilities


def _largest(filled: Array) -> float:
    finite = filled[np.isfinite(filled)]
    return float(np.max(finite)) if finite.size else 0.0


EXPONENTIALS: Mapping[str, Callable[..., Array]] = {
    "softmax without its maximum taken off": _shifted_by(lambda filled: 0.0),
    "softmax with one maximum for all": _shifted_by(_largest),
}
"""Names -> what stands in for the probabilities."""


def gate_overflows(case: Case) -> Answer:
    """exp(x) / (1 + exp(x)): infinity over infinity where exp(x) leaves the format."""
    x = wide(case.inputs["x"]) if case.rule.startswith("activation") else None
    if x is None or case.options["kind"] in ("gelu", "relu", "relu2"):
        return reference_answer(case)
    beyond = np.log(GREATEST[case.dtype]) / EXPONENTS.get(case.options["kind"], 1.0)
    return tuple(
        None if a is None else np.where(x > beyond, np.nan, a) for a in reference_answer(case)
    )


EXPONENTS = {"quick_gelu": 1.702, "tanh": 2.0}
"""Kind of activation -> what x is multiplied with before exp."""


# -- what a diagnosis looks for --------------------------------------------------------------------

AXES = (0, 1, 2, -1, -2, -3)
"""From the front, and from the back: in which rules ranks vary."""


@dataclass(frozen=True)
class AtAnswer:
    """A change of the k-th answer; of all where k is None."""

    k: int | None
    change: Change

    def __call__(self, case: Case) -> Answer:
        return tuple(
            applied(self.change, a) if self.k in (None, j) and name != "z" else a
            for j, (name, a) in enumerate(zip(case.returns, reference_answer(case), strict=True))
        )


@dataclass(frozen=True)
class AtInput:
    """A change of the k-th operand (of a list, of the k-th in it); of what comes in where k is
    -1.
    """

    k: int
    change: Change

    def __call__(self, case: Case) -> Answer:
        name = self.name(case)
        return in_input(name, self.change)(case) if name else reference_answer(case)

    def name(self, case: Case) -> str:
        """Of what is changed; empty where there is no such operand."""
        names = [case.seed, *case.signature.operands]
        if "operands" in names and self.k >= 0:
            return f"operands.{self.k}" if self.k < len(case.inputs["operands"]) else ""
        return names[self.k + 1] if self.k + 1 < len(names) else ""

    def on(self, case: Case) -> Any:
        """The same for forms that are one on this case; None where it does not apply."""
        name, _, member = self.name(case).partition(".")
        held = case.inputs.get(name)
        a = held[int(member)] if member and isinstance(held, list) else held
        kind = self.change.on(a.ndim) if isinstance(a, np.ndarray) else None
        return None if kind is None else (self.k, kind)


def unchanged(case: Case) -> Answer:
    """What comes in, to every operand that has its shape."""
    incoming = wide(case.inputs[case.seed])
    return tuple(
        incoming if a is not None and a.shape == incoming.shape else a
        for a in reference_answer(case)
    )


def arrangements() -> Iterator[Change]:
    """Of axes, alone and in pairs."""
    for axis in AXES:
        yield from along(axis)
    for i, j in ((0, 1), (0, 2), (1, 2), (-1, -2), (-2, -3), (-1, -3)):
        yield from transposed(i, j)
    yield from (MIRRORED, COLUMNS_FIRST)


ANSWERS = (None, 0, 1, 2)
INPUTS = (-1, 0, 1, 2)


@dataclass(frozen=True)
class Candidate:
    """A structural mistake in its forms."""

    id: str
    near: tuple[Answering, ...]
    """Of the answer: what they give is seen from the right answer, without the rule."""
    far: tuple[Answering, ...] = ()
    """Of what goes in: looked for where no other mistake explains a case."""
    rules: str = "*"


def _candidates() -> Iterator[Candidate]:
    scaled = [AtAnswer(k, c) for c in (*FACTOR, SLIGHT) for k in ANSWERS]
    yield Candidate("constant-factor", tuple(scaled))
    yield Candidate("sign-flipped", tuple(AtAnswer(k, SIGN) for k in ANSWERS))
    yield Candidate("nothing-passed", (AtAnswer(None, NOTHING),))
    yield Candidate("passed-unchanged", (unchanged,))
    yield _swaps()
    mixed = [answers_mixed(mix) for _, id, mix in MIXED_ANSWERS if id == "one-operand-right"]
    lost = [AtAnswer(k, NOTHING) for k in ANSWERS[1:]]
    yield Candidate("one-operand-right", (*mixed, *lost))
    for id in ("axes-transposed", "axis-permuted", "one-slice-for-all", "axis-mixed"):
        yield _arranged(id)
    copies = tuple(planted(folded=part) for part in COPIES.values())
    yield Candidate("not-summed-back", copies, rules="add_* sum_* multiply_*")
    yield _arranged("slice-dropped")
    yield Candidate("small-dropped", tuple(AtAnswer(None, c) for c in SMALL))
    yield Candidate("values-clipped", (), tuple(AtInput(0, c) for c in CLIPPED))
    long = [*cut(-1), *cut(-2)]
    near = tuple(AtAnswer(None, c) for c in long)
    yield Candidate("long-rows-cut", near, tuple(AtInput(k, c) for k in (-1, 0) for c in long))
    softmaxes = (planted(probabilities=part) for part in EXPONENTIALS.values())
    rules = "softmax_* attention_* activation_*"
    yield Candidate("exp-overflow", (*softmaxes, gate_overflows), rules=rules)


def _swaps() -> Candidate:
    answers = [answers_mixed(mix) for _, id, mix in MIXED_ANSWERS if id == "operands-swapped"]
    names = ("a", "b"), ("a", "v"), ("q", "k"), ("k", "v"), ("q", "v"), ("w1", "w2"), ("cos", "sin")
    seeds = [(first, r) for first in ("x", "a", "v") for r in ("r", "g")]
    swapped = [operands_swapped(*pair) for pair in (*names, *seeds)]
    return Candidate("operands-swapped", tuple(answers), (*swapped, list_reversed))


def _arranged(id: str) -> Candidate:
    found = [c for c in arrangements() if c.id == id]
    return Candidate(
        id,
        tuple(AtAnswer(k, c) for k in ANSWERS for c in found),
        tuple(AtInput(k, c) for k in INPUTS for c in found),
    )


CANDIDATES: tuple[Candidate, ...] = tuple(_candidates())
"""Those that a diagnosis looks for, in the order in which they are named where two explain as
much."""
