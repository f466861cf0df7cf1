"""Decoding of the whole model: which blocks step, which results a step has, or why there is no step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from weft.codegen.package.stepping import Stepping, stepping
from weft.errors import DecodeError
from weft.ir.names import provenance
from weft.ir.program import Program
from weft.ir.types import Val
from weft.passes.blocks import Block, distinct, key
from weft.passes.decode.whole import WholeValues, whole
from weft.passes.structure import CallSite, Given, Stack, Structure, structure
from weft.targets import TARGETS, Target


@dataclass
class Decoding:
    """steps: per block that grows; whole: what streams that are read once give, which no step makes; have: names of
    model values that a step has; why: instead of all that, why there is none."""

    steps: dict[object, Stepping] = field(default_factory=dict)
    whole: frozenset[Val] = frozenset()
    have: set[str] = field(default_factory=set)
    why: str = ""

    def outputs(self, model: Structure) -> list[tuple[str, Val]]:
        """The model's outputs that a step has."""
        named = zip(model.program.outputs, model.program.graph.outputs)
        return [(name, v) for name, v in named if v.name in self.have]


def decoding(model: Structure, blocks: Mapping[object, Block], target: Target = TARGETS[0]) -> Decoding:
    """How the model decodes, by the prices of a target. Blocks whose inputs a step lacks do without the results that
    need them."""
    lengths = model.program.growing
    if len(lengths) != 1:
        return Decoding(why=f"{' and '.join(lengths)} grow at once" if lengths else "no stream grows")
    if any(s.start == "parameter" for s in model.program.states):
        return Decoding(why="what a segment leaves is made of all its tokens; call forward, segment after segment")
    time, once = lengths[0], whole(model)
    given = {k: _everywhere(model, k, once) for k in blocks}
    growing = {key(s) for i, s in enumerate(model.sites) if i not in once.once}
    grow = {k: b for k, b in blocks.items() if k in growing}
    missing: dict[object, frozenset[str]] = {k: frozenset() for k in grow}
    try:
        while True:
            steps = {k: stepping(model.program, b, missing[k], given[k], target) for k, b in grow.items()}
            found = Decoding(steps, once.top)
            lacks = _walk(model, found, time)
            if all(lacks[k] <= missing[k] for k in grow):
                break
            missing = {k: missing[k] | lacks[k] for k in grow}
    except DecodeError as error:
        at = provenance(error.src)
        return Decoding(why=f"{error.node}{f' at {at}' if at else ''} {error.why}")
    if not any(time in v.dims for _, v in found.outputs(model)):
        return Decoding(why="no result has one row for each position")
    return found


def _everywhere(model: Structure, block: object, found: WholeValues) -> frozenset[str]:
    """The inputs of a block that are whole wherever it is called."""
    here = [names for s, names in zip(model.sites, found.given, strict=True) if key(s) == block]
    return here[0].intersection(*here)


def _walk(model: Structure, found: Decoding, time: str) -> dict[object, set[str]]:
    """Fill `found.have`; gives the inputs that each block lacks somewhere."""
    have = set(model.program.inputs) | {v.name for v in found.whole}
    lacks: dict[object, set[str]] = {k: set() for k in found.steps}

    def site(s: CallSite, known: set[str]) -> None:
        if key(s) not in found.steps:
            return
        for v, source in zip(s.body.inputs, s.sources):
            if isinstance(source, Given) and source.value.name not in known:
                lacks[key(s)].add(v.name)
        for i in found.steps[key(s)].outputs:
            known.add(s.node.outs[i].name)

    for step in model.steps:
        if isinstance(step, CallSite):
            site(step, have)
        elif isinstance(step, Stack):
            body = step.loop.body
            inner = {v.name for v, outer in zip(body.inputs, step.node.ins) if outer.name in have}
            if all(key(s) not in found.steps for s in step.sites):
                continue
            for s in step.sites:
                site(s, inner)
            if not all(v.name in inner for v in body.outputs[: step.loop.carries]):
                raise DecodeError(f"{step.node.outs[0].name} = loop", step.node.src, "reads what no step has")
            have |= {o.name for v, o in zip(body.outputs, step.node.outs) if v.name in inner}
        elif all(v.name in have for v in step.ins) and time not in step.space:
            have |= {v.name for v in step.outs}
    found.have = have
    return lacks


def undecodable(program: Program) -> str:
    """Why a model has no step; "" where it has one."""
    model = structure(program)
    return decoding(model, distinct(model)).why
