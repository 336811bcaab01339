"""Every head against transformers' own in float64, six random configurations of each on each net
that has it: classes of texts, classes of tokens, starts and ends of answers, features without a
pooler; every layout of padding; and the gradient of a span against autograd.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree, draw
from transformers_models import _TEXT as TEXT
from transformers_models import (
    SMALL,
    VISION,
    _drawn,
    _scaled,
    _scaled_encoder,
    _scaled_vision,
    write_encoder,
)

import refl
from refl.arrays import asnumpy
from refl.model import Model
from refl.nets.batch import Batch
from refl.trace import Trace
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

TEXTS, TOKENS, SPANS = "SequenceClassification", "TokenClassification", "QuestionAnswering"

DECODERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama": ("Llama", (TEXTS, TOKENS, SPANS)),
    "mistral": ("Mistral", (TEXTS, TOKENS, SPANS)),
    "mixtral": ("Mixtral", (TEXTS, TOKENS, SPANS)),
    "qwen2": ("Qwen2", (TEXTS, TOKENS, SPANS)),
    "qwen3": ("Qwen3", (TEXTS, TOKENS, SPANS)),
    "qwen3_moe": ("Qwen3Moe", (TEXTS, TOKENS, SPANS)),
    "gemma2": ("Gemma2", (TEXTS, TOKENS)),
    "gpt2": ("GPT2", (TEXTS, TOKENS, SPANS)),
    "phi": ("Phi", (TEXTS, TOKENS)),
}
ENCODING: dict[str, tuple[str, tuple[str, ...]]] = {
    "bert": ("Bert", (TEXTS, TOKENS, SPANS)),
    "roberta": ("Roberta", (TEXTS, TOKENS, SPANS)),
    "xlm-roberta": ("XLMRoberta", (TEXTS, TOKENS, SPANS)),
    "camembert": ("Camembert", (TEXTS, TOKENS, SPANS)),
    "albert": ("Albert", (TEXTS, TOKENS, SPANS)),
}
HEADS = [
    pytest.param(kind, family, head, id=f"{kind}-{head}")
    for kind, (family, heads) in (DECODERS | ENCODING).items()
    for head in heads
]
TASK = {TEXTS: "class", TOKENS: "token-class", SPANS: "answer-span"}
MAKERS: dict[str, Any] = {"albert": {"embedding_size": 12}}
DRAWS = 6


def options(kind: str, head: str, number: int) -> dict[str, Any]:
    """Of a random configuration, within what the net reads."""
    random = np.random.default_rng([number, len(kind), len(head)])
    heads, each = int(random.choice([1, 2, 3])), int(random.choice([4, 6, 10]))
    names = ("n_embd", "n_head", "n_layer") if kind == "gpt2" else _NAMES
    drawn = dict(zip(names, (heads * each, heads, int(random.integers(1, 4))), strict=True))
    if kind in DECODERS and kind != "gpt2":
        drawn |= {"num_key_value_heads": int(random.choice([1, heads])), "rope_theta": 300.0}
    if kind in ("qwen3", "qwen3_moe", "gemma2"):
        drawn |= {"head_dim": each}
    if kind == "phi":
        drawn |= {"partial_rotary_factor": 0.5 if each % 4 == 0 else 1.0}
    labels = 2 if head == SPANS else int(random.integers(1, 6))
    pad = random.choice([None, 0, 3, 28]) if kind in DECODERS else None
    drawn |= {"num_labels": labels}
    return drawn | ({"pad_token_id": None if pad is None else int(pad)} if kind in DECODERS else {})


_NAMES = ("hidden_size", "num_attention_heads", "num_hidden_layers")


def made(folder: Path, kind: str, family: str, head: str, drawn: dict[str, Any]) -> Any:
    """A checkpoint, as transformers writes it; and its class."""
    cls = getattr(transformers, f"{family}For{head}")
    size = SMALL[kind] if kind in DECODERS else TEXT | MAKERS.get(kind, {})
    config = transformers.AutoConfig.for_model(kind, **(size | drawn))
    scaled = _scaled if kind in DECODERS else _scaled_encoder
    _drawn(cls(config), scaled).save_pretrained(folder)
    return cls


def theirs(folder: Path, cls: Any, ids: Any, mask: Any = None) -> Any:  # -> (B, T, labels or 2)
    """transformers' outputs in float64; of a text (B, 1, classes)."""
    twin, tokens = twin_of(folder, cls), torch.tensor(ids)
    mask = torch.ones_like(tokens) if mask is None else torch.tensor(mask)
    with wide(), torch.no_grad():
        out = twin(input_ids=tokens, attention_mask=mask)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], dim=-1).numpy()
    return (out.logits if out.logits.ndim == 3 else out.logits[:, None]).numpy()


