"""The command line as it is used: what it prints, what it refuses and how,
with and without a terminal.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest

import refl
from refl.cli import asked, main, options, output, progress
from refl.errors import argument
from refl.io.safetensors import read_safetensors
from refl.latent.projection import project
from refl.methods import METHODS as EVERY
from refl.model import DTYPES, SHIPPED, Model
from refl.rules.conservation import STABILIZERS
from refl.rules.published import METHODS
from refl.seeds import KINDS
from refl.show import traces
from refl.show.lines import plain
from refl.show.text import cells

VECTORS = Path(refl.verification.vectors.__path__[0])
COMMANDS = [c.__name__.rpartition(".")[2].replace("_", "-") for c in refl.cli.COMMANDS]
TEXT = "the keys to the cabinet"
ESCAPE = "\x1b["


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


Capture = pytest.CaptureFixture[str]


def run(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refl", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        **how,
    )


def answer(capsys: Capture, *arguments: str) -> str:
    """What a command prints that is to succeed."""
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refusal(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that is to be refused."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refl")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


ACCOUNT = {2.0**-53: 1e-12, 2.0**-24: 1e-5}
"""Unit roundoff -> what of the largest part a conservation error may be, as the guide says."""


def adds_up(account: dict[str, Any]) -> None:
    """The parts make what is explained, and the conservation error, which is the rest by
    definition, is rounding.
    """
    parts = [account["tokens"], *account["absorbed"].values()]
    rest = account["conservation_error"]
    assert math.fsum([*parts, rest]) == pytest.approx(account["explained"], rel=1e-12, abs=1e-12)
    assert abs(rest) < ACCOUNT[account["roundoff"]] * max(map(abs, parts))


# -- explain ---------------------------------------------------------------------------------------


def test_explain_shows_tokens_target_and_account(capsys: Capture) -> None:
    out = answer(capsys, "explain", TEXT)
    for word in (
        "keys",
        "cabinet",
        "logit of",
        "softmax_offset",
        "conservation error",
        "explained",
        "next token",
        "arXiv 2402.05602",
    ):
        assert word in out
    assert ESCAPE not in out


def test_explain_as_json_adds_up(capsys: Capture) -> None:
    told = json.loads(answer(capsys, "explain", TEXT, "--json", "--dtype", "float64"))
    adds_up(told["ledger"])
    assert told["ledger"]["explained"] == told["explained"]
    assert math.fsum(told["relevance"]) == pytest.approx(told["ledger"]["tokens"])
    assert told["explained"] == pytest.approx(told["logit"])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains(method: str, capsys: Capture) -> None:
    told = json.loads(answer(capsys, "explain", TEXT, "--method", method, "--json"))
    assert told["method"]["name"] == method
    adds_up(told["ledger"])


def test_target_and_contrast(capsys: Capture) -> None:
    were = json.loads(
        answer(capsys, "explain", TEXT, "--target", "were", "--json", "--dtype", "float64")
    )
    are = json.loads(
        answer(capsys, "explain", TEXT, "--target", "are", "--json", "--dtype", "float64")
    )
    both = json.loads(
        answer(capsys, "explain", TEXT, "--contrast", "were", "are", "--json", "--dtype", "float64")
    )
    assert (were["target"], both["target"], both["against"]) == ("were", "were", "are")
    assert both["explained"] == pytest.approx(were["explained"] - are["explained"])


@pytest.mark.parametrize("seed", options.SEEDS)
def test_seeds(seed: str, capsys: Capture) -> None:
    assert json.loads(answer(capsys, "explain", TEXT, "--seed", seed, "--json"))["seed"] == seed
    assert "explained" in answer(capsys, "explain", TEXT, "--seed", seed)


def test_options_reach_the_rules(capsys: Capture) -> None:
    told = json.loads(
        answer(capsys, "explain", TEXT, "--eps", "0.25", "--stabilizer", "plain", "--json")
    )
    linear = next(line for line in told["method"]["rules"] if line["operation"] == "linear")
    assert linear["options"] == {"eps": 0.25, "stabilizer": "plain"}


def test_ids_and_standard_input_say_the_same_as_text(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.loads(answer(capsys, "explain", TEXT, "--json"))
    ids = json.loads(answer(capsys, "explain", "--json", "--ids", *map(str, text["input_ids"])))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{TEXT}\n".encode())))
    piped = json.loads(answer(capsys, "explain", "-", "--json"))
    assert text == ids == piped


def test_a_composite_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nbase = "attnlrp"\n[[rule]]\noperation = "linear"\nrule = '
        '"gamma"\ngamma = 0.25\n'
    )
    told = json.loads(
        answer(capsys, "explain", TEXT, "--method", str(tmp_path / "mine.toml"), "--json")
    )
    assert told["method"]["name"] == "mine"
    adds_up(told["ledger"])


def test_save_keeps_everything_unless_told(tmp_path: Path, capsys: Capture) -> None:
    out = answer(capsys, "explain", TEXT, "--save", str(tmp_path / "all.safetensors"))
    assert "wrote" in out
    answer(capsys, "explain", TEXT, "--save", str(tmp_path / "mlp.safetensors"), "--keep", "*.mlp")
    every, some = (
        set(read_safetensors(tmp_path / name)[0]) for name in ("all.safetensors", "mlp.safetensors")
    )
    assert some < every
    assert {"relevance", "input_ids"} <= some


def test_keep_without_save_shows_what_was_kept(capsys: Capture) -> None:
    assert "kept site" in answer(capsys, "explain", TEXT, "--keep", "*.mlp.act_fn")
    told = json.loads(answer(capsys, "explain", TEXT, "--keep", "*.mlp.act_fn", "--json"))
    assert sum(site.endswith("mlp.act_fn") for site in told["sites"]) > 0


def test_html_is_written(tmp_path: Path, capsys: Capture) -> None:
    answer(capsys, "explain", TEXT, "--html", str(tmp_path / "why.html"))
    assert (tmp_path / "why.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


# -- arguments are called as they are spelled ------------------------------------------------------

SPELLED = [
    (("--at", "lm_head", "9", "9", "9"), "--at has the index"),
    (("--at", "lm_head", "0", "9" * 5000), "expected a site and the neuron's index"),
    (("--at", "lm_hea", "1"), "--at names 'lm_hea'"),
    (("--position", "77"), "--position 77 is outside"),
    (("--types", "0", "0"), "leave --types out"),
    (("--decoder", "x"), "leave --decoder out"),
    (("--eps", "0"), "--eps is 0.0"),
    (("--eps", "0"), "give --stabilizer none"),
    (("--eps", "nan"), "--eps is nan"),
    (("--eps", "1e-3", "--method", "cp-lrp"), "leave --eps out"),
    (("--stabilizer", "none", "--method", "cp-lrp"), "takes the option '--stabilizer'"),
    (("--contrast", "are", "is", "--seed", "probability"), "combined with the --seed"),
    (("--at", "lm_head", "0", "1", "--target", "are"), "leave --target, --contrast, --position"),
    (("--keep", "nothing.*"), "--keep"),
]


@pytest.mark.parametrize(("words", "said"), SPELLED, ids=lambda v: " ".join(v))
def test_a_message_spells_options_as_the_command_line_does(
    words: tuple[str, ...], said: str, capsys: Capture
) -> None:
    assert main(["explain", TEXT, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not re.search(r"(?<![-\w])(at|position|target|types|decoder|eps|keep)=", err)


REFUSED_ALIKE = [
    ("explain --decoder a --decoder-ids 1", "give --decoder or --decoder-ids, not both"),
    ("generate --decoder a --decoder-ids 1", "give --decoder or --decoder-ids, not both"),
    ("explain --target a --contrast a b", "give --target or --contrast, not both"),
    ("neurons --method occlusion", "no relevance at neurons; take one that is, such as attnlrp"),
    ("trace --method occlusion", "it has no operations to follow; take refl explain"),
    ("explain --keep *.mpl", "--keep '*.mpl' names no site of this model; nearest: *.mlp"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED_ALIKE)
def test_what_several_commands_refuse(line: str, said: str, capsys: Capture) -> None:
    assert said in refusal(capsys, *line.split(), "--", TEXT)


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """The shipped model without its tokenizer."""
    folder = copytree(SHIPPED, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return str(folder)


def test_where_there_is_no_tokenizer_ids_are_asked_for(bare: str, capsys: Capture) -> None:
    for command in ("explain", "generate", "trace"):
        assert main([command, TEXT, "--model", bare]) == 2
        assert "bare has no tokenizer.json: give token ids with --ids" in capsys.readouterr().err
    assert main(["explain", "--ids", "2", "5", "--model", bare]) == 0


def test_where_there_is_no_tokenizer_a_token_is_its_id(bare: str, capsys: Capture) -> None:
    by_id = json.loads(
        answer(capsys, "project", "L3.H1", "--token", "7", "--model", bare, "--json")
    )
    assert by_id == project(refl.load(bare), "L3.H1", token=7).as_dict()
    explained = ("explain", "--ids", "2", "5", "--target", "7", "--model", bare, "--json")
    assert json.loads(answer(capsys, *explained))["target_id"] == 7
    for name, command in (
        ("--token", ("project", "L3.H1")),
        ("--target", ("explain", "--ids", "2", "5")),
    ):
        said = refusal(capsys, *command, name, "9" * 5000, "--model", bare)
        assert "has no tokenizer.json" in said and "fault of refl" not in said


@pytest.mark.parametrize("has_text", [True, False])
def test_a_number_is_a_class_of_a_classifier_and_a_token_where_nothing_reads_texts(
    has_text: bool,
) -> None:
    labels = {0: "bad", 1: "3"}
    net: Any = SimpleNamespace(text=object() if has_text else None, task="class", labels=labels)
    assert [asked.target_asked(net, said) for said in ("0", "3", "bad")] == [0, "3", "bad"]
    assert asked.token_asked(net, "3") == ("3" if has_text else 3)
    net.task = "next-token"
    assert asked.target_asked(net, "3") == ("3" if has_text else 3)


PYTHON = [
    ({"at": ("lm_head", (9, 9, 9))}, "at= has the index"),
    ({"position": 77}, "position 77 is outside"),
    ({"types": [0, 0]}, "leave types out"),
    ({"decoder": "x"}, "leave decoder out"),
    ({"eps": 0.0}, "eps is 0.0"),
    ({"eps": 1e-3, "method": "cp-lrp"}, "leave eps out"),
    ({"at": ("lm_head", (0, 1)), "target": "are"}, "leave target, contrast, position"),
    ({"keep": 5}, "keep is 5"),
]


@pytest.mark.parametrize(("how", "said"), PYTHON, ids=lambda v: v if isinstance(v, str) else "")
def test_a_message_spells_arguments_as_python_does(how: dict[str, Any], said: str) -> None:
    with pytest.raises(refl.ReflError) as refusal:
        refl.load().explain(TEXT, **how)
    assert said in str(refusal.value) and "--" not in str(refusal.value)
    assert str(refusal.value).isprintable()
    again = pickle.loads(pickle.dumps(refusal.value))
    assert str(again) == str(refusal.value)
    assert str(again.spelled(how)) == str(refusal.value.spelled(how)) != str(again)


def test_what_a_user_wrote_is_no_argument() -> None:
    said = refl.ReflError(f"{argument('at=')} is at= \ufdd0at\ufdd1 'target' at")
    assert str(said) == "at= is at= at 'target' at"
    assert str(refl.ReflError("seed= and position")) == "seed= and position"
    assert str(said.spelled(["position"])) == str(said)


# -- trace, models, methods ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
def test_trace_has_every_operation_from_the_logit_back(method: str, capsys: Capture) -> None:
    told = json.loads(answer(capsys, "trace", TEXT, "--method", method, "--json"))
    sites = [row["site"] for row in told["operations"]]
    assert sites[0] == "lm_head"
    assert sites[-1] == "model.embed_tokens"
    entries = [entry["site"] for entry in told["ledger"]["sites"]]
    assert [site for site in sites if site in entries] == entries
    for row in told["operations"]:
        if row["received"] is not None:
            given = [*row["passed"].values(), *row["absorbed"].values(), row["conservation_error"]]
            assert math.fsum(given) == pytest.approx(row["received"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("by", ["operation", "block", "head"])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_trace_fits_80_columns(
    by: str, columns: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = answer(capsys, "trace", TEXT, "--by", by).splitlines()
    assert max(map(cells, lines)) <= 80
    assert "softmax_offset" in "\n".join(lines)


def test_trace_has_a_line_for_every_operation(capsys: Capture) -> None:
    """In the sweep's order, under the name of its block; every entry of the ledger in sum."""
    told = json.loads(answer(capsys, "trace", TEXT, "--json"))["operations"]
    sites, block = [], ""
    table = answer(capsys, "trace", TEXT).partition("absorbed\n")[2].partition("\n\n  tokens")[0]
    for line in table.splitlines():
        if not line.strip():
            block = ""
        elif line.split()[1:3] == ["the", "block"]:
            block = line.split()[0]
        else:
            sites.append(f"{block}.{line.split()[0]}".removesuffix(".(output)").removeprefix("."))
    assert sites == [row["site"] for row in told]


