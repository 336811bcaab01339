"""Heads: relevance against the surrogate's gradient at every operation, the conservation ledger,
batches, the folder; which head a file has; what is refused.

(What heads compute is held against transformers in tests/peers/test_heads.py, targets of answers
and features in tests/refl/test_targets.py.)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of
from surrogate_truth import EXACT, Truth, close, u

import refl
from refl.errors import ReflError
from refl.model import Model, architecture
from refl.nets import heads
from refl.nets.batch import Batch
from refl.nets.config import parse
from refl.rules.published import METHODS
from refl.verification.identities.catalogue import verify
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.model_under_test import model_under_test
from refl.verification.random_models import (
    ALBERT,
    BERT,
    GEMMA2,
    GPT2,
    LLAMA,
    MIXTRAL,
    QWEN3_MOE,
    ROBERTA,
    VIT,
    random_model,
)

CLASSES = {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}
IDS = [3, 5, 3]


def headed(config: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    labels = CLASSES if name.endswith("Classification") else {}
    return config | labels | {"architectures": [name]} | more


HEADS: dict[str, dict[str, Any]] = {
    "llama-class": headed(LLAMA, "LlamaForSequenceClassification", pad_token_id=7),
    "llama-token-class": headed(LLAMA, "LlamaForTokenClassification"),
    "llama-answer-span": headed(LLAMA, "LlamaForQuestionAnswering"),
    "gpt2-token-class": headed(GPT2, "GPT2ForTokenClassification"),
    "gpt2-answer-span": headed(GPT2, "GPT2ForQuestionAnswering"),
    "gemma2-token-class": headed(GEMMA2, "Gemma2ForTokenClassification"),
    "mixtral-answer-span": headed(MIXTRAL, "MixtralForQuestionAnswering"),
    "qwen3_moe-answer-span": headed(QWEN3_MOE, "Qwen3MoeForQuestionAnswering"),
    "bert-token-class": headed(BERT, "BertForTokenClassification"),
    "bert-answer-span": headed(BERT, "BertForQuestionAnswering"),
    "roberta-token-class": headed(ROBERTA, "RobertaForTokenClassification"),
    "roberta-answer-span": headed(ROBERTA, "RobertaForQuestionAnswering"),
    "albert-token-class": headed(ALBERT, "AlbertForTokenClassification"),
    "albert-answer-span": headed(ALBERT, "AlbertForQuestionAnswering"),
    "bert-features": headed(BERT, "BertModel", add_pooling_layer=False),
    "vit-features": headed(VIT, "ViTModel", add_pooling_layer=False),
}
every_head = pytest.mark.parametrize("name", HEADS)


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model(HEADS[name], 11, dtype)


def item(model: Model) -> Any:
    if model.takes_images:
        size = (model.config.num_channels, *model.config.image)
        return np.random.default_rng(1).standard_normal(size)
    return IDS


def where(model: Model) -> dict[str, Any]:
    """Of a class of a token, and of features, which token's."""
    return {"position": 1} if model.task in ("token-class", "features") else {}


def asked(model: Model) -> tuple[Any, Any]:
    """What is explained, and the logits' entries in it, those of all tokens behind each other."""
    if model.task == "answer-span":
        entries = np.zeros(2 * len(IDS))
        entries[2 * 1], entries[2 * 2 + 1] = 1, 1
        return (1, 2), entries
    if model.gives_features:
        return refl.coordinate(5), 5
    return (2, 2)


# -- relevance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@every_head
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every operation's output, in every block; of an answer that of start and end together."""
    model = net(name)
    target, entries = asked(model)
    truth = Truth(model, item(model), **where(model))
    truth.target = entries
    how = where(model) | {"target": target}
    assert truth.deviation(method, lambda site: True, **how) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_head
def test_every_site_balances_and_the_account_closes(name: str, dtype: str) -> None:
    model = net(name, dtype)
    for method in METHODS.keys() - {"attnlrp-vit-box"}:
        e = model.explain(
            item(model), method, target=asked(model)[0], audit=True, keep=(), **where(model)
        )
        for entry in e.ledger:
            scale = entry.rounding_scale
            assert abs(entry.conservation_error) <= 8 * u(dtype) * scale, f"{method}: {entry.site}"
        assert abs(e.ledger.conservation_error) <= rounding_bound(e), method
        if method == "attnlrp":
            assert e.explained == pytest.approx(e.logit, rel=1e-5 if dtype == "float32" else 1e-12)


