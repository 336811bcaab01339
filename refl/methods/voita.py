"""Voita et al. 2021, Analyzing the Source and Target Contributions to Predictions in Neural Machine
Translation (ACL, arXiv 2010.10907)

    z_(j<-i) = J_ji x_i + o_j / N          J the Jacobian at x, N inputs
    R_i = sum_j (z^+_(j<-i) / sum_k z^+_(j<-k) + z^-_(j<-i) / sum_k z^-_(j<-k)) R_j / 2
    R <- R times what makes sum |R| what it was above the layer

o_j is what the linear map leaves of the output, spread evenly over the inputs: f_j(x) - sum_i J_ji
x_i, a Taylor expansion at x (`taylor`), or f_j(0), which the published code takes
(github.com/lena-voita/the-story-of-heads, lib/layers/lrp.py; `zero`). For linear layers they are
both the bias. An output on which an input does not depend hands it nothing.

What a layer is, and what its sum |R| is kept over, is that code's: a linear layer, a sum of two, a
norm: each token by itself; one attention, softmax(q k^T) v as one function of q, k and v: each head
by itself; and where several layers read one value, their sum: the whole example. An activation
hands on what it gets. Rotation by a position is linear, a product of N factors one layer that gives
each R / N: neither was in the models of the paper. The code adds 1e-5 to every denominator; nothing
is added here, and what is exactly zero passes nothing on.

From a single logit every R has its sign, and its sum over tokens, positions and other leaves is the
logit's. A rescaled sum is not linear in R: a contrast is not the difference of two explanations.

The ledger is one of sums of R, of which the rule keeps sizes alone. What it absorbs:

    one_sign     R_j / 2 for each sign that no contribution to output j has (R_j where all are zero)
    rescaling    - sum_i (factor - 1) R_i, R_i before it is scaled: less than 0 where it adds

and what comes to positions and other leaves. An offset is handed to the inputs, all of it. From a
single logit each layer's two are opposite, for then sum R is kept with sum |R|; where signs differ
they are not.

Cost: a Jacobian for each token of a layer, one after the other; for attention one of
T x (d, 2 T d + d) for each query and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.arrays import Array, asnumpy, flags, inverse_rms, like, namespace, swap, total
from refl.errors import ReflError, argument
from refl.ledger import Entry, Ledger
from refl.methods.base import Attribution
from refl.methods.walk import Received, summed, to_operands, walk
from refl.question import Forward, Question
from refl.rules import activation
from refl.rules.layer_norm import standardized
from refl.rules.operations import OPERATIONS
from refl.rules.rotary import halves_exchanged
from refl.seeds import AnySeed
from refl.trace import Record, Value

OFFSETS = ("taylor", "zero")
UNCHANGED = {"activation": "identity", "scale": "pass_through", "movement": "pass_through"}
LEAVES = ("embedding", "learned", "source")


@dataclass(frozen=True)
class Voita(Attribution):
    """offset    taylor (what the Jacobian at x leaves of the output), or zero (the output at 0)"""

    offset: str = "taylor"

    name: ClassVar[str] = "voita-2021"
    summary: ClassVar[str] = (
        "relevance by alpha-beta 1/2, 1/2 on Taylor terms, rescaled after every layer"
    )
    source: ClassVar[str] = (
        "Voita et al. 2021, Analyzing the Source and Target Contributions to Predictions in "
        "Neural Machine Translation, ACL, arXiv 2010.10907"
    )
    passes: ClassVar[str] = "1 forward, 1 sweep with a Jacobian for each token of a layer"
    conserved: ClassVar[str] = (
        "the sum of |R|; R in the ledger: tokens, positions, what signs and rescaling absorb"
    )
    unit: ClassVar[str] = "linearized"
    plain = True

    def __post_init__(self) -> None:
        arguments.one_of("offset", self.offset, OFFSETS)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        self._refuse(question, forward)
        z, records = forward.explained, forward.trace.records
        start = question.network.place(seed.relevance(forward.rows[0]).reshape(z.array.shape))
        with np.errstate(all="ignore"):
            layers = _Layers({r.output: r for r in records}, self.offset == "taylor")
            sites = forward.input_sites()
            met = walk(records, z, start, layers.step, sites, layers.met)
        scores = [_scores(question, met.get(s), forward.leaf(s)) for s in sites]
        written = scores[1] if forward.decoder_embedded else None
        roundoff = float(np.finfo(forward.rows.dtype).eps) / 2
        ledger = Ledger(_sum(start), roundoff, layers.entries)
        return Found(scores[0], written, ledger=ledger)

    def _refuse(self, question: Question, forward: Forward) -> None:
        if question.recompute:
            raise ReflError(
                f"method {self.name} reads every activation, which a run that recomputes its "
                f"blocks does not hold: leave {argument('recompute')} out"
            )
        known = {*UNCHANGED, *LEAVES, *_LAYERS, "softmax", "matmul"}
        strange = next((r for r in forward.trace.records if r.operation not in known), None)
        if strange is not None:
            raise ReflError(
                f"method {self.name} is not defined for the operation {strange.operation} "
                f"({strange.output.site}): take another method, such as attnlrp"
            )


def _scores(question: Question, r: Array | None, leaf: Any) -> Any:
    """(T,) of tokens, (H, W) of pixels."""
    found = np.zeros_like(leaf[0]) if r is None else asnumpy(r)[0]
    return found.sum(axis=0 if question.network.takes_images else -1)


# -- the rule on contributions ---------------------------------------------------------------------


@dataclass
class Absorbed:
    """Cause -> what one layer absorbs, from its closed form."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, cause: str, amounts: Array) -> None:
        """Their sum."""
        self.sums[cause] = self.sums.get(cause, 0.0) + _sum(amounts)


