"""The conformance vectors and their runner: the files are what the definitions give, refl passes
them, and a wrong answer is found and named.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from refl.cli import main
from refl.errors import ReflError
from refl.verification.conformance import formats, lint_vectors, report, results, runner
from refl.verification.conformance.adapter import Adapter, NotCovered
from refl.verification.conformance.adapters import engine
from refl.verification.conformance.diagnosis import answers, distinguishes, mistakes_behind
from refl.verification.conformance.mistakes import MISTAKES
from refl.verification.definitions.running_error import RoundingDecides, TrackedNumber, tracked
from refl.verification.vectors import FORMAT, handwritten, make_vectors, rule_vectors
from refl.verification.vectors.case import UNDERFLOW, UNITS, Case

KNOWN = {m.id: m for m in MISTAKES}

# -- tracked numbers -------------------------------------------------------------------------------


def test_small_whole_numbers_round_nowhere() -> None:
    x = sum((tracked(n, 53) for n in (3, -5, 0.5, 2)), start=tracked(0, 53))
    assert float(x) == 0.5 and x.error == 0


@pytest.mark.parametrize("order", range(6))
def test_the_condition_of_a_sum_covers_every_order(order: int) -> None:
    """|computed - exact| <= u * condition, for float sums in any order."""
    rng = random.Random(order)
    terms = [rng.uniform(-1, 1) * 10.0 ** rng.randint(-8, 8) for _ in range(12)]
    running = sum((tracked(t, 53) for t in terms), start=tracked(0, 53))
    rng.shuffle(terms)
    assert abs(Fraction(sum(terms)) - sum(map(Fraction, terms))) <= Fraction(running.error) / 2**53


def test_the_condition_of_a_quotient() -> None:
    """1/3 in float64 is off by one rounding, at most u/3."""
    q = tracked(1, 53) / tracked(3, 53)
    assert (
        q.error == pytest.approx(1 / 3)
        and abs(Fraction(1 / 3) - Fraction(1, 3)) <= Fraction(q.error) / 2**53
    )


def test_a_sign_that_rounding_decides_is_refused() -> None:
    z = tracked(0.1, 53) * tracked(3, 53) - tracked(0.3, 53)
    assert isinstance(z, TrackedNumber) and z.error > 0
    with pytest.raises(RoundingDecides):
        _ = z < 0
    assert not tracked(1, 53) - tracked(1, 53) < 0


# -- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_the_files_are_what_the_definitions_give(rule: str) -> None:
    """Byte for byte; the targeted cases, which are larger, below."""
    path, held = rule_vectors.FOLDER / f"{rule}.json", rule_vectors.load(rule)
    small = make_vectors.small(rule)
    page = make_vectors.page(rule, [*small, *held[len(small) :]])
    assert path.read_bytes() == page.encode()


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_targeted_cases_are_what_the_definitions_give(rule: str) -> None:
    path = rule_vectors.FOLDER / f"{rule}.json"
    assert path.read_bytes() == make_vectors.page(rule, make_vectors.published(rule)).encode()


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_the_lint_has_nothing_to_complain_of(rule: str) -> None:
    assert list(lint_vectors.lint(rule)) == []


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_the_files_follow_the_schema(rule: str) -> None:
    """Of an array the first few of each axis: the schema says the same of all its numbers."""
    schema = json.loads((rule_vectors.FOLDER.parent / "schema.json").read_text())
    assert schema["properties"]["format"] == {"const": FORMAT}
    jsonschema.Draft202012Validator(schema).validate(
        first_few(json.loads((rule_vectors.FOLDER / f"{rule}.json").read_text()))
    )


def first_few(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: first_few(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [first_few(each, key) for each in (value[:2] if key == "data" else value)]
    return value


def test_every_case_id_is_one_of_a_kind() -> None:
    ids = [case.id for case in rule_vectors.cases()]
    assert len(set(ids)) == len(ids)


def test_every_rule_has_every_format_and_a_batch() -> None:
    for rule in rule_vectors.rules():
        cases = rule_vectors.load(rule)
        assert {case.dtype for case in cases} == {"float64", "float32", "float16", "bfloat16"}, rule
        assert any(case.batch > 1 for case in cases), rule


@pytest.mark.parametrize(
    ("dtype", "options", "passed_on", "required"),
    [
        ("float64", {"eps": 0.3}, 1.0, True),
        ("float32", {"eps": 0.3, "stabilizer": "sign", "denominator": "2z+eps"}, 1.0, True),
        ("float16", {"eps": 0.3}, 1.0, False),
        ("bfloat16", {"eps": 0.3}, 1.0, False),
        ("float64", {"eps": 0.3, "stabilizer": "plain"}, 1.0, False),
        ("float64", {"eps": 0.3, "denominator": "2(z+eps)"}, 1.0, False),
        ("float64", {"eps": 0.3}, None, False),
    ],
)
def test_what_is_required(dtype: str, options: Any, passed_on: Any, required: bool) -> None:
    on = Case("", "matmul_uniform", "relevance", dtype, (), "", {}, options, {"a": passed_on})
    assert on.required is required


def test_a_mask_is_required_only_where_it_hides_nothing() -> None:
    for hidden, required in ((False, True), (True, False)):
        options = {"axis": -1, "mask": np.array([True, not hidden])}
        on = Case("", "softmax_taylor", "relevance", "float64", (), "", {}, options, {"x": 1.0})
        assert on.required is required


def test_every_rule_has_required_cases_and_says_so_in_the_file() -> None:
    for rule in rule_vectors.rules():
        data = json.loads((rule_vectors.FOLDER / f"{rule}.json").read_text())
        said = [each for each in data["cases"] if each["required"]]
        assert {each["dtype"] for each in said} == {"float64", "float32"}, rule


def test_the_vectors_are_small() -> None:
    assert (
        sum(path.stat().st_size for path in rule_vectors.FOLDER.rglob("*") if path.is_file()) < 20e6
    )


Tamper = Callable[[str, Callable[[dict[str, Any]], object]], None]


@pytest.fixture
def tamper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tamper]:
    """Puts a changed copy of a rule's file in the place of the vectors."""
    folder = rule_vectors.FOLDER

    def write(rule: str, change: Callable[[dict[str, Any]], object]) -> None:
        data = json.loads((folder / f"{rule}.json").read_text())
        change(data)
        (tmp_path / f"{rule}.json").write_text(json.dumps(data))

    monkeypatch.setattr(rule_vectors, "FOLDER", tmp_path)
    rule_vectors.load.cache_clear()
    yield write
    rule_vectors.load.cache_clear()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda d: d["cases"][0]["expected"]["relevance"]["x"]["data"][0].__setitem__(0, 7.0),
            "digest",
        ),
        (lambda d: d.__setitem__("equation", "R = R"), "signature"),
        (lambda d: d["cases"].__setitem__(1, d["cases"][0]), "occurs 2 times"),
        (lambda d: d["cases"][0]["flags"].append("gqa-repeat"), "not for this rule"),
        (lambda d: d["cases"][0]["flags"].append("gqa-repeat"), "notes"),
        (lambda d: d["notes"].pop("eps-unsigned"), "notes"),
        (lambda d: d["notes"]["eps-unsigned"].__setitem__("effect", "None."), "notes"),
        (lambda d: d["cases"][0]["flags"].append("eps-two-heads"), "no known mistake"),
        (lambda d: d["cases"][0].__setitem__("required", False), "required must be True"),
        (
            lambda d: next(c for c in d["cases"] if c["dtype"] == "float16").pop("required"),
            "required must be False",
        ),
        (
            lambda d: d["cases"][0]["tolerance"]["relevance"]["x"]["data"][0].__setitem__(0, 0.0),
            "below the number",
        ),
    ],
)
def test_the_lint_finds(
    change: Callable[[dict[str, Any]], None], complaint: str, tamper: Tamper
) -> None:
    tamper("linear_epsilon", change)
    assert any(complaint in line for line in lint_vectors.lint("linear_epsilon"))


