"""Texts that are continued beside the keys and values of their beginnings: the bits of a run of the
whole text, the bound where there are none, and each new token explained from one forward.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend
from surrogate_truth import u

from refl.arrays import asnumpy
from refl.cache import KEYS, ROWS, Cache, CachedTrace, tiled
from refl.errors import ReflError
from refl.explainer import Explainer
from refl.explanation import Explanation
from refl.mask import Mask
from refl.model import Model
from refl.nets import rope
from refl.rules.operations import OPERATIONS
from refl.trace import Trace
from refl.verification.random_models import (
    ARCHITECTURES,
    BERT,
    FLAN,
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    PHI,
    QWEN3_MOE,
    T5,
    VIT,
    moved,
    random_model,
)

DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8}
NO_DECODER = ("bert", "roberta", "albert", "vit", "deit")
NETS: dict[str, dict[str, Any]] = {
    **{name: config for name, config in ARCHITECTURES.items() if name not in NO_DECODER},
    "llama, one key head, biases": LLAMA | {"num_key_value_heads": 1, "attention_bias": True},
    "llama, wider than a small matrix": LLAMA
    | {"hidden_size": 192, "intermediate_size": 320, "head_dim": 40, "vocab_size": 300},
    "llama, yarn": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral, no window, tied": MISTRAL | {"sliding_window": None, "tie_word_embeddings": True},
    "phi, groups": PHI | {"qk_layernorm": True, "num_key_value_heads": 2},
    "gemma2, a wide window": GEMMA2 | {"sliding_window": 130},
    "gemma3, capped": GEMMA3 | {"final_logit_softcapping": 12.0},
    "mixtral, window": MIXTRAL | {"sliding_window": 3},
    "qwen3-moe, as chosen": QWEN3_MOE | {"norm_topk_prob": False, "mlp_only_layers": []},
    "flan": T5 | FLAN,
}
READ = [3, 1, 16, 8]
"""What the encoder of a T5 reads."""


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model(NETS[name], 11, dtype)


def ids_of(model: Model, length: int) -> list[int]:
    return np.random.default_rng(5).integers(0, model.config.vocab_size, length).tolist()


def is_t5(model: Model) -> bool:
    return model.net.MODEL_TYPE == "t5"


def decoder_of(model: Model, ids: list[int]) -> tuple[list[int], list[int] | None]:
    """What is read, and what a decoder has written."""
    return (READ, ids) if is_t5(model) else (ids, None)


def whole(model: Model, ids: list[int]) -> Any:  # -> (T, V)
    return model.logits(*decoder_of(model, ids))


def plain(model: Model, ids: list[int]) -> Any:  # -> (T, V)
    """By the recorded operations of the whole text: another order of summation."""
    read, written = decoder_of(model, ids)
    _, logits = model.trace([read], decoder=written, every=True, record=False)
    return asnumpy(logits.array)[0]


def continued(model: Model, ids: list[int], cuts: Sequence[int]) -> Any:  # -> (T, V)
    """Run up to each of the cuts, one after the other."""
    kept, found = Cache(), []
    for start, end in pairwise([0, *cuts, len(ids)]):
        read, written = decoder_of(model, ids[:end])
        batch = model.batch(
            [read], every=True, decoder_prefix=None if written is None else [written]
        )
        logits = model.forward(CachedTrace(model.weights, kept), batch.after(start))
        found.append(asnumpy(logits.array)[0])
    return np.concatenate(found)


# -- bits, and the bound ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_continued_run_has_the_bits_of_the_whole(name: str) -> None:
    model, ids = net(name), ids_of(net(name), 21)
    expected = whole(model, ids)
    assert np.array_equal(continued(model, ids, range(1, 21)), expected)
    assert np.array_equal(continued(model, ids, [1, 7, 8, 17]), expected)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "mistral", "gemma2, a wide window", "t5", "qwen3_moe"]
)
def test_beyond_a_tile_of_keys(name: str) -> None:
    """And beyond a buffer, which grows, and the queries that are run at once."""
    length = 2 * KEYS + 9
    model, ids = net(name), ids_of(net(name), length)
    cuts = [5, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS - 3, 2 * KEYS + 7, 2 * KEYS + 8]
    assert np.array_equal(continued(model, ids, cuts), whole(model, ids))


CORES = ("Haswell", "Prescott", "SkylakeX")
"""Kernels of OpenBLAS, by what its OPENBLAS_CORETYPE calls them."""
PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import test_cache as t
for name in ("llama", "llama, wider than a small matrix", "gemma2", "qwen3_moe", "t5", "gpt2"):
    t.test_a_continued_run_has_the_bits_of_the_whole(name)
"""


