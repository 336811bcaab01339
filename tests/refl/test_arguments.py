"""Arguments of the Python API: understood as they stand, or refused in one sentence before anything
is computed; never ignored, never bent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl.model import Model
from refl.trace import Trace
from refl.verification.random_models import BERT, LLAMA, T5, VIT, random_model

IDS = [3, 1, 4, 1, 5]
LONG = 10**4000  # str of more digits raises
SMALL: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"num_hidden_layers": 1},
    "t5": T5 | {"num_layers": 1, "num_decoder_layers": 1},
    "bert": BERT | {"num_hidden_layers": 1},
    "classifier": BERT
    | {"num_hidden_layers": 1, "architectures": ["BertForSequenceClassification"]},
    "vit": VIT | {"num_hidden_layers": 1},
}


@cache
def net(name: str) -> Model:
    model = random_model(SMALL[name], 0)
    return replace(model, mask_id=16) if name == "bert" else model


def picture() -> Any:
    config = net("vit").config
    return np.random.default_rng(0).standard_normal((config.num_channels, *config.image))


def item(name: str) -> Any:
    return {"vit": picture(), "bert": [*IDS, 16]}.get(name, IDS) if name != "vit" else picture()


@pytest.fixture(scope="module")
def shipped() -> Model:
    return refl.load()


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward pass may begin."""

    def fail(*args: Any, **how: Any) -> Any:
        raise AssertionError("a forward pass ran before the argument was refused")

    monkeypatch.setattr(Trace, "compute", fail)


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(refl.ReflError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 1000


# -- what fits no net of this kind -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier", "vit"])
@pytest.mark.parametrize("position", [0, -1, 2])
def test_a_classifier_has_no_position(name: str, position: int, never_run: None) -> None:
    model = net(name)
    refused(lambda: model.explain(item(name), position=position), "leave position out")
    refused(lambda: model.explain_each(item(name), [0], position=position), "leave position out")
    refused(lambda: model.trace([item(name)], position=position), "leave position out")


@pytest.mark.parametrize("name", ["llama", "t5", "vit"])
def test_types_where_there_are_none(name: str, never_run: None) -> None:
    model = net(name)
    for types in ([0] * 5, [[0] * 5], 0, [], "0"):
        refused(lambda t=types: model.explain(item(name), types=t), "has no token types")


@pytest.mark.parametrize(
    "types", [5, [0], [[0] * 5], "00000", [0.0] * 5, [True] * 5, [2] * 5, [-1] * 5, [None] * 5, []]
)
def test_types_of_another_shape(types: Any, never_run: None) -> None:
    refused(lambda: net("classifier").explain(IDS, types=types), "a number from 0 to 1")
    refused(lambda: net("classifier").explain([IDS, IDS[:2]], types=types), "from 0 to 1")


def test_types_of_numpy_are_types() -> None:
    wanted = net("classifier").explain(IDS, types=[0, 0, 1, 1, 1])
    got = net("classifier").explain(np.asarray(IDS), types=np.asarray([0, 0, 1, 1, 1]))
    assert np.array_equal(got.relevance, wanted.relevance)


@pytest.mark.parametrize("position", [1.0, "1", True, np.bool_(True), [1], 5, -6, LONG])
def test_what_is_no_position(position: Any, never_run: None) -> None:
    refused(lambda: net("llama").explain(IDS, position=position), "position")


def test_positions_count_from_the_end_as_in_a_list() -> None:
    wanted = net("llama").explain(IDS, position=2)
    for position in (-3, np.int64(2), np.asarray(2)):
        assert np.array_equal(
            net("llama").explain(IDS, position=position).relevance, wanted.relevance
        )


# -- numbers ---------------------------------------------------------------------------------------

NO_ID: list[Any] = [4.7, 1.9, 2.0, True, False, np.bool_(True), np.float32(2), "3"[:0], 2j, None]


@pytest.mark.parametrize("bad", [*NO_ID, Fraction(4, 2), np.asarray([3]), np.asarray(True), b"\3"])
def test_what_is_no_token_id(bad: Any, never_run: None) -> None:
    refused(lambda: net("llama").explain([3, bad]), "expected")
    refused(lambda: net("llama").explain_each(IDS, [bad]), "expected|no tokenizer")
    if getattr(bad, "ndim", 0) == 0:  # a list of one target is one for each
        refused(lambda: net("llama").explain(IDS, contrast=(1, bad)), "expected|no tokenizer")
        if bad is not None:
            refused(lambda: net("llama").explain(IDS, target=bad), "expected|no tokenizer")


@pytest.mark.parametrize("bad", [True, 1.0, "maybe", 5, -1, None, b"1", LONG])
def test_what_is_no_class(bad: Any, never_run: None) -> None:
    refused(lambda: net("classifier").explain_each(IDS, [bad]), "unknown class|expected")
    if bad is not None:
        refused(lambda: net("classifier").explain(IDS, target=bad), "unknown class|expected")


def test_two_classes_of_one_name_are_told_apart_by_number() -> None:
    model = replace(net("classifier"), labels={0: "a", 1: "a"})
    refused(lambda: model.explain(IDS, target="a"), "name of 2 classes: give one by its number, 0")
    assert model.explain(IDS, target=1).target_id == 1


@pytest.mark.parametrize(
    "three", [np.int64(3), np.uint8(3), np.asarray(3), np.asarray(3, np.int16)]
)
def test_integers_of_numpy_are_integers(three: Any) -> None:
    wanted = net("llama").explain([3, 1], target=3, contrast=None)
    for e in (
        net("llama").explain([three, 1], target=three),
        net("llama").explain(np.asarray([3, 1], dtype=np.int32), target=[three]),
        net("llama").explain_each([three, np.int8(1)], [three])[0],
    ):
        assert np.array_equal(e.relevance, wanted.relevance) and e.target_id == 3
        assert type(e.target_id) is int and all(type(i) is int for i in e.input_ids)


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        b"the keys",
        bytearray(b"ab"),
        memoryview(b"ab"),
        Path("picture.png"),
        None,
        "",
        [],
        [[]],
        [""],
        [[[1, 2]]],
        [[1, 2], 3],
        [3, [1, 2]],
        ["the", 3],
        [[1, 2], [3, 4.5]],
        (i for i in [1, 2]),
        {1, 2},
        {1: 2},
        np.asarray([1.0, 2.0]),
        np.asarray([True, False]),
        np.asarray(3),
        np.zeros((0,), int),
        np.zeros((2, 0), int),
        np.zeros((1, 2, 3), int),
        [1, 10**30],
        [1, -1],
        [-(LONG)],
        np.asarray([1, 2**63], dtype=np.uint64),
        object(),
        "half \udc80",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_input(shipped: Model, bad: Any, never_run: None) -> None:
    for call in (shipped.explain, shipped.logits, shipped.generate, lambda i: shipped.trace([i])):
        refused(lambda c=call: c(bad), "expected|is outside")
    refused(lambda: shipped.explain(bad, keep=()), "expected|is outside")


class Word(str):
    """A text that is more than a str."""

    def __str__(self) -> str:
        return "another"


def test_texts_of_other_types(shipped: Model) -> None:
    wanted = shipped.explain("the keys", keep=())
    for same in (Word("the keys"), np.str_("the keys"), np.asarray(wanted.input_ids)):
        assert np.array_equal(shipped.explain(same, keep=()).relevance, wanted.relevance)
    for batch in (["the keys", wanted.input_ids], np.asarray(["the keys", "the keys"])):
        assert [e.input_ids for e in shipped.explain(batch, keep=())] == [wanted.input_ids] * 2


def test_arrays_of_ids_are_batches_of_their_rows() -> None:
    rows = np.asarray([[1, 2, 3], [4, 5, 6]])
    both = net("llama").explain(rows)
    assert [e.input_ids for e in both] == rows.tolist()
    assert [e.input_ids for e in net("llama").explain(((1, 2), [3]))] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        "no such file.png",
        "",
        Path("/"),
        b"png",
        [],
        [None],
        {},
        np.zeros((2, 2)),
        np.zeros((1, 3, 3), complex),
        np.zeros((3, 3), int),
        np.asarray("text"),
        "nul\0byte",
        [[1, 2], [3]],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_picture(bad: Any, never_run: None) -> None:
    refused(lambda: net("vit").explain(bad), "expected|there is no|the image|cannot be read")


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_pictures_of_numbers_that_no_dtype_holds(number: float, never_run: None) -> None:
    x = picture()
    x[0, 0, 0] = number
    model = replace(net("vit"), dtype="float32")
    refused(lambda: model.explain(x), "finite")


def test_text_for_a_net_of_pictures(never_run: None) -> None:
    refused(lambda: net("vit").encode([1, 2]), "takes pictures")
    refused(lambda: net("vit").generate([1, 2]), "writes no text")


# -- what is explained -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contrast",
    [
        (1, 2, 3),
        (1,),
        (),
        "12",
        5,
        5.0,
        {1, 2},
        {1: 2},
        [(1, 2), (3, 4)],
        (i for i in (1, 2)),
        (1.0, 2),
        (1, True),
        (1, (2, 3)),
        (1, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_contrast(contrast: Any, never_run: None) -> None:
    refused(lambda: net("llama").explain(IDS, contrast=contrast), "expected|two different tokens")


def test_a_contrast_for_each_of_a_batch() -> None:
    model, inputs = net("llama"), [IDS, IDS[:2], IDS[1:]]
    alone = [
        model.explain(i, contrast=p) for i, p in zip(inputs, [(1, 2), (1, 3), (1, 4)], strict=True)
    ]
    for contrast in (
        [(1, 2), (1, 3), (1, 4)],
        np.asarray([(1, 2), (1, 3), (1, 4)]),
        (1, [2, 3, 4]),
        ([1, 1, 1], [2, 3, 4]),
    ):
        for e, one in zip(model.explain(inputs, contrast=contrast), alone, strict=True):
            assert (e.target, e.against) == (one.target, one.against)
            assert np.allclose(e.relevance, one.relevance, rtol=0, atol=1e-12)
    two = model.explain(inputs[:2], contrast=[(1, 2), (2, 1)])
    assert [(e.target, e.against) for e in two] == [("1", "2"), ("2", "1")]
    refused(lambda: model.explain(inputs, contrast=[(1, 2), (1, 3)]), "a list of 3 such pairs")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"target": 1, "contrast": (1, 2)}, "not both"),
        ({"contrast": (1, 2), "seed": "probability"}, "cannot be combined"),
        ({"contrast": (2, 2)}, "two different tokens"),
        ({"target": [1, 2]}, "2 targets for 1 inputs"),
        ({"target": []}, "target is \\[\\]"),
        ({"target": {1}}, "no token id"),
        ({"seed": "logits"}, "unknown seed"),
        ({"seed": None}, "unknown seed"),
        ({"seed": ["logit"]}, "unknown seed"),
        ({"at": ("lm_head", (1, 1)), "target": 3}, "leave target"),
        ({"at": "lm_head"}, "at is"),
        ({"at": ("lm_head", 3)}, "at is"),
        ({"at": ("lm_head", (True, 1))}, "at is"),
        ({"at": ("lm_head", (1.0, 1))}, "at is"),
        ({"at": (3, (1,))}, "at is"),
        ({"at": ()}, "at is"),
        ({"keep": 5}, "keep is"),
        ({"batch_tokens": 0}, "batch_tokens is"),
        ({"batch_tokens": 1e3}, "batch_tokens is"),
        ({"keep": b"*"}, "keep is"),
        ({"keep": ["*", 3]}, "keep is"),
        ({"recompute": "no"}, "recompute is"),
        ({"recompute": 1}, "recompute is"),
        ({"audit": None}, "audit is"),
        ({"progress": 5}, "progress is"),
        ({"method": 5}, "method is"),
        ({"method": None}, "method is"),
        ({"method": ["attnlrp"]}, "method is"),
        ({"method": "atnlrp"}, "unknown method"),
        ({"method": Path("none.toml")}, "cannot read the composite"),
        ({"stabilizer": "signs"}, "stabilizer is"),
        ({"stabilizer": ["sign"]}, "stabilizer is"),
        ({"decoder": [0]}, "no decoder"),
        ({"decoder": "a"}, "no decoder"),
    ],
    ids=repr,
)
def test_what_contradicts_itself_is_refused_first(
    how: dict[str, Any], words: str, never_run: None
) -> None:
    refused(lambda: net("llama").explain(IDS, **how), words)


