"""A config.json: its options, and the words of the spec that they come to."""
