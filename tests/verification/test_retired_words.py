"""The list of retired words finds them, and the project has none left."""

from __future__ import annotations

import pytest
from checkpoints import ROOT

from refl.verification.quality import retired_words


def test_no_retired_word_is_left() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository whose files could be listed")
    found = retired_words.left(ROOT)
    assert not found, "\n".join(f"{one.file}:{one.line}: {one.word}" for one in found)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def share(x): pass", ["share"]),
        ("class A:\n    frozen: bool = True", ["frozen"]),
        ("def f(*, real=None): pass", ["real"]),
        ("TERMS = 1\nterms = 2", ["terms"]),
        ("x = {'given': 1}", ["given"]),
        ("def f(x):\n    half = x // 2\n    return x.real, half", []),
    ],
)
def test_a_retired_word_is_seen_as_a_name(source: str, words: list[str]) -> None:
    assert [word for word, _ in retired_words.names(source)] == words


def test_a_retired_word_is_seen_in_prose() -> None:
    text = (
        "What is booked.\nThe stabiliser, normalised.\nA method carries gradients; promise, noise"
    )
    assert list(retired_words.anywhere(text)) == [
        ("booked", 1),
        ("stabiliser", 2),
        ("normalised", 2),
        ("carries", 3),
    ]


def test_the_strings_of_a_document_are_looked_at_once() -> None:
    document = '{\n "rows": [0.5, 2],\n "booked": 1,\n "of": "gaps of the ledger", "booked": 2}'
    assert sorted(retired_words.in_strings(document)) == [("booked", 3), ("gaps", 4)]
