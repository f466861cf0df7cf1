"""The gates: each refuses what it is for, counts it with a reason, and lets all else through."""

import itertools

import pytest
import torch

from tests.autotune.samples import CONFIG, FOLDER, TINY, problem, space
from weft.autotune.gates.features import estimate, occupancy
from weft.autotune.gates.funnel import GATES, table
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.gates.runner import BenchRunner
from weft.autotune.types import Fidelity, Level, Row, Source, Status
from weft.autotune.workers.compile_pool import CompilePool
from weft.errors import BackendError

ONE = {"BM": (32,), "BN": (32,), "BK": (32,), "num_warps": (4,), "stages": (2,)}
FULL = Fidelity(Level.FULL, 2, 60.0)


@pytest.fixture(scope="module")
def compilers():
    with CompilePool(FOLDER, 1) as pool:
        yield pool


def test_every_configuration_is_counted_once(compilers):
    of = space(BM=(64, 256), BN=(16, 256), BK=(64,), num_warps=(4, 8), stages=(2, 4), flaws=("", "assert", "off"))
    p = problem(of, default=CONFIG | {"BM": 64, "BN": 256, "BK": 64})

    with Gatekeeper(p, compilers) as keeper:
        pool = keeper.pool("interpreter", most=4)
        funnel = keeper.funnel

    stages = [funnel[g] for g in GATES[:4]]  # the dearer ones were asked about four
    assert stages[0].entered == of.size
    for before, after in itertools.pairwise(stages):
        assert after.entered == before.entered - before.refused
    assert sum(funnel.rejected.values()) + len(pool) == of.size
    assert "the wrapper refuses it" in funnel["wrapper"].rejected  # 256 x 16
    assert funnel["shared"].rejected == {"kernel refuses it": funnel["shared"].refused}
    assert all(c["FLAW"] != "assert" and not (c["BM"] == 256 and c["BN"] == 16) for c in pool.configs)
    assert pool.seconds["compile"] > 0
    assert all(len(column) == len(pool) for column in pool.features.values())
    assert "shared" in pool.features
    assert "CPU-s" in table({"matmul": funnel})


FLAWS = {
    "": (Status.OK, ""),
    "off": (Status.WRONG, "off by"),
    "hole": (Status.NON_FINITE, "not finite"),
    "beyond": (Status.WRONG, "overwritten"),
}
"""How a planted flaw is refused, and in which words."""


def test_the_interpreter_finds_flaws(compilers):
    p = problem(space(flaws=tuple(FLAWS), **ONE))
    with Gatekeeper(p, compilers) as keeper:
        verdicts = {flaw: keeper.judge({**CONFIG, "FLAW": flaw}, upto="interpreter") for flaw in FLAWS}

    for flaw, (status, said) in FLAWS.items():
        assert verdicts[flaw].status is status
        assert said in verdicts[flaw].detail
        assert verdicts[flaw].gate == ("interpreter" if flaw else "")


def test_nothing_wrong_is_timed(compilers, spy):
    """Past the static gates, which cannot see it, a flaw is found by the poisoned launch, and no time is taken."""
    p = problem(space(flaws=tuple(FLAWS), **ONE), sizes=TINY, dtype="f32")
    with Gatekeeper(p, compilers) as keeper, BenchRunner(p, keeper, device="cpu") as runner:
        for flaw in FLAWS:
            spy.clear()
            found = runner.time({**CONFIG, "FLAW": flaw}, FULL)
            assert (found.status is Status.OK) == (not flaw)
            assert bool(found.times_us) == (not flaw)
            assert len(spy) == (1 if flaw else 2)
            assert {"shared", "regs", "stack", "compile_s", "error"} <= found.extra.keys()


