"""A budget holds: nothing begins after it, what is under way is ended, what was done is kept, what was not is said."""

import json
import re

import pytest

from tests.autotune.fake_workers import Fakes
from tests.autotune.samples import FOLDER
from tests.autotune.synthetic import FakeClock, Synthetic, landscape
from tests.autotune.test_compile_pool import SLOW, launch, running
from tests.autotune.test_prepare import SPEC
from weft import api, cli
from weft.autotune.budget import FOREVER, Budget, Late
from weft.autotune.prepare import prepare
from weft.autotune.report.html import prepared_page
from weft.autotune.search.kernel import Search
from weft.autotune.search.result import Options
from weft.autotune.search.rows import MemoryJournal
from weft.autotune.session import Session, Settings
from weft.autotune.space.problems import tasks
from weft.autotune.types import Level, Source, Status
from weft.autotune.workers.compile_pool import CompilePool
from weft.cache import pack
from weft.cache.row import Status as Kept
from weft.cache.store import Store
from weft.progress import Working

SECONDS, MOST = 120.0, 2
OPS = ("version", "launches", "shared", "compile", "interpret")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def planned(spec):
    return api.planned(api.open_spec(spec), True, "sm_90")


@pytest.fixture(scope="module")
def found(planned):
    """Every task of the spec, the heaviest first."""
    return tasks(planned, "", "sm_90")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "store"))
    with Store() as made:
        yield made


def prepared(found, store, fakes, monkeypatch):
    fakes.install(monkeypatch)
    return prepare(found, store, "sm_90", budget=Budget(SECONDS, clock=fakes.clock), most=MOST)


def names(found):
    return {t.problem.name for t in found}


# What holds of a worker


def test_the_budget_ends_a_compiler_and_what_it_started():
    with CompilePool(FOLDER, 1, program=SLOW, budget=Budget(2.0)) as pool:
        with pytest.raises(Late):
            pool.compile(launch(hang=31339), "sm_90").result()
        with pytest.raises(Late):
            pool.compile(launch(num_warps=4), "sm_90").result()

        assert running("^sleep 31339") == []
        assert (pool.spent["compile"].jobs, pool.spent["compile"].faults) == (0, 0)

        pool.budget = FOREVER
        assert pool.compile(launch(num_warps=4), "sm_90").result().status is Status.OK


def test_a_part_of_a_budget_has_no_more_than_is_left():
    clock = FakeClock()
    whole = Budget(10.0, clock=clock)
    clock.pass_(4.0)

    assert [whole.part(s).left() for s in (1.0, 6.0, 100.0, -1.0)] == [1.0, 6.0, 6.0, -1.0]
    assert FOREVER.part(float("inf")).seconds is None
    assert FOREVER.part(3.0, trials=7).trials == 7


# --prepare


@pytest.mark.parametrize("slow", OPS)
@pytest.mark.parametrize("cost", [3.0, 50.0, 1e6])
def test_whatever_is_slow_preparing_ends_with_its_budget(slow, cost, found, store, monkeypatch):
    fakes = Fakes(**{slow: cost})
    made = prepared(found, store, fakes, monkeypatch)

    assert fakes.clock() <= SECONDS
    assert all(when < SECONDS for _, when in fakes.begun)
    assert set(made.funnels) | set(made.unbegun) == names(found)
    assert not set(made.funnels) & set(made.unbegun)
    assert bool(made.unbegun) == ("not begun" in made.text())
    assert all(name in made.text() for name in made.unbegun)
    late = made.unbegun or any(not made.survivors[name] for name in made.ended)
    assert made.ok == (not late)
    rows = [row for key in store.known() for row in store.rows(key)]
    assert sum(row.status is Kept.OK for row in rows) == sum(made.survivors.values())
    assert cost > 30.0 or all(row.status is not Kept.TIMEOUT for row in rows)  # a job has 30 s of its own


def test_what_the_budget_ended_is_no_verdict(found, store, monkeypatch):
    """Neither of the kernel, nor of the configuration, which is neither refused nor kept."""
    made = prepared(found[:1], store, Fakes(version=10.0, launches=59.0, shared=29.0, compile=29.0), monkeypatch)
    [name] = made.funnels

    assert (made.survivors[name], made.broken, made.ok) == (0, {}, False)
    assert made.ended[name].keys() == {"shared", "compile"}
    assert made.pack.rows == 0
    assert "no configurations came through; there was no time to ask shared about" in made.text()


def test_no_kernel_takes_the_time_of_the_others(found, store, monkeypatch):
    made = prepared(found, store, Fakes(shared=2.0, compile=3.0), monkeypatch)

    assert made.unbegun == ()
    assert all(made.survivors.values())
    assert made.ended


def test_nor_does_its_interpretation(found, store, monkeypatch):
    """At sizes of a real model one takes minutes, and a kernel that compiles is kept without it."""
    made = prepared(found, store, Fakes(interpret=100.0), monkeypatch)

    assert made.unbegun == ()
    assert all(made.survivors.values())
    assert all(late.keys() == {"interpreter"} for late in made.ended.values())


def test_the_default_has_the_whole_budget(found, store, monkeypatch):
    """It goes through although the share of its kernel is used up before, and is what is kept."""
    made = prepared(found, store, Fakes(compile=SECONDS / len(found)), monkeypatch)

    assert next(iter(made.survivors.values())) >= 1
    assert set(made.survivors.values()) <= {0, 1, 2}


