"""The Model's methods for decoding, and what they return."""

from collections.abc import Mapping, Sequence

from weft.codegen.package.decoding import Decoding
from weft.codegen.package.model_forward import carried
from weft.codegen.package.mounts import Mounts
from weft.codegen.torch.body import File
from weft.codegen.torch.lines import Lines, tuple_of
from weft.ir.names import identifier
from weft.ir.types import Graph, Val
from weft.passes.blocks import key
from weft.passes.structure import Borrowed, CallSite, Given, Stack


class DecodeWriter:
    """The classes and methods for decoding in model.py."""

    def __init__(self, mounts: Mounts, file: File, found: Decoding) -> None:
        self.mounts, self.file, self.found, self.sizes = mounts, file, found, mounts.sizes
        self.model, self.program, self.carried = mounts.model, mounts.program, carried(mounts.model)
        self.crossing = self.crossed()

    def classes(self, code: Lines) -> None:
        names = self.sizes.names
        code.add("@exported")
        with code.indent("class Step(NamedTuple):"):
            code.text('"""What decoding returns; `step` without the dim of positions."""')
            code.add()
            for name, v in self.found.outputs(self.model):
                code.add(f"{identifier(name)}: Tensor", f"[{' '.join(names[d] for d in v.dims)}]")
        code.lines += ["", ""]

    def methods(self, code: Lines) -> None:
        if self.found.why:
            self.refusals(code)
            return
        public = [v for v in (self.program.input(n) for n in self.program.inputs) if self.reads(v)]
        once = [v for v in public if v in self.found.whole]
        grow = [v for v in public if v not in self.found.whole]
        if self.crossing:
            self.encode(code, once)
        self.state(code, once)
        self.prefill(code, once, grow)
        self.step(code, grow)

    def state(self, code: Lines, once: Sequence[Val]) -> None:
        code.add()
        names = [identifier(v.name) for v in once]
        code.add("@torch.no_grad()") if once else None
        with code.indent(f"def state(self, {', '.join(names or ['batch'])}):"):
            code.text('"""The state before the first position."""')
            if once:
                self.encoded(code, names)
                code.add(f"batch = {names[0]}.shape[0]")
            code.add("like = next(p for p in self.parameters() if p.is_floating_point())")
            code.add("blocks = []")
            env = self.names(once)
            for step in self.model.steps:
                self.each(code, step, env)
            code.add('return State.first(batch, LIMITS.get("batch"), blocks, like.device)')

    def refusals(self, code: Lines) -> None:
        for name in ("state", "prefill", "step"):
            code.add()
            with code.indent(f"def {name}(self, *_):"):
                code.add(f'raise NotImplementedError("this model cannot decode: {self.found.why}")')

    def each(self, code: Lines, step: object, env: Mapping[str, str]) -> None:
        """One line for the first state of every block of a step that grows, in a loop for a stack."""
        if isinstance(step, CallSite):
            self.first(code, step, env, "")
        elif isinstance(step, Stack) and any(key(s) in self.found.steps for s in step.sites):
            inner = {v.name: env[o.name] for v, o in zip(step.loop.body.inputs, step.node.ins) if o.name in env}
            with code.indent(f"for i in range({self.file.constant(step.loop.dim)}):"):
                for site in step.sites:
                    self.first(code, site, inner, "i")

    def first(self, code: Lines, site: CallSite, env: Mapping[str, str], i: str) -> None:
        if key(site) in self.found.steps:
            given = self.given(site, env, i, self.found.steps[key(site)].constant)
            code.add(f"blocks.append({self.mounts.place(site, i)}.state({', '.join(['batch', 'like', *given])}))")

    def crossed(self) -> list[Val]:
        """The values of streams that are read once which blocks that grow read in decoding, public inputs apart."""
        read: list[Val] = []
        for site in (s for s in self.model.sites if key(s) in self.found.steps):
            used = {v.name for v in self.found.steps[key(site)].constant.inputs}
            here = zip(site.body.inputs, site.sources)
            read += [self.outer(site, s.value) for v, s in here if isinstance(s, Given) and v.name in used]
        return [v for v in dict.fromkeys(read) if v.name not in self.program.inputs]

    def names(self, once: Sequence[Val]) -> dict[str, str]:
        """What whole values are called in the methods."""
        return {v.name: identifier(v.name) for v in once} | {v.name: self.stream(v) for v in self.crossing}

    def stream(self, v: Val) -> str:
        """The name of the stream that a value belongs to; of what is counted in it its own name too."""
        along = {d for dim in v.dims for d in self.sizes.base(dim)}
        stream = next(s.name for s in self.program.streams if s.length in along)
        return identifier(stream if v.type.floating else f"{stream}_{v.name}")

    def encoded(self, code: Lines, names: Sequence[str]) -> None:
        """A line that reads the streams which are read once."""
        if self.crossing:
            code.add(f"{', '.join(map(self.stream, self.crossing))} = self.encode({', '.join(names)})")
        else:
            code.add(f"check_whole({{{_named(names)}}}, SIGNATURE, FIXED, LIMITS, RANGES)")

    def encode(self, code: Lines, once: Sequence[Val]) -> None:
        names = [identifier(v.name) for v in once]
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def encode(self, {', '.join(names)}):"):
            code.text('"""What is read whole before the first position."""')
            code.add(f"check_whole({{{_named(names)}}}, SIGNATURE, FIXED, LIMITS, RANGES)")
            env = {v.name: n for v, n in zip(once, names)}
            for step in self.model.steps:
                self.walk(code, step, env, "forward")
            code.add(f"return {', '.join(env[v.name] for v in self.crossing)}")

    def prefill(self, code: Lines, once: Sequence[Val], grow: Sequence[Val]) -> None:
        names = [identifier(v.name) for v in grow]
        before = [identifier(v.name) for v in once]
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def prefill(self, {', '.join([*before, *names])}, lengths=None, state=None):"):
            code.text('"""The results of a prompt [batch, positions], and the state after it.')
            code.add()
            instead = f", instead of {' and '.join(before)}" if before else ""
            code.text(
                "lengths [batch]: how many positions are each row's own, where rows differ; those behind are padding.\n"
                f'state: what came before the prompt{instead}."""'
            )
            with code.indent("if state is not None:"):
                code.add(f"return self.step({', '.join(names)}, state, lengths)")
            if once:
                self.encoded(code, before)
            self.run(code, grow, self.names(once), "prefill")

    def step(self, code: Lines, grow: Sequence[Val]) -> None:
        names = [identifier(v.name) for v in grow]
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def step(self, {', '.join(names)}, state, lengths=None):"):
            code.text('"""The results of the next position [batch] or positions [batch, n], and the state after them.')
            code.add()
            code.text("lengths [batch]: as in `prefill`; a row may have none.\n" + '"""')
            self.run(code, grow, {}, "step")

    def run(self, code: Lines, public: Sequence[Val], env: dict[str, str], method: str) -> None:
        """What `prefill` and `step` share: the blocks in order. env: what whole values are called."""
        names, (time,) = [identifier(v.name) for v in public], self.program.growing
        of = f'"{self.sizes.names[time]}"'
        more = ", state" if method == "step" else ""
        code.add(
            f"fed, {tuple_of(names)} = feed({{{_named(names)}}}, {of}, SIGNATURE, FIXED, LIMITS, RANGES, lengths{more})"
        )
        if method == "step":
            code.add("past = iter(state.blocks)")
        code.add("left = []")
        env = {**env, **{v.name: n for v, n in zip(public, names)}}
        for step in self.model.steps:
            self.walk(code, step, env, method)
        results: list[str] = []
        for _, v in self.found.outputs(self.model):
            axis = v.dims.index(time) if time in v.dims and method == "step" else -1
            results.append(env[v.name] if axis < 0 else f"fed.shown({env[v.name]}{f', {axis}' if axis != 1 else ''})")
        code.add(f"return Step({', '.join(results)}), fed.after(left)")

    def reads(self, public: Val) -> bool:
        """Does any block read this public input in decoding?"""
        for site in self.model.sites:
            s = self.found.steps.get(key(site))
            graphs = [site.body] if s is None else [s.step, s.constant]
            used = {v.name for graph in graphs for v in graph.inputs}
            for v, source in zip(site.body.inputs, site.sources):
                if isinstance(source, Given) and v.name in used and self.outer(site, source.value) == public:
                    return bool(public.dims)
        return False

    def outer(self, site: CallSite, v: Val) -> Val:
        """The value at the top that a call reads."""
        for step in self.model.steps:
            if isinstance(step, Stack) and any(s is site for s in step.sites) and v in step.loop.body.inputs:
                return step.node.ins[step.loop.body.inputs.index(v)]
        return v

    def walk(self, code: Lines, step: object, env: dict[str, str], method: str) -> None:
        """One step of the model, if it runs in this method: a block, or a stack of them."""
        if isinstance(step, CallSite) and self.runs(step, method):
            self.call(code, step, env, "", method)
        elif isinstance(step, Stack) and any(self.runs(s, method) for s in step.sites):
            body, node = step.loop.body, step.node
            inner = {v.name: env[o.name] for v, o in zip(body.inputs, node.ins) if o.name in env}
            for i in range(step.loop.carries):
                name = identifier(body.inputs[i].name)
                if inner[body.inputs[i].name] != name:
                    code.add(f"{name} = {inner[body.inputs[i].name]}")
                inner[body.inputs[i].name] = name
            with code.indent(f"for i in range({self.file.constant(step.loop.dim)}):"):
                for site in step.sites:
                    self.call(code, site, inner, "i", method)
            for v, o in zip(body.outputs[: step.loop.carries], node.outs):
                env[o.name] = inner[v.name]

    def runs(self, site: CallSite, method: str) -> bool:
        """Blocks that grow run in `prefill` and `step`, the others in `encode`."""
        return (key(site) in self.found.steps) == (method != "forward")

    def call(self, code: Lines, site: CallSite, env: dict[str, str], i: str, method: str) -> None:
        where, s = self.mounts.place(site, i), self.found.steps.get(key(site))
        graphs = [site.body] if s is None else [s.step] if method == "step" else [s.prefill, s.constant]
        args = self.given(site, env, i, *graphs)
        outs: list[str] = []
        for j in range(len(site.node.outs)) if s is None else s.outputs:
            v = site.node.outs[j]
            name = identifier(self.carried.get(v.name, v.name))
            if site.rows is not None and j == 0:
                name = self.carry_name(site)
            env[v.name] = name
            outs.append(name)
        if s is None:
            code.add(f"{', '.join(outs)} = {where}({', '.join(args)})")
            return
        rest = ["fed", "next(past)"] if method == "step" else ["fed"]
        code.add(f"{', '.join([*outs, 'new'])} = {where}.{method}({', '.join([*args, *rest])})")
        code.add("left.append(new)")

    def given(self, site: CallSite, env: Mapping[str, str], i: str, *graphs: Graph) -> list[str]:
        """The arguments of a block's module, of those values that the graphs read. There is no seed in decoding."""
        used = {v.name for graph in graphs for v in graph.inputs}
        by_input, args = dict(zip(site.body.inputs, site.sources)), list[str]()
        for v in self.mounts.blocks[key(site)].given:
            source = by_input[v]
            if v.name not in used:
                continue
            if isinstance(source, Borrowed):
                args.append(self.mounts.weight(source, i))
            elif isinstance(source, Given) and source.value.name in env:
                args.append(env[source.value.name])
            else:
                public = isinstance(source, Given) and self.outer(site, source.value).name in self.program.inputs
                args.append("None" if public else i or "0")
        return args

    def carry_name(self, site: CallSite) -> str:
        """The variable that a stack's running value goes by."""
        stack = next(x for x in self.model.steps if isinstance(x, Stack) and site in x.sites)
        return identifier(stack.loop.body.inputs[0].name)


def _named(names: Sequence[str]) -> str:
    """Variables by name, as the entries of a dict."""
    return ", ".join(f'"{n}": {n}' for n in names)
