"""Values of the IR: types over named dims, nodes, graphs, and the decisions that passes write on a graph."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from weft.errors import VerifyError

if TYPE_CHECKING:
    from weft.ir.ops.op import Op

Dims = tuple[str, ...]

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FLOATS = ("f16", "bf16", "f32", "f64")
ITEMSIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "i64": 8, "bool": 1}  # bytes
TORCH = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i64": "int64", "bool": "bool"}
DTYPES = tuple(ITEMSIZE)


def need(ok: object, message: str) -> None:
    """Raises VerifyError(message) unless `ok`."""
    if not ok:
        raise VerifyError(message)


def union(*dims: Iterable[str]) -> Dims:
    """The dims of all, each once, in order of first appearance."""
    return tuple(dict.fromkeys(n for d in dims for n in d))


def promote(*dtypes: str) -> str:
    """The narrowest float dtype that holds all the float dtypes given; f32 when none is float."""
    floats = {d for d in dtypes if d in FLOATS}
    if len(floats) == 1:
        return floats.pop()
    return "f64" if "f64" in floats else "f32"


def torch_dtype(torch: Any, dtype: str) -> Any:
    """What torch has for a dtype."""
    return getattr(torch, TORCH[dtype])


@dataclass(frozen=True, slots=True)
class Type:
    """A dtype and the names of the dims, in memory order. Sizes stand in one table beside the graph."""

    dtype: str
    dims: Dims

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(self.dims)}]"

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS

    def but(self, dims: Iterable[str]) -> "Type":
        """The same dtype over other dims."""
        return Type(self.dtype, tuple(dims))


@dataclass(frozen=True, slots=True)
class Val:
    """A value: bound once, by an input or a node."""

    name: str
    type: Type

    def __hash__(self) -> int:
        return hash(self.name)  # equal values have equal names, and a string keeps its hash

    @property
    def dims(self) -> Dims:
        return self.type.dims

    @property
    def dtype(self) -> str:
        return self.type.dtype


@dataclass(frozen=True, slots=True)
class Node:
    """One op applied. `src` is the spec line it comes from ("spec.yaml:14"); it is not part of equality."""

    op: "Op"
    ins: tuple[Val, ...]
    outs: tuple[Val, ...]
    src: str = field(default="", compare=False)

    def __hash__(self) -> int:
        return hash(self.outs)  # an op may hold a whole body; equal nodes have equal results

    @property
    def space(self) -> Dims:
        """The iteration space: every dim of every operand and result."""
        return union(*(v.dims for v in (*self.ins, *self.outs)))

    @property
    def types(self) -> tuple[Type, ...]:
        """The types of the operands."""
        return tuple(v.type for v in self.ins)


def checked(v: Val, where: str = "") -> Val:
    """The value, if its name, dtype and dims obey the rules 1 to 3 of `weft.ir.verify`."""
    fault = _fault(v.name, v.type)
    need(not fault, f"{where}: {fault}" if where else fault)
    return v


@lru_cache(maxsize=1 << 14)
def _fault(name: str, type: Type) -> str:
    """What a value breaks of those rules; "": nothing. The same few thousand are asked for after every pass."""
    if not IDENTIFIER.fullmatch(name):
        return f"{name!r} is not an identifier"
    if type.dtype not in ITEMSIZE:
        return f"unknown dtype {type.dtype!r} of {name}; the dtypes are {' '.join(DTYPES)}"
    for d in type.dims:
        if not IDENTIFIER.fullmatch(d):
            return f"dim {d!r} of {name} is not an identifier"
    return "" if len(set(type.dims)) == len(type.dims) else f"{name} has a dim twice: {type}"


Number = float | int | str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass chose and why.

    subject: the value, or "a+b" for a pair. kind: exact | numerics | function | cost. numbers: what justified it.
    rejected: (choice, reason, numbers) of every alternative, the reason from a closed list. found: what was decided, as
    an object; text and JSON are views of it without."""

    pass_: str
    subject: str
    choice: str
    kind: str
    numbers: tuple[tuple[str, Number], ...] = ()
    rejected: tuple[tuple[str, str, tuple[tuple[str, Number], ...]], ...] = ()
    src: str = ""
    found: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Graph:
    """Inputs, nodes in execution order, outputs. Decisions ride along and are not part of equality."""

    inputs: tuple[Val, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Val, ...]
    decisions: tuple[Decision, ...] = field(default=(), compare=False)
