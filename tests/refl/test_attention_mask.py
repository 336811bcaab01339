"""Attention masks of the caller: what is hidden has no say and no relevance, in every net and in
every way that attention is computed; what makes no sense is refused.

(tests/peers/test_attention_mask.py holds the numbers against transformers.)
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend
from surrogate_truth import Truth, apart, close

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.evaluation.scores import Scores
from refl.evaluation.subject import Item, Subject
from refl.explanation import Explanation
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.methods.copies import deleted
from refl.model import Model
from refl.question import Question
from refl.show import figure
from refl.trace import Trace
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import ARCHITECTURES, NEWER, moved, random_model

WITHOUT = {"mamba", "clip", "clip_text_model", "clip_vision_model", "whisper"}
"""That read no text, have no attention, or, a tower of CLIP, end a text by what its tokens are."""

TEXT = {
    kind: c
    for kind, c in (ARCHITECTURES | NEWER).items()
    if "image_size" not in c and kind not in WITHOUT
}
IDS, MASK = [4, 9, 2, 14, 7, 9, 3], [1, 0, 1, 1, 0, 1, 1]
MEAN = NEWER["modernbert"] | {
    "architectures": ["ModernBertForSequenceClassification"],
    "classifier_pooling": "mean",
}

every_net = pytest.mark.parametrize("kind", TEXT)


def net(kind: str, dtype: str = "float64", **options: Any) -> Model:
    return replace(random_model(TEXT[kind] | options, 5, dtype), mask_id=IDS[0])


def asked(model: Model) -> dict[str, Any]:
    return {"decoder": [0, 3]} if model.task == "sequence-to-sequence" else {}


def pairs(length: int = len(IDS), seed: int = 3) -> Any:
    """Which query may look where: itself, and others by chance."""
    drawn = np.random.default_rng(seed).random((length, length)) < 0.6
    return drawn | np.eye(length, dtype=bool)


# -- what is hidden --------------------------------------------------------------------------------


@every_net
def test_what_stands_at_a_hidden_token_changes_nothing(kind: str) -> None:
    """Not a bit of what the others compute."""
    model = net(kind)
    other = [i if m else (i + 3) % 17 for i, m in zip(IDS, MASK, strict=True)]
    a, b = (model.logits(ids, attention_mask=MASK, **asked(model)) for ids in (IDS, other))
    seen = slice(None) if asked(model) else np.flatnonzero(MASK)
    assert np.array_equal(a[seen], b[seen])
    assert not np.array_equal(a, model.logits(IDS, **asked(model)))


@every_net
def test_a_hidden_token_has_no_relevance_and_the_account_closes(kind: str) -> None:
    model = net(kind)
    for method in ("attnlrp", "cp-lrp", "attnlrp-gradient"):
        e = model.explain(IDS, method, attention_mask=MASK, keep=(), audit=True, **asked(model))
        assert not e.relevance[np.array(MASK) == 0].any() and e.relevance[-2:].all()
        assert abs(e.ledger.conservation_error) <= rounding_bound(e)


def test_a_hidden_token_whose_output_is_read_keeps_its_own_way() -> None:
    e = net("bert").explain(IDS, position=1, attention_mask=MASK)
    assert np.flatnonzero(e.relevance).tolist() == [0, 1, 2, 3, 5, 6]


def test_the_mean_of_features_is_not_that_of_hidden_tokens() -> None:
    """As sentence-transformers has it, which refl refuses instead of counting them."""
    model = random_model(ARCHITECTURES["bert"] | {"architectures": ["BertModel"]}, 5)
    mean = refl.coordinate(2, mean=True)
    with pytest.raises(ReflError, match="hides some"):
        model.explain(IDS, target=mean, attention_mask=MASK)
    shown = model.explain(IDS, target=mean, attention_mask=[1] * len(IDS))
    assert shown.explained == model.explain(IDS, target=mean).explained


def test_the_mean_is_over_what_may_be_looked_at() -> None:
    """Of which query may look where it knows nothing: then it is over all tokens."""
    model, t = random_model(MEAN, 5), Trace(random_model(MEAN, 5).weights)
    model.forward(t, model.batch([IDS, IDS[:4]], masks=[MASK, pairs()[:4, :4]]))
    h = t.values["model.final_norm"].array
    assert np.allclose(t.values["head.mean"].array[0, 0], h[0].mean(axis=0), rtol=1e-14)
    assert np.allclose(t.values["head.mean"].array[1, 0], h[1, :4].mean(axis=0), rtol=1e-14)
    t = Trace(model.weights)
    model.forward(t, model.batch([IDS], masks=[MASK]))
    h = t.values["model.final_norm"].array[0, np.flatnonzero(MASK)]
    assert np.allclose(t.values["head.mean"].array[0, 0], h.mean(axis=0), rtol=1e-14)


@every_net
def test_a_mask_that_hides_nothing_more_changes_nothing(kind: str) -> None:
    """All ones, or, where the net is causal, the triangle it has itself."""
    model = net(kind)
    plain = model.explain(IDS, **asked(model))
    masks = [[True] * len(IDS)]
    if model.task == "next-token":
        masks += [np.tril(np.ones((len(IDS), len(IDS)))), np.ones((len(IDS), len(IDS)))]
    for mask in masks:
        e = model.explain(IDS, attention_mask=mask, **asked(model))
        close(e.relevance, plain.relevance, 1e-14 * np.abs(plain.relevance).max())


def test_every_pair_in_a_plain_loop() -> None:
    """Weights of attention in the first block: exp(score) over the sum of those that are allowed,
    one pair at a time.
    """
    for kind, sees in (
        ("llama", lambda j, i: i <= j),
        ("mistral", lambda j, i: j - 3 < i <= j),
        ("bert", lambda j, i: True),
        ("modernbert", lambda j, i: True),
    ):
        model, allowed = net(kind), pairs()
        t = Trace(model.weights)
        model.forward(t, model.batch([IDS], 0, masks=[allowed]))
        site = next(site for site in t.values if site.endswith("probabilities"))
        scores = t.values[site.replace("probabilities", "scores")].array[0, 0]
        for j in range(len(IDS)):
            e = [np.exp(scores[j, i]) * (allowed[j, i] and sees(j, i)) for i in range(len(IDS))]
            want = np.array(e) / sum(e)
            assert np.allclose(t.values[site].array[0, 0, j], want, rtol=1e-13, atol=0)


# -- relevance -------------------------------------------------------------------------------------


class Hiding(Model):
    """A model that has an attention mask in every run, for the surrogate, which asks for none."""

    mask: Any = None

    def batch(self, *what: Any, **how: Any) -> Any:
        return super().batch(*what, **how | {"masks": [self.mask]})


@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        ("llama", MASK),
        ("mistral", pairs()),
        ("bert", pairs()),
        ("distilbert", MASK),
        ("modernbert", pairs()),
        ("t5", MASK),
    ],
    ids=["llama", "mistral", "bert", "distilbert", "modernbert", "t5"],
)
def test_relevance_is_activation_times_surrogate_gradient(kind: str, mask: Any) -> None:
    model = net(kind)
    hiding = Hiding(**vars(model))
    hiding.mask = mask
    truth = Truth(hiding, IDS, asked(model).get("decoder"))
    e = model.explain(
        IDS, "attnlrp-gradient", target=truth.target, attention_mask=mask, keep="*", **asked(model)
    )
    stages = truth.sites(lambda site: site.rpartition(".")[2].isdigit() or "embed" in site)
    assert len(stages) > 2
    for site in stages:
        assert apart(e[site], truth.relevance(site, "attnlrp")) < 1e-9, site


# -- batches and the faster ways -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral", "bert", "modernbert", "roberta"])
def test_a_padded_batch_is_its_members(kind: str) -> None:
    model = net(kind)
    items, masks = [IDS, IDS[:4], IDS[:1], IDS[:6]], [MASK, pairs(4), None, [0, 0, 1, 1, 1, 1]]
    if kind == "modernbert":  # the first token is the one that is read, and has to see something
        masks[3] = [0, 1, 1, 1, 1, 1]
    for each in (masks, [MASK, None, [1], None]):
        together = model.explain(items, attention_mask=each, audit=True)
        for item, mask, e in zip(items, each, together, strict=True):
            alone = model.explain(item, attention_mask=mask, audit=True)
            close(e.relevance, alone.relevance, rounding_bound(alone))
            assert np.array_equal(e.attention_mask, alone.attention_mask)


@pytest.mark.parametrize("form", ["tokens", "pairs"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "bert", "modernbert"])
def test_every_form_of_attention_hides_the_same(kind: str, form: str) -> None:
    """Recorded operations, tiles, recomputed blocks, and runs that are not recorded."""
    model, random = net(kind), np.random.default_rng(1)
    ids = [IDS[0], *random.integers(5, 17, 140).tolist()]
    mask = pairs(141) if form == "pairs" else [1, *random.integers(0, 2, 139).tolist(), 1]
    how = {"attention_mask": mask, "position": None if kind in ("llama", "mistral") else 0}
    plain = model.explain(ids, keep="*", **how)
    for keep, recompute in (((), False), ((), True)):
        e = model.explain(ids, keep=keep, recompute=recompute, **how)
        close(e.relevance, plain.relevance, 1e-11 * np.abs(plain.relevance).max())
    t = Trace(model.weights)
    recorded = model.forward(t, model.batch([ids], every=True, masks=[mask])).array[0]
    close(model.logits(ids, attention_mask=mask), recorded, 1e-12 * np.abs(recorded).max())


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_every_backend(kind: str, backend: Backend) -> None:
    home, masks = net(kind), [MASK, pairs(4)]
    away = moved(home, backend.place)
    for each in (masks, [MASK, None]):
        here, there = (
            m.explain([IDS, IDS[:4]], attention_mask=each, audit=True) for m in (home, away)
        )
        for a, b in zip(here, there, strict=True):
            close(b.relevance, a.relevance, rounding_bound(a))


def test_several_targets_of_one_input() -> None:
    model = net("llama")
    for target, e in zip([3, 5], model.explain_each(IDS, [3, 5], attention_mask=MASK), strict=True):
        alone = model.explain(IDS, target=target, attention_mask=MASK)
        close(e.relevance, alone.relevance, 1e-14 * np.abs(alone.relevance).max())


def test_deleted_tokens_take_their_part_of_the_mask_along() -> None:
    model, allowed = net("llama"), pairs()
    (row, square) = model.readings([IDS, IDS], masks=[MASK, allowed])
    assert deleted(Question(model), row, {2, 4}).reading.attention_mask.tolist() == [1, 0, 1, 1, 1]
    kept = [0, 1, 3, 5, 6]
    found = deleted(Question(model), square, {2, 4}).reading.attention_mask
    assert np.array_equal(found, [[allowed[j, i] for i in kept] for j in kept])


# -- what is kept of it ----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [MASK, pairs()], ids=["tokens", "pairs"])
def test_an_oracle_file_says_what_was_hidden(mask: Any, tmp_path: Path) -> None:
    e = net("llama").explain(IDS, attention_mask=mask)
    e.save(tmp_path / "e.safetensors")
    again = Explanation.load(tmp_path / "e.safetensors")
    assert again.attention_mask.dtype == bool and np.array_equal(again.attention_mask, mask)
    amount = "2 of 7 tokens" if mask is MASK else f"{int((~pairs()).sum())} of 49 pairs of tokens"
    assert again.about["attention mask"] == f"{amount} hidden"
    assert again.as_dict()["attention_mask"] == np.asarray(mask).astype(bool).tolist()
    once_more = net("llama").explain(again.input_ids, attention_mask=again.attention_mask)
    assert np.array_equal(once_more.relevance, again.relevance)


def test_a_file_with_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    net("llama").explain(IDS, attention_mask=MASK, keep=()).save(path)
    arrays, facts = read_safetensors(path)
    for wrong in (np.ones(6, dtype=bool), np.ones(7), np.ones((7, 6), dtype=bool)):
        write_safetensors(path, {**arrays, "attention_mask": wrong}, facts)
        with pytest.raises(refl.ReflError, match="attention mask is of .* expected true or false"):
            Explanation.load(path)


def test_it_is_shown() -> None:
    """In the terminal's text and on the page; and not drawn beside the whole input."""
    e, whole = (net("llama").explain(IDS, target=3, attention_mask=m) for m in (MASK, None))
    assert "2 of 7 tokens hidden" in str(e) and "2 of 7 tokens hidden" in e.html()
    with pytest.raises(refl.ReflError, match="of another attention mask"):
        figure.compare([e, whole])


