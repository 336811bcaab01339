"""PA-LRP: AttnLRP in which positions keep what arrives at them, and hand it to the tokens that
stand there (Bakish et al. 2025, arXiv 2506.02138):

    R_t = R(E_t) + R(P_t) + sum_l ( |R(cos_l,t)| + |R(sin_l,t)| )

    learned positions    P is an operand of a sum:  R(P_t) = sum_d P_td g_td
    rotary positions     z = x cos + rot(x) sin; each product gives half to x and half to its angle
                         (rules/rotary.py), R(cos_l,t) = sum x cos g / 2 over features, heads, and
                         the queries and keys of block l;  R(sin_l,t) = sum rot(x) sin g / 2

`signed` leaves the absolute values away: then tokens and `position` of the ledger sum to what the
scores sum to. It is swept in gradient x input form (R = x g: AttnLRP's limit eps -> 0, without a
stabilizer that would absorb), so every part above is one product and a sum.

Ours, where the paper is silent or its code has several forms: the code divides each part by its
largest entry, here all are in units of the logit. T5's table of distances is one operand of all
blocks of a stack, for pairs (j, i): half of a pair's relevance goes to the query j and half to the
key i, |.| around a token's sum. A patch's position has no pixels of its own: its pixels have equal
parts of it; what arrives at the position of a class token stays in the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments, patches
from refl.answer import Found
from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.ledger import DESTINATIONS
from refl.methods import forwards
from refl.methods.base import Attribution
from refl.question import Forward, Question
from refl.rules import rotary
from refl.rules.composites import Rule
from refl.rules.published import ATTNLRP_GRADIENT
from refl.seeds import AnySeed
from refl.sweep import Sweep, Swept
from refl.trace import Record

RULES = ATTNLRP_GRADIENT.override(Rule("rotary", "uniform"))


@dataclass(frozen=True)
class PaLrp(Attribution):
    """signed    sums of relevance at angles and distances as they are, not their sizes"""

    signed: bool = False

    name: ClassVar[str] = "pa-lrp"
    summary: ClassVar[str] = (
        "AttnLRP in gradient x input form, with the relevance of positions kept: what arrives at a "
        "token's position, or at its rotary angles, is the token's"
    )
    source: ClassVar[str] = (
        "Bakish et al. 2025, Revisiting LRP: Positional Attribution as the Missing Ingredient for "
        "Transformer Explainability, arXiv 2506.02138"
    )
    passes: ClassVar[str] = "1 forward, 1 sweep (as much as a backward pass)"
    conserved: ClassVar[str] = (
        "all of it: tokens, position and what each rule absorbs, in the ledger; the scores sum to "
        "tokens and position where signed"
    )
    unit: ClassVar[str] = "linearized"
    of_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        arguments.flag("signed", self.signed)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        forwards.refuse_recomputing(question, self.name)
        places = list(_places(forward))
        if not places:
            raise ReflError(
                "method pa-lrp needs positions that are learned, rotary or biases of scores, of "
                f"which {question.network.name or 'the model'} has none: take attnlrp-gradient"
            )
        swept = self._sweep(question, forward, seed, places)
        ledger, found = swept.ledger.example(0), []
        for site in forward.input_sites():
            own = [record for at, record in places if at == site]
            found.append(self._with_positions(question, _relevance(swept, site), swept, own))
        read, *written = found
        return Found(read, written[0] if written else None, ledger=ledger)

    def _sweep(
        self, question: Question, forward: Forward, seed: AnySeed, places: list[tuple[str, Record]]
    ) -> Swept:
        kept = {record.output.site for _, record in places} | set(forward.input_sites())
        z = forward.rows[0]
        sweep = Sweep(RULES, keep=lambda names: not kept.isdisjoint(names))
        swept = question.sweep(forward, sweep, seed.gradient(z)[None])
        if lost := seed.unpropagated(z):
            site = forward.explained.site
            swept.ledger = swept.ledger.absorbing(site, "stabilizer", np.asarray([lost]))
        return swept

    def _with_positions(
        self, question: Question, tokens: Any, swept: Swept, places: list[Record]
    ) -> Any:  # NumPy (T,) -> (T,); of a picture (H, W) -> (H, W)
        total = tokens
        for record in places:
            if record.operation != "rotary":
                position = _relevance(swept, record.output.site)
                if position.ndim == 2:  # of pairs (J, I)
                    position = self._size((position.sum(axis=0) + position.sum(axis=1)) / 2)
                if tokens.ndim == 2:
                    patch = question.network.config.patch
                    position = patches.spread_row(position, tokens.shape, patch)
                total = total + position
        for angles in _of_blocks(swept, places):
            total = total + self._size(angles).sum(axis=0)
        return total

    def _size(self, relevance: Any) -> Any:
        return relevance if self.signed else np.abs(relevance)


def _places(forward: Forward) -> Iterator[tuple[str, Record]]:
    """Where positions come in, each with the site of the input that they are of."""
    site = forward.embedded
    for record in forward.trace.records:
        if record.role in DESTINATIONS:
            site = record.output.site
        if record.role == "position" or record.operation == "rotary":
            yield site, record


def _relevance(swept: Swept, site: str) -> Any:  # -> NumPy (T,), (J, I), (H, W)
    """Of one example, summed over features or channels."""
    x, g = asnumpy(swept.activations[site]), asnumpy(swept.propagated[site])
    if site == "pixel_values":
        return (x * g).sum(axis=1)[0]
    return (x * g).sum(axis=-1)[0]


def _of_blocks(swept: Swept, places: list[Record]) -> Iterator[Any]:  # -> NumPy (2, T) each
    """R(cos) and R(sin) of each block, of queries and keys together."""
    blocks = defaultdict[str, list[Any]](list)
    for record in places:
        if record.operation == "rotary":
            site, (x,), how = record.output.site, record.arrays, record.attributes
            parts = rotary.of_angles(x, swept.propagated[site], **how)
            each = [asnumpy(part).sum(axis=(0, 1, 3)) for part in parts]
            blocks[_block(site)].append(np.stack(each))
    for several in blocks.values():
        yield sum(several)


def _block(site: str) -> str:
    """The attention of a site such as `model.layers.3.self_attn.query.rotated`."""
    return site.rsplit(".", 2)[0]