def _sum(r: Array) -> float:
    """Over everything, in float64."""
    return float(total(namespace(r).reshape(r, (1, -1)))[0])


def messages(c: Array, r: Array, lost: Absorbed) -> Array:  # (..., O, N), (..., O) -> (..., O, N)
    """R_(i<-j): halves of R_j over the positive and over the negative contributions."""
    xp, found = namespace(c, r), 0.0
    for part in (xp.maximum(c, like(0.0, c)), xp.minimum(c, like(0.0, c))):
        whole = xp.sum(part, axis=-1)
        none = flags(whole == 0, whole)
        found = found + part * (r / 2 / (whole + none))[..., None]
        lost.add("one_sign", r / 2 * none)
    return found


def divided(c: Array, r: Array, lost: Absorbed) -> Array:  # (..., O, N), (..., O) -> (..., N)
    """R of each input."""
    found = messages(c, r, lost)
    return namespace(found).sum(found, axis=-2)


def rescaled(
    parts: Sequence[Array], r: Array, axes: tuple[int, ...], lost: Absorbed
) -> list[Array]:
    """The parts, times what makes their sum of |R| that of r, along these axes of both."""
    xp = namespace(r, *parts)

    def size(x: Array) -> Array:
        return xp.sum(xp.abs(x), axis=axes, keepdims=True)

    after = sum(size(part) for part in parts)
    factor = size(r) / (after + flags(after == 0, after))
    for part in parts:
        lost.add("rescaling", part * (1 - factor))
    return [part * factor for part in parts]


def kept_at_a_fan_out(parts: Sequence[Array], lost: Absorbed) -> Array:
    """What several layers hand to one value, added; its sum of |R| is that of the parts."""
    whole = summed(parts)
    if len(parts) == 1:
        return whole
    xp = namespace(whole)
    axes = tuple(range(1, whole.ndim))
    sizes = xp.concat([xp.sum(xp.abs(p), axis=axes)[None] for p in parts], axis=0)
    before, after = xp.sum(sizes, axis=0), xp.sum(xp.abs(whole), axis=axes)
    factor = before / (after + flags(after == 0, after))
    factor = xp.reshape(factor, (-1, *(1,) * (whole.ndim - 1)))
    lost.add("rescaling", whole * (1 - factor))
    return whole * factor


