"""The benchmark at toy sizes: what it measures, what it writes, and that it says so where two sides
differ. What needs torch and LXT is in tests/peers/test_benchmark.py.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import ROOT

from refl.errors import ReflError
from refl.evaluation import datasets
from refl.model import load
from refl.verification.quality import benchmark_corpus
from refl.verification.quality.benchmark import (
    curves,
    devices,
    machine,
    page,
    parts,
    plot,
    results,
    rounds,
    sides,
    workload,
)
from refl.verification.quality.benchmark.__main__ import main
from refl.verification.quality.benchmark.sides import Answer, Refl
from refl.verification.quality.benchmark.spec import METHODS, PARTS, Spec


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, no bursts, and the number of threads of this process stays as it is."""
    monkeypatch.setattr(rounds, "PAUSE", 0)
    monkeypatch.setattr(rounds, "SHORT", 0)
    monkeypatch.setattr(machine, "limit_threads", lambda threads: None)
    monkeypatch.setattr(machine, "threads_in_use", lambda threads: f"{threads}")
    monkeypatch.setattr(machine, "_torch_blas", lambda: "torch is not imported here")


def toy_llama(folder: Path) -> Path:
    workload.write_llama(folder, workload.QUICK, 2, 64)
    return folder


def bench(**how: Any) -> parts.Bench:
    how = {"peers": False, "peak": None, "repeat": 1} | how
    return parts.Bench(workload.QUICK, devices.CPU, **how)


# -- the whole of it -------------------------------------------------------------------------------


def test_a_quick_run_measures_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--alone", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    found = results.read(file)
    assert file.stem == found["kind"] == machine.kind(found["parts"]["tokens"]["about"])
    assert list(found["parts"]) == list(parts.MEASURED) == list(PARTS)
    rows = [row for part in PARTS for row in results.rows(found, part)]
    assert {row["method"] for row in results.rows(found, "tokens")} == set(METHODS)
    ran = [row for row in rows if "refl" not in row["left out"]]
    assert ran and all(min(row["seconds"]["refl"]) > 0 for row in ran)
    assert all(row["conservation_error"] < 1e-5 for row in ran)
    out = capsys.readouterr().out
    assert "8 tokens" in out and "| what | method | peer |" in out


