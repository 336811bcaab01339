"""Model-level conformance vectors: small models of every architecture, and the relevance a correct
implementation finds at every site.

    for case in load("llama"):                       # one for each input and method
        got = {...}                                  # site -> relevance, from the implementation
                                                     # under test, run on case.folder
        check(case, got, "float32")                  # the sites that part, the one nearest to the
                                                     # output first

The numbers come from exact arithmetic (make_model_vectors.py makes the files); nothing here
computes, and nothing but NumPy and safetensors is needed. Allowed at a site is units * u *
condition, u the unit roundoff of the dtype: `condition` is what one unit of roundoff at every
number of the run may move the site by, measured by exact runs in which every number is moved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.io.safetensors import read_safetensors
from refl.verification.vectors import FORMAT
from refl.verification.vectors.case import UNITS as ROUNDOFF
from refl.verification.vectors.placing import bare, misfit, place

FOLDER = Path(__file__).parent / "models"
EXPECTED = "expected.safetensors"
UNITS = 16
"""Units of roundoff times condition that a run may be off. A correct one stays below 3."""
FLOOR = 1e-300


@dataclass(frozen=True)
class ModelCase:
    """One input of one model under one method."""

    architecture: str
    number: int
    """Which of the model's inputs."""
    method: str
    formulation: str
    """What the method hands down; expected is relevance in either form (x times g)."""
    folder: Path
    """config.json and model.safetensors, as transformers read them."""
    note: str
    ids: list[int] | None
    pixels: Any
    """(C, H, W), normalized already."""
    decoder_ids: list[int] | None
    position: int | None
    """Whose output is explained, where it is not the last token's or a class."""
    target: int
    """The number of the logit that is explained; of answers the logits of all tokens lie behind
    each other, start and end of each.
    """
    logit: float
    logits: Any
    """(V,), at the explained position; (2 T,) of answers."""
    expected: dict[str, Any]
    """Site -> relevance without a batch axis, in the order of the sweep:
    from the output to the inputs.
    """
    condition: dict[str, float]
    activations: dict[str, Any]
    activation_condition: dict[str, float]
    absorbed: dict[str, float]
    """Cause -> amount over all sites, what reached the input included: together the logit."""
    aliases: dict[str, str]
    """A site's further name -> the site."""
    rules: list[dict[str, Any]] = field(repr=False)
    """The method's table: the first line that fits an operation at a site gives the rule."""

    @property
    def id(self) -> str:
        return f"{self.architecture}-{self.number}-{self.method}"

    @property
    def item(self) -> Any:
        """Ids, or pixels in float64."""
        return self.ids if self.pixels is None else self.pixels.astype(np.float64)

    @cached_property
    def sites(self) -> list[str]:
        return list(self.expected)

    @cached_property
    def input_sites(self) -> list[str]:
        """Those below the first block: embeddings, pixels."""
        blocks = [k for k, site in enumerate(self.sites) if "0" in site.split(".")]
        return self.sites[max(blocks) + 1 :]


@dataclass(frozen=True)
class SiteDeviation:
    """A site whose relevance is not the expected one."""

    site: str
    deviation: float
    """The largest, of an entry."""
    allowed: float
    at: tuple[int, ...]
    got: float
    expected: float
    why: str = ""
    """Where the numbers cannot be compared at all."""

    def __str__(self) -> str:
        if self.why:
            return f"{self.site}: {self.why}"
        return (
            f"{self.site}{list(self.at)}: {self.got:.9g} for {self.expected:.9g}, off by "
            f"{self.deviation:.2e}, allowed {self.allowed:.2e}"
        )


def architectures() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{EXPECTED}"))


def load(architecture: str, methods: Sequence[str] | None = None) -> list[ModelCase]:
    """The cases of one architecture, by input and method. Raises ReflError where there are none or
    the file is of another format.
    """
    arrays, said = _read(architecture)
    return [
        _case(arrays, said, number, method)
        for number in range(len(said["inputs"]))
        for method in said["methods"]
        if methods is None or method in methods
    ]


