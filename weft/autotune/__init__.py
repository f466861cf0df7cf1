"""The autotuner: the best configuration of a kernel, from a pool of those that can win, within a budget.

In reading order: `types` (the words), `space`, `features`, `surrogate`, `sampler` (what to try next), `seeds` (what is
known from elsewhere), `runners`, `replay` (who times it), `finals` (which of the best is best), `search` (one kernel),
`session` (a package), `report`. Importing this package imports neither torch nor Optuna nor NumPy.
"""
