"""Which way relevance takes through each block, read from the conservation ledger; and how much of
it lies on the first token.

A block is a residual stream with attention and an MLP beside it. What comes to its output divides
at the sums of the stream, and what attention or MLP hand back to the stream inside the block
divides again:

    received + returned = attention + mlp + residual + absorbed              (+ rounding)
    attention           = queries + keys + values + absorbed in attention    (+ rounding)

In a block whose MLP reads what attention has added to the stream (Llama, GPT-2, BERT, T5), most of
what passes the MLP is returned, and is counted again in attention and residual. Where the two stand
side by side (Phi), nothing is returned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refl.components import Attention, Block, Components
from refl.conditions import CAUSE
from refl.edits import edited_site
from refl.errors import ReflError
from refl.kept import Explained, Positions, is_kept, refused
from refl.ledger import Entry, Ledger
from refl.rows import Rows, number_or_null

Absorbed = dict[str, float]
"""Cause -> what was absorbed."""


@dataclass(frozen=True)
class AttentionPath:
    """What went through one attention.

    name                    L3, or decoder.L3.cross
    received                what came to the output of the linear layer after its heads
    queries, keys, values   what came to the outputs of the linear layers that make them (of a
                            layer that makes all three, to its slices)
    absorbed                between these two: by softmax, biases, stabilizers, rotary positions,
                            and by a bias of distances, which all blocks share (T5)
    """

    name: str
    received: float
    queries: float
    keys: float
    values: float
    absorbed: Absorbed


@dataclass(frozen=True)
class BlockPaths:
    """What became of the relevance of one block.

    received     what came to the block from above: at its output; where a neuron inside it is
                 explained, there
    attentions   one, or several: cross-attention, ALBERT's layers
    mlp          what came to the output of the MLP (of the sum over experts)
    residual     what left the block along the residual stream, without attention or MLP behind it
    returned     what attention and MLP handed to the stream inside the block
    absorbed     by the stream itself: norms, sums and edits between the block's ends and the
                 outputs of attention and MLP
    inside       absorbed anywhere in the block, by cause

    Where a neuron inside an MLP is explained, the way from it to the stream counts as the stream.
    """

    block: str
    site: str
    received: float
    attentions: tuple[AttentionPath, ...]
    mlp: float
    residual: float
    returned: float
    absorbed: Absorbed
    inside: Absorbed

    @property
    def attention(self) -> float:
        return math.fsum(a.received for a in self.attentions)

    @property
    def queries(self) -> float:
        return math.fsum(a.queries for a in self.attentions)

    @property
    def keys(self) -> float:
        return math.fsum(a.keys for a in self.attentions)

    @property
    def values(self) -> float:
        return math.fsum(a.values for a in self.attentions)

    @property
    def parts(self) -> dict[str, float]:
        """queries, keys, values, mlp, residual and absorbed (by stream and attention), which add up
        to received + returned.
        """
        sums = [self.absorbed, *(a.absorbed for a in self.attentions)]
        return {
            "queries": self.queries,
            "keys": self.keys,
            "values": self.values,
            "mlp": self.mlp,
            "residual": self.residual,
            "absorbed": math.fsum(v for causes in sums for v in causes.values()),
        }

    @property
    def fractions(self) -> dict[str, float]:
        """|part| / sum of |parts|; nan where nothing came to the block."""
        parts = self.parts
        size = math.fsum(map(abs, parts.values()))
        return {name: abs(v) / size if size else math.nan for name, v in parts.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        plain = vars(self) | {"attentions": [dict(vars(a)) for a in self.attentions]}
        sums = {name: getattr(self, name) for name in ("attention", "queries", "keys", "values")}
        fractions = {name: number_or_null(v) for name, v in self.fractions.items()}
        return plain | sums | {"fractions": fractions}


@dataclass(frozen=True, repr=False)
class Paths(Rows[BlockPaths]):
    """Every block, in the order of the net."""

    what: str
    explained: float

    def __repr__(self) -> str:
        """One line."""
        return f"<Paths through {len(self)} blocks>"

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return vars(self) | {"rows": [row.as_dict() for row in self.rows]}


def paths(e: Explained) -> Paths:
    """Of every block. Raises ReflError where there is no conservation ledger, nothing is known of
    the net's components, or conditions took relevance out between operations.
    """
    ledger, components = e.ledger, e.components
    if any(CAUSE in entry.absorbed for entry in ledger):
        raise ReflError(
            "conditions take out what goes around a site, between the operations of a block: ask "
            "for paths without conditions, or read the ledger"
        )
    rows = tuple(_Flow(ledger, components, block).found() for block in components.blocks)
    return Paths(rows, e.what, e.explained)


# -- one block as a graph --------------------------------------------------------------------------


@dataclass
class _Flow:
    """The entries of one block, and to which of its ways each belongs."""

    ledger: Ledger
    components: Components
    block: Block
    every: dict[str, Entry] = field(init=False)
    own: dict[str, Entry] = field(init=False)

    def __post_init__(self) -> None:
        self.every = {entry.site: entry for entry in self.ledger}
        path = self.block.site
        inside = {s: n for s, n in self.every.items() if s == path or s.startswith(f"{path}.")}
        shared = self._shared(inside)
        self.own = {site: entry for site, entry in inside.items() if site not in shared}

    def _shared(self, inside: Mapping[str, Entry]) -> set[str]:
        """What lies under the block's path and is that of all blocks: T5's bias of distances."""
        others = [entry for site, entry in self.every.items() if site not in inside]
        reached = {site for entry in others for site in entry.passed}
        strange = [site for site in list(inside)[1:] if site in reached]
        return _reached(inside, strange, ())

    def found(self) -> BlockPaths:
        own, label = self.own, self.block.label
        start = next(iter(own), None)
        attentions = [a for a in self.components.attentions if a.block == label]
        made = {site for a in attentions for site in (a.query, a.key, a.value)}
        inside = {a.label: self._attention(a, start) for a in attentions}
        stream = self._stream(start, {a.output for a in attentions}, made, inside.values())
        rest = own.keys() - stream
        seed = {start: own[start].received} if start is not None else {}
        return BlockPaths(
            label,
            self.block.site,
            sum(seed.values()),
            tuple(self._path(a, inside[a.label], stream, seed) for a in attentions),
            math.fsum(self._entering(top, stream, seed) for top in self._mlps()),
            self._passed(stream, lambda site: site not in self.own),
            self._passed(rest, lambda site: site in stream),
            _absorbed(own[site] for site in own if site in stream),
            _absorbed(own.values()),
        )

    def _mlps(self) -> list[str]:
        """The sites whose relevance is that of the block's MLPs, of experts that of their sum."""
        found = dict[str, None]()
        for mlp in self.components.neurons_of(self.block.label):
            mixture = (mlp.tokens or "").rpartition(".experts.")[0]
            found[mixture or mlp.output] = None
        return list(found)

    def _attention(self, a: Attention, start: str | None) -> set[str]:
        """The entries between its output and its queries, keys and values."""
        made, module = (a.query, a.key, a.value), a.context.removesuffix("context")
        if start is None:
            return set()
        within = start if start.startswith(module) else None
        top = a.output if a.output in self.own else within
        inside = _reached(self.own, [] if top is None else [top], made)
        return inside if self._leads(inside, made) else set()

    def _leads(self, inside: Collection[str], made: Collection[str]) -> bool:
        return any(site in made for one in inside for site in self.own[one].passed)

    def _stream(
        self,
        start: str | None,
        outputs: Collection[str],
        made: Collection[str],
        inside: Iterable[Collection[str]],
    ) -> set[str]:
        """The entries of the residual stream: what is reached from the block's output and from the
        sums, without passing through attention or MLP.
        """
        branches = set().union(*inside)
        tops = {*outputs, *made, *self._mlps()}
        sums = [s for s in self.own if self._is_sum(s) and s not in branches]
        starts = [s for s in [start, *sums] if s is not None and s not in tops | branches]
        return _reached(self.own, starts, tops)

    def _is_sum(self, site: str) -> bool:
        """Of stream and half-block; an edit is a sum, too."""
        return self.own[site].operation == "add" and edited_site("") not in site

    def _path(
        self, a: Attention, inside: Collection[str], stream: Collection[str], seed: Absorbed
    ) -> AttentionPath:
        received = self._entering(a.output, stream, seed)
        for site in {*inside, a.query, a.key, a.value} - {a.output}:
            received += seed.get(site, 0.0)
        made = (self.own.get(site) for site in (a.query, a.key, a.value))
        q, k, v = (0.0 if entry is None else entry.received for entry in made)
        absorbed = _absorbed(self.own[site] for site in self.own if site in inside)
        for site, amount in self._leaving(inside):
            cause = self._cause(site)
            absorbed[cause] = absorbed.get(cause, 0.0) + amount
        return AttentionPath(a.label, received, q, k, v, absorbed)

    def _entering(self, top: str, stream: Collection[str], seed: Absorbed) -> float:
        """What the stream, or the seed, hands to the output of attention or MLP."""
        return self._passed(stream, lambda site: site == top) + seed.get(top, 0.0)

    def _passed(self, origin: Collection[str], wanted: Any) -> float:
        links = (link for s in self.own if s in origin for link in self.own[s].passed.items())
        return math.fsum(amount for site, amount in links if wanted(site))

    def _leaving(self, inside: Collection[str]) -> Iterator[tuple[str, float]]:
        """What attention passes on out of the block: to what all blocks share."""
        for site in self.own:
            if site in inside:
                yield from (
                    (target, amount)
                    for target, amount in self.own[site].passed.items()
                    if target not in self.own
                )

    def _cause(self, site: str) -> str:
        """What absorbs in the end what is passed on to a site that is read by attention alone."""
        entry = self.every[site]
        while entry.passed:
            entry = self.every[next(iter(entry.passed))]
        return next(iter(entry.absorbed))


