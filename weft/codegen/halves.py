"""The two halves of each block, made once: its joint graph, split as each of its recompute modes says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.ir.builder import Builder, dce
from weft.ir.derive import backward
from weft.ir.primitives import Map
from weft.ir.types import Graph, Node, Val
from weft.passes.dispatch import dispatched
from weft.passes.recompute import redone, split

from .blocks import Block, Mode, scalar
from .composites import known
from .fast import fast, statistics
from .prepare import prepare
from .rewrite import merge, unlet
from .sizes import Sizes, identifier
from .without import without


@dataclass(frozen=True)
class Pair:
    """The two halves of a block in one mode, ready to print. Inputs of backward: kept, tensors, cotangents, scalars.

    names: what is kept, by name in the joint graph. only: by float output, the backward where no other has a cotangent,
    as far as such ones are wanted. whole: forward, backward and those of `only` with their composites unopened and a
    dispatch for each kind of product, as fusion sees them. again: what the forward computes and the backward again."""

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
    again: tuple[Node, ...] = ()

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


@dataclass(frozen=True)
class Derived:
    """A block with what is made of it to train it; whoever prices, fuses, measures or prints it reads this.

    plain: its joint graph; joint: the same in torch's terms; both None where nothing is trained. pairs: its halves in
    each of its modes, then those without the loss of a block that can do without (`Block.bare`)."""

    block: Block
    plain: Graph | None = None
    joint: Graph | None = None
    pairs: tuple[Pair, ...] = ()

    @property
    def whole(self) -> "Derived":
        """The block as one that is always given all it could do without: what is made of it so far is complete."""
        block = replace(self.block, optional=frozenset())
        return replace(self, block=block, pairs=tuple(replace(p, block=block) for p in self.pairs))

    def using(self, modes: Sequence[Mode]) -> "Derived":
        """The block with these of its modes alone, and what it is without its loss."""
        block = replace(self.block, modes=tuple(modes))
        own = {p.mode: replace(p, block=block) for p in self.pairs}
        if self.joint is None:
            return replace(self, block=block)
        pairs = [own[m] for m in modes]
        if block.bare is not None:
            joint = in_torch(named_joint(block.bare.graph))
            pairs += [halves(block.bare, m, joint) for m in modes]
        return replace(self, block=block, pairs=tuple(pairs))


def derived(block: Block, train: bool, modes: Callable[[Block, Graph], Sequence[Mode]]) -> Derived:
    """A block's halves in each of its modes. modes: chosen from the block's joint graph in torch's terms."""
    if not train:
        return Derived(block)
    plain = named_joint(block.graph)
    joint = in_torch(plain)
    block = replace(block, modes=tuple(modes(block, joint)))
    return Derived(block, plain, joint, tuple(halves(block, m, joint) for m in block.modes))


def in_torch(joint: Graph) -> Graph:
    """A joint graph in torch's terms."""
    return fast(merge(unlet(joint)))


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
    return Pair(block, mode, *own, kept, tensors, cotangents, scalars, names, only, whole, redone(two))


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
