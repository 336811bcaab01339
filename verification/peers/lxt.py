"""LXT 2.1 (Achtibat et al.'s own library) made usable beside refl: its gradient x input form, and a
Llama of its relevance-form operations.

Beside torch 2.13.0 (CPU) and transformers 4.52.4, LXT imports once two things are in order:
transformers goes first, and `torchvision.models.vision_transformer`, for which no wheel matches a
CPU build of torch, is stood in for by a module with the four names LXT takes from it. zennit, which
LXT uses where it is there, wants two classes of torchvision alike.

LXT's gradient x input form works by patching classes and functions of transformers and torch for
the whole process (torch.nn.LayerNorm and Dropout among them). `patched` puts every one of them
back; nothing outside its block sees LXT.

Nothing here uses refl's engine, and torch is imported only when a function is called.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDENTITY_EPS = 1e-10
"""What LXT's gradient x input form adds to x in the factor f(x)/(x + eps) of an activation."""

MAPS = {"attnlrp-gradient": "attnLRP", "cp-lrp": "cp_LRP"}
"""refl's name of a method -> the name of LXT's table of patches."""

BLOCKS = {
    "llama": "model.layers.{}",
    "gpt2": "transformer.h.{}",
    "qwen2": "model.layers.{}",
    "qwen3": "model.layers.{}",
    "gemma3_text": "model.layers.{}",
}

FAMILIES = {"gemma3_text": "gemma3"}
"""Model type -> the name of its modules in transformers and LXT, where that is another."""


# -- import ----------------------------------------------------------------------------------------


def load(name: str = "lxt.efficient") -> Any:
    """A module of LXT. Raises ImportError where torch, transformers or LXT is not installed."""
    importlib.import_module("transformers")
    with warnings.catch_warnings(), stand_in_for_torchvision():
        warnings.filterwarnings(
            "ignore", message="'zennit' library is not available"
        )  # it wants Pillow; only vision models want it
        importlib.import_module("lxt.efficient")
        return importlib.import_module(name)


def load_zennit(name: str = "zennit.rules") -> Any:
    """A module of zennit. Raises ImportError where torch or zennit is not installed."""
    with stand_in_for_torchvision():
        return importlib.import_module(name)


@contextmanager
def stand_in_for_torchvision() -> Iterator[None]:
    """Only while LXT or zennit is imported: transformers asks elsewhere whether torchvision is
    there, and it is not.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    from torch import nn

    names = (
        "torchvision",
        "torchvision.models",
        "torchvision.models.vision_transformer",
        "torchvision.models.resnet",
    )
    top, models, vit, resnet = (types.ModuleType(name) for name in names)
    for attribute, value in {
        "nn": nn,
        "GELU": nn.GELU,
        "LayerNorm": nn.LayerNorm,
        "MultiheadAttention": nn.MultiheadAttention,
    }.items():
        setattr(vit, attribute, value)
    for attribute in ("Bottleneck", "BasicBlock"):
        setattr(resnet, attribute, type(attribute, (nn.Module,), {}))
    top.models = models  # type: ignore[attr-defined]
    models.vision_transformer = vit  # type: ignore[attr-defined]
    models.resnet = resnet  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (top, models, vit, resnet), strict=True))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


# -- precision -------------------------------------------------------------------------------------


@contextmanager
def wide() -> Iterator[None]:
    """float64 where transformers and LXT say float32 whatever the model's dtype is.

    Those islands (RMSNorm, RoPE's angles, the softmax of eager attention, reorder_and_upcast_attn)
    keep a float64 model from float64 results. Each is spelled `torch.float32`, `torch.float` or
    `.float()` and looked up when it runs, so these three names mean float64 for as long as this
    lasts. A model has to be made inside, too: RoPE's frequencies are formed then.
    """
    import torch

    before = torch.float32, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32 = torch.float = before[0]
        del torch.Tensor.float  # the method of its base class shows again
        torch.set_default_dtype(before[1])


def widened(loaded: Any) -> Any:
    """The float64 twin of a transformers model of any dtype. To be called inside `wide`; the file
    is read outside.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(
        loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
    )
    model.load_state_dict(loaded.state_dict())
    return model.eval()


# -- gradient x input form -------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """LXT's answer for one text, as NumPy arrays."""

    logit: float
    relevance: Any
    """(T,): embedding times gradient, summed over features."""
    blocks: dict[str, Any]
    """Block's module path -> (T, D): output times gradient."""
    smallest: float
    """The least |x| that entered an activation:
    LXT's eps there distorts the factor f(x)/x by eps/|x|.
    """


@contextmanager
def patched(
    model_type: str, method: str = "attnlrp-gradient", identity_eps: float = IDENTITY_EPS
) -> Iterator[None]:
    """transformers' modules of this model type under LXT's patches;
    everything is as before afterwards.
    """
    efficient, rules = load(), load("lxt.efficient.rules")
    family = FAMILIES.get(model_type, model_type)
    modeling: Any = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    patches = getattr(load(f"lxt.efficient.models.{family}"), MAPS[method])
    with ExitStack() as stack:
        for target in (p for p in patches if hasattr(p, "_norm")):  # Gemma's norm is patched inside
            stack.enter_context(restored(target, "_norm"))
        for target in patches:
            stack.enter_context(
                restored(
                    target, "forward" if isinstance(target, type) else "eager_attention_forward"
                )
            )
        stack.enter_context(restored(modeling, "ALL_ATTENTION_FUNCTIONS"))
        modeling.ALL_ATTENTION_FUNCTIONS = copy.deepcopy(
            modeling.ALL_ATTENTION_FUNCTIONS
        )  # LXT's CP patch writes into the one all models share
        stack.enter_context(restored(rules.identity_rule_implicit_fn.forward, "__defaults__"))
        rules.identity_rule_implicit_fn.forward.__defaults__ = (identity_eps,)
        efficient.monkey_patch(modeling, patches)
        yield


@contextmanager
def restored(owner: Any, name: str) -> Iterator[None]:
    """An attribute that may be changed inside, and is as before afterwards."""
    before = getattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, before)


