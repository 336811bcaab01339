"""Every rule once more, in torch, behind the interface of the conformance vectors. It is also an
example of an adapter:

    refl conform refl.verification.conformance.adapters.torch_reference

An adapter is functions named `<operation>_<rule>`. Each gets the operands and the relevance `r` of
the output, computes the forward itself, and returns the relevance of each operand, here as
{"relevance": ..., "absorbed": {entry: (B,)}}; the bare relevance would do. `to_array` and
`to_numpy` say how arrays come in and go out. Leave out what your library does not have: it is
reported as not covered.

No rule here knows refl's. Where a rule cuts relevance into messages R_(i<-j), the messages are
formed one and all, (..., O, I), and summed; where it is in gradient x input form, torch.autograd
goes through the surrogate of which the rule is the gradient. Both are slow and short. Half
precision is computed in float32 and rounded at the end: an eps of 1e-8 is zero in float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch.nn import functional

from refl.verification.conformance.adapters import torch_model

NAME = "torch reference"
VERSION = str(torch.__version__)

Tensor = Any
Answer = dict[str, Any]
Rule = Callable[..., Any]


# -- arrays in and out -----------------------------------------------------------------------------


def to_array(array: Any, dtype: str) -> Tensor:
    return torch.tensor(array, dtype=getattr(torch, dtype))


def to_numpy(x: Tensor) -> Any:
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def widen(x: Any) -> Any:
    """Tensors of half precision as float32, also within lists; anything else as it is."""
    if isinstance(x, (list, tuple)):
        return [widen(each) for each in x]
    return (
        x.float()
        if isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)
        else x
    )


def narrow(relevance: Any, dtype: Any) -> Any:
    if isinstance(relevance, (list, tuple)):
        return tuple(narrow(each, dtype) for each in relevance)
    return None if relevance is None else relevance.to(dtype)


def widened(rule: Rule) -> Rule:
    """The rule in at least float32, its relevance rounded to the type of `r`."""

    @wraps(rule)
    def run(*operands: Any, **options: Any) -> Any:
        result = rule(
            *map(widen, operands), **{name: widen(value) for name, value in options.items()}
        )
        dtype = operands[-1].dtype
        return (
            result | {"relevance": narrow(result["relevance"], dtype)}
            if isinstance(result, dict)
            else narrow(result, dtype)
        )

    return run


def answer(relevance: Any, **absorbed: Tensor) -> Answer:  # absorbed (B, ...) each -> (B,)
    return {
        "relevance": relevance,
        "absorbed": {e: each.reshape(len(each), -1).sum(1) for e, each in absorbed.items()},
    }


def both(*accounts: Answer) -> dict[str, Tensor]:
    """What several steps absorbed, entry by entry."""
    entries = [item for account in accounts for item in account["absorbed"].items()]
    return {name: sum(each for other, each in entries if other == name) for name, _ in entries}


# -- the one division, and the one derivative ------------------------------------------------------


def stabilize(z: Tensor, eps: float, stabilizer: str) -> Tensor:
    """eps s(z), s(0) = +1; or eps whatever the sign; or nothing."""
    plain = torch.full_like(z, eps)
    return {
        "sign": torch.where(z >= 0, plain, -plain),
        "plain": plain,
        "none": torch.zeros_like(z),
    }[stabilizer]


def stabilized_ratio(
    r: Tensor, z: Tensor, eps: float = 0.0, stabilizer: str = "none", factor: int = 1
) -> tuple[Tensor, Tensor]:
    """s = R / (factor (z + e)), and what the stabilizer takes: factor e s, or all of R where the
    denominator is zero.
    """
    e = stabilize(z, eps, stabilizer)
    dead = z + e == 0
    s = torch.where(dead, 0, r / torch.where(dead, 1, factor * (z + e)))
    return s, torch.where(dead, r, factor * e * s)


def cut(
    c: Tensor, b: Tensor | None, r: Tensor, eps: float = 0.0, stabilizer: str = "none"
) -> Answer:
    """R_(i<-j) = c_ji R_j / (sum_i c_ji + b_j + e), summed over j: c (..., O, I), b (..., O), r
    (..., O) -> (..., I).
    """
    s, absorbed_by_eps = stabilized_ratio(r, c.sum(-1) + (0 if b is None else b), eps, stabilizer)
    return answer(
        (c * s[..., None]).sum(-2),
        stabilizer=absorbed_by_eps,
        **{} if b is None else {"bias": b * s},
    )


def contributions(x: Tensor, w: Tensor) -> Tensor:  # x (..., I), w (O, I) -> (..., O, I)
    """c_ji = W_ji x_i"""
    return x[..., None, :] * w


def pull(f: Callable[..., Tensor], g: Tensor, *operands: Tensor) -> Any:
    """g^T J of f at the operands, one array for each."""
    with torch.enable_grad():
        leaves = [each.detach().clone().requires_grad_() for each in operands]
        return torch.autograd.grad(f(*leaves), leaves, g, materialize_grads=True)


def derivative(f: Callable[..., Tensor]) -> Rule:
    """The rule that takes g back through f(*operands)."""
    return widened(lambda *arguments: pull(f, arguments[-1], *arguments[:-1]))


# -- where the identity is the rule ----------------------------------------------------------------


@widened
def identity(*operands: Any, **options: Any) -> Answer:
    """R_x = R: activations, norms (as proposition 3.4 has it), and a constant factor."""
    return answer(operands[-1])


activation_identity = rms_norm_identity = layer_norm_identity = renormalize_identity = (
    scale_pass_through
) = identity


# -- linear, z_j = sum_i W_ji x_i + b_j ------------------------------------------------------------


@widened
def linear_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    return cut(contributions(x, w), b, r, eps, stabilizer)


@widened
def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Answer:
    """Contributions of the sign of z_j count 1 + gamma times,
    at z_j = 0 the negative ones; the bias likewise.
    """
    c = contributions(x, w)
    bias = torch.zeros_like(r) if b is None else b + torch.zeros_like(r)
    up = c.sum(-1) + bias > 0
    louder = c + gamma * torch.where(up[..., None], c.clamp(min=0), c.clamp(max=0))
    return cut(
        louder,
        None if b is None else bias + gamma * torch.where(up, bias.clamp(min=0), bias.clamp(max=0)),
        r,
    )


@widened
def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Answer:
    c = contributions(x, w)
    positive = cut(c.clamp(min=0), None if b is None else b.clamp(min=0), alpha * r)
    negative = cut(c.clamp(max=0), None if b is None else b.clamp(max=0), -beta * r)
    return {
        "relevance": positive["relevance"] + negative["relevance"],
        "absorbed": both(positive, negative),
    }


@widened
def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Answer:
    return cut(contributions(x, w).clamp(min=0), None if b is None else b.clamp(min=0), r)


@widened
def linear_flat(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Answer:
    return cut(torch.ones_like(contributions(x, w)), None, r)


@widened
def linear_w_square(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Answer:
    return cut(contributions(torch.ones_like(x), w * w), None, r)


@widened
def linear_z_box(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, low: float, high: float
) -> Answer:
    """c_ji = W_ji x_i - W_ji^+ low - W_ji^- high"""
    return cut(contributions(x, w) - w.clamp(min=0) * low - w.clamp(max=0) * high, None, r)


@widened
def linear_gradient(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Tensor:
    return pull(lambda x: functional.linear(x, w, b), g, x)[0]


# -- convolution whose windows stand side by side --------------------------------------------------


def on_patches(
    rule: Rule, x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, **options: Any
) -> Answer:
    """The linear rule on the unfolded patches, (B, N, C h w),
    and its answer folded back: (B, C, H, W).
    """
    size = w.shape[2:]
    rows = functional.unfold(x, size, stride=size).transpose(1, 2)
    result: Answer = rule(rows, w.flatten(1), b, r.flatten(2).transpose(1, 2), **options)
    folded = functional.fold(result["relevance"].transpose(1, 2), x.shape[2:], size, stride=size)
    return result | {"relevance": folded}


@widened
def convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    return on_patches(linear_epsilon, x, w, b, r, eps=eps, stabilizer=stabilizer)


@widened
def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Answer:
    return on_patches(linear_z_plus, x, w, b, r)


@widened
def convolution_gradient(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Tensor:
    return pull(lambda x: functional.conv2d(x, w, b, stride=tuple(w.shape[2:])), g, x)[0]


# -- sums ------------------------------------------------------------------------------------------


@widened
def sum_epsilon(
    operands: Sequence[Tensor], r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """The operands side by side are the contributions to one output. One that is broadcast receives
    from all its copies.
    """
    stacked = torch.stack(torch.broadcast_tensors(*operands), -1)
    result = cut(stacked[..., None, :], None, r[..., None], eps, stabilizer)
    parts = zip(result["relevance"].unbind(-1), operands, strict=True)
    return result | {"relevance": tuple(part.sum_to_size(a.shape) for part, a in parts)}


@widened
def add_epsilon(a: Tensor, b: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Answer:
    result: Answer = sum_epsilon([a, b], r, eps=eps, stabilizer=stabilizer)
    return result


add_gradient = derivative(torch.add)


@widened
def fan_out_epsilon(
    x: Tensor, w1: Tensor, w2: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """z = W1 x + W2 x. An input that is read twice receives twice."""
    joined = add_epsilon(x @ w1.mT, x @ w2.mT, r, eps=eps, stabilizer=stabilizer)
    ways = [
        linear_epsilon(x, w, None, each, eps=eps, stabilizer=stabilizer)
        for w, each in zip((w1, w2), joined["relevance"], strict=True)
    ]
    return {
        "relevance": ways[0]["relevance"] + ways[1]["relevance"],
        "absorbed": both(joined, *ways),
    }


@widened
def pooling_epsilon(
    x: Tensor, r: Tensor, *, counted: Tensor | None = None, eps: float, stabilizer: str = "sign"
) -> Answer:
    """The mean over the positions that are counted, feature by feature:
    x (B, T, D), r (B, 1, D).
    """
    unmasked = x if counted is None else x * counted
    result = cut(unmasked.mT[..., None, :], None, r.mT, eps, stabilizer)
    return result | {"relevance": result["relevance"].mT}


@widened
def pooling_gradient(x: Tensor, g: Tensor, *, counted: Tensor | None = None) -> Tensor:
    m = torch.ones_like(x[..., :1]) if counted is None else counted
    return pull(lambda x: (m * x).sum(1, keepdim=True) / m.sum(1, keepdim=True), g, x)[0]


# -- products --------------------------------------------------------------------------------------


@widened
def multiply_uniform(
    operands: Sequence[Tensor], r: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    fixed = list(constant or [False] * len(operands))
    share = r / fixed.count(False)
    return tuple(
        None if c else share.sum_to_size(a.shape) for a, c in zip(operands, fixed, strict=True)
    )


@widened
def multiply_flattened(
    operands: Sequence[Tensor],
    r: Tensor,
    *,
    factors: Sequence[int],
    constant: Sequence[bool] | None = None,
) -> Any:
    """An operand that stands for n factors has n votes, a constant none."""
    votes = votes_of(factors, constant)
    pairs = zip(operands, votes, strict=True)
    return tuple((r * n / sum(votes)).sum_to_size(a.shape) if n else None for a, n in pairs)


def votes_of(factors: Sequence[int], constant: Sequence[bool] | None) -> list[int]:
    fixed = constant or [False] * len(factors)
    return [0 if c else n for n, c in zip(factors, fixed, strict=True)]


@widened
def multiply_second(a: Tensor, b: Tensor, r: Tensor) -> Answer:
    """The first is a gate; what stands beside it gets all."""
    return answer(r.sum_to_size(b.shape))


@widened
def multiply_uniform_gxi(
    operands: Sequence[Tensor], g: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    """The gradient of 1/n sum_m a_m prod_(k != m) of a_k held fixed,
    over the n operands that are not constant.
    """
    fixed = list(constant or [False] * len(operands))

    def surrogate(*a: Tensor) -> Tensor:
        one_moves = [
            math.prod([x if k == m else x.detach() for k, x in enumerate(a)])
            for m, c in enumerate(fixed)
            if not c
        ]
        return sum(one_moves) / len(one_moves)

    return tuple(
        None if c else each for c, each in zip(fixed, pull(surrogate, g, *operands), strict=True)
    )


@widened
def multiply_flattened_gxi(
    operands: Sequence[Tensor],
    g: Tensor,
    *,
    factors: Sequence[int],
    constant: Sequence[bool] | None = None,
) -> Any:
    votes = votes_of(factors, constant)
    full = pull(lambda *a: math.prod(a), g, *operands)
    return tuple(each * n / sum(votes) if n else None for each, n in zip(full, votes, strict=True))


@widened
def multiply_gradient(
    operands: Sequence[Tensor], g: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    fixed = list(constant or [False] * len(operands))
    return tuple(
        None if c else each
        for c, each in zip(fixed, pull(lambda *a: math.prod(a), g, *operands), strict=True)
    )


@widened
def multiply_second_gxi(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return pull(lambda b: a * b, g, b)[0]


def products(a: Tensor, v: Tensor) -> Tensor:  # (..., J, I), (..., I, P) -> (..., J, I, P)
    """c_jip = A_ji V_ip"""
    return a[..., :, :, None] * v[..., None, :, :]


@widened
def matmul_uniform(
    a: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    eps: float,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> Answer:
    """R_(A_ji<-jp) = R_(V_ip<-jp) = A_ji V_ip R_jp / (2 O_jp + e)."""
    c = products(a, v)
    o = c.sum(-2)
    s, absorbed_by_eps = (
        stabilized_ratio(r, 2 * o, eps, stabilizer)
        if denominator == "2z+eps"
        else stabilized_ratio(r, o, eps, stabilizer, factor=2)
    )
    messages = c * s[..., None, :]
    return answer((messages.sum(-1), messages.sum(-3)), stabilizer=absorbed_by_eps)


@widened
def matmul_flattened(
    a: Tensor,
    v: Tensor,
    r: Tensor,
    *,
    factors: Sequence[int],
    eps: float,
    stabilizer: str = "sign",
) -> Answer:
    """As many equal messages as there are factors: some to A, the others to V."""
    c, (n_a, n_v) = products(a, v), factors
    count = n_a + n_v
    s, absorbed_by_eps = stabilized_ratio(r, count * c.sum(-2), eps, stabilizer)
    messages = c * s[..., None, :]
    return answer((n_a * messages.sum(-1), n_v * messages.sum(-3)), stabilizer=absorbed_by_eps)


@widened
def matmul_flattened_gxi(a: Tensor, v: Tensor, g: Tensor, *, factors: Sequence[int]) -> Any:
    n_a, n_v = factors
    to_a, to_v = pull(torch.matmul, g, a, v)
    return to_a * n_a / (n_a + n_v), to_v * n_v / (n_a + n_v)


@widened
def matmul_second(
    a: Tensor, v: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """A is a constant: V receives all."""
    c = products(a, v)
    s, absorbed_by_eps = stabilized_ratio(r, c.sum(-2), eps, stabilizer)
    return answer((c * s[..., None, :]).sum(-3), stabilizer=absorbed_by_eps)


def halved(a: Tensor, v: Tensor) -> Tensor:
    """The value of A V, and half its gradient to either side."""
    return (a @ v.detach() + a.detach() @ v) / 2


matmul_uniform_gxi, matmul_gradient = derivative(halved), derivative(torch.matmul)


@widened
def matmul_second_gxi(a: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return pull(lambda v: a @ v, g, v)[0]


# -- softmax ---------------------------------------------------------------------------------------


def visible(x: Tensor, mask: Tensor | None) -> Tensor:
    """Masked neither by the mask nor by a logit of -inf or finfo.min, the type's own."""
    unmasked = x > torch.finfo(x.dtype).min / 2
    return unmasked if mask is None else unmasked & mask


