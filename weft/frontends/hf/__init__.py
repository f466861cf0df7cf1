"""Hugging Face in and out: a config.json becomes a spec, a folder's weights a module's, and back. One file a family."""
