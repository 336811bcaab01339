"""On a device nothing crosses to the host, or from it, while a sweep walks; in a forward only what
this file lists.

Counted under a module by CuPy's name whose device is NumPy (tests/support/counted_cupy.py), for
every net. The same runs show that each fused kernel keeps to what CuPy can trace, and, where CuPy
is installed, CuPy itself traces each of them, which needs no GPU.
"""

from __future__ import annotations

import pkgutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
from backends import refusal
from counted_cupy import TO_DEVICE, TO_HOST, CountedCupy, Traced

import refl
import refl.arrays
import refl.rules
from refl.arrays import asnumpy_each, can_ask, flags, fused, like, namespace
from refl.explanation import Explanation
from refl.model import Model
from refl.network import Network
from refl.rules import activation, conservation, rms_norm, softmax
from refl.rules.composites import Composite, Rule
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, METHODS
from refl.sweep import Sweep
from refl.verification.random_models import ARCHITECTURES, GPT2, LLAMA, MAMBA, moved, random_model

TEXTS = [[3, 1, 16, 1, 8], [2, 0], [7, 7, 4]]
METHODS_HERE = ("attnlrp", "attnlrp-gradient", "cp-lrp", "gradient")
WAYS: tuple[dict[str, Any], ...] = (
    {"keep": "*", "audit": True},
    {"keep": ()},
    {"recompute": True, "keep": ()},
)
CLASSIFIER = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
NETS = ARCHITECTURES | {"llama, classifier": CLASSIFIER}
EXPERTS = ("mixtral", "qwen3_moe")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountedCupy:
    """The counted device, which forwards and walks of a sweep are marked on."""
    cupy = CountedCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for phase, kind, name in (("forward", Network, "forward"), ("walk", Sweep, "_walk")):
        monkeypatch.setattr(kind, name, _during(cupy, phase, getattr(kind, name)))
    return cupy


def _during(cupy: CountedCupy, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*arguments: Any, **keywords: Any) -> Any:
        with cupy.log.phase(phase):
            return function(*arguments, **keywords)

    return marked


def inputs(model: Model) -> tuple[list[Any], dict[str, Any]]:
    """Inputs of unlike lengths where there is padding, and what else a net needs."""
    if model.takes_images:
        return [model.blank()], {}
    if model.task == "masked-token":
        return TEXTS, {"position": 0}
    return TEXTS, {"decoder": [0, 4]} if model.task == "sequence-to-sequence" else {}


def explained(model: Model, method: str | Composite, **how: Any) -> list[Explanation]:
    items, more = inputs(model)
    return model.explain(items, method, **more, **how)


def crossings(device: CountedCupy, during: str) -> Counter[tuple[str, str, str]]:
    """(way, file, function) -> how often, in one phase."""
    return Counter(c[1:] for c in device.log.crossings if c.during == during)


# -- a sweep ---------------------------------------------------------------------------------------

ROWS_OF_EXPERTS = (TO_DEVICE, "gather.py", "rows")
CHOICE = (TO_HOST, "top_k.py", "choose")
PADDING_OF_CHOICE = (TO_HOST, "moe.py", "dispatched")


@pytest.mark.parametrize("name", NETS)
def test_nothing_crosses_while_a_sweep_walks(name: str, device: CountedCupy) -> None:
    """Of experts, the numbers of their rows are sent; and where blocks are run again, so is the
    choice of experts. What is computed is NumPy's to the last bit: a row that needs no scale is
    divided by 1.
    """
    home = random_model(NETS[name], 1)
    away = moved(home, device.asarray)
    for method, how in product(METHODS_HERE, WAYS):
        pairs = zip(explained(home, method, **how), explained(away, method, **how), strict=True)
        assert all(np.array_equal(a.relevance, b.relevance) for a, b in pairs)
    found = set(crossings(device, "walk"))
    assert found <= ({ROWS_OF_EXPERTS, CHOICE, PADDING_OF_CHOICE} if name in EXPERTS else set())


def test_what_experts_send_while_a_sweep_walks(device: CountedCupy) -> None:
    """Once for each gather of a block with experts, and nothing comes back."""
    model = moved(random_model(ARCHITECTURES["mixtral"], 1), device.asarray)
    explained(model, "attnlrp", keep=())
    walked = crossings(device, "walk")
    assert walked == {ROWS_OF_EXPERTS: crossings(device, "forward")[ROWS_OF_EXPERTS]}


