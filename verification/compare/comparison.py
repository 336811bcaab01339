"""How two oracle files compare: the data, and what there is to say of it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from refl.show.text import printable
from refl.verification.compare.diagnosis import Diagnosis
from refl.verification.compare.rounding import SiteError
from refl.verification.compare.structure import Structure

MOST_MISMATCHES = 6


@dataclass(frozen=True)
class Comparison:
    """How two oracle files compare."""

    a: str
    b: str
    quantity: list[str]
    """In what they are not about the same thing."""
    forward: list[SiteError]
    """Activations, from the input up."""
    errors: list[SiteError]
    """Relevance, from the output down."""
    only: tuple[list[str], list[str]]
    """Sites that only A, only B has."""
    shape_mismatches: list[str]
    """Sites whose shapes do not fit."""
    order: str
    """How the order of sites was found."""
    rules: list[str]
    """The operations that hand relevance to the first site that parts, and agree themselves."""
    above: int
    """Sites that agree before the first that parts."""
    alone: bool
    """Whether relevance parts at one site alone, and agrees again below."""
    undecided: list[SiteError]
    """Where the two differ by no more than rounding allows, and rounding allows so much that it
    says nothing."""
    notes: list[str]
    diagnoses: list[Diagnosis]
    structure: list[Structure]
    """What B's relevance is of A's at the first site that parts, where no diagnosis says more."""
    operations: dict[str, str]
    """Site -> the operation it is the output of, where a file says."""
    contradictions: list[str] = field(default_factory=list)
    """What a file says of its tokens that its own sites do not bear out."""

    @property
    def equal(self) -> bool:
        """Not where that cannot be told, either."""
        return not (self.parts or self.undecided)

    @property
    def parts(self) -> bool:
        return bool(
            self.quantity
            or self.shape_mismatches
            or self.first
            or self.first_forward
            or self.contradictions
        )

    @property
    def first(self) -> SiteError | None:
        """The first site from the output down where relevance parts."""
        return next((e for e in self.errors if e.parts), None)

    @property
    def first_forward(self) -> SiteError | None:
        """The first site from the input up where activations part."""
        return next((e for e in self.forward if e.parts), None)

    def as_dict(self) -> dict[str, Any]:
        first, forward = self.first, self.first_forward
        return {
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "quantity": self.quantity,
            "first": first.site if first else None,
            "first_activation": forward.site if forward else None,
            "rules": self.rules,
            "alone": self.alone,
            "undecided": [e.site for e in self.undecided],
            "order": self.order,
            "notes": self.notes,
            "diagnoses": [d.as_dict() for d in self.diagnoses],
            "structure": [{"mistake": s.mistake, "says": s.says} for s in self.structure],
            "only_a": self.only[0],
            "only_b": self.only[1],
            "shape_mismatches": self.shape_mismatches,
            "contradictions": self.contradictions,
            "sites": [_plain(e) for e in self.errors],
            "activations": [_plain(e) for e in self.forward],
        }

    def __str__(self) -> str:
        return "\n".join(map(printable, (headline(self), *reasons(self))))


def _plain(e: SiteError) -> dict[str, Any]:
    return vars(e) | {
        "parts": e.parts,
        "sums": list(e.sums),
        "index": list(e.index),
        "values": list(e.values),
    }


# -- in words --------------------------------------------------------------------------------------


def headline(c: Comparison) -> str:
    """One sentence."""
    if c.quantity:
        return f"The two are about different things: {'; '.join(c.quantity)}."
    if c.first_forward:
        e = c.first_forward
        return (
            f"The forward passes differ, first at {e.site}: by {e.relative:.1e} of the largest "
            f"activation there, where rounding allows {e.level:.1e}. Relevance can only agree "
            "where activations do."
        )
    if c.first:
        return f"Relevance parts first at {c.first.site}, {_deviation(c.first)}; {_above(c)}."
    if c.contradictions:
        return f"Relevance agrees at {len(c.errors)} sites; but {'; '.join(c.contradictions)}."
    if c.shape_mismatches:
        count = len(c.shape_mismatches)
        return f"Relevance agrees at {len(c.errors)} sites; at {count} the shapes do not fit."
    if c.undecided:
        return f"Cannot tell: {_undecided(c)}."
    worst = max(c.errors, key=lambda e: e.relative)
    if worst.absolute == 0:
        return f"Relevance is the same to the last bit at all {len(c.errors)} shared sites."
    return (
        f"Relevance agrees at all {len(c.errors)} shared sites; the largest deviation is "
        f"{worst.relative:.1e} of the largest at {worst.site}."
    )


def _undecided(c: Comparison) -> str:
    """Of the site with the widest bound."""
    widest = max(c.undecided, key=lambda e: e.level)
    worst = max(c.undecided, key=lambda e: e.relative)
    return (
        f"no site parts beyond rounding, but the bound allows {widest.level:.2g} times the largest "
        f"at {widest.site}, and the two differ by up to {worst.relative:.1e} of the largest (at "
        f"{worst.site}), at {len(c.undecided)} sites by more than plain rounding; use float64, or "
        "say with --tolerance what may pass"
    )


def _deviation(e: SiteError) -> str:
    what = "by" if e.quantity == "relevance" else f"in its {e.quantity} by"
    return f"{what} {e.relative:.1e} of the largest there, where rounding allows {e.level:.1e}"


def _above(c: Comparison) -> str:
    if c.above == 0:
        return "it is the first of all, so the seeds or what is kept differ"
    if blurred := [e for e in c.errors[: c.above] if e in c.undecided]:
        return (
            f"at {len(blurred)} of the {c.above} sites above it the bound is too wide to say "
            "whether they agree"
        )
    return "the site above it agrees" if c.above == 1 else f"the {c.above} sites above it agree"


def reasons(c: Comparison) -> list[str]:
    """What else there is to say, most telling first."""
    said = []
    if c.first and not c.quantity:
        said += _where(c)
    if c.first_forward and sum(e.parts for e in c.forward) == 1:
        said.append("no other activation parts: this array was changed, the forward pass was not.")
    if equal := [d for d in c.diagnoses if d.equal]:
        said.append(
            f"explained by {_sentence(equal[0].says)} With this the two are equal at all "
            f"{equal[0].sites} sites (worst {small(equal[0].error)})."
        )
    if equal[1:]:
        also = "; ".join(d.says.rstrip(".") for d in equal[1:])
        said.append(f"the same numbers come from {also}.")
    for d in (d for d in c.diagnoses if not d.equal):
        said.append(
            f"nearest: {_sentence(d.says)} {d.parting} of {d.sites} sites still part, by up to "
            f"{d.error:.1e}."
        )
    if c.structure:
        what = "; or it is ".join(s.says for s in c.structure)
        said.insert(len(_where(c)), f"there B's relevance is A's {what}")
    said += [f"{note}." for note in c.notes]
    return [text[0].upper() + text[1:] for text in said]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _where(c: Comparison) -> list[str]:
    first = c.first
    if first is None:
        return []
    at = f"element {list(first.index)}: {first.values[0]:.9g} in A, {first.values[1]:.9g} in B"
    if c.alone:
        return [
            f"{at}. No other site parts, and those below it agree: this array was changed, no rule."
        ]
    if not c.rules:
        return [f"{at}."]
    rules = " and ".join(c.rules)
    look = f"it was handed down by {rules}, whose own relevance agrees: look at that rule."
    return [f"{at}.", look]


def how_it_was_done(c: Comparison) -> list[str]:
    a, b = c.only
    parted = sum(e.parts for e in c.errors)
    said = [
        f"{len(c.errors)} sites stand in both files, {parted} of them part",
        f"order: {c.order}",
    ]
    said += [f"only in A: {len(a)} ({_some(a)})"] if a else []
    said += [f"only in B: {len(b)} ({_some(b)})"] if b else []
    return said + [f"shapes do not fit at {m}" for m in c.shape_mismatches[:MOST_MISMATCHES]]


def _some(sites: Sequence[str]) -> str:
    return ", ".join(sites[:3]) + (", ..." if len(sites) > 3 else "")


def small(value: float) -> str:
    return f"{value:.1e}" if value else "0"
