"""Specs are untrusted: code in any text of a spec is refused with its place, and nothing of it ever runs."""

import builtins
import copy
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sympy
import sympy.parsing.sympy_parser
import yaml

from tests.campaign import SOAK
from tests.effort import counted
from weft import api
from weft.errors import SpecError
from weft.frontends.emit_yaml import emit
from weft.frontends.load import load_text
from weft.frontends.problems import render
from weft.ir.text import show

MARK = "CANARY"
PAYLOADS = [
    f"__import__('os').system('touch {MARK}')", f"open('{MARK}', 'w')", f"exec(\"open('{MARK}','w')\")",
    f"eval('open(\"{MARK}\",\"w\")')", f"os.system('touch {MARK}')",
    "().__class__.__bases__[0].__subclasses__()", "x.__class__", "x.__globals__['os']", "getattr(x, 'real')",
    "globals()", "locals()", "vars()", "dir()", "breakpoint()", "lambda: 0", "lambda x: x", "[i for i in (1,)]",
    "{i: i for i in x}", "(i for i in x)", "(y := 3)", "x if x else x.y", "yield x", "await x", "x[0]",
    "x[::2]", "{'a': 1}", "{1, 2}", "[1, 2]", "(1, 2)", "'text'", '"text"', "b'bytes'", "f'{x}'",
    "f'{open(\"CANARY\",\"w\")}'", "x; import os", "import os", "from os import system", "x\\\nimport os",
    "x # comment", "x\ny", "print(x)", "input()", "compile('1', '', 'eval')", "type(x)", "help()", "exit()",
    "quit()", "x.real", "x.subs(x, 1)", "x.evalf()", "Symbol('x')", "sympify('1')", "S('1')",
    "Function('f')(x)", "Lambda(x, x)", "9**9**9", "2**100000", "factorial(10**7)", "1e400", "10**400*x",
    "((((((((((" * 30, "x+" * 3000 + "x", "-" * 5000 + "x", "not x" * 500, "sin(" * 200, "x" * 5000, "class",
    "None", "True and x.a", "...", "NotImplemented", "__debug__", "\uff45\uff56\uff41\uff4c(1)", "x\u200b",
    "\u202ex", "x\x00", "x\r\nimport os", "\x1b[31mx", "*x", "**x", "@x", "$(touch CANARY)", "`touch CANARY`",
    "{{7*7}}", "${x}", "%s%n", "../../etc/passwd", "<script>", '"""', "'''\nimport os\n'''", "\\N{DIGIT ONE}",
]  # fmt: skip

CELL = {
    "kind": "recurrence", "inputs": ["u"], "state": {"c": 0.0}, "parameters": {"p": {"normal": "0.5"}},
    "let": {"f": "sigmoid(u)"}, "update": {"c": "f*c + p*u"}, "output": "c",
}  # fmt: skip


def spec() -> dict:
    return {
        "weft": 1,
        "name": "victim",
        "dims": {
            "batch": 1,
            "seq": 8,
            "width": 8,
            "heads": 2,
            "head": "width // heads",
            "inner": 8,
            "layers": 1,
            "vocab": 9,
        },
        "blocks": {
            "attention": {"kind": "attention", "pattern": "causal", "score": "s", "scale": "1/sqrt(head)"},
            "mlp": {"kind": "mlp", "activation": "gelu"},
            "cell": copy.deepcopy(CELL),
        },
        "embed": {"positions": [{"learned": "seq", "index": "i"}], "scale": "sqrt(width)", "norm": "layer_norm"},
        "stack": [{"repeat": "layers", "layer": ["attention", {"block": "mlp", "residual": "pre"}, "cell"]}],
        "head": {"kind": "language", "scale": "1.0/2"},
        "init": {"weight": {"normal": "1/sqrt(fan_in)"}},
        "dtype": {"params": "f32"},
    }


# Where the payload goes: the path of a value, or of a key when it ends in "#".
FIELDS = [
    "name", "extends", "dims.head", "dims.#", "dtype.params", "blocks.#", "blocks.attention.kind",
    "blocks.attention.pattern", "blocks.attention.score", "blocks.attention.scale", "blocks.attention.heads",
    "blocks.mlp.activation", "blocks.cell.inputs", "blocks.cell.state.#", "blocks.cell.parameters.p.normal",
    "blocks.cell.let.f", "blocks.cell.let.#", "blocks.cell.update.c", "blocks.cell.output", "embed.scale", "embed.norm",
    "embed.positions.0.index", "embed.positions.0.learned", "stack.0.repeat", "stack.0.layer", "stack.0.layer.1.block",
    "stack.0.layer.1.residual", "stack.0.name", "head.scale", "head.kind", "init.weight.normal", "small.#", "#",
]  # fmt: skip


