"""The derivative of a loop whose body multiplies by a matrix."""

import pytest

from tests.ir.test_loops import body, check
from tests.models import f32
from weft.ir.builder import Builder
from weft.ir.ops.primitives import Loop


@pytest.mark.parametrize("reverse", [False, True])
def test_a_matrix_is_multiplied_once_for_all_steps_after_the_loop(reverse: bool):
    """One that meets a carry under another name, and one that meets what a step makes: no carry is a matrix."""
    b, c, w, v, x = body(("c", f32("b d")), ("w", f32("d e")), ("v", f32("d e")), ("x", f32("b d")))
    m = b.rename(b.einsum(c, w, to="b e"), old="e", new="d")
    r = b.map("tanh(m + x)*c", m=m, x=x, c=c)
    n = b.rename(b.einsum(r, v, to="b e"), old="e", new="d")
    c2 = b.map("sigmoid(m + n)", m=m, n=n)
    g = Builder()
    types = (f32("b d"), f32("d e"), f32("d e"), f32("t b d"))
    both = check(g.graph(*g.many(Loop("t", b.graph(c2, c2), 1, reverse), *(g.input("a", t) for t in types))))
    loops = [(n, n.op) for n in both.nodes if isinstance(n.op, Loop)]
    back, op = next((n, op) for n, op in loops if op.reverse != reverse)
    assert all("e" not in v.dims for v in back.outs[: op.carries])
