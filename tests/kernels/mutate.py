"""Plant faults in the kernel skeletons, one at a time, and count how many the generated cases of their tests find.

    python -m tests.kernels.mutate [SUITE ...]        every fault of every suite (`make mutants`)

A suite is a module `NAME_faults` beside this file with

    FAULTS: tuple[Fault, ...]
    FILES: tuple[str, ...]          the kernel modules that cases use
    CASES: int                      how many cases a fault has to survive to count as not found
    case(modules, seed) -> str      what is wrong with the kernels in generated case `seed`, "" if nothing

where modules.rowwise, modules.attention_walks and so on are files of weft/codegen/skeletons (rowwise/kernel.py,
attention/walks.py) with the fault in one of them. A case that raises has found the fault too, if it passes without.
"""

import contextlib
import importlib
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KERNELS = Path(__file__).parents[2] / "weft" / "codegen" / "skeletons"
SUITES = tuple(f"tests.kernels.{p.stem}" for p in sorted(Path(__file__).parent.glob("*_faults.py")))
_serial = itertools.count()


@dataclass(frozen=True)
class Fault:
    """In `file`, occurrence number `nth` of `old` becomes `new`. file: "attention/walks", or a family's `kernel`."""

    name: str
    file: str
    old: str
    new: str
    nth: int = 0

    def plant(self, text: str) -> str:
        pieces = text.split(self.old)
        assert len(pieces) > self.nth + 1, f"{self.name}: {self.file}.py has no {self.old!r} number {self.nth}"
        before, after = self.old.join(pieces[: self.nth + 1]), self.old.join(pieces[self.nth + 1 :])
        return before + self.new + after


def where(file: str) -> Path:
    """A file of a fault in the folder of skeletons."""
    return Path(f"{file}.py" if "/" in file else f"{file}/kernel.py")


@contextlib.contextmanager
def planted(fault: Fault | None, files: Iterable[str]) -> Iterator[Any]:
    """The kernel modules `files`, and what they import, freshly loaded, with the fault in one (None: as they are)."""
    package = f"weft_planted_{next(_serial)}"
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / package
        shutil.copytree(KERNELS, here, ignore=shutil.ignore_patterns("__pycache__", "writer"))
        (here / "__init__.py").write_text("")
        if fault is not None:
            path = here / where(fault.file)
            path.write_text(fault.plant(path.read_text()))
        sys.path.insert(0, folder)
        try:
            importlib.invalidate_caches()
            named = {f.replace("/", "_"): ".".join((package, *where(f).with_suffix("").parts)) for f in files}
            yield SimpleNamespace(**{f: importlib.import_module(name) for f, name in named.items()})
        finally:
            sys.path.remove(folder)
            for name in [m for m in sys.modules if m.split(".")[0] == package]:
                del sys.modules[name]


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """A case that does not end is a case that raises."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def found(case: Callable[[Any, int], str], modules: Any, seeds: Iterable[int], seconds: int = 60) -> tuple[int, str]:
    """(how many cases it took, what was wrong); (0, "") if all of them pass."""
    for n, seed in enumerate(seeds):
        try:
            with limit(seconds):
                wrong = case(modules, seed)
        except Exception as e:
            wrong = f"{type(e).__name__}: {str(e)[:100]}"
        if wrong:
            return n + 1, wrong
    return 0, ""


def missed(suite: Any, faults: Iterable[Fault], cases: int, say: Callable[[str], object] = lambda _: None) -> list[str]:
    """Names of the faults that `cases` cases do not find."""
    out = []
    for fault in faults:
        with planted(fault, suite.FILES) as modules:
            n, wrong = found(suite.case, modules, range(cases))
        if n:
            with planted(None, suite.FILES) as modules:
                assert (fault.name, suite.case(modules, n - 1)) == (fault.name, "")
        say(f"{fault.file}: {fault.name:50} " + (f"case {n}: {wrong}" if n else "NOT FOUND"))
        out += [] if n else [fault.name]
    return out


def main(names: list[str]) -> int:
    """Every fault of the suites whose names contain one of `names`; 0 if 95 % are found in each."""
    bad, start, total = 0, time.time(), 0
    for suite in SUITES:
        if names and not any(n in suite for n in names):
            continue
        module = importlib.import_module(suite)
        lost = missed(module, module.FAULTS, module.CASES, lambda line: print(line, flush=True))
        total += len(module.FAULTS)
        bad += len(lost) > 0.05 * len(module.FAULTS)
        print(f"{suite}: {len(module.FAULTS) - len(lost)} of {len(module.FAULTS)} found", flush=True)
    print(f"{total} faults, {time.time() - start:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
