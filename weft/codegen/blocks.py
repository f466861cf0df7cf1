"""Distinct blocks: which calls are the same one, what order their functions take arguments in, and their two halves."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.errors import SpecError
from weft.ir.builder import Builder, dce
from weft.ir.derive import backward
from weft.ir.indices import targets
from weft.ir.primitives import Map
from weft.ir.types import Graph, Val
from weft.passes.dispatch import dispatched
from weft.passes.recompute import split

from .composites import known
from .fast import fast, statistics
from .opaque import handle_of, with_handle
from .prepare import prepare
from .rewrite import merge, unlet
from .sizes import Sizes, identifier
from .structure import Given, Own, Site, Structure
from .without import without

_CLASSES = {"Block", "Model", "NamedTuple", "Output", "Past", "Path", "State", "Step", "Tensor", "Wrapped"}
"""Classes that emitted files have already."""
_LABEL = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")


@dataclass(frozen=True)
class Mode:
    """One recompute mode of a block: its name and the values its forward keeps, by their names in the block's joint."""

    name: str
    saved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One distinct block, known by its first call. `graph` is its body with the arguments in the functions' order."""

    name: str
    site: Site
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
        own = {v.name for v, s in zip(self.site.body.inputs, self.site.sources) if isinstance(s, Own)}
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


def order(site: Site) -> list[int]:
    """Places in the body's inputs: floats (values, borrowed, own parameters), then integers and conditions."""
    inputs = site.body.inputs
    own = [i for i, s in enumerate(site.sources) if isinstance(s, Own)]
    given = [i for i in range(len(inputs)) if i not in own]
    floats = [i for i in given if inputs[i].type.floating]
    return [*floats, *own, *(i for i in given if not inputs[i].type.floating)]


def distinct(model: Structure, modes: Mapping[str, Sequence[Mode]]) -> dict[object, Block]:
    """Every distinct block by `key`, in order of first use. modes: by the name of the block."""
    found: dict[object, Block] = {}
    read = {v for n in model.program.graph.nodes for v in n.ins}
    left = targets(model.program) if model.program.train else ()
    for site in model.sites:
        if key(site) in found:
            continue
        name = identifier(site.call.name, {b.name for b in found.values()} | {"model", "runtime"})
        inputs = tuple(site.body.inputs[i] for i in order(site))
        floats = [v for v, o in zip(site.node.outs, site.body.outputs) if o.type.floating]
        alone = site.rows is None and len(floats) > 1 and not any(v in read for v in floats[1:])
        kept = tuple(modes.get(name, ())) or (Mode("save"),)
        may = {v.name for v, s in zip(site.body.inputs, site.sources) if isinstance(s, Given) and s.value.name in left}
        graph = with_handle(replace(site.body, inputs=inputs))
        found[key(site)] = Block(name, site, graph, kept, alone, frozenset(may))
    return found


def key(site: Site) -> object:
    """Calls with equal keys are the same block."""
    own = tuple((o.name, o.param.init, o.param.dims, o.param.dtype) for o in site.own)
    return site.call.name, site.body, own, tuple(isinstance(s, Own) for s in site.sources)


def scalar(v: Val) -> bool:
    """A seed or a layer number: None or a Python integer will do, so the context keeps it, not as a saved tensor."""
    return not v.dims and not v.type.floating


def label(name: str) -> str:
    """A logical name as it may stand in generated source. Raises SpecError unless it is words and dots."""
    if not _LABEL.fullmatch(name):
        raise SpecError.at(
            (), "W0405", f"parameter name {name!a} is not made of words and dots", "use letters, digits, _"
        )
    return name


@dataclass(frozen=True)
class Pair:
    """The two halves of a block in one mode, ready to print. Inputs of backward: kept, tensors, cotangents, scalars.

    names: what is kept, by name in the joint graph. only: by float output, the backward where no other has a cotangent,
    as far as such ones are wanted. whole: forward, backward and those of `only` with their composites unopened and a
    dispatch for each kind of product, as fusion sees them."""

    block: Block
    mode: Mode
    forward: Graph
    backward: Graph
    kept: int
    tensors: tuple[Val, ...]
    cotangents: tuple[Val, ...]
    scalars: tuple[Val, ...]
    names: frozenset[str]
    only: Mapping[str, Graph]
    whole: tuple[Graph, Graph, Mapping[str, Graph]]

    def name(self, side: str, of: str = "") -> str:
        """What the function of that side is called; of: the one result whose gradient it starts from."""
        return self.block.named(f"{side}{self.block.variant}" + (f"_of_{identifier(of)}" if of else ""), self.mode)

    def half(self, side: str, of: str = "") -> str:
        """What the plan calls that function: its name in words, then the mode of a block in several."""
        words = f"{side}{self.block.variant}".replace("_", " ") + (f" of {identifier(of)}" if of else "")
        return f"{words}, {self.mode.name}" if len(self.block.modes) > 1 else words

    def parts(self) -> Iterator[tuple[str, str, Graph]]:
        """Every function as fusion sees it: its side, the one result whose gradient it starts from or "", its graph."""
        forward, backward, only = self.whole
        yield "forward", "", forward
        yield "backward", "", backward
        yield from (("backward", x, graph) for x, graph in only.items())

    def untold(self, sizes: Sizes) -> tuple[str, ...]:
        """The run-time dims whose sizes are further arguments of the backward: no tensor of it tells them."""
        graphs = [self.whole[1], *self.whole[2].values()]
        return tuple(sorted({d for g in graphs for d in sizes.untold(g)}))


