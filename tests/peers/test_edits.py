"""Edits of activations against torch's hooks on transformers' own modules, in float64: of outputs
by forward hooks, of inputs by pre-hooks, of scores and probabilities by a softmax in torch's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree as agree_closely
from transformers_models import random_model, random_t5, random_vision, write_encoder

import refl
from refl.edits import Edit
from refl.question import Question
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

IDS = [3, 14, 15, 9, 26, 5]
PREFIX = [0, 7, 11]

# -- the same in torch -----------------------------------------------------------------------------


def changed(edit: Edit, z: Any) -> Any:
    """z' = f z + a at the index, as one would write it for a tensor."""
    z = z.clone()
    place = (slice(None), *edit.index)
    f, a = (torch.tensor(np.array(v)) for v in (edit.factor, edit.amount))
    z[place] = f * z[place] + a
    return z


def _output(edit: Edit) -> Callable[..., Any]:
    def hook(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (changed(edit, output[0]), *output[1:])
        return changed(edit, output)

    return hook


def _input(edit: Edit) -> Callable[..., Any]:
    def hook(module: Any, arguments: Any, named: Any) -> Any:
        if arguments:
            return (changed(edit, arguments[0]), *arguments[1:]), named
        return arguments, named | {"hidden_states": changed(edit, named["hidden_states"])}

    return hook


@contextmanager
def _softmax(edit: Edit, number: int, before: bool) -> Iterator[None]:
    """The softmax of the attention that is run as the `number`-th."""
    true, count = torch.nn.functional.softmax, iter(range(10**6))

    def edited(x: Any, *rest: Any, **how: Any) -> Any:
        if next(count) != number:
            return true(x, *rest, **how)
        if before:
            return true(changed(edit, x), *rest, **how)
        return changed(edit, true(x, *rest, **how))

    torch.nn.functional.softmax = edited
    try:
        yield
    finally:
        torch.nn.functional.softmax = true


def theirs(loaded: Any, edits: dict[str, Edit], order: list[str], **inputs: Any) -> Any:
    """transformers' logits; `order`: the attentions as they run."""
    with wide(), torch.no_grad(), ExitStack() as stack:
        twin = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        twin.load_state_dict(loaded.state_dict())
        for site, edit in edits.items():
            path, _, end = site.removesuffix(".biased").rpartition(".")
            if end in ("scores", "probabilities"):
                stack.enter_context(_softmax(edit, order.index(path), end == "scores"))
            elif end == "input":
                twin.get_submodule(path).register_forward_pre_hook(_input(edit), with_kwargs=True)
            else:
                twin.get_submodule(site).register_forward_hook(_output(edit))
        return twin.eval()(**inputs).logits.numpy()


def tensors(ids: list[int]) -> dict[str, Any]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}


EDITS = (
    Edit(0.5, 0.3),
    Edit(amount=np.linspace(-1, 1, 6), index=(..., slice(6))),
    Edit(0, 0.7, (-1,)),
    Edit(0),
)
INSIDE = (Edit(0.5, index=(1,)), Edit(0.3, 0.1, (..., 0)))


def _both(sites: list[str], attentions: list[str]) -> list[dict[str, Edit]]:
    """Each site with each edit, and two at a time."""
    found = [{site: EDITS[n % len(EDITS)]} for n, site in enumerate(sites)]
    found += [{site: EDITS[(n + 1) % len(EDITS)]} for n, site in enumerate(sites)]
    for n, path in enumerate(attentions):
        found += [{f"{path}.scores": INSIDE[n % 2]}, {f"{path}.probabilities": INSIDE[(n + 1) % 2]}]
    return [
        *found,
        {sites[0]: EDITS[0], sites[-1]: EDITS[0], f"{attentions[-1]}.scores": INSIDE[0]},
    ]


# -- decoders --------------------------------------------------------------------------------------

DECODERS: dict[str, tuple[list[str], list[str]]] = {
    "llama": (
        [
            "lm_head",
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1.input",
            "model.layers.0.self_attn",
            "model.layers.0.self_attn.input",
            "model.layers.0.self_attn.q_proj.input",
            "model.layers.1.self_attn.v_proj",
            "model.layers.1.mlp",
            "model.layers.0.mlp.input",
            "model.layers.0.mlp.gate_proj.input",
            "model.layers.0.mlp.act_fn",
            "model.layers.1.post_attention_layernorm",
            "model.layers.1.mlp.down_proj.input",
            "model.norm",
        ],
        [f"model.layers.{i}.self_attn" for i in range(2)],
    ),
    "gpt2": (
        [
            "transformer.wte",
            "transformer.wpe",
            "transformer.drop",
            "transformer.h.0",
            "transformer.h.1.input",
            "transformer.h.0.attn",
            "transformer.h.1.attn.c_attn",
            "transformer.h.1.attn.c_proj.input",
            "transformer.h.0.ln_1",
            "transformer.h.2.mlp",
            "transformer.h.2.mlp.act.input",
            "transformer.ln_f.input",
        ],
        [f"transformer.h.{i}.attn" for i in range(3)],
    ),
}


