"""Products of experts, their tokens gathered where they are used."""
