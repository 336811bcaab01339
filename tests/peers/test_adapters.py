"""LoRA adapters against peft 0.15: folders that peft saved, and its own forward pass in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree
from transformers_models import _drawn

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
peft = pytest.importorskip("peft", reason="peft is not installed (.ci/run says how)")

LLAMA = {
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BIASED = LLAMA | {"attention_bias": True}
GPT2 = {"vocab_size": 29, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": 29, "d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"pad_token_id": 0}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama, attention": ("LlamaForCausalLM", LLAMA, {"target_modules": ATTENTION, "r": 4}),
    "llama, all, head too": (
        "LlamaForCausalLM",
        LLAMA,
        {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"], "r": 2},
    ),
    "llama, by the root": (
        "LlamaForCausalLM",
        LLAMA,
        {"target_modules": ["q_proj"], "r": 6, "lora_alpha": 5, "use_rslora": True},
    ),
    "llama, patterns": (
        "LlamaForCausalLM",
        LLAMA,
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"down_proj": 3, "^model.layers.0.self_attn.q_proj": 5},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 7, "k_proj|v_proj": 2},
        },
    ),
    "llama, biases": ("LlamaForCausalLM", BIASED, {"target_modules": ["q_proj"], "bias": "all"}),
    "llama, biases of its layers": (
        "LlamaForCausalLM",
        BIASED,
        {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
    ),
    "llama, a norm saved": (
        "LlamaForCausalLM",
        LLAMA,
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    ),
    "llama, one block": (
        "LlamaForCausalLM",
        LLAMA,
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    ),
    "llama, classes": (
        "LlamaForSequenceClassification",
        LLAMA | {"num_labels": 3, "pad_token_id": 0},
        {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2, classes": (
        "GPT2ForSequenceClassification",
        GPT2 | {"num_labels": 4, "pad_token_id": 0},
        {"task_type": "SEQ_CLS"},
    ),
    "bert, classes": (
        "BertForSequenceClassification",
        BERT | {"num_labels": 3},
        {"target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"},
    ),
    "t5": ("T5ForConditionalGeneration", T5, {"target_modules": ["q", "v", "wi", "wo"]}),
}
TABLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama, words": (
        "LlamaForCausalLM",
        LLAMA,
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
}


def scaled(name: str, noise: Any) -> Any:
    return (1 if "norm" in name or "ln_" in name else 0) + 0.3 * noise


def saved(folder: Path, case: str) -> tuple[Any, Path, Path]:
    """A base and an adapter of it, every parameter drawn; the class that wrote the base."""
    kind, options, how = (CASES | TABLES)[case]
    cls = getattr(transformers, kind)
    base = _drawn(cls(cls.config_class(**options)), scaled)
    base.save_pretrained(folder / "base")
    adapted = _drawn(peft.get_peft_model(base, peft.LoraConfig(**how)), scaled)
    if how.get("bias", "none") == "none":  # what is not saved is the base's
        own = cls.from_pretrained(folder / "base").state_dict()
        kept = {name for name, _ in adapted.named_parameters() if trained(name, how)}
        state = adapted.state_dict()
        for name in state.keys() - kept:
            bare = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if (source := bare.replace(".original_module", "")) in own:
                state[name].copy_(own[source])
    adapted.save_pretrained(folder / "adapter")
    return cls, folder / "base", folder / "adapter"


def trained(name: str, how: dict[str, Any]) -> bool:
    return "lora_" in name or "modules_to_save" in name


def wide_twin(cls: Any, base: Path, adapter: Path) -> Any:
    """peft's model in float64; to be run inside `wide`. Files are read outside."""
    loaded = cls.from_pretrained(base)
    loaded.config._attn_implementation = "eager"
    with wide():
        twin = cls(loaded.config).double()
    twin.load_state_dict(loaded.state_dict())
    return peft.PeftModel.from_pretrained(twin, adapter).double().eval()


def theirs(cls: Any, base: Path, adapter: Path, ids: list[int]) -> Any:
    """peft's logits in float64."""
    tokens, adapted = torch.tensor([ids]), wide_twin(cls, base, adapter)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if "T5" in cls.__name__:
        inputs["decoder_input_ids"] = torch.tensor([[0, 3, 5]])
    elif "Bert" not in cls.__name__:
        inputs["use_cache"] = False
    with wide(), torch.no_grad():
        return adapted(**inputs).logits[0].numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*CASES, *TABLES])
def test_the_same_logits_merged_and_apart(tmp_path: Path, case: str) -> None:
    cls, base, adapter = saved(tmp_path, case)
    for ids in ([5], [7, 2], [1, 2, 3, 4, 9, 28, 4]):
        want = theirs(cls, base, adapter, ids)
        for merge in (True, False) if case in CASES else (True,):
            model = refl.load(base, dtype="float64", adapter=adapter, merge=merge)
            decoder = [0, 3, 5] if model.task == "sequence-to-sequence" else None
            agree(model.logits(ids, decoder).reshape(want.shape), want)
    plain = refl.load(base, dtype="float64").logits(ids, decoder).reshape(want.shape)
    assert np.abs(plain - want).max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_relevance_through_the_adapter_is_its_activation_times_its_gradient(tmp_path: Path) -> None:
    """Input x gradient at peft's own modules, against torch: those of lora_A, and behind lora_B."""
    cls, base, adapter = saved(tmp_path, "llama, all, head too")
    ids, outputs = [1, 2, 3, 9, 4], dict[str, Any]()
    adapted = wide_twin(cls, base, adapter)

    def keep(name: str, output: Any) -> None:
        output.retain_grad()
        outputs[name] = output

    for name, module in adapted.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            for parameter in module.parameters():
                parameter.requires_grad_()
            module.register_forward_hook(lambda m, i, o, name=name: keep(name, o))
    tokens = torch.tensor([ids])
    with wide():
        logits = adapted(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
        logits[7].backward()
    model = refl.load(base, dtype="float64", adapter=adapter, merge=False)
    e = model.explain(ids, "input-x-gradient", target=7, keep="*")
    assert len(outputs) == 2 * 15
    for name, o in outputs.items():
        want = (o * o.grad)[0].detach().numpy()
        site = name.removeprefix("base_model.model.").replace("lora_B.default", "adapter")
        got = e[site] if e[site].shape == want.shape else None
        if got is None:  # the head runs at the wanted row alone
            got, want = e[site], want[-1:]
        assert np.abs(got - want).max() <= 1e-10 * np.abs(want).max(), site
