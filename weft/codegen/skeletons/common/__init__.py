"""What the kernels of every family share."""
