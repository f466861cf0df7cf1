"""What each block holds in memory, estimated from its graphs, where nothing can be run. Imports no torch."""

from weft.passes.fusion.price import Prices
from weft.passes.halves import Derived
from weft.passes.memory.liveness import bytes_of, estimate, leaving, peak
from weft.passes.schedule import BlockProfile, RunMode
from weft.passes.structure import CallSite, Given


def held(site: CallSite) -> frozenset[str]:
    """Inputs of a block that live anyway: parameters, and integers that the caller gave."""
    inputs = zip(site.body.inputs, site.sources)
    return frozenset(v.name for v, s in inputs if not isinstance(s, Given) or not v.type.floating)


def estimated(made: Derived, prices: Prices) -> BlockProfile:
    """A block in each of its modes, from the lifetimes of its graphs' values."""
    block, joint, site = made.block, made.joint, made.block.site
    entering = [v for v in block.graph.inputs if v.type.floating and v.name not in held(site)]
    if joint is None:
        leaves = leaving(block.graph.outputs, made.graph)
        modes = (RunMode("forward", 0, peak(made.graph, prices), 0),)
        return BlockProfile(block.name, modes, bytes_of(entering, prices), bytes_of(leaves, prices))
    kept = {m.name: m.saved for m in block.modes}
    names = [v.name for v in entering]
    return estimate(block.name, joint, block.graph.outputs, kept, prices, names, held(site))
