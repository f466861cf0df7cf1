"""The intermediate representation: immutable graphs of ops over named dims. Imports no torch.

In reading order: `types` (values, nodes, graphs), `op` (what an op declares), `primitives`, `movement`, `regions` (the
ops), `library` (ops declared by their meaning), `builder`, `formula` and `functions` (everything pointwise), `text`,
`verify`, `reference` (the interpreter: the truth), `derive` (reverse mode), `cost`, `placement`, `program`."""
