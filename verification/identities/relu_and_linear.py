"""Identities 4 and 6: where there is one right answer. A ReLU net, whose LRP-0 is gradient * input;
a linear model, and one attention layer, whose relevance is what is missing when a part is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.rules.operations import OPERATIONS
from refl.rules.published import CP_LRP
from refl.sweep import Swept
from refl.trace import Record, Trace, Value
from refl.verification.identities.conditioning import ledger_rounding
from refl.verification.identities.graph import (
    REARRANGING,
    Attention,
    Graph,
    host_arrays,
    values_of,
)
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.products import shapley
from refl.verification.identities.rows import Row, WorstDeviation
from refl.verification.identities.small_traces import input_value, sweep_from

Layer = tuple[Any, Any]
"""Weight (O, I), and bias (O,) or None."""

# -- 4 ---------------------------------------------------------------------------------------------


def relu_layers(m: ModelUnderTest) -> Iterator[Row]:
    """The model's own linear - relu - linear, on what they read in this run."""
    worst, pieces = WorstDeviation(), [*_relu_pieces(m.graph)]
    for first, activation, second in pieces:
        layers = [_parameters(first), _parameters(second)]
        relu_net(layers, asnumpy(first.arrays[0]), worst, activation.output.site)
    identity, means = (
        "LRP-0 of a ReLU net = gradient * input",
        "what is missing from the output is sum over layers of b . df/dz: the biases",
    )
    if pieces:
        found = f"{len(pieces)} pieces linear - relu - linear of the model, with its inputs"
        yield worst.row(4, identity, means, found)
    else:
        kinds = sorted({r.attributes["kind"] for r in m.graph.of("activation")})
        reason = f"no relu stands between two linear layers here (activations: {_listed(kinds)})"
        yield Row(4, identity, means, reason=reason)


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "none"


def _relu_pieces(graph: Graph) -> Iterator[tuple[Record, Record, Record]]:
    for r in graph.of("activation"):
        before, after = graph.producer[values_of(r)[0]], graph.readers.get(r.output, [])
        operations = [before.operation, *(reader.operation for reader in after)]
        if r.attributes["kind"] == "relu" and operations == ["linear", "linear"]:
            yield before, r, after[0]


def _parameters(r: Record) -> Layer:
    _, w, b = host_arrays(r)
    return w, b


def relu_net(
    layers: Sequence[Layer], x: Any, worst: WorstDeviation, where: str = "", seed: Any = None
) -> None:
    """R = x df/dx, biases included (Shrikumar et al. 2016),  f = seed . z,  the gradient by hand;
    f - sum R = sum over layers of b . df/dz
    """
    t, z = _relu_trace(layers, x)
    if seed is None:
        seed = np.random.default_rng(0).standard_normal(z.array.shape).astype(x.dtype)
    run = sweep_from(t, z, z.array * seed)
    gradient, missing = _relu_gradient(layers, t, seed)
    r, bound = run.propagated["x"], ledger_rounding(run.ledger)
    bias = run.ledger.absorbed.get("bias", np.zeros(len(x)))
    worst.compare(r, x * gradient, bound, where)
    worst.compare(bias, missing, bound, f"{where} (biases)")
    worst.compare(_per_example(r) + missing, _per_example(z.array * seed), bound, where)


def _relu_trace(layers: Sequence[Layer], x: Any) -> tuple[Trace, Value]:
    weights = {f"{k}.weight": w for k, (w, _) in enumerate(layers)}
    t = Trace(weights | {f"{k}.bias": b for k, (_, b) in enumerate(layers) if b is not None})
    z = input_value(t, "x", x)
    for k, (_, b) in enumerate(layers):
        z = t.activation(f"act{k}", z, "relu") if k else z
        z = t.linear(str(k), z, bias=b is not None)
    return t, z


def _relu_gradient(layers: Sequence[Layer], t: Trace, seed: Any) -> tuple[Any, Any]:
    """df/dx, and sum over layers of b . df/dz, per example."""
    d, missing = seed, np.zeros(len(seed))
    for k, (w, b) in reversed([*enumerate(layers)]):
        missing = missing + (0.0 if b is None else _per_example(d @ b))
        d = d @ w
        d = d * (t.values[str(k - 1)].array > 0) if k else d
    return d, missing


def _per_example(a: Any) -> Any:  # (B, ...) -> (B,)
    return a.reshape(len(a), -1).sum(axis=1)


# -- 6 ---------------------------------------------------------------------------------------------


