"""Maps around reductions along rows: norms, softmax, row sums."""
