"""The decode part of a block's file: step, prefill, what is made once, the empty state, and the module's methods."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from weft.codegen.package.stepping import Stepping
from weft.codegen.torch.body import File, floats
from weft.codegen.torch.composites import known
from weft.codegen.torch.function import Function, print_function
from weft.codegen.torch.lines import Lines, tuple_of
from weft.codegen.torch.spelling import TORCH_DTYPE
from weft.ir.names import identifier
from weft.ir.types import Graph
from weft.passes.blocks import Block
from weft.passes.decode.step import ROWS, StepState
from weft.passes.opened import prepare


def decode_functions(file: File, s: Stepping, stored: Collection[str]) -> list[Function]:
    """The functions of a block's file for decoding; their sizes are the step's. stored: the model's float dtypes."""
    own = File(s.sizes, file.constants, file.objects, file.functions, file.floats | floats(s.step))
    doc = "New positions; then the state after them."
    step = print_function(own, "step", prepare(s.step, known), doc)
    whole = File(s.sizes.equal(time_keys(s)), file.constants, file.objects, file.functions, own.floats)
    found = [step, print_function(whole, "prefill", prepare(s.prefill, known), "A prompt; then the state after it.")]
    if s.constants:
        once = prepare(s.constant, known)
        found.append(print_function(own, "constant", once, "What steps read of what is whole before the first."))
    if s.start.outputs:
        first = prepare(s.start, known)
        where = "" if first.inputs else "like"
        at = replace(own, floats=own.floats | set(stored)) if where else own
        doc = "The first values of what is carried."
        found.append(print_function(at, "start", first, doc, given=("batch",), like=where))
    return found


def time_keys(s: Stepping) -> Mapping[str, str]:
    """Key dims of a step -> the time dim they are in a prefill."""
    return {row.past.removeprefix("past_"): s.time for row in s.rows}


def decode_methods(code: Lines, block: Block, s: Stepping, weights: bool) -> None:
    """step, prefill and state of the module, at the depth of `code`."""
    code.add()
    _method(code, block, s, "step", weights)
    _method(code, block, s, "prefill", weights)
    read = _given(block, s.constant)
    with code.indent(f"def state(self, {', '.join(['batch', 'like', *read])}):"):
        code.text('"""What is left behind before the first position; `like` is a parameter."""')
        _constants(code, block, s, weights)
        carried = "()"
        if s.start.outputs:
            more = ["batch"] if s.start.inputs else ["batch", "like"]
            carried = f"start({', '.join(_arguments(block, s, s.start, weights, more))})"
            carried = f"({carried},)" if len(s.start.outputs) == 1 else carried
        rows = tuple_of(_empty(s, row) for row in s.rows) if s.rows else "()"
        parts = [rows, carried, _kept(s)] if s.states else []
        code.add(f"return Past({', '.join([*parts, *(['constant=held'] if s.constants else [])])})")


def _given(block: Block, *graphs: Graph) -> list[str]:
    """What the graphs read of the block's given values, by the names they have in its file."""
    read = {v.name for graph in graphs for v in graph.inputs}
    return [identifier(v.name) for v in block.given if v.name in read]


def _constants(code: Lines, block: Block, s: Stepping, weights: bool) -> None:
    """A line that makes what steps read of whole values."""
    if s.constants:
        made = f"constant({', '.join(_arguments(block, s, s.constant, weights, []))})"
        code.add(f"held = ({made},)" if len(s.constants) == 1 else f"held = {made}")


def _kept(s: Stepping) -> str:
    """How many rows each state keeps, as a tuple."""
    return tuple_of(map(str, s.kept)) if s.kept else "()"


def _method(code: Lines, block: Block, s: Stepping, name: str, weights: bool) -> None:
    """`step` or `prefill`: the block's results, and what is left behind."""
    graph, past = (s.step, ["past"]) if name == "step" else (s.prefill, [])
    first = name == "prefill"
    outs = [f"out_{i}" if len(s.outputs) > 1 else "out" for i in range(len(s.outputs))]
    rows, carries = len(s.rows), len(s.states) - len(s.rows)
    taken = _given(block, graph, s.constant) if first else _given(block, graph)
    with code.indent(f"def {name}(self, {', '.join([*taken, 'fed', *past])}):"):
        shown = "the positions that are fed" if past else "a prompt"
        code.text(f'"""The results of {shown}, and what is left behind for later ones."""')
        if first:
            _constants(code, block, s, weights)
        elif s.constants:
            code.add("held = past.constant")
        held = [f"*past.{part}" for part, n in (("rows", rows), ("carried", carries)) if n and past]
        call = f"{name}({', '.join(_arguments(block, s, graph, weights, held))})"
        now = ["*now"] if s.states else []
        if outs or now:
            code.add(f"{', '.join([*outs, *now])} = {call}")
        left = f"fed.left({', '.join(['now', _kept(s), *(['held'] if s.constants else [])])})" if now else "Past()"
        left = "Past(constant=held)" if s.constants and not now else left
        code.add(f"return {', '.join([*outs, left])}")
    code.add()


def _arguments(block: Block, s: Stepping, graph: Graph, weights: bool, more: list[str]) -> list[str]:
    """The arguments of a decode function as its method has them: values, own parameters, what is fed, and `more`."""
    given, fed = {v.name for v in block.given}, {s.fed.pos: "fed.pos", s.fed.at: "fed.at", s.fed.real: "fed.real"}
    held = {state.value for state in s.states}
    once = {v.name for v in s.constants}
    out: list[str] = []
    for v in graph.inputs:
        if v.name in given:
            out.append(identifier(v.name))
        elif v in fed:
            out.append(fed[v])
        elif v.name in once and graph is not s.constant:
            out += ["*held"] if "*held" not in out else []
        elif weights and "*weights(self)" not in out and v not in held:
            out.append("*weights(self)")
    return [*out, *more]


def _empty(s: Stepping, state: StepState) -> str:
    """A state of no rows."""
    dims = state.value.dims
    shape = ", ".join("0" if d == state.past else "batch" if d == ROWS else str(s.sizes.number(d)) for d in dims)
    if state.value.dtype == "f32":
        return f"like.new_zeros({shape})"
    return f"torch.zeros({shape}, dtype={TORCH_DTYPE[state.value.dtype]}, device=like.device)"
