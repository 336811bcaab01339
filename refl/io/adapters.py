"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) beside a base checkpoint, as peft saves them: a
folder of adapter_config.json and adapter_model.safetensors.

    y = W x + b + s B (A x),    A (r, I), B (O, r)
    s = lora_alpha / r,    or lora_alpha / sqrt(r) with use_rslora (Kalajdzievski 2023,
                           arXiv 2312.03732)
    merged:    W + s B A,    formed in float64 and rounded once

Kept apart, A and B are linear layers of their own beside the base layer (Trace.linear): relevance
that comes through the adapter has its own sites, and its own entries in the ledger. What a folder
holds besides, whole tensors (a new head, trained biases), takes the place of the base's.

The format is that of peft 0.15 (LoraConfig, get_peft_model_state_dict). Some adapters are made for
a base that was changed first (init_lora_weights "pissa", "olora", "loftq", "corda"); how, their
folder does not say, and they are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refl.arrays import Array, namespace
from refl.errors import ReflError, quoted, shown
from refl.io.config import once_each, read_json
from refl.io.files import checkpoint_folder
from refl.io.weights import Weights

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

TASKS = {
    "CAUSAL_LM": "next-token",
    "SEQ_CLS": "class",
    "TOKEN_CLS": "token-class",
    "QUESTION_ANS": "answer-span",
    "SEQ_2_SEQ_LM": "sequence-to-sequence",
    "FEATURE_EXTRACTION": "features",
}
"""task_type of an adapter -> the task of the net it belongs to."""

HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "bias",  # trained biases are among the tensors
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",  # the tensors say which modules
    "fan_in_fan_out",  # so does the module, as in peft
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
)
"""Options that no forward pass depends on once the tensors are known."""

