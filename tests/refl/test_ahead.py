"""Weights that are not kept (refl.io.ahead): read by two threads and before they are asked for,
they are the numbers of the file, whatever comes in between.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from refl.errors import ReflError
from refl.io import ahead
from refl.io.ahead import Memory, Steps
from refl.io.names import Prefixed
from refl.io.weights import Weights
from refl.model import Model
from refl.verification.random_models import random_model

BLOCKS, PARTS = 12, ("q", "k", "v", "down")
NAMES = [f"layers.{i}.{part}" for i in range(BLOCKS) for part in PARTS]
"""In the order of use: neither that of the file nor that of the alphabet."""
NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<f4"}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """And read in many stretches, of which the last is not full."""
    monkeypatch.setattr("refl.io.weights.LARGE", 1)
    monkeypatch.setattr(ahead, "STRETCH", 7)


def arrays_of(seed: int, **more: Any) -> dict[str, Any]:
    """Numbers that bfloat16 and float16 hold exactly."""
    draw = np.random.default_rng(seed)
    drawn = {name: draw.integers(-128, 128, (5, 6)) / 64 for name in NAMES}
    return {name: array.astype(np.float32) for name, array in (drawn | more).items()}


def write(folder: Path, arrays: dict[str, Any], tag: str = "BF16") -> Path:
    """A checkpoint of this dtype; safetensors' NumPy face cannot write bfloat16."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    if tag != "BF16":
        stored = {name: array.astype(NUMBERS[tag]) for name, array in arrays.items()}
        save_file(stored, folder / "model.safetensors")
        return folder
    table, data = {}, b""
    for name, array in sorted(arrays.items()):
        bits = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        table[name] = {
            "dtype": tag,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(bits)],
        }
        data += bits
    header = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def opened(folder: Path, dtype: str = "float32", cache_bytes: int = 0) -> Weights:
    return Weights(folder, dtype=dtype, place=lambda array: array, cache_bytes=cache_bytes)


def recomputed(names: list[str] = NAMES) -> list[str]:
    """Up, then block by block up once more and down: a forward and a sweep that recomputes."""
    blocks = [names[i : i + len(PARTS)] for i in range(0, len(names), len(PARTS))]
    return names + [name for block in reversed(blocks) for name in block + block[::-1]]


ORDERS = {
    "up": NAMES,
    "up and down": NAMES + NAMES[::-1],
    "recomputed": recomputed(),
    "each three times": [name for name in NAMES for _ in range(3)],
    "the ends in turn": [name for name in NAMES for name in (name, NAMES[0])],
    "in no order": [NAMES[7919 * i % len(NAMES)] for i in range(3 * len(NAMES))],
}


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "refl reads ahead"]


def none_after(seconds: float) -> bool:
    """Whether every helper ends before that."""
    end = time.monotonic() + seconds
    while helpers() and time.monotonic() < end:
        time.sleep(0.01)
    return not helpers()


