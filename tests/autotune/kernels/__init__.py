"""A folder of kernels as a package has one: a skeleton, and a wrapper that imports torch."""
