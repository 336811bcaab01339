"""Whisper (Radford et al. 2022, arXiv 2212.04356): text from the log-mel features of thirty seconds
of sound.

    h = gelu(conv2(gelu(conv1(features)))) + positions
    for each block of the encoder:    h = h + attention(norm(h)),    h = h + mlp(norm(h))
    g = embed(decoder ids) + positions
    for each block of the decoder:    g = g + attention(norm(g)),
                                      g = g + attention(norm(g), to norm(h)),
                                      g = g + mlp(norm(g))
    logits = head(norm(g)),    the head tied to the embedding

The convolutions reach over three frames; the second moves on by two, so that a position of the
encoder is two frames. Keys have no bias. The features, (mel, frames), are those that transformers'
WhisperFeatureExtractor makes: sound itself is not read. They are held as a picture of one channel,
whose row 0 is the lowest frequency and whose patches are the frames of a position. Names are those
of Hugging Face's WhisperForConditionalGeneration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refl.arrays import Array, device_of, namespace
from refl.errors import ReflError
from refl.mask import Mask
from refl.nets import encoder, heads, masks, tensors
from refl.nets.batch import Batch, positions
from refl.nets.config import activation_kind, divides
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "whisper"
PREFIX = "model."
CHECKED = "random configurations against transformers 4.52.4"
NORM_EPS = 1e-5
"""What PyTorch's layer norm adds by default; config.json does not say it."""
FRAMES = 2
"""That a position of the encoder stands for: the stride of the second convolution."""


@dataclass(frozen=True)
class Config:
    """The options of config.json that this net reads."""

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    activation_function: str = "gelu"
    max_source_positions: int = 1500
    max_target_positions: int = 448
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "num_hidden_layers",  # encoder_layers once more
        "scale_embedding",  # transformers makes a factor of it, and multiplies nothing by it
        "forced_decoder_ids",  # how a text begins
        "median_filter_width",  # of timestamps
        "classifier_proj_size",  # these two of WhisperForAudioClassification
        "use_weighted_layer_sum",
        "activation_dropout",
        "dropout",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "init_std",
        "apply_spec_augment",  # what training hides of the features
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_feature_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_time_prob",
    )
    HEADS: ClassVar[dict[str, str]] = {"WhisperForConditionalGeneration": "sequence-to-sequence"}
    SHOWN_BY: ClassVar[dict[str, str]] = {}
    OTHERWISE: ClassVar[str] = "sequence-to-sequence"
    num_channels: ClassVar[int] = 1
    """Of the picture that the features are held as."""

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return cls.HEADS

    def __post_init__(self) -> None:
        _ = heads.chosen(self.architectures, self.HEADS, self.OTHERWISE), self.act
        if not self.is_encoder_decoder:
            raise ReflError(
                "config.json has is_encoder_decoder = false: expected "
                "WhisperForConditionalGeneration, which has an encoder and a decoder"
            )
        for option in ("encoder_attention_heads", "decoder_attention_heads"):
            divides(option, getattr(self, option), "d_model", self.d_model)

    @property
    def act(self) -> str:
        return activation_kind("activation_function", self.activation_function)

    @property
    def image(self) -> tuple[int, int]:
        """Mel bins and frames of the features."""
        return self.num_mel_bins, FRAMES * self.max_source_positions

    @property
    def patch(self) -> tuple[int, int]:
        """The part of them that a position of the encoder stands for."""
        return self.num_mel_bins, FRAMES

    @property
    def longest(self) -> int:
        return self.max_target_positions


def task(c: Config) -> str:
    return "sequence-to-sequence"


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    d = c.d_model
    for name, into, why in (
        ("conv1", c.num_mel_bins, "d_model and num_mel_bins"),
        ("conv2", d, "d_model"),
    ):
        yield f"model.encoder.{name}.weight", (d, into, 3), why
        yield f"model.encoder.{name}.bias", (d,), why
    yield "model.decoder.embed_tokens.weight", (c.vocab_size, d), "vocab_size and d_model"
    for stack, option in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        table = f"model.{stack}.embed_positions.weight"
        yield table, (getattr(c, option), d), f"{option} and d_model"
        for i in range(getattr(c, f"{stack}_layers")):
            yield from _block_shapes(f"model.{stack}.layers.{i}", stack, c)
        yield from tensors.norm(f"model.{stack}.layer_norm", d, "d_model", bias=True)
    if not c.tie_word_embeddings:
        yield "proj_out.weight", (c.vocab_size, d), "vocab_size and d_model"


