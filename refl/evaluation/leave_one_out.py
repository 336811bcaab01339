"""Agreement with leave-one-out: do the scores say what the model does without a token?

    LOO_i = f(x) - f(x without i)

A token is left out by an embedding of zeros (or of the input's mean, or of a token such as the mask
token), or by deletion. Its absence changes the values that others read, and the attention with
which they read; to tell the two apart attention can be held:

    live           as the net computes it without the token
    held           the probabilities of the unchanged input are put in place. For a net that is one
                   value-only attention and a linear head, CP-LRP is this leave-one-out exactly
                   (Ali et al. 2022, arXiv 2202.07304)
    renormalized   the same without the token's column, each row scaled to a sum of 1 again (a row
                   that had nothing else is left at 0)

`by_block` leaves out a token's row of the residual stream at the input of each block: what the
blocks from there on make of it. (You et al. 2025, When LRP Diverges from Leave-One-Out in
Transformers, arXiv 2510.18810, find that CP-LRP agrees with leave-one-out better than AttnLRP,
above all in middle and late layers.)

Judged by Pearson, Spearman and Kendall over the tokens of an input, of the scores as they are and
of their sizes. The patches of a picture are left out by zeros, the mean, a blur or a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np

from refl import anatomy, arguments, patches
from refl.edits import Edit, Edits
from refl.errors import ReflError, argument
from refl.evaluation import naming, units
from refl.evaluation.correlation import CORRELATIONS, agreement
from refl.evaluation.subject import Judged, Subject
from refl.methods import Method, copies
from refl.question import Forward

ATTENTION = ("live", "held", "renormalized")


@dataclass(frozen=True)
class LeaveOneOut:
    """fill        zero, mean, mask, unk, pad, a token, or delete; zero, mean, blur or a number for
                a picture
    attention   live, held or renormalized
    """

    fill: str | int | float = "zero"
    attention: str = "live"

    source: ClassVar[str] = "Ali et al. 2022, arXiv 2202.07304; You et al. 2025, arXiv 2510.18810"

    @property
    def summary(self) -> str:
        return (
            "correlation of the scores with leave-one-out, over an input's tokens, fill "
            f"{self.fill}, attention {self.attention}"
        )

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise arguments.expected("attention", f"one of {', '.join(ATTENTION)}", self.attention)
        if self.attention != "live" and self.fill == "delete":
            raise ReflError(
                f"{argument('fill')} 'delete' leaves no probabilities to put in place: take "
                f"{argument('attention')} 'live', or another fill"
            )

    @property
    def name(self) -> str:
        """With every option that is not the default."""
        said = [
            naming.option(one.name, getattr(self, one.name))
            for one in fields(self)
            if getattr(self, one.name) != one.default
        ]
        return ":".join(["leave-one-out", *said])

    @property
    def larger_is_better(self) -> Mapping[str, bool | None]:
        return dict.fromkeys((f"{c}{end}" for c in CORRELATIONS for end in ("", "_absolute")), True)

    def refuse(self, subject: Subject) -> None:
        """Raises ReflError for a subject that it is not defined for."""
        network = subject.question.network
        one_text = not network.takes_images and subject.reading.prefix is None
        if self.attention == "renormalized" and not one_text:
            raise ReflError(
                f"{network.name or 'the model'} reads more than the tokens of one text, of which "
                f"columns are removed: take {argument('attention')} 'live' or 'held'"
            )

    def judge(self, subject: Subject, scores: Any, decoder_scores: Any = None) -> Judged:
        """Of one subject: the tokens of its input (what a decoder has written stays)."""
        return self._judged(subject, self.effects(subject), scores)

    def judge_all(self, cases: Sequence[Any]) -> list[Judged]:
        """Of many cases (subject, scores): each subject's leave-one-out is computed once."""
        known: dict[int, Any] = {}
        for case in cases:
            if id(case.subject) not in known:
                known[id(case.subject)] = self.effects(case.subject)
        return [self._judged(c.subject, known[id(c.subject)], c.scores) for c in cases]

    def effects(self, subject: Subject) -> Any:  # -> (T,), or (rows, columns) of patches
        """f(x) - f(x without i) for each. Raises ReflError where the fill is none."""
        self.refuse(subject)
        question, reading = subject.question, subject.reading
        forward = question.forward([reading], plain=self.attention != "live")
        some, shape = _copies(subject, forward, self.fill)
        held = _Held(_probabilities(forward), self.attention)
        y = copies.values(question, subject.seed, some, held.edits if held else None)
        return (subject.seed.value(forward.rows[0]) - y).reshape(shape)

    def _judged(self, subject: Subject, effects: Any, scores: Any) -> Judged:
        scores = _of_patches(subject, np.asarray(scores), effects.shape)
        if scores.shape != effects.shape:
            raise ReflError(
                f"scores of shape {scores.shape} for an input of {effects.shape}: expected one for "
                "each token (or patch)"
            )
        return Judged(agreement(scores, effects), {"leave_one_out": effects.ravel()})


# -- copies without a token, or a patch ------------------------------------------------------------


