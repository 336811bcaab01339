"""The same function written with other weights, for any net: what an explanation must not depend on
(identity 7).

A net's records say which linear layers make queries, keys and values, which read a norm, and which
feed a product, so no architecture is named here. Every change returns a model that computes the
same, or None where the net has no place for it. Tensors are changed in copies, as matrices (O, I)
whatever their storage; layers that share a tensor are changed once.

    key_bias        k + c                          each row of scores moves by a number of its own
    query_key       q M,  k M^-T                   the scores stay
    value_out       v N,  N^-1 o                   what a head writes stays
    heads, neurons  in another order
    norms           w of a norm moved into the linear layers that read it
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from refl.arrays import asnumpy
from refl.model import Model
from refl.trace import Parameter, Record, Shared, Value

Matrix = Any
"""A NumPy array that may be written to."""

ELEMENTWISE = ("activation", "multiply", "scale")
NORMS = ("rms_norm", "layer_norm")
MOVED = ("movement", "rotary", "scale")


# -- who feeds whom --------------------------------------------------------------------------------


class Graph:
    """The records of a run, found by what they made and by what they read. `out` is what the net
    gives, where that is known.
    """

    def __init__(self, records: Sequence[Record], out: Value | None = None) -> None:
        self.records, self.out = list(records), out
        self.made = {r.output: r for r in self.records}
        self.readers: dict[Value, list[Record]] = {}
        for r in self.records:
            for v in dict.fromkeys(o for o in r.operands if isinstance(o, Value)):
                self.readers.setdefault(v, []).append(r)

    def of(self, *operations: str) -> Iterator[Record]:
        return (r for r in self.records if r.operation in operations)

    def attentions(self) -> Iterator[Attention]:
        """Every softmax (q k^T) v, in the order of the net."""
        for context in self.of("matmul"):
            p, v = values_of(context)
            if self.made[p].operation == "softmax":
                yield self._attention(context, v, self.made[p])

    def _attention(self, context: Record, v: Value, softmax: Record) -> Attention:
        x, capped, table = values_of(softmax)[0], False, None
        while (made := self.made[x]).operation != "matmul":
            capped |= made.operation == "activation"
            if made.operation == "add":
                table = self.back(values_of(made)[1], MOVED)[0]
            x = values_of(made)[0]
        q, k = values_of(made)
        out = context
        while out.operation != "linear":
            (out,) = self.readers[out.output]
        return Attention(
            made, softmax, context, self.part(q), self.part(k), self.part(v), out, capped, table
        )

    def back(self, x: Value, through: Sequence[str]) -> tuple[Record, list[Record]]:
        """The record that a value was made from by such operations alone, and these, the last
        first.
        """
        passed: list[Record] = []
        while (made := self.made[x]).operation in through:
            passed.append(made)
            x = values_of(made)[0]
        return made, passed

    def part(self, x: Value) -> Part:
        """What part of which linear layer's output stands in the heads of x."""
        made, passed = self.back(x, (*MOVED, *NORMS))
        kinds = [r.attributes.get("kind") for r in passed]
        split = kinds.index("split_heads")
        cut = (
            passed[split + 1].attributes
            if "slice" in kinds[split + 1 :]
            else {"start": 0, "stop": made.output.array.shape[-1]}
        )
        return Part(
            made,
            cut["start"],
            cut["stop"],
            passed[split].attributes["heads"],
            turned=max(
                (r.attributes["cos"].shape[-1] for r in passed if r.operation == "rotary"),
                default=0,
            ),
            normed=any(r.operation in NORMS for r in passed),
            whole_norm=next((r for r in passed[split:] if r.operation in NORMS), None),
        )


def values_of(r: Record) -> list[Value]:
    return [o for o in r.operands if isinstance(o, Value)]


@dataclass(frozen=True)
class Part:
    """Rows start ... stop of a linear layer, a run of them for each head."""

    made: Record
    start: int
    stop: int
    heads: int
    turned: int
    """How many features of a head rotary positions turn."""
    normed: bool
    """Whether a norm stands behind it."""
    whole_norm: Record | None
    """One of all heads together, before they are split."""

    @property
    def width(self) -> int:
        """Features per head."""
        return (self.stop - self.start) // self.heads

    def rows(self, head: int) -> slice:
        return slice(self.start + head * self.width, self.start + (head + 1) * self.width)


@dataclass(frozen=True)
class Attention:
    """The records of one attention, and the layers around it."""

    scores: Record
    softmax: Record
    context: Record
    query: Part
    key: Part
    value: Part
    out: Record
    capped: bool
    """Whether scores pass an activation before the softmax."""
    table: Record | None
    """What a bias of the scores is looked up in, one column for each head."""

    @property
    def group(self) -> int:
        """Query heads for each key head."""
        return self.query.heads // self.key.heads


# -- weights that are written to -------------------------------------------------------------------


def stored(p: Parameter) -> str:
    """The name of a parameter in the checkpoint, also where layers share it."""
    name, weights = p.name, p.weights
    while isinstance(weights, Shared):
        inner = name.removeprefix(f"{weights.path}.")
        name, weights = name if inner == name else f"{weights.stored}.{inner}", weights.weights
    return name


