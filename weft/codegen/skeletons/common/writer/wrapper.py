"""The launch wrapper of a region file: its arguments, the sizes read off them, its results, and the op's schema."""

import builtins
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri, literal
from weft.codegen.torch.lines import tuple_of
from weft.codegen.torch.sizes import Sizes
from weft.codegen.torch.spelling import TORCH_DTYPE, Src
from weft.ir.names import identifier
from weft.ir.types import FLOATS, Dims, Graph, Val

_RESERVED = frozenset([*keyword.kwlist, *dir(builtins), "torch", "host", "launch", "ops", "empty", "run"])
"""What a wrapper refers to besides its arguments, results and sizes."""
_CONSTANTS = re.compile("name|holes|pattern|(forward|dkdv|dq|table)[0-9]+", re.I)
"""Constants of a file that no size is called."""


class Why(StrEnum):
    """Why a region runs as torch ops. Closed: a plan holds no other reason."""

    NO_SKELETON = "no skeleton holds this kind of work"
    VENDOR = "the vendor's product is faster than what fusing saves"
    VIEW = "it only reorders dims: a view"
    SPACES = "its nodes are over different spaces"
    NOT_POINTWISE = "a node in a hole is not pointwise"
    NO_FLOAT = "it reads no float, whose dtype it would compute in"
    NO_TENSOR = "it reads no tensor"
    NO_SIZE = "no operand tells the size of a dim"
    ROWS = "its reductions do not fit one row"
    INTEGERS = "it reduces integers"
    SMALL = "it is too small to gain"
    METADATA = "its pattern reads metadata"
    DISTANCE = "its scores read a table by distance, or its keys begin before its queries"
    LAYOUT = "the skeleton does not walk this layout"
    WIDE = "its head is wider than the skeleton holds"
    CHUNK = "its chunk is longer than the skeleton holds"
    UNREAD = "nothing reads one of its results"


class Refused(Exception):
    """Why a region gets no kernel: a `Why`, and what it is about."""

    def __init__(self, why: Why, about: str = "") -> None:
        super().__init__(str(why))
        self.why, self.about = why, about


@dataclass(frozen=True)
class Argument:
    """An input of the region as an argument. role: tensor | seed (a tensor or None) | layer (an integer)."""

    name: str
    val: Val
    role: str

    @property
    def schema(self) -> str:
        return {"tensor": "Tensor", "seed": "Tensor?", "layer": "SymInt"}[self.role] + f" {self.name}"