def probabilities(x: Tensor, unmasked: Tensor) -> Tensor:
    """Over the last axis; 0 at masked entries, in rows that are masked whole too."""
    highest = torch.where(unmasked, x, -math.inf).amax(-1, keepdim=True).detach()
    e = torch.where(
        unmasked,
        torch.exp(torch.where(unmasked, x - torch.where(highest.isinf(), 0, highest), 0)),
        0,
    )
    total = e.sum(-1, keepdim=True)
    return e / torch.where(total == 0, 1, total)


def expansion(x: Tensor, p: Tensor) -> Tensor:  # (..., N) x 2 -> (..., N, N)
    """c_ji = x_i (delta_ij - p_i), the terms of p_j's Taylor expansion at x over p_j; 1 - p_j
    summed from the others' p, without loss.
    """
    eye = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    others = torch.where(eye, 0, p[..., None, :]).sum(-1)
    return x[..., None, :] * torch.where(eye, others[..., None], -p[..., None, :])


def taylor(x: Tensor, p: Tensor, unmasked: Tensor, r: Tensor) -> Answer:
    offset = (1 - x + (p * x).sum(-1, keepdim=True)) * r
    return answer((expansion(x, p) * r[..., None]).sum(-2), softmax_offset=offset)


def spread(x: Tensor, p: Tensor, unmasked: Tensor, r: Tensor) -> Answer:
    """Each output's offset in equal parts to the unmasked entries."""
    offset = (1 - x + (p * x).sum(-1, keepdim=True)) * r
    return answer(
        (expansion(x, p) * r[..., None]).sum(-2)
        + offset.sum(-1, keepdim=True) / unmasked.sum(-1, keepdim=True).clamp(min=1)
    )