@every_head
def test_a_padded_batch_is_its_members(name: str) -> None:
    """And the best answer of a short text is none of its padding."""
    model = net(name)
    items: list[Any] = [[3, 5, 2, 5, 7, 9, 4], [4], [9, 2, 6]]
    items = [item(model), -item(model)] if model.takes_images else items
    how: dict[str, Any] = {"position": -1} if where(model) and not model.takes_images else {}
    if model.gives_features:
        how["target"] = refl.coordinate(2)
    together = model.explain(items, "attnlrp", audit=True, keep=(), **how)
    for one, e in zip(items, together, strict=True):
        alone = model.explain(one, "attnlrp", audit=True, keep=(), **how)
        assert e.what == alone.what
        close(e.relevance, alone.relevance, rounding_bound(alone))


@every_head
def test_a_folder_is_loaded_as_what_it_is(tmp_path: Path, name: str) -> None:
    """Also where config.json names no class: the tensors show it, but for a classifier of tokens
    beside one of texts, which BERT and ALBERT store under one name.
    """
    model = net(name, "float32")
    folder = checkpoint_of(tmp_path, HEADS[name])
    loaded = refl.load(folder)
    assert loaded.task == model.task
    assert [s for s in loaded.sites() if ".experts." not in s] == [
        s for s in model.sites() if ".experts." not in s
    ]
    if name not in ("bert-token-class", "albert-token-class"):
        assert refl.load(folder, ignore=["architectures"]).task == model.task


# -- which token classifies a text -----------------------------------------------------------------

PAD = 7
LAST: list[tuple[list[int], list[bool] | None, int | None, int]] = [
    ([5, 6, PAD, PAD], None, PAD, 1),
    ([PAD, PAD, 5, 6], None, PAD, 3),
    ([5, PAD, 6, PAD], None, PAD, 2),
    ([PAD, PAD, PAD], None, PAD, 0),
    ([PAD], None, PAD, 0),
    ([5, 6, PAD], None, None, 2),
    ([5, 6, PAD], None, -1, 2),
    ([5, PAD, 0, 0], [True, True, False, False], PAD, 0),
    ([5, PAD, 0, 0], [True, True, False, False], None, 1),
    ([0, 0, 5, 6], [False, False, True, True], 0, 3),
]


@pytest.mark.parametrize(("ids", "mask", "pad", "last"), LAST)
def test_the_last_token_that_is_no_padding(
    ids: list[int], mask: list[bool] | None, pad: int | None, last: int
) -> None:
    """By the id, as in transformers; what refl has padded is padding by its mask."""
    batch = Batch(np.asarray([ids]), unpadded=None if mask is None else np.asarray([mask]))
    assert heads.last_tokens(batch, pad) == (last,)


# -- where modules lie, and what is refused --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "base"),
    [("llama", "transformer"), ("qwen3_moe", "transformer"), ("mixtral", "model")],
)
def test_a_finder_of_answers_calls_its_net_as_transformers_does(name: str, base: str) -> None:
    sites = net(f"{name}-answer-span").sites()
    assert f"{base}.layers.1" in sites and "qa_outputs" in sites
    assert not any(site.startswith("lm_head") for site in sites)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (headed(GEMMA2, "Gemma2ForQuestionAnswering"), "Gemma2ForQuestionAnswering"),
    (headed(BERT, "BertForQuestionAnswering") | CLASSES, "counts 3 labels"),
    (headed(BERT, "BertForNextSentencePrediction"), "BertForNextSentencePrediction"),
    (headed(GPT2, "GPT2DoubleHeadsModel"), "GPT2DoubleHeadsModel"),
]


@pytest.mark.parametrize(("config", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ReflError, match=said):
        parse(architecture(config).Config, config)


def test_which_token_is_asked_where_there_are_several() -> None:
    model = net("bert-token-class")
    with pytest.raises(ReflError, match="say which token's with position="):
        model.explain(IDS)
    assert model.explain([4]).position == 0
    e = model.explain(IDS, position=-2, contrast=("maybe", 0))
    assert (e.position, e.what) == (1, "logit of 'maybe' minus logit of 'no'")
    p = model.explain(IDS, position=1, seed="log-probability", target="yes")
    z = model.logits(IDS)[1]
    assert p.probability == pytest.approx(np.exp(z[1]) / np.exp(z).sum(), rel=1e-12)


@pytest.mark.parametrize("name", ["bert-token-class", "llama-answer-span"])
def test_every_identity_holds(name: str) -> None:
    """Of the largest output of the first token."""
    found = list(verify(model_under_test(net(name), [3, 1, 5])))
    assert [row.identity for row in found if not row.holds] == []
