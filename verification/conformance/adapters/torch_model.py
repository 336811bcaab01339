"""Whole networks for the torch adapter: a chain of layers, Llama and its relatives, GPT-2. Every
operation is an autograd function whose way back is a rule.

`rules` is the adapter's namespace, functions `<operation>_<rule>` by name. torch.autograd then does
what an attribution library does by hand: it walks the operations backwards and sums where a value
is used more than once. What arrives at a value is its relevance or, for methods in gradient x
input form, g with R = x g.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch

Tensor = Any
Rules = Mapping[str, Any]

EPS = 1e-6


# -- a chain of layers -----------------------------------------------------------------------------


def network(layers: Sequence[dict[str, Any]], rules: Rules) -> Callable[..., Any]:
    def explain(x: Tensor, seeds: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        values = [rules["widen"](x)]
        for layer in layers:
            values.append(_forward(layer, values[-1], rules))
        return values[-1].to(x.dtype), [
            _backward(layers, values, rules["widen"](seed), rules).to(seed.dtype) for seed in seeds
        ]

    return explain


def _operands(layer: dict[str, Any], x: Tensor, rules: Rules) -> tuple[Any, ...]:
    return (
        (x, rules["widen"](layer["w"]), rules["widen"](layer["b"]))
        if layer["operation"] == "linear"
        else (x,)
    )


def _forward(layer: dict[str, Any], x: Tensor, rules: Rules) -> Tensor:
    if layer["operation"] == "activation":
        return rules["activation"](layer["kind"], x)
    return torch.nn.functional.linear(*_operands(layer, x, rules))


def _backward(
    layers: Sequence[dict[str, Any]], values: Sequence[Tensor], r: Tensor, rules: Rules
) -> Tensor:
    for layer, x in zip(reversed(layers), reversed(values[:-1]), strict=True):
        options = {
            name: value
            for name, value in layer.items()
            if name not in ("operation", "rule", "w", "b")
        }
        r = relevance(
            rules[f"{layer['operation']}_{layer['rule']}"](
                *_operands(layer, x, rules), r, **options
            )
        )[0]
    return r


def relevance(answer: Any) -> tuple[Any, ...]:
    """What a rule answered, bare or with what it absorbed,
    one entry for each operand that it returns.
    """
    propagated = answer["relevance"] if isinstance(answer, dict) else answer
    return tuple(propagated) if isinstance(propagated, (list, tuple)) else (propagated,)


# -- operations under rules ------------------------------------------------------------------------


class Ruled(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """forward(*operands); backward: whatever the rule makes of what arrives, padded with None for
    operands it does not return.
    """

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Tensor], rule: Callable[..., Any], *operands: Any
    ) -> Tensor:
        ctx.rule, ctx.operands = rule, operands
        return forward(*operands)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        propagated = relevance(ctx.rule(*ctx.operands, incoming))
        return None, None, *propagated, *[None] * (len(ctx.operands) - len(propagated))


PAPER = {
    "linear": "linear_epsilon",
    "add": "add_epsilon",
    "multiply": "multiply_uniform",
    "rms_norm": "rms_norm_identity",
    "layer_norm": "layer_norm_epsilon",
    "activation": "activation_identity",
    "rotary": "rotary_epsilon",
    "attention": "attention_attnlrp",
}
GRADIENT = {
    "linear": "linear_gradient",
    "add": "add_gradient",
    "multiply": "multiply_uniform_gxi",
    "rms_norm": "rms_norm_identity_gxi",
    "layer_norm": "layer_norm_epsilon_gxi",
    "activation": "activation_identity_gxi",
    "rotary": "rotary_gradient",
    "attention": "attention_attnlrp_gxi",
}
METHODS: dict[str, dict[str, str]] = {
    "attnlrp": PAPER,
    "attnlrp-gradient": GRADIENT,
    "cp-lrp": GRADIENT | {"attention": "attention_cp_gxi"},
    "input-x-gradient": {},
}
"""Method -> operation -> rule; an operation without one is left to autograd."""


class Run:
    """One forward under a method: weights by name,
    and the values that were given a site, in order.
    """

    def __init__(self, weights: Mapping[str, Tensor], rules: Rules, method: str) -> None:
        if method not in METHODS:
            raise NotImplementedError(method)
        self.weights, self.rules, self.method, self.table = weights, rules, method, METHODS[method]
        self.in_relevance_form = method == "attnlrp"
        self.sites: dict[str, Tensor] = {}

    def site(self, name: str, x: Tensor) -> Tensor:
        self.sites[name] = x
        return x

    def __call__(
        self, operation: str, forward: Callable[..., Tensor], *operands: Any, **options: Any
    ) -> Tensor:
        if operation not in self.table:
            return forward(*operands)
        rule = self.rules[self.table[operation]]
        if "eps" in signature(rule).parameters:
            options["eps"] = EPS
        return Ruled.apply(forward, lambda *a: rule(*a, **options), *operands)

    def linear(
        self, name: str, x: Tensor, *, weight: str | None = None, conv1d: bool = False
    ) -> Tensor:
        """`conv1d`: the weight is stored (I, O)."""
        w, b = (
            self.weights[weight or f"{name}.weight"],
            None if weight else self.weights.get(f"{name}.bias"),
        )
        return self.site(name, self("linear", self._linear, x, w.mT if conv1d else w, b))

    def _linear(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Added up as the rule adds it up: a small sum of large terms, rounded in another order, is
        another number to divide by.
        """
        z = self.rules["contributions"](x, w).sum(-1)
        return z if b is None else z + b

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self("add", torch.add, a, b)

    def multiply(self, gate: Tensor, x: Tensor) -> Tensor:
        """Rules of products take a list; under CP-LRP the gate is a constant."""
        if "multiply" not in self.table:
            return gate * x
        rule, constant = self.rules[self.table["multiply"]], [self.method == "cp-lrp", False]
        return Ruled.apply(torch.mul, lambda a, b, r: rule([a, b], r, constant=constant), gate, x)

    def activation(self, name: str, x: Tensor, kind: str) -> Tensor:
        return self.site(
            name, self("activation", lambda x: self.rules["activation"](kind, x), x, kind=kind)
        )

    def rms_norm(self, name: str, x: Tensor, norm_eps: float) -> Tensor:
        def forward(x: Tensor, w: Tensor) -> Tensor:
            return self.rules["rms_norm"](x, w, norm_eps)

        return self.site(
            name, self("rms_norm", forward, x, self.weights[f"{name}.weight"], norm_eps=norm_eps)
        )

    def layer_norm(self, name: str, x: Tensor, norm_eps: float) -> Tensor:
        def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return self.rules["layer_norm"](x, w, b, norm_eps)

        w, b = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return self.site(name, self("layer_norm", forward, x, w, b, norm_eps=norm_eps))

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self(
            "rotary", lambda x, cos, sin: x * cos + self.rules["turned"](x) * sin, x, cos, sin
        )

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
    ) -> Tensor:  # (B, H, T, d), (B, K, T, d) x 2 -> (B, T, H d)
        """`window`: how many tokens back a query reaches, itself among them."""
        near = (
            None
            if window is None
            else torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1 - window)[None, None]
        )

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (self.rules["repeated"](each, q.shape[1]) for each in (k, v))
            unmasked = self.rules["attended"](q, k, True, near)
            scores = self.rules["products"](scale * q, keys.mT).sum(-2)
            return self.rules["products"](
                self.rules["probabilities"](scores, unmasked), values
            ).sum(-2)

        return (
            self("attention", forward, q, k, v, scale=scale, causal=True, mask=near)
            .transpose(1, 2)
            .flatten(2)
        )

    def answers(
        self, logits: Tensor, targets: Sequence[int]
    ) -> list[dict[str, Any]]:  # logits (V,)
        """Every target's relevance at every site, all from this one forward. The seed is the
        logit's value, or 1 for a gradient.
        """
        return [self._answer(logits[target]) for target in targets]

    def _answer(self, logit: Tensor) -> dict[str, Any]:
        seed = logit.detach() if self.in_relevance_form else torch.ones_like(logit)
        incoming = torch.autograd.grad(
            logit, list(self.sites.values()), seed, retain_graph=True, materialize_grads=True
        )
        at = {
            name: (r if self.in_relevance_form else x.detach() * r)[0]
            for (name, x), r in zip(self.sites.items(), incoming, strict=True)
        }
        return at | {"logit": float(logit.detach())}


