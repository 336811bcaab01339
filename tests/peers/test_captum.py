"""Integrated gradients, SmoothGrad and occlusion beside captum 0.9, on transformers' own models in
float64; AtMan beside a softmax of torch's whose scores are scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from transformers_models import Make, random_t5, random_vision, write_encoder

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
captum = pytest.importorskip("captum.attr", reason="captum is not installed (see pyproject.toml)")

BOUND = 1e-9
"""Of the largest score. Both sides round in float64: what is measured stays below 1e-12."""

IDS, PREFIX, MASKED = [3, 0, 5, 21, 5, 2], [0, 4, 6], 2

AUTO = {
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "AutoModelForImageClassification",
}


class Theirs:
    """A checkpoint by transformers in float64: its input embeddings (or pixels), and the explained
    logit as a function of these.
    """

    def __init__(self, loaded: Any, kind: str, target: int, ids: list[int] = IDS) -> None:
        self.twin = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        self.twin.load_state_dict(loaded.state_dict())
        self.twin.eval()
        self.kind, self.target, self.ids = kind, target, ids
        self.row = {"bert": MASKED, "roberta": MASKED}.get(kind, -1)

    def embedded(self, ids: list[int]) -> Any:
        return self.twin.get_input_embeddings()(torch.tensor([ids])).detach()

    @property
    def inputs(self) -> tuple[Any, ...]:
        if self.kind == "vit":
            return (torch.tensor(picture())[None],)
        decoder = (self.embedded(PREFIX),) if self.kind == "t5" else ()
        return (self.embedded(self.ids), *decoder)

    def logits(self, *x: Any) -> Any:  # -> (B, V)
        if self.kind == "vit":
            return self.twin(pixel_values=x[0]).logits
        decoder = {"decoder_inputs_embeds": x[1]} if self.kind == "t5" else {}
        mask = torch.ones(x[0].shape[:2], dtype=torch.long)
        return self.twin(inputs_embeds=x[0], attention_mask=mask, **decoder).logits[:, self.row]

    def __call__(self, *x: Any) -> Any:  # -> (B,)
        return self.logits(*x)[:, self.target]


def loaded_from(folder: Path, kind: str) -> Any:
    """As the file has it: to be called outside of `wide`."""
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    return auto.from_pretrained(folder, torch_dtype="auto")


def picture() -> Any:
    return np.random.default_rng(1).standard_normal((3, 12, 12))


KINDS = ("llama", "gpt2", "gemma2", "bert", "roberta", "t5", "vit")

Both = Callable[..., tuple[Any, Theirs]]


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, make: Make, tmp_path: Path) -> Iterator[Both]:
    """both(method, options) -> our explanation, and their model."""
    kind = request.param
    if kind in ("bert", "roberta"):
        folder = write_encoder(tmp_path, f"{kind.title()}ForMaskedLM", {})
    elif kind in ("t5", "vit"):
        drawn = random_t5() if kind == "t5" else random_vision("vit", "ForImageClassification")
        drawn.save_pretrained(tmp_path)
        folder = tmp_path
    else:
        folder = make(kind)
    how: dict[str, Any] = {"decoder": PREFIX} if kind == "t5" else {}
    how |= {"position": MASKED} if kind in ("bert", "roberta") else {}
    model, loaded = refl.load(folder, dtype="float64"), loaded_from(folder, kind)

    def found(method: str, **options: Any) -> tuple[Any, Theirs]:
        item = picture() if kind == "vit" else IDS
        e = model.explain(item, method, options=options, batch_tokens=40, **how)
        return e, Theirs(loaded, kind, e.target_id)

    with wide():
        yield found


def ours(e: Any) -> list[Any]:
    return [r for r in (e.relevance, e.decoder_relevance) if r is not None]


def same(e: Any, theirs: Any) -> None:
    size = max(np.abs(r).max() for r in ours(e))
    for r, x in zip(ours(e), theirs, strict=True):
        assert np.abs(r - x).max() <= BOUND * size, f"{np.abs(r - x).max() / size:.1e}"


def scores(x: Any) -> list[Any]:
    """Summed over features, or channels."""
    return [a.detach().numpy()[0].sum(axis=-1 if a.ndim == 3 else 0) for a in x]


# -- integrated gradients --------------------------------------------------------------------------

METHODS = {
    "gauss-legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "right-end": "riemann_right",
}


@pytest.mark.parametrize("nodes", METHODS)
def test_integrated_gradients(nodes: str, both: Both) -> None:
    e, f = both("integrated-gradients", nodes=nodes, steps=7)
    found = captum.IntegratedGradients(f).attribute(f.inputs, method=METHODS[nodes], n_steps=7)
    same(e, scores(found))


def test_integrated_gradients_from_a_token(make: Make) -> None:
    folder = make("llama")
    options = {"nodes": "gauss-legendre", "steps": 9, "baseline": 7}
    e = refl.load(folder, dtype="float64").explain(IDS, "integrated-gradients", options=options)
    loaded = loaded_from(folder, "llama")
    with wide():
        f = Theirs(loaded, "llama", e.target_id)
        start = f.embedded([7] * len(IDS))
        how = {"method": "gausslegendre", "n_steps": 9, "return_convergence_delta": True}
        found, delta = captum.IntegratedGradients(f).attribute(f.inputs, (start,), **how)
    same(e, scores(found))  # captum's delta is minus what the ledger has
    assert e.ledger.absorbed["quadrature"] == pytest.approx(-float(delta[0]), rel=1e-6)


# -- SmoothGrad ------------------------------------------------------------------------------------


def test_smooth_grad(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """captum's noise tunnel, fed the noise that is drawn here."""
    e, f = both("smoothgrad", samples=4, noise=0.15, draw=2)
    x = f.inputs
    drawn = [np.random.default_rng((2, k)) for k in range(4)]
    noise = [torch.tensor(np.stack([r.standard_normal(a.shape[1:]) for r in drawn])) for a in x]
    left = iter(noise)
    monkeypatch.setattr(torch, "normal", lambda mean, width: mean + width * next(left))
    widths = tuple(0.15 * float(a.max() - a.min()) for a in x)
    tunnel = captum.NoiseTunnel(captum.Saliency(f))
    found = tunnel.attribute(x, nt_samples=4, stdevs=widths, abs=False)
    features = 1 if f.kind == "vit" else -1
    same(e, [torch.linalg.norm(a, dim=features).numpy()[0] for a in found])