def test_a_folder_that_cannot_be_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["--quick", "--alone", "--out", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert "results cannot be put into" in captured.err and not captured.out


def test_a_quick_run_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert main(["--quick", "--alone", "--only", "depth"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_ledger_that_does_not_close_is_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["--quick", "--alone", "--only", "tokens", "--methods", "cp-lrp"]
    assert main(asked) == 0
    monkeypatch.setattr(sides, "_error", lambda ledger: 2e-4)
    assert main(asked) == 1


def test_relevances_that_differ_do_not_agree() -> None:
    ours = Answer([np.asarray([1.0, -2.0]), np.asarray([0.5])])
    theirs = Answer([np.asarray([1.0, -2.0]), np.asarray([0.502])])
    assert parts.deviation(ours, ours) == 0
    assert parts.deviation(ours, theirs) == pytest.approx(0.001)
    assert parts.agrees({"deviation": 0.99e-4}) and not parts.agrees({"deviation": 1.01e-4})
    assert not parts.agrees({"deviation": float("nan")})
    assert not parts.agrees({"conservation_error": 1.0, "deviation": 0.0})


def test_float64_says_whose_error_it_is() -> None:
    """Asked only where the sides are further apart than float32 explains; they differ all the
    same.
    """
    exact, near, far = (Answer([np.asarray([1.0, 2 + 2 * x])]) for x in (0.0, 1e-6, 2e-4))
    close = parts.compared(near, exact, lambda: pytest.fail("not asked for"))
    assert close == {"deviation": pytest.approx(1e-6, rel=1e-3)} and parts.agrees(close)
    theirs, ours = (parts.compared(*both, lambda: exact) for both in ((near, far), (far, near)))
    small, large = pytest.approx(1e-6, rel=1e-3), pytest.approx(2e-4, rel=1e-3)
    assert theirs["from float64"] == {"refl": small, "peer": large}
    assert ours["from float64"] == {"refl": large, "peer": small}
    assert not parts.agrees(theirs) and not parts.agrees(ours)


def test_what_float64_says_is_told() -> None:
    row = ROW | {"deviation": 2e-4, "from float64": {"refl": 1e-6, "peer": 1.99e-4}}
    assert "from refl in float64: refl 1.0e-06, LXT 2.0e-04" in page.line(row)
    table = page.markdown([stored("amd-zen", row)])
    assert "2.0e-04; from refl in float64 refl 1.0e-06, LXT 2.0e-04." in table
    assert "float64" not in page.markdown([stored("amd-zen", ROW)])


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "gradient"])
def test_both_halves_are_what_explain_gives(tmp_path: Path, method: str) -> None:
    spec = Spec("llama", str(toy_llama(tmp_path)), "refl", method, tokens=9)
    item = workload.item_of(spec)
    side = Refl(spec, devices.CPU)
    e = side.model.explain(item.input, method if method != "gradient" else "input-x-gradient")
    answer = side.run(item)
    assert answer.target == e.target_id
    np.testing.assert_allclose(answer.relevance[0], e.relevance, rtol=1e-4, atol=1e-5)
    several = side.batch([item.input, item.input[:4]])
    assert [len(r) for r in several.relevance] == [9, 4]


# -- rounds ----------------------------------------------------------------------------------------


def test_sides_alternate_and_the_order_turns() -> None:
    ran: list[str] = []

    def way(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            ran.append(name)
            return {name: float(len(ran))}

        return run

    found = rounds.alternated({"a": way("a"), "b": way("b")}, repeat=3, patience=60)
    assert "".join(ran) == "abbaab"
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert rounds.quotients(found, "b", "a") == [2, 0.75, 1.2]


def test_few_rounds_do_where_they_take_long() -> None:
    ways = {"a": lambda: {"a": 9.0}}
    assert len(rounds.alternated(ways, repeat=20, patience=0)["a"]) == rounds.FEWEST
    assert len(rounds.alternated(ways, repeat=2, patience=0)["a"]) == 2


def test_a_short_run_is_the_median_of_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SHORT", 0.2)
    times = iter([0.1, 5.0, 1.0, 2.0, 4.0, 3.0, 0.3])
    ways = {"a": lambda: {"a": next(times)}}
    assert rounds.alternated(ways, repeat=2, patience=60)["a"] == [3.0, 0.3]


def test_the_middle_half_of_the_rounds() -> None:
    assert rounds.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3, 2, 4)
    assert rounds.spread([7.0]) == (7, 7, 7)


# -- the work --------------------------------------------------------------------------------------


def test_sentences_are_as_long_as_said() -> None:
    lengths = workload.sentence_lengths(500)
    assert (len(lengths), sum(lengths), max(lengths)) == (500, 13018, 129)
    assert lengths == workload.sentence_lengths(500) != sorted(lengths)


def test_inputs_are_as_long_as_asked_for(tmp_path: Path) -> None:
    workload.write_t5(tmp_path, workload.QUICK.t5)
    spec = Spec("t5", str(tmp_path), "refl", "attnlrp", tokens=7, prefix=3)
    item = workload.item_of(spec)
    assert item.prefix is not None and item.prefix[0] == 0
    assert (len(item.input), len(item.prefix)) == (7, 3)
    answer = Refl(spec, devices.CPU).run(item)
    assert [len(r) for r in answer.relevance] == [7, 3]


def test_the_bare_products_of_a_model(tmp_path: Path) -> None:
    """Two layers of seven linear maps and two products of attention, and the head: two products for
    each of the first kind, three for each of the second.
    """
    spec = Spec("llama", str(toy_llama(tmp_path)), "refl", "attnlrp-gradient", tokens=5)
    model = Refl(spec, devices.CPU).model
    operations, pairs = parts.products(model, [1, 2, 3, 4, 5])
    assert operations == len(model.trace([[1, 2, 3, 4, 5]])[0].records)
    assert len(pairs) == 2 * (2 * 7 + 1) + 3 * 2 * 2
    counted = sum(a.size * b.shape[-1] for a, b in pairs)
    c, t = workload.QUICK, 5
    linear = 2 * (4 * c.hidden**2 + 3 * c.hidden * c.intermediate) * t + c.hidden * c.vocabulary
    assert counted == 2 * linear + 3 * 2 * 2 * c.hidden * t * t


def test_texts_of_about_one_length_share_a_batch() -> None:
    lengths = [5, 1, 4, 9, 2]
    assert sides.groups(lengths, 10) == [[1, 4], [2, 0], [3]]
    assert sides.groups(lengths, 1) == [[b] for b in (1, 4, 2, 0, 3)]
    assert sides.groups(lengths, 1000) == [[1, 4, 2, 0, 3]]


# -- memory ----------------------------------------------------------------------------------------


def test_a_peak_is_seen_after_it_is_gone() -> None:
    found = devices.CPU.peak_of("refl", lambda: np.ones(8 << 20).sum())  # 64 MiB
    assert 60 < found["rise"] < 100 < found["peak"]


def test_a_peak_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    spec = Spec("llama", str(toy_llama(tmp_path)), "refl", "attnlrp-gradient", tokens=60)
    found = devices.peak_in_a_process(spec)
    assert isinstance(found, dict) and 0 < found["rise"] < found["peak"] < 1000
    assert Spec.from_json(spec.to_json()) == spec
    (tmp_path / "model.safetensors").unlink()
    why = devices.peak_in_a_process(spec)
    assert isinstance(why, str) and "safetensors" in why


def test_a_process_that_is_killed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = SimpleNamespace(returncode=-9, stdout="", stderr="a warning")
    monkeypatch.setattr(devices.subprocess, "run", lambda *asked, **how: killed)
    why = devices.peak_in_a_process(Spec("llama", "folder", "refl", "attnlrp"))
    assert why == "ended by signal 9: out of memory?"


@pytest.mark.parametrize(
    ("known", "power"),
    [([(8, 1.0)], 2), ([(8, 1.0), (16, 2.0)], 1), ([(8, 1.0), (16, 9.0)], 2)],
)
def test_what_would_not_fit_is_left_out(known: list[tuple[int, float]], power: int) -> None:
    """A run of twice the length takes 2 or 4 times as much."""
    spec = Spec("llama", "folder", "refl", "cp-lrp", tokens=2 * known[-1][0])
    wanted = known[-1][1] * 2**power
    for room, fits in ((wanted / parts.ROOM + 1, True), (wanted / parts.ROOM - 1, False)):
        b = bench(room=lambda room=room: room, rises={("folder", "refl", "cp-lrp"): known})
        assert (b.why_not(spec) is None) == fits


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    b = bench(peak=lambda spec: "ended by signal 9: out of memory?")
    spec = b.spec("llama", toy_llama(tmp_path), "cp-lrp", tokens=4)
    row = parts.row_of(b, spec, parts.Beside("LXT"), {"part": "tokens", "model": "toy"})
    assert row["left out"] == {"refl": "ended by signal 9: out of memory?"} and not row["seconds"]
    assert "ended by signal 9" in page.line(row | {"tokens": 4})


# -- a GPU, and its stand-in -----------------------------------------------------------------------


def test_no_gpu_is_one_sentence_and_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["--quick", "--device", "cuda"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "needs CuPy and an NVIDIA GPU" in error


MIB = 1 << 20


class Pool:
    """Of CuPy: 100 MiB in use, 150 held."""

    def free_all_blocks(self) -> None:
        pass

    def used_bytes(self) -> int:
        return 100 * MIB

    def total_bytes(self) -> int:
        return 150 * MIB


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NumPy under CuPy's name; how often was waited for the GPU."""
    calls: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: calls.append("cupy"))
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (4 << 30, 8 << 30),
        getDeviceProperties=lambda i: {"name": b"NVIDIA Stand-in 1", "totalGlobalMem": 8 << 30},
        runtimeGetVersion=lambda: 12000,
        driverGetVersion=lambda: 12010,
    )
    cupy: Any = ModuleType("cupy")
    cupy.__spec__, cupy.__version__ = ModuleSpec("cupy", None), "14.0"
    cupy.asarray, cupy.get_default_memory_pool = np.asarray, Pool
    cupy.cuda = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return calls


