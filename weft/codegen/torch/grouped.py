"""Values whose dims are axes of a call by groups: rows, channels, matrices of experts."""

from collections.abc import Sequence

from weft.codegen.torch.body import Body
from weft.codegen.torch.spelling import ATOM, Src
from weft.ir.types import Dims, Node, Val


def flat(body: Body, src: Src, groups: Sequence[Dims]) -> str:
    """The value with each group of dims as one axis."""
    text = src.aligned(tuple(d for g in groups for d in g)).at(ATOM)
    if all(len(g) == 1 for g in groups):
        return text
    if len(groups) == 2 and len(groups[1]) == 1 and groups[0]:
        return f"{text}.flatten(0, {len(groups[0]) - 1})"
    return f"{text}.reshape({', '.join(' * '.join(body.size(d).text for d in g) or '1' for g in groups)})"


def put_grouped(body: Body, out: Val, text: str, groups: Sequence[Dims], node: Node | None = None) -> None:
    """Record the result of a call, each of whose `groups` of dims is one axis of it."""
    dims = tuple(d for g in groups for d in g)
    if any(len(g) != 1 for g in groups):
        text = f"{text}.view({body.shape(dims)})"
    body.put(out, Src(text, ATOM, dims, out.dtype).ordered(out.dims), node, inline=False)
