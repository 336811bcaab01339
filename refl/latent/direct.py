"""The direct way from what a neuron or a head writes to the outputs: residual sums, norms, the
choice of a row, a scale, the head, and nothing that is no linear map once a norm's scale is left
out.

    v -> [norm behind the half-block] -> residual sums -> final norm -> rows -> [scale] -> head

It is read from the records of a run, so that it is found in every net, whatever its checkpoint
calls things; or there is none, and a sentence says why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refl.arrays import Array, namespace
from refl.edits import any_expert
from refl.errors import ReflError
from refl.nets.roles import ROLES
from refl.network import Network
from refl.trace import ADAPTER, Record, Trace, Value

NORMS = ("rms_norm", "layer_norm")

Readers: TypeAlias = Mapping[Value, Sequence[Record]]
"""Value -> the operations that read it."""


@dataclass(frozen=True)
class Way:
    """The operations on one direct way, in order; `own` are those before the residual stream."""

    own: tuple[Record, ...]
    after: tuple[Record, ...]

    @property
    def capped(self) -> bool:
        """Whether a soft cap stands behind the head: it is no linear map, and is left out."""
        return any(r.role == "head.cap" for r in self.after)

    def records(self, norm: bool) -> list[Record]:
        """Those that count, with the final norm or without."""
        ends = [n for n, r in enumerate(self.after) if r.role == "head"]
        after = self.after[: ends[-1] + 1] if self.capped else self.after
        return [*self.own, *(r for r in after if norm or r.operation not in NORMS)]

    def norms(self, own: bool) -> list[Record]:
        """The half-block's own, or that in front of the head."""
        return [r for r in (self.own if own else self.after) if r.operation in NORMS]


def refuse_apart(model: Network) -> None:
    """Raises ReflError where an adapter is kept apart: no one matrix then says what a layer
    does.
    """
    if any(name.endswith(f"{ADAPTER}.weight") for name in model.weights):
        raise ReflError(
            f"{model.name or 'the model'} has an adapter that is kept apart, and this reads the "
            "weights of its layers: load it merged (merge=True, without --apart)"
        )


def ways(trace: Trace, site: str, name: str) -> list[Way]:
    """The direct ways from a site to the outputs: one, or one for each head where a net has two
    (DeiT).

    `site` is the output of an MLP, or of an attention; that of an expert which did not run goes the
    way of one that did. Raises ReflError, about the neuron or head `name`, where there is no way.
    """
    if not any(r.role == "head" for r in trace.records):
        raise _refusal(name, "the checkpoint has no head: its outputs are features, no vocabulary")
    readers = defaultdict[Value, list[Record]](list)
    for record in trace.records:
        for operand in {id(o): o for o in record.operands if isinstance(o, Value)}.values():
            readers[operand].append(record)
    return [_way(found) for found in _ways(readers, _alike(trace, site).output, (), name)]


def _alike(trace: Trace, site: str) -> Record:
    """The record of a site, or of the same in another expert."""
    found = [r for r in trace.records if r.output.site == site]
    likes = (r for r in trace.records if any_expert(r.output.site) == any_expert(site))
    return found[0] if found else next(likes)


def _way(records: tuple[Record, ...]) -> Way:
    start = next(n for n, r in enumerate(records) if r.role == "residual")
    return Way(records[:start], records[start:])


def _ways(
    readers: Readers, value: Value, way: tuple[Record, ...], name: str
) -> list[tuple[Record, ...]]:
    following = _following(readers[value], way, name)
    while len(following) == 1:
        way = (*way, following[0])
        following = _following(readers[way[-1].output], way, name)
    if not following:
        return [way]
    return [w for r in following for w in _ways(readers, r.output, (*way, r), name)]


def _following(readers: Sequence[Record], way: Sequence[Record], name: str) -> list[Record]:
    """The next operations: the sum with the residual stream where there is one, else all."""
    stream = [r for r in readers if r.role == "residual"]
    if stream:
        _refuse_post_norm(way, name)
        return stream[:1]
    for record in readers:
        if not _passable(record):
            raise _refusal(name, _why(record))
    return list(readers)


def _refuse_post_norm(way: Sequence[Record], name: str) -> None:
    start = next((n for n, r in enumerate(way) if r.role == "residual"), len(way))
    for record in way[start:]:
        if record.operation in NORMS:
            raise _refusal(
                name,
                f"the norm {record.output.site} stands on the residual stream itself, which "
                "every block norms anew (post-norm)",
            )


_ROLES = ("head", "head.sum", "head.cap", "expert.weighted", "expert.sum")


def _passable(record: Record) -> bool:
    if record.operation == "movement":
        return bool(record.attributes["kind"] == "rows")
    return record.operation in (*NORMS, "scale") or record.role in _ROLES


def _why(record: Record) -> str:
    site = record.output.site
    if record.role.startswith("attention."):
        return f"what an encoder gives is read by the attention of the decoder alone ({site})"
    return (
        f"between the last block and the head stands {site} ({ROLES.get(record.role, 'no map')}), "
        "with an activation behind it, so that no matrix leads from one to the other"
    )


def _refusal(name: str, why: str) -> ReflError:
    return ReflError(f"{name} has no projection on the outputs: {why}")


# -- as a linear map -------------------------------------------------------------------------------


def mapped(record: Record, u: Array) -> Array:  # (I,) -> (O,)
    """u through an operation as a linear map: a norm without its scale 1/std and its bias, a layer
    without its bias.
    """
    if record.operation == "rms_norm":
        weight: Any = record.operands[1]
        return u * (record.attributes["offset"] + weight.array)
    if record.operation == "layer_norm":  # its mean over features is taken off
        return (u - namespace(u).mean(u)) * record.operands[1].array  # type: ignore[union-attr]
    if record.operation == "scale":
        return u * record.attributes["factor"]
    if record.operation == "linear":
        return record.operands[1].array @ u  # type: ignore[union-attr]
    return u
