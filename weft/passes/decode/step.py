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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.errors import DecodeError
from weft.ir.builder import Builder
from weft.ir.composite import expansion
from weft.ir.graphs import dce
from weft.ir.ops.primitives import Concat
from weft.ir.types import Dims, Graph, Node, Type, Val
from weft.ir.verify import verify
from weft.passes.decode.slots import Routed, on_tokens, sent, taken
from weft.passes.decode.time import above, holding, refitted, refusal, windows

ROWS = "batch"
"""The dim of sequences, each at a position of its own."""


@dataclass(frozen=True, slots=True)
class StepState:
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
class StepInputs:
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
    fed: StepInputs
    outputs: tuple[int, ...]
    states: tuple[StepState, ...]
    start: Graph


def decode(graph: Graph, sizes: Mapping[str, int], time: str = "seq") -> StepGraph:
    """The step of a block's forward graph along `time`. sizes[time]: the most positions there will be.

    Raises DecodeError when an output that has `time` depends on positions in a way no step can follow."""
    return _Step(graph, sizes, time).build()


@dataclass(frozen=True, slots=True)
class _Keys:
    """A value renamed from the time dim to `key`: new rows that stand among past ones. joined: those are in it."""

    row: Val
    key: str
    joined: bool = False


_Found = Val | _Keys | Routed | DecodeError