def joint_of(block: Block) -> Graph:
    """The block's joint graph in torch's terms, its arguments in the functions' order."""
    return fast(merge(unlet(named_joint(block.graph))))


def named_joint(graph: Graph) -> Graph:
    """`weft.passes.derivative.joint` of a block, the cotangent of a value x called d_x where that is free."""
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out = g.inline(graph, x)
    seeds: dict[Val, Val] = {}
    for v in out:
        if v.type.floating:
            d = g.input(f"d_{v.name}", v.type)
            seeds[v] = d if v not in seeds else g.map("a + b", a=seeds[v], b=d, to=v.dims, dtype=v.dtype)
    cot = backward(g, g.nodes[:], seeds)
    grads = [cot.get(v) or g.zeros(v) for v in x if v.type.floating]
    joint = dce(g.graph(*out, *grads))
    return renamed(joint, {d: f"d_{v.name}" for v, d in cot.items()})


def pairs(block: Block, joint: Graph | None = None) -> Iterator[Pair]:
    """Everything that a file of the block holds. joint: `joint_of` the block, where that is known."""
    for variant in (block, block.bare):
        if variant is not None:
            own = joint if joint is not None and variant is block else joint_of(variant)
            yield from (halves(variant, mode, own) for mode in block.modes)


def halves(block: Block, mode: Mode, joint: Graph) -> Pair:
    """Split the joint graph as the mode says; statistics of norms and losses are always kept."""
    outputs = len(block.graph.outputs)
    made = {v.name for n in joint.nodes for v in n.outs}
    names = frozenset({*(further(joint, s) for s in mode.saved if s in made), *statistics(joint)})
    two = split(joint, outputs, names)
    kept, floats = len(two.saved), sum(v.type.floating for v in block.graph.outputs)
    rest = two.backward.inputs[kept : len(two.backward.inputs) - floats]
    cotangents = two.backward.inputs[len(two.backward.inputs) - floats :]
    tensors, scalars = tuple(v for v in rest if not scalar(v)), tuple(v for v in rest if scalar(v))
    back = replace(two.backward, inputs=(*two.saved, *tensors, *cotangents, *scalars))
    shown = [v.name for v in block.graph.outputs if v.type.floating]
    often = shown[: (1 if block.optional else floats) if block.alone and floats > 1 else 0]
    only = {x: without(back, [d for y, d in zip(shown, cotangents) if y != x]) for x in often}
    own = prepare(two.forward, known), prepare(back, known)
    whole = dispatched(two.forward), dispatched(back), {x: dispatched(g) for x, g in only.items()}
    only = {x: prepare(g, known) for x, g in only.items()}
    return Pair(block, mode, *own, kept, tensors, cotangents, scalars, names, only, whole)


def below(graph: Graph, names: Iterable[str]) -> set[Val]:
    """The values that are computed from inputs of these names."""
    out = {v for v in graph.inputs if v.name in names}
    for n in graph.nodes:
        if not out.isdisjoint(n.ins):
            out.update(n.outs)
    return out


def further(joint: Graph, name: str) -> str:
    """The value to keep instead of `name`: what its one reader makes of it pointwise, if that has the same type."""
    readers = [n for n in joint.nodes if any(v.name == name for v in n.ins)]
    if len(readers) == 1 and isinstance(readers[0].op, Map) and len(readers[0].outs) == 1:
        (out,) = readers[0].outs
        mine = next(v for v in readers[0].ins if v.name == name)
        late = any(v.name.startswith("d_") for v in readers[0].ins)
        if out.type == mine.type and not late and mine not in joint.outputs:
            return further(joint, out.name)
    return name


def renamed(graph: Graph, names: Mapping[Val, str]) -> Graph:
    """The graph with values that nodes make called otherwise, as far as the names are free."""
    taken = {v.name for v in graph.inputs} | {v.name for n in graph.nodes for v in n.outs}
    new: dict[Val, Val] = {}
    for v in (v for n in graph.nodes for v in n.outs):
        name = names.get(v, v.name)
        if name not in taken:
            new[v] = replace(v, name=name)
            taken.add(name)

    def swap(vs: tuple[Val, ...]) -> tuple[Val, ...]:
        return tuple(new.get(v, v) for v in vs)

    nodes = tuple(replace(n, ins=swap(n.ins), outs=swap(n.outs)) for n in graph.nodes)
    return replace(graph, nodes=nodes, outputs=swap(graph.outputs))
