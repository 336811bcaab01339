"""Text to token ids and back, by the checkpoint's own tokenizer.json (the `tokenizers` library
reads it).

A vocabulary spells its entries for the machine: SentencePiece writes a space as U+2581 and a lone
byte as <0x0A>, GPT-2 writes every byte as a printable character. `tokens` turns them into what a
reader expects.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from refl.errors import ReflError, nearest, shown
from refl.io import tokenizer_config
from refl.io.files import list_folder, read_bytes
from refl.io.tokenizer_process import TokenizerProcess

_TOKENIZER_LIMIT = 128 << 20  # the largest published ones are near 32 MiB

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_NOT_UNICODE = re.compile("[\udc80-\udcff]")  # how surrogateescape keeps such a byte


class Text:
    """The tokenizer of a checkpoint."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        around: tuple[list[int], list[int]] | None = None,
        process: TokenizerProcess | None = None,
        unlike: str = "",
        strangers: frozenset[str] = frozenset(),
    ) -> None:
        """`around`: ids to put before and after a text; None leaves that to the tokenizer's
        post-processor. `process`: encodes and decodes; None does it here, for a tokenizer that is
        known to be well-behaved. `unlike`: how tokenizer_config.json contradicts tokenizer.json;
        `strangers`: tokens that only one of them knows.
        """
        # an input is explained as it was given: whole, and nothing beside it
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._around = around
        self._process = process
        self._unlike, self._strangers = unlike, strangers
        added = tokenizer.get_added_tokens_decoder()
        self._added: dict[int, str] = {number: token.content for number, token in added.items()}
        self._special = frozenset(number for number, token in added.items() if token.special)
        kinds = _kinds(tokenizer.decoder) | _kinds(tokenizer.pre_tokenizer)
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds

    @classmethod
    def load(cls, folder: str | Path, *, trusted: bool = False) -> Text | None:
        """The tokenizer in a checkpoint folder; None where it has no tokenizer.json. One that is
        not `trusted` runs in a process of its own.

        Raises ReflError for a tokenizer.json or tokenizer_config.json that cannot be read.
        """
        names = list_folder(folder)
        if "tokenizer.json" not in names:
            return None
        tokenizer, process = _parse(Path(folder) / "tokenizer.json", trusted)
        says = tokenizer_config.read(Path(folder), names)
        return cls(
            tokenizer,
            tokenizer_config.ids_around(tokenizer, says),
            process,
            tokenizer_config.disagreement(tokenizer, says),
            tokenizer_config.strangers(tokenizer, says),
        )

    @property
    def mask(self) -> int | None:
        """Id of the token that stands for a hidden one; None where the vocabulary has none."""
        names = ("[MASK]", "<mask>")
        return next(
            (i for name in names if (i := self._tokenizer.token_to_id(name)) is not None), None
        )

    @property
    def pad(self) -> int | None:
        """Id of the token that stands for nothing; None where the vocabulary has none."""
        names = ("[PAD]", "<pad>", "<PAD>")
        return next(
            (i for name in names if (i := self._tokenizer.token_to_id(name)) is not None), None
        )

    def __len__(self) -> int:
        """How many entries the vocabulary has, special tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, with the special tokens the checkpoint expects around it.

        Raises ReflError for text that is empty, holds half a character, or comes to no token at
        all.
        """
        before, after = self._around or ([], [])
        ids = [*before, *self._ids(text, add_special_tokens=self._around is None), *after]
        if not ids:
            raise ReflError(
                f"{text!r} comes to no token here: expected text the tokenizer does not drop"
            )
        return ids

    def encode_bare(self, text: str) -> list[int]:
        """The token ids of `text` and nothing beside them; none where the tokenizer drops it all.

        Raises ReflError for text that is empty or holds half a character.
        """
        return self._ids(text, add_special_tokens=False)

    def pair(self, text: str, second: str) -> tuple[list[int], list[int], list[bool]]:
        """Token ids of two texts as the checkpoint joins them, the token types of its template, and
        which tokens are of the second text, special ones being of neither. Raises ReflError as
        `encode` does, and where special tokens are put around a text in a way that says nothing of
        two.
        """
        if self._around is not None:
            raise ReflError("this tokenizer joins no pairs of texts: give one text")
        ids, types, sequences, _ = self._encoding(text, second)
        return ids, types, [sequence == 1 for sequence in sequences]

    def unknown_words(self, text: str, second: str | None = None) -> list[str]:
        """Words of a text that the vocabulary lacks, as they are written, each once."""
        ids, _, sequences, offsets = self._encoding(text, second)
        words = []
        for number, sequence, (start, end) in zip(ids, sequences, offsets, strict=True):
            if number == self._unknown and sequence is not None:
                words.append((text if sequence == 0 else second or "")[start:end])
        spelled = None if self._unknown is None else self._tokenizer.id_to_token(self._unknown)
        return [word for word in dict.fromkeys(words) if word not in ("", spelled)]

    def spans(self, text: str) -> list[tuple[int, int] | None]:
        """For each token of `encode(text)` the characters it stands for, from and to; None for one
        that was put around the text. Raises ReflError as `encode` does.
        """
        before, after = self._around or ([], [])
        _, _, sequences, offsets = self._encoding(text, None)
        inside = [
            None if sequence is None else (int(start), int(end))
            for sequence, (start, end) in zip(sequences, offsets, strict=True)
        ]
        return [*[None] * len(before), *inside, *[None] * len(after)]

    @property
    def unknown(self) -> int | None:
        """Id of the token that stands for what the vocabulary lacks; None where there is none."""
        return self._unknown

    @property
    def special(self) -> frozenset[int]:
        """Ids of tokens that are no text: what begins, ends, parts or pads one, and the mask. The
        token for what the vocabulary lacks is none of them.
        """
        return self._special - {self._unknown}

    def _encoding(self, text: str, second: str | None) -> list[Any]:
        """Ids, token types, which text each token is of, and where it stands there."""
        text, second = _checked(text), None if second is None else _checked(second)
        tokenizer_config.refuse(f"{text}\0{second or ''}", self._unlike, self._strangers)
        special = self._around is None
        try:
            if self._process is not None:
                return list(self._process.ask("encoding", text, second, special))
            e = self._tokenizer.encode(text, second, add_special_tokens=special)
            return [e.ids, e.type_ids, e.sequence_ids, e.offsets]
        except Exception as error:  # noqa: BLE001 - the library raises no narrower class
            raise ReflError(
                f"the tokenizer cannot encode {shown(text[:40])!r}: {shown(error)}"
            ) from None

    def vocabulary(self) -> list[str]:
        """Its entries as a reader expects them, in the order of their ids."""
        entries = self._tokenizer.get_vocab(with_added_tokens=True)
        return [self._piece(number) for number in sorted(entries.values())]

    # -- words -------------------------------------------------------------------------------------

    def starts(self, ids: Sequence[int]) -> list[bool]:
        """For each token whether a word starts there.

        WordPiece says so of a piece that goes on (##ing); byte-level BPE, SentencePiece and a
        vocabulary of characters start a word by its blank, CLIP's BPE ends it (</w>). Elsewhere,
        and special tokens everywhere, every token is a word.
        """
        found = [True] * len(ids)
        # a character that the vocabulary lacks is one of a word
        apart = self.special if self._of_characters else self._added.keys()
        for t in range(1, len(ids)):
            before, this = ids[t - 1], ids[t]
            if before not in apart and this not in apart:
                found[t] = self._starts(before, this)
        return found

    def _starts(self, before: int, this: int) -> bool:
        entry = str(self._tokenizer.id_to_token(this))
        if self._continuing:
            return not entry.startswith(self._continuing)
        if self._ending:
            return str(self._tokenizer.id_to_token(before)).endswith(self._ending)
        return not self._by_blanks or self._piece(this)[:1].isspace()

    @cached_property
    def _continuing(self) -> str:
        """What a piece begins with that goes on a word."""
        return str(getattr(self._tokenizer.model, "continuing_subword_prefix", None) or "")

    @cached_property
    def _ending(self) -> str:
        """What the last piece of a word ends with."""
        return str(getattr(self._tokenizer.model, "end_of_word_suffix", None) or "")

    @cached_property
    def _by_blanks(self) -> bool:
        """Whether a word brings the blank before it."""
        pieces = any(len(e) > 1 and e[0] == "\u2581" for e in self._text_entries)
        return self._byte_level or pieces or self._of_characters

    @cached_property
    def _of_characters(self) -> bool:
        """Whether the vocabulary has single characters (and lone bytes) alone, a blank too."""
        single = all(len(e) == 1 or _BYTE_TOKEN.fullmatch(e) for e in self._text_entries)
        return single and any(e == "\u2581" or e.isspace() for e in self._text_entries)

    @cached_property
    def _text_entries(self) -> list[str]:
        """Entries of the vocabulary, less what was added to it and what stands for the unknown."""
        spelled = self._tokenizer.get_vocab(with_added_tokens=False)
        apart = {*self._added, self._unknown}
        return [entry for entry, number in spelled.items() if number not in apart]

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        text = _checked(text)
        tokenizer_config.refuse(text, self._unlike, self._strangers)
        try:
            if self._process is not None:
                return list(self._process.ask("encode", text, add_special_tokens))
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower class
            raise ReflError(
                f"the tokenizer cannot encode {shown(text[:40])!r}: {shown(error)}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens.
        Raises ReflError for an id outside the vocabulary.
        """
        known = [self._check(i) for i in ids]
        try:
            if self._process is not None:
                return str(self._process.ask("decode", known))
            return str(self._tokenizer.decode(known, skip_special_tokens=True))
        except Exception as error:  # noqa: BLE001 - the library raises no narrower class
            raise ReflError(f"the tokenizer cannot decode these ids: {shown(error)}") from None

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Each id as a reader expects it, special tokens as they are spelled, lone bytes as <0xE2>;
        <id 32000> for one without an entry: models are often padded beyond their vocabulary.

        Raises ReflError for what is no id at all.
        """
        return [self._piece(self._id(i)) for i in ids]

    def _id(self, token: int) -> int:
        number = operator.index(token)
        if not 0 <= number < 1 << 32:
            raise self._no_entry(number)
        return number

    def _no_entry(self, number: int) -> ReflError:
        return ReflError(
            f"token id {number} is not in the vocabulary, which has {len(self)} entries"
        )

    def _check(self, token: int) -> int:
        number = self._id(token)
        if self._tokenizer.id_to_token(number) is None:
            raise self._no_entry(number)
        return number

    def _piece(self, number: int) -> str:
        if number in self._added:
            return self._added[number]
        if (found := self._tokenizer.id_to_token(number)) is None:
            return f"<id {number}>"
        entry = str(found)
        if self._byte_level:
            return (
                _readable(bytes(map(_BYTES.__getitem__, entry)))
                if _BYTES.keys() >= set(entry)
                else entry
            )
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(entry)):
            return _readable(bytes.fromhex(byte[1]))
        return entry.replace("\u2581", " ")

    @cached_property
    def _by_piece(self) -> dict[str, int]:
        """Piece to id; where two read the same, an entry of text wins
        over a lone byte, then the lower id.
        """
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        order = sorted(
            vocabulary.items(), key=lambda item: (bool(_BYTE_TOKEN.fullmatch(item[0])), item[1])
        )
        return {self._piece(number): number for _, number in reversed(order)}

    def id_of(self, token: str) -> int:
        """The id that `token` names: the vocabulary's own spelling, else text that is one token.

        Text is tried with a space before it, then as it stands: within a sentence most words follow
        one. Raises ReflError for text of several tokens, and for text the vocabulary lacks.
        """
        exact = self._tokenizer.token_to_id(_checked(token))
        if exact is not None:
            return int(exact)
        for text in (token,) if token[0].isspace() else (" " + token, token):
            if (found := self._single(text)) is not None:
                return found
        raise self._no_single(token)

    def _single(self, text: str) -> int | None:
        if text in self._by_piece:
            return self._by_piece[text]
        ids: list[int] = []
        # a word list without an entry for the unknown encodes nothing else
        with suppress(ReflError):
            ids = self.encode_bare(text)  # the tokenizer may lower case, strip or compose
        return ids[0] if len(ids) == 1 and ids[0] != self._unknown else None

    @cached_property
    def _unknown(self) -> int | None:
        model = self._tokenizer.model
        if isinstance(model, Unigram):  # keeps it to itself
            unknown = json.loads(model.__getstate__())["unk_id"]
        else:
            unknown = self._tokenizer.token_to_id(model.unk_token or "")
        return None if unknown is None else int(unknown)

    def _no_single(self, token: str) -> ReflError:
        ids = self.encode_bare(token)
        lost = self._unknown in ids and self._piece(self._unknown) not in token
        if len(ids) > 1 and not lost:
            pieces = ", ".join(map(repr, self.tokens(ids[:8]))) + (", ..." if len(ids) > 8 else "")
            return ReflError(
                f"expected one token, {token!r} is {len(ids)} here: {pieces}; name one of them"
            )
        alike = [*nearest(token, self._by_piece, 5), *nearest(" " + token, self._by_piece, 5)]
        near = ", ".join(map(repr, dict.fromkeys(alike))) or "none"
        return ReflError(f"{token!r} is not in the vocabulary; nearest entries: {near}")


