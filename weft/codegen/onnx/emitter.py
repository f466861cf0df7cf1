"""What an op's `onnx` method sees: appends ONNX nodes, and knows dims by name as the reference's Site does."""

import string
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import sympy as sp
from onnx import TensorProto, helper, numpy_helper

from weft.codegen.onnx.formulas import FLOAT, INT, Term, table
from weft.errors import UsageError
from weft.ir.composite import Call
from weft.ir.formula import operand, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.pattern import Pattern
from weft.ir.pattern.formula import InTable
from weft.ir.types import Dims, Graph, Node, Type, Val, union

ELEMENT = {"f32": TensorProto.FLOAT, "i64": TensorProto.INT64, "bool": TensorProto.BOOL}
NUMPY = {"f32": np.float32, "i64": np.int64, "bool": np.bool_}
Stack = list[str]  # a stacked operand whose rows are separate ONNX values: parameters of a stack of layers


def kind(dtype: str) -> str:
    """f32 for every float dtype: the exported graph is for looking at and for running anywhere."""
    return dtype if dtype in (INT, "bool") else FLOAT


class Emitter:
    """Appends nodes for graphs. `sizes` gives each dim an integer, or an expression over `n_dim` of run-time dims;
    `longest` every dim as an integer when the run-time dims are as large as declared.

    `call(emitter, node, operands)` may take over a Call node (a block as one function); by default it is inlined.
    asked: run-time dims whose sizes are handed in, filled in as they are needed; None where nobody hands in any."""

    def __init__(
        self,
        sizes: Mapping[str, Any],
        longest: Mapping[str, int],
        parent: "Emitter | None" = None,
        call: Any = None,
        asked: list[str] | None = None,
    ) -> None:
        self.sizes, self.longest, self.call = sizes, longest, call or (parent.call if parent else None)
        self.asked = parent.asked if parent else asked
        self.nodes: list[onnx.NodeProto] = []
        self.known: dict[str, str] = dict(parent.known) if parent else {}  # dim -> name of its size, i64[1]
        self.counter: list[int] = parent.counter if parent else [0]
        self.at: Node | None = None
        self.used: set[Val] = set()

    def name(self) -> str:
        self.counter[0] += 1
        return f"v{self.counter[0]}"

    def node(self, op_type: str, *ins: str, outs: int = 1, **attributes: Any) -> Any:
        names = [self.name() for _ in range(outs)]
        proto = helper.make_node(op_type, list(ins), names, **attributes)
        if self.at is not None and self.at.src:
            proto.metadata_props.append(onnx.StringStringEntryProto(key="weft.src", value=self.at.src))
        self.nodes.append(proto)
        return names[0] if outs == 1 else tuple(names)

    def tensor(self, values: Any, dtype: str) -> str:
        array = np.asarray(values, dtype=NUMPY[dtype])
        return self.node("Constant", value=numpy_helper.from_array(array, "value"))

    def const(self, value: bool | int | float, dtype: str) -> str:
        return self.tensor(value, dtype)

    def ints(self, *values: int) -> str:
        return self.tensor(values, INT)

    def cast(self, x: str, dtype: str) -> str:
        return self.node("Cast", x, to=ELEMENT[kind(dtype)])

    # Dims by name.

    @property
    def current(self) -> Node:
        assert self.at is not None
        return self.at

    @property
    def types(self) -> tuple[Type, ...]:
        return self.current.types

    def know(self, v: Val, name: str) -> None:
        """Learn the sizes of run-time dims from a value that has them."""
        for i, d in enumerate(v.dims):
            if d not in self.known and d not in self.sizes:
                self.known[d] = self.node("Shape", name, start=i, end=i + 1)

    def size(self, dim: str) -> str:
        """The size of a dim, i64[1]."""
        if dim not in self.known:
            declared = self.sizes.get(dim)
            if declared is None:
                self.known[dim] = self.handed_in(dim)
            else:
                self.known[dim] = self.ints(declared) if isinstance(declared, int) else self.expression(declared, (1,))
        return self.known[dim]

    def handed_in(self, dim: str) -> str:
        """The input that holds the size of a dim which no value has. UsageError where nobody hands it in."""
        if self.asked is None:
            raise UsageError(f"the size of {dim} is not known here; no input has this dim")
        if dim not in self.asked:
            self.asked.append(dim)
        return f"n_{dim}"

    def expression(self, e: sp.Expr, shape: tuple[int, ...] = ()) -> str:
        """An integer formula over sizes, as i64 of this shape."""
        env = {s: Term(self.size(str(s)[2:]), INT) for s in e.free_symbols}
        (value,) = evaluate((e,), env, table(self))
        return self.node("Reshape", value.name, self.tensor(shape, INT))

    def shape(self, dims: Dims) -> str:
        return self.node("Concat", *(self.size(d) for d in dims), axis=0) if dims else self.tensor((), INT)

    def scalar(self, dim: str) -> str:
        return self.node("Squeeze", self.size(dim), self.ints(0))

    def equation(self) -> str:
        letter = dict(zip(self.current.space, string.ascii_letters, strict=False))
        ins = ["".join(letter[n] for n in v.dims) for v in self.current.ins]
        return ",".join(ins) + "->" + "".join(letter[n] for n in self.current.outs[0].dims)

    def align(self, x: str, dims: Dims, to: Dims) -> str:
        """Permute and unsqueeze by name."""
        order = [dims.index(n) for n in to if n in dims]
        if order != sorted(order):
            x = self.node("Transpose", x, perm=order)
        axes = [i for i, n in enumerate(to) if n not in dims]
        return self.node("Unsqueeze", x, self.ints(*axes)) if axes else x

    def coord(self, dim: str, to: Dims) -> str:
        """The coordinates along `dim`, i64, shaped to broadcast over `to`."""
        line = self.node("Range", self.const(0, INT), self.scalar(dim), self.const(1, INT))
        return self.align(line, (dim,), to)

    # The forms of the primitives.

    def formula(self, op: Any, x: Sequence[str]) -> tuple[str, ...]:
        env = {
            operand(i): Term(self.align(v, t.dims, op.to), kind(t.dtype)) for i, (v, t) in enumerate(zip(x, self.types))
        }
        used = sorted(op.symbols)
        env |= {symbol(n): Term(self.coord(n[2:], op.to), INT) for n in used if n.startswith("i_")}
        env |= {symbol(n): Term(self.scalar(n[2:]), INT) for n in used if n.startswith("n_")}
        got = evaluate(op.exprs, env, table(self), op.lets)
        want = kind(op.dtype)
        cast = [v.name if v.kind == want else self.cast(v.name, want) for v in got]
        return tuple(self.node("Expand", v, self.shape(op.to)) if op.to else v for v in cast)

    def reduce(self, op: Any, x: str) -> str:
        dims = self.types[0].dims
        over = [i for i, n in enumerate(dims) if n not in op.to]
        left = tuple(n for n in dims if n in op.to)
        if over and op.kind == "argmax":
            x = self.node("ArgMax", x, axis=over[0], keepdims=0)
        elif over:
            x = self.node({"sum": "ReduceSum", "max": "ReduceMax"}[op.kind], x, self.ints(*over), keepdims=0)
        return self.align(x, left, op.to)

    def places(self, idx: Sequence[str], at: Dims, dims: Dims, space: Dims) -> tuple[str, str]:
        """Coordinates of `dims` over `space`, clamped: i64[space rank]; and where they are in range: bool[space]."""
        where, ok = [], None
        for n in dims:
            if n not in at:
                where.append(self.coord(n, space))
                continue
            k = at.index(n)
            i = self.align(idx[k], self.types[1 + k].dims, space)
            last = self.node("Sub", self.size(n), self.ints(1))
            clamped = self.node("Min", self.node("Max", i, self.ints(0)), last)
            inside = self.node("Equal", i, clamped)
            ok = inside if ok is None else self.node("And", ok, inside)
            where.append(clamped)
        assert ok is not None
        shape = self.shape(space)
        columns = [self.node("Unsqueeze", self.node("Expand", w, shape), self.ints(len(space))) for w in where]
        return self.node("Concat", *columns, axis=len(space)), ok

    def zero(self, dtype: str) -> str:
        return self.tensor(0, kind(dtype))

    def gather(self, op: Any, x: str, *idx: str) -> str:
        where, ok = self.places(idx, op.at, self.types[0].dims, self.current.outs[0].dims)
        ok = self.node("Expand", ok, self.shape(self.current.outs[0].dims))
        return self.node("Where", ok, self.node("GatherND", x, where), self.zero(self.types[0].dtype))

    def scatter(self, op: Any, x: str, *idx: str) -> str:
        space = union(*(t.dims for t in self.types))
        where, ok = self.places(idx, op.at, op.to, space)
        zero = self.zero(self.types[0].dtype)
        x = self.node("Where", ok, self.align(x, self.types[0].dims, space), zero)
        x = self.node("Expand", x, self.shape(space))
        return self.node("ScatterND", self.node("Expand", zero, self.shape(op.to)), where, x, reduction="add")

    def part(self, op: Any, x: str) -> str:
        axis = self.types[0].dims.index(op.old)
        start = self.expression(op.start, (1,))
        return self.node("Slice", x, start, self.node("Add", start, self.size(op.new)), self.ints(axis))

    def table(self, op: Any) -> str:
        return self.tensor(np.asarray(op.values, dtype=np.int64).reshape(op.shape), INT)

    def block_table(self, op: Any, *x: str) -> str:
        """A static block set as a constant [heads rows rows] of multiplicities, read at every pair of positions.

        A table whose plan depends on the length is the one for the longest sequence that the spec declares."""
        space, given = self.current.outs[0].dims, iter(zip(x, self.types))
        formula = Pattern.parse(op.table).at(self.longest[op.over]).formula
        assert isinstance(formula, InTable)
        listed = formula.table
        heads = prod(self.sizes[d] for d in op.heads) if listed.per_head else 1
        rows = [listed.entries(h) for h in range(heads)]
        counts = np.zeros((heads, *(1 + max(int(r[i].max()) for r in rows) for i in (0, 1))), np.int64)
        for h, (q, k) in enumerate(rows):
            np.add.at(counts[h], (q, k), 1)

        def place(dim: str, named: bool) -> str:
            if named:
                at, type_ = next(given)
                line = self.align(at, type_.dims, space)
            else:
                line = self.coord(dim, space)
            return self.node("Div", line, self.ints(listed.block))

        q, k = (place(*p) for p in op.places())
        head = self.tensor(0, INT)
        for d in op.heads if listed.per_head else ():
            head = self.node("Add", self.node("Mul", head, self.scalar(d)), self.coord(d, space))
        places = (head, *((k, q) if op.swap else (q, k)))
        shape, last = self.shape(space), self.ints(len(space))
        columns = [self.node("Unsqueeze", self.node("Expand", p, shape), last) for p in places]
        return self.node("GatherND", self.tensor(counts, INT), self.node("Concat", *columns, axis=len(space)))

    def scan(self, op: Any, x: Sequence[Any]) -> tuple[str | None, ...]:
        """A stack of blocks is unrolled, so that each block stays a node of its own; anything else is one Scan."""
        layers = all(isinstance(n.op, Call) for n in op.body.nodes) and isinstance(self.sizes.get(op.dim), int)
        return self.unrolled(op, x) if layers else self.scanned(op, x)

    def unrolled(self, op: Any, x: Sequence[Any]) -> tuple[str | None, ...]:
        node, c = self.current, op.carries
        carry, stacked = list(x[:c]), []
        steps = range(self.sizes[op.dim])
        for i in reversed(steps) if op.reverse else steps:
            rest = [self.row(v, t, op.dim, i) for v, t in zip(x[c:], node.types[c:])]
            out = self.graph(op.body, [*carry, *rest])
            stacked.append([*out[c:], *carry])
            carry = list(out[:c])
        if op.reverse:
            stacked.reverse()
        self.at = node
        columns = zip(zip(*stacked), node.outs[c:])
        return (*carry, *(self.stacked(column) if v in self.used else None for column, v in columns))

    def stacked(self, rows: Sequence[str]) -> str:
        """Values of one type as one value with a leading dim."""
        return self.node("Concat", *(self.node("Unsqueeze", r, self.ints(0)) for r in rows), axis=0)

    def row(self, x: str | Stack, t: Type, dim: str, i: int) -> str:
        if dim not in t.dims:
            assert isinstance(x, str)
            return x
        if isinstance(x, list):
            return x[i]
        return self.node("Gather", x, self.tensor(i, INT), axis=t.dims.index(dim))

    def scanned(self, op: Any, x: Sequence[Any]) -> tuple[str | None, ...]:
        node, c = self.current, op.carries
        body = Emitter(self.sizes, self.longest, self)
        params, env = [], []
        for i, (v, t, inner) in enumerate(zip(x, node.types, op.body.inputs)):
            assert isinstance(v, str)
            sliced = i < c or op.dim in t.dims  # what is not sliced is read from outside
            env.append(body.name() if sliced else v)
            if sliced:
                params.append(info(env[-1], inner.type, self.sizes))
        sequences = [(v, t.dims.index(op.dim)) for v, t in zip(x[c:], node.types[c:]) if op.dim in t.dims]
        if not sequences:  # a Scan counts its steps by what it slices
            sequences = [(self.coord(op.dim, (op.dim,)), 0)]
            params.append(helper.make_tensor_value_info(body.name(), ELEMENT[INT], []))
        out = body.graph(op.body, env)
        keep = [v in self.used for v in node.outs[c:]]
        stacked = [*zip(op.body.outputs[c:], out[c:]), *zip(op.body.inputs[:c], env[:c])]
        results = [*zip(op.body.outputs[:c], out[:c]), *(s for s, k in zip(stacked, keep) if k)]
        names = [body.node("Identity", name) for _, name in results]
        outs = [info(name, v.type, self.sizes) for name, (v, _) in zip(names, results)]
        graph = helper.make_graph(body.nodes, "body", params, outs)
        count, direction = len(results) - c, int(op.reverse)
        back = {"scan_output_directions": [direction] * count} if count else {}
        got = self.node(
            "Scan",
            *x[:c],
            *(v for v, _ in sequences),
            outs=len(results),
            body=graph,
            num_scan_inputs=len(sequences),
            scan_input_axes=[a for _, a in sequences],
            scan_input_directions=[direction] * len(sequences),
            **back,
        )
        got = list(got if isinstance(got, tuple) else (got,))
        rest = iter(got[c:])
        return (*got[:c], *(next(rest) if k else None for k in keep))

    def graph(self, graph: Graph, x: Sequence[str | Stack]) -> tuple[Any, ...]:
        """Append a whole graph on these operands."""
        outer = self.at, self.used
        env: dict[str, Any] = dict(zip((v.name for v in graph.inputs), x, strict=True))
        used = {v for n in graph.nodes for v in n.ins} | set(graph.outputs)
        for n in graph.nodes:
            self.at, self.used = n, used
            ins = [env[v.name] for v in n.ins]
            block = self.call if isinstance(n.op, Call) else None
            out = block(self, n, ins) if block else n.op.onnx(self, *ins)
            out = out if isinstance(out, tuple) else (out,)
            env.update(zip((v.name for v in n.outs), out, strict=True))
        self.at, self.used = outer
        return tuple(env[v.name] for v in graph.outputs)


def info(name: str, t: Type, sizes: Mapping[str, Any] | None = None) -> onnx.ValueInfoProto:
    """A typed ONNX value; dims whose size is an integer are fixed, the others keep their names."""
    known = sizes or {}
    dims = [known[d] if isinstance(known.get(d), int) else d for d in t.dims]
    return helper.make_tensor_value_info(name, ELEMENT[kind(t.dtype)], dims)
