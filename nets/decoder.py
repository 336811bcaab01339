"""What decoder-only nets with rotary positions have in common: options, and for Llama and its kin
the way from ids to logits.

h = embed(ids)
for each block:    h = h + attention(norm(h)),    h = h + mlp(norm(h))
logits = head(norm(h))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refl.errors import ReflError
from refl.nets import attention, masks, mlp, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import divides, known_activation
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Options:
    """The options of config.json that all of them read."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.head_dim is None:
            divides(
                "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
            )
        divides(
            "num_key_value_heads", self.kv_heads, "num_attention_heads", self.num_attention_heads
        )
        _ = self.rope, self.windows

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width(self) -> int:
        """Features per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> Rope:
        return rope.read(
            self.width,
            self.rope_theta,
            self.max_position_embeddings,
            self.rope_scaling,
            self.rope_parameters,
        )

    @property
    def longest(self) -> int:
        return self.rope.longest

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each block how many tokens back attention reaches; None for all."""
        return (None,) * self.num_hidden_layers


def windows(
    given: Sequence[str] | None, sliding: Sequence[bool], window: int | None
) -> tuple[int | None, ...]:
    """`window` for the blocks that config.json's layer_types call sliding, or, where it has none,
    for those that `sliding` marks.

    Raises ReflError for layer_types of another length, of unknown kinds, or that slide without a
    window.
    """
    kinds = (
        given
        if given is not None
        else [SLIDING if s and window is not None else FULL for s in sliding]
    )
    if len(kinds) != len(sliding):
        raise ReflError(
            f"config.json has {len(kinds)} layer_types for num_hidden_layers = {len(sliding)}"
        )
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise ReflError(
                f"config.json has {kind!r} among layer_types, which is not implemented: "
                f"there are {FULL} and {SLIDING}"
            )
        if kind == SLIDING and window is None:
            raise ReflError(f"config.json has {SLIDING} among layer_types and no sliding_window")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def next_token(c: Any) -> str:
    """Their task."""
    return "next-token"


def seen(c: Options, batch: Batch) -> list[Any]:  # -> for each block bool (1|B, 1, T, T)
    """The masks of the blocks: one for each size of window."""
    by_window = {
        window: masks.causal(batch.ids, batch.attention_mask, window) for window in set(c.windows)
    }
    return [by_window[window] for window in c.windows]


def head(
    t: Trace, h: Value, c: Options, batch: Batch, *, bias: bool = False
) -> Value:  # (B, T, D) -> (B, T, V), or (B, 1, V) at the wanted rows
    if batch.rows is not None:
        h = t.move("lm_head.row", "rows", h, index=batch.rows)
    return t.linear(
        "lm_head",
        h,
        bias=bias,
        weight="model.embed_tokens.weight" if c.tie_word_embeddings else None,
    )


def ends(c: Options, *, bias: bool = False) -> Tensors:
    """The tensors of the embedding and the head."""
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"
    if bias:
        yield "lm_head.bias", (c.vocab_size,), "vocab_size"


# -- Llama and its kin -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kin(Options):
    """And those that Llama's kin read."""

    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        super().__post_init__()
        known_activation("hidden_act", self.hidden_act)


Step = Callable[..., Value]
"""(t, x, c, ...) -> a value of x's shape"""


def forward(
    t: Trace, c: Kin, batch: Batch, attend: Step, feed: Step
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    """attend(t, x, c, cos, sin, mask), feed(t, x, c): what is between a block's norms and its
    residuals.
    """
    h = t.embedding("model.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array)
    for i, mask in enumerate(seen(c, batch)):
        h = t.block(f"model.layers.{i}", block, h, c, attend, feed, cos, sin, mask)
    return head(t, t.rms_norm("model.norm", h, c.rms_norm_eps), c, batch)


def block(
    t: Trace, h: Value, c: Kin, attend: Step, feed: Step, *seen: Any
) -> Value:  # (B, T, D) -> (B, T, D)
    h = t.add(
        "residual",
        h,
        t.module("self_attn", attend, t.rms_norm("input_layernorm", h, c.rms_norm_eps), c, *seen),
    )
    return t.add(
        "", h, t.module("mlp", feed, t.rms_norm("post_attention_layernorm", h, c.rms_norm_eps), c)
    )


def head_norms(c: Options) -> Tensors:
    """Those of the norms of queries and keys, for nets that have them."""
    for i in range(c.num_hidden_layers):
        for name in ("q_norm", "k_norm"):
            yield from tensors.norm(f"model.layers.{i}.self_attn.{name}", c.width, "head_dim")


def tensors_of(
    c: Options, *, bias: bool = False, out_bias: bool = False, mlp_bias: bool = False
) -> Tensors:
    """Those of embedding, head, norms, attention, gated MLP."""
    yield from ends(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield from tensors.norm(f"{at}.input_layernorm", c.hidden_size)
        yield from attention.tensors_of(f"{at}.self_attn", c, bias=bias, out_bias=out_bias)
        yield from tensors.norm(f"{at}.post_attention_layernorm", c.hidden_size)
        yield from mlp.gated_tensors(f"{at}.mlp", c.hidden_size, c.intermediate_size, mlp_bias)
