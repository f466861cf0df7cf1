"""A block a few positions at a time: its step over what earlier positions left, and what is read once."""
