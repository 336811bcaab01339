"""Runs a net's forward, operation by operation, and keeps a record of each.

A net is a function of a trace, a config and its inputs. It asks the trace for every operation
(`t.linear("q_proj", x)`), so the same net runs recorded, unrecorded, recorded block by block with
recomputation, with activations edited, or, in a subclass, as the frozen surrogate that checks the
sweep.

Roles. A record says what it is in the architecture's own terms, whatever its site is called
(`attention.query`, `mlp.up`, `patch_embedding`, `head`, `residual`, ...): what composites match.
Nets give them; those inside attention are given here.

Sites. A value is named by the module whose output it is (`model.layers.3.mlp.act_fn`), in the
checkpoint's own module paths. Inside `t.module(name, ...)` names are relative to that module, and
"" is the module itself. A module's input has the alias `<path>.input`; a value that several modules
read has several names and one relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from refl import attention, pieces
from refl.arrays import Array, device_of, extremes, like, namespace
from refl.attention import Kept
from refl.edits import Change, Edit, applied, constants, edited_site, inside_attention
from refl.errors import ReflError
from refl.mask import Mask
from refl.rules import gather, top_k

Choice: TypeAlias = top_k.Choice
"""[example][row][k]: the numbers of a row's k largest entries."""

Index: TypeAlias = gather.Index
"""For each example, which row goes to each place; None for a place left empty."""

QUERIES = 128
"""Queries of a part of attention: few enough that a part of every head stays in cache, enough for
efficient matrix products."""

FEW = 64 * 64
"""So many pairs of a query and a key, and fewer, are held: it costs less to keep the scores than to
form them again."""


class Value:
    """An activation: its array, the site it is named by,
    and whether it is a constant of the net.
    """

    __slots__ = ("_again", "_array", "constant", "names", "site")

    def __init__(self, array: Array, site: str, constant: bool = False) -> None:
        self._array = array
        self._again: Callable[[], Array] | None = None
        self.site = site
        self.names = [site]
        self.constant = constant

    @property
    def array(self) -> Array:
        if self._array is None and self._again is not None:
            self._array = self._again()
        return self._array

    @array.setter
    def array(self, array: Array) -> None:
        self._array = array

    def let_go(self, again: Callable[[], Array] | None = None) -> None:
        """Of the array: for good, or until it is asked for and `again` forms it once more."""
        self._array, self._again = None, again

    def let_go_for_now(self) -> None:
        """Of an array that can be formed again; any other is kept."""
        if self._again is not None:
            self._array = None


class Parameter:
    """A tensor of the checkpoint, fetched when it is needed and not held in between. `kernel`: a
    convolution's, as a matrix (O, I).
    """

    __slots__ = ("kernel", "name", "transposed", "weights")

    def __init__(
        self,
        weights: Mapping[str, Array],
        name: str,
        transposed: bool = False,
        kernel: bool = False,
    ) -> None:
        self.weights = weights
        self.name = name
        self.transposed = transposed
        self.kernel = kernel

    @property
    def array(self) -> Array:
        array = self.weights[self.name]
        if self.kernel:
            return namespace(array).reshape(array, (array.shape[0], -1))
        return array.T if self.transposed else array


class Shared(Mapping[str, Array]):
    """Weights in which one module's tensors are also found under
    the path of a site that shares them.
    """

    def __init__(self, weights: Mapping[str, Array], path: str, stored: str) -> None:
        self.weights = weights
        self.path = path
        self.stored = stored

    def __getitem__(self, name: str) -> Array:
        return self.weights[self._stored(name)]

    def _stored(self, name: str) -> str:
        inner = name.removeprefix(f"{self.path}.")
        return name if inner == name else f"{self.stored}.{inner}"

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._stored(name) in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


BASE_LAYER, ADAPTER_DOWN, ADAPTER = ".base_layer", ".lora_A.default", ".adapter"
"""Ends of the sites of a linear layer that a LoRA adapter is kept apart from, y = W x + s B (A x):
of W x and of A x as peft names them, and of s B (A x). That there are weights of the second name
tells that there is an adapter (io/adapters.py).
"""

Operand = Value | Parameter | None


