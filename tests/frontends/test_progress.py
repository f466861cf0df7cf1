"""A person who waits is told what is done and how long it takes: on a terminal, within two seconds, by every verb."""

import io
import sys
from pathlib import Path

import click
import pytest

from tests.autotune.synthetic import FakeClock
from tests.frontends.test_outputs import SPEC
from weft import api, cli, progress
from weft.autotune.report.progress import Progress
from weft.progress import Beat, Working, doing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def beating(work: Working, clock: FakeClock, seconds: int) -> list[str]:
    """What is drawn in so many seconds in which nothing happens."""
    before = len(work.out.getvalue())
    for _ in range(seconds):
        clock.pass_(1.0)
        work.beat()
    return [line.rstrip() for line in work.out.getvalue()[before:].split("\r") if line.strip()]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def work(clock, monkeypatch) -> Working:
    """One without its thread, at work."""
    made = Working(Terminal(), clock)
    monkeypatch.setattr(Beat, "current", made)
    return made


def test_a_line_a_second_with_what_is_left(work, clock):
    doing("verifying: gradients", 0, 4)
    assert beating(work, clock, 2) == ["[00:01] verifying: gradients  0/4", "[00:02] verifying: gradients  0/4"]
    doing("verifying: decoding", 1, 4)
    assert beating(work, clock, 1) == ["[00:03] verifying: decoding  1/4  eta 00:09"]
    doing("writing")
    assert beating(work, clock, 1) == ["[00:04] writing"]


def test_nothing_of_what_is_soon_done(work, clock):
    for i in range(9):
        clock.pass_(0.1)
        doing("planning", i, 9)
    assert work.out.getvalue() == ""


def test_the_line_is_taken_away_before_something_else_is_said(work, clock, capsys):
    doing("planning")
    beating(work, clock, 2)
    progress.clear()

    assert work.out.getvalue().endswith("\r" + " " * len("[00:02] planning") + "\r")
    before = work.out.getvalue()
    progress.clear()
    assert work.out.getvalue() == before


def test_one_of_two_draws(work, clock):
    doing("planning")
    with Progress(Terminal(), clock, wait=lambda stop, seconds: True) as inner:
        clock.pass_(3.0)
        work.beat()
        doing("preparing")
        assert "preparing" in inner.out.getvalue()
    assert work.out.getvalue() == ""
    assert Beat.current is work


@pytest.mark.parametrize("given", [{"out": io.StringIO()}, {"out": Terminal(), "terminal": False}])
def test_elsewhere_nothing(given, clock):
    with Working(clock=clock, **given) as made:
        doing("planning")
        clock.pass_(100.0)
        made.beat()
    assert given["out"].getvalue() == ""


VERBS = {
    "check": ["check", "s.yaml"],
    "explain": ["explain", "s.yaml"],
    "plan": ["plan", "s.yaml"],
    "export": ["export", "s.yaml", "--format", "onnx", "-o", "x"],
    "compile": ["compile", "s.yaml", "-o", "x"],
    "verify": ["verify", "s.yaml"],
}
TOLD = {
    "plan": {"planning"},
    "explain": {"planning"},
    "export": {"exporting to ONNX", "checking the ONNX graphs"},
    "compile": {"planning", "writing the package"},
    "verify": {"planning", "writing the package", "verifying"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_verb_says_what_it_does(verb, as_json, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_KERNELS", "torch")
    Path("s.yaml").write_text(SPEC)
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(Working, "to", lambda self, what, *_: told.append((what.split(":")[0], self.tty)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        assert cli.run([*VERBS[verb], *(["--json"] if as_json else [])]) == 0

    assert {what for what, _ in told} >= TOLD.get(verb, set())
    assert {tty for _, tty in told} <= {not as_json}


def test_a_long_stage_of_a_verification_moves(tmp_path, monkeypatch):
    """The reference is most of it: what is left is known before it is done."""
    monkeypatch.setenv("WEFT_KERNELS", "torch")
    (tmp_path / "s.yaml").write_text(SPEC)
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Working, "to", lambda self, what, done, total, *_: told.append((what, done, total)))
    with Working(Terminal(), FakeClock(), wait=lambda stop, seconds: True):
        assert api.verify(tmp_path / "s.yaml").ok
    percent = [(what, done) for what, done, total in told if total == 100]

    assert [done for _, done in percent] == sorted(done for _, done in percent)
    assert percent[-1][1] <= 100
    assert len({done for what, done in percent if "the reference" in what}) > 4
    stages = {what.split(": ")[1].split(" in ")[0] for what, _ in percent}
    assert stages == {"the reference,", "outputs and gradients", "decoding"}


def test_an_error_leaves_no_line_and_no_thread(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise click.Abort

    monkeypatch.setattr(api, "check", fail)
    assert cli.run(["check", "s.yaml"]) == 130
    assert Beat.current is None
