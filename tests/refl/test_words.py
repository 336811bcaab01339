"""Text beyond tokens: words put together from pieces, words that a vocabulary lacks, pairs of texts
as encoders read them. Expected ids and types are those of the tokenizers library.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

import refl
from refl.cli import main
from refl.errors import UnknownWords
from refl.io.text import Text
from refl.model import Model
from refl.verification.random_models import BERT, LLAMA, random_model

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "key",
    "##s",
    "to",
    "cab",
    "##in",
    "##et",
    ",",
    "who",
    "?",
    "un",
]


def wordpiece() -> Tokenizer:
    t = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    t.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    t.decoder = decoders.WordPiece()
    return t


CLASSES = BERT | {
    "num_hidden_layers": 1,
    "vocab_size": len(PIECES),
    "architectures": ["BertForSequenceClassification"],
}


def encoder() -> Model:
    return replace(random_model(CLASSES, 0), text=Text(wordpiece()))


def said(e: Any, **how: Any) -> list[tuple[str, int, int]]:
    return [(w.text, w.start, w.stop) for w in e.words(**how)]


# -- words -----------------------------------------------------------------------------------------


def test_pieces_of_words() -> None:
    e = encoder().explain("The keys, to the cabinet")
    assert said(e) == [
        ("[CLS]", 0, 1), ("the", 1, 2), ("keys", 2, 4), (",", 4, 5), ("to", 5, 6), ("the", 6, 7),
        ("cabinet", 7, 10), ("[SEP]", 10, 11),
    ]  # fmt: skip
    for word in e.words():
        parts = [float(r) for r in e.relevance[word.start : word.stop]]
        assert word.relevance == math.fsum(parts)
    covered = [t for w in e.words() for t in range(w.start, w.stop)]
    assert covered == list(range(len(e.tokens)))


def bpe(tokens: list[str], metaspace: bool) -> Text:
    """Every character, and the tokens as merges of what is before them."""
    alphabet = sorted({c for token in tokens for c in token} | set("Ġ▁"))
    vocabulary, merges = {c: i for i, c in enumerate(alphabet)}, []
    for token in tokens:
        for n in range(2, len(token) + 1):
            if token[:n] not in vocabulary:
                vocabulary[token[:n]] = len(vocabulary)
                merges.append((token[: n - 1], token[n - 1]))
    t = Tokenizer(models.BPE(vocabulary, merges))
    if metaspace:
        t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
    t.add_special_tokens(["<s>"])
    return Text(t)


@pytest.mark.parametrize("metaspace", [False, True])
def test_words_that_bring_their_blanks(metaspace: bool) -> None:
    blank = "▁" if metaspace else "Ġ"
    text = bpe(["the", f"{blank}ke", f"{blank}cab", "ys", "inet"], metaspace)
    model = replace(random_model(LLAMA | {"vocab_size": len(text)}, 0), text=text)
    ids = [*model.encode("<s>"), *model.encode("the keys<s>cabinet")]
    words = model.explain(ids).words()
    assert [w.text for w in words] == ["<s>", "the", "keys", "<s>", "cabinet"]
    assert sum(w.stop - w.start for w in words) == len(ids) > len(words)


def test_bytes_of_one_character() -> None:
    text = bpe(["the"], metaspace=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, []))
    t.pre_tokenizer, t.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    text = Text(t)
    model = replace(random_model(LLAMA | {"vocab_size": len(text)}, 0), text=text)
    words = model.explain("né 猫").words()
    assert [w.text for w in words] == ["né", "猫"] and [w.stop for w in words] == [3, 7]


def test_where_every_token_is_a_word(tmp_path: Path) -> None:
    e = refl.load().explain("the keys to the cabinet", contrast=("are", "is"))
    assert [w.text for w in e.words()] == e.tokens
    e.save(tmp_path / "e.safetensors")
    again = refl.Explanation.load(tmp_path / "e.safetensors")
    assert again.words() == e.words() and again.against_logit == e.against_logit


def characters(blank: str) -> Text:
    """Single characters, one added later, a lone byte; special tokens may be longer."""
    entries = ["<s>", "<unk>", blank, *"aehkst", "<0x0A>"]
    t = Tokenizer(models.BPE({e: i for i, e in enumerate(entries)}, [], unk_token="<unk>"))
    t.add_special_tokens(["<s>", "<unk>"])
    t.add_tokens(["y"])
    return Text(t)


@pytest.mark.parametrize("blank", [" ", "\u2581"])
def test_words_of_characters(blank: str) -> None:
    """A blank starts a word, a character that is not known is one of its word."""
    text = characters(blank)
    ids = [0, *text.encode_bare(f"the{blank}keys{blank}{blank}th?se")]
    starts = text.starts(ids)
    first = [t for t, starting in enumerate(starts) if starting]
    parts = [text.tokens(ids[a:b]) for a, b in zip(first, [*first[1:], len(ids)], strict=True)]
    words = ["<s>", "the", " keys", " ", " th<unk>se"]
    assert ["".join(part) for part in parts] == words


def test_characters_without_a_blank_are_words() -> None:
    """Where no word can be told from another; and where one entry has several characters."""
    assert all(characters("d").starts([3, 4, 5]))
    t = Tokenizer(models.WordLevel({"<s>": 0, " ": 1, "a": 2, "ab": 3}))
    assert all(Text(t).starts([2, 3, 1, 2]))


def test_words_that_nobody_knows() -> None:
    e = random_model(LLAMA, 0).explain([1, 2])
    with pytest.raises(refl.ReflError, match="nothing is known of words in the input"):
        e.words()
    with pytest.raises(refl.ReflError, match="what a decoder wrote"):
        refl.load().explain("the keys").words(decoder=True)


def test_the_second_logit_of_a_contrast() -> None:
    model = refl.load()
    e = model.explain("the keys", contrast=("are", "is"))
    row = model.logits("the keys")[-1]
    assert e.against_logit == pytest.approx(float(row[model.token_id("is")]), rel=1e-6)
    assert e.explained == pytest.approx(e.logit - e.against_logit, rel=1e-5)
    assert model.explain("the keys").against_logit is None


# -- words that a vocabulary lacks -----------------------------------------------------------------


def test_unknown_words_are_named() -> None:
    model = refl.load()
    with pytest.warns(UnknownWords) as caught:
        model.explain("the zebra and the keys of quux zebra", keep=())
    (warning,) = caught
    words = str(warning.message)
    assert "'zebra'" in words and words.count("zebra") == 1 and "'quux'" in words
    assert "'keys'" not in words and "<unk>" in words and "\n" not in words
    assert "zebra" not in model.text.vocabulary() and "keys" in model.text.vocabulary()


def test_known_words_and_ids_are_no_reason_to_warn() -> None:
    model, pieces = refl.load(), encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.explain("the keys to the cabinet", keep=())
        model.explain(model.encode("the keys"), keep=())
        pieces.explain("[UNK] the keys", keep=())  # asked for by its name
    with pytest.warns(UnknownWords, match="'Xyzzy' is not in the vocabulary"):
        pieces.explain(["the keys", "the Xyzzy"])


# -- pairs of texts --------------------------------------------------------------------------------

PAIRS = [("who", "the key to the cabinet"), ("the keys , who ?", "un")]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_read_as_the_tokenizer_joins_it(pair: tuple[str, str]) -> None:
    model, wanted = encoder(), wordpiece().encode(*pair)
    e = model.explain(pair[0], pair=pair[1])
    assert e.input_ids == wanted.ids
    typed = model.explain(wanted.ids, types=wanted.type_ids)
    assert np.array_equal(e.relevance, typed.relevance) and e.logit == typed.logit
    assert not np.array_equal(e.relevance, model.explain(wanted.ids).relevance)


def test_pairs_in_a_batch() -> None:
    model = encoder()
    batch = model.explain([a for a, _ in PAIRS], pair=[b for _, b in PAIRS])
    for e, (a, b) in zip(batch, PAIRS, strict=True):
        alone = model.explain(a, pair=b)
        assert e.input_ids == alone.input_ids
        assert np.allclose(e.relevance, alone.relevance, rtol=0, atol=1e-12)
    two = model.explain(("who", "the key"))  # a tuple of texts is a batch
    assert len(two) == 2


def test_a_template_of_more_types_than_the_net_has() -> None:
    """RoBERTa tells nothing apart, whatever its tokenizer says."""
    one = CLASSES | {"type_vocab_size": 1}
    model = replace(random_model(one, 0), text=Text(wordpiece()))
    assert model.encode_pair(*PAIRS[0]).types == [0] * len(wordpiece().encode(*PAIRS[0]).ids)


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_of_the_second_text(seed: int, kinds: int) -> None:
    """Whichever model, and whether it tells types apart or not: no special token, none of the
    question.
    """
    finder = {"architectures": ["BertForQuestionAnswering"], "id2label": None}
    config = CLASSES | finder | {"type_vocab_size": kinds}
    model = replace(random_model(config, seed), text=Text(wordpiece()))
    for question, context in PAIRS:
        e = model.explain(question, pair=context, keep=())
        second = wordpiece().encode(question, context).sequence_ids
        assert [second[t] for t in e.span] == [1, 1]
        ids = e.input_ids[e.span[0] : e.span[1] + 1]
        assert e.target.replace(" ", "") == "".join(model.text.tokens(ids)).replace("##", "")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"pair": 5}, "pair is 5: expected a string"),
        ({"pair": b"who"}, "expected a string"),
        ({"pair": ["who"]}, "expected a string"),
        ({"pair": ""}, "empty string"),
        ({"pair": "who", "types": [0, 1]}, "leave types= out"),
    ],
)
def test_what_is_no_pair(how: dict[str, Any], words: str) -> None:
    with pytest.raises(refl.ReflError, match=words):
        encoder().explain("the key", **how)
    with pytest.raises(refl.ReflError, match="input of a pair"):
        encoder().explain([5, 6], pair="who")
    with pytest.raises(refl.ReflError, match="1 second texts for 2 inputs"):
        encoder().explain(["who", "the"], pair=["key"])


def test_decoders_read_no_pairs() -> None:
    with pytest.raises(refl.ReflError, match="reads no pairs of texts"):
        refl.load().explain("the keys", pair="the cabinet")


def test_a_pair_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint_of(tmp_path / "model", CLASSES)
    wordpiece().save(str(folder / "tokenizer.json"))
    given = ["who", "--pair", "the key", "--model", str(folder)]
    e = refl.load(folder).explain("who", pair="the key")
    for command in ("explain", "trace"):
        assert main([command, *given, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["input_ids"] == e.input_ids and said["relevance"] == e.relevance.tolist()
    for more in (["--types", "0", "0"], ["--ids", "5"]):
        assert main(["explain", *(given[1:] if more[0] == "--ids" else given), *more]) == 2
        assert "--pair joins two texts" in capsys.readouterr().err
    assert main(["explain", "the keys", "--pair", "the key"]) == 2
    assert "leave --pair out" in capsys.readouterr().err


# -- files beside tokenizer.json -------------------------------------------------------------------


def beside(folder: Path, tokenizer: Tokenizer, **files: Any) -> Text:
    """A tokenizer.json, and other files that say something of it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, says in files.items():
        (folder / f"{name}.json").write_text(json.dumps(says))
    text = Text.load(folder, trusted=True)
    assert text is not None
    return text


