"""The compile pool: each launch once, deadlines that also end what the compiler started, and nothing raised."""

import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tests.autotune.samples import FOLDER
from tests.autotune.test_staging import products
from weft.autotune.workers import compile_pool
from weft.autotune.workers.capture import gpu
from weft.autotune.workers.compile_pool import CompilePool, Spent, first_line
from weft.autotune.workers.kept import Kept, join, pack, place, unpack
from weft.autotune.workers.launches import KernelFolder, KernelLaunch, source
from weft.autotune.workers.serve import said
from weft.cache.row import Status

SLOW = "tests.autotune.slow_compiler"


def launch(**options):
    return KernelLaunch(".gemm", "matmul", {}, options=options)


def running(pattern):
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()


def test_a_deadline_ends_the_compiler_and_what_it_started(monkeypatch):
    monkeypatch.setattr(compile_pool, "LEAST_SECONDS", 1.0)
    with CompilePool(FOLDER, 1, program=SLOW) as pool:
        late = pool.compile(launch(hang=31337), "sm_90").result()
        after = pool.compile(launch(num_warps=4), "sm_90").result()

    assert (late.status, late.reason) == (Status.TIMEOUT, "compile deadline")
    assert after.status is Status.OK
    assert running("^sleep 31337") == []
    assert pool.spent["compile"].faults == 1


def test_crashes_and_refusals_are_answers():
    with CompilePool(FOLDER, 1, program=SLOW) as pool:
        crash = pool.compile(launch(crash=True), "sm_90").result()
        refused = pool.shared(launch(**{"raise": True}), "sm_90").result()
        after = pool.shared(launch(num_warps=4), "sm_90").result()

    assert (crash.status, crash.reason) == (Status.COMPILE, "compiler crashed")
    assert "SIGABRT" in crash.detail
    assert (refused.status, refused.reason) == (Status.COMPILE, "compiler fails")
    assert "PassManager" in refused.detail
    assert after.status is Status.OK


def test_what_a_compiler_says_ends_with_the_first_cause():
    try:
        try:
            raise AttributeError("'dtype' object has no attribute 'type'")
        except AttributeError as error:
            raise ValueError("at 45:12:\n    s = start(s, p, c, X)\n        ^") from error
    except ValueError as error:
        found = said(error)

    assert first_line(found) == "'dtype' object has no attribute 'type'"
    assert found.startswith("at 45:12:")


def test_a_launch_is_compiled_once():
    with CompilePool(FOLDER, 1, program=SLOW) as pool:
        futures = [pool.shared(launch(num_warps=w), "sm_90") for w in (1, 2, 1, 2, 1)]
        assert {f.result().status for f in futures} == {Status.OK}

        assert pool.spent["shared"].jobs == 2
        assert pool.shared(launch(num_warps=1), "sm_80") is not futures[0]


def test_deadlines_follow_what_compilations_took():
    assert Spent(waits=[100.0] * 9).deadline() == 30.0
    assert Spent(waits=[1.0] * 100).deadline() == 30.0
    assert Spent(waits=[*[20.0] * 90, *[40.0] * 10]).deadline() == 120.0
    assert Spent(waits=[*[20.0] * 91, *[500.0] * 9]).deadline() == 60.0


def test_a_pause_lets_nothing_begin():
    with CompilePool(FOLDER, 1, program=SLOW) as pool:
        pool.pause()
        waiting = pool.shared(launch(num_warps=1), "sm_90")
        time.sleep(0.3)
        assert not waiting.done()
        pool.resume()
        assert waiting.result().status is Status.OK


def test_closing_ends_all_and_cancels_the_rest():
    pool = CompilePool(FOLDER, 1, program=SLOW)
    first, second = pool.compile(launch(hang=31338), "sm_90"), pool.compile(launch(num_warps=1), "sm_90")
    while not running("^sleep 31338"):
        time.sleep(0.05)

    pool.close()

    assert running("^sleep 31338") == []
    assert second.cancelled()
    with pytest.raises(CancelledError):
        first.result()


def test_workers_have_no_torch():
    code = (
        "import sys; from weft.autotune.workers import compile as w; w.versions();"
        "assert 'torch' not in sys.modules;"
        f"k = w.kernels({str(FOLDER)!r}); k.module('.wrapper'); t = sys.modules['torch'];"
        "assert not hasattr(t, '__file__') and not t.cuda.is_available(); print('none')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert said.stdout.strip() == "none", said.stderr


def test_kept_kernels_are_found_by_triton_from_any_folder(tmp_path):
    """Compiled here from one folder, found there from another: the key is made of contents, not of paths."""
    [(_, one)] = products("sm_90", 1, seed=5)
    one = dataclasses.replace(one, options={"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True})
    kept = []
    with CompilePool(FOLDER, 1, keep=lambda data: kept.append(data) or "kept") as pool:
        built = pool.compile(one, "sm_90").result()
    assert (built.status, built.cubin) == (Status.OK, "kept")

    moved, cache = tmp_path / "elsewhere", tmp_path / "cache"
    shutil.copytree(FOLDER, moved, ignore=shutil.ignore_patterns("__pycache__"))
    [folder] = place(kept[0], cache)
    import triton  # a GPU's compiler, which not every machine has

    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        found = triton.compile(source(one, KernelFolder(moved)), target=gpu("sm_90"), options=one.options)

    assert set(found.asm) == {"cubin"}, "it was compiled again"
    assert found.metadata.shared == built.shared
    assert Path(folder).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]x\n", b'[{"key": "../up", "name": "a", "metadata": "", "size": 1}]\nx', b"\xff\n",
     b'[{"key": "K", "name": "a/b", "metadata": "", "size": 1}]\nx', b'[{"key": "K", "name": "a"}]\n',
     b'[{"key": "K", "name": "a", "metadata": "", "size": 99}]\nx'],
)  # fmt: skip
def test_what_is_no_kept_kernel_is_refused(data):
    with tempfile.TemporaryDirectory() as cache, pytest.raises(ValueError, match="no kept kernels"):
        place(data, cache)


def test_kept_kernels_join():
    a, b = Kept("A", "f", "{}", b"one"), Kept("B", "g", "{}", b"three")

    assert unpack(join([pack([a]), pack([b]), pack([a])])) == [a, b]
