"""Recurrences that are linear in their states, in chunks of positions."""
