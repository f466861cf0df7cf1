"""Losses over long vocabularies, one pass over the logits."""
