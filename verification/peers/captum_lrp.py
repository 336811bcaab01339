"""captum 0.9.0 under the conformance vectors:  refl conform refl.verification.peers.captum_lrp

captum.attr.LRP explains one score of a model. To start from any relevance r at the output z, the
model is given a score whose value is 1 and whose gradient at z is r (`_scored`): captum multiplies
by the score's value, which then changes nothing.

Rules are set as its documentation says, as an attribute of the layer, once, when the network is
made. captum adds 1e-9 of its own to the denominators of its gamma and alpha-beta rules, as it
documents; it has no argument for another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from refl.verification.peers.tensors import (
    Tensor,
    activation_module,
    linear_module,
    needs,
    only_signed,
    patches_module,
    stacked,
    to_array,
    to_numpy,
)

__all__ = ["to_array", "to_numpy"]

needs("torch", "captum")

NAME = "captum"
VERSION = "0.9.0"
CONVENTIONS: dict[str, str] = {}


def _rules() -> Any:
    # captum's documentation imports them from here: captum.attr has no names for them
    import captum.attr._utils.lrp_rules as rules

    return rules


def _scored(net: Any, seed: Tensor) -> Any:
    from torch import nn

    class Scored(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:  # -> (B,)
            score = (self.net(x) * seed).flatten(1).sum(1)
            return score - score.detach() + 1

    return Scored()


def _explained(net: Any, r: Tensor, x: Tensor) -> Tensor:
    from captum.attr import LRP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not already require gradients")
        return LRP(_scored(net, r)).attribute(x.clone())


def _ruled(module: Any, rule: Any) -> Any:
    module.rule = rule
    return module


def _one(module: Any, rule: Any, r: Tensor, x: Tensor) -> Tensor:
    return _explained(stacked(lambda layer: _ruled(module, rule), [{}]), r, x)


# -- rules -----------------------------------------------------------------------------------------


def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "captum")
    return _one(linear_module(w, b), _rules().EpsilonRule(eps), r, x)


def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Any:
    return _one(linear_module(w, b), _rules().GammaRule(gamma), r, x)


def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Any:
    if (alpha, beta) != (1, 0):
        raise NotImplementedError("captum has alpha 1, beta 0 alone")
    return linear_z_plus(x, w, b, r)


def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _one(linear_module(w, b), _rules().Alpha1_Beta0_Rule(), r, x)


def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    only_signed(stabilizer, "captum")
    return _one(patches_module(w, b), _rules().EpsilonRule(eps), r, x)


def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _one(patches_module(w, b), _rules().Alpha1_Beta0_Rule(), r, x)


def activation_identity(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return _explained(stacked(lambda layer: _activation(kind), [{}]), r, x)


def _activation(kind: str) -> Any:
    """captum passes relevance through ReLU and Tanh unasked; the others need its IdentityRule."""
    module = activation_module(kind, "captum")
    return module if kind in ("relu", "tanh") else _ruled(module, _rules().IdentityRule())


# -- small networks --------------------------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    net = stacked(
        lambda layer: (
            _activation(layer["kind"]) if layer["operation"] == "activation" else _linear(layer)
        ),
        layers,
    )
    return lambda x, seeds: (net(x), [_explained(net, seed, x) for seed in seeds])


def _linear(layer: dict[str, Any]) -> Any:
    rules = _rules()
    made = {
        "epsilon": lambda: rules.EpsilonRule(layer["eps"]),
        "gamma": lambda: rules.GammaRule(layer["gamma"]),
        "z_plus": rules.Alpha1_Beta0_Rule,
    }
    if layer["rule"] == "alpha_beta" and (layer["alpha"], layer["beta"]) == (1, 0):
        return _ruled(linear_module(layer["w"], layer["b"]), made["z_plus"]())
    if layer["rule"] not in made:
        raise NotImplementedError("captum has alpha 1, beta 0 alone")
    return _ruled(linear_module(layer["w"], layer["b"]), made[layer["rule"]]())
