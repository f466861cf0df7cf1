"""Which configurations of which kernels there are, as data, and what is known of them from elsewhere."""
