"""No output of a command destroys what it reads, under whatever name; and files that are replaced
keep what is theirs.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, rmtree
from types import ModuleType

import numpy as np
import pytest

import refl
from refl.cli import _parser, files, main
from refl.errors import ReflError
from refl.io.files import atomic_write
from refl.model import SHIPPED
from refl.verification.quality.fuzzing import REFUSED, Try, ended_alone

TEXT = "the keys"
Capture = pytest.CaptureFixture[str]
ADAPTER = "def linear_epsilon(x, w, b, r, *, eps):\n    return x\n"
COMPOSITE = 'name = "mine"\nbase = "attnlrp"\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each input, and a model as a hub's cache keeps it: links to blobs."""
    monkeypatch.chdir(tmp_path)
    copytree(SHIPPED, "blobs")
    Path("snapshot").mkdir()
    for blob in Path("blobs").iterdir():
        (Path("snapshot") / blob.name).symlink_to(Path("..", "blobs", blob.name))
    for name, there in (("sharded", "model.safetensors.index.json"), ("single", "a.safetensors")):
        Path(name).mkdir()
        Path(name, there).write_bytes(b"")
    refl.load().explain(TEXT, keep=()).save("a.safetensors")
    os.link("a.safetensors", "hard.safetensors")
    Path("soft.safetensors").symlink_to("a.safetensors")
    Path("ad.py").write_text(ADAPTER)
    Path("m.toml").write_text(COMPOSITE)
    Path("words.txt").write_text(TEXT)
    Path("package").mkdir()
    Path("package", "inner.py").write_text(ADAPTER)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


DESTROYING = [
    "compare a.safetensors a.safetensors --html a.safetensors",
    "compare a.safetensors a.safetensors --html ./package/../a.safetensors",
    "compare a.safetensors a.safetensors --html hard.safetensors",
    "compare soft.safetensors a.safetensors --html hard.safetensors",
    "compare a.safetensors a.safetensors --model snapshot --html snapshot/config.json",
    "explain the --method m.toml --html m.toml",
    "explain the --method m.toml --save m.toml",
    "explain words.txt --html words.txt",
    "explain the --model snapshot --save snapshot/model.safetensors",
    "explain the --model snapshot --save blobs/model.safetensors",
    "explain the --model snapshot --html blobs/tokenizer.json",
    "explain the --model snapshot --save snapshot/model.safetensors.index.json",
    "explain the --model sharded --save sharded/model.safetensors",
    "explain the --model single --save single/other.safetensors",
    "explain the --model snapshot --html snapshot/generation_config.json",
    "explain the --html x --save x",
    "explain the --html x --save ./x",
    "explain the --html x --save package/../x",
    "explain the --html x --save X",
    "explain the --html a.safetensors --save soft.safetensors",
    "conform ad.py --junit ad.py",
    "conform ad --html ad.py",
    "conform package.inner --html package/inner.py",
    "conform ad.py --html x --junit x",
    "dump-torch snapshot the --out snapshot/model.safetensors",
    "dump-torch snapshot the --out blobs/config.json",
]


@pytest.mark.parametrize("line", DESTROYING)
def test_an_output_that_is_an_input_is_refused(line: str, place: Path, capsys: Capture) -> None:
    before = content(place)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "choose another name" in err or "a file of its own" in err
    assert content(place) == before


def test_a_file_of_refl_is_refused(capsys: Capture) -> None:
    assert main(["explain", TEXT, "--html", str(SHIPPED.parent / "show" / "page.css")]) == 2
    assert "a file of refl itself" in capsys.readouterr().err