def test_a_long_name_stands_above_its_numbers() -> None:
    site = "encoder.patch_embeddings.of_the_picture.projection"
    row = {"site": site, "operation": "linear", "rule": "epsilon", "received": 1.5}
    lines = traces.operations_table([row | {"passed": {"x": 1.0}, "absorbed": {"bias": 0.5}}])
    name, numbers = plain(lines).splitlines()[1:]
    assert name == site and numbers.split() == [
        "linear",
        "epsilon",
        "1.50000",
        "1.00000",
        "0.50000",
    ]
    assert cells(numbers) <= 80


def test_trace_by_block_adds_up(capsys: Capture) -> None:
    """What a block passes on arrives at others: received, passed on and absorbed add up in every
    block and over all.
    """
    told = json.loads(
        answer(capsys, "trace", TEXT, "--by", "block", "--dtype", "float64", "--json")
    )
    blocks, entries = told["blocks"], {e["site"]: e for e in told["ledger"]["sites"]}
    assert list(blocks) == ["lm_head", "lm_head.row", "model.norm"] + [
        f"model.layers.{i}" for i in (3, 2, 1, 0)
    ] + ["model.embed_tokens"]
    for name, block in blocks.items():
        arrives = entries[name]["received"]  # a block's output is all that others read of it
        assert block["received"] == pytest.approx(arrives, rel=1e-9)
        rest = block["passed"] + math.fsum(block["absorbed"].values())
        assert rest == pytest.approx(arrives, rel=1e-9)
    by_hand = {
        cause: math.fsum(e["absorbed"].get(cause, 0.0) for e in entries.values())
        for cause in ("softmax_offset", "stabilizer")
    }
    for cause, whole in by_hand.items():
        sums = math.fsum(block["absorbed"].get(cause, 0.0) for block in blocks.values())
        assert sums == pytest.approx(whole, rel=1e-9)


