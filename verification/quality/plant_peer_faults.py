"""The faults found in published libraries, planted one at a time in a right adapter.

    python -m refl.verification.quality.plant_peer_faults

Is the conformance suite worth its name? It is when it catches each of these faults and says which
one it is. A plant takes a fresh copy of the torch adapter and puts a function with the fault in
place of the right one, written the way the library writes it. It shares nothing but ids with
`conformance/mistakes.py`, from which the diagnosis is formed: two people's accounts of a fault have
to agree. A fault counts as caught when every rule named in its line fails, and as named when the
diagnosis of each puts it first.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.report import Report
from refl.verification.conformance.results import FAILED, ModelResult
from refl.verification.conformance.runner import run
from refl.verification.vectors.rule_vectors import rules

ADAPTER = Path(__file__).parents[1] / "conformance" / "adapters" / "torch_reference.py"

STABILIZED = (
    "linear_epsilon",
    "convolution_epsilon",
    "add_epsilon",
    "sum_epsilon",
    "matmul_uniform",
    "matmul_flattened",
    "matmul_second",
    "layer_norm_epsilon",
    "rotary_epsilon",
    "rotary_uniform",
    "pooling_epsilon",
    "fan_out_epsilon",
    "attention_attnlrp",
    "attention_cp",
)
WITH_DEAD_UNITS = (
    "linear_epsilon",
    "convolution_epsilon",
    "add_epsilon",
    "matmul_uniform",
    "matmul_flattened",
    "matmul_second",
    "layer_norm_epsilon",
    "pooling_epsilon",
)
"""Those whose vectors have terms that cancel to an exact zero."""
ATTENTION = ("attention_attnlrp", "attention_cp", "attention_attnlrp_gxi", "attention_cp_gxi")
ROTARY = ("rotary_epsilon", "rotary_uniform", "rotary_uniform_gxi", "rotary_gradient")
GROUPED = ("repeat_heads_pass_through", "attention_attnlrp", "attention_cp")
WITH_ZEROS = (
    "linear_flat",
    "linear_w_square",
    "linear_z_box",
    "activation_identity",
    "rms_norm_identity",
    "layer_norm_identity",
)
WHERE_EPS_SHOWS = (
    "linear_epsilon",
    "matmul_uniform",
    "layer_norm_epsilon",
    "attention_attnlrp",
    "attention_cp",
)
"""Those in which the eighth digit of eps shows in most cases."""
MODEL = ("model",)

T = Any
"""A copy of the adapter's module; T.torch is torch."""
Tensor = Any


@dataclass(frozen=True)
class Plant:
    """A fault, the rules in which it must be caught and named, and how it gets into the adapter."""

    fault: str
    """Its id in the catalogue (vectors/mistakes.toml)."""
    rules: tuple[str, ...]
    plant: Callable[[T], Any]
    """Changes the module; or returns what stands for it."""


@dataclass(frozen=True)
class Outcome:
    plant: Plant
    rule: str
    caught: bool
    named: tuple[str, ...]
    """What the diagnosis names, the likeliest first."""
    case: str
    """The id of the smallest failing case, and its flags."""

    @property
    def as_expected(self) -> bool:
        return self.caught and self.named[:1] == (self.plant.fault,)


# -- the stabilizer --------------------------------------------------------------------------------


def eps_unsigned(t: T) -> None:
    def stabilize(z: Tensor, eps: float, stabilizer: str) -> Tensor:
        return t.torch.zeros_like(z) if stabilizer == "none" else t.torch.full_like(z, eps)

    t.stabilize = stabilize


def eps_zero_sign(t: T) -> None:
    unplanted = t.stabilize
    t.stabilize = lambda z, eps, stabilizer: (
        eps * t.torch.sign(z) if stabilizer == "sign" else unplanted(z, eps, stabilizer)
    )


def eps_zero_sign_divided(t: T) -> None:
    """The same, and nobody looks whether the denominator is zero."""
    eps_zero_sign(t)
    divide_unguarded(t)