class _Step:
    """One block's step under construction. `env`: what each value of the block has become."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], time: str) -> None:
        self.graph, self.sizes, self.time = graph, sizes, time
        self.g = Builder()
        self.env: dict[Val, _Found] = {v: self.g.input(v.name, v.type) for v in graph.inputs}
        self.own = len(self.g.inputs)
        each = (ROWS, time)
        self.fed = StepInputs(
            self.g.input("pos", Type("i64", (ROWS,))),
            self.g.input("at", Type("i64", each)),
            self.g.input("real", Type("bool", each)),
        )
        self.states: list[StepState] = []
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

    def live(self, outs: list[Val]) -> tuple[StepState, ...]:
        """The states that the outputs, now or later, depend on."""
        found: tuple[StepState, ...] = ()
        while True:
            read = {v for n in dce(self.g.graph(*outs, *(s.new for s in found))).nodes for v in n.ins}
            used = [s for s in self.states if s.value in read]
            now = tuple(sorted(used, key=lambda s: s.kind == "carry"))
            if now == found:
                return found
            found = now

    def start(self, states: tuple[StepState, ...]) -> Graph:
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
                        env.update(zip(n.outs, n.op.step(self, n, ins), strict=True))
                        continue
                    except DecodeError as e:
                        bad = e
            env.update(dict.fromkeys(n.outs, bad))

    # What follows is what `Op.step` asks of the walk.

    rows = ROWS
    refusal = staticmethod(refusal)

    def value(self, x: _Found) -> Val:
        assert isinstance(x, Val)
        return x

    def keyed(self, row: Val, key: str) -> list[_Keys]:
        """New rows under the name `key`, to stand among past ones."""
        return [_Keys(row, key)]

    def is_keyed(self, x: _Found) -> bool:
        return isinstance(x, _Keys)

    def in_slots(self, ins: Sequence[_Found]) -> bool:
        return any(isinstance(x, Routed) for x in ins)

    def meets(self, n: Node, ins: Sequence[_Found]) -> bool:
        """Does a composite depend on positions in more than having one result for each?"""
        return self.time in n.op.crossed(n) or n.op.mentions(n.types, self.time) or any(map(self.is_keyed, ins))

    def same(self, n: Node, ins: Sequence[_Found]) -> Iterable[_Found]:
        """The same op, when no result depends on another position; on slots, done on the tokens in them."""
        if self.in_slots(ins):
            return self.routed(n, ins)
        if any(map(self.is_keyed, ins)):
            return self.among(n, ins)
        if self.time in n.op.crossed(n):
            raise refusal(n, f"mixes positions along {self.time}")
        if self.time in n.op.moves():
            raise refusal(n, f"moves positions along {self.time}")
        given = [self.value(x) for x in ins]
        return self.g.many(refitted(n.op, n.ins, given, ROWS), *given, names=[v.name for v in n.outs])

    def among(self, n: Node, ins: Sequence[_Found]) -> Iterable[_Found]:
        """The same op on past and new rows, where each result is that of one row."""
        (key, *others) = {x.key for x in ins if isinstance(x, _Keys)}
        alone = not any(self.time in v.dims for v in n.ins) and key not in n.op.crossed(n)
        if others or not alone or n.op.mentions(n.types, key):
            raise refusal(n, "works on keys after they were renamed from positions")
        given = [self.joined_keys(x, n) if isinstance(x, _Keys) else self.value(x) for x in ins]
        outs = self.g.many(refitted(n.op, n.ins, given, ROWS), *given, names=[v.name for v in n.outs])
        return [_Keys(v, key, joined=True) for v in outs]

    def routed(self, n: Node, ins: Sequence[_Found]) -> Iterable[_Found]:
        """An op on slots, done on the tokens in them."""
        given = [x if isinstance(x, Routed) else self.value(x) for x in ins]
        op, own, slots = on_tokens(self.g, n, given, self.time)
        here, names = replace(n, op=op), [n.outs[0].name]
        made = op.step(self, here, own) if op.core == "pointwise" else self.g.many(op, *own, names=names)
        return [replace(slots, token=self.value(v)) for v in made]

    def taken(self, n: Node, ins: Sequence[_Found]) -> list[Val]:
        """What tokens take from slots of their own."""
        return [taken(self.g, n, ins)]

    def sent(self, n: Node, ins: Sequence[_Found]) -> list[Routed]:
        """Tokens sent to slots of their own stay tokens."""
        x, *index = ins
        routers = {self.router.get(i) for i in index if isinstance(i, Val)}
        if not isinstance(x, Val) or len(routers) != 1 or None in routers:
            raise refusal(n, f"adds up positions along {self.time}")
        return [sent(self.g, n, x, tuple(map(self.value, index)))]

    def held(self, like: Val, key: str) -> tuple[Val, Dims]:
        """A new input for past rows of `like` along past_<key>, and what dims it has beside these."""
        rest = tuple(d for d in like.dims if d not in (ROWS, self.time))
        return self.g.input(f"past_{like.name}", like.type.but((ROWS, f"past_{key}", *rest))), rest

    def routes(self, n: Node, held: Val, row: Val, key: str, results: Iterable[Val]) -> None:
        """Note a router: it holds its past choices, and `results` say where it sends tokens."""
        self.keeps(n, held, row, key)
        self.router |= dict.fromkeys(results, len(self.states))

    def keeps(self, n: Node, held: Val, row: Val, key: str) -> None:
        """Note that all rows of `row` are held, past ones in `held`."""
        both = self.join(held, row, key, f"all_{row.name}")
        self.states.append(StepState("rows", held, row, both, f"past_{key}", src=n.src))

    def inline(self, n: Node, ins: Sequence[_Found]) -> Iterable[_Found]:
        """The rules on what a composite means, where it meets positions."""
        op: Any = n.op
        body = expansion(op, n.types)
        own = {v: Val(o.name, v.type) for v, o in zip(body.outputs, n.outs) if v not in body.inputs}
        env: dict[Val, _Found] = dict(zip(body.inputs, ins, strict=True))
        for m in body.nodes:
            ins_, outs = (tuple(own.get(v, v) for v in vs) for vs in (m.ins, m.outs))
            self.run([Node(m.op, ins_, outs, m.src or n.src)], env)
        return [env[own.get(v, v)] for v in body.outputs]

    def key_positions(self, key: str) -> Val:
        """Where past and new rows stand: i64[batch key], negative where there is none."""
        if (self.fed.at, key) not in self.joined:
            past = f"past_{key}"
            formula = f"pos - n_{past} + i_{past}"
            (before,) = self.g.maps([formula], pos=self.fed.pos, to=(ROWS, past), dtype="i64", names=[f"{past}_at"])
            self.joined[self.fed.at, key] = self.join(before, self.fed.at, key, f"{key}_at")
        return self.joined[self.fed.at, key]

    def joined_keys(self, x: _Keys, n: Node) -> Val:
        """Past rows, then the new ones: [batch key ..]."""
        if x.joined:
            return x.row
        if (x.row, x.key) not in self.joined:
            past = f"past_{x.key}"
            value, rest = self.held(x.row, x.key)
            row = self.g.expand(x.row, to=(ROWS, self.time, *rest))
            both = self.join(value, row, x.key, f"all_{x.row.name}")
            self.states.append(StepState("rows", value, row, both, past, self.windows.get(x.key), n.src))
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

    def cell(self, n: Node, ins: Sequence[_Found]) -> Iterable[_Found]:
        """A loop along time goes on from where it was left, and padding leaves it there."""
        op: Any = n.op
        if op.reverse:
            raise refusal(n, f"runs backwards along {self.time}")
        given = [self.value(x) for x in ins[op.carries :]]
        if any(set(v.dims) != set(x.dims) for v, x in zip(n.ins[op.carries :], given)):
            raise refusal(n, f"runs along {self.time} on what differs from row to row")
        before = [self.carry(n, v.name, x) for v, x in zip(op.body.inputs, n.ins[: op.carries])]
        body = holding(op.body, op.carries, ROWS)
        outs = self.g.many(
            replace(op, body=body, padded=True), *before, *given, self.fed.real, names=[v.name for v in n.outs]
        )
        for value, after in zip(before, outs):
            self.states.append(StepState("carry", value, after, after, src=n.src))
        return outs
