"""A planned package as problems: each kernel of it, and each part of its configuration that has a space of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import __version__
from weft.autotune.space.listed import Space
from weft.autotune.space.workload import TuningProblem, Workload
from weft.autotune.types import Config
from weft.cache.kernel import kernel_hash
from weft.cache.key import Device, Key
from weft.codegen.skeletons import families
from weft.codegen.torch.sizes import Sizes
from weft.errors import SpecError
from weft.ir.builder import Builder
from weft.ir.composite import expansion
from weft.ir.graphs import dce
from weft.ir.text import show
from weft.ir.types import FLOATS, ITEMSIZE, Graph, Val

if TYPE_CHECKING:
    from weft.codegen.plan.planner import Planned
    from weft.codegen.skeletons.common.writer.regions import RegionFile
    from weft.ir.program import Program

ODD = (1, 37, 257)
"""Lengths of run-time dims at which results are checked: one, a ragged one, two blocks of 128 and one."""


@dataclass(frozen=True)
class Task:
    """A problem, the kernel it is of, and what it weighs.

    kernel: name of the region's file. part: of its configuration. seconds: modelled, of one call, by the plan; calls:
    in one step of the model; bytes, flops: of one call. runtime: dims that are open when the package is compiled.
    """

    problem: TuningProblem
    kernel: str
    part: str
    skeleton: str
    seconds: float
    calls: int
    bytes: int
    flops: int
    graph: Graph
    runtime: tuple[str, ...] = ()

    @property
    def weight(self) -> float:
        """Seconds of the model that the kernel takes, by the plan: what budgets are divided by."""
        return self.seconds * self.calls


def spaces(skeleton: str) -> dict[str, Space]:
    """The spaces of a family of kernels, by name."""
    return {k: space_of(k, data) for k, data in families()[skeleton].spaces.items()}


def space_of(name: str, data: Mapping[str, Any]) -> Space:
    """A space from its data."""
    knobs = {k: tuple(v) for k, v in data["knobs"].items()}
    sizes, kernels = tuple(data.get("sizes", ())), tuple(data.get("kernels", ()))
    constraints, shared = dict(data.get("constraints", {})), dict(data.get("shared", {}))
    return Space(name, knobs, constraints, shared, sizes, kernels, data.get("part", ""))


def fitting(skeletons: Iterable[str], config: Mapping[str, Any]) -> list[Space]:
    """The spaces of a kernel of these families that has this configuration: of each of its parts the one with the most
    knobs it has."""
    best: dict[str, Space] = {}
    for space in (s for name in dict.fromkeys(skeletons) for s in spaces(name).values()):
        own = config.get(space.part) if space.part else config
        if isinstance(own, Mapping) and space.knobs.keys() <= own.keys():
            known = best.get(space.part)
            if known is None or len(space.knobs) > len(known.knobs):
                best[space.part] = space
    return list(best.values())


def tasks(planned: Planned, folder: str | Path, target: str, dtype: str = "bf16") -> list[Task]:
    """Everything that can be tuned of a package that stands in `folder`, the heaviest first."""
    out: list[Task] = []
    for region in planned.kernels.regions:
        out += _of_region(planned, region, Path(folder) / "kernels", target, dtype)
    return sorted(out, key=lambda t: -t.weight)


def _of_region(planned: Planned, region: RegionFile, folder: Path, target: str, dtype: str) -> Iterator[Task]:
    rows = [r for r in planned.kernels.rows if region.kernel in r.kernel.split(" + ")]
    config = region.configs[target][dtype]
    sizes = {d: planned.sizes[d] for d in region_dims(region.graph)}
    calls = sum(_calls(planned, r.block) for r in rows) or 1
    one = rows[0].region if rows else None
    for space in fitting((region.skeleton, region.family), config):
        own: Config = {k: (config[space.part] if space.part else config)[k] for k in space.knobs}
        problem = TuningProblem(
            f"{region.kernel}.{space.part}" if space.part else region.kernel, space,
            workload(region, folder, space.part), target, sizes, checks(planned.program, region.graph, planned.sizes),
            given(region.graph, sizes, dtype), dtype, own,
        )  # fmt: skip
        seconds, nbytes, flops = (one.seconds, one.bytes, one.flops) if one else (0.0, 0, 0)
        runtime = tuple(sorted(d for d in sizes if Sizes.of(planned.program).number(d) is None))
        about = (space.part, region.skeleton, seconds, calls, nbytes, flops, region.graph, runtime)
        yield Task(problem, region.kernel, *about)


def workload(region: RegionFile, folder: str | Path, part: str = "") -> Workload:
    """How a worker finds the wrapper of a region whose kernels lie in `folder`. part: of its configuration."""
    params = {"kernel": region.kernel, "graph": show(region.graph), "part": part}
    more = {"wide": sorted(region.wide), "statistics": statistics(region.graph)}
    return Workload(str(folder), params={**params, **more})


def _calls(planned: Planned, block: str) -> int:
    return sum(b.calls for b in planned.blocks if b.name == block)


def region_dims(graph: Graph) -> set[str]:
    """Every dim of a region's values and of the spaces that its nodes work over."""
    every = (*graph.inputs, *graph.outputs, *(v for n in graph.nodes for v in (*n.ins, *n.outs)))
    return {d for v in every for d in v.dims} | {d for n in graph.nodes for d in n.space}