# -- Llama and GPT-2 -------------------------------------------------------------------------------


def heads(x: Tensor, count: int) -> Tensor:  # (B, T, H d) -> (B, H, T, d)
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def llama(run: Run, c: dict[str, Any], ids: Tensor) -> Tensor:  # ids (T,) -> (1, T, D), normed
    h = run.site(
        "model.embed_tokens", run.weights["model.embed_tokens.weight"][ids][None].requires_grad_()
    )
    cos, sin = _rotation(c, len(ids), h)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = run.add(
            h,
            _llama_attention(
                run,
                c,
                f"{at}.self_attn",
                run.rms_norm(f"{at}.input_layernorm", h, c["rms_norm_eps"]),
                cos,
                sin,
            ),
        )
        n = run.rms_norm(f"{at}.post_attention_layernorm", h, c["rms_norm_eps"])
        gate = run.activation(
            f"{at}.mlp.act_fn", run.linear(f"{at}.mlp.gate_proj", n), _kind(c["hidden_act"])
        )
        product = run.multiply(gate, run.linear(f"{at}.mlp.up_proj", n))
        h = run.site(
            at, run.add(h, run.site(f"{at}.mlp", run.linear(f"{at}.mlp.down_proj", product)))
        )
    return run.rms_norm("model.norm", h, c["rms_norm_eps"])