def test_a_benchmark_judges_scores_of_the_whole_input(tmp_path: Path) -> None:
    model = net("llama")
    subject = Subject.read(model, Item("0", IDS, target=3))
    e = model.explain(IDS, target=3, attention_mask=MASK)
    with pytest.raises(refl.ReflError, match="an attention mask hides"):
        Scores._refuse_other_way(subject, e, "it")
    Scores._refuse_other_way(subject, replace(e, attention_mask=np.ones(7, dtype=bool)), "it")


def test_nothing_is_said_where_there_is_none() -> None:
    e = net("llama").explain(IDS)
    assert e.attention_mask is None and "attention_mask" not in e.as_dict()
    assert "attention mask" not in e.about


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 0, 1], r"shape \(3,\), and the input 7 tokens"),
        (np.ones((7, 6)), r"shape \(7, 6\)"),
        (np.ones((1, 7, 7)), r"shape \(1, 7, 7\)"),
        ([1, 0, 1, 1, 2, 1, 1], "True or False"),
        ([0.0, -np.inf, 0, 0, 0, 0, 0], "True or False"),
        ([0.5] * 7, "True or False"),
        ([None] * 7, "True or False"),
        ([[1, 1], [1]], "True or False"),
        ("1011011", "True or False"),
        (1, "True or False"),
        ([0] * 7, "hides every token"),
        (np.zeros((7, 7)), "hides every token"),
    ],
)
def test_what_is_no_mask(mask: Any, says: str) -> None:
    for ask in (net("llama").explain, net("llama").logits):
        with pytest.raises(refl.ReflError, match=says) as refused:
            ask(IDS, attention_mask=mask)
        assert "\n" not in str(refused.value)


