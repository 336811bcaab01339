"""What a page of a walk is told: the engine's numbers, all of them, as they are; and nothing of a
checkpoint that a browser would run. Nothing here needs a browser.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import zlib
from fractions import Fraction
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of
from hypothesis import given
from hypothesis import strategies as st
from walk_pages import (
    ATTACKS,
    METHODS,
    Page,
    Told,
    asked_of,
    drawn_model,
    hostile_folder,
    random_walk,
    unpacked,
)

import refl
import refl.rules
import refl.walk
from refl.cli import main
from refl.errors import ReflError
from refl.model import SHIPPED, Model
from refl.verification.random_models import ALBERT, ARCHITECTURES, BERT, LLAMA, random_model
from refl.walk import Walk, walk
from refl.walk.packed import Packed

TEXT = "the keys to the cabinet"
LARGEST = float(np.finfo(np.float64).max)
U = 2.0**-53

Capture = pytest.CaptureFixture[str]


# -- packed arrays ---------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-2.3e-308, 2.3e-308),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, LARGEST, -LARGEST, 1.0, 2.0**-1022, 1 + 2.0**-37]),
)


def read_back(text: str, where: dict[str, Any]) -> list[Any]:
    return unpacked(zlib.decompress(base64.b64decode(text)), where)


@pytest.mark.parametrize(("kind", "cut"), [("f6", 16), ("f5", 24)])
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_number_is_the_nearest_there_is(kind: str, cut: int, numbers: list[float]) -> None:
    """Of those whose last `cut` bits are zero: half a step of them away at most, and a number
    that is one of them is itself, down to the sign of zero. The last step before infinity goes
    down.
    """
    packed = Packed()
    number = packed.put(np.array(numbers), kind)
    found = read_back(packed.text(), packed.arrays[number])
    for before, after in zip(numbers, found, strict=True):
        step = Fraction(math.ulp(before)) * 2**cut
        near = step if abs(before) >= LARGEST * (1 - 2.0**-20) else step / 2
        assert math.isfinite(after)
        assert abs(Fraction(after) - Fraction(before)) <= near
        assert math.copysign(1, after) == math.copysign(1, before)
    again = Packed()
    again.put(np.array(found), kind)
    assert str(read_back(again.text(), again.arrays[0])) == str(found)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("f4", [0.0, -0.0, 1.5, -(2.0**-149), float(np.finfo(np.float32).max)]),
        ("i4", [0, -1, 2**31 - 1, -(2**31)]),
        ("u1", [0, 1, 1, 0]),
    ],
)
def test_what_is_short_already_is_itself(kind: str, numbers: list[Any]) -> None:
    packed = Packed()
    packed.put(np.arange(3.0), "f6")  # something before it
    number = packed.put(np.array(numbers), kind)
    assert str(read_back(packed.text(), packed.arrays[number])) == str(numbers)


def test_equal_arrays_are_stored_once_and_unequal_ones_never() -> None:
    packed = Packed()
    a, zeros = np.arange(6.0), np.zeros(3)
    assert packed.put(a, "f6") == packed.put(a.reshape(2, 3), "f6") == packed.put(a.copy(), "f6")
    numbers = [packed.put(x, kind) for x in (a, zeros, -zeros) for kind in ("f6", "f5")]
    assert len(set(numbers)) == 6
    assert packed.weights(a.astype(np.float32)) == packed.weights(a) != packed.weights(a + 2**-40)


def test_an_array_without_numbers() -> None:
    packed = Packed()
    packed.put(np.zeros((0, 3)), "f6")
    number = packed.put(np.ones(2), "f6")
    assert read_back(packed.text(), packed.arrays[0]) == []
    assert read_back(packed.text(), packed.arrays[number]) == [1.0, 1.0]


# -- every number of every architecture ------------------------------------------------------------


@pytest.fixture(scope="module", params=ARCHITECTURES)
def told(request: pytest.FixtureRequest) -> Told:
    model, w = random_walk(request.param)
    return Told(model, w)


def nearest(found: Any, expected: Any, bits: int) -> None:
    """Within half of the last of `bits` bits."""
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= np.abs(expected) * 2.0 ** -(bits + 1))


def test_every_value_is_the_engines(told: Told) -> None:
    e = told.explanations[0]
    canonical = {value["site"] for value in told.data["values"]}
    assert canonical == {e.sites.canonical(site) for site in e}
    for value in told.data["values"]:
        nearest(told.arrays.value(value), e.activation(value["site"]), 36)
        assert value["names"][0] == value["site"]
        assert {e.sites.canonical(name) for name in value["names"]} == {value["site"]}


def test_everything_propagated_is_the_engines(told: Told) -> None:
    for m, e in enumerate(told.explanations):
        for value in told.data["values"]:
            expected = np.asarray(e.sites.propagated[value["site"]])
            nearest(told.arrays.propagated(value, m), expected, 28)
            assert (value["propagated"][m] is None) == (not expected.any())


def test_every_entry_of_the_ledger_is_the_engines(told: Told) -> None:
    for m, e in enumerate(told.explanations):
        entries = {entry.site: entry for entry in e.ledger}
        said = {stop["site"]: stop["rules"][m] for stop in told.stops if stop["rules"][m]}
        assert said.keys() == entries.keys()
        for site, rule in said.items():
            entry = entries[site]
            assert rule["rule"] == entry.rule
            for name in ("received", "passed", "absorbed", "conservation_error"):
                assert rule[name] == getattr(entry, name)
            assert rule["rounding_bound"] == 8 * U * (entry.rounding_scale or 0)
            assert abs(rule["conservation_error"]) <= rule["rounding_bound"]


def test_every_account_is_the_engines_and_adds_up(told: Told) -> None:
    assert [method["name"] for method in told.data["methods"]] == list(METHODS)
    for m, (method, e) in enumerate(zip(told.data["methods"], told.explanations, strict=True)):
        assert method["explained"] == told.data["explained"] == e.explained
        assert method["absorbed"] == e.ledger.absorbed
        assert method["formulation"] == e.composite.formulation
        parts = [method["reached"], *method["absorbed"].values()]
        scale = sum(rule["rounding_bound"] for s in told.stops if (rule := s["rules"][m]))
        assert abs(e.explained - math.fsum(parts)) <= scale
        if e.picture is None:
            assert method["relevance"] == [float(r) for r in e.relevance]
            total = math.fsum([*method["relevance"], *(method["decoder_relevance"] or [])])
        else:
            pixels = told.arrays.array(method["relevance"], e.relevance.shape)
            nearest(pixels, e.relevance, 28)
            total = math.fsum(float(r) for r in e.relevance.flat)
        assert abs(total - method["reached"]) <= scale + 64 * U * abs(total)


def test_what_is_explained(told: Told) -> None:
    e = told.explanations[0]
    names = ("what", "target", "against", "position", "decoder_tokens")
    assert {n: told.data[n] for n in names} == {n: getattr(e, n) for n in names}
    assert told.data["tokens"] == e.tokens
    assert told.data["architecture"] == told.model.net.MODEL_TYPE
    assert told.data["dtype"] == "float64"


def test_every_weight_is_the_checkpoints(told: Told) -> None:
    for weight in told.data["weights"]:
        stored = told.model.weights[_stored(weight["name"])]
        if list(stored.shape) != weight["shape"]:  # a convolution's kernel
            stored = stored.reshape(len(stored), -1)
        if list(stored.shape) != weight["shape"] or _transposed(told, weight):
            stored = stored.T
        nearest(told.arrays.array(weight["array"], weight["shape"]), stored, 36)


def _stored(name: str) -> str:
    """ALBERT's three layers have the weights of two groups, and sites of their own."""
    layer = re.match(r"albert\.encoder\.layer\.(\d)\.", name)
    if layer is None:
        return name
    group = int(layer[1]) * ALBERT["num_hidden_groups"] // ALBERT["num_hidden_layers"]
    return f"albert.encoder.albert_layer_groups.{group}.{name[layer.end() :]}"


