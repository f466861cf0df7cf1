"""`make gpu` as far as it goes without a GPU: its programs, its masks, its clock, a rehearsal; and that it skips."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.masks import mask
from benchmarks.gpu.programs import HOME, texts
from benchmarks.gpu.race import race
from benchmarks.gpu.roofline import ceilings, share
from weft.ir.pattern import Pattern, holds

ROOT = Path(__file__).parents[2]


def test_the_kept_programs_are_those_of_the_shipped_specs():
    """When this fails: make programs."""
    assert {p.name: p.read_text(encoding="utf-8") for p in HOME.iterdir()} == texts()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_runs(capsys):
    assert command.main([]) == 0
    assert "no GPU" in capsys.readouterr().err


def test_kernels_of_one_spec_rehearsed(tmp_path):
    """One process of the correctness stage, as `make gpu` starts it, its kernels interpreted."""
    path = tmp_path / "rows"
    worker = ["--worker", "correctness", "300", str(path), "3", "100"]
    env = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
    made = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", *worker]

    subprocess.run(made, cwd=ROOT, env=env, check=True)

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {r["case"].partition(".")[0] for r in rows} == {"gpt2_345m"}
    assert {r["skeleton"] for r in rows} >= {"attention", "rowwise", "pointwise"}
    assert [r for r in rows if not r["ok"]] == []


@pytest.mark.parametrize(
    "text",
    [
        "all", "causal", "causal and window(7)", "causal and (q // 5 == k // 5 or k % 5 >= 3)", "strided(6) and causal",
        "not causal", "causal and (q - k) % 4 == 0 or h == 1 and k < 3",
    ],
)  # fmt: skip
def test_a_mask_is_the_pattern(text):
    pattern = Pattern.parse(text)
    see, at = mask(pattern), torch.arange(23)
    for h in range(3):
        got = torch.as_tensor(see(0, torch.tensor(h), at[:, None], at[None, :])).expand(23, 23).numpy()
        assert np.array_equal(got, holds(pattern, at.numpy()[:, None], at.numpy()[None, :], h))


def test_a_competitor_that_fails_is_a_row():
    def broken():
        raise RuntimeError("not on this machine")

    found = race({"weft": lambda: None, "other": broken}, "cpu", 0.01)

    assert found["weft"].us > 0
    assert found["other"].why == "RuntimeError: not on this machine"


def test_shares_of_the_roofline():
    rows = [
        {"case": "copy", "bytes_per_second": 4e12},
        {"case": "product bfloat16", "flops_per_second": 8e14},
    ]
    timed = {"times": {"weft": {"us": 10.0}}, "bytes": 2e7, "flops": 1e6, "skeleton": "rowwise", "half": "forward"}
    slow = {**timed, "times": {"weft": {"us": 100.0}}}
    product = {"times": {"weft": {"us": 10.0}}, "bytes": 10, "flops": 4e9}

    share([timed, slow, product], *ceilings(rows))

    assert (timed["share"], timed["bars"]) == (pytest.approx(0.5), {"copy": False})
    assert slow["share"] == pytest.approx(0.05)
    assert product["share"] == pytest.approx(0.5)
    assert "bars" not in product
