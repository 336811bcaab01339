"""The catalogue of known mistakes: mistakes.toml, read.

One id, one kind and one set of words for each, wherever it is met: as a flag of a conformance case
and in the notes of its file, in the diagnosis of a rule (conformance/mistakes.py says what an
implementation with the mistake answers), in that of a whole model (compare/alternatives.py plants
it in refl's rules), and where the diagnosis itself is put to the test
(quality/plant_peer_faults.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class KnownMistake:
    id: str
    kind: Literal["fault", "convention"]
    """convention: a choice that some make on purpose, wrong only where another is asked for."""
    met_in: str
    """Libraries in which it was found, or "common mistake"."""
    does: str
    """What is computed, in a sentence."""
    effect: str
    """What comes of it, in another."""

    @property
    def says(self) -> str:
        return f"{self.does} {self.effect}"

    def __str__(self) -> str:
        return f"{self.id}: {self.says}"


COMMON = "common mistake"


def _read() -> Mapping[str, KnownMistake]:
    path = Path(__file__).parent / "mistakes.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return MappingProxyType({
        id: KnownMistake(id, kind, **{"met_in": COMMON} | facts)
        for kind in ("fault", "convention")
        for id, facts in tables[kind].items()
    })  # fmt: skip


CATALOGUE = _read()
"""Id -> the mistake; those found in libraries first, then slips easily made, then conventions."""


def notes(flags: Iterable[str]) -> dict[str, dict[str, str]]:
    """What flags mean, for the file of vectors that has them."""
    known = [CATALOGUE[flag] for flag in sorted(set(flags))]
    return {
        m.id: {"kind": m.kind, "does": m.does, "effect": m.effect, "met_in": m.met_in}
        for m in known
    }