def _checked(text: str) -> str:
    """`text` itself. Raises ReflError where it is empty,
    or no Unicode (an argument of undecodable bytes).
    """
    if not text:
        raise ReflError("expected text, got an empty string: to start from nothing, give token ids")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ReflError(f"expected text in Unicode, got half of a character: {error}") from None
    return text


def _parse(path: Path, trusted: bool) -> tuple[Tokenizer, TokenizerProcess | None]:
    """The tokenizer, once a process that may die of it has read it."""
    data = read_bytes(path, _TOKENIZER_LIMIT)
    process = None if trusted else TokenizerProcess(data)
    try:
        if process is not None:
            process.start()
        return Tokenizer.from_buffer(data), process
    except Exception as error:  # noqa: BLE001 - the library raises no narrower class
        raise ReflError(f"{shown(path)} is not a readable tokenizer: {shown(error)}") from None


def _kinds(part: Any) -> set[str]:
    """The `type` of a decoder or pre-tokenizer and of all it is made of."""
    return (
        set() if part is None else set(re.findall(r'"type":"(\w+)"', part.__getstate__().decode()))
    )


def _readable(raw: bytes) -> str:
    """Bytes as text, each byte that is no part of a character as <0x..>."""
    text = raw.decode("utf-8", "surrogateescape")
    return _NOT_UNICODE.sub(lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)


def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's alphabet: the printable bytes stand for themselves,
    the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTES = _gpt2_bytes()
