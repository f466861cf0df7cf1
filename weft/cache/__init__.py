"""The store of tuning results. Imports the standard library only: a lookup costs no torch, SymPy or Optuna.

In reading order: `key` (what a result holds for), `row` (one trial), `lines`, `files`, `shard` (how rows lie on disk),
`summary` (what they come to), `store`, `ladder` (the lookup), `pack` (one portable file), `kernel` (the hash of a
region)."""
