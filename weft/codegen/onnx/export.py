"""A program as two ONNX files: one that runs anywhere, one to look at.

`portable.onnx`: opset 23, plain operators, runs in ONNX Runtime; float32 throughout, run-time dims stay open, masks
are predicates computed in the graph, weights are inputs under their logical names or, on request, in the file.
`semantic.onnx`: the same model as one node per block, each a local function, with the block's spec line, parameters
and FLOPs in its metadata."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from weft import outputs
from weft.codegen.onnx.emitter import Emitter, info
from weft.codegen.onnx.weights import MOST_INSIDE, Weights, beside, inside
from weft.errors import BackendError, UsageError
from weft.ir.composite import Call, expansion
from weft.ir.graphs import dce
from weft.ir.ops.op import body_of
from weft.ir.ops.primitives import Opaque
from weft.ir.program import Program
from weft.ir.types import Graph, Node, Type
from weft.passes.inference import inference
from weft.progress import doing

OPSET, IR_VERSION = 23, 10  # the newest that ONNX Runtime is known to take with every operator used here
DOMAIN = "weft"
BESIDE = "weights.bin"


def export(
    program: Program, folder: Path, weights: str | os.PathLike[str] | None = None, external: bool = False
) -> dict[str, Path]:
    """Write portable.onnx and semantic.onnx, both checked, into `folder`; returns the paths written, by name.

    A program lowered for training is exported without its losses and dropout. weights: a file of them (see `Weights`),
    to stand in the graphs instead of inputs; external, or where they are over 2 GB: in weights.bin beside them, which
    both graphs read. Raises FileError for such a file, UsageError for what ONNX cannot say (a wrapped module), and
    onnx.checker.ValidationError, with nothing written, if a file would be invalid."""
    program = inference(program)
    held = Weights.read(weights, program) if weights is not None else None
    doing("exporting to ONNX", 0, 4)
    models = {"portable": portable(program), "semantic": semantic(program)}
    for i, model in enumerate(models.values()):
        doing("checking the ONNX graphs", 2 + i, 4)
        onnx.checker.check_model(model, full_check=True)
    paths = {name: folder / f"{name}.onnx" for name in models}
    with outputs.Batch() as batch:
        batch.folder(folder)
        first = models["portable"]
        if held is not None and (external or held.size(first) > MOST_INSIDE):
            paths["weights"] = folder / BESIDE
            batch.fill(paths["weights"], lambda fd: held.write(fd, first))
            models = {name: beside(model, held, BESIDE) for name, model in models.items()}
        elif held is not None:
            models = {name: inside(model, held) for name, model in models.items()}
        for name, model in models.items():
            batch.add(paths[name], model.SerializeToString(deterministic=True))
    return paths


def portable(program: Program) -> onnx.ModelProto:
    """The model in plain operators; a stack of blocks is unrolled, a recurrence is a Scan."""
    return _model(program, _emitter(program), [])


def semantic(program: Program) -> onnx.ModelProto:
    """The model as one node per block."""
    blocks = _Blocks(program)
    return _model(program, _emitter(program, blocks), blocks)


def _sizes(program: Program) -> dict[str, Any]:
    return {d: n for d, n in program.sizes.items() if d not in program.runtime}


def _longest(program: Program) -> dict[str, int]:
    return program.resolve(**{d: r.max for d, r in program.runtime.items()})


def _emitter(program: Program, call: Any = None, asked: list[str] | None = None) -> Emitter:
    return Emitter(_sizes(program), _longest(program), call=call, asked=asked)


def _model(program: Program, e: Emitter, blocks: "_Blocks | Sequence[Any]") -> onnx.ModelProto:
    graph, sizes = dce(program.graph), _sizes(program)
    _refuse_opaque(graph)
    types = {name: program.input(name).type for name in program.inputs}
    operands: dict[str, Any] = {name: name for name in program.inputs}
    counts = program.resolve()
    for p in program.params:
        names = [p.logical(i) for i in range(p.rows(counts))]
        types |= {name: Type(p.dtype, p.dims) for name in names}
        operands[p.value] = names if p.stack else names[0]
    for name in program.inputs:
        e.know(program.input(name), name)
    out = e.graph(graph, [operands[v.name] for v in graph.inputs])
    results = [e.node("Identity", name) for name in out]
    for node, name in zip(e.nodes[-len(results) :], program.outputs, strict=True):
        node.output[0] = name
    outs = [info(name, v.type, sizes) for name, v in zip(program.outputs, graph.outputs)]
    proto = helper.make_graph(e.nodes, program.name, [info(n, t, sizes) for n, t in types.items()], outs)
    functions = list(blocks.functions.values()) if isinstance(blocks, _Blocks) else []
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(DOMAIN, 1)] if functions else [])]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)
    model.producer_name = "weft"
    props = {"weft.name": program.name, "weft.source": program.source, "weft.dtype": dtypes(program)}
    helper.set_model_props(model, {k: v for k, v in props.items() if v or k != "weft.dtype"})
    return model


def dtypes(program: Program) -> str:
    """What becomes of the spec's own dtypes; "" where they are those of the files."""
    policy = {k: getattr(program.policy, k) for k in ("params", "compute", "accumulate")}
    if set(policy.values()) == {"f32"}:
        return ""
    said = ", ".join(f"{k} {v}" for k, v in policy.items())
    return f"the graphs and their weights are float32, which runs everywhere; the spec says {said}"


