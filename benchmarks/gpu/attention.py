"""Attention of the shipped specs, 4k to 64k tokens, against FlexAttention with the same mask and dense SDPA.

Each competitor has q, k and v in the layout it likes best; backward times are of the backward alone. SDPA is dense
(causal where the pattern is): what a sparse pattern is compared with where nothing else can skip. Mask building and
compilation of FlexAttention are not counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.masks import mask
from benchmarks.gpu.packages import Package, package, traffic, work
from benchmarks.gpu.programs import names, program
from benchmarks.gpu.race import Run, race
from benchmarks.gpu.stage import Stage
from weft.codegen.skeletons.common.writer.regions import RegionFile
from weft.errors import FormulaError
from weft.ir.library import Attend, AttendGrad
from weft.ir.pattern import Pattern
from weft.ir.types import Val
from weft.passes.fusion import price

CAUSAL = Pattern.parse("causal").formula
LENGTHS = (16384, 65536, 4096)
TOKENS = 32768  # of a batch
SECONDS = 2.0
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
BARS = {"flex": 1.0, "strided": 20.0, "cudnn": 0.75}
"""Least ratios of a competitor's time to weft's: FlexAttention on any sparse pattern, and on strided ones; cuDNN where
the pattern is dense or causal."""


@dataclass(frozen=True)
class Shape:
    """q [batch, heads, n, dk], k [batch, kv heads, n, dk], v [batch, kv heads, n, dv]."""

    batch: int
    heads: int
    kv: int
    n: int
    dk: int
    dv: int


def run(stage: Stage) -> None:
    lengths = (64,) if stage.rehearsal else LENGTHS
    done: set[tuple[str, int]] = set()
    for name, n in stage.cases((f"{name} {n}", (name, n)) for n in lengths for name in names()):
        with stage.guarded(f"{name} {n}"):
            made, length = opened(name, n, "small" if stage.rehearsal else "published")
            if (name, length) in done:
                continue
            done.add((name, length))
            for forward, backward in pairs(made):
                with stage.guarded(f"{name}.{forward.kernel} {length}"):
                    _case(stage, made, forward, backward, length)


def opened(name: str, n: int, size: str) -> tuple[Package, int]:
    """A spec for n tokens, or for as many as its static table of blocks has rows for."""
    try:
        return package(name, size, _longest(name, n)), n
    except FormulaError:
        made = package(name, size)
        return made, made.planned.sizes["seq"]


def _longest(name: str, n: int) -> int:
    """The length that a spec's alignment allows next to n."""
    limit = program(name, "published").runtime.get("seq")
    return 0 if limit is None else n // limit.align * limit.align


def op_of(region: RegionFile) -> Attend | AttendGrad:
    return next(n.op for n in region.graph.nodes if isinstance(n.op, Attend | AttendGrad))


def pairs(made: Package) -> Iterator[tuple[RegionFile, RegionFile | None]]:
    """The regions of self-attention, each with that of its backward."""
    found = [r for r in made.regions if r.skeleton == "attention"]
    for r in found:
        op = op_of(r)
        if isinstance(op, Attend) and op.query == "seq":
            yield r, next((b for b in found if isinstance(o := op_of(b), AttendGrad) and o.of == op), None)


def shape(op: Attend, q: Val, k: Val, v: Val, sizes: dict[str, int]) -> Shape:
    rows = [d for d in q.dims if d not in ("batch", op.query, op.contract)]
    heads, kv = prod(sizes[d] for d in rows), prod(sizes[d] for d in rows if d in k.dims)
    own = [d for d in v.dims if d not in (*q.dims, op.over) or d == op.contract]
    return Shape(sizes["batch"], heads, kv, sizes[op.query], sizes[op.contract], prod(sizes[d] for d in own))