# -- layers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layers:
    """The steps of a walk, and the ledger of them. made: value -> the record that it is from."""

    made: dict[Value, Record] = field(repr=False)
    taylor: bool
    entries: list[Entry] = field(default_factory=list, repr=False)

    def met(self, value: Value, parts: Sequence[Array]) -> Array:
        lost = Absorbed()
        whole = kept_at_a_fan_out(parts, lost)
        if len(parts) > 1:
            received, passed = sum(map(_sum, parts)), {value.site: _sum(whole)}
            self._enter(value, "fan_out", received, passed, lost)
        return whole

    def step(self, record: Record, r: Array) -> Received:
        lost, received = Absorbed(), list[tuple[Value, Array]]()
        if record.operation in LEAVES:
            lost.add(record.role, r)
        else:
            received = list(self._received(record, r, lost))
        passed = dict[str, float]()
        for value, part in received:
            passed[value.site] = passed.get(value.site, 0.0) + _sum(part)
        self._enter(record.output, record.operation, _sum(r), passed, lost)
        return received

    def _enter(
        self, value: Value, operation: str, whole: float, passed: dict[str, float], lost: Absorbed
    ) -> None:
        entry = Entry(value.site, operation, Voita.name, whole, passed, lost.sums)
        self.entries.append(entry)

    def _received(self, record: Record, r: Array, lost: Absorbed) -> Received:
        if record.role == "attention.context":
            return self._attention(record, r, lost)
        if record.operation in UNCHANGED:
            return to_operands(record, _unchanged(record, r))
        inputs = _LAYERS[record.operation](record, r, self.taylor, lost)
        inputs = rescaled(inputs, r, (-1,), lost)
        return zip(_values(record), inputs, strict=True)

    def _attention(self, record: Record, r: Array, lost: Absorbed) -> Received:  # r: (B, H, J, F)
        """softmax(q k^T) v as one function."""
        weights, values = record.operands
        assert isinstance(weights, Value) and isinstance(values, Value)
        scores, slope = self._scores(self.made[weights])
        q, transposed = scores.operands
        assert isinstance(q, Value) and isinstance(transposed, Value)
        arrays = (q.array, swap(transposed.array), values.array, weights.array)
        inputs = attention(*arrays, record.output.array, slope, r, self.taylor, lost)
        of_q, of_k, of_v = rescaled(inputs, r, (-2, -1), lost)
        return (q, of_q), (transposed, swap(of_k)), (values, of_v)

    def _scores(self, softmax: Record) -> tuple[Record, Any]:
        """The product of queries and keys, and the slope of what the softmax reads by it: 1, but
        for a cap.
        """
        slope: Any = 1.0
        record = self._before(softmax)
        while record.operation != "matmul":
            if record.operation == "activation":
                slope = slope * activation.slope(record.arrays[0], record.attributes["kind"])
            elif record.operation == "scale":
                slope = slope * record.attributes["factor"]
            elif record.role != "attention.bias":
                raise ReflError(
                    f"method voita-2021 is not defined for an edit inside attention "
                    f"({record.output.site}): leave it out"
                )
            record = self._before(record)
        return record, slope

    def _before(self, record: Record) -> Record:
        """What made its first operand."""
        value = record.operands[0]
        assert isinstance(value, Value)
        return self.made[value]


def _values(record: Record) -> list[Value]:
    constant = record.attributes.get("constant", (False,) * len(record.operands))
    pairs = zip(record.operands, constant, strict=True)
    return [o for o, is_constant in pairs if isinstance(o, Value) and not is_constant]


def _arrays(record: Record) -> tuple[Any, ...]:
    return record.arrays


def _unchanged(record: Record, r: Array) -> Any:
    function = OPERATIONS[record.operation].rules[UNCHANGED[record.operation]].relevance
    assert function is not None
    return function(*record.arrays, record.output.array, r, **record.attributes)