def test_a_count_that_is_wrong_is_refused(tamper: Tamper) -> None:
    tamper("linear_flat", lambda d: d["cases"].pop())
    with pytest.raises(ReflError, match="changed by hand"):
        rule_vectors.load("linear_flat")


# -- refl itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_refl_passes(rule: str) -> None:
    """Relevance and absorbed entries, in every format."""
    adapter = Adapter(engine)
    outcomes = [runner.run_case(adapter, case) for case in rule_vectors.load(rule)]
    assert [
        (v.case.id, v.message, v.deviations) for v in outcomes if v.status != results.PASSED
    ] == []


@pytest.mark.parametrize("rule", rule_vectors.rules())
def test_refl_passes_other_draws(rule: str) -> None:
    adapter = Adapter(engine)
    outcomes = [
        runner.run_case(adapter, case)
        for seed in range(100, 105)
        for case in make_vectors.drawn(rule, seed)
    ]
    assert [
        (v.case.note, v.message, v.deviations) for v in outcomes if v.status != results.PASSED
    ] == []


def test_absorbed_entries_are_held_against_the_vectors() -> None:
    def linear_epsilon(
        x: Any, w: Any, b: Any, r: Any, *, eps: float, stabilizer: str = "sign"
    ) -> Any:
        answer = engine.linear_epsilon(x, w, b, r, eps=eps, stabilizer=stabilizer)
        return {
            "relevance": answer["relevance"],
            "absorbed": {"stabilizer": answer["absorbed"]["stabilizer"]},
        }  # the bias is not recorded

    found = runner.run(
        {"linear_epsilon": linear_epsilon, "to_array": engine.to_array}, "linear_epsilon"
    )["linear_epsilon"]
    assert found.status == results.FAILED
    assert all(v.deviations[0].name == "absorbed bias" for v in found.cases if v.failed)


