"""The one door to networkx's maximum flow; imported when first used, as it takes a quarter of a second."""

from collections.abc import Hashable, Iterable
from typing import Any

Edge = tuple[Hashable, Hashable, int | None]  # from, to, capacity; None: it can never be cut


def minimum_cut(edges: Iterable[Edge], source: Hashable, sink: Hashable) -> frozenset[Hashable]:
    """The source's side of a minimum cut between `source` and `sink`; capacities are whole numbers."""
    import networkx  # it takes a tenth of a second to import

    nx: Any = networkx

    network: Any = nx.DiGraph()
    network.add_nodes_from((source, sink))
    for a, b, capacity in edges:
        network.add_edge(a, b, **({} if capacity is None else {"capacity": capacity}))
    _, (side, _) = nx.minimum_cut(network, source, sink)
    return frozenset(side)
