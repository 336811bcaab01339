"""The same function written with other weights, for any net: what an explanation must not depend on
(identity 7).

Every change returns a model that computes the same, or None where the net has no place for it.
Tensors are changed in copies, as matrices (O, I) whatever their storage; layers that share a tensor
are changed once.

    key_bias        k + c                          each row of scores moves by a number of its own
    query_key       q M,  k M^-T                   the scores stay
    value_out       v N,  N^-1 o                   what the output layer gives stays
    heads, neurons  in another order
    norms           w of a norm moved into the linear layers that read it
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from refl.arrays import asnumpy
from refl.model import Model
from refl.trace import Parameter, Record, Shared, Value
from refl.verification.identities.graph import NORMS, Graph, Projection, values_of

Matrix = Any
"""A NumPy array that may be written to."""

ELEMENTWISE = ("activation", "multiply", "scale")


# -- weights that are written to -------------------------------------------------------------------


def stored_name(p: Parameter) -> str:
    """The name of a parameter in the checkpoint, also where layers share it."""
    name, weights = p.name, p.weights
    while isinstance(weights, Shared):
        inner = name.removeprefix(f"{weights.path}.")
        name, weights = name if inner == name else f"{weights.stored}.{inner}", weights.weights
    return name


@dataclass
class WeightCopies:
    """Tensors of a model as they are changed. `claimed` has those that a change is done with."""

    model: Model
    tensors: dict[str, Matrix] = field(default_factory=dict)
    claimed: set[str] = field(default_factory=set)

    def claim(self, p: Parameter) -> bool:
        """Whether this is the first place that changes the parameter."""
        name = stored_name(p)
        first = name not in self.claimed
        self.claimed.add(name)
        return first

    def __getitem__(self, p: Parameter) -> Matrix:
        name = stored_name(p)
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

    def outputs(self, r: Record) -> list[Matrix]:
        """The same, and no bias where there is none: arrays whose first axis counts outputs."""
        return [array for array in self.linear(r) if array is not None]

    def changed_model(self) -> Model | None:
        if not self.tensors:
            return None
        placed = {name: self.model.place(array) for name, array in self.tensors.items()}
        return replace(self.model, weights=ChainMap(placed, cast(Any, self.model.weights)))


def _parameters(r: Record) -> list[Parameter]:
    return [o for o in r.operands if isinstance(o, Parameter)]


def _weight(r: Record) -> Parameter:
    return cast(Parameter, r.operands[1])


# -- bases inside a head ---------------------------------------------------------------------------


def key_bias(model: Model, graph: Graph) -> Model | None:
    """A vector added to every key. Where positions turn some features
    of a head it stays away from those.
    """
    copies, random = WeightCopies(model), np.random.default_rng(0)
    for a in graph.attentions():
        free, bias = a.key.width - a.key.rotated, a.key.layer.operands[2]
        if a.capped or a.key.normed or not free or bias is None:
            continue
        if copies.claim(_weight(a.key.layer)):
            _, vector = copies.linear(a.key.layer)
            for head in range(a.key.heads):
                cast(Any, vector)[a.key.rows(head)][a.key.rotated :] += random.standard_normal(free)
    return copies.changed_model()


def query_key(model: Model, graph: Graph) -> Model | None:
    """Another basis in every head: any for features that stand still, a turn and a stretch of each
    plane for those that are rotated.
    """
    copies, random = WeightCopies(model), np.random.default_rng(1)
    for a in graph.attentions():
        if a.query.normed or a.key.normed or not copies.claim(_weight(a.key.layer)):
            continue
        for head in range(a.key.heads):
            m = _basis(random, a.key.width, a.key.rotated)
            m = _of_neighbors(m) if a.key.neighbors else m
            _multiply_head(copies, a.key, head, np.linalg.inv(m).T)
            for query in a.query_heads(head):
                _multiply_head(copies, a.query, query, m)
    return copies.changed_model()


def value_out(model: Model, graph: Graph) -> Model | None:
    """Another basis for what each head gives."""
    copies, random = WeightCopies(model), np.random.default_rng(2)
    for a in graph.attentions():
        if not copies.claim(_weight(a.value.layer)):
            continue
        out, width = copies.linear(a.out)[0], a.value.width
        for head in range(a.value.heads):
            n = _basis(random, width, 0)
            _multiply_head(copies, a.value, head, n)
            for query in a.query_heads(head):
                columns = slice(query * width, (query + 1) * width)
                out[:, columns] = out[:, columns] @ np.linalg.inv(n)
    return copies.changed_model()


def _basis(random: np.random.Generator, width: int, rotated: int) -> Matrix:  # -> (d, d)
    m = np.zeros((width, width))
    m[:rotated, :rotated] = plane_rotations(random, rotated)
    rest = np.linalg.qr(random.standard_normal((width - rotated,) * 2))[0]
    m[rotated:, rotated:] = rest * random.uniform(0.5, 2, width - rotated)
    return m


def _of_neighbors(m: Matrix) -> Matrix:  # (d, d) -> (d, d)
    """The same for features of which the even ones do not stand before the odd ones."""
    order = np.arange(len(m)).reshape(-1, 2).T.reshape(-1)
    found = np.empty_like(m)
    found[np.ix_(order, order)] = m
    return found


def plane_rotations(random: np.random.Generator, d: int) -> Matrix:  # -> (d, d)
    """A multiple of a rotation in each plane (i, i + d/2) that rotary positions turn:
    it commutes with them.
    """
    angle, size = random.uniform(0, 6, d // 2), random.uniform(0.5, 2, d // 2)
    c, s = np.diag(size * np.cos(angle)), np.diag(size * np.sin(angle))
    return np.block([[c, -s], [s, c]])


def _multiply_head(copies: WeightCopies, projection: Projection, head: int, m: Matrix) -> None:
    for array in copies.outputs(projection.layer):
        array[projection.rows(head)] = m @ array[projection.rows(head)]


# -- orders ----------------------------------------------------------------------------------------


def heads(model: Model, graph: Graph) -> Model | None:
    """The heads of every attention in another order, each with its queries' group, and the columns
    of a table of biases with them.
    """
    copies = WeightCopies(model)
    for a in graph.attentions():
        if a.query.heads < 2 or not copies.claim(_weight(a.value.layer)):
            continue
        groups = np.roll(np.arange(a.value.heads), 1)
        queries = np.concatenate([np.roll([*a.query_heads(int(g))], 1) for g in groups])
        for projection, order in ((a.query, queries), (a.key, groups), (a.value, groups)):
            _reorder(copies, projection, order)
        out = copies.linear(a.out)[0]
        width = a.value.width
        out[:] = out[:, [head * width + i for head in queries for i in range(width)]]
        if a.bias_table is not None:
            _reorder_columns(copies, cast(Parameter, a.bias_table.operands[0]), queries)
    return copies.changed_model()


def _reorder(copies: WeightCopies, projection: Projection, order: Matrix) -> None:
    """A norm of each head has one weight for all of them: they may stand in any order. The weight
    of a norm of all heads together moves with them.
    """
    rows, features = projection.rows_of(range(projection.heads)), projection.rows_of(order)
    arrays = copies.outputs(projection.layer)
    if projection.whole_norm is not None:  # some have the weights of a head in a row
        arrays += [copies[p].reshape(-1) for p in _parameters(projection.whole_norm)]
    for array in arrays:
        array[rows] = array[features]


def _reorder_columns(copies: WeightCopies, table: Parameter, order: Matrix) -> None:
    if copies.claim(table):
        copies[table][:] = copies[table][:, order]


def neurons(model: Model, graph: Graph) -> Model | None:
    """The neurons between two linear layers in another order."""
    copies = WeightCopies(model)
    for down in graph.of("linear"):
        into = _layers_of_neurons(graph, values_of(down)[0])
        if not into or not copies.claim(_weight(down)):
            continue
        for r in {_weight(r).name: r for r in into}.values():
            for array in copies.outputs(r):
                array[:] = array[::-1].copy()
        w = copies.linear(down)[0]
        w[:] = w[:, ::-1].copy()
    return copies.changed_model()


def _layers_of_neurons(graph: Graph, x: Value) -> list[Record]:
    """The linear layers that x is made of, element by element and with an activation;
    none where it is not.
    """
    layers, to_visit, activated = list[Record](), [x], False
    while to_visit:
        value = to_visit.pop()
        record = graph.producer[value]
        if len(graph.readers[value]) > 1 or record.operation not in (*ELEMENTWISE, "linear"):
            return []
        activated |= record.operation == "activation"
        if record.operation == "linear":
            layers.append(record)
        else:
            to_visit.extend(values_of(record))
    return layers if activated else []


# -- norms -----------------------------------------------------------------------------------------


def norms(model: Model, graph: Graph) -> Model | None:
    """Every norm whose only readers are linear layers passes its weight on to them, and its bias
    where all of them have one.
    """
    copies, uses = WeightCopies(model), _uses(graph)
    for norm in graph.of(*NORMS):
        runs = uses[stored_name(_weight(norm))]  # layers may share the norm
        readers_of_each = [_linear_readers(graph, r.output) for r in runs]
        readers = [r for some in readers_of_each for r in some]
        free = all(readers_of_each) and all(_reads_only(uses, graph, r, norm) for r in readers)
        if free and copies.claim(_weight(norm)):
            _fold(copies, norm, list({stored_name(_weight(r)): r for r in readers}.values()))
    return copies.changed_model()


def _linear_readers(graph: Graph, x: Value) -> list[Record]:
    """The linear layers that read a value, whole or some of its rows;
    none where anything else does.
    """
    if x is graph.output:
        return []
    found: list[Record] = []
    for r in graph.readers.get(x, []):
        inner = [r] if r.operation == "linear" else []
        if r.operation == "gather" or r.attributes.get("kind") == "rows":
            inner = _linear_readers(graph, r.output)
        if not inner:
            return []
        found += inner
    return found


def _uses(graph: Graph) -> dict[str, list[Record]]:
    """Tensor -> the records that read it."""
    uses: dict[str, list[Record]] = {}
    for r in graph.records:
        for p in _parameters(r):
            uses.setdefault(stored_name(p), []).append(r)
    return uses


def _reads_only(uses: dict[str, list[Record]], graph: Graph, reader: Record, norm: Record) -> bool:
    """Whether nobody but readers of this norm uses the layer's weight."""
    name = stored_name(_weight(norm))
    records = uses[stored_name(_weight(reader))]
    return all(r.operation == "linear" and _norm_read_by(graph, r) == name for r in records)