# -- mistakes are found and named ------------------------------------------------------------------


def plain_linear(stabilize: Callable[[Any, float], Any]) -> Callable[..., Any]:
    def linear_epsilon(x: Any, w: Any, b: Any, r: Any, *, eps: float) -> Any:
        z = x @ w.T + (0 if b is None else b)
        return x * ((r / stabilize(z, eps)) @ w)

    return linear_epsilon


def correct(z: Any, eps: float) -> Any:
    return z.astype(np.float64) + np.where(z >= 0, eps, -eps)


@pytest.mark.parametrize(
    ("stabilize", "name"),
    [
        (lambda z, eps: z + eps, "eps-unsigned"),
        (lambda z, eps: z + eps * np.sign(z), "eps-zero-sign"),
        (lambda z, eps: np.abs(z) + eps, "abs-stabilizer"),
        (lambda z, eps: z + 2 * np.where(z >= 0, eps, -eps), "eps-doubled"),
        (lambda z, eps: z + np.where(z >= 0, 1e-4, -1e-4), "other-eps"),
    ],
)
def test_a_planted_mistake_is_named(stabilize: Any, name: str) -> None:
    def wide(z: Any, eps: float) -> Any:
        return stabilize(z.astype(np.float64), eps)

    found = runner.run({"linear_epsilon": plain_linear(wide)})["linear_epsilon"]
    assert found.status == results.FAILED
    assert found.mistakes[0].id == name


def test_the_same_code_without_the_mistake_passes() -> None:
    found = runner.run({"linear_epsilon": plain_linear(correct)}, "linear_epsilon")
    assert found["linear_epsilon"].status == results.PASSED and found.passed


@pytest.mark.parametrize(
    "case", [case for case in rule_vectors.cases() if case.flags], ids=lambda case: case.id
)
def test_every_flag_is_diagnosed(case: Case) -> None:
    """A mistake's own answer on a case written for it: the mistake is among those named."""
    for flag in case.flags:
        clear = [wrong for _, wrong in answers(KNOWN[flag], case) if distinguishes(case, wrong)]
        assert clear or KNOWN[flag].behavior
        for wrong in clear:
            assert KNOWN[flag] in mistakes_behind(case, wrong)
            assert runner.compared(case, wrong).failed


def test_the_expected_answer_passes() -> None:
    for case in rule_vectors.cases("softmax_taylor"):
        assert runner.compared(case, case.expected).status == results.PASSED


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_fail(bad: float) -> None:
    case = rule_vectors.load("add_epsilon")[0]
    assert runner.compared(
        case, {**case.expected, "a": np.full(case.expected["a"].shape, bad)}
    ).failed


