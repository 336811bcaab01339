"""Feed-forward half-blocks."""

from __future__ import annotations

from refl.nets import tensors
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


def gated(t: Trace, x: Value, act: str, bias: bool = False) -> Value:  # (B, T, D) -> (B, T, D)
    """down(act(gate(x)) * up(x))  (Shazeer 2020, arXiv 2002.05202)"""
    gate = t.activation("act_fn", t.linear("gate_proj", x, bias=bias), act)
    return t.linear(
        "down_proj", t.multiply("gated", gate, t.linear("up_proj", x, bias=bias)), bias=bias
    )


def gated_tensors(path: str, hidden: int, inner: int, bias: bool = False) -> Tensors:
    for name, out, into in (
        ("gate", inner, hidden),
        ("up", inner, hidden),
        ("down", hidden, inner),
    ):
        yield from tensors.linear(
            f"{path}.{name}_proj", out, into, "hidden_size and intermediate_size", bias=bias
        )
