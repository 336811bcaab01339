"""Nets of experts beside LXT: its rules for what surrounds the experts agree with refl's; its
r/sum(r) does not, and both numbers are shown.

The gate weights of the k chosen experts are divided by their sum. LXT takes this as a function of
the weights: its Mixtral (relevance form) sends relevance through it by the epsilon rule, its Qwen 3
MoE (gradient x input form) by autograd. The function does not change when all its arguments are
scaled together (it is homogeneous of degree 0), so by Euler's theorem both pass on nothing in sum:
what the experts' gates received never reaches the router. refl takes it as a normalization, whose
scale is no function of the input, as AttnLRP does for norms (prop. 3.4): everything is passed on.
LXT itself reads RMSNorm so, which differs only in dividing by another length of its input.

The wheel of LXT 2.1 has neither of the two models. Here its operations are put where its repository
puts them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import Make

import refl
from refl.rules import renormalize
from refl.rules.composites import Rule
from refl.rules.published import ATTNLRP_GRADIENT
from refl.verification.peers import lxt

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
pytest.importorskip("transformers", reason="transformers is not installed (the extra 'peers')")
try:
    explicit, efficient, patches = (
        lxt.load(f"lxt.{name}")
        for name in ("explicit.rules", "efficient.rules", "efficient.patches")
    )
except ImportError as absent:
    pytest.skip(f"LXT is not usable here: {absent}", allow_module_level=True)

ROUNDING = 1e-12
IDS = [3, 17, 5, 22, 9, 0, 28]
AS_LXT = ATTNLRP_GRADIENT.override(
    Rule("renormalize", "gradient"), name="attnlrp-gradient, degree 0"
)


@pytest.fixture(autouse=True)
def blocks_of_qwen3_moe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lxt.BLOCKS, "qwen3_moe", "model.layers.{}")


# -- the rule --------------------------------------------------------------------------------------


def test_the_epsilon_rule_through_a_quotient_of_degree_0() -> None:
    """LXT's EpsilonRule around r/sum(r), as its Mixtral has it: the same numbers as refl's rule
    `epsilon`, which sum to 1e-16.
    """
    random = np.random.default_rng(3)
    r, relevance = random.uniform(0.05, 0.6, (1, 6, 2)), random.standard_normal((1, 6, 2))
    given = torch.tensor(r, requires_grad=True)
    explicit.epsilon_lrp(lambda x: x / x.sum(-1, keepdim=True), 1e-8, given).backward(
        torch.tensor(relevance)
    )
    theirs, z = given.grad.numpy(), renormalize.forward(r)

    ours = renormalize.epsilon(r, z, relevance, eps=1e-8, stabilizer="plain")
    assert np.abs(ours.inputs[0] - theirs).max() < 1e-14
    kept = renormalize.identity(r, z, relevance).inputs[0]
    print(
        f"\nmoe-degree-0, one router: received {relevance.sum():.6f}, refl passes on "
        f"{kept.sum():.6f}, LXT {theirs.sum():.1e}"
    )
    assert np.abs(theirs.sum(axis=-1)).max() < 1e-15, "every token's relevance is lost"
    assert kept.sum() == relevance.sum()
    assert ours.absorbed["renormalization_offset"] == pytest.approx(relevance.sum(), rel=1e-6), (
        "refl records what the rule loses"
    )


# -- the model -------------------------------------------------------------------------------------


def experts_forward(self: Any, x: Any, *, scale: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Qwen3MoeSparseMoeBlock with the product of gate weight and expert output halved, as LXT
    halves every product; experts run on every token, and a token's weight is zero where it did not
    choose the expert. `scale` is how the sum of the chosen weights is seen."""
    logits = self.gate(x)
    r, chosen = torch.topk(torch.softmax(logits, -1), self.top_k, dim=-1)
    r = r / scale(r.sum(-1, keepdim=True)) if self.norm_topk_prob else r
    weights = [(r * (chosen == e)).sum(-1, keepdim=True) for e in range(self.num_experts)]
    return sum(
        efficient.divide_gradient(w * expert(x), 2)
        for w, expert in zip(weights, self.experts, strict=True)
    ), logits


