"""What each block holds in memory, and launches and moves as torch's operators, measured: its emitted functions run on
the meta device, where nothing is computed.

A dispatch mode sees every tensor that an operation makes and counts the bytes of storages still alive. Meta tensors
have the sizes and views of real ones, so the numbers are those of a real run; what a CPU's operators need inside
themselves is not seen on either and is added (`workspace`), for as many threads as torch has where the plan is made.
Imports torch.
"""

import importlib.util
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weft.codegen.measure.launched import Ledger
from weft.codegen.measure.meta import Meta
from weft.codegen.measure.stand_in import Text
from weft.codegen.measure.tracer import untraced
from weft.codegen.measure.workspace import Constants, workspace
from weft.codegen.package.block import printed_file
from weft.codegen.torch.sizes import Sizes
from weft.ir.graphs import with_gradient
from weft.ir.types import ITEMSIZE, Val, torch_dtype
from weft.passes.blocks import trusted
from weft.passes.fusion.price import Prices
from weft.passes.fusion.ran import ALONE, Place, Ran
from weft.passes.halves import Derived, Pair
from weft.passes.memory.estimate import estimated
from weft.passes.memory.liveness import leaving
from weft.passes.schedule import BlockProfile
from weft.passes.schedule import RunMode as Cost
from weft.passes.structure import Given, Structure
from weft.progress import doing
from weft.targets import Target


class _Made(weakref.ref[torch.UntypedStorage]):
    """A live storage. place: where it is; number: how many were made before it; size: bytes that it counts for."""

    __slots__ = ("number", "place", "size")
    place: int
    number: int
    size: int


@dataclass
class _Count:
    """Bytes of live storages, by place."""

    now: int = 0
    most: int = 0
    made: int = 0
    known: dict[int, _Made] = field(default_factory=dict[int, _Made])

    def gone(self, storage: _Made) -> None:
        del self.known[storage.place]
        self.now -= storage.size


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while the mode is on and still alive; `most` is the peak so far.

    Storages that were there before (of the tensors given) are not counted, nor are those whose number, in order of
    making, is in `skip`. threads: also count what torch's CPU operators allocate inside themselves on so many; 0: do
    not. meta: what runs an operator, where its results need no computing; ledger: is then told its costs."""

    def __init__(
        self,
        given: Iterable[Tensor] = (),
        skip: Collection[int] = (),
        threads: int = 0,
        meta: Meta | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        self.skip, self.threads, self.meta, self.ledger = skip, threads, meta, ledger
        self.count = _Count()
        self.given = set(map(_place, given))
        self.constants = Constants(self.see)

    def __enter__(self) -> "LiveBytes":
        self.constants.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.constants.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.meta is None:
            out = func(*args, **(kwargs or {}))
            inside = workspace(str(func.name()).split(".")[0], args, out, self.threads) if self.threads else 0
        else:
            out, known = self.meta.called(func, args, kwargs or {})
            inside = known.inside if self.threads else 0
            if self.ledger is not None and known.cost.launches:
                self.ledger.see(known.cost)
        for x in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(x, Tensor):
                self.see(x)
        if inside:
            self.count.most = max(self.count.most, self.count.now + inside)
        return out

    def see(self, x: Tensor) -> None:
        storage, count = x.untyped_storage(), self.count
        place = storage._cdata
        if place in count.known or place in self.given:
            return
        made = _Made(storage, count.gone)
        made.place, made.number, made.size = place, count.made, 0 if count.made in self.skip else storage.nbytes()
        count.known[place] = made
        count.made += 1
        count.now += made.size
        count.most = max(count.most, count.now)

    @property
    def now(self) -> int:
        return self.count.now

    @property
    def most(self) -> int:
        return self.count.most

    def number(self, x: Tensor) -> int:
        """How many storages were made before this tensor's; -1 for one that was there."""
        made = self.count.known.get(_place(x))
        return -1 if made is None else made.number

    def restart(self) -> None:
        """Forget the peak: `most` counts from what is alive now."""
        self.count.most = self.count.now


