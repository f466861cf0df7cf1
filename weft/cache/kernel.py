"""The hash of a fused region: of what it computes, not of what things are called or where they stand in the spec.

    canonical(graph) names the values v0, v1, ... in order of first appearance, and drops the names of blocks and the
    places in the source; dims keep their names, since they are the words of the generated kernel.

This is the one module of the cache that needs SymPy (through the text form of graphs), so a lookup does not import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from weft.cache.canonical import digest
from weft.ir.text import show
from weft.ir.types import Graph, Node, Val


def kernel_hash(graph: Graph, sizes: Mapping[str, int] | None = None, **more: Any) -> str:
    """The `kernel` field of a key: of the region, the sizes of the dims frozen into it, and whatever else decides the
    generated code, as JSON data."""
    return digest({"graph": canonical_text(graph), "sizes": dict(sizes or {}), "more": more})


def canonical_text(graph: Graph) -> str:
    """The text of a graph that is equal for graphs which differ in names and sources only."""
    return show(_renamed(graph))


def _renamed(graph: Graph) -> Graph:
    names: dict[Val, Val] = {}

    def to(value: Val) -> Val:
        if value not in names:
            names[value] = Val(f"v{len(names)}", value.type)
        return names[value]

    inputs = tuple(map(to, graph.inputs))
    nodes = tuple(Node(_plain(n.op), tuple(map(to, n.ins)), tuple(map(to, n.outs))) for n in graph.nodes)
    return Graph(inputs, nodes, tuple(map(to, graph.outputs)))


def _plain(op: Any) -> Any:
    """The op without the name of a block, its bodies renamed likewise."""
    changed: dict[str, Any] = {}
    for f in fields(op):
        value = getattr(op, f.name)
        if isinstance(value, Graph):
            changed[f.name] = _renamed(value)
            if any(other.name == "name" for other in fields(op)):
                changed["name"] = "block"
        elif is_dataclass(value) and not isinstance(value, type) and hasattr(value, "infer"):
            changed[f.name] = _plain(value)
    return replace(op, **changed) if changed else op
