"""Relevance from the frozen surrogate (`verification/definitions/surrogate.py`), in which no rule
of the engine takes part, and what comparisons of whole nets are measured in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refl.ledger import Ledger
from refl.model import Model
from refl.verification.definitions import surrogate

VARIANT = {
    "attnlrp": "attnlrp",
    "lrp-0": "attnlrp",
    "attnlrp-gradient": "attnlrp",
    "cp-lrp": "cp-lrp",
    "input-x-gradient": "gradient",
}
"""Method -> the surrogate whose gradient it is."""

EXACT = ("lrp-0", "attnlrp-gradient", "cp-lrp", "input-x-gradient")
"""Those without a stabilizer: only rounding is left."""


def is_stage(site: str) -> bool:
    """The embeddings, their sum with the positions, and every block's output."""
    return site.endswith(("embed_tokens", "wte", "drop")) or site.rpartition(".")[2].isdigit()


class Truth:
    """The recorded real run of one text or picture, and activation * surrogate gradient at its
    sites. `decoder`: the ids a decoder has written; `where`: a position, or every token.
    """

    def __init__(
        self, model: Model, ids: Any, decoder: list[int] | None = None, **where: Any
    ) -> None:
        self.model, self.ids, self.decoder, self.where = model, ids, decoder, where
        self.around, self.logits = surrogate.record(model, ids, decoder, **where)
        self.target: Any = int(self.logits.argmax())
        self.known: dict[tuple[str, str], Any] = {}

    def sites(self, wanted: Callable[[str], bool]) -> list[str]:
        return [site for site in self.around if wanted(site)]

    def relevance(self, site: str, variant: str) -> Any:
        if (site, variant) not in self.known:
            how = {"around": self.around, "decoder": self.decoder} | self.where
            g = surrogate.gradient(self.model, self.ids, site, self.target, variant=variant, **how)
            self.known[site, variant] = self.around[site].output.array[0] * g
        return self.known[site, variant]

    def deviation(self, method: str, wanted: Callable[[str], bool] = is_stage, **how: Any) -> float:
        """The largest over the sites of |R - truth| / max |truth|."""
        how = {"target": self.target, "decoder": self.decoder} | how
        e = self.model.explain(self.ids, method, **how)
        return max(
            apart(e[site], self.relevance(site, VARIANT[method])) for site in self.sites(wanted)
        )


def apart(got: Any, truth: Any) -> float:
    assert got.shape == truth.shape and got.dtype == truth.dtype == np.float64
    return float(np.abs(got - truth).max() / (np.abs(truth).max() or 1.0))


def text(model: Model, length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [
        int(i) for i in np.random.default_rng(seed).integers(0, model.config.vocab_size, length)
    ]


def close(got: Any, want: Any, bound: float) -> None:
    """The same shape, and nowhere further apart than `bound`."""
    assert got.shape == want.shape
    worst = float(np.abs(got - want).max(initial=0.0))
    assert worst <= bound, f"{worst:.2e} apart, {bound:.2e} allowed"


def u(dtype: str) -> float:
    return float(np.finfo(dtype).eps) / 2


def turnover(ledger: Ledger) -> float:
    """All that is absorbed: gamma through many layers absorbs and gives
    back more than there is to explain.
    """
    return float(
        sum(np.abs(np.sum(amount)) for entry in ledger for amount in entry.absorbed.values())
    )
