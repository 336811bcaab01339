"""What every net that came after the first seventeen has to show, on random models of each: the
surrogate's gradient at every operation, the conservation ledger, batches, recomputation, every
backend, its parts by their names, a folder written and loaded.

(What they compute is held against transformers in tests/peers. A configuration of a net is a line
of VARIANTS; what is special in a net has a test in the file of its family.)
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend
from checkpoint_folders import checkpoint_of
from surrogate_truth import EXACT, Truth, close, u

import refl
from refl.model import Model
from refl.rules.published import METHODS
from refl.verification.identities.catalogue import verify
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.model_under_test import model_under_test
from refl.verification.random_models import (
    CLIP,
    CLIP_TEXT,
    CLIP_VISION,
    DINOV2,
    MAMBA,
    NEWER,
    REGISTERS,
    moved,
    random_model,
)

_BIASES = ("attention_bias", "classifier_bias", "mlp_bias", "norm_bias")

VARIANTS: dict[str, dict[str, Any]] = NEWER | {
    "mamba, biases": MAMBA
    | {"use_bias": True, "use_conv_bias": True, "conv_kernel": 4, "tie_word_embeddings": False},
    # newer decoders
    "phi3, longrope, classes": NEWER["phi3"]
    | {
        "architectures": ["Phi3ForSequenceClassification"],
        "original_max_position_embeddings": 4,
        "rope_scaling": {"type": "longrope", "short_factor": [1, 2], "long_factor": [3, 4]},
        "sliding_window": None,
    },
    "granite, biases, tied": NEWER["granite"]
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "cohere, biases, one key head": NEWER["cohere"]
    | {"attention_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "gpt_neox, sequential, classes": NEWER["gpt_neox"]
    | {"architectures": ["GPTNeoXForSequenceClassification"], "use_parallel_residual": False},
    # newer encoders
    "distilbert, classes": NEWER["distilbert"]
    | {"architectures": ["DistilBertForSequenceClassification"], "activation": "relu"},
    "distilbert, answers": NEWER["distilbert"]
    | {"architectures": ["DistilBertForQuestionAnswering"]},
    "modernbert, tokens": NEWER["modernbert"]
    | {"architectures": ["ModernBertForTokenClassification"], "num_labels": 3},
    "modernbert, biases, mean": NEWER["modernbert"]
    | {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean"}
    | dict.fromkeys(_BIASES, True),
    # pictures
    "dinov2, registers, gated": DINOV2 | REGISTERS,
    "dinov2, features": DINOV2 | {"architectures": ["Dinov2Model"], "qkv_bias": False},
    "clip, classes": CLIP | {"architectures": ["CLIPForImageClassification"]},
    "clip_text_model, projected": CLIP_TEXT
    | {"architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 3},
    "clip_vision_model, projected": CLIP_VISION
    | {"architectures": ["CLIPVisionModelWithProjection"]},
}
"""And with other options."""

OF_TOKENS = ("distilbert, answers", "modernbert, tokens")
"""Those with outputs for every token, of which the surrogate explains none: their heads are one
linear layer, on what the other heads are on.
"""

MASK = 0
"""What a net that guesses a token guesses."""

every_net = pytest.mark.parametrize("name", VARIANTS)


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return replace(random_model(VARIANTS[name], 11, dtype), mask_id=MASK)


def item(model: Model, length: int = 5, seed: int = 0) -> Any:
    """Token ids, or the numbers of a picture; of several texts and a picture where these are
    compared.
    """
    random = np.random.default_rng(100 * length + seed)
    if model.takes_features:
        return random.standard_normal(model.config.image)
    if model.takes_images or model.compares:
        image = random.standard_normal((model.config.num_channels, *model.config.image))
        if model.takes_images:
            return image
        texts = (length, 3, 1)
        return [random.integers(1, model.config.vocab_size, n).tolist() for n in texts], image
    ids = [int(i) for i in random.integers(1, model.config.vocab_size, length)]
    return [MASK, *ids[1:]] if model.task == "masked-token" else ids


def asked(model: Model, count: int | None = None) -> dict[str, Any]:
    """What a decoder has said; of so many inputs, or of one. Which of many tokens is classified."""
    if model.task == "token-class":
        return {"position": 0}
    if model.task != "sequence-to-sequence":
        return {}
    return {"decoder": [0, 3, 4] if count is None else [[0, 3, 4]] * count}


# -- relevance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in OF_TOKENS])
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every operation's output, in every block; a factor that is a weight receives nothing."""
    model, how = net(name), asked(net(name))
    truth = Truth(model, item(model), how.get("decoder"))
    constant = {site for site, record in truth.around.items() if record.output.constant}
    assert truth.deviation(method, lambda site: site not in constant) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_net
