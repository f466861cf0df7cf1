"""Spec -> program. `load` reads a file, `schema` and `blocks/` are the language, `lower/` makes the graph."""
