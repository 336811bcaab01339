"""The oracle file: what format 1 wrote is read in today's words, and says what format 2 says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint

import refl
from refl import Explanation
from refl.cli import main
from refl.device import blas
from refl.errors import ReflError
from refl.io import ORACLE_FORMAT, format_1, oracle
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.rules.composites import Rule
from refl.rules.published import METHODS
from refl.verification.compare.compare import compare
from refl.verification.random_models import BERT, MIXTRAL, T5, random_model

FOLDER = Path(__file__).parent / "data" / "format_1"
BOUND = 1e-12
"""float64 against float64: another processor may add up in another order."""
PROSE = {"source", "summary", "refl", "fingerprint", "computed by"}
"""What a newer version may say in other words, or for the first time."""


def text() -> Explanation:
    model = refl.load(dtype="float64")
    return model.explain("the", "attnlrp", keep=("model.layers.1",))


def experts() -> Explanation:
    model = random_model(MIXTRAL | {"num_hidden_layers": 1, "num_local_experts": 2}, 0)
    method = METHODS["attnlrp-gradient"].override(Rule("renormalize", "epsilon"))
    return model.explain([1, 2, 3], method, contrast=(4, 5), keep=("model.norm",))


TODAY = {"text": text, "experts": experts}
BOTH = pytest.mark.parametrize("name", TODAY)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, number or word) of all that a document says."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in PROSE:
                yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{number}")
    else:
        yield path, value


@BOTH
def test_format_1_says_what_format_2_says(name: str) -> None:
    """Every number, word, site and entry of the ledger."""
    old, new = Explanation.load(FOLDER / f"{name}.safetensors"), TODAY[name]()
    later = ("/against_logit", "/position", "/word_starts")  # no file had these before 0.3
    expected = {p: v for p, v in leaves(new.as_dict()) if not p.startswith(later)}
    said = dict(leaves(old.as_dict()))
    assert list(said) == list(expected)
    for path, value in expected.items():
        if isinstance(value, float):
            assert said[path] == pytest.approx(value, rel=BOUND, abs=BOUND), path
        else:
            assert said[path] == value, path
    assert list(old) == list(new) and old.sites.aliases == new.sites.aliases
    for site in new:
        np.testing.assert_allclose(old[site], new[site], rtol=BOUND, atol=BOUND)
        np.testing.assert_allclose(old.activation(site), new.activation(site), rtol=BOUND)


@BOTH
def test_the_files_have_every_old_word(name: str) -> None:
    """Or the test above would say little."""
    metadata = read_safetensors(FOLDER / f"{name}.safetensors")[1]
    assert json.loads(metadata["format"]) == 1
    words = {"carries", "gap", "follow", "stop", "renormalise"}
    words |= {"gradient", "renormalisation_offset"} if name == "experts" else set()
    assert all(f'"{word}"' in metadata["method"] + metadata["ledger"] for word in words)


@BOTH
def test_a_method_of_format_1_has_the_rules_of_today(name: str) -> None:
    old = Explanation.load(FOLDER / f"{name}.safetensors")
    assert old.composite.rules == TODAY[name]().composite.rules


@BOTH
def test_format_1_is_written_again_as_format_2(name: str, tmp_path: Path) -> None:
    old = Explanation.load(FOLDER / f"{name}.safetensors")
    old.save(tmp_path / "again.safetensors")
    assert json.loads(read_safetensors(tmp_path / "again.safetensors")[1]["format"]) == 2
    assert Explanation.load(tmp_path / "again.safetensors").as_dict() == old.as_dict()


@BOTH
def test_compare_reads_both(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = FOLDER / f"{name}.safetensors", tmp_path / "new.safetensors"
    TODAY[name]().save(new)
    c = compare(old, new)
    assert c.equal and len(c.errors) == len(c.forward) > 1, str(c)
    assert main(["compare", str(old), str(new)]) == 0
    assert main(["compare", str(new), str(old)]) == 0
    capsys.readouterr()


def test_compare_says_a_difference_to_a_file_of_format_1(tmp_path: Path) -> None:
    """The other side: a relevance that differs is seen, at its site."""
    new = tmp_path / "new.safetensors"
    text().save(new)
    arrays, metadata = read_safetensors(new)
    changed = {
        name: array * (1 + 1e-6 * (name == "relevance/model.layers.1"))
        for name, array in arrays.items()
    }
    write_safetensors(new, changed, metadata)
    c = compare(FOLDER / "text.safetensors", new)
    assert c.first is not None and c.first.site == "model.layers.1"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"format": 2, "method": {"carries": 1}}, {"format": 2, "method": {"carries": 1}}),
        ({"method": {"carries": "gradient"}}, {"method": {"carries": "gradient"}}),
        ({"format": 1}, {"format": 2}),
        (
            {"format": 1, "method": "attnlrp", "ledger": None},
            {"format": 2, "method": "attnlrp", "ledger": None},
        ),
        (
            {"format": 1, "method": {"rules": [7, {"rule": ["stop"], "operation": None}]}},
            {
                "format": 2,
                "method": {"rules": [7, {"rule": ["stop"], "operation": None, "role": "*"}]},
            },
        ),
        (
            {"format": 1, "ledger": {"sites": {"gap": 1}, "absorbed": 3}},
            {"format": 2, "ledger": {"sites": {"gap": 1}, "absorbed": 3}},
        ),
        (
            {"format": 1, "ledger": {"sites": [{"site": "gap", "passed": {"stop": 1.0}}]}},
            {"format": 2, "ledger": {"sites": [{"site": "gap", "passed": {"stop": 1.0}}]}},
        ),
    ],
)
def test_words_are_translated_where_they_are_words(facts: Any, said: Any) -> None:
    """A site may have any name, a tampered file any type."""
    assert format_1.translated(facts) == said


def test_what_an_oracle_file_holds(tmp_path: Path) -> None:
    """The layout, by the file itself, as another program reads it."""
    e = text()
    e.save(tmp_path / "e.safetensors")
    arrays, metadata = read_safetensors(tmp_path / "e.safetensors")
    sites = [f"{group}/{site}" for group in ("activation", "relevance") for site in e]
    assert set(arrays) == {"input_ids", "relevance", *sites}
    facts = {key: json.loads(value) for key, value in metadata.items()}
    assert facts["format"] == ORACLE_FORMAT == 2 and facts["order"] == list(e)
    assert facts["method"]["formulation"] == "relevance"
    assert facts["ledger"]["sites"][0].keys() >= {"rule", "received", "conservation_error"}
    read = oracle.load(tmp_path / "e.safetensors")
    assert list(read.sites["activation"]) == list(e) and read.sites["gradient"] == {}


# -- files that are none ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays and metadata of a good file."""
    path = tmp_path_factory.mktemp("oracle") / "e.safetensors"
    text().save(path)
    return read_safetensors(path)