@dataclass
class Copies:
    """Tensors of a model as they are changed. `touched` has the places that were."""

    model: Model
    tensors: dict[str, Matrix] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    def first(self, p: Parameter) -> bool:
        """Whether this is the first place that changes the parameter."""
        name = stored(p)
        fresh = name not in self.touched
        self.touched.add(name)
        return fresh

    def __getitem__(self, p: Parameter) -> Matrix:
        name = stored(p)
        if name not in self.tensors:
            self.tensors[name] = np.array(asnumpy(self.model.weights[name]))
        array = self.tensors[name]
        if p.kernel:
            return array.reshape(array.shape[0], -1)
        return array.T if p.transposed else array

    def linear(self, r: Record) -> tuple[Matrix, Matrix | None]:
        """Weight (O, I) and bias (O,) of a linear layer."""
        _, w, b = r.operands
        return self[cast(Parameter, w)], None if b is None else self[cast(Parameter, b)]

    def done(self) -> Model | None:
        if not self.tensors:
            return None
        placed = {name: self.model.place(array) for name, array in self.tensors.items()}
        return replace(self.model, weights=ChainMap(placed, cast(Any, self.model.weights)))


def _weight(r: Record) -> Parameter:
    return cast(Parameter, r.operands[1])


# -- the changes -----------------------------------------------------------------------------------


def key_bias(model: Model, graph: Graph) -> Model | None:
    """A vector added to every key. Where positions turn some features of a head it stays away from
    those.
    """
    copies, random = Copies(model), np.random.default_rng(0)
    for a in graph.attentions():
        free = a.key.width - a.key.turned
        if (
            a.capped
            or a.key.normed
            or not free
            or a.key.made.operands[2] is None
            or not copies.first(_weight(a.key.made))
        ):
            continue
        _, bias = copies.linear(a.key.made)
        for head in range(a.key.heads):
            cast(Any, bias)[a.key.rows(head)][a.key.turned :] += random.standard_normal(free)
    return copies.done()


def query_key(model: Model, graph: Graph) -> Model | None:
    """Another basis in every head: any for features that stand still, a turn and a stretch of each
    plane for those that are turned.
    """
    copies, random = Copies(model), np.random.default_rng(1)
    for a in graph.attentions():
        if a.query.normed or a.key.normed or not copies.first(_weight(a.key.made)):
            continue
        for head in range(a.key.heads):
            m = _basis(random, a.key.width, a.key.turned)
            _change(copies, a.key, head, np.linalg.inv(m).T)
            for query in range(head * a.group, (head + 1) * a.group):
                _change(copies, a.query, query, m)
    return copies.done()


def _basis(random: np.random.Generator, width: int, turned: int) -> Matrix:  # -> (d, d)
    m = np.zeros((width, width))
    m[:turned, :turned] = plane_turns(random, turned)
    rest = np.linalg.qr(random.standard_normal((width - turned,) * 2))[0]
    m[turned:, turned:] = rest * random.uniform(0.5, 2, width - turned)
    return m


