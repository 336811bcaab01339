"""The definitions on whole arrays: which row, matrix or window of an array each of them speaks of.

exact.py, exact_vision.py, exact_experts.py and exact_scan.py define a rule for one vector or one
matrix. Here stand the loops over examples, heads and positions, once, for numbers of any one kind:
Fractions, 60-digit numbers, or numbers that track their rounding. Arrays are NumPy arrays of dtype
object, their first axis counts examples.

    RULES[identifier](call)      pieces: the messages of one row after the other, each with its
                                 place in the arrays;  collected(pieces, operands) sums them up
    FORWARD[operation](call)     the output of the operation

A `Call` is what an engine's rule is called with. Nothing of an engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial, reduce
from math import prod
from operator import mul
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refl.verification.definitions import exact, exact_experts, exact_scan, exact_vision
from refl.verification.definitions.exact import Index, Messages, Number

Array: TypeAlias = Any
"""Of dtype object, its entries Numbers."""
Row = list[Number]


@dataclass
class Call:
    """rule(*operands, z, r, **attributes, **options); z left out is the exact forward."""

    operands: Sequence[Array]
    """None where there is no bias."""
    r: Array = None
    """Relevance of the output, or its gradient."""
    z: Array = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the operation and options of the rule: Numbers, strings, flags, indices."""

    @property
    def x(self) -> Array:
        return self.operands[0]

    @cached_property
    def w(self) -> list[Row]:
        """A weight (O, I); a kernel (O, C, h, w) with its pixels in a row."""
        w = self.operands[1]
        rows: list[Row] = w.reshape(len(w), -1).tolist()
        return rows

    @cached_property
    def b(self) -> Row | None:
        b = self.operands[2] if len(self.operands) > 2 else None
        return None if b is None else list(b)

    def norm_weight(self, at: Index = ()) -> Row:
        """Of the row at `at`: Command R has weights of each head. Gemma stores the weight less
        `offset`.
        """
        offset = self.options.get("offset")
        w: Array = self.operands[1]
        row = w if w.ndim == 1 else w[at[-w.ndim + 1 :]]
        return [each + offset if offset else each for each in row]

    @property
    def stabilized(self) -> dict[str, Any]:
        return {"eps": self.options["eps"], "kind": self.options.get("stabilizer", "sign")}

    @property
    def optional_eps(self) -> Number:
        """eps of a rule that needs none: 0 where it is not given."""
        return self.options.get("eps", Fraction(0))

    @cached_property
    def constant(self) -> Sequence[bool]:
        return self.options.get("constant") or [False] * len(self.operands)

    def row(self, name: str, at: Index) -> list[Any]:
        """The row of an option (a mask, a table) that belongs to the row `at` of x;
        all True where there is none.
        """
        whole = self.options.get(name)
        if whole is None:
            return [True] * self.x.shape[-1]
        row: list[Any] = np.broadcast_to(whole, self.x.shape)[at].tolist()
        return row


class Piece(NamedTuple):
    """One row's (matrix's, window's) messages."""

    at: Index
    """Which one; at[0] is its example."""
    messages: Messages
    place: Callable[[int, Any], Index]
    """(operand, the definition's entry) -> index in that operand's array."""


@dataclass
class ArrayMessages:
    """The messages of a whole call."""

    inputs: list[dict[Index, Row]]
    """For each operand: index -> the messages it got."""
    absorbed: dict[tuple[str, int], Row] = field(default_factory=dict)
    """Cause and example -> the messages that ended there."""

    def received(self, operand: int, shape: Index, zero: Number = 0) -> Array:
        got = self.inputs[operand]
        return array(shape, (zero + sum(got.get(at, ())) for at in np.ndindex(*shape)))

    def amounts(self, batch: int, zero: Number = 0) -> dict[str, Row]:
        """Cause -> the amount of each example."""
        out: dict[str, Row] = {}
        for (cause, b), messages in self.absorbed.items():
            out.setdefault(cause, [zero] * batch)[b] = zero + sum(messages)
        return out

    def conservation_error(self, relevance: Array, operands: Sequence[Array] = ()) -> Number:
        """sum R - sum of messages - absorbed: 0.
        With `operands` messages are gradients, worth x g.
        """
        worth = sum(m for each in self.absorbed.values() for m in each)
        for k, got in enumerate(self.inputs):
            for at, each in got.items():
                worth = worth + (operands[k][at] * sum(each) if len(operands) else sum(each))
        return sum(relevance.flat) - worth


