"""Layouts: the shapes in which a pattern is block-dense, as values. A pattern is a disjoint union of parts.

| layout                               | visible pairs                                                              |
|--------------------------------------|----------------------------------------------------------------------------|
| dense                                | all                                                                        |
| causal, strict, lag(steps)           | k <= q, k < q, k <= q - steps (steps may be negative)                      |
| window(width)                        | 0 <= q - k < width                                                         |
| band(left, right)                    | -left <= k - q <= right; either may be negative                            |
| diagonal(block, inner)               | q // block == k // block, and inner                                        |
| residues(modulus, inner)             | (q - k) % modulus == 0, and inner between q // modulus and k // modulus    |
| columns(modulus, start, width)       | start <= k % modulus < start + width, k // modulus < q // modulus          |
| rows(count, inner)                   | q < count, and inner                                                       |
| cols(count, start, inner)            | k < count, q >= start, and inner                                           |
| blocks(term)                         | a static table, blocks whole, with multiplicity                            |
| tiles(term)                          | any pattern: tiles of queries against what the solver says they touch      |

inner is dense, causal, strict, lag, window or band. `start` on causal, strict, lag, window, band and residues (default
0) is q >= start and k >= start: the layout of the sequence's end. A part holds for every length.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from weft.errors import FormulaError
from weft.ir.pattern.pattern import Pattern

ARGUMENTS = {
    "dense": (),
    "causal": (),
    "strict": (),
    "lag": ("steps",),
    "window": ("width",),
    "band": ("left", "right"),
    "diagonal": ("block",),
    "residues": ("modulus",),
    "columns": ("modulus", "start", "width"),
    "rows": ("count",),
    "cols": ("count", "start"),
    "blocks": (),
    "tiles": (),
}
"""The closed table of layouts, with the names of their integers."""
NESTING = ("diagonal", "residues", "rows", "cols")
SHIFTING = ("causal", "strict", "lag", "window", "band", "residues")


@dataclass(frozen=True)
class LayoutPart:
    """One part of a layout. `args` are named integers, in the order of ARGUMENTS, then `start` if it is not 0.

    inner: for NESTING layouts, as text ("causal", "window(64)"). term: the pattern of its visible pairs. heads: those
    it serves as (first, end, step), None for all. touched: (query, key) pairs computed for one head, at the length it
    was chosen for.
    """

    layout: str
    args: tuple[tuple[str, int], ...] = ()
    inner: str = ""
    term: Pattern = field(default_factory=lambda: Pattern.parse("all"))
    heads: tuple[int, int, int] | None = None
    touched: int = field(default=0, compare=False)

    def arg(self, name: str) -> int:
        """An argument; `start` is 0 where it is not given."""
        return dict(self.args).get(name, 0) if name == "start" else dict(self.args)[name]

    def __str__(self) -> str:
        return self.said()

    def said(self, longest: int | None = None) -> str:
        """The part as text; a term of more than `longest` characters cut short."""
        given = [f"{name}={value}" for name, value in self.args] + ([f"inner={self.inner}"] if self.inner else [])
        body = self.term.text if self.layout in ("tiles", "blocks") else ", ".join(given)
        body = body if longest is None or len(body) <= longest else f"{body[: longest - 4]} ..."
        where = f"heads {':'.join(map(str, self.heads))}: " if self.heads else ""
        return where + (f"{self.layout}({body})" if body else self.layout)


@dataclass(frozen=True)
class PatternLayout:
    """Disjoint parts whose union is the pattern. cost: in pairs over all heads, at the length it was chosen for.

    rejected: (layout of some heads as text, why, its cost for them).
    """

    parts: tuple[LayoutPart, ...]
    cost: int = field(default=0, compare=False)
    rejected: tuple[tuple[str, str, int], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts)) or "nothing"

    def summary(self, longest: int = 80) -> str:
        """For people: terms of more than `longest` characters cut short."""
        return " | ".join(p.said(longest) for p in self.parts) or "nothing"

    @staticmethod
    def parse(text: str) -> "PatternLayout":
        """The layout of a text that `str` gave. FormulaError: it is not one."""
        return PatternLayout(() if text == "nothing" else tuple(map(_read_part, text.split(" | "))))


_PART = re.compile(r"(?:heads (\d+):(\d+):(\d+): )?([a-z]+)(?:\((.*)\))?")


@lru_cache(maxsize=1024)
def part(layout: str, *values: int, inner: str = "", start: int = 0) -> LayoutPart:
    """A part of a symbolic layout, its term written from its arguments."""
    args = tuple(zip(ARGUMENTS[layout], values, strict=True))
    if layout in SHIFTING and start:
        args += (("start", start),)
    inner = inner or ("dense" if layout in NESTING else "")
    return LayoutPart(layout, args, inner, Pattern.parse(_term(layout, dict(args), inner)))


def general(layout: str, term: Pattern) -> LayoutPart:
    """A part `tiles` or `blocks`."""
    return LayoutPart(layout, term=term)


def _term(layout: str, args: dict[str, int], inner: str) -> str:
    """The visible pairs of a layout, in the grammar."""
    terms: list[str] = []
    if layout == "diagonal":
        terms.append(f"block_diagonal({args['block']})")
    elif layout == "residues":
        terms.append(f"strided({args['modulus']})")
    elif layout == "columns":
        m, first = args["modulus"], args["start"]
        return f"chunks_before({m}) and {first} <= k % {m} < {first + args['width']}"
    elif layout == "rows":
        terms.append(f"rows({args['count']})")
    elif layout == "cols":
        terms += [f"cols({args['count']})", *([f"q >= {args['start']}"] if args["start"] else [])]
    own = inner if layout in NESTING else f"{layout}({', '.join(str(args[a]) for a in ARGUMENTS[layout])})"
    core = core_text(own, args["modulus"] if layout == "residues" else 1)
    terms += [core] if core else []
    if layout in SHIFTING and args.get("start"):
        terms += [f"q >= {args['start']}", f"k >= {args['start']}"]
    return " and ".join(terms) or "all"


def core_text(text: str, step: int) -> str:
    """dense, causal, strict, window or band on q - k in steps of `step`, in the grammar; "" for dense."""
    name, _, rest = text.partition("(")
    numbers = [int(x) for x in rest.rstrip(")").split(",") if x.strip()]
    if name == "lag":
        return f"k <= q - {numbers[0] * step}"
    if name == "window":
        return f"window({(numbers[0] - 1) * step + 1})"
    if name == "band":
        return f"band({numbers[0] * step}, {numbers[1] * step})"
    return {"dense": "", "causal": "causal", "strict": "strict_causal"}[name]


def _read_part(text: str) -> LayoutPart:
    found = _PART.fullmatch(text.strip())
    if found is None or found[4] not in ARGUMENTS:
        raise FormulaError(f"not a layout: {text[:60]!r}", text)
    first, end, step, name, body = found.groups()
    heads = (int(first), int(end), int(step)) if first else None
    if name in ("tiles", "blocks"):
        return LayoutPart(name, term=Pattern.parse(body or "all"), heads=heads)
    body, _, inner = (body or "").partition("inner=")
    try:
        values = {k.strip(): int(v) for k, _, v in (a.partition("=") for a in body.split(",") if a.strip())}
        shift = values.pop("start", 0) if name in SHIFTING else 0
        made = part(name, *(values[a] for a in ARGUMENTS[name]), inner=inner, start=shift)
    except (KeyError, ValueError):
        raise FormulaError(f"not a layout: {text[:60]!r}", text) from None
    return LayoutPart(made.layout, made.args, made.inner, made.term, heads)
