"""refl.io.text against transformers and the checkpoints' stored ids,
and what a target may be called.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from checkpoints import checkpoint
from tokenizers import (  # type: ignore[import-untyped]
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from refl.errors import ReflError
from refl.io.text import Text

NAMES = ["stories260K", "babyllama105", "capp_gpt2", "nano_sort_gpt2", "rxnmapper_albert"]
PART = "geometry_prismatic|holes_normal|external_threads_yes|surface_finish_normal|tolerance_medium"
PART += "|batch_size_small<SOS>"
CORPUS = [
    "The keys to the cabinet are on the table.",
    "Über 3 naïve cafés — 東京 🎉!",
    "a\tb\n\nc  d",
] * 3
TEXTS = [
    *CORPUS,
    "x",
    " leading",
    "trailing ",
    "two  spaces",
    "A",
    "C",
    "CC(=O)O",
    "Turning|Milling",
    "😀",
    "\x00",
]


def text_of(folder: Path) -> Text:
    """Read here: tests/refl/test_tokenizer_process.py holds the process of its own to the same."""
    text = Text.load(folder, trusted=True)
    assert text is not None
    return text


def peer(folder: Path) -> Any:
    """The same tokenizer as transformers loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        if (folder / "tokenizer_config.json").exists():
            return transformers.AutoTokenizer.from_pretrained(str(folder))
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


# --- tokenizers made here -------------------------------------------------------------------------


def byte_level() -> Tokenizer:
    """GPT-2's kind: every byte is in the alphabet, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("éclair", normalized=False)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Llama's kind: U+2581 for a space, bytes for what the vocabulary lacks; no post-processor."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdehikst", "▁t", "he", "▁the", "▁▁"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁key", -1.0), ("s", -1.5)], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "key": 4, "##s": 5, "cabinet": 6}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path, config: Any = None) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# --- encode and decode ----------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_same_ids_as_transformers(name: str) -> None:
    folder = checkpoint(name)
    text, other = text_of(folder), peer(folder)
    assert len(text) == len(other)
    for sample in TEXTS:
        if expected := other(sample).input_ids:
            assert text.encode(sample) == expected
            assert text.decode(expected) == other.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize(
    "name, sample",
    [
        ("stories260K", "Once upon a time, there was a little girl named Lily. She"),
        ("babyllama105", "Once upon a time, there was a little girl named"),
        ("capp_gpt2", PART),
        ("nano_sort_gpt2", "BACBCC"),
    ],
)
def test_stored_ids(name: str, sample: str) -> None:
    """The ids that the checkpoint's stored outputs were computed from."""
    folder = checkpoint(name)
    with numpy.load(folder / "golden.npz") as golden:
        ids = golden["input_ids"][0]
    assert text_of(folder).encode(sample) == ids.tolist()
    assert "".join(text_of(folder).tokens(ids)).replace("<s>", "").strip() == sample.replace(
        "|", ""
    )


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_round_trip(make: Any, tmp_path: Path) -> None:
    text = text_of(saved(make(), tmp_path))
    for sample in TEXTS:
        assert text.decode(text.encode(sample)) == sample


LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


BOS_CASES: list[tuple[dict[str, Any] | None, list[int], list[int]]] = [
    (None, [], []),
    ({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}, [], []),
    (
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "add_bos_token": False,
        },
        [],
        [],
    ),
    (LLAMA, [1], []),
    (LLAMA | {"add_bos_token": True}, [1], []),
    (LLAMA | {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, [1], []),
    (LLAMA | {"add_bos_token": True, "add_eos_token": True}, [1], [2]),
    (LLAMA | {"add_bos_token": False, "add_eos_token": True}, [], [2]),
    (LLAMA | {"add_bos_token": False}, [], []),
    (
        LLAMA | {"bos_token": {"content": "<s>", "__type": "AddedToken", "special": True}},
        [1],
        [],
    ),
]
"""tokenizer_config.json, and the ids it sets before and after a text."""


