"""The command line: exit codes, one JSON document on stdout, suggestions, what is imported and what it costs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.effort import counted
from weft import api, cli
from weft.environment import ENVIRONMENT
from weft.errors import BackendError, CheckFailed, InfeasibleError
from weft.frontends.problems import CODES

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "examples" / "specs"
BAD = Path(__file__).parent / "bad"
ENWIK8 = str(SPECS / "sparse_transformer_enwik8.yaml")


@pytest.fixture
def weft(capsys):
    """Run `weft ...` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def program(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "weft", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


def test_check_says_what_the_model_is(weft):
    code, out, err = weft("check", ENWIK8)

    assert (code, err) == (0, "")
    assert "sparse_transformer_enwik8: 30 layers, 94,949,376 parameters" in out


def test_json_is_one_document_on_stdout_and_people_read_stderr(weft):
    code, out, err = weft("check", ENWIK8, "--small", "--set", "vocab=300", "--no-train", "--json")
    data = json.loads(out)

    assert code == 0
    assert (data["schema"], data["ok"], data["layers"], data["dims"]["vocab"]) == ("weft.check/1", True, 2, 300)
    assert data["outputs"] == ["logits"]
    assert "2 layers" in err


def test_bad_spec_exits_3_with_every_place(weft):
    code, out, err = weft("check", str(BAD / "many.yaml"))
    lines = [line for line in err.splitlines() if ": error[" in line]

    assert (code, out) == (3, "")
    assert [line.split(": ")[0].removeprefix(f"{BAD}/") for line in lines] == [
        f"many.yaml:{line}:{col}" for line, col in ((10, 1), (11, 18), (11, 38), (12, 14), (12, 24))
    ]
    assert err.splitlines()[-1] == "5 errors"


def test_bad_spec_as_json(weft):
    code, out, _ = weft("check", str(BAD / "many.yaml"), "--json")
    data = json.loads(out)

    assert code == 3
    assert (data["schema"], data["ok"], len(data["problems"])) == ("weft.check/1", False, 5)
    assert data["problems"][0] == {
        "code": "W0103", "message": "unknown key 'smal' in the spec", "hint": "did you mean 'small'?",
        "file": str(BAD / "many.yaml"), "line": 10, "col": 1, "width": 4, "path": ["smal"],
    }  # fmt: skip
    assert all(p["code"] in CODES for p in data["problems"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chek", ENWIK8], "'check'"),
        (["check", ENWIK8, "--smal"], "--small"),
        (["check"], "SPEC"),
        (["check", "no/such.yaml"], "no such file"),
        (["check", str(SPECS)], "directory"),
        (["check", ENWIK8, "--set", "widht=8"], "did you mean 'width'?"),
        (["check", ENWIK8, "--set", "width"], "DIM=VALUE"),
        (["check", ENWIK8, "--set", "Width=8"], "DIM=VALUE"),
        (["new", "sparce"], "did you mean 'sparse'?"),
        ([], "Commands:"),
    ],
)
def test_usage_errors_exit_2_and_help(weft, arguments, words):
    code, out, err = weft(*arguments)

    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_json_also_when_the_words_are_wrong(weft):
    code, out, err = weft("check", ENWIK8, "--json", "--smal")

    assert code == 2
    assert json.loads(out)["schema"] == "weft.check/1"
    assert "--small" in json.loads(out)["error"]["message"]
    assert "--small" in err


def test_a_misspelt_variable_is_told(weft, monkeypatch):
    monkeypatch.setenv("WEFT_CACHEDIR", "x")
    code, _, err = weft("new")

    assert code == 0
    assert err.startswith("warning: weft reads no variable WEFT_CACHEDIR")


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("width=abc", "--set:1:7"), ("width=-8", "--set:1:7"), ("width=", "--set:1:7"), ("width=1.5", "--set:1:8"),
        ("width=8*(heads", "--set:1:9"), ("heads=width / 7", "--set:1:13"), ("vocab=3000000000", "--set:1:7"),
        ("heads=0", "--set:1:7"), ("width=__import__('os')", "--set:1:18"),
    ],
)  # fmt: skip
def test_a_dim_set_to_nonsense_exits_3_at_its_place(weft, setting, place):
    code, _, err = weft("check", ENWIK8, "--set", setting)

    assert code == 3
    assert err.startswith(f"{place}: error[W020")
    assert f"| {setting}" in err


