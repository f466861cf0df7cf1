"""Emitted packages with their kernels: shipped specs end to end in the interpreter, ops, edits, two in one process."""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.specs import EVERY as ALL
from tests.campaign import SOAK
from tests.kernels.dual import interpreting
from weft import api
from weft.codegen.check import verify
from weft.codegen.package import saved
from weft.codegen.package.disk import load, write
from weft.codegen.plan.as_json import WHY_TORCH
from weft.errors import UsageError
from weft.ir.reference_model import reference

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "examples" / "specs"
QUICK = ("gpt2_345m", "sru_pp_enwik8", "switch_base", "mistral_7b")
TOLERANCE = 1e-10


@cache
def files(name: str) -> dict[str, str]:
    return api.package(SPECS / f"{name}.yaml", small=True, target="sm_90")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Spec -> the folder of its small package."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = write(files(name), tmp_path_factory.mktemp(name) / "package")
        return made[name]

    return of


class Case:
    """A package with parameters, inputs, and the reference's loss and gradients in fp64."""

    def __init__(self, folder: Path) -> None:
        self.program = saved.read(folder)
        self.sizes, self.params, self.inputs, _ = verify.case(self.program, 0)
        self.package = load(folder)
        self.ops: Any = importlib.import_module(f"{self.package.__name__}.kernels.common.ops")

    def module(self, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
        return verify.loaded(self.package.Model(), self.params, dtype)

    def given(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.inputs.items()}

    def loss(self, results: Any) -> Any:
        """All float outputs as one number: the loss where there is one."""
        found = {n: v for n, v in zip(self.program.outputs, results) if v.is_floating_point()}
        return found["loss"] if "loss" in found else sum(v.square().mean() for v in found.values())

    def trained(self, module: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = self.loss(module(**self.given()))
        module.zero_grad()
        loss.backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        return loss.detach(), grads

    def truth(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        params = {n: p.clone().requires_grad_() for n, p in self.params.items()}
        out = reference(self.program, torch, params, self.inputs, self.sizes, torch.float64)
        loss = self.loss(tuple(out.values()) if isinstance(out, dict) else out)
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in params.items() if p.grad is not None}


@pytest.mark.parametrize("name", ALL if SOAK else QUICK)
def test_a_shipped_spec_end_to_end(name, folder, record_property):
    """Loss and all gradients of the interpreted kernels, in float64, against the reference."""
    case = Case(folder(name))
    loss, grads = case.truth()
    with interpreting():
        mine, found = case.trained(case.module())
    row = verify.compare("gradients", "f64", found, grads)
    off = float((mine - loss).abs() / loss.abs())
    record_property("kernels", len(case.ops._loaded))
    record_property("loss", off)
    record_property("gradients", row.error)

    assert case.ops._loaded
    assert off <= TOLERANCE
    assert row.ok, row
    assert row.tolerance == TOLERANCE


def test_two_packages_in_one_process(folder):
    """Interleaved, each gives what it gives alone; their ops live in namespaces of their own."""
    a, b = Case(folder("gpt2_345m")), Case(folder("mistral_7b"))
    with interpreting():
        alone = [case.trained(case.module()) for case in (a, b)]
        modules = [a.module(), b.module()]
        losses = [case.loss(m(**case.given())) for case, m in zip((a, b), modules)]
        for loss in losses:
            loss.backward()

    assert a.ops.NAMESPACE != b.ops.NAMESPACE
    for (loss, grads), again, module in zip(alone, losses, modules):
        assert torch.equal(loss, again.detach())
        assert all(torch.equal(grads[n], p.grad) for n, p in module.named_parameters() if p.grad is not None)


def test_equal_packages_share_their_ops(folder, tmp_path):
    first = Case(folder("gpt2_345m"))
    second = Case(write(files("gpt2_345m"), tmp_path / "again"))

    with interpreting():
        first.module()(**first.given())
        second.module()(**second.given())

    assert first.package is not second.package
    assert first.ops.NAMESPACE == second.ops.NAMESPACE


@pytest.mark.parametrize("name", ALL if SOAK else ("switch_base",))
def test_opcheck(name, folder, record_property):
    """Schemas, fakes and traces of the ops that one training step runs."""
    case = Case(folder(name))
    seen: dict[str, Any] = {}

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == case.ops.NAMESPACE:
                kind = func._opname.split("_")[1]
                seen.setdefault(func._opname if SOAK else kind, (func, args))
            return func(*args, **(kwargs or {}))

    module = case.module(torch.float32)
    with interpreting():
        with Recording():
            case.loss(module(**case.given(torch.float32))).backward()
        assert len(seen) >= 3
        for op, args in seen.values():
            own = tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)
            assert set(torch.library.opcheck(op, own).values()) == {"SUCCESS"}, op
    record_property("ops", len(seen))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALL if SOAK else ("gpt2_345m",))
def test_compile_and_export(name, folder):
    case = Case(folder(name))
    module, given = case.module(torch.float32), case.given(torch.float32)
    want = case.loss(module(**given))
    got = case.loss(torch.compile(module, backend="aot_eager")(**given))
    got.backward()
    exported = torch.export.export(module, (), given)

    assert torch.allclose(want, got)
    assert torch.allclose(want, case.loss(exported.module()(**given)))


