"""A list of inputs: run in batches that are bounded, in the order that was given, with the numbers
of every input on its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refl
from refl import batching
from refl.model import Model
from refl.trace import Trace
from refl.verification.random_models import LLAMA, T5, VIT, random_model

LENGTHS = [3, 30, 1, 7, 12, 30, 2, 5, 19]


def inputs(lengths: list[int] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[int(i) for i in random.integers(1, 17, n)] for n in lengths]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(B, T) of every batch that is embedded."""
    seen: list[tuple[int, int]] = []
    compute = Trace.compute

    def noted(self: Trace, operation: str, site: str, arrays: Any, attributes: Any) -> Any:
        if operation == "embedding" and site.endswith("embed_tokens"):
            seen.append(tuple(attributes["ids"].shape))
        return compute(self, operation, site, arrays, attributes)

    monkeypatch.setattr(Trace, "compute", noted)
    return seen


def same(e: Any, alone: Any) -> None:
    size = np.abs(alone.relevance).max()
    assert e.target == alone.target and e.input_ids == alone.input_ids
    assert np.abs(e.relevance - alone.relevance).max() <= 1e-11 * size
    assert e.logit == pytest.approx(alone.logit, rel=1e-12)


@pytest.mark.parametrize("bound", [1, 20, 60, 1024])
@pytest.mark.parametrize("keep", [None, "*.mlp"])
def test_a_list_is_its_members(bound: int, keep: Any, shapes: list[tuple[int, int]]) -> None:
    model = random_model(LLAMA, 0)
    alone = [model.explain(i, target=2, keep=()) for i in inputs()]
    shapes.clear()
    found = model.explain(inputs(), target=2, keep=keep, batch_tokens=bound)
    assert all(b * t <= bound or b == 1 for b, t in shapes)
    assert sum(b for b, _ in shapes) == len(LENGTHS)
    for e, one in zip(found, alone, strict=True):
        same(e, one)


def test_targets_and_contrasts_stay_with_their_inputs() -> None:
    model, targets = random_model(LLAMA, 0), [int(i) for i in range(len(LENGTHS))]
    found = model.explain(inputs(), target=targets, batch_tokens=25)
    assert [e.target_id for e in found] == targets
    pairs = [(i, i + 1) for i in targets]
    found = model.explain(inputs(), contrast=pairs, batch_tokens=25)
    assert [(e.target, e.against) for e in found] == [(str(a), str(b)) for a, b in pairs]


def test_a_thousand_texts_are_never_one_batch(shapes: list[tuple[int, int]]) -> None:
    lengths = [1 + n % 9 for n in range(299)] + [100]
    found = random_model(LLAMA | {"num_hidden_layers": 1}, 0).explain(inputs(lengths), keep=())
    assert len(found) == 300 and [len(e.tokens) for e in found] == lengths
    assert max(b * t for b, t in shapes) <= batching.TOKENS < sum(lengths)
    assert sum(b * t for b, t in shapes) < 1.5 * sum(lengths)  # little of it is padding


def test_progress_goes_on_over_batches() -> None:
    seen: list[tuple[str, int, int]] = []
    model = random_model(LLAMA, 0)
    model.explain(inputs(), batch_tokens=20, progress=lambda *p: seen.append(p))
    done = [n for _, n, _ in seen]
    assert done == list(range(1, len(seen) + 1)) and {of for _, _, of in seen} == {len(seen)}


def test_a_decoder_counts() -> None:
    model = random_model(T5, 0)
    written = [[0, *i[:4]] for i in inputs()]
    found = model.explain(inputs(), decoder=written, batch_tokens=40)
    for e, i, w in zip(found, inputs(), written, strict=True):
        same(e, model.explain(i, decoder=w))
        assert e.decoder_ids == w


def test_pictures_in_batches() -> None:
    model = random_model(VIT, 0)
    shape = (5, model.config.num_channels, *model.config.image)
    pictures = np.random.default_rng(0).standard_normal(shape)
    alone = [model.explain(p) for p in pictures]
    for bound in (1, 10**6):
        for e, one in zip(model.explain(pictures, batch_tokens=bound), alone, strict=True):
            same(e, one)


def test_a_neuron_needs_inputs_of_one_length(shapes: list[tuple[int, int]]) -> None:
    at = ("model.layers.0.mlp", (0, 0))
    with pytest.raises(refl.ReflError, match="inputs of one length"):
        random_model(LLAMA, 0).explain(inputs(), at=at, batch_tokens=1)
    assert not shapes


# -- positions that depend on the batch ------------------------------------------------------------

DYNAMIC = LLAMA | {
    "max_position_embeddings": 8,
    "rope_scaling": {"rope_type": "dynamic", "factor": 8.0},
}


