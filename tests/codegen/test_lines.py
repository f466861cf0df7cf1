"""Breaking a long line changes where it ends and nothing else: the parse tree before and after."""

import ast
import subprocess
import sys
from random import Random

import pytest

from tests.campaign import count
from tests.codegen.emission import package
from weft.codegen.package import block, model
from weft.codegen.torch import body, lines
from weft.codegen.torch.lines import call, fit, tuple_of


def expression(rng: Random, depth: int) -> str:
    """Any kind of bracket, with what may stand in it and what may follow."""
    name = rng.choice("abcdefgh") * rng.randint(1, 12) + str(rng.randint(0, 99))
    if depth == 0 or rng.random() < 0.15:
        return rng.choice([name, name, f'"{name} = (a, b"', f"f'{name} is [ one {{a}}'", "'it\\'s ('"])
    inner = [expression(rng, depth - 1) for _ in range(rng.randint(1, 5))]
    one, last, every = inner[0], inner[-1], ", ".join(inner)
    chain = rng.choice(
        [" + ", " - ", " * ", " / ", " % ", " @ ", " & ", " | ", " and ", " or ", " < ", " not in "]
    ).join(inner)
    return rng.choice(
        [
            *(call("torch.add", *inner), call("f", *inner, k=one), f"f(*{name})", f"f({one}, **{name})"),
            *(tuple_of(inner), f"[{every}]", f"{{{every}}}", f"{{{one}: {last}}}", f"[*{name}, {one}]"),
            *(f"({chain})", f"({one})", f"({chain}).sum({name})", f"({one} * ({chain}))", f"(not {one})", f"(-{one})"),
            *(f"{name}[{one}]", f"{name}[{every}]", f"{name}[:, {name}:{name}, None]", f"{name}[{one},]"),
            *(f"({one} if {name} else {last})", f"(lambda {name}, b=3: {one})", f"f(lambda a, b: {one}, {name})"),
            *(f"[{one} for a, i in {last}]", f"f({one} for a, b in {last})", f"{{a: b for a, b in {one}}}"),
            *(f"({one} for a, b in {last})", f"({name} := {one})"),
        ]
    )


def statement(rng: Random) -> str:
    e = [expression(rng, 3) for _ in range(rng.randint(1, 4))]
    one, last, every = e[0], e[-1], ", ".join(e)
    chain = rng.choice([" + ", " * ", " & ", " and ", " < "]).join(e)
    return rng.choice(
        [
            *(
                f"x = {chain}",
                f"x, y = {every}",
                f"x += {chain}",
                f"a = b = {one}",
                f"x = {one},",
                f"x[{one}] = {last}",
            ),
            *(f"return {every}", f"return {chain}", f"return *{one}, None", f"f({every})", f"x: int = {one}"),
            *(
                f"if {chain}:",
                f"for a, b in {one}:",
                f"while {one}:",
                f"with f({every}) as y:",
                f"def f(a, *b, c={one}):",
            ),
            *(f"raise ValueError({one})", f"assert {one}, {last}", f"x = lambda a, b=1: {one}", f"x = not {one}"),
            *(f"x = {one} if {last} else {chain}", f"x = f({one}).g({last}).h({every})", f"x = {one} @ {last}"),
        ]
    )


def tree(text: str) -> str:
    return ast.dump(ast.parse(text + "\n    pass" if text.endswith(":") else text))


def same(said: str, depth: int, got: list[str]) -> None:
    broken = "\n".join([got[0][4 * depth :], *got[1:]])
    assert tree(broken) == tree(said), f"{said}\n\n{broken}"


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_a_broken_line_means_what_it_meant():
    rng, broken = Random(0), 0
    while broken < count(sample=200, soak=20_000):
        said, depth = statement(rng), rng.randint(0, 3)
        try:
            tree(said)
        except SyntaxError:
            continue  # `not` or a lambda where Python wants parentheses
        got = fit(said, depth)
        broken += len(got) > 1
        same(said, depth, got)


@pytest.mark.parametrize(
    ("said", "broken"),
    [
        ("x = aaaa * (bbbb + cccc + dddd)", ["x = aaaa * (", "    bbbb", "    + cccc", "    + dddd", ")"]),
        ("x = aaaa[bbbbbbbbbbbb + cccccccccccc]", ["x = aaaa[", "    bbbbbbbbbbbb", "    + cccccccccccc", "]"]),
        ("x = (aaaaaaaaaaaaaaaaaaaaaaaaa,)", ["x = (", "    aaaaaaaaaaaaaaaaaaaaaaaaa,", ")"]),
        ("f(aaaaaaaaaaaa for b, c in ddddddd)", ["f(", "    aaaaaaaaaaaa for b, c", "    in ddddddd", ")"]),
        ('raise E("no (aaaa", bbbbbbbb, cccccc)', ["raise E(", '    "no (aaaa",', "    bbbbbbbb,", "    cccccc,", ")"]),
    ],
)
def test_a_comma_goes_where_it_makes_no_tuple(said, broken):
    got = fit(said, width=20)
    assert got == broken
    same(said, 0, got)


@pytest.mark.parametrize("name", ["switch_base", "sru_pp_enwik8"])
def test_every_line_of_a_package_means_what_it_meant(name, monkeypatch):
    broken = 0

    def checked(said: str, depth: int = 0, width: int = lines.WIDTH) -> list[str]:
        nonlocal broken
        got = fit(said, depth, width)
        if len(got) > 1 and not said.startswith(("else", "elif", "except")):
            broken += 1
            same(said, depth, got)
        return got

    for module in (lines, body, block, model):
        monkeypatch.setattr(module, "fit", checked)
    package.__wrapped__(name)  # not the one that other tests share
    assert broken > 5


def load(rng: Random) -> str:
    """A masked load at an address of any length, cast, as holes of kernels read their operands."""
    term = (
        "tl.cast(b.to(tl.int64), tl.int64) * X[1][1][0]",
        "tl.cast(t, tl.int64) * X[1][1][1]",
        "X[0][0]",
        "(q // 3) * s",
    )
    address = " + ".join(rng.choice(term) for _ in range(rng.randint(1, 6)))
    mask = rng.choice(["", ", mask=ok, other=0", ", mask=ok & (t < n), other=0.0"])
    return f"{'low' * rng.randint(1, 6)} = tl.load({address}{mask}).to({rng.choice(['o.dtype', 'tl.float32'])})"


def test_loads_are_broken_as_the_formatter_breaks_them():
    rng = Random(0)
    text = "".join(
        line + "\n"
        for depth in (rng.randint(1, 3) for _ in range(count(sample=300, soak=3000)))
        for line in (*("    " * d + "if x:" for d in range(depth)), *fit(load(rng), depth))
    )
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(lines.WIDTH), "--diff", "-"]

    done = subprocess.run(ruff, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:2000]
