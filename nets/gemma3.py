"""Gemma 3, its text model (Gemma Team 2025, arXiv 2503.19786).

    h = sqrt(hidden_size) embed(ids)
    for each block:    h = h + norm(attention(norm(h))),  h = h + norm(down(gelu(gate(n)) * up(n))),
                       n = norm(h)
    logits = head(norm(h))

Queries and keys are normed, head by head. Five blocks in six attend within a window, with rotary
positions of their own. Names are those of Hugging Face's Gemma3ForCausalLM, in which embed_tokens
is the scaled embedding; it rounds the scale to its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array
from refl.errors import ReflError
from refl.nets import attention, decoder, gemma, rope
from refl.nets.batch import Batch
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "gemma3_text"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)

task = decoder.next_token


@dataclass(frozen=True)
class Config(gemma.Options):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 131072
    rope_theta: float | None = 1e6
    rope_local_base_freq: float = 10000.0
    sliding_window_pattern: int = 6
    _sliding_window_pattern: int | None = None
    """The same, as later files spell it."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        pattern = self._sliding_window_pattern or self.sliding_window_pattern
        return decoder.windows(
            self.layer_types,
            [(i + 1) % pattern > 0 for i in range(self.num_hidden_layers)],
            self.sliding_window,
        )

    @property
    def rope(self) -> Rope:
        return self.positions(self.rope_theta, decoder.FULL)

    @property
    def local_rope(self) -> Rope:
        return self.positions(self.rope_local_base_freq, decoder.SLIDING)

    def positions(self, theta: float | None, kind: str) -> Rope:
        """By rope_theta, rope_scaling and rope_local_base_freq, or by rope_parameters, which has
        both kinds of block apart.
        """
        parameters = self.rope_parameters or {}
        if set(parameters) - {decoder.FULL, decoder.SLIDING}:
            raise ReflError(
                f"config.json has rope_parameters with {min(parameters)}: expected "
                f"{decoder.FULL} and {decoder.SLIDING}"
            )
        scaling = self.rope_scaling if kind == decoder.FULL else None
        return rope.read(
            self.width, theta, self.max_position_embeddings, scaling, parameters.get(kind)
        )


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from gemma.tensors_of(c)
    yield from decoder.head_norms(c)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens.stored", batch.ids, weight="model.embed_tokens.weight")
    h = t.scale("model.embed_tokens", h, c.hidden_size**0.5)
    full, local = (rope.tables(r, batch.ids.shape[-1], h.array) for r in (c.rope, c.local_rope))
    for i, (mask, window) in enumerate(zip(decoder.seen(c, batch), c.windows, strict=True)):
        h = t.block(
            f"model.layers.{i}",
            gemma.block,
            h,
            c,
            attend,
            *(full if window is None else local),
            mask,
        )
    return gemma.head(t, h, c, batch)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=c.attention_bias)
    q, k = gemma.norm(t, "q_norm", q, c), gemma.norm(t, "k_norm", k, c)
    q, k = attention.turn(t, q, k, cos, sin, c.query_pre_attn_scalar**-0.5)
    return t.linear("o_proj", attention.attend(t, q, k, v, mask), bias=c.attention_bias)
