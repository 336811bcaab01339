"""What the weights of a head alone say: the value of one token, had it been looked at alone.

    c_h = V_h N_0 e      e: the token's embedding;  N_0: the norm in front of the attention

N_0 is a linear map, without its scale and its bias; V_h has no bias either, and positions that are
added to embeddings (GPT-2) are left out. With the output layer it is the head's OV circuit
(Elhage et al. 2021, A Mathematical Framework for Transformer Circuits).
"""

from __future__ import annotations

from typing import Any

from refl.arrays import Array, namespace
from refl.components import Attention
from refl.errors import ReflError, argument
from refl.latent.direct import NORMS, mapped
from refl.trace import Record, Trace


def values(trace: Trace, attention: Attention, token: int) -> Array:  # -> (H, d)
    """c_h of every head. Raises ReflError for an attention to what an encoder gives."""
    if attention.cross:
        raise ReflError(
            f"{attention.label} reads what an encoder gives, in which no token of the vocabulary "
            f"stands: leave {argument('token')} out"
        )
    x = _embedded(trace, token)
    for record in _steps(trace, attention):
        x = _moved(record, x) if record.operation == "movement" else mapped(record, x)
    return x


def norm_before(trace: Trace, attention: Attention) -> Record | None:
    """N_0, where there is one (OLMo 2 has none)."""
    first = _steps(trace, attention)[0]
    return first if first.operation in NORMS else None


def _steps(trace: Trace, attention: Attention) -> list[Record]:
    """From the residual stream to the values of all heads."""
    made = {r.output: r for r in trace.records}
    context = next(r for r in trace.records if r.output.site == attention.context)
    steps: list[Record] = []
    value: Any = context.operands[1]
    while not steps or steps[0].role not in ("attention.value", "attention.query_key_value"):
        steps.insert(0, made[value])
        value = steps[0].operands[0]
    before = made[value]
    return [before, *steps] if before.operation in NORMS else steps


def _embedded(trace: Trace, token: int) -> Array:  # -> (D,)
    """Scaled where embeddings are (Gemma)."""
    words = next(r for r in trace.records if r.operation == "embedding" and r.role == "tokens")
    x = words.operands[0].array[token]  # type: ignore[union-attr]
    for record in trace.records:
        if record.operation == "scale" and record.operands[0] is words.output:
            x = mapped(record, x)
    return x


def _moved(record: Record, x: Array) -> Array:
    """Of one token: (heads d,) -> (heads, d), each as often as query heads share it."""
    how = record.attributes
    if how["kind"] == "slice":
        return x[..., how["start"] : how["stop"]]
    if how["kind"] == "split_heads":
        return namespace(x).reshape(x, (how["heads"], -1))
    return namespace(x).repeat(x, how["times"], axis=0)
