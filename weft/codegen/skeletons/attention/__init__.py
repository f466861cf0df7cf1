"""Attention over the blocks that a pattern has."""