@pytest.mark.parametrize("bounds, sent", [((-1.0, 1.0), 0), (([-1.0] * 3, [1.0] * 3), 2)])
def test_bounds_of_pixels(bounds: tuple[Any, Any], sent: int, device: CountedCupy) -> None:
    """A bound that is one number is filled in, those of channels are sent."""
    method = METHODS["attnlrp-vit-box"].with_options(low=bounds[0], high=bounds[1])
    explained(moved(random_model(ARCHITECTURES["vit"], 1), device.asarray), method, keep=())
    assert crossings(device, "walk") == Counter({(TO_DEVICE, "linear.py", "bound"): sent})


def test_a_sweep_ends_in_one_transfer(device: CountedCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its whole ledger at once; after it each example's relevance and embeddings, nobody else's."""
    monkeypatch.setattr(Sweep, "run", _during(device, "sweep", Sweep.run))
    explained(moved(random_model(LLAMA, 1), device.asarray), "attnlrp", keep=(), audit=True)
    assert crossings(device, "sweep") == Counter([(TO_HOST, "sweep.py", "_on_host")])
    assert crossings(device, "")[TO_HOST, "explainer.py", "_example"] == 2 * len(TEXTS)


def test_a_number_that_is_asked_for_is_seen(
    device: CountedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is sharp: the branches of the host, taken on the device."""
    monkeypatch.setattr(softmax, "can_ask", lambda x: True)
    monkeypatch.setattr(refl.arrays, "can_ask", lambda x: True)
    model = moved(random_model(LLAMA, 1), device.asarray)
    explained(model, "gradient", keep=())
    assert set(crossings(device, "walk")) == {
        (TO_HOST, "softmax.py", "visible"),
        (TO_HOST, "rms_norm.py", "gradient"),
    }


# -- a forward -------------------------------------------------------------------------------------

OVERFLOW = (TO_HOST, "network.py", "refuse_overflow")
ANGLES = (TO_DEVICE, "rope.py", "tables")
BUCKETS = (TO_DEVICE, "relative_bias.py", "buckets")
LAST_TOKENS = (TO_HOST, "heads.py", "last_tokens")
IDS = (TO_DEVICE, "network.py", "_padded")
LOGITS = (TO_HOST, "question.py", "forward")
SEED = (TO_DEVICE, "question.py", "sweep")

FORWARD: dict[str, dict[tuple[str, str, str], int]] = {
    **{name: {ANGLES: 1} for name in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi")},
    "gemma2": {ANGLES: 1},
    "gemma3_text": {ANGLES: 2},
    "t5": {BUCKETS: 2},
    "mixtral": {ANGLES: 1, CHOICE: 2, PADDING_OF_CHOICE: 2, ROWS_OF_EXPERTS: 35},
    "qwen3_moe": {ANGLES: 1, CHOICE: 2, PADDING_OF_CHOICE: 2, ROWS_OF_EXPERTS: 44},
    "llama, classifier": {ANGLES: 1, LAST_TOKENS: 2},
}
"""What crosses in one forward of a padded batch beside the check for overflow at its end; of other
nets nothing. Tables of constants; of a block with experts which ones were chosen and which tokens
are padding, and the numbers of the rows of each; and for a classifier of texts the ids and which of
them are padding.
"""


@pytest.mark.parametrize("name", NETS)
def test_what_crosses_in_a_forward(name: str, device: CountedCupy) -> None:
    explained(moved(random_model(NETS[name], 1), device.asarray), "attnlrp", keep=())
    assert crossings(device, "forward") == Counter(FORWARD.get(name)) + Counter([OVERFLOW])


def test_what_crosses_around_them(device: CountedCupy) -> None:
    """Ids and attention mask go, the logits come, the seed goes; what a sweep found comes."""
    explained(moved(random_model(LLAMA, 1), device.asarray), "attnlrp", keep=())
    around = crossings(device, "")
    assert {key: around[key] for key in (IDS, LOGITS, SEED)} == {IDS: 2, LOGITS: 1, SEED: 1}


def test_a_checkpoint_on_the_device(device: CountedCupy) -> None:
    """`device="cuda"` from end to end; each weight is sent once, at its first use."""
    text = "the keys to the cabinet"
    wanted = refl.load().explain(text)
    model = refl.load(device="cuda")
    first = model.explain(text)
    assert any(c.file == "weights.py" for c in device.log.crossings)
    device.log.crossings.clear()
    again = model.explain(text)
    assert not any(c.file == "weights.py" or c.during == "walk" for c in device.log.crossings)
    for e in (first, again):
        assert np.array_equal(e.relevance, wanted.relevance) and e.logit == wanted.logit


# -- what takes the place of a branch --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 4.0])
def test_norms_of_any_numbers(eps: float, dtype: str, device: CountedCupy) -> None:
    """Rows as small and as large as the dtype has them, each with rows that need no care."""
    limits = np.finfo(dtype)
    sizes = [0.0, float(limits.tiny), 1e-3, 1.0, float(limits.max) ** 0.5, float(limits.max) / 4]
    base = np.random.default_rng(0).uniform(0.5, 1, (1, len(sizes), 7)) - 0.75
    x = (base * np.asarray(sizes)[None, :, None]).astype(dtype)
    w, g = np.linspace(0.5, 1.5, 7, dtype=dtype), np.ones_like(x)
    place = device.asarray
    with np.errstate(all="ignore"):
        here = rms_norm.forward(x, w, norm_eps=eps)
        there = rms_norm.forward(place(x), place(w), norm_eps=eps)
        g_here = rms_norm.gradient(x, w, here, g, norm_eps=eps)
        g_there = rms_norm.gradient(place(x), place(w), there, place(g), norm_eps=eps)
    np.testing.assert_allclose(there.get(), here, rtol=16 * float(limits.eps), atol=0.0)
    wanted, got = g_here.inputs[0], g_there.inputs[0].get()
    assert np.array_equal(np.isfinite(got), np.isfinite(wanted))
    ordinary = np.isfinite(wanted).all(axis=-1)
    size = np.abs(wanted[ordinary]).max(axis=-1, keepdims=True)
    assert ordinary.sum() >= 4
    assert (np.abs(got - wanted)[ordinary] <= 64 * float(limits.eps) * size).all()


def test_masked_logits_without_a_branch(device: CountedCupy) -> None:
    """Masked by `mask`, by minus infinity, by the least number; a row that is masked whole."""
    low = float(np.finfo(np.float32).min)
    x = np.asarray([[[1, -np.inf, 2, low], [-np.inf] * 4, [0.5, 1, 2, 3]]], dtype=np.float32)
    mask = np.asarray([[[True, True, False, True]] * 3])
    r = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    for rule in (
        softmax.taylor,
        softmax.spread,
        softmax.z_plus,
        softmax.identity,
        softmax.gradient,
    ):
        for hidden in (None, mask):
            sent = None if hidden is None else device.asarray(hidden)
            here = rule(x, softmax.forward(x, mask=hidden), r, mask=hidden)
            p = softmax.forward(device.asarray(x), mask=sent)
            there = rule(device.asarray(x), p, device.asarray(r), mask=sent)
            assert np.array_equal(there.inputs[0].get(), here.inputs[0])
            assert there.absorbed.keys() == here.absorbed.keys()
            for cause, amount in here.absorbed.items():  # on the host few are summed in float64
                rounding = r.size * 2**-24 * np.abs(3 * r).sum()
                assert np.abs(there.absorbed[cause].get() - amount) <= rounding, cause


def test_where_nothing_is_masked_the_entry_is_zero(device: CountedCupy) -> None:
    """The host knows, and leaves it out."""
    x = np.asarray([[[1.0, 2.0]]])
    here = softmax.identity(x, softmax.forward(x), x)
    sent = device.asarray(x)
    there = softmax.identity(sent, softmax.forward(sent), sent)
    assert not here.absorbed and there.absorbed["mask"].get().tolist() == [0.0]


def test_sums_come_in_one_transfer(device: CountedCupy) -> None:
    sums = [device.asarray(np.asarray([float(n), 1.0])) for n in range(5)]
    device.log.crossings.clear()
    assert [s.tolist() for s in asnumpy_each(sums)] == [[float(n), 1.0] for n in range(5)]
    assert len(device.log.crossings) == 1
    assert asnumpy_each([]) == []
    own = np.ones(2)
    assert asnumpy_each([own])[0] is own


def test_a_number_is_filled_in_not_sent(device: CountedCupy) -> None:
    other = device.asarray(np.zeros(2, dtype=np.float32))
    device.log.crossings.clear()
    assert like(0.5, other).dtype == np.float32 and not device.log.crossings
    like([0.5], other)
    assert len(device.log.crossings) == 1
    assert can_ask(np.zeros(1)) and can_ask(np.float64(0)) and not can_ask(other)


# -- fused kernels ---------------------------------------------------------------------------------

GATES = tuple(activation.GATES)


def fused_functions() -> set[Callable[..., Any]]:
    """What is under each `fused` of the engine."""
    modules = [refl.arrays] + [
        import_module(f"refl.rules.{m.name}") for m in pkgutil.iter_modules(refl.rules.__path__)
    ]
    members = (value for module in modules for value in vars(module).values())
    return {value.__wrapped__ for value in members if _is_fused(value)}


def _is_fused(value: Any) -> bool:
    return getattr(value, "__code__", None) is fused(lambda: None).__code__


def run_every_kernel(device: CountedCupy, dtype: str) -> None:
    """Every kind of activation under every method, and the rules that no method has."""
    rules = ATTNLRP.override(Rule("softmax", "z_plus"), Rule("linear", "gamma"), name="by sign")
    for kind in ("gelu", "gelu_new", "gelu_fast", "silu", "quick_gelu", "relu", "relu2", "tanh"):
        model = moved(random_model(GPT2 | {"activation_function": kind}, 1, dtype), device.asarray)
        for method in ("gradient", ATTNLRP, ATTNLRP_GRADIENT, rules):
            explained(model, method, keep=())
    for config in (LLAMA, MAMBA):
        explained(moved(random_model(config, 1, dtype), device.asarray), ATTNLRP, keep=())
    explained(moved(random_model(MAMBA, 1, dtype), device.asarray), "gradient", keep=())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_fused_function_can_be_traced(dtype: str, device: CountedCupy) -> None:
    """All of them run, as kernels, on what CuPy's tracing hands them."""
    run_every_kernel(device, dtype)
    outermost = {function for function, _ in device.log.kernels}
    assert len(outermost) >= 10
    inside = {refl.arrays.erfc.__wrapped__, activation._scaled_sigmoid.__wrapped__}
    assert fused_functions() - outermost <= inside


@pytest.mark.needs("cupy")
def test_cupy_traces_every_fused_function(device: CountedCupy) -> None:
    """And computes throughout in the dtype of the arrays: nothing in half precision, as it takes a
    product of two numbers. The one whole number is that of the digits to round to.
    """
    run_every_kernel(device, "float32")
    run_every_kernel(device, "float64")
    kernels = device.log.kernels
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "cupy")
        for function, kinds in kernels:
            types, made = cupy_trace(function, kinds)
            (dtype,) = {np.dtype(kind[0]) for kind in kinds if isinstance(kind, tuple)} - {
                np.dtype(bool)
            }
            assert types <= {dtype, np.dtype(bool), np.dtype(np.int64)}, function.__name__
            assert made == {dtype}


def cupy_trace(function: Callable[..., Any], kinds: tuple[Any, ...]) -> tuple[Any, Any]:
    """The dtypes that CuPy computes in, and those of the result. The arrays lie nowhere."""
    import cupy
    from cupy._core import fusion

    memory = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096, 1 << 20, None, 0), 0)
    arrays = [
        cupy.ndarray((2,) * kind[1], kind[0], memptr=memory) if isinstance(kind, tuple) else kind
        for kind in kinds
    ]
    history, local = fusion._FusionHistory(), fusion._thread_local
    local.history, local.is_old_fusing = history, True
    try:
        kernel, _ = history.get_fusion(function, tuple(arrays), function.__name__)
    finally:
        local.history, local.is_old_fusing = None, False
    computed = {np.dtype(t) for operation in history.op_list for t in operation.dtypes}
    return computed, {np.dtype(p.dtype) for p in kernel.out_params}