def test_files_of_the_streams_are_refused(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stream, mode in (
        ("in", "stdin", "r"),
        ("out", "stdout", "w"),
        ("err", "stderr", "w"),
    ):
        Path(name).write_text(TEXT)
        with monkeypatch.context() as patch, open(name, mode) as file:
            patch.setattr(sys, stream, file)
            assert main(["explain", "-" if name == "in" else TEXT, "--html", name]) == 2
        capfd.readouterr()
    assert Path("in").read_text() == TEXT


def test_an_adapters_helper_is_not_overwritten(place: Path, capsys: Capture) -> None:
    Path("helper_of_ad.py").write_text("x = 1\n")
    Path("with_helper.py").write_text("import helper_of_ad\n" + ADAPTER)
    assert main(["conform", "with_helper.py", "--rule", "none", "--html", "helper_of_ad.py"]) == 2
    assert Path("helper_of_ad.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("command", ["explain", "graph"])
def test_where_one_file_cannot_be_made_none_is_written(
    command: str, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.style"):
        monkeypatch.setitem(sys.modules, name, None)  # it cannot be imported
    before = content(place)
    assert main([command, TEXT, "--svg", "a.svg", "--pdf", "a.pdf"]) == 2
    assert "matplotlib" in capsys.readouterr().err and content(place) == before


def test_where_one_file_is_a_module_none_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ad", module := ModuleType("ad"))
    module.__file__ = str(place / "ad.py")
    args, before = argparse.Namespace(svg="a.svg", graph="ad.py", pdf=None), content(place)
    with pytest.raises(ReflError, match=r"ad\.py cannot be written: it is a module"):
        files.write_all(args, dict.fromkeys(("svg", "graph", "pdf"), lambda: b"new"))
    assert content(place) == before


def test_what_is_no_input_is_overwritten(place: Path, capsys: Capture) -> None:
    Path("link").symlink_to("page.html")
    for name in ("page.html", "page.html", "link", "snapshot/a.html"):
        assert main(["explain", TEXT, "--model", "snapshot", "--html", name]) == 0
    assert main(["explain", TEXT, "--model", "snapshot", "--save", "snapshot/a.safetensors"]) == 0
    assert Path("link").is_symlink() and Path("page.html").read_bytes().startswith(b"<!DOCTYPE")


def test_python_overwrites_no_checkpoint_in_use(place: Path) -> None:
    model = refl.load("snapshot")
    e = model.explain(TEXT, keep=())
    for name in ("snapshot/model.safetensors", "blobs/model.safetensors", "snapshot/config.json"):
        with pytest.raises(ReflError, match="a file of the checkpoint"):
            e.save(name)


# -- every option that names a file ----------------------------------------------------------------

NO_FILES = {
    "among", "answer", "decoder", "target", "contrast", "at", "keep", "pair", "rule", "ignore",
    "ignore_tensors", "only", "option", "edit", "parts", "show", "through", "over", "sites",
    "name", "token", "number",
}  # fmt: skip
"""Options of free text that name no file."""


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def test_every_option_says_whether_it_names_a_file() -> None:
    """So that a new command cannot forget: each is a number, a choice, a file, or listed here."""
    for command, parser in commands():
        for action in parser._actions:
            free = action.nargs != 0 and action.choices is None and action.type is None
            if free and action.dest not in ("help", "version"):
                assert action.dest in NO_FILES, (command, action.dest)
            if "FILE" in str(action.metavar) or "FOLDER" in str(action.metavar):
                kinds = (files.output, files.folder, files.labeled)
                kinds += (files.Source, files.Folder, files.Module)
                assert action.type in kinds, (command, action.dest)
            if action.type is files.output:
                assert action.help and action.help.startswith(
                    ("write ", "the oracle file to write")
                )


# -- where a file goes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    target.chmod(mode)
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new" and stat.S_IMODE(target.stat().st_mode) == mode


def refused(name: str | Path, says: str) -> None:
    with pytest.raises(ReflError, match=says):
        atomic_write(name, b"new")
    with pytest.raises(ReflError, match=says):
        refl.load().explain(TEXT, keep=()).save(name)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("read-only").write_bytes(b"old")
    Path("read-only").chmod(0o444)
    Path("loop").symlink_to("pool")
    Path("pool").symlink_to("loop")
    Path("dangling").symlink_to("absent/out")
    refused("read-only", "it is read-only: remove it first")
    refused("loop", "a link that leads in a circle")
    refused("dangling", "there is no folder .*absent: make it first")
    refused("absent/out", "there is no folder .*absent: make it first")
    refused("", "the name is empty|path is ''")
    refused(".", "it is a folder")
    refused("read-only/out", "there is no folder")
    refused("/dev/null", "a pipe or a device")
    read, write = os.pipe()
    refused(f"/dev/fd/{write}", "a pipe or a device")
    os.close(read), os.close(write)
    refused("a\0b", r"null|path is 'a")
    refused("\ud800", "surrogates not allowed")
    assert Path("read-only").read_bytes() == b"old"
    assert sorted(os.listdir()) == ["dangling", "loop", "pool", "read-only"]


@pytest.mark.parametrize("option", ["--save", "--html", "--png"])
def test_an_empty_name_is_refused(option: str, capsys: Capture) -> None:
    assert main(["explain", TEXT, option, ""]) == 2
    assert "expected the name of a file, got an empty one" in capsys.readouterr().err


def test_where_files_have_to_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems without nameless files, and file systems that cannot name them."""
    target = tmp_path / "out"
    for attribute in ("O_TMPFILE", "link"):
        with monkeypatch.context() as patch:
            patch.delattr(os, attribute, raising=False)
            if attribute == "link":
                patch.setattr(os, "link", lambda *_, **__: os.stat("absent"), raising=False)
            atomic_write(target, attribute.encode(), b"!")
        assert target.read_bytes() == attribute.encode() + b"!"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_read_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("absent")
    Path("loop").symlink_to("loop")
    for name, says in (("absent", "does not exist: give"), ("dangling", "a link to absent")):
        with pytest.raises(ReflError, match=says):
            refl.load(name)
        with pytest.raises(ReflError, match=says):
            refl.Explanation.load(name)
    with pytest.raises(ReflError, match="leads in a circle"):
        refl.load("loop")


@pytest.mark.parametrize("change", ["cut short", "overwritten", "replaced"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_that_changes_under_a_model_is_refused(
    change: str, dtype: str, tmp_path: Path
) -> None:
    """In a child process: who reads beyond the end of a mapped file is killed."""
    folder = copytree(SHIPPED, tmp_path / "model")
    path, model = folder / "model.safetensors", refl.load(folder, dtype=dtype)
    model.explain(TEXT, keep=())
    if change == "cut short":
        os.truncate(path, 100)
    elif change == "overwritten":
        with open(path, "r+b") as file:
            file.seek(-400, os.SEEK_END)
            file.write(bytes(400))
        os.utime(path, ns=(1, 1))
    else:
        (tmp_path / "other").write_bytes(path.read_bytes())
        os.replace(tmp_path / "other", path)
    for use in (lambda: model.explain(TEXT, keep=()), lambda: model.fingerprint()):
        ended, said = ended_alone(Try(change, use))
        assert ended == REFUSED and "has changed since the model was loaded" in said


def test_a_checkpoint_that_changes_between_two_sweeps_is_refused(tmp_path: Path) -> None:
    """Each sweep reads the weights again."""
    folder = copytree(SHIPPED, tmp_path / "model")
    path, model = folder / "model.safetensors", refl.load(folder)
    with pytest.raises(ReflError, match="has changed since the model was loaded"):
        model.explain_each([1, 2], [3, 4], keep=(), progress=lambda *_: os.utime(path, ns=(1, 1)))


def test_a_model_outlives_its_folder(tmp_path: Path) -> None:
    folder = copytree(SHIPPED, tmp_path / "model")
    model = refl.load(folder)
    before = model.explain(TEXT, keep=()).relevance
    rmtree(folder)
    np.testing.assert_array_equal(model.explain(TEXT, keep=()).relevance, before)


def test_arrays_of_an_oracle_file_outlive_it(tmp_path: Path) -> None:
    """A file that is overwritten in place, or cut short, changes nothing that was read."""
    path = tmp_path / "e.safetensors"
    e = refl.load().explain(TEXT)
    e.save(path)
    read = refl.Explanation.load(path)
    os.truncate(path, 0)
    for site in e:
        np.testing.assert_array_equal(read[site], e[site])


MISNAMED = [
    "explain the --html x.pdf",
    "explain the --save x.pt",
    "explain the --html x.png",
    "explain the --save x.html",
    "compare a.safetensors a.safetensors --html x.json",
    "conform ad.py --junit x.json",
    "conform ad.py --html x.xml",
    "dump-torch cp the --out x.npz",
    "explain the --png x.jpg",
]


@pytest.mark.parametrize("line", MISNAMED)
def test_a_misnamed_output_is_refused(line: str, place: Path, capsys: Capture) -> None:
    before = content(place)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    option, name = line.split()[-2:]
    assert out == "" and err.startswith(f"refl: {option} writes .") and "name it x." in err
    assert content(place) == before and not Path(name).exists()


@pytest.mark.parametrize("name", ["page", "page.HTML", "page.htm", "v1.2.html"])
def test_an_output_may_be_called_what_it_is(name: str, place: Path, capsys: Capture) -> None:
    assert main(["explain", "the", "--html", name]) == 0
    assert (place / name).is_file()