def profiler(target: Target) -> Callable[[Structure, Mapping[str, int], Sequence[Derived]], list[BlockProfile]]:
    """Measures each block in each of its modes at given sizes; extra times are the target's prices."""

    def measure(model: Structure, sizes: Mapping[str, int], blocks: Sequence[Derived]) -> list[BlockProfile]:
        found: list[BlockProfile] = []
        with untraced():
            _first_call()
            meta = Meta(torch.get_num_threads() if target.kind == "cpu" else 0)
            for i, made in enumerate(blocks):
                doing(f"planning: memory of {made.block.name}", i, len(blocks))
                found.append(_profiled(model, sizes, made, target, meta))
        return found

    return measure


def _first_call() -> None:
    """Have torch call an operator under a mode once in a process: it imports much of itself in the first such call, and
    keeps what is alive then, up the stack, in a circle that waits for the garbage collector."""
    x = torch.empty(1, 1, device="meta")
    with LiveBytes([x]):
        torch.nn.functional.embedding(torch.zeros(1, dtype=torch.int64, device="meta"), x)


def _profiled(model: Structure, sizes: Mapping[str, int], made: Derived, target: Target, meta: Meta) -> BlockProfile:
    """Measured; estimated for a block with a wrapped module, which is not at hand and never looked into."""
    if made.block.wrapped is None:
        return profile(model, sizes, made, target, meta)
    return estimated(made, Prices(sizes, target))


def profile(model: Structure, sizes: Mapping[str, int], made: Derived, target: Target, meta: Meta) -> BlockProfile:
    """One block in each of its modes."""
    run, prices = _EmittedBlock(model, sizes, made, meta), Prices(sizes, target)
    if made.joint is None:
        modes = (Cost("forward", 0, run.forward_peak(), 0),)
        return BlockProfile(made.block.name, modes, *run.ends, 0, run.ran)
    costs = [run.cost(pair, sum(map(prices.seconds, pair.again))) for pair in made.own]
    if target.kind == "cpu":
        for pair in made.pairs:
            run.rest(pair)
    return BlockProfile(made.block.name, tuple(costs), *run.ends, run.grads, run.ran)