def _case(stage: Stage, made: Package, forward: RegionFile, backward: RegionFile | None, n: int) -> None:
    op, sizes = op_of(forward), made.sizes(batch=2 if stage.rehearsal else max(1, TOKENS // n), seq=n)
    assert isinstance(op, Attend)
    q, k, v = next(x for x in forward.graph.nodes if x.op is op).ins[:3]
    at = shape(op, q, k, v, sizes)
    dtype = "f32" if stage.rehearsal else "bf16"
    peers, whys = competitors(op, at, stage.device, torch.float32 if stage.rehearsal else torch.bfloat16)
    prices = made.prices(sizes)
    for side, region in (("forward", forward), ("backward", backward)):
        if region is None:
            whys["weft"] = "no kernel holds this backward; the package runs it as torch ops"
            stage.row(f"{made.name} {n} {side}", pattern=op.pattern.text, whys=whys)
            continue
        case = made.case(region)
        args = case.inputs(sizes, stage.device, dtype, 0)
        runs: dict[str, Run] = {"weft": lambda case=case, args=args: case.run(args)}
        runs |= {name: both[side == "backward"] for name, both in peers.items()}
        times = race(runs, stage.device, SECONDS)
        ratios = {k: t.us / times["weft"].us for k, t in times.items() if k != "weft" and t.us and times["weft"].us}
        stage.row(
            f"{made.name} {n} {side}", pattern=op.pattern.text, shape=vars(at), layout=str(op.layout),
            density=round(price.density(op, sizes), 5), flops=work(region, prices), bytes=traffic(region, prices),
            times={k: t.data() for k, t in times.items()}, ratios=ratios, bars=bars(op, ratios), whys=whys,
        )  # fmt: skip


def bars(op: Attend, ratios: dict[str, float]) -> dict[str, bool]:
    """Which of the aims are met."""
    if op.pattern.formula in (True, CAUSAL):
        wanted = {"cudnn": BARS["cudnn"]}
    else:
        strided = op.layout is not None and {p.layout for p in op.layout.parts} == {"residues"}
        wanted = {"flex": BARS["strided" if strided else "flex"]}
    return {k: ratios[k] >= least for k, least in wanted.items() if k in ratios}


def competitors(
    op: Attend, at: Shape, device: str, dtype: torch.dtype
) -> tuple[dict[str, tuple[Run, Run]], dict[str, str]]:
    """name -> (forward, backward), and why those that are missing are."""
    draw = torch.Generator(device).manual_seed(0)

    def leaf(heads: int, width: int) -> Tensor:
        made = torch.randn(at.batch, heads, at.n, width, generator=draw, device=device, dtype=torch.float32)
        return made.to(dtype).requires_grad_()

    q, k, v = leaf(at.heads, at.dk), leaf(at.kv, at.dk), leaf(at.kv, at.dv)
    scale, found, whys = at.dk**-0.5, dict[str, tuple[Run, Run]](), dict[str, str]()
    dense: dict[str, Any] = {"is_causal": _is_causal(op), "scale": scale, "enable_gqa": at.heads != at.kv}
    for name, backend in BACKENDS.items():

        def attend(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, **dense)

        _add(found, whys, name, attend, (q, k, v))
    try:
        found |= _flex(op, at, device, (q, k, v), scale, whys)
    except Exception as error:
        whys["flex"] = f"{type(error).__name__}: {error}"[:200]
    return found, whys


def _is_causal(op: Attend) -> bool:
    """May no query see a later key? Read off the first 256 tokens."""
    try:
        see = mask(op.pattern)
    except ValueError:
        return False
    at = torch.arange(256)
    later = at[None, :] > at[:, None]
    return not bool((see(0, at[:, None] * 0, at[:, None], at[None, :]) & later).any())


def _flex(
    op: Attend, at: Shape, device: str, leaves: tuple[Tensor, ...], scale: float, whys: dict[str, str]
) -> dict[str, tuple[Run, Run]]:
    # it takes seconds, and one side of the comparison alone needs it
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    see = mask(op.pattern)
    heads = at.heads if op.pattern.per_head else None
    seen = create_block_mask(see, None, heads, at.n, at.n, device=device, _compile=device != "cpu")
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = leaves
    found: dict[str, tuple[Run, Run]] = {}

    def attend() -> Tensor:
        return compiled(q, k, v, block_mask=seen, scale=scale, enable_gqa=at.heads != at.kv)

    _add(found, whys, "flex", attend, leaves)
    return found


def _add(
    found: dict[str, tuple[Run, Run]], whys: dict[str, str], name: str, attend: Callable[[], Tensor],
    leaves: tuple[Tensor, ...],
) -> None:  # fmt: skip
    """A competitor's forward, and its backward from a result that is kept."""
    try:
        with torch.no_grad():
            attend()
        out = attend()
        do = torch.randn_like(out)

        def forward() -> Tensor:
            with torch.no_grad():
                return attend()

        found[name] = (forward, lambda: torch.autograd.grad(out, leaves, do, retain_graph=True))
    except Exception as error:
        whys[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