class Part(NamedTuple):
    """A part of a record that is run again when the sweep reaches it, as a trace of its own."""

    run: Callable[..., tuple[Trace, tuple[Value, ...], Value]]
    """run(record=...) -> the trace, stand-ins for the record's operands, and the output. With
    `output=...`, what it is known to be is not computed again."""
    inputs: tuple[Any, ...]
    """For each operand where in it the part's own lies: an index, or ... for all of it."""
    output: Any
    """The same for the output."""

    @property
    def whole(self) -> bool:
        return self.output is Ellipsis


class Record:
    """One operation as it ran: what went in, what came out, its attributes, and its role; or, with
    `parts`, several operations that will be run again.
    """

    __slots__ = ("attributes", "operands", "operation", "output", "parts", "role")

    def __init__(
        self,
        operation: str,
        operands: tuple[Operand, ...],
        output: Value,
        attributes: dict[str, Any],
        role: str = "",
        parts: tuple[Part, ...] = (),
    ) -> None:
        self.operation = operation
        self.operands = operands
        self.output = output
        self.attributes = attributes
        self.role = role
        self.parts = parts

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        return _arrays(self.operands)


def _arrays(operands: tuple[Operand, ...]) -> tuple[Array | None, ...]:
    return tuple([None if o is None else o.array for o in operands])


