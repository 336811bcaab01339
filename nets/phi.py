"""Phi-1 and Phi-1.5 (Gunasekar et al. 2023, arXiv 2306.11644; Li et al. 2023, arXiv 2309.05463):
attention and MLP side by side.

    h = embed(ids)
    for each block:    h = h + attention(n) + fc2(gelu(fc1(n))),  n = layer_norm(h)
    logits = head(layer_norm(h)),  with biases there and everywhere

Positions turn the first part of each head. Names are those of Hugging Face's PhiForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array
from refl.nets import attention, decoder, masks, rope, tensors
from refl.nets.batch import Batch
from refl.nets.config import known_activation
from refl.nets.rope import Rope
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "phi"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4; no real checkpoint"

task = decoder.next_token


@dataclass(frozen=True)
class Config(decoder.Options):
    """The options of config.json that this net reads."""

    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known_activation("hidden_act", self.hidden_act)

    @property
    def rope(self) -> Rope:
        parameters = dict(self.rope_parameters or {})
        turned = int(
            self.width * parameters.pop("partial_rotary_factor", self.partial_rotary_factor)
        )
        return rope.read(
            turned, self.rope_theta, self.max_position_embeddings, self.rope_scaling, parameters
        )


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield from decoder.ends(c, bias=True)
    yield from tensors.norm("model.final_layernorm", c.hidden_size, bias=True)
    for i in range(c.num_hidden_layers):
        at, why = f"model.layers.{i}", "hidden_size and intermediate_size"
        yield from tensors.norm(f"{at}.input_layernorm", c.hidden_size, bias=True)
        yield from attention.tensors_of(f"{at}.self_attn", c, bias=True, out="dense", out_bias=True)
        for name in ("q_layernorm", "k_layernorm") if c.qk_layernorm else ():
            yield from tensors.norm(
                f"{at}.self_attn.{name}", c.width, "hidden_size and num_attention_heads", bias=True
            )
        yield from tensors.linear(
            f"{at}.mlp.fc1", c.intermediate_size, c.hidden_size, why, bias=True
        )
        yield from tensors.linear(
            f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size, why, bias=True
        )


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("model.embed_tokens", batch.ids)
    cos, sin = rope.tables(c.rope, batch.ids.shape[-1], h.array)
    mask = masks.causal(batch.ids, batch.attention_mask)
    for i in range(c.num_hidden_layers):
        h = t.block(f"model.layers.{i}", block, h, c, cos, sin, mask)
    return decoder.head(
        t, t.layer_norm("model.final_layernorm", h, c.layer_norm_eps), c, batch, bias=True
    )


def block(
    t: Trace, h: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.layer_norm("input_layernorm", h, c.layer_norm_eps)
    a, m = t.module("self_attn", attend, n, c, cos, sin, mask), t.module("mlp", feed, n, c)
    return t.add("", t.add("both", a, m), h)


def attend(
    t: Trace, x: Value, c: Config, cos: Array, sin: Array, mask: Array
) -> Value:  # (B, T, D) -> (B, T, D)
    q, k, v = attention.project(t, x, c, bias=True)
    if c.qk_layernorm:
        q, k = (
            t.layer_norm("q_layernorm", q, c.layer_norm_eps),
            t.layer_norm("k_layernorm", k, c.layer_norm_eps),
        )
    q, k = attention.turn(t, q, k, cos, sin, c.width**-0.5)
    return t.linear("dense", attention.attend(t, q, k, v, mask), bias=True)


def feed(t: Trace, x: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    return t.linear(
        "fc2", t.activation("activation_fn", t.linear("fc1", x, bias=True), c.hidden_act), bias=True
    )
