"""A block one step at a time: the same function of new positions, given what earlier positions left behind.

    (x [batch seq width], ..) { k = einsum(x, wk); o = attend(q, rename(k, seq -> key), ..) }
    ->  (x [batch seq width], .., pos, past_k [batch past_key heads head], past_key_at [past_key])
        { k = einsum(x, wk); o = attend(q, concat(past_k, k), .., query_at = pos + i_seq, key_at) }  and k is kept

`seq` stays a dim, of as many new positions as are fed at once (one in a step). A coordinate `i_seq` becomes
`pos + i_seq`. Keys and values are joined to those of earlier positions, of which a bounded window keeps only the last.
A loop along `seq` starts from the state it was left in. Queues of a router go on counting, and a routed token meets its
expert's weights alone, since its slot holds nothing else. Dropout does nothing when decoding.

It does not fire, and says why with the node and its spec line, on whatever mixes positions in another way: a reduction
over `seq`, attention that sees later keys, a loop backwards, a part or gather along `seq`, an opaque module. Outputs
that such nodes alone feed (losses) are dropped.

Source: incremental evaluation as in key-value caches (Shazeer 2019, 1911.02150), derived from roles of dims.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import sympy as sp

from weft.errors import DecodeError
from weft.ir.builder import Builder, dce
from weft.ir.formula import operand, symbol
from weft.ir.library import Attend, Dropout, Rotary, Route
from weft.ir.op import Composite, Op, expansion, op_name
from weft.ir.pattern import is_causal, max_distance
from weft.ir.primitives import Concat, Einsum, Gather, Loop, Map, Opaque, Part, Rename, Scatter
from weft.ir.types import Dims, Graph, Node, Type, Val, union
from weft.ir.verify import verify
from weft.passes.legality import crossed


@dataclass(frozen=True, slots=True)
class State:
    """What a step reads from earlier positions and leaves for later ones.

    kind: "rows" (one row per position: `value` holds the past ones along `past`, `new` the new ones along the time
    dim), "at" (the positions of those rows), "carry" (`value` before, `new` after; `StepGraph.start` gives the first).
    window: how many positions back, the newest included, are still read; None: all. src: the spec line."""

    kind: str
    value: Val
    new: Val
    past: str = ""
    window: int | None = None
    src: str = ""


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A block's step.

    graph: the block's inputs, `pos` i64[] (the first new position), then every state's `value`; to the outputs that can
    be computed, then every state's `new`. outputs: which of the block's outputs those are. start: the block's inputs to
    the first value of each "carry", in order. A dim past_<key> is the number of past rows, n_<key> = n_past + n_seq."""

    graph: Graph
    outputs: tuple[int, ...]
    states: tuple[State, ...]
    start: Graph


def decode(graph: Graph, sizes: Mapping[str, int], time: str = "seq") -> StepGraph:
    """The step of a block's forward graph along `time`. sizes[time]: the most positions there will be.

    Raises DecodeError when an output that has `time` depends on positions in a way no step can follow."""
    return _Step(graph, sizes, time).build()


@dataclass(frozen=True, slots=True)
class _Keys:
    """A value renamed from the time dim to `key`: new rows that stand among past ones."""

    row: Val
    key: str


@dataclass(frozen=True, slots=True)
class _Routed:
    """A scatter of single tokens into slots, as the tokens: `dims` of the slots -> the `index` values they went to."""

    token: Val
    dims: Dims
    index: tuple[Val, ...]


_Found = Val | _Keys | _Routed | DecodeError


