"""dump_torch: what torch computes, as an oracle file, beside refl's own on every architecture; and
the command.

input-x-gradient is plain autograd on transformers as it is: an independent implementation of every
forward pass and every derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from transformers_models import ENCODERS, random_model, random_t5, random_vision, write_encoder

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.verification.compare.compare import compare
from refl.verification.compare.comparison import Comparison
from refl.verification.peers import lxt
from refl.verification.peers.dump_torch import Input, _method, dump

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)

IDS = np.random.default_rng(5).integers(4, 29, 9).tolist()
Write = Callable[[Path], Any]


def decoder(kind: str, **options: Any) -> Write:
    def write(folder: Path) -> None:
        random_model(kind, **options).save_pretrained(folder)

    return write


def encoder(case: str) -> Write:
    return lambda folder: write_encoder(folder, *ENCODERS[case])


def t5(**options: Any) -> Write:
    return lambda folder: random_t5(**options).save_pretrained(folder)


def vision(kind: str, head: str = "ForImageClassification") -> Write:
    return lambda folder: random_vision(kind, head).save_pretrained(folder)


MODELS: dict[str, tuple[Write, int]] = {
    "llama": (decoder("llama", num_key_value_heads=2, attention_bias=True), 20),
    "gpt2": (decoder("gpt2"), 20),
    "mistral": (decoder("mistral", sliding_window=3, num_key_value_heads=2), 20),
    "qwen2": (decoder("qwen2", num_key_value_heads=2), 20),
    "qwen3": (decoder("qwen3", num_key_value_heads=2), 20),
    "phi": (decoder("phi"), 20),
    "gemma2": (decoder("gemma2"), 20),
    "gemma3": (decoder("gemma3_text"), 20),
    "mixtral": (decoder("mixtral"), 30),
    "qwen3-moe": (decoder("qwen3_moe"), 30),
    "bert": (encoder("bert"), 20),
    "bert-classes": (encoder("bert-classes"), 20),
    "roberta": (encoder("roberta"), 20),
    "camembert-classes": (encoder("camembert-classes"), 20),
    "albert-inner-groups": (encoder("albert-inner-groups"), 40),
    "albert-classes": (encoder("albert-classes"), 20),
    "t5": (t5(), 50),
    "flan": (t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False), 50),
    "vit": (vision("vit"), 20),
    "deit": (vision("deit"), 20),
    "deit-two-heads": (vision("deit", "ForImageClassificationWithTeacher"), 20),
}
"""How a checkpoint is written, and how many sites both sides have at least."""


def both(folder: Path, method: str, **options: Any) -> tuple[Explanation, Explanation]:
    """refl's explanation and torch's, of one random input; the row is given, for there is no
    tokenizer that knows a mask.
    """
    model = refl.load(folder, dtype="float64")
    ours = {"attnlrp": "attnlrp-gradient"}.get(method, method)
    if model.takes_images:
        pixels = np.random.default_rng(1).standard_normal(
            (model.config.num_channels, *model.config.image)
        )
        return model.explain(pixels, ours), dump(
            folder, Input(pixels=pixels), method=method, **options
        )
    decoder = (0, 7, 11) if model.task == "sequence-to-sequence" else None
    position = 4 if model.task == "masked-token" else None
    e = model.explain(
        IDS, ours, position=position, decoder=None if decoder is None else list(decoder)
    )
    return e, dump(
        folder,
        Input(tuple(IDS), decoder=decoder),
        method=method,
        target=e.target_id,
        position=position,
        **options,
    )


def agree(c: Comparison, least: int) -> None:
    """At no fewer sites than `least`, well within what rounding may do."""
    print(
        f"\n{len(c.errors)} sites, worst {max(e.relative for e in c.errors):.1e}, excess "
        f"{max(e.excess for e in c.errors):.3f}"
    )
    assert c.equal, str(c)
    assert len(c.errors) >= least
    assert not c.shape_mismatches
    assert max(e.excess for e in (*c.errors, *c.forward)) < 0.3


@pytest.mark.parametrize("name", MODELS)
def test_input_x_gradient(tmp_path: Path, name: str) -> None:
    """Every module of every architecture: activations, gradients and relevance, to rounding."""
    write, least = MODELS[name]
    write(tmp_path)
    e, theirs = both(tmp_path, "input-x-gradient")
    agree(compare(e, theirs), least)
    np.testing.assert_allclose(
        theirs.relevance, e.relevance, rtol=0, atol=1e-12 * np.abs(e.relevance).max()
    )
    assert theirs.logit == pytest.approx(e.logit, rel=1e-12)


PATCHED = {
    "llama": ("attnlrp", "cp-lrp"),
    "gpt2": ("attnlrp", "cp-lrp"),
    "qwen2": ("attnlrp", "cp-lrp"),
    "qwen3": ("attnlrp", "cp-lrp"),
    "gemma3": ("attnlrp", "cp-lrp"),
    "bert": ("attnlrp",),
    "bert-classes": ("attnlrp",),
}


@pytest.fixture
def lxt_is_here() -> None:
    try:
        lxt.load()
    except ImportError as absent:
        pytest.skip(f"LXT is not usable here: {absent}")


def test_an_eps_of_one_s_own_is_said() -> None:
    assert "changed: f(x)/(x + 0.001)" in _method("attnlrp", "torch", 1e-3).summary
    for method, eps in (("attnlrp", lxt.IDENTITY_EPS), ("input-x-gradient", 1e-3)):
        assert "changed" not in _method(method, "torch", eps).summary


@pytest.mark.usefixtures("lxt_is_here")
@pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n, methods in PATCHED.items() for m in methods]
)
def test_lxt(tmp_path: Path, name: str, method: str) -> None:
    """LXT's gradient x input form without its eps in f(x)/(x + eps), at every module; with it, the
    comparison says that it is that.
    """
    write, least = MODELS[name]
    write(tmp_path)
    e, theirs = both(tmp_path, method, identity_eps=0.0)
    agree(compare(e, theirs), least)
    theirs = both(tmp_path, method)[1]
    c = compare(e, theirs, model=refl.load(tmp_path, dtype="float64"))
    found = c.diagnoses[:1]
    assert c.equal or [d.alternative.mistakes for d in found if d.equal] == [("ratio-eps",)], str(c)
    assert compare(e, theirs, tolerance=1e-5).equal


@pytest.mark.usefixtures("lxt_is_here")
def test_on_a_trained_model(tmp_path: Path) -> None:
    """stories260K by the command, file against file: LXT's eps is seen, and said; with a tolerance
    the two are equal.
    """
    folder, ours, theirs = (
        checkpoint("stories260K"),
        tmp_path / "ours.safetensors",
        tmp_path / "lxt.safetensors",
    )
    refl.load(folder, dtype="float64").explain(
        "Once upon a time there was a", "attnlrp-gradient"
    ).save(ours)
    assert (
        main(["dump-torch", str(folder), "Once upon a time there was a", "--out", str(theirs)]) == 0
    )
    c = compare(ours, theirs, model=folder)
    assert c.first is not None and c.first.site == "model.layers.4.mlp.gate_proj"
    assert c.rules == ["model.layers.4.mlp.act_fn (activation, rule identity in A)"]
    assert [d.alternative.mistakes for d in c.diagnoses if d.equal] == [("ratio-eps",)]
    assert len(c.errors) > 70
    assert compare(ours, theirs, tolerance=1e-7).equal
    loaded = refl.Explanation.load(theirs)
    assert loaded.tokens == Explanation.load(ours).tokens
    assert loaded.recorded is None and "not recorded" in str(loaded)
    with pytest.raises(ReflError, match="keeps no conservation ledger"):
        loaded.ledger  # noqa: B018
    assert loaded.provenance["ran"].endswith("LXT 2.1")
    assert next(iter(loaded)) == "lm_head"


@pytest.mark.parametrize("kind", ["opt", "gpt_neox"])
def test_a_model_refl_does_not_know(tmp_path: Path, kind: str) -> None:
    """Any model that transformers runs: the same gradient at the embeddings as without hooks, and a
    file that is read back.
    """
    options = {
        "vocab_size": 29,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 24,
    }
    model = (
        transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **options)
        )
        .double()
        .eval()
    )
    model.save_pretrained(tmp_path)
    e = dump(tmp_path, IDS, target=3)
    x = model.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
    model(inputs_embeds=x, attention_mask=torch.ones(1, len(IDS), dtype=torch.int64)).logits[
        0, -1, 3
    ].backward()
    expected = (x * x.grad)[0].sum(-1).detach().numpy()
    # float32 islands stand there
    np.testing.assert_allclose(e.relevance, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    e.save(tmp_path / "e.safetensors")
    back = Explanation.load(tmp_path / "e.safetensors")
    assert back.as_dict() == e.as_dict() and list(back) == list(e) != []
    assert all(np.array_equal(back[site], e[site]) for site in e)


def test_float32(tmp_path: Path) -> None:
    """In float32 on both sides, rounding is wider, and the comparison knows."""
    decoder("llama")(tmp_path)
    e = refl.load(tmp_path, dtype="float32").explain(IDS, "input-x-gradient")
    theirs = dump(tmp_path, IDS, target=e.target_id, dtype="float32")
    assert theirs.activation("model.norm").dtype == np.float32
    agree(compare(e, theirs), 20)


def test_a_wrong_weight_is_a_wrong_forward(tmp_path: Path) -> None:
    """Activations part where the weight is, and that is said before anything else."""
    decoder("llama")(tmp_path)
    e = refl.load(tmp_path, dtype="float64").explain(IDS, "input-x-gradient")
    other = tmp_path / "other"
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-3
    model.save_pretrained(other)
    c = compare(e, dump(other, IDS, target=e.target_id))
    assert c.first_forward is not None and c.first_forward.site == "model.layers.1.self_attn.k_proj"
    assert "forward passes differ" in str(c)
    assert any("checkpoints are not the same" in note for note in c.notes)


def test_hooks_and_patches_are_gone(tmp_path: Path) -> None:
    decoder("llama")(tmp_path)
    before = dump(tmp_path, IDS, target=3)
    if find_spec("lxt") is not None:
        dump(tmp_path, IDS, method="attnlrp", target=3)
    assert compare(before, dump(tmp_path, IDS, target=3)).equal
    assert torch.float32 is not torch.float64, "it is, inside `wide`"


REFUSED: dict[str, tuple[list[str], str]] = {
    "no-input": ([], "give a TEXT or --ids"),
    "both": (["text", "--ids", "1"], "not both"),
    "no-tokenizer": (["text"], "no tokenizer.json"),
    "no-token": (["--ids", "1", "99"], "cannot run this input"),
    "no-number": (["--ids", "1", "--target", "9" * 5000], "no tokenizer.json"),
    "no-output": (["--ids", "1", "--target", "40"], "outside the model's 29 outputs"),
    "no-position": (["--ids", "1", "--position", "3"], "outside the 1 rows"),
    "no-patches": (["--ids", "1", "--method", "attnlrp"], "has no attnlrp for model type phi"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    if case == "no-patches":
        pytest.importorskip("lxt", reason="LXT is not installed")
    decoder("phi")(tmp_path)
    options, said = REFUSED[case]
    options = options if "--method" in options else [*options, "--method", "input-x-gradient"]
    assert (
        main(["dump-torch", str(tmp_path), *options, "--out", str(tmp_path / "out.safetensors")])
        == 2
    )
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_the_name_of_a_file_attacks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder("phi")(tmp_path)
    ids = ["--ids", "1", "--method", "input-x-gradient"]
    assert main(["dump-torch", str(tmp_path), *ids, "--out", str(tmp_path / "a\x1b[31mb")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {tmp_path}/a\\x1b[31mb: ") and out.count("\n") == 1
    assert "\x1b" not in out


def test_no_head(tmp_path: Path) -> None:
    encoder("bert-no-head")(tmp_path)
    with pytest.raises(ReflError, match="without a head"):
        dump(tmp_path, IDS)


# -- the command, for a decoder and for a picture --------------------------------------------------


def both_files(folder: Path, ours: list[str], theirs: list[str]) -> Comparison:
    """What `refl explain` and `refl dump-torch` write of one input, compared."""
    a, b = folder / "ours", folder / "theirs"
    e = ["explain", "--model", str(folder), "--method", "input-x-gradient", "--dtype", "float64"]
    assert main([*e, *ours, "--save", str(a)]) == 0
    method = ["--method", "input-x-gradient", "--out", str(b)]
    assert main(["dump-torch", str(folder), *theirs, *method]) == 0
    assert main(["compare", str(a), str(b)]) == 0
    left, right = Explanation.load(a), Explanation.load(b)
    assert right.input_ids == left.input_ids and right.decoder_ids == left.decoder_ids
    np.testing.assert_allclose(right.relevance, left.relevance, atol=1e-12)
    return compare(a, b)


@pytest.mark.parametrize("prefix", [[], ["--decoder-ids", "0", "7", "11"]])
def test_the_command_runs_a_decoder(
    prefix: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default at its start token, as refl does."""
    t5()(tmp_path)
    ids = ["--ids", *map(str, IDS), *prefix]
    agree(both_files(tmp_path, ids, ids), 50)


def test_the_command_reads_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")
    vision("vit")(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": false}')
    height, width = refl.load(tmp_path).config.image
    levels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    image.fromarray(levels).save(tmp_path / "picture.png")
    picture = [str(tmp_path / "picture.png")]
    agree(both_files(tmp_path, picture, picture), 20)
    e = Explanation.load(tmp_path / "theirs")
    np.testing.assert_array_equal(e.picture, levels)
    assert e.patch == Explanation.load(tmp_path / "ours").patch and e.patches.sum() != 0
    out = ["--out", str(tmp_path / "again")]
    assert main(["dump-torch", str(tmp_path), "--ids", "1", *out]) == 2
    assert "give an image file" in capsys.readouterr().err
