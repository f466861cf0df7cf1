"""Recurrences along one dim whose cell works element by element."""
