"""The house rules that no linter checks: size of files and functions, and no evaluation of text."""

import ast
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from weft.ir.all_ops import OPS

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES, KERNEL_LINES, FOLDER_FILES = 400, 50, 120, 24
FORBIDDEN_CALLS = {"eval", "exec", "sympify", "parse_expr", "lambdify"}


def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, signature and docstring not counted."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def functions(tree: ast.AST):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_kernel(function) -> bool:
    return any("triton.jit" in ast.unparse(d) for d in function.decorator_list)


def test_line_budget():
    over = []
    for path in sources():
        text = path.read_text()
        name = path.relative_to(ROOT)
        if len(text.splitlines()) > FILE_LINES:
            over.append(f"{name}: {len(text.splitlines())} lines (at most {FILE_LINES})")
        for f in functions(ast.parse(text)):
            limit = KERNEL_LINES if is_kernel(f) else FUNCTION_LINES
            if body_lines(f) > limit:
                over.append(f"{name}:{f.lineno}: {f.name} has {body_lines(f)} lines (at most {limit})")

    assert over == []


def crowded(files: list[str]) -> list[str]:
    """The folders of weft that hold more files than a person takes in, each with how many; their `__init__` is none.
    The runtime's files stand beside each other as those that a package has of them do."""
    held = Counter(str(Path(f).parent) for f in files if f.startswith("weft/") and not f.endswith("/__init__.py"))
    del held["weft/codegen/runtime"]
    return [f"{folder}: {n} files (at most {FOLDER_FILES})" for folder, n in held.items() if n > FOLDER_FILES]


def test_no_folder_is_flat():
    files = [str(p.relative_to(ROOT)) for p in sources()]
    planted = [f"weft/passes/planted_{i}.py" for i in range(FOLDER_FILES)]

    assert crowded(files) == []
    assert crowded([*planted, "weft/passes/__init__.py"]) == []
    assert crowded([*files, *planted]) != []


@pytest.mark.parametrize(
    "path", [p for p in sources() if p.is_relative_to(ROOT / "weft")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_evaluates_text(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            builtin = isinstance(node.func, ast.Name)
            if name in FORBIDDEN_CALLS - {"eval", "exec"} or (builtin and name in {"eval", "exec"}):
                found.append(f"line {node.lineno}: {name}")

    assert found == []


SHIPPED = re.compile(r"weft/codegen/(runtime|skeletons/[a-z_]+)/[a-z_]+\.py")
"""What packages are made of: named for who reads one of them, where a folder has its own `Holes` or `Steps`."""


def repeated(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The class names that stand for several things, with the files that declare each."""
    homes = dict[str, list[str]]()
    for name, tree in trees.items():
        for n in ast.walk(tree):
            if isinstance(n, ast.ClassDef):
                homes.setdefault(n.name, []).append(name)
    return {name: files for name, files in homes.items() if len(files) > 1}


def test_a_class_name_has_one_meaning():
    trees = {name: tree for name, tree in product().items() if not SHIPPED.fullmatch(name)}
    planted = ast.parse("def f():\n    class Graph: pass")

    assert repeated(trees) == {}
    assert list(repeated({**trees, "weft/planted.py": planted})) == ["Graph"]


OP_TESTS = 39
DECLARATIONS = (
    "weft/ir/ops/op.py",
    "weft/ir/composite.py",
    "weft/ir/ops/primitives.py",
    "weft/ir/ops/chunks.py",
    "weft/ir/ops/movement.py",
    "weft/ir/ops/regions.py",
    "weft/ir/library/",
)
TORCH_PRINTERS = (
    *("attention.py", "body.py", "chunked.py", "composites.py", "einsum.py", "experts.py", "function.py", "loops.py"),
    *("memory.py", "opaque.py", "printer.py", "spelling.py"),
)
PRINTERS = tuple(
    f"weft/codegen/{name}"
    for name in (
        *(f"torch/{name}" for name in TORCH_PRINTERS),
        *("package/model_forward.py", "onnx/emitter.py", "onnx/formulas.py", "skeletons/"),
    )
)
"""What spells ops in torch, ONNX or Triton: tables by op are how it does that."""


def names_in(tree: ast.AST) -> set[str]:
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)
    }


def declared_ops(trees: dict[str, ast.Module]) -> set[str]:
    """The names of all classes that descend from Op."""
    classes = [c for n, t in trees.items() if "frontends" not in n for c in ast.walk(t) if isinstance(c, ast.ClassDef)]
    found = {"Op"}
    while more := {c.name for c in classes if any(names_in(b) & found for b in c.bases)} - found:
        found |= more
    return found - {"Op"}


def op_tests(tree: ast.Module, ops: set[str]) -> list[int]:
    """The lines where an op's class is asked for: isinstance, a case, a comparison, or a table with ops for keys."""
    found = []
    for n in ast.walk(tree):
        match n:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, asked]):
                pass
            case ast.MatchClass(cls=asked) | ast.Assign(targets=[ast.Subscript(slice=asked), *_]):
                pass
            case ast.Dict(keys=keys):
                asked = ast.Tuple([k for k in keys if isinstance(k, ast.Name | ast.Attribute)])
            case ast.Compare(left=left, comparators=others):
                asked = ast.Tuple([x for x in (left, *others) if isinstance(x, ast.Name | ast.Attribute | ast.Tuple)])
            case _:
                continue
        found += [n.lineno if hasattr(n, "lineno") else n.cls.lineno] * bool(names_in(asked) & ops)
    return found


def imported_ops(tree: ast.Module, ops: set[str]) -> set[str]:
    """The ops that a file imports or declares, under its own names; the spec's parts of equal names are none."""
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and "frontends" not in (n.module or "")]
    classes = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    return {a.asname or a.name for n in froms for a in n.names if a.name in ops} | (classes & ops)


@cache
def product() -> dict[str, ast.Module]:
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in sources() if p.is_relative_to(ROOT / "weft")}


