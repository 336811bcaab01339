"""The lessons say what happens: every example is executed, every number in their prose is one that
an example gave, their pictures are drawn again. And `refl learn` shows them as they are.
"""

from __future__ import annotations

import ast
import base64
import builtins
import contextlib
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ROOT

from refl.cli import _parser, main
from refl.lessons import lesson, notebooks, reading
from refl.lessons import live as live_module
from refl.lessons.lesson import FOLDER, PICTURE, SECTIONS, Lesson, lessons, pieces
from refl.show.text import cells
from refl.verification.quality import lesson_pictures

NAMES = [
    "01_a_share_of_z",
    "02_eps_needs_a_sign",
    "03_biases_absorb",
    "04_norms_annul_gradient_x_input",
    "05_products_halve",
    "06_softmax_keeps_half",
    "07_a_block_upside_down",
    "08_bracketing_matters",
    "09_what_you_explain",
    "10_judge_a_method",
    "11_the_gradient_form",
]
EVERY = lessons()
MOST_WORDS = {11: 900}
"""700 of the others, of which seven are an hour; the last has a list to go through."""
Capture = pytest.CaptureFixture[str]


def test_there_are_eleven() -> None:
    assert [one.name for one in EVERY] == NAMES
    assert [one.number for one in EVERY] == list(range(1, 12))


@pytest.fixture(params=EVERY, ids=[one.name for one in EVERY])
def one(request: pytest.FixtureRequest) -> Lesson:
    found = request.param
    assert isinstance(found, Lesson)
    return found


# -- what they say ---------------------------------------------------------------------------------


def fenced(text: str) -> list[str]:
    """Blocks of Python, found without refl's own reading of a lesson."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_every_example_gives_what_is_said(one: Lesson) -> None:
    """By Python's own doctest, to the letter."""
    source = "\n".join(fenced(one.text))
    test = doctest.DocTestParser().get_doctest(source, {}, one.name, one.name, 0)
    said = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
    assert result.failed == 0, said.getvalue()
    assert result.attempted > 5


