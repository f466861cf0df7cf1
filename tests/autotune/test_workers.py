"""Workers that may be killed: every fault a configuration can cause has its outcome, the next trial is fine, and
nothing is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.autotune.samples import problem
from weft.autotune.gates.runner import BenchRunner, outcome
from weft.autotune.types import Fidelity, Level, Outcome, Status
from weft.autotune.workers.process import Fault, JobAnswer, Worker, sweep

FAULTY = "tests.autotune.faulty_worker"
FAULTS = {
    "segv": Status.CRASH, "abort": Status.CRASH, "exit0": Status.CRASH, "hang": Status.TIMEOUT, "spin": Status.TIMEOUT,
    "ignore-term": Status.TIMEOUT, "stopped": Status.TIMEOUT, "grandchild": Status.TIMEOUT, "oom": Status.OOM,
    "print": Status.OK, "half": Status.CRASH, "huge": Status.CRASH, "garbage": Status.CRASH,
    "nan": Status.INVALID_TIME, "neg": Status.INVALID_TIME, "text": Status.INVALID_TIME, "wrong": Status.WRONG,
    "nonfinite": Status.NON_FINITE, "raise": Status.CRASH, "device-oom": Status.OOM, "ok": Status.OK,
}  # fmt: skip
REPLACED = {Status.CRASH, Status.TIMEOUT, Status.OOM}
LATE = {Status.TIMEOUT}
PATIENT = 600.0  # seconds that no worker needs, however busy the machine


def running(pattern):
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()


def alive(pid):
    """Whether a process runs; one that nobody waited for has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


class Faulty(BenchRunner):
    """A runner whose configurations are faults; what its first trial would check is left out."""

    def _check(self, config):
        return Outcome(Status.OK)

    def _ask(self, job, config, seconds):
        self.sent.append(config)
        return self.worker.ask({"fault": config["fault"], "sleep": "42424"}, seconds)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_outcome_and_the_next_trial_is_fine(fault):
    with Faulty(problem(), None, device="cpu", program=FAULTY) as runner:
        runner.time({"fault": "ok"}, Fidelity(Level.FULL, 1, PATIENT))
        runner.worker.silent = 1.0 if fault == "stopped" else PATIENT
        found = runner.time({"fault": fault}, Fidelity(Level.FULL, 1, 1.5 if FAULTS[fault] in LATE else PATIENT))
        tmp, starts = runner.worker.tmp, runner.worker.starts
        after = runner.time({"fault": "ok"}, Fidelity(Level.FULL, 1, PATIENT))

        assert found.status is FAULTS[fault]
        assert found.reason or found.status is Status.OK
        assert (after.status, after.times_us) == (Status.OK, (1000.0,))
        assert runner.worker.starts == starts + (found.status in REPLACED)
        assert found.status not in REPLACED or tmp == ""
        own = runner.worker.tmp
    assert running("^sleep 42424") == []
    assert not Path(own).exists()


def test_all_faults_in_one_runner_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tuners of this machine have workers too
    with Faulty(problem(), None, device="cpu", program=FAULTY) as runner:
        for fault, status in FAULTS.items():
            seconds = 1.0 if status in LATE else PATIENT
            assert runner.time({"fault": fault}, Fidelity(Level.FULL, 1, seconds)).status is status, fault

    assert running("^sleep 42424") == []
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_worker_is_noticed_before_its_deadline():
    with Worker(FAULTY, silent=2.5) as worker:
        worker.ask({"fault": "ok"}, PATIENT)
        found = worker.ask({"fault": "stopped"}, PATIENT)

    assert found.fault is Fault.SILENT


def test_a_slow_worker_that_beats_is_not_frozen():
    with Worker(FAULTY, silent=5.0) as worker:
        assert worker.ask({"fault": "hang"}, 6.0).fault is Fault.TIMEOUT


def test_a_killed_parent_takes_everything_with_it():
    code = (
        "import sys; from weft.autotune.workers.process import Worker; w = Worker('tests.autotune.faulty_worker');"
        "w.start(); print(w.pid, w.tmp, flush=True); w.ask({'fault': 'grandchild', 'sleep': '52525'}, 1e6)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    pid, tmp = parent.stdout.readline().split()
    while not running("^sleep 52525"):
        time.sleep(0.05)

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    while running("^sleep 52525") or alive(pid):
        time.sleep(0.1)
    assert Path(tmp).exists()
    assert sweep() >= 1
    assert not Path(tmp).exists()


def test_the_environment_is_a_list(monkeypatch):
    monkeypatch.setenv("TRITON_KERNEL_OVERRIDE", "1")
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "evil:Manager")
    monkeypatch.setenv("LD_PRELOAD_NOT", "x")
    with Worker(FAULTY, env={"MINE": "1"}) as worker:
        worker.start()
        seen = Path(f"/proc/{worker.pid}/environ").read_bytes().decode().split("\0")

    names = {line.split("=")[0] for line in seen if line}
    assert not names & {"TRITON_KERNEL_OVERRIDE", "TRITON_CACHE_MANAGER", "LD_PRELOAD_NOT"}
    assert {"MINE", "TMPDIR", "PATH"} <= names


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"status": "ok", "times_us": [1.0, 2]}, Status.OK),
        ({"status": "slow", "times_us": [9.0]}, Status.SLOW),
        ({"status": "ok", "times_us": []}, Status.INVALID_TIME),
        ({"status": "ok"}, Status.INVALID_TIME),
        ({"status": "ok", "times_us": [True]}, Status.INVALID_TIME),
        ({"status": "ok", "times_us": [1.0, float("inf")]}, Status.INVALID_TIME),
        ({"status": "ok", "times_us": [0.0]}, Status.INVALID_TIME),
        ({"status": "ok", "times_us": "1.0"}, Status.INVALID_TIME),
        ({"status": "fast", "times_us": [1.0]}, Status.CRASH),
        ({}, Status.CRASH),
        ({"raised": "OutOfResources", "message": "out of resource: shared memory"}, Status.LAUNCH),
        ({"raised": "OutOfMemoryError", "message": "CUDA out of memory."}, Status.OOM),
        ({"raised": "AcceleratorError", "message": "CUDA error: unspecified launch failure"}, Status.CRASH),
    ],
)
def test_an_answer_is_not_believed_further_than_it_can_be_checked(data, status):
    assert outcome(JobAnswer(data, 0.1), timed=True).status is status
