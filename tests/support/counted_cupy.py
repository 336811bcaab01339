"""A module by CuPy's name whose device is NumPy, and that counts what crosses to it and from it.

Its arrays are as strict as CuPy's: no host array may meet one, and NumPy cannot read one. Every
number that comes to the host (`float(x)`, `if x:`, `x.get()`, a loop over x, a selection whose size
the numbers decide) is counted, and everything that is sent. `fuse` runs a function on stand-ins
that can do what CuPy's tracing can, and no more.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np

import refl.arrays

GO_BETWEENS = (__file__, refl.arrays.__file__)
"""Files whose functions ask in the name of others."""


class Crossing(NamedTuple):
    """One transfer: during what, which way, and the file and function that asked for it."""

    during: str
    way: str
    file: str
    function: str


@dataclass
class Log:
    """What was done on the device."""

    crossings: list[Crossing] = field(default_factory=list)
    calls: set[tuple[str, int, tuple[str, ...]]] = field(default_factory=set)
    """Functions of the namespace: name, number of arguments by position, keywords."""
    launches: int = 0
    """Operations that are a kernel each; those inside a fused kernel are not counted."""
    kernels: set[tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=set)
    """Functions that were fused, each with what it was called with: the dtype and the number of
    axes of an array, a number, None.
    """
    during: str = ""

    def cross(self, way: str) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename in GO_BETWEENS and frame.f_back is not None:
            frame = frame.f_back
        code = frame.f_code
        file = Path(code.co_filename).name
        self.crossings.append(Crossing(self.during, way, file, code.co_name))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self.during = self.during, name
        try:
            yield
        finally:
            self.during = before


TO_HOST, TO_DEVICE = "to host", "to device"
NUMBERS = (bool, int, float, np.generic)

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
LOGIC = ("and_", "or_", "xor")
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
REFLECTED = {f"{name.strip('_')}": getattr(operator, name) for name in (*ARITHMETIC, *LOGIC)}
OPERATORS = REFLECTED | {name: getattr(operator, name) for name in COMPARISONS}
OPERATORS |= {name: getattr(operator, name) for name in ("neg", "invert", "abs")}


class Device(NamedTuple):
    id: int = 0


def device_array(log: Log) -> type:
    """The type of the arrays of a device whose transfers are counted in `log`."""

    class ndarray:
        __slots__ = ("held",)
        __array_ufunc__ = None  # NumPy's arrays leave an operation to this one, which refuses them
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, held: Any) -> None:
            self.held = np.asarray(held)

        shape = property(lambda self: self.held.shape)
        dtype = property(lambda self: self.held.dtype)
        ndim = property(lambda self: self.held.ndim)
        size = property(lambda self: self.held.size)
        nbytes = property(lambda self: self.held.nbytes)
        device = property(lambda self: Device())
        T = property(lambda self: ndarray(self.held.T))

        @property
        def base(self) -> Any:
            return None if self.held.base is None else ndarray(self.held.base)

        def __len__(self) -> int:
            return len(self.held)

        def astype(self, dtype: Any, copy: bool = True) -> Any:
            log.launches += 1
            return ndarray(self.held.astype(dtype, copy=copy))

        def copy(self) -> Any:
            log.launches += 1
            return ndarray(self.held.copy())

        def __getitem__(self, index: Any) -> Any:
            return ndarray(self.held[_index(index)])

        def __setitem__(self, index: Any, value: Any) -> None:
            log.launches += 1
            self.held[_index(index)] = _inside(value)

        # -- what makes the host wait --------------------------------------------------------------

        def get(self) -> Any:
            log.cross(TO_HOST)
            return self.held.copy()

        def __iter__(self) -> Iterator[Any]:
            log.cross(TO_HOST)
            return (ndarray(part) for part in self.held)

        def __array__(self, *_: Any, **__: Any) -> NoReturn:
            raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def _inside(value: Any) -> Any:
        """What a kernel is called with: arrays of the device, and numbers."""
        if isinstance(value, ndarray):
            return value.held
        if isinstance(value, np.ndarray):
            raise TypeError("an array of NumPy among those of the device")
        if isinstance(value, (tuple, list)):
            return type(value)(map(_inside, value))
        return value

    def _index(index: Any) -> Any:
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, ndarray) and part.dtype == np.bool_:
                log.cross(TO_HOST)
            elif isinstance(part, (list, np.ndarray)):
                log.cross(TO_DEVICE)
        return _inside(index)

    def to_host(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def converted(self: Any) -> Any:
            log.cross(TO_HOST)
            return convert(self.held)

        return converted

    def computed(function: Callable[..., Any]) -> Callable[..., Any]:
        def method(*operands: Any) -> Any:
            log.launches += 1
            return ndarray(function(*map(_inside, operands)))

        return method

    for name, convert in (
        *(("__float__", float), ("__int__", int), ("__bool__", bool), ("__index__", int)),
        *(("item", np.ndarray.item), ("tolist", np.ndarray.tolist)),
        *(("__repr__", repr), ("__str__", str)),
    ):
        setattr(ndarray, name, to_host(convert))
    for name, function in OPERATORS.items():
        setattr(ndarray, f"__{name}__", computed(function))
    for name, function in REFLECTED.items():
        setattr(ndarray, f"__r{name}__", computed(lambda a, b, f=function: f(b, a)))
        setattr(ndarray, f"__i{name}__", _in_place(name, log, _inside))
    ndarray.inside = staticmethod(_inside)  # type: ignore[attr-defined]
    ndarray.__module__ = "cupy"
    return ndarray


def _in_place(name: str, log: Log, inside: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    change = getattr(operator, f"i{name}")

    def method(self: Any, other: Any) -> Any:
        log.launches += 1
        self.held = change(self.held, inside(other))
        return self

    return method


VIEWS = {"reshape", "permute_dims", "matrix_transpose", "broadcast_to", "flip", "finfo"}
"""Functions that start no kernel, most of the time."""


class CountedCupy(ModuleType):
    """The module. What it lacks it takes from NumPy."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.log = Log()
        self.ndarray = device_array(self.log)
        self.tracing = False
        runtime = SimpleNamespace(getDeviceCount=lambda: 1, memGetInfo=lambda: (6 << 30, 8 << 30))
        self.cuda = SimpleNamespace(runtime=runtime)

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        self.log.calls.add(("asarray", 1, () if dtype is None else ("dtype",)))
        if isinstance(values, self.ndarray):
            return values if dtype is None else values.astype(dtype, copy=False)
        self.log.cross(TO_DEVICE)
        return self.ndarray(np.array(values, dtype=dtype))

    def asnumpy(self, array: Any) -> Any:
        return array.get()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(np, name)
        if not callable(found) or (isinstance(found, type) and issubclass(found, np.generic)):
            return found

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.tracing:
                return traced_call(name, found, arguments, keywords)
            self.log.calls.add((name, len(arguments), tuple(sorted(keywords))))
            self.log.launches += name not in VIEWS
            inside = self.ndarray.inside
            made = found(*inside(arguments), **{k: inside(v) for k, v in keywords.items()})
            return self.ndarray(made) if isinstance(made, (np.ndarray, np.generic)) else made

        return call

    # -- fused kernels -----------------------------------------------------------------------------

    def fuse(self, *, kernel_name: str) -> Callable[[Any], Any]:
        return lambda function: Fused(self, function, kernel_name)