class Wrapper:
    """Names, sizes and shapes of one region's wrapper. mixed: does the package hold floats of several dtypes? wide:
    values that stay float32 at least where it does not."""

    def __init__(self, body: Graph, sizes: Sizes, mixed: bool, wide: frozenset[str] = frozenset()) -> None:
        self.body, self.sizes, self.mixed, self.wide = body, sizes, mixed, wide
        self.taken = set(_RESERVED)
        self.variables: dict[str, str] = {}  # run-time dim -> variable
        self.constants: dict[str, int] = {}
        for d in sorted({d for v in (*body.inputs, *body.outputs) for d in v.dims}):
            if sizes.number(d) is None:
                self.variables[d] = self.mint(sizes.names[d])
        roles = {n.ins[i].name: role for n in body.nodes for i, role in n.op.scalars.items()}
        self.arguments = tuple(Argument(self.mint(v.name), v, roles.get(v.name, "tensor")) for v in body.inputs)
        self.results = tuple(self.mint(v.name) for v in body.outputs)
        if not self.tensors:
            raise Refused(Why.NO_TENSOR)

    def mint(self, hint: str) -> str:
        name = identifier(hint, self.taken)
        self.taken.add(name)
        return name

    @property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.role == "tensor")

    def argument(self, v: Val) -> Argument:
        return next(a for a in self.arguments if a.val == v)

    def result(self, v: Val) -> str:
        return self.results[self.body.outputs.index(v)]

    def name(self, v: Val) -> str:
        """What a result or an input is called."""
        return self.result(v) if v in self.body.outputs else self.argument(v).name

    @property
    def anchor(self) -> Argument:
        """The operand whose dtype and device the results take: the first float one, of those that are not wide."""
        floats = [a for a in self.tensors if a.val.dtype in FLOATS]
        narrow = [a for a in floats if a.val.name not in self.wide]
        return (narrow or floats or list(self.tensors))[0]

    # -- sizes -------------------------------------------------------------------------------------------------------

    def size(self, dim: str) -> str:
        """A dim's size as source of the wrapper."""
        number = self.sizes.number(dim)
        if number is None:
            if dim not in self.variables:
                raise Refused(Why.NO_SIZE, dim)
            return self.variables[dim]
        name = self.sizes.names[dim].upper()
        name = f"{name}_" if _CONSTANTS.fullmatch(name) else name
        self.constants[name] = number
        return name

    def points(self, dims: Sequence[str]) -> str:
        """The product of sizes as source."""
        return " * ".join(self.size(d) for d in dims) or "1"

    def number(self, points: str) -> str:
        """A product of frozen sizes as a literal."""
        out = 1
        for name in points.split(" * "):
            out *= self.constants.get(name, 1)
        return str(out)

    def frozen(self, dim: str) -> Tri | None:
        """The size as a literal of a hole, None for a run-time one."""
        number = self.sizes.number(dim)
        return None if number is None else literal(number)

    def shape(self, dims: Dims) -> str:
        return tuple_of(self.size(d) for d in dims) if dims else "()"

    def opening(self) -> list[str]:
        """Statements that read run-time sizes off the operands."""
        out: list[str] = []
        left = dict(self.variables)
        for a in self.tensors:
            own = [(i, d) for i, d in enumerate(a.val.dims) if d in left]
            if [i for i, _ in own] == list(range(len(own))) and len(own) > 1:
                out.append(f"{', '.join(left[d] for _, d in own)} = {a.name}.shape[:{len(own)}]")
            else:
                out += [f"{left[d]} = {a.name}.shape[{i}]" for i, d in own]
            for _, d in own:
                del left[d]
        for d in list(left):
            out.append(f"{left[d]} = {self.derived(d)}")
        return out

    def derived(self, dim: str) -> str:
        """The size of a dim that no operand has, from those that one has."""
        known: dict[str, Src] = {}
        for base in self.sizes.base(dim):
            twins = [d for d in self.variables if d != dim]
            where = self.sizes.reads(twins, base)
            if where is None:
                raise Refused(Why.NO_SIZE, dim)
            at, more = where
            said = self.variables[twins[at]]
            known[base] = Src(f"({said}{more})" if more else said, ATOM, None, "int")
        return self.sizes.spelled(self.sizes.expression(dim), None, known).text

    # -- results -----------------------------------------------------------------------------------------------------

    def made(self, v: Val, order: Dims | None = None) -> str:
        """Source of an uninitialised tensor for a result; order: of its dims in memory, if that is another."""
        like, dtype = self.anchor, ""
        if v.dtype not in FLOATS or self.mixed or like.val.dtype not in FLOATS:
            dtype = f", dtype={TORCH_DTYPE[v.dtype]}"
        elif v.name in self.wide and like.val.name not in self.wide:
            dtype = f", dtype=host.wide({like.name})"
        if order is None or order == v.dims:
            return f"{like.name}.new_empty({self.shape(v.dims)}{dtype})"
        view = ", ".join(str(order.index(d)) for d in v.dims)
        return f"{like.name}.new_empty({self.shape(order)}{dtype}).permute({view})"

    @property
    def given(self) -> str:
        return ", ".join(a.name for a in self.arguments)

    @property
    def schema(self) -> str:
        out = ["Tensor"] * len(self.results)
        result = out[0] if len(out) == 1 else f"({', '.join(out)})"
        return f"({', '.join(a.schema for a in self.arguments)}) -> {result}"

    def described(self) -> str:
        """What goes in and comes out, with dims."""
        ins = ", ".join(self._shown(a.name, a.val) for a in self.arguments)
        return f"{ins} -> {', '.join(self._shown(n, v) for n, v in zip(self.results, self.body.outputs))}"

    def _shown(self, name: str, v: Val) -> str:
        return f"{name} [{' '.join(self.sizes.names[d] for d in v.dims)}]" if v.dims else name
