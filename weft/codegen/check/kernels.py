"""The kernels of a package, run and compared: each alone with its region's graph, all together with the reference.

On a CPU they run in Triton's interpreter, in float64 and float32, for on bfloat16 it is silently wrong (`one_dtype`);
on a GPU for real. Either way in a process of its own, since triton reads at its import whether it interprets:

    with Running(program, folder) as running:     the process has begun
        ...
        running.into(found)                       its rows and notes, once it is done

A kernel is judged by the operands that the model gives it. Where one is found wrong, they run again with every result
replaced by the reference's, so that what it computed makes no other look wrong: the kernels' rows are of that run.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import weft
from weft.codegen.check.calling import call
from weft.codegen.check.one_dtype import OneDtype, uniform
from weft.codegen.check.verify import FREE, Comparison, Truth, Verified, case, compare, loaded
from weft.codegen.package.disk import load
from weft.codegen.package.reading import place
from weft.codegen.package.saved import read
from weft.ir.indices import targets
from weft.ir.program import Program
from weft.ir.reference import run
from weft.ir.text import parse
from weft.ir.types import Graph, torch_dtype
from weft.progress import doing

Watch = Callable[[int, int], object]
MOST_PARAMETERS = 1 << 24
"""Of a model whose kernels are interpreted."""
SECONDS = 240.0
"""After so long an interpreted run is given up."""
SMALL = "`weft verify SPEC --small` runs them at small sizes"


class Running:
    """The comparison under way, in a process that ends with the `with` block. seed: of inputs and parameters."""

    def __init__(self, program: Program, folder: str | os.PathLike[str], seed: int = 0) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.refused = self._refused(program, Path(folder))
        self.process: subprocess.Popen[str] | None = None
        self.began = time.monotonic()
        if not self.refused:
            self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- lives as long as the process
            command = [sys.executable, "-m", __name__, os.path.abspath(folder), self.device, str(seed)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
            self.process = subprocess.Popen(command, env=self._environment(), **pipes)
            self.told: dict[str, Any] = {}
            self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
            self.reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Every line is JSON: how far it is, and in the end what was found."""
        assert process.stdout is not None
        for line in process.stdout:
            self.told = json.loads(line)

    def _refused(self, program: Program, folder: Path) -> str:
        """Why kernels are not run here; "" where they are."""
        if not any((folder / "kernels").glob("k[0-9]*.py")):
            return "the package has no kernels"
        if importlib.util.find_spec("triton") is None:
            return "kernels were not run: triton is not installed"
        if os.environ.get("WEFT_KERNELS") == "torch":
            return "kernels were not run: WEFT_KERNELS is torch"
        count = program.parameter_count()
        if self.device == "cpu" and count > MOST_PARAMETERS:
            return f"kernels were not run: the interpreter is too slow for {count:,} parameters; {SMALL}"
        return ""

    def _environment(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if k not in ("WEFT_KERNELS", "TRITON_INTERPRET")}
        own |= {"WEFT_KERNELS": "interpret", "TRITON_INTERPRET": "1"} if self.device == "cpu" else {}
        home = str(Path(weft.__file__).parents[1])  # the same weft, wherever it was imported from
        return own | {"PYTHONPATH": os.pathsep.join([home, *filter(None, [own.get("PYTHONPATH")])])}

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.reader.join()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.errors.close()

    def into(self, found: Verified) -> None:
        """Wait, and add what it found."""
        if self.process is None:
            found.notes.append(self.refused)
            return
        while self.process.poll() is None:
            if time.monotonic() - self.began > SECONDS:
                found.notes.append(f"kernels were not compared: not done after {SECONDS:.0f} s; {SMALL}")
                return
            doing("verifying: kernels", self.told.get("done", 0), self.told.get("of", 0))
            self.reader.join(0.2)
        self.reader.join()
        if self.process.returncode:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or [f"exit {self.process.returncode}"]
            found.rows.append(Comparison("kernels", "", "", float("inf"), 0.0, 0))
            found.notes.append(f"kernels could not be run: {said[-1][:300]}")
            return
        found.rows += [Comparison(**row) for row in self.told["rows"]]
        found.notes += self.told["notes"]


# The process


class Broken(Exception):
    """A kernel that does not run."""

    def __init__(self, kernel: str, error: Exception, folder: Path) -> None:
        path, line = place(error, folder) or (folder / f"kernels/{kernel}.py", 0)
        where = f"{path.relative_to(folder)}:{line}" if line else str(path.relative_to(folder))
        super().__init__(f"{kernel}: {where}: {type(error).__name__}: {error}"[:300].replace("\n", " "))
        self.row = Comparison(kernel, "", "it does not run", float("inf"), 0.0, 0)


@dataclass(frozen=True)
class KernelRegion:
    """What a kernel computes, and the names of its results."""

    graph: Graph
    results: tuple[str, ...]