def z_plus(x: Tensor, p: Tensor, unmasked: Tensor, r: Tensor) -> Answer:
    return cut(expansion(x, p).clamp(min=0), None, r)


def softmax_rule(rule: Rule) -> Rule:
    """From a rule f(x, p, unmasked, r) of the last axis. What is masked enters it as zeros, and its
    relevance is absorbed.
    """

    def on_any_axis(x: Tensor, r: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Answer:
        unmasked = visible(x, mask).transpose(axis, -1)
        logits, wide = (widen(each).transpose(axis, -1) for each in (x, r))
        logits, kept = (torch.where(unmasked, each, 0) for each in (logits, wide))
        result = rule(logits, probabilities(logits, unmasked), unmasked, kept)
        relevance = torch.where(unmasked, result["relevance"], 0).transpose(axis, -1).to(r.dtype)
        return {
            "relevance": relevance,
            "absorbed": result["absorbed"] | answer(None, mask=wide - kept)["absorbed"],
        }

    return on_any_axis


softmax_taylor, softmax_spread, softmax_z_plus, softmax_identity = map(
    softmax_rule, (taylor, spread, z_plus, identity)
)


def softmax_gradient(x: Tensor, g: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Tensor:
    unmasked = visible(x, mask).transpose(axis, -1)
    clean = torch.where(unmasked, widen(x).transpose(axis, -1), 0)
    gradient = pull(lambda x: probabilities(x, unmasked), widen(g).transpose(axis, -1), clean)[0]
    return torch.where(unmasked, gradient, 0).transpose(axis, -1).to(g.dtype)


# -- norms -----------------------------------------------------------------------------------------


def rms_norm(x: Tensor, w: Tensor, norm_eps: float, constant_scale: bool = False) -> Tensor:
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + norm_eps)
    return w * x * (scale.detach() if constant_scale else scale)


def layer_norm(
    x: Tensor, w: Tensor, b: Tensor | None, norm_eps: float, constant_scale: bool = False
) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt((c * c).mean(-1, keepdim=True) + norm_eps)
    z = w * c * (scale.detach() if constant_scale else scale)
    return z if b is None else z + b


@widened
def rms_norm_identity_gxi(x: Tensor, w: Tensor, g: Tensor, *, norm_eps: float) -> Tensor:
    return pull(lambda x: rms_norm(x, w, norm_eps, constant_scale=True), g, x)[0]


@widened
def rms_norm_gradient(x: Tensor, w: Tensor, g: Tensor, *, norm_eps: float) -> Tensor:
    return pull(lambda x: rms_norm(x, w, norm_eps), g, x)[0]


@widened
def layer_norm_epsilon(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    r: Tensor,
    *,
    norm_eps: float,
    eps: float,
    stabilizer: str = "sign",
) -> Answer:
    """With 1/std held fixed the layer is z = J x + b, and R_x = x J^T s."""
    s, absorbed_by_eps = stabilized_ratio(r, layer_norm(x, w, b, norm_eps), eps, stabilizer)
    r_x = x * pull(lambda x: layer_norm(x, w, b, norm_eps, constant_scale=True), s, x)[0]
    return answer(r_x, stabilizer=absorbed_by_eps, **{} if b is None else {"norm_bias": b * s})


@widened
def layer_norm_epsilon_gxi(
    x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, *, norm_eps: float
) -> Tensor:
    return pull(lambda x: layer_norm(x, w, b, norm_eps, constant_scale=True), g, x)[0]


@widened
def layer_norm_gradient(
    x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, *, norm_eps: float
) -> Tensor:
    return pull(lambda x: layer_norm(x, w, b, norm_eps), g, x)[0]


# -- activations -----------------------------------------------------------------------------------

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: torch.special.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "silu": torch.sigmoid,
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
    "gelu_fast": lambda x: torch.sigmoid(2 * 0.7978845608 * (x + 0.044715 * x**3)),
    "relu": lambda x: (x > 0).to(x.dtype),
    "relu2": torch.relu,
}
"""All but tanh are x times a gate, which is the ratio f(x)/x and its limit at 0."""


