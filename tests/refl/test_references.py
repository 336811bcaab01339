"""Reference inputs: the same as a plain loop over every line, whoever computes them, and exact
histograms.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import content
from hypothesis import example, given
from hypothesis import strategies as st

import refl
from refl.cli import main
from refl.components import Part
from refl.errors import ReflError
from refl.evaluation.workers import InThisProcess
from refl.io.images import Preparation, pillow
from refl.latent.references import (
    RANKINGS,
    PartReferences,
    Reference,
    References,
    _ranges,
    references,
)
from refl.latent.references.best import Best
from refl.latent.references.heatmaps import Asked
from refl.latent.references.histograms import BINS, FINEST, LEAST, Histograms, exact_sums
from refl.latent.references.page import Shown, _coarser, html, lines
from refl.latent.references.selection import selected
from refl.methods import chosen
from refl.model import Model, load
from refl.rules.composites import Composite
from refl.show.lines import plain
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
)

Line = dict[str, Any]

# -- the plain loop --------------------------------------------------------------------------------

IDS = ([3], [1, 2, 3], [4, 5, 6, 7, 8], [9, 1, 8, 2, 9, 1], [5, 2, 5, 0, 16], [7, 2, 4])
"""Of several lengths; no two with the same beginning, whose values would be equal but for rounding.
"""


KEYS: tuple[str, ...] = ("ids", "decoder", "image")
"""What is read."""


LONG = np.random.default_rng(0).integers(0, 17, 100).tolist()
"""So many tokens that attention runs by tiles."""


def lines_for(model: Model, folder: Path) -> list[Line]:
    if model.takes_images:
        return [{"image": picture(folder, n)} for n in (0, 1, 2, 1)]
    found: list[Line] = [{"ids": ids} for ids in IDS]
    if model.task == "sequence-to-sequence":
        return [one | {"decoder": [0, *range(1, n)]} for n, one in enumerate(found, 1)]
    if model.task == "masked-token":
        return [one | {"position": -(n % 2)} for n, one in enumerate(found)]
    found[2] |= {"target": 3, "foil": 5}
    found[3] |= {"position": 2, "target": 7}
    return found


def picture(folder: Path, number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    pillow().fromarray(pixels).save(folder / f"{number}.png")
    return f"{number}.png"


def written_to(folder: Path, lines: Sequence[Line]) -> Path:
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return file


def random_net(config: dict[str, Any], seed: int = 3) -> Model:
    model = random_model(config, seed)
    plain = Preparation(None, 2, None, 1 / 255, (0.5,) * 3, (0.25,) * 3)
    return replace(model, preparation=plain) if model.takes_images else model


def explained(model: Model, line: Line, folder: Path, method: str = "attnlrp") -> Any:
    if "image" in line:
        return model.explain(str(folder / line["image"]), method, keep="*")
    contrast = (line["target"], line["foil"]) if "foil" in line else None
    return model.explain(
        line["ids"],
        method,
        keep="*",
        target=None if contrast else line.get("target"),
        contrast=contrast,
        position=line.get("position"),
        decoder=line.get("decoder"),
    )


Positions = dict[str, Sequence[Any]]


def positions_of(model: Model, line: Line) -> Positions:
    """Site of an expert's tokens -> the positions of its rows."""
    if "ids" not in line or ".E" not in model.components.mlps[0].label:
        return {}
    trace, _ = model.trace([line["ids"]])
    gathered = (r for r in trace.records if r.operation == "gather")
    return {r.output.site: r.attributes["index"][0] for r in gathered}


