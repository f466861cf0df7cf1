"""The text of `model.py`: the Model, its inputs' signature, its blocks in order, its outputs by name."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from weft.ir.evaluate import evaluate
from weft.ir.formula import symbol
from weft.ir.primitives import Call, Loop, Map
from weft.ir.program import Program
from weft.ir.types import Node, Val

from .block_file import header, initial, rows_of
from .blocks import Block, key, label, scalar
from .body import Body, File, floats
from .decode_model import Decoding, DecodeWriter
from .function import TABLE
from .lines import Lines, fit, tuple_of
from .printer import Speller, print_nodes
from .sizes import Sizes, identifier
from .spelling import ATOM, TORCH_DTYPE, Formulas, Src
from .structure import Borrowed, Given, Own, Site, Stack, Structure

_SIMPLE = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = frozenset(
    """T_destination add_module apply bfloat16 block_of buffers call_super_init children compile cpu cuda
    double dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    load_state_dict modules mode modes mtia named_buffers named_children named_modules named_parameters parameters plan
    prefill register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ reset_parameters set_extra_state set_submodule share_memory state
    state_dict step table to to_empty train training type weight weights xpu zero_grad""".split()
)
"""Attributes of nn.Module and of the emitted modules: no block is mounted under such a name as an attribute."""


def simple(mount: str) -> bool:
    """Can the mount be an attribute of the model, or of a stack a list that is one?"""
    stem = mount.removesuffix(".{}")
    return bool(_SIMPLE.fullmatch(stem)) and stem not in TAKEN


def model_file(
    model: Structure,
    blocks: Mapping[object, Block],
    found: Decoding,
    layers: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The source. found: how the model decodes. layers: by block, the recompute mode of each of its runs, in order."""
    return _Writer(model, blocks, found, layers or {}).source()


