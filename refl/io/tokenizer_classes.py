"""What classes of tokenizers do unasked, as in transformers 4.52: which class a model_type stands
for, the special tokens that it has, and those that it puts around a text.
"""

from __future__ import annotations

from collections.abc import Mapping

CLASS_OF = {
    "albert": "Albert",
    "bert": "Bert",
    "distilbert": "DistilBert",
    "clip": "CLIP",
    "gemma2": "Gemma",
    "gemma3_text": "Gemma",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "llama": "Llama",
    "mistral": "Llama",
    "mixtral": "Llama",
    "olmo2": "GPTNeoX",
    "opt": "GPT2",
    "phi": "CodeGen",
    "phi3": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen2",
    "qwen3_moe": "Qwen2",
    "roberta": "Roberta",
    "stablelm": "GPTNeoX",
    "starcoder2": "GPT2",
    "t5": "T5",
    "xlm-roberta": "XLMRoberta",
}
"""model_type -> the class of tokenizer where no file names one."""

_END_OF_TEXT = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
_SENTENCES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_ROBERTA = _SENTENCES | {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}

TOKENS_OF: Mapping[str, Mapping[str, str]] = {
    "Albert": _BERT | {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"},
    "Bert": _BERT,
    "CLIP": {"bos": "<|startoftext|>"} | dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
    "CodeGen": _END_OF_TEXT,
    "CodeLlama": _SENTENCES,
    "DistilBert": _BERT,
    "Cohere": {"bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "unk": "<UNK>"},
    "GPT2": _END_OF_TEXT,
    "GPTNeoX": _END_OF_TEXT,
    "Gemma": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
    "Llama": _SENTENCES,
    "Qwen2": dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
    "Roberta": _ROBERTA,
    "T5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "XLMRoberta": _ROBERTA,
}
"""Class -> the special tokens that it has unasked."""

_TAKES_THE_BLANK_BEFORE = {"mask": {"lstrip": True}}
FLAGS_OF: Mapping[str, Mapping[str, Mapping[str, bool]]] = {
    "Albert": _TAKES_THE_BLANK_BEFORE,
    "Qwen2": {"eos": {}, "unk": {}, "pad": {}},
    "Roberta": _TAKES_THE_BLANK_BEFORE,
    "XLMRoberta": _TAKES_THE_BLANK_BEFORE,
}
"""Class -> how those of its tokens are split off that it has unasked, whatever tokenizer.json says
(for the others tokenizer.json decides)."""

EXTRA_OF = {"T5": [f"<extra_id_{i}>" for i in range(100)]}
"""Class -> additional special tokens that it has unasked."""

BOS_UNASKED = {"Llama": True, "CodeLlama": True, "Gemma": True, "Cohere": True, "GPTNeoX": False}
"""Classes that put special tokens around a text as tokenizer_config.json says, whatever
tokenizer.json says -> what add_bos_token is where it is not given."""