def byte_level() -> Tokenizer:
    t = Tokenizer(models.BPE({"t": 0, "h": 1, "e": 2, "\u0120": 3, "<s>": 4}, []))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.add_special_tokens(["<s>"])
    return t


@pytest.mark.parametrize(
    ("made", "says", "words"),
    [
        (wordpiece, {"do_lower_case": False}, "do_lower_case = false, tokenizer.json for true"),
        (wordpiece, {"strip_accents": False}, "strip_accents = false, tokenizer.json for null"),
        (wordpiece, {"tokenize_chinese_chars": False}, "tokenize_chinese_chars = false"),
        (byte_level, {"add_prefix_space": True}, "add_prefix_space = true"),
    ],
)
def test_files_that_read_one_text_in_two_ways(
    tmp_path: Path, made: Any, says: dict[str, Any], words: str
) -> None:
    """transformers goes by tokenizer_config.json: other ids, another input."""
    text = beside(tmp_path, made(), tokenizer_config=says)
    for read in (text.encode, text.encode_bare, lambda t: text.pair(t, t)):
        with pytest.raises(refl.ReflError, match=words):
            read("the")
    assert text.tokens([0, 1, 2]) and text.id_of("the" if made is wordpiece else "t") >= 0
    silent = beside(tmp_path, made(), tokenizer_config={})
    assert silent.encode("the") == made().encode("the").ids


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"additional_special_tokens": ["key"]}},
        {"tokenizer_config": {"bos_token": {"content": "key"}}},
        {"tokenizer_config": {"added_tokens_decoder": {"6": {"content": "key"}}}},
        {"special_tokens_map": {"cls_token": "key"}},
        {"added_tokens": {"key": 6}},
    ],
)
def test_a_token_that_tokenizer_json_does_not_know(tmp_path: Path, files: dict[str, Any]) -> None:
    text = beside(tmp_path, wordpiece(), **files)
    assert text.encode("the cab") == wordpiece().encode("the cab").ids
    with pytest.raises(refl.ReflError, match="the text has 'key', which tokenizer.json"):
        text.encode("the keys")


