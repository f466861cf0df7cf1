"""The two halves of each block, made once: its joint graph, split as each of its recompute modes says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.ir.graphs import with_gradient
from weft.ir.names import identifier
from weft.ir.ops.primitives import Map
from weft.ir.types import Graph, Node, Val
from weft.passes.blocks import Block, Mode, scalar
from weft.passes.fusion.ran import Place
from weft.passes.pairs import statistics
from weft.passes.recompute import redone, split
from weft.passes.without import without


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
    only: Mapping[str, Graph]
    kept: int
    tensors: tuple[Val, ...]
    cotangents: tuple[Val, ...]
    scalars: tuple[Val, ...]
    names: frozenset[str]
    whole: tuple[Graph, Graph, Mapping[str, Graph]]
    again: tuple[Node, ...]

    def printed(self, make: Callable[[Graph], Graph]) -> "Pair":
        """The pair with something made of each graph that is printed."""
        only = {x: make(g) for x, g in self.only.items()}
        return replace(self, forward=make(self.forward), backward=make(self.backward), only=only)

    def priced(self, make: Callable[[Graph], Graph]) -> "Pair":
        """The pair with something made of each graph that fusion sees."""
        forward, backward, only = self.whole
        return replace(self, whole=(make(forward), make(backward), {x: make(g) for x, g in only.items()}))

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

    def in_print(self) -> Iterator[tuple[str, str, Graph]]:
        """Every function as it is printed, likewise."""
        yield "forward", "", self.forward
        yield "backward", "", self.backward
        yield from (("backward", x, graph) for x, graph in self.only.items())

    def place(self, side: str, of: str = "") -> Place:
        """Which of the block's functions that is, whatever modes are in use."""
        return self.block.variant, self.mode.name, side, of

    @property
    def backwards(self) -> tuple[Graph, ...]:
        """Every backward, as fusion sees it."""
        return self.whole[1], *self.whole[2].values()


@dataclass(frozen=True)
class Derived:
    """A block with what is made of it to train it; whoever prices, fuses, measures or prints it reads this.

    chunked: its forward with recurrences in chunks, None as it is. plain: its joint graph; joint: the same in torch's
    terms; both None where nothing is trained. alone: its forward as it is printed, there. candidates: the modes it
    could have, of which `block` has those in use. own: its halves in each of these. bare: the block without the loss,
    where it can do without."""

    block: Block
    chunked: Graph | None = None
    plain: Graph | None = None
    joint: Graph | None = None
    alone: Graph | None = None
    candidates: tuple[Mode, ...] = ()
    own: tuple[Pair, ...] = ()
    bare: "Derived | None" = None

    @property
    def graph(self) -> Graph:
        """Its forward, as passes have it before it is derived."""
        return self.chunked or self.block.graph

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of halves that its file holds."""
        return self.own if self.bare is None else (*self.own, *self.bare.own)

    @property
    def required(self) -> "Derived":
        """The block as one that is always given all it could do without."""
        block = replace(self.block, optional=frozenset())
        return replace(self, block=block, own=tuple(replace(p, block=block) for p in self.own), bare=None)

    def using(self, modes: Sequence[Mode]) -> "Derived":
        """The block in these of its modes alone."""
        block = replace(self.block, modes=tuple(modes))
        own = tuple(replace(p, block=block) for p in self.own if p.mode in modes)
        return replace(self, block=block, own=own, bare=self.bare and self.bare.using(modes))

    def printed(self, make: Callable[[Graph], Graph]) -> "Derived":
        """The block with something made of each graph that is printed."""
        own = tuple(p.printed(make) for p in self.own)
        return replace(self, alone=self.alone and make(self.alone), own=own)

    def each(self, make: "Callable[[Derived], Derived]") -> "Derived":
        """The same made of the block and of what it is without the loss."""
        return replace(make(self), bare=self.bare and make(self.bare))


def halves(block: Block, mode: Mode, joint: Graph) -> Pair:
    """Split the joint graph as the mode says; statistics of norms and losses are always kept."""
    outputs = len(block.graph.outputs)
    made = {v.name for n in joint.nodes for v in n.outs}
    names = frozenset({*(further(joint, s) for s in mode.saved if s in made), *statistics(joint)})
    two = split(joint, outputs, names)
    shown = [v.name for v in with_gradient(block.graph, block.graph.outputs)]
    kept, floats = len(two.saved), len(shown)
    rest = two.backward.inputs[kept : len(two.backward.inputs) - floats]
    cotangents = two.backward.inputs[len(two.backward.inputs) - floats :]
    tensors, scalars = tuple(v for v in rest if not scalar(v)), tuple(v for v in rest if scalar(v))
    back = replace(two.backward, inputs=(*two.saved, *tensors, *cotangents, *scalars))
    often = shown[: (1 if block.optional else floats) if block.alone and floats > 1 else 0]
    only = {x: without(back, [d for y, d in zip(shown, cotangents) if y != x]) for x in often}
    whole = two.forward, back, only
    return Pair(block, mode, *whole, kept, tensors, cotangents, scalars, names, whole, redone(two))


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
