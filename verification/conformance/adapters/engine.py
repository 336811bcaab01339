"""refl itself under the conformance test: its rules, called as the vectors call everyone.

Half precision is widened to float32, as refl does with a checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import refl
from refl.rules import (
    activation,
    add,
    combine,
    gather,
    layer_norm,
    linear,
    matmul,
    movement,
    multiply,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    scale,
    softmax,
    top_k,
)
from refl.rules.conservation import RuleOutput
from refl.targets import numbered

NAME, VERSION = "refl", refl.__version__

Array = Any
Answer = dict[str, Any]


def to_array(values: Array, dtype: str) -> Array:
    return values.astype(np.float32) if dtype in ("float16", "bfloat16") else values


def answer(out: RuleOutput, keep: slice = slice(None)) -> Answer:
    return {"relevance": out.inputs[keep], "absorbed": out.absorbed}


def _of(
    module: Any, rule: str, returned: int = 1, parameters: Sequence[str] = ()
) -> Callable[..., Answer]:
    """A rule whose arguments are the vectors' own but for z:
    `parameters` are keyword arguments of the forward.
    """

    def call(*arguments: Any, **options: Any) -> Answer:
        *operands, r = arguments
        z = module.forward(*operands, **{name: options[name] for name in parameters})
        return answer(getattr(module, rule)(*operands, z, r, **options), slice(returned))

    return call


for _rule in ("epsilon", "gamma", "z_plus", "alpha_beta", "flat", "w_square", "z_box", "gradient"):
    globals()[f"linear_{_rule}"] = _of(linear, _rule)
for _rule in ("epsilon", "gradient"):
    globals()[f"add_{_rule}"] = _of(add, _rule, 2)
for _rule in ("uniform", "uniform_gxi", "gradient"):
    globals()[f"matmul_{_rule}"] = _of(matmul, _rule, 2)
for _rule in ("identity", "identity_gxi", "gradient"):
    globals()[f"rms_norm_{_rule}"] = _of(rms_norm, _rule, 1, ("norm_eps",))
for _rule in ("epsilon", "identity", "epsilon_gxi", "gradient"):
    globals()[f"layer_norm_{_rule}"] = _of(layer_norm, _rule, 1, ("norm_eps",))
for _rule in ("identity", "identity_gxi", "gradient"):
    globals()[f"activation_{_rule}"] = _of(activation, _rule, 1, ("kind",))
for _rule in ("pass_through", "gradient"):
    globals()[f"scale_{_rule}"] = _of(scale, _rule, 1, ("factor",))
for _rule in ("identity", "epsilon", "identity_gxi", "gradient"):
    globals()[f"renormalize_{_rule}"] = _of(renormalize, _rule)


def _second(module: Any, rule: str, **attributes: Any) -> Callable[..., Answer]:
    def call(a: Array, b: Array, r: Array, **options: Any) -> Answer:
        out = getattr(module, rule)(
            a, b, module.forward(a, b, **attributes), r, **attributes, **options
        )
        return answer(out, slice(1, 2))

    return call


matmul_second, matmul_second_gxi = _second(matmul, "second"), _second(matmul, "second_gxi")
multiply_second = _second(multiply, "second", constant=(False, False))
multiply_second_gxi = _second(multiply, "second_gxi", constant=(False, False))


def _product(rule: str) -> Callable[..., Answer]:
    def call(
        operands: list[Array],
        r: Array,
        *,
        constant: Sequence[bool] | None = None,
        **options: Any,
    ) -> Answer:
        fixed = tuple(constant or [False] * len(operands))
        return answer(
            getattr(multiply, rule)(
                *operands, multiply.forward(*operands, constant=fixed), r, constant=fixed, **options
            )
        )

    return call


for _rule in ("flattened", "flattened_gxi"):
    globals()[f"multiply_{_rule}"] = _product(_rule)
    globals()[f"matmul_{_rule}"] = _of(matmul, _rule, 2)
multiply_uniform, multiply_uniform_gxi, multiply_gradient = (
    _product("uniform"),
    _product("uniform_gxi"),
    _product("gradient"),
)


def sum_epsilon(operands: list[Array], r: Array, **options: Any) -> Answer:
    """The sum over experts, each of which writes to every place."""
    rows = [a.reshape(a.shape[0], 1, -1) for a in operands]
    index = ((((0,),) * rows[0].shape[0]),) * len(rows)
    z = combine.forward(*rows, index=index, length=1)
    out = combine.epsilon(*rows, z, r.reshape(z.shape), index=index, length=1, **options)
    return {
        "relevance": [a.reshape(r.shape) for a in out.inputs if a is not None],
        "absorbed": out.absorbed,
    }


def _softmax(rule: str) -> Callable[..., Answer]:
    def call(x: Array, r: Array, *, mask: Array | None = None, axis: int = -1) -> Answer:
        x, r, mask = (None if a is None else np.moveaxis(a, axis, -1) for a in (x, r, mask))
        out = getattr(softmax, rule)(x, softmax.forward(x, mask=mask), r, mask=mask)
        (propagated,) = out.inputs
        return {"relevance": np.moveaxis(propagated, -1, axis), "absorbed": out.absorbed}

    return call


softmax_taylor, softmax_spread, softmax_z_plus = (
    _softmax("taylor"),
    _softmax("spread"),
    _softmax("z_plus"),
)
softmax_identity, softmax_gradient = _softmax("identity"), _softmax("gradient")


def _rotary(rule: str) -> Callable[..., Answer]:
    def call(x: Array, cos: Array, sin: Array, r: Array, **options: Any) -> Answer:
        turn = {"cos": cos[None, None], "sin": sin[None, None]}
        return answer(getattr(rotary, rule)(x, rotary.forward(x, **turn), r, **turn, **options))

    return call


for _rule in ("epsilon", "uniform", "uniform_gxi", "gradient"):
    globals()[f"rotary_{_rule}"] = _rotary(_rule)


def _pooling(rule: str) -> Callable[..., Answer]:
    def call(x: Array, r: Array, *, counted: Array | None = None, **options: Any) -> Answer:
        counted = np.ones_like(x[..., :1]) if counted is None else counted
        return answer(
            getattr(pooling, rule)(
                x, pooling.forward(x, counted=counted), r, counted=counted, **options
            )
        )

    return call


pooling_epsilon, pooling_gradient = _pooling("epsilon"), _pooling("gradient")


def repeat_heads_pass_through(x: Array, r: Array, *, times: int) -> Answer:
    return answer(movement.pass_through(x, r, r, kind="repeat_heads", times=times))


def gather_pass_through(x: Array, r: Array, *, index: list[list[int]]) -> Array:
    """refl's gather sends a row to one place:
    what goes to several places is gathered once for each.
    """
    r_x = np.zeros_like(x)
    for n in range(r.shape[1]):
        once = tuple((places[n],) for places in index)
        out = gather.pass_through(x, r[:, n : n + 1], r[:, n : n + 1], index=once)
        r_x += out.inputs[0]
    return r_x


def top_k_pass_through(x: Array, r: Array, *, k: int) -> Answer:
    chosen = top_k.choose(x, k)
    return answer(top_k.pass_through(x, top_k.forward(x, chosen=chosen), r, chosen=chosen))


# -- several rules one after the other -------------------------------------------------------------


def _sum(*ledgers: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: sum(b[name] for b in ledgers if name in b)
        for name in {name for b in ledgers for name in b}
    }


def _convolution(rule: str) -> Callable[..., Answer]:
    def call(x: Array, w: Array, b: Array | None, r: Array, **options: Any) -> Answer:
        size = w.shape[2:]
        patches = movement.forward(x, kind="patches", size=size)
        kernel, rows = w.reshape(w.shape[0], -1), r.reshape(*r.shape[:2], -1).transpose(0, 2, 1)
        out = getattr(linear, rule)(
            patches, kernel, b, linear.forward(patches, kernel, b), rows, **options
        )
        back = movement.pass_through(x, patches, out.inputs[0], kind="patches", size=size)
        return {"relevance": back.inputs[0], "absorbed": out.absorbed}

    return call


convolution_epsilon, convolution_z_plus, convolution_gradient = (
    _convolution("epsilon"),
    _convolution("z_plus"),
    _convolution("gradient"),
)


def fan_out_epsilon(x: Array, w1: Array, w2: Array, r: Array, **options: Any) -> Answer:
    a, b = linear.forward(x, w1, None), linear.forward(x, w2, None)
    joined = add.epsilon(a, b, a + b, r, **options)
    first, second = (
        linear.epsilon(x, w, None, z, p, **options)
        for w, z, p in zip((w1, w2), (a, b), joined.inputs, strict=True)
    )
    r_x: Array = first.inputs[0]
    return {
        "relevance": r_x + second.inputs[0],
        "absorbed": _sum(joined.absorbed, first.absorbed, second.absorbed),
    }


def _attention(on_product: str, on_softmax: str, on_scale: str, last: str) -> Callable[..., Answer]:
    def call(
        q: Array,
        k: Array,
        v: Array,
        r: Array,
        *,
        scale: float,
        causal: bool = False,
        mask: Array | None = None,
        **options: Any,
    ) -> Answer:  # q (B, H, T, d); k, v (B, K, S, d); r (B, H, T, d)
        times, factor = q.shape[1] // k.shape[1], scale
        scaled = q * np.asarray(factor, dtype=q.dtype)
        keys, values = (movement.forward(a, kind="repeat_heads", times=times) for a in (k, v))
        turned = np.swapaxes(keys, -1, -2)
        scores = scaled @ turned
        visible = _visible(scores.shape, causal, mask)
        p = softmax.forward(scores, mask=visible)
        context = getattr(matmul, last)(p, values, p @ values, r, **options)
        r_v = movement.pass_through(
            v, values, context.inputs[1], kind="repeat_heads", times=times
        ).inputs[0]
        if last.startswith("second"):
            return {"relevance": (None, None, r_v), "absorbed": context.absorbed}
        soft = getattr(softmax, on_softmax)(scores, p, context.inputs[0], mask=visible)
        qk = getattr(matmul, on_product)(scaled, turned, scores, soft.inputs[0], **options)
        r_k = movement.pass_through(
            k, keys, np.swapaxes(qk.inputs[1], -1, -2), kind="repeat_heads", times=times
        ).inputs[0]
        (r_q,) = getattr(scale_rule, on_scale)(q, scaled, qk.inputs[0], factor=factor).inputs
        return {
            "relevance": (r_q, r_k, r_v),
            "absorbed": _sum(context.absorbed, soft.absorbed, qk.absorbed),
        }

    return call


def _visible(shape: tuple[int, ...], causal: bool, mask: Array | None) -> Array | None:
    if mask is None and not causal:
        return None
    visible = np.ones(shape, dtype=bool) if mask is None else np.broadcast_to(mask, shape)
    return visible & np.tril(np.ones(shape[-2:], dtype=bool)) if causal else visible


scale_rule = scale
attention_attnlrp = _attention("uniform", "taylor", "pass_through", "uniform")
attention_attnlrp_gxi = _attention("uniform_gxi", "gradient", "gradient", "uniform_gxi")
attention_cp = _attention("", "", "", "second")
attention_cp_gxi = _attention("", "", "", "second_gxi")


def network(layers: list[dict[str, Any]]) -> Callable[..., Any]:
    def explain(x: Array, seeds: list[Array]) -> tuple[Array, list[Array]]:
        xs = [x]
        for layer in layers:
            xs.append(_forward(layer, xs[-1]))
        return xs[-1], [_back(layers, xs, seed) for seed in seeds]

    return explain


def _forward(layer: dict[str, Any], x: Array) -> Array:
    if layer["operation"] == "linear":
        return linear.forward(x, layer["w"], layer["b"])
    return activation.forward(x, kind=layer["kind"])


def _back(layers: list[dict[str, Any]], xs: list[Array], r: Array) -> Array:
    for layer, x, z in zip(reversed(layers), reversed(xs[:-1]), reversed(xs[1:]), strict=True):
        if layer["operation"] == "linear":
            options = {
                key: value
                for key, value in layer.items()
                if key not in ("operation", "rule", "w", "b")
            }
            (r, *_) = getattr(linear, layer["rule"])(
                x, layer["w"], layer["b"], z, r, **options
            ).inputs
    return r


def model(folder: str) -> Callable[..., list[dict[str, Any]]]:
    loaded = refl.load(folder, dtype="float64")

    def explain(
        ids: Any,
        targets: list[int],
        method: str,
        *,
        position: int | None = None,
        decoder_ids: list[int] | None = None,
    ) -> list[dict[str, Any]]:
        wanted = [numbered(loaded.task, target) for target in targets]
        found = loaded.explain_each(ids, wanted, method, position=position, decoder=decoder_ids)
        return [{site: e[site] for site in e} | {"logit": e.logit} for e in found]

    return explain
