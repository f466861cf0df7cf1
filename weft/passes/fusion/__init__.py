"""Which nodes of a function are one kernel: what can be, what is cheapest, and the regions that come of it."""
