"""A whole model in exact arithmetic: the forward of every operation and the relevance of every
value, with 60 digits.

Of a recorded run only its structure is taken: which operation stands on which, their attributes,
the weights, the ids, masks and routing. No number the engine computed goes in. Each operation's
forward is computed again, cosines and sines included; then the records are walked from the last to
the first, each by the definition in exact.py, exact_experts.py or exact_vision.py that the table of
the method (METHODS, written from the papers once more) names; what meets at a value is summed here.

    forward(records, config)                  value -> its entries
    sweep(records, values, at, seed, method)  site -> relevance, rule and absorbed entries;
                                              explained = tokens + absorbed, to 1e-40

A condition number comes from running the same again with `Noise`: every number that is read or
formed is multiplied by (1 + d xi), xi in [-1, 1] and d = 1e-20. What moves, over d, is how many
units of roundoff a correct floating-point run may be off (stochastic arithmetic, Vignes 1993).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from typing import Any, TypeAlias, TypeVar

import numpy as np

from refl.trace import Parameter, Record, Value
from refl.verification.definitions import exact, exact_experts, exact_vision
from refl.verification.definitions.exact import MP, Split

Exact: TypeAlias = Any
"""An array of dtype object whose entries are mpf of 60 digits. The first axis counts examples."""
Absorbed: TypeAlias = list[dict[str, list[Any]]]
"""For each example: cause -> the messages that ended there."""

ZERO = MP.mpf(0)
D = MP.mpf("1e-20")
"""The size of the noise: its square is far below the condition numbers looked for, and far above 60
digits.
"""


class Noise:
    """Multiplies numbers by (1 + d xi). Without a seed there is no noise."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = None if seed is None else random.Random(seed)

    def __call__(self, array: Exact) -> Exact:
        if self.random is None or array is None:
            return array
        return _like(
            array.shape, (v * (1 + D * (2 * self.random.random() - 1)) for v in array.flat)
        )


SILENT = Noise()


def exactly(array: Any) -> Exact:
    """The same numbers as mpf; a float has a finite binary expansion, so nothing is lost."""
    host = np.asarray(array)
    return _like(host.shape, (MP.mpf(float(v)) for v in host.flat))


def rounded(array: Exact) -> Any:
    """To float64, each entry once."""
    return np.array([float(v) for v in array.flat], dtype=np.float64).reshape(array.shape)


def _like(shape: tuple[int, ...], numbers: Iterable[Any]) -> Exact:
    out = np.empty(shape, dtype=object)
    flat = list(numbers)
    if flat:
        out.reshape(-1)[:] = flat
    return out


def _zeros(shape: tuple[int, ...]) -> Exact:
    return _like(shape, [ZERO] * prod(shape))


# -- one operation, ready to be computed -----------------------------------------------------------


class Weights:
    """The parameters of a run, read exactly, each once."""

    def __init__(self) -> None:
        self.read: dict[tuple[str, bool, bool], Exact] = {}

    def __call__(self, p: Parameter) -> Exact:
        key = (p.name, p.transposed, p.kernel)
        if key not in self.read:
            self.read[key] = exactly(p.array)
        return self.read[key]


@dataclass
class Node:
    """What a forward or a rule reads: operands (None where there is no bias), the output where it
    is known, attributes, options.
    """

    operands: list[Exact]
    attributes: dict[str, Any]
    noise: Noise
    z: Exact = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Exact:
        return self.operands[0]

    @property
    def norm_eps(self) -> Any:
        return MP.mpf(float(self.attributes["norm_eps"]))

    @property
    def norm_weight(self) -> list[Any]:
        """Gemma stores what differs from `offset`."""
        return [v + MP.mpf(self.attributes.get("offset", 0.0)) for v in self.operands[1]]

    @property
    def bias(self) -> list[Any] | None:
        b = self.operands[2]
        return None if b is None else list(b)

    def visible(self, at: tuple[int, ...]) -> list[bool]:
        """Which entries of the row at this index a mask lets be seen."""
        mask = self.attributes.get("mask")
        if mask is None:
            return [True] * self.x.shape[-1]
        return [bool(v) for v in np.broadcast_to(mask, self.x.shape)[at]]


def _rows(x: Exact) -> list[tuple[int, ...]]:
    return list(np.ndindex(*x.shape[:-1]))


def _by_rows(x: Exact, width: int, of: Callable[[tuple[int, ...]], Sequence[Any]]) -> Exact:
    """Rows of a new last axis, of(index) each."""
    return _like((*x.shape[:-1], width), (v for at in _rows(x) for v in of(at)))


# -- forward ---------------------------------------------------------------------------------------


def _linear(n: Node) -> Exact:
    w = n.operands[1].tolist()
    return _by_rows(n.x, len(w), lambda at: exact.linear(list(n.x[at]), w, n.bias))


