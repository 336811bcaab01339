"""zennit 0.5.1 under the conformance vectors:  refl conform refl.verification.peers.zennit_rules

Each function puts the rule on a torch module of the right weights and reads relevance off the
backward pass, as zennit is meant to be used. zennit's stabilizers are given by the caller. The
definitions of gamma, z+, alpha-beta, w^2, flat and z^B have none; zennit always adds one, so it is
given one that does not show (`least_stabilizer`). Sums are its Sum layer under its Norm rule.

`VARIANTS` holds further settings of the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from refl.verification.peers.lxt import load_zennit
from refl.verification.peers.tensors import (
    Tensor,
    activation_module,
    handed_back,
    layer_module,
    least_stabilizer,
    linear_module,
    needs,
    patches_module,
    several_targets,
    stacked,
    to_array,
    to_numpy,
)

needs("torch", "zennit")

NAME = "zennit"
VERSION = "0.5.1"
CONVENTIONS: dict[str, str] = {}


def _z() -> Any:
    return load_zennit()


def _stabilizer(eps: float, stabilizer: str) -> Any:
    """zennit's own is z + eps s(z), s(0) = +1. It documents eps = 0 as LRP-0, and a function of z
    in place of eps.
    """
    return {"sign": eps, "none": 0.0, "plain": lambda z: z + eps}[stabilizer]


def _under(rule: Any, module: Any, r: Tensor, x: Tensor) -> Any:
    handles = rule.register(module)
    try:
        return handed_back(module, r, x)
    finally:
        handles.remove()


# -- linear ----------------------------------------------------------------------------------------


def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    return _under(_z().Epsilon(_stabilizer(eps, stabilizer)), linear_module(w, b), r, x)


def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Any:
    return _under(_z().Gamma(gamma, stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_z().ZPlus(stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Any:
    return _under(
        _z().AlphaBeta(alpha, beta, stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x
    )


def linear_flat(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_z().Flat(stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_w_square(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_z().WSquare(stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_z_box(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, low: float, high: float
) -> Any:
    return _under(
        _z().ZBox(low, high, stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x
    )


def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    return _under(_z().Epsilon(_stabilizer(eps, stabilizer)), patches_module(w, b), r, x)


def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(_z().ZPlus(stabilizer=least_stabilizer(x, r)), patches_module(w, b), r, x)


# -- sums, activations -----------------------------------------------------------------------------


def sum_epsilon(
    operands: Sequence[Tensor], r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    """Stacked on a last axis, which its Sum layer adds up; broadcast before, and summed back."""
    import torch

    layer = load_zennit("zennit.layer").Sum()
    side_by_side = torch.stack(torch.broadcast_tensors(*operands), dim=-1)
    found = _under(_z().Norm(_stabilizer(eps, stabilizer)), layer, r, side_by_side)
    parts = zip(found.unbind(-1), operands, strict=True)
    return tuple(part.sum_to_size(a.shape) for part, a in parts)


def add_epsilon(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    return sum_epsilon([a, b], r, eps=eps, stabilizer=stabilizer)


def pooling_epsilon(x: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    """A mean, under Norm as in its composites. zennit stabilizes the mean, the definition the sum,
    which is T times that.
    """
    from torch import nn

    pool = nn.AvgPool1d(x.shape[1])
    found = _under(
        _z().Norm(_stabilizer(eps / x.shape[1], stabilizer)),
        pool,
        r.transpose(1, 2),
        x.transpose(1, 2),
    )
    return found.transpose(1, 2)


def activation_identity(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return _under(_z().Pass(), activation_module(kind, "zennit"), r, x)


# -- small networks --------------------------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """A module for each layer, its rule by name in a composite, which stays registered."""
    net = stacked(lambda layer: layer_module(layer, "zennit"), layers)
    composite = load_zennit("zennit.composites").NameMapComposite(
        [([str(n)], _rule_of(layer)) for n, layer in enumerate(layers)]
    )

    def explain(x: Tensor, seeds: Sequence[Tensor]) -> Any:
        with composite.context(net) as registered:
            return several_targets(registered, x, seeds)

    return explain


def _rule_of(layer: dict[str, Any]) -> Any:
    z = _z()
    if layer["operation"] == "activation":
        return z.Pass()
    least = least_stabilizer(layer["w"])
    return {
        "epsilon": lambda: z.Epsilon(layer["eps"]),
        "gamma": lambda: z.Gamma(layer["gamma"], stabilizer=least),
        "z_plus": lambda: z.ZPlus(stabilizer=least),
        "alpha_beta": lambda: z.AlphaBeta(layer["alpha"], layer["beta"], stabilizer=least),
    }[layer["rule"]]()


# -- other settings --------------------------------------------------------------------------------


def _w_square_without_bias(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _under(
        _z().WSquare(stabilizer=least_stabilizer(x, r), zero_params="bias"),
        linear_module(w, b),
        r,
        x,
    )


VARIANTS = {"zero_params='bias'": SimpleNamespace(linear_w_square=_w_square_without_bias)}
for _variant in VARIANTS.values():
    _variant.__dict__.update(
        NAME=NAME, VERSION=VERSION, CONVENTIONS=CONVENTIONS, to_array=to_array, to_numpy=to_numpy
    )