@pytest.mark.parametrize("core", CORES)
def test_other_kernels_have_the_same_bits_in_either_run(core: str) -> None:
    """A library that is no OpenBLAS reads neither name, and is what it is."""
    asked = {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": "1"}
    support = Path(__file__).parents[1] / "support"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(support)],
        env=os.environ | asked,
        check=True,
    )


DEVIATION = 100
"""Of logits, in units of roundoff of the largest: measured up to 50."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETS)
def test_other_orders_of_summation_stay_near(name: str, dtype: str) -> None:
    """float32, where a single row has a kernel of its own; and the recorded operations."""
    model, ids = net(name, dtype), ids_of(net(name), 21)
    expected = plain(model, ids)
    bound = DEVIATION * u(dtype) * np.abs(expected).max()
    assert np.abs(continued(model, ids, range(1, 21)) - expected).max() <= bound
    assert np.abs(whole(model, ids) - expected).max() <= bound


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("width", [16, 64, 768, 3072])
def test_two_orders_of_one_sum_differ_by_twice_gamma(width: int, dtype: str) -> None:
    """A row by itself and among others: 2 gamma_n sum |x w| for each number of it."""
    random = np.random.default_rng(3)
    x, w = (random.standard_normal((40, width)).astype(dtype) for _ in range(2))
    gamma = width * u(dtype) / (1 - width * u(dtype))
    terms = np.abs(x).astype(float) @ np.abs(w.T).astype(float)
    found = np.concatenate([row[None] @ w.T for row in x])
    assert (np.abs(found.astype(float) - (x @ w.T)) <= 2 * gamma * terms).all()


def test_a_row_that_is_run_alone_is_summed_otherwise() -> None:
    """What all of this is for; where it is no longer so, a simpler form is at hand."""
    x = np.random.default_rng(3).standard_normal((40, 768))
    if "openblas" in str(np.show_config("dicts")).lower():  # type: ignore[no-untyped-call]
        assert not np.array_equal(x[:1] @ x.T, (x @ x.T.copy())[:1])


def test_positions_that_start_anew_are_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that a cache invites is far above the bound."""
    model, ids = net("llama"), ids_of(net("llama"), 21)
    expected, tables = whole(model, ids), rope.tables
    monkeypatch.setattr(rope, "tables", lambda r, length, other, past=0: tables(r, length, other))
    off = np.abs(continued(model, ids, [20]) - expected).max()
    assert off > 1e6 * DEVIATION * u("float64") * np.abs(expected).max()


