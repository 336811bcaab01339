"""Whisper against transformers' own forward, in float64: every option, the decoder padded; and its
relevance against PyTorch's own derivatives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree
from transformers_models import WHISPER, random_whisper

import refl
from refl.errors import ReflError
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False, "activation_function": "relu"},
    "gelu-new-deep-encoder": {"activation_function": "gelu_new", "encoder_layers": 3},
    "silu-deep-decoder": {"activation_function": "silu", "decoder_layers": 3, "encoder_layers": 1},
    "one-position": {"max_source_positions": 1, "num_mel_bins": 1},
    "two-positions-one-head": {
        "max_source_positions": 2,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
    },
    "scaled-embedding": {"scale_embedding": True, "encoder_attention_heads": 24},
    "many-bins": {"num_mel_bins": 80, "max_source_positions": 50, "decoder_ffn_dim": 96},
    "training": {"apply_spec_augment": True, "mask_feature_prob": 0.5, "dropout": 0.3},
}


def made(folder: Path, **options: Any) -> Path:
    random_whisper(**options).save_pretrained(folder)
    return folder


def sound(folder: Path, seed: int = 0) -> Any:  # -> (M, F)
    config = json.loads((folder / "config.json").read_text())
    size = (config["num_mel_bins"], 2 * config["max_source_positions"])
    return np.random.default_rng(seed).standard_normal(size)


def draw(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(0, 29, length).tolist()


def peer(folder: Path) -> Any:
    """transformers' net in float64, of the weights as the file has them."""
    kind = transformers.WhisperForConditionalGeneration
    loaded = kind.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    with wide():
        net = kind(loaded.config).double()
        net.load_state_dict(loaded.state_dict())
    return net.eval()


def theirs(folder: Path, features: Any, decoder: Any, mask: Any = None) -> Any:
    masks = {} if mask is None else {"decoder_attention_mask": torch.tensor(mask)}
    net = peer(folder)
    with wide(), torch.no_grad():
        found = net(
            input_features=torch.tensor(features),
            decoder_input_ids=torch.tensor(decoder),
            use_cache=False,
            **masks,
        )
        return found.logits.numpy()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = made(tmp_path, **options)
    model, x = refl.load(folder, dtype="float64"), sound(tmp_path)
    for length in (1, 2, 13, 48):
        decoder = draw(length)
        agree(model.logits(x, decoder), theirs(folder, x[None], [decoder])[0])


def test_a_batch_whose_decoders_texts_are_padded(tmp_path: Path) -> None:
    folder = made(tmp_path)
    model, xs = refl.load(folder, dtype="float64"), [sound(tmp_path, n) for n in range(3)]
    prefixes = [draw(4), draw(1), draw(7)]
    ids = [p + [0] * (7 - len(p)) for p in prefixes]
    mask = [[int(t < len(p)) for t in range(7)] for p in prefixes]
    found = theirs(folder, np.stack(xs), ids, mask)
    _, logits = model.trace(xs, decoder=prefixes)
    agree(logits.array[:, 0], np.stack([found[b, len(p) - 1] for b, p in enumerate(prefixes)]))
    for b, e in enumerate(model.explain(np.stack(xs), decoder=prefixes, keep=())):
        assert e.relevance.shape == (5, 18)
        assert e.decoder_relevance.shape == (len(prefixes[b]),)


def test_greedy_continuation(tmp_path: Path) -> None:
    """One token after the other by the largest logit; Whisper's own `generate` sets logits apart
    first (suppress_tokens, forced ids), which is no part of the net.
    """
    folder, x = made(tmp_path), sound(made(tmp_path))
    prefix = [1, 5, 7]
    for _ in range(10):
        prefix.append(int(theirs(folder, x[None], [prefix])[0, -1].argmax()))
        if prefix[-1] == 2:
            break
    assert refl.load(folder, dtype="float64").generate(x, 10, decoder=[1, 5, 7]) == prefix


def test_the_features_that_the_extractor_makes(tmp_path: Path) -> None:
    """Of half a second of a tone; also as a file, as numpy.save writes it."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    folder = made(tmp_path, num_mel_bins=80, max_source_positions=50)
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000).astype(np.float32)
    features = extractor(tone, sampling_rate=16000, return_tensors="np").input_features
    assert features.shape == (1, 80, 100)
    model, wanted = (
        refl.load(folder, dtype="float64"),
        theirs(folder, features.astype(float), [[1]]),
    )
    np.save(tmp_path / "tone.npy", features[0])
    for one in (features[0], tmp_path / "tone.npy", str(tmp_path / "tone.npy")):
        agree(model.logits(one, [1]), wanted[0])
    (e,) = model.explain(features)
    assert e.relevance.shape == (80, 100) and e.patches.shape == (1, 50)


def test_gradient_is_pytorchs(tmp_path: Path) -> None:
    """Input x gradient, at the features and at what the decoder has said."""
    folder, x = made(tmp_path), sound(made(tmp_path))
    net = peer(folder)
    with wide():
        features = torch.tensor(x[None], requires_grad=True)
        embedded = net.model.decoder.embed_tokens(torch.tensor([[1, 5, 7]])).detach()
        embedded.requires_grad_()
        z = net(input_features=features, decoder_inputs_embeds=embedded, use_cache=False).logits
        target = int(z[0, -1].argmax())
        z[0, -1, target].backward()
    e = refl.load(folder, dtype="float64").explain(x, "input-x-gradient", decoder=[1, 5, 7])
    assert e.target_id == target
    agree(e.relevance, (features * features.grad)[0].detach().numpy())
    agree(e.decoder_relevance, (embedded * embedded.grad)[0].sum(-1).detach().numpy())


def test_a_second_name_of_the_head(tmp_path: Path) -> None:
    """A file may hold the tied head once more; one that differs is refused."""
    from safetensors.torch import load_file, save_file

    folder = made(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.decoder.embed_tokens.weight"]
    save_file(tensors | {"proj_out.weight": table.clone()}, folder / "model.safetensors")
    before = refl.load(folder, dtype="float64").logits(sound(folder), [1])
    agree(before, theirs(folder, sound(folder)[None], [[1]])[0])
    save_file(tensors | {"proj_out.weight": table + 1}, folder / "model.safetensors")
    with pytest.raises(ReflError, match=r"proj_out\.weight"):
        refl.load(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bare": ({"architectures": ["WhisperModel"]}, "WhisperModel"),
    "decoder alone": ({"architectures": ["WhisperForCausalLM"]}, "WhisperForCausalLM"),
    "classifier": ({"architectures": ["WhisperForAudioClassification"]}, "AudioClassification"),
    "activation": ({"activation_function": "mish"}, "activation_function 'mish'"),
    "no decoder": ({"is_encoder_decoder": False}, "is_encoder_decoder"),
    "heads": ({"decoder_attention_heads": 5}, "decoder_attention_heads"),
    "positions": ({"max_source_positions": 10}, "max_source_positions"),
    "mystery": ({"mystery": 3}, "mystery"),
}


@pytest.mark.parametrize(("options", "named"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    folder = made(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


def test_defaults_are_those_of_the_class() -> None:
    from refl.nets import whisper
    from refl.nets.config import parse

    ours, config = parse(whisper.Config, {}), transformers.WhisperConfig()
    for name in WHISPER.keys() | {"activation_function", "tie_word_embeddings"}:
        if hasattr(ours, name):
            assert getattr(ours, name) == getattr(config, name), name
