"""DecompX: what each token brings forwards is its CP-LRP relevance, on every net and for every
seed; and what a token brings alone through the frozen surrogate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refl.edits import Edit
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.verification.definitions import surrogate
from refl.verification.random_models import (
    ARCHITECTURES,
    BERT,
    FLAN,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    moved,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5, 9, 2]
CLASSIFIERS = {
    "bert-class": BERT | {"architectures": ["BertForSequenceClassification"]},
    "gpt2-class": GPT2 | {"architectures": ["GPT2ForSequenceClassification"], "pad_token_id": 0},
}
NETS = ARCHITECTURES | CLASSIFIERS | {"flan": T5 | FLAN}


def both(config: dict[str, Any], **asked: Any) -> tuple[Explanation, Explanation]:
    """By the sweep, and forwards."""
    model, kind = random_model(config, seed=3), config["model_type"]
    if model.takes_images:
        item: Any = np.random.default_rng(0).normal(size=(3, 8, 12))
    else:
        item = IDS
    if model.task == "masked-token":
        asked |= {"position": 2}
    if kind == "t5":
        asked |= {"decoder": [0, 4, 7]}
    swept, forwards = (model.explain(item, method=m, **asked) for m in ("cp-lrp", "decompx"))
    return swept, forwards


def scores(e: Explanation) -> Any:
    read = e.patches.ravel() if e.picture is not None else e.relevance
    return read if e.decoder_relevance is None else np.concatenate([read, e.decoder_relevance])


def compare(swept: Explanation, forwards: Explanation) -> None:
    size = abs(scores(swept)).sum() + sum(map(abs, swept.ledger.absorbed.values()))
    assert abs(scores(forwards) - scores(swept)).max() <= 1e-10 * size
    for cause in swept.ledger.absorbed | forwards.ledger.absorbed:
        parts = (e.ledger.absorbed.get(cause, 0.0) for e in (swept, forwards))
        assert abs(np.subtract(*parts)) <= 1e-10 * size, cause
    assert abs(forwards.ledger.conservation_error) <= 1e-12 * size
    assert forwards.explained == swept.explained


@pytest.mark.parametrize("net", NETS)
def test_what_tokens_bring_is_cp_lrp(net: str) -> None:
    compare(*both(NETS[net]))


@pytest.mark.parametrize("method", ["decompx", "pa-lrp", "voita-2021"])
def test_a_logit_of_zero_in_a_probability(method: str) -> None:
    """No gradient times 0 is its softmax-weighted relevance: it is part of what is explained, as in
    the sweep, and in the ledger.
    """
    model = random_model(LLAMA, seed=3)
    w = model.weights["lm_head.weight"].copy()
    w[5] = 0.0
    model = with_weights(model, **{"lm_head.weight": w})
    asked: dict[str, Any] = {"target": 2, "seed": "probability"}
    swept, found = (model.explain(IDS, m, **asked) for m in ("cp-lrp", method))
    size = sum(map(abs, found.ledger.absorbed.values())) + abs(found.ledger.tokens)
    assert abs(found.explained - swept.explained) <= 1e-13 * size
    assert abs(found.ledger.conservation_error) <= 1e-11 * size
    lost = found.ledger.absorbed.get("one_sign" if method == "voita-2021" else "stabilizer", 0.0)
    assert abs(lost) > 1e-3 * size


@pytest.mark.parametrize(
    "asked",
    [
        {"contrast": (3, 5)},
        {"seed": "log-probability"},
        {"seed": "probability"},
        {"position": 3},
        {"at": ("transformer.h.1.mlp.act", (2, 7))},
        {"edits": {"transformer.h.0.mlp": Edit(factor=0.5, amount=0.25)}},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_of_any_output(asked: dict[str, Any]) -> None:
    compare(*both(GPT2, **asked))


@pytest.mark.parametrize("config", [GPT2, MIXTRAL], ids=["gpt2", "mixtral"])
def test_each_token_alone_through_the_surrogate(config: dict[str, Any]) -> None:
    """f(token i alone) - f(nothing), with everything frozen that CP-LRP holds constant."""
    model = random_model(config, seed=5)
    e = model.explain(IDS, method="decompx", target=6)
    around, _ = surrogate.record(model, IDS)
    (site,) = (r.output.site for r in around.values() if r.role == "tokens")
    keep = np.eye(len(IDS) + 1)[:, : len(IDS), None]
    z = surrogate.logits(model, IDS, around, variant="cp-lrp", edits={site: lambda x: keep * x})[
        :, 6
    ]
    assert abs(e.relevance - (z[:-1] - z[-1])).max() <= 1e-12 * abs(e.relevance).sum()


def test_any_number_of_tokens_goes_together() -> None:
    model, ids = random_model(LLAMA, seed=4), [n % 17 for n in range(70)]
    one, some, all_ = (
        model.explain(ids, method="decompx", options={"together": n}).relevance for n in (1, 9, 99)
    )
    assert abs(one - some).max() <= 1e-13 and abs(one - all_).max() <= 1e-13
    assert abs(one - model.explain(ids, method="cp-lrp").relevance).max() <= 1e-12


def test_one_token() -> None:
    e = random_model(LLAMA, seed=4).explain([3], method="decompx")
    assert abs(e.relevance - e.explained).max() <= 1e-13 and not e.ledger.absorbed


def test_pixels_of_a_patch_have_equal_parts() -> None:
    _, e = both(VIT)
    assert e.relevance.shape == (8, 12)
    patches = e.relevance.reshape(2, 4, 4, 3)
    assert (patches == patches[:, :1, :, :1]).all()


@pytest.mark.parametrize("method", ["decompx", "alti-logit", "pa-lrp"])
def test_in_another_array_library(method: str) -> None:
    strict = pytest.importorskip("array_api_strict")
    model = random_model(GPT2, seed=3)
    elsewhere = moved(model, lambda array: strict.asarray(np.array(array)))
    here, there = (m.explain(IDS, method=method).relevance for m in (model, elsewhere))
    assert abs(here - there).max() <= 1e-14 * abs(here).sum()


def test_refusals() -> None:
    model = random_model(LLAMA, seed=4)
    with pytest.raises(ReflError, match="decompx reads every operation of the run, of which"):
        model.explain(IDS, method="decompx", recompute=True)
    with pytest.raises(ReflError, match="together"):
        model.explain(IDS, method="decompx", options={"together": 0})