def linear_models(m: ModelUnderTest) -> Iterator[Row]:
    """The model's last linear layer, and each of its attentions
    with the layers on either side, alone.
    """
    yield _head_row(m, [*m.graph.of("linear")][-1])
    worst, attentions = WorstDeviation(), [*m.graph.attentions()]
    for a in attentions:
        value_attention(m.graph, a, worst)
    yield worst.row(
        6,
        "one attention layer: CP-LRP = leave-one-out",
        "with attention as it is, a token counts what is missing without it",
        f"{len(attentions)} attentions with their value and output layers",
        nothing="" if attentions else "the net has no attention",
    )


def _head_row(m: ModelUnderTest, head: Record) -> Row:
    worst, (x, w, _) = WorstDeviation(), host_arrays(head)
    x = x.reshape(-1, x.shape[-1])[0]
    linear_model(w[m.target % len(w)], x, worst)
    return worst.row(
        6,
        "linear: LRP-0 = leave-one-out = Shapley = w x",
        "where there is one right answer, it is given",
        f"row {m.target} of {head.output.site}, {len(x)} features",
    )


GROUPS = 6


def linear_model(w: Any, x: Any, worst: WorstDeviation) -> None:
    """f = sum w_i x_i:  R_i = w_i x_i = f(x) - f(x without i); the Shapley value by all coalitions
    of up to six groups of features.
    """
    t = Trace({"head.weight": w[None]})
    z = t.linear("head", input_value(t, "x", x[None]))
    run = sweep_from(t, z, z.array)
    r, bound = run.propagated["x"][0], ledger_rounding(run.ledger)
    parts = np.array_split(np.arange(len(x)), min(GROUPS, len(x)))

    def f(present: tuple[int, ...]) -> float:
        return float(sum(w[parts[i]] @ x[parts[i]] for i in present))

    without = np.where(np.eye(len(x), dtype=bool), 0, x) @ w
    shapley_values = np.asarray([shapley(f, i, len(parts)) for i in range(len(parts))])
    worst.compare(r, w * x, bound, "w x")
    worst.compare(r, w @ x - without, bound, "leave-one-out")
    worst.compare(np.asarray([r[p].sum() for p in parts]), shapley_values, bound, "Shapley")


def value_attention(graph: Graph, a: Attention, worst: WorstDeviation) -> None:
    """f(x) = seed . o(p v(x)) with p as it was:  R_token = f(x) - f(x without the token)
                                                  (Ali et al. 2022)

    CP-LRP sweeps the records between x and the output layer; leaving a token out runs value, p and
    output again without it.
    """
    x, z = values_of(a.value.layer)[0], a.out.output
    seed = np.random.default_rng(0).standard_normal(z.array.shape).astype(z.array.dtype)
    run, bound = _sweep_between(graph, x, a.out, seed)
    x0 = asnumpy(x.array)
    got = (run.propagated[x.site] * x0)[0].sum(axis=-1)
    f = _value_and_output(graph, a, _each_token_left_out(x0)) * seed
    f = f.reshape(len(f), -1).sum(axis=1)
    worst.compare(got, f[0] - f[1:], bound, z.site)


def _sweep_between(graph: Graph, x: Value, out: Record, seed: Any) -> tuple[Swept, float]:
    """CP-LRP over the records from what made x to `out`, and the rounding of those above x."""
    start, stop = graph.records.index(graph.producer[x]), graph.records.index(out) + 1
    part = Trace({})
    part.records = graph.records[start:stop]
    run = sweep_from(part, out.output, seed, CP_LRP)
    above = {r.output.site for r in part.records[1:]}
    entries = [entry for entry in run.ledger if entry.site in above]
    return run, ledger_rounding(replace(run.ledger, entries=entries))


def _each_token_left_out(x: Any) -> Any:  # (1, I, D) -> (1 + I, I, D), the first with all
    tokens = np.arange(x.shape[1])
    left_out = tokens[:, None, None] == tokens[None, :, None]
    return np.concatenate([x, np.where(left_out, 0, x)])


def _value_and_output(graph: Graph, a: Attention, x: Any) -> Any:  # (N, I, D) -> (N, J, D)
    """The value and output layers run again without their biases, attention as it was."""
    v = x @ asnumpy(a.value.layer.arrays[1]).T
    _, moved = graph.trace_back(values_of(a.context)[1], REARRANGING)
    for r in reversed(moved):
        v = OPERATIONS[r.operation].forward(v, **r.attributes)
    h = asnumpy(a.softmax.output.array) @ v
    (merge,) = graph.readers[a.context.output]
    return OPERATIONS[merge.operation].forward(h, **merge.attributes) @ asnumpy(a.out.arrays[1]).T
