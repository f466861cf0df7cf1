"""What each block holds in memory, estimated from its graphs, where nothing can be run. Imports no torch."""

from weft.passes.chain import BlockProfile, Mode
from weft.passes.halves import Derived
from weft.passes.liveness import estimate, peak
from weft.passes.price import Prices
from weft.passes.structure import Given, Site


def held(site: Site) -> frozenset[str]:
    """Inputs of a block that live anyway: parameters, and integers that the caller gave."""
    inputs = zip(site.body.inputs, site.sources)
    return frozenset(v.name for v, s in inputs if not isinstance(s, Given) or not v.type.floating)


def estimated(made: Derived, prices: Prices) -> BlockProfile:
    """A block in each of its modes, from the lifetimes of its graphs' values."""
    block, joint, site = made.block, made.joint, made.block.site
    entering = [v.name for v, s in zip(site.body.inputs, site.sources) if isinstance(s, Given) and v.type.floating]
    if joint is None:
        boundary = sum(prices.size(v) for v in block.graph.inputs if v.name in entering)
        return BlockProfile(block.name, (Mode("forward", 0, peak(block.graph, prices), 0),), boundary)
    kept = {m.name: m.saved for m in block.modes}
    return estimate(block.name, joint, len(block.graph.outputs), kept, prices, entering, held(site))