def collected(pieces: Iterable[Piece], operands: int) -> ArrayMessages:
    out = ArrayMessages([{} for _ in range(operands)])
    for at, messages, place in pieces:
        for k, got in enumerate(messages.inputs):
            for entry, each in got.items():
                out.inputs[k].setdefault(place(k, entry), []).extend(each)
        for cause, each in messages.absorbed.items():
            out.absorbed.setdefault((cause, at[0]), []).extend(each)
    return out


def array(shape: Index, numbers: Iterable[Number]) -> Array:
    out = np.empty(shape, dtype=object)
    flat = list(numbers)
    if flat:
        out.reshape(-1)[:] = flat
    return out


def lifted(a: Any, number: Callable[[float], Number]) -> Array:
    """An array of floats as an array of Numbers."""
    host = np.asarray(a)
    return array(host.shape, (number(float(v)) for v in host.flat))


# -- from one row, matrix, entry, column or example to all -----------------------------------------

Rule: TypeAlias = Callable[[Call], Iterator[Piece]]


def _inside(lead: Index) -> Callable[[int, Any], Index]:
    """The place of a row's (matrix's, example's) entry behind these leading indices."""
    return lambda k, entry: (*lead, *entry) if isinstance(entry, tuple) else (*lead, entry)


def _in_column(b: int, d: int, k: int, t: int) -> Index:
    return b, t, d


def _in_window(pixels: Sequence[Index], k: int, n: int) -> Index:
    return pixels[n]


def _in_operand(shapes: Sequence[Index], at: Index, k: int, entry: Any) -> Index:
    return copied(shapes[k], at)


def by_rows(define: Callable[..., Messages]) -> Rule:
    """define(call, at, x, z, r), on the last axis of the first operand."""

    def pieces(c: Call) -> Iterator[Piece]:
        for at in np.ndindex(*c.x.shape[:-1]):
            z = None if c.z is None else c.z[at].tolist()
            messages = define(c, at, c.x[at].tolist(), z, c.r[at].tolist())
            yield Piece(at, messages, _inside(at))

    return pieces


def by_matrices(define: Callable[..., Messages]) -> Rule:
    """define(call, a, v, z, r), on the last two axes."""

    def pieces(c: Call) -> Iterator[Piece]:
        for at in np.ndindex(*c.x.shape[:-2]):
            a, v, r = (each[at].tolist() for each in (*c.operands, c.r))
            z = None if c.z is None else c.z[at].tolist()
            yield Piece(at, define(c, a, v, z, r), _inside(at))

    return pieces


def by_entries(define: Callable[..., Messages]) -> Rule:
    """define(call, operands, z, r) on one entry; an operand that is broadcast receives the messages
    of all its copies.
    """

    def pieces(c: Call) -> Iterator[Piece]:
        shapes = [each.shape for each in c.operands]
        for at in np.ndindex(*c.r.shape):
            operands = [[o[copied(s, at)]] for o, s in zip(c.operands, shapes, strict=True)]
            messages = define(c, operands, None if c.z is None else [c.z[at]], [c.r[at]])
            yield Piece(at, messages, partial(_in_operand, shapes, at))

    return pieces


def copied(shape: Index, at: Index) -> Index:
    """Where in an operand of this shape the entry stands that is copied to `at` of the result."""
    tail = at[len(at) - len(shape) :]
    return tuple(0 if n == 1 else i for n, i in zip(shape, tail, strict=True))


def by_columns(define: Callable[..., Messages]) -> Rule:
    """define(call, column, counted, r): one feature over the positions of an example."""

    def pieces(c: Call) -> Iterator[Piece]:
        for b, d in np.ndindex(c.x.shape[0], c.x.shape[2]):
            counted = c.options["counted"][b, :, 0].tolist()
            messages = define(c, c.x[b, :, d].tolist(), counted, c.r[b, 0, d])
            yield Piece((b, d), messages, partial(_in_column, b, d))

    return pieces