def test_trace_by_head_is_what_the_attention_received(capsys: Capture) -> None:
    told = json.loads(answer(capsys, "trace", TEXT, "--by", "head", "--dtype", "float64", "--json"))
    entries = {e["site"]: e for e in told["ledger"]["sites"]}
    assert list(told["heads"]) == [f"model.layers.{i}.self_attn" for i in (3, 2, 1, 0)]
    for site, heads in told["heads"].items():
        assert len(heads) == 4
        received = entries[f"{site}.context"]["received"]
        assert math.fsum(heads) == pytest.approx(received, rel=1e-9)


def test_trace_in_json_has_shapes_and_causes(capsys: Capture) -> None:
    told = json.loads(answer(capsys, "trace", TEXT, "--json"))["operations"]
    assert any("softmax_offset" in row["absorbed"] for row in told)
    assert next(row["shape"] for row in told if row["site"] == "model.norm") == [6, 64]


def test_trace_of_a_neuron_shows_the_pass_that_was_explained(capsys: Capture) -> None:
    """A neuron may lie at any token, so the head ran at all six."""
    told = json.loads(answer(capsys, "trace", TEXT, "--at", "lm_head", "2", "17", "--json"))
    (head,) = (row for row in told["operations"] if row["site"] == "lm_head")
    assert head["shape"] == [6, 169]


