"""`refl dump-torch`: an oracle file of what torch computes, for `refl compare`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import Folder, output
from refl.cli.output import print_json, print_lines, wrote
from refl.errors import ReflError
from refl.extras import install

if TYPE_CHECKING:
    from refl.io.text import Text
    from refl.verification.peers.dump_torch import Input

_ABOUT = """\
Run a Hugging Face checkpoint in torch and write an oracle file of it: activation, gradient and
relevance at the output of every module, for  refl compare.
"""

_MORE = """\
methods: attnlrp and cp-lrp are LXT 2.1's gradient x input form; input-x-gradient is plain autograd
with hooks.
torch and transformers are the extra 'peers', LXT comes beside it:
  {peers}; pip install --no-deps lxt==2.1 zennit==0.5.1

examples:
  refl dump-torch path/to/checkpoint "Once upon a time" --out theirs.safetensors
  refl dump-torch path/to/checkpoint --ids 1 403 407 --out plain.safetensors \\
      --method input-x-gradient
  refl explain "Once upon a time" --model path/to/checkpoint --method attnlrp-gradient \\
      --dtype float64 --save ours.safetensors
  refl compare ours.safetensors theirs.safetensors --model path/to/checkpoint

"""


def _more() -> str:
    return _MORE.replace("{peers}", install("peers"))


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "an oracle file of what torch computes (needs torch and transformers)"
    p = add_command(commands, "dump-torch", summary, run, description=_ABOUT, more=_more)
    p.add_argument("folder", type=Folder, metavar="FOLDER", help="a Hugging Face checkpoint")
    options.text(p, "the input; needs a tokenizer.json; for a model of images, an image file")
    options.ids(p)
    options.decoder(p, "the decoder prefix of an encoder-decoder (default: its start token alone)")
    options.decoder_ids(p, "token ids in place of that, the start token first")
    options.types(p)
    p.add_argument(
        "--out", type=output, required=True, metavar="FILE", help="the oracle file to write"
    )
    p.add_argument(
        "--method",
        choices=("attnlrp", "cp-lrp", "input-x-gradient"),
        default="attnlrp",
        help="default: %(default)s",
    )
    options.target(p, "explain this token, or output by its number (default: the largest logit)")
    p.add_argument(
        "--position",
        type=int,
        metavar="N",
        help="explain the output at this token (default: the mask, or the last)",
    )
    options.dtype(p, "of the computation", "float64")
    p.add_argument(
        "--identity-eps",
        type=float,
        metavar="E",
        help="LXT's eps in f(x)/(x + E) (default: LXT's own, 1e-10)",
    )


def run(args: argparse.Namespace) -> int:
    from refl.verification.peers.dump_torch import dump
    from refl.verification.peers.lxt import IDENTITY_EPS

    e = dump(
        args.folder,
        _input(args),
        method=args.method,
        target=_target(args),
        position=args.position,
        dtype=args.dtype,
        identity_eps=IDENTITY_EPS if args.identity_eps is None else args.identity_eps,
    )
    e.save(args.out)
    sites = list(e)
    if args.json:
        print_json(
            {
                "file": args.out,
                "sites": sites,
                "what": e.what,
                "logit": e.logit,
                "method": args.method,
            }
        )
    else:
        what = f"{len(sites)} sites, {e.what} = {e.logit:.6g}, method {args.method}"
        print_lines(wrote(args.out, what=what), args)
    return 0


def _input(args: argparse.Namespace) -> Input:
    from refl.cli.asked import refuse_two_inputs
    from refl.verification.peers.dump_torch import Input

    refuse_two_inputs(args, "a TEXT")
    if _takes_images(args.folder):
        return _picture(args)
    ids = args.ids if args.text is None else _tokenizer(args.folder).encode(args.text)
    types = None if args.types is None else tuple(args.types)
    return Input(tuple(ids), _decoder(args), types)


def _decoder(args: argparse.Namespace) -> tuple[int, ...] | None:
    """What the decoder has written; None leaves it at its start token."""
    if args.decoder_ids is not None:
        return tuple(args.decoder_ids)
    if args.decoder is None:
        return None
    from refl.io.config import decoder_start_id, read_config

    written = _tokenizer(args.folder).encode_bare(args.decoder) if args.decoder else []
    return (decoder_start_id(read_config(args.folder)), *written)


def _takes_images(folder: str) -> bool:
    """Where refl knows the architecture; of others ids are the input."""
    from refl.io.config import read_config
    from refl.nets import NETS

    net = NETS.get(str(read_config(folder).get("model_type")))
    if net is not None and "num_mel_bins" in net.Config.__dataclass_fields__:
        raise ReflError(
            "a model that takes log-mel features is not run in torch here: run it with "
            "transformers, and write relevance/<site> arrays to a safetensors file"
        )
    return net is not None and "num_channels" in net.Config.__dataclass_fields__


def _picture(args: argparse.Namespace) -> Input:
    """The image file as refl prepares it, so that both sides read the same pixels."""
    from refl.model import load
    from refl.verification.peers.dump_torch import Input

    for option in ("ids", "decoder", "decoder_ids", "types"):
        if getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise ReflError(f"the model takes images: give an image file, and leave --{name} out")
    image = load(args.folder, dtype=args.dtype).read(args.text)
    return Input(pixels=image.pixels, picture=image.picture)


def _target(args: argparse.Namespace) -> int | None:
    from refl.cli.asked import is_number

    if args.target is None:
        return None
    by_number = is_number(args.target)
    return int(args.target) if by_number else _tokenizer(args.folder).id_of(args.target)


def _tokenizer(folder: str) -> Text:
    from refl.cli.asked import no_tokenizer
    from refl.io.text import Text

    text = Text.load(folder)
    if text is None:
        raise no_tokenizer(folder)
    return text