def test_a_gpu_has_a_file_of_its_own(waits: list[str], tmp_path: Path) -> None:
    asked = ["--quick", "--alone", "--device", "cuda", "--out", str(tmp_path)]
    assert main([*asked, "--only", "tokens", "batch", "vision"]) == 0
    found = results.read(tmp_path / "nvidia-stand-in-1.json")
    about = found["parts"]["tokens"]["about"]
    assert about["gpu"]["driver"] == 12010 and about["versions"]["cupy"] == "14.0"
    assert "NVIDIA Stand-in 1, 8 GiB, CUDA 12000" in machine.words(about)


def test_every_time_on_a_gpu_waits_for_it(waits: list[str], tmp_path: Path) -> None:
    spec = Spec("llama", str(toy_llama(tmp_path)), "refl", "cp-lrp", tokens=4, device="cuda")
    device = devices.chosen("cuda")
    side = Refl(spec, device)
    side.run(workload.item_of(spec))
    waits.clear()
    assert set(side.seconds(workload.item_of(spec))) == {"refl forward", "refl sweep", "refl"}
    assert len(waits) == 4, "before and after each half"
    assert sides.peak(spec, device) == {"peak": 150, "rise": 50}


def test_what_torch_holds_of_a_gpu() -> None:
    calls: list[str] = []
    cuda = SimpleNamespace(
        empty_cache=lambda: calls.append("empty"),
        reset_peak_memory_stats=lambda: calls.append("reset"),
        memory_allocated=lambda: 10 * MIB,
        max_memory_reserved=lambda: 40 * MIB,
        max_memory_allocated=lambda: 30 * MIB,
    )
    torch = SimpleNamespace(cuda=cuda)
    found = devices._cache_peak(torch, lambda: calls.append("run"), lambda: calls.append("wait"))
    assert found == {"peak": 40, "rise": 30, "allocated": 30}
    assert calls == ["wait", "empty", "reset", "run", "wait"]