def gradient_form(
    folder: str | Path,
    ids: Sequence[int],
    target: int,
    method: str = "attnlrp-gradient",
    *,
    identity_eps: float = IDENTITY_EPS,
    seed_with_logit: bool = False,
) -> Found:
    """LXT's gradient x input form on a checkpoint folder, in float64 throughout: the logit of
    `target` after the last of `ids`.

    identity_eps       LXT's own, or 0 to see the rule without it
    seed_with_logit    start the backward pass from the logit, as LXT's examples do, in place of 1
    """
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    kind = loaded.config.model_type
    with wide(), patched(kind, method, identity_eps):
        return backward(widened(loaded), kind, ids, target, seed_with_logit)


def backward(
    model: Any, kind: str, ids: Sequence[int], target: int, seed_with_logit: bool = False
) -> Found:
    """One forward and backward of a patched model:
    x * gradient at the embedding and at every block.
    """
    import torch

    tokens = torch.tensor([list(ids)])
    blocks: dict[str, Any] = {}
    entered: list[float] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(_keep(blocks, name))
        for name in _blocks(model, kind)
    ]
    hooks += [
        m.register_forward_hook(_smallest(entered))
        for name, m in model.named_modules()
        if name.endswith(("gate_proj", "c_fc"))
    ]
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    try:
        logit = model(
            inputs_embeds=embedded, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits[0, -1, target]
        logit.backward(logit.detach() if seed_with_logit else None)
    finally:
        for hook in hooks:
            hook.remove()
    at_blocks = {name: (x * x.grad)[0].detach().numpy() for name, x in blocks.items()}
    relevance = (embedded * embedded.grad)[0].sum(-1).detach().numpy()
    return Found(logit.item(), relevance, at_blocks, min(entered, default=math.inf))


def _blocks(model: Any, kind: str) -> list[str]:
    return [BLOCKS[kind].format(i) for i in range(model.config.num_hidden_layers)]


def _keep(blocks: dict[str, Any], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        blocks[name] = output[0] if isinstance(output, tuple) else output
        blocks[name].retain_grad()

    return hook


def _smallest(entered: list[float]) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        entered.append(float(output.detach().abs().min()))

    return hook


# -- relevance form --------------------------------------------------------------------------------


@dataclass
class Explicit:
    """LXT's relevance-form operations, in the order Llama needs them, each output kept under refl's
    name for the site.

    A relevance-form operation hands relevance to autograd where a gradient is expected. What torch
    does to gradients on the way is therefore right for movement (slices, transposes, copies that
    are summed back) and wrong for arithmetic, even for a minus sign: every arithmetic step below is
    one of LXT's operations.
    """

    weights: Mapping[str, Any]
    eps: float = 1e-8
    context_eps: float = 1e-6

    def __post_init__(self) -> None:
        self.functional, self.rules = load("lxt.explicit.functional"), load("lxt.explicit.rules")
        self.sites: dict[str, Any] = {}

    def site(self, name: str, x: Any) -> Any:
        x.retain_grad()
        self.sites[name] = x
        return x

    def linear(self, name: str, x: Any) -> Any:
        bias = self.weights.get(f"{name}.bias")
        return self.site(
            name, self.functional.linear_epsilon(x, self.weights[f"{name}.weight"], bias, self.eps)
        )

    def rms_norm(self, name: str, x: Any, norm_eps: float) -> Any:
        return self.site(
            name, self.functional.rms_norm_identity(x, self.weights[f"{name}.weight"], norm_eps)
        )

    def add(self, name: str, a: Any, b: Any) -> Any:
        return self.site(name, self.functional.add2(a, b, False, self.eps))

    def rotary(self, name: str, x: Any, cos: Any, sin: Any) -> Any:
        import torch

        f, half = self.functional, x.shape[-1] // 2
        turned = torch.cat((f.mul2(x[..., half:], -1), x[..., :half]), dim=-1)
        return self.add(name, f.mul2(x, cos), f.mul2(turned, sin))

    def context(self, name: str, p: Any, v: Any) -> Any:
        import torch

        return self.site(
            name, self.rules.uniform_epsilon_lrp_fn.apply(torch.matmul, self.context_eps, p, v)
        )


def explicit_llama(
    c: Mapping[str, Any], weights: Mapping[str, Any], ids: Sequence[int], target: int
) -> dict[str, Any]:
    """Relevance at every site of a Llama made of LXT's operations: refl's site name -> array
    without the batch axis.

    c          config.json: sizes, rms_norm_eps, rope_theta; a SiLU-gated Llama with plain RoPE
    weights    tensors by the names of the checkpoint, all of one dtype

    What LXT leaves open is done as refl does it: queries are scaled before the product with the
    keys, and the mask is filled in rather than added, so that no eps meets it. Scaling the scores
    after the product moves where eps meets them: 1.6e-8 of the relevance on a trained model.
    """
    import torch

    ops = Explicit(weights)
    h = ops.site(
        "model.embed_tokens",
        weights["model.embed_tokens.weight"][list(ids)][None].detach().requires_grad_(),
    )
    cos, sin = _angles(c, len(ids), h.dtype)
    for i in range(c["num_hidden_layers"]):
        h = _block(ops, f"model.layers.{i}", h, c, cos, sin)
    logits = ops.linear("lm_head", ops.rms_norm("model.norm", h, c["rms_norm_eps"])[:, -1:])
    seed = torch.zeros_like(logits)
    seed[0, -1, target] = logits[0, -1, target].detach()
    logits.backward(seed)
    return {name: x.grad[0].numpy() for name, x in ops.sites.items()}


def _block(ops: Explicit, path: str, h: Any, c: Mapping[str, Any], cos: Any, sin: Any) -> Any:
    n = ops.rms_norm(f"{path}.input_layernorm", h, c["rms_norm_eps"])
    h = ops.add(f"{path}.residual", h, _attention(ops, f"{path}.self_attn", n, c, cos, sin))
    n = ops.rms_norm(f"{path}.post_attention_layernorm", h, c["rms_norm_eps"])
    return ops.add(path, h, _gated_mlp(ops, f"{path}.mlp", n))


def _attention(ops: Explicit, path: str, x: Any, c: Mapping[str, Any], cos: Any, sin: Any) -> Any:
    heads, kept = c["num_attention_heads"], c["num_key_value_heads"]
    q, k, v = (
        _split(ops.linear(f"{path}.{name}_proj", x), n)
        for name, n in (("q", heads), ("k", kept), ("v", kept))
    )
    q = ops.functional.mul2(ops.rotary(f"{path}.query.rotated", q, cos, sin), q.shape[-1] ** -0.5)
    k = ops.rotary(f"{path}.key.rotated", k, cos, sin).repeat_interleave(heads // kept, dim=1)
    v = v.repeat_interleave(heads // kept, dim=1)
    scores = ops.site(
        f"{path}.scores", ops.functional.matmul(q, k.transpose(-1, -2), False, ops.eps)
    )
    p = ops.site(f"{path}.probabilities", ops.functional.softmax(_causal(scores), -1))
    context = ops.context(f"{path}.context", p, v)
    return ops.linear(f"{path}.o_proj", context.transpose(1, 2).flatten(2))


def _gated_mlp(ops: Explicit, path: str, x: Any) -> Any:
    import torch

    gate = ops.site(
        f"{path}.act_fn",
        ops.rules.identity(torch.nn.functional.silu, ops.linear(f"{path}.gate_proj", x)),
    )
    gated = ops.site(f"{path}.gated", ops.functional.mul2(gate, ops.linear(f"{path}.up_proj", x)))
    return ops.linear(f"{path}.down_proj", gated)


def _split(x: Any, heads: int) -> Any:  # (B, T, H d) -> (B, H, T, d)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _causal(scores: Any) -> Any:
    import torch

    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf)


def _angles(c: Mapping[str, Any], length: int, dtype: Any) -> tuple[Any, Any]:  # -> cos, sin (T, d)
    import torch

    width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    f = c.get("rope_theta", 10000.0) ** (-torch.arange(0, width, 2, dtype=dtype) / width)
    angle = torch.outer(torch.arange(length, dtype=dtype), torch.cat((f, f)))
    return angle.cos(), angle.sin()
