"""What is special in DistilBERT and ModernBERT: windows of two sides, options that are refused,
heads by their tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of
from surrogate_truth import Truth

import refl
from refl.mask import Mask
from refl.model import Model
from refl.nets import modernbert
from refl.nets.config import parse
from refl.trace import Trace
from refl.verification.random_models import NEWER, random_model

DISTILBERT, MODERNBERT = NEWER["distilbert"], NEWER["modernbert"]


# -- windows of two sides --------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0, 1, 2, 9])
def test_a_mask_of_two_sides(reach: int) -> None:
    """|i - j| <= reach, whole and in every part, by a plain loop; what no query of some rows sees
    is not among their keys.
    """
    length, mask = 7, Mask(np.zeros((1, 7)), 7, 7, reach=reach)
    wanted = np.array([[abs(i - j) <= reach for i in range(length)] for j in range(length)])
    assert np.array_equal(mask.array[0, 0], wanted)
    for start in range(length):
        for stop in range(start + 1, length + 1):
            rows, seen = slice(start, stop), wanted[start:stop].any(axis=0)
            columns = mask.visible(rows)
            assert np.flatnonzero(seen).tolist() == list(range(length))[columns]
            for keys in (columns, slice(0, length), slice(start, stop)):
                part = mask.part(rows, keys)
                assert np.array_equal(
                    np.ones_like(wanted)[rows, keys] if part is None else part[0, 0],
                    wanted[rows, keys],
                )


def test_the_first_block_and_every_nth_after_it_see_all() -> None:
    """And no other token than those of the window has a probability."""
    model = random_model(MODERNBERT | {"num_hidden_layers": 4}, 3)
    t = Trace(model.weights)
    model.forward(t, model.batch([[3, 1, 4, 1, 5, 9, 2, 6]], 0))
    for i, window in enumerate((None, 2, None, 2)):
        p = t.values[f"model.layers.{i}.attn.probabilities"].array[0]
        for j in range(8):
            for k in range(8):
                assert (p[:, j, k] != 0).all() == (window is None or abs(j - k) <= window)


@pytest.mark.parametrize(
    ("every", "blocks", "windows"),
    [(3, 5, (None, 8, 8, None, 8)), (1, 3, (None,) * 3), (7, 3, (None, 8, 8))],
)
def test_windows_of_blocks(every: int, blocks: int, windows: tuple[int | None, ...]) -> None:
    options = {
        "global_attn_every_n_layers": every,
        "num_hidden_layers": blocks,
        "local_attention": 8,
    }
    assert parse(modernbert.Config, MODERNBERT | options).windows == windows


def test_local_positions_are_the_global_ones_where_there_is_no_theta_of_their_own() -> None:
    c = parse(modernbert.Config, MODERNBERT | {"local_rope_theta": None})
    assert c.local_rope == c.rope != parse(modernbert.Config, MODERNBERT).local_rope


def test_the_first_block_has_no_norm_in_front_of_attention() -> None:
    names = [name for name, _, _ in modernbert.shapes(parse(modernbert.Config, MODERNBERT))]
    assert "model.layers.1.attn_norm.weight" in names
    assert not any(name.startswith("model.layers.0.attn_norm") for name in names)


# -- config.json -----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    (DISTILBERT | {"activation": "mish"}, "activation 'mish'"),
    (DISTILBERT | {"n_heads": 3}, "dim = 16, which n_heads = 3 does not divide"),
    (DISTILBERT | {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    (DISTILBERT | {"hidden_size": 16}, "hidden_size"),
    (DISTILBERT | {"architectures": ["DistilBertForMultipleChoice"]}, "ForMultipleChoice"),
    (
        DISTILBERT | {"architectures": ["DistilBertForQuestionAnswering"], "num_labels": 3},
        "counts 3 labels",
    ),
    (MODERNBERT | {"classifier_pooling": "max"}, "classifier_pooling = 'max': expected 'cls'"),
    (MODERNBERT | {"hidden_activation": "mish"}, "hidden_activation 'mish'"),
    (MODERNBERT | {"classifier_activation": "mish"}, "classifier_activation 'mish'"),
    (MODERNBERT | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    (MODERNBERT | {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
    (MODERNBERT | {"layer_types": ["full_attention"] * 2}, "layer_types"),
    (MODERNBERT | {"local_attention": 0}, "local_attention"),
    (MODERNBERT | {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    (MODERNBERT | {"num_attention_heads": 3}, "num_attention_heads"),
    (MODERNBERT | {"hidden_size": 12}, "even head_dim"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_is_not_implemented_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(refl.ReflError) as refused:
        random_model(config, 1)
    assert named in str(refused.value) and "\n" not in str(refused.value)


PUBLISHED: dict[str, dict[str, Any]] = {
    "distilbert": {
        "attention_dropout": 0.1,
        "dropout": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": True,
        "tie_weights_": True,
    },
    "modernbert": {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "classifier_dropout": 0.0,
        "cls_token_id": 1,
        "deterministic_flash_attn": False,
        "embedding_dropout": 0.0,
        "gradient_checkpointing": False,
        "initializer_cutoff_factor": 2.0,
        "layer_norm_eps": 1e-5,
        "mlp_dropout": 0.0,
        "position_embedding_type": "absolute",
        "reference_compile": True,
        "repad_logits_with_grad": False,
        "sep_token_id": 2,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": True,
    },
}
"""What published files say beside what the net reads."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_changes_nothing_is_passed_over(kind: str) -> None:
    plain, told = (random_model(NEWER[kind] | more, 3) for more in ({}, PUBLISHED[kind]))
    assert np.array_equal(plain.logits([3, 1, 4]), told.logits([3, 1, 4]))


