"""Progress, report and verb: what a person and a program see."""

import io
import json
import re
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.autotune.synthetic import FakeClock, Noise, Synthetic, landscape
from tests.autotune.test_replay import TIMES, kernel_tuner
from weft import cli
from weft.autotune.budget import Budget, BudgetShare
from weft.autotune.report import tables
from weft.autotune.report.html import page
from weft.autotune.report.progress import Progress, line
from weft.autotune.search.kernel import Search
from weft.autotune.search.result import Options


def tuned(**more):
    made = Synthetic(landscape(1), Noise(0.01, 0.02, 0.01), 0.2, seed=1)
    subject = made.subject(incumbent=made.land.configs[500], roofline_us=made.best_us() * 0.7)
    subject = replace(subject, pool=replace(subject.pool, rejected={"shared memory": 48, "too many threads": 7}))
    search = Search(subject, [made], Budget(90, clock=made.clock), options=Options(seed=1), **more)
    return search, search.run()


def test_a_report_holds_everything_that_was_promised():
    _, result = tuned()
    found = tables.data(result)
    json.dumps(found, allow_nan=False)
    assert len(found["curve_us"]) == found["trials"] == len(result.trials)
    assert all(b is None or a is None or b <= a for a, b in zip(found["curve_us"], found["curve_us"][1:]))
    assert sum(r["count"] for r in found["funnel"] if r["stage"] != "gate") == found["pool"]
    assert {r["reason"]: r["count"] for r in found["funnel"] if r["stage"] == "gate"} == result.subject.pool.rejected
    assert len(found["faults"]) == sum(result.faults.values()) > 0
    assert sum(found["importance"].values()) == pytest.approx(1, abs=0.01)
    assert len(found["top"]) == 10
    assert found["top"][0]["spread"] is not None
    assert 0 <= found["confidence"] <= 1
    assert 0.3 < found["of_roofline"] <= 0.75
    assert found["incumbent_us"] > found["winner_us"]


def test_the_text_names_winner_faults_and_funnel():
    _, result = tuned()
    text = tables.text(result)
    for part in (
        "winner",
        "of roofline",
        "shared memory",
        "not tried",
        "what decides",
        "fault: ",
        "times as fast as before",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 200


def test_the_html_is_one_file_without_network_script_or_unescaped_text():
    _, result = tuned()
    found = tables.data(result)
    evil = "<script>alert(1)</script>\"'&"
    found |= {"kernel": evil, "why": evil}
    found["faults"][0]["reason"] = evil
    found["funnel"][0]["reason"] = evil
    html = page([found], evil)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"(src|href|url)\s*[=(]", html)
    assert "http" not in html.replace("http-equiv", "")
    assert "<svg" in html
    assert "<path" in html
    assert len(html) < 300_000


def test_a_search_without_a_time_still_has_a_report():
    made = Synthetic(landscape(1), faults=1.0, seed=1)
    made.planted = dict.fromkeys(made.planted, "segfault")
    result = Search(made.subject(), [made], Budget(trials=5)).run()
    found = tables.data(result)
    assert found["winner"] is None
    assert "none of them runs" in tables.text(result)
    assert "Nothing was timed" in page([found], "none")


# Progress


def test_the_line_shows_best_roofline_rejects_and_what_is_left():
    lines = []
    search, _ = tuned(watch=lambda s: lines.append(line(s)))
    late = [text for text in lines if "finals" not in text][-1]
    for part in ("synthetic", "best", "% of roofline", "rejected 48 shared memory", "other", "eta 0"):
        assert part in late
    assert "finals" in lines[-1] or search.phase == "search"


def test_what_is_left_counts_the_searches_that_follow():
    clock = FakeClock()
    whole = Budget(clock=clock)
    clock.pass_(20.0)

    assert BudgetShare(2, 4, whole).left(10.0) == 10.0 + 2 * (30.0 / 2)
    assert BudgetShare(4, 4, whole).left(10.0) == 10.0
    assert BudgetShare(2, 4, Budget(15.0, clock=clock)).left(10.0) == 15.0
    lines = []
    tuned(watch=lambda s: lines.append(line(s)), part=BudgetShare(2, 4, whole))
    assert all(", 2 of 4  " in text for text in lines)


def test_a_terminal_gets_a_heartbeat_every_second_while_a_trial_hangs():
    clock, out, waits = FakeClock(), io.StringIO(), []

    def wait(stop, seconds):
        waits.append(seconds)
        clock.pass_(seconds)
        return len(waits) > 30 or stop.is_set()

    progress = Progress(out, clock, terminal=True, wait=wait)
    progress.to("a: compile", 0, 9)
    progress._heart()
    assert max(waits) <= 2.0
    assert out.getvalue().count("\r") >= 29


def test_a_file_gets_no_line_and_no_thread():
    out, clock = io.StringIO(), FakeClock()
    before = threading.active_count()
    with Progress(out, clock, terminal=False) as progress:
        assert threading.active_count() == before
        made = Synthetic(landscape(1), seed=1, clock=clock)
        Search(made.subject(), [made], Budget(120, clock=clock), watch=progress.watch).run()
    assert out.getvalue() == ""


def test_a_reader_that_went_away_does_not_end_the_search():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress(Gone(), FakeClock(100.0), terminal=True) as progress:
        made = Synthetic(landscape(1), seed=1)
        assert Search(made.subject(), [made], Budget(trials=3), watch=progress.watch).run().winner


# The verb


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return kernel_tuner(tmp_path / "t.json", TIMES)


def weft(*arguments):
    return cli.run([str(a) for a in arguments])


def test_replay_finds_the_optimum_and_writes_report_and_study(table, capsys):
    assert weft("tune", "--replay", table, "--seeds", 2, "--html", "r.html", "--study", "s.db", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "weft.tune/1"
    assert found["winner"] == {"mean": 1.0, "min": 1.0, "deviation": 0.0, "is_optimum": 2}
    assert found["paths"] == ["r.html", "s.db"]
    assert weft("tune", "--replay", table, "--html", "r.html") == 2
    assert weft("tune", "--replay", table, "--html", "r.html", "--force") == 0


def test_resume_takes_what_was_timed(table, capsys):
    for recorded in (0, 6):
        assert weft("tune", "--replay", table, "--trials", 6, "--resume", "--json") == 0
        assert json.loads(capsys.readouterr().out)["kernels"][0]["recorded"] == recorded


def test_every_sampler_by_name_and_every_other_name_refused(table, capsys):
    for name in ("pool", "random", "all", "tpe", "nsga2"):
        assert weft("tune", "--replay", table, "--sampler", name, "--trials", 4) == 0
    assert weft("tune", "--replay", table, "--sampler", "cat") == 2
    assert "known: pool" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [(), ("--replay", "none.json"), ("x.yaml", "--replay", "t.json"), ("x.yaml", "--seeds", "3"),
     ("--replay", "t.json", "--budget", "soon"), ("--replay", "t.json", "--study", "s.txt")],
)  # fmt: skip
def test_usage_errors_exit_two(table, capsys, arguments):
    assert weft("tune", *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_device_and_without_prepare_it_exits_five(table, capsys, monkeypatch):
    monkeypatch.setattr("weft.codegen.plan.machine.own_target", lambda: "cpu")
    assert weft("tune", "spec.yaml", "--json") == 5
    assert "--prepare" in capsys.readouterr().err


def test_help_shows_the_verb():
    assert "--replay" in CliRunner().invoke(cli.cli, ["tune", "--help"]).output
