"""Where the parts of a net are (refl.components), asked of the net itself, whatever its checkpoint
calls them: the plainest input there is runs, and the roles of what was recorded say what it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from refl.arrays import Array
from refl.components import Attention, Block, Components, Mlp, labels_of
from refl.errors import ReflError
from refl.network import WHOLE, Network
from refl.trace import Record, Trace, Value

KINDS = ("residual", "attention", "mlp")
"""A block's output; the output of its attention; that of its MLP (or of its experts, added up)."""

_ROLES = {"attention": ("attention.output",), "mlp": ("mlp.down", "expert.sum")}


class Watching(Trace):
    """A trace that takes down the paths of blocks, and knows in which it is."""

    def __init__(self, network: Network, weights: Mapping[str, Array] | None = None) -> None:
        super().__init__(network.weights if weights is None else weights)
        self.blocks: list[str] = []
        self.inside_block = False

    def block(self, name: str, function: Callable[..., Value], x: Value, *rest: Any) -> Value:
        self.blocks.append(self.site(name))
        self.inside_block = True
        y = super().block(name, function, x, *rest)
        self.inside_block = False
        return y


def watched(network: Network, watching: Watching | None = None) -> Watching:
    """The plainest input there is, run."""
    trace = watching or Watching(network)
    decoder = [[0]] if network.task == "sequence-to-sequence" else None
    position = None if network.task in WHOLE else 0
    network.forward(trace, network.batch([network.blank()], position, decoder_prefix=decoder))
    return trace


def blocks(network: Network) -> list[str]:
    """The module paths of the blocks in the order they run, an encoder's first."""
    return watched(network).blocks


def sites(network: Network, kind: str) -> list[str]:
    """The sites of one of KINDS, in the order they run. A mixture of experts has one for the sum of
    its experts. Raises ReflError for what is none.
    """
    if kind not in KINDS:
        raise ReflError(f"unknown kind of component {kind!r}: expected {', '.join(KINDS)}")
    trace = watched(network)
    if kind == "residual":
        return trace.blocks
    roles: Sequence[str] = _ROLES[kind]
    found = [r.output.site for r in trace.records if r.role in roles]
    return [site for site in found if ".experts." not in site]


# -- all parts -------------------------------------------------------------------------------------


def components(network: Network) -> Components:
    """The blocks of a net, their MLPs and their attention. Of one network they are asked once."""
    if "components" not in network.known:
        network.known["components"] = _components(network)
    found: Components = network.known["components"]
    return found


def _components(network: Network) -> Components:
    trace = watched(network)
    labels = labels_of(trace.blocks)
    mlps = [_mlp(r, trace.records, labels) for r in trace.records if r.role == "mlp.down"]
    found = [_attention(r, trace.records, labels) for r in trace.records if _is_context(r)]
    every = list(dict.fromkeys(one for several in mlps for one in several))
    return Components(
        tuple(Block(label, path) for path, label in labels.items()),
        tuple(_told_apart(every)),
        tuple(_told_apart(found)),
    )


_Owner = TypeVar("_Owner", Mlp, Attention)


def _told_apart(owners: Sequence[_Owner]) -> list[_Owner]:
    """ALBERT may have several layers in a block: then they are numbered."""
    counts, found = Counter(one.label for one in owners), []
    numbers = Counter[str]()
    for one in owners:
        several = counts[one.label] > 1
        found.append(replace(one, label=f"{one.label}.{numbers[one.label]}") if several else one)
        numbers[one.label] += 1
    return found


def _block(site: str, labels: Mapping[str, str]) -> str:
    """Label of the block that a site is in."""
    return next(label for path, label in labels.items() if site.startswith(f"{path}."))


_EXPERT = re.compile(r"(?P<mixture>.*)\.experts\.\d+(?P<inside>\..*)")


def _mlp(down: Record, records: Sequence[Record], labels: Mapping[str, str]) -> list[Mlp]:
    """The MLP of a block; of a mixture all experts that the checkpoint has, for a text decides
    which of them run.
    """
    site, block = down.output.site, _block(down.output.site, labels)
    one = Mlp(block, block, f"{site}.input", site, int(_array(down.operands[0]).shape[-1]))
    found = _EXPERT.fullmatch(site)
    if found is None:
        return [one]
    routers = (r for r in records if r.role == "router.logits")
    router = next(r for r in routers if r.output.site.startswith(f"{found['mixture']}."))
    return [
        _expert(one, f"{found['mixture']}.experts.{e}", found["inside"], e)
        for e in range(_array(router.output).shape[-1])
    ]


def _expert(mlp: Mlp, path: str, inside: str, number: int) -> Mlp:
    label, output = f"{mlp.label}.E{number}", f"{path}{inside}"
    return replace(
        mlp, label=label, neurons=f"{output}.input", output=output, tokens=f"{path}.tokens"
    )


def _is_context(record: Record) -> bool:
    return record.role == "attention.context"


def _attention(context: Record, records: Sequence[Record], labels: Mapping[str, str]) -> Attention:
    site, made = context.output.site, {r.output: r for r in records}
    probabilities, value = context.operands
    scores = _before(probabilities, made, ("attention.scores",))
    query, key, values = (_maker(one, made).output.site for one in (*scores.operands, value))
    block = _block(site, labels)
    cross = _reads_other(key, query, records)
    return Attention(
        f"{block}.cross" if cross else block,
        block,
        site,
        _after(context, records).output.site,
        int(_array(context.output).shape[1]),
        query,
        key,
        values,
        cross,
    )


def _before(operand: Any, made: Mapping[Any, Record], roles: Sequence[str]) -> Record:
    """The record of one of these roles that an operand comes from, by what came first."""
    record = made[operand]
    while record.role not in roles:
        record = made[record.operands[0]]
    return record


def _maker(operand: Any, made: Mapping[Any, Record]) -> Record:
    """The linear layer that makes queries, keys or values; of one that makes all, the slice."""
    record = made[operand]
    while not record.role.startswith("attention."):
        before = made[record.operands[0]]
        if before.role == "attention.query_key_value":
            return record
        record = before
    return record


def _reads_other(key: str, query: str, records: Sequence[Record]) -> bool:
    """Whether keys are made of something else than queries: by the same linear, or of one input."""
    inputs = {r.output.site: r.operands[0] for r in records if r.operation == "linear"}
    return key in inputs and inputs[key] is not inputs[query]


def _after(context: Record, records: Sequence[Record]) -> Record:
    """The linear layer after the heads: the first behind them."""
    start = records.index(context)
    return next(r for r in records[start:] if r.role == "attention.output")


def _array(value: Any) -> Array:
    array: Array = value.array
    return array
