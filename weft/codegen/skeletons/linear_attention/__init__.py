"""What a linear recurrence is within a chunk of positions: products through decays, and a triangular inverse."""