def at(value: Any, path: str, new: Any) -> Any:
    """The same with `new` at a place in it: "sites/0/received"."""
    key, _, rest = path.partition("/")
    if isinstance(value, list):
        return [at(v, rest, new) if str(i) == key and rest else v for i, v in enumerate(value)]
    return value | {key: at(value[key], rest, new) if rest else new}


ODD_FACTS: list[tuple[str, Any]] = [
    ("seed", "<meta http-equiv=refresh>"), ("seed", "\x1b[31m"), ("seed", ["logit"]), ("seed", 3),
    ("target", ["a"]), ("target_id", -1), ("target_id", 1e400), ("target_id", True),
    ("logit", "1"), ("logit", float("nan")), ("logit", 10**400), ("explained", float("inf")),
    ("tokens", "the"), ("tokens", ["<s>", 3]), ("tokens", ["<s>"]), ("about", {"refl": {}}),
    ("about", []), ("against", 3), ("aliases", {"a": ["b"]}), ("order", [["a"]]), ("order", 7),
    ("patch", [0, 1]), ("patch", [1]), ("patch", "ab"), ("candidates", {"token": "a"}),
    ("candidates", [{"token": "a"}]), ("probability", "a"), ("decoder_tokens", ["a"]),
    ("method/name", 3), ("method/formulation", "backwards"), ("method/rules", {}),
    ("method/rules", [3]), ("method/score", []), ("ledger/explained", None), ("ledger/sites", {}),
    ("ledger/sites", ["a"]), ("ledger/roundoff", "u"), ("format", 3), ("format", "2"),
    ("format", 2.5), ("format", None), ("types", [-1]), ("position", "last"),
    ("word_starts", [1, 1]), ("word_starts", [True]), ("against_logit", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "new"), ODD_FACTS)
