"""What the files beside tokenizer.json say against it.

transformers (4.52) goes by tokenizer_config.json where the two disagree, and makes of every token
that it names, or special_tokens_map.json or added_tokens.json, one that text is split at. Where
these files are silent or not there, it goes by the class of tokenizer that config.json stands for,
and by what that class does unasked. Then the same text comes to other ids, and another input would
be explained. Only the `tokenizers` library reads text here, by tokenizer.json alone, beside the
special tokens that a class puts around a text: so such a text is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from refl.errors import ReflError, shown
from refl.io.config import read_json
from refl.io.tokenizer_classes import BOS_UNASKED, CLASS_OF, EXTRA_OF, FLAGS_OF, TOKENS_OF

_LIMIT = 16 << 20

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# -- what the files say ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What stands beside tokenizer.json."""

    config: Mapping[str, Any]
    """tokenizer_config.json"""
    special: Mapping[str, Any]
    """special_tokens_map.json"""
    added: Mapping[str, Any]
    """added_tokens.json"""
    kind: str
    """The class of tokenizer, without Fast and Tokenizer; empty where it cannot be told."""
    named: bool
    """Whether a file names the class: else it is that of the model_type."""

    def token(self, role: str) -> Any:
        """A special token as the files spell it, or as the class has it unasked."""
        first, then = self.special, self.config
        if "added_tokens_decoder" in self.config:
            first, then = then, first
        name = f"{role}_token"
        return first.get(name, then.get(name, TOKENS_OF.get(self.kind, {}).get(role)))

    @property
    def listed(self) -> list[Any]:
        """The tokens that tokenizer_config.json lists by their ids."""
        found = self.config.get("added_tokens_decoder")
        return list(found.values()) if isinstance(found, dict) else []

    def is_unasked(self, role: str) -> bool:
        """Whether no file names this token."""
        return f"{role}_token" not in {*self.config, *self.special}


