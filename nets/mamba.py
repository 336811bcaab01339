"""Mamba (Gu and Dao 2023, arXiv 2312.00752).

    h = embeddings[ids]
    for each block:    h = h + mixer(rms_norm(h))
    logits = lm_head(rms_norm(h))

    mixer(u) = out_proj(silu(z) * (scan(x, d, B, C) + D x))
    x, z     = in_proj(u),            x = silu(conv1d(x)): of each channel, causal
    d, B, C  = x_proj(x),             d = softplus(dt_proj(d))

The scan is that of rules/scan.py: h_t = exp(d_t A) h_(t-1) + d_t B_t x_t, y_t = C_t h_t, with
A = -exp(A_log); D x is a convolution with a kernel of one. The text is read in one direction, and
only what came before a token reaches it: of padding behind a text nothing does, and there is no
length that is too long. Names are those of Hugging Face's MambaForCausalLM. (`mixer.conv1d` is
without the K - 1 places that its module has behind the text; its one `act` is `mixer.convolved` and
`mixer.gate` here.)

Under MambaLRP (Rezaei Jafari et al. 2024, arXiv 2406.07592) A, B, C and d are constants, of the
gate one half is, silu hands on what it gets, and norms have a constant scale (section 4): those are
the rules that AttnLRP's table has for these operations, so its gradient x input form is MambaLRP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from refl.errors import ReflError
from refl.nets import heads, tensors
from refl.nets.batch import Batch
from refl.nets.config import LARGEST, activation_kind, brief
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

MODEL_TYPE = "mamba"
PREFIX = "backbone."
ATTENDS = False
"""A mask of attention has nothing to hide."""
CHECKED = (
    "random configurations against transformers 4.52.4; relevance MambaLRP's equations in torch; "
    "no real checkpoint"
)


@dataclass(frozen=True)
class Config(heads.OfDecoder):
    """The options of config.json that this net reads."""

    vocab_size: int = 50280
    hidden_size: int = 768
    state_size: int = 16
    num_hidden_layers: int = 32
    layer_norm_epsilon: float = 1e-5
    expand: float = 2.0
    intermediate_size: int | None = None
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    time_step_rank: int | str = "auto"
    tie_word_embeddings: bool = True
    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: int | None = None

    HEADS: ClassVar[dict[str, str]] = {"MambaForCausalLM": heads.NEXT_TOKEN}
    SHOWN_BY: ClassVar[dict[str, str]] = {heads.NEXT_TOKEN: "lm_head."}
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "residual_in_fp32",  # of a half-precision net; here all is in one dtype, float32 or float64
        "rescale_prenorm_residual",  # how a training begins, as the next ones
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_scale",
        "use_mambapy",  # who computes the scan in a training
        # what the first files have beside the names above, and transformers does not read
        "d_inner",
        "d_model",
        "fused_add_norm",
        "n_layer",
        "pad_vocab_size_multiple",
        "rms_norm",
    )

    def __post_init__(self) -> None:
        _ = self.task, self.act, self.rank

    @property
    def act(self) -> str:
        return activation_kind("hidden_act", self.hidden_act)

    @property
    def inner(self) -> int:
        """Channels of the mixer; where `intermediate_size` is said it wins, as in transformers."""
        return self.intermediate_size or int(self.expand * self.hidden_size)

    @property
    def rank(self) -> int:
        """Features that step sizes are made of."""
        if isinstance(self.time_step_rank, int):
            return self.time_step_rank
        if self.time_step_rank != "auto":
            raise ReflError(
                f"config.json has time_step_rank = {brief(self.time_step_rank)}: expected a whole "
                "number or 'auto'"
            )
        return math.ceil(self.hidden_size / 16)

    @property
    def longest(self) -> int:
        return LARGEST


def shapes(c: Config) -> Tensors:
    """Every tensor: name, shape, and the options that ask for it."""
    yield "backbone.embeddings.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"
    for i in range(c.num_hidden_layers):
        yield from tensors.norm(f"backbone.layers.{i}.norm", c.hidden_size)
        yield from mixer_shapes(f"backbone.layers.{i}.mixer", c)
    yield from tensors.norm("backbone.norm_f", c.hidden_size)
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size), "vocab_size and hidden_size"


def mixer_shapes(path: str, c: Config) -> Tensors:
    inner, states, wide = c.inner, c.state_size, "expand and hidden_size"
    yield f"{path}.A_log", (inner, states), f"{wide} and state_size"
    yield f"{path}.D", (inner,), wide
    yield f"{path}.conv1d.weight", (inner, 1, c.conv_kernel), f"{wide} and conv_kernel"
    if c.use_conv_bias:
        yield f"{path}.conv1d.bias", (inner,), wide
    yield from tensors.linear(f"{path}.in_proj", 2 * inner, c.hidden_size, wide, bias=c.use_bias)
    why = "expand, hidden_size, time_step_rank and state_size"
    yield from tensors.linear(f"{path}.x_proj", c.rank + 2 * states, inner, why)
    why = "expand, hidden_size and time_step_rank"
    yield from tensors.linear(f"{path}.dt_proj", inner, c.rank, why, bias=True)
    yield from tensors.linear(f"{path}.out_proj", c.hidden_size, inner, wide, bias=c.use_bias)


def task(c: Config) -> str:
    return c.task


def forward(
    t: Trace, c: Config, batch: Batch
) -> Value:  # ids (B, T) -> logits (B, T, V), or (B, 1, V) at the wanted rows
    h = t.embedding("backbone.embeddings", batch.ids)
    for i in range(c.num_hidden_layers):
        h = t.block(f"backbone.layers.{i}", block, h, c)
    h = t.rms_norm("backbone.norm_f", h, c.layer_norm_epsilon)
    if batch.rows is not None:
        h = t.move("lm_head.row", "rows", h, index=batch.rows)
    tied = "backbone.embeddings.weight" if c.tie_word_embeddings else None
    return t.linear("lm_head", h, weight=tied, role="head")


def block(t: Trace, h: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    n = t.rms_norm("norm", h, c.layer_norm_epsilon)
    return t.add("", h, t.module("mixer", mixer, n, c), role="residual")


def mixer(t: Trace, u: Value, c: Config) -> Value:  # (B, T, D) -> (B, T, D)
    both = t.linear("in_proj", u, bias=c.use_bias, role="mixer.in")
    x = t.move("x", "slice", both, start=0, stop=c.inner)
    x = t.causal_convolution("conv1d", x, bias=c.use_conv_bias, role="mixer.convolution")
    x = t.activation("convolved", x, c.act, role="mixer.activation")
    y = t.add("scanned", scan(t, x, c), skip(t, x), role="mixer.sum")
    z = t.move("z", "slice", both, start=c.inner, stop=2 * c.inner)
    gate = t.activation("gate", z, c.act, role="mixer.gate")
    gated = t.multiply("gated", gate, y, role="mixer.product")
    return t.linear("out_proj", gated, bias=c.use_bias, role="mixer.out")


def scan(t: Trace, x: Value, c: Config) -> Value:  # (B, T, I) -> (B, T, I)
    found = t.linear("x_proj", x, role="mixer.parameters")
    ends = (0, c.rank, c.rank + c.state_size, c.rank + 2 * c.state_size)
    step, b, cc = (
        t.move(name, "slice", found, start=ends[i], stop=ends[i + 1])
        for i, name in enumerate(("time_step", "B", "C"))
    )
    d = t.linear("dt_proj", step, bias=True, role="mixer.step")
    d = t.activation("step_size", d, "softplus", role="mixer.step_size")
    return t.scan("scan", x, d, b, cc, weight="A_log", role="mixer.scan")


def skip(t: Trace, x: Value) -> Value:  # (B, T, I) -> (B, T, I)
    return t.causal_convolution("skip", x, weight="D", role="mixer.skip")
