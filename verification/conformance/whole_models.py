"""Whole models under the conformance test: an adapter's `model(folder)` on the small models of
every architecture.

    model(folder) -> explain;   explain(ids, targets, method, **more) -> [{site: relevance, ...,
                                "logit": number}, ...]

one dictionary for each target, all from one forward. folder is a Hugging Face checkpoint, float32
weights; ids a list of token ids (for a vision model its pixels, (C, H, W)). `more` is position=N
where the output at another position than the last is explained, and decoder_ids=[...] for an
encoder-decoder. Sites are named by module path as in refl (`model.layers.0.mlp`); whichever are
given are compared. Raising NotImplementedError for an architecture or a method says that it is not
covered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from refl.errors import ReflError
from refl.show.lines import Line, paragraph
from refl.show.text import printable
from refl.verification.vectors import model_vectors
from refl.verification.conformance.runner import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PASSED,
    Adapter,
    NotCovered,
)
from refl.verification.vectors.model_vectors import ModelCase, Parting
from refl.verification.compare.diagnosis import diagnose_model

MOST_REASONS = 2

ANOTHER_FORWARD = (
    "another forward pass: until the logit agrees relevance cannot (positions, a norm's scale, "
    "a mask, the layout of weights?)"
)

SAID_AS = {
    "eps-unsigned": "stabilizer: plain",
    "eps-two-forms": "matmul: every product divides by",
    "layer-norm-reading": "layer norm: identity for the whole layer",
    "logit-squared": "seed: multiplied by the logit",
    "ratio-eps": "activation: the factor f(x)/(x + ",
}
"""Conventions that show in whole models -> how the alternative that explains them begins
(suspects.py).
"""


@dataclass(frozen=True)
class ModelReport:
    """What came of one input of one model under one method."""

    name: str
    status: str
    compared: int = 0
    partings: tuple[Parting, ...] = ()
    """In the order of the sweep: the first is where relevance parts first."""
    reasons: tuple[str, ...] = ()
    """Options and known mistakes that give these numbers."""
    said: str = ""
    rule: str = "model"

    @property
    def words(self) -> str:
        if self.said or not self.partings:
            return self.said or (f"{self.compared} sites agree" if self.compared else "")
        more = (
            f"; {len(self.partings) - 1} more of {self.compared} sites part"
            if len(self.partings) > 1
            else f"; no other of {self.compared} sites"
        )
        reasons = "".join(f"; looks like {reason}" for reason in self.reasons)
        return f"parts first at {self.partings[0]}{more}{reasons}"

    def lines(self, width: int) -> list[Line]:
        style = {PASSED: "green", FAILED: "bold red", CONVENTION: "yellow"}.get(self.status, "dim")
        return [
            [(f"model {self.name}: {self.status}", style)],
            *paragraph(printable(self.words), width),
        ]

    def as_dict(self) -> dict[str, Any]:
        parted = [
            {
                "site": p.site,
                "deviation": p.deviation,
                "allowed": p.allowed,
                "got": p.got,
                "expected": p.expected,
            }
            for p in self.partings
        ]
        return {
            "case": self.name,
            "status": self.status,
            "compared": self.compared,
            "partings": parted,
            "reasons": list(self.reasons),
            "words": self.words,
        }


def judge(adapter: Adapter, progress: Callable[[str, int, int], object]) -> Iterator[ModelReport]:
    """Every input of every architecture, by every method."""
    found = model_vectors.architectures()
    for k, architecture in enumerate(found):
        progress(f"model {architecture}", k, len(found))
        yield from _judged(adapter, model_vectors.load(architecture))


def _judged(adapter: Adapter, cases: list[ModelCase]) -> Iterator[ModelReport]:
    """All cases of one architecture, which share a folder."""
    try:
        explain = adapter.function("model")(str(cases[0].folder))
    except (NotCovered, NotImplementedError) as reason:
        yield from (ModelReport(case.id, NOT_COVERED, said=str(reason)) for case in cases)
    except Exception as reason:  # noqa: BLE001 (whatever somebody's function raises is its answer)
        yield from (
            ModelReport(case.id, FAILED, said=f"raised {type(reason).__name__}: {reason}")
            for case in cases
        )
    else:
        yield from (_one(adapter, explain, case) for case in cases)


def _one(adapter: Adapter, explain: Callable[..., Any], case: ModelCase) -> ModelReport:
    try:
        more = _more(explain, case)
        (got,) = explain(case.item, [case.target], case.method, **more)
        arrays = {site: adapter.to_numpy(a) for site, a in got.items()}
        partings = model_vectors.check(case, arrays, "float64" if _wide(arrays) else "float32")
        if not partings:
            return _again(explain, case, more, len(arrays))
        if partings[0].site == "logit":
            return ModelReport(case.id, FAILED, len(arrays), tuple(partings), (ANOTHER_FORWARD,))
        reasons = _reasons(case, {site: a for site, a in arrays.items() if site != "logit"})
        return ModelReport(
            case.id, _status(adapter, reasons), len(arrays), tuple(partings), reasons
        )
    except (NotCovered, NotImplementedError) as reason:
        return ModelReport(case.id, NOT_COVERED, said=str(reason))
    except Exception as reason:  # noqa: BLE001
        return ModelReport(case.id, FAILED, said=f"raised {type(reason).__name__}: {reason}")


def _status(adapter: Adapter, reasons: tuple[str, ...]) -> str:
    """A deviation that a documented convention explains is no failure."""
    documented = [SAID_AS[name] for name in adapter.conventions if name in SAID_AS]
    return (
        CONVENTION
        if any(reason.startswith(words) for reason in reasons for words in documented)
        else FAILED
    )


def _again(
    explain: Callable[..., Any], case: ModelCase, more: dict[str, Any], compared: int
) -> ModelReport:
    """The first target was right: now two from one forward."""
    try:
        explain(case.item, [case.target, case.target], case.method, **more)
    except NotImplementedError:
        pass
    except Exception as reason:  # noqa: BLE001
        said = (
            f"one-target: a second target from one forward raised {type(reason).__name__}: {reason}"
        )
        return ModelReport(case.id, FAILED, compared, reasons=("one-target",), said=said)
    return ModelReport(case.id, PASSED, compared)


def _more(explain: Callable[..., Any], case: ModelCase) -> dict[str, Any]:
    wanted = {"position": case.position, "decoder_ids": case.decoder_ids}
    needed = {name: value for name, value in wanted.items() if value is not None}
    taken = inspect.signature(explain).parameters
    for name in needed:
        if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise NotCovered(f"explain takes no {name}")
    return needed


def _wide(arrays: dict[str, Any]) -> bool:
    """Whether any number is finer than float32: to_numpy has widened all of them."""
    return any(
        (a.astype("float32") != a).any() for a in arrays.values() if a is not None and a.ndim
    )


def _reasons(case: ModelCase, theirs: dict[str, Any]) -> tuple[str, ...]:
    """refl under every alternative of the method, on the same model."""
    from refl.model import load
    from refl.rules.composites import METHODS

    try:
        found = diagnose_model(
            load(case.folder, dtype="float64"),
            case.item,
            case.target,
            METHODS[case.method],
            theirs,
            position=case.position,
            decoder=case.decoder_ids,
        )
    except ReflError as reason:
        return (str(reason),)
    return tuple(s.words for s in found if s.equal)[:MOST_REASONS]
