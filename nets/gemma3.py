"""Gemma 3, its text model (Gemma Team 2025, arXiv 2503.19786).

    h = sqrt(hidden_size) embed_tokens[ids]
    for each block:    h = h + norm(self_attn(norm(h))),    h = h + norm(mlp(norm(h)))
    logits = lm_head(norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(query_pre_attn_scalar)) v),    v = v_proj(x),
                   q = rotary(norm(q_proj(x))),    k = rotary(norm(k_proj(x))),    head by head

Five blocks in six attend within a window, with rotary positions of their own; block, norm, mlp and
head are those of nets/gemma.py. Names are those of Hugging Face's Gemma3ForCausalLM, in which
embed_tokens is the scaled embedding; it rounds the scale to its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.errors import ReflError, shown
from refl.mask import Mask
from refl.nets import gemma, heads, llama, masks, qwen3, rope
from refl.nets.batch import Batch
from refl.nets.masks import FULL, SLIDING
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "gemma3_text"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)


@dataclass(frozen=True)
class Config(gemma.GemmaConfig):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 131072
    rope_theta: float | None = 1e6
    rope_local_base_freq: float = 10000.0
    sliding_window_pattern: int = 6
    _sliding_window_pattern: int | None = None
    """The same, as later files spell it."""

    HEADS: ClassVar[dict[str, str]] = {"Gemma3ForCausalLM": heads.NEXT_TOKEN}

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.local_rope

    @property
    def windows(self) -> tuple[int | None, ...]:
        pattern = self._sliding_window_pattern or self.sliding_window_pattern
        sliding = [(i + 1) % pattern > 0 for i in range(self.num_hidden_layers)]
        return self.windows_by(sliding)

    def batch_dependent(self, length: int) -> bool:
        return any(rope.batch_dependent(length) for rope in (self.rope, self.local_rope))

    def angles_change(self, before: int, length: int) -> bool:
        return any(rope.change(before, length) for rope in (self.rope, self.local_rope))

    @property
    def rope(self) -> Rope:
        return self.rope_of(FULL, self.rope_theta)

    @property
    def local_rope(self) -> Rope:
        return self.rope_of(SLIDING, self.rope_local_base_freq)

    def rope_of(self, kind: str, theta: float | None) -> Rope:
        """By rope_theta, rope_scaling and rope_local_base_freq, or by rope_parameters, which has
        both kinds of block apart.
        """
        parameters = self.rope_parameters or {}
        if unknown := set(parameters) - {FULL, SLIDING}:
            raise ReflError(
                f"config.json has rope_parameters with {shown(min(unknown))}: expected "
                f"{FULL} and {SLIDING}"
            )
        scaling = self.rope_scaling if kind == FULL else None
        return rope.read(
            self.width,
            theta,
            self.max_position_embeddings,
            scaling,
            parameters.get(kind),
            original=self.original_max_position_embeddings,
        )


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from gemma.shapes(c)
    for i in range(c.num_hidden_layers):
        yield from qwen3.head_norm_shapes(f"model.layers.{i}.self_attn", c)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens.stored", batch.ids, weight="model.embed_tokens.weight")
    h = t.scale("model.embed_tokens", h, c.hidden_size**0.5)
    length, past = batch.ids.shape[-1], batch.past
    full, local = (rope.tables(r, length, h.array, past) for r in (c.rope, c.local_rope))
    of_blocks = masks.causal_of_blocks(batch, c.windows)
    for i, (mask, window) in enumerate(zip(of_blocks, c.windows, strict=True)):
        cos, sin = full if window is None else local
        h = t.block(f"model.layers.{i}", gemma.block, h, c, attention, cos, sin, mask)
    return gemma.lm_head(t, h, c, batch)


def attention(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = llama.project(t, x, c)
    q, k = gemma.norm(t, "q_norm", q, c), gemma.norm(t, "k_norm", k, c)
    scale = c.query_pre_attn_scalar**-0.5
    q = t.scale("query.scaled", t.rotary("query.rotated", q, cos, sin), scale)
    k = t.rotary("key.rotated", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")