def _refuse_opaque(graph: Graph) -> None:
    for n in graph.nodes:
        if isinstance(n.op, Opaque):
            raise UsageError(f"{n.src or n.outs[0].name}: a wrapped module has no ONNX form; export it by itself")
        if (body := body_of(n.op)) is not None:
            _refuse_opaque(body)


class _Blocks:
    """Turns each Call into one node of a local function; equal bodies share the function. It is handed the sizes of
    run-time dims that it makes and none of its values has, as a head that is the same for every row."""

    def __init__(self, program: Program) -> None:
        self.program, self.counts = program, program.resolve()
        self.functions: dict[tuple[Any, ...], onnx.FunctionProto] = {}
        self.asked: dict[tuple[Any, ...], list[str]] = {}

    def __call__(self, e: Emitter, node: Node, x: Sequence[Any]) -> tuple[str, ...]:
        op: Any = node.op
        key = (op.body, node.types)
        if key not in self.functions:
            asked = self.asked[key] = []
            self.functions[key] = self.function(op, f"{op.name}_{len(self.functions)}", node, asked)
        function = self.functions[key]
        names = [e.name() for _ in function.output]
        sizes = [e.size(d) for d in self.asked[key]]
        proto = helper.make_node(function.name, [*x, *sizes], names, domain=DOMAIN, name=f"{op.name}_{e.counter[0]}")
        for label, value in self.metadata(op, node).items():
            proto.metadata_props.append(onnx.StringStringEntryProto(key=label, value=value))
        e.nodes.append(proto)
        return tuple(names)

    def metadata(self, op: Call, node: Node) -> dict[str, str]:
        formula = op.flops(node)
        flops = formula.subs({s: self.counts[str(s)[2:]] for s in formula.free_symbols})
        small = {d: self.counts[d] for d in self.program.runtime}
        return {
            "weft.block": op.name,
            "weft.src": node.src,
            "weft.ops": str(len(op.body.nodes)),
            "weft.flops": f"{int(flops)} at {small}",
        }

    def function(self, op: Call, name: str, node: Node, asked: list[str]) -> onnx.FunctionProto:
        body = expansion(op, node.types)
        e = _emitter(self.program, asked=asked)
        ins = [f"x{i}" for i in range(len(body.inputs))]
        for v, at in zip(body.inputs, ins):
            e.know(v, at)
        out = [e.node("Identity", v) for v in e.graph(body, ins)]
        opsets = [helper.make_opsetid("", OPSET)]
        ins += [f"n_{d}" for d in asked]
        return helper.make_function(DOMAIN, name, ins, out, _needed(e.nodes, out), opsets)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, subgraphs' reads of outer values counted."""
    live, keep = set(outputs), []
    for n in reversed(nodes):
        if any(o in live for o in n.output):
            keep.append(n)
            live |= set(n.input) | {i for a in n.attribute if a.HasField("g") for m in a.g.node for i in m.input}
    return keep[::-1]


def run(program: Program, path: Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of an exported file by name, as ONNX Runtime computes them from named numpy arrays.

    Raises BackendError where onnxruntime is missing."""
    try:
        import onnxruntime  # it is an extra of the package
    except ImportError:
        raise BackendError("onnxruntime is not installed: pip install 'weft[onnx]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    outputs = session.run(None, {k: v for k, v in arrays.items() if k in wanted})
    return dict(zip(program.outputs, outputs, strict=True))