def test_special_tokens_that_are_text_to_other_readers(tmp_path: Path) -> None:
    text = beside(tmp_path, wordpiece(), tokenizer_config={"split_special_tokens": True})
    assert text.encode("the") == wordpiece().encode("the").ids
    with pytest.raises(refl.ReflError, match=r"the text has '\[MASK\]'"):
        text.encode("the [MASK]")


# -- where the files are silent --------------------------------------------------------------------


def sentences(*special: str) -> Tokenizer:
    """Of single letters, as SentencePiece has them, without a post-processor."""
    entries = [*special, "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    t = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, []))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.add_special_tokens(list(special))
    return t


@pytest.mark.parametrize(
    ("says", "config", "bos"),
    [
        ({"model_type": "llama"}, None, "<s>"),
        ({"model_type": "mixtral"}, {}, "<s>"),
        ({"model_type": "gemma2"}, {"model_max_length": 9}, "<bos>"),
        ({"model_type": "gemma3_text"}, {"add_bos_token": False}, None),
        ({"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"}, None, None),
        ({"model_type": "gpt2", "tokenizer_class": "GemmaTokenizer"}, None, "<bos>"),
        ({"model_type": "llama"}, {"tokenizer_class": "PreTrainedTokenizerFast"}, None),
        ({"model_type": "llama"}, {"bos_token": "<bos>"}, "<bos>"),
        ({"model_type": "qwen3"}, None, None),
        ({}, None, None),
    ],
)
def test_what_a_class_puts_around_a_text_unasked(
    tmp_path: Path, says: dict[str, Any], config: dict[str, Any] | None, bos: str | None
) -> None:
    made = sentences("<s>", "<bos>", "</s>", "<eos>", "<unk>", "<pad>")
    files = {"config": says} | ({} if config is None else {"tokenizer_config": config})
    text = beside(tmp_path, made, **files)
    first = [] if bos is None else [made.token_to_id(bos)]
    assert text.encode("the cab") == [*first, *made.encode("the cab").ids]


def test_a_class_whose_token_is_not_there(tmp_path: Path) -> None:
    """No Llama wrote this tokenizer.json: it alone says what a text begins with, unless a file asks
    for the token.
    """
    made, says = sentences("<unk>"), {"model_type": "llama"}
    assert beside(tmp_path, made, config=says).encode("the") == made.encode("the").ids
    for asked in (
        {"add_bos_token": True},
        {"bos_token": "<s>"},
        {"tokenizer_class": "LlamaTokenizer"},
    ):
        with pytest.raises(refl.ReflError, match="asks for bos_token '<s>', which tokenizer.json"):
            beside(tmp_path, made, config=says, tokenizer_config=asked)


@pytest.mark.parametrize(
    ("made", "model_type", "words"),
    [
        (wordpiece, "bert", "BertTokenizer, which no file asks .* do_lower_case = true"),
        (byte_level, "gpt2", "GPT2Tokenizer, which no file asks .* add_prefix_space = false"),
        (byte_level, "roberta", "RobertaTokenizer, .* add_prefix_space = false"),
    ],
)
def test_a_class_that_reads_a_text_in_another_way(
    tmp_path: Path, made: Any, model_type: str, words: str
) -> None:
    other = made()
    if made is wordpiece:
        other.normalizer = normalizers.BertNormalizer(lowercase=False)
    else:
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text = beside(tmp_path, other, config={"model_type": model_type})
    with pytest.raises(refl.ReflError, match=f"{words}.*: say which is meant in tokenizer_config"):
        text.encode("the")
    option = "do_lower_case" if made is wordpiece else "add_prefix_space"
    config = {option: made is not wordpiece}
    said = beside(tmp_path, other, config={"model_type": model_type}, tokenizer_config=config)
    assert said.encode("the") == other.encode("the").ids
    (tmp_path / "tokenizer_config.json").unlink()
    as_it_is = beside(tmp_path, made(), config={"model_type": model_type})
    assert as_it_is.encode("the") == made().encode("the").ids


@pytest.mark.parametrize(
    ("model_type", "token"),
    [("gpt2", "<|endoftext|>"), ("qwen2", "<|endoftext|>"), ("t5", "<extra_id_7>"),
     ("albert", "[MASK]"), ("xlm-roberta", "<mask>"), ("olmo2", "<|endoftext|>")],
)  # fmt: skip
def test_a_token_that_a_class_knows_unasked(tmp_path: Path, model_type: str, token: str) -> None:
    text = beside(tmp_path, sentences("<x>"), config={"model_type": model_type})
    assert text.encode("the")
    with pytest.raises(refl.ReflError, match="or the model_type where they are silent"):
        text.encode(f"the {token} cab")
    made = sentences("<x>", token)
    made.add_special_tokens([AddedToken(token, lstrip="mask" in token.lower())])
    known = beside(tmp_path, made, config={"model_type": model_type})
    assert known.id_of(token) in known.encode(f"the {token} cab")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_a_token_that_is_split_off_in_another_way(tmp_path: Path, flag: str) -> None:
    """With the blank before it, say: transformers goes by tokenizer_config.json."""
    made = sentences("<x>")
    says: dict[str, Any] = {"content": "<x>", "normalized": False, "special": True}
    for value in (True, False):
        config = {"added_tokens_decoder": {"0": says | {flag: value}}}
        text = beside(tmp_path, made, tokenizer_config=config)
        assert text.encode("the cab") == made.encode("the cab").ids
        if value:
            with pytest.raises(refl.ReflError, match="the text has '<x>'"):
                text.encode("the <x> cab")
        else:
            assert text.encode("the <x> cab") == made.encode("the <x> cab").ids


@pytest.mark.parametrize(("named", "refused"), [({}, True), ({"mask_token": "<mask>"}, False)])
def test_a_mask_that_its_class_splits_off_with_the_blank(
    tmp_path: Path, named: dict[str, Any], refused: bool
) -> None:
    """As RoBERTa does unless a file names its mask."""
    made = sentences("<mask>")
    says = {"model_type": "roberta"}
    text = beside(tmp_path, made, config=says, tokenizer_config=named)
    if refused:
        with pytest.raises(refl.ReflError, match="the text has '<mask>'"):
            text.encode("the <mask> cab")
    else:
        assert text.encode("the <mask> cab") == made.encode("the <mask> cab").ids