def test_rows_and_tiles_are_filled_up() -> None:
    """tiled() beside softmax(q k^T) v, with hidden keys, and padding beside a shorter example."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, h, n, 6)) for h, n in ((4, 11), (2, KEYS), (2, KEYS)))
    unpadded = np.arange(11)[None, :] < np.asarray([[11], [4]])
    mask = Mask(q, 11, 11, causal=True, allowed=unpadded)
    context, finite = tiled(q, k, v, mask, 11, None, None)
    s = q @ np.repeat(np.matrix_transpose(k[:, :, :11]), 2, axis=1)
    p = OPERATIONS["softmax"].forward(s, mask=mask.array)
    np.testing.assert_allclose(context, p @ np.repeat(v[:, :, :11], 2, axis=1), rtol=1e-13)
    assert finite and context.shape == q.shape and ROWS > 1


def test_scores_that_overflow_are_refused() -> None:
    weights = {
        name: np.asarray(w) * (1e200 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1)
        for name, w in net("llama").weights.items()
    }
    with pytest.raises(ReflError, match="not finite at"):
        replace(net("llama"), weights=weights).generate([1, 2])


# -- generated text --------------------------------------------------------------------------------


def greedy(model: Model, prompt: list[int], tokens: int) -> list[int]:
    """By recorded operations, the whole text for each; ends where two logits are too near."""
    ids = [0] if is_t5(model) else list(prompt)
    for _ in range(tokens):
        z = plain(model, ids)[-1]
        best, second = np.sort(z)[[-1, -2]]
        if best - second <= 2 * DEVIATION * u(model.dtype) * np.abs(z).max():
            break
        ids.append(int(z.argmax()))
    return ids


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("prompt", [[7], [7, 3, 3, 0, 12]], ids=["of one token", "of five"])
@pytest.mark.parametrize("name", NETS)
def test_generated_ids_are_those_of_whole_texts(name: str, prompt: list[int], dtype: str) -> None:
    model = net(name, dtype)
    expected = greedy(model, READ if is_t5(model) else prompt, 12)
    found = model.generate(READ if is_t5(model) else prompt, 12)
    assert found[: len(expected)] == expected and len(expected) > 6


def test_an_end() -> None:
    model = net("llama")
    written = model.generate([1, 2, 3], 6)
    assert model.generate([1, 2, 3], 0) == [1, 2, 3]
    ended = replace(model, eos_ids=frozenset({written[5]}))
    assert ended.generate([1, 2, 3], 6) == written[: written.index(written[5], 3) + 1]


def test_the_last_position() -> None:
    model = random_model(GPT2 | {"n_positions": 9}, 2)
    assert len(model.generate([1, 2, 3], 20)) == 9
    assert model.generate([1] * 9, 20) == [1] * 9


def test_angles_that_change_with_the_length() -> None:
    """Up to max_position_embeddings the cache stands, beyond it every text is run as a whole."""
    model = random_model(LLAMA | DYNAMIC, 4)
    assert model.generate([1, 2, 3], 20) == greedy(model, [1, 2, 3], 20)
    assert len(model.generate([1, 2, 3], 20)) == 23


class Counted(CachedTrace):
    """Counts rows."""

    rows: ClassVar[dict[str, list[int]]] = {}

    def compute(self, operation: str, site: str, arrays: Any, attributes: Any) -> Any:
        array = super().compute(operation, site, arrays, attributes)
        self.rows.setdefault(site, []).append(array.shape[-2])
        return array


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Site -> how many rows each run computed there."""
    monkeypatch.setattr("refl.network.CachedTrace", Counted)
    monkeypatch.setattr(Counted, "rows", {})
    return Counted.rows


def test_only_new_tokens_are_run(rows: dict[str, list[int]]) -> None:
    net("llama").generate([1, 2, 3, 4, 5], 4)
    assert rows["model.layers.1.mlp.down_proj"] == [5, 1, 1, 1]


def test_an_encoder_is_run_once(rows: dict[str, list[int]]) -> None:
    net("t5").generate(READ, 4)
    assert rows["encoder.block.1.layer.1.DenseReluDense.wo"] == [4]
    assert rows["decoder.block.1.layer.2.DenseReluDense.wo"] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
def test_other_libraries(backend: Backend, name: str) -> None:
    home, prompt = net(name), READ
    away = moved(home, backend.place)
    assert away.generate(prompt, 6) == home.generate(prompt, 6)


# -- each new token explained ----------------------------------------------------------------------


def each_by_itself(model: Model, prompt: list[int], tokens: int, **how: Any) -> list[Explanation]:
    written = model.generate(prompt, tokens)
    first = 1 if is_t5(model) else len(prompt)
    return [
        model.explain(
            prompt if is_t5(model) else written[:end],
            decoder=written[:end] if is_t5(model) else None,
            target=written[end],
            **how,
        )
        for end in range(first, len(written))
    ]


def relevance_of(e: Explanation) -> Any:
    return np.concatenate([r for r in (e.relevance, e.decoder_relevance) if r is not None])