# -- results, page, figure -------------------------------------------------------------------------

ROW = {
    "part": "tokens",
    "model": "Llama 768 x 12",
    "layers": 12,
    "tokens": 1024,
    "method": "attnlrp-gradient",
    "peer": "LXT",
    "seconds": {
        "refl forward": [1.0, 1.0, 1.0],
        "refl sweep": [2.0, 1.0, 2.0],
        "refl": [3.0, 2.0, 3.0],
        "LXT": [1.5, 2.0, 2.0],
        "LXT, every token": [3.0, 4.0, 3.0],
    },
    "memory": {"refl": {"peak": 1500.0, "rise": 1234.0}, "LXT": {"peak": 900.0, "rise": 98.7}},
    "deviation": 1.5e-6,
    "left out": {},
}
ABOUT: dict[str, Any] = {
    "date": "2026-01-02",
    "commit": "abc",
    "processor": "a processor",
    "vendor": "amd",
    "extensions": ["avx2"],
    "cores": 2,
    "governor": "performance",
    "load": 0.5,
    "load at the end": 2.0,
    "blas": {"name": "openblas", "version": "1", "kernel": "Zen"},
    "torch computes with": "MKL",
    "threads asked": 2,
    "threads": "openblas 2",
    "system": "Linux",
    "python": "3.11",
    "versions": {"refl": "1", "lxt": "absent"},
}