def _norm_read_by(graph: Graph, r: Record) -> str | None:
    record, _ = graph.trace_back(values_of(r)[0], ("gather", "movement"))
    return stored_name(_weight(record)) if record.operation in NORMS else None


def _fold(copies: WeightCopies, norm: Record, readers: Sequence[Record]) -> None:
    """z = w n + b,  W z + c = (W w) n + (W b + c);  a layer without c leaves b / w to the norm,
    whose weight is then 1.
    """
    offset, bias = norm.attributes.get("offset", 0.0), _norm_bias(norm)
    scale = offset + copies[_weight(norm)]
    shift = None if bias is None else copies[bias]
    moved = shift is not None and all(r.operands[2] is not None for r in readers)
    for w, c in (copies.linear(r) for r in readers):
        if moved:
            c += w @ shift
        w *= scale
    copies[_weight(norm)][:] = 1 - offset
    if shift is not None:
        shift[:] = 0 if moved else shift / scale


def _norm_bias(norm: Record) -> Parameter | None:
    return cast(Parameter | None, norm.operands[2]) if norm.operation == "layer_norm" else None


CHANGES: dict[str, Callable[[Model, Graph], Model | None]] = {
    "key_bias": key_bias,
    "query_key": query_key,
    "value_out": value_out,
    "heads": heads,
    "neurons": neurons,
    "norms": norms,
}
