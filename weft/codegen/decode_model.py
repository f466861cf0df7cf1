"""Decoding of the whole model: which blocks step, which results a step has, and the Model's methods for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.errors import DecodeError
from weft.ir.types import Node, Val

from .blocks import Block, key, scalar
from .body import File
from .lines import Lines
from .model_forward import carried
from .mounts import Mounts
from .sizes import identifier
from .stepping import TIME, Stepping, stepping
from .structure import Borrowed, Given, Site, Stack, Structure

_PLACE = re.compile(r"([a-z_0-9]+) = ([a-z_0-9]+)(?: \(([A-Za-z0-9_.-]+:\d+)\))?", re.IGNORECASE)


@dataclass
class Decoding:
    """steps: per block; have: names of model values that a step has; why: instead of all that, why there is none."""

    steps: dict[object, Stepping] = field(default_factory=dict)
    have: set[str] = field(default_factory=set)
    why: str = ""

    def outputs(self, model: Structure) -> list[tuple[str, Val]]:
        """The model's outputs that a step has."""
        named = zip(model.program.outputs, model.program.graph.outputs)
        return [(name, v) for name, v in named if v.name in self.have]


def decoding(model: Structure, blocks: Mapping[object, Block]) -> Decoding:
    """How the model decodes. Blocks whose inputs a step lacks do without the results that need them."""
    missing: dict[object, frozenset[str]] = {k: frozenset() for k in blocks}
    try:
        while True:
            found = Decoding({k: stepping(model.program, b, missing[k]) for k, b in blocks.items()})
            lacks = _walk(model, blocks, found)
            if all(lacks[k] <= missing[k] for k in blocks):
                break
            missing = {k: missing[k] | lacks[k] for k in blocks}
    except DecodeError as error:
        at = _PLACE.match(str(error))
        where = f"{at[1]} = {at[2]}" + (f" at {at[3]}" if at[3] else "") if at else "a block"
        return Decoding(why=f"{where} depends on later positions")
    if not any(TIME in v.dims for _, v in found.outputs(model)):
        return Decoding(why="no result has one row for each position")
    return found


def _walk(model: Structure, blocks: Mapping[object, Block], found: Decoding) -> dict[object, frozenset[str]]:
    """Fill `found.have`; gives the inputs that each block lacks somewhere."""
    have = set(model.program.inputs)
    lacks: dict[object, set[str]] = {k: set() for k in blocks}

    def site(s: Site, known: set[str]) -> None:
        for v, source in zip(s.body.inputs, s.sources):
            if isinstance(source, Given) and source.value.name not in known:
                lacks[key(s)].add(v.name)
        for i in found.steps[key(s)].outputs:
            known.add(s.node.outs[i].name)

    for step in model.steps:
        if isinstance(step, Site):
            site(step, have)
        elif isinstance(step, Stack):
            body = step.loop.body
            inner = {v.name for v, outer in zip(body.inputs, step.node.ins) if outer.name in have}
            for s in step.sites:
                site(s, inner)
            if not all(v.name in inner for v in body.outputs[: step.loop.carries]):
                raise DecodeError(f"{step.node.outs[0].name} = loop reads what no step has")
            have |= {o.name for v, o in zip(body.outputs, step.node.outs) if v.name in inner}
        elif all(v.name in have for v in step.ins) and TIME not in step.space:
            have |= {v.name for v in step.outs}
    found.have = have
    return {k: frozenset(v) for k, v in lacks.items()}


