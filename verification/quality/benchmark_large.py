r"""How long a checkpoint that is larger than memory takes to explain, and in how much memory: by
default one of Llama-2-7B's shape with random weights, 13.5 GB in bfloat16.

    python -m refl.verification.quality.benchmark_large --folder CHECKPOINT --tokens 64 256

The folder is filled first where it holds no checkpoint: in shards with an index, a tensor at a
time. It stays. Each length is explained with keep=(), with and without `recompute`, in a process of
its own: once with the files out of the page cache, where the system lets go of them, and `--repeat`
times more. `--reading together` has no tensor begun before it is asked for, `--reading alone` has
one thread widen it, to compare with.

Time is split as the thread that computes sees it: what it waits for weights, and the rest, which is
arithmetic. Of the weights, reading is the time until the pages of a stretch of the file are there,
and widening the time from there; both are summed over the two threads, as wall time, and so is what
of them was hidden: done by the helper while the other thread computed.

Memory is what /proc/self/status says every 20 ms: RssAnon, the memory that the process has asked
for, and RssFile, the pages of files that it has mapped, which the system takes back when it needs
them. The largest of each is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from refl.verification.quality.benchmark import machine
from refl.verification.quality.benchmark.rounds import timed
from refl.verification.quality.benchmark.workload import ids_of

SIZES = {
    "hidden": 4096,
    "layers": 32,
    "heads": 32,
    "intermediate": 11008,
    "vocabulary": 32000,
    "threads": 2,
    "repeat": 1,
}
STORED = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of a number."""
READING = ("ahead", "together", "alone")
SHARD = 5_000_000_000
"""Bytes, as checkpoints are published."""
MIB = 2**20
MODULE = "refl.verification.quality.benchmark_large"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where a process failed."""
    options = _parser().parse_args(arguments)
    machine.limit_threads(options.threads)
    if options.run:
        print(json.dumps(run(Path(options.folder), json.loads(options.run), options.method)))
        return 0
    folder = Path(options.folder)
    if not (folder / INDEX).exists():
        write(folder, options)
    print(describe(folder, options), flush=True)
    found = [report(folder, way, options) for way in ways(options)]
    if options.json:
        text = json.dumps({"about": describe(folder, options), "runs": found}, indent=1)
        Path(options.json).write_text(text, encoding="utf-8")
    return 1 if any(isinstance(each, str) for each in found) else 0


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=about)
    parser.add_argument("--folder", required=True, help="of the checkpoint; filled if need be")
    for size, default in SIZES.items():
        parser.add_argument(f"--{size}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--stored", choices=STORED, default="BF16", help="default BF16")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--method", default="attnlrp", help="default attnlrp")
    parser.add_argument("--reading", nargs="+", choices=READING, default=["ahead"])
    parser.add_argument("--recompute", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--json", help="write what was found there as well")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser


def ways(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    recompute = {"yes": [True], "no": [False], "both": [True, False]}[options.recompute]
    for tokens in options.tokens:
        for again in recompute:
            for reading in options.reading:
                yield {
                    "tokens": tokens,
                    "recompute": again,
                    "reading": reading,
                    "repeat": options.repeat,
                }


# -- the checkpoint --------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": options.tied,
        "vocab_size": options.vocabulary,
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "max_position_embeddings": 4096,
    }


def write(folder: Path, options: argparse.Namespace) -> None:
    """Raises SystemExit where it does not fit the disk, and where there can be no such folder."""
    from refl.nets import llama
    from refl.nets.config import parse

    raw = config_of(options)
    shapes = {name: shape for name, shape, _ in llama.shapes(parse(llama.Config, raw))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise SystemExit(
            f"{folder} cannot be made: {reason.strerror}; give another --folder"
        ) from None
    width = STORED[options.stored]
    needed = sum(map(partial(_nbytes, width), shapes.values()))
    free = shutil.disk_usage(folder).free
    if free < needed + (1 << 30):
        raise SystemExit(
            f"the checkpoint takes {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB "
            "free: give another --folder, or a smaller shape"
        )
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    places: dict[str, str] = {}
    shards, done = _shards(shapes, width), 0
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        inside = {name: shapes[name] for name in sorted(names)}
        for nbytes in write_shard(folder / shard, inside, options.stored):
            done += nbytes
            print(f"\rwritten {done / 1e9:6.2f} of {needed / 1e9:.2f} GB", end="", file=sys.stderr)
        places |= dict.fromkeys(names, shard)
    print(file=sys.stderr)
    index = {"metadata": {"total_size": needed}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")  # last: now it is whole


def _nbytes(width: int, shape: Shape) -> int:
    import math

    return width * math.prod(shape)


def _shards(shapes: dict[str, Shape], width: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        nbytes = _nbytes(width, shape)
        if shards[-1] and held + nbytes > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += nbytes
    return shards


def write_shard(path: Path, shapes: dict[str, Shape], stored: str) -> Iterator[int]:
    """Draws and writes one tensor after the other; yields the bytes of each."""
    import numpy as np

    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _nbytes(STORED[stored], shape)
        table[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    draw = np.random.default_rng(len(shapes))
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            yield file.write(_narrowed(_random(draw, shape), stored).data)


def _random(draw: Any, shape: Shape) -> Any:  # -> float32
    """At a scale that keeps activations near 1."""
    noise = draw.standard_normal(shape, dtype="float32")
    noise *= 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    noise += len(shape) == 1
    return noise


def _narrowed(numbers: Any, stored: str) -> Any:
    if stored == "BF16":
        return (numbers.view("uint32") >> 16).astype("<u2")
    return numbers.astype({"F16": "<f2", "F32": "<f4"}[stored], copy=False)


# -- one process -----------------------------------------------------------------------------------


def run(folder: Path, way: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The explanations of one way, the first with the files out of the page cache."""
    import refl

    for path in sorted(folder.glob("*.safetensors")):
        _forget(path)
    model = refl.load(folder)
    ids = ids_of(way["tokens"], model.config.vocab_size)
    explain = partial(model.explain, ids, method, keep=(), recompute=way["recompute"])
    with read_as(way["reading"]):
        return [_measured(explain) for _ in range(1 + way["repeat"])]


