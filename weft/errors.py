"""Every error weft raises on purpose, and the exit code each one means. Nothing here imports the rest of weft."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

Path = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Place:
    """Where a value stands in a source: 1-based line and column, its width, and that line's text."""

    file: str
    line: int
    col: int
    width: int = 1
    text: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec.

    `path` says which value ("model", "blocks", 1, "chunk"); the front door turns it into a `place`. `offset` is a
    0-based character position inside a text value, for formulas; `on_key` points at the key instead of its value.
    `hint` is the way out, as a clause: "did you mean 'chunk'?".
    """

    code: str
    message: str
    path: Path = ()
    hint: str = ""
    offset: int = 0
    width: int = 0
    on_key: bool = False
    place: Place | None = None

    def under(self, prefix: Path) -> "Problem":
        """The same problem, seen from a value that lies at `prefix`."""
        return replace(self, path=(*prefix, *self.path))


class WeftError(Exception):
    """Anything weft refuses or fails at on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(WeftError):
    """A command or a call that cannot be meant: an unknown dim in --set, two options that exclude each other."""

    exit_code = 2


class SpecError(WeftError, ValueError):
    """A spec that cannot be used; `problems` holds all that was found, in order of place."""

    exit_code = 3

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(map(_told, self.problems)))

    @classmethod
    def at(cls, path: Path, code: str, message: str, hint: str = "") -> "SpecError":
        """One problem about the value at `path`."""
        return cls([Problem(code, message, path, hint)])


def _told(problem: Problem) -> str:
    place = problem.place
    where = f"{place.file}:{place.line}:{place.col}: " if place is not None and place.text else ""
    return f"{where}[{problem.code}] {problem.message}" + (f"; {problem.hint}" if problem.hint else "")


class InfeasibleError(WeftError):
    """No plan meets the constraints; `smallest` is the smallest budget, in bytes, that one would meet."""

    exit_code = 4

    def __init__(self, message: str, smallest: int | None = None):
        self.smallest = smallest
        super().__init__(message)


class BackendError(WeftError, RuntimeError):
    """A device, a library or a backend that the request needs is missing."""

    exit_code = 5


class CheckFailed(WeftError):
    """A verification ran to its end and found a difference."""


class VerifyError(WeftError, ValueError):
    """A graph, node or value breaks a rule of the verifier (see `weft.ir.verify`); the message holds its text."""


class DecodeError(WeftError, ValueError):
    """A block has no step: `node` ("y = reduce", of minted names) at the spec line `src`, and why."""

    def __init__(self, node: str, src: str, why: str) -> None:
        self.node, self.src, self.why = node, src, why
        super().__init__(f"{node}{f' at {src}' if src else ''} {why}")


class PassError(WeftError, RuntimeError):
    """A pass failed or broke the graph: names the pass, the passes already run, and the graph before it."""

    def __init__(self, name: str, why: str, done: Iterable[str] = (), before: str = ""):
        self.name, self.done, self.before = name, tuple(done), before
        super().__init__(f"pass {name} failed: {why}\npasses already run: {', '.join(self.done) or 'none'}\n{before}")


class FileError(UsageError, ValueError):
    """A file of a package that is damaged: which, where in it (1-based; 0: nowhere in particular), and how."""

    exit_code = 3

    def __init__(self, path: object, message: str, line: int = 0, column: int = 0) -> None:
        self.path, self.line, self.column = str(path), line, column
        super().__init__(":".join([self.path, *(str(n) for n in (line, column) if n)]) + f": {message}")


class PackError(WeftError, ValueError):
    """A pack of tuning results that cannot be used; `problems` holds (line, message) of all that was found."""

    exit_code = 3

    def __init__(self, path: str, problems: Iterable[tuple[int, str]]) -> None:
        self.path, self.problems = path, tuple(problems)
        super().__init__("\n".join(f"{path}:{line}: {message}" for line, message in self.problems))


class FormulaError(WeftError, ValueError):
    """A formula is refused. `text` is the formula, `column` (1-based) the place, `hint` the way out."""

    exit_code = 3

    def __init__(self, message: str, text: str = "", column: int = 1, hint: str = "") -> None:
        super().__init__(message + (f"; {hint}" if hint else "") + (f" (column {column} of {text!r})" if text else ""))
        self.message, self.text, self.column, self.hint = message, text, column, hint


class TextError(WeftError, ValueError):
    """The text form of a graph does not parse. `line` is 1-based."""

    exit_code = 3

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
