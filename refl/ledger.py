"""The conservation ledger of one sweep: what each site received, passed on and absorbed, and the
conservation error that is left.

    received  = sum of what was passed on + sum of what was absorbed + conservation error
                                                                              at every operation
    explained = tokens + everything absorbed + conservation error             for the whole sweep

Every number is a sum of relevance in the unit of the explained output (a logit, say): one per
example of the batch, or a float in the ledger of one example. The conservation error is rounding
and nothing else: at most 8 u times the rounding scale, which a sweep with `audit` enters too (u is
the unit roundoff).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refl.arguments import received, whole
from refl.errors import ReflError, shown

DESTINATIONS = ("tokens", "pixels")
"""The entries under which relevance arrives where it was going: at the input. Every other entry is
absorbed on the way.
"""

CAUSES = {
    "baseline": "the output of the baseline, which no token is responsible for",
    "quadrature": "what the sum over nodes misses of the integral along the path",
    "initial_residual": "the embedding at the explained token, which nothing was mixed into",
    "one_sign": "halves for contributions of a sign that none has",
    "rescaling": "what the sum of |R| is scaled down by; less than 0 where it is scaled up",
    "mlp": "outputs of MLPs, which are traced to no token",
}
"""What methods that are no tables of rules absorb, in words; for what rules absorb see
refl.rules.operations.
"""

ALLOWED = 8
"""Roundings, in units of u times the rounding scale, that a conservation error may be made of."""

Sums = Any  # numpy.ndarray of shape (B,), float64; a float in the ledger of one example


@dataclass(frozen=True)
class Entry:
    """What became of the relevance at one operation, (B,) float64 each; floats for one example."""

    site: str
    operation: str
    rule: str
    received: Sums
    passed: dict[str, Sums]
    """Site of an input -> what was passed on to it."""
    absorbed: dict[str, Sums]
    """Cause -> what was absorbed."""
    rounding_scale: Sums | None = None
    """Sum of |terms| that the rule added up; only where the sweep was asked to audit."""

    @property
    def conservation_error(self) -> Sums:
        return self.received - sum(self.passed.values()) - sum(self.absorbed.values())

    def __add__(self, other: Entry) -> Entry:
        """Two parts of one operation."""
        scales = self.rounding_scale, other.rounding_scale
        return replace(
            self,
            received=self.received + other.received,
            passed=_added(self.passed, other.passed),
            absorbed=_added(self.absorbed, other.absorbed),
            rounding_scale=None if scales[0] is None else scales[0] + scales[1],
        )

    def example(self, b: int) -> Entry:
        return self.each(lambda sums: float(sums[b]))

    def each(self, change: Callable[[Any], Sums]) -> Entry:
        """The same with every sum changed."""
        scale = self.rounding_scale
        return Entry(
            self.site,
            self.operation,
            self.rule,
            change(self.received),
            {site: change(sums) for site, sums in self.passed.items()},
            {cause: change(sums) for cause, sums in self.absorbed.items()},
            None if scale is None else change(scale),
        )


def _added(a: dict[str, Sums], b: dict[str, Sums]) -> dict[str, Sums]:
    return a | {key: a[key] + sums if key in a else sums for key, sums in b.items()}


@dataclass(repr=False)
class Ledger:
    """The entries of a sweep in the order it made them, from the output down."""

    explained: Sums
    roundoff: float
    """u, the unit roundoff of the dtype the sweep ran in."""
    entries: list[Entry] = field(default_factory=list)

    def __repr__(self) -> str:
        """One line."""
        amounts = (total(s) for s in (self.explained, self.tokens, self.conservation_error))
        of = "" if self.examples == 1 else f" of {self.examples} examples"
        explained, tokens, error = (f"{amount:.6g}" for amount in amounts)
        return (
            f"<Ledger{of}: {len(self.entries)} sites, explained {explained}, {tokens} on "
            f"{self.destination}, conservation error {error}>"
        )

    @property
    def examples(self) -> int:
        """How many examples it is of."""
        return 1 if isinstance(self.explained, float) else len(self.explained)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __getitem__(self, site: str) -> Entry:
        for entry in self.entries if isinstance(site, str) else ():
            if entry.site == site:
                return entry
        raise UnknownSite(f"the ledger has no entry for {_named(site)}")

    @property
    def rounding_bound(self) -> Sums | None:
        """What the whole conservation error is at most, (B,); None where nothing was audited."""
        scales: list[Sums] = [entry.rounding_scale for entry in self.entries]
        audited = bool(scales) and all(scale is not None for scale in scales)
        return ALLOWED * self.roundoff * sum(scales) if audited else None

    @property
    def absorbed(self) -> dict[str, Sums]:
        """Cause -> relevance absorbed over all sites, (B,); causes in order of size."""
        causes = self._by_cause()
        causes = {
            cause: amount
            for cause, amount in causes.items()
            if cause not in DESTINATIONS and np.any(amount != 0)
        }
        return dict(sorted(causes.items(), key=lambda item: -float(np.max(np.abs(item[1])))))

    @property
    def tokens(self) -> Sums:
        """What reached the input, (B,): token embeddings, pixels."""
        nothing = 0.0 if isinstance(self.explained, float) else np.zeros_like(self.explained)
        return sum(self.destinations.values(), nothing)

    @property
    def destinations(self) -> dict[str, Sums]:
        """The same apart: what the input is made of -> what reached it, (B,). Tokens or pixels; of
        Whisper both, for a decoder writes about what is held as a picture.
        """
        causes = self._by_cause()
        return {where: causes[where] for where in DESTINATIONS if where in causes}

    @property
    def destination(self) -> str:
        """What the input is made of, in words."""
        return " and ".join(self.destinations) or DESTINATIONS[0]

    @property
    def conservation_error(self) -> Sums:
        """What the whole account misses: rounding, and nothing else."""
        return self.explained - self.tokens - sum(self.absorbed.values())

    @property
    def experts(self) -> dict[str, Sums]:
        """Module path of each expert that ran -> relevance of its term, output times gate weight,
        in the sum over experts, (B,).

        What each passes on inside is recorded at its own sites; under the uniform rule half of it
        goes to the router.
        """
        terms = (
            term
            for entry in self.entries
            if entry.operation == "combine"
            for term in entry.passed.items()
        )
        return {site.removesuffix(".weighted"): amount for site, amount in terms}

    def _by_cause(self) -> dict[str, Sums]:
        causes: dict[str, Sums] = {}
        for entry in self.entries:
            for cause, amount in entry.absorbed.items():
                causes[cause] = causes.get(cause, 0.0) + amount
        return causes

    def example(self, b: int) -> Ledger:
        """The conservation ledger of one example of the batch, whose sums are floats. Raises
        ReflError for an example that there is none of.
        """
        if not 0 <= whole("example", b) < self.examples:
            raise ReflError(f"example {received(b)} is outside the batch of {self.examples}")
        if isinstance(self.explained, float):
            return self
        return replace(
            self,
            explained=float(self.explained[b]),
            entries=[entry.example(b) for entry in self.entries],
        )

    def absorbing(self, site: str, cause: str, amount: Sums) -> Ledger:
        """The same where a site received `amount` more, explained as well, and absorbed it."""

        def with_amount(entry: Entry) -> Entry:
            absorbed = _added(entry.absorbed, {cause: amount})
            return replace(entry, received=entry.received + amount, absorbed=absorbed)

        return replace(
            self,
            explained=self.explained + amount,
            entries=[with_amount(e) if e.site == site else e for e in self.entries],
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; for a ledger of one example, floats in place of lists."""
        plain = _plain(np.size(self.explained) == 1)
        return {
            "explained": plain(self.explained),
            "roundoff": self.roundoff,
            "tokens": plain(self.tokens),
            "absorbed": {cause: plain(amount) for cause, amount in self.absorbed.items()},
            "conservation_error": plain(self.conservation_error),
            "sites": [
                {
                    "site": e.site,
                    "operation": e.operation,
                    "rule": e.rule,
                    "received": plain(e.received),
                    "passed": {name: plain(s) for name, s in e.passed.items()},
                    "absorbed": {name: plain(s) for name, s in e.absorbed.items()},
                    "conservation_error": plain(e.conservation_error),
                }
                | ({} if e.rounding_scale is None else {"rounding_scale": plain(e.rounding_scale)})
                for e in self.entries
            ],
        }

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Ledger:
        """The conservation ledger of one example from what `as_dict` made of them."""
        entries = [
            Entry(
                e["site"],
                e["operation"],
                e["rule"],
                float(e["received"]),
                _floats(e["passed"]),
                _floats(e["absorbed"]),
                None if e.get("rounding_scale") is None else float(e["rounding_scale"]),
            )
            for e in said["sites"]
        ]
        return cls(float(said["explained"]), said["roundoff"], entries)


def total(sums: Sums) -> float:
    """Over the examples of a batch."""
    return float(np.sum(sums))


class UnknownSite(ReflError, KeyError):
    """A site that there is none of; a KeyError too, as for any mapping."""

    __str__ = Exception.__str__


def _named(site: Any) -> str:
    return shown(repr(site)) if isinstance(site, str) else f"a {type(site).__name__}"


def _floats(plain: dict[str, float]) -> dict[str, Sums]:
    return {name: float(value) for name, value in plain.items()}


def _plain(single: bool) -> Any:
    return lambda s: float(np.sum(s)) if single else [float(v) for v in s]
