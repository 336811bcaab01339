"""DistilBERT and ModernBERT against transformers in float64: every option of config.json that the
nets read, every head; and their relevance against torch's gradient of transformers' own modules,
with AttnLRP's rules as detached factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import NEWER_ENCODERS, write_newer_encoder

import refl
from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.model import Model
from refl.verification.peers.lxt import wide

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # ModernBERT imports it
]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

BOUND = 1e-10
"""Of the largest logit. Both sides round in float64: what is measured stays below 1e-13."""

LENGTHS = (1, 2, 13)


@contextmanager
def loaded(folder: Path, kind: str) -> Iterator[Any]:
    """transformers' model in float64, made and run inside `wide`: ModernBERT's softmax and angles
    are float32 otherwise.
    """
    stored = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager")
    with wide():
        model = type(stored)._from_config(
            stored.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        model.load_state_dict(stored.state_dict())
        yield model.eval()


def reference(folder: Path, kind: str, ids: Any, attention_mask: Any = None) -> Any:
    """transformers' logits (B, T, V), of a class (B, 1, V); or its last hidden states."""
    tokens = torch.tensor(ids)
    mask = torch.ones_like(tokens) if attention_mask is None else torch.tensor(attention_mask)
    with loaded(folder, kind) as model, torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask)
    if kind.endswith("QuestionAnswering"):
        return torch.stack([out.start_logits, out.end_logits], dim=-1).numpy()
    found = out.last_hidden_state if kind.endswith("Model") else out.logits
    return (found if found.ndim == 3 else found[:, None]).numpy()


def draw(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 29, length).tolist()


def agree(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    deviation = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert deviation < BOUND, f"{deviation:.2e} of the largest logit"
    return deviation


@pytest.mark.parametrize("case", NEWER_ENCODERS)
def test_forward(tmp_path: Path, case: str) -> None:
    """Single texts of each length in both forms of attention, and a padded batch."""
    kind, options = NEWER_ENCODERS[case]
    folder = write_newer_encoder(tmp_path, kind, options)
    model = refl.load(folder, dtype="float64")
    worst = 0.0
    for length in LENGTHS:
        (theirs,) = reference(folder, kind, [draw(length)])
        worst = max(worst, agree(model.logits(draw(length)), theirs))
        for plain in (True, False):
            out = model.trace([draw(length)], every=True, plain=plain)[1]
            worst = max(worst, agree(asnumpy(out.array)[0], theirs))
    print(f"\n{case}: {max(worst, padded(folder, kind, model)):.1e}")


def padded(folder: Path, kind: str, model: Model) -> float:
    """Padding on the right, with refl's ids there and with transformers' own."""
    texts = [draw(5), draw(13), draw(1)]
    whole = model.task == "answer-span"
    pad = getattr(model.config, "pad_token_id", 28)
    filled = [[*text, *[pad] * (13 - len(text))] for text in texts]
    theirs = reference(folder, kind, filled, [[int(t < len(x)) for t in range(13)] for x in texts])
    worst = 0.0
    if whole:
        ours = asnumpy(model.trace(texts, plain=False)[1].array)
        return max(agree(ours[b, : len(x)], theirs[b, : len(x)]) for b, x in enumerate(texts))
    for position in (0, -1):
        where = None if model.task == "class" else position
        ours = asnumpy(model.trace(texts, where, plain=False)[1].array)[:, 0]
        rows = [0 if model.task == "class" else range(len(text))[position] for text in texts]
        worst = max(worst, agree(ours, np.stack([theirs[b, t] for b, t in enumerate(rows)])))
    return worst


ENDS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "Model")
KINDS = [
    family + (end if end == "Model" else f"For{end}")
    for family in ("DistilBert", "ModernBert")
    for end in ENDS
]


def drawn(kind: str, number: int) -> dict[str, Any]:
    """Options of a random configuration."""
    random = np.random.default_rng([number, KINDS.index(kind)])

    def one(*values: Any) -> Any:
        return values[int(random.integers(len(values)))]

    heads, act = one(1, 2, 3), one("gelu", "gelu_new", "relu", "silu", "tanh")
    labels = 2 if kind.endswith("QuestionAnswering") else one(1, 2, 3, 5)
    shared = {"num_labels": labels, "tie_word_embeddings": one(True, False)}
    if kind.startswith("Distil"):
        names = ("dim", "n_heads", "hidden_dim", "n_layers", "activation")
        sizes = (heads * one(3, 8), heads, one(5, 20), one(1, 2, 3), act)
        return shared | dict(zip(names, sizes, strict=True))
    flags = ("attention_bias", "mlp_bias", "norm_bias", "decoder_bias", "classifier_bias")
    return (
        shared
        | {flag: one(True, False) for flag in flags}
        | {
            "hidden_size": heads * one(4, 10),
            "num_attention_heads": heads,
            "intermediate_size": one(5, 20),
            "num_hidden_layers": one(1, 3, 4),
            "global_attn_every_n_layers": one(1, 2, 3),
            "local_attention": one(1, 2, 5, 8),
            "local_rope_theta": one(None, 30.0),
            "hidden_activation": act,
            "classifier_activation": one("gelu", "relu", "silu"),
            "classifier_pooling": one("cls", "mean"),
            "norm_eps": one(1e-5, 1e-2),
        }
    )


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_random_configurations(tmp_path: Path, kind: str, number: int) -> None:
    folder = write_newer_encoder(tmp_path, kind, drawn(kind, number))
    model = refl.load(folder, dtype="float64")
    for length in (1, 2, 7):
        (theirs,) = reference(folder, kind, [draw(length)])
        agree(model.logits(draw(length)), theirs)
    padded(folder, kind, model)


