"""The reverse sweep: from the output's relevance to everyone's.

The records of a trace are walked from last to first. For each, the composite names a rule; the rule
turns the relevance of the output into what each input receives and says what it absorbed; what
reaches a value that several operations read is summed; the conservation ledger takes down the site.
Nothing else happens.

A record of parts (a block that is recomputed, attention some queries at a time) is run again, part
by part, and each part is walked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from refl import attention, parallel, pieces
from refl.arrays import Array, asnumpy_each, can_ask, device_of, namespace, total
from refl.conditions import CAUSE, Conditions, split
from refl.ledger import DESTINATIONS, Entry, Ledger
from refl.rules.composites import Chosen, Composite
from refl.rules.conservation import RuleOutput
from refl.rules.operations import OPERATIONS
from refl.rules.rounding import rounding_scale
from refl.trace import Part, Record, Trace, Value

Incoming: TypeAlias = tuple[Array, Array]
"""What is propagated to a value, in its shape, and the relevance that is, per example, (B,)."""

Removed: TypeAlias = tuple[Array, Array] | None
"""What a condition, or a stop, has removed: amount and rounding scale, (B,) each."""

STOPPED = "stopped"
"""Where a sweep was stopped on its way, what is absorbed there."""


@dataclass
class Swept:
    """What a sweep leaves behind."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """Site -> its entry in the ledger, from the output down; sums may lie on a device."""
    propagated: dict[str, Array] = field(default_factory=dict)
    """Site -> what was propagated there (relevance, or the g of R = x g), where it was kept."""
    activations: dict[str, Array] = field(default_factory=dict)
    stopped: dict[str, Array] = field(default_factory=dict)
    """Name of a stop -> what arrived there, 0 beside it."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Every further name of a kept site -> the site."""
    dense: bool = False
    """Whether relevance has come to most rows of a text: until then it is that of one output."""
    ledger: Ledger = field(init=False)
    pending: list[dict[Value, Incoming]] = field(default_factory=list)
    """What waits to be passed on while a walk is at some record, in that walk and in those around
    it."""

    def enter(self, entry: Entry) -> None:
        """An operation that runs in parts has one entry: their sum."""
        before = self.entries.get(entry.site)
        self.entries[entry.site] = entry if before is None else before + entry

    def call_back(self) -> None:
        """Nothing stays at the inputs that were reached so far: what came to them is absorbed."""
        for site, entry in self.entries.items():
            if entry.absorbed.keys().isdisjoint(DESTINATIONS):
                continue
            self.entries[site] = replace(entry, absorbed=_as_condition(entry.absorbed))
            if site in self.propagated:
                kept = self.propagated[site]
                self.propagated[site] = namespace(kept).zeros_like(kept)


def _as_condition(absorbed: dict[str, Array]) -> dict[str, Array]:
    """What arrived where it was going, as what a condition has removed."""
    found: dict[str, Array] = {}
    for cause, amount in absorbed.items():
        cause = CAUSE if cause in DESTINATIONS else cause
        found[cause] = found[cause] + amount if cause in found else amount
    return found