def _transposed(told: Told, weight: dict[str, Any]) -> bool:
    """GPT-2 stores these (I, O)."""
    return told.model.net.MODEL_TYPE == "gpt2" and ".c_" in weight["name"]


def test_who_makes_a_value_and_who_reads_it(told: Told) -> None:
    makers = {stop["output"]: stop["index"] for stop in told.stops}
    for number, value in enumerate(told.data["values"]):
        assert value["id"] == number
        assert value["made_by"] == makers[number]
        readers = [s["index"] for s in told.stops if {"value": number} in s["operands"]]
        assert value["read_by"] == readers
        assert all(value["made_by"] < reader for reader in readers)
    assert [stop["index"] for stop in told.stops] == list(range(len(told.stops)))


def test_what_readers_pass_on_is_what_arrives(told: Told) -> None:
    """Fan-in is a sum: what all readers of a value say they passed to it is what it received."""
    for m, method in enumerate(told.data["methods"]):
        for value in told.data["values"]:
            if not value["read_by"]:
                continue
            rules = [told.stops[reader]["rules"][m] for reader in value["read_by"]]
            passed = [rule["passed"].get(value["site"], 0.0) for rule in rules if rule]
            arrived = told.arrays.propagated(value, m)
            if method["formulation"] == "gradient_x_input":
                arrived = arrived * told.arrays.value(value)
            bound = np.abs(arrived).sum() * 2.0**-28 + sum(r["rounding_bound"] for r in rules if r)
            assert abs(math.fsum(passed) - arrived.sum()) <= bound


