"""What every method that reads attention needs: each block's weights, their gradients, the row of
the explained position, and scores of tokens or pixels from that row.

A_l (H, J, I) are the attention weights of block l, query j to key i, and dA_l the gradient of what
is explained. All of them are held at once: H x J x I numbers for each block, twice where gradients
are asked for.

The row that is read is the position whose output is explained. A classifier reads the token that
its head pools (the first of an encoder, the last that is no padding of a decoder, the class token
of a picture); where a head reads two, as DeiT's with a teacher, it is the mean of both rows, as the
head averages their logits. What a row says of learned tokens, which are no part of a picture, is
left out. A patch's score is spread evenly over its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import patches
from refl.answer import Found
from refl.arrays import asnumpy
from refl.edits import edited_site
from refl.errors import ReflError, argument
from refl.methods.base import Attribution
from refl.question import Forward, Question
from refl.rules.published import GRADIENT
from refl.seeds import AnySeed
from refl.targets import Span
from refl.trace import Record, Value

READER, SOURCE, CROSS = "reader", "source", "cross"
"""Attention among the tokens whose outputs are explained (all of them, but for an encoder-decoder);
of an encoder-decoder also that among the encoder's tokens, and from the decoder's to those.
"""


@dataclass(frozen=True)
class BlockAttention:
    """The attention of one block."""

    site: str
    """Of its weights."""
    kind: str
    weights: Any
    """(H, J, I) float64, NumPy: query j to key i."""


@dataclass(frozen=True)
class Maps:
    """Two rows of scores: of the tokens whose outputs are explained, (T,), and of those that only
    an encoder reads, (S,); None where there is no encoder beside a decoder.
    """

    reader: Any
    source: Any = None


@dataclass(frozen=True)
class AttentionMethod(Attribution):
    """A method that reads attention's weights; its scores are products of them."""

    unit: ClassVar[str] = "own"
    plain = True

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        self.refuse_run(question)
        blocks = attentions(question, forward)
        maps = self.maps(question, forward, seed, blocks)
        return scores(question, forward, seed, maps)

    def refuse_run(self, question: Question) -> None:
        """Raises ReflError for a run that keeps no attention weights."""
        if question.recompute:
            raise ReflError(
                f"method {self.name} holds the attention weights of every block, which a run that "
                f"recomputes its blocks does not: leave {argument('recompute')} out"
            )

    def maps(
        self, question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
    ) -> Maps:
        """Scores of the tokens, from the blocks in the order in which they ran."""
        raise NotImplementedError


# -- attention weights -----------------------------------------------------------------------------


def attentions(question: Question, forward: Forward) -> list[BlockAttention]:
    """Of every block below what is explained, in the order in which they ran.
    Raises ReflError where there is none.
    """
    records = below(forward)
    of_decoder = _written_by_decoder(forward)
    found = []
    for record in records:
        if record.role != "attention.probabilities":
            continue
        value = forward.trace.values.get(edited_site(record.output.site), record.output)
        weights = asnumpy(value.array)[0].astype(np.float64)
        found.append(BlockAttention(value.site, _kind(record, records, of_decoder), weights))
    if not found:
        raise ReflError(
            f"no attention is below what is explained in {question.network.name or 'the model'}: "
            "take a method that reads none, such as attnlrp"
        )
    return found


def below(forward: Forward) -> list[Record]:
    """The records up to the one that made what is explained."""
    records = forward.trace.records
    last = next(n for n, r in enumerate(records) if r.output is forward.explained)
    return records[: last + 1]


def reads_source(forward: Forward) -> bool:
    """Whether what is explained is a neuron of an encoder beside a decoder: then its tokens are
    the ones whose outputs are explained.
    """
    return bool(forward.decoder_embedded) and _written_by_decoder(forward) is None


def _written_by_decoder(forward: Forward) -> set[Value] | None:
    """What depends on the tokens that a decoder has written; None where what is explained does not,
    or there is no decoder beside an encoder.
    """
    found: set[Value] = set()
    for record in below(forward):
        written = record.output.site in forward.decoder_embedded
        if written or not found.isdisjoint(_values(record)):
            found.add(record.output)
    return found if forward.explained in found else None