def values_of(part: Part, e: Any, at: Positions) -> tuple[dict[int, float], dict[int, float]]:
    """Position -> activation, and relevance; `at`: of experts' rows."""
    if part.site not in e.sites.activations and part.site not in e.sites.aliases:
        return {}, {}
    x, r = e.activation(part.site), e[part.site]
    if part.kind == "head":
        x = [math.sqrt(math.fsum(c * c for c in row)) for row in x[part.number].tolist()]
        r = [math.fsum(row) for row in r[part.number].tolist()]
    else:
        x, r = x[:, part.number].tolist(), r[:, part.number].tolist()
    expert = re.match(r".*\.experts\.\d+", part.site)
    places = range(len(x)) if expert is None else at[f"{expert[0]}.tokens"]
    return dict(sorted(zip(places, x, strict=True))), dict(sorted(zip(places, r, strict=True)))


def ranked(values: Sequence[dict[int, float]], k: int, sign: int, every: bool) -> list[Reference]:
    found = []
    for number, one in enumerate(values, 1):
        each = sorted(one.items(), key=lambda item: (-sign * item[1], item[0]))
        found += [Reference(number, t, v) for t, v in each[: None if every else 1]]
    return sorted(found, key=lambda r: (-sign * r.value, r.line, r.position))[:k]


def close(found: Sequence[Reference], expected: Sequence[Reference], scale: float) -> bool:
    """The same places; values to the rounding of float64, which stabilizers enlarge."""
    where = [(r.line, r.position) for r in found] == [(r.line, r.position) for r in expected]
    return where and all(
        abs(a.value - b.value) <= 1e-9 * scale for a, b in zip(found, expected, strict=True)
    )