def assert_same(found: Sequence[Explanation], expected: Sequence[Explanation]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert (a.tokens, a.decoder_tokens, a.position) == (b.tokens, b.decoder_tokens, b.position)
        assert (a.target_id, a.input_ids, a.seed) == (b.target_id, b.input_ids, b.seed)
        r = relevance_of(b)
        assert relevance_of(a).shape == r.shape
        assert np.abs(relevance_of(a) - r).max() <= 1e4 * u("float64") * np.abs(r).max()
        assert abs(a.logit - b.logit) <= DEVIATION * u("float64") * max(abs(a.logit), 1)


KEPT = {"gpt2": "*.attn", "t5": "*.DenseReluDense"}
WAYS: dict[str, dict[str, Any]] = {
    "attnlrp": {},
    "gradient form, recomputed": {"method": "attnlrp-gradient", "recompute": True},
    "audited, eps, log-probability": {"audit": True, "eps": 1e-4, "seed": "log-probability"},
    "a kept site": {"keep": "*"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3_text", "mixtral", "phi", "t5"])
def test_each_is_that_of_its_beginning(name: str, way: str) -> None:
    model, how = net(name), WAYS[way]
    if "keep" in how:
        how = {"keep": KEPT.get(name, "*.self_attn")}
    found = model.explain_generated([3, 1, 4], 5, **how)
    assert_same(found, each_by_itself(model, [3, 1, 4], 5, **how))


def test_a_site_has_the_shape_of_the_beginning() -> None:
    model = net("llama")
    for a, b in zip(
        model.explain_generated([3, 1, 4], 3), each_by_itself(model, [3, 1, 4], 3), strict=True
    ):
        site = "model.layers.1.self_attn.probabilities"
        assert a[site].shape == b[site].shape
        np.testing.assert_allclose(a[site], b[site], atol=1e-12)


def test_one_forward_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run, lengths = Explainer.forward, []

    def counted(self: Explainer, readings: Any) -> Any:
        lengths.append(len(readings[0].input))
        return run(self, readings)

    monkeypatch.setattr(Explainer, "forward", counted)
    net("llama").explain_generated([3, 1, 4], 5)
    assert lengths == [7]


def test_angles_that_change_are_explained_one_by_one() -> None:
    model = random_model(LLAMA | DYNAMIC, 4)
    assert_same(model.explain_generated([1, 2, 3], 9), each_by_itself(model, [1, 2, 3], 9))


def test_progress_and_nothing_new() -> None:
    model, seen = net("llama"), []
    model.explain_generated([1, 2], 3, progress=lambda *now: seen.append(now))
    phases, done, of = zip(*seen, strict=True)
    assert set(phases) == {"sweep"} and list(done) == list(range(1, of[0] + 1))
    assert model.explain_generated([1, 2], 0) == []


def test_what_is_refused() -> None:
    llama, bert, vit = net("llama"), random_model(BERT, 0), random_model(VIT, 0)
    calls: dict[str, Callable[[], object]] = {
        "writes no text .its task is masked": lambda: bert.explain_generated([1, 2]),
        "writes no text .its task is image": lambda: vit.explain_generated([1, 2]),
        "continues one text": lambda: llama.explain_generated([[1, 2], [3]]),
        "no option target: expected one of keep": lambda: llama.explain_generated([1], target=3),
        "tokens is -1": lambda: llama.explain_generated([1], -1),
        "unknown seed": lambda: llama.explain_generated([1], seed="odd"),
        "no decoder": lambda: llama.explain_generated([1], decoder=[1]),
        "names 'odd', which is no site": lambda: llama.explain_generated([1], keep="odd"),
    }
    for words, call in calls.items():
        with pytest.raises(ReflError, match=words):
            call()


def test_a_recorded_trace_is_left_as_it_is() -> None:
    t, logits = net("gemma2").trace([[1, 2, 3]])
    records = list(t.records)
    other = t.at_rows((0,)).records[-1].output
    assert t.records == records and t.records[-1].output is logits
    assert isinstance(t, Trace) and other.names == logits.names
    alone = plain(net("gemma2"), [1, 2, 3])
    np.testing.assert_allclose(other.array[0, 0], alone[0], rtol=1e-13)
    np.testing.assert_allclose(logits.array[0, 0], alone[2], rtol=1e-13)