def test_every_site_balances_and_the_account_closes(name: str, dtype: str) -> None:
    """Site by site within 8 u sum|terms|; the whole within what rounding at all sites can do."""
    model = net(name, dtype)
    for method in METHODS.keys() - {"attnlrp-vit-box"}:  # which asks for the bounds of pixels
        for keep in ("*", ()):
            e = model.explain(item(model, 7), method, keep=keep, audit=True, **asked(model))
            for entry in e.ledger:
                assert abs(entry.conservation_error) <= 8 * u(dtype) * entry.rounding_scale, (
                    f"{method}: {entry.site} ({entry.operation})"
                )
            assert abs(e.ledger.conservation_error) <= rounding_bound(e), method


# -- batches and the faster ways -------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["*", ()])
@every_net
def test_a_padded_batch_is_its_members(name: str, keep: Any) -> None:
    model = net(name)
    items = [item(model, length) for length in (7, 3, 1, 5)]
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        together = model.explain(items, method, keep=keep, audit=True, **asked(model, len(items)))
        for one, e in zip(items, together, strict=True):
            alone = model.explain(one, method, keep=keep, audit=True, **asked(model))
            close(e.relevance, alone.relevance, rounding_bound(alone))


@pytest.mark.parametrize("keep", ["*", ()])
@every_net
def test_recomputing_changes_no_bit(name: str, keep: Any) -> None:
    model = net(name, "float32")
    full, less = (
        model.explain(item(model, 6), keep=keep, recompute=r, **asked(model)) for r in (False, True)
    )
    assert set(full) == set(less)
    assert np.array_equal(full.relevance, less.relevance)
    assert all(np.array_equal(full[site], less[site]) for site in full)
    assert full.ledger.as_dict() == less.ledger.as_dict()


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@every_net
def test_every_backend(name: str, backend: Backend) -> None:
    """Wherever the arrays live, in either dtype: no operation widens what it was given, and the
    relevance is the same.
    """
    for dtype in ("float32", "float64"):
        home = net(name, dtype)
        away = moved(home, backend.place)
        items = [item(home, 5), item(home, 2)]
        for method in ("attnlrp", "cp-lrp"):
            here, there = (
                m.explain(items, method, keep="*", audit=True, **asked(m, 2)) for m in (home, away)
            )
            for a, b in zip(here, there, strict=True):
                assert all(
                    b[site].dtype == b.activation(site).dtype == np.dtype(dtype) for site in b
                )
                close(b.relevance, a.relevance, rounding_bound(a))


@pytest.mark.parametrize("name", sorted(NEWER.keys() - {"clip"}))
def test_every_identity_holds(name: str) -> None:
    """As `refl verify` asks for them; a picture compared with texts has other outputs."""
    model = net(name)
    found = list(verify(model_under_test(model, item(model, 3), **asked(model))))
    assert [row.identity for row in found if not row.holds] == []


# -- its parts, and its folder ---------------------------------------------------------------------


@every_net
def test_every_block_has_its_parts(name: str) -> None:
    """A label for each block; a some neurons that are switched off are missed in the output."""
    model, how = net(name), asked(net(name))
    parts = model.components
    assert parts.blocks and parts.mlps
    some = {f"{mlp.label}.N{n}": refl.off for mlp in parts.mlps for n in range(6)}
    without = model.with_edits(some)
    how |= {"target": ("start", 0) if model.task == "answer-span" else 0}
    before, after = (m.explain(item(model), **how).logit for m in (model, without))
    assert before != after


@every_net
def test_a_folder_is_loaded_as_what_it_is(tmp_path: Path, name: str) -> None:
    """With the numbers of the model it was written from."""
    model = replace(random_model(VARIANTS[name], 3, "float32"), mask_id=MASK)
    loaded = replace(refl.load(checkpoint_of(tmp_path, VARIANTS[name])), mask_id=MASK)
    assert loaded.task == model.task
    how = asked(model)
    here, there = (m.explain(item(model), "cp-lrp", audit=True, **how) for m in (model, loaded))
    close(here.relevance, there.relevance, rounding_bound(here))


@pytest.mark.parametrize("name", NEWER)
def test_an_option_that_nobody_knows_is_refused(tmp_path: Path, name: str) -> None:
    folder = checkpoint_of(tmp_path, NEWER[name])
    (folder / "config.json").write_text(json.dumps(NEWER[name] | {"mystery": 3}))
    with pytest.raises(refl.ReflError, match="mystery"):
        refl.load(folder)