class Trace:
    """The interface a net is written against.

    weights    tensor name -> array, in the dtype and on the device of the computation
    record     keep a record of every operation (what the sweep walks), or compute only
    plain      attention as recorded operations (every site readable), or in parts of its queries,
               which the sweep runs again (faster, and T x T is never held but for a few tokens)
    recompute  record blocks by their inputs and run each again when the sweep reaches it: memory
               for one block at a time
    edits      site -> what is changed there (refl.edits)
    leaves     site of an embedding or of the pixels -> the array to start from, in its place
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        *,
        record: bool = True,
        plain: bool = True,
        recompute: bool = False,
        edits: Mapping[str, Change] | None = None,
        leaves: Mapping[str, Array] | None = None,
    ) -> None:
        self.weights = weights
        self.record = record
        self.plain = plain
        self.recompute = recompute
        self.edits = dict(edits or {})
        self.records: list[Record] = []
        self.values: dict[str, Value] = {}
        self.known: dict[str, Array] = {}
        """Site -> its array, where that has been computed before."""
        self.leaves = dict(leaves or {})
        self.edited: set[str] = set()
        """Sites whose edit was made, and sites that were started from."""
        self.watched: list[tuple[str, Array]] | None = []
        """(site, bool): whether what came in there is finite, where an overflow could go unseen.
        None for a part that the sweep runs again."""
        self.path = ""

    # -- names -------------------------------------------------------------------------------------

    def site(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def name(self, value: Value, site: str) -> Value:
        """The value with one more name; where that name has an edit, what is read in its place."""
        if self.record:
            if site not in value.names:
                value.names.append(site)
            self.values[site] = value
        return self._changed(value, site) if site in self.edits else value

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        before, self.path = self.path, self.site(name)
        try:
            yield
        finally:
            self.path = before

    @contextmanager
    def sharing(self, stored: str) -> Iterator[None]:
        """Inside, the open module's weights are those of the module of the full name `stored`:
        layers that are run more than once keep sites of their own."""
        before, self.weights = self.weights, Shared(self.weights, self.path, stored)
        try:
            yield
        finally:
            self.weights = before

    def module(self, name: str, function: Callable[..., Value], x: Value, *rest: Any) -> Value:
        """`function(t, x, *rest)` as the module of this name: its input and its output get the
        module's names.
        """
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        with self.inside(name):
            y = function(self, x, *rest)
        return y if y.site in (path, edited_site(path)) else self.name(y, path)

    def once(self, name: str, function: Callable[..., Value], *rest: Any) -> Value:
        """`function(t, name, *rest)`: what is the same however far a text is continued, an
        encoder's output say. A trace with a cache runs it once.
        """
        return function(self, name, *rest)

    def block(self, name: str, function: Callable[..., Value], x: Value, *rest: Any) -> Value:
        """`module` for the repeated blocks of a net: where the trace recomputes, the unit of
        recomputation.

        Values among `rest` (what an encoder hands to every block of a decoder, a bias that all
        blocks share) receive relevance as x does.
        """
        if not (self.record and self.recompute):
            first = len(self.records)
            y = self.module(name, function, x, *rest)
            _let_go_of_light(self.records[first:], y)
            return y
        path = self.site(name)
        if f"{path}.input" not in self.edits:  # an edit of the block's ends is made inside it
            x = self.name(x, f"{path}.input")
        outside = tuple(dict.fromkeys(v for v in (x, *rest) if isinstance(v, Value)))

        alike = partial(self._alike(self.plain), edits=self.edits, edited=self.edited)

        def run(
            record: bool = True, output: Array | None = None
        ) -> tuple[Trace, tuple[Value, ...], Value]:
            inner = alike(record=record)
            stand_ins = {v: Value(v.array, v.site, v.constant) for v in outside}
            inputs = [stand_ins[v] if isinstance(v, Value) else v for v in (x, *rest)]
            return inner, tuple(stand_ins.values()), inner.module(path, function, *inputs)

        part = Part(run, (Ellipsis,) * len(outside), Ellipsis)
        y = self._in_parts(path, outside, (part,))
        return y if path in self.edits else self.name(y, path)

    def _in_parts(self, site: str, operands: tuple[Value, ...], parts: tuple[Part, ...]) -> Value:
        """What the parts compute side by side, along the last axis but one, as one record."""
        ends = [part.run(record=False)[2] for part in parts]
        arrays = [end.array for end in ends]
        array = arrays[0] if len(ends) == 1 else namespace(*arrays).concat(arrays, axis=-2)
        output = Value(array, ends[0].site if parts[0].whole else site)
        return self._keep(Record("recomputed", operands, output, {}, parts=parts))

    def _alike(self, plain: bool) -> Callable[..., Trace]:
        """What makes a trace like this one. It does not hold this one, whose records it is part of:
        activations have to go when the last name for a trace does, not at a garbage collection.
        """
        return partial(_alike, type(self), self.weights, self.watched, plain)

    def at_rows(self, index: tuple[int, ...]) -> Trace:
        """A recorded trace with other rows chosen from the last choice of rows on; the records
        before it are the same ones.
        """
        last = max(n for n, r in enumerate(self.records) if r.attributes.get("kind") == "rows")
        t = Trace(self.weights, plain=self.plain, recompute=self.recompute)
        t.records = self.records[:last]
        anew: dict[Operand, Operand] = {}
        for r in self.records[last:]:
            operands = tuple(anew.get(o, o) for o in r.operands)
            arrays = _arrays(operands)
            how = r.attributes | ({"index": index} if r is self.records[last] else {})
            output = Value(self.compute(r.operation, r.output.site, arrays, how), r.output.site)
            output.names, anew[r.output] = list(r.output.names), output
            t.records.append(Record(r.operation, operands, output, how, r.role))
        return t

    # -- operations, in the order of a textbook ----------------------------------------------------

    def embedding(
        self, name: str, ids: Array, *, role: str = "tokens", weight: str | None = None
    ) -> Value:
        """`weight`: the full name of a table shared with another module."""
        table = Parameter(self.weights, weight or f"{self.site(name)}.weight")
        return self._run("embedding", name, (table,), role, ids=ids, role=role)

    def source(self, name: str, array: Array, *, role: str = "pixels") -> Value:
        """An input that is numbers already; the first axis counts examples."""
        return self._run("source", name, (), role, values=array, role=role)

    def learned(self, name: str, beside: Value, *, role: str, constant: bool = False) -> Value:
        """A tensor (1, ...) of the checkpoint, or one row (D,), as a value, once for each example
        of `beside`; its relevance is absorbed as `role`. `constant`: products leave it none.
        """
        table = Parameter(self.weights, self.site(name))
        value = self._run("learned", name, (table, beside), role, role=role)
        value.constant = value.constant or constant
        return value

    def patches(
        self,
        name: str,
        x: Value,
        size: tuple[int, int],
        *,
        bias: bool = True,
        role: str = "patch_embedding",
    ) -> Value:  # (B, C, H, W) -> (B, N, O)
        """A convolution whose windows stand side by side: unfold, then linear with the kernel as a
        matrix (and its bias).

        The output has a row for each patch, where the module's own has a grid: (B, O, H/h, W/w)
        flattened and transposed.
        """
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        w, b = (
            Parameter(self.weights, f"{path}.weight", kernel=True),
            Parameter(self.weights, f"{path}.bias") if bias else None,
        )
        unfolded = self.move(f"{name}.unfolded", "patches", x, size=size)
        return self._run("linear", name, (unfolded, w, b), role)

    def convolution(
        self, name: str, x: Value, *, stride: int, role: str
    ) -> Value:  # (B, T, C) -> (B, T', O)
        """A convolution of three rows, over an edge of zeros: unfold, then linear with the kernel
        as a matrix (and its bias). Rows in and out where the module has columns, (B, C, T).
        """
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        edge = [
            self.source(
                f"{name}.{end}", namespace(x.array).zeros_like(x.array[:, :1, :]), role=EDGE
            )
            for end in ("before", "behind")
        ]
        x = self.move(f"{name}.padded", "concat", edge[0], x, edge[1], axis=1)
        unfolded = self.move(f"{name}.unfolded", "windows", x, size=3, stride=stride)
        w, b = (
            Parameter(self.weights, f"{path}.weight", kernel=True),
            Parameter(self.weights, f"{path}.bias"),
        )
        return self._run("linear", name, (unfolded, w, b), role)

    def linear(
        self,
        name: str,
        x: Value,
        *,
        bias: bool | str = False,
        weight: str | None = None,
        transposed: bool = False,
        role: str = "",
    ) -> Value:
        """`weight`, and `bias` as a string: the full name of a tensor that another module holds.
        `transposed`: stored (I, O), as GPT-2's Conv1D is."""
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        w = Parameter(self.weights, weight or f"{path}.weight", transposed)
        b = (
            Parameter(self.weights, bias if isinstance(bias, str) else f"{path}.bias")
            if bias
            else None
        )
        down = f"{path}{ADAPTER_DOWN}"
        if f"{down}.weight" not in self.weights:
            return self._run("linear", name, (x, w, b), role)
        x = self.name(x, f"{path}{BASE_LAYER}.input")
        base = self._run("linear", f"{name}{BASE_LAYER}", (x, w, b), role)
        low = self.linear(f"{name}{ADAPTER_DOWN}", x, role="adapter.down")
        change = self.linear(f"{name}{ADAPTER}", low, role="adapter.up")
        return self.add(name, base, change, role="adapter.sum")

    def add(self, name: str, a: Value, b: Value, *, role: str = "") -> Value:
        return self._run("add", name, (a, b), role)

    def multiply(self, name: str, *operands: Value, role: str = "") -> Value:
        constant = tuple(o.constant for o in operands)
        return self._run("multiply", name, operands, role, constant=constant)

    def matmul(self, name: str, a: Value, b: Value, *, role: str = "") -> Value:
        return self._run("matmul", name, (a, b), role)

    def softmax(self, name: str, x: Value, mask: Array | None = None, *, role: str = "") -> Value:
        return self._run("softmax", name, (x,), role, mask=mask)

    def rms_norm(
        self,
        name: str,
        x: Value,
        norm_eps: float,
        *,
        offset: float = 0.0,
        weight: float | None = None,
        role: str = "norm",
    ) -> Value:
        """`offset`: what is added to the stored weight. `weight`: one number for every feature,
        where none is stored.
        """
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        stored = self.weights if weight is None else {f"{path}.weight": _row_of(weight, x.array)}
        w = Parameter(stored, f"{path}.weight")
        return self._run("rms_norm", name, (x, w), role, norm_eps=norm_eps, offset=offset)

    def layer_norm(
        self, name: str, x: Value, norm_eps: float, *, bias: bool = True, role: str = "norm"
    ) -> Value:
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        w, b = (
            Parameter(self.weights, f"{path}.weight"),
            Parameter(self.weights, f"{path}.bias") if bias else None,
        )
        return self._run("layer_norm", name, (x, w, b), role, norm_eps=norm_eps)

    def activation(self, name: str, x: Value, kind: str, *, role: str = "") -> Value:
        x = self.name(x, f"{self.site(name)}.input")
        return self._run("activation", name, (x,), role, kind=kind)

    def rotary(self, name: str, x: Value, cos: Array, sin: Array, *, role: str = "") -> Value:
        return self._run("rotary", name, (x,), role, cos=cos, sin=sin)

    def scale(self, name: str, x: Value, factor: float, *, role: str = "") -> Value:
        return self._run("scale", name, (x,), role, factor=factor)

    def move(self, name: str, kind: str, *operands: Value, role: str = "", **how: Any) -> Value:
        """A movement of rules/movement.py: split_heads, merge_heads, repeat_heads, transpose,
        slice, concat, rows, reshape, patches, windows.
        """
        return self._run("movement", name, operands, role, kind=kind, **how)

    def mean(self, name: str, x: Value, counted: Array, *, role: str = "") -> Value:
        return self._run("pooling", name, (x,), role, counted=counted)

    def top_k(self, name: str, p: Value, k: int, *, role: str = "") -> tuple[Value, Choice]:
        """The k largest entries of each row, and which they are."""
        chosen = self.choose(self.site(name), p.array, k)
        return self._run("top_k", name, (p,), role, chosen=chosen), chosen

    def choose(self, site: str, p: Array, k: int) -> Choice:
        return top_k.choose(p, k)

    def renormalize(self, name: str, r: Value, *, role: str = "") -> Value:
        return self._run("renormalize", name, (r,), role)

    def gather(self, name: str, x: Value, index: Index, *, role: str = "") -> Value:
        return self._run("gather", name, (x,), role, index=index)

    def combine(
        self,
        name: str,
        ys: Sequence[Value],
        index: tuple[Index, ...],
        length: int,
        *,
        role: str = "",
    ) -> Value:
        """The rows of every y back at the places among `length`
        that `index` took them from, summed.
        """
        return self._run("combine", name, tuple(ys), role, index=index, length=length)

    def causal_convolution(
        self,
        name: str,
        x: Value,
        *,
        bias: bool = False,
        weight: str | None = None,
        role: str = "",
    ) -> Value:  # (B, T, C) -> (B, T, C)
        """Of each channel with its own weights. `weight`: the name of a tensor beside the module
        that is not called so.
        """
        path = self.site(name)
        x = self.name(x, f"{path}.input")
        w = Parameter(self.weights, self.site(weight) if weight else f"{path}.weight", kernel=True)
        b = Parameter(self.weights, f"{path}.bias") if bias else None
        return self._run("causal_convolution", name, (x, w, b), role)

    def scan(
        self, name: str, x: Value, d: Value, b: Value, c: Value, *, weight: str, role: str = ""
    ) -> Value:  # (B, T, I) x 2, (B, T, N) x 2 -> (B, T, I)
        """Selective scan with step sizes d, coefficients b and c; `weight`: log(-A), (I, N)."""
        a_log = Parameter(self.weights, self.site(weight))
        return self._run("scan", name, (x, d, b, c, a_log), role)

    def soft_cap(self, name: str, x: Value, cap: float, *, role: str = "") -> Value:
        """cap tanh(x / cap), with the sites `divided`, `tanh` and `capped` of this name."""
        z = self.scale(f"{name}.divided", x, 1 / cap)
        z = self.activation(f"{name}.tanh", z, "tanh", role=role)
        return self.scale(f"{name}.capped", z, cap)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        mask: Mask | None,
        *,
        bias: Value | None = None,
        cap: float | None = None,
    ) -> Value:
        """softmax(q k^T) v per head, with the sites `scores`, `probabilities` and `context`; q is
        scaled already.

        mask: which query may look where; None where nothing is hidden. `bias` (B, H, J, I) is added
        to the scores; `cap` is what they are soft-capped at.
        """
        pairs = q.array.shape[-2] * k.array.shape[-2]
        if self.plain or pairs <= FEW or inside_attention(self.edits, self.path):
            return self._attention(q, k, v, None if mask is None else mask.array, bias, cap)
        operands = (q, k, v) if bias is None else (q, k, v, bias)
        parts = self._parts_of_attention(operands, mask, cap)
        tiled = self._tiled(operands, mask, cap)
        if tiled is None:
            return self._edited(self._in_parts(self.site("context"), operands, parts))
        array, kept = tiled
        output = Value(array, self.site("context"))
        steps = attention.steps(bias is not None, cap)
        again = {"mask": mask, "cap": cap, "kept": kept, "path": self.path, "steps": steps}
        return self._edited(self._keep(Record("attention", operands, output, again, parts=parts)))

    def _tiled(
        self, operands: tuple[Value, ...], mask: Mask | None, cap: float | None
    ) -> tuple[Array, Kept] | None:
        """By refl/attention.py, where that can be."""
        arrays = [operand.array for operand in operands]
        a = attention.computable(*arrays, mask=mask, cap=cap)
        return None if a is None else attention.forward(a)

    def _attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        visible: Array | None,
        bias: Value | None,
        cap: float | None,
    ) -> Value:
        """As recorded operations."""
        scores = self.matmul(
            "scores", q, self.move("key.transposed", "transpose", k), role="attention.scores"
        )
        if bias is not None:
            scores = self.add("scores.biased", scores, bias, role="attention.bias")
        if cap is not None:
            scores = self.soft_cap("scores", scores, cap, role="attention.cap")
        p = self.softmax("probabilities", scores, visible, role="attention.probabilities")
        return self.matmul("context", p, v, role="attention.context")

    def _parts_of_attention(
        self, operands: tuple[Value, ...], mask: Mask | None, cap: float | None
    ) -> tuple[Part, ...]:
        """The same some queries at a time, on the keys that they can see."""
        length, every = (operand.array.shape[-2] for operand in operands[:2])
        alike, parts = partial(_at, self._alike(plain=True), self.path), []
        for start in range(0, length, QUERIES):
            rows = slice(start, min(start + QUERIES, length))
            columns = slice(0, every) if mask is None else mask.visible(rows)
            queries, keys = (..., rows, slice(None)), (..., columns, slice(None))
            indices = (queries, keys, keys, (..., rows, columns))[: len(operands)]
            visible = None if mask is None else partial(mask.part, rows, columns)
            run = partial(self._attention_part, alike, operands, indices, visible, cap)
            parts.append(Part(run, indices, queries))
        return tuple(parts)

    @staticmethod
    def _attention_part(
        alike: Callable[..., Trace],
        operands: tuple[Value, ...],
        indices: tuple[Any, ...],
        visible: Callable[[], Array | None] | None,
        cap: float | None,
        record: bool = True,
        output: Array | None = None,
    ) -> tuple[Trace, tuple[Value, ...], Value]:
        inner, pairs = alike(record=record), zip(operands, indices, strict=True)
        inner.known = {} if output is None else {inner.site("context"): output}
        parts = tuple(Value(o.array[index], o.site, o.constant) for o, index in pairs)
        bias = parts[3] if len(parts) == 4 else None
        x, y, z = parts[:3]
        return inner, parts, inner._attention(x, y, z, visible and visible(), bias, cap)

    # -- the one place where something is computed -------------------------------------------------

    def _run(
        self,
        operation: str,
        name: str,
        operands: tuple[Operand, ...],
        role: str,
        /,
        **attributes: Any,
    ) -> Value:
        site = self.site(name)
        arrays = _arrays(operands)
        values = [o for o in operands if isinstance(o, Value)]
        constant = bool(values) and all(v.constant for v in values)
        known = site in self.known
        array = self.known[site] if known else self.compute(operation, site, arrays, attributes)
        if site in self.leaves and operation in LEAVES:
            array = self._leaf(site, array)
        output = Value(array, site, constant)
        return self._edited(self._keep(Record(operation, operands, output, attributes, role)))

    def compute(
        self,
        operation: str,
        site: str,
        arrays: tuple[Array | None, ...],
        attributes: dict[str, Any],
    ) -> Array:
        if self.watched is not None and operation in _HIDING:
            self.watched.append((site, _HIDING[operation](arrays[0])))
        return pieces.forward(operation, arrays, attributes)

    def _leaf(self, site: str, array: Array) -> Array:
        """What to start from in place of the array. Raises ReflError where its shape is another."""
        leaf = self.leaves[site]
        if tuple(leaf.shape) != tuple(array.shape):
            raise ReflError(
                f"the leaf of {site} has the shape {tuple(leaf.shape)}: expected "
                f"{tuple(array.shape)}, the first axis for examples"
            )
        self.edited.add(site)
        return like(leaf, array)

    def _edited(self, value: Value) -> Value:
        """What everything after a value reads in its place."""
        return self._changed(value, value.site) if value.site in self.edits else value

    def _changed(self, value: Value, site: str) -> Value:
        """What the edit of `site` makes of a value: where nothing is recorded an array, else by
        operations that are recorded.
        """
        edit = self.edits[site]
        self.edited.add(site)
        if not self.record:
            return Value(applied(edit, value.array, site), edited_site(site), value.constant)
        if not isinstance(edit, Edit):
            raise TypeError(f"the edit of {site} is a function: there is no record of that")
        before, self.path = self.path, edited_site(site)
        factor, amount = constants(edit, value.array, site)
        if factor is not None:
            f = self.source("factor", factor, role="edit")
            f.constant = True
            name = "" if amount is None else "scaled"
            value = self.multiply(name, f, value, role="edit")
        if amount is not None:
            a = self.source("amount", amount, role="edit")
            value = self.add("", value, a, role="edit")
        self.path = before
        return value

    def _keep(self, record: Record) -> Value:
        if self.record:
            if record.output.site in self.values:
                raise ValueError(
                    f"two values are named {record.output.site}: a net must name each operation "
                    "once"
                )
            self.values[record.output.site] = record.output
            self.records.append(record)
        return record.output