@pytest.mark.needs("cupy")
def test_cupy_has_every_function_that_a_device_is_asked_for(device: CountedCupy) -> None:
    """Also on the branches that arrays of the host never take."""
    for config in NETS.values():
        for method in METHODS.values():
            if method.name != "attnlrp-vit-box":
                explained(moved(random_model(config, 1), device.asarray), method, audit=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "cupy")
        import cupy

        assert not {refusal(cupy, *call) for call in device.log.calls} - {None}
        assert callable(cupy.fuse) and hasattr(cupy.ndarray, "get")


# -- the device itself -----------------------------------------------------------------------------


OUTSIDE_A_KERNEL: dict[str, Callable[[Any], Any]] = {
    "shape": lambda x: x * x.shape[-1],
    "branch": lambda x: x if x > 0 else -x,
    "float": lambda x: float(x) * x,
    "new array": lambda x: namespace(x).zeros_like(x) + x,
    "sum": lambda x: x * namespace(x).sum(x),
    "function astype": lambda x: namespace(x).astype(x > 0, x.dtype),
    "index": lambda x: x[..., 0],
    "product of matrices": lambda x: x @ x,
    "numbers chosen": lambda x: x * namespace(x).where(x > 0, 1.0, -1.0),
}
"""What CuPy's tracing cannot do, or does in half precision."""


