"""Linear recurrences in chunks on a CPU, side by side with a loop of torch operators over unbound steps.

    python -m benchmarks.recurrences            every kind, table on stdout, JSON beside the other results

Ours are the functions that a package has for the recurrence alone: queries, keys, values and decays [batch seq heads
..] in, what is read out, without the projections around it. Theirs goes through the steps that `unbind` gives, with
the same formulas, and torch differentiates it. Each repeat runs both once, in turn, so that a busy machine slows them
alike; times are medians of CPU time, in one thread. Results and gradients are compared first.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.environment import environment
from weft.codegen.measure.profile import imported
from weft.codegen.package.block import printed_file
from weft.codegen.torch.composites import known
from weft.codegen.torch.sizes import Sizes
from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.composite import Call
from weft.ir.graphs import dce
from weft.ir.ops.op import body_of
from weft.ir.ops.regions import Loop
from weft.ir.program import Program
from weft.ir.types import Graph, Node
from weft.passes.pipeline import PIPELINE, run
from weft.passes.stage import PassOptions, StagedProgram

RESULT = Path(__file__).parent / "results" / "recurrences.json"
SIZES = {"batch": 2, "heads": 4, "key": 64, "value": 64}
KEY, VALUE, HEAD = ["heads", "key"], ["heads", "value"], ["heads"]


@dataclass(frozen=True)
class Kind:
    """A recurrence: what else it is given, its formula, and one step of it in torch: (state, q, k, v, ..) -> state."""

    more: dict[str, list[str]]
    update: str
    step: Callable[..., Tensor]


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def read(k: Tensor, s: Tensor) -> Tensor:
    return (k.unsqueeze(-2) @ s).squeeze(-2)


def gated_delta(s: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    s = a[..., None, None] * s
    return s + outer(k, b[..., None] * (v - read(k, s)))


KINDS = {
    "none": Kind({}, "s + k*v", lambda s, q, k, v: s + outer(k, v)),
    "scalar": Kind({"a": HEAD}, "a*s + k*v", lambda s, q, k, v, a: a[..., None, None] * s + outer(k, v)),
    "per key": Kind({"a": KEY}, "a*s + k*v", lambda s, q, k, v, a: a[..., None] * s + outer(k, v)),
    "delta": Kind(
        {"b": HEAD}, "s + b*k*(v - sum(key, k*s))",
        lambda s, q, k, v, b: s + outer(k, b[..., None] * (v - read(k, s))),
    ),
    "gated delta": Kind({"a": HEAD, "b": HEAD}, "a*s + b*k*(v - a*sum(key, k*s))", gated_delta),
}  # fmt: skip


class Ours:
    """The emitted functions of a recurrence alone. form: how it is computed, in the words of the plan."""

    def __init__(self, cell: dict[str, Any], sizes: dict[str, int], seq: int) -> None:
        dims = {"width": 8, "vocab": 2} | sizes | {"seq": seq}
        spec = load_mapping({"weft": 1, "name": "alone", "dims": dims, "stack": [{"layer": [{"block": cell}]}]})
        program = alone(lower(spec.model, spec.dims))
        self.sizes = program.resolve(batch=sizes["batch"], seq=seq)
        stage = run(
            StagedProgram(program), PassOptions(self.sizes, known=known), [p for p in PIPELINE if p.name in PASSES]
        )
        (made,) = stage.blocks
        self.form = made.graph.decisions[0].choice
        made = made.using(made.block.modes[:1])
        source, _ = printed_file(program, made)
        self.module, self.pair, self.source = imported("alone", source), made.own[0], source
        self.names = [v.name for v in made.block.graph.inputs]
        self.told = [self.sizes[d] for d in Sizes.of(program).untold(self.pair.backwards)]

    def forward(self, given: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        got = self.module.forward(*given)
        return (got[0], got[1:]) if isinstance(got, tuple) else (got, ())

    def both(self, given: Sequence[Tensor], d: Tensor) -> tuple[Tensor, ...]:
        out, saved = self.forward(given)
        by = dict(zip(self.names, given))
        grads = self.module.backward(*saved, *(by[v.name] for v in self.pair.tensors), d, *self.told)
        return (out, *grads)


PASSES = ("blocks", "chunk", "derivative", "unlet", "pairs", "recompute", "split", "open", "loops")


def alone(program: Program) -> Program:
    """A program of the one recurrence of a program, its given values as inputs."""
    call = next(n.op for n in nodes(program.graph) if isinstance(n.op, Call) and any(map(recurrent, n.op.body.nodes)))
    body: Any = call.body
    loop = next(n for n in body.nodes if recurrent(n))
    given = loop.ins[loop.op.carries :]
    out = loop.outs[loop.op.carries]
    inner = dce(Graph((), tuple(body.nodes), loop.ins[: loop.op.carries]))
    graph = Graph(given, (*inner.nodes, loop), (out,))
    top = Node(Call("alone", graph), given, (out,))
    return Program(
        "alone",
        Graph(given, (top,), (out,)),
        program.sizes,
        program.runtime,
        (),
        tuple(v.name for v in given),
        (out.name,),
    )


def recurrent(n: Node) -> bool:
    return isinstance(n.op, Loop) and bool(n.op.chunks)


def nodes(graph: Graph) -> Iterator[Node]:
    """Every node, those inside others too."""
    for n in graph.nodes:
        yield n
        body = body_of(n.op)
        yield from nodes(body) if body is not None else ()


def block(kind: Kind, chunk: int) -> dict[str, Any]:
    """The block of a kind."""
    cell: dict[str, Any] = {"kind": "tensor_recurrence", "inputs": {"q": KEY, "k": KEY, "v": VALUE, **kind.more}}
    cell |= {"state": {"s": ["heads", "key", "value"]}, "update": {"s": kind.update}, "chunk": chunk}
    return cell | {"output": "sum(key, q*next(s))"}


def theirs(kind: Kind, given: Sequence[Tensor]) -> Tensor:
    """The loop: [batch seq heads ..] each -> [batch seq heads value]."""
    _, k, v = given[:3]
    s = k.new_zeros(*k[:, 0].shape, v.shape[-1])
    out: list[Tensor] = []
    for step in zip(*(x.unbind(1) for x in given)):
        s = kind.step(s, *step)
        out.append(read(step[0], s))
    return torch.stack(out, 1)


def drawn(kind: Kind, seq: int) -> dict[str, Tensor]:
    """Decays between 0.9 and 1 and between 0 and 1, unit keys."""
    torch.manual_seed(0)
    shape = SIZES["batch"], seq
    found = {n: torch.randn(*shape, *(SIZES[d] for d in dims)) for n, dims in {"q": KEY, "k": KEY, "v": VALUE}.items()}
    found["k"] = torch.nn.functional.normalize(found["k"], dim=-1)
    for name, dims in kind.more.items():
        x = torch.rand(*shape, *(SIZES[d] for d in dims))
        found[name] = 1 - 0.1 * x if name == "a" else x
    return found


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each over rounds in which each runs once; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, call in runs.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def measured(name: str, seq: int, chunk: int, repeats: int) -> dict[str, Any]:
    """One kind: seconds of each, ratios, and how far the results are apart."""
    kind, ours = KINDS[name], Ours(block(KINDS[name], chunk), SIZES, seq)
    by = drawn(kind, seq)
    given = [by[n.split("_")[0]] for n in ours.names]
    order = [by[n] for n in ("q", "k", "v", *kind.more)]
    leaves = [x.clone().requires_grad_() for x in order]
    want = theirs(kind, leaves)
    d = torch.randn_like(want)
    back = dict(zip(("q", "k", "v", *kind.more), torch.autograd.grad(want, leaves, d)))
    place = list(want.shape)
    out, *grads = ours.both(given, as_ours(d, ours))
    far = [
        apart(as_theirs(out, place), want.detach()),
        *(apart(x, back[n.split("_")[0]]) for n, x in zip(ours.names, grads)),
    ]

    def loop() -> None:
        y = theirs(kind, leaves)
        torch.autograd.grad(y, leaves, d)

    def plain() -> None:
        with torch.no_grad():
            theirs(kind, order)

    ours_d = as_ours(d, ours)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.forward(given), "loop": plain,
        "ours, both": lambda: ours.both(given, ours_d), "loop, both": loop,
    }  # fmt: skip
    seconds = medians(runs, repeats)
    ratios = {"forward": seconds["loop"] / seconds["ours"], "both": seconds["loop, both"] / seconds["ours, both"]}
    return {"kind": name, "seq": seq, "chunk": chunk, "seconds": seconds, "ratios": ratios, "apart": max(far)}


def as_ours(d: Tensor, ours: Ours) -> Tensor:
    """The result of a loop has positions first."""
    return d.transpose(0, 1)


def as_theirs(out: Tensor, shape: Sequence[int]) -> Tensor:
    return out.transpose(0, 1)


def apart(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seq", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--source", action="store_true", help="print the emitted functions instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.source:
        for name in args.kinds:
            print(Ours(block(KINDS[name], args.chunk), SIZES, args.seq).source)
        return
    rows = [measured(name, args.seq, args.chunk, args.repeats) for name in args.kinds]
    shown = [
        (
            r["kind"],
            *(f"{1e3 * r['seconds'][k]:.0f}" for k in r["seconds"]),
            *(f"{x:.1f}" for x in r["ratios"].values()),
            f"{r['apart']:.1e}",
        )
        for r in rows
    ]
    heads = ("decay", "forward ms", "loop", "with backward", "loop", "ratio", "with backward", "apart")
    print(tabulate(shown, heads))
    args.out.write_text(
        json.dumps(
            {"schema": "weft.bench.recurrences/1", "environment": environment(), "threads": 1, "cases": rows}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