class Fused:
    """What CuPy makes of a function: a kernel for arguments by position."""

    def __init__(self, module: CountedCupy, function: Callable[..., Any], name: str) -> None:
        assert name.isidentifier(), f"{name} cannot be the name of a kernel"
        self.module, self.function, self.name = module, function, name

    def __call__(self, *arguments: Any) -> Any:
        if self.module.tracing:
            return self.function(*arguments)
        for argument in arguments:
            if not (argument is None or isinstance(argument, (self.module.ndarray, *NUMBERS))):
                raise TypeError(f"{self.name} is called with a {type(argument).__name__}")
        log = self.module.log
        self.module.tracing = True
        try:
            made = self.function(*map(self._stand_in, arguments))
        finally:
            self.module.tracing = False
        log.launches += 1
        log.kernels.add((self.function, tuple(map(_kind, arguments))))
        return tuple(map(self._array, made)) if isinstance(made, tuple) else self._array(made)

    def _stand_in(self, argument: Any) -> Any:
        if isinstance(argument, self.module.ndarray):
            return Traced(argument.held.copy(), is_number=False)
        return argument if argument is None else Traced(argument, is_number=True)

    def _array(self, made: Any) -> Any:
        if not isinstance(made, Traced) or made.is_number:
            raise TypeError(f"{self.name} returns a {type(made).__name__}")
        return self.module.ndarray(made.held)


def _kind(argument: Any) -> Any:
    if argument is None or isinstance(argument, NUMBERS):
        return argument
    return argument.dtype.char, argument.ndim


FUSIBLE = ("abs", "clip", "exp", "log1p", "maximum", "round", "where")
"""Functions that fused kernels call. CuPy has more: a new one is traced by CuPy itself first."""


class Traced:
    """What stands for an array or a number while CuPy traces: operations, `astype`, `dtype` and
    `ndim`.
    """

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: Any, is_number: bool) -> None:
        self.held = held
        self.is_number = is_number

    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)

    def astype(self, dtype: Any, copy: bool = True) -> Traced:
        return Traced(self.held.astype(dtype), is_number=False)

    def __bool__(self) -> NoReturn:
        raise TypeError("a fused kernel cannot be branched by a number")

    __float__ = __int__ = __index__ = __iter__ = __bool__

    def __getattr__(self, name: str) -> NoReturn:
        raise NotImplementedError(f"CuPy's tracing knows no {name}")


Traced.__module__ = "cupy._core.fusion"


def traced_call(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    if name == "finfo":  # asked of a dtype
        return function(*arguments)
    if name not in FUSIBLE or keywords:
        raise NotImplementedError(f"no fused kernel calls cupy.{name} with {keywords}")
    return traced(function, *arguments, chooses=name == "where")


def traced(function: Callable[..., Any], *operands: Any, chooses: bool = False) -> Traced:
    """The operation on what the stand-ins hold. Numbers without an array are refused: CuPy would
    take them in half precision.
    """
    values = operands[1:] if chooses else operands
    if not all(isinstance(o, (Traced, *NUMBERS)) for o in operands):
        raise TypeError("a fused kernel takes arrays of the device, and numbers")
    if not any(isinstance(o, Traced) and not o.is_number for o in values):
        raise TypeError("numbers meet in a fused kernel, where CuPy takes them in half precision")
    return Traced(function(*(o.held if isinstance(o, Traced) else o for o in operands)), False)


def _traced_methods() -> None:
    def method(function: Callable[..., Any]) -> Callable[..., Traced]:
        return lambda *operands: traced(function, *operands)

    for name, function in OPERATORS.items():
        if name != "matmul":
            setattr(Traced, f"__{name}__", method(function))
    for name, function in REFLECTED.items():
        if name != "matmul":
            setattr(Traced, f"__r{name}__", method(lambda a, b, f=function: f(b, a)))


_traced_methods()