@pytest.mark.parametrize("what", OUTSIDE_A_KERNEL)
def test_a_kernel_refuses(what: str, device: CountedCupy) -> None:
    def kernel(x: Any) -> Any:
        return OUTSIDE_A_KERNEL[what](x)

    x = device.asarray(np.ones((2, 2)))
    with pytest.raises((TypeError, NotImplementedError)):
        fused(kernel)(x)
    assert not device.tracing


def test_numbers_may_not_meet_in_a_kernel(device: CountedCupy) -> None:
    @fused
    def doubled(x: Any, a: float) -> Any:
        return x * (2 * a)

    x = device.asarray(np.ones(2))
    with pytest.raises(TypeError, match="half precision"):
        doubled(x, 0.5)
    assert doubled(np.ones(2), 0.5).tolist() == [1, 1]


def test_a_kernel_is_made_once(device: CountedCupy) -> None:
    x = device.asarray(np.ones((1, 2)))
    device.log.launches = 0
    conservation.stabilized_ratio(x, x, 1e-6, "sign")
    kernels = {f.__name__ for f, _ in device.log.kernels}
    assert kernels == {"_signed_ratio"}
    assert refl.arrays._kernel(device, conservation._signed_ratio.__wrapped__) is (
        refl.arrays._kernel(device, conservation._signed_ratio.__wrapped__)
    )