def twin_of(folder: Path, cls: Any) -> Any:
    loaded = cls.from_pretrained(folder)
    loaded.config._attn_implementation, loaded.config.use_cache = "eager", False
    with wide():
        twin = cls(loaded.config).double().eval()
        twin.load_state_dict(loaded.state_dict())
    return twin


def ours(model: Model, ids: Any, mask: Any = None, **how: Any) -> Any:
    """Of a batch as it stands, whatever is padding in it."""
    batch = Batch(np.asarray(ids), None if mask is None else np.asarray(mask, dtype=bool))
    return asnumpy(model.forward(Trace(model.weights, **how), batch).array)


@pytest.mark.parametrize(("kind", "family", "head"), HEADS)
def test_six_random_configurations(tmp_path: Path, kind: str, family: str, head: str) -> None:
    worst = 0.0
    for number in range(DRAWS):
        folder = tmp_path / str(number)
        cls = made(folder, kind, family, head, options(kind, head, number))
        model = refl.load(folder, dtype="float64")
        assert model.task == TASK[head]
        for length in (1, 2, 13):
            expected = theirs(folder, cls, [draw(length)])
            agree(model.logits(draw(length)), expected[0])
            agree(ours(model, [draw(length)], plain=True), expected)
            worst = max(worst, float(np.abs(model.logits(draw(length)) - expected[0]).max()))
        padded_batch(folder, cls, model, head)
    print(f"\n{kind} {head}: {worst:.1e}")


def padded_batch(folder: Path, cls: Any, model: Model, head: str) -> None:
    """On the right, as refl pads: the outputs of what is no padding. A text may hold padding tokens
    of its own, and end with one.
    """
    pad = getattr(model.config, "pad_token_id", 0)
    texts = [draw(5), draw(9), [7], [*draw(3), 28, 28]]
    filled = [[*text, *[pad or 0] * (9 - len(text))] for text in texts]
    mask = [[int(t < len(text)) for t in range(9)] for text in texts]
    if head == TEXTS and hasattr(model.config, "HEADS") and pad is None:
        with pytest.raises(ValueError, match="Cannot handle batch sizes"):
            theirs(folder, cls, filled, mask)
        expected = np.concatenate([theirs(folder, cls, [text]) for text in texts])
    else:
        expected = theirs(folder, cls, filled, mask)
    found = asnumpy(model.trace(texts, every=True)[1].array)
    for b, text in enumerate(texts):
        agree(found[b, : len(text)], expected[b, : len(text)])


# -- the last token that is no padding -------------------------------------------------------------

PAD = 3
LAYOUTS: dict[str, list[list[int]]] = {
    "behind": [[5, 6, 7, PAD, PAD], [5, 6, 7, 8, 9]],
    "before": [[PAD, PAD, 5, 6, 7], [PAD, 4, 5, 6, 7]],
    "in the middle": [[5, PAD, PAD, 6, 7], [5, PAD, 6, PAD, PAD]],
    "nothing but padding": [[PAD] * 4, [5, 6, 7, 8]],
    "one token": [[PAD]],
    "none": [[5, 6, 7]],
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_padding(tmp_path: Path, kind: str, layout: str) -> None:
    """With an attention mask over the padding, and without one; with the id of the end of a text as
    padding; with an id that no token has; with none at all, which transformers takes one text at a
    time.
    """
    family, _ = DECODERS[kind]
    ids = LAYOUTS[layout]
    mask = [[int(i != PAD) for i in text] for text in ids]
    for drawn in ({"pad_token_id": PAD}, {"pad_token_id": PAD, "eos_token_id": PAD}):
        folder = tmp_path / str(len(drawn))
        cls = made(folder, kind, family, TEXTS, drawn | {"num_labels": 3})
        model = refl.load(folder, dtype="float64")
        agree(ours(model, ids), theirs(folder, cls, ids))
        if all(map(any, mask)):  # a text that is masked whole reads nothing, and says nothing
            agree(ours(model, ids, mask), theirs(folder, cls, ids, mask))
    for pad in (-1, None):
        (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()) | {"pad_token_id": pad})
        )
        model = refl.load(folder, dtype="float64")
        for text in ids if pad is None else ():
            agree(ours(model, [text]), theirs(folder, cls, [text]))
        if pad == -1:
            agree(ours(model, ids), theirs(folder, cls, ids))


