"""Known evidence: each number against all orders of equal scores, by brute force; evidence mapped
to tokens; readers of data.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SHARED, checkpoint
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl.errors import ReflError
from refl.evaluation import Evidence, Item, Subject, datasets, judged
from refl.evaluation.evidence import pointing_game, reciprocal_rank
from refl.evaluation.known_evidence import hits
from refl.verification.random_models import LLAMA, VIT, random_model

tied = st.lists(st.sampled_from([-1.0, 0.0, 1.0, 1.0, 2.0]), min_size=1, max_size=6)


def orders(scores: list[float]) -> list[tuple[int, ...]]:
    """Every order of the scores from the largest down, equal ones in any."""
    every = itertools.permutations(range(len(scores)))
    return [o for o in every if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))]


def averaged(scores: list[float], number: Any) -> float:
    values = [Fraction(number(order)) for order in orders(scores)]
    return float(sum(values, Fraction(0)) / len(values))


@given(tied, st.data())
def test_ties_are_drawn_by_lot(scores: list[float], data: st.DataObject) -> None:
    n = len(scores)
    evidence = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    r, known = np.asarray(scores), np.asarray(sorted(evidence))
    for k in (1, 2, 3):
        hit = averaged(scores, lambda o, k=k: int(not evidence.isdisjoint(o[:k])))
        assert pointing_game(r, known, k) == pytest.approx(hit, abs=1e-14)
    place = averaged(scores, lambda o: Fraction(1, 1 + min(o.index(e) for e in evidence)))
    assert reciprocal_rank(r, known) == pytest.approx(place, abs=1e-14)


@given(tied, st.data())
def test_sets_and_masses(scores: list[float], data: st.DataObject) -> None:
    n = len(scores)
    evidence = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    found = Evidence().judge(subject(n, tuple(evidence)), scores).numbers
    positive = {t for t, r in enumerate(scores) if r > 0}
    union = positive | evidence
    assert found["IoU"] == len(positive & evidence) / len(union)
    if positive:
        whole = sum(scores[t] for t in positive)
        inside = sum(scores[t] for t in positive & evidence)
        assert found["relevance_mass"] == pytest.approx(inside / whole)
    else:
        assert np.isnan(found["relevance_mass"])


def subject(
    tokens: int, evidence: tuple[int, ...] | None, support: tuple[int, ...] = ()
) -> Subject:
    item = Item("one", [3] * tokens, target=5, evidence=evidence, facts={"support": support})
    return Subject.read(MODEL, item)


MODEL = random_model(LLAMA, 0)


def test_by_hand() -> None:
    scores = [0.5, -2.0, 3.0, 1.0, 2.0]
    found = Evidence(k=2).judge(subject(5, (3, 1), (2,)), scores).numbers
    assert found == {
        "top_1": 0.0,
        "top_1_wide": 1.0,
        "IoU": 1 / 5,
        "MRR": 1 / 3,
        "PG_2": 0.0,
        "relevance_mass": 1 / 6.5,
    }


def test_where_nobody_knows_nothing_is_said() -> None:
    found = Evidence().judge(subject(2, None), [1.0, 2.0]).numbers
    assert found.keys() == Evidence().larger_is_better.keys()
    assert all(np.isnan(value) for value in found.values())


def test_evidence_outside_the_input_is_refused() -> None:
    with pytest.raises(ReflError, match="evidence at 5, and its input has 5 tokens"):
        judged(MODEL, Item("one", [3] * 5, target=5, evidence=(5,)), ["random"], ["evidence"])
    with pytest.raises(ReflError, match="have shape"):
        Evidence().judge(subject(5, (1,)), [1.0])


def test_patches() -> None:
    """From pixels, summed, or from patches."""
    model = random_model(VIT, 0)
    item = Item("picture", np.ones((3, 8, 12)), target=2, evidence=(5,))
    s, scores = Subject.read(model, item), np.zeros((8, 12))
    scores[4, 3] = 2.0  # second row of patches, second column
    scores[0, 0] = 1.5
    found = Evidence().judge(s, scores).numbers
    assert found["top_1"] == 1 and found["relevance_mass"] == pytest.approx(2 / 3.5)
    patches = np.asarray([[1.5, 0, 0, 0], [0, 2.0, 0, 0]])
    assert Evidence().judge(s, patches).numbers == found


@pytest.mark.parametrize("explained", ["contrast", "logit"])
def test_the_shipped_models_sentences(explained: str) -> None:
    """What `known_evidence` counts: the strongest token of each sentence's explanation."""
    model, lines = refl.load(), datasets.sentences(12)["agreement"]
    asked = [
        {"contrast": (s["target"], s["foil"])}
        if explained == "contrast"
        else {"target": s["target"]}
        for s in lines
    ]
    strongest = [
        int(model.explain(s["prefix"], "cp-lrp", keep=(), **how).relevance.argmax())
        for s, how in zip(lines, asked, strict=True)
    ]
    found = zip(strongest, lines, strict=True)
    pairs = [(t in s["evidence_tokens"], t in s["support_tokens"]) for t, s in found]
    strict = float(np.mean([known for known, _ in pairs]))
    wide = float(np.mean([known or further for known, further in pairs]))
    assert hits(model, "cp-lrp", lines, explained) == pytest.approx((strict, wide))
    assert [i.input for i in datasets.shipped(12)["agreement"]] == [s["prefix"] for s in lines]


