"""Files that a command line names: which are read, which are written. An output that is a file that
is read, or that another output goes to, is refused before anything is computed, whatever it is
called: files are compared by identity, so links, hard links and other spellings are one file.

An option that names a file says so by its type, and that is all a command has to do:

    p.add_argument("--html", type=output, metavar="FILE", help=...)
    p.add_argument("a", type=Source, metavar="A", help=...)
"""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from refl.errors import ReflError, shown
from refl.io.files import Identity, atomic_write, identities, identity, writable

PACKAGE = Path(__file__).parents[1]


class Output(str):
    """The name of a file that is to be written."""


class OutputFolder(str):
    """The name of a folder that is to be written to."""


class Source(str):
    """What may be the name of a file that is read; - is standard input."""

    def files(self) -> set[Identity]:
        found = identity(sys.stdin.fileno()) if self == "-" and _has_file(sys.stdin) else None
        return {one for one in (found, identity(self)) if one}


class Labeled(Source):
    """NAME=FILE: a file that is read, and what it is called."""

    @property
    def label(self) -> str:
        return self.partition("=")[0]

    @property
    def file(self) -> str:
        return self.partition("=")[2]

    def files(self) -> set[Identity]:
        return Source(self.file).files()


class Folder(Source):
    """The name of a folder whose files are read."""

    def files(self) -> set[Identity]:
        return identities(self)


class Module(Source):
    """The name of a Python file, or of a module."""

    def files(self) -> set[Identity]:
        stem = self.replace(".", "/")
        names = (self, *(f"{path or '.'}/{stem}{end}" for path in ["", *sys.path] for end in _ENDS))
        return {one for name in names if (one := identity(name))}


_ENDS = (".py", "/__init__.py")


def output(name: str) -> Output:
    """The type of an option that names a file to write."""
    if not name:
        raise argparse.ArgumentTypeError("expected the name of a file, got an empty one")
    return Output(name)


def folder(name: str) -> OutputFolder:
    """The type of an option that names a folder to write to."""
    if not name:
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty one")
    return OutputFolder(name)


def labeled(said: str) -> Labeled:
    """The type of an option of files with names."""
    found = Labeled(said)
    if not found.label or not found.file:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {shown(said)!r}")
    return found


def _has_file(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):  # closed, or no file of the system's
        return False


# -- what is refused -------------------------------------------------------------------------------


def refuse_overlaps(args: argparse.Namespace) -> None:
    """Refuses an output that cannot be written, that is read, or that another output goes to."""
    outputs = {option: value for option, value in _named(args, Output)}
    for option, name in outputs.items():
        target = writable(name)
        if reason := _read_as(target, args) or _printed_to(target):
            raise ReflError(f"{shown(name)} cannot be written: {reason}: choose another name")
        for other, another in outputs.items():
            if other != option and _spelled(writable(another)) == _spelled(target):
                raise ReflError(
                    f"--{other} and --{option} both name {shown(name)}: give each a file of its own"
                )
    for option, name in outputs.items():
        _refuse_suffix(option, name)


SUFFIXES = {
    "html": (".html", ".htm"),
    "junit": (".xml",),
    "pdf": (".pdf",),
    "png": (".png",),
    "save": (".safetensors",),
    "out": (".safetensors",),
    "svg": (".svg",),
    "tex": (".tex",),
}
"""Option -> how the name of what it writes may end; it may have no suffix, too."""


def _refuse_suffix(option: str, name: str) -> None:
    """A page called x.pdf would be taken for what it is not."""
    suffix, known = Path(name).suffix, SUFFIXES.get(option, ())
    if known and suffix and suffix.lower() not in known:
        raise ReflError(
            f"--{option} writes {known[0]}, and {shown(name)} ends in {shown(suffix)}: name it "
            f"{shown(Path(name).stem)}{known[0]}"
        )


def _named(args: argparse.Namespace, kind: type[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of those of a kind."""
    for option, value in vars(args).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, kind):
                yield option, one


def _read_as(target: Path, args: argparse.Namespace) -> str:
    """What the command reads it as; "" where it does not."""
    found = identity(target)
    for option, source in _named(args, Source):
        assert isinstance(source, Source)
        if found and found in source.files():
            return _what(source, option)
        if isinstance(source, Folder) and _would_be_read(target, source):
            return "a file of that name would be read as a part of the checkpoint"
    if found and found in identities(PACKAGE, depth=6):
        return "it is a file of refl itself"
    return ""


def _what(source: Source, option: str) -> str:
    if isinstance(source, Folder):
        return "it is a file of the model's own folder"
    if source == "-":
        return "standard input comes from it"
    return f"it is read as {option.upper()}"


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def _would_be_read(target: Path, folder: Folder) -> bool:
    """Whether a new file of this name in the folder would be taken for the checkpoint's."""
    place = Path(os.path.realpath(folder))
    if target.parent != place:
        return False
    if target.suffix == ".safetensors":
        return target.name == _WEIGHTS[0] or not any((place / name).exists() for name in _WEIGHTS)
    return target.suffix == ".json"


def _printed_to(target: Path) -> str:
    """Whether standard output or standard error goes there already."""
    found = identity(target)
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        if found and _has_file(stream) and identity(stream.fileno()) == found:
            return f"{name} goes to it"
    return ""


def _spelled(target: Path) -> object:
    """Equal for two outputs that are, or on some file systems would be, one file."""
    return identity(target) or unicodedata.normalize("NFC", str(target)).casefold()


# -- writing ---------------------------------------------------------------------------------------


def write(path: str | None, content: Callable[[], bytes]) -> None:
    """A file, whole or not at all, where one is asked for. Raises ReflError for a file of the
    program that runs, an adapter's helper say.
    """
    if path:
        _refuse_loaded(path)
        atomic_write(path, content())


def write_all(args: argparse.Namespace, contents: Mapping[str, Callable[[], bytes]]) -> None:
    """The files of these options, of those that are there. All that can be refused is refused
    before the first file is written.
    """
    asked = {getattr(args, option): make for option, make in contents.items()}
    made = {path: make() for path, make in asked.items() if path}
    for path in made:
        _refuse_loaded(path)
    for path, content in made.items():
        atomic_write(path, content)


def _refuse_loaded(path: str) -> None:
    found = identity(path)
    if found and any(found == identity(file) for file in _loaded()):
        raise ReflError(f"{shown(path)} cannot be written: it is a module that has been loaded")


def _loaded() -> Iterable[str]:
    """The files of all modules."""
    for module in tuple(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            yield file
