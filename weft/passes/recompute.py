"""Keep part of a block's values for its backward and compute the rest again there.

    joint (x, dy) { h = f(x); y = g(h); dx = b(h, dy); return y, dx }
    keep h     ->  forward (x) { h = f(x); y = g(h); return y, h }      backward (h, dy) { dx = b(h, dy); return dx }
    keep none  ->  forward (x) { h = f(x); y = g(h); return y }         backward (x, dy) { h = f(x); dx = b(h, dy); .. }

What is computed again comes just before its first use, so the two halves never hold more than they must. Dropout is
computed again from its counter; what routing decided is always kept, as is whatever an opaque module made: a decision
that came out differently the second time would be another function. What was dispatched is gathered again in every
mode. Which values to keep is a minimum cut (`lightest`): the fewest bytes such that only nodes of the allowed kinds are
computed again. `modes` names the cuts worth choosing from; `solver.solve` chooses one per run under a byte budget.

Source: Checkmate's retention and recomputation variables (1910.02653) on one block, as a parametric minimum cut.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from weft.errors import VerifyError
from weft.ir.graphs import with_gradient
from weft.ir.ops.op import KINDS, kind
from weft.ir.types import Decision, Graph, Node, Val
from weft.passes.dispatch import dispatches
from weft.passes.fusion.price import Prices
from weft.passes.mincut import Edge, minimum_cut

Redo = Callable[[Node], float | None]  # seconds to compute a node again, None where that is not allowed
LIGHT = ("view", "pointwise", "rowwise", "memory", "scatter")
MODES: dict[str, tuple[str, ...]] = {
    "save": ("view",),
    "pointwise": LIGHT,
    "attention": (*LIGHT, "attention"),
    "block": KINDS,
}
"""Mode -> the kinds of nodes whose results its backward computes again, the cheapest mode first."""


@dataclass(frozen=True, slots=True)
class Halves:
    """forward: inputs -> outputs, then `saved`. backward: `saved`, the inputs it reads, cotangents -> gradients."""

    forward: Graph
    backward: Graph
    saved: tuple[Val, ...]


@dataclass(frozen=True)
class Parts:
    """A joint graph seen from the cut between its forward and its backward.

    outputs: how many of its outputs are the block's own; its last inputs are the cotangents of the float ones."""

    joint: Graph
    outputs: int

    @property
    def _cut(self) -> int:
        return len(self.joint.inputs) - len(with_gradient(self.joint, self.joint.outputs[: self.outputs]))

    @property
    def inputs(self) -> tuple[Val, ...]:
        """The block's own inputs."""
        return self.joint.inputs[: self._cut]

    @property
    def cotangents(self) -> tuple[Val, ...]:
        return self.joint.inputs[self._cut :]

    @cached_property
    def late(self) -> frozenset[Val]:
        """What depends on a cotangent."""
        late = set(self.cotangents)
        for n in self.joint.nodes:
            if not late.isdisjoint(n.ins):
                late.update(n.outs)
        return frozenset(late)

    @cached_property
    def maker(self) -> dict[Val, Node]:
        """The node that computes each value."""
        return {v: n for n in self.joint.nodes for v in n.outs}

    @property
    def needed(self) -> tuple[Val, ...]:
        """Early values that late nodes read, or that are gradients themselves, in order of first use."""
        used = [v for n in self.joint.nodes if n.outs[0] in self.late for v in n.ins]
        return tuple(dict.fromkeys(v for v in (*used, *self.joint.outputs[self.outputs :]) if v not in self.late))

    def above(self, values: Iterable[Val], stop: Collection[Val] = ()) -> set[Val]:
        """The values, and all that they are computed from without passing through `stop`."""
        out, todo = set[Val](), list(values)
        while todo:
            v = todo.pop()
            if v not in out:
                out.add(v)
                if v in self.maker and v not in stop:
                    todo += self.maker[v].ins
        return out


def split(joint: Graph, outputs: int, saved: Iterable[str]) -> Halves:
    """The two halves of a joint graph that keep the values named `saved`.

    Raises VerifyError for a name that is no value of the forward. Inputs need no name: those that the backward reads
    are its operands anyway."""
    parts, names = Parts(joint, outputs), set(saved)
    keep = tuple(v for n in joint.nodes for v in n.outs if v.name in names)
    if unknown := names - {v.name for v in keep}:
        raise VerifyError(f"cannot keep {', '.join(sorted(unknown))}: no node of the joint graph makes it")
    if late := [v.name for v in keep if v in parts.late]:
        raise VerifyError(f"cannot keep {', '.join(late)}: it depends on a cotangent")
    nodes = _backward(parts, set(keep))
    read = {v for n in nodes for v in n.ins} | set(joint.outputs[outputs:])
    keep = tuple(v for v in keep if v in read)
    own = tuple(v for v in parts.inputs if v in read)
    live = parts.above((*joint.outputs[:outputs], *keep))
    forward = Graph(
        parts.inputs, tuple(n for n in joint.nodes if any(v in live for v in n.outs)), (*joint.outputs[:outputs], *keep)
    )
    backward = Graph((*keep, *own, *parts.cotangents), tuple(nodes), joint.outputs[outputs:])
    return Halves(forward, backward, keep)


