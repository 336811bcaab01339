"""What is measured: each part yields rows, one for each model, input and method.

A row is JSON: what ran (`part`, `model`, `method`, `tokens`, ...), `seconds` of every round by
name, `memory` by side in MiB, `deviation` of the relevances from each other and
`conservation_error`, and under `left out` why a side was not run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from refl.arrays import swap
from refl.verification.quality.benchmark import devices, machine, workload
from refl.verification.quality.benchmark.devices import Device, Peak
from refl.verification.quality.benchmark.rounds import Seconds, Ways, alternated, timed
from refl.verification.quality.benchmark.sides import Answer, Refl, Side, Torch
from refl.verification.quality.benchmark.spec import METHODS, Item, Spec
from refl.verification.quality.benchmark.workload import Sizes
from refl.verification.quality.import_graph import PROJECT

Row = dict[str, Any]

PEERS = {"attnlrp-gradient": "LXT", "cp-lrp": "LXT", "input-x-gradient": "torch"}
"""Method -> who computes the same."""
FIRST = METHODS[0]
"""Where one method stands for all."""
LONG = 2048
"""Beyond so many tokens the first method alone is measured, and not every token's logits."""
FLOAT32 = 1e-4
"""How far relevances may differ, of the largest, and how large a conservation error may be, of the
largest amount: float32 through a dozen blocks; measured about 1e-6.
"""
ROOM = 0.8
"""Of the memory that is free: what a run may be expected to take."""
TEXT = "the keys to the cabinet"
STORIES = PROJECT.parent / "shared" / "checkpoints" / "stories260K"


@dataclass
class Bench:
    """How to measure."""

    sizes: Sizes
    device: Device
    threads: int = 1
    repeat: int = 5
    patience: float = 120.0
    """Seconds after which a row makes do with fewer rounds."""
    tries: int = 3
    methods: Sequence[str] = METHODS
    peers: bool = True
    peak: Callable[[Spec], Peak | str] | None = devices.peak_in_a_process
    """None: memory is not measured."""
    room: Callable[[], float] = devices.available
    rises: dict[tuple[str, str, str], list[tuple[int, float]]] = field(default_factory=dict)
    """(folder, side, method) -> tokens and the MiB they took."""

    def spec(self, kind: str, folder: Path, method: str, **how: Any) -> Spec:
        asked: dict[str, Any] = {**how, "threads": self.threads, "device": self.device.name}
        return Spec(kind, str(folder), "refl", method, **asked)

    def why_not(self, spec: Spec) -> str | None:
        """Why a side is left out; None where it can run."""
        if spec.side != "refl":
            if not self.peers:
                return "not asked for"
            if why := self.device.why_no_peer(spec.side):
                return why
        wanted, room = self._expected(spec), self.room()
        if self.device.name == "cpu" and wanted > ROOM * room:
            return f"would take about {wanted / 1024:.0f} GiB, of {room / 1024:.0f} that are free"
        return None

    def _expected(self, spec: Spec) -> float:  # MiB
        """From the shorter inputs before it; 0 where there were none."""
        known = self.rises.get((spec.folder, spec.side, spec.method), [])
        if not known or not spec.tokens:
            return 0.0
        last = known[-1]
        return float(last[1] * (spec.tokens / last[0]) ** _growth(known))

    def memory(self, spec: Spec) -> Peak | str | None:
        if self.peak is None:
            return None
        found = self.peak(spec)
        if not isinstance(found, str):
            key = (spec.folder, spec.side, spec.method)
            self.rises.setdefault(key, []).append((max(spec.tokens, 1), max(found["rise"], 1.0)))
        return found


def _growth(known: Sequence[tuple[int, float]]) -> float:
    """The power of the length that memory grows with: between 1 and 2, and 2 unless it is known."""
    if len(known) < 2 or known[-2][0] == known[-1][0]:
        return 2.0
    (t0, m0), (t1, m1) = known[-2:]
    return min(2.0, max(1.0, math.log(m1 / m0) / math.log(t1 / t0)))


# -- a row -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """What takes part in the rounds of a row beside refl."""

    peer: str | None = None
    same: bool = True
    """Both compute the same relevance; otherwise the peer's input-x-gradient is a yardstick."""
    every: bool = False
    """The peer also with every token's logits."""
    more: Ways = field(default_factory=dict)
    repeat: int | None = None


