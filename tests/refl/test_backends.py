"""The engine runs unchanged wherever arrays live, and its parts lean on each other in one direction
only.

Whole explanations under array-api-strict on a second fake device (where a call outside the
standard, or a host array that slips in, raises) and under CuPy where there is a GPU; every call of
a namespace function held against CuPy's own signatures, which needs no GPU; and the imports, read
from the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from backends import Backend, Recorder, refusal
from checkpoints import ROOT

from refl.explanation import Explanation
from refl.model import Model
from refl.rules.composites import ATTNLRP, METHODS, Composite, Rule
from refl.verification.random_models import GPT2, LLAMA, moved, random_model

NETS = {
    "llama": LLAMA | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "gpt2": GPT2 | {"n_layer": 1},
    "gpt2, relu": GPT2
    | {"n_layer": 1, "activation_function": "relu", "tie_word_embeddings": False},
    "llama, tanh, llama3 rope": LLAMA
    | {
        "hidden_act": "tanh",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}

VARIED = (
    ATTNLRP.override(Rule("linear", "gamma"), Rule("softmax", "z_plus"), name="gamma"),
    ATTNLRP.override(Rule("linear", "alpha_beta"), Rule("softmax", "spread"), name="alpha-beta"),
    ATTNLRP.override(Rule("linear", "flat"), Rule("softmax", "identity"), name="flat"),
    ATTNLRP.override(Rule("linear", "w_square"), Rule("layer_norm", "identity"), name="w-square"),
)
"""Rules that no published method of the table uses."""
COMPOSITES = (*METHODS.values(), *VARIED)

TEXTS = [[3, 1, 16, 1, 8], [2, 0], [7, 7, 4]]


def ways(model: Model, composite: Composite) -> Iterator[Explanation]:
    """Single and padded, plain and fast attention, all at once and block by block, several targets,
    other seeds.
    """
    yield model.explain(TEXTS[0], composite, audit=True)
    yield model.explain(TEXTS[0], composite, keep=(), audit=True, contrast=(2, 5))
    for how in ({"keep": "*"}, {"keep": ()}, {"recompute": True, "keep": ()}, {"recompute": True}):
        yield from model.explain(TEXTS, composite, audit=True, **how)
    yield from model.explain_each(TEXTS[2], [1, 2], composite, seed="log-probability", audit=True)


def rounding(e: Explanation) -> float:
    """8 u sum|terms| over the whole account."""
    return 8 * e.ledger.roundoff * sum(float(entry.rounding_scale[0]) for entry in e.ledger)


@pytest.mark.parametrize("backend", ["array-api-strict", "cupy"], indirect=True)
@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", NETS)
def test_explanations_are_the_same_in_every_backend(
    name: str, composite: Composite, backend: Backend
) -> None:
    home = random_model(NETS[name], 1)
    for here, there in zip(
        ways(home, composite), ways(moved(home, backend.place), composite), strict=True
    ):
        assert isinstance(there.relevance, np.ndarray) and there.relevance.dtype == np.float64
        assert (
            there.tokens == here.tokens
            and there.target_id == here.target_id
            and list(there) == list(here)
        )
        assert np.abs(there.relevance - here.relevance).max() <= rounding(here)
        for site in here:
            assert np.abs(there[site] - here[site]).max() <= rounding(here), site
        for a, b in zip(here.ledger, there.ledger, strict=True):
            assert (a.site, a.rule, a.absorbed.keys()) == (b.site, b.rule, b.absorbed.keys())
            assert abs(a.received[0] - b.received[0]) <= rounding(here)


@pytest.mark.parametrize("backend", ["array-api-strict", "cupy"], indirect=True)
@pytest.mark.parametrize("name", NETS)
def test_logits_and_generation_in_every_backend(name: str, backend: Backend) -> None:
    home = random_model(NETS[name], 1)
    away = moved(home, backend.place)
    assert np.abs(away.logits(TEXTS[0]) - home.logits(TEXTS[0])).max() <= 1e-12
    assert away.generate(TEXTS[0], 4) == home.generate(TEXTS[0], 4)


@pytest.mark.parametrize("backend", ["array-api-strict", "cupy"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_dtype_is_kept_everywhere(name: str, dtype: str, backend: Backend) -> None:
    """No operation and no rule widens or narrows what it was given; only the conservation ledger
    are float64 throughout.
    """
    model = moved(random_model(NETS[name], 1, dtype), backend.place)
    for composite in COMPOSITES:
        e = model.explain(TEXTS[0], composite)
        for site in e:
            assert (
                e.activation(site).dtype
                == e.sites.one(e.sites.propagated[site]).dtype
                == np.dtype(dtype)
            ), (composite.name, site)


def test_read_only_weights_and_inputs_stay_as_they_are() -> None:
    """Nothing is computed in place on what belongs to the caller: the weights of a random model
    cannot be written to.
    """
    model = random_model(NETS["llama"], 1)
    before = {name: np.array(model.weights[name]) for name in model.weights}
    for composite in COMPOSITES:
        model.explain(TEXTS, composite)
    assert all(np.array_equal(before[name], model.weights[name]) for name in before)


# -- CuPy's signatures, without a GPU --------------------------------------------------------------


def test_cupy_would_take_every_call(recorder: Recorder) -> None:
    """Each function of the namespace that typical runs call exists in CuPy and has the parameters
    it is called with.
    """
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    for config in NETS.values():
        model = random_model(config, 1)
        model.generate(TEXTS[0], 1)
        for composite in COMPOSITES:
            list(ways(model, composite))
    assert {"exp", "reshape", "where"} <= {name for name, _, _ in recorder.calls}
    refused = {refusal(cupy, *call) for call in recorder.calls} - {None}
    assert not refused


def test_the_signature_check_refuses() -> None:
    """It is sharp: calls that NumPy takes and CuPy does not."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert refusal(cupy, "asarray", 1, ("device", "dtype"))
    assert refusal(cupy, "sum", 1, ("axis", "where"))
    assert refusal(cupy, "exp", 1, ("where",))
    assert refusal(cupy, "no_such_function", 1, ())
    assert (
        refusal(cupy, "exp", 1, ("dtype",)) is None
        and refusal(cupy, "sum", 1, ("axis", "keepdims")) is None
    )