def _block_shapes(block: str, stack: str, c: Config) -> Tensors:
    d, inner = c.d_model, getattr(c, f"{stack}_ffn_dim")
    for attention in ("self_attn", "encoder_attn") if stack == "decoder" else ("self_attn",):
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            path, bias = f"{block}.{attention}.{name}", name != "k_proj"
            yield from tensors.linear(path, d, d, "d_model", bias=bias)
        yield from tensors.norm(f"{block}.{attention}_layer_norm", d, "d_model", bias=True)
    why = f"d_model and {stack}_ffn_dim"
    yield from tensors.linear(f"{block}.fc1", inner, d, why, bias=True)
    yield from tensors.linear(f"{block}.fc2", d, inner, why, bias=True)
    yield from tensors.norm(f"{block}.final_layer_norm", d, "d_model", bias=True)


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # features (B, 1, M, F), ids (B, U) -> logits (B, U, V), or (B, 1, V) at the rows
    encoded = t.once("model.encoder", encode, c, batch.pixels)
    h = encoder.rows(t, "proj_out", decode(t, c, batch, encoded), batch)
    tied = "model.decoder.embed_tokens.weight" if c.tie_word_embeddings else None
    return t.linear("proj_out", h, weight=tied, role="head")


def encode(t: Trace, name: str, c: Config, features: Array) -> Value:  # (B, 1, M, F) -> (B, T, D)
    with t.inside(name):
        h = frames(t, c, features)
        for i in range(c.encoder_layers):
            h = t.block(f"layers.{i}", encoder_block, h, c)
        h = t.layer_norm("layer_norm", h, NORM_EPS)
    return t.name(h, name)


def frames(t: Trace, c: Config, features: Array) -> Value:  # (B, 1, M, F) -> (B, T, D)
    """What the convolutions make of them, at their places."""
    x = t.source("input_features", features, role="pixels")
    h = t.move("input_features.rows", "reshape", x, shape=(-1, *c.image))
    h = t.move("input_features.frames", "transpose", h)
    for name, stride, role in (("conv1", 1, "patch_embedding"), ("conv2", FRAMES, "convolution")):
        h = t.convolution(name, h, stride=stride, role=role)
        h = t.activation(f"{name}.gelu", h, "gelu", role="convolution.activation")
    xp, device = namespace(features), device_of(features)
    every = xp.arange(c.max_source_positions, **device)
    every = xp.broadcast_to(every[None, :], (features.shape[0], c.max_source_positions))
    return placed(t, h, every)


def placed(t: Trace, h: Value, numbers: Array) -> Value:
    """h + positions"""
    places = t.embedding("embed_positions", numbers, role="position")
    return t.add("placed", h, places, role="embedding.sum")


def decode(
    t: Trace, c: Config, batch: Batch, encoded: Value
) -> Value:  # ids (B, U), encoded (B, T, D) -> (B, U, D)
    ids, past = batch.decoder_ids, batch.past
    mask = masks.causal(ids, batch.decoder_attention_mask, past=past)
    with t.inside("model.decoder"):
        h = placed(t, t.embedding("embed_tokens", ids), positions(ids, past))
        for i in range(c.decoder_layers):
            h = t.block(f"layers.{i}", decoder_block, h, c, mask, encoded)
        h = t.layer_norm("layer_norm", h, NORM_EPS)
    return t.name(h, "model.decoder")


def encoder_block(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    h = attended(t, "self_attn", h, c.encoder_attention_heads, None)
    return transformed(t, h, c)


def decoder_block(
    t: Trace, h: Value, c: Config, mask: Mask, encoded: Value
) -> Value:  # (B, U, D), encoded (B, T, D) -> (B, U, D)
    h = attended(t, "self_attn", h, c.decoder_attention_heads, mask)
    h = attended(t, "encoder_attn", h, c.decoder_attention_heads, None, encoded)
    return transformed(t, h, c)


def attended(t: Trace, name: str, h: Value, *rest: int | Mask | Value | None) -> Value:
    """h + attention(norm(h))"""
    n = t.layer_norm(f"{name}_layer_norm", h, NORM_EPS)
    return t.add(f"{name}.added", h, t.module(name, attention, n, *rest), role="residual")


def attention(
    t: Trace, x: Value, heads: int, mask: Mask | None, encoded: Value | None = None
) -> Value:  # (B, J, D), to itself or to what was encoded (B, I, D) -> (B, J, D)
    y = x if encoded is None else encoded
    q, k, v = (
        t.move(
            f"{part}_proj.heads",
            "split_heads",
            t.linear(f"{part}_proj", source, bias=part != "k", role=f"attention.{name}"),
            heads=heads,
        )
        for part, name, source in (("q", "query", x), ("k", "key", y), ("v", "value", y))
    )
    q = t.scale("q_proj.scaled", q, q.array.shape[-1] ** -0.5)
    context = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
    return t.linear("out_proj", context, bias=True, role="attention.output")


def transformed(t: Trace, h: Value, c: Config) -> Value:
    """h + mlp(norm(h)), the end of a block"""
    n = t.layer_norm("final_layer_norm", h, NORM_EPS)
    z = t.linear("fc1", n, bias=True, role="mlp.up")
    z = t.activation("activation_fn", z, c.act, role="mlp.activation")
    return t.add("", h, t.linear("fc2", z, bias=True, role="mlp.down"), role="residual")
