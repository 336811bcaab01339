"""A checkpoint made ready: config -> net, weights, tokenizer; and what one does with it (encode, logits, generate, explain)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import refl
from refl.arrays import Array, asnumpy, namespace
from refl.checkpoint import Weights, expect, read_config
from refl.errors import ReflError
from refl.explanation import Candidate, Explanation, Sites
from refl.nets import NETS
from refl.nets.batch import Batch
from refl.nets.config import parse
from refl.rules.composites import Composite, from_toml, method
from refl.seeds import Seed, softmax
from refl.sweep import Sweep, Swept
from refl.text import Text
from refl.trace import Trace, Value

SHIPPED = Path(__file__).parent / "shipped"
"""The small model that comes with refl."""

DTYPES = ("float32", "float64")

TASKS = ("next-token", "masked-token", "class")

Input = str | Sequence[int]
Progress = Callable[[str, int, int], object]
"""(phase, done, of)"""


class Net(Protocol):
    """What a file in nets/ provides."""

    MODEL_TYPE: str
    PREFIX: str
    Config: Any

    def task(self, c: Any) -> str:
        """What its output is: one of TASKS."""

    def shapes(self, c: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Every tensor it needs: name, shape, and the options of config.json that ask for it."""

    def forward(self, t: Trace, c: Any, batch: Batch) -> Value:
        """Logits: (B, T, V), or (B, 1, V) at the rows the batch wants; (B, 1, classes) for a classifier."""


def load(
    folder: str | Path | None = None, *, device: str = "cpu", dtype: str = "float32", ignore: Collection[str] = ()
) -> Model:
    """A model from a Hugging Face checkpoint folder (config.json, *.safetensors, tokenizer.json), or the one that ships with refl.

    device    "cpu", or "cuda" (needs CuPy)
    dtype     of the computation: "float32", or "float64" for oracles; half-precision checkpoints are widened exactly
    ignore    options of config.json that are known to change nothing

    Raises ReflError, in one sentence, for anything that cannot be loaded.
    """
    folder = Path(folder) if folder is not None else SHIPPED
    if dtype not in DTYPES:
        raise ReflError(f"unknown dtype {dtype!r}: expected {' or '.join(DTYPES)}")
    place = placer(device)
    raw = read_config(folder)
    net = architecture(raw)
    config = parse(net.Config, raw, ignore)
    weights = Weights(folder, dtype=dtype, place=place)
    named = Prefixed(weights, net.PREFIX)
    for name, shape, why in net.shapes(config):
        expect(weights, named.inner(name), shape, why)
    _refuse_strangers(net, config, named)
    text = Text.load(folder)
    return Model(net, config, named, text, place, dtype, device, folder.resolve().name,
                 _ends(raw), None if text is None else text.mask, _labels(raw), weights.fingerprint)  # fmt: skip


def architecture(raw: dict[str, Any]) -> Net:
    """The net for a config.json. Raises ReflError for a model_type there is none for."""
    kind = raw.get("model_type")
    if kind not in NETS:
        raise ReflError(f"config.json has model_type {kind!r}: refl knows {', '.join(NETS)}")
    return NETS[kind]


def _ends(raw: dict[str, Any]) -> frozenset[int]:
    end = raw.get("eos_token_id")
    return frozenset(i for i in (end if isinstance(end, list) else [end]) if isinstance(i, int))


def _labels(raw: dict[str, Any]) -> dict[int, str]:
    """id2label, or plain numbers for a config that only counts its labels."""
    names = raw.get("id2label")
    if not isinstance(names, dict):
        count = raw.get("num_labels")
        return {i: f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2)}
    try:
        return {int(i): str(name) for i, name in names.items()}
    except ValueError as reason:
        raise ReflError(f"config.json has id2label with a key that is no number: {reason}") from reason


