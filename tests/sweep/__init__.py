"""Specs drawn over the whole language, each compiled for training and compared with the reference interpreter.

Faults stand in the product of two features that were each tested alone, so what is counted is pairs: of keys of the
schema that one spec sets, and of the options that were drawn for them.

    python -m tests.sweep --cases 300 --kernels 4 --shrink     what it finds, shrunk, and what it covered
    python -m tests.sweep.planted                              which of the faults that were mended it would have found

options.py says what is drawn, draw.py draws, compare.py compares one spec, beside.py looks at what no comparison shows,
shrink.py makes a failing one small, coverage.py counts, campaign.py runs many; mended.py holds faults that were mended,
planted.py plants each in a copy of the tree.
"""