def test_models(capsys: Capture) -> None:
    out = answer(capsys, "models")
    assert "llama" in out
    assert "ships with refl" in out
    told = json.loads(answer(capsys, "models", "--json"))
    assert {net["model_type"] for net in told["architectures"]} >= {"llama", "gpt2"}
    assert all(net["summary"].endswith(".") for net in told["architectures"])  # whole sentences
    assert told["shipped"]["parameters"] > 0


def test_the_examples_of_the_shipped_model_can_be_explained(capsys: Capture) -> None:
    examples = json.loads(answer(capsys, "models", "--json"))["shipped"]["examples"]
    assert examples
    for example in examples:
        answer(capsys, "explain", example)


def test_methods(capsys: Capture) -> None:
    out = " ".join(answer(capsys, "methods").split())
    for method in EVERY.values():
        assert method.name in out
        assert " ".join(method.source.split()) in out
    told = json.loads(answer(capsys, "methods", "--json"))
    assert [m["name"] for m in told] == list(EVERY)
    assert all(m["passes"] in out and m["conserved"] in out for m in told)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_table_has_every_line_and_option(method: str, capsys: Capture) -> None:
    out = answer(capsys, "methods", method)
    told = json.loads(answer(capsys, "methods", method, "--json"))
    for line in told["rules"]:
        assert line["operation"] in out and line["role"] in out and line["site"] in out
        assert all(f"{key}={value}" in out for key, value in line["options"].items())