def test_one_for_each_input() -> None:
    with pytest.raises(refl.ReflError, match="1 attention masks for 2 inputs"):
        net("llama").explain([IDS, IDS], attention_mask=[MASK])


@pytest.mark.parametrize(
    ("kind", "mask", "position"),
    [
        ("llama", [0, 0, 1, 1, 1, 1, 1], 1),
        ("mistral", [1, 1, 0, 0, 0, 1, 1], 4),
        ("modernbert", [0, 0, 0, 1, 1, 1, 1], 0),
        ("bert", np.arange(7)[:, None] * np.ones(7) > 2, 0),
    ],
    ids=["causal", "window", "two sides", "pairs"],
)
def test_an_output_that_nothing_is_looked_at_for(kind: str, mask: Any, position: int) -> None:
    with pytest.raises(refl.ReflError, match=f"leaves the token at {position} nothing to look at"):
        net(kind).explain(IDS, attention_mask=mask, position=position)


def test_a_token_that_looks_at_nothing_and_is_looked_at() -> None:
    allowed = np.tril(np.ones((7, 7), dtype=bool))
    allowed[3] = False
    with pytest.raises(refl.ReflError, match="leaves the token at 3 nothing to look at"):
        net("llama").explain(IDS, attention_mask=allowed)
    allowed[:, 3] = False  # now nobody reads what it computes
    assert net("llama").explain(IDS, attention_mask=allowed).relevance[3] == 0


