"""The forward pass behind an oracle file, run again and swept as often as one likes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refl.arrays import asnumpy
from refl.explainer import with_pixel_bounds
from refl.io.images import Image
from refl.io.precision import unit_roundoff
from refl.model import Model
from refl.question import started
from refl.rules.composites import Composite
from refl.seeds import AnySeed, Seed
from refl.sweep import Sweep
from refl.targets import Span, Special
from refl.trace import Trace, Value
from refl.verification.compare.rounding import (
    DIVIDED,
    Divides,
    SiteError,
    activation_error,
)


@dataclass(frozen=True)
class ExplainedOutput:
    """What was explained: the input, and the output's number, or what else was explained."""

    item: Any
    target: int | Special
    against: int | None = None
    seed: str = "logit"
    position: int | None = None
    decoder: Sequence[int] | None = None

    @property
    def every(self) -> bool:
        """Whether it is the output of no one token."""
        return not isinstance(self.target, int) and (
            isinstance(self.target, Span) or self.target.mean
        )


class RecordedForward:
    """One recorded forward pass, swept as often as one likes."""

    def __init__(self, model: Model, output: ExplainedOutput) -> None:
        self.model = model
        self.trace = Trace(model.weights)
        ids = [model.read(output.item)]
        decoder_prefix = model.decoder_prefixes(
            1, None if output.decoder is None else list(output.decoder)
        )
        self.logits: Value = model.forward(
            self.trace,
            model.batch(ids, output.position, output.every, decoder_prefix=decoder_prefix),
        )
        self.rows = asnumpy(self.logits.array).reshape(-1)
        self.seed = self._seed(output)

    def _seed(self, output: ExplainedOutput) -> AnySeed:
        if isinstance(output.target, int):
            return Seed(output.seed, output.target, output.against)
        rows = int(self.logits.array.shape[1])
        tokens = 1 if self.model.takes_images else len(output.item)
        return output.target.seed(output.seed, self.rows, rows, tokens)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Every name of a value -> its site."""
        return {name: value.site for value in self.trace.values.values() for name in value.names}

    @functools.cached_property
    def activations(self) -> dict[str, Any]:
        """Without the batch axis."""
        return {
            record.output.site: asnumpy(record.output.array)[0] for record in self.trace.records
        }

    @property
    def explained(self) -> float:
        return float(self.seed.relevance(self.rows).sum())

    def divides(self, composite: Composite) -> Divides:
        """Where a composite divides relevance by an activation."""
        if composite.formulation == "gradient_x_input":
            return Divides(())
        return Divides(
            {r.output.site for r in self.trace.records if r.operation in DIVIDED},
            least_eps(composite),
        )

    def relevance(
        self, composite: Composite
    ) -> dict[str, Any]:  # site -> array without the batch axis, from the output down
        """Raises ReflError where the composite has no rule for an operation."""
        if self.model.takes_images:
            composite = with_pixel_bounds(
                composite, self.model.preparation, self.model.config.num_channels
            )
        start = started(composite, self.seed, self.rows)
        swept = Sweep(composite, keep=lambda names: True).run(
            self.trace, self.logits, start.reshape(self.logits.array.shape)
        )
        propagated = {site: asnumpy(c)[0] for site, c in swept.propagated.items()}
        if composite.formulation == "relevance":
            return propagated
        return {site: c * asnumpy(swept.activations[site])[0] for site, c in propagated.items()}


def least_eps(composite: Composite) -> float:
    """The least stabilizer of a composite; 0 where a rule has none."""
    options = [
        line["options"] for line in composite.as_dict()["rules"] if "stabilizer" in line["options"]
    ]
    return min(
        (0.0 if o["stabilizer"] == "none" else float(o["eps"]) for o in options), default=0.0
    )


def picture_of(activations: Mapping[str, Any], picture: Any) -> Image | None:
    """What a net saw, from the activation of its pixels."""
    pixels = next(
        (x for site, x in activations.items() if site.rpartition(".")[2] == "pixel_values"), None
    )
    return None if pixels is None else Image(pixels, picture)


def same_forward(forward: RecordedForward, activations: Mapping[str, Any]) -> SiteError | None:
    """The first site, in forward order, where refl's activations are others than these;
    None where there is none.
    """
    ours, names = forward.activations, forward.names
    theirs = {names[name]: x for name, x in activations.items() if names.get(name) in ours}
    for site, x in ours.items():
        if site in theirs and x.shape == theirs[site].shape:
            roundoff = max(unit_roundoff(x), unit_roundoff(theirs[site]))
            error = activation_error(site, x, theirs[site], roundoff)
            if error.parts:
                return error
    return None
