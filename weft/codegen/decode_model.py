"""The Model's methods for decoding, and what they return."""

from collections.abc import Sequence
from typing import Any

from weft.ir.names import identifier
from weft.ir.types import Node, Val
from weft.passes.blocks import key
from weft.passes.structure import Borrowed, Given, Site, Stack

from .body import File
from .decoding import Decoding
from .lines import Lines, tuple_of
from .model_forward import carried
from .mounts import Mounts
from .stepping import TIME


class DecodeWriter:
    """The classes and methods for decoding in model.py."""

    def __init__(self, mounts: Mounts, file: File, found: Decoding) -> None:
        self.mounts, self.file, self.found, self.sizes = mounts, file, found, mounts.sizes
        self.model, self.program, self.carried = mounts.model, mounts.program, carried(mounts.model)

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
        code.add()
        with code.indent("def state(self, batch):"):
            code.text('"""The state before the first position."""')
            code.add("like = next(p for p in self.parameters() if p.is_floating_point())")
            code.add("blocks = []")
            for step in self.model.steps:
                self.each(code, step, lambda where: f"blocks.append({where}.state(batch, like))")
            code.add('return State.first(batch, LIMITS.get("batch"), blocks, like.device)')
        public = [v for v in (self.program.input(n) for n in self.program.inputs) if self.reads(v)]
        self.prefill(code, public)
        self.step(code, public)

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

    def prefill(self, code: Lines, public: Sequence[Val]) -> None:
        names = [identifier(v.name) for v in public]
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def prefill(self, {', '.join(names)}, lengths=None, state=None):"):
            code.text('"""The results of a prompt [batch, positions], and the state after it.')
            code.add()
            code.text(
                "lengths [batch]: how many positions are each row's own, where rows differ; those behind are padding.\n"
                'state: what came before the prompt."""'
            )
            with code.indent("if state is not None:"):
                code.add(f"return self.step({', '.join(names)}, state, lengths)")
            self.run(code, public, names, "prefill")

    def step(self, code: Lines, public: Sequence[Val]) -> None:
        names = [identifier(v.name) for v in public]
        code.add()
        code.add("@torch.no_grad()")
        with code.indent(f"def step(self, {', '.join(names)}, state, lengths=None):"):
            code.text('"""The results of the next position [batch] or positions [batch, n], and the state after them.')
            code.add()
            code.text("lengths [batch]: as in `prefill`; a row may have none.\n" + '"""')
            self.run(code, public, names, "step")

    def run(self, code: Lines, public: Sequence[Val], names: Sequence[str], method: str) -> None:
        """What `prefill` and `step` share: the blocks in order."""
        given = ", ".join(f'"{n}": {n}' for n in names)
        more = ", state" if method == "step" else ""
        code.add(f"fed, {tuple_of(names)} = feed({{{given}}}, SIGNATURE, FIXED, LIMITS, RANGES, lengths{more})")
        if method == "step":
            code.add("past = iter(state.blocks)")
        code.add("left = []")
        env = {v.name: n for v, n in zip(public, names)}
        for step in self.model.steps:
            self.walk(code, step, env, method)
        results: list[str] = []
        for _, v in self.found.outputs(self.model):
            axis = v.dims.index(TIME) if TIME in v.dims and method == "step" else -1
            results.append(env[v.name] if axis < 0 else f"fed.shown({env[v.name]}{f', {axis}' if axis != 1 else ''})")
        code.add(f"return Step({', '.join(results)}), fed.after(left)")

    def reads(self, public: Val) -> bool:
        """Does any block's step read this public input?"""
        for site in self.model.sites:
            used = {v.name for v in self.found.steps[key(site)].step.inputs}
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

    def walk(self, code: Lines, step: object, env: dict[str, str], method: str) -> None:
        """One step of the model: a block, or a stack of them."""
        if isinstance(step, Site):
            self.call(code, step, env, self.mounts.place(step), "", method)
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
                    self.call(code, site, inner, self.mounts.place(site, "i"), "i", method)
            for v, o in zip(body.outputs[: step.loop.carries], node.outs):
                env[o.name] = inner[v.name]
        else:
            assert isinstance(step, Node)

    def call(self, code: Lines, site: Site, env: dict[str, str], where: str, i: str, method: str) -> None:
        s = self.found.steps[key(site)]
        used = {v.name for v in (s.step if method == "step" else s.prefill).inputs}
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
        rest = ["fed", "next(past)"] if method == "step" else ["fed"]
        code.add(f"{', '.join([*outs, 'new'])} = {where}.{method}({', '.join([*args, *rest])})")
        code.add("left.append(new)")

    def carry_name(self, site: Site) -> str:
        """The variable that a stack's running value goes by."""
        stack = next(x for x in self.model.steps if isinstance(x, Stack) and site in x.sites)
        return identifier(stack.loop.body.inputs[0].name)
