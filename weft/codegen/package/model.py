"""The text of `model.py`: the Model, its inputs' signature, its blocks in order, its outputs by name."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from weft.codegen.package.block import buffers, header, initial, rows_of
from weft.codegen.package.model_decode import DecodeWriter, Decoding
from weft.codegen.package.model_forward import Forward
from weft.codegen.package.mounts import Mounts, simple
from weft.codegen.torch.body import File, floats
from weft.codegen.torch.lines import Lines, fit, tuple_of
from weft.codegen.torch.sizes import Sizes
from weft.codegen.torch.spelling import TORCH_DTYPE
from weft.ir.indices import indices
from weft.ir.names import identifier, label
from weft.ir.program import Program
from weft.passes.blocks import Block, key, scalar
from weft.passes.structure import CallSite, Stack, Structure


def model_file(
    model: Structure,
    blocks: Mapping[object, Block],
    found: Decoding,
    layers: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The source. found: how the model decodes. layers: by block, the recompute mode of each of its runs, in order."""
    return _ModelWriter(model, blocks, found, layers or {}).source()


def ranges(program: Program, sizes: Sizes) -> list[tuple[str, str, int, int | None]]:
    """Inputs whose numbers look something up: what each is called, the dim, its size, a number that stands for none."""
    every = [(i, sizes.number(i.dim)) for i in indices(program)]
    return [(identifier(i.input), sizes.names[i.dim], n, i.ignore) for i, n in every if n is not None]


