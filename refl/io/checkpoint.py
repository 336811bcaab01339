"""Checkpoints on disk: config.json, and safetensors files whose tensors are mapped, and widened
when used.

A safetensors file is eight bytes of header length, a JSON header naming each tensor's dtype, shape
and place in the file, then the numbers. The safetensors library validates it; numpy.memmap views
the numbers where they lie, so nothing is read before it is used, and float32 asked for as float32
is never copied. Pickles are not read: unpickling runs whatever code the file holds.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import json
import math
import os
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import numpy
import safetensors
from numpy.typing import NDArray

from refl.arrays import Array, asnumpy
from refl.errors import ReflError

Hook: TypeAlias = Callable[[list[tuple[str, Any]]], dict[str, Any]]

_CONFIG_LIMIT = 16 << 20
_INDEX_LIMIT = (
    64 << 20
)  # the largest published indexes, mixtures of hundreds of experts, are near 10 MiB
_HEADER_LIMIT = 100_000_000  # the safetensors library reads no longer header
_MOST_DIMENSIONS = 64  # NumPy's limit

_FLOATS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
}  # NumPy has no bfloat16: its bits
_STORED = _FLOATS | {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_TAGS = {numpy.dtype(code): tag for tag, code in _STORED.items() if tag not in ("BF16", "BOOL")}
_TAGS[numpy.dtype(bool)] = "BOOL"

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NO_PICKLES = (
    "a pickle runs code when read, so refl does not read it; convert the weights to safetensors"
)


# --- config.json ----------------------------------------------------------------------------------


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, as parsed.

    Raises ReflError for a folder that is missing or is a file, and for a config.json that is
    missing, too large, not JSON, or not an object.
    """
    return read_json(_folder(folder) / "config.json", _CONFIG_LIMIT)


