"""ALTI-Logit: the logit as a sum of what every half-block adds to the residual stream, and
attention's part of it traced back to the tokens (Ferrando et al. 2023, arXiv 2305.12535; the
weights between tokens are ALTI's, Ferrando et al. 2022, arXiv 2203.04212). With x_s the stream at
token s in front of block l, p the token whose logit is explained:

    o_t<-s = sum_h A_h[t,s] l(x_s) W_V^h W_O^h    attention's update of t from s; l: the norm as a
                                                  linear map, at the scale that it had
    d_l[s] = U . lf(o_p<-s)                       its part of the logit; lf: the last norm, alike
    c_ts   = max(0, |y_t| - |o_t<-s + [s=t] x_t - y_t|),   y_t = x_t + (attention's output at t)
    C_l    = c / its rows' sums,   M_l = C_l M_(l-1),   M_0 = 1                (|.|: L1 norms)
    R      = sum_l d_l M_(l-1)

The ledger has every other part of the logit: `initial_residual`, what p's embedding adds by itself,
`mlp`, `bias` and `norm_bias`. They sum to the logit exactly: nothing is approximated but where a
token's mixed content came from, by M.

The paper's code has a second form, in which what the biases of norm and values bring to t, A_h[t,s]
times them, belongs to token s: `value_biases`. They stay apart by default, as in the equations.

Ours, where the paper is silent: a norm behind attention (OLMo 2, Gemma) and a gate are as they were
in the run as well; a block with attention and MLP side by side (Phi) has y_t without the MLP; a
token to which no source comes near (c_ts = 0 for all s) stays itself; a soft-capped logit z' is the
sum of its parts times z'/z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.arrays import Array, asnumpy, like, namespace
from refl.errors import ReflError, argument
from refl.ledger import Entry, Ledger
from refl.methods import forwards
from refl.methods.base import Attribution
from refl.methods.forwards import Parts
from refl.network import Network
from refl.question import Forward, Question
from refl.rules.published import CP_LRP
from refl.seeds import AnySeed
from refl.sweep import Sweep
from refl.trace import Record, Trace, Value

TOGETHER = 1 << 22
"""Numbers of o_t<-s that are held at a time: some rows t of all sources s."""


@dataclass(frozen=True)
class AltiLogit(Attribution):
    """value_biases    what the biases of norm and values bring to a token belongs to its source"""

    value_biases: bool = False

    name: ClassVar[str] = "alti-logit"
    summary: ClassVar[str] = (
        "the parts of the logit that attention adds from each token, traced to the input by how "
        "much tokens were mixed before"
    )
    source: ClassVar[str] = (
        "Ferrando et al. 2023, Explaining How Transformers Use Context to Build Predictions, ACL, "
        "arXiv 2305.12535"
    )
    passes: ClassVar[str] = "1 forward, and each attention's values times its output matrix"
    conserved: ClassVar[str] = "all of it: tokens, and embedding, MLPs and biases in the ledger"
    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        arguments.flag("value_biases", self.value_biases)

    def refuse(self, network: Network) -> None:
        """Raises ReflError for a net that is no decoder with one residual stream."""
        if network.task not in ("next-token", "class"):
            _refuse(network)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        forwards.refuse_recomputing(question, self.name)
        self._refuse_seed(question, seed)
        stream = Stream.of(question.network, forward)
        u, after, explained = _unembedding(question, forward, seed, stream.last)
        mixed, scores, entries = None, 0.0, [*after, stream.entry(self.name, u)]
        attentions = [Block(stream, v, self.value_biases) for v in stream.attentions()]
        for block in attentions:
            updates, entry = block.updates(self.name, u)
            entries.append(entry)
            scores = scores + (updates if mixed is None else updates @ mixed)
            if block is not attentions[-1]:
                mixed = block.weights() if mixed is None else block.weights() @ mixed
        ledger = Ledger(explained, _roundoff(forward), [*entries, *stream.others(self.name, u)])
        return Found(np.asarray(scores, dtype=forward.rows.dtype), ledger=ledger)

    def _refuse_seed(self, question: Question, seed: AnySeed) -> None:
        if question.at is not None:
            raise ReflError(f"method {self.name} explains logits: leave {argument('at=')} out")
        if seed.kind != "logit":
            raise ReflError(
                f"method {self.name} explains a logit, or the difference of two, as a sum: the "
                f"{argument('seed')} {seed.kind!r} is none, take 'logit'"
            )


def _refuse(network: Network) -> None:
    raise ReflError(
        "method alti-logit is defined for decoders whose blocks add to one residual stream: "
        f"{network.name or 'the model'} ({network.net.MODEL_TYPE}, {network.task}) is none; "
        "decompx and cp-lrp decompose any net"
    )


def _roundoff(forward: Forward) -> float:
    return float(np.finfo(forward.rows.dtype).eps) / 2


# -- the last part of the way ----------------------------------------------------------------------


def _unembedding(
    question: Question, forward: Forward, seed: AnySeed, last: Record
) -> tuple[Any, list[Entry], float]:  # -> NumPy (D,), entries, what is explained
    """u with u . x what x at token p of the last residual adds to the logit, through norm, head and
    cap; what these absorb; and the logit.
    """
    records = forward.trace.records
    tail = Trace(forward.trace.weights)
    tail.records = records[records.index(last) :]
    row = seed.gradient(forward.rows[0])[None]
    names = set(last.output.names)
    sweep = Sweep(CP_LRP, keep=lambda sites: not names.isdisjoint(sites))
    swept = question.sweep(replace(forward, trace=tail), sweep, row)
    ledger = swept.ledger.example(0)
    u = asnumpy(swept.propagated[last.output.site])[0, _explained_row(tail.records)]
    return u, [e for e in ledger if e.site != last.output.site], ledger.explained


def _explained_row(tail: Sequence[Record]) -> int:
    """The token that the head reads."""
    for record in tail:
        if record.attributes.get("kind") == "rows":
            return int(record.attributes["index"][0])
    return 0


# -- the residual stream ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """One sum: the embeddings, and what each half-block adds to them."""

    records: Sequence[Record]
    last: Record
    """The last of the additions."""
    start: Value
    """The embeddings."""
    values: frozenset[Value]
    """The sum as it grows."""
    added: tuple[Value, ...]
    """What half-blocks add, from the first to the last."""
    row: int
    """The token that is explained."""

    @classmethod
    def of(cls, network: Network, forward: Forward) -> Stream:
        """Raises ReflError where there is none: where a norm, or an edit, stands between two
        additions.
        """
        records = forward.trace.records
        sums = {r.output: r for r in records if r.role == "residual"}
        if not sums:
            _refuse(network)
        last = list(sums.values())[-1]
        order = {r.output: n for n, r in enumerate(records)}
        start, *added = sorted(_summands(last.output, sums), key=order.__getitem__)
        values = {v for v in sums if start in _summands(v, sums)}
        row = _explained_row(records[records.index(last) :])
        found = cls(records, last, start, frozenset({start, *values}), tuple(added), row)
        if len(added) != len(sums) or any(len(found.contexts(v)) > 1 for v in added):
            _refuse(network)
        return found

    def way(self, added: Value) -> list[Record]:
        """From the stream to what is added to it."""
        return forwards.way(self.records, added, self.values)

    def contexts(self, added: Value) -> list[Record]:
        return [r for r in self.way(added) if r.role == "attention.context"]

    def attentions(self) -> list[Value]:
        return [v for v in self.added if self.contexts(v)]

    def at_row(self, value: Value) -> Any:  # -> NumPy (D,)
        return asnumpy(value.array[0, self.row, :])

    def entry(self, name: str, u: Any) -> Entry:
        """The whole stream, as the sum that it is."""
        passed = {v.site: float(self.at_row(v) @ u) for v in (self.start, *self.added)}
        whole = float(self.at_row(self.last.output) @ u)
        return Entry(self.last.output.site, "add", name, whole, passed, {})

    def others(self, name: str, u: Any) -> list[Entry]:
        """Of MLPs, and of the embeddings."""
        mlps = {v: "mlp" for v in self.added if not self.contexts(v)}
        parts = {v: float(self.at_row(v) @ u) for v in (*mlps, self.start)}
        return [
            Entry(v.site, "forward", name, part, {}, {mlps.get(v, "initial_residual"): part})
            for v, part in parts.items()
        ]


def _summands(value: Value, sums: Mapping[Value, Record]) -> list[Value]:
    """What a sum of sums is the sum of."""
    if value not in sums:
        return [value]
    return [v for each in forwards.inputs(sums[value]) for v in _summands(each, sums)]


# -- one attention ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What one attention adds to the stream, source by source."""

    stream: Stream
    added: Value
    value_biases: bool

    @cached_property
    def way(self) -> list[Record]:
        return self.stream.way(self.added)

    @cached_property
    def context(self) -> Record:
        (found,) = self.stream.contexts(self.added)
        return found

    @cached_property
    def input(self) -> Value:
        """The stream that it reads."""
        (found,) = {v for r in self.way for v in forwards.inputs(r)} & self.stream.values
        return found

    @cached_property
    def behind(self) -> list[Record]:
        """From the heads' contexts, side by side, to the stream."""
        return self.way[self.way.index(self.context) + 1 :]

    @cached_property
    def output(self) -> int:
        """Number of the linear layer among those behind."""
        roles = [r.role for r in self.behind]
        if roles[:2] != ["", "attention.output"] or self.behind[0].operation != "movement":
            raise ReflError(
                "method alti-logit takes attention apart by heads: an edit between its context "
                "and its output layer is in the way, edit the output layer instead"
            )
        return 1

    @cached_property
    def from_source(self) -> Array:  # -> (S, H, D)
        """l(x_s) W_V^h W_O^h"""
        v: Array = self.context.arrays[1]
        if not self.value_biases:
            before = self.way[: self.way.index(self.context)]
            v = forwards.run(before, Parts(("source",)), {self.input: self.input.array})
        heads, width = v.shape[1], v.shape[-1]
        xp, w = namespace(v), cast(Array, self.behind[self.output].arrays[1])
        w = xp.reshape(w.T, (heads, width, w.shape[0]))
        return xp.permute_dims(v[0, ...] @ w, (1, 0, 2))

    def of_sources(self, rows: slice) -> Array:  # -> (S, rows, D)
        """o_t<-s of some t."""
        xp, a = namespace(self.from_source), cast(Array, self.context.arrays[0])
        o = xp.permute_dims(a[0, :, rows, :], (2, 1, 0)) @ self.from_source
        behind = self.behind[self.output + 1 :]
        if not behind:
            return o
        first = self.behind[self.output].output
        return forwards.run(behind, Parts(("source",) * o.shape[0]), {first: o}, rows)

    def updates(self, name: str, u: Any) -> tuple[Any, Entry]:  # NumPy (D,) -> NumPy (S,), entry
        """d[s], and what attention adds to the logit, by source and by cause."""
        row = self.stream.row
        d = asnumpy(self.of_sources(slice(row, row + 1))[:, 0, :]) @ u
        absorbed = {"tokens": float(d.sum())} | self._biases(u)
        whole = float(self.stream.at_row(self.added) @ u)
        return d, Entry(self.added.site, "forward", name, whole, {}, absorbed)

    def _biases(self, u: Any) -> dict[str, float]:
        """What its biases add, weighted as the values are."""
        way, value = (
            (self.behind, self.context.output) if self.value_biases else (self.way, self.input)
        )
        if not (causes := forwards.causes(way)):
            return {}
        parts = Parts(tuple(causes))
        brought = forwards.run(way, parts, {value: parts.nothing(value.array)})
        each = asnumpy(brought[:, self.stream.row, :]) @ u
        return dict(zip(causes, each.tolist(), strict=True))

    def weights(self) -> Any:  # -> NumPy (T, S)
        """C: how much of each token comes from each source."""
        xp, x = namespace(self.input.array), self.input.array[0, ...]
        y = x + self.added.array[0, ...]
        length, own = x.shape[0], like(np.eye(x.shape[0]), x)
        together = max(1, TOGETHER // (x.shape[0] * x.shape[1]))
        found = []
        for start in range(0, length, together):
            rows = slice(start, min(start + together, length))
            o = self.of_sources(rows) + own[:, rows, None] * x[rows, :]
            far = xp.sum(xp.abs(o - y[rows, :]), axis=-1)
            found.append(asnumpy(xp.sum(xp.abs(y[rows, :]), axis=-1) - far).T)
        return normalized(np.concatenate(found).astype(np.float64))


def normalized(c: Any) -> Any:  # NumPy (T, S) -> (T, S)
    """Rows of max(0, c) over their sums; a row without any stays at its own token."""
    c = np.maximum(c, 0)
    total = c.sum(axis=-1, keepdims=True)
    return np.where(total > 0, c / np.where(total > 0, total, 1), np.eye(*c.shape))