def statistics(graph: Graph) -> dict[str, Any]:
    """How inputs that are statistics of other inputs follow from them: {"graph": text, "names": of those inputs}.

    A backward that reads the mean and deviation of a row is only right for the row's own."""
    found = [(n, n.op.follows(n.ins)) for n in graph.nodes]
    theirs = {v for _, known in found if known for v in known[2]}
    g = Builder()
    env: dict[Val, Val] = {v: g.input(v.name, v.type) for v in graph.inputs if v not in theirs}
    names: list[str] = []
    for n, known in found:
        if known and set(known[1]) <= env.keys():
            op, own, following = known
            made = g.inline(expansion(op, tuple(v.type for v in own)), [env[v] for v in own])
            for v, statistic in zip(following, made[len(made) - len(following) :], strict=True):
                if v not in env:
                    env[v] = statistic
                    names.append(v.name)
        if set(n.ins) <= env.keys():
            env.update(zip(n.outs, g.many(n.op, *(env[v] for v in n.ins)), strict=True))
    if not names:
        return {}
    by_name = {v.name: x for v, x in env.items()}
    return {"graph": show(dce(g.graph(*(by_name[n] for n in names)))), "names": names}


def checks(program: Program, graph: Graph, sizes: Mapping[str, int]) -> tuple[dict[str, int], ...]:
    """Sizes at which results are compared: run-time dims odd, the batch 1 or 2; without those that the spec forbids."""
    found: list[dict[str, int]] = []
    lengths = [d for d in program.runtime if d != "batch"]
    for n in ODD if lengths else (1, 2):
        wanted = {d: program.runtime[d].near(n) for d in lengths}
        if "batch" in program.runtime:
            wanted["batch"] = program.runtime["batch"].near(1 if lengths and n > 64 else min(n, 2))
        try:
            resolved = program.resolve(**wanted)
        except SpecError:
            continue
        one = {d: resolved.get(d, sizes[d]) for d in region_dims(graph)}
        if one not in found:
            found.append(one)
    return tuple(found)


def given(graph: Graph, sizes: Mapping[str, int], dtype: str) -> dict[str, int]:
    """What formulas of spaces and hazards may ask of a region: bytes of an element, and what families say of it."""
    about = (f.facts(graph, sizes.__getitem__) for f in families().values())
    return {"bytes": ITEMSIZE[dtype]} | {name: n for own in about for name, n in own.items()}


POLICY = "graph,cold,randn"
"""How configurations are timed: CUDA graphs, cold L2, N(0, 1) operands."""


def key(task: Task, device: Device, triton: str, ptxas: str, policy: str = POLICY) -> Key:
    """What a measurement of a task holds for."""
    p = task.problem
    frozen = {d: n for d, n in p.sizes.items() if d not in task.runtime}
    return Key(
        f"{task.skeleton}.{task.part}" if task.part else task.skeleton,
        kernel_hash(task.graph, frozen, space=p.space.name), device,
        tuple(sorted((d, p.sizes[d]) for d in task.runtime)), dtypes(task.graph, p.dtype), "contiguous", "16",
        __version__, triton, ptxas, policy,
    )  # fmt: skip


def dtypes(graph: Graph, dtype: str) -> str:
    """The floats of a region as it runs: `dtype`, or its own where it has several."""
    found = sorted({v.dtype for v in (*graph.inputs, *graph.outputs) if v.dtype in FLOATS})
    return dtype if len(found) <= 1 else f"{dtype}:{','.join(found)}"


def by_weight(found: Sequence[Task], name: str = "") -> list[Task]:
    """Those whose kernel, part or skeleton has this in its name."""
    return [t for t in found if name in t.problem.name or name == t.skeleton]
