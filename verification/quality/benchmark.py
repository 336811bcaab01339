r"""How long an attribution takes, and how much memory, beside LXT's gradient x input form on the
same weights:

    python -m refl.verification.quality.benchmark --hidden 768 --layers 12 --heads 12 \
        --intermediate 2048 --tokens 256 1024 --threads 2 --repeat 5

A random Llama is written to a temporary folder and both sides load it: refl, and transformers'
LlamaForCausalLM under LXT's patches, in float32, with the same number of threads, the same ids and
the same target. Runs alternate, refl, LXT, refl, LXT, after one of each that is not counted. refl
is run with keep=(), its fast path; LXT with the attention transformers takes by default (sdpa), in
two ways: logits for the last token only, which is what refl computes, and logits of every token,
which is how its documentation has one call it. The relevance of both sides is compared.

Peak memory is measured apart, each side in a process of its own: the peak of the run, and how far
that is above what the process held with the weights loaded and used once. Without torch,
transformers and LXT only refl's own figures are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality import measuring

SIZES = {
    "hidden": 768,
    "layers": 12,
    "heads": 12,
    "intermediate": 2048,
    "vocabulary": 32000,
    "threads": 2,
    "repeat": 5,
}
FLOAT32 = 1e-4
"""How far the two may differ, of the largest relevance:
float32 through a dozen blocks; measured about 1e-6.
"""
HELD = "held with its weights loaded"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the two sides do not agree."""
    options = _parser().parse_args(arguments)
    measuring.limit_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(options.peak, Path(options.folder), options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), options)
        print(describe(options))
        agreed = [report(Path(folder), tokens, options) for tokens in options.tokens]
    return 0 if all(agreed) else 1


def _parser() -> argparse.ArgumentParser:
    parser = measuring.parser("benchmark", __doc__, SIZES)
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[256, 1024],
        help="lengths of the text; default 256 1024",
    )
    parser.add_argument(
        "--method",
        choices=("attnlrp-gradient", "cp-lrp"),
        default="attnlrp-gradient",
        help="what both sides compute",
    )
    parser.add_argument("--peak", choices=("refl", "LXT"), help=argparse.SUPPRESS)
    return parser


def write_llama(folder: Path, options: argparse.Namespace) -> None:
    """At a scale that keeps activations near 1."""
    from refl.nets import llama

    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "vocab_size": options.vocabulary,
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "max_position_embeddings": max(options.tokens),
    }
    measuring.write_checkpoint(folder, llama, raw, lambda name, shape: shape[1] ** -0.5)


def describe(options: argparse.Namespace) -> str:
    """What was run, with which libraries, on what."""
    names = ("numpy", "torch", "transformers", "lxt")
    libraries = ", ".join(f"{name} {measuring.version(name)}" for name in names)
    return (
        f"Llama with hidden {options.hidden}, {options.layers} layers, {options.heads} heads, "
        f"intermediate {options.intermediate}, vocabulary {options.vocabulary}, tied head, "
        f"random weights, float32; {options.method}\n"
        f"Python {platform.python_version()}, {libraries}\n"
        f"{measuring.machine()}, {options.threads} threads asked for; in use: "
        f"{measuring.threads_in_use(options.threads)}\n"
        f"load of the machine at the start: {measuring.load()}"
    )


# -- the two sides ---------------------------------------------------------------------------------


class Refl:
    """One model, loaded; `forward` and `sweep` are the two halves
    of `Model.explain(..., keep=())`.
    """

    def __init__(self, folder: Path, method: str) -> None:
        import refl
        from refl.rules.published import METHODS

        self.model = refl.load(folder)
        self.composite = METHODS[method]

    def forward(self, ids: list[int]) -> tuple[Any, Any]:
        return self.model.trace([ids], plain=False)

    def sweep(self, trace: Any, logits: Any, target: int | None = None) -> tuple[Any, int]:
        """Relevance of the tokens, and the target."""
        import numpy as np

        from refl.sweep import Sweep

        z = logits.array[0, 0]
        target = int(z.argmax()) if target is None else target
        seed = np.zeros_like(logits.array)
        seed[0, 0, target] = 1
        site = "model.embed_tokens"
        swept = Sweep(self.composite, keep=lambda names: site in names, release=True).run(
            trace, logits, seed
        )
        return (swept.propagated[site] * swept.activations[site])[0].sum(axis=-1), target


class Lxt:
    """transformers' Llama under LXT's patches; `run` is one forward and backward."""

    def __init__(self, folder: Path, method: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
        self.model.requires_grad_(False)  # only the gradient at the embeddings is wanted
        self.method = method

    def patched(self) -> AbstractContextManager[None]:
        from refl.verification.peers import lxt

        return lxt.patched("llama", self.method)

    def run(self, ids: list[int], target: int, last: int = 1) -> Any:
        """`last`: how many tokens to compute logits for, 0 for all."""
        import torch

        embedded = self.model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        self.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=last).logits[
            0, -1, target
        ].backward()
        return (embedded * embedded.grad)[0].sum(-1).detach().numpy()