# -- words of a text -------------------------------------------------------------------------------

ACUTE, VIRAMA, SIGN_I = "\u0301", "\u094d", "\u093f"
KA, TA, SSA = "\u0915", "\u0924", "\u0937"


@pytest.mark.parametrize(
    ("text", "word", "places"),
    [
        ("the keys to the cabinet", "the", [0, 12]),
        ("aa aa aa", "aa aa", [0, 3]),
        ("keys, key's _key key1", "key", [6]),
        ("", "key", []),
        ("the key", "", []),
        (f"cafe{ACUTE} cafe", "cafe", [6]),
        (f"cafe{ACUTE}", f"cafe{ACUTE}", [0]),
        (f"cafe{ACUTE}", ACUTE, []),
        (f"e{ACUTE}t t", "t", [4]),  # a word goes on behind its accent
        (f"e\u0323{ACUTE}", ACUTE, []),  # the second of two marks
        (f"-\u0323{ACUTE}", ACUTE, []),
        (f"{KA}{SIGN_I}{TA} {TA}", TA, [4]),
        (f"{KA}{SIGN_I} {KA}", KA, [3]),
        (f"{KA}{VIRAMA}{SSA}", SSA, []),
        (f"{KA}{VIRAMA}\u200d{SSA}", SSA, []),  # joined
        ("\u2603\ufe0fkey", "key", [2]),  # a snowman and how it is to be drawn are no word
        ("a.b axb", "a.b", [0]),
    ],
)
def test_words_stand_whole(text: str, word: str, places: list[int]) -> None:
    assert datasets.occurrences(text, word) == tuple((a, a + len(word)) for a in places)


@given(st.text("aA1_ -.,", max_size=12), st.text("aA1_ -.", min_size=1, max_size=3))
def test_without_marks_words_stand_as_expressions_have_it(text: str, word: str) -> None:
    pattern = re.compile(rf"(?<!\w)(?={re.escape(word)}(?!\w))")
    assert [a for a, _ in datasets.occurrences(text, word)] == [
        found.start() for found in pattern.finditer(text)
    ]


# -- data ------------------------------------------------------------------------------------------

BLIMP = {
    "one_prefix_method": True,
    "sentence_good": "The cups alarm Paul.",
    "sentence_bad": "The cups alarms Paul.",
    "one_prefix_prefix": "The cups",
    "one_prefix_word_good": "alarm",
    "one_prefix_word_bad": "alarms",
    "UID": "agreement",
}
AGREEMENT = """case	subcase	good	bad
subj_rel	a	the taxi driver that likes the cats runs	the taxi driver that likes the cats run
obj_rel_within_anim	b	the cat that the dogs love runs	the cat that the dogs loves runs
vp_coord	c	the cat runs and hides	the cat runs and hide
"""


