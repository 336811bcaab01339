"""A tokenizer of unknown origin runs in a process of its own: the same answers, and one sentence
for what panics, dies, or takes without end.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import checkpoint_of

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.io import tokenizer_process
from refl.io.text import Text
from refl.io.tokenizer_process import TokenizerProcess
from refl.verification.random_models import LLAMA

PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "unk_token": "a",
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": [["a", "b"]],
    },
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}


def doubling(times: int) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [one] * times}


def charsmap(raw: bytes) -> dict[str, Any]:
    text = base64.b64encode(raw).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


def regex(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {"pre_tokenizer": split | {"invert": False}}


def unigram(entry: str) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [entry, -1.0]]}}


def saved(folder: Path, **changed: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(PLAIN | changed))
    return folder


def text_of(folder: Path) -> Text:
    text = Text.load(folder)
    assert text is not None
    return text


UNREADABLE = {
    "charsmap without end": charsmap(b"\x10\0\0\0" + b"\xff" * 30),
    "charsmap of the largest size": charsmap(b"\xff" * 4),
    "no charsmap": charsmap(b""),
    "a regex that is none": regex("(("),
    "an entry as deep as the stack": unigram("a" * 200_000),
}
UNUSABLE = {
    "a regex that backtracks": regex("(a+a+)+b"),
    "a template without its token": {"post_processor": TEMPLATE},
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ReflError, match=r"tokenizer\.json is not a readable tokenizer") as caught:
        Text.load(saved(tmp_path, **UNREADABLE[case]))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_encode_is_one_sentence(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = text_of(saved(tmp_path, **UNUSABLE[case]))
    with pytest.raises(ReflError, match="the tokenizer cannot encode") as caught:
        text.encode("a" * 60)
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
@pytest.mark.parametrize(("times", "memory"), [(24, 400 << 20), (40, 1536 << 20)])
def test_a_text_that_grows_without_end(
    tmp_path: Path, times: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_process, "SECONDS", 0.7)
    monkeypatch.setattr(tokenizer_process, "MEMORY", memory)
    text = text_of(saved(tmp_path, normalizer=doubling(times)))
    with pytest.raises(ReflError, match="takes more than 0.7 s|more memory"):
        text.encode("aaaa")
    assert text.encode("b") == [1]  # by a new process


def test_the_same_answers_as_here(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    apart, here = text_of(folder), Text.load(folder, trusted=True)
    assert here is not None
    for sample in ("ab", "b a", "aab", "\U0001f600ab", "x" * 5000):
        assert apart.encode(sample) == here.encode(sample)
        assert apart.decode(here.encode(sample)) == here.decode(here.encode(sample))


def test_the_shipped_model_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenizerProcess, "start", None)
    assert refl.load().explain("the keys").tokens


def test_the_process_ends_with_the_text(tmp_path: Path) -> None:
    text = text_of(saved(tmp_path))
    assert text._process is not None and text._process._child is not None
    process = text._process._child._process
    assert process.poll() is None
    del text
    gc.collect()
    assert process.poll() is not None


def test_copies_threads_and_forks_ask_processes_of_their_own(tmp_path: Path) -> None:
    text = text_of(saved(tmp_path))
    assert pickle.loads(pickle.dumps(text)).encode("ab") == [2]
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(text.encode("ab"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[2]] * 8
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        os._exit(text.encode("ab") != [2])
    assert text.encode("ab") == [2]


def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    text = text_of(saved(tmp_path))
    assert text._process is not None and text._process._child is not None
    text._process._child._process.kill()
    with pytest.raises(ReflError, match="cannot encode"):
        text.encode("ab")
    assert text.encode("ab") == [2]


def test_entries_that_would_steer_a_terminal_are_shown_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colors, a title, a bell, a line that overwrites itself, letters that turn the line around."""
    steering = ["\x1b[31m", "\x1b]0;x\x07", "\r", "\x9b2J", "\u202e", "\n"]
    vocabulary = {name: i for i, name in enumerate(steering)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "\n"}
    folder = saved(checkpoint_of(tmp_path, LLAMA), model=model)
    for more in ([], ["--json"], ["--keep", "*"]):
        assert main(["explain", "--ids", *"012345", "--model", str(folder), *more]) == 0
        shown = capsys.readouterr().out
        assert not any(c in shown for c in "\x1b\x07\r\x9b\u202e")


def test_the_command_line_ends_with_one_sentence(tmp_path: Path) -> None:
    folder = saved(checkpoint_of(tmp_path, LLAMA), **UNUSABLE["a template without its token"])
    command = [sys.executable, "-m", "refl", "explain", "ab", "--model", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "cannot encode" in done.stderr
