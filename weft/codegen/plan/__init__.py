"""The finished plan, from a program to everything decided of it, and every view of it."""
