"""T5 and Flan-T5 against transformers' own forward, in float64: every option, both stacks padded,
short and far beyond the farthest bucket.

transformers computes the norm's variance, the softmax and the logarithm of the buckets in float32
whatever the model's dtype is; `wide` lifts those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from transformers_models import random_t5

import refl
from refl.errors import ReflError
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

BOUND = 1e-10
"""Of the largest logit. Both sides round in float64: what is measured stays below 1e-13."""


OPTIONS: dict[str, dict[str, Any]] = {
    "t5": {},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated-silu-tied": {"feed_forward_proj": "gated-silu", "d_kv": 9},
    "gelu-deep-encoder": {"feed_forward_proj": "gelu", "num_layers": 3, "num_decoder_layers": 1},
    "deep-decoder-one-head": {
        "num_layers": 1,
        "num_decoder_layers": 3,
        "num_heads": 1,
        "tie_word_embeddings": False,
    },
    "usual-buckets": {
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-relu",
    },
    "odd-buckets": {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 9},
    "fewest-buckets": {
        "relative_attention_num_buckets": 4,
        "relative_attention_max_distance": 3,
        "layer_norm_epsilon": 1e-2,
    },
    "six-buckets-gated-gelu-new": {
        "relative_attention_num_buckets": 6,
        "feed_forward_proj": "gated-gelu_new",
    },
    "tanh-block-of-one": {"num_layers": 1, "feed_forward_proj": "tanh"},
    "act-named-beside": {"feed_forward_proj": "relu", "dense_act_fn": "silu"},
    "gate-named-beside": {
        "feed_forward_proj": "gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
    },
    "gate-denied-beside": {"feed_forward_proj": "gated-gelu", "is_gated_act": False},
}

LENGTHS = ((1, 1), (2, 1), (13, 2), (1, 5), (41, 33))
"""Tokens of the encoder and of the decoder."""

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(cls: str = "T5ForConditionalGeneration", **options: Any) -> Path:
        random_t5(cls, **options).save_pretrained(tmp_path)
        return tmp_path

    return made


def reference(
    folder: Path,
    ids: Any,
    decoder_ids: Any,
    attention_mask: Any = None,
    decoder_attention_mask: Any = None,
) -> Any:
    """transformers' logits in float64 of the weights as the file has them."""
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    with wide(), torch.no_grad():
        model = transformers.T5ForConditionalGeneration(loaded.config).double()
        model.load_state_dict(loaded.state_dict())
        given = {"attention_mask": attention_mask, "decoder_attention_mask": decoder_attention_mask}
        masks = {
            name: torch.tensor(mask, dtype=torch.int64)
            for name, mask in given.items()
            if mask is not None
        }
        return model.eval()(
            input_ids=torch.tensor(ids),
            decoder_input_ids=torch.tensor(decoder_ids),
            use_cache=False,
            **masks,
        ).logits.numpy()


def draw(length: int, seed: int = 0, vocabulary: int = 29) -> list[int]:
    return np.random.default_rng((length, seed)).integers(0, vocabulary, length).tolist()


