"""From config.json to a net's options: everything that changes the computation is either understood
or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from refl.errors import ReflError
from refl.rules.activation import NAMES

C = TypeVar("C")

HARMLESS = frozenset(
    [
        "_name_or_path",
        "architectures",
        "model_type",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "initializer_range",
        "initializer_factor",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "unk_token_id",
        "decoder_start_token_id",
        "eos_token_ids",
        "attention_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "resid_pdrop",
        "embd_pdrop",
        "dropout_rate",
        "classifier_dropout",
        "classifier_dropout_prob",
        "hidden_dropout",
        "embd_dropout",
        "resid_dropout",
        "summary_first_dropout",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "tokenizer_class",
        "prefix",
        "return_dict",
        "return_dict_in_generate",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_past",
        "torchscript",
        "use_bfloat16",
        "do_sample",
        "early_stopping",
        "max_length",
        "min_length",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "chunk_size_feed_forward",
        "tf_legacy_loss",
        "gradient_checkpointing",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "pretraining_tp",
        "auto_map",
    ]
)
"""Keys that no forward pass in evaluation mode depends on: generation, dropout, labels,
bookkeeping.
"""

REFUSED = {
    "quantization_config": "quantized weights are not read: load the checkpoint in "
    "float32, float16 or bfloat16",
    "pruned_heads": "pruned heads are not implemented",
    "is_decoder": "a decoder is not what this architecture's net computes",
    "is_encoder_decoder": "an encoder-decoder is not what this architecture's net computes",
    "add_cross_attention": "cross-attention is not implemented for this architecture",
    "cross_attention_hidden_size": "cross-attention is not implemented for this architecture",
    "tie_encoder_decoder": "an encoder-decoder is not what this architecture's net computes",
    "sliding_window": "sliding-window attention is not implemented for this architecture",
    "use_sliding_window": "sliding-window attention is not implemented for this architecture",
}
"""Keys that change the computation, refused unless they are off (null, false, empty), with what to
say.
"""


def parse(cls: type[C], raw: dict[str, Any], ignore: Collection[str] = ()) -> C:
    """The dataclass `cls` filled from config.json; a field's default stands where the file is
    silent.

    `cls.HARMLESS` adds keys without effect on this net. Raises ReflError for a missing or malformed
    option, for one that is not implemented, and for one nobody here knows (unless it is off, or
    named in `ignore`).
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    harmless = HARMLESS | set(getattr(cls, "HARMLESS", ())) | set(ignore)
    for key, value in raw.items():
        if key not in known and key not in harmless and not _is_off(value):
            raise ReflError(_refusal(key, value))
    hints = get_type_hints(cls)
    return cls(**{name: _value(name, field, hints[name], raw) for name, field in known.items()})


def _is_off(value: Any) -> bool:
    return value is None or value is False or value == {} or value == [] or value == ""


def _refusal(key: str, value: Any) -> str:
    if key in REFUSED:
        return f"config.json sets {key}: {REFUSED[key]}"
    return (
        f"config.json sets {key} = {str(value)[:60]!r}, which refl does not know: if it "
        "changes nothing in the forward pass, "
        f"load with ignore=[{key!r}] (--ignore {key})"
    )


def _value(name: str, field: Field[Any], hint: Any, raw: dict[str, Any]) -> Any:
    if (
        name in raw and raw[name] is None and type(None) in get_args(hint)
    ):  # null switches an option off, whatever silence means
        return None
    if raw.get(name) is None:
        if field.default is MISSING:
            raise ReflError(f"config.json lacks {name}: expected {_describe(hint)}")
        return field.default
    value, kinds = raw[name], _kinds(hint)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        raise ReflError(f"config.json has {name} = {value!r}: expected {_describe(hint)}")
    least = field.metadata.get("least", 1)
    if (isinstance(value, int) and not isinstance(value, bool) and value < least) or (
        isinstance(value, float) and not _positive(value)
    ):
        raise ReflError(
            f"config.json has {name} = {value!r}: expected {_describe(hint)} above {least - 1}"
        )
    return value


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _kinds(hint: Any) -> list[Any]:
    kinds = get_args(hint) if get_origin(hint) not in (dict, list) and get_args(hint) else (hint,)
    return [get_origin(k) or k for k in kinds if k is not type(None)]


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        dict: "an object",
    }
    return " or ".join(names.get(k, str(k)) for k in _kinds(hint))


def known_activation(option: str, kind: str) -> None:
    """Raises ReflError for an activation there is none of."""
    if kind not in NAMES:
        raise ReflError(
            f"config.json asks for {option} {kind!r}, which is not implemented: there are "
            f"{', '.join(NAMES)}"
        )


def divides(small: str, a: int, large: str, b: int) -> None:
    """Raises ReflError unless a divides b."""
    if b % a:
        raise ReflError(f"config.json has {large} = {b}, which {small} = {a} does not divide")
