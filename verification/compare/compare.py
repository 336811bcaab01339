"""Two oracle files, or an oracle file and another library's numbers: where do they first part, by
how much, and why?

    1. Are they about the same quantity: input, target, seed?
    2. Forward, from the input up: where do activations part? Then the two ran different nets, and
       relevance cannot agree.
    3. From the output down, as the sweep goes: where does relevance part beyond rounding
       (rounding.py)? The operation that hands relevance to that site is the one whose rule
       differs; where all sites below agree again, no rule does, but that array was changed.
    4. Which option, or which known mistake, makes the two equal (diagnosis.py)? With a model
       that is run; without one, a constant ratio and what the files say of their methods are all
       there is to go by.

The order of sites is the one that a file says (`order`); else that of a file's ledger, which lists
operations from the output down and what each handed on to; else names, later blocks first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.explanation import Explanation
from refl.io.facts import contradictions
from refl.io.precision import held_in
from refl.model import Model, load
from refl.network import WHOLE
from refl.targets import Span, Special, coordinate, cosine, span
from refl.verification.compare.alignment import known_sites
from refl.verification.compare.comparison import Comparison
from refl.verification.compare.diagnosis import Diagnosis, diagnose
from refl.verification.compare.forward import (
    ExplainedOutput,
    RecordedForward,
    least_eps,
    picture_of,
    same_forward,
)
from refl.verification.compare.oracle import Oracle, of, read
from refl.verification.compare.rounding import (
    DIVIDED,
    Divides,
    Site,
    SiteError,
    activation_error,
    relevance_errors,
)
from refl.verification.compare.structure import Structure, structures
from refl.verification.vectors.placing import misfit, place

FEW = 64
"""Fewer numbers than these may fit a narrow format by chance."""


# -- comparing -------------------------------------------------------------------------------------

Side = str | Path | Explanation | Oracle


def compare(
    a: Side, b: Side, *, tolerance: float | None = None, model: Model | str | Path | None = None
) -> Comparison:
    """A is the reference, B what is held against it.

    tolerance    let a deviation of this part of the largest at a site pass, beside rounding
    model        the checkpoint that both were made with, or its folder: then options and known
                 mistakes are tried. The model that ships with refl is tried by itself where a
                 file's fingerprint is its own

    Raises ReflError for a file that is no oracle file, two that share no site, and a model that is
    not the files'.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ReflError(f"tolerance is {tolerance}: expected a number of at least 0")
    left, right = (_side(s) for s in (a, b))
    swept, order = _ordered(left, right, _aligned(left, right))
    pairs, mismatches = _fitting(left, right, swept)
    if not pairs:
        raise ReflError(
            f"{left.name} and {right.name} share no site whose shapes fit: "
            f"{_some(left.relevance)} stand beside {_some(right.relevance)}"
        )
    roundoff = max(held_in([s.relevance for s in side], FEW) for side in _sides(pairs))
    errors = list(relevance_errors(pairs, roundoff, _divides(left, right), tolerance))
    forward = [
        activation_error(name, x.activation, y.activation, roundoff, tolerance)
        for name, x, y in reversed(pairs) if x.activation is not None and y.activation is not None
    ]  # fmt: skip
    quantity = _quantity(left, right)
    first = next((e for e in errors if e.parts), None)
    ledger = max(left.ledger, right.ledger, key=len)
    found: list[Diagnosis] = []
    changed: list[Structure] = []
    notes = _fingerprints(left, right) + _unreadable(("A", left), ("B", right))
    if first and not quantity and not any(e.parts for e in forward):
        notes += _closed_form(left, right, pairs, roundoff, tolerance)
        found, more = _explained(left, right, tolerance, model)
        notes += more
        if not any(d.equal for d in found):
            changed = _structure(pairs, first, roundoff)
    return Comparison(
        left.name,
        right.name,
        quantity,
        forward,
        errors,
        _only(left, right, swept),
        mismatches,
        order,
        _handed_down_by(ledger, first, left, right),
        next((i for i, e in enumerate(errors) if e.parts), len(errors)),
        _alone(errors),
        [e for e in (*forward, *errors) if e.undecided(roundoff, tolerance)],
        notes,
        found,
        changed,
        {e["site"]: f"{e.get('operation')}, rule {e.get('rule')}" for e in ledger},
        [] if first else [*_contradictions("A", left), *_contradictions("B", right)],
    )