def activation(kind: str, x: Tensor) -> Tensor:
    return torch.tanh(x) if kind == "tanh" else x * GATES[kind](x)


@widened
def activation_identity_gxi(x: Tensor, g: Tensor, *, kind: str) -> Tensor:
    ratio = (
        torch.where(x == 0, 1, torch.tanh(x) / torch.where(x == 0, 1, x))
        if kind == "tanh"
        else GATES[kind](x)
    )
    return pull(lambda x: x * ratio, g, x)[0]


@widened
def activation_gradient(x: Tensor, g: Tensor, *, kind: str) -> Tensor:
    if kind == "tanh":  # autograd's 1 - tanh^2 has no digits left where tanh is near 1
        return g / torch.cosh(x) ** 2
    return pull(lambda x: activation(kind, x), g, x)[0]


# -- scale, rotation and what only moves -----------------------------------------------------------


@widened
def scale_gradient(x: Tensor, g: Tensor, *, factor: float) -> Tensor:
    return pull(lambda x: factor * x, g, x)[0]


def turned(x: Tensor) -> Tensor:  # (..., d) -> (..., d)
    """(x1, x2) -> (-x2, x1), halves."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


@widened
def rotary_epsilon(
    x: Tensor, cos: Tensor, sin: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """z_j has two contributions, one from x_j and one from its partner half the width away, where
    the second message returns to.
    """
    stays, comes = x * cos, turned(x) * sin
    result: Answer = sum_epsilon([stays, comes], r, eps=eps, stabilizer=stabilizer)
    own, partners = result["relevance"]
    return result | {"relevance": own + partners.roll(x.shape[-1] // 2, -1)}


@widened
def rotary_uniform(
    x: Tensor, cos: Tensor, sin: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    """What the angle gets is of the same products, so both halves have the same sum."""
    result: Answer = rotary_epsilon(x, cos, sin, r, eps=eps, stabilizer=stabilizer)
    half = result["relevance"] / 2
    return {
        "relevance": half,
        "absorbed": result["absorbed"] | {"position": half.flatten(1).sum(1)},
    }


@widened
def rotary_uniform_gxi(x: Tensor, cos: Tensor, sin: Tensor, g: Tensor) -> Answer:
    half = pull(lambda x: x * cos + turned(x) * sin, g, x)[0] / 2
    return {"relevance": half, "absorbed": {"position": (x * half).flatten(1).sum(1)}}


@widened
def rotary_gradient(x: Tensor, cos: Tensor, sin: Tensor, g: Tensor) -> Tensor:
    return pull(lambda x: x * cos + turned(x) * sin, g, x)[0]


@widened
def repeat_heads_pass_through(x: Tensor, r: Tensor, *, times: int) -> Answer:
    return answer(r.unflatten(1, (-1, times)).sum(2))


@widened
def gather_pass_through(x: Tensor, r: Tensor, *, index: Any) -> Answer:
    """A row that is read several times receives from every place."""
    rows = torch.as_tensor(index, dtype=torch.long, device=x.device)[..., None].expand(r.shape)
    return answer(torch.zeros_like(x).scatter_add(1, rows, r))


@widened
def top_k_pass_through(x: Tensor, r: Tensor, *, k: int) -> Answer:
    chosen = x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return answer(torch.zeros_like(x).scatter(-1, chosen, r))


@widened
def renormalize_epsilon(x: Tensor, r: Tensor, *, eps: float, stabilizer: str = "sign") -> Answer:
    """c_ji = x_i dz_j/dx_i = x_i (delta_ij / S - x_j / S^2). They sum to zero: all of z_j is the
    offset, and what an exact rule absorbs.
    """
    total = x.sum(-1, keepdim=True)
    z = x / total
    s, absorbed_by_eps = stabilized_ratio(r, z, eps, stabilizer)
    messages = (torch.diag_embed(z) - z[..., None] * z[..., None, :]) * s[..., None]
    return answer(messages.sum(-2), stabilizer=absorbed_by_eps, renormalization_offset=z * s)


@widened
def renormalize_identity_gxi(x: Tensor, g: Tensor) -> Tensor:
    return pull(lambda x: x / x.sum(-1, keepdim=True).detach(), g, x)[0]


@widened
def renormalize_gradient(x: Tensor, g: Tensor) -> Tensor:
    return pull(lambda x: x / x.sum(-1, keepdim=True), g, x)[0]


# -- state space models ----------------------------------------------------------------------------


def convolved(x: Tensor, w: Tensor) -> Tensor:  # (B, T, C), (C, K) -> (B, T, C)
    """torch's convolution of groups, behind K - 1 zeros."""
    padded = functional.pad(x.mT, (w.shape[1] - 1, 0))
    return functional.conv1d(padded, w[:, None], groups=len(w)).mT


