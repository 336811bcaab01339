"""mT5, umT5 and encoders of T5's family against transformers' own forward, in float64: every
option, both stacks padded, short and far beyond the farthest bucket.

transformers computes the norm's variance, the softmax and the logarithm of the buckets in float32
whatever the model's dtype is; `wide` lifts those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree
from transformers_models import LABELS, random_t5

import refl
from refl.errors import ReflError
from refl.model import Model
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

MANY = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "d_kv": 9},
    "untied-relu": {"tie_word_embeddings": False, "feed_forward_proj": "relu"},
    "usual-buckets": MANY | {"feed_forward_proj": "gated-silu"},
    "deep-encoder-gelu": {"num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "gelu"},
    "deep-decoder-one-head": {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 1},
    "odd-buckets": {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 9},
    "another-eps": {"layer_norm_epsilon": 1e-2, "num_decoder_layers": 1},
}
"""The classes' own defaults differ from T5's: a gated GELU, and mT5's head is its own."""

LENGTHS = ((1, 1), (2, 1), (13, 2), (1, 5), (41, 33))
"""Tokens of the encoder and of the decoder."""

FAMILIES = {"mt5": "MT5", "umt5": "UMT5"}

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def made(folder: Path, cls: str, **options: Any) -> Path:
    random_t5(cls, **options).save_pretrained(folder)
    return folder


def theirs(folder: Path, cls: str, **inputs: Any) -> Any:
    """transformers' logits, or last hidden state, in float64 of the weights as the file has
    them.
    """
    kind = getattr(transformers, cls)
    loaded = kind.from_pretrained(folder, torch_dtype=torch.float32)
    if cls.endswith("ForConditionalGeneration"):
        inputs["use_cache"] = False
    with wide(), torch.no_grad():
        model = kind(loaded.config).double()
        model.load_state_dict(loaded.state_dict())
        tensors = {n: v if n == "use_cache" else torch.tensor(v) for n, v in inputs.items()}
        return model.eval()(**tensors)[0].numpy()