def test_a_dim_set_to_an_expression_and_to_a_million(weft):
    code, out, _ = weft("check", ENWIK8, "--set", "seq=1048576", "--set", "inner=2*width", "--json")
    dims = json.loads(out)["dims"]

    assert code == 0
    assert (dims["seq"], dims["inner"]) == (1048576, 1024)


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckFailed("differs"), 1), (InfeasibleError("too small", 123), 4), (BackendError("no gpu"), 5)],
)
def test_exit_codes_of_the_other_errors(weft, monkeypatch, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("weft.api.check", fail)
    found, out, err = weft("check", "x.yaml", "--json")

    assert found == code
    assert json.loads(out)["error"]["message"] == str(error)
    assert json.loads(out)["error"].get("smallest_bytes") == (123 if code == 4 else None)
    assert err.startswith("error: ")


def test_a_bug_is_one_line_and_70(weft, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("no\nsuch\x1b[31m")

    monkeypatch.setattr("weft.api.check", fail)
    code, out, err = weft("check", "x.yaml")

    assert (code, out) == (70, "")
    assert len(err.splitlines()) == 1
    assert err.isprintable() or err.rstrip("\n").isprintable()
    assert "Traceback" in weft("check", "x.yaml", "--debug")[2]


def test_an_interrupt_is_130(weft, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("weft.api.check", fail)
    assert weft("check", "x.yaml")[0] == 130


def test_a_signal_is_130_from_outside(tmp_path):
    slow = "weft.api.check = lambda *a, **k: (print('there', flush=True), time.sleep(30))"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs ignore it
    code = f"import weft.api, signal, time; {heard}; {slow}; from weft.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "x"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()  # it is at work now, however long it took to start
        run.send_signal(signal.SIGINT)
        _, err = run.communicate()

    assert run.returncode == 130
    assert b"Traceback" not in err


def test_asked_to_end_nothing_is_left(tmp_path):
    slow = "weft.api.check = lambda *a, **k: (print(weft.codegen.build.temporary({}), flush=True), time.sleep(30))"
    code = f"import weft.api, weft.codegen.build, time; {slow}; from weft.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "x"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        assert Path(run.stdout.readline().decode().strip()).is_dir()
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=60)

    assert run.returncode == 128 + signal.SIGTERM
    assert err.strip() == b"interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["new"], ["check", ENWIK8], ["schema", "--json"], ["check", "no", "--json"]])
def test_a_full_disk_under_stdout_is_one_line(arguments):
    found = subprocess.run(
        f"{sys.executable} -m weft {' '.join(arguments)} > /dev/full", shell=True, cwd=ROOT, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip

    assert found.returncode == 2
    assert "No space left on device" in found.stderr or "no such file" in found.stderr
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), 2, "error: /tmp/x: No space left on device\n"),
        (PermissionError(13, "Permission denied", "a\x1b"), 2, "error: a\\x1b: Permission denied\n"),
        (MemoryError(), 4, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_no_bug(weft, monkeypatch, error, code, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("weft.api.check", fail)
    found, out, err = weft("check", "x.yaml", "--json")

    assert found == code
    assert words in err
    assert json.loads(out)["error"]["kind"] in ("system", "memory")


def test_names_that_no_terminal_can_show(weft, capsys):
    code, _, err = weft("check", "\udcff\x1b[31m.yaml")

    assert code == 2
    assert "\x1b" not in err


def test_a_reader_that_leaves_is_no_error():
    found = subprocess.run(
        f"{sys.executable} -m weft schema | head -c 1", shell=True, cwd=ROOT, capture_output=True, text=True
    )

    assert (found.stdout, found.stderr) == ("{", "")


def imported(*arguments: str) -> set[str]:
    """The modules that `weft ARGUMENTS` leaves imported."""
    code = f"from weft import cli; code = cli.run({list(arguments)!r}); import sys; print(*sys.modules); sys.exit(code)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return set(found.stdout.splitlines()[-1].split())


HEAVY = {"torch", "onnx", "networkx", "tabulate", "jinja2", "triton", "optuna", "scipy", "transformers"}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"pydantic", "sympy", "yaml", "numpy", *HEAVY}),
        (["new", "gpt"], {"pydantic", "sympy", *HEAVY}),
        (["schema"], {"sympy", *HEAVY}),
        (["check", ENWIK8], HEAVY),
        (["check", ENWIK8, "--json", "--small"], HEAVY),
    ],
)
def test_nothing_is_imported_that_is_not_needed(arguments, absent):
    assert imported(*arguments) & absent == set()


