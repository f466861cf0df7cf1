"""The attention benchmark on a small case: right results, every competitor, a table."""

import sys

import pytest
import torch

from benchmarks import attention
from weft.codegen.runtime.attention import Columns, Residues


def test_measures_and_checks_a_case(monkeypatch, tmp_path, capsys):
    small = attention.Case(256, Residues(16), lambda q, k: (q >= k) & ((q - k) % 16 == 0))
    monkeypatch.setattr(attention, "CASES", {"strided": small})
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["attention", "--repeats", "1", "--no-flex", "--threads", "1", "-o", str(output)])
    threads = torch.get_num_threads()
    attention.main()
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "sdpa / weft forward+backward" in printed
    assert '"schema": "weft.bench.attention/1"' in output.read_text()
    row = attention.measure(small, small.layout, heads=1, width=8, repeats=1, with_flex=False)
    assert row["error"] < 1e-5
    assert set(row["ratios"]) == {"sdpa / weft forward", "sdpa / weft forward+backward"}
    wrong = attention.measure(small, Columns(16, 0, 1), heads=1, width=8, repeats=1, with_flex=False)
    assert wrong["error"] > 0.1


def test_unknown_case(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention", "nonsense"])
    with pytest.raises(SystemExit):
        attention.main()
    assert "unknown case nonsense" in capsys.readouterr().err


def test_a_layout_by_name():
    assert attention.named_layout("benchmarks.attention:CASES")["window"].n == 16384
