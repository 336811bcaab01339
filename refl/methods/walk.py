"""A walk over the records of a run, for methods whose steps are no rules of one operation: they
look at a whole example, at several operations at once, or rescale what they hand down.

    R of the last value is given; from the last record to the first:
    R(value)  = met(value, what its readers handed it)   by default the sum
    step(record, R(record.output))                       pairs of a value and what it receives

A rule says what each operand receives and what is absorbed, and the sweep adds it up (refl.sweep);
a step only says who receives what.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from refl.arrays import Array
from refl.rules.conservation import RuleOutput
from refl.trace import Record, Value

Received: TypeAlias = Iterable[tuple[Value, Array]]
Step: TypeAlias = Callable[[Record, Array], Received]
Met: TypeAlias = Callable[[Value, Sequence[Array]], Array]


def summed(parts: Sequence[Array]) -> Array:
    """What several readers of a value hand it, together."""
    return sum(parts[1:], start=parts[0])


def _summed(value: Value, parts: Sequence[Array]) -> Array:
    return summed(parts)


def walk(
    records: Sequence[Record],
    at: Value,
    start: Array,
    step: Step,
    keep: Collection[str],
    met: Met = _summed,
) -> dict[str, Array]:
    """From the value `at`, which has `start`. Returns what came to the values whose sites are in
    `keep`; to which nothing came are not among them.
    """
    incoming: dict[Value, list[Array]] = {at: [start]}
    found = {}
    for record in reversed(records):
        if record.output not in incoming:
            continue
        r = met(record.output, incoming.pop(record.output))
        if record.output.site in keep:
            found[record.output.site] = r
        for value, received in step(record, r):
            incoming.setdefault(value, []).append(received)
    return found


def to_operands(record: Record, output: RuleOutput) -> Received:
    """What a rule hands to the operands, as pairs."""
    for operand, received in zip(record.operands, output.inputs, strict=True):
        if isinstance(operand, Value) and received is not None:
            yield operand, received