class _Writer:
    def __init__(
        self, model: Structure, blocks: Mapping[object, Block], found: Decoding, layers: Mapping[str, Sequence[str]]
    ) -> None:
        self.model, self.program, self.blocks, self.layers = model, model.program, blocks, layers
        self.decoding = DecodeWriter(self, found)
        self.sizes = Sizes.of(self.program)
        self.file = File(self.sizes)
        self.file.floats = frozenset(floats(self.program.graph)) or frozenset({"f32"})
        self.modes = any(len(b.modes) > 1 for b in blocks.values()) and self.program.train
        stacks = [s for s in self.model.steps if isinstance(s, Stack)]
        self.carried = {s.node.ins[i].name: s.loop.body.inputs[i].name for s in stacks for i in range(s.loop.carries)}
        self.homes = self._homes()
        self.lists = self._lists()

    # -- where things are ----------------------------------------------------------------------------------------------

    def _homes(self) -> dict[int, str]:
        """Attribute names of modules that own no parameters, by the place of their site."""
        tops = {p.name.split(".")[0] for p in self.program.params} | TAKEN
        out: dict[int, str] = {}
        for i, site in enumerate(self.model.sites):
            if not site.mount:
                out[i] = identifier(f"{site.call.name}_block", {*tops, *out.values()})
        return out

    def _lists(self) -> dict[str, bool]:
        """Stack mounts that can be one nn.ModuleList: their rows are 0, 1, 2, .. in order of appearance."""
        rows: dict[str, list[int]] = {}
        for stack in (s for s in self.model.steps if isinstance(s, Stack)):
            n = self.sizes.number(stack.loop.dim) or 0
            for i in range(n):
                for site in stack.sites:
                    if site.mount:
                        rows.setdefault(site.mount, []).append(site.start + site.step * i)
        return {m: simple(m) and found == list(range(len(found))) for m, found in rows.items()}

    def place(self, site: Site, i: str = "") -> str:
        """The source of a site's module; `i` is the row's variable."""
        if not site.mount:
            return f"self.{self.homes[self._index(site)]}" + (f"[{i}]" if site.rows else "")
        if site.rows is None:
            return f"self.{site.mount}" if simple(site.mount) else f'found(self, "{label(site.mount)}")'
        row = i if site.step == 1 else f"{site.step} * {i}"
        row = row if not site.start else f"{site.start} + {row}" if site.step == 1 else f"{row} + {site.start}"
        if self.lists[site.mount]:
            return f"self.{site.mount.removesuffix('.{}')}[{row}]"
        return f'found(self, "{site.mount}".format({row}))'

    def _index(self, site: Site) -> int:
        return next(i for i, s in enumerate(self.model.sites) if s is site)

    def weight(self, p: Borrowed, i: str) -> str:
        """The source of a parameter that the reading block does not own."""
        for site in self.model.sites:
            for own in site.own:
                if own.param.value == p.param.value and site.rows is None:
                    return f'weight({self.place(site)}, "{label(own.name)}")'
        if p.param.stack is None:
            return f'weight(self, "{label(p.name)}")'
        row = f"{p.param.start} + {p.param.step} * {i}"
        label(p.name.replace("{}", "0"))
        return f'weight(self, "{p.name}".format({row}))'

    # -- the file ------------------------------------------------------------------------------------------------------

    def source(self) -> str:
        code = Lines()
        self.output(code)
        if not self.decoding.found.why:
            self.decoding.classes(code)
        self.klass(code)
        tables = Lines()
        self.tables(tables)
        body = [*self.file.header(), *tables.lines, "", "", *code.lines]
        text = "\n".join(body)
        helpers = [h for h in ("Block", "check", "draw_seed", "found", "initialise", "place", "position", "refuse_autocast", "weight") if re.search(rf"\b{h}\b", text)]
        own = [f"from .blocks.{b.name} import {b.title}" for b in sorted(self.blocks.values(), key=lambda b: b.name)]
        own.append(f"from .runtime.module import {', '.join(helpers)}")
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+", self.program.source)
        source = f", from {self.program.source}" if plain else ""
        doc = f"The model{source}: `Model` runs the blocks of `blocks/` in order."
        out = Lines()
        out.lines = [*(line.replace("from ..runtime", "from .runtime") for line in header(doc, text, own)), "", *body]
        return out.source()

    def tables(self, lines: Lines) -> None:
        program, names = self.program, self.sizes.names
        public = [program.input(n) for n in program.inputs if not scalar(program.input(n))]
        dims = [d for v in public for d in v.dims]
        lines.add("SIGNATURE = {")
        for v in public:
            lines.add(f'    "{identifier(v.name)}": ({TORCH_DTYPE[v.dtype]}, {tuple_of(chr(34) + names[d] + chr(34) for d in v.dims)}),')
        lines.add("}")
        fixed = {names[d]: self.sizes.number(d) for d in dims if self.sizes.number(d) is not None}
        limits = {names[d]: (r.max, r.align) for d, r in program.runtime.items() if d in dims}
        lines.add(f"FIXED = {_dict(fixed)}")
        lines.add(f"LIMITS = {_dict(limits)}")
        if self.modes:
            lines.add("MODES = {")
            for b in (b for b in self.blocks.values() if len(b.modes) > 1):
                runs = [f'("{mode}",) * {len(list(same))}' for mode, same in groupby(self.layers.get(b.name, ()))]
                lines.lines += [f"    {line}" for line in fit(f'"{b.name}": {" + ".join(runs)},')]
            lines.add("}")
        root = [p for p in self.model.root]
        if not root:
            lines.add("PARAMETERS = ()")
            return
        said: list[str] = []
        for p in root:
            kind, value = initial(program, p)
            shape = tuple_of(str(self.sizes.number(d)) for d in p.dims) if p.dims else "()"
            rows = range(self.sizes.number(p.stack) or 0) if p.stack else (0,)
            said += [f'("{label(p.logical(i))}", {shape}, "{p.dtype}", "{kind}", {value!r})' for i in rows]
        lines.lines += rows_of("PARAMETERS", said)

    def output(self, code: Lines) -> None:
        names = self.sizes.names
        with code.indent("class Output(NamedTuple):"):
            code.text('"""What the model returns."""')
            code.add()
            for name, v in zip(self.program.outputs, self.program.graph.outputs):
                code.add(f"{identifier(name)}: Tensor", f"[{' '.join(names[d] for d in v.dims)}]")
        code.lines += ["", ""]

    def klass(self, code: Lines) -> None:
        with code.indent("class Model(Block):"):
            code.text(f'"""{identifier(self.program.name)}: parameters under their logical names, forward as in the spec."""')
            code.add()
            with code.indent(f"def __init__(self, device=None, generator=0{', modes=MODES' if self.modes else ''}):"):
                code.add("super().__init__(PARAMETERS, device)")
                self.construct(code)
                code.add("self.reset_parameters(generator)")
            code.add()
            with code.indent("def reset_parameters(self, generator=0):"):
                code.text('"""Draw all parameters as the spec says, from a seed or the seed of a torch.Generator."""')
                code.add("initialise(self, generator)")
            code.add()
            code.add("@property")
            with code.indent("def plan(self):"):
                code.text('"""What was decided when this package was compiled: plan.json."""')
                code.add('return json.loads((Path(__file__).parent / "plan.json").read_text(encoding="utf-8"))')
            code.add()
            self.forward(code)
            self.decoding.methods(code)

    def construct(self, code: Lines) -> None:
        started: set[str] = set()
        for step in self.model.steps:
            if isinstance(step, Site):
                made = f"{self.title(step)}({self.mode(step)}device=device)"
                if not step.mount or simple(step.mount):
                    code.add(f"{self.place(step)} = {made}")
                else:
                    code.add(f'place(self, "{label(step.mount)}", {made})')
            elif isinstance(step, Stack):
                self.stacked(code, step, started)

    def stacked(self, code: Lines, stack: Stack, started: set[str]) -> None:
        n = self.file.constant(stack.loop.dim)
        for site in stack.sites:
            home = self.place(site, "i").split("[")[0]
            if (not site.mount or self.lists[site.mount]) and home not in started:
                code.add(f"{home} = nn.ModuleList()")
                started.add(home)
        with code.indent(f"for i in range({n}):" if self.modes or not all(self.lists.get(s.mount, True) for s in stack.sites) else f"for _ in range({n}):"):
            for site in stack.sites:
                made = f"{self.title(site)}({self.mode(site)}device=device)"
                if not site.mount or self.lists[site.mount]:
                    code.add(f"{self.place(site, 'i').split('[')[0]}.append({made})")
                else:
                    row = self.place(site, "i").split(".format(")[1].removesuffix("))")
                    code.add(f'place(self, "{site.mount}".format({row}), {made})')

    def mode(self, site: Site) -> str:
        """The recompute mode that a run of a block is made with, as an argument."""
        block = self.blocks[key(site)]
        if len(block.modes) < 2 or not self.program.train:
            return ""
        first = 0
        for step in self.model.steps:
            sites = step.sites if isinstance(step, Stack) else [step] if isinstance(step, Site) else []
            mine = [s for s in sites if self.blocks[key(s)] is block]
            if any(s is site for s in mine):
                j = first + next(j for j, s in enumerate(mine) if s is site)
                row = "" if site.rows is None else "i" if len(mine) == 1 else f"{len(mine)} * i"
                return f'modes["{block.name}"][{" + ".join(x for x in (row, str(j) if j or not row else "") if x)}], '
            first += len(mine) * ((self.sizes.number(step.loop.dim) or 0) if isinstance(step, Stack) else 1)
        raise AssertionError("a site of another model")

    def title(self, site: Site) -> str:
        return self.blocks[key(site)].title

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, code: Lines) -> None:
        program = self.program
        inputs = [program.input(n) for n in program.inputs]
        body = Body(self.file, inputs, program.graph.outputs, program.graph.nodes, depth=2)
        tensors = [v for v in inputs if not scalar(v)]
        steps = {id(_node(s)): s for s in self.model.steps}
        table: dict[type, Speller] = {
            **TABLE,
            Call: lambda b, n: self.call(b, steps[id(n)], n),
            Loop: lambda b, n: self.stack(b, steps[id(n)], n),
            Map: lambda b, n: None if self.rows_only(n) else TABLE[Map](b, n),
        }
        print_nodes(body, program.graph, table)
        results = ", ".join(body.full(v) for v in program.graph.outputs)
        names = body.arguments()
        args = [*(n for n, v in zip(names, inputs) if not scalar(v)), *(f"{n}=None" for n, v in zip(names, inputs) if scalar(v))]
        with code.indent(f"def forward(self, {', '.join(args)}):"):
            first = next(n for n, v in zip(names, inputs) if not scalar(v))
            given = ", ".join(f'"{n}": {n}' for n, v in zip(names, inputs) if not scalar(v))
            code.add(f"check({{{given}}}, SIGNATURE, FIXED, LIMITS)")
            code.add(f"refuse_autocast({first})")
            for n, v in zip(names, inputs):
                if scalar(v):
                    code.add(f"{n} = draw_seed({n}, self.training, {first}.device)")
            for statement in body.opening(results):
                code.add(statement)
            code.lines += body.lines.lines
            code.add(f"return Output({results})")
        del tensors

    def rows_only(self, node: Node) -> bool:
        """Is the node a formula that only loops over layers read, row by row?"""
        stacks = [s for s in self.model.steps if isinstance(s, Stack)]
        readers = [s for s in self.model.steps if node.outs[0] in _node(s).ins]
        return not node.ins and bool(readers) and all(s in stacks and s.loop.dim in node.outs[0].dims for s in readers)

    def call(self, body: Body, site: object, node: Node) -> None:
        assert isinstance(site, Site)
        block = self.blocks[key(site)]
        given = self.given(body, site, block, "")
        self.assign(body, node.outs, f"{self.place(site)}({', '.join(given)})")

    def given(self, body: Body, site: Site, block: Block, i: str) -> list[str]:
        """The arguments of a block's module at this site."""
        by_input = dict(zip(site.body.inputs, site.sources))
        out: list[str] = []
        for v in block.given:
            source = by_input[v]
            if isinstance(source, Borrowed):
                out.append(self.weight(source, i))
            else:
                assert isinstance(source, Given)
                src = body.loose(source.value)
                out.append(src.text if src.number else body.full(source.value))
        return out

    def assign(self, body: Body, outs: tuple[Val, ...], text: str) -> None:
        names: list[str] = []
        for v in outs:
            if not body.uses[v.name]:
                names.append("_")
                continue
            name = self.local(body, v)
            body.env[v.name] = Src(name, ATOM, v.dims, v.dtype)
            names.append(name)
        body.lines.add(f"{', '.join(names)} = {text}")

    def local(self, body: Body, v: Val) -> str:
        """The variable of a value: that of the loop's carry if it becomes one."""
        if v.name in self.carried and body.uses[v.name] == 1:
            return identifier(self.carried[v.name])
        return body.mint(v.name)

    def stack(self, body: Body, stack: object, node: Node) -> None:
        assert isinstance(stack, Stack)
        loop, fed = stack.loop, dict(zip(stack.loop.body.inputs, node.ins))
        inner = dict(body.env)
        indexed = False
        for v, outer in fed.items():
            place = loop.body.inputs.index(v)
            if place < loop.carries:
                name = identifier(v.name)
                if body.full(outer) != name:
                    body.lines.add(f"{name} = {body.full(outer)}")
                inner[v.name] = Src(name, ATOM, v.dims, v.dtype)
            elif loop.dim in outer.dims and outer.name in body.made:
                inner[v.name] = self.row(body, outer, loop.dim)
                indexed = True
            elif outer.name in body.env:
                inner[v.name] = body.env[outer.name]
        k = len(loop.body.outputs)
        lists = {j: body.mint(loop.body.outputs[j].name + "s") for j in range(loop.carries, k) if body.uses[node.outs[j].name]}
        for name in lists.values():
            body.lines.add(f"{name} = []")
        whole = all(isinstance(s, Site) for s in stack.sites) and len(stack.sites) == 1 and self._covers(stack)
        n = self.file.constant(loop.dim)
        names = dict(body.env)
        body.env = inner
        layers = self.place(stack.sites[0], "i").split("[")[0] if whole else ""
        head = f"for i, layer in enumerate({layers}):" if whole and indexed else f"for layer in {layers}:" if whole else f"for i in range({n}):"
        with body.lines.indent(head):
            for site in stack.sites:
                block = self.blocks[key(site)]
                where = "layer" if whole else self.place(site, "i")
                text = f"{where}({', '.join(self.given(body, site, block, 'i'))})"
                outs: list[str] = []
                for v in site.node.outs:
                    if v in loop.body.outputs[: loop.carries]:
                        outs.append(identifier(loop.body.inputs[loop.body.outputs.index(v)].name))
                    elif any(v in other.node.ins for other in stack.sites) and v.name not in inner:
                        outs.append(identifier(loop.body.inputs[0].name) if site.node.outs.index(v) == 0 else body.mint(v.name))
                    else:
                        outs.append(body.mint(v.name))
                    body.env[v.name] = Src(outs[-1], ATOM, v.dims, v.dtype)
                body.lines.add(f"{', '.join(outs)} = {text}")
            for j, name in lists.items():
                body.lines.add(f"{name}.append({body.env[loop.body.outputs[j].name].text})")
        carried = [body.env[v.name] for v in loop.body.outputs[: loop.carries]]
        body.env = names
        for v, src in zip(node.outs, carried):
            body.env[v.name] = src
        for j, name in lists.items():
            v = node.outs[j]
            body.put(v, Src(f"torch.stack({name})", ATOM, v.dims, v.dtype), inline=False)

    def _covers(self, stack: Stack) -> bool:
        """Is the module list exactly this loop's layers?"""
        site = stack.sites[0]
        if not site.mount:
            return True
        others = [s for s in self.model.sites if s.mount == site.mount and s is not site]
        return self.lists[site.mount] and not others

    def row(self, body: Body, v: Val, dim: str) -> Src:
        """Row i of a value that is a formula of the loop's coordinate."""
        op = body.made[v.name].op
        if isinstance(op, Map) and not body.made[v.name].ins and v.dims == (dim,):
            env = {symbol(f"i_{dim}"): Src("i", ATOM, None, "int")}
            env |= {s: body.size(s.name[2:]) for s in op.exprs[0].free_symbols if s.name.startswith("n_")}
            return evaluate([op.exprs[0]], env, Formulas(body, (), "f32", "row").table)[0]
        axis = v.dims.index(dim)
        dims = tuple(d for d in v.dims if d != dim)
        return Src(f"{body.full(v)}.select({axis}, i)", ATOM, dims, v.dtype)


def _node(step: object) -> Node:
    return step if isinstance(step, Node) else step.node  # type: ignore[attr-defined]


def _dict(items: Mapping[str, object]) -> str:
    return "{" + ", ".join(f'"{k}": {v}' for k, v in items.items()) + "}"