class _ModelWriter:
    def __init__(
        self, model: Structure, blocks: Mapping[object, Block], found: Decoding, layers: Mapping[str, Sequence[str]]
    ) -> None:
        self.model, self.program, self.blocks, self.layers = model, model.program, blocks, layers
        self.sizes = Sizes.of(self.program)
        self.file = File(self.sizes)
        self.file.floats = frozenset(floats(self.program.graph)) or frozenset({"f32"})
        self.modes = any(len(b.modes) > 1 for b in blocks.values()) and self.program.train
        self.mounts = Mounts(model, blocks)
        self.lists, self.place = self.mounts.lists, self.mounts.place
        self.decoding = DecodeWriter(self.mounts, self.file, found)

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
        helpers = [
            h
            for h in (
                "Block",
                "Group",
                "check",
                "draw_seed",
                "found",
                "initialise",
                "parameter_groups",
                "place",
                "refuse_autocast",
                "weight",
            )
            if re.search(rf"\b{h}\b", text)
        ]
        own = [f"from .blocks.{b.name} import {b.title}" for b in sorted(self.blocks.values(), key=lambda b: b.name)]
        own.append(f"from .runtime.module import {', '.join(helpers)}")
        if not self.decoding.found.why:
            helpers = [h for h in ("State", "check_whole", "feed") if re.search(rf"\b{h}\b", text)]
            own.append(f"from .runtime.state import {', '.join(helpers)}")
        if self.program.states:
            own.append(f"from .runtime.memory import {'passed, ' if self.program.through else ''}remembered")
        own.append("from .runtime.whole import exported")
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+", self.program.source)
        source = f", from {self.program.source}" if plain else ""
        doc = f"The model{source}: `Model` runs the blocks of `blocks/` in order."
        out = Lines()
        out.lines = [*(line.replace("from ..runtime", "from .runtime") for line in header(doc, text, own)), "", *body]
        return out.source()

    def tables(self, lines: Lines) -> None:
        program, names = self.program, self.sizes.names
        public = [program.input(n) for n in program.inputs if n not in program.carried]
        public = [v for v in public if not scalar(v)]
        dims = [d for v in public for d in v.dims]
        lines.add("SIGNATURE = {")
        for v in public:
            shown = tuple_of(f'"{names[d]}"' for d in v.dims)
            lines.add(f'    "{identifier(v.name)}": ({TORCH_DTYPE[v.dtype]}, {shown}),')
        lines.add("}")
        fixed = {names[d]: self.sizes.number(d) for d in dims if self.sizes.number(d) is not None}
        limits = {names[d]: (r.max, r.align) for d, r in program.runtime.items() if d in dims}
        lines.add(f"FIXED = {_dict(fixed)}")
        lines.add(f"LIMITS = {_dict(limits)}")
        said = [f'("{name}", "{dim}", {n}, {ignore})' for name, dim, n, ignore in ranges(program, self.sizes)]
        lines.lines += rows_of("RANGES", said)
        lines.lines += self.memory()
        if self.modes:
            lines.add("MODES = {")
            for b in (b for b in self.blocks.values() if len(b.modes) > 1):
                runs = [f'("{mode}",) * {len(list(same))}' for mode, same in groupby(self.layers.get(b.name, ()))]
                lines.lines += [f"    {line}" for line in fit(f'"{b.name}": {" + ".join(runs)},')]
            lines.add("}")
        root = self.model.root
        if not root:
            lines.add("PARAMETERS = ()")
            return
        said = []
        for p in root:
            kind, value = initial(program, p)
            shape = tuple_of(str(self.sizes.number(d)) for d in p.dims) if p.dims else "()"
            rows = range(self.sizes.frozen(p.stack)) if p.stack else (0,)
            said += [f'("{label(p.logical(i))}", {shape}, "{p.dtype}", "{kind}", {value!r})' for i in rows]
        lines.lines += rows_of("PARAMETERS", said)

    def memory(self) -> list[str]:
        """MEMORY: of each state its name, its dims before those of batch and rows, the name of its rows, its dims
        behind, the most rows, its dtype."""
        rows: list[str] = []
        for s in self.program.states:
            v = self.program.input(s.past)
            at, dtype = v.dims.index(s.rows), TORCH_DTYPE[v.dtype] if self.file.mixed else None
            before, behind = (tuple(map(self.sizes.frozen, dims)) for dims in (v.dims[: at - 1], v.dims[at + 1 :]))
            rows.append(
                f'("{identifier(s.name)}", {before}, "{self.sizes.names[s.rows]}", {behind}, {s.keep}, {dtype})'
            )
        return rows_of("MEMORY", rows) if rows else []

    def states(self, code: Lines) -> None:
        names, given = self.sizes.names, dict(zip(self.program.outputs, self.program.graph.outputs))
        code.add("@exported")
        with code.indent("class Memory(NamedTuple):"):
            what = "" if self.program.through else ", constants to it"
            code.text(f'"""What a call leaves to the next one{what}."""')
            code.add()
            for s in self.program.states:
                code.add(f"{identifier(s.name)}: Tensor", f"[{' '.join(names[d] for d in given[s.value].dims)}]")
            if self.program.through:
                code.add("borders: int = 0", "that a gradient has gone through since one stopped it")
        code.lines += ["", ""]

    def output(self, code: Lines) -> None:
        names = self.sizes.names
        if self.program.states:
            self.states(code)
        code.add("@exported")
        with code.indent("class Output(NamedTuple):"):
            left = {v for b in self.blocks.values() for v in b.lost}
            code.text(f'"""What the model returns{"; no loss without its targets" if left else ""}."""')
            code.add()
            for name, v in zip(self.program.outputs, self.program.graph.outputs):
                if name in self.program.carried:
                    continue
                kind = "Tensor | None" if v in left else "Tensor"
                code.add(f"{identifier(name)}: {kind}", f"[{' '.join(names[d] for d in v.dims)}]")
            if self.program.states:
                code.add("memory: Memory")
        code.lines += ["", ""]

    def klass(self, code: Lines) -> None:
        with code.indent("class Model(Block):"):
            code.text(
                f'"""{identifier(self.program.name)}: parameters under their logical names, forward as in the spec."""'
            )
            code.add()
            with code.indent(f"def __init__(self, device=None, generator=0{', modes=MODES' if self.modes else ''}):"):
                rows = {p: range(self.sizes.frozen(p.stack)) if p.stack else (0,) for p in self.model.root}
                fixed = buffers([(p.logical(i), p) for p, each in rows.items() for i in each])
                code.add(f"super().__init__(PARAMETERS, device{fixed})")
                self.construct(code)
                code.add("self.reset_parameters(generator)")
            code.add()
            with code.indent("def reset_parameters(self, generator=0):"):
                code.text('"""Draw all parameters as the spec says, from a seed or the seed of a torch.Generator."""')
                code.add("initialise(self, generator)")
            code.add()
            with code.indent("def parameter_groups(self):"):
                code.text('"""All parameters in groups for an optimizer, with the rates that the spec gives some."""')
                code.add("return parameter_groups(self)")
            code.add()
            code.add("@property")
            with code.indent("def plan(self):"):
                code.text('"""What was decided when this package was compiled: plan.json."""')
                code.add('return json.loads((Path(__file__).parent / "plan.json").read_text(encoding="utf-8"))')
            code.add()
            Forward(self.mounts, self.file).write(code)
            self.decoding.methods(code)

    def construct(self, code: Lines) -> None:
        started: set[str] = set()
        for name in self.mounts.groups:
            code.add(f"self.{name} = Group()")
        for step in self.model.steps:
            if isinstance(step, CallSite):
                made = f"{self.mounts.title(step)}({self.mode(step)}device=device)"
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
        with code.indent(
            f"for i in range({n}):"
            if self.modes or not all(self.lists.get(s.mount, True) for s in stack.sites)
            else f"for _ in range({n}):"
        ):
            for site in stack.sites:
                made = f"{self.mounts.title(site)}({self.mode(site)}device=device)"
                if not site.mount or self.lists[site.mount]:
                    code.add(f"{self.place(site, 'i').split('[')[0]}.append({made})")
                else:
                    row = self.place(site, "i").split(".format(")[1].removesuffix("))")
                    code.add(f'place(self, "{site.mount}".format({row}), {made})')

    def mode(self, site: CallSite) -> str:
        """The recompute mode that a run of a block is made with, as an argument."""
        block = self.blocks[key(site)]
        if len(block.modes) < 2 or not self.program.train:
            return ""
        first = 0
        for step in self.model.steps:
            sites = step.sites if isinstance(step, Stack) else [step] if isinstance(step, CallSite) else []
            mine = [s for s in sites if self.blocks[key(s)] is block]
            if any(s is site for s in mine):
                j = first + next(j for j, s in enumerate(mine) if s is site)
                row = "" if site.rows is None else "i" if len(mine) == 1 else f"{len(mine)} * i"
                return f'modes["{block.name}"][{" + ".join(x for x in (row, str(j) if j or not row else "") if x)}], '
            first += len(mine) * (self.sizes.frozen(step.loop.dim) if isinstance(step, Stack) else 1)
        raise AssertionError("a site of another model")


def _dict(items: Mapping[str, object]) -> str:
    return "{" + ", ".join(f'"{k}": {v}' for k, v in items.items()) + "}"
