"""Lines of a file as inputs: what each key comes to, and what every bad line is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from refl.errors import ReflError
from refl.evaluation.data import INPUTS, KNOWN, Line, items, lines, parsed, survey
from refl.evaluation.subject import Item
from refl.io.text import Text
from refl.model import SHIPPED, Model, load
from refl.verification.random_models import LLAMA, VIT, random_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


def one(said: Any, model: Model) -> Item:
    content = said if isinstance(said, bytes) else json.dumps(said).encode()
    return parsed(Line("data.jsonl", 7, content)).settled(model)


TEXT = "the keys to the cabinet"
"""Tokens: <s> the keys to the cabinet."""


def test_what_each_key_comes_to(model: Model) -> None:
    said = {
        "prefix": TEXT, "text": TEXT + " are here", "target": "are", "foil": "is", "name": "n1",
        "evidence_tokens": [2], "evidence_words": [1], "position": -1, "support": [5], "kind": "x",
    }  # fmt: skip
    assert one(said, model) == Item(
        name="n1", input=TEXT, contrast=("are", "is"), position=-1, evidence=(2,),
        facts={"kind": "x", "text": TEXT + " are here", "support": (5,)},
    )  # fmt: skip
    assert one({"text": TEXT, "target": 4}, model) == Item("7", TEXT, target=4)
    assert one({"ids": [2, 150], "id": 12}, model) == Item("12", [2, 150])
    assert one({"text": TEXT, "contrast": ["are", 3]}, model).contrast == ("are", 3)
    assert one({"text": TEXT, "target": "are", "contrast": "is"}, model).contrast == ("are", "is")
    image = parsed(Line("far/data.jsonl", 1, b'{"image": "a.png", "target": 3}'))
    assert image.item.input == str(Path("far/a.png"))


def test_a_key_that_is_null_is_not_there(model: Model) -> None:
    known = [key for key in (*INPUTS, *KNOWN) if key != "text"]
    assert one({"text": TEXT, "x": None} | dict.fromkeys(known), model) == Item("7", TEXT)
    assert one({"text": TEXT, "name": None, "id": 3}, model).name == "3"
    said = {"text": TEXT, "ids": None, "image": None, "pair": None, "evidence": ["keys"]}
    assert one(said, model).evidence == (2,)
    assert one({"input": None, "prefix": TEXT, "text": None}, model) == Item("7", TEXT)


@pytest.mark.parametrize(
    ("evidence", "tokens"),
    [
        ({"evidence": [2, 5]}, (2, 5)),
        ({"evidence": []}, ()),
        ({"evidence": ["keys", "cabinet"]}, (2, 5)),
        ({"evidence": ["the"]}, (1, 4)),
        ({"evidence": [[4, 8]]}, (2,)),
        ({"evidence_spans": [[0, 5]]}, (1, 2)),
        ({"evidence_words": [1, 4]}, (2, 5)),
        ({"evidence_words": ["cabinet"]}, (5,)),
    ],
)
def test_evidence_as_tokens_words_and_characters(
    evidence: dict[str, Any], tokens: tuple[int, ...], model: Model
) -> None:
    assert one({"text": TEXT, **evidence}, model).evidence == tokens


@pytest.fixture(scope="module")
def of_characters() -> Model:
    """Each with the blank before it."""
    entries = ["<unk>", "\u2581", *"adehklosty"]
    t = Tokenizer(models.BPE({e: i for i, e in enumerate(entries)}, [], unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    return replace(random_model(LLAMA, 0), text=Text(t))


@pytest.mark.parametrize("evidence", [["the"], [[0, 3]], [[0, 4]]])
def test_a_token_of_blanks_is_no_evidence(evidence: Any, of_characters: Model) -> None:
    """Tokens: _ t h e _ o l d _ k e y s; the first blank stands at the character of t."""
    assert one({"text": "the old keys", "evidence": evidence}, of_characters).evidence == (1, 2, 3)
    both = one({"text": "the old keys", "evidence_words": [0, 2]}, of_characters).evidence
    assert both == (1, 2, 3, 9, 10, 11, 12)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"text": "a"', "no JSON"),
        (b"nonsense", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ("a text", "expected a JSON object"),
        ([1], "expected a JSON object"),
        ({"tekst": "a"}, "there is no input: expected a key input or"),
        ({}, "there is no input"),
        ({"text": ""}, "text is '': expected a text"),
        ({"text": 3}, "text is 3"),
        (
            {"text": None, "a": 1},
            "or image or text, got text (null), a",
        ),
        ({"ids": []}, "ids is []"),
        ({"ids": [1.5]}, "ids is [1.5]"),
        ({"ids": [True]}, "ids is [True]"),
        ({"text": "a", "target": 1.5}, "target is 1.5"),
        ({"text": "a", "position": "x"}, "position is 'x'"),
        ({"text": "a", "types": "x"}, "types is 'x': expected a list of token type ids"),
        ({"text": "a", "foil": "is"}, "a foil and no target"),
        ({"text": "a", "contrast": ["a"]}, "expected two outputs"),
        ({"text": "a", "target": "b", "contrast": ["a", "b"]}, "no target or foil beside"),
        ({"text": TEXT, "evidence": [6]}, "evidence 6 is outside the input, which has 6 tokens"),
        ({"text": TEXT, "evidence": [-1]}, "evidence is [-1]"),
        ({"text": TEXT, "support": [6]}, "evidence 6 is outside the input"),
        ({"text": TEXT, "evidence": ["cat"]}, "evidence 'cat' is outside the text"),
        ({"text": TEXT, "evidence": ["key"]}, "evidence 'key' is outside the text"),
        ({"text": "the cafe\u0301", "evidence": ["cafe"]}, "evidence 'cafe' is outside the text"),
        ({"text": TEXT, "evidence": [[4, 99]]}, "evidence [4, 99] is outside the text"),
        ({"text": TEXT, "evidence": [[5, 5]]}, "evidence [5, 5] is outside the text"),
        ({"text": TEXT, "evidence": [[3, 4]]}, "characters [3, 4], ' ', is in no token"),
        ({"text": TEXT, "evidence_spans": [[4, 8], [8, 9]]}, "characters [8, 9], ' ', is in no"),
        ({"text": TEXT, "evidence_words": [5]}, "which has 5 words, 23 characters"),
        ({"text": TEXT, "evidence": "keys"}, "expected a list of numbers of tokens or words"),
        ({"text": TEXT, "evidence": [2, "keys"]}, "expected a list of"),
        ({"ids": [2, 3], "evidence": ["keys"]}, "give numbers of tokens"),
        ({"text": TEXT, "name": "\ud800"}, "got half of a character: \\ud800 stands alone"),
        ({"text": TEXT, "more": [{"\udfff": 1}]}, "got half of a character"),
    ],
)
def test_a_bad_line_is_one_sentence_with_its_place(said: Any, words: str, model: Model) -> None:
    with pytest.raises(ReflError) as caught:
        one(said, model)
    message = str(caught.value)
    assert message.startswith("data.jsonl, line 7: ") and words in message
    assert message.isprintable() and len(message) <= 1000


@settings(max_examples=40)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(
        st.sampled_from(["text", "ids", "evidence", "target", "contrast", "foil", "types", "name"]),
        inside, max_size=4,
    ),
    max_leaves=8,
))  # fmt: skip
def test_whatever_a_line_says(said: Any) -> None:
    """It is an item, or refused in a sentence: nothing else is raised."""
    content = said if isinstance(said, bytes) else json.dumps(said).encode()
    try:
        assert parsed(Line("f", 1, content)).item.name
    except ReflError as refused:
        assert str(refused).startswith("f, line 1: ")


def test_a_file_is_read_line_by_line(tmp_path: Path, model: Model) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "the keys"}\r\n\n  \n{"text": "the cabinet"}')
    assert [line.number for line in lines(file)] == [1, 4]
    assert [item.input for item in items(file, model)] == ["the keys", "the cabinet"]
    assert [item.name for item in items(file, model, limit=1)] == ["1"]
    assert survey(lines(file), model, file).count == 2
    assert survey(lines(file, 1), model, file).count == 1
    changed = tmp_path / "b.jsonl"
    changed.write_bytes(file.read_bytes().replace(b"cabinet", b"lamp"))
    assert survey(lines(changed), model, file).hash != survey(lines(file), model, file).hash
    changed.write_bytes(file.read_bytes().replace(b"\n\n", b"\n"))  # a line is named by its number
    assert [line.content for line in lines(changed)] == [line.content for line in lines(file)]
    assert survey(lines(changed), model, file).hash != survey(lines(file), model, file).hash
    file.write_bytes(b"\n")
    with pytest.raises(ReflError, match="has no input"):
        survey(lines(file), model, file)
    with pytest.raises(ReflError, match="does not exist"):
        list(lines(tmp_path / "none"))


def test_a_picture_is_no_text(model: Model) -> None:
    """Its path would be read as one."""
    with pytest.raises(ReflError, match="image is the path of a picture, and shipped reads text"):
        one({"image": "a.png"}, model)


def test_another_picture_is_other_data(tmp_path: Path) -> None:
    model = random_model(VIT, 0)
    file, picture = tmp_path / "a.jsonl", tmp_path / "a.png"
    file.write_text('{"image": "a.png"}')
    with pytest.raises(ReflError, match=r"a\.jsonl, line 1: .*a\.png does not exist"):
        survey(lines(file), model, file)
    found = []
    for content in (b"one", b"one", b"other"):
        picture.write_bytes(content)
        found.append(survey(lines(file), model, file).hash)
    assert found[0] == found[1] != found[2]


def test_the_shipped_sentences_are_such_a_file(model: Model) -> None:
    """Their tokens of evidence were found by the grammar that wrote them, not by offsets."""
    for line in lines(SHIPPED / "evidence.jsonl", 40):
        said = json.loads(line.content)
        by_words = {"text": said["prefix"], "evidence_words": said["evidence_words"]}
        item = parsed(line).settled(model)
        assert item.evidence == tuple(said["evidence_tokens"])
        assert item.evidence == one(by_words, model).evidence
        assert item.contrast == (said["target"], said["foil"]) and item.input == said["prefix"]