def llama_folder(folder: Path, config: dict[str, Any] | None, own: bool) -> Path:
    """With a tokenizer.json that adds a BOS token itself (`own`), or none."""
    tokenizer = metaspace()
    if own:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A", "<s> $A $B", [("<s>", 1)]
        )
    return saved(tokenizer, folder, config)


@pytest.mark.parametrize("config, before, after", BOS_CASES)
@pytest.mark.parametrize("own", [False, True])
def test_the_bos_token_of_llama_folders(
    tmp_path: Path,
    config: dict[str, Any] | None,
    before: list[int],
    after: list[int],
    own: bool,
) -> None:
    """tokenizer_config.json decides it, whether or not tokenizer.json adds one itself."""
    plain = metaspace().encode("the cat", add_special_tokens=False).ids
    if config is None or config["tokenizer_class"].startswith("PreTrained"):
        before = [1] if own else []
    folder = llama_folder(tmp_path, config, own)
    assert text_of(folder).encode("the cat") == [*before, *plain, *after]


@pytest.mark.peers
@pytest.mark.parametrize("config", [config for config, _, _ in BOS_CASES if config is not None])
@pytest.mark.parametrize("own", [False, True])
def test_the_bos_token_as_transformers_sets_it(
    tmp_path: Path, config: dict[str, Any], own: bool
) -> None:
    folder = llama_folder(tmp_path, config, own)
    assert text_of(folder).encode("the cat") == peer(folder)("the cat").input_ids


def test_a_bos_token_that_is_not_there(tmp_path: Path) -> None:
    for token in ("<start>", "", None, 7, {"content": None}):
        with pytest.raises(ReflError, match="asks for bos_token .* which tokenizer.json lacks"):
            Text.load(saved(metaspace(), tmp_path, LLAMA | {"bos_token": token}))


def test_a_bos_token_asked_for_without_a_class(tmp_path: Path) -> None:
    folder = saved(metaspace(), tmp_path, {"add_bos_token": True})
    assert text_of(folder).encode("the") == [1, *metaspace().encode("the").ids]
    assert text_of(saved(metaspace(), tmp_path, {"add_bos_token": False})).encode("the")[0] != 1


def test_nothing_is_cut_or_padded(tmp_path: Path) -> None:
    """A tokenizer.json may ask for both; an explanation is of the input as it was given."""
    tokenizer = metaspace()
    whole = tokenizer.encode("the cat").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=40)
    assert text_of(saved(tokenizer, tmp_path)).encode("the cat") == whole


# --- pieces ---------------------------------------------------------------------------------------


def test_pieces_of_a_byte_level_vocabulary(tmp_path: Path) -> None:
    text = text_of(saved(byte_level(), tmp_path))
    pieces = text.tokens(text.encode("are the\n\n🦉 é<|endoftext|>éclair"))
    assert "".join(pieces).startswith("are the\n\n") and " the" in pieces
    assert "<|endoftext|>" in pieces and "éclair" in pieces, (
        "added tokens are not spelled in the byte alphabet"
    )
    assert "<0xF0>" in "".join(pieces) and "\ufffd" not in "".join(pieces)
    assert not {"Ġ", "Ċ"} & set("".join(pieces))


def test_every_byte_has_its_piece(tmp_path: Path) -> None:
    """Both alphabets, all 256 bytes: ASCII as it is, the others (no character alone) as <0x..>."""
    expected = [chr(byte) if byte < 0x80 else f"<0x{byte:02X}>" for byte in range(256)]
    text, tokenizer = text_of(saved(metaspace(), tmp_path)), metaspace()
    assert text.tokens(tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)) == expected
    tokenizer = byte_level()
    text = text_of(saved(tokenizer, tmp_path))
    single = [
        i for piece, i in tokenizer.get_vocab(with_added_tokens=False).items() if len(piece) == 1
    ]
    assert len(single) == 256 and sorted(text.tokens(single)) == sorted(expected)


def test_pieces_make_the_text(tmp_path: Path) -> None:
    """Where no character is split, the pieces in a row are the text
    (after SentencePiece's first space).
    """
    for make, before in ((byte_level, ""), (metaspace, " ")):
        text = text_of(saved(make(), tmp_path))
        for sample in ("The keys to the cabinet are on the table.", "a\tb\n\nc  d"):
            assert "".join(text.tokens(text.encode(sample))) == before + sample


