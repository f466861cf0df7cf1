"""The house rules that no linter checks: size of files and functions, and no evaluation of text."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES, KERNEL_LINES = 400, 50, 120
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
