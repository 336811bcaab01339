"""The net forwards with everything but its values held where the run had it: what single parts of
the input bring to a value                     z = sum over parts of z^(part), exactly

    linear            z = W x;                the bias is a part of its own, `bias`
    add, sum          z = a + b
    norm              z = w x / rms, z = w (x - mean(x)) / std, the scale as in the run; the bias of
                      a LayerNorm is `norm_bias`
    activation        z = x (f(x0) / x0), the ratio of the run; f'(0) at x0 = 0
    product           z = a0 b: the first factor (attention weights, a gate, an expert's weight) is
                      a constant
    movement, rotary, scale, mean      linear as they are

These are CP-LRP's assumptions (Ali et al. 2022, arXiv 2202.07304), read forwards; DecompX
(Modarressi et al. 2023, arXiv 2306.02873) decomposes by them, ALTI-Logit (Ferrando et al. 2023,
arXiv 2305.12535) each half-block. Parts stand along the first axis, which counts examples in the
run: the run has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refl.arrays import Array, asnumpy, inverse_rms, namespace
from refl.errors import ReflError, argument
from refl.ledger import DESTINATIONS
from refl.question import Question
from refl.rules import activation, layer_norm
from refl.rules.operations import OPERATIONS
from refl.trace import Record, Value

Label: TypeAlias = str | tuple[str, int]
"""A cause, as the ledger names it; or the number of a token or patch at the site of an input."""

Rows: TypeAlias = slice
"""Positions of the run that the parts have: all of them, but where an operation treats each row by
itself.
"""

ALL: Rows = slice(None)


@dataclass(frozen=True)
class Parts:
    """Of what the parts are, and where a numbered part of an input is: cell(number) indexes the
    input of one example.
    """

    labels: tuple[Label, ...]
    cell: Callable[[int], tuple[Any, ...]] = lambda number: (number, ...)

    def __len__(self) -> int:
        return len(self.labels)

    def leaf(self, site: str, cause: str, z: Array) -> Array:  # (1, ...) -> (parts, ...)
        """An input or a learned tensor: all of it belongs to its cause, or each of its cells to
        the part of that number.
        """
        x = self.nothing(z)
        for n, label in enumerate(self.labels):
            if label == cause:
                x[n, ...] = z[0, ...]
            elif not isinstance(label, str) and label[0] == site:
                cell = self.cell(label[1])
                x[n, *cell] = z[0, *cell]
        return x

    def with_bias(self, x: Array, cause: str, b: Array | None) -> Array:
        if b is not None and cause in self.labels:
            x[self.labels.index(cause), ...] += b
        return x

    def nothing(self, z: Array) -> Array:  # (1, ...) -> (parts, ...)
        xp = namespace(z)
        return xp.concat([xp.zeros_like(z)] * len(self), axis=0)


def refuse_recomputing(question: Question, name: str) -> None:
    """Raises ReflError where the run does not hold its operations."""
    if question.recompute:
        raise ReflError(
            f"method {name} reads every operation of the run, of which {argument('recompute')} "
            "holds one block at a time: leave it out"
        )


# -- which operations --------------------------------------------------------------------------


def inputs(record: Record) -> tuple[Value, ...]:
    """The operands through which an operation's value comes; of an input none."""
    if record.operation in LEAVES:
        return ()
    operands = record.operands[1:2] if record.operation in PRODUCTS else record.operands
    operands = operands[:1] if record.operation == "scan" else operands
    return tuple(o for o in operands if isinstance(o, Value))


def way(records: Sequence[Record], at: Value, start: Iterable[Value] = ()) -> list[Record]:
    """The operations that `at` comes from, in the order they ran, back to the values of `start`."""
    wanted, known, found = {at}, set(start), []
    for record in reversed(records):
        if record.output in wanted and record.output not in known:
            found.append(record)
            wanted.update(inputs(record))
    return found[::-1]


def causes(records: Iterable[Record]) -> list[str]:
    """What the parts that are no part of the input are called."""
    found = dict[str, None]()
    for record in records:
        if record.operation in LEAVES and record.role not in DESTINATIONS:
            found[record.role] = None
        if record.operation in BIASES and record.operands[2] is not None:
            found[BIASES[record.operation]] = None
    return list(found)


