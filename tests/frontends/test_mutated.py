"""Specs with random damage either check or are refused with places; nothing else happens, and with little work."""

import random
from pathlib import Path

import pytest

from tests.campaign import count
from tests.effort import counted
from weft import api
from weft.errors import Problem, SpecError
from weft.frontends import new
from weft.frontends.load import load_text
from weft.frontends.problems import render

SPECS = Path(__file__).parents[2] / "examples" / "specs"
TEXTS = [path.read_text() for path in sorted(SPECS.glob("*.yaml"))] + [new.text(kind) for kind in new.KINDS]
PIECES = [
    "0", "-1", "3", "1.5", "true", "null", "[]", "{}", "a", "seq", "width", "heads", "width // 3", "4*width",
    "seq // 2", "causal", "window(8)", "strided(seq)", "x", "tanh(x)", "1/x", "log(-1)", "[a, b]", "{kind: mlp}",
    "{kind: moe}", "attention", "none", "post", "zeros", "{normal: 1/0}", "7", "1024", "k <= q and not causal",
    "heads(causal, all)", "1/sqrt(head)", "'", '"', ":", "#", "&a", "*a", "!t", "- ", "? ", "|", ">", "\t", "{", "}",
    "[", "]", ",", "\u202e", "é", "1e999",
]  # fmt: skip


def damaged(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        i = rng.randrange(len(lines))
        line = lines[i]
        match rng.randrange(8):
            case 0:
                del lines[i]
                lines = lines or ["x"]
            case 1:
                lines.insert(i, rng.choice(lines))
            case 2 if ": " in line:
                lines[i] = line.split(": ")[0] + ": " + rng.choice(PIECES)
            case 3 if line:
                at = rng.randrange(len(line))
                lines[i] = line[:at] + rng.choice(PIECES) + line[at + 1 :]
            case 4:
                lines[i] = " " * rng.randrange(4) + line
            case 5 if ": " in line:
                lines[i] = line.replace(": ", rng.choice([":", ": {", "_: ", "s: ", " : "]), 1)
            case 6:
                word = rng.choice(line.split() or ["x"])
                lines[i] = line.replace(word, rng.choice(PIECES), 1)
            case _:
                j = rng.randrange(len(lines))
                lines[i], lines[j] = lines[j], lines[i]
    return "\n".join(lines) + "\n"


def outcome(text: str, train: bool) -> tuple[Problem, ...]:
    """What `weft check --small` finds."""
    try:
        api.program(load_text(text, "s.yaml", small=True), train)
    except SpecError as error:
        render(error)
        return error.problems
    return ()


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_told_or_harmless(seed):
    rng = random.Random(seed)
    told = 0
    number = count(sample=40, soak=800)
    for _ in range(number):
        text = damaged(rng.choice(TEXTS), rng)
        try:
            problems, calls = counted(outcome, text, rng.random() < 0.7)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
        assert calls < 5_000_000, text
        assert all(p.place is not None and p.place.line <= text.count("\n") + 1 for p in problems), text
        told += bool(problems)

    assert told > number // 3
