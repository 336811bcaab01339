"""What `quantization_config` says of a checkpoint, once it is understood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray

from refl.io.quantized.matrix import Matrix
from refl.io.safetensors import Entry

Entries: TypeAlias = Mapping[str, Entry]

Read: TypeAlias = Callable[[str], NDArray[Any]]
"""The name of a tensor of a few numbers -> these."""

Matrices: TypeAlias = Callable[[Entries, Read], Iterator[Matrix]]
"""Those that the tensors of a file make up."""


@dataclass(frozen=True)
class Scheme:
    method: str
    """As `quant_method` calls it."""
    matrices: Matrices
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For whoever asks what a folder holds: bits, group size, ..."""
    skipped: tuple[str, ...] = ()
    """Modules whose weights are floats."""
    activations: str = ""
    """What other libraries round besides the weights, and refl does not."""
    unread: tuple[str, ...] = ()
    """Ends of the names of tensors for that: nothing reads them."""
