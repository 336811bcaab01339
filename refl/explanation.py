"""What explain() returns: the relevance of every token and every site, the conservation ledger, and
how they are saved. How they are drawn is refl.show's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from refl.arrays import Array, asnumpy
from refl.errors import ReflError
from refl.io import ORACLE_FORMAT
from refl.ledger import Ledger
from refl.rules.composites import Composite, from_saved


@dataclass(frozen=True)
class Candidate:
    """A next token the model considered."""

    token: str
    id: int
    logit: float
    probability: float


@dataclass(frozen=True)
class Sites:
    """Arrays of the kept sites, batch axis first; one example is looked at."""

    propagated: dict[str, Array]
    activations: dict[str, Array]
    aliases: dict[str, str]
    formulation: str
    example: int

    def canonical(self, name: str) -> str:
        site = self.aliases.get(name, name)
        if site not in self.activations:
            raise ReflError(
                f"no site {name!r} was kept: there are {len(self.activations)}, such as "
                f"{', '.join(list(self.activations)[:3])}"
            )
        return site

    def one(self, array: Array) -> Any:
        return asnumpy(array[self.example if array.shape[0] > 1 else 0, ...])


@dataclass
class Explanation:
    """One explained output.

    tokens         the input's tokens, T strings
    input_ids      their ids
    relevance      float array (T,): each token's share, in the unit of what is explained (a logit,
                   say)
    target         the explained token; target_id, logit and probability are its own
    against        the token it is contrasted with, or None
    picture        for a net that sees: uint8 (H, W, C), what it saw; then tokens is empty and
                   relevance (H, W), summed over channels
    patch          height and width of a patch of it; `patches` has the sums over each
    decoder_tokens, decoder_ids, decoder_relevance
                   the same three of what a decoder has written; None where there is none
    seed           logit, log-probability or probability; activation where a neuron is explained,
                   which has no probability (nan)
    explained      what the account adds up to: sum of tokens + everything absorbed
    candidates     the most likely next tokens
    composite      the method, with every parameter
    ledger         the conservation ledger

    `e[site]` is the relevance at a site, in the shape of its activation without the batch axis.
    """

    tokens: list[str]
    input_ids: list[int]
    relevance: Any
    target: str
    target_id: int
    logit: float
    probability: float
    against: str | None
    seed: str
    explained: float
    candidates: list[Candidate]
    composite: Composite
    ledger: Ledger
    about: dict[str, str] = field(default_factory=dict)
    sites: Sites = field(default_factory=lambda: Sites({}, {}, {}, "relevance", 0), repr=False)
    decoder_tokens: list[str] | None = None
    decoder_ids: list[int] | None = None
    decoder_relevance: Any = None
    picture: Any = None
    patch: tuple[int, int] | None = None
    fingerprint: Callable[[], str] = field(default=lambda: "", repr=False)
    """Of the checkpoint: a hash of all its bytes, so it is formed only when it is asked for."""

    @property
    def provenance(self) -> dict[str, str]:
        """What this was computed by: versions, model, dtype, and the checkpoint's fingerprint."""
        return {"fingerprint": self.fingerprint()} | self.about

    @property
    def what(self) -> str:
        """The explained quantity in words."""
        if self.against is not None:
            return f"logit of {self.target!r} minus logit of {self.against!r}"
        return f"{self.seed} of {self.target!r}"

    @property
    def patches(self) -> Any:
        """The relevance of each patch of a picture, in rows and columns; pixels beyond the last
        whole patch are in none.
        """
        if self.patch is None:
            raise ReflError("the input is no picture: it has tokens and no patches")
        (height, width), r = self.patch, self.relevance
        rows, columns = r.shape[0] // height, r.shape[1] // width
        return (
            r[: rows * height, : columns * width]
            .reshape(rows, height, columns, width)
            .sum(axis=(1, 3))
        )

    def __getitem__(self, site: str) -> Any:
        """Relevance at a site. Raises ReflError for a site that was not kept or does not exist."""
        name = self.sites.canonical(site)
        propagated = self.sites.one(self.sites.propagated[name])
        return (
            propagated * self.activation(site)
            if self.sites.formulation == "gradient_x_input"
            else propagated
        )

    def __iter__(self) -> Iterator[str]:
        """The kept sites, from the output down."""
        return iter(self.sites.activations)

    def activation(self, site: str) -> Any:
        """What the forward pass computed at a site."""
        return self.sites.one(self.sites.activations[self.sites.canonical(site)])

    def gradient(self, site: str) -> Any:
        """The g of R = x g at a site; only for composites that carry it."""
        if self.sites.formulation != "gradient_x_input":
            raise ReflError(
                f"method {self.composite.name} is in relevance form, not gradients: take "
                "one that does, such as attnlrp-gradient"
            )
        return self.sites.one(self.sites.propagated[self.sites.canonical(site)])

    def experts(self) -> dict[str, float]:
        """Module path of each expert that ran -> the relevance it propagated, in the order of the
        net: its output times its gate weight.
        """
        return {
            site: float(amount[0])
            for site, amount in sorted(self.ledger.experts.items(), key=_numbered)
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays of the sites, as plain numbers and strings."""
        return {
            "format": ORACLE_FORMAT,
            "about": self.provenance,
            "method": self.composite.as_dict(),
            "tokens": self.tokens,
            "input_ids": self.input_ids,
            "relevance": np.asarray(self.relevance).tolist(),
            "target": self.target,
            "target_id": self.target_id,
            "against": self.against,
            "seed": self.seed,
            "explained": self.explained,
            "logit": self.logit,
            "probability": None if self.seed == "activation" else self.probability,
            "candidates": [vars(c) for c in self.candidates],
            "ledger": self.ledger.as_dict(),
        } | self._decoder_dict()

    def _decoder_dict(self) -> dict[str, Any]:
        if self.decoder_tokens is None:
            return {}
        return {
            "decoder_tokens": self.decoder_tokens,
            "decoder_ids": self.decoder_ids,
            "decoder_relevance": [float(r) for r in self.decoder_relevance],
        }

    def save(self, path: str | Path) -> None:
        """The oracle file: one safetensors file with `input_ids`, `relevance` (and `decoder_ids`,
        `decoder_relevance`), `activation/<site>`, `relevance/<site>` and, where it is propagated,
        `gradient/<site>`; metadata as JSON strings, the `order` of sites from the output down among
        them. Raises ReflError where the file cannot be written.
        """
        from refl.io.safetensors import write_safetensors

        arrays: dict[str, Any] = {
            "input_ids": np.asarray(self.input_ids, dtype=np.int64),
            "relevance": np.asarray(self.relevance),
        }
        if self.picture is not None:
            arrays["picture"] = self.picture
        if self.decoder_ids is not None:
            arrays |= {
                "decoder_ids": np.asarray(self.decoder_ids, dtype=np.int64),
                "decoder_relevance": np.asarray(self.decoder_relevance),
            }
        for site in self:
            arrays[f"activation/{site}"] = self.activation(site)
            arrays[f"relevance/{site}"] = self[site]
            if self.sites.formulation == "gradient_x_input":
                arrays[f"gradient/{site}"] = self.gradient(site)
        metadata = {
            key: json.dumps(value) for key, value in self.as_dict().items() if key not in arrays
        }
        metadata |= {
            "aliases": json.dumps(self.sites.aliases),
            "patch": json.dumps(self.patch),
            "order": json.dumps(list(self)),
        }
        write_safetensors(path, arrays, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """An oracle file as it was saved: every number, site and entry of the conservation ledger.
        Raises ReflError for a file that is none.
        """
        from refl.io.safetensors import read_safetensors

        arrays, metadata = read_safetensors(path)
        try:
            said = {key: json.loads(value) for key, value in metadata.items()}
            if said["format"] != ORACLE_FORMAT:
                raise ReflError(
                    f"{path} is an oracle file of format {said['format']}, this refl reads "
                    f"format {ORACLE_FORMAT}"
                )
            return cls(**_saved(said, arrays))
        except (KeyError, TypeError, ValueError, AttributeError) as reason:
            raise ReflError(
                f"{path} is no oracle file of refl: {type(reason).__name__} {reason}"
            ) from reason


_PLAIN = ("tokens", "target", "target_id", "logit", "against", "seed", "explained", "about")


def _saved(said: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """The fields of an Explanation from an oracle file's metadata and arrays."""
    composite = from_saved(said["method"])
    propagated = _under(
        "gradient/" if composite.formulation == "gradient_x_input" else "relevance/", arrays
    )
    return {key: said[key] for key in _PLAIN} | {
        "input_ids": [int(i) for i in arrays["input_ids"]],
        "relevance": arrays["relevance"],
        "probability": float("nan") if said["probability"] is None else said["probability"],
        "candidates": [Candidate(**c) for c in said["candidates"]],
        "composite": composite,
        "ledger": Ledger.from_dict(said["ledger"]),
        "sites": Sites(
            propagated,
            _from_the_output(_under("activation/", arrays), said),
            said["aliases"],
            composite.formulation,
            0,
        ),
        "decoder_tokens": said.get("decoder_tokens"),
        "decoder_ids": [int(i) for i in arrays["decoder_ids"]] if "decoder_ids" in arrays else None,
        "decoder_relevance": arrays.get("decoder_relevance"),
        "picture": arrays.get("picture"),
        "patch": None if said["patch"] is None else tuple(said["patch"]),
    }


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a group, with a batch axis of one again."""
    return {
        name.removeprefix(prefix): array[None]
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _from_the_output(activations: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """In the order that the file says, which sorts its arrays by name."""
    return {
        site: activations[site] for site in said.get("order", []) if site in activations
    } | activations


def _numbered(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """A key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]
