"""The text of one block's file: constants, forward, backward, the autograd function, the nn.Module."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from weft.codegen.package.block_decode import decode_functions, decode_methods
from weft.codegen.package.stepping import Stepping
from weft.codegen.torch.body import File, floats
from weft.codegen.torch.function import Function, print_function
from weft.codegen.torch.lines import Lines, fit, tuple_of
from weft.codegen.torch.sizes import Sizes
from weft.ir.graphs import with_gradient
from weft.ir.names import identifier, label, provenance
from weft.ir.program import Param, Program
from weft.ir.reference_model import xavier_bound
from weft.ir.types import Graph, Val
from weft.passes.blocks import Block
from weft.passes.halves import Derived, Pair

RUNTIME = (
    *("attention", "chunked", "convolutions", "decode", "distances", "drop", "entropy", "experts", "fourier", "norms"),
    *("philox", "places", "rotary", "rows", "steps", "stretched", "tables"),
)


def block_file(
    program: Program,
    made: Derived,
    trusted: Iterable[str] = (),
    stepping: Stepping | None = None,
    fused: bool = False,
) -> str:
    """The file's source.

    trusted: index inputs of the block that come straight from the model's caller. stepping: its decode functions.
    fused: is there a kernel path beside it?"""
    return _BlockWriter(program, made, frozenset(trusted), stepping, fused).source()


def printed_file(program: Program, made: Derived, trusted: Iterable[str] = ()) -> tuple[str, dict[str, Function]]:
    """The file's source without decoding and kernels, and its functions by name."""
    writer = _BlockWriter(program, made, frozenset(trusted), None, False)
    return writer.source(), writer.printed


def header(doc: str, text: str, own: Sequence[str] = ()) -> list[str]:
    """Docstring and imports of a file whose code is `text`; own: further import lines."""

    def used(word: str) -> bool:
        return re.search(rf"(?<![\w.]){word}\.", text if word != "attention" else _outside(text)) is not None

    lines = Lines()
    lines.text(f'"""{doc}"""')
    lines.add()
    named = [(n, m) for n, m in (("Path", "pathlib"), ("NamedTuple", "typing")) if re.search(rf"\b{n}\b", text)]
    standard = [f"import {m}" for m in ("json", "math") if used(m)] + [f"from {m} import {n}" for n, m in named]
    for line in standard:
        lines.add(line)
    if standard:
        lines.add()
    if used("torch"):
        lines.add("import torch")
    if used("F"):
        lines.add("import torch.nn.functional as F")
    both = [name for name, word in (("Tensor", r"\bTensor\b"), ("nn", r"(?<![\w.])nn\.")) if re.search(word, text)]
    if both:
        lines.add(f"from torch import {', '.join(both)}")
    if lines.lines[-1]:
        lines.add()
    modules = [m for m in RUNTIME if used(m)]
    local = [*([f"from ..runtime import {', '.join(modules)}"] if modules else []), *own]
    for line in sorted(local, key=lambda line: line.replace("from ..", "from .")):
        lines.add(line)
    return lines.lines


def _outside(text: str) -> str:
    """Module-level assignments and attention's small functions: where no value called `attention` can be meant."""
    return "\n".join(line for line in text.split("\n") if line[:1].isupper() or "attention.at(" in line)


