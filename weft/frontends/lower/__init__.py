"""Spec -> program: the ends, the layers, and what lowering keeps for the whole model."""
