"""The kernel path of a block: its functions once more, each fused region a call of its kernel's op, the rest torch.

`fused/layer.py` stands beside `blocks/layer.py`; the block's autograd function takes the one or the other by where its
input lives. Regions that are equal but for names share one kernel file.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from weft.codegen.package.block import header
from weft.codegen.package.wide import wide, wide_of_joint
from weft.codegen.skeletons import rows
from weft.codegen.skeletons.common.writer.job import Job
from weft.codegen.skeletons.common.writer.regions import RegionFile, anonymous, region_file, stem, wide_places
from weft.codegen.skeletons.common.writer.wrapper import Refused
from weft.codegen.torch.body import File, floats
from weft.codegen.torch.composites import known
from weft.codegen.torch.function import Function, print_function
from weft.codegen.torch.lines import Lines
from weft.codegen.torch.sizes import Sizes
from weft.ir.program import Program
from weft.ir.types import Decision, Graph
from weft.passes.fusion.grouping import Fusion, Region, decisions, fuse
from weft.passes.fusion.price import Prices
from weft.passes.fusion.regions import bodies, collapse
from weft.passes.halves import Derived
from weft.passes.opened import prepare


@dataclass(frozen=True)
class RegionOutcome:
    """What became of one region: its kernel, or why it is torch ops."""

    block: str
    half: str
    region: Region
    kernel: str
    why: str = ""


@dataclass(frozen=True)
class Cut:
    """A half of a block cut into regions: which half, its graph, its regions, and what a `Job` is told of dtypes."""

    where: str
    graph: Graph
    found: Fusion
    mixed: bool
    wide: frozenset[str]

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        return decisions(self.found, self.graph)


@dataclass
class Kernels:
    """The kernels of a package as its blocks ask for them.

    fused: regions that a plan has at these prices, by block and half; those of any other half are looked for here."""

    program: Program
    prices: Prices
    fused: Mapping[tuple[str, str], Fusion]
    files: dict[object, RegionFile] = field(default_factory=dict[object, RegionFile])
    rows: list[RegionOutcome] = field(default_factory=list[RegionOutcome])

    def collapsed(self, graph: Graph, block: str, half: str, mixed: bool, given: Collection[str] = ()) -> Graph:
        """A half with every region that a kernel can hold as one node. given: names of its inputs that are wide."""
        found = self.fused.get((block, half)) or fuse(graph, self.prices, rows())
        shown = bodies(graph, found.regions)
        pieces, kernels = list[Region](), dict[str, tuple[str, Graph]]()
        cut = Cut(f"block {block}, {half}", graph, found, mixed, frozenset() if mixed else wide(graph, given))
        for r in found.regions:
            mine, why = self.attempt(r, shown[r.id], cut, kernels), ""
            if mine and len(r.nodes) > 1:
                why, parts = mine, self.apart(r, shown[r.id])
                own = bodies(graph, parts)
                whys = [self.attempt(p, own[p.id], cut, kernels) for p in parts]
                pieces += parts
                named = dict.fromkeys(kernels[p.id][0] if not no else "torch" for p, no in zip(parts, whys))
                if set(named) == {"torch"}:
                    pieces[len(pieces) - len(parts) :] = [r]
                self.rows.append(RegionOutcome(block, half, r, " + ".join(named), why))
                continue
            pieces.append(r)
            self.rows.append(RegionOutcome(block, half, r, "torch" if mine else kernels[r.id][0], mine))
        return collapse(graph, pieces, kernels)

    def attempt(self, region: Region, body: Graph, cut: Cut, kernels: dict[str, tuple[str, Graph]]) -> str:
        """Write the kernel of a region, or say why there is none; "" where there is one."""
        try:
            kernels[region.id] = self.kernel(region, body, cut), body
        except Refused as no:
            return str(no)
        return ""

    def apart(self, region: Region, body: Graph) -> list[Region]:
        """The region's nodes grouped once more, cores without anything in their holes."""
        bare = tuple(replace(s, before=(), after=(), cores=1) if s.core != "pointwise" else s for s in rows())
        found = fuse(body, self.prices, bare)
        return [replace(r, id=f"{region.id}.{k}") for k, r in enumerate(found.regions)]

    def kernel(self, region: Region, body: Graph, cut: Cut) -> str:
        """The name of the kernel of a region, written if there is none like it yet."""
        like = region.skeleton, anonymous(body), cut.mixed, wide_places(body, cut.wide)
        if like not in self.files:
            name = stem(len(self.files), region)
            mine = about(region, cut.decisions)
            job = Job(name, cut.where, region, body, Sizes.of(self.program), cut.mixed, mine, cut.wide)
            self.files[like] = region_file(job)
        return self.files[like].kernel


