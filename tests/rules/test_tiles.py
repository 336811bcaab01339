"""Attention by tiles (refl/attention.py) against the recorded operations, in every combination of
rules, masks, caps, biases, shapes and sizes of tiles.

What is allowed is what rounding can make: some u of the largest number, and what the recorded
operations themselves give when the last digits of their operands are others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from attentions import Attended, Given, Operands, attended, counted, in_form, same_ledger
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl import attention
from refl.mask import Mask
from refl.rules.composites import Composite, Rule
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, CP_LRP, INPUT_X_GRADIENT, METHODS
from refl.verification.random_models import LLAMA, random_model, with_weights

CONTEXT, SCORES, SOFTMAX = "*.context", "*.scores", "*.probabilities"


def changed(name: str, *rules: Rule, of: Composite = ATTNLRP) -> Composite:
    return of.override(*rules, name=name)


OPTIONS = changed(
    "options",
    Rule("matmul", "uniform", CONTEXT, (("eps", 0.5), ("denominator", "2(z+eps)"))),
    Rule("matmul", "uniform", SCORES, (("eps", 0.25), ("denominator", "2(z+eps)"))),
    Rule("add", "epsilon", "*.biased", (("eps", 0.125),)),
)
PLAIN_CONTEXT = changed(
    "plain stabilizer",
    Rule("matmul", "uniform", CONTEXT, (("eps", 0.5), ("stabilizer", "plain"))),
    Rule("matmul", "uniform", SCORES, (("eps", 0.25),)),
)
NO_STABILIZER = changed(
    "no stabilizer", Rule("matmul", "uniform", CONTEXT, (("stabilizer", "none"),))
)
VALUES_ALONE = changed(
    "values alone",
    Rule("matmul", "second", CONTEXT, (("eps", 0.5),)),
)
CONSTANT = changed("constant", Rule("softmax", "constant"))
CONSTANT_GRADIENT = changed("constant gradient", Rule("softmax", "constant"), of=ATTNLRP_GRADIENT)
SECOND_GRADIENT = changed("second gradient", Rule("matmul", "second", CONTEXT), of=ATTNLRP_GRADIENT)
CAPS_GRADIENT = changed(
    "true derivative of caps", Rule("activation", "gradient"), of=ATTNLRP_GRADIENT
)
TILED = (
    ATTNLRP,
    ATTNLRP_GRADIENT,
    CP_LRP,
    INPUT_X_GRADIENT,
    OPTIONS,
    PLAIN_CONTEXT,
    NO_STABILIZER,
    VALUES_ALONE,
    CONSTANT,
    CONSTANT_GRADIENT,
    SECOND_GRADIENT,
    CAPS_GRADIENT,
)
"""Composites whose sweep is by tiles."""

IN_PARTS = (
    changed("spread", Rule("softmax", "spread")),
    changed("identity", Rule("softmax", "identity")),
    changed("z-plus", Rule("softmax", "z_plus")),
    changed(
        "plain scores", Rule("matmul", "uniform", SCORES, (("eps", 0.25), ("stabilizer", "plain")))
    ),
    changed("bare scores", Rule("matmul", "uniform", SCORES, (("stabilizer", "none"),))),
    changed("keys alone", Rule("matmul", "second", SCORES, (("eps", 0.5),))),
)
"""Composites whose sweep is in parts: the rules are not written for tiles, or denominators may
vanish."""


def by_name(composite: Composite) -> str:
    return str(composite.name)


# -- masks -----------------------------------------------------------------------------------------


def padding(kind: str, examples: int, keys: int) -> Any:  # -> bool (B, I)
    unpadded = np.ones((examples, keys), dtype=bool)
    some = max(1, keys // 2)
    unpadded[-1] = {
        "end": np.arange(keys) < some,
        "left": np.arange(keys) >= keys - some,
        "all": np.zeros(keys, dtype=bool),
        "none": np.ones(keys, dtype=bool),
    }[kind]
    return unpadded


MASKS = (
    "none",
    "causal",
    "window",
    "padded end",
    "padded left",
    "padded none",
    "padded all",
    "causal padded end",
    "causal padded left",
    "causal window padded left",
    "sides padded end",
    "rows hidden",
    "any",
)


def mask_of(kind: str, q: Any, k: Any) -> Any:
    """Of this kind, for these queries and keys."""
    (examples, _, queries, _), keys = q.shape, k.shape[2]
    if kind == "none":
        return None
    if kind in ("rows hidden", "any"):
        array = np.random.default_rng(3).random((examples, 1, queries, keys)) < 0.6
        array[:, :, queries // 2] = False
        return Given(array if kind == "any" else array | (np.arange(queries) % 2 == 0)[:, None])
    words = kind.split()
    return Mask(
        q,
        queries,
        keys,
        causal="causal" in words or "window" in words,
        window=2 if "window" in words else None,
        reach=1 if "sides" in words else None,
        allowed=padding(words[-1], examples, keys) if "padded" in words else None,
        past=max(keys - queries, 0),
    )


# -- comparing -------------------------------------------------------------------------------------


class Attending(NamedTuple):
    """One attention to be explained."""

    operands: Operands
    mask: Any = None
    cap: float | None = None

    def run(self, composite: Composite, *, plain: bool) -> Attended:
        with np.errstate(all="ignore"):
            return attended(
                composite, self.operands, self.mask, plain=plain, cap=self.cap, seed=seed
            )

    def with_other_digits(self, draw: int) -> Attending:
        random = np.random.default_rng(draw)

        def other(x: Any) -> Any:
            by = 8 * np.finfo(x.dtype).eps * random.uniform(-1, 1, x.shape)
            return (x * (1 + by)).astype(x.dtype)

        return self._replace(operands=Operands(*(x if x is None else other(x) for x in self[0])))


def seed(z: Any) -> Any:
    """Relevance that vanishes with the output, as relevance does."""
    return z * np.cos(z)


DRAWS, FACTOR = 3, 16


def largest(x: Any) -> float:
    return float(np.abs(x).max(initial=0))


def agrees(a: Attending, composite: Composite) -> Attended:
    """Output, relevance at every operand, and ledger, by tiles or what stands in for them, are
    those of the recorded operations. Returns the former.
    """
    fast, plain = (a.run(composite, plain=how) for how in (False, True))
    others = [a.with_other_digits(draw).run(composite, plain=True) for draw in range(DRAWS)]
    weighed = sums_of_terms(a, composite)
    near(fast.z, plain.z, [o.z for o in others], largest(a.operands.v), "z")
    wanted = plain.swept.propagated
    assert fast.swept.propagated.keys() == wanted.keys()
    for site, r in wanted.items():
        near(
            fast.swept.propagated[site],
            r,
            [o.swept.propagated[site] for o in others],
            weighed,
            site,
        )
    numbers = in_ledger(plain)
    moved = max(largest(in_ledger(o) - numbers) for o in others)
    few = np.finfo(plain.z.dtype).eps * weighed
    same_ledger(fast.swept, plain.swept, FACTOR * (moved + few))
    return fast


def near(found: Any, wanted: Any, others: list[Any], weighed: float, where: str) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, where
    moved = max(largest(other - wanted) for other in others)
    bound = FACTOR * (moved + np.finfo(wanted.dtype).eps * weighed)
    assert largest(found - wanted) <= bound, (where, largest(found - wanted), bound)


def in_ledger(run: Attended) -> Any:
    """All its numbers."""
    entries = run.swept.entries.values()
    return np.concatenate(
        [np.concatenate([e.received, *e.passed.values(), *e.absorbed.values()]) for e in entries]
    )


def sums_of_terms(a: Attending, composite: Composite) -> float:
    """Sizes of what the rules add up, and those of a gradient."""
    with np.errstate(all="ignore"):
        run = attended(composite, a[0], a.mask, plain=True, cap=a.cap, audit=True, seed=seed)
    q, k, v = map(largest, a.operands[:3])
    gradient = largest(seed(run.z)) * (1 + v) * (1 + max(q, k))
    return gradient + float(sum(np.sum(entry.rounding_scale) for entry in run.swept.ledger))


def operands(
    shape: tuple[int, ...] = (2, 2, 5, 5, 3),
    dtype: str = "float64",
    numbers: str = "usual",
    biased: bool = False,
    draw: int = 0,
) -> Operands:
    """Of B, H, J, I, d."""
    examples, heads, queries, keys, width = shape
    random = np.random.default_rng(draw)

    def array(*last: int) -> Any:
        x = random.standard_normal((examples, heads, *last))
        return (np.round(x) if numbers == "ties" else x).astype(dtype)

    q, k, v = array(queries, width), array(keys, width), array(keys, width)
    size = {"huge": 800.0, "tiny": 1e-20}.get(numbers)
    if size is not None:  # of the largest score
        q *= np.asarray(size / (largest(q @ k.swapaxes(-1, -2)) or 1), dtype)
    return Operands(q, k, v, array(queries, keys) if biased else None)


# -- every combination -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("composite", TILED, ids=by_name)
def test_tiles_are_the_recorded_operations(
    composite: Composite, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cap and without, with a bias and without."""
    in_form(monkeypatch, "tiles")
    ran = counted(monkeypatch, "sweep")
    for n, (cap, biased) in enumerate(((None, False), (1.5, False), (None, True), (1.5, True))):
        x = operands(biased=biased, draw=n)
        agrees(Attending(x, mask_of(kind, x.q, x.k), cap), composite)
        assert len(ran) == n + 1