def test_what_a_movement_moves(told: Told) -> None:
    """The map alone makes the output of the inputs, and relevance goes back along it."""
    for stop in told.stops:
        if "from" not in stop["attributes"]:
            continue
        operands = [told.operand(o) for o in stop["operands"]]
        laid = np.concatenate([o.reshape(-1) for o in operands])
        output = told.arrays.value(told.data["values"][stop["output"]])
        places = told.arrays.array(stop["attributes"]["from"], output.shape)
        moved = np.where(places < 0, 0.0, laid[places])
        assert np.array_equal(moved, output)
        assert _went_back(told, stop, operands, places)


def _went_back(told: Told, stop: dict[str, Any], operands: list[Any], places: Any) -> bool:
    value = told.data["values"][stop["output"]]
    moved = 0
    for m, rule in enumerate(stop["rules"]):
        if rule is None:
            continue
        relevance = told.arrays.propagated(value, m)
        if told.data["methods"][m]["formulation"] == "gradient_x_input":
            relevance = relevance * told.arrays.value(value)
        back = np.zeros(sum(o.size for o in operands))
        np.add.at(back, places[places >= 0], relevance[places >= 0])
        edges = np.cumsum([o.size for o in operands])[:-1]
        sites = [told.value(o)["site"] for o in stop["operands"]]
        sums: dict[str, float] = {}
        for site, part in zip(sites, np.split(back, edges), strict=True):
            sums[site] = sums.get(site, 0.0) + float(part.sum())
        bound = float(np.abs(relevance).sum()) * 2.0**-28 + rule["rounding_bound"]
        moved += all(abs(sums[s] - rule["passed"].get(s, 0.0)) <= bound for s in sums)
    return moved == sum(rule is not None for rule in stop["rules"])


def test_operands_stand_in_the_order_of_the_rule(told: Told) -> None:
    """Linear maps, products, sums and norms computed again by what they are."""
    for stop in told.stops:
        if again := AGAIN.get(stop["operation"]):
            operands = [told.operand(o) for o in stop["operands"]]
            first = (told,) if again in (_rotary, _softmax) else ()
            z, size = again(*first, *operands, **stop["attributes"])
            output = told.arrays.value(told.data["values"][stop["output"]])
            assert z.shape == output.shape
            # every number it is made of is rounded to 36 bits of mantissa, and so is the output
            assert np.all(np.abs(z - output) <= 4 * 2.0**-37 * size + 1e-300), stop["site"]


def _linear(x: Any, w: Any, b: Any, **_: Any) -> tuple[Any, Any]:
    beside = np.zeros(len(w)) if b is None else b
    return x @ w.T + beside, np.abs(x) @ np.abs(w).T + np.abs(beside)


