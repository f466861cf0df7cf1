"""Whatever is on the command line, in a spec or in a package: a documented exit code, one line or the places
of a spec, no traceback, and nothing written that was not asked for.

Cases are drawn: command lines of every verb and option with values that fit and that do not; damaged specs; packages
with files cut, flipped, gone or with other values. All run in this process, through the program's own entry.
"""

import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
import pytest

from tests.campaign import count
from tests.frontends.test_mutated import damaged
from tests.frontends.test_outputs import SPEC
from weft import api, cli
from weft.errors import UsageError

CODES = {0, 1, 2, 3, 4, 5}
CELL = '  c: {kind: recurrence, inputs: [u], state: {h: 0.0}, update: {h: "0.9*h + u"}, output: h}'
MOE = "  m: {kind: moe, experts: 2, capacity: 4}"
SPECS = {
    "attention": SPEC,
    "cell": SPEC.replace("layer: [a, f]", "layer: [c, f]").replace("blocks:\n", f"blocks:\n{CELL}\n"),
    "experts": SPEC.replace("layer: [a, f]", "layer: [a, m]").replace("blocks:\n", f"blocks:\n{MOE}\n"),
}
WORDS = [
    "", "-", ".", "..", "/", "0", "-1", "1", "3", "1e9", "nan", "inf", "seq=4", "seq=0", "width=", "=", "x=y",
    "seq=8*(", "a b", "\x00", "\x1b[31m", "é", "\u202e", "\udcff", "x" * 300, "9" * 400, "4GB", "1kB", "60 GiB",
    "-4GB", "10m", "1h", "0s", "5 s", "sm_90", "sm_1", "cpu", "h100", "bf16", "f8", "pool", "tpe", "none", "dp=2",
    "dp=2,tp=2", "dp=0", "pp=9", "fusion", "pattern", "onnx", "dot", "plan", "pack", "t4", "sqlite://", "*", "$HOME",
    "~", "--", "{}", "[]", "true", "gpt", "sparce", "s.yaml", "no.yaml", "no/such/dir/x", "dir", "pack.json", "out",
    "link", "dangling", "loop", "/dev/null", "w.pt", "new.x",
]  # fmt: skip
FITTING = {"spec": ["s.yaml", "s.yaml", "s.yaml", "out", "cell.yaml"], "packs": ["pack.json"], "kind": ["gpt"]}


