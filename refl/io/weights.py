"""The weights of a checkpoint: mapped tensors that are widened when used.

float32 asked for as float32 is never copied. Pickles are not read: unpickling runs whatever code
the file holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.arrays import Array
from refl.errors import ReflError, nearest, shown
from refl.io import quantized
from refl.io.ahead import LARGE, Ahead, Source, Stored, read
from refl.io.config import once_each, read_config, read_json
from refl.io.files import NO_PICKLES, PICKLES, InUse, checkpoint_folder, list_folder, sha256, state
from refl.io.quantized import Tensors
from refl.io.quantized.matrix import Matrix
from refl.io.quantized.scheme import Scheme
from refl.io.safetensors import (
    FLOATS,
    Entry,
    map_bytes,
    read_entry,
    read_header,
    view,
)

# the largest published indexes, mixtures of hundreds of experts, are near 10 MiB
_INDEX_LIMIT = 64 << 20


class Weights(Mapping[str, Array]):
    """The tensors of a checkpoint folder by name, mapped lazily.

    Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names, or the only
    other *.safetensors in the folder. Where config.json says that weights are quantized, the
    tensors that make up a matrix are one here, under the matrix's name (refl.io.quantized).

    Tensors are kept after their first use where all of them, widened, fit in `cache_bytes`;
    otherwise none is, and each access widens anew: a large one by two threads, begun before it is
    asked for (see `ahead`).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str,
        place: Callable[[NDArray[Any]], Array],
        cache_bytes: int = 2 << 30,
        config: str = "config.json",
        single: str | None = None,
    ) -> None:
        """`dtype`: float32 or float64. `place`: takes a read-only NumPy array to its device, or
        returns it. `config`, `single`: the names of the file of options and of the one file of
        weights, where they are not a checkpoint's (an adapter's).

        Raises ReflError for anything wrong with the folder, a header, or how weights are quantized;
        the numbers are checked on first use.
        """
        if dtype not in ("float32", "float64"):
            raise ReflError(f"expected dtype float32 or float64, got {shown(dtype)}")
        self.folder = checkpoint_folder(folder)
        self.dtype = dtype
        self.config, self.single = config, single
        self.source, entries = _find(self.folder, single)
        self._shards = {entry.file for entry in entries.values()}
        self._mapped: dict[Path, NDArray[numpy.uint8]] = {}
        self._states = {path: state(path) for path in self._files()}
        self.quantized, self._entries = self._as_quantized(entries)
        """How config.json says that weights are quantized; None where they are plain floats."""
        self.keeps = self._widened_bytes() <= cache_bytes
        self._place = place
        self._kept: dict[str, Array] = {}
        self._checked: set[str] = set()
        self._fingerprint: str | None = None
        self._ahead = Ahead(self._large())
        self._in_use = InUse(self.folder)

    def _as_quantized(self, entries: dict[str, Entry]) -> tuple[Scheme | None, Tensors]:
        own = self.single is None and (self.folder / "config.json").exists()  # no adapter's
        config = read_config(self.folder) if own else {}
        found = quantized.scheme(config)
        if found is None:
            return None, entries

        def numbers(name: str) -> NDArray[Any]:
            return view(entries[name], self._bytes(entries[name].file))

        return found, quantized.tensors(found, config, entries, numbers)

    def _widened_bytes(self) -> int:
        width = numpy.dtype(self.dtype).itemsize
        return sum(entry.count * width for entry in self._entries.values() if _is_float(entry))

    def _large(self) -> list[str]:
        """Names of the tensors that are not kept, and worth a second thread."""
        width = numpy.dtype(self.dtype).itemsize
        return [
            name
            for name, entry in self._entries.items()
            if not self.keeps and _is_float(entry) and entry.count * width >= LARGE
        ]

    def __getitem__(self, name: str) -> Array:
        """The tensor, placed. Raises ReflError where it is missing,
        of no float dtype, or not finite.
        """
        if name in self._kept:
            return self._kept[name]
        self._refuse_changed(self._entry(name).file)
        placed = self._place(self._read(name))
        if self.keeps:
            self._kept[name] = placed
        return placed

    def _read(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        _refuse_numbers(name, entry)
        ahead = self._ahead.read(name, self._source) if name in self._ahead else None
        tensor = ahead or read(self._source(name))
        if not tensor.finite:
            raise self._not_finite(name, tensor.values)
        self._checked.add(name)
        values = tensor.values
        values.flags.writeable = False
        return values.T if isinstance(entry, Matrix) and entry.transposed else values

    def _source(self, name: str) -> Source:
        entry, check = self._entry(name), name not in self._checked
        if isinstance(entry, Matrix):
            return entry.source(self._bytes, self.dtype, check)
        return Stored(view(entry, self._bytes(entry.file)), entry.tag, self.dtype, check)

    def _bytes(self, file: Path) -> NDArray[numpy.uint8]:
        self._refuse_changed(file)
        if file not in self._mapped:
            self._mapped[file] = map_bytes(file)
        return self._mapped[file]

    def stored(self, name: str) -> NDArray[Any]:
        """The tensor on the host, of whatever dtype the file has it in, BF16 and float8 as float32,
        a quantized matrix widened. Raises ReflError where it is missing, or of a dtype that NumPy
        lacks.
        """
        entry = self._entry(name)
        if isinstance(entry, Matrix):
            return self._read(name)
        return read_entry(name, entry, self._bytes(entry.file))

    def _files(self) -> list[Path]:
        """The options, then the index, if any, and the weight files, sorted by name."""
        return [self.folder / self.config, *sorted(self._shards | {self.source})]

    def refuse_changed(self) -> None:
        """Raises ReflError where a file has been written to since it was opened. A tensor that is
        kept may be a view of its file, so whoever runs a net asks before the run.
        """
        for path in self._shards:
            self._refuse_changed(path)

    def _refuse_changed(self, path: Path) -> None:
        """A mapped file that is overwritten changes under the net, and one that is cut short ends
        the process where it is read. One that is gone stays as it was.
        """
        now = state(path)
        if now is not None and now != self._states[path]:
            raise ReflError(f"{shown(path)} has changed since the model was loaded: load it again")

    def _not_finite(self, name: str, values: NDArray[Any]) -> ReflError:
        nan, infinite = int(numpy.isnan(values).sum()), int(numpy.isinf(values).sum())
        return ReflError(
            f"{shown(name)} holds {nan} NaN and {infinite} infinite of {values.size} numbers, "
            f"stored as {self.dtype_of(name)} in {shown(self._entries[name].file.name)}, "
            f"read as {self.dtype}: the checkpoint is damaged, or float64 is needed"
        )

    def _entry(self, name: str) -> Entry | Matrix:
        if name not in self._entries:
            raise _missing(name, self, self.source)
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As for a dict: `default` where there is no such tensor."""
        if name not in self:
            return default
        return self[name]

    def tensors(self) -> list[Entry | Matrix]:
        """Where they lie, of those that are numbers to compute with."""
        return [entry for entry in self._entries.values() if _is_float(entry)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, from the header. Raises ReflError where there is no such tensor."""
        return self._entry(name).shape

    def dtype_of(self, name: str) -> str:
        """The dtype in the file as safetensors spells it: F32, BF16; of a quantized matrix how it
        is stored, in words. Raises ReflError where there is no such tensor.
        """
        return self._entry(name).tag

    def refuse_numbers(self, name: str) -> None:
        """Raises ReflError where there is no such tensor, or where it is one of whole numbers."""
        _refuse_numbers(name, self._entry(name))

    def expect(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Raises ReflError unless there is a tensor `name` of this shape;
        `why` says what it follows from.
        """
        expect(self, name, shape, why)

    def fingerprint(self) -> str:
        """sha256 (hex) of config.json, then of the index, if any, and the weight files, sorted by
        name.

        The same as `cat config.json FILES | sha256sum`.
        """
        if self._fingerprint is None:
            for path in self._files():
                self._refuse_changed(path)
            self._fingerprint = sha256(self._files())
        return self._fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the path and the fingerprint of the files, and opened again; what lies inside
        the package (the model that ships with refl) by its path there.
        """
        folder = self.folder.absolute()
        inside = folder.is_relative_to(_PACKAGE)
        where = (inside, str(folder.relative_to(_PACKAGE) if inside else folder))
        how = (self.dtype, self._place, self.keeps, self.fingerprint(), self.config, self.single)
        return _opened_again, (*where, *how)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return self  # its arrays are read-only

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def _is_float(entry: Entry | Matrix) -> bool:
    """Whether it is one to compute with."""
    return isinstance(entry, Matrix) or entry.tag in FLOATS


def _refuse_numbers(name: str, entry: Entry | Matrix) -> None:
    if not _is_float(entry):
        raise ReflError(
            f"{shown(name)} is stored as {shown(entry.tag)}, expected one of {', '.join(FLOATS)}: "
            "where weights are quantized, quantization_config of config.json has to say how"
        )


_PACKAGE = Path(__file__).absolute().parents[1]


def _opened_again(
    inside: bool,
    folder: str,
    dtype: str,
    place: Callable[[NDArray[Any]], Array],
    keeps: bool,
    fingerprint: str,
    config: str,
    single: str | None,
) -> Weights:
    path = _PACKAGE / folder if inside else Path(folder)
    room = sys.maxsize if keeps else 0
    found = Weights(path, dtype=dtype, place=place, cache_bytes=room, config=config, single=single)
    if found.fingerprint() != fingerprint:
        raise ReflError(
            f"the checkpoint {shown(path)} has changed since the model was pickled: load it anew"
        )
    return found


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
            f"{shown(name)} has shape {found}, config.json asks for {tuple(shape)}: {why}"
        )
    if isinstance(weights, Weights):
        weights.refuse_numbers(name)


def _missing(name: str, weights: Iterable[str], source: Path | None) -> ReflError:
    near = ", ".join(map(shown, nearest(name, weights, 3))) or "none"
    where = "the weights hold" if source is None else f"{shown(source)} holds"
    return ReflError(f"expected a tensor {shown(name)}, {where} no such name; nearest: {near}")


def stored_tensors(folder: str | Path) -> dict[str, Entry]:
    """Where each tensor of the files lies, by the headers alone: quantized matrices in their parts.
    Raises ReflError for anything wrong with the folder or a header.
    """
    return _find(checkpoint_folder(folder))[1]


# -- which files -----------------------------------------------------------------------------------


def _find(folder: Path, only: str | None = None) -> tuple[Path, dict[str, Entry]]:
    """The file that speaks for the weights (the single file or the index),
    and where each tensor lies.
    """
    names = list_folder(folder)
    if only is not None:
        if only not in names:
            raise ReflError(f"expected {only} in {shown(folder)}: there is none")
        return folder / only, read_header(folder / only)[0]
    if "adapter_config.json" in names:
        raise ReflError(
            f"{shown(folder)} holds adapter_config.json: an adapter lies in a folder of its own "
            "beside its base; load the base with adapter= (--adapter) and the adapter's folder"
        )
    if "model.safetensors" in names:
        single = folder / "model.safetensors"
    elif "model.safetensors.index.json" in names:
        index = folder / "model.safetensors.index.json"
        found = _read_index(index)
        _refuse_strays(index, names, {entry.file.name for entry in found.values()})
        return index, found
    else:
        single = folder / _only_safetensors(folder, names)
    return single, read_header(single)[0]


_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def _refuse_strays(index: Path, names: list[str], known: Collection[str]) -> None:
    """A shard beside those of the index is of another save: one of the two is not this model's."""
    for name in names:
        if _SHARD.fullmatch(name) and name not in known:
            raise ReflError(
                f"{shown(index)} names no tensor in {shown(name)}, which lies beside it: one of "
                "the two is not this model's; move the shard away, or make the index anew"
            )


def _only_safetensors(folder: Path, names: list[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(shown, found[:5]))
        raise ReflError(
            f"expected one *.safetensors in {shown(folder)}, found {several}: keep one of them"
        )
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        raise ReflError(
            f"{shown(folder)} has its weights only in {shown(pickles[0])}: {NO_PICKLES}"
        )
    raise ReflError(
        f"expected model.safetensors or its index in {shown(folder)}, found no *.safetensors"
    )


def _read_index(index: Path) -> dict[str, Entry]:
    """The tensors an index names, each from the header of its shard, and those that its shards
    hold besides: what becomes of them is for the net to say.
    """
    places = read_json(index, _INDEX_LIMIT, once_each).get("weight_map")
    if not isinstance(places, dict):
        raise ReflError(
            f"expected an object weight_map in {shown(index)}, from tensor names to files"
        )
    shards = {shard: read_header(_shard(index, shard))[0] for shard in _distinct(index, places)}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise _missing(name, shards[shard], index.parent / shard)
    found = {name: shards[shard][name] for name, shard in places.items()}
    for shard, entries in shards.items():
        for name, entry in entries.items():
            if found.setdefault(name, entry).file != entry.file:
                raise ReflError(
                    f"{shown(index.parent / shard)} holds {shown(name)}, which {shown(index)} "
                    f"places in {shown(found[name].file.name)}: expected each tensor once"
                )
    return found


def _distinct(index: Path, places: dict[str, Any]) -> list[str]:
    for name, shard in places.items():
        if not isinstance(shard, str):
            kind = type(shard).__name__
            raise ReflError(
                f"{shown(index)} gives {shown(name)} a {kind}, expected the name of a file"
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
            f"{shown(index)} names {shown(shard)}, expected a plain *.safetensors beside it"
        )
    return index.parent / shard
