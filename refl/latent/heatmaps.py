"""References explained: of a neuron its own activation, down to the tokens; of a head what is
explained of the line, as far as it comes through the head at that position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refl.components import Mlp, Part, site_of
from refl.edits import said
from refl.errors import ReflError, shown
from refl.evaluation.corpus import reading_of
from refl.evaluation.data import Line, Record, lines, parsed, survey
from refl.explanation import Explanation
from refl.latent.runs import activations
from refl.latent.selection import Group
from refl.methods import Method, under
from refl.model import Model
from refl.network import Reading
from refl.question import Question, Target


def explained_again(
    model: Model,
    file: str | Path,
    run: Mapping[str, Any],
    name: str,
    places: Sequence[tuple[int, int]],
    method: Method,
    seed: str,
) -> list[Explanation]:
    """An Explanation for each (line, position) of a file that a run has read (its run.json). Raises
    ReflError where it is another file by now, or another model.
    """
    part = model.components.part(name)
    _refuse_other_model(model, run)
    records = dict(_records(model, Path(file), run, {line for line, _ in places}))
    return [_explained(model, part, records[line], t, method, seed) for line, t in places]


def _refuse_other_model(model: Model, run: Mapping[str, Any]) -> None:
    before, now = run["model"], model.fingerprint()
    edits = said(model.edits) if model.edits else None
    if before.get("fingerprint") != now or before.get("edits") != edits:
        raise ReflError(
            f"the references are those of another model than {model.name or 'this one'}, or of "
            "other edits: give what they were found with"
        )


def _records(
    model: Model, file: Path, run: Mapping[str, Any], numbers: set[int]
) -> Iterator[tuple[int, Record]]:
    """The lines of these numbers, once the whole is known to be what was read."""
    found: list[Line] = []

    def each() -> Iterator[Line]:
        for line in lines(file, run["data"]["inputs"]):
            if line.number in numbers:
                found.append(line)
            yield line

    if survey(each(), model, file).hash != run["data"]["hash"]:
        raise ReflError(
            f"{shown(file)} is not the file that the references were found in: give that one, or "
            "find them anew"
        )
    return ((line.number, parsed(line)) for line in found)


def _explained(
    model: Model, part: Part, record: Record, position: int, method: Method, seed: str
) -> Explanation:
    reading, target = reading_of(model, record)
    with record.named():
        if part.kind == "head":
            return _through(model, part, record, position, method, seed, reading, target)
        row = _row(model, part, reading, position)
        assert part.number is not None
        question = Question(model, at=(part.site, (row, part.number)))
        return method.explain(question, [reading], [(None, None)], keep=())[0]


def _through(
    model: Model,
    part: Part,
    record: Record,
    position: int,
    method: Method,
    seed: str,
    reading: Reading,
    target: Target,
) -> Explanation:
    question = Question(model, seed, position=record.item.position)
    conditioned = under(method, {part.site: (part.number, position)})
    return conditioned.explain(question, [reading], [target], keep=())[0]


def _row(model: Model, part: Part, reading: Reading, position: int) -> int:
    """Where a position is at the neuron's site: of an expert among the tokens that chose it."""
    owner = next(m for m in model.components.mlps if site_of(m) == part.site)
    if owner.tokens is None:
        return position
    found = activations(model, [reading], [_whole(owner)]).index.get(owner.tokens, ((),))[0]
    if position not in found:
        raise ReflError(
            f"the token at position {position} does not choose the expert of {part.name} in a run "
            "of its own: its router is at a tie there"
        )
    return found.index(position)


def _whole(owner: Mlp) -> Group:
    return Group(owner, tuple(range(owner.width)))