READ = (
    *("alpha_pattern", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern"),
    *("task_type", "use_rslora"),
)

STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""init_lora_weights that leave the base as it is."""

_CONFIG_LIMIT = 16 << 20
_NOT_LINEAR = re.compile(
    r"(.*\.)?(?!(embed_out|embedding_hidden_mapping_in)$)"
    r"(\w*embed\w*|wte|wpe|shared|relative_attention_bias|\w*norm\w*|ln_\w+)",
    re.IGNORECASE,
)
"""Names of tables and of norms; GPT-NeoX's head and ALBERT's projection only sound like tables."""


# -- adapter_config.json ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What adapter_config.json says that changes the computation."""

    alpha: float
    rooted: bool
    """Whether alpha is divided by the root of the rank."""
    alphas: Mapping[str, float]
    """Pattern of a module's name -> an alpha of its own."""
    r: float
    ranks: Mapping[str, float]
    """The same for the rank."""
    task: str | None

    def scale(self, path: str, rank: int) -> float:
        """s of a module."""
        return _of(path, self.alphas, self.alpha) / (math.sqrt(rank) if self.rooted else rank)

    def rank(self, path: str) -> float:
        return _of(path, self.ranks, self.r)


def _of(path: str, patterns: Mapping[str, float], otherwise: float) -> float:
    """What the first pattern says that fits a module's name or, without ^, the end of it."""
    for pattern, number in patterns.items():
        start = "" if pattern.startswith("^") else r"(.*\.)?"
        if re.fullmatch(f"{start}({pattern.removeprefix('^')})", path):
            return number
    return otherwise


def read_options(folder: Path) -> Options:
    """Raises ReflError for a kind of adapter, and for an option, that is not implemented."""
    raw = read_json(folder / CONFIG, _CONFIG_LIMIT, once_each)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise _wrong("peft_type", kind, "'LORA', the one kind of adapter that is implemented")
    for key, value in raw.items():
        if key not in (*READ, *HARMLESS) and value not in (None, False, "", [], {}):
            raise ReflError(
                f"{CONFIG} sets {shown(key)} = {quoted(value)}, which is not implemented: merge "
                "the adapter into its base with peft, and load that"
            )
    if (start := raw.get("init_lora_weights", True)) not in STARTS:
        raise _wrong("init_lora_weights", start, f"one of {', '.join(map(str, STARTS))}: others "
                     "change the base first")  # fmt: skip
    return Options(
        alpha=_number("lora_alpha", raw.get("lora_alpha", 8)),
        rooted=_flag("use_rslora", raw.get("use_rslora", False)),
        alphas=_patterns(raw, "alpha_pattern"),
        r=_number("r", raw.get("r", 8)),
        ranks=_patterns(raw, "rank_pattern"),
        task=_task(raw.get("task_type")),
    )


def _task(said: Any) -> str | None:
    if said is None or (isinstance(said, str) and said in TASKS):
        return None if said is None else TASKS[said]
    raise _wrong("task_type", said, f"one of {', '.join(TASKS)}, or null")


def _patterns(raw: Mapping[str, Any], name: str) -> dict[str, float]:
    """Names of modules, or ends of them -> a number. peft reads them as regular expressions; one
    that is more than a name with its parts could run without end.
    """
    found = raw.get(name) or {}
    if not isinstance(found, dict):
        raise _wrong(name, found, "an object")
    for key in found:
        if not re.fullmatch(r"\^?[\w.|()\\]*", key) or not _compiles(key):
            raise _wrong(name, key, "names of modules, with | between several")
    return {key: _number(name, value) for key, value in found.items()}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise _wrong(name, value, "a number above 0")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _wrong(name: str, value: Any, expected: str) -> ReflError:
    return ReflError(f"{CONFIG} has {name} = {quoted(value)}: expected {expected}")


# -- adapter_model.safetensors ---------------------------------------------------------------------


@dataclass(frozen=True)
class Low:
    """The map of low rank beside one module: s B A."""

    a: str
    """The tensor A (r, I); of a table of embeddings (r, V)."""
    b: str
    """B (O, r); (D, r)."""
    scale: float
    table: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, opened."""

    weights: Weights
    options: Options
    lows: Mapping[str, Low]
    """Module path -> what is added to it."""
    whole: Mapping[str, str]
    """Tensor of the model -> the tensor that takes its place."""

    @property
    def name(self) -> str:
        return self.weights.folder.resolve().name

    def labels(self) -> int | None:
        """How many classes its head has, where it brings one."""
        heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
        found = next((self.whole[head] for head in heads if head in self.whole), None)
        return None if found is None else int(self.weights.shape(found)[0])

    def under(self, prefix: str, needed: Collection[str]) -> Adapter:
        """By the names of the whole model, where it was made for the bare one without its head."""

        def outer(name: str, tensor: str) -> str:
            return prefix + name if tensor not in needed and prefix + tensor in needed else name

        lows = {outer(path, f"{path}.weight"): low for path, low in self.lows.items()}
        whole = {outer(name, name): tensor for name, tensor in self.whole.items()}
        return Adapter(self.weights, self.options, lows, whole)


def read_adapter(
    folder: str | Path, dtype: str, place: Callable[[Any], Array], cache_bytes: int
) -> Adapter:
    """Raises ReflError for a folder that holds no LoRA adapter, and for a tensor that belongs to
    none.
    """
    folder = checkpoint_folder(folder)
    options = read_options(folder)
    weights = Weights(
        folder, dtype=dtype, place=place, cache_bytes=cache_bytes, config=CONFIG, single=TENSORS
    )
    lows: dict[str, dict[str, str]] = {}
    whole = {}
    for name in weights:
        path, part = _split(name)
        if part is None:
            whole[path] = name
        else:
            lows.setdefault(path, {})[part] = name
    found = {path: _low(path, parts, weights, options) for path, parts in lows.items()}
    return Adapter(weights, options, found, whole)


_PARTS = re.compile(
    r"(?P<path>.+)\.lora_(?P<table>embedding_)?(?P<part>[AB])(\.default)?(\.weight)?"
)


def _split(name: str) -> tuple[str, str | None]:
    """The module's path and the part, or the whole tensor's name and None."""
    inner = name.removeprefix("base_model.model.")
    if inner == name:
        raise ReflError(
            f"{TENSORS} holds {shown(name)}: expected names that begin with base_model.model, as "
            "peft saves them"
        )
    if found := _PARTS.fullmatch(inner):
        return found["path"], (found["table"] or "") + found["part"]
    if "lora_" in inner:
        raise ReflError(
            f"{TENSORS} holds {shown(name)}, which is not implemented: expected lora_A and lora_B "
            "(or lora_embedding_A and _B) of one adapter, and whole tensors"
        )
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", inner), None


def _low(path: str, parts: Mapping[str, str], weights: Weights, options: Options) -> Low:
    table = "embedding_A" in parts
    wanted = {"embedding_A", "embedding_B"} if table else {"A", "B"}
    if parts.keys() != wanted:
        raise ReflError(
            f"{TENSORS} holds lora_{' and lora_'.join(sorted(parts))} of {shown(path)}: expected "
            "both of lora_A and lora_B"
        )
    a, b = (parts[part] for part in sorted(wanted))
    shapes = weights.shape(a), weights.shape(b)
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
        raise ReflError(
            f"{TENSORS} has lora_A {shapes[0]} and lora_B {shapes[1]} of {shown(path)}: expected "
            "matrices (r, I) and (O, r); an adapter of a convolution is not implemented"
        )
    rank = shapes[0][0]
    if rank != options.rank(path):
        raise ReflError(
            f"{TENSORS} has matrices of rank {rank} for {shown(path)}, {CONFIG} says "
            f"{options.rank(path):g}: one of the two is not this adapter's"
        )
    return Low(a, b, options.scale(path, rank), table)


# -- beside the base -------------------------------------------------------------------------------


class Adapted(Mapping[str, Array]):
    """The weights of a base with an adapter merged into them, or beside them.

    base       under the names of the whole model
    needed     tensor -> its shape, of all that the net reads
    conv1d     modules whose weights are stored (I, O), by the last part of their names
    tied       whether the head reads the table of the words

    Raises ReflError for a part of the adapter that has no place in the net.
    """

    def __init__(
        self,
        base: Mapping[str, Array],
        adapter: Adapter,
        needed: Mapping[str, tuple[int, ...]],
        *,
        merge: bool,
        conv1d: Sequence[str] = (),
        tied: bool = False,
    ) -> None:
        self.base, self.adapter, self.merge = base, adapter, merge
        self.conv1d = tuple(conv1d)
        self._kept: dict[str, Array] = {}
        self._down = {f"{path}.lora_A.default.weight": low for path, low in self._apart()}
        self._up = {f"{path}.adapter.weight": low for path, low in self._apart()}
        for name, tensor in adapter.whole.items():
            _refuse_no_place(name, needed)
            adapter.weights.expect(tensor, needed[name], f"the shape of {name} in the base")
        for path, low in adapter.lows.items():
            self._refuse_misfit(path, low, needed, tied)

    def _refuse_misfit(
        self, path: str, low: Low, needed: Mapping[str, tuple[int, ...]], tied: bool
    ) -> None:
        name = f"{path}.weight"
        if tied and name not in needed and path == "lm_head":
            if self.merge:
                raise ReflError(
                    "the adapter changes lm_head, which shares its weights with the embeddings: "
                    "keep it apart (merge=False, --apart)"
                )
            return
        _refuse_no_place(name, needed)
        if low.table and not self.merge:
            raise ReflError(
                f"the adapter changes the table {shown(path)}, of which no linear layer is made: "
                "merge it"
            )
        if low.table and tied:
            raise ReflError(
                f"the adapter changes the table {shown(path)}, which the head shares: merged, it "
                "would change the head, which in peft it does not"
            )
        if not low.table and _NOT_LINEAR.fullmatch(path):
            raise ReflError(f"the adapter has lora_A of {shown(path)}, which is no linear layer")
        (_, into), (out, _) = map(self.adapter.weights.shape, (low.a, low.b))
        found = (into, out) if low.table or self._is_conv1d(path) else (out, into)
        if found != tuple(needed[name]):
            raise ReflError(
                f"the adapter's map of {shown(path)} has the shape {found}, the base's "
                f"{tuple(needed[name])}: it was made for another model"
            )

    def _is_conv1d(self, path: str) -> bool:
        return path.rpartition(".")[2] in self.conv1d

    def _apart(self) -> Iterable[tuple[str, Low]]:
        """Those that are not merged: what Trace.linear looks for."""
        return () if self.merge else self.adapter.lows.items()

    def __getitem__(self, name: str) -> Array:
        if name in self._down:
            return self.adapter.weights[self._down[name].a]
        if name not in self._up and not self._is_merged(name):
            return self._plain(name)
        if name in self._kept:
            return self._kept[name]
        made = self._scaled(self._up[name]) if name in self._up else self._merged(name)
        if self.adapter.weights.keeps:
            self._kept[name] = made
        return made

    def _is_merged(self, name: str) -> bool:
        path = name.removesuffix(".weight")
        return self.merge and path != name and path in self.adapter.lows

    def _plain(self, name: str) -> Array:
        if name in self.adapter.whole:
            return self.adapter.weights[self.adapter.whole[name]]
        return self.base[name]

    def _scaled(self, low: Low) -> Array:
        """s B."""
        b = self.adapter.weights[low.b]
        xp = namespace(b)
        return xp.astype(low.scale * xp.astype(b, xp.float64), b.dtype)

    def _merged(self, name: str) -> Array:
        """W + s B A, or W + s (B A)^T where it is stored (I, O)."""
        path = name.removesuffix(".weight")
        low, w = self.adapter.lows[path], self._plain(name)
        a, b = self.adapter.weights[low.a], self.adapter.weights[low.b]
        xp = namespace(w, a, b)
        change = low.scale * (xp.astype(b, xp.float64) @ xp.astype(a, xp.float64))
        if low.table or self._is_conv1d(path):
            change = change.T
        return xp.astype(xp.astype(w, xp.float64) + change, w.dtype)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self.base, *self.adapter.whole, *self._down, *self._up))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return any(name in one for one in (self._down, self._up, self.adapter.whole, self.base))

    # -- the files ---------------------------------------------------------------------------------

    def fingerprint(self, of_base: Callable[[], str]) -> str:
        """That of the base, and that of the adapter behind it."""
        return f"{of_base()}+{self.adapter.weights.fingerprint()}"

    def refuse_changed(self, of_base: Callable[[], object]) -> None:
        """Raises ReflError where a file of either has changed since it was opened."""
        of_base()
        self.adapter.weights.refuse_changed()


def _refuse_no_place(name: str, needed: Iterable[str]) -> None:
    if name not in needed:
        raise ReflError(
            f"the adapter changes {shown(name)}, which the base does not have: it was made for "
            "another model"
        )
