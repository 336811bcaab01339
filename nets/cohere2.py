"""Command R7B and Command A (Cohere 2024): Command R whose rotary positions are in the blocks with
a window alone.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(n, window of the block) + mlp(n),  n = layer_norm(h)
    logits = logit_scale lm_head(layer_norm(h))

Three blocks in four have the window; the fourth attends to everything before it and has no
positions at all. The block is that of nets/cohere.py, without norms on q and k. Names are those of
Hugging Face's Cohere2ForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from refl.errors import ReflError
from refl.nets import cohere, heads, masks
from refl.nets.batch import Batch
from refl.nets.config import brief
from refl.trace import Trace, Value

MODEL_TYPE = "cohere2"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(cohere.CohereConfig):
    """The options of config.json that this net reads."""

    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    _sliding_window_pattern: int | None = None
    """The same, as later files spell it."""
    layer_types: list[str] | None = None
    layer_switch: int | None = None
    """The same in Cohere's own words, as are those below."""
    order_of_interleaved_layers: str = "local_attn_first"
    position_embedding_type: str = "rope_gptj"
    rotary_pct: float = 1.0
    use_gated_activation: bool = True
    use_parallel_block: bool = True

    HEADS: ClassVar[dict[str, str]] = {"Cohere2ForCausalLM": heads.NEXT_TOKEN}
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "cache_implementation",
        "use_embedding_sharing",  # tie_word_embeddings is what counts
        "use_parallel_embedding",  # where the tensors lie
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, computed in self._computed.items():
            if getattr(self, option) != computed:
                raise ReflError(
                    f"config.json has {option} = {brief(getattr(self, option))}, which is not "
                    f"implemented: there is {brief(computed)}"
                )

    @property
    def _computed(self) -> dict[str, Any]:
        """The options that transformers does not read, and what it computes."""
        return {
            "layer_switch": None if self.layer_switch is None else self.pattern,
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rotary_pct": 1.0,
            "use_gated_activation": True,
            "use_parallel_block": True,
        }

    @property
    def pattern(self) -> int:
        return self._sliding_window_pattern or self.sliding_window_pattern

    @property
    def windows(self) -> tuple[int | None, ...]:
        sliding = [(i + 1) % self.pattern > 0 for i in range(self.num_hidden_layers)]
        if self.layer_types is None and self.sliding_window is None and any(sliding):
            raise ReflError(
                "config.json has sliding_window null, but blocks that attend within a window: "
                "expected a whole number, or layer_types that say full_attention for each block"
            )
        return masks.windows(self.layer_types, sliding, self.sliding_window)


task, shapes = cohere.task, cohere.shapes


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return cohere.decoder(t, c, batch, tuple(window is not None for window in c.windows))
