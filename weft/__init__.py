"""weft: a short spec becomes a readable, verified, optimized PyTorch package."""
