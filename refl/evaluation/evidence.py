"""Explanations against evidence that is known: which tokens (or patches) decide, the data says.

With R the scores, E the numbers of the evidence, W those of the evidence in the wide sense (what
supports it too: the thing asked for, a second verb that agrees)

    top_1             1 if the largest score is in E
    IoU               |P & E| / |P | E|, P = {R > 0}
    MRR               1 / place of the first of E in the order of the scores
    PG_k              pointing game: 1 if one of the k largest scores is in E
    relevance_mass    sum of R^+ over E / sum of R^+;  no number where nothing is positive
                      (Arras, Osman, Samek 2022)

and top_1_wide the same of W. Equal scores: their order is drawn by lot, and each number is its mean
over all orders, so that neither the first nor the last in a text has an advantage, and scores that
are all alike have what chance has. Special tokens count like others: a method that points at <s>
has pointed there. Source of MRR on agreement: Ferrando et al. 2023 (ALTI-Logit), table 2; of the
pointing game: Zhang et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments, patches
from refl.errors import ReflError
from refl.evaluation.subject import Judged, Subject
from refl.evaluation.units import checked


@dataclass(frozen=True)
class Evidence:
    """k    how many of the largest scores the pointing game looks at"""

    k: int = 3

    summary: ClassVar[str] = "do the largest scores stand where the evidence is known to be"
    source: ClassVar[str] = "Ferrando et al. 2023; Arras et al. 2022; Zhang et al. 2018"

    def __post_init__(self) -> None:
        arguments.positive("k", self.k)

    @property
    def name(self) -> str:
        return "evidence" if self.k == Evidence.k else f"evidence:k={self.k}"

    @property
    def larger_is_better(self) -> Mapping[str, bool | None]:
        return dict.fromkeys(
            ("top_1", "top_1_wide", "IoU", "MRR", f"PG_{self.k}", "relevance_mass"), True
        )

    def refuse(self, subject: Subject) -> None:
        """Raises ReflError for evidence outside the input."""
        size = _size(subject)
        for number in (*(subject.item.evidence or ()), *_support(subject)):
            if not 0 <= number < size:
                raise ReflError(
                    f"item {subject.item.name} has evidence at {number}, and its input has {size} "
                    f"{'patches' if subject.question.network.takes_images else 'tokens'}: expected "
                    f"0 to {size - 1}"
                )

    def judge(self, subject: Subject, scores: Any, decoder_scores: Any = None) -> Judged:
        """nan where nothing is known of the input."""
        self.refuse(subject)
        r = flat_scores(subject, scores)
        evidence = np.asarray(sorted(set(subject.item.evidence or ())), dtype=np.int64)
        if not len(evidence):
            return Judged(dict.fromkeys(self.larger_is_better, math.nan))
        wide = np.asarray(sorted({*evidence, *_support(subject)}), dtype=np.int64)
        numbers = (
            pointing_game(r, evidence, 1),
            pointing_game(r, wide, 1),
            intersection_over_union(r, evidence),
            reciprocal_rank(r, evidence),
            pointing_game(r, evidence, self.k),
            relevance_mass(r, evidence),
        )
        return Judged(dict(zip(self.larger_is_better, numbers, strict=True)))


def _support(subject: Subject) -> tuple[int, ...]:
    return tuple(subject.item.facts.get("support", ()))


def _size(subject: Subject) -> int:
    network, reading = subject.question.network, subject.reading
    if not network.takes_images:
        return len(reading.input)
    return math.prod(patches.grid(network.config.image, network.config.patch))


def flat_scores(subject: Subject, scores: Any) -> Any:  # -> (T,), or of patches (N,)
    """Raises ReflError for scores of another shape."""
    network, size = subject.question.network, _size(subject)
    found = checked("scores", scores)
    if network.takes_images:
        image, patch = network.config.image, network.config.patch
        if found.shape == image:
            found = patches.sums(found, patch)
        if found.shape == patches.grid(image, patch):
            return found.reshape(-1)
    elif found.shape == (size,):
        return found
    raise ReflError(
        f"scores have shape {found.shape}: expected one for each of the {size} "
        f"{'patches (or pixels)' if network.takes_images else 'tokens'}"
    )


# -- numbers ---------------------------------------------------------------------------------------


def pointing_game(r: Any, evidence: Any, k: int) -> float:  # (N,), int (E,)
    """The chance that one of the k largest is evidence."""
    return 1.0 - _all_after(r, evidence, k)


def _all_after(r: Any, evidence: Any, k: int) -> float:
    """The chance that no evidence is among the first k: of the scores that tie at the k-th place
    some are in by lot.
    """
    k = min(k, len(r))
    least = np.sort(r)[len(r) - k]
    above, ties = r > least, r == least
    if above[evidence].any():
        return 0.0
    places, tied, known = k - int(above.sum()), int(ties.sum()), int(ties[evidence].sum())
    return math.comb(tied - known, places) / math.comb(tied, places)


def reciprocal_rank(r: Any, evidence: Any) -> float:  # (N,), int (E,)
    """Mean of 1 / place of the first evidence: among n equals, m of them evidence, the first of
    these is j-th with the chance C(n - j, m - 1) / C(n, m).
    """
    best = r[evidence].max()
    before, ties = int((r > best).sum()), int((r == best).sum())
    known = int((r[evidence] == best).sum())
    return math.fsum(
        math.comb(ties - j, known - 1) / math.comb(ties, known) / (before + j)
        for j in range(1, ties - known + 2)
    )


def intersection_over_union(r: Any, evidence: Any) -> float:  # (N,), int (E,)
    positive = set(np.flatnonzero(r > 0).tolist())
    known = set(evidence.tolist())
    return len(positive & known) / len(positive | known)


def relevance_mass(r: Any, evidence: Any) -> float:  # (N,), int (E,)
    positive = np.maximum(r, 0)
    whole = float(positive.sum())
    return float(positive[evidence].sum()) / whole if whole else math.nan
