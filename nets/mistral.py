"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): Llama whose attention reaches back over a
window.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(rms_norm(h), window),    h = h + mlp(rms_norm(h))
    logits = lm_head(rms_norm(h))

self_attn and mlp are Llama's, without biases. Names are those of Hugging Face's MistralForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.nets import heads, llama

MODEL_TYPE = "mistral"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.LlamaConfig):
    """The options of config.json that this net reads."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096
    use_sliding_window: bool = True

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("Mistral", heads.TOKENS, heads.SPANS)

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.sliding_window if self.use_sliding_window else None,) * self.num_hidden_layers


task, shapes, forward = llama.task, llama.shapes, llama.forward
