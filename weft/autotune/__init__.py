"""The autotuner: the best configuration of a kernel, from a pool of those that can win, within a budget.

In reading order: `types` (the words), `space/` (which configurations there are, and in `seeds` what is known of them
from elsewhere), `workers/` (processes that compile, run and time), `gates/` (what a configuration passes before it is
timed), `search/` (one kernel: what to try next, `finals`: which of the best is best), `session` (a package),
`report/`. Importing this package imports neither torch nor Optuna nor NumPy.
"""
