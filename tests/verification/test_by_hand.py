"""The blocks swept by hand against the engine, at every site and for every absorbed entry.

The bound. Three runs of the same file: on numbers of 50 digits, the reference; on floats; and on
numbers that are SAMPLES numbers each (`Sampled`), every product, quotient and partial sum of which
is multiplied by 1 + D xi, xi drawn from [-1, 1]. What that moves a result by (the root of the mean
square), over D, is its condition: how many u one rounding of every step moves it by, on the whole
(stochastic arithmetic, Vignes 1993). Floats, and the engine, which rounds a few times more in
places (v/2 for v, 1/rms as a factor) and adds in another order, may be SLACK conditions from the 50
digits; of some hundred thousand entries the most that was measured is 3.3.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refl.nets.batch import Batch
from refl.rules import softmax
from refl.rules.published import ATTNLRP
from refl.sweep import Sweep
from refl.trace import Trace
from refl.verification.definitions import by_hand_decoder, by_hand_encoder
from refl.verification.random_models import BERT, LLAMA, random_model

MP: Any = mpmath.mp.clone()
MP.dps = 50
U = 2.0**-53
SLACK = 8
EPS = (1e-9, 1e-6, 1e-2)
SAMPLES, D = 16, 2.0**-30
"""How many samples beside the one without noise, and the size of the noise: its square is far below
the conditions looked for.
"""


class Sampled:
    """A number as SAMPLES + 1 floats; the first has no noise."""

    __slots__ = ("v",)
    random = np.random.default_rng(0)

    def __init__(self, v: Any, roundings: int = 0) -> None:
        self.v = v
        if roundings:
            self.v = v * (
                1
                + roundings
                * D
                * Sampled.random.uniform(-1, 1, SAMPLES + 1)
                * (np.arange(SAMPLES + 1) > 0)
            )

    def __add__(self, other: Any) -> Sampled:
        return Sampled(self.v + bare(other), roundings=1)

    def __sub__(self, other: Any) -> Sampled:
        return Sampled(self.v - bare(other), roundings=1)

    def __rsub__(self, other: Any) -> Sampled:
        return Sampled(bare(other) - self.v, roundings=1)

    def __mul__(self, other: Any) -> Sampled:
        return Sampled(self.v * bare(other), roundings=1)

    def __truediv__(self, other: Any) -> Sampled:
        return Sampled(self.v / bare(other), roundings=1)

    def __rtruediv__(self, other: Any) -> Sampled:
        return Sampled(bare(other) / self.v, roundings=1)

    def __pow__(self, n: float) -> Sampled:
        return Sampled(self.v**n, roundings=1)

    def __neg__(self) -> Sampled:
        return Sampled(-self.v)

    def __ge__(self, other: Any) -> bool:
        return bool(self.v[0] >= bare(other, first=True))

    def __gt__(self, other: Any) -> bool:
        return bool(self.v[0] > bare(other, first=True))

    __radd__, __rmul__ = __add__, __mul__

    @property
    def condition(self) -> float:
        return float(np.sqrt(np.mean((self.v[1:] - self.v[0]) ** 2))) / D


def bare(x: Any, first: bool = False) -> Any:
    return (x.v[0] if first else x.v) if isinstance(x, Sampled) else x


def sampled(x: float) -> Sampled:
    return Sampled(np.full(SAMPLES + 1, x))


def _noisy(function: Any) -> Any:
    """What libraries compute to a few u."""
    return lambda x: Sampled(
        np.asarray([function(each) for each in bare(x if isinstance(x, Sampled) else sampled(x))]),
        roundings=4,
    )


NOISY = SimpleNamespace(
    **{name: _noisy(getattr(math, name)) for name in ("exp", "sqrt", "cos", "sin", "erfc")}
)


def numbers(array: Any, kind: Any) -> Any:
    """Nested lists of this kind of number."""
    return kind(float(array)) if array.ndim == 0 else [numbers(each, kind) for each in array]


def total(nested: Any) -> Any:
    return sum(total(each) for each in nested) if isinstance(nested, list) else nested


# -- the two sides ---------------------------------------------------------------------------------


class Engine:
    """One block of a one-layer model, recorded and swept from its output,
    where the relevance is drawn.
    """

    def __init__(
        self,
        config: dict[str, Any],
        block: str,
        length: int,
        eps: float,
        seed: int,
        attention_mask: Any = None,
    ) -> None:
        self.model, random = (
            random_model(config | {"num_hidden_layers": 1}, seed),
            np.random.default_rng(seed),
        )
        self.attention_mask = attention_mask
        ids = random.integers(0, 17, (1 if attention_mask is None else len(attention_mask), length))
        self.block, trace = block, Trace(self.model.weights)
        self.model.net.forward(
            trace,
            self.model.config,
            Batch(ids, None if attention_mask is None else np.asarray(attention_mask)),
        )
        self.r_y = random.standard_normal(trace.values[block].array.shape)
        self.swept = Sweep(ATTNLRP.with_options(eps=eps), keep=lambda names: True).run(
            trace, trace.values[block], self.r_y
        )
        self.values, self.eps = trace.values, eps

    def inside(self, site: str) -> bool:
        return site == self.block or site.startswith(f"{self.block}.")

    def site(self, name: str) -> str:
        return f"{self.block}.{name}" if name else self.block

    def weights(self, kind: Any) -> dict[str, Any]:
        inner = {
            name.removeprefix(f"{self.block}."): w
            for name, w in self.model.weights.items()
            if self.inside(name)
        }
        return {name: numbers(w, kind) for name, w in inner.items()}

    def by_hand(
        self, kind: Any, f: Any, example: int = 0
    ) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
        """The block swept by hand on numbers of this kind,
        from the same input, weights and relevance.
        """
        c = self.model.config
        x, r_y = (
            numbers(a[example], kind) for a in (self.values[f"{self.block}.input"].array, self.r_y)
        )
        how: dict[str, Any] = {"heads": c.num_attention_heads, "eps": kind(self.eps), "f": f}
        if self.block == DECODER:
            how |= {
                "kv_heads": c.kv_heads,
                "norm_eps": kind(c.rms_norm_eps),
                "theta": kind(c.rope.theta),
            }
            return by_hand_decoder.block(x, lambda y: r_y, self.weights(kind), **how)
        attention_mask = (
            [True] * len(x) if self.attention_mask is None else self.attention_mask[example]
        )
        return by_hand_encoder.block(
            x,
            lambda y: r_y,
            self.weights(kind),
            attention_mask,
            **how,
            norm_eps=kind(c.layer_norm_eps),
        )


DECODER, ENCODER = "model.layers.0", "bert.encoder.layer.0"
SITES = {
    DECODER: {
        "input": "x",
        "input_layernorm": "n1",
        "self_attn.query": "q",
        "self_attn.key": "k",
        "self_attn.value": "v",
        "self_attn.query.rotated": "qr",
        "self_attn.key.rotated": "kr",
        "self_attn.query.scaled": "qs",
        "self_attn.key.transposed": "kk",
        "self_attn.value.repeated": "vv",
        "self_attn.scores": "scores",
        "self_attn.probabilities": "p",
        "self_attn.context": "context",
        "self_attn.context.merged": "merged",
        "self_attn.o_proj": "o",
        "residual": "h1",
        "post_attention_layernorm": "n2",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.act_fn": "act",
        "mlp.gated": "gated",
        "mlp.down_proj": "down",
        "": "y",
    },
    ENCODER: {
        "input": "x",
        "attention.self.query.heads": "q",
        "attention.self.key.heads": "k",
        "attention.self.value.heads": "v",
        "attention.self.query.scaled": "qs",
        "attention.self.key.transposed": "kk",
        "attention.self.scores": "scores",
        "attention.self.probabilities": "p",
        "attention.self.context": "context",
        "attention.self.context.merged": "merged",
        "attention.output.dense": "o",
        "attention.output.residual": "a1",
        "attention.output.LayerNorm": "h",
        "intermediate.dense": "inner",
        "intermediate.intermediate_act_fn": "act",
        "output.dense": "out",
        "output.residual": "a2",
        "output.LayerNorm": "y",
    },
}
"""Site inside the block -> the name it has by hand.
(The encoder's output is named by its last LayerNorm.)
"""
PROJECTIONS = {
    DECODER: {f"self_attn.{name}_proj": name for name in "qkv"},
    ENCODER: {f"attention.self.{name}": name[0] for name in ("query", "key", "value")},
}
"""Sites that the file by hand has only cut into heads;
the conservation ledger calls them by these names.
"""


def compare(engine: Engine, example: int = 0) -> float:
    """Every site's activation and relevance, every absorbed entry: within the bound. Returns the
    most conditions that the engine was off.
    """
    (exact, exact_absorbed), (plain, plain_absorbed) = (
        engine.by_hand(*kind, example) for kind in ((MP.mpf, MP), (float, math))
    )
    noisy, noisy_absorbed = engine.by_hand(sampled, NOISY, example)
    used, seen = [], set()
    for site, name in (SITES[engine.block] | PROJECTIONS[engine.block]).items():
        at = engine.swept.aliases.get(engine.site(site), engine.site(site))
        if at not in engine.swept.propagated:
            assert name == "vv", f"the engine has no {at}"  # where no head serves a group
            continue
        seen.add(at)
        cut = by_hand_decoder.merge if site in PROJECTIONS[engine.block] else (lambda z: z)
        for k, theirs in enumerate((engine.swept.activations[at], engine.swept.propagated[at])):
            wanted, condition = cut(exact[name][k]), cut(noisy[name][k])
            used.append(near(theirs[example], wanted, condition, at))
            near(np.asarray(cut(plain[name][k])), wanted, condition, f"{at} in plain floats")
    left = {site for site in engine.swept.propagated if engine.inside(site)} - seen
    assert {site.removeprefix(f"{engine.block}.self_attn.") for site in left} <= {"key.repeated"}, (
        "kk has its numbers"
    )
    return max(used + _absorbed(engine, exact_absorbed, plain_absorbed, noisy_absorbed, example))


def _absorbed(engine: Engine, exact: Any, plain: Any, noisy: Any, example: int) -> list[float]:
    sites = {
        name: engine.site(site)
        for table in (SITES, PROJECTIONS)
        for site, name in table[engine.block].items()
    }
    got = {
        (e.site, cause): v
        for e in engine.swept.ledger
        if engine.inside(e.site)
        for cause, v in e.absorbed.items()
    }
    used = []
    for name, cause in ((name, cause) for name, causes in exact.items() for cause in causes):
        wanted, condition = exact[name][cause], noisy[name][cause]
        near(np.asarray(plain[name][cause]), wanted, condition, f"{name} {cause} in plain floats")
        at = (engine.swept.aliases.get(sites[name], sites[name]), cause)
        if at in got or cause != "mask":  # the engine records a mask only where there is one
            used.append(near(got.pop(at)[example], wanted, condition, at))
    assert not got, "absorbed by the engine alone"
    return used


def near(got: Any, wanted: Any, condition: Any, where: Any) -> float:
    """The largest error of an entry, in conditions.
    Where nothing can have rounded it must be the very number.
    """
    if isinstance(wanted, list):
        assert len(wanted) == len(got), where
        return max(near(*each, where) for each in zip(got, wanted, condition, strict=True))
    error, unit = (
        abs(float(MP.mpf(float(got)) - wanted)),
        U * (condition.condition if isinstance(condition, Sampled) else 0.0),
    )
    assert error <= SLACK * unit, (
        f"{where}: {float(got)!r}, by hand {float(wanted)!r}, error {error:.3g}, condition "
        f"times u {unit:.3g}"
    )
    return error / unit if unit else 0.0


# -- every site ------------------------------------------------------------------------------------

DECODERS = {
    "grouped heads": ({}, 4),
    "one head": ({"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 6}, 3),
    "a key head for each": ({"num_key_value_heads": 4}, 3),
    "one key head for all, biases": (
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        4,
    ),
    "length 1": ({"attention_bias": True}, 1),
}
PADDED = [[True] * 4, [True, True, False, False], [True, False, True, False]]
ENCODERS = {
    "several heads": ({}, 3, None),
    "one head": ({"num_attention_heads": 1}, 3, None),
    "length 1": ({}, 1, None),
    "padding": ({}, 4, PADDED),
}
SMALL = {"hidden_size": 8, "intermediate_size": 6}


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_at_every_site(name: str, eps: float) -> None:
    changed, length = DECODERS[name]
    compare(Engine(LLAMA | SMALL | changed, DECODER, length, eps, seed=1))


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_at_every_site(name: str, eps: float) -> None:
    changed, length, attention_mask = ENCODERS[name]
    engine = Engine(BERT | SMALL | changed, ENCODER, length, eps, 1, attention_mask)
    for example in range(1 if attention_mask is None else len(attention_mask)):
        compare(engine, example)


@settings(max_examples=15)
@given(
    st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)]),
    st.sampled_from([2, 4]),
    st.integers(1, 4),
    st.sampled_from(EPS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_decoder(
    heads: tuple[int, int], width: int, length: int, eps: float, bias: bool, seed: int
) -> None:
    config = {
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": width,
        "attention_bias": bias,
        "mlp_bias": bias,
    }
    compare(Engine(LLAMA | SMALL | config, DECODER, length, eps, seed))


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 4]),
    st.lists(st.booleans(), min_size=0, max_size=3),
    st.sampled_from(EPS),
    st.integers(0, 2**31),
)
def test_any_encoder(heads: int, attention_mask: list[bool], eps: float, seed: int) -> None:
    compare(
        Engine(
            BERT | SMALL | {"num_attention_heads": heads},
            ENCODER,
            1 + len(attention_mask),
            eps,
            seed,
            [[True, *attention_mask]],
        )
    )


@pytest.mark.parametrize("block", [DECODER, ENCODER])
def test_a_difference_in_the_eleventh_digit_is_seen(block: str) -> None:
    """Of one relevance, or of one absorbed entry;
    and so is an entry that is missing, or one too many.
    """
    engine = Engine((LLAMA if block == DECODER else BERT) | SMALL, block, 3, 1e-6, seed=1)
    compare(engine)
    propagated, ledger = engine.swept.propagated, engine.swept.ledger
    site = f"{block}.{'self_attn' if block == DECODER else 'attention.self'}.probabilities"
    propagated[site] = propagated[site] * (1 + 1e-11)
    _refused(engine, site)
    propagated[site] = propagated[site] / (1 + 1e-11)
    absorbed = ledger[site].absorbed
    for change in (
        {"softmax_offset": absorbed["softmax_offset"] * (1 + 1e-11)},
        {"bias": absorbed["softmax_offset"]},
    ):
        kept = dict(absorbed)
        absorbed.update(change)
        _refused(
            engine,
            "softmax_offset" if "softmax_offset" in change else "absorbed by the engine alone",
        )
        absorbed.clear()
        absorbed.update(kept)
    del absorbed["softmax_offset"]
    with pytest.raises(KeyError):
        compare(engine)


def _refused(engine: Engine, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        compare(engine)


# -- the conservation ledger -----------------------------------------------------------------------


@pytest.mark.parametrize("eps", [*EPS, 0.0])
@pytest.mark.parametrize("block", [DECODER, ENCODER])
def test_the_ledger_closes_to_the_last_digits(block: str, eps: float) -> None:
    """In 50 digits, without eps too:
    what came in = what reached x + what was absorbed, to 1e-40.
    """
    config = LLAMA | {"attention_bias": True, "mlp_bias": True} if block == DECODER else BERT
    engine = Engine(
        config | SMALL, block, 4, 1e-6, 2, [[True, True, True, False]] if block == ENCODER else None
    )
    engine.eps = eps
    values, ledger = engine.by_hand(MP.mpf, MP)
    absorbed = sum(amount for causes in ledger.values() for amount in causes.values())
    received, reached = total(values["y"][1]), total(values["x"][1])
    assert abs(received - reached - absorbed) <= MP.mpf(10) ** -40
    assert abs(received - reached) > 1e-3, "the account would be empty"
    stabilizers = [causes["stabilizer"] for causes in ledger.values() if "stabilizer" in causes]
    assert {abs(amount) > 0 for amount in stabilizers} == {eps > 0}


@pytest.mark.parametrize("attention_mask", [None, [True, False, True, True]])
def test_relevance_at_masked_entries_is_absorbed(attention_mask: list[bool] | None) -> None:
    """In a block none arrives there, since p = 0; were there any,
    mask would take it, as in the engine.
    """
    random = np.random.default_rng(3)
    scores, r = (random.standard_normal((2, 4, 4)) for _ in range(2))
    mask = np.broadcast_to(
        np.tri(4, dtype=bool) if attention_mask is None else np.asarray(attention_mask), (4, 4)
    )
    sides = []
    for kind, f in ((MP.mpf, MP), (sampled, NOISY)):
        x, arrived, file = (
            numbers(scores, kind),
            numbers(r, kind),
            by_hand_decoder if attention_mask is None else by_hand_encoder,
        )
        given_mask: list[Any] = [] if attention_mask is None else [attention_mask]
        sides.append(file.undo_softmax(x, *given_mask, file.softmax(x, *given_mask, f), arrived))
    (exact, ledger), (noisy, noisy_absorbed) = sides
    passed = softmax.taylor(scores, softmax.forward(scores, mask=mask), r, mask=mask)
    near(passed.inputs[0], exact, noisy, "scores")
    assert set(ledger) == set(passed.absorbed) and abs(ledger["mask"]) > 0.1
    for cause, amount in ledger.items():
        near(passed.absorbed[cause].sum(), amount, noisy_absorbed[cause], cause)
    assert not passed.inputs[0][:, ~mask].any()


@pytest.mark.parametrize("file", [by_hand_decoder, by_hand_encoder])
def test_the_worked_example_closes(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file.main()
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    rows = {what: float(amount) for what, amount in lines.items()}
    assert abs(rows["missing"]) <= 8 * U * sum(map(abs, rows.values()))
    assert rows["explained"] == pytest.approx(
        sum(v for what, v in rows.items() if what not in ("explained", "missing")), abs=1e-14
    )


@pytest.mark.parametrize("file", [by_hand_decoder, by_hand_encoder])
def test_the_files_by_hand_import_nothing_but_python(file: Any) -> None:
    tree = ast.parse(Path(file.__file__).read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules <= {"__future__", "math", "collections.abc", "typing"}