class DecodeWriter:
    """The classes and methods for decoding in model.py."""

    def __init__(self, mounts: Mounts, file: File, found: Decoding) -> None:
        self.mounts, self.file, self.found, self.sizes = mounts, file, found, mounts.sizes
        self.model, self.program, self.carried = mounts.model, mounts.program, carried(mounts.model)

    def classes(self, code: Lines) -> None:
        names = self.sizes.names
        with code.indent("class Step(NamedTuple):"):
            code.text('"""What decoding returns; `step` without the dim of positions."""')
            code.add()
            for name, v in self.found.outputs(self.model):
                code.add(f"{identifier(name)}: Tensor", f"[{' '.join(names[d] for d in v.dims)}]")
        code.lines += ["", ""]
        with code.indent("class State(NamedTuple):"):
            code.text(
                '"""What later positions need of earlier ones: how many there were, and each block\'s own state."""'
            )
            code.add()
            code.add("pos: int")
            code.add("blocks: tuple[tuple[Tensor, ...], ...]")
        code.lines += ["", ""]

    def methods(self, code: Lines) -> None:
        if self.found.why:
            self.refusals(code)
            return
        code.add()
        with code.indent("def state(self, batch):"):
            code.text('"""The state before the first position."""')
            code.add("like = next(p for p in self.parameters() if p.is_floating_point())")
            code.add("blocks = []")
            for step in self.model.steps:
                self.each(code, step, lambda where: f"blocks.append({where}.state(batch, like))")
            code.add("return State(0, tuple(blocks))")
        self.run(code, "prefill", False)
        self.run(code, "step", True)

    def refusals(self, code: Lines) -> None:
        for name in ("state", "prefill", "step"):
            code.add()
            with code.indent(f"def {name}(self, *_):"):
                code.add(f'raise NotImplementedError("this model cannot decode: {self.found.why}")')

    def each(self, code: Lines, step: object, say: Any) -> None:
        """One line for every block of a step, in a loop for a stack."""
        if isinstance(step, Site):
            code.add(say(self.mounts.place(step)))
        elif isinstance(step, Stack):
            with code.indent(f"for i in range({self.file.constant(step.loop.dim)}):"):
                for site in step.sites:
                    code.add(say(self.mounts.place(site, "i")))

    def run(self, code: Lines, name: str, one: bool) -> None:
        """`step` (one position) or `prefill`."""
        public = [v for v in (self.program.input(n) for n in self.program.inputs) if self.reads(v, one)]
        names = [identifier(v.name) for v in public]
        env = {v.name: identifier(v.name) for v in public}
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def {name}(self, {', '.join([*names, *(['state'] if one else [])])}):"):
            shown = "batch" if one else "batch, positions"
            code.text(
                f'"""The results of {"the next position" if one else "a prompt"} [{shown}], and the state after it."""'
            )
            for v, n in zip(public, names):
                if one and TIME in v.dims:
                    code.add(f"{n} = {n}.unsqueeze({v.dims.index(TIME)})")
            first = next(n for n, v in zip(names, public) if not scalar(v))
            tensors = [(n, v) for n, v in zip(names, public) if not scalar(v)]
            given = ", ".join(f'"{n}": {n}' for n, _ in tensors)
            kept = "{n: SIGNATURE[n] for n in (" + ", ".join(f'"{n}"' for n, _ in tensors) + ",)}"
            limits = "{d: (most, 1) for d, (most, _) in LIMITS.items()}"
            code.add(f"{'' if one else 'sizes = '}check({{{given}}}, {kept}, FIXED, {limits})")
            if one:
                time = self.sizes.names[TIME]
                code.add(f'pos = position(state.pos, LIMITS.get("{time}"), "{time}", {first}.device)')
                code.add("past = iter(state.blocks)")
            code.add("now = []")
            for step in self.model.steps:
                self.step(code, step, env, one)
            results = [
                env[v.name] + (f".select({v.dims.index(TIME)}, 0)" if one and TIME in v.dims else "")
                for _, v in self.found.outputs(self.model)
            ]
            after = "state.pos + 1" if one else f'sizes["{self.sizes.names[TIME]}"]'
            code.add(f"return Step({', '.join(results)}), State({after}, tuple(now))")

    def reads(self, public: Val, one: bool) -> bool:
        """Does any block's step read this public input?"""
        for site in self.model.sites:
            s = self.found.steps[key(site)]
            graph = s.step if one else s.prefill
            used = {v.name for v in graph.inputs}
            for v, source in zip(site.body.inputs, site.sources):
                if isinstance(source, Given) and v.name in used and self.outer(source.value) == public.name:
                    return True
        return False

    def outer(self, v: Val) -> str:
        """The model-level name of a value that a call reads."""
        for step in self.model.steps:
            if isinstance(step, Stack) and v in step.loop.body.inputs:
                return step.node.ins[step.loop.body.inputs.index(v)].name
        return v.name

    def step(self, code: Lines, step: object, env: dict[str, str], one: bool) -> None:
        if isinstance(step, Site):
            self.call(code, step, env, self.mounts.place(step), "", one)
        elif isinstance(step, Stack):
            body, node = step.loop.body, step.node
            inner = {v.name: env[o.name] for v, o in zip(body.inputs, node.ins) if o.name in env}
            for i in range(step.loop.carries):
                name = identifier(body.inputs[i].name)
                if inner[body.inputs[i].name] != name:
                    code.add(f"{name} = {inner[body.inputs[i].name]}")
                inner[body.inputs[i].name] = name
            with code.indent(f"for i in range({self.file.constant(step.loop.dim)}):"):
                for site in step.sites:
                    self.call(code, site, inner, self.mounts.place(site, "i"), "i", one)
            for v, o in zip(body.outputs[: step.loop.carries], node.outs):
                env[o.name] = inner[v.name]
        else:
            assert isinstance(step, Node)

    def call(self, code: Lines, site: Site, env: dict[str, str], where: str, i: str, one: bool) -> None:
        s = self.found.steps[key(site)]
        used = {v.name for v in (s.step if one else s.prefill).inputs}
        by_input = dict(zip(site.body.inputs, site.sources))
        args: list[str] = []
        for v in self.mounts.blocks[key(site)].given:
            source = by_input[v]
            if v.name not in used:
                continue
            if isinstance(source, Borrowed):
                args.append(self.mounts.weight(source, i))
            elif isinstance(source, Given) and source.value.name in env:
                args.append(env[source.value.name])
            else:
                args.append("i")
        outs = []
        for j in s.outputs:
            v = site.node.outs[j]
            name = identifier(self.carried.get(v.name, v.name))
            if site.rows is not None and j == 0:
                name = self.carry_name(site)
            env[v.name] = name
            outs.append(name)
        method = "step" if one else "prefill"
        rest = ["pos", "next(past)"] if one else []
        code.add(f"{', '.join([*outs, 'new'])} = {where}.{method}({', '.join([*args, *rest])})")
        code.add("now.append(new)")

    def carry_name(self, site: Site) -> str:
        """The variable that a stack's running value goes by."""
        stack = next(x for x in self.model.steps if isinstance(x, Stack) and site in x.sites)
        return identifier(stack.loop.body.inputs[0].name)