def test_just_outside_of_what_is_allowed_fails_and_just_inside_passes() -> None:
    case = next(c for c in rule_vectors.cases("matmul_uniform") if c.dtype == "float64")
    for name in case.expected:
        allowed = case.allowed(case.condition[name])
        for part, status in ((0.98, results.PASSED), (1.5, results.FAILED)):
            assert (
                runner.compared(
                    case, {**case.expected, name: case.expected[name] + part * allowed}
                ).status
                == status
            )


# -- adapters --------------------------------------------------------------------------------------


def test_what_is_missing_is_not_covered_and_what_raises_fails() -> None:
    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        raise RuntimeError("no")

    def linear_flat(x: Any, w: Any, b: Any, r: Any) -> Any:
        raise NotImplementedError("not yet")

    found = runner.run({"scale_pass_through": scale_pass_through, "linear_flat": linear_flat})
    assert found["scale_pass_through"].status == results.FAILED
    assert found["scale_pass_through"].cases[0].message == "raised RuntimeError: no"
    assert found["linear_flat"].status == found["add_epsilon"].status == results.NOT_COVERED
    assert not found.passed


def test_an_option_that_is_not_taken_must_be_at_its_default() -> None:
    def softmax_gradient(x: Any, g: Any) -> Any:
        x = np.where(x > np.finfo(x.dtype).min / 2, x, -np.inf)
        e = np.exp(x - x.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        return p * (g - (p * g).sum(-1, keepdims=True))

    found = runner.run({"softmax_gradient": softmax_gradient}, "softmax_*")["softmax_gradient"]
    skipped = [v.case for v in found.cases if v.status == results.NOT_COVERED]
    assert all(
        c.options["axis"] != -1 or c.options["mask"] is not None or c.dtype == "bfloat16"
        for c in skipped
    )
    assert found.count(results.PASSED) and skipped


def test_a_documented_convention_is_no_failure() -> None:
    adapter = {
        "linear_epsilon": plain_linear(lambda z, eps: z.astype(np.float64) + eps),
        "CONVENTIONS": {"eps-unsigned": "its manual"},
    }
    found = runner.run(adapter, "linear_epsilon")
    assert found["linear_epsilon"].status == results.CONVENTION and found.passed
    assert "its manual" in str(found)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda a, b, r, **o: a, "1 arrays came back, expected 2"),
        (lambda a, b, r, **o: (a[:1, :0], b), "shape"),
        (lambda a, b, r, **o: ("x", "y"), "came back as str"),
        (lambda a, b, r, **o: {"absorbed": {}}, "raised KeyError"),
    ],
)
def test_an_answer_that_is_none_is_said(answer: Any, words: str) -> None:
    found = runner.run({"add_epsilon": answer, "to_array": engine.to_array}, "add_epsilon")[
        "add_epsilon"
    ]
    assert found.smallest is not None and words in found.smallest.message


def test_an_adapter_may_be_an_object_or_a_module() -> None:
    one = SimpleNamespace(scale_pass_through=lambda x, r, *, factor: r)
    assert runner.run(one, "scale_pass_through").passed
    assert runner.run("refl.verification.conformance.adapters.engine", "scale_*").passed


def test_an_adapter_cannot_spoil_the_vectors() -> None:
    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        kept = r.copy()
        x[...], r[...] = 0, 0
        return kept

    assert runner.run({"scale_pass_through": scale_pass_through}, "scale_pass_through").passed
    assert runner.run({"scale_pass_through": scale_pass_through}, "scale_pass_through").passed


def test_a_split_that_depends_on_the_batch_is_named() -> None:
    def add_epsilon(a: Any, b: Any, r: Any, *, eps: float, stabilizer: str = "sign") -> Any:
        parts = engine.add_epsilon(a, b, r, eps=eps, stabilizer=stabilizer)["relevance"]
        sizes = [abs(p.sum()) for p in parts]
        return [
            p / p.sum() * r.sum() * size / sum(sizes) for p, size in zip(parts, sizes, strict=True)
        ]

    found = runner.run({"add_epsilon": add_epsilon, "to_array": engine.to_array}, "add_epsilon")[
        "add_epsilon"
    ]
    assert "batch-coupled" in [m.id for m in found.mistakes]


