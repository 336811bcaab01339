"""Inputs from a file of JSON Lines: an object on each line, read as the file goes by.

The input, by the first of these keys that is there:

    input, prefix, text    a text
    ids                    token ids
    image                  the path of a picture, from the folder of the file

and what is known of it, all of it optional:

    target                 the output that is explained, by name or number
    foil, or contrast      what it is contrasted with; contrast can be [a, b], too
    decoder                what a decoder has written: a text, or ids
    pair, types, position  as `Model.explain` has them
    evidence               what decides: numbers of tokens [4, 5], words ["keys"], or characters
                           [[8, 12]], from and to; evidence_tokens, evidence_words (texts, or their
                           numbers as blanks part them) and evidence_spans are each of one kind.
                           A token of blanks alone is none
    support, or support_tokens    numbers of tokens that are evidence in the wide sense
    name, or id            by default the number of the line

Every other key is kept as a fact. A key that is null is as good as none. A line that cannot be used
is refused in a sentence that names the file and the line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from refl import arguments
from refl.errors import ReflError, quoted, shown
from refl.evaluation.datasets import Span, occurrences, overlap, overlapping, standing
from refl.evaluation.subject import Item
from refl.io.files import reason, regular_size, sha256
from refl.model import Model

LONGEST_LINE = 16 << 20
"""Bytes: far more than a model reads."""


class Line(NamedTuple):
    """One line of a file, and where it stands."""

    file: str
    number: int
    content: bytes

    @property
    def place(self) -> str:
        return f"{shown(self.file)}, line {self.number}"

    def refused(self, words: object) -> ReflError:
        return ReflError(f"{self.place}: {words}")


def lines(path: str | Path, limit: int | None = None) -> Iterator[Line]:
    """The first `limit` lines that are not blank, one at a time. Raises ReflError for a file that
    cannot be read.
    """
    place = Path(path)
    regular_size(place)
    found = 0
    try:
        with open(place, "rb") as file:
            for number, content in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if limit is not None and found >= limit:
                    return
                line = Line(str(path), number, content)
                if len(content) == LONGEST_LINE:
                    raise line.refused(f"it has {LONGEST_LINE} bytes or more: this is no text")
                if content.strip():
                    found += 1
                    yield line
    except OSError as error:
        raise ReflError(f"{shown(path)} cannot be read: {reason(error)}") from None


@dataclass(frozen=True)
class Survey:
    """What a file holds: of each input the digest of its line and of the picture it names."""

    digests: list[bytes]

    @property
    def count(self) -> int:
        return len(self.digests)

    @property
    def hash(self) -> str:
        """Of all of them."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


def survey(found: Iterable[Line], model: Model, path: str | Path) -> Survey:
    """Reads every line once, before anything is computed. Raises ReflError for the first that
    cannot be used, and for a file without any.
    """
    digests = []
    for line in found:
        record = parsed(line)
        digests.append(record.digest())
        record.settled(model)
    if not digests:
        raise ReflError(f"{shown(path)} has no input: expected a JSON object on each line")
    return Survey(digests)


def items(path: str | Path, model: Model, limit: int | None = None) -> Iterator[Item]:
    """Every input of a file as the model reads it. Raises ReflError for a line it cannot use."""
    for line in lines(path, limit):
        yield parsed(line).settled(model)