def test_what_a_gate_refuses_never_reaches_the_worker(compilers, spy):
    p = problem(space(flaws=("", "assert"), **ONE | {"BM": (32, 256), "BN": (16, 32, 256)}), sizes=TINY, dtype="f32")
    refused = [
        {**CONFIG, "FLAW": "assert"},  # by the compiler
        {**CONFIG, "BM": 256, "BN": 256},  # by arithmetic
        {**CONFIG, "BM": 256, "BN": 16},  # by the wrapper
        {**CONFIG, "BM": 48},  # no value of the space
        {"BM": 32},
    ]
    with Gatekeeper(p, compilers) as keeper, BenchRunner(p, keeper, device="cpu") as runner:
        found = [runner.time(config, FULL) for config in refused]
        with pytest.raises(AssertionError, match="did not pass the gates"):
            runner._ask({"op": "time"}, {**CONFIG, "FLAW": "assert"}, 1.0)

    assert [f.status for f in found] == [Status.COMPILE, *[Status.STATIC] * 4]
    assert all(f.reason for f in found)
    assert runner.worker.starts == 0
    spy.clear()  # the one that was sent past the gates on purpose


def test_twins_are_tried_once_and_the_default_stays(compilers):
    p = problem(space(IDLE=(0, 1, 2), **ONE), default={**CONFIG, "IDLE": 1})
    with Gatekeeper(p, compilers) as keeper:
        pool = keeper.pool("wrapper")
        same = keeper.canonical({**CONFIG, "IDLE": 2})

    assert pool.configs == (p.default,)
    assert same == p.default
    assert pool.rejected == {"launches the same as another configuration": 2}


def test_the_default_is_let_through_whatever_the_space_says(compilers):
    p = problem(space(**ONE), default={**CONFIG, "BM": 16, "num_stages": 3})
    with Gatekeeper(p, compilers) as keeper:
        assert keeper.judge(p.default).ok
        assert keeper.judge({**CONFIG, "BM": 128}).gate == "arithmetic"


def test_what_was_prepared_is_not_asked_again(compilers):
    p = problem(space(**ONE | {"num_warps": (1, 2, 4, 8)}))

    def row(warps, status, **more):
        return Row.of({**CONFIG, "num_warps": warps}, status, src=Source.PREPARE, **more)

    rows = [
        row(1, Status.OK, features={"shared": 4096.0, "regs": 90.0}, shared=4096, cubin="ab"),
        row(2, Status.COMPILE, reason="ptxas refuses it"),
        row(4, Status.OK, shared=1 << 30),  # says what cannot be: judged here
        Row.of({**CONFIG, "num_warps": 8}, Status.OK, times_us=[1.0]),  # was not prepared
        row(3, Status.OK),  # no value of the space
    ]  # fmt: skip
    with Gatekeeper(p, compilers) as keeper:
        assert keeper.recall(rows) == 2
        before = compilers.spent["compile"].jobs
        first, second = (keeper.judge({**CONFIG, "num_warps": w}) for w in (1, 2))
        assert compilers.spent["compile"].jobs == before
        third = keeper.judge({**CONFIG, "num_warps": 4})

    assert (first.ok, first.facts["regs"], first.cubins) == (True, 90.0, ("ab",))
    assert (second.ok, second.status, second.detail) == (False, Status.COMPILE, "ptxas refuses it")
    assert third.ok
    assert third.facts["shared"] < 1 << 20


def test_there_is_no_device_here():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with BenchRunner(problem(), None) as runner, pytest.raises(BackendError, match="--prepare"):
        runner.device()


def test_occupancy():
    assert occupancy(128, 0, 4, "sm_90") == 4
    assert occupancy(255, 200_000, 8, "sm_90") == 1
    assert occupancy(32, 100_000, 4, "sm_90") == 2
    assert occupancy(32, 0, 1, "sm_90") == 32
    assert occupancy(255, 0, 16, "sm_90") == 0
    assert occupancy(16, 0, 4, "sm_120") == 12


def test_spills_and_tails_cost():
    full = {"waves": 2.0, "occupancy": 2.0, "warps": 4.0}

    assert estimate(full, 10.0) == 10.0
    assert estimate({**full, "stack": 512.0}, 10.0) == 20.0
    assert estimate({**full, "waves": 1.25}, 10.0) == 16.0
    assert estimate({**full, "occupancy": 1.0}, 10.0) > 10.0
