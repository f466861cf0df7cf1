"""Pure functions from what a program is to what is decided of it, one a file; `pipeline` has their order.

`fusion/` groups nodes into regions, `memory/` chooses what each layer keeps, `decode/` makes steps of blocks."""