class Forgetful:
    """Right once."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def network(self, layers: Any) -> Any:
        explain, calls = engine.network(layers), []

        def explained(x: Any, seeds: Any) -> Any:
            calls.append(1)
            z, answers = explain(x, seeds)
            if len(calls) == 1:
                return z, answers
            self.then()
            return z, [0 * a for a in answers]

        return explained

    to_array = staticmethod(engine.to_array)


def test_a_rule_that_is_forgotten_after_the_first_call_is_named() -> None:
    def raises() -> None:
        raise KeyError("rule")

    for then in (lambda: None, raises):
        found = runner.run(Forgetful(then), "network")["network"]
        assert found.mistakes[0].id == "rule-forgotten"


def one_seed_alone(reason: Exception) -> dict[str, Any]:
    """An adapter whose network raises this where several are asked for."""

    def network(layers: Any) -> Any:
        explain = engine.network(layers)

        def explained(x: Any, seeds: Any) -> Any:
            if len(seeds) > 1:
                raise reason
            return explain(x, seeds)

        return explained

    return {"network": network, "to_array": engine.to_array}


def test_a_second_target_that_raises_is_named() -> None:
    adapter = one_seed_alone(RuntimeError("the graph is gone"))
    found = runner.run(adapter, "network")["network"]
    assert [m.id for m in found.mistakes] == ["one-target"]


def test_a_second_target_that_is_refused_is_no_pass() -> None:
    adapter = one_seed_alone(NotImplementedError("one seed at a time"))
    report = runner.run(adapter, "network")
    found = report["network"]
    assert found.status == results.PARTLY and not report.passed
    assert found.count(results.PARTLY) == len(found.missing) + sum(
        not c.case.required for c in found.cases
    )
    assert f"0 of {len(found.cases)} cases, {len(found.cases)} in part alone" in str(report)
    said = "right for one seed; 2 from one forward are not covered: one seed at a time"
    assert said in " ".join(str(report).split())
    with pytest.raises(NotCovered, match="one seed at a time"):
        runner.check(adapter, rule_vectors.cases("network")[0])


def test_check_says_what_is_wrong() -> None:
    case = rule_vectors.cases("linear_epsilon", flags="eps-unsigned")[0]
    runner.check(plain_linear(correct), case)
    with pytest.raises(AssertionError, match="looks like eps-unsigned"):
        runner.check(plain_linear(lambda z, eps: z + eps), case)
    with pytest.raises(NotCovered):
        runner.check({}, case)


# -- reports ---------------------------------------------------------------------------------------


WRONG = {
    "linear_epsilon": plain_linear(lambda z, eps: z + eps),
    "NAME": "<b>mine</b>\x1b[31m",
    "VERSION": "1",
}


def test_reports_show_a_failure_and_escape_names() -> None:
    found = runner.run(WRONG, "linear_*")
    page, words = formats.html(found), str(found)
    assert "eps-unsigned" in page and "eps-unsigned" in words
    assert "<b>mine" not in page
    assert "\x1b" not in page
    assert "\x1b" not in words
    assert "http" not in page.replace("http-equiv", "")
    data = formats.as_dict(found)
    assert json.loads(json.dumps(data))["rules"][0]["failures"][0]["mistakes"]


MIXED = {
    "to_array": engine.to_array,
    "scale_gradient": lambda x, g, *, factor: g * factor,
    "scale_pass_through": lambda x, r, *, factor: r if len(x) == 1 else 1 / 0,
    "rms_norm_identity": lambda x, w, r, *, norm_eps: one_example(x, r),
    "top_k_pass_through": engine.top_k_pass_through,
}


def one_example(x: Any, r: Any) -> Any:
    if len(x) > 1:
        raise NotImplementedError("one example at a time")
    return r


def test_a_page_opens_with_what_failed() -> None:
    """Failures, what is covered in part, and folded below them what passed; the same counts in
    text, JSON and JUnit.
    """
    found = runner.run(MIXED, "*")
    page = formats.html(found)
    first_to_last = (
        "<h2 class='failed'>scale_pass_through",
        "<h2 class='partly-covered'>rms_norm_identity",
        "2 rules passed</summary>",
        'id="scale_gradient"',
        "65 rules not covered</summary>",
    )
    at = [page.index(said) for said in first_to_last]
    assert at == sorted(at) and "<h2 class='passed'" not in page
    suites = {s.get("name"): s for s in ElementTree.fromstring(formats.junit(found))}
    partly = suites["rms_norm_identity"].find("testcase[@name='required cases']/skipped")
    assert partly is not None and "not covered (one example at a time)" in partly.get("message", "")
    assert suites["rms_norm_identity"].get("failures") == "0"
    said = {r["rule"]: r for r in formats.as_dict(found)["rules"]}["rms_norm_identity"]
    assert said["status"] == results.PARTLY and said["required"]["not covered"]
    count = found["rms_norm_identity"]
    assert f"{count.count(results.PASSED)} of {len(count.cases)} cases, " in str(found)


def test_what_no_mistake_explains_is_shown_beside_what_one_does() -> None:
    """Wrong in two ways, of which one has a name."""

    def linear_epsilon(x: Any, w: Any, b: Any, r: Any, *, eps: float) -> Any:
        z = x.astype(np.float64) @ w.T + (0 if b is None else b)
        answer = x * ((r / (z + eps)) @ w)
        return answer if x.ndim < 3 else answer + np.arange(answer.size).reshape(answer.shape)

    found = runner.run({"linear_epsilon": linear_epsilon}, "linear_epsilon")
    r, words, page = found["linear_epsilon"], str(found), formats.html(found)
    assert 0 < r.explained["eps-unsigned"] < r.failing and r.unexplained
    fraction = f"explains {r.explained['eps-unsigned']} of {r.failing} failing cases"
    last = r.unexplained[0].case.id
    for text in (words, page):
        assert fraction in text and f"{len(r.unexplained)} of {r.failing} failing cases not" in text
        assert last in text
    said = formats.as_dict(found)["rules"][0]
    assert said["mistakes"][0]["explains"] == r.explained["eps-unsigned"]
    assert said["mistakes"][0]["of"] == r.failing and last in said["unexplained"]
    assert fraction in formats.junit(found).decode()


def test_wrong_entries_are_marked_among_the_others() -> None:
    case = next(c for c in rule_vectors.load("add_epsilon") if c.expected["a"].size >= 4)
    a = case.expected["a"].copy()
    a.flat[1] += 1
    text = report.failure(runner.compared(case, {**case.expected, "a": a}))
    lines = [line for line in text.splitlines() if line.strip().startswith("a[")]
    assert [line.endswith("wrong") for line in lines[:3]] == [False, True, False]
    many = [("e", "1", "2", "0", k % 3 == 0) for k in range(60)]
    shown, left, wrong = report.excerpt(many, 8)
    assert sum(row[4] for row in shown) == 6 and (len(shown), left, wrong) == (8, 52, 14)


def test_junit_counts_what_the_report_counts() -> None:
    found = runner.run(WRONG, "linear_*")
    suites = {
        s.get("name"): s for s in ElementTree.fromstring(formats.junit(found)).iter("testsuite")
    }
    for r in found.rules:
        assert int(suites[r.rule].get("failures", "")) == r.count(results.FAILED)
        assert int(suites[r.rule].get("tests", "")) == len(r.cases)
    assert len(suites["linear_epsilon"].findall("testcase/failure")) == found[
        "linear_epsilon"
    ].count(results.FAILED)


ADAPTER = """
def linear_epsilon(x, w, b, r, *, eps):
    z = x @ w.T + (0 if b is None else b)
    return x * ((r / (z + eps * {sign})) @ w)
