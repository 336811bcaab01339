"""AtMan: suppress what a token is attended to with, and see how much worse the target is guessed

    s'_ji = s_ji (1 - p)                  "paper": the scores of key i, in every block and head
    s'_jk = (s_jk - min_k s_jk) times 1 - p for k = i, and 1 for all other keys          "code"
    score_i = rise of the target's cross-entropy, -log p_target                 (Deb et al. 2023)

The paper scales raw scores, so that a negative one rises, and with it the attention to i: that to
the first of three keys with scores (-3, -1, -2) from 0.09 to 0.60 at p = 0.9. The authors' code
measures scores from the least of their row (among the keys that the query sees: a mask is no
score); then none can rise.

With `kappa` the tokens whose embeddings are like that of i, by a cosine above kappa, are suppressed
with it: key k by 1 - p cos(i, k).

Scores are what softmax reads, its mask apart: scaled by 1/sqrt(d), rotated, of each query head its
own (keys that heads share are suppressed in all of them), T5's relative bias added, soft-capped
where a net does that. Tokens that an encoder reads are suppressed as keys of its own attention and
of the decoder's attention to it; tokens that a decoder has written as keys of its own. Of a picture
the patches are suppressed, and every pixel gets its part of its patch's score, so that a patch, the
sum of its pixels, has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from refl import arguments, patches
from refl.answer import Found
from refl.arrays import Array, asnumpy, like, namespace
from refl.edits import Edits
from refl.errors import ReflError, argument
from refl.explanation import MethodFacts
from refl.methods.base import Attribution
from refl.methods.copies import Copy, found_of, leaves_of, stacked, values
from refl.network import Network
from refl.question import Forward, Question
from refl.seeds import AnySeed, Seed
from refl.trace import Record, Value

FORMS = ("paper", "code")


@dataclass(frozen=True)
class AtMan(Attribution):
    """
    p        how far scores are suppressed: 0 not at all, 1 to zero
    form     "paper": raw scores are scaled; "code": once the least of their row is subtracted
    kappa    the cosine above which tokens are suppressed together; None for each by itself
    score    "cross-entropy": its rise, -log p_target; "explained": how much what is explained falls
    """

    p: float = 0.9
    form: str = "paper"
    kappa: float | None = None
    score: str = "cross-entropy"

    name: ClassVar[str] = "atman"
    summary: ClassVar[str] = "the target's cross-entropy once attention to a token is suppressed"
    source: ClassVar[str] = (
        "Deb et al. 2023, AtMan: Understanding Transformer Predictions Through Memory Efficient "
        "Attention Manipulation, NeurIPS, arXiv 2301.08110"
    )
    passes: ClassVar[str] = "2 forwards, and 1 for every token or patch, batched"
    conserved: ClassVar[str] = "nothing"

    def __post_init__(self) -> None:
        vars(self).update(p=arguments.between("p", self.p, 0, 1))
        if self.kappa is not None:
            vars(self).update(kappa=arguments.between("kappa", self.kappa, -1, 1))
        for name, value, known in (
            ("form", self.form, FORMS),
            ("score", self.score, ("cross-entropy", "explained")),
        ):
            if not isinstance(value, str) or value not in known:
                raise arguments.expected(name, " or ".join(known), value)

    def facts(self) -> MethodFacts:
        return replace(super().facts(), unit="explained" if self.score == "explained" else "nat")

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        if question.recompute:
            raise ReflError(
                f"method {self.name} changes the attention scores of every block, which a run that "
                f"recomputes its blocks does not hold: leave {argument('recompute')} out"
            )
        judge, network = self._judge(question, seed), question.network
        leaves = leaves_of(forward)
        copies = [Copy(forward.readings[0], lambda: leaves)]
        run = question.forward(forward.readings, plain=True, leaves=stacked(copies))
        attended = [Attended.of(r, run) for r in run.trace.records if _attends(r)]
        factors = {site: self._factors(_keys(network, run, site)) for site in leaves}
        batch = Suppressed(attended, factors, self.form)
        fallen = values(question, judge, copies * len(batch.chosen), batch)
        rise = dict(zip(batch.chosen, judge.value(forward.rows[0]) - fallen, strict=True))
        scores = [
            _spread(network, np.asarray([rise[site, i] for i in range(len(factors[site]))]), x)
            for site, x in leaves.items()
        ]
        return found_of(scores, seed.value(forward.rows[0]))

    def _judge(self, question: Question, seed: AnySeed) -> AnySeed:
        """What falls by as much as the cross-entropy rises: log p_target."""
        if self.score == "explained":
            return seed
        if question.at is not None or not isinstance(seed, Seed) or seed.against is not None:
            what = "a neuron" if question.at is not None else "a difference of logits"
            what = what if isinstance(seed, Seed) else "what is no one output"
            raise ReflError(
                f"{what} has no cross-entropy: give method {self.name} the option "
                f"{argument('score')} 'explained'"
            )
        if question.network.probability != "softmax":
            raise ReflError(
                f"the outputs of {question.network.name or 'the model'} are no alternatives and "
                f"have no cross-entropy: give method {self.name} the option {argument('score')} "
                "'explained'"
            )
        return Seed("log-probability", seed.target)

    def _factors(self, embeddings: Any) -> Any:  # (N, D) -> (N, N)
        """Row i: what the scores of every key are multiplied by as token i is suppressed."""
        alike = np.eye(len(embeddings))
        if self.kappa is not None:
            cosines = _cosines(embeddings)
            alike = np.where(cosines > self.kappa, cosines, alike)
            np.fill_diagonal(alike, 1)
        return 1 - self.p * alike


def _cosines(x: Any) -> Any:  # (N, D) -> (N, N)
    """0 for an embedding of zeros, which is like nothing."""
    x = x.astype(np.float64)
    norms = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    units = x / np.where(norms > 0, norms, 1)
    return units @ units.T


# -- attention, site by site -----------------------------------------------------------------------


@dataclass(frozen=True)
class Attended:
    """The scores of one attention."""

    site: str
    """Of what its softmax reads."""
    keys: str
    """The input site whose tokens are its keys."""
    visible: Array
    """bool (1, 1, J, I), which query sees which key; None where nothing is hidden."""

    @classmethod
    def of(cls, record: Record, run: Forward) -> Attended:
        operand = record.operands[0]
        assert isinstance(operand, Value)
        site = operand.site.removesuffix(".edited")
        decoder = run.decoder_embedded and _is_decoders_own(site)
        keys = run.decoder_embedded[0] if decoder else run.embedded
        return cls(site, keys, record.attributes["mask"])

    def suppress(self, factors: Any, form: str, s: Array) -> Array:
        """Scores (B, H, J, I), that of each key times its factor, (B, N) for the last N keys."""
        xp = namespace(s)
        learned = s.shape[-1] - factors.shape[-1]  # keys in front that are no token of the input
        f = np.pad(factors, ((0, 0), (learned, 0)), constant_values=1)[:, None, None, :]
        if form == "code":
            seen = s if self.visible is None else xp.where(self.visible, s, like(np.inf, s))
            least = xp.min(seen, axis=-1, keepdims=True)
            s = s - xp.where(xp.isfinite(least), least, xp.zeros_like(least))
        return s * like(f, s)


@dataclass(frozen=True)
class Suppressed:
    """The edits that suppress one token in each copy of a batch.

    attended    every attention there is
    factors     input site -> (N, N), row i for token i
    """

    attended: Sequence[Attended]
    factors: dict[str, Any]
    form: str

    @cached_property
    def chosen(self) -> list[tuple[str, int]]:
        """Of every copy the input site and the token that is suppressed there."""
        return [(site, i) for site, rows in self.factors.items() for i in range(len(rows))]

    def __call__(self, numbers: Sequence[int]) -> Edits:
        chosen = [self.chosen[n] for n in numbers]
        rows = {site: self._rows(site, chosen) for site in self.factors}
        return {a.site: partial(a.suppress, rows[a.keys], self.form) for a in self.attended}

    def _rows(self, keys: str, chosen: Sequence[tuple[str, int]]) -> Any:  # -> (B, N)
        """Keys of another site than the chosen one are left as they are."""
        rows = self.factors[keys]
        return np.stack([rows[i] if site == keys else np.ones(len(rows)) for site, i in chosen])


def _attends(record: Record) -> bool:
    return record.role == "attention.probabilities"


def _is_decoders_own(site: str) -> bool:
    return site.startswith("decoder.") and ".SelfAttention." in site


def _keys(network: Network, run: Forward, site: str) -> Any:  # -> NumPy (N, D)
    """The embeddings of what can be suppressed: tokens, or patches."""
    if not network.takes_images:
        return run.leaf(site)[0]
    return next(
        asnumpy(r.output.array)[0] for r in run.trace.records if r.role == "patch_embedding"
    )


def _spread(network: Network, r: Any, x: Any) -> Any:  # (N,) -> (T,); (H, W)
    if network.takes_images:
        r = patches.spread(r, x.shape[1:], network.config.patch)
    return r.astype(x.dtype)