def test_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    """A table is often longer than the vocabulary: such an id is no text, but it is shown."""
    text = text_of(saved(unigram(), tmp_path))
    for number in (-1, 4, 1 << 31, 1 << 32, 1 << 64):
        uses = (text.decode,) if number in (4, 1 << 31) else (text.tokens, text.decode)
        for use in uses:
            with pytest.raises(
                ReflError, match=f"token id {number} is not in the vocabulary, which has 4 entries"
            ):
                use([number])
    assert text.tokens([2, 4, 1 << 31]) == [" key", "<id 4>", f"<id {1 << 31}>"]
    assert (
        text.tokens(numpy.array([2, 3])) == [" key", "s"]
        and text.decode(numpy.array([2, 3])) == "keys"
    )


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_of_a_vocabulary_names_itself(name: str) -> None:
    folder = checkpoint(name)
    text = text_of(folder)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert all(text.id_of(entry) == number for entry, number in vocabulary.items())


@pytest.mark.parametrize("name", NAMES)
def test_what_tokens_shows_can_be_given_back(name: str) -> None:
    """The id of a shown piece is shown as that piece again
    (with the space before it, where both exist).
    """
    text = text_of(checkpoint(name))
    for piece in text.tokens(range(len(text))):
        assert text.tokens([text.id_of(piece)])[0] in (piece, " " + piece)


def test_a_target_in_llamas_spelling(tmp_path: Path) -> None:
    text, tokenizer = text_of(saved(metaspace(), tmp_path)), metaspace()

    def entry_of(target: str) -> str:
        return str(tokenizer.id_to_token(text.id_of(target)))

    assert entry_of("▁the") == "▁the", "the vocabulary's own spelling"
    assert entry_of("the") == entry_of(" the") == "▁the"
    assert entry_of("t") == "t", "an exact entry comes before one with a space"
    assert entry_of("he") == "he" and entry_of("\n") == "<0x0A>" and entry_of(" ") == "▁"
    assert entry_of("<0x0A>") == "<0x0A>" and entry_of("</s>") == "</s>"


def test_a_target_in_gpt2s_spelling(tmp_path: Path) -> None:
    text, tokenizer = text_of(saved(byte_level(), tmp_path)), byte_level()
    vocabulary = tokenizer.get_vocab()
    words = (
        piece
        for piece in vocabulary
        if piece[0] == "Ġ" and piece[1:].isalpha() and piece[1:].isascii()
    )
    spaced = max(words, key=len)
    assert text.id_of(spaced) == text.id_of(" " + spaced[1:]) == vocabulary[spaced]
    assert text.id_of(spaced[1:]) == vocabulary.get(spaced[1:], vocabulary[spaced])
    assert (
        text.id_of("\n") == vocabulary["Ċ"]
        and text.id_of("<|endoftext|>") == vocabulary["<|endoftext|>"]
    )


def test_a_target_the_tokenizer_rewrites(tmp_path: Path) -> None:
    text = text_of(saved(wordpiece(), tmp_path))
    assert text.id_of("Cabinet") == 6 and text.id_of("##s") == 5 and text.id_of("KEY") == 4
    with pytest.raises(
        ReflError, match=r"expected one token, 'Keys' is 2 here: 'key', '##s'; name one of them"
    ):
        text.id_of("Keys")


@pytest.mark.parametrize(
    "make, target, says",
    [
        (
            metaspace,
            "the cat",
            r"'the cat' is 5 here: ' the', ' ', 'c', 'a', 't'; name one of them",
        ),
        (metaspace, "the" * 9, r"is \d+ here: .*, \.\.\.; name one of them"),
        (metaspace, "é", r"'é' is 3 here: ' ', '<0xC3>', '<0xA9>'; name one of them"),
        (unigram, "kez", "'kez' is not in the vocabulary; nearest entries: ' key'"),
        (unigram, "zzz", "'zzz' is not in the vocabulary; nearest entries: none"),
        (
            wordpiece,
            "cabinets!",
            r"'cabinets!' is not in the vocabulary; nearest entries: 'cabinet'",
        ),
    ],
)
def test_what_is_no_target(tmp_path: Path, make: Any, target: str, says: str) -> None:
    with pytest.raises(ReflError, match=says):
        text_of(saved(make(), tmp_path)).id_of(target)