@pytest.mark.parametrize(
    "ask",
    [bool, list, repr, str, lambda x: float(x[0]), lambda x: int(x[0])]
    + [lambda x: x.item(), lambda x: x.tolist(), lambda x: x.get(), lambda x: x[x > 0]],
)
def test_whatever_makes_the_host_wait_is_counted(
    ask: Callable[[Any], Any], device: CountedCupy
) -> None:
    x = device.asarray(np.ones(1))
    device.log.crossings.clear()
    ask(x)
    assert [c.way for c in device.log.crossings] == [TO_HOST]


@pytest.mark.parametrize(
    "send",
    [
        lambda x, cupy: cupy.asarray([1.0]),
        lambda x, cupy: cupy.asarray(1.0),
        lambda x, cupy: x[[0]],
        lambda x, cupy: x[np.zeros(1, dtype=np.int64)],
    ],
)
def test_whatever_is_sent_is_counted(send: Callable[..., Any], device: CountedCupy) -> None:
    x = device.asarray(np.ones(1))
    device.log.crossings.clear()
    with suppress(TypeError):  # host and device do not mix, and it is counted all the same
        send(x, device)
    assert [c.way for c in device.log.crossings] == [TO_DEVICE]


def test_host_and_device_do_not_mix(device: CountedCupy) -> None:
    x, host = device.asarray(np.ones(2)), np.ones(2)
    for mixed in (
        lambda: x + host,
        lambda: host + x,
        lambda: device.maximum(x, host),
        lambda: np.asarray(x),
        lambda: x.__setitem__(0, host),
        lambda: conservation.stabilized_ratio(host[None], x, 1e-6, "sign"),
        lambda: Traced(host, is_number=False) + host,
    ):
        with pytest.raises(TypeError):
            mixed()
    assert flags(x > 0, x).get().tolist() == [1, 1]