def test_importing_weft_imports_nothing():
    code = "import sys; before = set(sys.modules); import weft; print(*(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = set(found.stdout.split())

    assert {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names} == {"weft"}


def test_checking_128_layers_costs_no_more_than_two():
    spec = str(SPECS / "sparse_transformer_cifar10.yaml")
    api.check(spec)

    few, many = (counted(api.check, spec, [f"layers={n}"])[1] for n in (2, 128))

    assert many <= 1.1 * few
    assert many <= 150_000


def test_python_m_weft_is_the_same_program():
    found = program("check", ENWIK8)

    assert found.returncode == 0
    assert "94,949,376" in found.stdout
    assert program("--version").stdout.startswith("weft 0.")


def test_every_verb_takes_json_and_debug_and_has_help():
    verbs = dict(cli.cli.commands)
    while groups := {name: c for name, c in verbs.items() if isinstance(c, click.Group)}:
        assert all(group.help for group in groups.values())
        verbs = {n: c for n, c in verbs.items() if n not in groups} | {
            f"{name} {inner}": c for name, group in groups.items() for inner, c in group.commands.items()
        }
    for name, command in verbs.items():
        options = {o for p in command.params for o in p.opts}
        assert {"--json", "--debug"} <= options, name
        assert command.help, name
        assert all(isinstance(p, click.Argument) or p.help for p in command.params), name


def test_schema_is_what_an_editor_reads(weft, tmp_path):
    code, out, _ = weft("schema")
    schema = json.loads(out)

    assert code == 0
    assert schema["$schema"].startswith("http://json-schema.org/draft-07")
    assert schema["additionalProperties"] is False
    assert "weft" in schema["required"]
    assert "$defs" not in out
    path = tmp_path / "weft.schema.json"
    assert weft("schema", "-o", str(path))[0] == 0
    assert json.loads(path.read_text()) == schema
    assert json.loads(weft("schema", "--json")[1])["json_schema"] == schema


def test_doctor_looks_at_the_machine(weft, monkeypatch, tmp_path):
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("WEFT_CACHEDIR", "typo")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    os.chmod(tmp_path, 0o700)
    code, out, _ = weft("doctor", "--json")
    rows = {row["what"]: row for row in json.loads(out)["rows"]}

    assert code == 0
    assert {"python", "torch", "triton", "onnx", "onnxruntime", "cpu threads", "gpu", "cache"} <= set(rows)
    assert (rows["cache"]["state"], rows["cache"]["found"]) == ("ok", str(tmp_path))
    assert (rows["WEFT_CACHEDIR"]["state"], rows["WEFT_CACHEDIR"]["fix"]) == ("warn", "did you mean WEFT_CACHE_DIR?")
    assert rows["TRITON_INTERPRET"]["state"] == "warn"
    os.chmod(tmp_path, 0o777)
    assert "chmod 700" in weft("doctor")[1]


def test_doctor_fails_when_something_needed_is_missing(weft, monkeypatch):
    monkeypatch.setattr("weft.doctor.version", lambda package: None if package == "pydantic" else "99.0")
    code, out, _ = weft("doctor")

    assert code == 1
    assert "pip install pydantic" in out


def test_no_more_environment_variables_than_eight_and_all_are_known():
    read = re.compile(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["'](WEFT_[A-Z0-9_]+)""")
    sources = [*(ROOT / "weft").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    names = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}

    assert names <= set(ENVIRONMENT)
    assert {"WEFT_CACHE_DIR", "WEFT_SOAK"} <= names
    assert len(ENVIRONMENT) <= 8
