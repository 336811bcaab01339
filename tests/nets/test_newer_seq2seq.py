"""mT5, umT5 and encoders of T5's family: what of them is T5's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from surrogate_truth import close

import refl
from refl.errors import ReflError
from refl.model import Model
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import FLAN, T5, UMT5, random_model, with_weights

READ, WRITTEN = [3, 1, 16, 1, 8, 9], [0, 5, 11, 2]

TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"


def with_first_tables(umt5: Model) -> Model:
    """Every block of a stack with the table of its first."""
    tables = [name for name in umt5.weights if name.endswith(TABLE)]
    assert len(tables) == 4
    first = {n: umt5.weights[f"{n.partition('.')[0]}.block.0.{TABLE}"] for n in tables}
    return with_weights(umt5, **first)


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    """A umT5 with one table in each stack, and the T5 that it then is."""
    umt5 = with_first_tables(random_model(UMT5, 6))
    t5 = random_model(UMT5 | {"model_type": "t5"}, 6)
    weights = {name: umt5.weights[name] for name in t5.weights}
    return umt5, with_weights(t5, **weights)


def test_with_one_table_it_is_t5(pair: tuple[Model, Model]) -> None:
    umt5, t5 = pair
    assert np.array_equal(umt5.logits(READ, WRITTEN), t5.logits(READ, WRITTEN))
    assert umt5.generate(READ, 5) == t5.generate(READ, 5)


@pytest.mark.parametrize("method", ["attnlrp", "input-x-gradient"])
def test_so_is_its_relevance(pair: tuple[Model, Model], method: str) -> None:
    """What the one table absorbs is what those of all blocks do."""
    one, other = (m.explain(READ, method, decoder=WRITTEN, audit=True) for m in pair)
    close(one.relevance, other.relevance, rounding_bound(other))
    close(one.decoder_relevance, other.decoder_relevance, rounding_bound(other))
    for stack in ("encoder", "decoder"):
        absorbed = [_of_tables(e, stack) for e in (one, other)]
        assert [len(tables) for tables in absorbed] == [2, 1]
        assert abs(sum(absorbed[0]) - absorbed[1][0]) <= rounding_bound(other)


def _of_tables(e: Any, stack: str) -> list[float]:
    return [
        entry.absorbed["position"]
        for entry in e.ledger
        if entry.site.startswith(stack) and entry.site.endswith("relative_attention_bias")
    ]


def test_each_block_reads_its_own_table() -> None:
    model = random_model(UMT5, 6)
    before = model.logits(READ, WRITTEN)
    for name in [name for name in model.weights if name.endswith(TABLE)]:
        changed = with_weights(model, **{name: model.weights[name] + np.arange(8)[:, None]})
        assert np.abs(changed.logits(READ, WRITTEN) - before).max() > 1e-3, name


def test_mt5_is_flan_t5() -> None:
    silent = {k: v for k, v in T5.items() if k not in ("feed_forward_proj", "tie_word_embeddings")}
    mt5, t5 = random_model(silent | {"model_type": "mt5"}, 6), random_model(T5 | FLAN, 6)
    assert np.array_equal(mt5.logits(READ, WRITTEN), t5.logits(READ, WRITTEN))


@pytest.mark.parametrize("config", [T5, UMT5], ids=["T5", "UMT5"])
def test_the_encoder_alone(config: dict[str, Any]) -> None:
    """What the decoder of the whole model reads; a neuron of it is explained by itself."""
    family = config["model_type"].upper()
    alone = {"architectures": [f"{family}EncoderModel"], "is_encoder_decoder": False}
    both, encoder = random_model(config, 6), random_model(config | alone, 6)
    assert set(encoder.weights) < set(both.weights)
    encoder = with_weights(encoder, **{name: both.weights[name] for name in encoder.weights})
    assert encoder.task == "features"
    of_both = both.explain(READ, decoder=WRITTEN, keep="encoder").activation("encoder")
    assert np.array_equal(encoder.trace([READ], every=True)[1].array[0], of_both)
    how = {"method": "lrp-0", "at": ("encoder", (2, 3)), "audit": True}
    one, other = encoder.explain(READ, **how), both.explain(READ, decoder=WRITTEN, **how)
    assert one.logit == other.logit == of_both[2, 3]
    close(one.relevance, other.relevance, rounding_bound(other))
    assert abs(one.ledger.conservation_error) <= rounding_bound(one)


def test_refusals() -> None:
    for wrong, named in (
        ({"architectures": ["T5ForConditionalGeneration"]}, "UMT5ForConditionalGeneration"),
        ({"architectures": ["UMT5ForSequenceClassification"]}, "one place later"),
        ({"architectures": ["UMT5ForQuestionAnswering"]}, "one place later"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = false"),
        ({"scalable_attention": True, "model_type": "t5"}, "scalable_attention"),
        ({"scalable_attention": True, "model_type": "mt5"}, "scalable_attention"),
    ):
        with pytest.raises(ReflError, match=named):
            random_model(UMT5 | wrong, 1)
    random_model(UMT5 | {"scalable_attention": True}, 1)
    with pytest.raises(refl.ReflError, match="no decoder"):
        random_model(T5 | {"architectures": ["T5EncoderModel"]}, 1).explain(READ, decoder=WRITTEN)
