"""Recurrences along one dim whose states are small matrices."""
