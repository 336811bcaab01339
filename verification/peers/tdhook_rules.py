"""tdhook 0.3.0 under the conformance vectors:  refl conform refl.verification.peers.tdhook_rules

tdhook registers a rule on a torch module, whose backward pass then hands relevance down; so does
this adapter. What torch has no module for (a product, a sum of two) is a module that calls the
function. Its stabilizers are z + eps s(z) with s(0) = +1 and are given by the caller; the
definitions of alpha-beta, w^2 and flat have none, so it is given one that does not show.

tdhook 0.3.0 needs tensordict, and that pyvers: they come without their dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from refl.verification.peers.tensors import (
    Tensor,
    activation_module,
    except_constants,
    handed_back,
    layer_module,
    least_stabilizer,
    linear_module,
    needs,
    only_signed,
    patches_module,
    several_targets,
    stacked,
    to_array,
    to_numpy,
)

__all__ = ["to_array", "to_numpy"]

needs("torch", "tdhook", "tensordict")

NAME = "tdhook"
VERSION = "0.3.0"
CONVENTIONS: dict[str, str] = {}


def _rules() -> Any:
    from tdhook.attribution.lrp_helpers import rules

    return rules


def _least(x: Tensor, r: Tensor | None = None) -> float:
    """No zero in float32, in which tdhook forms eps s(z) whatever the tensors are in."""
    return max(least_stabilizer(x, r), 1e-30)


def _calling(function: Callable[..., Tensor]) -> Any:
    """A module of any function of tensors."""
    from torch import nn

    class Called(nn.Module):  # type: ignore[misc]
        def forward(self, *operands: Tensor) -> Tensor:
            return function(*operands)

    return Called()


def _under(rule: Any, module: Any, r: Tensor, *operands: Tensor) -> Any:
    with rule.register(module):
        return handed_back(module, r, *operands)


# -- linear ----------------------------------------------------------------------------------------


def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "tdhook")
    return _under(_rules().EpsilonRule(eps), linear_module(w, b), r, x)


def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Any:
    rule = _rules().AlphaBetaRule(alpha, beta, stabilizer=_least(x, r))
    return _under(rule, linear_module(w, b), r, x)


def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    """Its EpsilonPlus takes alpha 1, beta 0 for it."""
    return linear_alpha_beta(x, w, b, r, alpha=1.0, beta=0.0)


def linear_flat(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_rules().FlatRule(_least(x, r)), linear_module(w, b), r, x)


def linear_w_square(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_rules().WSquareRule(_least(x, r)), linear_module(w, b), r, x)


def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "tdhook")
    return _under(_rules().EpsilonRule(eps), patches_module(w, b), r, x)


def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    rule = _rules().AlphaBetaRule(1.0, 0.0, stabilizer=_least(x, r))
    return _under(rule, patches_module(w, b), r, x)


# -- sums, products, softmax, norms, activations ---------------------------------------------------


def add_epsilon(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    only_signed(stabilizer, "tdhook")
    return _under(_rules().EpsilonRule(eps), _calling(lambda p, q: p + q), r, a, b)


def sum_epsilon(
    operands: Sequence[Tensor], r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    """Stacked on a last axis, which its Sum layer adds up."""
    import torch
    from tdhook.attribution.lrp_helpers.layers import Sum

    only_signed(stabilizer, "tdhook")
    return _under(_rules().EpsilonRule(eps), Sum(), r, torch.stack(list(operands), dim=-1)).unbind(
        -1
    )


def multiply_uniform(
    operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    def product(*factors: Tensor) -> Tensor:
        z = factors[0]
        for factor in factors[1:]:
            z = z * factor
        return z

    def run(leaves: list[Tensor]) -> None:
        with _rules().UniformRule().register(module):
            module(*leaves).backward(r)

    module = _calling(product)
    return except_constants(constant, operands, run)


def matmul_uniform(
    a: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    eps: float,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> Any:
    only_signed(stabilizer, "tdhook")
    return _under(_rules().UniformEpsilonRule(eps), _calling(lambda p, q: p @ q), r, a, v)


def softmax_taylor(x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Any:
    from torch import nn

    if mask is not None:
        x = x.masked_fill(~mask, -float("inf"))
    return _under(_rules().SoftmaxEpsilonRule(), nn.Softmax(axis), r, x)


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
    from torch import nn

    only_signed(stabilizer, "tdhook")
    module = nn.LayerNorm(x.shape[-1], eps=norm_eps, bias=b is not None, dtype=x.dtype)
    module.weight.data = w.clone()
    if b is not None:
        module.bias.data = b.clone()
    return _under(_rules().LayerNormRule(), module.requires_grad_(False), r, x)


def activation_identity(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return _under(_rules().PassRule(), activation_module(kind, "tdhook"), r, x)


def activation_identity_gxi(x: Tensor, g: Tensor, *, kind: str) -> Any:
    return _under(
        _rules().PseudoIdentityRule(_least(x, g)), activation_module(kind, "tdhook"), g, x
    )


def pooling_epsilon(
    x: Tensor,
    r: Tensor,
    *,
    eps: float,
    counted: Tensor | None = None,
    stabilizer: str = "sign",
) -> Any:
    """A mean under EpsilonRule, as in its EpsilonPlus. It stabilizes the mean, the definition the
    sum, which is T times that.
    """
    if counted is not None:
        raise NotImplementedError("an average over tokens that are not masked has no module")
    only_signed(stabilizer, "tdhook")
    return _under(
        _rules().EpsilonRule(eps / x.shape[1]), _calling(lambda p: p.mean(1, keepdim=True)), r, x
    )


# -- small networks --------------------------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    net = stacked(lambda layer: layer_module(layer, "tdhook"), layers)
    for module, layer in zip(net, layers, strict=True):
        _rule_of(layer).register(module)
    return lambda x, seeds: several_targets(net, x, seeds)


def _rule_of(layer: dict[str, Any]) -> Any:
    rules = _rules()
    if layer["operation"] == "activation":
        return rules.PassRule()
    made = {
        "epsilon": lambda: rules.EpsilonRule(layer["eps"]),
        "z_plus": lambda: rules.AlphaBetaRule(1.0, 0.0, _least(layer["w"])),
        "alpha_beta": lambda: rules.AlphaBetaRule(
            layer["alpha"], layer["beta"], _least(layer["w"])
        ),
    }
    if layer["rule"] not in made:
        raise NotImplementedError(f"tdhook 0.3.0 has no rule {layer['rule']}")
    return made[layer["rule"]]()
