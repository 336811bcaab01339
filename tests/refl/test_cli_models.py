"""`refl models FOLDER`: what a checkpoint folder holds, and whether refl loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_files as files
from checkpoint_folders import checkpoint_of
from quantized_files import FORMATS
from safetensors.numpy import save_file

from refl.cli import main
from refl.io.shipped import SHIPPED
from refl.verification.random_models import LLAMA, random_model

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert main(["models", str(folder), *more]) == 0
    out, err = capsys.readouterr()
    assert not err
    return " ".join(out.split()) if not more else out


def counted(folder: Path) -> dict[str, Any]:
    """From the header alone, by this test: dtype -> tensors and bytes."""
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    found: dict[str, Any] = {}
    for name, e in header.items():
        if name != "__metadata__":
            n, size = found.get(e["dtype"], (0, 0))
            start, stop = e["data_offsets"]
            found[e["dtype"]] = n + 1, size + stop - start
    return found


def test_a_plain_checkpoint(capsys: Capture) -> None:
    found = json.loads(told(capsys, SHIPPED, "--json"))
    assert found["loads"] and found["why_not"] is None and found["quantized"] is None
    assert found["tokenizer"] and found["task"] == "next-token"
    stored = {row["dtype"]: (row["tensors"], row["bytes"]) for row in found["storage"]}
    assert stored == counted(SHIPPED)
    assert found["float32_bytes"] == 4 * found["parameters"] == stored["F32"][1]
    out = told(capsys, SHIPPED)
    assert "refl: loads it" in out and "tokenizer.json" in out and "quantized" not in out


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gptq-4-ordered", "gptq: 4 bits, groups of 16, with zero points, groups in any order"),
        ("awq-one-group", "awq: 4 bits, one group"),
        ("int8", "Other libraries also round activations to int8, all but outliers; refl does not"),
        ("nf4-double", "bitsandbytes: 4 bits, nf4, its scales quantized too"),
        ("fp8-tensor", "round activations to float8, by static scales; refl does not"),
        ("ct-float-channel", "a scale for each channel"),
    ],
)
def test_a_quantized_checkpoint(tmp_path: Path, capsys: Capture, kind: str, words: str) -> None:
    """Parameters are those of the model, not of its parts."""
    config = LLAMA | {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    weights = random_model(config | {"num_hidden_layers": 1}, 3).weights
    arrays = {name: np.asarray(weights[name]) for name in weights}
    folder, _ = files.checkpoint(tmp_path, config | {"num_hidden_layers": 1}, arrays, kind)
    out = told(capsys, folder)
    assert words in out and "refl: loads it" in out and "in 7 matrices" in out
    found = json.loads(told(capsys, folder, "--json"))
    assert found["parameters"] == sum(array.size for array in arrays.values())
    stored = {row["dtype"]: (row["tensors"], row["bytes"]) for row in found["storage"]}
    assert stored == counted(folder)
    assert found["quantized"]["method"] == FORMATS[kind][0]["quant_method"]
    assert found["quantized_matrices"] == 7


def test_why_it_is_not_loaded(tmp_path: Path, capsys: Capture) -> None:
    for change, why in (
        ({"model_type": "zebra"}, "does not load it: config.json has model_type 'zebra'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "does not load it: .* 'hqq'"),
    ):
        folder = checkpoint_of(tmp_path / str(len(why)), LLAMA)
        (folder / "config.json").write_text(json.dumps(LLAMA | change))
        found = json.loads(told(capsys, folder, "--json"))
        assert not found["loads"] and found["why_not"]
        assert why.split("'")[-2] in told(capsys, folder)
        assert {row["dtype"] for row in found["storage"]} == {"F32"}


def test_names_that_would_steer_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint_of(tmp_path / "a\x1b[31m", LLAMA)
    (folder / "config.json").write_text(json.dumps({"model_type": "\x1b]0;", "architectures": [7]}))
    assert "\x1b" not in told(capsys, folder)


def test_no_folder(tmp_path: Path, capsys: Capture) -> None:
    assert main(["models", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert not out and "nowhere does not exist" in err


def test_an_empty_folder(tmp_path: Path, capsys: Capture) -> None:
    out = told(capsys, tmp_path)
    assert "no weights that can be read" in out and "does not load it: " in out


def test_the_folder_of_an_adapter(tmp_path: Path, capsys: Capture) -> None:
    """What it is made for, and what to do with it; or why it cannot be used."""
    q, size = "base_model.model.model.layers.0.self_attn.q_proj", (3, 16)
    a, b = np.ones(size, "f4"), np.ones(size[::-1], "f4")
    tensors = {f"{q}.lora_A.weight": a, f"{q}.lora_B.weight": b}
    tensors["base_model.model.score.weight"] = np.ones((2, 16), "f4")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    out = told(capsys, tmp_path)
    assert "LoRA beside 1 layer, of rank 3; 1 whole tensor" in out and "--adapter" in out
    found = json.loads(told(capsys, tmp_path, "--json"))
    assert found["adapter"] == {"layers": 1, "ranks": [3], "whole_tensors": 1}
    assert found["task"] == "class" and not found["loads"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(options | {"use_dora": True}))
    assert "use_dora" in told(capsys, tmp_path)
