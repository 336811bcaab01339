"""Attention masks of the caller against transformers in float64: `attention_mask` of tokens for
every family of nets, and of pairs (additive in four dimensions, or boolean in three) where
transformers takes them.

A token that a mask leaves nothing to look at has a row of attention that is 0 here, and one that is
even there (a softmax of equal numbers): such rows are left out, nothing else reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import BOUND
from transformers_models import (
    ENCODERS,
    NEWER_ENCODERS,
    random_model,
    random_t5,
    write_encoder,
    write_newer_encoder,
)

import refl
from refl.verification.peers.lxt import wide

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # ModernBERT imports it
]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

T = 13
IDS = np.random.default_rng(T).integers(2, 28, T).tolist()
MASKS = {
    "before": [0] * 4 + [1] * 9,
    "behind": [1] * 9 + [0] * 4,
    "holes": [1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1],
    "one": [0] * 5 + [1] + [0] * 7,
}
WINDOW = 3
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "phi": {},
    "gemma2": {"sliding_window": WINDOW},
    "mixtral": {},
}
WINDOWED = {"mistral": (WINDOW,), "gemma2": (WINDOW, None)}

every_mask = pytest.mark.parametrize("mask", MASKS)


@contextmanager
def twin(folder: Path) -> Iterator[Any]:
    """transformers' model of a folder in float64, made and run inside `wide`."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    stored = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager")
    with wide(), torch.no_grad():
        model = type(stored)._from_config(
            stored.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        model.load_state_dict(stored.state_dict())
        yield model.eval()


def agree(ours: Any, theirs: Any, rows: Any) -> None:
    assert len(rows) > 1 or ours.shape[0] == 1
    deviation = np.abs(ours - theirs)[rows].max() / np.abs(theirs).max()
    assert deviation < BOUND, f"{deviation:.2e} of the largest logit"


def seeing(mask: Any, window: int | None = None) -> Any:
    """The rows of a causal net that look at anything, by a plain loop."""
    first = [0 if window is None else max(j - window + 1, 0) for j in range(T)]
    return {j for j in range(T) if any(mask[i] for i in range(first[j], j + 1))}


@every_mask
@pytest.mark.parametrize("kind", DECODERS)
def test_tokens_of_a_decoder(tmp_path: Path, kind: str, mask: str) -> None:
    random_model(kind, **DECODERS[kind]).save_pretrained(tmp_path)
    ours = refl.load(tmp_path, dtype="float64").logits(IDS, attention_mask=MASKS[mask])
    with twin(tmp_path) as model:
        theirs = (
            model(
                input_ids=torch.tensor([IDS]),
                attention_mask=torch.tensor([MASKS[mask]]),
                use_cache=False,
            )
            .logits[0]
            .numpy()
        )
    rows = set.intersection(*(seeing(MASKS[mask], w) for w in WINDOWED.get(kind, (None,))))
    agree(ours, theirs, sorted(rows))


@every_mask
@pytest.mark.parametrize(
    "case",
    [
        *("bert", "bert-classes", "roberta", "roberta-classes", "albert", "albert-classes"),
        *("distilbert", "distilbert-classes"),
        *("modernbert", "modernbert-all-global", "modernbert-classes", "modernbert-mean"),
    ],
)
def test_tokens_of_an_encoder(tmp_path: Path, case: str, mask: str) -> None:
    if case in ENCODERS:
        write_encoder(tmp_path, *ENCODERS[case])
    else:
        write_newer_encoder(tmp_path, *NEWER_ENCODERS[case])
    loaded, said = refl.load(tmp_path, dtype="float64"), MASKS[mask]
    if case == "modernbert-classes" and mask in ("before", "one"):
        with pytest.raises(refl.ReflError, match="token at 0 nothing to look at"):
            loaded.explain(IDS, attention_mask=said)
        return
    ours = loaded.logits(IDS, attention_mask=said)
    with twin(tmp_path) as model:
        theirs = model(
            input_ids=torch.tensor([IDS]), attention_mask=torch.tensor([said])
        ).logits.numpy()
    theirs = theirs[0] if theirs.ndim == 3 else theirs
    rows = list(range(len(theirs)))
    if case == "modernbert":  # three tokens to either side
        rows = [j for j in rows if any(said[max(j - 3, 0) : j + 4])]
    agree(ours, theirs, rows)


@every_mask
def test_tokens_of_an_encoder_that_a_decoder_reads(tmp_path: Path, mask: str) -> None:
    """Cross-attention hides what the encoder hides."""
    random_t5().save_pretrained(tmp_path)
    said = [0, 7, 3]
    loaded = refl.load(tmp_path, dtype="float64")
    ours = loaded.logits(IDS, decoder=said, attention_mask=MASKS[mask])
    with twin(tmp_path) as model:
        theirs = (
            model(
                input_ids=torch.tensor([IDS]),
                attention_mask=torch.tensor([MASKS[mask]]),
                decoder_input_ids=torch.tensor([said]),
            )
            .logits[0]
            .numpy()
        )
    agree(ours, theirs, range(3))


PAIRS = np.random.default_rng(5).random((T, T)) < 0.5
PAIRS[np.arange(T), np.arange(T)] = True


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_pairs_of_a_decoder(tmp_path: Path, kind: str) -> None:
    """transformers takes four dimensions as what is added to the scores, causality included."""
    random_model(kind, sliding_window=None).save_pretrained(tmp_path)
    ours = refl.load(tmp_path, dtype="float64").logits(IDS, attention_mask=PAIRS)
    allowed = torch.tensor(PAIRS & np.tril(np.ones((T, T), dtype=bool)))
    with twin(tmp_path) as model:
        added = torch.zeros((1, 1, T, T), dtype=torch.float64).masked_fill(
            ~allowed, torch.finfo(torch.float64).min
        )
        theirs = (
            model(input_ids=torch.tensor([IDS]), attention_mask=added, use_cache=False)
            .logits[0]
            .numpy()
        )
    agree(ours, theirs, range(T))


@pytest.mark.parametrize("case", ["bert", "roberta"])
def test_pairs_of_an_encoder(tmp_path: Path, case: str) -> None:
    """transformers takes three dimensions as which query may look where (of ALBERT two alone)."""
    write_encoder(tmp_path, *ENCODERS[case])
    ours = refl.load(tmp_path, dtype="float64").logits(IDS, attention_mask=PAIRS)
    with twin(tmp_path) as model:
        said = torch.tensor(PAIRS[None]).to(torch.int64)
        theirs = model(input_ids=torch.tensor([IDS]), attention_mask=said).logits[0].numpy()
    agree(ours, theirs, range(T))