def stored(kind: str, *rows: Any) -> results.Results:
    return {"format": 1, "kind": kind, "parts": {"tokens": {"about": ABOUT, "rows": list(rows)}}}


def test_the_cells_of_a_row() -> None:
    assert page.seconds_cell(ROW) == "3.00 s / 2.00 s"
    assert page.seconds_cell(ROW | {"others": 0.31}) == "3.00 s / 2.00 s, busy"
    assert page.seconds_cell(ROW | {"others": 0.3}) == "3.00 s / 2.00 s"
    assert page.quotient_cell(ROW) == "**1.50** (1.25 to 1.75)"
    assert page.quotient_cell(ROW, page.EVERY) == "**1.00** (0.75 to 1.00)"
    assert page.sweep_cell(ROW) == "2.00"
    assert page.memory_cell(ROW) == "1,234 / 99"
    assert page.duration(0.0123) == "12.3 ms" and page.duration(123.4) == "123 s"


def test_what_an_operation_costs() -> None:
    """(10 ms - 2 ms) / 100."""
    row = {"operations": 100, "seconds": {"refl": [0.010], "bare products": [0.002]}}
    assert "80.0 µs each" in page.overhead(row) and "2 ms of 10 ms" in page.overhead(row)


def test_machines_stand_side_by_side() -> None:
    other = ROW | {"tokens": 2048, "left out": {"LXT": "no room"}, "seconds": {"refl": [4.0]}}
    text = page.markdown([stored("amd-zen", ROW), stored("intel-x", ROW, other)])
    lines = [line for line in text.splitlines() if line.startswith("| Llama")]
    assert len(lines) == 3 and {line.count("|") for line in lines} == {3 + 2 * 4 + 1}
    assert lines[2].startswith("| Llama 768 x 12, 2,048 tokens | attnlrp-gradient | LXT | - | -")
    assert "- Llama 768 x 12, 2,048 tokens: LXT left out: no room." in text
    assert "**amd-zen**. a processor (avx2), 2 cores" in text and "results/intel-x.svg" in text


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    guide = tmp_path / "speed.md"
    guide.write_text(f"before\n{page.START}\nold\n{page.END}\nbehind\n", encoding="utf-8")
    page.write_into(guide, "new")
    page.write_into(guide, "newer")
    text = guide.read_text(encoding="utf-8")
    assert text == f"before\n{page.START}\n\nnewer\n\n{page.END}\nbehind\n"
    assert page.between(text) == "newer"
    start, end = page.START, page.END
    for wrong in ("", start, end, end + start, start + start + end, start + end + end):
        guide.write_text(wrong, encoding="utf-8")
        with pytest.raises(ReflError, match="once"):
            page.write_into(guide, "new")


def test_the_table_of_the_guide_is_that_of_the_results() -> None:
    text = (ROOT / "refl" / "guide" / "speed.md").read_text(encoding="utf-8")
    assert page.between(text) == page.markdown(results.every())


def test_a_part_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    for part, tokens in (("tokens", 1), ("depth", 2), ("tokens", 3)):
        path = results.with_part(tmp_path, "amd-zen", part, ABOUT, [ROW | {"tokens": tokens}])
    (found,) = results.every(tmp_path)
    assert found == json.loads(path.read_text(encoding="utf-8"))
    assert [r["tokens"] for p in PARTS for r in results.rows(found, p)] == [3, 2]
    path.write_text('{"format": 2}', encoding="utf-8")
    with pytest.raises(ReflError, match="format 1"):
        results.every(tmp_path)


def test_a_curve_has_what_was_measured() -> None:
    longer = ROW | {"tokens": 2048, "seconds": {"refl": [5.0]}, "memory": {}}
    rows = [longer, ROW]
    assert plot.curve(rows, "tokens", plot.seconds_of, "refl") == (
        [1024, 2048],
        [3.0, 5.0],
        [2.0, 5.0],
        [3.0, 5.0],
    )
    assert plot.curve(rows, "tokens", plot.memory_of, "LXT") == ([1024], [98.7], [98.7], [98.7])