def _forget(path: Path) -> None:
    """The system lets go of the pages that it holds of a file; where it cannot, they stay."""
    import os

    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_as(reading: str) -> AbstractContextManager[Any]:
    from refl.io.ahead import Ahead, Steps

    if reading == "together":
        return replaced(Steps, "after", lambda steps, name: None)
    if reading == "alone":
        return replaced(Ahead, "__contains__", lambda ahead, name: False)
    return nullcontext()


@contextmanager
def replaced(kind: type, name: str, instead: Any) -> Iterator[Any]:
    before = getattr(kind, name)
    setattr(kind, name, instead)
    try:
        yield before
    finally:
        setattr(kind, name, before)


def _measured(explain: Callable[[], Any]) -> dict[str, Any]:
    clock, memory = Clock(), Memory()
    with clock.running(), memory.watched():
        e, wall = timed(explain)
    seconds = {
        "wall": wall,
        "waiting": clock.waiting,
        "arithmetic": wall - clock.waiting,
        "reading": sum(clock.reading),
        "widening": sum(clock.widening),
        "hidden": clock.hidden,
    }
    about = {"tokens": len(e.relevance), "logit": float(e.logit), "sum": float(e.relevance.sum())}
    error = abs(float(e.ledger.conservation_error))
    return seconds | memory.peaks | about | {"conservation error": error}


@dataclass
class Clock:
    """Where the time goes, by functions of the weights that are timed while it runs."""

    waiting: float = 0.0
    """What the thread that computes has waited for weights."""
    hidden: float = 0.0
    """What helpers did in the meantime."""
    reading: list[float] = field(default_factory=list)
    widening: list[float] = field(default_factory=list)
    _asked: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        from refl.io.ahead import Tensor
        from refl.io.weights import Weights

        access, stretch = Weights.__getitem__, Tensor._widen
        with (
            replaced(Weights, "__getitem__", lambda *which: self._access(access, *which)),
            replaced(Tensor, "_widen", lambda *which: self._stretch(stretch, *which)),
        ):
            yield

    def _access(self, access: Any, weights: Any, name: str) -> Any:
        self._asked = True
        array, seconds = timed(partial(access, weights, name))
        self._asked = False
        self.waiting += seconds
        return array

    def _stretch(self, widen: Any, tensor: Any, start: int) -> None:
        hidden, source = not self._asked, tensor._source
        pages = source.stored.reshape(-1)[start : start + source.stretch].view("u1")[::4096]
        _, reading = timed(pages.max)
        _, widening = timed(partial(widen, tensor, start))
        self.reading.append(reading)
        self.widening.append(widening)
        self.hidden += hidden * (reading + widening)


class Memory:
    """The peaks of resident memory in MiB, anonymous and of files, looked at every 20 ms."""

    def __init__(self) -> None:
        self.peaks = dict.fromkeys(("RssAnon", "RssFile"), 0.0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        self._look()
        while not over.wait(0.02):
            self._look()

    def _look(self) -> None:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name = line.partition(":")[0]
            if name in self.peaks:
                self.peaks[name] = max(self.peaks[name], float(line.split()[1]) / 1024)


# -- what is printed -------------------------------------------------------------------------------

COLUMNS = ("wall", "waiting", "arithmetic", "reading", "widening", "hidden", "RssAnon", "RssFile")


def describe(folder: Path, options: argparse.Namespace) -> str:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return (
        f"Llama with hidden {raw['hidden_size']}, {raw['num_hidden_layers']} layers, "
        f"{raw['num_attention_heads']} heads, intermediate {raw['intermediate_size']}, vocabulary "
        f"{raw['vocab_size']}, {'tied' if raw['tie_word_embeddings'] else 'untied'} head, random "
        f"weights, {size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} files; "
        f"{options.method}\n"
        f"{machine.processor()}, {machine.cores()} cores, {options.threads} threads; load at the "
        f"start {machine.load():.1f}\n"
        "seconds; reading and widening summed over two threads, hidden is the part of both that "
        "ran beside arithmetic; MiB at the peak"
    )


def report(folder: Path, way: dict[str, Any], options: argparse.Namespace) -> Any:
    asked = ["--folder", folder, "--run", json.dumps(way), "--method", options.method]
    found = _in_a_process(*asked, "--threads", options.threads)
    blocks = "recompute" if way["recompute"] else "every block held"
    print(f"\n{way['tokens']} tokens, {blocks}, weights read {way['reading']}")
    if isinstance(found, str):
        print(f"  {found}")
        return found
    print("  " + " ".join(f"{column:>10}" for column in COLUMNS))
    for each in found:
        print("  " + " ".join(_numbers(each)), flush=True)
    return way | {"explanations": found}


def _in_a_process(*options: object) -> Any:
    """What this file prints as JSON, run anew; the last line of the error where it fails."""
    command = [sys.executable, "-m", MODULE, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1]
    return json.loads(done.stdout)


def _numbers(found: dict[str, float]) -> Iterable[str]:
    return (f"{found[c]:10.0f}" if "Rss" in c else f"{found[c]:10.2f}" for c in COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