@dataclass(frozen=True)
class Sweep:
    """How to sweep.

    keep       which values to keep, by their names; the rest is released as soon as it has been
               passed on
    release    also let go of the activations on the way (a trace can be swept again only without)
    audit      also enter the rounding scale at every site, which its conservation error is judged
               by
    progress   called after each record
    conditions what of a site goes on, where not all of it does (refl.conditions)
    stops      name of a value -> where in it what arrives goes no further, an array of True and
               False that broadcasts against the activation of one example: it is put into
               Swept.stopped, and absorbed as `stopped`
    """

    composite: Composite
    keep: Callable[[list[str]], bool] = lambda names: False
    release: bool = False
    audit: bool = False
    progress: Callable[[], object] = lambda: None
    conditions: Conditions = field(default_factory=Conditions)
    stops: Mapping[str, Any] = field(default_factory=dict)

    def run(self, trace: Trace, at: Value, seed: Array) -> Swept:
        """Sweep from the value `at`, where `seed` (its shape) is what is to be explained:
        relevance, or a gradient.
        """
        with parallel.alone():
            swept, explained = Swept(), self.relevance_sum(at.array, seed)
            self._walk(trace, {at: (seed, explained)}, swept)
        roundoff = float(namespace(at.array, seed).finfo(seed.dtype).eps) / 2
        explained, entries = _on_host(explained, list(swept.entries.values()))
        swept.ledger = Ledger(explained, roundoff, entries)
        return swept

    def relevance_sum(self, x: Array, propagated: Array) -> Array:  # -> (B,)
        """Relevance per example of what is propagated to the activation x."""
        return pieces.relevance_sum(x, propagated, self.as_gradient)

    @property
    def as_gradient(self) -> bool:
        return self.composite.formulation == "gradient_x_input"

    def _walk(self, trace: Trace, incoming: dict[Value, Incoming], swept: Swept) -> None:
        swept.pending.append(incoming)
        for record in reversed(trace.records):
            relevance = incoming.pop(record.output, None)
            stopped, removed = None, None
            if self.stops and relevance is not None:
                relevance, stopped = self._stopped(record.output, relevance, swept)
            if self.conditions:
                relevance, removed = self._conditioned(record, relevance, swept)
            self._keep(record.output, relevance, swept)
            if relevance is not None:
                per_input = self._step(record)(record, *relevance, incoming, swept)
                for operand, received in zip(record.operands, per_input, strict=True):
                    if received is not None and isinstance(operand, Value):
                        _accumulate(incoming, operand, received)
            self._enter_removed(record, CAUSE, removed, swept)
            self._enter_removed(record, STOPPED, stopped, swept)
            if self.release:
                record.output.let_go()
            else:
                record.output.let_go_for_now()
            self.progress()
        swept.pending.pop()

    def _conditioned(
        self, record: Record, relevance: Incoming | None, swept: Swept
    ) -> tuple[Incoming | None, Removed]:
        """What goes on of the relevance of a record's output; and the amount and the rounding scale
        of what does not, (B,) each. A block that is run again meets them there once more, where
        nothing is left to remove.
        """
        x = record.output.array
        mask = self.conditions.mask(record.output.names, x)
        if mask is None:
            return relevance, None
        around = self._around(swept) if self.conditions.through else []
        if self.conditions.through:
            swept.call_back()
        if relevance is None:
            return None, (sum(around), sum(map(abs, around))) if around else None
        kept, rest = split(relevance[0], mask)
        amounts = [self.relevance_sum(x, rest), *around]
        sizes = [total(abs(rest * x if self.as_gradient else rest)), *map(abs, around)]
        return (kept, self.relevance_sum(x, kept)), (sum(amounts), sum(sizes))

    @staticmethod
    def _around(swept: Swept) -> list[Array]:  # (B,) each
        """The amounts of what waits to be passed on by other ways, which is let go of."""
        amounts = [amount for waiting in swept.pending for _, amount in waiting.values()]
        for waiting in swept.pending:
            waiting.clear()
        return amounts

    def _stopped(self, value: Value, relevance: Incoming, swept: Swept) -> tuple[Incoming, Removed]:
        """What goes on from a value, and what of it stops."""
        name = next((name for name in value.names if name in self.stops), None)
        if name is None:
            return relevance, None
        x = value.array
        mask = namespace(x).asarray(self.stops[name], **device_of(x))
        stopped, rest = split(relevance[0], mask)
        before = swept.stopped.get(name)
        swept.stopped[name] = stopped if before is None else before + stopped
        size = total(abs(stopped * x if self.as_gradient else stopped))
        return (rest, self.relevance_sum(x, rest)), (self.relevance_sum(x, stopped), size)

    def _enter_removed(self, record: Record, cause: str, removed: Removed, swept: Swept) -> None:
        """What the site's entry has more: received, and absorbed."""
        if removed is None:
            return
        amount, size = removed
        site, before = record.output.site, swept.entries.get(record.output.site)
        operation, rule = record.operation, cause if before is None else before.rule
        scale = size if self.audit else None
        swept.enter(Entry(site, operation, rule, amount, {}, {cause: amount}, scale))

    def _step(self, record: Record) -> Callable[..., Sequence[Incoming | None]]:
        if not record.parts:
            return self._apply
        if record.operation == "attention" and not self.audit:
            rules = self._rules_inside(record)
            if all(attention.handled(site, rule) for site, rule in rules.items()):
                return partial(self._attend, rules)
        return self._recompute

    def _rules_inside(self, record: Record) -> dict[str, Chosen]:
        """The rules of an attention's own operations to which anything comes, by the ends of their
        sites.
        """
        rules = dict[str, Chosen]()
        for step in record.attributes["steps"]:
            names = record.output.names if step.site == "context" else [_inside(record, step.site)]
            rules[step.site] = self.composite.rule(step.operation, names, step.role)
            if not attention.passes_on(step.site, rules[step.site]):
                break
        return rules

    def _attend(
        self,
        rules: attention.Rules,
        record: Record,
        relevance: Array,
        amount: Array,
        incoming: dict[Value, Incoming],
        swept: Swept,
    ) -> Sequence[Incoming | None]:
        """Attention by tiles, entered as the operations that it is made of."""
        how, z = record.attributes, record.output.array
        arrays: tuple[Any, ...] = record.arrays
        a = attention.Attention(*arrays, mask=how["mask"], cap=how["cap"])
        passed, sums = attention.sweep(a, how["kept"], z, relevance, rules)
        amounts = {"context": amount} | {operand: s for (_, operand), s in sums.passed.items()}
        for step in how["steps"][: len(rules)]:
            rule, received = rules[step.site].name, amounts[step.site]
            swept.enter(_entry_inside(record, step, rule, received, sums))
        return [
            None if r is None else (r, amounts[name])
            for name, r in zip(attention.OPERANDS[: len(record.operands)], passed, strict=False)
        ]

    def _apply(
        self,
        record: Record,
        relevance: Array,
        amount: Array,
        incoming: dict[Value, Incoming],
        swept: Swept,
    ) -> Sequence[Incoming | None]:
        rule = self.composite.rule(record.operation, record.output.names, record.role)
        rows = None if swept.dense else pieces.alive(relevance)
        swept.dense = swept.dense or (rows is None and pieces.is_large(relevance))
        output, sums = pieces.apply(
            record.operation,
            rule.function,
            record.arrays,
            record.output.array,
            relevance,
            record.attributes | rule.options,
            self.as_gradient,
            rows,
        )
        per_input = [
            None if r is None else (r, s) for r, s in zip(output.inputs, sums, strict=True)
        ]
        swept.enter(self._entry(record, rule, relevance, amount, output, per_input))
        return per_input

    def _entry(
        self,
        record: Record,
        rule: Chosen,
        relevance: Array,
        amount: Array,
        output: RuleOutput,
        per_input: Sequence[Incoming | None],
    ) -> Entry:
        passed: dict[str, Array] = {}
        for operand, received in zip(record.operands, per_input, strict=True):
            if isinstance(operand, Value) and received is not None:
                before = passed.get(operand.site)
                passed[operand.site] = received[1] if before is None else before + received[1]
        scale = self._scale(record, rule, relevance) if self.audit else None
        site, operation = record.output.site, record.operation
        return Entry(site, operation, rule.name, amount, passed, output.absorbed, scale)

    def _scale(self, record: Record, rule: Chosen, relevance: Array) -> Array:  # -> (B,)
        options = OPERATIONS[record.operation].options(rule.function) | rule.options
        return rounding_scale(
            record.operation,
            rule.name,
            self.composite.formulation,
            record.arrays,
            record.output.array,
            relevance,
            record.attributes | options,
        )

    def _recompute(
        self,
        record: Record,
        relevance: Array,
        amount: Array,
        incoming: dict[Value, Incoming],
        swept: Swept,
    ) -> Sequence[Incoming | None]:
        """What the record's inputs receive from all its parts.

        Into a part that is the whole goes what its inputs have received already: sums then form in
        the order in which they form without parts, to the last bit.
        """
        values = [operand for operand in record.operands if isinstance(operand, Value)]
        whole = record.parts[0].whole
        received = [incoming.pop(value, None) if whole else None for value in values]
        for part in record.parts:
            r = relevance[part.output]
            sums = amount if whole else self.relevance_sum(record.output.array[part.output], r)
            received = self._sweep_part(part, record, (r, sums), values, received, swept)
        return received

    def _sweep_part(
        self,
        part: Part,
        record: Record,
        relevance: Incoming,
        values: Sequence[Value],
        received: Sequence[Incoming | None],
        swept: Swept,
    ) -> list[Incoming | None]:
        """`received` by the inputs before -> the same with what this part passes on to them."""
        trace, stand_ins, end = part.run(output=record.output.array[part.output])
        _share_names(end, record.output)
        incoming = {end: relevance}
        for stand_in, value, before in zip(stand_ins, values, received, strict=True):
            _share_names(stand_in, value)
            if before is not None and part.whole:
                incoming[stand_in] = before
        inner = replace(self, progress=lambda: None)
        if not part.whole:  # of a part of a site nothing can be kept, or chosen
            inner = replace(inner, keep=_nothing, conditions=Conditions(), stops={})
        inner._walk(trace, incoming, swept)
        passed = [incoming.get(stand_in) for stand_in in stand_ins]
        return list(map(_placed, passed, values, received, part.inputs))

    def _keep(self, value: Value, relevance: Incoming | None, swept: Swept) -> None:
        if not self.keep(value.names):
            return
        array = value.array
        swept.activations[value.site] = array
        swept.propagated[value.site] = (
            namespace(array).zeros_like(array) if relevance is None else relevance[0]
        )
        further = (name for name in value.names if name != value.site)
        swept.aliases.update(dict.fromkeys(further, value.site))


