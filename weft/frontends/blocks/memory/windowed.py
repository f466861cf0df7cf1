"""The scan over windows of a block recurrence: what it is given, its body, and what it leaves.

A window w with the state S that it finds, the keys K and values V of its tokens and of those before it, and of every
vector a query to tokens and one to states:

    tokens: a = attend(q; K, V | 1 <= q - k <= window), c = attend(q'; k(S), v(S))
    states: y = W [attend(q(S); k(S), v(S)), attend(q'(S); K, V)], S = gate(S, y)

Source: Hutchins et al. 2022, sections 3.1 to 3.3; scores are (q·k + bias) * |scale| of unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.errors import Path
from weft.frontends.blocks.relative import bounds

if TYPE_CHECKING:
    from weft.frontends.blocks.memory.behind import Keys
    from weft.frontends.blocks.memory.block_recurrence import BlockRecurrence
    from weft.frontends.lower.scope import Scope
    from weft.ir.builder import Builder
    from weft.ir.types import Val

TOKENS, STATES = ("query", "query_state"), ("key", "value", "query", "query_token")
EPS = "10**(-6)"


@dataclass(frozen=True)
class Windowed:
    """The dims: of windows, a window's tokens, those with the window before, states, the same as keys, heads."""

    stem: str
    size: int
    windows: str
    place: str
    span: str
    states: str
    keys: str
    heads: str
    head: str

    @classmethod
    def of(cls, s: Scope, block: BlockRecurrence, stem: str, path: Path, rows: Keys) -> Windowed:
        low, avoid = s.low, [*s.space, rows.length, rows.past]
        with low.reading((*path, "window"), "W0201"):
            size = low.dims.size(block.window)

        def dim(name: str, n: Any) -> str:
            avoid.append(low.mint(name, n, avoid))
            return avoid[-1]

        heads = low.axis(block.heads, "heads", (*path, "heads"), avoid)
        head = low.axis(block.head, "head", (*path, "head"), (*avoid, heads))
        avoid += [heads, head]
        windows = dim("windows", s.ir.sympy.floor(low.sizes[s.length] / size))
        states = low.axis(block.states, "states", (*path, "states"), avoid)
        avoid.append(states)
        place, span, keys = dim("place", size), dim("span", 2 * size), dim("state_keys", low.number(states))
        return cls(stem, size, windows, place, span, states, keys, heads, head)

    def run(self, s: Scope, x: Val, rows: Keys, block: BlockRecurrence, path: Path) -> tuple[Val, Val]:
        """What tokens [batch length heads head] see of tokens, and of states."""
        own, acc = f"{self.heads} {self.head}", s.accumulate
        given: dict[str, Val] = {}
        for name in ("query", "query_state"):
            q = s.linear(name, x, f"width {own}", f"batch {s.length} {own}", f"{self.stem}.{name}")
            given[name] = self.unit(s.g, self._cut(s, q, s.length, self.place, 0), acc)
        for name in ("key", "value"):
            k = s.linear(name, rows.rows, f"width {own}", f"batch {rows.length} {own}", f"{self.stem}.{name}")
            before = s.ir.symbol(f"n_{rows.past}") - self.size
            cut = self._cut(s, k, rows.length, self.span, before)
            given[name] = self.unit(s.g, cut, acc) if name == "key" else s.g.cast(cut, acc)
        given |= {"bias": self._bias(s, block)} | self._parameters(s, block, path)
        return self._scanned(s, given, block, path)

    def _cut(self, s: Scope, x: Val, length: str, to: str, first: Any) -> Val:
        """Rows [batch length ..] in windows; those before the first read 0."""
        formula = s.ir.symbol(f"i_{self.windows}") * self.size + s.ir.symbol(f"i_{to}") + first
        at = s.map("at", formula, to=f"{self.windows} {to}", dtype="i64")
        return s.g.expand(s.gather("cut", x, at, at=length), to=f"{self.windows} batch {to} {self.heads} {self.head}")

    def unit(self, g: Builder, x: Val, acc: str) -> Val:
        """x / |x| of each head."""
        left = [d for d in x.dims if d != self.head]
        square = g.reduce(g.map("x*x", x=x, to=x.dims, dtype=acc), to=left)
        return g.map(f"x*rsqrt(r + {EPS})", x=x, r=square, to=x.dims, dtype=acc)

    def _bias(self, s: Scope, block: BlockRecurrence) -> Val:
        """The learned score of each distance: [place span heads]."""
        low = s.low
        buckets = low.mint("buckets", block.buckets, (*s.space, self.heads, self.place, self.span))
        table = s.param(f"{self.stem}.buckets", f"{buckets} {self.heads}", "position", self.heads, dtype=s.accumulate)
        far = s.ir.sympy.Integer(self.size) + s.ir.symbol(f"i_{self.place}") - s.ir.symbol(f"i_{self.span}")
        index = bucket(s, s.ir.symbol("d"), block.buckets, block.max_distance)
        near = s.map("bucket", index, let={"d": far}, to=f"{self.place} {self.span}", dtype="i64")
        return s.gather("bias", table, near, at=buckets)

    def _parameters(self, s: Scope, block: BlockRecurrence, path: Path) -> dict[str, Val]:
        """What the body reads that is the same in each window, in the accumulate dtype."""
        own, stem, acc = f"{self.heads} {self.head}", f"{self.stem}.state", s.accumulate
        found: dict[str, Val] = {}

        def param(name: str, dims: str, role: str = "weight", fan_in: str = "", rule: Any = None) -> None:
            found[name.replace(".", "_")] = s.param(
                f"{stem}.{name}", dims, role, fan_in, None if rule is None else (rule, path), acc
            )

        for name in ("tokens", "to_states", "states", "to_tokens"):
            param(f"scale_{name}", self.heads, rule="ones")
        param("norm.weight", "width", "norm")
        param("place", f"{self.states} width", rule=s.ir.InitRule(normal=1.0))
        for name in STATES:
            param(f"{name}.weight", f"width {own}", fan_in="width")
        for name in ("own", "seen"):
            param(f"{name}.weight", f"{own} width", fan_in=own)
        if block.cell != "single":
            self._gate(s, param, block, "gate", {"own": own, "seen": own})
        if block.cell != "skip":
            inner = s.low.axis(block.inner, "inner", (*path, "inner"), s.space)
            param("up.weight", f"width {inner}", fan_in="width")
            param("down.weight", f"{inner} width", "output", inner)
            self._gate(s, param, block, "last_gate", {"hidden": inner})
        if block.cell == "dual":
            param("last_norm.weight", "width", "norm")
        return found

    def _gate(self, s: Scope, param: Any, block: BlockRecurrence, name: str, of: dict[str, str]) -> None:
        """The parameters of a gate: of `fixed` a bias; of `lstm` products of what is gated, and biases."""
        if block.gate == "fixed":
            param(f"{name}.bias", "width", rule=s.ir.InitRule(normal=0.1))
            return
        for part in ("forget", "enter"):
            for what, dims in of.items():
                param(f"{name}.{part}_{what}.weight", f"{dims} width", fan_in=dims)
            param(f"{name}.{part}.bias", "width", "bias")

    def _scanned(self, s: Scope, given: dict[str, Val], block: BlockRecurrence, path: Path) -> tuple[Val, Val]:
        """The loop over windows; the last state is left to the next segment."""
        low, part = s.low, f"{self.stem}_state"
        first = s.param(f"{self.stem}.state.first", f"{self.states} width", rule=(s.ir.InitRule(normal=0.1), path))
        past, _ = low.remembering(self.states, low.number(self.states))
        before = s.state(part, ("batch", past, "width"))
        start = s.g.expand(first, to=f"batch {self.states} width")
        size = s.ir.symbol(f"n_{past}") + low.number(self.states)
        known = low.mint("known", size, (*s.space, self.states, past))
        start = s.part("start", s.g.concat(before, start, dims=(past, self.states), new=known), known, self.states, 0)
        start = s.g.cast(start, s.accumulate)
        b = s.g.body()
        state = b.input("state", start.type)
        inner = {n: b.input(n, v.type.but(d for d in v.dims if d != self.windows)) for n, v in given.items()}
        act = s.activation(block.activation, (*path, "activation")) if block.cell != "skip" else None
        with b.at(s.g.src):
            after, *seen = WindowBody(self, b, inner, block, act, s.accumulate).step(state)
        last, *stacked = s.g.loop(self.windows, b.graph(after, *seen), 1, start, *given.values())[:3]
        left = s.g.cast(last, s.compute)
        through = low.model.memory is not None and low.model.memory.through
        s.left[part] = left if through else s.g.detach(left)
        s.handed[part] = self.states
        found = [self._back(s, y) for y in stacked]
        return found[0], found[1]

    def _back(self, s: Scope, y: Val) -> Val:
        """A window's results [windows batch place ..] in the order of tokens: [batch length ..]."""
        i = s.ir.symbol(f"i_{s.length}")
        at = [s.map("at", f(i), to=s.length, dtype="i64") for f in (lambda i: i // self.size, lambda i: i % self.size)]
        y = s.gather("seen", y, *at, at=f"{self.windows} {self.place}")
        return s.g.cast(s.g.expand(y, to=f"batch {s.length} {self.heads} {self.head}"), s.compute)


class WindowBody:
    """The body of the loop: one window. given: by name; act: the activation of the states' feed-forward."""

    def __init__(self, w: Windowed, b: Builder, given: dict[str, Val], block: BlockRecurrence, act: Any, acc: str):
        self.w, self.b, self.given, self.block, self.act, self.acc = w, b, given, block, act, acc

    def step(self, state: Val) -> tuple[Val, Val, Val]:
        """The next state [batch states width], and what tokens see of tokens and of states."""
        w, g = self.w, self.given
        own, rows = f"batch {w.states} {w.heads} {w.head}", f"batch {w.place} {w.heads}"
        x = self._normed(state, "norm_weight")
        x = self._map("x + p", x.dims, x=x, p=g["place"])
        of = {n: self.b.einsum(x, g[f"{n}_weight"], to=own) for n in STATES}
        for n in ("key", "query", "query_token"):
            of[n] = w.unit(self.b, of[n], self.acc)
        keys, values = (self.b.rename(of[n], w.states, w.keys) for n in ("key", "value"))
        near = f"where(i_{w.span} >= i_{w.place}, where(i_{w.span} < i_{w.place} + {w.size}, s, -oo), -oo)"
        token = self._attend(g["query"], g["key"], g["value"], rows, w.span, "scale_tokens", g["bias"], near)
        cross = self._attend(g["query_state"], keys, values, rows, w.keys, "scale_to_states")
        mine = f"batch {w.states} {w.heads}"
        self_seen = self._attend(of["query"], keys, values, mine, w.keys, "scale_states")
        seen = self._attend(of["query_token"], g["key"], g["value"], mine, w.span, "scale_to_tokens")
        return self._next(state, self_seen, seen), token, cross

    def _attend(
        self, q: Val, k: Val, v: Val, rows: str, over: str, scale: str, bias: Val | None = None, shown: str = "s"
    ) -> Val:
        """softmax((q·k + bias) |scale|) v: [rows head]."""
        b, to = self.b, f"{rows} {over}"
        dots = b.einsum(q, k, to=to)
        more = {} if bias is None else {"p": bias}
        formula = "(x + p)*abs(c)" if more else "x*abs(c)"
        s = self._map(formula, to.split(), x=dots, c=self.given[scale], **more)
        s = self._map(shown, s.dims, s=s) if shown != "s" else s
        top = b.detach(b.reduce(s, to=rows.split(), kind="max"))
        e = self._map("exp(s - t)", s.dims, s=s, t=top)
        out = b.einsum(e, v, to=f"{rows} {self.w.head}")
        return self._map("o / t", out.dims, o=out, t=b.reduce(e, to=rows.split()))

    def _next(self, state: Val, own: Val, seen: Val) -> Val:
        """The state behind its gates."""
        b, g, block = self.b, self.given, self.block
        to = state.dims
        parts = [b.einsum(x, g[f"{n}_weight"], to=to) for n, x in (("own", own), ("seen", seen))]
        y = self._map("a + b", to, a=parts[0], b=parts[1])
        if block.cell != "single":
            state = self._gated(state, y, "gate", {"own": own, "seen": seen})
            if block.cell == "skip":
                return state
            y = self._normed(state, "last_norm_weight")
        inner = next(d for d in g["up_weight"].dims if d != "width")
        h = b.einsum(y, g["up_weight"], to=[d if d != "width" else inner for d in to])
        h = b.map(self.act, x=h, to=h.dims, dtype=self.acc)
        y = b.einsum(h, g["down_weight"], to=to)
        y = self._map("tanh(y)", to, y=y) if block.cell == "single" else y
        return self._gated(state, y, "last_gate", {"hidden": h})

    def _gated(self, state: Val, y: Val, name: str, of: dict[str, Val]) -> Val:
        g, to = self.given, state.dims
        if self.block.gate == "fixed":
            return self._map("sigmoid(g)*s + sigmoid(-g)*y", to, g=g[f"{name}_bias"], s=state, y=y)
        found: dict[str, Val] = {}
        for part in ("forget", "enter"):
            products = {
                f"x{i}": self.b.einsum(x, g[f"{name}_{part}_{what}_weight"], to=to)
                for i, (what, x) in enumerate(of.items())
            }
            formula = " + ".join([*products, "b"])
            found[part] = self._map(formula, to, b=g[f"{name}_{part}_bias"], **products)
        return self._map("s*sigmoid(f + 1) + y*sigmoid(i - 1)", to, s=state, y=y, f=found["forget"], i=found["enter"])

    def _normed(self, x: Val, weight: str) -> Val:
        """x / sqrt(mean(x**2) + eps) times a gain."""
        square = self.b.reduce(self._map("x*x", x.dims, x=x), to=[d for d in x.dims if d != "width"])
        return self._map(f"x*rsqrt(r/n_width + {EPS})*w", x.dims, x=x, r=square, w=self.given[weight])

    def _map(self, formula: str, to: Any, **operands: Any) -> Val:
        return self.b.map(formula, to=to, dtype=self.acc, **operands)


def bucket(s: Scope, distance: Any, many: int, most: int) -> Any:
    """The bucket of a distance that is not negative, a formula (Raffel et al. 2020)."""
    one, none = s.ir.sympy.S.One, s.ir.sympy.S.Zero
    found: Any = s.ir.minimum(distance, s.ir.sympy.Integer(many // 2))
    return found + sum((s.ir.where(distance >= n, one, none) for n in bounds(many, most)), none)
