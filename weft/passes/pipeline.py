"""The passes in their order: from a program to the halves of its blocks in print, and their regions. This list runs.

Each pass is a pure function (stage, options) -> stage, and says in its own file what it does, with before and after;
here it is told which graphs of a stage it is for. After each the verifier looks at every graph that is new. Emission
adds what is not a block's half: steps of decoding, and halves in which regions stand as kernels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weft.errors import PassError, WeftError
from weft.ir.text import show
from weft.ir.types import Graph
from weft.ir.verify import verify
from weft.passes import recompute
from weft.passes.blocks import Mode, distinct
from weft.passes.chunk.chunk import chunk
from weft.passes.derivative import joint
from weft.passes.dispatch import dispatched
from weft.passes.fusion.apart import apart
from weft.passes.fusion.grouping import fuse, grouped
from weft.passes.fusion.price import Prices
from weft.passes.fusion.ran import ALONE, Place, estimated
from weft.passes.halves import Derived, Pair, halves
from weft.passes.memory import estimate
from weft.passes.memory.choose import choose
from weft.passes.memory.estimate import held
from weft.passes.opened import opened
from weft.passes.pairs import fast
from weft.passes.pattern import pattern
from weft.passes.rewrite import merge, unlet
from weft.passes.schedule import BlockProfile
from weft.passes.short_loops import short_loops
from weft.passes.stage import Half, PassOptions, StagedProgram
from weft.passes.structure import structure
from weft.progress import doing

Watch = Callable[[str, Mapping[str, Graph]], None]
"""Sees the graphs after the pass of a name."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A name and a function (stage, options) -> stage. doing: what a user is told while it runs, where that is long.

    decides: does it choose between functions that are all right, so that a program can be printed without it?"""

    name: str
    run: Callable[[StagedProgram, PassOptions], StagedProgram] = field(repr=False)
    doing: str = ""
    decides: bool = False


def _pattern(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """Layouts hold for every length; which is cheapest is asked at the longest."""
    graph = pattern(stage.program.graph, options.longest or options.sizes)
    return replace(stage, program=replace(stage.program, graph=graph))


def _blocks(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """Every distinct block, and what it is without the loss where it can do without."""
    model = structure(stage.program)
    found = [Derived(b, alone=None if stage.program.train else b.graph) for b in distinct(model).values()]
    bare = [Derived(b.block.bare) if stage.program.train and b.block.bare else None for b in found]
    return replace(stage, model=model, blocks=tuple(replace(b, bare=x) for b, x in zip(found, bare)))


def _chunk(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """Decoding goes on from the block as it is: a step at a time. Which form is cheapest is asked at the longest."""
    prices = Prices(options.longest or options.sizes, options.target)

    def one(made: Derived) -> Derived:
        found = chunk(made.block.graph, prices)
        return replace(made, chunked=found, alone=made.alone and found)

    return _each(stage, one)


def _derivative(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    if not stage.program.train:
        return stage
    return _each(stage, lambda made: replace(made, plain=joint(made.graph)))


def _joints(make: Callable[[Graph], Graph]) -> Callable[[StagedProgram, PassOptions], StagedProgram]:
    """A pass over each joint graph."""

    def one(made: Derived) -> Derived:
        before = made.joint or made.plain
        return made if before is None else replace(made, joint=make(before))

    return lambda stage, options: _each(stage, one)


def _recompute(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """The modes that each block could have."""
    return replace(stage, blocks=tuple(_with_modes(made, options) for made in stage.blocks))


def _with_modes(made: Derived, options: PassOptions) -> Derived:
    if made.joint is None:
        return replace(made, candidates=made.block.modes)
    block = made.block
    kept = recompute.modes(made.joint, len(block.graph.outputs), options.prices, held(block.site))
    modes = tuple(Mode(name, saved) for name, saved in kept.items())
    return made.each(lambda one: replace(one, block=replace(one.block, modes=modes), candidates=modes))


def _split(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    return _each(stage, lambda made: replace(made, own=tuple(_halves(made))))


def _halves(made: Derived) -> list[Pair]:
    return [] if made.joint is None else [halves(made.block, m, made.joint) for m in made.block.modes]


def _dispatch(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    return _each(stage, lambda made: replace(made, own=tuple(p.priced(dispatched) for p in made.own)))


def _measure(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """What each block holds in each of its modes: measured on its printed halves, or estimated from its graphs."""
    if options.profiler is not None:
        assert stage.model is not None
        return replace(stage, profiles=tuple(options.profiler(stage.model, options.sizes, stage.blocks)))
    return replace(stage, profiles=tuple(estimate.estimated(made, options.prices) for made in stage.blocks))


def _fusion(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """The regions of each half by itself: they group what will run. On a target that runs torch's operators, those are
    the statements of the graphs in print; on any other, kernels of the graphs before they were opened."""
    both = zip(stage.blocks, stage.profiles, strict=True)
    if options.target.kind == "cpu":
        return replace(stage, halves=tuple(tuple(_in_torch(made, profile, options)) for made, profile in both))
    return replace(stage, halves=tuple(tuple(_fused(made, options)) for made in stage.blocks))


def _in_torch(made: Derived, profile: BlockProfile, options: PassOptions) -> list[Half]:
    def half(name: str, place: Place, graph: Graph, further: bool = False) -> Half:
        ran = profile.ran.get(place) or estimated(graph, options.prices)
        found = apart(graph, ran, options.prices)
        return Half(name, place[2], place[1], grouped(graph, found), found, further)

    if made.joint is None:
        assert made.alone is not None
        return [half("forward", ALONE, made.alone)]
    return [
        half(pair.half(side, of), pair.place(side, of), graph, beside)
        for pair, (side, of, graph), beside in _parts(made, lambda pair: pair.in_print())
    ]


def _fused(made: Derived, options: PassOptions) -> list[Half]:
    def half(name: str, side: str, mode: str, graph: Graph, further: bool = False) -> Half:
        found = fuse(graph, options.prices, options.skeletons)
        return Half(name, side, mode, grouped(graph, found), found, further)

    if made.joint is None:
        return [half("forward", "forward", "", made.graph)]
    return [
        half(pair.half(side, of), side, pair.mode.name, graph, beside)
        for pair, (side, of, graph), beside in _parts(made, lambda pair: pair.parts())
    ]


Part = tuple[str, str, Graph]


def _parts(made: Derived, of: Callable[[Pair], Iterator[Part]]) -> Iterator[tuple[Pair, Part, bool]]:
    """Every function of a block's file, and whether it stands beside those of which totals are made."""
    forwards = 0
    for pair in made.pairs:
        for part in of(pair):
            further = bool(part[1] or pair.block.variant) or (part[0] == "forward" and forwards > 0)
            forwards += part[0] == "forward"
            yield pair, part, further