def _layer_norm(x: Any, w: Any, b: Any, norm_eps: float, **_: Any) -> tuple[Any, Any]:
    centered = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centered**2).mean(-1, keepdims=True) + norm_eps)
    beside = np.zeros_like(w) if b is None else b
    largest = np.abs(x).max(-1, keepdims=True) * np.abs(w) / std
    size = largest * (2 + np.abs(x).max(-1, keepdims=True) / std) + np.abs(beside)
    return centered / std * w + beside, size


def _rms_norm(x: Any, w: Any, norm_eps: float, offset: float = 0.0, **_: Any) -> tuple[Any, Any]:
    z = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm_eps) * (offset + w)
    return z, np.abs(z) + np.abs(x) * (abs(offset) + np.abs(w))


def _rotary(told: Told, x: Any, **said: Any) -> tuple[Any, Any]:
    cos, sin = (told.arrays.array(said[name], x.shape) for name in ("cos", "sin"))
    half = x.shape[-1] // 2
    across = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos + across * sin, np.abs(x * cos) + np.abs(across * sin)


def _softmax(told: Told, x: Any, **said: Any) -> tuple[Any, Any]:
    """Logits of size m are off by m 2^-37, and so is what they are the exponents of."""
    if "mask" in said:
        visible = told.arrays.array(said["mask"], x.shape)
        assert set(np.unique(visible)) <= {0, 1}
        x = np.where(visible == 1, x, -np.inf)
    e = np.exp(x - x.max(-1, keepdims=True))
    largest = np.abs(np.where(np.isfinite(x), x, 0.0)).max()
    return e / e.sum(-1, keepdims=True), np.full(x.shape, 1 + largest) * (e > 0)


AGAIN: dict[str, Any] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "rotary": _rotary,
    "softmax": _softmax,
    "rms_norm": _rms_norm,
    "add": lambda a, b, **_: (a + b, np.abs(a) + np.abs(b)),
    "matmul": lambda a, v, **_: (a @ v, np.abs(a) @ np.abs(v)),
    "multiply": lambda *a, **_: (math.prod(a), np.abs(math.prod(a))),
    "scale": lambda x, factor, **_: (x * factor, np.abs(x * factor)),
}


# -- rules, lines of files, blocks -----------------------------------------------------------------

PLACES = {"rules": Path(refl.rules.__file__).parent, "refl": Path(refl.__file__).parent}


def test_the_lines_of_a_rule_stand_where_the_page_says(told: Told) -> None:
    for source in told.data["sources"]:
        folder, _, file = source["file"].partition("/")
        lines = (PLACES[folder] / file).read_text(encoding="utf-8").splitlines()
        said = lines[source["first"] - 1 : source["last"]]
        assert source["text"].splitlines() == said
        (start,) = [line for line in said if line.startswith("def ")]
        assert start.startswith(f"def {source['name']}(")
        assert source["last"] == len(lines) or not lines[source["last"]].strip()


FUNCTIONS = {
    "attnlrp": {
        "linear": "epsilon", "add": "epsilon", "multiply": "uniform", "matmul": "uniform",
        "softmax": "taylor", "rms_norm": "identity", "layer_norm": "epsilon", "rotary": "epsilon",
        "activation": "identity", "pooling": "epsilon", "scale": "pass_through",
        "movement": "pass_through", "embedding": "leaf", "learned": "leaf", "source": "leaf",
    },
    "cp-lrp": {
        "linear": "gradient", "add": "gradient", "multiply": "second_gxi",
        "softmax": "constant_gxi", "rms_norm": "identity_gxi", "layer_norm": "epsilon_gxi",
        "rotary": "gradient", "activation": "identity_gxi", "pooling": "gradient",
        "scale": "gradient", "movement": "pass_through", "embedding": "leaf_gxi",
        "learned": "leaf_gxi", "source": "leaf_gxi",
    },
    "input-x-gradient": dict.fromkeys(
        ("linear", "add", "multiply", "matmul", "softmax", "rms_norm", "layer_norm", "rotary",
         "activation", "pooling", "scale"), "gradient")
    | {"movement": "pass_through"}
    | dict.fromkeys(("embedding", "learned", "source"), "leaf_gxi"),
}  # fmt: skip
"""Of the papers' tables: operation -> the function of its rule's file."""


