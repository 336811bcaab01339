"""refl evaluate: what the shards say, what is made of them, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import numpy as np
import pytest
from corpora import content, of_evidence

from refl.cli import main
from refl.errors import ReflError
from refl.evaluation import figures, page, tables
from refl.evaluation.corpus import explain_corpus
from refl.evaluation.data import items
from refl.evaluation.judging import METRICS as METRICS_THERE_ARE
from refl.evaluation.judging import judged, metric
from refl.evaluation.leave_one_out import LeaveOneOut
from refl.evaluation.results import GRID, Results, band, on_grid
from refl.evaluation.run import evaluate
from refl.evaluation.sanity import Sanity
from refl.evaluation.shards import Folder
from refl.evaluation.tuning import split
from refl.evaluation.workers import InThisProcess, Processes
from refl.methods import METHODS, chosen
from refl.methods.base import Attribution
from refl.methods.random import Random
from refl.model import Model, load
from refl.network import Network

Capture = pytest.CaptureFixture[str]
COUNT, SHARD = 8, 3
METHOD, METRICS = ["attnlrp", "cp-lrp"], ["flip", "evidence"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_evidence(tmp_path_factory.mktemp("data") / "data.jsonl", COUNT)


@pytest.fixture(scope="module")
def whole(model: Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evaluate(model, data, folder, METHOD, METRICS, shard=SHARD)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("part-*"))
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]


# -- shards ----------------------------------------------------------------------------------------


def test_rows_are_those_of_a_plain_loop(model: Model, data: Path, whole: Path) -> None:
    """To rounding: there each input stands in batches of its own."""
    found = rows(whole)
    plain = [
        row
        for item in items(data, model)
        for row in judged(model, item, [Random(), *METHOD], METRICS)
    ]
    assert len(found) == len(plain) == COUNT * 3 * 2
    for said, row in zip(found, plain, strict=True):
        key = (said["name"], said["method"], said["metric"])
        assert key == (row.item, row.method, row.metric)
        assert said["numbers"] == pytest.approx(row.numbers, abs=1e-4)
        for name, curve in row.curves.items():
            assert said["curves"][name] == pytest.approx(list(curve), abs=1e-4)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_bytes_with_any_number_of_workers(
    workers: int, model: Model, data: Path, whole: Path, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path / "run", METHOD, METRICS, shard=SHARD, workers=workers)
    assert content(tmp_path / "run") == content(whole)


class Interrupted(InThisProcess):
    def __init__(self) -> None:
        self.tasks = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        self.tasks += 1
        if self.tasks == 3:
            raise KeyboardInterrupt
        return super().submit(function, *arguments)


def test_interrupted_and_resumed(model: Model, data: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, folder, METHOD, METRICS, shard=SHARD, pool=Interrupted())
    assert 1 < len(content(folder)) < 4 and content(folder).items() <= content(whole).items()
    evaluate(model, data, folder, METHOD, METRICS, shard=SHARD)
    assert content(folder) == content(whole)


def test_an_input_is_its_line_when_a_run_goes_on(model: Model, data: Path, tmp_path: Path) -> None:
    """The same inputs, a blank line less: each has another number, and rows go by these."""
    folder, file = tmp_path / "run", tmp_path / "data.jsonl"
    file.write_bytes(b"\n" + data.read_bytes())
    evaluate(model, file, folder, [], ["flip"], shard=SHARD, limit=5)
    next(folder.glob("part-00001-*")).unlink()
    before = content(folder)
    file.write_bytes(data.read_bytes())
    with pytest.raises(ReflError, match="another data hash"):
        evaluate(model, file, folder, [], ["flip"], shard=SHARD, limit=5)
    assert content(folder) == before


@pytest.mark.parametrize("harm", ["one is missing", "one stands twice", "one too many"])
def test_shards_that_do_not_fit_together(harm: str, whole: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name, found in content(whole).items():
        (tmp_path / name).write_bytes(found)
    shards = [path.read_bytes() for _, path in sorted(folder.finished().items())]
    assert Results.read(folder).lines == list(range(1, COUNT + 1))
    if harm == "one is missing":
        next(tmp_path.glob("part-00001-*")).unlink()
    elif harm == "one stands twice":  # its last line is the first of the next
        rows = shards[0].splitlines(keepends=True)
        folder.write(0, b"".join(row.replace(b'"line": 3,', b'"line": 4,') for row in rows))
    else:
        folder.write(3, shards[2].replace(b'"line": 8,', b'"line": 9,'))
    with pytest.raises(ReflError, match=r"expected rows of 8 inputs, each in one shard") as raised:
        Results.read(folder)
    assert str(raised.value).count("\n") == 0


# -- what is made of them --------------------------------------------------------------------------


def command(data: Path, *more: str) -> list[str]:
    asked = ["evaluate", "--data", str(data), "--methods", "attnlrp,cp-lrp"]
    return [*asked, "--metrics", "flip", "evidence", "--shard", str(SHARD), *more]


def test_the_command_and_its_files(
    data: Path, whole: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "run"
    assert main(command(data, "--out", str(folder))) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["method", "dA_flip", "↑"]
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["random", *METHOD]
    files = content(folder)
    assert files.items() >= content(whole).items()
    assert set(files) - set(content(whole)) == {
        "results.json", "inputs.csv", "table.tex", "report.html",
    }  # fmt: skip
    assert main(command(data, "--out", str(folder), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["numbers"] == _results(folder)["numbers"]
    assert content(folder) == files  # done again from the same shards, byte for byte


def _results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_means_and_errors_are_those_of_the_csv(data: Path, tmp_path: Path) -> None:
    assert main(command(data, "--out", str(tmp_path / "run"))) == 0
    with open(tmp_path / "run" / "inputs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == COUNT * 3
    for number in _results(tmp_path / "run")["numbers"]:
        for method, said in number["methods"].items():
            cells = [row[number["number"]] for row in table if row["method"] == method]
            x = [float(cell) for cell in cells if cell]
            assert said["count"] == len(x) and said["mean"] == pytest.approx(mean(x))
            assert said["standard_error"] == pytest.approx(stdev(x) / math.sqrt(len(x)))


def test_without_a_folder_nothing_is_left(
    data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(command(data, "--limit", "2")) == 0
    assert "attnlrp" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_scores_from_elsewhere(model: Model, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """The relevance of attnlrp, by way of a file, is judged as attnlrp is."""
    scores = {
        item.name: model.explain(item.input, contrast=item.contrast, keep=()).relevance
        for item in items(data, model)
    }
    np.savez(tmp_path / "theirs.npz", **scores)
    asked = command(data, "--scores", f"theirs={tmp_path / 'theirs.npz'}")
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    found = _results(tmp_path / "run")["numbers"]
    assert list(found[0]["methods"]) == ["random", *METHOD, "theirs"]
    for number in found:
        ours, theirs = number["methods"]["attnlrp"], number["methods"]["theirs"]
        assert theirs["mean"] == pytest.approx(ours["mean"], abs=1e-3)
    np.savez(tmp_path / "theirs.npz", **{n: r + 1 for n, r in scores.items()})
    assert main([*asked, "--out", str(tmp_path / "run")]) == 2
    assert "another methods theirs hash" in capsys.readouterr().err


def test_tuned_inputs_are_not_judged(data: Path, tmp_path: Path, capsys: Capture) -> None:
    asked = ["evaluate", "--data", str(data), "--metrics", "flip", "--tune", "3"]
    label = "random:draw=1/2/3"
    assert main([*asked, "--methods", label, "--out", str(tmp_path / "run")]) == 0
    found = rows(tmp_path / "run")
    assert len({row["line"] for row in found}) == COUNT - 3
    assert {row["method"] for row in found} == {label}
    notes = _results(tmp_path / "run")["run"]["options"]["notes"]
    words = r"draw=[123], chosen among 3 by dA_flip of flip on 3 inputs that are not judged"
    assert re.fullmatch(words, notes[label])
    assert notes[label] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["in order", "by name", "of the judged alone"])
def test_scores_from_elsewhere_beside_tuning(
    kind: str, model: Model, data: Path, tmp_path: Path
) -> None:
    """Each input has its own scores: those of attnlrp are judged as attnlrp is."""
    file, folder = tmp_path / "theirs.npz", tmp_path / "run"
    every = [
        model.explain(item.input, contrast=item.contrast, keep=()).relevance
        for item in items(data, model)
    ]
    choices = ["random:draw=1/2", "attnlrp", "--tune", "3"]
    asked = ["evaluate", "--data", str(data), "--metrics", "flip", "--methods", *choices]
    asked += ["--scores", f"theirs={file}", "--out", str(folder)]
    if kind == "in order":
        np.savez(file, *every)
    else:
        names = [item.name for item in items(data, model)]
        kept = names if kind == "by name" else held_in(data, model, 3)
        np.savez(file, **{name: r for name, r in zip(names, every, strict=True) if name in kept})
    assert main(asked) == 0
    found = {(row["line"], row["method"]): row["numbers"]["dA_flip"] for row in rows(folder)}
    judged_ones = {line for line, _ in found}
    assert len(judged_ones) == COUNT - 3
    for line in judged_ones:
        assert found[line, "theirs"] == pytest.approx(found[line, "attnlrp"], abs=1e-3)


def held_in(data: Path, model: Model, count: int) -> list[str]:
    """Names of the inputs that are not tuned on."""
    _, rest = split(list(items(data, model)), count)
    return [item.name for item in rest]


# -- metrics by name -------------------------------------------------------------------------------

OWN = """base = "attnlrp"
name = "NAME"
[[rule]]
operation = "linear"
role = "mlp.*"
rule = "gamma"
gamma = 0.25
"""


@pytest.mark.parametrize("name", ["random", "gamma in the MLPs"])
def test_sanity_by_a_method_in_a_file(
    name: str, model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file calls it, it is the file's; another content is another run."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(OWN.replace("NAME", name), encoding="utf-8")
    asked = "sanity:method=mine.toml"
    found = evaluate(model, data, "run", ["attnlrp"], [asked], limit=1, workers=1)
    item = next(items(data, model))
    for said in rows(Path("run")):
        (alone,) = judged(model, item, [said["method"]], [Sanity(chosen("mine.toml"))])
        assert said["metric"] == asked and said["numbers"] == pytest.approx(alone.numbers)
    assert tables.as_csv(found).splitlines()[0].count("sanity") == 2
    changed = OWN.replace("NAME", name).replace("0.25", "0.5")
    Path("mine.toml").write_text(changed, encoding="utf-8")
    with pytest.raises(ReflError, match="another methods of metrics"):
        evaluate(model, data, "run", ["attnlrp"], [asked], limit=1)


def test_a_metric_that_its_name_does_not_say(model: Model, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace("NAME", "random"), encoding="utf-8")
    for asked in (Sanity(chosen(path)), LeaveOneOut(math.nan)):
        with pytest.raises(ReflError, match="is not what its name says"):
            evaluate(model, data, tmp_path / "run", METHOD, [asked], limit=1)
    assert not (tmp_path / "run").exists()
    assert metric(Sanity(chosen("attnlrp")).name) == Sanity(chosen("attnlrp")) == Sanity("attnlrp")
    assert Sanity("attnlrp") != Sanity("cp-lrp")


# -- tables ----------------------------------------------------------------------------------------

HOSTILE = "<script>a_1</script>&$x$\\input{/etc/passwd}%#^~\x1b[31m"


def results(spread: float = 0.1, names: tuple[str, ...] = ("good", "same", "poor")) -> Results:
    """`good` is better than the others by 1; `same` and `poor` differ by less than the spread."""
    n = np.arange(40)
    noise = spread * np.stack([np.sin(n), np.cos(n), np.cos(2 * n)], axis=1)
    values = noise + np.array([2.0, 1.0, 1.0])
    curve = np.broadcast_to(np.linspace(1, 0, GRID), (40, 3, GRID)).copy()
    said = {
        "refl": "0", "model": {"name": "m", "fingerprint": "f" * 64, "dtype": "float64"},
        "data": {"hash": "d" * 64, "inputs": 40},
        "options": {
            "metrics": ["flip"], "seed": "logit", "contrast": True, "notes": {},
            "methods": dict.fromkeys(names),
        },
    }  # fmt: skip
    keys = {("flip", "dA_flip"): values, ("flip", "A_MoRF_flip"): -values}
    lines = list(range(1, 41))
    curves = {("flip", "MoRF_flip"): curve}
    return Results([str(k) for k in lines], lines, list(names), keys, curves, said)


def test_bold_only_where_the_interval_to_every_other_excludes_0() -> None:
    r = results()
    assert [r.outstanding(key) for key in r.values] == [0, 0]
    assert tables.as_latex(r).count(r"\mathbf") == 2
    alike = results(spread=40.0)
    assert [alike.outstanding(key) for key in alike.values] == [None, None]
    assert r"\mathbf" not in tables.as_latex(alike)
    r.values["flip", "dA_flip"][:, 1] = r.values["flip", "dA_flip"][:, 0]  # two that are equal
    equal = Results(**(vars(r) | {"known": {}}))
    assert equal.outstanding(("flip", "dA_flip")) is None


def test_the_best_mean_of_other_inputs_is_not_bold_where_it_is_worse() -> None:
    """`good` has a number of the easy inputs alone, where `same` is better by a tenth."""
    r = results()
    for key in r.values:
        sign = 1 if r.larger_is_better(key) else -1
        easy = np.arange(40) < 20
        same = np.where(easy, 0.9, 0.1) + 0.01 * np.sin(np.arange(40))
        good = np.where(easy, same - 0.1, np.nan)
        r.values[key][:] = sign * np.stack([good, same, same - 5], axis=1)
        assert abs(r.mean(key, 0).mean) > abs(r.mean(key, 1).mean)
        assert r.difference(key, 0, 1).excludes_0 and r.outstanding(key) is None
        r.values[key][:, 0] += sign * 0.2  # now it is better there, too
        assert Results(**(vars(r) | {"known": {}})).outstanding(key) == 0


def test_bold_from_six_inputs_on() -> None:
    """Five differences are all of one sign in one of sixteen cases by chance, six in one of 32."""
    for count, bold in ((2, None), (5, None), (6, 0)):
        r = results()
        r.values.update({key: values[:count] for key, values in r.values.items()})
        assert [r.outstanding(key) for key in r.values] == [bold] * 2
    assert "on 6 or more inputs of which both have a number" in tables.protocol(r)


def test_differences_are_antisymmetric() -> None:
    r, key = results(), ("flip", "dA_flip")
    there, back = r.difference(key, 0, 2), r.difference(key, 2, 0)
    assert (back.mean, back.low, back.high) == (-there.mean, -there.high, -there.low)
    assert there.low < there.mean < there.high and there.excludes_0
    assert there.mean == pytest.approx(float((r.values[key][:, 0] - r.values[key][:, 2]).mean()))


def test_latex_prints_what_a_name_says() -> None:
    said = tables.as_latex(results(names=(HOSTILE, "b", "c")))
    row = next(line for line in said.splitlines() if "script" in line)
    assert row.startswith(
        r"\textless{}script\textgreater{}a\_1\textless{}/script\textgreater{}\&\$x\$"
        r"\textbackslash{}input\{/etc/passwd\}\%\#\textasciicircum{}\textasciitilde{}"
    )
    assert "\x1b" not in said and said.count(r"\toprule") == 1
    assert r"95\% BCa bootstrap" in said and "over 40 inputs" in said


@pytest.mark.parametrize("name", ["[3pt]", "*", "[*"])
def test_a_name_is_no_option_of_the_line_before(name: str) -> None:
    """LaTeX looks for [...] and * behind the \\\\ of a row, over the end of the line."""
    said = tables.as_latex(results(names=("a", name, "c")))
    behind = [part.lstrip() for part in said.split("\\\\")[1:]]
    assert len(behind) == 4 and not any(part.startswith(("[", "*")) for part in behind)
    shown = said.replace("{[}", "[").replace("{*}", "*")
    assert f"\n{name} & " in shown


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e-3, 1.0, 1e4, 1e9, 1e150])
def test_numbers_of_any_size(scale: float) -> None:
    """Every printed number is the mean, or the standard error, to its last digit."""
    r, key = results(), ("flip", "dA_flip")
    r = replace(r, values={key: r.values[key] * scale})
    decimal, power = r"(-?\d+\.?\d*)", r"10\^\{(-?\d+)\}"
    cell = rf"\$\(?(?:\\mathbf{{)?{decimal}}}? \\pm {decimal}\)?(?: \\cdot {power})?\$"
    found = re.findall(cell, tables.as_latex(r))
    shown = [tables.shown(r.mean(key, m), tables.form(r, key)) for m in range(3)]
    plain = [re.findall(rf"{decimal} ± {decimal}\)?(?:e([+-]\d+))?", words)[0] for words in shown]
    assert len(found) == 3
    for m, (latex, terminal) in enumerate(zip(found, plain, strict=True)):
        assert latex[:2] == terminal[:2] and int(latex[2] or 0) == int(terminal[2] or 0)
        unit, places = int(latex[2] or 0), len(latex[0].partition(".")[2])
        s = r.mean(key, m)
        for words, number in zip(latex, (s.mean, s.standard_error), strict=False):
            assert len(words) < 10 and float(words) > 0
            exact = Fraction(number) / Fraction(10) ** unit
            assert abs(Fraction(words) - exact) <= Fraction(1, 2 * 10**places)
    assert ("e" in shown[0]) == (not 1e-4 < scale < 1e5)
    difference = r.difference(key, 2, 0)
    words = re.findall(r"poor less good<.*?<td[^>]*>([^<]*)</td>", page.html(r))[0]
    assert float(words) == pytest.approx(difference.mean, rel=0.02, abs=0)


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_name_is_no_formula_of_a_spreadsheet(begin: str) -> None:
    formula = f'{begin}HYPERLINK("http://x")'
    r = results(names=("good", formula, "poor"))
    r.names[3] = formula
    r.values["flip", "dA_flip"][3] = -0.5
    table = list(csv.DictReader(io.StringIO(tables.as_csv(r), newline="")))
    assert {row["name"] for row in table[9:12]} == {f"'{formula}"}
    assert [row["method"] for row in table[:3]] == ["good", f"'{formula}", "poor"]
    assert {row["name"] for row in table[:9]} == {"1", "2", "3"}
    assert [row["dA_flip"] for row in table[9:12]] == ["-0.5"] * 3


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_curves_name_what_they_are_over() -> None:
    """The explained number over units for flipping, a correlation over parts for sanity."""
    r = results()
    assert tables.axes(r, ("flip", "x")) == (
        "fraction of the units replaced",
        "logit, or difference of two",
    )
    other = ("insert:units=words:quantity=probability", "x")
    assert tables.axes(r, other) == ("fraction of the words brought back", "probability")
    assert tables.axes(r, ("sanity", "sanity"))[1] == "rank correlation"
    assert "fraction of the units replaced" in page.html(r)
    assert "baseline zero" in tables.protocol(r) and "of contrasts the d" in tables.protocol(r)


@pytest.mark.needs("matplotlib")
def test_figures_take_nobodys_settings() -> None:
    """A matplotlibrc may ask for TeX, which runs what the name of a method says."""
    import matplotlib

    r = results(names=(HOSTILE, "b", "c"))
    once = figures.curves(r, ("flip", "MoRF_flip"), "svg")
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9}):
        assert figures.curves(r, ("flip", "MoRF_flip"), "svg") == once


def test_a_curve_that_no_method_has_is_not_drawn() -> None:
    r = results()
    assert figures.is_drawn(r, ("flip", "MoRF_flip"))
    r.curves["flip", "MoRF_flip"][:] = np.nan
    assert not figures.is_drawn(r, ("flip", "MoRF_flip"))


def test_the_page_is_one_file_and_nothing_in_it_runs() -> None:
    found = Page()
    found.feed(page.html(results(names=(HOSTILE, "b", "c"))))
    assert "script" not in found.tags and not found.links
    assert found.text.count("<script>a_1</script>&$x$") >= 3 and "\x1b" not in found.text
    assert found.tags.count("polyline") == 3 and found.tags.count("polygon") == 3


def test_wide_tables_fold_in_a_terminal() -> None:
    r = results()
    wide, narrow = tables.lines(r, 100), tables.lines(r, 30)
    assert sum(line[0][0].startswith("method") for line in wide if line) == 1
    assert sum(line[0][0].startswith("method") for line in narrow if line) == 2


@pytest.mark.needs("matplotlib")
def test_figures(tmp_path: Path, data: Path) -> None:
    r = results(names=("_a", "$b$", "c"))
    key = ("flip", "MoRF_flip")
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    for kind, start in starts.items():
        first = figures.curves(r, key, kind)
        assert first.startswith(start) and figures.curves(r, key, kind) == first
    assert all(name in figures.curves(r, key, "svg") for name in (b"_a", b"$b$"))
    assert main(command(data, "--out", str(tmp_path / "run"), "--figures", "svg", "pdf")) == 0
    found = {path.name for path in (tmp_path / "run").glob("flip-*")}
    assert found == {f"flip-{c}_flip.{k}" for c in ("MoRF", "LeRF") for k in ("svg", "pdf")}


def test_curves_of_any_length_meet_on_a_grid() -> None:
    grid = np.linspace(0, 1, GRID)
    for count in (2, 3, 8, 130):
        line = list(3 - 2 * np.linspace(0, 1, count))
        assert on_grid(line) == pytest.approx(3 - 2 * grid, abs=1e-12)
    assert np.isnan(on_grid([4.0])).all() and np.isnan(on_grid([])).all()
    curves = np.stack([np.zeros(GRID), np.full(GRID, 2.0), np.full(GRID, np.nan)])
    low, middle, high = band(curves)  # of 0 and 2: mean 1, s = sqrt(2), s / sqrt(2) = 1
    assert (low == 0).all() and (middle == 1).all() and (high == pytest.approx(2.0))
    low, middle, high = band(curves[1:])  # of one: s is not defined
    assert np.isnan(low).all() and (middle == 2).all() and np.isnan(high).all()


def test_an_input_without_units_is_in_no_curve(model: Model, tmp_path: Path) -> None:
    """Of a beginning alone nothing can be replaced: its numbers are nan, and the mean curve is that
    of the other input, as its row in a shard has it.
    """
    file, folder = tmp_path / "data.jsonl", tmp_path / "run"
    file.write_text('{"ids": [2, 87, 154]}\n{"ids": [2]}\n')
    r = evaluate(model, file, folder, ["attnlrp"], ["flip"])
    key = ("flip", "MoRF_flip")
    assert np.isnan(r.values["flip", "dA_flip"][1]).all()
    curves = [row["curves"]["MoRF_flip"] for row in rows(folder) if row["line"] == 1]
    for m, curve in enumerate(curves):
        steps = np.linspace(0, 1, len(curve))
        middle = band(r.curves[key][:, m])[1]
        assert middle == pytest.approx(np.interp(np.linspace(0, 1, GRID), steps, curve))
    assert tables.inputs(r, key) == "1 input"
    found = page.html(r)
    assert "Over 1 input." in found and "dA_flip: over 1 of these inputs." in found
    assert tables.inputs(results(), key) == "40 inputs"


def test_one_input_has_no_interval_and_no_band() -> None:
    r = results()
    r.values.update({key: values[:1] for key, values in r.values.items()})
    r.curves.update({key: curves[:1] for key, curves in r.curves.items()})
    del r.names[1:], r.lines[1:]
    r.said["data"]["inputs"] = 1
    found = Page()
    found.feed(page.html(r))
    assert "nan" not in found.text and "0 inside" not in found.text
    assert re.search(r"same less good-\d\.\d+-", found.text)  # the difference, and no interval
    assert found.tags.count("polyline") == 3 and "polygon" not in found.tags
    assert "Bands" not in found.text and "3 methods, 1 input" in found.text
    said = tables.protocol(r)
    assert said.startswith("The value of one input (data ") and "; no standard error; " in said
    assert "±" not in "".join(part[0] for line in tables.lines(r, 200) for part in line)


@pytest.mark.needs("matplotlib")
def test_a_figure_of_one_input_has_no_band() -> None:
    r = results()
    key = ("flip", "MoRF_flip")
    assert b"one standard error" in figures.curves(r, key, "svg")
    r.curves[key] = r.curves[key][:1]
    found = figures.curves(r, key, "svg")
    assert b"one standard error" not in found and b"1 input (flip)" in found


def test_a_figure_for_each_metric() -> None:
    """What is no name of a file is told apart all the same."""
    assert figures.name(("flip", "MoRF_flip"), "svg") == "flip-MoRF_flip.svg"
    long = "flip:baseline=" + "a" * 150
    metrics = ["flip:baseline=<s>", "flip:baseline=</s>", "flip:baseline=\u6f22", long, long + "b"]
    names = [figures.name((one, "MoRF_flip"), "svg") for one in metrics]
    assert len(set(names)) == len(metrics)
    assert all(re.fullmatch(r"flip-[\w.=-]+-[0-9a-f]{8}\.svg", name, re.ASCII) for name in names)
    assert max(map(len, names)) < 140


@pytest.mark.needs("matplotlib")
def test_a_figure_says_which_metric(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"
    asked = ["evaluate", "--data", str(data), "--methods", "attnlrp", "--limit", "2"]
    metrics = ["--metrics", "flip:baseline=</s>", "flip:baseline=<s>", "--figures", "svg"]
    assert main([*asked, *metrics, "--out", str(folder)]) == 0
    found = [path.read_text() for path in folder.glob("*.svg")]
    titles = [f"RF_flip, 2 inputs (flip:baseline=&lt;{name}&gt;)" for name in ("s", "/s")]
    assert [sum(title in svg for svg in found) for title in titles] == [2, 2]


# -- what is refused -------------------------------------------------------------------------------


def test_help_names_every_metric(capsys: Capture) -> None:
    assert main(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in METRICS_THERE_ARE)


@dataclass(frozen=True)
class Undefined(Attribution):
    name: ClassVar[str] = "grad-cam-like"
    summary: ClassVar[str] = "x"
    source: ClassVar[str] = "x"
    passes: ClassVar[str] = "x"
    conserved: ClassVar[str] = "x"

    def refuse(self, network: Network) -> None:
        raise ReflError(f"method {self.name} is not defined for {network.net.MODEL_TYPE}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics", "flop"], "unknown metric 'flop'"),
        (["--metrics", "flip:baseline=nonsense"], "nonsense"),
        (["--metrics", "flip:units=patches"], "units is 'patches'"),
        (["--metrics", "flip,flip"], "none twice"),
        (["--metrics", "flip,"], "expected names between commas"),
        (["--metrics", "flip:steps=2:steps=3"], "option 'steps' is given twice"),
        (["--methods", "smoothgrad:samples=2:samples=3"], "gives 'samples' twice"),
        (["--methods", "nonsense"], "unknown method 'nonsense'"),
        (["--methods", "grad-cam-like"], "grad-cam-like is not defined for llama"),
        (["--methods", "cp-lrp:epz=1"], "epz"),
        (["--methods", "attnlrp,attnlrp"], "stands twice"),
        (["--methods", "random:draw=1/2"], "give --tune N"),
        (["--tune", "2"], "--tune chooses between values"),
        (["--tune", "0"], "--tune is 0: expected a whole number above 0"),
        (["--methods", "random:draw=1/2", "--tune", "-1"], "--tune is -1"),
        (["--methods", "random:draw=1/2", "--tune", "2", "--limit", "0"], "--limit is 0"),
        (["--limit", "0"], "--limit is 0: expected a whole number above 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--figures", "pdf"], "--figures are written into the folder of --out"),
        (["--scores", "theirs"], "expected NAME=FILE"),
        (["--scores", "a=a.npz", "a=b.npz"], "the scores 'a' stand twice"),
        (["--scores", "theirs=none.npz"], "none.npz does not exist"),
        (["--workers", "0"], "--workers is 0"),
        (["--shard", "0"], "--shard is 0"),
        (["--workers", "1", "--dask", "tcp://h:1"], "not both"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--seed", "probability"], "a contrast is a difference of logits"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str],
    words: str,
    data: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METHODS, "grad-cam-like", Undefined())
    assert main(command(data, *options)) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize("pool", [3, "processes", Processes, lambda f: f, object()])
def test_what_is_no_pool(pool: Any, model: Model, data: Path, tmp_path: Path) -> None:
    corpus: Any = explain_corpus
    for work in (
        lambda: evaluate(model, data, tmp_path / "a", METHOD, METRICS, pool=pool),
        lambda: corpus(model, data, tmp_path / "b", pool=pool),
    ):
        with pytest.raises(ReflError, match=r"pool is .*: expected an object with submit"):
            work()


def test_a_folder_with_other_options_is_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name, found in content(whole).items():
        (tmp_path / name).write_bytes(found)
    for options, words in (
        (["--methods", "attnlrp"], "another methods cp-lrp: there 'cp-lrp', now none; give"),
        (["--metrics", "flip"], "another metrics"),
        (["--no-contrast"], "another contrast: there True, now False"),
        (["--limit", "7"], "another data hash"),
    ):
        assert main(command(data, "--out", str(tmp_path), *options)) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "no JSON"),
        (b'{"text": "the keys", "evidence": [9]}', "evidence 9 is outside the input"),
        (b'{"text": "the keys", "target": "zebra zebra"}', "not in the vocabulary"),
        (b'{"ids": [2, 9999]}', "9999"),
    ],
)
def test_a_bad_line_is_named(
    line: bytes, words: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(data.read_bytes() + line + b"\n")
    assert main(command(file, "--out", str(tmp_path / "run"))) == 2
    out, err = capsys.readouterr()
    assert out == "" and "bad.jsonl, line 9: " in err and words in err and err.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--methods", "random:draw=1/2", "--tune", "1"]])
def test_a_bad_first_line_is_named(more: list[str], tmp_path: Path, capsys: Capture) -> None:
    file, good = tmp_path / "bad.jsonl", '{"ids": [2, 87, 154]}\n'
    file.write_text('{"ids": [2, 9999]}\n' * (1 + bool(more)) + good, encoding="utf-8")
    metrics = ["--methods", "attnlrp", "--metrics", "flip"]
    assert main(["evaluate", "--data", str(file), *metrics, *more]) == 2
    err = capsys.readouterr().err
    assert "bad.jsonl, line 1: " in err and "9999" in err and err.count("\n") == 1


def test_evidence_that_nobody_knows(tmp_path: Path, capsys: Capture) -> None:
    file, folder = tmp_path / "data.jsonl", tmp_path / "run"
    file.write_text('{"text": "the keys"}\n' * 2, encoding="utf-8")
    assert main(command(file, "--out", str(folder))) == 2
    assert "metric evidence judges what is known" in capsys.readouterr().err
    assert not folder.exists()
    file.write_text(
        '{"text": "the keys"}\n{"text": "the keys", "evidence": [2]}\n', encoding="utf-8"
    )
    assert main(command(file, "--out", str(folder))) == 0
    assert "top_1: over 1 of these inputs." in " ".join(capsys.readouterr().out.split())


def test_figures_without_matplotlib(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(command(data, "--out", str(tmp_path / "run"), "--figures", "pdf")) == 2
    err = capsys.readouterr().err
    assert "matplotlib is not installed" in err and "pip install" in err and "[figures]" in err
    assert not (tmp_path / "run").exists()


def test_curves_on_the_page_are_told_apart_in_gray_too() -> None:
    looks = [(page.COLORS[m % len(page.COLORS)], page._dash(m)) for m in range(36)]
    assert len(set(looks)) == 36
    assert all(a[1] != b[1] for a, b in pairwise(looks))
