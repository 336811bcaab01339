"""An Explanation of one example of a run, from what a method found: the input in words, what is
explained of the output, and what computed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from refl.anatomy import components
from refl.attention_mask import how_much
from refl.compared import Compared
from refl.device import blas
from refl.edits import said
from refl.explanation import Candidate, Explanation, MethodFacts, Sites, text_of
from refl.ledger import Ledger
from refl.network import Network, Reading
from refl.question import Forward, Question
from refl.rules.composites import Composite
from refl.seeds import AnySeed, Seed, probabilities
from refl.show.explanation import ShownExplanation
from refl.targets import Coordinate, Feature, Span
from refl.version import __version__

CANDIDATES = 5
"""How many of the likeliest outputs an explanation names."""


@dataclass(frozen=True)
class Found:
    """What a method found out about one example.

    relevance            (T,) of tokens, (H, W) of a picture
    decoder_relevance    (U,) of what a decoder has written, where there is one
    pixels               (H, W) of the picture that texts are compared with
    explained            the number that is explained; by default that of the ledger
    ledger               the conservation ledger, where the method keeps one
    pairs                (T, T): what each token (a column) adds to the relevance of each (a row),
                         where the method says so
    """

    relevance: Any
    decoder_relevance: Any = None
    explained: float | None = None
    ledger: Ledger | None = None
    sites: Sites = field(default_factory=Sites)
    pairs: Any = None
    pixels: Any = None


def explanation(
    question: Question,
    forward: Forward,
    b: int,
    seed: AnySeed,
    found: Found,
    method: Composite | MethodFacts,
) -> Explanation:
    """Of example b of a run."""
    explained = found.explained
    if explained is None:
        explained = 0.0 if found.ledger is None else found.ledger.explained
    return ShownExplanation(
        **_input(question.network, forward, b, found),
        **_output(question, forward.rows[b], forward.readings[b], seed),
        explained=explained,
        method=method,
        recorded=found.ledger,
        about=about(question) | _masked(forward.readings[b]),
        fingerprint=question.network.fingerprint,
        sites=found.sites,
        pairs=found.pairs,
        parts=partial(components, question.network),
    )


# -- the input -------------------------------------------------------------------------------------


def _input(network: Network, forward: Forward, b: int, found: Found) -> dict[str, Any]:
    """The input and its relevance: of tokens, of those a decoder has written, or of pixels."""
    reading = forward.readings[b]
    if network.takes_images:
        fields = {
            "tokens": [],
            "ids": [],
            "relevance": found.relevance,
            "picture": reading.input.picture,
            "patch": network.config.patch,
        }
    elif network.compares:
        return _compared(network, reading.input, found)
    else:
        fields = _tokens(network, reading.input, found.relevance)
        fields["types"] = None if reading.types is None else list(reading.types)
        fields["attention_mask"] = reading.attention_mask
    fields["position"] = None if forward.positions is None else int(forward.positions[b])
    if reading.prefix is not None:
        decoder = _tokens(network, reading.prefix, found.decoder_relevance)
        fields |= {f"decoder_{name}": value for name, value in decoder.items()}
    return {"input_ids" if name == "ids" else name: value for name, value in fields.items()}


def _compared(network: Network, item: Compared, found: Found) -> dict[str, Any]:
    """Of texts and the picture that they are compared with."""
    tokens = _tokens(network, item.ids, found.relevance)
    return {"input_ids" if name == "ids" else name: value for name, value in tokens.items()} | {
        "texts": list(item.lengths),
        "pixels": found.pixels,
        "image": item.image.picture,
        "patch": network.config.patch,
    }


def _tokens(network: Network, ids: list[int], scores: Any) -> dict[str, Any]:
    return {
        "tokens": network.tokens(ids),
        "ids": ids,
        "word_starts": None if network.text is None else network.text.starts(ids),
        "relevance": scores,
    }


# -- the output ------------------------------------------------------------------------------------


def _output(
    question: Question, z: Any, reading: Reading, seed: AnySeed
) -> dict[str, Any]:  # what is explained, (V,)
    """What is explained, and the likeliest outputs."""
    network = question.network
    if reading.answer:
        return _whole_answer(network, reading, z, seed.kind)
    target, _ = seed.asked
    if isinstance(target, Span):
        return _answer(question, z, reading, seed.kind, target)
    if isinstance(target, Feature):
        return _feature(seed.value(z), target)
    assert isinstance(seed, Seed)
    if question.at is not None:
        return _neuron(float(z[seed.target]), seed.target, *question.at)
    names, kind = partial(_names, network, reading), network.probability
    # one text is no choice
    p = probabilities(z, "none" if network.compares and len(z) == 1 else kind)
    best = _likeliest(z)
    return {
        "target": names([seed.target])[0],
        "target_id": seed.target,
        "logit": float(z[seed.target]),
        "probability": float(p[seed.target]),
        "against": None if seed.against is None else names([seed.against])[0],
        "against_logit": None if seed.against is None else float(z[seed.against]),
        "seed": seed.kind,
        "candidates": [
            Candidate(name, i, float(z[i]), float(p[i]))
            for name, i in zip(names(best), best, strict=True)
        ],
    }


def _names(network: Network, reading: Reading, numbers: Sequence[int]) -> list[str]:
    """Of outputs: the texts, where they are what a picture is compared with."""
    if isinstance(reading.input, Compared):
        return [reading.input.names[i] for i in numbers]
    return network.output_names(numbers)


def _whole_answer(
    network: Network, reading: Reading, z: Any, kind: str
) -> dict[str, Any]:  # logits (R V,), those before each token first
    """The same of an answer as a whole: what the model gives each of its tokens."""
    ids, outputs = reading.explained[-reading.answer :], z.reshape(-1, network.config.vocab_size)
    tokens = [
        Candidate(name, i, float(z[i]), float(probabilities(z, network.probability)[i]))
        for name, i, z in zip(network.tokens(ids), ids, outputs, strict=False)
    ]
    return {
        "target": in_words(network, ids),
        "target_id": ids[0],
        "logit": math.fsum(token.logit for token in tokens),
        "probability": math.prod(token.probability for token in tokens),
        "against": None,
        "seed": kind,
        "candidates": [],
        "answer": tokens,
    }


def in_words(network: Network, ids: Sequence[int]) -> str:
    """The text of an answer; its tokens where no tokenizer reads them, or none of it is left."""
    text = "" if network.text is None else network.text.decode(list(ids))
    return text.strip() or " ".join(network.tokens(ids))


def _neuron(x: float, number: int, site: str, index: Sequence[int]) -> dict[str, Any]:
    """The same of a neuron, which has no probability and no rivals."""
    return {
        "target": f"{site}[{', '.join(map(str, index))}]",
        "target_id": number,
        "logit": x,
        "probability": math.nan,
        "against": None,
        "seed": "activation",
        "candidates": [],
    }


def _answer(
    question: Question, z: Any, reading: Reading, kind: str, target: Span
) -> dict[str, Any]:  # z: (rows 2,)
    """The same of an answer, beside the best answers; of a start or an end, beside the best of
    these.
    """
    tokens = len(reading.input)
    if len(target.tokens) > 1:
        best = question.answers(z, reading, CANDIDATES)
    elif target.end is None:
        best = [Span(t, None) for t in _likeliest(z[0 : 2 * tokens : 2])]
    else:
        best = [Span(None, t) for t in _likeliest(z[1 : 2 * tokens : 2])]
    names = [_name(question.network, reading.input, span) for span in (target, *best)]
    numbers = [span.number(tokens) for span in (target, *best)]
    values = [span.value(z, tokens) for span in (target, *best)]
    first, *others = (
        Candidate(name, number, logit, p)
        for name, number, (logit, p) in zip(names, numbers, values, strict=True)
    )
    return {
        "target": first.token,
        "target_id": first.id,
        "logit": first.logit,
        "probability": first.probability,
        "against": None,
        "seed": kind,
        "candidates": others,
        "span": (target.start, target.end),
    }


def _name(network: Network, ids: list[int], span: Span) -> str:
    """The text of an answer, or of the token that it starts or ends at."""
    some = ids[span.tokens[0] : span.tokens[-1] + 1]
    return text_of(
        network.tokens(some), None if network.text is None else network.text.starts(some)
    )


def _feature(value: float, target: Feature) -> dict[str, Any]:
    """The same of features, which have no probability and no rivals."""
    found: dict[str, Any] = {
        "target": target.name,
        "target_id": 0,
        "logit": value,
        "probability": math.nan,
        "against": None,
        "seed": target.kind,
        "candidates": [],
        "mean": target.mean,
    }
    if isinstance(target, Coordinate):
        return found | {"target_id": target.number}
    return found | {"vector": target.vector}


def _likeliest(z: Any) -> list[int]:  # logits (V,)
    """The outputs of the CANDIDATES largest logits, and of equal ones the first. Only those are
    sorted: a vocabulary may take as long as a block.
    """
    k = min(CANDIDATES, len(z))
    least = -np.partition(-z, k - 1)[k - 1]
    some = np.flatnonzero(~(z < least))  # all of them where `least` is no number
    return [int(i) for i in some[np.argsort(-z[some], kind="stable")[:k]]]


# -- what computed it ------------------------------------------------------------------------------


def about(question: Question) -> dict[str, str]:
    """Versions, model, dtype, and what is unusual in the run."""
    network, kind = question.network, question.network.probability
    return {
        "refl": __version__,
        "model": network.name,
        "architecture": network.net.MODEL_TYPE,
        "dtype": network.dtype,
        "task": network.task,
        "computed by": _computed_by(network.device),
        **({} if kind == "softmax" else {"probability": kind}),
        **({"edits": said(question.edits)} if question.edits else {}),
        **network.ignored,
    }


def _masked(reading: Reading) -> dict[str, str]:
    """How much of the input the caller's attention mask hides."""
    allowed = reading.attention_mask
    return {} if allowed is None else {"attention mask": how_much(allowed)}


@cache
def _computed_by(device: str) -> str:
    """What multiplies the matrices: another library or kernel rounds in another order."""
    version = f"NumPy {np.__version__}"
    if device != "cpu":
        return f"{version}, {device}"
    return " ".join([f"{version},", *filter(None, blas().values())])