class _Step:
    """One block's step under construction. `env`: what each value of the block has become."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], time: str) -> None:
        self.graph, self.sizes, self.time = graph, sizes, time
        self.g = Builder()
        self.env: dict[Val, _Found] = {v: self.g.input(v.name, v.type) for v in graph.inputs}
        self.own = len(self.g.inputs)
        self.pos = self.g.input("pos", Type("i64", ()))
        self.states: list[State] = []
        self.starts: dict[Val, Val | Type] = {}  # carry -> a value of the block, or zeros of a type
        self.joined: dict[tuple[Val, str], Val] = {}  # new rows, key dim -> past and new rows
        self.at: Val | None = None
        self.joining = False  # inside an attention's meaning, where keys meet queries
        self.windows = _windows(graph, sizes, time)
        self.router: dict[Val, int] = {}  # routing results -> which router made them

    def build(self) -> StepGraph:
        self.run(self.graph.nodes, self.env)
        outs, kept = list[Val](), list[int]()
        for i, v in enumerate(self.graph.outputs):
            got = self.env[v]
            if isinstance(got, Val):
                outs.append(got)
                kept.append(i)
            elif self.time in v.dims or not any(self.time in o.dims for o in self.graph.outputs):
                raise got if isinstance(got, DecodeError) else DecodeError(f"{v.name} lies in slots or among keys")
        states = self.live(outs)
        made = dce(self.g.graph(*outs, *(s.new for s in states)))
        inputs = (*made.inputs[: self.own], self.pos, *(s.value for s in states))
        return StepGraph(verify(replace(made, inputs=inputs)), tuple(kept), states, self.start(states))

    def live(self, outs: list[Val]) -> tuple[State, ...]:
        """The states that the outputs, now or later, depend on."""
        found: tuple[State, ...] = ()
        while True:
            read = {v for n in dce(self.g.graph(*outs, *(s.new for s in found))).nodes for v in n.ins}
            now = tuple(s for s in self.states if s.value in read)
            if now == found:
                return found
            found = now

    def start(self, states: tuple[State, ...]) -> Graph:
        """The first values of the carries, from the block's inputs."""
        g = Builder()
        ins = [g.input(v.name, v.type) for v in self.graph.inputs]
        first = [self.starts[s.value] for s in states if s.kind == "carry"]
        given = tuple(v for v in first if isinstance(v, Val))
        wanted = iter(g.inline(dce(replace(self.graph, outputs=given)), ins))
        return g.graph(*(next(wanted) if isinstance(v, Val) else g.map(0, to=v.dims, dtype=v.dtype) for v in first))

    def run(self, nodes: Iterable[Node], env: dict[Val, _Found]) -> None:
        for n in nodes:
            ins = [env[v] for v in n.ins]
            bad = next((x for x in ins if isinstance(x, DecodeError)), None)
            if bad is None:
                with self.g.at(n.src):
                    try:
                        env.update(zip(n.outs, self.node(n, ins), strict=True))
                        continue
                    except DecodeError as e:
                        bad = e
            env.update(dict.fromkeys(n.outs, bad))

    def fail(self, n: Node, why: str) -> DecodeError:
        where = f" ({n.src})" if n.src else ""
        return DecodeError(f"{n.outs[0].name} = {op_name(type(n.op))}{where} {why}, so its block has no step")

    def value(self, x: _Found) -> Val:
        assert isinstance(x, Val)
        return x

    def node(self, n: Node, ins: list[_Found]) -> Iterable[_Found]:
        """What a node's results become; raises DecodeError when no step can follow it."""
        op, t = n.op, self.time
        match op:
            case Dropout():
                return [ins[0]]
            case Rename(old=old, new=new) if old == t and isinstance(ins[0], Val):
                keys = _Keys(ins[0], new)
                return [self.keys(keys, n) if self.joining else keys]
            case Attend():
                return self.attend(n, op, ins)
            case Rotary(position=p) if p == t and len(ins) == 1:
                return self.plain(n, [*ins, self.positions()])
            case Route(along=along) if along == t and len(ins) == 1:
                return self.route(n, op, ins)
            case Loop(dim=dim) if dim == t:
                return self.loop(n, op, ins)
            case Scatter() if t in _dims(n.ins):
                return self.scatter(n, op, ins)
            case Gather() if isinstance(ins[0], _Routed):
                return [self.gathered(n, op, ins)]
            case Composite() if t in crossed(n) or _mentions(op, n.types, t) or any(isinstance(x, _Keys) for x in ins):
                return self.inline(n, op, ins)
            case _ if any(isinstance(x, _Routed) for x in ins):
                return self.routed(n, ins)
            case Map():
                return self.map(n, op, ins)
            case _:
                return self.plain(n, ins)

    def plain(self, n: Node, ins: list[_Found]) -> Iterable[_Found]:
        """The same op, when no result depends on another position."""
        if any(isinstance(x, _Keys) for x in ins):
            raise self.fail(n, "works on keys after they were renamed from positions")
        if self.time in crossed(n) or (isinstance(n.op, Opaque) and self.time in n.space):
            raise self.fail(n, f"mixes positions along {self.time}")
        touched = {n.op.old, n.op.new} if isinstance(n.op, Rename | Part) else set[str]()
        if self.time in touched or (isinstance(n.op, Concat) and self.time in (*n.op.dims, n.op.new)):
            raise self.fail(n, f"moves positions along {self.time}")
        if isinstance(n.op, Loop) and _touches(n.op.body, self.time):
            raise self.fail(n, f"runs a loop over {n.op.dim} that mixes positions along {self.time}")
        return self.g.many(n.op, *map(self.value, ins), names=[v.name for v in n.outs])

    def positions(self) -> Val:
        """The new positions: i64[seq]."""
        made = self.at
        if made is None:
            formula = f"pos + i_{self.time}"
            (made,) = self.g.maps([formula], pos=self.pos, to=self.time, dtype="i64", names=["at"])
            self.at = made
        return made

    def map(self, n: Node, op: Map, ins: list[_Found]) -> Iterable[_Found]:
        """i_seq becomes pos + i_seq; a formula in n_seq depends on positions that are not there yet."""
        used = _symbols(op)
        if f"n_{self.time}" in used:
            raise self.fail(n, f"depends on the length along {self.time}")
        if f"i_{self.time}" not in used:
            return self.plain(n, ins)
        here = symbol(f"i_{self.time}")
        shift = {here: here + operand(len(ins))}
        moved = replace(
            op, lets=tuple(e.xreplace(shift) for e in op.lets), exprs=tuple(e.xreplace(shift) for e in op.exprs)
        )
        return self.plain(replace(n, op=moved), [*ins, self.pos])

    def inline(self, n: Node, op: Composite, ins: list[_Found]) -> Iterable[_Found]:
        """The rules on what a composite means, where it meets positions."""
        body = expansion(op, n.types)
        own = {v: Val(o.name, v.type) for v, o in zip(body.outputs, n.outs) if v not in body.inputs}
        env: dict[Val, _Found] = dict(zip(body.inputs, ins, strict=True))
        for m in body.nodes:
            ins_, outs = (tuple(own.get(v, v) for v in vs) for vs in (m.ins, m.outs))
            self.run([Node(m.op, ins_, outs, m.src or n.src)], env)
        return [env[own.get(v, v)] for v in body.outputs]

    def attend(self, n: Node, op: Attend, ins: list[_Found]) -> Iterable[_Found]:
        """Attention of the new queries to past and new keys."""
        moving = any(isinstance(x, _Keys) for x in ins)
        if not moving and self.time not in (op.query, op.over):
            return self.plain(n, ins)
        if op.query != self.time or {"key_at", "query_at"} & set(op.meta):
            raise self.fail(n, f"attends from {op.query} to all positions along {self.time}")
        names, meta = ("query_at",), [self.positions()]
        if moving:
            if not is_causal(op.pattern, self.sizes[self.time], _heads(op, self.sizes)):
                raise self.fail(n, f"sees later positions under {op.pattern.source or op.pattern}")
            names, meta = ("query_at", "key_at"), [*meta, self.keys(_Keys(self.positions(), op.over), n)]
        given = [*(self.keys(x, n) if isinstance(x, _Keys) else self.value(x) for x in ins), *meta]
        wide = replace(op, meta=(*op.meta, *names), layout=None)
        if "segments" not in op.meta:
            return self.g.many(wide, *given, names=[v.name for v in n.outs])
        extra = tuple(Val(name, v.type) for name, v in zip(names, meta))
        self.joining = True
        try:
            return self.inline(replace(n, op=wide, ins=(*n.ins, *extra)), wide, [*given])
        finally:
            self.joining = False

    def keys(self, x: _Keys, n: Node) -> Val:
        """Past rows, then the new ones: [.. key ..]."""
        if (x.row, x.key) not in self.joined:
            past, is_at = f"past_{x.key}", x.row == self.at
            type_ = x.row.type.but(past if d == self.time else d for d in x.row.dims)
            value = self.g.input(f"{past}_at" if is_at else f"past_{x.row.name}", type_)
            window = self.windows.get(x.key)
            self.states.append(State("at" if is_at else "rows", value, x.row, past, window, n.src))
            self.joined[x.row, x.key] = self.g.concat(value, x.row, dims=(past, self.time), new=x.key)
        return self.joined[x.row, x.key]

    def carry(self, n: Node, name: str, first: Val | Type) -> Val:
        """A new input for a state that starts as `first`."""
        if isinstance(first, Val) and self.time in {d for m in _above(self.graph, first) for d in m.space}:
            raise self.fail(n, f"starts from a value that depends on positions along {self.time}")
        value = self.g.input(f"past_{name}", first.type if isinstance(first, Val) else first)
        self.starts[value] = first
        return value

    def loop(self, n: Node, op: Loop, ins: list[_Found]) -> Iterable[_Found]:
        """The cell goes on from where it was left."""
        if op.reverse:
            raise self.fail(n, f"runs backwards along {self.time}")
        given = [self.value(x) for x in ins[op.carries :]]
        before = [self.carry(n, v.name, x) for v, x in zip(op.body.inputs, n.ins[: op.carries])]
        outs = self.g.many(op, *before, *given, names=[v.name for v in n.outs])
        for value, after in zip(before, outs):
            self.states.append(State("carry", value, after, src=n.src))
        return outs

    def route(self, n: Node, op: Route, ins: list[_Found]) -> Iterable[_Found]:
        """The queues are as long as earlier positions left them. The losses mix positions."""
        count = n.outs[4]
        before = self.carry(n, count.name, count.type)
        outs = self.g.many(op, self.value(ins[0]), before, names=[v.name for v in n.outs])
        self.states.append(State("carry", before, outs[4], src=n.src))
        self.router |= dict.fromkeys(outs[:2], len(self.states))
        bad = self.fail(n, f"mixes positions along {self.time}")
        return [*outs[:3], bad, outs[4], *(bad for _ in outs[5:])]

    def scatter(self, n: Node, op: Scatter, ins: list[_Found]) -> Iterable[_Found]:
        """Tokens sent to slots of their own stay tokens."""
        x, *index = ins
        routers = {self.router.get(i) for i in index if isinstance(i, Val)}
        if not isinstance(x, Val) or len(routers) != 1 or None in routers:
            raise self.fail(n, f"adds up positions along {self.time}")
        where = tuple(map(self.value, index))
        dims = union(*(v.dims for v in where), (d for d in op.to if d not in op.at))
        return [_Routed(self.g.expand(x, to=dims), op.at, where)]

    def gathered(self, n: Node, op: Gather, ins: list[_Found]) -> Val:
        """A token takes its own slot's result: 0 when it was dropped."""
        x, *index = ins
        assert isinstance(x, _Routed)
        if op.at != x.dims or tuple(index) != x.index:
            raise self.fail(n, "reads slots that other positions may have filled")
        names = [f"s{i}" for i in range(len(x.index))]
        inside = sp.And(*(sp.And(symbol(s) >= 0, symbol(s) < symbol(f"n_{d}")) for s, d in zip(names, x.dims)))
        formula = sp.Piecewise((symbol("x"), inside), (0, True))
        read: dict[str, Any] = {"x": x.token} | dict(zip(names, x.index))
        out = n.outs[0]
        return self.g.maps([formula], to=out.dims, dtype=out.dtype, names=[out.name], **read)[0]

    def routed(self, n: Node, ins: list[_Found]) -> Iterable[_Found]:
        """An op on slots, done on the tokens in them: what it reads by slot is read where the token is."""
        slots = next(x for x in ins if isinstance(x, _Routed))
        if any(isinstance(x, _Routed) and (x.dims, x.index) != (slots.dims, slots.index) for x in ins):
            raise self.fail(n, "mixes slots of different routers")
        if not isinstance(n.op, Map | Einsum) or set(slots.dims) & crossed(n):
            raise self.fail(n, f"mixes slots, and with them positions along {self.time}")
        where = union(*(v.dims for v in slots.index))
        to = union(*((where if d in slots.dims else (d,)) for d in n.op.to))
        own = [self.token(x, slots) if isinstance(x, Val) else self.value(getattr(x, "token", x)) for x in ins]
        op: Op = replace(n.op, to=to)
        if isinstance(op, Map):
            used = [d for d in slots.dims if f"i_{d}" in _symbols(op)]
            place = {symbol(f"i_{d}"): operand(len(own) + i) for i, d in enumerate(used)}
            own += [slots.index[slots.dims.index(d)] for d in used]
            op = replace(
                op, lets=tuple(e.xreplace(place) for e in op.lets), exprs=tuple(e.xreplace(place) for e in op.exprs)
            )
            n = replace(n, op=op)
            return [_Routed(self.value(v), slots.dims, slots.index) for v in self.map(n, op, [*own])]
        return [_Routed(self.g.one(op, *own, names=[n.outs[0].name]), slots.dims, slots.index)]

    def token(self, x: Val, slots: _Routed) -> Val:
        """A value by slot, at each token's slot."""
        at = [(d, i) for d, i in zip(slots.dims, slots.index) if d in x.dims]
        return self.g.gather(x, *(i for _, i in at), at=[d for d, _ in at]) if at else x


