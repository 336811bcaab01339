"""A corpus in shards: the same bytes whoever computes them, whatever interrupts, and a folder that
holds one run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import mortal
import pytest
from corpora import content, of_evidence
from hanging import within

from refl.cli import main
from refl.errors import ReflError
from refl.evaluation import shards
from refl.evaluation.corpus import Done, Here, How, Job, explain_corpus, explained
from refl.evaluation.data import Line, lines
from refl.evaluation.shards import Folder
from refl.evaluation.workers import InThisProcess, Packed, Processes, Work, ahead
from refl.methods import chosen
from refl.model import Model, load
from refl.verification.random_models import VIT, random_model

Capture = pytest.CaptureFixture[str]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals as Linux has them")
COUNT, SHARD = 20, 6


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_evidence(tmp_path_factory.mktemp("data") / "corpus.jsonl", COUNT)


@pytest.fixture(scope="module")
def whole(model: Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A run in one process that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert explain_corpus(model, data, folder, shard=SHARD) == Done(COUNT, 4, 4, folder)
    return content(folder)


def test_rows_are_what_explain_says(model: Model, whole: dict[str, bytes], data: Path) -> None:
    """To rounding: beside others in a batch a product may be added up in another order."""
    rows = [json.loads(row) for name in whole if "part" in name for row in whole[name].splitlines()]
    assert [row["line"] for row in rows] == list(range(1, COUNT + 1))
    for row, line in zip(rows, lines(data), strict=True):
        said = json.loads(line.content)
        e = model.explain(said["prefix"], contrast=(said["target"], said["foil"]), keep=())
        assert (row["tokens"], row["target"], row["against"]) == (e.tokens, e.target, e.against)
        assert row["relevance"] == pytest.approx(e.relevance.tolist(), abs=1e-4)
        assert row["explained"] == pytest.approx(row["logit"] - row["against_logit"], abs=1e-5)
        accounted = row["on_input"] + sum(row["absorbed"].values()) + row["conservation_error"]
        assert accounted == pytest.approx(row["explained"], abs=1e-9)


# -- whoever computes it ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_bytes_with_any_number_of_workers(
    workers: int, model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    explain_corpus(model, data, tmp_path / "run", shard=SHARD, workers=workers)
    assert content(tmp_path / "run") == whole


def test_any_pool_with_submit_and_result(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        explain_corpus(model, data, tmp_path / "run", shard=SHARD, pool=pool)
    assert content(tmp_path / "run") == whole


@pytest.mark.needs("distributed")
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert ahead(client) == 4
        explain_corpus(model, data, tmp_path / "python", shard=SHARD, pool=client)
        address = ["--dask", cluster.scheduler_address]
        asked = [*command(data, tmp_path / "line"), *address]
        assert main(asked) == 0
    assert content(tmp_path / "python") == content(tmp_path / "line") == whole


@LINUX
@pytest.mark.needs("distributed")
@pytest.mark.filterwarnings("ignore")
def test_a_dask_worker_that_dies_loses_nothing(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """The cluster itself starts another, and gives the task out again."""
    from distributed import Client, LocalCluster

    marker = tmp_path / "killed"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert job(model, data, tmp_path / "run", 8, marker, True).run(client, None, None).made == 4
    assert marker.exists()
    parts = {name: found for name, found in whole.items() if name != shards.RUN}
    assert parts.items() <= content(tmp_path / "run").items()


@pytest.mark.needs("distributed")
@pytest.mark.filterwarnings("ignore")
def test_no_dask_scheduler_is_one_sentence(data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main([*command(data, tmp_path / "run"), "--dask", "tcp://127.0.0.1:9"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("refl: no dask scheduler answers at tcp://127.0.0.1:9")


def test_workers_have_one_blas_thread_and_are_gone_after() -> None:
    with Processes(2) as pool:
        work = Work(pool, mortal.where, ahead(pool))
        found = list(work.answers([(str(n), (n,)) for n in range(6)]))
    processes = {process for process, _ in found}
    assert {threads for _, threads in found} == {1} and os.getpid() not in processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@LINUX
def test_an_interrupt_does_not_reach_a_worker_that_is_still_loading() -> None:
    with Processes(1) as pool:
        answer = pool.submit(mortal.where, 0)
        assert pool._pool is not None
        (worker,) = pool._pool._processes
        for _ in range(20):
            os.kill(worker, signal.SIGINT)
            time.sleep(0.01)
        assert answer.result() == (worker, 1)  # and its BLAS has one thread
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_no_more_is_given_out_than_is_wanted_ahead() -> None:
    given: list[int] = []

    def tasks() -> Iterator[tuple[str, tuple[Any, ...]]]:
        for n in range(9):
            given.append(n)
            yield str(n), (n,)

    answers = Work(InThisProcess(), mortal.square, 3).answers(tasks())
    assert [next(answers), len(given)] == [0, 4]
    assert list(answers) == [n * n for n in range(1, 9)]


def test_the_model_is_opened_once_in_a_process(model: Model, data: Path) -> None:
    packed = Packed.of(model)
    again = Packed(bytes(packed.content), packed.key)
    assert packed.model() is again.model() is not model
    part = list(lines(data, 3))
    how = How(chosen("attnlrp"))
    assert explained(packed, how, part) == explained(Here(model), how, part)


# -- workers that die ------------------------------------------------------------------------------


def job(model: Model, data: Path, folder: Path, line: int, marker: Path, once: bool) -> Job:
    further = (How(chosen("attnlrp")), line, str(marker), once)
    where = Folder(folder)
    return Job(model, data, where, mortal.killing, further, {}, SHARD)


@LINUX
def test_a_worker_killed_in_the_middle_loses_nothing(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    marker = tmp_path / "killed"
    assert job(model, data, tmp_path / "run", 8, marker, True).run(None, 2, None).made == 4
    assert marker.exists()
    parts = {name: found for name, found in whole.items() if name != shards.RUN}
    assert parts.items() <= content(tmp_path / "run").items()


@LINUX
def test_a_shard_that_kills_every_worker_is_one_sentence(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    doomed = job(model, data, tmp_path / "run", 13, tmp_path / "killed", False)
    words = r"a worker died 3 times while it worked on .*corpus\.jsonl, lines 13 to 18"
    with pytest.raises(ReflError, match=words):
        doomed.run(None, 2, None)
    kept = [name for name in content(tmp_path / "run") if name != shards.RUN]
    assert kept == [name for name in whole if name != shards.RUN][:2]


@LINUX
def test_only_the_deadly_task_is_tried_again_and_again(tmp_path: Path) -> None:
    tasks = [(f"task {n}", (n, 5, str(tmp_path / "killed"))) for n in range(9)]
    with Processes(2) as pool:
        work = Work(pool, mortal.killed_once, ahead(pool))
        assert list(work.answers(tasks)) == [n * n for n in range(9)]
    with Processes(2) as pool:
        work = Work(pool, mortal.killed_always, ahead(pool))
        answers = work.answers([(f"task {n}", (n, 3)) for n in range(9)])
        assert [next(answers) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(ReflError, match=r"a worker died 3 times while it worked on task 3,"):
            next(answers)


# -- interrupted and gone on with ------------------------------------------------------------------


class Interrupted(InThisProcess):
    """An interrupt comes while the third task is at work."""

    def __init__(self) -> None:
        self.tasks = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        self.tasks += 1
        if self.tasks == 3:
            raise KeyboardInterrupt
        return super().submit(function, *arguments)


def test_interrupted_and_resumed_is_the_uninterrupted_run(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        explain_corpus(model, data, folder, shard=SHARD, pool=Interrupted())
    assert len(content(folder)) < len(whole)
    assert content(folder).items() <= whole.items()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told: list[tuple[str, int, int]] = []
    done = explain_corpus(
        model, data, folder, shard=SHARD, progress=lambda *said: told.append(said)
    )
    assert content(folder) == whole and done.made == 4 - (len(before) - 1)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    assert told[1] == ("explaining", SHARD * (len(before) - 1), COUNT)
    assert told[-1] == ("explaining", COUNT, COUNT)


@pytest.mark.parametrize(
    "harm",
    [lambda b: b[:-40], lambda b: b"", lambda b: b[:50] + b"9" + b[51:]],
    ids=["cut", "empty", "changed"],
)
def test_a_shard_that_was_cut_is_made_again(
    harm: Callable[[bytes], bytes],
    model: Model,
    data: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, found in whole.items():
        (folder / name).write_bytes(found)
    victim = next(folder.glob("part-00002-*"))
    victim.write_bytes(harm(victim.read_bytes()))
    assert explain_corpus(model, data, folder, shard=SHARD).made == 1
    assert content(folder) == whole


def alive(group: int) -> list[str]:
    """Processes of a group that are not over."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = place.read_text().rpartition(")")
            state, _, its_group = rest.split()[:3]
            found += [name] * (int(its_group) == group and state not in "ZX")
    return found