class _BlockWriter:
    def __init__(
        self, program: Program, made: Derived, trusted: frozenset[str], stepping: Stepping | None, fused: bool
    ) -> None:
        self.program, self.made, self.block = program, made, made.block
        self.stepping, self.fused = stepping, fused
        self.file = File(Sizes.of(program), trusted=trusted)
        self.code = Lines()
        self.printed: dict[str, Function] = {}
        self.owned = {s.param.value for s in self.block.site.own}

    def source(self) -> str:
        if self.made.joint is not None:
            self.file.floats = frozenset(floats(self.made.joint))
            for pair in self.made.pairs:
                self.pair(pair)
        elif self.made.alone is not None:
            self.file.floats = frozenset(floats(self.made.alone))
            self.put(print_function(self.file, "forward", self.made.alone, self.describe(self.made.alone)))
        if self.stepping is not None:
            for function in decode_functions(self.file, self.stepping, floats(self.program.graph)):
                self.put(function)
        self.module()
        table = self.table()
        body = [*self.file.header(), *table, "", "", *self.code.lines]
        text = "\n".join(body)
        helpers = [h for h in ("Block", "weights") if any(h in line for line in body)]
        own = [f"from ..runtime.module import {', '.join(helpers)}"]
        if self.program.train:
            helpers = [h for h in ("asked", "filled", "needed", "once") if re.search(rf"\b{h}(\(|$)", text, re.M)]
            own = [f"from ..runtime.gradients import {', '.join(helpers)}", *own]
        if self.block.wrapped is not None:
            own.append("from ..runtime.opaque import Wrapped")
        if self.stepping is not None:
            own.append("from ..runtime.state import Past")
        if self.fused:
            own = [f"from ..fused import {self.block.name} as fused", "from ..kernels.common.ops import wanted", *own]
        out = Lines()
        out.lines = [*header(self.title(), text, own), "", *body]
        return out.source()

    def chosen(self, name: str, args: Sequence[str], vals: Sequence[Val]) -> str:
        """The function to call: the one with kernels where they run for the first float argument."""
        first = next((a for a, v in zip(args, vals) if v.type.floating and v.dims), None)
        return name if not self.fused or first is None else f"(fused.{name} if wanted({first}) else {name})"

    def title(self) -> str:
        where = provenance(next((n.src for n in self.block.site.body.nodes if n.src), ""))
        return f"Block `{self.block.name}`{f', from {where}' if where else ''}: its functions and its module."

    def describe(self, graph: Graph, kept: int = 0) -> str:
        """What the function takes and gives, the parameters apart."""
        names = self.file.sizes.names

        def dims(v: Val) -> str:
            return f"{identifier(v.name)} [{' '.join(names[d] for d in v.dims)}]"

        given = {v.name for v in self.block.given}
        ins = ", ".join(dims(v) for v in graph.inputs if v.name in given and v.dims)
        outs = ", ".join(dims(v) for v in graph.outputs[: len(graph.outputs) - kept])
        text = f"{ins} -> {outs}" + ("; then what the backward reads" if kept else "")
        return text if len(text) < 100 else "The block's results" + ("; then what the backward reads." if kept else ".")

    def put(self, function: Function) -> None:
        self.printed[function.name] = function
        self.code.lines += [*function.lines, "", ""]

    def pair(self, pair: Pair) -> None:
        names = pair.name("forward"), pair.name("backward")
        forward = print_function(self.file, names[0], pair.forward, self.describe(pair.forward, pair.kept))
        untold = self.file.sizes.untold(pair.backwards)
        doc = f"Gradients of the float arguments of {names[0]}."
        backward = print_function(self.file, names[1], pair.backward, doc, given=untold)
        self.put(forward)
        self.put(backward)
        for result, graph in pair.only.items():
            doc = f"Gradients where only `{identifier(result)}` has one."
            self.put(print_function(self.file, pair.name("backward", result), graph, doc, given=untold))
        code = self.code
        with code.indent(f"class {pair.block.autograd(pair.mode)}(torch.autograd.Function):"):
            code.text(f'"""{names[0]} and {names[1]} as one differentiable operation."""')
            code.add()
            self.run_forward(pair, forward, untold)
            code.add()
            self.run_backward(pair, backward, untold)
        code.lines += ["", ""]

    def run_forward(self, pair: Pair, forward: Function, untold: Sequence[str]) -> None:
        """untold: the sizes that backward needs and none of its tensors tells."""
        code, outputs = self.code, pair.block.graph.outputs
        args = list(forward.arguments.values())
        outs = results(pair.block.graph, args)
        code.add("@staticmethod")
        with code.indent(f"def forward(ctx, {', '.join(args)}):"):
            run = self.chosen(forward.name, args, list(pair.forward.inputs))
            if run != forward.name:
                code.add(f"run = {run[1:-1]}")
                run = "run"
            code.add(f"{', '.join(outs)}{', *saved' if pair.kept else ''} = {run}({', '.join(args)})")
            saved = ["*saved"] if pair.kept else []
            saved += [forward.arguments[v.name] for v in pair.tensors]
            if saved:
                code.add(f"readers = {self.readers(pair)}")
                code.add(f"ctx.save_for_backward(*needed(ctx, readers, {', '.join(saved)}))")
            for v in pair.scalars:
                code.add(f"ctx.{forward.arguments[v.name]} = {forward.arguments[v.name]}")
            sizes = self.file.sizes
            for d in untold:
                v, (at, more) = next((v, at) for v in pair.forward.inputs if (at := sizes.reads(v.dims, d)) is not None)
                code.add(f"ctx.{sizes.names[d]} = {forward.arguments[v.name]}.shape[{at}]{more}")
            live = with_gradient(pair.block.graph, outputs)
            whole = [o for o, v in zip(outs, outputs) if v not in live]
            if whole:
                code.add(f"ctx.mark_non_differentiable({', '.join(whole)})")
            if pair.only or self.sparse(pair):
                floating = [o for o, v in zip(outs, outputs) if v in live]
                code.add("ctx.set_materialize_grads(False)")
                code.add(f"ctx.like = [(y.shape, y.dtype, y.device) for y in {tuple_of(floating)}]")
            code.add(f"return {', '.join(outs)}")

    def sparse(self, pair: Pair) -> bool:
        """Has it float results without a gradient? Then autograd is not to fill in zeros for them."""
        outputs = pair.block.graph.outputs
        return len(with_gradient(pair.block.graph, outputs)) < sum(v.type.floating for v in outputs)

    def readers(self, pair: Pair) -> str:
        """Every function that reads what a forward keeps."""
        names = [pair.name("backward", of) for of in ("", *pair.only)]
        return tuple_of([*names, *(f"fused.{n}" for n in names if self.fused)])

    def run_backward(self, pair: Pair, backward: Function, untold: Sequence[str]) -> None:
        code, graph = self.code, pair.block.graph
        outputs, inputs = graph.outputs, graph.inputs
        every = [backward.arguments[v.name] for v in pair.cotangents]
        live = with_gradient(graph, (*outputs, *inputs))
        given = dict(zip((v.name for v in outputs if v in live), every))
        unused = (f"_{i or ''}" for i in range(len(outputs)))
        grads = [given[v.name] if v in live else next(unused) for v in outputs]
        scalars = [f"ctx.{backward.arguments[v.name]}" for v in pair.scalars]
        scalars += [f"ctx.{self.file.sizes.names[d]}" for d in untold]
        none = ["None"] * sum(v not in live for v in inputs)
        many = len(inputs) - len(none) != 1

        def run(name: str, cotangents: list[str]) -> None:
            if self.fused:
                code.add(f"run = fused.{name} if wanted({cotangents[0]}) else {name}")
            arguments = ", ".join(["*ctx.saved_tensors", *cotangents, *scalars])
            call = f"asked(ctx, {'run' if self.fused else name})({arguments})"
            code.add(f"return {', '.join([('*' if many and none else '') + call, *none])}")

        code.add("@staticmethod")
        code.add("@once")
        with code.indent(f"def backward(ctx, {', '.join(grads)}):"):
            for result in pair.only:
                others = [g for name, g in given.items() if name != result]
                with code.indent(f"if {' is None and '.join(others)} is None:"):
                    run(pair.name("backward", result), [given[result]])
            if pair.only or self.sparse(pair):
                code.add(
                    f"{', '.join(every) if len(every) > 1 else tuple_of(every)} = filled({tuple_of(every)}, ctx.like)"
                )
            run(backward.name, every)

    def table(self) -> list[str]:
        """PARAMETERS: logical name, shape, dtype, initialisation."""
        own = self.block.site.own
        rows = rows_of("PARAMETERS", [self.row(o.name, o.param) for o in own]) if own else ["PARAMETERS = ()"]
        rates = [(o.name, dict(o.param.rates)) for o in own if o.param.rates]
        said = [f'    "{label(name)}": {_map(found)},' for name, found in rates]
        return [*rows, *(["RATES = {", *said, "}"] if said else [])]

    def row(self, name: str, p: Param) -> str:
        kind, value = initial(self.program, p)
        shape = tuple_of(str(self.file.sizes.number(d)) for d in p.dims) if p.dims else "()"
        return f'("{label(name)}", {shape}, "{p.dtype}", "{kind}", {value!r})'

    def module(self) -> None:
        block, code = self.block, self.code
        given = [identifier(v.name) for v in block.given]
        names = dict(zip((v.name for v in block.given), given))
        many, bare = len(block.modes) > 1 and self.program.train, block.bare
        if many:
            self.functions("FUNCTIONS", block)
            if bare is not None:
                self.functions("WITHOUT_LOSS", bare)
        with code.indent(f"class {block.title}(Block):"):
            code.text(f'"""{self.describe(replace(block.graph, inputs=tuple(block.given)))}"""')
            code.add()
            if any(o.param.rates for o in block.site.own):
                code.add("rates = RATES")
                code.add()
            mode = f'mode="{next(m.name for m in block.modes)}", ' if many else ""
            with code.indent(f"def __init__(self, {mode}device=None):"):
                code.add(f"super().__init__(PARAMETERS, device{buffers([(o.name, o.param) for o in block.site.own])})")
                if many:
                    code.add("self.mode = mode")
            code.add()
            args = [f"{n}=None" if v.name in block.optional else n for n, v in zip(given, block.given)]
            with code.indent(f"def forward({', '.join(['self', *args])}):"):
                if bare is not None:
                    with code.indent(f"if {names[min(block.optional)]} is None:"):
                        self.without_loss(bare, many, names)
                code.add(f"return {self.running(many)}({', '.join(self.passed(block, names))})")
            if self.stepping is not None:
                decode_methods(code, block, self.stepping, bool(block.site.own))

    def functions(self, name: str, block: Block) -> None:
        """A table of the autograd functions of all modes."""
        with self.code.indent(f"{name} = {{"):
            for m in block.modes:
                self.code.add(f'"{m.name}": {block.autograd(m)},')
        self.code.lines += ["}", "", ""]

    def without_loss(self, bare: Block, many: bool, names: dict[str, str]) -> None:
        """Return what there is without targets, None for the rest."""
        run = "WITHOUT_LOSS[self.mode]" if many else bare.autograd(bare.modes[0])
        call = f"{run}.apply({', '.join(self.passed(bare, names))})"
        made = [identifier(v.name) for v in bare.graph.outputs]
        if len(made) > 1:
            self.code.add(f"{', '.join(made)} = {call}")
        have = iter(made if len(made) > 1 else [call])
        left = [v in bare.graph.outputs for v in self.block.graph.outputs]
        self.code.add(f"return {', '.join(next(have) if x else 'None' for x in left)}")

    def running(self, many: bool) -> str:
        if not self.program.train:
            return self.chosen("forward", [identifier(v.name) for v in self.block.given], self.block.given)
        return "FUNCTIONS[self.mode].apply" if many else f"{self.block.autograd(self.block.modes[0])}.apply"

    def passed(self, block: Block, names: dict[str, str]) -> list[str]:
        """The arguments of the block's functions as its module has them."""
        out: list[str] = []
        for v in block.graph.inputs:
            if v == self.block.wrapped:
                out.append("Wrapped(self.wrapped)")
            elif v.name in names:
                out.append(names[v.name])
            elif "*weights(self)" not in out:
                out.append("*weights(self)")
        return out