@pytest.mark.needs("matplotlib")
def test_the_figure_is_the_same_each_time(tmp_path: Path) -> None:
    found = stored("amd-zen", ROW, ROW | {"tokens": 64})
    drawn = [tmp_path / f"{n}.svg" for n in range(2)]
    for path in drawn:
        assert plot.draw(found, path) == f"drawn: {path}"
    text = drawn[0].read_text(encoding="utf-8")
    assert text == drawn[1].read_text(encoding="utf-8")
    for words in ("1,024", "refl, forward and sweep", "LXT, forward and backward", "amd-zen"):
        assert words in text


# -- the machine -----------------------------------------------------------------------------------


def test_results_are_filed_by_vendor_and_kernel() -> None:
    assert machine.kind(ABOUT) == "amd-zen"
    assert machine.kind(ABOUT | {"blas": {"name": "accelerate", "kernel": ""}}) == "amd-accelerate"
    assert machine.kind(ABOUT | {"gpu": {"name": "NVIDIA H100 80GB"}}) == "nvidia-h100-80gb"


def test_this_machine_is_described() -> None:
    found = machine.about(1)
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"] == np.__version__ and found["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", found["commit"])


def test_what_others_do_is_not_what_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ten seconds all cores together were busy for twelve, this process for nine."""
    wall, own = iter([100.0, 110.0]), iter([1.0, 10.0])
    clocks = {"perf_counter": lambda: next(wall), "process_time": lambda: next(own)}
    monkeypatch.setattr(machine, "time", SimpleNamespace(**clocks))
    busy = iter([50.0, 62.0])
    monkeypatch.setattr(machine, "_busy", lambda: next(busy))
    row: dict[str, Any] = {}
    with machine.others_at_work(row):
        pass
    assert row == {"others": 0.3}


@pytest.mark.parametrize(
    ("others", "counts"),
    [([0.1], 0), ([0.9, 0.2], 1), ([0.9, 0.5, 0.7], 1), ([0.9, 0.8, 0.7], 2)],
)
def test_the_quietest_time_counts(
    monkeypatch: pytest.MonkeyPatch, others: list[float], counts: int
) -> None:
    busy = iter(others)

    @contextmanager
    def at_work(row: dict[str, Any]) -> Iterator[None]:
        yield
        row["others"] = next(busy)

    monkeypatch.setattr(machine, "others_at_work", at_work)
    times, row = iter([10.0, 11.0, 12.0]), dict[str, Any]()
    parts._timed_rounds(bench(), {"refl": lambda: {"refl": next(times)}}, 1, row)
    assert row["seconds"] == {"refl": [10.0 + counts]} and row["tries"] == len(others)
    assert row["others"] == others[counts]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")
def test_what_the_system_tells_of_its_cores() -> None:
    before, start = machine._busy(), time.process_time()
    while time.process_time() < start + 0.3:
        pass
    after = machine._busy()
    assert before is not None and after is not None and after - before > 0.2


def test_batched_curves_are_those_of_a_plain_loop() -> None:
    """On the sentence of a figure, with two methods."""
    model = load(dtype="float64")
    asked = curves.cases(model, datasets.shipped(1)["agreement"], 2)
    row = curves.compared("one", asked, 1, 1.0)
    assert row["curves"] == 4 and row["deviation"] < 1e-12
    assert row["loop"] > 0 and row["batched"] > 0


def test_a_corpus_beside_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--sentences", "4", "--repeat", "2", "--hidden", "64", "--layers", "1", "--threads"]
    assert benchmark_corpus.main(small) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    each = [f"refl, {n} workers" for n in benchmark_corpus.WORKERS]
    assert rows == [*(f"{name}, first run" for name in each), *each]
