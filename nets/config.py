"""From config.json to a net's options: everything that changes the computation is either understood
or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from refl.errors import ReflError, shown

C = TypeVar("C")

GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
)
"""How a text is continued, token after token."""

SPECIAL_TOKENS = (
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "eos_token_ids",
    "pad_token_id",
    "sep_token_id",
    "tokenizer_class",
    "unk_token_id",
)
"""What the tokenizer puts around a text; a net that computes with one of them lists it itself."""

DROPOUT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "classifier_dropout_prob",
    "dropout_rate",
    "embd_dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_dropout",
    "resid_pdrop",
    "summary_first_dropout",
)

LABELS = (
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
)
"""What the outputs of a classifier mean."""

TRAINING = ("gradient_checkpointing", "initializer_factor", "initializer_range", "tf_legacy_loss")

BOOKKEEPING = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pretraining_tp",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
)
"""Where the file comes from, and how transformers runs and returns the same numbers."""

STORAGE = ("quantization_config",)
"""How weights are stored: whoever reads them goes by it, or refuses it (refl.io.quantized)."""

HARMLESS = frozenset(
    STORAGE + GENERATION + SPECIAL_TOKENS + DROPOUT + LABELS + TRAINING + BOOKKEEPING
)
"""Keys that no forward pass in evaluation mode depends on."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_fast",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}
"""The names that config.json files use -> the kinds of rules/activation.py. Names of one kind are
the same function in exact arithmetic; gelu_fast differs from gelu_tanh in the 11th digit of a
constant.
"""

OTHER_ACTIVATIONS = {
    "gelu_10": "gelu clipped at -10 and 10",
    "laplace": "a normal distribution function, which is not 0 at 0",
    "leaky_relu": "relu with a slope below 0",
    "linear": "no activation",
    "mish": "x tanh(log(1 + exp(x)))",
    "prelu": "relu with a learned slope below 0",
    "relu6": "relu clipped at 6",
    "sigmoid": "a logistic function, which is not 0 at 0",
    "xielu": "an activation with learned parameters",
}
"""Those that transformers knows beside, and what they are: none is in a checkpoint of a net here.
Where f(0) is not 0, f(x)/x has no limit at 0, and the identity rule no factor.
"""

REFUSED = {
    "pruned_heads": "pruned heads are not implemented",
    "is_decoder": "a decoder is not what this architecture's net computes",
    "is_encoder_decoder": "an encoder-decoder is not what this architecture's net computes",
    "add_cross_attention": "cross-attention is not implemented for this architecture",
    "cross_attention_hidden_size": "cross-attention is not implemented for this architecture",
    "tie_encoder_decoder": "an encoder-decoder is not what this architecture's net computes",
    "sliding_window": "sliding-window attention is not implemented for this architecture",
    "use_sliding_window": "sliding-window attention is not implemented for this architecture",
}
"""Keys that change the computation, refused unless they are off
(null, false, empty), with what to say.
"""


LARGEST = 2**31 - 1
"""The largest whole number an option may have: more would not fit the integers of an index."""

MOST = dict.fromkeys(
    (
        "decoder_layers",
        "encoder_layers",
        "inner_group_num",
        "n_layer",
        "n_layers",
        "num_decoder_layers",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_groups",
        "num_hidden_layers",
        "num_layers",
        "num_local_experts",
    ),
    10_000,
) | {"head_dim": 1 << 16}
"""Options of which each one is a module of its own, or a frequency: checked before any is made,
far above what was ever trained.
"""


def parse(cls: type[C], raw: dict[str, Any], ignore: Collection[str] = ()) -> C:
    """The dataclass `cls` filled from config.json; a field's default stands where the file is
    silent. A field that is a dataclass is filled from an object inside, whose options are called
    text_config.hidden_size, say.

    `cls.HARMLESS` adds keys without effect on this net, `cls.DEFAULTS` has defaults by model_type
    where they are not the fields'. Raises ReflError for a missing or malformed
    option, for one that is not implemented, and for one nobody here knows (unless it is off, or
    named in `ignore`).
    """
    return _parsed(cls, raw, ignore, "")


def _parsed(cls: type[C], raw: dict[str, Any], ignore: Collection[str], within: str) -> C:
    """`within`: what the names of all options in `raw` and `ignore` begin with."""
    known = {within + f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    harmless = {within + key for key in HARMLESS.union(getattr(cls, "HARMLESS", ()))} | set(ignore)
    for key, value in raw.items():
        if key not in known and key not in harmless and not _is_off(value):
            raise ReflError(_refusal(key, value))
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]
    objects = {
        name: kind
        for name, f in known.items()
        if (kind := _dataclass_in(hints[f.name])) and isinstance(raw.get(name), dict)
    }
    deeper = tuple(f"{name}." for name in objects)
    _check_ignored([key for key in ignore if not key.startswith(deeper)], raw, known)
    _refuse_two_answers(raw)
    raw = getattr(cls, "DEFAULTS", {}).get(str(raw.get("model_type")), {}) | raw
    found = {
        f.name: _object(objects[name], name, raw[name], ignore)
        if name in objects
        else _value(name, f, hints[f.name], raw)
        for name, f in known.items()
    }
    return cls(**found)