def results(graph: Graph, taken: Sequence[str]) -> list[str]:
    """Names of a graph's results that do not clash with its arguments."""
    out: list[str] = []
    for v in graph.outputs:
        out.append(identifier(v.name, {*taken, *out, "ctx", "saved"}))
    return out


def rows_of(name: str, rows: Sequence[str]) -> list[str]:
    """A tuple of tuples, one a line, unless there is only one."""
    if len(rows) == 1:
        return fit(f"{name} = ({rows[0]},)")
    return [f"{name} = (", *(f"    {row}," for row in rows), ")"]


def buffers(own: Sequence[tuple[str, Param]]) -> str:
    """A further argument of what makes these parameters, of the names that no gradient moves, where there are any."""
    fixed = [label(name) for name, p in own if p.fixed]
    return f", {tuple_of(repr(name) for name in fixed)}".replace("'", '"') if fixed else ""


def _map(items: Mapping[str, float]) -> str:
    return "{" + ", ".join(f'"{k}": {v!r}' for k, v in items.items()) + "}"


def initial(program: Program, p: Param) -> tuple[str, float | tuple[float, float]]:
    """(kind, value) of an initialisation worked out to numbers: xavier is uniform with its bound."""
    if p.init.kind == "between":
        return "between", (p.init.value, p.init.high)
    if p.init.kind != "xavier":
        return p.init.kind, float(p.init.value)
    sizes = Sizes.of(program)
    return "uniform", xavier_bound(p.init, p.dims, {d: sizes.frozen(d) for d in p.dims})
