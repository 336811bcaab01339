"""One file per architecture, forward only, top to bottom like its paper;
shared half-blocks beside them.
"""

if __name__ != "refl.nets":
    raise ImportError(
        "this folder is the package refl.nets; install the project (pip install -e .) and "
        "import that name"
    )

from refl.nets import (
    albert,
    bert,
    deit,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mamba,
    mistral,
    mixtral,
    olmo2,
    phi,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    t5,
    vit,
)

DECODERS = (llama, gpt2, mistral, qwen2, qwen3, olmo2, phi, gemma2, gemma3, mixtral, qwen3_moe)
ENCODERS = (bert, roberta, albert, vit, deit)

NETS = {net.MODEL_TYPE: net for net in (*DECODERS, *ENCODERS, t5)} | {
    "xlm-roberta": roberta,
    "camembert": roberta,
}
NETS |= {net.MODEL_TYPE: net for net in (mamba,)}
"""model_type of config.json -> the net."""

LEFT_OUT = {
    "mamba2": "its scan has one decay for each head, and a gated norm behind it: that is not "
    "implemented",
    "falcon_mamba": "it normalizes step sizes, B and C without weights: that is not implemented",
    "jamba": "its blocks are attention, experts, or a Mamba with norms inside: that is not "
    "implemented",
}
"""model_type of nets that are near one of these -> why there is none."""