# -- imports, read from the source -----------------------------------------------------------------

LAYERS = (
    {"refl.errors", "refl.arrays"},
    {"refl.device", "refl.io.files"},
    {"refl.io.config"},
    {"refl.io.safetensors"},
    {
        "refl.rules",
        "refl.rules.*",
        "refl.ledger",
        "refl.seeds",
        "refl.io.weights",
        "refl.io.text",
        "refl.io.images",
        "refl.show.heatmap",
        "refl.show",
    },
    {"refl.rules.composites", "refl.trace"},
    {"refl.nets", "refl.nets.*", "refl.sweep", "refl.explanation"},
    {"refl.explainer"},
    {"refl.model"},
)
"""From the bottom up. A module imports from its own layer or from below; what stands in none is
above all of them (the command line).
"""

OTHERS = {
    "torch",
    "transformers",
    "lxt",
    "zennit",
    "captum",
    "mpmath",
    "tabulate",
    "array_api_strict",
}


def module_of(path: Path) -> str:
    folder = path.parent.name
    name = path.stem if folder == "refl" else f"{folder}.{path.stem}"
    return f"refl.{name}".removesuffix(".__init__")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, `from refl.rules import add` as refl.rules.add;
    not those for type checking alone.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in (n for n in ast.walk(tree) if id(n) not in hidden):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path.name} has a relative import: imports are written in full"
            )
            found |= {
                f"{node.module}.{alias.name}" if is_package(node.module) else str(node.module)
                for alias in node.names
            }
    return found


