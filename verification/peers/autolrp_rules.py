"""autoLRP 0.2.0 under the conformance vectors:  refl conform refl.verification.peers.autolrp_rules

autoLRP walks torch's autograd graph from a scalar and gives every node that it knows a rule, by the
node's name. Here the graph is one operation on a wrapped input; relevance r at its output comes in
by a hook on the output, in place of the ones that autoLRP starts from. What is no wrapped input is
a constant to it: a weight.

Rules are asked for as its documentation does: the entries of BASE, each overridden by the rule's
own name where the library has several for a node. `VARIANTS` holds its AttnLRP preset.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from refl.verification.peers.tensors import (
    Tensor,
    activations,
    needs,
    only_signed,
    to_array,
    to_numpy,
)

needs("torch", "autolrp")

NAME = "autoLRP"
VERSION = "0.2.0"
CONVENTIONS = {
    "bias-by-size": "autolrp.backward.lrp_utils.apply_bias_split: the share |z| / (|z| + |bias|)",
    "residual-absolute": "autolrp.backward.rules.proportional: in proportion to their magnitudes",
    "product-proportional": "autolrp.backward.rules.proportional: in proportion to their "
    "magnitudes",
    "mean-by-size": "autolrp.backward.rules.reduction_proportional and layernorm_detach_std: the "
    "share |x_i| / sum |x|",
}
"""What BASE documents. Its preset LRPConfig.attnlrp says that it is the paper's recipe."""

LEAST = 1e-30
"""Does not show beside any sum of contributions that is not zero; in half precision it is 0, or the
quotient infinite."""


def _explained(
    function: Callable[..., Tensor], r: Tensor, *operands: Tensor, eps: float, **rules: Any
) -> Any:
    """What autoLRP hands each operand where r arrives at the output of the function. It warns where
    a small gamma runs the epsilon rule, which is the same.
    """
    import autolrp
    import torch

    eps = max(eps, float(r.abs().max()) * 1e-37)  # for the quotient to be a number in float32
    wrapped = [autolrp.tensor(a.clone()) for a in operands]
    z = function(*wrapped)
    z.register_hook(lambda ones: r.as_subclass(torch.Tensor))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="autoLRP: ")
        z.lrp(config=autolrp.LRPConfig(rule={**autolrp.BASE, **rules}, eps=eps))
    found = [w.relevance.as_subclass(torch.Tensor) for w in wrapped]
    return found if len(found) > 1 else found[0]


def _linear(w: Tensor, b: Tensor | None) -> Callable[[Tensor], Tensor]:
    from torch.nn import functional

    return lambda x: functional.linear(x, w, b)


def _products(rule: Any) -> dict[str, Any]:
    """For every node that a linear layer may become."""
    return dict.fromkeys(
        ("AddmmBackward", "MmBackward", "BmmBackward", "ConvolutionBackward"), rule
    )


# -- linear ----------------------------------------------------------------------------------------


def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(_linear(w, b), r, x, eps=eps)


def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Any:
    rule = ("gamma", {"gamma": gamma})
    return _explained(_linear(w, b), r, x, eps=LEAST, **_products(rule))


def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _explained(_linear(w, b), r, x, eps=LEAST, **_products("zplus"))


def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Any:
    rule = ("alpha_beta", {"alpha": alpha, "beta": beta})
    return _explained(_linear(w, b), r, x, eps=LEAST, **_products(rule))


def linear_z_box(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, low: float, high: float
) -> Any:
    rule = ("zbox", {"low": low, "high": high})
    return _explained(_linear(w, b), r, x, eps=LEAST, **_products(rule))


def _patches(w: Tensor, b: Tensor | None) -> Callable[[Tensor], Tensor]:
    from torch.nn import functional

    return lambda x: functional.conv2d(x, w, b, stride=tuple(w.shape[2:]))


def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(_patches(w, b), r, x, eps=eps)


def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _explained(_patches(w, b), r, x, eps=LEAST, **_products("zplus"))


# -- sums and products -----------------------------------------------------------------------------


