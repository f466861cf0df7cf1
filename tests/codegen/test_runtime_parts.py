"""Layouts of the end of a sequence, or of its first queries and keys."""

import pytest
import torch

from tests.codegen.attention_oracle import check, operands
from weft.codegen.runtime.attention import Band, Causal, Corner, Dense, Merge, Residues, Tail, Window

INNER = [
    (Dense(), lambda i, j: (i >= 0) & (j >= 0)),
    (Causal(), lambda i, j: j <= i),
    (Causal(-2), lambda i, j: j <= i - 2),
    (Window(3), lambda i, j: (j <= i) & (j > i - 3)),
    (Band(2, 4), lambda i, j: (j <= i + 4) & (j >= i - 2)),
    (Residues(3), lambda i, j: (j <= i) & ((i - j) % 3 == 0)),
]


@pytest.mark.parametrize(("inner", "visible"), INNER, ids=lambda x: str(x) if hasattr(x, "forward") else "")
def test_tails_and_corners(inner, visible):
    for n, m in ((0, 0), (3, 3), (12, 12), (41, 41), (20, 9), (9, 20)):
        i, j = torch.arange(n)[:, None], torch.arange(m)
        seen = visible(i, j)
        for start in (0, 4, 15):
            check(Tail(start, inner), visible(i - start, j - start) & (i >= start) & (j >= start), operands(n, m))
        check(Corner(5, None, inner), seen & (i < 5), operands(n, m))
        check(Corner(None, 7, inner), seen & (j < 7), operands(n, m, order="token"))
        rest = Merge((Corner(5, 7, inner), Tail(6, Causal())))
        check(rest, (seen & (i < 5) & (j < 7)) | ((j <= i) & (j >= 6)), operands(n, m))
