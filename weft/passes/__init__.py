"""Pure functions from what a program is to what is decided of it, one a file; `pipeline` has their order."""
