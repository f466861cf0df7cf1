"""The kernels of a package, run and compared: each alone with its region's graph, all together with the reference.

On a CPU they run in Triton's interpreter, in float64 and float32, for on bfloat16 it is silently wrong; on a GPU for
real. Either way in a process of its own, since triton reads at its import whether it interprets:

    with Running(program, folder) as running:     the process has begun
        ...
        running.into(found)                       its rows and notes, once it is done

A kernel is judged by the operands that the model gives it, so that a wrong one makes no other look wrong, but for the
backward of a norm whose forward gave it wrong statistics.
"""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weft.ir.program import Program
from weft.ir.reference import run
from weft.ir.text import parse
from weft.ir.types import Graph

from .verify import TORCH, Row, Truth, Verified, case, compare, loaded

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
        home = str(Path(__file__).parents[2])  # the same weft, wherever it was imported from
        return own | {"PYTHONPATH": os.pathsep.join([home, *filter(None, [own.get("PYTHONPATH")])])}

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.errors.close()

    def into(self, found: Verified) -> None:
        """Wait, and add what it found."""
        if self.process is None:
            found.notes.append(self.refused)
            return
        try:
            text, _ = self.process.communicate(timeout=max(1.0, self.began + SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            found.notes.append(f"kernels were not compared: not done after {SECONDS:.0f} s; {SMALL}")
            return
        if self.process.returncode:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or [f"exit {self.process.returncode}"]
            found.rows.append(Row("kernels", "", "", float("inf"), 0.0, 0))
            found.notes.append(f"kernels could not be run: {said[-1][:300]}")
            return
        answer = json.loads(text)
        found.rows += [Row(**row) for row in answer["rows"]]
        found.notes += answer["notes"]


# The process


class Broken(Exception):
    """A kernel that does not run."""

    def __init__(self, kernel: str, error: Exception) -> None:
        super().__init__(f"{kernel}: {type(error).__name__}: {error}"[:300].replace("\n", " "))
        self.kernel = kernel


@dataclass(frozen=True)
class Region:
    """What a kernel computes, and the names of its results."""

    graph: Graph
    results: tuple[str, ...]


class Kernels(TorchDispatchMode):
    """Compares each kernel that runs inside with its region's graph in float64. rows: the worst call of each."""

    def __init__(self, namespace: str, regions: Mapping[str, Region], sizes: Mapping[str, int], dtype: str) -> None:
        super().__init__()
        self.namespace, self.regions, self.sizes, self.dtype = namespace, regions, sizes, dtype
        self.rows: dict[str, Row] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != self.namespace:
            return func(*args, **(kwargs or {}))
        kernel = func._opname
        try:
            out = func(*args)
        except Exception as error:
            raise Broken(kernel, error) from error
        if kernel in self.regions:
            row = self.compared(kernel, args, out if isinstance(out, tuple | list) else (out,))
            if kernel not in self.rows or row.error > self.rows[kernel].error:
                self.rows[kernel] = row
        return out

    def compared(self, kernel: str, args: Sequence[Any], out: Sequence[Tensor]) -> Row:
        region = self.regions[kernel]
        given = [torch.as_tensor(a).cpu() for a in args]
        with torch.no_grad():
            want = dict(zip(region.results, run(region.graph, self.sizes, given, torch, torch.float64)))
        got = {n: y.cpu() for n, y in zip(region.results, out, strict=True)}
        return compare(kernel, self.dtype, got, want, beside=given, floor=1.0)  # a sum of large terms may be small


def check(folder: Path, device: str, seed: int) -> Verified:
    """Everything, in this process. device: "cpu", where the interpreter is switched on, or "cuda"."""
    from .build import uniform
    from .package import load
    from .saved import read

    program, alone = read(folder), regions(folder)
    one = uniform(program)
    dtypes = ["f32" if one else own_dtype(program)] if device == "cuda" else ["f64", "f32"] if one else ["f64"]
    found = Verified()
    sizes, params, inputs, _ = case(program, seed)
    truth = Truth(program, params, inputs, sizes)
    with tempfile.TemporaryDirectory(prefix="weft-") as home:
        package = load(folder if one or device == "cuda" else widened(folder, Path(home) / "package"))
        try:
            ops = imported(package.__name__, folder)
            for dtype in dtypes:
                module = loaded(package.Model(), params, TORCH[dtype] if one or device == "cpu" else None).to(device)
                mode = Kernels(ops.NAMESPACE, alone, sizes, dtype)
                try:
                    found.rows += whole(truth, module, dtype, mode, device)
                finally:
                    told = dtype == dtypes[0]  # in another dtype only what is wrong
                    found.rows += [mode.rows[k] for k in sorted(mode.rows) if told or not mode.rows[k].ok]
        except Broken as error:
            found.rows.append(Row(error.kernel, "", "it does not run", float("inf"), 0.0, 0))
            found.notes.append(str(error))
    found.notes += remarks(folder, alone, found, device)
    return found


def whole(truth: Truth, module: nn.Module, dtype: str, mode: Kernels, device: str) -> list[Row]:
    """Outputs, and gradients of all of them, of a model that runs its kernels."""
    floating = TORCH[dtype] if device == "cpu" else next(module.parameters()).dtype
    inputs = {n: x.to(device, floating if x.is_floating_point() else x.dtype) for n, x in truth.inputs.items()}
    with mode:
        out = {n: y.cpu() for n, y in zip(truth.program.outputs, module(**inputs))}
        rows = [compare("outputs, kernels", dtype, out, truth.outputs)]
        if truth.program.train:
            parameters = dict(module.named_parameters())
            total = truth.objective(out, list(truth.weights))
            got = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
            grads = {n: g.cpu() for n, g in zip(parameters, got)}
            rows.append(compare("gradients, kernels", dtype, grads, truth.grads["gradients"]))
    return rows


def own_dtype(program: Program) -> str:
    """The narrowest float that the program computes in."""
    return next(d for d in ("bf16", "f16", "f32") if d in (program.policy.compute, program.policy.params))


def imported(package: str, folder: Path) -> Any:
    """`kernels.ops`, every region file imported. Broken: one that cannot be."""
    ops = importlib.import_module(f"{package}.kernels.ops")
    for path in sorted((folder / "kernels").glob("k[0-9]*.py")):
        try:
            importlib.import_module(f"{package}.kernels.{path.stem}")
        except Exception as error:
            raise Broken(path.stem, error) from error
    return ops


def regions(folder: Path) -> dict[str, Region]:
    """Kernel -> what it computes, as regions.json says; {} where there is no such file."""
    try:
        known = json.loads((folder / "regions.json").read_text())["regions"]
    except FileNotFoundError:
        return {}
    return {k: Region(parse(r["graph"]), tuple(r["results"])) for k, r in known.items()}


def widened(folder: Path, to: Path) -> Path:
    """A copy of a package that says float64 wherever it says a narrower float: bfloat16 cannot be interpreted."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"))
    for path in to.rglob("*.py"):
        text = re.sub(r"\b(torch|tl)\.(?:bfloat16|float16|float32)\b", r"\1.float64", path.read_text())
        path.write_text(text.replace(".float()", ".double()"))
    return to


def remarks(folder: Path, alone: Mapping[str, Region], found: Verified, device: str) -> list[str]:
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
    """Let the interpreter replace triton.language once a launch, and not again in every function that it calls: that
    takes most of its time."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain: Any = interpreter._patch_lang
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def once(fn: Any) -> Any:
        return plain(everything)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang = once
    interpreter.InterpretedFunction.__call__ = call  # type: ignore[method-assign]


def main(folder: str, device: str, seed: str) -> None:
    """Print what is found as one line of JSON."""
    warnings.simplefilter("ignore")
    if device == "cpu":
        quicken()
    found = check(Path(folder), device, int(seed))
    print(json.dumps({"rows": [asdict(r) for r in found.rows], "notes": found.notes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