def agree(
    found: Sequence[Reference],
    values: Sequence[dict[int, float]],
    expected: Sequence[Reference],
    every: bool,
) -> bool:
    """The expected values, each at a place that has it. (Which of two places, where a net computes
    one number at both, is up to rounding: the same token at the beginning of two texts.)
    """
    scale = max([abs(v) for some in values for v in some.values()], default=0.0)
    places = {(r.line, r.position if every else 0) for r in found}
    return len(places) == len(found) == len(expected) and all(
        abs(a.value - b.value) <= 1e-9 * scale >= abs(a.value - values[a.line - 1][a.position])
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plain_loop(name: str, tmp_path: Path) -> None:
    """Neurons and heads alike; padded batches on one side, each line by itself on the other."""
    model = random_net(ARCHITECTURES[name])
    lines = lines_for(model, tmp_path)
    file = written_to(tmp_path, lines)
    every = name in ("gpt2", "mixtral", "t5")
    found = references(
        model, file, tmp_path / "run", "*", 3, lowest=True, every_position=every, shard=4
    )
    each = [(explained(model, line, tmp_path), positions_of(model, line)) for line in lines]
    assert len(found.names) == sum(m.width for m in model.components.mlps) + sum(
        a.heads for a in model.components.attentions
    )
    for part in map(model.components.part, found.names):
        both = [values_of(part, *one) for one in each]
        one = found.of(part.name)
        for ranking, sign in RANKINGS.items():
            values = [pair["relevance" in ranking] for pair in both]
            expected = ranked(values, 3, sign, every)
            assert agree(one.by(ranking), values, expected, every), (part.name, ranking)
        activations = [v for x, _ in both for v in x.values()]
        assert one.histogram.count == len(activations)
        if activations:
            assert one.histogram.mean == pytest.approx(np.mean(activations), abs=1e-9)
            assert one.histogram.largest == pytest.approx(max(activations), abs=1e-9)


@pytest.mark.parametrize("method", ["attnlrp-gradient", "cp-lrp"])
def test_tables_in_both_forms(method: str, tmp_path: Path) -> None:
    model, lines = random_net(LLAMA), [{"ids": ids} for ids in (*IDS, LONG)]
    file = written_to(tmp_path, lines)
    found = references(model, file, tmp_path / "run", ["L1.N3", "L0.H1"], 2, "relevance", method)
    for name in found.names:
        part = model.components.part(name)
        each = [values_of(part, explained(model, one, tmp_path, method), {}) for one in lines]
        values = [r for _, r in each]
        scale = max(abs(v) for some in values for v in some.values())
        assert close(found.of(name).relevance, ranked(values, 2, 1, False), scale)
        assert found.of(name).activation == ()


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, T5, VIT, ARCHITECTURES["bert"]])
def test_a_pass_without_a_sweep_finds_the_same_activations(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = random_net(config)
    lines = [{key: line[key] for key in KEYS if key in line}
             for line in lines_for(model, tmp_path)]  # fmt: skip
    if model.task == "masked-token":
        lines = [line | {"position": 0} for line in lines]
    if model.task == "next-token":
        lines.append({"ids": LONG})
    file = written_to(tmp_path, lines)
    both = references(model, file, tmp_path / "both", "*", 2)
    alone = references(model, file, tmp_path / "alone", "*", 2, by="activation")
    assert both.names == alone.names
    for name in alone.names:
        assert alone.of(name) == replace(both.of(name), relevance=())
    assert alone.run["options"]["method"] is None


def test_only_relevance_needs_an_output_that_can_be_explained(tmp_path: Path) -> None:
    """A text without a mask has none in a model of masked tokens."""
    model = random_net(ARCHITECTURES["bert"])
    file = written_to(tmp_path, [{"ids": [1, 2, 3]}, {"ids": [4, 5]}])
    found = references(model, file, tmp_path / "a", "L1", 1, by="activation")
    assert found.of("L1.N0").histogram.count == 5
    with pytest.raises(ReflError, match=r"corpus\.jsonl, line 1: expected one mask token"):
        references(model, file, tmp_path / "b", "L1", 1)


def test_edits_at_the_last_token_of_each_line(tmp_path: Path) -> None:
    """Padding is none of a line's tokens, with a sweep or without."""
    model = random_net(GPT2).with_edits({"L0.N3": refl.value(2.0)}, positions=-1)
    file = written_to(tmp_path, [{"ids": [1, 2, 3, 4]}, {"ids": [5, 6]}, {"ids": [7]}])
    for by in ("activation", "relevance"):
        found = references(model, file, tmp_path / by, "L1.N3", 3, [by], every_position=True)
        site = model.components.mlps[1].neurons
        for line, ids in enumerate(([1, 2, 3, 4], [5, 6], [7]), 1):
            e = model.explain(ids, keep=[site])
            values = (e.activation(site) if by == "activation" else e[site])[:, 3]
            for one in found.of("L1.N3").by(by):
                if one.line == line:
                    assert one.value == pytest.approx(float(values[one.position]), abs=1e-12)


def test_edits_of_the_model_are_in_force(tmp_path: Path) -> None:
    """Of an edited neuron its activation before the edit, as e.activation has it; functions where
    nothing is swept.
    """
    model = random_net(GPT2)
    file = written_to(tmp_path, [{"ids": ids} for ids in IDS])
    changes: list[dict[str, Any]] = [
        {"L0.N3": lambda x: x * 0 + 2.0, "L0.H1": lambda x: x * 0},
        {"L0.N3": refl.value(2.0), "L0.H1": refl.off},
    ]
    plain, *found = (
        references(one, file, tmp_path / f"{n}", "*", 2, by="activation")
        for n, one in enumerate([model, *map(model.with_edits, changes)])
    )
    head, neuron = (plain.of(name).activation for name in ("L0.H1", "L0.N3"))
    for one in found:
        same = one.of("L0.H1").activation
        assert close(same, head, 1) and not close(one.of("L0.N3").activation, neuron, 1)
        assert close(one.of("L0.N3").activation, found[0].of("L0.N3").activation, 1)
        assert not close(one.of("L1.N3").activation, plain.of("L1.N3").activation, 1)
    both = references(model.with_edits(changes[1]), file, tmp_path / "both", "*", 2)
    for name in both.names:
        assert close(both.of(name).activation, found[1].of(name).activation, 9)


# -- ties and order --------------------------------------------------------------------------------


def test_equal_values_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Whatever the batches are: lines of other lengths stand between."""
    model = random_net(GPT2)
    dead = replace(
        model,
        weights={
            name: np.zeros_like(w) if "mlp.c_fc" in name else w for name, w in model.weights.items()
        },
    )
    file = written_to(tmp_path, [{"ids": ids} for ids in IDS])
    found = references(dead, file, tmp_path / "run", "L1", 4, shard=2)
    assert found.of("L1.N5").activation == tuple(Reference(n, 0, 0.0) for n in (1, 2, 3, 4))
    every = references(
        dead, file, tmp_path / "every", "L1", 4, by="activation", every_position=True, shard=4
    )
    places = [(r.line, r.position) for r in every.of("L1.N5").activation]
    assert places == [(1, 0), (2, 0), (2, 1), (2, 2)]
    assert every.of("L1.N0").histogram.counts == (23,)


VALUES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=12,
)


@given(st.lists(VALUES, min_size=1, max_size=8), st.integers(1, 5), st.booleans(), st.data())
def test_the_best_are_those_of_a_sorted_list(
    inputs: list[list[float]], k: int, every: bool, data: st.DataObject
) -> None:
    """Merged in any order, out of batches with padding."""
    order = data.draw(st.permutations(range(len(inputs))))
    cut = data.draw(st.integers(0, len(inputs)))
    best = Best.nothing(1)
    for members in (order[:cut], order[cut:]):
        if not members:
            continue
        n = max(len(inputs[b]) for b in members)
        x = np.full((len(members), n, 1), -np.inf)
        for row, b in enumerate(members):
            x[row, : len(inputs[b]), 0] = inputs[b]
        at = np.broadcast_to(np.arange(n), (len(members), n))
        best = best.and_(Best.of(x, np.array(members) + 1, at, every), k)
    expected = ranked([dict(enumerate(x)) for x in inputs], k, 1, every)
    assert [Reference(*one) for one in best.row(0)] == expected
    again = Best.from_rows(json.loads(json.dumps([best.row(0)])))
    assert again.row(0) == best.row(0)


# -- histograms ------------------------------------------------------------------------------------


def plain_bins(values: Sequence[float]) -> tuple[int, int, list[int]]:
    """Bins that are doubled in width until 64 are enough, in exact arithmetic."""
    exact = [Fraction(v) for v in values]
    size, e = max(map(abs, exact)), LEAST
    if size:
        e = max(math.frexp(float(size))[1] - FINEST, LEAST)

    def index(v: Fraction) -> int:
        return math.floor(v / Fraction(2) ** e)

    while index(max(exact)) - index(min(exact)) >= BINS:
        e += 1
    first = index(min(exact))
    counts = [0] * (index(max(exact)) - first + 1)
    for v in exact:
        counts[index(v) - first] += 1
    return e, first, counts


MANY = st.lists(
    st.one_of(
        st.floats(-4, 4, width=32),
        st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300, 1.7e308, -1.7e308, 1.0]),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=40,
)


@given(MANY, st.data())
@example([-5e-324, 1.7e308], None)
@example([-1.7e308, 1.7e308], None)
@example([1e-10, 1e-10], None)
@example([-0.0, 0.0], None)
@example([64.0, 0.0, 63.0], None)
def test_a_histogram_is_that_of_its_values_however_they_are_cut(
    values: list[float], data: Any
) -> None:
    cut = [] if data is None else data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    ends = [0, *sorted(cut), len(values)]
    parts = [values[a:b] for a, b in pairwise(ends)]
    found = Histograms.nothing(2)
    for part in parts:  # the second column beside it is another one
        columns = np.array([[v, 1.0] for v in part]).reshape(-1, 2)
        further = Histograms.of(columns)
        row = json.loads(json.dumps([further.row(0), further.row(1)]))
        found = found.and_(Histograms.from_rows(row))
    h, (e, first, counts) = found.histogram(0), plain_bins(values)
    assert (h.width, h.first, list(h.counts)) == (2.0**e, first, counts)
    assert (h.count, h.above) == (len(values), sum(v > 0 for v in values))
    assert (h.smallest, h.largest) == (min(values), max(values))
    assert "-0.0" not in (repr(h.smallest), repr(h.largest))
    mean = sum(map(Fraction, values)) / len(values)
    assert h.mean == pytest.approx(float(mean), rel=1e-15, abs=0)
    assert found.histogram(1).counts == (len(values),)
    assert all(a <= v < b for v in values[:1] for a, b in [_bin(h, v)])


def _bin(h: Any, value: float) -> tuple[Fraction, Fraction]:
    number = math.floor(Fraction(value) / Fraction(h.width))
    assert h.first <= number < h.first + len(h.counts)
    return number * Fraction(h.width), (number + 1) * Fraction(h.width)


@given(MANY)
@example([1.7e308, 1.7e308])
@example([5e-324, 1.0, -1.0])
def test_sums_are_exact(values: list[float]) -> None:
    (found,) = exact_sums(np.array(values)[:, None])
    assert Fraction(found, 2**-LEAST) == sum(map(Fraction, values))


def test_a_histogram_of_nothing() -> None:
    nothing = Histograms.nothing(1)
    assert nothing.histogram(0).counts == () and nothing.histogram(0).edges == []
    assert nothing.histogram(0).mean is None
    one = nothing.and_(Histograms.of(np.array([[2.5]])))
    assert one.and_(nothing).histogram(0) == one.histogram(0)
    assert one.histogram(0).edges == [2.5, 2.5 + 2.0 ** (2 - FINEST)]


# -- shards, workers, resumed ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = ("the keys", "the key to the cabinets", "the dogs near the key", "the cat", "the keys")
    return written_to(folder, [{"text": words[n % 5] + " near the dog" * (n % 3)}
                               for n in range(14)])  # fmt: skip


PARTS = ["L0", "L1.H*"]


def as_dicts(found: References) -> list[dict[str, Any]]:
    return [found.of(name).as_dict() for name in found.names]


def test_the_same_bytes_whoever_computes_and_resumes(
    model: Model, corpus: Path, tmp_path: Path
) -> None:
    whole = references(model, corpus, tmp_path / "whole", PARTS, 3, shard=4)
    assert whole.done is not None and whole.done.shards == whole.done.made == 4
    references(model, corpus, tmp_path / "two", PARTS, 3, shard=4, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "whole")

    class Killed(InThisProcess):
        count = 0

        def submit(self, function: Any, /, *arguments: Any) -> Any:
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().submit(function, *arguments)

    with pytest.raises(KeyboardInterrupt):
        references(model, corpus, tmp_path / "cut", PARTS, 3, shard=4, pool=Killed())
    with pytest.raises(ReflError, match=r"is not finished: \d of 4 shards are missing"):
        References.read(tmp_path / "cut")
    again = references(model, corpus, tmp_path / "cut", PARTS, 3, shard=4)
    assert again.done is not None and 0 < again.done.made < 4
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert as_dicts(References.read(tmp_path / "cut")) == as_dicts(whole)


def test_nothing_depends_on_where_the_file_is_cut(
    model: Model, corpus: Path, tmp_path: Path
) -> None:
    """With batches of one input, whose numbers no other input changes."""
    runs = [
        references(model, corpus, tmp_path / f"{shard}", PARTS, 3, shard=shard, batch_tokens=1)
        for shard in (1, 5, 100)
    ]
    assert as_dicts(runs[0]) == as_dicts(runs[1]) == as_dicts(runs[2])


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"parts": "L9"}, "L9 names no neuron"),
        ({"parts": ["L0.N9999"]}, "L0.N9999 is not there: L0 has"),
        ({"parts": "L0.X*"}, r"parts has 'L0\.X\*', which fits the name of no neuron"),
        ({"parts": []}, "parts is .*: expected names of neurons"),
        ({"parts": 3}, "parts is 3: expected names"),
        ({"k": 0}, "k is 0: expected a whole number above 0"),
        ({"by": "size"}, "by is 'size': expected activation, relevance, or both"),
        ({"by": []}, "by is .*: expected activation, relevance"),
        ({"method": "occlusion"}, "method occlusion is no table of rules"),
        ({"seed": "nothing"}, "unknown seed 'nothing'"),
        ({"lowest": "no"}, "lowest is 'no': expected True or False"),
        ({"workers": 1, "pool": InThisProcess()}, "give pool or workers"),
    ],
)
def test_bad_arguments(
    asked: dict[str, Any], words: str, model: Model, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ReflError, match=words):
        references(model, corpus, tmp_path / "run", **({"parts": "L0"} | asked))
    assert not (tmp_path / "run").exists()


def test_a_line_that_is_too_long_is_named_and_finished_shards_stay(tmp_path: Path) -> None:
    model = random_net(GPT2 | {"n_positions": 6})
    file = written_to(tmp_path, [{"ids": [1, 2]}] * 4 + [{"ids": [1] * 7}])
    with pytest.raises(ReflError, match=r"corpus\.jsonl, line 5: the input has 7 tokens, the mo"):
        references(model, file, tmp_path / "run", "L0", 1, shard=2)
    assert len(content(tmp_path / "run")) == 3


def test_a_folder_of_another_run(model: Model, corpus: Path, tmp_path: Path) -> None:
    references(model, corpus, tmp_path / "run", "L0.N1", 2, limit=2)
    for other, words in (
        ({"k": 3}, "a run with another k: there 2, now 3"),
        ({"parts": "L0.N2"}, "another parts"),
        ({"by": "activation"}, "another by"),
    ):
        asked: dict[str, Any] = {"parts": "L0.N1", "k": 2, "limit": 2} | other
        with pytest.raises(ReflError, match=words):
            references(model, corpus, tmp_path / "run", **asked)
    found = References.read(tmp_path / "run")
    with pytest.raises(ReflError, match=r"'L0\.N2' is none of the 1 neurons and heads"):
        found.of("L0.N2")
    with pytest.raises(ReflError, match="by is 'size'"):
        found.of("L0.N1").by("size")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "run.json").write_text('{"data": 3}')
    with pytest.raises(ReflError, match="holds no references"):
        References.read(tmp_path / "none")
    with pytest.raises(ReflError, match="k is 0"):
        found.heatmaps(model, corpus, "L0.N1", 0)


# -- names -----------------------------------------------------------------------------------------


def names(model: Model, parts: Any) -> list[str]:
    return [name for group in selected(model.components, parts) for name in group.names]


def test_what_names_mean() -> None:
    moe, t5 = random_net(MIXTRAL), random_net(T5)
    assert names(moe, "L1.E2") == [f"L1.E2.N{n}" for n in range(12)]
    assert len(names(moe, "L1")) == 6 * 12 and len(names(moe, None)) == 2 * 6 * 12
    assert names(moe, ["L1.H*", "L0.E1.N3", "L0.E1.N3", "L1.H2"]) == [
        "L0.E1.N3", "L1.H0", "L1.H1", "L1.H2", "L1.H3",
    ]  # fmt: skip
    assert names(t5, "decoder.L0.cross.H?") == [f"decoder.L0.cross.H{n}" for n in range(3)]
    assert len(names(t5, "encoder.L0")) == 24
    assert len(names(t5, "encoder.L0.*")) == 27
    (some,) = selected(t5.components, [f"encoder.L0.N{n}" for n in (5, 1, 7, 6, 23)])
    assert some.numbers == (1, 5, 6, 7, 23) and _ranges(some) == "N1 N5-7 N23"


# -- heatmaps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, T5, VIT], ids=lambda c: c["model_type"])
def test_heatmaps_are_explanations_of_the_neuron_and_of_the_head(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = random_net(config)
    lines = lines_for(model, tmp_path)
    file = written_to(tmp_path, lines)
    found = references(model, file, tmp_path / "run", "*", 2)
    mlp, attention = model.components.mlps[-1], model.components.attentions[-1]
    neuron = next(n for n in found.names if n.startswith(f"{mlp.label}.N") and
                  len(found.of(n).activation) == 2)  # fmt: skip
    shown = found.heatmaps(model, file, neuron)
    for one, e in zip(found.of(neuron).activation, shown, strict=True):
        assert e.explained == pytest.approx(one.value, rel=1e-9)
        assert e.seed == "activation" and mlp.neurons in e.target
    head = f"{attention.label}.H1"
    for by in ("activation", "relevance"):
        for one, e in zip(found.of(head).by(by), found.heatmaps(model, file, head, by=by),
                          strict=True):  # fmt: skip
            said = explained(model, lines[one.line - 1], tmp_path)
            assert e.explained == pytest.approx(said.explained)
            through = said[attention.context][1, one.position].sum()
            absorbed = e.ledger.absorbed.get("condition")
            assert absorbed is not None
            entry = next(x for x in e.ledger if x.site == attention.context)
            kept = float(entry.received) - float(entry.absorbed["condition"])
            if by == "relevance":
                assert kept == pytest.approx(one.value, abs=1e-9)
            assert kept == pytest.approx(float(through), abs=1e-9)


def test_heatmaps_of_another_file_or_model(model: Model, corpus: Path, tmp_path: Path) -> None:
    found = references(model, corpus, tmp_path / "run", "L0.N1", 2, limit=3)
    other = written_to(tmp_path, [{"text": "the dogs"}] * 3)
    with pytest.raises(ReflError, match="is not the file that the references were found in"):
        found.heatmaps(model, other, "L0.N1")
    edited = model.with_edits({"L0.N1": refl.off})
    with pytest.raises(ReflError, match="those of another model"):
        found.heatmaps(edited, corpus, "L0.N1")
    method = Composite.from_dict(found.run["options"]["method"])
    (one,) = found.heatmaps(model, corpus, "L0.N1", 1)
    assert one.method == method


def test_heatmaps_that_there_are_none_of(model: Model, corpus: Path, tmp_path: Path) -> None:
    found = references(model, corpus, tmp_path / "run", ["L0.N1", "L0.H0"], 2, "activation")
    for by in ("relevance", "lowest_activation"):
        with pytest.raises(ReflError, match=f"by is '{by}': expected one of activation"):
            found.heatmaps(model, corpus, "L0.N1", by=by)
    assert [e.method.name for e in found.heatmaps(model, corpus, "L0.N1", method="random")] == (
        ["random"] * 2
    )
    with pytest.raises(ReflError, match=r"method random is no table of rules, and of L0\.H0 is"):
        found.heatmaps(model, corpus, "L0.H0", method="random")


def test_more_references_than_there_are_inputs(model: Model, corpus: Path, tmp_path: Path) -> None:
    """Nothing is held for those that there are none of."""
    some = references(model, corpus, tmp_path / "some", "L0.N1", 4)
    every = references(model, corpus, tmp_path / "every", "L0.N1", 10**15)
    assert every.of("L0.N1").activation[:4] == some.of("L0.N1").activation
    assert len(every.of("L0.N1").activation) == every.run["data"]["inputs"]


# -- on the command line ---------------------------------------------------------------------------

Capture = pytest.CaptureFixture[str]


def command(corpus: Path, folder: Path, *more: str) -> list[str]:
    return ["references", "--file", str(corpus), "--out", str(folder), "--top", "2", *more]


def test_the_command(model: Model, corpus: Path, tmp_path: Path, capsys: Capture) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "run"
    asked = command(corpus, folder, "--parts", "L0", "L1.H*", "--lowest")
    assert main([*asked, "--show", "L0.N3", "L1.H1", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    found = references(model, corpus, folder, ["L0", "L1.H*"], 2, lowest=True)
    assert found.done is not None and found.done.made == 0
    h = found.of("L0.N3").histogram
    assert f"L0.N3  {h.count} activations, mean {h.mean:z.4g}, from {h.smallest:.4g} to" in out
    assert out.count("ActMax") == out.count("RelMax") == 2
    assert out.count("where its activation is lowest") == 2
    for name in ("L0.N3", "L1.H1"):
        for ranking in RANKINGS:
            for one in found.of(name).by(ranking):
                assert f"line {one.line}, position {one.position} " in out
                assert f": {one.value:z.4g}" in out
    html = page.read_text(encoding="utf-8")
    assert html.count('class="reference"') == 2 * 4 * 2 and "<script" not in html
    assert html.count('class="histogram"') == 2
    assert main([*asked, "--json", "--show", "L0.N3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shown"] == [found.of("L0.N3").as_dict()] and said["made"] == 0


def test_references_by_activation_are_shown_by_the_method_that_is_asked(
    model: Model, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed, of = [], Asked.of
    monkeypatch.setattr(Asked, "of", lambda self, *more: handed.append(self) or of(self, *more))
    asked = command(corpus, tmp_path / "run", "--parts", "L0.H1", "--by", "activation")
    how = ["--method", "lxt-explicit", "--eps", "0.25", "--seed", "probability", "--show", "L0.H1"]
    assert main([*asked, *how]) == 0
    (one,) = handed
    assert one.method == chosen("lxt-explicit", eps=0.25) and one.seed == "probability"


def test_a_page_of_pictures_and_of_a_decoder(tmp_path: Path) -> None:
    for config, inside in ((VIT, "data:image/png"), (T5, "tokens that the decoder has")):
        model, folder = random_net(config), tmp_path / config["model_type"]
        folder.mkdir()
        file = written_to(folder, lines_for(model, folder))
        found = references(model, file, folder / "run", "*", 2)
        name = found.names[-1]  # a head
        each = {by: found.heatmaps(model, file, name, by=by) for by in ("activation", "relevance")}
        view = Shown(found.of(name), each)
        page, text = html([view], "a net"), plain(lines(view))
        assert page.count('class="reference"') == 4 and name in page
        assert "position" in text and "head at that position" in text
        if config is VIT:
            assert inside in page and "a picture: --html draws it" in text


def test_what_a_file_says_is_escaped(model: Model, tmp_path: Path) -> None:
    hostile = "<b>\x1b[2J the keys</b>"
    e = model.explain("the keys", keep=())
    e = replace(e, tokens=[hostile, *e.tokens[1:]])
    one = PartReferences("L0.N0", Histograms.of(np.array([[1.0], [2.0]])).histogram(0),
                         (Reference(1, 0, 2.0),))  # fmt: skip
    view = Shown(one, {"activation": [e]})
    assert "\x1b" not in plain(lines(view)) and "<b>" not in html([view], hostile)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--parts", "L9"], "refl: L9 names no neuron"),
        (["--top", "0"], "refl: --top is 0: expected a whole number above 0"),
        (["--show", "L0.N9999"], "refl: L0.N9999 is not there: L0 has"),
        (["--parts", "L1", "--show", "L0.N1"], "refl: --show L0.N1 is not among --parts"),
        (["--html", "x.html"], "refl references: --html writes what --show shows"),
        (["--workers", "1", "--dask", "x"], "refl references: give --workers or --dask"),
        (["--method", "occlusion"], "refl: method occlusion is no table of rules, and neurons"),
        (["--model", "nowhere"], "refl: nowhere"),
    ],
)
def test_bad_options_are_one_sentence_and_2(
    more: list[str], words: str, corpus: Path, tmp_path: Path, capsys: Capture
) -> None:
    with suppress(SystemExit):
        assert main(command(corpus, tmp_path / "run", *more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(words) and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_bin_of_the_terminal_is_whole_bins() -> None:
    values = np.random.default_rng(0).normal(size=(500, 1)) + 0.3
    h = Histograms.of(values).histogram(0)
    first, counts, width = _coarser(h)
    edges = [(first + i) * width for i in range(len(counts) + 1)]
    expected, _ = np.histogram(values, edges)
    assert counts == expected.tolist() and len(counts) <= 16 and sum(counts) == 500