def test_other_kernels_of_blas_give_the_same(one: Lesson) -> None:
    """No output hangs on the last digit, or on the sign of a zero."""
    program = (
        "import doctest, sys\n"
        "test = doctest.DocTestParser().get_doctest(sys.stdin.read(), {}, 'a', 'a', 0)\n"
        "sys.exit(doctest.DocTestRunner(verbose=False).run(test).failed)"
    )
    for kernel in ("Prescott", "Haswell"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input="\n".join(fenced(one.text)),
            env=os.environ | {"OPENBLAS_CORETYPE": kernel},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_sections(one: Lesson) -> None:
    assert re.match(rf"# {one.number}\. \S", one.text)
    assert one.sections[0].text.startswith("**Claim.** ")
    assert tuple(section.title for section in one.sections[1:]) == SECTIONS
    assert all(section.text for section in one.sections)
    text = {section.title: section.text for section in one.sections}
    assert re.findall(r"^- ([abc])\) ", text["Predict"], flags=re.MULTILINE) == ["a", "b", "c"]
    assert not fenced(text["Predict"]), "a prediction comes before any number"
    assert one.letter in ("a", "b", "c")
    assert fenced(text["Try"])
    assert one.text.count("<details><summary>") == 1 == text["Find the mistake"].count("<details>")
    assert fenced(text["Find the mistake"].partition("<details>")[0])


def test_nobody_needs_more_than_an_hour(one: Lesson) -> None:
    assert len(one.text.split()) < MOST_WORDS.get(one.number, 700)
    assert sum(each.minutes for each in EVERY[:7]) <= 60
    assert one.title and len(one.claim) < 300 and not re.search(r"[`*]", one.claim)


CITED = re.compile(
    r"arXiv[: ]\d+\.\d+"
    r"|(?i:eqs?\.|equations?|props?\.|propositions?|sections?|appendix|tables?|figures?)"
    r" [A-Z]?[\d., and]*\d"
    r"|(?:LXT|zennit|captum|autolrp|transformers|torch|transformer-lens) \d[\d.]*\d"
)
DECIMAL = re.compile(r"(?<![\w.])[-−]?\d+\.\d+(?:e-?\d+)?")


def decimals(text: str) -> list[str]:
    return [number.replace("−", "-") for number in DECIMAL.findall(text)]


def agrees(said: str, computed: str) -> bool:
    """Whether a number is another one, rounded to the places that are said."""
    places = len(said.partition(".")[2])
    unit = 0.5 * 10.0**-places * (1 + 1e-9)
    return "e" not in said and abs(float(said) - float(computed)) <= unit


def test_every_number_in_the_prose_was_computed(one: Lesson) -> None:
    shown = decimals("\n".join(fenced(one.text)))
    prose = re.sub(r"^```.*?^```$", "", one.text, flags=re.MULTILINE | re.DOTALL)
    prose = CITED.sub("", prose.partition("## Read on")[0])
    for number in decimals(prose):
        assert any(agrees(number, other) or number == other for other in shown), number


def test_a_number_of_one_s_own_is_found() -> None:
    """The test above would see one."""
    assert decimals("so 0.36 of −1.5 (eq. 8.1), 2402.05602, v1.2, 3.") == [
        "0.36",
        "-1.5",
        "8.1",
        "2402.05602",
    ]
    assert CITED.sub("", "arXiv 2402.05602, section 3.3.3 and eq. 8, LXT 2.1") == ",  and , "
    assert agrees("11.98", "11.9777") and not agrees("11.97", "11.9777")
    assert not agrees("0.37", "0.3600") and agrees("-1.0", "-1.0000")


def test_what_is_linked_is_there(one: Lesson) -> None:
    for alt, name in PICTURE.findall(one.text):
        assert alt.strip() and (FOLDER / "pictures" / name).is_file()
    others = re.findall(r"\]\(([^)\s]+)\)", PICTURE.sub("", one.text))
    for link in others:
        assert link.startswith("https://") or (FOLDER / link.partition("#")[0]).exists(), link
    assert one.text.count("![") == len(PICTURE.findall(one.text))
    for path in re.findall(r"`((?:refl|rules|nets|verification|tests)/[\w/.-]+)`", one.text):
        assert (ROOT / path).exists(), path


NAMED = re.compile(r"`((?:refl|rules|nets|verification)/[\w/]+\.py)`[:,]((?:,? (?:and )?`\w+`)+)")


def test_functions_that_are_named_exist(one: Lesson) -> None:
    """After their file: `rules/linear.py`, `epsilon`."""
    for file, names in NAMED.findall(one.text):
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE), name


def test_commands_that_are_named_exist(one: Lesson) -> None:
    for command in re.findall(r"`refl ([^`\n]+)`", one.text):
        if "--help" not in command:
            _parser().parse_args(shlex.split(command))


# -- pictures --------------------------------------------------------------------------------------

PICTURES = lesson_pictures.pictures()


def test_every_picture_is_made_by_the_command() -> None:
    there = {path.stem for path in (FOLDER / "pictures").iterdir()}
    assert there == set(PICTURES)
    named = {Path(name).stem for each in EVERY for _, name in PICTURE.findall(each.text)}
    assert named == there


PLOTTED = pytest.param("perturbation", marks=pytest.mark.needs("matplotlib"))