def _matmul(n: Node) -> Exact:
    a, v = n.operands
    out = _zeros((*a.shape[:-1], v.shape[-1]))
    for at in np.ndindex(*a.shape[:-2]):
        out[at] = _like(
            out.shape[-2:], (e for row in exact.matmul(a[at].tolist(), v[at].tolist()) for e in row)
        )
    return out


def _multiply(n: Node) -> Exact:
    return prod(n.operands[1:], start=n.x)


def _softmax(n: Node) -> Exact:
    return _by_rows(n.x, n.x.shape[-1], lambda at: exact.softmax(list(n.x[at]), n.visible(at)))


def _rms_norm(n: Node) -> Exact:
    w = n.norm_weight
    return _by_rows(n.x, len(w), lambda at: exact.rms_norm(list(n.x[at]), w, n.norm_eps))


def _layer_norm(n: Node) -> Exact:
    w = list(n.operands[1])
    return _by_rows(n.x, len(w), lambda at: exact.layer_norm(list(n.x[at]), w, n.bias, n.norm_eps))


def _activation(n: Node) -> Exact:
    return _like(n.x.shape, (exact.activation(n.attributes["kind"], v) for v in n.x.flat))


def _rotary(n: Node) -> Exact:
    cos, sin = n.attributes["cos"], n.attributes["sin"]
    return _by_rows(
        n.x,
        n.x.shape[-1],
        lambda at: exact.linear(list(n.x[at]), exact.rotation(cos[at[-1]], sin[at[-1]]), None),
    )


def _pooling(n: Node) -> Exact:
    m = exactly(n.attributes["counted"])
    return (n.x * m).sum(axis=1, keepdims=True) / m.sum(axis=1, keepdims=True)


def _renormalize(n: Node) -> Exact:
    return _by_rows(n.x, n.x.shape[-1], lambda at: exact_experts.renormalize(list(n.x[at])))


def _top_k(n: Node) -> Exact:
    """The choice is the record's; that it is the exact p's own too is checked."""
    chosen = n.attributes["chosen"]
    k = len(chosen[0][0])
    for at in _rows(n.x):
        if n.noise.random is None and exact_experts.top_k(list(n.x[at]), k) != list(
            chosen[at[0]][at[1]]
        ):
            raise ValueError(
                f"the recorded choice of experts {chosen[at[0]][at[1]]} is not that of the "
                "exact probabilities"
            )
    return _by_rows(n.x, k, lambda at: [n.x[at][e] for e in chosen[at[0]][at[1]]])


def _gather(n: Node) -> Exact:
    each = [
        exact_experts.gather(x.tolist(), index)
        for x, index in zip(n.x, n.attributes["index"], strict=True)
    ]
    return _like(
        (len(each), len(each[0]), n.x.shape[-1]),
        (v for example in each for row in example for v in row),
    )


def _combine(n: Node) -> Exact:
    length, index = n.attributes["length"], n.attributes["index"]
    out = _zeros((n.x.shape[0], length, n.x.shape[-1]))
    for b in range(len(out)):
        rows = exact_experts.combine(
            [y[b].tolist() for y in n.operands], [where[b] for where in index], length
        )
        out[b] = _like(out.shape[1:], (ZERO + v for row in rows for v in row))
    return out


def _movement(n: Node) -> Exact:
    reads, shape = _reads(n)
    return _like(shape, (n.operands[reads[k][0]][reads[k][1]] for k in np.ndindex(*shape)))


def _reads(n: Node) -> tuple[exact.Reads, tuple[int, ...]]:
    how = {key: value for key, value in n.attributes.items() if key != "kind"}
    reads = READS[n.attributes["kind"]]([o.shape for o in n.operands], **how)
    return reads, tuple(1 + max(axis) for axis in zip(*reads, strict=True))


def _concat(shapes: list[tuple[int, ...]], axis: int) -> exact.Reads:
    return exact.concat(shapes, axis if axis < 0 else axis - len(shapes[0]))


