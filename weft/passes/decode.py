"""A block a few positions at a time: the same function of new positions, given what earlier positions left behind.

    (x [batch seq width], ..) { k = einsum(x, wk); o = attend(q, rename(k, seq -> key), ..) }
    ->  (x [batch seq width], .., pos [batch], at [batch seq], real [batch seq], past_k [batch past_key heads head])
        { k = einsum(x, wk); o = attend(q, concat(past_k, k), .., query_at = at, key_at) }  and the keys are kept

`seq` stays a dim, of as many new positions as are fed at once (one in a step). Row b has had pos[b] positions, its new
ones are `at` (a coordinate `i_seq` becomes `at`); where `real` is false there is none, but padding behind the last one.
Keys and values are joined to those of earlier positions, of which a bounded window keeps the last; a row with fewer has
free slots before them, at negative positions, which nobody sees. A loop along `seq` starts from the state it was left
in, and padding leaves that alone. A router's choices are kept too, and its queues are as long as those make them; a
routed token meets its expert's weights alone, since its slot holds nothing else. Dropout does nothing when decoding.

It does not fire, and says why with the node and its spec line, on whatever mixes positions in another way: a reduction
over `seq`, attention that sees later keys, a loop backwards, a part or gather along `seq`, an opaque module. Outputs
that such nodes alone feed (losses) are dropped.

Source: incremental evaluation as in key-value caches (Shazeer 2019, 1911.02150), derived from roles of dims.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from weft.errors import DecodeError
from weft.ir.builder import Builder, dce
from weft.ir.library import Attend, Dropout, Rotary, Route
from weft.ir.op import Composite, expansion
from weft.ir.pattern import is_causal
from weft.ir.primitives import Concat, Gather, Loop, Map, Opaque, Part, Rename, Scatter
from weft.ir.types import Graph, Node, Type, Val
from weft.ir.verify import verify
from weft.passes.decode_slots import Routed, on_tokens, sent, taken
from weft.passes.decode_time import (
    above,
    heads,
    holding,
    mentions,
    placed,
    refitted,
    refusal,
    symbols,
    touches,
    windows,
)

ROWS = "batch"
"""The dim of sequences, each at a position of its own."""


@dataclass(frozen=True, slots=True)
class State:
    """What a step reads from earlier positions and leaves for later ones; `batch` is its first dim.

    kind: "rows" (one row per position: `value` holds the past ones along `past`, its second dim, `new` the new ones
    along the time dim, `after` both), "carry" (`value` before, `new` and `after` after; `StepGraph.start` gives the
    first). window: how many positions back, the newest included, are still read; None: all. src: the spec line."""

    kind: str
    value: Val
    new: Val
    after: Val
    past: str = ""
    window: int | None = None
    src: str = ""


@dataclass(frozen=True, slots=True)
class Fed:
    """The inputs of a step that say where its rows stand: pos i64[batch], how many positions came before; at i64[batch
    seq], the new ones; real bool[batch seq], whether there is one. Where that is false `at` is negative."""

    pos: Val
    at: Val
    real: Val


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A block's step.

    graph: the block's inputs, those of `fed`, then every state's `value`, rows before carries; to the outputs that can
    be computed, then every state's `after`. outputs: which of the block's outputs those are. start: the block's inputs
    to the first value of each "carry", in order. A dim past_<key> is the number of past rows; <key> of past and new."""

    graph: Graph
    fed: Fed
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


_Found = Val | _Keys | Routed | DecodeError