def test_every_op_that_is_declared_reads_back():
    bases = {"Composite", "Rows", "_Norm"}

    assert declared_ops(product()) - bases == {op.__name__ for op in OPS.values()}


def test_ops_are_asked_and_not_told_apart():
    """What differs between ops is declared with them; few places outside the printers test for an op's class."""
    trees = product()
    ops = declared_ops(trees)
    found = [
        f"{name}:{line}"
        for name, tree in trees.items()
        if not name.startswith((*DECLARATIONS, *PRINTERS))
        for line in op_tests(tree, imported_ops(tree, ops))
    ]

    assert len(found) <= OP_TESTS, "\n".join(found)


def imported(name: str, tree: ast.Module, files: set[str]) -> set[str]:
    """The files of weft that one imports, wherever it does; not those that type checkers alone see."""
    found = set[str]()
    todo: list[ast.AST] = [tree]
    while todo:
        match todo.pop():
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=others):
                todo += others
            case ast.Import(names=names):
                found |= {a.name for a in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = [*name.split("."), "__init__"][: -level - (name not in packages(files))] if level else []
                home = ".".join([*parts, *([module] if module else [])])
                found |= {n if (n := f"{home}.{a.name}") in files else home for a in names}
            case other:
                todo += ast.iter_child_nodes(other)
    return found & files - {name}


def packages(files: set[str]) -> set[str]:
    return {f.rpartition(".")[0] for f in files}


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The sets of files of which each imports, by way of others, all (Tarjan 1972, strongly connected components)."""
    place, low, stack, found = dict[str, int](), dict[str, int](), list[str](), list[set[str]]()

    def visit(x: str) -> None:
        place[x] = low[x] = len(place)
        stack.append(x)
        for y in edges[x]:
            if y not in place:
                visit(y)
            if y in stack:
                low[x] = min(low[x], low[y])
        if low[x] == place[x]:
            at = stack.index(x)
            found.append(set(stack[at:]))
            del stack[at:]

    for x in edges:
        if x not in place:
            visit(x)
    return [c for c in found if len(c) > 1]


def test_no_circle_between_files():
    trees = {n.removesuffix(".py").removesuffix("/__init__").replace("/", "."): t for n, t in product().items()}

    assert circles({n: imported(n, t, set(trees)) for n, t in trees.items()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "c"}}) == [{"b", "c"}]


REASON = re.compile(r"#\s*(?!noqa|pyright|type:|fmt:|ruff)\S.*")


def unexplained(text: str) -> list[int]:
    """The lines of imports inside functions that no comment beside them, or on the line above, gives a reason for; one
    stands for the imports that follow it."""
    lines, found = ["", *text.splitlines()], list[int]()
    for f in functions(ast.parse(text)):
        for body in (b for n in ast.walk(f) for _, b in ast.iter_fields(n) if isinstance(b, list)):
            said = False
            for n in body:
                if not isinstance(n, ast.Import | ast.ImportFrom):
                    said = False
                    continue
                said = said or any(
                    REASON.search(line) for line in (lines[n.lineno], lines[n.end_lineno], lines[n.lineno - 1].lstrip())
                )
                found += [] if said else [n.lineno]
    return sorted(set(found))


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("import a", [2]),
        ("import a  # it is large", []),
        ("# it is large\n import a\n from b import c", []),
        ("import a  # noqa: F401", [2]),
        ("import a  # it is large\n f()\n import b", [4]),
        ("def g():\n  try:\n   import a\n  except E:\n   import b", [4, 6]),
    ],
)
def test_an_import_without_a_reason_is_found(body, lines):
    assert unexplained(f"def f():\n {body}") == lines


def test_imports_inside_functions_have_reasons():
    """Imports stand at the top of a file; one in a function says why. What ships in packages is as it is."""
    shipped = ROOT / "weft/codegen/runtime"
    found = [
        f"{p.relative_to(ROOT)}:{line}"
        for p in sources()
        if not p.is_relative_to(shipped)
        for line in unexplained(p.read_text())
    ]

    assert found == []