def leaves(command: click.Command, name: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        return [leaf for word, inner in command.commands.items() for leaf in leaves(inner, (*name, word))]
    return [(name, command)]


VERBS = leaves(cli.cli)


def arguments(rng: random.Random) -> list[str]:
    """A command line: a verb, its arguments and some of its options, with values of which some fit."""
    name, command = rng.choice(VERBS)
    words = list(name)
    for p in command.params:
        if isinstance(p, click.Argument):
            fitting = {
                "spec": ["s.yaml", "s.yaml", "s.yaml", "out", "cell.yaml"],
                "packs": ["pack.json"],
                "kind": ["gpt"],
            }
            given = rng.choice(fitting.get(str(p.name), ["x"]) if rng.random() < 0.8 else WORDS)
            words += [given] if p.required or rng.random() < 0.9 else []
            continue
        if rng.random() > (0.9 if p.required else 0.25) or p.name in ("debug", "prepare", "kernels"):
            continue
        option = rng.choice([*p.opts, *p.secondary_opts])
        choices = list(p.type.choices) if isinstance(p.type, click.Choice) else WORDS
        value = (
            "new.x" if p.name == "out" and rng.random() < 0.6 else rng.choice(choices if rng.random() < 0.9 else WORDS)
        )
        words += [option] if p.is_flag else [option, value] if rng.random() < 0.9 else [f"{option}={value}"]
    if "explain" in words[:1]:
        words.append("--no-kernels")  # compiling has tests of its own
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        where = rng.randrange(len(words) + 1)
        words[where : where + rng.choice([0, 1])] = [rng.choice(WORDS)]
    return words


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Small specs, their packages, a pack, links: what the drawn command lines name."""
    home = tmp_path_factory.mktemp("given")
    for name, text in SPECS.items():
        (home / f"{name}.yaml").write_text(text)
        api.compile(home / f"{name}.yaml", out=home / name, target="cpu")
    (home / "s.yaml").write_text(SPEC)
    shutil.copytree(home / "attention", home / "out")
    (home / "dir").mkdir()
    (home / "dir/mine.txt").write_text("mine")
    (home / "pack.json").write_text("{}")
    (home / "link").symlink_to("dir")
    (home / "dangling").symlink_to("nowhere")
    (home / "loop").symlink_to("loop")
    (home / "w.pt").write_bytes(b"PK")
    return home


@pytest.fixture
def here(given, tmp_path, monkeypatch) -> Callable[[], Path]:
    """A fresh copy of it to stand in."""
    monkeypatch.setenv("WEFT_KERNELS", "torch")
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))

    def fresh() -> Path:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree("here", ignore_errors=True)
        shutil.copytree(given, "here", symlinks=True)
        monkeypatch.chdir("here")
        return Path()

    return fresh


def ran(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, stdin empty."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before, sys.stdin = sys.stdin, io.StringIO("")
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run(words)
    finally:
        sys.stdin = before
    return code, *(stream.buffer.getvalue().decode("utf-8") for stream in (out, err))  # type: ignore[attr-defined]


def judged(words: list[str], about: str = "") -> int:
    """Run it and hold it to what is promised; the exit code."""
    code, out, err = ran(words)
    case = f"{words!r}\n{about}\n{out[-500:]}\n{err[-2000:]}"
    assert code in CODES, case
    assert "Traceback" not in err, case
    assert all(c == "\n" or c.isprintable() for c in err), case
    lines = [line for line in err.splitlines() if not line.startswith(("warning: ", "weft: "))]
    if code in (2, 3, 4, 5) and not any("error[" in line for line in lines) and "Usage:" not in err:
        packs = [line for line in lines if ".json:" in line or ":" in line]
        assert len(lines) == 1 or len(packs) >= len(lines), case
    if "--json" in words and "--" not in words and out.strip() and "--help" not in words:
        json.loads(out)
    return code


def left(home: Path) -> list[str]:
    """Unfinished files."""
    return [p.name for p in home.rglob("*") if p.name.startswith(".weft-")]


RUN = {
    "verify": ["verify", "{}", "--json"],
    "dot": ["export", "{}", "--format", "dot", "-o", "x.dot", "--force"],
    "onnx": ["export", "{}", "--format", "onnx", "-o", "x.onnx", "--force"],
    "explain": ["explain", "{}", "--no-kernels"],
    "tune": ["tune", "{}", "--require-tuned", "--target", "sm_90"],
    "compile": ["compile", "{}.yaml", "-o", "{}"],
    "forced": ["compile", "{}.yaml", "-o", "{}", "--force"],
}
LIGHT = ("dot", "explain", "load")


def hurt(package: Path, rng: random.Random) -> str:
    """Damage a file of a package; what was done."""
    files = sorted(p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc")
    path = rng.choice(
        [p for p in files if p.suffix != ".py" or p.parent.name == "blocks" or rng.random() < 0.3] or files
    )
    data = path.read_bytes()
    what = rng.choice(["flip", "cut", "gone", "empty", "folder", "value", "value", "value", "line", "swap", "link"])
    if what == "flip" and data:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    elif what == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "line":
        lines = data.splitlines(keepends=True)
        if lines:
            del lines[rng.randrange(len(lines))]
        path.write_bytes(b"".join(lines))
    elif what == "swap":
        path.write_bytes(rng.choice(files).read_bytes())
    elif what == "value":
        path = rng.choice([p for p in files if p.suffix == ".json"] or files)
        path.write_text(valued(path.read_text(errors="replace"), rng))
    else:
        path.unlink()
        if what == "folder":
            path.mkdir()
        if what == "link":
            path.symlink_to(path.name)
    return f"{what} {path.relative_to(package)}"


def valued(text: str, rng: random.Random) -> str:
    """A JSON document with one of its values another, or gone."""
    try:
        data = json.loads(text)
    except ValueError:
        return text[1:]
    inside: Any = data
    while isinstance(inside, dict | list) and inside:
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        deeper = inside[key]
        if not (isinstance(deeper, dict | list) and deeper) or rng.random() < 0.3:
            if rng.random() < 0.2:
                del inside[key]
            else:
                inside[key] = rng.choice([None, True, -1, 10**30, 1.5, "", "x", [], {}, [[]], {"a": 1}, "f32", 0])
            break
        inside = deeper
    return json.dumps(data)


def package_case(home: Path, rng: random.Random) -> int:
    """Damage to a package, then a verb on it, or an import; whether it was told."""
    name = rng.choice(list(SPECS))
    if rng.random() < 0.3:
        (home / name / "manifest.json").unlink()
    done = [hurt(home / name, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    verb = rng.choice([*RUN, *LIGHT, *LIGHT, *LIGHT])
    try:
        if verb != "load":
            return judged([w.format(name) for w in RUN[verb]], f"{name}: {done}")
        api.load(name)
    except UsageError as error:
        return error.exit_code
    except Exception as error:
        raise AssertionError(f"load {name}: {done}: {type(error).__name__}: {error}") from error
    finally:
        assert left(home) == []
    return 0


def spec_case(home: Path, rng: random.Random) -> int:
    """Damage to a spec; what still checks is put through another verb too. The exit code of the check."""
    text = damaged(rng.choice(list(SPECS.values())), rng)
    (home / "s.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    code = judged(["check", "s.yaml"], text)
    verb = rng.choice(["explain", "explain", "plan", "plan", "export", "export", "compile", "verify"])
    more = {"compile": ["-o", "p", "--force"], "export": ["--format", "onnx", "-o", "x", "--force"]}.get(verb, [])
    if code == 0:
        judged([verb, "s.yaml", *(["--no-kernels"] if verb == "explain" else []), *more], text)
    return code


def line_case(home: Path, rng: random.Random) -> int:
    """A command line; the exit code."""
    words = arguments(rng)
    code = judged(words)
    assert left(home) == [], words
    assert (home / "dir/mine.txt").read_text() == "mine", words
    return code


@pytest.mark.parametrize(
    ("case", "sample", "soak", "among"),
    [
        (line_case, 60, 3000, {0, 2}),
        (package_case, 10, 1200, {3}),
        (spec_case, 14, 1200, {3}),
    ],
)
def test_nothing_breaks(here, case, sample, soak, among):
    rng, codes = random.Random(0), set[int]()
    for i in range(count(sample, soak)):
        home = here() if case is package_case or i % 20 == 0 else Path()
        codes.add(case(home, rng))

    assert codes >= among
