"""PA-LRP: relevance at positions against the derivative of a surrogate whose angles are factors, by
complex step; the halves of a rotation in fractions; sums on every net.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.nets import llama
from refl.rules import rotary
from refl.rules.operations import OPERATIONS
from refl.verification.definitions.surrogate import STEP, FrozenTrace, record
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MISTRAL,
    PHI,
    VIT,
    random_model,
)

IDS = [3, 1, 4, 1, 5]
TARGET = 6


def explain(config: dict[str, Any], **asked: Any) -> Any:
    model = random_model(config, seed=3)
    item: Any = IDS
    if model.takes_images:
        item = np.random.default_rng(0).normal(size=(3, 8, 12))
    if model.task == "masked-token":
        asked |= {"position": 2}
    if config["model_type"] == "t5":
        asked |= {"decoder": [0, 4, 7]}
    return model.explain(item, **({"method": "pa-lrp"} | asked))


def total(e: Any) -> float:
    written = 0.0 if e.decoder_relevance is None else e.decoder_relevance.sum()
    return float(e.relevance.sum() + written)


@pytest.mark.parametrize("net", ARCHITECTURES)
def test_signed_scores_sum_to_tokens_and_position(net: str) -> None:
    e = explain(ARCHITECTURES[net], options={"signed": True})
    size = sum(abs(part) for entry in e.ledger for part in entry.absorbed.values())
    assert abs(e.ledger.conservation_error) <= 1e-12 * size
    position = e.ledger.absorbed["position"]
    if net in ("vit", "deit"):  # the class token's position has no pixels
        assert abs(total(e) - e.ledger.tokens - position) > 1e-3 * size
    else:
        assert abs(total(e) - e.ledger.tokens - position) <= 1e-12 * size


# -- against a surrogate ---------------------------------------------------------------------------


class Turned(FrozenTrace):
    """A rotation is a product of x and its angles: the mean of (x moves, the angles stand) and the
    other way round. `at`: (site begins with, which table, token) is perturbed along itself.
    """

    at: tuple[str, str, int] = ("", "", 0)

    def compute(self, operation: str, site: str, arrays: Any, attributes: Mapping[str, Any]) -> Any:
        if operation != "rotary":
            return super().compute(operation, site, arrays, dict(attributes))
        forward, (x0,) = OPERATIONS["rotary"].forward, self.around[site].arrays
        tables = {name: np.asarray(attributes[name], dtype=complex) for name in ("cos", "sin")}
        block, table, token = self.at
        if table in tables and site.startswith(block):
            tables[table][..., token, :] *= 1 + 1j * STEP
        return (forward(arrays[0], **attributes) + forward(x0, **tables)) / 2


def slope(model: Any, around: Any, at: tuple[str, str, int], edits: Any = None) -> float:
    """Of the target's logit, along what is at a place: its relevance."""
    trace = Turned(model.weights, around, edits=edits)
    trace.at = at
    z = model.net.forward(trace, model.config, model.batch([IDS])).array
    return float(z[0, 0, TARGET].imag / STEP)


def along(token: int) -> Any:
    factor = np.ones((1, len(IDS), 1), dtype=complex)
    factor[0, token] += 1j * STEP
    return lambda x: x * factor


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("config", [LLAMA, MISTRAL, PHI], ids=["llama", "mistral", "phi"])
def test_angles_are_factors(config: dict[str, Any], signed: bool) -> None:
    model = random_model(config, seed=3)
    around, _ = record(model, IDS)
    wanted, at_angles = np.zeros(len(IDS)), 0.0
    for t in range(len(IDS)):
        wanted[t] = slope(model, around, ("", "", 0), {"model.embed_tokens": along(t)})
        for block in ("model.layers.0", "model.layers.1"):
            for table in ("cos", "sin"):
                part = slope(model, around, (block, table, t))
                at_angles += abs(part)
                wanted[t] += part if signed else abs(part)
    assert at_angles > 0.01 * abs(wanted).sum()
    e = explain(config, target=TARGET, options={"signed": signed})
    assert abs(e.relevance - wanted).max() <= 1e-12 * abs(wanted).sum()