LEAVES = ("embedding", "source")
"""Operations that a run can start from in place of: they compute nothing."""

EDGE = "edge"
"""What the zeros at the ends of a convolution's input absorb."""

LIGHT = pieces.ROW_BY_ROW
"""Operations that cost less than the memory of what they give: a few passes over their inputs."""

HEAVY = 1 << 19
"""Numbers from above which an array is formed again where that is light."""


def _let_go_of_light(records: Iterable[Record], last: Value) -> None:
    """Once a block has run: nothing reads these arrays before the sweep is there. The block's own
    output is read by the next.
    """
    for record in records:
        z = record.output
        if record.operation in LIGHT and z is not last and z.array.size > HEAVY:
            z.let_go(partial(_again, record.operation, record.operands, record.attributes))


def _again(operation: str, operands: tuple[Operand, ...], attributes: Mapping[str, Any]) -> Array:
    return pieces.forward(operation, _arrays(operands), attributes)


def _alike(
    kind: type[Trace],
    weights: Mapping[str, Array],
    watched: list[tuple[str, Array]] | None,
    plain: bool,
    *,
    record: bool,
    edits: Mapping[str, Change] | None = None,
    edited: set[str] | None = None,
) -> Trace:
    t = kind(weights, plain=plain, record=record)
    t.watched = None if record else watched
    t.edits, t.edited = dict(edits or {}), set() if edited is None else edited
    return t


def _row_of(number: float, x: Array) -> Array:  # (..., N) -> (N,)
    """The number once for each feature of x."""
    return namespace(x).full((x.shape[-1],), number, dtype=x.dtype, **device_of(x))


def _finite_scores(x: Array) -> Array:  # -> bool ()
    """For a softmax, which makes a zero of minus infinity, and whose rules take what is below half
    the dtype's minimum for a mask.
    """
    xp, (largest, least) = namespace(x), extremes(x)
    return xp.isfinite(largest) & (least > xp.finfo(x.dtype).min / 2)


def _finite_ends(x: Array) -> Array:  # -> bool ()
    """For a norm, which may make zeros of infinities, and for an activation, which is flat at one
    end or at both.
    """
    xp, (largest, least) = namespace(x), extremes(x)
    return xp.isfinite(largest) & xp.isfinite(least)


_HIDING = {
    "rms_norm": _finite_ends,
    "layer_norm": _finite_ends,
    "softmax": _finite_scores,
    "activation": _finite_ends,
}
"""Operation -> whether what comes in is finite, where what goes out can be finite all the same."""


def _at(make: Callable[..., Trace], path: str, *, record: bool) -> Trace:
    t = make(record=record)
    t.path = path
    return t
