"""T5 and Flan-T5: distances and their buckets, relevance on both stacks against the frozen
surrogate, one account over both, both padded.

The scale of comparisons is that of test_identities.py: 8 u times the sum of the |terms| that the
rules added up.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import surrogate_truth
from backends import BESIDE_NUMPY, Backend
from surrogate_truth import EXACT, Truth, close
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.model import Model
from refl.nets import relative_bias, t5
from refl.nets.config import parse
from refl.rules.published import METHODS
from refl.show import terminal
from refl.show.account import DECODER, ENCODER
from refl.show.colors import LEVELS, level
from refl.show.notebook import fragment
from refl.show.page import html
from refl.verification.definitions import surrogate
from refl.verification.identities.conditioning import RunComparison, rounding_bound
from refl.verification.identities.rows import WorstDeviation
from refl.verification.random_models import FLAN, LLAMA, T5, moved, random_model

NETS = {
    "t5": T5,
    "flan": T5 | FLAN,
    "gated-silu, tied, few buckets": T5
    | {"feed_forward_proj": "gated-silu", "num_layers": 1, "relative_attention_num_buckets": 5},
    "gelu, untied, deep encoder": T5
    | {
        "feed_forward_proj": "gelu",
        "tie_word_embeddings": False,
        "num_layers": 3,
        "num_decoder_layers": 1,
    },
}
READ, WRITTEN = [3, 1, 16, 1, 8, 9], [0, 5, 11, 2]


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model(NETS[name], 6, dtype)


# -- buckets ---------------------------------------------------------------------------------------


def config(buckets: int, farthest: int) -> Any:
    return parse(
        t5.Config,
        T5
        | {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": farthest},
    )


def test_buckets_of_the_published_models() -> None:
    """32 buckets up to 128: distances that each begin a bucket,
    8 2^(k/2) and 16 8^(k/16) rounded up.
    """
    c = config(32, 128)
    both = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    behind = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    for causal, starts in ((False, both), (True, behind)):
        table = relative_bias.buckets(c, np.zeros((1, 200), dtype=np.int64), causal)
        assert [int(np.argmax(table[:, 0] == k)) for k in range(len(starts))] == starts
        assert table[:, 0].max() == len(starts) - 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("number", "farthest"),
    [(32, 128), (8, 12), (4, 3), (5, 30), (7, 9), (12, 48), (64, 256), (8, 64)],
)
def test_buckets_by_their_definition(number: int, farthest: int, causal: bool) -> None:
    """Half of the buckets for one distance each, the other half of equal widths in the logarithm,
    here with fifty digits.
    """
    length = farthest + 5
    table = relative_bias.buckets(
        config(number, farthest), np.zeros((2, length), dtype=np.int64), causal
    )
    each = number if causal else number // 2
    for j, i in [
        *((0, i) for i in range(length)),
        *((j, 0) for j in range(length)),
        (length // 2, length - 1),
        (length - 1, length // 2),
    ]:
        distance = max(j - i, 0) if causal else abs(i - j)
        expected = defined(distance, each, farthest) + (each if i > j and not causal else 0)
        assert table[j, i] == expected, (j, i)


def defined(n: int, each: int, farthest: int) -> int:
    exact = each // 2
    if n < exact:
        return n
    with mpmath.workdps(50):
        width = mpmath.log(mpmath.mpf(farthest) / exact) / (each - exact)
        reached = mpmath.log(mpmath.mpf(n) / exact) / width
        return min(exact + int(mpmath.floor(reached + mpmath.mpf(10) ** -40)), each - 1)


# -- the forward -----------------------------------------------------------------------------------


def plain_t5(w: Any, c: dict[str, Any], read: list[int], prefix: list[int]) -> Any:  # -> (U, V)
    """The paper's model, one text, by loops over heads and queries."""
    act = {
        "relu": lambda x: np.maximum(x, 0),
        "gated-gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }
    f, heads, width = act[c["feed_forward_proj"]], c["num_heads"], c["d_kv"]

    def norm(name: str, x: Any) -> Any:
        return (
            w[f"{name}.weight"]
            * x
            / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c["layer_norm_epsilon"])
        )

    def attend(name: str, x: Any, y: Any, table: str | None, causal: bool) -> Any:
        q, k, v = (z @ w[f"{name}.{part}.weight"].T for part, z in (("q", x), ("k", y), ("v", y)))
        out = np.zeros_like(q)
        for h in range(heads):
            of = slice(h * width, (h + 1) * width)
            for j in range(len(x)):
                s = np.array([q[j, of] @ k[i, of] for i in range(len(y))])
                if table is not None:
                    s += [
                        w[f"{table}.relative_attention_bias.weight"][row(j, i, causal), h]
                        for i in range(len(y))
                    ]
                e = np.exp(s - s.max())[: j + 1 if causal else None]
                out[j, of] = e @ v[: len(e), of] / e.sum()
        return out @ w[f"{name}.o.weight"].T

    def row(j: int, i: int, causal: bool) -> int:
        each = c["relative_attention_num_buckets"] // (1 if causal else 2)
        far = c["relative_attention_max_distance"]
        return (
            defined(max(j - i, 0), each, far)
            if causal
            else defined(abs(j - i), each, far) + each * (i > j)
        )

    def mlp(name: str, x: Any) -> Any:
        gated = c["feed_forward_proj"].startswith("gated")
        h = (
            f(x @ w[f"{name}.wi_0.weight"].T) * (x @ w[f"{name}.wi_1.weight"].T)
            if gated
            else f(x @ w[f"{name}.wi.weight"].T)
        )
        return h @ w[f"{name}.wo.weight"].T

    h, encoded = None, None
    for stack, ids, layers in (
        ("encoder", read, c["num_layers"]),
        ("decoder", prefix, c["num_decoder_layers"]),
    ):
        h = w["shared.weight"][ids]
        for b in (f"{stack}.block.{i}.layer" for i in range(layers)):
            x = norm(f"{b}.0.layer_norm", h)
            h = h + attend(
                f"{b}.0.SelfAttention",
                x,
                x,
                f"{stack}.block.0.layer.0.SelfAttention",
                stack == "decoder",
            )
            if stack == "decoder":
                h = h + attend(
                    f"{b}.1.EncDecAttention", norm(f"{b}.1.layer_norm", h), encoded, None, False
                )
            last = f"{b}.{1 if stack == 'encoder' else 2}"
            h = h + mlp(f"{last}.DenseReluDense", norm(f"{last}.layer_norm", h))
        h = norm(f"{stack}.final_layer_norm", h)
        encoded = h if stack == "encoder" else encoded
    tied = c["tie_word_embeddings"]
    return (h * c["d_model"] ** -0.5) @ w["shared.weight"].T if tied else h @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", ["t5", "flan"])