def _llama_attention(
    run: Run, c: dict[str, Any], at: str, x: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    q = heads(run.linear(f"{at}.q_proj", x), c["num_attention_heads"])
    k, v = (heads(run.linear(f"{at}.{name}_proj", x), c["num_key_value_heads"]) for name in "kv")
    if c["model_type"] == "qwen3":
        q, k = (
            run.rms_norm(f"{at}.q_norm", q, c["rms_norm_eps"]),
            run.rms_norm(f"{at}.k_norm", k, c["rms_norm_eps"]),
        )
    window = c.get("sliding_window") if c["model_type"] == "mistral" else None
    context = run.attention(
        run.rotary(q, cos, sin), run.rotary(k, cos, sin), v, c["head_dim"] ** -0.5, window
    )
    return run.site(at, run.linear(f"{at}.o_proj", context))


def _rotation(
    c: dict[str, Any], length: int, like: Tensor
) -> tuple[Tensor, Tensor]:  # -> (T, d) each
    d = c["head_dim"]
    frequencies = c["rope_theta"] ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = (
        (torch.arange(length, dtype=torch.float64)[:, None] * frequencies).tile(1, 2).to(like.dtype)
    )
    return angles.cos(), angles.sin()


def gpt2(run: Run, c: dict[str, Any], ids: Tensor) -> Tensor:  # ids (T,) -> (1, T, D), normed
    token = run.site(
        "transformer.wte", run.weights["transformer.wte.weight"][ids][None].requires_grad_()
    )
    position = run.site(
        "transformer.wpe", run.weights["transformer.wpe.weight"][: len(ids)][None].requires_grad_()
    )
    h = run.site("transformer.drop", run.add(token, position))
    for i in range(c["n_layer"]):
        at = f"transformer.h.{i}"
        h = run.add(
            h,
            _gpt2_attention(
                run, c, f"{at}.attn", run.layer_norm(f"{at}.ln_1", h, c["layer_norm_epsilon"]), i
            ),
        )
        inner = run.linear(
            f"{at}.mlp.c_fc", run.layer_norm(f"{at}.ln_2", h, c["layer_norm_epsilon"]), conv1d=True
        )
        active = run.activation(f"{at}.mlp.act", inner, _kind(c["activation_function"]))
        h = run.site(
            at,
            run.add(h, run.site(f"{at}.mlp", run.linear(f"{at}.mlp.c_proj", active, conv1d=True))),
        )
    return run.layer_norm("transformer.ln_f", h, c["layer_norm_epsilon"])


def _gpt2_attention(run: Run, c: dict[str, Any], at: str, x: Tensor, index: int) -> Tensor:
    q, k, v = (
        heads(each, c["n_head"]) for each in run.linear(f"{at}.c_attn", x, conv1d=True).chunk(3, -1)
    )
    scale = q.shape[-1] ** -0.5 if c["scale_attn_weights"] else 1.0
    scale = scale / (index + 1) if c["scale_attn_by_inverse_layer_idx"] else scale
    return run.site(at, run.linear(f"{at}.c_proj", run.attention(q, k, v, scale), conv1d=True))


KINDS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "tanh": "tanh",
}


def _kind(name: str) -> str:
    if name not in KINDS:
        raise NotImplementedError(f"the activation {name}")
    return KINDS[name]


LLAMA = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
GPT2 = {
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
TYPES: dict[str, tuple[Callable[..., Tensor], str, dict[str, Any]]] = {
    name: (llama, "model.embed_tokens.weight", LLAMA)
    for name in ("llama", "mistral", "qwen2", "qwen3")
} | {"gpt2": (gpt2, "transformer.wte.weight", GPT2)}
"""Model type -> its layers, the weight that a tied head shares,
and what stands where config.json is silent.
"""


def _config(folder: Path) -> dict[str, Any]:
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = given["model_type"]
    if kind not in TYPES or given.get("rope_scaling") or given.get("use_sliding_window"):
        raise NotImplementedError(f"model type {kind}, or its rope_scaling or sliding window")
    (name,) = given.get("architectures") or ["ForCausalLM"]
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise NotImplementedError(f"the head of {name}")
    c = TYPES[kind][2] | {name: value for name, value in given.items() if value is not None}
    if kind != "gpt2":
        c = {
            "num_key_value_heads": c["num_attention_heads"],
            "head_dim": c["hidden_size"] // c["num_attention_heads"],
        } | c
    return c


def _weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, exact in float64."""
    from safetensors.torch import load_file

    return {
        name: tensor.double()
        for file in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def load(folder: Any, rules: Rules) -> Callable[..., Any]:
    c, weights = _config(Path(folder)), _weights(Path(folder))

    def explain(
        ids: Sequence[int], targets: Sequence[int], method: str, position: int = -1
    ) -> list[dict[str, Any]]:
        run = Run(weights, rules, method)
        layers, shared, _ = TYPES[c["model_type"]]
        row = layers(run, c, torch.as_tensor(ids))[:, position, None]
        return run.answers(
            run.linear("lm_head", row, weight=shared if c["tie_word_embeddings"] else None)[0, 0],
            targets,
        )

    return explain
