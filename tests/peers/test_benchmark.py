"""The benchmark beside its peers, at toy sizes: every side runs, their relevance is the same, and a
side that differs is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refl.verification.quality.benchmark import (
    devices,
    machine,
    parts,
    results,
    rounds,
    sides,
    workload,
)
from refl.verification.quality.benchmark.__main__ import main
from refl.verification.quality.benchmark.sides import Answer, Refl, Torch
from refl.verification.quality.benchmark.spec import Spec

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
pytest.importorskip("transformers", reason="transformers is not installed (the extra 'peers')")
pytest.importorskip("lxt", reason="LXT is not installed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, no bursts, and the number of threads of this process stays as it is."""
    monkeypatch.setattr(rounds, "PAUSE", 0)
    monkeypatch.setattr(rounds, "SHORT", 0)
    monkeypatch.setattr(machine, "limit_threads", lambda threads: None)


def ran(folder: Path, *asked: str) -> list[dict[str, Any]]:
    """The rows of a quick run that agrees."""
    assert main(["--quick", "--threads", "1", "--out", str(folder), *asked]) == 0
    (found,) = results.every(folder)
    return [row for part in found["parts"] for row in results.rows(found, part)]


def test_every_part_runs_beside_its_peer(tmp_path: Path) -> None:
    rows = ran(tmp_path)
    for row in (r for r in rows if r["peer"] and "refl" not in r["left out"]):
        assert row["left out"] == {} and min(row["seconds"][row["peer"]]) > 0, row
        yardstick = row["peer"] == "torch" and row["method"] == "attnlrp-gradient"
        assert yardstick or row["deviation"] < 2e-5, row
    assert {row["peer"] for row in rows} == {"LXT", "torch", None}
    assert any("LXT, every token" in row["seconds"] for row in rows)


@pytest.mark.parametrize(
    ("part", "method"), [("tokens", "run"), ("batch", "batch"), ("vision", "run"), ("t5", "run")]
)
def test_a_peer_that_differs_is_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, part: str, method: str
) -> None:
    correct = getattr(Torch, method)

    def wrong(self: Torch, *asked: Any, **how: Any) -> Answer:
        answer = correct(self, *asked, **how)
        return answer._replace(relevance=[r * np.float32(1.001) for r in answer.relevance])

    monkeypatch.setattr(Torch, method, wrong)
    assert main(["--quick", "--threads", "1", "--only", part]) == 1


def toy(folder: Path, **how: Any) -> Spec:
    workload.write_llama(folder, workload.QUICK, 2, 64)
    return Spec("llama", str(folder), "LXT", "attnlrp-gradient", **how)


@pytest.mark.parametrize("bound", [1, 40, 1000])
def test_padding_changes_no_relevance(tmp_path: Path, bound: int) -> None:
    spec = toy(tmp_path, sentences=5, bound=bound)
    texts = [text[:12] for text in workload.texts_of(spec)]
    texts = [text[: 4 + 2 * b] for b, text in enumerate(texts)]
    side, ours = Torch(spec, devices.CPU), Refl(spec, devices.CPU)
    with side.patched():
        found = side.batch(texts)
    assert [len(r) for r in found.relevance] == list(map(len, texts))
    assert parts.deviation(ours.batch(texts), found) < 1e-5


def test_every_tokens_logits_change_no_relevance(tmp_path: Path) -> None:
    spec = toy(tmp_path, tokens=7)
    side, item, rows = Torch(spec, devices.CPU), workload.item_of(spec), []
    side.model.lm_head.register_forward_hook(lambda module, x, z: rows.append(z.shape[1]))
    with side.patched():
        pair = side.run(item, 3), side.run(item, 3, last=0)
    assert rows == [1, 7]
    assert parts.deviation(*pair) < 1e-5


def test_the_peak_of_a_peer(tmp_path: Path) -> None:
    """As many more tokens as make its own memory seen above what a small run leaves behind."""
    found = devices.peak_in_a_process(toy(tmp_path, tokens=64))
    assert isinstance(found, dict) and 0 <= found["rise"] < found["peak"]


@pytest.mark.parametrize("side", ["refl", "peer"])
@pytest.mark.parametrize("kind", ["vit", "t5", "list"])
def test_the_peak_of_every_kind_of_work(tmp_path: Path, kind: str, side: str) -> None:
    spec = toy(tmp_path, sentences=3, bound=64) if kind == "list" else of_kind(tmp_path, kind)
    spec = replace(spec, side="refl") if side == "refl" else spec
    found = sides.peak(spec, devices.CPU)
    assert found["peak"] > 0 and found["rise"] >= 0


def of_kind(folder: Path, kind: str) -> Spec:
    write = {"vit": workload.write_vit, "t5": workload.write_t5}[kind]
    write(folder, getattr(workload.QUICK, kind))
    lengths = {"tokens": 5, "prefix": 2} if kind == "t5" else {}
    return Spec(kind, str(folder), "torch", "input-x-gradient", **lengths)


def test_every_time_of_a_peer_waits_for_the_device(tmp_path: Path) -> None:
    waits: list[str] = []
    device = replace(devices.CPU, synchronize=lambda: waits.append("wait"))
    spec = toy(tmp_path, tokens=7)
    side = Torch(spec, device)
    with side.patched():
        times = side.seconds(workload.item_of(spec), 3, every=True)
    assert set(times) == {"LXT", "LXT forward", "LXT, every token"}
    assert len(waits) == 6, "before and after each"


def test_torch_without_cuda_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where CuPy has a GPU and torch has none."""
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    monkeypatch.setattr(devices, "chosen", lambda name: stand_in(devices._torch_lacks_cuda))
    rows = ran(tmp_path, "--only", "tokens", "batch")
    left_out = {why for row in rows for why in row["left out"].values()}
    assert left_out == {f"torch {torch.__version__} sees no GPU"}


def stand_in(why_no_torch: Callable[[], str | None]) -> devices.Device:
    return replace(devices.CPU, why_no_torch=why_no_torch)


def test_the_faster_form_of_attention_is_the_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workload.write_vit(tmp_path, workload.QUICK.vit)
    spec = Spec("vit", str(tmp_path), "torch", "input-x-gradient")
    b = parts.Bench(workload.QUICK, devices.CPU)
    for fast in ("sdpa", "eager"):

        def seconds(self: Torch, *asked: Any, fast: str = fast) -> dict[str, float]:
            return {"torch": 1.0 if self.model.config._attn_implementation == fast else 2.0}

        monkeypatch.setattr(Torch, "seconds", seconds)
        assert parts.fastest(b, spec).model.config._attn_implementation == fast
