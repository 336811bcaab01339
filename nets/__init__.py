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
    clip,
    clip_text,
    clip_vision,
    cohere,
    cohere2,
    deit,
    dinov2,
    distilbert,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mamba,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    vit,
    whisper,
)

DECODERS = (llama, gpt2, mistral, qwen2, qwen3, olmo2, phi, gemma2, gemma3, mixtral, qwen3_moe)
NEWER_DECODERS = (phi3, smollm3, granite, cohere, cohere2, gpt_neox, starcoder2, stablelm, opt)
ENCODERS = (
    *(bert, roberta, albert, distilbert, modernbert),
    *(vit, deit, dinov2, clip_text, clip_vision),
)

NETS = {
    net.MODEL_TYPE: net for net in (*DECODERS, *NEWER_DECODERS, mamba, *ENCODERS, clip, t5, whisper)
} | {
    "xlm-roberta": roberta,
    "camembert": roberta,
    "dinov2_with_registers": dinov2,
    "mt5": t5,
    "umt5": t5,
}
"""model_type of config.json -> the net."""

NOT_HERE = {
    "bart": "an encoder-decoder with norms behind each sum",
    "bitnet": "norms inside attention and MLP, and weights of three values",
    "bloom": "positions as a bias of scores that falls with the distance (ALiBi)",
    "codegen": "an order of queries, keys and values of its own",
    "deepseek_v2": "queries and keys through a latent vector (MLA)",
    "deepseek_v3": "queries and keys through a latent vector (MLA), and experts in groups",
    "falcon": "norms and positions that differ between its versions (ALiBi, multi-query)",
    "falcon_mamba": "norms without weights on step sizes, B and C",
    "gemma3": "a picture beside the text; its text model alone is gemma3_text",
    "gemma3n": "activations that are sparse and layers that are nested",
    "glm": "rotary positions in another order on a part of each head",
    "gpt_bigcode": "one key and value for all heads in GPT-2's matrix",
    "gpt_neo": "scores that are not scaled, and attention within a window in every second block",
    "gpt_oss": "attention sinks and MXFP4 experts",
    "gptj": "rotary positions in another order on a part of each head",
    "granitemoe": "experts in one tensor",
    "granitemoehybrid": "state space layers between those of attention",
    "jamba": "blocks of attention, of experts, and of a Mamba with norms inside",
    "llama4": "attention in chunks, temperatures of queries, and experts in one tensor",
    "llama4_text": "attention in chunks, temperatures of queries, and experts in one tensor",
    "longt5": "attention over blocks, local and global",
    "mamba2": "one decay for each head, and a gated norm behind the scan",
    "marian": "an encoder-decoder with sines of positions made by the net",
    "mbart": "an encoder-decoder with positions counted from 2",
    "mistral3": "a picture beside the text; its text model is a mistral",
    "mllama": "a picture beside the text, read by cross-attention",
    "mpt": "positions as a bias of scores that falls with the distance (ALiBi)",
    "nemotron": "a layer norm that adds 1 to its weight",
    "olmo": "layer norms without weights, and a clip of queries, keys and values",
    "olmoe": "norms on queries and keys of all heads beside experts",
    "openai-gpt": "norms behind each sum, in a decoder",
    "pegasus": "an encoder-decoder with sines of positions made by the net",
    "persimmon": "queries, keys and values of each head with norms in between",
    "phi4_multimodal": "pictures and sound beside the text",
    "phimoe": "experts chosen by a sparse mixer",
    "qwen2_5_vl": "a picture beside the text, with rotary positions in three directions",
    "qwen2_moe": "an expert that all tokens share, behind a gate",
    "qwen2_vl": "a picture beside the text, with rotary positions in three directions",
    "qwen3_next": "linear attention with a gated delta rule",
    "recurrent_gemma": "recurrent blocks between those of attention",
    "rwkv": "a recurrent net without attention",
    "siglip": "a head that pools by attention, and a sigmoid with a bias",
    "switch_transformers": "experts with a capacity, whose output depends on the batch",
    "xglm": "sines of positions made by the net",
    "zamba2": "state space layers between those of attention",
}
"""Well-known model types that were considered and left out -> what in them is not implemented."""