def _contradictions(name: str, side: Oracle) -> list[str]:
    """Sites may agree, and the relevance of the tokens, which people read, be another's."""
    said = side.metadata.get("method")
    if not isinstance(said, dict) or said.get("score") != "sum":
        return []
    arrays = {k: a for k, a in side.inputs.items() if a.dtype.kind == "f"}
    found = contradictions(side.ledger, arrays, side.relevance)
    return [f"in {name} {words}" for words in found]


def _side(side: Side) -> Oracle:
    if isinstance(side, Oracle):
        return side
    return of(side) if isinstance(side, Explanation) else read(side)


def _some(sites: Mapping[str, Any]) -> str:
    return ", ".join(list(sites)[:3])


def _divides(a: Oracle, b: Oracle) -> Divides:
    """Where either side divides relevance by an activation, as far as the files say."""
    known = [c for c in (a.composite, b.composite) if c is not None]
    if len(known) == 2 and all(c.formulation == "gradient_x_input" for c in known):
        return Divides(())
    eps = min((least_eps(c) for c in known if c.formulation == "relevance"), default=0.0)
    ledger = max(a.ledger, b.ledger, key=len)
    names = {
        name
        for e in ledger
        if e.get("operation") in DIVIDED
        for side in (a, b)
        for name in side.names(e["site"])
    }
    return Divides(names if ledger else None, eps)


def _aligned(a: Oracle, b: Oracle) -> dict[str, str]:
    """A's site -> B's site of the same value: a name that both know it by."""
    theirs = {name: site for site in b.relevance for name in b.names(site)}
    found: dict[str, str] = {}
    for site in a.relevance:
        met = [theirs[name] for name in (site, *sorted(a.names(site))) if name in theirs]
        if met:
            found[site] = met[0]
    return found


def _ordered(a: Oracle, b: Oracle, aligned: dict[str, str]) -> tuple[dict[str, str], str]:
    """The pairs from the output down, and how that order was found."""
    theirs = {at: site for site, at in aligned.items()}
    for side, known in ((a, {site: site for site in aligned}), (b, theirs)):
        for listed, words in (
            (side.order, "the order of sites that {} gives"),
            (_from_ledger(side), "the order of {}'s ledger"),
        ):
            sites = list(dict.fromkeys(known[s] for s in listed if s in known))
            if len(sites) > len(aligned) / 2:
                rest = sorted((s for s in aligned if s not in set(sites)), key=_later_first)
                return {s: aligned[s] for s in (*sites, *rest)}, words.format(side.name)
    by_name = {s: aligned[s] for s in sorted(aligned, key=_later_first)}
    return by_name, "neither file says in which order sites follow: by name, later blocks first"


def _from_ledger(side: Oracle) -> list[str]:
    """Operations as they were recorded; what was handed relevance and recorded nothing stands
    behind who handed it.
    """
    recorded = {e["site"] for e in side.ledger}
    return [
        name
        for e in side.ledger
        for name in (e["site"], *(p for p in e["passed"] if p not in recorded))
    ]