def _each(stage: StagedProgram, make: Callable[[Derived], Derived]) -> StagedProgram:
    return replace(stage, blocks=tuple(made.each(make) for made in stage.blocks))


PIPELINE: tuple[Pass, ...] = (
    Pass("pattern", _pattern, "attention patterns", decides=True),
    Pass("blocks", _blocks),
    Pass("chunk", _chunk, "recurrences in chunks", decides=True),
    Pass("derivative", _derivative, "derivatives"),
    Pass("unlet", _joints(lambda g: merge(unlet(g)))),
    Pass("pairs", _joints(fast)),
    Pass("recompute", _recompute, decides=True),
    Pass("split", _split),
    Pass("open", lambda stage, o: _each(stage, lambda made: made.printed(lambda g: opened(g, o.known)))),
    Pass("loops", lambda stage, o: _each(stage, lambda made: made.printed(short_loops))),
    Pass("measure", _measure, decides=True),
    Pass("choose", choose, decides=True),
    Pass("dispatch", _dispatch),
    Pass("fusion", _fusion, "fusion", decides=True),
)
"""The order. What a pass needs stands before it: modes before halves, halves in print before they are measured."""


def run(
    stage: StagedProgram, options: PassOptions, passes: Sequence[Pass] = PIPELINE, watch: Watch | None = None
) -> StagedProgram:
    """Run the passes in order, verifying after each.

    Raises PassError with the pass, those already run and the graphs before it, when a pass breaks or breaks a graph;
    what a pass refuses on purpose (a budget, a spec) goes through as it is."""
    done: list[str] = []
    seen: set[int] = set()
    for p in passes:
        if p.doing:
            doing(f"planning: {p.doing}")
        try:
            after = p.run(stage, options)
            graphs = after.graphs()
            for graph in (g for g in graphs.values() if id(g) not in seen):
                verify(graph)
        except WeftError as e:
            if e.exit_code != 1:
                raise
            raise PassError(p.name, str(e), done, shown(stage.graphs())) from e
        except Exception as e:
            raise PassError(p.name, f"{type(e).__name__}: {e}", done, shown(stage.graphs())) from e
        done.append(p.name)
        seen = {id(g) for g in graphs.values()}
        if watch is not None:
            watch(p.name, graphs)
        stage = after
    return stage


def shown(graphs: Mapping[str, Graph]) -> str:
    """Graphs as text, each under what it is of."""
    return "\n\n".join(f"# {of}\n{show(graph)}" for of, graph in graphs.items())