def add_epsilon(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(lambda p, q: p + q, r, a, b, eps=eps)


def multiply_uniform(
    operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    fixed = list(constant or [False] * len(operands))
    live = [a for a, f in zip(operands, fixed, strict=True) if not f]

    def product(*wrapped: Tensor) -> Tensor:
        rest = iter(wrapped)
        factors = [a if f else next(rest) for a, f in zip(operands, fixed, strict=True)]
        z = factors[0]
        for factor in factors[1:]:
            z = z * factor
        return z

    if len(operands) == 1 or not live:
        raise NotImplementedError("autoLRP has rules for products of two")
    found = _explained(product, r, *live, eps=LEAST)
    handed = iter(found if len(live) > 1 else [found])
    return tuple(None if f else next(handed) for f in fixed)


def matmul_uniform(
    a: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    eps: float,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(
        lambda p, q: p @ q, r, a, v, eps=eps, bilinear=("epsilon", {"attribute": "both"})
    )


def matmul_second(a: Tensor, v: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(lambda q: a @ q, r, v, eps=eps)


# -- softmax, norms, activations -------------------------------------------------------------------


def softmax_taylor(x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Any:
    return _softmax("jacobian", x, r, mask, axis)


def softmax_identity(x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Any:
    return _softmax("passthrough", x, r, mask, axis)


def _softmax(rule: str, x: Tensor, r: Tensor, mask: Tensor | None, axis: int) -> Any:
    import torch

    if mask is not None:
        x = x.masked_fill(~mask, -float("inf"))
    return _explained(lambda p: torch.softmax(p, axis), r, x, eps=LEAST, SoftmaxBackward=rule)


def layer_norm_epsilon(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    r: Tensor,
    *,
    norm_eps: float,
    eps: float,
    stabilizer: str = "sign",
) -> Any:
    only_signed(stabilizer, "autoLRP")
    return _layer_norm("detach_std", x, w, b, r, norm_eps, eps)


def layer_norm_identity(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, norm_eps: float
) -> Any:
    return _layer_norm("passthrough", x, w, b, r, norm_eps, LEAST)


def _layer_norm(
    rule: str, x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, norm_eps: float, eps: float
) -> Any:
    from torch.nn import functional

    return _explained(
        lambda p: functional.layer_norm(p, (p.shape[-1],), w, b, norm_eps),
        r,
        x,
        eps=eps,
        NativeLayerNormBackward=rule,
    )


def rms_norm_identity(x: Tensor, w: Tensor, r: Tensor, *, norm_eps: float) -> Any:
    from torch.nn import functional

    return _explained(
        lambda p: functional.rms_norm(p, (p.shape[-1],), w, norm_eps), r, x, eps=LEAST
    )


def activation_identity(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return _activation("passthrough", x, r, kind)


def _activation(rule: str, x: Tensor, r: Tensor, kind: str) -> Any:
    import autolrp

    if kind in ("quick_gelu", "gelu_fast", "relu2"):
        raise NotImplementedError("torch has no function of that name, by which autoLRP goes")
    rules = autolrp.on(autolrp.ELEMENTWISE_NODES, rule)
    return _explained(activations()[kind], r, x, eps=LEAST, **rules)


def pooling_epsilon(
    x: Tensor,
    r: Tensor,
    *,
    eps: float,
    counted: Tensor | None = None,
    stabilizer: str = "sign",
) -> Any:
    if counted is not None:
        raise NotImplementedError("an average over tokens that are not masked has no node")
    only_signed(stabilizer, "autoLRP")
    return _explained(lambda p: p.mean(1, keepdim=True), r, x, eps=eps)


def top_k_pass_through(x: Tensor, r: Tensor, *, k: int) -> Any:
    return _explained(lambda p: p.topk(k, -1).values, r, x, eps=LEAST)


def repeat_heads_pass_through(x: Tensor, r: Tensor, *, times: int) -> Any:
    return _explained(lambda p: p.repeat_interleave(times, 1), r, x, eps=LEAST)


def scale_pass_through(x: Tensor, r: Tensor, *, factor: float) -> Any:
    return _explained(lambda p: p * factor, r, x, eps=LEAST)


# -- other settings --------------------------------------------------------------------------------


def _of_attnlrp() -> dict[str, Any]:
    import autolrp

    return dict(autolrp.LRPConfig.attnlrp().rule)


def _attnlrp_activation(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return _activation("yx", x, r, kind)


def _attnlrp_linear(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(_linear(w, b), r, x, eps=eps, **_of_attnlrp())


def _attnlrp_add(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    only_signed(stabilizer, "autoLRP")
    return _explained(lambda p, q: p + q, r, a, b, eps=eps, **_of_attnlrp())


VARIANTS = {
    "LRPConfig.attnlrp()": SimpleNamespace(
        NAME=NAME,
        VERSION=VERSION,
        CONVENTIONS={},
        to_array=to_array,
        to_numpy=to_numpy,
        activation_identity=_attnlrp_activation,
        linear_epsilon=_attnlrp_linear,
        add_epsilon=_attnlrp_add,
        multiply_uniform=multiply_uniform,
    )
}
