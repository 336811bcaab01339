"""What may be explained beside one output by its number, of the outputs z of several tokens, or of
features.

    Span(s, e)       start_s + end_e: an answer that starts at token s and ends at token e, both
                     counted from 0; one of the two logits alone where the other is None
    Coordinate(n)    z_n, of the features z of a token, or of their mean over the tokens of the text
    Cosine(v)        z.v / (|z| |v|): how the features of a token, or their mean, point to a vector

Each makes the seed (refl.seeds) that a sweep starts from, and says in words what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.errors import ReflError, argument
from refl.seeds import AnySeed, Cosine, Part, Seed, Sum, softmax

# -- answers ---------------------------------------------------------------------------------------

ENDS = ("start", "end")
"""Columns of the logits of answers."""


@dataclass(frozen=True)
class Span:
    """An answer, by its first and its last token; or one of the two."""

    start: int | None
    end: int | None

    mean: ClassVar[bool] = False

    @property
    def tokens(self) -> list[int]:
        """Those whose logits are explained."""
        return [t for t in (self.start, self.end) if t is not None]

    def seed(self, kind: str, z: Any, rows: int, tokens: int) -> AnySeed:  # z: (rows 2,)
        """Over the logits of a text of so many tokens, which may be padded to more rows. Raises
        ReflError for tokens that it does not have, and for the probability of both.
        """
        for t in self.tokens:
            if t >= tokens:
                raise ReflError(
                    f"{argument('target')} names token {t} as {self._named(t)} of the answer, and "
                    f"the text has {tokens} tokens: expected 0 to {tokens - 1}"
                )
        if kind == "probability" and len(self.tokens) > 1:
            raise ReflError(
                f"the {argument('seed')} 'probability' is that of one choice, and an answer is "
                "two, a start and an end: take 'log-probability', whose sum is the logarithm of "
                "both together, or explain ('start', N) or ('end', N)"
            )
        parts = (
            Part(slice(column, 2 * tokens, 2), Seed(kind, t))
            for column, t in enumerate((self.start, self.end))
            if t is not None
        )
        return Sum(tuple(parts), of=self)

    def _named(self, token: int) -> str:
        return "the start" if token == self.start else "the end"

    def number(self, tokens: int) -> int:
        """A number of its own among the answers of a text: s tokens + e; of a start or an end
        alone its token.
        """
        if self.start is None or self.end is None:
            return self.tokens[0]
        return self.start * tokens + self.end

    def value(self, z: Any, tokens: int) -> tuple[float, float]:  # z: (rows 2,), NumPy
        """The logit, start and end together; and the probability, by a softmax over starts, and
        one over ends.
        """
        logit, p = 0.0, 1.0
        for column, t in enumerate((self.start, self.end)):
            if t is not None:
                ends = z[column : 2 * tokens : 2]
                logit, p = logit + float(ends[t]), p * float(softmax(ends)[t])
        return logit, p

    def what(self, kind: str, name: str) -> str:
        """In words; `name`: the text of its tokens."""
        if self.start is None or self.end is None:
            end = "start" if self.end is None else "end"
            return f"{end} {kind} of {name!r} (token {self.tokens[0]})"
        where = f"tokens {self.start} to {self.end}"
        if self.start == self.end:
            where = f"token {self.start}"
        return f"start {kind} + end {kind} of {name!r} ({where})"


def span(target: Any) -> Span | None:
    """(17, 21): both; ("start", 17) or ("end", 21): one; None for what is none of these. Raises
    ReflError for an answer that ends before it starts.
    """
    if isinstance(target, Span):
        return target
    pair = arguments.members(target)
    if pair is None or len(pair) != 2:
        return None
    if isinstance(pair[0], str) and pair[0] in ENDS:
        token = arguments.as_whole(pair[1])
        if token is None or token < 0:
            return None
        return Span(token, None) if pair[0] == "start" else Span(None, token)
    start, end = map(arguments.as_whole, pair)
    if start is None or end is None or start < 0 or end < 0:
        return None
    if end < start:
        raise ReflError(
            f"{argument('target')} is an answer from token {start} to token {end}: expected one "
            "that does not end before it starts"
        )
    return Span(start, end)


SPANS = (
    "an answer as (17, 21), its first and its last token, counted from 0, ('start', 17) or "
    "('end', 21) for one of the two logits"
)
"""What a target can be, for messages."""


def best_spans(
    start: Any, end: Any, inside: Sequence[bool], most: int
) -> list[Span]:  # (T,), (T,), (T,)
    """The answers of the largest start_s + end_e with s <= e, both of them tokens that are `inside`
    what an answer may be of; of equal ones the first. Exact: an answer from s is among the best
    only if its end is among the best ends from s on.
    """
    found: list[tuple[float, int, int]] = []
    ends: list[int] = []
    for s in reversed([t for t, here in enumerate(inside) if here]):
        ends = sorted([s, *ends], key=lambda e: (-float(end[e]), e))[:most]
        found += [(-(float(start[s]) + float(end[e])), s, e) for e in ends]
        found = sorted(found)[:most]
    return [Span(s, e) for _, s, e in found]


# -- features --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coordinate:
    """One of the features."""

    number: int
    mean: bool = False

    kind: ClassVar[str] = "coordinate"

    def seed(self, kind: str, z: Any, rows: int, tokens: int) -> AnySeed:  # z: (rows D,)
        """Of features of one row, or of the mean over the first `tokens` rows."""
        width = len(z) // rows
        if self.number >= width:
            raise ReflError(
                f"coordinate {self.number} is asked for, and the features are {width}: expected 0 "
                f"to {width - 1}"
            )
        count, one = tokens if self.mean else 1, Seed("logit", self.number)
        parts = (Part(slice(t * width, (t + 1) * width), one, 1 / count) for t in range(count))
        return Sum(tuple(parts), of=self)

    @property
    def name(self) -> str:
        return f"coordinate {self.number}"


@dataclass(frozen=True, eq=False)
class Toward:
    """A direction that features may point to, (D,) float64."""

    vector: Any
    mean: bool = False

    kind: ClassVar[str] = "cosine"

    def seed(self, kind: str, z: Any, rows: int, tokens: int) -> AnySeed:  # z: (rows D,)
        """Of features of one row, or of the mean over the first `tokens` rows."""
        width = len(z) // rows
        if len(self.vector) != width:
            raise ReflError(
                f"the vector of a cosine has {len(self.vector)} entries, and the features are "
                f"{width}: expected as many"
            )
        return Cosine(self.vector, tokens if self.mean else 1, of=self)

    @property
    def name(self) -> str:
        return "cosine"


Feature = Coordinate | Toward
Special = Span | Coordinate | Toward
"""A target that is no output by its number."""


def coordinate(number: int, mean: bool = False) -> Coordinate:
    """One of the features of a checkpoint without a head, as a target: of the first token (or that
    at `position`), or with `mean` of the mean over all tokens. Raises ReflError for what is no
    whole number from 0 on.
    """
    return Coordinate(arguments.count("number", number), arguments.flag("mean", mean))


def cosine(vector: Any, mean: bool = False) -> Toward:
    """How the features of a checkpoint without a head point to a vector, as a target:

        cos = z.v / (|z| |v|)

    of the first token (or that at `position`), or with `mean` of the mean over all tokens of the
    text, which is a sentence's embedding in sentence-transformers. Tables of rules hold |z|
    constant, as they hold the norms of the net: relevance starts as z_i v_i / (|z| |v|), which adds
    up to the cosine. Where the rules are derivatives (input-x-gradient), and in methods without
    rules, the derivative is that of the cosine, |z| included; along z itself it is 0.

    Raises ReflError for a vector that is no sequence of finite numbers, or is 0; where it is asked
    for, for the mean beside an attention mask that hides some of the tokens.
    """
    mean, found = arguments.flag("mean", mean), _numbers(vector)
    if found is None or found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise arguments.expected("vector", "a sequence of finite numbers", vector)
    if not found.any():
        raise ReflError("the vector of a cosine is 0: it points nowhere; expected another")
    found.flags.writeable = False
    return Toward(found, mean)


def _numbers(vector: Any) -> Any:
    """As float64 NumPy, a copy; None for what holds no numbers."""
    try:
        found = np.array(arguments.members(vector))
        return found.astype(np.float64) if found.dtype.kind in "iuf" else None
    except (TypeError, ValueError, OverflowError):
        return None


def numbered(task: str, number: int) -> int | Special:
    """The target of this number: of answers the logits of all tokens lie behind each other, start
    and end of the first, start and end of the second, and so on; of features it is a coordinate.
    """
    if task == "answer-span":
        token, end = divmod(number, 2)
        return Span(None, token) if end else Span(token, None)
    return Coordinate(number) if task == "features" else number
