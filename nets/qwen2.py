"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): Llama with biases on queries, keys and
values, some blocks with a window.

    h = embed(ids)
    for each block:    h = h + attention(rms_norm(h), window of the block),
                       h = h + down(silu(gate(n)) * up(n)),
                       n = rms_norm(h)
    logits = head(rms_norm(h))

Names are those of Hugging Face's Qwen2ForCausalLM. With use_sliding_window the blocks from
max_window_layers on have the window, as in transformers' flash attention and, by layer_types, in
its later versions; 4.52 on other kernels gives it to every block and warns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from refl.arrays import Array
from refl.nets import attention, decoder, mlp
from refl.nets.batch import Batch
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "qwen2"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)

task = decoder.next_token


@dataclass(frozen=True)
class Config(decoder.Kin):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = field(default=28, metadata={"least": 0})
    layer_types: list[str] | None = None

    @property
    def windows(self) -> tuple[int | None, ...]:
        sliding = [i >= self.max_window_layers for i in range(self.num_hidden_layers)]
        return decoder.windows(
            self.layer_types, sliding, self.sliding_window if self.use_sliding_window else None
        )


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    return decoder.tensors_of(c, bias=True)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder.forward(t, c, batch, attend, feed)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=True)
    q, k = attention.turn(t, q, k, cos, sin, c.width**-0.5)
    return t.linear("o_proj", attention.attend(t, q, k, v, mask))


def feed(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    return mlp.gated(t, x, c.hidden_act)
