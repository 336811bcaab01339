"""What the files beside tokenizer.json say against it.

transformers (4.52) goes by tokenizer_config.json where the two disagree, and makes of every token
that it names, or special_tokens_map.json or added_tokens.json, one that text is split at. Then the
same text comes to other ids, and another input would be explained. Only the `tokenizers` library
reads text here, by tokenizer.json alone: so such a text is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from refl.errors import ReflError, shown

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_NORMALIZER = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
"""Option -> its name in a BertNormalizer, and what transformers takes where the file is silent."""

_REMEDY = "save the tokenizer again with transformers, so that both say the same, or give token ids"


def disagreement(tokenizer: Tokenizer, config: Mapping[str, Any]) -> str:
    """How tokenizer_config.json contradicts tokenizer.json, in a sentence; empty where it does
    not.
    """
    for option, ours, theirs in _pairs(tokenizer, config):
        if ours != theirs:
            return (
                f"tokenizer_config.json stands for {option} = {_json(theirs)}, tokenizer.json for "
                f"{_json(ours)}: {_REMEDY}"
            )
    return ""


def _pairs(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Option, what tokenizer.json has for it, and what tokenizer_config.json."""
    if not config:
        return
    kind = str(config.get("tokenizer_class")).removesuffix("Fast").removesuffix("Tokenizer")
    normalizer, splitter = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    if normalizer.get("type") == "BertNormalizer" and kind != "PreTrained":
        for option, (name, silent) in _NORMALIZER.items():
            if option in config or kind in ("Bert", "None"):  # none: by the architecture
                yield option, normalizer.get(name), config.get(option, silent)
    if splitter.get("type") == "ByteLevel":
        theirs = config.get("add_prefix_space")
        yield "add_prefix_space", splitter.get("add_prefix_space"), bool(theirs)


def _state(part: Any) -> dict[str, Any]:
    found = {} if part is None else json.loads(part.__getstate__())
    return found if isinstance(found, dict) else {}


def _json(value: Any) -> str:
    return shown(json.dumps(value)[:60])


# -- tokens that only one of them knows ------------------------------------------------------------


def strangers(
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    added: Mapping[str, Any],
) -> frozenset[str]:
    """Tokens that a text is split at by the other files and not by tokenizer.json, or the other way
    around. `special`: special_tokens_map.json; `added`: added_tokens.json.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    named = {*_named(config), *_named(special), *added}
    named |= set(_contents(list(listed.values()) if isinstance(listed, dict) else None))
    ours = known if config.get("split_special_tokens") is True else set()
    return frozenset(named - known | ours) - {""}


def _named(says: Mapping[str, Any]) -> Iterator[str]:
    for name in SPECIAL:
        yield from _contents(says.get(f"{name}_token"))
    yield from _contents(says.get("additional_special_tokens"))


def _contents(value: Any) -> Iterator[str]:
    """The spelling of a token, or of each in a list."""
    for one in value if isinstance(value, list) else [value]:
        content = one.get("content") if isinstance(one, dict) else one
        if isinstance(content, str):
            yield content


def refuse(text: str, unlike: str, unknown: frozenset[str]) -> None:
    """Raises ReflError for a text that the two files take apart in two ways."""
    if unlike:
        raise ReflError(unlike)
    for token in sorted(unknown):
        if token in text:
            raise ReflError(
                f"the text has {shown(token[:60])!r}, which tokenizer.json and the files beside it "
                f"(tokenizer_config.json, special_tokens_map.json, added_tokens.json) take "
                f"differently: {_REMEDY}"
            )
