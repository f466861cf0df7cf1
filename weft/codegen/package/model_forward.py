"""The Model's forward: the blocks in order, stacks as loops over their modules."""

from typing import Any

from weft.codegen.package.mounts import Mounts
from weft.codegen.torch.body import Body, File
from weft.codegen.torch.function import TABLE
from weft.codegen.torch.lines import Lines, tuple_of
from weft.codegen.torch.printer import Speller, print_nodes
from weft.codegen.torch.spelling import ATOM, Src, TorchFormulas
from weft.ir.composite import Call
from weft.ir.formula import symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.indices import targets
from weft.ir.names import identifier
from weft.ir.ops.primitives import Loop, Map
from weft.ir.types import Node, Val
from weft.passes.blocks import Block, key, scalar
from weft.passes.structure import Borrowed, CallSite, Given, Stack, Structure


def carried(model: Structure) -> dict[str, str]:
    """Values that enter a loop over layers -> the name of the carry they become."""
    stacks = [s for s in model.steps if isinstance(s, Stack)]
    return {s.node.ins[i].name: s.loop.body.inputs[i].name for s in stacks for i in range(s.loop.carries)}


class Forward:
    """Writes `def forward`."""

    def __init__(self, mounts: Mounts, file: File) -> None:
        self.mounts, self.file, self.model, self.blocks = mounts, file, mounts.model, mounts.blocks
        self.carried = carried(mounts.model)

    def write(self, code: Lines) -> None:
        program = self.model.program
        inputs = [program.input(n) for n in program.inputs]
        body = Body(self.file, inputs, program.graph.outputs, program.graph.nodes, depth=2)
        steps = {id(_node(s)): s for s in self.model.steps}
        table: dict[type, Speller] = {
            **TABLE,
            Call: lambda b, n: self.call(b, steps[id(n)], n),
            Loop: lambda b, n: self.stack(b, steps[id(n)], n),
            Map: lambda b, n: None if self.rows_only(n) else TABLE[Map](b, n),
        }
        print_nodes(body, program.graph, table)
        results = self.results(body)
        named = [(n, v) for n, v in zip(body.arguments(), inputs) if v.name not in program.carried]
        tensors, scalars = [n for n, v in named if not scalar(v)], [n for n, v in named if scalar(v)]
        optional = [n for n, v in named if program.train and v.name in targets(program)]
        needed = [n for n in tensors if n not in optional]
        if not program.train:  # it has no backward, so nothing is kept for one
            code.add("@torch.no_grad()")
        given = [*optional, *(["memory"] if program.states else []), *scalars]
        with code.indent(f"def forward(self, {', '.join([*needed, *(f'{n}=None' for n in given)])}):"):
            given = ", ".join(f'"{n}": {n}' for n in tensors)
            more = ", " + tuple_of(f'"{n}"' for n in optional) if optional else ""
            code.add(f"check({{{given}}}, SIGNATURE, FIXED, LIMITS, RANGES{more})")
            code.add(f"refuse_autocast({tensors[0]})")
            if program.states:
                past = [identifier(s.past) for s in program.states]
                code.add("like = next(p for p in self.parameters() if p.is_floating_point())")
                through = f", {program.through}" if program.through else ""
                left = tuple_of(past) if len(past) == 1 else ", ".join(past)
                code.add(f"{left} = remembered(memory, MEMORY, {tensors[0]}.shape[0], like{through})")
            for n in scalars:
                code.add(f"{n} = draw_seed({n}, self.training, {tensors[0]}.device)")
            for statement in body.opening(results):
                code.add(statement)
            code.lines += body.lines.lines
            code.add(f"return Output({results})")

    def results(self, body: Body) -> str:
        """What `Output` is made of: results, then what is left to the next call."""
        program = self.model.program
        named = list(zip(program.outputs, program.graph.outputs))
        found = [body.full(v) for name, v in named if name not in program.carried]
        left = [body.full(v) for name, v in named if name in program.carried]
        left += [f"passed(memory, {program.through})"] if left and program.through else []
        return ", ".join([*found, *([f"Memory({', '.join(left)})"] if left else [])])

    def rows_only(self, node: Node) -> bool:
        """Is the node a formula that only loops over layers read, row by row?"""
        stacks = [s for s in self.model.steps if isinstance(s, Stack)]
        readers = [s for s in self.model.steps if node.outs[0] in _node(s).ins]
        return not node.ins and bool(readers) and all(s in stacks and s.loop.dim in node.outs[0].dims for s in readers)

    def call(self, body: Body, site: object, node: Node) -> None:
        """A block that runs once."""
        assert isinstance(site, CallSite)
        given = self.given(body, site, self.blocks[key(site)], "")
        names: list[str] = []
        for v in node.outs:
            names.append(self.local(body, v) if body.uses[v.name] else "_")
            body.env[v.name] = Src(names[-1], ATOM, v.dims, v.dtype)
        body.lines.add(f"{', '.join(names)} = {self.mounts.place(site)}({', '.join(given)})")

    def given(self, body: Body, site: CallSite, block: Block, i: str) -> list[str]:
        """The arguments of a block's module at this site."""
        by_input = dict(zip(site.body.inputs, site.sources))
        out: list[str] = []
        for v in block.given:
            source = by_input[v]
            if isinstance(source, Borrowed):
                out.append(self.mounts.weight(source, i))
            else:
                assert isinstance(source, Given)
                src = body.loose(source.value)
                out.append(src.text if src.number else body.full(source.value))
        return out

    def local(self, body: Body, v: Val) -> str:
        """The variable of a value: that of the loop's carry if it becomes one."""
        if v.name in self.carried and body.uses[v.name] == 1:
            return identifier(self.carried[v.name])
        return body.mint(v.name)

    def stack(self, body: Body, stack: object, node: Node) -> None:
        """A loop over layers."""
        assert isinstance(stack, Stack)
        loop, outer = stack.loop, body.env
        inner, indexed = self.entered(body, stack)
        places = range(loop.carries, len(loop.body.outputs))
        read = [j for j in places if body.uses[node.outs[j].name]]
        lists = {j: body.mint(loop.body.outputs[j].name + "s") for j in read}
        for name in lists.values():
            body.lines.add(f"{name} = []")
        body.env = inner
        with body.lines.indent(self.head(stack, indexed)):
            for site in stack.sites:
                self.layer(body, stack, site)
            for v, carry in zip(loop.body.outputs[: loop.carries], loop.body.inputs):
                if inner[v.name].text != inner[carry.name].text:
                    body.lines.add(f"{inner[carry.name].text} = {inner[v.name].text}")
            for j, name in lists.items():
                body.lines.add(f"{name}.append({inner[loop.body.outputs[j].name].text})")
        body.env = outer
        for v, carry in zip(node.outs, loop.body.inputs[: loop.carries]):
            body.env[v.name] = Src(inner[carry.name].text, ATOM, v.dims, v.dtype)
        for j, name in lists.items():
            v = node.outs[j]
            body.put(v, Src(f"torch.stack({name})", ATOM, v.dims, v.dtype), inline=False)

    def entered(self, body: Body, stack: Stack) -> tuple[dict[str, Src], bool]:
        """What the loop body's inputs are called, and whether the row's number is among them."""
        loop, inner, indexed = stack.loop, dict(body.env), False
        for place, (v, outer) in enumerate(zip(loop.body.inputs, stack.node.ins)):
            if place < loop.carries:
                name = identifier(v.name)
                if body.full(outer) != name:
                    body.lines.add(f"{name} = {body.full(outer)}")
                inner[v.name] = Src(name, ATOM, v.dims, v.dtype)
            elif loop.dim in outer.dims and outer.name in {*body.made, *self.model.program.carried}:
                inner[v.name] = self.row(body, outer, loop.dim)
                indexed = True
            elif outer.name in body.env:
                inner[v.name] = body.env[outer.name]
        return inner, indexed

    def head(self, stack: Stack, indexed: bool) -> str:
        """The loop's first line: over the modules themselves where they are one list."""
        if not self.mounts.covers(stack):
            return f"for i in range({self.file.constant(stack.loop.dim)}):"
        layers = self.mounts.place(stack.sites[0], "i").split("[")[0]
        return f"for i, layer in enumerate({layers}):" if indexed else f"for layer in {layers}:"

    def layer(self, body: Body, stack: Stack, site: CallSite) -> None:
        """One call inside the loop."""
        where = "layer" if self.mounts.covers(stack) else self.mounts.place(site, "i")
        given = self.given(body, site, self.blocks[key(site)], "i")
        outs: list[str] = []
        for v in site.node.outs:
            carry = overwrites(stack, site, v)
            outs.append(body.env[carry.name].text if carry is not None else body.mint(v.name))
        for v, name in zip(site.node.outs, outs):
            body.env[v.name] = Src(name, ATOM, v.dims, v.dtype)
        body.lines.add(f"{', '.join(outs)} = {where}({', '.join(given)})")

    def row(self, body: Body, v: Val, dim: str) -> Src:
        """Row i of a value that is a formula of the loop's coordinate."""
        made = body.made.get(v.name)
        if made is not None and isinstance(op := made.op, Map) and not made.ins and v.dims == (dim,):
            env = {symbol(f"i_{dim}"): Src("i", ATOM, None, "int")}
            used: Any = op.exprs[0].free_symbols
            env |= {s: body.size(s.name[2:]) for s in used if s.name.startswith("n_")}
            return evaluate([op.exprs[0]], env, TorchFormulas(body, (), "f32", "row").table)[0]
        axis = v.dims.index(dim)
        dims = tuple(d for d in v.dims if d != dim)
        return Src(f"{body.full(v)}.select({axis}, i)", ATOM, dims, v.dtype)


def overwrites(stack: Stack, site: CallSite, v: Val) -> Val | None:
    """The carry whose variable a result may take: nobody reads its old value any more, nor this one for long."""
    loop, place = stack.loop, next(i for i, s in enumerate(stack.sites) if s is site)
    later = stack.sites[place + 1 :]
    carries, after = loop.body.inputs[: loop.carries], loop.body.outputs[: loop.carries]
    if v in after:
        carry = carries[after.index(v)]
    elif (
        site.node.outs[0] == v and later and all(v not in s.node.ins for s in later[1:]) and v not in loop.body.outputs
    ):
        carry = carries[0]
    else:
        return None
    return None if any(carry in s.node.ins for s in later) or carry.type != v.type else carry


def _node(step: object) -> Node:
    return step if isinstance(step, Node) else step.node  # type: ignore[attr-defined]