@widened
def causal_convolution_epsilon(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float, stabilizer: str = "sign"
) -> Answer:
    bias = torch.zeros_like(w[:, 0]) if b is None else b
    s, absorbed_by_eps = stabilized_ratio(r, convolved(x, w) + bias, eps, stabilizer)
    absorbed = {"stabilizer": absorbed_by_eps} | ({} if b is None else {"bias": b * s})
    return answer(x * pull(lambda x: convolved(x, w), s, x)[0], **absorbed)


@widened
def causal_convolution_gradient(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Answer:
    absorbed = {} if b is None else {"bias": b * g}
    return answer(pull(lambda x: convolved(x, w), g, x)[0], **absorbed)


def scanned(x: Tensor, d: Tensor, b: Tensor, c: Tensor, a_log: Tensor) -> Tensor:  # -> (B, T, I)
    decays = torch.exp(-d[..., None] * torch.exp(a_log))
    h, ys = torch.zeros_like(decays[:, 0]), []
    for t in range(x.shape[1]):
        h = decays[:, t] * h + (d * x)[:, t, :, None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1))
    return torch.stack(ys, 1)


@widened
def scan_epsilon(
    x: Tensor,
    d: Tensor,
    b: Tensor,
    c: Tensor,
    a_log: Tensor,
    r: Tensor,
    *,
    eps: float,
    stabilizer: str = "sign",
) -> Answer:
    """All but x are constants."""
    s, absorbed_by_eps = stabilized_ratio(r, scanned(x, d, b, c, a_log), eps, stabilizer)
    return answer(
        x * pull(lambda x: scanned(x, d, b, c, a_log), s, x)[0], stabilizer=absorbed_by_eps
    )