def agree(ours: Any, theirs: Any) -> None:
    """Where everything is switched off, nothing is left on either side."""
    if theirs.any():
        agree_closely(ours, theirs)
    else:
        np.testing.assert_array_equal(ours, 0)


def held_against(model: refl.Model, edits: dict[str, Edit], ids: list[int], expected: Any) -> None:
    """Unrecorded; and recorded, plain or block by block."""
    agree(model.logits(ids, edits=edits), expected)
    for recompute in (False, True):
        question = Question(model, edits=edits, recompute=recompute)
        agree(question.forward(model.readings([ids])).rows[0], expected[-1])


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders(kind: str, tmp_path: Path) -> None:
    loaded = random_model(kind)
    loaded.save_pretrained(tmp_path)
    model = refl.load(tmp_path, dtype="float64")
    sites, attentions = DECODERS[kind]
    for edits in _both(sites, attentions):
        held_against(model, edits, IDS, theirs(loaded, edits, attentions, **tensors(IDS))[0])


def test_above_the_pairs_that_are_held(tmp_path: Path) -> None:
    loaded = random_model("llama", max_position_embeddings=128)
    loaded.save_pretrained(tmp_path)
    model, ids = refl.load(tmp_path, dtype="float64"), [(5 * t * t + t) % 29 for t in range(90)]
    sites, attentions = DECODERS["llama"]
    for edits in _both(sites, attentions)[-5:]:
        held_against(model, edits, ids, theirs(loaded, edits, attentions, **tensors(ids))[0])


def test_generate(tmp_path: Path) -> None:
    """Greedily, the whole text for every token."""
    loaded = random_model("llama")
    loaded.save_pretrained(tmp_path)
    edits = {"model.layers.0.self_attn.scores": INSIDE[0], "model.layers.1.mlp": EDITS[2]}
    model, ids = refl.load(tmp_path, dtype="float64"), list(IDS)
    for _ in range(5):
        z = theirs(loaded, edits, DECODERS["llama"][1], **tensors(ids))
        ids.append(int(z[0, -1].argmax()))
    assert model.generate(IDS, 5, edits=edits) == ids


# -- encoders, both, pictures ----------------------------------------------------------------------


def test_bert(tmp_path: Path) -> None:
    write_encoder(tmp_path, "BertForMaskedLM", {})
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    model, block = refl.load(tmp_path, dtype="float64"), "bert.encoder.layer.0"
    sites = [
        "bert.embeddings.word_embeddings",
        "bert.embeddings.position_embeddings",
        "bert.embeddings",
        block,
        "bert.encoder.layer.1.input",
        f"{block}.attention.input",
        f"{block}.attention.self.query.input",
        f"{block}.attention.self",
        f"{block}.attention.output",
        f"{block}.intermediate",
        f"{block}.output.dense",
        "cls.predictions.transform",
    ]
    attentions = [f"bert.encoder.layer.{i}.attention.self" for i in range(2)]
    for edits in _both(sites, attentions):
        expected = theirs(loaded, edits, attentions, **tensors(IDS))[0]
        agree(model.logits(IDS, edits=edits), expected)
        rows = Question(model, edits=edits, position=2).forward(model.readings([IDS])).rows
        one = {s for s in edits if s.startswith("cls")}  # there the run has a single row
        if not one or edits[one.pop()].index == (...,):
            agree(rows[0], expected[2])