def _folder(folder: str | Path) -> Path:
    path = Path(folder)
    if stat.S_ISDIR(_stat(path).st_mode):
        return path
    reason = f": {_NO_PICKLES}" if path.suffix in _PICKLES else ""
    raise ReflError(f"expected the folder of a checkpoint, {_shown(path)} is a file{reason}")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ReflError(f"{_shown(path)} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReflError(f"{_shown(path)} cannot be read: {error}") from None


def _regular(path: Path) -> int:
    """The size of a regular file. Anything else is refused unopened: opening a FIFO waits
    forever.
    """
    found = _stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ReflError(f"expected a file, {_shown(path)} is a folder, pipe or device")
    return found.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises ReflError where there is none, or more than `limit`
    bytes.
    """
    size = _regular(path)
    if size > limit:
        raise ReflError(
            f"{_shown(path)} has {size} bytes, expected at most {limit}: this is something else"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReflError(f"{_shown(path)} cannot be read: {error}") from None


def read_json(path: Path, limit: int, hook: Hook | None = None) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; `hook` makes each object in it
    (json.loads).

    Raises ReflError for anything else, NaN and infinity apart: some configurations hold them.
    """
    parsed = _parse_json(path, read_bytes(path, limit), hook)
    if not isinstance(parsed, dict):
        raise ReflError(
            f"expected a JSON object in {_shown(path)}, it holds a {type(parsed).__name__}"
        )
    return parsed


def _parse_json(path: Path, data: bytes, hook: Hook | None) -> Any:
    try:
        return json.loads(data, object_pairs_hook=hook)
    except RecursionError:
        raise ReflError(f"{_shown(path)} is nested too deeply to be read") from None
    except ValueError as error:  # also what is no Unicode, and integers of thousands of digits
        raise ReflError(f"{_shown(path)} is not valid JSON: {error}") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook that refuses a tensor named twice: two readers of the file could take different
    ones.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {_shown(twice)} is given twice")
    return found


def _shown(name: object) -> str:
    """A name for a message: as it stands where it can be printed, otherwise escaped and cut."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 300 else ascii(text[:300])


# --- one safetensors file -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `shape` numbers of safetensors dtype `tag`, from byte `start` of
    `file`.
    """

    file: Path
    tag: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The table of a safetensors file and its metadata; no number is read.

    Raises ReflError for anything the safetensors library refuses, and for a tensor NumPy could not
    hold.
    """
    header, base = _validated_header(path)
    metadata = header.pop("__metadata__", None) or {}
    return {name: _entry(path, name, fields, base) for name, fields in header.items()}, metadata


def _validated_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the first number, once the safetensors library accepts the
    file.
    """
    size = _regular(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ReflError(
                    f"{_shown(path)} is cut short: {size} bytes, a header that claims {length}"
                )
            with safetensors.safe_open(path, framework="numpy"):
                pass  # opening checks shapes, dtypes and offsets against the size of the file
            return _parse_json(path, file.read(length), _once_each), 8 + length
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ReflError(f"{_shown(path)} is not a readable safetensors file: {error}") from None


def _entry(path: Path, name: str, fields: Any, base: int) -> _Entry:
    if not isinstance(
        fields, dict
    ):  # the library also takes ["F32", [2], [0, 8]]; no writer makes that
        raise ReflError(
            f"{_shown(path)} has no object for {_shown(name)} but a {type(fields).__name__}"
        )
    entry = _Entry(path, fields["dtype"], tuple(fields["shape"]), base + fields["data_offsets"][0])
    if (
        len(entry.shape) > _MOST_DIMENSIONS
        or 8 * math.prod(max(n, 1) for n in entry.shape) > sys.maxsize
    ):
        shape = _shown(entry.shape)
        raise ReflError(
            f"{_shown(path)} gives {_shown(name)} the shape {shape}, which no array can have"
        )
    return entry


def _map_bytes(path: Path) -> NDArray[numpy.uint8]:
    try:
        return numpy.memmap(path, dtype=numpy.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ReflError(f"{_shown(path)} cannot be mapped: {error}") from None


def _view(entry: _Entry, raw: NDArray[numpy.uint8]) -> NDArray[Any]:
    """The numbers as they lie in the file, read-only, BF16 as its 16 bits."""
    return numpy.ndarray(entry.shape, _STORED[entry.tag], buffer=raw, offset=entry.start)


def widen_bfloat16(bits: NDArray[numpy.uint16]) -> NDArray[numpy.float32]:
    """The float32 numbers whose upper halves are `bits`; exact, for bfloat16 is float32 cut to 16
    bits.
    """
    wide = numpy.array(bits, dtype=numpy.uint32)
    wide <<= 16
    return wide.view(numpy.float32)


def _as_float(stored: NDArray[Any], tag: str, dtype: str) -> NDArray[Any]:
    """`stored` as float32 or float64: exact but for F64 asked for as float32, which is rounded to
    nearest.
    """
    values = widen_bfloat16(stored) if tag == "BF16" else stored
    with numpy.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
        values = values.astype(dtype, copy=False)
    return numpy.require(
        values, requirements="A"
    )  # a header of odd length leaves the numbers unaligned


def _is_finite(values: NDArray[Any]) -> bool:
    """Whether every number is finite. The extremes carry NaN and inf, without the temporary of
    isfinite.
    """
    with numpy.errstate(invalid="ignore"):
        return math.isfinite(values.min(initial=0)) and math.isfinite(values.max(initial=0))


# --- the weights of a checkpoint ------------------------------------------------------------------


class Weights(Mapping[str, Array]):
    """The tensors of a checkpoint folder by name, mapped lazily.

    Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names, or the only
    other *.safetensors in the folder. Tensors are kept after their first use where all of them,
    widened, fit in `cache_bytes`; otherwise none is, and each access widens anew.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str,
        place: Callable[[NDArray[Any]], Array],
        cache_bytes: int = 2 << 30,
    ) -> None:
        """`dtype`: float32 or float64. `place`: takes a read-only NumPy array to its device, or
        returns it.

        Raises ReflError for anything wrong with the folder or a header; the numbers are checked on
        first use.
        """
        if dtype not in ("float32", "float64"):
            raise ReflError(f"expected dtype float32 or float64, got {_shown(dtype)}")
        self.folder = _folder(folder)
        self.dtype = dtype
        self.source, self._entries = _find(self.folder)
        self.keeps = self._widened_bytes() <= cache_bytes
        self._place = place
        self._kept: dict[str, Array] = {}
        self._checked: set[str] = set()
        self._mapped: dict[Path, NDArray[numpy.uint8]] = {}
        self._fingerprint: str | None = None

    def _widened_bytes(self) -> int:
        width = numpy.dtype(self.dtype).itemsize
        return sum(entry.count * width for entry in self._entries.values() if entry.tag in _FLOATS)

    def __getitem__(self, name: str) -> Array:
        """The tensor, placed. Raises ReflError where it is missing, of no float dtype, or not
        finite.
        """
        if name in self._kept:
            return self._kept[name]
        placed = self._place(self._read(name))
        if self.keeps:
            self._kept[name] = placed
        return placed

    def _read(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        if entry.tag not in _FLOATS:
            raise ReflError(
                f"{_shown(name)} is stored as {entry.tag}, expected one of {', '.join(_FLOATS)}: "
                "refl reads float checkpoints, quantized ones have to be converted first"
            )
        if entry.file not in self._mapped:
            self._mapped[entry.file] = _map_bytes(entry.file)
        values = _as_float(_view(entry, self._mapped[entry.file]), entry.tag, self.dtype)
        self._check_finite(name, values)
        values.flags.writeable = False
        return values

    def _check_finite(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._checked and not _is_finite(values):
            nan, infinite = int(numpy.isnan(values).sum()), int(numpy.isinf(values).sum())
            raise ReflError(
                f"{_shown(name)} holds {nan} NaN and {infinite} infinite of {values.size} "
                "numbers, stored as "
                f"{self.dtype_of(name)} in {_shown(self._entries[name].file.name)}, read "
                f"as {self.dtype}: "
                "the checkpoint is damaged, or float64 is needed"
            )
        self._checked.add(name)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise _missing(name, self, self.source)
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As for a dict: `default` where there is no such tensor."""
        if name not in self:
            return default
        return self[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, from the header. Raises ReflError where there is no such tensor."""
        return self._entry(name).shape

    def dtype_of(self, name: str) -> str:
        """The dtype in the file as safetensors spells it: F32, BF16. Raises ReflError where there
        is none.
        """
        return self._entry(name).tag

    def expect(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Raises ReflError unless there is a tensor `name` of this shape; `why` says what it
        follows from.
        """
        expect(self, name, shape, why)

    def fingerprint(self) -> str:
        """sha256 (hex) of config.json, then of the index, if any, and the weight files, sorted by
        name.

        The same as `cat config.json FILES | sha256sum`.
        """
        if self._fingerprint is None:
            files = {entry.file for entry in self._entries.values()} | {self.source}
            self._fingerprint = _digest([self.folder / "config.json", *sorted(files)])
        return self._fingerprint

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def expect(weights: Mapping[str, Array], name: str, shape: tuple[int, ...], why: str) -> None:
    """Raises ReflError unless `weights` (Weights or a plain dict) has a tensor `name` of this
    shape.

    `why` ends the message: which fields of config.json the shape follows from.
    """
    if name not in weights:
        raise _missing(name, weights, getattr(weights, "source", None))
    found = weights.shape(name) if isinstance(weights, Weights) else tuple(weights[name].shape)
    if found != tuple(shape):
        raise ReflError(
            f"{_shown(name)} has shape {found}, config.json asks for {tuple(shape)}: {why}"
        )


def _missing(name: str, weights: Iterable[str], source: Path | None) -> ReflError:
    near = ", ".join(map(_shown, nearest(name, weights, 3))) or "none"
    where = "the weights hold" if source is None else f"{_shown(source)} holds"
    return ReflError(f"expected a tensor {_shown(name)}, {where} no such name; nearest: {near}")


def nearest(name: str, names: Iterable[str], count: int) -> list[str]:
    """The `count` names most like `name`, best first; fewer where fewer are alike.

    difflib takes minutes for the names of a large checkpoint: it sees those which begin and end
    alike.
    """

    def alike(other: str) -> int:
        return _common(name, other) + _common(name[::-1], other[::-1])

    likely = heapq.nlargest(
        200, (other for other in names if len(other) < 2 * len(name) + 4), key=alike
    )
    return difflib.get_close_matches(name, likely, n=count)


def _common(a: str, b: str) -> int:
    return len(os.path.commonprefix([a, b]))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        _regular(path)
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ReflError(f"{_shown(path)} cannot be read: {error}") from None
    return digest.hexdigest()


# --- which files ----------------------------------------------------------------------------------


def _find(folder: Path) -> tuple[Path, dict[str, _Entry]]:
    """The file that speaks for the weights (the single file or the index), and where each tensor
    lies.
    """
    names = list_folder(folder)
    if "model.safetensors" in names:
        single = folder / "model.safetensors"
    elif "model.safetensors.index.json" in names:
        index = folder / "model.safetensors.index.json"
        return index, _read_index(index)
    else:
        single = folder / _only_safetensors(folder, names)
    return single, _read_header(single)[0]


def list_folder(folder: str | Path) -> list[str]:
    """The names in a checkpoint folder, sorted. Raises ReflError where it cannot be listed."""
    try:
        return sorted(os.listdir(_folder(folder)))
    except OSError as error:
        raise ReflError(f"{_shown(folder)} cannot be read: {error}") from None


def _only_safetensors(folder: Path, names: list[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(_shown, found[:5]))
        raise ReflError(
            f"expected one *.safetensors in {_shown(folder)}, found {several}: keep one of them"
        )
    pickles = [name for name in names if Path(name).suffix in _PICKLES]
    if pickles:
        raise ReflError(
            f"{_shown(folder)} has its weights only in {_shown(pickles[0])}: {_NO_PICKLES}"
        )
    raise ReflError(
        f"expected model.safetensors or its index in {_shown(folder)}, found no *.safetensors"
    )


def _read_index(index: Path) -> dict[str, _Entry]:
    """The tensors an index names, each from the header of its shard."""
    places = read_json(index, _INDEX_LIMIT, _once_each).get("weight_map")
    if not isinstance(places, dict):
        raise ReflError(
            f"expected an object weight_map in {_shown(index)}, from tensor names to files"
        )
    shards = {shard: _read_header(_shard(index, shard))[0] for shard in _distinct(index, places)}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise _missing(name, shards[shard], index.parent / shard)
    return {name: shards[shard][name] for name, shard in places.items()}


def _distinct(index: Path, places: dict[str, Any]) -> list[str]:
    for name, shard in places.items():
        if not isinstance(shard, str):
            kind = type(shard).__name__
            raise ReflError(
                f"{_shown(index)} gives {_shown(name)} a {kind}, expected the name of a file"
            )
    return sorted(set(places.values()))


def _shard(index: Path, shard: str) -> Path:
    """The path of a shard. Only a plain name may stand in an index, or a checkpoint could read any
    file.

    The file itself may be a link: caches keep checkpoints as links to a common store.
    """
    plain = shard == PurePosixPath(shard).name == PureWindowsPath(shard).name and shard != ".."
    if not plain or not shard.endswith(".safetensors"):
        raise ReflError(
            f"{_shown(index)} names {_shown(shard)}, expected a plain *.safetensors beside it"
        )
    return index.parent / shard


# --- oracle files ---------------------------------------------------------------------------------


def read_safetensors(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file and its metadata.

    The arrays are read-only views of the mapped file, in the file's dtypes; BF16 comes as float32
    and BOOL as bool, both copies. Raises ReflError for a broken file and for dtypes NumPy lacks.
    """
    entries, metadata = _read_header(Path(path))
    raw = _map_bytes(Path(path))
    return {name: _load(name, entry, raw) for name, entry in entries.items()}, metadata


def _load(name: str, entry: _Entry, raw: NDArray[numpy.uint8]) -> NDArray[Any]:
    if entry.tag not in _STORED:
        raise ReflError(
            f"{_shown(name)} is stored as {entry.tag}, expected one of {', '.join(_STORED)}"
        )
    stored = _view(entry, raw)
    if entry.tag == "BF16":
        return widen_bfloat16(stored)
    return numpy.asarray(stored != 0) if entry.tag == "BOOL" else stored


def write_safetensors(
    path: str | Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Writes `arrays` (bool, integers, floats) and `metadata`, all of it or nothing.

    Equal input gives equal bytes, whatever its order. Raises ReflError for what the format cannot
    hold and for a place that cannot be written.
    """
    stored = {name: _storable(name, array) for name, array in arrays.items()}
    order = sorted(
        stored, key=lambda name: (-stored[name].itemsize, name)
    )  # widest first: all stay aligned
    header = _header_bytes({name: stored[name] for name in order}, metadata)
    _replace(
        Path(path), [header, *(stored[name].reshape(-1).view(numpy.uint8).data for name in order)]
    )


def _storable(name: str, array: Array) -> NDArray[Any]:
    host = asnumpy(array)
    if host.dtype.newbyteorder("<") not in _TAGS:
        raise ReflError(
            f"{_shown(name)} has dtype {host.dtype}, which a safetensors file cannot hold"
        )
    return numpy.asarray(host, dtype=host.dtype.newbyteorder("<"), order="C")


def _header_bytes(stored: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header, padded so that the numbers start at a multiple of eight."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    if "__metadata__" in stored:
        raise ReflError(
            "expected no array named __metadata__: the safetensors format reserves the name"
        )
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ReflError("expected metadata of strings: write anything else as JSON")
    stop = 0
    for name, array in stored.items():
        start, stop = stop, stop + array.nbytes
        table[name] = {
            "dtype": _TAGS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, stop],
        }
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ReflError(
            f"expected names and metadata in Unicode, got half of a character: {error}"
        ) from None
    if len(text) > _HEADER_LIMIT - 8:
        raise ReflError(
            f"names and metadata take {len(text)} bytes, a header holds at most {_HEADER_LIMIT}"
        )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, so that a reader finds the old file or the whole new one, whatever
    interrupts.

    Raises ReflError where the place cannot be written or is no regular file.
    """
    _replace(Path(path), [data])


def _replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    try:
        target = Path(os.path.realpath(path))  # through a link, not over it
        if target.exists():
            _regular(target)
        _write_beside(target, chunks)
    except (OSError, ValueError) as error:
        raise ReflError(f"{_shown(path)} cannot be written: {error}") from None


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