def test_help_names_every_table_with_its_summary(capsys: Capture) -> None:
    shown = " ".join(answer(capsys, "explain", "--help").split())
    for name, method in METHODS.items():
        assert f" {name} {' '.join(method.summary.split())} " in shown


def test_the_choices_are_the_engine_s() -> None:
    choices = (options.SEEDS, options.STABILIZERS, options.DTYPES)
    assert choices == (KINDS, STABILIZERS, DTYPES)


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], *([command, "--help"] for command in COMMANDS)]
)
def test_help(arguments: list[str], capsys: Capture) -> None:
    out = answer(capsys, *arguments)
    assert "exit codes" in out


def test_version(capsys: Capture) -> None:
    vectors = json.loads((VECTORS / "schema.json").read_text())["properties"]["format"]["const"]
    oracle = json.loads(answer(capsys, "explain", "the keys", "--json"))["format"]
    assert answer(capsys, "--version") == (
        f"refl {refl.__version__} (conformance vectors format {vectors}, oracle files format "
        f"{oracle})\n"
    )


# -- what is refused -------------------------------------------------------------------------------

REFUSED = {
    "missing folder": (["--model", "no/such/folder"], "does not exist"),
    "unknown method": (["--method", "deeplift"], "unknown method"),
    "target not in the vocabulary": (["--target", "zzzz"], "zzzz"),
    "target and contrast": (["--target", "are", "--contrast", "are", "is"], "not both"),
    "contrast with itself": (["--contrast", "are", "are"], "two different tokens"),
    "eps 0": (["--eps", "0"], "above 0"),
    "eps below 0": (["--eps", "-1"], "above 0"),
    "eps nan": (["--eps", "nan"], "finite"),
    "eps infinite": (["--eps", "inf"], "finite"),
    "eps that is no number": (["--eps", "tiny"], "invalid float"),
    "eps where it cancels": (["--method", "cp-lrp", "--eps", "0.1"], "cancels"),
    "unknown seed": (["--seed", "loss"], "invalid choice"),
    "seed and contrast": (
        ["--seed", "probability", "--contrast", "are", "is"],
        "cannot be combined",
    ),
    "unknown device": (["--device", "tpu"], "invalid choice"),
    "unknown dtype": (["--dtype", "float8"], "invalid choice"),
    "unknown stabilizer": (["--stabilizer", "wide"], "invalid choice"),
    "unknown option": (["--nonsense"], "unrecognized"),
    "shortened option": (["--meth", "attnlrp"], "unrecognized"),
    "missing composite": (["--method", "no-such.toml"], "no-such.toml"),
}


