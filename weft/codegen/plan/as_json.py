"""`plan.json`: one document with every decision, its numbers, its rejected alternatives, and the spec line it is about.

Tables, DOT and `weft diff` are views of it. It holds no absolute path and no time of day: the same spec, versions and
options give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

from weft.codegen.plan.decode import decode, decode_decisions
from weft.codegen.plan.planner import Planned, PlannedBlock, recompute_decisions
from weft.codegen.skeletons.common.writer.wrapper import Why
from weft.ir.library import Attend
from weft.ir.pattern import solve
from weft.ir.program import Param, ProgramState
from weft.ir.types import Decision, Graph, Node, Val
from weft.passes.blocks import key
from weft.passes.fusion.grouping import Fusion, Region
from weft.passes.fusion.legality import Reason
from weft.passes.fusion.price import density
from weft.passes.memory.choose import parameters
from weft.passes.optimizer import OPTIMIZERS
from weft.passes.schedule import Choice
from weft.passes.stage import Half
from weft.passes.structure import CallSite, Given, Stack
from weft.targets import Target

SCHEMA = "weft.plan/1"
BLOCK = 128  # of queries and of keys, in the block counts of a pattern
WHY_TORCH = (str(Reason.TORCH), *map(str, Why))
"""Why a region runs as torch ops: the closed list."""
Document = dict[str, Any]


def document(planned: Planned) -> Document:
    """The plan as data for JSON, in a fixed order."""
    program = planned.program
    common = sum(planned.prices.points(p.dims) for p in _common(planned))
    return {
        "schema": SCHEMA,
        "spec": program.source,
        "name": program.name,
        "versions": {name: _version(name) for name in ("weft", "torch", "sympy")},
        "train": program.train,
        "dims": {d: planned.sizes[d] for d in sorted(planned.sizes)},
        "runtime": {d: {"max": r.max, "align": r.align} for d, r in sorted(program.runtime.items())},
        "policy": {k: getattr(program.policy, k) for k in ("params", "compute", "accumulate")},
        "target": _target(planned.target),
        "parameters": sum(prod(planned.sizes[d] for d in p.dims) * _rows(p, planned.sizes) for p in program.params),
        **({"common_parameters": common} if common else {}),
        "totals": totals(planned),
        "checks": {"launches": planned.checks.launches, "bytes": planned.checks.bytes},
        "memory": _memory(planned),
        "blocks": [_block(planned, b, own) for b, own in zip(planned.settled, _owned(planned))],
        "layers": [
            _drop({"block": planned.blocks[x.block].name, "row": x.row, "mode": x.mode}) for x in planned.layers
        ],
        "edges": _edges(planned),
        **({"states": [_state(planned, s) for s in program.states]} if program.states else {}),
        "decode": decode(planned),
        "decisions": [decision(d) for d in decisions(planned)],
    }


def _edges(planned: Planned) -> list[list[str]]:
    """Which block hands a value to which, in the order they first run."""
    names = {key(b.block.site): b.name for b in planned.blocks}
    made: dict[Val, str] = {}
    found: dict[tuple[str, str], None] = {}

    def call(site: CallSite, known: dict[Val, str]) -> None:
        given = (s.value for s in site.sources if isinstance(s, Given))
        found.update(dict.fromkeys((known[v], names[key(site)]) for v in given if v in known))
        known |= dict.fromkeys(site.node.outs, names[key(site)])

    for step in planned.model.steps:
        if isinstance(step, CallSite):
            call(step, made)
        elif isinstance(step, Stack):
            body = step.loop.body
            inner = {v: made[o] for v, o in zip(body.inputs, step.node.ins) if o in made}
            for site in step.sites:
                call(site, inner)
            ends = zip(step.node.outs, body.outputs)
            made |= {v: inner[o] for v, o in ends if o in inner}
    return [list(pair) for pair in found]


def decisions(planned: Planned) -> tuple[Decision, ...]:
    """Those about the model as a whole, then each block's, forward and backward."""
    out = list(planned.program.graph.decisions)
    if planned.choice:
        out += recompute_decisions(planned)
    for b in planned.settled:
        out += [_within(d, b.name) for d in b.made.graph.decisions]
        for where, half in _halves(b):
            out += [_within(d, where) for d in half.graph.decisions]
    return (*out, *decode_decisions(planned))


