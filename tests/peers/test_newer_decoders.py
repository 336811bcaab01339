"""Phi-3, SmolLM 3, Granite, Command R, Command R7B, GPT-NeoX, StarCoder 2, StableLM and OPT: the
forward pass against transformers' own in float64, with every option they read; relevance against
torch's gradients of transformers' modules, as they are and with parts held constant.

SmolLM 3 is not in transformers 4.52.4: it is held against Llama's module there, whose rotary
positions are switched off (cos 1, sin 0) and whose masks are exchanged in the same blocks. LXT 2.1
patches none of these nets.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import ROPE, agree, draw, reference, same_forward
from transformers_models import SMALL, Make, _drawn, _scaled, random_model

import refl
from refl.nets.config import ACTIVATIONS, OTHER_ACTIVATIONS
from refl.rules import activation
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

LENGTHS = (1, 2, 3, 13)
"""Windows are of three tokens."""

# -- longrope --------------------------------------------------------------------------------------

SHORT, LONG = [1.0, 1.3], [1.7, 6.5]
PHI3_LONG: dict[str, Any] = {
    "max_position_embeddings": 32,
    "original_max_position_embeddings": 8,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [*SHORT, 0.9],
    "long_factor": [*LONG, 2.2],
}
AROUND = (1, 7, 8, 9, 13)
"""Eight tokens are turned by the short factors, nine by the long ones."""

# -- options ---------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "phi3": {
        "plain": {},
        "groups-window": {"num_key_value_heads": 2, "sliding_window": 3},
        "window-off": {"sliding_window": 3, "use_sliding_window": False},
        "window-1": {"sliding_window": 1, "num_hidden_layers": 1},
        "whole-heads": {"partial_rotary_factor": 1.0, "rope_theta": 250000.0, "head_dim": 6},
        "wide-heads": {"head_dim": 10, "partial_rotary_factor": 0.4, "num_key_value_heads": 1},
        "tied-gelu": {"tie_word_embeddings": True, "hidden_act": "gelu", "rms_norm_eps": 1e-2},
        "longrope": PHI3_LONG,
        "longrope-tied": PHI3_LONG | {"tie_word_embeddings": True, "sliding_window": 5},
    },
    "granite": {
        "plain": {},
        "scalars": {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.015625,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        "groups": {"num_key_value_heads": 2, "tie_word_embeddings": True},
        "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        "no-scalars": {
            "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        "act": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2, "rope_theta": 500.0},
        "rope-scaling": {"rope_scaling": ROPE["llama3"], "num_hidden_layers": 1},
        "longrope": {"max_position_embeddings": 8, "rope_scaling": LONGROPE},
    },
    "cohere": {
        "plain": {},
        "qk-norm": {"use_qk_norm": True, "layer_norm_eps": 1e-2},
        "qk-norm-groups": {"use_qk_norm": True, "num_key_value_heads": 2},
        "biases": {"attention_bias": True, "num_key_value_heads": 1, "use_qk_norm": True},
        "untied": {"tie_word_embeddings": False, "logit_scale": 0.0625, "num_hidden_layers": 3},
        "wide-heads": {"head_dim": 10, "num_key_value_heads": 2, "hidden_act": "gelu"},
        "rope-scaling": {"rope_scaling": ROPE["llama3"], "rope_theta": 500.0},
        "dynamic": {
            "rope_scaling": ROPE["dynamic"],
            "max_position_embeddings": 8,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
        },
    },
    "cohere2": {
        "plain": {},
        "pattern-4": {"sliding_window_pattern": 4, "num_hidden_layers": 5},
        "all-full": {"sliding_window_pattern": 1},
        "window-1": {"sliding_window": 1, "num_key_value_heads": 2},
        "wide-window": {"sliding_window": 100, "num_key_value_heads": 1, "logit_scale": 0.25},
        "biases": {"attention_bias": True, "tie_word_embeddings": False},
        "act": {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "rope_theta": 500.0},
        "rope-scaling": {"rope_scaling": ROPE["yarn"], "sliding_window_pattern": 3},
    },
    "gpt_neox": {
        "plain": {},
        "sequential": {"use_parallel_residual": False, "num_hidden_layers": 3},
        "quarter": {"hidden_size": 32, "rotary_pct": 0.25, "rotary_emb_base": 500},
        "whole-heads": {"rotary_pct": 1.0, "hidden_act": "gelu_new"},
        "no-biases": {"attention_bias": False, "layer_norm_eps": 1e-2},
        "tied": {"tie_word_embeddings": True, "hidden_act": "relu", "num_hidden_layers": 1},
        "one-head": {"num_attention_heads": 1, "intermediate_size": 5, "rotary_pct": 0.5},
        "rope-scaling": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    },
    "starcoder2": {
        "plain": {},
        "groups-window": {"num_key_value_heads": 2, "sliding_window": 3},
        "no-biases": {"use_bias": False, "num_key_value_heads": 1},
        "untied": {"tie_word_embeddings": False, "norm_epsilon": 1e-2, "rope_theta": 500.0},
        "wide-heads": {"head_dim": 10, "hidden_act": "relu", "num_hidden_layers": 3},
        "rope-scaling": {"rope_scaling": ROPE["yarn"], "sliding_window": 1},
    },
    "stablelm": {
        "plain": {},
        "parallel": {"use_parallel_residual": True, "num_key_value_heads": 2},
        "biases": {"use_qkv_bias": True, "num_key_value_heads": 1},
        "whole-heads": {"partial_rotary_factor": 1.0, "hidden_act": "gelu"},
        "tied": {"tie_word_embeddings": True, "layer_norm_eps": 1e-2, "rope_theta": 500.0},
        "parallel-biases": {"use_parallel_residual": True, "use_qkv_bias": True},
        "rope-scaling": {"rope_scaling": ROPE["llama3"], "num_hidden_layers": 1},
    },
    "opt": {
        "plain": {},
        "post-norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        "projected": {"word_embed_proj_dim": 10, "num_hidden_layers": 3},
        "no-norm-at-end": {"_remove_final_layer_norm": True, "activation_function": "gelu"},
        "untied": {"tie_word_embeddings": False, "num_attention_heads": 1, "ffn_dim": 5},
        "no-biases": {"enable_bias": False, "num_attention_heads": 12},
        "post-norm-wide": {"do_layer_norm_before": False, "activation_function": "gelu_fast"},
    },
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(k, o, id=f"{k}-{n}") for k, each in OPTIONS.items() for n, o in each.items()],
)
def test_options(make: Make, kind: str, options: dict[str, Any]) -> None:
    same_forward(
        make(kind, **options), (*LENGTHS, *AROUND) if "longrope" in str(options) else LENGTHS
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("phi3", {"sliding_window": 3}),
        ("phi3", PHI3_LONG),
        ("llama", {"max_position_embeddings": 8, "rope_scaling": LONGROPE}),
        ("granite", {}),
        ("cohere", {"use_qk_norm": True}),
        ("cohere2", {}),
        ("gpt_neox", {}),
        ("starcoder2", {"sliding_window": 3}),
        ("stablelm", {"use_parallel_residual": True}),
        ("opt", {}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ],
)
def test_padded_batch(make: Make, kind: str, options: dict[str, Any]) -> None:
    """Right padding, as refl pads. Under longrope the longest decides for all, here and there;
    `explain` puts nothing beside a text that changes it.
    """
    folder = make(kind, **options)
    texts = [draw(5), draw(13), draw(1), draw(2)]
    padded = [text + [0] * (13 - len(text)) for text in texts]
    theirs = reference(folder, padded, [[i < len(text) for i in range(13)] for text in texts])
    model = refl.load(folder, dtype="float64")
    _, logits = model.trace(texts)
    agree(logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(texts)]))
    for item, one in zip(texts, model.explain(texts, keep=()), strict=True):
        alone = reference(folder, [item])[0, -1]
        assert one.logit == pytest.approx(alone.max(), rel=1e-12)


@pytest.mark.parametrize("kind", OPTIONS)
def test_stored_in_half_precision(tmp_path: Path, kind: str) -> None:
    """bfloat16 is widened exactly."""
    random_model(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    same_forward(tmp_path, (13,))


# -- longrope --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_position_embeddings": 8, "rope_scaling": LONGROPE},
        {"max_position_embeddings": 8, "rope_scaling": LONGROPE | {"attention_factor": 1.4}},
        {"max_position_embeddings": 8, "rope_scaling": LONGROPE | {"factor": 1.0}},
        {"original_max_position_embeddings": 8, "rope_scaling": LONGROPE},
    ],
)
def test_longrope_of_a_llama(make: Make, options: dict[str, Any]) -> None:
    """With factor 1 a text has at most max_position_embeddings tokens."""
    factor = options["rope_scaling"]["factor"]
    same_forward(make("llama", **options), AROUND if factor > 1 else AROUND[:3])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("phi3", PHI3_LONG),
        ("llama", {"max_position_embeddings": 8, "rope_scaling": LONGROPE}),
        ("llama", {"max_position_embeddings": 8, "rope_scaling": ROPE["dynamic"]}),
    ],
)
def test_a_text_that_grows_is_what_it_is_as_a_whole(
    make: Make, kind: str, options: dict[str, Any]
) -> None:
    """Each new token is the largest logit of transformers' run of the whole text, whose keys are
    all turned by its length. (Generation there keeps keys that were turned by other factors, but
    for Phi-3, which drops them once.)
    """
    folder = make(kind, **options)
    model = refl.load(folder, dtype="float64")
    model.eos_ids = ()
    for start in (3, 8, 9):
        ids = draw(start)
        for _ in range(9):
            ids.append(int(reference(folder, [ids])[0, -1].argmax()))
        assert model.generate(draw(start), 9) == ids


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_older_names_of_longrope(make: Make, kind: str) -> None:
    folder = make("phi3", **PHI3_LONG)
    edit(folder, {"rope_scaling": PHI3_LONG["rope_scaling"] | {"type": kind}})
    same_forward(folder, AROUND)


def edit(folder: Path, options: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))


# -- activations by their names ------------------------------------------------------------------


def test_the_names_of_activations() -> None:
    """Every name that transformers 4.52.4 has is known or refused by name; a known one is the same
    function, to the rounding of x/2 and x tanh(u)/2, of which transformers adds up its gelus. (Its
    gelu_accurate and gelu_new are one formula; gelu_python_tanh came later.)
    """
    names = set(transformers.activations.ACT2CLS)
    assert names <= set(ACTIVATIONS) | set(OTHER_ACTIVATIONS)
    assert set(ACTIVATIONS) - names == {"gelu_python_tanh"}
    x = np.concatenate([np.linspace(-9, 9, 2001), [1e-9, -1e-30, 0.0, 40.0, -40.0]])
    for name in names & set(ACTIVATIONS):
        theirs = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
        ours = activation.forward(x, kind=ACTIVATIONS[name])
        size = np.abs(x) * (1 + np.maximum(x, 0) * (name == "relu2"))
        assert np.all(np.abs(ours - theirs) <= 1e-15 * np.maximum(size, np.abs(theirs))), name


def test_gelu_fast_is_another_function() -> None:
    """sqrt(2/pi) is 0.79788456080286..."""
    fast, tanh = (activation.forward(np.ones(1), kind=k)[0] for k in ("gelu_fast", "gelu_tanh"))
    assert 1e-13 < tanh - fast < 1e-11


@pytest.mark.parametrize("name", ["gelu_fast", "relu2", "gelu_python", "gelu_accurate"])
@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_a_net_with_it(make: Make, kind: str, name: str) -> None:
    same_forward(make(kind, hidden_act=name))


# -- SmolLM 3, beside Llama's module ---------------------------------------------------------------

WINDOWS = {"use_sliding_window": True, "sliding_window": 3}
SMOLLM3: dict[str, tuple[dict[str, Any], list[int], list[int | None]]] = {
    "plain": ({}, [1, 1, 1, 0, 1], [None] * 5),
    "every-second": ({"no_rope_layer_interval": 2}, [1, 0, 1, 0, 1], [None] * 5),
    "every-one": ({"no_rope_layer_interval": 1}, [0] * 5, [None] * 5),
    "named": ({"no_rope_layers": [0, 1, 1, 0, 0]}, [0, 1, 1, 0, 0], [None] * 5),
    "windows": (
        WINDOWS | {"no_rope_layer_interval": 2},
        [1, 0, 1, 0, 1],
        [None, 3, None, 3, None],
    ),
    "windows-named": (
        WINDOWS | {"layer_types": ["sliding_attention", *["full_attention"] * 4]},
        [1, 1, 1, 0, 1],
        [3, None, None, None, None],
    ),
    "windows-unused": ({"sliding_window": 3}, [1, 1, 1, 0, 1], [None] * 5),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "rope_scaling": ROPE["yarn"]},
    ],
)
@pytest.mark.parametrize("said", SMOLLM3)
def test_smollm3(make: Make, said: str, options: dict[str, Any]) -> None:
    changed, rotary, windows = SMOLLM3[said]
    folder = make("llama", num_hidden_layers=5, **options)
    expected = {n: llama_with(folder, draw(n), rotary, windows) for n in (*LENGTHS, 14)}
    rename(folder, changed)
    model = refl.load(folder, dtype="float64")
    assert model.net.MODEL_TYPE == "smollm3"
    for length, logits in expected.items():
        agree(model.logits(draw(length)), logits)


def rename(folder: Path, options: dict[str, Any], cls: str = "SmolLM3ForCausalLM") -> None:
    edit(folder, {"model_type": "smollm3", "architectures": [cls]} | options)


def llama_with(folder: Path, ids: list[int], rotary: list[int], windows: list[int | None]) -> Any:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with wide(), torch.no_grad():
        model, tokens = widened(loaded), torch.tensor([ids])
        exchange(model.model.layers, rotary, windows)
        mask = torch.ones_like(tokens)
        return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[0].numpy()


def exchange(layers: Any, rotary: list[int], windows: list[int | None]) -> None:
    for layer, turned, window in zip(layers, rotary, windows, strict=True):
        layer.register_forward_pre_hook(masked(window), with_kwargs=True)
        if not turned:
            layer.self_attn.register_forward_pre_hook(unturned, with_kwargs=True)


def masked(window: int | None) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        hidden = torch.ones_like(mask, dtype=torch.bool).tril(-(window or mask.shape[-1]))
        low = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask.masked_fill(hidden, low)}

    return hook


def unturned(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    cos, sin = kwargs["position_embeddings"]
    nothing = torch.ones_like(cos), torch.zeros_like(sin)
    return args, kwargs | {"position_embeddings": nothing}


def test_smollm3_padded_batch(make: Make) -> None:
    folder, texts = make("llama", num_hidden_layers=5), [draw(5), draw(13), draw(1), draw(2)]
    changed, rotary, windows = SMOLLM3["windows"]
    alone = [llama_with(folder, text, rotary, windows)[-1] for text in texts]
    rename(folder, changed)
    _, logits = refl.load(folder, dtype="float64").trace(texts)
    agree(logits.array[:, 0], np.stack(alone))


# -- classifiers -----------------------------------------------------------------------------------

CLASSIFIERS = {
    "phi3": "Phi3",
    "gpt_neox": "GPTNeoX",
    "smollm3": "Llama",
    "starcoder2": "Starcoder2",
    "stablelm": "StableLm",
    "opt": "OPT",
}
TEXTS = ([5], [1, 2, 4, 9], [1, 2, 3, 3], [3, 7, 3, 8, 3], [3, 3])


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("labels", [2, 4, 5])
@pytest.mark.parametrize("pad", [None, 3])
def test_a_classifier(tmp_path: Path, kind: str, labels: int, pad: int | None) -> None:
    """`score` on the last token that is no padding."""
    cls = getattr(transformers, f"{CLASSIFIERS[kind]}ForSequenceClassification")
    like = "llama" if kind == "smollm3" else kind
    options = SMALL[like] | {"num_labels": labels, "pad_token_id": pad, "num_hidden_layers": 4}
    made = cls(transformers.AutoConfig.for_model(like, **options))
    _drawn(made, _scaled).save_pretrained(tmp_path)
    if kind == "smollm3":
        rename(tmp_path, {}, "SmolLM3ForSequenceClassification")
    model = refl.load(tmp_path, dtype="float64")
    assert model.task == "class" and model.config.labels == labels
    for ids in TEXTS:
        tokens = torch.tensor([ids])
        with wide(), torch.no_grad():
            made.config._attn_implementation = "eager"
            twin = cls(made.config).double().eval()
            twin.load_state_dict(made.state_dict())
            if kind == "smollm3":
                exchange(twin.model.layers, [1, 1, 1, 0], [None] * 4)
            mask = torch.ones_like(tokens)
            theirs = twin(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        agree(model.logits(ids), theirs.numpy())


# -- relevance -------------------------------------------------------------------------------------

RELEVANCE: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"num_key_value_heads": 2, "sliding_window": 3}),
    "phi3-longrope": ("phi3", PHI3_LONG),
    "granite": ("granite", {"num_key_value_heads": 2}),
    "granite-biases": ("granite", {"attention_bias": True, "mlp_bias": True}),
    "cohere": ("cohere", {"use_qk_norm": True, "num_key_value_heads": 2}),
    "cohere-plain": ("cohere", {}),
    "cohere2": ("cohere2", {"num_key_value_heads": 2}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "starcoder2": ("starcoder2", {"num_key_value_heads": 2, "sliding_window": 3}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "opt": ("opt", {}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
}
BLOCKS = {"gpt_neox": "gpt_neox.layers.{}", "opt": "model.decoder.layers.{}"}
UNGATED = {"gpt_neox": "gelu", "starcoder2": "gelu", "opt": "relu"}
"""Their activation, which is no gate."""


@pytest.mark.parametrize("method", ["input-x-gradient", "cp-lrp"])
@pytest.mark.parametrize(("kind", "options"), RELEVANCE.values(), ids=RELEVANCE)
def test_relevance_is_that_of_torch(
    make: Make, kind: str, options: dict[str, Any], method: str
) -> None:
    """x times torch's gradient on transformers' module, at the embeddings and behind every block:
    as it is for input x gradient; for CP-LRP with what the method calls constant detached.
    """
    folder = make(kind, **options)
    e = refl.load(folder, dtype="float64").explain(draw(11), method)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    frozen = freezing(kind) if method == "cp-lrp" else untouched()
    with wide(), frozen:
        logit, relevance, blocks = backward(widened(loaded), kind, draw(11), e.target_id)
    assert logit == pytest.approx(e.logit, rel=1e-12)
    assert apart(e.relevance, relevance) < 1e-11
    for block, theirs in blocks.items():
        assert apart(e[block], theirs) < 1e-11, block


def apart(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def backward(model: Any, kind: str, ids: list[int], target: int) -> tuple[float, Any, Any]:
    tokens, kept = torch.tensor([ids]), {}
    for i in range(model.config.num_hidden_layers):
        name = BLOCKS.get(kind, "model.layers.{}").format(i)
        model.get_submodule(name).register_forward_hook(keep(kept, name))
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    mask = torch.ones_like(tokens)
    out = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
    out[0, -1, target].backward()
    blocks = {name: (x * x.grad)[0].detach().numpy() for name, x in kept.items()}
    relevance = (embedded * embedded.grad)[0].sum(-1).detach().numpy()
    return out[0, -1, target].item(), relevance, blocks


def keep(kept: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output
        kept[name].retain_grad()

    return hook


@contextmanager
def untouched() -> Iterator[None]:
    yield


NORMS = {
    "phi3": "Phi3RMSNorm",
    "granite": "GraniteRMSNorm",
    "cohere": "CohereLayerNorm",
    "cohere2": "Cohere2LayerNorm",
}


@contextmanager
def freezing(kind: str) -> Iterator[None]:
    """CP-LRP: norms divide by a constant, probabilities and gates are constants; an activation that
    is no gate is multiplied by the constant f(x)/x.
    """
    modeling: Any = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    norm = getattr(modeling, NORMS[kind]) if kind in NORMS else torch.nn.LayerNorm
    act = getattr(torch.nn.functional, UNGATED.get(kind, "silu"))
    softmax = torch.nn.functional.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "forward", rms_norm if "RMS" in norm.__name__ else layer_norm)
        patch.setattr(torch.nn.functional, "softmax", lambda *a, **k: softmax(*a, **k).detach())
        patch.setattr(torch.nn.functional, act.__name__, constant(act, kind))
        yield


def constant(act: Any, kind: str) -> Callable[..., Any]:
    if kind in UNGATED:
        return lambda x, **how: x * (act(x, **how) / x).detach()
    return lambda x, **how: act(x, **how).detach()


def rms_norm(self: Any, x: Any) -> Any:
    return (
        self.weight
        * x
        * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).detach()
    )


def layer_norm(self: Any, x: Any) -> Any:
    eps = self.eps if isinstance(self, torch.nn.LayerNorm) else self.variance_epsilon
    x = x - x.mean(-1, keepdim=True)
    x = self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps).detach()
    return x + self.bias if isinstance(self, torch.nn.LayerNorm) else x
