"""Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization (CVPR)

    C_l = mean over heads of (dA_l * R(A_l))^+
    B_l = C_l + I, rows divided by their sum          score_i = (B_L ... B_b)[t, i]

t is the explained position, b `start_block`, dA_l the gradient of what is explained, R(A_l) the
relevance of the attention weights, which starts as that gradient at the logits (1 at the target)
and is handed down by

    linear              z+ without the bias: R_i = sum_j c_ij^+ R_j / sum_k c_kj^+,  c_ij = W_ji x_i
    product of two      R_a = a (s b^T), R_b = (a^T s) b,  s = R / 2z                      (eq. 9)
    sum of two          R_a = f_a a s,  R_b = f_b b s,  s = R / z, with Sa = sum of a s, Sb alike,
                        f_a = |Sa| / (|Sa| + |Sb|) sum(R) / Sa,  f_b alike              (eq. 10)
    softmax, norms, activations, what only moves or scales: unchanged

The sums in f run over the whole example, so a sum of two keeps sum(R), and what it hands down is
not linear in R: it is no rule of a table. Where Sa and Sb have one sign, f is 1 (but for what stood
at zeros of z, which f gives back). A gated product is taken as any product, and
rotation by a position as the linear map it is; neither is in the paper's models.

`normalization` none leaves B_l = C_l + I, as the paper's eqs. 13 and 14 have it and its code for
pictures; its code for texts divides the rows (`rows`, the default), starts at the last block of
twelve (start_block=11), and sets the explained token's own score to 0, which is not done here.
Unlike `rows`, `none` depends on the scale of the logits.

There is no ledger: a score is read off a product of maps (dA R(A))^+, each quadratic in what is
explained and without its negative part, so no sum of scores is a part of what is explained; the
relevance that the rules above hand down is one factor in it.

Nothing of z that is exactly zero is divided by: its relevance ends there (the published code adds
1e-9). Not defined for an encoder-decoder, which the authors' next paper is about
(gradient-rollout). Memory: attention weights, gradients and relevance of every block, H x T x T
each, and all activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from refl import arguments
from refl.arrays import Array, asnumpy, flags, namespace, total
from refl.errors import ReflError, argument
from refl.methods.attention_maps import (
    AttentionMethod,
    BlockAttention,
    Maps,
    below,
    gradients,
    positive_mean,
    read,
    rows,
)
from refl.methods.walk import Received, to_operands, walk
from refl.network import Network
from refl.question import Forward, Question
from refl.rules import linear
from refl.rules.add import fold
from refl.rules.conservation import RuleOutput, stabilized_ratio
from refl.rules.operations import OPERATIONS
from refl.seeds import AnySeed
from refl.trace import Record

NORMALIZATIONS = ("rows", "none")

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "matmul": ("uniform", {"stabilizer": "none"}),
    "multiply": ("uniform", {}),
    "softmax": ("identity", {}),
    "rms_norm": ("identity", {}),
    "layer_norm": ("identity", {}),
    "activation": ("identity", {}),
    "rotary": ("epsilon", {"stabilizer": "none"}),
    "pooling": ("epsilon", {"stabilizer": "none"}),
    "combine": ("epsilon", {"stabilizer": "none"}),
    "renormalize": ("identity", {}),
    "top_k": ("pass_through", {}),
    "gather": ("pass_through", {}),
    "scale": ("pass_through", {}),
    "movement": ("pass_through", {}),
}
"""Operation -> the rule of its own that says what the paper says, or what follows from it."""

LEAVES = ("embedding", "learned", "source")


@dataclass(frozen=True)
class Chefer(AttentionMethod):
    """normalization    rows (rows of C + I divided by their sum), or none
    start_block         number of the first block of the product, from 0
    """

    normalization: str = "rows"
    start_block: int = 0

    name: ClassVar[str] = "chefer-2021"
    summary: ClassVar[str] = (
        "relevance of attention weights times their gradients, multiplied through the blocks"
    )
    source: ClassVar[str] = (
        "Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, CVPR, "
        "arXiv 2012.09838"
    )
    passes: ClassVar[str] = (
        "1 forward, 1 gradient, 1 sweep; H x T x T numbers for each block are held"
    )
    conserved: ClassVar[str] = "scores sum to 1 (rows), learned tokens of a picture among them"

    def __post_init__(self) -> None:
        arguments.one_of("normalization", self.normalization, NORMALIZATIONS)
        if arguments.whole("start_block", self.start_block) < 0:
            raise arguments.expected(
                "start_block", "a whole number of at least 0", self.start_block
            )

    def refuse(self, network: Network) -> None:
        if network.task == "sequence-to-sequence":
            raise ReflError(
                f"method {self.name} is not defined for a decoder that reads an encoder: take "
                "gradient-rollout"
            )

    def maps(
        self, question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
    ) -> Maps:
        if self.start_block >= len(blocks):
            raise ReflError(
                f"{argument('start_block')} is {self.start_block}, and there are {len(blocks)} "
                f"blocks below what is explained: expected at most {len(blocks) - 1}"
            )
        chosen, used = rows(question, forward, seed), blocks[self.start_block :]
        da = gradients(question, forward, seed, used)
        relevance = relevances(question, forward, seed, used)
        return Maps(read(self.rolled_out(da, relevance), chosen))

    def rolled_out(self, gradient: Sequence[Any], relevance: Sequence[Any]) -> Any:
        """B_L ... B_b (T, T), from (H, T, T) of each block."""
        joint = np.eye(gradient[0].shape[-1])
        for g, r in zip(gradient, relevance, strict=True):
            b = positive_mean(g * r) + np.eye(len(joint))
            joint = (
                b / b.sum(axis=1, keepdims=True) if self.normalization == "rows" else b
            ) @ joint
        return joint


def relevances(
    question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
) -> list[Any]:  # -> one (H, T, T) float64 for each block, NumPy
    """R(A_l)."""
    z = forward.explained
    start = question.network.place(seed.derivative(forward.rows[0]).reshape(z.array.shape))
    sites = [block.site for block in blocks]
    with np.errstate(all="ignore"):
        found = walk(below(forward), z, start, step, sites)
    zero = np.zeros_like(blocks[0].weights)
    return [asnumpy(found[s])[0].astype(np.float64) if s in found else zero for s in sites]


def step(record: Record, r: Array) -> Received:
    """What the operands of one record receive."""
    if record.operation in LEAVES:
        return ()
    z, arrays = record.output.array, cast(tuple[Any, ...], record.arrays)
    if record.operation == "add":
        a, b = arrays
        return to_operands(record, rescaled(a, b, z, r))
    if record.operation == "linear":
        return to_operands(record, linear.z_plus(arrays[0], arrays[1], None, z, r))
    rule, options = RULES[record.operation]
    function = OPERATIONS[record.operation].rules[rule].relevance
    assert function is not None
    return to_operands(record, function(*arrays, z, r, **record.attributes | options))


def rescaled(a: Array, b: Array, z: Array, r: Array) -> RuleOutput:  # (B, ...) -> (B, ...) each
    """The sum of two: f_a a s and f_b b s. It balances: sum(R) is kept but where both sums are 0,
    which have no proportion; there it ends, as `stabilizer`.
    """
    s, _ = stabilized_ratio(z, r, 0.0, "none")
    c, d = a * s, b * s
    of_a, of_b, whole = (_whole(x) for x in (c, d, r))
    xp = namespace(c, d)
    both = xp.abs(of_a) + xp.abs(of_b)
    r_a, r_b = (x * _factor(own, both, whole) for x, own in ((c, of_a), (d, of_b)))
    lost = total(whole * flags(both == 0, both))
    return RuleOutput((fold(r_a, a.shape), fold(r_b, b.shape)), {"stabilizer": lost})


def _factor(own: Array, both: Array, whole: Array) -> Array:
    """|S| / (|Sa| + |Sb|) sum(R) / S: what is left of it once |S| / S is a sign."""
    sign = flags(own > 0, own) - flags(own < 0, own)
    return sign * whole / (both + flags(both == 0, both))


def _whole(x: Array) -> Array:  # (B, ...) -> (B, 1, ...)
    xp = namespace(x)
    return xp.reshape(xp.asarray(total(x), dtype=x.dtype), (x.shape[0], *(1,) * (x.ndim - 1)))
