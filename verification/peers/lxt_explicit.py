"""LXT 2.1 in its relevance form (lxt.explicit) under the conformance vectors:
refl conform refl.verification.peers.lxt_explicit

Every function here calls LXT's own operation or rule, with nothing mended. Where LXT has an
operation of its own, that one is used; otherwise one of its functions that take any module
(`epsilon_lrp`, `identity`), as its documentation offers. Attention is put together as its models
do: q k^T by `matmul`, p v by the uniform epsilon rule around torch.matmul. The models themselves
(lxt.explicit.models) are not in the wheel; what is said of them was read in the repository.

`VARIANTS` holds further ways LXT offers to the same rules, each an adapter of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from refl.verification.peers.lxt import load
from refl.verification.peers.tensors import (
    Tensor,
    activations,
    except_constants,
    handed_back,
    linear_module,
    needs,
    several_targets,
    stacked,
    to_array,
    to_numpy,
)

needs("torch", "transformers", "lxt")

NAME = "LXT, relevance form"
VERSION = "2.1"
CONVENTIONS = {
    "eps-unsigned": "documentation, 'How does LXT work under the hood?': the rule is written "
    "R / (z + eps), without the sign of z",
}


def _f() -> Any:
    return load("lxt.explicit.functional")


def _rules() -> Any:
    return load("lxt.explicit.rules")


def _stabilized(stabilizer: str) -> None:
    """LXT always adds its eps, so `none` is not offered. `sign`, the definition, and `plain` are
    answered alike: it has one form.
    """
    if stabilizer == "none":
        raise NotImplementedError("LXT has no rule without a stabilizer")


def _generic(
    f: Callable[..., Tensor], r: Tensor, eps: float, stabilizer: str, *operands: Tensor
) -> Any:
    """LXT's epsilon rule around any function."""
    _stabilized(stabilizer)
    return handed_back(lambda *leaves: _rules().epsilon_lrp(f, eps, *leaves), r, *operands)


# -- linear, convolution, sums ---------------------------------------------------------------------


def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    _stabilized(stabilizer)
    return handed_back(lambda t: _f().linear_epsilon(t, w, b, eps), r, x)


def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    from torch.nn.functional import conv2d

    return _generic(lambda t: conv2d(t, w, b, stride=tuple(w.shape[2:])), r, eps, stabilizer, x)