def test_a_wrapper_that_cannot_be_run_is_an_error(found, store, monkeypatch):
    made = prepared(found[:1], store, Fakes(launches=70.0), monkeypatch)

    assert (list(made.broken), made.ok) == ([found[0].problem.name], False)


def test_without_a_budget_everything_is_asked(found, store, monkeypatch):
    fakes = Fakes(compile=29.0).install(monkeypatch)
    made = prepare(found, store, "sm_90", most=MOST)

    assert (made.ended, made.unbegun, made.ok) == ({}, (), True)
    assert fakes.ended == {}


def test_the_verb_says_what_was_not_begun_and_writes_the_rest(spec, tmp_path, monkeypatch, capsys, store):
    fakes = Fakes(shared=2.0, compile=25.0).install(monkeypatch)
    html, kept = tmp_path / "r.html", tmp_path / "tiny.weftpack"
    words = ["tune", str(spec), "--target", "sm_90", "--prepare", "--budget", "60s", "--trials", "2", "--json"]
    code = cli.run([*words, "--html", str(html), "-o", str(kept)])
    out, err = capsys.readouterr()
    data = json.loads(out)

    assert code == 1
    assert fakes.clock() <= 60.0
    assert data["unbegun"]
    assert data["paths"] == [str(html), str(kept)]
    assert pack.read(str(kept)).rows == data["rows"] > 0
    assert all(name in err for name in data["unbegun"])
    assert "a longer --budget" in err
    page = html.read_text()
    assert all(name in page for name in [*data["kernels"], *data["unbegun"]])
    assert "not begun" in page
    assert "came through" in page


def test_the_page_of_what_was_prepared_has_every_refusal(found, store, monkeypatch):
    made = prepared(found, store, Fakes(), monkeypatch)
    html = prepared_page(made.data(), "<b>")

    assert "<b>" not in html
    assert "<script" not in html
    assert "Convergence" not in html
    for name, funnel in made.funnels.items():
        assert name in html
        assert all(
            f"<td>{reason}</td>".replace("'", "&#39;") in html for reason in funnel.rejected if "<" not in reason
        )


def test_who_waits_is_told_how_long(found, store, monkeypatch):
    told = []
    monkeypatch.setattr(Working, "to", lambda self, what, done, total, left: told.append((what, left)))
    with Working(terminal=True, wait=lambda stop, seconds: True):
        prepared(found, store, Fakes(shared=0.1, compile=1.0), monkeypatch)

    assert {re.sub(r"\d+", "N", what.split(": ")[1]) for what, _ in told} >= {"wrapper N/N", "compile N/N"}
    assert {what.split(",")[0].removeprefix("preparing ") for what, _ in told} == names(found)
    assert all(0 <= left <= SECONDS for _, left in told)
    assert told[-1][1] < told[len(told) // 2][1]


# Tuning


@pytest.mark.parametrize("slow", ["version", "device", "launches", "shared", "compile", "check", "time"])
@pytest.mark.parametrize("cost", [0.5, 1e6])
def test_whatever_is_slow_tuning_ends_with_its_budget(slow, cost, planned, store, monkeypatch):
    fakes = Fakes(**{"time": 0.05, "check": 0.1, slow: cost}).install(monkeypatch)
    monkeypatch.setattr(Session, "_configured", lambda self, task: dict(task.problem.default))
    settings = Settings("sm_90", Budget(50.0, clock=fakes.clock), devices=("0",), options=Options(sampler="random"))
    session = Session(planned, "", settings, store, rewrite=False)
    del session.tasks[4:]
    found = session.run()

    assert fakes.clock() <= 50.0
    assert all(when < 50.0 for _, when in fakes.begun)
    done = {t.task.problem.name for t in found.tuned}
    assert done | set(found.unbegun) == names(session.tasks)
    assert not done & set(found.unbegun)
    assert bool(found.unbegun) == ("not begun" in found.text())
    rows = [row for key in store.known() for row in store.rows(key) if row.src is Source.TUNE]
    assert Kept.CRASH not in {row.status for row in rows}


def test_a_trial_that_the_budget_ends_is_none():
    class Ends(Synthetic):
        def time(self, config, fidelity):
            if fidelity.level is Level.LAUNCH and self.clock() > 20.0:
                raise Late
            return super().time(config, fidelity)

    made, journal = Ends(landscape(1), seed=1), MemoryJournal()
    result = Search(made.subject(), [made], Budget(trials=10**6, clock=made.clock), journal).run()

    assert result.stopped == "budget"
    assert len(result.trials) == len([r for r in journal.rows() if r.src is Source.TUNE]) > 0
    assert Status.CRASH not in {t.outcome.status for t in result.trials}
    assert result.winner is not None


def test_finals_that_the_budget_ends_count_as_far_as_they_came():
    class Ends(Synthetic):
        left = 40

        def time(self, config, fidelity):
            self.left -= fidelity.level is Level.FINAL
            if self.left < 0:
                raise Late
            return super().time(config, fidelity)

    made = Ends(landscape(1), seed=1)
    result = Search(made.subject(), [made], Budget(trials=40, clock=made.clock)).run()

    assert result.winner is not None
    assert made.left < 0 or len(result.final.finalists) < 2
