"""How an einsum over named dims is best said in torch: a product, `@`, `F.linear`, or `torch.einsum` if nothing fits.

Two operands are a matrix product when each is a run of kept dims beside a run of summed dims (in either order) and the
result is a run of one's kept dims beside a run of the other's. Then views suffice: nothing is copied, one BLAS call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_letters

from weft.codegen.torch.lines import tuple_of

Dims = tuple[str, ...]
Size = Callable[[str], str]


@dataclass(frozen=True)
class Product:
    """A matrix product `left @ right`, then viewed by `tail`; `cols` are the dims of its columns."""

    left: str
    right: str
    tail: str
    cols: Dims
    leading: bool  # the columns are the last dims of the result, so that a bias over them can join

    def said(self, bias: str = "") -> str:
        """The source; with a bias (a vector over the flattened columns) it is one fused operation."""
        weight = self.right.removesuffix(".T") if self.right.endswith(".T") else f"{self.right}.T"
        if bias:
            return f"F.linear({self.left}, {weight}, {bias}){self.tail}"
        if self.right.endswith(".T") and not self.left.endswith(".T"):
            return f"F.linear({self.left}, {weight}){self.tail}"
        return f"({self.left} @ {self.right}){self.tail}" if self.tail else f"{self.left} @ {self.right}"


def spell(names: Sequence[str], dims: Sequence[Dims], to: Dims, size: Size) -> str:
    """Torch source of einsum(names[k][dims[k]]...) -> [to]. `names` are atoms; `size(dim)` is the source of a size."""
    if len(names) == 1:
        return _reduced(names[0], dims[0], to)
    if len(names) == 2:
        product = matmul(names, dims, to, size)
        said = _product(names, dims, to) or (product.said() if product else _batched(names, dims, to))
        if said:
            return said
    letter = dict(zip(dict.fromkeys(d for ds in dims for d in ds), ascii_letters))
    equation = ",".join("".join(letter[d] for d in ds) for ds in dims) + "->" + "".join(letter[d] for d in to)
    return f'torch.einsum("{equation}", {", ".join(names)})'


def align(name: str, dims: Dims, to: Dims) -> str:
    """`name[dims]` permuted and unsqueezed so that it broadcasts against `to`: `x[:, None]`; atoms stay atoms."""
    order = [d for d in to if d in dims]
    if order != list(dims):
        move = [dims.index(d) for d in order]
        name = f"{name}.mT" if move == [*range(len(dims) - 2), len(dims) - 1, len(dims) - 2] else _permute(name, move)
    lead = next((i for i, d in enumerate(to) if d in dims), len(to))
    marks = [":" if d in dims else "None" for d in to[lead:]]
    if "None" not in marks:
        return name
    last = len(marks) - marks[::-1].index("None")
    if last < len(marks):
        return f"{name}[{', '.join(marks[:last])}]"
    tail = marks.index("None", next((len(marks) - i for i, m in enumerate(reversed(marks)) if m == ":"), 0))
    return f"{name}[..., {', '.join(marks[tail:])}]" if "None" not in marks[:tail] else f"{name}[{', '.join(marks)}]"


def _permute(name: str, move: Sequence[int]) -> str:
    moved = [i for i, j in enumerate(move) if i != j]
    if len(moved) == 2:
        swap = f".transpose({moved[0]}, {moved[1]})"
        return name.removesuffix(swap) if name.endswith(swap) else name + swap
    return f"{name}.permute({', '.join(map(str, move))})"


def _reduced(name: str, dims: Dims, to: Dims) -> str:
    """Sum what `to` leaves out, then permute."""
    over = [i for i, d in enumerate(dims) if d not in to]
    left = tuple(d for d in dims if d in to)
    if over:
        name = f"{name}.sum({over[0] if len(over) == 1 else tuple_of(map(str, over))})" if left else f"{name}.sum()"
    return align(name, left, to)


def _product(names: Sequence[str], dims: Sequence[Dims], to: Dims) -> str:
    """Nothing is summed: a broadcast product."""
    x, y = dims
    if set(x) | set(y) != set(to):
        return ""
    return f"{align(names[0], x, to)} * {align(names[1], y, to)}"


def matmul(names: Sequence[str], dims: Sequence[Dims], to: Dims, size: Size) -> Product | None:
    """One matrix product over views, or None when dims are interleaved."""
    if len(names) != 2:
        return None
    x, y = dims
    summed = tuple(d for d in x if d in y and d not in to)
    rows, cols = tuple(d for d in x if d in to and d not in y), tuple(d for d in y if d in to and d not in x)
    if not summed or set(x) & set(y) & set(to) or set(x) | set(y) != {*summed, *rows, *cols} or not rows:
        return None
    if to != rows + cols:
        return matmul((names[1], names[0]), (y, x), to, size) if to == cols + rows else None
    left = _matrix(names[0], x, rows, summed)
    right = _matrix(names[1], y, summed, cols) if cols else (names[1] if y == summed and len(y) == 1 else "")
    if not left or not right:
        return None
    folds = x == rows + summed  # leading rows fold by themselves
    if folds and len(rows) > 1:
        left = names[0] if len(summed) == 1 else f"{names[0]}.flatten({len(rows)})"
    tail = f".unflatten(-1, {tuple_of(map(size, cols))})" if len(cols) > 1 else ""
    tail += f".unflatten(0, {tuple_of(map(size, rows))})" if len(rows) > 1 and not folds else ""
    return Product(left, right, tail, cols, folds and bool(cols))


def _matrix(name: str, dims: Dims, rows: Dims, cols: Dims) -> str:
    """`name` viewed as [rows, cols], transposed if it lies the other way round, "" if a view cannot do it."""
    if dims == rows + cols:
        return _flat(name, len(rows), len(cols))
    if dims == cols + rows:
        return _flat(name, len(cols), len(rows)) + ".T"
    return ""


def _flat(name: str, rows: int, cols: int) -> str:
    name = f"{name}.flatten(0, {rows - 1})" if rows > 1 else name
    return f"{name}.flatten(1)" if cols > 1 else name


def _batched(names: Sequence[str], dims: Sequence[Dims], to: Dims) -> str:
    """Leading shared dims, one row, one summed and one column dim: a batched product."""
    x, y = dims
    n = len(x) - 2
    if n < 1 or len(y) != n + 2 or len(to) != n + 2 or not x[:n] == y[:n] == to[:n]:
        return ""
    rows, cols = to[n:]
    if rows not in x or cols not in y or rows in y or cols in x:
        return ""
    left = names[0] if x[n] == rows else f"{names[0]}.mT"
    right = names[1] if y[n + 1] == cols else f"{names[1]}.mT"
    return f"{left} @ {right}" if len({*x[n:], *y[n:]}) == 3 else ""
