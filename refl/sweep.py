"""The reverse sweep: from the output's relevance to everyone's.

The records of a trace are walked from last to first. For each, the composite names a rule; the rule
turns what arrived at the output into its operands' shares and says what it absorbed; shares that
meet at a value read more than once are summed; the ledger ledger the site. Nothing else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from refl.arrays import Array, namespace, total, total_product
from refl.ledger import Ledger
from refl.rules import attention
from refl.rules.composites import Composite
from refl.trace import Operand, Record, Trace, Value

Arrived: TypeAlias = tuple[Array, Array]
"""What is propagated to a value, in its shape, and the relevance that is, per example: the sum of
what its readers passed back.
"""


@dataclass
class Swept:
    """What a sweep leaves behind."""

    ledger: Ledger
    propagated: dict[str, Array] = field(default_factory=dict)
    """Site -> what was propagated there (relevance, or the gradient g with R = x g), for the sites
    that were kept.
    """
    activations: dict[str, Array] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Every further name of a kept site -> the site."""


@dataclass(frozen=True)
class Sweep:
    """How to sweep.

    keep       which values to keep, by their names; the rest is released as soon as it has been
               passed on
    release    also let go of the activations on the way (a trace can be swept again only without)
    audit      book the sum of |terms| at every site too, the scale its conservation error is judged
               by
    progress   called after each record
    """

    composite: Composite
    keep: Callable[[list[str]], bool] = lambda names: False
    release: bool = False
    audit: bool = False
    progress: Callable[[], object] = lambda: None

    def run(self, trace: Trace, at: Value, seed: Array) -> Swept:
        """Sweep from the value `at`, where `seed` (its shape) is what is to be explained:
        relevance, or a gradient.
        """
        xp = namespace(at.array, seed)
        explained = self.measure(at.array, seed)
        swept = Swept(Ledger(explained, float(xp.finfo(seed.dtype).eps) / 2))
        self._walk(trace, {at: (seed, explained)}, swept)
        swept.ledger.close()
        return swept

    def measure(self, x: Array, propagated: Array) -> Array:  # -> (B,)
        """Relevance per example of what is propagated at the activation x."""
        return (
            total_product(x, propagated)
            if self.composite.formulation == "gradient_x_input"
            else total(propagated)
        )

    def size(self, x: Array, propagated: Array) -> Array:  # -> (B,)
        """The same of absolute values: the scale at which a rule that only hands on can round."""
        xp = namespace(x, propagated)
        return self.measure(xp.abs(x), xp.abs(propagated))

    def _walk(self, trace: Trace, arrived: dict[Value, Arrived], swept: Swept) -> None:
        for record in reversed(trace.records):
            here = arrived.pop(record.output, None)
            self._keep(record.output, here, swept)
            if here is not None:
                shares = (
                    self._block(record, *here, arrived, swept)
                    if record.operation == "block"
                    else self._apply(record, *here, swept)
                )
                for operand, share in zip(record.operands, shares, strict=True):
                    if share is not None and isinstance(operand, Value):
                        arrived[operand] = _meet(arrived.get(operand), share)
            if self.release:
                record.output.array = None
            self.progress()

    def _apply(
        self, record: Record, r: Array, received: Array, swept: Swept
    ) -> Sequence[Arrived | None]:
        if record.operation == "attention":
            return self._attention(record, r, received, swept.ledger)
        rule = self.composite.rule(record.operation, record.output.names)
        arrays = record.arrays
        passed = rule.function(*arrays, record.output.array, r, **record.attributes, **rule.options)
        shares = [
            None if p is None else (p, self.measure(a, p))
            for a, p in zip(arrays, passed.inputs, strict=True)
        ]
        scale = (
            attention.rounding_scale(passed, lambda: self.size(record.output.array, r))
            if self.audit
            else None
        )
        given = _given(record.operands, shares)
        swept.ledger.book(
            record.output.site, record.operation, rule.name, received, given, passed.absorbed, scale
        )
        return shares

    def _attention(
        self, record: Record, r: Array, received: Array, ledger: Ledger
    ) -> Sequence[Arrived | None]:
        parent = record.output.site.rpartition(".")[0]
        q, k, v = (o.site for o in record.operands if isinstance(o, Value))
        sites = {
            "context": (f"{parent}.probabilities", v),
            "probabilities": (f"{parent}.scores",),
            "scores": (q, k),
        }
        rules = {
            name: self.composite.rule(_OPERATION[name], [f"{parent}.{name}"]) for name in sites
        }
        on_context, on_softmax, on_scores = (
            partial(rule.function, **rule.options) for rule in rules.values()
        )
        shares, books = attention.sweep(
            *_three(record.arrays),
            record.output.array,
            r,
            **record.attributes,
            rules=(on_context, on_softmax, on_scores),
            measure=self.measure,
            size=self.size if self.audit else None,
        )
        for name, account in books.items():
            given = dict(
                zip(
                    sites[name][len(sites[name]) - len(account.passed) :],
                    account.passed,
                    strict=True,
                )
            )
            ledger.book(
                f"{parent}.{name}",
                _OPERATION[name],
                rules[name].name,
                received,
                given,
                account.absorbed,
                account.rounding_scale,
            )
            received = next(
                iter(account.passed), None
            )  # what context gives to probabilities, and these to scores
        amounts = (
            [*books["scores"].passed, books["context"].passed[-1]]
            if "scores" in books
            else [None, None, books["context"].passed[-1]]
        )
        return [None if s is None else (s, a) for s, a in zip(shares, amounts, strict=True)]

    def _block(
        self, record: Record, r: Array, received: Array, arrived: dict[Value, Arrived], swept: Swept
    ) -> Sequence[Arrived | None]:
        """What has arrived at the block's inputs goes in with it: shares then meet in the order
        they would meet in without blocks.
        """
        inner, starts, end = record.attributes["again"]()
        _share_names(end, record.output)
        within = {end: (r, received)}
        for start, outside in zip(
            starts, (o for o in record.operands if isinstance(o, Value)), strict=True
        ):
            _share_names(start, outside)
            if outside in arrived:
                within[start] = arrived.pop(outside)
        self._walk(inner, within, swept)
        return [within.get(start) for start in starts]

    def _keep(self, value: Value, here: Arrived | None, swept: Swept) -> None:
        if not self.keep(value.names):
            return
        swept.activations[value.site] = value.array
        swept.propagated[value.site] = (
            namespace(value.array).zeros_like(value.array) if here is None else here[0]
        )
        swept.aliases.update({name: value.site for name in value.names if name != value.site})


def _meet(before: Arrived | None, share: Arrived) -> Arrived:
    """Shares that meet at a value are summed, and so are their sums."""
    return share if before is None else (before[0] + share[0], before[1] + share[1])


def _given(operands: tuple[Operand, ...], shares: Sequence[Arrived | None]) -> dict[str, Array]:
    given: dict[str, Array] = {}
    for operand, share in zip(operands, shares, strict=True):
        if isinstance(operand, Value) and share is not None:
            given[operand.site] = (
                given[operand.site] + share[1] if operand.site in given else share[1]
            )
    return given


def _share_names(a: Value, b: Value) -> None:
    """Two stand-ins of one value learn each other's names: composites and keep patterns may use any
    of them.
    """
    a.names = b.names = list(dict.fromkeys([*b.names, *a.names]))


def _three(arrays: tuple[Array | None, ...]) -> tuple[Array, Array, Array]:
    q, k, v = arrays
    return q, k, v


_OPERATION = {"context": "matmul", "probabilities": "softmax", "scores": "matmul"}