def _reshape(shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> exact.Reads:
    known = prod(n for n in shape if n >= 0)
    return exact.reshape(shapes[0], tuple(prod(shapes[0]) // known if n < 0 else n for n in shape))


READS: dict[str, Callable[..., exact.Reads]] = {
    "split_heads": lambda shapes, heads: exact.split_heads(shapes[0], heads),
    "merge_heads": lambda shapes: exact.merge_heads(shapes[0]),
    "repeat_heads": lambda shapes, times: exact.repeat_heads(shapes[0], times),
    "transpose": lambda shapes: exact.transpose(shapes[0]),
    "slice": lambda shapes, start, stop: exact.slice_(shapes[0], start, stop),
    "concat": _concat,
    "rows": lambda shapes, index: exact.rows(shapes[0], index),
    "reshape": _reshape,
    "patches": lambda shapes, size: exact_vision.patches(shapes[0], size),
}


def _embedding(n: Node) -> Exact:
    ids = np.asarray(n.attributes["ids"])
    return _like((*ids.shape, n.x.shape[-1]), (v for i in ids.flat for v in n.x[int(i)]))


def _learned(n: Node) -> Exact:
    return np.repeat(n.x, n.operands[1].shape[0], axis=0)


FORWARD: dict[str, Callable[[Node], Exact]] = {
    "activation": _activation,
    "add": lambda n: n.operands[0] + n.operands[1],
    "combine": _combine,
    "embedding": _embedding,
    "gather": _gather,
    "layer_norm": _layer_norm,
    "learned": _learned,
    "linear": _linear,
    "matmul": _matmul,
    "movement": _movement,
    "multiply": _multiply,
    "pooling": _pooling,
    "renormalize": _renormalize,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "scale": lambda n: n.x * MP.mpf(n.attributes["factor"]),
    "softmax": _softmax,
    "source": lambda n: exactly(n.attributes["values"]),
    "top_k": _top_k,
}


def turns(
    config: Any, site: str, length: int, width: int
) -> tuple[Exact, Exact]:  # -> cos, sin (T, d)
    """cos(t f_i) and sin(t f_i), f_i = theta^(-2i/d), of both halves; Gemma 3 has another theta
    where a block has a window.
    """
    layer = next((int(part) for part in site.split(".") if part.isdigit()), 0)
    local = hasattr(config, "local_rope") and config.windows[layer] is not None
    rope = config.local_rope if local else config.rope
    if rope.kind != "default" or rope.width != width:
        raise ValueError(
            f"exact tables of rope_type {rope.kind!r} with {rope.width} of {width} "
            "features are not written"
        )
    angles = [
        [t * MP.mpf(rope.theta) ** (-MP.mpf(2 * i) / width) for i in range(width // 2)] * 2
        for t in range(length)
    ]
    flat = [a for row in angles for a in row]
    shape = (length, width)
    return _like(shape, map(MP.cos, flat)), _like(shape, map(MP.sin, flat))


def _node(
    record: Record, values: Mapping[Value, Exact], weights: Weights, config: Any, noise: Noise
) -> Node:
    attributes = dict(record.attributes)
    operands = [
        None if o is None else noise(weights(o) if isinstance(o, Parameter) else values[o])
        for o in record.operands
    ]
    if record.operation == "rotary":
        length, width = attributes["cos"].shape[-2:]
        cos, sin = turns(config, record.output.site, length, width)
        attributes |= {"cos": noise(cos).tolist(), "sin": noise(sin).tolist()}
    return Node(operands, attributes, noise)


def forward(records: Sequence[Record], config: Any, noise: Noise = SILENT) -> dict[Value, Exact]:
    """Every value of a run recorded operation by operation (`plain`, without `recompute`).
    `config`: the net's, for rotary tables.
    """
    values: dict[Value, Exact] = {}
    weights = Weights()
    for record in records:
        node = _node(record, values, weights, config, noise)
        values[record.output] = noise(FORWARD[record.operation](node))
    return values


# -- the rules: (node, r) -> relevance of each operand, absorbed entries of each example -----------

Given: TypeAlias = tuple[list[Exact], Absorbed]
RuleOf: TypeAlias = Callable[[Node, Exact], Given]


def _book(absorbed: Absorbed, b: int, split: Split) -> None:
    for cause, messages in split.absorbed.items():
        absorbed[b].setdefault(cause, []).extend(messages)


def _each_row(of: Callable[[Node, tuple[int, ...], list[Any]], Split]) -> RuleOf:
    """of(node, index, row of r) cuts the relevance of one row of the output over one row of the
    first operand.
    """

    def rule(n: Node, r: Exact) -> Given:
        absorbed: Absorbed = [{} for _ in range(len(r))]
        out = []
        for at in _rows(n.x):
            split = of(n, at, list(r[at]))
            _book(absorbed, at[0], split)
            out += [ZERO + split.received(0, i) for i in range(n.x.shape[-1])]
        return [_like(n.x.shape, out)], absorbed

    return rule


def _each_entry(of: Callable[[Node, list[list[Any]], list[Any]], Split]) -> RuleOf:
    """of(node, operands, r) on an example's entries side by side; an operand that was broadcast
    receives the sum over its copies.
    """

    def rule(n: Node, r: Exact) -> Given:
        absorbed: Absorbed = [{} for _ in range(len(r))]
        wide = [np.broadcast_to(o, r.shape) for o in n.operands]
        out = [_zeros(r.shape) for _ in wide]
        for b in range(len(r)):
            split = of(n, [list(o[b].flat) for o in wide], list(r[b].flat))
            _book(absorbed, b, split)
            for m, given in enumerate(out):
                given[b] = _like(
                    r.shape[1:], (ZERO + split.received(m, k) for k in range(r[b].size))
                )
        return [_fold(given, o.shape) for given, o in zip(out, n.operands, strict=True)], absorbed

    return rule


def _fold(r: Exact, shape: tuple[int, ...]) -> Exact:
    copied = tuple(i for i, (a, b) in enumerate(zip(r.shape, shape, strict=True)) if a != b)
    return r.sum(axis=copied, keepdims=True) if copied else r


def _each_product(of: Callable[[Node, tuple[int, ...], Any, Any, Any], Split]) -> RuleOf:
    """of(node, index, A, V, r) on every pair of matrices."""

    def rule(n: Node, r: Exact) -> Given:
        a, v = n.operands
        r_a, r_v = _zeros(a.shape), _zeros(v.shape)
        absorbed: Absorbed = [{} for _ in range(len(r))]
        for at in np.ndindex(*a.shape[:-2]):
            split = of(n, at, a[at].tolist(), v[at].tolist(), r[at].tolist())
            _book(absorbed, at[0], split)
            for k, given in enumerate((r_a, r_v)):
                given[at] = _like(
                    given.shape[-2:],
                    (ZERO + split.received(k, i) for i in np.ndindex(*given.shape[-2:])),
                )
        return [r_a, r_v], absorbed

    return rule


def _stops(role: Callable[[Node], str], gradient: bool) -> RuleOf:
    """Here the way ends, under the name of a role."""

    def rule(n: Node, r: Exact) -> Given:
        worth = n.z * r if gradient else r
        return [None] * len(n.operands), [{role(n): list(example.flat)} for example in worth]

    return rule


def _pass_through(n: Node, r: Exact) -> Given:
    reads, shape = _reads(n)
    split = exact.pass_through(reads, {k: r[k] for k in np.ndindex(*shape)}, len(n.operands))
    given = [
        _like(o.shape, (ZERO + split.received(m, i) for i in np.ndindex(*o.shape)))
        for m, o in enumerate(n.operands)
    ]
    return given, [{} for _ in range(len(r))]


def _pass_through_top_k(n: Node, r: Exact) -> Given:
    return _each_row(
        lambda n, at, row: exact_experts.top_k_pass_through(
            n.attributes["chosen"][at[0]][at[1]], row
        )
    )(n, r)


def _pass_through_gather(n: Node, r: Exact) -> Given:
    out = _zeros(n.x.shape)
    for b, index in enumerate(n.attributes["index"]):
        split = exact_experts.gather_pass_through(index, r[b].tolist())
        out[b] = _like(
            out.shape[1:], (ZERO + split.received(0, i) for i in np.ndindex(*out.shape[1:]))
        )
    return [out], [{} for _ in range(len(r))]


def _combined(of: Callable[[Node, int, list[Any], list[Any]], Split]) -> RuleOf:
    """of(node, example, indices, r) on the sum over experts."""

    def rule(n: Node, r: Exact) -> Given:
        absorbed: Absorbed = [{} for _ in range(len(r))]
        out = [_zeros(y.shape) for y in n.operands]
        for b in range(len(r)):
            split = of(n, b, [where[b] for where in n.attributes["index"]], r[b].tolist())
            _book(absorbed, b, split)
            for e, given in enumerate(out):
                given[b] = _like(
                    given.shape[1:],
                    (ZERO + split.received(e, i) for i in np.ndindex(*given.shape[1:])),
                )
        return out, absorbed

    return rule


def _pooled(of: Callable[[Node, list[Any], list[Any], Any], Split]) -> RuleOf:
    """of(node, positions, counted, r) on every feature."""

    def rule(n: Node, r: Exact) -> Given:
        absorbed: Absorbed = [{} for _ in range(len(r))]
        out = _zeros(n.x.shape)
        for b, d in product(range(n.x.shape[0]), range(n.x.shape[2])):
            split = of(
                n,
                list(n.x[b, :, d]),
                [MP.mpf(float(m)) for m in n.attributes["counted"][b, :, 0]],
                r[b, 0, d],
            )
            _book(absorbed, b, split)
            out[b, :, d] = _like(
                out.shape[1:2], (ZERO + split.received(0, t) for t in range(out.shape[1]))
            )
        return [out], absorbed

    return rule


def _w(n: Node) -> Any:
    return n.operands[1].tolist()


def _softmax_by(rule: Callable[..., Split]) -> RuleOf:
    return _each_row(lambda n, at, r: rule(list(n.x[at]), list(n.z[at]), r, n.visible(at)))


def _turned(n: Node, at: tuple[int, ...]) -> tuple[Any, Any]:
    return n.attributes["cos"][at[-1]], n.attributes["sin"][at[-1]]


HALF = MP.mpf(1) / 2

RELEVANCE: dict[str, RuleOf] = {
    "activation identity": _each_row(lambda n, at, r: exact.identity(r)),
    "add epsilon": _each_entry(lambda n, x, r: exact.add_epsilon(x[0], x[1], r, **n.options)),
    "combine epsilon": _combined(
        lambda n, b, index, r: exact_experts.combine_epsilon(
            [y[b].tolist() for y in n.operands], index, r, **n.options
        )
    ),
    "embedding leaf": _stops(lambda n: n.attributes["role"], False),
    "gather pass_through": _pass_through_gather,
    "layer_norm epsilon": _each_row(
        lambda n, at, r: exact.layer_norm_epsilon(
            list(n.x[at]), list(n.operands[1]), n.bias, r, n.norm_eps, z=list(n.z[at]), **n.options
        )
    ),
    "learned leaf": _stops(lambda n: n.attributes["role"], False),
    "linear epsilon": _each_row(
        lambda n, at, r: exact.linear_epsilon(
            list(n.x[at]), _w(n), n.bias, r, z=list(n.z[at]), **n.options
        )
    ),
    "linear gamma": _each_row(
        lambda n, at, r: exact.linear_gamma(
            list(n.x[at]), _w(n), n.bias, r, eps=0, z=list(n.z[at]), **n.options
        )
    ),
    "matmul uniform": _each_product(
        lambda n, at, a, v, r: exact.matmul_uniform(a, v, r, z=n.z[at].tolist(), **n.options)
    ),
    "movement pass_through": _pass_through,
    "multiply uniform": _each_entry(
        lambda n, x, r: exact.multiply_uniform(x, n.attributes["constant"], r)
    ),
    "pooling epsilon": _pooled(
        lambda n, x, counted, r: exact.pooling_epsilon(x, counted, r, **n.options)
    ),
    "renormalize identity": _each_row(lambda n, at, r: exact.identity(r)),
    "rms_norm identity": _each_row(lambda n, at, r: exact.identity(r)),
    "rotary epsilon": _each_row(
        lambda n, at, r: exact.rotary_epsilon(
            list(n.x[at]), *_turned(n, at), r, z=list(n.z[at]), **n.options
        )
    ),
    "scale pass_through": _each_row(lambda n, at, r: exact.identity(r)),
    "softmax taylor": _softmax_by(exact.softmax_taylor),
    "softmax z_plus": _softmax_by(exact.softmax_z_plus),
    "source leaf": _stops(lambda n: n.attributes["role"], False),
    "top_k pass_through": _pass_through_top_k,
}
"""Operation and rule -> its definition, for methods that carry relevance."""

GRADIENT: dict[str, RuleOf] = {
    "activation identity": _each_row(
        lambda n, at, g: exact.activation_identity_gxi(
            n.attributes["kind"], list(n.x[at]), g, list(n.z[at])
        )
    ),
    "activation gradient": _each_row(
        lambda n, at, g: exact.activation_gradient(n.attributes["kind"], list(n.x[at]), g)
    ),
    "add sum": _each_entry(lambda n, x, g: exact.add_gradient(x[0], x[1], g)),
    "combine sum": _combined(
        lambda n, b, index, g: exact_experts.combine_gradient(len(n.operands), index, g)
    ),
    "embedding leaf": _stops(lambda n: n.attributes["role"], True),
    "gather pass_through": _pass_through_gather,
    "layer_norm epsilon_gxi": _each_row(
        lambda n, at, g: exact.layer_norm_epsilon_gxi(
            list(n.x[at]), list(n.operands[1]), n.bias, g, n.norm_eps
        )
    ),
    "layer_norm gradient": _each_row(
        lambda n, at, g: exact.layer_norm_gradient(
            list(n.x[at]), list(n.operands[1]), n.bias, g, n.norm_eps
        )
    ),
    "learned leaf": _stops(lambda n: n.attributes["role"], True),
    "linear transpose": _each_row(
        lambda n, at, g: exact.linear_gradient(list(n.x[at]), _w(n), n.bias, g)
    ),
    "matmul uniform_gxi": _each_product(
        lambda n, at, a, v, g: exact.matmul_gradient(a, v, g, HALF, HALF)
    ),
    "matmul second": _each_product(lambda n, at, a, v, g: exact.matmul_gradient(a, v, g, 0, 1)),
    "matmul gradient": _each_product(lambda n, at, a, v, g: exact.matmul_gradient(a, v, g, 1, 1)),
    "movement pass_through": _pass_through,
    "multiply uniform_gxi": _each_entry(
        lambda n, x, g: exact.multiply_uniform_gxi(x, n.attributes["constant"], g)
    ),
    "multiply second": _each_entry(lambda n, x, g: exact.multiply_second_gxi(x[0], x[1], g)),
    "multiply gradient": _each_entry(
        lambda n, x, g: exact.multiply_gradient(x, n.attributes["constant"], g)
    ),
    "pooling mean": _pooled(lambda n, x, counted, g: exact.pooling_gradient(x, counted, g)),
    "renormalize identity_gxi": _each_row(
        lambda n, at, g: exact_experts.renormalize_identity_gxi(list(n.x[at]), g)
    ),
    "renormalize gradient": _each_row(
        lambda n, at, g: exact_experts.renormalize_gradient(list(n.x[at]), g)
    ),
    "rms_norm identity_gxi": _each_row(
        lambda n, at, g: exact.rms_norm_identity_gxi(list(n.x[at]), n.norm_weight, g, n.norm_eps)
    ),
    "rms_norm gradient": _each_row(
        lambda n, at, g: exact.rms_norm_gradient(list(n.x[at]), n.norm_weight, g, n.norm_eps)
    ),
    "rotary transpose": _each_row(
        lambda n, at, g: exact.rotary_gradient(list(n.x[at]), *_turned(n, at), g)
    ),
    "scale factor": _each_row(
        lambda n, at, g: exact.scale_gradient(list(n.x[at]), MP.mpf(n.attributes["factor"]), g)
    ),
    "softmax true": _softmax_by(exact.softmax_gradient),
    "softmax constant": _each_row(
        lambda n, at, g: exact.softmax_constant(
            list(n.x[at]),
            list(n.z[at]),
            [p * each for p, each in zip(n.z[at], g, strict=True)],
            n.visible(at),
        )
    ),
    "source leaf": _stops(lambda n: n.attributes["role"], True),
    "top_k pass_through": _pass_through_top_k,
}
"""The same for methods that carry gradients, under the names of what they do."""


# -- methods ---------------------------------------------------------------------------------------

Line: TypeAlias = tuple[str, str, str, dict[str, Any]]
"""Operation, pattern of the sites, rule, options."""


@dataclass(frozen=True)
class Method:
    """A method's table; its first line that fits an operation at a site gives the rule."""

    formulation: str
    lines: tuple[Line, ...]

    def line(self, operation: str, names: Sequence[str]) -> Line:
        return next(
            one
            for one in self.lines
            if one[0] == operation and any(fnmatchcase(name, one[1]) for name in names)
        )


def _table(options: dict[str, Any] | None = None, **rules: str) -> tuple[Line, ...]:
    return tuple(
        (operation, "*", rule, dict(options or {}) if rule in ("epsilon", "uniform") else {})
        for operation, rule in rules.items()
    )


def _paper(eps: str, kind: str, **changed: str) -> tuple[Line, ...]:
    """A eqs. 8, 9, 15 and props. 3.1 to 3.4."""
    options = {"eps": MP.mpf(float(eps)), "kind": kind}
    dividing = _table(
        options,
        add="epsilon",
        combine="epsilon",
        layer_norm="epsilon",
        linear="epsilon",
        matmul="uniform",
        pooling="epsilon",
        rotary="epsilon",
    )
    rest = _table(
        activation="identity",
        embedding="leaf",
        gather="pass_through",
        learned="leaf",
        movement="pass_through",
        multiply="uniform",
        renormalize="identity",
        rms_norm="identity",
        scale="pass_through",
        softmax="taylor",
        source="leaf",
        top_k="pass_through",
    )
    return tuple(
        line[:3] + ({},) if line[:3] == ("multiply", "*", "uniform") else line
        for line in (*dividing, *rest)
    )


_GRADIENT = _table(
    activation="identity",
    add="sum",
    combine="sum",
    embedding="leaf",
    gather="pass_through",
    layer_norm="epsilon_gxi",
    learned="leaf",
    linear="transpose",
    matmul="uniform_gxi",
    movement="pass_through",
    multiply="uniform_gxi",
    pooling="mean",
    renormalize="identity_gxi",
    rms_norm="identity_gxi",
    rotary="transpose",
    scale="factor",
    softmax="true",
    source="leaf",
    top_k="pass_through",
)

_DERIVATIVES = _table(
    activation="gradient",
    layer_norm="gradient",
    matmul="gradient",
    multiply="gradient",
    renormalize="gradient",
    rms_norm="gradient",
)

_CONSTANT_ATTENTION: tuple[Line, ...] = (
    ("matmul", "*.context", "second", {}),
    ("matmul", "context", "second", {}),
    *_table(softmax="constant", multiply="second"),
)

_FLOAT = {name: MP.mpf(float(name)) for name in ("1e-8", "1e-6", "0.05", "0.25")}

_LXT: tuple[Line, ...] = (
    (
        "matmul",
        "*context",
        "uniform",
        {"eps": _FLOAT["1e-6"], "kind": "plain", "denominator": "2(z+eps)"},
    ),
    ("layer_norm", "*", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "plain"}),
    ("pooling", "*", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "plain"}),
    ("combine", "*", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "sign"}),
)

_VISION: tuple[Line, ...] = (
    *(
        ("linear", f"*.{name}", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "sign"})
        for name in ("query", "key", "value", "attention.output.dense")
    ),
    ("linear", "*.patch_embeddings.projection", "gamma", {"gamma": _FLOAT["0.25"]}),
    ("linear", "*", "gamma", {"gamma": _FLOAT["0.05"]}),
    ("softmax", "*", "z_plus", {}),
)

METHODS: dict[str, Method] = {
    "attnlrp": Method("relevance", _paper("1e-6", "sign")),
    "attnlrp-gradient": Method("gradient_x_input", _GRADIENT),
    "cp-lrp": Method("gradient_x_input", (*_CONSTANT_ATTENTION, *_GRADIENT)),
    "input-x-gradient": Method("gradient_x_input", (*_DERIVATIVES, *_GRADIENT)),
    "lrp-0": Method("relevance", _paper("0", "none")),
    "lxt-explicit": Method("relevance", (*_LXT, *_paper("1e-8", "plain"))),
    "attnlrp-vit": Method("relevance", (*_VISION, *_paper("1e-6", "sign"))),
}
"""A: AttnLRP, language models and vision; Ali et al. 2022; Shrikumar et al. 2016; Bach et al. 2015;
LXT 2.1's relevance form.
"""


# -- the walk --------------------------------------------------------------------------------------


@dataclass
class Swept:
    """The answer, in the order of the sweep: from the output to the inputs."""

    relevance: dict[str, Exact] = field(default_factory=dict)
    """Site -> relevance (x g where gradients are propagated); zeros where nothing arrives."""
    propagated: dict[str, Exact] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, Absorbed] = field(default_factory=dict)
    """Site -> for each example cause -> messages."""
    conservation_errors: dict[str, list[Any]] = field(default_factory=dict)
    """Site -> for each example what its entry in the ledger miss: 0 to 60 digits."""
    explained: list[Any] = field(default_factory=list)

    def total(self, b: int = 0) -> dict[str, Any]:
        """Cause -> amount over all sites, of one example."""
        causes: dict[str, Any] = {}
        for books in self.absorbed.values():
            for cause, messages in books[b].items():
                causes[cause] = causes.get(cause, ZERO) + sum(messages)
        return causes


