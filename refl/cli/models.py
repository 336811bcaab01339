"""`refl models`: the architectures there are, and the model that ships with refl; of a folder, what
it holds and whether refl loads it.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import MISSING, fields
from typing import Any

from refl.cli.command import add_command
from refl.cli.files import Folder
from refl.cli.folder import contents, lines
from refl.cli.output import print_json, print_lines, width
from refl.show.lines import Line, paragraph

_ABOUT = """\
The architectures there are, with the options of config.json that each reads, and the model that
ships with refl. Of a FOLDER: what it holds, and whether refl loads it.
"""

_MORE = """\
Of a folder it says the architecture and the head, how many parameters there are, how they are
stored (dtypes; quantized by which method, in how many bits), whether there is a tokenizer, and
whether refl loads it, or in one sentence why not. Only headers are read, and tensors that no net
would, so that a large checkpoint takes no longer than a small one.

Quantized weights are read as float8 with scales (fp8, fbgemm_fp8), GPTQ, AWQ (gemm), bitsandbytes
(int8, NF4, FP4) and compressed-tensors: widened one matrix at a time when they are used, exactly as
they are stored. Where other libraries also round activations, refl does not, and this says so.

examples:
  refl models
  refl models path/to/checkpoint
  refl models path/to/checkpoint --json

"""


def add(commands: Any) -> None:
    """The command and its option."""
    summary = "the architectures there are, the shipped model; what a checkpoint folder holds"
    p = add_command(commands, "models", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument(
        "folder",
        nargs="?",
        type=Folder,
        metavar="FOLDER",
        help="a Hugging Face checkpoint: what it holds, and whether refl loads it",
    )


def run(args: argparse.Namespace) -> int:
    if args.folder is not None:
        found = contents(args.folder)
        if args.json:
            print_json(found)
        else:
            print_lines(lines(found), args)
        return 0
    nets, shipped = _architectures(), _shipped()
    if args.json:
        print_json({"architectures": nets, "shipped": shipped})
        return 0
    print_lines(
        [*(line for net in nets for line in _net_lines(net)), *_shipped_lines(shipped)], args
    )
    return 0


def _net_lines(net: dict[str, Any]) -> list[Line]:
    options = ", ".join(
        f"{name}{'' if default is None else f' = {default}'}"
        for name, default in net["options"].items()
    )
    return [
        [(net["model_type"], "bold"), (f"  {net['summary']}", "")],
        *paragraph(f"tested: {net['checked']}", width()),
        *paragraph(f"options of config.json: {options}", width(), "dim"),
        [],
    ]


def _shipped_lines(shipped: dict[str, Any]) -> list[Line]:
    facts = (
        f"{shipped['architecture']}, {shipped['parameters']:,} parameters, {shipped['layers']} "
        f"layers, vocabulary of {shipped['vocabulary']}"
    )
    return [
        [("the model that ships with refl", "bold"), (f"  {facts}", "")],
        *paragraph(shipped["summary"], width()),
        *paragraph(shipped["training"], width()),
        *([("  ", ""), (f'refl explain "{example}"', "cyan")] for example in shipped["examples"]),
        *paragraph(
            f"its {len(shipped['words'])} words: {' '.join(shipped['words'])}", width(), "dim"
        ),
    ]


def _architectures() -> list[dict[str, Any]]:
    from refl.nets import NETS

    return [
        {
            "model_type": name,
            "summary": _first_paragraph(net.__doc__ or ""),
            "checked": net.CHECKED,
            "options": _config_options(net.Config),
        }
        for name, net in NETS.items()
    ]


def _first_paragraph(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split())


def _config_options(config: Any) -> dict[str, Any]:
    """Option -> its default as text; None where config.json must give it."""
    return {f.name: None if f.default is MISSING else json.dumps(f.default) for f in fields(config)}


def _shipped() -> dict[str, Any]:
    from refl.io.config import read_config
    from refl.io.shipped import ABILITIES, EXAMPLES, SHIPPED, TRAINING, words
    from refl.io.weights import Weights

    config = read_config(SHIPPED)
    weights = Weights(SHIPPED, dtype="float32", place=lambda array: array)
    return {
        "architecture": config.get("model_type"),
        "parameters": sum(math.prod(weights.shape(name)) for name in weights),
        "layers": config.get("num_hidden_layers"),
        "vocabulary": config.get("vocab_size"),
        "longest": config.get("max_position_embeddings"),
        "summary": ABILITIES,
        "training": TRAINING,
        "examples": EXAMPLES,
        "words": words(),
    }
