"""The decode part of a block's file: step, prefill, the empty state, and the module's methods for them."""

from collections.abc import Mapping

from weft.ir.types import Graph, Val

from .blocks import Block
from .body import File, floats
from .composites import known
from .function import Function, print_function
from .lines import Lines, tuple_of
from .prepare import prepare
from .sizes import identifier
from .spelling import TORCH_DTYPE
from .stepping import Stepping


def decode_functions(file: File, s: Stepping) -> list[Function]:
    """The functions of a block's file for decoding; their sizes are the step's."""
    own = File(s.sizes, file.constants, file.objects, file.functions, file.imports, file.floats | floats(s.step))
    count = len(s.outputs)
    cut: dict[int, str] = {}
    for i, v in enumerate(s.step.outputs[count:]):
        kept = s.window(i)
        if kept is not None:
            axis = v.dims.index(_key(s, i))
            cut[count + i] = f"[{':, ' * axis}{f'-{kept}:' if kept else ':0'}]"
    step = print_function(own, "step", prepare(s.step, known), "One new position; then the state after it.", last=cut)
    whole = File(s.sizes.equal(time_keys(s)), file.constants, file.objects, file.functions, file.imports, own.floats)
    prefill = print_function(
        whole, "prefill", prepare(s.prefill, known), "A prompt; then the state after it.", last=cut
    )
    found = [step, prefill]
    if s.start.outputs:
        start = print_function(
            own, "start", prepare(s.start, known), "The first values of what is carried.", given=("batch",)
        )
        found.append(start)
    return found


def time_keys(s: Stepping) -> Mapping[str, str]:
    """Key dims of a step -> the time dim they are in a prefill."""
    return {_key(s, i): "seq" for i, state in enumerate(s.states) if state.kind != "carry"}


def _key(s: Stepping, i: int) -> str:
    """The dim of past and new rows together in state i."""
    return s.states[i].past.removeprefix("past_")


def decode_methods(code: Lines, block: Block, s: Stepping, weights: bool) -> None:
    """step, prefill and state of the module, at the depth of `code`."""
    given = {v.name for v in block.given}
    m = len(s.outputs)
    outs = [identifier(f"out_{i}" if m > 1 else "out") for i in range(m)]
    many = m + len(s.states) > 1

    def method(name: str, graph: Graph, extra: str, passed: str, doc: str) -> None:
        args = [identifier(v.name) for v in graph.inputs if v.name in given]
        with code.indent(f"def {name}(self, {', '.join([*args, *([extra] if extra else [])])}):"):
            code.text(f'"""{doc}"""')
            call = f"{name}({', '.join(arguments(graph, given, weights, passed))})"
            if many:
                code.add(f"{', '.join([*outs, '*now'])} = {call}")
                code.add(f"return {', '.join(outs)}, tuple(now)")
            else:
                code.add(f"return {call}, ()")
        code.add()

    code.add()
    method("step", s.step, "pos, past", "pos, *past", "The results at position `pos`, and the state after it.")
    method("prefill", s.prefill, "", "", "The results of a prompt, and the state after it.")
    with code.indent("def state(self, batch, like):"):
        code.text('"""The state before the first position; `like` is a parameter."""')
        rows = [_empty(s, i) for i, state in enumerate(s.states) if state.kind != "carry"]
        kinds = [state.kind for state in s.states]
        if s.start.outputs:
            args = arguments(s.start, given, weights, "batch")
            code.add(f"carried = start({', '.join(args)})")
            first = iter(range(len(s.start.outputs)))
            one = len(s.start.outputs) == 1
            empty = iter(rows)
            items = [("carried" if one else f"carried[{next(first)}]") if k == "carry" else next(empty) for k in kinds]
        else:
            items = rows
        code.add(f"return {tuple_of(items) if items else '()'}")


def arguments(graph: Graph, given: set[str], weights: bool, passed: str) -> list[str]:
    """The arguments of a decode function as its method has them: values, own parameters, values, what `passed` says."""
    out: list[str] = []
    for v in graph.inputs:
        if v.name in given:
            out.append(identifier(v.name))
        elif weights and "*weights(self)" not in out and not v.name.startswith("past_") and v.name != "pos":
            out.append("*weights(self)")
    return [*out, *([passed] if passed else [])]


def _empty(s: Stepping, i: int) -> str:
    """A state of no rows."""
    state: Val = s.states[i].value
    shape = ", ".join(
        "0" if d == s.states[i].past else "batch" if d == "batch" else str(s.sizes.number(d)) for d in state.dims
    )
    if state.dtype == "f32":
        return f"like.new_zeros({shape})"
    return f"torch.zeros({shape}, dtype={TORCH_DTYPE[state.dtype]}, device=like.device)"