def seed(method: str, logits: Exact, targets: Sequence[int]) -> Exact:
    """What the sweep starts from: each example's target logit itself, or 1 where gradients are
    propagated.
    """
    start = _zeros(logits.shape)
    for b, target in enumerate(targets):
        start[b, 0, target] = (
            MP.mpf(1) if METHODS[method].formulation == "gradient_x_input" else logits[b, 0, target]
        )
    return start


def sweep(
    records: Sequence[Record],
    values: Mapping[Value, Exact],
    at: Value,
    start: Exact,
    method: str,
    config: Any,
    noise: Noise = SILENT,
) -> Swept:
    """`start` at the value `at`, brought down to every value of the run."""
    table, swept, weights = METHODS[method], Swept(), Weights()
    rules = GRADIENT if table.formulation == "gradient_x_input" else RELEVANCE
    arrived: dict[Value, Exact] = {at: start}
    swept.explained = [sum(e.flat) for e in _worth(table, values[at], start)]
    for record in reversed(records):
        z, r = values[record.output], arrived.pop(record.output, None)
        swept.propagated[record.output.site] = _zeros(z.shape) if r is None else r
        swept.relevance[record.output.site] = _worth(table, z, swept.propagated[record.output.site])
        if r is None:
            continue
        _, _, rule, options = table.line(record.operation, record.output.names)
        node = _node(record, values, weights, config, noise)
        node.z = (
            z if noise.random is None else noise(FORWARD[record.operation](node))
        )  # an implementation may form z again, in its own order
        node.options = options
        given, absorbed = rules[f"{record.operation} {rule}"](node, noise(r))
        _account(swept, table, record, r, values, given, absorbed)
        swept.rules[record.output.site] = rule
        for operand, share in zip(
            record.operands, given, strict=False
        ):  # of parameters a rule says nothing
            if isinstance(operand, Value) and share is not None:
                share = noise(share)
                arrived[operand] = arrived[operand] + share if operand in arrived else share
    return swept


