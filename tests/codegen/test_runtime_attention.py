"""Every static attention layout against dense masked attention."""

import pytest
import torch

from tests.campaign import count, some
from tests.codegen.attention_oracle import check, operands
from weft.codegen.runtime import attention_core, attention_pieces
from weft.codegen.runtime.attention import (
    Band,
    Blocks,
    Causal,
    Cols,
    Columns,
    Dense,
    Diagonal,
    Merge,
    PerHead,
    Rectangle,
    Residues,
    Rows,
    Strict,
    Tiles,
    Window,
)

SIZES = [(0, 0), (1, 1), (1, 5), (5, 1), (0, 3), (3, 0), (7, 7), (16, 16), (37, 37), (40, 29), (29, 40), (130, 130)]
SHAPES = [
    {},
    {"order": "token"},
    {"batch": 1, "kv": 4, "width_v": 5},
    {"batch": 1, "heads": 1, "kv": 1, "order": "token"},
]


def band(left, right):
    return Band(left, right), lambda i, j: (j - i >= -left) & (j - i <= right)


def window(width):
    return Window(width), lambda i, j: (j <= i) & (j > i - width)


def diagonal(block, inner, visible):
    return Diagonal(block, inner), lambda i, j: (i // block == j // block) & visible(i % block, j % block)


def residues(modulus, inner, visible):
    return Residues(modulus, inner), lambda i, j: ((i - j) % modulus == 0) & visible(i // modulus, j // modulus)


def columns(modulus, start, width):
    seen = lambda i, j: (j % modulus >= start) & (j % modulus < start + width) & (j // modulus < i // modulus)  # noqa: E731
    return Columns(modulus, start, width), seen


INNER = [
    (Dense(), lambda i, j: (i >= 0) & (j >= 0)),
    (Causal(), lambda i, j: j <= i),
    (Strict(), lambda i, j: j < i),
    (Window(3), lambda i, j: (j <= i) & (j > i - 3)),
    (Band(2, 1), lambda i, j: (j <= i + 1) & (j >= i - 2)),
]
LAYOUTS = [
    *INNER,
    (Causal(3), lambda i, j: j <= i + 3),
    (Causal(-4), lambda i, j: j <= i - 4),
    (Rows(2, 5), lambda i, j: (i >= 2) & (i < 5) & (j >= 0)),
    (Cols(3, None), lambda i, j: (i >= 0) & (j >= 3)),
    *(window(width) for width in (1, 8, 20, 50)),
    *(band(*x) for x in ((0, 0), (0, 5), (30, 1), (1, 30), (40, 40), (5, -1), (9, -4), (-2, 5), (-30, 40), (33, -30))),
    *(diagonal(block, *inner) for block in (1, 4, 10, 50) for inner in INNER),
    *(residues(modulus, *inner) for modulus in (1, 3, 8, 50) for inner in INNER),
    *(columns(*x) for x in ((1, 0, 1), (4, 3, 1), (4, 0, 4), (4, 1, 2), (10, 0, 3), (10, 7, 3), (2, 1, 1))),
]


def weights(visible, n: int, m: int) -> torch.Tensor:
    return visible(torch.arange(n)[:, None], torch.arange(m)).expand(n, m)


@pytest.mark.parametrize(
    ("layout", "visible"), some(LAYOUTS, 35), ids=lambda x: str(x) if hasattr(x, "forward") else ""
)
def test_layout_equals_dense_masked_attention(layout, visible):
    for n, m in SIZES:
        for shape in SHAPES:
            check(layout, weights(visible, n, m), operands(n, m, **shape), meta=not shape)


def test_rectangle_bounds_count_from_either_end():
    visible = torch.zeros(9, 12)
    visible[6:, 2:10] = 1
    check(Rectangle(-3, None, 2, -2), visible, operands(9, 12))


def test_random_sizes_and_parameters():
    generator = torch.Generator().manual_seed(1)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    for trial in range(count(sample=60, soak=2000)):
        n, m, a = draw(1, 300), draw(1, 300), draw(1, 70)
        family = (
            lambda a: band(a, draw(1 - a, 70)),
            window,
            lambda a: diagonal(a, *INNER[draw(0, 5)]),
            lambda a: residues(a, *INNER[draw(0, 5)]),
            lambda a: columns(a, start := draw(0, a), draw(1, a - start + 1)),
        )
        layout, visible = family[trial % 5](a)
        m = n if draw(0, 2) else m
        check(layout, weights(visible, n, m), operands(n, m, **SHAPES[draw(0, 4)], seed=trial))


def test_staircase_of_many_levels():
    layout, visible = columns(2, 1, 1)
    n = 2 * 300 + 1
    check(layout, weights(visible, n, n), operands(n, n, batch=1, heads=1, kv=1, width=4, width_v=4))


def test_merge_of_disjoint_parts_is_the_union():
    fixed = Merge((Diagonal(8, Causal()), Columns(8, 6, 2)))
    for n in (1, 8, 30, 77):
        i, j = torch.arange(n)[:, None], torch.arange(n)
        visible = (j <= i) & ((i // 8 == j // 8) | (j % 8 >= 6))
        for shape in SHAPES:
            check(fixed, visible, operands(n, n, **shape))


def test_merge_counts_repeated_pairs_and_keeps_empty_rows():
    merged = Merge((Window(3), Cols(0, 2), Rectangle(4, 6), Rectangle(4, 6, 1, 3)))
    i, j = torch.arange(11)[:, None], torch.arange(11)
    rows = ((i >= 4) & (i < 6)).int()
    check(merged, ((j <= i) & (j > i - 3)).int() + (j < 2).int() + rows + rows * ((j >= 1) & (j < 3)), operands(11, 11))
    check(Merge((Strict(), Rectangle(5, 6))), ((j < i) | (i == 5)).int() + ((j < i) & (i == 5)), operands(11, 11))


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_per_head_layouts(kv):
    n = 33
    i, j = torch.arange(n)[:, None], torch.arange(n)
    each = torch.stack([j <= i, (j <= i) & (j > i - 5), (j <= i) & (j > i - 5), torch.zeros(n, n, dtype=torch.bool)])
    check(PerHead(((range(1), Causal()), (range(1, 3), Window(5)))), each, operands(n, n, kv=kv))
    nested = Merge((PerHead(((range(3), Strict()),)), Diagonal(1)))
    check(nested, torch.stack([j <= i] * 3 + [j == i]), operands(n, n, kv=kv))
    every = PerHead(((range(0, 4, 2), Window(5)), (range(3, 4, 2), Causal()), (range(1, 3, 2), Strict())))
    check(every, torch.stack([each[1], j < i, each[1], j <= i]), operands(n, n, kv=kv))
    inside = PerHead(((range(0, 4, 2), PerHead(((range(1, 2), Tiles(lambda q, k, h: k <= q - h, 8)),))),))
    check(inside, torch.stack([each[3], each[3], j <= i - 2, each[3]]), operands(n, n, kv=kv))


def test_blocks_are_a_multiset():
    table = (((0, 0, 2), (), (1,), (3, 0)), ((2,), (3, 3), (0, 1, 2, 3)), ((), (), (), ()), ((1,), (1,), (1,), (1,)))
    for n, m in ((16, 16), (13, 15), (9, 16), (16, 9), (3, 2)):
        weight = torch.zeros(4, 16, 16)
        for head, rows in enumerate(table):
            for row, seen in enumerate(rows):
                for b in seen:
                    weight[head, 4 * row : 4 * row + 4, 4 * b : 4 * b + 4] += 1
        for shape in SHAPES[:3]:
            check(Blocks(4, table), weight[:, :n, :m], operands(n, m, **shape))
            check(Blocks(4, table[:1]), weight[:1, :n, :m], operands(n, m, **shape))
    check(Merge((Blocks(4, table), Diagonal(4))), weight + (torch.arange(16)[:, None] // 4 == torch.arange(16) // 4),
          operands(16, 16))  # fmt: skip


LOW = [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]


@pytest.mark.parametrize(("dtype", "tolerance"), LOW, ids=str)
def test_low_precision(dtype, tolerance):
    n = 200
    i, j = torch.arange(n)[:, None], torch.arange(n)
    layouts = [
        (Window(40), (j <= i) & (j > i - 40)),
        (Merge((Diagonal(16, Causal()), Columns(16, 12, 4))), (j <= i) & ((i // 16 == j // 16) | (j % 16 >= 12))),
        (Residues(7), (j <= i) & ((i - j) % 7 == 0)),
    ]
    for layout, visible in layouts:
        check(layout, visible, operands(n, n, dtype=dtype, width=32, width_v=32), tolerance)


def test_without_the_fused_operator(monkeypatch):
    monkeypatch.setattr(attention_core, "fused", lambda x: False)
    monkeypatch.setattr(attention_core, "ROWS_AT_ONCE", 500)
    for layout, visible in (LAYOUTS[1], window(8), residues(3, *INNER[1]), columns(4, 1, 2)):
        for n, m in SIZES:
            check(layout, weights(visible, n, m), operands(n, m, width_v=5))


def test_memory_of_any_stride():
    """Transposed, expanded, interleaved and overlapping rows, which the fused operator would misread."""
    n = 50
    make = lambda *shape: [torch.randn(shape, dtype=torch.float64) for _ in range(4)]  # noqa: E731
    kinds = [
        [x.mT for x in make(2, 4, 8, n)],
        [x[:, :, ::2, 3:11] for x in make(2, 4, 2 * n, 20)],
        [x[..., ::2] for x in make(2, 4, n, 16)],
        *([x.expand(2, 4, n, 8) for x in make(*s)] for s in ((2, 1, n, 8), (1, 4, n, 8), (2, 4, 1, 8), (2, 4, n, 1))),
        [x.as_strided((2, 4, n, 8), (400, 100, 2, 1)) for x in make(810)],
    ]
    layouts = [LAYOUTS[1], window(8), residues(3, *INNER[1]), columns(5, 1, 2), diagonal(4, *INNER[1])]
    for given in kinds:
        for layout, visible in layouts:
            check(layout, weights(visible, n, n), given)


def test_long_samples_run_one_by_one(monkeypatch):
    monkeypatch.setattr(attention_pieces, "LONG", 0)
    for layout, visible in (window(8), residues(3, *INNER[1]), residues(3, *INNER[3]), diagonal(4, *INNER[1])):
        for shape in SHAPES:
            check(layout, weights(visible, 50, 50), operands(50, 50, **shape))


def test_few_calls_at_a_million_tokens():
    n = 1 << 20
    layouts = [Residues(128), Residues(1024), Columns(128, 96, 32), Window(256), Diagonal(128, Causal())]
    for layout in [*layouts, Residues(128, Window(3))]:
        pieces = list(layout.staircase(n, n // 4)) if isinstance(layout, Columns) else list(layout.pieces(n, n))
        assert len(pieces) <= 300, layout
