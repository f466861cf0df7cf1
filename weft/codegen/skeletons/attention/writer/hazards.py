"""Known faults of compilers that configurations of the attention kernels keep clear of, and what their rules ask."""

from collections.abc import Callable

from weft.codegen.skeletons.attention.writer.plan import static_block
from weft.codegen.skeletons.common.writer.hazards import Hazard
from weft.ir.types import Graph, Node

HAZARDS = (
    Hazard(
        "wgmma-register-operand",
        "ptxas 12.x may overwrite the register operand of a wgmma under way, as of P in P @ V",
        "check a configuration's numbers on the device before it may win; Triton from 3.9 brings ptxas 13.4",
        "triton-lang/triton PR #11781 (fixed in CUDA 13.3)",
        ("sm_90",), (0,), (3, 9),
    ),
    Hazard(
        "narrow-dots-four-warps",
        "several dots with a side of 32 in one kernel read shared memory out of bounds with 4 warps",
        "8 warps where a tile of a head dim is 32 wide",
        "triton-lang/triton #11366, #10486",
        ("sm_90",), (3, 6), (3, 8), rule="narrowest > 32 or num_warps != 4",
        remedy=(("num_warps", 8),),
    ),
    Hazard(
        "chained-dots-tcgen05",
        "two dots into one accumulator in one iteration give wrong sums with 64 rows or more",
        "head dims of one tile only, or torch ops",
        "triton-lang/triton #10821 (found on sm_103, 3.6.0 to 3.8.0)",
        ("sm_100", "sm_103"), (3, 6), (3, 9), rule="tiles == 1 or BM < 64", remedy=(("BM", 32),),
    ),
)  # fmt: skip


def facts(graph: Graph, size: Callable[[str], int]) -> dict[str, int]:
    """What hazards and search spaces ask of an attention: its head dims, padded to 16 (dk, dv), the most tiles of one
    and the narrowest, whether nothing was padded, and the block of its static block set, 0 without one."""
    out: dict[str, int] = {}
    for n in graph.nodes:
        if n.op.attention is not None:
            dk, dv = (size(d) for d in heads(n))
            keys, values = widths(dk), widths(dv)
            out |= {"dk": sum(keys), "dv": sum(values), "narrowest": min(keys + values)}
            out |= {"tiles": max(len(keys), len(values)), "whole": int(dk % 16 == dv % 16 == 0)}
            out |= {"block": static_block(n.op.attention.pattern)}
    return out


def heads(n: Node) -> tuple[str, str]:
    """The head dims of an attention: of queries and keys, and of values."""
    contract = n.op.attention.contract
    own = [d for d in n.ins[2].dims if d not in n.ins[1].dims or d == contract]
    return contract, own[-1] if own else contract


def widths(d: int) -> list[int]:
    """Widths of the power-of-two tiles of a head dim, as the attention kernels cut it: 80 is 64 and 16."""
    left, out = -(-d // 16) * 16, list[int]()
    while left:
        out.append(1 << (left.bit_length() - 1))
        left -= out[-1]
    return out
