"""An emitted module against the reference interpreter: outputs, gradients, decoding, causality. Imports torch.

The truth is the interpreter in float64, differentiated by torch's autograd, which shares nothing with the emitted
backward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from weft.codegen.check.calling import call
from weft.codegen.check.comparing import Comparison, compare, rms_of
from weft.codegen.check.decode import decoding
from weft.codegen.check.documents import documents
from weft.codegen.check.one_dtype import OneDtype
from weft.codegen.check.stages import COMPARED, DECODED, OWN, REFERENCE, stages
from weft.ir.indices import index_range, lookups, targets
from weft.ir.library.routing import Route
from weft.ir.ops.op import body_of
from weft.ir.program import Program
from weft.ir.reference_model import initial, reference
from weft.ir.types import FLOATS, Graph, Node, Val, torch_dtype
from weft.progress import doing

FREE = "gradients, no targets"
NEAR_TIE = 1e-6  # a routing decision closer than this share of the logits' size may fall either way in float32
DRAWS = 8  # inputs are drawn anew, at most so often, until no routing decision is a near tie
NOISE = 0.01  # added to initial parameters, so that those that start at 0 or 1 count too


@dataclass
class Verified:
    """All comparisons of one verification, and what is to be said about them."""

    rows: list[Comparison] = field(default_factory=list)
    near_ties: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(r.ok for r in self.rows)

    def data(self) -> dict[str, Any]:
        return {
            "rows": [asdict(r) | {"ok": r.ok, "error": r.error if isfinite(r.error) else None} for r in self.rows],
            "near_ties": self.near_ties,
            "notes": self.notes,
            "ok": self.ok,
        }

    def text(self) -> str:
        """The table for people."""
        wide = max(22, *(len(r.check) for r in self.rows)) if self.rows else 22
        head = f"{'check':{wide}} {'dtype':5} {'error':>9} {'tol':>7}  {'worst of':>8}  tensor"
        lines = [
            f"{r.check:{wide}} {r.dtype:5} {r.error:9.1e} {r.tolerance:7.0e}  {r.tensors:8}  {r.worst}"
            + ("" if r.ok else "  FAILED")
            for r in self.rows
        ]
        return "\n".join([head, *lines, *self.notes])


def verify(
    program: Program,
    build: Callable[[], nn.Module],
    mixed: bool = False,
    seed: int = 0,
    wrapped: Mapping[str, nn.Module] | None = None,
) -> Verified:
    """Compare.

    build: makes the emitted module. mixed: its floats are not all float32; it runs in one dtype all the same, and then
    in its own, where it is compared in its outputs alone. seed: of inputs and parameters. wrapped: the modules of
    opaque blocks, by key.
    """
    found = Verified()
    doing("verifying: drawing parameters and inputs")
    sizes, params, inputs, found.near_ties = case(program, seed, wrapped)
    with stages(program, sizes, mixed) as begin:
        begin(REFERENCE)
        truth = Truth(program, params, inputs, sizes, wrapped)
        for dtype in ("f32", "f64"):
            begin(f"{COMPARED} {dtype}")
            module = loaded(build(), params, torch_dtype(torch, dtype))
            with OneDtype(torch_dtype(torch, dtype)) if mixed else nullcontext():
                found.rows += compared(truth, module, dtype)
                if dtype == "f64":
                    begin(DECODED)
                    found.rows += decoding(truth, module, params, sizes, found.notes)
                    found.rows += documents(program, module, truth.inputs)
        if mixed:
            begin(OWN)
            dtype = next(d for d in ("bf16", "f16", "f32") if d in (program.policy.compute, program.policy.params))
            found.rows += _outputs(truth, loaded(build(), params, None), dtype)
    if found.near_ties:
        found.notes.append(
            f"{found.near_ties} routing decisions are near ties (within {NEAR_TIE:g} of the logits' size)"
        )
    return found


def case(
    program: Program, seed: int, wrapped: Mapping[str, nn.Module] | None = None, **run: int
) -> tuple[dict[str, int], dict[str, Tensor], dict[str, Tensor], int]:
    """Sizes, parameters, inputs, and how many routing decisions are near ties: the same for the same seed.

    run: run-time dims of which the call has less than the most, such as `seq=5`."""
    sizes = program.resolve(**_batch(program) | run)
    params = _parameters(program, seed, sizes)
    inputs, ties = _inputs(program, params, sizes, seed, wrapped)
    return sizes, params, inputs, ties


def _batch(program: Program) -> dict[str, int]:
    """Two rows: enough to see rows mixed, except where the spec allows only one."""
    limit = program.runtime.get("batch")
    return {"batch": limit.near(2)} if limit is not None else {}


def _parameters(program: Program, seed: int, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed + 1)
    start = initial(program, torch, seed, **{d: sizes[d] for d in program.runtime})
    noise = {name: torch.randn(p.shape, generator=draw, dtype=torch.float64) for name, p in start.items()}
    return {name: p.double() + NOISE * noise[name] for name, p in start.items()}


def _inputs(
    program: Program,
    params: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    seed: int,
    wrapped: Mapping[str, nn.Module] | None,
) -> tuple[dict[str, Tensor], int]:
    """Random inputs, drawn again while a routing decision is a near tie; and how many near ties are left."""
    ties, given = 0, dict[str, Tensor]()
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(seed + 100 * draw)
        given = {name: _input(program, program.input(name), sizes, generator) for name in program.inputs}
        if not _routes(program.graph):
            return given, 0
        ties = _near_ties(program, params, given, sizes, wrapped)
        if not ties:
            break
    return given, ties


def _input(program: Program, v: Val, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [sizes[d] for d in v.dims]
    if v.dtype in FLOATS:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if v.dtype == "bool":
        keep = torch.rand(shape, generator=generator) > 0.2
        return keep.index_fill(-1, torch.tensor([0]), True) if v.dims else keep
    if program.part(v.name) == "segments":
        return (torch.rand(shape, generator=generator) > 0.9).long().cumsum(-1)
    if not v.dims:
        return torch.randint(0, 2**31, shape, generator=generator)
    drawn = torch.randint(0, index_range(program.graph, v, sizes), shape, generator=generator)
    ignored = [i.ignore for i in lookups(program.graph, v) if i.ignore is not None]
    return drawn.index_fill(-1, torch.tensor([0]), ignored[0]) if ignored and shape[-1] > 1 else drawn


def _routes(graph: Graph) -> bool:
    bodies = [b for n in graph.nodes if (b := body_of(n.op)) is not None]
    return any(isinstance(n.op, Route) for n in graph.nodes) or any(map(_routes, bodies))


def _near_ties(
    program: Program,
    params: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    wrapped: Mapping[str, nn.Module] | None,
) -> int:
    """How many choices of routes are near ties, as the interpreter runs."""
    found: list[int] = []

    def watch(node: Node, x: Sequence[Tensor]) -> None:
        if isinstance(node.op, Route):
            axis = node.types[0].dims.index(node.op.over)
            top = x[0].topk(min(node.op.k + 1, x[0].shape[axis]), axis).values
            size = x[0][x[0].isfinite()].abs().max()  # those outside a token's groups are -oo
            found.append(int((-top.diff(dim=axis) < NEAR_TIE * size).sum()))

    with torch.no_grad():
        reference(program, torch, params, given, sizes, torch.float64, wrapped, watch)
    return sum(found)


class Truth:
    """Outputs and gradients of the interpreter in float64."""

    def __init__(
        self,
        program: Program,
        params: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        wrapped: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.program, self.inputs, self.wrapped = program, inputs, wrapped
        fixed = program.buffers
        values = {name: p.clone().requires_grad_(program.train and name not in fixed) for name, p in params.items()}
        leaves = {name: p for name, p in values.items() if name not in fixed}
        self.outputs = reference(program, torch, values, inputs, sizes, torch.float64, wrapped)
        draw = torch.Generator().manual_seed(7)
        floats = {n: y for n, y in self.outputs.items() if y.is_floating_point()}
        self.weights = {n: torch.randn(y.shape, generator=draw, dtype=torch.float64) for n, y in floats.items()}
        self.first = next(iter(floats))
        self.grads: dict[str, dict[str, Tensor]] = {}
        if program.train:
            for what, names in self.objectives().items():
                total = self.objective(self.outputs, names)
                got = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, materialize_grads=True)
                self.grads[what] = dict(zip(leaves, got))
        self.outputs = {n: y.detach() for n, y in self.outputs.items()}
        # A loss alone may have no gradient but rounding, as that of labels which do not count behind a balanced router.
        self.terms = max(rms_of(g for of in self.grads.values() for g in of.values()), default=0.0)

    def objectives(self) -> dict[str, list[str]]:
        """What is differentiated: a random combination of all outputs, the first one alone, those of a run without
        targets."""
        every = list(self.weights)
        both = {"gradients": every, f"gradients of {self.first}": [self.first]}
        if targets(self.program):
            both[FREE] = [name for name in every if name != self.first]
        return both if len(every) > 1 else {"gradients": every}

    def objective(self, outputs: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        return sum((outputs[n].double() * self.weights[n]).sum() for n in names)  # type: ignore[return-value]


def loaded(module: nn.Module, params: Mapping[str, Tensor], dtype: torch.dtype | None) -> nn.Module:
    """The module with these parameters, all floats in one dtype (None: in its own)."""
    module = module if dtype is None else module.to(dtype)
    own = module.state_dict()
    module.load_state_dict({name: p.to(own[name].dtype) for name, p in params.items()})
    return module.train()


def _run(truth: Truth, module: nn.Module, dtype: torch.dtype | None, left: Sequence[str] = ()) -> dict[str, Tensor]:
    """The module's outputs by name; left: inputs that it is not given."""
    given = {n: x for n, x in truth.inputs.items() if n not in left}
    given = {n: x.to(dtype) if x.is_floating_point() and dtype is not None else x for n, x in given.items()}
    return call(truth.program, module, given)


def _outputs(truth: Truth, module: nn.Module, dtype: str) -> list[Comparison]:
    with torch.no_grad():
        got = _run(truth, module, None)
    return [compare("outputs", dtype, got, truth.outputs)]


def compared(truth: Truth, module: nn.Module, dtype: str) -> list[Comparison]:
    rows: list[Comparison] = []
    for i, (what, out, grads) in enumerate(results(truth, module, dtype)):
        if i == 0:
            rows.append(compare("outputs", dtype, out, truth.outputs))
        if truth.program.train:
            rows.append(compare(what, dtype, grads, truth.grads[what], terms=truth.terms))
    return rows


def results(truth: Truth, module: nn.Module, dtype: str) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Of each objective: its name, the module's outputs, and its gradients where it trains."""
    for what, names in truth.objectives().items():
        out = _run(truth, module, torch_dtype(torch, dtype), targets(truth.program) if what == FREE else ())
        grads: dict[str, Tensor] = {}
        if truth.program.train:
            parameters = dict(module.named_parameters())
            total = truth.objective(out, names)
            got = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
            grads = dict(zip(parameters, got))
        yield what, out, grads
