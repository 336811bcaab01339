"""What Gemma 2 and Gemma 3 share: options, the block with four norms, the norm itself, the head.

    h = h + norm(self_attn(norm(h))),    h = h + norm(mlp(norm(h)))
    logits = cap(lm_head(norm(h))),      cap(x) = c tanh(x / c)

A norm multiplies by 1 + its weight. mlp is Llama's, with gelu; a cap is there where the config has
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, llama, masks, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, activation_kind
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


@dataclass(frozen=True)
class GemmaConfig(llama.DecoderConfig):
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
    pad_token_id: int | None = field(default=0, metadata={"least": -LARGEST})

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "cache_implementation",
        "hidden_act",  # hidden_activation is what counts
    )

    def windows_by(self, sliding: list[bool]) -> tuple[int | None, ...]:
        """The window of each block, of those marked where there are no layer_types. Without a
        sliding_window there is no such block in transformers either, which raises.
        """
        if self.layer_types is None and self.sliding_window is None and any(sliding):
            raise ReflError(
                "config.json has sliding_window null, but blocks that attend within a window: "
                "expected a whole number, or layer_types that say full_attention for each block"
            )
        return masks.windows(self.layer_types, sliding, self.sliding_window)

    @property
    def act(self) -> str:
        return activation_kind("hidden_activation", self.hidden_activation)

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION * self.attention_bias


def shapes(c: GemmaConfig) -> Tensors:
    """Those of Llama, and two norms more in each block."""
    yield from llama.shapes(c)
    for i in range(c.num_hidden_layers):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield from tensors.norm(f"model.layers.{i}.{name}", c.hidden_size)


def norm(t: Trace, name: str, x: Value, c: GemmaConfig) -> Value:  # (..., N) -> (..., N)
    return t.rms_norm(name, x, c.rms_norm_eps, offset=1.0)


def block(
    t: Trace,
    h: Value,
    c: GemmaConfig,
    attention: Callable[..., Value],
    cos: Array,
    sin: Array,
    mask: Mask,
) -> Value:  # (B, T, D) -> (B, T, D)
    n = norm(t, "input_layernorm", h, c)
    a = t.module("self_attn", attention, n, c, cos, sin, mask)
    h = t.add("residual", h, norm(t, "post_attention_layernorm", a, c), role="residual")
    m = t.module("mlp", llama.mlp, norm(t, "pre_feedforward_layernorm", h, c), c)
    return t.add("", h, norm(t, "post_feedforward_layernorm", m, c), role="residual")


def lm_head(
    t: Trace, h: Value, c: GemmaConfig, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, V), or (B, 1, V) at the wanted rows; or what another head makes
    logits = llama.lm_head(t, norm(t, "model.norm", h, c), c, batch)
    if c.task != heads.NEXT_TOKEN or c.final_logit_softcapping is None:
        return logits
    return t.soft_cap("lm_head", logits, c.final_logit_softcapping, role="head.cap")
