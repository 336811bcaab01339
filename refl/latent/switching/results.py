"""What switching neurons does to answers, as numbers over inputs: means, intervals, paired
differences, and the table of them (refl.latent.switching says what the numbers are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from refl.evaluation.statistics import Difference, best, fewest, interval, paired, summary
from refl.latent.switching.pool import Mean
from refl.show.lines import Line, Span, grid, paragraph, plain
from refl.show.text import printable

LEVEL = 0.95
"""Of the intervals."""

NUMBERS = ("flips", "change")

HEAD = ("k", "ranking", "flips", f"{LEVEL:.0%}", "beside", "change", f"{LEVEL:.0%}", "beside")
"""Of the table."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Switching:
    """What was found.

    flips, change    ranking -> NumPy (inputs, ks): of each input, `random` among the rankings
    beside           the same of the random neurons beside each ranking: number -> ranking -> array
    before           f of each input, (inputs,)
    left_out         why -> how many inputs
    often            ranking -> the neurons that are most often among the first few of an input, and
                     of what fraction of the inputs they are
    """

    model: str
    by: tuple[str, ...]
    k: tuple[int, ...]
    to: str
    rank: str
    draws: int
    seed: int
    inputs: tuple[str, ...]
    before: Any
    flips: Mapping[str, Any]
    change: Mapping[str, Any]
    beside: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, int]
    ranked_on: int
    neurons: int
    """Of the whole net."""
    often: Mapping[str, list[tuple[str, float]]]
    how: str
    """What `other` was, in words; empty for off."""
    known: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Switching: {self.model}, {len(self.inputs)} inputs, {self.to}, by "
            f"{', '.join(self.rankings)}, k = {', '.join(map(str, self.k))}>"
        )

    @property
    def rankings(self) -> list[str]:
        """Random neurons of the whole net last."""
        return list(self.flips)

    def column(self, number: str, ranking: str, k: int, beside: bool = False) -> Any:  # -> (n,)
        """Flips, or change, of each input; `beside`: of the random neurons beside a ranking."""
        numbers = self.beside[number] if beside else getattr(self, number)
        return numbers[ranking][:, self.k.index(k)]

    def mean(self, number: str, ranking: str, k: int, beside: bool = False) -> Mean:
        """Over the inputs."""

        def make() -> Mean:
            values = self.column(number, ranking, k, beside)
            return Mean(summary(values).mean, *interval(values, LEVEL))

        return self._once((number, ranking, k, beside), make)

    def has_beside(self, ranking: str) -> bool:
        """Whether random neurons stand beside a ranking: not beside random ones."""
        return ranking in self.beside["flips"]

    def less_beside(self, number: str, ranking: str, k: int) -> Difference:
        """A ranking less the random neurons beside it, paired by inputs."""
        columns = [self.column(number, ranking, k, beside) for beside in (False, True)]
        return self._once(
            (number, ranking, k, "less"), lambda: paired(columns[0], columns[1], LEVEL)
        )

    def less(self, number: str, a: str, b: str, k: int) -> Difference:
        """One ranking less another, paired by inputs."""
        columns = [self.column(number, one, k) for one in (a, b)]
        return self._once((number, a, k, b), lambda: paired(columns[0], columns[1], LEVEL))

    def best(self, number: str, k: int) -> tuple[str | None, bool]:
        """The ranking of most flips, or of the largest loss, and whether paired intervals say that
        it is better than every other.
        """
        columns = {one: self.column(number, one, k) for one in self.rankings}
        return self._once((number, k, "best"), lambda: best(columns, number == "flips"))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.known:
            self.known[key] = make()
        found: T = self.known[key]
        return found

    # -- for a terminal ----------------------------------------------------------------------------

    def __str__(self) -> str:
        return plain(self.lines())

    def lines(self, width: int = 100) -> list[Line]:
        """What was done, and a row for each k and ranking."""
        rows = [self._cells(k, one) for k in self.k for one in self.rankings]
        head: list[Span] = [(name, "dim") for name in HEAD]
        return [
            [(printable(self.model), "bold")],
            *paragraph(self.said, width, "", ""),
            [],
            *grid([head, *rows], "rlrrrrrr"),
            [],
            *self._often(width),
            [],
            *paragraph(self.note, width, "dim", ""),
        ]

    @property
    def said(self) -> str:
        """What was done."""
        how = "switched off" if self.to == "off" else f"turned to {self.how}"
        ranked = "each input ranked by itself"
        if self.rank == "corpus":
            ranked = f"one ranking, by the mean over {self.ranked_on} other inputs"
        left = "".join(f", {n} left out ({why})" for why, n in self.left_out.items() if n)
        return f"{len(self.inputs)} inputs{left}; {self.neurons} neurons, {how}; {ranked}"

    @property
    def note(self) -> str:
        """How the table is read."""
        note = (
            "flips: inputs whose answer is no more what it was; change: of the logit of the answer "
            f"less that of the foil, {self.before.mean():.2f} before. Means over inputs and "
            f"{LEVEL:.0%} intervals (BCa bootstrap over inputs)."
        )
        if self.draws:
            note += (
                f" beside: {self.draws} draws of as many random neurons of the same MLPs, none of "
                "those chosen; * where the interval of the paired difference from them excludes 0, "
                "above or below, ** where those from every other ranking say that it is the best "
                f"(both of {fewest(LEVEL)} inputs or more). random: of the whole net."
            )
        return note

    def _often(self, width: int) -> list[Line]:
        return [line for one in self.told for line in paragraph(one, width, "", "")]

    @property
    def told(self) -> list[str]:
        """Of each ranking its first neurons by name."""
        found = []
        for ranking, neurons in self.often.items():
            if self.rank == "corpus":
                each = ", ".join(name for name, _ in neurons)
                found.append(f"{ranking}, the first {len(neurons)}: {each}")
                continue
            each = ", ".join(f"{name} {fraction:.0%}" for name, fraction in neurons)
            found.append(f"{ranking}, most often among the first {len(neurons)}: {each}")
        return found

    def _cells(self, k: int, ranking: str) -> list[Span]:
        flips, change = (self.mean(number, ranking, k) for number in NUMBERS)
        beside = ["", ""]
        if self.has_beside(ranking):
            own = [self.mean(number, ranking, k, True).mean for number in NUMBERS]
            beside = [f"{own[0]:.1%}", f"{own[1]:+z.2f}"]
        stars = [self._stars(number, ranking, k) for number in NUMBERS]
        cells = [
            *(str(k), ranking),
            *(f"{flips.mean:.1%}{stars[0]}", _between(flips, ".1%"), beside[0]),
            *(f"{change.mean:+z.2f}{stars[1]}", _between(change, "+z.2f"), beside[1]),
        ]
        styles = [
            "",
            "dim" if ranking == "random" else "cyan",
            "bold",
            "",
            "dim",
            "bold",
            "",
            "dim",
        ]
        return list(zip(cells, styles, strict=True))

    def _stars(self, number: str, ranking: str, k: int) -> str:
        """Of two columns: better than every other, apart from the random ones beside it."""
        if not self.has_beside(ranking):
            return "  "
        if self.best(number, k) == (ranking, True):
            return "**"
        less = self.less_beside(number, ranking, k)
        return "* " if less.excludes_0 and less.count >= fewest(LEVEL) else "  "

    # -- for a file --------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """For a file: the protocol, means and intervals, differences, and every input's numbers."""
        protocol = ("model", "by", "k", "to", "rank", "draws", "seed", "ranked_on", "neurons")
        return {
            **{name: _plain(getattr(self, name)) for name in protocol},
            "other": self.how,
            "level": LEVEL,
            "inputs": list(self.inputs),
            "left_out": dict(self.left_out),
            "before": self.before.tolist(),
            "often": {by: [list(one) for one in each] for by, each in self.often.items()},
            "rows": [self._row(one, k) for k in self.k for one in self.rankings],
            "differences": [
                {"number": number, "k": k, "of": a, "less": b, **vars(self.less(number, a, b, k))}
                for number in NUMBERS
                for k in self.k
                for n, a in enumerate(self.rankings)
                for b in self.rankings[n + 1 :]
            ],
            "per_input": {n: {r: a.tolist() for r, a in getattr(self, n).items()} for n in NUMBERS},
        }

    def _row(self, ranking: str, k: int) -> dict[str, Any]:
        row: dict[str, Any] = {"ranking": ranking, "k": k}
        for number in NUMBERS:
            row[number] = vars(self.mean(number, ranking, k))
            if self.has_beside(ranking):
                row[f"{number}_beside"] = vars(self.mean(number, ranking, k, True))
                row[f"{number}_less_beside"] = vars(self.less_beside(number, ranking, k))
        return row


def _between(m: Mean, form: str) -> str:
    """Its interval; of one input there is none."""
    return "-" if math.isnan(m.low) else f"{m.low:{form}} to {m.high:{form}}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
