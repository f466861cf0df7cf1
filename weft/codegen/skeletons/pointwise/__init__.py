"""Maps over one iteration space, and sums of them over its rows."""