@LINUX
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_finished_shards_and_no_process(
    number: str, data: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many.jsonl"
    many.write_bytes(data.read_bytes() * 40)
    asked = [*command(many, tmp_path / "run"), "--workers", "2", "--method", "attnlrp"]
    process = subprocess.Popen(
        [sys.executable, "-m", "refl", *asked], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "run").glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, getattr(signal, number))  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143}[number] and err == b""
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(process.pid)
    names = set(content(tmp_path / "run"))
    assert 3 < len(names) < 135 and all(name.endswith((".jsonl", ".json")) for name in names)


# -- the file changes while it is read -------------------------------------------------------------

CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "other lines": lambda rows: rows[:8] + [row.replace(b"the ", b"a ") for row in rows[8:]],
    "another order": lambda rows: rows[:8] + rows[8:][::-1],
    "a blank line more": lambda rows: [*rows[:8], b"\n", *rows[8:]],
    "cut in a shard": lambda rows: rows[:9],
    "cut between shards": lambda rows: rows[:6],
}


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(
    change: str,
    workers: int | None,
    model: Model,
    data: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Between the first reading and the work: lines that nobody looked at are not explained under
    the hash of the others. What was good before is kept.
    """
    file, folder = tmp_path / "data.jsonl", tmp_path / "run"
    file.write_bytes(data.read_bytes())
    folder.mkdir()
    good = dict(sorted(whole.items(), key=lambda one: one[0] != shards.RUN)[:2])
    for name, found in good.items():
        (folder / name).write_bytes(found)

    def progress(phase: str, done: int, count: int) -> None:
        if (phase, done) == ("explaining", SHARD):
            rows = data.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"".join(CHANGES[change](rows)))

    with pytest.raises(ReflError, match=r"data\.jsonl changed while it was read") as raised:
        explain_corpus(model, file, folder, shard=SHARD, workers=workers, progress=progress)
    assert "\n" not in str(raised.value)
    assert content(folder) == good
    file.write_bytes(data.read_bytes())
    explain_corpus(model, file, folder, shard=SHARD)
    assert content(folder) == whole


def test_lines_that_are_written_behind_the_last_do_no_harm(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    file, rows = tmp_path / "data.jsonl", data.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[: 2 * SHARD]))

    def progress(phase: str, done: int, count: int) -> None:
        if phase == "explaining":
            file.write_bytes(b"".join(rows))

    done = explain_corpus(model, file, tmp_path / "run", shard=SHARD, progress=progress)
    assert (done.inputs, done.shards) == (2 * SHARD, 2)
    parts = {name for name in whole if name < "part-00002"}
    assert parts == set(content(tmp_path / "run")) - {shards.RUN}


def test_a_picture_that_changes_while_it_is_explained(tmp_path: Path) -> None:
    file, picture = tmp_path / "data.jsonl", tmp_path / "a.png"
    file.write_text('{"image": "a.png"}\n' * 3)
    picture.write_bytes(b"one")
    job = Job(random_model(VIT, 0), file, Folder(tmp_path / "run"), overwritten, picture, {}, 2)
    with pytest.raises(ReflError, match=r"data\.jsonl changed while it was read, or a picture"):
        job.run(None, None, None)
    assert set(content(tmp_path / "run")) == {"run.json"}


def overwritten(opened: Any, picture: Path, part: list[Line]) -> bytes:
    picture.write_bytes(b"other")
    return b"x"


# -- a folder is that of one run -------------------------------------------------------------------


def command(data: Path, folder: Path, *more: str) -> list[str]:
    return ["explain", "--file", str(data), "--out", str(folder), "--shard", str(SHARD), *more]


def test_the_command_and_its_answer(
    data: Path, whole: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    assert main(command(data, tmp_path / "run")) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/run: 20 inputs in 4 shards\n"
    assert content(tmp_path / "run") == whole
    assert main(command(data, tmp_path / "run", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"inputs": 20, "shards": 4, "made": 0, "folder": str(tmp_path / "run")}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--method", "cp-lrp"], "another method name: there 'attnlrp', now 'cp-lrp'"),
        (["--eps", "0.01"], "now 'attnlrp (eps=0.01)'"),
        (["--seed", "log-probability"], "another seed"),
        (["--dtype", "float64"], "another model dtype: there 'float32', now 'float64'"),
        (["--limit", "19"], "another data hash"),
        (["--shard", "5"], "another shard: there 6, now 5"),
    ],
)
def test_a_folder_with_other_options_is_refused(
    option: list[str],
    words: str,
    data: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    for name, found in whole.items():
        (tmp_path / name).write_bytes(found)
    assert main([*command(data, tmp_path), *option]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
    assert content(tmp_path) == whole


def test_a_folder_that_is_none_is_refused(data: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "run.json").write_text("[1")
    for folder, words in (
        (tmp_path, "has no run.json and is not empty"),
        (tmp_path / "thesis.tex", "it is a file"),
        (tmp_path / "none" / "run", "there is no folder"),
        (strange, "is no description of a run"),
    ):
        assert main(command(data, folder)) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert (tmp_path / "thesis.tex").read_text() == "x"


@LINUX
def test_pipes_in_the_folder_are_not_waited_for(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for name, found in whole.items():
        (tmp_path / name).write_bytes(found)
    next(tmp_path.glob("part-00000-*")).unlink()
    for name in ("part-00000-zz.jsonl", "part-00001-zz.jsonl"):
        os.mkfifo(tmp_path / name)
    with within(20):
        assert explain_corpus(model, data, tmp_path, shard=SHARD).made == 1
    assert Folder(tmp_path).finished() == {
        n: tmp_path / name for n, name in enumerate(name for name in whole if name != shards.RUN)
    }
    (tmp_path / shards.RUN).unlink()
    os.mkfifo(tmp_path / shards.RUN)
    with within(20), pytest.raises(ReflError, match=r"expected a file, .*run\.json is a folder, p"):
        explain_corpus(model, data, tmp_path, shard=SHARD)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a file of more bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@LINUX
def test_a_full_disk_is_one_sentence_and_finished_shards_stay(
    data: Path, tmp_path: Path, whole: dict[str, bytes], capsys: Capture
) -> None:
    largest = max(
        len(found) for name, found in whole.items() if name < "part-00001" or "run" in name
    )
    long = json.dumps({"text": "the keys " * 30}).encode() + b"\n"
    file = tmp_path / "data.jsonl"
    with open(data, "rb") as source:
        file.write_bytes(b"".join(islice(source, SHARD)) + long * SHARD)
    with files_of_at_most(largest + 100):
        assert main(command(file, tmp_path / "run")) == 2
    out, err = capsys.readouterr()
    assert out == "" and "cannot be written: File too large" in err and err.count("\n") == 1
    left = content(tmp_path / "run")
    assert min(left).startswith("part-00000") and len(left) == 2
    assert main(command(file, tmp_path / "run")) == 0
    assert "1 of them finished before" in capsys.readouterr().out


# -- what is refused before anything is computed ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "--workers is 0: expected a whole number above 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--workers", "2", "--dask", "tcp://h:1"], "--workers or --dask, not both"),
        (["--target", "are"], "--target is for one input"),
        (["--html", "x.html"], "--html is for one input"),
        (["TEXT"], "TEXT is for one input"),
        (["--method", "nonsense"], "unknown method"),
    ],
)
def test_bad_options(
    options: list[str], words: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*command(data, tmp_path / "run"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_of_a_corpus_without_one(capsys: Capture) -> None:
    assert main(["explain", "the keys", "--workers", "2"]) == 2
    assert "--workers is for a corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "no JSON"),
        (b'{"text": "the keys", "evidence": [9]}', "evidence 9 is outside"),
        (b'{"text": "the keys", "target": "zebra zebra"}', "is not in the vocabulary"),
        (b'{"ids": [1, 99999]}', "outside the vocabulary"),
        (b'{"text": "the keys", "position": 50}', "position 50 is outside"),
    ],
)
def test_a_bad_line_is_named_and_finished_shards_stay(
    line: bytes, words: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "bad.jsonl"
    with open(data, "rb") as source:
        file.write_bytes(b"".join(islice(source, 7)) + line + b"\n")
    assert main(command(file, tmp_path / "run")) == 2
    out, err = capsys.readouterr()
    assert out == "" and "bad.jsonl, line 8: " in err and words in err and err.count("\n") == 1


# -- Parquet ---------------------------------------------------------------------------------------


@pytest.mark.needs("pyarrow")
def test_parquet_says_what_json_says(
    model: Model, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    from pyarrow import parquet

    done = explain_corpus(model, data, tmp_path / "run", shard=SHARD, format="parquet")
    assert explain_corpus(model, data, tmp_path / "run", shard=SHARD, format="parquet").made == 0
    rows = [
        row | {"absorbed": dict(row["absorbed"])}
        for path in sorted((tmp_path / "run").glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]
    names = [name for name in whole if name != shards.RUN]
    assert rows == [json.loads(row) for name in names for row in whole[name].splitlines()]
    assert done.shards == 4


def test_parquet_without_its_library(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(command(data, tmp_path / "run", "--format", "parquet")) == 2
    err = capsys.readouterr().err
    assert "Parquet needs pyarrow: pip install" in err and "[parquet]" in err
    assert "--format jsonl" in err and not (tmp_path / "run").exists()