def divide_unguarded(t: T) -> None:
    """By whatever the denominator is, zero too."""

    def stabilized_ratio(
        r: Tensor, z: Tensor, eps: float = 0.0, stabilizer: str = "none", factor: int = 1
    ) -> tuple[Tensor, Tensor]:
        e = t.stabilize(z, eps, stabilizer)
        s = r / (factor * (z + e))
        return s, factor * e * s

    t.stabilized_ratio = stabilized_ratio


def eps_two_forms(t: T) -> None:
    """2 (O + eps) for the product with the values, 2 O + eps for the scores, and no choice."""
    attention, uniform = t.attention_attnlrp, t.matmul_uniform

    @wraps(attention)
    def attention_attnlrp(*operands: Tensor, **options: Any) -> Any:
        forms = iter(("2(z+eps)", "2z+eps"))
        t.matmul_uniform = lambda a, v, r, **each: uniform(
            a, v, r, **each | {"denominator": next(forms)}
        )
        return attention(*operands, **options)

    t.attention_attnlrp = attention_attnlrp


def eps_two_forms_matmul(t: T) -> None:
    unplanted = t.matmul_uniform
    t.matmul_uniform = lambda a, v, r, *, eps, stabilizer="sign", denominator="2z+eps": unplanted(
        a, v, r, eps=eps, stabilizer=stabilizer, denominator="2(z+eps)"
    )


def safe_divide(t: T) -> None:
    """max where min was meant: the second clamp lets the first one's 1e-9 in again."""

    def divide(a: Tensor, b: Tensor) -> Tensor:
        den = b.clamp(min=1e-9) + b.clamp(max=1e-9)
        den = den + den.eq(0).type(den.type()) * 1e-9
        return a / den * b.ne(0).type(b.type())

    t.stabilized_ratio = lambda r, z, eps=0.0, stabilizer="none", factor=1: (
        divide(r, factor * z),
        t.torch.zeros_like(r),
    )


def half_precision(t: T) -> None:
    """Everything in the format it came in; an eps of 1e-8 is 0 in float16."""
    t.widen = lambda x: x
    divide_unguarded(t)


# -- softmax ---------------------------------------------------------------------------------------


def softmax_dim(t: T) -> None:
    def softmax_taylor(
        x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1
    ) -> Tensor:
        p, logits, r = over(t, x, r, mask, axis)
        return (logits * (r - p * r.sum(-1, keepdim=True))).to(x.dtype)

    def softmax_gradient(
        x: Tensor, g: Tensor, *, mask: Tensor | None = None, axis: int = -1
    ) -> Tensor:
        p, _, g = over(t, x, g, mask, axis)
        return (p * (g - (p * g).sum(-1, keepdim=True))).to(x.dtype)

    t.softmax_taylor, t.softmax_gradient = softmax_taylor, softmax_gradient


