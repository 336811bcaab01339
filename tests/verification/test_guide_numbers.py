"""No number in the README's and the guide's prose is without its source: each is recomputed here,
compared with the report that states it, or part of a name.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable

import pytest
from checkpoints import ROOT
from pages import PAGES, prose, read

import refl
from refl.ledger import ALLOWED
from refl.nets import NETS
from refl.verification.quality import plant_faults, plant_peer_faults

QUALITY = ROOT / "verification" / "quality"
NUMBER = re.compile(r"\d[\d,.]*\d|\d")


def measured(table: str) -> dict[str, float]:
    """What was measured once and is written down: see the head of the file."""
    text = (QUALITY / "measured.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)[table]  # type: ignore[no-any-return]


def report(name: str) -> str:
    return (QUALITY / name).read_text(encoding="utf-8")


def rows(page: str, cells: int) -> list[list[str]]:
    """The rows of the tables that have so many columns, heads left out."""
    found = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines()]
    return [row for row in found if len(row) == cells and not row[0].startswith("---")][1:]


# -- where the numbers come from -------------------------------------------------------------------


def python() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [project["requires-python"].removeprefix(">=")]


def libraries() -> list[str]:
    """The versions in the names of the reports, as they are in the build."""
    build = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    reports = [path.stem for path in (ROOT / "verification" / "reports").glob("*.md")]
    found = []
    for name in ("lxt", "zennit", "captum", "autolrp", "tdhook"):
        version = re.search(rf"\b{name}==([\d.]+)", build)
        assert version and any(r.startswith(name) and version[1] in r for r in reports)
        found.append(version[1])
    return found


def words() -> list[str]:
    tokenizer = json.loads((ROOT / "refl/shipped/tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    return [str(len(set(tokenizer["model"]["vocab"]) - special))]


def quadrature() -> list[str]:
    """64 nodes of Gauss and Legendre, and as many as are spent where they are put by themselves."""
    model, found = refl.load(dtype="float64"), []
    for options in ({"nodes": "gauss-legendre", "steps": 64}, {}):
        e = model.explain("the keys to the cabinet", "integrated-gradients", options=options)
        found.append((e, abs(e.ledger.absorbed["quadrature"])))
    (gauss, missed), (_, left) = found
    return ["64", f"{missed:.1f}", f"{gauss.ledger.explained:.1f}", "360", f"{left:.3f}"]


def engine_error() -> list[str]:
    page = report("engine_error.md")
    found = rows(page, 8)
    relevance, absorbed = (max(float(r[c]) for r in found if r[c]) for c in (3, 5))
    worst = max(float(r[c]) for r in found for c in (4, 6) if r[c])
    cases = re.search(r"(\d+) cases for each rule and dtype", page)
    fewer = re.search(r"rules `flattened` are of (\d+) cases", page)
    assert cases and fewer and "Beyond the bound: 0." in page
    return [f"{int(cases[1]):,}", fewer[1], f"{relevance:.1f}", f"{absorbed:.1f}", f"{worst:.1f}"]


def mutants(name: str) -> list[str]:
    """To full thousands."""
    said = re.search(r"^(\d+) mutants: .* 0 survivors", report(name), re.MULTILINE)
    assert said
    return [f"{int(said[1]) // 1000 * 1000:,}"]


def nets() -> list[str]:
    return [str(len(set(NETS.values())))]


def planted() -> list[str]:
    """To full fifties."""
    return [str(len(plant_faults.FAULTS) // 50 * 50)]


def peer_faults() -> list[str]:
    return [str(len({plant.fault for plant in plant_peer_faults.PLANTS}))]


def false_alarms() -> list[str]:
    of = measured("false_alarms")
    assert of["alarms"] == 0
    return [f"{of['cases']:,}", f"{of['seeds']:,}"]


def evidence() -> list[str]:
    lines = (ROOT / "refl/shipped/evidence.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(len(lines))]


def kernels() -> list[str]:
    of = measured("kernels")
    return [str(of["tokens"]), f"{of['largest']:.1e}".replace("e-0", "e-")]


def large() -> list[str]:
    """Two bytes for each weight of the shape that the benchmark writes."""
    of = measured("benchmark_large")
    from refl.verification.quality.benchmark_large import SIZES

    h, layers, mlp, v = (SIZES[n] for n in ("hidden", "layers", "intermediate", "vocabulary"))
    weights = layers * (4 * h * h + 3 * h * mlp + 2 * h) + 2 * v * h + h
    names = ("tokens", "seconds_cached", "seconds_uncached", "gib", "recompute_gib")
    return [f"{2 * weights / 1e9:.1f}", *(str(of[n]) for n in names), str(of["recompute_seconds"])]


def bounds() -> list[str]:
    """Those of tests, where they stand: sweeps, a site, whole ledgers, forward passes."""
    for file, said in (
        ("verification/test_surrogate.py", "lambda site: True) < 1e-12"),
        ("refl/test_cli.py", "ACCOUNT = {2.0**-53: 1e-12, 2.0**-24: 1e-5}"),
        ("peers/test_encoders.py", "BOUND = 1e-10"),
    ):
        assert said in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, said)
    return ["1e-12", str(ALLOWED), "1e-12", "1e-5", "1e-10"]


def elsewhere(*_: str) -> list[str]:
    """Held by tests/refl/test_readme.py."""
    return []


CLAIMS: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
    ("README.md", r"Python ([\d.]+) or newer", python),
    ("setting_up.md", r"Python ([\d.]+) or newer", python),
    (
        "check_yours.md",
        r"LXT ([\d.]+), zennit ([\d.]+), captum ([\d.]+), autoLRP ([\d.]+) and tdhook ([\d.]+),",
        libraries,
    ),
    ("reading_an_explanation.md", r"knows (\d+) words", words),
    (
        "methods.md",
        (
            r"\((\d+) Gauss-Legendre nodes miss ([\d.]+) of ([\d.]+) logits on the shipped model, "
            r"(\d+) adaptive gradients ([\d.]+)\)"
        ),
        quadrature,
    ),
    (
        "verification.md",
        (
            r"over ([\d,]+) generated cases each \((\d+) for the rules CODE\): medians up to "
            r"([\d.]+) for relevance and ([\d.]+) for what is absorbed, worst ([\d.]+), none beyond"
        ),
        engine_error,
    ),
    ("verification.md", r"all (\d+) architectures", nets),
    (
        "verification.md",
        r"some ([\d,]+) mistakes of structure",
        lambda: mutants("structural_mutants.md"),
    ),
    ("verification.md", r"Of some ([\d,]+) planted in whole", lambda: mutants("model_mutants.md")),
    ("verification.md", r"each of the (\d+) faults known", peer_faults),
    ("verification.md", r"passes ([\d,]+) cases drawn from ([\d,]+) seeds", false_alarms),
    ("verification.md", r"plants over (\d+) faults", planted),
    ("verification.md", r"with (\d+) held-out sentences", evidence),
    ("verification.md", r"at (\d+) tokens it moved AttnLRP by up to ([\d.e-]+) of", kernels),
    (
        "verification.md",
        (
            r"equal to (\S+) at every block.* within (\d+) units of roundoff.* whole ledger to "
            r"(\S+) \(float64\) and (\S+) \(float32\).*transformers in float64, to (\S+) of"
        ),
        bounds,
    ),
    ("verification.md", r"the subject in [\d.]+ %, AttnLRP in [\d.]+ %", elsewhere),
    ("verification.md", r"of its \d+ misses \d+ have a singular subject", elsewhere),
    ("verification.md", r"and \d+ give most to", elsewhere),
    (
        "large_models.md",
        (
            r"bfloat16, ([\d.]+) GB\) and explains it: (\d+) tokens in (\d+) s with the file in "
            r"the page cache, (\d+) s without, with ([\d.]+) GiB of memory beyond it; with CODE "
            r"([\d.]+) GiB and (\d+) s"
        ),
        large,
    ),
)
"""Page, what it says, and the numbers that stand there."""

SPEED = re.compile(
    r"For AttnLRP on the Llama it comes to LXT's time at 16 and 64 tokens, up to a fifth more from "
    r"256 on, and about six tenths of LXT's memory from 1,024 on. Pictures and Flan-T5 take a "
    r"fifth to a half more than torch's gradient."
)
NAMES = re.compile(
    r"Llama 2 and 3|GPT-2|Qwen 2, 3 and 3-MoE|OLMo 2|Phi-1, 1\.5, 3 and 4|Gemma 2 and 3|DINOv2|"
    r"SmolLM 3|Command R and R7B|StarCoder 2|(?:Flan-|m|UM)?T5|float8|int8|N?FP?4|"
    r"2, 3, 4 and 8 bits|"
    r"of 4 bits|"
    r"b?float(?:16|32|64)|Llama-2-7B|LXT 2\.1|arXiv \d+\.\d+|PLoS ONE 10\(7\)|et al\. \d{4}|"
    r"60-digit|60 digits|alpha-beta 1/2, 1/2|±300|1e±300|neuron 132 of block 3|count from 0|"
    r"with 0, with 1 where|with 2 and one|better side of 0|length 1|\d+\. \[|"
    r"Phi-1, 1\.5, 3 and 4|SmolLM 3|R7B|StarCoder 2|DINOv2|float8|int8|NF4|FP4|"
    r"GPTQ of 2, 3, 4 and 8 bits|AWQ of 4 bits"
)
"""What has a digit and states nothing that could be measured."""


@pytest.mark.parametrize(
    ("page", "said", "source"),
    CLAIMS,
    ids=lambda x: x[:40] if isinstance(x, str) else getattr(x, "__name__", "source"),
)
def test_what_is_said_is_so(page: str, said: str, source: Callable[[], list[str]]) -> None:
    found = list(re.finditer(said, prose(page)))
    assert found, f"{page} does not say: {said}"
    if source is not elsewhere:
        (one,) = found
        assert list(one.groups()) == source()


@pytest.mark.parametrize("name", [path.name for path in PAGES])
def test_no_number_is_without_its_source(name: str) -> None:
    text = prose(name)
    for page, said, _ in CLAIMS:
        if page == name:
            text = re.sub(said, lambda m: "" if len(m[0]) < 250 else _without(m), text)
    left = NUMBER.findall(NAMES.sub("", SPEED.sub("", text)))
    assert left == [], left


def _without(m: re.Match[str]) -> str:
    """A match that spans much: only its groups are accounted for."""
    text, start = m[0], m.start()
    for n in range(m.re.groups, 0, -1):
        text = text[: m.start(n) - start] + text[m.end(n) - start :]
    return text


def test_what_is_said_of_speed_is_what_the_table_says() -> None:
    """The table is that of the results: tests/verification/test_benchmark.py."""
    assert SPEED.search(prose("speed.md"))
    table = {(r[0], r[1], r[2]): r for r in rows(read("speed.md"), 7)}

    def quotient(what: str, peer: str = "LXT", method: str = "attnlrp-gradient") -> float:
        return float(re.findall(r"\*\*([\d.]+)\*\*", table[what, method, peer][4])[0])

    def llama(tokens: str) -> str:
        return f"Llama 768 x 12, {tokens} tokens"

    assert all(abs(quotient(llama(n)) - 1) < 0.06 for n in ("16", "64"))
    longer = ("256", "1,024", "2,048", "4,096", "8,192")
    assert all(1 <= quotient(llama(n)) <= 1.2 for n in longer)
    for n in longer[1:]:
        ours, theirs = table[llama(n), "attnlrp-gradient", "LXT"][6].replace(",", "").split(" / ")
        assert 0.5 < int(ours) / int(theirs) < 0.7
    gradient = [
        quotient(what, "torch", method)
        for what in ("ViT 768 x 12, 224 x 224 pixels", "Flan-T5 768 x 12, 64 + 16 tokens")
        for method in ("input-x-gradient", "attnlrp-gradient")
    ]
    assert min(gradient) >= 1.15 and max(gradient) < 1.55


def test_the_architectures_are_those_there_are() -> None:
    names = [
        "Llama",
        "GPT-2",
        "Mistral",
        "Mixtral",
        "Qwen",
        "OLMo",
        "Phi",
        "Gemma",
        "BERT",
        "RoBERTa",
        "ALBERT",
        "T5",
        "ViT",
        "DeiT",
        "SmolLM",
        "Granite",
        "Cohere",
        "GPT-NeoX",
        "StarCoder",
        "StableLM",
        "OPT",
        "Mamba",
        "DistilBERT",
        "ModernBERT",
        "mT5",
        "UMT5",
        "Whisper",
        "DINOv2",
        "CLIP",
    ]
    further = {"xlmroberta", "camembert", "dinovwithregisters", "clipmodel", "clipvisionmodel"}
    types = {re.sub(r"[\W_]|\d|moe|text", "", net) for net in NETS} - further
    assert {re.sub(r"[\W\d]", "", n.lower()) for n in names} == types
    for page in ("README.md", "checkpoints.md"):
        assert all(name in prose(page) for name in names)