def row_of(b: Bench, spec: Spec, beside: Beside, said: Row) -> Row:
    """A row: what is `said` of it, and what was measured."""
    row: Row = {**said, "method": spec.method, "recompute": spec.recompute, "peer": beside.peer}
    row |= {"seconds": {}, "memory": {}, "left out": {}}
    if not _admitted(b, spec, row):
        return row
    other = None if beside.peer is None else replace(spec, side=beside.peer, recompute=False)
    if other is not None and not _admitted(b, other, row):
        other = None
    ours = Refl(spec, b.device)
    if other is None:
        _rounds(b, spec, ours, None, beside, row)
        return row
    theirs = fastest(b, other)
    row["attention"] = theirs.model.config._attn_implementation
    with theirs.patched():
        _rounds(b, spec, ours, theirs, beside, row)
    return row


def _admitted(b: Bench, spec: Spec, row: Row) -> bool:
    """Whether a side can run: its memory is measured first, in a process that may fail."""
    why = b.why_not(spec)
    peak = b.memory(spec) if why is None else None
    if isinstance(peak, str):
        why = peak
    elif peak is not None:
        row["memory"][spec.side] = {name: round(mib, 1) for name, mib in peak.items()}
    if why is not None:
        row["left out"][spec.side] = why
    return why is None


def _rounds(
    b: Bench, spec: Spec, ours: Refl, theirs: Torch | None, beside: Beside, row: Row
) -> None:
    item = workload.item_of(spec)
    answer = ours.run(item)  # warms up: weights are mapped, caches filled
    row["conservation_error"] = answer.error
    ways: dict[str, Any] = {"refl": partial(ours.seconds, item), **beside.more}
    if theirs is not None:
        other = theirs.run(item, answer.target)
        if beside.same:
            row |= compared(answer, other, partial(_in_float64, b, spec, item, answer.target))
        ways["peer"] = partial(theirs.seconds, item, answer.target, beside.every)
    _timed_rounds(b, ways, beside.repeat or b.repeat, row)


def _timed_rounds(b: Bench, ways: Ways, repeat: int, row: Row) -> None:
    """Again, `tries` times at most, where others were at work: the quietest time counts."""
    found: list[Row] = []
    while not found or (machine.is_busy(found[-1]) and len(found) < b.tries):
        one: Row = {}
        with machine.others_at_work(one):
            one["seconds"] = rounded(alternated(ways, repeat, b.patience))
        found.append(one)
    row |= min(found, key=lambda one: one.get("others", 0)) | {"tries": len(found)}


def deviation(ours: Answer, theirs: Answer) -> float:
    """The largest, of the largest relevance."""
    pairs = list(zip(ours.relevance, theirs.relevance, strict=True))
    largest = max(float(abs(mine).max()) for mine, _ in pairs)
    return max(float(abs(mine - other).max()) for mine, other in pairs) / largest


def compared(ours: Answer, theirs: Answer, exact: Callable[[], Answer]) -> Row:
    """How far relevances are apart; where that is more than float32 explains, how far each side is
    from refl in float64 also, which tells whose error it is.
    """
    apart = deviation(ours, theirs)
    if apart < FLOAT32:
        return {"deviation": apart}
    wanted = exact()
    from_exact = {"refl": deviation(wanted, ours), "peer": deviation(wanted, theirs)}
    return {"deviation": apart, "from float64": from_exact}


def _in_float64(b: Bench, spec: Spec, item: Item, target: int) -> Answer:
    return Refl(spec, b.device, "float64").run(item, target)


def agrees(row: Row) -> bool:
    """False where relevances differ, whoever is to blame, or where the conservation error is more
    than rounding.
    """
    return all(row.get(key, 0.0) < FLOAT32 for key in ("deviation", "conservation_error"))


def rounded(seconds: Seconds) -> Seconds:
    return {name: [float(f"{s:.4g}") for s in each] for name, each in seconds.items()}


def fastest(b: Bench, spec: Spec) -> Torch:
    """The peer; of a ViT with the faster of the two forms of attention there are for it."""
    if spec.kind != "vit":
        return Torch(spec, b.device)
    sides = [Torch(replace(spec, attention=form), b.device) for form in ("sdpa", "eager")]
    item = workload.item_of(spec)

    def least(side: Torch) -> float:
        return min(side.seconds(item, 0)[side.name] for _ in range(3))

    return min(sides, key=least)