def test_the_unknown_token_is_no_answer() -> None:
    """nano_sort_gpt2 reads whatever it does not know as A."""
    text = text_of(checkpoint("nano_sort_gpt2"))
    assert [text.id_of(letter) for letter in "ABC"] == [0, 1, 2]
    with pytest.raises(ReflError, match="'Z' is not in the vocabulary"):
        text.id_of("Z")
    with pytest.raises(ReflError, match="'AB' is 2 here: 'A', 'B'"):
        text.id_of("AB")


# --- bad input ------------------------------------------------------------------------------------


def test_text_that_cannot_be_encoded(tmp_path: Path) -> None:
    text = text_of(saved(byte_level(), tmp_path))
    for use in (text.encode, text.id_of):
        with pytest.raises(ReflError, match="expected text, got an empty string"):
            use("")
        with pytest.raises(ReflError, match="half of a character"):
            use("a\ud800")
    dropping = text_of(checkpoint("capp_gpt2"))
    with pytest.raises(ReflError, match="comes to no token here"):
        dropping.encode("|")
    with pytest.raises(ReflError, match="'|' is not in the vocabulary"):
        dropping.id_of("|")


def test_a_word_list_without_an_entry_for_the_unknown(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    text = text_of(saved(tokenizer, tmp_path))
    assert text.encode("a") == [0] and text.id_of("a") == text.id_of("A") == 0
    with pytest.raises(ReflError, match="the tokenizer cannot encode 'hello'"):
        text.encode("hello")


def test_no_tokenizer(tmp_path: Path) -> None:
    assert Text.load(tmp_path) is None
    with pytest.raises(ReflError, match="nowhere does not exist"):
        Text.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": "1.0"}',
        b'{"version": "9.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}',
        b'{"model": {"type": "Unigram", "vocab": [], "unk_id": 5}}',
    ],
)
def test_broken_tokenizer(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ReflError, match=r"tokenizer\.json is not a readable tokenizer") as caught:
        Text.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_tokenizer_config(tmp_path: Path) -> None:
    saved(metaspace(), tmp_path)
    for data, says in (
        (b"{", "not valid JSON"),
        (b"[]", "holds a list"),
        (b'{"tokenizer_class": "LlamaTokenizer", "add_bos_token": "false"}', "add_bos_token"),
        (b'{"tokenizer_class": "LlamaTokenizer", "add_eos_token": 1}', "expected true or false"),
        (b'{"tokenizer_class": "LlamaTokenizer", "bos_token": ["<s>"]}', "asks for bos_token"),
    ):
        (tmp_path / "tokenizer_config.json").write_bytes(data)
        with pytest.raises(ReflError, match=says):
            Text.load(tmp_path)


def test_a_tokenizer_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ReflError, match="is a folder, pipe or device"):
        Text.load(tmp_path)


def test_fuzz(tmp_path: Path) -> None:
    """A dozen damaged tokenizers: each is refused, or answers every question or raises ReflError;
    quality/fuzz_checkpoints.py has thousands.
    """
    good, rng, read = (
        saved(metaspace(), tmp_path).joinpath("tokenizer.json").read_bytes(),
        random.Random(1),
        0,
    )
    for _ in range(12):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            bad[rng.randrange(len(bad))] = rng.choice(b'0123456789,:[]{}" abFIU-.e<>\xff')
        (tmp_path / "tokenizer.json").write_bytes(bad)
        read += questions(tmp_path)
    assert 0 < read < 12


def questions(folder: Path) -> bool:
    try:
        text = Text.load(folder)
    except ReflError:
        return False
    assert text is not None
    for ask in (
        lambda: text.tokens(text.encode("the cat")),
        lambda: text.id_of("the"),
        lambda: text.decode([262]),
    ):
        try:
            ask()
        except ReflError as error:
            assert str(error)
    return True