@pytest.mark.parametrize("command", ["explain", "trace"])
@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_in_one_line(case: str, command: str, capsys: Capture) -> None:
    options, said = REFUSED[case]
    assert said in refusal(capsys, command, TEXT, *options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", ""], "empty string"),
        (["explain"], "give a TEXT"),
        (["explain", TEXT, "--ids", "1"], "not both"),
        (["explain", "--ids", "99999"], "outside the vocabulary"),
        (["explain", "--ids", "-1"], "outside the vocabulary"),
        (["explain", "--ids", "one"], "invalid int"),
        (["explain", "the " * 500], "shorten it"),
        (["nonsense"], "invalid choice"),
        *((["conform", "--list", f"--{kind}", "x"], "text alone") for kind in ("html", "junit")),
        (["conform", "--list", "--json"], "text alone"),
        (["methods", "nonsense"], "unknown method"),
        (["methods", "no-such.toml"], "no-such.toml"),
    ],
)
def test_bad_commands_are_refused_in_one_line(
    arguments: list[str], said: str, capsys: Capture
) -> None:
    assert said in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name = [broken", "cannot read the composite"),
        ('base = "none-such"', "unknown method 'none-such'"),
        ('color = "red"', "unknown key 'color'"),
        ('[[rule]]\noperation = "linear"\nrule = "no"', "the rule 'no' for linear"),
        ("\xff", "cannot read the composite"),
    ],
)
def test_broken_composites_are_refused(
    content: str, said: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "bad.toml").write_text(content, encoding="latin-1")
    assert said in refusal(capsys, "explain", TEXT, "--method", str(tmp_path / "bad.toml"))


def test_a_folder_of_pickles_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in refusal(capsys, "explain", TEXT, "--model", str(tmp_path))


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("*.mlq", "*.mlp"), ("model.layers.0.mpl", "model.layers.0.mlp"), ("?", "none")],
)
def test_a_pattern_that_names_no_site_is_refused(pattern: str, near: str, capsys: Capture) -> None:
    assert near in refusal(capsys, "explain", TEXT, "--keep", "*.mlp", pattern)


