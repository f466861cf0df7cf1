"""Which recompute mode each layer takes, so that the predicted peak fits: what is held when, and the exact choice."""
