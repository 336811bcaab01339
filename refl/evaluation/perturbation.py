"""Perturbation curves: what becomes of the explained number as the input is replaced bit by bit
(Samek et al. 2017; Bluecher et al. 2024; AttnLRP, Achtibat et al. 2024, appendix B.2, its slips
repaired)

    states   k = 0 ... N: the first k units in an order are replaced by a baseline (flip), or
             brought back into an input that is all baseline (insert)
    order    MoRF: most relevant first, of equal scores the first in the text; LeRF: its exact
             reverse
    A        = 1/(N + 1) sum_k y_k, the mean over the states
    dA_flip  = A_LeRF - A_MoRF           dA_insert = A_MoRF - A_LeRF         larger is better

By their definitions MoRF by flipping and LeRF by inserting run through the same states, one forth
and the other back: A_MoRF,flip = A_LeRF,insert and dA_flip = dA_insert, exactly. So only 2 N states
are run, in batches, each once. (In the paper the two differ: its appendix lets LeRF flipping start
from the baseline, and counts N steps.)

On long inputs units can be replaced in `steps` groups of (nearly) equal size, cut from the order;
LeRF goes through the same groups backward, and N is their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refl import arguments
from refl.errors import ReflError, argument
from refl.evaluation import naming, perturbed, units
from refl.evaluation.perturbed import Runner, State
from refl.evaluation.subject import Case, Judged, Subject
from refl.evaluation.units import Units
from refl.seeds import KINDS

MODES = ("flip", "insert")

PORTION = 1 << 22
"""Units of all states that are formed at once, about; more are judged in portions."""


class _Orders(NamedTuple):
    """The states of one case: bool (2 (S + 1), N), as `states` has them."""

    subject: Subject
    units: Units
    gone: Any


@dataclass(frozen=True)
class Perturbation:
    """mode        flip (from the input to the baseline) or insert (back)
    units       tokens, words or patches; None for tokens of a text, patches of a picture
    baseline    zero, mean, mask, unk, pad, a token, delete; for pictures zero, mean, blur
    quantity    logit, log-probability or probability; None for what is explained
    steps       so many groups of units, at most; None for each unit by itself
    decoder     the tokens that a decoder has written are units too
    special     special tokens are units too (refl.evaluation.units)
    patch       side of a patch in pixels; None for the model's own patches
    """

    mode: str = "flip"
    units: str | None = None
    baseline: str | int = "zero"
    quantity: str | None = None
    steps: int | None = None
    decoder: bool = False
    special: bool = False
    patch: int | None = None

    source: ClassVar[str] = "Achtibat et al. 2024, appendix B.2; Samek et al. 2017"

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        if self.units is not None:
            _one_of("units", self.units, units.KINDS)
        if self.quantity is not None:
            _one_of("quantity", self.quantity, KINDS)
        for name in ("steps", "patch"):
            if getattr(self, name) is not None:
                arguments.positive(name, getattr(self, name))
        for name in ("decoder", "special"):
            arguments.flag(name, getattr(self, name))

    @property
    def name(self) -> str:
        """The mode, and every option that is not the default."""
        said = [
            naming.option(one.name, getattr(self, one.name))
            for one in fields(self)
            if one.name != "mode" and getattr(self, one.name) != one.default
        ]
        return ":".join([self.mode, *said])

    @property
    def summary(self) -> str:
        how = "replaced" if self.mode == "flip" else "brought back"
        what, unit = self.quantity or "explained number", self.units or "tokens (patches)"
        return (
            f"the {what} while {unit} are {how} in the order of their scores, baseline "
            f"{self.baseline}"
        )

    @property
    def axes(self) -> tuple[str, str | None]:
        """Of its curves; None for what is explained."""
        how = "replaced" if self.mode == "flip" else "brought back"
        return f"fraction of the {self.units or 'units'} {how}", self.quantity

    @property
    def larger_is_better(self) -> Mapping[str, bool | None]:
        flips = self.mode == "flip"
        return {
            f"dA_{self.mode}": True,
            f"A_MoRF_{self.mode}": not flips,
            f"A_LeRF_{self.mode}": flips,
        }

    # -- what it is not defined for ----------------------------------------------------------------

    def refuse(self, subject: Subject) -> None:
        """Raises ReflError for a subject that it is not defined for."""
        network = subject.question.network
        perturbed.refuse(network, self.baseline)
        if self.quantity is not None:
            replace(subject.question, kind=self.quantity).refuse([[subject.target]])
        self._refuse_unused(subject)

    def _refuse_unused(self, subject: Subject) -> None:
        """Raises ReflError for an option that says nothing of such an input."""
        pictures = subject.question.network.takes_images
        kind = self.units or ("patches" if pictures else "tokens")
        if (kind == "patches") != pictures:
            what = "a picture, which has patches" if pictures else "a text, which has none"
            raise ReflError(f"{argument('units')} is {kind!r}, and the input is {what}")
        unused = {
            "patch": self.patch is not None and not pictures,
            "special": self.special and pictures,
            "decoder": self.decoder and subject.reading.prefix is None,
        }
        for name, is_unused in unused.items():
            if is_unused:
                raise ReflError(
                    f"{argument(name)} says nothing of this input and baseline: leave it out"
                )

    # -- judging -----------------------------------------------------------------------------------

    def judge(self, subject: Subject, scores: Any, decoder_scores: Any = None) -> Judged:
        """Of one subject. Where nothing can be replaced the numbers are nan."""
        return self.judge_all([Case(subject, scores, decoder_scores)])[0]

    def judge_all(self, cases: Sequence[Case]) -> list[Judged]:
        """Of several methods or subjects, the copies of all in the same batches."""
        found: list[Judged] = []
        portion: list[_Orders] = []
        parted: dict[int, Units] = {}
        for case in cases:
            if id(case.subject) not in parted:
                self.refuse(case.subject)
                parted[id(case.subject)] = self.parts(case.subject)
            portion.append(self._orders(case, parted[id(case.subject)]))
            if sum(orders.gone.size for orders in portion) > PORTION:
                found += self._judge(portion)
                portion = []
        return [*found, *self._judge(portion)] if portion else found

    def _orders(self, case: Case, parts: Units) -> _Orders:
        cut = boundaries(parts.count, self.steps)
        return _Orders(case.subject, parts, states(rank(self.unit_scores(case, parts)), cut))

    def _judge(self, portion: Sequence[_Orders]) -> list[Judged]:
        wanted = [State(one.subject, one.units, gone) for one in portion for gone in one.gone]
        y = np.asarray(Runner(self.baseline, self.quantity).values(wanted))
        ends = np.cumsum([len(one.gone) for one in portion])
        each = np.split(y, ends[:-1])
        return [
            self._judged(one.units.count, values.reshape(2, -1))
            for one, values in zip(portion, each, strict=True)
        ]

    def parts(self, subject: Subject) -> Units:
        """The units of a subject."""
        if subject.question.network.takes_images:
            return units.of_picture(subject.question.network, subject.reading, self.patch)
        kept = perturbed.stays(subject, self.baseline)
        return units.of_text(subject, self.units or "tokens", self.special, self.decoder, kept)

    def unit_scores(self, case: Case, parts: Units) -> Any:  # -> (N,)
        """Scores of a method, summed over each unit."""
        if case.subject.question.network.takes_images:
            size = self._patch(case.subject)
            return units.picture_scores(parts, size, case.scores)
        each = units.text_scores(case.subject, case.scores, case.decoder_scores, self.decoder)
        return parts.sums(each)

    def _judged(self, count: int, y: Any) -> Judged:  # (2, S + 1): first k gone, and all but these
        forth, back = y
        if self.mode == "flip":
            curves = {"MoRF_flip": forth, "LeRF_flip": back[::-1]}
        else:
            curves = {"MoRF_insert": back, "LeRF_insert": forth[::-1]}
        most, least = (float(np.mean(curve)) if count else np.nan for curve in curves.values())
        better = least - most if self.mode == "flip" else most - least
        numbers = zip(self.larger_is_better, (better, most, least), strict=True)
        return Judged(dict(numbers), curves)

    def _patch(self, subject: Subject) -> tuple[int, int]:
        own: tuple[int, int] = subject.question.network.config.patch
        return own if self.patch is None else (self.patch, self.patch)


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise arguments.expected(name, f"one of {', '.join(known)}", value)


# -- order and states ------------------------------------------------------------------------------


def rank(scores: Any) -> Any:  # (N,) -> int (N,)
    """Of each unit its place in MoRF order: 0 for the largest, of equal ones the first."""
    order = np.argsort(-scores, kind="stable")
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def boundaries(count: int, steps: int | None) -> Any:  # -> int (S + 1,)
    """How many units are gone at each state, 0 to all; groups differ in size by one at most."""
    groups = count if steps is None else min(steps, count)
    return np.arange(groups + 1) * count // max(groups, 1)


def states(places: Any, bounds: Any) -> Any:  # (N,), (S + 1,) -> bool (2 (S + 1), N)
    """Which units are gone: the first b_k in MoRF order, for every k; then all but these."""
    first = places < bounds[:, None]
    return np.concatenate([first, ~first])
