"""Every option of `weft tune`, in every mode, is taken or refused before the work; every name that is none is answered
with those there are."""

import json
from pathlib import Path

import click
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.autotune.synthetic import FakeClock
from tests.autotune.test_prepare import SPEC
from tests.autotune.test_replay import TIMES, kernel_tuner
from weft import api, cli
from weft.autotune import budget, names
from weft.autotune.search import replay
from weft.cli_tune import GPU, PREPARE, REPLAY, REQUIRED, TAKEN
from weft.errors import UsageError, WeftError

COMMAND = cli.cli.commands["tune"]
MODES = {
    GPU: ["s.yaml", "--target", "sm_90", "--device", "0"],
    PREPARE: ["s.yaml", "--target", "sm_90", "--prepare"],
    REQUIRED: ["s.yaml", "--target", "sm_90", "--require-tuned"],
    REPLAY: ["--replay", "t.json"],
}
VERBS = {GPU: "tune", PREPARE: "prepare", REQUIRED: "tuned", REPLAY: "replay"}
GIVEN = {
    "sets": ["--set", "width=32"], "small": ["--small"], "train": ["--no-train"], "target": ["--target", "sm_80"],
    "budget": ["--budget", "90s"], "trials": ["--trials", "7"], "resume": ["--resume"], "kernel": ["--kernel", "norm"],
    "prepare": ["--prepare"], "require_tuned": ["--require-tuned"], "dtype": ["--dtype", "half"],
    "devices": ["--device", "1"], "shared": ["--shared", "dir"], "storage": ["--storage", "sqlite:///x.db"],
    "sampler": ["--sampler", "random"], "seed": ["--seed", "0"], "seeds": ["--seeds", "1"],
    "warm": ["--warm", "t.json"], "html": ["--html", "r.html"], "study": ["--study", "s.db"], "out": ["-o", "x.pack"],
    "force": ["--html", "r.html", "--force"],
}  # fmt: skip
"""Each option as it may be given: also with the value that it has anyway."""
SEEN = {
    "sets": ("width=32",), "small": True, "train": False, "target": "sm_80", "budget": 90.0, "trials": 7,
    "resume": True, "kernel": "norm", "dtype": "f16", "shared": "dir", "storage": "sqlite:///x.db",
    "sampler": "random", "seed": 0, "seeds": 1, "warm": ("t.json",),
}  # fmt: skip
"""What the verb's function is given for it."""
CALLED = {"budget": "seconds", "kernel": "only"}


class Reached(WeftError):
    exit_code = 99


