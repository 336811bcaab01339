"""Command R (Cohere 2024): attention and MLP side by side behind one norm without a bias.

    h = embed_tokens[ids]
    for each block:    h = h + self_attn(n) + mlp(n),  n = layer_norm(h)
    logits = logit_scale lm_head(layer_norm(h))

    self_attn(x) = o_proj(softmax(q k^T / sqrt(d)) v),    v = v_proj(x),
                   q = rotary(q_proj(x)),                 k = rotary(k_proj(x))

mlp is Llama's, without biases. With use_qk_norm q and k go through a layer norm head by head, with
weights of each head, before they are rotated. Here rotary positions turn features 2i and 2i + 1
together, not i and i + d/2: both are the same rotation once the even features stand before the odd
ones, in q and k alike, and so they stand from `query.halves` on; scores are sums over them in any
order. Names are those of Hugging Face's CohereForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from refl.arrays import Array
from refl.mask import Mask
from refl.nets import heads, llama, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, activation_kind
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "cohere"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"


@dataclass(frozen=True)
class CohereConfig(llama.DecoderConfig):
    """The options of config.json that Command R and Command R7B both read."""

    max_position_embeddings: int = 8192
    hidden_act: str = "silu"
    layer_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = field(default=0, metadata={"least": -LARGEST})

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def biased(self) -> tuple[str, ...]:
        return llama.ATTENTION * self.attention_bias

    @property
    def normed(self) -> bool:
        """Whether there are norms on queries and keys."""
        return False


@dataclass(frozen=True)
class Config(CohereConfig):
    """The options of config.json that this net reads."""

    use_qk_norm: bool = False

    HEADS: ClassVar[dict[str, str]] = {"CohereForCausalLM": heads.NEXT_TOKEN}

    @property
    def normed(self) -> bool:
        return self.use_qk_norm


# -- tensors ---------------------------------------------------------------------------------------


def shapes(c: CohereConfig) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from llama.embedding_and_head_shapes(c)
    yield from tensors.norm("model.norm", c.hidden_size)
    for i in range(c.num_hidden_layers):
        yield from tensors.norm(f"model.layers.{i}.input_layernorm", c.hidden_size)
        yield from attention_shapes(f"model.layers.{i}.self_attn", c)
        yield from llama.mlp_shapes(f"model.layers.{i}.mlp", c)


def attention_shapes(path: str, c: CohereConfig) -> Tensors:
    yield from llama.attention_shapes(path, c)
    if c.normed:
        why = "num_attention_heads, num_key_value_heads and head_dim"
        yield f"{path}.q_norm.weight", (c.num_attention_heads, c.width), why
        yield f"{path}.k_norm.weight", (c.kv_heads, c.width), why


# -- forward ---------------------------------------------------------------------------------------

task = llama.task


def forward(
    t: Trace, c: CohereConfig, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    return decoder(t, c, batch, (True,) * c.num_hidden_layers)


def decoder(
    t: Trace, c: CohereConfig, batch: Batch, rotary: tuple[bool, ...]
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    """`rotary`: for each block whether it has rotary positions."""
    h = t.embedding("model.embed_tokens", batch.ids)
    turned = rope.tables(c.rope, batch.ids.shape[-1], h.array, batch.past)
    of_blocks = masks.causal_of_blocks(batch, c.windows)
    for i, (mask, has) in enumerate(zip(of_blocks, rotary, strict=True)):
        cos, sin = turned if has else (None, None)
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    h = t.layer_norm("model.norm", h, c.layer_norm_eps, bias=False)
    return t.scale("lm_head.scaled", llama.lm_head(t, h, c, batch), c.logit_scale)


def block(
    t: Trace, h: Value, c: CohereConfig, cos: Array | None, sin: Array | None, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.layer_norm_eps, bias=False)
    a = t.module("self_attn", attention, n, c, cos, sin, mask)
    both = t.add("both", a, t.module("mlp", llama.mlp, n, c), role="residual")
    return t.add("", both, h, role="residual")


def attention(
    t: Trace, x: Value, c: CohereConfig, cos: Array | None, sin: Array | None, mask: Mask
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = project(t, x, c)
    if cos is not None:
        q, k = halves(t, "query", q), halves(t, "key", k)
    q = t.scale("query.scaled", llama.rotate(t, "query", q, cos, sin), c.score_scale)
    k = llama.rotate(t, "key", k, cos, sin)
    context = llama.attend(t, q, k, v, mask)
    return t.linear("o_proj", context, bias="o_proj" in c.biased, role="attention.output")


def project(
    t: Trace, x: Value, c: CohereConfig
) -> tuple[Value, Value, Value]:  # (B, T, D) -> (B, H, T, d), (B, K, T, d) x 2
    """Queries, keys and values of each head, norms before the split."""
    q = t.linear("q_proj", x, bias="q_proj" in c.biased, role="attention.query")
    k = t.linear("k_proj", x, bias="k_proj" in c.biased, role="attention.key")
    if c.normed:
        q, k = head_norm(t, "q_norm", "query", q, c), head_norm(t, "k_norm", "key", k, c)
    q = t.move("query", "split_heads", q, heads=c.num_attention_heads)
    k = t.move("key", "split_heads", k, heads=c.kv_heads)
    v = t.linear("v_proj", x, bias="v_proj" in c.biased, role="attention.value")
    return q, k, t.move("value", "split_heads", v, heads=c.kv_heads)


def head_norm(
    t: Trace, norm: str, name: str, x: Value, c: CohereConfig
) -> Value:  # (B, T, H d) -> (B, T, H d)
    """Layer norm of each head's features; the weight is (H, d)."""
    _, length, features = x.array.shape
    x = t.move(f"{name}.parts", "reshape", x, shape=(-1, length, features // c.width, c.width))
    x = t.layer_norm(norm, x, c.layer_norm_eps, bias=False)
    return t.move(f"{name}.normed", "reshape", x, shape=(-1, length, features))


def halves(t: Trace, name: str, x: Value) -> Value:  # (B, H, T, d) -> (B, H, T, d)
    """The even features before the odd ones."""
    _, *heads, width = x.array.shape
    x = t.move(f"{name}.pairs", "reshape", x, shape=(-1, *heads, width // 2, 2))
    x = t.move(f"{name}.apart", "transpose", x)
    return t.move(f"{name}.halves", "reshape", x, shape=(-1, *heads, width))