def _read(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = FOLDER / architecture / EXPECTED
    if not path.is_file():
        raise ReflError(
            f"there are no model vectors for {architecture!r}: expected one of "
            f"{', '.join(architectures())}"
        )
    arrays, metadata = read_safetensors(path)
    said = {key: json.loads(value) for key, value in metadata.items()}
    if said.get("format") != FORMAT:
        raise ReflError(
            f"{path.name} of {architecture} has format {said.get('format')}, this refl "
            f"reads format {FORMAT}"
        )
    return arrays, said


def _case(arrays: Mapping[str, Any], said: dict[str, Any], number: int, method: str) -> ModelCase:
    about = said["inputs"][number]
    sites = about["sites"]
    bounds = {
        what: dict(zip(sites, arrays[f"{number}/condition/{what}"].tolist(), strict=True))
        for what in (method, "forward")
    }
    return ModelCase(
        architecture=said["architecture"],
        number=number,
        method=method,
        formulation=said["methods"][method]["formulation"],
        folder=FOLDER / said["architecture"],
        note=said["note"],
        ids=about.get("ids"),
        pixels=arrays.get(f"{number}/pixels"),
        decoder_ids=about.get("decoder_ids"),
        position=about.get("position"),
        target=about["target"],
        logit=about["logit"],
        logits=arrays[f"{number}/logits"],
        expected={site: arrays[f"{number}/relevance/{method}/{site}"] for site in sites},
        condition=bounds[method],
        activations={site: arrays[f"{number}/activation/{site}"] for site in sites},
        activation_condition=bounds["forward"],
        absorbed=about["absorbed"][method],
        aliases=about["aliases"],
        rules=said["methods"][method]["rules"],
    )


# -- comparing -------------------------------------------------------------------------------------


def check(
    case: ModelCase, got: Mapping[str, Any], dtype: str = "float64", units: float = UNITS
) -> list[SiteDeviation]:
    """The sites among `got` whose relevance parts from the expected, in the order of the sweep: the
    first is where to look.

    Names may be aliases; shapes may have a batch axis of one in front, and all rows where one is
    explained, the others without relevance. "logit" is compared if it is there. Raises ReflError
    for a dtype that is none, and where nothing can be compared.
    """
    u, known = _roundoff(dtype), _known(case, got)
    parted = list(_logit(case, got, units * u))
    for site, wanted in case.expected.items():
        for name, value in known.get(site, ()):
            parted += _compare(name, value, wanted, units * u * case.condition[site] + FLOOR)
    return parted


def unknown(case: ModelCase, got: Mapping[str, Any]) -> list[str]:
    """Names that are no site of the case, and so were not compared."""
    return [
        name
        for name in got
        if name != "logit" and case.aliases.get(name, name) not in case.expected
    ]


def check_activations(
    case: ModelCase, got: Mapping[str, Any], dtype: str = "float64", units: float = UNITS
) -> list[SiteDeviation]:
    """The same for activations, in the order of the forward:
    where it parts there, relevance cannot be right.
    """
    u, known = _roundoff(dtype), _known(case, got)
    parted: list[SiteDeviation] = []
    for site in reversed(case.sites):
        wanted, allowed = case.activations[site], u * case.activation_condition[site]
        for name, value in known.get(site, ()):
            row = _nearest_row(np.asarray(value, dtype=np.float64), wanted)
            parted += _compare(name, row, wanted, units * allowed + FLOOR)
    return parted


def _nearest_row(value: Any, wanted: Any) -> Any:
    """Of all rows the one that is meant, where one is wanted: in activations all have numbers."""
    inner = value.reshape(bare(value))
    if inner.shape[1:] != bare(wanted):
        return value
    with np.errstate(invalid="ignore"):
        away = np.abs(inner - wanted.reshape(bare(wanted))).reshape(len(inner), -1).max(axis=1)
    return inner[int(np.argmin(away))].reshape(wanted.shape)


def laid_beside(case: ModelCase, got: Mapping[str, Any], name: str) -> tuple[Any, Any] | None:
    """What is expected at a site and what came under this name, in one shape; None where they do
    not fit."""
    wanted = case.expected.get(case.aliases.get(name, name))
    if wanted is None or name not in got:
        return None
    value = np.asarray(got[name], dtype=np.float64)
    at = place(wanted, value, padded=False)
    return None if at is None else (wanted, value[at].reshape(wanted.shape))


def _roundoff(dtype: str) -> float:
    if dtype not in ROUNDOFF:
        raise ReflError(f"unknown dtype {dtype!r}: expected one of {', '.join(ROUNDOFF)}")
    return ROUNDOFF[dtype]


def _known(case: ModelCase, got: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Site -> every name it came under, and its numbers there."""
    known: dict[str, list[tuple[str, Any]]] = {}
    for name, value in got.items():
        known.setdefault(case.aliases.get(name, name), []).append((name, value))
    if not any(site in known for site in case.expected):
        raise ReflError(
            f"no site of {case.id} is among {', '.join(list(got)[:5]) or 'nothing'}: "
            f"expected names like {case.sites[len(case.sites) // 2]}"
        )
    return known


def _logit(case: ModelCase, got: Mapping[str, Any], scale: float) -> Iterator[SiteDeviation]:
    if "logit" in got:
        yield from _compare(
            "logit",
            got["logit"],
            np.asarray(case.logit),
            scale * case.activation_condition[case.sites[0]],
        )


def _compare(name: str, value: Any, wanted: Any, allowed: float) -> Iterator[SiteDeviation]:
    value = np.asarray(value, dtype=np.float64)
    at_rows = place(wanted, value, padded=False)
    if at_rows is None:
        why = misfit(wanted, value)
        yield SiteDeviation(name, math.inf, allowed, (), math.nan, math.nan, why)
        return
    value = value[at_rows].reshape(wanted.shape)
    deviation = np.abs(value - wanted)
    deviation = np.where(np.isnan(deviation), np.inf, deviation)
    if deviation.size and deviation.max() > allowed:
        at = tuple(int(i) for i in np.unravel_index(int(deviation.argmax()), deviation.shape))
        yield SiteDeviation(
            name, float(deviation.max()), allowed, at, float(value[at]), float(wanted[at])
        )


# -- lint ------------------------------------------------------------------------------------------


def lint(architecture: str) -> list[str]:
    """What is wrong with the files of an architecture, in sentences; nothing for good ones."""
    arrays, said = _read(architecture)
    config = json.loads((FOLDER / architecture / "config.json").read_text(encoding="utf-8"))
    weights, _ = read_safetensors(FOLDER / architecture / "model.safetensors")
    found = [
        f"{name} holds numbers that are not finite"
        for name, array in (arrays | weights).items()
        if not np.isfinite(array).all()
    ]
    found += [
        f"{name} is {array.dtype}, expected float32"
        for name, array in weights.items()
        if array.dtype != np.float32
    ]
    counted = sum("/relevance/" in name for name in arrays)
    if counted != said["count"]:
        found.append(f"the header counts {said['count']} relevances, there are {counted}")
    kind = config["model_type"]  # further heads of one have their name behind its own
    if said["architecture"] != architecture or not f"{architecture}-".startswith(f"{kind}-"):
        found.append(
            f"the folder {architecture} holds a {config['model_type']}, its vectors say "
            f"{said['architecture']}"
        )
    names = {
        name
        for number in range(len(said["inputs"]))
        for name in _names(said, number, "image_size" in config)
    }
    found += [f"{name} is missing" for name in sorted(names - set(arrays))]
    found += [f"{name} belongs to nothing" for name in sorted(set(arrays) - names)]
    return found or [line for case in load(architecture) for line in _lint_case(case, config)]


def _names(said: dict[str, Any], number: int, pixels: bool) -> Iterator[str]:
    """Every tensor that the header asks for."""
    yield f"{number}/logits"
    yield f"{number}/condition/forward"
    yield from [f"{number}/pixels"] if pixels else []
    sites = said["inputs"][number]["sites"]
    yield from (f"{number}/activation/{site}" for site in sites)
    for method in said["methods"]:
        yield f"{number}/condition/{method}"
        yield from (f"{number}/relevance/{method}/{site}" for site in sites)


def _lint_case(case: ModelCase, config: dict[str, Any]) -> Iterator[str]:
    if any(
        not 0 <= i < config["vocab_size"] for i in (*(case.ids or ()), *(case.decoder_ids or ()))
    ):
        yield f"{case.id} has ids outside the vocabulary of {config['vocab_size']}"
    if not 0 <= case.target < len(case.logits) or case.logits[case.target] != case.logit:
        yield (
            f"{case.id} explains logit {case.logit} of output {case.target}, which the logits "
            "do not say"
        )
    for site, relevance in case.expected.items():
        if relevance.shape != case.activations[site].shape:
            yield (
                f"{case.id} has relevance {relevance.shape} for an activation "
                f"{case.activations[site].shape} at {site}"
            )
        if case.condition[site] < np.abs(relevance).max(initial=0.0):
            yield f"{case.id} has a condition below its relevance at {site}"
    if set(case.aliases.values()) - set(case.expected):
        yield f"{case.id} has aliases of sites that are none"
    if abs(sum(case.absorbed.values()) - case.logit) > 1e-12 * (
        abs(case.logit) + sum(map(abs, case.absorbed.values()))
    ):
        yield (
            f"{case.id} has a ledger that does not close: "
            f"{sum(case.absorbed.values())} of {case.logit}"
        )
