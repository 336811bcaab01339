"""The methods that read attention against a few lines of torch on transformers' own models, whose
attention weights come from `output_attentions` and their gradients from autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import random_model, random_t5, random_vision, write_encoder

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

IDS, WRITTEN, BOUND = [5, 3, 17, 3, 11, 2], [0, 7, 9, 4], 1e-11


def twin(loaded: Any) -> Any:
    """The same model in float64, attention written out."""
    with wide():
        made = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        made.load_state_dict(loaded.state_dict())
        return made.eval()


def ran(model: Any, row: int | None, **inputs: Any) -> tuple[Any, dict[str, list[Any]]]:
    """The largest logit of a row, and (A, dA) of each attention, (H, J, I), by kind."""
    with wide(), torch.enable_grad():
        out = model(**inputs, output_attentions=True)
        kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
        every = {kind: list(out[kind]) for kind in kinds if out.get(kind) is not None}
        for one in every.values():
            for a in one:
                a.retain_grad()
        logits = out.logits[0] if row is None else out.logits[0, row]
        logits.max().backward()
    pairs = {k: [(a[0].detach(), a.grad[0]) for a in one] for k, one in every.items()}
    return int(logits.argmax()), pairs


def positive(a: Any, g: Any) -> Any:
    return (a * g).clamp(min=0).mean(0)


def grad_cam(blocks: Sequence[Any]) -> Any:
    return positive(*blocks[-1])


def rolled(blocks: Sequence[Any], own: float) -> Any:
    joint = torch.eye(blocks[0][0].shape[-1], dtype=torch.float64)
    for a, _ in blocks:
        joint = (a.mean(0) + torch.eye(len(joint), dtype=torch.float64)) * own @ joint
    return joint


def gradient_rollout(blocks: Sequence[Any]) -> Any:
    joint = torch.eye(blocks[0][0].shape[-1], dtype=torch.float64)
    for a, g in blocks:
        joint = joint + positive(a, g) @ joint
    return joint


THEIRS: dict[str, tuple[dict[str, Any], Callable[[Sequence[Any]], Any]]] = {
    "grad-cam": ({}, grad_cam),
    "attention-rollout": ({}, lambda blocks: rolled(blocks, 0.5)),
    "attention-rollout-none": ({"normalization": "none"}, lambda blocks: rolled(blocks, 1.0)),
    "gradient-rollout": ({}, gradient_rollout),
}


def method(name: str) -> Any:
    options, _ = THEIRS[name]
    return refl.methods.chosen(name.removesuffix("-none"), options=options)


def loaded(folder: Path, model: Any) -> Any:
    model.save_pretrained(folder)
    return refl.load(folder, dtype="float64")


def agree(ours: Any, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= BOUND * np.abs(theirs).max()
    assert np.abs(theirs).max() > 0


TEXT: dict[str, tuple[Callable[[Path], Any], int | None, int]] = {
    "gpt2": (lambda _: random_model("gpt2"), -1, -1),
    "llama-groups": (lambda _: random_model("llama", num_key_value_heads=2), -1, -1),
    "mistral-window": (lambda _: random_model("mistral", sliding_window=2), -1, -1),
    "bert": (lambda folder: encoder(folder, "BertForMaskedLM"), 2, 2),
    "bert-classes": (lambda folder: encoder(folder, "BertForSequenceClassification"), None, 0),
}
"""Name -> what makes the model, the row of its logits, the row of attention that is read."""


def encoder(folder: Path, kind: str) -> Any:
    return getattr(transformers, kind).from_pretrained(write_encoder(folder / "made", kind, {}))


@pytest.mark.parametrize("kind", TEXT)
def test_texts(kind: str, tmp_path: Path) -> None:
    make, row, read = TEXT[kind]
    model = make(tmp_path)
    ours = loaded(tmp_path / kind, model)
    target, pairs = ran(twin(model), row, input_ids=torch.tensor([IDS]))
    where = {} if row != 2 else {"position": 2}
    for name, (_, theirs) in THEIRS.items():
        e = ours.explain(IDS, method=method(name), **where)
        assert e.target_id == target
        agree(e.relevance, theirs(pairs["attentions"])[read])


PICTURES = {
    "vit": ("vit", "ForImageClassification"),
    "deit": ("deit", "ForImageClassification"),
    "deit-teacher": ("deit", "ForImageClassificationWithTeacher"),
}


@pytest.mark.parametrize(("kind", "head"), PICTURES.values(), ids=PICTURES)
def test_pictures(kind: str, head: str, tmp_path: Path) -> None:
    model = random_vision(kind, head, image_size=[13, 11], patch_size=[4, 3])
    ours = loaded(tmp_path, model)
    x = np.random.default_rng(1).standard_normal((3, 13, 11))
    target, pairs = ran(twin(model), None, pixel_values=torch.tensor(x)[None])
    learned, both = 1 + (kind == "deit"), [0, 1] if head.endswith("Teacher") else [0]
    for name, (_, theirs) in THEIRS.items():
        e = ours.explain(x, method=method(name))
        assert e.target_id == target and e.relevance.shape == (13, 11)
        row = theirs(pairs["attentions"])[both].mean(0)[learned:].reshape(3, 3)
        agree(e.patches, row)
        assert np.ptp(e.relevance[4:8, 3:6]) == 0 and not e.relevance[12:].any()


# -- encoder and decoder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, list[Any]]]:
    model = random_t5(num_decoder_layers=3)
    ours = loaded(tmp_path_factory.mktemp("t5"), model)
    inputs = {"input_ids": torch.tensor([IDS]), "decoder_input_ids": torch.tensor([WRITTEN])}
    target, pairs = ran(twin(model), -1, **inputs)
    assert ours.explain(IDS, decoder=WRITTEN, method="grad-cam").target_id == target
    return ours, pairs


def of_t5(t5: Any, name: str) -> Any:
    return t5[0].explain(IDS, decoder=WRITTEN, method=method(name))


def test_t5_grad_cam(t5: Any) -> None:
    e, pairs = of_t5(t5, "grad-cam"), t5[1]
    agree(e.relevance, grad_cam(pairs["cross_attentions"])[-1])
    agree(e.decoder_relevance, grad_cam(pairs["decoder_attentions"])[-1])


@pytest.mark.parametrize("name", ["attention-rollout", "attention-rollout-none"])
def test_t5_rollout_is_that_of_one_graph(t5: Any, name: str) -> None:
    """Tokens of both sides in one matrix, the encoder's first; each attention a block of it."""
    scale, pairs, n, every = 0.5 if name.endswith("rollout") else 1.0, t5[1], 6, 10
    joint = torch.eye(every, dtype=torch.float64)

    def step(joint: Any, a: Any, rows: slice, columns: slice) -> Any:
        b = torch.eye(every, dtype=torch.float64)
        b[rows, columns] += a.mean(0)
        b[rows] *= scale
        return b @ joint

    for a, _ in pairs["encoder_attentions"]:
        joint = step(joint, a, slice(0, n), slice(0, n))
    both = zip(pairs["decoder_attentions"], pairs["cross_attentions"], strict=True)
    for (a, _), (c, _) in both:
        joint = step(joint, a, slice(n, every), slice(n, every))
        joint = step(joint, c, slice(n, every), slice(0, n))
    e = of_t5(t5, name)
    agree(e.relevance, joint[-1, :n])
    agree(e.decoder_relevance, joint[-1, n:])


def test_t5_gradient_rollout(t5: Any) -> None:
    """Rules 6, 7 and 10 of the paper, token by token."""
    e, pairs = of_t5(t5, "gradient-rollout"), t5[1]

    def normal(r: Any) -> Any:
        made = torch.eye(len(r), dtype=torch.float64)
        for i, row in enumerate(r - made):
            made[i] += row / row.sum() if row.sum() else row
        return made

    qq = gradient_rollout(pairs["encoder_attentions"])
    ss, sq = torch.eye(4, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    both = zip(pairs["decoder_attentions"], pairs["cross_attentions"], strict=True)
    for self_attention, cross in both:
        c = positive(*self_attention)
        ss, sq = ss + c @ ss, sq + c @ sq
        sq = sq + normal(ss).transpose(0, 1) @ positive(*cross) @ normal(qq)
    agree(e.relevance, sq[-1])
    agree(e.decoder_relevance, ss[-1])