def _backward(parts: Parts, have: set[Val]) -> list[Node]:
    """Late nodes in their order, each after the early ones that it is the first to need."""
    have, nodes = have | set(parts.joint.inputs), list[Node]()

    def make(v: Val) -> None:
        if v in have:
            return
        node = parts.maker[v]
        for x in node.ins:
            make(x)
        twice = {o for o in node.outs if o in have}  # kept, but made again beside what is not
        outs = tuple(replace(o, name=f"{o.name}_again") if o in twice else o for o in node.outs)
        nodes.append(replace(node, outs=outs))
        have.update(node.outs)

    for n in parts.joint.nodes:
        if n.outs[0] in parts.late and any(v in parts.late for v in n.outs):
            for v in n.outs:
                make(v)
    for v in parts.joint.outputs[parts.outputs :]:
        make(v)
    return nodes


def redone(halves: Halves) -> tuple[Node, ...]:
    """The nodes that the forward computes and the backward computes again."""
    first = {n.outs[0] for n in halves.forward.nodes}
    return tuple(n for n in halves.backward.nodes if n.outs[0] in first)


def modes(joint: Graph, outputs: int, prices: Prices, held: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Mode -> the names of the values it keeps, modes that keep the same left out but the first.

    held: inputs that live anyway (parameters); what is computed from them pointwise is never worth keeping."""
    parts, out = Parts(joint, outputs), dict[str, tuple[str, ...]]()
    free = _from_held(parts, held)
    for mode, kinds in MODES.items():

        def redo(node: Node, kinds: tuple[str, ...] = kinds) -> float | None:
            again = node.outs[0] in free or kind(node) in kinds or dispatches(node)
            return prices.seconds(node) if again else None

        kept = lightest(parts, prices.size, redo, held)
        if kept not in out.values():
            out[mode] = kept
    return out


def _from_held(parts: Parts, held: Collection[str]) -> set[Val]:
    """What pointwise nodes and views make of parameters and constants alone."""
    known = {v for v in parts.inputs if v.name in held}
    for n in parts.joint.nodes:
        if kind(n) in ("view", "pointwise") and known.issuperset(n.ins):
            known.update(n.outs)
    return known


def lightest(
    parts: Parts, weigh: Callable[[Val], int], redo: Redo, held: Collection[str] = (), price: int = 10**15
) -> tuple[str, ...]:
    """The values to keep, by name: those of least total bytes with all else computed again by nodes that `redo` allows.

    Of equal choices the one that is quickest to compute again. What only the backward computes is free to compute.
    price: picoseconds that one byte is worth; the default puts bytes first, a small one weighs them against time."""
    needed, edges = parts.needed, list[Edge]()
    reach = parts.above(needed)
    first = parts.above(parts.joint.outputs[: parts.outputs])
    for v in (v for v in (*parts.inputs, *parts.maker) if v in reach):
        node, worth = parts.maker.get(v), 0 if v.name in held else weigh(v) * price
        if node is None:
            edges.append(("source", v, worth))
            continue
        again = ("again", node.outs[0])
        edges += [(again, v, worth), ("source", again, _pico(node, redo, first))]
        edges += [(x, again, None) for x in node.ins]
    edges += [(v, "sink", None) for v in needed]
    side = minimum_cut(edges, "source", "sink")
    made = [(v, ("again", n.outs[0])) for n in parts.joint.nodes for v in n.outs if v in reach]
    return tuple(v.name for v, again in made if v not in side and again in side)


def _pico(node: Node, redo: Redo, first: Collection[Val]) -> int | None:
    if not node.op.again:
        return None
    if not any(v in first for v in node.outs):
        return 0
    seconds = redo(node)
    return None if seconds is None else round(seconds * 10**12)


def decisions(joint: Graph, outputs: int, prices: Prices, held: Collection[str] = ()) -> tuple[Decision, ...]:
    """One decision per mode: the values it keeps, their bytes and the extra time of its backward. Gradients are exact:
    the same nodes on the same operands."""
    out: list[Decision] = []
    by_name = {v.name: v for n in joint.nodes for v in n.outs}
    for mode, kept in modes(joint, outputs, prices, held).items():
        nbytes = sum(prices.size(by_name[name]) for name in kept)
        seconds = extra_time(split(joint, outputs, kept), prices)
        numbers = (("keeps", " ".join(kept)), ("bytes", nbytes), ("microseconds", round(seconds * 1e6, 3)))
        out.append(Decision("recompute", mode, "available", "exact", numbers))
    return tuple(out)


def extra_time(halves: Halves, prices: Prices) -> float:
    """Seconds that the backward spends on what the forward did already."""
    return sum(prices.seconds(n) for n in redone(halves))
