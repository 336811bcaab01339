"""How long an attribution takes, and how much memory, beside LXT's gradient x input form on the
same weights:

    python -m refl.verification.quality.benchmark --hidden 768 --layers 12 --heads 12 --intermediate
    2048 --tokens 256 1024 --threads 2 --repeat 5

A random Llama is written to a temporary folder and both sides load it: refl, and transformers'
LlamaForCausalLM under LXT's patches, in float32, with the same number of threads, the same ids and
the same target. Runs alternate, refl, LXT, refl, LXT, after one of each that is not counted. refl
is run with keep=(), its fast path; LXT with the attention transformers takes by default (sdpa), in
two ways: logits for the last token only, which is what refl computes, and logits of every token,
which is how its documentation has one call it. The relevance of both sides is compared.

Peak memory is measured apart, each side in a process of its own, as the operating system counts
resident memory (VmHWM of /proc on Linux, ru_maxrss elsewhere): the peak of the run, and how far
that is above what the process held with the weights loaded and used once. Without torch,
transformers and LXT only refl's own figures are printed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

FLOAT32 = 1e-4
"""How far the two may differ, of the largest relevance: float32 through a dozen blocks; measured
about 1e-6.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the two sides do not agree."""
    options = _parser().parse_args(arguments)
    _limit_threads(options.threads)
    if options.peak:
        print(
            json.dumps(_peak(options.peak, Path(options.folder), options.tokens[0], options.method))
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), options)
        print(describe(options))
        agreed = [report(Path(folder), tokens, options) for tokens in options.tokens]
    return 0 if all(agreed) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.benchmark",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    for name, default in {
        "hidden": 768, "layers": 12, "heads": 12, "intermediate": 2048, "vocabulary": 32000, "threads": 2, "repeat": 5,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
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
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def _limit_threads(threads: int) -> None:
    """Linear algebra libraries read these once, when they are loaded."""
    if "numpy" in sys.modules:
        print(
            "NumPy was imported before the number of threads was set: its own setting stands",
            file=sys.stderr,
        )
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})


# -- the model -------------------------------------------------------------------------------------


def write_llama(folder: Path, options: argparse.Namespace) -> None:
    """A checkpoint of random numbers, at a scale that keeps activations near 1."""
    import numpy as np

    from refl.io.safetensors import write_safetensors
    from refl.nets import llama
    from refl.nets.config import parse

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
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    draw = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> Any:
        noise = draw.standard_normal(shape, dtype=np.float32)
        return 1 + noise / 10 if len(shape) == 1 else noise * np.float32(shape[1] ** -0.5)

    shapes = llama.shapes(parse(llama.Config, raw))
    write_safetensors(
        folder / "model.safetensors",
        {name: tensor(shape) for name, shape, _ in shapes},
        {"format": "pt"},
    )


def ids_of(tokens: int, vocabulary: int) -> list[int]:
    return [(7919 * i + 13) % vocabulary for i in range(tokens)]


# -- the two sides ---------------------------------------------------------------------------------


class Refl:
    """One model, loaded; `forward` and `sweep` are the two halves of `Model.explain(...,
    keep=())`.
    """

    def __init__(self, folder: Path, method: str) -> None:
        import refl
        from refl.rules.composites import METHODS

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


# -- time ------------------------------------------------------------------------------------------


def report(folder: Path, tokens: int, options: argparse.Namespace) -> bool:
    """One length: the table, printed. True where both sides agree, or there is one side only."""
    times, ours, theirs = measure(folder, ids_of(tokens, options.vocabulary), options)
    print(
        f"\n{tokens} tokens                     median      min   (seconds, {options.repeat} runs)"
    )
    for name in times:
        print(f"  {name:26} {median(times[name]):8.4f} {min(times[name]):8.4f}")
    print(
        "  sweep / forward            "
        f"{median(times['refl sweep']) / median(times['refl forward']):8.2f}"
    )
    if theirs is None:
        print(f"  LXT: {lxt_is_missing()}")
    else:
        whole = times["refl forward + sweep"]
        for name, label in (
            ("LXT forward + backward", "refl / LXT"),
            ("LXT, logits of every token", "refl / LXT, every token"),
        ):
            print(
                f"  {label:26} {median(whole) / median(times[name]):8.2f} "
                f"{min(whole) / min(times[name]):8.2f}"
            )
    for side in ("refl", "LXT") if theirs is not None else ("refl",):
        print(f"  peak memory, {side:11} {_ask_peak(side, folder, tokens, options)}")
    return theirs is None or _agree(ours, theirs)


def measure(
    folder: Path, ids: list[int], options: argparse.Namespace
) -> tuple[dict[str, list[float]], Any, Any]:
    """Alternating runs -> seconds by name, and the relevance of each side."""
    ours = Refl(folder, options.method)
    peer = None if lxt_is_missing() else Lxt(folder, options.method, options.threads)
    names = ["refl forward", "refl sweep", "refl forward + sweep"] + (
        [] if peer is None else ["LXT forward + backward", "LXT, logits of every token"]
    )
    times: dict[str, list[float]] = {name: [] for name in names}
    theirs = None
    with nullcontext() if peer is None else peer.patched():
        for number in range(options.repeat + 1):
            (trace, logits), forward = _timed(lambda: ours.forward(ids))
            (relevance, target), sweep = _timed(lambda t=trace, z=logits: ours.sweep(t, z))  # type: ignore[misc]
            taken = [forward, sweep, forward + sweep]
            del trace, logits
            if peer is not None:
                theirs, other = _timed(lambda a=target: peer.run(ids, a))  # type: ignore[misc]
                _, every = _timed(lambda a=target: peer.run(ids, a, last=0))  # type: ignore[misc]
                taken += [other, every]
            if number:  # the first of each warms up: weights are mapped, caches filled
                for name, seconds in zip(names, taken, strict=True):
                    times[name].append(seconds)
    return times, relevance, theirs


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _agree(ours: Any, theirs: Any) -> bool:
    deviation = abs(ours - theirs).max() / abs(ours).max()
    agreed = bool(deviation < FLOAT32)
    print(
        f"  {'same relevance' if agreed else 'DIFFERENT RELEVANCE'}: the largest deviation "
        f"is {deviation:.1e} of the largest relevance"
    )
    return agreed


# -- memory ----------------------------------------------------------------------------------------


def _ask_peak(side: str, folder: Path, tokens: int, options: argparse.Namespace) -> str:
    command = [
        sys.executable,
        "-m",
        "refl.verification.quality.benchmark",
        "--peak",
        side,
        "--folder",
        str(folder),
        "--tokens",
        str(tokens),
    ]
    command += ["--threads", str(options.threads), "--method", options.method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not measured: {done.stderr.strip().splitlines()[-1]}"
    found = json.loads(done.stdout)
    return (
        f"{found['peak']:8.0f} MiB, {found['rise']:.0f} MiB above what the process held with "
        "its weights loaded"
    )


def _peak(side: str, folder: Path, tokens: int, method: str) -> dict[str, float]:
    """In a process of its own: a one-token run maps every weight, then the run that is measured."""
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if side == "refl":
        ours = Refl(folder, method)
        runs = [
            lambda n=n: ours.sweep(*ours.forward(ids_of(n, vocabulary)), target=0)
            for n in (1, tokens)
        ]
        context: AbstractContextManager[None] = nullcontext()
    else:
        peer = Lxt(folder, method, int(os.environ[THREAD_VARIABLES[0]]))
        runs = [lambda n=n: peer.run(ids_of(n, vocabulary), 0) for n in (1, tokens)]
        context = peer.patched()
    with context:
        runs[0]()
        before = _forget_peak()
        runs[1]()
    peak = _resident("VmHWM")
    return {"peak": peak, "rise": peak - before}


def _forget_peak() -> float:  # MiB
    """Start counting the peak anew, where the system lets one, so that loading does not hide it;
    what is resident now.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _resident("VmHWM")
    return _resident("VmRSS")


