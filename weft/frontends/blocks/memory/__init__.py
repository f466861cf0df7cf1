"""What blocks hand from segment to segment: rows of a memory, memory tokens, the state of a block recurrence."""