def decision(d: Decision) -> Document:
    """One decision as data."""
    rejected = [{"choice": c, "reason": why, "numbers": dict(numbers)} for c, why, numbers in d.rejected]
    return _drop(
        {
            "pass": d.pass_,
            "subject": d.subject,
            "choice": d.choice,
            "kind": d.kind,
            "numbers": dict(d.numbers),
            "rejected": rejected,
            "src": d.src,
        }
    )


def totals(planned: Planned) -> Document:
    """FLOPs, bytes and modelled seconds of one forward and, when training, of one backward."""
    out: Document = {"forward": _zero(), "backward": _zero()} if planned.program.train else {"forward": _zero()}
    for layer in planned.layers:
        b = planned.settled[layer.block]
        _add(out["forward"], b.forward.fusion)
        if layer.mode in b.backward:
            _add(out["backward"], b.backward[layer.mode].fusion)
    return out


def _state(planned: Planned, s: ProgramState) -> Document:
    """What a call leaves to the next one; bytes: of what comes in, at the plan's sizes. It comes in and goes out."""
    v, of = planned.program.input(s.past), "hidden" if s.start == "empty" else "tokens"
    of = "state" if s.start == "parameter" and v.dims.index(s.rows) == 2 else of
    more = {"layers": planned.sizes[v.dims[0]]} if v.dims.index(s.rows) == 2 else {}
    more |= {"keep": s.keep, "bytes": planned.prices.size(v)} | ({"through": s.through} if s.through else {})
    return {"name": s.name, "of": of, "start": s.start, "life": s.life, **more}


def attentions(graph: Graph, sizes: Mapping[str, int], longest: Mapping[str, int]) -> list[tuple[Node, Document]]:
    """Every attention of a block with what is known of its pattern. longest: the sizes its layout was chosen at."""
    return [(n, _attention(n, n.op.attention, sizes, longest)) for n in graph.nodes if n.op.attention is n.op]