def _dims(values: Iterable[Val]) -> set[str]:
    return {d for v in values for d in v.dims}


def _symbols(op: Map) -> set[str]:
    return {str(s) for e in (*op.lets, *op.exprs) for s in e.free_symbols}


def _mentions(op: Op, types: tuple[Type, ...], time: str) -> bool:
    """Does a composite's meaning read the coordinate or the size of `time`, or rename it?"""
    if isinstance(op, Map):
        return bool({f"i_{time}", f"n_{time}"} & _symbols(op))
    if isinstance(op, Rename):
        return time in (op.old, op.new)
    if isinstance(op, Composite):
        return any(_mentions(n.op, n.types, time) for n in expansion(op, types).nodes)
    return any(isinstance(v := getattr(op, f.name), sp.Basic) and _reads(v, time) for f in fields(op))  # pyright: ignore


def _reads(e: Any, time: str) -> bool:
    return any(str(s) in (f"i_{time}", f"n_{time}") for s in e.free_symbols)


def _touches(body: Graph, time: str) -> bool:
    return any(time in crossed(n) or _mentions(n.op, n.types, time) for n in body.nodes)


def _above(graph: Graph, v: Val) -> list[Node]:
    """The nodes that a value is computed by."""
    return list(dce(replace(graph, outputs=(v,))).nodes)


def _windows(graph: Graph, sizes: Mapping[str, int], time: str) -> dict[str, int]:
    """Key dim -> how many positions back its attentions still read, where that is bounded."""
    far: dict[str, list[int | None]] = {}
    for n in graph.nodes:
        if isinstance(n.op, Attend) and n.op.query == time:
            reach = max_distance(n.op.pattern, sizes[time], _heads(n.op, sizes))
            far.setdefault(n.op.over, []).append(None if reach is None else max(1, reach + 1))
    return {key: max(w for w in ws if w is not None) for key, ws in far.items() if None not in ws}


def _heads(op: Attend, sizes: Mapping[str, int]) -> int:
    return prod(sizes[d] for d in op.heads)
