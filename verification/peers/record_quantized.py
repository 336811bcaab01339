"""Matrices as libraries that quantize store them, beside what the libraries make of them: recorded
once, so that refl.io.quantized is held against them where they are not installed.

    pip install --no-deps bitsandbytes==0.50.2 compressed-tensors==0.10.2 pydantic auto-gptq==0.7.1
    pip download --no-deps --no-binary :all: autoawq==0.2.9      # and unpack it
    PYTHONPATH=autoawq-0.2.9 python -m refl.verification.peers.record_quantized FOLDER

Each file has the tensors of one module "m", and `outcome`, which the library dequantized on a CPU;
its metadata say which library, and hold the quantization_config. AutoGPTQ and AutoAWQ compute in
float32 here, by their code without kernels; of both only the module of that code is imported, for
the rest of them needs a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROWS, COLUMNS, GROUP = 32, 64, 16

Case = tuple[str, dict[str, Any], dict[str, Any], Any]
"""Library, quantization_config, tensors, outcome."""


def weight(seed: int) -> Any:  # -> (O, I)
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.1


# -- bitsandbytes ----------------------------------------------------------------------------------


def bitsandbytes_4(kind: str, double: bool) -> Case:
    import bitsandbytes
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(COLUMNS, ROWS, bias=False, compress_statistics=double, quant_type=kind)
    layer.weight = Params4bit(weight(1), quant_type=kind, compress_statistics=double, module=layer)
    layer.to("cpu")
    state = layer.weight.quant_state
    if state is None:
        layer.weight = layer.weight._quantize("cpu")
        state = layer.weight.quant_state
    outcome = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    config = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
    }
    return "bitsandbytes", {"quant_method": "bitsandbytes"} | config, layer.state_dict(), outcome


def bitsandbytes_8() -> Case:
    import bitsandbytes
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    layer = Linear8bitLt(COLUMNS, ROWS, bias=False, has_fp16_weights=False)
    layer.weight = Int8Params(weight(2), requires_grad=False, has_fp16_weights=False)
    if layer.weight.SCB is None:
        layer.weight = layer.weight._quantize("cpu")
    outcome = bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return "bitsandbytes", config, layer.state_dict(), outcome


# -- compressed-tensors ----------------------------------------------------------------------------


def compressed(kind: str, **how: Any) -> Case:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**how)
    w = weight(3)
    groups = w.reshape(ROWS, -1, how.get("group_size") or COLUMNS)
    if how["strategy"] == "tensor":
        groups = w.reshape(1, 1, -1)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    if how["strategy"] == "tensor":
        scale, zero = scale.reshape(1), zero.reshape(1)
    compressor = BaseCompressor.load_from_registry(kind)
    stored = compressor.compress_weight(w, scale, args, zero_point=zero)
    stored = {"weight_scale": scale} | stored
    if not args.symmetric and "weight_zero_point" not in stored:
        stored["weight_zero_point"] = zero.to(torch.int8)
    if args.symmetric:
        outcome = compressor.decompress_weight(dict(stored), args)
    else:  # which this version packs, and does not unpack
        q = quantize(w, scale, zero, args, dtype=torch.int8)
        outcome = dequantize(q, scale, zero, args)
    weights = {key: how[key] for key in how}
    config = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return "compressed-tensors", config, stored, outcome


# -- AutoGPTQ and AutoAWQ --------------------------------------------------------------------------


def shells(package: str, *inner: str) -> None:
    """Packages that can be imported from, and that run nothing when they are."""
    for name in (package, *(f"{package}.{path}" for path in inner)):
        if name in sys.modules:
            continue
        found = importlib.util.find_spec(package) if name == package else None
        top = found.origin if found else sys.modules[package].__path__[0] + "/__init__.py"
        assert top is not None
        shell = types.ModuleType(name)
        shell.__path__ = [str(Path(top).parent.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = shell


def parameters(bits: int, signed: bool) -> tuple[Any, Any]:  # -> (O, G) each
    groups = weight(4).reshape(ROWS, -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = torch.round(-low / scale).clamp(1 if signed else 0)
    return scale, zero


def auto_gptq(bits: int, order: bool) -> Case:
    shells("auto_gptq", "nn_modules", "nn_modules.qlinear")
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    layer = QuantLinear(bits, GROUP, COLUMNS, ROWS, False, weight_dtype=torch.float32)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = weight(4)
    scale, zero = parameters(bits, True)
    g_idx = torch.arange(COLUMNS, dtype=torch.int32) // GROUP
    if order:
        g_idx = g_idx[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))]
    layer.pack(linear, scale, zero, g_idx)
    outcome = layer(torch.eye(COLUMNS)).T.contiguous()
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": order}
    return "auto-gptq", config | {"sym": False}, layer.state_dict(), outcome


def auto_awq() -> Case:
    shells("awq", "modules", "modules.linear", "utils")
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = weight(6)
    scale, zero = parameters(4, False)
    layer = WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scale.T.contiguous(), zeros=zero.T.contiguous()
    )
    outcome = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP)
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return "autoawq", config, layer.state_dict(), outcome.T.contiguous()


CASES: dict[str, Callable[[], Case]] = {
    "bitsandbytes-int8": bitsandbytes_8,
    "bitsandbytes-nf4": lambda: bitsandbytes_4("nf4", False),
    "bitsandbytes-nf4-double": lambda: bitsandbytes_4("nf4", True),
    "bitsandbytes-fp4": lambda: bitsandbytes_4("fp4", False),
    "compressed-float-tensor": lambda: compressed(
        "float-quantized", num_bits=8, type="float", strategy="tensor"
    ),
    "compressed-float-channel": lambda: compressed(
        "float-quantized", num_bits=8, type="float", strategy="channel"
    ),
    "compressed-int8": lambda: compressed(
        "int-quantized", num_bits=8, type="int", strategy="channel"
    ),
    "compressed-packed-4": lambda: compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP
    ),
    "compressed-packed-4-zeros": lambda: compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP,
        symmetric=False,
    ),
    "auto-gptq-2": lambda: auto_gptq(2, False),
    "auto-gptq-3": lambda: auto_gptq(3, False),
    "auto-gptq-4": lambda: auto_gptq(4, False),
    "auto-gptq-4-ordered": lambda: auto_gptq(4, True),
    "auto-gptq-8": lambda: auto_gptq(8, False),
    "auto-awq": auto_awq,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    for name, case in CASES.items():
        library, config, tensors, outcome = case()
        stored = {f"m.{part}": t.detach().contiguous() for part, t in tensors.items()}
        said = f"{library} {VERSIONS.get(library) or version(library)}"
        metadata = {"library": said, "quantization_config": json.dumps(config)}
        stored["outcome"] = outcome.detach().float().contiguous()
        save_file(stored, folder / f"{name}.safetensors", metadata)
        print(f"{name}: {said}, {len(tensors)} tensors")


VERSIONS = {"autoawq": "0.2.9", "auto-gptq": "0.7.1"}  # read from folders, not installed

if __name__ == "__main__":
    main()