def _worth(table: Method, x: Exact, propagated: Exact) -> Exact:
    return x * propagated if table.formulation == "gradient_x_input" else propagated


def _account(
    swept: Swept,
    table: Method,
    record: Record,
    r: Exact,
    values: Mapping[Value, Exact],
    given: list[Exact],
    absorbed: Absorbed,
) -> None:
    """received - passed on - absorbed, for each example."""
    site, worth = record.output.site, _worth(table, values[record.output], r)
    swept.absorbed[site] = absorbed
    conservation_errors = [
        sum(worth[b].flat) - sum(m for messages in absorbed[b].values() for m in messages)
        for b in range(len(r))
    ]
    for operand, share in zip(record.operands, given, strict=False):
        if isinstance(operand, Value) and share is not None:
            conservation_errors = [
                conservation_error - sum(_worth(table, values[operand], share)[b].flat)
                for b, conservation_error in enumerate(conservation_errors)
            ]
    swept.conservation_errors[site] = conservation_errors


# -- a whole answer --------------------------------------------------------------------------------


@dataclass
class Conditioned:
    """Forward and relevance of a run, with what one unit of roundoff everywhere may move them
    by.
    """

    values: dict[str, Any]
    """Site -> activation, float64."""
    logits: Any
    relevance: dict[str, dict[str, Any]]
    """Method -> site -> relevance, float64."""
    absorbed: dict[str, dict[str, float]]
    """Method -> cause -> amount over all sites; of a batch, of its first example."""
    books: dict[str, dict[tuple[str, str], tuple[list[float], float]]]
    """Method -> (site, cause) -> the amount absorbed of each example, and its condition."""
    condition: dict[str, dict[str, float]]
    """Method (and "forward", for the activations) -> site -> the largest move of an entry, over the
    size of the noise.
    """
    conservation_error: float
    """The largest absolute conservation error of all ledger."""


