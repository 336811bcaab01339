"""References explained: of a neuron its own activation, down to the tokens; of a head what is
explained of the line, as far as it comes through the head at that position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refl.components import Mlp, Part, site_of
from refl.edits import said
from refl.errors import ReflError, shown
from refl.evaluation.corpus import reading_of
from refl.evaluation.data import Line, Record, lines, parsed, survey
from refl.explanation import Explanation
from refl.latent.references.runs import activations
from refl.latent.references.selection import Group
from refl.methods import Method, Table, under
from refl.model import Model
from refl.network import Reading
from refl.question import Question


@dataclass(frozen=True)
class Asked:
    """Of which neuron or head, and how. `seed`: of what is explained, where that is an output."""

    model: Model
    part: Part
    method: Method
    seed: str = "logit"

    def of(
        self, file: str | Path, run: Mapping[str, Any], places: Sequence[tuple[int, int]]
    ) -> list[Explanation]:
        """An Explanation for each (line, position) of a file that a run has read (its run.json).
        Raises ReflError where it is another file by now, or another model.
        """
        _refuse_other_model(self.model, run)
        if self.part.kind == "head" and not isinstance(self.method, Table):
            raise ReflError(
                f"method {self.method.name} is no table of rules, and of {self.part.name} is shown "
                "what comes through the head in a sweep: take a table such as attnlrp"
            )
        records = dict(_records(self.model, Path(file), run, {line for line, _ in places}))
        return [self._explained(records[line], position) for line, position in places]

    def _explained(self, record: Record, position: int) -> Explanation:
        number, site = self.part.number, self.part.site
        assert number is not None
        reading, target = reading_of(self.model, record)
        with record.named():
            if self.part.kind == "head":
                question = Question(self.model, self.seed, position=record.item.position)
                through = under(self.method, {site: (number, position)})
                return through.explain(question, [reading], [target], keep=())[0]
            row = _row(self.model, self.part, reading, position)
            question = Question(self.model, at=(site, (row, number)))
            return self.method.explain(question, [reading], [(None, None)], keep=())[0]


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