def over(
    t: T, x: Tensor, r: Tensor, mask: Tensor | None, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """p over the right axis, logits and relevance with zeros where they are masked."""
    unmasked = t.visible(x, mask)
    logits, r = (t.torch.where(unmasked, t.widen(each), 0) for each in (x, r))
    return (
        t.probabilities(logits.transpose(axis, -1), unmasked.transpose(axis, -1)).transpose(
            axis, -1
        ),
        logits,
        r,
    )


def softmax_shifted(t: T) -> None:
    """The logits as the stable softmax leaves them: less their largest."""
    unplanted = t.taylor

    def taylor(x: Tensor, p: Tensor, unmasked: Tensor, r: Tensor) -> Any:
        shifted = x - t.torch.where(unmasked, x, -t.math.inf).amax(-1, keepdim=True)
        return unplanted(t.torch.where(unmasked, shifted, 0), p, unmasked, r)

    t.softmax_taylor = t.softmax_rule(taylor)


def mask_finfo(t: T) -> None:
    """Only -inf is taken out of the logits; a mask puts finfo.min in."""

    def softmax_taylor(
        x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1
    ) -> Tensor:
        x = x if mask is None else x.masked_fill(~mask, t.torch.finfo(x.dtype).min)
        x, wide = t.widen(x), t.widen(r)
        p = x.softmax(axis)
        logits = t.torch.where(x.isneginf(), 0, x)
        return (logits * (wide - p * wide.sum(axis, keepdim=True))).to(r.dtype)

    t.softmax_taylor = softmax_taylor


def tril_always(t: T) -> None:
    unplanted = t.attended
    t.attended = lambda q, k, causal, mask: unplanted(q, k, True, mask)


# -- linear layers ---------------------------------------------------------------------------------


def change_answer(t: T, name: str, change: Callable[..., Any]) -> None:
    """The rule's relevance as `change(relevance, *operands)` leaves it; what it absorbed stays."""
    unplanted = getattr(t, name)

    def wrong(*operands: Any, **options: Any) -> Any:
        answer = unplanted(*operands, **options)
        propagated = change(bare(answer), *operands)
        return answer | {"relevance": propagated} if isinstance(answer, dict) else propagated

    setattr(t, name, wraps(unplanted)(wrong))


def bare(answer: Any) -> Any:
    return answer["relevance"] if isinstance(answer, dict) else answer


def halved_linear(t: T) -> None:
    for name in ("linear_epsilon", "linear_gradient"):
        change_answer(t, name, lambda r, *operands: r / 2)


def conv_doubled(t: T) -> None:
    """Images of three channels go another way."""
    for name in ("convolution_epsilon", "convolution_z_plus"):
        change_answer(t, name, lambda r, x, *rest: r if x.shape[1] == 3 else 2 * r)


def alpha_beta_bias(t: T) -> None:
    """The whole bias is added to the positive and to the negative sum."""

    def linear_alpha_beta(
        x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
    ) -> Tensor:
        c = t.contributions(x, w)
        return (
            t.cut(c.clamp(min=0), b, alpha * r)["relevance"]
            + t.cut(c.clamp(max=0), b, -beta * r)["relevance"]
        )

    t.linear_alpha_beta = t.widened(linear_alpha_beta)


def alpha_index(t: T) -> None:
    unplanted = t.linear_alpha_beta

    def linear_alpha_beta(
        x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
    ) -> Tensor:
        return bare(unplanted(x, w, b, r, alpha=1.0, beta=beta))

    t.linear_alpha_beta = linear_alpha_beta


def gamma_at_zero(t: T) -> None:
    unplanted = t.linear_gamma

    def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Tensor:
        z = t.functional.linear(*map(t.widen, (x, w, b)))
        return bare(unplanted(x, w, b, t.torch.where(z == 0, 0, r), gamma=gamma))

    t.linear_gamma = linear_gamma


def zero_input(t: T) -> None:
    """Handed on as R / x, to be multiplied by x: nothing comes back from 0."""
    for name in WITH_ZEROS:
        change_answer(t, name, lambda r, x, *rest: t.torch.where(x == 0, 0, r))


# -- sums, products, what is read twice ------------------------------------------------------------


def residual_absolute(t: T, stabilized: bool = False) -> None:
    def add_epsilon(
        a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> Any:
        size = a.abs() + b.abs() + (eps if stabilized else 0)
        return {"relevance": (a.abs() / size * r, b.abs() / size * r)}

    t.add_epsilon = t.widened(add_epsilon)


def residual_absolute_stabilized(t: T) -> None:
    residual_absolute(t, stabilized=True)


def batch_coupled(t: T) -> None:
    """Each branch is brought to its part of all that arrived, and all means every example."""
    unplanted = t.add_epsilon

    def add_epsilon(
        a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> Any:
        a, b = unplanted(a, b, r, eps=eps, stabilizer=stabilizer)["relevance"]
        a_sum, b_sum = a.sum(), b.sum()
        size = a_sum.abs() + b_sum.abs()
        return a * (a_sum.abs() / size * r.sum() / a_sum), b * (
            b_sum.abs() / size * r.sum() / b_sum
        )

    t.add_epsilon = t.widened(add_epsilon)


def batch_coupled_total(t: T) -> None:
    """All that comes out is brought to the sum of all that went in."""
    for name in ("linear_epsilon", "linear_z_plus"):
        change_answer(
            t,
            name,
            lambda propagated, x, w, b, r: (
                t.widen(propagated) * (t.widen(r).sum() / t.widen(propagated).sum())
            ).to(r.dtype),
        )


def leaf_twice(t: T) -> None:
    """Of two ways the second overwrites the first."""

    def fan_out_epsilon(
        x: Tensor, w1: Tensor, w2: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> Tensor:
        _, second = t.add_epsilon(x @ w1.mT, x @ w2.mT, r, eps=eps, stabilizer=stabilizer)[
            "relevance"
        ]
        return t.linear_epsilon(x, w2, None, second, eps=eps, stabilizer=stabilizer)["relevance"]

    t.fan_out_epsilon = t.widened(fan_out_epsilon)


def product_proportional(t: T) -> None:
    def multiply_uniform(
        operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
    ) -> Any:
        fixed = constant or [False] * len(operands)
        size = sum(a.abs() for a, c in zip(operands, fixed, strict=True) if not c)
        return tuple(
            None if c else r * a.abs() / size for a, c in zip(operands, fixed, strict=True)
        )

    t.multiply_uniform = t.widened(multiply_uniform)


def constant_eats_share(t: T) -> None:
    def multiply_uniform(
        operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
    ) -> Any:
        return tuple(None if c else r / len(operands) for c in constant or [False] * len(operands))

    t.multiply_uniform = t.widened(multiply_uniform)


def cp_half(t: T) -> None:
    """The uniform rule's half for V, while the other half goes nowhere."""
    t.matmul_second = lambda a, v, r, **options: bare(t.matmul_uniform(a, v, r, **options))[1]

    def attention_cp(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        r: Tensor,
        *,
        scale: float,
        causal: bool,
        mask: Any,
        **options: Any,
    ) -> Any:
        p = t.probabilities(
            scale * q @ t.repeated(k, q.shape[1]).mT, t.attended(q, k, causal, mask)
        )
        r_v = t.matmul_second(p, t.repeated(v, q.shape[1]), r, **options)
        return None, None, bare(t.repeat_heads_pass_through(v, r_v, times=q.shape[1] // k.shape[1]))

    unplanted = t.attention_cp_gxi
    t.attention_cp = t.widened(attention_cp)
    t.attention_cp_gxi = lambda *operands, **options: (
        None,
        None,
        unplanted(*operands, **options)[2] / 2,
    )


def gqa_first_copy(t: T) -> None:
    t.repeat_heads_pass_through = t.widened(
        lambda x, r, *, times: {"relevance": r[:, ::times], "absorbed": {}}
    )


def gqa_wrong_groups(t: T) -> None:
    """Summed as if whole sets of heads stood one after the other."""
    t.repeat_heads_pass_through = t.widened(
        lambda x, r, *, times: {"relevance": r.unflatten(1, (times, -1)).sum(1), "absorbed": {}}
    )


def moe_degree_0(t: T) -> None:
    t.renormalize_identity = lambda x, r: bare(t.renormalize_epsilon(x, r, eps=1e-6))


# -- norms, activations, rotation ------------------------------------------------------------------


def bn_variance(t: T) -> None:
    change_std(t, lambda x, eps: (x.var(-1, unbiased=False, keepdim=True) ** 2 + eps) ** 0.5)


def ln_unbiased(t: T) -> None:
    change_std(t, lambda x, eps: (x.var(-1, keepdim=True) + eps).sqrt())


def change_std(t: T, std_of: Callable[[Tensor, float], Tensor]) -> None:
    """LayerNorm divides by `std_of(x, norm_eps)`."""

    def layer_norm(
        x: Tensor, w: Tensor, b: Tensor | None, norm_eps: float, constant_scale: bool = False
    ) -> Tensor:
        std = std_of(x, norm_eps)
        z = (x - x.mean(-1, keepdim=True)) / (std.detach() if constant_scale else std) * w
        return z if b is None else z + b

    t.layer_norm = layer_norm


def identity_in_wrong_form(t: T) -> None:
    """The factor of the gradient x input form, where relevance is propagated."""
    t.activation_identity = t.activation_identity_gxi


def relu_identity_lost(t: T) -> None:
    unplanted = t.activation_identity
    t.activation_identity = lambda x, r, *, kind: (
        {"relevance": t.torch.zeros_like(r)} if kind == "relu" else unplanted(x, r, kind=kind)
    )


def rope_interleave(t: T) -> None:
    """Neighbors are pairs, though cos and sin are laid out for halves."""

    def turned(x: Tensor) -> Tensor:
        return t.torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    def rotary_epsilon(
        x: Tensor, cos: Tensor, sin: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> dict[str, Any]:
        found = t.sum_epsilon([x * cos, turned(x) * sin], r, eps=eps, stabilizer=stabilizer)
        own, partners = found["relevance"]
        found["relevance"] = own + partners.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return dict(found)

    t.turned, t.rotary_epsilon = turned, t.widened(rotary_epsilon)


# -- what is done around the rules -----------------------------------------------------------------


VACUOUS = (
    "linear_epsilon",
    "add_epsilon",
    "matmul_uniform",
    "softmax_taylor",
    "layer_norm_epsilon",
    "attention_attnlrp",
)


def vacuous_check(t: T) -> Any:
    """Every input gets the mean of what arrived. Seen from outside: the rules that call others
    still call the right ones.
    """
    outside = SimpleNamespace(**vars(t))
    for name in VACUOUS:
        change_answer(
            outside, name, lambda propagated, *operands: _mean(t, propagated, operands[-1])
        )
    return outside


def _mean(t: T, propagated: Any, r: Tensor) -> Any:
    pieces = propagated if isinstance(propagated, tuple) else (propagated,)
    mean = t.widen(r).sum() / sum(each.numel() for each in pieces)
    uniform = tuple(t.torch.full_like(each, float(mean)) for each in pieces)
    return uniform if isinstance(propagated, tuple) else uniform[0]


def rule_forgotten(t: T) -> None:
    """The layers' rules are taken off after a call; the next finds none and takes the default."""
    unplanted = t.network

    def network(layers: Sequence[dict[str, Any]]) -> Any:
        ways = [unplanted(layers), unplanted([plain(layer) for layer in layers])]
        return lambda x, seeds: ways.pop(0)(x, seeds) if len(ways) > 1 else ways[0](x, seeds)

    def plain(layer: dict[str, Any]) -> dict[str, Any]:
        kept = {name: layer[name] for name in ("operation", "w", "b", "kind") if name in layer}
        return kept | (
            {"rule": "epsilon", "eps": 1e-9}
            if layer["operation"] == "linear"
            else {"rule": "identity"}
        )

    t.network = network


def gamma_forward(t: T) -> None:
    """The layer itself gets the weights W + gamma W^+, and z is theirs."""
    unplanted = t.network

    def amplified(p: Tensor, gamma: float) -> Tensor:
        return p if p is None else p + gamma * p.clamp(min=0)

    def loud(layer: dict[str, Any]) -> dict[str, Any]:
        if layer.get("rule") != "gamma":
            return layer
        weights = {name: amplified(layer[name], layer["gamma"]) for name in ("w", "b")}
        return {"operation": "linear", "rule": "epsilon", "eps": 1e-9, **weights}

    t.network = lambda layers: unplanted([loud(layer) for layer in layers])


def one_target(t: T) -> None:
    """One graph, and it is freed by the first way back."""
    unplanted = t.network

    def network(layers: Sequence[dict[str, Any]]) -> Any:
        def explain(x: Tensor, seeds: Sequence[Tensor]) -> Any:
            graph = t.torch.ones((), requires_grad=True)
            z, relevance = unplanted(layers)(x, seeds)
            freed = (graph * graph).sum()
            for _ in seeds:
                freed.backward()
            return z, relevance

        return explain

    t.network = network


def logit_squared(t: T) -> None:
    """A gradient's seed is 1, not the logit."""
    unplanted = t.model

    def model(folder: Any) -> Any:
        explain = unplanted(folder)

        def wrong(ids: Any, targets: Any, method: str) -> Any:
            answers = explain(ids, targets, method)
            return (
                answers
                if method == "attnlrp"
                else [
                    {
                        site: r if site == "logit" else r * answer["logit"]
                        for site, r in answer.items()
                    }
                    for answer in answers
                ]
            )

        return wrong

    t.model = model


# -- found since: LXT 2.1, zennit, captum, autoLRP, tdhook ----------------------------------------


def shared_gradient(t: T) -> None:
    """Every operand of a sum is handed the same gradient, and multiplies it in place."""

    def sum_epsilon(
        operands: Sequence[Tensor], r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> Any:
        wide = [t.widen(a) for a in operands]
        s, _ = t.stabilized_ratio(t.widen(r), sum(wide), eps, stabilizer)
        for a in wide:
            s = s * a
        return tuple(s.to(r.dtype) for _ in wide)

    t.sum_epsilon = sum_epsilon


def norm_in_float32(t: T) -> None:
    for name in ("rms_norm_identity_gxi", "rms_norm_gradient"):
        _in_float32(t, name)


def _in_float32(t: T, name: str) -> None:
    unplanted = getattr(t, name)

    def narrow(x: Tensor, w: Tensor, g: Tensor, *, norm_eps: float) -> Tensor:
        if x.dtype != t.torch.float64:
            return unplanted(x, w, g, norm_eps=norm_eps)
        return unplanted(x.float(), w.float(), g.float(), norm_eps=norm_eps).double()

    setattr(t, name, narrow)


def mask_counted(t: T) -> None:
    """p is 0 where masked, and what stands there enters the row's sum all the same."""

    def softmax_taylor(
        x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1
    ) -> Tensor:
        p, logits, _ = over(t, x, r, mask, axis)
        wide = t.widen(r)
        return (logits * (wide - p * wide.sum(axis, keepdim=True))).to(x.dtype)

    t.softmax_taylor = softmax_taylor


def ratio_eps(t: T) -> None:
    """f(x) / (x + 1e-10), with a pole at -1e-10."""

    def activation_identity_gxi(x: Tensor, g: Tensor, *, kind: str) -> Tensor:
        wide = t.widen(x)
        return (t.widen(g) * (t.activation(kind, wide) / (wide + 1e-10))).to(x.dtype)

    t.activation_identity_gxi = activation_identity_gxi


def cap_by_its_slope(t: T) -> None:
    """Elementwise functions are left to autograd, a soft cap's tanh among them."""
    t.activation_identity_gxi = t.activation_gradient


def plus_weights(t: T) -> None:
    unplanted = t.linear_epsilon

    def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Tensor:
        return bare(unplanted(x, w.clamp(min=0), b, r, eps=1e-9))

    t.linear_z_plus = linear_z_plus


def lrp_0_divides(t: T) -> None:
    unplanted = t.linear_epsilon

    def linear_epsilon(
        x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
    ) -> Tensor:
        if stabilizer != "none":
            return bare(unplanted(x, w, b, r, eps=eps, stabilizer=stabilizer))
        wide = [t.widen(a) for a in (x, w, b)]
        return (wide[0] * ((t.widen(r) / t.functional.linear(*wide)) @ wide[1])).to(x.dtype)

    t.linear_epsilon = linear_epsilon


def bias_by_size(t: T) -> None:
    for name in ("linear_epsilon", "linear_z_plus", "linear_alpha_beta", "linear_z_box"):
        _bias_by_size(t, name)


def _bias_by_size(t: T, name: str) -> None:
    unplanted = getattr(t, name)

    def rule(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, **options: Any) -> Tensor:
        wx, ww, wr = (t.widen(a) for a in (x, w, r))
        if b is not None:
            z = (wx @ ww.T).abs()
            wr = wr * z / (z + t.widen(b).abs() + options.get("eps", 1e-30))
        return bare(unplanted(wx, ww, None, wr, **options)).to(x.dtype)

    setattr(t, name, rule)


def mean_by_size(t: T) -> None:
    def pooling_epsilon(
        x: Tensor,
        r: Tensor,
        *,
        eps: float,
        counted: Tensor | None = None,
        stabilizer: str = "sign",
    ) -> Tensor:
        size = t.widen(x).abs() * (1 if counted is None else counted)
        return (size / (size.sum(1, keepdim=True) + eps) * t.widen(r)).to(x.dtype)

    t.pooling_epsilon = pooling_epsilon


def eps_in_float32(t: T) -> None:
    """(-1) ** (z < 0) is an array of integers; eps times it is one of float32."""
    unplanted = t.stabilize

    def stabilize(z: Tensor, eps: float, stabilizer: str) -> Tensor:
        if stabilizer != "sign":
            return unplanted(z, eps, stabilizer)
        return (eps * (-1) ** (z < 0)).to(z.dtype)

    t.stabilize = stabilize


def vjp_of_layer_norm(t: T) -> None:
    def layer_norm_epsilon(
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        r: Tensor,
        *,
        norm_eps: float,
        eps: float,
        stabilizer: str = "sign",
    ) -> Tensor:
        return bare(t.layer_norm_epsilon_gxi(x, w, b, r, norm_eps=norm_eps))

    t.layer_norm_epsilon = layer_norm_epsilon


# -- the table -------------------------------------------------------------------------------------

PLANTS: tuple[Plant, ...] = (
    Plant("eps-unsigned", STABILIZED, eps_unsigned),
    Plant("eps-zero-sign", WITH_DEAD_UNITS, eps_zero_sign),
    Plant("eps-zero-sign", STABILIZED, eps_zero_sign_divided),
    Plant("eps-two-forms", ("attention_attnlrp",), eps_two_forms),
    Plant("eps-two-forms", ("matmul_uniform",), eps_two_forms_matmul),
    Plant("softmax-dim", ("softmax_taylor", "softmax_gradient"), softmax_dim),
    Plant("softmax-shifted", ("softmax_taylor", "attention_attnlrp"), softmax_shifted),
    Plant("mask-finfo", ("softmax_taylor",), mask_finfo),
    Plant("tril-always", ATTENTION, tril_always),
    Plant("cp-half", ("matmul_second", "attention_cp", "attention_cp_gxi"), cp_half),
    Plant(
        "halved-linear", ("linear_epsilon", "linear_gradient", "convolution_epsilon"), halved_linear
    ),
    Plant("moe-degree-0", ("renormalize_identity",), moe_degree_0),
    Plant("identity-in-wrong-form", ("activation_identity",), identity_in_wrong_form),
    Plant("product-proportional", ("multiply_uniform",), product_proportional),
    Plant("residual-absolute", ("add_epsilon",), residual_absolute),
    Plant("residual-absolute", ("add_epsilon",), residual_absolute_stabilized),
    Plant("constant-eats-share", ("multiply_uniform",), constant_eats_share),
    Plant("relu-identity-lost", ("activation_identity", "network"), relu_identity_lost),
    Plant("rule-forgotten", ("network",), rule_forgotten),
    Plant("conv-doubled", ("convolution_epsilon", "convolution_z_plus"), conv_doubled),
    Plant("safe-divide", ("linear_z_plus", "linear_alpha_beta", "convolution_z_plus"), safe_divide),
    Plant("batch-coupled", ("add_epsilon",), batch_coupled),
    Plant("batch-coupled", ("linear_epsilon", "linear_z_plus"), batch_coupled_total),
    Plant(
        "bn-variance",
        ("layer_norm_epsilon", "layer_norm_epsilon_gxi", "layer_norm_gradient"),
        bn_variance,
    ),
    Plant("alpha-beta-bias", ("linear_alpha_beta",), alpha_beta_bias),
    Plant("alpha-index", ("linear_alpha_beta",), alpha_index),
    Plant("gamma-forward", ("network",), gamma_forward),
    Plant(
        "ln-unbiased",
        ("layer_norm_epsilon", "layer_norm_epsilon_gxi", "layer_norm_gradient"),
        ln_unbiased,
    ),
    Plant("gamma-at-zero", ("linear_gamma",), gamma_at_zero),
    Plant("zero-input", WITH_ZEROS, zero_input),
    Plant("leaf-twice", ("fan_out_epsilon",), leaf_twice),
    Plant("logit-squared", MODEL, logit_squared),
    Plant("vacuous-check", VACUOUS, vacuous_check),
    Plant("fp16-nan", ("linear_epsilon", "add_epsilon"), half_precision),
    Plant("one-target", ("network",), one_target),
    Plant("gqa-repeat", GROUPED, gqa_first_copy),
    Plant("gqa-repeat", GROUPED, gqa_wrong_groups),
    Plant("cp-half", MODEL, cp_half),
    Plant("halved-linear", MODEL, halved_linear),
    Plant("residual-absolute", MODEL, residual_absolute),
    Plant("gqa-repeat", MODEL, gqa_first_copy),
    Plant("rope-interleave", ROTARY, rope_interleave),
    Plant("shared-gradient", ("sum_epsilon",), shared_gradient),
    Plant("narrowed", ("rms_norm_identity_gxi", "rms_norm_gradient"), norm_in_float32),
    Plant("mask-counted", ("softmax_taylor",), mask_counted),
    Plant("ratio-eps", ("activation_identity_gxi",), ratio_eps),
    Plant("slope-for-ratio", ("activation_identity_gxi", "model"), cap_by_its_slope),
    Plant("plus-weights", ("linear_z_plus",), plus_weights),
    Plant("lrp-0-divides", ("linear_epsilon",), lrp_0_divides),
    Plant("bias-by-size", ("linear_epsilon", "linear_z_plus", "linear_z_box"), bias_by_size),
    Plant("mean-by-size", ("pooling_epsilon",), mean_by_size),
    Plant("eps-in-float32", WHERE_EPS_SHOWS, eps_in_float32),
    Plant("vjp-for-relevance", ("layer_norm_epsilon",), vjp_of_layer_norm),
)


# -- planting --------------------------------------------------------------------------------------


def fresh() -> T:
    """A copy of the adapter of its own, which may be changed."""
    spec = importlib.util.spec_from_file_location("planted_adapter", ADAPTER)
    assert spec is not None and spec.loader is not None
    module: T = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted(plant: Plant) -> Adapter:
    """The adapter with the fault, and without a ledger: no library keeps one."""
    module = fresh()
    faulty = plant.plant(module) or module
    without_ledger = {
        rule: _relevance_alone(getattr(faulty, rule)) for rule in rules() if rule != "network"
    }
    return Adapter(SimpleNamespace(**vars(faulty) | without_ledger))


def _relevance_alone(rule: Callable[..., Any]) -> Callable[..., Any]:
    return wraps(rule)(lambda *operands, **options: bare(rule(*operands, **options)))


def try_plant(plant: Plant) -> list[Outcome]:
    adapter = planted(plant)
    return [_outcome(plant, rule, run(adapter, rule)) for rule in plant.rules]


def _outcome(plant: Plant, rule: str, report: Report) -> Outcome:
    if rule == "model":
        return _of_models(plant, [m for m in report.models if m.status == FAILED])
    r = report[rule]
    case = "" if r.smallest is None else f"{r.smallest.case.id} {'+'.join(r.smallest.case.flags)}"
    return Outcome(plant, rule, r.status == FAILED, tuple(m.id for m in r.mistakes), case)


def _of_models(plant: Plant, failed: Sequence[ModelResult]) -> Outcome:
    """Of every model that fails the diagnosis has to begin alike."""
    said = sorted({m.mistakes[0] if m.mistakes else "nothing" for m in failed})
    return Outcome(
        plant,
        "model",
        bool(failed),
        tuple(said) if len(said) == 1 else ("now this, now that", *said),
        failed[0].name if failed else "",
    )


def run_all(plants: Sequence[Plant] = PLANTS) -> list[Outcome]:
    return [outcome for plant in plants for outcome in try_plant(plant)]


def show(outcomes: Sequence[Outcome]) -> str:
    """The table: fault, what was planted, rule, what came of it; and the score."""
    lines = []
    for o in outcomes:
        said = (
            "named"
            if o.as_expected
            else f"CALLED {', '.join(o.named) or 'nothing'}"
            if o.caught
            else "MISSED"
        )
        lines.append(
            f"{o.plant.fault:24} {o.plant.plant.__name__:30} {o.rule:26} {said:10} {o.case}"
        )
    faults = {o.plant.fault for o in outcomes}
    wrong = {o.plant.fault for o in outcomes if not o.as_expected}
    return "\n".join(
        [*lines, "", f"{len(faults - wrong)} of {len(faults)} faults caught and named"]
    )


def main() -> int:
    start = time.monotonic()
    outcomes = run_all()
    print(show(outcomes))
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if all(o.as_expected for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
