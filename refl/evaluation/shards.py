"""A run in pieces, in a folder: what is finished stays, whatever happens to the rest.

    run.json                          what was asked, of which model and data, by which refl
    part-00000-1f0c5a....jsonl        inputs 0 to n - 1: the name ends in the hash of the content
    part-00001-77e9d2....jsonl        the next n

A shard is written beside, then renamed, so there is all of it or nothing. One whose content has
another hash than its name is made again. A folder is that of one run: another model, other data,
another option are refused before anything is computed. How many workers there are, and where, is no
option: it changes no byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refl.errors import ReflError, quoted, shown
from refl.io.files import atomic_write, read_bytes, reason
from refl.version import __version__

RUN = "run.json"
FORMAT = 1
LARGEST = 1 << 28
"""Bytes of run.json, by far."""
DIGITS = 16
"""Of the hash in a shard's name."""


@dataclass(frozen=True)
class Folder:
    """Where a run is kept; `kind` is the end of its shards' names, "jsonl" or "parquet"."""

    path: Path
    kind: str = "jsonl"

    def begin(self, said: Mapping[str, Any]) -> None:
        """Makes the folder, or goes on with it. Raises ReflError for one that holds something else,
        and for a run with other options.
        """
        asked = _plain({"format": FORMAT, "refl": __version__, **said})
        self._make()
        if (self.path / RUN).exists():
            _refuse_other(self.run(), asked, self.path)
            return
        if strangers := sorted(os.listdir(self.path)):
            raise ReflError(
                f"{shown(self.path)} has no {RUN} and is not empty ({shown(strangers[0])}): give "
                "a new folder, or that of an earlier run"
            )
        atomic_write(self.path / RUN, json.dumps(asked, indent=2).encode() + b"\n")

    def _make(self) -> None:
        try:
            self.path.mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            words = reason(error)
            if isinstance(error, FileNotFoundError) and not self.path.parent.exists():
                words = f"there is no folder {shown(self.path.parent)}: make it first"
            elif isinstance(error, FileExistsError):
                words = "it is a file, expected a folder"
            raise ReflError(f"{shown(self.path)} cannot be written: {words}") from None

    def run(self) -> dict[str, Any]:
        """What an earlier run said of itself."""
        place = self.path / RUN
        try:
            found = json.loads(read_bytes(place, LARGEST))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ReflError(f"{shown(place)} is no description of a run: give another folder")
        return found

    # -- shards ------------------------------------------------------------------------------------

    def finished(self) -> dict[int, Path]:
        """Number -> file of the shards that are whole."""
        return {number: path for number, path in self._named() if _is_whole(path)}

    def write(self, number: int, content: bytes) -> Path:
        """Raises ReflError where it cannot be written, a full disk among the reasons."""
        path = self.path / f"part-{number:05}-{hashed(content)}.{self.kind}"
        atomic_write(path, content)
        for other, old in self._named():  # one that was cut, or changed by hand
            if other == number and old != path:
                with suppress(OSError):
                    old.unlink()
        return path

    def _named(self) -> Iterator[tuple[int, Path]]:
        for path in sorted(self.path.glob(f"part-*-*.{self.kind}")):
            number = path.name.split("-")[1]
            if number.isdecimal() and path.is_file():  # a pipe would never end
                yield int(number), path


def hashed(content: bytes) -> str:
    """The beginning of its SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _is_whole(path: Path) -> bool:
    try:
        return path.stem.endswith(f"-{hashed(path.read_bytes())}")
    except OSError:
        return False


# -- two runs --------------------------------------------------------------------------------------


def _plain(said: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(said))
    return found


def _refuse_other(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for name, old, new in _differences(before, now):
        raise ReflError(
            f"{shown(path)} holds a run with another {name}: there {_brief(old)}, "
            f"now {_brief(new)}; give another folder, or what was given there"
        )


def _brief(value: Any) -> str:
    """A method by its name, several things by theirs."""
    if isinstance(value, dict):
        return quoted(value["name"]) if "name" in value else shown(", ".join(value))
    return "none" if value is None else quoted(value)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of what differs, in the order of what is asked now."""
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name), now.get(name)
        path = f"{within} {name}".strip()
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, "" if name == "options" else path)
        elif old != new:
            yield path, old, new