def placer(device: str) -> Callable[[Any], Array]:
    """NumPy array -> the same on the device. CuPy is imported here and nowhere else."""
    if device == "cpu":
        return lambda array: array
    if device != "cuda":
        raise ReflError(f"unknown device {device!r}: expected cpu or cuda")
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as reason:  # CuPy raises its own kinds for a missing driver, library or card
        raise ReflError(f"device cuda needs CuPy and an NVIDIA GPU ({reason}): pip install 'refl-lrp[cuda12]' or [cuda13]") from reason
    return cupy.asarray  # type: ignore[no-any-return]


class Prefixed(Mapping[str, Array]):
    """Weights under the names of the whole model, also where the file holds the bare model without its prefix."""

    def __init__(self, weights: Mapping[str, Array], prefix: str) -> None:
        self.weights = weights
        self.cut = "" if any(name.startswith(prefix) for name in weights) else prefix

    def inner(self, name: str) -> str:
        """The name in the file."""
        return name.removeprefix(self.cut)

    def __getitem__(self, name: str) -> Array:
        return self.weights[self.inner(name)]

    def __iter__(self) -> Iterator[str]:
        return (name if name.startswith("lm_head") else self.cut + name for name in self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.inner(name) in self.weights


_BUFFERS = ("*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias")
"""Tables that older files carry although the net makes them itself."""


def _refuse_strangers(net: Net, config: Any, weights: Mapping[str, Array]) -> None:
    """A tensor inside a module that the net runs, and that the net does not use, would change the computation elsewhere."""
    used = {name for name, _, _ in net.shapes(config)}
    modules = {name.rpartition(".")[0] for name in used}
    for name in weights:
        if name not in used and name.rpartition(".")[0] in modules and not any(fnmatchcase(name, b) for b in _BUFFERS):
            raise ReflError(f"the checkpoint holds {name}, which config.json does not ask for: one of the two is not this model's")


@dataclass
class Model:
    """A net with its weights and tokenizer. Made by `refl.load`."""

    net: Net
    config: Any
    weights: Mapping[str, Array]
    text: Text | None
    place: Callable[[Any], Array]
    dtype: str
    device: str = "cpu"
    name: str = ""
    ends: frozenset[int] = frozenset()
    """Ids that end a text."""
    mask: int | None = None
    """Id of the mask token, for models that guess one."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Names of a classifier's outputs."""
    fingerprint: Callable[[], str] = lambda: ""

    # -- text and ids -------------------------------------------------------------------------------------------------------------

    def encode(self, item: Input) -> list[int]:
        """Token ids of a text, or the ids themselves once checked. Raises ReflError for what the model cannot read."""
        ids = self._tokenizer().encode(item) if isinstance(item, str) else [int(i) for i in item]
        if not ids:
            raise ReflError("the input is empty: expected at least one token")
        for i in ids:
            if not 0 <= i < self.config.vocab_size:
                raise ReflError(f"token id {i} is outside the vocabulary of {self.config.vocab_size} (0 to {self.config.vocab_size - 1})")
        if len(ids) > self.config.longest:
            raise ReflError(f"the input has {len(ids)} tokens, the model has positions for {self.config.longest}: shorten it")
        return ids

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The ids as a reader expects to see them."""
        return self.text.tokens(ids) if self.text else [str(i) for i in ids]

    def token_id(self, token: str | int) -> int:
        """The id of a target given as text or as id. Raises ReflError for one that is no single token."""
        if isinstance(token, str):
            return self._tokenizer().id_of(token)
        if not 0 <= token < self.config.vocab_size:
            raise ReflError(f"target id {token} is outside the vocabulary of {self.config.vocab_size}")
        return int(token)

    def _tokenizer(self) -> Text:
        if self.text is None:
            raise ReflError(f"{self.name} has no tokenizer.json: give token ids in place of text")
        return self.text

    @property
    def task(self) -> str:
        """next-token, masked-token or class."""
        return self.net.task(self.config)

    def output_names(self, ids: Sequence[int]) -> list[str]:
        """Names of outputs: tokens, or the labels of a classifier."""
        return [self.labels.get(i, str(i)) for i in ids] if self.task == "class" else self.tokens(ids)

    def output_id(self, name: str | int) -> int:
        """The number of an output given by name or number. Raises ReflError for one that is none."""
        if self.task != "class":
            return self.token_id(name)
        for i, label in self.labels.items():
            if name in (i, label):
                return i
        raise ReflError(f"unknown class {name!r}: the model has {', '.join(list(self.labels.values())[:10])}")

    # -- forward ----------------------------------------------------------------------------------------------------------------------

    def batch(self, inputs: Sequence[Sequence[int]], position: int | None = None, every: bool = False) -> Batch:
        """Token ids, padded on the right, and the position whose output is wanted: by default where the task has its own."""
        longest = max(map(len, inputs))
        ids = self.place(np.asarray([[*i, *[0] * (longest - len(i))] for i in inputs], dtype=np.int64))
        real = None
        if any(len(i) < longest for i in inputs):
            real = self.place(np.asarray([[t < len(i) for t in range(longest)] for i in inputs]))
        rows = None if every or self.task == "class" else tuple(self._position(i, position) for i in inputs)
        return Batch(ids=ids, real=real, rows=rows)

    def _position(self, ids: Sequence[int], position: int | None) -> int:
        if position is not None:
            at = position + len(ids) if position < 0 else position
            if not 0 <= at < len(ids):
                raise ReflError(f"position {position} is outside the input of {len(ids)} tokens")
            return at
        if self.task == "next-token":
            return len(ids) - 1
        masks = [t for t, i in enumerate(ids) if i == self.mask]
        if len(masks) != 1:
            raise ReflError(f"expected one mask token in the input, found {len(masks)}: write it where the model is to guess, or give position=")
        return masks[0]

    def logits(self, item: Input) -> Any:  # -> NumPy (T, V)
        """The logits after every token of one input."""
        t = Trace(self.weights, record=False, plain=False)
        return asnumpy(self._forward(t, self.batch([self.encode(item)], every=True)).array)[0]

    def generate(self, item: Input, tokens: int = 32) -> list[int]:
        """Greedy continuation: the input's ids and up to `tokens` more, stopping at the end-of-text token.

        Plain on purpose: the whole text is run again for every new token.
        """
        ids = self.encode(item)
        for _ in range(min(tokens, self.config.longest - len(ids))):
            t = Trace(self.weights, record=False, plain=False)
            ids.append(int(asnumpy(self._forward(t, self.batch([ids])).array)[0, 0].argmax()))
            if ids[-1] in self.ends:
                break
        return ids

    def trace(self, items: Sequence[Input], position: int | None = None, **how: Any) -> tuple[Trace, Value]:
        """The recorded forward of a batch, and the logits at each input's explained position, (B, 1, V)."""
        t = Trace(self.weights, **how)
        return t, self._forward(t, self.batch([self.encode(item) for item in items], position))

    def sites(self) -> dict[str, str]:
        """Every name a value has, and its site: what keep patterns, composites and `e[...]` can name."""
        t, _ = self.trace([[0]], position=0)
        return {name: value.site for value in dict.fromkeys(t.values.values()) for name in value.names}

    def _forward(self, t: Trace, batch: Batch) -> Value:
        logits = self.net.forward(t, self.config, batch)
        _refuse_overflow(t, logits)
        return logits

    # -- explaining -------------------------------------------------------------------------------------------------------------------

    def explain(
        self,
        item: Any,
        method: str | Composite = "attnlrp",
        *,
        target: str | int | Sequence[str | int] | None = None,
        contrast: tuple[str | int, str | int] | None = None,
        position: int | None = None,
        seed: str = "logit",
        eps: float | None = None,
        stabilizer: str | None = None,
        keep: str | Sequence[str] = "*",
        recompute: bool = False,
        audit: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Explain the next token after a text (the masked token in it, the class it is put in: what the model does), or after a list
        of token ids, or after each of a list of those (a padded batch).

        method        a published method by name, the path of a .toml composite, or a Composite
        target        the token to explain (text or id; for a batch one for all, or a list); by default the most likely next one
        contrast      (a, b): explain the logit of a minus that of b
        position      explain the output at this token instead (counted from 0, or from the end if negative)
        seed          "logit", "log-probability" or "probability" (softmax-weighted)
        eps, stabilizer    set these options in every rule that has them
        keep          patterns of the sites whose activation and relevance to keep; () for none, which is fastest
        recompute     hold one block's activations at a time and run the others again: less memory, a third more time
        audit         also book the scale of rounding at every site (`entry.terms`)

        Returns an Explanation, or a list of them for a batch. Raises ReflError for anything it cannot do.
        """
        single = _is_single(item)
        items = [item] if single else list(item)
        job = _Job(self, items, _composite(method, eps, stabilizer), keep, recompute, audit, progress, position)
        explained = job.run([self._targets(items, target, contrast)], seed)[0]
        return explained[0] if single else explained

    def explain_each(
        self, item: Input, targets: Sequence[str | int], method: str | Composite = "attnlrp", *, seed: str = "logit", **how: Any
    ) -> list[Explanation]:
        """Several targets of one text from a single forward pass: one Explanation each."""
        options = {"eps": None, "stabilizer": None, "keep": "*", "recompute": False, "audit": False, "progress": None} | how
        composite = _composite(method, options.pop("eps"), options.pop("stabilizer"))
        wanted: list[list[tuple[int | None, int | None]]] = [[(self.output_id(t), None)] for t in targets]
        return [one[0] for one in _Job(self, [item], composite, **options).run(wanted, seed)]

    def _targets(
        self, items: Sequence[Input], target: Any, contrast: tuple[str | int, str | int] | None
    ) -> list[tuple[int | None, int | None]]:
        """(target, against) for each input; None for the most likely next token."""
        if contrast is not None:
            if target is not None:
                raise ReflError("give a target or a contrast, not both")
            a, b = (self.output_id(token) for token in contrast)
            return [(a, b)] * len(items)
        if target is None or isinstance(target, (str, int)):
            return [(None if target is None else self.output_id(target), None)] * len(items)
        if len(target) != len(items):
            raise ReflError(f"{len(target)} targets for {len(items)} inputs: expected one for each, or one for all")
        return [(self.output_id(token), None) for token in target]


def _is_single(item: Any) -> bool:
    if isinstance(item, str):
        return True
    if len(item) == 0:
        raise ReflError("the input is empty: expected a text, or at least one token id")
    return not (isinstance(item[0], str) or hasattr(item[0], "__len__"))


def _composite(name: str | Composite, eps: float | None, stabilizer: str | None) -> Composite:
    if isinstance(name, str):
        name = from_toml(name) if name.endswith(".toml") else method(name)
    changed = {key: value for key, value in (("eps", eps), ("stabilizer", stabilizer)) if value is not None}
    return name.with_options(**changed) if changed else name


def _refuse_overflow(t: Trace, logits: Value) -> None:
    xp = namespace(logits.array)
    if bool(xp.all(xp.isfinite(logits.array))):
        return
    for record in t.records:
        if not bool(xp.all(xp.isfinite(record.output.array))):
            raise ReflError(f"the forward pass overflows at {record.output.site}: try dtype float64, or check the checkpoint")
    raise ReflError("the forward pass gives logits that are not finite: try dtype float64, or check the checkpoint")


@dataclass
class _Job:
    """One forward pass and the sweeps asked of it."""

    model: Model
    items: list[Input]
    composite: Composite
    keep: str | Sequence[str]
    recompute: bool
    audit: bool
    progress: Progress | None
    position: int | None = None

    def run(self, wanted: list[list[tuple[int | None, int | None]]], kind: str) -> list[list[Explanation]]:
        """For each list of (target, against), one per input: an Explanation per input."""
        patterns = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        inside = any(_fits_attention(p) for p in patterns)
        ids = [self.model.encode(item) for item in self.items]
        trace = Trace(self.model.weights, plain=inside, recompute=self.recompute)
        logits = self.model._forward(trace, self.model.batch(ids, self.position))
        rows = asnumpy(logits.array)[:, 0]  # (B, V)
        embedded = next(r.output for r in trace.records if r.attributes.get("role") == "tokens")
        results = []
        for number, targets in enumerate(wanted):
            seeds = [Seed(kind, int(z.argmax()) if a is None else a, b) for z, (a, b) in zip(rows, targets, strict=True)]
            swept = self._sweep(trace, logits, rows, seeds, embedded, patterns, last=number == len(wanted) - 1)
            results.append([self._explanation(b, ids[b], rows[b], seed, swept, embedded.site) for b, seed in enumerate(seeds)])
        return results

    def _sweep(
        self, trace: Trace, logits: Value, rows: Any, seeds: list[Seed], embedded: Value, patterns: tuple[str, ...], last: bool
    ) -> Swept:
        form = Seed.gradient if self.composite.carries == "gradient" else Seed.relevance
        start = self.model.place(np.stack([form(seed, z) for seed, z in zip(seeds, rows, strict=True)])[:, None, :])
        done = iter(range(1, len(trace.records) + 1))
        sweep = Sweep(
            self.composite,
            keep=lambda names: embedded.site in names or any(fnmatchcase(n, p) for p in patterns for n in names),
            release=last,
            audit=self.audit,
            progress=lambda: self.progress and self.progress("sweep", next(done, 0), len(trace.records)),
        )
        return sweep.run(trace, logits, start)

    def _explanation(self, b: int, ids: list[int], z: Any, seed: Seed, swept: Swept, embedded: str) -> Explanation:
        model, p = self.model, softmax(z.astype(np.float64))
        best = [int(i) for i in np.argsort(-z, kind="stable")[:5]]
        names = dict(zip(best, model.output_names(best), strict=True))
        ledger = swept.ledger.example(b)
        sites = Sites(swept.carried, swept.activations, swept.aliases, self.composite.carries, b)
        return Explanation(
            tokens=model.tokens(ids),
            input_ids=ids,
            relevance=self._scores(asnumpy(swept.carried[embedded])[b], asnumpy(swept.activations[embedded])[b])[: len(ids)],
            target=model.output_names([seed.target])[0],
            target_id=seed.target,
            logit=float(z[seed.target]),
            probability=float(p[seed.target]),
            against=None if seed.against is None else model.output_names([seed.against])[0],
            seed=seed.kind,
            explained=float(ledger.explained[0]),
            candidates=[Candidate(names[i], i, float(z[i]), float(p[i])) for i in best],
            composite=self.composite,
            ledger=ledger,
            about={"refl": refl.__version__, "model": model.name, "architecture": model.net.MODEL_TYPE, "dtype": model.dtype,
                   "fingerprint": model.fingerprint()},
            sites=sites,
        )  # fmt: skip

    def _scores(self, carried: Any, x: Any) -> Any:  # (T, D), (T, D) -> (T,)
        if self.composite.score == "norm":
            return np.sqrt((carried * carried).sum(axis=-1))
        return (carried * x if self.composite.carries == "gradient" else carried).sum(axis=-1)


def _fits_attention(pattern: str) -> bool:
    """Whether a pattern may name a site that only the plain form of attention has."""
    last = pattern.rpartition(".")[2]
    return "*" in last or "[" in last or last in ("scores", "probabilities", "transposed")