@widened
def scan_epsilon_gxi(
    x: Tensor, d: Tensor, b: Tensor, c: Tensor, a_log: Tensor, g: Tensor
) -> Tensor:
    return pull(lambda x: scanned(x, d, b, c, a_log), g, x)[0]


@widened
def scan_gradient(x: Tensor, d: Tensor, b: Tensor, c: Tensor, a_log: Tensor, g: Tensor) -> Any:
    return pull(lambda x, d, b, c: scanned(x, d, b, c, a_log), g, x, d, b, c)


# -- attention: scores = (scale q) k^T, context = softmax(scores) v --------------------------------


def repeated(x: Tensor, heads: int) -> Tensor:  # (B, K, S, d) -> (B, H, S, d)
    return x.repeat_interleave(heads // x.shape[1], 1)


def attended(
    q: Tensor, k: Tensor, causal: bool, mask: Tensor | None
) -> Tensor:  # -> bool (B, H, T, S)
    """Which keys each query may see."""
    unmasked = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
    unmasked = unmasked.tril() if causal else unmasked
    return unmasked if mask is None else unmasked & mask


@widened
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
) -> Answer:
    options: dict[str, Any] = {"eps": eps, "stabilizer": stabilizer, "denominator": denominator}
    times, unmasked = q.shape[1] // k.shape[1], attended(q, k, causal, mask)
    keys, values, queries = repeated(k, q.shape[1]).mT, repeated(v, q.shape[1]), scale * q
    scores = products(queries, keys).sum(-2)
    on_context = matmul_uniform(probabilities(scores, unmasked), values, r, **options)
    on_softmax = softmax_taylor(scores, on_context["relevance"][0], mask=unmasked)
    on_scores = matmul_uniform(queries, keys, on_softmax["relevance"], **options)
    r_q, r_k = on_scores["relevance"]
    r_q = scale_pass_through(q, r_q, factor=scale)["relevance"]
    r_k = repeat_heads_pass_through(k, r_k.mT, times=times)["relevance"]
    r_v = repeat_heads_pass_through(v, on_context["relevance"][1], times=times)["relevance"]
    return {"relevance": (r_q, r_k, r_v), "absorbed": both(on_context, on_softmax, on_scores)}