def files(folder: Path) -> dict[str, Path]:
    blimp = folder / "blimp.jsonl"
    two = BLIMP | {"one_prefix_method": False}
    blimp.write_text(json.dumps(two) + "\n" + json.dumps(BLIMP) + "\n", encoding="utf-8")
    agreement = folder / "agreement.tsv.gz"
    agreement.write_bytes(gzip.compress(AGREEMENT.encode()))
    targets = folder / "targets.csv"
    targets.write_text(
        "one_prefix_prefix,one_prefix_word_good,one_prefix_word_bad,target\n"
        "Then Ann and Bo met and Bo gave a cup to,Ann,Bo,Ann\nDan,runs,run,NA\n",
        encoding="utf-8",
    )
    return {"blimp": blimp, "agreement": agreement, "targets": targets}


def test_minimal_pairs(tmp_path: Path) -> None:
    path = files(tmp_path)
    (one,) = datasets.pairs(path["blimp"])
    assert (one.good, one.bad, one.evidence) == (
        BLIMP["sentence_good"],
        BLIMP["sentence_bad"],
        None,
    )
    ann, dan = datasets.pairs(path["targets"])
    assert [ann.good[a:b] for a, b in ann.evidence or ()] == ["Ann"] and dan.evidence is None
    assert ann.good.endswith("to Ann.") and ann.bad.endswith("to Bo.")
    found = [
        [p.good[a:b] for a, b in spans]
        for p in datasets.pairs(path["agreement"])
        for spans in (p.evidence or (), p.support)
    ]
    assert found == [["driver"], ["likes"], ["dogs"], [], ["cat"], ["runs"]]


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_evidence_of_words_in_any_tokenizer(name: str, tmp_path: Path) -> None:
    model = refl.load(checkpoint(name))
    (ann,) = [i for i in datasets.items(model, files(tmp_path)["targets"]) if i.evidence]
    pieces = model.tokens(ann.input)
    assert "".join(pieces[t] for t in ann.evidence).strip() == "Ann"
    for token, sentence in zip(model.tokens(ann.contrast), ("good", "bad"), strict=True):
        read = "".join([*pieces[1:], token]).strip()
        assert ann.facts[sentence].startswith(read) and read.startswith("Then Ann and Bo met")
    blank = datasets.tokens_of(model.text, "The cups", [(0, 3)])
    assert "".join(model.tokens(model.encode("The cups"))[t] for t in blank).strip() == "The"
    assert not any(model.tokens(model.encode("The cups"))[t].isspace() for t in blank)


def test_words_the_vocabulary_lacks_are_left_out(tmp_path: Path) -> None:
    assert datasets.items(refl.load(), files(tmp_path)["targets"]) == []


HEAD, WORDS = "case\tsubcase\tgood\tbad\n", "one_prefix_prefix,one_prefix_word_good"
TABLE = f"{WORDS},one_prefix_word_bad,target\n"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a.txt", "", "no file of minimal pairs"),
        ("a.jsonl", "", "has no minimal pair"),
        ("a.jsonl", "{", "line 1, is no minimal pair: no JSON"),
        ("a.jsonl", "[" * 100_000, "line 1, is no minimal pair: no JSON"),
        ("a.jsonl", "[1]", r"line 1, .*\[1\], expected an object"),
        ("a.jsonl", "{}", "line 1, .* one_prefix_method is None, expected true or false"),
        ("a.jsonl", [BLIMP, BLIMP | {"one_prefix_prefix": None}], "line 2, .*_prefix is None"),
        ("a.jsonl", [BLIMP | {"one_prefix_word_bad": 3}], "one_prefix_word_bad is 3, expected a"),
        ("a.jsonl", [BLIMP | {"one_prefix_word_bad": "alarm"}], "bad word are both 'alarm'"),
        ("a.jsonl", [BLIMP | {"UID": []}], r"UID is \[\], expected a text"),
        ("a.csv", "a,b\n1,2\n", "line 2, is no minimal pair: one_prefix_prefix is None"),
        ("a.csv", TABLE + "Dan,runs,run,NA\nDan,runs\n", "line 3, .* target is None, expected"),
        ("a.csv", TABLE + "Dan,runs,run,\n", "target is '', expected a text"),
        ("a.csv", TABLE + "a" * 200_000, "line 2: field larger than field limit"),
        ("a.tsv", HEAD + "x\ta\tthe cat runs\tthe cat runs\n", "line 2, .* expected that a verb"),
        ("a.tsv", HEAD + "x\ta\tthe cat\tthe cat runs\n", "expected that a verb differs"),
        ("a.tsv", HEAD + "x\ta\t\tthe cat runs\n", "good is '', expected a text"),
        ("a.tsv", HEAD + "x\ta\truns\trun\n", "expected that a verb differs which follows"),
        ("a.tsv", HEAD + "sent_comp\ta\truns on\trun on\n", "expected that a verb differs"),
        ("a.tsv", HEAD + "subj_rel\ta\tthe cat runs\tthe cat run\n", "expected that a verb"),
        ("a.tsv", HEAD + "x\ta\tthe cat\n", "line 2, .* bad is None, expected a text"),
        ("a.tsv", b"\xff", "is no text in UTF-8"),
        ("a.tsv.gz", "not packed", "cannot be unpacked"),
        ("a.tsv.gz", gzip.compress(b"a", mtime=0)[:10] + b"\xff" * 9, "cannot be unpacked"),
        ("a.tsv.gz", gzip.compress(b"a" * 50, mtime=0)[:-9], "cannot be unpacked"),
    ],
)
def test_files_of_something_else(file: str, content: Any, words: str, tmp_path: Path) -> None:
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(ReflError, match=words) as refused:
        datasets.pairs(tmp_path / file)
    assert file in str(refused.value) and str(refused.value).isprintable()


