"""refl beside LXT 2.1: where they agree, to the last digits; where they do not, both numbers and
which of them is right.

    gradient x input form     attnlrp-gradient and cp-lrp equal LXT's patches of transformers, at
                              the embeddings and at every block
    relevance form            every operation of lxt.explicit equals refl's rule, and a Llama made
                              of them equals the composite lxt-explicit
    known faults              reproduced, each beside the definition it breaks

Run with `-s` to see the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from transformers_models import Make, random_model

import refl
from refl.rules import (
    activation,
    add,
    layer_norm,
    linear,
    matmul,
    multiply,
    pooling,
    rms_norm,
    softmax,
)
from refl.rules.conservation import Forms, RuleOutput
from refl.rules.operations import OPERATIONS
from refl.verification.peers import lxt

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
pytest.importorskip("transformers", reason="transformers is not installed (the extra 'peers')")
try:
    functional, explicit = lxt.load("lxt.explicit.functional"), lxt.load("lxt.explicit.rules")
except ImportError as absent:
    pytest.skip(f"LXT is not usable here: {absent}", allow_module_level=True)

ROUNDING = 1e-12
"""float64 on both sides, of the largest relevance: measured 1e-16 to 1e-14."""

CHECKPOINTS = ("stories260K", "babyllama105", "capp_gpt2", "nano_sort_gpt2")

RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-groups": ("llama", {"num_key_value_heads": 2, "head_dim": 10}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-gelu": ("llama", {"hidden_act": "gelu", "tie_word_embeddings": True}),
    "llama-llama3": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": (
        "gpt2",
        {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40},
    ),
    "gpt2-scales": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "silu"},
    ),
}


def distance(ours: Any, theirs: Any) -> float:
    """The largest deviation, in units of the largest of ours."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def show(case: str, *, ours: Any, theirs: Any, correct: str) -> None:
    print(f"\n{case}: refl {ours}, LXT {theirs}; {correct}")


# -- gradient x input form -------------------------------------------------------------------------


def text(folder: Path) -> list[int]:
    stored = folder / "golden.npz"
    if not stored.exists():
        return np.random.default_rng(5).integers(0, 29, 11).tolist()
    with np.load(stored) as golden:
        return [int(i) for i in golden["input_ids"][0]]


def gradient_forms_agree(folder: Path, method: str) -> None:
    """Twice: with LXT's eps in f(x)/(x + 1e-10), whose first-order effect bounds the deviation, and
    without it, to rounding.

    One factor is off by 1e-10/|x|; through L blocks the worst one can count L times.
    """
    ids = text(folder)
    e = refl.load(folder, dtype="float64").explain(ids, method, keep="*")
    for eps in (lxt.IDENTITY_EPS, 0.0):
        found = lxt.gradient_form(folder, ids, e.target_id, method, identity_eps=eps)
        bound = ROUNDING + len(found.blocks) * eps / found.smallest
        assert found.logit == pytest.approx(e.logit, rel=ROUNDING)
        assert distance(e.relevance, found.relevance) < bound
        for block, theirs in found.blocks.items():
            assert distance(e[block], theirs) < bound, block


