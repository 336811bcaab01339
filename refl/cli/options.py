"""Options that several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from refl.cli.files import Folder, Source

SEEDS = ("logit", "log-probability", "probability")
STABILIZERS = ("sign", "plain", "none")
DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda")


def explaining(p: argparse.ArgumentParser) -> None:
    """What to explain, of which input and model, and how."""
    _input(p)
    of_model(p, "of the computation; float64 for oracles")
    _method(p.add_argument_group("what to explain, and how"))


def one_output(p: argparse.ArgumentParser) -> None:
    """What to explain, of which input and model, where the methods are the command's own."""
    _input(p)
    of_model(p, default="float64")
    g = p.add_argument_group("what to explain")
    _output(g)
    seed(g)
    p.set_defaults(at=None)


def text(p: Any, what: str) -> None:
    p.add_argument("text", nargs="?", type=Source, metavar="TEXT", help=what)


def decoder(p: Any, what: str) -> None:
    p.add_argument("--decoder", metavar="TEXT", help=what)


def answer(p: Any, what: str) -> None:
    """The answer to explain, as a text or as ids."""
    p.add_argument("--answer", metavar="TEXT", help=what)
    _numbers(p, "--answer-ids", "ID", "token ids in place of that")


PARTS = """\
NAME is L2.N17 (neuron 17 of the third block), L2.H1 (a head), L2.E0.N17 (of an expert),
decoder.L0.N3 or decoder.L0.cross.H2 (of an encoder-decoder)."""


def part(p: Any) -> None:
    p.add_argument("name", metavar="NAME", help="the neuron, or the head")


def ids(p: Any) -> None:
    _numbers(p, "--ids", "ID", "token ids in place of TEXT")


def types(p: Any) -> None:
    what = "token type ids, for models that tell two sentences apart (default: all 0)"
    _numbers(p, "--types", "N", what)


def attention_mask(p: Any) -> None:
    p.add_argument(
        "--attention-mask",
        type=Source,
        metavar="MASK",
        help="which tokens may be looked at, 1,1,0,1 say; or a .npy or JSON file with a number for "
        "each token, or with rows of them, (T, T): which query may look at which key",
    )


def decoder_ids(p: Any, what: str) -> None:
    _numbers(p, "--decoder-ids", "ID", what)


def _numbers(p: Any, name: str, metavar: str, what: str) -> None:
    p.add_argument(name, nargs="+", type=int, metavar=metavar, help=what)


def of_model(
    p: argparse.ArgumentParser, computed: str = "of the computation", default: str = "float32"
) -> Any:
    """Which checkpoint, computed how and where: their group, for what else is of the model."""
    g = p.add_argument_group("the model")
    model(g)
    adapter(g)
    dtype(g, computed, default)
    device(g)
    ignore(g)
    return g


def model(p: Any) -> None:
    p.add_argument(
        "--model",
        type=Folder,
        metavar="FOLDER",
        help="a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json (default: "
        "the small model that ships with refl)",
    )


def adapter(p: Any) -> None:
    p.add_argument(
        "--adapter",
        type=Folder,
        metavar="FOLDER",
        help="a LoRA adapter of that checkpoint, as peft saves it: adapter_config.json, "
        "adapter_model.safetensors",
    )
    p.add_argument(
        "--apart",
        action="store_true",
        help="keep the adapter apart: what goes through it has sites of its own "
        "(*.lora_A.default, *.adapter); by default it is merged into the weights",
    )


def dtype(p: Any, what: str, default: str = "float32") -> None:
    p.add_argument(
        "--dtype", choices=DTYPES, default=default, help=f"{what} (default: %(default)s)"
    )


def ignore(p: Any) -> None:
    p.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options of config.json known to change nothing in the forward pass",
    )
    p.add_argument(
        "--ignore-tensors",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="tensors of the checkpoint to go on without, of those that the net does not read",
    )


def edits(g: Any) -> None:
    """What is changed in every run."""
    g.add_argument(
        "--edit",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[@T]=CHANGE",
        help="change a neuron (L3.N17), a head (L3.H2) or a site in every run: =off, =0.5 (that "
        "value in place), =x2 (twice what it was); @T at these tokens alone: @-1, @2,5, @1:4",
    )


