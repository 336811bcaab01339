"""The tensors of a file that no operation reads: each is known to be harmless, or it is named in an
error, or the caller says to go on without it.

A checkpoint may hold tables that a net makes itself, second names of one tensor, and parts that its
head does not run (a net lists those). The first two are harmless where they say what the net says:
that is looked at, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.arrays import Array, asnumpy
from refl.errors import ReflError, shown
from refl.io.names import Prefixed
from refl.io.precision import holds
from refl.io.weights import Weights

COPIES = {
    "lm_head.weight": ("model.embed_tokens.weight", "transformer.wte.weight", "shared.weight"),
    "encoder.embed_tokens.weight": ("shared.weight",),
    "transformer.encoder.embed_tokens.weight": ("transformer.shared.weight",),
    "decoder.embed_tokens.weight": ("shared.weight",),
    "cls.predictions.decoder.weight": ("bert.embeddings.word_embeddings.weight",),
    "cls.predictions.decoder.bias": ("cls.predictions.bias",),
    "proj_out.weight": ("model.decoder.embed_tokens.weight",),
    "lm_head.decoder.weight": ("roberta.embeddings.word_embeddings.weight",),
    "lm_head.decoder.bias": ("lm_head.bias",),
    "predictions.decoder.weight": ("albert.embeddings.word_embeddings.weight",),
    "predictions.decoder.bias": ("predictions.bias",),
}
"""Second name of a tied tensor -> the tensor that the net reads, under one of these names."""


def settle(
    weights: Prefixed,
    config: Any,
    spare: Mapping[str, str],
    ignore: Collection[str] = (),
) -> tuple[str, ...]:
    """Looks at every tensor of the file that the net does not read.

    spare     pattern -> why this net's head does without such tensors
    ignore    patterns of tensors to go on without, as they are named in the file or in the model

    Returns the names of those that `ignore` named. Raises ReflError for a tensor that is neither
    harmless nor ignored, for a pattern that names none, and for one that names only tensors in use.
    """
    left = [name for name in weights.weights if name not in weights.read]
    ignored = _ignored(weights, left, ignore)
    strange = {}
    for name in left:
        if name not in ignored and (wrong := _wrong(weights, name, config, spare)):
            strange[name] = wrong
    if strange:
        raise _refusal(strange)
    return tuple(ignored)


def _ignored(weights: Prefixed, left: list[str], ignore: Collection[str]) -> list[str]:
    found: list[str] = []
    for pattern in ignore:
        named = [
            name
            for name in left
            if fnmatchcase(name, pattern) or fnmatchcase(weights.outer(name), pattern)
        ]
        if not named:
            in_use = any(fnmatchcase(name, pattern) for name in weights.weights)
            what = "only tensors that the net reads" if in_use else "no tensor of the file"
            raise ReflError(f"ignore_tensors names {shown(pattern)}, which matches {what}")
        found += [name for name in named if name not in found]
    return found


def _refusal(strange: Mapping[str, str]) -> ReflError:
    name, wrong = next(iter(strange.items()))
    more = f" (and {len(strange) - 1} more such tensors)" if len(strange) > 1 else ""
    return ReflError(
        f"the checkpoint holds {shown(name)}{more}, {wrong}: one of the two is not this model's; "
        f"to go on without it, load with ignore_tensors=[{shown(name)!r}] "
        f"(--ignore-tensors {shown(name)})"
    )


def _wrong(weights: Prefixed, name: str, config: Any, spare: Mapping[str, str]) -> str:
    """What is wrong with a tensor that nothing reads; empty where it is harmless."""
    outer = weights.outer(name)
    if any(fnmatchcase(outer, pattern) for pattern in spare):
        return ""
    for first in COPIES.get(name, COPIES.get(outer, ())):
        if weights.inner(first) in weights.read:
            same = _same(weights, name, weights.inner(first))
            return "" if same else f"which differs from {first}, of which it is another name here"
    for pattern, agrees, wrong in BUFFERS:
        if fnmatchcase(outer, pattern):
            return "" if agrees(stored(weights.weights, name), config) else wrong
    return "which config.json does not ask for"


def _same(weights: Prefixed, a: str, b: str) -> bool:
    """Number for number; as they lie in the file, where they can be had so."""
    one, other = stored(weights.weights, a), stored(weights.weights, b)
    return one.shape == other.shape and all(
        bool((one[i : i + 4096] == other[i : i + 4096]).all()) for i in range(0, len(one), 4096)
    )


def stored(weights: Mapping[str, Array], name: str) -> NDArray[Any]:
    """A tensor of any dtype as it lies in the file."""
    if isinstance(weights, Weights):
        return weights.stored(name)
    return numpy.asarray(asnumpy(weights[name]))


# -- tables that a net makes itself ----------------------------------------------------------------


def _frequencies(found: NDArray[Any], config: Any) -> bool:
    """Those of the config, scaled or not, to the precision of the narrowest format that holds
    them.
    """
    if found.dtype.kind != "f" or found.ndim != 1 or not hasattr(config, "rope"):
        return False
    values, (relative, least) = found.astype(numpy.float64), _precision(found)
    return any(
        len(expected) == len(values)
        and bool((numpy.abs(values - expected) <= relative * expected + least).all())
        for expected in map(numpy.asarray, _expected_frequencies(config))
    )


def _precision(found: NDArray[Any]) -> tuple[float, float]:
    """How far rounding to float16, bfloat16 or float32 moves a number: in parts of it, and where
    it is small. Files were cast to and fro, so the numbers say which it was, not their dtype.
    """
    if holds("float16", found):
        return 2.0**-10, 2.0**-24
    return (2.0**-8 if holds("bfloat16", found) else 2.0**-18), 0.0


def _expected_frequencies(config: Any) -> list[list[float]]:
    ropes = [r for r in (config.rope, getattr(config, "local_rope", None)) if r is not None]
    plain = [[r.theta ** (-2.0 * i / r.width) for i in range(r.width // 2)] for r in ropes]
    return plain + [r.frequencies(1) for r in ropes]


def _is_causal(found: NDArray[Any], config: Any) -> bool:
    """A lower triangle of ones, (1, 1, T, T)."""
    if found.ndim < 2 or found.shape[-1] != found.shape[-2] or found.size != found.shape[-1] ** 2:
        return False
    square = found.reshape(found.shape[-2:]) != 0
    return bool((square == numpy.tri(len(square), dtype=bool)).all())


def _is_a_mask_value(found: NDArray[Any], config: Any) -> bool:
    """One number, so low that nothing is left after the softmax."""
    return found.size == 1 and float(found.reshape(-1)[0]) <= -1e4


def _counts(found: NDArray[Any], config: Any) -> bool:
    """0, 1, 2, ..."""
    flat = found.reshape(-1)
    return found.shape[-1:] == flat.shape and bool((flat == numpy.arange(found.size)).all())


def _is_zero(found: NDArray[Any], config: Any) -> bool:
    return not found.any()


Agrees = Callable[[NDArray[Any], Any], bool]

BUFFERS: tuple[tuple[str, Agrees, str], ...] = (
    (
        "*rotary_emb*.inv_freq",
        _frequencies,
        "which differs from the frequencies that config.json gives",
    ),
    ("transformer.h.*.attn.bias", _is_causal, "which is not the causal mask that GPT-2 has"),
    (
        "transformer.h.*.attn.masked_bias",
        _is_a_mask_value,
        "which is not the low number that stands for a mask",
    ),
    ("gpt_neox.layers.*.attention.bias", _is_causal, "which is not the causal mask of GPT-NeoX"),
    (
        "gpt_neox.layers.*.attention.masked_bias",
        _is_a_mask_value,
        "which is not the low number that stands for a mask",
    ),
    ("*.embeddings.position_ids", _counts, "which does not count positions from 0"),
    ("*.embeddings.token_type_ids", _is_zero, "which is not 0 throughout"),
    # some GPTQ files give every layer a bias
    ("*.bias", _is_zero, "which config.json does not ask for"),
)
"""Name, what it has to agree with, and what to say where it does not."""