@pytest.mark.parametrize("method", lxt.MAPS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_gradient_form_on_checkpoints(name: str, method: str) -> None:
    gradient_forms_agree(checkpoint(name), method)


@pytest.mark.parametrize("method", lxt.MAPS)
@pytest.mark.parametrize(("kind", "options"), RANDOM.values(), ids=RANDOM)
def test_gradient_form_on_random_models(
    make: Make, kind: str, options: dict[str, Any], method: str
) -> None:
    gradient_forms_agree(make(kind, **options), method)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_patches_are_undone(make: Make, kind: str) -> None:
    """After LXT has run, a model's gradient is the plain one again,
    in this kind of model and in the other.
    """
    folder = make(kind)
    before = {name: plain_gradient(name) for name in ("llama", "gpt2")}
    for method in lxt.MAPS:
        lxt.gradient_form(folder, [1, 2, 3], 4, method)
    assert before == {name: plain_gradient(name) for name in before}


def plain_gradient(kind: str) -> list[float]:
    model = random_model(kind)
    model.eval()(torch.tensor([[1, 2, 3]])).logits[0, -1, 4].backward()
    return [float(g) for g in model.get_input_embeddings().weight.grad[2]]


# -- gradient x input form, known faults -----------------------------------------------------------


def test_fault_logit_squared() -> None:
    """LXT's examples seed the gradient x input form with the logit: relevance then sums to the
    logit squared. cp-lrp on a model without biases conserves exactly, so the sum has to be the
    logit."""
    folder = checkpoint("stories260K")
    e = refl.load(folder, dtype="float64").explain(text(folder), "cp-lrp", keep=())
    theirs = lxt.gradient_form(
        folder, text(folder), e.target_id, "cp-lrp", seed_with_logit=True
    ).relevance.sum()
    show(
        "logit-squared",
        ours=e.relevance.sum(),
        theirs=theirs,
        correct=f"the logit is {e.logit}: refl is right",
    )
    assert e.relevance.sum() == pytest.approx(e.logit, rel=ROUNDING)
    assert theirs == pytest.approx(e.logit**2, rel=ROUNDING)


def test_fault_reordered_attention_is_not_patched(make: Make) -> None:
    """reorder_and_upcast_attn is the same function computed in another order, so relevance cannot
    depend on it. With it transformers calls a method that LXT leaves alone: attention then passes
    its plain gradient, without the factors 1/4, 1/4, 1/2."""
    plain = make("gpt2")
    ids = text(plain)
    e = refl.load(plain, dtype="float64").explain(ids, "attnlrp-gradient", keep=())
    assert (
        distance(
            e.relevance, lxt.gradient_form(plain, ids, e.target_id, identity_eps=0.0).relevance
        )
        < ROUNDING
    )

    config = json.loads((plain / "config.json").read_text()) | {"reorder_and_upcast_attn": True}
    (plain / "config.json").write_text(json.dumps(config))
    again = refl.load(plain, dtype="float64").explain(ids, "attnlrp-gradient", keep=())
    theirs = lxt.gradient_form(plain, ids, e.target_id, identity_eps=0.0)
    show(
        "reordered",
        ours=again.relevance.sum(),
        theirs=theirs.relevance.sum(),
        correct=f"without the option both give {e.relevance.sum()}",
    )
    assert theirs.logit == pytest.approx(e.logit, rel=ROUNDING)
    assert (again.relevance == e.relevance).all()
    assert distance(e.relevance, theirs.relevance) > 0.01


@pytest.mark.parametrize(
    ("x", "correct", "wrong"),
    [(0.0, 0.5, 0.0), (-2e-10, 0.5, 1.0), (1.0, 0.7310585786, 0.7310585786)],
    ids=["zero", "near-minus-eps", "elsewhere"],
)
def test_fault_identity_near_zero(x: float, correct: float, wrong: float) -> None:
    """The factor of the identity rule is f(x)/x, with the limit f'(0) = 1/2 for SiLU. LXT's f(x)/(x
    + 1e-10) gives 0 at 0, and has a pole at -1e-10. A unit that happens to stand at 0 has inputs
    that cancel, and each of those has relevance to receive."""
    rules = lxt.load("lxt.efficient.rules")
    t = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    rules.identity_rule_implicit(torch.nn.functional.silu, t).backward(
        torch.ones(1, dtype=torch.float64)
    )
    a = np.asarray([x])
    z = activation.forward(a, kind="silu")
    ours = activation.identity_gxi(a, z, np.ones(1), kind="silu").inputs[0][0]
    show("identity-at-zero", ours=ours, theirs=t.grad.item(), correct=f"the factor is {correct}")
    assert ours == pytest.approx(correct, rel=1e-9)
    assert t.grad.item() == pytest.approx(wrong, rel=1e-6)


# -- relevance form, operation by operation --------------------------------------------------------

EPS = {"stabilizer": "plain"}


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def theirs(function: Callable[..., Any], r: Any, *inputs: Any) -> list[Any]:
    """Relevance that LXT's operation gives each of its inputs, and its output first."""
    with lxt.wide():
        tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
        z = function(*tensors)
        z.backward(torch.as_tensor(r))
    return [z.detach().numpy(), *(t.grad.numpy() for t in tensors)]


def same(ours: tuple[Any, ...], others: list[Any]) -> None:
    for mine, other in zip((a for a in ours if a is not None), others, strict=True):
        assert distance(mine, other) < ROUNDING


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_epsilon(eps: float, bias: bool) -> None:
    x, w, b, r = normal(2, 5, 7), normal(3, 7), normal(3) if bias else None, normal(2, 5, 3)
    tw, tb = torch.tensor(w), None if b is None else torch.tensor(b)
    z = linear.forward(x, w, b)
    same(
        (z, *linear.epsilon(x, w, b, z, r, eps=eps, **EPS).inputs),
        theirs(lambda t: functional.linear_epsilon(t, tw, tb, eps), r, x),
    )


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_add2(eps: float) -> None:
    a, b, r = normal(2, 5, 7), normal(2, 5, 7, seed=1), normal(2, 5, 7, seed=2)
    z = add.forward(a, b)
    same(
        (z, *add.epsilon(a, b, z, r, eps=eps, **EPS).inputs),
        theirs(lambda s, t: functional.add2(s, t, False, eps), r, a, b),
    )


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_matmul(eps: float) -> None:
    """The form of q k^T: 2 z + eps."""
    a, v, r = normal(2, 3, 5, 4), normal(2, 3, 4, 6), normal(2, 3, 5, 6)
    z = matmul.forward(a, v)
    same(
        (z, *matmul.uniform(a, v, z, r, eps=eps, **EPS).inputs),
        theirs(lambda s, t: functional.matmul(s, t, False, eps), r, a, v),
    )


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_uniform_epsilon(eps: float) -> None:
    """The form of p v: 2 (z + eps)."""
    a, v, r = normal(2, 3, 5, 4), normal(2, 3, 4, 6), normal(2, 3, 5, 6)
    z = matmul.forward(a, v)
    ours = matmul.uniform(a, v, z, r, eps=eps, denominator="2(z+eps)", **EPS).inputs
    same(
        (z, *ours),
        theirs(
            lambda s, t: explicit.uniform_epsilon_lrp_fn.apply(torch.matmul, eps, s, t), r, a, v
        ),
    )
    other = matmul.uniform(a, v, z, r, eps=eps, **EPS).inputs
    # eps-two-forms: the two denominators are not the same rule
    assert distance(other[1], ours[1]) > 1e-2 * eps


def test_softmax() -> None:
    x, r = 3 * normal(2, 3, 5, 6), normal(2, 3, 5, 6, seed=1)
    p = softmax.forward(x)
    same((p, *softmax.taylor(x, p, r).inputs), theirs(lambda t: functional.softmax(t, -1), r, x))


def test_softmax_masked_by_infinity() -> None:
    x, r = normal(2, 3, 5, 5), normal(2, 3, 5, 5, seed=1)
    mask = np.tril(np.ones((5, 5), dtype=bool))
    p = softmax.forward(x, mask=mask)
    filled = np.where(mask, x, -np.inf)
    same(
        (p, *softmax.taylor(x, p, r, mask=mask).inputs),
        theirs(lambda t: functional.softmax(t, -1), r * mask, filled),
    )


def test_mul2() -> None:
    a, b, r = normal(2, 5, 7), normal(2, 5, 7, seed=1), normal(2, 5, 7, seed=2)
    z = multiply.forward(a, b, constant=(False, False))
    same(
        (z, *multiply.uniform(a, b, z, r, constant=(False, False)).inputs),
        theirs(functional.mul2, r, a, b),
    )
    constant = torch.tensor(b)
    same(
        (z, *multiply.uniform(a, b, z, r, constant=(False, True)).inputs),
        theirs(lambda t: functional.mul2(t, constant), r, a),
    )


def test_identity() -> None:
    x, r = normal(2, 5, 7), normal(2, 5, 7, seed=1)
    z = activation.forward(x, kind="silu")
    same(
        (z, *activation.identity(x, z, r, kind="silu").inputs),
        theirs(lambda t: explicit.identity(torch.nn.functional.silu, t), r, x),
    )


def test_rms_norm_identity() -> None:
    x, w, r = normal(2, 5, 7), normal(7), normal(2, 5, 7, seed=1)
    z, tw = rms_norm.forward(x, w, norm_eps=1e-3), torch.tensor(w)
    ours = rms_norm.identity(x, w, z, r, norm_eps=1e-3).inputs
    same((z, *ours), theirs(lambda t: functional.rms_norm_identity(t, tw, 1e-3), r, x))


def test_layer_norm() -> None:
    """LXT gives its layer_norm no eps of its own to set: it is 1e-6."""
    x, w, b, r = normal(2, 5, 7), normal(7), normal(7, seed=1), normal(2, 5, 7, seed=1)
    z, tw, tb = layer_norm.forward(x, w, b, norm_eps=1e-3), torch.tensor(w), torch.tensor(b)
    ours = layer_norm.epsilon(x, w, b, z, r, norm_eps=1e-3, eps=1e-6, **EPS).inputs
    same((z, *ours), theirs(lambda t: functional.layer_norm(t, tw, tb, 1e-3), r, x))


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_mean(eps: float) -> None:
    x, r = normal(2, 5, 7), normal(2, 1, 7)
    counted = np.ones((2, 5, 1))
    z = pooling.forward(x, counted=counted)
    ours = pooling.epsilon(x, z, r, counted=counted, eps=eps, **EPS).inputs
    same((z, *ours), theirs(lambda t: functional.mean(t, 1, True, eps), r, x))


# -- relevance form, a whole model -----------------------------------------------------------------


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    weights = {
        name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def explicit_llamas_agree(folder: Path) -> None:
    """At every site: embeddings, blocks, residuals, norms, projections, rotated q and k, scores,
    probabilities, context, gated units.
    """
    ids, config = text(folder), json.loads((folder / "config.json").read_text())
    e = refl.load(folder, dtype="float64").explain(ids, "lxt-explicit", keep="*")
    weights = weights_of(folder)
    with lxt.wide():  # LXT's RMSNorm is an island too
        others = lxt.explicit_llama(config, weights, ids, e.target_id)
    assert {f"model.layers.{i}" for i in range(config["num_hidden_layers"])} < set(others)
    for site, other in others.items():
        assert distance(e[site], other) < ROUNDING, site
    assert distance(e.relevance, others["model.embed_tokens"].sum(-1)) < ROUNDING


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_explicit_llama_on_checkpoints(name: str) -> None:
    explicit_llamas_agree(checkpoint(name))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_key_value_heads": 2, "head_dim": 10}, {"attention_bias": True, "mlp_bias": True}],
    ids=str,
)
def test_explicit_llama_on_random_models(make: Make, options: dict[str, Any]) -> None:
    explicit_llamas_agree(make("llama", **options))


# -- relevance form, known faults ------------------------------------------------------------------


def test_fault_eps_unsigned() -> None:
    """z = -1e-6 under eps = 1e-6. The paper's z + eps s(z) is -2e-6, and half of R passes; LXT's z
    + eps is a rounding error.
    """
    x, w, r = np.asarray([[1.0, -1.000001]]), np.ones((1, 2)), np.ones((1, 1))
    z = linear.forward(x, w, None)
    ours = linear.epsilon(x, w, None, z, r, eps=1e-6).inputs[0].sum()
    other = theirs(lambda t: functional.linear_epsilon(t, torch.tensor(w), None, 1e-6), r, x)[
        1
    ].sum()
    show("eps-unsigned", ours=ours, theirs=other, correct="0.5 by eq. 5: refl is right")
    assert ours == pytest.approx(0.5, rel=1e-9)
    assert other == pytest.approx(-1.2155602502e10, rel=1e-6)
    plain = linear.epsilon(x, w, None, z, r, eps=1e-6, stabilizer="plain").inputs[0].sum()
    assert plain == other  # the composite lxt-explicit reproduces the fault on purpose


def test_fault_softmax_dim() -> None:
    """Proposition 3.1 sums over the axis of the softmax.
    LXT sums over the last axis, whatever `dim` is.
    """
    x, r = normal(4, 6), normal(4, 6, seed=1)
    p = softmax.forward(x.T)
    ours = softmax.taylor(x.T, p, r.T).inputs[0].T
    output, other = theirs(lambda t: functional.softmax(t, 0), r, x)
    assert distance(p.T.copy(), output) < ROUNDING
    by_hand = np.asarray(
        [[x[i, c] * (r[i, c] - output[i, c] * sum(r[:, c])) for c in range(6)] for i in range(4)]
    )
    show(
        "softmax-dim",
        ours=distance(by_hand, ours),
        theirs=distance(by_hand, other),
        correct="distance from prop. 3.1: refl is right",
    )
    assert distance(by_hand, ours) < ROUNDING
    assert distance(by_hand, other) > 0.1


def test_fault_mask_finfo() -> None:
    """transformers masks with finfo.min as well as with -inf. Behind a mask p = 0, so nothing can
    come from there.
    """
    least = float(np.finfo(np.float32).min)
    x, r = (
        np.asarray([[1.0, 2.0, least]], dtype=np.float32),
        np.asarray([[0.5, 0.5, 1e-30]], dtype=np.float32),
    )
    ours = softmax.taylor(x, softmax.forward(x), r).inputs[0][0, 2]
    other = lxt_softmax(x, r)[0, 2]
    show("mask-finfo", ours=ours, theirs=other, correct="0: refl is right")
    assert ours == 0.0
    assert other == pytest.approx(-3.4028e8, rel=1e-4)


@pytest.mark.parametrize(
    "hidden", [float(np.finfo(np.float32).min), -np.inf], ids=["finfo", "infinity"]
)
def test_fault_row_masked_whole(hidden: float) -> None:
    """A padding token sees nothing: no relevance. LXT's row is of the order 1e37, or NaN."""
    x, r = (
        np.full((1, 3), hidden, dtype=np.float32),
        np.asarray([[0.5, 0.3, 0.1]], dtype=np.float32),
    )
    mask = np.zeros((1, 3), dtype=bool)
    ours = softmax.taylor(x, softmax.forward(x, mask=mask), r, mask=mask).inputs[0]
    other = lxt_softmax(x, r)
    show("row masked whole", ours=ours, theirs=other, correct="0, 0, 0: refl is right")
    assert (ours == 0).all()
    assert np.isnan(other).all() or np.abs(other).max() > 1e37


def lxt_softmax(x: Any, r: Any) -> Any:
    t = torch.tensor(x, requires_grad=True)
    functional.softmax(t, -1).backward(torch.tensor(r))
    return t.grad.numpy()


def test_fault_constant_eats_share() -> None:
    """A product with a constant is a linear map: all of R goes to the other operand. LXT's
    UniformRule gives the constant half.
    """
    x, c, r = (
        np.asarray([[1.0, 2.0, 3.0]]),
        np.asarray([[2.0, 2.0, 2.0]]),
        np.asarray([[1.0, 2.0, 3.0]]),
    )
    ours = multiply.uniform(x, c, x * c, r, constant=(False, True)).inputs
    assert ours[1] is None
    other = theirs(lambda t: explicit.uniform_rule_fn.apply(torch.mul, t, torch.tensor(c)), r, x)[1]
    show("constant-eats-share", ours=ours[0].sum(), theirs=other.sum(), correct="6: refl is right")
    assert ours[0].sum() == 6.0
    assert other.sum() == 3.0


def test_fault_vacuous_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that returns 1000 R - 7 must not pass a conservation check. LXT's check replaces what
    a rule returns by the uniform mean of what arrived, so every rule passes. refl's ledger adds up
    what the rule itself handed on."""
    r = np.asarray([[1.0, 2.0, 3.0]])
    with lxt.load("lxt.explicit.check").conservation_check():
        checked = theirs(wrong_rule().apply, r, np.ones((1, 3)))[1]
    unchecked = theirs(wrong_rule().apply, r, np.ones((1, 3)))[1]

    def wrong(*operands: Any, eps: float = 1e-6, stabilizer: str = "sign") -> RuleOutput:
        passed = linear.epsilon(*operands, eps=eps, stabilizer=stabilizer)
        return passed._replace(inputs=(1000 * passed.inputs[0] - 7, None, None))

    folder = checkpoint("nano_sort_gpt2")
    model = refl.load(folder, dtype="float64")
    sound = abs(model.explain(text(folder), keep=()).ledger["lm_head"].conservation_error)
    monkeypatch.setitem(OPERATIONS["linear"].rules, "epsilon", Forms(wrong))
    broken = abs(model.explain(text(folder), keep=()).ledger["lm_head"].conservation_error)
    show(
        "vacuous-check",
        ours=f"conservation error {sound:.0e}, with the wrong rule {broken:.0f}",
        theirs=f"sum {checked.sum()} of 6",
        correct="refl sees it",
    )
    assert checked.sum() == 6.0
    assert unchecked.sum() == 1000 * 6 - 7 * 3
    assert sound < 1e-12
    assert broken > 1000


def wrong_rule() -> Any:
    class Wrong(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        @functional.conservation_check_wrap
        def backward(ctx: Any, *out_relevance: Any) -> Any:
            return (1000 * out_relevance[0] - 7,)

    return Wrong