def run(
    records: Sequence[Record],
    parts: Parts,
    start: Mapping[Value, Array] | None = None,
    rows: Rows = ALL,
) -> Array:
    """What each part brings to the output of the last of these records. What nothing reads any
    more is let go of.
    """
    found: dict[Value, Array] = dict(start or {})
    last = {value: n for n, record in enumerate(records) for value in inputs(record)}
    for n, record in enumerate(records):
        operands = inputs(record)
        found[record.output] = step(record, [found[v] for v in operands], parts, rows)
        for value in dict.fromkeys(operands):
            if last[value] == n:
                del found[value]
    return found[records[-1].output]


# -- one operation -----------------------------------------------------------------------------


def step(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows = ALL) -> Array:
    """What each part brings to the output, from what it brings to the inputs."""
    if record.operation in LEAVES:
        z = record.output.array[..., rows, :] if rows != ALL else record.output.array
        return parts.leaf(record.output.site, record.role, z)
    if record.operation in STEPS:
        return STEPS[record.operation](record, xs, parts, rows)
    return OPERATIONS[record.operation].forward(*xs, **_of_all(record, len(parts)))


def _of_all(record: Record, count: int) -> dict[str, Any]:
    """Attributes that have a line for each example, for each part."""
    how = record.attributes
    if record.operation == "combine":
        return how | {"index": tuple(each * count for each in how["index"])}
    if record.operation == "gather" or how.get("kind") == "rows":
        return how | {"index": how["index"] * count}
    return how


def _at(array: Array, rows: Rows) -> Array:
    return array if rows == ALL else array[..., rows, :]


def _linear(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    _, w, b = record.arrays
    return parts.with_bias(OPERATIONS["linear"].forward(xs[0], w, None), "bias", b)


def _causal_convolution(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    _, w, b = record.arrays
    z = OPERATIONS["causal_convolution"].forward(xs[0], w, None)
    return parts.with_bias(z, "bias", b)


def _scan(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    """Step sizes and coefficients as in the run."""
    return OPERATIONS["scan"].forward(xs[0], *record.arrays[1:])


def _add(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    return xs[0] + xs[1]


def _multiply(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    return _at(record.arrays[0], rows) * xs[0]


def _matmul(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    return record.arrays[0] @ xs[0]


def _activation(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    x0, z0 = _at(record.arrays[0], rows), _at(record.output.array, rows)
    kind = record.attributes["kind"]
    (x,), _ = activation.identity_gxi(x0, z0, xs[0], kind=kind)
    return x


def _rms_norm(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    x0, w = record.arrays
    how = record.attributes
    return xs[0] * inverse_rms(_at(x0, rows), how["norm_eps"])[0] * (how["offset"] + w)


def _layer_norm(record: Record, xs: Sequence[Array], parts: Parts, rows: Rows) -> Array:
    x0, w, b = record.arrays
    inverse = layer_norm.standardized(_at(x0, rows), record.attributes["norm_eps"])[1]
    centered = xs[0] - namespace(xs[0]).mean(xs[0], axis=-1, keepdims=True)
    return parts.with_bias(centered * inverse * w, "norm_bias", b)


STEPS: dict[str, Callable[[Record, Sequence[Array], Parts, Rows], Array]] = {
    "activation": _activation,
    "add": _add,
    "causal_convolution": _causal_convolution,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "multiply": _multiply,
    "rms_norm": _rms_norm,
    "scan": _scan,
}
"""Those that are not their own forward; the others are linear in what they read."""

LEAVES = ("embedding", "learned", "source")
PRODUCTS = ("matmul", "multiply")
BIASES = {"causal_convolution": "bias", "layer_norm": "norm_bias", "linear": "bias"}


# -- numbers -----------------------------------------------------------------------------------


def against(parts: Array, weights: Any) -> Any:  # (parts, ...), NumPy (...) -> NumPy (parts,)
    """Of each part the sum over what it brings, times the weights."""
    xp = namespace(parts)
    each = asnumpy(xp.reshape(parts, (parts.shape[0], -1)))
    return each @ weights.reshape(-1)