def _on_host(explained: Array, entries: list[Entry]) -> tuple[Any, list[Entry]]:
    """Every sum as a NumPy array, brought after the sweep and in one transfer: one by one they
    would each wait for a GPU.
    """
    if can_ask(explained):
        return explained, entries
    sums = [explained]
    for entry in entries:
        entry.each(sums.append)
    brought = iter(asnumpy_each(sums))
    return next(brought), [entry.each(lambda _: next(brought)) for entry in entries]


def _inside(record: Record, end: str) -> str:
    """The site of an attention's own operation, by its end."""
    path: str = record.attributes["path"]
    return f"{path}.{end}" if path else end


def _entry_inside(
    record: Record, step: attention.Step, rule: str, received: Array, sums: attention.Sums
) -> Entry:
    values = dict(zip(attention.OPERANDS, record.operands, strict=False))
    passed = {}
    for operand in step.operands:
        if (step.site, operand) in sums.passed:
            value = values.get(operand)
            site = value.site if isinstance(value, Value) else _inside(record, operand)
            passed[site] = sums.passed[step.site, operand]
    absorbed = {cause: s for (site, cause), s in sums.absorbed.items() if site == step.site}
    site = record.output.site if step.site == "context" else _inside(record, step.site)
    return Entry(site, step.operation, rule, received, passed, absorbed)


def _nothing(names: list[str]) -> bool:
    return False


def _accumulate(incoming: dict[Value, Incoming], value: Value, received: Incoming) -> None:
    """What several operations pass on to one value is summed, and so are the sums."""
    before = incoming.get(value)
    incoming[value] = (
        received
        if before is None
        else (pieces.added(before[0], received[0]), before[1] + received[1])
    )


def _placed(
    passed: Incoming | None, value: Value, before: Incoming | None, index: Any
) -> Incoming | None:
    """What a part passed on, added in its place to what the whole input has received before."""
    if index is Ellipsis or passed is None:
        return passed if index is Ellipsis else before
    whole, amount = before or (namespace(value.array).zeros_like(value.array), 0.0)
    whole[index] += passed[0]
    return whole, amount + passed[1]


def _share_names(a: Value, b: Value) -> None:
    """Two stand-ins of one value learn each other's names:
    composites and keep patterns may use any of them.
    """
    a.names = b.names = list(dict.fromkeys([*b.names, *a.names]))
