"""From a spec to tuned kernels without a GPU: prepared here, taken over elsewhere, timed on a made-up GPU, compiled."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest

from tests.autotune import made_up_bench
from tests.campaign import SOAK, some
from weft import api, cli
from weft.autotune import session
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.gates.runner import BenchRunner
from weft.autotune.prepare import prepared
from weft.autotune.space import problems
from weft.autotune.space.problems import key, tasks
from weft.autotune.types import Source, Status
from weft.autotune.workers.compile_pool import CompilePool
from weft.cache import pack
from weft.cache.key import Device
from weft.cache.place import forget_said
from weft.cache.sources import ladder, take
from weft.cache.store import Store
from weft.codegen.skeletons import families
from weft.errors import CheckFailed

SPEC = """
weft: 1
name: tiny
dims: {batch: 2, seq: 32, width: 16, inner: 4*width, layers: 1, vocab: 32}
blocks: {feedforward: {kind: mlp, activation: gelu}}
stack: [{repeat: layers, layer: [feedforward]}]
norm: layer_norm
head: {tied: true}
"""
NORM = "k00_rowwise_feedforward_norm"
H200 = Device("sm_90", "NVIDIA H200", 132, 232448)
COMPILED = 3


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """One kernel with a space of a few configurations, most of which launch different things."""
    few = {"BLOCK": (1024, 2048, 4096), "CHUNK": (4096,), "LONGEST": (16384,), "num_warps": (2, 4, 8)}
    with pytest.MonkeyPatch.context() as patch:
        own = problems.space_of("rowwise", {**families()["rowwise"].spaces["rowwise"], "knobs": few})
        patch.setattr(problems, "spaces", lambda family: {"rowwise": own} if family == "rowwise" else {})
        yield


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def made(spec, tmp_path_factory):
    """What `weft tune --prepare` wrote on the first machine: the pack and the store."""
    root = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEFT_CACHE_DIR", str(root / "store"))
        words = ["tune", str(spec), "--no-train", "--target", "sm_90", "--prepare", "--kernel", NORM]
        assert cli.run([*words, "--trials", str(COMPILED), "-o", str(root / "tiny.weftpack")]) == 0
    return root / "tiny.weftpack", root / "store"


@pytest.fixture
def machine(made, tmp_path, monkeypatch):
    """Another machine: a store of its own, which took the pack."""
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "store"))
    forget_said()
    with Store() as store:
        assert take(store, pack.read(made[0]))[0] > 0
    return tmp_path / "store"


@pytest.fixture
def package(spec, tmp_path, machine):
    """The package, compiled on the other machine."""
    assert cli.run(["compile", str(spec), "--no-train", "--target", "sm_90", "-o", str(tmp_path / "package")]) == 0
    return tmp_path / "package"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(session, "BenchRunner", partial(BenchRunner, program="tests.autotune.made_up_bench"))


def task(spec):
    planned = api.planned(api.open_spec(spec), False, "sm_90")
    return planned, next(t for t in tasks(planned, "", "sm_90") if t.kernel == NORM)


def configs(package):
    return json.loads((package / "configs.json").read_text())


def chosen(package, dtype="bf16"):
    return configs(package)["kernels"][NORM]["sm_90"][dtype]


def tune(package, **more):
    return api.tune(package, target="sm_90", devices=("0",), only=NORM, **more)


# Prepared


def test_a_pack_has_survivors_and_refusals_with_reasons_and_no_code(made):
    path, store = made
    (entry,) = pack.read(path).entries.values()
    survivors = [row for row in entry.rows if row.status is Status.OK]

    assert entry.key.device == Device("sm_90")
    assert (entry.key.skeleton, entry.key.triton) != ("", "")
    assert len(survivors) == COMPILED
    assert {row.src for row in entry.rows} == {Source.PREPARE}
    assert all(not row.times_us for row in entry.rows)
    assert all(row.reason for row in entry.rows if row.status is not Status.OK)
    for row in survivors:
        known = dict(row.features)
        assert {"shared", "regs", "occupancy", "waves", "warps", "stack"} <= known.keys()
        assert (row.regs, row.error is not None, row.compile_s is not None) == (known["regs"], True, True)
        assert (next((store / "v1" / "cubins").rglob(row.cubin))).stat().st_mode & 0o077 == 0
    assert b"ELF" not in path.read_bytes()


def test_a_kernel_that_no_configuration_compiles_is_an_error(package, capsys):
    """Exit code 1, and Triton's own words, which are those of the first cause."""
    path = package / "kernels" / f"{NORM}.py"
    path.write_text(path.read_text().replace("    return (x,)", "    return (tl.nothing_like_it(x),)"))
    words = ["tune", str(package), "--target", "sm_90", "--prepare", "--kernel", NORM, "--trials", "2"]
    code = cli.run([*words, "--json"])
    out, err = capsys.readouterr()
    [why] = json.loads(out)["broken"].values()

    assert code == 1
    assert "nothing_like_it" in why
    assert f"{NORM}: no configuration is left: {why}" in err


def test_what_was_prepared_serves_on_another_machine(made, spec, machine, package):
    planned, _ = task(spec)
    (one,) = [t for t in tasks(planned, package, "sm_90") if t.kernel == NORM]
    with CompilePool(one.problem.workload.folder, 1) as compilers, Store() as store:
        own = key(one, H200, compilers.triton(), compilers.ptxas("sm_90"))
        rows = prepared(store, own)
        with Gatekeeper(one.problem, compilers) as keeper:
            assert keeper.recall(rows) == len(rows) >= COMPILED
            assert all(keeper.judge(row.config).ok == (row.status is Status.OK) for row in rows)
        assert compilers.spent["compile"].jobs == 0


