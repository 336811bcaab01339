"""Whole models under the conformance test: an adapter's `model(folder)` on the small models of
every architecture.

    model(folder) -> explain;   explain(ids, targets, method, **more) -> [{site: relevance, ...,
                                "logit": number}, ...]

one dictionary for each target, all from one forward. folder is a Hugging Face checkpoint, float32
weights; ids a list of token ids (for a vision model its pixels, (C, H, W); for CLIP both, (ids,
pixels); for Whisper its log-mel features, (mel, frames)). `more` is position=N
where the output at another position than the last is explained, and decoder_ids=[...] for an
encoder-decoder. Sites are named by module path as in refl (`model.layers.0.mlp`); whichever are
given are compared. Raising NotImplementedError for an architecture or a method says that it is not
covered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.model import load
from refl.rules.published import METHODS
from refl.verification.compare.diagnosis import Diagnosis, diagnose_model
from refl.verification.compare.structure import Structure, structures
from refl.verification.conformance.adapter import Adapter, NotCovered
from refl.verification.conformance.deviation import refuse_blind_comparison
from refl.verification.conformance.guarded import NoResult, Raised, WrongAnswer, guarded
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PARTLY,
    PASSED,
    ModelResult,
)
from refl.verification.vectors import model_vectors
from refl.verification.vectors.catalogue import CATALOGUE
from refl.verification.vectors.model_vectors import ModelCase, SiteDeviation

MOST_REASONS = 2

IN_FLOAT32 = 1e-3
"""How near to an alternative, run in float64, answers in float32 have to come, of the largest at a
site: what rounding may do at most in a model of this size."""

ANOTHER_FORWARD = (
    "another forward pass: until the logit agrees relevance cannot (positions, a norm's scale, "
    "a mask, the layout of weights?)"
)


def run_models(
    adapter: Adapter, progress: Callable[[str, int, int], object]
) -> Iterator[ModelResult]:
    """Every input of every architecture, by every method."""
    found = model_vectors.architectures()
    for k, architecture in enumerate(found):
        progress(f"model {architecture}", k, len(found))
        yield from run_architecture(adapter, model_vectors.load(architecture))


def run_architecture(adapter: Adapter, cases: list[ModelCase]) -> Iterator[ModelResult]:
    """All cases of one architecture, which share a folder."""
    try:
        with guarded():
            explain = adapter.function("model")(str(cases[0].folder))
    except NotCovered as reason:
        yield from (ModelResult(case.id, NOT_COVERED, said=str(reason)) for case in cases)
    except Raised as reason:
        yield from (ModelResult(case.id, FAILED, said=str(reason)) for case in cases)
    else:
        yield from (_run_case(adapter, explain, case) for case in cases)


def _run_case(adapter: Adapter, explain: Callable[..., Any], case: ModelCase) -> ModelResult:
    try:
        (arrays,) = _answers(adapter, explain, case, 1)
        refuse_blind_comparison()
        return _compared(adapter, case, arrays) or _again(adapter, explain, case, arrays)
    except NotCovered as reason:
        return ModelResult(case.id, NOT_COVERED, said=str(reason))
    except NoResult:
        raise
    except (Raised, WrongAnswer, ReflError) as reason:
        return ModelResult(case.id, FAILED, said=str(reason))


def _answers(
    adapter: Adapter, explain: Callable[..., Any], case: ModelCase, count: int
) -> list[dict[str, Any]]:
    """Arrays by site, for the case's target so many times from one forward."""
    with guarded():
        targets = [case.target] * count
        found = explain(_copied(case.item), targets, case.method, **_more(explain, case))
        answers = list(found) if isinstance(found, (list, tuple)) else [found]
        if len(answers) != count or not all(isinstance(a, Mapping) for a in answers):
            raise WrongAnswer(
                f"{len(answers)}, expected {count}: a list with a dictionary {{site: relevance}} "
                f"for each target (a {type(found).__name__} came back)"
            )
        return [_arrays(adapter, got) for got in answers]


def _copied(item: Any) -> Any:
    """An adapter may write into what it is given."""
    if isinstance(item, tuple):
        return tuple(map(_copied, item))
    return list(item) if isinstance(item, list) else item.copy()


def _arrays(adapter: Adapter, got: Mapping[str, Any]) -> dict[str, Any]:
    found = {str(site): adapter.to_numpy(a, str(site)) for site, a in got.items()}
    return {site: a for site, a in found.items() if a is not None}