@widened
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
) -> Answer:
    """The probabilities are constants: all goes to v."""
    p = probabilities(scale * q @ repeated(k, q.shape[1]).mT, attended(q, k, causal, mask))
    result = matmul_second(p, repeated(v, q.shape[1]), r, eps=eps, stabilizer=stabilizer)
    r_v = repeat_heads_pass_through(v, result["relevance"], times=q.shape[1] // k.shape[1])[
        "relevance"
    ]
    return {"relevance": (None, None, r_v), "absorbed": result["absorbed"]}


@widened
def attention_attnlrp_gxi(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Any:
    def surrogate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = probabilities(
            halved(scale * q, repeated(k, q.shape[1]).mT), attended(q, k, causal, mask)
        )
        return halved(p, repeated(v, q.shape[1]))

    return pull(surrogate, g, q, k, v)


@widened
def attention_cp_gxi(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Any:
    p = probabilities(scale * q @ repeated(k, q.shape[1]).mT, attended(q, k, causal, mask))
    return None, None, pull(lambda v: p @ repeated(v, q.shape[1]), g, v)[0]


# -- small networks and whole models ---------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """explain(x, seeds): one forward, kept, and a way back through it for every seed."""
    return torch_model.network(layers, globals())


def model(folder: Any) -> Callable[..., Any]:
    """explain(ids, targets, method) for a Llama or GPT-2 checkpoint, with the rules above."""
    return torch_model.load(folder, globals())