@pytest.mark.parametrize("composite", IN_PARTS, ids=by_name)
def test_other_rules_are_swept_in_parts(
    composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_form(monkeypatch, "tiles")
    ran, forward = counted(monkeypatch, "sweep"), counted(monkeypatch, "forward")
    for kind in ("none", "causal padded left", "padded end"):
        x = operands()
        agrees(Attending(x, mask_of(kind, x.q, x.k)), composite)
    assert not ran and len(forward) == 3


@given(st.data())
def test_tiles_of_any_size_and_shape(data: st.DataObject) -> None:
    """Boundaries of tiles anywhere, more queries than keys and fewer, one head, one query; scores
    of 800 and of 1e-20, scores that are equal.
    """
    draw = data.draw
    shape = tuple(draw(st.integers(1, most)) for most in (2, 3, 7, 7, 3))
    dtype = draw(st.sampled_from(["float64", "float32"]))
    numbers = draw(st.sampled_from(["usual", "usual", "huge", "tiny", "ties"]))
    x = operands(shape, dtype, numbers, draw(st.booleans()), draw(st.integers(0, 9)))
    mask = mask_of(draw(st.sampled_from(MASKS)), x.q, x.k)
    cap = draw(st.sampled_from([None, 1.5]))
    with pytest.MonkeyPatch.context() as patch:
        in_form(patch, "tiles", draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        forward = counted(patch, "forward")
        agrees(Attending(x, mask, cap), draw(st.sampled_from(TILED)))
        assert forward


@pytest.mark.parametrize("keys", [attention.KEYS - 1, attention.KEYS, attention.KEYS + 1])
@pytest.mark.parametrize("composite", [ATTNLRP, ATTNLRP_GRADIENT], ids=by_name)
def test_tiles_of_the_usual_size(
    composite: Composite, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch, "sweep")
    x = operands((1, 1, attention.QUERIES + keys - attention.KEYS, keys, 2))
    agrees(Attending(x, mask_of("causal", x.q, x.k)), composite)
    assert ran


@pytest.mark.parametrize("kind", ["none", "causal padded left", "window"])
@pytest.mark.parametrize("composite", [ATTNLRP, INPUT_X_GRADIENT], ids=by_name)
def test_heads_that_share_a_tile(
    composite: Composite, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine heads, by two: the last is alone."""
    in_form(monkeypatch, "tiles", 16, 16)
    ran = counted(monkeypatch, "sweep")
    x = operands((2, 9, 7, 7, 3), biased=True)
    heads = attention.Attention(*x, mask=None, cap=None).heads()
    assert heads == [(b, slice(h, h + 2)) for b in range(2) for h in range(0, 9, 2)]
    agrees(Attending(x, mask_of(kind, x.q, x.k), 1.5), composite)
    assert ran


@pytest.mark.parametrize(
    ("shape", "each"),
    [
        ((1, 12, 16, 64), 3),  # a quarter, for other threads have to do as well
        ((1, 12, 256, 64), 2),
        ((1, 12, 1024, 64), 1),
        ((3, 3, 16, 64), 1),
    ],
)
def test_how_many_heads_share_a_tile(shape: tuple[int, ...], each: int) -> None:
    q = np.zeros(shape, np.float32)
    a = attention.Attention(q, q, q, mask=None, cap=None)
    examples, heads, length = shape[:3]
    assert [h.stop - h.start for _, h in a.heads()] == [each] * (examples * heads // each)
    rows = [rows.stop - rows.start for rows, _ in a.plan()]
    assert sum(rows) == length and max(rows) - min(rows) <= 1


def test_relevance_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries to which nothing comes are passed over, in whole tiles and at their edges."""
    in_form(monkeypatch, "tiles")
    x = operands((2, 2, 7, 7, 3))
    one = np.zeros((2, 2, 7, 1))
    one[0, :, 3], one[1, 1, 6] = 1, 1
    for composite in (ATTNLRP, INPUT_X_GRADIENT):
        fast, plain = (
            attended(composite, x, mask_of("causal", x.q, x.k), plain=how, seed=lambda z: one * z)
            for how in (False, True)
        )
        same_ledger(fast.swept, plain.swept, 1e-12)
        for site, wanted in plain.swept.propagated.items():
            assert largest(fast.swept.propagated[site] - wanted) <= 1e-12, site
            assert largest(wanted)


def test_padding_gives_and_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly; and a query that sees nothing has an output of zeros."""
    in_form(monkeypatch, "tiles")
    x = operands()
    for composite in TILED:
        hidden = Attending(x, mask_of("padded all", x.q, x.k)).run(composite, plain=False)
        assert not hidden.z[-1].any() and hidden.z[0].any()
        assert not any(r[-1].any() for r in hidden.swept.propagated.values())
        padded = Attending(x, mask_of("padded end", x.q, x.k)).run(composite, plain=False)
        assert not padded.to("k")[-1, :, 2:].any() and not padded.to("v")[-1, :, 2:].any()
        assert padded.to("v")[-1, :, :2].all()


# -- what tiles are not for ------------------------------------------------------------------------


def computable(x: Operands) -> bool:
    return attention.computable(*(a for a in x if a is not None), mask=None, cap=None) is not None


def test_what_tiles_are_not_for() -> None:
    """Arrays of two dtypes or of none that nets run in, a bias that examples share, scores that may
    not be finite or that a mask could have made.
    """
    x = operands(biased=True)
    assert computable(x) and computable(operands(dtype="float32"))
    assert not computable(x._replace(bias=x.bias[:1]))
    assert not computable(x._replace(q=x.q.astype("float32")))
    for dtype in (complex, "float16", int):
        assert not computable(Operands(*(a.astype(dtype) for a in x)))
    for wrong in (np.nan, np.inf, -np.inf):
        for name in ("q", "k", "v", "bias"):
            array = getattr(x, name).copy()
            array[1, 0, 2, 1] = wrong
            assert not computable(x._replace(**{name: array})), (name, wrong)
    small = operands(dtype="float32")
    assert not computable(small._replace(q=small.q * np.float32(1e38)))
    assert not computable(
        small._replace(q=small.q * np.float32(1e25), k=small.k * np.float32(1e14))
    )
    assert computable(small._replace(q=small.q * np.float32(1e15)))


@pytest.mark.parametrize("composite", [ATTNLRP, ATTNLRP_GRADIENT], ids=by_name)
def test_a_bias_that_examples_share_is_added_in_parts(
    composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_form(monkeypatch, "tiles")
    forward = counted(monkeypatch, "forward")
    x = operands(biased=True)
    agrees(Attending(x._replace(bias=x.bias[:1]), mask_of("causal", x.q, x.k)), composite)
    assert not forward
    one = operands((1, 2, 5, 5, 3), biased=True)
    agrees(Attending(one), composite)
    assert forward


def test_values_that_are_as_large_as_numbers_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of float32 numbers is a float32 number, whatever their sum is."""
    in_form(monkeypatch, "tiles")
    x = operands((1, 1, 6, 6, 2), "float32")
    x = x._replace(v=np.full_like(x.v, 2e38))
    fast, plain = (Attending(x).run(ATTNLRP, plain=how) for how in (False, True))
    assert np.isfinite(plain.z).all() and largest(fast.z / plain.z - 1) <= 1e-5


def test_values_that_are_no_numbers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By those queries whose part they stand in; also where their probability is nothing."""
    in_form(monkeypatch, "tiles")
    forward = counted(monkeypatch, "forward")
    x = operands((1, 1, 6, 6, 2), numbers="huge")
    x.v[..., 4, 0] = np.nan
    a = Attending(x, Mask(x.q, 6, 6, causal=True))
    fast, plain = (np.isnan(a.run(ATTNLRP, plain=how).z) for how in (False, True))
    assert fast[..., 4:, 0].all() and plain[..., 4:, 0].all() and not fast[..., :4, :].any()
    assert not forward


@pytest.mark.parametrize("composite", TILED, ids=by_name)
def test_where_nothing_comes_the_ledger_has_its_zeros(
    composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All keys are hidden from all; or the relevance that comes is zero."""
    in_form(monkeypatch, "tiles")
    x = operands((1, 2, 5, 5, 3), biased=True)
    agrees(Attending(x, mask_of("padded all", x.q, x.k), 1.5), composite)
    fast, plain = (
        attended(composite, x, None, plain=how, cap=1.5, seed=np.zeros_like)
        for how in (False, True)
    )
    same_ledger(fast.swept, plain.swept, 0.0)
    assert not any(r.any() for r in fast.swept.propagated.values())


# -- whole models ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_an_overflow_of_scores_is_refused_by_its_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the recorded operations: float32 has no such scores, though softmax would make numbers
    of them again.
    """
    in_form(monkeypatch, "tiles")
    model = random_model(LLAMA, 0, "float32")
    ids, forward = [3, 1, 5, 2, 7, 1], counted(monkeypatch, "forward")
    for factor in (1.0, 1e30, 3e38):
        name = "model.layers.0.self_attn.q_proj.weight"
        with np.errstate(over="ignore"):
            weight = np.asarray(model.weights[name]) * np.float32(factor)
        changed = with_weights(model, **{name: np.clip(weight, -3e38, 3e38).astype("float32")})
        refused = [said(changed, ids, keep) for keep in ("*", ())]
        assert refused[0] == refused[1], factor
        assert bool(refused[0]) == (factor == 3e38)
    assert forward


def said(model: Any, ids: list[int], keep: Any) -> str:
    try:
        model.explain(ids, "cp-lrp", keep=keep)
    except refl.ReflError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_by_tiles_or_in_parts(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_form(monkeypatch, "tiles")
    x = operands()
    agrees(Attending(x, mask_of("causal padded left", x.q, x.k), 1.5), METHODS[method])
