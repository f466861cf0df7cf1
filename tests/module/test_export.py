"""torch.export with sizes fixed and open, saved and loaded, here and where the package has only been imported."""

import importlib
import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree

from tests.campaign import SOAK
from tests.module.models import EVERY, emitted, inputs, model, numbers, targets

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


def exported(name: str, dynamic: bool, module: Any) -> Any:
    x = {**inputs(name), **targets(name)}
    sizes = {"batch": Dim("batch", max=4), "seq": Dim("seq", min=2, max=8)}
    shapes = {k: {i: sizes[d] for i, d in enumerate(("batch", "seq")[: v.dim()])} for k, v in x.items()}
    return torch.export.export(module, (), x, dynamic_shapes=shapes if dynamic else None)


def loaded(program: Any) -> Any:
    """Saved, loaded, and in core ops alone."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).run_decompositions()


def same(a: Any, b: Any) -> bool:
    return type(a).__name__ == type(b).__name__ and all(torch.allclose(x, y, atol=1e-12) for x, y in zip(a, b))


@pytest.mark.parametrize("name", EVERY if SOAK else ["both"])
def test_open_sizes_survive_a_file(name):
    module = model(name).eval()
    program = loaded(exported(name, True, module)).module()

    for batch, seq in ((3, 6), (2, 8), (4, 3)):
        x = {**inputs(name, batch, seq), **targets(name, batch, seq)}
        assert same(program(**x), module(**x))


@pytest.mark.skipif(not SOAK, reason="seconds; the soak runs it")
def test_a_capacity_stays_open_from_two_on():
    module = model("mixed").eval()
    x = {**inputs("mixed", 3, 8), **targets("mixed", 3, 8)}
    sizes = {"batch": Dim("batch", max=8), "seq": Dim("seq", min=3, max=16)}
    for shapes in ({i: sizes[d] for i, d in enumerate(sizes)}, {0: Dim.AUTO, 1: Dim.AUTO}):
        program = torch.export.export(module, (), x, dynamic_shapes=dict.fromkeys(x, shapes)).module()
        for seq in (5, 16):
            y = {**inputs("mixed", 2, seq), **targets("mixed", 2, seq)}
            assert same(program(**y), module(**y))


def test_what_stays_an_op_says_what_it_is():
    program = exported("gpt", False, model("gpt").eval())
    ops = [n for n in program.graph.nodes if n.op == "call_function" and "weft" in str(n.target)]

    assert [n.args[0] for n in ops] == ["Causal(0)"] * 2
    assert {str(n.target).split(".")[0] for n in ops} == {emitted("gpt").runtime.whole.NAMESPACE}


def test_a_model_without_targets():
    module = model("gpt").eval()
    program = loaded(torch.export.export(module, (numbers(3, 6),)))
    out = program.module()(numbers(3, 6))

    assert out.loss is None
    assert torch.allclose(out.logits, module(numbers(3, 6)).logits)


def test_two_packages_save_types_of_their_own():
    names = {_pytree.SUPPORTED_SERIALIZED_TYPES[emitted(n).Output].serialized_type_name for n in ("gpt", "recurrent")}
    assert len(names) == 2

    programs = {n: exported(n, False, model(n).eval()) for n in ("gpt", "recurrent")}
    for name, program in programs.items():
        out = loaded(program).module()(**inputs(name), **targets(name))
        saved = _pytree.SUPPORTED_SERIALIZED_TYPES[emitted(name).Output].serialized_type_name
        assert type(out) is _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[saved]
        assert type(out)._fields == emitted(name).Output._fields


def forget(*names: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] in names]:
        del sys.modules[name]


@pytest.fixture
def imported(tmp_path, monkeypatch, request):
    """Imports, under a name, a package whose contents no other test has."""
    folder = shutil.copytree(Path(emitted("gpt").__file__).parent, tmp_path / "contents")
    with (folder / "model.py").open("a") as file:
        file.write(f"# {request.node.name}\n")
    for name in ("first_name", "second_name"):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module
    forget("first_name", "second_name")


def test_a_package_under_two_names_has_the_types_of_each(imported):
    """Run and pickled, a result is of the package that made it; loaded, of the first, whichever was saved."""
    first, second = imported("first_name"), imported("second_name")
    x = inputs("gpt")
    for package in (second, first):
        module = package.Model(generator=0).eval()
        program = torch.export.export(module, (), x)
        with torch.no_grad():
            out, again = program.module()(**x), loaded(program).module()(**x)

        assert type(out) is type(pickle.loads(pickle.dumps(out))) is package.Output
        assert type(again) is first.Output
        assert torch.equal(again.logits, out.logits)


def test_a_package_imported_again_has_the_types_it_had(imported):
    first = imported("first_name")
    program = torch.export.export(first.Model(generator=0).eval(), (), inputs("gpt"))
    assert type(loaded(program).module()(**inputs("gpt"))) is first.Output

    forget("first_name")
    again = imported("first_name")
    assert again is not first
    assert type(loaded(program).module()(**inputs("gpt"))) is again.Output is first.Output
    assert type(again.Model()(**inputs("gpt"))) is again.Output


def test_a_name_that_is_forgotten_leaves_its_place(imported):
    program = torch.export.export(imported("first_name").Model(generator=0).eval(), (), inputs("gpt"))
    forget("first_name")

    second = imported("second_name")
    assert type(loaded(program).module()(**inputs("gpt"))) is second.Output


def test_another_process_imports_the_package_first(tmp_path):
    """Under whatever name, with torch alone, and no compiler comes along; a pickled module is found by its own name."""
    module, x = model("gpt").eval(), {**inputs("gpt"), **targets("gpt")}
    folder = Path(emitted("gpt").__file__).parent
    torch.export.save(exported("gpt", True, module), tmp_path / "program.pt2")
    torch.save((x, module(**x).logits.detach()), tmp_path / "want.pt")
    torch.save(module, tmp_path / "module.pt")
    (tmp_path / "mine").symlink_to(folder)
    code = f"""
import sys, mine, torch
assert not {{"torch._dynamo", "weft"}} & {{*sys.modules}}
x, want = torch.load("want.pt")
out = torch.export.load("program.pt2").module()(**x)
assert type(out) is mine.Output and torch.allclose(out.logits, want, atol=1e-12)
import weft
weft.load({str(folder)!r}, device="meta")
assert torch.equal(torch.load("module.pt", weights_only=False)(**x).logits, want)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