def test_a_package_is_compiled_with_the_best_prepared_one_by_the_cost_model(package, capsys):
    with Store() as store:
        rows = [r for k in store.known() for r in store.rows(k) if r.status is Status.OK]
    assert chosen(package) in [row.config for row in rows]


# Tuned, on a made-up GPU


def test_only_what_changed_is_rewritten_and_the_store_answers(package, spec, gpu, spy, tmp_path, capsys):
    before, texts = configs(package), {p: p.read_bytes() for p in package.rglob("*") if p.is_file()}
    found = tune(package, trials=4)
    (one,) = found.tuned
    times = {json.dumps(c, sort_keys=True): made_up_bench.us(c) for c in (t.config for t in one.result.trials)}

    assert made_up_bench.us(one.after) == min(times.values())
    assert one.key.device == H200
    assert len(spy) >= 4
    assert one.changed
    assert chosen(package) == one.after
    after = configs(package)
    after["kernels"][NORM]["sm_90"]["bf16"] = before["kernels"][NORM]["sm_90"]["bf16"]
    assert after == before
    changed = [p.name for p in package.rglob("*") if p.is_file() and p.read_bytes() != texts.get(p, b"")]
    assert changed == ["configs.json"]
    assert one.line() in found.text()
    assert "num_warps 8 -> 2" in one.line() or "num_warps 4 -> 2" in one.line()
    assert len(found.pack.entries) == 1

    # Compiling again asks the store, which has a measurement on a GPU of the architecture.
    forget_said()
    capsys.readouterr()
    fresh = tmp_path / "again"
    words = ["compile", str(spec), "--no-train", "--target", "sm_90", "-o"]
    assert cli.run([*words, str(fresh)]) == 0
    said = capsys.readouterr().err
    assert chosen(fresh) == one.after
    assert said.count("kernels on sm_90") == 1
    assert "sibling gpu" in said
    assert "run weft tune tiny.yaml --target sm_90" in said
    assert cli.run([*words, str(tmp_path / "twice"), "--require-tuned"]) == 0  # of no GPU in particular
    assert configs(tmp_path / "twice") == configs(fresh)
    assert "kernels on" not in capsys.readouterr().err  # once a process


def test_an_interrupted_run_goes_on(package, gpu):
    seen = []

    def stop(search):
        if len(search.trials) == 2:
            raise KeyboardInterrupt
        seen.append(len(search.trials))

    first = tune(package, trials=4, watch=stop)
    assert first.interrupted
    again = tune(package, trials=4, resume=True)
    (one,) = again.tuned

    assert one.result.recorded == 2
    timed = [t.config for t in first.tuned[0].result.trials]
    assert [t.config for t in one.result.trials if t.recorded] in (timed, timed[::-1])


@pytest.mark.parametrize("how", some(["shared", "storage"], 1))
def test_a_second_tuner_times_nothing_again(package, gpu, tmp_path, how):
    url = {"shared": str(tmp_path / "both")} if how == "shared" else {"storage": f"sqlite:///{tmp_path}/study.db"}
    one, two = (tune(package, trials=3, **url).tuned[0] for _ in range(2))

    assert len(one.result.trials) == 3
    assert all(t.recorded for t in two.result.trials)
    assert two.after == one.after


@pytest.mark.skipif(not SOAK, reason="starts torch twice")
def test_kernels_run_in_the_interpreter(package, machine):
    found = api.tune(package, target="sm_90", devices=("cpu",), only=NORM, trials=1)
    (one,) = found.tuned

    assert one.result.winner_us
    assert one.key.policy == one.key.device.gpu == "interpreter"


# Required


def test_untuned_kernels_are_an_error_where_that_is_asked_for(spec, machine, tmp_path, capsys, monkeypatch):
    words = ["compile", str(spec), "--no-train", "--target", "sm_90", "-o", str(tmp_path / "out")]
    assert cli.run([*words, "--require-tuned"]) == 1
    said = capsys.readouterr().err
    assert f"{NORM}: analytic configuration" in said
    assert "weft tune tiny.yaml --target sm_90" in said
    assert not (tmp_path / "out").exists()
    assert cli.run(["tune", *words[1:5], "--require-tuned"]) == 1
    assert "1 of 1 kernels are not tuned" in capsys.readouterr().err
    monkeypatch.setenv("WEFT_REQUIRE_TUNED", "1")
    with pytest.raises(CheckFailed):
        api.package(spec, train=False, target="sm_90")
    assert cli.run([*words[:3], "-o", str(tmp_path / "cpu")]) == 0  # has no kernels to tune
    assert cli.run([*words[:3], "-o", str(tmp_path / "cpu2"), "--require-tuned"]) == 2


def test_a_miss_names_the_field_that_differs(spec, machine, monkeypatch):
    _, one = task(spec)
    with Store() as store:
        own = next(k for k in store.known())
        other = replace(key(one, H200, own.triton, own.ptxas), dtypes="f16")
        store.append(other, next(r for r in store.rows(own) if r.status is Status.OK))
    with pytest.raises(CheckFailed, match=r"differs in"):
        api.package(spec, train=False, target="sm_90", require_tuned=True)


def test_a_lookup_imports_none_of_the_large_libraries():
    code = (
        "import sys; from weft.cache.sources import ladder; from weft.cache.key import *; "
        "ladder().lookup(Key('rowwise', '0', Device('sm_90')), Soft(), {'a': [1]}, {'a': 1}); "
        "assert not {'sympy', 'optuna', 'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ladder().sources
