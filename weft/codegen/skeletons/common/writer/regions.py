"""Regions as files: a kernel's holes, its launch wrapper and its registration, below a header that says what it is.

    region (graph, skeleton) -> kernels/k03_rowwise_norm.py

Each skeleton has a writer that fills its holes from the region's nodes, or refuses with the reason (`Refused`); then
the region runs as torch ops. A file is complete: it is imported, read, edited and run again like one written by hand.
All text in it is weft's own: names are minted, formulas printed from their parsed form.
"""

import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weft.codegen.skeletons import COMMON, families, write
from weft.codegen.skeletons.common.writer.configs import Configs
from weft.codegen.skeletons.common.writer.hazards import clear
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why
from weft.codegen.torch.lines import WIDTH, Lines
from weft.ir.names import identifier, provenance
from weft.ir.ops.primitives import Detach, Einsum, Reduce, Rename
from weft.ir.text import show
from weft.ir.types import Graph, Node, Val
from weft.passes.fusion.grouping import Region


@dataclass(frozen=True)
class RegionFile:
    """A region's file: its name (and its op's), its text, its default configurations, the family whose kernels it runs.

    graph: what it computes, for those who run or time it alone; wide: those of its values that are (see `Job`)."""

    kernel: str
    key: str
    text: str
    configs: Configs
    family: str
    skeleton: str
    graph: Graph
    wide: frozenset[str] = frozenset()


def region_key(job: Job) -> str:
    """What the kernel computes, as a hash: skeleton, region, frozen sizes."""
    graph = anonymous(job.shown)
    dims = sorted({d for n in graph.nodes for d in n.space})
    sizes = [f"{d}={job.sizes.number(d)}" for d in dims]
    parts = [job.region.skeleton, show(graph), *sizes, str(job.mixed), *map(str, wide_places(job.shown, job.wide))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def wide_places(graph: Graph, wide: frozenset[str]) -> tuple[int, ...]:
    """Which of a region's inputs and results are wide."""
    return tuple(i for i, v in enumerate((*graph.inputs, *graph.outputs)) if v.name in wide)


def anonymous(graph: Graph) -> Graph:
    """The graph with its values numbered and its sources gone: equal regions of different blocks have equal texts."""
    names: dict[Val, Val] = {}
    for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outs)):
        names[v] = Val(f"x{len(names)}", v.type)
    nodes = tuple(Node(n.op, tuple(names[v] for v in n.ins), tuple(names[v] for v in n.outs)) for n in graph.nodes)
    return Graph(tuple(names[v] for v in graph.inputs), nodes, tuple(names[v] for v in graph.outputs))


def stem(number: int, region: Region) -> str:
    """The name of a region's file and op."""
    label = identifier((region.core or region.nodes)[0])
    return f"k{number:02d}_{region.skeleton}_{label}"


def region_file(job: Job) -> RegionFile:
    """The file of a region. Raises Refused with the reason where no kernel can hold it."""
    if all(view(n) for n in job.shown.nodes):
        raise Refused(Why.VIEW)
    if not job.region.skeleton:
        product = any(isinstance(n.op, Einsum) for n in job.shown.nodes)
        raise Refused(Why.VENDOR if product else Why.NO_SKELETON)
    written = write(job)
    key = region_key(job)
    configs = clear(written.configs, families()[written.family].facts(job.shown, job.sizes.frozen))
    own = frozenset(v.name for v in (*job.shown.inputs, *job.shown.outputs) if v.name in job.wide)
    return RegionFile(
        job.kernel, key, text(job, written, key), configs, written.family, job.region.skeleton, job.shown, own
    )


def view(n: Node) -> bool:
    """Does a node only name or order its dims anew?"""
    if isinstance(n.op, Reduce):
        return set(n.op.to) == set(n.ins[0].dims)
    return isinstance(n.op, Rename | Detach)


