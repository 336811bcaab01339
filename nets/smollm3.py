"""SmolLM 3 (Hugging Face 2025): Llama of which some blocks have no rotary positions.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window of the block)
                       h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

self_attn and mlp are Llama's; q and k stay as they are in the blocks that `no_rope_layers` marks
with 0 (a 1 says that a block does have rotary positions), or in every fourth (Yang et al. 2025,
arXiv 2501.18795). Where windows are in use it is these blocks that have one, unless `layer_types`
says which. Names are those of Hugging Face's SmolLM3ForCausalLM, which is in transformers from 4.53
on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from refl.errors import ReflError
from refl.nets import heads, llama, masks, rope
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, brief
from refl.trace import Trace, Value

MODEL_TYPE = "smollm3"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4's Llama, its rotary positions switched off "
    "in the same blocks; no real checkpoint"
)


@dataclass(frozen=True)
class Config(llama.Config):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32768
    rope_theta: float | None = 2e6
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = field(default=128004, metadata={"least": -LARGEST})

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("SmolLM3")
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "max_window_layers",  # in the published file; the class does not read it
    )

    @property
    def rotary(self) -> tuple[bool, ...]:
        """For each block whether it has rotary positions.
        Raises ReflError for another count of numbers, or others than 0 and 1.
        """
        count, marks = self.num_hidden_layers, self.no_rope_layers
        if not marks:
            return tuple((i + 1) % self.no_rope_layer_interval > 0 for i in range(count))
        if len(marks) != count or not set(marks) <= {0, 1}:
            raise ReflError(
                f"config.json has no_rope_layers = {brief(marks)}: expected {count} times 0 or 1, "
                "one for each of num_hidden_layers"
            )
        return tuple(map(bool, marks))

    @property
    def windows(self) -> tuple[int | None, ...]:
        sliding = [not rotary for rotary in self.rotary]
        return masks.windows(
            self.layer_types, sliding, self.sliding_window if self.use_sliding_window else None
        )


task, shapes = llama.task, llama.shapes


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    turned = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    of_blocks = masks.causal_of_blocks(batch, c.windows)
    for i, (mask, rotary) in enumerate(zip(of_blocks, c.rotary, strict=True)):
        cos, sin = turned if rotary else (None, None)
        h = t.block(f"model.layers.{i}", llama.block, h, c, cos, sin, mask)
    return llama.lm_head(t, t.rms_norm("model.norm", h, c.rms_norm_eps), c, batch)
