"""StableLM (Bellagente et al. 2024, arXiv 2402.17834): Llama with layer norms, of whose heads the
first quarter is rotated.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(layer_norm(h)),    h = h + mlp(layer_norm(h))
    logits = lm_head(layer_norm(h))

self_attn and mlp are Llama's otherwise. With use_parallel_residual both stand side by side behind
one norm. Names are those of Hugging Face's StableLmForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import heads, llama, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import activation_kind
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "stablelm"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class Config(llama.DecoderConfig):
    """The options of config.json that this net reads."""

    max_position_embeddings: int = 4096
    hidden_act: str = "silu"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.25
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False

    HEADS: ClassVar[dict[str, str]] = heads.of_decoder("StableLm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk_layernorm:
            raise ReflError(
                "config.json sets qk_layernorm: a layer norm for each head is not implemented for "
                "this architecture"
            )

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def turned(self) -> float:
        return self.partial_rotary_factor

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION[:3] * self.use_qkv_bias


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size, bias=True)
    for i in range(c.num_hidden_layers):
        block = f"model.layers.{i}"
        yield from tensors.norm(f"{block}.input_layernorm", c.hidden_size, bias=True)
        yield from llama.attention_shapes(f"{block}.self_attn", c)
        if not c.use_parallel_residual:
            yield from tensors.norm(f"{block}.post_attention_layernorm", c.hidden_size, bias=True)
        yield from llama.mlp_shapes(f"{block}.mlp", c)


task = llama.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    for i, mask in enumerate(masks.causal_of_blocks(batch, c.windows)):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    return llama.lm_head(t, t.layer_norm("model.norm", h, c.layer_norm_eps), c, batch)


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.layer_norm_eps)
    a = t.module("self_attn", llama.attention, n, c, cos, sin, mask)
    if c.use_parallel_residual:
        both = t.add("both", a, t.module("mlp", llama.mlp, n, c), role="residual")
        return t.add("", both, h, role="residual")
    h = t.add("residual", h, a, role="residual")
    n = t.layer_norm("post_attention_layernorm", h, c.layer_norm_eps)
    return t.add("", h, t.module("mlp", llama.mlp, n, c), role="residual")