"""


def adapter_file(tmp_path: Path, sign: str) -> str:
    path = tmp_path / "adapter.py"
    path.write_text(
        "import numpy as np\nto_array = lambda v, d: v.astype(np.float32) if d in "
        "('float16', 'bfloat16') else v\n" + ADAPTER.format(sign=sign)
    )
    return str(path)


def test_the_command_passes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--in-process", adapter_file(tmp_path, "(1 - 2 * (z < 0))")]) == 0
    assert "1 passed" in capsys.readouterr().out
    out = [str(tmp_path / name) for name in ("r.html", "r.xml")]
    assert (
        main(
            [
                "conform",
                "--in-process",
                adapter_file(tmp_path, "1"),
                "--html",
                out[0],
                "--junit",
                out[1],
            ]
        )
        == 1
    )
    assert "eps-unsigned" in capsys.readouterr().out
    assert all(Path(path).read_text(encoding="utf-8").startswith("<") for path in out)


def test_the_command_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["conform", "--in-process", adapter_file(tmp_path, "1"), "--json", "--rule", "linear_*"]
        )
        == 1
    )
    data = json.loads(capsys.readouterr().out)
    assert data["rules"][0]["mistakes"][0]["id"] == "eps-unsigned" and not data["passed"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.py"], "there is no adapter nowhere.py"),
        (["no.such.module"], "cannot be imported: ModuleNotFoundError"),
        ([], "give an ADAPTER"),
        (["refl.errors"], "has no function named like a rule"),
        (
            ["refl.verification.conformance.adapters.engine", "--rule", "nothing"],
            "no rule is called 'nothing'",
        ),
        (["--list", "--rule", "nothing"], "no rule is called 'nothing'"),
        (
            ["refl.verification.conformance.adapters.engine", "--html", "no/such/folder/x.html"],
            "cannot be written",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conform", "--in-process", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "Traceback" not in said


def test_two_reports_in_one_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "r")
    assert (
        main(
            [
                "conform",
                "--in-process",
                "refl.verification.conformance.adapters.engine",
                "--html",
                path,
                "--junit",
                path,
            ]
        )
        == 2
    )
    assert "both name" in capsys.readouterr().err


def test_every_format_has_an_allowance() -> None:
    assert set(UNDERFLOW) == set(UNITS)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_an_adapter_that_does_not_run_is_said(
    code: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(code)
    assert main(["conform", "--in-process", str(tmp_path / "broken.py")]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_an_adapter_may_have_the_name_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(
        "import numpy\nscale_pass_through = lambda x, r, *, factor: "
        "numpy.asarray(r)\nto_array = lambda v, d: v\n"
    )
    assert runner.run(tmp_path / "numpy.py", "scale_pass_through").passed


def test_the_list_shows_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{rule}(" in said for rule in [*rule_vectors.rules(), "model"])


def test_the_list_says_how_each_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """Operands, options with their defaults, shapes, what comes back; whole models too."""
    assert main(["conform", "--list", "--rule", "*m*"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "matmul_uniform(a, v, r, *, eps, stabilizer='sign', denominator='2z+eps') -> a, v" in said
    )
    assert "softmax_taylor(x, r, *, axis=-1, mask=None) -> x shapes, for example: x " in said or (
        "softmax_taylor(x, r, *, mask=None, axis=-1) -> x shapes, for example: x " in said
    )
    assert "model(folder) -> explain(ids, targets, method, **more)" in said
    assert "'absorbed'" in said and "NotImplementedError" in said and "'logit': number" in said


@pytest.mark.parametrize(("group", "name"), [("inputs", "weight"), ("options", "epsilon")])
def test_a_case_by_hand_has_no_name_that_its_rule_lacks(
    monkeypatch: pytest.MonkeyPatch, group: str, name: str
) -> None:
    case = {"note": "misspelled", "inputs": {"x": [[1]], "r": [[1]]}, "options": {}}
    case |= {group: {name: 1}}
    monkeypatch.setattr(handwritten, "_FILE", {"linear_epsilon": [case]})
    with pytest.raises(ValueError, match=f"linear_epsilon has no {name} among its {group}"):
        list(handwritten.read("linear_epsilon"))


# -- whole models ----------------------------------------------------------------------------------


def test_refl_passes_whole_models() -> None:
    found = runner.run(engine, "model")
    assert [m.message for m in found.models if m.status != results.PASSED] == []
    assert len(found.models) >= 16 and found.passed


def with_answers(change: Callable[[list[Any]], list[Any]], only: str) -> dict[str, Any]:
    """The engine's models, the answers to each call changed."""

    def model(folder: str) -> Any:
        if Path(folder).name != only:
            raise NotImplementedError(folder)
        explain = engine.model(folder)

        def changed(ids: Any, targets: list[int], method: str) -> Any:
            if method != "attnlrp-gradient":
                raise NotImplementedError(method)
            return change(explain(ids, targets, method))

        return changed

    return {"model": model}