def _linear(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    """c_ji = W_ji x_i + b_j / I, token by token, for outputs that have relevance."""
    x, w, b = _arrays(record)
    xp = namespace(x, w, r)
    rows, into = xp.reshape(x, (-1, x.shape[-1])), xp.reshape(r, (-1, r.shape[-1]))
    each = 0.0 if b is None else (b / x.shape[-1])[:, None]
    found = xp.zeros_like(rows)
    for t in range(rows.shape[0]):
        found[t, :] = divided(w * rows[t] + each, into[t], lost)
    return [xp.reshape(found, x.shape)]


def _add(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    a, b = _arrays(record)
    xp = namespace(a, b)
    a, b = xp.broadcast_arrays(a, b)
    shared = divided(xp.stack([a, b], axis=-1)[..., None, :], r[..., None], lost)
    return [shared[..., 0], shared[..., 1]]


def _multiply(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    """Every contribution is the product itself, offset or none."""
    values = _values(record)
    return [r / len(values) for _ in values]


def _rotary(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    (x,), how = _arrays(record), record.attributes
    xp = namespace(x, r)
    still = xp.zeros_like(x)
    c = xp.stack(
        [x * how["cos"] + still, halves_exchanged(x, -1.0, 1.0) * how["sin"] + still], axis=-1
    )
    sent = messages(c[..., None, :], r[..., None], lost)[..., 0, :]
    return [sent[..., 0] + halves_exchanged(sent[..., 1], 1.0, 1.0)]


def _layer_norm(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    """J_ji = w_j (delta_ji - 1/N - x_hat_j x_hat_i / N) / std;  f(0) = b"""
    x, w, b = _arrays(record)
    x_hat, inverse, _ = standardized(x, record.attributes["norm_eps"])
    z, at_zero = record.output.array, b
    return [_normed(x, w, inverse, x_hat, 1.0, z if taylor else at_zero, taylor, r, lost)]


def _rms_norm(record: Record, r: Array, taylor: bool, lost: Absorbed) -> list[Array]:
    """J_ji = w_j (delta_ji - x_hat_j x_hat_i / N) / rms;  f(0) = 0"""
    (x, w), how = _arrays(record), record.attributes
    inverse, _ = inverse_rms(x, how["norm_eps"])
    w = w + how.get("offset", 0.0)
    z = record.output.array
    return [_normed(x, w, inverse, x * inverse, 0.0, z if taylor else None, taylor, r, lost)]


def _normed(
    x: Array,
    w: Array,
    inverse: Array,
    x_hat: Array,
    centered: float,
    value: Array | None,
    taylor: bool,
    r: Array,
    lost: Absorbed,
) -> Array:  # (B, T, N) -> (B, T, N)
    """Row by row. value: f(x) for a Taylor expansion, else f(0) or None."""
    xp, n = namespace(x, w, r), x.shape[-1]
    rows, into = xp.reshape(x, (-1, n)), xp.reshape(r, (-1, n))
    hats, scales = xp.reshape(x_hat, (-1, n)), xp.reshape(inverse, (-1,))
    found = xp.zeros_like(rows)
    identity = xp.eye(n, dtype=x.dtype) - centered / n
    for t in range(rows.shape[0]):
        jacobian = (w * scales[t])[:, None] * (identity - hats[t][:, None] * hats[t] / n)
        c = jacobian * rows[t]
        if value is not None:
            at = xp.reshape(value, (-1, n))[t] - xp.sum(c, axis=-1) if taylor else value
            c = c + (at / n)[:, None]
        found[t, :] = divided(c, into[t], lost)
    return xp.reshape(found, x.shape)


def attention(
    q: Array,
    k: Array,
    v: Array,
    p: Array,
    z: Array,
    slope: Any,
    r: Array,
    taylor: bool,
    lost: Absorbed,
) -> list[Array]:  # (B, H, J, F), (B, H, I, F), (B, H, I, P), (B, H, J, I), (B, H, J, P) -> q, k, v
    """O_jp = sum_i p_ji v_ip.  dO_jp / ds_ji = p_ji (v_ip - O_jp), s_ji = sum_f q_jf k_if

    O_jp depends on q_j, and of the keys that query j can look at on k_i and v_ip: F + n (F + 1)
    inputs, n the keys with p_ji > 0.
    """
    xp = namespace(q, r)
    found = [xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)]
    slope = slope + xp.zeros_like(p)
    for at in np.ndindex(*(int(n) for n in p.shape[:3])):
        head = at[:2]
        if not bool(xp.any(r[at] != 0)):
            continue
        lit = np.flatnonzero(asnumpy(p[at]) > 0)
        keys, vals = k[head][lit, :], v[head][lit, :]
        own = (q[at], keys, vals, p[at][lit], z[at], slope[at][lit], r[at])
        parts = _one_query(*own, taylor, lost)
        found[0][at] = parts[0]
        found[1][head][lit, :] += parts[1]
        found[2][head][lit, :] += parts[2]
    return found


def _one_query(
    q: Array,
    k: Array,
    v: Array,
    p: Array,
    z: Array,
    slope: Array,
    r: Array,
    taylor: bool,
    lost: Absorbed,
) -> tuple[Array, Array, Array]:  # (F,), (n, F), (n, P), (n,), (P,), (n,), (P,)
    xp, (n, f) = namespace(q, r), k.shape
    of_v = swap(p[:, None] * v)  # (P, n): of output p, its own feature of each value
    by_score = swap((p * slope)[:, None] * (v - z))  # (P, n)
    of_k = by_score[:, :, None] * (q * k)  # (P, n, F)
    of_q = xp.sum(of_k, axis=1)  # (P, F): sum_i dO/ds_i k_if q_f
    c = xp.concat([of_q, xp.reshape(of_k, (-1, n * f)), of_v], axis=-1)
    if taylor:
        c = c + ((z - xp.sum(c, axis=-1)) / c.shape[-1])[:, None]
    # values are not summed over outputs: output p reads feature p alone
    sent = messages(c, r, lost)
    whole = xp.sum(sent[:, : f + n * f], axis=0)
    return whole[:f], xp.reshape(whole[f:], (n, f)), swap(sent[:, f + n * f :])


_LAYERS: dict[str, Callable[[Record, Array, bool, Absorbed], list[Array]]] = {
    "linear": _linear,
    "add": _add,
    "multiply": _multiply,
    "rotary": _rotary,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
"""Operation -> what its inputs receive, before it is rescaled."""