class KernelCheck(TorchDispatchMode):
    """Compares each kernel that runs inside with its region's graph in float64. rows: the worst call of each.

    runs: what the ops run, by kernel, where all is in float64 whatever the package says. alone: what runs next gets the
    graph's results and not the kernel's; one that does not run is a row too. watch: told how many kernels were seen."""

    def __init__(
        self, namespace: str, folder: Path, regions: Mapping[str, KernelRegion], sizes: Mapping[str, int], dtype: str,
        runs: Mapping[str, Callable[..., Any]] | None = None, alone: bool = False,
        watch: Callable[[int], object] = lambda count: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.namespace, self.folder, self.regions, self.sizes, self.dtype = namespace, folder, regions, sizes, dtype
        self.runs, self.alone, self.watch = runs, alone, watch
        self.rows: dict[str, Comparison] = {}
        self.notes: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != self.namespace:
            return func(*args, **(kwargs or {}))
        kernel = func._opname
        if kernel not in self.regions:
            return self.launched(kernel, func, args)
        region = self.regions[kernel]
        given = [torch.as_tensor(a).cpu() for a in args]
        with torch.no_grad():
            want = dict(zip(region.results, run(region.graph, self.sizes, given, torch, torch.float64)))
        try:
            out = self.launched(kernel, func, args)
            row = self.compared(kernel, given, out if isinstance(out, tuple | list) else (out,), want)
        except Broken as error:
            if not self.alone:
                raise
            out, row = None, error.row
            self.notes += [str(error)] if kernel not in self.rows else []
        if kernel not in self.rows or row.error > self.rows[kernel].error:
            self.rows[kernel] = row
            self.watch(len(self.rows))
        return self.instead(func, args, list(want.values())) if self.alone else out

    def launched(self, kernel: str, func: Any, args: Any) -> Any:
        """The kernel's results; no mode sees what an op does inside, so in another dtype its function is called."""
        try:
            return (func if self.runs is None else self.runs[kernel])(*args)
        except Exception as error:
            raise Broken(kernel, error, self.folder) from error

    def compared(
        self, kernel: str, given: Sequence[Tensor], out: Sequence[Tensor], want: Mapping[str, Tensor]
    ) -> Comparison:
        got = {n: y.cpu() for n, y in zip(want, out, strict=True)}
        return compare(kernel, self.dtype, got, want, beside=given, floor=1.0)  # a sum of large terms may be small

    def instead(self, func: Any, args: Sequence[Any], want: Sequence[Tensor]) -> Any:
        """The graph's results as the kernel would give them: dtypes and device from its fake."""
        if self.runs is not None:
            return tuple(want) if len(want) > 1 else want[0]
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            seen = func(*(fake.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
        several = isinstance(seen, tuple | list)
        out = [y.to(s.device, s.dtype).contiguous() for y, s in zip(want, seen if several else (seen,), strict=True)]
        return tuple(out) if several else out[0]


def check(folder: Path, device: str, seed: int, watch: Watch = lambda done, of: None) -> Verified:
    """Everything, in this process. device: "cpu", where the interpreter is switched on, or "cuda"."""
    program, alone = read(folder), regions(folder)
    one = uniform(program)
    dtypes = ["f32" if one else own_dtype(program)] if device == "cuda" else ["f64", "f32"] if one else ["f64"]
    found = Verified()
    sizes, params, inputs, _ = case(program, seed)
    truth = Truth(program, params, inputs, sizes)
    package = load(folder)
    try:
        namespace, runs = imported(package.__name__, folder)
        for i, dtype in enumerate(dtypes):
            held = torch_dtype(torch, dtype) if one or device == "cpu" else None
            module = loaded(package.Model(), params, held).to(device)
            seen = partial(_seen, watch, i * len(alone), len(dtypes) * len(alone))
            own = None if one or device == "cuda" else runs
            make = partial(KernelCheck, namespace, folder, alone, sizes, dtype, own, watch=seen)
            rows, notes = judged(truth, module, dtype, make, device)
            told = dtype == dtypes[0]  # in another dtype only what is wrong
            found.rows += [r for r in rows if told or r.check not in alone or not r.ok]
            found.notes += [note for note in notes if note not in found.notes]
    except Broken as error:
        found.rows.append(error.row)
        found.notes.append(str(error))
    found.notes += remarks(folder, alone, found, device)
    return found


def _seen(watch: Watch, before: int, of: int, count: int) -> None:
    watch(before + count, of)


def judged(
    truth: Truth, module: nn.Module, dtype: str, make: Callable[..., KernelCheck], device: str
) -> tuple[list[Comparison], list[str]]:
    """The rows of the model that runs its kernels, and those of its kernels; alone, where one of them is wrong."""
    mode, rows = make(), list[Comparison]()
    try:
        rows = whole(truth, module, dtype, mode, device)
    except Broken as error:
        if error.row.check not in mode.regions:
            raise
        mode.rows[error.row.check] = error.row
    if not all(r.ok for r in mode.rows.values()):
        mode = make(alone=True)
        whole(truth, module, dtype, mode, device)
    wrong = [f"wrong by itself: kernels/{k}.py" for k in sorted(mode.rows) if not mode.rows[k].ok]
    return [*rows, *(mode.rows[k] for k in sorted(mode.rows))], [*mode.notes, *wrong]


def whole(truth: Truth, module: nn.Module, dtype: str, mode: KernelCheck, device: str) -> list[Comparison]:
    """Outputs, and gradients of all of them, of a model that runs its kernels; of some alone, and without targets,
    while a kernel has not been reached."""
    floating = torch_dtype(torch, dtype) if device == "cpu" else next(module.parameters()).dtype
    inputs = {n: x.to(device, floating if x.is_floating_point() else x.dtype) for n, x in truth.inputs.items()}
    rows: list[Comparison] = []
    for what, names in truth.objectives().items():
        if rows and (not truth.program.train or mode.regions.keys() <= mode.rows.keys()):
            break
        left = targets(truth.program) if what == FREE else ()
        with OneDtype(torch.float64) if mode.runs is not None else nullcontext(), mode:
            found = call(truth.program, module, {n: x for n, x in inputs.items() if n not in left})
            out = {n: y.cpu() for n, y in found.items() if y is not None}
            if not rows:
                rows.append(compare("outputs, kernels", dtype, out, truth.outputs))
            if truth.program.train:
                parameters = dict(module.named_parameters())
                total = truth.objective(out, names)
                got = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
                grads = {n: g.cpu() for n, g in zip(parameters, got)}
                rows.append(compare(f"{what}, kernels", dtype, grads, truth.grads[what], terms=truth.terms))
    return rows


def own_dtype(program: Program) -> str:
    """The narrowest float that the program computes in."""
    return next(d for d in ("bf16", "f16", "f32") if d in (program.policy.compute, program.policy.params))


def imported(package: str, folder: Path) -> tuple[str, dict[str, Callable[..., Any]]]:
    """The namespace of a package's ops, and what each runs, every region file imported. Broken: one that cannot be."""
    runs: dict[str, Callable[..., Any]] = {}
    for path in sorted((folder / "kernels").glob("k[0-9]*.py")):
        try:
            runs[path.stem] = importlib.import_module(f"{package}.kernels.{path.stem}").run
        except Exception as error:
            raise Broken(path.stem, error, folder.absolute()) from error
    return importlib.import_module(f"{package}.kernels.common.ops").NAMESPACE, runs


def regions(folder: Path) -> dict[str, KernelRegion]:
    """Kernel -> what it computes, as regions.json says; {} where there is no such file."""
    try:
        known = json.loads((folder / "regions.json").read_text())["regions"]
    except FileNotFoundError:
        return {}
    return {k: KernelRegion(parse(r["graph"]), tuple(r["results"])) for k, r in known.items()}


def remarks(folder: Path, alone: Mapping[str, KernelRegion], found: Verified, device: str) -> list[str]:
    """How many kernels were compared, where, and what of the others."""
    every = sorted(p.stem for p in (folder / "kernels").glob("k[0-9]*.py"))
    seen = {r.check for r in found.rows if r.tensors} & set(every)
    where = torch.cuda.get_device_name(0) if device == "cuda" else "Triton's interpreter"
    out = [f"{len(seen)} of {len(every)} kernels compared, in {where}"]
    if unknown := [k for k in every if k not in alone]:
        out.append(f"regions.json does not say what these compute alone: {', '.join(unknown)}")
    missed = [k for k in every if k in alone and k not in seen]
    if missed and found.ok:
        out.append(f"not reached at these sizes: {', '.join(missed)}")
    return out


def quicken() -> None:
    """Let the interpreter replace triton.language once a launch, and not again in every function that it calls; and let
    it compute no conditions of asserts that only a debug mode makes. The two take most of its time."""
    import triton.language as tl  # a GPU's compiler, which not every machine has
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    plain: Any = interpreter._patch_lang
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def once(fn: Any) -> Any:
        return plain(everything)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang = once
    interpreter.InterpretedFunction.__call__ = call  # type: ignore[method-assign]


def main(folder: str, device: str, seed: str) -> None:
    """Print how far it is, and then what is found, as lines of JSON."""
    warnings.simplefilter("ignore")
    if device == "cpu":
        quicken()

    def watch(done: int, of: int) -> None:
        print(json.dumps({"done": done, "of": of}), flush=True)

    found = check(Path(folder), device, int(seed), watch)
    print(json.dumps({"rows": [asdict(r) for r in found.rows], "notes": found.notes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