def _attention(n: Node, op: Attend, sizes: Mapping[str, int], longest: Mapping[str, int]) -> Document:
    heads = prod(sizes[d] for d in op.heads) if op.heads else 1
    nq, nk = sizes[op.query], sizes[op.over]
    full = partial = nnz = 0
    exact, relaxed = True, set[str]()
    walked = op.walked(nq, nk) if op.tail else op.pattern
    groups = walked.at(max(nq, nk)).groups(heads)
    for first, end, _ in groups:
        found = solve(walked, nq, nk, BLOCK, BLOCK, first if op.pattern.per_head else None)
        full, partial = full + (end - first) * found.full, partial + (end - first) * found.partial
        nnz, exact = nnz + (end - first) * found.nnz, exact and found.exact
        relaxed |= set(found.stats.relaxed)
    return _drop(
        {
            "node": n.outs[0].name,
            "src": n.src,
            "pattern": op.pattern.source or op.pattern.text,
            "density": nnz / (heads * nq * nk),
            "touched": density(op, longest),
            "blocks": {
                "size": BLOCK,
                "full": full,
                "partial": partial,
                "of": heads * -(-nq // BLOCK) * -(-nk // BLOCK),
            },
            "exact": exact,
            "unknown": sorted(relaxed),
            "layout": str(op.layout) if op.layout is not None else "",
        }
    )


def _common(planned: Planned) -> list[Param]:
    """The parameters that are the same in every layer of a stack."""
    stacked = (b.block.site for b in planned.blocks if b.block.site.rows is not None)
    read = [s.param for site in stacked for s in site.sources if not isinstance(s, Given)]
    return list({p.value: p for p in read if p.stack is None}.values())


def _owned(planned: Planned) -> list[int]:
    """Per block, how many parameters one call of it reads that no earlier block does, those common to layers apart: a
    tied one counts once."""
    seen, out = {p.value for p in _common(planned)}, list[int]()
    for b in planned.blocks:
        mine = {s.param.value: s.param for s in b.block.site.sources if not isinstance(s, Given)}
        out.append(sum(planned.prices.points(p.dims) for value, p in mine.items() if value not in seen))
        seen |= set(mine)
    return out


def _block(planned: Planned, b: PlannedBlock, parameters: int) -> Document:
    sizes, prices = planned.sizes, planned.prices
    modes = {m.name: m for m in b.profile.modes}
    made = {v.name: v for n in (b.made.joint.nodes if b.made.joint else ()) for v in n.outs}
    rows = [
        {
            "mode": m.name,
            "keeps": {name: prices.size(made[name]) for name in m.saved if name in made},
            "bytes": modes[m.name].saved,
            "forward_peak": modes[m.name].forward_peak,
            "backward_peak": b.profile.backward_held(modes[m.name]),
            "extra_microseconds": _micro(modes[m.name].time),
            "layers": sum(planned.blocks[x.block].name == b.name and x.mode == m.name for x in planned.layers),
        }
        for m in b.block.modes
        if m.name in modes
    ]
    return _drop(
        {
            "name": b.name,
            "src": src(b.block.graph.nodes),
            "calls": b.calls,
            "parameters": parameters,
            "inputs": {v.name: str(v.type) for v in b.block.graph.inputs},
            "outputs": {v.name: str(v.type) for v in b.block.graph.outputs},
            "flops": sum(map(prices.flops, b.made.graph.nodes)),
            "bytes": sum(map(prices.bytes, b.made.graph.nodes)),
            "boundary_bytes": b.profile.boundary,
            "gradient_bytes": b.profile.grads,
            "attention": [found for _, found in attentions(b.block.graph, sizes, planned.longest)],
            "forward": _half(b.forward, planned, b),
            "backward": {mode: _half(half, planned, b) for mode, half in b.backward.items()},
            "further": {half.name: _half(half, planned, b) for half in b.further},
            "recompute": rows,
        }
    )


def _half(half: Half, planned: Planned, b: PlannedBlock) -> Document:
    found, read = half.fusion, _reads(half.graph, b, planned)
    where = b.name, half.name
    return {
        "microseconds": _micro(found.seconds),
        "unfused_microseconds": _micro(found.unfused),
        "search": "exact" if found.exact else "greedy",
        "regions": [_region(r, planned, where, read) for r in found.regions],
        "pairs": [
            _drop(
                {
                    "producer": v.producer,
                    "consumer": v.consumer,
                    "verdict": "fused" if v.fused else str(v.reason),
                    "microseconds": round(v.microseconds, 3),
                    "numbers": dict(v.numbers),
                }
            )
            for v in found.verdicts
        ],
    }


def _reads(graph: Graph, b: PlannedBlock, planned: Planned) -> dict[str, dict[str, int]]:
    """Node, by its first result -> the parameters it reads and how many numbers each has."""
    shapes = {
        v.name: s.param.dims for v, s in zip(b.block.site.body.inputs, b.block.site.sources) if not isinstance(s, Given)
    }
    return {
        n.outs[0].name: {v.name: planned.prices.points(shapes[v.name]) for v in n.ins if v.name in shapes}
        for n in graph.nodes
    }


def _region(r: Region, planned: Planned, where: tuple[str, str], read: Mapping[str, Mapping[str, int]]) -> Document:
    own = {name: count for node in r.nodes for name, count in read[node].items()}
    kernel, why = _kernel(r, planned, where)
    return _drop(
        {
            "id": r.id,
            "nodes": list(r.nodes),
            "skeleton": r.skeleton,
            "core": list(r.core),
            "prologue": list(r.before),
            "epilogue": list(r.after),
            "kernel": kernel,
            "why": why,
            "parameters": sum(own.values()),
            "bytes": r.bytes,
            "flops": r.flops,
            "launches": r.launches,
            "microseconds": _micro(r.seconds),
            "src": r.src,
        }
    )


def _kernel(region: Region, planned: Planned, where: tuple[str, str]) -> tuple[str, str]:
    """The kernel of a region, or "torch" and why, one of WHY_TORCH."""
    if planned.target.kind == "cpu":
        return "torch", WHY_TORCH[0]
    row = planned.kernels.row(*where, region)
    return (row.kernel, row.why) if row else ("torch", str(Why.NO_SKELETON))


def _memory(planned: Planned) -> Document:
    optimizer, kept = _optimizer(planned)
    out: Document = {
        "budget": planned.budget,
        "peak": planned.peak,
        "smallest": planned.smallest,
        "profile": "predicted" if planned.measured else "estimated",
        "parameters_and_inputs": planned.schedule.base - kept,
        "optimizer": optimizer,
    }
    if planned.choice:
        out |= _at_peak(planned, planned.choice)
    return out


def _optimizer(planned: Planned) -> tuple[Document, int]:
    """Its state, and all that lives while it steps; of none, the state that the usual one would have."""
    weights = parameters(planned.program, planned.prices) if planned.program.train else []
    own = planned.optimizer
    kept = own.kept(weights)
    if own.name == "none":
        return {"name": own.name, "not_counted": OPTIMIZERS["adamw"].kept(weights)}, kept
    return {"name": own.name, "state": kept, "step": sum(weights) + kept + own.step(weights)}, kept


def _at_peak(planned: Planned, choice: Choice) -> Document:
    """What is alive when the peak is reached."""
    at, side = choice.where
    where = {"layer": at, "block": planned.schedule.runs[at].profile.name, "side": side}
    if planned.peak > choice.peak:
        where = {"block": planned.optimizer.name, "side": "step"}
    return {
        "extra_microseconds": _micro(choice.time),
        "at": where,
        "kept_by_earlier_blocks": choice.alive.kept,
        "gradients_of_later_blocks": choice.alive.gradients,
        "working": choice.alive.own,
    }


def _target(t: Target) -> Document:
    return {
        "name": t.name,
        "part": t.part,
        "bandwidth": t.bandwidth,
        "matrix_flops": dict(sorted(t.matrix.items())),
        "vector_flops": dict(sorted(t.vector.items())),
        "launch_seconds": t.launch,
        "memory": t.memory,
        "reach": t.reach,
    }


def _rows(param: Any, sizes: Mapping[str, int]) -> int:
    return sizes[param.stack] if param.stack else 1


def _halves(b: PlannedBlock) -> Iterable[tuple[str, Half]]:
    yield f"{b.name}.forward", b.forward
    for mode, half in b.backward.items():
        yield f"{b.name}.backward.{mode}", half
    for half in b.further:
        yield f"{b.name}.{half.name}", half


def _within(d: Decision, where: str) -> Decision:
    return Decision(d.pass_, f"{where}: {d.subject}", d.choice, d.kind, d.numbers, d.rejected, d.src)


def src(nodes: Sequence[Node]) -> str:
    """The first spec line among the nodes."""
    return next((n.src for n in nodes if n.src), "")


def _zero() -> Document:
    return {"flops": 0, "bytes": 0, "microseconds": 0.0, "kernels": 0, "launches": 0}


def _add(total: Document, fusion: Fusion) -> None:
    total["flops"] += sum(r.flops for r in fusion.regions)
    total["bytes"] += sum(r.bytes for r in fusion.regions)
    total["microseconds"] = round(total["microseconds"] + _micro(fusion.seconds), 3)
    total["kernels"] += len(fusion.regions)
    total["launches"] += sum(r.launches for r in fusion.regions)


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _drop(found: Document) -> Document:
    """Without what is empty."""
    return {k: v for k, v in found.items() if v not in ("", None, [], {}, ())}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