@pytest.fixture
def reached(tmp_path, monkeypatch):
    """The arguments of the function that a run came to; none does any work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))
    Path("s.yaml").write_text(SPEC)
    kernel_tuner(tmp_path / "t.json", TIMES)
    calls = []

    def stand_in(verb):
        def call(source, sets=(), small=False, train=True, target=None, **given):
            calls.append({"verb": verb, "sets": sets, "small": small, "train": train, "target": target, **given})
            raise Reached

        return call

    for verb in VERBS.values():
        monkeypatch.setattr(api, verb, stand_in(verb))
    return calls


def test_every_parameter_is_known():
    others = {"spec", "replay"}  # one of the two says what to work on
    assert {p.name for p in COMMAND.params} - {"as_json", "debug"} == TAKEN.keys()
    assert TAKEN.keys() - others == GIVEN.keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GIVEN)
def test_an_option_is_taken_or_refused(reached, capsys, mode, name):
    if GIVEN[name][-1] in MODES[mode]:
        pytest.skip("it is what makes the mode")
    code = cli.run(["tune", *MODES[mode], *GIVEN[name]])
    err = capsys.readouterr().err

    if name in ("prepare", "require_tuned"):
        assert (code, reached) == (2, [])
    elif mode in TAKEN[name]:
        assert code == 99
        assert reached[0]["verb"] == VERBS[mode]
        if name in SEEN:
            key = "most" if (name, mode) == ("trials", PREPARE) else CALLED.get(name, name)
            assert reached[0][key] == SEEN[name]
        elif name == "devices":
            assert reached[0]["devices"] == ("0", "1")
    else:
        assert (code, reached) == (2, [])
        assert f"{GIVEN[name][0].replace('-o', '--out')} says nothing to {mode}; it goes with" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["s.yaml", "--prepare", "--target", "sm_90", "--force"], "--html PATH"),
     (["pkg", "--device", "0", "--no-train"], "goes with a spec"), (["pkg", "--device", "0", "--train"], "a spec"),
     (["s.yaml", "--device", "0", "--shared", "d", "--storage", "sqlite://"], "give one"),
     (["s.yaml", "--device", "0", "--shared", "s.yaml"], "not a folder"),
     (["s.yaml", "--device", "0", "--seed", "-1"], "--seed"), (["s.yaml", "--prepare", "--budget", ""], "90s"),
     (["s.yaml", "--prepare", "--dtype", "fp8", "--target", "sm_90"], "known: bf16, f16, f32"),
     (["s.yaml", "--device", "0", "--dtype", "", "--target", "sm_90"], "known: bf16, f16, f32"),
     (["--replay", "t.json", "--sampler", "grid"], "known: pool, random, all, tpe")],
)  # fmt: skip
def test_what_says_nothing_is_refused_before_the_work(reached, capsys, words, said):
    Path("pkg").mkdir()
    assert cli.run(["tune", *words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert reached == []
    assert said in err
    assert json.loads(out)["ok"] is False


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("weft.api_tune.tunable", None)  # what is refused is not planned
    Path("s.yaml").write_text(SPEC)
    kernel_tuner(tmp_path / "t.json", TIMES)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["s.yaml", "--prepare", "--target", "gfx942"], 2, "known: sm_80, sm_90"),
     (["s.yaml", "--prepare", "--target", "cpu"], 2, "known: sm_80, sm_90"),
     (["s.yaml", "--prepare", "--target", "H100"], 2, "did you mean sm_90"),
     (["s.yaml", "--require-tuned", "--target", "gfx942"], 2, "known: sm_80, sm_90"),
     (["s.yaml", "--target", "sm_42"], 2, "known: cpu, sm_80"),
     (["s.yaml", "--device", "0", "--target", "gfx942"], 2, "known: sm_80, sm_90"),
     (["s.yaml", "--device", "0", "--target", "sm_90", "--storage", "tuning"], 2, "sqlite:///"),
     (["s.yaml", "--device", "0", "--target", "sm_90", "--storage", "sqlite:////no/such/dir/x.db"], 2, "sqlite:///"),
     (["s.yaml", "--html", "r.html"], 5, "--prepare"),
     (["--replay", "t.json", "--warm", "t.json", "--sampler", "random"], 2, "--warm")],
)  # fmt: skip
def test_a_name_that_is_none_is_answered_with_those_there_are(home, capsys, monkeypatch, words, code, said):
    monkeypatch.setattr("weft.codegen.plan.machine.own_target", lambda: "cpu")
    assert cli.run(["tune", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not Path("r.html").exists()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", "f32"), ("float32", "f32"), ("torch.float32", "f32"), ("float", "f32"), ("bfloat16", "bf16"),
     ("BF16", "bf16"), ("half", "f16"), ("fp16", "f16"), ("float16", "f16"), ("f32", "f32")],
)  # fmt: skip
def test_dtypes_have_their_usual_names(name, dtype):
    assert names.dtype(name) == dtype


def test_the_dtypes_are_those_that_packages_are_configured_for(tmp_path):
    (tmp_path / "s.yaml").write_text(SPEC)
    planned = api.planned(api.open_spec(tmp_path / "s.yaml"), False, "sm_90")
    for region in planned.kernels.regions:
        assert set(region.configs) == set(names.ARCHS)
        assert all(set(kept) == set(names.KERNEL_DTYPES) for kept in region.configs.values())


def test_a_sampler_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package cmaes.*pool, random, all, tpe, nsga2"):
        names.sampler("cmaes")


def test_every_name_of_a_help_text_is_one():
    told = {p.name: p.help for p in COMMAND.params if isinstance(p, click.Option)}
    assert all(name in told["sampler"] for name in names.SAMPLERS)
    assert all(name in told["dtype"] for name in names.KERNEL_DTYPES)


# Replayed


@pytest.mark.parametrize("study", ["s.db", "s.jsonl"])
def test_every_seed_is_a_study(home, study, capsys):
    assert cli.run(["tune", "--replay", "t.json", "--seeds", "3", "--trials", "2", "--study", study]) == 0
    where = "sqlite:///s.db" if study == "s.db" else JournalStorage(JournalFileBackend(study))
    assert sorted(optuna.get_all_study_names(where)) == [f"weft seed {i}" for i in range(3)]


def test_the_budget_of_a_replay_is_that_of_all_its_seeds(home, capsys, monkeypatch):
    clock, plain = FakeClock(), replay.Replay.time
    monkeypatch.setattr(replay.Replay, "time", lambda *given: (clock.pass_(1.0), plain(*given))[1])
    made = budget.Budget
    monkeypatch.setattr(budget, "Budget", lambda *given, **more: made(*given, **{"clock": clock} | more))

    code = cli.run(["tune", "--replay", "t.json", "--seeds", "9", "--budget", "4s", "--trials", "99", "--json"])
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert code == 1
    assert data["seeds"] + data["unbegun"] == 9
    assert data["unbegun"] > 0
    assert f"{data['unbegun']} of 9 seeds were not begun" in err