@contextmanager
def patched(scale: Callable[[Any], Any]) -> Iterator[None]:
    """LXT's patches on transformers' Qwen 3 MoE, its eps in f(x)/(x + eps) set to 0;
    undone afterwards.
    """
    modeling: Any = importlib.import_module("transformers.models.qwen3_moe.modeling_qwen3_moe")
    forwards = {
        modeling.Qwen3MoeMLP: patches.gated_mlp_forward,
        modeling.Qwen3MoeRMSNorm: patches.rms_norm_forward,
        modeling.Qwen3MoeSparseMoeBlock: lambda self, x: experts_forward(self, x, scale=scale),
    }
    with ExitStack() as stack:
        for owner, name in [(cls, "forward") for cls in forwards] + [
            (modeling, "eager_attention_forward"),
            (modeling, "ALL_ATTENTION_FUNCTIONS"),
        ]:
            stack.enter_context(lxt.restored(owner, name))
        stack.enter_context(
            lxt.restored(efficient.identity_rule_implicit_fn.forward, "__defaults__")
        )
        efficient.identity_rule_implicit_fn.forward.__defaults__ = (0.0,)
        modeling.ALL_ATTENTION_FUNCTIONS = dict(modeling.ALL_ATTENTION_FUNCTIONS)
        for cls, forward in forwards.items():
            cls.forward = forward
        patches.patch_attention(modeling)
        yield


def gradient_form(folder: Path, target: int, scale: Callable[[Any], Any]) -> lxt.Found:
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with lxt.wide(), patched(scale):
        return lxt.backward(lxt.widened(loaded), "qwen3_moe", IDS, target)


def with_gradient(s: Any) -> Any:
    return s


def without_gradient(s: Any) -> Any:
    return s.detach()


def apart(e: refl.explanation.Explanation, found: lxt.Found) -> float:
    """The largest deviation at the embeddings and at every block,
    in units of the largest relevance there.
    """
    pairs = [
        (e.relevance, found.relevance),
        *((e[site], theirs) for site, theirs in found.blocks.items()),
    ]
    return max(float(np.abs(ours - theirs).max() / np.abs(ours).max()) for ours, theirs in pairs)


@pytest.mark.parametrize(
    "options",
    [{}, {"mlp_only_layers": [1], "attention_bias": True}],
    ids=["plain", "dense-block-and-biases"],
)
def test_without_renormalization_lxt_agrees(make: Make, options: dict[str, Any]) -> None:
    """Router, experts, gate weights: where the config does not divide
    by their sum, nothing is left to differ.
    """
    folder = make("qwen3_moe", norm_topk_prob=False, **options)
    e = refl.load(folder, dtype="float64").explain(IDS, "attnlrp-gradient")
    found = gradient_form(folder, e.target_id, with_gradient)
    assert found.logit == pytest.approx(e.logit, rel=ROUNDING)
    assert apart(e, found) < ROUNDING


def test_fault_moe_degree_0(make: Make) -> None:
    """refl with the rule `gradient` for the renormalization is LXT to rounding; refl's default is
    LXT with the sum detached, as LXT does in every norm. The conservation ledger tells which is
    right: under LXT's reading what the gates receive is absorbed whole."""
    folder = make("qwen3_moe", norm_topk_prob=True)
    model = refl.load(folder, dtype="float64")
    e, lost = model.explain(IDS, "attnlrp-gradient"), model.explain(IDS, AS_LXT)
    live, detached = (
        gradient_form(folder, e.target_id, scale) for scale in (with_gradient, without_gradient)
    )
    assert live.logit == detached.logit == pytest.approx(e.logit, rel=ROUNDING)
    assert apart(lost, live) < ROUNDING
    assert apart(e, detached) < ROUNDING
    sites = [site for site in e if site.endswith(".routing_weights")]
    assert sites
    for site in sites:
        kept, gone = e.ledger[site], lost.ledger[site]
        print(
            f"\nmoe-degree-0, {site}: received {kept.received:.6f}, refl passes on "
            f"{float(sum(kept.passed.values())):.6f}; "
            f"LXT received {gone.received:.6f}, passes on "
            f"{float(sum(gone.passed.values())):.1e}"
        )
        assert sum(kept.passed.values()) == pytest.approx(kept.received, abs=1e-14)
        assert abs(sum(gone.passed.values())) < 1e-15
        assert gone.absorbed["renormalization_offset"] == pytest.approx(gone.received, abs=1e-14)
    print(
        f"logit {e.logit:.6f}: tokens get {e.relevance.sum():.6f} from refl, "
        f"{live.relevance.sum():.6f} from LXT"
    )
    assert apart(e, live) > 1e-3
