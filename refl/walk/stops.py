"""The stops of a walk: every operation of a run in the forward's order, with what it read, what it
computed, and for each method the rule that undoes it and its entry in the conservation ledger.

What a page is told is plain numbers, lists and names (they become JSON), and numbers of arrays in a
`Packed`. Shapes have no batch axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.explanation import Explanation
from refl.ledger import ALLOWED
from refl.question import Forward
from refl.rules import operations
from refl.rules.composites import Composite
from refl.show.traces import block_of
from refl.trace import Operand, Parameter, Record, Value
from refl.walk.packed import Packed

NUMBERS = ("norm_eps", "offset", "factor", "kind", "constant", "role")
"""Attributes of a record that a page is told as they are."""


@dataclass
class Stops:
    """One run and the sweeps of several methods, as a page is told."""

    forward: Forward
    explanations: Sequence[Explanation]
    packed: Packed
    values: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    equations: list[str] = field(default_factory=list)
    """Names of all that are needed, operation.function."""

    @property
    def records(self) -> list[Record]:
        return self.forward.trace.records

    def found(self) -> list[dict[str, Any]]:
        """Every operation, in the forward's order."""
        return [self._told(number, record) for number, record in enumerate(self.records)]

    def _told(self, number: int, record: Record) -> dict[str, Any]:
        site = record.output.site
        operands = [self._operand(number, operand) for operand in record.operands]
        return {
            "index": number,
            "site": site,
            "label": site.removeprefix(block_of(site)).removeprefix(".") or "(output)",
            "block": self._block_numbers.get(block_of(site)),
            "operation": record.operation,
            "role": record.role,
            "operands": operands,
            "output": self._value(record.output, number),
            "attributes": self._attributes(record),
            "forward": self._function(record.operation, _forward(record)),
            "rules": [self._rule(record, e) for e in self.explanations],
        }

    # -- blocks ------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> list[dict[str, Any]]:
        """Every block with its first and its last stop."""
        numbers: dict[str, list[int]] = {}
        for number, record in enumerate(self.records):
            numbers.setdefault(block_of(record.output.site), []).append(number)
        return [
            {
                "name": block.label,
                "site": block.site,
                "first": numbers[block.site][0],
                "last": numbers[block.site][-1],
            }
            for block in self.explanations[0].components.blocks
        ]

    @cached_property
    def _block_numbers(self) -> dict[str, int]:
        return {block["site"]: number for number, block in enumerate(self.blocks)}

    # -- values and weights ------------------------------------------------------------------------

    def _operand(self, reader: int, operand: Operand) -> dict[str, Any] | None:
        if operand is None:
            return None
        if isinstance(operand, Parameter):
            return {"weight": self._weight(operand)}
        number = self._value(operand)
        readers = self.values[number]["read_by"]
        if reader not in readers:
            readers.append(reader)
        return {"value": number}

    def _value(self, value: Value, made_by: int | None = None) -> int:
        number = self._numbers.setdefault(value.site, len(self.values))
        if number == len(self.values):
            x = np.asarray(asnumpy(value.array))[0]
            self.values.append(
                {
                    "id": number,
                    "site": value.site,
                    "names": list(value.names),
                    "shape": list(x.shape),
                    "array": self.packed.activations(x),
                    "made_by": made_by,
                    "read_by": [],
                    "tokens": self._token_axis(x.shape),
                    "propagated": [self._propagated(e, value.site) for e in self.explanations],
                }
            )
        return number

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {}

    def _token_axis(self, shape: tuple[int, ...]) -> int | None:
        """Rows are tokens: the last axis but one has as many as a side of the input."""
        return len(shape) - 2 if len(shape) > 1 and shape[-2] in self._lengths else None

    @cached_property
    def _lengths(self) -> set[int]:
        e = self.explanations[0]
        return {len(e.tokens), len(e.decoder_tokens or ())} - {0}

    def _propagated(self, e: Explanation, site: str) -> int | None:
        """What arrived at a site, relevance or the g of R = x g; None for nothing."""
        found = np.asarray(asnumpy(e.sites.propagated[e.sites.canonical(site)]))
        return self.packed.relevance(found) if found.any() else None

    def _weight(self, parameter: Parameter) -> int:
        key = parameter.name, parameter.transposed, parameter.kernel
        if key not in self._weight_numbers:
            array = np.asarray(asnumpy(parameter.array))
            self._weight_numbers[key] = len(self.weights)
            self.weights.append(
                {
                    "id": len(self.weights),
                    "name": parameter.name,
                    "shape": list(array.shape),
                    "array": self.packed.weights(array),
                }
            )
        return self._weight_numbers[key]

    @cached_property
    def _weight_numbers(self) -> dict[Any, int]:
        return {}

    # -- operations --------------------------------------------------------------------------------

    def _attributes(self, record: Record) -> dict[str, Any]:
        said = {k: v for k, v in record.attributes.items() if k in NUMBERS}
        shape = record.output.array.shape
        if record.attributes.get("mask") is not None:
            mask = np.broadcast_to(asnumpy(record.attributes["mask"]), shape)[0]
            said["mask"] = self.packed.put(mask, "u1")
        for name in ("cos", "sin"):
            if name in record.attributes:
                whole = np.broadcast_to(asnumpy(record.attributes[name]), shape)[0]
                said[name] = self.packed.activations(whole)
        if "ids" in record.attributes:
            said["ids"] = np.asarray(asnumpy(record.attributes["ids"]))[0].tolist()
        if record.operation in ("movement", "gather"):
            said["from"] = self.packed.put(_sources(record), "i4")
        return said

    def _function(self, operation: str, function: Any) -> dict[str, Any]:
        """A function of a rule's file, and the name of its equation."""
        name = f"{operation}.{function.__name__}"
        if name not in self.equations:
            self.equations.append(name)
        return {"equation": name, "source": self._source(function)}

    def _source(self, function: Any) -> int:
        said = _lines(inspect.unwrap(function))
        if said not in self.sources:
            self.sources.append(said)
        return self.sources.index(said)

    def _rule(self, record: Record, e: Explanation) -> dict[str, Any] | None:
        """The rule of a method here, and its entry in the ledger; None where nothing arrived."""
        entry = self._entries[id(e)].get(record.output.site)
        if entry is None:
            return None
        composite = e.composite
        rule = composite.rule(record.operation, record.output.names, record.role)
        options = operations.OPERATIONS[record.operation].options(rule.function) | rule.options
        bound = ALLOWED * e.ledger.roundoff * (entry.rounding_scale or 0.0)
        return {
            "rule": rule.name,
            "function": inspect.unwrap(rule.function).__name__,
            "options": {k: v for k, v in options.items() if isinstance(v, (int, float, str))},
            **self._function(record.operation, rule.function),
            "received": entry.received,
            "passed": entry.passed,
            "absorbed": entry.absorbed,
            "conservation_error": entry.conservation_error,
            "rounding_bound": bound,
        }

    @cached_property
    def _entries(self) -> dict[int, dict[str, Any]]:
        return {id(e): {entry.site: entry for entry in e.ledger} for e in self.explanations}