def _resident(which: str) -> float:  # MiB
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's on Linux
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


# -- the machine -----------------------------------------------------------------------------------


def describe(options: argparse.Namespace) -> str:
    """What was run, with which libraries, on what."""
    sizes = (
        f"hidden {options.hidden}, {options.layers} layers, {options.heads} heads, "
        f"intermediate {options.intermediate}"
    )
    libraries = ", ".join(
        f"{name} {_version(name)}" for name in ("numpy", "torch", "transformers", "lxt")
    )
    return "\n".join(
        [
            f"Llama with {sizes}, vocabulary {options.vocabulary}, tied head, random "
            f"weights, float32; {options.method}",
            f"Python {platform.python_version()}, {libraries}",
            f"{_processor()}, {_cores()} cores available, {options.threads} threads asked "
            f"for; in use: {_threads(options.threads)}",
            f"load of the machine at the start: {_load()}",
        ]
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> str:
    if not hasattr(os, "getloadavg"):
        return "unknown"
    busy = os.getloadavg()[0]
    return f"{busy:.1f}" + (
        ": others are at work here, go by the minima at best" if busy > _cores() / 2 else ""
    )


def _threads(asked: int) -> str:
    found = []
    if importlib.util.find_spec("threadpoolctl") is not None:
        importlib.import_module("numpy")  # its library has to be loaded to be seen
        pools = importlib.import_module("threadpoolctl").threadpool_info()
        found += [f"{pool['internal_api']} {pool['num_threads']}" for pool in pools]
    else:
        found.append(
            f"BLAS {os.environ[THREAD_VARIABLES[0]]} (by environment; threadpoolctl is absent)"
        )
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(asked)
        found.append(f"torch {torch.get_num_threads()}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