def test_an_odd_fact_is_refused_in_a_sentence(
    place: str, new: Any, whole: Any, tmp_path: Path
) -> None:
    arrays, metadata = whole
    facts = at({key: json.loads(value) for key, value in metadata.items()}, place, new)
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, arrays, {key: json.dumps(value) for key, value in facts.items()})
    with pytest.raises(ReflError, match="is no oracle file of refl: ") as refusal:
        Explanation.load(path)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "word",
    ["", "{", "[" * 100_000, '{"a":' * 9000, "1" * 5000, '{"name": "a", "name": "b"}', None],
)
def test_metadata_that_few_can_read(word: str | None, whole: Any, tmp_path: Path) -> None:
    arrays, metadata = whole
    path = tmp_path / "odd.safetensors"
    changed = {key: value for key, value in metadata.items() if key != "method"}
    write_safetensors(path, arrays, changed | ({} if word is None else {"method": word}))
    with pytest.raises(ReflError, match="method"):
        Explanation.load(path)


SITE = "model.layers.1"
ODD_ARRAYS: dict[str, dict[str, Any]] = {
    "another shape": {f"relevance/{SITE}": np.zeros((2, 3))},
    "one more axis": {f"activation/{SITE}": np.zeros((1, 2, 64))},
    "whole numbers": {f"relevance/{SITE}": np.zeros((2, 64), np.int64)},
    "an activation alone": {"activation/x": np.zeros(3)},
    "negative ids": {"input_ids": np.asarray([1, -2])},
    "infinite ids": {"input_ids": np.asarray([1, np.inf])},
    "huge ids": {"input_ids": np.asarray([1, 2**63], np.uint64)},
    "ids of two axes": {"input_ids": np.asarray([[1, 2]])},
    "more ids than tokens": {"input_ids": np.asarray([1, 2, 3])},
    "more relevance than tokens": {"relevance": np.zeros(3)},
    "relevance of whole numbers": {"relevance": np.zeros(2, np.int64)},
    "a picture of floats": {"picture": np.zeros((2, 2, 3))},
    "a picture beside tokens": {"picture": np.zeros((4, 4, 3), np.uint8)},
    "a decoder's ids alone": {"decoder_ids": np.asarray([1])},
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_arrays_that_do_not_belong_together(kind: str, whole: Any, tmp_path: Path) -> None:
    arrays, metadata = whole
    path, good = tmp_path / "odd.safetensors", tmp_path / "good.safetensors"
    write_safetensors(good, arrays, metadata)
    write_safetensors(path, arrays | ODD_ARRAYS[kind], metadata)
    with pytest.raises(ReflError, match="is no oracle file of refl: "):
        Explanation.load(path)
    if kind in ("another shape", "one more axis", "negative ids", "infinite ids", "huge ids"):
        with pytest.raises(ReflError, match="is no oracle file: "):
            compare(good, path)


@pytest.mark.parametrize("name", ["input_ids", "relevance", f"relevance/{SITE}"])
def test_an_array_that_is_missing(name: str, whole: Any, tmp_path: Path) -> None:
    arrays, metadata = whole
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, {key: a for key, a in arrays.items() if key != name}, metadata)
    with pytest.raises(ReflError, match="is no oracle file of refl: "):
        Explanation.load(path)


def test_what_a_newer_version_says_besides_is_passed_over(whole: Any, tmp_path: Path) -> None:
    arrays, metadata = whole
    path = tmp_path / "newer.safetensors"
    ledger = json.loads(metadata["ledger"])
    ledger["sites"][0]["surprise"] = [1]
    said = {"ledger": json.dumps(ledger), "surprise": '{"a": 1}'}
    write_safetensors(path, arrays | {"surprise": np.ones(2)}, metadata | said)
    assert Explanation.load(path).tokens == json.loads(metadata["tokens"])


def test_relevance_of_a_picture_that_is_not_there(whole: Any, tmp_path: Path) -> None:
    arrays, metadata = whole
    path, no_tokens = tmp_path / "odd.safetensors", np.zeros(0, np.int64)
    changed = arrays | {"relevance": np.zeros((4, 4)), "input_ids": no_tokens}
    write_safetensors(path, changed, metadata | {"tokens": "[]"})
    with pytest.raises(ReflError, match="there is no array 'picture'"):
        Explanation.load(path)


# -- what a file says of how it was made -----------------------------------------------------------


def test_a_file_says_what_multiplied_and_which_position(tmp_path: Path) -> None:
    model, path = refl.load(), tmp_path / "e.safetensors"
    for position, at in ((None, 2), (1, 1), (-3, 0)):
        model.explain("the keys", keep=(), position=position).save(path)
        e = Explanation.load(path)
        assert (e.position, e.types) == (at, None)
        facts = {key: json.loads(value) for key, value in read_safetensors(path)[1].items()}
        assert facts["format"] == 2 and facts["position"] == at
    said = blas()
    assert f"NumPy {np.__version__}" in e.about["computed by"]
    assert said["name"] in e.about["computed by"] and said["kernel"] in e.about["computed by"]


