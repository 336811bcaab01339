"""The conservation ledger of one sweep: what each site received, passed on and absorbed, and the
conservation error that is left.

    received = sum of what was passed on + sum of what was absorbed + conservation error           at every operation
    explained = tokens + everything absorbed + conservation error                                  for the whole account

Every number is a sum of relevance in the unit of the explained output (a logit, say), one per
example of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refl.arrays import asnumpy

DESTINATIONS = ("tokens", "pixels")
"""The entries under which relevance arrives where it was going: at the input. Every other entry is
absorbed on the way.
"""

Sums = Any  # numpy.ndarray of shape (B,), float64


@dataclass(frozen=True)
class Entry:
    """One operation's ledger, (B,) float64 each."""

    site: str
    operation: str
    rule: str
    received: Sums
    passed: dict[str, Sums]
    absorbed: dict[str, Sums]
    rounding_scale: Sums | None = None
    """Sum of |terms| that the rule added up, the scale of its rounding; only where the sweep was
    asked to audit.
    """

    @property
    def conservation_error(self) -> Sums:
        return self.received - sum(self.passed.values()) - sum(self.absorbed.values())

    def example(self, b: int) -> Entry:
        def one(sums: dict[str, Sums]) -> dict[str, Sums]:
            return {name: s[b : b + 1] for name, s in sums.items()}

        rounding_scale = None if self.rounding_scale is None else self.rounding_scale[b : b + 1]
        return replace(
            self,
            received=self.received[b : b + 1],
            passed=one(self.passed),
            absorbed=one(self.absorbed),
            rounding_scale=rounding_scale,
        )


@dataclass
class Ledger:
    """The entries of a sweep in the order it made them, from the output down."""

    explained: Sums
    roundoff: float
    """u, the unit roundoff of the dtype the sweep ran in."""
    entries: list[Entry] = field(default_factory=list)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __getitem__(self, site: str) -> Entry:
        for entry in self.entries:
            if entry.site == site:
                return entry
        raise KeyError(site)

    def book(
        self,
        site: str,
        operation: str,
        rule: str,
        received: Any,
        passed: dict[str, Any],
        absorbed: dict[str, Any],
        rounding_scale: Any,
    ) -> None:
        """Enter one operation; sums may still lie on a device."""
        self.entries.append(
            Entry(site, operation, rule, received, passed, absorbed, rounding_scale)
        )

    def close(self) -> Ledger:
        """Bring every sum to the host, once, after the sweep: reading one by one would stall a
        GPU.
        """
        self.explained = asnumpy(self.explained)
        self.entries = [_on_host(entry) for entry in self.entries]
        return self

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
        causes = self._by_cause()
        return sum(
            (causes[where] for where in DESTINATIONS if where in causes),
            np.zeros_like(self.explained),
        )

    @property
    def destination(self) -> str:
        """What the input is made of: tokens or pixels."""
        causes = self._by_cause()
        return next((where for where in DESTINATIONS if where in causes), DESTINATIONS[0])

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
        """The conservation ledger of one example of the batch."""
        return replace(
            self,
            explained=self.explained[b : b + 1],
            entries=[entry.example(b) for entry in self.entries],
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; for a ledger of one example, floats in place of lists."""
        plain = _plain(len(self.explained) == 1)
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
                np.asarray([e["received"]]),
                _sums(e["passed"]),
                _sums(e["absorbed"]),
            )
            for e in said["sites"]
        ]
        return cls(np.asarray([said["explained"]]), said["roundoff"], entries)


def _sums(plain: dict[str, float]) -> dict[str, Sums]:
    return {name: np.asarray([value]) for name, value in plain.items()}


def _on_host(entry: Entry) -> Entry:
    return replace(
        entry,
        received=asnumpy(entry.received),
        passed={name: asnumpy(s) for name, s in entry.passed.items()},
        absorbed={name: asnumpy(s) for name, s in entry.absorbed.items()},
        rounding_scale=None if entry.rounding_scale is None else asnumpy(entry.rounding_scale),
    )


def _plain(single: bool) -> Any:
    return lambda s: float(s[0]) if single else [float(v) for v in s]
