"""Lines of Python as `ruff format` would leave them, so that emitted files read well without a formatter at hand.

Statements arrive on one line; a long one is broken at its last bracket pair: contents on one line if they fit, else one
item a line with a trailing comma. What weft prints keeps to statements for which that is the formatter's own choice.
Any other is broken too, if less prettily, and always means what it meant: a line ends only inside brackets, new ones go
around a whole expression, and a comma goes where it makes no tuple of one.
"""

import keyword
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import pairwise

WIDTH = 120
_OPEN, _CLOSE = "([{", ")]}"
_TEXT = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)
_PARAMETERS = re.compile(r"\blambda\b[^:]*:")
_LEAD = re.compile(r"return | (?:[-+*/%@&|^]|//|\*\*|<<|>>)?= ")
_SIGNS = tuple(
    re.compile(f" (?:{signs})(?= )")
    for signs in (
        *("if|else", "or", "and", r"not in|is not|in|is|[<>=!]=|<|>", r"\|", r"\^", "&", "<<|>>", r"\+|-"),
        r"\*|/|//|%|@",
    )
)
"""Operators between operands, the loosest first."""


class Lines:
    """Collects lines of source; `with lines.indent("def f():")` opens a suite."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self.depth = depth

    def add(self, statement: str = "", comment: str = "") -> None:
        """Append one statement (or a blank line); the comment goes behind it, or is dropped where it does not fit."""
        broken = fit(statement, self.depth) if statement else [""]
        if comment and len(broken) == 1 and len(broken[0]) + 4 + len(comment) <= WIDTH:
            broken = [f"{broken[0]}  # {comment}"]
        self.lines += broken

    def note(self, comment: str) -> None:
        """Append a comment line, cut to the width."""
        self.lines.append((" " * 4 * self.depth + f"# {comment}")[:WIDTH].rstrip())

    def text(self, block: str) -> None:
        """Append ready lines at the present depth (docstrings, hand-written snippets)."""
        self.lines += [(" " * 4 * self.depth + line).rstrip() for line in block.strip("\n").split("\n")]

    @contextmanager
    def indent(self, head: str) -> Generator[None]:
        """Print `head` and indent what follows."""
        self.add(head)
        self.depth += 1
        yield
        self.depth -= 1

    def source(self) -> str:
        """The file: never more than two blank lines together, one newline at the end."""
        kept = [line for i, line in enumerate(self.lines) if line or any(self.lines[max(0, i - 2) : i])]
        return "\n".join(kept).strip("\n") + "\n"


def fit(statement: str, depth: int = 0, width: int = WIDTH) -> list[str]:
    """One logical line -> the lines ruff would print at this depth."""
    pad = " " * 4 * depth
    if len(pad) + len(statement) <= width:
        return [pad + statement]
    outline = _outline(statement)
    lead = _lead(outline)
    if lead and (len(split(statement[lead:])) > 1 or len(_terms(statement[lead:])) > 2):
        return _wrapped(statement, lead, depth, width)
    start, end = _last_brackets(outline)
    if start < 0:
        return _wrapped(statement, lead, depth, width) if lead else [pad + statement]
    if len(pad) + start >= width and lead:
        return _chained(statement, lead, start, depth, width)
    head, body, tail = statement[: start + 1], statement[start + 1 : end], statement[end:]
    items, inner = split(body), pad + "    "
    if len(items) > 1 and (not _called(outline, start) or len(inner) + len(body) > width):
        return [pad + head, *(line for item in items for line in _item(item, depth + 1, width)), pad + tail]
    if len(inner) + len(body) <= width:
        return [pad + head, inner + body, pad + tail]
    comma = _separates(outline, start, body)
    return [pad + head, *_item(body.removesuffix(","), depth + 1, width, comma), pad + tail]


def split(text: str) -> list[str]:
    """Split at the commas between items: `a, f(b, c)` -> [`a`, `f(b, c)`]; a comprehension is one item."""
    outline = _outline(text)
    if " for " in outline:
        return [text.strip()]
    cuts = [-1, *(i for i, c in enumerate(outline) if c == ","), len(text)]
    return [part for a, b in pairwise(cuts) if (part := text[a + 1 : b].strip())]


def call(name: str, *args: object, **named: object) -> str:
    """`call("f", "x", dim=1)` -> `f(x, dim=1)`."""
    return f"{name}({', '.join([*map(str, args), *(f'{k}={v}' for k, v in named.items())])})"


def tuple_of(items: Iterable[str]) -> str:
    """A tuple display: `(a,)`, `(a, b)`."""
    items = list(items)
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _item(item: str, depth: int, width: int, comma: bool = True) -> list[str]:
    """What stands on lines of its own inside brackets: broken before operators, or as a statement is."""
    room, pad = width - comma, " " * 4 * depth
    terms = _terms(item)
    if len(pad) + len(item) <= room:
        lines = [pad + item]
    elif len(terms) > 2 or (len(terms) == 2 and _last_brackets(_outline(item))[0] < 0):
        lines = [line for term in terms for line in fit(term, depth, room)]
    else:
        lines = fit(item, depth, room)
    return [*lines[:-1], lines[-1] + ("," if comma else "")]


def _wrapped(statement: str, lead: int, depth: int, width: int) -> list[str]:
    """`y = a + b` that is too long gets parentheses around its right-hand side, an operator leading each line."""
    pad, head, body = " " * 4 * depth, statement[:lead], statement[lead:]
    items = split(body)
    if len(items) > 1 or body.endswith(","):
        lines = [line for item in items for line in _item(item, depth + 1, width)]
    else:
        lines = _item(body, depth + 1, width, comma=False)
    return [f"{pad}{head}(", *lines, f"{pad})"]


def _chained(statement: str, lead: int, start: int, depth: int, width: int) -> list[str]:
    """`y = f(a, b).g(c)` whose last call starts past the width: the call before it is broken instead,
    its contents on one line if they fit."""
    pad, dot = " " * 4 * depth, _outline(statement).rfind(").", lead, start)
    before, rest = statement[: dot + 1], statement[dot + 1 :]
    first, last = _last_brackets(_outline(before)) if dot > 0 else (-1, -1)
    body = before[first + 1 : last]
    if first >= 0 and len(pad) + 1 + len(rest) <= width:
        items = split(body)
        if len(pad) + 4 + len(body) <= width:
            return [pad + before[: first + 1], f"{pad}    {body}", f"{pad}){rest}"]
        if not body.endswith(","):
            inside = [line for item in items for line in _item(item, depth + 1, width, len(items) > 1)]
            return [pad + before[: first + 1], *inside, f"{pad}){rest}"]
    return [f"{pad}{statement[:lead]}(", *fit(statement[lead:], depth + 1, width), f"{pad})"]


def _outline(text: str) -> str:
    """The text with strings, parameters of a lambda and insides of brackets blanked: `f(a) + "b"` -> `f(_) + ___`."""
    out, depth = list(_TEXT.sub(lambda m: "_" * len(m[0]), text)), 0
    for i, c in enumerate(out):
        depth -= c in _CLOSE
        if depth:
            out[i] = "_"
        depth += c in _OPEN
    return _PARAMETERS.sub(lambda m: "_" * len(m[0]), "".join(out))


def _lead(outline: str) -> int:
    """Where the expression of `y = ..` or `return ..` starts; 0 in any other statement."""
    found = [m.end() for m in _LEAD.finditer(outline) if m[0] != "return " or not m.start()]
    return found[-1] if found else 0


def _terms(body: str) -> list[str]:
    """Cut before the loosest operators: `a + b*c - d` -> `a`, `+ b*c`, `- d`."""
    outline = _outline(body)
    for signs in _SIGNS:
        cuts = [0, *(m.start() + 1 for m in signs.finditer(outline)), len(body)]
        if len(cuts) > 2:
            return [body[a:b].strip() for a, b in pairwise(cuts)]
    return [body]


def _last_brackets(outline: str) -> tuple[int, int]:
    """Positions of the bracket pair that ends the statement (before a colon), or (-1, -1)."""
    end = len(outline) - 1 - outline.endswith(":")
    if outline[end] not in _CLOSE:
        return -1, -1
    start = max(outline.rfind(c, 0, end) for c in _OPEN)
    return (start, end) if end - start > 1 else (-1, -1)


def _called(outline: str, start: int) -> bool:
    """Are these the parentheses of a call, or of parameters?"""
    return outline[start] == "(" and _follows(outline, start)


def _follows(outline: str, start: int) -> bool:
    """Does the bracket follow a value, which it calls or looks up in?"""
    word = re.search(r"\w+$", outline[:start])
    return not keyword.iskeyword(word[0]) if word else outline[start - 1 : start] in (*_CLOSE,)


def _separates(outline: str, start: int, body: str) -> bool:
    """May a comma follow the one item in these brackets? It would make a tuple of what stands in plain parentheses or
    is looked up, and no sense behind a comprehension."""
    if " for " in _outline(body):
        return False
    tuple_of_one = body.endswith(",")
    if outline[start] == "(":
        return tuple_of_one or _called(outline, start)
    return tuple_of_one or outline[start] == "{" or not _follows(outline, start)