def test_a_file_says_the_token_types(tmp_path: Path) -> None:
    model, path = random_model(BERT, 0), tmp_path / "e.safetensors"
    model.explain([1, 2, 3], position=1, types=[0, 1, 1], keep=()).save(path)
    e = Explanation.load(path)
    assert (e.position, e.types) == (1, [0, 1, 1])
    e.save(path)
    assert Explanation.load(path).types == [0, 1, 1]


def test_a_file_says_the_rounding_scale_of_an_audit(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    e = refl.load().explain("the keys", keep=(), audit=True)
    e.save(path)
    read = Explanation.load(path).ledger
    assert [r.rounding_scale for r in read] == [r.rounding_scale for r in e.ledger]
    assert read.rounding_bound == e.ledger.rounding_bound and read.rounding_bound > 0
    refl.load().explain("the keys", keep=()).save(path)
    assert Explanation.load(path).ledger.rounding_bound is None


# -- files that were tampered with -----------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracle") / "o.safetensors"
    text().save(path)
    return path


def tampered(path: Path, at: Path, change: Any) -> Path:
    """The file with its facts and arrays changed."""
    arrays, metadata = read_safetensors(path)
    facts = {key: json.loads(value) for key, value in metadata.items()}
    arrays = {name: np.array(a) for name, a in arrays.items()}
    change(facts, arrays)
    write_safetensors(at, arrays, {key: json.dumps(value) for key, value in facts.items()})
    return at


def absorb(name: str) -> Any:
    return lambda f, a: f["ledger"]["sites"][0]["absorbed"].update({name: 1.0})


def scores(change: Any) -> Any:
    return lambda f, a: a.update(relevance=change(a["relevance"]))


TAMPERED = {
    "explained": (lambda f, a: f.update(explained=9.0), "in the ledger: expected one"),
    "probability": (lambda f, a: f.update(probability=5.0), "a number from 0 to 1"),
    "candidate": (lambda f, a: f["candidates"][0].update(probability=-1.0), "from 0 to 1"),
    "roundoff": (lambda f, a: f["ledger"].update(roundoff=-1e-3), "a number from 0 to 1"),
    "formulation": (lambda f, a: f["method"].update(formulation="x"), "gradient_x_input"),
    "the sum": (absorb("explained"), "another name than that of the sum"),
    "a row": (absorb("conservation error"), "a word of small letters"),
    "markup": (absorb("<img src=x>"), "a word of small letters"),
    "twice": (scores(lambda r: 2 * r), "relevance is not the sum over features"),
    "reversed": (scores(lambda r: r[::-1].copy()), "relevance is not the sum over features"),
    "nan": (scores(lambda r: r * np.nan), "relevance holds what is no finite number"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_that_contradicts_itself(saved: Path, tmp_path: Path, name: str) -> None:
    change, words = TAMPERED[name]
    with pytest.raises(ReflError, match=words):
        Explanation.load(tampered(saved, tmp_path / "t", change))


def test_no_contradiction_where_rounding_has_grown(tmp_path: Path) -> None:
    """150 tokens in float32: the sites are of another run than the tokens, and differ visibly."""
    model = refl.load(checkpoint("stories260K"))
    e = model.explain([1, *(int(i) for i in np.random.default_rng(0).integers(3, 500, 149))])
    e.save(tmp_path / "long.safetensors")
    assert refl.Explanation.load(tmp_path / "long.safetensors").logit == e.logit


def test_no_contradiction_in_a_padded_batch_of_two_embeddings(tmp_path: Path) -> None:
    """The decoder's rows are padded to as many as the encoder reads."""
    model = random_model(T5, 3)
    for e in model.explain([[1, 2, 4, 3], [1, 2]], decoder=[[0, 3], [0]], keep="*"):
        e.save(tmp_path / "e")
        assert Explanation.load(tmp_path / "e").as_dict() == e.as_dict()


@pytest.mark.parametrize("name", ["twice", "reversed", "nan"])
def test_compare_sees_tokens_that_are_not_those_of_the_sites(
    saved: Path, tmp_path: Path, name: str
) -> None:
    """Every site may agree: it is the relevance of the tokens that people read."""
    other = tampered(saved, tmp_path / "t.safetensors", TAMPERED[name][0])
    for a, b, where in ((saved, other, "in B"), (other, saved, "in A")):
        c = compare(a, b)
        assert not c.equal and where in str(c) and "is not the sum over features" in str(c)
    assert main(["compare", str(saved), str(other)]) == 1
    assert compare(saved, saved).equal