def test_in_plain_numpy(name: str) -> None:
    read, written = np.random.default_rng(0).integers(0, 17, (2, 15)).tolist()
    want = plain_t5(net(name).weights, NETS[name], read, written)
    assert np.abs(net(name).logits(read, written) - want).max() < 1e-13 * np.abs(want).max() * 10


# -- relevance -------------------------------------------------------------------------------------


def is_stage(site: str) -> bool:
    """Both embeddings, both last norms, what comes of every half-block and every block."""
    return surrogate_truth.is_stage(site) or site.endswith("final_layer_norm")


@cache
def truth(name: str) -> Truth:
    return Truth(net(name), READ, WRITTEN)


@pytest.mark.parametrize("variant", surrogate.VARIANTS)
@pytest.mark.parametrize("name", NETS)
def test_surrogate_is_the_net_at_the_input(name: str, variant: str) -> None:
    z = surrogate.logits(net(name), READ, truth(name).around, variant=variant, decoder=WRITTEN)[0]
    want = net(name).logits(READ, WRITTEN)[-1]
    assert np.abs(z - want).max() < 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("name", NETS)
def test_attnlrp_tends_to_the_surrogate_linearly_in_eps(name: str) -> None:
    small, large = (truth(name).deviation("attnlrp", is_stage, eps=eps) for eps in (1e-14, 1e-12))
    assert small < 1e-9
    assert large == pytest.approx(100 * small, rel=0.1)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every half-block and block of both stacks, and at both embeddings."""
    c = net(name).config
    assert len(truth(name).sites(is_stage)) == 4 + 2 * c.num_layers + 3 * c.decoder_layers
    assert truth(name).deviation(method, is_stage) < 1e-12


@pytest.mark.parametrize("method", ["attnlrp-gradient", "cp-lrp"])
@pytest.mark.parametrize("name", ["t5", "flan"])
def test_the_same_inside_the_attentions(name: str, method: str) -> None:
    """At every operation of one attention of each kind: bias and table, scores with it, keys and
    values that were read.
    """

    def inside(site: str) -> bool:
        return fnmatchcase(site, "*coder.block.0.layer.[01].*Attention.*")

    assert len(truth(name).sites(inside)) > 30
    assert truth(name).deviation(method, inside) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_cp_lrp_conserves(name: str) -> None:
    """No biases, and attention passes on in full: both rows of tokens add up to the logit."""
    e = net(name).explain(READ, "cp-lrp", decoder=WRITTEN)
    assert abs(e.relevance.sum() + e.decoder_relevance.sum() - e.logit) <= 1e-12 * abs(e.logit)
    assert min(np.abs(e.relevance).max(), np.abs(e.decoder_relevance).max()) > 1e-3 * abs(e.logit)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_the_ledger_closes(name: str, dtype: str) -> None:
    """Every site within 8 u sum|terms|; the whole account; tokens are both rows; distances absorb
    under `position`.
    """
    for method, composite in METHODS.items():
        for keep in ("*", ()):
            e = net(name, dtype).explain(READ, method, decoder=WRITTEN, audit=True, keep=keep)
            for entry in e.ledger:
                assert (
                    abs(entry.conservation_error) <= 8 * e.ledger.roundoff * entry.rounding_scale
                ), f"{method}: {entry.site}"
            assert abs(e.ledger.conservation_error) <= rounding_bound(e)
            if composite.score == "sum":
                assert abs(
                    e.relevance.sum() + e.decoder_relevance.sum() - e.ledger.tokens
                ) <= rounding_bound(e)
            if method == "attnlrp":
                assert e.ledger.absorbed["position"] != 0
                at_tables = [
                    n.absorbed["position"]
                    for n in e.ledger
                    if n.site.endswith("relative_attention_bias")
                ]
                assert len(at_tables) == 2
                assert sum(at_tables) == e.ledger.absorbed["position"]


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["t5", "flan"])
def test_a_padded_batch_is_its_members(name: str, method: str, keep: Any) -> None:
    """Each with its own lengths on both sides; padding holds nothing,
    and no example's ledger knows of another's.
    """
    model, numbers = net(name), np.random.default_rng(3)
    texts = [numbers.integers(0, 17, n).tolist() for n in (7, 3, 1, 5)]
    written = [numbers.integers(0, 17, n).tolist() for n in (2, 9, 4, 1)]
    together = model.explain(texts, method, decoder=written, keep=keep, audit=True)
    for read, decoder, e in zip(texts, written, together, strict=True):
        alone = model.explain(read, method, decoder=decoder, keep=keep, audit=True)
        assert (e.target_id, e.tokens, e.decoder_tokens, e.decoder_ids) == (
            alone.target_id,
            alone.tokens,
            alone.decoder_tokens,
            decoder,
        )
        worst = WorstDeviation()
        explain = partial(_explain, read, method, decoder=decoder, keep=keep)
        compare = RunComparison(model, alone, explain, worst).compare
        compare(e.relevance, lambda x: x.relevance, "relevance")
        compare(e.decoder_relevance, lambda x: x.decoder_relevance, "decoder's relevance")
        for site in (s for s in e if e[s].ndim == 2 and e[s].shape[0] > 1 and ".bias." not in s):
            unpadded = len(
                decoder
                if site.startswith("decoder")
                and not site.endswith((".EncDecAttention.k", ".EncDecAttention.v"))
                else read
            )
            assert not e[site][unpadded:].any(), site
            compare(e[site][:unpadded], itemgetter(site), site)
        for site, n in (
            ("encoder.block.0.layer.0.SelfAttention.bias", len(read)),
            ("decoder.block.0.layer.0.SelfAttention.bias", len(decoder)),
        ):
            if site in set(e):
                compare(e[site][:, :n, :n], itemgetter(site), site)
                assert not e[site][:, n:].any() and not e[site][:, :, n:].any()
        for got, want in zip(e.ledger, alone.ledger, strict=True):
            assert got.site == want.site
            compare(np.asarray(got.received), partial(_received, got.site), got.site)
            assert got.absorbed.keys() <= want.absorbed.keys() | {"mask"}
        assert worst.of_bound <= 1, f"{worst.measured:.1e} > {worst.bound:.1e} at {worst.where}"


def _explain(item: list[int], method: str, model: Model, **how: Any) -> Explanation:
    e: Explanation = model.explain(item, method, audit=True, **how)
    return e


def _received(site: str, e: Explanation) -> Any:
    return np.asarray(e.ledger[site].received)


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["t5", "flan"])
def test_recomputing_changes_no_bit(name: str, method: str, keep: Any) -> None:
    """What every block of the decoder reads, and the bias that all blocks of a stack share, are
    operands of blocks that are run again.
    """
    texts, written = [READ, READ[:2]], [WRITTEN[:3], WRITTEN]
    runs = (
        net(name, "float32").explain(texts, method, decoder=written, keep=keep, recompute=r)
        for r in (False, True)
    )
    for full, less in zip(*runs, strict=True):
        assert set(full) == set(less)
        assert full.sites.aliases == less.sites.aliases or keep == ()
        assert np.array_equal(full.relevance, less.relevance) and np.array_equal(
            full.decoder_relevance, less.decoder_relevance
        )
        for site in full:
            assert np.array_equal(full[site], less[site]) and np.array_equal(
                full.activation(site), less.activation(site)
            ), site
        assert full.ledger.as_dict() == less.ledger.as_dict()


def test_several_targets_from_one_forward() -> None:
    for recompute in (False, True):
        for target, e in zip(
            (4, 9),
            net("flan").explain_each(READ, (4, 9), decoder=WRITTEN, recompute=recompute),
            strict=True,
        ):
            alone = net("flan").explain(READ, target=target, decoder=WRITTEN)
            assert np.array_equal(e.relevance, alone.relevance) and np.array_equal(
                e.decoder_relevance, alone.decoder_relevance
            )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_behind_the_explained_position(method: str) -> None:
    """The output at the second of four tokens is the explanation of the first two."""
    e, alone = (
        net("flan").explain(READ, method, decoder=d, position=1, audit=True)
        for d in (WRITTEN, WRITTEN[:2])
    )
    assert not e.decoder_relevance[2:].any()
    close(e.decoder_relevance[:2], alone.decoder_relevance, rounding_bound(alone))
    close(e.relevance, alone.relevance, rounding_bound(alone))


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("name", ["t5", "flan"])
def test_every_backend(name: str, backend: Backend) -> None:
    home, away = net(name), moved(net(name), backend.place)
    assert away.generate(READ, 4) == home.generate(READ, 4)
    for how in ({"keep": "*"}, {"keep": (), "recompute": True}):
        for one, other in zip(
            *(
                m.explain([READ, READ[:3]], decoder=[WRITTEN, [0]], audit=True, **how)
                for m in (home, away)
            ),
            strict=True,
        ):
            close(other.relevance, one.relevance, rounding_bound(one))
            close(other.decoder_relevance, one.decoder_relevance, rounding_bound(one))


# -- what is asked and what is answered ------------------------------------------------------------


def test_fields() -> None:
    model = net("t5")
    e = model.explain(READ, decoder=WRITTEN)
    assert model.task == "sequence-to-sequence"
    assert (e.tokens, e.decoder_tokens) == ([str(i) for i in READ], [str(i) for i in WRITTEN])
    assert (e.input_ids, e.decoder_ids) == (READ, WRITTEN)
    assert (e.relevance.shape, e.decoder_relevance.shape) == ((6,), (4,))
    assert e.logit == pytest.approx(model.logits(READ, WRITTEN)[-1].max(), rel=1e-13)
    assert e["encoder.embed_tokens"].sum() == pytest.approx(e.relevance.sum())
    assert e["decoder.embed_tokens"].sum() == pytest.approx(e.decoder_relevance.sum())
    assert np.array_equal(e["encoder"], e["decoder.block.1.layer.1.EncDecAttention.k.input"])
    assert e["decoder.block.2"].shape == (4, 16)
    plain = random_model(LLAMA, 1).explain(READ)
    assert plain.decoder_tokens is plain.decoder_ids is plain.decoder_relevance is None
    assert "decoder_tokens" not in plain.as_dict()


def test_by_default_only_the_start_token() -> None:
    model = replace(net("t5"), decoder_start_id=5)
    e = model.explain(READ)
    assert e.decoder_ids == [5]
    assert model.generate(READ, 6)[0] == 5
    assert e.target_id == model.generate(READ, 1)[1] == model.explain(READ, decoder=[5]).target_id


def test_generation_is_greedy_and_stops_at_the_end() -> None:
    model = net("flan")
    written = model.generate(READ, 5)
    for n in range(1, 6):
        assert written[n] == model.logits(READ, written[:n])[-1].argmax()
    assert model.generate(READ, 3, decoder=written[:3]) == written
    assert (
        replace(model, eos_ids=frozenset({written[2]})).generate(READ, 5)
        == written[: written.index(written[2], 1) + 1]
    )


def test_refusals() -> None:
    model = net("t5")
    with pytest.raises(ReflError, match="2 decoder texts for 1 inputs"):
        model.explain(READ, decoder=[[0], [1]])
    with pytest.raises(ReflError, match="no decoder"):
        random_model(LLAMA, 1).explain(READ, decoder=[0])
    with pytest.raises(ReflError, match="outside the vocabulary"):
        model.explain(READ, decoder=[0, 17])
    with pytest.raises(ReflError, match="position 4 is outside"):
        model.explain(READ, decoder=WRITTEN, position=4)
    with pytest.raises(ReflError, match="no tokenizer"):
        model.explain(READ, decoder="a text")
    for wrong, named in (
        ({"architectures": ["T5ForSequenceClassification"]}, "T5ForSequenceClassification"),
        ({"is_encoder_decoder": False}, "encoder alone"),
        ({"feed_forward_proj": "gated-gelu-new"}, "gated-gelu-new"),
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj 'mish'"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance"),
        ({"num_attention_heads": 2}, "num_attention_heads"),
        ({"model_type": "longt5"}, "longt5"),
    ):
        with pytest.raises(ReflError, match=named):
            random_model(T5 | wrong, 1)


WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "the",
    "keys",
    "to",
    "cabinet",
    "are",
    "is",
    "schluessel",
    "zum",
    "schrank",
    "liegen",
    "bereit",
    "hier",
    "da",
    "und",
]
"""17 of them, as many as the random nets know."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer that, as T5's, ends every text with </s>."""
    folder, model = tmp_path_factory.mktemp("t5"), random_model(T5 | FLAN, 2, "float32")
    write_safetensors(folder / "model.safetensors", dict(model.weights), {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(T5 | FLAN | {"eos_token_id": 1, "architectures": ["T5ForConditionalGeneration"]})
    )
    tokenizer = Tokenizer(models.WordLevel(dict(zip(WORDS, count())), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_shared_table_under_either_name(folder: Path, tmp_path: Path) -> None:
    """Some files hold the table of both embeddings, one tensor, under the encoder's name alone,
    some under all three.
    """
    arrays, _ = read_safetensors(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    table = arrays["shared.weight"]
    for names in (
        ["encoder.embed_tokens"],
        ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
    ):
        others = {name: array for name, array in arrays.items() if name != "shared.weight"}
        write_safetensors(
            tmp_path / "model.safetensors",
            others | {f"{name}.weight": table for name in names},
            {"format": "pt"},
        )
        assert np.array_equal(
            refl.load(tmp_path).logits(READ, WRITTEN), refl.load(folder).logits(READ, WRITTEN)
        )


def test_text_on_both_sides(folder: Path, tmp_path: Path) -> None:
    """The encoder's text ends as the tokenizer ends it; the decoder's starts with its start token
    and has no end.
    """
    model = refl.load(folder, dtype="float64")
    e = model.explain("the keys to the cabinet", decoder="schluessel zum")
    assert e.tokens == ["the", "keys", "to", "the", "cabinet", "</s>"]
    assert e.decoder_tokens == ["<pad>", "schluessel", "zum"]
    assert model.explain("the keys", decoder="").decoder_tokens == ["<pad>"]
    both = model.explain(
        ["the keys", "the cabinet"], decoder=["schluessel", "schrank und"], keep=()
    )
    assert [b.decoder_tokens for b in both] == [
        ["<pad>", "schluessel"],
        ["<pad>", "schrank", "und"],
    ]
    assert [b.decoder_ids for b in model.explain(["the", "keys"], decoder="hier", keep=())] == [
        model.decoder_prefix("hier")
    ] * 2
    e.save(tmp_path / "saved.safetensors")
    arrays, metadata = read_safetensors(tmp_path / "saved.safetensors")
    assert arrays["decoder_ids"].tolist() == e.decoder_ids
    assert np.array_equal(arrays["decoder_relevance"], e.decoder_relevance)
    assert json.loads(metadata["decoder_tokens"]) == e.decoder_tokens
    assert "decoder_relevance" not in metadata


def test_shown(folder: Path) -> None:
    """Both rows, named, the target after the second, to one scale,
    as text, as a page and in a notebook.
    """
    e = refl.load(folder).explain("the keys to the cabinet", decoder="schluessel zum", keep=())
    text = terminal.text(e)
    assert (
        text.index(ENCODER)
        < text.index("cabinet")
        < text.index(DECODER)
        < text.index("schluessel zum  → ")
    )
    assert text.count(" → ") == 1
    page = html(e)
    for part in (page, fragment(e)):
        assert (
            part.index(ENCODER)
            < part.index("cabinet<")
            < part.index(DECODER)
            < part.index("schluessel<")
        )
    assert "decoder ids" in page
    strongest = max(map(abs, [*e.relevance, *e.decoder_relevance]))
    weaker = [r for r in (e.relevance, e.decoder_relevance) if np.abs(r).max() < strongest]
    assert len(weaker) == 1
    assert level(float(weaker[0].max()), strongest) < LEVELS


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, page = ["--model", str(folder)], tmp_path / "page.html"
    assert (
        main(["explain", "the keys", *model, "--decoder", "schluessel zum", "--html", str(page)])
        == 0
    )
    out = capsys.readouterr().out
    assert ENCODER in out and DECODER in out and "schluessel" in out
    assert DECODER in page.read_text(encoding="utf-8")
    assert main(["explain", "the keys", *model, "--decoder", "schluessel zum", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decoder_tokens"] == ["<pad>", "schluessel", "zum"]
    assert len(found["decoder_relevance"]) == 3
    assert sum(found["relevance"]) + sum(found["decoder_relevance"]) == pytest.approx(
        found["ledger"]["tokens"], rel=1e-4
    )
    assert main(["explain", "the keys", *model, "--decoder-ids", "0", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decoder_ids"] == [0, 9]
    assert (
        main(["explain", "the keys", *model, "--keep", "*.EncDecAttention.o", "--method", "cp-lrp"])
        == 0
    )
    assert "decoder.block.2.layer.1.EncDecAttention.o" in capsys.readouterr().out
    assert main(["trace", "the keys", *model, "--decoder", "schluessel zum", "--json"]) == 0
    operations = {row["site"]: row for row in json.loads(capsys.readouterr().out)["operations"]}
    assert operations["decoder.block.1.layer.1.EncDecAttention.scores"]["shape"] == [3, 3, 3]
    assert (
        operations["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"]["absorbed"][
            "position"
        ]
        != 0
    )


def test_command_line_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "the keys", "--decoder", "a"]) == 2
    assert "no decoder" in capsys.readouterr().err
    assert (
        main(
            ["explain", "the keys", "--model", str(folder), "--decoder", "a", "--decoder-ids", "1"]
        )
        == 2
    )
    assert "not both" in capsys.readouterr().err
