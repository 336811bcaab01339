"""Files and folders: what may be read; writing that leaves the old file or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeAlias

from refl.errors import ReflError, shown

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
NO_PICKLES = (
    "a pickle runs code when read, so refl does not read it; convert the weights to safetensors"
)


def checkpoint_folder(folder: str | Path) -> Path:
    """The folder itself. Raises ReflError where it is missing, or a file."""
    path = Path(folder)
    if stat.S_ISDIR(_stat(path).st_mode):
        return path
    reason = f": {NO_PICKLES}" if path.suffix in PICKLES else ""
    raise ReflError(f"expected the folder of a checkpoint, {shown(path)} is a file{reason}")


def list_folder(folder: str | Path) -> list[str]:
    """The names in a checkpoint folder, sorted. Raises ReflError where it cannot be listed."""
    try:
        return sorted(os.listdir(checkpoint_folder(folder)))
    except OSError as error:
        raise ReflError(f"{shown(folder)} cannot be read: {reason(error)}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ReflError(_absent(path)) from None
    except (OSError, ValueError) as error:
        raise ReflError(f"{shown(path)} cannot be read: {reason(error)}") from None


def _absent(path: Path) -> str:
    if path.is_symlink():
        target = shown(os.readlink(path))
        return f"{shown(path)} is a link to {target}, which does not exist: point it to a file"
    return f"{shown(path)} does not exist: give the path of a file or folder that does"


def reason(error: OSError | ValueError) -> str:
    """Why the system refused, without the path, which the sentence names already."""
    if isinstance(error, OSError):
        circle = "it is a link that leads in a circle" if error.errno == errno.ELOOP else ""
        return circle or error.strerror or str(error)
    return str(error)  # a NUL in the name, half of a character


def regular_size(path: Path) -> int:
    """The size of a regular file. Anything else is refused unopened:
    opening a FIFO waits forever.
    """
    found = _stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ReflError(f"expected a file, {shown(path)} is a folder, pipe or device")
    return found.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises ReflError where there is none,
    or more than `limit` bytes.
    """
    size = regular_size(path)
    if size > limit:
        raise ReflError(
            f"{shown(path)} has {size} bytes, expected at most {limit}: this is something else"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReflError(f"{shown(path)} cannot be read: {reason(error)}") from None


def sha256(files: Iterable[Path]) -> str:
    """Of the bytes of all files, one after the other; hex."""
    digest = hashlib.sha256()
    for path in files:
        regular_size(path)
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ReflError(f"{shown(path)} cannot be read: {reason(error)}") from None
    return digest.hexdigest()


# -- one file under several names ------------------------------------------------------------------

Identity: TypeAlias = tuple[int, int]
"""Device and inode: equal for all names of a file, links and hard links among them."""


def identity(path: str | Path | int) -> Identity | None:
    """Of the regular file behind a path (or an open file's number); None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


State: TypeAlias = tuple[int, ...]


def state(path: Path) -> State | None:
    """What changes when a file is written to or replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_DEPTH, _MOST_FILES = 3, 10_000


def identities(folder: str | Path, depth: int = _DEPTH) -> set[Identity]:
    """Of all files in a folder and the folders in it, links followed; as many as a checkpoint may
    have.
    """
    found: set[Identity] = set()
    for path in _files(folder, depth):
        if one := identity(path):
            found.add(one)
        if len(found) >= _MOST_FILES:
            break
    return found


def _files(folder: str | Path, depth: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in inside:
        if entry.is_dir():
            yield from _files(entry.path, depth - 1) if depth > 1 else ()
        else:
            yield entry.path


class InUse:
    """The files of a folder, which nothing here may overwrite as long as this object lives."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self.files = frozenset(identities(folder))
        _IN_USE.add(self)


_IN_USE: weakref.WeakSet[InUse] = weakref.WeakSet()


def user_of(path: str | Path) -> InUse | None:
    """The checkpoint in use that a file belongs to."""
    found = identity(path)
    return next((one for one in tuple(_IN_USE) if found in one.files), None) if found else None


# -- writing ---------------------------------------------------------------------------------------


def atomic_write(path: str | Path, *chunks: bytes | memoryview) -> None:
    """Writes `chunks` to `path`, so that a reader finds the old file or the whole new one, whatever
    interrupts. A file that is replaced keeps its permissions.

    Raises ReflError where the place cannot be written, is no regular file, is read-only, or is a
    file of a checkpoint in use.
    """
    try:
        target = writable(path)
        _write_beside(target, chunks)
    except (OSError, ValueError) as error:
        raise ReflError(f"{shown(path)} cannot be written: {reason(error)}") from None


def writable(path: str | Path) -> Path:
    """Where a file of this name goes: through a link, not over it. Raises ReflError for a place
    that cannot be written.
    """
    try:
        target = Path(os.path.realpath(path)) if os.fspath(path) else None
        obstacle = "the name is empty, expected that of a file"
        if target:  # what /dev/stdout is has no path of its own, so the name is asked first
            obstacle = _no_file(Path(path)) or _obstacle(target)
    except (OSError, ValueError) as error:
        obstacle = reason(error)
    if obstacle:
        raise ReflError(f"{shown(path)} cannot be written: {obstacle}")
    assert target is not None
    return target


def _no_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISDIR(mode):
        return "it is a folder, expected the name of a file"
    return "" if stat.S_ISREG(mode) else "it is a pipe or a device, expected the name of a file"


def _obstacle(target: Path) -> str:
    folder = target.parent
    if not folder.is_dir():
        return f"there is no folder {shown(folder)}: make it first"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write in {shown(folder)}: choose another place"
    try:
        found = target.stat()
    except FileNotFoundError:
        return ""
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        return "it is read-only: remove it first, or choose another name"
    if user := user_of(target):
        return f"it is a file of the checkpoint {shown(user.folder)}: choose another name"
    return ""


def _write_beside(target: Path, chunks: Sequence[bytes | memoryview]) -> None:
    """A temporary file in the same folder, flushed, then renamed: atomic within one file system."""
    temporary = target.parent / f".refl-{secrets.token_hex(8)}.tmp"
    try:
        if not _write_nameless(target, temporary, chunks):
            with open(temporary, "xb") as file:
                _fill(file, target, chunks)
        os.replace(temporary, target)
    except BaseException:  # an interrupt too: nothing half-written stays
        with suppress(OSError):
            temporary.unlink()
        raise


def _fill(file: IO[bytes], target: Path, chunks: Sequence[bytes | memoryview]) -> None:
    file.writelines(chunks)
    _take_over(target, file.fileno())
    file.flush()
    os.fsync(file.fileno())


def _write_nameless(target: Path, name: Path, chunks: Sequence[bytes | memoryview]) -> bool:
    """Writes a file that has no name before it is whole, so that even a kill leaves nothing of it.
    False where the system or the file system has no such files.
    """
    if (opened := _opened_nameless(name.parent)) is None:
        return False
    with open(opened, "wb") as file:
        _fill(file, target, chunks)
        return _link(file.fileno(), name)


def _opened_nameless(folder: Path) -> int | None:
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError:
        return None


def _link(file: int, name: Path) -> bool:
    """Gives an open file without a name this one."""
    folder = os.open(name.parent, os.O_RDONLY)
    try:  # with a folder Python calls linkat, which alone follows the link in /proc
        os.link(f"/proc/self/fd/{file}", name.name, dst_dir_fd=folder, follow_symlinks=True)
        return True
    except OSError:
        return False
    finally:
        os.close(folder)


def _take_over(target: Path, file: int) -> None:
    """The permissions of the file that is to be replaced, and its owner where that is allowed."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "fchown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        with suppress(OSError):
            os.fchown(file, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(file, stat.S_IMODE(old.st_mode))
