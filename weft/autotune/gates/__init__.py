"""What a configuration passes before it is timed, cheapest first, and who times it."""