@pytest.mark.parametrize("decoder", [5, b"0", [0.0], [True], [[0], [0]], [[0], 1], [], {0}, [99]])
def test_what_no_decoder_has_written(decoder: Any, never_run: None) -> None:
    refused(lambda: net("t5").explain(IDS, decoder=decoder), "expected|is outside")


@pytest.mark.parametrize("name", ["at", "contrast", "target"])
def test_several_targets_say_what_is_explained(name: str, never_run: None) -> None:
    value = {"at": ("lm_head", (0, 0)), "contrast": (1, 2), "target": 3}[name]
    refused(lambda: net("llama").explain_each(IDS, [1, 2], **{name: value}), f"{name}= says what")


@pytest.mark.parametrize("targets", [[], "12", 5, None, {1}, (i for i in [1])])
def test_what_is_no_list_of_targets(targets: Any, never_run: None) -> None:
    refused(lambda: net("llama").explain_each(IDS, targets), "targets is")


def test_several_targets_of_one_input_alone(never_run: None) -> None:
    refused(lambda: net("llama").explain_each([IDS, IDS], [1, 2]), "takes one input")


# -- sites -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pattern_that_names_no_site(recompute: bool) -> None:
    for keep in ("*.mpl", ["*.mlp", "model.layers.7.mlp"], "", "lm_heed"):
        refused(
            lambda k=keep: net("llama").explain(IDS, keep=k, recompute=recompute),
            "keep names .* no site of this model; nearest:",
        )
    kept = net("llama").explain(IDS, keep={"*.q_proj", "lm_head"}, recompute=recompute)
    assert "model.layers.0.self_attn.q_proj" in set(kept)