@contextmanager
def _folder(write: Callable[..., int], *size: Any) -> Iterator[tuple[Path, int]]:
    """A checkpoint in a temporary folder, and how many numbers it has."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), write(Path(folder), *size)


# -- length and depth ------------------------------------------------------------------------------


def tokens(b: Bench) -> Iterator[Row]:
    s = b.sizes
    with _folder(workload.write_llama, s, s.layers, max(s.tokens)) as (folder, _):
        for method in b.methods:
            for length in s.tokens:
                first = method == b.methods[0]
                if first or length <= LONG:
                    every = first and length <= LONG
                    yield _llama_row(b, folder, method, length, s.layers, "tokens", every)


def depth(b: Bench) -> Iterator[Row]:
    s = b.sizes
    for layers in s.depths:
        with _folder(workload.write_llama, s, layers, s.depth_tokens) as (folder, _):
            yield _llama_row(b, folder, b.methods[0], s.depth_tokens, layers, "depth", False)


def _llama_row(
    b: Bench, folder: Path, method: str, length: int, layers: int, part: str, every: bool
) -> Row:
    spec = b.spec("llama", folder, method, tokens=length)
    said: Row = {"part": part, "model": f"Llama {b.sizes.hidden} x {layers}"}
    said |= {"layers": layers, "tokens": length}
    peer = PEERS.get(method)
    return row_of(b, spec, Beside(peer, every=every and peer == "LXT"), said)


# -- short texts -----------------------------------------------------------------------------------


def short(b: Bench) -> Iterator[Row]:
    from refl.model import SHIPPED

    for name, folder in (("shipped", SHIPPED), ("stories260K", STORIES)):
        if not folder.is_dir():
            why = "not beside the project (../shared/checkpoints)"
            said = {"part": "short", "model": name, "method": FIRST, "peer": None}
            yield said | {"left out": {"refl": why}}
            continue
        for length in b.sizes.short_tokens:
            yield _short_row(b, name, folder, length)
    yield _explain_row(b, SHIPPED)


def _short_row(b: Bench, name: str, folder: Path, length: int) -> Row:
    """Beside it the matrix products of the forward and the sweep by themselves."""
    spec = b.spec("llama", folder, FIRST, tokens=length)
    operations, pairs = products(Refl(spec, b.device).model, workload.item_of(spec).input)
    multiply = partial(_multiply, pairs)
    more = {BARE: lambda: {BARE: timed(multiply, b.device.synchronize)[1]}}
    said: Row = {"part": "short", "model": name, "tokens": length, "operations": operations}
    beside = Beside(PEERS[FIRST], more=more, repeat=b.sizes.short_rounds)
    return row_of(replace(b, peak=None), spec, beside, said)


BARE = "bare products"

Product = tuple[Any, Any]


def products(model: Any, ids: Any) -> tuple[int, list[Product]]:
    """How many operations the net asks for, attention's each by itself; and the matrix products
    that a forward and a gradient need: for z = x W^T also r W, for z = A B also r B^T and A^T r,
    with z in the place of r.
    """
    records = model.trace([ids])[0].records
    return len(records), [pair for record in records for pair in _products(record)]


def _products(record: Any) -> Iterator[Product]:
    if record.operation not in ("linear", "matmul"):
        return
    (a, b), z = record.arrays[:2], record.output.array
    b = swap(b) if record.operation == "linear" else b
    yield a, b
    yield z, swap(b)
    if record.operation == "matmul":
        yield swap(a), z


def _multiply(pairs: Sequence[Product]) -> None:
    for a, b in pairs:
        _ = a @ b


def _explain_row(b: Bench, folder: Path) -> Row:
    """The call a user makes, from text to the Explanation; the peer gets token ids, as many."""
    spec = b.spec("llama", folder, FIRST)
    model = Refl(spec, b.device).model
    length = len(model.encode(TEXT))
    said: Row = {"part": "short", "model": "shipped", "text": TEXT, "tokens": length}
    explain = partial(model.explain, TEXT, spec.method, keep=())
    more = {"explain": lambda: {"refl explain": timed(explain, b.device.synchronize)[1]}}
    beside = Beside(PEERS[FIRST], more=more, repeat=b.sizes.short_rounds)
    return row_of(replace(b, peak=None), replace(spec, tokens=length), beside, said)


# -- a list of inputs ------------------------------------------------------------------------------


def batch(b: Bench) -> Iterator[Row]:
    s = b.sizes
    longest = max(workload.sentence_lengths(s.sentences))
    with _folder(workload.write_llama, s, s.layers, longest) as (folder, _):
        yield _batch_row(b, folder)


def _batch_row(b: Bench, folder: Path) -> Row:
    spec = b.spec("llama", folder, FIRST, sentences=b.sizes.sentences)
    texts = workload.texts_of(spec)
    row: Row = {"part": "batch", "model": f"Llama {b.sizes.hidden} x {b.sizes.layers}"}
    row |= {"method": spec.method, "peer": "LXT", "sentences": len(texts)}
    row |= {"tokens": sum(map(len, texts)), "seconds": {}, "memory": {}, "left out": {}}
    other = replace(spec, side="LXT")
    if why := b.why_not(other):
        row["left out"]["LXT"] = why
    theirs = None if why else Torch(other, b.device)
    if theirs is not None:
        theirs.bound, row["bounds"] = _best_bound(b, theirs, texts)
    _admitted(b, spec, row)
    if theirs is not None:
        _admitted(b, replace(other, bound=theirs.bound), row)
    _batch_rounds(b, Refl(spec, b.device), theirs, texts, row)
    return row


def _best_bound(b: Bench, side: Torch, texts: list[list[int]]) -> tuple[int, dict[str, float]]:
    """Tokens of a batch with which the peer is fastest, on a quarter of the texts; and the seconds
    with each.
    """
    few, found = texts[::4] or texts, {}
    with side.patched():
        side.batch(few)
        for side.bound in b.sizes.bounds:
            found[side.bound] = timed(partial(side.batch, few), b.device.synchronize)[1]
    return min(found, key=lambda bound: found[bound]), {str(k): v for k, v in found.items()}


def _batch_rounds(
    b: Bench, ours: Refl, theirs: Torch | None, texts: list[list[int]], row: Row
) -> None:
    answer = ours.batch(texts)
    row["conservation_error"] = answer.error
    sides: list[Side] = [ours]
    if theirs is None:
        return _finish_batch(b, sides, texts, row)
    with theirs.patched():
        row["deviation"] = deviation(answer, theirs.batch(texts))
        _finish_batch(b, [ours, theirs], texts, row)


def _finish_batch(b: Bench, sides: list[Side], texts: list[list[int]], row: Row) -> None:
    def seconds(side: Side) -> dict[str, float]:
        return {side.name: timed(partial(side.batch, texts), b.device.synchronize)[1]}

    ways: Ways = {side.name: partial(seconds, side) for side in sides}
    _timed_rounds(b, ways, b.repeat, row)


# -- pictures, and an encoder-decoder --------------------------------------------------------------

OTHERS = (
    ("input-x-gradient", False),
    ("attnlrp-gradient", False),
    ("attnlrp", False),
    ("attnlrp", True),
)
"""Method, and whether blocks are recomputed. The peer is torch's autograd: the same relevance for
the first, a yardstick for the second.
"""


def vision(b: Bench) -> Iterator[Row]:
    size = b.sizes.vit
    said: Row = {"part": "vision", "model": f"ViT {size['hidden']} x {size['layers']}"}
    said |= {"pixels": size["image"]}
    with _folder(workload.write_vit, size) as (folder, numbers):
        for method, recompute in (*OTHERS, ("attnlrp-vit", False)):
            spec = b.spec("vit", folder, method, recompute=recompute)
            yield _beside_torch(b, spec, said | {"parameters": numbers})


def t5(b: Bench) -> Iterator[Row]:
    s = b.sizes
    lengths = {"tokens": s.t5_tokens, "prefix": s.t5_prefix}
    said: Row = {"part": "t5", "model": f"Flan-T5 {s.t5['hidden']} x {s.t5['layers']}", **lengths}
    with _folder(workload.write_t5, s.t5) as (folder, numbers):
        for method, recompute in OTHERS:
            spec = b.spec("t5", folder, method, recompute=recompute, **lengths)
            yield _beside_torch(b, spec, said | {"parameters": numbers})


def _beside_torch(b: Bench, spec: Spec, said: Row) -> Row:
    peer = "torch" if spec.method in ("input-x-gradient", "attnlrp-gradient") else None
    return row_of(b, spec, Beside(peer, same=spec.method == "input-x-gradient"), said)


MEASURED: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "tokens": tokens,
    "depth": depth,
    "short": short,
    "batch": batch,
    "vision": vision,
    "t5": t5,
}