def add_epsilon(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    _stabilized(stabilizer)
    return handed_back(lambda s, t: _f().add2(s, t, False, eps), r, a, b)


def sum_epsilon(
    operands: Sequence[Tensor], r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    return _generic(lambda *leaves: sum(leaves[1:], leaves[0]), r, eps, stabilizer, *operands)


def fan_out_epsilon(
    x: Tensor, w1: Tensor, w2: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    _stabilized(stabilizer)
    f = _f()
    return handed_back(
        lambda t: f.add2(
            f.linear_epsilon(t, w1, None, eps), f.linear_epsilon(t, w2, None, eps), False, eps
        ),
        r,
        x,
    )


def pooling_epsilon(x: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    """Over all positions: LXT's mean leaves none out."""
    _stabilized(stabilizer)
    return handed_back(lambda t: _f().mean(t, 1, True, eps), r, x)


# -- products --------------------------------------------------------------------------------------


def multiply_uniform(
    operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    """mul2 for two operands; LXT's rule for more is UniformRule."""
    product = _f().mul2 if len(operands) == 2 else _product_by_rule
    return except_constants(constant, operands, lambda leaves: product(*leaves).backward(r))


def _product_by_rule(*leaves: Tensor) -> Tensor:
    return _rules().uniform_rule_fn.apply(lambda *each: math.prod(each), *leaves)


def multiply_second(a: Tensor, b: Tensor, r: Tensor) -> Any:
    return handed_back(lambda t: _f().mul2(a, t), r, b)


def scale_pass_through(x: Tensor, r: Tensor, *, factor: float) -> Any:
    return handed_back(lambda t: _f().mul2(t, factor), r, x)


def matmul_uniform(
    a: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    eps: float,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> Any:
    """LXT has both denominators: `matmul` is 2 z + eps, its uniform epsilon rule 2 (z + eps)."""
    import torch

    _stabilized(stabilizer)
    if denominator == "2z+eps":
        return handed_back(lambda s, t: _f().matmul(s, t, False, eps), r, a, v)
    return handed_back(
        lambda s, t: _rules().uniform_epsilon_lrp_fn.apply(torch.matmul, eps, s, t), r, a, v
    )


def matmul_second(a: Tensor, v: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    """As in its MultiheadAttention_CP."""
    import torch

    return _generic(lambda t: torch.matmul(a, t), r, eps, stabilizer, v)


# -- softmax, norms, activations, positions --------------------------------------------------------


def softmax_taylor(x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Any:
    """Its softmax takes no mask: hidden scores are filled with -inf, which it says it looks for."""
    masked = x if mask is None else x.masked_fill(~mask, -math.inf)
    return handed_back(lambda t: _f().softmax(t, axis), r, masked)


def rms_norm_identity(x: Tensor, w: Tensor, r: Tensor, *, norm_eps: float) -> Any:
    return handed_back(lambda t: _f().rms_norm_identity(t, w, norm_eps), r, x)


def layer_norm_epsilon(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    r: Tensor,
    *,
    norm_eps: float,
    eps: float,
    stabilizer: str = "sign",
) -> Any:
    """Its function layer_norm has the eps of its autograd function fixed at 1e-6; the autograd
    function takes another.
    """
    _stabilized(stabilizer)
    return handed_back(lambda t: _f().layer_norm_grad_fn.apply(t, w, b, norm_eps, eps), r, x)


def layer_norm_identity(x: Tensor, w: Tensor, b: Tensor, r: Tensor, *, norm_eps: float) -> Any:
    from torch.nn.functional import layer_norm

    return handed_back(
        lambda t: _rules().identity(lambda each: layer_norm(each, w.shape, w, b, norm_eps), t), r, x
    )


def activation_identity(x: Tensor, r: Tensor, *, kind: str) -> Any:
    return handed_back(lambda t: _rules().identity(activations()[kind], t), r, x)


def rotary_epsilon(
    x: Tensor, cos: Tensor, sin: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    """Of its products and sums. Half of x changes sign by a product with -1: a bare minus would
    turn relevance round.
    """
    import torch

    _stabilized(stabilizer)
    f, half = _f(), x.shape[-1] // 2

    def rotated(t: Tensor) -> Tensor:
        turned = torch.cat((f.mul2(t[..., half:], -1), t[..., :half]), dim=-1)
        return f.add2(f.mul2(t, cos), f.mul2(turned, sin), False, eps)

    return handed_back(rotated, r, x)


def _normed_by_sum(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def renormalize_epsilon(x: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Any:
    return _generic(_normed_by_sum, r, eps, stabilizer, x)


def renormalize_identity(x: Tensor, r: Tensor) -> Any:
    """What its Mixtral does with the chosen gate weights: the epsilon rule around r / sum(r)."""
    return handed_back(lambda t: _rules().epsilon_lrp(_normed_by_sum, 1e-8, t), r, x)


# -- attention -------------------------------------------------------------------------------------


def attention_attnlrp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    eps: float,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> Any:
    """LXT has one form, whichever denominator is asked for:
    q k^T divides by 2 z + eps, p v by 2 (z + eps).
    """
    import torch

    _stabilized(stabilizer)

    def attended(*leaves: Tensor) -> Tensor:
        queries, keys, values = _copied(*leaves)
        p = _f().softmax(_scores(queries, keys, scale, eps, causal, mask), -1)
        return _rules().uniform_epsilon_lrp_fn.apply(torch.matmul, eps, p, values)

    return handed_back(attended, r, q, k, v)


def attention_cp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    eps: float,
    stabilizer: str = "sign",
) -> Any:
    """As in its MultiheadAttention_CP: everything up to the softmax without a graph, then the
    epsilon rule around p v.
    """
    import torch

    _stabilized(stabilizer)

    def attended(values: Tensor) -> Tensor:
        queries, keys, values = _copied(q, k, values)
        p = torch.softmax(
            _hidden((scale * queries) @ keys.transpose(-1, -2), causal, mask, -math.inf), -1
        )
        return _rules().epsilon_lrp(torch.matmul, eps, p, values)

    return None, None, handed_back(attended, r, v)


def _copied(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values once for each query head of their group."""
    times = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def _scores(
    q: Tensor, k: Tensor, scale: float, eps: float, causal: bool, mask: Tensor | None
) -> Tensor:
    """q k^T by its operations, hidden as in its language models."""
    import torch

    f = _f()
    scores = f.matmul(f.mul2(q, scale), k.transpose(-1, -2), False, eps)
    return _hidden(scores, causal, mask, torch.finfo(scores.dtype).min)


def _hidden(scores: Tensor, causal: bool, mask: Tensor | None, by: float) -> Tensor:
    """Its language models write the lowest finite number where a score is hidden, its
    MultiheadAttention_CP -inf.
    """
    import torch

    visible = torch.ones(scores.shape[-2:], dtype=torch.bool)
    visible = (visible.tril() if causal else visible) & (visible if mask is None else mask)
    return scores.masked_fill(~visible, by)


# -- small networks --------------------------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """Modules wrapped as its Composite wraps them: EpsilonRule around linear layers, IdentityRule
    around activations.
    """
    rules = _rules()
    return _network(
        layers, lambda layer: rules.EpsilonRule(linear_module(layer["w"], layer["b"]), layer["eps"])
    )


def _network(
    layers: Sequence[dict[str, Any]], linear: Callable[[dict[str, Any]], Any]
) -> Callable[..., Any]:
    rules, known = _rules(), activations()

    def build(layer: dict[str, Any]) -> Any:
        if layer["operation"] == "activation":
            return rules.IdentityRule(known[layer["kind"]])
        if layer["rule"] != "epsilon":
            raise NotImplementedError("LXT leaves the other rules of linear layers to zennit")
        return linear(layer)

    net = stacked(build, layers)
    return lambda x, seeds: several_targets(net, x, seeds)


# -- other ways to the same rules ------------------------------------------------------------------


def _linear_by_rule(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    _stabilized(stabilizer)
    return handed_back(_rules().EpsilonRule(linear_module(w, b), eps), r, x)


def _multiply_by_rule(
    operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    return except_constants(
        constant, operands, lambda leaves: _product_by_rule(*leaves).backward(r)
    )


def _matmul_by_rule(
    a: Tensor, v: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    """UniformEpsilonRule's documentation: no relevance goes to an input that is constant."""
    import torch

    _stabilized(stabilizer)
    return handed_back(
        lambda t: _rules().uniform_epsilon_lrp_fn.apply(torch.matmul, eps, a, t), r, v
    )


def _cp_of_gpt2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    eps: float,
    stabilizer: str = "sign",
) -> Any:
    """As its relevance-form GPT-2 has it: relevance is stopped at the softmax, and p v goes by
    `matmul`, which halves.
    """
    import torch

    _stabilized(stabilizer)
    stop = _rules().StopRelevanceRule(torch.nn.Softmax(dim=-1))

    def attended(*leaves: Tensor) -> Tensor:
        queries, keys, values = _copied(*leaves)
        p = stop(_scores(queries, keys, scale, eps, causal, mask))
        return _f().matmul(p, values, False, eps)

    return handed_back(attended, r, q, k, v)


def _linear_checked(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Any:
    with load("lxt.explicit.check").conservation_check():
        return linear_epsilon(x, w, b, r, eps=eps, stabilizer=stabilizer)


def _network_of_modules(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    from torch import nn

    f = _f()

    class LinearByFunction(nn.Module):  # type: ignore[misc]
        def __init__(self, layer: dict[str, Any]) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return f.linear_epsilon(x, self.layer["w"], self.layer["b"], self.layer["eps"])

    return _network(layers, LinearByFunction)


VARIANTS = {
    "EpsilonRule": SimpleNamespace(linear_epsilon=_linear_by_rule),
    "UniformRule": SimpleNamespace(multiply_uniform=_multiply_by_rule),
    "UniformEpsilonRule with a constant first operand": SimpleNamespace(
        matmul_second=_matmul_by_rule
    ),
    "CP-LRP as in its relevance-form GPT-2": SimpleNamespace(attention_cp=_cp_of_gpt2),
    "under conservation_check()": SimpleNamespace(linear_epsilon=_linear_checked),
    "network of linear_epsilon": SimpleNamespace(network=_network_of_modules),
}
for _variant in VARIANTS.values():
    _variant.__dict__.update(
        NAME=NAME, VERSION=VERSION, CONVENTIONS=CONVENTIONS, to_array=to_array, to_numpy=to_numpy
    )