def agree(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    deviation = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert deviation < BOUND, f"{deviation:.2e} of the largest logit"


def same_forward(
    folder: Path, lengths: Sequence[tuple[int, int]] = LENGTHS, vocabulary: int = 29
) -> None:
    model = refl.load(folder, dtype="float64")
    for read, written in lengths:
        ids, decoder = draw(read, 0, vocabulary), draw(written, 1, vocabulary)
        agree(model.logits(ids, decoder), reference(folder, [ids], [decoder])[0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(make: Make, options: dict[str, Any]) -> None:
    same_forward(make(**options))


@pytest.mark.parametrize("name", ["t5", "flan", "usual-buckets"])
def test_beyond_the_farthest_bucket(make: Make, name: str) -> None:
    same_forward(make(**OPTIONS[name]), lengths=((150, 140),))


@pytest.mark.parametrize("name", ["t5", "flan", "deep-decoder-one-head"])
def test_batch_padded_on_both_sides(make: Make, name: str) -> None:
    folder = make(**OPTIONS[name])
    texts, written = [draw(5), draw(13), draw(1)], [draw(4, 1), draw(1, 1), draw(7, 1)]

    def padded(items: list[list[int]]) -> tuple[list[list[int]], list[list[bool]]]:
        longest = max(map(len, items))
        return [i + [0] * (longest - len(i)) for i in items], [
            [t < len(i) for t in range(longest)] for i in items
        ]

    (ids, attention_mask), (decoder_ids, decoder_attention_mask) = padded(texts), padded(written)
    theirs = reference(folder, ids, decoder_ids, attention_mask, decoder_attention_mask)
    model = refl.load(folder, dtype="float64")
    _, logits = model.trace(texts, decoder=written)
    agree(
        logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(written)])
    )
    for b, e in enumerate(model.explain(texts, decoder=written, keep=())):
        assert e.relevance.shape == (len(texts[b]),)
        assert e.decoder_relevance.shape == (len(written[b]),)
        assert e.logit == pytest.approx(theirs[b, len(written[b]) - 1].max(), rel=BOUND)


def test_greedy_continuation(make: Make) -> None:
    folder = make(**OPTIONS["flan"])
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    theirs = loaded.generate(
        torch.tensor([draw(9)]), max_new_tokens=12, do_sample=False, num_beams=1
    )[0].tolist()
    assert refl.load(folder).generate(draw(9), 12) == theirs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_dtype(tmp_path: Path, dtype: str) -> None:
    random_t5().to(getattr(torch, dtype)).save_pretrained(tmp_path)
    if dtype == "float64":  # reference() reads float32: the file's own numbers are taken there
        random_t5().save_pretrained(tmp_path / "float32")
        agree(
            refl.load(tmp_path, dtype="float64").logits(draw(13), draw(3)),
            reference(tmp_path / "float32", [draw(13)], [draw(3)])[0],
        )
    else:
        same_forward(tmp_path, lengths=((13, 3),))


def test_bare_model(make: Make) -> None:
    """T5Model's own file has no head: it is refused, and tied where the caller says so."""
    folder = make("T5Model")
    with pytest.raises(ReflError, match="T5Model"):
        refl.load(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": None}
    (folder / "config.json").write_text(json.dumps(config))
    same_forward(folder, lengths=((13, 3),))


def test_real_checkpoint() -> None:
    """Chronos' untrained T5: bfloat16 numbers, widened exactly on both sides;
    ids, for it has no tokenizer.
    """
    folder = checkpoint("chronos_dummy_t5_UNTRAINED")
    same_forward(folder, lengths=((1, 1), (2, 3), (64, 17), (300, 150)), vocabulary=32)
    with pytest.raises(ReflError, match="no tokenizer"):
        refl.load(folder).explain("1 2 3")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["T5ForSequenceClassification"]}, "T5ForSequenceClassification"),
    ({"architectures": ["T5ForQuestionAnswering"]}, "T5ForQuestionAnswering"),
    ({"is_encoder_decoder": False}, "encoder alone"),
    ({"model_type": "longt5"}, "longt5"),
    ({"feed_forward_proj": "gelu_10"}, "gelu_10"),
    ({"feed_forward_proj": "gated"}, "'gated'"),
    ({"feed_forward_proj": "swiglu-gelu"}, "swiglu-gelu"),
    ({"feed_forward_proj": "gated-gelu-new"}, "gated-gelu-new"),
    ({"dense_act_fn": "mish"}, "dense_act_fn 'mish'"),
    ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets"),
    ({"relative_attention_max_distance": 4}, "relative_attention_max_distance"),
    ({"num_decoder_layers": 1.5}, "num_decoder_layers"),
    ({"hidden_size": 48}, "hidden_size"),
    ({"tie_encoder_decoder": True}, "tie_encoder_decoder"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"scalable_attention": True}, "scalable_attention"),
]


@pytest.mark.parametrize(
    ("options", "named"), REFUSED, ids=[named.strip("'") for _, named in REFUSED]
)
def test_refused_by_name(make: Make, options: dict[str, Any], named: str) -> None:
    folder = make()
    refl.load(folder)
    config = json.loads((folder / "config.json").read_text())
    # written beside feed_forward_proj, and read in preference to it
    derived = ("dense_act_fn", "is_gated_act")
    config = {key: value for key, value in config.items() if key not in derived} | options
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


@pytest.mark.parametrize("cls", ["T5ForQuestionAnswering", "T5ForSequenceClassification"])
def test_other_heads_are_refused(make: Make, cls: str) -> None:
    with pytest.raises(ReflError, match=cls):
        refl.load(make(cls))
