"""The tensors of a checkpoint: where they are found, which parameters they hold, and how they are moved."""