def test_every_method_has_its_own_rules(told: Told) -> None:
    for stop in told.stops:
        assert told.data["sources"][stop["forward"]["source"]]["name"] == "forward"
        for method, rule in zip(METHODS, stop["rules"], strict=True):
            if rule is None:
                continue
            expected = FUNCTIONS[method].get(stop["operation"])
            if method == "cp-lrp" and stop["operation"] == "matmul":
                expected = "second_gxi" if stop["role"] == "attention.context" else "uniform_gxi"
            assert expected is None or rule["function"] == expected
            source = told.data["sources"][rule["source"]]
            assert source["name"] == rule["function"]
            assert source["file"] == f"rules/{stop['operation']}.py"
            assert rule["equation"] == f"{stop['operation']}.{rule['function']}"
            if rule["function"] == "epsilon":
                assert rule["options"] == {"eps": 1e-6, "stabilizer": "sign"}


def test_every_operation_of_a_block_stands_in_it(told: Told) -> None:
    blocks = told.data["blocks"]
    assert len(blocks) >= 2
    inside = sum(block["last"] + 1 - block["first"] for block in blocks)
    assert inside == sum(stop["block"] is not None for stop in told.stops)
    for stop in told.stops:
        if stop["block"] is None:
            continue
        block = blocks[stop["block"]]
        assert block["first"] <= stop["index"] <= block["last"]
        site = stop["site"]
        assert site == block["site"] or site.startswith(f"{block['site']}.")
        assert site in (block["site"], f"{block['site']}.{stop['label']}")
    names = [block["name"] for block in blocks]
    assert len(set(names)) == len(names)


# -- what is explained -----------------------------------------------------------------------------


def test_a_contrast_a_position_and_a_seed() -> None:
    model = refl.load(dtype="float64")
    asked: list[dict[str, Any]] = [
        {"contrast": ("are", "is")},
        {"position": 2, "seed": "log-probability"},
        {"target": "is"},
    ]
    for how in asked:
        w, e = walk(model, TEXT, **how), model.explain(TEXT, keep=(), **how)
        assert w.data["what"] == e.what and w.data["explained"] == e.explained
        assert w.data["methods"][0]["relevance"] == [float(r) for r in e.relevance]
        assert w.data["position"] == e.position


def test_the_shipped_model_has_room_to_spare() -> None:
    """Under 2,000,000 bytes, and its weights are exact."""
    model = refl.load(dtype="float64")
    page = walk(model, TEXT).html()
    assert len(page.encode("utf-8")) < 2_000_000
    told = Page(page)
    for weight in told.data["weights"]:
        found = told.arrays.array(weight["array"], weight["shape"])
        assert np.array_equal(found, model.weights[weight["name"]])
        assert told.data["arrays"][weight["array"]]["kind"] == "f4"


def test_pictures() -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    model, w = random_walk("vit")
    pixels, _ = asked_of(model)
    said = Page(w.html()).data["picture"]
    kind, _, content = said.pop("uri").partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(pil.open(io.BytesIO(base64.b64decode(content)))), pixels)
    assert said == {"rows": 2, "columns": 4, "size": [8, 12]}


def test_one_token() -> None:
    w = walk(random_model(LLAMA, 3), [4])
    page = Page(w.html())
    softmaxes = [s for s in page.data["stops"] if s["operation"] == "softmax"]
    for stop in softmaxes:
        value = page.data["values"][stop["output"]]
        assert np.array_equal(page.arrays.value(value), np.ones(value["shape"]))


def test_progress_is_told() -> None:
    told: list[Any] = []
    walk(random_model(LLAMA, 3), [4, 1], progress=lambda *said: told.append(said))
    assert [said for said in told if said[0] == "walk"] == [("walk", n, 3) for n in (1, 2, 3)]


# -- limits ----------------------------------------------------------------------------------------


def refused(says: str, model: Model, item: Any, **asked: Any) -> None:
    with pytest.raises(ReflError, match=says) as reason:
        walk(model, item, **asked).html()
    assert str(reason.value).count("\n") == 0


