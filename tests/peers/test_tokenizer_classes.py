"""Where the files beside tokenizer.json are silent, a text comes to the ids that transformers finds
by the class of tokenizer, or it is refused.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from refl.errors import ReflError
from refl.io.text import Text
from refl.io.tokenizer_classes import CLASS_OF

pytestmark = [pytest.mark.peers, pytest.mark.needs("transformers")]

TEXTS = (
    "The keys to the Cabinet",
    "café naïve 中文",
    "Hello, World! it's 3.5",
    "x <s> y [MASK]",
    "x <mask> y",
    "a <|endoftext|> b",
    "a </s> b <unk> c <bos> <extra_id_3>",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<mask>", "[CLS]", "[SEP]", "[MASK]")


def byte_level(prefix: bool) -> Tokenizer:
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL, "<|endoftext|>"]
    t = Tokenizer(models.BPE({entry: i for i, entry in enumerate(alphabet)}, []))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    t.add_special_tokens(["<mask>", "<unk>"])
    return t


def sentences(own: bool) -> Tokenizer:
    """SentencePiece's kind; with a post-processor of its own, or none."""
    letters = sorted(set("".join(TEXTS).replace(" ", "\u2581")))
    t = Tokenizer(
        models.BPE({e: i for i, e in enumerate((*SPECIAL, *letters))}, [], unk_token="<unk>")
    )
    t.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    if own:
        t.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    return t


def words(lowercase: bool) -> Tokenizer:
    known = {word for text in TEXTS for form in (text, text.lower()) for word in form.split()}
    entries = ("[UNK]", "[PAD]", *SPECIAL, *sorted(known - {*SPECIAL}))
    t = Tokenizer(models.WordPiece({e: i for i, e in enumerate(entries)}, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.add_special_tokens(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    return t


def captions() -> Tokenizer:
    """CLIP's kind: bytes in lower case, the last of a word marked."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *SPECIAL, *ends]
    vocabulary, (start, end) = {e: i for i, e in enumerate(entries)}, ends
    t = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token=end))
    t.normalizer = normalizers.Lowercase()
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    t.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), False, False
    )
    t.add_special_tokens(ends)
    return t


MADE = {
    "captions": captions,
    "bytes": lambda: byte_level(prefix=False),
    "bytes, prefix": lambda: byte_level(prefix=True),
    "sentences": lambda: sentences(own=False),
    "sentences, bos": lambda: sentences(own=True),
    "words": lambda: words(lowercase=True),
    "words, cased": lambda: words(lowercase=False),
}
OF = {
    **dict.fromkeys(("Bert", "DistilBert"), ("words", "words, cased")),
    "CLIP": ("captions",),
    "T5": ("sentences",),
    "Albert": ("sentences",),
}
CONFIGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"model_max_length": 9},
    {"add_bos_token": False},
    {"add_eos_token": True, "eos_token": "</s>"},
    {"mask_token": "<mask>"},
    {"added_tokens_decoder": {"7": {"content": "<mask>", "lstrip": True, "special": True}}},
)


def readings(folder: Path) -> tuple[int, list[str]]:
    """How many texts come to the ids of transformers, and those that come to others."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = transformers.AutoTokenizer.from_pretrained(str(folder))
    text, same, others = Text.load(folder, trusted=True), 0, []
    assert text is not None
    for one in TEXTS:
        try:
            ids = text.encode(one)
        except ReflError:
            continue
        same += ids == peer(one)["input_ids"]
        others += [one] * (ids != peer(one)["input_ids"])
    return same, others


@pytest.mark.parametrize("model_type", [m for m in CLASS_OF if m != "xlm-roberta"])
def test_the_ids_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    kind, total = CLASS_OF[model_type], 0
    for made in OF.get(kind, ("bytes", "bytes, prefix", "sentences", "sentences, bos")):
        MADE[made]().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        for config in CONFIGS:
            beside = tmp_path / "tokenizer_config.json"
            beside.unlink(missing_ok=True)
            if config is not None:
                beside.write_text(json.dumps(config))
            same, others = readings(tmp_path)
            assert not others, (made, config)
            total += same
    assert total > 8
