"""Scores from elsewhere: what another library, or a file of this one, says of the same inputs.

    FILE.npz            an array per input, by its name; or arr_0, arr_1, ... in the order of the
                        inputs, as numpy.savez writes arrays without names
    FILE.npy            inputs of one length: (n, T), or (n, H, W) of pictures, in their order
    FILE.jsonl          an object on each line: "scores", a list of numbers (of lists, for a
                        picture), "decoder_scores" where a decoder has written, and "name"; without
                        names in the order of the inputs
    FILE.safetensors    an explanation as `Explanation.save` writes it (an oracle file), or a folder
                        of these: by the names of the files where they are names of inputs, else in
                        the order of their names

Every token has a score, special ones included. Oracle files know their input and what is explained,
and where: that has to be the item's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refl import arguments
from refl.errors import ReflError, shown
from refl.evaluation import units
from refl.evaluation.subject import Case, Subject
from refl.explanation import Explanation
from refl.io.files import read_bytes

LARGEST = 1 << 30
"""Bytes of a file of scores."""


class Found(NamedTuple):
    """What there is of one input."""

    scores: Any
    decoder_scores: Any = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of inputs, by name or in order; a method among others for `judged`.

    name       what the rows of a table call it
    by_name    name of an input -> its scores
    in_order   the same without names
    place      where they come from, for messages
    """

    name: str
    by_name: Mapping[str, Found] = field(default_factory=dict)
    in_order: tuple[Found, ...] = ()
    place: str = "the scores"

    def matched(self, names: Sequence[str]) -> Scores:
        """The same with the names of all inputs, in their order. Raises ReflError where there are
        as many scores as inputs for neither.
        """
        if self.by_name:
            missing = [name for name in names if name not in self.by_name]
            if missing:
                raise ReflError(
                    f"{self.place} has no scores of {shown(missing[0])} ({len(missing)} of "
                    f"{len(names)} inputs have none): expected a name for each"
                )
            _refuse_twice(names)
            return self
        if len(self.in_order) != len(names):
            raise ReflError(
                f"{self.place} has scores of {len(self.in_order)} inputs, the data has "
                f"{len(names)}: expected as many, or names"
            )
        _refuse_twice(names)
        return replace(self, by_name=dict(zip(names, self.in_order, strict=True)), in_order=())

    def cases(self, subjects: Sequence[Subject]) -> list[Case]:
        """Raises ReflError for scores of another input, length or shape."""
        known = self if self.by_name else self.matched([s.item.name for s in subjects])
        return [known._case(subject) for subject in subjects]

    def _case(self, subject: Subject) -> Case:
        name = subject.item.name
        if name not in self.by_name:
            raise ReflError(f"{self.place} has no scores of {shown(name)}")
        found = self.by_name[name]
        if found.explanation is not None:
            self._refuse_other(subject, found.explanation)
        self._refuse_shape(subject, "scores", found.scores)
        if found.decoder_scores is not None:
            self._refuse_shape(subject, "decoder_scores", found.decoder_scores)
        return Case(subject, found.scores, found.decoder_scores)

    def _refuse_shape(self, subject: Subject, what: str, scores: Any) -> None:
        network, reading = subject.question.network, subject.reading
        shape = np.shape(scores)
        if network.takes_images:
            (height, width), (h, w) = network.config.image, network.config.patch
            fits = shape in ((height, width), (height // h, width // w))
            size = f"pixels ({height}, {width}) or patches ({height // h}, {width // w})"
        else:
            ids = reading.input if what == "scores" else reading.prefix or []
            fits, size = shape == (len(ids),), f"{len(ids)} tokens, special ones included"
        if not fits:
            raise ReflError(
                f"{what} of {shown(subject.item.name)} in {self.place} have shape {shape}: "
                f"expected one for each of {size}"
            )

    def _refuse_other(self, subject: Subject, e: Explanation) -> None:
        """An oracle file of another input, or of another output."""
        where = f"{self.place}: the explanation for {shown(subject.item.name)}"
        if e.picture is None and e.input_ids != list(subject.reading.input):
            raise ReflError(f"{where} is of other tokens: expected those of the item")
        if (e.decoder_ids or None) != (subject.reading.prefix or None):
            raise ReflError(f"{where} is of another decoder's text: expected that of the item")
        picture: Any = getattr(subject.reading.input, "picture", None)
        if e.picture is not None and not np.array_equal(e.picture, picture):
            raise ReflError(f"{where} is of another picture: expected that of the item")
        ids = [i for i in subject.target if i is not None]
        names = subject.question.network.output_names(ids)
        against = names[1] if len(names) > 1 else None
        if (e.target_id, e.against) != (ids[0], against):
            raise ReflError(
                f"{where} explains {e.what}: expected the output that is judged, "
                f"{' less '.join(map(repr, names))}"
            )
        self._refuse_other_way(subject, e, where)

    @staticmethod
    def _refuse_other_way(subject: Subject, e: Explanation, where: str) -> None:
        """One of the same output at another token, of another number of it, or of an input that was
        read with other token types. What the file does not say is not compared.
        """
        if e.seed != subject.seed.kind:
            raise ReflError(
                f"{where} explains {e.what}: expected the {subject.seed.kind}, which is judged"
            )
        position = subject.question.position_of(subject.reading)
        if e.position not in (None, position):
            raise ReflError(
                f"{where} explains the output of token {e.position}: expected that of token "
                f"{position}, which is judged"
            )
        types = subject.reading.types
        if e.types is not None and list(e.types) != list(types or [0] * len(e.input_ids)):
            raise ReflError(
                f"{where} is of other token types: expected those of the item, "
                f"{arguments.received(types)}"
            )
        if e.attention_mask is not None and not np.all(e.attention_mask):
            raise ReflError(
                f"{where} is of an input some of whose tokens an attention mask hides: expected "
                "one of the whole input, which is judged"
            )


def _refuse_twice(names: Sequence[str]) -> None:
    """Scores of one input would be judged as those of another."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ReflError(
                f"{count} inputs have the name {shown(name)}, and scores go by name: name the "
                "inputs apart"
            )


# -- files -----------------------------------------------------------------------------------------


def read(path: str | Path, name: str | None = None) -> Scores:
    """Scores from a file, or from a folder of oracle files. Raises ReflError for one that holds
    none.
    """
    path = arguments.path("the file of scores", path)
    label, place = name or path.stem, shown(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return _oracles(path, label, place)
    reader = {".npz": _npz, ".npy": _npy, ".jsonl": _jsonl}.get(path.suffix)
    if reader is None:
        raise ReflError(
            f"{place} is no file of scores: expected .npz, .npy, .jsonl, an oracle file "
            "(.safetensors) or a folder of these"
        )
    named, ordered = reader(read_bytes(path, LARGEST), place)
    return of_arrays(label, named or ordered, place)


def of_arrays(
    name: str, arrays: Mapping[str, Any] | Sequence[Any], place: str = "the scores"
) -> Scores:
    """Scores from arrays, one for each input: by name, or in order. Raises ReflError for what are
    no finite numbers.
    """
    if isinstance(arrays, Mapping):
        named = {str(key): _found(f"{place}: {shown(key)}", one) for key, one in arrays.items()}
        return Scores(name, named, place=place)
    ordered = [_found(f"{place}: input {n}", one) for n, one in enumerate(arrays)]
    return Scores(name, in_order=tuple(ordered), place=place)


def _found(where: str, one: Any) -> Found:
    found = one if isinstance(one, Found) else Found(one)
    written = found.decoder_scores
    return Found(
        units.checked(f"{where}: the scores", found.scores),
        None if written is None else units.checked(f"{where}: decoder_scores", written),
    )


Read = tuple[dict[str, Any], list[Any]]
"""Scores by name, or in order."""


def _npz(raw: bytes, place: str) -> Read:
    try:
        with np.load(BytesIO(raw), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as reason:  # noqa: BLE001 - zip and NumPy raise their own kinds
        raise ReflError(f"{place} cannot be read as .npz: {shown(reason)}") from None
    numbers = [re.fullmatch(r"arr_(\d+)", key) for key in arrays]
    if arrays and all(numbers):
        order = sorted(arrays, key=lambda key: int(key.removeprefix("arr_")))
        return {}, [arrays[key] for key in order]
    return arrays, []


def _npy(raw: bytes, place: str) -> Read:
    try:
        array = np.load(BytesIO(raw), allow_pickle=False)
    except Exception as reason:  # noqa: BLE001 - an array of objects, or no array at all
        raise ReflError(
            f"{place} cannot be read as .npy: {shown(reason)}; inputs of several lengths are for "
            ".npz or .jsonl"
        ) from None
    if array.ndim < 2:
        raise ReflError(f"{place} has shape {array.shape}: expected a row for each input")
    return {}, list(array)


def _jsonl(raw: bytes, place: str) -> Read:
    named: dict[str, Any] = {}
    ordered: list[Any] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        name, found = _line(line, f"{place}, line {number}")
        if name is None:
            ordered.append(found)
        elif name in named:
            raise ReflError(f"{place}, line {number}: {shown(name)} stands twice")
        else:
            named[name] = found
    if named and ordered:
        raise ReflError(f"{place} names some of its lines: expected names on all, or on none")
    return named, ordered


def _line(line: bytes, where: str) -> tuple[str | None, Found]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise ReflError(f"{where} is no JSON: {shown(reason)}") from None
    if not isinstance(said, dict) or "scores" not in said:
        raise ReflError(f'{where}: expected an object with "scores"')
    name = said.get("name")
    found = Found(said["scores"], said.get("decoder_scores"))
    return (None if name is None else str(name)), _found(where, found)


def _oracles(path: Path, label: str, place: str) -> Scores:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ReflError(f"{place} is a folder without oracle files (.safetensors)")
    loaded = {file.stem: Explanation.load(file) for file in files}
    found = {
        stem: Found(np.asarray(e.relevance), e.decoder_relevance, e) for stem, e in loaded.items()
    }
    return OracleScores(label, found, tuple(found.values()), place)


@dataclass(frozen=True)
class OracleScores(Scores):
    """By the names of the files where all inputs have one; else in their order."""

    def matched(self, names: Sequence[str]) -> Scores:
        if all(name in self.by_name for name in names):
            return Scores(self.name, self.by_name, place=self.place)
        return Scores(self.name, in_order=self.in_order, place=self.place).matched(names)

    def cases(self, subjects: Sequence[Subject]) -> list[Case]:
        return self.matched([s.item.name for s in subjects]).cases(subjects)
