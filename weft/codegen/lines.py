"""Lines of Python as `ruff format` would leave them, so that emitted files read well without a formatter at hand.

Statements arrive on one line; a long one is broken at its last bracket pair: contents on one line if they fit, else one
item a line with a trailing comma. What weft prints keeps to statements for which that is the formatter's own choice.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

WIDTH = 120
_OPEN, _CLOSE = "([{", ")]}"


class Lines:
    """Collects lines of source; `with lines.indent("def f():")` opens a suite."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

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
    if statement.startswith("return ") and len(split(statement[7:])) > 1:
        return _wrapped(statement, depth, width)
    start, end = _last_brackets(statement)
    if start < 0:
        return _wrapped(statement, depth, width)
    head, body, tail = statement[: start + 1], statement[start + 1 : end], statement[end:]
    if len(pad) + len(head) > width and " = " in head:
        return _chained(statement, start, depth, width)
    items = split(body)
    call = start > 0 and (statement[start - 1].isalnum() or statement[start - 1] in "_)]") and statement[start] == "("
    inner = pad + "    "
    if len(items) > 1 and (not call or len(inner) + len(body) > width):
        lines = [line for item in items for line in _item(item, depth + 1, width)]
        return [pad + head, *lines, pad + tail]
    if len(inner) + len(body) <= width:
        return [pad + head, inner + body, pad + tail]
    body = body.removesuffix(",")  # of a tuple of one
    return [pad + head, *_item(body, depth + 1, width, comma=not body.startswith("*")), pad + tail]


def split(text: str, mark: str = ",") -> list[str]:
    """Split at the commas (or another mark) outside brackets and strings: `a, f(b, c)` -> [`a`, `f(b, c)`]."""
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in _OPEN or c in _CLOSE:
            depth += 1 if c in _OPEN else -1
        elif depth == 0 and text.startswith(mark, i):
            parts.append(text[start:i].strip())
            start = i + len(mark)
    parts.append(text[start:].strip())
    return [p for p in parts if p]


def call(name: str, *args: object, **named: object) -> str:
    """`call("f", "x", dim=1)` -> `f(x, dim=1)`."""
    return f"{name}({', '.join([*map(str, args), *(f'{k}={v}' for k, v in named.items())])})"


def tuple_of(items: Iterable[str]) -> str:
    """A tuple display: `(a,)`, `(a, b)`."""
    items = list(items)
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _item(item: str, depth: int, width: int, comma: bool = True) -> list[str]:
    """One element of a broken bracket, itself broken where it must be."""
    lines = fit(item, depth, width - comma)
    return [*lines[:-1], lines[-1] + ("," if comma else "")]


def _wrapped(statement: str, depth: int, width: int) -> list[str]:
    """`y = a + b` that is too long gets parentheses around its right-hand side, an operator leading each line."""
    for lead in ("return ", " = "):
        at = statement.find(lead)
        if at >= 0 and (lead != "return " or at == 0):
            head, body = statement[: at + len(lead)], statement[at + len(lead) :]
            break
    else:
        return [" " * 4 * depth + statement]
    pad, inner = " " * 4 * depth, " " * 4 * (depth + 1)
    items = split(body)
    if len(items) > 1:
        return [f"{pad}{head}(", *(line for item in items for line in _item(item, depth + 1, width)), pad + ")"]
    if len(inner) + len(body) <= width:
        return [f"{pad}{head}(", inner + body, pad + ")"]
    lines = [inner + term for term in _terms(body)]
    return [f"{pad}{head}(", *lines, pad + ")"]


def _chained(statement: str, start: int, depth: int, width: int) -> list[str]:
    """`y = f(a, b).g(c)` whose last call starts past the width: the call before it is broken instead."""
    pad, dot = " " * 4 * depth, statement.rfind(").", 0, start)
    before, rest = statement[: dot + 1], statement[dot + 1 :]
    first, last = _last_brackets(before) if dot > 0 else (-1, -1)
    body = before[first + 1 : last]
    if first >= 0 and len(pad) + 4 + len(body) <= width and len(pad) + 1 + len(rest) <= width:
        return [pad + before[: first + 1], f"{pad}    {body}", f"{pad}){rest}"]
    left, right = statement.split(" = ", 1)
    return [f"{pad}{left} = (", *fit(right, depth + 1, width), pad + ")"]


def _terms(body: str) -> list[str]:
    """Cut at the loosest top-level operators: `a + b*c - d` -> `a`, `+ b*c`, `- d`."""
    for marks in ((" | ",), (" & ",), (" + ", " - "), (" * ", " / ", " @ ")):
        cuts, depth = [0], 0
        for i, c in enumerate(body):
            depth += (c in _OPEN) - (c in _CLOSE)
            if depth == 0 and i and any(body.startswith(m, i) for m in marks):
                cuts.append(i + 1)
        if len(cuts) > 1:
            return [body[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(body)])]
    return [body]


def _last_brackets(statement: str) -> tuple[int, int]:
    """Positions of the bracket pair that ends the statement (before a colon), or (-1, -1)."""
    end = len(statement) - 1 - (statement.endswith(":"))
    if statement[end] not in _CLOSE:
        return -1, -1
    depth = 0
    for i in range(end, -1, -1):
        depth += (statement[i] in _CLOSE) - (statement[i] in _OPEN)
        if depth == 0:
            return (i, end) if end - i > 1 else (-1, -1)
    return -1, -1