def changed_model(change: Callable[[dict[str, Any]], dict[str, Any]], only: str) -> dict[str, Any]:
    return with_answers(lambda answers: [change(answer) for answer in answers], only)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answers: [*answers[:1], *map(squared, answers[1:])], "of two from one forward"),
        (lambda answers: answers[:1], "1, expected 2"),
    ],
    ids=["wrong", "missing"],
)
def test_the_second_of_two_targets_is_compared_too(
    change: Callable[[list[Any]], list[Any]], said: str
) -> None:
    found = runner.run(with_answers(change, "llama"), "model")
    tried = [m for m in found.models if m.status != results.NOT_COVERED]
    assert tried and all(m.status == results.FAILED and said in m.message for m in tried)


def test_a_model_that_refuses_two_targets_is_no_pass() -> None:
    def model(folder: str) -> Any:
        if Path(folder).name != "llama":
            raise NotImplementedError
        explain = engine.model(folder)

        def explained(ids: Any, targets: list[int], method: str) -> Any:
            if len(targets) > 1:
                raise NotImplementedError("one target at a time")
            return explain(ids, targets, method)

        return explained

    found = runner.run({"model": model}, "model")
    tried = [m for m in found.models if m.status != results.NOT_COVERED]
    assert {m.status for m in tried} == {results.PARTLY} and found.partly and not found.passed
    assert "two from one forward are not covered: one target at a time" in str(found)