def lxt_is_missing() -> str | None:
    """Why LXT cannot be run beside refl; None where it can."""
    missing = [
        name for name in ("torch", "transformers", "lxt") if importlib.util.find_spec(name) is None
    ]
    return f"{', '.join(missing)} not installed" if missing else None


# -- one length ------------------------------------------------------------------------------------

REFL = ("refl forward", "refl sweep", "refl forward + sweep")
LXT = ("LXT forward + backward", "LXT, logits of every token")


def report(folder: Path, tokens: int, options: argparse.Namespace) -> bool:
    """One length: the table, printed. True where both sides agree, or there is one side only."""
    ids = measuring.ids_of(tokens, options.vocabulary)
    times, ours, theirs = measured_run(folder, ids, options)
    print(
        f"\n{tokens} tokens                     median      min   (seconds, {options.repeat} runs)"
    )
    for name in times:
        print(f"  {name:26} {median(times[name]):8.4f} {min(times[name]):8.4f}")
    sweep, forward = (median(times[name]) for name in ("refl sweep", "refl forward"))
    print(f"  sweep / forward            {sweep / forward:8.2f}")
    _print_ratios(times)
    for side in ("refl", "LXT") if theirs is not None else ("refl",):
        print(f"  peak memory, {side:11} {_peak_in_words(side, folder, tokens, options)}")
    return theirs is None or _agree(ours, theirs)


def _print_ratios(times: dict[str, list[float]]) -> None:
    if LXT[0] not in times:
        print(f"  LXT: {lxt_is_missing()}")
        return
    whole = times["refl forward + sweep"]
    for name, label in zip(LXT, ("refl / LXT", "refl / LXT, every token"), strict=True):
        medians, least = median(whole) / median(times[name]), min(whole) / min(times[name])
        print(f"  {label:26} {medians:8.2f} {least:8.2f}")


def measured_run(
    folder: Path, ids: list[int], options: argparse.Namespace
) -> tuple[dict[str, list[float]], Any, Any]:
    """Alternating runs -> seconds by name, and the relevance of each side."""
    ours = Refl(folder, options.method)
    peer = None if lxt_is_missing() else Lxt(folder, options.method, options.threads)
    times: dict[str, list[float]] = {name: [] for name in (REFL if peer is None else REFL + LXT)}
    relevance = theirs = None
    with nullcontext() if peer is None else peer.patched():
        for number in range(options.repeat + 1):
            relevance, theirs, seconds = _alternate(ours, peer, ids)
            if number:  # the first of each warms up: weights are mapped, caches filled
                for name, each in zip(times, seconds, strict=True):
                    times[name].append(each)
    return times, relevance, theirs


def _alternate(ours: Refl, peer: Lxt | None, ids: list[int]) -> tuple[Any, Any, list[float]]:
    """Relevance of both sides, and seconds, as REFL and LXT name them."""
    (trace, logits), forward = measuring.timed(partial(ours.forward, ids))
    (relevance, target), sweep = measuring.timed(partial(ours.sweep, trace, logits))
    seconds, theirs = [forward, sweep, forward + sweep], None
    del trace, logits
    if peer is not None:
        theirs, last = measuring.timed(partial(peer.run, ids, target))
        _, every = measuring.timed(partial(peer.run, ids, target, last=0))
        seconds += [last, every]
    return relevance, theirs, seconds


def _agree(ours: Any, theirs: Any) -> bool:
    deviation = abs(ours - theirs).max() / abs(ours).max()
    agreed = bool(deviation < FLOAT32)
    print(
        f"  {'same relevance' if agreed else 'DIFFERENT RELEVANCE'}: the largest deviation "
        f"is {deviation:.1e} of the largest relevance"
    )
    return agreed


# -- memory ----------------------------------------------------------------------------------------


def _peak_in_words(side: str, folder: Path, tokens: int, options: argparse.Namespace) -> str:
    asked = ["--peak", side, "--folder", folder, "--tokens", tokens]
    asked += ["--threads", options.threads, "--method", options.method]
    return measuring.peak_in_words(measuring.in_a_process("benchmark", *asked), 8, HELD)


def peak(side: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: a one-token run maps every weight, then the run that is measured."""
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    run, context = _one_side(side, folder, options)
    with context:
        run(measuring.ids_of(1, vocabulary))
        _, found = measuring.peak_of(lambda: run(measuring.ids_of(options.tokens[0], vocabulary)))
    return found


def _one_side(
    side: str, folder: Path, options: argparse.Namespace
) -> tuple[Callable[[list[int]], Any], AbstractContextManager[None]]:
    if side == "refl":
        ours = Refl(folder, options.method)
        return lambda ids: ours.sweep(*ours.forward(ids), target=0), nullcontext()
    peer = Lxt(folder, options.method, int(os.environ[measuring.THREAD_VARIABLES[0]]))
    return lambda ids: peer.run(ids, 0), peer.patched()


if __name__ == "__main__":
    sys.exit(main())
