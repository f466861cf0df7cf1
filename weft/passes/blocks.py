"""Distinct blocks: which calls are the same one, and what order their functions take arguments in."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from weft.ir.graphs import dce, with_gradient
from weft.ir.indices import targets
from weft.ir.names import identifier
from weft.ir.ops.regions import Opaque
from weft.ir.types import Graph, Node, Type, Val
from weft.passes.structure import CallSite, Given, OwnParameter, Structure

_CLASSES = {"Block", "Memory", "Model", "NamedTuple", "Output", "Past", "Path", "State", "Step", "Tensor", "Wrapped"}
"""Classes that emitted files have already."""
HANDLE = "wrapped"


@dataclass(frozen=True)
class Mode:
    """One recompute mode of a block: its name and the values its forward keeps, by their names in the block's joint."""

    name: str
    saved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One distinct block, known by its first call. `graph` is its body with the arguments in the functions' order."""

    name: str
    site: CallSite
    graph: Graph
    modes: tuple[Mode, ...]
    alone: bool  # its results after the first are only shown to the caller: their cotangents are often missing
    optional: frozenset[str] = frozenset()  # the loss's targets, which the caller may leave out: inputs, by name
    variant: str = ""  # what its functions' names end in

    @property
    def title(self) -> str:
        """The class name."""
        name = "".join(part.capitalize() for part in self.name.split("_"))
        return f"{name}Block" if name in _CLASSES else name

    @property
    def given(self) -> list[Val]:
        """What the module's forward takes: every argument that is no own parameter, nor the wrapped modules."""
        own = {v.name for v, s in zip(self.site.body.inputs, self.site.sources) if isinstance(s, OwnParameter)}
        return [v for v in self.graph.inputs if v.name not in own and v != self.wrapped]

    def named(self, function: str, mode: Mode) -> str:
        """The name of a function in one of the block's modes."""
        return f"{function}_{mode.name}" if len(self.modes) > 1 else function

    def autograd(self, mode: Mode) -> str:
        """The name of the autograd function of a mode."""
        words = self.named(f"function{self.variant}", mode)
        return self.title + "".join(part.capitalize() for part in words.split("_"))

    @property
    def bare(self) -> "Block | None":
        """The block as it is without `optional`: what needs them is left out. None where it has none."""
        if not self.optional:
            return None
        lost = below(self.graph, self.optional)
        graph = dce(replace(self.graph, outputs=tuple(v for v in self.graph.outputs if v not in lost)))
        inputs = tuple(v for v in self.graph.inputs if v.name not in self.optional)
        return replace(self, graph=replace(graph, inputs=inputs), optional=frozenset(), variant="_without_loss")

    @property
    def lost(self) -> list[Val]:
        """The results of its first call that are missing without `optional`."""
        bare = self.bare
        return [v for v, y in zip(self.site.node.outs, self.graph.outputs) if bare and y not in bare.graph.outputs]

    @property
    def wrapped(self) -> Val | None:
        """The argument that stands for wrapped modules, where the block has such."""
        return handle_of(self.graph)


def order(site: CallSite) -> list[int]:
    """Places in the body's inputs: floats (values, borrowed, own parameters), then what has no gradient: integers,
    conditions, rows of earlier calls."""
    inputs = site.body.inputs
    own = [i for i, s in enumerate(site.sources) if isinstance(s, OwnParameter)]
    live = with_gradient(site.body, inputs)
    floats = [i for i, v in enumerate(inputs) if i not in own and v in live]
    return [*floats, *own, *(i for i in range(len(inputs)) if i not in own and i not in floats)]


def distinct(model: Structure) -> dict[object, Block]:
    """Every distinct block by `key`, in order of first use, in the one mode that keeps nothing but statistics."""
    found: dict[object, Block] = {}
    read = {v for n in model.program.graph.nodes for v in n.ins}
    left = targets(model.program) if model.program.train else ()
    for site in model.sites:
        if key(site) in found:
            continue
        name = identifier(site.call.name, {b.name for b in found.values()} | {"model", "runtime"})
        live = with_gradient(site.body, site.body.outputs)
        floats = [v for v, o in zip(site.node.outs, site.body.outputs) if o in live]
        alone = site.rows is None and len(floats) > 1 and not any(v in read for v in floats[1:])
        may = {v.name for v, s in zip(site.body.inputs, site.sources) if isinstance(s, Given) and s.value.name in left}
        inputs = sorted((site.body.inputs[i] for i in order(site)), key=lambda v: v.name in may)
        graph = with_handle(replace(site.body, inputs=tuple(inputs)))
        found[key(site)] = Block(name, site, graph, (Mode("save"),), alone, frozenset(may))
    return found


def key(site: CallSite) -> object:
    """Calls with equal keys are the same block."""
    own = tuple((o.name, o.param.init, o.param.dims, o.param.dtype, o.param.rates) for o in site.own)
    return site.call.name, site.body, own, tuple(isinstance(s, OwnParameter) for s in site.sources)


def trusted(model: Structure, block: Block) -> frozenset[str]:
    """Inputs of a block that are the caller's own index tensors wherever the block is called."""
    public = set(model.program.inputs)
    found: set[str] | None = None
    for site in model.sites:
        if key(site) == key(block.site):
            here = {
                v.name
                for v, s in zip(site.body.inputs, site.sources)
                if isinstance(s, Given) and s.value.name in public
            }
            found = here if found is None else found & here
    return frozenset(found or ())


def scalar(v: Val) -> bool:
    """A seed or a layer number: None or a Python integer will do, so the context keeps it, not as a saved tensor."""
    return not v.dims and not v.type.floating


def below(graph: Graph, names: Iterable[str]) -> set[Val]:
    """The values that are computed from inputs of these names."""
    out = {v for v in graph.inputs if v.name in names}
    for n in graph.nodes:
        if not out.isdisjoint(n.ins):
            out.update(n.outs)
    return out


def with_handle(graph: Graph) -> Graph:
    """The graph with the wrapped modules as its last input, read by every opaque op; itself if there is none."""
    if not any(isinstance(n.op, Opaque) for n in graph.nodes):
        return graph
    taken = {v.name for v in graph.inputs} | {v.name for n in graph.nodes for v in n.outs}
    name = next(n for n in (HANDLE, *(f"{HANDLE}_{i}" for i in range(len(taken) + 1))) if n not in taken)
    handle = Val(name, Type("i64", ()))

    def node(n: Node) -> Node:
        return replace(n, ins=(handle, *n.ins)) if isinstance(n.op, Opaque) else n

    return replace(graph, inputs=(*graph.inputs, handle), nodes=tuple(map(node, graph.nodes)))


def handle_of(graph: Graph) -> Val | None:
    """The input that stands for the wrapped modules."""
    return next((n.ins[0] for n in graph.nodes if isinstance(n.op, Opaque)), None)