def test_t5(tmp_path: Path) -> None:
    loaded = random_t5()
    loaded.save_pretrained(tmp_path)
    model = refl.load(tmp_path, dtype="float64")
    sites = [
        "encoder.block.0",
        "encoder.block.1.input",
        "encoder",
        "encoder.block.0.layer.0.SelfAttention.input",
        "encoder.block.0.layer.1.DenseReluDense",
        "decoder.block.0",
        "decoder.block.1.layer.1.EncDecAttention",
        "decoder.block.1.layer.1.EncDecAttention.k",
        "decoder.block.1.layer.1.EncDecAttention.v.input",
        "decoder.block.0.layer.2.DenseReluDense.input",
        "decoder.final_layer_norm",
    ]
    encoder = [f"encoder.block.{i}.layer.0.SelfAttention" for i in range(loaded.config.num_layers)]
    decoder = [
        f"decoder.block.{i}.layer.{name}"
        for i in range(loaded.config.num_decoder_layers)
        for name in ("0.SelfAttention", "1.EncDecAttention")
    ]
    inputs = tensors(IDS) | {"decoder_input_ids": torch.tensor([PREFIX]), "use_cache": False}
    for edits in _both(sites, [*encoder, *decoder]):
        if edits.keys() & {"encoder"}:  # its output is a ModelOutput, not a tensor
            edits = {"encoder.final_layer_norm": edits["encoder"]}
        # a softmax reads scores with the bias of distances in them, but between the two sides
        edits = {
            s.replace("SelfAttention.scores", "SelfAttention.scores.biased"): e
            for s, e in edits.items()
        }
        expected = theirs(loaded, edits, [*encoder, *decoder], **inputs)[0]
        agree(model.logits(IDS, PREFIX, edits=edits), expected)
        question = Question(model, edits=edits)
        agree(question.forward(model.readings([IDS], PREFIX)).rows[0], expected[-1])


def test_vit(tmp_path: Path) -> None:
    loaded = random_vision("vit", "ForImageClassification")
    loaded.save_pretrained(tmp_path)
    model = refl.load(tmp_path, dtype="float64")
    x = np.random.default_rng(1).standard_normal((model.config.num_channels, *model.config.image))
    block = "vit.encoder.layer.0"
    sites = [
        "vit.embeddings",
        block,
        "vit.encoder.layer.1.input",
        f"{block}.attention.input",
        f"{block}.attention.attention.key",
        f"{block}.attention.attention.value.input",
        f"{block}.attention.output",
        f"{block}.intermediate",
        f"{block}.layernorm_after",
        "vit.layernorm",
    ]
    attentions = [f"vit.encoder.layer.{i}.attention.attention" for i in range(2)]
    for edits in _both(sites, attentions):
        expected = theirs(loaded, edits, attentions, pixel_values=torch.tensor(x[None]))
        for recompute in (False, True):
            question = Question(model, edits=edits, recompute=recompute)
            agree(question.forward(model.readings([x])).rows, expected)
        agree(model.logits(x, edits=edits), expected)


# -- neurons and heads by their names --------------------------------------------------------------

NAMED: dict[str, tuple[str, str]] = {
    "llama": ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"),
    "gpt2": ("transformer.h.1.mlp.c_proj", "transformer.h.0.attn.c_proj"),
    "qwen3": ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"),
    "gemma2": ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"),
}
"""The modules whose inputs they are: neurons as they stand, heads side by side."""


@pytest.mark.parametrize("positions", [None, -1], ids=["everywhere", "the last token"])
@pytest.mark.parametrize("kind", NAMED)
def test_neurons_and_heads_by_their_names(kind: str, positions: int | None, tmp_path: Path) -> None:
    """The logits, and what is generated: hooks that a user of transformers would write."""
    loaded = random_model(kind)
    loaded.save_pretrained(tmp_path)
    model, (down, out) = refl.load(tmp_path, dtype="float64"), NAMED[kind]
    edited = model.with_edits(
        {"L1.N3": refl.off, "L1.N7": refl.value(2.0), "L0.H1": refl.scale(-3.0)}, positions
    )
    rows = slice(None) if positions is None else slice(positions, None)
    d = model.trace([IDS])[0].values[model.components.attentions[0].context].array.shape[-1]

    def neurons(module: Any, arguments: Any) -> Any:
        z = arguments[0].clone()
        z[:, rows, 3], z[:, rows, 7] = 0, 2
        return (z,)

    def heads(module: Any, arguments: Any) -> Any:
        z = arguments[0].clone()
        z[:, rows, d : 2 * d] *= -3
        return (z,)

    with wide(), torch.no_grad():
        twin = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        twin.load_state_dict(loaded.state_dict())
        twin.eval()
        twin.get_submodule(down).register_forward_pre_hook(neurons)
        twin.get_submodule(out).register_forward_pre_hook(heads)
        agree(edited.logits(IDS), twin(**tensors(IDS)).logits.numpy()[0])
        ids = list(IDS)
        for _ in range(4):
            ids.append(int(twin(**tensors(ids)).logits[0, -1].argmax()))
    assert edited.generate(IDS, 4) == ids
    assert np.abs(edited.logits(IDS) - model.logits(IDS)).max() > 1e-6
