"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): Llama with biases on queries, keys and
values, some blocks with a window.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window of the block)
                       h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

self_attn and mlp are Llama's. Names are those of Hugging Face's Qwen2ForCausalLM. With
use_sliding_window the blocks from max_window_layers on have the window, as in transformers' flash
attention and, by layer_types, in its later versions; 4.52 on other kernels gives it to every block
and warns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from refl.nets import heads, llama, masks

MODEL_TYPE = "qwen2"
PREFIX = "model."
CHECKED = (
    "random configurations against transformers 4.52.4; relevance LXT 2.1 (gradient x input "
    "form); no real checkpoint"
)


@dataclass(frozen=True)
class Config(llama.LlamaConfig):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = field(default=28, metadata={"least": 0})
    layer_types: list[str] | None = None

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Qwen2", heads.TOKENS, heads.SPANS)
    SPANS_IN: ClassVar[str] = "transformer"

    @property
    def windows(self) -> tuple[int | None, ...]:
        sliding = [i >= self.max_window_layers for i in range(self.num_hidden_layers)]
        return masks.windows(
            self.layer_types, sliding, self.sliding_window if self.use_sliding_window else None
        )

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION[:3]


task, shapes, forward = llama.task, llama.shapes, llama.forward
