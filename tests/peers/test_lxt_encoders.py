"""refl beside LXT 2.1 on BERT: the gradient x input form of its replaced module, and where that
module forgets a rule.

LXT replaces the whole of transformers' BERT by a copy of its own. Here the copy's classes are taken
as they are, so that nothing of transformers has to be put back; only LayerNorm and Dropout are
patched, for as long as it runs.

Run with `-s` to see the numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import draw
from transformers_models import ENCODERS, write_encoder

import refl
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.verification.definitions import surrogate
from refl.verification.peers import lxt

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
pytest.importorskip("transformers", reason="transformers is not installed (the extra 'peers')")
try:
    bert, rules = lxt.load("lxt.efficient.models.bert"), lxt.load("lxt.efficient.rules")
except ImportError as absent:
    pytest.skip(f"LXT is not usable here: {absent}", allow_module_level=True)

ROUNDING = 1e-12
"""float64 on both sides, of the largest relevance: measured 1e-16 to 1e-14."""

MASKED = ["bert", "bert-untied", "bert-gelu-new", "bert-silu-deep", "bert-tanh"]
CLASSES = ["bert-classes", "bert-two-classes"]

IDS = draw(11)
POSITION = 6
"""Of a token that stands there alone: the surrogate takes it for the mask."""


def distance(ours: Any, theirs: Any) -> float:
    """The largest deviation, in units of the largest of ours."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@contextmanager
def patched(identity_eps: float) -> Iterator[None]:
    with ExitStack() as stack:
        for target, patch in bert.attnLRP.items():
            if isinstance(target, type):
                stack.enter_context(lxt.restored(target, "forward"))
                patch(target)
        forward = rules.identity_rule_implicit_fn.forward
        stack.enter_context(lxt.restored(forward, "__defaults__"))
        forward.__defaults__ = (identity_eps,)
        yield


def gradient_form(
    folder: Path, target: int, *, identity_eps: float = lxt.IDENTITY_EPS, attention: str = "sdpa"
) -> lxt.Found:
    """As lxt.gradient_form for decoders; the logit is that of POSITION, or of a class."""
    kind = bert.BertConfig.from_pretrained(folder).architectures[0]
    tokens = torch.tensor([IDS])
    blocks: dict[str, Any] = {}
    entered: list[float] = []
    with patched(identity_eps):
        model = (
            getattr(bert, kind)
            .from_pretrained(folder, torch_dtype=torch.float64, attn_implementation=attention)
            .eval()
        )
        hooks = [
            module.register_forward_hook(
                _keep(blocks, name) if name.rpartition(".")[2].isdigit() else _least(entered)
            )
            for name, module in model.named_modules()
            if name.rpartition(".")[0].endswith("encoder.layer")
            or name.endswith(("intermediate.dense", "transform.dense", "pooler.dense"))
        ]
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=torch.ones_like(tokens)).logits
        logit = logits[0, POSITION, target] if logits.ndim == 3 else logits[0, target]
        logit.backward()
    for hook in hooks:
        hook.remove()
    relevance = (embedded * embedded.grad)[0].sum(-1).detach().numpy()
    at_blocks = {name: (x * x.grad)[0].detach().numpy() for name, x in blocks.items()}
    return lxt.Found(logit.item(), relevance, at_blocks, min(entered))