@pytest.mark.parametrize("name", [*sorted(set(PICTURES) - {"perturbation"}), PLOTTED])
def test_a_picture_is_as_it_is_drawn_now(name: str) -> None:
    """To a hundredth: the last digit of what is written may differ between processors."""
    kept = (FOLDER / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    drawn = PICTURES[name]()
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("#", rounded(kept)) == number.sub("#", rounded(drawn))
    pairs = zip(number.findall(rounded(kept)), number.findall(rounded(drawn)), strict=True)
    assert all(abs(float(a) - float(b)) < 0.0101 for a, b in pairs)
    root = ET.fromstring(kept)
    titles = root.findall(".//{http://www.w3.org/2000/svg}title")
    assert titles and titles[0].text
    assert len(kept) < 200_000 and not re.search(r"<script|href=.https?:|url\(.?https?:", kept)


def rounded(svg: str) -> str:
    """Every number with two places, whole ones too."""
    return re.sub(r"(?<![\w#.])-?\d+(?:\.\d+)?(?![\w.])", lambda n: f"{float(n[0]):.2f}", svg)


# -- reading ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def answer(capsys: Capture, *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refusal(capsys: Capture, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("columns", [40, 80, 100, 250])
def test_a_lesson_in_a_terminal(one: Lesson, columns: int) -> None:
    text = reading.drawn(reading.text(one), columns)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert max(map(cells, lines)) <= min(columns, 100)
    assert words(f"{one.number}. {one.title}") in words(text)
    for alt, _ in PICTURE.findall(one.text):
        assert words(alt) in words(text.replace("▌", " ").replace("`", ""))
    assert "<details>" not in text and "```" not in text and "![" not in text


def words(text: str) -> str:
    return " ".join(re.sub(r"[`*▌]", " ", text).split())


def test_answers_come_at_the_end(one: Lesson) -> None:
    text = reading.drawn(reading.text(one), 100)
    (folded,) = (piece for piece in pieces(one.text) if piece.kind == "answer")
    above, heading, below = text.rpartition("# Answers\n")
    assert heading
    first = fenced(folded.text + "\n")[0].splitlines()[0]
    assert first in below and (
        first not in above or above.count(first) == one.text.count(first) - 1
    )
    assert "Read on" in above and "answer is at the end" in above


def test_every_line_of_code_is_shown(one: Lesson) -> None:
    shown = [line.strip() for line in reading.drawn(reading.text(one), 100).splitlines()]
    for block in fenced(one.text):
        for line in block.splitlines():
            assert line.strip() in shown or len(line) > 96, line


@pytest.mark.parametrize("columns", [40, 100])
def test_names_are_told_from_the_text_without_colors(columns: int) -> None:
    said = "says `are` of\n`a *\nb`\n\n```python\n>>> print('`c`')\n`c`\n```\n\nthen `d`.\n"
    shown = " ".join(reading.drawn(said, columns).split())
    assert shown == "says `are` of `a * b` >>> print('`c`') `c` then `d`."
    assert "`are`" not in reading.drawn(said, columns, color=True)


def test_a_heading_is_bold_and_not_faint() -> None:
    out = reading.drawn("## A heading\n", 80, color=True)
    assert out.strip() == "\x1b[2m## \x1b[0m\x1b[1mA heading\x1b[0m"


def test_color_where_it_is_wanted(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in answer(capsys, "learn", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in answer(capsys, "learn", "1")
    assert "\x1b[" not in answer(capsys, "learn", "1", "--no-color")


def test_the_list(capsys: Capture) -> None:
    out = answer(capsys, "learn")
    assert all(f"{each.number:2}  {each.title}" in out for each in EVERY)
    headings = ["the hour  about", "further  about", "for implementers  about"]
    places = [out.find(heading) for heading in headings]
    assert places == sorted(places) and places[0] == 0
    said = json.loads(answer(capsys, "learn", "--json"))
    assert [each["number"] for each in said] == [each.number for each in EVERY]
    assert set(said[0]) == {"number", "title", "claim", "minutes", "words"}
    whole = json.loads(answer(capsys, "learn", "1", "--json"))
    assert whole["text"] == EVERY[0].text


@pytest.mark.parametrize("number", ["0", "12", "x", "", "-3", "1.5", "9" * 5000, "1\x1b[31m"])
def test_there_is_no_such_lesson(number: str, capsys: Capture) -> None:
    err = refusal(capsys, "learn", "--", number)
    assert "expected a number from 1 to" in err and "\x1b" not in err and len(err) < 500


@pytest.mark.parametrize(
    "arguments", [["--run"], ["1", "--run", "--json"], ["1", "--run", "--notebooks", "x"]]
)
def test_what_does_not_go_together(arguments: list[str], capsys: Capture) -> None:
    assert "--run" in refusal(capsys, "learn", *arguments)


# -- a lesson live ---------------------------------------------------------------------------------

SMALL = """\
# 1. A small one

**Claim.** One and one is `two`. And more.

## Predict

What is 1 + 1?

- a) 1
- b) 2
- c) 3

## Try

```python
>>> one = 1
>>> one + one
2
```

## Answer

**b)** Two.

## The misconception

None.

## Find the mistake

```python
>>> for i in range(2):
...     print(i, one)
0 1
1 1
```

<details><summary>Answer</summary>

There is none.

```python
>>> print("fine"); one / 0
Traceback (most recent call last):
    ...
ZeroDivisionError: division by zero
```

</details>

## Read on

- nothing
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one lesson there is."""
    file = tmp_path / "01_small.md"
    file.write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(lesson, "FOLDER", tmp_path)
    return file


def live(capsys: Capture, monkeypatch: pytest.MonkeyPatch, typed: str, code: int = 0) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return answer(capsys, "learn", "1", "--run", code=code)


@pytest.mark.parametrize(
    ("prediction", "says"),
    [
        ("b", "Your prediction, b, is right."),
        (" B) ", "Your prediction, b, is right."),
        ("a", "Your prediction, a, is not it: the answer is b."),
        ("what?\n2\nc", "Your prediction, c, is not it: the answer is b."),
        ("", ""),
    ],
    ids=["b", "in capitals", "wrong", "asked again", "none"],
)
@pytest.mark.usefixtures("small")
def test_step_by_step(
    prediction: str, says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = live(capsys, monkeypatch, f"\n{prediction}\n\n\n\n\n\n\n")
    before, _, after = out.partition("a, b or c?")
    assert ">>>" not in before and "Two." not in before
    assert says in after and (says or "prediction," not in after.replace("no prediction", ""))
    session = after.splitlines()
    assert session.index(" >>> one + one") == session.index(" 2") - 1
    assert session.index(" ...     print(i, one)") == session.index(" 0 1") - 1
    assert after.index("for the answer") < after.index("There is none.")
    assert after.index(says) < after.index("Two.") if says else True
    assert after.rstrip().endswith("That was lesson 1.")


def test_an_example_that_gives_something_else(
    small: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in one sentence, and by the exit code; also where the reader goes away after it."""
    small.write_text(SMALL.replace("one + one\n2\n", "one + one\n3\n"), encoding="utf-8")
    for typed in ("\n" * 9, "\n\n\n"):
        out = live(capsys, monkeypatch, typed, code=1)
        assert "\n 2\n That differs: lesson 1 says 3 here.\n" in out
        assert out.count("differs") == 1


@pytest.mark.parametrize("old", ["0 1\n1 1", "ZeroDivisionError: division by zero"])
def test_whatever_is_altered(
    old: str, small: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_text(SMALL.replace(old, "nothing"), encoding="utf-8")
    assert "differs" in live(capsys, monkeypatch, "\n" * 9, code=1)


@pytest.mark.usefixtures("small")
def test_it_ends_with_its_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for lines in range(6):
        out = live(capsys, monkeypatch, "\n" * lines)
        assert out.rstrip().endswith("Nobody answers, so lesson 1 ends here.")
    monkeypatch.setattr(sys, "stdin", None)
    assert "Nobody answers" in answer(capsys, "learn", "1", "--run")


class Interrupting(io.StringIO):
    def readline(self, *_: Any) -> str:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("small")
def test_an_interrupt_is_polite(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Interrupting())
    out = answer(capsys, "learn", "1", "--run", code=130)
    assert out.rstrip().endswith("Stopped. `refl learn 1 --run` begins again.")


def test_through_a_pipe_and_with_closed_stdin() -> None:
    command = f"{shlex.quote(sys.executable)} -m refl learn 1 --run"
    for redirected, says in (
        (f"yes '' | head -9 | {command}", "That was lesson 1."),
        (f"{command} </dev/null", "Nobody answers"),
        (f"{command} <&-", "Nobody answers"),
    ):
        done = subprocess.run(redirected, shell=True, check=False, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and says in done.stdout


def test_the_first_lesson_live(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    out = live(capsys, monkeypatch, "\nb\n\n\n\n\n\n\n")
    assert "is right" in out and "differs" not in out and "That was lesson 1." in out
    assert builtins.__dict__.get("_") is None, "nothing is left behind"


def test_a_pipe_that_never_ends_is_not_asked_for_ever() -> None:
    answers = iter(["y\n"] * live_module.TRIES)
    assert live_module.chosen(lambda prompt: next(answers)) == ""
    answers = iter("xyc")
    assert live_module.chosen(lambda prompt: next(answers)) == "c"


# -- notebooks -------------------------------------------------------------------------------------


def notebooks_of(folder: Path, capsys: Capture, *arguments: str) -> dict[str, Any]:
    answer(capsys, "learn", *arguments, "--notebooks", str(folder))
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.iterdir())}


def test_notebooks(one: Lesson) -> None:
    """Their form and their pictures; their cells show what the lesson says."""
    book = json.loads(notebooks.notebook(one))
    is_well_formed(book)
    has_everything(book, one)
    outputs = [
        text
        for cell in book["cells"]
        for output in cell.get("outputs", [])
        for text in text_of(output)
    ]
    unfolded = re.sub(r"<details>.*?</details>", "", one.text, flags=re.DOTALL)
    wants = [example.want for example in doctest_examples(unfolded)]
    assert "".join(wants).split() == " ".join(outputs).split()


def test_a_notebook_runs(one: Lesson) -> None:
    assert_it_runs(json.loads(notebooks.notebook(one)))


def test_a_folder_of_notebooks(tmp_path: Path, capsys: Capture) -> None:
    for number in (1, 4):
        found = notebooks_of(tmp_path / "new" / "folder", capsys, str(number))
    assert list(found) == [EVERY[0].name, EVERY[3].name]
    assert answer(capsys, "learn", "1", "--notebooks", str(tmp_path), "--json") == (
        json.dumps([str(tmp_path / f"{EVERY[0].name}.ipynb")], indent=2) + "\n"
    )


def is_well_formed(book: dict[str, Any]) -> None:
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id) for cell_id in ids)
    for cell in book["cells"]:
        usual = {"cell_type", "id", "metadata", "source"}
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == usual | code
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "markdown":
            data = re.findall(r"\(data:image/svg\+xml;base64,([^)]+)\)", "".join(cell["source"]))
            assert all(ET.fromstring(base64.b64decode(one)) is not None for one in data)


def has_everything(book: dict[str, Any], each: Lesson) -> None:
    prose = "\n".join("".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown")
    assert all(f"## {title}" in prose for title in SECTIONS)
    assert prose.count("data:image/svg+xml") == len(PICTURE.findall(each.text))
    assert "](pictures/" not in prose and prose.count("<details>") == 1
    sources = [example.source.strip() for example in doctest_examples(each.text)]
    code = "\n".join("".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code")
    folded = "\n".join(fenced(prose))
    assert all(s in code or all(line in folded for line in s.splitlines()) for s in sources)


def doctest_examples(text: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples("\n".join(fenced(text)))


def assert_it_runs(book: dict[str, Any]) -> None:
    """As Jupyter does: what is printed, and the value of a last expression."""
    namespace: dict[str, Any] = {}
    count = 0
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            assert cell["execution_count"] == count
            shown = executed("".join(cell["source"]), namespace)
            assert shown == ["".join(text) for text in map(text_of, cell["outputs"])]


def text_of(output: dict[str, Any]) -> list[str]:
    if output["output_type"] == "error":
        return [f"{output['ename']}: {output['evalue']}"]
    return output["text"] if "text" in output else output["data"]["text/plain"]


def executed(source: str, namespace: dict[str, Any]) -> list[str]:
    *statements, last = ast.parse(source).body
    value, failed = None, None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(compile(ast.Module(statements, []), "<cell>", "exec"), namespace)  # noqa: S102
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
            else:
                exec(compile(ast.Module([last], []), "<cell>", "exec"), namespace)  # noqa: S102
        except Exception as error:  # noqa: BLE001
            failed = f"{type(error).__name__}: {error}"
    shown = [printed.getvalue(), "" if value is None else repr(value), failed or ""]
    return [text for text in shown if text]


@pytest.mark.needs("nbformat")
def test_notebooks_fit_the_schema() -> None:
    import nbformat

    for each in EVERY[:2]:
        nbformat.validate(nbformat.reads(notebooks.notebook(each).decode(), as_version=4))


@pytest.mark.usefixtures("small")
def test_a_small_notebook(tmp_path: Path, capsys: Capture) -> None:
    (book,) = notebooks_of(tmp_path / "out", capsys, "1").values()
    is_well_formed(book)
    assert_it_runs(book)
    kinds = [cell["cell_type"] for cell in book["cells"]]
    assert (
        kinds
        == ["markdown"] * 2 + ["markdown", "code"] + ["markdown"] * 3 + ["code"] + ["markdown"] * 2
    )
    (value,) = book["cells"][3]["outputs"]
    assert value["data"] == {"text/plain": ["2"]} and value["execution_count"] == 1
    assert book["cells"][7]["outputs"][0]["text"] == ["0 1\n", "1 1\n"]


@pytest.mark.usefixtures("small")
def test_an_example_that_raises_does_not_stop_a_notebook(small: Path) -> None:
    raising = SMALL.replace("<details><summary>Answer</summary>", "").replace("</details>", "")
    small.write_text(raising, encoding="utf-8")
    (only,) = lessons()
    book = json.loads(notebooks.notebook(only))
    cell = next(cell for cell in book["cells"] if cell["metadata"])
    assert cell["metadata"] == {"tags": ["raises-exception"]}
    assert [output["output_type"] for output in cell["outputs"]] == ["stream", "error"]
    assert_it_runs(book)


@pytest.fixture
def mine(small: Path, capsys: Capture) -> Path:
    """A notebook that refl wrote."""
    notebooks_of(small.parent / "out", capsys)
    return small.parent / "out" / "01_small.ipynb"


def test_what_refl_wrote_is_replaced(mine: Path, small: Path, capsys: Capture) -> None:
    """Also where its cells have been executed since; another edition of the lesson is written."""
    book = json.loads(mine.read_bytes())
    book["cells"][3]["outputs"] = []
    book["metadata"]["kernelspec"]["name"] = "another"
    mine.write_text(json.dumps(book))
    small.write_text(SMALL.replace("Two.", "It is two."), encoding="utf-8")
    answer(capsys, "learn", "--notebooks", str(mine.parent))
    assert "It is two." in mine.read_text(encoding="utf-8")
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


def edited(path: Path) -> None:
    book = json.loads(path.read_bytes())
    book["cells"][3]["source"] = ["one + one  # I think that it is 2"]
    path.write_text(json.dumps(book))


OBSTACLES = {
    "has been changed since": edited,
    "is not a notebook of refl's": lambda path: path.write_text('{"cells": []}'),
    "and is not a notebook": lambda path: path.write_bytes(b"\xff\x00 mine"),
    "is there already": lambda path: path.write_text("[" * 100_000),
    "is no regular file": lambda path: (path.unlink(), path.mkdir()),
    "it is not overwritten": lambda path: path.write_text('{"metadata": {"refl": 1}}'),
}


@pytest.mark.parametrize("says", OBSTACLES)
def test_nothing_else_is_overwritten(says: str, mine: Path, capsys: Capture) -> None:
    OBSTACLES[says](mine)
    before = mine.read_bytes() if mine.is_file() else b""
    assert says in refusal(capsys, "learn", "--notebooks", str(mine.parent))
    assert (mine.read_bytes() if mine.is_file() else b"") == before


def test_a_link_is_not_followed(mine: Path, capsys: Capture) -> None:
    target = mine.with_name("elsewhere")
    mine.rename(target)
    mine.symlink_to(target)
    assert "is no regular file" in refusal(capsys, "learn", "--notebooks", str(mine.parent))


def test_places_where_no_notebook_goes(small: Path, capsys: Capture) -> None:
    file = small.parent / "file"
    file.write_text("")
    nowhere = small.parent / "nowhere"
    nowhere.symlink_to(small.parent / "none")
    for place, says in (
        (file, "is no folder"),
        (nowhere, "a link to nothing"),
        (file / "below", "Not a directory"),
        (FOLDER, "is a folder of refl itself"),
        (FOLDER / "pictures", "is a folder of refl itself"),
        ("a\0b", "null"),
    ):
        assert says in refusal(capsys, "learn", "--notebooks", str(place))
    assert "empty" in refusal(capsys, "learn", "--notebooks", "")


# -- the pieces ------------------------------------------------------------------------------------


def test_pieces_are_the_text(one: Lesson) -> None:
    """Nothing is lost between them."""
    found = [piece.text for piece in pieces(one.text)]
    left = re.sub(
        r"^```(?:python)?$|</?details>|<summary>Answer</summary>", "", one.text, flags=re.MULTILINE
    )
    again = re.sub(r"^```(?:python)?$", "", "\n".join(found), flags=re.MULTILINE)
    assert again.split() == left.split()