# -- a line ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A line once parsed; `find` are words or characters of its text that are evidence, whose
    tokens only a tokenizer knows.
    """

    line: Line
    item: Item
    find: tuple[Span, ...] | None = None
    picture: Path | None = None
    """The file of the input, where it is in one."""

    def digest(self) -> bytes:
        """Of the line, its number and the file that it names."""
        digest = hashlib.sha256(b"%d %s\n" % (self.line.number, self.line.content.strip()))
        with self.named():
            digest.update(b"" if self.picture is None else sha256([self.picture]).encode())
        return digest.digest()

    @property
    def has_evidence(self) -> bool:
        return bool(self.find or self.item.evidence)

    def settled(self, model: Model) -> Item:
        """The item, its evidence as numbers of tokens or patches. Raises ReflError where that is
        outside the input, and for a picture where the model reads none.
        """
        if self.picture is not None and not model.takes_images:
            raise self.line.refused(
                f"image is the path of a picture, and {model.name or 'the model'} reads text or ids"
            )
        if self.find is not None:
            return replace(
                self, item=replace(self.item, evidence=self._tokens(model)), find=None
            ).settled(model)
        if numbers := (*(self.item.evidence or ()), *self.item.facts.get("support", ())):
            self._refuse_outside(numbers, model)
        return self.item

    def _tokens(self, model: Model) -> tuple[int, ...]:
        if model.text is None:
            raise self.line.refused("evidence is given by words, and the model has no tokenizer")
        with self.named():
            places = standing(model.text, self.item.input)
        for a, b in self.find or ():
            if not any(overlap(place, (a, b)) for place in places):
                raise self.line.refused(
                    f"evidence at the characters [{a}, {b}], {quoted(self.item.input[a:b])}, is in "
                    "no token that is more than a blank: expected characters of a word"
                )
        return overlapping(places, self.find or ())

    def _refuse_outside(self, evidence: tuple[int, ...], model: Model) -> None:
        with self.named():
            pair = None if self.item.pair is None else [self.item.pair]
            (reading,) = model.readings([self.item.input], self.item.decoder, None, pair)
        count, kind = model.lengths(reading)[0], "tokens"
        if model.takes_images:
            count, kind = count - 1, "patches"
        if max(evidence) >= count:
            raise self.line.refused(
                f"evidence {max(evidence)} is outside the input, which has {count} {kind} "
                f"(0 to {count - 1})"
            )

    def named(self) -> _Named:
        """Inside, what is refused names the line."""
        return _Named(self.line)


class _Named:
    def __init__(self, line: Line) -> None:
        self.line = line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ReflError):
            raise self.line.refused(error) from error


def parsed(line: Line) -> Record:
    """A line as an Item. Raises ReflError for one that is none."""
    every = _object(line)
    said = {key: value for key, value in every.items() if value is not None}
    key = next((name for name in INPUTS if name in said), None)
    if key is None:
        got = (shown(name) + (name not in said) * " (null)" for name in list(every)[:8])
        raise line.refused(
            f"there is no input: expected a key {' or '.join(INPUTS)}, got "
            f"{', '.join(got) or 'none'}"
        )
    value = _checked(line, said, key)
    if key == "image":
        value = str(Path(line.file).parent / value)
    target, contrast = _explained(line, said)
    evidence, find = _evidence(line, said, value if isinstance(value, str) else None)
    item = Item(
        name=str(next((_checked(line, said, k) for k in ("name", "id") if k in said), line.number)),
        input=value,
        target=target,
        contrast=contrast,
        decoder=_checked(line, said, "decoder"),
        pair=_checked(line, said, "pair"),
        types=_checked(line, said, "types"),
        position=_checked(line, said, "position"),
        evidence=evidence,
        facts=_facts(line, said, key),
    )
    return Record(line, item, find, Path(value) if key == "image" else None)


def _facts(line: Line, said: dict[str, Any], key: str) -> dict[str, Any]:
    """What else is said; `support`, tokens that are evidence in the wide sense, once checked."""
    facts = {k: v for k, v in said.items() if k not in KNOWN and k != key}
    for name in SUPPORT:
        if name in said:
            facts["support"] = _checked(line, said, name)
    return facts


def _object(line: Line) -> dict[str, Any]:
    try:
        said = json.loads(line.content.decode("utf-8-sig" if line.number == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        raise line.refused(
            f"it is no JSON: {error.msg} at character {error.colno}; expected an object such as "
            '{"text": "..."}'
        ) from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise line.refused(f"it is no JSON: {type(error).__name__}, {shown(error)}") from None
    if not isinstance(said, dict):
        raise line.refused(f"expected a JSON object, got {quoted(said)}")
    if b"\\u" in line.content:
        _refuse_halves(line, said)
    return said


def _refuse_halves(line: Line, said: dict[str, Any]) -> None:
    """A name with half of a character could not be written to a shard."""
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise line.refused(
            f"expected text in Unicode, got half of a character: {half} stands alone"
        ) from None


# -- what a key may be -----------------------------------------------------------------------------


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return arguments.as_whole(value)


def _output(value: Any) -> str | int | None:
    return _text(value) if isinstance(value, str) else _whole(value)


def _numbers(value: Any) -> tuple[int, ...] | None:
    found = [_whole(v) for v in value] if isinstance(value, list) else [None]
    kept = tuple(n for n in found if n is not None and n >= 0)
    return kept if len(kept) == len(found) else None


def _ids(value: Any) -> list[int] | None:
    found = _numbers(value)
    return list(found) if found else None


def _either(*kinds: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: next((f for kind in kinds if (f := kind(value)) is not None), None)


INPUTS = ("input", "prefix", "ids", "image", "text")
"""Keys of the input, the first of them that is there: beside a prefix `text` is often the whole."""

CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "input": (_either(_text, _ids), "a text, or token ids"),
    "prefix": (_either(_text, _ids), "a text, or token ids"),
    "text": (_text, "a text that is not empty"),
    "ids": (_ids, "a list of token ids"),
    "image": (_text, "the path of a picture"),
    "name": (_output, "a text or a whole number"),
    "id": (_output, "a text or a whole number"),
    "target": (_output, "the name or the number of an output"),
    "foil": (_output, "the name or the number of an output"),
    "decoder": (_either(_text, _ids), "a text, or token ids"),
    "pair": (_text, "a text"),
    "types": (_numbers, "a list of token type ids"),
    "position": (_whole, "the number of a token"),
    "support": (_numbers, "numbers of tokens"),
    "support_tokens": (_numbers, "numbers of tokens"),
}
"""Key -> what makes a value of it, and what it is called where that is none."""

EVIDENCE = ("evidence_tokens", "evidence", "evidence_spans", "evidence_words")
"""Keys of evidence, the first of them that is there."""

SUPPORT = ("support_tokens", "support")

KNOWN = {*CHECKS, *EVIDENCE, "contrast"} - {"text"}


def _checked(line: Line, said: dict[str, Any], key: str) -> Any:
    """The value of a key; None where it is not there."""
    if key not in said:
        return None
    check, what = CHECKS[key]
    value = check(said[key])
    if value is None:
        raise line.refused(f"{key} is {quoted(said[key])}: expected {what}")
    return value


def _explained(
    line: Line, said: dict[str, Any]
) -> tuple[str | int | None, tuple[str | int, str | int] | None]:
    """The target, or the two outputs of a contrast."""
    target, foil = _checked(line, said, "target"), _checked(line, said, "foil")
    contrast = said.get("contrast")
    if isinstance(contrast, list):
        both = [_output(one) for one in contrast]
        if len(both) != 2 or None in both or target is not None or foil is not None:
            raise line.refused(
                f"contrast is {quoted(contrast)}: expected two outputs, and no target or foil "
                "beside them"
            )
        return None, (both[0], both[1])  # type: ignore[return-value]
    if contrast is not None:
        foil = _output(contrast)
        if foil is None:
            raise line.refused(f"contrast is {quoted(contrast)}: expected an output, or two")
    if foil is None:
        return target, None
    if target is None:
        raise line.refused("there is a foil and no target: expected both, or neither")
    return None, (target, foil)


# -- evidence --------------------------------------------------------------------------------------


def _evidence(
    line: Line, said: dict[str, Any], text: str | None
) -> tuple[tuple[int, ...] | None, tuple[Span, ...] | None]:
    """Numbers of tokens; or characters of the text, whose tokens are yet to be found."""
    key = next((name for name in EVIDENCE if name in said), None)
    if key is None:
        return None, None
    value = said[key]
    numbers = _numbers(value)
    if numbers is not None and key in ("evidence", "evidence_tokens"):
        return numbers, None
    kinds = _KINDS[key]
    if not isinstance(value, list) or not any(fits(value) for fits, _ in kinds):
        known = ["numbers of tokens"] * (key in ("evidence", "evidence_tokens"))
        what = " or ".join([*known, *(name for _, name in kinds)])
        raise line.refused(f"{key} is {quoted(value)}: expected a list of {what}")
    if text is None or "ids" in said or "image" in said or "pair" in said:
        raise line.refused(f"{key} names parts of a text: for other inputs give numbers of tokens")
    return None, tuple(span for one in value for span in _found(line, key, one, text))


def _found(line: Line, key: str, one: Any, text: str) -> Iterable[Span]:
    """Where a piece of evidence stands in the text. Raises ReflError where it does not."""
    words = [found.span() for found in re.finditer(r"\S+", text)]
    if isinstance(one, str):
        spans = list(occurrences(text, one))
    elif isinstance(one, list):
        spans = [(one[0], one[1])] if 0 <= one[0] < one[1] <= len(text) else []
    else:
        spans = words[one : one + 1]
    if not spans:
        size = f"{len(words)} words, {len(text)} characters"
        raise line.refused(f"{key} {quoted(one)} is outside the text, which has {size}")
    return spans


def _are_words(value: list[Any]) -> bool:
    return all(_text(one) is not None for one in value)


def _are_spans(value: list[Any]) -> bool:
    return all(len(_numbers(one) or ()) == 2 for one in value)


def _are_numbers(value: list[Any]) -> bool:
    return _numbers(value) is not None


_WORDS, _SPANS = (_are_words, "words of the text"), (_are_spans, "[from, to] in characters")
_KINDS: dict[str, tuple[tuple[Callable[[list[Any]], bool], str], ...]] = {
    "evidence": (_WORDS, _SPANS),
    "evidence_tokens": (),
    "evidence_spans": (_SPANS,),
    "evidence_words": (_WORDS, (_are_numbers, "numbers of words")),
}
