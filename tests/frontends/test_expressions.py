"""Expressions over dims: values against Python's own, columns of errors, limits, and what stays symbolic."""

import random

import pytest
import sympy as sp

from tests.campaign import count
from weft.errors import FormulaError
from weft.frontends.expressions import evaluate, names, parse

SIZES = {"width": 512, "heads": 8, "seq": 100}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4*width", 2048), ("width // heads", 64), ("width / heads", 64), ("seq % 7", 2), ("ceil_div(seq, 7)", 15),
        ("min(width, heads, seq)", 8), ("max(width - 600, 1)", 1), ("-(2 - 5) * 2", 6), ("2 - 3 - 4", -5),
        ("100 // 7 // 2", 7), ("--3", 3), ("-7 // 2", -4), ("-7 % 3", 2), (" 7 ", 7),
    ],
)  # fmt: skip
def test_values(text, value):
    found = evaluate(parse(text), SIZES, text)

    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "ends early"), ("8 +", 4, "ends early"), ("4 ** 2", 4, "unexpected '*'"), ("a b", 3, "unexpected 'b'"),
        ("(1 + 2", 1, "not closed"), ("1)", 2, "unexpected ')'"), ("floor(3)", 1, "unknown function 'floor'"),
        ("mim(1, 2)", 1, "did you mean 'min'"), ("min(1)", 1, "takes 2 to 16"),
        ("ceil_div(1, 2, 3)", 1, "takes 2 values"),
        ("1.5", 2, "'.' may not stand"), ("1 << 3", 3, "'<' may not stand"), ("width[0]", 6, "'[' may not stand"),
        ("9999999999999999999", 1, "18 digits"), ("5 // (3 - 3)", 3, "division by zero"),
        ("7 % 0", 3, "division by zero"),
        ("width / 3", 7, "leaves a rest"), ("999999999999999 * 999999999999999", 17, "2**62"),
        ("(" * 40 + "1" + ")" * 40, 33, "nested deeper"), ("1" + "+1" * 150, 200, "more than 200 parts"),
        ("1+" * 300, 1, "more than 500 characters"), ("\u0661", 1, "may not stand"), ("１", 1, "may not stand"),
        ("__import__('os')", 12, "may not stand"), ("lambda: 0", 7, "may not stand"), ("a.b", 2, "may not stand"),
    ],
)  # fmt: skip
def test_refusals_say_where_and_why(text, column, words):
    with pytest.raises(FormulaError) as found:
        evaluate(parse(text), SIZES, text)

    assert words in str(found.value)
    assert found.value.column == column


def test_minus_chains_and_long_sums_need_no_recursion():
    assert evaluate(parse("-" * 400 + "1"), {}) == 1
    assert evaluate(parse("+".join(["1"] * 90)), {}) == 90


def test_runtime_dims_stay_symbolic():
    n = sp.Symbol("n_seq", integer=True, nonnegative=True)
    sizes = {"width": 512, "seq": n}

    assert evaluate(parse("2*seq + width"), sizes) == 2 * n + 512
    assert evaluate(parse("seq // 128"), sizes) == sp.floor(n / 128)
    assert evaluate(parse("seq - seq + 3"), sizes) == 3
    assert type(evaluate(parse("seq - seq + 3"), sizes)) is int
    for text in ("ceil_div(seq, 128)", "min(seq, 64)", "max(seq, 64)", "seq % 100", "100 // seq", "-seq // 7"):
        for at in (1, 63, 128, 129):
            symbolic = evaluate(parse(text), sizes)
            assert symbolic.subs(n, at) == evaluate(parse(text), {"seq": at})
    with pytest.raises(FormulaError, match="known when compiling"):
        evaluate(parse("seq / 2"), sizes)


def sample(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        return rng.choice(["0", "1", "2", "7", "100", *SIZES])
    if kind < 0.4:
        return f"-{sample(rng, depth + 1)}"
    if kind < 0.55:
        return f"{rng.choice(['min', 'max'])}({sample(rng, depth + 1)}, {sample(rng, depth + 1)})"
    text = f"{sample(rng, depth + 1)} {rng.choice(['+', '-', '*', '//', '%'])} {sample(rng, depth + 1)}"
    return f"({text})" if rng.random() < 0.5 else text


def outcome(text: str) -> int | str:
    try:
        return evaluate(parse(text), SIZES, text)
    except FormulaError as error:
        return error.message


def test_agrees_with_python_on_generated_expressions():
    rng = random.Random(5)
    limits = ("a number of 2**62 or more", "an expression of more than 200 parts", "an expression of more than 500 ch")
    told = 0
    for _ in range(count(sample=400, soak=20_000)):
        text = sample(rng)
        found = outcome(text)
        try:
            expected = eval(text, {"__builtins__": {"min": min, "max": max}}, dict(SIZES))
        except ZeroDivisionError:
            expected = "division by zero"
        if isinstance(found, str) and found.startswith(limits):
            told += 1
            continue
        assert found == expected, text

    assert told < count(sample=40, soak=2_000)


def test_names_are_told_with_their_columns():
    assert [(n.args[0], n.column) for n in names(parse("4*a + min(b, a)"))] == [("a", 2), ("b", 10), ("a", 13)]
