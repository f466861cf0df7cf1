"""Attention regions: a layout's parts as walks of the attention skeleton, their masks and scores as holes.

Each part of the layout becomes a `Part` of the skeleton: where its rows lie (residue classes by strides), the closed
forms or constants or table by which each kernel walks its blocks, and `keep` where a block is not whole. What follows
the attention pointwise is its epilogue.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp

from weft.codegen.skeletons.attention.writer.plan import ELSEWHERE, geometry, static_block
from weft.codegen.skeletons.attention.writer.space import WIDEST, configurations, pairs
from weft.codegen.skeletons.attention.writer.walks import Walks
from weft.codegen.skeletons.common.writer.holes import TOP24, Hole, HoleBody
from weft.codegen.skeletons.common.writer.iteration import renamings
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import POINTWISE, kind
from weft.codegen.skeletons.common.writer.source import Reads, named, nested, pair
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri, literal
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.torch.attention import AttendAxes, axes
from weft.codegen.torch.lines import call
from weft.codegen.torch.spelling import TORCH_DTYPE
from weft.ir.formula import normal, symbol
from weft.ir.formula.evaluate import scalar
from weft.ir.formula.functions import diff
from weft.ir.library import Dropout
from weft.ir.library.attention import Attend, AttendGrad
from weft.ir.library.scores import DRAWN, S
from weft.ir.pattern import LayoutPart, Pattern, PatternLayout, opaque_atoms, to_sympy
from weft.ir.pattern import layout as choose
from weft.ir.pattern.formula import SAME_SEGMENT, BatchCondition, InTable, demands
from weft.ir.types import FLOATS, Dims, Graph, Node, Val

KERNELS: dict[Any, tuple[str, ...]] = {Attend: ("forward",), AttendGrad: ("dkdv", "dq")}
Heads = tuple[int, int, int] | None


def write_attention(job: Job) -> Written:
    """The kernels of a region whose core is an attention or its derivative."""
    graph = job.opened((Attend, AttendGrad, *KEPT))
    cores = [n for n in graph.nodes if isinstance(n.op, Attend | AttendGrad)]
    if len(cores) != 1 or graph.nodes[0] is not cores[0]:
        raise Refused(Why.LAYOUT)
    return _AttentionWriter(job, graph, cores[0]).write()


def _kept() -> tuple[type, ...]:
    return (Dropout,)


KEPT = _kept()


class _AttentionWriter:
    def __init__(self, job: Job, graph: Graph, core: Node) -> None:
        self.job, self.graph, self.core = job, graph, core
        self.back = isinstance(core.op, AttendGrad)
        of: Any = core.op.of if isinstance(core.op, AttendGrad) else core.op
        self.of: Attend = of
        found = axes(of, core.types)
        if found is None or {"query_at", "key_at"} & set(of.meta):
            raise Refused(Why.METADATA)
        if of.distant:
            raise Refused(Why.DISTANCE)
        self.axes: AttendAxes = found
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        self.reads = Reads()
        self.holes: list[Hole] = []
        self.meta = dict(zip(of.meta, core.ins[6 if self.back else 3 :]))
        self.sinks = self.meta.pop("sinks", None)

    @property
    def side(self) -> str:
        return "backward" if self.back else "forward"

    # -- numbers -----------------------------------------------------------------------------------------------------

    def limit(self, dim: str) -> int:
        found = self.job.sizes.limit(dim)
        if found is None:
            raise Refused(Why.NO_SIZE, dim)
        return found

    def width(self, dims: Dims) -> int:
        return math.prod(self.limit(d) for d in dims)

    @property
    def heads(self) -> int:
        return self.width(self.axes.heads)

    @property
    def scale(self) -> str:
        return repr(float(scalar(self.of.scale.xreplace({s: sp.Integer(n) for s, n in self.frozen(self.of.scale)}))))

    def frozen(self, formula: Any) -> list[tuple[Any, int]]:
        """The sizes that a formula reads; Refused where one is known at run time only."""
        found = {s: self.job.sizes.number(s.name[2:]) for s in formula.free_symbols if s.name.startswith("n_")}
        if open_ := [s.name[2:] for s, n in found.items() if n is None]:
            raise Refused(Why.NO_SIZE, open_[0])
        return [(s, n) for s, n in found.items() if n is not None]

    # -- the pattern -------------------------------------------------------------------------------------------------

    def layout(self) -> PatternLayout:
        nq, nk = self.limit(self.axes.query), self.limit(self.axes.over)
        whole = PatternLayout((LayoutPart("tiles", term=self.of.pattern.at(max(nq, nk))),))
        if self.of.pattern.multiset or self.meta.keys() - set(DRAWN):
            return whole
        return self.of.layout or choose(self.of.pattern, nq, heads=self.heads, nk=nk)

    def groups(self) -> list[tuple[Heads, list[LayoutPart]]]:
        """The parts of each stretch of heads."""
        parts = self.layout().parts
        if all(p.heads is None for p in parts):
            return [(None, list(parts))]
        own: dict[tuple[int, ...], list[int]] = {}
        for h in range(self.heads):
            mine = tuple(i for i, p in enumerate(parts) if p.heads is None or h in range(*p.heads))
            own.setdefault(mine, []).append(h)
        out: list[tuple[Heads, list[LayoutPart]]] = []
        for mine, hs in own.items():
            for first, step, count in stretches(hs):
                out.append(((first, step, count), [parts[i] for i in mine]))
        return out

    @property
    def block(self) -> int:
        """The block that those of kernels must divide, of the static block sets of the pattern; 0: there is none."""
        return static_block(self.of.pattern)

    # -- holes -------------------------------------------------------------------------------------------------------

    def hole(self, name: str, args: Sequence[str], acc: str = "", doc: str = "") -> Hole:
        taken = {h.name for h in self.holes}
        hole = Hole(next(n for n in (name, *(f"{name}{i}" for i in range(2, 99))) if n not in taken), args, acc, doc)
        self.holes.append(hole)
        return hole

    def keep(self, pattern: Pattern) -> str:
        """keep(q, k, b, h, X) of a part's pairs, by position."""
        hole = self.hole("keep", ("q", "k", "b", "h", "X"), "tl.float32", pattern.text)
        env = {symbol(f"i_{c}"): Tri(c, ATOM, "int", None, 0) for c in "qkh"}
        given: dict[Any, Any] = {}
        for n, atom in enumerate(opaque_atoms(pattern)):
            if isinstance(atom, InTable):
                raise Refused(Why.LAYOUT)
            given[atom] = symbol(f"seen{n}")
            env[symbol(f"seen{n}")] = self.metadata(hole, atom)
        condition = to_sympy(pattern, symbol("i_q"), symbol("i_k"), symbol("i_h"), given)
        (out,) = hole.formula([condition], env)
        hole.add(f"return {out.text if not out.number else f'(q == q) & (k == k) & ({out.text})'}")
        return hole.name

    def metadata(self, hole: Hole, atom: BatchCondition) -> Tri:
        """same_segment or valid, loaded where q and k exist."""
        if atom.name == "same_segment":
            keys = self.meta.get("key_segments", self.meta["segments"])
            q = self.vector(hole, self.meta["segments"], "q", self.axes.query)
            return Tri(f"{q} == {self.vector(hole, keys, 'k', self.axes.over)}", 1, "bool")
        return Tri(f"{self.vector(hole, self.meta['valid'], 'k', self.axes.over)} != 0", 1, "bool")

    def segments(self) -> str:
        """The segments of queries and keys, where nobody sees a key of another one; "" where somebody may."""
        queries = self.meta.get("segments")
        if queries is None or not demands(self.of.pattern.formula, SAME_SEGMENT):
            return ""
        keys = self.meta.get("key_segments", queries)
        both = all(len(v.dims) == 2 and v.dims[:1] == self.axes.batch for v in (queries, keys))
        return pair(self.w.argument(v).name for v in (queries, keys)) if both else ""

    def vector(self, hole: Hole, v: Val, place: str, dim: str) -> str:
        """One number for each position of the queries or keys."""
        name = self.w.argument(v).name
        if len(v.dims) > 2 or (len(v.dims) == 2 and v.dims[0] not in self.axes.batch) or len(self.axes.batch) > 1:
            raise Refused(Why.METADATA)
        x = self.reads.at(f"host.strided({name}, {', '.join(f'({i},)' for i in range(len(v.dims)))})")
        n = self.job.sizes.number(dim)
        size = str(n) if n is not None else self.reads.at(self.w.size(dim))
        row = f" + b.to(tl.int64) * {x}[1][0]" if len(v.dims) == 2 else ""
        src = Tri(f"tl.load({x}[0]{row} + {place} * {x}[1][{len(v.dims) - 1}], mask={place} < {size}, other=0)")
        return hole.bind(f"{v.name}_{place}", src).text

    def scores(self) -> tuple[str, ...]:
        """score and dscore holes, or neither."""
        score = normal(self.of.score)
        if score == S and self.of.normalised:
            return ()
        sizes = {s: literal(n) for s, n in self.frozen(score)}
        for name, e in (("score", score), ("dscore", normal(diff(score, S)))):
            hole = self.hole(name, ("s", "q", "k", "b", "h", "X"), "s.dtype")
            env = {S: Tri("s"), **{symbol(f"i_{c}"): Tri(c, ATOM, "int", None, 0) for c in "qkh"}, **sizes}
            (out,) = hole.formula([e], env)
            whole = S in e.free_symbols and out.kind == "float"  # else it lacks dims of s, or its dtype
            hole.add(f"return {out.text if whole else f'tl.zeros_like(s) + {out.at(ATOM)}'}")
        return "score", "dscore"

    def sink(self) -> tuple[str, ...]:
        """The hole of a sink's score, where there is one."""
        if self.sinks is None:
            return ()
        hole = self.hole("sink", ("lse", "b", "h", "X"), "lse.dtype")
        hole.add(f"return {self.loaded(hole, self.sinks, self.coordinates(renamings(self.graph))).text}")
        return (hole.name,)

    def drop(self) -> tuple[str, ...]:
        """The drop hole, where weights are dropped."""
        if not set(DRAWN) <= self.meta.keys():
            return ()
        seed, layer = (self.reads.at(self.w.argument(self.meta[m]).name) for m in DRAWN)
        threshold, scale = math.ceil(self.of.rate * TOP24), float(1 / (1 - self.of.rate))
        a, hole = self.axes, self.hole("drop", ("p", "q", "k", "b", "h", "X"), "p.dtype")
        heads, queries, keys = (self.extent(dims).at(ATOM) for dims in (a.heads, (a.query,), (a.over,)))
        hole.note("the row-major place of (batch, head, query, key)")
        index = hole.bind("index", Tri(f"((b.to(tl.int64) * {heads} + h) * {queries} + q) * {keys} + k"))
        drawn = f"{threshold}, {scale!r}, {seed}, {self.of.op_id}, {layer}, {index.text}"
        hole.add(f"return elementwise.dropout(tl.zeros_like(p) + 1, {drawn})")
        return (hole.name,)

    def extent(self, dims: Dims) -> Tri:
        """The product of sizes, read at run time where one is known then only."""
        known = [self.job.sizes.number(d) for d in dims]
        return literal(math.prod(n for n in known if n)) if None not in known else self.size(dims[0])

    def epilogue(self) -> tuple[tuple[str, ...], list[Val]]:
        """The epilogue hole and what it makes; neither where nothing follows."""
        nodes = [n for n in self.graph.nodes if n is not self.core]
        made = {v for n in nodes for v in n.outs}
        results = [v for v in self.graph.outputs if v in made]
        if not nodes:
            return (), []
        if self.back or not all(isinstance(n.op, POINTWISE) for n in nodes):
            raise Refused(Why.NOT_POINTWISE)
        same = renamings(self.graph)
        out = self.core.outs[0]
        space = {same.get(d, d) for d in out.dims}
        if any({same.get(d, d) for d in v.dims} != space for v in results):
            raise Refused(Why.SPACES)
        hole = self.hole("epilogue", ("o", "b", "h", "t", "d", "ok", "X"), "o.dtype")
        where = self.coordinates(same)
        seeds = {a.val.name: self.reads.at(a.name) for a in self.w.arguments if a.role == "seed"}
        env = {out.name: Tri("o")}
        env |= {
            a.val.name: Tri(self.reads.at(a.name), ATOM, "int", None, 0) for a in self.w.arguments if a.role == "layer"
        }
        body = HoleBody(hole, where, self.size, lambda v: self.loaded(hole, v, where), env, seeds)
        body.nodes(nodes)
        hole.add(f"return {pair(body.value(v).text for v in results)}")
        return (hole.name,), results

    def size(self, dim: str) -> Tri:
        return self.w.frozen(dim) or Tri(self.reads.at(self.w.size(dim)), ATOM, "int", None, 0)

    def coordinates(self, same: Mapping[str, str]) -> dict[str, Tri]:
        """Dim of the output -> its coordinate in an epilogue."""
        a, out = self.axes, dict[str, Tri]()
        for source, dims in (("b.to(tl.int64)", a.batch), ("h", a.heads), ("t", (a.query,)), ("d", a.own)):
            inner = 1
            for d in reversed(dims):
                at = source if inner == 1 else f"{source} // {inner}"
                first = d == dims[0]
                number = self.job.sizes.number(d)
                if number is None and not first:
                    raise Refused(Why.SPACES, d)
                out[d] = Tri(at if first else f"({at}) % {number}", ATOM if first and inner == 1 else 3, "int", None, 0)
                inner *= number or 1
        return out | {d: out[e] for e in list(out) for d in same if same[d] == same.get(e, e) and d not in out}

    def loaded(self, hole: Hole, v: Val, where: Mapping[str, Tri]) -> Tri:
        """An operand of the epilogue."""
        name = self.w.argument(v).name
        if not set(v.dims) <= set(where):
            raise Refused(Why.SPACES, v.name)
        axes = ", ".join(f"({i},)" for i in range(len(v.dims)))
        x = self.reads.at(f"host.strided({name}, {axes})" if v.dims else name)
        if not v.dims:
            return Tri(f"tl.load({x}){f'.to({hole.acc})' if v.dtype in FLOATS else ''}", ATOM, kind(v))
        at = "".join(f" + tl.cast({where[d].text}, tl.int64) * {x}[1][{i}]" for i, d in enumerate(v.dims))
        tile = {self.axes.query, *self.axes.own} & set(v.dims)
        mask = ", mask=ok, other=0" if tile else ""
        cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
        return Tri(f"tl.load({x}[0]{at}{mask}){cast}", ATOM, kind(v))

    # -- the file ----------------------------------------------------------------------------------------------------

    def write(self) -> Written:
        holes = (*self.scores(), *self.sink(), *self.drop())
        epilogue, results = self.epilogue()
        widths = self.width((self.of.contract,)), self.width(self.axes.own)
        if max(widths) > WIDEST:
            raise Refused(Why.WIDE)
        if self.block and not pairs(self.block):
            raise Refused(Why.LAYOUT)
        walks = Walks(self.block)
        pattern = call("walks.Pattern", *self.pattern(walks))
        plain = {} if self.of.normalised else {"softmax": "False"}
        given = call("launch.Holes", **{name: name for name in (*holes, *epilogue)}, **plain)
        dtypes = pair(self.dtype(v) for v in results)
        ins = {name: self.operand(v, groups) for name, v, groups in self.operands()}
        more = named(**ins, results=self.results(results), x=self.reads.text, dtypes=dtypes, segments=self.segments())
        name = "launch.attend_grad" if self.back else "launch.attend"
        launch = call(name, "NAME", "HOLES", self.w.anchor.name, "PATTERN", self.scale, **more)
        configs = configurations(self.side, *widths, self.block, "seed" in self.meta)
        below = {"HOLES": given, "PATTERN": pattern}
        return Written(self.w, "attention", tuple(self.holes), launch, configs, below, tuple(walks.lines), returns=True)

    def dtype(self, v: Val) -> str:
        return TORCH_DTYPE[v.dtype] if self.job.mixed else f"{self.w.argument(self.core.ins[0]).name}.dtype"

    def operands(self) -> list[tuple[str, Val, tuple[Dims, ...]]]:
        """q, k, v (and out, lse, d(out)), each with its dims as [batch, heads, rows, columns]."""
        a, ins = self.axes, self.core.ins
        found = [("q", ins[0], a.queries()), ("k", ins[1], a.keys()), ("v", ins[2], a.values())]
        if self.back:
            found += [("out", ins[3], a.outs()), ("lse", ins[4], a.rows()), ("do", ins[5], a.outs())]
        return found

    def operand(self, v: Val, groups: tuple[Dims, ...]) -> str:
        return pair((self.w.argument(v).name, nested(tuple(tuple(v.dims.index(d) for d in g) for g in groups))))

    def results(self, extra: Sequence[Val]) -> str:
        """Which of what the kernels give are the region's results, and how these lie."""
        a, same = self.axes, renamings(self.graph)
        places = (a.queries(), a.keys(), a.values()) if self.back else (a.outs(), a.rows(), *(a.outs() for _ in extra))
        made = dict(zip((*self.core.outs, *extra), enumerate(places)))
        found: list[str] = []
        for v in self.graph.outputs:
            which, groups = made[v]
            own = [same.get(d, d) for d in v.dims]
            where = tuple(tuple(own.index(same.get(d, d)) for d in g) for g in groups)
            found.append(pair((str(which), nested(where), self.w.shape(v.dims))))
        return pair(found)

    def pattern(self, walks: Walks) -> list[str]:
        """The parts of each stretch of heads; their walks go to module-level lines."""
        number, out = itertools.count(), list[str]()
        for heads, parts in self.groups():
            out.append(pair((nested(heads), pair(self.part(p, next(number), heads, walks) for p in parts))))
        return out

    def part(self, p: LayoutPart, number: int, some: Heads, walks: Walks) -> str:
        """A part that serves `some` heads."""
        g = geometry(p)
        needs, said = False, dict[str, str]()
        nq, nk = (g.count(self.limit(d), at) for d, at in ((self.axes.query, g.q_at), (self.axes.over, g.k_at)))
        first, step, count = some or (0, 1, self.heads)
        mine = range(first, first + step * count, step)
        heads = [h if h in mine else ELSEWHERE for h in range(self.heads)] if g.rows.per_head else [None]
        for k in KERNELS[type(self.core.op)]:
            back, name = k == "dkdv", f"{k.upper()}{number}"
            group = self.heads // self.width(self.axes.shared) if back and g.rows.per_head else 1
            needs |= walks.add(name, g.rows, nq, nk, back, heads, group)
            said[k] = name
        if needs and g.keep is not None:
            if g.keep.multiset:
                raise Refused(Why.LAYOUT)
            said["keep"] = self.keep(g.keep)
        if g.classes != 1 or g.q_at != (1, 1, 0) or g.k_at != (1, 1, 0):
            said |= {"classes": str(g.classes), "q_at": nested(g.q_at), "k_at": nested(g.k_at)}
        return call("walks.Walked", **said)


def stretches(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Sorted numbers as (first, step, count), few of them."""
    if len(numbers) == 1:
        return [(numbers[0], 1, 1)]
    step = numbers[1] - numbers[0]
    n = next((i for i in range(1, len(numbers)) if numbers[i] - numbers[i - 1] != step), len(numbers))
    return [(numbers[0], step, n), *(stretches(numbers[n:]) if n < len(numbers) else [])]
