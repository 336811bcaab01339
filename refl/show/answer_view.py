"""What every view of an answer's matrix says, whatever it is drawn on: its numbers as they are
printed, the sums behind each row, which add up as printed, and the words around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from refl.answer_matrix import AnswerMatrix
from refl.show.account import DECODER, ENCODER, PROMPT, REST, all_scores, in_percent, unit
from refl.show.colors import level
from refl.show.numbers import adding_up, decimals, strongest
from refl.show.text import one_line, printable, shorten

DIGITS, DIGITS_OF_SUMS = 3, 4
"""Of the strongest cell, and of the largest number beside the rows."""
LONGEST_ANSWER = 120
"""Letters of it above the matrix."""

BEFORE = "the answer so far"
WHOLE = "the whole answer"


@dataclass(frozen=True)
class Cell:
    """A number of the matrix; None where the column's token comes after the row's."""

    value: float | None
    shown: str
    step: int


@dataclass(frozen=True)
class View:
    """A matrix as it is printed."""

    m: AnswerMatrix

    @cached_property
    def most(self) -> float:
        """What is in the strongest color."""
        return strongest(r for e in self.m for r in all_scores(e))

    @cached_property
    def adds_up(self) -> bool:
        """Whether relevance is a part of what is explained: neither a length nor of another
        unit.
        """
        first = self.m[0]
        return first.method.score != "norm" and unit(first) in ("explained", "linearized")

    @cached_property
    def places(self) -> int:
        return decimals(self.most, DIGITS)

    @cached_property
    def places_of_sums(self) -> int:
        numbers = [*self.m.explained.tolist(), *self.m.rest.tolist()]
        return decimals(strongest(numbers), DIGITS_OF_SUMS)

    @cached_property
    def most_of_total(self) -> float:
        """What is in the strongest color of the last row."""
        return strongest(self.m.total.tolist())

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Name of a group of columns -> which they are."""
        names = {"input": PROMPT, "decoder": DECODER, "answer": BEFORE}
        if self.m.decoder_tokens is not None:
            names["input"] = ENCODER
        return {names[part]: columns for part, columns in self.m.parts.items()}

    @cached_property
    def rows(self) -> list[list[Cell]]:
        first = self.m.parts["answer"].start
        return [
            [self._cell(r if j < first + n else None) for j, r in enumerate(row)]
            for n, row in enumerate(self.m.matrix.tolist())
        ]

    def _cell(self, r: float | None) -> Cell:
        if r is None:
            return Cell(None, "", 0)
        sign = "-" if self.m.method.score == "norm" else "+"
        return Cell(r, f"{r:{sign}z.{self.places}f}", level(r, self.most))

    @property
    def beside(self) -> str:
        """Over what stands behind each row."""
        return "sums" if self.adds_up else "the row's token"

    @cached_property
    def names_of_sums(self) -> list[str]:
        """Of what stands behind each row."""
        if not self.adds_up:
            return ["explained", *self._chance()]
        rest = "absorbed" if self.m[0].recorded is not None else REST
        decoder = self.m.decoder_tokens is not None
        on = ["encoder", "decoder", "answer"] if decoder else ["prompt", "answer"]
        return [*on, rest, "explained", *self._chance()]

    def _chance(self) -> list[str]:
        return [] if math.isnan(self.m[0].probability) else ["probability"]

    @cached_property
    def sums(self) -> list[list[str]]:
        """For each row its parts and the whole, which add up as printed."""
        of_parts = zip(*(s.tolist() for s in self.m.sums.values()), strict=True)
        rest, wholes = self.m.rest.tolist(), self.m.explained.tolist()
        return [
            [*self._added([*parts, rest[n]], wholes[n]), *self._percent(self.m[n].probability)]
            for n, parts in enumerate(of_parts)
        ]

    @cached_property
    def total(self) -> list[Cell]:
        """Below the columns; nothing where sums say nothing."""
        return [self._total(r) for r in self.m.total.tolist()] if self.adds_up else []

    def _total(self, r: float) -> Cell:
        return Cell(r, f"{r:+z.{self.places}f}", level(r, self.most_of_total))

    @cached_property
    def total_sums(self) -> list[str]:
        parts = [math.fsum(s) for s in self.m.sums.values()]
        explained = math.fsum(self.m.explained)
        chance = math.prod(self.m.probabilities.tolist())
        return [
            *self._added([*parts, explained - math.fsum(parts)], explained),
            *self._percent(chance),
        ]

    def _added(self, parts: Sequence[float], whole: float) -> list[str]:
        if not self.adds_up:
            return [f"{whole:z.{self.places_of_sums}f}"]
        return adding_up(parts, whole, self.places_of_sums)

    def _percent(self, p: float) -> list[str]:
        said = in_percent(p)
        return [f"{p:.1e}" if said == "0.00%" and p else said] if said else []

    # -- in words ----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        count, answer = len(self.m), shorten(one_line(self.m.answer), LONGEST_ANSWER)
        return printable(f"{answer!r}, {count} token{'s' * (count > 1)}, {self.quantity}")

    @property
    def quantity(self) -> str:
        """What of each token is explained."""
        each = "each" if len(self.m) > 1 else "it"
        plainly = self.m.method.formulation == "attribution" and unit(self.m[0]) != "linearized"
        if self.m.seed == "log-probability" and not plainly:
            return f"the log-probability of {each}, linearized"
        if self.m.seed == "probability" and not plainly:
            return f"softmax-weighted relevance of {each}"
        return f"the {self.m.seed} of {each}"

    @property
    def facts(self) -> str:
        p = math.fsum(self.m.log_probabilities)
        if math.isnan(p):
            return ""
        return f"The model gives it the log-probability {p:.4f}, {math.exp(p):.3g}"

    @property
    def reading(self) -> str:
        """How the matrix is read."""
        said = "A row for each token of the answer, a column for each token before it"
        if not self.adds_up:
            return f"{said}; all rows are in one scale of colors"
        return (
            f"{said}: what that adds to it. Rows add up to what is explained of them, and are in "
            "one scale of colors; the last row is the sums of the columns, in a scale of its own"
        )

    @property
    def extremes(self) -> tuple[str, str]:
        """What the ends of the scale say."""
        most = f"{self.most:.{self.places}f}"
        if self.m.method.score == "norm":
            return "0", f"{most}: how much the row's token depends on it"
        if unit(self.m[0]) == "own":
            return f"-{most}: below 0", f"+{most}: above 0"
        return f"-{most}: against the row's token", f"+{most}: for it"