def _keep(blocks: dict[str, Any], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        blocks[name] = output[0]
        blocks[name].retain_grad()

    return hook


def _least(entered: list[float]) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        entered.append(float(output.detach().abs().min()))

    return hook


@pytest.mark.parametrize("case", [*MASKED, *CLASSES])
def test_gradient_form(tmp_path: Path, case: str) -> None:
    """At the embeddings and at every block; with LXT's eps in f(x)/(x + 1e-10), whose first-order
    effect bounds the deviation, and without.

    One factor is off by 1e-10/|x|; through L blocks and a head the worst one can count L + 1 times.
    """
    folder = write_encoder(tmp_path, *ENCODERS[case])
    model = refl.load(folder, dtype="float64")
    e = model.explain(IDS, "attnlrp-gradient", position=None if model.task == "class" else POSITION)
    for eps in (lxt.IDENTITY_EPS, 0.0):
        found = gradient_form(folder, e.target_id, identity_eps=eps)
        bound = ROUNDING + (len(found.blocks) + 1) * eps / found.smallest
        assert found.logit == pytest.approx(e.logit, rel=ROUNDING)
        apart = [
            distance(e.relevance, found.relevance),
            *(distance(e[block], theirs) for block, theirs in found.blocks.items()),
        ]
        print(f"\n{case}, eps {eps:.0e}: {max(apart):.1e}, allowed {bound:.1e}")
        assert len(found.blocks) == model.config.num_hidden_layers
        assert max(apart) < bound


def test_both_forms_of_attention_and_the_surrogate(tmp_path: Path) -> None:
    """LXT's copy has its rules in the attention of "sdpa" and in that of "eager"; both give what
    refl gives, and what the gradient of the frozen surrogate gives, which knows neither library."""
    folder = write_encoder(tmp_path, *ENCODERS["bert"])
    model = refl.load(folder, dtype="float64")
    e = model.explain(IDS, "attnlrp-gradient", position=POSITION)
    sdpa, eager = (
        gradient_form(folder, e.target_id, identity_eps=0.0, attention=form)
        for form in ("sdpa", "eager")
    )
    truth = surrogate_relevance(model, e.target_id)
    print(
        f"\nrefl {e.relevance.sum()}, LXT {sdpa.relevance.sum()} and "
        f"{eager.relevance.sum()}, surrogate {truth.sum()}"
    )
    for other in (truth, sdpa.relevance, eager.relevance):
        assert distance(e.relevance, other) < ROUNDING


def surrogate_relevance(model: Any, target: int) -> Any:
    """Activation times the gradient of the frozen surrogate, at the words' embeddings: (T,)."""
    model, site = replace(model, mask_id=IDS[POSITION]), "bert.embeddings.word_embeddings"
    around = surrogate.record(model, IDS)[0]
    g = surrogate.gradient(model, IDS, site, target, around=around)
    return (around[site].output.array[0] * g).sum(-1)


def test_there_is_no_cp_lrp_for_bert() -> None:
    """AttnLRP alone can be compared; were there more,
    it would have to be held against refl's here.
    """
    assert [name for name in vars(bert) if "lrp" in name.lower() and name != "lxt"] == ["attnLRP"]


def test_patches_are_undone() -> None:
    with patched(0.0):
        assert torch.nn.LayerNorm.forward.__module__.startswith("lxt")
    assert torch.nn.LayerNorm.forward.__module__ == "torch.nn.modules.normalization"
    assert rules.identity_rule_implicit_fn.forward.__defaults__ == (lxt.IDENTITY_EPS,)


def test_fault_a_unit_at_zero(tmp_path: Path) -> None:
    """A hidden unit whose weights cancel stands at 0, where the factor f(x)/x is f'(0) = 1/2 and
    LXT's f(x)/(x + 1e-10) is 0: what the unit had to hand on is lost. The surrogate, and LXT itself
    a step of 1e-3 beside the zero, say what it is."""
    folder = write_encoder(tmp_path, *ENCODERS["bert"])
    at_zero, beside = (pinned(folder, bias) for bias in (0.0, 1e-3))
    e = refl.load(at_zero, dtype="float64").explain(IDS, "attnlrp-gradient", position=POSITION)
    truth = surrogate_relevance(refl.load(at_zero, dtype="float64"), e.target_id)
    theirs, near = (gradient_form(f, e.target_id).relevance for f in (at_zero, beside))
    print(
        f"\nunits at zero: refl {e.relevance.sum():.6f}, LXT {theirs.sum():.6f}, surrogate "
        f"{truth.sum():.6f}, LXT at 0.001 {near.sum():.6f}: "
        "refl is right"
    )
    assert distance(e.relevance, truth) < ROUNDING
    assert distance(e.relevance, near) < 0.003
    assert distance(e.relevance, theirs) > 0.03


def pinned(folder: Path, bias: float) -> Path:
    """A copy whose last block's hidden units all stand at `bias` for the explained token: their own
    biases take away what is beyond.
    """
    tensors, metadata = read_safetensors(folder / "model.safetensors")
    site = "bert.encoder.layer.1.intermediate.dense"
    x = (
        refl.load(folder, dtype="float64")
        .explain(IDS, position=POSITION, keep=f"{site}.input")
        .activation(f"{site}.input")[POSITION]
    )
    wide = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    copy = folder / f"at {bias}"
    copy.mkdir()
    write_safetensors(
        copy / "model.safetensors",
        wide | {f"{site}.bias": bias - wide[f"{site}.weight"] @ x},
        metadata,
    )
    shutil.copy(folder / "config.json", copy)
    return copy