def run(
    records: Sequence[Record],
    at: Value,
    targets: Sequence[int],
    methods: Sequence[str],
    config: Any,
    runs: int = 4,
) -> Conditioned:
    """Everything at once: the exact answer and `runs` noisy ones."""
    values = forward(records, config)
    swept = {
        m: sweep(records, values, at, seed(m, values[at], targets), m, config) for m in methods
    }
    condition = {
        m: {site: _largest(r) for site, r in s.relevance.items()} for m, s in swept.items()
    }
    condition["forward"] = {v.site: _largest(x) for v, x in values.items()}
    booked = {m: _booked(s) for m, s in swept.items()}
    absorbing = {m: {key: _largest(x) for key, x in b.items()} for m, b in booked.items()}
    for k in range(runs):
        noise = Noise(k)
        moved = forward(records, config, noise)
        _widen(
            condition["forward"],
            {v.site: x for v, x in values.items()},
            {v.site: x for v, x in moved.items()},
        )
        for m in methods:
            noisy = sweep(records, moved, at, seed(m, moved[at], targets), m, config, noise)
            _widen(condition[m], swept[m].relevance, noisy.relevance)
            _widen(absorbing[m], booked[m], _booked(noisy))
    for m, s in swept.items():
        absorbing[m] = {
            key: max(absorbing[m][key], scale) for key, scale in _scales(s, condition[m]).items()
        }
    return Conditioned(
        {v.site: rounded(x) for v, x in values.items()},
        rounded(values[at]),
        {m: {site: rounded(r) for site, r in s.relevance.items()} for m, s in swept.items()},
        {
            m: {cause: float(amount) for cause, amount in s.total().items()}
            for m, s in swept.items()
        },
        {
            m: {key: (rounded(x).tolist(), absorbing[m][key]) for key, x in b.items()}
            for m, b in booked.items()
        },
        condition,
        max(
            abs(float(conservation_error))
            for s in swept.values()
            for conservation_errors in s.conservation_errors.values()
            for conservation_error in conservation_errors
        ),
    )


