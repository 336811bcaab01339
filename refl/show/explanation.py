"""What `explain()` hands to a user: an explanation that shows itself.

The data, and what can be asked of it, is refl.explanation and refl.ledger, which know nothing of
drawing. Here it meets the ways it is drawn: `print(e)` is the picture, `e.html()` a page, a
notebook shows it in color, and `print(e.ledger)` is a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.errors import LONGEST_REPR, sentence
from refl.explanation import Explanation
from refl.ledger import Ledger
from refl.ranking import Over
from refl.show.figure import compare
from refl.show.notebook import batch_fragment, fragment, ledger_fragment
from refl.show.page import html
from refl.show.ranking import ShownPaths, ShownRanking, ShownSinks
from refl.show.tables import ledger_table
from refl.show.terminal import text


class ShownLedger(Ledger):
    """The conservation ledger; print it for a table."""

    def __str__(self) -> str:
        """The sums, then a row per operation."""
        return ledger_table(self)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return ledger_fragment(self)


class Batch(list[Explanation]):
    """The explanations of a batch, in the order of its inputs: a list that a notebook can show."""

    def __repr__(self) -> str:
        """One line."""
        few = ", ".join(repr(e.target) for e in self[:3]) + (", ..." if len(self) > 3 else "")
        return sentence(f"<Batch of {len(self)} explanations: {few}>", LONGEST_REPR)

    def _repr_html_(self) -> str:
        return batch_fragment(self)


@dataclass(repr=False, eq=False)
class ShownExplanation(Explanation):
    """One explained output; print it for the picture."""

    def __post_init__(self) -> None:
        if self.recorded is not None:
            self.recorded = ShownLedger(**vars(self.recorded))

    def __str__(self) -> str:
        return text(self)

    def top(
        self,
        pattern: str | None = None,
        k: int = 10,
        over: Over = "positions",
        by: str = "neuron",
        sign: str = "both",
    ) -> ShownRanking:
        return ShownRanking(**vars(super().top(pattern, k, over, by, sign)))

    def paths(self) -> ShownPaths:
        return ShownPaths(**vars(super().paths()))

    def sinks(self) -> ShownSinks:
        return ShownSinks(**vars(super().sinks()))

    def html(self) -> str:
        """One self-contained page."""
        return html(self)

    def svg(self) -> str:
        """A picture for a paper (refl/show/figure.py); `refl.show.figure.compare` puts several
        methods below each other. Raises ReflError for relevance that is not finite.
        """
        return compare([self]).svg()

    def pdf(self) -> bytes:
        """The same as PDF. Raises ReflError where matplotlib (the extra `figures`) is missing."""
        return compare([self]).pdf()

    def tex(self) -> str:
        """The same for \\input in LaTeX. Raises ReflError for pictures."""
        return compare([self]).tex()

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return fragment(self)