def test_what_a_walk_is_not_of() -> None:
    model = random_model(LLAMA, 3)
    refused("one input", model, [[1, 2], [3, 4]])
    refused("no option method", model, [1, 2], method="attnlrp")
    refused("no option keep", model, [1, 2], keep="*")


def test_a_model_of_too_many_weights_is_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than four bytes each, in base64: 8 MB have room for 1.5 million."""
    wide = LLAMA | {"vocab_size": 47_000}  # twice 16 numbers each
    model = random_model(wide, 1)
    monkeypatch.setattr(type(model), "forward", None)
    refused(r"no room for the 1,50\d,\d\d\d weights of random llama 1", model, [1, 2])


def test_a_text_that_is_too_long_is_refused_before_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(LLAMA, 1)
    monkeypatch.setattr(refl.walk, "METHODS", ("none such",) * 3)  # no sweep is ever asked for
    refused("shorten the text", model, [n % 17 for n in range(300)])


def test_what_turns_out_too_large_says_how_many_tokens_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model(LLAMA, 1)
    size = len(walk(model, [1, 2, 3, 4, 5, 6]).html())
    monkeypatch.setattr(refl.walk, "LIMIT", size - 1)
    refused("of these 6 tokens about 5 have room, so shorten the text", model, [1, 2, 3, 4, 5, 6])
    picture, _ = asked_of(vit := drawn_model("vit"))
    monkeypatch.setattr(refl.walk, "LIMIT", len(walk(vit, picture)._html) - 1)
    refused("take a smaller model", vit, picture)


# -- hostile text ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_folder(tmp_path_factory.mktemp("a"))


def harmless(html: str) -> Page:
    """The page's own elements and no others, and only its own script may run."""
    page = Page(html)
    scripts = [said for name, said in page.elements if name == "script"]
    assert scripts == [
        {"type": "text/plain", "id": "walk-data"},
        {"type": "text/plain", "id": "walk-arrays"},
        {},
    ]
    names = [name for name, _ in page.elements]
    assert names == [
        "html", "head", "meta", "meta", "meta", "meta", "title", "style", "body", "main",
        "noscript", "script", "script", "script",
    ]  # fmt: skip
    assert not page.comments
    assert not any(key.startswith("on") for _, said in page.elements for key in said)
    for block in ("walk-data", "walk-arrays"):
        inside = html.partition(f'id="{block}">')[2].partition("</script")[0]
        assert re.fullmatch("[A-Za-z0-9+/]+=*", inside)
    outside = html.replace(page.inside("script"), "").replace(page.inside("style"), "")
    assert all(c.isprintable() or c == "\n" for c in outside)
    policy(page)
    return page


def policy(page: Page) -> None:
    """Hashes as a browser forms them: of the text between the tags, line ends as `\\n`."""
    said = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert said["default-src"] == "'none'" and said["base-uri"] == "'none'"
    assert said["form-action"] == "'none'" and said["img-src"] == "data:"
    for source, inside in (("script-src", "script"), ("style-src", "style")):
        text = page.inside(inside)
        assert "\r" not in text and "\x00" not in text
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        assert said[source] == f"'sha256-{digest}'"
    assert len(said) == 6


def test_no_token_becomes_markup(hostile: Path) -> None:
    model = refl.load(hostile)
    for target in (0, 4):
        w = walk(model, list(range(len(ATTACKS))), target=model.tokens([target])[0])
        page = harmless(w.html())
        assert page.data == json.loads(json.dumps(w.data | {"equations": page.data["equations"]}))
        assert page.data["tokens"] == model.tokens(list(range(len(ATTACKS))))


def test_no_label_of_a_class_becomes_markup(tmp_path: Path) -> None:
    labels = {"id2label": dict(enumerate(ATTACKS)), "num_labels": len(ATTACKS)}
    config = BERT | {"architectures": ["BertForSequenceClassification"]} | labels
    model = refl.load(checkpoint_of(tmp_path / "model", config))
    for target in (ATTACKS[0], ATTACKS[4]):
        page = harmless(walk(model, [1, 2], target=target).html())
        assert page.data["target"] == target


