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
    whisper,
)

DECODERS = (llama, gpt2, mistral, qwen2, qwen3, olmo2, phi, gemma2, gemma3, mixtral, qwen3_moe)
ENCODERS = (bert, roberta, albert, vit, deit)

NETS = {net.MODEL_TYPE: net for net in (*DECODERS, *ENCODERS, t5, whisper)} | {
    "xlm-roberta": roberta,
    "camembert": roberta,
    "mt5": t5,
    "umt5": t5,
}
"""model_type of config.json -> the net."""