def read(folder: Path, names: Collection[str]) -> Settings:
    """`names`: of the files in the folder. Raises ReflError for one that is no JSON object."""
    model, config, special, added = (
        read_json(folder / name, _LIMIT) if name in names else {}
        for name in (
            "config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        )
    )
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    guessed = CLASS_OF.get(str(model.get("model_type")))
    guessed = guessed or ("Llama" if config.get("add_bos_token") else "")
    kind = str(named or guessed).removesuffix("Fast").removesuffix("Tokenizer")
    return Settings(config, special, added, kind, bool(named))


# -- tokens around a text --------------------------------------------------------------------------


def ids_around(tokenizer: Tokenizer, says: Settings) -> tuple[list[int], list[int]] | None:
    """The ids around a text where tokenizer_config.json or the class decides them, None where
    tokenizer.json does. Raises ReflError for a token that a file names and tokenizer.json lacks.
    """
    roles = _around(says)
    if roles is None or any(_is_a_guess(tokenizer, says, role) for role in (*roles[0], *roles[1])):
        return None
    before, after = ([_id(tokenizer, says, role) for role in some] for some in roles)
    return before, after


def _around(says: Settings) -> tuple[list[str], list[str]] | None:
    """The roles of the special tokens before and after a text."""
    if says.kind not in BOS_UNASKED:
        return None
    first = _flag(says.config, "add_bos_token", BOS_UNASKED[says.kind])
    last = _flag(says.config, "add_eos_token", False)
    return ["bos"] * first, ["eos"] * last


def _flag(config: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = config.get(name, otherwise)
    if value is not None and not isinstance(value, bool):
        raise ReflError(
            f"tokenizer_config.json has {name} = {shown(repr(value)[:80])}: expected true or false"
        )
    return bool(value)


def _id(tokenizer: Tokenizer, says: Settings, role: str) -> int:
    if (number := _number(tokenizer, says, role)) is None:
        spelled = shown(repr(_spelled(says.token(role)))[:80])
        raise ReflError(
            f"tokenizer_config.json asks for {role}_token {spelled}, which tokenizer.json lacks"
        )
    return number


def _number(tokenizer: Tokenizer, says: Settings, role: str) -> int | None:
    name = _spelled(says.token(role))
    try:
        return tokenizer.token_to_id(name) if isinstance(name, str) else None
    except UnicodeEncodeError:  # half a character
        return None


def _is_a_guess(tokenizer: Tokenizer, says: Settings, role: str) -> bool:
    """Whether no file asks for the token or names the class, and tokenizer.json lacks it: then it
    is of another class than its model_type stands for.
    """
    asked = says.named or f"add_{role}_token" in says.config or not says.is_unasked(role)
    return not asked and _number(tokenizer, says, role) is None


# -- disagreement ----------------------------------------------------------------------------------

_ADDITIONAL = "additional_special_tokens"

_NORMALIZER = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
"""Option -> its name in a BertNormalizer, and what transformers takes where the file is silent."""

_REMEDY = "save the tokenizer again with transformers, so that both say the same, or give token ids"
_SAY_WHICH = "say which is meant in tokenizer_config.json, or give token ids"


def disagreement(tokenizer: Tokenizer, says: Settings) -> str:
    """How tokenizer_config.json, or the class, contradicts tokenizer.json, in a sentence; empty
    where neither does.
    """
    for option, ours, theirs in _pairs(tokenizer, says.kind, says.config):
        if ours != theirs:
            asked = option in says.config or not says.kind
            unasked = f"{shown(says.kind[:60])}Tokenizer, which no file asks for anything else,"
            return (
                f"{'tokenizer_config.json' if asked else unasked} stands for {option} = "
                f"{_json(theirs)}, tokenizer.json for {_json(ours)}: "
                f"{_REMEDY if asked else _SAY_WHICH}"
            )
    return ""


def _pairs(
    tokenizer: Tokenizer, kind: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Option, what tokenizer.json has for it, and what tokenizer_config.json or the class."""
    if not (config or kind):
        return
    normalizer, splitter = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    if normalizer.get("type") == "BertNormalizer" and kind != "PreTrained":
        for option, (name, silent) in _NORMALIZER.items():
            if option in config or kind in ("Bert", "DistilBert", ""):
                yield option, normalizer.get(name), config.get(option, silent)
    if splitter.get("type") == "ByteLevel" and (kind != "T5" or "add_prefix_space" in config):
        theirs = config.get("add_prefix_space")
        yield "add_prefix_space", splitter.get("add_prefix_space"), bool(theirs)


def _state(part: Any) -> dict[str, Any]:
    found = {} if part is None else json.loads(part.__getstate__())
    return found if isinstance(found, dict) else {}


def _json(value: Any) -> str:
    return shown(json.dumps(value)[:60])


# -- tokens that only one of them knows ------------------------------------------------------------


def strangers(tokenizer: Tokenizer, says: Settings) -> frozenset[str]:
    """Tokens that a text is split at by the other files, or by the class, and not by
    tokenizer.json, or the other way around.
    """
    ours = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    theirs = {*_named(says.config), *_named(says.special), *_contents(says.listed)}
    theirs |= {*says.added, *_unasked(says)}
    text_elsewhere = set(ours) if says.config.get("split_special_tokens") is True else set()
    otherwise = set(_split_otherwise(ours, says))
    return frozenset(theirs - set(ours) | text_elsewhere | otherwise) - {""}


def _named(says: Mapping[str, Any]) -> Iterator[str]:
    for name in SPECIAL:
        yield from _contents(says.get(f"{name}_token"))
    yield from _contents(says.get(_ADDITIONAL))


def _split_otherwise(ours: Mapping[str, AddedToken], says: Settings) -> Iterator[str]:
    """Tokens that take the blanks beside them here and not there."""
    for content, flags in _flags(says):
        token = ours.get(content)
        if token is not None and any(getattr(token, name) != flag for name, flag in flags.items()):
            yield content


def _flags(says: Settings) -> Iterator[tuple[str, dict[str, bool]]]:
    """Tokens whose flags are set, whatever tokenizer.json says, and the flags."""
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    for token in says.listed:
        if isinstance(token, dict) and isinstance(_spelled(token), str):
            said = {name: bool(token[name]) for name in (*plain, "normalized") if name in token}
            yield _spelled(token), plain | said
    for role, flags in FLAGS_OF.get(says.kind, {}).items():
        if says.is_unasked(role):
            yield says.token(role), {**plain, **flags}


def _unasked(says: Settings) -> Iterator[str]:
    """Tokens that no file names and the class knows."""
    yield from (t for role, t in TOKENS_OF.get(says.kind, {}).items() if says.is_unasked(role))
    if not (says.config.get(_ADDITIONAL) or says.special.get(_ADDITIONAL)):
        yield from EXTRA_OF.get(says.kind, [])


def _contents(value: Any) -> Iterator[str]:
    """The spelling of a token, or of each in a list."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(content := _spelled(one), str):
            yield content


def _spelled(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def refuse(text: str, unlike: str, unknown: frozenset[str]) -> None:
    """Raises ReflError for a text that the two files take apart in two ways."""
    if unlike:
        raise ReflError(unlike)
    for token in sorted(unknown):
        if token in text:
            raise ReflError(
                f"the text has {shown(token[:60])!r}, which tokenizer.json and the files beside it "
                f"(tokenizer_config.json, special_tokens_map.json, added_tokens.json, or the "
                f"model_type where they are silent) take differently: {_REMEDY}"
            )