# -- options of rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "eps", [np.nan, np.inf, -np.inf, -1e-6, 0, 0.0, "1e-6", True, LONG, 10**400], ids=type
)
def test_what_is_no_stabilizer(eps: Any, never_run: None) -> None:
    refused(lambda: net("llama").explain(IDS, eps=eps), "eps")
    refused(lambda: net("llama").explain_each(IDS, [1], eps=eps), "eps")


@pytest.mark.parametrize("eps", [1e39, 2e38, 1e-60, np.float64(1e100)])
def test_what_float32_cannot_hold(eps: float) -> None:
    model = random_model(SMALL["llama"], 0, "float32")
    refused(lambda: model.explain(IDS, eps=eps), r"eps is .*float32 cannot hold.* 1.7e\+38")
    net("llama").explain(IDS, eps=eps)  # float64 can


def test_numbers_of_numpy_are_options() -> None:
    wanted = net("llama").explain(IDS, eps=1e-3)
    for eps in (np.float64(1e-3), np.asarray(1e-3)):
        assert np.array_equal(net("llama").explain(IDS, eps=eps).relevance, wanted.relevance)


# -- odd orders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["foo", "network", "composite", "batch_token"])
def test_an_option_that_explain_each_lacks(name: str, never_run: None) -> None:
    refused(lambda: net("llama").explain_each(IDS, [1], **{name: 1}), f"no option {name}: expected")


def test_a_text_of_no_tokens_more_is_not_generated(never_run: None) -> None:
    refused(lambda: net("llama").generate(IDS, -1), "tokens is -1: expected")
