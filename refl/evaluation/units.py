"""What is replaced together: a token, a word, a patch.

    unit     which unit each token (or pixel) belongs to; -1 for one that always stays as it is
    score    of a unit: the sum over its tokens or pixels

Special tokens stay as they are by default: [CLS], [SEP], <s>, padding, the mask whose filling is
explained, and the token a decoder starts from. They say how the text is to be read, not what it
says, and a net that lacks them answers another question. An unknown word (<unk>) is text like any
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl import patches
from refl.arguments import number_or_none
from refl.errors import ReflError, argument, shown
from refl.evaluation.subject import Subject
from refl.network import Network, Reading

KINDS = ("tokens", "words", "patches")


@dataclass(frozen=True)
class Units:
    """Of one input. `numbers` int: (T,) of tokens, those of a decoder behind; (H, W) of pixels."""

    kind: str
    numbers: Any
    count: int
    read: int
    """How many of the tokens are read; the others a decoder has written. 0 for a picture."""

    def sums(self, scores: Any) -> Any:  # in the shape of the numbers -> (count,) float64
        """The score of each unit."""
        inside = self.numbers >= 0
        return np.bincount(self.numbers[inside], weights=scores[inside], minlength=self.count)

    def spread(self, chosen: Any) -> Any:  # bool (..., count) -> bool (..., *numbers.shape)
        """Of each token or pixel whether its unit is chosen; those of no unit never are."""
        none = np.zeros((*chosen.shape[:-1], 1), dtype=bool)
        return np.concatenate([chosen, none], axis=-1)[..., self.numbers]


def of_text(
    subject: Subject, kind: str, special: bool, decoder: bool, stays: Sequence[int]
) -> Units:
    """Tokens or words; `stays`: numbers of further tokens that stay as they are."""
    network, reading = subject.question.network, subject.reading
    parts = [list(reading.input), *([] if reading.prefix is None else [list(reading.prefix)])]
    starts = np.concatenate([_starts(network, ids, kind) for ids in parts])
    ids = np.concatenate(parts)
    kept = np.zeros(len(ids), dtype=bool) if special else _special(network, parts)
    kept[list(stays)] = True
    if not decoder:
        kept[len(parts[0]) :] = True
    return _numbered(kind, starts, kept, len(parts[0]))


def _numbered(kind: str, starts: Any, kept: Any, read: int) -> Units:  # bool (T,) twice
    """Words counted, those left out that are wholly kept."""
    word = np.cumsum(starts) - 1
    used, numbers = np.unique(word[~kept], return_inverse=True)
    found = np.full(len(word), -1)
    found[~kept] = numbers
    return Units(kind, found, len(used), read)


def _starts(network: Network, ids: list[int], kind: str) -> Any:  # -> bool (T,)
    if kind == "tokens":
        return np.ones(len(ids), dtype=bool)
    text = network.text
    if text is None:
        raise ReflError(
            f"{network.name or 'the model'} has no tokenizer.json, so nothing is known of words: "
            f"take {argument('units')} 'tokens'"
        )
    starts, special = np.asarray(text.starts(ids)), _special(network, [ids])
    starts |= special  # those that only the net knows, too
    starts[1:] |= special[:-1]
    starts[0] = True  # a decoder's first is no part of the last word that is read
    return starts


def _special(network: Network, parts: Sequence[list[int]]) -> Any:  # -> bool (T,)
    known = {network.mask_id, *network.eos_ids}
    if network.text is not None:
        known |= network.text.special
    kept = [[i in known for i in ids] for ids in parts]
    if len(parts) > 1:
        kept[1][0] |= parts[1][0] == network.decoder_start_id
    return np.concatenate([np.asarray(k, dtype=bool) for k in kept])


def of_picture(network: Network, reading: Reading, patch: int | None) -> Units:
    """Patches in reading order, by default the model's own; pixels beyond the last whole patch are
    in none.
    """
    height, width = reading.input.pixels.shape[1:]
    h, w = network.config.patch if patch is None else (patch, patch)
    rows, columns = patches.grid((height, width), (h, w))
    if not rows * columns:
        raise ReflError(
            f"{argument('patch')} is {patch}, the picture is {height} x {width}: expected a side "
            "that fits into it"
        )
    y, x = np.arange(height) // h, np.arange(width) // w
    numbers = np.where((y[:, None] < rows) & (x < columns), y[:, None] * columns + x, -1)
    return Units("patches", numbers, rows * columns, 0)


# -- scores ----------------------------------------------------------------------------------------


def checked(what: str, scores: Any) -> Any:  # -> NumPy float64
    """Scores as they come. Raises ReflError for what cannot be put in an order, and for texts, true
    and false, and dates, which NumPy would make numbers of.
    """
    try:
        found = np.asarray(_numbers(scores), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as reason:
        raise ReflError(f"{what} are no array of numbers: {shown(reason)}") from None
    if not np.isfinite(found).all():
        raise ReflError(f"{what} are not all finite, so they have no order: expected numbers")
    return found


def _numbers(scores: Any) -> Any:  # -> NumPy, of numbers
    """Raises TypeError for an array of anything else."""
    found = np.asarray(scores)
    if found.dtype.kind == "O":
        others = set(map(type, map(number_or_none, found.ravel().tolist()))) - {int, float}
    else:  # beside a number NumPy makes 1 of true
        others = set(map(type, _members(scores))) & {bool, np.bool_}
    if complex in others or found.dtype.kind == "c":
        raise TypeError("complex numbers have no order")
    if others:
        raise TypeError(f"one of them is a {min(other.__name__ for other in others)}")
    if found.dtype.kind not in "fiuO":
        raise TypeError(f"their dtype is {found.dtype}")
    return found


def _members(scores: Any) -> Iterator[Any]:
    """What lists hold, those in them too."""
    for one in scores if isinstance(scores, (list, tuple)) else ():
        yield from _members(one) if isinstance(one, (list, tuple)) else (one,)


def text_scores(subject: Subject, scores: Any, decoder_scores: Any, decoder: bool) -> Any:
    """(T,), those of a decoder's tokens behind; 0 for these where they are not asked for."""
    read = _of_length("scores", scores, len(subject.reading.input))
    if subject.reading.prefix is None:
        return read
    written = len(subject.reading.prefix)
    if not decoder:
        return np.concatenate([read, np.zeros(written)])
    if decoder_scores is None:
        raise ReflError(
            "the decoder's tokens are to be perturbed and have no scores: give decoder_scores, or "
            f"leave {argument('decoder')} out"
        )
    return np.concatenate([read, _of_length("decoder_scores", decoder_scores, written)])


def _of_length(what: str, scores: Any, length: int) -> Any:  # -> (T,)
    found = checked(what, scores)
    if found.shape != (length,):
        raise ReflError(
            f"{what} have shape {found.shape}: expected one number for each of the {length} tokens"
        )
    return found


def picture_scores(units: Units, patch: tuple[int, int], scores: Any) -> Any:  # -> (count,)
    """Of each patch, from pixels (H, W) or from patches (rows, columns)."""
    found, size = checked("scores", scores), units.numbers.shape
    rows, columns = patches.grid(size, patch)
    if found.shape == size:
        return units.sums(found)
    if found.shape == (rows, columns):
        return found.reshape(-1)
    raise ReflError(
        f"scores have shape {found.shape}: expected pixels ({size[0]}, {size[1]}) or patches "
        f"({rows}, {columns})"
    )