@pytest.mark.parametrize("signed", [False, True])
def test_learned_positions_are_summands(signed: bool) -> None:
    """They have a sign, whatever is asked of angles."""
    model = random_model(GPT2, seed=3)
    around, _ = record(model, IDS)
    sites = ("transformer.wte", "transformer.wpe")
    wanted = [
        sum(slope(model, around, ("", "", 0), {site: along(t)}) for site in sites)
        for t in range(len(IDS))
    ]
    e = explain(GPT2, target=TARGET, options={"signed": signed})
    assert abs(e.relevance - wanted).max() <= 1e-12 * sum(map(abs, wanted))


# -- by hand ---------------------------------------------------------------------------------------


def test_the_halves_of_a_rotation_in_fractions() -> None:
    """z = (x1 c1 - x2 s1, x2 c2 + x1 s2): half of each term times g."""
    x, c, s = (
        (Fraction(3), Fraction(-2)),
        (Fraction(1, 2), Fraction(1, 4)),
        (Fraction(2), Fraction(-1)),
    )
    g = (Fraction(4), Fraction(-8))
    of_cos = [x[0] * c[0] * g[0] / 2, x[1] * c[1] * g[1] / 2]
    of_sin = [-x[1] * s[0] * g[0] / 2, x[0] * s[1] * g[1] / 2]
    table = [np.asarray(v, dtype=float).reshape(1, 1, 1, 2) for v in (x, g, c, s)]
    got = rotary.of_angles(table[0], table[1], cos=table[2], sin=table[3])
    assert [part.ravel().tolist() for part in got] == [
        [float(v) for v in of_cos],
        [float(v) for v in of_sin],
    ]
    z = rotary.forward(table[0], cos=table[2], sin=table[3])
    _, absorbed = rotary.uniform_gxi(table[0], z, table[1], cos=table[2], sin=table[3])
    assert absorbed["position"].tolist() == [float(sum(of_cos) + sum(of_sin))]


# -- tables of distances, patches, what is refused -------------------------------------------------


def test_a_pair_of_tokens_shares_its_distance() -> None:
    """T5: half of what a pair (j, i) gets is the query's, half the key's."""
    signed = explain(ARCHITECTURES["t5"], options={"signed": True})
    sizes = explain(ARCHITECTURES["t5"])
    swept = explain(ARCHITECTURES["t5"], method="attnlrp-gradient", keep="*relative_attention_bias")
    for side, got, by_size, tokens in (
        ("encoder", signed.relevance, sizes.relevance, swept.relevance),
        ("decoder", signed.decoder_relevance, sizes.decoder_relevance, swept.decoder_relevance),
    ):
        site = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        pairs = swept[site].sum(axis=-1)
        for t in range(len(tokens)):
            own = sum(pairs[t, i] for i in range(len(pairs))) / 2
            own += sum(pairs[j, t] for j in range(len(pairs))) / 2
            assert abs(got[t] - tokens[t] - own) <= 1e-14
            assert abs(by_size[t] - tokens[t] - abs(own)) <= 1e-14


def test_pixels_share_their_patch_position() -> None:
    e, swept = explain(VIT), explain(VIT, method="attnlrp-gradient", keep="*position_embeddings")
    (site,) = (name for name in swept.sites.activations if name.endswith("position_embeddings"))
    each = swept[site].sum(axis=-1)[1:].reshape(2, 4)
    added = (e.relevance - swept.relevance).reshape(2, 4, 4, 3)
    assert abs(added - each[:, None, :, None] / 12).max() <= 1e-15


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReflError, match="one block at a time"):
        explain(LLAMA, recompute=True)
    with pytest.raises(ReflError, match="signed"):
        explain(LLAMA, options={"signed": "yes"})
    monkeypatch.setattr(llama.Trace, "rotary", lambda self, name, x, cos, sin, **_: x)
    with pytest.raises(ReflError, match="positions that are learned, rotary or biases of scores"):
        explain(LLAMA)
