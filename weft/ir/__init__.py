"""The intermediate representation: immutable graphs of ops over named dims. Imports no torch.

In reading order: `types` (values, nodes, graphs), `ops/` (what an op declares, and those not made of others),
`library/` (ops declared by their meaning), `builder`, `formula/` (everything pointwise), `pattern/` (predicates of
attention), `text`, `verify`, `reference` (the interpreter: the truth), `derive` (reverse mode), `cost`, `placement`,
`program`."""
