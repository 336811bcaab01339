"""What an oracle file may say: the type of every fact, and which shapes belong together. A file is
anybody's, so it is refused in a sentence that names the place before anything is made of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.errors import ReflError, quoted, shown
from refl.io.precision import held_in

Check: TypeAlias = Callable[[str, Any], None]
"""Takes where a value stands, and the value. Raises ReflError for one that may not stand there."""

_MOST = 2**53
"""Whole numbers beyond are no ids."""


def _refuse(at: str, value: Any, expected: str) -> ReflError:
    return ReflError(f"{shown(at)} is {quoted(value)}, expected {expected}")


# -- types -----------------------------------------------------------------------------------------


def text(at: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _refuse(at, value, "a string")


def word(at: str, value: Any) -> None:
    """Such as a kind of seed: it is shown among refl's own words."""
    text(at, value)
    if not re.fullmatch(r"[a-z][a-z_-]{0,39}", value):
        raise _refuse(at, value, "a word of small letters")


def whole(at: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise _refuse(at, value, "a whole number of at least 0")


def truth(at: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _refuse(at, value, "true or false")


def number(at: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
        raise _refuse(at, value, "a finite number")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def fraction(at: str, value: Any) -> None:
    number(at, value)
    if not 0 <= value <= 1:
        raise _refuse(at, value, "a number from 0 to 1")


def answer(at: str, value: Any) -> None:
    """Of an answer, the first and the last token, or one of them."""
    each(maybe(whole))(at, value)
    if len(value) != 2 or value == [None, None] or (None not in value and value[0] > value[1]):
        raise _refuse(at, value, "the first and the last token of an answer")


def formulation(at: str, value: Any) -> None:
    if value not in ("relevance", "gradient_x_input", "attribution"):
        raise _refuse(at, value, "relevance, gradient_x_input or attribution")


def causes(at: str, value: Any) -> None:
    """What absorbed relevance -> how much; a cause stands among the other rows of the ledger."""
    named(number)(at, value)
    for name in value:
        word(f"a cause in {at}", name)
        if name == "explained":
            raise _refuse(f"a cause in {at}", name, "another name than that of the sum")


def anything(at: str, value: Any) -> None:
    pass


def maybe(check: Check) -> Check:
    """Or null."""

    def checked(at: str, value: Any) -> None:
        if value is not None:
            check(at, value)

    return checked


def each(check: Check) -> Check:
    """A list of these."""

    def checked(at: str, value: Any) -> None:
        if not isinstance(value, list):
            raise _refuse(at, value, "a list")
        for i, one in enumerate(value):
            check(f"{at}[{i}]", one)

    return checked


def named(check: Check) -> Check:
    """An object from any names to these."""

    def checked(at: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _refuse(at, value, "an object")
        for key, one in value.items():
            check(f"{at}.{key}", one)

    return checked


def record(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """An object with these names; what else it says is for newer versions to read."""

    def checked(at: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _refuse(at, value, "an object")
        for key in required:
            if key not in value:
                raise ReflError(f"{shown(at)} has no {key!r}" if at else f"it has no {key!r}")
        for key, check in ({**required, **optional}).items():
            if key in value:
                check(f"{at}.{key}" if at else key, value[key])

    return checked


# -- the facts -------------------------------------------------------------------------------------

_RULE = record(
    {"operation": text, "rule": text, "site": text, "role": text, "options": named(anything)}, {}
)
_WORDS = dict.fromkeys(("name", "source", "summary", "score"), text)
_WORDS["formulation"] = formulation
METHOD = record(
    _WORDS, {"rules": each(_RULE), "base": text, "changes": each(text), "options": named(anything)}
)
_CANDIDATE = record(
    {"token": text, "id": whole, "logit": number, "probability": maybe(fraction)}, {}
)
_SITE = record(
    {"site": text, "operation": text, "rule": text, "received": number}
    | {"passed": named(number), "absorbed": causes},
    {"rounding_scale": maybe(number)},
)
LEDGER = record({"explained": number, "roundoff": fraction, "sites": each(_SITE)}, {})

FACTS = record(
    {
        "format": whole,
        "about": named(text),
        "method": METHOD,
        "tokens": each(text),
        "target": text,
        "target_id": whole,
        "logit": number,
        "probability": maybe(fraction),
        "against": maybe(text),
        "seed": word,
        "explained": number,
        "candidates": each(_CANDIDATE),
        "ledger": maybe(LEDGER),
        "patch": maybe(each(whole)),
        "aliases": named(text),
    },
    {
        "order": each(text),
        "decoder_tokens": maybe(each(text)),
        "word_starts": maybe(each(truth)),
        "decoder_word_starts": maybe(each(truth)),
        "against_logit": maybe(number),
        "types": maybe(each(whole)),
        "position": maybe(whole),
        "answer": maybe(each(_CANDIDATE)),
        "span": maybe(answer),
        "mean": maybe(truth),
        "texts": maybe(each(whole)),
    },
)
"""Every fact of an oracle file, by name. New ones are optional, so that files stay readable both
ways: whoever does not know a name passes it over."""


# -- the arrays ------------------------------------------------------------------------------------


def check_arrays(
    facts: Mapping[str, Any],
    arrays: Mapping[str, Array],
    sites: Mapping[str, Mapping[str, Array]],
) -> None:
    """Raises ReflError for ids that are none, and for shapes that do not belong together."""
    for name in ("input_ids", "relevance"):
        if name not in arrays:
            raise ReflError(f"it has no array {name!r}")
    for group in ("", "decoder_"):
        _check_input(group, facts, arrays)
        starts, tokens = facts.get(f"{group}word_starts"), facts.get(f"{group}tokens")
        if starts is not None and len(starts) != len(tokens or ()):
            raise ReflError(f"there are {len(starts)} {group}word_starts, expected one for a token")
    _check_picture(facts, arrays)
    _check_compared(facts, arrays)
    _check_pairs(arrays)
    _check_mask(arrays)
    _check_answer(facts, arrays)
    _check_target(facts, arrays)
    check_sites(sites)
    _check_sums(facts, arrays, sites)
    groups = ["activation", "relevance"]
    if facts["method"]["formulation"] == "gradient_x_input":
        groups.append("gradient")
    if len({frozenset(sites[group]) for group in groups}) > 1:
        raise ReflError(f"{', '.join(groups)} are not of the same sites")


def _check_sums(
    facts: Mapping[str, Any],
    arrays: Mapping[str, Array],
    sites: Mapping[str, Mapping[str, Array]],
) -> None:
    """That what is said twice is said the same."""
    for name in ("relevance", "decoder_relevance", "pixels"):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise ReflError(f"{name} holds what is no finite number")
    ledger = facts["ledger"]
    if ledger is None:
        return
    if ledger["explained"] != facts["explained"]:
        raise ReflError(
            f"explained is {quoted(facts['explained'])}, and {quoted(ledger['explained'])} in the "
            "ledger: expected one"
        )
    if facts["method"]["score"] == "sum":
        for said in contradictions(ledger["sites"], arrays, sites["relevance"]):
            raise ReflError(said)


def contradictions(
    entries: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array], sites: Mapping[str, Array]
) -> Iterator[str]:
    """Where the relevance of tokens, the sum over features of that at their embeddings, is that of
    no embedding in the file. `entries`: of the ledger.
    """
    tables = [e["site"] for e in entries if e.get("operation") == "embedding"]
    for name in ("relevance", "decoder_relevance"):
        r = arrays.get(name)
        found = [sites[s] for s in tables if s in sites]
        near = [  # of a padded batch, with rows behind that are of no token
            x[: r.size] for x in found if r is not None and x.ndim == 2 and len(x) >= r.size
        ]
        if r is not None and near and not any(_adds_up(r.reshape(-1), x) for x in near):
            yield f"{name} is not the sum over features of that at {shown(', '.join(tables[:3]))}"


def _adds_up(r: Array, x: Array) -> bool:  # (T,), (T, D)
    """To a quarter of the digits in which the numbers are held, of the largest sum of sizes: sites
    that were computed when they were asked for are of another run than the tokens, and rounding
    grows on the way down.
    """
    u = max(held_in([r]), held_in([x]))
    wide = x.astype(np.float64)
    bound = u**0.25 * np.abs(wide).sum(axis=1).max(initial=np.finfo(x.dtype).smallest_subnormal)
    return bool((np.abs(wide.sum(axis=1) - r) <= bound).all())


def check_sites(sites: Mapping[str, Mapping[str, Array]]) -> None:
    """That what belongs to one site is of one shape, and of floats; a group may lack a site."""
    shapes: dict[str, tuple[int, ...]] = {}
    for group, arrays in sites.items():
        for site, array in arrays.items():
            if array.dtype.kind != "f":
                raise ReflError(f"{shown(f'{group}/{site}')} is of {array.dtype}, expected floats")
            if shapes.setdefault(site, array.shape) != array.shape:
                raise ReflError(
                    f"{shown(f'{group}/{site}')} has shape {array.shape}, another array of this "
                    f"site has {shapes[site]}: expected one shape"
                )


def check_ids(name: str, ids: Array) -> None:
    """That they are whole numbers of at least 0, (T,)."""
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ReflError(
            f"{name} is of {ids.dtype} and shape {ids.shape}, expected whole numbers (T,)"
        )
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > _MOST):
        wrong = int(ids.min() if int(ids.min()) < 0 else ids.max())
        raise ReflError(f"{name} holds {wrong}, which is no token id")


def _check_input(group: str, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """That tokens, ids and relevance are of one length."""
    ids = arrays.get("decoder_ids" if group else "input_ids")
    tokens, relevance = facts.get(f"{group}tokens"), arrays.get(f"{group}relevance")
    if ids is None and tokens is None and relevance is None:
        return
    if ids is None or tokens is None or relevance is None:
        raise ReflError(f"of {group}tokens, ids and relevance one is missing: expected all or none")
    check_ids(f"{group or 'input_'}ids", ids)
    if relevance.dtype.kind != "f":
        raise ReflError(f"{group}relevance is of {relevance.dtype}, expected floats")
    if len(ids) != len(tokens):
        raise ReflError(f"there are {len(tokens)} {group}tokens and {len(ids)} ids of them")
    if not group and relevance.ndim == 2 and "picture" not in arrays:
        raise ReflError("relevance is of a picture, and there is no array 'picture'")
    if (group or "picture" not in arrays) and relevance.shape != (len(ids),):
        raise ReflError(
            f"{group}relevance has shape {relevance.shape}, expected ({len(ids)},) for the tokens"
        )


def _check_pairs(arrays: Mapping[str, Array]) -> None:
    pairs, tokens = arrays.get("pairs"), len(arrays["input_ids"])
    if pairs is not None and (pairs.dtype.kind != "f" or pairs.shape != (tokens, tokens)):
        raise ReflError(
            f"pairs is of {pairs.dtype} and shape {pairs.shape}, expected floats "
            f"({tokens}, {tokens}) for the tokens"
        )


def _check_mask(arrays: Mapping[str, Array]) -> None:
    mask, tokens = arrays.get("attention_mask"), len(arrays["input_ids"])
    if mask is not None and (mask.dtype != bool or mask.shape not in ((tokens,), (tokens,) * 2)):
        raise ReflError(
            f"the attention mask is of {mask.dtype} and shape {mask.shape}, expected true or false "
            f"({tokens},) or ({tokens}, {tokens}) for the tokens"
        )


def _check_answer(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    said = [token["id"] for token in facts.get("answer") or ()]
    ids = arrays.get("decoder_ids", arrays["input_ids"]).tolist()
    if said and (len(said) >= len(ids) or ids[-len(said) :] != said):
        raise ReflError(
            "the tokens of the answer are not the last of the text: expected them there"
        )


def _check_target(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """That an answer lies in the text, and that a vector is one."""
    span, tokens, vector = facts.get("span"), len(arrays["input_ids"]), arrays.get("vector")
    if span is not None and any(t is not None and t >= tokens for t in span):
        raise _refuse("span", span, f"tokens of the {tokens} there are")
    if vector is not None and (
        vector.dtype.kind != "f" or vector.ndim != 1 or not np.isfinite(vector).all()
    ):
        raise ReflError(
            f"vector is of {vector.dtype} and shape {vector.shape}, expected finite floats (D,)"
        )


def _check_picture(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    picture, relevance, patch = arrays.get("picture"), arrays["relevance"], facts["patch"]
    if patch is not None and (len(patch) != 2 or min(patch) < 1):
        raise _refuse("patch", patch, "height and width")
    if picture is None:
        return
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.size == 0:
        raise ReflError(
            f"picture is of {picture.dtype} and shape {picture.shape}, expected uint8 (H, W, C)"
        )
    if relevance.shape != picture.shape[:2]:
        raise ReflError(
            f"relevance has shape {relevance.shape}, expected {picture.shape[:2]} for the picture"
        )


def _check_compared(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Of texts and a picture that they are compared with: all there is of both, or nothing."""
    texts, pixels, image = facts.get("texts"), arrays.get("pixels"), arrays.get("image")
    if texts is None and pixels is None and image is None:
        return
    if texts is None or pixels is None or image is None or facts["patch"] is None:
        raise ReflError("of texts, pixels, image and patch one is missing: expected all or none")
    if image.dtype != np.uint8 or image.ndim != 3 or image.size == 0:
        raise ReflError(
            f"image is of {image.dtype} and shape {image.shape}, expected uint8 (H, W, C)"
        )
    if pixels.dtype.kind != "f" or pixels.shape != image.shape[:2]:
        raise ReflError(
            f"pixels is of {pixels.dtype} and shape {pixels.shape}, expected floats "
            f"{image.shape[:2]} for the picture"
        )
    if min(texts, default=0) < 1 or sum(texts) != len(arrays["input_ids"]):
        raise _refuse("texts", texts, f"lengths that add up to {len(arrays['input_ids'])}")