def test_the_page_itself() -> None:
    _, w = random_walk("llama")
    page = harmless(w.html())
    script, style = page.inside("script"), page.inside("style")
    for word in ("eval(", "new Function", "document.write", "http://", "https://", "import("):
        assert word not in script.replace("http://www.w3.org/", "")
    assert "url(" not in style and "@import" not in style
    equations = json.dumps(page.data["equations"])
    assert "<script" not in equations and "href" not in equations


def test_an_unknown_number_is_null() -> None:
    """JSON has no NaN."""
    _, w = random_walk("llama")
    odd = Walk(w.explanations, w.data | {"explained": math.nan, "target": [math.inf]}, w.arrays)
    found = Page(odd.html()).data
    assert found["explained"] is None and found["target"] == [None]


# -- the command -----------------------------------------------------------------------------------


def refusal(capsys: Capture, *arguments: str) -> str:
    assert main(["walk", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("refl")
    assert err[:-1].isprintable() and "Traceback" not in err
    return err


def test_the_command(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "walk.html"
    assert main(["walk", TEXT, "--html", str(file)]) == 0
    out, err = capsys.readouterr()
    written = file.read_bytes()
    assert err == "" and out.startswith(f"wrote {file}") and f"{len(written) / 1e6:.1f} MB" in out
    assert written.decode("utf-8") == walk(refl.load(dtype="float64"), TEXT).html()
    assert main(["walk", TEXT, "--html", str(file), "--json", "--contrast", "are", "is"]) == 0
    said = json.loads(capsys.readouterr().out)
    page = Page(file.read_text(encoding="utf-8"))
    assert said == {
        "html": str(file), "stops": len(page.data["stops"]), "bytes": file.stat().st_size,
    }  # fmt: skip
    assert page.data["what"] == "logit of 'are' minus logit of 'is'"


def test_ids_and_single_precision(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "walk.html"
    assert main(["walk", "--ids", "2", "9", "--dtype", "float32", "--html", str(file)]) == 0
    assert Page(file.read_text(encoding="utf-8")).data["dtype"] == "float32"
    assert capsys.readouterr().err == ""


def test_a_hostile_checkpoint_by_the_command(hostile: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "walk.html"
    ids = [str(n) for n in range(6)]
    assert main(["walk", "--model", str(hostile), "--ids", *ids, "--html", str(file)]) == 0
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)
    harmless(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["the " * 120], "shorten the text"),
        ([TEXT, "--target", "nosuchword"], "nosuchword"),
        ([TEXT, "--position", "77"], "77"),
        ([TEXT, "--target", "are", "--contrast", "are", "is"], "not both"),
        ([TEXT, "--ids", "2"], "not both"),
        ([], "give a TEXT"),
        ([TEXT, "--model", "no such folder"], "no such folder"),
    ],
)
def test_refused_in_one_sentence_and_no_file(
    arguments: list[str], says: str, before: bytes | None, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "walk.html"
    if before is not None:
        file.write_bytes(before)
    assert says in refusal(capsys, *arguments, "--html", str(file))
    assert (file.read_bytes() if file.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == (before is not None)


def test_a_model_that_is_too_large_by_the_command(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint_of(tmp_path / "wide", LLAMA | {"vocab_size": 47_000})
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    file = tmp_path / "walk.html"
    said = refusal(capsys, "--ids", "1", "--model", str(folder), "--html", str(file))
    assert "no room for the 1,50" in said and "refl trace" in said
    assert not file.exists()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_file_is_asked_for_and_is_not_the_models(tmp_path: Path, capsys: Capture) -> None:
    assert "--html" in refusal(capsys, TEXT)
    folder = copytree(SHIPPED, tmp_path / "model")
    config = (folder / "config.json").read_bytes()
    refusal(capsys, TEXT, "--model", str(folder), "--html", str(folder / "config.json"))
    assert (folder / "config.json").read_bytes() == config
    refusal(capsys, TEXT, "--html", str(tmp_path / "no" / "folder" / "walk.html"))