@pytest.mark.parametrize("name", ALL if SOAK else QUICK)
def test_files_pass_ruff(name, folder):
    where = folder(name)
    paths = [str(where / "kernels"), str(where / "fused"), str(where / "blocks")]
    own = [str(p) for p in [*(where / "kernels").glob("k[0-9]*.py"), *(where / "fused").glob("*.py")]]
    ruff = [sys.executable, "-m", "ruff"]

    assert subprocess.run([*ruff, "check", "-q", *paths], capture_output=True, text=True).stdout == ""
    out = subprocess.run([*ruff, "format", "--diff", *own], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout[:2000]


@pytest.mark.parametrize("name", ALL)
def test_the_plan_names_every_kernel(name):
    if name not in QUICK and not SOAK:
        pytest.skip("the whole list runs in the soak")
    every_kernel_is_named(files(name))


def test_a_plan_of_several_modes_names_every_kernel():
    """A budget between the least and the most: a forward for each mode."""
    spec = SPECS / "gpt2_345m.yaml"
    memory = api.plan(spec, small=True, target="sm_90")["memory"]
    found = api.package(spec, small=True, target="sm_90", memory=(memory["smallest"] + memory["peak"]) // 2)
    assert any(len(b["backward"]) > 1 for b in json.loads(found["plan.json"])["blocks"])
    every_kernel_is_named(found)


def every_kernel_is_named(found: dict[str, str]) -> None:
    plan = json.loads(found["plan.json"])
    kernels = {p.removeprefix("kernels/").removesuffix(".py") for p in found if re.match(r"kernels/k\d", p)}
    named: set[str] = set()
    for block in plan["blocks"]:
        for half in (block["forward"], *block.get("backward", {}).values(), *block.get("further", {}).values()):
            for region in half["regions"]:
                own = set(region["kernel"].split(" + ")) - {"torch"}
                assert own <= kernels
                assert own or region["why"] in WHY_TORCH
                named |= own

    assert named == kernels
    assert set(json.loads(found["configs.json"])["kernels"]) == kernels


@pytest.mark.parametrize("name", ALL if SOAK else ("gpt2_345m",))
def test_emission_is_deterministic_and_stands_alone(name):
    """The same bytes in processes whose sets have other orders."""
    code = (
        "import json, sys; from weft import api\n"
        "print(json.dumps(api.package(sys.argv[1], small=True, target='sm_90')))\n"
    )
    run = [sys.executable, "-c", code, str(SPECS / f"{name}.yaml")]
    for seed in ("1", "2") if SOAK else ("1",):  # of hashes; this process has another
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(run, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == files(name)

    code = "\n".join(text for path, text in files(name).items() if path.endswith(".py"))
    assert not re.search(r"^\s*(import|from) weft\b", code, re.M)


def test_an_edited_kernel_is_used_and_survives(tmp_path):
    out = write(files("gpt2_345m"), tmp_path / "package")
    path = min((out / "kernels").glob("k[0-9]*.py"))
    before = path.read_text()
    plain = Case(out)
    with interpreting():
        loss, _ = plain.trained(plain.module())
    edited = re.sub(r"return \((\w+),", r"return (\1 * 2.0,", before)
    assert edited != before
    path.write_text(edited)

    write(files("gpt2_345m"), out)
    assert path.read_text() == edited
    case = Case(out)
    with interpreting():
        changed, _ = case.trained(case.module())
    assert case.ops.NAMESPACE != plain.ops.NAMESPACE
    assert changed != loss

    other = {**files("gpt2_345m"), f"kernels/{path.name}": before + "\n# more\n"}
    with pytest.raises(UsageError, match=path.name):
        write(other, out)
    write(files("gpt2_345m"), out, force=True)
    assert path.read_text() == before


def test_configurations_are_read_at_import(tmp_path):
    out = write(files("gpt2_345m"), tmp_path / "package")
    found = json.loads((out / "configs.json").read_text())
    name = next(k for k in found["kernels"] if "_pointwise_" in k)
    found["kernels"][name]["sm_90"]["f32"]["BLOCK"] = 64
    (out / "configs.json").write_text(json.dumps(found))
    case = Case(out)
    with interpreting():
        case.trained(case.module())
        host = importlib.import_module(f"{case.package.__name__}.kernels.common.host")

    assert host.config(name, torch.zeros(1))["BLOCK"] == 64


def test_interpreted_by_an_environment_variable(folder):
    """Without anything of the tests: Triton's own interpreter, in a process that never sees weft."""
    out = folder("mistral_7b")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import package; from package.kernels.common import ops\n"
        "m = package.Model(); ids = torch.arange(12).view(1, 12) % 8\n"
        "names = list(package.model.SIGNATURE)\n"
        "loss = m(*[ids for _ in names]).loss; loss.backward()\n"
        "print(float(loss.detach()), len(ops._loaded), 'weft' in sys.modules)\n"
    )
    run = [sys.executable, "-c", code, str(out.parent)]
    said = []
    for mode in ("torch", "interpret"):
        env = {**os.environ, "WEFT_KERNELS": mode, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(run, capture_output=True, text=True, env=env, cwd=out.parent)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.split())

    assert abs(float(said[0][0]) - float(said[1][0])) < 1e-4
    assert said[0][1] == "0"
    assert int(said[1][1]) > 5
    assert said[1][2] == "False"
