"""What a model is made of: its block calls in order, where each one's parameters live, and which blocks are the same.

A block is the body of a `Call`. Its module is mounted under the longest dotted prefix of its own parameters' logical
names; a parameter that two blocks read belongs to the first and is handed to the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from weft.errors import VerifyError
from weft.ir.composite import Call
from weft.ir.ops.op import body_of
from weft.ir.ops.primitives import Loop
from weft.ir.program import Param, Program
from weft.ir.types import Graph, Node, Val


@dataclass(frozen=True)
class OwnParameter:
    """A block input that is the block's own parameter; `name` is relative to the mount."""

    name: str
    param: Param


@dataclass(frozen=True)
class Borrowed:
    """A block input that is another block's (or the model's) parameter, by logical name."""

    name: str
    param: Param


@dataclass(frozen=True)
class Given:
    """A block input that is a value of the model graph (or of the loop's body)."""

    value: Val


Source = OwnParameter | Borrowed | Given


@dataclass(frozen=True)
class CallSite:
    """One call: where it stands, its inputs, and where its module is mounted ("" when it owns nothing by itself).

    In a loop `mount` has a "{}" for start + step * i, and `rows` names the loop's dim.
    """

    node: Node
    sources: tuple[Source, ...]
    mount: str
    start: int = 0
    step: int = 1
    rows: str | None = None

    @property
    def call(self) -> Call:
        op: Any = self.node.op
        return op

    @property
    def body(self) -> Graph:
        return self.call.body

    @property
    def own(self) -> tuple[OwnParameter, ...]:
        return tuple(s for s in self.sources if isinstance(s, OwnParameter))


@dataclass(frozen=True)
class Stack:
    """A loop over layers: its node, the calls of its body in order."""

    node: Node
    sites: tuple[CallSite, ...]

    @property
    def loop(self) -> Loop:
        op: Any = self.node.op
        return op


@dataclass
class Structure:
    """The model graph's nodes as steps, in order; `root` are parameters that no block owns."""

    program: Program
    steps: list[Node | CallSite | Stack] = field(default_factory=list)
    root: list[Param] = field(default_factory=list)

    @property
    def sites(self) -> Iterable[CallSite]:
        for step in self.steps:
            if isinstance(step, CallSite):
                yield step
            elif isinstance(step, Stack):
                yield from step.sites


def structure(program: Program) -> Structure:
    """Read the structure off the model graph."""
    return _StructureReader(program).read()


def is_stack(node: Node) -> bool:
    """A loop whose body holds only calls."""
    body = body_of(node.op)
    return not node.op.block and body is not None and bool(body.nodes) and all(n.op.block for n in body.nodes)


def _inside(stack: Node) -> tuple[dict[Val, Val], tuple[Node, ...]]:
    """What each input of a stack's body is outside, and the calls of the body."""
    op: Any = stack.op
    return dict(zip(op.body.inputs, stack.ins)), op.body.nodes


class _StructureReader:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.params = {p.value: p for p in program.params}
        self.readers: dict[str, list[tuple[str, int]]] = {}  # parameter -> the calls that read it
        for node in program.graph.nodes:
            self._count(node)

    def _count(self, node: Node) -> None:
        if is_stack(node):
            fed, calls = _inside(node)
            for j, call in enumerate(calls):
                for v in call.ins:
                    if v in fed and fed[v].name in self.params:
                        self.readers.setdefault(fed[v].name, []).append((node.outs[0].name, j))
        else:
            for v in node.ins:
                if v.name in self.params:
                    self.readers.setdefault(v.name, []).append((node.outs[0].name, 0))

    def read(self) -> Structure:
        out = Structure(self.program)
        owned: set[str] = set()
        for node in self.program.graph.nodes:
            if node.op.block:
                step: Node | CallSite | Stack = self.site(node, {}, (node.outs[0].name, 0))
            elif is_stack(node):
                op: Any = node.op
                fed, calls = _inside(node)
                sites = [self.site(n, fed, (node.outs[0].name, j), op.dim) for j, n in enumerate(calls)]
                step = Stack(node, tuple(sites))
            else:
                step = node
            out.steps.append(step)
        for site in out.sites:
            owned |= {s.param.value for s in site.own}
        out.root = [p for p in self.program.params if p.value not in owned]
        return out

    def site(self, node: Node, fed: dict[Val, Val], key: tuple[str, int], rows: str | None = None) -> CallSite:
        """One call; `fed`: what each input of the surrounding loop's body is outside."""
        params = [self.params.get(fed.get(v, v).name) for v in node.ins]
        mine = [
            p for p in params if p is not None and self.readers[p.value][0] == key and (p.stack == rows or rows is None)
        ]
        mine = [p for p in mine if (p.stack is None) == (rows is None)]
        op: Any = node.op
        mount = self.mount(mine, rows, op.name)
        first = mine[0] if mine and rows else None
        sources: list[Source] = []
        for v, p in zip(node.ins, params):
            if p is None:
                sources.append(Given(v))
            elif mount and p in mine:
                sources.append(OwnParameter(p.name[len(mount) + 1 :], p))
            else:
                if p.stack is not None and p.stack != rows:
                    raise VerifyError(f"parameter {p.name} is stacked along {p.stack} but read whole by a block")
                sources.append(Borrowed(p.name, p))
        return CallSite(node, tuple(sources), mount, first.start if first else 0, first.step if first else 1, rows)

    def mount(self, mine: list[Param], rows: str | None, name: str) -> str:
        """The dotted prefix of all names: of a stack up to its "{}", else the call's own name; "" if neither is."""
        if not mine:
            return ""
        if rows and len({(p.start, p.step) for p in mine}) > 1:
            return ""
        paths = [p.name.split(".")[:-1] for p in mine]
        common = paths[0]
        for path in paths[1:]:
            n = next((i for i, (a, b) in enumerate(zip(common, path)) if a != b), min(len(common), len(path)))
            common = common[:n]
        if rows:
            if "{}" not in common:
                return ""
            common = common[: common.index("{}") + 1]
        if rows:
            return ".".join(common)
        prefix = next((p for n in range(len(common)) if (p := ".".join(common[: n + 1])).replace(".", "_") == name), "")
        names = {p.name for p in mine}
        strangers = [p.name for p in self.program.params if p.name not in names and p.name.startswith(prefix + ".")]
        return "" if strangers else prefix