def _parting(case: ModelCase, arrays: dict[str, Any]) -> tuple[SiteDeviation, ...]:
    return tuple(model_vectors.check(case, arrays, "float64" if _wide(arrays) else "float32"))


def _compared(adapter: Adapter, case: ModelCase, arrays: dict[str, Any]) -> ModelResult | None:
    """None where all is right."""
    wrong = _parting(case, arrays)
    if not wrong:
        return None
    if wrong[0].site == "logit":
        return ModelResult(case.id, FAILED, len(arrays), wrong, reasons=(ANOTHER_FORWARD,))
    try:
        found = _diagnosed(case, {site: a for site, a in arrays.items() if site != "logit"})
    except ReflError as reason:
        return ModelResult(case.id, FAILED, len(arrays), wrong, reasons=(str(reason),))
    mistakes = tuple(dict.fromkeys(id for d in found for id in d.alternative.mistakes))
    status = CONVENTION if any(id in adapter.conventions for id in mistakes) else FAILED
    reasons = tuple(d.alternative.says for d in found)
    if not found:
        changed = _structure(case, arrays, wrong[0])
        mistakes = tuple(dict.fromkeys(s.mistake for s in changed))
        reasons = tuple(f"at {wrong[0].site}, what is right {s.says}" for s in changed)
    return ModelResult(case.id, status, len(arrays), wrong, mistakes, reasons)


def _structure(case: ModelCase, arrays: dict[str, Any], first: SiteDeviation) -> list[Structure]:
    """What the relevance at the first site that parts is of the right one."""
    pair = model_vectors.laid_beside(case, arrays, first.site)
    if pair is None or first.why:
        return []
    largest = float(np.abs(pair[0]).max(initial=0.0)) or 1.0
    return structures(*pair, min(first.allowed / largest, 1e-3))[:MOST_REASONS]


def _diagnosed(case: ModelCase, theirs: dict[str, Any]) -> list[Diagnosis]:
    """Which alternatives of the method, run by refl on the same model, give these numbers?"""
    found = diagnose_model(
        load(case.folder, dtype="float64"),
        case.item,
        case.target,
        METHODS[case.method],
        theirs,
        position=case.position,
        decoder=case.decoder_ids,
        tolerance=None if _wide(theirs) else IN_FLOAT32,
    )
    return [d for d in found if d.equal][:MOST_REASONS]


def _again(
    adapter: Adapter, explain: Callable[..., Any], case: ModelCase, arrays: dict[str, Any]
) -> ModelResult:
    """The first target was right: now two from one forward."""
    compared = len(arrays)
    try:
        answers = _answers(adapter, explain, case, 2)
    except NotCovered as reason:
        said = f"right for one target; two from one forward are not covered: {reason}"
        return ModelResult(case.id, PARTLY, compared, said=said)
    except WrongAnswer as reason:
        said = f"two targets from one forward: {reason}"
        return ModelResult(case.id, FAILED, compared, said=said)
    except Raised as reason:
        one = CATALOGUE["one-target"]
        return ModelResult(case.id, FAILED, compared, mistakes=(one.id,), said=f"{one} It {reason}")
    for got in answers:
        if wrong := _parting(case, got):
            said = f"right for one target; of two from one forward, relevance parts at {wrong[0]}"
            return ModelResult(case.id, FAILED, compared, wrong, said=said)
    return _agreeing(case, arrays)


def _agreeing(case: ModelCase, arrays: dict[str, Any]) -> ModelResult:
    """A pass, where relevance is followed as far as the input."""
    if {case.aliases.get(site, site) for site in arrays} & set(case.input_sites):
        return ModelResult(case.id, PASSED, len(arrays))
    said = (
        f"{len(arrays)} sites agree, none of which is the input: relevance of "
        f"{case.input_sites[-1]} was not given"
    )
    return ModelResult(case.id, PARTLY, len(arrays), said=said)


def _more(explain: Callable[..., Any], case: ModelCase) -> dict[str, Any]:
    wanted = {"position": case.position, "decoder_ids": case.decoder_ids}
    needed = {name: value for name, value in wanted.items() if value is not None}
    parameters = inspect.signature(explain).parameters
    for name in needed:
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise NotCovered(f"explain takes no {name}")
    return needed


def _wide(arrays: dict[str, Any]) -> bool:
    """Whether any number is finer than float32: to_numpy has widened all of them."""
    return any(
        (a.astype("float32") != a).any() for a in arrays.values() if a is not None and a.ndim
    )
