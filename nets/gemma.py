"""What Gemma 2 and Gemma 3 share: options, the block with four norms, the norm itself, the head.

    h = h + norm(attention(norm(h))),    h = h + norm(down(gelu(gate(n)) * up(n))),  n = norm(h)

A norm multiplies by 1 + its weight. The head's logits may be capped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.nets import attention, decoder, mlp, tensors
from refl.nets.batch import Batch
from refl.nets.config import known_activation
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


@dataclass(frozen=True)
class Options(decoder.Options):
    """The options of config.json that both read."""

    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256.0
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "cache_implementation",
        "hidden_act",
    )  # hidden_activation is what counts

    def __post_init__(self) -> None:
        super().__post_init__()
        known_activation("hidden_activation", self.hidden_activation)


def norm(t: Trace, name: str, x: Value, c: Options) -> Value:  # (..., N) -> (..., N)
    return t.rms_norm(name, x, c.rms_norm_eps, offset=1.0)


def block(
    t: Trace, h: Value, c: Options, attend: decoder.Step, *seen: Any
) -> Value:  # (B, T, D) -> (B, T, D)
    a = t.module("self_attn", attend, norm(t, "input_layernorm", h, c), c, *seen)
    h = t.add("residual", h, norm(t, "post_attention_layernorm", a, c))
    m = t.module("mlp", mlp.gated, norm(t, "pre_feedforward_layernorm", h, c), c.hidden_activation)
    return t.add("", h, norm(t, "post_feedforward_layernorm", m, c))


def head(
    t: Trace, h: Value, c: Options, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, V), or (B, 1, V) at the wanted rows
    logits = decoder.head(t, norm(t, "model.norm", h, c), c, batch)
    return (
        logits
        if c.final_logit_softcapping is None
        else attention.soft_cap(t, "lm_head", logits, c.final_logit_softcapping)
    )


def tensors_of(c: Options) -> Tensors:
    yield from decoder.tensors_of(c, bias=c.attention_bias, out_bias=c.attention_bias)
    for i in range(c.num_hidden_layers):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield from tensors.norm(f"model.layers.{i}.{name}", c.hidden_size)