def _values(record: Record) -> list[Value]:
    return [operand for operand in record.operands if isinstance(operand, Value)]


def _kind(record: Record, records: Sequence[Record], of_decoder: set[Value] | None) -> str:
    if of_decoder is None:
        return READER
    if record.output not in of_decoder:
        return SOURCE
    (context,) = (r for r in records if r.role == "attention.context" and _reads(r, record))
    return READER if context.operands[1] in of_decoder else CROSS


def _reads(context: Record, weights: Record) -> bool:
    """Whether these weights, or what an edit made of them, are multiplied with values there."""
    path = weights.output.site.rpartition(".")[0]
    return context.output.site.rpartition(".")[0] == path


def gradients(
    question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
) -> list[Any]:  # -> one (H, J, I) float64 for each block
    """dA_l: the derivative of what is explained by each weight."""
    sites = [block.site for block in blocks]
    found = question.gradients(forward, [seed], sites, GRADIENT)
    return [found[site][0].astype(np.float64) for site in sites]


def positive_mean(x: Any) -> Any:  # (H, J, I) -> (J, I)
    """The mean over heads of what is positive."""
    return np.maximum(x, 0).mean(axis=0)


def started(blocks: Sequence[BlockAttention]) -> tuple[Any, Any, Any]:
    """R before the first block: of the tokens whose outputs are explained (T, T), of those to an
    encoder's (T, S), of these (S, S).
    """
    tokens = next(b.weights.shape[1] for b in blocks[::-1] if b.kind != SOURCE)
    encoded = next((b.weights.shape[-1] for b in blocks if b.kind in (SOURCE, CROSS)), 0)
    return np.eye(tokens), np.zeros((tokens, encoded)), np.eye(encoded)


# -- the row that is read --------------------------------------------------------------------------


def rows(question: Question, forward: Forward, seed: AnySeed) -> list[int]:
    """Numbers of the tokens whose rows are read: of an answer its first and its last, of a mean
    over tokens all. Raises ReflError where what is explained belongs to no token.
    """
    if question.at is not None:
        return [_row_of_neuron(question, forward)]
    if isinstance(seed.asked[0], Span):
        return seed.asked[0].tokens
    if question.every:
        return list(range(len(forward.readings[0].input)))
    chosen = [
        int(record.attributes["index"][0])
        for record in below(forward)
        if record.operation == "movement" and record.attributes["kind"] == "rows"
    ]
    if not chosen:
        raise ReflError(
            f"the output of {question.network.name or 'the model'} is pooled over all tokens and "
            "belongs to none, so no row of its attention can be read: take a method that reads "
            "none, such as attnlrp"
        )
    return chosen


def _row_of_neuron(question: Question, forward: Forward) -> int:
    """The token of a neuron: where its site has a row for each."""
    site, index = question.at or ("", ())
    shape = forward.explained.array.shape
    embedded = forward.embedded if reads_source(forward) else forward.input_sites()[-1]
    tokens = forward.trace.values[embedded].array.shape[1]
    if question.network.takes_images or len(shape) != 3 or shape[1] != tokens:
        raise ReflError(
            f"{argument('at=')} explains a neuron of {site}, which is not that of one token, so no "
            "row of attention can be read: take one of a site (tokens, features)"
        )
    return int(index[0]) % int(tokens)


def read(matrix: Any, chosen: Sequence[int]) -> Any:  # (J, I) -> (I,)
    """The mean of the chosen rows."""
    return matrix[list(chosen)].mean(axis=0)


# -- scores of the input ---------------------------------------------------------------------------


def scores(question: Question, forward: Forward, seed: AnySeed, maps: Maps) -> Found:
    """Of the tokens; or of the pixels."""
    reading, value = forward.readings[0], seed.value(forward.rows[0])
    if question.network.takes_images:
        image, patch = reading.input.pixels.shape[1:], question.network.config.patch
        return Found(patches.spread_row(maps.reader, image, patch), explained=value)
    if reading.prefix is None:
        return Found(maps.reader, explained=value)
    if reads_source(forward):
        return Found(maps.reader, np.zeros(len(reading.prefix)), explained=value)
    source = np.zeros(len(reading.input)) if maps.source is None else maps.source
    return Found(source, maps.reader, explained=value)