@pytest.mark.parametrize("option", ["--save", "--html"])
def test_outputs_that_cannot_be_written_are_refused_before_anything_runs(
    option: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    os.mkfifo(tmp_path / "fifo")
    for path in (
        tmp_path / "no" / "such" / "file",
        tmp_path,
        tmp_path / "fifo",
        SHIPPED / "config.json",
    ):
        assert "cannot be written" in refusal(capsys, "explain", TEXT, option, str(path))


def test_two_outputs_in_one_file_are_refused(tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    assert "both name" in refusal(capsys, "explain", TEXT, "--save", out, "--html", out)


def test_a_file_of_the_model_is_not_overwritten(tmp_path: Path, capsys: Capture) -> None:
    folder = copytree(SHIPPED, tmp_path / "model")
    own = folder / "model.safetensors"
    said = refusal(capsys, "explain", TEXT, "--model", str(folder), "--save", str(own))
    assert "a file of the model's own folder" in said
    assert own.read_bytes() == (SHIPPED / "model.safetensors").read_bytes()


def test_standard_input_that_is_not_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert "UTF-8" in refusal(capsys, "explain", "-")


def test_no_more_memory_is_a_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 9 TiB\nin one piece")

    monkeypatch.setattr(Model, "explain", explain)
    assert "out of memory" in refusal(capsys, "explain", TEXT)


def test_an_interrupt_is_quiet(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "explain", explain)
    assert main(["explain", TEXT]) == 130
    assert capsys.readouterr() == ("", "")


def test_escapes_in_a_message_do_not_reach_the_terminal(capsys: Capture) -> None:
    assert ESCAPE not in refusal(capsys, "explain", TEXT, "--method", "\x1b[31mred\nnext")
    assert ESCAPE not in refusal(capsys, "explain", TEXT, "--seed", "\x1b[31mred\nnext")


# -- color and terminals ---------------------------------------------------------------------------


def test_color_can_be_forced_and_no_color_wins(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answer(capsys, "explain", TEXT)
    monkeypatch.setenv("FORCE_COLOR", "1")
    colored = answer(capsys, "explain", TEXT)
    assert ESCAPE in colored
    assert ESCAPE not in answer(capsys, "explain", TEXT, "--no-color")
    without = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in without.splitlines()] == plain.splitlines()
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in answer(capsys, "explain", TEXT)


@pytest.mark.parametrize(
    "command", [["explain", TEXT], ["trace", TEXT], ["models"], ["methods"], ["methods", "attnlrp"]]
)
def test_every_command_is_plain_in_a_pipe_and_colored_when_forced(
    command: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ESCAPE not in answer(capsys, *command)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert ESCAPE in answer(capsys, *command)
    assert ESCAPE not in answer(capsys, *command, "--json")


def on_a_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """What the command writes to a pseudo-terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    how = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", "refl", *arguments],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=how,
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # Linux says so that the other side is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_color_unless_it_does_not_want_any() -> None:
    assert ESCAPE in on_a_terminal("explain", TEXT)
    assert ESCAPE not in on_a_terminal("explain", TEXT, NO_COLOR="1")
    assert ESCAPE not in on_a_terminal("explain", TEXT, TERM="dumb")


def test_a_narrow_terminal_does_not_widen_the_trace() -> None:
    out = on_a_terminal("trace", TEXT, columns=72, NO_COLOR="1")
    assert "self_attn.probabilities" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """The shipped model with a vocabulary that attacks whoever prints it."""
    folder = copytree(SHIPPED, tmp_path / "hostile")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for word, attack in (
        ("keys", "<script>alert(1)</script>"),
        ("cabinet", "\x1b[31m\x07red"),
        ("are", "a\nb[bold]"),
    ):
        vocabulary[attack] = vocabulary.pop(word)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.mark.parametrize("force", ["0", "1"])
def test_a_hostile_tokenizer_attacks_nobody(
    hostile: Path, force: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = json.loads((hostile / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    ids = [str(i) for word, i in vocabulary.items() if word.startswith(("<script>", "\x1b", "a\n"))]
    monkeypatch.setenv("FORCE_COLOR", force)
    page = tmp_path / "page.html"
    out = answer(
        capsys,
        "explain",
        "--model",
        str(hostile),
        "--html",
        str(page),
        "--target",
        "a\nb[bold]",
        "--ids",
        *ids,
    )
    without = re.sub(r"\x1b\[[0-9;]*m", "", out) if force == "1" else out
    assert all(c.isprintable() or c == "\n" for c in without)
    assert "\\x1b[31m\\x07red" in without
    assert "a\\nb[bold]" in without
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html


def test_what_is_said_of_files(capsys: Capture) -> None:
    """A line each, the first under a blank one; nothing where none was asked for."""
    lines = output.wrote("a.html", None, Path("b"), what="2 inputs")
    assert plain(output.below(lines)) == "\nwrote a.html: 2 inputs\nwrote b: 2 inputs"
    assert output.below(output.wrote(None)) == []
    for command in (["explain", TEXT], ["graph", TEXT, "--most", "2"]):
        out = answer(capsys, *command)
        assert "wrote" not in out and not out.endswith("\n\n")


WRITING = {
    "explain": ["explain", TEXT, "--svg"],
    "explain a corpus": ["explain", "--file", "DATA", "--out"],
    "graph": ["graph", TEXT, "--most", "2", "--svg"],
    "references": ["references", "--file", "DATA", "--parts", "L2", "--by", "activation", "--out"],
    "card": ["card", "L2.N17", "--file", "DATA", "--top", "1", "--draws", "0", "--html"],
    "evaluate": ["evaluate", "--data", "DATA", "--methods", "random", "--metrics", "flip", "--out"],
    "switch": ["switch", "--limit", "1", "--by", "activation", "--k", "1", "--draws", "0", "--svg"],
}
DRAWING = {"switch"}
"""Of them those that need matplotlib."""


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=[pytest.mark.needs("matplotlib")] if name in DRAWING else [])
        for name in WRITING
    ],
)
def test_the_name_of_a_file_attacks_nobody(
    command: str, force: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force)
    data, attack = tmp_path / "data.jsonl", tmp_path / "a\x1b[31m\x07b"
    data.write_text(json.dumps({"text": TEXT, "target": "are", "foil": "is"}))
    out = answer(capsys, *(str(data) if w == "DATA" else w for w in WRITING[command]), str(attack))
    without = re.sub(r"\x1b\[[0-9;]*m", "", out) if force == "1" else out
    assert all(c.isprintable() or c == "\n" for c in without)
    assert f"wrote {tmp_path}/a\\x1b[31m\\x07b" in without
    assert attack.exists()


# -- as a process ----------------------------------------------------------------------------------


def test_as_a_module() -> None:
    done = run("explain", TEXT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    adds_up(json.loads(done.stdout)["ledger"])


def test_an_error_as_a_process() -> None:
    done = run("explain", TEXT, "--eps", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_standard_input_as_a_process() -> None:
    done = run("explain", "-", input=f"{TEXT}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "keys" in done.stdout


def test_an_old_encoding_is_no_error() -> None:
    done = run("explain", TEXT, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "|++" in done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "refl", "trace", TEXT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "refl", "methods"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "program",
    [
        "import refl",
        "import refl.cli; assert refl.cli.main(['--help']) == 0",
        "import refl.cli; refl.cli.main(['--version'])",
        *(f"import refl.cli; refl.cli.main(['{name}', '--help'])" for name in COMMANDS),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(program: str) -> None:
    after = (
        "; import sys; print(sorted({'tokenizers', 'rich', 'safetensors', 'numpy', 'cupy'} & "
        "set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + after],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "[]\n"


def test_rich_is_not_imported_for_plain_text() -> None:
    program = (
        f"import refl.cli, sys; assert refl.cli.main(['explain', {TEXT!r}]) == 0; "
        "assert 'rich' not in sys.modules"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0


# -- progress --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def slow(self: Model, *_: Any, progress: Any, **__: Any) -> None:
    for i in range(6):
        time.sleep(0.05)
        progress("sweep", i, 6)
    raise MemoryError


@pytest.mark.parametrize(
    ("patience", "terminal", "drawn"),
    [(0.05, True, True), (60.0, True, False), (0.05, False, False)],
)
def test_progress_is_drawn_on_a_terminal_after_a_while(
    patience: float, terminal: bool, drawn: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(progress, "PATIENCE", patience)
    monkeypatch.setattr(Model, "explain", slow)
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["explain", TEXT]) == 2
    assert ("sweep" in stream.getvalue()) is drawn
    assert capsys.readouterr().out == ""
