"""Give every attention the layout in which its pattern is cheapest, and write down what the solver found.

before:
    out: f32[batch seq heads head], lse: f32[batch seq heads] = attend(q, k, v) ... pattern="causal and strided(8)"
after:
    out: f32[batch seq heads head], lse: f32[batch seq heads] = attend(q, k, v) ... pattern="causal and strided(8)"
      layout="residues(modulus=8, inner=causal)"

A pattern that depends on the sequence's length is fixed at the longest one. The decision holds the pairs and blocks of
the pattern, its density, the pairs that the layout computes, and every layout that costs more. What the pattern lets
through is never changed, only the order of summation: its kind is `numerics`.

It does not fire on: an attention whose positions are operands (`query_at`, `key_at`), since then the pattern says
nothing about places in memory; such a one runs in tiles over all keys. One whose scores read a table by distance, or
whose keys begin before its queries, runs in tiles too, of the keys that its pattern reaches.

Source: Child et al. 2019, Generating Long Sequences with Sparse Transformers (strided attention as a transposition);
merging parts by log-sum-exp: Dao et al. 2022, FlashAttention, section 3.1.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.ir.library.attention import Attend
from weft.ir.ops.op import body_of
from weft.ir.pattern import Pattern, PatternLayout, in_tiles, layout, rows_seeing_nothing, solve
from weft.ir.types import Decision, Graph, Node

BLOCK = 128


def pattern(graph: Graph, sizes: Mapping[str, int], block: int = BLOCK) -> Graph:
    """The graph with a layout on every attend, bodies of blocks and loops included.

    sizes: of every dim, run-time ones at their largest. block: the side of a block that counts as one unit of work.
    """
    decisions: list[Decision] = []
    nodes = tuple(_node(n, sizes, block, decisions) for n in graph.nodes)
    return replace(graph, nodes=nodes, decisions=(*graph.decisions, *decisions))


def _node(node: Node, sizes: Mapping[str, int], block: int, decisions: list[Decision]) -> Node:
    op: Any = node.op
    if op.attention is not None:
        laid_out, decision = attend_layout(op.attention, node, sizes, block)
        if op is not op.attention:
            return replace(node, op=replace(op, of=laid_out))
        decisions += [decision] if decision is not None else []
        return replace(node, op=laid_out)
    body = body_of(op)
    if body is None:
        return node
    inner = pattern(replace(body, decisions=()), sizes, block)
    decisions += inner.decisions
    return replace(node, op=replace(op, body=replace(inner, decisions=body.decisions)))


def attend_layout(op: Attend, node: Node, sizes: Mapping[str, int], block: int) -> tuple[Attend, Decision | None]:
    """The attend with its layout, and the decision; unchanged and None where the pass does not fire."""
    if {"query_at", "key_at"} & set(op.meta):
        return op, None
    n, nk, heads = sizes[op.query], sizes[op.over], math.prod(sizes[d] for d in op.heads)
    fixed = op.walked(n, nk)
    chosen = (in_tiles if op.distant else layout)(fixed, n, block, heads, nk)
    decision = Decision(
        "pattern",
        node.outs[0].name,
        chosen.summary(),
        "numerics",
        numbers(fixed, chosen, n, nk, heads, block),
        tuple((text, why, (("pairs", cost),)) for text, why, cost in chosen.rejected),
        node.src,
    )
    return replace(op, pattern=op.pattern.at(max(n, nk)), layout=chosen), decision


def numbers(
    fixed: Pattern, chosen: PatternLayout, n: int, nk: int, heads: int, block: int
) -> tuple[tuple[str, float | int | str], ...]:
    """What the plan says about a pattern: its size over all heads, in pairs and in blocks, and what it costs to run."""
    side, side_k = min(block, n), min(block, nk)
    full = partial = empty = nnz = 0
    exact, relaxed = True, list[str]()
    for first, end, _ in fixed.groups(heads):
        plan = solve(fixed, n, nk, side, side_k, head=first if fixed.per_head else None)
        count = end - first
        full, partial, empty = full + count * plan.full, partial + count * plan.partial, empty + count * plan.empty
        nnz, exact = nnz + count * plan.nnz, exact and plan.exact
        relaxed += [r for r in plan.stats.relaxed if r not in relaxed]
    blind = sum(end - first for first, end in rows_seeing_nothing(fixed, n, heads, nk))
    out: list[tuple[str, float | int | str]] = [
        ("queries", n),
        ("keys", nk),
        ("heads", heads),
        ("block", side),
        ("full", full),
        ("partial", partial),
        ("empty", empty),
        ("nnz", nnz),
        ("density", round(nnz / (heads * n * nk), 6)),
        ("pairs", chosen.cost),
        ("exact", int(exact)),
    ]
    out += [("blind_rows", blind)] if blind else []
    return (*out, *(("given_up", r) for r in relaxed))