def plane_turns(random: np.random.Generator, d: int) -> Matrix:  # -> (d, d)
    """A multiple of a rotation in each plane (i, i + d/2) that rotary positions turn: it commutes
    with them.
    """
    angle, size = random.uniform(0, 6, d // 2), random.uniform(0.5, 2, d // 2)
    c, s = np.diag(size * np.cos(angle)), np.diag(size * np.sin(angle))
    return np.block([[c, -s], [s, c]])


def _change(copies: Copies, part: Part, head: int, m: Matrix) -> None:
    for array in copies.linear(part.made):
        if array is not None:
            array[part.rows(head)] = m @ array[part.rows(head)]


def value_out(model: Model, graph: Graph) -> Model | None:
    """Another basis for what each head writes."""
    copies, random = Copies(model), np.random.default_rng(2)
    for a in graph.attentions():
        if not copies.first(_weight(a.value.made)):
            continue
        out = copies.linear(a.out)[0]
        for head in range(a.value.heads):
            n = _basis(random, a.value.width, 0)
            _change(copies, a.value, head, n)
            for query in range(head * a.group, (head + 1) * a.group):
                columns = slice(query * a.value.width, (query + 1) * a.value.width)
                out[:, columns] = out[:, columns] @ np.linalg.inv(n)
    return copies.done()


def heads(model: Model, graph: Graph) -> Model | None:
    """The heads of every attention in another order, each with its queries' group, and the columns
    of a table of biases with them.
    """
    copies = Copies(model)
    for a in graph.attentions():
        if a.query.heads < 2 or not copies.first(_weight(a.value.made)):
            continue
        groups = np.roll(np.arange(a.value.heads), 1)
        queries = np.concatenate(
            [np.roll(np.arange(g * a.group, (g + 1) * a.group), 1) for g in groups]
        )
        for part, order in ((a.query, queries), (a.key, groups), (a.value, groups)):
            _reorder(copies, part, order)
        out = copies.linear(a.out)[0]
        out[:] = out[:, _features(queries, 0, a.value.width)]
        if a.table is not None and copies.first(table := cast(Parameter, a.table.operands[0])):
            copies[table][:] = copies[table][:, queries]
    return copies.done()


def _features(order: Matrix, start: int, width: int) -> Matrix:
    return np.concatenate([np.arange(start + h * width, start + (h + 1) * width) for h in order])


def _reorder(copies: Copies, part: Part, order: Matrix) -> None:
    """A norm of each head has one weight for all of them: they may stand in any order. The weight
    of a norm of all heads together moves with them.
    """
    tensors = part.made.operands[1:] + (part.whole_norm.operands[1:] if part.whole_norm else ())
    for parameter in (p for p in tensors if isinstance(p, Parameter)):
        array = copies[parameter]
        array[part.start : part.stop] = array[_features(order, part.start, part.width)]


def neurons(model: Model, graph: Graph) -> Model | None:
    """The neurons between two linear layers in another order."""
    copies = Copies(model)
    for down in graph.of("linear"):
        into = _neurons(graph, values_of(down)[0])
        if not into or not copies.first(_weight(down)):
            continue
        for r in {_weight(r).name: r for r in into}.values():
            for array in copies.linear(r):
                if array is not None:
                    array[:] = array[::-1].copy()
        w = copies.linear(down)[0]
        w[:] = w[:, ::-1].copy()
    return copies.done()


def _neurons(graph: Graph, x: Value) -> list[Record]:
    """The linear layers that x is made of, element by element and with an activation; none where it
    is not.
    """
    found, open_values, active = [], [x], False
    while open_values:
        value = open_values.pop()
        made = graph.made[value]
        if len(graph.readers[value]) > 1 or made.operation not in (*ELEMENTWISE, "linear"):
            return []
        active |= made.operation == "activation"
        if made.operation == "linear":
            found.append(made)
        else:
            open_values.extend(values_of(made))
    return found if active else []


def norms(model: Model, graph: Graph) -> Model | None:
    """Every norm whose only readers are linear layers passes its weight on to them, and its bias
    where all of them have one.
    """
    copies, uses = Copies(model), _uses(graph)
    for norm in graph.of(*NORMS):
        each = [
            _linear_readers(graph, n.output) for n in uses[stored(_weight(norm))]
        ]  # layers may share the norm
        readers = [r for some in each for r in some]
        if (
            all(each)
            and all(_own(uses, graph, r, norm) for r in readers)
            and copies.first(_weight(norm))
        ):
            _fold(copies, norm, list({stored(_weight(r)): r for r in readers}.values()))
    return copies.done()


def _linear_readers(graph: Graph, x: Value) -> list[Record]:
    """The linear layers that read a value, whole or some of its rows; none where anything else
    does.
    """
    if x is graph.out:
        return []
    found: list[Record] = []
    for r in graph.readers.get(x, []):
        moved = r.operation == "gather" or (
            r.operation == "movement" and r.attributes["kind"] == "rows"
        )
        inner = (
            [r] if r.operation == "linear" else _linear_readers(graph, r.output) if moved else []
        )
        if not inner:
            return []
        found += inner
    return found


def _uses(graph: Graph) -> dict[str, list[Record]]:
    """Tensor -> the records that read it."""
    uses: dict[str, list[Record]] = {}
    for r in graph.records:
        for p in (o for o in r.operands if isinstance(o, Parameter)):
            uses.setdefault(stored(p), []).append(r)
    return uses


def _own(uses: dict[str, list[Record]], graph: Graph, reader: Record, norm: Record) -> bool:
    """Whether nobody but readers of this norm uses the layer's weight."""
    return all(
        r.operation == "linear" and _norm_of(graph, r) == stored(_weight(norm))
        for r in uses[stored(_weight(reader))]
    )


def _norm_of(graph: Graph, r: Record) -> str | None:
    made, _ = graph.back(values_of(r)[0], ("gather", "movement"))
    return stored(_weight(made)) if made.operation in NORMS else None


def _fold(copies: Copies, norm: Record, readers: Sequence[Record]) -> None:
    """z = w n + b,  W z + c = (W w) n + (W b + c);  a layer without c leaves b / w to the norm,
    whose weight is then 1.
    """
    offset, bias = (
        norm.attributes.get("offset", 0.0),
        norm.operands[2] if norm.operation == "layer_norm" else None,
    )
    scale = offset + copies[_weight(norm)]
    shift = None if bias is None else copies[cast(Parameter, bias)]
    taken = all(r.operands[2] is not None for r in readers)
    for r in readers:
        w, c = copies.linear(r)
        if shift is not None and c is not None and taken:
            c += w @ shift
        w *= scale
    copies[_weight(norm)][:] = 1 - offset
    if shift is not None:
        shift[:] = 0 if taken else shift / scale


CHANGES: dict[str, Callable[[Model, Graph], Model | None]] = {
    "key_bias": key_bias,
    "query_key": query_key,
    "value_out": value_out,
    "heads": heads,
    "neurons": neurons,
    "norms": norms,
}