def _reached(
    entries: Mapping[str, Entry], starts: Iterable[str], bounds: Collection[str]
) -> set[str]:
    """The sites that relevance comes to from some, these among them, up to `bounds`, these not."""
    found, waiting = set[str](), list(starts)
    while waiting:
        site = waiting.pop()
        if site in entries and site not in found and site not in bounds:
            found.add(site)
            waiting += entries[site].passed
    return found


def _absorbed(entries: Iterable[Entry]) -> Absorbed:
    """By cause, the largest first."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        for cause, amount in entry.absorbed.items():
            found.setdefault(cause, []).append(amount)
    sums = {cause: math.fsum(amounts) for cause, amounts in found.items()}
    return dict(sorted(sums.items(), key=lambda item: -abs(item[1])))


# -- the first token -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sink:
    """The first token at the output of one block.

    relevance   r_0, its relevance there, summed over features
    fraction    r_0 / sum_t r_t
    of_sizes    |r_0| / sum_t |r_t|
    attention   what it receives of it, the mean of A[h, j, 0] over heads and queries of the block's
                attention to itself; None where `*.probabilities` was not kept

    Fractions are nan where no relevance came to the block.
    """

    block: str
    site: str
    token: str | None
    relevance: float
    fraction: float
    of_sizes: float
    attention: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, which has no nan."""
        fractions = {name: number_or_null(getattr(self, name)) for name in ("fraction", "of_sizes")}
        return vars(self) | fractions


