"""Where tokens stand, in rows of several documents or with padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.types import Node, Type, Val, need


@dataclass(frozen=True)
class Places(Composite):
    """How many tokens of its document come before a token along `along`, and which document of its row it is in.

    Operands: with `documents` segments i64[rows along], whose equal neighbours are one document; with `padding` valid
    bool[rows along], the tokens that count. Then, to go on from earlier tokens, what those left, i64[rows] each: with
    `documents` how many documents there were and the last segment, and how many tokens of the last document. Without
    them there were none. Results: place i64[rows along], of a token that does not count that of the next; with
    `documents` document i64[rows along], from 0 on.
    """

    along: str
    documents: bool = False
    padding: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """The operands that there always are, by name."""
        return (*(["segments"] if self.documents else []), *(["valid"] if self.padding else []))

    @property
    def left(self) -> tuple[str, ...]:
        """What earlier tokens left, by name."""
        return (*(["begun", "last"] if self.documents else []), "count")

    def expand(self, g: Builder, *x: Val) -> tuple[Val, ...]:
        many, known = len(self.given), len(x) > len(self.given)
        need(many > 0, "places are counted in documents or over padding")
        need(len(x) in (many, many + len(self.left)), f"places wants {(*self.given, *self.left)}, got {len(x)}")
        rows = tuple(d for d in x[0].dims if d != self.along)
        first = x[many:] if known else [g.map(0, to=rows, dtype="i64") for _ in self.left]
        real = "where(valid, 1, 0)" if self.padding else "1"
        let = {"new": "where(begun == 0 or segments != last, 1, 0)"} if self.documents else {}
        let |= {"place": "where(new > 0, 0, count)"} if self.documents else {}
        after = {"begun": "begun + new", "last": "segments", "count": f"{'place' if let else 'count'} + {real}"}
        state = {name: (after[name], start) for name, start in zip(self.left, first)}
        out = {"place": "place", "document": "begun + new - 1"} if self.documents else {"place": "count"}
        operands = dict(zip(self.given, x))
        made = g.scan(self.along, state, out, let, operands=operands, to=rows, dtype="i64")
        return tuple(g.expand(made[name], to=x[0].dims) for name in out)

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """Of earlier tokens the last row is read; all are held, so that a state can be cut back."""
        if self.along != s.time or len(ins) > len(self.given):
            return super().step(s, n, ins)
        given, key = [s.value(x) for x in ins], f"{self.along}_row"
        known = dict(zip(self.given, given))
        like = {"begun": n.outs[-1], "last": known.get("segments", n.outs[0]), "count": n.outs[0]}
        held = {name: s.held(like[name], key)[0] for name in self.left}
        last = f"where(i_past_{key} == n_past_{key} - 1 and pos > 0, x, 0)"
        rows = [s.g.map(last, x=v, pos=s.fed.pos, to=v.dims, dtype="i64") for v in held.values()]
        before = [s.g.reduce(v, to=(s.rows,)) for v in rows]
        outs = s.g.many(self, *given, *before, names=[v.name for v in n.outs])
        real = {"v": known["valid"]} if self.padding else {}
        more = "where(v, p + 1, p)" if real else "p + 1"
        new: dict[str, Any] = {"count": s.g.map(more, p=outs[0], **real, dtype="i64"), "last": known.get("segments")}
        if self.documents:
            new["begun"] = s.g.map("d + 1", d=outs[1], dtype="i64")
        for name, value in held.items():
            s.keeps(n, value, new[name], key)
        return outs

    def direct(self, types: tuple[Type, ...]) -> bool:
        return len(types[0].dims) == 2 and types[0].dims[1] == self.along