def by_examples(define: Callable[..., Messages]) -> Rule:
    """define(call, b), entries without the first axis."""

    def pieces(c: Call) -> Iterator[Piece]:
        for b in range(len(c.r)):
            yield Piece((b,), define(c, b), _inside((b,)))

    return pieces


def by_windows(define: Callable[..., Messages]) -> Rule:
    """define(call, at, pixels, z, r), on what lies under a convolution's kernel, channel by
    channel; windows do not overlap.
    """

    def pieces(c: Call) -> Iterator[Piece]:
        channels, h, w = c.operands[1].shape[1:]
        for b, i, j in np.ndindex(c.x.shape[0], *c.r.shape[2:]):
            under = c.x[b, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
            window = [(b, n, i * h + y, j * w + x) for n, y, x in np.ndindex(channels, h, w)]
            messages = define(c, (b, i, j), under.ravel().tolist(), None, c.r[b, :, i, j].tolist())
            yield Piece((b,), messages, partial(_in_window, window))

    return pieces


# -- rules whose arguments take more than a line ---------------------------------------------------


def _bound(bound: Any, n: int) -> Row:
    return list(bound) if isinstance(bound, (list, tuple)) else [bound] * n


def _z_box(c: Call, at: Index, x: Row, z: Row | None, r: Row) -> Messages:
    low, high = (_bound(c.options[name], len(x)) for name in ("low", "high"))
    return exact_vision.linear_z_box(x, c.w, r, low, high)


def _alpha_beta(c: Call, at: Index, x: Row, z: Row | None, r: Row) -> Messages:
    alpha, beta = c.options["alpha"], c.options["beta"]
    return exact.linear_alpha_beta(x, c.w, c.b, r, alpha, beta, c.optional_eps)


def _sum(c: Call, operands: Sequence[Row], z: Row | None, r: Row) -> Messages:
    """Each operand writes to the one place there is."""
    ys, total = [[y] for y in operands], None if z is None else [z]
    return exact_experts.combine_epsilon(ys, [[0]] * len(ys), [r], z=total, **c.stabilized)


def _matmul_uniform(c: Call, a: Any, v: Any, z: Any, r: Any) -> Messages:
    denominator = c.options.get("denominator", "2z+eps")
    return exact.matmul_uniform(a, v, r, denominator=denominator, z=z, **c.stabilized)


def _layer_norm_epsilon(c: Call, at: Index, x: Row, z: Row | None, r: Row) -> Messages:
    return exact.layer_norm_epsilon(
        x, c.norm_weight(at), c.b, r, c.options["norm_eps"], z=z, **c.stabilized
    )


def _softmax(define: Callable[..., Messages]) -> Rule:
    """z holds the probabilities."""
    return by_rows(lambda c, at, x, p, r: define(x, p, r, c.row("mask", at)))


def _softmax_constant_gxi(x: Row, p: Row, g: Row, visible: Sequence[bool]) -> Messages:
    return exact.softmax_constant(x, p, [a * b for a, b in zip(p, g, strict=True)], visible)


def _tables(c: Call, at: Index) -> tuple[Row, Row]:
    return c.row("cos", at), c.row("sin", at)


def _output(c: Call, b: int) -> list[Row] | None:
    """Of one example what a rule divides by."""
    rows: list[Row] | None = None if c.z is None else c.z[b].tolist()
    return rows


def _causal_convolution_epsilon(c: Call, b: int) -> Messages:
    return exact_scan.causal_convolution_epsilon(
        c.x[b].tolist(), c.w, c.b, c.r[b].tolist(), z=_output(c, b), **c.stabilized
    )


def _text(c: Call, b: int) -> exact_scan.Text:
    *activations, a_log = c.operands
    x, d, b_, c_ = (each[b].tolist() for each in activations)
    return exact_scan.Text(x, d, b_, c_, a_log.tolist())


def _activation_identity_gxi(c: Call, at: Index, x: Row, z: Row | None, g: Row) -> Messages:
    return exact.activation_identity_gxi(c.options["kind"], x, g, z)


def _chosen(c: Call, at: Index, p: Row, k: int) -> Sequence[int]:
    """The experts of a token, as they were chosen; where that is not said, the k largest."""
    chosen: Sequence[int]
    chosen = (
        c.options["chosen"][at[0]][at[1]] if "chosen" in c.options else exact_experts.top_k(p, k)
    )
    return chosen


def _gather(c: Call, b: int) -> Messages:
    return exact_experts.gather_pass_through(c.options["index"][b], c.r[b].tolist())


def _places(c: Call, b: int) -> list[Any]:
    return [where[b] for where in c.options["index"]]


def _combine_epsilon(c: Call, b: int) -> Messages:
    ys, z = [y[b].tolist() for y in c.operands], None if c.z is None else c.z[b].tolist()
    return exact_experts.combine_epsilon(ys, _places(c, b), c.r[b].tolist(), z=z, **c.stabilized)


def _combine_gradient(c: Call, b: int) -> Messages:
    return exact_experts.combine_gradient(len(c.operands), _places(c, b), c.r[b].tolist())


def _leaf(c: Call, b: int) -> Messages:
    return _ending(c, c.r[b])


def _leaf_gxi(c: Call, b: int) -> Messages:
    return _ending(c, c.z[b] * c.r[b])


def _ending(c: Call, relevance: Array) -> Messages:
    out = exact.embedding_leaf(list(relevance.flat), c.options["role"])
    out.inputs = [{} for _ in c.operands]
    return out


def movement(c: Call) -> Iterator[Piece]:
    relevance = {at: c.r[at] for at in np.ndindex(*c.r.shape)}
    messages = exact.pass_through(origins(c), relevance, len(c.operands))
    yield Piece((0,), messages, lambda k, at: at)


def origins(c: Call) -> exact.Origins:
    how = {key: value for key, value in c.options.items() if key != "kind"}
    return MOVES[c.options["kind"]]([o.shape for o in c.operands], **how)


def _concat(shapes: list[Index], axis: int) -> exact.Origins:
    return exact.concat(shapes, axis if axis < 0 else axis - len(shapes[0]))


def _reshape(shapes: list[Index], shape: Index) -> exact.Origins:
    known = prod(n for n in shape if n >= 0)
    return exact.reshape(shapes[0], tuple(prod(shapes[0]) // known if n < 0 else n for n in shape))


MOVES: dict[str, Callable[..., exact.Origins]] = {
    "split_heads": lambda shapes, heads: exact.split_heads(shapes[0], heads),
    "merge_heads": lambda shapes: exact.merge_heads(shapes[0]),
    "repeat_heads": lambda shapes, times: exact.repeat_heads(shapes[0], times),
    "transpose": lambda shapes: exact.transpose(shapes[0]),
    "slice": lambda shapes, start, stop: exact.slice_(shapes[0], start, stop),
    "concat": _concat,
    "rows": lambda shapes, index: exact.rows(shapes[0], index),
    "reshape": _reshape,
    "patches": lambda shapes, size: exact_vision.patches(shapes[0], size),
    "windows": lambda shapes, size, stride: exact_vision.windows(shapes[0], size, stride),
}
"""Kind of movement -> where each entry of its output comes from."""


# -- every rule, by its identifier -----------------------------------------------------------------

HALF = Fraction(1, 2)


def _matmul_gradient(to_a: Number, to_v: Number) -> Rule:
    return by_matrices(lambda c, a, v, z, g: exact.matmul_gradient(a, v, g, to_a, to_v))


def _of_factors(factors: Sequence[int]) -> tuple[Fraction, ...]:
    return tuple(Fraction(n, sum(factors)) for n in factors)


def _norm(define: Callable[..., Messages]) -> Rule:
    """RMSNorm in gradient x input form, and its derivative."""
    return by_rows(lambda c, at, x, z, g: define(x, c.norm_weight(at), g, c.options["norm_eps"]))


def _layer_norm(define: Callable[..., Messages]) -> Rule:
    return by_rows(
        lambda c, at, x, z, g: define(x, c.norm_weight(at), c.b, g, c.options["norm_eps"])
    )


LINEAR: dict[str, Callable[..., Messages]] = {
    "epsilon": lambda c, at, x, z, r: exact.linear_epsilon(x, c.w, c.b, r, z=z, **c.stabilized),
    "gamma": lambda c, at, x, z, r: exact.linear_gamma(
        x, c.w, c.b, r, c.options["gamma"], c.optional_eps, z
    ),
    "z_plus": lambda c, at, x, z, r: exact.linear_alpha_beta(x, c.w, c.b, r, 1, 0, c.optional_eps),
    "alpha_beta": _alpha_beta,
    "flat": lambda c, at, x, z, r: exact.linear_flat(x, c.w, r),
    "w_square": lambda c, at, x, z, r: exact.linear_w_square(x, c.w, r),
    "z_box": _z_box,
    "gradient": lambda c, at, x, z, g: exact.linear_gradient(x, c.w, c.b, g),
}
IDENTITY = by_rows(lambda c, at, x, z, r: exact.identity(r))

RULES: dict[str, Rule] = {
    **{f"linear_{rule}": by_rows(define) for rule, define in LINEAR.items()},
    **{f"convolution_{rule}": by_windows(define) for rule, define in LINEAR.items()},
    "add_epsilon": by_entries(
        lambda c, x, z, r: exact.add_epsilon(x[0], x[1], r, z=z, **c.stabilized)
    ),
    "add_gradient": by_entries(lambda c, x, z, g: exact.add_gradient(x[0], x[1], g)),
    "sum_epsilon": by_entries(_sum),
    "multiply_uniform": by_entries(lambda c, x, z, r: exact.multiply_uniform(x, c.constant, r)),
    "multiply_uniform_gxi": by_entries(
        lambda c, x, z, g: exact.multiply_uniform_gxi(x, c.constant, g)
    ),
    "multiply_gradient": by_entries(lambda c, x, z, g: exact.multiply_gradient(x, c.constant, g)),
    "multiply_flattened": by_entries(
        lambda c, x, z, r: exact.multiply_flattened(x, c.constant, r, c.options["factors"])
    ),
    "multiply_flattened_gxi": by_entries(
        lambda c, x, z, g: exact.multiply_flattened_gxi(x, c.constant, g, c.options["factors"])
    ),
    "multiply_second": by_entries(lambda c, x, z, r: exact.multiply_second(x[0], x[1], r)),
    "multiply_second_gxi": by_entries(lambda c, x, z, g: exact.multiply_second_gxi(x[0], x[1], g)),
    "matmul_uniform": by_matrices(_matmul_uniform),
    "matmul_second": by_matrices(
        lambda c, a, v, z, r: exact.matmul_second(a, v, r, z=z, **c.stabilized)
    ),
    "matmul_flattened": by_matrices(
        lambda c, a, v, z, r: exact.matmul_flattened(
            a, v, r, c.options["factors"], z=z, **c.stabilized
        )
    ),
    "matmul_flattened_gxi": by_matrices(
        lambda c, a, v, z, g: exact.matmul_gradient(a, v, g, *_of_factors(c.options["factors"]))
    ),
    "matmul_uniform_gxi": _matmul_gradient(HALF, HALF),
    "matmul_second_gxi": _matmul_gradient(0, 1),
    "matmul_gradient": _matmul_gradient(1, 1),
    "softmax_taylor": _softmax(exact.softmax_taylor),
    "softmax_spread": _softmax(exact.softmax_spread),
    "softmax_z_plus": _softmax(exact.softmax_z_plus),
    "softmax_identity": _softmax(exact.softmax_identity),
    "softmax_constant": _softmax(exact.softmax_constant),
    "softmax_constant_gxi": _softmax(_softmax_constant_gxi),
    "softmax_gradient": _softmax(exact.softmax_gradient),
    "rms_norm_identity": IDENTITY,
    "rms_norm_identity_gxi": _norm(exact.rms_norm_identity_gxi),
    "rms_norm_gradient": _norm(exact.rms_norm_gradient),
    "layer_norm_identity": IDENTITY,
    "layer_norm_epsilon": by_rows(_layer_norm_epsilon),
    "layer_norm_epsilon_gxi": _layer_norm(exact.layer_norm_epsilon_gxi),
    "layer_norm_gradient": _layer_norm(exact.layer_norm_gradient),
    "activation_identity": IDENTITY,
    "activation_identity_gxi": by_rows(_activation_identity_gxi),
    "activation_gradient": by_rows(
        lambda c, at, x, z, g: exact.activation_gradient(c.options["kind"], x, g)
    ),
    "rotary_epsilon": by_rows(
        lambda c, at, x, z, r: exact.rotary_epsilon(x, *_tables(c, at), r, z=z, **c.stabilized)
    ),
    "rotary_uniform": by_rows(
        lambda c, at, x, z, r: exact.rotary_uniform(x, *_tables(c, at), r, z=z, **c.stabilized)
    ),
    "rotary_uniform_gxi": by_rows(
        lambda c, at, x, z, g: exact.rotary_uniform_gxi(x, *_tables(c, at), g)
    ),
    "rotary_gradient": by_rows(lambda c, at, x, z, g: exact.rotary_gradient(x, *_tables(c, at), g)),
    "pooling_epsilon": by_columns(
        lambda c, x, m, r: exact.pooling_epsilon(x, m, r, **c.stabilized)
    ),
    "pooling_gradient": by_columns(lambda c, x, m, g: exact.pooling_gradient(x, m, g)),
    "scale_pass_through": IDENTITY,
    "scale_gradient": by_rows(
        lambda c, at, x, z, g: exact.scale_gradient(x, c.options["factor"], g)
    ),
    "movement_pass_through": movement,
    "gather_pass_through": by_examples(_gather),
    "combine_epsilon": by_examples(_combine_epsilon),
    "combine_gradient": by_examples(_combine_gradient),
    "top_k_pass_through": by_rows(
        lambda c, at, p, z, r: exact_experts.top_k_pass_through(_chosen(c, at, p, len(r)), r)
    ),
    "renormalize_identity": IDENTITY,
    "renormalize_identity_gxi": by_rows(
        lambda c, at, x, z, g: exact_experts.renormalize_identity_gxi(x, g)
    ),
    "renormalize_epsilon": by_rows(
        lambda c, at, x, z, r: exact_experts.renormalize_epsilon(x, r, z=z, **c.stabilized)
    ),
    "renormalize_gradient": by_rows(
        lambda c, at, x, z, g: exact_experts.renormalize_gradient(x, g)
    ),
    "causal_convolution_epsilon": by_examples(_causal_convolution_epsilon),
    "causal_convolution_gradient": by_examples(
        lambda c, b: exact_scan.causal_convolution_gradient(c.w, c.b, c.r[b].tolist())
    ),
    "scan_epsilon": by_examples(
        lambda c, b: exact_scan.scan_epsilon(
            _text(c, b), c.r[b].tolist(), z=_output(c, b), **c.stabilized
        )
    ),
    "scan_epsilon_gxi": by_examples(
        lambda c, b: exact_scan.scan_epsilon_gxi(_text(c, b), c.r[b].tolist())
    ),
    "scan_gradient": by_examples(
        lambda c, b: exact_scan.scan_gradient(_text(c, b), c.r[b].tolist())
    ),
    **{f"{leaf}_leaf": by_examples(_leaf) for leaf in ("embedding", "learned", "source")},
    **{f"{leaf}_leaf_gxi": by_examples(_leaf_gxi) for leaf in ("embedding", "learned", "source")},
}


# -- every operation's forward ---------------------------------------------------------------------


def _row_by_row(of: Callable[[Call, Index, Row], Iterable[Number]]) -> Callable[[Call], Array]:
    def forward(c: Call) -> Array:
        rows = [list(of(c, at, c.x[at].tolist())) for at in np.ndindex(*c.x.shape[:-1])]
        return array((*c.x.shape[:-1], len(rows[0])), (v for row in rows for v in row))

    return forward


def _matmul(c: Call) -> Array:
    a, v = c.operands
    shape = (*a.shape[:-1], v.shape[-1])
    each = (exact.matmul(a[at].tolist(), v[at].tolist()) for at in np.ndindex(*a.shape[:-2]))
    return array(shape, (e for matrix in each for row in matrix for e in row))


def _activation(c: Call) -> Array:
    return array(c.x.shape, (exact.activation(c.options["kind"], v) for v in c.x.flat))


def _pooling(c: Call) -> Array:
    m = c.options["counted"]
    return (c.x * m).sum(axis=1, keepdims=True) / m.sum(axis=1, keepdims=True)


def _gathered(c: Call) -> Array:
    pairs = zip(c.x, c.options["index"], strict=True)
    each = [exact_experts.gather(x.tolist(), index) for x, index in pairs]
    shape = (len(each), len(each[0]), c.x.shape[-1])
    return array(shape, (v for example in each for row in example for v in row))


def _combined(c: Call) -> Array:
    length = c.options["length"]
    out = np.empty((c.x.shape[0], length, c.x.shape[-1]), dtype=object)
    for b in range(len(out)):
        ys = [y[b].tolist() for y in c.operands]
        rows = exact_experts.combine(ys, _places(c, b), length)
        out[b] = array(out.shape[1:], (v for row in rows for v in row))
    return out


def _convolved(c: Call) -> Array:
    each = (exact_scan.causal_convolution(x.tolist(), c.w, c.b) for x in c.x)
    return array(c.x.shape, (v for rows in each for row in rows for v in row))


def _scanned(c: Call) -> Array:
    each = (exact_scan.scan(_text(c, b)) for b in range(len(c.x)))
    return array(c.x.shape, (v for rows in each for row in rows for v in row))


def _moved(c: Call) -> Array:
    table = origins(c)
    shape = tuple(1 + max(axis) for axis in zip(*table, strict=True))
    found = (table[at] for at in np.ndindex(*shape))
    return array(shape, (c.operands[k][at] for k, at in found))


def _embedded(c: Call) -> Array:
    ids = np.asarray(c.options["ids"])
    return array((*ids.shape, c.x.shape[-1]), (v for i in ids.flat for v in c.x[int(i)]))


def _rotated(c: Call, at: Index, x: Row) -> Row:
    return exact.linear(x, exact.rotation(*_tables(c, at)), None)


def _top_k(c: Call, at: Index, p: Row) -> Row:
    return [p[e] for e in _chosen(c, at, p, c.options.get("k", 0))]


FORWARD: dict[str, Callable[[Call], Array]] = {
    "activation": _activation,
    "add": lambda c: c.operands[0] + c.operands[1],
    "causal_convolution": _convolved,
    "combine": _combined,
    "embedding": _embedded,
    "gather": _gathered,
    "layer_norm": _row_by_row(
        lambda c, at, x: exact.layer_norm(x, c.norm_weight(at), c.b, c.options["norm_eps"])
    ),
    "learned": lambda c: np.repeat(
        c.x.reshape(1, -1, c.x.shape[-1]), c.operands[1].shape[0], axis=0
    ),
    "linear": _row_by_row(lambda c, at, x: exact.linear(x, c.w, c.b)),
    "matmul": _matmul,
    "movement": _moved,
    "multiply": lambda c: reduce(mul, c.operands),
    "pooling": _pooling,
    "renormalize": _row_by_row(lambda c, at, x: exact_experts.renormalize(x)),
    "rms_norm": _row_by_row(
        lambda c, at, x: exact.rms_norm(x, c.norm_weight(at), c.options["norm_eps"])
    ),
    "rotary": _row_by_row(_rotated),
    "scale": lambda c: c.x * c.options["factor"],
    "scan": _scanned,
    "softmax": _row_by_row(lambda c, at, x: exact.softmax(x, c.row("mask", at))),
    "top_k": _row_by_row(_top_k),
}
"""Operation -> its output."""
