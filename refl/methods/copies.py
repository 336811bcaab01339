"""Perturbed copies of one input, run in batches: what is explained, of each      y_n = f(copy n)

A copy is the input with some of its embeddings (or pixels) replaced, or with some of its tokens
deleted. Replaced is what stands at the embedding and nothing else: positions, token types, padding
and the token that a classifier reads stay those of the input, also where the net reads them off the
ids. A deleted token is gone: those behind it move up, and the model reads what is left as it reads
any input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.arrays import asnumpy
from refl.edits import Edits, of_tokens
from refl.errors import ReflError, argument, shown
from refl.ledger import Ledger
from refl.network import GENERATES, Network, Reading
from refl.question import Forward, Question
from refl.rules.published import GRADIENT
from refl.seeds import AnySeed

Leaves = Mapping[str, Any]
"""Site of an input -> what to start from there, NumPy: (T, D) of one example, or (C, H, W)."""


@dataclass(frozen=True)
class Copy:
    """One perturbed copy.

    reading     its tokens, or its picture
    leaves      makes what it starts from in place of its own embeddings, when it is run
    position    the token whose output is explained; None for the question's own
    """

    reading: Reading
    leaves: Callable[[], Leaves] | None = None
    position: int | None = None


Further = Callable[[Sequence[int]], Edits]
"""Numbers of the copies of a batch, in its order -> edits of its run alone."""


def values(
    question: Question, seed: AnySeed, copies: Sequence[Copy], further: Further | None = None
) -> Any:  # -> NumPy (N,) float64
    """`seed.value` of each copy, as many at once as `question.batch_tokens` allows."""
    found = np.empty(len(copies))
    for asked, numbers in batches(question, copies):
        edits = None if further is None else further(numbers)
        some = [copies[n] for n in numbers]
        rows = asked.rows([c.reading for c in some], leaves=stacked(some), further=edits)
        found[numbers] = [seed.value(z) for z in rows]
    return found


def gradients(
    question: Question, seed: AnySeed, copies: Sequence[Copy]
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """For one batch after another the numbers of its copies, and the gradient of `seed.value` at
    each input site, NumPy (B, T, D) or (B, C, H, W).
    """
    for asked, numbers in batches(question, copies):
        some = [copies[n] for n in numbers]
        run = asked.forward([c.reading for c in some], leaves=stacked(some))
        yield numbers, asked.gradients(run, [seed] * len(some), run.input_sites(), GRADIENT)


def batches(question: Question, copies: Sequence[Copy]) -> list[tuple[Question, list[int]]]:
    """Which copies run together, and what is asked of them: those explained at one position, and of
    like lengths.
    """
    kinds: dict[tuple[int | None, bool], list[int]] = defaultdict(list)
    for n, copy in enumerate(copies):
        kinds[copy.position, copy.leaves is None].append(n)
    found = []
    for (position, _), numbers in kinds.items():
        asked = question if position is None else replace(question, position=position)
        groups = asked.groups([copies[n].reading for n in numbers])
        found += [(asked, [numbers[i] for i in group]) for group in groups]
    return found


def stacked(copies: Sequence[Copy]) -> dict[str, Any] | None:  # -> NumPy (B, T, D), (B, C, H, W)
    """What the copies of a batch start from; shorter ones are padded with their first row."""
    made = [copy.leaves() for copy in copies if copy.leaves is not None]
    if not made:
        return None
    return {site: np.stack(_alike([one[site] for one in made])) for site in made[0]}


def _alike(leaves: Sequence[Any]) -> list[Any]:
    longest = max(len(x) for x in leaves)
    return [np.concatenate([x, np.repeat(x[:1], longest - len(x), axis=0)]) for x in leaves]


def leaves_of(forward: Forward) -> dict[str, Any]:  # -> NumPy (T, D), or (C, H, W)
    """What the one example of a run started from."""
    return {site: forward.leaf(site)[0] for site in forward.input_sites()}


def found_of(
    scores: Sequence[Any], explained: float | None = None, ledger: Ledger | None = None
) -> Found:
    """What was found: the scores of the input, and of what a decoder has written."""
    written = scores[1] if len(scores) > 1 else None
    return Found(scores[0], written, explained, ledger)


# -- what stands in the place of an embedding ------------------------------------------------------

NAMED = ("mask", "unk", "pad")
"""Special tokens, by what they are for."""


def token(network: Network, name: str | int) -> int:
    """The id of a token: "mask", "unk" and "pad" are the vocabulary's own, any other text or id is
    itself. Raises ReflError where there is none.
    """
    if name not in NAMED:
        return network.token_id(name)
    text = network.text
    ids = {
        "mask": network.mask_id,
        "unk": None if text is None else text.unknown,
        "pad": None if text is None else text.pad,
    }
    if ids["pad"] is None:
        ids["pad"] = getattr(network.config, "pad_token_id", None)
    found = ids[str(name)]
    if found is None:
        raise ReflError(
            f"{network.name or 'the model'} has no {name} token: give a token by its id or text, "
            "or 'zero' for an embedding of zeros"
        )
    return network.token_id(found)


def embedding(forward: Forward, site: str, number: int) -> Any:  # -> NumPy (D,)
    """The row of the table that a token id has at an input site."""
    table = next(r.operands[0] for r in forward.trace.records if r.output.site == site)
    assert table is not None
    return asnumpy(table.array[number, ...])


def filling(
    network: Network, forward: Forward, site: str, fill: str | float, name: str = "fill"
) -> Any:  # -> NumPy (T, D), or (C, H, W)
    """What stands everywhere at an input site once nothing of the input is left.

    of tokens     "zero"; "mean" of the input's embeddings; the embedding of a token: "mask", "unk",
                  "pad", a text or an id
    of pixels     "zero"; "mean" of the picture by channel; "blur"; a number. Pixels are those that
                  the net reads, normalized: 0 is what the preparation calls the mean

    Raises ReflError for what is none of these, and for a token that there is none of. `name`: what
    the option is called.
    """
    x = forward.leaf(site)[0]
    if _is(fill, "zero"):
        return np.zeros_like(x)
    if network.takes_images:
        return _of_pixels(x, fill, name)
    if _is(fill, "mean"):
        return np.broadcast_to(x.mean(axis=0), x.shape)
    return np.broadcast_to(
        embedding(forward, site, token(network, _token_name(fill, name))), x.shape
    )


def _of_pixels(x: Any, fill: str | float, name: str) -> Any:  # (C, H, W) -> (C, H, W)
    if _is(fill, "mean"):
        return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)
    if _is(fill, "blur"):
        return blurred(x)
    number = arguments.number_or_none(fill)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not np.isfinite(number):
        raise arguments.expected(name, "'zero', 'mean', 'blur' or a number, for pixels", fill)
    return np.full_like(x, number)


def _is(fill: Any, word: str) -> bool:
    return isinstance(fill, str) and fill == word


def _token_name(fill: Any, name: str) -> str | int:
    """Of a token. Raises ReflError for what names none."""
    if isinstance(fill, str):
        return fill
    number = arguments.as_whole(fill)
    if number is None:
        raise arguments.expected(name, "'zero', 'mean', or a token by its text or id", fill)
    return number


BLUR = 20
"""The standard deviation of a blur is this part of the shorter side: 11 pixels of 224, about the 10
of Fong and Vedaldi 2017 (arXiv 1704.03296)."""


def blurred(x: Any) -> Any:  # (C, H, W) -> (C, H, W)
    """By a Gaussian, whose weights at the border are those of what lies inside, over their sum."""
    width = min(x.shape[1:]) / BLUR
    for axis in (1, 2):
        at = np.arange(x.shape[axis])
        weights = np.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis).astype(x.dtype)
    return x


# -- deletion --------------------------------------------------------------------------------------


def deleted(
    question: Question, reading: Reading, dropped: Collection[int], of_decoder: Collection[int] = ()
) -> Copy:
    """The input without these tokens, and without these of what a decoder has written.

    What is explained is read at the same token, which moves up by as many as are gone before it.
    Where a model of the next token has lost that token, its output is read at the last one left
    before it: that is where it guesses what comes next.

    Raises ReflError where nothing is left, where the token that is read is gone and none before it
    is left (or the model guesses that token), where a neuron is explained (another token would be
    at its index), and for pictures.
    """
    _refuse_deletion(question)
    ids, types, prefix = reading.input, reading.types, reading.prefix
    left = Reading(
        _left(ids, dropped),
        None if types is None else _left(types, dropped),
        None if prefix is None else _left(prefix, of_decoder),
    )
    if not left.input or left.prefix == []:
        raise ReflError(
            f"deletion leaves nothing of the input of {len(ids)} tokens: take another fill"
        )
    position = question.position_of(reading)
    gone = dropped if prefix is None else of_decoder
    return Copy(left, position=None if position is None else _moved(question, position, gone))


def _refuse_deletion(question: Question) -> None:
    if question.network.takes_images:
        raise ReflError(
            "pixels cannot be deleted: fill them with 'zero', 'mean', 'blur' or a number"
        )
    if question.at is not None:
        raise ReflError(
            f"deletion moves the tokens, and with {argument('at=')} a neuron is explained that has "
            "its place among them: take another fill"
        )
    if question.network.task == "answer-span" or question.every:
        raise ReflError(
            "deletion moves the tokens, and what is explained is of several by their numbers (an "
            "answer, a mean over all): take another fill"
        )
    for site, edit in question.edits.items():
        if of_tokens(site, edit):
            raise ReflError(
                f"deletion moves the tokens, and the edit of {site} chooses among them by their "
                "numbers: take another fill, or an edit of all tokens, at (..., 17) say"
            )


def _left(numbers: Sequence[int], gone: Collection[int]) -> list[int]:
    return [i for t, i in enumerate(numbers) if t not in gone]


def _moved(question: Question, position: int, gone: Collection[int]) -> int:
    """Where the output is read once the tokens are gone."""
    before = position - sum(t < position for t in gone)
    if position not in gone:
        return before
    if question.network.task not in GENERATES or before == 0:
        raise ReflError(
            f"the output is read at token {position}, and with that token deleted there is none to "
            f"read it at in {shown(question.network.name or 'the model')}: take another fill"
        )
    return before - 1
