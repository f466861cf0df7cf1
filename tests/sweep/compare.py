"""One spec against the reference interpreter, in float64: what is compared, and the faults it has.

Outputs and gradients of the torch path at run lengths 1, odd and largest, each row alone, `prefill` of none, half and
all with `step` for the rest, no leak from later tokens; on demand every kernel in Triton's interpreter, alone and all
together. Package and reference share parser and lowering: that a key does anything there is seen by taking it away.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.kernels.dual import interpreting
from tests.sweep.beside import checked
from tests.sweep.coverage import every_key, keys_of
from tests.sweep.draw import Spec, blocks_of
from tests.sweep.fault import Fault, at
from tests.sweep.rounding import TIMES, Rounded, is_rounding
from weft import api
from weft.codegen.build import files_of, module_of
from weft.codegen.check import comparing, decode, kernels, verify
from weft.codegen.check.calling import call
from weft.codegen.check.decode import whole_run
from weft.codegen.check.documents import documents
from weft.codegen.check.one_dtype import OneDtype, uniform
from weft.codegen.package.disk import load, write
from weft.codegen.package.kernels import NO_KERNELS
from weft.codegen.plan.planner import Planned, plan
from weft.errors import SpecError
from weft.frontends.load import load_model, load_text
from weft.frontends.schema import Model
from weft.ir.program import Program
from weft.ir.reference_model import reference
from weft.targets import find

TOLERANCE = 1e-8
"""Rounding alone crosses 1e-10 once in some hundred cases (logsumexp cells); a real fault is 1e-3 and more."""


def held(where: str, row: comparing.Comparison) -> None:
    if not row.error <= TOLERANCE:
        raise Fault(f"{where}: {row.check.split(' of ')[0]}", f"{row.worst} off by {row.error:.1e}")


def opened(spec: Spec) -> Any:
    """The loaded spec. One with a wrapped module goes through the builder, any other through the parser."""
    spec = copy.deepcopy(spec)
    small = "small" in spec
    wrapped = [b for b in blocks_of(spec) if b.get("kind") == "opaque"] if spec.get("stack") else []
    if not wrapped:
        return load_text(json.dumps(spec), small=small)
    for b in wrapped:
        b["module"] = nn.Linear(4 if small else 8, 4 if small else 8)
    return load_model(Model.model_validate(spec), small=small)


def lean(program: Program) -> Planned:
    """A plan with the largest sizes whose memory is estimated, and which has no kernels."""
    planned = plan(program, program.resolve(**{d: r.max for d, r in program.runtime.items()}), find("cpu"))
    vars(planned)["kernels"] = NO_KERNELS  # what it would be asked for first
    return planned


class Case:
    """One spec compiled for training, and what is compared of it. folder: where its packages are written.

    whole: is its memory measured, and has it kernels? They are most of what a compile takes."""

    def __init__(self, spec: Spec, folder: Path, whole: bool) -> None:
        self.spec, self.faults = spec, list[Fault]()
        self.loaded = at("check", opened, spec)
        program = at("check", api.program, self.loaded)
        made = (lambda: api.planned(self.loaded, True, "cpu")) if whole else (lambda: lean(program))
        self.planned: Planned = at("compile", made)
        self.program: Program = self.planned.program
        self.wrapped: Mapping[str, nn.Module] = self.loaded.model.modules()
        self.folder = write(at("compile", files_of, self.planned), folder / "package")
        self.mixed = not uniform(self.program)
        self.module = at("compile", lambda: module_of(self.folder, wrapped=self.wrapped).double())
        self.time = self.program.streams[-1].length
        limit = self.program.runtime[self.time]
        lengths = sorted({*map(limit.near, (1, 5)), limit.max})
        self.lengths = {n: f"length {'max' if n == limit.max else n}" for n in lengths}

    def run(self, with_kernels: bool, beside: bool) -> list[Fault]:
        for n, where in self.lengths.items():
            self.tried(self.compare, n, where)
        self.tried(at, "effect", self.effects)
        if with_kernels and not self.wrapped and any((self.folder / "kernels").glob("k[0-9]*.py")):
            for n in list(self.lengths)[-2:]:
                self.tried(self.interpreted, n, f"kernels, {self.lengths[n]}")
        return self.faults + (checked(self) if beside else [])

    def tried(self, work: Callable[..., object], *args: Any) -> None:
        try:
            work(*args)
        except Fault as fault:
            self.faults.append(fault)

    def wide(self) -> AbstractContextManager[object]:
        """Inside, a module of several dtypes runs in float64."""
        return OneDtype(torch.float64) if self.mixed else nullcontext()

    def truth(self, n: int) -> tuple[verify.Truth, dict[str, Tensor]]:
        """What the reference gives for a run of n tokens, and its parameters."""
        sizes, params, inputs, _ = at("reference", lambda: verify.case(self.program, n, self.wrapped, **self.run_of(n)))
        truth = at("reference", verify.Truth, self.program, params, inputs, sizes, self.wrapped)
        every = {**truth.outputs, **{k: g for grads in truth.grads.values() for k, g in grads.items()}}
        if bad := [k for k, v in every.items() if v.is_floating_point() and not v.isfinite().all()]:
            raise Fault("reference", f"not finite: {bad[0]}")
        return truth, params

    def run_of(self, n: int) -> dict[str, int]:
        """The sizes of a run of n tokens; a stream beside them has a length of its own."""
        others = (s.length for s in self.program.streams if s.length != self.time)
        return {self.time: n, **{d: self.program.runtime[d].near(max(1, 7 - n)) for d in others}}

    def compare(self, n: int, where: str) -> None:
        truth, params = self.truth(n)
        module = verify.loaded(self.module, params, torch.float64)
        with self.wide():
            rows = at(where, verify.compared, truth, module, "f64")
        for row in self.told_apart(rows, truth, params):
            held(where, row)
        module = module.eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in truth.inputs.items()}
        with torch.no_grad(), self.wide():
            whole = at(where, lambda: call(self.program, module, inputs))
            self.decoded(module, inputs, params, whole, f"{where}: decode")
            for row in at(where, documents, self.program, module, inputs):
                held(where, row)
            first = self.one_row(inputs)
            alone = at(f"{where}: one row", lambda: call(self.program, module, first))
        whole = {k: y for k, y in self.one_row(whole).items() if y.dim()}
        held(f"{where}: one row alone", comparing.compare("outputs", "f64", alone, whole))

    def one_row(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first sequence of each; layers may stand before it in what calls leave to later ones."""
        states = [s for s in self.program.states if self.program.input(s.past).dims[0] != "batch"]
        layered = {name for s in states for name in (s.past, s.value)}
        return {k: v[:, :1] if k in layered else v[:1] if v.dim() else v for k, v in values.items()}

    def moved(self, truth: verify.Truth, module: Any) -> list[list[float]]:
        """How far each row of a comparison moves, time and again, when every result is off in its last place."""
        still, found = copy.copy(truth), list(verify.results(truth, module, "f64"))
        still.outputs = {name: y.detach() for name, y in found[0][1].items()}
        still.grads = {what: grads for what, _, grads in found}
        again = []
        for seed in range(TIMES):
            with Rounded(seed):
                again.append([row.error for row in verify.compared(still, module, "f64")])
        return [list(errors) for errors in zip(*again)]

    def decoded(
        self,
        module: Any,
        inputs: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        whole: Mapping[str, Tensor],
        where: str,
    ) -> None:
        try:
            decode.start(module, inputs)
        except NotImplementedError:
            return
        held(where, at(where, decode.leak, self.program, module, inputs, whole))
        n = inputs[decode.grown(self.program, "tokens") or ""].shape[1]
        sizes = self.program.resolve(batch=2, **self.run_of(n))
        whole = whole_run(self.program, module, params, inputs, sizes, self.wrapped)
        if decode.seamless(self.program) and n > 1:
            held(f"{where}: segments", at(where, decode.in_segments, self.program, module, inputs, whole))
        for first in sorted({0, n // 2, n}):
            from_ = f"{where} from {'0' if not first else 'n' if first == n else 'half'}"
            held(from_, at(from_, decode.decoded, self.program, module, inputs, whole, first))

    def interpreted(self, n: int, where: str) -> None:
        truth, params = self.truth(n)
        package = load(self.folder)
        with interpreting():
            namespace, runs = at(where, kernels.imported, package.__name__, self.folder)
            sizes, alone = self.program.resolve(batch=2, **self.run_of(n)), kernels.regions(self.folder)
            own = runs if self.mixed else None
            mode = kernels.KernelCheck(namespace, self.folder, alone, sizes, "f64", own)
            module = verify.loaded(package.Model(), params, torch.float64)
            rows = at(where, kernels.whole, truth, module, "f64", mode, "cpu")
        for row in mode.rows.values():
            held(where, row)
        for row in self.told_apart(rows, truth, params):
            held(where, row)

    def told_apart(
        self, rows: Sequence[comparing.Comparison], truth: verify.Truth, params: Mapping[str, Tensor]
    ) -> list[comparing.Comparison]:
        """Those rows of a comparison, in the order that the torch path has them, that are not rounding."""
        off = [i for i, row in enumerate(rows) if not row.error <= TOLERANCE]
        module = verify.loaded(self.module, params, torch.float64)
        with self.wide():
            moved = self.moved(truth, module) if off else []
        return [rows[i] for i in off if not is_rounding(rows[i].error, moved[i])]

    def effects(self) -> None:
        """A score, rotary or scale must move the global rows too."""
        for block in blocks_of(self.spec):
            for key in sorted({"score", "rotary", "scale"} & set(block) if "globals" in block else ()):
                if self.global_rows(self.alone(block, key)) == self.global_rows(self.alone(block, key, without=True)):
                    raise Fault("effect", f"{key} does nothing on global rows")

    def alone(self, block: Spec, key: str, without: bool = False) -> Spec:
        """A spec of this block alone, its key there for certain to have an effect, or left out.

        Its score and weights do not hide what the key does: s*s may leave each query a single key, 1 all alike."""
        telling = {"score": "s/4 + k % 2", "scale": 0.77, "weights": "laplace"}
        told = {**block, **{k: v for k, v in telling.items() if k in block}}
        own = {k: v for k, v in told.items() if not (without and k == key)}
        head = {k: self.spec[k] for k in ("weft", "name", "dims")}
        return {**head, "stack": [{"layer": [{"block": own}]}], "embed": {"positions": [{"learned": "most"}]}}

    def global_rows(self, spec: Spec) -> list[float]:
        program = api.program(opened(spec))
        sizes, params, inputs, _ = verify.case(program, 3)
        for name in {
            "segments",
            "valid",
        } & inputs.keys():  # of either kind, so that whatever a pattern asks, two keys are left
            at = torch.arange(inputs[name].shape[1])
            inputs[name] = (at // 4 if name == "segments" else at % 2 > 0).expand_as(inputs[name])
        params = {k: v + torch.linspace(0, 9, v.numel()).double().sin().view(v.shape) for k, v in params.items()}
        logits = reference(program, torch, params, inputs, sizes, torch.float64)["logits"]
        return logits[:, : blocks_of(spec)[0]["globals"]["tokens"]].flatten().tolist()


def covered(spec: Spec) -> set[str]:
    """The keys of the schema that a spec sets; none of one that does not load, which the comparison tells."""
    try:
        return keys_of(opened(spec).model) & every_key()
    except SpecError:
        return set()


def faults_of(spec: Spec, with_kernels: bool = False, beside: bool = False, whole: bool = True) -> list[Fault]:
    """Every fault of one spec; one that stops it before anything runs is the only one told. beside: also that which
    no comparison shows. whole: is its memory measured, are kernels written, though nothing asks for them?"""
    with tempfile.TemporaryDirectory(prefix="weft-sweep-") as folder:
        try:
            return Case(spec, Path(folder), whole or with_kernels or beside).run(with_kernels, beside)
        except Fault as fault:
            return [fault]
