"""Specs drawn over the whole language, each compiled for training and compared with the reference interpreter.

Faults stand in the product of two features that were each tested alone, so what is counted is pairs: of keys of the
schema that one spec sets, and of the options that were drawn for them.

    python -m tests.sweep --cases 300 --kernels 4 --shrink     what it finds, shrunk, and what it covered

options.py says what is drawn, draw.py draws, compare.py compares one spec, shrink.py makes a failing one small,
coverage.py counts, campaign.py runs many.
"""