def draw(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(0, 29, length).tolist()


def padded(items: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids, and the attention mask."""
    longest = max(map(len, items))
    ids = [i + [0] * (longest - len(i)) for i in items]
    return ids, [[int(t < len(i)) for t in range(longest)] for i in items]


# -- the encoder-decoders --------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_family
def test_options(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    cls = f"{family}ForConditionalGeneration"
    folder = made(tmp_path, cls, **options)
    model = refl.load(folder, dtype="float64")
    for read, written in LENGTHS:
        ids, decoder = draw(read), draw(written, 1)
        found = theirs(folder, cls, input_ids=[ids], decoder_input_ids=[decoder])
        agree(model.logits(ids, decoder), found[0])


@every_family
def test_beyond_the_farthest_bucket(tmp_path: Path, family: str) -> None:
    cls = f"{family}ForConditionalGeneration"
    folder = made(tmp_path, cls, **MANY)
    ids, decoder = draw(150), draw(140, 1)
    found = theirs(folder, cls, input_ids=[ids], decoder_input_ids=[decoder])
    agree(refl.load(folder, dtype="float64").logits(ids, decoder), found[0])


@every_family
def test_batch_padded_on_both_sides(tmp_path: Path, family: str) -> None:
    cls = f"{family}ForConditionalGeneration"
    folder = made(tmp_path, cls)
    texts, prefixes = [draw(5), draw(13), draw(1)], [draw(4, 1), draw(1, 1), draw(7, 1)]
    (ids, mask), (decoder, decoder_mask) = padded(texts), padded(prefixes)
    found = theirs(
        folder,
        cls,
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=decoder,
        decoder_attention_mask=decoder_mask,
    )
    _, logits = refl.load(folder, dtype="float64").trace(texts, decoder=prefixes)
    last = np.stack([found[b, len(prefix) - 1] for b, prefix in enumerate(prefixes)])
    agree(logits.array[:, 0], last)


@every_family
def test_greedy_continuation(tmp_path: Path, family: str) -> None:
    folder = made(tmp_path, f"{family}ForConditionalGeneration")
    loaded = getattr(transformers, f"{family}ForConditionalGeneration").from_pretrained(folder)
    ids = torch.tensor([draw(9)])
    found = loaded.generate(ids, max_new_tokens=12, do_sample=False, num_beams=1)[0].tolist()
    assert refl.load(folder).generate(draw(9), 12) == found


def test_defaults_are_those_of_the_class() -> None:
    """Where config.json is silent."""
    from refl.nets import NETS
    from refl.nets.config import parse

    for kind in ("t5", *FAMILIES):
        config = transformers.AutoConfig.for_model(kind)
        ours = parse(NETS[kind].Config, {"model_type": kind})
        for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
            assert getattr(ours, name) == getattr(config, name), (kind, name)
        assert ours.decoder_layers == config.num_decoder_layers
        assert ours.tie_word_embeddings == config.tie_word_embeddings, kind
        assert ours.feed_forward_proj == config.feed_forward_proj
        assert ours.layer_norm_epsilon == config.layer_norm_epsilon
        assert ours.relative_attention_num_buckets == config.relative_attention_num_buckets
        assert ours.relative_attention_max_distance == config.relative_attention_max_distance


# -- the encoder alone -----------------------------------------------------------------------------


def states(model: Model, ids: list[list[int]]) -> Any:  # -> (B, T, D)
    _, found = model.trace(ids, every=True)
    return found.array


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", ["T5", *FAMILIES.values()])
def test_encoder(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    cls = f"{family}EncoderModel"
    folder = made(tmp_path, cls, **options)
    model = refl.load(folder, dtype="float64")
    assert model.task == "features"
    for length in (1, 2, 13, 41):
        agree(states(model, [draw(length)]), theirs(folder, cls, input_ids=[draw(length)]))
    ids, mask = padded(texts := [draw(5), draw(13), draw(1)])
    found, ours = theirs(folder, cls, input_ids=ids, attention_mask=mask), states(model, texts)
    for b, text in enumerate(texts):
        agree(ours[b, : len(text)], found[b, : len(text)])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", ["T5", *FAMILIES.values()])
def test_classes_of_tokens(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    cls = f"{family}ForTokenClassification"
    folder = made(tmp_path, cls, **options, **LABELS)
    model = refl.load(folder, dtype="float64")
    assert model.task == "token-class" and model.output_names([2]) == ["maybe"]
    for length in (1, 2, 13, 41):
        agree(states(model, [draw(length)]), theirs(folder, cls, input_ids=[draw(length)]))
    ids, mask = padded(texts := [draw(5), draw(13), draw(1)])
    found, ours = theirs(folder, cls, input_ids=ids, attention_mask=mask), states(model, texts)
    for b, text in enumerate(texts):
        agree(ours[b, : len(text)], found[b, : len(text)])
    e = model.explain(texts[1], position=3, target="yes")
    assert e.logit == pytest.approx(found[1, 3, 1], rel=1e-12)


def test_a_file_shows_its_head(tmp_path: Path) -> None:
    """Where config.json names no class."""
    heads = {"ForConditionalGeneration": "sequence-to-sequence", "EncoderModel": "features"}
    for end, task in (heads | {"ForTokenClassification": "token-class"}).items():
        folder = made(tmp_path / end, f"T5{end}")
        config = json.loads((folder / "config.json").read_text()) | {"architectures": None}
        (folder / "config.json").write_text(json.dumps(config))
        assert refl.load(folder).task == task


@pytest.mark.parametrize("family", ["T5", *FAMILIES.values()])
def test_the_encoder_of_both(tmp_path: Path, family: str) -> None:
    """A file of the whole model, read as its encoder where its config.json says so."""
    folder = made(tmp_path, f"{family}ForConditionalGeneration")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [f"{family}EncoderModel"]
    (folder / "config.json").write_text(json.dumps(config))
    found = theirs(folder, f"{family}EncoderModel", input_ids=[draw(9)])
    agree(states(refl.load(folder, dtype="float64"), [draw(9)]), found)


# -- what is refused -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family's class": ({"architectures": ["T5ForConditionalGeneration"]}, "UMT5"),
    "classifier": ({"architectures": ["UMT5ForSequenceClassification"]}, "ForSequence"),
    "answers": ({"architectures": ["UMT5ForQuestionAnswering"]}, "ForQuestionAnswering"),
    "bare": ({"architectures": ["UMT5Model"]}, "UMT5Model"),
    "encoder alone": ({"is_encoder_decoder": False}, "is_encoder_decoder"),
    "tables of the first block": ({"model_type": "t5", "architectures": None}, "block.1"),
    "mystery": ({"mystery": 3}, "mystery"),
}


@pytest.mark.parametrize(("options", "named"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    folder = made(tmp_path, "UMT5ForConditionalGeneration")
    refl.load(folder)
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


def test_scalable_attention_is_a_table_in_every_block(tmp_path: Path) -> None:
    """As umT5's published files say; a T5 with it would have tables that transformers' T5 has
    not.
    """
    for family, kind in (("UMT5", "umt5"), ("T5", "t5")):
        folder = made(tmp_path / kind, f"{family}ForConditionalGeneration")
        config = json.loads((folder / "config.json").read_text()) | {"scalable_attention": True}
        (folder / "config.json").write_text(json.dumps(config))
        if kind == "umt5":
            refl.load(folder)
        else:
            with pytest.raises(ReflError, match="scalable_attention"):
                refl.load(folder)
