"""Kernels of the shipped specs at their published shapes, compiled for every target: legal, fitting, unspilled.

`make test` compiles a few; the soak all of them, and once more with an older Triton where WEFT_TRITON36 names a Python
that has it.
"""

import dataclasses
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks import shipped
from benchmarks.specs import EVERY, LIKE, STANDS_FOR
from tests.campaign import SOAK
from weft.autotune.inspection import Inspected, compiled
from weft.autotune.workers.compile_pool import CompilePool
from weft.targets import LIMITS

ROOT = Path(__file__).parents[2]
OLDER = os.environ.get("WEFT_TRITON36", "")
SAMPLE = (("mistral_7b", "sm_90"), ("gpt2_345m", "sm_90"), ("megatron_8b", "sm_90"))
COMPILED = [(name, target) for name in EVERY for target in shipped.TARGETS]


def flawed(found: list[Inspected]) -> dict[str, list[str]]:
    return {f"{f.kernel} {f.function}": shipped.flaws(f) for f in found if shipped.flaws(f)}


def test_the_limits_are_the_published_ones():
    found = {t: LIMITS[t]["shared_limit"] for t in shipped.TARGETS}

    assert found == {"sm_80": 166_912, "sm_90": 232_448, "sm_120": 101_376}
    assert not STANDS_FOR.keys() & LIKE.keys()
    assert {*STANDS_FOR, *LIKE} == set(EVERY), "benchmarks/specs.py says what each spec is for"


@pytest.mark.parametrize(("name", "target"), COMPILED if SOAK else [random.Random(0).choice(SAMPLE)])
def test_shipped_kernels_compile(name, target, record_property):
    if SOAK:
        found = list(shipped.survey(name, target))
    else:
        folder, every = shipped.launches(name, target)
        chosen = random.Random(0).sample(every, 4)
        with CompilePool(folder / "kernels", 2) as compilers:
            found = compiled(chosen, compilers, target)
    record_property("launches", len(found))

    assert found
    assert flawed(found) == {}
    assert all(f.regs > 0 and f.warps > 0 and f.occupancy > 0 for f in found)


@pytest.mark.skipif(not SOAK or not OLDER, reason="WEFT_TRITON36 names a Python with Triton 3.6, in the soak")
@pytest.mark.parametrize("name", EVERY)
def test_shipped_kernels_compile_with_the_oldest_triton(name, tmp_path, record_property):
    out = tmp_path / "shipped.json"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    command = [OLDER, "-m", "benchmarks.shipped", "--spec", name, "-o", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    record_property("launches", sum(r["launches"] for r in rows))

    assert {r["triton"].rsplit(".", 1)[0] for r in rows} == {"3.6"}
    assert [r["target"] for r in rows] == sorted(shipped.TARGETS)
    assert {r["target"]: r["flaws"] for r in rows if r["flaws"]} == {}


# What would be found


GOOD = Inspected("k00", "attention", "a.b", "sm_90", "bf16", "", (1,), {}, 4, 168, 0, 65_536, 3, dots=2, wgmma=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, ""), ({"reason": "ptxas refuses it"}, "ptxas"), ({"shared": 232_449}, "does not fit"),
     ({"occupancy": 0}, "does not fit"), ({"stack": 8}, "stack"), ({"wgmma": 0, "mma": 8}, "tensor-core"),
     ({"target": "sm_80", "stack": 8, "mma": 4}, ""), ({"target": "sm_80"}, "tensor-core"),
     ({"target": "sm_120", "shared": 101_377, "mma": 4}, "does not fit")],
)  # fmt: skip
def test_flaws(changes, said):
    found = shipped.flaws(dataclasses.replace(GOOD, **changes))

    assert (said in "; ".join(found)) if said else found == []


def test_a_kernel_that_is_refused_is_a_row():
    """What does not compile, and what cannot be recorded, has its reason; the others are compiled all the same."""
    folder, every = shipped.launches("mistral_7b", "sm_90", train=False)
    [one, *_] = [r for r in every if r.launch.name == "pointwise.kernel.pointwise"]
    huge = dataclasses.replace(one.launch, options={**one.launch.options, "num_warps": 3})
    unknown = dataclasses.replace(one.launch, function="nothing")
    asked = [dataclasses.replace(one, launch=launch) for launch in (one.launch, huge, unknown, None)]
    asked[3] = dataclasses.replace(asked[3], reason="the wrapper cannot be run: no")
    seen = []
    with CompilePool(folder / "kernels", 1) as compilers:
        found = compiled(asked, compilers, "sm_90", watch=lambda done, total: seen.append((done, total)))

    assert [bool(f.reason) for f in found] == [False, True, True, True]
    assert not found[1].fits
    assert found[0].data()["threads"] == 32 * found[0].warps
    assert found[3].data() == {
        "kernel": one.kernel, "skeleton": one.skeleton, "function": "", "target": "sm_90", "dtype": "bf16",
        "reason": "the wrapper cannot be run: no", "fits": False,
    }  # fmt: skip
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)


def test_rows_of_other_targets_stay(tmp_path):
    path = tmp_path / "shipped.json"
    for target in ("sm_90", "sm_80", "sm_90"):
        fresh = shipped.row("gpt2_345m", target, [dataclasses.replace(GOOD, target=target)])
        path.write_text(json.dumps({"rows": shipped.kept(path, fresh)}))
    rows = json.loads(path.read_text())["rows"]

    assert [(r["target"], r["launches"], r["with_wgmma"]) for r in rows] == [("sm_80", 1, 1), ("sm_90", 1, 1)]
