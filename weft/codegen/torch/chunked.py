"""Chunks of positions in torch, what a linear recurrence is within one, and convolutions as long as the sequence."""

from collections.abc import Mapping
from typing import Any

from weft.codegen.torch.body import Body
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.spelling import ATOM, Src
from weft.ir.library.decay import DecayedProduct, DecayedProductGrad, UnitInverse
from weft.ir.library.long_convolution import LongConvolve, LongConvolveKernel
from weft.ir.library.powers import Powers
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.op import Op
from weft.ir.types import Node


def _chunk(body: Body, node: Node) -> None:
    op: Any = node.op
    (x,), out = node.ins, node.outs[0]
    text = f"chunked.cut({body.full(x)}, {x.dims.index(op.dim)}, {body.size(op.inner).text})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _unchunk(body: Body, node: Node) -> None:
    op: Any = node.op
    (x,), out = node.ins, node.outs[0]
    text = f"chunked.join({body.full(x)}, {x.dims.index(op.outer)}, {body.size(op.dim).text})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _product(body: Body, node: Node) -> None:
    (w, k, a), out = node.ins, node.outs[0]
    text = f"chunked.decayed_product({', '.join(body.argument(v) for v in (w, k, a))})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


def _product_grad(body: Body, node: Node) -> None:
    body.assign(node.outs, f"chunked.decayed_product_backward({', '.join(body.argument(v) for v in node.ins)})")


def _inverse(body: Body, node: Node) -> None:
    (x,), out = node.ins, node.outs[0]
    body.put(out, Src(f"chunked.unit_inverse({body.argument(x)})", ATOM, out.dims, out.dtype), node, inline=False)


def _powers(body: Body, node: Node) -> None:
    op: Any = node.op
    text = f"chunked.powers({', '.join([body.size(op.at).text, *(body.argument(v) for v in node.ins)])})"
    if len(node.outs) == 1:
        out = node.outs[0]
        body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)
    else:
        body.assign(node.outs, text)


def _long(body: Body, node: Node) -> None:
    op: Any = node.op
    out, later = node.outs[0], ", later=True" if op.later else ""
    text = f"fourier.convolve({', '.join(body.argument(v) for v in node.ins)}{later})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


def _long_kernel(body: Body, node: Node) -> None:
    out = node.outs[0]
    text = f"fourier.kernel({', '.join(body.argument(v) for v in node.ins)}, {len(out.dims)})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


MOVES: Mapping[type[Op], Speller] = {Chunk: _chunk, Unchunk: _unchunk}
CHUNKED: Mapping[type[Op], Speller] = {
    DecayedProduct: _product,
    DecayedProductGrad: _product_grad,
    UnitInverse: _inverse,
    Powers: _powers,
    LongConvolve: _long,
    LongConvolveKernel: _long_kernel,
}