def _input(p: argparse.ArgumentParser) -> None:
    text(
        p,
        "the input; - reads it from standard input; for a model of images, an image file; for "
        "Whisper, a file .npy of the log-mel features that transformers' WhisperFeatureExtractor "
        "makes of sound",
    )
    ids(p)
    types(p)
    p.add_argument(
        "--pair",
        metavar="TEXT",
        help="a second text, for encoders that read two (a question and its context): joined to "
        "the first as the checkpoint's tokenizer does",
    )
    p.add_argument(
        "--image",
        type=Source,
        metavar="FILE",
        help="for a model that compares a picture with texts: the picture, and TEXT is the text",
    )
    p.add_argument(
        "--among",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="further texts that the picture is compared with: all are classes, and the most "
        "similar is explained, or that of --target",
    )
    decoder(
        p,
        "the decoder prefix of an encoder-decoder: what it has said so far; its next token is "
        "explained",
    )
    decoder_ids(p, "token ids in place of that, the start token first")


def device(g: Any) -> None:
    g.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="cuda needs CuPy and an NVIDIA GPU (default: %(default)s)",
    )


def _method(g: Any) -> None:
    _rules(g)
    _explained(g)
    _stabilizers(g)
    seed(g)


def how(g: Any) -> None:
    """The method and the seed, where what is explained is said elsewhere."""
    _rules(g)
    _stabilizers(g)
    seed(g)


def _rules(g: Any) -> None:
    g.add_argument(
        "--method",
        type=Source,
        default="attnlrp",
        metavar="NAME|FILE.toml",
        help="how relevance is found (default: %(default)s)",
    )
    g.add_argument(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="options of the method, as refl methods NAME lists them",
    )


def _stabilizers(g: Any) -> None:
    g.add_argument(
        "--eps",
        type=float,
        metavar="E",
        help="the stabilizer's size in every rule that has one, above 0 (default: the method's)",
    )
    g.add_argument(
        "--stabilizer",
        choices=STABILIZERS,
        help="its form: eps with the sign of the denominator, without it, or none (default: the "
        "method's)",
    )


def seed(g: Any) -> None:
    g.add_argument(
        "--seed",
        choices=SEEDS,
        default="logit",
        help="what of the target is explained (default: %(default)s)",
    )


def target(g: Any, what: str) -> None:
    g.add_argument("--target", metavar="TOKEN", help=what)


def contrast(g: Any) -> None:
    g.add_argument(
        "--contrast",
        nargs=2,
        metavar="TOKEN",
        help="explain the logit of the first less that of the second",
    )


def _output(g: Any) -> None:
    target(
        g,
        "explain this token; an id where the model has no tokenizer (default: the most likely "
        "next one). Of a model that finds answers 17-21, the first and the last token, start=17 or "
        "end=21",
    )
    contrast(g)
    g.add_argument(
        "--position",
        type=int,
        metavar="N",
        help="explain the output at this token, counted from 0, or from the end if negative "
        "(default: the mask, or the last)",
    )
    _features(g)


def _features(g: Any) -> None:
    """Of a checkpoint without a head."""
    g.add_argument(
        "--coordinate",
        type=int,
        metavar="N",
        help="explain this one of the features of a checkpoint without a head",
    )
    g.add_argument(
        "--cosine",
        type=Source,
        metavar="FILE",
        help="explain the cosine of those features to a vector: .npy or .safetensors",
    )
    g.add_argument(
        "--mean",
        action="store_true",
        default=None,
        help="with these, of the mean over all tokens, as sentence embeddings are formed",
    )


def _explained(g: Any) -> None:
    _output(g)
    g.add_argument(
        "--at",
        nargs="+",
        metavar=("SITE", "N"),
        help="explain the activation of a neuron: its site, and its index there",
    )


def refuse_both(args: argparse.Namespace, one: str, other: str) -> None:
    """Two options for the same thing."""
    if getattr(args, one) is not None and getattr(args, other) is not None:
        names = (f"--{name.replace('_', '-')}" for name in (one, other))
        args.parser.error(f"give {' or '.join(names)}, not both")