class _Step:
    """One block's step under construction. `env`: what each value of the block has become."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], time: str) -> None:
        self.graph, self.sizes, self.time = graph, sizes, time
        self.g = Builder()
        self.env: dict[Val, _Found] = {v: self.g.input(v.name, v.type) for v in graph.inputs}
        self.own = len(self.g.inputs)
        each = (ROWS, time)
        self.fed = Fed(
            self.g.input("pos", Type("i64", (ROWS,))),
            self.g.input("at", Type("i64", each)),
            self.g.input("real", Type("bool", each)),
        )
        self.states: list[State] = []
        self.starts: dict[Val, Val | Type] = {}  # carry -> a value of the block, or zeros of a type
        self.joined: dict[tuple[Val, str], Val] = {}  # new rows, key dim -> past and new rows
        self.windows = windows(graph, sizes, time)
        self.router: dict[Val, int] = {}  # routing results -> which router made them

    def build(self) -> StepGraph:
        self.run(self.graph.nodes, self.env)
        outs, kept = list[Val](), list[int]()
        for i, v in enumerate(self.graph.outputs):
            got = self.env[v]
            if isinstance(got, Val) and set(got.dims) == set(v.dims):
                outs.append(self.g.expand(got, to=v.dims))
                kept.append(i)
            elif self.time in v.dims or not any(self.time in o.dims for o in self.graph.outputs):
                why = "differs from row to row" if isinstance(got, Val) else "lies in slots or among keys"
                raise got if isinstance(got, DecodeError) else DecodeError(v.name, "", why)
        states = self.live(outs)
        made = dce(self.g.graph(*outs, *(s.after for s in states)))
        inputs = (*made.inputs[: self.own + 3], *(s.value for s in states))
        whole = verify(replace(made, inputs=inputs))
        return StepGraph(whole, self.fed, tuple(kept), states, self.start(states))

    def live(self, outs: list[Val]) -> tuple[State, ...]:
        """The states that the outputs, now or later, depend on."""
        found: tuple[State, ...] = ()
        while True:
            read = {v for n in dce(self.g.graph(*outs, *(s.new for s in found))).nodes for v in n.ins}
            used = [s for s in self.states if s.value in read]
            now = tuple(sorted(used, key=lambda s: s.kind == "carry"))
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
                return [_Keys(ins[0], new)]
            case Attend():
                return self.attend(n, op, ins)
            case Rotary(position=p) if p == t and len(ins) == 1:
                return self.plain(n, [*ins, self.fed.at])
            case Route(along=along) if along == t and len(ins) == 1:
                return self.route(n, op, ins)
            case Loop(dim=dim) if dim == t:
                return self.loop(n, op, ins)
            case Scatter() if any(t in v.dims for v in n.ins):
                return [self.scatter(n, op, ins)]
            case Gather() if isinstance(ins[0], Routed):
                return [taken(self.g, n, op, ins[0], ins[1:])]
            case Composite() if (
                t in n.op.crossed(n) or mentions(op, n.types, t) or any(isinstance(x, _Keys) for x in ins)
            ):
                return self.inline(n, op, ins)
            case _ if any(isinstance(x, Routed) for x in ins):
                return self.routed(n, ins)
            case Map():
                return self.map(n, op, ins)
            case _:
                return self.plain(n, ins)

    def plain(self, n: Node, ins: list[_Found]) -> Iterable[_Found]:
        """The same op, when no result depends on another position."""
        if any(isinstance(x, _Keys) for x in ins):
            raise refusal(n, "works on keys after they were renamed from positions")
        if self.time in n.op.crossed(n) or (isinstance(n.op, Opaque) and self.time in n.space):
            raise refusal(n, f"mixes positions along {self.time}")
        touched = {n.op.old, n.op.new} if isinstance(n.op, Rename | Part) else set[str]()
        if self.time in touched or (isinstance(n.op, Concat) and self.time in (*n.op.dims, n.op.new)):
            raise refusal(n, f"moves positions along {self.time}")
        if isinstance(n.op, Loop) and touches(n.op.body, self.time):
            raise refusal(n, f"runs a loop over {n.op.dim} that mixes positions along {self.time}")
        given = [self.value(x) for x in ins]
        if isinstance(n.op, Loop) and any(set(v.dims) != set(x.dims) for v, x in zip(n.ins, given)):
            raise refusal(n, f"runs a loop over {n.op.dim} on what differs from row to row")
        return self.g.many(refitted(n.op, n.ins, given, ROWS), *given, names=[v.name for v in n.outs])

    def map(self, n: Node, op: Map, ins: list[_Found]) -> Iterable[_Found]:
        """i_seq becomes the position; a formula in n_seq depends on positions that are not there yet."""
        used = symbols(op)
        if f"n_{self.time}" in used:
            raise refusal(n, f"depends on the length along {self.time}")
        if f"i_{self.time}" not in used:
            return self.plain(n, ins)
        return self.plain(replace(n, op=placed(op, self.time, len(ins))), [*ins, self.fed.at])

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
            raise refusal(n, f"attends from {op.query} to all positions along {self.time}")
        if any(f"n_{self.time}" == str(s) for e in (op.scale, op.score) for s in e.free_symbols):
            raise refusal(n, f"has scores that depend on the length along {self.time}")
        meta: dict[str, Val] = {"query_at": self.fed.at}
        if moving:
            if not is_causal(op.pattern, self.sizes[self.time], heads(op, self.sizes)):
                raise refusal(n, "sees later positions")
            meta["key_at"] = self.key_positions(op.over)
        if "segments" in op.meta and "key_segments" not in op.meta:
            ids = self.value(ins[3 + op.meta.index("segments")])
            meta["key_segments"] = self.keys(_Keys(ids, op.over), n)
        given = [self.keys(x, n) if isinstance(x, _Keys) else self.value(x) for x in ins]
        wide = replace(op, meta=(*op.meta, *meta), layout=None)
        return self.g.many(wide, *given, *meta.values(), names=[v.name for v in n.outs])

    def key_positions(self, key: str) -> Val:
        """Where past and new rows stand: i64[batch key], negative where there is none."""
        if (self.fed.at, key) not in self.joined:
            past = f"past_{key}"
            formula = f"pos - n_{past} + i_{past}"
            (before,) = self.g.maps([formula], pos=self.fed.pos, to=(ROWS, past), dtype="i64", names=[f"{past}_at"])
            self.joined[self.fed.at, key] = self.join(before, self.fed.at, key, f"{key}_at")
        return self.joined[self.fed.at, key]

    def keys(self, x: _Keys, n: Node) -> Val:
        """Past rows, then the new ones: [batch key ..]."""
        if (x.row, x.key) not in self.joined:
            past = f"past_{x.key}"
            row = self.g.expand(x.row, to=(ROWS, self.time, *(d for d in x.row.dims if d not in (ROWS, self.time))))
            value = self.g.input(f"past_{x.row.name}", row.type.but(past if d == self.time else d for d in row.dims))
            both = self.join(value, row, x.key, f"all_{x.row.name}")
            self.states.append(State("rows", value, row, both, past, self.windows.get(x.key), n.src))
            self.joined[x.row, x.key] = both
        return self.joined[x.row, x.key]

    def join(self, past: Val, new: Val, key: str, name: str) -> Val:
        """Past rows, then new ones, along `key`."""
        return self.g.one(Concat((f"past_{key}", self.time), key), past, new, names=[name])

    def carry(self, n: Node, name: str, first: Val | Type) -> Val:
        """A new input for a state that starts as `first`."""
        if isinstance(first, Val) and self.time in {d for m in above(self.graph, first) for d in m.space}:
            raise refusal(n, f"starts from a value that depends on positions along {self.time}")
        type_ = first.type if isinstance(first, Val) else first
        if type_.dims[:1] != (ROWS,):
            raise refusal(n, f"carries what is not by {ROWS} first")
        value = self.g.input(f"past_{name}", type_)
        self.starts[value] = first
        return value

    def loop(self, n: Node, op: Loop, ins: list[_Found]) -> Iterable[_Found]:
        """The cell goes on from where it was left, and padding leaves it there."""
        if op.reverse:
            raise refusal(n, f"runs backwards along {self.time}")
        given = [self.value(x) for x in ins[op.carries :]]
        if any(set(v.dims) != set(x.dims) for v, x in zip(n.ins[op.carries :], given)):
            raise refusal(n, f"runs along {self.time} on what differs from row to row")
        before = [self.carry(n, v.name, x) for v, x in zip(op.body.inputs, n.ins[: op.carries])]
        body = holding(op.body, op.carries, ROWS)
        outs = self.g.many(replace(op, body=body), *before, *given, self.fed.real, names=[v.name for v in n.outs])
        for value, after in zip(before, outs):
            self.states.append(State("carry", value, after, after, src=n.src))
        return outs

    def route(self, n: Node, op: Route, ins: list[_Found]) -> Iterable[_Found]:
        """The queues are as long as earlier choices made them. What else a router gives (losses) mixes positions."""
        count, key = n.outs[4], f"{op.over}_row"
        past, rest = f"past_{key}", tuple(d for d in n.outs[0].dims if d not in (ROWS, self.time))
        held = self.g.input(f"past_{n.outs[0].name}", Type("i64", (ROWS, past, *rest)))
        formula = f"where(pos - n_{past} + i_{past} >= 0 and expert == i_{op.over}, 1, 0)"
        waiting = self.g.map(formula, expert=held, pos=self.fed.pos, to=(*held.dims, op.over), dtype="i64")
        queues = self.g.reduce(waiting, to=count.dims)
        expert, place, gate, *_ = self.g.many(op, self.value(ins[0]), queues, names=[v.name for v in n.outs])
        row = self.g.expand(expert, to=(ROWS, self.time, *rest))
        self.states.append(State("rows", held, row, self.join(held, row, key, f"all_{expert.name}"), past, src=n.src))
        self.router |= dict.fromkeys((expert, place), len(self.states))
        bad = refusal(n, f"mixes positions along {self.time}")
        return [expert, place, gate, *(bad for _ in n.outs[3:])]

    def scatter(self, n: Node, op: Scatter, ins: list[_Found]) -> Routed:
        """Tokens sent to slots of their own stay tokens."""
        x, *index = ins
        routers = {self.router.get(i) for i in index if isinstance(i, Val)}
        if not isinstance(x, Val) or len(routers) != 1 or None in routers:
            raise refusal(n, f"adds up positions along {self.time}")
        return sent(self.g, op, x, tuple(map(self.value, index)))

    def routed(self, n: Node, ins: list[_Found]) -> Iterable[_Found]:
        """An op on slots, done on the tokens in them."""
        given = [x if isinstance(x, Routed) else self.value(x) for x in ins]
        op, own, slots = on_tokens(self.g, n, given, self.time)
        here = replace(n, op=op)
        made = self.map(here, op, [*own]) if isinstance(op, Map) else self.g.many(op, *own, names=[n.outs[0].name])
        return [replace(slots, token=self.value(v)) for v in made]
