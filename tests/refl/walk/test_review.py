"""What a page says must hold for the net at hand: words by role, questions with ties, one token,
models with edits, addresses that nobody's page made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsers import Watched, browser, watched
from walk_pages import asked_of, drawn_model

import refl
from refl.errors import ReflError
from refl.model import Model
from refl.walk import Walking, walk

TEXT = "the keys to the cabinet"


def test_what_a_walk_has_no_use_for_is_refused() -> None:
    with pytest.raises(ReflError, match="a walk keeps every site: leave keep out"):
        refl.load().explain(TEXT, Walking(), keep="model.norm")


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window() -> Iterator[Watched]:
    with browser() as started:
        yield watched(started)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, window: Watched) -> Callable[..., Watched]:
    """The page of a walk through a model, by name: opened, at an address."""
    folder = tmp_path_factory.mktemp("walks")

    def opened(name: str, address: str = "") -> Watched:
        file = folder / f"{name}.html"
        if not file.exists():
            model, item, more = MODELS[name]() if name in MODELS else drawn(name)
            file.write_text(walk(model, item, **more).html(), encoding="utf-8")
        window.open(file, address)
        return window

    return opened


Asked = tuple[Model, Any, dict[str, Any]]
Page = Callable[..., Watched]


def drawn(name: str) -> Asked:
    model = drawn_model(name)
    item, more = asked_of(model)
    return model, item, more


def edited() -> Asked:
    return drawn_model("llama").with_edits({"L0.N3": refl.value(0.5)}), [3, 1, 8], {}


MODELS: dict[str, Callable[[], Asked]] = {
    "one": lambda: (drawn_model("llama"), [3], {}),
    "edited": edited,
}

IDEAS = """(role) => data.stops.filter((stop) => (stop.attributes.role || stop.role) === role)
  .map((stop) => { const {does, idea} = saidForward(stop); return `${does} ${idea ?? ""}`; })"""


@pytest.mark.needs("playwright")
@pytest.mark.parametrize(
    ("name", "role", "false", "true"),
    [
        ("gpt2", "embedding.sum", "residual", "added"),
        ("gpt2", "position", "id of each token", "position"),
        ("bert", "token_type", "id of each token", "type of each token"),
        ("t5", "attention.bias", "residual", "distance"),
        ("mixtral", "router.probabilities", "masked", "expert"),
        ("mixtral", "expert.weighted", "gate", "expert"),
        ("edited", "edit", "gate", "by hand"),
        ("vit", "pixels", "by hand", "picture"),
        ("llama", "residual", "by hand", "stream"),
    ],
)
def test_words_are_of_what_an_operation_is_for(
    page: Page, name: str, role: str, false: str, true: str
) -> None:
    """The first add of GPT-2 is no residual, its second table holds no tokens."""
    said = page(name).evaluate(IDEAS, role)
    assert said and all(true in each and false not in each for each in said), said


@pytest.mark.needs("playwright")
def test_every_idea_is_told_once_forward(page: Page) -> None:
    """At the first stop that has it, to which all others point."""
    shown = page("mixtral").evaluate(
        """() => data.stops.map((stop) => { walk.go(stop.index, "forward");
        return [saidForward(stop).idea ?? null,
          [...document.querySelectorAll(".idea")].map((node) => node.textContent)]; })"""
    )
    met: set[str] = set()
    for idea, told in shown:
        assert told == ([idea] if idea and idea not in met else []), idea
        met.add(idea)


@pytest.mark.needs("playwright")
def test_a_product_with_a_constant_parts_no_methods(page: Page) -> None:
    """R goes to the one factor that is left, whether by the uniform rule, by the second, or by the
    true derivative.
    """
    found = page("edited").evaluate(
        """() => [[0, 1], [0, 2], [1, 2]].flatMap(([m, n]) => Rules.parts(c, data, m, n))
        .filter((index) => data.stops[index].role === "edit")"""
    )
    assert found == []


@pytest.mark.needs("playwright")
def test_a_question_has_something_to_choose(page: Page) -> None:
    """Of one token nobody is asked which."""
    asked = page("one").evaluate(
        """() => data.stops.flatMap((stop) => ["forward", "sweep"].flatMap((direction) =>
        [0, 1, 2].map((m) => questionOf(stop, direction, m)))).filter(Boolean)
        .map((one) => [one.options.length, one.right])"""
    )
    assert asked and all(count > 1 and 0 <= answer < count for count, answer in asked)


@pytest.mark.needs("playwright")
def test_equal_answers_are_equally_right(page: Page) -> None:
    """Zeros above one negative row, as where only the last row received anything."""
    asked = page("one").evaluate(
        """() => {
        const asked = tokenQuestion('?', [0, 0, -1], ['a', 'b', 'c'], 'relevance');
        return {options: asked.options, answers: [asked.right, ...asked.ties]};
    }"""
    )
    assert asked["options"] == ["a (token 0)", "b (token 1)", "c (token 2)"]
    assert set(asked["answers"]) == {0, 1}


@pytest.mark.needs("playwright")
@pytest.mark.parametrize(
    "address",
    [
        "#sweep/1e9", "#sweep/99999999999999999999", "#forward/-1", "#sweep/3?e=NaN", "#%",
        "#sweep/5?m=__proto__&e=__proto__", "#sweep/5?mistake=<img src=x onerror=alert(1)>",
        "#sweep/5?k=1e9&e=1,1", "#forward/5?e=Infinity,-0", "#sweep/5?k=-1&e=0,0", "#constructor/1",
        "#sweep/5?k=0.5&e=0,0,0,0,0", "#sweep/5?m=%E0%A4%A&mistake=constructor",
    ],
)  # fmt: skip
def test_no_address_breaks_a_page(page: Page, address: str) -> None:
    """It is left aside, or what of it can be understood is taken, and the page goes on."""
    opened = page("one", address)
    before = opened.evaluate("() => walk.state.position")
    opened.page.keyboard.press("ArrowRight")
    assert opened.evaluate("() => [walk.state.position, walk.state.method]") == [before + 1, 0]
    assert opened.evaluate("() => document.querySelectorAll('img').length") == 0
    opened.quiet()


@pytest.mark.needs("playwright")
def test_what_json_has_no_number_for_is_nan(page: Page) -> None:
    assert page("one").evaluate("() => [null, NaN, 0].map(digits)") == ["nan", "nan", "0"]