def in_helpers(function: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a helper is about to widen a stretch, it does that first."""
    widen = ahead.widen

    def slowed(*which: Any) -> None:
        if threading.current_thread() in helpers():
            function()
        widen(*which)

    monkeypatch.setattr(ahead, "widen", slowed)


def begun(weights: Weights) -> str | None:
    """The tensor that is being read ahead."""
    found = weights._ahead._begun
    return found and found[0]


@pytest.fixture
def within_ten_seconds() -> Iterator[None]:
    def fail(*_: object) -> None:
        raise AssertionError("still at it after ten seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", NUMBERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_are_those_of_the_file(tmp_path: Path, tag: str, dtype: str) -> None:
    """In any order, each time."""
    arrays = arrays_of(1, empty=np.zeros((0, 3)), scalar=np.array(0.5))
    weights = opened(write(tmp_path, arrays, tag), dtype)
    for order in ORDERS.values():
        for name in [*order, "empty", "scalar"]:
            array = weights[name]
            assert array.dtype == dtype and array.shape == arrays[name].shape
            assert np.array_equal(array, arrays[name]) and not array.flags.writeable


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_explanations_are_the_same_to_the_last_bit(
    tmp_path: Path, recompute: bool, tied: bool
) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "tie_word_embeddings": tied,
    }
    like = random_model(config, 0, "float32")
    drawn = {name: np.asarray(like.weights[name]) for name in like.weights}
    write(tmp_path, drawn)

    def explained(cache_bytes: int) -> list[Any]:
        weights = Prefixed(opened(tmp_path, cache_bytes=cache_bytes), like.net.PREFIX)
        model = Model(like.net, like.config, weights, None, like.place, "float32")
        return [model.explain([1, 2, 3], keep=(), recompute=recompute) for _ in range(2)]

    kept, read = explained(1 << 30), explained(0)
    assert all(np.array_equal(read[0].relevance, each.relevance) for each in kept + read)
    assert read[0].ledger.conservation_error == kept[0].ledger.conservation_error


def test_an_array_that_is_held_does_not_change(tmp_path: Path) -> None:
    """Its memory is not used again, whichever view of it is all that is left."""
    arrays = arrays_of(2)
    weights = opened(write(tmp_path, arrays))
    held = {}
    for number, name in enumerate(recomputed()):
        array = weights[name]
        views = (array, array.T, array[2:4], array.reshape(-1)[::2].T, memoryview(array[3]))
        held[number, name] = views[number % len(views)]
        expected = {0: lambda a: a, 1: lambda a: a.T, 2: lambda a: a[2:4]}
        expected |= {3: lambda a: a.reshape(-1)[::2], 4: lambda a: a[3]}
        del array, views
        for (n, which), view in held.items():
            assert np.array_equal(np.asarray(view), expected[n % 5](arrays[which]))


def test_memory_is_used_again(tmp_path: Path) -> None:
    lender = Memory()
    first = np.asarray(lender.lend(1000))[:900].view(np.float32)
    address, view = first.ctypes.data, first[3:].T
    del first
    assert np.asarray(lender.lend(1000)).ctypes.data != address  # a view is left
    del view
    assert np.asarray(lender.lend(500)).ctypes.data == address
    assert np.asarray(lender.lend(100)).nbytes == 100  # not for what is so much smaller
    assert np.asarray(lender.lend(2000)).nbytes == 2000


def test_what_needs_no_widening_is_not_copied(tmp_path: Path) -> None:
    weights = opened(write(tmp_path, arrays_of(3), "F64"), "float64")
    for name in recomputed():
        assert np.shares_memory(weights[name], weights._bytes(tmp_path / "model.safetensors"))


# -- what comes next -------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [PARTS, ("a", "b", "c", "d")])
def test_what_comes_next_is_learned(parts: tuple[str, ...]) -> None:
    """Wrong in the first block and where the way turns, hardly ever besides; where the parts come
    as in the alphabet, all steps up are one.
    """
    names = [f"layers.{i}.{part}" for i in range(BLOCKS) for part in parts]
    for order in (names, names + names[::-1], recomputed(names)):
        steps, wrong, expected = Steps(sorted(names)), 0, None
        for name in order:
            wrong += name != expected
            expected = steps.after(name)
        assert wrong <= 5 * len(parts) < len(order) / 2


def test_nothing_is_begun_on_a_guess_that_has_no_ground(tmp_path: Path) -> None:
    weights = opened(write(tmp_path, arrays_of(4)))
    for name in NAMES[: len(PARTS)]:
        assert weights[name].size and begun(weights) is None


def test_the_next_is_begun_before_it_is_asked_for(tmp_path: Path) -> None:
    weights = opened(write(tmp_path, arrays_of(4)))
    for name, following in pairwise(NAMES):
        weights[name]
        if not name.startswith(("layers.0.", "layers.1.")):
            assert begun(weights) == following
    assert weights[NAMES[-1]].size and begun(weights) is None


def test_steps_are_forgotten_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_LEARNED", 50)
    steps, draw = Steps(NAMES), np.random.default_rng(0)
    for place in draw.integers(0, len(NAMES), 500):
        steps.after(NAMES[place])
        assert len(steps._learned) <= 50 + len(ahead.CONTEXTS)


def test_a_model_that_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    weights = opened(write(tmp_path, arrays_of(5)), cache_bytes=1 << 20)
    assert weights.keeps
    for name in recomputed():
        assert weights[name] is weights[name] and name not in weights._ahead and not helpers()


def test_what_is_small_is_read_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refl.io.weights.LARGE", 121)  # one more than 5 x 6 numbers take
    weights = opened(write(tmp_path, arrays_of(5, large=np.ones(31))))
    assert [name for name in weights if name in weights._ahead] == ["large"]
    assert all(weights[name].size == 30 and not helpers() for name in NAMES)


# -- what goes wrong -------------------------------------------------------------------------------


def test_what_is_not_finite_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    """With the sentence of one thread, each time, though the helper has met it before; and the
    others are read.
    """
    arrays = arrays_of(6)
    damaged = NAMES[3 * len(PARTS) + 1]
    arrays[damaged][4, 5], arrays[damaged][0, 0] = np.nan, np.inf
    weights = opened(write(tmp_path, arrays))
    for name in (*NAMES, *NAMES[::-1]):
        if name != damaged:
            assert np.array_equal(weights[name], arrays[name])
            continue
        assert begun(weights) == damaged
        with pytest.raises(ReflError, match=f"{damaged} holds 1 NaN and 1 infinite of 30 numbers"):
            weights[name]


def test_a_number_beyond_float32_is_refused_by_name(tmp_path: Path) -> None:
    arrays = arrays_of(6)
    stored = {name: array.astype(np.float64) for name, array in arrays.items()}
    stored[NAMES[20]][4, 5] = 1e300
    save_file(stored, write(tmp_path, arrays) / "model.safetensors")
    weights = opened(tmp_path)
    assert all(weights[name].size for name in NAMES[:20])
    with pytest.raises(ReflError, match="1 infinite of 30 .* as F64 .*float64 is needed"):
        weights[NAMES[20]]


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    """What was begun before is not handed out after."""
    weights = opened(write(tmp_path, arrays_of(7)))
    assert all(weights[name].size for name in NAMES[:20]) and begun(weights) == NAMES[20]
    path = tmp_path / "model.safetensors"
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(ReflError, match="has changed since the model was loaded"):
            weights[NAMES[20]]


def test_a_shard_that_has_changed_is_refused_where_it_is_used(tmp_path: Path) -> None:
    """And not with the last tensor of the shard before, after which it would be begun."""
    arrays = arrays_of(7)
    shards = (NAMES[:20], NAMES[20:])
    places = {}
    for number, names in enumerate(shards, 1):
        places |= dict.fromkeys(names, f"model-0000{number}-of-00002.safetensors")
        save_file({name: arrays[name] for name in names}, tmp_path / places[names[0]])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text("{}")
    weights = opened(tmp_path, "float64")
    os.utime(tmp_path / places[NAMES[20]], ns=(1, 1))
    assert all(np.array_equal(weights[name], arrays[name]) for name in NAMES[:20])
    with pytest.raises(ReflError, match="00002-of-00002.safetensors has changed"):
        weights[NAMES[20]]


def test_memory_that_does_not_suffice_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for once more where the tensor is used."""
    arrays = arrays_of(7)
    weights = opened(write(tmp_path, arrays))
    assert all(weights[name].size for name in NAMES[:20])
    lend, asked = Memory.lend, []

    def refuse_the_next(memory: Memory, nbytes: int) -> Any:
        asked.append(nbytes)
        if len(asked) % 2:
            raise MemoryError
        return lend(memory, nbytes)

    monkeypatch.setattr(Memory, "lend", refuse_the_next)
    assert all(np.array_equal(weights[name], arrays[name]) for name in NAMES[20:])
    assert len(asked) > len(NAMES[20:])


def test_a_helper_that_fails_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    arrays = arrays_of(8)
    weights = opened(write(tmp_path, arrays))
    in_helpers(fail, monkeypatch)
    for name in recomputed():
        assert np.array_equal(weights[name], arrays[name])


def test_without_threads_it_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    arrays = arrays_of(8)
    weights = opened(write(tmp_path, arrays))
    assert all(np.array_equal(weights[name], arrays[name]) for name in recomputed())


def test_an_interrupt_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, interrupted = arrays_of(9), []
    weights = opened(write(tmp_path, arrays))
    in_helpers(lambda: time.sleep(0.01), monkeypatch)
    widen = ahead.widen

    def once(*which: Any) -> None:
        if threading.current_thread() not in helpers() and not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt
        widen(*which)

    monkeypatch.setattr(ahead, "widen", once)
    with pytest.raises(KeyboardInterrupt):
        weights[NAMES[0]]
    assert all(np.array_equal(weights[name], arrays[name]) for name in NAMES)


# -- threads and processes -------------------------------------------------------------------------


def slowly_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A helper is at a thousand stretches that would take it twenty seconds."""
    weights = opened(write(folder, arrays_of(10) | {"layers.5.q": np.ones(7000, np.float32)}))
    assert all(weights[name].size for name in NAMES[:19]) and none_after(5)
    in_helpers(lambda: time.sleep(0.02), monkeypatch)
    weights[NAMES[19]]
    assert begun(weights) == "layers.5.q" and helpers()
    return weights


def test_no_thread_outlives_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = slowly_begun(tmp_path, monkeypatch)
    del weights
    assert none_after(2)


def test_what_was_begun_for_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = slowly_begun(tmp_path, monkeypatch)
    assert weights[NAMES[0]].size and none_after(2)


@pytest.mark.usefixtures("within_ten_seconds")
def test_after_a_fork_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no helper: what one has begun in the parent never ends there."""
    arrays, held = arrays_of(11), threading.Event()
    weights = opened(write(tmp_path, arrays))
    assert all(weights[name].size for name in NAMES[:19]) and none_after(5)
    in_helpers(lambda: held.wait(5), monkeypatch)
    threading.Timer(0.2, held.set).start()
    weights[NAMES[19]]
    assert begun(weights) == NAMES[20] and helpers()
    with warnings.catch_warnings():  # that threads are running is the point
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        held.set()
        signal.alarm(5)
        same = all(np.array_equal(weights[name], arrays[name]) for name in NAMES[20:])
        os._exit(0 if same else 1)
    assert all(np.array_equal(weights[name], arrays[name]) for name in NAMES[20:])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def on_host(array: Any) -> Any:
    return array


@pytest.mark.parametrize("again", [lambda w: pickle.loads(pickle.dumps(w)), copy.deepcopy])
def test_pickled_and_copied(tmp_path: Path, again: Callable[[Weights], Weights]) -> None:
    arrays = arrays_of(12)
    weights = Weights(write(tmp_path, arrays), dtype="float32", place=on_host, cache_bytes=0)
    assert all(weights[name].size for name in NAMES[:20]) and begun(weights)
    other = again(weights)
    for name in NAMES[20:]:
        assert np.array_equal(weights[name], arrays[name])
        assert np.array_equal(other[name], arrays[name])


@pytest.mark.usefixtures("within_ten_seconds")
def test_asked_by_several_threads_at_once(tmp_path: Path) -> None:
    arrays, wrong = arrays_of(13), []
    weights = opened(write(tmp_path, arrays))

    def ask(order: list[str]) -> None:
        wrong.extend(name for name in order if not np.array_equal(weights[name], arrays[name]))

    threads = [threading.Thread(target=ask, args=(order,)) for order in ORDERS.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_go_with_their_last_name(tmp_path: Path) -> None:
    """Nothing that reads ahead holds them."""
    weights = opened(write(tmp_path, arrays_of(14)))
    assert all(weights[name].size for name in NAMES)
    last = weakref.ref(weights)
    gc.disable()
    try:
        del weights
        assert last() is None
    finally:
        gc.enable()
