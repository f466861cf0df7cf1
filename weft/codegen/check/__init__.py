"""A package and its kernels against the reference interpreter."""