def test_a_long_text_in_tiles(tmp_path: Path) -> None:
    """Windows of two sides where attention is computed a tile at a time."""
    kind, options = NEWER_ENCODERS["modernbert"]
    folder = write_newer_encoder(tmp_path, kind, options | {"max_position_embeddings": 300})
    model = refl.load(folder, dtype="float64")
    (theirs,) = reference(folder, kind, [draw(300)])
    agree(model.logits(draw(300)), theirs)
    for plain in (True, False):
        agree(asnumpy(model.trace([draw(300)], every=True, plain=plain)[1].array)[0], theirs)


@pytest.mark.parametrize("case", ["distilbert", "modernbert"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype(tmp_path: Path, case: str, dtype: str) -> None:
    """Widening is exact: transformers' model of the half-precision file, in float64, is refl's."""
    kind, options = NEWER_ENCODERS[case]
    folder = write_newer_encoder(tmp_path, kind, options)
    stored = getattr(transformers, kind).from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    stored.save_pretrained(folder)
    model = refl.load(folder, dtype="float64")
    agree(model.logits(draw(13)), reference(folder, kind, [draw(13)])[0])


# -- relevance -------------------------------------------------------------------------------------


def halved(z: Any) -> Any:
    """A product of two activations: each gets half of the gradient (AttnLRP, proposition 3.3)."""
    return 0.5 * z + 0.5 * z.detach()


class DetachedNorm(torch.nn.Module):
    """A layer norm whose standard deviation is a constant."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Any) -> Any:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.norm.eps).sqrt().detach()
        z = x * self.norm.weight
        return z if self.norm.bias is None else z + self.norm.bias


class DetachedActivation(torch.nn.Module):
    """x times the constant f(x) / x."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return x * (self.function(x) / x).detach()


def gated(mlp: Any, x: Any) -> Any:
    gate, up = mlp.Wi(x).chunk(2, dim=-1)
    return mlp.Wo(halved(mlp.act(gate) * up))


@contextmanager
def detached(model: Any) -> Iterator[None]:
    """transformers' model with AttnLRP's rules for gradient x input: its modules, and torch.matmul,
    by which attention multiplies activations (linear layers do not).
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(parent, name, DetachedNorm(child))
            elif name in ("act", "activation"):
                setattr(parent, name, DetachedActivation(child))
        if type(parent).__name__ == "ModernBertMLP":
            parent.forward = gated.__get__(parent)
    matmul = torch.matmul
    torch.matmul = lambda a, b: halved(matmul(a, b))
    try:
        yield
    finally:
        torch.matmul = matmul


EMBEDDED = {"distilbert": "word_embeddings", "modernbert": "tok_embeddings"}


@pytest.mark.parametrize(
    "case", ["distilbert", "distilbert-silu", "modernbert", "modernbert-biases", "modernbert-mean"]
)
def test_relevance_is_the_gradient_of_modules_with_detached_factors(
    tmp_path: Path, case: str
) -> None:
    """attnlrp-gradient: embedding times gradient, at every number of every token's embedding."""
    kind, options = NEWER_ENCODERS[case]
    folder, ids = write_newer_encoder(tmp_path, kind, options), draw(13)
    ours = refl.load(folder, dtype="float64")
    where = {} if ours.task == "class" else {"position": 3}
    e = ours.explain(ids, "attnlrp-gradient", target=1, keep="*", **where)
    theirs: list[Any] = []
    with loaded(folder, kind) as model, detached(model):
        table = dict(model.named_modules())[words_of(model, case.partition("-")[0])]
        table.register_forward_hook(lambda _m, _i, z: theirs.append(z) or z.retain_grad())
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 13)).logits
        (logits[0, 1] if ours.task == "class" else logits[0, 3, 1]).backward()
    (embedded,) = theirs
    expected = (embedded * embedded.grad)[0].detach().numpy()
    found = e[next(site for site in e if site.endswith(EMBEDDED[case.partition("-")[0]]))]
    assert np.abs(found - expected).max() < BOUND * np.abs(expected).max()


def words_of(model: Any, family: str) -> str:
    return next(name for name, _ in model.named_modules() if name.endswith(EMBEDDED[family]))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("distilbert", {"activation": "gelu_10"}, "gelu_10"),
        ("modernbert", {"hidden_activation": "mish"}, "hidden_activation 'mish'"),
        ("modernbert", {"classifier_activation": "mish"}, "classifier_activation 'mish'"),
    ],
)
def test_refused_options(tmp_path: Path, case: str, options: dict[str, Any], named: str) -> None:
    """transformers writes them; refl names the option."""
    kind, before = NEWER_ENCODERS[case]
    folder = write_newer_encoder(tmp_path, kind, before | options)
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


@pytest.mark.parametrize("kind", ["DistilBertForMultipleChoice"])
def test_heads_there_are_none_of(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ReflError, match=kind):
        refl.load(write_newer_encoder(tmp_path, kind, {}))
