"""Torch source: graphs printed as functions, ops and formulas spelled in torch."""