@dataclass(frozen=True, repr=False)
class Sinks(Rows[Sink]):
    """Every block, in the order of the net: how far the first token is an attention sink (Xiao et
    al. 2024, Efficient streaming language models with attention sinks, arXiv 2309.17453), and how
    far relevance lies there as well.
    """

    what: str
    explained: float

    def __repr__(self) -> str:
        """One line."""
        return f"<Sinks: the first token at {len(self)} blocks>"

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return vars(self) | {"rows": [row.as_dict() for row in self.rows]}


def sinks(e: Explained) -> Sinks:
    """Of every block. Raises ReflError where outputs of blocks were not kept."""
    blocks = e.components.blocks
    if missing := [block.site for block in blocks if not is_kept(e, block.site)]:
        raise refused(e, missing)
    where = Positions(e)
    return Sinks(tuple(_sink(e, block, where) for block in blocks), e.what, e.explained)


def _sink(e: Explained, block: Block, where: Positions) -> Sink:
    r = np.asarray(e[block.site], dtype=np.float64).sum(axis=-1)  # (T,)
    first, whole, sizes = float(r[0]), float(r.sum()), float(abs(r).sum())
    return Sink(
        block.label,
        block.site,
        where.text(block.site, 0),
        first,
        first / whole if whole else math.nan,
        abs(first) / sizes if sizes else math.nan,
        _attention_to_first(e, block, where),
    )


def _attention_to_first(e: Explained, block: Block, where: Positions) -> float | None:
    """The mean over heads and queries; over all layers of a block that has several."""
    found = []
    for a in e.components.attentions:
        site = f"{a.context.removesuffix('context')}probabilities"
        if a.block == block.label and not a.cross and is_kept(e, site):
            p = e.activation(site)[:, : where.length(block.site), 0]  # (H, T)
            found.append(float(np.mean(p, dtype=np.float64)))
    return math.fsum(found) / len(found) if found else None
