"""Data that says what decides: sentences with their evidence, as items of any tokenizer.

    shipped         the shipped model's own grammar: the subject's number, the person of a fact
    minimal pairs   two sentences that part at one word, the good one and the bad one; the item is
                    what they have in common and the contrast of the first tokens that differ

Minimal pairs are read from files as their authors publish them:

    *.jsonl         BLiMP (Warstadt et al. 2020); nothing is said there of evidence
    *.csv           BLiMP and IOI with the word that decides (Ferrando et al. 2023)
    *.tsv[.gz]      agreement by template (Marvin and Linzen 2018): case, subcase, good, bad. The
                    evidence is the subject of the verb that differs; evidence in the wide sense is
                    also a verb before it that agrees

Evidence is words there, and characters of the text: its tokens are all that overlap them, of words
cut in pieces every piece, of a model of characters every character. A token of blanks alone is
none.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from refl import arguments
from refl.errors import ReflError, quoted, shown
from refl.evaluation.subject import Item
from refl.io.files import read_bytes
from refl.io.text import Text
from refl.model import SHIPPED, Model

Span = tuple[int, int]
"""Characters of a text, from and to."""

LARGEST = 64 << 20
"""Bytes of a file, and of what it is once unpacked."""


# -- the shipped model's own -----------------------------------------------------------------------


def sentences(count: int) -> dict[str, list[dict[str, Any]]]:  # task -> its first `count` sentences
    """Lines of the shipped model's evidence.jsonl. Raises ReflError for a count that is no whole
    number above 0.
    """
    count = arguments.positive("count", count)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for line in (SHIPPED / "evidence.jsonl").read_text(encoding="utf-8").splitlines():
        sentence = json.loads(line)
        tasks.setdefault(sentence["task"], []).append(sentence)
    return {task: found[:count] for task, found in tasks.items()}


def shipped(count: int, explained: str = "contrast") -> dict[str, list[Item]]:  # task -> its items
    """`explained`: the contrast of target and foil, or the logit of the target."""
    if explained not in ("contrast", "logit"):
        raise arguments.expected("explained", "contrast or logit", explained)
    return {
        task: [of_sentence(f"{task} {n}", s, explained) for n, s in enumerate(found)]
        for task, found in sentences(count).items()
    }


def of_sentence(name: str, s: dict[str, Any], explained: str = "contrast") -> Item:
    """A line of evidence.jsonl as an item."""
    contrast = explained == "contrast"
    return Item(
        name=name,
        input=s["prefix"],
        target=None if contrast else s["target"],
        contrast=(s["target"], s["foil"]) if contrast else None,
        evidence=tuple(s["evidence_tokens"]),
        facts={
            "task": s["task"],
            "construction": s["construction"],
            "support": tuple(s["support_tokens"]),
        },
    )


# -- minimal pairs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two sentences that part at one word, and the characters before it that decide. `evidence` is
    None where nobody says.
    """

    name: str
    good: str
    bad: str
    evidence: tuple[Span, ...] | None = None
    support: tuple[Span, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def pairs(path: str | Path) -> list[Pair]:
    """The minimal pairs of a file. Raises ReflError for a file that holds none, and for a line that
    is none.
    """
    path = arguments.path("the file of minimal pairs", path)
    reader = next((r for end, r in _READERS.items() if path.name.endswith(end)), None)
    if reader is None:
        raise ReflError(
            f"{shown(path)} is no file of minimal pairs: expected the end {', '.join(_READERS)}"
        )
    found = list(reader(path, _text(path)))
    if not found:
        raise ReflError(f"{shown(path)} has no minimal pair of one beginning and two words after")
    return found


def items(model: Model, path: str | Path, count: int | None = None) -> list[Item]:
    """The first `count` pairs of a file that a model can read, as items; pairs with a word that its
    vocabulary lacks are left out. Raises ReflError as `pairs` does, and for a model of anything but
    the next token.
    """
    if model.task != "next-token" or model.text is None:
        raise ReflError(
            f"{model.name or 'the model'} cannot be asked for the next word of a sentence: minimal "
            "pairs need a model of the next token with a tokenizer"
        )
    wanted = None if count is None else arguments.positive("count", count)
    found: list[Item] = []
    for pair in pairs(path):
        if wanted is not None and len(found) >= wanted:
            break
        read = item(model.text, pair)
        if read is not None:
            found.append(read)
    return found


def item(text: Text, pair: Pair) -> Item | None:
    """A pair as token ids; None where a word of it is not in the vocabulary."""
    good, bad = text.encode(pair.good), text.encode(pair.bad)
    same = len(list(takewhile(lambda two: two[0] == two[1], zip(good, bad, strict=False))))
    told = {*good[: same + 1], *bad[: same + 1]}
    if not 0 < same < min(len(good), len(bad)) or text.unknown in told:
        return None
    evidence = None
    if pair.evidence is not None:
        evidence = tokens_of(text, pair.good, pair.evidence, same)
    support = tokens_of(text, pair.good, pair.support, same)
    return Item(
        name=pair.name,
        input=good[:same],
        contrast=(good[same], bad[same]),
        evidence=evidence or None,
        facts={**pair.facts, "support": support, "good": pair.good, "bad": pair.bad},
    )


def tokens_of(
    text: Text, sentence: str, spans: Sequence[Span], before: int | None = None
) -> tuple[int, ...]:
    """Numbers of the tokens of a sentence that overlap these characters; of its first `before`."""
    return overlapping(standing(text, sentence)[:before], spans)


def standing(text: Text, sentence: str) -> list[Span]:
    """For each token of a sentence the characters it stands for; (0, 0) for a token of blanks
    alone, and for one that was put around the sentence.
    """
    pieces = text.tokens(text.encode(sentence))
    found = zip(pieces, text.spans(sentence), strict=True)
    return [(0, 0) if span is None or piece.isspace() else span for piece, span in found]


def overlapping(places: Sequence[Span], spans: Sequence[Span]) -> tuple[int, ...]:
    """Numbers of the places that overlap any of the spans."""
    return tuple(t for t, place in enumerate(places) if any(overlap(place, one) for one in spans))


def overlap(a: Span, b: Span) -> bool:
    """Whether they have a character in common."""
    return max(a[0], b[0]) < min(a[1], b[1])


# -- words of a text -------------------------------------------------------------------------------


def occurrences(text: str, word: str) -> tuple[Span, ...]:
    """Wherever a word, or several, stands whole in a text; places may overlap."""
    starts = (found.start() for found in re.finditer(f"(?={re.escape(word)})", text))
    spans = ((a, a + len(word)) for a in starts)
    return tuple(span for span in spans if word and _is_whole(text, *span))


def _is_whole(text: str, a: int, b: int) -> bool:
    """Whether no word goes on before or behind: letters, digits, and marks, which belong to what
    they stand on (an accent, a vowel sign).
    """
    if b < len(text) and (_of_a_word(text[b]) or _is_mark(text[b])):
        return False
    if a and _is_mark(text[a]) and _is_mark(text[a - 1]):
        return False
    while a and _is_mark(text[a - 1]):
        a -= 1
    return not (a and _of_a_word(text[a - 1]))


def _of_a_word(c: str) -> bool:
    return c.isalnum() or c == "_"


def _is_mark(c: str) -> bool:
    """Of category M; or a joiner, which keeps letters of one word together or apart."""
    return unicodedata.category(c).startswith("M") or c in "\u200c\u200d"


# -- files -----------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    raw = read_bytes(path, LARGEST)
    if path.name.endswith(".gz"):
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as reason:
            raise ReflError(f"{shown(path)} cannot be unpacked: {shown(reason)}") from None
        if len(raw) > LARGEST:
            raise ReflError(
                f"{shown(path)} is unpacked more than {LARGEST} bytes: expected a smaller file"
            )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise ReflError(f"{shown(path)} is no text in UTF-8: {shown(reason)}") from None


@dataclass(frozen=True)
class _Line:
    """What a line says of a pair, by the names of its columns."""

    place: str
    said: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.said.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.refused(f"{name} is {quoted(value)}, expected a text")
        return value

    def refused(self, words: str) -> ReflError:
        return ReflError(f"{self.place} is no minimal pair: {words}")


def _objects(path: Path, text: str) -> Iterator[_Line]:
    """JSON Lines; blank ones are passed over."""
    for number, content in enumerate(text.split("\n"), 1):
        line = _Line(f"{shown(path)}, line {number},", {})
        try:
            said = json.loads(content) if content.strip() else {}
        except (ValueError, RecursionError) as reason:
            raise line.refused(f"no JSON, {shown(reason)}") from None
        if not isinstance(said, dict):
            raise line.refused(f"{quoted(said)}, expected an object")
        if content.strip():
            yield replace(line, said=said)


def _columns(path: Path, text: str, delimiter: str) -> Iterator[_Line]:
    """Lines of a table whose first line names its columns."""
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        for said in reader:
            yield _Line(f"{shown(path)}, line {reader.line_num},", said)
    except csv.Error as reason:
        raise ReflError(f"{shown(path)}, line {reader.reader.line_num}: {shown(reason)}") from None


def _blimp(path: Path, text: str) -> Iterator[Pair]:
    """Pairs of one beginning; those that compare two beginnings are left out."""
    for number, line in enumerate(_objects(path, text)):
        compares = line.said.get("one_prefix_method")
        if not isinstance(compares, bool):
            raise line.refused(f"one_prefix_method is {quoted(compares)}, expected true or false")
        if compares:
            yield _sentences(path, number, line, None)


def _with_targets(path: Path, text: str) -> Iterator[Pair]:
    """`target` is the word that decides, or NA."""
    for number, line in enumerate(_columns(path, text, ",")):
        spans = occurrences(line.text("one_prefix_prefix"), line.text("target"))
        yield _sentences(path, number, line, spans or None)


def _sentences(path: Path, number: int, line: _Line, evidence: tuple[Span, ...] | None) -> Pair:
    prefix = line.text("one_prefix_prefix")
    words = [line.text(f"one_prefix_word_{kind}") for kind in ("good", "bad")]
    if words[0] == words[1]:
        raise line.refused(f"the good and the bad word are both {quoted(words[0])}")
    good, bad = (f"{prefix} {word}" for word in words)
    whole = [str(line.said.get(f"sentence_{kind}") or "") for kind in ("good", "bad")]
    if not (whole[0].startswith(good) and whole[1].startswith(bad)):
        whole = [f"{good}.", f"{bad}."]
    kind = path.stem if line.said.get("UID") is None else line.text("UID")
    return Pair(f"{kind} {number}", whole[0], whole[1], evidence, facts={"construction": kind})


def _agreement(path: Path, text: str) -> Iterator[Pair]:
    """A period is put behind each sentence, some of which end with the verb."""
    for number, line in enumerate(_columns(path, text, "\t")):
        case, kind, good, bad = map(line.text, ("case", "subcase", "good", "bad"))
        words, others = good.split(), bad.split()
        verb = next((n for n, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), 0)
        subject, agreeing = _deciding(case, words, verb)
        if not all(0 <= n < verb for n in (subject, *agreeing)):
            raise line.refused(
                f"{quoted(good)} and {quoted(bad)}, expected that a verb differs which follows its "
                f"subject as in sentences of {quoted(case)}"
            )
        spans = [found.span() for found in re.finditer(r"\S+", good)]
        yield Pair(
            f"{case} {kind} {number}",
            f"{good}.",
            f"{bad}.",
            (spans[subject],),
            tuple(spans[n] for n in agreeing),
            {"construction": case},
        )


def _deciding(case: str, words: list[str], verb: int) -> tuple[int, list[int]]:
    """The numbers of the subject's noun (the last word of `taxi driver`), and of a verb that agrees
    with it before the one that is asked for.
    """
    if case == "sent_comp" or "_within_" in case:
        return verb - 1, []  # the verb follows its subject
    subject = 2 if words[1:2] == ["taxi"] else 1
    if case.endswith("vp_coord"):
        return subject, [subject + 1]
    return subject, [subject + 2] if case == "subj_rel" else []


_READERS: dict[str, Callable[[Path, str], Iterator[Pair]]] = {
    ".jsonl": _blimp,
    ".csv": _with_targets,
    ".tsv": _agreement,
    ".tsv.gz": _agreement,
}