def imported(name: str, source: str) -> ModuleType:
    """The file of a block as a module. Its `..runtime` is weft.codegen.runtime, whose files packages copy."""
    spec = importlib.util.spec_from_loader(f"weft.codegen.profiled.{name}", Text(source))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _EmittedBlock:
    """The emitted functions of one block, and meta tensors to call them with."""

    def __init__(self, model: Structure, sizes: Mapping[str, int], made: Derived, meta: Meta) -> None:
        program, block = model.program, made.block
        self.program, self.block, self.sizes, self.meta = program, block, sizes, meta
        source, self.printed = printed_file(program, made, trusted(model, block))
        self.module = imported(block.name, source)
        self.ran: dict[Place, tuple[Ran, ...]] = {}
        by_input = dict(zip(block.site.body.inputs, block.site.sources))
        self.entering = [v for v in block.graph.inputs if isinstance(by_input[v], Given) and v.type.floating]
        shown = set(program.graph.outputs)
        self.shown = [i for i, v in enumerate(block.site.node.outs) if v in shown]
        self.leaving = leaving(block.graph.outputs, block.graph)
        ends = (tuple((v.name, self.bytes(v)) for v in vs) for vs in (self.entering, self.leaving))
        self.ends: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] = tuple(ends)  # type: ignore[assignment]
        self.grads = sum(self.bytes(v) for v in block.graph.inputs if v.type.floating and v not in self.entering)

    def bytes(self, v: Val) -> int:
        return prod(self.sizes[d] for d in v.dims) * ITEMSIZE[v.dtype]

    def tensor(self, v: Val) -> Tensor:
        return torch.empty([self.sizes[d] for d in v.dims], dtype=torch_dtype(torch, v.dtype), device="meta")

    def forward_peak(self) -> int:
        args = [self.tensor(v) for v in self.block.graph.inputs]
        skip = self.returned("forward", args)
        with torch.no_grad(), self.live(args, skip, "forward") as live:
            self.module.forward(*args)
        self.keep(ALONE, live)
        return live.most

    def live(self, args: Iterable[Tensor], skip: Collection[int], name: str) -> LiveBytes:
        return LiveBytes(args, skip, self.meta.threads, self.meta, self.ledger(name))

    def ledger(self, name: str) -> Ledger:
        """For what a function launches and moves."""
        return Ledger(getattr(self.module, name), self.printed[name])

    def keep(self, place: Place, live: LiveBytes) -> None:
        """Note what a function ran."""
        assert live.ledger is not None
        self.ran[place] = live.ledger.ran()

    def rest(self, pair: Pair) -> None:
        """Run those of a pair's functions that have not run: all memory tells of them is told by others."""
        told = [self.sizes[d] for d in Sizes.of(self.program).untold(pair.backwards)]
        for side, of, graph in pair.in_print():
            if pair.place(side, of) in self.ran:
                continue
            name, args = pair.name(side, of), [self.tensor(v) for v in graph.inputs]
            with torch.no_grad(), LiveBytes(args, (), 0, self.meta, self.ledger(name)) as live:
                getattr(self.module, name)(*args, *(told if side == "backward" else ()))
            self.keep(pair.place(side, of), live)

    def returned(self, name: str, args: Sequence[Tensor]) -> set[int]:
        """Numbers of the storages that hold what the model returns: its caller holds them, so others count them."""
        if not self.shown:
            return set()
        with torch.no_grad(), LiveBytes(args, meta=self.meta) as live:
            got = getattr(self.module, name)(*args)
            got = got if isinstance(got, tuple) else (got,)
            return {live.number(got[i]) for i in self.shown}

    def cost(self, pair: Pair, time: float) -> Cost:
        """Run forward, then backward with only what is kept from it."""
        args = {v.name: self.tensor(v) for v in self.block.graph.inputs}
        outputs = self.block.graph.outputs
        forward, of = pair.name("forward"), next(iter(pair.only), "")
        skip = self.returned(forward, list(args.values()))
        with (
            torch.no_grad(),
            self.live(args.values(), skip, forward) as live,
        ):
            got = getattr(self.module, forward)(*args.values())
            got = got if isinstance(got, tuple) else (got,)
            self.keep(pair.place("forward"), live)
            forward_peak = live.most
            out, saved = dict(zip(outputs, got)), list(got[len(outputs) :])
            del got
            own, keeps = self.kept(pair, args, out, saved)
            floats = with_gradient(self.block.graph, outputs)
            cotangents = [self.tensor(v) for v in (floats[:1] if pair.only else floats)]
            live.given |= set(map(_place, cotangents))
            del out
            before = live.now
            live.restart()
            name = pair.name("backward", of)
            live.ledger = self.ledger(name)
            tensors, scalars = ([args[v.name] for v in vs] for vs in (pair.tensors, pair.scalars))
            told = [self.sizes[d] for d in Sizes.of(self.program).untold(pair.backwards)]
            grads = getattr(self.module, name)(*saved, *tensors, *cotangents, *scalars, *told)
            backward_peak = live.most - before
            self.keep(pair.place("backward", of), live)
            del grads
        return Cost(pair.mode.name, own, forward_peak, backward_peak, time, keeps)

    def kept(
        self, pair: Pair, args: Mapping[str, Tensor], out: Mapping[Val, Tensor], saved: Sequence[Tensor]
    ) -> tuple[int, frozenset[str]]:
        """Bytes that a forward keeps, and which values at the block's boundary besides."""
        shown = {v for i, v in enumerate(out) if i in self.shown}
        places = {_place(x): x.untyped_storage().nbytes() for x in saved}
        ends = {v.name: _place(out[v]) for v in self.leaving if v not in shown}
        ends |= {v.name: _place(args[v.name]) for v in self.entering}
        given = {_place(x) for x in args.values()} | {_place(out[v]) for v in shown} | set(ends.values())
        read = {v.name for v in pair.tensors}
        keeps = frozenset(name for name, place in ends.items() if place in places or name in read)
        return sum(n for place, n in places.items() if place not in given), keeps


def _place(x: Tensor) -> int:
    """Where a tensor's storage is."""
    return x.untyped_storage()._cdata