def text(job: Job, written: Written, key: str) -> str:
    w, lines, body = written.wrapper, Lines(), _body(written)
    lines.lines += header(job, key, written.family)
    lines.add()
    said = "\n".join([*written.constants, *body])
    modules = [("torch", r"torch\."), ("triton", r"triton\."), ("triton.language as tl", r"tl\.")]
    for module, word in modules:
        if re.search(rf"(?<![\w.]){word}", said):
            lines.add(f"import {module}")
        elif module.endswith("tl") and written.holes:
            lines.add(f"import {module}  # noqa: F401 (the interpreter looks for it)")
    if "import" in lines.lines[-1]:
        lines.add()
    homes = {written.family: ("launch", "pieces", "walks"), COMMON: ("elementwise", "host", "ops")}
    for home, names in sorted(homes.items()):
        if own := [n for n in names if re.search(rf"(?<![\w.]){n}\.", said)]:
            lines.add(f"from .{home} import {', '.join(own)}")
    lines.add()
    lines.add(f'NAME = "{job.kernel}"')
    for name, n in sorted(w.constants.items()):
        lines.add(f"{name} = {n}")
    lines.lines += [line for constant in written.constants for line in constant.split("\n")]
    lines.lines += body
    return lines.source()


def _body(written: Written) -> list[str]:
    w, lines = written.wrapper, Lines()
    for hole in written.holes:
        lines.lines += ["", "", *hole.text()]
    lines.lines += ["", ""]
    for name, source in written.given.items():
        lines.add(f"{name} = {source}")
    lines.lines += ["", ""]
    with lines.indent(f"def empty({w.given}):"):
        lines.text('"""The results, not computed yet: all that a fake tensor wants."""')
        made = [w.made(v, written.orders.get(v)) for v in w.body.outputs]
        for statement in needed(w.opening(), made):
            lines.add(statement)
        lines.add(f"return {', '.join(made)}")
    lines.lines += ["", ""]
    with lines.indent(f"def run({w.given}):"):
        lines.lines += wrapped_doc(w.described(), 1)
        for statement in needed(w.opening(), [written.launch]):
            lines.add(statement)
        if written.returns:
            lines.add(f"return {written.launch}")
        else:
            lines.add(f"{', '.join(w.results)} = empty({w.given})")
            lines.add(written.launch)
            lines.add(f"return {', '.join(w.results)}")
    lines.lines += ["", ""]
    lines.add(f'ops.register(NAME, "{w.schema}", run, empty)')
    return lines.lines


def needed(statements: Iterable[str], text: Sequence[str]) -> list[str]:
    """The assignments among `statements` whose names are read by `text` or by a later one that is needed."""
    kept: list[str] = []
    said = set(re.findall(r"[A-Za-z_]\w*", "\n".join(text)))
    for s in reversed(list(statements)):
        names = re.findall(r"\w+", s.split(" = ")[0])
        if said & set(names):
            left = ", ".join(n if n in said else "_" for n in names)
            kept.append(f"{left} = {s.split(' = ', 1)[1]}")
            said |= set(re.findall(r"[A-Za-z_]\w*", s.split(" = ", 1)[1]))
    return kept[::-1]


def wrapped_doc(said: str, depth: int) -> list[str]:
    """A docstring, over several lines where it is long."""
    pad = " " * 4 * depth
    if len(said) + len(pad) + 6 <= WIDTH:
        return [f'{pad}"""{said}"""']
    parts = textwrap.wrap(said, min(WIDTH - len(pad) - 4, len(said) - 1))  # never one part and the quotes below it
    return [f'{pad}"""{parts[0]}', *(pad + p for p in parts[1:]), f'{pad}"""']


def header(job: Job, key: str, family: str) -> list[str]:
    """The docstring: what the kernel is, the region in IR text, who decided it, how to change it."""
    r = job.region
    src = f", from {provenance(r.src)}" if r.src else ""
    out = [f'"""{job.kernel}: {job.where}{src}.', ""]
    for line in show(job.shown).split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        first, rest = f"    {indent}", f"    {indent}    "
        out += textwrap.wrap(
            line.strip(),
            WIDTH - 2,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
    out += ["", "Decided by"]
    for d in job.decisions:
        numbers = ", ".join(f"{k} {v}" for k, v in d.numbers)
        said = f"{d.pass_}: {d.subject}: {d.choice} ({d.kind}{'; ' + numbers if numbers else ''})"
        out += textwrap.wrap(said, WIDTH - 6, initial_indent="    ", subsequent_indent="        ")
    said = (
        f"Runs the {family} skeleton beside this file, with the configuration that configs.json holds under its "
        f"name. Edit it freely: the next import uses it, and `weft compile` keeps it (--force overwrites). Key {key}."
    )
    return [line.replace("\\", "/") for line in [*out, "", *textwrap.wrap(said, WIDTH), '"""']]
