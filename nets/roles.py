"""What an operation is in its architecture's own terms, whatever the checkpoint calls it: the roles
that records carry and that composites match.

A role has the same meaning in every net: `mlp.up` is GPT-2's c_fc, BERT's intermediate.dense and
Llama's up_proj. Operations that only rearrange, rotate or scale have none.
"""

from __future__ import annotations

ROLES = {
    # inputs: the conservation ledger records what reaches them under these names
    "tokens": "embedding of the words",
    "position": "embedding of positions, or of distances",
    "token_type": "embedding of sentence A or B",
    "class_token": "learned token that speaks for the picture",
    "distillation_token": "learned token that learned from a teacher",
    "register_token": "learned token that is no part of the picture (DINOv2)",
    "pixels": "the picture itself",
    "patch_embedding": "convolution on patches, a linear layer on each",
    "edge": "zeros at the ends of what a convolution reaches over (Whisper)",
    "convolution": "convolution behind the first (Whisper)",
    "convolution.activation": "activation on a convolution (Whisper)",
    "embedding.sum": "sum of embeddings",
    "embedding.projection": "linear from the width of embeddings to that of the blocks (ALBERT)",
    # attention, self or cross
    "attention.query": "linear that makes queries",
    "attention.key": "linear that makes keys",
    "attention.value": "linear that makes values",
    "attention.query_key_value": "one linear for the three of them (GPT-2, Phi-3, GPT-NeoX)",
    "attention.scores": "product of queries and keys",
    "attention.bias": "sum of scores and a bias by distance (T5)",
    "attention.cap": "tanh that bounds scores (Gemma 2)",
    "attention.probabilities": "softmax of scores",
    "attention.context": "product of probabilities and values",
    "attention.output": "linear after the heads",
    # the MLP of a block, or of an expert
    "mlp.up": "linear that widens",
    "mlp.gate": "linear in front of the activation, where another one is multiplied with it",
    "mlp.gate_up": "one linear for gate and up (Phi-3, ModernBERT, DINOv2)",
    "mlp.activation": "activation",
    "mlp.product": "product of gate and up",
    "mlp.down": "linear that narrows",
    # the mixer of a state space model, which does the work of attention and of the MLP
    "mixer.in": "linear that makes what is scanned, and its gate",
    "mixer.convolution": "causal convolution of each channel",
    "mixer.activation": "activation on it",
    "mixer.parameters": "linear that makes step sizes and the coefficients B and C",
    "mixer.step": "linear that widens step sizes to the channels",
    "mixer.step_size": "softplus on them",
    "mixer.scan": "selective scan",
    "mixer.skip": "product of what is scanned and a weight for each channel",
    "mixer.sum": "sum of scan and skip",
    "mixer.gate": "activation on the gate",
    "mixer.product": "product of the gate and what was scanned",
    "mixer.out": "linear that narrows",
    # mixture of experts
    "router.logits": "linear, a number for each expert",
    "router.probabilities": "softmax over experts",
    "router.choice": "the largest of them",
    "router.weights": "the largest, made to sum to one",
    "expert.weighted": "product of an expert's output and its weight",
    "expert.sum": "sum over experts",
    # a LoRA adapter that is kept apart from its base layer
    "adapter.down": "linear to the rank of an adapter",
    "adapter.up": "linear from there to the width of the layer",
    "adapter.sum": "sum of a linear layer and its adapter",
    # between and after
    "residual": "sum of the stream and what a half-block adds",
    "layer_scale": "product with a learned factor for each feature (DINOv2), and these factors",
    "norm": "layer norm or RMS norm",
    "pooler": "linear on the first token",
    "pooler.activation": "activation on it",
    "head.transform": "linear in front of the head",
    "head.activation": "activation on it",
    "head.similarity": "product of the features of a picture and of texts (CLIP)",
    "head.mean": "mean over the tokens, or over the patches of a picture",
    "head": "linear that makes logits",
    "head.cap": "tanh that bounds logits (Gemma)",
    "head.sum": "sum of the logits of two heads (DeiT)",
}
"""Role -> what it is."""