def test_dynamic_positions_are_those_of_the_input_alone(shapes: list[tuple[int, int]]) -> None:
    """Beyond max_position_embeddings the angles follow the longest of a batch, so only inputs of
    one length share one: every number is the input's own.
    """
    model = random_model(DYNAMIC, 0)
    alone = [model.explain(i, target=2) for i in inputs()]
    shapes.clear()
    for e, one in zip(model.explain(inputs(), target=2), alone, strict=True):
        same(e, one)
    assert (2, 30) in shapes and (1, 19) in shapes  # two of one length; one by itself
    padded = model.trace([inputs()[3], inputs()[1]])[1].array[0]
    alone_logits = model.trace([inputs()[3]])[1].array[0]
    assert np.abs(padded - alone_logits).max() > 1e-3  # what is avoided


# -- memory ----------------------------------------------------------------------------------------


def bases(e: Any) -> dict[int, int]:
    """Address -> bytes of all that an explanation's arrays hold."""
    found = {}
    groups = (e.sites.propagated, e.sites.activations)
    for array in [e.relevance, *(a for group in groups for a in group.values())]:
        while array.base is not None:
            array = array.base
        found[array.ctypes.data] = array.nbytes
    return found


@pytest.mark.parametrize("keep", ["*", "*.mlp", ["lm_head"]])
def test_an_explanation_does_not_hold_its_batch(keep: Any) -> None:
    model = random_model(LLAMA | {"vocab_size": 97}, 0)
    batch = model.explain([[1, 2, 3, 4]] * 32, keep=keep)
    alone = model.explain([1, 2, 3, 4], keep=keep)
    held = [sum(bases(e).values()) for e in batch]
    assert max(held) <= 2 * sum(bases(alone).values())
    assert len({address for e in batch for address in bases(e)}) >= 32  # nothing is shared


def test_one_explanation_holds_what_it_kept(shipped: Model) -> None:
    """A view of something larger is copied, except where that is kept as well."""
    e = shipped.explain("the keys to the cabinet", keep="lm_head.row")
    named = sum(a.nbytes for g in (e.sites.propagated, e.sites.activations) for a in g.values())
    assert sum(bases(e).values()) <= named + e.relevance.nbytes


@pytest.fixture(scope="module")
def shipped() -> Model:
    return refl.load()


# -- overflow --------------------------------------------------------------------------------------


def scaled(name: str, factor: float, dtype: str = "float32") -> Model:
    model = random_model(LLAMA, 0, "float64")
    weights = {n: np.asarray(model.weights[n]) for n in model.weights}
    weights[name] = weights[name] * factor
    with np.errstate(over="ignore"):
        cast = {n: w.astype(dtype) for n, w in weights.items()}
    return Model(**vars(model) | {"weights": cast, "dtype": dtype})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "factor", "site"),
    [
        ("model.layers.0.mlp.gate_proj.weight", -3e38, "model.layers.0.mlp"),
        ("model.layers.0.input_layernorm.weight", 1e20, "self_attn.*"),
        ("lm_head.weight", 3e38, "lm_head"),
    ],
)
@pytest.mark.parametrize(
    "how", [{}, {"keep": "*"}, {"keep": (), "recompute": True}], ids=["parts", "plain", "recompute"]
)
def test_an_overflow_is_refused_by_its_site(
    name: str, factor: float, site: str, how: dict[str, Any]
) -> None:
    """float64 holds what float32 does not; a norm or a softmax would make numbers of it again."""
    model = scaled(name, factor)
    said = f"float32 overflowed at .*{site}.*: use dtype float64"
    with pytest.raises(refl.ReflError, match=said if not how.get("recompute") else "overflowed"):
        model.explain([1, 2, 3], **how)
    with pytest.raises(refl.ReflError, match="float32 overflowed"):
        model.logits([1, 2, 3])
    wide = scaled(name, factor, "float64").explain([1, 2, 3], target=1, **how)
    assert np.isfinite(wide.relevance).all() and np.isfinite(wide.logit)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("model.embed_tokens.weight", 1e20),
        ("model.layers.0.self_attn.o_proj.weight", 1e25),
        ("model.layers.1.mlp.down_proj.weight", 1e30),
    ],
)
def test_what_float32_holds_is_right(name: str, factor: float) -> None:
    """Squares overflow, the numbers and the norm of them do not: as in float64."""
    e, wide = (scaled(name, factor, d).explain([1, 2, 3], target=1) for d in ("float32", "float64"))
    assert e.logit == pytest.approx(wide.logit, rel=1e-3, abs=1e-3)
    assert np.abs(e.relevance - wide.relevance).max() <= 1e-3 * np.abs(wide.relevance).max() + 1e-3


@pytest.mark.filterwarnings("error")
def test_relevance_that_is_not_finite_is_refused() -> None:
    """Logits of 1e37 and scores of 100 are numbers in float32; their product is none."""
    model = scaled("lm_head.weight", 3e37)
    model.weights["model.layers.0.self_attn.q_proj.weight"] *= np.float32(300)
    with pytest.raises(refl.ReflError, match="relevance is not finite in float32 from .* down"):
        model.explain([1, 2, 3])