def _copies(
    subject: Subject, forward: Forward, fill: Any
) -> tuple[list[copies.Copy], tuple[int, ...]]:
    question, reading = subject.question, subject.reading
    if fill == "delete":
        count = len(reading.input)
        return [copies.deleted(question, reading, {i}) for i in range(count)], (count,)
    site = forward.embedded
    x, filling = forward.leaf(site)[0], copies.filling(question.network, forward, site, fill)
    where, shape = _places(subject, x)

    def without(i: int) -> copies.Leaves:
        return {site: np.where(where(i), filling, x)}

    some = [copies.Copy(reading, partial(without, i)) for i in range(int(np.prod(shape)))]
    return some, shape


def _places(subject: Subject, x: Any) -> tuple[Any, tuple[int, ...]]:
    """Number of a token or a patch -> a mask of where it is; and how many there are."""
    if not subject.question.network.takes_images:
        count = len(subject.reading.input)
        return lambda i: (np.arange(len(x)) == i)[:, None], (count,)
    network = subject.question.network
    numbers = units.of_picture(network, subject.reading, None).numbers
    return lambda i: numbers == i, patches.grid(x.shape[1:], network.config.patch)


def _of_patches(subject: Subject, scores: Any, shape: tuple[int, ...]) -> Any:
    """The sums over patches of the scores of pixels; any others as they are."""
    if scores.ndim != 2 or scores.shape == shape:
        return scores
    return patches.sums(scores, subject.question.network.config.patch)


# -- attention that is held ------------------------------------------------------------------------


def _probabilities(forward: Forward) -> dict[str, Any]:  # site -> NumPy (H, J, I)
    """Of a plain run of one input."""
    records = [r for r in forward.trace.records if r.role == "attention.probabilities"]
    return {r.output.site: forward.read_from(r.output.site)[0] for r in records}


@dataclass(frozen=True)
class _Held:
    """Probabilities that are put in place of those of each copy."""

    probabilities: Mapping[str, Any]
    attention: str

    def __bool__(self) -> bool:
        return self.attention != "live"

    def edits(self, numbers: Sequence[int]) -> Edits:
        """For the copies of a batch, of which each leaves out the token of its number."""
        if self.attention == "held":
            return {site: _in_place(p[None]) for site, p in self.probabilities.items()}
        return {
            site: _in_place(np.stack([without_column(p, i) for i in numbers]))
            for site, p in self.probabilities.items()
        }


def _in_place(p: Any) -> Edit:
    return Edit(factor=0.0, amount=p)


def without_column(p: Any, i: int) -> Any:  # (..., J, I) -> (..., J, I)
    """Probabilities without key i, rows scaled to a sum of 1; 0 where nothing is left."""
    p = p.copy()
    p[..., i] = 0
    total = p.sum(axis=-1, keepdims=True)
    return np.divide(p, total, out=np.zeros_like(p), where=total > 0)


# -- by block --------------------------------------------------------------------------------------


def by_block(subject: Subject, fill: str = "zero") -> dict[str, Any]:  # path -> (T,)
    """Of each block that reads the input: f(x) - f(x with token i's row of the stream replaced at
    the block's input), by zeros or by the mean of the rows (`fill`). Raises ReflError for any other
    fill.
    """
    if fill not in ("zero", "mean"):
        raise arguments.expected("fill", "'zero' or 'mean', for rows of the stream", fill)
    question, reading = subject.question, subject.reading
    found = {}
    for path in reading_blocks(subject):
        x = _stream(subject, path)
        filling = x.mean(axis=0) if fill == "mean" else np.zeros_like(x[0])
        some = [copies.Copy(reading)] * len(x)
        edits = _Rows(f"{path}.input", len(x), filling).edits
        y = copies.values(question, subject.seed, some, edits)
        found[path] = subject.value - y
    return found


def reading_blocks(subject: Subject) -> list[str]:
    """Paths of the blocks that read the input: all but a decoder's beside an encoder."""
    paths = anatomy.blocks(subject.question.network)
    if subject.reading.prefix is None:
        return paths
    return [path for path in paths if path.partition(".")[0] != "decoder"]


def by_block_agreement(
    subject: Subject, method: Method, fill: str = "zero"
) -> dict[str, dict[str, float]]:  # path -> correlations
    """Of a method's relevance at the input of each block, summed over features, with `by_block`.
    Raises ReflError for a method that keeps no sites.
    """
    effects = by_block(subject, fill)
    keep = [f"{path}.input" for path in effects]
    (e,) = method.explain(subject.question, [subject.reading], [subject.target], keep)
    return {path: agreement(e[f"{path}.input"].sum(axis=-1), y) for path, y in effects.items()}


def _stream(subject: Subject, path: str) -> Any:  # -> NumPy (T, D)
    """What a block reads."""
    question = subject.question
    forward = question.forward([subject.reading])
    return forward.read_from(f"{path}.input")[0]


@dataclass(frozen=True)
class _Rows:
    """Edits that replace a row at a site: that of its number, in each copy of a batch."""

    site: str
    rows: int
    filling: Any

    def edits(self, numbers: Sequence[int]) -> Edits:
        gone = np.equal.outer(np.asarray(numbers), np.arange(self.rows))[..., None]
        factor = np.where(gone, 0.0, 1.0)
        return {self.site: Edit(factor=factor, amount=np.where(gone, self.filling, 0.0))}