# -- occlusion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 2), (4, 1)])
def test_occlusion(window: int, stride: int, both: Both) -> None:
    e, f = both("occlusion", window=window, stride=stride)
    x, found = f.inputs, []
    for n, a in enumerate(x):  # one side at a time: captum would take both away at once
        last = a.shape[2:] if a.ndim == 3 else (window, window)
        first = (min(window, a.shape[1]),) if a.ndim == 3 else (a.shape[1],)
        step = (stride, *last) if a.ndim == 3 else (a.shape[1], stride, stride)

        def alone(changed: Any, n: int = n) -> Any:
            return f(*x[:n], changed, *x[n + 1 :])

        (r,) = captum.Occlusion(alone).attribute((a,), (first + tuple(last),), (step,))
        found.append(r.detach().numpy()[0, :, 0] if a.ndim == 3 else r.detach().numpy()[0, 0])
    same(e, found)


# -- AtMan -----------------------------------------------------------------------------------------


@contextmanager
def suppressed(columns: list[int], keys: int, p: float, form: str) -> Iterator[None]:
    """Every softmax over so many keys has the scores of these scaled by 1 - p."""
    plain = torch.nn.functional.softmax

    def softmax(s: Any, dim: int, **how: Any) -> Any:
        if s.ndim == 4 and s.shape[-1] == keys:
            if form == "code":
                visible = s > torch.finfo(s.dtype).min / 2
                s = s - torch.where(visible, s, torch.inf).amin(-1, keepdim=True)
            s = s.clone()
            s[..., columns] *= 1 - p
        return plain(s, dim=dim, **how)

    torch.nn.functional.softmax = softmax
    try:
        yield
    finally:
        torch.nn.functional.softmax = plain


@pytest.mark.parametrize("form", ["paper", "code"])
def test_atman(form: str, both: Both) -> None:
    """An encoder's and a decoder's tokens are told apart by how many there are."""
    e, f = both("atman", p=0.6, form=form)
    learned = 1 if f.kind == "vit" else 0
    counts = [9] if f.kind == "vit" else [len(r) for r in ours(e)]

    def loss(*at: Any) -> float:
        with suppressed(*at, 0.6, form), torch.no_grad():
            return -float(torch.log_softmax(f.logits(*f.inputs)[0], -1)[f.target])

    rise = [
        np.asarray([loss([learned + i], learned + n) - loss([], -1) for i in range(n)])
        for n in counts
    ]
    if f.kind == "vit":
        np.testing.assert_allclose(e.patches.reshape(-1), rise[0], atol=1e-11)
    else:
        same(e, rise)


# -- a trained model -------------------------------------------------------------------------------


def test_a_trained_model() -> None:
    folder = checkpoint("stories260K")
    model = refl.load(folder, dtype="float64")
    text = "Once upon a time there was a"
    ids = model.encode(text)
    smooth = {"nodes": "gauss-legendre", "steps": 16, "baseline": "unk"}
    path = model.explain(text, "integrated-gradients", options=smooth)
    gone = model.explain(text, "occlusion", options={"window": 2, "fill": "unk"})
    loaded = loaded_from(folder, "llama")
    with wide():
        f = Theirs(loaded, "llama", path.target_id, ids)
        (x,) = f.inputs
        start = f.embedded([model.text.unknown] * len(ids))
        found = captum.IntegratedGradients(f).attribute((x,), (start,), n_steps=16)
        same(path, scores(found))
        size = x.shape[2]
        r = captum.Occlusion(f).attribute(x, (2, size), (1, size), baselines=start)
        same(gone, [r.detach().numpy()[0, :, 0]])
