"""The records of a run as a graph, and the attentions in it: which linear layers make queries, keys
and values, and which reads what a head gives. No architecture is named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from refl.arrays import asnumpy
from refl.trace import Record, Value

NORMS = ("rms_norm", "layer_norm")
REARRANGING = ("movement", "rotary", "scale")


def values_of(r: Record) -> list[Value]:
    return [o for o in r.operands if isinstance(o, Value)]


def host_arrays(r: Record) -> list[Any]:
    """What an operation read, on the host."""
    return [None if a is None else asnumpy(a) for a in r.arrays]


class Graph:
    """The records of a run, found by what they produced and by what they read. `output` is what
    the net gives, where that is known.
    """

    def __init__(self, records: Sequence[Record], output: Value | None = None) -> None:
        self.records, self.output = list(records), output
        self.producer = {r.output: r for r in self.records}
        self.readers: dict[Value, list[Record]] = {}
        for r in self.records:
            for v in dict.fromkeys(values_of(r)):
                self.readers.setdefault(v, []).append(r)

    def of(self, *operations: str) -> Iterator[Record]:
        return (r for r in self.records if r.operation in operations)

    def attentions(self) -> Iterator[Attention]:
        """Every softmax (q k^T) v, in the order of the net."""
        for context in self.of("matmul"):
            p, v = values_of(context)
            if self.producer[p].operation == "softmax":
                yield self._attention(context, v, self.producer[p])

    def _attention(self, context: Record, v: Value, softmax: Record) -> Attention:
        x, capped, bias_table = values_of(softmax)[0], False, None
        while (record := self.producer[x]).operation != "matmul":
            capped |= record.operation == "activation"
            if record.operation == "add":
                bias_table = self.trace_back(values_of(record)[1], REARRANGING)[0]
            x = values_of(record)[0]
        query, key, value = (self.projection(x) for x in (*values_of(record), v))
        out = self._next_linear(context)
        return Attention(record, softmax, context, query, key, value, out, capped, bias_table)

    def _next_linear(self, record: Record) -> Record:
        while record.operation != "linear":
            (record,) = self.readers[record.output]
        return record

    def trace_back(self, x: Value, through: Sequence[str]) -> tuple[Record, list[Record]]:
        """The record that a value comes from by such operations alone,
        and these, the last first.
        """
        passed: list[Record] = []
        while (record := self.producer[x]).operation in through:
            passed.append(record)
            x = values_of(record)[0]
        return record, passed

    def projection(self, x: Value) -> Projection:
        """The linear layer whose output stands in the heads of x."""
        layer, passed = self.trace_back(x, (*REARRANGING, *NORMS))
        kinds = [r.attributes.get("kind") for r in passed]
        split = kinds.index("split_heads")
        heads, start, stop = passed[split].attributes["heads"], 0, layer.output.array.shape[-1]
        if "slice" in kinds[split + 1 :]:
            start, stop = (passed[split + 1].attributes[end] for end in ("start", "stop"))
        stride = width = (stop - start) // heads
        if layer.role == "attention.query_key_value" and "slice" not in kinds[split + 1 :]:
            cut = passed[split - 1].attributes  # of what each head has
            start, width = cut["start"], cut["stop"] - cut["start"]
        rotary = [r.attributes["cos"].shape[-1] for r in passed if r.operation == "rotary"]
        return Projection(
            layer,
            start,
            stride,
            width,
            heads,
            rotated=max(rotary, default=0),
            neighbors="reshape" in kinds[:split],
            normed=any(r.operation in NORMS for r in passed),
            whole_norm=next((r for r in passed[split:] if r.operation in NORMS), None),
        )


@dataclass(frozen=True)
class Projection:
    """Rows of a linear layer, as many for each head: from `start` on, each head's `stride` behind
    those of the one before.
    """

    layer: Record
    start: int
    stride: int
    width: int
    """Features per head."""
    heads: int
    rotated: int
    """How many features of a head rotary positions turn."""
    neighbors: bool
    """Whether these turn features 2i and 2i + 1 together, not i and i + d/2."""
    normed: bool
    """Whether a norm stands behind it."""
    whole_norm: Record | None
    """One of all heads together, before they are split."""

    def rows(self, head: int) -> slice:
        start = self.start + head * self.stride
        return slice(start, start + self.width)

    def rows_of(self, heads: Iterable[int]) -> list[int]:
        """Those of several, one head after the other."""
        return [self.start + head * self.stride + i for head in heads for i in range(self.width)]


@dataclass(frozen=True)
class Attention:
    """The records of one attention, and the layers around it."""

    scores: Record
    softmax: Record
    context: Record
    query: Projection
    key: Projection
    value: Projection
    out: Record
    """The linear layer that reads all heads."""
    capped: bool
    """Whether scores pass an activation before the softmax."""
    bias_table: Record | None
    """What a bias of the scores is looked up in, one column for each head."""

    @property
    def group(self) -> int:
        """Query heads for each key head."""
        return self.query.heads // self.key.heads

    def query_heads(self, head: int) -> range:
        """Those that look at this key head."""
        return range(head * self.group, (head + 1) * self.group)