def method_facts(e: Explanation) -> dict[str, Any]:
    """A method and its account."""
    table: Composite = e.composite
    ledger = e.ledger
    return {
        "name": table.name,
        "title": table.title,
        "formulation": table.formulation,
        "source": table.source,
        "summary": table.summary,
        "explained": ledger.explained,
        "reached": ledger.tokens,
        "absorbed": ledger.absorbed,
        "conservation_error": ledger.conservation_error,
    }


@cache
def _lines(function: Any) -> dict[str, Any]:
    """Where a function stands, and its text."""
    lines, first = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function) or "")
    return {
        "file": f"{file.parent.name}/{file.name}",
        "name": function.__name__,
        "first": first,
        "last": first + len(lines) - 1,
        "text": "".join(lines).rstrip(),
    }


def _forward(record: Record) -> Any:
    return operations.OPERATIONS[record.operation].forward


def _sources(record: Record) -> Any:
    """Of each number of the output, which number of the inputs laid end to end it is: the movement
    itself, made of the numbers' own numbers; -1 for a place left empty.
    """
    numbered, start = [], 1
    for operand in record.operands:
        shape = operand.array.shape if operand is not None else ()
        count = int(np.prod(shape))
        numbered.append(np.arange(start, start + count, dtype=np.float64).reshape(shape))
        start += count
    attributes = record.attributes
    moved = operations.OPERATIONS[record.operation].forward(*numbered, **attributes)
    return np.asarray(moved)[0].astype(np.int64) - 1
