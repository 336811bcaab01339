"""Every architecture with all that is fast at once, on texts of a few tokens: attention by tiles
and in parts, rows in pieces, light activations formed again, memory used again. The same relevance
and ledger as the recorded operations, each in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentions import in_form
from surrogate_truth import close, text
from threadpoolctl import threadpool_limits

from refl import buffers, pieces, trace
from refl.explanation import Explanation
from refl.model import Model
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import ARCHITECTURES, random_model

CONFIGS = ARCHITECTURES | {
    "qwen3, windows": ARCHITECTURES["qwen3"] | {"max_window_layers": 0},
    "llama, one head for all": ARCHITECTURES["llama"] | {"num_key_value_heads": 1},
    "albert, classes": ARCHITECTURES["albert"]
    | {"architectures": ["AlbertForSequenceClassification"]},
}


@pytest.fixture
def fast(request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """A patch under which everything is fast, attention in the form that is asked for; to be undone
    for what is not.
    """
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(2, user_api="blas"):
        in_form(patch, request.param, 3, 4)
        patch.setattr(pieces, "LARGE", 1)
        patch.setattr(pieces, "PIECE", 64)
        patch.setattr(trace, "HEAVY", 0)
        patch.setattr(buffers, "LEAST", 1)
        yield patch


def inputs(model: Model) -> Any:
    if model.takes_images:
        shape = (2, model.config.num_channels, *model.config.image)
        return np.random.default_rng(0).standard_normal(shape)
    return [text(model, n, seed=n) for n in (9, 6, 2)]


def masked(config: dict[str, Any]) -> bool:
    """A masked language model, which has to be told the place to look at."""
    return "MaskedLM" in str(config.get("architectures"))


def same_account(found: Explanation, plain: Explanation, bound: float) -> None:
    """All sites and numbers of the ledger. A mask that hides nothing from some queries is none for
    a part of them: the mask's zero may be missing.
    """
    entries = {entry.site: entry for entry in plain.ledger}
    assert {entry.site for entry in found.ledger} == entries.keys()
    for entry in found.ledger:
        wanted = entries[entry.site]
        assert (entry.operation, entry.rule) == (wanted.operation, wanted.rule)
        assert abs(entry.received - wanted.received) <= bound, entry.site
        for numbers, others in (
            (entry.passed, wanted.passed),
            (entry.absorbed, wanted.absorbed),
        ):
            assert numbers.keys() - {"mask"} == others.keys() - {"mask"}, entry.site
            assert all(abs(numbers.get(n, 0) - others[n]) <= bound for n in others), entry.site


SOME = ("gemma2", "llama", "t5", "vit")
CASES = [
    *(("tiles", name, "float64") for name in CONFIGS),
    *(("tiles", name, "float32") for name in SOME),
    *(("parts", name, "float64") for name in SOME),
]


@pytest.mark.parametrize(("fast", "name", "dtype"), CASES, indirect=["fast"])
def test_all_that_is_fast(name: str, dtype: str, fast: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIGS[name], 7, dtype)
    given, where = inputs(model), {"position": 1} if masked(CONFIGS[name]) else {}
    methods = ["attnlrp", "attnlrp-gradient"]
    methods += ["cp-lrp", "input-x-gradient"] if name in SOME else []
    found = {method: model.explain(given, method, keep=(), **where) for method in methods}
    fast.undo()
    for method, explanations in found.items():
        wanted = model.explain(given, method, keep="*", audit=True, **where)
        for e, p in zip(explanations, wanted, strict=True):
            assert e.relevance.dtype == p.relevance.dtype
            assert e.target_id == p.target_id
            close(e.relevance, p.relevance, rounding_bound(p))
            same_account(e, p, rounding_bound(p))
