"""Kernel skeletons: complete Triton files with holes, one family each, copied as they are into emitted packages.

A skeleton imports triton, torch and the skeletons beside it (`from .attention_common import ...`), nothing of weft. Its
holes are @triton.jit functions passed as constexpr. Files that end in `_space` or `_plan`, and `hazards`, are data and
compile-time arithmetic for weft itself and stay here.
"""