def is_package(module: str | None) -> bool:
    return module in ("refl", "refl.rules", "refl.nets", "refl.verification")


def layer(module: str) -> int:
    for number, members in reversed(
        list(enumerate(LAYERS))
    ):  # refl.rules.composites before refl.rules.*
        if module in members or f"{module.rpartition('.')[0]}.*" in members:
            return number
    return len(LAYERS)


@pytest.mark.parametrize("path", sources("refl", "rules", "nets"), ids=module_of)
def test_imports_point_down(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "refl":
        return  # the face; it imports when it is first used
    module, targets = (
        module_of(path),
        {m for m in imported(path) if m.startswith("refl.") and "__version__" not in m},
    )
    upward = {m for m in targets if layer(m) > layer(module)}
    assert not upward, f"{module} imports {sorted(upward)}, which stand above it"


@pytest.mark.parametrize("path", sources("nets"), ids=module_of)
def test_nets_know_the_trace_alone(path: Path) -> None:
    """Beside the trace's interface: arrays, errors, each other, and the names of activations."""
    allowed = {"refl.trace", "refl.arrays", "refl.errors", "refl.rules.activation"}
    assert {
        m for m in imported(path) if m.startswith("refl.") and not m.startswith("refl.nets")
    } <= allowed
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and n.module == "refl.rules.activation"
        for a in n.names
    }
    assert names <= {"NAMES"}


@pytest.mark.parametrize("path", sources("rules"), ids=module_of)
def test_rules_know_arrays_and_each_other(path: Path) -> None:
    allowed = {"refl.arrays"} | ({"refl.errors"} if path.name == "composites.py" else set())
    assert {
        m for m in imported(path) if m.startswith("refl.") and not m.startswith("refl.rules")
    } <= allowed


@pytest.mark.parametrize("path", sources("rules", "nets"), ids=module_of)
def test_rules_and_nets_name_no_array_library(path: Path) -> None:
    """The namespace is the arrays' own: with NumPy by name a line would work on the host and fail
    on a device.
    """
    assert not {m.partition(".")[0] for m in imported(path)} & {"numpy", "cupy"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & {
        "np",
        "numpy",
        "cp",
        "cupy",
    }


@pytest.mark.parametrize("path", sources("refl", "rules", "nets"), ids=module_of)
def test_the_engine_needs_no_other_framework(path: Path) -> None:
    assert not {m.partition(".")[0] for m in imported(path)} & OTHERS


DEFINITIONS = (
    "exact",
    "exact_vision",
    "exact_experts",
    "running",
    "exact_answers",
    "by_hand_decoder",
    "by_hand_encoder",
)
COMMANDS = (
    "case",
    "mistakes",
    "conformance",
    "conformance_models",
    "model_vectors",
    "report",
    "compare",
    "compare_page",
    "suspects",
    "identities",
)
"""What users run: it may need no more than refl itself does."""


@pytest.mark.parametrize("name", DEFINITIONS)
def test_exact_definitions_import_nothing_of_the_engine(name: str) -> None:
    allowed = {f"refl.verification.{other}" for other in DEFINITIONS}
    found = {m for m in imported(ROOT / "verification" / f"{name}.py") if m.startswith("refl")}
    assert not {m for m in found if not any(m == a or m.startswith(f"{a}.") for a in allowed)}


def test_the_exact_sweep_takes_the_graph_from_the_engine_and_nothing_else() -> None:
    """Records, parameters and values are read as data: its rules and its walk are its own."""
    found = {
        m
        for m in imported(ROOT / "verification" / "exact_sweep.py")
        if m.startswith("refl.") and not m.startswith("refl.verification")
    }
    assert found <= {"refl.trace"}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_users_run_needs_no_extra(name: str) -> None:
    top = {m.partition(".")[0] for m in imported(ROOT / "verification" / f"{name}.py")}
    assert not top & (OTHERS | {"hypothesis", "jsonschema", "captum", "matplotlib", "pytest"})
