"""Files and folders: what may be read; writing that leaves the old file or the whole new one."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

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
        raise ReflError(f"{shown(folder)} cannot be read: {error}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ReflError(f"{shown(path)} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReflError(f"{shown(path)} cannot be read: {error}") from None


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
        raise ReflError(f"{shown(path)} cannot be read: {error}") from None


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
            raise ReflError(f"{shown(path)} cannot be read: {error}") from None
    return digest.hexdigest()


def atomic_write(path: str | Path, *chunks: bytes | memoryview) -> None:
    """Writes `chunks` to `path`, so that a reader finds the old file or the whole new one, whatever
    interrupts.

    Raises ReflError where the place cannot be written or is no regular file.
    """
    try:
        target = Path(os.path.realpath(path))  # through a link, not over it
        if target.exists():
            regular_size(target)
        _write_beside(target, chunks)
    except (OSError, ValueError) as error:
        raise ReflError(f"{shown(path)} cannot be written: {error}") from None


def _write_beside(target: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """A temporary file in the same folder, flushed, then renamed: atomic within one file system."""
    temporary = target.parent / f".refl-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # an interrupt too: nothing half-written stays
        with suppress(OSError):
            temporary.unlink()
        raise
