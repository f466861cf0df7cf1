"""A plan as a DOT graph: one cluster per block, inside it one per region, an edge per adjacent pair of nodes.

`dot -Tsvg plan.dot -o plan.svg` draws it. Read from the plan document alone.
"""

from collections.abc import Mapping
from typing import Any

from weft.units import show_bytes, show_count

Document = Mapping[str, Any]
FILL = {
    "attention": "#fde0c5", "matmul": "#d5e5f7", "grouped_matmul": "#c3d3ef", "scan": "#dcedc8", "rowwise": "#f7e6f5",
    "pointwise": "#f2f2f2", "linear_attention": "#fbe3a8", "matrix_scan": "#c5e1a5",
}  # fmt: skip


def dot(plan: Document) -> str:
    """The DOT text. Fused pairs are solid edges, others dashed with the reason as a tooltip."""
    lines = [
        "digraph plan {",
        "  rankdir=TB; compound=true; fontname=Helvetica;",
        "  node [shape=box, style=filled, fillcolor=white, fontname=Helvetica, fontsize=10];",
        f"  label={_quote(plan['name'] + ' for ' + plan['target']['name'])};",
    ]
    for i, block in enumerate(plan["blocks"]):
        lines += _block(i, block)
    lines += _chain(plan)
    return "\n".join([*lines, "}"]) + "\n"


def _block(i: int, block: Document) -> list[str]:
    title = f"{block['name']} x{block['calls']}" if block["calls"] > 1 else block["name"]
    counts = f"{show_count(block.get('parameters', 0))} parameters, {show_count(block['flops'])}FLOP"
    lines = [f"  subgraph cluster_b{i} {{", f"    label={_quote(f'{title}: {counts}')}; style=rounded;"]
    seen = {a["node"]: a for a in block.get("attention", ())}
    for k, region in enumerate(block["forward"]["regions"]):
        skeleton = region.get("skeleton", "")
        label = f"{skeleton or 'torch ops'}, {show_bytes(region['bytes'])}"
        lines += [
            f"    subgraph cluster_b{i}_r{k} {{",
            f"      label={_quote(label)}; style=filled; color={_quote(FILL.get(skeleton, '#ffffff'))};",
        ]
        for node in region["nodes"]:
            lines.append(
                f"      {_node(i, node)} [label={_quote(_label(node, seen))}, tooltip={_quote(region.get('src', ''))}];"
            )
        lines.append("    }")
    for pair in block["forward"]["pairs"]:
        style = "solid" if pair["verdict"] == "fused" else "dashed"
        ends = f"{_node(i, pair['producer'])} -> {_node(i, pair['consumer'])}"
        lines.append(f"    {ends} [style={style}, tooltip={_quote(pair['verdict'])}];")
    return [*lines, "  }"]


def _label(node: str, seen: Mapping[str, Document]) -> str:
    if node not in seen:
        return node
    return f"{node}\n{seen[node]['pattern']}\n{100 * seen[node]['density']:.3g} % visible"


def _chain(plan: Document) -> list[str]:
    """Which block hands a value to which."""
    index = {b["name"]: i for i, b in enumerate(plan["blocks"])}
    ends = {b["name"]: [r["nodes"] for r in b["forward"]["regions"]] for b in plan["blocks"]}
    out: list[str] = []
    for a, b in plan["edges"]:
        if a in ends and b in ends and ends[a] and ends[b]:
            tail, head = _node(index[a], ends[a][-1][-1]), _node(index[b], ends[b][0][0])
            out.append(f"  {tail} -> {head} [ltail=cluster_b{index[a]}, lhead=cluster_b{index[b]}, penwidth=2];")
    return out


def _node(block: int, name: str) -> str:
    return f"b{block}_{name}"


def _quote(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else "\\n" if c == "\n" else "_" for c in text)
    return f'"{escaped}"'