def about(region: Region, every: Sequence[Decision]) -> tuple[Decision, ...]:
    """The decisions about a region: its own, and each pair in it."""
    pairs = {f"{a}+{b}" for a in region.nodes for b in region.nodes}
    whole = "+".join(region.nodes)
    return tuple(d for d in every if d.subject == whole or (d.subject in pairs and d.choice == "fused"))


@dataclass(frozen=True)
class Printed:
    """A function of a kernel path. graph: as printed, but what the function takes; given: the sizes it takes besides.

    origins: node, by its first result -> the value, of the graph before regions were nodes, that it was printed for."""

    function: Function
    graph: Graph
    given: tuple[str, ...]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class KernelPath:
    """A block's functions with kernels where regions have them, by half. kernels: has any? If not, no package has the
    file, and the block's own functions run, which these are then."""

    source: str
    functions: Mapping[str, Printed]
    kernels: bool


def kernel_path(made: Derived, kernels: Kernels, trusted: frozenset[str]) -> KernelPath:
    """The kernel path of a block. trusted: its inputs whose range the model has checked."""
    block, graph = made.block, made.joint or made.graph
    mixed = File(Sizes.of(kernels.program), floats=frozenset(floats(graph))).mixed
    halves = list(_halves(made, kernels, mixed))
    has = any(r.block == block.name and set(r.kernel.split(" + ")) != {"torch"} for r in kernels.rows)
    file = File(Sizes.of(kernels.program), floats=frozenset(floats(graph)), trusted=frozenset() if has else trusted)
    functions = {half: _function(file, name, graph, given) for half, name, given, graph in halves}
    texts = [line for printed in functions.values() for line in (*printed.function.lines, "", "")]
    body = [*file.header(), "", "", *texts]
    out = Lines()
    doc = f"Block `{block.name}` with kernels: the functions of blocks/{block.name}.py, fused regions as one op each."
    own = ["from ..kernels.common.ops import OPS"] if has else []
    out.lines = [*header(doc, "\n".join(body), own), "", *body]
    return KernelPath(out.source(), functions, has)


def _halves(made: Derived, kernels: Kernels, mixed: bool) -> Iterator[tuple[str, str, tuple[str, ...], Graph]]:
    """Half, function, sizes that it takes besides, and graph with regions as nodes."""
    block = made.block
    if made.joint is None:
        yield "forward", "forward", (), kernels.collapsed(made.graph, block.name, "forward", mixed)
        return
    values = wide_of_joint(made.joint, len(block.graph.outputs))
    for pair in made.pairs:
        untold = Sizes.of(kernels.program).untold(pair.backwards)
        for side, of, graph in pair.parts():
            half = pair.half(side, of)
            graph = kernels.collapsed(graph, block.name, half, mixed, values)
            yield half, pair.name(side, of), untold if side == "backward" else (), graph


def _function(file: File, name: str, graph: Graph, given: tuple[str, ...]) -> Printed:
    said = {n.outs[0].name: n.src for n in graph.nodes}
    tagged = replace(graph, nodes=tuple(replace(n, src=n.outs[0].name) for n in graph.nodes))
    ready = prepare(tagged, known)  # what a node is opened to, or made of, has its source
    origins = {n.outs[0].name: n.src for n in ready.nodes}
    ready = replace(ready, nodes=tuple(replace(n, src=said.get(n.src, n.src)) for n in ready.nodes))
    return Printed(print_function(file, name, ready, given=given), ready, given, origins)