def squared(answer: dict[str, Any]) -> dict[str, Any]:
    """Seeded with the logit."""
    return {site: a if site == "logit" else a * answer["logit"] for site, a in answer.items()}


def test_a_model_seeded_with_its_logit_is_named() -> None:
    found = runner.run(changed_model(squared, "llama"), "model")
    failed = [m for m in found.models if m.status == results.FAILED]
    assert failed and all(
        m.mistakes == ("logit-squared",) and "logit squared" in m.message for m in failed
    )


def test_a_mistake_in_float32_is_named_too() -> None:
    def narrow(answer: dict[str, Any]) -> dict[str, Any]:
        return {site: np.float32(a) for site, a in squared(answer).items()}

    found = runner.run(changed_model(narrow, "qwen2"), "model")
    failed = [m for m in found.models if m.status == results.FAILED]
    assert failed and all(m.mistakes == ("logit-squared",) for m in failed)


def test_a_documented_convention_counts_for_whole_models_too() -> None:
    found = runner.run(
        changed_model(squared, "llama") | {"CONVENTIONS": {"logit-squared": "its manual"}}, "model"
    )
    assert {m.status for m in found.models} == {
        results.CONVENTION,
        results.NOT_COVERED,
    } and found.passed
    assert "by a convention of their own" in str(found)
    other = runner.run(
        changed_model(squared, "llama") | {"CONVENTIONS": {"ratio-eps": "its manual"}}, "model"
    )
    assert not other.passed


def test_the_first_site_that_parts_is_named() -> None:
    def moved(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {
            "model.layers.0.mlp.down_proj": answer["model.layers.0.mlp.down_proj"] * (1 + 1e-9)
        }

    found = runner.run(changed_model(moved, "llama"), "model")
    failed = [m for m in found.models if m.status == results.FAILED]
    assert failed and all(
        m.deviations[0].site == "model.layers.0.mlp.down_proj" and len(m.deviations) == 1
        for m in failed
    )


def test_a_mistake_of_structure_is_named_in_a_model() -> None:
    def reversed_heads(answer: dict[str, Any]) -> dict[str, Any]:
        site = "model.layers.0.self_attn.probabilities"
        return answer | {site: answer[site][::-1]}

    found = runner.run(changed_model(reversed_heads, "llama"), "model")
    failed = [m for m in found.models if m.status == results.FAILED]
    assert failed and all("reversed along axis -3 (axis-permuted" in m.message for m in failed)
    assert all("axis-permuted" in m.mistakes for m in failed)


def test_another_forward_is_said_before_anything_else() -> None:
    found = runner.run(
        changed_model(lambda answer: answer | {"logit": answer["logit"] + 1e-6}, "llama"), "model"
    )
    failed = [m for m in found.models if m.status == results.FAILED]
    assert failed and all("another forward pass" in m.message for m in failed)


def test_the_adapter_of_the_help_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["conform", "--help"])
    shown = capsys.readouterr().out
    (code,) = re.findall(r"^  (def linear_epsilon.*?)\n\n", shown, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_adapter.py").write_text(code.replace("\n  ", "\n"))
    assert main(["conform", "--in-process", str(tmp_path / "my_adapter.py")]) == 0