def _largest(x: Exact) -> float:
    return float(max((abs(v) for v in x.flat), default=ZERO))


def _booked(swept: Swept) -> dict[tuple[str, str], Exact]:
    """(site, cause) -> the amounts of all examples."""
    causes = {
        (site, cause): books
        for site, books in swept.absorbed.items()
        for each in books
        for cause in each
    }
    return {
        key: _like((len(books),), (ZERO + sum(each.get(key[1], [])) for each in books))
        for key, books in causes.items()
    }


def _scales(swept: Swept, condition: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """(site, cause) -> the sum of |messages|, moved as the relevance they are cut from: a sum may
    by chance hardly move in a few runs.
    """
    scales: dict[tuple[str, str], float] = {}
    for site, books in swept.absorbed.items():
        strain = condition[site] / (_largest(swept.relevance[site]) or 1.0)
        for cause, messages in (
            (cause, messages) for each in books for cause, messages in each.items()
        ):
            scales[site, cause] = max(
                scales.get((site, cause), 0.0), strain * float(sum(map(abs, messages)))
            )
    return scales


Key = TypeVar("Key")


def _widen(
    condition: dict[Key, float], true: Mapping[Key, Exact], moved: Mapping[Key, Exact]
) -> None:
    for key, x in true.items():
        condition[key] = max(condition[key], _largest(moved[key] - x) / float(D))