def test_a_file_that_is_too_large_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be cut in the middle of a line."""
    path, size = files(tmp_path)["agreement"], len(AGREEMENT)
    monkeypatch.setattr(datasets, "LARGEST", size)
    assert len(datasets.pairs(path)) == 3
    monkeypatch.setattr(datasets, "LARGEST", size - 1)
    with pytest.raises(ReflError, match=f"is unpacked more than {size - 1} bytes"):
        datasets.pairs(path)


@given(
    st.sampled_from(["a.jsonl", "a.csv", "a.tsv"]),
    st.lists(
        st.sampled_from([*HEAD.split(), *TABLE.strip().split(",")])
        | st.sampled_from(["sent_comp", "subj_rel", "taxi", "the", "true", "NA"])
        | st.sampled_from(["\n", "\t", ",", '"', " ", "{", "}", ":", "\0", "\u2028", "[", "null"]),
        max_size=30,
    ),
)
def test_whatever_a_file_of_pairs_says(name: str, parts: list[str]) -> None:
    text = {"a.csv": TABLE, "a.tsv": HEAD}.get(name, "") + "".join(parts)
    with suppress(ReflError):
        assert all(pair.good for pair in datasets._READERS[Path(name).suffix](Path(name), text))


def test_a_line_ends_where_json_ends_it(tmp_path: Path) -> None:
    """A line separator of Unicode is a character like others; lines can be blank."""
    path, said = tmp_path / "a.jsonl", BLIMP | {"UID": "one\u2028two"}
    line = json.dumps(said, ensure_ascii=False)
    path.write_text(f"{line}\r\n\n{line}\n", encoding="utf-8", newline="")
    assert [pair.name for pair in datasets.pairs(path)] == ["one\u2028two 0", "one\u2028two 1"]
    path.write_text(json.dumps(BLIMP | {"UID": None}), encoding="utf-8")
    assert [pair.name for pair in datasets.pairs(path)] == ["a 0"]


def test_published_files() -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip("no data beside the project (../shared/data)")
    data = SHARED / "data"
    pairs = datasets.pairs(data / "LM_syneval" / "marvin_linzen_sva_sample.tsv")
    subjects = {p.good[a:b] for p in pairs for a, b in p.evidence or ()}
    assert len(pairs) == 2140 and all(len(p.evidence or ()) == 1 for p in pairs)
    assert {"driver", "drivers"} < subjects and not {"taxi", "the", "that", "is"} & subjects
    ioi = datasets.pairs(data / "logit-explanations" / "ioi_with_targets" / "ioi_dataset.csv")
    assert len(ioi) == 1000 and all(len(p.evidence or ()) == 1 for p in ioi)
    assert all(p.good.endswith(f" {p.good[a:b]}.") for p in ioi for a, b in p.evidence or ())
