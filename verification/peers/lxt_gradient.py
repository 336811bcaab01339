"""LXT 2.1 in its gradient x input form (lxt.efficient) under the conformance vectors:
refl conform refl.verification.peers.lxt_gradient

Each function calls LXT's own rule or patch, with nothing mended, and returns the gradient. Where
LXT leaves an operation to autograd, as its documentation explains for linear ones, autograd is what
is asked. Attention is transformers' function for scaled dot-product attention under LXT's wrapper.

The classic rules of linear layers it takes from zennit, through a bridge that divides the relevance
by the input and multiplies by the output. In the vectors they are in relevance form: a function
here seeds R / z and multiplies what comes back by the input, as LXT's vision example does.

`model` runs transformers under LXT's patches, in float64 throughout: LXT's norm computes in float32
whatever the model's format is, which would hide everything else.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from refl.verification.peers import lxt
from refl.verification.peers.tensors import (
    Tensor,
    activations,
    except_constants,
    handed_back,
    least_stabilizer,
    linear_module,
    needs,
    patches_module,
    to_array,
    to_numpy,
)

needs("torch", "transformers", "lxt", "zennit")

NAME = "LXT, gradient x input form"
VERSION = "2.1"
CONVENTIONS = {
    "ratio-eps": "documentation, 'How does the Input*Gradient Framework work?': the factor is "
    "written f(x) / (x + eps), with 1e-10 as eps",
}


def _rules() -> Any:
    return lxt.load("lxt.efficient.rules")


def _patches() -> Any:
    return lxt.load("lxt.efficient.patches")


# -- left to autograd ------------------------------------------------------------------------------


def linear_gradient(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Any:
    from torch.nn.functional import linear

    return handed_back(lambda t: linear(t, w, b), g, x)


def convolution_gradient(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Any:
    from torch.nn.functional import conv2d

    return handed_back(lambda t: conv2d(t, w, b, stride=tuple(w.shape[2:])), g, x)


def add_gradient(a: Tensor, b: Tensor, g: Tensor) -> Any:
    return handed_back(lambda s, t: s + t, g, a, b)


def scale_gradient(x: Tensor, g: Tensor, *, factor: float) -> Any:
    return handed_back(lambda t: t * factor, g, x)


def softmax_gradient(x: Tensor, g: Tensor, *, mask: Tensor | None = None, axis: int = -1) -> Any:
    import torch

    masked = x if mask is None else x.masked_fill(~mask, -torch.inf)
    return handed_back(lambda t: torch.softmax(t, axis), g, masked)


def rotary_gradient(x: Tensor, cos: Tensor, sin: Tensor, g: Tensor) -> Any:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return handed_back(lambda t: apply_rotary_pos_emb(t, t.detach(), cos[None], sin[None])[0], g, x)


def renormalize_identity_gxi(x: Tensor, g: Tensor) -> Any:
    """What its Qwen 3 MoE does with the chosen gate weights: r / sum(r) as it stands."""
    return handed_back(lambda t: t / t.sum(-1, keepdim=True), g, x)


# -- its rules -------------------------------------------------------------------------------------


def multiply_uniform_gxi(
    operands: Sequence[Tensor], g: Tensor, *, constant: Sequence[bool] | None = None
) -> Any:
    factors = len(operands) - sum(constant or ())

    def halved(leaves: list[Tensor]) -> None:
        _rules().divide_gradient(math.prod(leaves), factors).backward(g)

    return except_constants(constant, operands, halved)


def multiply_second_gxi(a: Tensor, b: Tensor, g: Tensor) -> Any:
    return handed_back(lambda t: _rules().stop_gradient(a) * t, g, b)


def matmul_uniform_gxi(a: Tensor, v: Tensor, g: Tensor) -> Any:
    return handed_back(lambda s, t: _rules().divide_gradient(s @ t, 2), g, a, v)


def matmul_second_gxi(a: Tensor, v: Tensor, g: Tensor) -> Any:
    return handed_back(lambda t: _rules().stop_gradient(a) @ t, g, v)


def activation_identity_gxi(x: Tensor, g: Tensor, *, kind: str) -> Any:
    return handed_back(lambda t: _rules().identity_rule_implicit(activations()[kind], t), g, x)


def rms_norm_identity_gxi(x: Tensor, w: Tensor, g: Tensor, *, norm_eps: float) -> Any:
    norm = SimpleNamespace(weight=w, variance_epsilon=norm_eps)
    return handed_back(lambda t: _patches().rms_norm_forward(norm, t), g, x)


def layer_norm_epsilon_gxi(
    x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, *, norm_eps: float
) -> Any:
    norm = SimpleNamespace(weight=w, bias=b, eps=norm_eps)
    return handed_back(lambda t: _patches().layer_norm_forward(norm, t), g, x)


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
    wrapped = _patches().wrap_attention_forward(_sdpa())
    return _attention(wrapped, q, k, v, g, scale, _visible(q, k, causal, mask))


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
    wrapped = _patches().cp_wrap_attention_forward(_sdpa())
    return _attention(wrapped, q, k, v, g, scale, _visible(q, k, causal, mask))


def _sdpa() -> Callable[..., Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return functools.partial(sdpa_attention_forward, is_causal=False)


def _attention(
    wrapped: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    mask: Tensor | None,
) -> Any:  # q (B, H, T, d), k, v (B, K, S, d)
    block = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    return handed_back(
        lambda *leaves: wrapped(block, *leaves, mask, scaling=scale)[0].transpose(1, 2), g, q, k, v
    )


def _visible(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> Tensor | None:
    import torch

    if not causal:
        return mask
    lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return lower[None, None] if mask is None else lower & mask


# -- the bridge to zennit --------------------------------------------------------------------------


@contextmanager
def bridge() -> Iterator[None]:
    """zennit's hooks under LXT's patch; they are as before afterwards."""
    hook = lxt.load_zennit("zennit.core").BasicHook
    patch = lxt.load("lxt.efficient").monkey_patch_zennit
    with lxt.restored(hook, "forward"), lxt.restored(hook, "backward"):
        patch()
        yield


def _bridged(rule: Callable[[Any], Any], module: Any, r: Tensor, x: Tensor) -> Any:
    """x times the gradient that comes back from R / z.
    Relevance at an output of 0 is no gradient there.
    """
    with bridge():
        handles = rule(lxt.load_zennit()).register(module)
        try:
            return x * handed_back(module, _as_gradient(r, module(x)), x)
        finally:
            handles.remove()


def _as_gradient(r: Tensor, z: Tensor) -> Tensor:
    if bool(((z == 0) & (r != 0)).any()):
        raise NotImplementedError("the gradient x input form has no relevance at an output of 0")
    return (r / z).where(z != 0, 0 * r)


def linear_epsilon(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, eps: float) -> Any:
    return _bridged(lambda z: z.Epsilon(eps), linear_module(w, b), r, x)


def linear_gamma(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, gamma: float) -> Any:
    return _bridged(
        lambda z: z.Gamma(gamma, stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x
    )


def linear_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _bridged(lambda z: z.ZPlus(stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_alpha_beta(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, alpha: float, beta: float
) -> Any:
    return _bridged(
        lambda z: z.AlphaBeta(alpha, beta, stabilizer=least_stabilizer(x, r)),
        linear_module(w, b),
        r,
        x,
    )


def linear_flat(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _bridged(lambda z: z.Flat(stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x)


def linear_w_square(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _bridged(
        lambda z: z.WSquare(stabilizer=least_stabilizer(x, r), zero_params="bias"),
        linear_module(w, b),
        r,
        x,
    )


def linear_z_box(
    x: Tensor, w: Tensor, b: Tensor | None, r: Tensor, *, low: float, high: float
) -> Any:
    return _bridged(
        lambda z: z.ZBox(low, high, stabilizer=least_stabilizer(x, r)), linear_module(w, b), r, x
    )


def convolution_z_plus(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor) -> Any:
    return _bridged(
        lambda z: z.ZPlus(stabilizer=least_stabilizer(x, r)), patches_module(w, b), r, x
    )


# -- whole models ----------------------------------------------------------------------------------


def model(folder: str | Path) -> Callable[..., Any]:
    """explain(ids, targets, method, position): a backward pass from 1 at each target's logit, x
    times gradient at every module's output.
    """
    return _model(folder, lxt.IDENTITY_EPS)


def _model(folder: str | Path, identity_eps: float) -> Callable[..., Any]:
    import transformers

    kind = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in lxt.BLOCKS:
        raise NotImplementedError(f"LXT has no patches for a causal {kind}")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def explain(
        ids: Sequence[int], targets: Sequence[int], method: str, position: int | None = None
    ) -> list[dict[str, Any]]:
        if method not in lxt.MAPS:
            raise NotImplementedError(f"LXT has no {method} in its gradient x input form")
        with lxt.wide(), lxt.patched(kind, method, identity_eps):
            found = _targets(
                lxt.widened(loaded), ids, targets, -1 if position is None else position
            )
        return [
            {
                name: a.swapaxes(0, 1) if (kind, name[-6:]) in TOKENS_FIRST else a
                for name, a in each.items()
            }
            for each in found
        ]

    return explain


TOKENS_FIRST = {("qwen3", "q_norm"), ("qwen3", "k_norm")}
"""Where transformers norms heads before it brings them in front of the tokens: (T, H, d), refl's
sites are (H, T, d).
"""


def _targets(
    net: Any, ids: Sequence[int], targets: Sequence[int], position: int
) -> list[dict[str, Any]]:
    import torch

    tokens, outputs = torch.tensor([list(ids)]), dict[str, Tensor]()
    hooks = [
        module.register_forward_hook(_keeping(outputs, name))
        for name, module in net.named_modules()
        if name
    ]
    try:
        embedded = net.get_input_embeddings()(tokens).detach().requires_grad_()
        outputs.clear()
        logits = net(
            inputs_embeds=embedded, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits[0, position]
    finally:
        for hook in hooks:
            hook.remove()
    outputs[_embedding(net)] = embedded
    return [
        _at_every_site(logits[target], outputs) | {"logit": logits[target].item()}
        for target in targets
    ]


def _embedding(net: Any) -> str:
    return next(
        str(name) for name, module in net.named_modules() if module is net.get_input_embeddings()
    )


def _keeping(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if hasattr(first, "requires_grad") and first.requires_grad:
            outputs[name] = first

    return hook


def _at_every_site(logit: Tensor, outputs: dict[str, Tensor]) -> dict[str, Any]:
    """x times gradient wherever a gradient arrives; of the head, the row with the logit alone."""
    import torch

    found = torch.autograd.grad(logit, list(outputs.values()), retain_graph=True, allow_unused=True)
    relevance = {
        name: to_numpy((x * g)[0])
        for (name, x), g in zip(outputs.items(), found, strict=True)
        if g is not None
    }
    return relevance | {name: a[a.any(-1)] for name, a in relevance.items() if name == "lm_head"}


# -- other ways to the same rules ------------------------------------------------------------------


def _attention_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Any:
    import torch
    from transformers.models.llama.modeling_llama import eager_attention_forward

    visible = _visible(q, k, causal, mask)
    added = (
        None
        if visible is None
        else torch.zeros(visible.shape, dtype=q.dtype).masked_fill(
            ~visible, torch.finfo(q.dtype).min
        )
    )
    wrapped = _patches().wrap_attention_forward(eager_attention_forward)
    return _attention(wrapped, q, k, v, g, scale, added)


def _linear_seeded_with_output(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Any:
    """As its page on latent features starts the backward pass: from the output's value, times g."""
    from torch.nn.functional import linear

    return linear_gradient(x, w, b, g * linear(x, w, b))


VARIANTS = {
    "eager attention": SimpleNamespace(attention_attnlrp_gxi=_attention_eager),
    "seeded with the output, as its page on latent features has it": SimpleNamespace(
        linear_gradient=_linear_seeded_with_output
    ),
    "without the eps in f(x) / (x + eps)": SimpleNamespace(
        model=lambda folder: _model(folder, 0.0)
    ),
}
for _variant in VARIANTS.values():
    _variant.__dict__.update(
        NAME=NAME, VERSION=VERSION, CONVENTIONS=CONVENTIONS, to_array=to_array, to_numpy=to_numpy
    )
