"""Copies of inputs, some of whose units are at a baseline, and what a net makes of them.

    zero       the token's embedding is 0 (positions stay); the pixel as the net reads it is 0
    mask, unk, pad, or a token's id
               another token in its place
    delete     the token is left out: what follows moves up. The explained output is then that of
               the last token that is left (a net of the next token), of the mask, of the class; an
               explained position that was given moves with its token, which is never deleted
    mean       the pixel is the mean of its channel over the picture
    blur       the pixel is that of the picture blurred by a Gaussian (at the border the weights
               inside the picture are scaled to 1, so that a plain picture stays as it is)

Copies of several inputs run in the same batches, of like lengths (refl.batching), and no copy is
run twice: a subject keeps what is known of its copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl import arguments
from refl.arrays import Array, namespace
from refl.edits import Edits
from refl.errors import ReflError, argument
from refl.evaluation.subject import Subject
from refl.evaluation.units import Units
from refl.io.images import Image
from refl.ledger import DESTINATIONS
from refl.network import CLASSIFIES, Network, Reading
from refl.question import Question
from refl.seeds import Seed

TOKENS = ("mask", "unk", "pad")
OF_TEXT = ("zero", *TOKENS, "delete")
OF_PICTURES = ("zero", "mean", "blur")


@dataclass(frozen=True)
class Copy:
    """An input with some of its units at the baseline. `gone` bool (count,)."""

    subject: Subject
    units: Units
    gone: Any

    @property
    def away(self) -> Any:  # -> bool (T,), (T + U,) or (H, W)
        """The same of each token or pixel."""
        return self.units.spread(self.gone)


# -- what stands in for a token --------------------------------------------------------------------


def replacement(network: Network, baseline: str | int) -> int:
    """The id that a baseline of TOKENS names, or that it is. Raises ReflError where the vocabulary
    has none.
    """
    if baseline not in TOKENS:
        return network.token_id(arguments.whole("baseline", baseline))
    text = network.text
    found = {
        "mask": network.mask_id,
        "unk": None if text is None else text.unknown,
        "pad": None if text is None else text.padding,
    }[str(baseline)]
    if found is None:
        raise ReflError(
            f"{network.name or 'the model'} has no {baseline} token: give {argument('baseline')} "
            "as a token's id, or take 'zero' or 'delete'"
        )
    return found


def refuse(network: Network, baseline: Any) -> None:
    """Raises ReflError for a baseline that inputs of this net do not have."""
    known = OF_PICTURES if network.takes_images else OF_TEXT
    if isinstance(baseline, str) and baseline in known:
        if baseline in TOKENS:
            replacement(network, baseline)
        return
    if network.takes_images or arguments.as_whole(baseline) is None:
        kind = "a picture" if network.takes_images else "a text"
        raise arguments.expected(
            "baseline",
            f"for {kind} one of {', '.join(known)}"
            + ("" if network.takes_images else ", or a token's id"),
            baseline,
        )
    replacement(network, baseline)


def stays(subject: Subject, baseline: str | int) -> tuple[int, ...]:
    """Numbers of tokens that this baseline cannot replace: one whose output is explained has to be
    there.
    """
    question, reading = subject.question, subject.reading
    if baseline != "delete" or question.network.takes_images:
        return ()
    first = 0 if reading.prefix is None else len(reading.input)
    if question.position is not None:
        return (first + question.position % len(reading.explained),)
    if question.network.task == "features":
        return (first,)
    mask = question.network.mask_id if question.network.task == "masked-token" else None
    return tuple(t for t, i in enumerate(reading.explained) if i == mask)


# -- copies as the net reads them ------------------------------------------------------------------


def _text(copy: Copy, baseline: str | int) -> tuple[Reading, int | None]:
    """The reading of a copy, and the position that is explained in it."""
    reading, position, away = copy.subject.reading, copy.subject.question.position, copy.away
    if baseline == "zero":
        return reading, position
    split = len(reading.input)
    if baseline == "delete":
        return _deleted(reading, position, away[:split], away[split:])
    token = replacement(copy.subject.question.network, baseline)
    prefix = None if reading.prefix is None else _filled(reading.prefix, away[split:], token)
    return replace(
        reading, input=_filled(reading.input, away[:split], token), prefix=prefix
    ), position


def _filled(ids: Sequence[int], away: Any, token: int) -> list[int]:
    return [token if gone else i for i, gone in zip(ids, away, strict=True)]


def _deleted(
    reading: Reading, position: int | None, away: Any, written: Any
) -> tuple[Reading, int | None]:
    """`away` bool (T,), `written` bool (U,)."""
    left = replace(
        reading,
        input=_left(reading.input, away),
        types=None if reading.types is None else _left(reading.types, away),
        prefix=None if reading.prefix is None else _left(reading.prefix, written),
    )
    if not left.input or left.prefix == []:
        raise ReflError(
            "with every token deleted there is no input: this text has no special token that "
            f"stays, take {argument('baseline')} 'zero' or a token"
        )
    if position is None:
        return left, None
    at = position % len(reading.explained)
    before = (away if reading.prefix is None else written)[:at]
    return left, at - int(before.sum())


def _left(ids: Sequence[int], away: Any) -> list[int]:
    return [i for i, gone in zip(ids, away, strict=True) if not gone]


def _pixels(copy: Copy, base: Any) -> Reading:  # base: NumPy (C, H, W)
    image = copy.subject.reading.input
    pixels = np.where(copy.away, base, image.pixels)
    return replace(copy.subject.reading, input=Image(pixels, image.picture))


def base_pixels(pixels: Any, baseline: str | int, sigma: float) -> Any:  # (C, H, W) -> (C, H, W)
    """What a picture is where it is at the baseline."""
    if baseline == "zero":
        return np.zeros_like(pixels)
    if baseline == "mean":
        mean = pixels.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
        return np.broadcast_to(mean, pixels.shape).astype(pixels.dtype)
    height, width = pixels.shape[1:]
    wide = _gaussian(height, sigma) @ pixels.astype(np.float64) @ _gaussian(width, sigma).T
    return wide.astype(pixels.dtype)


def _gaussian(n: int, sigma: float) -> Any:  # -> (n, n), rows sum to 1
    distance = np.subtract.outer(np.arange(n), np.arange(n)) / sigma
    weights = np.exp(-np.square(distance) / 2)
    return weights / weights.sum(axis=1, keepdims=True)


# -- a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """What replaces a unit, and which number is read off."""

    baseline: str | int
    sigma: float = math.nan
    """Of the blur, in pixels."""

    def rows(self, copies: Sequence[Copy]) -> list[Any]:  # -> NumPy (V,) each
        """What is explained, of copies of subjects that one net reads."""
        found: list[Any] = [None] * len(copies)
        for position, members in self._by_position(copies).items():
            question = replace(copies[members[0][0]].subject.question, position=position)
            readings = [reading for _, reading in members]
            for group in question.groups(readings):
                chosen = [copies[members[b][0]] for b in group]
                rows = question.rows(
                    [readings[b] for b in group], further=self._edits(question.network, chosen)
                )
                for b, row in zip(group, rows, strict=True):
                    found[members[b][0]] = row
        return found

    def _by_position(self, copies: Sequence[Copy]) -> dict[int | None, list[tuple[int, Reading]]]:
        """Explained position -> the numbers of copies, and their readings."""
        found: dict[int | None, list[tuple[int, Reading]]] = {}
        bases: dict[int, Any] = {}
        for n, copy in enumerate(copies):
            if copy.subject.question.network.takes_images:
                key = id(copy.subject)
                if key not in bases:
                    pixels = copy.subject.reading.input.pixels
                    bases[key] = base_pixels(pixels, self.baseline, self.sigma)
                found.setdefault(None, []).append((n, _pixels(copy, bases[key])))
            else:
                reading, position = _text(copy, self.baseline)
                found.setdefault(position, []).append((n, reading))
        return found

    def _edits(self, network: Network, copies: Sequence[Copy]) -> Edits:
        """Embeddings that are 0 for the tokens that are away."""
        if self.baseline != "zero" or network.takes_images:
            return {}
        sites = input_sites(network)
        split = [copy.units.read for copy in copies]
        away = [copy.away for copy in copies]
        parts = [[a[:s] for a, s in zip(away, split, strict=True)]]
        parts += [[a[s:] for a, s in zip(away, split, strict=True)]] * (len(sites) > 1)
        return {
            site: _zeroed(network, part)
            for site, part in zip(sites, parts, strict=True)
            if any(map(np.any, part))
        }


def _zeroed(network: Network, away: Sequence[Any]) -> Callable[[Array], Array]:
    """Embeddings (B, T, D) with 0 in the rows that are away; beyond a text there is padding."""
    longest = max(map(len, away))
    padded = np.stack([np.pad(a, (0, longest - len(a))) for a in away])
    mask = network.place(padded[..., None])

    def edit(z: Array) -> Array:
        xp = namespace(z)
        return xp.where(mask, xp.zeros_like(z), z)

    return edit


def input_sites(network: Network) -> list[str]:
    """Sites of the embeddings, or of the pixels: the input's, and a decoder's where there is one."""
    t, _ = network.trace([network.blank()], position=None if network.task in CLASSIFIES else 0)
    return [record.output.site for record in t.records if record.role in DESTINATIONS]


def values(copies: Sequence[Copy], runner: Runner, quantity: str | None = None) -> list[float]:
    """The explained number of each copy; those that are known are not run again."""
    keys = [
        (runner, quantity, c.units.kind, c.units.numbers.tobytes(), c.gone.tobytes())
        for c in copies
    ]
    wanted: dict[tuple[int, Any], Copy] = {}
    for copy, key in zip(copies, keys, strict=True):
        if key not in copy.subject.known:
            wanted.setdefault((id(copy.subject), key), copy)
    for (_, key), row, copy in zip(
        wanted, runner.rows(list(wanted.values())), wanted.values(), strict=True
    ):
        copy.subject.known[key] = explained(copy.subject, quantity).value(row)
    return [copy.subject.known[key] for copy, key in zip(copies, keys, strict=True)]


def explained(subject: Subject, quantity: str | None) -> Seed:
    """The subject's own seed, or another number of the same output."""
    if quantity is None or quantity == subject.seed.kind:
        return subject.seed
    return Seed(quantity, subject.seed.target, subject.seed.against)