def _later_first(name: str) -> list[tuple[int, str]]:
    return [(-int(part), "") if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def _fitting(
    a: Oracle, b: Oracle, aligned: dict[str, str]
) -> tuple[list[tuple[str, Site, Site]], list[str]]:
    """Both sides of every site in one shape, and the sites where there is none."""
    pairs, mismatches = [], []
    for site, at in aligned.items():
        pair = _one_shape(a.site(site), b.site(at))
        if pair is None:
            mismatches.append(f"{site}: {_misfit(a.relevance[site], b.relevance[at])}")
        else:
            pairs.append((site, *pair))
    return pairs, mismatches


def _one_shape(x: Site, y: Site) -> tuple[Site, Site] | None:
    """The larger side in the shape of the smaller, every array at the place of its relevance."""
    if x.relevance.shape == y.relevance.shape:
        return x, y
    small, large = (x, y) if x.relevance.size <= y.relevance.size else (y, x)
    at = place(small.relevance, large.relevance)
    if at is None:
        return None
    shape, whole = small.relevance.shape, large.relevance.shape
    part = Site(
        *(
            None if a is None or a.shape != whole else a[at].reshape(shape)
            for a in vars(large).values()
        )
    )
    return (small, part) if small is x else (part, small)


def _sides(pairs: list[tuple[str, Site, Site]]) -> tuple[list[Site], list[Site]]:
    return [a for _, a, _ in pairs], [b for _, _, b in pairs]


def _misfit(x: Any, y: Any) -> str:
    small, large = (x, y) if x.size <= y.size else (y, x)
    rows = "" if "shape" in (why := misfit(small, large)) else f", and {why}"
    return f"{x.shape} beside {y.shape}{rows}"


def _only(a: Oracle, b: Oracle, aligned: dict[str, str]) -> tuple[list[str], list[str]]:
    met = set(aligned.values())
    return [s for s in a.relevance if s not in aligned], [s for s in b.relevance if s not in met]


# -- what they are about ---------------------------------------------------------------------------

_QUANTITY = {
    "input_ids": "input ids",
    "decoder_ids": "decoder ids",
    "target_id": "target",
    "against": "contrast",
    "seed": "seed",
    "span": "answer",
    "mean": "mean of features",
    "vector": "vector",
}


def _quantity(a: Oracle, b: Oracle) -> list[str]:
    """What both say, and say differently."""
    said = [
        f"{words}: {_short(a.metadata[key])} in A, {_short(b.metadata[key])} in B"
        for key, words in _QUANTITY.items()
        if all(key in side.metadata and _readable(key, side) for side in (a, b))
        and a.metadata[key] != b.metadata[key]
    ]
    if a.picture is not None and b.picture is not None and not np.array_equal(a.picture, b.picture):
        said.append("picture: they explain two")
    answers = [len(side.metadata.get("answer") or ()) for side in (a, b)]
    if answers[0] != answers[1]:
        said.append(f"tokens of an answer: {answers[0]} in A, {answers[1]} in B")
    edits = [side.about.get("edits") or "none" for side in (a, b)]
    if edits[0] != edits[1]:
        said.append(f"edits: {_short(edits[0])} in A, {_short(edits[1])} in B")
    return said


def _readable(key: str, side: Oracle) -> bool:
    """Whether an entry is what it is for: what is not says nothing of the quantity."""
    value = side.metadata[key]
    if key == "seed":
        return isinstance(value, str)
    if key == "target_id":
        return type(value) is int
    if key == "against":
        return value is None or type(value) in (int, str)
    if key == "span":
        return _is_span(value)
    if key == "mean":
        return isinstance(value, bool)
    if key == "vector":
        return isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return isinstance(value, list) and all(type(each) is int for each in value)


def _unreadable(*sides: tuple[str, Oracle]) -> list[str]:
    return [
        f"{words} of {name} cannot be read ({_short(side.metadata[key])}), and was not compared"
        for name, side in sides
        for key, words in _QUANTITY.items()
        if key in side.metadata and not _readable(key, side)
    ]


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fingerprints(a: Oracle, b: Oracle) -> list[str]:
    ours, theirs = a.about.get("fingerprint"), b.about.get("fingerprint")
    if ours and theirs and ours != theirs:
        said = f"fingerprint {str(ours)[:12]} in A, {str(theirs)[:12]} in B"
        return [f"the checkpoints are not the same: {said}"]
    return []


# -- whose rule it is ------------------------------------------------------------------------------


def _handed_down_by(
    ledger: list[dict[str, Any]], first: SiteError | None, a: Oracle, b: Oracle
) -> list[str]:
    """The operations that read the first site that parts;
    what they received agrees, for they stand above it.
    """
    if first is None:
        return []
    names = a.names(first.site) | b.names(first.site)
    readers = [e for e in ledger if names & set(e["passed"])]
    return [
        f"{e['site']} ({e.get('operation')}, rule {e.get('rule')} in {'A' if a.ledger else 'B'})"
        for e in readers
    ]


def _alone(errors: list[SiteError]) -> bool:
    """One site parts, and there are sites below it."""
    parted = [i for i, e in enumerate(errors) if e.parts]
    return len(parted) == 1 and parted[0] < len(errors) - 1


# -- why -------------------------------------------------------------------------------------------


def _closed_form(
    a: Oracle,
    b: Oracle,
    pairs: list[tuple[str, Site, Site]],
    roundoff: float,
    tolerance: float | None,
) -> list[str]:
    """What can be seen without a model."""
    return [*_methods(a, b), *_multiple_of(a, pairs, roundoff, tolerance)]


MOST_STRUCTURES = 3


def _structure(
    pairs: list[tuple[str, Site, Site]], first: SiteError, roundoff: float
) -> list[Structure]:
    """What B's relevance is of A's at the first site that parts."""
    a, b = next((x.relevance, y.relevance) for s, x, y in pairs if s == first.site)
    return structures(a, b, min(max(first.level, 256 * roundoff), 1e-3))[:MOST_STRUCTURES]


def _methods(a: Oracle, b: Oracle) -> list[str]:
    """In what the methods differ, as the files say them."""
    if a.composite is None or b.composite is None:
        return []
    ours, theirs = a.composite.as_dict(), b.composite.as_dict()
    if ours["name"] != theirs["name"] or ours["formulation"] != theirs["formulation"]:
        names = [f"{m['name']} ({m['formulation']} form)" for m in (ours, theirs)]
        return [f"the files name two methods: {names[0]} in A, {names[1]} in B"]
    return [
        f"the files give their methods other options: {d}"
        for d in _options(ours["rules"], theirs["rules"])
    ]


def _options(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    """In what the tables differ, in one sentence; none where they do not."""
    if len(ours) != len(theirs):
        yield f"{len(ours)} lines in A's table, {len(theirs)} in B's"
        return
    differ: dict[str, list[str]] = {}
    for x, y in zip(ours, theirs, strict=True):
        for words in _line_differs(x, y):
            differ.setdefault(words, []).append(x["operation"])
    if differ:
        yield "; ".join(f"{words} ({', '.join(where)})" for words, where in differ.items())


def _line_differs(x: dict[str, Any], y: dict[str, Any]) -> Iterator[str]:
    """In what two lines of a method's table differ."""
    if any(x[key] != y[key] for key in ("operation", "role", "site", "rule")):
        yield f"rule {x['rule']} in A, {y['rule']} in B"
    for key in x["options"].keys() & y["options"].keys():
        if x["options"][key] != y["options"][key]:
            yield f"{key} {x['options'][key]} in A, {y['options'][key]} in B"


def _multiple_of(
    a: Oracle, pairs: list[tuple[str, Site, Site]], roundoff: float, tolerance: float | None
) -> list[str]:
    """Is B a multiple of A?"""
    _, x, y = max(pairs, key=lambda p: float(np.linalg.norm(p[1].relevance)))
    length = float((x.relevance * x.relevance).sum())
    k = float((x.relevance * y.relevance).sum()) / length if length else 0.0
    if not math.isfinite(k) or k == 0:
        return []
    scaled = ((s, Site(k * p.relevance, p.activation), Site(q.relevance)) for s, p, q in pairs)
    if any(e.parts for e in relevance_errors(scaled, 4 * roundoff, Divides(()), tolerance)):
        return []
    seed = f"the seed does not{_multiple(k, a.metadata.get('logit'))}"
    return [f"B is {k:.6g} times A at every site: the rules agree, {seed}"]


def _multiple(k: float, logit: Any) -> str:
    if not isinstance(logit, (int, float)) or not logit:
        return ""
    if abs(k / logit - 1) < 1e-4:
        return (
            ". That is the logit: in gradient x input form, a sweep that starts from the logit in "
            "place of 1 gives the logit squared"
        )
    return (
        ". That is one over the logit: a relevance form that starts from 1 in place of the logit"
        if abs(k * logit - 1) < 1e-4
        else ""
    )


def _explained(
    a: Oracle, b: Oracle, tolerance: float | None, model: Model | str | Path | None
) -> tuple[list[Diagnosis], list[str]]:
    """Diagnoses, and what kept them from being looked for."""
    base, ours, theirs, swapped = (
        (a.composite, a, b, False) if a.composite is not None else (b.composite, b, a, True)
    )
    if base is None:
        return [], ["no option was tried: neither file says a method that refl knows"]
    found = _model(ours, model)
    if found is None:
        return [], ["no option was tried: give the checkpoint with --model FOLDER"]
    forward, why = _forward(found, ours)
    if forward is None:
        return [], [why]
    known = known_sites(forward.names, forward.activations, theirs.relevance)
    listed = diagnose(forward, base, known, tolerance)
    notes = _none_is_equal(listed)
    if swapped:
        notes.append(
            f"A says no method: the options are those of {b.name}, tried until they give A"
        )
    return listed, notes


def _none_is_equal(listed: list[Diagnosis]) -> list[str]:
    if any(d.equal for d in listed):
        return []
    return [
        "no option and no known mistake that was tried makes the two equal"
        + ("; the nearest are listed" if listed else "")
    ]


def _model(side: Oracle, model: Model | str | Path | None) -> Model | None:
    """The model that a file was made with: as given, or the one that ships where it is that."""
    dtype = "float64" if side.about.get("dtype") != "float32" else "float32"
    fingerprint = side.about.get("fingerprint")
    found = model if isinstance(model, Model) else _loaded(model, dtype, side)
    if fingerprint and found.fingerprint() != fingerprint:
        if model is None:
            return None
        name = "the given one" if isinstance(model, Model) else model
        raise ReflError(
            f"{side.name} was made with another checkpoint than {name}: fingerprint "
            f"{str(fingerprint)[:12]}, not {found.fingerprint()[:12]}"
        )
    return found if fingerprint or model is not None else None


def _loaded(folder: str | Path | None, dtype: str, side: Oracle) -> Model:
    """A checkpoint, without what the caller of `load` said to ignore when the file was made."""
    if folder is None:
        return load(dtype=dtype)
    options, tensors = (
        names.split(", ") if isinstance(names, str) else []
        for names in map(side.about.get, ("ignored options", "ignored tensors"))
    )
    return load(folder, dtype=dtype, ignore=options, ignore_tensors=tensors)


def _forward(model: Model, side: Oracle) -> tuple[RecordedForward | None, str]:
    """The forward pass behind a file, or why it cannot be run again. The file does not say which
    position is explained: the one with its logit is."""
    metadata = side.metadata
    seed, against = metadata.get("seed"), metadata.get("against")
    target = _target(side)
    if seed not in SEEDS or target is None:
        return None, "no option was tried: the explained output is none of the model's"
    if metadata.get("answer"):
        return None, "no option was tried: a whole answer is explained, of several outputs"
    if side.about.get("edits"):
        return (
            None,
            "no option was tried: the run was edited, and a file has no edits to repeat",
        )
    if side.about.get("attention mask"):
        return None, "no option was tried: an attention mask hides tokens of the run in the file"
    item = (
        picture_of(side.activations, side.picture)
        if model.takes_images
        else metadata.get("input_ids")
    )
    if item is None:
        return None, "no option was tried: the file does not hold the input"
    forward = None
    for position in _positions(model, item, metadata):
        forward = RecordedForward(
            model,
            ExplainedOutput(
                item, target, _number(model, against), seed, position, metadata.get("decoder_ids")
            ),
        )
        error = same_forward(forward, side.activations)
        if error is None:
            return forward, ""
    return None, (
        "no option was tried: refl's forward pass with this model is not that of the file "
        "(another position, token types or weights?)"
    )


SEEDS = ("logit", "log-probability", "probability", "coordinate", "cosine")
"""Kinds of what is explained of a model's output."""


def _target(side: Oracle) -> int | Special | None:
    """What is explained: an output's number, an answer, or what there is of features."""
    metadata, number = side.metadata, side.metadata.get("target_id")
    mean = metadata.get("mean") is True
    try:
        if metadata.get("seed") == "cosine":
            return cosine(metadata.get("vector"), mean)
        if metadata.get("seed") == "coordinate":
            return None if number is None else coordinate(number, mean)
        if metadata.get("span") is not None:
            return _span(metadata["span"])
    except ReflError:
        return None
    return number if isinstance(number, int) else None


def _span(said: Any) -> Span | None:
    """First and last token, null for one of them."""
    if not _is_span(said):
        return None
    start, end = said
    return span(said) if None not in said else Span(start, end)


def _is_span(said: Any) -> bool:
    pair = isinstance(said, list) and len(said) == 2 and said != [None, None]
    return pair and all(t is None or (type(t) is int and t >= 0) for t in said)


def _number(model: Model, token: Any) -> int | None:
    """The id of a token as a file names it:
    by its text, or by its id where there was no tokenizer.
    """
    if token is None:
        return None
    return model.output_id(int(token) if model.text is None and str(token).isdecimal() else token)


def _positions(model: Model, item: Any, metadata: dict[str, Any]) -> list[int | None]:
    """Where the explained logit may stand, likeliest first."""
    if model.task in WHOLE or metadata.get("mean"):
        return [None]
    if model.task == "features":
        return [metadata.get("position")]
    decoder_ids = metadata.get("decoder_ids")
    rows = (
        model.logits(item, decoder_ids)[:, metadata["target_id"]]
        if isinstance(metadata.get("logit"), (int, float))
        else None
    )
    last = len(decoder_ids or item) - 1
    if rows is None:
        return [last]
    away = np.abs(rows - metadata["logit"])
    return (
        [last, *(int(i) for i in np.argsort(away, kind="stable")[:3] if i != last)]
        if away[last] <= 1e-3
        else [int(away.argmin())]
    )