def test_a_classifier_s_own_token_has_to_look_at_something() -> None:
    """A decoder's is the last one that is no padding, whatever the mask says of it."""
    options = {"architectures": ["LlamaForSequenceClassification"], "pad_token_id": 3}
    model = net("llama", **options)  # IDS end with 3
    late = [0, 0, 0, 0, 0, 0, 1]
    with pytest.raises(refl.ReflError, match="leaves the token at 5 nothing to look at"):
        model.explain(IDS, attention_mask=late)
    with pytest.raises(refl.ReflError, match="leaves the token at 0 nothing to look at"):
        net("modernbert", architectures=["ModernBertForSequenceClassification"]).explain(
            IDS, attention_mask=late
        )
    random_model(MEAN, 5).explain(IDS, attention_mask=late)


def test_a_picture_is_looked_at_whole() -> None:
    model = random_model(ARCHITECTURES["vit"], 3)
    with pytest.raises(refl.ReflError, match="takes pictures"):
        model.explain(np.ones((3, 8, 12)), attention_mask=[1] * 9)


def test_pairs_are_not_for_two_readers() -> None:
    with pytest.raises(refl.ReflError, match="has a decoder that looks at the input too"):
        net("t5").explain(IDS, decoder=[0], attention_mask=pairs())


# -- the command line ------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *how: str) -> dict[str, Any]:
    main(["explain", "--ids", "2", "150", "87", "9", "--json", *how])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "--attention-mask", "1,0,1,1")
    assert found["relevance"][1] == 0 and found["attention_mask"] == [True, False, True, True]
    for name in ("rows.json", "rows.npy"):
        rows = np.tril(np.ones((4, 4), dtype=int))
        rows[3, 0] = 0
        path = tmp_path / name
        if name.endswith("npy"):
            np.save(path, rows)
        else:
            path.write_text(json.dumps(rows.tolist()))
        found = said(capsys, "--attention-mask", str(path))
        assert found["attention_mask"] == rows.astype(bool).tolist()
        assert found["about"]["attention mask"] == "7 of 16 pairs of tokens hidden"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no-such"),
        (b"{", "cannot be read"),
        (b'{"a": 1}', "expected True or False"),
        (b"[1, 1]", "4 tokens"),
    ],
)
def test_files_that_are_no_mask(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("no-such" if content is None else "mask.json")
    if content is not None:
        path.write_bytes(content)
    ids = ["--ids", "2", "150", "87", "9"]
    assert main(["explain", *ids, "--attention-mask", str(path)]) == 2
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1


@pytest.mark.parametrize("kind", ["mamba", "clip", "whisper", "clip_vision_model"])
def test_what_has_no_use_for_a_mask_refuses_it(kind: str) -> None:
    model = random_model(NEWER[kind], 5)
    item: Any = IDS
    if kind == "clip":
        item = (IDS, np.ones((3, *model.config.image)))
    elif kind != "mamba":
        item = np.ones((model.config.num_channels, *model.config.image)[-3:])
        item = item[0] if kind == "whisper" else item
    with pytest.raises(refl.ReflError, match="leave attention_mask"):
        model.explain(item, attention_mask=MASK)


@pytest.mark.parametrize("rows", [False, True])
def test_a_hidden_token_does_not_shorten_a_text_of_clip(rows: bool) -> None:
    """It ends at the token of the largest id, the last one here, and hears of all that is shown."""
    model = random_model(NEWER["clip_text_model"], 5)
    ids, hidden = [3, 5, 7, 2, 4, 6, 8], 2
    mask = [[int(i != hidden or i == j) for i in range(7)] for j in range(7)]
    e = model.explain(ids, target=1, attention_mask=mask if rows else mask[-1])
    assert np.flatnonzero(e.relevance).tolist() == [0, 1, 3, 4, 5, 6]
    other = [3, 5, 1, 2, 4, 6, 8]
    assert model.explain(other, target=1, attention_mask=mask[-1]).logit == pytest.approx(
        model.explain(ids, target=1, attention_mask=mask[-1]).logit, rel=1e-12
    )
