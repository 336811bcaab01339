"""What the adapters of torch libraries share: arrays in and out, and relevance read off as autograd
hands it back.

torch is imported when a function is called, not before.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

from refl.errors import ReflError

Tensor = Any


def needs(*libraries: str) -> None:
    """Raises ReflError, before any case is tried, where one of them is not installed."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ReflError(
            f"this adapter needs {', '.join(missing)}: pyproject.toml says how they are "
            "installed, at the extra 'peers'"
        )


def to_array(array: Any, dtype: str) -> Tensor:
    import torch

    return torch.tensor(array, dtype=getattr(torch, dtype))


def to_numpy(x: Tensor) -> Any:
    """What is no tensor stays as it is: a model's logit is a number."""
    import torch

    if not isinstance(x, torch.Tensor):
        return x
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def handed_back(f: Callable[..., Tensor], propagated: Tensor, *operands: Tensor) -> Any:
    """What the backward pass of f gives each operand when `propagated` arrives at its output; None
    where it gives nothing.
    """
    leaves = [t.detach().clone().requires_grad_() for t in operands]
    f(*leaves).backward(propagated)
    found = tuple(t.grad for t in leaves)
    return found if len(found) > 1 else found[0]


def except_constants(
    constant: Sequence[bool] | None, operands: Sequence[Tensor], run: Callable[[list[Tensor]], Any]
) -> tuple[Any, ...]:
    """Operands with those that are constant cut from the graph; `run` does the backward pass. ->
    what each got, None for constants.
    """
    live = [not each for each in constant or [False] * len(operands)]
    leaves = [t.detach().clone().requires_grad_(k) for t, k in zip(operands, live, strict=True)]
    run(leaves)
    return tuple(t.grad if k else None for t, k in zip(leaves, live, strict=True))


def activations() -> dict[str, Callable[[Tensor], Tensor]]:
    """kind -> the function, as transformers writes it."""
    import torch
    from torch.nn import functional

    return {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu_fast": lambda x: x * torch.sigmoid(2 * 0.7978845608 * x * (1 + 0.044715 * x * x)),
        "relu": functional.relu,
        "relu2": lambda x: functional.relu(x).square(),
        "tanh": torch.tanh,
    }


def activation_module(kind: str, library: str) -> Any:
    """torch's module of it, for a library whose rules are put on modules; some have none."""
    from torch import nn

    modules: dict[str, Callable[[], Any]] = {
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
        "silu": nn.SiLU,
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
    }
    if kind not in modules:
        raise NotImplementedError(
            f"torch has no module for {kind}, and {library}'s rules are put on modules"
        )
    return modules[kind]()


def only_signed(stabilizer: str, library: str) -> None:
    """Refuses the forms of the stabilizer that a library lacks."""
    if stabilizer != "sign":
        raise NotImplementedError(f"{library}'s stabilizer is z + eps s(z), and no other")


def least_stabilizer(x: Tensor, r: Tensor | None = None) -> float:
    """For rules of other libraries that always add one: vanishes beside any sum of contributions
    that is not zero, and divides a zero without an overflow, whatever relevance r arrives. float16
    has no such number.
    """
    import torch

    if x.dtype == torch.float16:
        return 1e-6
    greatest = 0.0 if r is None else float(r.abs().max())
    format = torch.finfo(x.dtype)
    return max(math.sqrt(format.tiny), greatest * 4 / float(format.max))


def linear_module(w: Tensor, b: Tensor | None) -> Any:
    """torch.nn.Linear that holds w (O, I) and b (O,) as they are."""
    from torch import nn

    return _holding(nn.Linear(w.shape[1], w.shape[0], bias=b is not None, dtype=w.dtype), w, b)


def layer_module(layer: dict[str, Any], library: str) -> Any:
    """Of a layer of a small network."""
    if layer["operation"] == "activation":
        return activation_module(layer["kind"], library)
    return linear_module(layer["w"], layer["b"])


def patches_module(w: Tensor, b: Tensor | None) -> Any:
    """torch.nn.Conv2d on patches that do not overlap: w (O, C, h, w')."""
    from torch import nn

    size = tuple(w.shape[2:])
    return _holding(
        nn.Conv2d(w.shape[1], w.shape[0], size, stride=size, bias=b is not None, dtype=w.dtype),
        w,
        b,
    )


def _holding(module: Any, w: Tensor, b: Tensor | None) -> Any:
    module.weight.data = w.clone()
    if b is not None:
        module.bias.data = b.clone()
    return module.requires_grad_(False)


def stacked(build: Callable[[dict[str, Any]], Any], layers: Sequence[dict[str, Any]]) -> Any:
    """A torch.nn.Sequential, `build` making a module of each layer."""
    from torch import nn

    return nn.Sequential(*(build(layer) for layer in layers))


def several_targets(
    net: Callable[[Tensor], Tensor], x: Tensor, seeds: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """One forward of x, and a backward pass from each seed. -> z,
    the relevance at x for each seed.
    """
    import torch

    leaf = x.detach().clone().requires_grad_()
    z = net(leaf)
    return z, [torch.autograd.grad(z, leaf, seed, retain_graph=True)[0] for seed in seeds]