def _object(cls: type[Any], name: str, raw: dict[str, Any], ignore: Collection[str]) -> Any:
    prefix = f"{name}."
    named = {prefix + key: value for key, value in raw.items()}
    return _parsed(cls, named, [key for key in ignore if key.startswith(prefix)], prefix)


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a field holds; None where it holds something else."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _check_ignored(ignore: Collection[str], raw: Collection[str], known: Collection[str]) -> None:
    for key in ignore:
        if key not in raw:
            raise ReflError(f"config.json has no option {shown(key)}, which ignore names")
        if key in STORAGE:
            raise ReflError(f"weights are read by {shown(key)} of config.json: it is not ignored")
        if key in known and key != "architectures":
            raise ReflError(f"the net reads {shown(key)} of config.json: it cannot be ignored")


def _is_off(value: Any) -> bool:
    return value is None or value is False or value == {} or value == [] or value == ""


def _refusal(key: str, value: Any) -> str:
    why = REFUSED.get(key.rpartition(".")[2])
    if why is not None:
        return f"config.json sets {shown(key)}: {why}"
    return (
        f"config.json sets {shown(key)} = {shown(str(value)[:60])!r}, which refl does not know: if "
        f"it changes nothing in the forward pass, load with ignore=[{shown(key)!r}] "
        f"(--ignore {shown(key)})"
    )


def _refuse_two_answers(raw: dict[str, Any]) -> None:
    """Files of transformers 5 say under another name what older ones say; readers of a file that
    says both take one or the other.
    """
    old, new = (raw.get(prefix + "sliding_window_pattern") for prefix in ("", "_"))
    if None not in (old, new) and old != new:
        raise ReflError(
            f"config.json has sliding_window_pattern = {brief(old)} and _sliding_window_pattern = "
            f"{brief(new)}: expected one"
        )
    parameters = raw.get("rope_parameters")
    if raw.get("rope_theta", 0) is None and not parameters:
        raise ReflError("config.json has rope_theta = null: expected a number")
    if not isinstance(parameters, dict):
        return
    inner = parameters.get("full_attention", parameters)
    for key in ("rope_theta", "partial_rotary_factor"):
        two = raw.get(key), inner.get(key) if isinstance(inner, dict) else None
        if None not in two and two[0] != two[1]:
            raise ReflError(
                f"config.json has {key} = {brief(two[0])}, and {brief(two[1])} in "
                "rope_parameters: expected one"
            )
    if raw.get("rope_scaling") and raw["rope_scaling"] != parameters:
        raise ReflError("config.json has rope_scaling and other rope_parameters: expected one")


def _value(name: str, field: Field[Any], hint: Any, raw: dict[str, Any]) -> Any:
    if (
        name in raw and raw[name] is None and type(None) in get_args(hint)
    ):  # null switches an option off, whatever silence means
        return None
    if name not in raw:
        if field.default is MISSING:
            raise ReflError(f"config.json lacks {name}: expected {_describe(hint)}")
        return field.default
    if raw[name] is None:
        raise ReflError(f"config.json has {name} = null: expected {_describe(hint)}")
    value, kinds = raw[name], _kinds(hint)
    if not _fits(value, kinds, hint):
        raise ReflError(f"config.json has {name} = {brief(value)}: expected {_describe(hint)}")
    if float in kinds and isinstance(value, int) and abs(value) <= LARGEST:
        value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(name, value, hint, field.metadata.get("least", 1))
    return value


def _fits(value: Any, kinds: list[Any], hint: Any) -> bool:
    """Whether a value of JSON is of one of the kinds, and its items are of theirs."""
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return int in kinds or float in kinds
    if isinstance(value, list):
        return list in kinds and all(type(item) is _item(hint) for item in value)
    return isinstance(value, tuple(kinds))


def _item(hint: Any) -> Any:
    """Of what the list in a type is."""
    (kind,) = (get_args(k)[0] for k in (hint, *get_args(hint)) if get_origin(k) is list)
    return kind


def _check_range(name: str, value: Any, hint: Any, least: int) -> None:
    if isinstance(value, float):
        if not (value > 0 and math.isfinite(value)):
            raise ReflError(
                f"config.json has {name} = {value!r}: expected {_describe(hint)} above 0"
            )
        return
    most = MOST.get(name.rpartition(".")[2], LARGEST)
    if value < least:
        raise ReflError(
            f"config.json has {name} = {brief(value)}: expected {_describe(hint)} above {least - 1}"
        )
    if value > most:
        raise ReflError(
            f"config.json has {name} = {brief(value)}: expected {_describe(hint)} of at most {most}"
        )


def brief(value: Any) -> str:
    """A value of config.json for a message."""
    text = repr(value)
    return shown(text if len(text) <= 80 else f"{text[:77]}...")


def _kinds(hint: Any) -> list[Any]:
    kinds = get_args(hint) if get_origin(hint) not in (dict, list) and get_args(hint) else (hint,)
    return [get_origin(k) or k for k in kinds if k is not type(None)]


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    said = " or ".join(names.get(k, str(k)) for k in _kinds(hint))
    if list not in _kinds(hint):
        return said
    return said + {int: " of whole numbers", str: " of strings"}[_item(hint)]


def activation_kind(option: str, name: str) -> str:
    """The kind of activation that config.json asks for as `name`.
    Raises ReflError for one there is none of.
    """
    if name not in ACTIVATIONS:
        what = OTHER_ACTIVATIONS.get(name)
        said = "" if what is None else f" ({what})"
        raise ReflError(
            f"config.json asks for {option} {brief(name)}{said}, which is not implemented: there "
            f"are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def divides(small: str, a: int, large: str, b: int) -> None:
    """Raises ReflError unless a divides b."""
    if b % a:
        raise ReflError(f"config.json has {large} = {b}, which {small} = {a} does not divide")