# -- without a pooler ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODING)
def test_encoders_without_a_pooler(tmp_path: Path, kind: str) -> None:
    """add_pooling_layer=False, which the file does not say: its tensors do."""
    cls = getattr(transformers, f"{ENCODING[kind][0]}Model")
    for number in range(DRAWS):
        folder, drawn = tmp_path / str(number), options(kind, TEXTS, number)
        config = cls.config_class(**(TEXT | MAKERS.get(kind, {}) | drawn))
        _drawn(cls(config, add_pooling_layer=False), _scaled_encoder).save_pretrained(folder)
        model = refl.load(folder, dtype="float64")
        assert model.task == "features" and not any("pooler" in s for s in model.sites())
        loaded = cls.from_pretrained(folder, add_pooling_layer=False).double().eval()
        for length in (1, 2, 13):
            with torch.no_grad():
                out = loaded(torch.tensor([draw(length)])).last_hidden_state[0]
            agree(model.logits(draw(length)), out.numpy())


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_pictures_without_a_pooler(tmp_path: Path, kind: str) -> None:
    """Features are those of the class token in the last layer."""
    cls = getattr(transformers, {"vit": "ViTModel", "deit": "DeiTModel"}[kind])
    for number in range(DRAWS):
        folder, drawn = tmp_path / str(number), options(kind, TEXTS, number)
        config = cls.config_class(**(VISION | {n: drawn[n] for n in _NAMES}))
        model = _drawn(cls(config, add_pooling_layer=False), _scaled_vision, seed=number)
        model.save_pretrained(folder)
        x = np.random.default_rng(number).standard_normal((2, 3, 12, 12))
        with wide(), torch.no_grad():
            twin = cls(config, add_pooling_layer=False).double()
            twin.load_state_dict(model.state_dict())
            expected = twin.eval()(pixel_values=torch.tensor(x)).last_hidden_state[:, 0].numpy()
        ready = refl.load(folder, dtype="float64")
        agree(np.stack([ready.logits(one)[0] for one in x]), expected)


# -- relevance -------------------------------------------------------------------------------------

IDS = [5, 3, 17, 3, 11]


def gradient(twin: Any, explained: Any) -> Any:  # -> NumPy (T,): embedding times gradient
    """By torch's autograd, of what is explained of the outputs."""
    with wide():
        x = twin.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
        mask = torch.ones(1, len(IDS), dtype=torch.long)
        explained(twin(inputs_embeds=x, attention_mask=mask)).backward()
    return (x * x.grad).sum(-1)[0].detach().numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta"])
def test_the_gradient_of_an_answer(tmp_path: Path, kind: str) -> None:
    """Of start and end together, and of their log-probability. RoBERTa counts positions by the ids,
    which embeddings have none of, so none here is padding.
    """
    family, _ = (DECODERS | ENCODING)[kind]
    cls = made(tmp_path, kind, family, SPANS, options(kind, SPANS, 1))
    model, twin = refl.load(tmp_path, dtype="float64"), twin_of(tmp_path, cls)
    e = model.explain(IDS, "input-x-gradient", target=(1, 3))
    agree(e.relevance, gradient(twin, lambda o: o.start_logits[0, 1] + o.end_logits[0, 3]))
    e = model.explain(IDS, "input-x-gradient", target=(1, 3), seed="log-probability")

    def both(out: Any) -> Any:
        return out.start_logits[0].log_softmax(0)[1] + out.end_logits[0].log_softmax(0)[3]

    agree(e.relevance, gradient(twin, both))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "albert"])
def test_the_gradient_of_a_class_of_a_token(tmp_path: Path, kind: str) -> None:
    family, _ = (DECODERS | ENCODING)[kind]
    drawn = options(kind, TOKENS, 2) | {"num_labels": 3}
    cls = made(tmp_path, kind, family, TOKENS, drawn)
    model, twin = refl.load(tmp_path, dtype="float64"), twin_of(tmp_path, cls)
    e = model.explain(IDS, "input-x-gradient", position=2, contrast=(1, 0))
    agree(e.relevance, gradient(twin, lambda o: o.logits[0, 2, 1] - o.logits[0, 2, 0]))


@pytest.mark.parametrize("mean", [False, True])
def test_the_gradient_of_a_cosine(tmp_path: Path, mean: bool) -> None:
    """The length of the features included."""
    folder = write_encoder(tmp_path, "BertModel", {})
    model = refl.load(folder, dtype="float64")
    twin = twin_of(folder, transformers.BertModel)
    v = np.random.default_rng(0).standard_normal(24)
    how: dict[str, Any] = {} if mean else {"position": 2}
    e = model.explain(IDS, "input-x-gradient", target=refl.cosine(v, mean), **how)

    def cosine(out: Any) -> Any:
        z = out.last_hidden_state[0]
        z = z.mean(0) if mean else z[2]
        return torch.nn.functional.cosine_similarity(z, torch.tensor(v), dim=0)

    agree(e.relevance, gradient(twin, cosine))