# -- heads -----------------------------------------------------------------------------------------

HEADS = {
    "ForMaskedLM": "masked-token",
    "ForSequenceClassification": "class",
    "ForTokenClassification": "token-class",
    "ForQuestionAnswering": "answer-span",
    "Model": "features",
}


@pytest.mark.parametrize("end", HEADS)
@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_the_head_is_that_of_the_class(kind: str, end: str) -> None:
    family = {"distilbert": "DistilBert", "modernbert": "ModernBert"}[kind]
    model = random_model(NEWER[kind] | {"architectures": [family + end]}, 3)
    assert model.task == HEADS[end]
    width = {"masked-token": 17, "features": 16}.get(model.task, 2)
    assert model.logits([3, 1, 4]).shape == (1 if model.task == "class" else 3, width)


@pytest.mark.parametrize("end", sorted(HEADS.keys() - {"ForTokenClassification"}))
def test_by_its_tensors_where_the_file_names_no_class(tmp_path: Path, end: str) -> None:
    """A layer of the name `classifier` alone may be of texts or of tokens: that is for the file to
    say.
    """
    config = DISTILBERT | {"architectures": [f"DistilBert{end}"]}
    folder = checkpoint_of(tmp_path, config)
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "architectures"})
    )
    assert refl.load(folder).task == HEADS[end]


def test_a_class_that_is_one_of_several(tmp_path: Path) -> None:
    def loaded(**more: Any) -> Model:
        config = MODERNBERT | {"architectures": ["ModernBertForSequenceClassification"]} | more
        return random_model(config, 3)

    first, mean = loaded(), loaded(classifier_pooling="mean")
    assert not np.array_equal(first.logits([3, 1, 4]), mean.logits([3, 1, 4]))
    assert np.array_equal(first.logits([3]), mean.logits([3]))


@pytest.mark.parametrize("method", ["attnlrp-gradient", "cp-lrp"])
@pytest.mark.parametrize("end", ["ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("family", ["DistilBert", "ModernBert"])
def test_relevance_of_heads_on_every_token(family: str, end: str, method: str) -> None:
    """Activation times the surrogate's gradient at every operation: of one token's class, of an
    answer's start and end together.
    """
    model = random_model(NEWER[family.lower()] | {"architectures": [family + end]}, 3)
    where: dict[str, Any] = {} if model.task == "answer-span" else {"position": 2}
    truth = Truth(model, [3, 1, 4, 1], **where)
    truth.target = 1 if where else np.isin(np.arange(8), (2 * 1, 2 * 3 + 1)).astype(float)
    how = where | {"target": 1 if where else (1, 3)}
    assert truth.deviation(method, lambda site: True, **how) < 1e-9
