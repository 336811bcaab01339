"""DecompX: what each token brings to the output, forwards through the whole net
(Modarressi et al. 2023, arXiv 2306.02873; its activations f(x) are x (f(x0) / x0) here)

    z_t = sum_i z_t^(i) + z_t^(causes),    R_i = sum_k s_k z_k^(i)

z^(i) is token i alone through the net, with attention weights, norms' scales, gates and the ratios
f(x)/x as they were in the run; biases, positions, learned tokens are parts by themselves. s is the
gradient of what is explained with respect to the outputs z.

Nothing is swept, and the scores are CP-LRP's all the same (`cp-lrp`, Ali et al. 2022): a gate is a
constant there as it is in this file. The paper's own nets have no gated units; that gates are
constant, with CP-LRP, is our choice. A picture's parts are its patches: the pixels of one patch
have equal parts of its score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments, patches
from refl.answer import Found
from refl.ledger import DESTINATIONS, Entry, Ledger
from refl.methods import forwards
from refl.methods.base import Attribution
from refl.methods.forwards import Label, Parts
from refl.question import Forward, Question
from refl.seeds import AnySeed
from refl.trace import Record


@dataclass(frozen=True)
class DecompX(Attribution):
    """together    how many tokens go through the net at once"""

    together: int = 32

    name: ClassVar[str] = "decompx"
    summary: ClassVar[str] = (
        "each token alone through the net, forwards, with attention, norms, gates and activation "
        "ratios as in the run: CP-LRP's relevance without a sweep"
    )
    source: ClassVar[str] = (
        "Modarressi et al. 2023, DecompX: Explaining Transformers Decisions by Propagating Token "
        "Decomposition, ACL, arXiv 2306.02873"
    )
    passes: ClassVar[str] = "1 forward, and one without scores for each token"
    conserved: ClassVar[str] = "all of it: tokens, and biases and positions in the ledger"
    unit: ClassVar[str] = "linearized"
    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        arguments.positive("together", self.together)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        forwards.refuse_recomputing(question, self.name)
        records = forwards.way(forward.trace.records, forward.explained)
        s = seed.gradient(forward.rows[0])
        split = _cells(question, forward)
        brought = dict[Label, float]()
        for labels in self._groups(forward, records, split):
            parts = Parts(tuple(labels), split.cell)
            each = forwards.against(forwards.run(records, parts), s)
            brought |= zip(labels, each.tolist(), strict=True)
        scores = [
            np.asarray([brought[site, n] for n in range(count)], dtype=forward.rows.dtype)
            for site, count in split.counts
        ]
        ledger = self._ledger(forward, seed, brought)
        read, *written = scores
        return Found(split.spread(read), written[0] if written else None, ledger=ledger)

    def _groups(
        self, forward: Forward, records: list[Record], split: _Cells
    ) -> Iterator[list[Label]]:
        """The parts of the input a few at a time, and all others together."""
        labels: list[Label] = [(site, n) for site, count in split.counts for n in range(count)]
        for start in range(0, len(labels), self.together):
            yield labels[start : start + self.together]
        if rest := forwards.causes(records):
            yield list(rest)

    def _ledger(self, forward: Forward, seed: AnySeed, brought: dict[Label, float]) -> Ledger:
        """One entry: the output, and what every part brought to it."""
        z, site = forward.rows[0], forward.explained.site
        explained = float((z.astype(np.float64) * seed.gradient(z)).sum())
        where = next(r.role for r in forward.trace.records if r.role in DESTINATIONS)
        arrived = sum(part for label, part in brought.items() if not isinstance(label, str))
        absorbed = {label: part for label, part in brought.items() if isinstance(label, str)}
        entry = Entry(site, "forward", self.name, explained, {}, {where: arrived} | absorbed)
        ledger = Ledger(explained, float(np.finfo(z.dtype).eps) / 2, [entry])
        lost = seed.unpropagated(z)
        return ledger.absorbing(site, "stabilizer", lost) if lost else ledger


class _Cells:
    """Tokens: a number for each row."""

    def __init__(self, counts: list[tuple[str, int]]) -> None:
        self.counts = counts
        """Site of an input -> how many parts it has."""

    def cell(self, number: int) -> tuple[Any, ...]:
        return number, ...

    def spread(self, scores: Any) -> Any:  # (T,) -> (T,)
        return scores


class _Patches(_Cells):
    """Patches, row by row: pixels (C, H, W) have N of them."""

    def __init__(self, site: str, image: tuple[int, int], patch: tuple[int, int]) -> None:
        self.image, self.patch = image, patch
        rows, self.columns = patches.grid(image, patch)
        super().__init__([(site, rows * self.columns)])

    def cell(self, number: int) -> tuple[Any, ...]:
        (height, width), (i, j) = self.patch, divmod(number, self.columns)
        rows = slice(i * height, (i + 1) * height)
        return slice(None), rows, slice(j * width, (j + 1) * width)

    def spread(self, scores: Any) -> Any:  # (N,) -> (H, W)
        return patches.spread(scores, self.image, self.patch)


def _cells(question: Question, forward: Forward) -> _Cells:
    config = question.network.config
    if question.network.takes_images:
        return _Patches(forward.embedded, config.image, config.patch)
    values = forward.trace.values
    return _Cells([(site, values[site].array.shape[1]) for site in forward.input_sites()])