def planted(field: str, payload: str) -> dict:
    data = spec()
    *path, last = field.split(".")
    at = data
    for step in path:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    if last == "#":
        at[payload] = 8
    elif isinstance(at.get(last), list):
        at[last] = [payload]
    else:
        at[last] = payload
    return data


CASES = [
    (field, payload)
    for (i, field), (j, payload) in itertools.product(enumerate(FIELDS), enumerate(PAYLOADS))
    if SOAK or (i + j) % 3 == 0
]


FORBIDDEN = (
    (builtins, "eval exec __build_class__"),
    (sympy, "sympify parse_expr lambdify"),
    (sympy.parsing.sympy_parser, "parse_expr eval_expr"),
    (yaml, "load safe_load unsafe_load full_load"),
    (pickle, "load loads"),
    (os, "system popen"),
    (subprocess, "Popen"),
)


@pytest.fixture
def nothing_runs(monkeypatch, tmp_path):
    """Whatever would turn text into code raises; the folder must stay empty."""
    api.check(write(tmp_path / "good.yaml", spec()))

    def forbidden(*args, **kwargs):
        raise AssertionError(f"text reached an evaluator: {str(args)[:200]}")

    for where, names in FORBIDDEN:
        for name in names.split():
            monkeypatch.setattr(where, name, forbidden)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, data: dict) -> Path:
    path.write_text(emit(data), encoding="utf-8", newline="\n")
    return path


def test_there_are_enough_payloads():
    assert len(set(PAYLOADS)) >= 60
    assert {field for field, _ in CASES} == set(FIELDS)
    assert {payload for _, payload in CASES} == set(PAYLOADS)


def refusals(path: Path, data: dict) -> tuple:
    try:
        api.check(write(path, data))
    except SpecError as error:
        return error.problems
    return ()


def test_code_in_any_text_is_refused_with_its_place(nothing_runs):
    accepted = []
    for field, payload in CASES:
        problems = refusals(nothing_runs / "s.yaml", planted(field, payload))
        if not problems or any(p.place is None for p in problems):
            accepted.append((field, payload[:80]))

    assert accepted == []
    assert sorted(os.listdir(nothing_runs)) == ["good.yaml", "s.yaml"]


def test_free_text_stays_out_of_the_graph(nothing_runs):
    for payload in PAYLOADS[:40]:
        data = spec() | {"about": payload.replace("\n", " ")}
        loaded = load_text(emit(data))
        assert payload[:12] not in show(api.program(loaded).graph) or len(payload) < 4


def test_a_hostile_file_name_does_not_forge_lines(nothing_runs):
    path = nothing_runs / "a\nfake.yaml:1:1: error[W0101]: x\x1b[2J.yaml"
    write(path, spec() | {"name": "Bad"})
    for said in (path, str(path)):
        with pytest.raises(SpecError) as found:
            api.check(said)

        assert len(render(found.value).splitlines()) == 4


BOMBS = {
    "aliases": "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(30)),
    "brackets": "[" * 200_000,
    "long line": "weft: 1\nname: " + "a" * 900_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(60_000)),
    "long formula": emit(spec() | {"dims": {**spec()["dims"], "head": "1+" * 100_000 + "1"}}),
    "many problems": emit(spec() | {"blocks": {f"b{i}": {"kind": "mlp", "x": 1} for i in range(2_000)}}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_with_little_work(name):
    def refused():
        with pytest.raises(SpecError):
            load_text(BOMBS[name])

    assert counted(refused)[1] < 2_000_000  # the largest has 2,000 problems, each with its place


def test_a_check_opens_nothing_else_and_starts_nothing(tmp_path):
    good = write(tmp_path / "good.yaml", spec())
    bad = [write(tmp_path / f"{i}.yaml", planted(FIELDS[i % len(FIELDS)], p)) for i, p in enumerate(PAYLOADS[:30])]
    program = f"""
        import os, sys
        from weft import api
        from weft.errors import SpecError
        api.check({str(good)!r})
        seen = []
        def hook(event, args):
            if event.split(".")[0] in ("socket", "subprocess") or event in ("os.system", "os.exec", "os.fork"):
                seen.append((event, str(args)[:80]))
            if event == "open" and not str(args[0]).startswith({str(tmp_path)!r}) and ".py" not in str(args[0]):
                seen.append((event, str(args)[:80]))
            if event == "open" and set(str(args[1] or "r")) & set("wax+"):
                seen.append((event, str(args)[:80]))
        sys.addaudithook(hook)
        for path in {[str(path) for path in bad]!r}:
            try:
                api.check(path)
            except SpecError:
                pass
        assert "torch" not in sys.modules
        print(seen)
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)

    assert found.stderr == ""
    assert found.stdout.strip() == "[]"
